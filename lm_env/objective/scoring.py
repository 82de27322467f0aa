"""What texts are paid: their scores token by token, and the per-token rewards of whole episodes.

The stepwise environment and the episode-wise way both pay what `paid_scores` says, and both compose
their rewards with `compose_rewards`, so that the same tokens get the same rewards either way.

Shapes: B texts, T response tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch

from lm_env.data.episodes import Episodes, ScoredEpisodes
from lm_env.data.pieces import piece_ends
from lm_env.data.prompts import Prompt
from lm_env.errors import ConfigurationError, NonFiniteError, RewardValueError
from lm_env.models.inputs import length_batches
from lm_env.models.inspection import evaluating
from lm_env.models.logprobs import response_logprobs, response_outputs, restrict, token_logprobs
from lm_env.objective.episode_checks import check_episodes
from lm_env.objective.kl import full_kl, k1, k2, k3
from lm_env.objective.rewards import (
    call_reward,
    compose_rewards,
    final_scores,
    is_causal,
    name_of,
    parts_of,
    score_responses,
)
from lm_env.objective.scores import short_repr
from lm_env.objective.task import Task

__all__ = [
    "PaidScores",
    "check_log_ratios",
    "episode_scores",
    "measure_episodes",
    "measure_kl",
    "paid_scores",
    "raw_scores",
    "reward_columns",
    "score_episodes",
    "step_scores",
]

LOGITS_AT_ONCE = 2**24
"""Largest number of logits (tokens x vocabulary) that `measure_episodes` holds at a time."""


@dataclass(frozen=True)
class PaidScores:
    """What B texts are paid for their content; the KL penalty is another matter."""

    tokens: np.ndarray
    """float64 (B, T): at each token; 0 in the padding."""
    totals: np.ndarray
    """float64 (B,): for each text."""
    parts: dict[str, np.ndarray]
    """Name -> float64 (B,): the scores that a sum of rewards is made of; NaN where a text was not scored."""
    failed: np.ndarray
    """bool (B,): texts whose score could not be had; see `SkippingReward`."""


def raw_scores(
    reward: Callable[..., Any],
    task: Task,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[int]],
    *,
    finished: bool = True,
) -> np.ndarray:
    """What a reward function gives to responses of a task, float64 (B,).

    Args:
        reward: any reward function; the task's own, or another one that scores the same texts.
        responses: the token ids of each response, its EOS included.
        finished: whether they are whole; the beginnings of texts that are still being written are not, and the reward
            function is told so.

    Raises:
        RewardError, RewardValueError: see `score_responses`.
    """
    texts = [task.text_of(response) for response in responses]
    columns: dict[str, Any] = reward_columns(task, prompts, responses)
    if not finished:
        columns["response_finished"] = [False] * len(responses)
    return score_responses(reward, [prompt.text for prompt in prompts], texts, columns)


def paid_scores(
    task: Task,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[int]],
    ended: np.ndarray,
    finished: np.ndarray | None = None,
    reward: Callable[..., Any] | None = None,
) -> PaidScores:
    """What is paid: the reward function's scores, unless a missing EOS replaces them.

    Args:
        responses: the token ids of each response, its EOS included; at least one.
        ended: bool (B,), whether an EOS or a stop string ended the text.
        finished: bool (B,), default all: the others are under way, or cut by a cap that truncates, and are
            paid for their tokens but not for their end.
        reward: the task's own reward function in another wrapping; default: as it is.

    Raises:
        RewardError, RewardValueError: see `score_responses`.
    """
    finished = np.ones(len(responses), dtype=bool) if finished is None else finished
    texts = [
        task.text_of(ids) if done else task.text_so_far(ids) for ids, done in zip(responses, finished, strict=True)
    ]
    columns = reward_columns(task, prompts, responses)
    reward = task.reward if reward is None else reward
    scores = call_reward(reward, [prompt.text for prompt in prompts], texts, columns, finished)
    parts = _parts(reward, finished)
    lengths = [len(ids) for ids in responses]
    tokens = scores.on_tokens(lengths, lambda row: piece_ends(texts[row], responses[row], task.text_so_far))
    last = np.arange(tokens.shape[1]) == np.array(lengths, dtype=np.int64)[:, None] - 1
    replaced = finished & ~ended
    tokens = final_scores(tokens, last, ~replaced, task.missing_eos_score)
    totals = scores.totals()
    if task.missing_eos_score is not None:
        totals[replaced] = task.missing_eos_score
    failed = np.isin(np.arange(len(responses)), list(scores.failed))
    return PaidScores(tokens, totals, parts, failed)


def episode_scores(task: Task, episodes: Episodes) -> tuple[np.ndarray, np.ndarray]:
    """What whole episodes are paid for their content, without a forward of any model.

    Returns:
        (scores float64 (B,), ended bool (B,): an EOS or a stop string ended the text).

    Raises:
        RewardError, RewardValueError: see `score_responses`.
    """
    ended, _ = task.ends(episodes.input_ids, episodes.prompt_lengths, episodes.lengths)
    finished = ended | (not task.cap_truncates)
    return paid_scores(task, episodes.prompts, episodes.responses(), ended, finished).totals, ended


def step_scores(
    task: Task,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[int]],
    ended: np.ndarray,
    finished: np.ndarray,
    paid: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """What the last token of each text is paid, float64 (B,), and the text's total so far, float64 (B,).

    Args:
        responses, ended, finished: as in `paid_scores`.
        paid: float64 (B, max_new_tokens), what the tokens before were paid; 0 after them.

    Raises:
        RewardError, RewardValueError: see `score_responses`; or the score of an earlier token is now another
            one than was paid, so that the reward function is not causal.
    """
    scores = paid_scores(task, prompts, responses, ended, finished)
    width = scores.tokens.shape[1]
    earlier = np.arange(width) < np.array([len(ids) for ids in responses])[:, None] - 1
    differ = earlier & ~np.isclose(scores.tokens, paid[:, :width], rtol=1e-4, atol=1e-5)
    if differ.any():
        row, token = (int(i) for i in np.argwhere(differ)[0])
        raise RewardValueError(
            f"reward function {name_of(task.reward)} is not causal: in the response"
            f" {short_repr(task.text_of(responses[row]))}, token {token} was worth {paid[row, token]:g} when it came"
            f" and is worth {scores.tokens[row, token]:g} after {len(responses[row])} tokens; let each score depend on"
            " the text up to its token alone, or set causal = False"
        )
    return scores.totals - paid.sum(1), scores.totals


def score_episodes(task: Task, episodes: Episodes, reward: Callable[..., Any] | None = None) -> ScoredEpisodes:
    """Per-token rewards of whole episodes, equal to those of stepping through them.

    The policy's logprobs are `episodes.logprobs` where given, else the task's model gives them.  The
    reference and the model run once over each sequence, batched by length.

    Args:
        reward: the task's own reward function in another wrapping, such as `SkippingReward`; default: as it is.

    Raises:
        ConfigurationError: an episode that `step` cannot make, see `check_episodes`, or a token that the
            reference never takes, see `check_log_ratios`.
        NonFiniteError: a logprob is NaN.
        RewardError, RewardValueError: see `score_responses`.
    """
    ended = check_episodes(task, episodes)
    mask = episodes.response_mask()
    responses = episodes.responses()
    with task.as_reference():
        ref_logprobs = response_logprobs(task.reference, episodes, task.temperature).astype(np.float64)
    given = episodes.logprobs
    if given is None:
        given = response_logprobs(task.model, episodes, task.temperature, task.allowed_in(episodes))
    logprobs = np.where(mask, given, 0.0).astype(np.float64)
    tokens = np.fromiter(chain.from_iterable(responses), dtype=np.int64)
    check_log_ratios(task, tokens, logprobs[mask], ref_logprobs[mask])
    finished = ended | (not task.cap_truncates)
    paid = paid_scores(task, episodes.prompts, responses, ended, finished, reward)
    rewards = compose_rewards(paid.tokens, logprobs, ref_logprobs, task.kl.beta)
    return ScoredEpisodes(rewards, paid.totals, logprobs, ref_logprobs, ended, paid.tokens, paid.parts, paid.failed)


def check_log_ratios(task: Task, tokens: np.ndarray, logprobs: np.ndarray, ref_logprobs: np.ndarray) -> None:
    """Refuse tokens (N,) whose logprob is NaN, or whose KL penalty is not finite; at beta 0 there is none.

    Raises:
        NonFiniteError: a logprob is NaN, as those of a model with NaN weights are.
        ConfigurationError: the policy or the reference gives a token the probability 0.
    """
    for whose, values in (("the reference", ref_logprobs), ("the policy", logprobs)):
        if (bad := np.isnan(values)).any():
            raise NonFiniteError(
                f"the logprob of token {int(tokens[bad][0])} under {whose} is NaN, as its weights or logits are: load a"
                " checkpoint from before that, and lower the learning rate if training made them so"
            )
        bad = ~np.isfinite(values)
        if bad.any() and task.kl.beta != 0:
            raise ConfigurationError(
                f"the logprob of token {int(tokens[bad][0])} under {whose} is {values[bad][0]}, so its KL penalty at"
                f" beta {task.kl.beta:g} is not finite: keep the token from being taken, with action_mask, or set"
                " beta to 0"
            )


def measure_kl(task: Task, episodes: Episodes) -> dict[str, float]:
    """Mean KL per episode between model and reference, nats: `k1`, `k2`, `k3`, and the exact sum `full`.

    `full` sums the KL of the next-token distributions over the vocabulary at each response position; its
    expectation over the model's own samples is the KL of the text distributions.
    """
    found = measure_episodes(task, episodes)
    return {name: float(found[name].mean()) for name in ("k1", "k2", "k3", "full")}


def measure_episodes(task: Task, episodes: Episodes) -> dict[str, np.ndarray]:
    """How far each episode is from the reference, in one forward of the model and one of the reference.

    Returns:
        float64 (B,) each, nats, summed over the response tokens: `k1`, `k2`, `k3` and `full` as in `measure_kl`,
        and `surprise`, -log pi_ref of the response at temperature 1, whose exponential per token is the perplexity.
    """
    totals = {name: np.zeros(len(episodes)) for name in ("k1", "k2", "k3", "full", "surprise")}
    temperature = task.temperature
    with torch.no_grad(), evaluating(task.model), evaluating(task.reference):
        for rows in length_batches(episodes.lengths, max(1, LOGITS_AT_ONCE // task.vocab_size)):
            part = episodes[rows]
            outputs, tokens = response_outputs(task.model, part)
            allowed = task.allowed_in(part)
            logits = outputs.logits if allowed is None else restrict(outputs.logits, allowed)
            with task.as_reference():
                ref_logits = response_outputs(task.reference, part)[0].logits.to(logits.device)
            logprobs = token_logprobs(logits, tokens, temperature)
            ref_logprobs = token_logprobs(ref_logits, tokens, temperature)
            found = {
                "k1": k1(logprobs, ref_logprobs),
                "k2": k2(logprobs, ref_logprobs),
                "k3": k3(logprobs, ref_logprobs),
                "full": full_kl(logits, ref_logits, temperature),
                "surprise": -token_logprobs(ref_logits, tokens),
            }
            owners = rows[np.nonzero(part.response_mask())[0]]
            for name, values in found.items():
                np.add.at(totals[name], owners, values.double().cpu().numpy())
    return totals


def _parts(reward: Callable[..., Any], finished: np.ndarray) -> dict[str, np.ndarray]:
    """The parts of the scores just asked for; a function that is not causal was asked about finished texts alone."""
    asked = np.ones_like(finished) if is_causal(reward) else finished
    if not asked.any():
        return {}
    parts = {}
    for name, values in parts_of(reward, int(asked.sum())).items():
        parts[name] = np.full(len(finished), np.nan)
        parts[name][asked] = values
    return parts


def reward_columns(task: Task, prompts: Sequence[Prompt], responses: Sequence[Sequence[int]]) -> dict[str, list[Any]]:
    """What a reward function is given besides the texts."""
    columns: dict[str, list[Any]] = {
        name: [prompt.columns.get(name) for prompt in prompts] for name in task.prompts.columns
    }
    columns["prompt_ids"] = [prompt.ids.tolist() for prompt in prompts]
    columns["response_ids"] = [list(response) for response in responses]
    return columns
