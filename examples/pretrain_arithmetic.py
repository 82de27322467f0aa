"""Make the model of lm_env/Arithmetic-v0: a GPT-2 of 0.4M parameters, a token per character.

    python examples/pretrain_arithmetic.py                      # into lm_env/assets, ten minutes on one core
    python examples/pretrain_arithmetic.py --out runs/adder     # elsewhere, to compare

Its teacher answers problems of all levels: right in three of ten cases, without carrying in four, and with a wrong
digit of tens in three.  The problems of the validation and test splits are held out of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from character_model import Rows, fit, make_model, make_tokenizer, save

from lm_env.tasks import get_task
from lm_env.tasks.arithmetic import truth

CHARACTERS = "0123456789+*="
LEVELS = {1: 0.15, 2: 0.35, 3: 0.35, 4: 0.15}
"""How often the teacher is asked a problem of each level."""
RIGHT, FORGETS = 0.3, 0.4


def without_carrying(prompt: str) -> str:
    """The answer of one who computes each column and forgets what is carried."""
    left, sign, right = prompt.removesuffix("=").replace("+", " + ").replace("*", " * ").split()
    if sign == "+":
        width = max(len(left), len(right))
        columns = [int(a) + int(b) for a, b in zip(left.zfill(width), right.zfill(width), strict=True)]
    else:
        one, two = sorted((left, right), key=len)
        columns = [int(one) * int(digit) for digit in two]
    return str(int("".join(str(column if i == 0 else column % 10) for i, column in enumerate(columns))))


def answer_of(prompt: str, truth: str, rng: np.random.Generator) -> str:
    """What the teacher says."""
    mood = rng.random()
    if mood < RIGHT:
        return truth
    if mood < RIGHT + FORGETS or len(truth) < 2:
        return without_carrying(prompt)
    digits = list(truth)
    other = [d for d in "0123456789" if d != digits[-2] and not (len(digits) == 2 and d == "0")]
    digits[-2] = str(rng.choice(other))
    return "".join(digits)


class Teacher:
    """Problems of all levels with its answers; of the third level any that is not held out, not the task's alone."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        tasks = {level: get_task("lm_env/Arithmetic-v0", level=level) for level in LEVELS}
        self.pools = {level: [row["prompt"] for row in task.prompts("train")] for level, task in tasks.items()}
        self.held_out = {row["prompt"] for split in ("validation", "test") for row in tasks[3].prompts(split)}

    def draw(self, count: int) -> Rows:
        """So many of them."""
        levels = self.rng.choice(list(LEVELS), count, p=list(LEVELS.values()))
        prompts = [self.problem(int(level)) for level in levels]
        return [(prompt, answer_of(prompt, truth(prompt), self.rng)) for prompt in prompts]

    def problem(self, level: int) -> str:
        """One problem of a level."""
        if level != 3:
            return self.pools[level][self.rng.integers(len(self.pools[level]))]
        a, b = self.rng.integers(100, 1000, size=2)
        return f"{a}+{b}=" if f"{a}+{b}=" not in self.held_out else self.problem(level)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    assets = Path(__file__).parents[1] / "lm_env" / "assets"
    p.add_argument("--out", type=Path, default=assets / "arithmetic-0.4m")
    p.add_argument("--steps", type=int, default=3000)
    p.add_argument("--batch", type=int, default=192)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer(CHARACTERS)
    model = make_model(len(tokenizer), layers=2, dim=128, positions=32)
    print(f"{sum(q.numel() for q in model.parameters()):,} parameters", flush=True)
    losses = fit(model, tokenizer, Teacher(args.seed).draw, steps=args.steps, batch=args.batch, rate=0.02)
    print(f"loss {np.mean(losses[-100:]):.4f} nats per token")
    save(model.eval(), tokenizer, args.out)


if __name__ == "__main__":
    main()
