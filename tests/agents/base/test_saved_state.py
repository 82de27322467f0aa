"""What is saved of an agent: edits of it, other environments, and weights that are not finite."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved_folders import edit_json, sign

from agents import PPO, RLOO
from lm_env.envs.env import TextGenerationEnv
from lm_env.errors import CheckpointMismatchError, LMEnvError, NonFiniteError
from lm_env.tasks.token_mdp import make

STATE = "agent/state.json"
SMALL = {"rollout_episodes": 16, "slots": 8, "learning_rate": 1e-2}


def rewritten(saved: Path, target: Path, edit) -> Path:
    """A copy of a saved folder, its state edited, with a manifest that fits: what an attacker could hand over."""
    shutil.copytree(saved, target)
    edit_json(target, STATE, lambda state: edit(state) or state)
    return target


def leaves(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path to every value of a JSON document, containers included; of long lists the first entry alone."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part, (*path, key))
    elif isinstance(value, list) and value:
        yield from leaves(value[0], (*path, 0))


def put(state: dict, path: tuple, value: Any) -> None:
    for key in path[:-1]:
        state = state[key]
    if value is KeyError:
        del state[path[-1]]
    else:
        state[path[-1]] = value


@pytest.mark.parametrize("cls", [PPO, RLOO])
def test_no_edit_of_the_state_ends_in_a_foreign_error(cls, tmp_path, recwarn):
    """Each value is replaced by rubbish, one at a time: either it is refused and nothing changes, or it loads."""
    saved = cls(make(), ema_decay=0.9, **SMALL).learn(40).save(tmp_path / "agent")
    state = json.loads((saved / STATE).read_text())
    edited = shutil.copytree(saved, tmp_path / "edited")
    env = make()
    refused = 0
    for path in leaves(state):
        for number, value in enumerate((None, "x", -1, 1e308, [], {}, [[]], True, KeyError)):
            rubbish = copy.deepcopy(state)
            put(rubbish, path, value)
            (edited / STATE).write_text(json.dumps(rubbish))
            sign(edited)
            before = env.task.model.table.detach().clone()
            try:
                cls.load(edited, env)
            except LMEnvError:
                refused += 1
                assert torch.equal(env.task.model.table, before), (path, number)
            env.task.model.table.data.copy_(before)
    assert refused > 100


@pytest.mark.parametrize("option", ["log_dir", "verbose", "critic", "env", "task"])
def test_a_saved_setting_cannot_name_what_the_config_does_not_hold(tmp_path, option):
    saved = PPO(make(), **SMALL).save(tmp_path / "agent")
    place = tmp_path / "elsewhere"
    edited = rewritten(saved, tmp_path / "edited", lambda s: s["config"].update({option: str(place)}))
    with pytest.raises(CheckpointMismatchError, match=f"has an option '{option}'"):
        PPO.load(edited, make())
    assert not place.exists()


def test_a_later_format_is_refused(tmp_path):
    saved = PPO(make(), **SMALL).save(tmp_path / "agent")
    edited = rewritten(saved, tmp_path / "edited", lambda s: s.update(format=99))
    with pytest.raises(CheckpointMismatchError, match=r"format 99.*update lm_env"):
        PPO.load(edited, make())


# -- another environment -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "named"), [({"n_head": 2}, "n_head"), ({"activation_function": "relu"}, "activation_function")]
)
def test_weights_of_the_same_shapes_under_another_architecture_are_refused(id_task, make_lm, tmp_path, change, named):
    saved = PPO(TextGenerationEnv(**id_task()), **SMALL).save(tmp_path / "agent")
    other = make_lm("gpt2", seed=5, **change)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(CheckpointMismatchError, match=named):
        PPO.load(saved, TextGenerationEnv(**id_task(model=other)))
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())


def other_reward(prompts, responses):
    return [0.0 for _ in responses]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"reward": other_reward}, "reward differs"),
        ({"temperature": 0.5}, "temperature differs"),
        ({"max_new_tokens": 3}, "max_new_tokens differs"),
        ({"prompts": [[4, 5]]}, "prompts differs"),
    ],
)
def test_another_task_is_said(id_task, tmp_path, change, named):
    saved = PPO(TextGenerationEnv(**id_task()), **SMALL).save(tmp_path / "agent")
    with pytest.warns(UserWarning, match=named):
        PPO.load(saved, TextGenerationEnv(**id_task(**change)))


def test_another_reference_is_said(id_task, make_lm, tmp_path):
    saved = PPO(TextGenerationEnv(**id_task()), **SMALL).save(tmp_path / "agent")
    with pytest.warns(UserWarning, match="reference differs"):
        PPO.load(saved, TextGenerationEnv(**id_task(reference=make_lm("gpt2", seed=7))))


# -- what is not finite ----------------------------------------------------------------------------------
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, bad):
    agent = PPO(make(), **SMALL)
    saved = agent.save(tmp_path / "agent")
    with torch.no_grad():
        agent.task.model.table[0, 0] = bad
    with pytest.raises(NonFiniteError, match=r"lm\.table holds NaN or infinite weights, so nothing was saved"):
        agent.save(saved)
    assert torch.isfinite(PPO.load(saved, make()).task.model.table).all()


def test_a_model_of_nan_weights_is_named_when_it_is_to_write():
    agent = PPO(make(), **SMALL)
    with torch.no_grad():
        agent.task.model.table.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match=r"gives NaN logits.*: load a checkpoint from before"):
        agent.learn(20)


def test_a_loss_that_is_infinite_under_finite_gradients_is_refused():
    """An infinite constant has no gradient, so the norm alone would not tell."""

    class Broken(PPO):
        def loss(self, evaluation, batch, targets):
            return super().loss(evaluation, batch, targets) + float("inf")

    agent = Broken(make(), **SMALL)
    before = agent.task.model.table.detach().clone()
    with pytest.raises(NonFiniteError, match=r"loss is inf.*the weights are unchanged.*lower learning_rate"):
        agent.learn(20)
    assert torch.equal(agent.task.model.table, before)


def test_after_a_failed_step_the_last_checkpoint_goes_on_at_a_lower_rate(tmp_path):
    """The remedy that the error names."""
    agent = PPO(make(), **SMALL).learn(20)
    saved = agent.save(tmp_path / "agent")
    tensors = load_file(saved / "agent" / "policy.safetensors")
    again = PPO.load(saved, make(), learning_rate=1e-4)
    assert torch.equal(again.task.model.table, tensors["lm.table"])
    again.learn(1, reset_num_timesteps=False)
    assert 0 < again.updater.learning_rate <= 1e-4


def test_what_is_read_back_is_what_was_written(tmp_path):
    """The tensors of the state survive the way through a file bit for bit."""
    state = PPO(make(), ema_decay=0.5, **SMALL).learn(40).state()
    save_file(state.updater, tmp_path / "updater.safetensors")
    again = load_file(tmp_path / "updater.safetensors")
    assert again.keys() == state.updater.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.updater.items())
