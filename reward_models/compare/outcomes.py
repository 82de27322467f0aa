"""The outcomes of comparisons: for each two models' responses to one prompt, which one is better.

Shapes: M models, P prompts, N samples for each, C comparisons.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_env.errors import ConfigurationError, InvalidPreferenceError
from lm_env.validation import check_number
from reward_models.preferences.records.preference import Preference, prompt_key

__all__ = ["WRITTEN_BY", "Outcomes", "outcomes_from_records", "outcomes_from_scores", "text_digest"]

WRITTEN_BY = "written_by"
"""The column of a record that says which model wrote which response: name -> `text_digest`."""

SHOWN = "label_shown"
"""The column of a labelled record with the indexes of its responses in the order in which they were shown."""


@dataclass(frozen=True)
class Outcomes:
    """C comparisons of M models.

    Attributes:
        names: the models', M.
        prompt, first, second: integers (C,): which prompt, and which two models; the first one has the smaller number.
        result: float64 (C,): 1 where the first one's response is better, 0 where it is worse, 1/2 for a tie.
        length_difference: float64 (C,): characters of the first one's response minus the second one's.
        shown_first: float64 (C,): 1 where a person saw the first one's response before the other, 0 where after it,
            NaN where nobody did or the order is not known.
    """

    names: tuple[str, ...]
    prompt: np.ndarray
    first: np.ndarray
    second: np.ndarray
    result: np.ndarray
    length_difference: np.ndarray
    shown_first: np.ndarray

    def __len__(self) -> int:
        return len(self.result)

    def pair(self, first: int, second: int) -> Outcomes:
        """The comparisons of two models."""
        chosen = (self.first == first) & (self.second == second)
        arrays = ("prompt", "first", "second", "result", "length_difference", "shown_first")
        return Outcomes(self.names, *(getattr(self, name)[chosen] for name in arrays))

    def pairs(self) -> list[tuple[int, int]]:
        """The pairs of models that were compared."""
        return sorted({(int(a), int(b)) for a, b in zip(self.first, self.second, strict=True)})

    def weights(self) -> np.ndarray:
        """float64 (C,): the comparisons of the same two models on the same prompt share a weight of 1.

        They are not independent.  Counting them as one never makes an interval too narrow.
        """
        keys = np.stack([self.prompt, self.first, self.second], axis=1)
        _, inverse, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
        return 1.0 / counts[inverse.reshape(-1)]

    def prompt_results(self) -> np.ndarray:
        """The mean result on each prompt that was used, float64 (prompts,)."""
        _, inverse = np.unique(self.prompt, return_inverse=True)
        counts = np.bincount(inverse)
        return np.bincount(inverse, weights=self.result) / counts


def outcomes_from_scores(
    names: Sequence[str], scores: np.ndarray, lengths: np.ndarray, *, tie_margin: float = 0.0
) -> Outcomes:
    """Compare sample n of a model with sample n of each other one, by what a judge gave them.

    Args:
        scores, lengths: (M, P, N), the score and the characters of each response.
        tie_margin: scores that differ by at most this much tie.

    Raises:
        ConfigurationError: the arrays do not fit, fewer than two models, or a negative margin.
    """
    scores, lengths = np.asarray(scores, dtype=np.float64), np.asarray(lengths, dtype=np.float64)
    if scores.ndim != 3 or scores.shape != lengths.shape or len(names) != len(scores) or len(names) < 2:
        raise ConfigurationError(
            f"scores of shape {scores.shape} and lengths of shape {lengths.shape} of {len(names)} models: give"
            " (M, P, N) of at least two models"
        )
    check_number("tie_margin", tie_margin, low=0.0)
    count = scores[0].size
    prompt = np.repeat(np.arange(scores.shape[1]), scores.shape[2])
    found: dict[str, list[np.ndarray]] = {"prompt": [], "first": [], "second": [], "result": [], "length": []}
    for a, b in itertools.combinations(range(len(names)), 2):
        margin = (scores[a] - scores[b]).reshape(-1)
        found["prompt"].append(prompt)
        found["first"].append(np.full(count, a))
        found["second"].append(np.full(count, b))
        found["result"].append(np.where(np.abs(margin) <= tie_margin, 0.5, (margin > 0).astype(np.float64)))
        found["length"].append((lengths[a] - lengths[b]).reshape(-1))
    arrays = [np.concatenate(parts) for parts in found.values()]
    arrays.append(np.full(len(arrays[0]), np.nan))
    return Outcomes(tuple(names), *arrays)


def text_digest(text: str) -> str:
    """The digest by which the column `WRITTEN_BY` names a response, wherever it stands among the responses."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def outcomes_from_records(records: Iterable[Preference]) -> Outcomes:
    """Compare models by what people, or any other judge of pairs, have said of their responses.

    Args:
        records: with the column `written_by`, which `write_pairs` gives them and the labelling page keeps.

    Raises:
        InvalidPreferenceError: a record does not say who wrote its responses; the message names it.
        ConfigurationError: no record compares two models.
    """
    names: dict[str, int] = {}
    prompts: dict[str, int] = {}
    rows = []
    for number, record in enumerate(records, 1):
        writers = [_writer(number, record.columns.get(WRITTEN_BY), text) for text in record.responses]
        prompt = prompts.setdefault(prompt_key(record.prompt), len(prompts))
        shown = _places(record)
        for better, worse, tied in record.outcomes():
            a, b = (names.setdefault(writers[i], len(names)) for i in (better, worse))
            if a == b:
                continue
            swapped = a > b
            i, j = (worse, better) if swapped else (better, worse)
            result = 0.5 if tied else float(not swapped)
            difference = len(record.responses[i]) - len(record.responses[j])
            order = np.nan if shown is None else float(shown[i] < shown[j])
            rows.append((prompt, min(a, b), max(a, b), result, difference, order))
    if not rows:
        raise ConfigurationError("no record compares responses of two different models: give records that do")
    prompt_of, first, second, result_of, difference_of, order_of = np.array(rows, dtype=np.float64).T
    return Outcomes(
        tuple(names),
        prompt_of.astype(np.int64),
        first.astype(np.int64),
        second.astype(np.int64),
        result_of,
        difference_of,
        order_of,
    )


def _writer(number: int, written_by: Any, text: str) -> str:
    found = []
    if isinstance(written_by, Mapping):
        found = [name for name, digest in written_by.items() if digest == text_digest(text)]
    if len(found) != 1 or not isinstance(found[0], str):
        raise InvalidPreferenceError(
            f"record {number} does not say which model wrote each of its responses: it needs the column {WRITTEN_BY!r},"
            " which `lm-env compare --pairs-out` writes; leave the texts as they were"
        )
    return found[0]


def _places(record: Preference) -> dict[int, int] | None:
    """Index of a response -> its place on the page; None where that is not known."""
    shown = record.columns.get(SHOWN)
    if not isinstance(shown, list) or sorted(map(str, shown)) != sorted(map(str, range(len(record.responses)))):
        return None
    return {int(index): place for place, index in enumerate(shown)}
