"""Batched agents that train a causal LM on the environments of `lm_env`."""

from __future__ import annotations

from agents.ppo import PPO, PPOConfig

__all__ = ["PPO", "PPOConfig"]
