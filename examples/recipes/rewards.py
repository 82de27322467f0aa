"""A reward of trlX's recipes, which is fetched from the hub: `--reward examples/recipes/rewards.py:imdb_positive`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from reward_models import SequenceClassifierReward


@cache
def _classifier() -> SequenceClassifierReward:
    return SequenceClassifierReward("lvwerra/distilbert-imdb", label="POSITIVE", output="probability", download=True)


def imdb_positive(prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> Any:
    """The probability of POSITIVE that a classifier of IMDB's reviews gives to prompt and response together, 0 to 1.

    Naming this reward fetches the classifier, where it is not in the local cache.
    """
    return _classifier()(list(prompts), list(responses))
