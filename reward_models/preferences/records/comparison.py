"""Preference data: two responses to a prompt, one of them preferred by a person or by a judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_env.errors import ConfigurationError
from lm_env.objective.rewards import RewardFunction, score_responses

__all__ = ["Comparison", "label_comparisons"]


@dataclass(frozen=True)
class Comparison:
    """Two responses to a prompt, one of them preferred.

    The ids, where given, are what the model reads instead of the text: the tokens as they were
    sampled, the EOS included where there was one.
    """

    prompt: str
    chosen: str
    rejected: str
    prompt_ids: Sequence[int] | None = None
    chosen_ids: Sequence[int] | None = None
    rejected_ids: Sequence[int] | None = None


def label_comparisons(
    prompts: Sequence[str],
    responses_a: Sequence[str],
    responses_b: Sequence[str],
    judge: RewardFunction,
    *,
    prompt_ids: Sequence[Sequence[int]] | None = None,
    response_ids_a: Sequence[Sequence[int]] | None = None,
    response_ids_b: Sequence[Sequence[int]] | None = None,
    **columns: Sequence[Any],
) -> list[Comparison]:
    """Let a judge prefer one of two responses to each prompt; where it scores both alike, none is kept.

    Args:
        judge: any reward function, standing in for a person.
        prompt_ids, response_ids_a, response_ids_b: the sampled tokens, kept in the comparisons and
            shown to the judge.
        columns: extra columns of the prompts, for the judge.

    Raises:
        ConfigurationError: lists of different lengths.
        RewardError, RewardValueError: the judge failed.
    """
    lists: dict[str, Sequence[Any] | None] = {
        "responses_a": responses_a,
        "responses_b": responses_b,
        "prompt_ids": prompt_ids,
        "response_ids_a": response_ids_a,
        "response_ids_b": response_ids_b,
        **columns,
    }
    for name, values in lists.items():
        if values is not None and len(values) != len(prompts):
            raise ConfigurationError(f"{len(values)} {name} for {len(prompts)} prompts: give one each")

    def scores(responses: Sequence[str], response_ids: Sequence[Sequence[int]] | None) -> np.ndarray:
        ids = {"prompt_ids": prompt_ids, "response_ids": response_ids}
        return score_responses(judge, prompts, responses, columns | {k: v for k, v in ids.items() if v is not None})

    margins = scores(responses_a, response_ids_a) - scores(responses_b, response_ids_b)
    a, b = (responses_a, response_ids_a), (responses_b, response_ids_b)
    comparisons = []
    for i in np.flatnonzero(margins).tolist():
        (chosen, chosen_ids), (rejected, rejected_ids) = (a, b) if margins[i] > 0 else (b, a)
        comparisons.append(
            Comparison(
                prompts[i],
                chosen[i],
                rejected[i],
                prompt_ids[i] if prompt_ids is not None else None,
                chosen_ids[i] if chosen_ids is not None else None,
                rejected_ids[i] if rejected_ids is not None else None,
            )
        )
    return comparisons
