"""Early warnings: one sentence each, with the likely cause, when a run starts to go wrong."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from agents.learning.rollout import Rollout

__all__ = ["EarlyWarning"]


class EarlyWarning:
    """Watches rollouts and updates; each kind of warning is given once."""

    def __init__(self) -> None:
        self._given: set[str] = set()
        self._first: dict[str, float] = {}

    def state(self) -> dict[str, Any]:
        """Which warnings have been given, and how the run began, as JSON."""
        return {"given": sorted(self._given), "first": self._first}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self._given = set(state["given"])
        self._first = dict(state["first"])

    def look(self, rollout: Rollout, metrics: dict[str, float], rounds: bool) -> list[str]:
        """The warnings that this rollout and its update give for the first time.

        Args:
            metrics: what `update` returned.
            rounds: whether the update's logprobs differ from sampling's by rounding, as in bfloat16.
        """
        if not len(rollout):
            return []
        found = {**self._from_rollout(rollout), **self._from_update(metrics, rounds)}
        new = {kind: text for kind, text in found.items() if kind not in self._given}
        self._given |= new.keys()
        return list(new.values())

    def _from_rollout(self, rollout: Rollout) -> dict[str, str]:
        scored = rollout.scored
        mask = rollout.mask
        kl = scored.kl.mean()
        entropy = float(-scored.logprobs[mask].mean())
        surprise = float(-scored.ref_logprobs[mask].mean())
        first = {
            k: self._first.setdefault(k, float(v))
            for k, v in (("entropy", entropy), ("surprise", surprise), ("score", scored.scores.mean()))
        }
        found = {}
        if _is_negative(scored.kl):
            found["kl"] = (
                f"KL is negative ({kl:.3f} +- {_error(scored.kl):.3f} nats): the logprobs are not those of the"
                " distribution sampled from; look for top-k, top-p, a temperature, or a dropout that only one of the"
                " two has"
            )
        if rollout.mismatch is not None and len(rollout.mismatch) and rollout.mismatch.max() > 0.5:
            found["mismatch"] = (
                f"the logprob that a token was sampled with is off by {rollout.mismatch.max():.3g} nats, more than"
                " rounding explains: what writes the texts has other weights than the model under training, or another"
                " temperature, or filters tokens as top-p does"
            )
        if entropy < 0.1 * first["entropy"]:
            found["entropy"] = (
                f"entropy has fallen from {first['entropy']:.2f} to {entropy:.2f} nats per token: the policy is"
                " collapsing; raise beta or lower the learning rate"
            )
        if scored.scores.mean() > first["score"] and surprise > first["surprise"] + math.log(4):
            found["perplexity"] = (
                "the score rises while the perplexity under the reference has grown from"
                f" {math.exp(first['surprise']):.0f} to {math.exp(surprise):.0f}: the reward is being gamed; raise beta"
            )
        if not scored.ended.any() and rollout.episodes.response_lengths.std() == 0 and mask.shape[1] > 1:
            found["eos"] = (
                "no text has ended by itself, all ran to the length cap: if that is not meant, check eos_token_id, or"
                " pay a missing_eos_score"
            )
        if len(scored.scores) > 1 and np.ptp(scored.scores) == 0:
            found["constant"] = (
                f"all {len(scored.scores)} scores are {scored.scores[0]:.4g}: the reward function does not tell the"
                " texts apart"
            )
        return found

    def _from_update(self, metrics: dict[str, float], rounds: bool) -> dict[str, str]:
        found = {}
        ratio = metrics.get("first_log_ratio", 0.0)
        if ratio > (0.5 if rounds else 1e-2):
            found["ratio"] = (
                f"the first minibatch's log-ratio reaches {ratio:.3g}, where it should be 0: update and sampling"
                " disagree; look for dropout, or for weights that changed in between"
            )
        if metrics.get("equal_groups", 0.0) > 0.9:
            found["groups"] = (
                "in most groups all samples got the same return, which teaches nothing: use a finer reward or larger"
                " groups"
            )
        return found


def _is_negative(kl: np.ndarray) -> bool:
    """Whether texts with these log-ratios log pi - log pi_ref, nats (B,), can hardly have been sampled from pi.

    The sum must be below -log(1000): the reference then finds the texts 1000 times as likely as the policy does, and
    of texts that the policy has written this is true in at most one rollout of 1000, whatever the two distributions
    and however few the texts are, since E_pi[pi_ref / pi] <= 1 (Markov's inequality).  The mean must also be 4
    standard errors below 0, which rounding that differs between the two logprobs never makes it.
    """
    if len(kl) < 2 or not np.isfinite(kl).all():  # at beta 0 the reference may give a token probability 0
        return False
    return bool(kl.sum() < -math.log(1000) and kl.mean() < -4 * _error(kl))


def _error(kl: np.ndarray) -> float:
    """The standard error of the mean of at least two log-ratios."""
    return float(kl.std(ddof=1) / math.sqrt(len(kl)))
