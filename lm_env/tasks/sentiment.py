"""lm_env/Sentiment-v0: continue the opening of a film review with positive sentiment.

The prompts are openings that the embedded model wrote (`examples/write_openings.py`), none of which the
lexicon finds good or bad.  The score is a human-rated sentiment lexicon's, -1 to 1; the default model is
the embedded one.  The per-token KL keeps the text English; the temperature is that of Ziegler et al. 2019
(arXiv:1909.08593), in policy and reference alike.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from lm_env.envs.env import TextGenerationEnv
from lm_env.models.loading import EMBEDDED_MODEL
from lm_env.tasks.base import SPLITS, Split, TextTask
from lm_env.validation import check_choice

__all__ = ["Split", "defaults", "make", "openings", "task"]


def openings(split: Split = "train") -> list[str]:
    """The prompts of the task: 468 openings to train on, 48 for validation, or 234 that are held out for evaluation.

    All are different, and no opening begins like another in its first four words, within or across the splits.

    Raises:
        ConfigurationError: there is no such split.
    """
    check_choice("split", split, SPLITS)
    path = files("lm_env") / "assets" / f"openings_{split}.txt"
    return path.read_text(encoding="utf-8").splitlines()


def task() -> TextTask:
    """The task; it has no options of its own."""
    return TextTask(
        id="lm_env/Sentiment-v0",
        summary="continue the opening of a film review; the score is its sentiment",
        source=openings,
        reward="reward_models:LexiconSentiment",
        model=EMBEDDED_MODEL,
        beta=0.1,
        max_new_tokens=32,
        temperature=0.7,
        budget=240_000,
        highest=1.0,
    )


def defaults(split: Split = "train", **options: Any) -> dict[str, Any]:
    """The options of `lm_env.Task`: the task's own, replaced by the caller's where both name one."""
    return task().task_options(split, **options)


def make(split: Split = "train", **options: Any) -> TextGenerationEnv:
    """The environment that `gymnasium.make("lm_env/Sentiment-v0", ...)` returns."""
    return task().make(split, **options)
