"""The file of labels: an answer is on the disk before its annotator is told that it was taken."""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

from lm_env.errors import ConfigurationError
from lm_env.validation import check_integer, checked_path
from reward_models.labelling.answers import (
    Answer,
    Presentation,
    StoredAnswer,
    by_response,
    check_answer,
    check_spans,
    item_row,
    random_order,
    read_prompt,
    read_spans,
    stored_answer,
)
from reward_models.labelling.database import Database
from reward_models.labelling.items import Item
from reward_models.labelling.queries import (
    ANSWERS,
    NEW_ANSWER,
    NEW_ITEM,
    NEW_PRESENTATION,
    OPEN_TO,
    PRESENTATION,
    PROGRESS,
)
from reward_models.preferences.records.preference import LabelledSpan

__all__ = ["LabelStore"]

LEASE_S = 1800.0
"""Seconds for which a question that somebody has open counts as being answered."""


class LabelStore:
    """Items, questions and answers in one SQLite file; several threads and processes may use it at once.

    Args:
        path: the file.
        create: make it if there is none.
        pairs: items of more than two responses are asked as pairs, instead of all responses at once.
        per_item: how many annotators answer each question; skips do not count.

    Raises:
        ConfigurationError: there is no such file, or it is something else.
        CheckpointWriteError: it cannot be opened or written.
    """

    def __init__(self, path: str | Path, *, create: bool = True, pairs: bool = False, per_item: int = 1) -> None:
        self.path = checked_path("path", path)
        self.pairs = pairs
        self.per_item = check_integer("per_item", per_item)
        self._database = Database(self.path, create=create)
        self.id: str = self.note("id") or ""

    def close(self) -> None:
        """Close the file; what was answered is in it anyway."""
        self._database.close()

    def note(self, name: str, value: str | None = None) -> str | None:
        """Keep a text under a name, if one is given; return what is kept."""
        return self._database.note(name, value)

    # -- items and questions -------------------------------------------------------------------------
    def add(self, items: Sequence[Item], *, note: tuple[str, str] | None = None) -> int:
        """Add what is not there yet, all or nothing; return how many items are new.

        Args:
            note: a name and a text, kept along with them.
        """
        with self._database.transaction() as database:
            new = 0
            for item in items:
                new += database.execute(NEW_ITEM, item_row(item)).rowcount
            if note is not None:
                database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", note)
        self._ask()
        return new

    def _ask(self) -> None:
        """Add the questions about all items that are missing: each item as a whole, or each pair of its responses."""
        with self._database.transaction() as database:
            for number, text in database.execute("SELECT id, responses FROM items").fetchall():
                whole = tuple(range(len(json.loads(text))))
                for shown in combinations(whole, 2) if self.pairs else [whole]:
                    database.execute(
                        "INSERT OR IGNORE INTO questions (item, responses, size, whole) VALUES (?, ?, ?, ?)",
                        (number, json.dumps(shown), len(shown), len(shown) == len(whole)),
                    )

    def items(self) -> dict[int, Item]:
        """All items by number."""
        return {
            number: Item(read_prompt(prompt), tuple(json.loads(responses)), json.loads(columns))
            for number, prompt, responses, columns in self._database.rows(
                "SELECT id, prompt, responses, columns FROM items"
            )
        }

    def questions(self) -> dict[int, tuple[int, tuple[int, ...]]]:
        """(item, its responses that are shown together) of each question that is asked, by number."""
        return {
            number: (item, tuple(json.loads(responses)))
            for number, item, responses in self._database.rows(
                f"SELECT id, item, responses FROM questions q WHERE {self._asked} ORDER BY id"
            )
        }

    @property
    def _asked(self) -> str:
        return "q.size = 2" if self.pairs else "q.whole = 1"

    # -- what an annotator sees ----------------------------------------------------------------------
    def open_to(self, annotator: str, *, now: float | None = None) -> list[int]:
        """The questions that may be put to an annotator: those that neither they nor enough others have answered.

        Args:
            now: seconds since 1970; default: the time of the clock.
        """
        since = (time.time() if now is None else now) - LEASE_S
        query = OPEN_TO.format(asked=self._asked)
        return [row[0] for row in self._database.rows(query, (annotator, annotator, since, self.per_item))]

    def present(self, annotator: str, choose: Callable[[list[int]], int]) -> Presentation | None:
        """What an annotator has open, or else the next question; None if there is nothing left for them.

        Args:
            choose: takes the numbers of the questions that may be asked and returns one of them.
        """
        with self._database.transaction(durable=False) as database:
            row = database.execute(
                "SELECT id FROM presentations WHERE annotator = ? AND state = 'open'", (annotator,)
            ).fetchone()
            if row is None:
                candidates = self.open_to(annotator)
                if not candidates:
                    return None
                row = self._returned(database, annotator, set(candidates))
            if row is None:
                question = choose(candidates)
                (size,) = database.execute("SELECT size FROM questions WHERE id = ?", (question,)).fetchone()
                row = (uuid.uuid4().hex,)
                database.execute(
                    NEW_PRESENTATION, (*row, question, annotator, json.dumps(random_order(size)), time.time())
                )
            return self.presentation(row[0])

    def _returned(self, database: sqlite3.Connection, annotator: str, candidates: set[int]) -> tuple[str] | None:
        """Open again what an annotator had before them when they undid an earlier answer, the latest first."""
        for name, question in database.execute(
            "SELECT id, question FROM presentations WHERE annotator = ? AND state = 'returned' ORDER BY shown_at DESC",
            (annotator,),
        ).fetchall():
            if question in candidates:
                _open(database, name)
                return (name,)
        return None

    def presentation(self, name: str) -> Presentation:
        """A presentation by its id.

        Raises:
            ConfigurationError: there is none.
        """
        rows = self._database.rows(PRESENTATION, (name,))
        if not rows:
            raise ConfigurationError("this question was never shown: reload the page")
        question, positions, spans, shown, prompt, responses, columns = rows[0]
        texts = json.loads(responses)
        order = [json.loads(shown)[place] for place in json.loads(positions)]
        return Presentation(
            name, question, read_prompt(prompt), tuple(texts[i] for i in order), json.loads(columns), read_spans(spans)
        )

    def mark(self, presentation: str, spans: Sequence[LabelledSpan]) -> None:
        """Keep what an annotator has marked so far in what they have open.

        Raises:
            ConfigurationError: it is not open.
            InvalidPreferenceError: a span lies outside its response.
        """
        check_spans(self.presentation(presentation), spans)
        with self._database.transaction(durable=False) as database:
            changed = database.execute(
                "UPDATE presentations SET spans = ? WHERE id = ? AND state = 'open'",
                (json.dumps([asdict(span) for span in spans]), presentation),
            ).rowcount
        if not changed:
            raise ConfigurationError("this question is no longer open: reload the page")

    # -- answers -------------------------------------------------------------------------------------
    def record(self, annotator: str, answer: Answer) -> bool:
        """Take an answer; False if it is already there.

        Raises:
            ConfigurationError: the presentation is not this annotator's, they have answered it under another id, or
                the id was used for something else.
            InvalidPreferenceError: the answer does not fit the responses.
        """
        shown = self.presentation(answer.presentation)
        check_answer(shown, answer)
        with self._database.transaction() as database:
            owner, state, text = database.execute(
                "SELECT annotator, state, positions FROM presentations WHERE id = ?", (answer.presentation,)
            ).fetchone()
            places = json.loads(text)
            ranking = json.dumps(by_response(answer, places))
            known = database.execute(
                "SELECT presentation, annotator, choice, ranking FROM answers WHERE id = ?", (answer.id,)
            ).fetchone()
            if known == (answer.presentation, annotator, answer.choice, ranking):
                return False
            if known is not None:
                raise ConfigurationError("the id of this answer belongs to another one: reload the page")
            if owner != annotator:
                raise ConfigurationError(f"this question was shown to {owner!r}, not to {annotator!r}: reload the page")
            if state != "open":
                raise ConfigurationError("this question is answered already: reload the page")
            spans = [{**asdict(span), "response": places[span.response]} for span in answer.spans]
            database.execute(
                NEW_ANSWER,
                (
                    answer.id,
                    answer.presentation,
                    shown.question,
                    annotator,
                    answer.choice,
                    ranking,
                    json.dumps(spans),
                    answer.seconds,
                    time.time(),
                ),
            )
            database.execute(
                "UPDATE presentations SET state = 'answered', spans = ? WHERE id = ?",
                (json.dumps([asdict(span) for span in answer.spans]), answer.presentation),
            )
        return True

    def withdraw(self, annotator: str, answer: str) -> bool:
        """Undo an answer: its row stays, and its question is open again as it was; False if it was undone before.

        Raises:
            ConfigurationError: the annotator has given no such answer, or a later one.
        """
        with self._database.transaction() as database:
            row = database.execute(
                "SELECT number, presentation, withdrawn_at FROM answers WHERE id = ? AND annotator = ?",
                (answer, annotator),
            ).fetchone()
            if row is None:
                raise ConfigurationError("there is no such answer to undo: reload the page")
            number, presentation, withdrawn = row
            if withdrawn is not None:
                return False
            if self.last(annotator) != answer:
                raise ConfigurationError("only the last answer can be undone: reload the page")
            database.execute("UPDATE answers SET withdrawn_at = ? WHERE number = ?", (time.time(), number))
            database.execute(
                "UPDATE presentations SET state = 'returned' WHERE annotator = ? AND state = 'open'", (annotator,)
            )
            _open(database, presentation)
        return True

    def last(self, annotator: str) -> str | None:
        """The id of the last valid answer of an annotator."""
        rows = self._database.rows(
            "SELECT id FROM answers WHERE annotator = ? AND withdrawn_at IS NULL ORDER BY number DESC LIMIT 1",
            (annotator,),
        )
        return rows[0][0] if rows else None

    def times_of(self, annotator: str) -> list[float]:
        """When an annotator gave their valid answers, in seconds since 1970, ascending."""
        rows = self._database.rows(
            "SELECT answered_at FROM answers WHERE annotator = ? AND withdrawn_at IS NULL ORDER BY number", (annotator,)
        )
        return [row[0] for row in rows]

    def progress(self) -> tuple[int, int]:
        """(questions that enough annotators have answered, questions)."""
        (row,) = self._database.rows(PROGRESS.format(asked=self._asked), (self.per_item,))
        return row[0], row[1]

    def answers(self) -> list[StoredAnswer]:
        """All valid answers, skips included, in the order in which they were given."""
        return [stored_answer(row) for row in self._database.rows(ANSWERS)]

    def changes(self) -> int:
        """How many answers were ever given, plus how many were ever undone: a number that grows with each of them."""
        return int(self._database.rows("SELECT count(*) + count(withdrawn_at) FROM answers")[0][0])


def _open(database: sqlite3.Connection, presentation: str) -> None:
    database.execute("UPDATE presentations SET state = 'open', shown_at = ? WHERE id = ?", (time.time(), presentation))
