"""The tables of a benchmark as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lm_env.benchmark.results.aggregate import Aggregate
from lm_env.benchmark.results.numbers import (
    COSTS,
    IMPROVEMENT,
    Column,
    aggregate_rows,
    compact_columns,
    cost_rows,
    improvement_rows,
    percent,
    shown,
    task_columns,
)
from lm_env.benchmark.results.summary import Summary
from lm_env.benchmark.results.tables import Row, TaskTable
from lm_env.benchmark.statistics import Interval
from lm_env.report.texts import visible

__all__ = ["as_markdown", "circumstances", "markdown_table", "overview_of", "table_of"]

ENOUGH_SEEDS = 5
BEST_OF_ROWS = ("best-of-4", "best-of-16")
TAG = re.compile(r"<(?=[A-Za-z/!?])")
INTERVAL = re.compile(r"\(\S+ to \S+\)")


def as_markdown(
    summary: Summary, *, title: str = "Benchmark", command: str | None = None, compact: bool = False
) -> str:
    """All tables, with the budgets, seeds, versions and machines that they were made with.

    Args:
        compact: one table for each task instead of three: without diversity, lengths, paired tests and the like.
    """
    parts = [f"# {_in_line(title)}", *map(_in_line, circumstances(summary))]
    if command:
        parts.append(f"```\n{command}\n```")
    if summary.aggregate is not None:
        parts += _aggregate(summary.aggregate)
    for table in summary.tables:
        parts += _task(table, compact)
    return "\n\n".join(parts) + "\n"


def circumstances(summary: Summary) -> list[str]:
    """Budgets, seeds, versions and machines, in sentences."""
    runs = [record for record in summary.records if record["kind"] == "run"]
    trials = [record for record in summary.records if record["kind"] == "trial"]
    said = []
    if runs:
        budgets = sorted({record["settings"]["budget"] for record in runs})
        amount = f"{budgets[0]:,} tokens"
        if len(budgets) > 1:
            amount = f"{budgets[0]:,} to {budgets[-1]:,} tokens depending on the task"
        seeds = sorted({len(row.records) for table in summary.tables for row in table.rows if row.trained})
        number = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        said.append(
            f"Each agent was trained with {number} seed{'s' if number != '1' else ''} on each task, for {amount} (the"
            " last rollout is finished). All intervals are 95%: for trained agents by the bootstrap over seeds, for all"
            " other rows over prompts."
        )
        if seeds[0] < ENOUGH_SEEDS:
            said.append(
                f"Beware: with fewer than {ENOUGH_SEEDS} seeds an interval is too narrow; with a single one it is over"
                " prompts, and says nothing about other seeds."
            )
        if trials:
            per = max(record["trial"] for record in trials) + 1
            said.append(
                f"Before that, {per} learning rate{'s were' if per > 1 else ' was'} tried for each agent on each task,"
                " with as many tokens and another seed, and the one with the largest J on the validation prompts was"
                " used. No other option was tuned in this benchmark."
            )
        else:
            said.append(
                "Nothing was tuned in this benchmark: the agents have their default options, or those that its settings"
                " name."
            )
    versions = ", ".join(f"{name} {' and '.join(numbers)}" for name, numbers in _versions(summary).items())
    machines = sorted(
        {
            f"{r['hardware']['cpu']}, {r['hardware']['cores']} cores, {r['hardware']['threads']} thread(s)"
            f" per run, {r['hardware'].get('gpu', r['hardware']['device'])}"
            for r in summary.records
        }
    )
    commits = sorted({_short(str(record["commit"])) for record in summary.records if record["commit"]})
    said.append(
        f"Versions: {versions}. Machine: {'; '.join(machines)}."
        + (f" Commit: {', '.join(commits)}." if commits else "")
    )
    return said


def _versions(summary: Summary) -> dict[str, list[str]]:
    """The versions of each package that the records were made with; those of several machines may differ."""
    found: dict[str, dict[str, None]] = {}
    for record in summary.records:
        for name, number in record["versions"].items():
            found.setdefault(name, {})[number] = None
    return {name: list(numbers) for name, numbers in found.items()}


def _short(commit: str) -> str:
    """The first digits of a commit, and whether files differed from it."""
    digits, _, changes = commit.partition("+")
    return digits[:10] + (" with local changes" if changes else "")


def table_of(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """A Markdown table of a task."""
    head = ["agent", *(column.title for column in columns)]
    body = [
        [f"**{row.agent}**" if row.trained else row.agent, *(column.show(row) for column in columns)] for row in rows
    ]
    return markdown_table(head, body)


def overview_of(summary: Summary) -> str:
    """The attained share of every agent, and of best-of-n, on each task, as one Markdown table.

    The last column is the interquartile mean over all of them, once every agent has runs on every task.
    """
    found = summary.aggregate
    whole = found is not None and len(found.tasks) == len(summary.tables) > 1
    order = sorted(found.iqm, key=lambda agent: -found.iqm[agent].value) if found is not None else summary.agents
    head = ["", *(table.task.removesuffix("-v0") for table in summary.tables)]
    body = []
    for agent in (*BEST_OF_ROWS, *order):
        rows = [table.row(agent) for table in summary.tables]
        shares = ["" if row is None else percent(row.attained) for row in rows]
        if any(shares):
            overall = [percent(found.iqm.get(agent))] if found is not None and whole else []
            body.append([f"**{agent}**" if agent in order else agent, *shares, *overall])
    return markdown_table(head + (["all tasks"] if whole else []), body)


def _task(table: TaskTable, compact: bool) -> list[str]:
    main, more = (compact_columns(table), []) if compact else task_columns(table)
    parts = [f"## {_in_line(table.task)}"]
    if table.ceiling is not None and table.ceiling["J"]["mean"] is not None:
        J, score, kl = (table.ceiling[name] for name in ("J", "score", "KL"))
        values = [shown(_interval(part)) for part in (score, kl, J)]
        parts.append(
            f"The optimum of J = score \u2212 {table.ceiling['beta']:g} KL: score {values[0]}, KL {values[1]} nats, J"
            f" {values[2]}."
        )
        parts += [
            f"J is a lower bound, so the attained shares are too large: {_in_line(d)}." for d in table.ceiling["doubts"]
        ]
    parts.append(table_of(table.rows, main))
    if table.matched_kl is not None and any(column.title == "score at KL" for column in main):
        parts.append(f"`score at KL`: at {table.matched_kl:.3g} nats, half of the optimum's KL.")
    if more:
        parts.append(table_of(table.rows, more))
    if not compact and any(row.records[0]["kind"] != "model" for row in table.rows):  # models cost nothing here
        head = ["agent", *(column.title for column in COSTS)]
        parts.append(markdown_table(head, [list(row) for row in cost_rows(table)]))
    return parts


def _aggregate(found: Aggregate) -> list[str]:
    order, rows = improvement_rows(found)
    return [
        "## All tasks",
        f"The attained share of the ceiling over {len(found.tasks)} task{'s' if len(found.tasks) > 1 else ''}:"
        f" {_in_line(', '.join(found.tasks))}.",
        markdown_table(
            ["agent", "interquartile mean", "mean over tasks"], [list(row) for row in aggregate_rows(found)]
        ),
        IMPROVEMENT,
        markdown_table(["", *order], [[agent, *cells] for agent, cells in zip(order, rows, strict=True)]),
    ]


def _interval(estimate: dict[str, float | None]) -> Interval | None:
    mean, se = estimate["mean"], estimate["se"]
    if mean is None:
        return None
    half = float("nan") if se is None else 1.96 * se
    return Interval(mean, mean - half, mean + half)


def _in_line(text: str) -> str:
    """A name from a file as one line of Markdown: no markup of HTML, and nothing that moves a terminal's cursor."""
    return TAG.sub("&lt;", visible(text.replace("\n", " ")))


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; bars within a cell are escaped, and narrow columns break no line within an interval."""

    def shown_cell(cell: str) -> str:
        text = _in_line(cell).replace("|", "\\|").replace(" \u00b1 ", "\u00a0\u00b1\u00a0")
        return INTERVAL.sub(lambda found: found.group().replace(" ", "\u00a0"), text)

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(map(shown_cell, cells)) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])
