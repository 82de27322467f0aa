"""stable-baselines3's A2C, unmodified, on a token MDP whose optimum is known in closed form.

    python examples/sb3_a2c.py

A2C makes one optimizer step per rollout, so it needs short rollouts and a larger learning rate.  Its default
optimizer, RMSprop, reaches the same optimum as Adam, but more slowly.
"""

from __future__ import annotations

import argparse

from stable_baselines3 import A2C
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecMonitor

from agents.sb3 import CausalLMPolicy, EpisodeRolloutBuffer, TextVecEnv
from lm_env import TokenMDP
from lm_env.theory.token_mdp import ExactEvaluation


def main(steps: int = 100_000, beta: float = 0.5, verbose: int = 1) -> ExactEvaluation:
    """Train for `steps` tokens; return how far the policy is from the optimum."""
    env = TextVecEnv.from_env("lm_env/TokenMDP-v0", num_envs=64, beta=beta)
    agent = A2C(
        CausalLMPolicy,
        VecMonitor(env),
        n_steps=6,
        gamma=1.0,
        gae_lambda=0.95,
        use_rms_prop=False,  # Adam instead.
        learning_rate=LinearSchedule(0.05, 0.0, 1.0),
        rollout_buffer_class=EpisodeRolloutBuffer,
        seed=0,
        verbose=verbose,
    )
    agent.learn(steps, log_interval=50)
    return TokenMDP.t0().evaluate(env.task.model, beta)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--beta", type=float, default=0.5)
    args = parser.parse_args()
    print(main(args.steps, args.beta))
