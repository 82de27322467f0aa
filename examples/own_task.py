"""A task of one's own from beginning to end, by the commands that one would type: sums with a reward that is checked.

    python examples/own_task.py                                  # the embedded model, some minutes a seed
    python examples/own_task.py --model FOLDER --seeds 0 1 2     # another one, in transformers' layout

Fine-tuning on some of the sums, then RLOO with LoRA until more of all sums are right.  On the way the training is
stopped twice, by SIGTERM and by Ctrl-C, and gone on with.  At the end peft reads the adapter and transformers the
merged model, and both compute the same.

The embedded model learns these sums by heart, and does worse on others: `--held-out 0.2` measures on sums that are not
trained on, which is what to look at with a model that can add.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_env.models.loading import load_model, load_tokenizer
from lm_env.runs import RunFolder

REWARD = '''"""A sum is right if the first number of the response is the answer."""

import re


def right(prompts, responses, answer, **columns):
    """1 for a right sum, else 0."""
    found = [re.search(r"\\d+", response) for response in responses]
    return [float(number is not None and int(number[0]) == wanted) for number, wanted in zip(found, answer)]
'''
STOPPED = 75
"""The exit status of a run that a signal has stopped, and that can be gone on with."""


def write_task(folder: Path, shown: int) -> None:
    """demonstrations.jsonl with `shown` answers to learn from, sums.jsonl with all sums, and reward.py."""
    sums = list(itertools.product(range(10), range(10)))
    random.Random(0).shuffle(sums)
    rows = [{"prompt": f"{a} + {b} =", "answer": a + b} for a, b in sums]
    answers = [{"prompt": row["prompt"], "response": f" {row['answer']}"} for row in rows[:shown]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "demonstrations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    (folder / "reward.py").write_text(REWARD)


def lm_env(*words: object) -> subprocess.Popen:
    """`lm-env WORDS` as a process of its own."""
    command = [sys.executable, "-c", "from lm_env.cli import main; main()", *map(str, words)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def stop_after(process: subprocess.Popen, log: Path, rollouts: int, number: signal.Signals) -> int:
    """Send a signal once the log has so many more rollouts; returns the exit status."""
    begun_with = _rollouts(log)
    while process.poll() is None:
        if _rollouts(log) >= begun_with + rollouts:
            process.send_signal(number)
            return process.wait()
        try:
            process.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            continue
    return process.wait()


def _rollouts(log: Path) -> int:
    if not log.exists():
        return 0
    with log.open(newline="") as file:
        return sum(bool(row.get("rollout/score")) for row in csv.DictReader(file))


def as_flags(options: dict[str, object]) -> list[object]:
    """`{"n": 3}` as `--n 3`."""
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def day(model: str, out: Path, seed: int, *, timesteps: int, epochs: int, episodes: int, held_out: float) -> list[dict]:
    """All of it for one seed; returns the evaluations, the first before the training and the last after it."""
    write_task(out, shown=60)
    base = out / "sft"
    tuning = {"model": model, "epochs": epochs, "learning-rate": 5e-4, "held-out-fraction": 0, "seed": seed}
    assert lm_env("sft", out / "demonstrations.jsonl", *as_flags(tuning), "--out", base).wait() == 0
    run = RunFolder(out / "run")
    task = {"model": base, "prompts": out / "sums.jsonl", "reward": f"{out / 'reward.py'}:right", "max-new-tokens": 4}
    agent = {"agent": "rloo", "lora": 16, "learning-rate": 2e-3, "beta": 0.01, "group-size": 8}
    length = {"timesteps": timesteps, "rollout-episodes": episodes, "eval-every": 0, "eval-fraction": held_out}
    flags = as_flags({**task, **agent, **length, "seed": seed})
    log = run.path / "progress.csv"
    first = stop_after(lm_env("train", *flags, "--out", run.path), log, 2, signal.SIGTERM)
    second = stop_after(lm_env("train", "--out", run.path, "--resume"), log, 2, signal.SIGINT)
    assert first == second == STOPPED, (first, second)
    assert lm_env("train", "--out", run.path, "--resume").wait() == 0
    check_files(base, run)
    return run.evaluations()


@torch.no_grad()
def check_files(base: Path, run: RunFolder) -> None:
    """peft's model, the base with the adapter on it, is transformers' merged one; neither is the base."""
    tokenizer = AutoTokenizer.from_pretrained(run.policy)
    ids = tokenizer("3 + 4 =", return_tensors="pt").input_ids
    plain = load_model(base)
    before = plain(input_ids=ids).logits
    adapted = PeftModel.from_pretrained(plain, str(run.adapter))(input_ids=ids).logits
    merged = AutoModelForCausalLM.from_pretrained(run.policy)(input_ids=ids).logits
    assert torch.allclose(adapted, merged, atol=1e-3), (adapted - merged).abs().max()
    assert not torch.allclose(before, merged, atol=1e-3)
    assert load_tokenizer(run.policy)("3")["input_ids"] == tokenizer("3")["input_ids"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reviews-3m")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/own_task"))
    parser.add_argument("--timesteps", type=int, default=40_000)
    parser.add_argument("--epochs", type=int, default=30, help="of fine-tuning on the sums that are shown")
    parser.add_argument("--episodes", type=int, default=128, help="per rollout")
    parser.add_argument("--held-out", type=float, default=0.0, help="share of the sums that is not trained on")
    args = parser.parse_args()
    for seed in args.seeds:
        options = {"timesteps": args.timesteps, "epochs": args.epochs, "episodes": args.episodes}
        found = day(args.model, args.out / f"seed{seed}", seed, held_out=args.held_out, **options)
        before, after = (f"{row['score']:.2f} (standard error {row['score_se']:.2f})" for row in (found[0], found[-1]))
        print(f"seed {seed}: {before} of the sums right before, {after} after", flush=True)


if __name__ == "__main__":
    main()
