"""The demo over several seeds: each figure's mean, and its smallest and largest value.

python benchmarks/demo_seeds.py --seeds 0 1 2      # some minutes a seed; finished ones are kept
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from pathlib import Path

ROWS = ("rm_score", "gold", "perplexity", "distinct2")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--out", type=Path, default=Path("runs"))
    args = p.parse_args()
    runs = []
    for seed in args.seeds:
        folder = args.out / f"demo-seed{seed}"
        if not (folder / "summary.json").exists():
            subprocess.run(["lm-env", "demo", "--out", str(folder), "--seed", str(seed)], check=True)
        runs.append(json.loads((folder / "summary.json").read_text()))

    def show(key: str) -> str:
        values = [run[key] for run in runs]
        return f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"

    print(f"{len(runs)} seeds: mean (smallest to largest)")
    for name in ROWS:
        print(f"{name:12s} before {show(name + '_before')}   after {show(name + '_after')}")
    for name in ("kl", "rm_accuracy", "seconds"):
        print(f"{name:12s} {show(name)}")


if __name__ == "__main__":
    main()
