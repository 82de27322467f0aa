"""Whether a reward model can be trusted: accuracy, calibration, shortcuts, degenerate texts, over-optimization."""

from __future__ import annotations

from reward_models.trust.baselines import Baselines, WordBaseline, fit_baselines
from reward_models.trust.curves import LearningPoint, OverOptimization, learning_curve, over_optimization
from reward_models.trust.degenerate import Degenerate, rank_degenerate
from reward_models.trust.evaluation import Trust, evaluate_reward
from reward_models.trust.page import write_page
from reward_models.trust.statistics import Share, expected_calibration_error, spearman, wilson

__all__ = [
    "Baselines",
    "Degenerate",
    "LearningPoint",
    "OverOptimization",
    "Share",
    "Trust",
    "WordBaseline",
    "evaluate_reward",
    "expected_calibration_error",
    "fit_baselines",
    "learning_curve",
    "over_optimization",
    "rank_degenerate",
    "spearman",
    "wilson",
    "write_page",
]
