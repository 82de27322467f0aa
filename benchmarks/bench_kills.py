"""Kill `lm-env bench` at random, again and again: in the end its results are those of a run that nobody touched.

    python benchmarks/bench_kills.py                       # ten kills, a small benchmark in two processes
    python benchmarks/bench_kills.py --kills 3 --seed 1
    python benchmarks/bench_kills.py --tasks lm_env/TokenMDP-v0 --tokens 6000 --processes 1  # three minutes on one core

The runner is a process of its own, ended by SIGKILL after a random time, so that its workers lose it at any moment:
while they train, write a checkpoint, or write their records.  Times and hardware are left out of the comparison.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lm_env.benchmark import comparable, read_records

SMALL = """
tasks: [{tasks}]
agents:  # short rollouts, so that a run has several checkpoints
  - {{agent: rloo, rollout_episodes: 16, batch_size: 16}}
  - {{agent: ppo, rollout_episodes: 16, batch_size: 16}}
  - {{agent: sb3-ppo, n_steps: 16, batch_size: 64}}
seeds: 2
tokens: {tokens}
evaluations: 4
curve_texts: 8
prompts: 8
texts: 16
ceiling_samples: 16
ceiling_most: 16
"""


def bench(out: Path, processes: int) -> subprocess.Popen:
    """The runner as a process of its own."""
    command = [sys.executable, "-m", "lm_env", "bench", "--config", str(out.parent / "small.yaml"), "--out", str(out)]
    command += ["--processes", str(processes)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def finish(out: Path, processes: int) -> float:
    """Run to the end; returns the seconds."""
    started = time.perf_counter()
    assert bench(out, processes).wait() == 0, f"the benchmark in {out} failed"
    return time.perf_counter() - started


def workers_are_gone(group: int) -> bool:
    """Whether no process of the killed runner's group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def forget_some(out: Path, rng: random.Random) -> None:
    """Remove two thirds of the cells that are done, so that the next kill interrupts some work."""
    done = sorted(out.glob("cells/**/record.json"))
    for record in rng.sample(done, 2 * len(done) // 3):
        shutil.rmtree(record.parent)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kills", type=int, default=10)
    p.add_argument("--processes", type=int, default=2)
    p.add_argument("--tasks", default="lm_env/TokenMDP-v0,lm_env/Sentiment-v0", help="separated by commas")
    p.add_argument("--tokens", type=int, default=2000, help="training tokens of a run")
    p.add_argument("--seed", type=int, default=0, help="of the times of the kills")
    args = p.parse_args()
    rng = random.Random(args.seed)
    folder = Path(tempfile.mkdtemp(prefix="bench_kills_"))
    (folder / "small.yaml").write_text(SMALL.format(tasks=args.tasks.replace(",", ", "), tokens=args.tokens))
    whole, killed = folder / "whole", folder / "killed"
    seconds = finish(whole, args.processes)
    print(f"uninterrupted: {seconds:.0f} s", flush=True)
    for number in range(1, args.kills + 1):
        process = bench(killed, args.processes)
        wait = rng.uniform(0.05, 0.6) * seconds
        try:
            process.wait(timeout=wait)
            print(f"kill {number}: it had ended after {wait:.0f} s already", flush=True)
            forget_some(killed, rng)
            continue
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        until = time.monotonic() + 120  # one that is still importing ends once it has
        while not workers_are_gone(process.pid):
            assert time.monotonic() < until, "a worker outlived its runner"
            time.sleep(0.05)
        done = len(list(killed.glob("cells/**/record.json")))
        halves = list(killed.glob("results.jsonl")) and read_records(killed / "results.jsonl")
        print(f"kill {number} after {wait:.0f} s: {done} cells done, {len(halves)} records readable", flush=True)
        if done == len(list(whole.glob("cells/**/record.json"))):
            forget_some(killed, rng)
    finish(killed, args.processes)
    results = [comparable(read_records(place / "results.jsonl")) for place in (whole, killed)]
    assert results[0] == results[1], f"the results differ: see {folder}"
    print(f"after {args.kills} kills: {len(results[0])} records, equal to those of the uninterrupted run")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
