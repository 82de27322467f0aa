"""What each task pays to nobody, to its reference model, and to the best of 4 and of 16 of its samples.

    python benchmarks/task_scores.py                         # every task that needs no file; ten minutes on one core
    python benchmarks/task_scores.py Rhyme Haiku --json scores.json

Prints the rows of the table in docs/tasks.md.  All are on the test prompts, sampled as the task says: "random" writes
uniformly random tokens; "reference" is the supervised model, from which every training starts; the optimum is that of
J = score - beta KL, exact where the task has it, else estimated from the same samples ("at least", where these do not
suffice for an estimate).  The first number of a column is a score; J of the reference is its score.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from lm_env.data.prompts import Prompt
from lm_env.tasks import SPLITS, TextTask, get_task, task_names
from lm_env.theory.ceilings import BestOfN, Estimate, best_of_n, ceiling, sample_reference_scores

UNIFORM = 1e9
"""A temperature at which every token is as likely as any other."""
FEWEST_TEXTS = 1024


def measured(task: TextTask, prompts: int, samples: int, seed: int) -> dict[str, Any]:
    """The row of a task.

    Args:
        prompts: test prompts at the most.
        samples: of the reference per prompt.
    """
    resolved = task.task("test")
    chosen: list[Prompt] = list(resolved.prompts)[:prompts]
    scores = sample_reference_scores(resolved, chosen, max(samples, -(-FEWEST_TEXTS // len(chosen))), seed=seed)
    random_writer = task.task("test", temperature=UNIFORM)
    random = sample_reference_scores(random_writer, list(random_writer.prompts)[:prompts], 8, seed=seed)
    if task.optimum is not None:
        best, exact = task.optimum(resolved), True
    else:
        best, exact = ceiling(scores, task.beta, task.highest), False
    return {
        "id": task.id,
        "judged": task.summary,
        "model": task.model_name,
        "prompts": [len(task.prompts(split)) for split in SPLITS],
        "budget": task.budget,
        "beta": task.beta,
        "random": _as_json(Estimate.of(random.mean(1))),
        "reference": _as_json(Estimate.of(scores.mean(1))),
        **{f"best_of_{n}": _of_best(best_of_n(scores, n), task.beta) for n in (4, 16)},
        "J_star": {**_as_json(best.J), "exact": exact, "trusted": exact or best.trusted},
        "score_star": _as_json(best.score),
        "KL_star": _as_json(best.KL),
        "texts": int(scores.size),
    }


def row(found: dict[str, Any]) -> str:
    """A line of the table."""
    sizes = " / ".join(f"{size:,}" for size in found["prompts"])
    star = found["J_star"]
    prefix = "" if star["trusted"] else "at least "
    cells = [
        f"`{found['id'].removeprefix('lm_env/')}`",
        sizes,
        f"{found['budget']:,}",
        f"{found['beta']:g}",
        *(f"{found[name]['mean']:.3f}" for name in ("random", "reference")),
        *(f"{found[name]['mean']:.3f}, J {found[name]['J']:.3f}" for name in ("best_of_4", "best_of_16")),
        f"{found['score_star']['mean']:.3f}, J {prefix}{star['mean']:.3f}{' (exact)' if star['exact'] else ''}",
    ]
    return f"| {' | '.join(cells)} |"


HEAD = (
    "| task | prompts: train / validation / test | budget, tokens | beta | random | reference | best of 4 | best of 16"
    " | optimum |"
)


def _of_best(best: BestOfN, beta: float) -> dict[str, float | None]:
    return {**_as_json(best.score), "KL": best.KL, "J": best.J(beta)}


def _as_json(estimate: Estimate) -> dict[str, float | None]:
    return {"mean": estimate.mean, "se": None if np.isnan(estimate.se) else estimate.se}


def offline(names: list[str]) -> list[TextTask]:
    """The tasks of these names, or all that need no file and no model of real size."""
    if names:
        return [get_task(name if ":" in name else f"lm_env/{name.removesuffix('-v0')}-v0") for name in names]
    own = [get_task(name) for name in task_names() if name.startswith("lm_env/")]
    return [task for task in own if task.model_name != "smollm2-135m"]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("names", nargs="*", help="such as Rhyme; default: all that need no file")
    p.add_argument("--prompts", type=int, default=64)
    p.add_argument("--samples", type=int, default=64)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--json", type=Path)
    args = p.parse_args()
    print(HEAD, "|---" * (HEAD.count("|") - 1) + "|", sep="\n", flush=True)
    rows = []
    for task in offline(args.names):
        rows.append(measured(task, args.prompts, args.samples, args.seed))
        print(row(rows[-1]), flush=True)
        if args.json is not None:
            args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
