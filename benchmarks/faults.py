"""What happens when things go wrong: the table of docs/reliability.md, as Markdown.

    python benchmarks/faults.py --quick                   a few minutes, on two cores
    python benchmarks/faults.py                           the numbers of the table; about an hour
    python benchmarks/faults.py --only saves events       some of its parts

Everything happens in temporary folders.  The exit code is 1 if anything was not as it should be.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from fault_damage import flipped_bits, named_errors, reader_beside_a_writer
from fault_kills import killed_at_events, killed_saves, killed_trainings
from fault_rewards import failing_rewards

Row = tuple[str, str, str]

ROOT = Path(__file__).resolve().parent.parent
MACHINE = ROOT / "tests" / "lm_env" / "envs" / "test_state_machine.py"


def state_machine(steps: int) -> list[Row]:
    """The property-based state machine of the environment, for so many steps."""
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", str(MACHINE), "-k", "profile"]
    environment = {**os.environ, "STATE_MACHINE_STEPS": str(steps)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    told = re.search(r"(\d+) steps in (\d+) programs, (\d+) of them refused", done.stdout)
    if done.returncode or told is None:
        return [
            (
                "random programs of reset, step, score, fork, save, load",
                f"{steps} steps",
                "FAILED: " + done.stdout[-300:],
            )
        ]
    outcome = f"no undocumented exception; {told[3]} steps were refused, and each left the state as it was"
    return [("random programs of reset, step, score, fork, save, load", f"{told[1]} steps", outcome)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small counts, unless others are given")
    parser.add_argument("--kills", type=int, help="kills while saving [200; quick 30]")
    parser.add_argument("--training-kills", type=int, help="kills of each training [3; quick 1]")
    parser.add_argument("--flips", type=int, help="flipped bits per loader [300; quick 40]")
    parser.add_argument("--reads", type=int, help="reads beside a writer [500; quick 50]")
    parser.add_argument("--minutes", type=float, help="of training with a failing reward [30; quick 0.5]")
    parser.add_argument("--steps", type=int, help="steps of the state machine [10000; quick 1000]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="PART")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")

    def count(given: float | None, whole: float, quick: float) -> float:
        return given if given is not None else quick if options.quick else whole

    rng = random.Random(options.seed)
    parts: dict[str, Callable[[], list[Row]]] = {
        "saves": lambda: killed_saves(int(count(options.kills, 200, 30)), rng),
        "events": killed_at_events,
        "trainings": lambda: killed_trainings(int(count(options.training_kills, 3, 1)), rng),
        "flips": lambda: flipped_bits(int(count(options.flips, 300, 40)), rng),
        "reader": lambda: reader_beside_a_writer(int(count(options.reads, 500, 50))),
        "errors": named_errors,
        "machine": lambda: state_machine(int(count(options.steps, 10_000, 1000))),
        "rewards": lambda: failing_rewards(count(options.minutes, 30, 0.5)),
    }
    if unknown := set(options.only or ()) - parts.keys():
        parser.error(f"--only takes {', '.join(parts)}, not {', '.join(unknown)}")
    rows: list[Row] = []
    print("| fault | tried | outcome |\n|---|---|---|", flush=True)
    for name, part in parts.items():
        if not options.only or name in options.only:
            for row in part():
                rows.append(row)
                print("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |", flush=True)
    wrong = [row for row in rows if re.search(r"\b(?:[A-Z]{2,} [A-Z]{2,}|UNNAMED|DIFFERENT|FAILED)\b", row[2])]
    uneven = [row for row in rows if (told := re.match(r"(\d+) of (\d+)", row[2])) and told[1] != told[2]]
    sys.exit(1 if wrong or uneven else 0)


if __name__ == "__main__":
    main()
