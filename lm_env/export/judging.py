"""The scores of texts that another library has sampled: those that the environment gives to the same texts.

Shapes: B texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lm_env.data.episodes import text_episodes
from lm_env.data.prompts import Prompt
from lm_env.errors import ConfigurationError
from lm_env.objective.rewards import call_reward
from lm_env.objective.scoring import episode_scores, reward_columns
from lm_env.objective.task import Task

__all__ = ["cut_at_stop_string", "score_texts", "score_tokens"]


def score_tokens(
    task: Task, prompts: Sequence[Prompt], responses: Sequence[Sequence[int]]
) -> tuple[np.ndarray, np.ndarray]:
    """The scores of responses that are known as tokens of the task's own tokenizer.

    Args:
        prompts: B prompts, one for each response.
        responses: B lists of at least one token id; what follows the end of a text is left out.

    Returns:
        (scores float64 (B,), ended bool (B,): an EOS or a stop string ended the text).

    Raises:
        ConfigurationError: a response is empty, or holds a token outside the vocabulary.
        RewardError, RewardValueError: see `lm_env.objective.score_responses`.
        ValueError: the lists have different lengths.
    """
    for response in responses:
        if not len(response) or not 0 <= min(response) <= max(response) < task.vocab_size:
            raise ConfigurationError(
                f"a response to score has the tokens {list(response)[:8]}: there must be at least one, each below the"
                f" vocabulary of {task.vocab_size}; let the trainer use the task's own tokenizer"
            )
    whole = [[*prompt.ids.tolist(), *task.until_end(ids)] for prompt, ids in zip(prompts, responses, strict=True)]
    return episode_scores(task, text_episodes(prompts, whole, [len(prompt.ids) for prompt in prompts]))


def score_texts(
    task: Task, prompts: Sequence[Prompt], responses: Sequence[str], ended: Sequence[bool]
) -> tuple[np.ndarray, np.ndarray]:
    """The scores of responses that are known as texts alone.

    The reward function's column `response_ids` holds what the task's tokenizer makes of the text, and an EOS if one
    ended it; they may be other tokens than those that were sampled.  The length cap is not applied here: whoever
    samples applies it, and says so in `ended`.

    Args:
        prompts, responses: B prompts, and the text that was written to each.
        ended: B bools, whether an EOS or a stop string ended the text, and not a length cap.  A text that holds a stop
            string has ended there, whatever this says.

    Returns:
        (scores float64 (B,), ended bool (B,)).

    Raises:
        RewardError, RewardValueError: see `lm_env.objective.score_responses`.
        ValueError: the lists have different lengths.
    """
    cut = [cut_at_stop_string(task, text, bool(over)) for text, over in zip(responses, ended, strict=True)]
    texts = [text for text, _ in cut]
    done = np.array([over for _, over in cut], dtype=bool)
    uncut = [len(text) == len(response) for text, response in zip(texts, responses, strict=True)]
    by_eos = [bool(over and whole) for over, whole in zip(done, uncut, strict=True)]
    ids = [_encoded(task, text, eos) for text, eos in zip(texts, by_eos, strict=True)]
    finished = done | (not task.cap_truncates)
    columns = reward_columns(task, prompts, ids)
    texts = [text if whole else task.settled(text) for text, whole in zip(texts, finished, strict=True)]
    scores = call_reward(task.reward, [p.text for p in prompts], texts, columns, finished, warn=False).totals()
    if task.missing_eos_score is not None:
        scores[~done] = task.missing_eos_score
    return scores, done


def cut_at_stop_string(task: Task, response: str, ended: bool) -> tuple[str, bool]:
    """(the text before its first stop string, True), or (response, ended) if it holds none."""
    cuts = [at for stop in task.stop_strings if (at := response.find(stop)) >= 0]
    return (response[: min(cuts)], True) if cuts else (response, ended)


def _encoded(task: Task, text: str, eos: bool) -> list[int]:
    """The tokens that the task's tokenizer makes of a text, and an EOS after them if `eos`."""
    ids = list(task.tokenizer([text], add_special_tokens=False)["input_ids"][0]) if text else []
    return [*ids, min(task.eos_token_ids)] if eos and task.eos_token_ids else ids
