"""Best-of-n against the optimum, and against k3 in the loss, at matched KL, exactly.

    python examples/physics/best_of_n.py

The policies are distributions over the 40 texts of T0, so that KL and mean score are sums and not estimates.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from drawing import BLUE, GRAY, GREEN, ORANGE, annotate, new_figure, number, run, table
from exact import best_of, kl, probabilities
from matplotlib.figure import Figure

from lm_env import TokenMDP
from lm_env.theory import fixed_point

SAMPLES = (2, 4, 8, 16, 32, 64, 128, 256, 1024)
BETAS = np.geomspace(0.01, 100, 120)
Curve = Callable[[float], tuple[float, float]]
"""beta -> (KL, mean score)."""


def chosen(mdp: TokenMDP, n: int) -> tuple[float, float]:
    """KL and mean score of best-of-n."""
    reference = probabilities(mdp, mdp.reference_logits)
    policy = best_of(reference, mdp.scores(), n)
    return kl(policy, reference), float(policy @ mdp.scores())


def bound(n: int) -> float:
    """log n - (n - 1) / n: at least the KL of best-of-n, and equal to it where scores are continuous."""
    return math.log(n) - (n - 1) / n


def optimum(mdp: TokenMDP) -> Curve:
    """The policy with the largest E[score] - beta KL."""

    def curve(beta: float) -> tuple[float, float]:
        best = mdp.optimum(beta)
        return best.KL, best.R

    return curve


def k3_in_the_loss(mdp: TokenMDP) -> Curve:
    """Where GRPO without the division by a std, and by lengths, comes to rest."""

    def curve(beta: float) -> tuple[float, float]:
        found = mdp.evaluate(fixed_point(mdp, beta, "k3_loss"), beta)
        return found.KL, found.R

    return curve


def at_kl(curve: Curve, target: float) -> tuple[float, float]:
    """(beta, mean score) of the policy on a curve that has this KL, by bisection: the KL falls in beta."""
    low, high = 1e-3, 1e3
    for _ in range(40):
        beta = math.sqrt(low * high)
        low, high = (beta, high) if curve(beta)[0] > target else (low, beta)
    return beta, curve(beta)[1]


def report() -> str:
    """The table of the page: for each n, best-of-n beside the other two policies of the same KL."""
    mdp = TokenMDP.t0()
    untrained = float(probabilities(mdp, mdp.reference_logits) @ mdp.scores())
    rows = []
    for n in SAMPLES:
        distance, score = chosen(mdp, n)
        beta, best = at_kl(optimum(mdp), distance)
        _, k3_score = at_kl(k3_in_the_loss(mdp), distance)
        share = f"{(score - untrained) / (best - untrained):.1%}"
        figures = [number(value) for value in (bound(n), distance, score, best)]
        rows.append([str(n), *figures, number(beta), share, number(k3_score)])
    head = [
        "n",
        "log n - (n-1)/n",
        "KL",
        "score",
        "optimum at this KL",
        "its beta",
        "share of its gain",
        "k3 in the loss",
    ]
    return table(head, rows)


def draw() -> Figure:
    """Mean score over KL: two curves over beta, and a dot for each n."""
    mdp = TokenMDP.t0()
    figure, axes = new_figure()
    for curve, color in ((optimum(mdp), BLUE), (k3_in_the_loss(mdp), ORANGE)):
        points = np.array([curve(beta) for beta in BETAS])
        axes.plot(points[:, 0], points[:, 1], color=color)
    points = np.array([chosen(mdp, n) for n in SAMPLES])
    for n, (distance, score) in zip(SAMPLES, points, strict=True):
        axes.plot([distance, bound(n)], [score, score], color=GRAY, linewidth=1, linestyle=":")
        if n in (4, 8, 16):
            annotate(axes, distance, score, str(n), GREEN, xytext=(-5, 9), ha="right")
    axes.plot(points[:, 0], points[:, 1], "o", color=GREEN)
    axes.plot([bound(n) for n in SAMPLES], points[:, 1], "|", color=GRAY, markersize=9)
    limit = -math.log(probabilities(mdp, mdp.reference_logits)[mdp.scores().argmax()])
    axes.plot(limit, 2, "*", color="black", markersize=11)
    annotate(axes, limit, 2, "the best text alone", "black", xytext=(-4, 12), ha="right")
    annotate(axes, 1.05, 1.6, "the optimum", BLUE, ha="right")
    annotate(axes, 2.2, 1.35, "k3 in the loss", ORANGE)
    annotate(axes, 1.1, 0.62, "best of n, for n = 2, 4, 8, ...", GREEN)
    annotate(axes, 4.3, 1.75, "and where the bound\nlog n - (n-1)/n puts it", GRAY)
    axes.set(xlabel="KL to the reference, nats per response", ylabel="mean score", xlim=(0, 6.1), ylim=(-0.25, 2.2))
    axes.set_title("Score at matched KL")
    return figure


if __name__ == "__main__":
    run("best_of_n", __doc__.partition("\n")[0], report, draw)
