"""AttentionWindow: how far back the layers of a model look, and the masks that say so.

Shapes: k rows of one new token each, W columns of keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["AttentionWindow", "attention_window", "layer_kinds"]

WHOLE_TEXT = {"full_attention", "global"}
WINDOWED = {"sliding_attention", "local"}


@dataclass(frozen=True)
class AttentionWindow:
    """The window of a model's layers, as far as texts of some length notice it."""

    reach: int | None
    """Tokens that a layer with a window sees, the newest included; None where nothing is ever hidden."""
    mixed: bool = False
    """Other layers see the whole text: transformers then takes a mask for each type of layer."""
    own: bool = False
    """The model hides what lies beyond the window by itself, counting back from the last key (GPT-Neo)."""

    def hides(self, width: int) -> bool:
        """Whether the newest of `width` tokens misses some of them."""
        return self.reach is not None and width > self.reach

    def mask(self, positions: Tensor, width: int) -> Tensor | dict[str, Tensor]:
        """Which of `width` keys, at columns 0, 1, ..., a token at each of the `positions (k,)` attends to.

        Returns:
            bool (k, 1, 1, W), or one for each type of layer.
        """
        columns = torch.arange(width, device=positions.device)
        seen = (columns <= positions[:, None])[:, None, None]
        if self.reach is None or self.own or not self.hides(width):
            return seen
        near = seen & (columns > positions[:, None] - self.reach)[:, None, None]
        return {"full_attention": seen, "sliding_attention": near} if self.mixed else near


def layer_kinds(config: Any) -> set[str]:
    """The types of attention that the layers of a text configuration name; none where all are alike."""
    return set(getattr(config, "layer_types", None) or getattr(config, "attention_layers", None) or ())


def attention_window(config: Any, max_length: float) -> AttentionWindow:
    """The window of a text configuration, for texts of at most `max_length` tokens."""
    kinds = layer_kinds(config)
    windowed = bool(kinds & WINDOWED) or getattr(config, "layer_types", None) is None
    reach = getattr(config, "window_size" if "local" in kinds else "sliding_window", None) if windowed else None
    if not reach or reach >= max_length:
        return AttentionWindow(None)
    return AttentionWindow(int(reach), mixed=bool(kinds & WHOLE_TEXT), own="local" in kinds)
