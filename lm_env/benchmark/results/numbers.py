"""Numbers and intervals as they are shown in tables, the same in Markdown and on the page."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lm_env.benchmark.results.aggregate import Aggregate
from lm_env.benchmark.results.tables import Reached, Row, TaskTable
from lm_env.benchmark.statistics import Interval
from lm_env.report.chart import short_number, tokens_in_words

__all__ = [
    "COLUMNS",
    "COSTS",
    "IMPROVEMENT",
    "Column",
    "aggregate_rows",
    "compact_columns",
    "cost_rows",
    "improvement_rows",
    "percent",
    "shown",
    "task_columns",
]

Show = Callable[[Row], str]


@dataclass(frozen=True)
class Column:
    """A column of a task's table."""

    title: str
    note: str
    """What it means, for the legend."""
    show: Show


def shown(interval: Interval | None) -> str:
    """`0.123 ± 0.012`, half the width of the interval; the value alone without one."""
    if interval is None or not math.isfinite(interval.value):
        return ""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)) or interval.low == interval.high:
        return short_number(interval.value)
    half = (interval.high - interval.low) / 2
    if half < 5e-5:
        return short_number(interval.value if abs(interval.value) > 5e-5 else 0.0)
    decimals = min(max(1 - math.floor(math.log10(half)), 0), 4)
    return f"{interval.value:,.{decimals}f} ± {half:,.{decimals}f}".replace("-", "\u2212")


def percent(interval: Interval | None) -> str:
    """`34% (30 to 38)`, or the share alone without an interval."""
    if interval is None:
        return ""
    text = f"{100 * interval.value:.0f}%"
    if math.isfinite(interval.low) and interval.high > interval.low:
        text += f" ({100 * interval.low:.0f} to {100 * interval.high:.0f})"
    return text.replace("-", "\u2212")


def _metric(name: str) -> Show:
    return lambda row: shown(row.metrics.get(name))


def _success(row: Row) -> str:
    return percent(None if row.success is None else Interval(*row.success))


def _tokens(row: Row) -> str:
    return _reached(row.tokens_to, tokens_in_words)


def _seconds(row: Row) -> str:
    return _reached(row.seconds_to, lambda seconds: f"{seconds:.0f} s")


def _reached(found: Reached | None, words: Callable[[float], str]) -> str:
    if found is None:
        return ""
    if found.median is None:
        return "never" if found.runs == 0 else f"in {found}"
    return words(found.median) + ("" if found.runs == found.of else f" ({found})")


def _against(rival: str) -> Show:
    def show(row: Row) -> str:
        test = row.against.get(rival)
        if test is None:
            return ""
        p = "p < .001" if test.p < 0.001 else f"p {test.p:.3f}"
        return f"{shown(Interval(test.difference, test.low, test.high))}, {p}"

    return show


def _mean(name: str, row: Row) -> float | None:
    """The mean over seeds of a number of the records."""
    values = [record[name] for record in row.records if record.get(name) is not None]
    return sum(values) / len(values) if values else None


def _training(name: str, words: Callable[[float], str]) -> Show:
    """A cost of training, which the baselines do not have."""

    def show(row: Row) -> str:
        value = _mean(name, row) if row.trained else 0.0
        return "0" if value is None or value == 0 else words(value)

    return show


def _if_any(name: str, words: Callable[[float], str]) -> Show:
    def show(row: Row) -> str:
        value = _mean(name, row)
        return "" if value is None else words(value)

    return show


COLUMNS = (
    Column("score", "mean score of the responses to held-out prompts", _metric("score")),
    Column("KL", "to the reference, nats per response, summed exactly over the vocabulary", _metric("kl")),
    Column("J", "score \u2212 \u03b2 KL, which is maximized", _metric("J")),
    Column("attained", "share of what the ceiling gains in J over the reference", lambda row: percent(row.attained)),
    Column("success", "share of texts that succeed, with Wilson's interval or that over seeds", _success),
    Column("score at KL", "where the learning curve passes half of the optimum's KL", lambda r: shown(r.score_at_kl)),
    Column("tokens to half", "until half of the ceiling's gain was attained, median over seeds", _tokens),
    Column("seconds to half", "of training, evaluations not counted", _seconds),
)
"""The main columns; those that are empty for all rows are left out."""

MORE = (
    Column("KL, k1", "log pi \u2212 log pi_ref of the texts, nats per response", _metric("kl_k1")),
    Column("KL per token", "KL of all texts over their tokens", _metric("kl_per_token")),
    Column("perplexity", "of the texts under the reference", _metric("perplexity")),
    Column("perplexity, other model", "under a model that took no part", _metric("independent_perplexity")),
    Column("bits per byte, other model", "the same, whatever its tokenizer", _metric("independent_bits_per_byte")),
    Column("distinct-1", "share of distinct words", _metric("distinct_1")),
    Column("distinct-2", "share of distinct pairs of words", _metric("distinct_2")),
    Column("distinct-3", "share of distinct triples", _metric("distinct_3")),
    Column("repetition", "share of 4-grams that a text has had before", _metric("repetition")),
    Column("length", "response tokens", _metric("length")),
    Column("truncated", "share of texts that the cap ended", _metric("truncated")),
    Column("J over reference", "on the same prompts; p by sign flips, corrected by Holm", _against("reference")),
    Column("J over best-of-4", "the same against the best of 4 samples", _against("best-of-4")),
)
SEEDS = Column("seeds", "how many runs", lambda row: str(row.seeds) if row.trained else "")
COSTS = (
    Column("training tokens", "generated in training, mean over seeds", _training("tokens", tokens_in_words)),
    Column("training seconds", "evaluations not counted", _training("seconds", lambda value: f"{value:,.0f}")),
    Column("tokens/s", "tokens of training over its seconds", _if_any("tokens_per_second", lambda v: f"{v:,.0f}")),
    Column("tokens per response", "what a response costs once trained", _if_any("inference_tokens", short_number)),
)
"""What a row costs."""
KNOWN = {
    "score",
    "kl",
    "J",
    "kl_k1",
    "kl_per_token",
    "perplexity",
    "independent_perplexity",
    "independent_bits_per_byte",
    "distinct_1",
    "distinct_2",
    "distinct_3",
    "repetition",
    "length",
    "truncated",
}


def task_columns(table: TaskTable) -> tuple[list[Column], list[Column]]:
    """(main columns, further ones) that say something of at least one row; a task's own metrics come with the main."""
    main = [*COLUMNS[:5], *_own_columns(table), *COLUMNS[5:]]
    return _used(main, table), _used(list(MORE), table)


def _own_columns(table: TaskTable) -> list[Column]:
    """The task's own metrics."""
    own = dict.fromkeys(name for row in table.rows for name in row.metrics if name not in KNOWN)
    return [Column(name, "a metric of the task", _metric(name)) for name in own]


def _used(columns: list[Column], table: TaskTable) -> list[Column]:
    return [column for column in columns if any(column.show(row) for row in table.rows)]


def compact_columns(table: TaskTable) -> list[Column]:
    """The columns of a single table of a task: what is maximized, the task's own metrics, seeds and costs."""
    return _used([*COLUMNS[:5], *_own_columns(table), SEEDS, *COSTS[:2], COSTS[3]], table)


def cost_rows(table: TaskTable) -> list[tuple[str, ...]]:
    """(agent, then the columns of `COSTS`) of each row."""
    return [(row.agent, *(column.show(row) for column in COSTS)) for row in table.rows]


def aggregate_rows(found: Aggregate) -> list[tuple[str, str, str]]:
    """(agent, interquartile mean, mean over tasks) of the attained share, the best first."""
    order = sorted(found.iqm, key=lambda agent: -found.iqm[agent].value)
    return [(agent, percent(found.iqm[agent]), percent(found.mean[agent])) for agent in order]


IMPROVEMENT = (
    "The probability that a run of the row's agent beats one of the column's on a task drawn at random. If the interval"
    " contains 50%, the runs do not show which agent is better. A number without an interval is the same in every draw"
    " of the runs, as 100% is where every run of the one agent beats every run of the other."
)
"""What the table of `improvement_rows` says."""


def improvement_rows(found: Aggregate) -> tuple[list[str], list[list[str]]]:
    """(agents, for each the probability that its run beats one of each other agent)."""
    order = sorted(found.iqm, key=lambda agent: -found.iqm[agent].value)
    return order, [["" if a == b else percent(found.improvement[a, b]) for b in order] for a in order]
