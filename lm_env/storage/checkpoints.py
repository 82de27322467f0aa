"""The checkpoints of one training run: a folder of saved folders, named by the step that they were made at.

    runs/a/000010000/       each written by `write_folder`, whole or not at all, with checksums
    runs/a/000020000/
    runs/a/.lock            there while a run has the folder

What is in a checkpoint is the caller's business; this file knows where it goes, when it is due, which
one is the newest that can be read, and which ones are old enough to be deleted.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from lm_env.errors import CheckpointCorruptError, CheckpointError, CheckpointWriteError, ConfigurationError
from lm_env.storage.lock import FileLock
from lm_env.storage.reading import OLD, is_saved_folder, real_place, workplace_of
from lm_env.storage.writing import check_destination, remove_folder
from lm_env.validation import check_integer

__all__ = ["CheckpointFolder", "Checkpointing", "checkpoints_in", "remove_checkpoints"]

log = logging.getLogger(__name__)

T = TypeVar("T")

LOCK = ".lock"
MINUTES = 10.0
"""How often a checkpoint is made where nothing is said."""

_NAME = re.compile(r"\d{9,}")
_WORKPLACE = re.compile(r"\.(\d{9,})\.lm_env")


@dataclass(frozen=True)
class Checkpointing:
    """Where a training run keeps its checkpoints, how often it makes one, and how many it keeps.

    Attributes:
        folder: of this run alone.
        every: steps between two checkpoints: generated tokens in an agent's `learn`, optimizer steps in
            fine-tuning and in the training of a reward model.  None: ten minutes.  One more is made at the
            end of the training, and one when a signal ends it.
        keep: how many of the newest stay; at least 1.  While one is written there is one more.

    Raises:
        ConfigurationError: `every` or `keep` is no integer of at least 1.
    """

    folder: str | Path
    every: int | None = None
    keep: int = 2

    def __post_init__(self) -> None:
        if self.every is not None:
            check_integer("every", self.every)
        check_integer("keep", self.keep)


def checkpoints_in(folder: str | Path) -> list[Path]:
    """The checkpoints in a folder, the oldest first; damaged ones are among them.

    Another process may be training there: what it deletes meanwhile can still be read by a loader that has begun.
    """
    root = real_place(folder)
    entries = os.listdir(root) if root.is_dir() else []
    names = {entry for entry in entries if _NAME.fullmatch(entry) and (root / entry).is_dir()}
    replaced = {match[1] for entry in entries if (match := _WORKPLACE.fullmatch(entry))}
    names |= {name for name in replaced if (workplace_of(root / name) / OLD).exists()}  # killed while it was replaced
    return sorted((root / name for name in names), key=_step)


def remove_checkpoints(folder: str | Path) -> None:
    """Delete the checkpoints of a run that is done and saved elsewhere, and their folder if nothing else is in it.

    Raises:
        RunLockedError: a run has the folder.
        CheckpointWriteError: they cannot be deleted.
    """
    root = real_place(folder)
    if not root.is_dir():
        return
    with CheckpointFolder(Checkpointing(root)):
        for path in checkpoints_in(root):
            remove_folder(path)
    with suppress(OSError):
        root.rmdir()


class CheckpointFolder:
    """A run's folder of checkpoints, held by this run alone from here until `close`, or the end of `with`.

    Raises:
        RunLockedError: another run has the folder.
        CheckpointWriteError: it cannot be written; found now and not after an hour.
    """

    def __init__(self, options: Checkpointing) -> None:
        if not isinstance(options, Checkpointing):
            raise ConfigurationError(f"checkpoint must be a Checkpointing(folder), not {type(options).__name__}")
        self.options = options
        self.root = real_place(options.folder)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.root / LOCK, self.root)
        except CheckpointError:
            raise
        except OSError as error:
            raise CheckpointWriteError(f"cannot write checkpoints to {self.root}: {error}") from error
        self.begin(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let another run have the folder."""
        self._lock.release()

    def place(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.root / _name(step)

    def check_room(self, size: int) -> None:
        """Raise CheckpointWriteError unless checkpoints of `size` bytes can be written, as many as are kept at a time.

        What killed saves have left behind is removed first.
        """
        self._sweep()
        there = len(checkpoints_in(self.root))
        check_destination(self.root / _name(0), size=size * max(1, self.options.keep + 1 - there))

    def check_unused(self, step: int) -> None:
        """Raise ConfigurationError if there are checkpoints beyond `step`, where a new run begins."""
        found = [path for path in checkpoints_in(self.root) if _step(path) > step]
        if found:
            raise ConfigurationError(
                f"{self.root} holds checkpoints of an earlier run (the newest is {found[-1].name}): pass resume=True to"
                " go on from there, or choose another folder"
            )

    def begin(self, step: int) -> None:
        """The run is at this step, and what it has learned up to here is saved or not worth saving."""
        self.last = step
        self._last_time = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether it is time for a checkpoint."""
        if self.options.every is None:
            return time.monotonic() - self._last_time >= 60 * MINUTES
        return step - self.last >= self.options.every

    def save(self, step: int, write: Callable[[Path], object]) -> None:
        """Have `write(path)` write the checkpoint of a step, then delete those that are not kept.

        Raises:
            CheckpointWriteError: what `write` raises; the checkpoints before are untouched.
        """
        write(self.place(step))
        self.begin(step)
        there = checkpoints_in(self.root)
        kept = [path for path in there if is_saved_folder(path)][-self.options.keep :]
        for path in there:
            if path in kept or (path.exists() and not is_saved_folder(path)):  # the second: a folder of somebody else
                continue
            try:
                remove_folder(path)
            except (CheckpointError, OSError) as error:
                log.warning("the old checkpoint %s could not be deleted: %s", path, error)

    def newest(self, read: Callable[[Path], T]) -> tuple[Path, T] | None:
        """(path, `read(path)`) of the newest checkpoint that can be read; None where there is none.

        A warning names those that are passed over, and why, and the one that is taken.  What is passed over
        is put aside under the name `NAME.damaged`, so that it does not lie in the way of the checkpoint that
        the run makes at that step.

        Raises:
            CheckpointMismatchError: what `read` raises for a checkpoint of another run.
        """
        passed_over = []
        found = None
        for path in reversed(checkpoints_in(self.root)):
            try:
                found = path, read(path)
                break
            except CheckpointCorruptError as error:
                aside = self._put_aside(path)
                passed_over.append(f"passed over the checkpoint {path.name}, now {aside.name} ({error})")
        goes_on = (
            f"going on from {found[0]}" if found else f"{self.root} holds no checkpoint: starting from the beginning"
        )
        if passed_over:
            warnings.warn("; ".join([*passed_over, goes_on]), stacklevel=2)
        else:
            log.log(logging.INFO if found else logging.WARNING, "%s", goes_on)
        return found

    def _put_aside(self, path: Path) -> Path:
        endings = itertools.chain([""], (f"-{n}" for n in itertools.count(1)))
        places = (path.with_name(f"{path.name}.damaged{ending}") for ending in endings)
        aside = next(place for place in places if not os.path.lexists(place))
        if path.exists():
            os.rename(path, aside)
        elif (old := workplace_of(path) / OLD).exists():
            os.rename(old, aside)
        return aside

    def _sweep(self) -> None:
        """Remove what killed saves have left: half of a checkpoint, or the work folder of a whole one."""
        there = set(checkpoints_in(self.root))
        for entry in os.listdir(self.root):
            if match := _WORKPLACE.fullmatch(entry):
                path = self.root / match[1]
                with suppress(CheckpointError):  # a damaged one, which `newest` passes over
                    if path in there:
                        check_destination(path)
                    else:
                        remove_folder(path)


def _name(step: int) -> str:
    return f"{step:09d}"


def _step(path: Path) -> int:
    return int(path.name)
