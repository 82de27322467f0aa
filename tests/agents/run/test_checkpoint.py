"""Agents on disk: the same again, resumed as if never stopped, and whatever happens to the folder is noticed."""

from __future__ import annotations

import io
import os
import pickle
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents import PPO, PPOPenalty, PPOPtx, Reinforce
from agents.base.agent import BatchedAgent
from lm_env.envs.env import TextGenerationEnv
from lm_env.errors import CheckpointCorruptError, CheckpointMismatchError, CheckpointWriteError
from lm_env.objective.kl import AdaptiveKL
from lm_env.storage import verify_folder, write_folder
from lm_env.tasks.token_mdp import make

SMALL = {"rollout_episodes": 16, "slots": 8, "batch_size": 8, "n_epochs": 2, "learning_rate": 1e-2}
ENDS = list(range(0, 61, 5))


def state_of(agent: BatchedAgent) -> dict[str, torch.Tensor]:
    """All that training goes on from: weights, the optimizer's state, random states, counters."""
    tensors = {k: v.clone() for k, v in agent.policy.state_dict().items()}
    for index, entry in agent.updater.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v.clone() for k, v in entry.items()}
    if agent.ema is not None:
        tensors |= {f"ema.{k}": v.clone() for k, v in agent.ema.state_dict().items()}
    tensors["generator"] = agent.randomness.sampling.get_state()
    tensors["counters"] = torch.tensor(
        [agent.num_timesteps, agent.num_rollouts, agent.task.kl.beta], dtype=torch.float64
    )
    return tensors


def assert_same(a: BatchedAgent, b: BatchedAgent) -> None:
    """To the last bit."""
    ours, theirs = state_of(a), state_of(b)
    assert ours.keys() == theirs.keys()
    assert not [k for k in ours if not torch.equal(ours[k], theirs[k])]
    assert a.randomness.prompts.bit_generator.state == b.randomness.prompts.bit_generator.state
    assert a.randomness.minibatches.bit_generator.state == b.randomness.minibatches.bit_generator.state
    assert a.extra_state() == b.extra_state()


@pytest.fixture
def lm_env_of(id_task):
    """`lm_env_of(kind, **task)`: environments over fresh, equal models."""
    return lambda kind="gpt2", **changes: TextGenerationEnv(**id_task(kind, **{"eos_token_id": ENDS, **changes}))


@pytest.fixture
def saved(tmp_path) -> Path:
    """A trained agent on T0."""
    return PPO(make(), **SMALL).learn(40).save(tmp_path / "agent")


def test_another_fixed_beta_is_a_warning(lm_env_of, tmp_path):
    path = PPO(lm_env_of(beta=0.3), **SMALL).save(tmp_path / "agent")
    with pytest.warns(UserWarning, match=r"beta differs: 0\.3 was saved, 0\.9 is given"):
        assert PPO.load(path, lm_env_of(beta=0.9)).task.kl.beta == 0.3


# -- the same again ------------------------------------------------------------------------------------
@pytest.mark.parametrize("options", [{}, {"critic": "separate"}, {"critic": "none"}, {"ema_decay": 0.9}], ids=str)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_loaded_is_what_was_saved(lm_env_of, tmp_path, kind, options):
    agent = PPO(lm_env_of(kind), **SMALL, **options).learn(60)
    path = agent.save(tmp_path / "agent")
    again = PPO.load(path, lm_env_of(kind))
    assert_same(agent, again)
    assert again.config == agent.config
    assert agent.generate(n=5) == again.generate(n=5)
    np.testing.assert_array_equal(agent.collect_rollout().values, again.collect_rollout().values)


def test_an_untrained_agent_can_be_saved(lm_env_of, tmp_path):
    agent = PPO(lm_env_of(), **SMALL)
    assert_same(agent, PPO.load(agent.save(tmp_path / "agent"), lm_env_of()))


RESUMED = {
    "ppo": (PPO, {"ema_decay": 0.9, "warmup_rollouts": 3}),
    "ppo separate": (PPO, {"critic": "separate"}),
    "penalty": (PPOPenalty, {}),
    "reinforce": (Reinforce, {}),
    "ptx": (PPOPtx, {"texts": [[1, 2, 3], [4, 5, 6, 7], [8, 9]]}),
}


@pytest.mark.parametrize("name", RESUMED)
def test_resumed_equals_uninterrupted(lm_env_of, tmp_path, name):
    """2 + 2 rollouts = 4 rollouts, bit for bit, the adaptive KL controller and the averages included."""
    cls, options = RESUMED[name]
    texts = {"texts": options["texts"]} if "texts" in options else {}

    def env():
        return lm_env_of(beta=AdaptiveKL(0.3, target=1.0, horizon=200))

    small = {k: v for k, v in SMALL.items() if k in vars(cls.Config())}
    whole = cls(env(), **small, **options, lr_schedule="constant")
    for _ in range(4):
        agent_step(whole)
    first = cls(env(), **small, **options, lr_schedule="constant")
    for _ in range(2):
        agent_step(first)
    second = cls.load(first.save(tmp_path / "agent"), env(), **texts)
    for _ in range(2):
        agent_step(second)
    assert whole.task.kl.beta != 0.3
    assert_same(whole, second)


def agent_step(agent: BatchedAgent) -> None:
    """One rollout and its update, by way of `learn`."""
    agent.learn(1, reset_num_timesteps=False)


def test_options_can_be_changed_on_the_way_back(saved):
    again = PPO.load(saved, make(), learning_rate=1e-5, slots=3)
    assert (again.config.learning_rate, again.config.slots, again.config.batch_size) == (1e-5, 3, 8)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_transformers_loads_the_folder(text_task, text_lm, tokenizer, tmp_path, kind):
    agent = PPO(TextGenerationEnv(**text_task(model=text_lm(kind), reference=None)), **SMALL).learn(60)
    path = agent.save(tmp_path / "agent")
    model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(model.eval()(input_ids=ids).logits, agent.task.model(input_ids=ids).logits)
    assert AutoTokenizer.from_pretrained(path)("a good film")["input_ids"] == tokenizer("a good film")["input_ids"]


def test_nothing_in_the_folder_is_pickled(lm_env_of, tmp_path):
    path = PPO(lm_env_of(), **SMALL).learn(20).save(tmp_path / "agent")
    files = [p for p in path.rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {".safetensors", ".json"}
    assert not any(p.read_bytes().startswith((b"PK", b"\x80")) for p in files)
    assert not [p for p in tmp_path.iterdir() if p != path], "nothing is left beside it"


# -- damage ------------------------------------------------------------------------------------------------
FILES = ["agent/policy.safetensors", "agent/optimizer.safetensors", "agent/state.json", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove"])
def test_damage_is_noticed(saved, name, damage):
    file = saved / name
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    file.unlink()
    if damage != "remove":
        file.write_bytes(content[: {"truncate": len(content) // 2, "empty": 0}.get(damage)])
    env = make()
    before = env.task.model.table.detach().clone()
    with pytest.raises(CheckpointCorruptError, match=None if name == "manifest.json" else file.name):
        PPO.load(saved, env)
    assert torch.equal(env.task.model.table, before)


def test_damaged_weights_of_a_transformers_model_are_noticed(lm_env_of, tmp_path):
    path = PPO(lm_env_of(), **SMALL).save(tmp_path / "agent")
    file = path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointCorruptError, match=r"model\.safetensors"):
        PPO.load(path, lm_env_of())


def test_no_such_folder(tmp_path):
    with pytest.raises(CheckpointCorruptError, match="nothing that this package saved"):
        PPO.load(tmp_path / "nothing", make())


def test_a_folder_of_something_else_is_no_agent(tmp_path):
    write_folder(tmp_path / "other", lambda folder: (folder / "notes.txt").write_text("a reward model, say") and None)
    with pytest.raises(CheckpointCorruptError, match="holds no agent"):
        PPO.load(tmp_path / "other", make())


# -- code in the folder ----------------------------------------------------------------------------------------
class Payload:
    """Unpickled, it leaves a file behind."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


PLANTED = ["pytorch_model.bin", "adapter_model.bin", "training_args.bin", "agent/policy.pt", "agent/optimizer.pt"]


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_planted_pickles_are_not_loaded(lm_env_of, tmp_path, name, form):
    path = PPO(lm_env_of(), **SMALL).save(tmp_path / "agent")
    target = tmp_path / "it-ran"
    content = io.BytesIO()
    if form == "torch":
        torch.save({"weight": Payload(target)}, content)
    else:
        pickle.dump(Payload(target), content)
    (path / name).write_bytes(content.getvalue())
    PPO.load(path, lm_env_of())
    assert not target.exists()
    pickle.loads(pickle.dumps(Payload(target)))  # noqa: S301
    assert target.exists(), "the payload works"


@pytest.mark.parametrize("name", ["adapter_config.json", "model.safetensors.index.json", "agent/more.safetensors"])
def test_files_that_transformers_would_read_are_not_read_if_they_were_added(lm_env_of, tmp_path, name):
    agent = PPO(lm_env_of(), **SMALL)
    path = agent.save(tmp_path / "agent")
    (path / name).write_text('{"peft_type": "LORA", "target_modules": ["c_attn"], "weight_map": {}}')
    assert_same(agent, PPO.load(path, lm_env_of()))


def test_a_note_can_be_added(saved):
    (saved / "README.md").write_text("the good one")
    PPO.load(saved, make())


# -- the wrong checkpoint ----------------------------------------------------------------------------------------
def test_another_class(saved):
    with pytest.raises(CheckpointMismatchError, match="class PPO, not PPOPenalty"):
        PPOPenalty.load(saved, make())


def test_another_vocabulary(saved):
    with pytest.raises(CheckpointMismatchError, match=r"vocabulary differs: 4.* 6"):
        PPO.load(saved, make(mdp_seed=0))


def test_another_model_and_nothing_has_changed(lm_env_of, make_lm, tmp_path):
    path = PPO(lm_env_of(), **SMALL).save(tmp_path / "agent")
    fewer, smaller, other = make_lm("gpt2", n_layer=1), make_lm("gpt2", n_embd=16), make_lm("llama")
    for model, reason in (
        (fewer, "n_layer differs"),
        (smaller, "n_embd differs"),
        (other, "class differs: GPT2LMHeadModel"),
    ):
        env = lm_env_of(model=model)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with pytest.raises(CheckpointMismatchError, match=reason):
            PPO.load(path, env)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_another_kl_controller_and_nothing_has_changed(saved):
    env = make(beta=AdaptiveKL())
    before = env.task.model.table.detach().clone()
    with pytest.raises(CheckpointMismatchError, match="KL controller"):
        PPO.load(saved, env)
    assert torch.equal(env.task.model.table, before)


def test_other_frozen_weights(lm_env_of, make_lm, tmp_path):
    path = PPO(lm_env_of(), **SMALL).learn(20).save(tmp_path / "agent")
    model = make_lm("gpt2")
    model.transformer.wpe.requires_grad_(False)
    with pytest.raises(CheckpointMismatchError, match="trainable"):
        PPO.load(path, lm_env_of(model=model))


# -- writing -----------------------------------------------------------------------------------------------------
def test_saving_again_replaces(tmp_path):
    agent = PPO(make(), **SMALL)
    agent.save(tmp_path / "agent")
    agent.learn(40).save(tmp_path / "agent")
    assert_same(agent, PPO.load(tmp_path / "agent", make()))
    assert [p.name for p in tmp_path.iterdir()] == ["agent"]


def test_a_place_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointWriteError, match="cannot write"):
        PPO(make(), **SMALL).save(tmp_path / "file" / "agent")


def test_a_full_disk_leaves_the_older_checkpoint(lm_env_of, tmp_path):
    """A file-size limit stands in for it: the weights do not fit."""
    agent = PPO(lm_env_of(), **SMALL)
    agent.save(tmp_path / "agent")
    old = PPO.load(tmp_path / "agent", lm_env_of())
    agent.learn(20)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(CheckpointWriteError, match="what was there before is untouched"):
            agent.save(tmp_path / "agent")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_same(old, PPO.load(tmp_path / "agent", lm_env_of()))
    assert [p.name for p in tmp_path.iterdir()] == ["agent"], "no half-written folder is left"


def test_a_folder_of_other_origin_is_not_replaced(tmp_path):
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointWriteError, match="was not saved by this package"):
        PPO(make(), **SMALL).save(tmp_path / "agent")
    assert (tmp_path / "agent" / "thesis.tex").read_text() == "years of work"


def test_files_are_not_replaced_and_empty_folders_are(tmp_path):
    (tmp_path / "file").write_text("years of work")
    with pytest.raises(CheckpointWriteError, match="was not saved by this package"):
        PPO(make(), **SMALL).save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    verify_folder(PPO(make(), **SMALL).save(tmp_path / "empty"))


# -- killed; see tests/lm_env/test_storage.py for every point of a save ----------------------------------------------
def older_copy(saved: Path) -> Path:
    """Where a killed save leaves the folder that it replaces."""
    saved.with_name(".agent.lm_env").mkdir()
    (saved.with_name(".agent.lm_env") / "lock").touch()
    return saved.with_name(".agent.lm_env") / "old"


def test_killed_between_the_two_renames(saved):
    """The old folder has moved aside, the new one is not there yet: the loader takes the old one and says so."""
    agent = PPO.load(saved, make())
    os.rename(saved, older_copy(saved))
    with pytest.warns(UserWarning, match=r"taking .*\.agent\.lm_env/old"):
        assert_same(agent, PPO.load(saved, make()))
    agent.learn(20).save(saved)  # and the next save puts all in order
    assert_same(agent, PPO.load(saved, make()))
    assert [p.name for p in saved.parent.iterdir()] == ["agent"]


def test_a_damaged_folder_gives_way_to_the_one_before_it(saved):
    older = PPO.load(saved, make())
    shutil.copytree(saved, older_copy(saved))
    (saved / "agent" / "policy.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"policy\.safetensors is damaged.*taking .*old"):
        assert_same(older, PPO.load(saved, make()))


def test_the_error_names_the_newest(saved):
    older = older_copy(saved)
    shutil.copytree(saved, older)
    for folder in (saved, older):
        (folder / "agent" / "state.json").unlink()
    with pytest.raises(CheckpointCorruptError, match=r"agent/agent/state\.json is missing"):
        PPO.load(saved, make())
