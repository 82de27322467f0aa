"""Loading from folders and names: verified where a manifest lies, one clear error, and never a word to the hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paths import REPOSITORY
from saved_folders import files_of, flip
from transformers import AutoModel

from lm_env.errors import CheckpointCorruptError, ConfigurationError, ModelLoadError
from lm_env.models.export import export_language_model
from lm_env.models.loading import load_model, load_pretrained, load_tokenizer
from lm_env.storage import write_folder
from reward_models import RewardModel, SequenceClassifierReward

LOADERS = {
    "load_model": load_model,
    "load_tokenizer": load_tokenizer,
    "load_pretrained": lambda folder: load_pretrained(AutoModel, folder),
}


@pytest.fixture
def saved(tmp_path, text_lm, tokenizer) -> Path:
    """A language model and its tokenizer, as `lm-env sft` saves them."""
    model = text_lm()
    return write_folder(tmp_path / "policy", lambda folder: export_language_model(model, tokenizer, folder))


@pytest.mark.parametrize("loader", LOADERS)
def test_one_flipped_bit_in_any_file_is_refused(saved, loader):
    load = LOADERS[loader]
    names = files_of(saved)
    assert {"manifest.json", "model.safetensors", "tokenizer.json", "config.json"} <= set(names)
    for name in names:
        content = (saved / name).read_bytes()
        flip(saved / name, len(content) // 2)
        with pytest.raises(CheckpointCorruptError):
            load(saved)
        (saved / name).write_bytes(content)
    load(saved)


def test_a_saved_folder_loads_as_it_was(saved, text_lm):
    ids = torch.tensor([[1, 2, 3]])
    model = load_model(saved)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, text_lm()(input_ids=ids).logits)
    assert model.name_or_path == model.config._name_or_path == load_tokenizer(saved).name_or_path == str(saved)
    assert os.listdir(saved.parent) == ["policy"]


@pytest.mark.parametrize("name", ["adapter_config.json", "model.safetensors.index.json", "chat_template.jinja"])
def test_what_was_added_to_a_saved_folder_is_not_read(saved, name):
    before = load_tokenizer(saved).chat_template
    (saved / name).write_text('{"peft_type": "LORA", "base_model_name_or_path": "x", "weight_map": {}}')
    assert load_tokenizer(saved).chat_template == before
    load_model(saved)


def test_a_folder_where_a_save_was_killed_is_taken_from_the_one_before(saved):
    work = saved.with_name(".policy.lm_env")
    work.mkdir()
    os.rename(saved, work / "old")
    with pytest.warns(UserWarning, match="which was saved before it"):
        load_model(saved)


def test_a_folder_with_the_manifest_of_another_program_is_loaded(model_folder):
    (Path(model_folder) / "manifest.json").write_text('{"name": "a browser app"}')
    load_model(model_folder)


OFFLINE = """
import json, os, sys
from pathlib import Path

calls = []
NAMES = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
sys.addaudithook(lambda event, arguments: calls.append(event) if event in NAMES else None)

from transformers import AutoModelForCausalLM

from lm_env.errors import LMEnvError
from lm_env.models.loading import load_causal_lm, load_model, load_pretrained, load_tokenizer
from reward_models import RewardModel, SequenceClassifierReward

loaders = {
    "load_model": load_model,
    "load_tokenizer": load_tokenizer,
    "load_causal_lm": load_causal_lm,
    "load_pretrained": lambda name: load_pretrained(AutoModelForCausalLM, name),
    "RewardModel.load": RewardModel.load,
    "RewardModel.from_causal_lm": RewardModel.from_causal_lm,
    "SequenceClassifierReward": SequenceClassifierReward,
}
found = {}
for name in sys.argv[1:]:
    errors = {}
    for loader, load in loaders.items():
        try:
            load(name)
            errors[loader] = None
        except LMEnvError as error:
            errors[loader] = [type(error).__name__, str(error)]
    found[name] = [errors, calls[:]]
    calls.clear()
print(json.dumps(found))
"""


def test_nothing_asks_the_network(model_folder, saved, tmp_path):
    """A process that may use the network and has a token tries names that are not there, and folders that are.

    A folder without its tokenizer is where transformers would look for one on the hub; user/tiny is in the cache.
    """
    half = shutil.copytree(model_folder, tmp_path / "half", ignore=shutil.ignore_patterns("tokenizer*"))
    cached = tmp_path / "cache" / "hub" / "models--user--tiny"
    shutil.copytree(model_folder, cached / "snapshots" / "123abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("123abc")
    before = sorted(p for p in (tmp_path / "cache").rglob("*") if p.is_file())
    names = ["user/tiny", str(half), str(saved), "runs/policcy", "policcy"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HF_TOKEN": "hf_secret", "HF_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-W", "ignore", "-c", OFFLINE, *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=REPOSITORY, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [calls for _, calls in found.values()] == [[]] * len(names)
    assert sorted(p for p in (tmp_path / "cache").rglob("*") if p.is_file()) == before
    for name in names[3:]:
        for loader, (kind, message) in found[name][0].items():
            assert kind == "ModelLoadError" and repr(name) in message and "\n" not in message, loader
    errors = found[str(half)][0]
    assert errors["load_model"] is None
    assert errors["load_tokenizer"][0] == errors["SequenceClassifierReward"][0] == "ModelLoadError"
    for name in ("user/tiny", str(saved)):
        refused = [loader for loader, error in found[name][0].items() if error]
        assert refused == ["RewardModel.load", "SequenceClassifierReward"]


def test_a_missing_folder_is_named(tmp_path):
    for load in (load_model, load_tokenizer, SequenceClassifierReward):
        with pytest.raises(ModelLoadError, match=r"nothing'.* there is no folder of this name"):
            load(tmp_path / "nothing")
        with pytest.raises(ModelLoadError, match=r"nothing'.* there is no folder of this name"):
            load(str(tmp_path / "nothing"))


def test_a_device_that_cannot_be_used_is_named():
    with pytest.raises(ConfigurationError, match=r"^device 'nope' cannot be used here \(.+\): choose cpu$"):
        load_model("reviews-3m", device="nope")
    with pytest.raises(ConfigurationError, match=r"^device 'nope' cannot be used here \(.+\): choose cpu$"):
        RewardModel.from_causal_lm("reviews-3m", device="nope")
