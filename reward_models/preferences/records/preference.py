"""A judgement of people as one typed record: a prompt, K responses to it, and how they were ranked.

Every format that `read_preferences` knows becomes these records, and every way of training reads them.

Shapes: K ranked responses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any, NamedTuple, TypeAlias

from lm_env.errors import InvalidPreferenceError
from reward_models.preferences.records.comparison import Comparison

__all__ = ["LabelledSpan", "Outcome", "Preference", "PromptText", "prompt_key", "ranking_outcomes"]

PromptText: TypeAlias = "str | tuple[Mapping[str, str], ...]"
"""A text, or a chat: messages {"role": ..., "content": ...}, up to where the response begins."""


class Outcome(NamedTuple):
    """One comparison that a ranking holds: indexes of two responses; where they tie, their order means nothing."""

    better: int
    worse: int
    tied: bool


@dataclass(frozen=True)
class LabelledSpan:
    """A stretch of a response that a person has marked, with the kind of thing it is and how much it counts.

    Attributes:
        response: the index of the response.
        start, end: characters of that response, `end` not included.
        kind: what was marked: "irrelevant", "not factual", ...
        weight: how much it counts.
    """

    response: int
    start: int
    end: int
    kind: str
    weight: float = 1.0


@dataclass(frozen=True)
class Preference:
    """K responses to a prompt and how one annotator ranked them.

    Args:
        prompt: text or a chat; "" where people judged texts by themselves.
        responses: K texts, K >= 1.
        ranking: the rank of each response, smaller is better, equal ranks are ties; they are renumbered to
            0, 1, 2, ...  None: not ranked, which is below all ranked ones and not compared with the other
            unranked ones (a choice of the best of 4 is one 0 and three None).  May be left out where there
            are ratings, and for a single response.
        ratings: the score of each response on the annotators' own scale, higher is better.
        margin: by how much the better of two responses is better, for losses that use it.
        annotator: who judged.
        confidence: how sure the annotator was, on a scale of their own.
        columns: whatever else the row held; templates of a reward model can show it.
        spans: what was marked inside the responses.

    Raises:
        InvalidPreferenceError: no response, something of the wrong type or length, or a span outside its response.
    """

    prompt: PromptText
    responses: tuple[str, ...]
    ranking: tuple[int | None, ...] = ()
    ratings: tuple[float, ...] | None = None
    margin: float | None = None
    annotator: str | None = None
    confidence: float | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    spans: tuple[LabelledSpan, ...] = ()

    def __post_init__(self) -> None:
        _check_texts(self.prompt, self.responses)
        count = len(self.responses)
        for name in ("ratings", "ranking"):
            values = getattr(self, name)
            if values and len(values) != count:
                raise InvalidPreferenceError(f"there are {len(values)} {name} for {count} responses: give one for each")
        for name in ("margin", "confidence"):
            if getattr(self, name) is not None:
                _check_finite(name, getattr(self, name))
        for rating in self.ratings or ():
            _check_finite("a rating", rating)
        ranking = self.ranking or _ranks([-rating for rating in self.ratings or [0.0] * count])
        if not self.ranking and self.ratings is None and count > 1:
            raise InvalidPreferenceError(f"{count} responses come without ranking and ratings: give one of them")
        for rank in ranking:
            if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int)):
                raise InvalidPreferenceError(f"a ranking holds integers (0 is the best), or None, not {rank!r}")
        object.__setattr__(self, "ranking", _renumbered(ranking))
        for span in self.spans:
            if not 0 <= span.response < count or not 0 <= span.start < span.end <= len(self.responses[span.response]):
                raise InvalidPreferenceError(
                    f"the span {span.start}..{span.end} of response {span.response} lies outside the text: correct it"
                )
            _check_finite("the weight of a span", span.weight)

    @classmethod
    def pair(cls, prompt: PromptText, chosen: str, rejected: str, **fields: Any) -> Preference:
        """Two responses, the first one preferred."""
        return cls(prompt, (chosen, rejected), (0, 1), **fields)

    @classmethod
    def best_of(cls, prompt: PromptText, responses: Sequence[str], best: int, **fields: Any) -> Preference:
        """K responses, of which only the best is known."""
        if not 0 <= best < len(responses):
            raise InvalidPreferenceError(
                f"the best is response {best} of {len(responses)}: indexes go from 0 to {len(responses) - 1}"
            )
        return cls(prompt, tuple(responses), tuple(0 if i == best else None for i in range(len(responses))), **fields)

    def outcomes(self) -> list[Outcome]:
        """All comparisons that the ranking holds, at most K (K - 1) / 2."""
        return ranking_outcomes(self.ranking)

    @property
    def best(self) -> int | None:
        """The index of the one response above all others; None where it is shared, or there is but one response."""
        first = [i for i, rank in enumerate(self.ranking) if rank == 0]
        return first[0] if len(first) == 1 and len(self.responses) > 1 else None

    def as_dict(self) -> dict[str, Any]:
        """JSON, without what was not given; `from_dict` reads it."""
        row = asdict(self)
        row["prompt"] = self.prompt if isinstance(self.prompt, str) else [dict(message) for message in self.prompt]
        row["spans"] = [asdict(span) for span in self.spans]
        given = {name: value for name, value in row.items() if value is not None and value != {} and value != []}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}

    @classmethod
    def from_comparison(cls, comparison: Comparison) -> Preference:
        """The texts of a `Comparison`; its token ids stay behind."""
        return cls.pair(comparison.prompt, comparison.chosen, comparison.rejected)


def ranking_outcomes(ranking: Sequence[int | None]) -> list[Outcome]:
    """All comparisons of two responses that a ranking holds, at most K (K - 1) / 2."""
    found = []
    for i, j in combinations(range(len(ranking)), 2):
        a, b = ranking[i], ranking[j]
        if a is None and b is None:
            continue
        if b is None or (a is not None and a <= b):
            found.append(Outcome(i, j, a == b))
        else:
            found.append(Outcome(j, i, False))
    return found


def prompt_key(prompt: PromptText) -> str:
    """A string that is equal for equal prompts, for grouping."""
    if isinstance(prompt, str):
        return prompt
    return "\x1e".join(f"{message['role']}\x1f{message['content']}" for message in prompt)


def _check_texts(prompt: Any, responses: Any) -> None:
    if not isinstance(prompt, str):
        proper = isinstance(prompt, tuple) and all(
            isinstance(m, Mapping) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
            for m in prompt
        )
        if not proper or not prompt:
            raise InvalidPreferenceError(
                f"the prompt is of type {type(prompt).__name__}: give text, or a list of messages with role and content"
            )
    if not isinstance(responses, tuple) or not responses:
        raise InvalidPreferenceError("there is no response: give at least one")
    for i, response in enumerate(responses):
        if not isinstance(response, str):
            raise InvalidPreferenceError(f"response {i} is of type {type(response).__name__}: give text")


def _check_finite(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidPreferenceError(f"{name} is {value!r}: give a finite number")


def _ranks(costs: Sequence[float]) -> tuple[int, ...]:
    order = sorted(set(costs))
    return tuple(order.index(cost) for cost in costs)


def _renumbered(ranking: Sequence[int | None]) -> tuple[int | None, ...]:
    ranks = sorted({rank for rank in ranking if rank is not None})
    if not ranks:
        raise InvalidPreferenceError("no response has a rank: give the best one rank 0")
    return tuple(None if rank is None else ranks.index(rank) for rank in ranking)
