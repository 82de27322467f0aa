"""Observation and action spaces of the token environments, and the flat variant of an observation."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from lm_env.objective.task import Task

__all__ = ["action_space", "flatten", "observation_space"]


def observation_space(task: Task, flat: bool) -> spaces.Space:
    """The text so far.

    Returns:
        `Dict(input_ids: Box int64 (L,), length: Box int64 (1,))`, L = max_prompt_tokens +
        max_new_tokens; ids beyond `length` are padding.  Flat: one `Box` int64 (1 + L,), the length
        first.
    """
    ids = np.full(task.max_length, task.vocab_size - 1, dtype=np.int64)
    if flat:
        high = np.concatenate([[task.max_length], ids])
        return spaces.Box(np.zeros_like(high), high, dtype=np.int64)
    return spaces.Dict(
        input_ids=spaces.Box(np.zeros_like(ids), ids, dtype=np.int64),
        length=spaces.Box(1, task.max_length, (1,), dtype=np.int64),
    )


def action_space(task: Task) -> spaces.Discrete:
    """`Discrete(V)`, V the width of the model's logits (which may exceed the tokenizer's length)."""
    return spaces.Discrete(task.vocab_size)


def flatten(observation: dict[str, np.ndarray]) -> np.ndarray:
    """`input_ids (..., L)` and `length (..., 1)` -> (..., 1 + L)."""
    return np.concatenate([observation["length"], observation["input_ids"]], axis=-1)
