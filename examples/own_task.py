"""A task of your own from beginning to end, by the commands that a user would type: number sequences, checked exactly.

    python examples/own_task.py                                     # the embedded model counts; two minutes a seed
    python examples/own_task.py --model smollm2-135m --seeds 0 1 2  # steps of 1 to 9; docs/own_task.md has its figures

A prompt is such as "29, 32, 35, 38,", and its reward is 1 if the response is 41.  A quarter of the sequences is held
out.  The model is fine-tuned on a few of the others, then trained on all of them by RLOO with LoRA; the training is
stopped twice, by SIGTERM and by Ctrl-C, and resumed.  At the end the script checks that the report exists, and that
peft's model with the adapter computes the same as transformers' merged one.

The embedded model was pretrained only on film reviews, so its sequences go up by one.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import random
import resource
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents import RLOO
from lm_env import TextGenerationEnv
from lm_env.models.loading import EMBEDDED_MODEL, load_model, load_tokenizer
from lm_env.objective.functions import load_function
from lm_env.runs import RunFolder
from reward_models.trust import Share, wilson

REWARD = '''"""A sequence is continued right if the number that follows is the next one."""

import re


def right(prompts, responses, answer, **columns):
    """1 for a response that is the right number, else 0."""
    found = [re.fullmatch(r"\\s*(\\d+)\\s*", response) for response in responses]
    return [float(number is not None and int(number[1]) == wanted) for number, wanted in zip(found, answer)]
'''
STOPPED = 75
"""The exit status of a run that a signal has stopped, and that can be resumed."""


@dataclass(frozen=True)
class Plan:
    """What differs between a small model and a large one; the defaults are those of the embedded model."""

    largest_step: int = 1
    """The steps of the sequences are 1 to this."""
    terms: tuple[int, ...] = (3, 4, 5)
    """How many numbers a prompt shows."""
    shown: int = 128
    """Sequences to fine-tune on."""
    epochs: int = 12
    sft_rate: float = 5e-4
    """The learning rate of the fine-tuning."""
    rate: float = 2e-3
    """The learning rate of RLOO."""
    lora: int = 16
    episodes: int = 128
    """Responses per rollout."""
    timesteps: int = 16_000


PLANS = {
    EMBEDDED_MODEL: Plan(),
    "smollm2-135m": Plan(
        largest_step=9,
        terms=(4,),
        shown=128,
        epochs=1,
        sft_rate=2e-5,
        rate=3e-4,
        lora=8,
        episodes=64,
        timesteps=3_200,
    ),
}


def write_task(folder: Path, plan: Plan) -> None:
    """demonstrations.jsonl to learn from, problems.jsonl to train on, held_out.jsonl to measure on, and reward.py.

    The sequences held out are a quarter of all, the same for every seed; none of them begins where one that is trained
    on begins with the same step.
    """
    kinds = list(itertools.product(range(1, 100), range(1, plan.largest_step + 1)))
    random.Random(0).shuffle(kinds)
    cut = len(kinds) // 4
    held_out, problems = (
        [_problem(*kind, n) for kind in part for n in plan.terms] for part in (kinds[:cut], kinds[cut:])
    )
    demonstrations = [{"prompt": row["prompt"], "response": f" {row['answer']},"} for row in problems[: plan.shown]]
    folder.mkdir(parents=True, exist_ok=True)
    rows = {"problems": problems, "held_out": held_out, "demonstrations": demonstrations}
    for name, made in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    (folder / "reward.py").write_text(REWARD)


def _problem(start: int, step: int, terms: int) -> dict[str, object]:
    *shown, answer = (start + i * step for i in range(terms + 1))
    return {"prompt": "".join(f"{number}, " for number in shown).rstrip(), "answer": answer}


def lm_env(*words: object) -> subprocess.Popen:
    """`lm-env WORDS` as a process of its own."""
    command = [sys.executable, "-m", "lm_env", *map(str, words)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, preexec_fn=_obey_ctrl_c)


def _obey_ctrl_c() -> None:
    """Make Ctrl-C end this process: a script that a shell runs in the background, and its children, ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def stop_after(process: subprocess.Popen, log: Path, rollouts: int, number: signal.Signals) -> int:
    """Send a signal once the log has this many more rollouts; returns the exit status."""
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


def untrained(model: str, task: Path) -> Share:
    """The success of a model on the sequences held out, before anything is learned."""
    reward = load_function(f"{task / 'reward.py'}:right", "prompts, responses")
    prompts = task / "held_out.jsonl"
    env = TextGenerationEnv(model=model, prompts=str(prompts), reward=reward, max_new_tokens=6, stop_strings=(",",))
    return share(RLOO(env).evaluate(n=1).score.mean, prompts)


def share(mean: float, held_out: Path) -> Share:
    """A success rate with its interval, one text for each of the sequences held out."""
    n = len(held_out.read_text().splitlines())
    right = round(mean * n)
    found = wilson([1.0] * right + [0.0] * (n - right))
    assert found is not None
    return found


def run_all(model: str, out: Path, seed: int, plan: Plan) -> dict[str, Share]:
    """Run every step for one seed; returns the success on the sequences held out, after fine-tuning and after RLOO."""
    write_task(out, plan)
    base, held_out = out / "sft", out / "held_out.jsonl"
    tuning = {"model": model, "epochs": plan.epochs, "learning-rate": plan.sft_rate, "held-out-fraction": 0}
    demonstrations = out / "demonstrations.jsonl"
    assert lm_env("sft", demonstrations, *as_flags(tuning), "--seed", seed, "--out", base).wait() == 0
    run = RunFolder(out / "run")
    task = {"model": base, "prompts": out / "problems.jsonl", "reward": f"{out / 'reward.py'}:right"}
    text = {"max-new-tokens": 6, "stop-strings": ",", "beta": 0.01}
    agent = {"agent": "rloo", "lora": plan.lora, "learning-rate": plan.rate, "group-size": 8}
    length = {"timesteps": plan.timesteps, "rollout-episodes": plan.episodes}
    measured = {"eval-prompts": held_out, "eval-texts": len(held_out.read_text().splitlines()), "eval-every": 0}
    flags = as_flags({**task, **text, **agent, **length, **measured, "seed": seed})
    log = run.path / "progress.csv"
    first = stop_after(lm_env("train", *flags, "--out", run.path), log, 2, signal.SIGTERM)
    second = stop_after(lm_env("train", "--out", run.path, "--resume"), log, 2, signal.SIGINT)
    assert first == second == STOPPED, (first, second)
    assert lm_env("train", "--out", run.path, "--resume").wait() == 0
    assert "<html" in run.report.read_text()
    check_files(base, run)
    before, after = (share(run.evaluations()[at]["score"], held_out) for at in (0, -1))
    return {"fine-tuned": before, "trained": after}


@torch.no_grad()
def check_files(base: Path, run: RunFolder) -> None:
    """peft's model, the base with the adapter on it, is transformers' merged one; neither is the base."""
    tokenizer = AutoTokenizer.from_pretrained(run.policy)
    ids = tokenizer("3, 4, 5,", return_tensors="pt").input_ids
    plain = load_model(base)
    before = plain(input_ids=ids).logits
    adapted = PeftModel.from_pretrained(plain, str(run.adapter))(input_ids=ids).logits
    merged = AutoModelForCausalLM.from_pretrained(run.policy)(input_ids=ids).logits
    assert torch.allclose(adapted, merged, atol=1e-3), (adapted - merged).abs().max()
    assert not torch.allclose(before, merged, atol=1e-3)
    assert load_tokenizer(run.policy)("3")["input_ids"] == tokenizer("3")["input_ids"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="reviews-3m, smollm2-135m, or a folder")
    parser.add_argument(
        "--like", choices=sorted(PLANS), help="for a folder: the model whose options it is trained with"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/own_task"))
    args = parser.parse_args()
    plan = PLANS[args.like or args.model]
    write_task(args.out, plan)
    print(f"right before anything is learned, with the 95% interval: {untrained(args.model, args.out)}", flush=True)
    for seed in args.seeds:
        found = run_all(args.model, args.out / f"seed{seed}", seed, plan)
        minutes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime / 60
        told = ", ".join(f"{phase} {rate}" for phase, rate in found.items())
        print(f"seed {seed}: {told}; {minutes:.1f} minutes of one core so far", flush=True)


if __name__ == "__main__":
    main()
