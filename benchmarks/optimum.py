"""docs/optimum.md and its figure: how near agents come to the optimum on lm_env/Sentiment-v0, from records.

lm-env bench --config benchmarks/optimum.yaml --only 60k --out runs/optimum
lm-env bench --config benchmarks/ablation.yaml --out runs/ablation
python benchmarks/tuning/run.py --out runs/tuning > tuning.md
python benchmarks/tuning/run.py --candidates benchmarks/tuning/trl.yaml --out runs/trl > trl.md
python benchmarks/tuning/run.py --candidates benchmarks/tuning/lambda.yaml --out runs/lambda > lambda.md
python benchmarks/tuning/run.py --candidates benchmarks/tuning/longer.yaml --out runs/longer > longer.md
python benchmarks/optimum.py runs/optimum runs/ablation --tuning tuning.md trl.md --lambdas lambda.md longer.md # copies
python benchmarks/optimum.py                                                          # only writes the page again
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from table import committed, copy_records

from lm_env.benchmark.records import Record
from lm_env.benchmark.results import summarize_records
from lm_env.benchmark.results.curves import frontier_points
from lm_env.benchmark.results.markdown import markdown_table
from lm_env.benchmark.results.numbers import percent, shown
from lm_env.benchmark.results.tables import Row, TaskTable, attained_share

HOME = Path(__file__).resolve().parents[1]
RECORDS = HOME / "benchmarks" / "results" / "optimum"
PAGE_TEMPLATE = Path(__file__).with_name("optimum_page.md")
"""The text of the page, with a comment such as `<!-- BUDGETS -->` in the place of each table."""
PAGE = HOME / "docs" / "optimum.md"
PICTURE = HOME / "docs" / "frontier.png"
PRINTED = {"TUNING": RECORDS / "tuning.md", "LAMBDA": RECORDS / "lambda.md"}
"""The tables that other scripts have printed, by their place in the template."""

BUDGETS = ("60k", "240k", "1M")
ABLATION = "ablation"
COLORS = ("#0067a3", "#b34700", "#00735a", "#9b3676", "#7a5c00", "#5b3fa0")
GRAY = "0.35"
LARGEST_KL = 4.4
"""The right edge of the figure, in nats; what has spent more is beyond it."""
DOT_SIZES = (5, 8, 11)
"""Diameters in points of the dots of the three budgets, the smallest budget first."""


def budgets_table(tables: dict[str, TaskTable]) -> str:
    """A row for each agent and budget, with those of best-of-n and of the optimum."""
    head = [
        "",
        "tokens",
        "seeds",
        "score",
        "KL, nats per response",
        "J = score - β KL",
        "attained",
        "smallest, largest",
        "from the optimum, nats per response",
    ]
    rows = []
    first = next(iter(tables.values()))
    for agent in dict.fromkeys(row.agent for table in tables.values() for row in table.rows if row.trained):
        for budget, table in tables.items():
            row = table.row(agent)
            if row is not None:
                cells = [*metric_cells(row), extremes(table, row), distance(table, row.metrics["J"].value)]
                rows.append([f"`{agent}`", budget, str(row.seeds), *cells])
    ceiling = first.ceiling
    assert ceiling is not None
    J_ref, gain = ceiling["J_ref"]["mean"], ceiling["J"]["mean"] - ceiling["J_ref"]["mean"]
    for best in ceiling["best_of_n"]:
        name = "reference" if best["n"] == 1 else f"best of {best['n']}"
        share = f"{(best['J'] - J_ref) / gain:.0%}"
        cells = [
            estimate(best["score"]),
            f"{best['KL']:.3g}",
            f"{best['J']:.3f}",
            share,
            "",
            distance(first, best["J"]),
        ]
        rows.append([name, "", "", *cells])
    found = [estimate(ceiling[key]) for key in ("score", "KL", "J")]
    rows.append(["**the optimum**", "", "", *found, "100%", "", distance(first, ceiling["J"]["mean"])])
    return markdown_table(head, rows)


def ablation_table(table: TaskTable) -> str:
    """What changes when one option of PPO does."""
    rows = [[row.agent, str(row.seeds), *metric_cells(row), extremes(table, row)] for row in table.rows if row.trained]
    head = ["", "seeds", "score", "KL, nats per response", "J", "attained", "smallest, largest"]
    return markdown_table(head, rows)


def metric_cells(row: Row) -> list[str]:
    """The four cells of a row that hold measurements: score, KL, J and the attained share, with 95% intervals."""
    return [*(shown(row.metrics.get(name)) for name in ("score", "kl", "J")), percent(row.attained)]


def distance(table: TaskTable, J: float) -> str:
    """KL(policy || optimum) in nats per response, which is (J* - J) / β for every policy."""
    assert table.ceiling is not None
    return f"{(table.ceiling['J']['mean'] - J) / table.ceiling['beta']:.1f}"


def extremes(table: TaskTable, row: Row) -> str:
    """The smallest and the largest attained share of the seeds, "" for a single seed."""
    shares = [attained_share(table.ceiling, record["by_prompt"]["J"]) for record in row.records]
    means = sorted(share.mean for share in shares if share is not None)
    return f"{means[0]:.0%}, {means[-1]:.0%}".replace("-", "\u2212") if len(means) > 1 else ""


def estimate(found: dict[str, float]) -> str:
    """A mean with its 95% interval."""
    return f"{found['mean']:.3f} ± {1.96 * found['se']:.3f}"


def plot(tables: dict[str, TaskTable], path: Path) -> None:
    """Score over KL: the frontier of the optimum as β varies, best-of-n, and each agent's way from budget to budget."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    first = next(iter(tables.values()))
    assert first.ceiling is not None
    line = [point for point in frontier_points(first) if point[0] <= 5]
    axis.plot([kl for kl, _ in line], [score for _, score in line], color=GRAY, linewidth=1.6)
    optimum = (first.ceiling["KL"]["mean"], first.ceiling["score"]["mean"])
    axis.plot(*[[value] for value in optimum], "*", color=GRAY, markersize=13)
    annotate(axis, "the optimum", optimum, GRAY, (-62, 6))
    for best in first.ceiling["best_of_n"][1:]:
        point = (best["KL"], best["score"]["mean"])
        axis.plot(*[[value] for value in point], "^", color=GRAY, markersize=6)
        annotate(axis, f"best of {best['n']}", point, GRAY, (8, -10))
    agents = dict.fromkeys(row.agent for table in tables.values() for row in table.rows if row.trained)
    label_points: list[tuple[float, float]] = []
    for color, agent in zip(COLORS, agents, strict=False):
        rows = [(size, row) for size, t in zip(DOT_SIZES, tables.values(), strict=False) if (row := t.row(agent))]
        means = [kl_and_score(row) for _, row in rows]
        axis.plot([kl for kl, _ in means], [score for _, score in means], "-", color=color, linewidth=1, alpha=0.6)
        for size, row in rows:
            for record in row.records:
                seed = [record["metrics"][name]["mean"] for name in ("kl", "score")]
                axis.plot(*[[value] for value in seed], "o", color=color, markersize=3, alpha=0.35, markeredgewidth=0)
            axis.plot(*[[value] for value in kl_and_score(row)], "o", color=color, markersize=size)
        overlaps = any(abs(means[-1][0] - kl) < 0.5 and abs(means[-1][1] - score) < 0.02 for kl, score in label_points)
        shown = [mean for mean in means if mean[0] <= LARGEST_KL]
        annotate(axis, agent, shown[-1], color, (8, 6 if overlaps else -4))
        label_points.append(shown[-1])
    axis.set_xlim(0, LARGEST_KL)
    axis.set(xlabel="KL to the reference, nats per response", ylabel="mean score")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    figure.savefig(path, dpi=160)


def kl_and_score(row: Row) -> tuple[float, float]:
    """(KL, score): the coordinates of an agent in the figure, means over its seeds."""
    return row.metrics["kl"].value, row.metrics["score"].value


def annotate(axis: Any, words: str, at: tuple[float, float], color: str, offset: tuple[int, int]) -> None:
    """Write words beside the point `at`, in its data coordinates, moved by `offset` points of the page."""
    axis.annotate(words, at, color=color, fontsize=9, xytext=offset, textcoords="offset points")


def page_of(records: Sequence[Record], printed: Mapping[str, str]) -> str:
    """docs/optimum.md: the template, with the tables in place of its comments.

    Args:
        printed: the tables of `PRINTED`, by their place.
    """
    tables = {table.task: table for table in summarize_records(records).tables}
    budgets = {name: tables[name] for name in BUDGETS if name in tables}
    parts = {"BUDGETS": budgets_table(budgets), **{place: text.strip() for place, text in printed.items()}}
    if ABLATION in tables:
        parts["ABLATION"] = ablation_table(tables[ABLATION])
    text = PAGE_TEMPLATE.read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace(f"<!-- {name} -->", part)
    return text


def printed_tables() -> dict[str, str]:
    """The committed tables of `PRINTED`, by their place."""
    return {place: path.read_text(encoding="utf-8") for place, path in PRINTED.items()}


def seconds_line(records: Sequence[Record]) -> str:
    """Mean seconds of training per agent."""
    runs = [record for record in records if record["kind"] == "run"]
    agents = dict.fromkeys(record["agent"] for record in runs)
    return ", ".join(f"{a} {statistics.mean(r['seconds'] for r in runs if r['agent'] == a):.0f}" for a in agents)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("benches", type=Path, nargs="*", help="folders of benchmarks whose records are copied first")
    p.add_argument("--tuning", type=Path, nargs="+", help="files with what benchmarks/tuning/run.py has printed")
    p.add_argument("--lambdas", type=Path, nargs="+", help="the same of lambda.yaml and longer.yaml")
    args = p.parse_args()
    RECORDS.mkdir(parents=True, exist_ok=True)
    for bench in args.benches:
        copy_records(bench, RECORDS)
    for place, given in (("TUNING", args.tuning), ("LAMBDA", args.lambdas)):
        if given is not None:
            PRINTED[place].write_text("\n".join(path.read_text(encoding="utf-8") for path in given), encoding="utf-8")
    records = committed(RECORDS)
    PAGE.write_text(page_of(records, printed_tables()), encoding="utf-8")
    tables = {table.task: table for table in summarize_records(records).tables}
    plot({name: tables[name] for name in BUDGETS if name in tables}, PICTURE)
    print(f"{len(records)} records -> {PAGE}, {PICTURE}; seconds of training: {seconds_line(records)}")


if __name__ == "__main__":
    main()
