"""stable-baselines3's and sb3-contrib's agents by name, set up for a language model.

Only what a language model needs is changed: gamma is 1, the rollouts are short because there are many slots, and
A2C takes Adam.  All else is the library's own default.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import LinearSchedule

from agents.base.text_agent import task_of
from agents.sb3.buffer import EpisodeRolloutBuffer
from agents.sb3.policy import CausalLMPolicy
from agents.sb3.vec_env import TextVecEnv
from lm_env.distributed import require_one_process
from lm_env.errors import ConfigurationError, MissingDependencyError

__all__ = ["SB3_AGENTS", "SB3Agent", "TextMetrics", "make_sb3_agent"]


@dataclass(frozen=True)
class SB3Agent:
    """Where an algorithm's class is, and what a language model needs in place of its defaults."""

    library: str
    algorithm: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Any:
        """The class.

        Raises:
            MissingDependencyError: sb3-contrib is not installed.
        """
        try:
            return getattr(import_module(self.library), self.algorithm)
        except ImportError as error:
            raise MissingDependencyError(
                f"{self.algorithm} needs sb3-contrib: pip install 'lm-env[contrib]'"
            ) from error

    def defaults(self) -> dict[str, Any]:
        """The arguments of the class with the values that hold here where nothing is given."""
        parameters = inspect.signature(self.load().__init__).parameters
        plain = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
        return {**plain, "gamma": 1.0, **self.options}


SB3_AGENTS: dict[str, SB3Agent] = {
    "maskable-ppo": SB3Agent(
        "sb3_contrib", "MaskablePPO", {"n_steps": 128, "batch_size": 1024, "n_epochs": 2, "learning_rate": 2e-4}
    ),
    "sb3-a2c": SB3Agent("stable_baselines3", "A2C", {"n_steps": 64, "learning_rate": 1e-4, "use_rms_prop": False}),
    "sb3-ppo": SB3Agent(
        "stable_baselines3", "PPO", {"n_steps": 128, "batch_size": 1024, "n_epochs": 2, "learning_rate": 2e-4}
    ),
    # It takes a rollout whole, twice differentiated.
    "trpo": SB3Agent(
        "sb3_contrib", "TRPO", {"n_steps": 16, "batch_size": 512, "cg_max_steps": 4, "n_critic_updates": 2}
    ),
}
"""The agents by name."""


def make_sb3_agent(
    name: str,
    env: Any,
    *,
    num_envs: int = 32,
    lr_schedule: str = "constant",
    critic: str = "shared",
    logger: Logger | None = None,
    **options: Any,
) -> Any:
    """An agent on the task of a text environment, whose model it trains in place.

    Args:
        name: a key of `SB3_AGENTS`.
        env: a text environment, wrapped or not, or a registered id.
        num_envs: slots, each with a text of its own.
        lr_schedule: "constant", or "linear": the learning rate falls to 0 at the end of the training.
        critic: see `CausalLMPolicy`.
        logger: where it logs; default: as stable-baselines3 does by itself.
        options: arguments of the class, in place of `SB3Agent.defaults`.

    Raises:
        ConfigurationError: TRPO on a model of which a part is frozen; or this is one of several processes.
        MissingDependencyError: sb3-contrib is not installed.
    """
    require_one_process("stable-baselines3's agents train")
    known = SB3_AGENTS[name]
    algorithm = known.load()
    vec = TextVecEnv.from_env(env, num_envs=num_envs)
    policy: Any = CausalLMPolicy
    buffer: Any = EpisodeRolloutBuffer
    if name == "maskable-ppo":
        masked = import_module("agents.sb3.masked")
        policy, buffer = masked.MaskableCausalLMPolicy, masked.MaskableEpisodeRolloutBuffer
    if name == "trpo":
        _prepare_for_trpo(task_of(env) if not isinstance(env, str) else vec.task)
    arguments = {"gamma": 1.0, **known.options, **options}
    if lr_schedule == "linear":
        rate = arguments.get("learning_rate", known.defaults()["learning_rate"])
        arguments["learning_rate"] = LinearSchedule(rate, 0.0, 1.0)
    agent = algorithm(policy, vec, rollout_buffer_class=buffer, policy_kwargs={"critic": critic}, **arguments)
    if logger is not None:
        agent.set_logger(logger)
    return agent


class TextMetrics(BaseCallback):
    """Logs what the batched agents log of a rollout: the mean score, reward, KL, length and beta of its episodes.

    Episodes count where they end.  A rollout in which none ended logs nothing.
    """

    def _on_training_start(self) -> None:
        self._kl = np.zeros(self.training_env.num_envs)
        self._reward = np.zeros(self.training_env.num_envs)
        self._length = np.zeros(self.training_env.num_envs)
        self._rows: list[tuple[float, ...]] = []

    def _on_step(self) -> bool:
        infos = self.locals["infos"]
        self._kl += [info["kl"] for info in infos]
        self._reward += self.locals["rewards"]
        self._length += 1
        for slot in np.flatnonzero(self.locals["dones"]):
            self._rows.append((infos[slot]["score"], self._reward[slot], self._kl[slot], self._length[slot]))
            for sums in (self._kl, self._reward, self._length):
                sums[slot] = 0
        return True

    def _on_rollout_end(self) -> None:
        if not self._rows:
            return
        means = np.mean(self._rows, axis=0)
        for name, value in zip(("score", "reward", "kl", "length"), means, strict=True):
            self.logger.record(f"rollout/{name}", float(value))
        self.logger.record("rollout/beta", float(self.training_env.unwrapped.task.kl.beta))  # type: ignore[attr-defined]
        self._rows = []


def _prepare_for_trpo(task: Any) -> None:
    """TRPO differentiates twice, which the fused attention kernels do not support, and takes no frozen weights."""
    if task.adapter is not None or not all(p.requires_grad for p in task.model.parameters()):
        raise ConfigurationError(
            "trpo trains all weights of a model, and some of this one's are frozen: leave lora out, or take another"
            " agent"
        )
    if hasattr(task.model, "set_attn_implementation"):
        task.model.set_attn_implementation("eager")
