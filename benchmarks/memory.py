"""Peak memory of an update at a large vocabulary, with and without chunked logprobs.

    python benchmarks/memory.py                 # vocabulary 50,000, 32 x 48 response tokens

Each way runs in a fresh process; the figure is the process's peak resident memory above what it had
before the update (on CUDA: the allocator's peak).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from agents import PPO
from lm_env import TextGenerationEnv
from lm_env.models import logprobs as model_logprobs


def peak(chunked: bool, vocab: int, batch: int, new_tokens: int, device: str) -> float:
    """MiB."""
    torch.manual_seed(0)
    model_logprobs.LOGIT_BUDGET = 2**22 if chunked else 2**62
    size: dict[str, Any] = {
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=vocab, **size))
    model = model.to(device)
    prompts = np.random.default_rng(0).integers(vocab, size=(8, 16)).tolist()
    env = TextGenerationEnv(
        model=model,
        prompts=prompts,
        eos_token_id=(),
        max_new_tokens=new_tokens,
        reward=lambda prompts, responses: [float(len(r)) for r in responses],
    )
    agent = PPO(env, rollout_episodes=batch, slots=batch, batch_size=batch, n_epochs=1)
    rollout = agent.collect_rollout()
    agent.update(rollout)  # Adam's own state is there from now on
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        agent.update(rollout)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--vocab", type=int, default=50_000)
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--new-tokens", type=int, default=48)
    p.add_argument("--device", default="cpu")
    p.add_argument("--way", choices=("whole", "chunked"), help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.way:
        print(json.dumps(peak(args.way == "chunked", args.vocab, args.batch, args.new_tokens, args.device)))
        return
    for way in ("whole", "chunked"):
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        result = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(f"{way:8s} peak {float(result.strip().splitlines()[-1]):8.0f} MiB")


if __name__ == "__main__":
    main()
