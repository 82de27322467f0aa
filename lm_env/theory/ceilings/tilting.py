"""The ceiling: the largest attainable E[score] - beta KL, estimated from samples of the reference.

The optimum is pi* = pi_ref exp(score / beta) / Z on any text, so for each prompt

    J* = beta log E_ref[exp(score / beta)],   E*[score] = E_ref[score exp(score / beta)] / Z,
    KL* = (E*[score] - J*) / beta,

and n samples of the reference estimate all three by exponential tilting.  The plain estimate of J*
is biased low by about (beta / 2) (1 / ESS - 1 / n), and the jackknife removes that to first order.  Texts that
were not sampled add nothing to the estimate, so `Ceiling.trusted` says whether it may be used as the optimum;
otherwise it is a lower bound.

Sources: Ziegler et al. 2019 (arXiv:1909.08593), equation 2, for the optimum; Efron and Stein 1981 for the
jackknife.

Shapes: P prompts, n samples of the reference per prompt; n may differ from prompt to prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lm_env.errors import ConfigurationError
from lm_env.theory.ceilings.estimate import Estimate, ReferenceScores, checked_scores, tilted
from lm_env.validation import check_number

__all__ = [
    "Ceiling",
    "FrontierPoint",
    "ceiling",
    "frontier",
    "pass_rate_ceiling",
    "upper_bound",
]

ENOUGH_ESS = 10.0
"""Effective sample size that a prompt needs for its tilted mean to be usable."""
ENOUGH_PROMPTS = 0.95
"""The share of the prompts that must have this effective sample size."""
CLOSE = 0.01
"""The largest gap between the plain and the jackknifed estimate, in units of J* - J_ref."""
ROUNDING = 1e-9
"""A gain J* - J_ref up to this, in units of beta, counts as zero."""
UNSEEN = 0.05
"""The most that texts which were not sampled may add to J*, in units of J* - J_ref."""


@dataclass(frozen=True)
class Ceiling:
    """The optimum at one beta, as means over prompts; J in the unit of the score, KL in nats per response."""

    beta: float
    prompts: int
    samples: np.ndarray
    """int (P,): n of each prompt."""
    J_ref: Estimate
    """The reference's own E[score], whose KL is 0."""
    J: Estimate
    """J*, jackknifed."""
    J_plain: float
    """J* without the jackknife: low on average, and so a lower bound."""
    score: Estimate
    """E*[score], jackknifed."""
    KL: Estimate
    """KL*, (E*[score] - J*) / beta."""
    ess: np.ndarray
    """float (P,): the effective sample size of each prompt, 1 to n."""
    J_by_prompt: np.ndarray
    """float (P,): J* of each prompt, jackknifed; its mean is J."""
    J_ref_by_prompt: np.ndarray
    """float (P,): the reference's E[score] of each prompt; its mean is J_ref."""
    unseen: float | None = None
    """By how much J* would grow if texts of the highest possible score had the probability 3 / (P n), the upper 95%
    confidence limit of a probability of which P n samples had no case; None if no highest score was given."""

    @property
    def trusted(self) -> bool:
        """Whether J may be used as the optimum; else it is a lower bound."""
        return not self.doubts()

    def doubts(self) -> list[str]:
        """Why the estimate is no more than a lower bound, in sentences; empty if it may be used."""
        found = []
        enough = float((self.ess >= ENOUGH_ESS).mean())
        if enough < ENOUGH_PROMPTS:
            found.append(
                f"{1 - enough:.0%} of the prompts have fewer than {ENOUGH_ESS:g} effective samples (least"
                f" {self.ess.min():.1f}): sample more, or raise beta"
            )
        gain = self.J.mean - self.J_ref.mean
        if gain <= ROUNDING * self.beta:
            found.append(
                "all samples of a prompt score alike, so nothing is known of what could be gained: sample more, or give"
                " a reward that tells the reference's texts apart"
            )
            return found
        gap = abs(self.J.mean - self.J_plain)
        if gap > CLOSE * gain:
            found.append(
                f"the jackknife moves J* by {gap:.2g}, more than {CLOSE:.0%} of the gain {gain:.2g}: sample more, or"
                " raise beta"
            )
        if self.unseen is not None and self.unseen > UNSEEN * gain:
            found.append(
                f"texts of the highest possible score, too rare for {self.samples.sum()} samples, could add"
                f" {self.unseen:.2g} to the gain {gain:.2g}: sample more, or raise beta"
            )
        return found

    def attained(self, J: float | np.ndarray, se: float = 0.0) -> Estimate:
        """The share of what can be gained, (J - J_ref) / (J* - J_ref), with its standard error.

        Args:
            J: E[score] - beta KL of an agent on the same prompts: float (P,), one of each prompt in their order,
                where the error is that of a ratio of means over the same prompts; or their mean alone, where the
                errors of J and of J* are taken as independent and the reference's is left out.
            se: the standard error of a mean.

        Raises:
            ConfigurationError: nothing can be gained, because all samples of the reference score alike; or J is
                of another number of prompts.
        """
        gain = self.J.mean - self.J_ref.mean
        if gain <= ROUNDING * self.beta:
            raise ConfigurationError(
                "nothing can be gained over the reference: its samples all score alike, so no share is attained"
            )
        if isinstance(J, np.ndarray):
            if J.shape != self.J_by_prompt.shape:
                raise ConfigurationError(
                    f"the ceiling is that of {self.prompts} prompts and J has the shape {J.shape}: measure both on the"
                    " same prompts"
                )
            return Estimate.ratio(J - self.J_ref_by_prompt, self.J_by_prompt - self.J_ref_by_prompt)
        share = (J - self.J_ref.mean) / gain
        own = 0.0 if math.isnan(self.J.se) else self.J.se
        return Estimate(share, math.hypot(se, share * own) / gain)


@dataclass(frozen=True)
class FrontierPoint:
    """The best E[score] at a KL, reached by the optimum at this beta."""

    beta: float
    KL: float
    score: float
    ess: float
    """The median effective sample size; below about 10 the point is a lower bound."""


def ceiling(scores: ReferenceScores, beta: float, highest: float | None = None) -> Ceiling:
    """Estimate the ceiling at a beta.

    Args:
        scores: float (P, n), or P arrays (n,) of their own lengths: the paid scores of n >= 2 independent samples
            of the reference for each of P prompts, drawn at the temperature of the task.
        beta: weight of the KL penalty, score per nat.
        highest: a number that no score can exceed, where there is one; then `Ceiling.trusted` also asks what
            texts that were never sampled could add.

    Raises:
        ConfigurationError: beta is not a positive number, or the scores are not P rows of at least 2 finite numbers.
    """
    check_number("beta", beta, low=0.0, above=True)
    rows = checked_scores(scores)
    sizes = np.array([len(row) for row in rows])
    value, plain, score, ess = np.empty((4, len(rows)))
    for size in np.unique(sizes):
        chosen = np.flatnonzero(sizes == size)
        value[chosen], plain[chosen], score[chosen], ess[chosen] = tilted(np.stack([rows[i] for i in chosen]), beta)
    return assemble(
        beta=float(beta),
        samples=sizes,
        J_ref=np.array([row.mean() for row in rows]),
        J=value,
        J_plain=float(plain.mean()),
        score=score,
        ess=ess,
        highest=highest,
    )


def assemble(
    *,
    beta: float,
    samples: np.ndarray,
    J_ref: np.ndarray,
    J: np.ndarray,
    J_plain: float,
    score: np.ndarray,
    ess: np.ndarray,
    highest: float | None,
) -> Ceiling:
    """A ceiling from what is known of each prompt, (P,) each; `highest` as in `ceiling`."""
    unseen = None
    if highest is not None:
        log_gain = math.log(3 / samples.sum()) + (highest - float(J.mean())) / beta
        unseen = beta * float(np.logaddexp(0, log_gain))
    return Ceiling(
        beta=beta,
        prompts=len(J),
        samples=samples,
        J_ref=Estimate.of(J_ref),
        J=Estimate.of(J),
        J_plain=J_plain,
        score=Estimate.of(score),
        KL=Estimate.of((score - J) / beta),
        ess=ess,
        J_by_prompt=J,
        J_ref_by_prompt=J_ref,
        unseen=unseen,
    )


def frontier(scores: ReferenceScores, betas: Sequence[float]) -> list[FrontierPoint]:
    """The largest score that can be had at each KL: the optimum's score over its KL, as beta varies.

    Args:
        scores: as in `ceiling`.
        betas: positive numbers, in any order.
    """
    points = []
    for beta in betas:
        found = ceiling(scores, beta)
        points.append(FrontierPoint(found.beta, found.KL.mean, found.score.mean, float(np.median(found.ess))))
    return points


def pass_rate_ceiling(rate: float, beta: float) -> float:
    """J* for scores of 0 and 1: beta log(1 - p + p exp(1 / beta)), p the reference's rate of 1.

    Args:
        rate: p, 0 to 1.
        beta: weight of the KL penalty, score per nat.
    """
    check_number("rate", rate, low=0.0, high=1.0)
    check_number("beta", beta, low=0.0, above=True)
    if rate == 0:
        return 0.0
    log_pass = math.log(rate) + 1 / beta
    log_fail = math.log1p(-rate) if rate < 1 else -math.inf
    return float(beta * np.logaddexp(log_pass, log_fail))


def upper_bound(scores: ReferenceScores, beta: float, highest: float, rng: np.random.Generator) -> Estimate:
    """An estimate of J* that errs upward, from exact samples of the optimum by rejection.

    A sample of the reference is accepted with probability exp((score - highest) / beta), and what is
    accepted is a sample of pi*.  Under pi*, E[exp(-score / beta)] = 1 / Z, so by Jensen's inequality
    -beta log of the mean of exp(-score / beta) over accepted samples is high on average.  With
    `Ceiling.J_plain`, which is low on average, it brackets J*.

    Args:
        scores: as in `ceiling`; prompts without an accepted sample are left out of the mean.
        highest: a number that no score can exceed.

    Raises:
        ConfigurationError: a score exceeds `highest`, or too few prompts (below half) have an accepted sample.
    """
    rows = checked_scores(scores)
    check_number("beta", beta, low=0.0, above=True)
    largest = max(row.max() for row in rows)
    if largest > highest:
        raise ConfigurationError(f"a score of {largest:g} exceeds highest={highest:g}: give a larger bound")
    accepted = [np.log(rng.random(len(row))) < (row - highest) / beta for row in rows]
    bounds = [
        -beta * float(np.logaddexp.reduce(-row[taken] / beta) - math.log(taken.sum()))
        for row, taken in zip(rows, accepted, strict=True)
        if taken.any()
    ]
    if len(bounds) < len(rows) / 2:
        raise ConfigurationError(
            f"only {len(bounds)} of {len(rows)} prompts have a sample that rejection accepts: give more samples, or a"
            " lower bound on the scores"
        )
    return Estimate.of(np.array(bounds))
