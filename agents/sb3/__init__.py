"""stable-baselines3 and sb3-contrib, unmodified, train the language model.

from stable_baselines3 import PPO
from agents.sb3 import CausalLMPolicy, EpisodeRolloutBuffer, TextVecEnv

env = TextVecEnv.from_env("lm_env/Sentiment-v0", num_envs=32)
agent = PPO(CausalLMPolicy, env, n_steps=64, gamma=1.0, rollout_buffer_class=EpisodeRolloutBuffer)
agent.learn(100_000)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from agents.sb3.buffer import EpisodeRolloutBuffer
from agents.sb3.files import load, save
from agents.sb3.policy import CausalLMPolicy
from agents.sb3.vec_env import TextVecEnv

if TYPE_CHECKING:
    from agents.sb3.masked import MaskableCausalLMPolicy, MaskableEpisodeRolloutBuffer

__all__ = [
    "CausalLMPolicy",
    "EpisodeRolloutBuffer",
    "MaskableCausalLMPolicy",
    "MaskableEpisodeRolloutBuffer",
    "TextVecEnv",
    "load",
    "save",
]


def __getattr__(name: str) -> Any:
    """Import on demand what needs sb3-contrib."""
    if name in ("MaskableCausalLMPolicy", "MaskableEpisodeRolloutBuffer"):
        return getattr(import_module("agents.sb3.masked"), name)
    raise AttributeError(f"module 'agents.sb3' has no attribute {name!r}")
