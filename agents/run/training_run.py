"""Checkpoints during `learn`, a clean stop on a signal, and resuming from the newest checkpoint.

    agent.learn(1_000_000, checkpoint=Checkpointing("runs/a", every=50_000, keep=3), resume=True)

A checkpoint is what `agent.save` writes plus the state of the run, so `load` reads it too.  A resumed run ends with the
same weights, to the last bit, as one that was never stopped (on the CPU, with the same number of threads), and with the
same log.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from agents.learning.randomness import global_random_state, set_global_random_state
from agents.run.callbacks import callback_state, restore_callbacks
from agents.run.checkpoint import Checkpoint, checkpoint_from_first
from agents.run.early_warning import EarlyWarning
from agents.run.training_log import begin_log, rewind_log
from lm_env.distributed import processes
from lm_env.errors import CheckpointCorruptError, CheckpointMismatchError, ConfigurationError, TrainingInterrupted
from lm_env.storage import CheckpointFolder, Checkpointing, StopSignals

__all__ = ["Resumable", "TrainingRun", "open_run"]


class Resumable(Protocol):
    """What an agent must provide so that its run can be resumed."""

    num_timesteps: int
    num_rollouts: int
    logger: Logger
    early_warning: EarlyWarning
    task: Any

    def write_run(self, path: Path, run: dict[str, Any]) -> object:
        """Save the agent, with the state of its run (JSON); of several processes, the first one writes."""

    def read_run(self, path: Path) -> Checkpoint:
        """The checkpoint at `path`; an error if it is of another agent, or has other options or another task."""

    def restore(self, checkpoint: Checkpoint) -> None:
        """Set the agent to the state in the checkpoint."""

    def saved_bytes(self) -> int:
        """About how large a checkpoint will be."""


class TrainingRun:
    """One call of `learn`: where it ends, whether it is to stop, and its checkpoints.

    Of several processes the first one has the folder; whether to stop or to save is decided for all of them.

    Args:
        total_timesteps: tokens, counted from `start`.
        folder: where the checkpoints go; None for no checkpoints, and in processes other than the first.
        stop: notes SIGINT and SIGTERM; None if these keep their usual effect.
    """

    def __init__(
        self,
        agent: Resumable,
        callbacks: BaseCallback,
        total_timesteps: int,
        folder: CheckpointFolder | None = None,
        stop: StopSignals | None = None,
    ) -> None:
        self._agent = agent
        self._callbacks = callbacks
        self._total_timesteps = total_timesteps
        self._folder = folder
        self._stop = stop
        self._together = processes()
        self.start = agent.num_timesteps
        self._first_kl: dict[str, Any] = agent.task.kl.state_dict()

    @property
    def end(self) -> int:
        """The count of timesteps at which the training is done and the learning rate reaches 0."""
        return self.start + self._total_timesteps

    @property
    def goes_on(self) -> bool:
        """Whether to make another rollout: the end is not reached, and no signal has come."""
        stopped = self._stop is not None and self._stop.received is not None
        return self._agent.num_timesteps < self.end and not self._together.any(stopped)

    def save_if_due(self) -> None:
        """Make a checkpoint, if it is time for one."""
        due = self._folder is not None and self._folder.is_due(self._agent.num_timesteps)
        if self._together.any(due):
            self._save()

    def resume(self) -> None:
        """Restore the newest checkpoint that can be read; if there is none, leave the agent as it is."""
        found = None if self._folder is None else self._folder.newest(self._read)
        checkpoint = checkpoint_from_first(None if found is None else found[1])
        if checkpoint is None:
            return
        run = checkpoint.settings["run"]
        self._agent.restore(checkpoint)
        self.start = run["start"]
        self._first_kl = run.get("first_kl", self._first_kl)
        self._agent.early_warning.load_state(run["early_warning"])
        restore_callbacks(self._callbacks, run["callbacks"])
        if run.get("reward") is not None:
            self._agent.task.reward.load_state_dict(run["reward"])
        rewind_log(self._agent.logger, self._agent.num_timesteps)
        set_global_random_state(run["random"])
        if self._folder is not None:
            self._folder.begin(self._agent.num_timesteps)

    def finish(self) -> None:
        """Make the last checkpoint, unless the newest one already holds the present state.

        Raises:
            TrainingInterrupted: a signal has come.
        """
        if self._stop is None:
            return
        folder = self._folder
        step = self._agent.num_timesteps
        signal = self._stop.received
        stopped = self._together.any(signal is not None)
        unsaved = folder is not None and (step != folder.last or (stopped and not folder.place(step).exists()))
        if self._together.any(unsaved):
            self._save()
        self._together.wait()  # torchrun ends the first process as soon as another one has failed
        if stopped:
            name = "a signal to another process" if signal is None else signal.name
            where = "" if folder is None else f" in {folder.root}"
            raise TrainingInterrupted(
                f"{name} ended the training at timestep {step} of {self.end}; it is saved{where}: go on with"
                " resume=True"
            )

    def _read(self, path: Path) -> Checkpoint:
        """The checkpoint at `path`, after checking that it holds the state of a run."""
        checkpoint = self._agent.read_run(path)
        run = checkpoint.settings.get("run")
        names = {"start": int, "callbacks": list, "early_warning": dict, "random": dict}
        if not isinstance(run, dict) or not all(isinstance(run.get(name), kind) for name, kind in names.items()):
            raise CheckpointCorruptError(
                f"{path} holds an agent and not the state of a run, so a run cannot go on from it: load it with `load`"
            )
        self._check_beta(run.get("first_kl"), checkpoint.settings["kl"], path)
        return checkpoint

    def _check_beta(self, first: Any, saved: Any, path: Path) -> None:
        """Refuse a beta, unless it moves by itself, that the run neither began with nor has come to."""
        given = self._first_kl
        constant = isinstance(first, dict) and first.get("kind") == given.get("kind") == "fixed"
        if constant and given not in (first, saved):
            raise CheckpointMismatchError(
                f"beta differs: the run in {path} began with {first.get('beta')}, {given.get('beta')} is given; give it"
                " the same (to train its weights with another one, load them and call learn)"
            )

    def _save(self) -> None:
        run = {
            "start": self.start,
            "first_kl": self._first_kl,
            "callbacks": callback_state(self._callbacks),
            "early_warning": self._agent.early_warning.state(),
            "random": global_random_state(),
            "reward": _reward_state(self._agent.task.reward),
        }
        if self._folder is None:
            self._agent.write_run(Path(), run)  # writes nothing: this process gives its part to the first one
        else:
            self._folder.save(self._agent.num_timesteps, lambda path: self._agent.write_run(path, run))


@contextmanager
def open_run(
    agent: Resumable,
    callbacks: BaseCallback,
    total_timesteps: int,
    checkpoint: Checkpointing | None,
    resume: bool,
) -> Iterator[TrainingRun]:
    """The context of one call of `learn`: inside, signals only set a flag; at the end the last checkpoint is made.

    Raises:
        ConfigurationError: `resume` without `checkpoint`, or the folder holds another run's checkpoints.
        CheckpointMismatchError: the newest checkpoint is of another agent, task or options.
        CheckpointWriteError: the folder cannot be written or has no room; found before the first rollout.
        RunLockedError: another run writes to the folder.
        TrainingInterrupted: SIGINT or SIGTERM has come, and all is saved.
    """
    if checkpoint is None:
        if resume:
            raise ConfigurationError("resume=True needs checkpoint=Checkpointing(folder), where the run was saved")
        begin_log(agent.logger, new=agent.num_rollouts == 0)
        yield TrainingRun(agent, callbacks, total_timesteps)
        return
    promise = "this rollout and its update are finished, then the run is saved"
    first = processes().first
    with CheckpointFolder(checkpoint) if first else nullcontext() as folder, StopSignals(promise) as stop:
        run = TrainingRun(agent, callbacks, total_timesteps, folder, stop)
        if folder is not None:
            folder.begin(agent.num_timesteps)
            if not resume:
                folder.check_unused(agent.num_timesteps)
        if resume:
            run.resume()
        if folder is not None:
            folder.check_room(agent.saved_bytes())
        begin_log(agent.logger, new=agent.num_rollouts == 0)
        yield run
        run.finish()


def _reward_state(reward: Any) -> Any:
    """The `state_dict` of a reward function, if it is JSON and there is a `load_state_dict`; else None."""
    if not (callable(getattr(reward, "state_dict", None)) and callable(getattr(reward, "load_state_dict", None))):
        return None
    state = reward.state_dict()
    try:
        json.dumps(state)
    except (TypeError, ValueError):  # such as a module's, whose weights are constant
        return None
    return state
