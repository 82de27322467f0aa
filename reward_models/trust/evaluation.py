"""The evidence for and against a reward model, from preferences that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from lm_env.errors import ConfigurationError
from reward_models.preferences.encoding import score_records
from reward_models.preferences.inspection import inspect_preferences
from reward_models.preferences.recipe import digest
from reward_models.preferences.records.preference import Preference
from reward_models.trust.baselines import Baselines
from reward_models.trust.curves import LearningPoint, OverOptimization
from reward_models.trust.degenerate import Degenerate, rank_degenerate
from reward_models.trust.statistics import (
    Share,
    calibration_bins,
    correlation,
    expected_calibration_error,
    fitted_scale,
    spearman,
    wilson,
)

__all__ = ["LengthBin", "Trust", "evaluate_reward"]


@dataclass(frozen=True)
class LengthBin:
    """Accuracy on comparisons whose better response is longer by `low` to `high` characters."""

    low: int
    high: int
    accuracy: Share


@dataclass(frozen=True)
class Trust:
    """The measurements; accuracies count equal scores as half right, and leave out what people judged a tie.

    Attributes:
        records, prompts, comparisons: how many there were.
        accuracy: on comparisons in which one response is better.
        length_baseline, word_baseline: the accuracy of the baselines on the same comparisons; None without any.
        ties: comparisons that people called ties.
        tie_gap, decided_gap: the mean absolute difference of scores on ties, and on the others.
        best_of: the share of records with K >= 3 responses in which the best one has the highest score.
        best_of_chance: what guessing gives there.
        calibration: bins (mean predicted probability, share right, count) of the scores before normalization.
        ece: expected calibration error of the scores as trained.
        scale: the factor on the scores that would fit best; below 1 the model is too sure.
        ece_scaled: the error with that factor.
        by_length: accuracy by the difference in length.
        length_correlation: Spearman's, of score and characters.
        rating_correlation: (Pearson's, Spearman's) of score and rating; None without ratings.
        annotator_accuracy: by annotator, those with at least 20 comparisons.
        degenerate: how texts that nobody would prefer are ranked.
        leaked: records whose prompt (or text) was in the training data; None where that is not known.
        longer_wins: the share of the comparisons in which people prefer the longer response.
    """

    records: int
    prompts: int
    comparisons: int
    accuracy: Share | None
    length_baseline: Share | None
    word_baseline: Share | None
    ties: int
    tie_gap: float | None
    decided_gap: float | None
    best_of: Share | None
    best_of_chance: float | None
    calibration: list[tuple[float, float, int]]
    ece: float | None
    scale: float | None
    ece_scaled: float | None
    by_length: list[LengthBin]
    length_correlation: float | None
    rating_correlation: tuple[float | None, float | None] | None
    annotator_accuracy: dict[str, Share]
    degenerate: list[Degenerate]
    leaked: int | None
    longer_wins: float | None
    curve: list[LearningPoint] = field(default_factory=list)
    gold: OverOptimization | None = None

    def doubts(self) -> list[str]:
        """Reasons not to trust it, one sentence each; an empty list says only that no measurement speaks against it."""
        found = []
        if self.leaked:
            found.append(f"{self.leaked} of {self.records} records are of prompts that it was trained on.")
        accuracy = self.accuracy
        if accuracy is not None:
            if accuracy.low <= 0.5:
                found.append(f"Its accuracy may be chance: the interval goes from {accuracy.low:.3f}.")
            for name, other in (("length", self.length_baseline), ("words", self.word_baseline)):
                if other is not None and accuracy.mean <= other.mean:
                    found.append(
                        f"It does not beat a score of the {name} alone: {accuracy.mean:.3f}, {other.mean:.3f}."
                    )
            if accuracy.count < 100:
                found.append(f"{accuracy.count} comparisons are few: the interval is wide.")
        if self.best_of is not None and self.best_of_chance is not None and self.best_of.low <= self.best_of_chance:
            found.append(f"It may find the best response no more often than chance, {self.best_of_chance:.3f}.")
        if self.ece_scaled is not None and self.ece_scaled > 0.1:
            found.append(f"No rescaling makes its differences probabilities: the error stays {self.ece_scaled:.3f}.")
        if self.length_correlation is not None and abs(self.length_correlation) > 0.5:
            found.append(f"Its score follows the length: their rank correlation is {self.length_correlation:+.2f}.")
        for kind in self.degenerate:
            if kind.beats > 0.25:
                found.append(f"A degenerate text ({kind.name}) scores above the real one in {kind.beats:.0%} of cases.")
        if self.gold is not None and self.gold.falls():
            found.append("The gold score of the best of n falls while its own score still rises: over-optimization.")
        return found

    def as_dict(self) -> dict[str, Any]:
        """JSON."""
        return {**asdict(self), "doubts": self.doubts()}


def evaluate_reward(
    reward: Callable[..., Any],
    records: Sequence[Preference],
    *,
    baselines: Baselines | None = None,
    training_digests: set[str] | None = None,
    gain: float | None = None,
) -> Trust:
    """Measure a reward function on preferences of people.

    Args:
        reward: any reward function.  Texts are shown to it as they are, chats as its tokenizer renders them.
        records: with rankings; single rated responses say nothing here, pair them first (`pair_ratings`).
        baselines: those fitted to the training data, see `fit_baselines`.
        training_digests: of the records trained on (`digest`), to find leaks.
        gain: what the scores were multiplied by after the training, so that their differences are log-odds when
            divided by it; default: a `RewardModel`'s own, else 1.

    Raises:
        ConfigurationError: no record compares anything.
        RewardError, RewardValueError: the reward function failed.
    """
    tokenizer = getattr(reward, "tokenizer", None)
    compared = [record for record in records if record.outcomes()]
    if not compared:
        raise ConfigurationError(
            "the records hold no comparison of two responses: for single rated responses name the least difference"
            " that counts, pair_ratings (--pair-ratings)"
        )
    scores = score_records(reward, compared, tokenizer)
    judged = [(r, s, o) for r, s in zip(compared, scores, strict=True) for o in r.outcomes()]
    decided = [(r, s, o) for r, s, o in judged if not o.tied]
    margins = np.array([s[o.better] - s[o.worse] for _, s, o in decided])
    right = (margins > 0) + 0.5 * (margins == 0)
    gaps = [abs(s[o.better] - s[o.worse]) for _, s, o in judged if o.tied]
    log_odds = margins / (gain if gain is not None else _gain(reward))
    scale = fitted_scale(log_odds) if len(margins) else None
    facts = inspect_preferences(compared)
    best = [
        (_share_of_first(s, r.best), 1 / len(s))
        for r, s in zip(compared, scores, strict=True)
        if r.best is not None and len(s) > 2
    ]
    return Trust(
        records=len(compared),
        prompts=facts.prompts,
        comparisons=len(judged),
        accuracy=wilson(right),
        length_baseline=_baseline(None if baselines is None else baselines.lengths, decided),
        word_baseline=_baseline(None if baselines is None else baselines.words, decided),
        ties=len(gaps),
        tie_gap=float(np.mean(gaps)) if gaps else None,
        decided_gap=float(np.mean(np.abs(margins))) if len(margins) else None,
        best_of=wilson([hit for hit, _ in best]),
        best_of_chance=float(np.mean([chance for _, chance in best])) if best else None,
        calibration=calibration_bins(log_odds),
        ece=expected_calibration_error(log_odds) if len(margins) else None,
        scale=scale,
        ece_scaled=None if scale is None else expected_calibration_error(log_odds * scale),
        by_length=_by_length(decided, right),
        length_correlation=_with_length(compared, scores),
        rating_correlation=_with_ratings(compared, scores),
        annotator_accuracy=_by_annotator(decided, right),
        degenerate=rank_degenerate(reward, compared, tokenizer),
        leaked=None if not training_digests else sum(digest(r) in training_digests for r in compared),
        longer_wins=facts.longer_wins,
    )


def _gain(reward: Any) -> float:
    network = getattr(reward, "network", None)
    if network is None and hasattr(reward, "members"):
        return float(np.mean([float(member.network.gain) for member in reward.members]))
    return float(getattr(network, "gain", 1.0))


def _share_of_first(scores: np.ndarray, best: int) -> float:
    """1 where response `best` alone has the highest score, 1/n where n responses share it, else 0."""
    highest = scores == scores.max()
    return float(highest[best] / highest.sum())


def _baseline(score: Callable[[Sequence[str]], np.ndarray] | None, decided: Sequence[Any]) -> Share | None:
    if score is None or not decided:
        return None
    margins = score([r.responses[o.better] for r, _, o in decided]) - score(
        [r.responses[o.worse] for r, _, o in decided]
    )
    return wilson((margins > 0) + 0.5 * (margins == 0))


def _by_length(decided: Sequence[Any], right: np.ndarray, bins: int = 5) -> list[LengthBin]:
    """Bins of about equal counts by how many characters longer the better response is."""
    if not decided:
        return []
    longer = np.array([len(r.responses[o.better]) - len(r.responses[o.worse]) for r, _, o in decided])
    edges = np.unique(np.quantile(longer, np.linspace(0, 1, bins + 1), method="nearest"))
    found = []
    for i in range(max(1, len(edges) - 1)):
        low, high = edges[i], edges[min(i + 1, len(edges) - 1)]
        last = i >= len(edges) - 2
        inside = (longer >= low) & ((longer <= high) if last else (longer < high))
        share = wilson(right[inside])
        if share is not None:
            found.append(LengthBin(int(low), int(high), share))
    return found


def _with_length(records: Sequence[Preference], scores: Sequence[np.ndarray]) -> float | None:
    lengths = {}
    for record, own in zip(records, scores, strict=True):
        for response, score in zip(record.responses, own, strict=True):
            lengths[str(record.prompt), response] = (len(response), score)
    x, y = np.array(list(lengths.values())).T
    return spearman(x, y)


def _with_ratings(
    records: Sequence[Preference], scores: Sequence[np.ndarray]
) -> tuple[float | None, float | None] | None:
    found = {}
    for record, own in zip(records, scores, strict=True):
        for response, rating, score in zip(record.responses, record.ratings or (), own, strict=False):
            found[str(record.prompt), response] = (rating, score)
    if not found:
        return None
    x, y = np.array(list(found.values())).T
    return correlation(x, y), spearman(x, y)


def _by_annotator(decided: Sequence[Any], right: np.ndarray, least: int = 20) -> dict[str, Share]:
    found: dict[str, list[float]] = {}
    for (record, _, _), hit in zip(decided, right, strict=True):
        if record.annotator is not None:
            found.setdefault(record.annotator, []).append(float(hit))
    shares = {name: wilson(hits) for name, hits in found.items() if len(hits) >= least}
    return {name: share for name, share in shares.items() if share is not None}
