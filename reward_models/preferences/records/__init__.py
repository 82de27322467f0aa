"""Judgements of people as typed records: rankings of K responses, and comparisons of two with their tokens."""

from __future__ import annotations

from reward_models.preferences.records.comparison import Comparison, label_comparisons
from reward_models.preferences.records.preference import LabelledSpan, Preference, prompt_key, ranking_outcomes

__all__ = ["Comparison", "LabelledSpan", "Preference", "label_comparisons", "prompt_key", "ranking_outcomes"]
