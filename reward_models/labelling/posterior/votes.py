"""Judgements of several annotators as arrays of votes on pairs of responses.

A ranking of K responses is a vote on each of its K (K - 1) / 2 pairs.  It holds at most K - 1 independent comparisons,
so each vote has the weight 2 / K: a comparison of two counts 1, a ranking of four counts 3 in all.

Shapes: M votes, U units (pairs of responses that somebody judged), W annotators.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from reward_models.preferences.records.preference import Preference, prompt_key, ranking_outcomes

__all__ = ["FIRST", "SECOND", "TIE", "Judgement", "Unit", "Votes", "votes_of", "votes_of_records"]

FIRST, SECOND, TIE = 0, 1, 2
"""What a vote can say of a unit (item, i, j), i < j: response i is better, response j is, or neither."""


@dataclass(frozen=True)
class Judgement:
    """What one annotator said of some responses of an item.

    Attributes:
        item: whatever names the item.
        responses: indexes of the responses of the item that were judged.
        ranking: the rank of each of them, as in `Preference`.
        annotator: who judged.
    """

    item: Hashable
    responses: Sequence[int]
    ranking: Sequence[int | None]
    annotator: str


@dataclass(frozen=True)
class Unit:
    """A pair of responses of an item, `first` < `second`."""

    item: Hashable
    first: int
    second: int


@dataclass(frozen=True)
class Votes:
    """Votes on units.

    Attributes:
        units: (U,) what was judged.
        annotators: (W,) names.
        unit: int64 (M,), index of a unit.
        annotator: int64 (M,), index of an annotator.
        value: int64 (M,), FIRST, SECOND or TIE.
        weight: float64 (M,), how much the vote counts, at most 1.
    """

    units: tuple[Unit, ...]
    annotators: tuple[str, ...]
    unit: np.ndarray
    annotator: np.ndarray
    value: np.ndarray
    weight: np.ndarray

    def table(self) -> np.ndarray:
        """int64 (W, U): the value each annotator gave each unit, the last one where there are several; -1: none."""
        table = np.full((len(self.annotators), len(self.units)), -1, dtype=np.int64)
        table[self.annotator, self.unit] = self.value
        return table


def votes_of(judgements: Iterable[Judgement]) -> Votes:
    """The votes that judgements hold."""
    units: dict[Unit, int] = {}
    names: dict[str, int] = {}
    rows: list[tuple[int, int, int, float]] = []
    for judgement in judgements:
        who = names.setdefault(judgement.annotator, len(names))
        weight = 2 / len(judgement.responses) if len(judgement.responses) > 1 else 1.0
        for better, worse, tied in ranking_outcomes(judgement.ranking):
            i, j = judgement.responses[better], judgement.responses[worse]
            unit = Unit(judgement.item, min(i, j), max(i, j))
            value = TIE if tied else FIRST if i < j else SECOND
            rows.append((units.setdefault(unit, len(units)), who, value, weight))
    array = np.array(rows, dtype=np.float64).reshape(-1, 4)
    numbers = array[:, :3].astype(np.int64)
    return Votes(tuple(units), tuple(names), numbers[:, 0], numbers[:, 1], numbers[:, 2], array[:, 3])


def votes_of_records(records: Iterable[Preference]) -> Votes:
    """The votes of records of any source; those without an annotator count as one annotator, named "".

    Equal texts to equal prompts are the same responses, so that a unit is found again in another record.
    """
    places: dict[str, dict[str, int]] = {}
    judgements = []
    for record in records:
        known = places.setdefault(prompt_key(record.prompt), {})
        indexes = [known.setdefault(response, len(known)) for response in record.responses]
        if len(set(indexes)) == len(indexes):
            who = record.annotator or ""
            judgements.append(Judgement(prompt_key(record.prompt), indexes, record.ranking, who))
    return votes_of(judgements)
