"""The network of a reward model of spans: a trunk, and a logit for each kind of fault at each segment.

Shapes: B rows, L tokens of the longest row, D hidden, S segments of all rows, K kinds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lm_env.models.inputs import pad_right
from reward_models.preferences.network import reads_left_to_right

__all__ = ["Row", "SpanHeadModel", "segments"]

Row = tuple[list[int], list[tuple[int, int]]]
"""The token ids of a text, and the first and the last token of each of its segments; (-1, -1): it cannot be read."""

_CLAUSE = re.compile(r"[^.!?;:,\n]*[.!?;:,\n]+[\"')\]]*\s*|[^.!?;:,\n]+$")


def segments(text: str) -> list[tuple[int, int]]:
    """Cut a text behind its punctuation marks and line breaks, into clauses; they make up the whole text.

    A mark within a word or a number ("3.5") does not end a clause.

    Returns:
        (start, end) of each, characters.
    """
    ends = [m.end() for m in _CLAUSE.finditer(text) if m.end() == len(text) or text[m.end() - 1].isspace()]
    if text and (not ends or ends[-1] != len(text)):
        ends.append(len(text))
    return list(zip([0, *ends[:-1]], ends, strict=True)) if ends else []


class SpanHeadModel(nn.Module):
    """A transformer trunk and a linear head with K outputs, read at segments.

    Of a trunk that reads from left to right the hidden state of a segment's last token is read, of an encoder the mean
    over the segment's tokens.  The head starts with standard deviation 1/sqrt(D + 1) and bias 0.

    Attributes:
        trunk: a transformers base model.
        causal: whether the trunk reads from left to right.
        head: (D) -> (K).
        gain, bias: fp32 (K,) buffers, which bring the logits of reference texts to mean 0 and standard deviation 1.
    """

    gain: Tensor
    bias: Tensor

    def __init__(self, trunk: PreTrainedModel, kinds: int, *, seed: int = 0) -> None:
        super().__init__()
        config = trunk.config.get_text_config()
        width = getattr(config, "word_embed_proj_dim", None) or config.hidden_size
        self.trunk = trunk
        self.causal = reads_left_to_right(trunk)
        self.head = nn.Linear(width, kinds)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.head.weight, std=1 / math.sqrt(width + 1), generator=generator)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("gain", torch.ones(kinds))
        self.register_buffer("bias", torch.zeros(kinds))
        self.to(trunk.device)

    def forward(self, rows: Sequence[Row]) -> Tensor:
        """The logits (S, K) of all segments of some rows that can be read, row after row."""
        ids, lengths = pad_right([row for row, _ in rows], self.head.weight.device)
        if self.causal:  # right pads come after every real token, so causality alone hides them
            mask = torch.ones_like(ids)
        else:
            mask = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).to(ids.dtype)
        hidden = self.trunk(input_ids=ids, attention_mask=mask).last_hidden_state.to(self.head.weight.dtype)
        known = [(i, first, last) for i, (_, places) in enumerate(rows) for first, last in places if first >= 0]
        if not known:
            return hidden.new_zeros((0, self.head.out_features))
        if self.causal:
            return self.head(torch.stack([hidden[i, last] for i, _, last in known]))
        return self.head(torch.stack([hidden[i, first : last + 1].mean(0) for i, first, last in known]))
