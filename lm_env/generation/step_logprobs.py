"""StepLogprobs: logprobs of the tokens taken in n slots, at the cost of one token's forward a step.

The environment has one for the reference and, for steps whose logprobs are not given to it, one for its
own model.  It stores no text: the caller passes the texts of all slots.  A row whose cache lacks only the last
token of its text reads that token; any other row (a new text, several tokens missing, after a failed forward or a
change of weights) is recomputed from the start.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from lm_env.generation.decoders import make_decoder
from lm_env.models.inspection import evaluating
from lm_env.models.logprobs import log_distribution, restrict, token_logprobs
from lm_env.models.weight_watch import WeightWatch

__all__ = ["StepLogprobs", "Surprise"]


class StepLogprobs:
    """Logprobs of one token at a time under one model.

    Args:
        max_length: the longest text that a slot will hold, in tokens.
        temperature: divides the logits.

    Raises:
        UnsupportedModelError: see `make_decoder`.
    """

    def __init__(self, model: nn.Module, slots: int, max_length: int, temperature: float) -> None:
        self.model = model
        self.temperature = temperature
        self._decoder = make_decoder(model, slots, max_length)
        self._modules = list(model.modules())  # walking through them at each step would cost as much as a layer
        self._weights = WeightWatch(model)
        self.surprise: Surprise | None = None
        """Set by whoever wants to know whether the actions are samples of this model."""

    def reset(self, slots: np.ndarray) -> None:
        """These slots hold new texts."""
        self._decoder.lengths[slots] = 0

    def copy_row(self, source: StepLogprobs, row: int, slots: np.ndarray, length: int) -> None:
        """Let `slots (k,)` go on from the first `length` tokens of a row of `source`, without a forward.

        Where that row holds fewer, or the weights have changed since, the slots start over at the next step.

        Args:
            source: this object, or another one over the same model.
        """
        if source._weights.changed():
            source._decoder.lengths[:] = 0
        self._decoder.copy_row(source._decoder, row, slots, length)

    def logprobs(
        self,
        slots: np.ndarray,
        actions: np.ndarray,
        ids: np.ndarray,
        lengths: np.ndarray,
        allowed: np.ndarray | None = None,
    ) -> np.ndarray:
        """log pi(action | text) of the next token of each slot.

        Args:
            slots: (k,) ascending.
            actions: int64 (k,).
            ids, lengths: the texts of ALL slots, (n, L) and (n,), before the actions.
            allowed: bool (k, V) or None; what the model's distribution is restricted to.

        Returns:
            float64 (k,) nats.
        """
        if self._weights.changed():  # the cached keys are of other weights, and modules may have been added
            self._decoder.lengths[:] = 0
            self._modules = list(self.model.modules())
        known = self._decoder.lengths[slots] == lengths[slots] - 1
        known &= self._decoder.lengths[slots] > 0
        result = np.empty(len(slots))
        with evaluating(self._modules):
            if known.any():
                rows = slots[known]
                logits = self._decoder.step(rows, ids[rows, lengths[rows] - 1]).logits
                result[known] = self._pick(logits, actions[known], None if allowed is None else allowed[known])
            if not known.all():
                rows = slots[~known]
                logits = self._decoder.start(rows, ids[rows], lengths[rows]).logits
                result[~known] = self._pick(logits, actions[~known], None if allowed is None else allowed[~known])
        return result

    def _pick(self, logits: Tensor, actions: np.ndarray, allowed: np.ndarray | None) -> np.ndarray:
        if allowed is not None:
            logits = restrict(logits, allowed)
        tokens = torch.from_numpy(actions).to(logits.device)
        if self.surprise is not None:
            self.surprise.add(tokens, log_distribution(logits, self.temperature).exp())
        return token_logprobs(logits, tokens, self.temperature).cpu().numpy()


class Surprise:
    """How far the tokens taken lie from how often this model would have taken each.

    Whatever the texts, a token's count minus the sum of its probabilities has mean 0 if the model sampled the tokens
    itself, and a variance of at most that sum.  So the sum of the squares over these sums (Pearson's, with the rare
    tokens taken together) is about the number of its terms; tokens that other weights took make it grow without bound.
    """

    ENOUGH = 5.0  # expected counts from which on a token stands by itself

    def __init__(self) -> None:
        self._counts: Tensor | None = None
        self._expected: Tensor | None = None

    def add(self, actions: Tensor, probabilities: Tensor) -> None:
        """Take note of k actions.

        Args:
            actions: int64 (k,).
            probabilities: (k, V) of all tokens, before each action.
        """
        size = probabilities.shape[-1]
        counts = torch.bincount(actions.cpu(), minlength=size).double()
        expected = probabilities.double().sum(0).cpu()
        self._counts = counts if self._counts is None else self._counts + counts
        self._expected = expected if self._expected is None else self._expected + expected

    @property
    def deviation(self) -> float:
        """In standard deviations of a chi-square variable with as many degrees of freedom as there are terms."""
        if self._counts is None or self._expected is None:
            return 0.0
        common = self._expected >= self.ENOUGH
        counts = torch.cat([self._counts[common], self._counts[~common].sum()[None]])
        expected = torch.cat([self._expected[common], self._expected[~common].sum()[None]])
        statistic = float(((counts - expected).square() / expected.clamp(min=1.0)).sum())
        return (statistic - len(counts)) / math.sqrt(2 * len(counts))
