"""Degenerate texts that no person would prefer, and how a reward model scores them against real responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_env.objective.degenerate_texts import BESIDE_A_RESPONSE, NO_TEXT
from lm_env.objective.rewards import score_responses
from reward_models.preferences.encoding import prompt_text, record_texts
from reward_models.preferences.records.preference import Preference

__all__ = ["Degenerate", "rank_degenerate"]


@dataclass(frozen=True)
class Degenerate:
    """How one kind of text is ranked.

    Attributes:
        name: of the kind.
        count: prompts on which it was tried.
        beats: the share of them in which it scores above the real response that it was made of.
        percentile: the mean over prompts of the share of the real responses, of up to four times as many texts, that
            score below it.
        example: the first of them.
    """

    name: str
    count: int
    beats: float
    percentile: float
    example: str


def rank_degenerate(
    reward: Callable[..., Any], records: Sequence[Preference], tokenizer: Any, *, limit: int = 200
) -> list[Degenerate]:
    """Make degenerate texts from the best responses of `limit` records, and compare their scores with real ones."""
    prompts, responses, columns = record_texts(records, tokenizer, limit=4 * limit)
    real = np.sort(score_responses(reward, prompts, responses, columns))
    chosen = list(records[:limit])
    shown = [prompt_text(record.prompt, tokenizer) for record in chosen]
    texts = [record.responses[record.ranking.index(0)] for record in chosen]
    own = score_responses(reward, shown, texts, _columns(chosen, columns))
    found = []
    for name, make in BESIDE_A_RESPONSE.items():
        made = [make(prompt, text) for prompt, text in zip(shown, texts, strict=True)]
        rows = [i for i, text in enumerate(made) if text is not None and text != texts[i]]
        if name == NO_TEXT:  # of an encoder without a prompt nothing is left but special tokens: scored all the same
            rows = [i for i in rows if shown[i] or getattr(tokenizer, "cls_token", None) or _has_eos(tokenizer)]
        if not rows:
            continue
        bad = [str(made[i]) for i in rows]
        given = _columns([chosen[i] for i in rows], columns)
        scores = score_responses(reward, [shown[i] for i in rows], bad, given)
        below = np.searchsorted(real, scores, side="left") / len(real)
        found.append(Degenerate(name, len(rows), float(np.mean(scores > own[rows])), float(below.mean()), bad[0]))
    return found


def _has_eos(tokenizer: Any) -> bool:
    return getattr(tokenizer, "eos_token", None) is not None


def _columns(records: Sequence[Preference], names: Any) -> dict[str, list[Any]]:
    return {name: [record.columns.get(name) for record in records] for name in names}
