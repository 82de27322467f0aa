"""EvaluateTexts: the callback that evaluates on held-out prompts while an agent trains.

It serves the agents of this package and, where their policy is one of `agents.sb3`, those of stable-baselines3.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import TensorBoardOutputFormat

from agents.learning.policy import ValueHeadPolicy
from agents.run.aside import put_files_aside
from agents.run.evaluation import Evaluation, MoreMeasures, choose_texts, evaluate_texts, write_samples
from agents.run.records import rewind_lines, row_of
from agents.run.samples import as_shown
from lm_env.distributed import processes
from lm_env.errors import CheckpointWriteError, ConfigurationError, RewardError
from lm_env.generation.generate import LocalBackend
from lm_env.models.adapters import without_wrapper
from lm_env.objective.patience import SkippingReward
from lm_env.objective.task import Task
from lm_env.theory.ceilings.task_ceiling import task_ceiling
from lm_env.theory.ceilings.tilting import Ceiling
from lm_env.validation import check_integer

__all__ = ["EvaluateTexts", "Evaluated"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Evaluated:
    """An evaluation, and when it was made."""

    timesteps: int
    evaluation: Evaluation


class EvaluateTexts(BaseCallback):
    """Evaluates before the training, every so many tokens, and after it, always with the same uniform numbers.

    The log gets `eval/score`, `eval/kl`, `eval/J`, `eval/perplexity` and the others of `Evaluation.metrics`; with a
    ceiling also `eval/attained`.  The training goes on as it would without the callback: the weights are the same.
    An evaluation in which the reward function fails is left out where the agent has `on_reward_error="skip"`.
    Of several processes that train together, each evaluates its share of the texts, and the first one writes.

        agent.learn(100_000, callback=EvaluateTexts("held_out.txt", every=10_000, ceiling=True))

    Args:
        prompts: anything that `lm_env.load_prompts` takes, best such as are not trained on; None: the task's own.
        n: texts per prompt; None: as many as make at least 256 in all.
        every: timesteps (tokens) between two evaluations.
        ceiling: the optimum on the same prompts, to say which share of it is attained.  True estimates it when the
            training begins, which takes about as long as 100 evaluations with one text per prompt; it is then
            in the attribute `ceiling`, and can be given to the callbacks of further runs.
        samples: a file of JSON lines that some of the texts are added to: `timesteps`, `prompt`, `response`, `score`
            and `kl`.  A file of an earlier run is renamed when a training begins at 0 timesteps, and a file with other
            lines always.
        more: measures the texts further, see `agents.run.evaluation.evaluate_texts`; the log gets `eval/NAME`.
        shown: how many texts of each evaluation go into `samples`, and to TensorBoard: the first one of each of as many
            prompts.
        seed: of the uniform numbers.
    """

    def __init__(
        self,
        prompts: Any = None,
        n: int | None = None,
        *,
        every: int = 10_000,
        ceiling: Ceiling | bool = False,
        samples: str | Path | None = None,
        more: MoreMeasures | None = None,
        shown: int = 8,
        seed: int = 0,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        self.prompts = prompts
        self.n = n if n is None else check_integer("n", n)
        self.every = check_integer("every", every)
        if not isinstance(ceiling, Ceiling | bool):
            raise ConfigurationError(f"ceiling must be True, False or a Ceiling, not {type(ceiling).__name__}")
        self.ceiling: Ceiling | None = ceiling if isinstance(ceiling, Ceiling) else None
        self._estimates_ceiling = ceiling is True
        self.samples = None if samples is None or not processes().first else Path(samples)
        self.more = more
        self.shown = check_integer("shown", shown, low=0)
        self.seed = check_integer("seed", seed, low=0)
        self.history: list[Evaluated] = []
        """All evaluations so far, the earliest first."""
        self._intervals = 0
        self._trained = False
        self._evaluated_at: int | None = None

    def __repr__(self) -> str:
        if self.prompts is None:
            prompts = "the task's prompts"
        elif isinstance(self.prompts, str | Path):
            prompts = repr(str(self.prompts))
        else:
            prompts = f"{len(self.prompts):,} prompts" if hasattr(self.prompts, "__len__") else "prompts"
        return f"EvaluateTexts({prompts}, n={self.n}, every={self.every}, {len(self.history)} evaluations so far)"

    # -- stable-baselines3 calls these ------------------------------------------------------------------
    def _on_training_start(self) -> None:
        task = _task_of(self.model)
        self.prompts = list(choose_texts(task, self.prompts, self.n, self.ceiling)[0])
        self._backend = LocalBackend(task)
        now = self.model.num_timesteps
        self._evaluated_at = None if self.samples is None else _prepare(self.samples, now)
        if self.ceiling is None and self._estimates_ceiling:
            self.ceiling = task_ceiling(task, self.prompts, seed=self.seed, divided=True)
            for doubt in self.ceiling.doubts():
                log.warning("the ceiling is a lower bound, and `attained` an upper one: %s", doubt)
        self._intervals = now // self.every
        self._trained = False
        if now == 0:
            self._evaluate()
            self._write_row()

    def _on_step(self) -> bool:
        if self.num_timesteps // self.every > self._intervals:
            self._intervals = self.num_timesteps // self.every
            self._evaluate()
        return True

    def _on_rollout_end(self) -> None:
        self._trained = True  # the update comes next

    def _on_training_end(self) -> None:
        # A signal may have ended an earlier process after its last update and before its last evaluation.
        together = processes()
        missing = together.any(together.first and self._evaluated_at != int(self.model.num_timesteps))
        if self._trained or missing:
            self._evaluate()
            self._write_row()

    # -- the parts ----------------------------------------------------------------------------------------
    def _evaluate(self) -> None:
        agent: Any = self.model
        self._trained = False
        self._evaluated_at = timesteps = int(agent.num_timesteps)
        try:
            found = self._measure(agent)
        except RewardError as error:
            if not isinstance(getattr(agent, "reward", None), SkippingReward):
                raise
            log.warning("no evaluation at %d timesteps: %s", timesteps, error)
            return
        self.history.append(Evaluated(timesteps, found))
        for name, value in found.metrics().items():
            self.logger.record(f"eval/{name}", value)
        shown = found.samples[:: found.texts // found.prompts][: self.shown]
        if self.samples is not None:
            try:
                write_samples(self.samples, shown, timesteps)
            except OSError as error:
                raise CheckpointWriteError(f"cannot write texts to {self.samples}: {error}; free the place") from error
        if shown and any(isinstance(output, TensorBoardOutputFormat) for output in self.logger.output_formats):
            self.logger.record("eval/samples", _as_markdown(shown), exclude=("stdout", "log", "csv", "json"))

    def _measure(self, agent: Any) -> Evaluation:
        backend = getattr(agent, "backend", self._backend)
        how: dict[str, Any] = {"seed": self.seed, "ceiling": self.ceiling, "more": self.more, "divided": True}
        return evaluate_texts(_task_of(agent), backend, self.prompts, self.n, **how)

    def _write_row(self) -> None:
        """Write what has been recorded, where no rollout's row is still to come."""
        timesteps = int(self.model.num_timesteps)
        self.logger.record("time/total_timesteps", timesteps)
        self.logger.dump(timesteps)


def _task_of(agent: Any) -> Task:
    """The task that an agent writes for, with the task's own model and temperature.

    Raises:
        ConfigurationError: its policy is another one.
    """
    task = getattr(agent, "task", None)
    if isinstance(task, Task):
        return task
    env = agent.get_env()
    task = getattr(getattr(env, "unwrapped", env), "task", None)
    network = getattr(agent.policy, "network", None)
    if isinstance(task, Task) and isinstance(network, ValueHeadPolicy):
        same_weights = network.lm is without_wrapper(task.model)
        if same_weights and network.temperature == task.temperature:
            return task
    raise ConfigurationError(
        f"EvaluateTexts cannot let {type(agent).__name__} with a {type(agent.policy).__name__} write whole texts:"
        " give it a policy of agents.sb3, at the task's temperature, on the TextVecEnv that holds its model; or use"
        " stable-baselines3's EvalCallback"
    )


def _prepare(samples: Path, now: int) -> int | None:
    """Make the folder, and rename a file of an earlier run or with other lines; drop what a resumed run will repeat.

    Args:
        now: the timesteps that the training begins at; rows of later ones were written by a process that was
            killed after its last checkpoint.

    Returns:
        the timesteps of the last texts in the file, None if it has none.
    """
    kept: list[dict[str, Any]] = []
    try:
        samples.parent.mkdir(parents=True, exist_ok=True)
        if now == 0 or _has_other_lines(samples):
            put_files_aside(samples.parent, [samples.name])
        elif samples.exists():
            kept = rewind_lines(samples, now)
        samples.open("a").close()
    except OSError as error:
        raise CheckpointWriteError(f"cannot write texts to {samples}: {error}; choose another place") from error
    return int(kept[-1]["timesteps"]) if kept else None


def _has_other_lines(samples: Path) -> bool:
    """Whether the file holds lines of somebody else; half a line at its end is that of a run that was killed."""
    whole = samples.read_bytes().split(b"\n")[:-1] if samples.exists() else []
    return any(row_of(line) is None for line in whole if line.strip())


def _as_markdown(rows: list[dict[str, Any]]) -> str:
    """Texts for TensorBoard, each prompt in bold before its response."""
    lines = [
        f"**{as_shown(row['prompt'].strip())}** {as_shown(row['response'].strip())}"
        f" *(score {row['score']:.3f}, KL {row['kl']:.2f})*"
        for row in rows
    ]
    return "\n\n".join(lines)
