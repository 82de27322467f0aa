"""Who says which of two texts is better: a reward function that stands in for people, or people, through a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lm_env.cli.loop.files import write_rows
from lm_env.errors import ConfigurationError, InvalidPreferenceError, LabelsAwaited
from lm_env.runs.console import say
from reward_models import Comparison, label_comparisons, read_preferences
from reward_models.preferences.records.preference import Preference

__all__ = ["TO_LABEL", "FileLabeller", "GoldLabeller", "Labeller", "Pair"]

Pair = Mapping[str, Any]
"""Two samples to a prompt: `prompt`, `response_a`, `response_b`, and their tokens `prompt_ids`, `response_ids_a`,
`response_ids_b`; `columns` has the prompt's extra columns."""

TO_LABEL = "to_label.jsonl"
LABELLED = ("labelled.jsonl", "labelled.json", "labelled.csv", "labelled.parquet")
FEWEST = 20


class Labeller(Protocol):
    """Whoever compares pairs of texts."""

    name: str
    """What it is called in messages."""

    def label(self, pairs: Sequence[Pair], folder: Path) -> list[Comparison]:
        """Which of the two texts is better, for those pairs that are no ties.

        Args:
            folder: the folder of the round, in which a labeller may keep files.

        Raises:
            LabelsAwaited: the labels are not there yet; the loop is to be resumed when they are.
            ConfigurationError: too few pairs have a better response.
        """


class GoldLabeller:
    """A reward function that stands in for people: the higher score wins.

    Args:
        judge: a reward function.
        name: what it is called in messages.
    """

    def __init__(self, judge: Any, name: str) -> None:
        self.judge = judge
        self.name = f"the judge '{name}'"

    def label(self, pairs: Sequence[Pair], folder: Path) -> list[Comparison]:
        """See `Labeller`."""
        columns = {name: [pair["columns"].get(name) for pair in pairs] for name in pairs[0]["columns"]}

        def all_of(name: str) -> list[Any]:
            return [pair[name] for pair in pairs]

        found = label_comparisons(
            all_of("prompt"),
            all_of("response_a"),
            all_of("response_b"),
            self.judge,
            prompt_ids=all_of("prompt_ids"),
            response_ids_a=all_of("response_ids_a"),
            response_ids_b=all_of("response_ids_b"),
            **columns,
        )
        return _enough(found, len(pairs), f"{self.name} scores most samples alike; choose another one")


class FileLabeller:
    """People, through a file: the pairs are written out, and the loop stops until their labels lie beside them.

    `to_label.jsonl` has a row for each pair: `prompt`, `responses` (two texts) and the prompt's columns.  What comes
    back, `labelled.jsonl` (.json, .csv, .parquet), may be in any format that `read_preferences` knows; its records are
    found again by their prompt and their texts.  A pair may be labelled by several people, or by nobody.
    """

    name = "people"

    def label(self, pairs: Sequence[Pair], folder: Path) -> list[Comparison]:
        """See `Labeller`."""
        asked = {key: pair for pair in pairs if (key := _key(pair["prompt"], pair["response_a"], pair["response_b"]))}
        there = next((folder / name for name in LABELLED if (folder / name).exists()), None)
        if there is None:
            waiting = folder / TO_LABEL
            write_rows(waiting, [_row(pair) for pair in asked.values()])
            raise LabelsAwaited(
                f"{len(asked):,} pairs wait for labels in {waiting}: save the labelled records as"
                f" {folder / LABELLED[0]} (or .json, .csv, .parquet, in any format that `lm-env prefs formats` lists),"
                " and go on with resume=True (--resume)"
            )
        records = read_preferences(str(there))
        found, ties = [], 0
        for number, record in enumerate(records):
            comparison = _found(record, asked)
            if comparison is None:
                raise InvalidPreferenceError(
                    f"record {number} of {there} is none of the pairs in {folder / TO_LABEL}: give the prompt and both"
                    " texts as they were written there"
                )
            ties += not comparison
            found += comparison
        if ties:
            say("", f"{ties:,} ties are left out")
        return _enough(found, len(asked), f"label more pairs in {there}")


def _key(prompt: str, a: str, b: str) -> tuple[str, frozenset[str]] | None:
    """The key by which a pair is found again; None where both texts are the same."""
    return None if a == b else (prompt, frozenset((a, b)))


def _row(pair: Pair) -> dict[str, Any]:
    return {**pair["columns"], "prompt": pair["prompt"], "responses": [pair["response_a"], pair["response_b"]]}


def _found(record: Preference, asked: Mapping[Any, Pair]) -> list[Comparison] | None:
    """The comparison that a record makes, with the tokens of its pair; [] for a tie, None if nobody asked for it."""
    if not isinstance(record.prompt, str) or len(record.responses) != 2:
        return None
    pair = asked.get(_key(record.prompt, *record.responses))
    if pair is None:
        return None
    outcome = record.outcomes()[0]
    if outcome.tied:
        return []
    chosen, rejected = record.responses[outcome.better], record.responses[outcome.worse]
    ids = {pair["response_a"]: pair["response_ids_a"], pair["response_b"]: pair["response_ids_b"]}
    return [Comparison(record.prompt, chosen, rejected, pair["prompt_ids"], ids[chosen], ids[rejected])]


def _enough(found: list[Comparison], pairs: int, reason: str) -> list[Comparison]:
    if len(found) < FEWEST:
        raise ConfigurationError(
            f"only {len(found)} of {pairs} pairs have a better response, and {FEWEST} are needed: {reason}"
        )
    return found
