"""The tasks that come with the package, one file each, and how a task of one's own is registered beside them."""

from __future__ import annotations

from lm_env.tasks.base import SPLITS, Split, TextTask, split_rows
from lm_env.tasks.registry import get_task, make_env, make_vec_env, register_task, task_names, task_parameters

__all__ = [
    "SPLITS",
    "Split",
    "TextTask",
    "get_task",
    "make_env",
    "make_vec_env",
    "register",
    "register_task",
    "split_rows",
    "task_names",
    "task_parameters",
]

MODULES = {
    "lm_env/TokenMDP-v0": "token_mdp",
    "lm_env/Sentiment-v0": "sentiment",
}
"""Registered id -> the file of the task."""


def register() -> None:
    """Register the package's own tasks with Gymnasium."""
    for name, module in MODULES.items():
        register_task(name, f"lm_env.tasks.{module}:task")
