"""The folder of a training run: what lies where, who may write there, and what was noted of the run.

run.yaml        the options, resolved; with the command, the versions and the seed
progress.csv    a line per rollout
samples.jsonl   texts that were written on the way
checkpoints/    what an interrupted run goes on from
policy/         the result
adapter/        of a run with LoRA, the adapter alone, as peft reads it
report.html     the run as one page
"""

from __future__ import annotations

import csv
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lm_env.errors import CheckpointWriteError, ConfigurationError, RunLockedError
from lm_env.runs.config_files import read_about, write_config
from lm_env.storage import FileLock, check_destination, checkpoints_in, is_saved_folder

__all__ = ["RunFolder", "check_new", "command_line"]

PACKAGES = ("lm-env", "torch", "transformers", "stable-baselines3", "gymnasium", "peft", "numpy")


@dataclass(frozen=True)
class RunFolder:
    """A folder for one run; nothing is made before `reserve`."""

    path: Path

    @property
    def config(self) -> Path:
        """The options of the run."""
        return self.path / "run.yaml"

    @property
    def samples(self) -> Path:
        """Texts that were written on the way."""
        return self.path / "samples.jsonl"

    @property
    def checkpoints(self) -> Path:
        """What an interrupted run goes on from."""
        return self.path / "checkpoints"

    @property
    def policy(self) -> Path:
        """The result."""
        return self.path / "policy"

    @property
    def adapter(self) -> Path:
        """The adapter alone, of a run with LoRA."""
        return self.path / "adapter"

    @property
    def report(self) -> Path:
        """The run as one page."""
        return self.path / "report.html"

    @property
    def has_run(self) -> bool:
        """Whether a run has begun here."""
        return self.config.exists()

    @property
    def trained_timesteps(self) -> int:
        """The tokens that the newest checkpoint has behind it; 0 where there is none."""
        there = checkpoints_in(self.checkpoints)
        return int(there[-1].name) if there else 0

    @property
    def is_finished(self) -> bool:
        """Whether the run here has come to its end."""
        return self.policy.exists()

    @contextmanager
    def reserve(self, *, resume: bool) -> Iterator[None]:
        """Inside, the folder is this run's alone; what could not be written at its end is an error at once.

        Raises:
            ConfigurationError: another run is here, and is not to be gone on with.
            CheckpointWriteError: it cannot be written, or holds files that the run would replace.
            RunLockedError: another process is writing there.
        """
        if self.has_run and not resume:
            ended = "a finished run" if self.is_finished else "an unfinished run"
            raise ConfigurationError(
                f"{self.path} holds {ended}: go on with it by resume=True, or choose another folder for a new one"
            )
        new = not self.path.exists()
        lock = None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock", self.path)
            if not self.has_run:
                self._check_free()
            check_destination(self.policy)
        except OSError as error:  # CheckpointWriteError and RunLockedError among them
            if lock is not None:
                lock.release()
            kind = type(error) if isinstance(error, CheckpointWriteError) else CheckpointWriteError
            hint = "" if isinstance(error, RunLockedError) else "; choose another folder"
            raise kind(f"cannot write to {self.path}: {error}{hint}") from error
        try:
            yield
        finally:
            lock.release()
            if new and not any(self.path.iterdir()):
                self.path.rmdir()

    def check_room(self, size: int) -> None:
        """Raise CheckpointWriteError where the disk has no room for the result, of `size` bytes."""
        check_destination(self.policy, size=size)

    def write_config(self, options: Mapping[str, Any], command: str) -> None:
        """Note the options of the run, with its command, the versions of the packages and the time.

        A run that is gone on with keeps its first command, and notes the others below it.
        """
        now = {
            "command": command,
            "directory": str(Path.cwd()),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {"python": platform.python_version(), **{p: v for p in PACKAGES if (v := _version(p))}},
            "machine": platform.platform(),
        }
        about = read_about(self.config) if self.has_run else {}
        if about:
            about = {**about, "resumed": [*about.get("resumed", []), now]}
        write_config(self.config, options, about or now)

    def log_rows(self) -> list[dict[str, str]]:
        """The rows of progress.csv."""
        log = self.path / "progress.csv"
        if not log.exists():
            return []
        with log.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def evaluations(self) -> list[dict[str, float]]:
        """The evaluations in progress.csv, the earliest first: `timesteps`, and what `Evaluation.metrics` holds."""
        return [
            {"timesteps": float(row["time/total_timesteps"])}
            | {name[5:]: float(v) for name, v in row.items() if name and name.startswith("eval/") and v}
            for row in self.log_rows()
            if row.get("eval/score")
        ]

    def _check_free(self) -> None:
        for place in (self.path / "progress.csv", self.samples, self.checkpoints, self.policy, self.report):
            if place.exists():
                raise FileExistsError(f"{place.name} is there, which is of no run that this command began")


def check_new(out: Path) -> None:
    """Raise ConfigurationError if a finished result was saved at `out`, so that none is replaced unasked."""
    if is_saved_folder(out):
        raise ConfigurationError(f"{out} holds what an earlier command saved: choose another --out, or move it away")


def command_line() -> str:
    """The command that this process was started by, to be typed again."""
    name = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    return shlex.join([name, *sys.argv[1:]])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
