"""A model card: what a model was trained on, how it scores, how far it is from the reference, and what was possible.

The front matter follows the hub's layout of `model-index`, so that its pages show the numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from lm_env.benchmark.records import Record, options_in_words
from lm_env.benchmark.results.markdown import markdown_table
from lm_env.benchmark.results.numbers import task_columns
from lm_env.benchmark.results.summary import summarize_records
from lm_env.benchmark.results.tables import Row, TaskTable
from lm_env.errors import CheckpointWriteError, ConfigurationError
from lm_env.report.texts import visible
from lm_env.storage import write_file

__all__ = ["CARD", "card_text", "check_card", "write_card"]

CARD = "README.md"
SAMPLES = 4
METRICS = {"score": "mean score", "kl": "KL to the reference, nats per response", "J": "score - beta KL"}
"""The metrics that the hub shows, and what it calls them."""
MARKUP = frozenset("\\`*_{}[]<>#|~$&!")
"""Characters that Markdown, or the formulas in it, may give a meaning to."""


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
    check_card(folder)
    try:
        write_file(path, text)
    except OSError as error:
        raise CheckpointWriteError(f"cannot write {path}: {error}") from error
    return path


def check_card(folder: Path) -> None:
    """See that no README.md in the folder would be lost.

    Raises:
        ConfigurationError: there is one that `write_card` has not written.
        CheckpointWriteError: there is one that cannot be read.
    """
    path = folder / CARD
    try:
        by_hand = path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise CheckpointWriteError(f"cannot read {path}: {error}") from error
    if by_hand:
        raise ConfigurationError(f"{path} was not written by this command: move it away for a model card")


MARK = "<!-- written by lm-env -->"


def card_text(record: Record, records: Sequence[Record]) -> str:
    """The card as Markdown with YAML in front."""
    table = next(t for t in summarize_records(records).tables if any(record in row.records for row in t.rows))
    row = next(row for row in table.rows if record in row.records)
    alone = _alone(record, records, row.agent)
    front = yaml.safe_dump(_front(record, alone, table), sort_keys=False, allow_unicode=True)
    sampled = "" if "settings" in record else f", sampled with the seed {record['seed']}"
    parts = [
        f"---\n{front}---\n{MARK}",
        f"# {_escaped(record['agent'])} on {_escaped(_task_in_words(record))}",
        " ".join(_origin(record)),
        f"On {_counted(record['prompts'], 'test prompt')}, {_counted(record['texts'], 'text')}{sampled}, at beta"
        f" {record['beta']:g}:",
        _measurements(table, alone, row),
        *_ceiling(table),
    ]
    if row.seeds > 1:
        parts.append(f"Of {row.seeds} seeds this is one; intervals over seeds are 95%, by the bootstrap.")
    parts.append("## Texts\n\nThe first responses of the evaluation, not chosen.")
    parts += [_quoted(sample["prompt"], sample["response"]) for sample in record["samples"][:SAMPLES]]
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    parts.append(_escaped(f"Versions: {versions}.") + (f" Commit {record['commit']}." if record["commit"] else ""))
    return "\n\n".join(parts) + "\n"


def _origin(record: Record) -> Iterator[str]:
    """How the model was trained, and what it was measured against, in sentences."""
    task, model = _escaped(_task_in_words(record)), _code(str(record["model"]))
    settings, trained = record.get("settings"), record.get("trained")
    if settings is not None:
        options = ", ".join(f"{name} {value}" for name, value in settings.items() if name not in ("agent", "budget"))
        yield (
            f"Trained by {_code(settings['agent'])} of lm-env for {_counted(record['tokens'], 'token')} on the task"
            f" {task}, from {model}, seed {record['seed']}{_escaped(f', with {options}' if options else '')}."
        )
        return
    if trained is not None:
        tokens = _counted(trained["tokens"], "token")
        yield f"Trained by {_code(trained['agent'])} of lm-env for {tokens}, seed {trained['seed']}."
    if "kl" in record["metrics"]:
        yield f"Measured by lm-env on the task {task}; the reference is {model}."
    else:
        yield (
            f"Measured by lm-env on the task {task}.  KL, J and perplexity need a reference with the same vocabulary,"
            f" which {model} does not have, and are left out."
        )


def _measurements(table: TaskTable, alone: Row, row: Row) -> str:
    """All numbers of the model, and of all seeds where there are several."""
    main, more = task_columns(table)
    several = row.seeds > 1
    lines = []
    for column in (*main, *more):
        cells = [column.show(alone), *([column.show(row)] if several else [])]
        if any(cells):
            lines.append([f"{column.title}: {column.note}", *cells])
    return markdown_table(["", "this model", *(["all seeds"] if several else [])], lines)


def _ceiling(table: TaskTable) -> Iterator[str]:
    """What the best policy attains, in a sentence; nothing where it is not known."""
    best = table.ceiling
    if best is None or any(best[name]["mean"] is None for name in ("J", "score", "KL", "J_ref")):
        return
    yield (
        f"The best that any policy can attain at this beta: J {'at least' if best['doubts'] else 'about'}"
        f" {best['J']['mean']:.3f}, with the score {best['score']['mean']:.3f} at a KL of {best['KL']['mean']:.2f}"
        f" nats; the reference has {best['J_ref']['mean']:.3f}."
    )


def _front(record: Record, row: Row, table: TaskTable) -> dict[str, Any]:
    metrics = [
        {"type": name, "name": title, "value": record["metrics"][name]["mean"]}
        for name, title in METRICS.items()
        if record["metrics"].get(name, {}).get("mean") is not None
    ]
    if row.attained is not None:
        share = {"name": "share of the largest possible gain in J", "value": round(row.attained.value, 4)}
        metrics.append({"type": "attained", **share})
    dataset = {"name": _task_in_words(record), "type": table.task}
    results = [{"task": {"type": "text-generation"}, "dataset": dataset, "metrics": metrics}]
    base = record["model"] if "settings" in record and _is_hub_id(record["model"]) else None
    return {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        **({"base_model": base} if base else {}),
        "tags": ["reinforcement-learning", "lm-env"],
        "model-index": [{"name": f"{record['agent']} on {_task_in_words(record)}", "results": results}],
    }


def _is_hub_id(model: str | None) -> bool:
    """Whether a model's name is `owner/name`; the hub refuses a card that names a folder as its base model."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if model is None or "/" not in model or Path(model).exists():
        return False
    try:
        validate_repo_id(model)
    except HFValidationError:
        return False
    return True


def _task_in_words(record: Record) -> str:
    """The task's name, and the options that it was made with."""
    options = options_in_words(record)
    return f"{record['task']} ({options})" if options else str(record["task"])


def _alone(record: Record, records: Sequence[Record], agent: str) -> Row:
    """The row that this record makes without the other seeds."""
    others = [other for other in records if other.get("agent") != agent or other is record]
    tables = summarize_records(others).tables
    return next(row for table in tables for row in table.rows if record in row.records)


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _code(name: str) -> str:
    return _escaped(name) if "`" in name else f"`{visible(' '.join(name.split()))}`"


def _quoted(prompt: str, response: str) -> str:
    """A text as a quotation, its prompt in bold."""
    given, written = (visible(text.strip()).split("\n") for text in (prompt, response))
    bold = [f"**{_escaped(line)}**" if line.strip() else "" for line in given]
    lines = [*bold[:-1], f"{bold[-1]} {_escaped(written[0])}", *map(_escaped, written[1:])]
    return "\n".join(f"> {line}".rstrip() for line in lines)


def _escaped(text: str) -> str:
    """A line without markup that a page would read: of names, and of what a model has written."""
    plain = "".join("\\" + c if c in MARKUP else c for c in visible(" ".join(text.split())))
    return re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", plain)  # lists, and lines under headings
