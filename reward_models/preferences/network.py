"""The network of a reward model: a causal LM's trunk, and a scalar read at the last token.

Rows are right-padded: no real token attends to a pad, and the last token is found by length.

Shapes: B rows, L tokens of the longest row, D hidden.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

__all__ = ["ScalarHeadModel"]


class ScalarHeadModel(nn.Module):
    """A transformer trunk and a linear head: one score per row.

    The head starts with standard deviation 1/sqrt(D + 1) and bias 0 (Ziegler et al. 2019,
    arXiv:1909.08593), in fp32 whatever the trunk is in.

    Attributes:
        trunk: a transformers base model, `last_hidden_state` (B, L, D) out.
        head: (D) -> (1).
        gain, bias: fp32 scalar buffers; the score is gain * head + bias.
    """

    gain: Tensor
    bias: Tensor

    def __init__(self, trunk: PreTrainedModel, *, seed: int = 0) -> None:
        super().__init__()
        config = trunk.config.get_text_config()
        width = getattr(config, "word_embed_proj_dim", None) or config.hidden_size  # OPT may project at the end
        self.trunk = trunk
        self.head = nn.Linear(width, 1)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.head.weight, std=1 / math.sqrt(width + 1), generator=generator)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("gain", torch.ones(()))
        self.register_buffer("bias", torch.zeros(()))
        self.to(trunk.device)

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Score rows.

        Args:
            input_ids: int64 (B, L), right-padded with any token.
            lengths: int64 (B,), each in 1..L.

        Returns:
            float32 (B,).
        """
        # All ones on purpose: right pads come after every real token, so causality alone hides them.
        mask = torch.ones_like(input_ids)
        hidden = self.trunk(input_ids=input_ids, attention_mask=mask, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(lengths), device=lengths.device), lengths - 1]
        return self.head(last.to(self.head.weight.dtype)).squeeze(-1) * self.gain + self.bias
