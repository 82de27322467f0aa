"""Gymnasium's two interfaces, and rendering, over one batched core; states to save, restore and fork."""

from __future__ import annotations

from lm_env.envs.env import TextGenerationEnv
from lm_env.envs.mdp import StepResult, TextMDP
from lm_env.envs.render import render_episode, tokens_from_ids
from lm_env.envs.state import SlotState
from lm_env.envs.vector_env import TextGenerationVectorEnv

__all__ = [
    "SlotState",
    "StepResult",
    "TextGenerationEnv",
    "TextGenerationVectorEnv",
    "TextMDP",
    "render_episode",
    "tokens_from_ids",
]
