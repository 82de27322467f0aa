"""The agents by name, set up to be checked: `lm-env check-agent NAME`.

Each entry trains the table model of an enumerable MDP.  The settings are those of a tabular policy --
large steps that fall to 0 -- and have nothing to do with good ones for a language model.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from agents import AGENTS
from lm_env.errors import ConfigurationError, MissingDependencyError
from lm_env.progress import Progress
from lm_env.theory.check_agent import Train

__all__ = ["CHECKED", "trainer"]

TABULAR: dict[str, Any] = {"rollout_episodes": 2048, "slots": 2048, "lr_schedule": "linear", "max_grad_norm": 100.0}
# One gradient step per rollout: as large a batch as the rollout, for the noise is what slows a table down.
ONE_STEP: dict[str, Any] = {**TABULAR, "learning_rate": 0.1}
CLIPPED: dict[str, Any] = {**TABULAR, "batch_size": 1024, "learning_rate": 0.05, "n_epochs": 2}
# A group mean holds the sample itself, so the score weighs (G - 1) / G beside a KL in the loss, and the std of a small
# group is noise: there is one prompt, so let there be one group.
GROUPS: dict[str, Any] = {**ONE_STEP, "batch_size": 2048, "group_size": 2048}
UNSCALED: dict[str, Any] = {**GROUPS, "scale_by_std": False, "length_normalization": "constant"}


def _batched(name: str, rollouts: int, options: dict[str, Any], env: Any, seed: int, *, progress: bool) -> None:
    agent = AGENTS[name](env, seed=seed, **options)
    agent.learn(rollouts * options["rollout_episodes"] * env.task.max_new_tokens, progress_bar=progress)


def _sb3(name: str, steps: int, options: dict[str, Any], env: Any, seed: int, *, progress: bool) -> None:
    from stable_baselines3.common.utils import LinearSchedule

    from agents.sb3 import CausalLMPolicy, EpisodeRolloutBuffer, TextVecEnv

    settings = {**options, "learning_rate": LinearSchedule(options["learning_rate"], 0.0, 1.0)}
    vec = TextVecEnv.from_env(env, num_envs=512)
    agent = _sb3_class(name)(
        CausalLMPolicy, vec, gamma=1.0, seed=seed, rollout_buffer_class=EpisodeRolloutBuffer, **settings
    )

    def on_step(*_: Any) -> bool:
        shown.update(agent.num_timesteps - shown.done)
        if "target_kl" in options:  # TRPO's learning rate is the critic's alone: its steps are to fall to 0 as well
            agent.target_kl = options["target_kl"] * max(0.0, 1 - agent.num_timesteps / steps) ** 2
        return True

    with Progress(steps, name, enabled=progress) as shown:
        agent.learn(steps, callback=on_step)


def _sb3_class(name: str) -> Any:
    try:
        module = __import__("stable_baselines3" if name in ("PPO", "A2C") else "sb3_contrib")
    except ImportError as error:
        raise MissingDependencyError(f"{name} needs sb3-contrib: pip install 'lm-env[contrib]'") from error
    return getattr(module, name)


CHECKED: dict[str, partial[None]] = {
    "a2c": partial(_batched, "a2c", 200, ONE_STEP),
    "dr-grpo": partial(_batched, "grpo", 300, UNSCALED),
    "dr-grpo-k1": partial(_batched, "grpo", 200, {**UNSCALED, "kl_in": "reward"}),
    "grpo": partial(_batched, "grpo", 300, GROUPS),
    "online-dpo": partial(_batched, "online-dpo", 200, {**ONE_STEP, "batch_size": 2048}),
    "online-dpo-best": partial(_batched, "online-dpo", 200, {**ONE_STEP, "batch_size": 2048, "labels": "best"}),
    "ppo": partial(_batched, "ppo", 150, CLIPPED),
    "ppo-penalty": partial(_batched, "ppo-penalty", 150, CLIPPED),
    "reinforce": partial(_batched, "reinforce", 200, ONE_STEP),
    "reinforce-value": partial(_batched, "reinforce-value", 200, ONE_STEP),
    "rloo": partial(_batched, "rloo", 200, {**ONE_STEP, "batch_size": 2048}),
    "sb3-a2c": partial(
        _sb3, "A2C", 1_200_000, {"n_steps": 6, "learning_rate": 0.1, "gae_lambda": 0.95, "use_rms_prop": False}
    ),
    "sb3-ppo": partial(
        _sb3, "PPO", 1_000_000, {"n_steps": 8, "learning_rate": 0.05, "batch_size": 2048, "n_epochs": 2}
    ),
    "trpo": partial(
        _sb3,
        "TRPO",
        500_000,
        # Rarely visited states have little Fisher information, and the usual damping of 0.1 would hold them in place.
        {"n_steps": 8, "learning_rate": 0.05, "batch_size": 2048, "target_kl": 0.01, "cg_damping": 1e-3},
    ),
}
"""Name -> `train(env, seed, *, progress)`."""


def trainer(name: str, progress: bool = False) -> Train:
    """The trainer of a name, for `check_agent`.

    Args:
        progress: show a progress bar for each training, on stderr.

    Raises:
        ConfigurationError: no such name.
    """
    if name not in CHECKED:
        raise ConfigurationError(
            f"no agent is called {name!r}: choose from {', '.join(CHECKED)}, or call lm_env.check_agent with your own"
        )
    return partial(CHECKED[name], progress=progress)
