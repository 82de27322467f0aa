"""What GRPO's divisions by the group's std and by a response's own length do at its fixed point.

    python examples/physics/grpo.py

A question has a right and a wrong answer; after it come words that do not change the score, until the text ends. So the
optimum raises the share of right answers, and leaves lengths as they are.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from drawing import BLUE, GRAY, GREEN, ORANGE, PURPLE, annotate, new_figure, number, run, table
from exact import probabilities
from matplotlib.figure import Figure

from lm_env import TokenMDP
from lm_env.theory import Objective, fixed_point
from lm_env.theory.prefix_tree import count_states

BETA = 1.0
HORIZON = 5
"""The longest response: an answer, three words and the EOS, or an answer and four words."""
DIFFICULTY = (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98)
GRID = np.concatenate([np.geomspace(0.002, 0.08, 8), np.linspace(0.12, 0.98, 17)])


class Answers(NamedTuple):
    """The share of right answers, and the mean length in tokens of right and of wrong ones."""

    right: float
    length_right: float
    length_wrong: float


def question(right: float) -> TokenMDP:
    """The reference answers right with this probability, and ends each time with probability 1/2."""
    logits = np.full((count_states(4, HORIZON), 4), -np.inf)
    logits[:, 2:] = np.log(0.5)
    logits[0] = [np.log(right), np.log1p(-right), -np.inf, -np.inf]
    return TokenMDP(("right", "wrong", "word", "EOS"), HORIZON, logits, lambda ids: float(ids[0] == 0), eos_id=3)


@cache
def at_rest(right: float, objective: Objective, beta: float = BETA) -> Answers:
    """What an objective's fixed point answers to a question that the reference answers right with this probability."""
    mdp = question(right)
    policy = probabilities(mdp, fixed_point(mdp, beta, objective))
    correct = mdp.scores() == 1
    lengths = mdp.enumeration.lengths
    share = float(policy[correct].sum())
    of_wrong = policy[~correct] @ lengths[~correct] / max(1 - share, 1e-12)
    return Answers(share, float(policy[correct] @ lengths[correct] / share), float(of_wrong))


def with_std_and_ratio(right: float, beta: float = BETA) -> float:
    """The share p of right answers at rest, if scores are divided by the std and k3 times the ratio is in the loss.

    It solves logit p = logit right + 1 / (beta sqrt(p (1 - p))). Of two solutions it is the smaller one, since the
    updates come from below; without a solution it is 1. fixed_point(..., "k2_loss_rescaled") finds the same.
    """
    p = np.linspace(right, 1, 100_001)[:-1]
    logit = np.log(p / (1 - p))
    at_rest = logit - np.log(right / (1 - right)) >= 1 / (beta * np.sqrt(p * (1 - p)))
    return float(p[at_rest.argmax()]) if at_rest.any() else 1.0


def last_rest(beta: float = BETA) -> float:
    """The share of the reference at which the two solutions of `with_std_and_ratio` meet: from there on it is 1."""
    root = np.sqrt(1 + beta**2)
    p = (1 + beta / root) / 2  # where they meet
    return float(1 / (1 + np.exp(2 * root / beta) * (1 - p) / p))


def report() -> str:
    """The table of the page, and the largest q with a fixed point below 1."""
    rows = []
    for right in DIFFICULTY:
        best, plain, std = (at_rest(right, o).right for o in ("gibbs", "k3_loss", "k3_loss_rescaled"))
        both = at_rest(right, "k3_loss_rescaled_by_length")
        shares = (best, plain, std, with_std_and_ratio(right))
        lengths = (at_rest(right, "gibbs").length_wrong, both.length_right, both.length_wrong)
        rows.append([f"{right:g}", *map(number, shares), *map(number, lengths)])
    head = ["reference", "optimum", "k3", "k3, std", "k3 x ratio, std", "length", "of right ones", "of wrong ones"]
    return f"{table(head, rows)}\n\nk3 x ratio with std has no fixed point below p = 1 from q = {last_rest():.3f} on."


def draw(grid: np.ndarray = GRID) -> Figure:
    """Shares of right answers (left) and lengths (right) at rest, over those of the reference in `grid`."""
    figure, (left, right) = new_figure(2)
    left.plot([0, 1], [0, 1], ":", color=GRAY, linewidth=1)
    left.plot(grid, [with_std_and_ratio(p) for p in grid], ".", color=PURPLE)
    for objective, color in (("k3_loss_rescaled", ORANGE), ("k3_loss", BLUE), ("gibbs", "black")):
        left.plot(grid, [at_rest(p, objective).right for p in grid], color=color)
    annotate(left, 0.3, 1.05, "k3 x ratio, with std", PURPLE)
    annotate(left, 0.02, 0.83, "k3,\nwith std", ORANGE)
    annotate(left, 0.02, 0.36, "k3", BLUE)
    annotate(left, 0.53, 0.67, "optimum", "black")
    annotate(left, 0.65, 0.58, "reference", GRAY)
    left.set(xlabel="right answers of the reference", ylabel="right answers at rest", xlim=(0, 1), ylim=(0, 1.1))
    left.set_title("Division by the group's std")
    for objective, style in (("k3_loss_rescaled_by_length", "-"), ("k3_loss_by_length", "--")):
        answers = [at_rest(p, objective) for p in grid]
        right.plot(grid, [a.length_wrong for a in answers], style, color=ORANGE)
        right.plot(grid, [a.length_right for a in answers], style, color=GREEN)
    right.axhline(at_rest(0.5, "gibbs").length_right, color="black", linewidth=1)
    annotate(right, 0.1, 3.8, "wrong answers,\nwith std", ORANGE)
    annotate(right, 0.55, 3.28, "without std", ORANGE)
    annotate(right, 0.02, 2.79, "optimum", "black")
    annotate(right, 0.36, 2.5, "right answers, with\nand without std", GREEN)
    right.set(xlabel="right answers of the reference", ylabel="mean length at rest, tokens", xlim=(0, 1), ylim=(2.2, 5))
    right.set_title("Division by own length")
    return figure


if __name__ == "__main__":
    run("grpo", __doc__.partition("\n")[0], report, draw)
