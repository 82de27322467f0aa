"""Whole episodes by continuous refill, without favouring short ones.

The prompts are fixed beforehand and every one of them is carried through to its end; a slot that
falls free takes the next.  (Taking "the first n to finish" instead would favour short texts.)  One
policy forward per generated token; the log-probs of sampling, and with a shared trunk the values,
are kept and never computed again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from agents.policy import ValueHeadPolicy
from agents.sampling import sample
from lm_env.decoding import make_decoder
from lm_env.episodes import Episodes, Scored
from lm_env.errors import ConfigurationError
from lm_env.forwards import Outputs, evaluating, restrict
from lm_env.prompts import Prompt
from lm_env.task import Task

ValueOf = Callable[[Tensor], Tensor]

__all__ = ["Rollout", "collect", "generate"]


@dataclass(frozen=True)
class Rollout:
    """B episodes with all that an update needs."""

    episodes: Episodes
    values: np.ndarray
    """float (B, T): V before each token under the policy that sampled; 0 in the padding."""
    last_values: np.ndarray
    """float (B,): V after the last token of truncated episodes, 0 for terminated ones."""
    scored: Scored

    @property
    def mask(self) -> np.ndarray:
        """bool (B, T)."""
        return self.episodes.response_mask()


def collect(
    policy: ValueHeadPolicy, task: Task, prompts: Sequence[Prompt], slots: int, generator: torch.Generator,
    on_scored: Callable[[float], object] = lambda seconds: None,
) -> Rollout:  # fmt: skip
    """Sample an episode for each prompt, then score them all: reference, values and reward in one pass each.

    Args:
        on_scored: told the seconds that the scoring took.
    """
    episodes, values = generate(
        policy.lm, task, prompts, slots, generator, value_of=policy.value_of if policy.reads_trunk else None
    )
    started = time.perf_counter()
    if policy.critic is not None:
        values = policy.values(episodes)
    last_values = np.zeros(len(episodes))
    scored = task.score(episodes)
    if task.cap_truncates and not scored.ended.all():
        cut = np.flatnonzero(~scored.ended)
        part = episodes[cut]
        last_values[cut] = policy.next_outputs(part.input_ids, part.lengths)[1].cpu().numpy()
    on_scored(time.perf_counter() - started)
    return Rollout(episodes, values, last_values, scored)


def generate(
    lm: nn.Module, task: Task, prompts: Sequence[Prompt], slots: int, generator: torch.Generator | None = None, *,
    deterministic: bool = False, value_of: ValueOf | None = None, on_ended: Callable[[int], object] | None = None,
) -> tuple[Episodes, np.ndarray]:  # fmt: skip
    """Carry every prompt through to the end of its text.

    Args:
        slots: texts under way at a time.
        value_of: maps hidden states (k, D) to values (k,), to be kept along.
        on_ended: told, after each token, how many more texts have ended; moves a progress bar.

    Returns:
        (episodes with log-probs, values (B, T)); the order is that of `prompts`.
    """
    if not prompts:
        raise ConfigurationError("there is nothing to write to: give at least one prompt")
    desk = _Desk(lm, task, prompts, min(slots, len(prompts)), generator, deterministic, value_of)
    with torch.no_grad(), evaluating(lm):
        while desk.busy():
            before = desk.ended
            desk.refill()
            desk.advance()
            if on_ended is not None and desk.ended > before:
                on_ended(desk.ended - before)
    return desk.finished()


class _Desk:
    """The texts under way and the arrays that they are written to."""

    def __init__(
        self, lm: nn.Module, task: Task, prompts: Sequence[Prompt], slots: int, generator: torch.Generator | None,
        deterministic: bool, value_of: ValueOf | None,
    ) -> None:  # fmt: skip
        self.task, self.prompts, self.generator, self.deterministic, self.value_of = (
            task,
            prompts,
            generator,
            deterministic,
            value_of,
        )
        count, width = len(prompts), max(len(p.ids) for p in prompts) + task.max_new_tokens
        self.ids = np.full((count, width), task.pad_token_id, dtype=np.int64)
        self.prompt_lengths = np.array([len(p.ids) for p in prompts], dtype=np.int64)
        for row, prompt in zip(self.ids, prompts, strict=True):
            row[: len(prompt.ids)] = prompt.ids
        self.lengths = self.prompt_lengths.copy()
        self.logp = np.zeros((count, task.max_new_tokens), dtype=np.float64)
        self.values = np.zeros((count, task.max_new_tokens), dtype=np.float64)
        self.decoder = make_decoder(lm, slots, width, want_hidden=value_of is not None)
        self.holds = np.full(slots, -1)  # the episode in each slot, -1: free
        self.upcoming = 0
        # A prefill of one row costs nearly as much as one of four: free slots wait for company.
        self.patience = max(1, slots // 8)

    def busy(self) -> bool:
        return self.upcoming < len(self.prompts) or bool((self.holds >= 0).any())

    @property
    def ended(self) -> int:
        """Texts that have come to their end."""
        return self.upcoming - int((self.holds >= 0).sum())

    def refill(self) -> None:
        free = np.flatnonzero(self.holds < 0)
        left = len(self.prompts) - self.upcoming
        if not left or len(free) < min(self.patience, left, len(self.holds)):
            return
        free = free[:left]
        rows = np.arange(self.upcoming, self.upcoming + len(free))
        self.upcoming += len(free)
        self.holds[free] = rows
        self._take(free, self.decoder.start(free, self.ids[rows], self.lengths[rows]))

    def advance(self) -> None:
        """One token for every text under way."""
        slots = np.flatnonzero(self.holds >= 0)
        if not len(slots):
            return
        if self.upcoming == len(self.prompts) and len(slots) < len(self.holds):
            self.decoder.keep(slots)  # nothing will take the free slots: drop them
            self.holds, slots = self.holds[slots], np.arange(len(slots))
        rows = self.holds[slots]
        self._take(slots, self.decoder.step(slots, self.ids[rows, self.lengths[rows] - 1]))

    def _take(self, slots: np.ndarray, outputs: Outputs) -> None:
        """Sample the next token of these slots, write it down, and free the slots whose text ends."""
        rows = self.holds[slots]
        logits = outputs.logits
        if self.task.action_mask is not None:
            spans = [(self.ids[r], self.prompt_lengths[r], self.lengths[r]) for r in rows]
            logits = restrict(logits, np.stack([self.task.allowed_next(ids[:p], ids[p:n]) for ids, p, n in spans]))
        tokens, logp = sample(logits, self.task.temperature, self.generator, self.deterministic)
        at = self.lengths[rows] - self.prompt_lengths[rows]
        self.ids[rows, self.lengths[rows]] = tokens.cpu().numpy()
        self.logp[rows, at] = logp.cpu().numpy()
        if self.value_of is not None and outputs.hidden is not None:
            self.values[rows, at] = self.value_of(outputs.hidden).cpu().numpy()
        self.lengths[rows] += 1
        ended, capped = self.task.ends(self.ids[rows], self.prompt_lengths[rows], self.lengths[rows])
        self.holds[slots[ended | capped]] = -1

    def finished(self) -> tuple[Episodes, np.ndarray]:
        longest = int((self.lengths - self.prompt_lengths).max())
        width = int(self.lengths.max())
        episodes = Episodes(
            self.ids[:, :width], self.prompt_lengths, self.lengths, self.prompts, self.logp[:, :longest]
        )
        return episodes, self.values[:, :longest]
