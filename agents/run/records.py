"""What a run keeps besides its table of numbers: its settings, sample texts, early warnings, and a page to look at.

Every output of the logger that is a `RunWriter` gets them; TensorBoard gets settings, texts and warnings as text.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat

from agents.learning.rollout import Rollout
from agents.run.samples import Sample, SampleChooser, samples_as_markdown
from lm_env.errors import CheckpointWriteError, TrainingInterrupted
from lm_env.objective.task import Task
from lm_env.report import RUN_FILE, SAMPLES_FILE, WARNINGS_FILE, write_report
from lm_env.storage import write_file

__all__ = ["Recorder", "RunFiles", "RunWriter", "ends_in_newline", "make_pages", "rewind_lines", "row_of"]

log = logging.getLogger(__name__)


class RunWriter(KVWriter):
    """An output of the logger that also takes settings, texts and warnings; a subclass overrides what it can store."""

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Take a row of the table of numbers."""

    def write_settings(self, settings: dict[str, Any]) -> None:
        """Take the options of the run, as JSON; called once by each process that trains."""

    def write_samples(self, samples: Sequence[Sample]) -> None:
        """Take texts of one rollout."""

    def write_warning(self, timesteps: int, text: str) -> None:
        """Take one early warning."""

    def watched_prompts(self) -> list[str]:
        """The prompts of the first rollout, if a run is resumed; their texts are shown again whenever they recur."""
        return []

    def end(self) -> None:
        """The training is over, for now."""

    def close(self) -> None:
        """Close files and connections."""


class RunFiles(RunWriter):
    """run.json, samples.jsonl and warnings.jsonl beside progress.csv, and report.html at the end.

    A resumed run appends to the files.  The lock of progress.csv keeps other writers out of the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write_settings(self, settings: dict[str, Any]) -> None:
        """Write run.json, whole or not at all."""
        with _as_write_error(self.folder):
            write_file(self.folder / RUN_FILE, json.dumps(settings, indent=2, default=str) + "\n")

    def write_samples(self, samples: Sequence[Sample]) -> None:
        """Add a line for each text."""
        self._add(SAMPLES_FILE, [asdict(sample) for sample in samples])

    def write_warning(self, timesteps: int, text: str) -> None:
        """Add a line."""
        self._add(WARNINGS_FILE, [{"timesteps": timesteps, "warning": text}])

    def watched_prompts(self) -> list[str]:
        """The prompts of the first rollout in samples.jsonl; none if the file has another format."""
        prompts: list[str] = []
        try:
            with (self.folder / SAMPLES_FILE).open(encoding="utf-8") as file:
                rows = [json.loads(line) for line, _ in zip(file, range(256), strict=False)]
            rows = [row for row in rows if "log_ratios" in row]  # those of evaluations are of other prompts
            prompts = [str(row["prompt"]) for row in rows if row["timesteps"] == rows[0]["timesteps"]]
        except (OSError, ValueError, KeyError, TypeError):
            return []
        return prompts

    def rewind(self, step: int) -> None:
        """Remove the texts and warnings after `step` timesteps, for a run that is resumed from there."""
        for name in (SAMPLES_FILE, WARNINGS_FILE):
            path = self.folder / name
            if path.exists():
                with _as_write_error(self.folder):
                    rewind_lines(path, step)

    def end(self) -> None:
        """Write report.html; a page that cannot be made is a warning, and never ends a run."""
        if not (self.folder / "progress.csv").exists():
            return
        try:
            write_report(self.folder)
        except Exception as error:
            log.warning("no report.html was written to %s: %s", self.folder, error)

    def _add(self, name: str, rows: list[dict[str, Any]]) -> None:
        path = self.folder / name
        with _as_write_error(self.folder), path.open("ab+") as file:
            if file.tell() and not ends_in_newline(path):  # a run was killed in the middle of a line
                file.write(b"\n")
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=True).encode() + b"\n")


class Recorder:
    """Sends the settings, texts and warnings of a training to the outputs of its logger."""

    def __init__(self) -> None:
        self._chooser: SampleChooser | None = None
        self._waiting: tuple[Rollout, int] | None = None
        self._begun = False

    def begin(self, logger: Logger, settings: dict[str, Any]) -> None:
        """A training starts or is resumed: send its settings."""
        writers = _writers(logger)
        self._begun = True
        for writer in writers:
            writer.write_settings(settings)
        if self._chooser is None:
            watched = [prompt for writer in writers for prompt in writer.watched_prompts()]
            self._chooser = SampleChooser(watched)
            text = "```json\n" + json.dumps(settings, indent=2, default=str) + "\n```"
            for board in _boards(logger):
                board.writer.add_text("settings", text, 0)

    def rollout(self, logger: Logger, task: Task, rollout: Rollout, timesteps: int, number: int) -> None:
        """A rollout and its update are done: send its texts if it is time to.

        Args:
            timesteps: tokens generated before it.
            number: of the rollout, counted from 1.
        """
        self._waiting = (rollout, timesteps)
        if SampleChooser.due(number):
            self._write_samples(logger, task)

    def warn(self, logger: Logger, timesteps: int, text: str) -> None:
        """Send an early warning."""
        for writer in _writers(logger):
            writer.write_warning(timesteps, text)
        for board in _boards(logger):
            board.writer.add_text("warnings", text, timesteps)

    def end(self, logger: Logger, task: Task) -> None:
        """A training ends: its last rollout's texts are written, if they were not, and the pages are made."""
        self._write_samples(logger, task)
        make_pages(logger)

    @contextmanager
    def kept_on_failure(self, logger: Logger, task: Task) -> Iterator[None]:
        """If the training inside fails, its last texts and its page are still written, and others may write its log.

        A training that a signal stops is resumed later and then writes what it would have written otherwise, so of
        this one only the page is made.  A training that did not begin writes nothing.
        """
        self._begun = False
        try:
            yield
        except BaseException as error:
            with suppress(CheckpointWriteError):
                if self._begun and isinstance(error, TrainingInterrupted):
                    make_pages(logger)
                elif self._begun:
                    self.end(logger, task)
            _let_go(logger)
            raise

    def _write_samples(self, logger: Logger, task: Task) -> None:
        writers, boards = _writers(logger), _boards(logger)
        if self._waiting is None or not (writers or boards):
            return
        rollout, timesteps = self._waiting
        self._waiting = None
        self._chooser = self._chooser or SampleChooser()
        samples = self._chooser.take(task, rollout, timesteps)
        for writer in writers:
            writer.write_samples(samples)
        for board in boards:
            board.writer.add_text("samples", samples_as_markdown(samples), timesteps)


class _as_write_error:
    """Turns an OSError inside into a CheckpointWriteError that names the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise CheckpointWriteError(
                f"cannot write the log to {self._folder}: {error}; make room there, or choose another log_dir"
            ) from error


def make_pages(logger: Logger) -> None:
    """Have the outputs of a logger make their pages; a training is over, or stopped."""
    for writer in _writers(logger):
        writer.end()


def _let_go(logger: Logger) -> None:
    """Let others write to the files of the log; an output that has a lock takes it again when it goes on."""
    for output in logger.output_formats:
        if callable(release := getattr(output, "release", None)):
            release()


def _writers(logger: Logger) -> list[RunWriter]:
    return [output for output in logger.output_formats if isinstance(output, RunWriter)]


def _boards(logger: Logger) -> list[TensorBoardOutputFormat]:
    return [output for output in logger.output_formats if isinstance(output, TensorBoardOutputFormat)]


def rewind_lines(path: Path, step: int) -> list[dict[str, Any]]:
    """Remove from samples.jsonl or warnings.jsonl what is after `step` timesteps, for a run that is resumed from there.

    A line that is no such row was cut off when the process was killed, and goes as well.

    Returns:
        The rows that stay.

    Raises:
        OSError: the file cannot be read or written.
    """
    content = path.read_bytes()
    kept = [(line, row) for line in content.splitlines() if (row := row_of(line)) and not _is_beyond(row, step)]
    new = b"".join(line + b"\n" for line, _ in kept)
    if new != content:
        write_file(path, new)
    return [row for _, row in kept]


def row_of(line: bytes) -> dict[str, Any] | None:
    """The row in a line of samples.jsonl or warnings.jsonl; None if the line is anything else."""
    try:
        row = json.loads(line)
        return row if row["timesteps"] >= 0 else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _is_beyond(row: dict[str, Any], step: int) -> bool:
    """Whether a run that is resumed from `step` will write this row again.

    A text of a rollout has the timesteps before the rollout, a text of an evaluation those at the evaluation.
    """
    return bool(row["timesteps"] > step or (row["timesteps"] == step and "log_ratios" in row))


def ends_in_newline(path: Path) -> bool:
    """Whether the last line of a file that is not empty has its end."""
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
