"""sb3-contrib's TRPO, unmodified, on a token MDP whose optimum is known in closed form.

    pip install 'lm-env[contrib]'
    python examples/trpo.py

TRPO differentiates twice.  The fused attention of transformers cannot, so a language model needs
`model.set_attn_implementation("eager")`; and no parameter may be frozen.  Its trust region has a
fixed size, and so the policy keeps wandering near the optimum: it is narrowed in three stages here.
"""

from __future__ import annotations

import argparse

from stable_baselines3.common.vec_env import VecMonitor

from agents.sb3 import CausalLMPolicy, EpisodeRolloutBuffer, TextVecEnv
from lm_env import TokenMDP
from lm_env.errors import MissingDependencyError
from lm_env.theory.token_mdp import Evaluation

try:
    from sb3_contrib import TRPO
except ImportError as error:
    raise MissingDependencyError("this example needs sb3-contrib: pip install 'lm-env[contrib]'") from error

STAGES = (0.03, 0.003, 0.0005)


def main(steps: int = 150_000, beta: float = 0.5, verbose: int = 1) -> Evaluation:
    env = TextVecEnv.from_env("lm_env/TokenMDP-v0", num_envs=256, beta=beta)
    agent = TRPO(
        CausalLMPolicy,
        VecMonitor(env),
        n_steps=6,
        batch_size=512,
        gamma=1.0,
        learning_rate=0.03,  # of the critic
        rollout_buffer_class=EpisodeRolloutBuffer,
        seed=0,
        verbose=verbose,
    )
    for target_kl in STAGES:
        agent.target_kl = target_kl
        agent.learn(steps // len(STAGES), log_interval=10, reset_num_timesteps=False)
    return TokenMDP.t0().evaluate(env.task.model, beta)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150_000)
    parser.add_argument("--beta", type=float, default=0.5)
    args = parser.parse_args()
    print(main(args.steps, args.beta))
