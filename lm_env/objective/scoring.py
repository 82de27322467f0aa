"""What finished texts are worth: the scores that are paid, and the per-token rewards of whole episodes.

The stepwise environment and the episode-wise way both pay what `paid_scores` says, and both compose
their rewards with `compose_rewards`, so that the same tokens get the same rewards either way.

Shapes: B episodes, T response tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from lm_env.data.episodes import Episodes, ScoredEpisodes
from lm_env.data.prompts import Prompt
from lm_env.models.inputs import length_batches
from lm_env.models.inspection import evaluating
from lm_env.models.logprobs import response_logprobs, response_outputs, token_logprobs
from lm_env.objective.kl import full_kl, k1, k2, k3
from lm_env.objective.rewards import compose_rewards, final_scores, score_responses
from lm_env.objective.task import Task

__all__ = ["measure_kl", "paid_scores", "raw_scores", "score_episodes"]

LOGITS_AT_ONCE = 2**24


def raw_scores(
    reward: Callable[..., Any], task: Task, prompts: Sequence[Prompt], responses: Sequence[Sequence[int]]
) -> np.ndarray:
    """What a reward function gives to responses of a task, float64 (B,).

    Args:
        reward: any reward function; the task's own, or another one that judges the same texts.
        responses: the token ids of each response, its EOS included.

    Raises:
        RewardError, RewardValueError: see `score_responses`.
    """
    columns: dict[str, list[Any]] = {
        name: [prompt.columns.get(name) for prompt in prompts] for name in task.prompts.columns
    }
    columns["prompt_ids"] = [prompt.ids.tolist() for prompt in prompts]
    columns["response_ids"] = [list(response) for response in responses]
    texts = [task.text_of(response) for response in responses]
    return score_responses(reward, [prompt.text for prompt in prompts], texts, columns)


def paid_scores(
    task: Task, prompts: Sequence[Prompt], responses: Sequence[Sequence[int]], ended: np.ndarray
) -> np.ndarray:
    """The scores that are paid, float64 (B,): the reward function's, unless a missing EOS replaces it.

    Args:
        ended: bool (B,), whether an EOS or a stop string ended the text.

    Raises:
        RewardError, RewardValueError: see `score_responses`.
    """
    return final_scores(raw_scores(task.reward, task, prompts, responses), ended, task.missing_eos_score)


def score_episodes(task: Task, episodes: Episodes) -> ScoredEpisodes:
    """Per-token rewards of whole episodes, equal to those of stepping through them.

    The policy's logprobs are `episodes.logprobs` where given, else the task's model gives them.  The
    reference and the model run once over each sequence, batched by length.

    Raises:
        RewardError, RewardValueError: see `score_responses`.
    """
    mask = episodes.response_mask()
    responses = episodes.responses()
    ended, _ = task.ends(episodes.input_ids, episodes.prompt_lengths, episodes.lengths)
    with task.as_reference():
        ref_logprobs = response_logprobs(task.reference, episodes, task.temperature).astype(np.float64)
    given = episodes.logprobs
    if given is None:
        given = response_logprobs(task.model, episodes, task.temperature, task.allowed_in(episodes))
    logprobs = np.where(mask, given, 0.0).astype(np.float64)
    paid = ended if task.cap_truncates else np.ones_like(ended)
    scores = np.where(paid, paid_scores(task, episodes.prompts, responses, ended), 0.0)
    last = (np.cumsum(mask, 1) == episodes.response_lengths[:, None]) & mask & paid[:, None]
    rewards = compose_rewards(scores[:, None], logprobs, ref_logprobs, last, task.kl.beta)
    return ScoredEpisodes(np.where(mask, rewards, 0.0), scores, logprobs, ref_logprobs, ended)


def measure_kl(task: Task, episodes: Episodes) -> dict[str, float]:
    """Mean KL per episode between model and reference, nats: `k1`, `k2`, `k3`, and the exact sum `full`.

    `full` sums the KL of the next-token distributions over the vocabulary at each response position; its
    expectation over the model's own samples is the KL of the text distributions.
    """
    totals = dict.fromkeys(("k1", "k2", "k3", "full"), 0.0)
    with torch.no_grad(), evaluating(task.model), evaluating(task.reference):
        for rows in length_batches(episodes.lengths, max(1, LOGITS_AT_ONCE // task.vocab_size)):
            outputs, tokens = response_outputs(task.model, episodes[rows])
            with task.as_reference():
                ref_logits = response_outputs(task.reference, episodes[rows])[0].logits.to(outputs.logits.device)
            logprobs = token_logprobs(outputs.logits, tokens, task.temperature)
            ref_logprobs = token_logprobs(ref_logits, tokens, task.temperature)
            for name, estimator in (("k1", k1), ("k2", k2), ("k3", k3)):
                totals[name] += float(estimator(logprobs, ref_logprobs).sum())
            totals["full"] += float(full_kl(outputs.logits, ref_logits, task.temperature).sum())
    return {name: value / len(episodes) for name, value in totals.items()}
