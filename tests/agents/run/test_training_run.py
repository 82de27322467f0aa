"""Runs that are killed, stopped by a signal, or damaged on the disk: resumed, they end as if nothing had happened."""

from __future__ import annotations

import copy
import csv
import os
import random
import signal
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from saved_folders import flip
from stable_baselines3.common.callbacks import BaseCallback, EveryNTimesteps

from agents import GRPO, PPO, Checkpointing, PPOPtx, Reinforce
from agents.base.agent import BatchedAgent
from lm_env.envs.env import TextGenerationEnv
from lm_env.errors import (
    CheckpointCorruptError,
    CheckpointMismatchError,
    CheckpointWriteError,
    ConfigurationError,
    RunLockedError,
    TrainingInterrupted,
)
from lm_env.objective.kl import AdaptiveKL
from lm_env.storage import checkpoints_in
from lm_env.tasks.token_mdp import make

SMALL = {"rollout_episodes": 8, "slots": 4, "learning_rate": 1e-2}
ENDS = list(range(0, 61, 5))
TOTAL = 160


class Crash(Exception):
    """Stands for a process that ends in the middle of a run."""


class CrashAt(BaseCallback):
    """Ends the run in its n-th rollout, after the update and before its checkpoint."""

    def __init__(self, rollout: int, end: Callable[[], None] | None = None) -> None:
        super().__init__()
        self.rollout = rollout
        self.end = end

    def _on_step(self) -> bool:
        if self.model.num_rollouts == self.rollout:
            if self.end is None:
                raise Crash
            self.end()
        return True


def everything(agent: BatchedAgent) -> dict[str, object]:
    """All that a run goes on from, as bytes and JSON."""
    state = agent.state()
    tensors = {**agent.policy.state_dict(), **state.updater}
    return {**{k: v.detach().cpu().numpy().tobytes() for k, v in tensors.items()}, "settings": state.settings}


def log_of(folder: Path) -> list[dict[str, str]]:
    """The rows of progress.csv, without how long things took."""
    with (folder / "progress.csv").open(newline="") as file:
        return [
            {k: v for k, v in row.items() if not k.startswith("time/") or "total" in k} for row in csv.DictReader(file)
        ]


def run(agent: BatchedAgent, folder: Path, callback=None, total: int = TOTAL, **options) -> BatchedAgent:
    try:
        return agent.learn(total, callback, checkpoint=Checkpointing(folder, every=1, keep=2), **options)
    finally:
        agent.logger.close()


@pytest.fixture
def makers(id_task, make_lm):
    """name -> (seed of the model) -> an agent on fresh, equal models."""

    def env(model=None, **changes):
        return TextGenerationEnv(
            **id_task("gpt2", model=model or make_lm("gpt2"), eos_token_id=ENDS, **{"beta": 0.3, **changes})
        )

    def lora():
        peft = pytest.importorskip("peft")
        torch.manual_seed(0)
        config = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["c_attn"], fan_in_fan_out=True)
        return env(peft.get_peft_model(make_lm("gpt2"), config), reference=None)

    noisy = {"resid_pdrop": 0.2, "attn_pdrop": 0.2, "embd_pdrop": 0.2}
    adaptive = lambda: AdaptiveKL(0.3, target=1.0, horizon=200)  # noqa: E731
    return {
        "ppo, adaptive KL, average": lambda **o: PPO(
            env(beta=adaptive()), batch_size=4, n_epochs=2, ema_decay=0.9, warmup_rollouts=3, **SMALL, **o
        ),
        "ppo, dropout": lambda **o: PPO(env(make_lm("gpt2", **noisy).train()), batch_size=4, n_epochs=1, **SMALL, **o),
        "ppo, LoRA": lambda **o: PPO(lora(), batch_size=4, n_epochs=1, **SMALL, **o),
        "ppo, score critic": lambda **o: PPO(env(), critic="score", batch_size=4, n_epochs=1, **SMALL, **o),
        "grpo": lambda **o: GRPO(env(), group_size=4, batch_size=8, **SMALL, **o),
        "reinforce": lambda **o: Reinforce(env(), **SMALL, **o),
        "ptx": lambda **o: PPOPtx(env(), [[1, 2, 3], [4, 5, 6, 7]], batch_size=4, n_epochs=1, **SMALL, **o),
    }


NAMES = [
    "ppo, adaptive KL, average",
    "ppo, dropout",
    "ppo, LoRA",
    "ppo, score critic",
    "grpo",
    "reinforce",
    "ptx",
]


# -- the same again ----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_equals_one_that_was_never_stopped(makers, tmp_path, name):
    """Weights, optimizer, counters, generators and the log, after two crashes."""
    whole = run(makers[name](log_dir=tmp_path / "whole"), tmp_path / "a")
    assert whole.num_rollouts > 4
    for crash in (2, 4):
        with pytest.raises(Crash):
            run(makers[name](log_dir=tmp_path / "log"), tmp_path / "b", CrashAt(crash), resume=True)
    resumed = run(makers[name](log_dir=tmp_path / "log"), tmp_path / "b", resume=True)
    assert everything(resumed) == everything(whole)
    assert log_of(tmp_path / "log") == log_of(tmp_path / "whole")
    assert not list((tmp_path / "log").glob("progress.1.csv"))


def test_global_generators_go_on_too(tmp_path):
    """A reward that rolls dice of its own."""

    def dice(prompts, responses):
        return [random.random() + np.random.rand() + torch.rand(()).item() for _ in responses]

    def agent():
        random.seed(1), np.random.seed(2), torch.manual_seed(3)
        return PPO(make(reward=dice), **SMALL)

    whole = run(agent(), tmp_path / "a")
    with pytest.raises(Crash):
        run(agent(), tmp_path / "b", CrashAt(3))
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    assert everything(run(agent(), tmp_path / "b", resume=True)) == everything(whole)


def test_a_reward_with_state_goes_on_too(tmp_path):
    class Counting:
        """Pays what it has been asked before."""

        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, prompts, responses):
            self.calls += 1
            return [self.calls + len(r) for r in responses]

        def state_dict(self):
            return {"calls": self.calls}

        def load_state_dict(self, state):
            self.calls = state["calls"]

    whole = run(PPO(make(reward=Counting()), **SMALL), tmp_path / "a")
    with pytest.raises(Crash):
        run(PPO(make(reward=Counting()), **SMALL), tmp_path / "b", CrashAt(3))
    assert everything(run(PPO(make(reward=Counting()), **SMALL), tmp_path / "b", resume=True)) == everything(whole)


def test_callbacks_go_on_where_they_were(tmp_path):
    class Notes(BaseCallback):
        """Keeps the timesteps at which it was called."""

        def __init__(self) -> None:
            super().__init__()
            self.seen = []

        def _on_step(self) -> bool:
            self.seen.append(self.num_timesteps)
            return True

        def state_dict(self):
            return {"seen": self.seen}

        def load_state_dict(self, state):
            self.seen = state["seen"]

    whole, part, rest = Notes(), Notes(), Notes()
    run(PPO(make(), **SMALL), tmp_path / "a", EveryNTimesteps(40, whole))
    with pytest.raises(Crash):
        run(PPO(make(), **SMALL), tmp_path / "b", [EveryNTimesteps(40, part), CrashAt(4)])
    with pytest.raises(Crash):
        run(PPO(make(), **SMALL), tmp_path / "b", [EveryNTimesteps(40, rest), CrashAt(6)], resume=True)
    run(PPO(make(), **SMALL), tmp_path / "b", [EveryNTimesteps(40, rest), CrashAt(99)], resume=True)
    assert rest.seen == whole.seen and len(whole.seen) > 2


def test_other_callbacks_begin_anew_and_the_log_says_so(tmp_path, caplog):
    with pytest.raises(Crash):
        run(PPO(make(), **SMALL), tmp_path / "a", CrashAt(3))
    run(PPO(make(), **SMALL), tmp_path / "a", resume=True)
    assert "the callbacks are not those" in caplog.text


# -- how long a run is ---------------------------------------------------------------------------------
def test_the_total_is_that_of_the_whole_run(tmp_path):
    done = run(PPO(make(), **SMALL), tmp_path / "a")
    again = run(PPO(make(), **SMALL), tmp_path / "a", resume=True)
    assert (again.num_timesteps, again.num_rollouts) == (done.num_timesteps, done.num_rollouts)
    longer = run(PPO(make(), **SMALL), tmp_path / "a", total=2 * TOTAL, resume=True)
    assert 2 * TOTAL <= longer.num_timesteps < 2 * TOTAL + 8 * 3


def test_the_start_of_a_run_that_goes_on_counting_is_kept(tmp_path):
    def begun():
        return PPO(make(), **SMALL).learn(60)

    whole = run(begun(), tmp_path / "a", reset_num_timesteps=False)
    with pytest.raises(Crash):
        run(begun(), tmp_path / "b", CrashAt(6), reset_num_timesteps=False)
    resumed = run(PPO(make(), **SMALL), tmp_path / "b", resume=True)
    assert resumed.num_timesteps == whole.num_timesteps >= 60 + TOTAL
    assert everything(resumed) == everything(whole)


def test_every_and_keep(tmp_path):
    seen = []

    class Look(BaseCallback):
        def _on_rollout_start(self) -> None:
            seen.append((self.model.num_timesteps, [int(p.name) for p in checkpoints_in(tmp_path / "a")]))

        def _on_step(self) -> bool:
            return True

    agent = PPO(make(), **SMALL)
    agent.learn(300, Look(), checkpoint=Checkpointing(tmp_path / "a", every=50, keep=3))
    last = 0
    for step, there in seen:
        assert len(there) <= 3 and step - max(there, default=0) < 50, "at most one interval is lost"
        if there and there[-1] != last:
            assert there[-1] - last >= 50
            last = there[-1]
    kept = checkpoints_in(tmp_path / "a")
    assert len(kept) == 3 and int(kept[-1].name) == agent.num_timesteps, "one is made at the end"
    PPO.load(kept[0], make())


# -- signals -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_has_an_exit_code_of_its_own(tmp_path, number):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    whole = run(PPO(make(), **SMALL), tmp_path / "a")
    stop = CrashAt(3, lambda: os.kill(os.getpid(), number))
    agent = PPO(make(), **SMALL)
    with pytest.raises(TrainingInterrupted, match=f"{number.name} ended the training.*resume=True") as ended:
        agent.learn(TOTAL, stop, checkpoint=Checkpointing(tmp_path / "b", every=10**6))
    assert ended.value.code == 75
    assert agent.num_rollouts == 3
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    assert [int(p.name) for p in checkpoints_in(tmp_path / "b")] == [agent.num_timesteps]
    assert everything(run(PPO(make(), **SMALL), tmp_path / "b", resume=True)) == everything(whole)


def test_a_second_ctrl_c_leaves_at_once(tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    agent = PPO(make(), **SMALL)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(TOTAL, CrashAt(2, twice), checkpoint=Checkpointing(tmp_path / "a", every=10**6))
    assert agent.num_rollouts == 2 and not checkpoints_in(tmp_path / "a")


def test_without_checkpoints_ctrl_c_is_what_it_always_was():
    agent = PPO(make(), **SMALL)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(TOTAL, CrashAt(2, lambda: os.kill(os.getpid(), signal.SIGINT)))


def test_another_thread_can_train(tmp_path):
    errors = []

    def train():
        try:
            run(PPO(make(), **SMALL), tmp_path / "a")
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert not errors and checkpoints_in(tmp_path / "a")


# -- damage ------------------------------------------------------------------------------------------
def damage_bit(folder: Path) -> None:
    flip(folder / "agent" / "policy.safetensors")


def damage_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize("damage", [damage_bit, damage_manifest])
def test_it_walks_back_to_the_newest_that_is_whole_and_says_which_and_why(tmp_path, damage):
    whole = run(PPO(make(), **SMALL), tmp_path / "a")
    with pytest.raises(Crash):
        run(PPO(make(), **SMALL), tmp_path / "b", CrashAt(5))
    older, newest = checkpoints_in(tmp_path / "b")
    damage(newest)
    reason = r"policy\.safetensors is damaged" if damage is damage_bit else "no manifest"
    with pytest.warns(UserWarning, match=rf"passed over the checkpoint {newest.name}.*{reason}.*going on from {older}"):
        resumed = run(PPO(make(), **SMALL), tmp_path / "b", resume=True)
    assert everything(resumed) == everything(whole)
    assert newest.with_name(f"{newest.name}.damaged").exists(), "it is put aside and not deleted"


def test_with_nothing_there_it_begins_and_says_so(tmp_path, caplog):
    run(PPO(make(), **SMALL), tmp_path / "a", resume=True)
    assert "starting from the beginning" in caplog.text
    (newest,) = checkpoints_in(tmp_path / "a")[-1:]
    for folder in checkpoints_in(tmp_path / "a"):
        damage_bit(folder)
    with pytest.warns(UserWarning, match=r"passed over.*passed over.*starting from the beginning"):
        agent = run(PPO(make(), **SMALL), tmp_path / "a", resume=True)
    assert int(newest.name) == agent.num_timesteps and newest.exists()


def test_a_saved_agent_is_no_run(tmp_path):
    agent = PPO(make(), **SMALL).learn(20)
    agent.save(tmp_path / "a" / "000000050")
    with pytest.warns(UserWarning, match="not the state of a run"):
        run(PPO(make(), **SMALL), tmp_path / "a", total=20, resume=True)


# -- another run's folder, and places that cannot be used ------------------------------------------------
def test_a_folder_with_another_runs_checkpoints_is_refused(tmp_path):
    run(PPO(make(), **SMALL), tmp_path / "a")
    agent = PPO(make(), **SMALL)
    with pytest.raises(ConfigurationError, match=r"pass resume=True.*or choose another folder"):
        run(agent, tmp_path / "a")
    assert agent.num_rollouts == 0


def test_what_a_run_goes_on_with_must_be_what_it_began_with(tmp_path):
    run(PPO(make(), **SMALL), tmp_path / "a")
    for agent, reason in (
        (PPO(make(), **{**SMALL, "learning_rate": 0.5}), "learning_rate differs: .*0.01, 0.5 is given"),
        (PPO(make(), seed=1, **SMALL), "seed differs"),
        (PPO(make(reward=lambda prompts, responses: [1.0 for _ in responses]), **SMALL), "reward differs"),
        (PPO(make(beta=AdaptiveKL()), **SMALL), "KL controller"),
        (PPO(make(beta=5.0), **SMALL), r"beta differs: .* 5\.0 is given"),
        (PPO(make(), critic="none", **SMALL), "value_head"),
        (Reinforce(make(), **SMALL), "class PPO, not Reinforce"),
    ):
        before = everything(agent)
        with pytest.raises(CheckpointMismatchError, match=reason):
            run(agent, tmp_path / "a", total=2 * TOTAL, resume=True)
        assert everything(agent) == before
    run(PPO(make(), micro_batch_tokens=999, **SMALL), tmp_path / "a", total=2 * TOTAL, resume=True)


@pytest.mark.parametrize("beta", [0.1, AdaptiveKL(0.1, horizon=10)], ids=["fixed", "adaptive"])
def test_a_beta_that_has_changed_in_the_run_is_the_one_that_it_began_with(tmp_path, beta):
    """Given anew as it was at the beginning, or with the agent that has been trained, the run goes on."""

    class Halve(BaseCallback):
        def _on_step(self) -> bool:
            self.model.task.kl.beta /= 2
            return True

    agent = PPO(make(beta=copy.deepcopy(beta)), **SMALL)
    run(agent, tmp_path, callback=Halve())
    assert agent.task.kl.beta != 0.1
    run(PPO(agent.env, **SMALL), tmp_path, total=2 * TOTAL, resume=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the saved beta replaces the one of the beginning
        run(PPO(make(beta=copy.deepcopy(beta)), **SMALL), tmp_path, total=3 * TOTAL, resume=True)


def test_a_run_goes_on_with_an_agent_that_was_loaded_from_an_earlier_checkpoint(tmp_path):
    """Its beta is that of the earlier one, and is restored like everything else."""
    beta = AdaptiveKL(0.1, horizon=10)
    whole = run(PPO(make(beta=copy.deepcopy(beta)), **SMALL), tmp_path)
    first = checkpoints_in(tmp_path)[0]
    loaded = PPO.load(first, make(beta=copy.deepcopy(beta)))
    assert loaded.task.kl.beta not in (0.1, whole.task.kl.beta)
    run(loaded, tmp_path, resume=True)
    assert loaded.task.kl.beta == whole.task.kl.beta


def test_two_runs_cannot_have_one_folder(tmp_path):
    def second():
        with pytest.raises(RunLockedError):
            run(PPO(make(), **SMALL), tmp_path / "a", resume=True)
        raise Crash

    with pytest.raises(Crash):
        run(PPO(make(), **SMALL), tmp_path / "a", CrashAt(2, second))


def test_places_that_cannot_be_written_are_found_before_the_first_rollout(tmp_path):
    (tmp_path / "file").write_text("")
    agent = PPO(make(), **SMALL)
    for folder in (tmp_path / "file", tmp_path / "file" / "a"):
        with pytest.raises(CheckpointWriteError, match="cannot write"):
            run(agent, folder)
    assert agent.num_rollouts == 0


@pytest.mark.parametrize("arguments", [{"every": 0}, {"every": 1.5}, {"keep": 0}, {"keep": True}])
def test_impossible_settings(arguments):
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        Checkpointing("a", **arguments)


def test_resume_needs_a_folder():
    with pytest.raises(ConfigurationError, match="needs checkpoint="):
        PPO(make(), **SMALL).learn(10, resume=True)
    with pytest.raises(ConfigurationError, match="must be a Checkpointing"):
        PPO(make(), **SMALL).learn(10, checkpoint="runs/a")


# -- the log -----------------------------------------------------------------------------------------
def test_tensorboard_shows_no_step_twice(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = tmp_path / "log"
    whole = run(PPO(make(), log_dir=tmp_path / "whole", **SMALL), tmp_path / "a")
    with pytest.raises(Crash):
        agent = PPO(make(), log_dir=log, **SMALL)
        agent.learn(TOTAL, CrashAt(5), checkpoint=Checkpointing(tmp_path / "b", every=60))
    agent.logger.close()
    run(PPO(make(), log_dir=log, **SMALL), tmp_path / "b", resume=True)

    def scores(folder):
        events = accumulator.EventAccumulator(str(folder))
        events.Reload()
        return [(e.step, e.value) for e in events.Scalars("rollout/score")]

    assert scores(log) == scores(tmp_path / "whole") and len(scores(log)) == whole.num_rollouts


def test_half_a_line_and_rows_after_the_checkpoint_are_taken_back(tmp_path):
    whole = run(PPO(make(), log_dir=tmp_path / "whole", **SMALL), tmp_path / "a")
    agent = PPO(make(), log_dir=tmp_path / "log", **SMALL)
    with pytest.raises(Crash):
        agent.learn(TOTAL, CrashAt(5), checkpoint=Checkpointing(tmp_path / "b", every=60))
    agent.logger.close()
    with (tmp_path / "log" / "progress.csv").open("a") as file:
        file.write("1.0,0.2")
    run(PPO(make(), log_dir=tmp_path / "log", **SMALL), tmp_path / "b", resume=True)
    assert log_of(tmp_path / "log") == log_of(tmp_path / "whole")
    assert len(log_of(tmp_path / "log")) == whole.num_rollouts


def test_damaged_generators_are_an_error(tmp_path):
    from agents.learning.randomness import global_random_state, set_global_random_state

    with pytest.raises(CheckpointCorruptError, match="random state is damaged"):
        set_global_random_state({**global_random_state(), "torch": [1, 2, 3]})
