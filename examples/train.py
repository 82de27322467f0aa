"""One script, any agent, without a folder: score and KL on fixed prompts before and after.

    python examples/train.py --agent ppo
    python examples/train.py --agent tianshou-ppo --timesteps 50000

It makes the agents that `lm-env train` makes, and those of Tianshou (tianshou-ppo) and TorchRL (torchrl-ppo), which
train the same language model on the same environment and have no saved form of their own here.

Several processes train one model, each of them on its share of the texts:

    torchrun --nproc_per_node 2 examples/train.py --agent grpo
"""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Any

import gymnasium
import numpy as np
import torch

import lm_env  # registers the environments
from lm_env.distributed import processes, require_one_process
from lm_env.generation import LocalBackend, Sampling
from lm_env.objective.scoring import score_episodes
from lm_env.objective.task import Task
from lm_env.runs.agents import agent_kind, agent_names

OTHERS = {"tianshou-ppo": "tianshou_ppo", "torchrl-ppo": "torchrl_ppo"}  # the examples beside this one


def train(name: str, env: Any, timesteps: int, seed: int) -> Any:
    """Train the environment's own model by the agent of that name."""
    if name in OTHERS:
        require_one_process(f"{name} trains")
        return import_module(OTHERS[name]).train(env, timesteps, seed=seed)
    agent = agent_kind(name).make(env, seed=seed, log_dir=None, verbose=0)
    return agent.learn(timesteps, progress_bar=True)


def measure(task: Task, seed: int = 0) -> tuple[float, float]:
    """(mean score, mean KL per response) on 128 fixed prompts."""
    prompts = task.prompts.sample(np.random.default_rng(seed), 128)
    sampling = Sampling(torch.Generator().manual_seed(seed))
    episodes = LocalBackend(task, 64).generate(prompts, sampling).episodes
    scored = score_episodes(task, episodes)
    return float(scored.scores.mean()), float(scored.kl.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--agent", default="ppo", choices=[*agent_names(), *OTHERS])
    parser.add_argument("--env", default="lm_env/Sentiment-v0", help="a registered id")
    parser.add_argument("--timesteps", type=int, default=40_000, help="tokens")
    parser.add_argument("--beta", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    env: Any = gymnasium.make_vec(args.env, num_envs=32, beta=args.beta, autoreset_mode="Disabled")
    task = env.unwrapped.task
    if processes().first:
        print(f"lm_env {lm_env.__version__}: {args.agent} on {args.env}")
        print("before: score {:.3f}, KL {:.2f}".format(*measure(task)))
    train(args.agent, env, args.timesteps, args.seed)
    if processes().first:
        print("after:  score {:.3f}, KL {:.2f}".format(*measure(task)))


if __name__ == "__main__":
    main()
