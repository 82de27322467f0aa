"""Reward models of marked spans: trained on what people have marked in texts, paid segment by segment."""

from __future__ import annotations

from reward_models.preferences.marked.model import SpanRewardModel
from reward_models.preferences.marked.network import SpanHeadModel, segments
from reward_models.preferences.marked.recipe import train_on_marks
from reward_models.preferences.marked.train import (
    SpanReport,
    SpanShare,
    marked_segments,
    train_span_reward_model,
)

__all__ = [
    "SpanHeadModel",
    "SpanReport",
    "SpanRewardModel",
    "SpanShare",
    "marked_segments",
    "segments",
    "train_on_marks",
    "train_span_reward_model",
]
