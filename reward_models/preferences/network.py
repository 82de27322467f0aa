"""The network of a reward model: a transformer trunk, and a scalar read from what it makes of a text.

Rows are right-padded.  A trunk that reads from left to right is read at each row's last token, found by length, or as
the mean over the row; one that looks both ways (an encoder such as BERT) gets a mask, and is read as the mean over the
row or at its first token.

Shapes: B rows, L tokens of the longest row, N texts, each of which is the beginning of a row, D hidden.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lm_env.validation import check_choice

__all__ = ["Pooling", "ScalarHeadModel", "reads_left_to_right"]

Pooling = Literal["last", "mean", "first"]

ROUNDING = 16
"""States that differ by at most so many roundings of the largest are taken for equal."""


class ScalarHeadModel(nn.Module):
    """A transformer trunk and a linear head: one score per row.

    The head starts with standard deviation 1/sqrt(D + 1) and bias 0 (Ziegler et al. 2019,
    arXiv:1909.08593), in fp32 whatever the trunk is in.

    Attributes:
        trunk: a transformers base model, `last_hidden_state` (B, L, D) out.
        causal: whether the trunk reads from left to right.
        pooling: which hidden state is read: the "last" or the "mean" of a causal trunk, the "mean" or the "first" of an
            encoder.
        head: (D) -> (1).
        gain, bias: fp32 scalar buffers; the score is gain * head + bias.
    """

    gain: Tensor
    bias: Tensor

    def __init__(self, trunk: PreTrainedModel, *, pooling: Pooling | None = None, seed: int = 0) -> None:
        """Put a fresh head, drawn from `seed`, on a trunk.

        Args:
            pooling: default: "last" for a causal trunk, "mean" for an encoder, as sentence encoders are read.

        Raises:
            ConfigurationError: a pooling that does not go with the trunk.
        """
        super().__init__()
        config = trunk.config.get_text_config()
        width = getattr(config, "word_embed_proj_dim", None) or config.hidden_size  # OPT may project at the end
        self.trunk = trunk
        self.causal = reads_left_to_right(trunk)
        self.pooling = pooling or ("last" if self.causal else "mean")
        check_choice("pooling", self.pooling, ("last", "mean") if self.causal else ("mean", "first"))
        self.head = nn.Linear(width, 1)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.head.weight, std=1 / math.sqrt(width + 1), generator=generator)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("gain", torch.ones(()))
        self.register_buffer("bias", torch.zeros(()))
        self.to(trunk.device)

    def forward(self, input_ids: Tensor, lengths: Tensor, rows: Tensor | None = None) -> Tensor:
        """Score texts, each of which is the beginning of a row.

        Args:
            input_ids: int64 (B, L), right-padded with any token.
            lengths: int64 (N,), the tokens of each text, each in 1..L.
            rows: int64 (N,), the row that each text is the beginning of, for a causal trunk; None: text i is that of
                row i, and N is B.

        Returns:
            float32 (N,).
        """
        return self.score_features(self.features(input_ids, lengths, rows))

    def features(self, input_ids: Tensor, lengths: Tensor, rows: Tensor | None = None) -> Tensor:
        """What the head reads of each text, (N, D) in the head's precision; arguments as of `forward`."""
        if self.causal:
            # All ones on purpose: right pads come after every real token, so causality alone hides them.
            mask = torch.ones_like(input_ids)
            hidden = self.trunk(input_ids=input_ids, attention_mask=mask, use_cache=False).last_hidden_state
            rows = torch.arange(len(lengths), device=lengths.device) if rows is None else rows
            if self.pooling == "mean":
                sums = hidden.to(self.head.weight.dtype).cumsum(1)
                return sums[rows, lengths - 1] / lengths[:, None]
            return hidden[rows, lengths - 1].to(self.head.weight.dtype)
        mask = (torch.arange(input_ids.shape[1], device=lengths.device) < lengths[:, None]).to(input_ids.dtype)
        hidden = self.trunk(input_ids=input_ids, attention_mask=mask).last_hidden_state.to(self.head.weight.dtype)
        if self.pooling == "first":
            return hidden[:, 0]
        real = hidden.masked_fill(mask[:, :, None] == 0, 0.0)
        return real.sum(dim=1) / lengths[:, None]

    def score_features(self, features: Tensor) -> Tensor:
        """The scores (N,) of what `features` returns, (N, D)."""
        return self.head(features).squeeze(-1) * self.gain + self.bias


@torch.no_grad()
def reads_left_to_right(trunk: PreTrainedModel) -> bool:
    """Whether the state of a token depends on no later one; found by changing the last of three tokens.

    The two texts are read one after the other, not as a batch: the rows of a batch may be divided among threads, which
    then round in other ways.
    """
    training = trunk.training
    trunk.eval()
    try:
        a, b = (
            trunk(input_ids=row, attention_mask=torch.ones_like(row)).last_hidden_state[0, :2]
            for row in torch.tensor([[[0, 1, 2]], [[0, 1, 3]]], device=trunk.device)
        )
    finally:
        trunk.train(training)
    rounding = ROUNDING * torch.finfo(a.dtype).eps * a.abs().max()
    return bool((a - b).abs().max() <= rounding)
