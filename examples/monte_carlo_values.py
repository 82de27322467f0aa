"""The value of a text so far, by Monte Carlo.

    python examples/monte_carlo_values.py --text "This film is wonderful, and"

V(s) is the expected sum of the rewards from s on, KL penalty included.  `env.fork` makes n copies of s, the
policy continues each to its end, and the mean of their returns estimates V(s) without bias, with a standard
error that says how well.  `audit_critic.py` holds a critic against it.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import gymnasium
import numpy as np
import torch

from lm_env.envs import TextGenerationEnv
from lm_env.generation import make_decoder, sample
from lm_env.models.logprobs import restrict

Z95 = 1.96  # half the width of a 95% interval, in standard errors


class Estimate(NamedTuple):
    """A mean and its standard error."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} +- {Z95 * self.error:.3f}"


def estimate(values: np.ndarray) -> Estimate:
    return Estimate(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))


def sample_returns(env: TextGenerationEnv, n: int, generator: torch.Generator) -> np.ndarray:
    """Sums of rewards (n,) of n continuations of the environment's episode by its own model."""
    task = env.task
    fork = env.fork(n).mdp  # its slots can be stepped in groups: here those that still run
    returns = np.zeros(n)
    running = np.arange(n)
    decoder = make_decoder(task.model, n, task.max_length)
    logits = decoder.start(running[:1], fork.input_ids[:1], fork.lengths[:1]).logits.repeat(n, 1)
    decoder.copy_row(decoder, 0, running, int(fork.lengths[0]))
    while True:
        logits = restrict(logits, fork.action_masks(running))
        tokens, logprobs = sample(logits, task.temperature, generator)
        fork.behavior.publish(tokens, logprobs, running)
        returns[running] += fork.step(running, tokens).rewards
        going = fork.running[running]
        tokens = tokens[torch.from_numpy(going)]
        running = running[going]
        if not len(running):
            return returns
        logits = decoder.step(running, tokens.cpu().numpy()).logits


def main(text: str, samples: int, seed: int) -> Estimate:
    env: TextGenerationEnv = gymnasium.make("lm_env/Sentiment-v0", max_prompt_tokens=64)  # type: ignore[assignment]
    env.reset(options={"prompt": text})
    value = estimate(sample_returns(env, samples, torch.Generator().manual_seed(seed)))
    print(f"V({text!r}) = {value}, from {samples} continuations")
    return value


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--text", default="This film is wonderful, and")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    main(args.text, args.samples, args.seed)
