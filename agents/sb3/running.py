"""The training of stable-baselines3's agents with checkpoints: stopped by a signal or killed, it goes on from the last.

What a checkpoint of theirs lacks is the texts that were being written, and the state of the generators: a run that
was stopped goes on with new texts.  It is not, as with the batched agents, the same run to the last bit.
"""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from agents.run.records import make_pages
from agents.run.training_log import begin_log, rewind_log
from agents.sb3.files import load, save
from lm_env.errors import TrainingInterrupted
from lm_env.storage import CheckpointFolder, Checkpointing, StopSignals

__all__ = ["learn"]


def learn(
    agent: Any,
    total_timesteps: int,
    callback: BaseCallback | list[BaseCallback] | None = None,
    *,
    progress_bar: bool = False,
    checkpoint: Checkpointing,
    resume: bool = False,
) -> Any:
    """`agent.learn` until `total_timesteps` in all, with checkpoints that `agents.sb3.load` reads too.

    Args:
        agent: made as for the run.

    Returns:
        the trained agent; where the run was gone on with, another object than the one given.

    Raises:
        ConfigurationError: the folder holds checkpoints of an earlier run, and `resume` is not set.
        CheckpointMismatchError: they are of another algorithm, vocabulary or model.
        TrainingInterrupted: SIGINT or SIGTERM has come, and all is saved.
    """
    promise = "this rollout is left, and the run is saved as of the last update"
    with CheckpointFolder(checkpoint) as folder, StopSignals(promise) as stop:
        folder.begin(agent.num_timesteps)
        if resume:
            agent = _restored(agent, folder)
        else:
            folder.check_unused(agent.num_timesteps)
        if agent.num_timesteps == 0:
            begin_log(agent.logger)
        given = callback if isinstance(callback, list) else [] if callback is None else [callback]
        saving = _Saving(folder, stop, total_timesteps)
        left = total_timesteps - agent.num_timesteps
        if left > 0:
            callbacks = CallbackList([*given, saving])
            try:
                agent.learn(left, callback=callbacks, progress_bar=progress_bar, reset_num_timesteps=False)
            finally:
                make_pages(agent.logger)
        if agent.num_timesteps != folder.last:
            _save(agent, folder, agent.num_timesteps)
    return agent


class _Saving(BaseCallback):
    """Makes checkpoints between an update and the next rollout, and ends the training after a signal."""

    def __init__(self, folder: CheckpointFolder, stop: StopSignals, end: int) -> None:
        super().__init__()
        self.folder = folder
        self.stop = stop
        self.end = end

    def _on_rollout_start(self) -> None:
        self.learned = self.model.num_timesteps
        if self.folder.is_due(self.learned):
            _save(self.model, self.folder, self.learned)
        self._leave_if_stopped()

    def _on_step(self) -> bool:
        self._leave_if_stopped()
        return True

    def _leave_if_stopped(self) -> None:
        """Leave a rollout at once: what was learned before it is all that there is to save."""
        signal = self.stop.received
        if signal is None:
            return
        if self.folder.last != self.learned or not self.folder.place(self.learned).exists():
            _save(self.model, self.folder, self.learned)
        raise TrainingInterrupted(
            f"{signal.name} ended the training at timestep {self.learned} of {self.end}; it is saved in"
            f" {self.folder.root}: go on with resume=True"
        )


def _save(agent: Any, folder: CheckpointFolder, learned: int) -> None:
    """Save the agent as one that has learned from so many tokens; those of a rollout under way do not count."""
    counted = agent.num_timesteps
    agent.num_timesteps = learned
    try:
        folder.save(learned, lambda path: save(agent, path))
    finally:
        agent.num_timesteps = counted


def _restored(agent: Any, folder: CheckpointFolder) -> Any:
    """The agent of the newest checkpoint, with this one's environment and log; this one where there is none."""
    env = agent.get_env()
    found = folder.newest(lambda path: load(type(agent), path, env, verbose=agent.verbose, device=agent.device))
    if found is None:
        return agent
    restored = found[1]
    restored.set_logger(agent.logger)
    rewind_log(restored.logger, restored.num_timesteps)
    folder.begin(restored.num_timesteps)
    return restored
