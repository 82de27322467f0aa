"""stable-baselines3's PPO, unmodified, on a token MDP whose optimum is known in closed form.

    python examples/sb3_ppo.py

To train a language model, name another environment: `TextVecEnv.from_env("lm_env/Sentiment-v0", 32)`.
"""

from __future__ import annotations

import argparse

from stable_baselines3 import PPO
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecMonitor

from agents.sb3 import CausalLMPolicy, EpisodeRolloutBuffer, TextVecEnv
from lm_env import TokenMDP
from lm_env.theory.token_mdp import ExactEvaluation


def main(steps: int = 120_000, beta: float = 0.5, verbose: int = 1) -> ExactEvaluation:
    """Train for `steps` tokens; return how far the policy is from the optimum."""
    env = TextVecEnv.from_env("lm_env/TokenMDP-v0", num_envs=128, beta=beta)
    agent = PPO(
        CausalLMPolicy,
        VecMonitor(env),
        n_steps=8,
        batch_size=256,
        n_epochs=4,
        gamma=1.0,  # With gamma below 1 the agent would maximize something other than E[score] - beta KL.
        learning_rate=LinearSchedule(0.03, 0.0, 1.0),
        rollout_buffer_class=EpisodeRolloutBuffer,
        seed=0,
        verbose=verbose,
    )
    agent.learn(steps, log_interval=20)
    return TokenMDP.t0().evaluate(env.task.model, beta)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=120_000)
    parser.add_argument("--beta", type=float, default=0.5)
    args = parser.parse_args()
    print(main(args.steps, args.beta))
