"""From human preferences, in whatever file they lie, to a trained reward model."""

from __future__ import annotations

from reward_models.preferences.ensemble import RewardEnsemble
from reward_models.preferences.formats import FORMATS, Format
from reward_models.preferences.inspection import Inspection, inspect_preferences, leaks
from reward_models.preferences.losses import (
    best_of_loss,
    kwise_loss,
    pairwise_loss,
    plackett_luce_loss,
    regression_loss,
)
from reward_models.preferences.model import RewardModel
from reward_models.preferences.network import ScalarHeadModel
from reward_models.preferences.reading import Preferences, read_preferences, write_preferences
from reward_models.preferences.recipe import Recipe, Trained, train_from_preferences
from reward_models.preferences.records import Comparison, label_comparisons
from reward_models.preferences.records.preference import LabelledSpan, Preference
from reward_models.preferences.splitting import pair_ratings, split_records
from reward_models.preferences.train import TrainingReport, train_reward_model

__all__ = [
    "FORMATS",
    "Comparison",
    "Format",
    "Inspection",
    "LabelledSpan",
    "Preference",
    "Preferences",
    "Recipe",
    "RewardEnsemble",
    "RewardModel",
    "ScalarHeadModel",
    "Trained",
    "TrainingReport",
    "best_of_loss",
    "inspect_preferences",
    "kwise_loss",
    "label_comparisons",
    "leaks",
    "pair_ratings",
    "pairwise_loss",
    "plackett_luce_loss",
    "read_preferences",
    "regression_loss",
    "split_records",
    "train_from_preferences",
    "train_reward_model",
    "write_preferences",
]
