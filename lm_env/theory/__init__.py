"""What is known exactly: enumerable token MDPs, their optima, and agents held against them."""

from __future__ import annotations

from lm_env.theory.ceilings import (
    BestOfN,
    Ceiling,
    Estimate,
    FrontierPoint,
    Twist,
    best_of_n,
    ceiling,
    enough_reference_scores,
    frontier,
    particle_ceiling,
    pass_rate_ceiling,
    run_particles,
    sample_reference_scores,
    task_ceiling,
    upper_bound,
)
from lm_env.theory.check_agent import AgentCheck, check_agent, parse_mdp
from lm_env.theory.loss import LossBatch, LossCheck, check_loss
from lm_env.theory.objectives import Objective, fixed_point
from lm_env.theory.results import ExactEvaluation, Optimum
from lm_env.theory.token_env import make_token_env, token_task_options
from lm_env.theory.token_mdp import TokenMDP

__all__ = [
    "AgentCheck",
    "BestOfN",
    "Ceiling",
    "Estimate",
    "ExactEvaluation",
    "FrontierPoint",
    "LossBatch",
    "LossCheck",
    "Objective",
    "Optimum",
    "TokenMDP",
    "Twist",
    "best_of_n",
    "ceiling",
    "check_agent",
    "check_loss",
    "enough_reference_scores",
    "fixed_point",
    "frontier",
    "make_token_env",
    "parse_mdp",
    "particle_ceiling",
    "pass_rate_ceiling",
    "run_particles",
    "sample_reference_scores",
    "task_ceiling",
    "token_task_options",
    "upper_bound",
]
