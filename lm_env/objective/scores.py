"""What a reward function gives to texts: one number for each, numbers per token, or spans of characters.

Shapes: B texts, T response tokens (T_i those of text i).
"""

from __future__ import annotations

import math
import numbers
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence, Set, Sized
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np
import torch

from lm_env.errors import RewardValueError

__all__ = ["Scores", "Span", "checked_rows", "checked_scores", "short_repr"]


@dataclass(frozen=True)
class Span:
    """A score for the characters [start, end) of a response, paid at the last token that has one of them.

    A segment is paid for at its end, as in Wu et al. 2023 (arXiv:2306.01693), section 2.

    Attributes:
        start, end: character offsets into the response that the reward function was given.  An `end` of
            None is the end of the whole response: the score is paid at its last token, the EOS if there is one.
        score: finite; higher is better.
    """

    start: int
    end: int | None
    score: float


@dataclass(frozen=True)
class Scores:
    """The checked scores of B texts.  A text's score is the sum of its three parts."""

    at_end: np.ndarray
    """float64 (B,), paid at the last token."""
    tokens: Mapping[int, np.ndarray] = field(default_factory=dict)
    """Text -> float64 (T_i,), paid token by token; texts without such scores are absent."""
    spans: Mapping[int, tuple[Span, ...]] = field(default_factory=dict)
    """Text -> its spans; texts without spans are absent."""
    failed: frozenset[int] = frozenset()
    """Texts whose score could not be had; they have the score 0, which must not be used."""

    def __len__(self) -> int:
        return len(self.at_end)

    @property
    def per_token(self) -> bool:
        """Whether any score is paid elsewhere than at the end of its text."""
        return bool(self.tokens or self.spans)

    def totals(self) -> np.ndarray:
        """float64 (B,): the score of each text."""
        totals = self.at_end.copy()
        for row, values in self.tokens.items():
            totals[row] += math.fsum(values)
        for row, spans in self.spans.items():
            totals[row] += math.fsum(span.score for span in spans)
        return totals

    def scaled(self, gain: float) -> Scores:
        """Each part times `gain`."""
        return Scores(
            gain * self.at_end,
            {row: gain * values for row, values in self.tokens.items()},
            {row: tuple(Span(s.start, s.end, gain * s.score) for s in spans) for row, spans in self.spans.items()},
            self.failed,
        )

    def plus(self, other: Scores) -> Scores:
        """The sum of two rewards of the same B texts, each part paid where it was."""
        tokens = dict(self.tokens)
        for row, values in other.tokens.items():
            tokens[row] = tokens[row] + values if row in tokens else values
        spans = {row: (*self.spans.get(row, ()), *other.spans.get(row, ())) for row in {*self.spans, *other.spans}}
        return Scores(self.at_end + other.at_end, tokens, spans, self.failed | other.failed)

    def placed(self, rows: Sequence[int], other: Scores) -> Scores:
        """These scores, with those of `other` at the given texts; `failed` stays as it is here."""
        at_end = self.at_end.copy()
        at_end[rows] = other.at_end
        tokens = {**self.tokens, **{rows[i]: values for i, values in other.tokens.items()}}
        spans = {**self.spans, **{rows[i]: values for i, values in other.spans.items()}}
        return Scores(at_end, tokens, spans, self.failed)

    def without(self, failed: Iterable[int]) -> Scores:
        """These scores, with 0 for the texts that failed."""
        gone = frozenset(failed)
        at_end = self.at_end.copy()
        at_end[sorted(gone)] = 0.0
        tokens = {i: values for i, values in self.tokens.items() if i not in gone}
        return Scores(at_end, tokens, {i: some for i, some in self.spans.items() if i not in gone}, self.failed | gone)

    def without_ends(self, unfinished: Iterable[int]) -> Scores:
        """These scores, without what belongs to the end of a text for texts that have none yet."""
        at_end = self.at_end.copy()
        spans = dict(self.spans)
        for row in unfinished:
            at_end[row] = 0.0
            spans[row] = tuple(span for span in spans.pop(row, ()) if span.end is not None)
        return Scores(at_end, self.tokens, {row: some for row, some in spans.items() if some}, self.failed)

    def simplest(self) -> np.ndarray | Scores:
        """float64 (B,) where every score is paid at the end of its text, else the scores as they are."""
        return self if self.per_token else self.at_end

    def on_tokens(self, lengths: Sequence[int], piece_ends: Callable[[int], Sequence[int]]) -> np.ndarray:
        """float64 (B, T): what each token is paid, 0 in the padding.

        Args:
            lengths: (B,), the response tokens of each text, at least 1.
            piece_ends: text -> (T_i,), the offset of the character after each token; asked for texts with
                spans alone.
        """
        paid = np.zeros((len(self), max(lengths, default=0)))
        for row, values in self.tokens.items():
            paid[row, : len(values)] = values
        for row, spans in self.spans.items():
            ends = piece_ends(row)
            for span in spans:
                paid[row, lengths[row] - 1 if span.end is None else bisect_left(ends, span.end)] += span.score
        paid[np.arange(len(self)), np.asarray(lengths, dtype=np.int64) - 1] += self.at_end
        return paid


def checked_scores(
    name: str, raw: object, prompts: Sequence[str], responses: Sequence[str], lengths: Sequence[int] | None
) -> Scores:
    """What a reward function returned, once all of it is known to be sound.

    Args:
        name: of the reward function, for the errors.
        lengths: (B,), the response tokens of each text; None: unknown, so that no numbers per token are taken.

    Raises:
        RewardValueError: a score is missing, not a finite number, or belongs to no token or character; the
            message shows the sample.
    """
    if not isinstance(raw, Scores) and not (isinstance(raw, Sized) and _is_flat(raw)):
        raise RewardValueError(
            f"reward function {name} returned {short_repr(raw)}: return a flat list of {len(responses)} numbers,"
            f" or a list of {len(responses)} arrays of one number per response token"
        )
    assert isinstance(raw, Sized)
    if len(raw) != len(responses):
        raise RewardValueError(
            f"reward function {name} returned {len(raw)} scores for {len(responses)} responses: one each is needed"
            " (the numbers of a text's tokens are one entry, an array)"
        )
    if isinstance(raw, Scores):
        _check_parts(name, raw, responses, lengths)
        return raw
    assert isinstance(raw, Iterable)
    if isinstance(raw, torch.Tensor):
        raw = _numbers_of(name, raw)
    at_end = np.zeros(len(responses))
    tokens = {}
    spans = {}
    for i, value in enumerate(raw):
        try:
            if _is_number(value):
                at_end[i] = _finite(value)
            elif _is_list_of_spans(value):
                spans[i] = _checked_spans(value, responses[i])
            else:
                tokens[i] = _checked_tokens(value, None if lengths is None else lengths[i])
        except (ValueError, TypeError, RuntimeError) as problem:  # torch raises the last two
            raise RewardValueError(
                f"reward function {name} gave {short_repr(value)} ({type(value).__name__}) for sample {i} "
                f"(prompt {short_repr(prompts[i])}, response {short_repr(responses[i])}): {problem}"
            ) from None
    return Scores(at_end, tokens, {i: some for i, some in spans.items() if some})


def checked_rows(
    name: str, raw: object, prompts: Sequence[str], responses: Sequence[str], lengths: Sequence[int] | None
) -> Scores:
    """Like `checked_scores`, but a text whose own score is not sound is in `Scores.failed`.

    Raises:
        RewardValueError: it cannot be told which score belongs to which text.
    """
    if isinstance(raw, Scores) or not _is_flat(raw):
        return checked_scores(name, raw, prompts, responses, lengths)
    rows = list(raw)
    failed = []
    if len(rows) == len(responses):
        for i, value in enumerate(rows):
            try:
                checked_scores(name, [value], [prompts[i]], [responses[i]], None if lengths is None else [lengths[i]])
            except RewardValueError:
                failed.append(i)
                rows[i] = 0.0
    return checked_scores(name, rows, prompts, responses, lengths).without(failed)


def _is_flat(raw: object) -> TypeGuard[Iterable[Any]]:
    """Whether the entries of this are one for each text, in their order, which those of a set or of a grid are not."""
    has_order = isinstance(raw, Iterable) and not isinstance(raw, str | bytes | Mapping | Set)
    return has_order and getattr(raw, "ndim", 1) == 1


def _numbers_of(name: str, raw: torch.Tensor) -> list[Any]:
    try:
        numbers: list[Any] = raw.tolist()
    except Exception as problem:  # a tensor on the meta device or a sparse one
        raise RewardValueError(
            f"reward function {name} returned a tensor whose numbers cannot be read: {problem}; return a dense tensor"
        ) from problem
    return numbers


def _check_parts(name: str, scores: Scores, responses: Sequence[str], lengths: Sequence[int] | None) -> None:
    """The same checks for scores that a combination of rewards has put together."""
    try:
        for value in scores.at_end:
            _finite(value)
        for i, values in scores.tokens.items():
            _checked_tokens(values, None if lengths is None else lengths[i])
        for i, spans in scores.spans.items():
            _checked_spans(spans, responses[i])
    except (ValueError, LookupError) as problem:
        raise RewardValueError(f"reward function {name} returned Scores that do not fit: {problem}") from None


def _is_number(value: object) -> bool:
    """Whether the value is a scalar (possibly an invalid one), so that it scores the whole text."""
    return not isinstance(value, list | tuple) and getattr(value, "ndim", 0) == 0


def _is_list_of_spans(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(entry, Span) for entry in value)


def _finite(value: Any) -> float:
    """The value as a float.

    Raises:
        ValueError: it is not a finite real number.
    """
    number = math.nan
    masked = isinstance(value, np.ma.MaskedArray) and bool(np.ma.getmaskarray(value).any())
    if isinstance(value, torch.Tensor | np.ndarray) and value.ndim == 0 and not masked:
        value = value.item()
    if isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_ | np.timedelta64):
        try:
            number = float(value)
        except OverflowError:
            number = math.nan
    if isinstance(value, bool | np.bool_):
        raise ValueError("True and False are no scores: write float(...) around what is true or false")
    if not math.isfinite(number):
        raise ValueError("each score must be a finite number, an array of one per response token, or a list of Spans")
    return number


def _checked_tokens(value: Any, length: int | None) -> np.ndarray:
    """float64 (T_i,); a ValueError says what is wrong."""
    if getattr(value, "ndim", 1) != 1:
        raise ValueError("the scores of one text are a number, or an array of one dimension")
    if length is None:
        raise ValueError("numbers per token cannot be counted without the column response_ids: pass it along")
    if len(value) != length:
        raise ValueError(f"{len(value)} numbers for {length} response tokens (an EOS is one): one each is needed")
    entries = value.tolist() if isinstance(value, torch.Tensor) else value
    scores = np.empty(length)
    for t, entry in enumerate(entries):
        try:
            scores[t] = _finite(entry)
        except ValueError:
            raise ValueError(f"token {t} has {short_repr(entry)}: each score must be a finite number") from None
    return scores


def _checked_spans(spans: Iterable[Span], response: str) -> tuple[Span, ...]:
    """The spans with plain numbers; a ValueError says what is wrong."""
    checked = []
    for span in spans:
        end = len(response) if span.end is None else span.end
        are_integers = all(isinstance(x, int | np.integer) and not isinstance(x, bool) for x in (span.start, end))
        empty_is_fine = span.end is None  # the end of the text is a place, even where the text is empty
        if not are_integers or not 0 <= span.start <= end <= len(response) or (span.start == end and not empty_is_fine):
            raise ValueError(
                f"{short_repr(span)} holds no characters of this response: 0 <= start < end <= {len(response)} is"
                " needed, or an end of None"
            )
        try:
            score = _finite(span.score)
        except ValueError:
            raise ValueError(f"{short_repr(span)}: each score must be a finite number") from None
        checked.append(Span(int(span.start), None if span.end is None else int(end), score))
    return tuple(checked)


def short_repr(value: object, limit: int = 80) -> str:
    """`repr`, cut to a length that fits into a sentence; it never fails."""
    try:
        text = repr(value)
    except Exception:  # an error message must not fail on what it reports
        text = f"<{type(value).__name__}>"
    return text if len(text) <= limit else text[: limit - 3] + "..."
