"""What a batched agent writes to its log, by stable-baselines3's logger; docs/metrics.md explains the names.

Unlike stable-baselines3's own, progress.csv is never truncated: an agent that was loaded goes on with
the file that it finds, and a new one puts it aside as progress.1.csv.  A run that goes on from a
checkpoint takes back the rows that were written after it (`rewind_log`), so that none is there twice.
"""

from __future__ import annotations

import csv
import gc
import io
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import (
    Figure,
    FormatUnsupportedError,
    HParam,
    HumanOutputFormat,
    Image,
    KVWriter,
    Logger,
    TensorBoardOutputFormat,
    Video,
    configure,
    filter_excluded_keys,
    make_output_format,
)

from agents.run.aside import put_files_aside, put_into_folder_aside
from agents.run.records import RunFiles, ends_in_newline
from agents.run.trackers import LogTo, tracker
from lm_env.errors import CheckpointWriteError, RunLockedError
from lm_env.report import RUN_FILES
from lm_env.storage import FileLock, write_file

__all__ = [
    "ProgressFile",
    "begin_log",
    "make_logger",
    "rewind_log",
]

log = logging.getLogger(__name__)

LOCK = ".progress.lock"
EVENTS = "events.out.tfevents.*"
"""TensorBoard's files."""
STEP = "time/total_timesteps"
"""The column that says when a row was written."""


class ProgressFile(KVWriter):
    """progress.csv in a folder, for one writer at a time: a line per rollout is added to what is there.

    Raises:
        RunLockedError: another writer has it.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "progress.csv"
        self._lock: FileLock | None = _lock(folder)
        self._columns: list[str] | None = None  # not looked yet
        self._earlier_events = sorted(folder.glob(EVENTS))

    def put_aside(self) -> None:
        """Rename what others have written, and what belongs to it, unless something was added to it already.

        TensorBoard's files of others go into a folder, which it shows as a run of its own.
        """
        if self._columns is None:
            put_files_aside(self.path.parent, [self.path.name, *RUN_FILES])
            put_into_folder_aside(
                self.path.parent, "tensorboard", [path for path in self._earlier_events if path.exists()]
            )

    def hold(self) -> None:
        """Keep others from writing, if it was released.

        Raises:
            RunLockedError: another writer has it.
        """
        if self._lock is None:
            self._lock = _lock(self.path.parent)
            self._columns = None

    def release(self) -> None:
        """Let another writer go on; before the next line it is held again."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Add a line; columns that are new are empty in the lines before it."""
        self.hold()
        values = filter_excluded_keys(key_values, key_excluded, "csv")
        for value in values.values():
            if isinstance(value, Video | Figure | Image | HParam):
                raise FormatUnsupportedError(["csv"], type(value).__name__.lower())
        if self._columns is None:
            self._columns = self._take_over()
        if new := sorted(values.keys() - set(self._columns)):
            self._add_columns(new)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            self._writer(file).writerow({name: str(value) for name, value in values.items()})

    def rewind(self, step: int) -> None:
        """Take back what was written after `step` timesteps, and half a line of a process that was killed."""
        self._columns = self._take_over()
        if not self._columns:
            return
        at = self._columns.index(STEP)
        rows = self._rows()
        beyond = (i for i, row in enumerate(rows) if len(row) != len(self._columns or []) or _is_beyond(row[at], step))
        self._replace(rows[: next(beyond, len(rows))])

    def close(self) -> None:
        """Let another writer go on."""
        self.release()

    def _take_over(self) -> list[str]:
        """The columns of a log that is gone on with, its last line ended; what is no such log is put aside."""
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8", errors="replace") as file:
            columns = next(csv.reader(file), [])
        if STEP not in columns:
            put_files_aside(self.path.parent, [self.path.name])
            return []
        if not ends_in_newline(self.path):  # killed in the middle of a line
            with self.path.open("a") as file:
                file.write("\n")
        return columns

    def _add_columns(self, new: list[str]) -> None:
        rows = self._rows()
        self._columns = [*(self._columns or []), *new]
        self._replace([[*row, *[""] * len(new)] for row in rows])

    def _rows(self) -> list[list[str]]:
        """All lines but the first."""
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8", errors="replace") as file:
            return list(csv.reader(file))[1:]

    def _replace(self, rows: list[list[str]]) -> None:
        """Have these rows in the file, in one step."""
        whole = io.StringIO()
        writer = self._writer(whole)
        writer.writeheader()
        writer.writer.writerows(rows)
        write_file(self.path, whole.getvalue())

    def _writer(self, file: Any) -> csv.DictWriter:
        return csv.DictWriter(file, self._columns or [], lineterminator="\n")


def make_logger(verbose: int, log_dir: str | Path | None, log_to: LogTo = ()) -> Logger:
    """A table on stdout if verbose; files in `log_dir`, TensorBoard's where it is installed; trackers.

    Args:
        log_to: "wandb", "mlflow", or outputs of one's own, see `tracker`.

    Raises:
        ConfigurationError: there is no such tracker, or it refuses to begin a run.
        MissingDependencyError: its package is not installed.
        RunLockedError: another agent writes its log there.
        CheckpointWriteError: `log_dir` cannot be written.
    """
    given = [log_to] if isinstance(log_to, str | KVWriter) else list(log_to)
    logger = configure(None, []) if log_dir is None else Logger(folder=str(log_dir), output_formats=[])
    with ExitStack() as begun:  # outputs that are closed if a later one cannot be made
        for output in _outputs(verbose, log_dir, given):
            logger.output_formats.append(output)
            if output not in given:
                begun.callback(output.close)
        begun.pop_all()
    return logger


def _outputs(verbose: int, log_dir: str | Path | None, given: Sequence[str | KVWriter]) -> Iterator[KVWriter]:
    """One by one; the files come first, so that a folder of another agent is refused before a tracker begins a run."""
    if log_dir is not None:
        try:
            yield ProgressFile(Path(log_dir))
            yield RunFiles(Path(log_dir))
            if find_spec("tensorboard"):
                yield make_output_format("tensorboard", str(log_dir))
            else:
                _tell_without_tensorboard()
        except RunLockedError:
            raise
        except OSError as error:
            raise CheckpointWriteError(f"cannot write the log to {log_dir}: {error}; choose another log_dir") from error
    if verbose:
        yield HumanOutputFormat(sys.stdout)
    for output in given:
        yield tracker(output)


@cache
def _tell_without_tensorboard() -> None:
    """Once in a process."""
    log.warning(
        "TensorBoard is not installed, so log_dir gets progress.csv, samples.jsonl and report.html and no files of"
        " TensorBoard's: pip install 'lm-env[tensorboard]'"
    )


def begin_log(logger: Logger, *, new: bool = True) -> None:
    """A training begins to write.

    Args:
        new: nothing was trained before, so a log of an earlier agent in the same folder is put aside, under a name of
            its own.

    Raises:
        RunLockedError: another agent writes there meanwhile.
    """
    for output in logger.output_formats:
        if isinstance(output, ProgressFile):
            output.hold()
            if new:
                output.put_aside()


def rewind_log(logger: Logger, step: int) -> None:
    """Take back what was logged after `step` timesteps, for a run that goes on from there.

    TensorBoard's files cannot be cut; they are told that the run has started again, and then what was
    written for later steps is not shown.  An output format of one's own is asked by its method `rewind(step)`.
    """
    for output in logger.output_formats:
        if isinstance(output, TensorBoardOutputFormat):
            folder = output.writer.log_dir
            output.writer.close()
            output.writer = type(output.writer)(log_dir=folder, purge_step=step + 1)
        elif callable(rewind := getattr(output, "rewind", None)):
            rewind(step)


def _is_beyond(written: str, step: int) -> bool:
    try:
        return float(written) > step
    except ValueError:  # a row without a step, as a callback may write one
        return False


def _lock(folder: Path) -> FileLock:
    try:
        return FileLock(folder / LOCK, folder)
    except RunLockedError:
        gc.collect()  # an agent that nobody holds any more lets go of its log
    try:
        return FileLock(folder / LOCK, folder)
    except RunLockedError as error:
        raise RunLockedError(f"{error}; an agent of this process lets go with agent.logger.close()") from None
