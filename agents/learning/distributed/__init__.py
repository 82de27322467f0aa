"""Several processes that train one model: `torchrun --nproc_per_node 4 my_training.py`, and nothing else changes.

The parts of an update ask `processes()` for what concerns other processes; in a run of one process the answer is that
there are none.  docs/distributed.md describes what is divided among them.
"""

from __future__ import annotations

from agents.learning.distributed.joining import processes, require_one_process
from agents.learning.distributed.processes import Processes
from agents.learning.distributed.sharding import ShardedCopy, as_shards, whole

__all__ = ["Processes", "ShardedCopy", "as_shards", "processes", "require_one_process", "whole"]
