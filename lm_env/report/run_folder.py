"""What the folder of a run holds, read and checked: the log, texts, warnings, settings, a ceiling.

Whatever is missing is left out; what is there and cannot be read is a `LogReadError` that names file and line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_env.errors import ConfigurationError, LogReadError
from lm_env.report.progress_table import ProgressTable, read_progress
from lm_env.storage.yaml_text import parse_yaml

__all__ = [
    "PROGRESS_FILE",
    "RUN_FILE",
    "RUN_FILES",
    "SAMPLES_FILE",
    "WARNINGS_FILE",
    "Run",
    "Text",
    "read_run",
]

PROGRESS_FILE = "progress.csv"
RUN_FILE = "run.json"
OPTIONS_FILE = "run.yaml"
SAMPLES_FILE = "samples.jsonl"
WARNINGS_FILE = "warnings.jsonl"
CEILING_FILE = "ceiling.json"
SUMMARY_FILE = "summary.json"

RUN_FILES = (RUN_FILE, SAMPLES_FILE, WARNINGS_FILE, "report.html")
"""What belongs to progress.csv of the same folder, and is put aside with it."""


@dataclass(frozen=True)
class Text:
    """One text that a policy wrote."""

    timesteps: int
    """Tokens of training before it."""
    prompt: str
    response: str
    score: float
    kl: float | None
    tokens: tuple[str, ...] = ()
    """Empty where the log holds the response alone."""
    log_ratios: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Run:
    """All that is known of a run."""

    folder: Path
    progress: ProgressTable
    texts: list[Text] = field(default_factory=list)
    warnings: list[tuple[int, str]] = field(default_factory=list)
    """(timesteps, sentence), the earliest first."""
    settings: dict[str, Any] = field(default_factory=dict)
    """run.json: see `agents.base.description.run_settings`; {} where there is none."""
    options: dict[str, Any] = field(default_factory=dict)
    """run.yaml of `lm-env train`, without its notes; {} where there is none."""
    about: dict[str, Any] = field(default_factory=dict)
    """The notes in run.yaml: command, versions, directory, started."""
    ceiling: dict[str, Any] = field(default_factory=dict)
    """ceiling.json of `lm-env ceiling`."""
    summary: dict[str, Any] = field(default_factory=dict)
    """summary.json of `lm-env demo`."""


def read_run(folder: str | Path) -> Run:
    """Read the folder of `lm-env train` or `lm-env demo`, or the `log_dir` of an agent.

    Raises:
        ConfigurationError: there is no such folder, or nothing of a run in it.
        LogReadError: a file of the run is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is no folder: give that of a run, such as lm-env train --out wrote it")
    log = folder if (folder / PROGRESS_FILE).exists() or not (folder / "log").is_dir() else folder / "log"
    known = (PROGRESS_FILE, SAMPLES_FILE, RUN_FILE, OPTIONS_FILE)
    if not any((log / name).exists() or (folder / name).exists() for name in known):
        raise ConfigurationError(
            f"{folder} holds no run: there is no {PROGRESS_FILE}; give the folder of lm-env train --out, or the log_dir"
            " of an agent"
        )
    options = _read_yaml(folder / OPTIONS_FILE)
    about = options.pop("about", {})
    return Run(
        folder=folder,
        progress=read_progress(log / PROGRESS_FILE),
        texts=[_text(log / SAMPLES_FILE, number, row) for number, row in _read_lines(log / SAMPLES_FILE)],
        warnings=[_warning(log / WARNINGS_FILE, number, row) for number, row in _read_lines(log / WARNINGS_FILE)],
        settings=_read_json(log / RUN_FILE),
        options=options,
        about=about if isinstance(about, dict) else {},
        ceiling=_read_json(folder / CEILING_FILE),
        summary=_read_json(folder / SUMMARY_FILE),
    )


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise LogReadError(f"{path} cannot be read ({error}): repair it, or move it away") from error


def _read_json(path: Path) -> dict[str, Any]:
    text = _read_text(path)
    try:
        content = {} if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LogReadError(f"{path} is no JSON ({error}): repair it, or move it away") from error
    if not isinstance(content, dict):
        raise LogReadError(f"{path} holds no table of names and values: repair it, or move it away")
    return content


def _read_yaml(path: Path) -> dict[str, Any]:
    text = _read_text(path)
    if text is None:
        return {}
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise LogReadError(f"{path} is no YAML ({error}): repair it, or move it away") from error
    if not isinstance(content, dict):
        raise LogReadError(f"{path} holds no table of names and values: repair it, or move it away")
    return {str(name): value for name, value in content.items()}


def _read_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(number, row) of JSON lines; a last line without its end was cut off when the run was killed, and is left out."""
    text = _read_text(path) or ""
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                return
            raise LogReadError(f"{path}, line {number}, is no JSON ({error}): repair or remove the line") from error
        if not isinstance(row, dict):
            raise LogReadError(f"{path}, line {number}, is no table of names and values: repair or remove the line")
        yield number, row


def _text(path: Path, number: int, row: Mapping[str, Any]) -> Text:
    try:
        tokens = tuple(str(token) for token in row.get("tokens", ()))
        ratios = tuple(None if ratio is None else float(ratio) for ratio in row.get("log_ratios", ()))
        if len(tokens) != len(ratios):
            raise ValueError(f"{len(tokens)} tokens and {len(ratios)} log_ratios")
        kl = row.get("kl")
        return Text(
            timesteps=int(row["timesteps"]),
            prompt=str(row["prompt"]),
            response=str(row["response"]),
            score=float(row["score"]),
            kl=None if kl is None else float(kl),
            tokens=tokens,
            log_ratios=ratios,
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise LogReadError(
            f"{path}, line {number}, is no text of a run ({type(error).__name__}: {error}): each has timesteps, prompt,"
            " response and score; repair or remove the line"
        ) from error


def _warning(path: Path, number: int, row: Mapping[str, Any]) -> tuple[int, str]:
    try:
        return int(row["timesteps"]), str(row["warning"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise LogReadError(
            f"{path}, line {number}, is no warning ({type(error).__name__}: {error}): repair or remove the line"
        ) from error
