"""Choose agents' options: candidates are trained on several tasks and compared on the tasks' validation prompts.

    lm-env demo --out runs/demo                          # makes the reward model of the task Judged
    python benchmarks/tuning/run.py --out runs/tuning    # runs what is not done yet, and prints the table
    python benchmarks/tuning/run.py --only Keyword       # one task
    python benchmarks/tuning/run.py --candidates mine.yaml

The candidates are agents with options, written as for `lm-env bench --config`: see benchmarks/tuning/candidates.yaml.
Each is trained once on each task, all with the same seed and number of tokens.  The table has the share of the ceiling
that each attains on the validation prompts, and its mean over the tasks.  No published result uses these prompts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_env.benchmark import BenchSettings, read_settings
from lm_env.benchmark.cells import read_cell
from lm_env.benchmark.measures.baselines import exact_optimum
from lm_env.benchmark.measures.measuring import evaluation_prompts
from lm_env.benchmark.results.markdown import markdown_table
from lm_env.benchmark.settings import Cell
from lm_env.benchmark.workers import run_here, run_in_processes
from lm_env.errors import TrainingInterrupted
from lm_env.storage import StopSignals
from lm_env.tasks import get_task
from lm_env.theory import task_ceiling

CANDIDATES = Path(__file__).with_name("candidates.yaml")
CEILINGS = "ceilings.json"


def trials(settings: BenchSettings, only: Sequence[str] | None) -> list[Cell]:
    """The trainings to be made: one of each candidate on each task."""
    return [cell for cell in settings.cells() if cell.trial == 0 and (only is None or cell.task in only)]


def run_trials(settings: BenchSettings, cells: Sequence[Cell], out: Path, processes: int) -> None:
    """Run the trials that are not done yet."""
    waiting = [cell for cell in cells if read_cell(out, cell) is None]
    done = len(cells) - len(waiting)
    with StopSignals("what is under way is saved, and the same command goes on from there") as stop:

        def stopped() -> Any:
            return stop.received

        def next_cell() -> Cell | None:
            return waiting.pop(0) if waiting else None

        work = (
            run_in_processes(settings, out, next_cell, stopped, processes)
            if processes > 1
            else run_here(settings, out, next_cell, stopped)
        )
        interrupted = False
        try:
            for outcome in work:
                done += outcome.error is None
                print(f"[{done}/{len(cells)}] {outcome.cell}  {outcome.error or ''}", file=sys.stderr, flush=True)
        except TrainingInterrupted:  # a trial in this process has saved itself, or had nothing to save
            interrupted = True
        if interrupted or stop.received is not None:
            raise SystemExit(f"stopped with {done} of {len(cells)} trials done; the same command goes on from there")


def validation_ceilings(settings: BenchSettings, out: Path, labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """J of the reference and of the optimum on each task's validation prompts; computed once and kept in a file."""
    path = out / CEILINGS
    found: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    for label in labels:
        if label in found:
            continue
        spec = settings.task(label)
        text_task = get_task(spec.name, **spec.options)
        exact = exact_optimum(text_task, settings.prompts)
        if exact is None:
            task = text_task.task("train")
            prompts, _ = evaluation_prompts(task, text_task.prompts("validation"), settings.prompts, settings.texts)
            best = task_ceiling(task, prompts, most=settings.ceiling_most, highest=text_task.highest)
        else:
            best = exact()
        found[label] = {"J_ref": best.J_ref.mean, "J": best.J.mean}
        path.write_text(json.dumps(found, indent=1))
    return found


def table(settings: BenchSettings, cells: Sequence[Cell], out: Path, ceilings: dict[str, dict[str, float]]) -> str:
    """A row for each candidate: the attained share and the KL on each task, and the mean of the shares."""
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    rows = []
    for agent in settings.agents:
        shares, shown = [], []
        for task in tasks:
            records = read_cell(out, Cell(task, agent.label, trial=0))
            if not records:
                shown.append("")
                continue
            metrics, best = records[0]["metrics"], ceilings[task]
            share = (metrics["J"]["mean"] - best["J_ref"]) / (best["J"] - best["J_ref"])
            shares.append(share)
            shown.append(f"{share:.0%} (KL {metrics['kl']['mean']:.2f})")
        mean = f"{statistics.mean(shares):.0%}" if len(shares) == len(tasks) else ""
        rows.append([agent.label, *shown, mean])
    return markdown_table(["options", *tasks, "mean"], rows)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--candidates", type=Path, default=CANDIDATES, help="a .yaml file of tasks and candidates")
    p.add_argument("--only", nargs="+", help="labels of tasks")
    p.add_argument("--processes", type=int, default=1, help="trainings side by side")
    p.add_argument("--out", type=Path, default=Path("runs/tuning"), help="the folder; what is done there is kept")
    args = p.parse_args()
    settings = read_settings(args.candidates, tune=1)
    cells = trials(settings, args.only)
    run_trials(settings, cells, args.out, args.processes)
    ceilings = validation_ceilings(settings, args.out, list(dict.fromkeys(cell.task for cell in cells)))
    print(table(settings, cells, args.out, ceilings))


if __name__ == "__main__":
    main()
