"""Where updates come to rest with k1, k2 or k3 in the reward, in the loss, and in the loss times the ratio.

    python examples/physics/kl_estimators.py

Exact expected updates of a table of logits on T0, by steps of the natural gradient, which adds to each logit the
advantage of its token. With x = log pi - log ref of a token: k1 = x, k2 = x^2 / 2, k3 = exp(-x) - 1 + x.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from drawing import BLUE, GRAY, GREEN, OCHRE, ORANGE, PURPLE, annotate, new_figure, number, run, table
from exact import Rest, per_token, probabilities, settle, total_variation
from matplotlib.figure import Figure

from lm_env import TokenMDP
from lm_env.theory.credit import Credits

K: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "k1": lambda x: x,
    "k2": lambda x: x**2 / 2,
    "k3": lambda x: np.expm1(-x) + x,
}
SLOPE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "k1": np.ones_like,
    "k2": lambda x: x,
    "k3": lambda x: -np.expm1(-x),
}
PLACES = ("reward", "loss", "loss x ratio")
BETA = 0.5
BETAS = np.geomspace(0.1, 3, 24)
CUT = 30.0
"""Log-ratios are clipped to this size: a token rarer than e^-30 is never sampled, and has no further effect."""


def credit(kind: str, place: str, credits: Credits) -> np.ndarray:
    """What the expected update credits each token of each text with, (N, T)."""
    x = np.clip(credits.log_ratio, -CUT, CUT)
    score = credits.score("end")  # each token is credited with the score of the whole text
    if place == "reward":  # every earlier token is credited with a token's penalty as well
        return score - credits.beta * credits.to_go(np.where(credits.real, K[kind](x), 0.0))
    slope = SLOPE[kind](x)  # grad k(x) = k'(x) grad log pi
    if place == "loss x ratio":  # grad (pi / old) k = k grad log pi where pi = old, in addition
        slope = slope + K[kind](x)
    return score - credits.beta * np.where(credits.real, slope, 0.0)


def rest(mdp: TokenMDP, beta: float, kind: str, place: str) -> Rest:
    """Where the updates lead, beginning at the reference."""

    def direction(policy: np.ndarray) -> np.ndarray:
        credits = Credits(mdp, policy, beta)
        mean, _ = per_token(credits, credit(kind, place, credits))
        return mean - (np.exp(policy) * mean).sum(1, keepdims=True)

    return settle(mdp, direction, rate=0.1 / max(1.0, 2 * beta), steps=1500)


@cache
def distance(beta: float, kind: str, place: str) -> float:
    """Total variation from the optimum of E[score] - beta KL, on T0."""
    mdp = TokenMDP.t0()
    return total_variation(probabilities(mdp, rest(mdp, beta, kind, place).policy), mdp.optimum(beta).distribution)


def report() -> str:
    """The table of the page: the fixed point of each estimator in each place, at BETA."""
    mdp = TokenMDP.t0()
    rows = []
    for place in PLACES:
        for kind in K:
            found = mdp.evaluate(rest(mdp, BETA, kind, place).policy, BETA)
            figures = (found.J, found.R, found.KL, found.tv)
            rows.append([kind, place, *(number(value) for value in figures)])
    return table(["estimator", "in the", "J", "E[score]", "KL", "total variation"], rows)


def draw(betas: np.ndarray = BETAS) -> Figure:
    """Total variation from the optimum over beta, for each estimator and place."""
    figure, axes = new_figure()
    curves = (
        ("k1", "loss", GRAY, "-", "k1 in the loss", (0.47, 0.97)),
        ("k3", "reward", PURPLE, "v", "k3 in the reward", (1.3, 0.79)),
        ("k2", "reward", ORANGE, "o", "k2 in the reward", (0.95, 0.38)),
        ("k2", "loss x ratio", OCHRE, "x", "k2 x ratio in the loss", (1.35, 0.45)),
        ("k3", "loss", GREEN, "-", "k3 in the loss", (0.5, 0.09)),
        ("k2", "loss", BLUE, "-", "in the loss: k2,\nk1 x ratio, k3 x ratio", (1.0, 0.235)),
        ("k1", "reward", "black", "-", "k1 in the reward", (1.3, -0.035)),
    )
    for kind, place, color, style, text, at in curves:
        axes.plot(betas, [distance(beta, kind, place) for beta in betas], style, color=color, markersize=5)
        annotate(axes, *at, text, color)
    axes.set(xscale="log", xlabel="beta, score per nat", ylabel="total variation from the optimum", ylim=(-0.07, 1.05))
    axes.set_xticks([0.1, 0.2, 0.5, 1, 2, 3], ["0.1", "0.2", "0.5", "1", "2", "3"])
    axes.minorticks_off()
    axes.set_title("How far from the optimum each KL penalty comes to rest")
    return figure


if __name__ == "__main__":
    run("kl_estimators", __doc__.partition("\n")[0], report, draw)
