"""The tables, the figures and the page of a benchmark as files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lm_env.benchmark.records import Record
from lm_env.benchmark.results.markdown import as_markdown
from lm_env.benchmark.results.page import render_page
from lm_env.benchmark.results.pictures import plot_benchmark
from lm_env.benchmark.results.summary import Summary, summarize_records
from lm_env.errors import CheckpointWriteError
from lm_env.storage import write_file

__all__ = ["Files", "write_results"]


@dataclass(frozen=True)
class Files:
    """What was written."""

    summary: Summary
    markdown: Path
    picture: Path
    page: Path


def write_results(
    records: Sequence[Record],
    folder: str | Path,
    *,
    title: str,
    command: str,
    task_commands: dict[str, str] | None = None,
) -> Files:
    """Write results.md, results.png and results.html into a folder; each replaces an older one in one step.

    Raises:
        ConfigurationError: the records hold no runs, or such as cannot stand side by side.
        CheckpointWriteError: the folder cannot be written.
    """
    summary = summarize_records(records)
    place = Path(folder)
    found = Files(summary, place / "results.md", place / "results.png", place / "results.html")
    page = render_page(summary, title=title, command=command, task_commands=task_commands)
    try:
        place.mkdir(parents=True, exist_ok=True)
        write_file(found.markdown, as_markdown(summary, title=title, command=command))
        write_file(found.page, page)
        new = place / ".results.new.png"
        plot_benchmark(summary, new)
        os.replace(new, found.picture)
    except OSError as error:
        raise CheckpointWriteError(f"cannot write to {folder}: {error}; choose another --out") from error
    return found
