"""From comparisons of responses to a trained reward model."""

from __future__ import annotations

from reward_models.preferences.losses import pairwise_loss
from reward_models.preferences.model import RewardModel
from reward_models.preferences.network import ScalarHeadModel
from reward_models.preferences.records import Comparison, label_comparisons
from reward_models.preferences.train import TrainingReport, train_reward_model

__all__ = [
    "Comparison",
    "RewardModel",
    "ScalarHeadModel",
    "TrainingReport",
    "label_comparisons",
    "pairwise_loss",
    "train_reward_model",
]
