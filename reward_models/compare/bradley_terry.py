"""One number for each model from all comparisons: Bradley-Terry strengths with ties, and the same on Elo's scale.

Davidson's model of ties: with strengths s and a tie parameter t,

    P(i beats j)      = exp(s_i) / Z
    P(i and j tie)    = exp(t + (s_i + s_j) / 2) / Z
    Z                 = exp(s_i) + exp(s_j) + exp(t + (s_i + s_j) / 2)

Without ties it is the model of Bradley and Terry.  The log-likelihood is concave, and Newton's method maximizes it.

`reward_models.labelling.posterior.bradley_terry` fits another model, for the responses to a prompt instead of whole
language models: a tie is half a win for each side, annotators may be unreliable, and errors come from the second
derivative of the log posterior.  Without ties and unreliable annotators both have the same maximum.

Sources: Bradley & Terry 1952; Davidson 1970, "On extending the Bradley-Terry model to accommodate ties in paired
comparison experiments".  Elo's scale: Elo 1978.

Shapes: M models, R pairs of them, P prompts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lm_env.errors import ConfigurationError
from lm_env.validation import check_integer
from reward_models.compare.outcomes import Outcomes

__all__ = ["ELO_MEAN", "ELO_PER_NAT", "Strength", "bradley_terry", "fit_davidson"]

ELO_PER_NAT = 400 / math.log(10)
ELO_MEAN = 1000.0

PRIOR_SD = 10.0
"""Standard deviation, in nats, of a normal prior of each strength and of t, so that a model that always wins has a
finite strength."""

MOST_STEPS = 200


@dataclass(frozen=True)
class Strength:
    """What a model is worth, in nats of log-odds; the mean over the models is 0.

    Attributes:
        mean, error: the estimate and its standard error, the standard deviation over resampled prompts.
        low, high: the 95% interval over resampled prompts.
    """

    name: str
    mean: float
    error: float
    low: float
    high: float

    @property
    def elo(self) -> tuple[float, float, float]:
        """(estimate, low, high) on Elo's scale, on which the mean over the models is 1000.

        It is the same number in other units, 400 / ln 10 points for a nat: 400 points are odds of 10 to 1.
        """
        low, mean, high = (ELO_MEAN + ELO_PER_NAT * x for x in (self.low, self.mean, self.high))
        return mean, low, high


def bradley_terry(outcomes: Outcomes, *, resamples: int = 1000, seed: int = 0) -> list[Strength]:
    """The strength of each model, in the models' order.

    The intervals come from a bootstrap over prompts, because the comparisons on one prompt are not independent.  If a
    judge scores the responses of three models, for example, the third comparison often follows from the other two.

    Raises:
        ConfigurationError: the models fall into groups that were never compared with each other.
    """
    check_integer("resamples", resamples, low=2)
    pairs = outcomes.pairs()
    models = len(outcomes.names)
    _check_connected(outcomes, pairs)
    counts = _counts(outcomes, pairs)
    best, tie = fit_davidson(counts.sum(axis=0), pairs, models)
    rng = np.random.default_rng(seed)
    prompts = len(counts)
    flat = counts.reshape(prompts, -1)
    drawn = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples) @ flat
    found = np.array(
        [fit_davidson(row.reshape(counts.shape[1:]), pairs, models, start=(best, tie))[0] for row in drawn]
    )
    low, high = np.quantile(found, [0.025, 0.975], axis=0)
    errors = found.std(axis=0, ddof=1)
    return [
        Strength(name, float(best[i]), float(errors[i]), float(low[i]), float(high[i]))
        for i, name in enumerate(outcomes.names)
    ]


def fit_davidson(
    counts: np.ndarray, pairs: list[tuple[int, int]], models: int, *, start: tuple[np.ndarray, float] | None = None
) -> tuple[np.ndarray, float]:
    """(strengths (M,) of mean 0, the tie parameter t; -inf where there are no ties) at the maximum of the likelihood.

    Args:
        counts: (R, 3), how often the first of each pair won, how often the second did, and how often they tied.
    """
    ties = bool(counts[:, 2].sum() > 0)
    features = _features(pairs, models)
    kinds = slice(None) if ties else slice(2)
    features, counts = features[:, kinds, : models + ties], counts[:, kinds]
    begin, tie = start if start is not None else (np.zeros(models), 0.0)
    flat = features.reshape(-1, models + ties)
    own = np.concatenate([begin, [tie if math.isfinite(tie) else 0.0]])[: models + ties]
    total = counts.sum(axis=1)
    prior = np.eye(len(own)) / PRIOR_SD**2
    for _ in range(MOST_STEPS):
        utility = features @ own
        p = np.exp(utility - utility.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        mean = (p[:, None] @ features)[:, 0]
        expected = (total[:, None] * p).reshape(-1, 1)
        gradient = (counts.reshape(-1) - expected[:, 0]) @ flat - prior @ own
        hessian = flat.T @ (expected * flat) - mean.T @ (total[:, None] * mean) + prior
        step = np.linalg.solve(hessian, gradient)
        own = own + step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-9:
            break
    strengths = own[:models] - own[:models].mean()
    return strengths, float(own[models]) if ties else -math.inf


def _features(pairs: list[tuple[int, int]], models: int) -> np.ndarray:
    """(R, 3, M + 1): what the log-odds of a first win, a second win and a tie are linear in."""
    features = np.zeros((len(pairs), 3, models + 1))
    for r, (i, j) in enumerate(pairs):
        features[r, 0, i] = 1.0
        features[r, 1, j] = 1.0
        features[r, 2, [i, j]] = 0.5
        features[r, 2, models] = 1.0
    return features


def _counts(outcomes: Outcomes, pairs: list[tuple[int, int]]) -> np.ndarray:
    """(P, R, 3): the weight of the wins, losses and ties of each pair on each prompt."""
    _, prompt = np.unique(outcomes.prompt, return_inverse=True)
    number = {pair: r for r, pair in enumerate(pairs)}
    pair = np.array([number[int(a), int(b)] for a, b in zip(outcomes.first, outcomes.second, strict=True)])
    kind = np.select([outcomes.result == 1, outcomes.result == 0], [0, 1], 2)
    counts = np.zeros((int(prompt.max()) + 1, len(pairs), 3))
    np.add.at(counts, (prompt, pair, kind), outcomes.weights())
    return counts


def _check_connected(outcomes: Outcomes, pairs: list[tuple[int, int]]) -> None:
    group = list(range(len(outcomes.names)))
    for a, b in pairs:
        old, new = group[b], group[a]
        group = [new if g == old else g for g in group]
    if len(set(group)) > 1:
        apart = [name for name, g in zip(outcomes.names, group, strict=True) if g != group[0]]
        raise ConfigurationError(
            f"{', '.join(apart)} and {outcomes.names[0]} were never compared, not even by way of others: compare some"
            " of them, or rank them apart"
        )
