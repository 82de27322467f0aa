"""`lm-env leaderboard`: the results of several benchmarks in one table."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["leaderboard"]


def leaderboard(
    files: Annotated[
        list[Path], typer.Argument(help="results.jsonl of lm-env bench, files of lm-env evaluate, or their folders.")
    ],
    out: Annotated[Path | None, typer.Option(help="A folder for results.md, results.png and results.html.")] = None,
    title: Annotated[str, typer.Option(help="The heading.")] = "Leaderboard",
) -> None:
    """Put the results of many runs side by side: files of several machines, of models trained elsewhere.

    Runs of a task that were measured differently make tables of their own.
    """
    from lm_env.benchmark.results import as_markdown, merge_files, summarize_records, write_results
    from lm_env.benchmark.runner import RESULTS
    from lm_env.runs.console import say

    paths = [path / RESULTS if path.is_dir() else path for path in files]
    records = merge_files(paths)
    command = shlex.join(["lm-env", "leaderboard", *map(str, paths)])
    print(as_markdown(summarize_records(records), title=title, command=command))
    if out is not None:
        written = write_results(records, out, title=title, command=f"{command} --out {shlex.quote(str(out))}")
        say("written", f"{written.markdown}, {written.picture.name}, {written.page.name}")
