"""What is to be written and how it is scored: the task, its reward, its KL penalty."""

from __future__ import annotations

from lm_env.objective.kl import AdaptiveKL, FixedKL, KLController, full_kl, k1, k2, k3
from lm_env.objective.patience import PatientReward
from lm_env.objective.rewards import RewardFunction, call_reward, compose_rewards, score_responses
from lm_env.objective.scores import Scores, Span
from lm_env.objective.scoring import measure_kl, paid_scores, raw_scores, score_episodes
from lm_env.objective.task import Task, TaskOptions
from lm_env.objective.wrapping import Causal

__all__ = [
    "AdaptiveKL",
    "Causal",
    "FixedKL",
    "KLController",
    "PatientReward",
    "RewardFunction",
    "Scores",
    "Span",
    "Task",
    "TaskOptions",
    "call_reward",
    "compose_rewards",
    "full_kl",
    "k1",
    "k2",
    "k3",
    "measure_kl",
    "paid_scores",
    "raw_scores",
    "score_episodes",
    "score_responses",
]
