"""lm_env/Sentiment-v0: go on with the opening of a film review, and be paid for a good mood.

Prompts are openings of held-out reviews; the score is a human-rated sentiment lexicon's, -1 to 1;
the default model is the embedded one.  The per-token KL keeps the text English; the temperature is
that of Ziegler et al. 2019 (arXiv:1909.08593), in policy and reference alike.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from lm_env.envs.env import TextGenerationEnv
from lm_env.envs.vector_env import TextGenerationVectorEnv
from lm_env.models.loading import EMBEDDED_MODEL

__all__ = ["defaults", "make", "make_vec"]


def defaults(**options: Any) -> dict[str, Any]:
    """The options of the task, with the caller's in front: any of `lm_env.Task`'s."""
    return {
        "model": EMBEDDED_MODEL,
        "prompts": str(files("lm_env") / "assets" / "review_openings.txt"),
        "reward": "reward_models:LexiconSentiment",
        "beta": 0.1,
        "max_new_tokens": 32,
        "temperature": 0.7,
        **options,
    }


def make(**options: Any) -> TextGenerationEnv:
    """One slot; what `gymnasium.make` calls."""
    return TextGenerationEnv(**defaults(**options))


def make_vec(num_envs: int = 1, **options: Any) -> TextGenerationVectorEnv:
    """n slots; what `gymnasium.make_vec` calls."""
    return TextGenerationVectorEnv(num_envs, **defaults(**options))
