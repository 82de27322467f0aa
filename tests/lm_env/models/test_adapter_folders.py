"""Adapters on disk: saved alone with the name of their base, or merged; read by peft, transformers and by name."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import agents.sb3
from agents import PPO
from agents.sft import supervised_finetune
from lm_env import TextGenerationEnv, load_model, load_tokenizer
from lm_env.errors import ConfigurationError, ModelLoadError
from lm_env.models import add_lora, base_of
from lm_env.models.adapters import has_adapter
from lm_env.models.export import check_mergeable, export_language_model
from lm_env.models.loading import EMBEDDED_MODEL, load_causal_lm, resolve
from reward_models import RewardModel

peft = pytest.importorskip("peft")

IDS = torch.tensor([[1, 5, 9, 2, 7]])
TEXTS = ["a good film", "a bad story", "the end"] * 4


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


@pytest.fixture
def trained(model_folder):
    """A peft model on a base that was loaded by name, trained a little, and its tokenizer."""
    base, tokenizer = load_model(model_folder), load_tokenizer(model_folder)
    model = add_lora(base, 4)
    supervised_finetune(model, tokenizer, TEXTS, learning_rate=0.05, batch_size=4)
    return model, tokenizer


def test_fresh_adapters_change_nothing_and_train_alone(model_folder):
    plain = load_model(model_folder)
    state = torch.get_rng_state()
    model = add_lora(copy.deepcopy(plain), 4, dropout=0.1, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(logits(model), logits(plain))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained) and not any("lm_head" in name for name in trained)
    again = add_lora(copy.deepcopy(plain), 4, dropout=0.1, seed=3)
    other = add_lora(copy.deepcopy(plain), 4, dropout=0.1, seed=4)
    weights, same, different = (
        torch.cat([p.flatten() for n, p in m.named_parameters() if "lora_A" in n]) for m in (model, again, other)
    )
    assert torch.equal(weights, same) and not torch.equal(weights, different)


@pytest.mark.parametrize("options", [{"rank": 0}, {"rank": 2.5}, {"alpha": -1}, {"dropout": 1.0}])
def test_impossible_adapters_are_named(make_lm, options):
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        add_lora(make_lm("gpt2"), **options)


def test_a_second_adapter_is_refused(make_lm):
    with pytest.raises(ConfigurationError, match="has an adapter already"):
        add_lora(add_lora(make_lm("gpt2"), 2), 2)


def test_an_adapter_is_saved_alone_and_everyone_reads_it(trained, tmp_path):
    model, tokenizer = trained
    live = logits(model)
    assert export_language_model(model, tokenizer, tmp_path)
    assert not list(tmp_path.glob("model*.safetensors")) and (tmp_path / "adapter_model.safetensors").is_file()
    for read in (
        load_model(tmp_path),
        AutoModelForCausalLM.from_pretrained(tmp_path),
        peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path),
    ):
        torch.testing.assert_close(logits(read), live, rtol=0, atol=1e-5)
    plain = load_model(tmp_path)
    assert not has_adapter(plain) and not any("lora" in name for name in plain.state_dict())
    assert load_tokenizer(tmp_path)("a film")["input_ids"] == tokenizer("a film")["input_ids"]
    trunk = RewardModel.from_causal_lm(tmp_path).network.trunk
    for name, tensor in plain.base_model.state_dict().items():
        assert torch.equal(trunk.state_dict()[name], tensor), name


def test_merged_where_asked(trained, tmp_path):
    model, tokenizer = trained
    export_language_model(model, tokenizer, tmp_path, merge=True)
    assert not (tmp_path / "adapter_config.json").exists()
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model), rtol=0, atol=1e-5)


def test_an_agent_saves_the_adapter_or_the_merged_model_and_goes_on_from_both(model_folder, text_task, tmp_path):
    def env():
        options = text_task(model=add_lora(load_model(model_folder), 4), tokenizer=load_tokenizer(model_folder))
        del options["reference"]
        return TextGenerationEnv(**options)

    agent = PPO(env(), rollout_episodes=8, slots=8, batch_size=4, learning_rate=0.02)
    agent.learn(60)
    live = logits(agent.task.model)
    for merge, file in ((False, "adapter_model.safetensors"), (True, "model.safetensors")):
        place = agent.save(tmp_path / f"{merge}.zip", merge=merge)
        assert place == tmp_path / str(merge) and (place / file).is_file()
        torch.testing.assert_close(logits(load_model(place)), live, rtol=0, atol=1e-5)
        assert Path(base_of(place)).samefile(model_folder)
        assert torch.equal(logits(PPO.load(place, env()).task.model), live)


def test_the_adapter_of_the_embedded_model_is_read_wherever_the_package_lies(tmp_path):
    """What is written down is a path, which another machine does not have."""
    model = add_lora(load_model(EMBEDDED_MODEL), 2)
    export_language_model(model, load_tokenizer(EMBEDDED_MODEL), tmp_path)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    assert config["base_model_name_or_path"] == resolve(EMBEDDED_MODEL)
    file.write_text(json.dumps({**config, "base_model_name_or_path": f"/elsewhere/{EMBEDDED_MODEL}"}))
    assert base_of(tmp_path) == EMBEDDED_MODEL
    assert torch.equal(logits(load_model(tmp_path)), logits(load_model(EMBEDDED_MODEL)))


def test_an_adapter_without_tokenizer_has_its_bases(trained, tmp_path, model_folder):
    trained[0].save_pretrained(tmp_path, save_embedding_layers=False)
    assert load_tokenizer(tmp_path).get_vocab() == load_tokenizer(model_folder).get_vocab()


def test_a_base_without_a_name_is_told(make_lm, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        export_language_model(add_lora(make_lm("gpt2"), 2), None, tmp_path)
    assert "was not loaded by name" in caplog.text
    with pytest.raises(ModelLoadError, match=r"names no base: .*PeftModel\.from_pretrained.*merge=True"):
        load_model(tmp_path)
    assert base_of(tmp_path) is None


def test_damaged_adapters_are_errors_of_one_sentence(trained, tmp_path):
    export_language_model(*trained, tmp_path / "whole")

    def damaged(name, change):
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        change(tmp_path / name)
        return tmp_path / name

    def edited(**changes):
        def edit(folder):
            file = folder / "adapter_config.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

        return edit

    cases = {
        "no weights": (damaged("a", lambda f: (f / "adapter_model.safetensors").unlink()), "does not fit its base"),
        "no json": (damaged("b", lambda f: (f / "adapter_config.json").write_text("{")), "cannot be read"),
        "no base": (damaged("c", edited(base_model_name_or_path="/no/such/place")), "no folder of this name"),
        "its own base": (damaged("d", edited(base_model_name_or_path=str(tmp_path / "d"))), "names itself as its base"),
    }
    for folder, words in cases.values():
        with pytest.raises(ModelLoadError, match=words) as caught:
            load_model(folder)
        assert "\n" not in str(caught.value)


def test_no_adapter_is_merged_into_a_quantized_base(trained, tmp_path):
    model, tokenizer = trained
    model.get_base_model().is_quantized = True
    model.is_quantized = True
    with pytest.raises(ConfigurationError, match="is quantized"):
        check_mergeable(model)
    export_language_model(model, tokenizer, tmp_path)
    with pytest.raises(ConfigurationError, match="cannot be merged into a quantized base"):
        load_model(tmp_path, quantization_config={"load_in_4bit": True})


# -- what a model was trained from -----------------------------------------------------------------
def test_a_saved_policy_knows_its_reference(model_folder, text_task, tmp_path):
    options = text_task(model=model_folder)
    del options["reference"], options["tokenizer"]
    agent = PPO(TextGenerationEnv(**options), rollout_episodes=4, slots=4)
    assert Path(base_of(agent.save(tmp_path / "policy"))).samefile(model_folder)
    assert load_model(tmp_path / "policy") is not None  # the file beside the weights is in nobody's way


def test_the_embedded_model_is_known_by_its_name(tmp_path):
    model, tokenizer = load_causal_lm(EMBEDDED_MODEL)
    export_language_model(model, tokenizer, tmp_path, base=model.name_or_path)
    assert base_of(tmp_path) == EMBEDDED_MODEL and base_of(EMBEDDED_MODEL) is None


@pytest.mark.parametrize("content", ["", "[]", "{", '{"base_model": 3}', '{"base_model": ""}'])
def test_a_damaged_note_of_the_base_is_none(tmp_path, content):
    (tmp_path / "base_model.json").write_text(content)
    assert base_of(tmp_path) is None


def test_stable_baselines_agents_are_merged_too(tmp_path, model_folder, text_task):
    import stable_baselines3

    options = text_task(model=add_lora(load_model(model_folder), 4), tokenizer=load_tokenizer(model_folder))
    del options["reference"]
    env = agents.sb3.TextVecEnv.from_env(TextGenerationEnv(**options), num_envs=2)
    agent = stable_baselines3.A2C(
        agents.sb3.CausalLMPolicy, env, n_steps=4, rollout_buffer_class=agents.sb3.EpisodeRolloutBuffer
    )
    assert (agents.sb3.save(agent, tmp_path / "a.zip") / "adapter_config.json").is_file()
    assert (agents.sb3.save(agent, tmp_path / "b", merge=True) / "config.json").is_file()
    torch.testing.assert_close(logits(load_model(tmp_path / "a")), logits(load_model(tmp_path / "b")))
