"""The weights of the update, divided among several processes; `lm_env.distributed` has what they exchange."""

from __future__ import annotations

from agents.learning.distributed.sharding import ShardedCopy, as_shards, whole

__all__ = ["ShardedCopy", "as_shards", "whole"]
