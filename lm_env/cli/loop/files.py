"""The results of phases in JSON files, which are written completely or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lm_env.runs.console import say
from lm_env.storage import read_lines, write_file

__all__ = ["kept", "kept_json", "read_rows", "write_rows"]


def kept(path: Path, make: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of a phase: those in its file, or else new ones, which are then written to the file."""
    if path.exists():
        say("", f"kept: {path}")
        return read_rows(path)
    rows = make()
    write_rows(path, rows)
    return rows


def kept_json(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The object in a JSON file, or else a new one, which is then written to the file."""
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    found = make()
    write_file(path, json.dumps(found, indent=1) + "\n")
    return found


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines that `write_rows` wrote."""
    return [json.loads(line) for line in read_lines(path)]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write JSON lines, completely or not at all."""
    write_file(path, "".join(json.dumps(row) + "\n" for row in rows))
