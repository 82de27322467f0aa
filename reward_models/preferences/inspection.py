"""What is in a file of preferences: counts, ties, lengths, duplicates, contradictions, leaks into held-out prompts."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from reward_models.preferences.records.preference import Preference, prompt_key

__all__ = ["Inspection", "inspect_preferences", "leaks", "pair_choices"]


@dataclass(frozen=True)
class Inspection:
    """Counts over records.

    Attributes:
        records, prompts: how many, and how many distinct prompts.
        sizes: how many records have K responses, by K.
        comparisons: all comparisons that the rankings hold, ties included.
        ties: those in which neither response is better.
        duplicates: records that say exactly what an earlier one says, by the same annotator or by none.
        repeated: pairs of responses to one prompt that were judged more than once.
        contradictions: those of them that were judged both ways, ties aside.
        identical: comparisons of a response with itself.
        empty: responses without a character.
        longer_wins: the share of untied comparisons of unequal lengths in which the longer text won; None without any.
        lengths: quartiles of the characters of prompts, responses, better and worse responses.
        annotators: records per annotator.
        ratings: lowest, mean and highest rating; None without any.
        rated: records with ratings.
        spans: marked spans by kind.
    """

    records: int
    prompts: int
    sizes: dict[int, int]
    comparisons: int
    ties: int
    duplicates: int
    repeated: int
    contradictions: int
    identical: int
    empty: int
    longer_wins: float | None
    lengths: dict[str, tuple[int, int, int]]
    annotators: dict[str, int]
    ratings: tuple[float, float, float] | None
    rated: int
    spans: dict[str, int] = field(default_factory=dict)

    def agreement(self) -> float | None:
        """The share of repeated pairs that were never judged both ways; None where no pair was repeated."""
        return 1 - self.contradictions / self.repeated if self.repeated else None


def inspect_preferences(records: Sequence[Preference]) -> Inspection:
    """Count what is in the records; nothing is changed or left out."""
    votes = pair_choices(records)
    repeated = {pair: found for pair, found in votes.items() if sum(found.values()) > 1}
    outcomes = [(record, outcome) for record in records for outcome in record.outcomes()]
    decided = [(r, o) for r, o in outcomes if not o.tied]
    differences = [len(r.responses[o.better]) - len(r.responses[o.worse]) for r, o in decided]
    unequal = [d for d in differences if d]
    seen = Counter(_content(record) for record in records)
    lengths = {
        "prompt": [len(prompt_key(record.prompt)) for record in records],
        "response": [len(response) for record in records for response in record.responses],
        "better response": [len(r.responses[o.better]) for r, o in decided],
        "worse response": [len(r.responses[o.worse]) for r, o in decided],
    }
    ratings = [rating for record in records for rating in record.ratings or ()]
    return Inspection(
        records=len(records),
        prompts=len({prompt_key(record.prompt) for record in records}),
        sizes=dict(sorted(Counter(len(record.responses) for record in records).items())),
        comparisons=len(outcomes),
        ties=len(outcomes) - len(decided),
        duplicates=sum(count - 1 for count in seen.values()),
        repeated=len(repeated),
        contradictions=sum(found["first"] > 0 and found["second"] > 0 for found in repeated.values()),
        identical=sum(r.responses[o.better] == r.responses[o.worse] for r, o in outcomes),
        empty=sum(not response for record in records for response in record.responses),
        longer_wins=sum(d > 0 for d in unequal) / len(unequal) if unequal else None,
        lengths={name: _quartiles(values) for name, values in lengths.items() if values},
        annotators=dict(Counter(r.annotator for r in records if r.annotator is not None).most_common()),
        ratings=(min(ratings), float(np.mean(ratings)), max(ratings)) if ratings else None,
        rated=sum(record.ratings is not None for record in records),
        spans=dict(Counter(span.kind for record in records for span in record.spans).most_common()),
    )


def pair_choices(records: Iterable[Preference]) -> dict[tuple[str, str, str], Counter[str]]:
    """For each pair of distinct responses to a prompt, how often "first", "second" and "tie" were chosen.

    The key is (prompt, first response, second response), the responses in alphabetical order, so that it does not
    matter which one was on the left.
    """
    votes: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
    for record in records:
        prompt = prompt_key(record.prompt)
        for better, worse, tied in record.outcomes():
            a, b = record.responses[better], record.responses[worse]
            if a != b:
                first, second = sorted((a, b))
                votes[prompt, first, second]["tie" if tied else "first" if a == first else "second"] += 1
    return dict(votes)


def leaks(records: Sequence[Preference], held_out: Sequence[Preference]) -> tuple[int, int]:
    """(distinct prompts of `held_out` that are in `records` too; distinct responses to any prompt likewise).

    The empty prompt, which all texts share that were judged by themselves, is no leak.
    """
    prompts = {prompt_key(record.prompt) for record in records} - {""}
    responses = {response for record in records for response in record.responses} - {""}
    return (
        len(prompts & {prompt_key(record.prompt) for record in held_out}),
        len(responses & {response for record in held_out for response in record.responses}),
    )


def _content(record: Preference) -> str:
    """What a record says, whatever the order of its responses."""
    order = sorted(range(len(record.responses)), key=lambda i: (record.responses[i], str(record.ranking[i])))
    said: Any = [(record.responses[i], record.ranking[i], record.ratings and record.ratings[i]) for i in order]
    return hashlib.sha256(repr((prompt_key(record.prompt), said, record.annotator)).encode()).hexdigest()


def _quartiles(values: Sequence[int]) -> tuple[int, int, int]:
    low, middle, high = np.percentile(values, [25, 50, 75], method="nearest")
    return int(low), int(middle), int(high)
