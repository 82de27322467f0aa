"""Rewards over HTTP: a server for any reward of the package, and a reward function that asks one."""

from __future__ import annotations

from reward_models.serving.address import TOKEN_VARIABLE
from reward_models.serving.breaker import CircuitBreaker
from reward_models.serving.identity import reward_fingerprint
from reward_models.serving.remote import RemoteReward
from reward_models.serving.schema import RewardInfo
from reward_models.serving.scorer import Limits
from reward_models.serving.server import RewardServer

__all__ = [
    "TOKEN_VARIABLE",
    "CircuitBreaker",
    "Limits",
    "RemoteReward",
    "RewardInfo",
    "RewardServer",
    "reward_fingerprint",
]
