"""Online DPO: direct preference optimization on pairs that the policy itself samples.

Source: Guo et al. 2024 (arXiv:2402.04792).

Each prompt gets G samples; the scores of two of them say with which probability a judge would prefer one, and the
cross-entropy of that with the implied reward beta log(pi / pi_ref) is the loss.  No gradient goes through the sampling.

With `labels="bradley-terry"` the probability is that of the Bradley-Terry model, 1 / (1 + exp(-(r_1 - r_2))).  The loss
is then least, for every pair at once, where beta log(pi / pi_ref) is the score up to a constant, which is the optimum
of E[score] - beta KL that the other agents look for; the gradient vanishes there for each single pair.  With
`labels="best"` the higher score always wins, as with a judge who never errs, and nothing but the KL of few steps keeps
the policy from collapsing on the best response.

Shapes: B episodes = prompts x G samples, those of one prompt side by side; N response tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from agents.base.config import AgentConfig
from agents.base.group import GroupAgent, SampleGroupConfig
from agents.learning.policy import TokenEvaluation
from agents.learning.preference.loss import PreferenceLoss, preference_loss, response_sums
from agents.learning.rollout import Rollout
from agents.learning.updater import MicroBatch
from lm_env.errors import ConfigurationError
from lm_env.explain import explained
from lm_env.models.inputs import shuffled_batches
from lm_env.validation import check_choice, check_numbers

__all__ = ["OnlineDPO", "OnlineDPOConfig"]

Labels = Literal["bradley-terry", "best"]


@explained
@dataclass(frozen=True)
class OnlineDPOConfig(SampleGroupConfig):
    """Options of online DPO."""

    group_size: int = 2
    """G: samples per prompt, all pairs of which are compared; divides `rollout_episodes` and `batch_size`."""
    labels: Labels = "bradley-terry"
    """`bradley-terry`: a pair is won with the probability that its scores give.  `best`: the higher score wins."""
    loss: PreferenceLoss = "sigmoid"
    """`sigmoid` is DPO; `ipo` stays finite where one response always wins."""
    label_smoothing: float = 0.0
    """The probability that a label is wrong, below 1/2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("labels", self.labels, get_args(Labels))
        check_choice("loss", self.loss, get_args(PreferenceLoss))
        check_numbers(self, "label_smoothing", low=0.0, high=0.499)
        if self.group_size < 2:
            raise ConfigurationError("online DPO compares samples of one prompt: group_size must be at least 2")
        if self.batch_size % self.group_size:
            raise ConfigurationError(
                f"batch_size ({self.batch_size}) must be a multiple of group_size ({self.group_size}): pairs stay whole"
            )


class OnlineDPO(GroupAgent):
    """DPO on the policy's own samples, compared by their scores; see `OnlineDPOConfig`."""

    Config: ClassVar[type[AgentConfig]] = OnlineDPOConfig
    config: OnlineDPOConfig

    def __init__(self, env: Any, **options: Any) -> None:
        super().__init__(env, **options)
        if self.task.kl.beta == 0:
            raise ConfigurationError("online DPO has no optimum at beta 0: give the environment a beta above 0")

    def update(self, rollout: Rollout) -> dict[str, float]:
        """`n_epochs` passes over the rollout, one optimizer step per minibatch."""
        size = self.config.group_size
        scores = rollout.scored.scores
        for rows in self.group_batches(len(rollout)):
            weights = np.full(len(rollout), size / len(rows))  # the mean over the groups of the minibatch
            with self.updater.step(rollout, rows, weights) as step:
                for batch in step.micro_batches(together=size):
                    evaluation = step.evaluate(batch)
                    step.backward(self.loss(evaluation, batch, scores))
        return {**self.updater.metrics(), "equal_groups": float((np.ptp(scores.reshape(-1, size), axis=1) == 0).mean())}

    def group_batches(self, episodes: int) -> Iterator[np.ndarray]:
        """`n_epochs` random cuts of the rollout into batches of `batch_size` episodes, groups kept whole."""
        config = self.config
        size = config.group_size
        cuts = shuffled_batches(
            episodes // size, config.batch_size // size, config.n_epochs, self.randomness.minibatches
        )
        for groups in cuts:
            yield (groups[:, None] * size + np.arange(size)).reshape(-1)

    def loss(self, evaluation: TokenEvaluation, batch: MicroBatch, scores: np.ndarray) -> Tensor:
        """The mean loss of each group's pairs, shared out evenly among the group's tokens, (N,)."""
        size = self.config.group_size
        beta = self.task.kl.beta
        logprobs = response_sums(evaluation.logprobs, batch.episodes)
        log_ratios = response_sums(evaluation.logprobs - batch.ref_logprobs, batch.episodes).reshape(-1, size)
        worth = torch.from_numpy(scores[batch.rows]).to(log_ratios).reshape(-1, size)
        one, other = np.triu_indices(size, 1)
        difference = worth[:, one] - worth[:, other]
        chances = torch.sigmoid(difference) if self.config.labels == "bradley-terry" else (difference.sign() + 1) / 2
        margins = log_ratios[:, one] - log_ratios[:, other]
        losses = preference_loss(
            margins, chances, beta, kind=self.config.loss, label_smoothing=self.config.label_smoothing
        ).mean(1)
        self._note_pairs(batch, beta * margins, difference, logprobs.reshape(-1, size), one, other)
        tokens = torch.from_numpy(batch.episodes.response_lengths.reshape(-1, size).sum(1)).to(losses.device)
        return (losses / tokens).repeat_interleave(tokens)

    def _note_pairs(
        self,
        batch: MicroBatch,
        margins: Tensor,
        difference: Tensor,
        logprobs: Tensor,
        one: np.ndarray,
        other: np.ndarray,
    ) -> None:
        """Log what the implied reward says of pairs with different scores, the higher one called chosen."""
        won = difference > 0
        told = difference != 0
        if not told.any():
            return
        margins = torch.where(won, margins, -margins)[told]
        batch.record(
            accuracy=(margins > 0).float() + (margins == 0).float() / 2,
            margin=margins,
            chosen_logprob=torch.where(won, logprobs[:, one], logprobs[:, other])[told],
            rejected_logprob=torch.where(won, logprobs[:, other], logprobs[:, one])[told],
        )
