"""lm_env/Sentiment-v0: go on with the opening of a film review, and be paid for a good mood.

The prompts are openings that the embedded model wrote (`examples/write_openings.py`), none of which the
lexicon finds good or bad.  The score is a human-rated sentiment lexicon's, -1 to 1; the default model is
the embedded one.  The per-token KL keeps the text English; the temperature is that of Ziegler et al. 2019
(arXiv:1909.08593), in policy and reference alike.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any, Literal

from lm_env.envs.env import TextGenerationEnv
from lm_env.envs.vector_env import TextGenerationVectorEnv
from lm_env.models.loading import EMBEDDED_MODEL
from lm_env.validation import check_choice

__all__ = ["Split", "defaults", "make", "make_vec", "openings"]

Split = Literal["train", "test"]


def openings(split: Split = "train") -> list[str]:
    """The prompts of the task: 468 openings to train on, or the 234 others that are held out for evaluation.

    All are different, and no opening begins like another in its first four words, within or across the splits.

    Raises:
        ConfigurationError: there is no such split.
    """
    check_choice("split", split, ("train", "test"))
    path = files("lm_env") / "assets" / f"openings_{split}.txt"
    return path.read_text(encoding="utf-8").splitlines()


def defaults(split: Split = "train", **options: Any) -> dict[str, Any]:
    """The options of the task, with the caller's in front.

    Args:
        split: which openings are the prompts, where `options` names no others.
        options: any of `lm_env.Task`'s.
    """
    return {
        "model": EMBEDDED_MODEL,
        "prompts": openings(split),
        "reward": "reward_models:LexiconSentiment",
        "beta": 0.1,
        "max_new_tokens": 32,
        "temperature": 0.7,
        **options,
    }


def make(split: Split = "train", **options: Any) -> TextGenerationEnv:
    """One slot; what `gymnasium.make` calls."""
    return TextGenerationEnv(**defaults(split, **options))


def make_vec(num_envs: int = 1, split: Split = "train", **options: Any) -> TextGenerationVectorEnv:
    """n slots; what `gymnasium.make_vec` calls."""
    return TextGenerationVectorEnv(num_envs, **defaults(split, **options))
