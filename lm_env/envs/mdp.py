"""TextMDP: the batched core.  n slots; here, and nowhere else, an episode is reset, stepped and ended.

State: the text of each slot.  Action: its next token.  Reward of a step: -beta (log pi - log pi_ref)
of the token just taken, plus the score paid at that token: the text's score when the text ends, or the
token's own score if the reward function scores tokens.  A step is atomic: if it raises, nothing has changed.

`terminated`: an EOS, a stop string, or the length cap; the score is paid in each case.  With
`cap_truncates` the cap sets `truncated` instead, and no score is paid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lm_env.data.prompts import Prompt
from lm_env.envs.behavior import LOGPROB_SOURCES, Behavior
from lm_env.envs.exclusive import OneAtATime
from lm_env.envs.idle_controller import IdleControllerWarner
from lm_env.envs.inputs import checked_tokens
from lm_env.envs.render import render_state
from lm_env.envs.slots import Slots
from lm_env.envs.state import SlotState, check_state, forked_generators
from lm_env.envs.untrained import UntrainedModelWarner
from lm_env.errors import InvalidActionError, ResetNeeded
from lm_env.generation.step_logprobs import StepLogprobs
from lm_env.objective.rewards import compose_rewards, is_causal
from lm_env.objective.scoring import check_log_ratios, step_scores
from lm_env.objective.task import Task
from lm_env.validation import check_integer

__all__ = ["StepResult", "TextMDP"]


@dataclass(frozen=True)
class StepResult:
    """What a step of k slots brought."""

    rewards: np.ndarray
    """float64 (k,)."""
    terminated: np.ndarray
    """bool (k,)."""
    truncated: np.ndarray
    """bool (k,)."""
    info: dict[str, np.ndarray]
    """Arrays (k,): `score` (0 before the end), `logprob`, `ref_logprob`, `kl` (of this token, nats), and
    `logprob_source`."""


class TextMDP(Slots):
    """n slots over one task.

    Args:
        task: what to write and how it is scored.
        slots: n.
    """

    def __init__(self, task: Task, slots: int = 1) -> None:
        super().__init__(task, slots)
        self.behavior = Behavior(slots, task.vocab_size)
        self._reference = StepLogprobs(task.reference, slots, task.max_length, task.temperature)
        self._own: StepLogprobs | None = None  # made when no published or bound logprobs are available
        self.idle_controller = IdleControllerWarner(task)
        self._untrained = UntrainedModelWarner(task)
        self._one_at_a_time = OneAtATime()

    # -- reset ----------------------------------------------------------------------------------------
    def seed(self, slot: int, seed: int) -> None:
        """Reseed a slot's choice of prompts, the only randomness of the MDP."""
        with self._one_at_a_time:
            self.generators[slot] = np.random.default_rng(check_integer("seed", seed, low=0))

    def reset(self, slots: np.ndarray, prompt: Any = None, seeds: Sequence[int | None] | None = None) -> None:
        """Start new episodes in `slots (k,)`, each with a prompt of its own draw, or with the one given.

        Args:
            prompt: text, token ids, a row with columns, or a `Prompt`; None: each slot draws one.
            seeds: one for each of the k slots, which reseeds its draws; None leaves them as they are.

        Raises:
            InvalidPromptError: the prompt given; nothing has changed.
            BusyError: another call is under way.
        """
        with self._one_at_a_time:
            given = None if prompt is None else self.checked_prompt(prompt)
            for slot, seed in zip(slots, seeds or (), strict=seeds is not None):
                if seed is not None:
                    self.generators[slot] = np.random.default_rng(seed)
            for slot in slots:
                chosen = given or self.task.prompts.sample(self.generators[slot], 1)[0]
                self.begin(slot, chosen)
            self.behavior.clear(slots)
            for cache in self._caches():
                cache.reset(slots)

    def _caches(self) -> list[StepLogprobs]:
        return [self._reference] if self._own is None else [self._reference, self._own]

    def checked_prompt(self, prompt: Any) -> Prompt:
        """A prompt as `reset` takes it, loaded; raises InvalidPromptError where the task cannot take it."""
        loaded = self.task.load_prompts([prompt])[0]
        return replace(loaded, index=prompt.index if isinstance(prompt, Prompt) else -1)

    # -- step -----------------------------------------------------------------------------------------
    def step(self, slots: np.ndarray, actions: Any) -> StepResult:
        """Append one token to each of `slots (k,)`, ascending.

        Raises:
            ResetNeeded: a slot has no running episode.
            InvalidActionError: an action is no token id, or is masked.
            BusyError: another call is under way.
            PublishedActionsError, RewardError: see the classes.  In every case the episode state is unchanged.
        """
        with self._one_at_a_time:
            return self._step(slots, actions)

    def _step(self, slots: np.ndarray, actions: Any) -> StepResult:
        if not self.running[slots].all():
            raise ResetNeeded(f"slot {slots[~self.running[slots]][0]} has no running episode: call reset first")
        tokens = checked_tokens(actions, slots, self.task.vocab_size)
        allowed = self._checked_masks(slots, tokens)
        logprobs, source = self._logprobs(slots, tokens, allowed)
        with self.task.as_reference():
            ref_logprobs = self._reference.logprobs(slots, tokens, self.input_ids, self.lengths)
        check_log_ratios(self.task, tokens, logprobs, ref_logprobs)
        with np.errstate(invalid="ignore"):  # at beta 0 both may be -inf
            log_ratios = logprobs - ref_logprobs

        ids = self.input_ids[slots]
        lengths = self.lengths[slots] + 1
        ids[np.arange(len(slots)), lengths - 1] = tokens
        ended, capped = self.task.ends(ids, self.prompt_lengths[slots], lengths)
        truncated = capped & self.task.cap_truncates
        terminated = ended | (capped & ~truncated)
        token_scores, totals = self._scores(slots, ids, ended, terminated)
        scores = np.where(terminated | truncated, totals, 0.0)
        rewards = compose_rewards(token_scores, logprobs, ref_logprobs, self.task.kl.beta)

        done = terminated | truncated
        largest = np.maximum(np.abs(self.log_ratios[slots]).max(1), np.abs(log_ratios))
        self._untrained.note(largest, done & (source == LOGPROB_SOURCES.index("model")))
        self.idle_controller.note(int(done.sum()))
        self.append(slots, tokens, rewards=rewards, token_scores=token_scores, log_ratios=log_ratios)
        self.scores[slots] = scores
        self.running[slots] = ~done
        self.behavior.clear(slots)
        info = {
            "score": scores,
            "logprob": logprobs,
            "ref_logprob": ref_logprobs,
            "kl": log_ratios,
            "logprob_source": np.array(LOGPROB_SOURCES, dtype=object)[source],
        }
        return StepResult(rewards, terminated, truncated, info)

    # -- save, restore, fork --------------------------------------------------------------------------
    def save_state(self, slot: int) -> SlotState:
        """Where a slot stands.

        Raises:
            ConfigurationError: there is no such slot.
            ResetNeeded: it has not been reset yet.
        """
        with self._one_at_a_time:
            return self.state_of(slot)

    def restore_state(self, state: SlotState, slots: np.ndarray) -> None:
        """Let `slots (k,)` stand where a slot of this task once stood.

        A slot whose text begins with the state's text keeps its KV cache, truncated; any other slot gets a copy of
        such a slot's cache rows.  If no slot holds the text, the next step recomputes it, and logprobs may differ by
        rounding.

        Raises:
            ConfigurationError: not a state of this task; nothing has changed.
        """
        with self._one_at_a_time:
            check_state(state, self.task)
            ids = state.ids
            cached = state.cached
            holds = (self.lengths > cached) & (self.input_ids[:, :cached] == ids[:cached]).all(1)
            sources = np.where(holds[slots], slots, np.argmax(np.where(holds, self.lengths, 0)))
            for slot in slots:
                self.put(slot, state)
            self.behavior.clear(slots)
            for cache in self._caches():
                cache.reset(slots[~holds[sources]])
                for source in np.unique(sources[holds[sources]]):
                    cache.copy_row(cache, int(source), slots[sources == source], cached)

    def fork(self, slot: int, count: int) -> TextMDP:
        """`count` new slots over the same task, all of which stand where `slot` stands.

        The rows of the KV caches are copied, not computed again, and a bound `logprob_fn` is bound there too.
        Nothing else is shared.  The slots' later prompts are drawn from generators of their own, the
        same ones each time that the same state is forked.

        Raises:
            ConfigurationError: there is no such slot, or `count` is no integer of at least 1.
            ResetNeeded: the slot has not been reset yet.
        """
        with self._one_at_a_time:
            state = self.state_of(slot)
            fork = TextMDP(self.task, count)
            everyone = np.arange(count)
            fork.restore_state(state, everyone)
            fork.generators = forked_generators(state, count)
            fork.behavior.logprob_fn = self.behavior.logprob_fn
            fork._own = None if self._own is None else fork._new_own()
            for copy, cache in zip(fork._caches(), self._caches(), strict=True):
                copy.copy_row(cache, slot, everyone, state.cached)
            return fork

    # -- what is seen ---------------------------------------------------------------------------------
    def action_masks(self, slots: np.ndarray | None = None) -> np.ndarray:
        """bool (k, V): tokens that may come next; all of them without the task's `action_mask`."""
        slots = np.arange(self.slots) if slots is None else slots
        if self.task.action_mask is None:
            return np.ones((len(slots), self.task.vocab_size), dtype=bool)
        spans = [(self.prompt_lengths[slot], self.lengths[slot]) for slot in slots]
        rows = [
            self.task.allowed_next(self.input_ids[slot, :p], self.input_ids[slot, p:n])
            for slot, (p, n) in zip(slots, spans, strict=True)
        ]
        return np.stack(rows)

    def render(self, slot: int, values: str = "kl") -> str:
        """The text of a slot, its tokens colored by `"kl"` (log-ratio to the reference) or `"reward"`.

        Raises:
            ResetNeeded: the slot has not been reset yet.
        """
        return render_state(self.state_of(slot), self.task.tokenizer, values)

    # -- the parts of a step --------------------------------------------------------------------------
    def _checked_masks(self, slots: np.ndarray, tokens: np.ndarray) -> np.ndarray | None:
        if self.task.action_mask is None:
            return None
        allowed = self.action_masks(slots)
        bad = ~allowed[np.arange(len(slots)), tokens]
        if bad.any():
            raise InvalidActionError(f"action {tokens[bad][0]} of slot {slots[bad][0]} is masked: see action_masks()")
        return allowed

    def _logprobs(
        self, slots: np.ndarray, tokens: np.ndarray, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """log pi of the tokens (k,) and where it comes from, as indices of `LOGPROB_SOURCES` (k,)."""
        published, logprobs = self.behavior.published(slots, tokens)
        fallback = "logprob_fn" if self.behavior.logprob_fn is not None else "model"
        source = np.where(published, LOGPROB_SOURCES.index("published"), LOGPROB_SOURCES.index(fallback))
        rest = ~published
        if rest.any() and self.behavior.logprob_fn is not None:
            logprobs[rest] = self.behavior.ask(self.observation(slots[rest]), tokens[rest])
        elif rest.any():
            if self._own is None:
                self._own = self._new_own()
            part = None if allowed is None else allowed[rest]
            self._own.surprise = self._untrained.surprise
            logprobs[rest] = self._own.logprobs(slots[rest], tokens[rest], self.input_ids, self.lengths, part)
        return logprobs, source

    def _new_own(self) -> StepLogprobs:
        return StepLogprobs(self.task.model, self.slots, self.task.max_length, self.task.temperature)

    def _scores(
        self, slots: np.ndarray, ids: np.ndarray, ended: np.ndarray, terminated: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the new tokens are paid (k,), and the totals of their texts (k,); see `step_scores`."""
        token_scores = np.zeros(len(slots))
        totals = np.zeros(len(slots))
        rows = np.arange(len(slots)) if is_causal(self.task.reward) else np.flatnonzero(terminated)
        if len(rows):
            prompts = [p for row in rows if (p := self.prompts[slots[row]]) is not None]
            ends = self.lengths[slots] + 1
            responses = [ids[row, self.prompt_lengths[slots[row]] : ends[row]].tolist() for row in rows]
            token_scores[rows], totals[rows] = step_scores(
                self.task, prompts, responses, ended[rows], terminated[rows], self.token_scores[slots[rows]]
            )
        return token_scores, totals
