"""Reward functions: rules, a sentiment lexicon, classifiers, trained preferences, and their sums.

Every reward is a callable `reward(prompts, responses, **columns) -> B floats`
(`lm_env.objective.rewards.RewardFunction`).  Names are imported when they are first used, so that a rule does not
cost the import of transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reward_models.classifier import SequenceClassifierReward
    from reward_models.combine import Affine, Clipped, WeightedSum, effective_beta, normalize
    from reward_models.loading import load_reward
    from reward_models.preferences.ensemble import RewardEnsemble
    from reward_models.preferences.losses import pairwise_loss
    from reward_models.preferences.marked.model import SpanRewardModel
    from reward_models.preferences.model import RewardModel
    from reward_models.preferences.network import ScalarHeadModel
    from reward_models.preferences.reading import read_preferences, write_preferences
    from reward_models.preferences.recipe import Recipe, train_from_preferences
    from reward_models.preferences.records import Comparison, label_comparisons
    from reward_models.preferences.records.preference import Preference
    from reward_models.preferences.train import TrainingReport, train_reward_model
    from reward_models.rules import ExactMatch, Keyword, Length, Regex
    from reward_models.sentiment import LexiconSentiment
    from reward_models.serving import RemoteReward, RewardServer
    from reward_models.spans import KeywordSpans

__all__ = [
    "Affine",
    "Clipped",
    "Comparison",
    "ExactMatch",
    "Keyword",
    "KeywordSpans",
    "Length",
    "LexiconSentiment",
    "Preference",
    "Recipe",
    "Regex",
    "RemoteReward",
    "RewardEnsemble",
    "RewardModel",
    "RewardServer",
    "ScalarHeadModel",
    "SequenceClassifierReward",
    "SpanRewardModel",
    "TrainingReport",
    "WeightedSum",
    "effective_beta",
    "label_comparisons",
    "load_reward",
    "normalize",
    "pairwise_loss",
    "read_preferences",
    "train_from_preferences",
    "train_reward_model",
    "write_preferences",
]

_MODULE_OF = {
    **dict.fromkeys(["ExactMatch", "Keyword", "Length", "Regex"], "rules"),
    **dict.fromkeys(["Affine", "Clipped", "WeightedSum", "effective_beta", "normalize"], "combine"),
    "RewardModel": "preferences.model",
    "ScalarHeadModel": "preferences.network",
    **dict.fromkeys(["TrainingReport", "train_reward_model"], "preferences.train"),
    **dict.fromkeys(["Comparison", "label_comparisons"], "preferences.records"),
    **dict.fromkeys(["read_preferences", "write_preferences"], "preferences.reading"),
    **dict.fromkeys(["Recipe", "train_from_preferences"], "preferences.recipe"),
    "Preference": "preferences.records.preference",
    "RewardEnsemble": "preferences.ensemble",
    **dict.fromkeys(["RemoteReward", "RewardServer"], "serving"),
    "load_reward": "loading",
    "pairwise_loss": "preferences.losses",
    "KeywordSpans": "spans",
    "LexiconSentiment": "sentiment",
    "SequenceClassifierReward": "classifier",
    "SpanRewardModel": "preferences.marked.model",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
