"""Which processes take part in this run, from the environment variables that torchrun and `accelerate launch` set."""

from __future__ import annotations

import atexit
import os
from functools import cache

import torch
import torch.distributed as dist

from lm_env.distributed.group import TIMEOUT, ProcessGroup
from lm_env.distributed.processes import Processes
from lm_env.errors import ConfigurationError

__all__ = ["processes", "processes_for", "require_one_process"]

LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""The variables by which torchrun and `accelerate launch` tell a process its rank and how to reach the others."""

_ALONE = Processes()
"""A run of this process alone."""


def processes() -> Processes:
    """The processes that share this run.

    A process that torchrun or `accelerate launch` has started joins the others at the first call, with gloo for tensors
    on the CPU and NCCL for tensors on CUDA devices.  If the program has initialized `torch.distributed` by itself, its
    default group is used.  Every other process is a run of its own.

    Raises:
        ConfigurationError: the other processes could not be reached.
    """
    if not dist.is_available():
        return _ALONE
    if not dist.is_initialized():
        if not all(name in os.environ for name in LAUNCHER_VARIABLES):
            return _ALONE
        _join()
    return _group()


def processes_for(things: int, divided: bool = True) -> Processes:
    """The processes among which some work is divided: all of the run, or each one alone.

    Args:
        things: how many there are to be divided, such as texts to be sampled.  If there are fewer than processes, every
            process does all of the work by itself.
        divided: False: every process does so in any case.
    """
    together = processes() if divided else _ALONE
    return together if things >= together.count else _ALONE


def require_one_process(what: str) -> None:
    """Refuse a run of several processes.

    Args:
        what: the beginning of the message, such as "stable-baselines3's agents train".

    Raises:
        ConfigurationError: this run has several processes.
    """
    together = processes()
    if together.count > 1:
        raise ConfigurationError(
            f"{what} in one process, and there are {together.count}: start it without torchrun; `lm-env train`"
            " with an agent of this package, such as agents.PPO, `lm-env sft`, `dpo` and `rm train` divide their work"
        )


def _join() -> None:
    """Initialize torch.distributed from the launcher's variables, and end it when the program ends."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise ConfigurationError(
            f"this process was started as number {os.environ['RANK']} of {os.environ['WORLD_SIZE']}, and cannot reach"
            f" the others at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({error}): start"
            " all of them by one torchrun command, or unset RANK and WORLD_SIZE to train in one process"
        ) from error
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@cache
def _group() -> ProcessGroup:
    """The one `ProcessGroup` of this process."""
    return ProcessGroup()
