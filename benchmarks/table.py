"""The published results of the benchmark: docs/results.md, docs/results.png and README's table, from the records.

    lm-env bench --config benchmarks/table.yaml --out runs/table     # makes the records; hours
    python benchmarks/table.py runs/table                            # copies them, and writes the page from the copies
    python benchmarks/table.py                                       # only writes the page again

The records are in benchmarks/results, a file for each task, so that a task can be run again by itself.  In a file of
more than 300 KB the texts and the scores of single prompts are left out, and J of single prompts, learning curves and
frontiers keep five digits: all tables and figures are made without the rest.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_env.benchmark import read_records, read_settings
from lm_env.benchmark.records import Record, write_lines
from lm_env.benchmark.results import as_markdown, overview_of, plot_attained, summarize_records
from lm_env.benchmark.results.summary import Summary
from lm_env.benchmark.settings import BASELINES, slug

HOME = Path(__file__).resolve().parents[1]
SETTINGS = HOME / "benchmarks" / "table.yaml"
RECORDS = HOME / "benchmarks" / "results"
PAGE = HOME / "docs" / "results.md"
PICTURE = HOME / "docs" / "results.png"
README = HOME / "README.md"

COMMAND = "lm-env bench --config benchmarks/table.yaml --out runs/table\npython benchmarks/table.py runs/table"
BEGIN, END = "<!-- results: written by benchmarks/table.py -->", "<!-- end of results -->"
SPEEDRUN = "speedrun.jsonl"
"""The entries of benchmarks/speedrun.py, in the same folder, which are no records of a benchmark."""
LARGEST = 300_000
"""Bytes of a file of records."""
DIGITS = 5

INTRODUCTION = """\
On each task all agents start from the same model, the *reference*, generate the same number of tokens in training, and
maximize the same J = score - β KL, where KL is the KL divergence from the reference in nats per response.  The largest
J of any policy, the [ceiling](ceiling.md), is known or estimated.  So every agent has an *attained share*,
(J - J of the reference) / (ceiling - J of the reference): 0% is no gain at all, and 100% is the optimum.

[Benchmark](benchmark.md#what-the-numbers-mean) explains the statistics, [agents](agents.md) the agents, and
[tasks](tasks.md) the tasks.  Best-of-4 is no training: it samples four texts from the reference and keeps the one with
the highest score."""
FIGURE = """\
![attained share of the ceiling, by task and agent](results.png)

Each dot is a run, a tick is the mean of an agent's runs and a bar its 95% interval; an arrow is a run beyond the
edge."""
SECONDS = "The seconds were measured on a machine that did other work at the same time: compare tokens, not seconds."
CHOSEN = (
    "The default learning rates of `ppo`, `a2c`, `rloo` and `grpo` were chosen on the validation prompts of four tasks,"
    " [among them Sentiment and Arithmetic](optimum.md#what-was-tuned-and-on-what), from three each, and PPO's passes"
    " over a rollout and λ there as well; those of `sft` and `dpo` from a few trials on Sentiment's. No validation"
    " prompt is used for these results.\n\nThe test prompts of Arithmetic and Sentiment are held out: no agent was"
    " trained on them. The prompts of RandomWalks are the whole task and the same in all splits, so its results are on"
    " the prompts of the training."
)
OVERVIEW = "The attained share of the ceiling, with its 95% interval:"
COLUMNS = """\
In the tables below, agents in bold were trained.  A number after ± is half the width of a 95% interval.

- **random** draws every token uniformly from the vocabulary; **reference** is the model before training.  Its row is
  sampled like all others, while the ceiling knows its J from more samples, so its attained share may differ from 0%.
- **KL** is in nats per response; for best-of-n it follows from n and the scores, for random tokens it is estimated from
  the texts.
- **success** is the share of texts that solve the task.  The columns after it, such as **is_a_number**, are metrics of
  that task alone ([tasks](tasks.md)).
- **training tokens** and **training seconds** are the cost of a training; **tokens per response** is the cost of each
  response afterward, which for best-of-n are the tokens of all n samples."""


def committed(folder: Path = RECORDS) -> list[Record]:
    """The records of all files, in the order of the tasks' names."""
    paths = sorted(path for path in folder.glob("*.jsonl") if path.name != SPEEDRUN)
    return [record for path in paths for record in read_records(path)]


def copy_records(bench: Path, folder: Path = RECORDS, largest: int = LARGEST) -> None:
    """Copy the records of a benchmark, task by task; those of its tasks that were there are replaced."""
    by_task: dict[str, list[Record]] = {}
    for record in read_records(bench / "results.jsonl"):
        by_task.setdefault(record["task"], []).append(record)
    for task, records in by_task.items():
        size = sum(len(json.dumps(record, ensure_ascii=False).encode()) for record in records)
        kept = [slim(record) for record in records] if size > largest else records
        write_lines(folder / f"{slug(task)}.jsonl", kept)


def slim(record: Record) -> Record:
    """A record without its texts and without the scores of single prompts; other numbers by prompt keep five digits."""
    kept = dict(record)
    if isinstance(record.get("samples"), list):
        kept["samples"] = []
    if "by_prompt" in record:
        kept["by_prompt"] = {"J": rounded(record["by_prompt"]["J"])}
    for name in ("J_by_prompt", "J_ref_by_prompt", "frontier", "curve"):
        if name in record:
            kept[name] = rounded(record[name])
    return kept


def rounded(value: Any) -> Any:
    """The same with floats of five digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {name: rounded(part) for name, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def page_of(summary: Summary) -> str:
    """docs/results.md."""
    text = as_markdown(summary, title="Benchmark results", command=COMMAND, compact=True)
    title, rest = text.split("\n\n", 1)
    head, tables = rest.split("\n\n## ", 1)
    parts = [title, INTRODUCTION, OVERVIEW, overview_of(summary), FIGURE, "## How they were made"]
    versions = head.index("Versions: ")  # the last paragraphs of the head: versions, machine, commits, the command
    made = [head[:versions].strip(), CHOSEN, completeness(summary.records), SECONDS, head[versions:]]
    return "\n\n".join([*parts, *made, "## The columns", COLUMNS, f"## {tables}"])


def completeness(records: Sequence[Record]) -> str:
    """How many of the runs that the settings name are among the records, in a sentence."""
    wanted = {(c.task, c.agent, c.seed) for c in read_settings(SETTINGS).cells() if c.trial is None}
    wanted = {run for run in wanted if run[1] != BASELINES}
    found = {(r["task"], r["agent"], r["seed"]) for r in records if r["kind"] == "run"}
    if wanted <= found:
        return f"All {len(wanted)} runs that `benchmarks/table.yaml` names are in these tables."
    return (
        f"Of the {len(wanted)} runs that `benchmarks/table.yaml` names, {len(wanted & found)} are in these tables; the"
        " others have not been made yet."
    )


def readme_with(text: str, summary: Summary) -> str:
    """README with the overview between its two marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{overview_of(summary)}\n{END}{after}"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("bench", type=Path, nargs="?", help="the folder of a benchmark whose records are copied first")
    args = p.parse_args()
    if args.bench is not None:
        copy_records(args.bench)
    summary = summarize_records(committed())
    PAGE.write_text(page_of(summary), encoding="utf-8")
    plot_attained(summary, PICTURE)
    README.write_text(readme_with(README.read_text(encoding="utf-8"), summary), encoding="utf-8")
    print(f"{len(summary.records)} records -> {PAGE}, {PICTURE}, {README}")


if __name__ == "__main__":
    main()
