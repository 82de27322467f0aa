"""StepLogprobs: logprobs of the tokens taken in n slots, at the cost of one token's forward a step.

The environment has one for the reference and, for steps whose logprobs are not given to it, one for its
own model.  It stores no text: the caller passes the texts of all slots.  A row whose cache lacks only the last
token of its text reads that token; any other row (a new text, several tokens missing, after a failed forward or a
change of weights) is recomputed from the start.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from lm_env.generation.decoders import make_decoder
from lm_env.models.inspection import evaluating
from lm_env.models.logprobs import restrict, token_logprobs
from lm_env.models.weight_watch import WeightWatch

__all__ = ["StepLogprobs"]


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
        return token_logprobs(logits, torch.from_numpy(actions).to(logits.device), self.temperature).cpu().numpy()
