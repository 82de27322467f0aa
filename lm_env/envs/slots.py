"""Slots: the texts under way in n slots and what their tokens were paid, as arrays; no model, no reward function.

Shapes: n slots, L tokens of the longest text, T tokens of the longest response.
"""

from __future__ import annotations

import numpy as np

from lm_env.data.prompts import Prompt
from lm_env.envs.state import SlotState, generator_of, settings_of
from lm_env.errors import ConfigurationError, ResetNeeded
from lm_env.objective.task import Task
from lm_env.validation import check_integer

__all__ = ["Slots"]


class Slots:
    """n texts that begin, grow and end each on its own.

    Args:
        task: how long texts can be, and what padding looks like.
        count: n.
    """

    def __init__(self, task: Task, count: int) -> None:
        check_integer("the number of environments", count)
        self.task = task
        self.slots = count
        self.input_ids = np.full((count, task.max_length), task.pad_token_id, dtype=np.int64)
        self.lengths = np.ones(count, dtype=np.int64)
        self.prompt_lengths = np.ones(count, dtype=np.int64)
        self.prompts: list[Prompt | None] = [None] * count
        self.running = np.zeros(count, dtype=bool)
        self.log_ratios = np.zeros((count, task.max_new_tokens))
        self.step_rewards = np.zeros((count, task.max_new_tokens))
        self.token_scores = np.zeros((count, task.max_new_tokens))
        self.scores = np.zeros(count)
        self.generators = [np.random.default_rng() for _ in range(count)]

    def begin(self, slot: int, prompt: Prompt) -> None:
        """A new text in a slot, which so far is its prompt."""
        length = len(prompt.ids)
        self.input_ids[slot] = self.task.pad_token_id
        self.input_ids[slot, :length] = prompt.ids
        self.lengths[slot] = self.prompt_lengths[slot] = length
        self.prompts[slot] = prompt
        self.log_ratios[slot] = 0.0
        self.step_rewards[slot] = 0.0
        self.token_scores[slot] = 0.0
        self.scores[slot] = 0.0
        self.running[slot] = True

    def append(
        self,
        slots: np.ndarray,
        tokens: np.ndarray,
        *,
        rewards: np.ndarray,
        token_scores: np.ndarray,
        log_ratios: np.ndarray,
    ) -> None:
        """One more token in each of `slots (k,)`, and what it was paid, (k,) each."""
        at = self.lengths[slots] - self.prompt_lengths[slots]
        self.input_ids[slots, self.lengths[slots]] = tokens
        self.step_rewards[slots, at] = rewards
        self.token_scores[slots, at] = token_scores
        self.log_ratios[slots, at] = log_ratios
        self.lengths[slots] += 1

    def response(self, slot: int) -> list[int]:
        """The tokens taken so far in a slot."""
        return self.input_ids[slot, self.prompt_lengths[slot] : self.lengths[slot]].tolist()

    def observation(self, slots: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Fresh copies: `input_ids` int64 (k, L), right-padded, and `length` int64 (k, 1)."""
        index = slice(None) if slots is None else slots
        return {"input_ids": self.input_ids[index].copy(), "length": self.lengths[index][:, None].copy()}

    def state_of(self, slot: int) -> SlotState:
        """Where a slot stands; see `TextMDP.save_state`."""
        if check_integer("a slot", slot, low=0) >= self.slots:
            raise ConfigurationError(f"there is no slot {slot}: there are {self.slots}, the first one is 0")
        prompt = self.prompts[slot]
        if prompt is None:
            raise ResetNeeded(f"slot {slot} has no episode yet: call reset first")
        response = np.array(self.response(slot), dtype=np.int64)
        return SlotState(
            prompt=prompt,
            response=response,
            rewards=self.step_rewards[slot, : len(response)].copy(),
            token_scores=self.token_scores[slot, : len(response)].copy(),
            log_ratios=self.log_ratios[slot, : len(response)].copy(),
            score=float(self.scores[slot]),
            running=bool(self.running[slot]),
            generator=self.generators[slot].bit_generator.state,
            settings=settings_of(self.task),
        )

    def put(self, slot: int, state: SlotState) -> None:
        """Let a slot stand where a state says; the state has been checked."""
        ids = state.ids
        steps = len(state.response)
        generator = generator_of(state)
        self.begin(slot, state.prompt)
        self.input_ids[slot, : len(ids)] = ids
        self.lengths[slot] = len(ids)
        self.log_ratios[slot, :steps] = state.log_ratios
        self.step_rewards[slot, :steps] = state.rewards
        self.token_scores[slot, :steps] = state.token_scores
        self.scores[slot] = state.score
        self.running[slot] = state.running
        self.generators[slot] = generator
