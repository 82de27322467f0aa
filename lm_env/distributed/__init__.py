"""Several processes that train one model: `torchrun --nproc_per_node 4 my_training.py`, and nothing else changes.

`processes()` returns what the parts of a training need to exchange data with the other processes; in a run of one
process its methods divide and send nothing.  docs/distributed.md describes what is divided.
"""

from __future__ import annotations

from lm_env.distributed.joining import processes, processes_for, require_one_process
from lm_env.distributed.processes import Processes

__all__ = ["Processes", "processes", "processes_for", "require_one_process"]
