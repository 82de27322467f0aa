"""What an agent is, in a line for people and as JSON for logs."""

from __future__ import annotations

import platform
import shlex
import sys
from dataclasses import asdict, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from agents.learning.critic import describe_critic
from lm_env.objective.description import describe_task, id_of, task_in_words
from lm_env.objective.fingerprint import task_fingerprint

__all__ = ["agent_in_words", "run_identity", "run_settings"]

LONGEST_COMMAND = 2000
"""Characters of a command line that are kept."""


def agent_in_words(agent: Any) -> str:
    """Class, environment, the options that are not the defaults, and how far the training has come."""
    inner = getattr(agent.env, "unwrapped", agent.env)
    parts = [f"{id_of(inner) or type(inner).__name__}: {task_in_words(agent.task)}"]
    config = agent.config
    parts += [f"{f.name}={v!r}" for f in fields(config) if (v := getattr(config, f.name)) != f.default]
    if (timesteps := getattr(agent, "num_timesteps", None)) is not None:
        parts.append(f"{timesteps:,} tokens generated for training")
    return f"{type(agent).__name__}({', '.join(parts)})"


def run_settings(agent: Any) -> dict[str, Any]:
    """What a training was started with, as JSON: `run.json` of a log folder, and what trackers show as the config.

    Returns:
        `agent`, `env`, `critic`, `config` (every option), `task` (see `describe_task`), `seed`, `timesteps` (tokens
        generated before), `command`, `started` (UTC, ISO 8601) and `versions`.
    """
    inner = getattr(agent.env, "unwrapped", agent.env)
    critic = describe_critic(agent.policy)
    return {
        "agent": type(agent).__name__,
        "env": id_of(inner) or type(inner).__name__,
        "critic": critic if isinstance(critic, str) else "reward model" if "trunk" in critic else "score",
        "config": asdict(agent.config),
        "task": describe_task(agent.task),
        "seed": agent.config.seed,
        "timesteps": agent.num_timesteps,
        "command": shlex.join(sys.orig_argv)[:LONGEST_COMMAND],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "lm-env": _version("lm-env"),
            "torch": torch.__version__,
            "transformers": _version("transformers"),
            "python": platform.python_version(),
        },
    }


def run_identity(agent: Any) -> dict[str, Any]:
    """What must be the same in all processes that train one model: class, options and task, as JSON.

    The weights are not part of it: all processes take those of the first one.
    """
    fingerprint = {name: value for name, value in task_fingerprint(agent.task).items() if name != "reference"}
    return {
        "agent": type(agent).__name__,
        "config": asdict(agent.config),
        "task": fingerprint,
        "beta": agent.task.kl.beta,
        "timesteps": agent.num_timesteps,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"
