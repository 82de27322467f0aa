"""What `env.step` costs outside the model's own forwards, and how it grows with the number of slots.

    python benchmarks/step_overhead.py            # 32 slots: share of the step, and microseconds

The acting policy publishes its logprobs, so the step's one forward is the reference's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from lm_env.envs.vector_env import TextGenerationVectorEnv


class ForwardClock:
    """Seconds spent inside a model's trunk and head."""

    def __init__(self, model: GPT2LMHeadModel) -> None:
        self.seconds = 0.0
        for module in (model.transformer, model.lm_head):
            module.register_forward_pre_hook(self._begin)
            module.register_forward_hook(self._end)

    def _begin(self, *args: Any) -> None:
        self._began = time.perf_counter()

    def _end(self, *args: Any) -> None:
        self.seconds += time.perf_counter() - self._began


def measure(slots: int, steps: int, threads: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=2048, n_embd=256, n_layer=4, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=0)
    )
    rng = np.random.default_rng(0)
    env = TextGenerationVectorEnv(
        slots,
        model=model.eval(),
        prompts=rng.integers(1, 2048, size=(64, 16)).tolist(),
        eos_token_id=0,
        max_new_tokens=48,
        reward=lambda prompts, responses: [float(len(r)) for r in responses],
        autoreset_mode="SameStep",
    )
    clock = ForwardClock(env.task.reference)  # type: ignore[arg-type]
    env.reset(seed=0)
    logprobs = np.full(slots, -7.6)
    scoring = [0.0]
    inner = env.mdp._reference.logprobs

    def timed(*arguments: Any) -> np.ndarray:
        began = time.perf_counter()
        result = inner(*arguments)
        scoring[0] = time.perf_counter() - began
        return result

    reference: Any = env.mdp._reference
    reference.logprobs = timed
    shares, outside, bookkeeping = [], [], []
    for _ in range(steps):
        actions = rng.integers(1, 2048, size=slots)
        env.publish(actions, logprobs)
        clock.seconds, began = 0.0, time.perf_counter()
        env.step(actions)
        total = time.perf_counter() - began
        shares.append(1 - clock.seconds / total)
        outside.append(total - clock.seconds)
        bookkeeping.append(1 - scoring[0] / total)
    return {
        "slots": slots,
        "share": statistics.median(shares),
        "bookkeeping": statistics.median(bookkeeping),
        "outside_us": 1e6 * statistics.median(outside),
        "step_ms": 1e3 * statistics.median(outside) / statistics.median(shares),
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--slots", type=int, nargs="+", default=[32])
    p.add_argument("--steps", type=int, default=192)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--json", action="store_true")
    args = p.parse_args()
    for slots in args.slots:
        result = measure(slots, args.steps, args.threads)
        if args.json:
            print(json.dumps(result))
        else:
            print(
                f"{slots:4d} slots, step {result['step_ms']:.1f} ms: {result['share']:.1%} outside the trunk and"
                f" head ({result['outside_us']:.0f} us), {result['bookkeeping']:.1%} outside scoring"
            )


if __name__ == "__main__":
    main()
