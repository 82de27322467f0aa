"""The agents by name, set up to be checked: `lm-env check-agent NAME`.

Each entry trains the table model of an enumerable MDP.  The settings are those of a tabular policy --
large steps that fall to 0 -- and have nothing to do with good ones for a language model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agents import AGENTS
from lm_env.agent_checker import Train
from lm_env.errors import ConfigurationError, MissingDependencyError

__all__ = ["CHECKED", "trainer"]

TABULAR: dict[str, Any] = {"rollout_episodes": 2048, "slots": 2048, "lr_schedule": "linear", "max_grad_norm": 100.0}
# One gradient step per rollout needs many rollouts; a step of a tabular policy is cheap.
ONE_STEP: dict[str, Any] = {**TABULAR, "batch_size": 2048, "learning_rate": 0.1}
# A group mean holds the sample itself, so the score weighs (G - 1) / G beside a KL in the loss: G is the paper's.
GROUPS: dict[str, Any] = {**ONE_STEP, "group_size": 64}


def _batched(name: str, rollouts: int, **options: Any) -> Train:
    def train(env: Any, seed: int) -> None:
        agent = AGENTS[name](env, seed=seed, **options)
        agent.learn(rollouts * options["rollout_episodes"] * env.task.max_new_tokens)

    return train


def _sb3(algorithm: str, steps: int, **options: Any) -> Train:
    def train(env: Any, seed: int) -> None:
        from stable_baselines3.common.utils import LinearSchedule

        from agents.sb3 import CausalLMPolicy, EpisodeRolloutBuffer, TextVecEnv

        rate = options.pop("learning_rate")
        vec = TextVecEnv.from_env(env, num_envs=512)
        agent = _sb3_class(algorithm)(
            CausalLMPolicy, vec, gamma=1.0, seed=seed, rollout_buffer_class=EpisodeRolloutBuffer,
            learning_rate=LinearSchedule(rate, 0.0, 1.0), **options,
        )  # fmt: skip
        options["learning_rate"] = rate
        agent.learn(steps)

    return train


def _sb3_class(name: str) -> Any:
    try:
        module = __import__("stable_baselines3" if name in ("PPO", "A2C") else "sb3_contrib")
    except ImportError as error:
        raise MissingDependencyError(f"{name} needs sb3-contrib: pip install 'lm-env[contrib]'") from error
    return getattr(module, name)


UNSCALED: dict[str, Any] = {**GROUPS, "scale_by_std": False, "length_normalization": "constant"}
CHECKED: dict[str, Callable[[], Train]] = {
    "a2c": lambda: _batched("a2c", 800, **ONE_STEP),
    "dr-grpo": lambda: _batched("grpo", 800, **UNSCALED),
    "dr-grpo-k1": lambda: _batched("grpo", 800, **UNSCALED, kl_in="reward"),
    "grpo": lambda: _batched("grpo", 800, **GROUPS),
    "ppo": lambda: _batched("ppo", 300, **TABULAR, batch_size=512, learning_rate=0.05, n_epochs=4),
    "reinforce": lambda: _batched("reinforce", 800, **ONE_STEP),
    "reinforce-value": lambda: _batched("reinforce-value", 800, **ONE_STEP),
    "rloo": lambda: _batched("rloo", 800, **ONE_STEP),
    "sb3-a2c": lambda: _sb3("A2C", 1_500_000, n_steps=6, learning_rate=0.1, gae_lambda=0.95, use_rms_prop=False),
    "sb3-ppo": lambda: _sb3("PPO", 1_000_000, n_steps=8, batch_size=512, n_epochs=4, learning_rate=0.03),
    "trpo": lambda: _sb3("TRPO", 800_000, n_steps=6, batch_size=1024, learning_rate=0.03, target_kl=1e-3),
}
"""Name -> a trainer for `check_agent`."""


def trainer(name: str) -> Train:
    """The trainer of a name.

    Raises:
        ConfigurationError: no such name.
    """
    if name not in CHECKED:
        raise ConfigurationError(
            f"no agent is called {name!r}: choose from {', '.join(CHECKED)}, or call lm_env.check_agent with your own"
        )
    return CHECKED[name]()
