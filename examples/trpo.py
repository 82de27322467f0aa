"""sb3-contrib's TRPO, unmodified, on a token MDP whose optimum is known in closed form.

    pip install 'lm-env[contrib]'
    python examples/trpo.py

TRPO differentiates twice.  The fused attention kernels do not support that, so a language model needs
`model.set_attn_implementation("eager")`, and no parameter may be frozen.  The trust region has a fixed size,
so the policy would keep moving around the optimum; this script makes the region smaller in three stages.
"""

from __future__ import annotations

import argparse

from stable_baselines3.common.vec_env import VecMonitor

from agents.sb3 import CausalLMPolicy, EpisodeRolloutBuffer, TextVecEnv
from lm_env import TokenMDP
from lm_env.errors import MissingDependencyError
from lm_env.theory.token_mdp import ExactEvaluation

try:
    from sb3_contrib import TRPO
except ImportError as error:
    raise MissingDependencyError("this example needs sb3-contrib: pip install 'lm-env[contrib]'") from error

TARGET_KLS = (0.03, 0.003, 0.0005)


def main(steps: int = 150_000, beta: float = 0.5, verbose: int = 1) -> ExactEvaluation:
    """Train for `steps` tokens; return how far the policy is from the optimum."""
    env = TextVecEnv.from_env("lm_env/TokenMDP-v0", num_envs=256, beta=beta)
    agent = TRPO(
        CausalLMPolicy,
        VecMonitor(env),
        n_steps=6,
        batch_size=512,
        gamma=1.0,
        learning_rate=0.03,  # This is the critic's; the policy's step size follows from `target_kl`.
        rollout_buffer_class=EpisodeRolloutBuffer,
        seed=0,
        verbose=verbose,
    )
    for target_kl in TARGET_KLS:
        agent.target_kl = target_kl
        agent.learn(steps // len(TARGET_KLS), log_interval=10, reset_num_timesteps=False)
    return TokenMDP.t0().evaluate(env.task.model, beta)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150_000)
    parser.add_argument("--beta", type=float, default=0.5)
    args = parser.parse_args()
    print(main(args.steps, args.beta))
