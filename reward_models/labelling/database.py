"""The SQLite file of labels: its tables, and transactions that end on the disk.

items           what is to be judged, in the order in which it was added
questions       which responses of an item are shown together: all of them, or a pair
presentations   a question as it was shown to an annotator: in which order, and what they have marked so far
answers         one row for each answer ever given; an answer that was undone keeps its row, with the time of that
meta            the version of the format, an id of the file, settings

Rules that the database itself keeps: an annotator has one open presentation at a time, and one valid answer to each
question.  Texts are JSON in ASCII, so that every string of Python can be stored, half a surrogate pair included.
"""

from __future__ import annotations

import sqlite3
import threading
import uuid
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lm_env.errors import CheckpointWriteError, ConfigurationError

__all__ = ["Database"]

APPLICATION_ID = 0x6C6D6C62  # "lmlb"
VERSION = 1
WAIT_S = 30.0

TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE items (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE,
    prompt TEXT NOT NULL, responses TEXT NOT NULL, columns TEXT NOT NULL
) STRICT;
CREATE TABLE questions (
    id INTEGER PRIMARY KEY, item INTEGER NOT NULL REFERENCES items (id),
    responses TEXT NOT NULL, size INTEGER NOT NULL, whole INTEGER NOT NULL, UNIQUE (item, responses)
) STRICT;
CREATE TABLE presentations (
    id TEXT PRIMARY KEY, question INTEGER NOT NULL REFERENCES questions (id), annotator TEXT NOT NULL,
    positions TEXT NOT NULL, shown_at REAL NOT NULL, spans TEXT NOT NULL DEFAULT '[]',
    state TEXT NOT NULL CHECK (state IN ('open', 'answered', 'returned'))
) STRICT;
CREATE UNIQUE INDEX one_open_presentation ON presentations (annotator) WHERE state = 'open';
CREATE INDEX presentations_of_question ON presentations (question) WHERE state = 'open';
CREATE TABLE answers (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, presentation TEXT NOT NULL REFERENCES presentations (id),
    question INTEGER NOT NULL REFERENCES questions (id), annotator TEXT NOT NULL,
    choice TEXT NOT NULL CHECK (choice IN ('ranked', 'tie', 'bad', 'skip')),
    ranking TEXT NOT NULL, spans TEXT NOT NULL, seconds REAL NOT NULL, answered_at REAL NOT NULL, withdrawn_at REAL
) STRICT;
CREATE UNIQUE INDEX one_valid_answer ON answers (question, annotator) WHERE withdrawn_at IS NULL;
CREATE INDEX answers_of_annotator ON answers (annotator, number) WHERE withdrawn_at IS NULL;
"""


class Database:
    """The file, for several threads; other processes may use it too.

    A transaction is on the disk before it is reported as done (write-ahead log, synchronous=FULL), unless it is one
    that may be forgotten if the machine loses its power; a killed process loses nothing in either case.

    Args:
        create: make the file if there is none.

    Raises:
        ConfigurationError: there is no such file, it is something else, or of a newer version of this package.
        CheckpointWriteError: it cannot be opened or written.
    """

    def __init__(self, path: Path, *, create: bool) -> None:
        if not create and not path.is_file():
            raise ConfigurationError(f"there is no file {path}: `lm-env label FILE --out {path}` makes one")
        self.path = path
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
            self._close = weakref.finalize(self, self._connection.close)
            try:
                _prepare(self._connection, path)
            except BaseException:
                self._close()
                raise
        except (OSError, sqlite3.OperationalError) as error:
            raise CheckpointWriteError(f"cannot open {path}: {error}; choose another place") from error
        except sqlite3.DatabaseError as error:
            raise ConfigurationError(f"{path} is no file of labels ({error}): choose another name") from error

    def close(self) -> None:
        """Close the file; all that was reported as done is in it anyway."""
        with self._lock:
            self._close()

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """All that happens in here is written, or nothing.

        Args:
            durable: wait until it is on the disk; otherwise it gets there with the next one that is durable.

        Raises:
            CheckpointWriteError: it cannot be written.
        """
        with self._lock:
            try:
                self._connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            except sqlite3.OperationalError as error:
                raise CheckpointWriteError(f"cannot write {self.path}: {error}; make room, or free the file") from error

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """What a query finds."""
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def note(self, name: str, value: str | None = None) -> str | None:
        """Keep a text under a name, if one is given; return what is kept."""
        if value is not None:
            with self.transaction() as connection:
                connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))
            return value
        rows = self.rows("SELECT value FROM meta WHERE name = ?", (name,))
        return rows[0][0] if rows else None


def _prepare(database: sqlite3.Connection, path: Path) -> None:
    kind = database.execute("PRAGMA application_id").fetchone()[0]
    version = database.execute("PRAGMA user_version").fetchone()[0]
    empty = not database.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if kind != APPLICATION_ID and not empty:
        raise ConfigurationError(f"{path} is a database of something else: choose another name")
    if version > VERSION:
        raise ConfigurationError(f"{path} was written by a newer version of lm_env: update this one")
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA foreign_keys = ON")
    if empty:
        database.execute("BEGIN IMMEDIATE")
        try:
            if not database.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                for statement in filter(str.strip, TABLES.split(";")):
                    database.execute(statement)
                database.execute("INSERT INTO meta VALUES ('id', ?)", (uuid.uuid4().hex,))
                database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                database.execute(f"PRAGMA user_version = {VERSION}")
            database.execute("COMMIT")
        except BaseException:
            database.execute("ROLLBACK")
            raise
