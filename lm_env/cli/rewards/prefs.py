"""`lm-env prefs`: look at files of human preferences, and convert them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["prefs_app"]

prefs_app = typer.Typer(
    help="Look at human preferences: comparisons, rankings, ratings.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Source = Annotated[str, typer.Argument(help="A .jsonl, .json, .csv, .tsv or .parquet file, or a hub id.")]
FormatOption = Annotated[
    str | None, typer.Option("--format", help="Format of the file.  [default: recognized by its columns]")
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave broken rows out, and count them.")]
DownloadOption = Annotated[bool, typer.Option("--download", help="Allow fetching hub ids.")]


@prefs_app.command(name="inspect")
def inspect_command(
    file: Source,
    held_out: Annotated[
        str | None, typer.Option("--held-out", help="A second file, to be searched for prompts of the first.")
    ] = None,
    format: FormatOption = None,
    skip_bad: SkipBad = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    download: DownloadOption = False,
) -> None:
    """Count what is in a file of preferences, and what is wrong with it.

    Exit status 0 if nothing is; 1 if the file cannot be read; 3 if there are broken rows that were skipped,
    contradictions, duplicates, comparisons of a text with itself, or prompts that are in both files.
    """
    from reward_models.preferences.inspection import inspect_preferences, leaks
    from reward_models.preferences.reading import read_preferences

    read = read_preferences(file, format=format, skip_bad=skip_bad, download=download)
    found = inspect_preferences(read)
    shared = None
    if held_out is not None:
        second = read_preferences(held_out, format=format, skip_bad=skip_bad, download=download)
        shared = leaks(read, second)
    faults = {
        "broken rows": len(read.problems),
        "duplicates": found.duplicates,
        "contradictions": found.contradictions,
        "identical responses": found.identical,
        "prompts in both files": shared[0] if shared else 0,
    }
    if as_json:
        content = {"format": read.format, "rows": read.rows, **asdict(found), "problems": list(read.problems)}
        print(json.dumps({**content, "shared_prompts": shared and shared[0], "shared_responses": shared and shared[1]}))
    else:
        _show(read, found, shared)
    raise typer.Exit(3 if any(faults.values()) else 0)


@prefs_app.command()
def convert(
    file: Source,
    out: Annotated[Path, typer.Argument(help="A .jsonl, .csv or .parquet file to write.")],
    to: Annotated[str, typer.Option(help="Format to write; 'rankings' holds everything.")] = "rankings",
    format: FormatOption = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace a file that is there, in one step.  [default: refuse]")
    ] = False,
    skip_bad: SkipBad = False,
    download: DownloadOption = False,
) -> None:
    """Write a file of preferences in another format; refused where that would lose something."""
    from reward_models.preferences.reading import read_preferences, write_preferences

    read = read_preferences(file, format=format, skip_bad=skip_bad, download=download)
    write_preferences(read, out, format=to, replace=replace)
    print(f"{len(read)} records of {file} ({read.format}) are in {out} as {to}")


@prefs_app.command()
def formats() -> None:
    """List the formats that are read and written, with their columns."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from reward_models.preferences.formats import FORMATS

    table = Table("--format", "a row holds", header_style="bold")
    for kind in FORMATS.values():
        table.add_row(kind.name, escape(kind.columns))
    Console().print(table)


def _show(read: Any, found: Any, shared: tuple[int, int] | None) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(show_header=False)

    def row(name: str, value: Any, bad: bool = False) -> None:
        table.add_row(name, f"[red]{value}[/red]" if bad else str(value))

    sizes = ", ".join(f"{count:,} of {k}" for k, count in found.sizes.items())
    row("format", read.format)
    row("rows", f"{read.rows:,}")
    row("broken rows, skipped", len(read.problems), bool(read.problems))
    row("records", f"{found.records:,} (responses: {sizes})")
    row("distinct prompts", f"{found.prompts:,}")
    row("comparisons", f"{found.comparisons:,}")
    if found.comparisons:
        row("ties", f"{found.ties:,} ({found.ties / found.comparisons:.1%})")
        row("a text with itself", found.identical, bool(found.identical))
        row("pairs judged more than once", f"{found.repeated:,}")
        row("contradictions among them", f"{found.contradictions:,}", bool(found.contradictions))
    row("duplicate records", found.duplicates, bool(found.duplicates))
    row("empty responses", found.empty)
    if read.extra_columns:
        row("other columns", f"{', '.join(map(repr, read.extra_columns))}: not part of any prompt or response")
    if found.longer_wins is not None:
        row("the longer response wins", f"{found.longer_wins:.1%}")
    for name, (low, middle, high) in found.lengths.items():
        row(f"characters of a {name}", f"{middle:,} (quartiles {low:,} and {high:,})")
    if found.ratings is not None:
        low, mean, high = found.ratings
        row("ratings", f"{low:g} to {high:g}, mean {mean:.3g}")
    if found.annotators:
        first = ", ".join(f"{name}: {count}" for name, count in list(found.annotators.items())[:5])
        row("annotators", f"{len(found.annotators)} ({first}{', ...' if len(found.annotators) > 5 else ''})")
    if found.spans:
        row("marked spans", ", ".join(f"{name}: {count}" for name, count in found.spans.items()))
    if shared is not None:
        row("prompts that the held-out file shares", shared[0], bool(shared[0]))
        row("responses that the held-out file shares", shared[1])
    console.print(table)
    for problem in read.problems[:5]:
        console.print(f"skipped: {problem}", markup=False, highlight=False)
    if len(read.problems) > 5:
        console.print(f"... and {len(read.problems) - 5} more", markup=False)
