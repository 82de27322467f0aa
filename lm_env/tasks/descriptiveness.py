"""lm_env/Descriptiveness-v0: continue the opening of a film review descriptively.

Ziegler et al. 2019 (arXiv:1909.08593) trained a model to continue texts in a physically descriptive way, as people
judged it.  Here a rule on word classes stands in for the people: the share of the words that are distinct adjectives
(of the package lemminflect, `lm_env.tasks.base.lexicon.is_adjective`).  A quarter to two fifths of them is best; a
bare list of adjectives is no description and scores 0.  The prompts are those of `lm_env/Sentiment-v0`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lm_env.models.loading import EMBEDDED_MODEL
from lm_env.tasks.base import TextTask
from lm_env.tasks.base.lexicon import distinct_share, is_adjective, words_of
from lm_env.tasks.sentiment import openings

__all__ = ["descriptiveness", "share_of_adjectives", "task"]

BEST_FROM, BEST_TO, TOO_MANY = 0.25, 0.4, 0.7
"""Shares of adjectives: the score rises from 0 to 1 at the first, stays to the second, and falls to 0 at the third."""
ENOUGH_WORDS = 8


def share_of_adjectives(prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """The distinct adjectives that the prompt has not used, over all words, 0 to 1."""
    found = []
    for prompt, response in zip(prompts, responses, strict=True):
        words = words_of(response)
        new = {word for word in words if is_adjective(word)} - set(words_of(prompt))
        found.append(len(new) / len(words) if words else 0.0)
    return found


def descriptiveness(prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """The reward, 0 to 1; a text of fewer than 8 words, or with repeated words, scores less in proportion."""
    scores = []
    for share, response in zip(share_of_adjectives(prompts, responses), responses, strict=True):
        words = words_of(response)
        tent = np.interp(share, (0.0, BEST_FROM, BEST_TO, TOO_MANY), (0.0, 1.0, 1.0, 0.0))
        scores.append(float(tent) * min(len(words) / ENOUGH_WORDS, 1.0) * distinct_share(words))
    return scores


def task() -> TextTask:
    """The task; it has no options of its own."""
    return TextTask(
        id="lm_env/Descriptiveness-v0",
        summary="continue the opening of a film review; the score is its share of distinct adjectives",
        source=openings,
        reward=descriptiveness,
        model=EMBEDDED_MODEL,
        metrics={"share_of_adjectives": share_of_adjectives},
        beta=0.1,
        max_new_tokens=24,
        temperature=0.7,
        budget=60_000,
        highest=1.0,
    )
