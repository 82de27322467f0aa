"""What a batched agent writes to its log, by stable-baselines3's logger; docs/metrics.md explains the names.

Unlike stable-baselines3's own, progress.csv is never truncated: an agent that was loaded goes on with
the file that it finds, and a new one puts it aside as progress.1.csv.
"""

from __future__ import annotations

import csv
import gc
import itertools
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import (
    Figure,
    FormatUnsupportedError,
    HParam,
    Image,
    KVWriter,
    Logger,
    Video,
    configure,
    filter_excluded_keys,
    make_output_format,
)

from agents.learning.rollout import Rollout
from lm_env.errors import CheckpointWriteError, RunLockedError
from lm_env.storage import FileLock

__all__ = ["ProgressFile", "begin_log", "make_logger", "rollout_metrics"]

LOCK = ".progress.lock"


class ProgressFile(KVWriter):
    """progress.csv in a folder, for one writer at a time: a line per rollout is added to what is there.

    Raises:
        RunLockedError: another writer has it.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "progress.csv"
        self._lock = _lock(folder)
        self._columns: list[str] | None = None  # not looked yet

    def put_aside(self) -> None:
        """Rename what others have written, unless something was added to it already."""
        if self._columns is None and self.path.exists():
            names = (self.path.with_name(f"progress.{n}.csv") for n in itertools.count(1))
            os.rename(self.path, next(name for name in names if not os.path.lexists(name)))

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Add a line; columns that are new are empty in the lines before it."""
        values = filter_excluded_keys(key_values, key_excluded, "csv")
        for value in values.values():
            if isinstance(value, Video | Figure | Image | HParam):
                raise FormatUnsupportedError(["csv"], type(value).__name__.lower())
        if self._columns is None:
            self._columns = self._found_columns()
        if new := sorted(values.keys() - set(self._columns)):
            self._add_columns(new)
        with self.path.open("a", newline="") as file:
            self._writer(file).writerow({name: str(value) for name, value in values.items()})

    def close(self) -> None:
        """Let another writer go on."""
        self._lock.release()

    def _found_columns(self) -> list[str]:
        """Those of a log that is gone on with; what is no such log is put aside."""
        if not self.path.exists():
            return []
        text = self.path.read_text(errors="replace")
        columns = next(csv.reader(text.splitlines()), [])
        if "time/total_timesteps" not in columns:
            self.put_aside()
            return []
        if not text.endswith("\n"):  # killed in the middle of a line
            with self.path.open("a") as file:
                file.write("\n")
        return columns

    def _add_columns(self, new: list[str]) -> None:
        rows = []
        if self.path.exists():
            with self.path.open(newline="", errors="replace") as file:
                rows = list(csv.reader(file))[1:]
        self._columns = [*(self._columns or []), *new]
        wider = self.path.with_name(".progress.csv.new")
        with wider.open("w", newline="") as file:
            writer = self._writer(file)
            writer.writeheader()
            writer.writer.writerows([*row, *[""] * len(new)] for row in rows)
        os.replace(wider, self.path)

    def _writer(self, file: Any) -> csv.DictWriter:
        return csv.DictWriter(file, self._columns or [], lineterminator="\n")


def make_logger(verbose: int, log_dir: str | Path | None) -> Logger:
    """A table on stdout if verbose; files in `log_dir`, TensorBoard's where it is installed.

    Raises:
        RunLockedError: another agent writes its log there.
        CheckpointWriteError: `log_dir` cannot be written.
    """
    if log_dir is None:
        return configure(None, ["stdout"] if verbose else [])
    folder = str(log_dir)
    try:
        formats: list[KVWriter] = [ProgressFile(Path(folder))]
        if verbose:
            formats.append(make_output_format("stdout", folder))
        if find_spec("tensorboard"):
            formats.append(make_output_format("tensorboard", folder))
    except RunLockedError:
        raise
    except OSError as error:
        raise CheckpointWriteError(f"cannot write the log to {folder}: {error}; choose another log_dir") from error
    return Logger(folder=folder, output_formats=formats)


def begin_log(logger: Logger) -> None:
    """A new agent begins to write: a log of an earlier one in the same folder is put aside, under a name of its own."""
    for output in logger.output_formats:
        if isinstance(output, ProgressFile):
            output.put_aside()


def rollout_metrics(rollout: Rollout) -> dict[str, float]:
    """Means over the episodes of a rollout, under the names that they are logged by."""
    scored = rollout.scored
    row = {
        "rollout/score": float(scored.scores.mean()),
        "rollout/reward": float(scored.rewards.sum(1).mean()),
        "rollout/kl": float(scored.kl.mean()),
        "rollout/entropy": float(-scored.logprobs[rollout.mask].mean()),
        "rollout/length": float(rollout.episodes.response_lengths.mean()),
        "rollout/ended": float(scored.ended.mean()),
    }
    if rollout.mismatch is not None:
        row["rollout/logprob_mismatch"] = float(rollout.mismatch.mean())
        row["rollout/logprob_mismatch_max"] = float(rollout.mismatch.max())
    return row


def _lock(folder: Path) -> FileLock:
    try:
        return FileLock(folder / LOCK, folder)
    except RunLockedError:
        gc.collect()  # an agent that nobody holds any more lets go of its log
    try:
        return FileLock(folder / LOCK, folder)
    except RunLockedError as error:
        raise RunLockedError(f"{error}; an agent of this process lets go with agent.logger.close()") from None
