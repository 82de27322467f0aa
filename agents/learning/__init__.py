"""The parts of an update: rollouts, policy, critic, advantages, losses, metrics, the updater."""

from __future__ import annotations

from agents.learning.advantages import gae, whiten
from agents.learning.losses import clip_fraction, clipped_policy_loss, clipped_value_loss, entropy
from agents.learning.metrics import Means, explained_variance
from agents.learning.options import UpdaterConfig, Updating
from agents.learning.policy import TokenEvaluation, ValueHeadPolicy
from agents.learning.rollout import Rollout, collect
from agents.learning.updater import MicroBatch, Updater, UpdateStep

__all__ = [
    "Means",
    "MicroBatch",
    "Rollout",
    "TokenEvaluation",
    "UpdateStep",
    "Updater",
    "UpdaterConfig",
    "Updating",
    "ValueHeadPolicy",
    "clip_fraction",
    "clipped_policy_loss",
    "clipped_value_loss",
    "collect",
    "entropy",
    "explained_variance",
    "gae",
    "whiten",
]
