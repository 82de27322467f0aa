"""The learning curve of a run: evaluations on held-out prompts over tokens and over seconds of training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from agents.run.evaluation import Evaluation, evaluate_texts
from lm_env.benchmark.measures.measuring import plain
from lm_env.data.prompts import Prompt
from lm_env.generation.generate import LocalBackend
from lm_env.objective.task import Task

__all__ = ["LearningCurve", "Point", "curve_point"]

Point = dict[str, Any]
"""`tokens`, `seconds` of training; of the texts `score`, `kl` and `J`, with errors `score_se`, `kl_se`, `J_se`."""


def curve_point(found: Evaluation, tokens: int, seconds: float) -> Point:
    """An evaluation as a point of a learning curve."""
    point: Point = {"tokens": tokens, "seconds": seconds}
    for name in ("score", "kl", "J"):
        estimate = getattr(found, name)
        point |= {name: estimate.mean, f"{name}_se": estimate.se}
    return plain(point)


class LearningCurve(BaseCallback):
    """Evaluates between an update and the next rollout, so that all tokens counted at a point were learned from.

    The seconds are those of rollouts and updates, without evaluations.  They and the points are kept in checkpoints, so
    that a resumed run continues its curve.

    Args:
        task: whose model is trained, in place.
        prompts: held out.
        n: texts per prompt.
        every: tokens between two points; one more point is at the end.
        seed: of the uniform random numbers that all evaluations are sampled with.
    """

    def __init__(self, task: Task, prompts: Sequence[Prompt], n: int, *, every: int, seed: int) -> None:
        super().__init__()
        self.task = task
        self.prompts = prompts
        self.n = n
        self.every = every
        self.seed = seed
        self.backend = LocalBackend(task)
        self.points: list[Point] = []
        self.evaluation_seconds = 0.0
        self._seconds = 0.0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return self._seconds + (0.0 if self._since is None else time.perf_counter() - self._since)

    def add_point(self, tokens: int) -> None:
        """Evaluate, and add the point to the curve; the clock of the training is stopped, see `start_clock`."""
        self._stop_clock()
        started = time.perf_counter()
        found = evaluate_texts(self.task, self.backend, self.prompts, self.n, seed=self.seed)
        self.points.append(curve_point(found, tokens, self._seconds))
        self.evaluation_seconds += time.perf_counter() - started

    def start_clock(self) -> None:
        """Count the seconds from here on as training, until the next point."""
        self._since = time.perf_counter()

    # -- stable-baselines3 and the batched agents call these -----------------------------------------------
    def _on_training_start(self) -> None:
        self.start_clock()

    def _on_rollout_start(self) -> None:
        now = int(self.model.num_timesteps)
        if not self.points or now // self.every > self.points[-1]["tokens"] // self.every:
            self.add_point(now)
            self.start_clock()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._stop_clock()
        if not self.points or self.points[-1]["tokens"] < self.model.num_timesteps:
            self.add_point(int(self.model.num_timesteps))

    # -- a run that is resumed --------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON."""
        return {"points": self.points, "seconds": self.seconds, "evaluation_seconds": self.evaluation_seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.points = list(state["points"])
        self._seconds = float(state["seconds"])
        self.evaluation_seconds = float(state["evaluation_seconds"])

    def _stop_clock(self) -> None:
        self._seconds = self.seconds
        self._since = None
