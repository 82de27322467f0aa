"""Several processes that train one model: `torchrun --nproc_per_node 4 my_training.py`, and nothing else changes.

`processes()` returns what the parts of an update need to exchange data with the other processes; in a run of one
process its methods divide and send nothing.  docs/distributed.md describes what is divided.
"""

from __future__ import annotations

from agents.learning.distributed.joining import processes, require_one_process
from agents.learning.distributed.processes import Processes
from agents.learning.distributed.sharding import ShardedCopy, as_shards, whole

__all__ = ["Processes", "ShardedCopy", "as_shards", "processes", "require_one_process", "whole"]
