"""The tasks that come with the package, one file each, and the functions that register and find tasks by name."""

from __future__ import annotations

from lm_env.tasks.base import SPLITS, Split, TextTask, split_rows
from lm_env.tasks.base.checks import check_task, task_problems
from lm_env.tasks.base.registry import (
    get_task,
    is_text_task,
    make_env,
    make_named,
    make_vec_env,
    register_task,
    task_names,
    task_parameters,
)

__all__ = [
    "SPLITS",
    "Split",
    "TextTask",
    "check_task",
    "get_task",
    "is_text_task",
    "make_env",
    "make_named",
    "make_vec_env",
    "register",
    "register_task",
    "split_rows",
    "task_names",
    "task_parameters",
    "task_problems",
]

MODULES = {
    "lm_env/TokenMDP-v0": "token_mdp",
    "lm_env/RandomWalks-v0": "random_walks",
    "lm_env/Sentiment-v0": "sentiment",
    "lm_env/Descriptiveness-v0": "descriptiveness",
    "lm_env/Concepts-v0": "concepts",
    "lm_env/Rhyme-v0": "rhyme",
    "lm_env/Haiku-v0": "haiku",
    "lm_env/Arithmetic-v0": "arithmetic",
    "lm_env/ReasoningGym-v0": "reasoning_gym",
    "lm_env/GSM8K-v0": "gsm8k",
    "lm_env/Dialogue-v0": "dialogue",
    "lm_env/Summarize-v0": "summarize",
    "lm_env/StackExchange-v0": "stack_exchange",
}
"""Registered id -> the file of the task."""


def register() -> None:
    """Register the package's own tasks with Gymnasium."""
    for name, module in MODULES.items():
        register_task(name, f"lm_env.tasks.{module}:task")
