"""TextMDP: the batched core.  n slots; here, and nowhere else, an episode begins, moves and ends.

State: the text of each slot.  Action: its next token.  Reward of a step: -beta (log pi - log pi_ref)
of the token just taken, plus the score when the text ends.  A step either happens whole or, when
anything about it is wrong, not at all.

`terminated`: an EOS, a stop string, or the length cap, at which the score is paid as well; with
`cap_truncates`, the cap is `truncated` and pays none.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lm_env.data.prompts import Prompt, load_prompts
from lm_env.envs.behavior import LOGPROB_SOURCES, Behavior
from lm_env.envs.render import render_episode, tokens_from_ids
from lm_env.errors import InvalidActionError, ResetNeeded
from lm_env.generation.step_logprobs import StepLogprobs
from lm_env.objective.rewards import compose_rewards
from lm_env.objective.scoring import paid_scores
from lm_env.objective.task import Task
from lm_env.validation import check_integer

__all__ = ["StepResult", "TextMDP", "as_array"]

# Whole episodes scored by a model that never differs from its reference, before the warning.
UNTRAINED_EPISODES = 16
UNTRAINED_LOG_RATIO = 1e-5  # rounding; nearly all models give exactly 0


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


class TextMDP:
    """n slots over one task.

    Args:
        task: what to write and how it is judged.
        slots: n.
    """

    def __init__(self, task: Task, slots: int = 1) -> None:
        check_integer("the number of environments", slots)
        self.task, self.slots = task, slots
        self.input_ids = np.full((slots, task.max_length), task.pad_token_id, dtype=np.int64)
        self.lengths = np.ones(slots, dtype=np.int64)
        self.prompt_lengths = np.ones(slots, dtype=np.int64)
        self.prompts: list[Prompt | None] = [None] * slots
        self.running = np.zeros(slots, dtype=bool)
        self.log_ratios = np.zeros((slots, task.max_new_tokens))
        self.step_rewards = np.zeros((slots, task.max_new_tokens))
        self.scores = np.zeros(slots)
        self.behavior = Behavior(slots)
        self._rngs = [np.random.default_rng() for _ in range(slots)]
        self._reference = StepLogprobs(task.reference, slots, task.max_length, task.temperature)
        self._own: StepLogprobs | None = None
        self._untrained_episodes = 0

    # -- an episode begins ----------------------------------------------------------------------------
    def seed(self, slot: int, seed: int) -> None:
        """Reseed a slot's choice of prompts, the only randomness of the MDP."""
        self._rngs[slot] = np.random.default_rng(seed)

    def reset(self, slots: np.ndarray, prompt: Any = None) -> None:
        """Start new episodes in `slots (k,)`, each with a prompt of its own draw, or with the one given."""
        given = None if prompt is None else self.checked_prompt(prompt)
        for slot in slots:
            chosen = given or self.task.prompts.sample(self._rngs[slot], 1)[0]
            length = len(chosen.ids)
            self.input_ids[slot] = self.task.pad_token_id
            self.input_ids[slot, :length] = chosen.ids
            self.lengths[slot] = self.prompt_lengths[slot] = length
            self.prompts[slot] = chosen
        self.log_ratios[slots] = self.step_rewards[slots] = 0.0
        self.scores[slots] = 0.0
        self.running[slots] = True
        self.behavior.clear(slots)
        self._reference.reset(slots)
        if self._own is not None:
            self._own.reset(slots)

    def checked_prompt(self, prompt: Any) -> Prompt:
        """A prompt as `reset` takes it, loaded; raises InvalidPromptError where the task cannot take it."""
        task = self.task
        loaded = load_prompts(
            [prompt], task.tokenizer, vocab_size=task.vocab_size, max_prompt_tokens=task.max_prompt_tokens
        )[0]
        return replace(loaded, index=prompt.index if isinstance(prompt, Prompt) else -1)

    # -- it moves -------------------------------------------------------------------------------------
    def step(self, slots: np.ndarray, actions: Any) -> StepResult:
        """Append one token to each of `slots (k,)`, ascending.

        Raises:
            ResetNeeded: a slot has no running episode.
            InvalidActionError: an action is no token id, or is masked.
            PublishedActionsError, RewardError: see there.  In every case nothing has changed.
        """
        if not self.running[slots].all():
            raise ResetNeeded(f"slot {slots[~self.running[slots]][0]} has no running episode: call reset first")
        tokens = self._checked_actions(slots, actions)
        allowed = self._checked_masks(slots, tokens)
        logprobs, source = self._logprobs(slots, tokens, allowed)
        with self.task.as_reference():
            ref_logprobs = self._reference.logprobs(slots, tokens, self.input_ids, self.lengths)

        ids, lengths = self.input_ids[slots], self.lengths[slots] + 1
        ids[np.arange(len(slots)), lengths - 1] = tokens
        ended, capped = self.task.ends(ids, self.prompt_lengths[slots], lengths)
        truncated = capped & self.task.cap_truncates
        terminated = ended | (capped & ~truncated)
        scores = self._scores(slots, ids, ended, terminated)
        rewards = compose_rewards(scores, logprobs, ref_logprobs, terminated, self.task.kl.beta)

        self._note_untrained(slots, logprobs - ref_logprobs, terminated | truncated, source)
        self._commit(slots, tokens, rewards, logprobs - ref_logprobs, scores, terminated | truncated)
        told_by = np.array(LOGPROB_SOURCES, dtype=object)[source]
        info = {
            "score": scores,
            "logprob": logprobs,
            "ref_logprob": ref_logprobs,
            "kl": logprobs - ref_logprobs,
            "logprob_source": told_by,
        }
        return StepResult(rewards, terminated, truncated, info)

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

    def response(self, slot: int) -> list[int]:
        """The tokens taken so far in a slot."""
        return self.input_ids[slot, self.prompt_lengths[slot] : self.lengths[slot]].tolist()

    def observation(self, slots: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Fresh copies: `input_ids` int64 (k, L), right-padded, and `length` int64 (k, 1)."""
        index = slice(None) if slots is None else slots
        return {"input_ids": self.input_ids[index].copy(), "length": self.lengths[index][:, None].copy()}

    def render(self, slot: int, values: str = "kl") -> str:
        """The text of a slot, its tokens colored by `"kl"` (log-ratio to the reference) or `"reward"`."""
        prompt = self.prompts[slot]
        if prompt is None:
            raise ResetNeeded("nothing to render yet: call reset first")
        start, end = self.prompt_lengths[slot], self.lengths[slot]
        tokens = tokens_from_ids(self.task.tokenizer, self.input_ids[slot, :end].tolist())[start:]
        shown = self.log_ratios if values == "kl" else self.step_rewards
        return render_episode(
            prompt.text,
            tokens,
            shown[slot, : len(tokens)].tolist(),
            score=None if self.running[slot] else float(self.scores[slot]),
            quantity="log-ratio" if values == "kl" else "reward",
            color=None,
        )

    # -- the parts of a move --------------------------------------------------------------------------
    def _checked_actions(self, slots: np.ndarray, actions: Any) -> np.ndarray:
        tokens = as_array(actions)
        if tokens.dtype.kind not in "iu" or tokens.shape != slots.shape:
            raise InvalidActionError(
                f"actions must be {len(slots)} whole token ids, one per slot, not {actions!r} (dtype {tokens.dtype},"
                f" shape {tokens.shape})"
            )
        bad = (tokens < 0) | (tokens >= self.task.vocab_size)
        if bad.any():
            raise InvalidActionError(
                f"action {tokens[bad][0]} of slot {slots[bad][0]} is no token id: 0 to {self.task.vocab_size - 1} are"
            )
        return tokens.astype(np.int64)

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
        """log pi of the tokens (k,) and who told it, as indices of `LOGPROB_SOURCES` (k,)."""
        published, logprobs = self.behavior.published(slots, tokens)
        source = np.where(published, 0, 1 if self.behavior.logprob_fn is not None else 2)
        rest = ~published
        if rest.any() and self.behavior.logprob_fn is not None:
            logprobs[rest] = self.behavior.ask(self.observation(slots[rest]), tokens[rest])
        elif rest.any():
            if self._own is None:
                self._own = StepLogprobs(self.task.model, self.slots, self.task.max_length, self.task.temperature)
            part = None if allowed is None else allowed[rest]
            logprobs[rest] = self._own.logprobs(slots[rest], tokens[rest], self.input_ids, self.lengths, part)
        return logprobs, source

    def _scores(self, slots: np.ndarray, ids: np.ndarray, ended: np.ndarray, terminated: np.ndarray) -> np.ndarray:
        scores = np.zeros(len(slots))
        rows = np.flatnonzero(terminated)
        if len(rows):
            prompts = [p for row in rows if (p := self.prompts[slots[row]]) is not None]
            ends = self.lengths[slots] + 1
            responses = [ids[row, self.prompt_lengths[slots[row]] : ends[row]].tolist() for row in rows]
            scores[rows] = paid_scores(self.task, prompts, responses, ended[rows])
        return scores

    def _commit(
        self,
        slots: np.ndarray,
        tokens: np.ndarray,
        rewards: np.ndarray,
        log_ratios: np.ndarray,
        scores: np.ndarray,
        done: np.ndarray,
    ) -> None:
        at = self.lengths[slots] - self.prompt_lengths[slots]
        self.input_ids[slots, self.lengths[slots]] = tokens
        self.log_ratios[slots, at], self.step_rewards[slots, at] = log_ratios, rewards
        self.scores[slots] = scores
        self.lengths[slots] += 1
        self.running[slots] = ~done
        self.behavior.clear(slots)

    def _note_untrained(self, slots: np.ndarray, log_ratios: np.ndarray, done: np.ndarray, source: np.ndarray) -> None:
        """Warn, once, where whole episodes show no KL.  Where warnings are errors, the step has not happened."""
        worst = np.maximum(np.abs(self.log_ratios[slots]).max(1), np.abs(log_ratios))
        same = done & (source == LOGPROB_SOURCES.index("model")) & (worst < UNTRAINED_LOG_RATIO)
        if not same.any() or not self.task.kl.beta:
            return
        before, self._untrained_episodes = self._untrained_episodes, self._untrained_episodes + int(same.sum())
        if before < UNTRAINED_EPISODES <= self._untrained_episodes:
            warnings.warn(
                "the KL in the reward has been 0 for whole episodes: log pi comes from the environment's own model,"
                " which still equals its reference.  If your agent trains other weights, let it publish its logprobs"
                " (env.publish) or bind a function of them (env.bind_logprob_fn); else no KL penalty holds it near the"
                " reference.",
                stacklevel=4,
            )


def as_array(actions: Any) -> np.ndarray:
    """Actions as an array, of whatever dtype; InvalidActionError where they make none."""
    try:
        return np.asarray(actions)
    except (TypeError, ValueError) as error:
        raise InvalidActionError(f"actions must be whole token ids, not {actions!r}: {error}") from error
