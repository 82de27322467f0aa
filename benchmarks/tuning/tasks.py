"""Two tasks for tuning beside those of the package: a word that is to occur, and the reward model of a demo."""

from __future__ import annotations

from pathlib import Path

from lm_env.errors import ConfigurationError
from lm_env.models.loading import EMBEDDED_MODEL
from lm_env.tasks import TextTask
from lm_env.tasks.sentiment import openings
from reward_models import Keyword

__all__ = ["judged", "keyword"]

WORDS = ("acting", "actor", "actors", "actress", "cast", "director", "music", "song")


def keyword() -> TextTask:
    """1 for a continuation of a film review that mentions the actors, the director or the music, else 0."""
    return TextTask(
        id="tuning/Keyword-v0",
        summary="mention who made the film",
        source=openings,
        reward=Keyword(WORDS),
        model=EMBEDDED_MODEL,
        beta=0.1,
        max_new_tokens=32,
        temperature=0.7,
        budget=30_000,
        success=1.0,
        highest=1.0,
    )


def judged(reward_model: str) -> TextTask:
    """The demo's second half: continue a review so that a reward model trained on comparisons likes it.

    Args:
        reward_model: the folder `reward_model` in what `lm-env demo --out` has written.

    Raises:
        ConfigurationError: there is no such folder.
    """
    if not Path(reward_model).is_dir():
        raise ConfigurationError(f"there is no folder {reward_model}: make it with lm-env demo --out runs/demo")
    return TextTask(
        id="tuning/Judged-v0",
        summary="continue a review as a trained reward model likes it",
        source=openings,
        reward=reward_model,
        model=EMBEDDED_MODEL,
        beta=0.25,
        max_new_tokens=32,
        temperature=0.7,
        budget=30_000,
    )
