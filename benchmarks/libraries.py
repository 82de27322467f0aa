"""Tokens per second of every library's agents, each as `examples/train.py --agent NAME` sets it up.

    python benchmarks/libraries.py                        # Markdown table; some minutes
    python benchmarks/libraries.py --agents ppo sb3-ppo tianshou-ppo --timesteps 20000

From rollout to update on lm_env/Sentiment-v0 with the embedded model, start-up included.  The agents differ
in how often they go over a rollout, so this is what to expect of each, not a comparison of the libraries' code.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from train import OTHERS, measure, train

from agents.sb3.named import SB3_AGENTS

FROM = {name: known.library.replace("_", "-") for name, known in SB3_AGENTS.items()} | {
    "tianshou-ppo": "Tianshou",
    "torchrl-ppo": "TorchRL",
}
SLOW = {"trpo": 16}
"""Divides the timesteps: a second derivative for every parameter tensor takes its time."""


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--agents", nargs="+", default=["ppo", "a2c", "grpo", "rloo", *SB3_AGENTS, *OTHERS])
    p.add_argument("--timesteps", type=int, default=16_384)
    args = p.parse_args()
    print("| agent | from | tokens/s | score after | KL after |\n|---|---|---|---|---|")
    for name in args.agents:
        env: Any = gymnasium.make_vec("lm_env/Sentiment-v0", num_envs=32, beta=0.05, autoreset_mode="Disabled")
        tokens = args.timesteps // SLOW.get(name, 1)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            start = time.perf_counter()
            train(name, env, tokens, 0)
            seconds = time.perf_counter() - start
        score, kl = measure(env.unwrapped.task)
        print(
            f"| `{name}` | {FROM.get(name, 'agents')} | {tokens / seconds:.0f} | {score:.2f} | {kl:.2f} |", flush=True
        )


if __name__ == "__main__":
    main()
