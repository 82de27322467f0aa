"""The loop against a single round: the same judge, the same tokens of PPO, fewer comparisons.

    nice python benchmarks/loop.py                 # a loop of three rounds, and single rounds of more comparisons
    python benchmarks/loop.py --rounds 2 --comparisons 64 --timesteps 4000 --single 2 --out runs/quick

A loop of `--rounds` rounds has `--comparisons` in each and trains on `--timesteps` tokens in each.  A single round has
all tokens at once and as many comparisons as the whole loop, or `--single` times as many.  Each ends with the judge's
mean score of texts to held-out openings.  What is finished is kept; results.json and a table are written at the end.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lm_env.cli.loop import LoopConfig, run_loop


def finished(out: Path, **options: Any) -> dict[str, Any]:
    """The summary of a loop, which is run or gone on with unless it is there."""
    if (out / "summary.json").exists():
        return json.loads((out / "summary.json").read_text())
    return run_loop(LoopConfig(out=out, **options), resume=(out / "loop.yaml").exists())


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--comparisons", type=int, default=256, help="of a round of the loop")
    p.add_argument("--timesteps", type=int, default=24_000, help="tokens of PPO in a round of the loop")
    p.add_argument("--single", type=int, nargs="+", default=[1, 2, 4], help="a single round has so many times as many")
    p.add_argument("--beta", type=float, default=0.05)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, default=Path("runs/loop-benchmark"))
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    common = {"beta": args.beta, "seed": args.seed}
    loop = finished(
        args.out / "loop", rounds=args.rounds, comparisons=args.comparisons, timesteps=args.timesteps, **common
    )
    results = [{"what": f"round {i}", **row} for i, row in enumerate(loop["rounds"], start=1)]
    for factor in args.single:
        many = factor * args.rounds * args.comparisons
        one = finished(
            args.out / f"single-{many}", rounds=1, comparisons=many, timesteps=args.rounds * args.timesteps, **common
        )
        results.append({"what": "one round", **one["rounds"][0]})
    content = {"supervised": loop["supervised"], "results": results, "options": {**vars(args), "out": str(args.out)}}
    (args.out / "results.json").write_text(json.dumps(content, indent=1) + "\n")
    print("| | comparisons | judge's score | reward model score | KL, nats |\n|---|---|---|---|---|")
    print(f"| supervised | | {loop['supervised']['gold']:.3f} | | 0 |")
    for row in results:
        cells = f"{row['all_comparisons']:,} | {row['gold']:.3f} | {row['rm_score']:.3f} | {row['kl']:.2f}"
        print(f"| {row['what']} | {cells} |")


if __name__ == "__main__":
    main()
