"""The speedrun: how soon half of what can be gained on lm_env/Sentiment-v0 is attained, on two cores.

    python benchmarks/speedrun.py rloo --tokens 60000 learning_rate=3e-4
    python benchmarks/speedrun.py mine.py:Mine --tokens 40000        # your own agent, see docs/benchmark.md

An entry is an agent with its options and a number of tokens.  It is verified with five seeds that are drawn now, so
that nobody can have chosen them: every one of the five must attain at least half of the ceiling's gain over the
reference on the held-out openings, after training on the others from the embedded model with the task's own beta.  Its
time is the mean time of training, without evaluations, in one process with two threads; its tokens are the mean of
those generated.  Ranked are seconds, and tokens separately.  The result is a line of JSON, and the run's folder has
all records.
"""

from __future__ import annotations

import argparse
import json
import secrets
import statistics
from pathlib import Path
from typing import Any

from lm_env.benchmark import BenchSettings, run_bench
from lm_env.benchmark.results import attained_share, summarize_records

SHARE = 0.5
SEEDS = 5


def option(text: str) -> tuple[str, Any]:
    """`learning_rate=2e-4` as a name and a value; what is no JSON is text."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def verify(agent: str, options: dict[str, Any], tokens: int, out: Path, first_seed: int) -> dict[str, Any]:
    """Train with five seeds and measure; returns the entry."""
    settings = BenchSettings.of(
        {
            "tasks": ["lm_env/Sentiment-v0"],
            "agents": [{"agent": agent, "label": "entry", **options}],
            "seeds": SEEDS,
            "first_seed": first_seed,
            "tokens": tokens,
            "evaluations": 1,
            "curve_texts": 16,
            "threads": 2,
        }
    )
    found = run_bench(settings, out, say=print)
    if found.failed:
        raise SystemExit(f"{found.failed[0].cell}: {found.failed[0].error}")
    table = summarize_records(found.records).tables[0]
    runs = [record for record in found.records if record["kind"] == "run"]
    shares = [share.mean for r in runs if (share := attained_share(table.ceiling, r["by_prompt"]["J"])) is not None]
    return {
        "agent": agent,
        "options": options,
        "verified": len(shares) == SEEDS and min(shares) >= SHARE,
        "attained": [round(share, 3) for share in shares],
        "seconds": round(statistics.mean(r["seconds"] for r in runs), 1),
        "tokens": round(statistics.mean(r["tokens"] for r in runs)),
        "seeds": [r["seed"] for r in runs],
        "lower_bound": table.is_lower_bound,
        "cpu": runs[0]["hardware"]["cpu"],
        "commit": runs[0]["commit"],
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("agent", help="a name of lm-env train, or your own 'file.py:Class' or 'file.py:train'")
    p.add_argument("options", nargs="*", type=option, help="options of the agent, NAME=VALUE")
    p.add_argument("--tokens", type=int, required=True, help="of each of the five runs")
    p.add_argument("--out", type=Path, default=Path("runs/speedrun"), help="a folder for the runs of entries")
    args = p.parse_args()
    first_seed = 1_000 + secrets.randbelow(10**6)
    place = args.out / f"seed-{first_seed}"
    entry = verify(args.agent, dict(args.options), args.tokens, place, first_seed)
    with (args.out / "entries.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")
    print(json.dumps(entry, indent=1))
    print("verified" if entry["verified"] else f"not verified: every seed must attain {SHARE:.0%}")


if __name__ == "__main__":
    main()
