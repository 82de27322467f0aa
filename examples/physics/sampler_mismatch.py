"""Where training comes to rest if texts are sampled with other probabilities than the trainer computes.

    python examples/physics/sampler_mismatch.py

Exact expected updates on T0. The sampler has another temperature, other rounding, or top-p; the trainer ignores that,
or weights tokens or texts by truncated ratios, as `agents.Updating(ratio_limit=...)` does.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from drawing import BLUE, GREEN, ORANGE, PURPLE, annotate, new_figure, number, run, table
from exact import Rest, clipped, normalized, per_token, probabilities, settle, total_variation
from matplotlib.figure import Figure
from samplers import Sampler, bfloat16, fixed_error, mismatch, temperature, top_p

from lm_env import TokenMDP
from lm_env.theory import fixed_point
from lm_env.theory.credit import Credits

BETA, LIMIT, CLIP = 0.5, 2.0, 0.2  # LIMIT: the largest weight; CLIP: the clipped ratio stays within 1 - CLIP, 1 + CLIP
RARE = 1e-3  # the update of a token is divided by its probability, but by no less than this
TEMPERATURES = np.linspace(0.6, 1.4, 17)


class Trainer(NamedTuple):
    """An update on texts that were sampled with other probabilities: its KL penalty and its importance weights."""

    kl: str  # "own": k1 of the trainer's logprobs in the reward; "sampler": of the sampler's; "k3": k3 in the loss
    weights: str = "none"  # "token", "sequence": truncated ratios; "clipped": PPO's, to the sampler, of the score alone


TRAINERS = {
    "k1, own": Trainer("own"),
    "k1, sampler's": Trainer("sampler"),
    "k1, sampler's, clipped": Trainer("sampler", "clipped"),
    "k3": Trainer("k3"),
    "k3, clipped": Trainer("k3", "clipped"),
    "k3, token weights": Trainer("k3", "token"),
    "k3, text weights": Trainer("k3", "sequence"),
}


def direction(mdp: TokenMDP, policy: np.ndarray, sampled: np.ndarray, trainer: Trainer) -> np.ndarray:
    """The expected update (S, V), divided by the visits of each state and by the probability of each token.

    Without a mismatch this is the natural gradient.  The divisions do not change where the update is zero.
    """
    credits = Credits(mdp, policy, BETA, behavior=sampled)
    returns = credits.scores[:, 0]
    if trainer.kl != "k3":
        log_ratio = credits.log_ratio if trainer.kl == "own" else credits.paid_k1
        returns = returns - BETA * log_ratio.sum(1)
    advantage = np.where(credits.real, (returns - credits.probabilities @ returns)[:, None], 0.0)  # as RLOO
    if trainer.weights == "clipped":
        advantage = clipped(credits.ratio("token"), advantage, CLIP) * advantage
    credit = advantage - BETA * credits.kl("k3_loss") if trainer.kl == "k3" else advantage
    if trainer.weights in ("token", "sequence"):
        credit = np.minimum(credits.ratio(trainer.weights), LIMIT) * credit
    _, mass = per_token(credits, credit)
    visits = mass.sum(1, keepdims=True)
    step = np.divide(credits.gradient(credit), visits, out=np.zeros_like(policy), where=visits > 1e-12)
    return step / np.maximum(np.exp(policy), RARE)


def rest(mdp: TokenMDP, sampler: Sampler, trainer: Trainer) -> Rest:
    """Where the updates lead from the reference."""
    return settle(mdp, lambda policy: direction(mdp, policy, sampler(policy), trainer), rate=0.2)


def intended(mdp: TokenMDP, trainer: Trainer) -> np.ndarray:
    """The distribution (N,) over texts at which the same trainer comes to rest without a mismatch."""
    return probabilities(mdp, fixed_point(mdp, BETA, "k3_loss" if trainer.kl == "k3" else "gibbs"))


def report() -> str:
    """The table of the page: a row for each sampler, a column for each of TRAINERS."""
    mdp = TokenMDP.t0()
    samplers: dict[str, Sampler] = {f"temperature {t:g}": temperature(t) for t in (0.7, 0.9, 1.05, 1.4)}
    samplers |= {"bfloat16 logits": bfloat16, "logit errors, std .05": fixed_error(0.05), "top-p .95": top_p(0.95)}
    rows = []
    for name, sampler in samplers.items():
        best = normalized(mdp.optimum(BETA).policy_logits)
        row = [name, number(mismatch(mdp, best, sampler(best)))]
        for trainer in TRAINERS.values():
            found = rest(mdp, sampler, trainer)
            off = total_variation(probabilities(mdp, found.policy), intended(mdp, trainer))
            row.append(number(off) if found.settled else "no rest")
        rows.append(row)
    return table(["sampler", "nats per token", *TRAINERS], rows)


def draw(temperatures: np.ndarray = TEMPERATURES) -> Figure:
    """How far each trainer comes to rest from where it should, over the sampler's temperature."""
    mdp = TokenMDP.t0()
    figure, axes = new_figure()
    curves = {
        "k1, own": ("black", "k1 of the trainer's logprobs in the reward", (0.63, -0.012)),
        "k1, sampler's": (BLUE, "k1 of the sampler's\nlogprobs in the reward", (0.75, 0.18)),
        "k3": (ORANGE, "k3 in the loss", (1.15, 0.135)),
        "k3, token weights": (PURPLE, "k3, token\nweights up to 2", (1.28, 0.052)),
        "k3, text weights": (GREEN, "k3, text weights up to 2", (1.1, 0.012)),
    }
    for name, (color, text, at) in curves.items():
        found = [rest(mdp, temperature(t), TRAINERS[name]) for t in temperatures]
        goal = intended(mdp, TRAINERS[name])
        axes.plot(temperatures, [total_variation(probabilities(mdp, r.policy), goal) for r in found], color=color)
        annotate(axes, *at, text, color)
    axes.set(
        xlabel="temperature of the sampler; the trainer's is 1", ylabel="total variation from where it should rest"
    )
    axes.set(ylim=(-0.03, None), xlim=(TEMPERATURES[0], TEMPERATURES[-1]))
    axes.set_title("Training on a sampler with another temperature")
    return figure


if __name__ == "__main__":
    run("sampler_mismatch", __doc__.partition("\n")[0], report, draw)
