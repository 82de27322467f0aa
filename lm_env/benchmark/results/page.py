"""A benchmark as one HTML page: tables, learning curves, score over KL, texts side by side, and every figure's command.

The page needs no network and no script, as that of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm_env.benchmark.results.aggregate import Aggregate
from lm_env.benchmark.results.curves import frontier_points, learning_band, spots
from lm_env.benchmark.results.markdown import circumstances
from lm_env.benchmark.results.numbers import (
    COSTS,
    IMPROVEMENT,
    Column,
    aggregate_rows,
    cost_rows,
    improvement_rows,
    task_columns,
)
from lm_env.benchmark.results.summary import Summary
from lm_env.benchmark.results.tables import Row, TaskTable
from lm_env.report.chart import Chart, Line, Mark, short_number
from lm_env.report.templates import page_templates
from lm_env.report.texts import visible

__all__ = ["LOOKS", "render_page"]

LOOKS = ("a", "b", "c", "d", "e", "f", "g", "h")
"""The classes of lines in the style sheet; the ninth agent has the look of the first again."""
PROMPTS_SHOWN = 4
TEMPLATES = ("benchmark/bench.html", "benchmark/bench.css", "report/chart.html", "report/page.css")
COST = ("agent", *(column.title for column in COSTS))


@dataclass(frozen=True)
class _Cell:
    """One text beside the others."""

    agent: str
    text: str
    note: str


def render_page(summary: Summary, *, title: str, command: str, task_commands: dict[str, str] | None = None) -> str:
    """The page as a string of HTML; texts of models are escaped, and no script may run.

    Args:
        command: what repeats the benchmark.
        task_commands: by the task's label, what repeats the figures of that task alone.
    """
    looks = {agent: LOOKS[i % len(LOOKS)] for i, agent in enumerate(summary.agents)}
    commands = task_commands or {}
    tasks = [
        {
            "table": table,
            "name": table.task,
            "sentence": _optimum(table),
            "main": _cells(table.rows, task_columns(table)[0]),
            "more": _cells(table.rows, task_columns(table)[1]),
            "legend": [*task_columns(table)[0], *task_columns(table)[1]],
            "cost": (COST, cost_rows(table)),
            "charts": _charts(table, looks),
            "texts": _texts(table),
            "command": commands.get(table.task, command),
        }
        for table in summary.tables
    ]
    overall = None
    if summary.aggregate is not None:
        order, rows = improvement_rows(summary.aggregate)
        overall = {
            "tasks": summary.aggregate.tasks,
            "rows": aggregate_rows(summary.aggregate),
            "order": order,
            "improvement_note": IMPROVEMENT,
            "improvement": list(zip(order, rows, strict=True)),
            "profile": _profile(summary.aggregate, looks),
        }
    return (
        page_templates(*TEMPLATES)
        .get_template("bench.html")
        .render(
            title=title,
            circumstances=circumstances(summary),
            overall=overall,
            tasks=tasks,
            command=command,
        )
    )


def _charts(table: TaskTable, looks: dict[str, str]) -> list[Chart]:
    charts = []
    for over, label in (("tokens", "generated tokens"), ("seconds", "seconds of training")):
        lines = []
        for row in table.rows:
            band = learning_band(table, row, over) if row.trained else None  # type: ignore[arg-type]
            if band is not None:
                lines.append(Line(row.agent, band.x, band.y, band.se, looks[row.agent]))
        if lines:
            end = max(line.x[-1] for line in lines)
            lines += [Line("ceiling", [0.0, end], [1.0, 1.0], kind="ref"), *_level(table, end)]
            title = "Attained share over " + over
            charts.append(Chart(title, label, "attained share", lines, x_is_tokens=over == "tokens"))
    points = frontier_points(table)
    marks = spots(table)
    if points and marks:
        far = max(2.0 * max(mark.kl for mark in marks), 1e-3)
        shown = [point for point in points if point[0] <= far] or points[:2]
        lines = [Line("best possible", [p[0] for p in shown], [p[1] for p in shown], kind="ref")]
        lines += [
            Line(m.label, [m.kl], [m.score], kind=looks.get(m.label, "ref")) for m in marks if m.label != "reference"
        ]
        best = table.ceiling
        stars = []
        if best is not None and best["KL"]["mean"] is not None:
            stars = [Mark("", best["KL"]["mean"], best["score"]["mean"], kind="ref", shape="star")]
        charts.append(
            Chart(
                "Score over KL",
                "KL to the reference, nats per response",
                "mean score",
                lines,
                stars,
                note="The dashed line is the most score that a KL can buy; the star is the optimum at the task's beta.",
                x_is_tokens=False,
            )
        )
    return charts


def _level(table: TaskTable, end: float) -> list[Line]:
    """What best-of-16 attains without training, as a level."""
    row = table.row("best-of-16")
    if row is None or row.attained is None:
        return []
    return [Line("best of 16", [0.0, end], [row.attained.value] * 2, kind="ref")]


def _profile(found: Aggregate, looks: dict[str, str]) -> Chart:
    lines = []
    for agent, points in found.profiles.items():
        se = [(point.high - point.low) / 4 for point in points]
        lines.append(Line(agent, list(found.thresholds), [point.value for point in points], se, looks[agent]))
    return Chart(
        "Performance profile",
        "attained share \u03c4",
        "share of runs above \u03c4",
        lines,
        note="The higher the better; bands are pointwise 95% intervals.",
        x_is_tokens=False,
    )


def _optimum(table: TaskTable) -> list[str]:
    best = table.ceiling
    if best is None or best["J"]["mean"] is None:
        return []
    score, kl, J = (short_number(best[name]["mean"]) for name in ("score", "KL", "J"))
    said = [f"The optimum of J = score \u2212 {best['beta']:g} KL has the score {score} at a KL of {kl} nats: J {J}."]
    said += [f"J is a lower bound, so the attained shares are too large: {doubt}." for doubt in best["doubts"]]
    if table.matched_kl is not None:
        said.append(f"Scores at equal KL are compared at {short_number(table.matched_kl)} nats, half of the optimum's.")
    return said


def _cells(rows: Sequence[Row], columns: Sequence[Column]) -> dict[str, Any]:
    return {
        "head": [column.title for column in columns],
        "body": [(row.agent, row.trained, [column.show(row) for column in columns]) for row in rows],
    }


def _texts(table: TaskTable) -> list[tuple[str, list[_Cell]]]:
    """(prompt, what each row's first seed wrote to it) for prompts that all rows were shown with."""
    by_row = {
        row.agent: {sample["prompt"]: sample for sample in reversed(row.records[0]["samples"])}
        for row in table.rows
        if row.agent != "best-of-16"
    }
    prompts = [s["prompt"] for s in table.rows[0].records[0]["samples"]] if table.rows else []
    shared = [p for p in dict.fromkeys(prompts) if all(p in texts for texts in by_row.values())][:PROMPTS_SHOWN]
    found = []
    for prompt in shared:
        cells = []
        for agent, texts in by_row.items():
            sample = texts[prompt]
            score = "" if sample["score"] is None else f"score {short_number(sample['score'])}"
            cells.append(_Cell(agent, visible(sample["response"]), score))
        found.append((visible(prompt), cells))
    return found
