"""Which of several models is better: win rates, at equal length too, Bradley-Terry and Elo, all with intervals."""

from __future__ import annotations

from reward_models.compare.bradley_terry import Strength, bradley_terry
from reward_models.compare.outcomes import Outcomes, outcomes_from_records, outcomes_from_scores
from reward_models.compare.pairs import write_pairs
from reward_models.compare.picture import plot_ranking
from reward_models.compare.ranking import Ranking, rank, rank_contestants
from reward_models.compare.responses import Contestant, SamplingOptions, gather
from reward_models.compare.win_rates import PairResult, length_controlled, pair_result, position_share

__all__ = [
    "Contestant",
    "Outcomes",
    "PairResult",
    "Ranking",
    "SamplingOptions",
    "Strength",
    "bradley_terry",
    "gather",
    "length_controlled",
    "outcomes_from_records",
    "outcomes_from_scores",
    "pair_result",
    "plot_ranking",
    "position_share",
    "rank",
    "rank_contestants",
    "write_pairs",
]
