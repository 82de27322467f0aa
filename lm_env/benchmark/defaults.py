"""The tasks and agents of a benchmark that names none: those that need no file, and whose libraries are installed."""

from __future__ import annotations

from importlib.util import find_spec

from lm_env.benchmark.entrants import EXAMPLES, entrant
from lm_env.benchmark.settings import AgentSpec
from lm_env.errors import LMEnvError, MissingDependencyError
from lm_env.tasks import get_task, task_names

__all__ = ["installed_agents", "installed_tasks", "quick_agents", "quick_tasks"]

AGENTS = (
    "a2c",
    "dpo",
    "grpo",
    "online-dpo",
    "ppo",
    "ppo-penalty",
    "reinforce",
    "reinforce-value",
    "rloo",
    "sb3-a2c",
    "sb3-ppo",
    "sft",
    "tianshou-ppo",
    "torchrl-ppo",
)
"""The agents that train on any task, except TRPO, which is about a hundred times slower.  It has to be named, as have
TRL's trainers, which need a task with a tokenizer of transformers."""


def installed_tasks() -> list[str]:
    """The registered tasks that have test prompts without any option, file or download."""
    return [name for name in task_names() if _needs_no_file(name)]


def installed_agents() -> list[str]:
    """The names in `AGENTS` whose libraries are installed."""
    return [name for name in AGENTS if _is_installed(name)]


def quick_tasks() -> list[str]:
    """Two tasks of which something is learned within 8,000 tokens."""
    return ["lm_env/Arithmetic-v0", "lm_env/Sentiment-v0"]


def quick_agents() -> list[str]:
    """Four agents, of two libraries."""
    return ["ppo", "rloo", "grpo", "sb3-ppo"]


def _needs_no_file(name: str) -> bool:
    try:
        return bool(get_task(name).prompts("test"))
    except LMEnvError:
        return False


def _is_installed(name: str) -> bool:
    if name in EXAMPLES and find_spec(EXAMPLES[name].library) is None:
        return False
    try:
        entrant(AgentSpec.of(name))
    except MissingDependencyError:
        return False
    return True
