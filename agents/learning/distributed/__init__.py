"""What agents divide among several processes besides what `lm_env.distributed` does: weights, and random numbers."""

from __future__ import annotations

from agents.learning.distributed.sampling import sampling_of_share
from agents.learning.distributed.sharding import ShardedCopy, as_shards, whole

__all__ = ["ShardedCopy", "as_shards", "sampling_of_share", "whole"]
