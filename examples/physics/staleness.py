"""How far a policy can go on texts of an older one: without ratios, with ratios, clipped, or with the KL computed anew.

    python examples/physics/staleness.py

Gradient steps of a table of logits on T0, exact expectations over all texts, or means over a rollout of 256 texts.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from drawing import BLUE, GREEN, ORANGE, PURPLE, annotate, new_figure, number, run, table
from exact import clipped, kl, normalized, per_token, probabilities
from matplotlib.figure import Figure

from lm_env import TokenMDP
from lm_env.theory.credit import Credits

BETA, RATE, CLIP, TEXTS, SEEDS, STEPS = 0.5, 0.5, 0.2, 256, 4, 1024  # TEXTS in a sampled rollout, SEEDS sampled runs
SHOWN = (1, 16, 64, 256, 1024)
PER_ROLLOUT = (1, 16, 32, 64)
KINDS = ("no ratio", "token ratio", "clipped ratio", "text ratio, KL anew")


def gradient(policy: np.ndarray, old: Credits, kind: str, share: np.ndarray) -> np.ndarray:
    """The update (S, V) of a policy (logprobs (S, V)) from a rollout by `old`, of which each text is a share (N,)."""
    log_ratio = old.on_tokens(policy) - old.logprobs
    if kind == "text ratio, KL anew":
        k1 = old.log_ratio + log_ratio  # of the policy that is updated
        credit = np.exp(log_ratio.sum(1, keepdims=True)) * (old.score("end") - BETA * old.to_go(k1) - old.values)
    else:
        credit = old.to_go(old.rewards) - old.values  # fixed numbers, with the KL penalty of the old policy in them
        if kind == "clipped ratio":
            credit = clipped(np.exp(log_ratio), credit, CLIP) * credit
        elif kind == "token ratio":
            credit = np.exp(log_ratio) * credit
    tree = old.mdp.enumeration
    pull = np.zeros_like(policy)
    np.add.at(pull, (tree.states, tree.tokens), np.where(tree.real, share[:, None] * credit, 0.0))
    return pull - np.exp(policy) * pull.sum(1, keepdims=True)  # grad log pi(a) = 1 at a, less pi


@cache
def train(kind: str, per_rollout: int, seed: int | None = None) -> np.ndarray:
    """J and the share of effective texts, 1 / E[ratio^2], before and after each step, (steps + 1, 2).

    `per_rollout` steps are taken before a new rollout, which is sampled if there is a seed, and else has all texts.
    """
    mdp, rng = TokenMDP.t0(), np.random.default_rng(seed)
    policy = normalized(mdp.reference_logits)
    reference = probabilities(mdp, policy)
    old = Credits(mdp, policy, BETA)
    found = []
    for i in range(STEPS + 1):
        now = probabilities(mdp, policy)
        found.append((now @ mdp.scores() - BETA * kl(now, reference), 1 / (now @ (now / old.probabilities))))
        if i % per_rollout == 0:
            old = Credits(mdp, policy, BETA)
            share = now if seed is None else rng.multinomial(TEXTS, now / now.sum()) / TEXTS
        policy = normalized(policy + RATE * gradient(policy, old, kind, share))
    return np.array(found)


def largest_damped(mdp: TokenMDP) -> float:
    """The largest number K of steps on one rollout at which errors shrink near the optimum: 2 / (rate beta lambda).

    There K steps turn an error e of the logits into (1 - K rate beta F) e. The Fisher information F, whose largest
    eigenvalue is lambda, has a block visits(s) (diag pi - pi pi^T) for each state.
    """
    best = Credits(mdp, mdp.optimum(BETA).policy_logits, BETA)
    pi, visits = np.exp(best.policy), per_token(best, best.ones())[1].sum(1)
    blocks = visits[:, None, None] * (pi[:, :, None] * np.eye(mdp.vocab_size) - pi[:, :, None] * pi[:, None])
    return float(2 / (RATE * BETA * np.linalg.eigvalsh(blocks).max()))


def report() -> str:
    best = TokenMDP.t0().optimum(BETA).J
    curves = [train("token ratio", 1), *(train(kind, STEPS) for kind in KINDS)]
    noisy = np.array([train(KINDS[3], STEPS, seed)[:, 0] for seed in range(SEEDS)])
    one_rollout, many_rollouts = [], []
    for i in SHOWN:
        values = map(number, [*(curve[i, 0] for curve in curves), noisy[:, i].mean()])
        one_rollout.append([str(i), *values, f"{curves[4][i, 1]:.0%}"])
    for steps in PER_ROLLOUT:
        gaps = [best - train(kind, steps)[-1, 0] for kind in KINDS]
        gaps.append(best - np.mean([train(KINDS[3], steps, seed)[-1, 0] for seed in range(SEEDS)]))
        many_rollouts.append([str(steps), *(number(gap, 4) for gap in gaps)])
    first = table(["steps", "fresh texts", *KINDS, f"the same, {TEXTS} texts", "effective texts"], one_rollout)
    second = table(["K", *KINDS, f"the same, {TEXTS} texts"], many_rollouts)
    return (
        f"J after so many gradient steps on one rollout of the reference; the optimum has {best:.3f}:\n\n{first}\n\n"
        f"The gap J\\* - J after {STEPS} steps, with a new rollout after each K of them:\n\n{second}\n\n"
        f"Near the optimum, K steps on one rollout are damped up to K = {largest_damped(TokenMDP.t0()):.1f}."
    )


def draw() -> Figure:
    figure, axes = new_figure()
    for seed in range(SEEDS):
        axes.plot(train(KINDS[3], STEPS, seed)[:, 0], color=GREEN, linewidth=1)
    annotate(axes, 200, 0.36, "the same from 256\ntexts, four times", GREEN)
    curves = (
        (PURPLE, "no ratio", (330, -0.26)),
        (ORANGE, "token ratio", (330, -0.07)),
        (BLUE, "clipped token ratio", (200, 0.12)),
        ("black", "text ratio, KL computed anew:\nthe same as fresh texts at each step", (1.1, 0.33)),
    )
    for kind, (color, text, at) in zip(KINDS, curves, strict=True):
        axes.plot(train(kind, STEPS)[:, 0], color=color)
        annotate(axes, *at, text, color)
    axes.axhline(TokenMDP.t0().optimum(BETA).J, color="black", linewidth=1, linestyle=":")
    annotate(axes, 1.1, 0.55, "the optimum", "black")
    axes.set(xscale="log", xlim=(1, STEPS), ylim=(-0.31, 0.65), title="What one rollout can teach")
    axes.set(xlabel="gradient steps on one rollout", ylabel="J = E[score] - beta KL")
    return figure


if __name__ == "__main__":
    run("staleness", __doc__.partition("\n")[0], report, draw)
