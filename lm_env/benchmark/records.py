"""The records of a benchmark: JSON objects that hold all that is needed to repeat what they report.

A record says what was run (`settings`), where (`versions`, `hardware`, `commit`), and the results.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import lm_env
from lm_env.benchmark.shapes import SCHEMA, record_problem
from lm_env.errors import CheckpointWriteError, LogReadError
from lm_env.storage import read_lines, write_file

__all__ = [
    "SCHEMA",
    "Record",
    "comparable",
    "environment",
    "given_options",
    "options_in_words",
    "parsed",
    "read_records",
    "write_json",
    "write_lines",
]

PACKAGES = (
    "lm-env",
    "torch",
    "transformers",
    "numpy",
    "gymnasium",
    "stable-baselines3",
    "sb3-contrib",
    "tianshou",
    "torchrl",
    "trl",
    "peft",
)

VARYING = ("seconds", "evaluation_seconds", "tokens_per_second", "hardware", "finished")
"""Keys whose values may differ between two runs of the same cell: times, and where they ran."""

Record = dict[str, Any]


def environment(threads: int, device: str) -> Record:
    """`versions`, `hardware` and `commit` of this process.

    Args:
        threads: of torch on the CPU; with another number, results differ in their last bits.
    """
    hardware: Record = {
        "machine": platform.machine(),
        "system": platform.platform(terse=True),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": threads,
        "device": device,
    }
    if torch.device(device).type == "cuda" and torch.cuda.is_available():
        hardware["gpu"] = torch.cuda.get_device_name(device)
    return {"versions": _versions(), "hardware": hardware, "commit": _commit()}


def given_options(options: Mapping[str, Any]) -> Record:
    """The options that a task was made with, as `task_options` of its records; {} without any.

    With other options it is another task, whatever its name.
    """
    return {"task_options": json.loads(json.dumps(dict(options), default=str))} if options else {}


def options_in_words(record: Record) -> str:
    """The options of a record's task, such as `level 3`; "" without any."""
    options = sorted(record.get("task_options", {}).items())
    return ", ".join(f"{name} {value if isinstance(value, str) else json.dumps(value)}" for name, value in options)


def comparable(value: Any) -> Any:
    """A record without times and hardware: what must be equal between a run that was killed and one that was not."""
    if isinstance(value, Mapping):
        return {key: comparable(part) for key, part in value.items() if key not in VARYING}
    if isinstance(value, list | tuple):
        return [comparable(part) for part in value]
    return value


def write_json(path: Path, content: Any) -> None:
    """Write one JSON file in one step.

    Raises:
        CheckpointWriteError: it cannot be written; what was there before is untouched.
    """
    _write(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_lines(path: Path, records: Iterable[Record]) -> None:
    """Write a file of JSON lines in one step: it never holds half a line.

    Raises:
        CheckpointWriteError: as `write_json`.
    """
    _write(path, "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records))


def read_records(path: str | Path) -> list[Record]:
    """The records in a file of JSON lines.

    Raises:
        LogReadError: it cannot be read, or a line is no record of a benchmark; the message names it.
    """
    try:
        lines = read_lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise LogReadError(f"{path} cannot be read ({error}): give a results.jsonl of lm-env bench") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = parsed(line)
        except ValueError as error:
            raise LogReadError(f"{path}, line {number} is no JSON ({error}): repair or remove it") from error
        if problem := record_problem(record):
            raise LogReadError(
                f"{path}, line {number} is no record that this version of lm-env bench can read ({problem}): remove it,"
                " or run that benchmark again"
            )
        found.append(record)
    return found


def parsed(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none, is nested too deeply, or holds NaN or Infinity, which JSON does not have.
    """

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, text)
    except OSError as error:
        raise CheckpointWriteError(f"cannot write {path}: {error}; choose another folder") from error


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@cache
def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def _commit() -> str | None:
    """The commit of the package where it runs from a git checkout, with `+changes` where files differ from it."""
    home = Path(lm_env.__file__).parent
    try:
        top = _git(home, "rev-parse", "--show-toplevel")
        if not (Path(top) / "pyproject.toml").exists():  # installed into some other project's checkout
            return None
        commit = _git(home, "rev-parse", "HEAD")
        changed = _git(home, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changed else "")


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
