"""A critic without weights: the value of a text so far from the score that it would get if it ended there.

For rewards that can be asked about unfinished texts cheaply, such as rules and lexicons, the score of the
text so far explains far more of the return than the policy's hidden states do after a few rollouts.  The
value before token t is linear in a few functions of that score p and of the share tau = t / T that is
written, and the weights are those of a ridge regression on the returns of all rollouts so far, each of
which counts `decay` as much as the next one.

Ng et al. 1999 show that rewards shaped by a potential of the state have the same optimum; taking such a
value as the baseline of GAE with lambda 1 is the same thing on the agent's side.

Shapes: B episodes, T response tokens, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from agents.learning.rollout import Rollout
from lm_env.distributed import processes
from lm_env.errors import CheckpointCorruptError
from lm_env.objective.scoring import raw_scores
from lm_env.objective.task import Task

__all__ = ["ScoreCritic"]

FEATURES = 8


class ScoreCritic:
    """V(text so far) by ridge regression on functions of its score and its length.

    Args:
        decay: how much a rollout counts, against the one after it.
        ridge: the penalty on the squared weights, in units of tokens.
    """

    def __init__(self, decay: float = 0.9, ridge: float = 1.0) -> None:
        self.decay = decay
        self.ridge = ridge
        self.scale: float | None = None
        """The spread of the scores that the features are measured in, from the first rollout."""
        self._gram = np.zeros((FEATURES, FEATURES))
        self._moments = np.zeros(FEATURES)

    def values(self, task: Task, rollout: Rollout, reward: Callable[..., Any] | None = None) -> np.ndarray:
        """The value before each token, float64 (B, T), 0 in the padding; and take the rollout into account.

        The weights are those of the rollouts before this one; the very first one is fitted to itself, with
        a handful of weights for thousands of tokens.

        Args:
            reward: the task's own reward function in another wrapping.  A text so far whose score cannot be had
                counts as 0; the values are a baseline, so that this costs accuracy and no bias.

        Raises:
            RewardError, RewardValueError: the reward function cannot be asked about unfinished texts.
        """
        mask = rollout.mask
        features = self._features(prefix_scores(task, rollout, reward), mask, task.max_new_tokens)
        returns = np.where(mask, rollout.scored.rewards, 0.0)[:, ::-1].cumsum(1)[:, ::-1]
        first = not self._moments.any() and not self._gram.any()
        if not first:
            weights = self._weights()
        self._gram = self.decay * self._gram + features[mask].T @ features[mask]
        self._moments = self.decay * self._moments + features[mask].T @ returns[mask]
        if first:
            weights = self._weights()
        return np.where(mask, features @ weights, 0.0)

    def _weights(self) -> np.ndarray:
        return np.linalg.solve(self._gram + self.ridge * np.eye(FEATURES), self._moments)

    def _features(self, scores: np.ndarray, mask: np.ndarray, longest: int) -> np.ndarray:
        """(B, T, F) of the scores (B, T) of the texts before each token."""
        if self.scale is None:
            self.scale = float(scores[mask].std()) or 1.0
        p = np.where(mask, scores, 0.0) / self.scale
        tau = np.broadcast_to(np.arange(mask.shape[1]) / longest, mask.shape)
        return np.stack([np.ones_like(p), tau, tau**2, p, p * tau, p * tau**2, p**2, p**3], axis=-1)

    def state(self) -> dict[str, Any]:
        """What it has learned, as JSON."""
        return {
            "decay": self.decay,
            "ridge": self.ridge,
            "scale": self.scale,
            "gram": self._gram.tolist(),
            "moments": self._moments.tolist(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> ScoreCritic:
        """The critic that `state` described.

        Raises:
            CheckpointCorruptError: it does not describe any.
        """
        try:
            critic = cls(float(state["decay"]), float(state["ridge"]))
            critic.scale = None if state["scale"] is None else float(state["scale"])
            critic._gram = np.array(state["gram"], dtype=np.float64).reshape(FEATURES, FEATURES)
            critic._moments = np.array(state["moments"], dtype=np.float64).reshape(FEATURES)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointCorruptError(f"the saved critic is damaged ({error!r}): use another checkpoint") from error
        return critic


def prefix_scores(task: Task, rollout: Rollout, reward: Callable[..., Any] | None = None) -> np.ndarray:
    """What the reward function gives to each text as it was BEFORE each of its tokens, float64 (B, T)."""
    mask = rollout.mask
    rows, steps = np.nonzero(mask)
    responses = rollout.episodes.responses()
    prefixes = [responses[row][:step] for row, step in zip(rows.tolist(), steps.tolist(), strict=True)]
    prompts = [rollout.episodes.prompts[row] for row in rows.tolist()]
    together = processes()
    share = together.share(len(prefixes))
    own = np.zeros(0)
    if prefixes[share]:
        asked = task.reward if reward is None else reward
        own = raw_scores(asked, task, prompts[share], prefixes[share], finished=False)
    result = np.zeros(mask.shape)
    result[mask] = together.gather_rows({"scores": own}, len(own))["scores"]
    return result
