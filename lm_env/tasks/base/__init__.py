"""What a task is, and what tasks are made of: the object, splits of prompts, words and their pronunciations."""

from __future__ import annotations

from lm_env.tasks.base.splits import SPLITS, Split, split_rows
from lm_env.tasks.base.text_task import TextTask

__all__ = ["SPLITS", "Split", "TextTask", "split_rows"]
