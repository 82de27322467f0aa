"""One script, any agent: the algorithm is a name.

    python examples/train.py --agent ppo
    python examples/train.py --agent sb3-a2c --timesteps 50000

Batched agents (ppo, a2c, grpo, rloo, reinforce, reinforce-value, best-of-n) and the unmodified ones of
stable-baselines3 and sb3-contrib (sb3-ppo, sb3-a2c, trpo), Tianshou (tianshou-ppo) and TorchRL
(torchrl-ppo) train the same language model on the same environment.  Prints score and KL on fixed
prompts before and after.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Any

import gymnasium
import numpy as np
import torch

import lm_env  # registers the environments
from agents import AGENTS
from agents.sb3 import CausalLMPolicy, EpisodeRolloutBuffer, TextVecEnv
from lm_env.generation import LocalBackend, Sampling
from lm_env.objective.scoring import score_episodes
from lm_env.objective.task import Task

SB3: dict[str, tuple[str, str, dict[str, Any]]] = {
    "sb3-ppo": ("stable_baselines3", "PPO", {"n_steps": 128, "batch_size": 1024, "n_epochs": 2, "learning_rate": 2e-4}),
    "sb3-a2c": ("stable_baselines3", "A2C", {"n_steps": 64, "learning_rate": 1e-4, "use_rms_prop": False}),
    # It takes a rollout whole, twice differentiated.
    "trpo": ("sb3_contrib", "TRPO", {"n_steps": 16, "batch_size": 512, "cg_max_steps": 4, "n_critic_updates": 2}),
}
OTHERS = {"tianshou-ppo": "tianshou_ppo", "torchrl-ppo": "torchrl_ppo"}  # the examples beside this one


def train(name: str, env: Any, timesteps: int, seed: int) -> Any:
    """Train the environment's own model by the agent of that name."""
    if name in AGENTS:
        return AGENTS[name](env, seed=seed).learn(timesteps, progress_bar=True)
    if name in OTHERS:
        return import_module(OTHERS[name]).train(env, timesteps, seed=seed)
    library, algorithm, options = SB3[name]
    if name == "trpo":  # it differentiates twice, which the fused attention kernels do not
        env.unwrapped.task.model.set_attn_implementation("eager")
    agent = getattr(import_module(library), algorithm)(
        CausalLMPolicy,
        TextVecEnv.from_env(env, num_envs=32),
        gamma=1.0,
        seed=seed,
        rollout_buffer_class=EpisodeRolloutBuffer,
        **options,
    )
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
    parser.add_argument("--agent", default="ppo", choices=[*sorted(AGENTS), *SB3, *OTHERS])
    parser.add_argument("--env", default="lm_env/Sentiment-v0", help="a registered id")
    parser.add_argument("--timesteps", type=int, default=40_000, help="tokens")
    parser.add_argument("--beta", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    env: Any = gymnasium.make_vec(args.env, num_envs=32, beta=args.beta, autoreset_mode="Disabled")
    task = env.unwrapped.task
    print(f"lm_env {lm_env.__version__}: {args.agent} on {args.env}")
    print("before: score {:.3f}, KL {:.2f}".format(*measure(task)))
    train(args.agent, env, args.timesteps, args.seed)
    print("after:  score {:.3f}, KL {:.2f}".format(*measure(task)))


if __name__ == "__main__":
    main()
