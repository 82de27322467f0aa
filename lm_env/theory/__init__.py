"""What is known exactly: enumerable token MDPs, their optima, and agents held against them."""

from __future__ import annotations

from lm_env.theory.check_agent import AgentCheck, check_agent, parse_mdp
from lm_env.theory.objectives import Objective, fixed_point
from lm_env.theory.results import Evaluation, Optimum
from lm_env.theory.token_env import make_token_env, token_task_options
from lm_env.theory.token_mdp import TokenMDP

__all__ = [
    "AgentCheck",
    "Evaluation",
    "Objective",
    "Optimum",
    "TokenMDP",
    "check_agent",
    "fixed_point",
    "make_token_env",
    "parse_mdp",
    "token_task_options",
]
