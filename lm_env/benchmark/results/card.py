"""A model card: what a model was trained on, how it scores, how far it is from the reference, and what was possible.

The front matter follows the hub's layout of `model-index`, so that its pages show the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lm_env.benchmark.records import Record
from lm_env.benchmark.results.numbers import percent, task_columns
from lm_env.benchmark.results.summary import summarize_records
from lm_env.benchmark.results.tables import Row, TaskTable
from lm_env.errors import CheckpointWriteError, ConfigurationError
from lm_env.storage import write_file

__all__ = ["CARD", "card_text", "write_card"]

CARD = "README.md"
SAMPLES = 4


def write_card(folder: Path, record: Record, records: Sequence[Record]) -> Path:
    """Write README.md into a model's folder; one that was written by hand stays, and is an error.

    Args:
        record: that of the model, of `lm-env bench` or `lm-env evaluate`.
        records: those beside it: the other seeds, the baselines and the ceiling.

    Raises:
        ConfigurationError: there is another README.md.
        CheckpointWriteError: it cannot be written.
    """
    path = folder / CARD
    text = card_text(record, records)
    try:
        if path.exists() and MARK not in path.read_text(encoding="utf-8"):
            raise ConfigurationError(f"{path} was not written by this command: move it away for a model card")
        write_file(path, text)
    except OSError as error:
        raise CheckpointWriteError(f"cannot write {path}: {error}") from error
    return path


MARK = "<!-- written by lm-env -->"


def card_text(record: Record, records: Sequence[Record]) -> str:
    """The card as Markdown with YAML in front."""
    table = next(t for t in summarize_records(records).tables if any(record in row.records for row in t.rows))
    row = next(row for row in table.rows if record in row.records)
    alone = _alone(record, records, row.agent)
    front = yaml.safe_dump(_front(record, alone, table), sort_keys=False, allow_unicode=True)
    main, more = task_columns(table)
    lines = [f"---\n{front}---\n{MARK}\n", f"# {record['agent']} on {record['task']}\n"]
    settings = record.get("settings")
    if settings is not None:
        options = ", ".join(f"{name} {value}" for name, value in settings.items() if name not in ("agent", "budget"))
        lines.append(
            f"Trained by `{settings['agent']}` of lm-env for {record['tokens']:,} tokens on the task {record['task']},"
            f" from {record['model']}, seed {record['seed']}" + (f", with {options}" if options else "") + "."
        )
    else:
        trained = record.get("trained")
        if trained is not None:
            lines.append(
                f"Trained by `{trained['agent']}` of lm-env for {trained['tokens']:,} tokens, seed {trained['seed']}."
            )
        lines.append(f"Measured by lm-env on the task {record['task']}, beside {record['model']}.")
    sampled = "" if settings is not None else f", sampled with the seed {record['seed']}"
    lines.append(
        f"\nOn {record['prompts']} test prompts, {record['texts']} texts{sampled}, at beta {record['beta']:g}:\n"
    )
    lines += ["| | this model | all seeds |", "|---|---|---|"]
    for column in (*main, *more):
        one, all_seeds = column.show(alone), column.show(row) if row.seeds > 1 else ""
        if one or all_seeds:
            lines.append(f"| {column.title}: {column.note} | {one} | {all_seeds} |")
    if table.ceiling is not None and table.ceiling["J"]["mean"] is not None:
        best = table.ceiling
        kind = "at least" if best["doubts"] else "about"
        lines.append(
            f"\nThe best that any policy can attain at this beta: J {kind} {best['J']['mean']:.3f}, with the score"
            f" {best['score']['mean']:.3f} at a KL of {best['KL']['mean']:.2f} nats; the reference has"
            f" {best['J_ref']['mean']:.3f}."
        )
    if row.seeds > 1:
        lines.append(f"\nOf {row.seeds} seeds this is one; intervals over seeds are 95%, by the bootstrap.")
    lines.append("\n## Texts\n\nThe first responses of the evaluation, not chosen.\n")
    for sample in record["samples"][:SAMPLES]:
        lines += [*_quoted(f"**{_escaped(sample['prompt'])}** {_escaped(sample['response'])}"), ""]
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    lines.append(f"\nVersions: {versions}." + (f" Commit {record['commit']}." if record["commit"] else ""))
    return "\n".join(lines) + "\n"


def _front(record: Record, row: Row, table: TaskTable) -> dict[str, Any]:
    metrics = [
        {"type": name, "value": record["metrics"][name]["mean"]}
        for name in ("score", "kl", "J")
        if record["metrics"].get(name, {}).get("mean") is not None
    ]
    if row.attained is not None:
        metrics.append({"type": "attained", "name": percent(row.attained), "value": round(row.attained.value, 4)})
    dataset = {"name": table.task, "type": table.task}
    results = [{"task": {"type": "text-generation"}, "dataset": dataset, "metrics": metrics}]
    return {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": record["model"],
        "tags": ["reinforcement-learning", "lm-env"],
        "model-index": [{"name": f"{record['agent']} on {record['task']}", "results": results}],
    }


def _alone(record: Record, records: Sequence[Record], agent: str) -> Row:
    """The row that this record makes without the other seeds."""
    others = [other for other in records if other.get("agent") != agent or other is record]
    tables = summarize_records(others).tables
    return next(row for table in tables for row in table.rows if record in row.records)


def _quoted(text: str) -> list[str]:
    return [f"> {line}" for line in text.splitlines()]


def _escaped(text: str) -> str:
    """A model's text without markup that a page would read."""
    return "".join("\\" + c if c in "\\`*_[]<>#|" else c for c in text.strip())
