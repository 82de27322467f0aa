"""Whether episodes from outside could have come from stepping through the task.

Shapes: B episodes, P prompt, T response, L = P + T, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lm_env.data.episodes import Episodes
from lm_env.data.prompts import Prompt
from lm_env.errors import ConfigurationError
from lm_env.objective.task import Task

__all__ = ["check_episodes"]


def check_episodes(task: Task, episodes: Episodes) -> np.ndarray:
    """Refuse episodes that `step` cannot make, whose rewards would therefore mean nothing.

    Returns:
        bool (B,): which episodes were ended by an EOS or a stop string; the length cap ended the others.

    Raises:
        ConfigurationError: tokens outside the vocabulary, a prompt that is too long or is not the one that is
            named beside it, a response that is too long, goes on after an EOS or a stop string or stops without any
            of its ends, a masked token, or logprobs that are none.  The row is named.
    """
    if not isinstance(episodes, Episodes):
        raise ConfigurationError(f"env.score takes lm_env.Episodes, not {type(episodes).__name__}")
    foreign = [prompt for prompt in episodes.prompts if not isinstance(prompt, Prompt)]
    if foreign:
        raise ConfigurationError(
            f"prompts of episodes must be Prompt objects, not {type(foreign[0]).__name__}: take them from"
            " env.task.prompts, or make them with env.task.load_prompts"
        )
    ids = episodes.input_ids
    at = np.arange(ids.shape[1])
    real = at < episodes.lengths[:, None]
    in_prompt = at < episodes.prompt_lengths[:, None]
    outside = ((ids < 0) | (ids >= task.vocab_size)) & real
    _refuse(outside.any(1), f"holds a token outside the vocabulary of {task.vocab_size}")
    _refuse(
        episodes.prompt_lengths > task.max_prompt_tokens,
        f"has a prompt of more than max_prompt_tokens={task.max_prompt_tokens} tokens",
    )
    named_lengths = np.array([len(prompt.ids) for prompt in episodes.prompts], dtype=np.int64)
    _refuse(named_lengths != episodes.prompt_lengths, "has a prompt of another length than its prompts entry")
    if len(episodes):
        named = np.zeros_like(ids)
        named[in_prompt] = np.concatenate([prompt.ids for prompt in episodes.prompts])
        _refuse(((named != ids) & in_prompt).any(1), "begins with other tokens than its prompts entry")
    _refuse(
        episodes.response_lengths > task.max_new_tokens,
        f"has a response of more than max_new_tokens={task.max_new_tokens} tokens",
    )
    before_last = ~in_prompt & (at < episodes.lengths[:, None] - 1)
    ends_text = task.is_eos(np.where(before_last, ids, 0)) & before_last
    _refuse(ends_text.any(1), "goes on after an EOS")
    if task.stop_strings:
        stopped = [task.holds_stop_string(response[:-1]) for response in episodes.responses()]
        _refuse(np.array(stopped, dtype=bool), "goes on after a stop string")
    ended, capped = task.ends(ids, episodes.prompt_lengths, episodes.lengths)
    _refuse(~(ended | capped), f"ends neither by an EOS or a stop string nor at {task.max_new_tokens} tokens")
    _check_masks(task, episodes)
    _check_logprobs(episodes)
    return ended


def _check_masks(task: Task, episodes: Episodes) -> None:
    if task.action_mask is None:
        return
    rows = zip(episodes.input_ids, episodes.prompt_lengths, episodes.lengths, strict=True)
    masked = [any(not task.allowed_next(ids[:p], ids[p:t])[ids[t]] for t in range(p, n)) for ids, p, n in rows]
    _refuse(np.array(masked, dtype=bool), "holds a token that action_mask does not allow there")


def _check_logprobs(episodes: Episodes) -> None:
    if episodes.logprobs is None:
        return
    mask = episodes.response_mask()
    given = np.where(mask, episodes.logprobs, 0.0)
    _refuse((~np.isfinite(given) | (given > 1e-3)).any(1), "has a logprob that is not a finite number of at most 0")


def _refuse(bad: Any, problem: str) -> None:
    """Name the first bad row (B,), if there is one."""
    if bad.any():
        raise ConfigurationError(
            f"episode {int(np.argmax(bad))} {problem}: env.score takes only what env.step can make with this task"
        )
