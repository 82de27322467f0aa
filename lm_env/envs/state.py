"""Where a slot stands, as plain data that can be kept, copied, pickled and gone back to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_env.data.prompts import Prompt
from lm_env.errors import ConfigurationError
from lm_env.objective.rewards import name_of
from lm_env.objective.task import Task
from lm_env.validation import check_number

__all__ = ["SlotState", "check_state", "forked_generators", "generator_of", "settings_of"]

_CHANGED = "the state has been changed since save_state returned it (restore it as it was)"


@dataclass(frozen=True, eq=False)
class SlotState:
    """An episode up to now, and what decides about the prompts to come.

    It holds no weights, no KV cache (that can be computed again from the text) and no published
    logprobs (they are those of one action, which another branch need not take).
    """

    prompt: Prompt
    response: np.ndarray
    """int64 (T,): the tokens taken so far."""
    rewards: np.ndarray
    """float64 (T,)."""
    token_scores: np.ndarray
    """float64 (T,): what each token was paid for itself, the KL penalty aside."""
    log_ratios: np.ndarray
    """float64 (T,): log pi - log pi_ref of each token, nats."""
    score: float
    """What was paid at the end; 0 before it."""
    running: bool
    """Whether the episode goes on."""
    generator: Mapping[str, Any]
    """The state of the NumPy generator that draws the slot's prompts."""
    settings: Mapping[str, Any]
    """Those of the task it belongs to, see `settings_of`."""

    @property
    def ids(self) -> np.ndarray:
        """int64 (P + T,): the whole text."""
        return np.concatenate([self.prompt.ids, self.response])

    @property
    def cached(self) -> int:
        """Tokens of the text that the KV cache of a slot which came here step by step holds.

        All but the last, once a token has been taken; before that a prompt has not been read yet.
        """
        return len(self.prompt.ids) + len(self.response) - 1 if len(self.response) else 0


def settings_of(task: Task) -> dict[str, Any]:
    """What tells one task from another, the weights aside: what decides about texts, their ends and their scores."""
    return {
        "model": type(task.model).__name__,
        "vocab_size": task.vocab_size,
        "reward": name_of(task.reward),
        "number of prompts": len(task.prompts),
        "max_prompt_tokens": task.max_prompt_tokens,
        "max_new_tokens": task.max_new_tokens,
        "eos_token_id": tuple(sorted(task.eos_token_ids)),
        "stop_strings": task.stop_strings,
        "missing_eos_score": task.missing_eos_score,
        "cap_truncates": task.cap_truncates,
        "temperature": task.temperature,
        "action_mask": None if task.action_mask is None else name_of(task.action_mask),
    }


def check_state(state: Any, task: Task) -> None:
    """Refuse what a slot of this task cannot go back to.

    Raises:
        ConfigurationError: it is no `SlotState`, belongs to another task, or has been edited.
    """
    if not isinstance(state, SlotState):
        raise ConfigurationError(f"a state must be one that save_state returned, not a {type(state).__name__}")
    for name, kind in (("prompt", Prompt), ("settings", Mapping), ("running", bool)):
        if not isinstance(getattr(state, name), kind):
            shown = f"its {name} is of type {type(getattr(state, name)).__name__}, not {kind.__name__}"
            raise ConfigurationError(f"{_CHANGED}: {shown}")
    here = settings_of(task)
    for name, value in here.items():
        if state.settings.get(name) != value:
            raise ConfigurationError(
                f"the state belongs to another task: its {name} is {state.settings.get(name)!r}, here it is {value!r};"
                " restore it in an environment like the one that saved it"
            )
    _check_arrays(state, task)
    check_number("the score of a state", state.score)
    generator_of(state)
    if state.running and _is_over(state, task):
        raise ConfigurationError(f"{_CHANGED}: its text has come to its end, and yet it is said to be running")


def _check_arrays(state: SlotState, task: Task) -> None:
    """The tokens and the numbers of each token: their types, their lengths, and that the tokens are tokens."""
    arrays = {"prompt.ids": state.prompt.ids}
    arrays |= {name: getattr(state, name) for name in ("response", "rewards", "token_scores", "log_ratios")}
    for name, array in arrays.items():
        kinds = "iu" if name in ("prompt.ids", "response") else "iuf"
        if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in kinds:
            wanted = "integers" if kinds == "iu" else "numbers"
            raise ConfigurationError(f"{_CHANGED}: its {name} is no array of {wanted}, one for each token")
    steps = len(state.response)
    fits = 1 <= len(state.prompt.ids) <= task.max_prompt_tokens and steps <= task.max_new_tokens
    if not fits or not steps == len(state.rewards) == len(state.token_scores) == len(state.log_ratios):
        raise ConfigurationError(f"{_CHANGED}: its lengths do not fit")
    if ((state.ids < 0) | (state.ids >= task.vocab_size)).any():
        raise ConfigurationError(f"{_CHANGED}: it holds no token ids")


def _is_over(state: SlotState, task: Task) -> bool:
    """Whether the text holds one of its ends, so that no token can follow."""
    if not len(state.response):
        return False
    ids = state.ids[None]
    ended, capped = task.ends(ids, np.array([len(state.prompt.ids)]), np.array([ids.shape[1]]))
    return bool(ended[0] or capped[0] or task.is_eos(state.response).any())


def generator_of(state: SlotState) -> np.random.Generator:
    """The generator of prompts, standing where the state says.

    Raises:
        ConfigurationError: the state's `generator` is no state of such a generator.
    """
    generator = np.random.default_rng()
    try:
        generator.bit_generator.state = state.generator
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise ConfigurationError(f"{_CHANGED}: its generator is no state of a NumPy PCG64 generator") from error
    return generator


def forked_generators(state: SlotState, count: int) -> list[np.random.Generator]:
    """A generator of prompts for each fork of a state: different ones, and the same whenever the state is forked."""
    words = [int(word) for word in state.generator["state"].values()]
    return [np.random.default_rng([*words, fork]) for fork in range(count)]
