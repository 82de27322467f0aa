"""Gold against proxy score as a policy is optimized for the proxy, exactly.

    python examples/physics/over_optimization.py

T0 has 40 texts, and its gold score likes B. The proxies pay a bonus, their flaw, for every text with two C in a row.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from drawing import BLUE, GRAY, GREEN, OCHRE, ORANGE, PURPLE, annotate, new_figure, number, run, table
from exact import best_of, kl, probabilities, tilted
from matplotlib.figure import Figure

from lm_env import TokenMDP

FLAWS = {0.0: GRAY, 2.0: GREEN, 2.5: BLUE, 3.0: ORANGE, 4.0: PURPLE}
BETAS = np.geomspace(100, 0.05, 200)
SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Point(NamedTuple):
    """A policy: its distance d = sqrt(KL) from the reference, and its mean scores."""

    d: float
    proxy: float
    gold: float


def proxy_scores(mdp: TokenMDP, flaw: float) -> np.ndarray:
    """The gold score (N,) of each text, plus `flaw` where CC occurs."""
    tokens = mdp.enumeration.tokens
    c = mdp.tokens.index("C")
    return mdp.scores() + flaw * ((tokens[:, :-1] == c) & (tokens[:, 1:] == c)).any(1)


def point(mdp: TokenMDP, flaw: float, policy: np.ndarray) -> Point:
    """A policy, given as a distribution (N,) over texts, in the coordinates of the figure."""
    reference = probabilities(mdp, mdp.reference_logits)
    distance = max(kl(policy, reference), 0.0) ** 0.5
    return Point(distance, float(policy @ proxy_scores(mdp, flaw)), float(policy @ mdp.scores()))


def optimum(mdp: TokenMDP, flaw: float, beta: float) -> np.ndarray:
    """The best policy (N,) by E[proxy] - beta KL."""
    return tilted(probabilities(mdp, mdp.reference_logits), proxy_scores(mdp, flaw), beta)


def covariance(p: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """The covariance of a and b, functions (N,) of the text, under the distribution p (N,)."""
    return float(p @ ((a - p @ a) * (b - p @ b)))


def slope(mdp: TokenMDP, flaw: float) -> tuple[float, float]:
    """Correlation rho of proxy and gold under the reference, and d gold / d sqrt(KL) there: sqrt(2) rho sd(gold)."""
    reference = probabilities(mdp, mdp.reference_logits)
    proxy, gold = proxy_scores(mdp, flaw), mdp.scores()
    sd = covariance(reference, gold, gold) ** 0.5
    rho = covariance(reference, gold, proxy) / sd / covariance(reference, proxy, proxy) ** 0.5
    return rho, 2**0.5 * rho * sd


def peak_beta(mdp: TokenMDP, flaw: float) -> float:
    """The beta of the largest gold score, where proxy and gold become uncorrelated; 0 if they never do."""
    gold, proxy = mdp.scores(), proxy_scores(mdp, flaw)
    falling = [beta for beta in BETAS if covariance(optimum(mdp, flaw, beta), gold, proxy) < 0]
    if not falling:
        return 0.0
    low, high = falling[0], falling[0] * BETAS[0] / BETAS[1]
    for _ in range(60):
        middle = (low * high) ** 0.5
        negative = covariance(optimum(mdp, flaw, middle), gold, proxy) < 0
        low, high = (middle, high) if negative else (low, middle)
    return high


def report() -> str:
    """The table of the page, a row for each flaw."""
    mdp = TokenMDP.t0()
    rows = []
    for flaw in FLAWS:
        rho, rise = slope(mdp, flaw)
        beta, end = peak_beta(mdp, flaw), point(mdp, flaw, optimum(mdp, flaw, BETAS[-1]))
        top = point(mdp, flaw, optimum(mdp, flaw, beta or BETAS[-1]))
        at = [number(beta, 2), number(top.d**2, 2), number(top.gold)] if beta else ["none", "", ""]
        rows.append([f"{flaw:g}", number(rho, 2), number(rise, 2), *at, number(end.proxy, 2), number(end.gold, 2)])
    head = ["flaw", "correlation", "first slope", "peak: beta", "KL", "gold", "end: proxy", "gold"]
    return table(head, rows)


def draw() -> Figure:
    """Gold score over sqrt(KL), a curve for each flaw."""
    mdp = TokenMDP.t0()
    figure, axes = new_figure()
    reference = probabilities(mdp, mdp.reference_logits)
    for flaw, color in FLAWS.items():
        curve = np.array([point(mdp, flaw, optimum(mdp, flaw, beta)) for beta in BETAS])
        axes.plot(curve[:, 0], curve[:, 2], color=color)
        end = "no flaw: gold = proxy" if flaw == 0 else f"flaw {flaw:g}"
        at = {0.0: (1.52, 1.45), 2.0: (1.84, 1.21), 2.5: (1.8, 0.49), 3.0: (1.5, 0.37), 4.0: (1.2, -0.07)}[flaw]
        annotate(axes, *at, end, color, ha="right" if flaw == 4 else "left")
        if beta := peak_beta(mdp, flaw):
            top = point(mdp, flaw, optimum(mdp, flaw, beta))
            axes.plot(top.d, top.gold, "o", color=color)
        if flaw == 3:
            axes.plot(curve[:, 0], curve[:, 1], "--", color=color, linewidth=1.2)
            annotate(axes, 1.24, 1.9, "proxy of flaw 3", color, ha="right")
            best = [point(mdp, flaw, best_of(reference, proxy_scores(mdp, flaw), n)) for n in SAMPLES]
            axes.plot([b.d for b in best], [b.gold for b in best], "^", color=OCHRE, markersize=5)
            annotate(axes, best[-2].d, -0.28, "best of n, flaw 3", OCHRE, ha="right")
    axes.set(xlabel="d = sqrt(KL to the reference), nats$^{1/2}$", ylabel="mean score", ylim=(-0.4, 2.1), xlim=(0, 2.3))
    axes.set_title("Gold score of policies optimized for a flawed proxy")
    return figure


if __name__ == "__main__":
    run("over_optimization", __doc__.partition("\n")[0], report, draw)
