"""BatchedAgent: the loop of `learn` -- roll out, update, log -- that every trained agent here shares.

The interface follows stable-baselines3: `Agent(env, ...).learn(total_timesteps)`, `.predict()`, `.save()`,
`.load()`, its logger and its callbacks.  An agent's own file holds its config and its `update`.
A timestep is one generated token.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from agents.base.config import check_same_options
from agents.base.description import run_identity, run_settings
from agents.base.policy_agent import PolicyAgent
from agents.learning.critic import CriticSource
from agents.learning.options import Updating
from agents.learning.rollout import Rollout, collect
from agents.run.callbacks import CallbackLike, TrainingEnv, as_callback
from agents.run.checkpoint import Checkpoint
from agents.run.early_warning import EarlyWarning
from agents.run.progress import ProgressLine, rollout_metrics
from agents.run.records import Recorder
from agents.run.trackers import LogTo
from agents.run.training_log import make_logger
from agents.run.training_run import open_run
from lm_env.data.prompts import Prompt
from lm_env.distributed import processes
from lm_env.errors import ConfigurationError
from lm_env.generation.backend import Decoding, Sampling
from lm_env.models.inputs import shuffled_batches
from lm_env.objective.fingerprint import check_same_task
from lm_env.objective.patience import OnRewardError, patient
from lm_env.storage import Checkpointing, read_folder
from lm_env.validation import check_number

__all__ = ["BatchedAgent"]

log = logging.getLogger(__name__)


class BatchedAgent(PolicyAgent, ABC):
    """Trains the environment's own model in place.

    Args:
        env: a text environment, single or vectorized, wrapped or not, or a registered id.  Its task
            gives the model, the prompts, the reward and the KL controller.
        critic: what the values are read from: `"shared"` (the LM's own trunk), `"separate"` (a copy of
            it), a `RewardModel` (a copy of its trunk; V starts as its score, so pass the reward model that
            the environment uses), or `"none"`, the default of agents that need no values.  `ActorCritic` also takes
            `"score"`.
        decoding: how texts are sampled: in bfloat16, with a compiled step, ...; see `Decoding`.  It is not saved: pass
            it to `load` again.
        updating: how updates are computed: divided among processes, with Adam in 8 bits, ...; see `Updating`.  Like
            `decoding`, it is not saved.
        verbose: 1 prints the log as a table after each rollout.
        log_dir: a folder for progress.csv, sample texts, early warnings, a page of the run, and TensorBoard files if it
            is installed; docs/looking.md describes them.
        log_to: trackers that get the log as well: "wandb", "mlflow", or a list of such names and of writers.
        on_reward_error: what happens in a rollout when the reward function raises, hangs, or returns something that is
            no list of finite scores: `"raise"` ends the training; `"retry"` calls it up to three times, with pauses,
            and then raises; `"skip"` leaves the texts for which it fails out of the update and counts them in the log.
        reward_deadline: seconds that a call of the reward function may take; see `lm_env.PatientReward`.
        options: the fields of the agent's config.
    """

    def __init__(
        self,
        env: Any,
        *,
        critic: CriticSource | None = None,
        decoding: Decoding | None = None,
        updating: Updating | None = None,
        verbose: int = 0,
        log_dir: str | Path | None = None,
        log_to: LogTo = (),
        on_reward_error: OnRewardError = "raise",
        reward_deadline: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(env, critic=critic, decoding=decoding, updating=updating, **options)
        if self.config.rollout_episodes < (count := processes().count):
            raise ConfigurationError(
                f"rollout_episodes is {self.config.rollout_episodes} for {count} processes, each of which needs a text"
                " to write: raise it, or start fewer"
            )
        self.reward = patient(self.task.reward, on_reward_error, reward_deadline)
        self.verbose = verbose
        self.early_warning = EarlyWarning()
        self.recorder = Recorder()
        self.remaining = 1.0
        """The share of the training under way that is still ahead: 1 at its start, near 0 at its last rollout."""
        self.logger: Logger = make_logger(verbose, log_dir, log_to) if processes().first else make_logger(0, None)

    # -- what an agent defines ----------------------------------------------------------------------
    @abstractmethod
    def update(self, rollout: Rollout) -> dict[str, float]:
        """Improve the policy from one rollout; returns the metrics to log under `train/`."""

    def draw_prompts(self) -> list[Prompt]:
        """The prompts of the next rollout, fixed before any text is written."""
        return self.task.prompts.sample(self.randomness.prompts, self.config.rollout_episodes)

    # -- learning -------------------------------------------------------------------------------------
    def learn(
        self,
        total_timesteps: int,
        callback: CallbackLike = None,
        progress_bar: bool = False,
        reset_num_timesteps: bool = True,
        *,
        checkpoint: Checkpointing | None = None,
        resume: bool = False,
    ) -> Self:
        """Roll out and update until `total_timesteps` more tokens have been generated.

        Args:
            callback: an SB3 callback, a list of them, or `f(locals, globals) -> bool`.  `on_step` is
                called once per rollout, after its update, so that an agent saved there can be resumed
                exactly; False stops the training.  The locals hold `rollout`, and `dones`, one True for
                each of its episodes.
            reset_num_timesteps: with False, `num_timesteps` keeps counting, and the learning-rate schedule
                reaches 0 at the old count plus `total_timesteps`.
            checkpoint: save the run in a folder as it goes, at its end, and when Ctrl-C or SIGTERM ends it.
            resume: continue from the newest checkpoint in that folder; without one, start from the beginning.
                `total_timesteps` then counts the whole run, and the agent must have been made with the same options
                as for the first part.  A warning names damaged checkpoints, which are skipped.

        Raises:
            NonFiniteError: a loss or gradient was NaN or infinite; docs/agents.md says how to continue.
            RewardError: the reward function failed; there was no update from this rollout.
            LostProcessError: of several processes that train together, another one has ended.
            CheckpointMismatchError, CheckpointWriteError, TrainingInterrupted: see `open_run`.
        """
        check_number("total_timesteps", total_timesteps, low=0)
        together = processes()
        together.check_alike("the agent or the task", lambda: [run_identity(self), total_timesteps])
        callbacks = as_callback(callback)
        callbacks.init_callback(self)  # type: ignore[arg-type]  # the parts of SB3's base class that callbacks use
        if reset_num_timesteps:
            self.num_timesteps = 0
        with (
            self.recorder.kept_on_failure(self.logger, self.task),
            open_run(self, callbacks, total_timesteps, checkpoint, resume) as run,
        ):
            self.updater.begin()
            total_timesteps = run.end  # as stable-baselines3's callbacks find it among the locals
            self.recorder.begin(self.logger, run_settings(self))
            callbacks.on_training_start(locals(), globals())
            with ProgressLine(total_timesteps, self.num_timesteps, enabled=progress_bar and together.first) as line:
                while run.goes_on:
                    self.remaining = 1 - self.num_timesteps / total_timesteps
                    self.updater.schedule(self.remaining, self.num_rollouts)
                    rollout = self._roll_out_and_update(callbacks)
                    line.show(self.num_timesteps, rollout)
                    stops = together.any(not callbacks.on_step())
                    if self.logger.name_to_value:  # a callback such as EvalCallback may have written the log already
                        self.dump_logs()
                    if stops:
                        break
                    run.save_if_due()
        callbacks.on_training_end()  # not reached if a signal stopped the run, because it will be resumed
        self.recorder.end(self.logger, self.task)
        return self

    def _roll_out_and_update(self, callbacks: BaseCallback) -> Rollout:
        """Sample a rollout, update from it, and give both to the log, the early warnings and the recorder.

        Callbacks get the local variables of this method, of which `learn` promises `rollout` and `dones`.

        Returns:
            the rollout, without the episodes that `usable` leaves out; if none is left, there is no update.
        """
        callbacks.on_rollout_start()
        timesteps_before = self.num_timesteps
        started = time.perf_counter()
        rollout = self.collect_rollout()
        rolled_out = time.perf_counter()
        dones = np.ones(len(rollout), dtype=bool)
        callbacks.update_locals(locals())
        callbacks.on_rollout_end()
        metrics = self.update(rollout) if len(rollout) else {}
        seconds = (rolled_out - started, time.perf_counter() - rolled_out)
        self._warn_early(rollout, metrics)
        self._record(rollout, metrics, seconds)
        self.recorder.rollout(self.logger, self.task, rollout, timesteps_before, self.num_rollouts)
        return rollout

    def collect_rollout(self) -> Rollout:
        """Sample and score `rollout_episodes` episodes, and give their mean KL to the KL controller.

        Episodes for which the reward function failed are left out; the rollout may then be empty.
        """
        sampling = Sampling(self.randomness.sampling)
        rollout = collect(
            self.backend, self.policy, self.task, self.draw_prompts(), sampling, self.reward, self.updater.updating
        )
        self.num_timesteps += int(rollout.episodes.response_lengths.sum())
        self.num_rollouts += 1
        failed = rollout.scored.failed
        if failed is not None and failed.any():
            rollout = rollout[self.usable(~failed)]
        if len(rollout):
            self.task.kl.update(float(rollout.scored.kl.mean()), len(rollout))
        return rollout

    def usable(self, scored: np.ndarray) -> np.ndarray:
        """Which episodes of a rollout are used for the update, bool (B,).

        Args:
            scored: bool (B,), True for episodes whose score is known.
        """
        return scored

    def minibatches(self, rollout: Rollout, batch_size: int, n_epochs: int) -> Iterator[np.ndarray]:
        """`n_epochs` random cuts of the rollout into batches of `batch_size` episodes."""
        return shuffled_batches(len(rollout), batch_size, n_epochs, self.randomness.minibatches)

    def _warn_early(self, rollout: Rollout, metrics: dict[str, float]) -> None:
        """Log and record the early warnings about a rollout; processes other than the first log at level DEBUG."""
        level = logging.WARNING if processes().first else logging.DEBUG
        for text in self.early_warning.look(rollout, metrics, self.updater.rounded or rollout.rounded):
            log.log(level, "%s", text)
            self.recorder.warn(self.logger, self.num_timesteps, text)

    def _record(self, rollout: Rollout, metrics: dict[str, float], seconds: tuple[float, float]) -> None:
        """Put one rollout and its update into the log's next row; `seconds` of the rollout and of the update."""
        tokens = int(rollout.episodes.response_lengths.sum())
        row = {
            **rollout_metrics(rollout),
            **self._skipped(rollout),
            "rollout/beta": self.task.kl.beta,
            **{f"train/{name}": value for name, value in metrics.items()},
            "train/learning_rate": self.updater.learning_rate,
            "time/tokens_per_s": tokens / sum(seconds),
            "time/rollout_s": seconds[0],
            "time/update_s": seconds[1],
            "time/total_timesteps": self.num_timesteps,
        }
        for name, value in row.items():
            self.logger.record(name, float(value))

    def _skipped(self, rollout: Rollout) -> dict[str, float]:
        """What to log of a reward function that may fail: episodes left out, and failed calls since the last row."""
        if self.reward is None:
            return {}
        errors, self.reward.errors = sum(processes().gather(self.reward.errors)), 0
        return {"rollout/skipped": self.config.rollout_episodes - len(rollout), "rollout/reward_errors": errors}

    # -- saving and resuming a run --------------------------------------------------------------------
    def write_run(self, path: Path, run: dict[str, Any]) -> Path:
        """`save`, with the state of the run (JSON) beside the agent's; `load` reads it as well."""
        checkpoint = self.state()
        return self.write(path, replace(checkpoint, settings={**checkpoint.settings, "run": run}))

    def read_run(self, path: Path) -> Checkpoint:
        """Read a checkpoint and check that this agent can resume the run from it; the agent is not changed yet.

        Raises:
            CheckpointCorruptError: it is damaged.
            CheckpointMismatchError: it is of another class, or an option or the task differs; the message names it.
        """
        checkpoint = read_folder(path, lambda folder: self._read(folder, path, self.task, check_same_task))
        check_same_options(checkpoint.settings["config"], self.config, path)
        return checkpoint

    # -- SB3's callbacks and logger look here -------------------------------------------------------------
    def get_env(self) -> Any:
        """The environment, as SB3's callbacks ask for it."""
        return TrainingEnv(self.env)

    def get_vec_normalize_env(self) -> None:
        """No environment of this package is normalized; SB3's callbacks ask."""
        return

    def set_logger(self, logger: Logger) -> None:
        """Use a logger made by `stable_baselines3.common.logger.configure`."""
        self.logger = logger

    def dump_logs(self) -> None:
        """Write what has been recorded to the log."""
        self.logger.dump(self.num_timesteps)
