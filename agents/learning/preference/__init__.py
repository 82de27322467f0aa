"""What agents that learn from comparisons share: the loss of a comparison, and records of preferences as tokens."""

from __future__ import annotations

from agents.learning.preference.judged_texts import JudgedBatch, JudgedTexts, encode_judged
from agents.learning.preference.loss import PreferenceLoss, preference_loss, response_sums

__all__ = ["JudgedBatch", "JudgedTexts", "PreferenceLoss", "encode_judged", "preference_loss", "response_sums"]
