"""A ranking of models: strengths, win rates against all and in pairs, mean scores and lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from reward_models.compare.bradley_terry import Strength, bradley_terry
from reward_models.compare.outcomes import Outcomes, outcomes_from_scores
from reward_models.compare.responses import Contestant
from reward_models.compare.win_rates import PairResult, pair_result, position_share
from reward_models.trust.statistics import Share, wilson

__all__ = ["Ranking", "rank", "rank_contestants"]


@dataclass(frozen=True)
class Ranking:
    """How M models compare.

    Attributes:
        strengths: of each model, the best one first.
        win_rates: name -> the win rate against all others it was compared with.
        pairs: every two models that were compared.
        prompts: how many prompts.
        mean_scores: name -> (mean score, its standard error over prompts); empty where no judge gave scores.
        mean_lengths: name -> mean characters of a response; empty where only judgements are known.
        first_shown_wins: how often people preferred what they saw first; None where nobody did, or it is not known.
    """

    strengths: list[Strength]
    win_rates: dict[str, Share]
    pairs: list[PairResult]
    prompts: int
    mean_scores: dict[str, tuple[float, float]]
    mean_lengths: dict[str, float]
    first_shown_wins: Share | None

    def as_dict(self) -> dict[str, Any]:
        """JSON."""
        content = asdict(self)
        for row, strength in zip(content["strengths"], self.strengths, strict=True):
            row["elo"], row["elo_low"], row["elo_high"] = strength.elo
        content["mean_scores"] = {n: {"mean": m, "error": e} for n, (m, e) in self.mean_scores.items()}
        return content


def rank(outcomes: Outcomes, *, resamples: int = 1000, seed: int = 0) -> Ranking:
    """Strengths and win rates from comparisons.

    Raises:
        ConfigurationError: the models fall into groups that were never compared with each other.
    """
    strengths = sorted(bradley_terry(outcomes, resamples=resamples, seed=seed), key=lambda s: -s.mean)
    return Ranking(
        strengths,
        {name: _against_all(outcomes, i) for i, name in enumerate(outcomes.names)},
        [pair_result(outcomes, a, b) for a, b in outcomes.pairs()],
        len(np.unique(outcomes.prompt)),
        {},
        {},
        position_share(outcomes),
    )


def rank_contestants(
    contestants: Sequence[Contestant], *, tie_margin: float = 0.0, resamples: int = 1000, seed: int = 0
) -> Ranking:
    """Strengths and win rates from the scores of a judge.

    Raises:
        ConfigurationError: fewer than two models, or one that was not judged.
    """
    scores = np.array([contestant.scores for contestant in contestants], dtype=np.float64)
    lengths = np.array([[[len(text) for text in own] for own in c.responses] for c in contestants])
    names = [contestant.name for contestant in contestants]
    found = rank(outcomes_from_scores(names, scores, lengths, tie_margin=tie_margin), resamples=resamples, seed=seed)
    means = scores.mean(axis=2)
    prompts = means.shape[1]
    errors = means.std(axis=1, ddof=1) / np.sqrt(prompts) if prompts > 1 else np.full(len(names), np.nan)
    return Ranking(
        found.strengths,
        found.win_rates,
        found.pairs,
        found.prompts,
        {name: (float(m), float(e)) for name, m, e in zip(names, means.mean(axis=1), errors, strict=True)},
        {name: float(own.mean()) for name, own in zip(names, lengths, strict=True)},
        None,
    )


def _against_all(outcomes: Outcomes, model: int) -> Share:
    """The win rate of a model over all others with Wilson's interval; the mean result on a prompt is one trial."""
    first, second = outcomes.first == model, outcomes.second == model
    chosen = first | second
    result = np.where(first, outcomes.result, 1.0 - outcomes.result)[chosen]
    weights = outcomes.weights()[chosen]
    _, prompt = np.unique(outcomes.prompt[chosen], return_inverse=True)
    share = wilson(np.bincount(prompt, weights=weights * result) / np.bincount(prompt, weights=weights))
    assert share is not None
    return share
