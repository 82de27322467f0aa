"""The model of Dawid and Skene: from votes alone, how reliable each annotator is and which response is better.

Each unit has a hidden truth: the first response is better, the second is, or they tie.  An annotator w says the truth
with probability a_w, the accuracy.  If one response is better, a wrong vote is "tie" in a certain share of cases, and
otherwise the worse response; if the pair ties, a wrong vote is either response with probability 1/2.  That share, and
how often pairs tie, are the same for all annotators and are estimated together with the accuracies.  The order of the
two responses carries no information.

The posterior mode is found by expectation maximization, and the intervals are those of the Laplace approximation: the
inverse of the exact second derivative, in log odds, of the log posterior summed over the hidden truths.

Source: Dawid & Skene 1979, with one accuracy for each annotator instead of a matrix of confusions.

Shapes: M votes, U units, W annotators, Z hidden truths (FIRST, SECOND, TIE), Q = W + 2 parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lm_env.errors import ConfigurationError
from lm_env.validation import check_number
from reward_models.labelling.posterior.votes import TIE, Votes
from reward_models.trust.statistics import Z95

__all__ = ["AnnotatorPosterior", "fit_annotators", "flip_rates"]

PRIOR = (1.0, 0.5)
"""The Beta prior of an accuracy: mean 2/3, and as informative as one and a half votes with known truth."""
SHARE_PRIOR = (1.0, 1.0)
"""The uniform Beta prior of the share of ties among pairs, and of "tie" among wrong votes."""
MOST_STEPS = 2000
TOLERANCE = 1e-9


@dataclass(frozen=True)
class AnnotatorPosterior:
    """What is known of annotators and units.

    Attributes:
        annotators: (W,) names.
        accuracy: float64 (W,), the probability that an annotator says the truth.
        low, high: float64 (W,), its 95% interval.
        votes: int64 (W,), votes of each annotator.
        truth: float64 (U, 3), the probability of FIRST, SECOND and TIE of each unit.
        ties: the share of pairs that tie.
        tie_errors: the share of "tie" among the errors on pairs that do not tie.
    """

    annotators: tuple[str, ...]
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray
    votes: np.ndarray
    truth: np.ndarray
    ties: float
    tie_errors: float


def fit_annotators(
    votes: Votes, *, prior: tuple[float, float] = PRIOR, tolerance: float = TOLERANCE
) -> AnnotatorPosterior:
    """The posterior over the accuracy of each annotator and the truth of each unit.

    Without units that several annotators judged, the data say nothing of accuracies, and the intervals are as wide as
    the prior.

    Args:
        prior: a and b of the Beta distribution of an accuracy; a > b says that annotators are better than chance,
            without which truth and its opposite could not be told apart.
        tolerance: the fit has converged when no probability moves by more.

    Raises:
        ConfigurationError: there are no votes, or a number of the prior is not above 0.
    """
    if not len(votes.unit):
        raise ConfigurationError("there are no votes: at least one answer that is not a skip is needed")
    for value in prior:
        check_number("prior", value, low=0.0, above=True)
    model = _Model(votes, prior)
    model.maximize(tolerance)
    low, high = model.interval()
    return AnnotatorPosterior(
        votes.annotators,
        model.accuracy,
        low,
        high,
        np.bincount(votes.annotator, minlength=len(votes.annotators)),
        model.truth(),
        model.ties,
        model.tie_errors,
    )


def flip_rates(accuracy: np.ndarray) -> np.ndarray:
    """The probability that each annotator's choice is reversed, (W,), from their accuracies (W,).

    Even reliable people disagree about two responses that are nearly alike, and the Bradley-Terry model accounts for
    that.  So only what an annotator's accuracy lacks relative to the most reliable annotator's is their own noise:
    2 a_w - 1 = (2 a_best - 1) (1 - 2 flip_w).
    """
    edge = np.clip(2 * np.asarray(accuracy, dtype=np.float64) - 1, 1e-3, None)
    return (1 - edge / edge.max()) / 2


class _Model:
    """The parameters, and what the votes say of them."""

    def __init__(self, votes: Votes, prior: tuple[float, float]) -> None:
        self.v = votes
        self.prior = prior
        self.has_ties = bool((votes.value == TIE).any())
        self.accuracy = np.full(len(votes.annotators), prior[0] / sum(prior))
        self.ties = 0.2 if self.has_ties else 0.0
        self.tie_errors = 0.5 if self.has_ties else 0.0
        truth = np.arange(3)
        self.right = votes.value[:, None] == truth  # (M, Z): whether the vote is the truth z
        decided = truth[None, :] != TIE
        self.says_tie = ~self.right & decided & (votes.value[:, None] == TIE)
        self.says_other = ~self.right & decided & (votes.value[:, None] != TIE)

    def maximize(self, tolerance: float = TOLERANCE) -> None:
        """Expectation maximization to the posterior mode, in log odds."""
        a, b = self.prior
        c, d = SHARE_PRIOR
        weight, who = self.v.weight, self.v.annotator
        size = len(self.accuracy)
        total = np.bincount(who, weight, minlength=size)
        for _ in range(MOST_STEPS):
            truth = self.truth()
            of_vote = truth[self.v.unit] * weight[:, None]  # (M, Z)
            right = np.bincount(who, (of_vote * self.right).sum(1), minlength=size)
            accuracy = (a + right) / (a + b + total)
            moved = float(np.abs(accuracy - self.accuracy).max())
            self.accuracy = accuracy
            if self.has_ties:
                tie, other = float((of_vote * self.says_tie).sum()), float((of_vote * self.says_other).sum())
                ties = (c + float(truth[:, TIE].sum())) / (c + d + len(truth))
                tie_errors = (c + tie) / (c + d + tie + other)
                moved = max(moved, abs(ties - self.ties), abs(tie_errors - self.tie_errors))
                self.ties, self.tie_errors = ties, tie_errors
            if moved < tolerance:
                break

    def truth(self) -> np.ndarray:
        """(U, Z), the probability of each truth of each unit."""
        logs = self._logs()
        logs -= logs.max(1, keepdims=True)
        found = np.exp(logs)
        return found / found.sum(1, keepdims=True)

    def log_posterior(self) -> float:
        """The log density of the parameters in log odds, up to a constant."""
        logs = self._logs()
        top = logs.max(1)
        found = float((top + np.log(np.exp(logs - top[:, None]).sum(1))).sum())
        pairs = [(self.accuracy, self.prior)]
        if self.has_ties:
            pairs += [(np.array([self.ties, self.tie_errors]), SHARE_PRIOR)]
        return found + sum(float((a * np.log(p) + b * np.log1p(-p)).sum()) for p, (a, b) in pairs)

    def _logs(self) -> np.ndarray:
        """(U, Z): log prior of each truth plus log probability of the votes under it."""
        with np.errstate(divide="ignore"):
            truth = np.log([(1 - self.ties) / 2, (1 - self.ties) / 2, self.ties])
            errors = np.where(
                self.says_tie, np.log(self.tie_errors), np.where(self.says_other, np.log1p(-self.tie_errors), 0)
            )
        accuracy = self.accuracy[self.v.annotator][:, None]
        of_vote = np.where(self.right, np.log(accuracy), np.log1p(-accuracy) + errors - np.log(2) * self._on_tie())
        logs = np.tile(truth, (len(self.v.units), 1))
        np.add.at(logs, self.v.unit, of_vote * self.v.weight[:, None])
        return logs

    def _on_tie(self) -> np.ndarray:
        """(M, Z): whether the vote prefers a response although z is a tie; there are two such wrong votes."""
        return ~(self.right | self.says_tie | self.says_other)

    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """95% intervals of the accuracies."""
        covariance = np.linalg.inv(-self.second_derivative())
        size = len(self.accuracy)
        half = Z95 * np.sqrt(np.clip(np.diag(covariance)[:size], 0, None))
        middle = np.log(self.accuracy) - np.log1p(-self.accuracy)
        return 1 / (1 + np.exp(half - middle)), 1 / (1 + np.exp(-half - middle))

    def second_derivative(self) -> np.ndarray:
        """(Q, Q), of the log posterior by the log odds of accuracies, ties and tie errors; (W, W) without ties.

        The log posterior is a sum of logarithms of sums over truths z of exp(f_z).  With r_z the share of each term in
        such a sum, the second derivative of its logarithm is sum r_z (f_z'' + f_z' f_z'^T) - g g^T, g = sum r_z f_z'.
        """
        size, units = len(self.accuracy), len(self.v.units)
        extra = 2 if self.has_ties else 0
        slope = np.zeros((units, 3, size + extra))
        curve = np.zeros((units, 3, size + extra))
        a, weight = self.accuracy[self.v.annotator][:, None], self.v.weight[:, None]
        for z in range(3):
            np.add.at(slope[:, z], (self.v.unit, self.v.annotator), ((self.right - a) * weight)[:, z])
            np.add.at(curve[:, z], (self.v.unit, self.v.annotator), (-a * (1 - a) * weight)[:, 0])
        diagonal = -sum(self.prior) * self.accuracy * (1 - self.accuracy)
        if self.has_ties:
            t, e = self.ties, self.tie_errors
            slope[:, :, size] = np.array([-t, -t, 1 - t])
            curve[:, :, size] = -t * (1 - t)
            wrong = self.says_tie | self.says_other
            np.add.at(slope[:, :, size + 1], self.v.unit, np.where(wrong, self.says_tie - e, 0) * weight)
            np.add.at(curve[:, :, size + 1], self.v.unit, -e * (1 - e) * wrong * weight)
            diagonal = np.append(diagonal, [-sum(SHARE_PRIOR) * t * (1 - t), -sum(SHARE_PRIOR) * e * (1 - e)])
        share = self.truth()
        weighted = (slope * np.sqrt(share)[:, :, None]).reshape(units * 3, -1)
        mean = np.einsum("uz,uzq->uq", share, slope)
        own = np.einsum("uz,uzq->q", share, curve)
        return weighted.T @ weighted - mean.T @ mean + np.diag(own + diagonal)
