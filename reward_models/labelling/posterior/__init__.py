"""What judgements of several annotators tell: agreement, reliability, the better response, the best next question."""

from __future__ import annotations

from reward_models.labelling.posterior.agreement import (
    Agreement,
    Kappa,
    cohen_kappa,
    krippendorff_alpha,
    measure_agreement,
)
from reward_models.labelling.posterior.annotators import AnnotatorPosterior, fit_annotators, flip_rates
from reward_models.labelling.posterior.information import expected_information
from reward_models.labelling.posterior.strengths import Strengths, bradley_terry, fit_groups
from reward_models.labelling.posterior.votes import Judgement, Unit, Votes, votes_of, votes_of_records

__all__ = [
    "Agreement",
    "AnnotatorPosterior",
    "Judgement",
    "Kappa",
    "Strengths",
    "Unit",
    "Votes",
    "bradley_terry",
    "cohen_kappa",
    "expected_information",
    "fit_annotators",
    "fit_groups",
    "flip_rates",
    "krippendorff_alpha",
    "measure_agreement",
    "votes_of",
    "votes_of_records",
]
