"""LossBatch: what `check_loss` passes to a loss, responses with the inputs that the losses of libraries need.

Shapes: B rows, T columns of response tokens, V vocabulary, G responses to a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lm_env.theory.prefix_tree import TableLM

__all__ = ["LossBatch"]


@dataclass(frozen=True, eq=False)
class LossBatch:
    """A batch of finished responses to one prompt, float64; those of a group are in consecutive rows.

    A loss reads `logprobs` (or `logits`), which have a graph, or runs `model` on `input_ids` itself.  The gradient
    is taken with respect to the model's table either way.
    """

    model: TableLM
    """The policy under training: a causal LM, `model(input_ids=(B, L)).logits`, that is a table of float64 logits."""
    reference: TableLM
    """The reference policy, frozen."""
    behavior: TableLM
    """The sampling policy, frozen."""
    tokens: Tensor
    """int64 (B, T): the response tokens, the EOS included, then padding of any value, which may be the EOS."""
    mask: Tensor
    """bool (B, T): True at response tokens.  `lengths` says the same."""
    old_logprobs: Tensor
    """float64 (B, T): logprobs under the sampling policy, nats; arbitrary in the padding."""
    ref_logprobs: Tensor
    """float64 (B, T): logprobs under the reference, nats; arbitrary in the padding."""
    values: Tensor
    """(B, T): before each token, the sampling policy's exact expectation of the rewards to come; arbitrary in the
    padding.  With these, generalized advantage estimation is unbiased at every lambda."""
    scores: Tensor
    """(B,): the score of each response, paid at its last token."""
    group_size: int
    """G: rows 0 to G - 1 are one group, and so on."""
    beta: float
    """The weight of the KL penalty."""
    max_length: int
    """The length cap of a response."""
    eos_id: int
    """The EOS token, which is also the only token of the prompt."""
    rows: np.ndarray | None = None
    """int (B,): which rows of `whole` these are; None where the batch is not a part of another one."""
    _whole: LossBatch | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def whole(self) -> LossBatch:
        """The batch of the whole optimizer step, of which this may be a part; itself if it is not."""
        return self if self._whole is None else self._whole

    def part(self, rows: np.ndarray) -> LossBatch:
        """Some rows as a part of this batch, as a trainer cuts it into micro-batches."""
        return replace(self._taken(rows), rows=rows, _whole=self.whole)

    def reordered(self, rows: np.ndarray) -> LossBatch:
        """The given rows, in that order, as a batch of their own."""
        return self._taken(rows)

    def _taken(self, rows: np.ndarray) -> LossBatch:
        index = torch.from_numpy(rows)
        names = ("tokens", "mask", "old_logprobs", "ref_logprobs", "values", "scores")
        return replace(self, **{name: getattr(self, name)[index] for name in names})

    def padded(self, columns: int, seed: int) -> LossBatch:
        """The same responses with more padding, and other numbers in all of it."""
        generator = torch.Generator().manual_seed(seed)

        def filled(values: Tensor) -> Tensor:
            wide = torch.randn(len(self), self.tokens.shape[1] + columns, generator=generator, dtype=torch.float64)
            wide[:, : self.tokens.shape[1]] = torch.where(self.mask, values, wide[:, : self.tokens.shape[1]])
            return wide

        mask = torch.nn.functional.pad(self.mask, (0, columns))
        others = torch.tensor([token for token in range(self.model.vocab_size) if token != self.eos_id])
        drawn = others[torch.randint(len(others), mask.shape, generator=generator)]
        tokens = torch.where(mask, torch.nn.functional.pad(self.tokens, (0, columns)), drawn)
        return replace(
            self,
            tokens=tokens,
            mask=mask,
            old_logprobs=filled(self.old_logprobs),
            ref_logprobs=filled(self.ref_logprobs),
            values=filled(self.values),
        )

    # -- what follows from the fields -----------------------------------------------------------------
    @property
    def lengths(self) -> Tensor:
        """int64 (B,): response tokens, the EOS included."""
        return self.mask.sum(1)

    @property
    def last(self) -> Tensor:
        """bool (B, T): the last token of each response."""
        return torch.arange(self.mask.shape[1]) == self.lengths[:, None] - 1

    @property
    def ended(self) -> Tensor:
        """bool (B,): which responses end by EOS; the others end at the length cap."""
        return (self.last & (self.tokens == self.eos_id)).any(1)

    @property
    def groups(self) -> Tensor:
        """int64 (B,): which group a response belongs to."""
        return torch.arange(len(self)) // self.group_size

    @property
    def prompt_ids(self) -> Tensor:
        """int64 (B, 1)."""
        return torch.full_like(self.tokens[:, :1], self.eos_id)

    @property
    def input_ids(self) -> Tensor:
        """int64 (B, 1 + T): prompt and response."""
        return torch.cat([self.prompt_ids, self.tokens], 1)

    @property
    def rewards(self) -> Tensor:
        """(B, T): the score at the last token, minus beta (old_logprobs - ref_logprobs); 0 in the padding."""
        paid = torch.where(self.last, self.scores[:, None], 0.0)
        return torch.where(self.mask, paid - self.beta * (self.old_logprobs - self.ref_logprobs), 0.0)

    @cached_property
    def logits(self) -> Tensor:
        """(B, T, V) before each token, with the graph."""
        return self.model(self.input_ids).logits[:, :-1]

    @cached_property
    def logprobs(self) -> Tensor:
        """(B, T) of the tokens under the policy under training, nats, with the graph; padding included."""
        return torch.log_softmax(self.logits, -1).gather(-1, self.tokens[..., None])[..., 0]
