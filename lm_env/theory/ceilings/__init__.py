"""The ceiling: the optimum of E[score] - beta KL on any text, from samples of the reference, particles or rejection."""

from __future__ import annotations

from lm_env.theory.ceilings.best_of_n import BestOfN, best_of_n
from lm_env.theory.ceilings.estimate import Estimate
from lm_env.theory.ceilings.particles import Twist, particle_ceiling, run_particles
from lm_env.theory.ceilings.reference_samples import sample_reference_scores
from lm_env.theory.ceilings.task_ceiling import enough_reference_scores, task_ceiling
from lm_env.theory.ceilings.tilting import (
    Ceiling,
    FrontierPoint,
    ceiling,
    frontier,
    pass_rate_ceiling,
    upper_bound,
)

__all__ = [
    "BestOfN",
    "Ceiling",
    "Estimate",
    "FrontierPoint",
    "Twist",
    "best_of_n",
    "ceiling",
    "enough_reference_scores",
    "frontier",
    "particle_ceiling",
    "pass_rate_ceiling",
    "run_particles",
    "sample_reference_scores",
    "task_ceiling",
    "upper_bound",
]
