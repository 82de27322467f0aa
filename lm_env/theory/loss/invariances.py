"""Properties that a loss should have on every single batch, and not only in expectation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from lm_env.theory.credit import Credits
from lm_env.theory.loss.batch import LossBatch
from lm_env.theory.loss.causes import pieces
from lm_env.theory.loss.mistakes import Mistakes
from lm_env.theory.loss.problem import LossProblem

__all__ = ["RATIOS", "invariances", "is_repeatable", "ratio_of"]

GROUPS = 48
"""Groups of the batch on which the invariances are tried."""
REPEATS = 1e-6
"""How far two gradients for the same batch may differ by rounding, as a share of their norm."""
RATIOS = ("token", "sequence", "sequence_mean", "none")

GradientOf = Callable[[LossBatch], np.ndarray]


def is_repeatable(gradient_of: GradientOf, problem: LossProblem) -> bool:
    """Whether the loss gives the same gradient for the same batch; without that, `invariances` compares nothing.

    It does not if it keeps a state between calls, such as a running mean as its baseline, or is random.
    """
    first, second = (gradient_of(problem.sampled_batch(GROUPS, seed=0)) for _ in range(2))
    return bool(np.linalg.norm(second - first) <= REPEATS * np.linalg.norm(first))


def invariances(gradient_of: GradientOf, problem: LossProblem, tolerance: float) -> dict[str, bool]:
    """Which of these hold, by name.

    - `padding`: more padding, with other numbers in it, does not change the gradient.
    - `eos`: a padding id other than the EOS does not change it.
    - `permutation`: another order of groups, and of samples within a group, does not change it.
    - `micro_batches`: the gradients of two parts with long and short responses add up to a multiple of the
      batch's; a part knows the batch it is cut from, `LossBatch.whole`.
    """
    batch = problem.sampled_batch(GROUPS, seed=0)
    plain = gradient_of(batch)
    size = problem.group_size
    blocks = np.arange(len(batch)).reshape(-1, size)
    shuffled = np.random.default_rng(1).permutation(blocks)[:, ::-1].reshape(-1)
    by_length = blocks[np.argsort(batch.lengths.numpy()[blocks].sum(1), kind="stable")]
    halves = [half.reshape(-1) for half in np.split(by_length, 2)]
    together = sum((gradient_of(batch.part(half)) for half in halves), np.zeros_like(plain))
    other_pad = replace(batch, tokens=torch.where(batch.mask, batch.tokens, (batch.eos_id + 1) % 3))

    def same(other: np.ndarray) -> bool:
        return bool(np.linalg.norm(other - plain) <= tolerance * np.linalg.norm(plain))

    return {
        "padding": same(gradient_of(batch.padded(2, seed=2))),
        "eos": same(gradient_of(other_pad)),
        "permutation": same(gradient_of(batch.reordered(shuffled))),
        "micro_batches": _parallel(together, plain) <= tolerance,
    }


def ratio_of(gradients: list[np.ndarray], credits: list[Credits], mistakes: Mistakes, tolerance: float) -> str:
    """Which importance ratio explains the gradients off-policy: one of `RATIOS`, or `unknown`.

    A suffix `+ kl` means that the KL in the loss is multiplied by the ratio as well.  All problems have the same
    sampling policy, so the coefficients of score, KL and baselines are fitted to all of them at once.
    """
    found = []
    for name in RATIOS:
        for suffix in ("", " + kl") if mistakes.kl.endswith("_loss") else ("",):
            columns = [_columns(credit, mistakes, name, suffix) for credit in credits]
            design = np.concatenate(columns)
            target = np.concatenate([gradient.ravel() for gradient in gradients])
            solved = np.linalg.lstsq(design, target, rcond=1e-10)[0]
            left_over = float(np.linalg.norm(design @ solved - target) / (np.linalg.norm(target) or 1.0))
            found.append((left_over, name + suffix))
    left_over, best = min(found, key=lambda pair: pair[0])
    return best if left_over <= tolerance else "unknown"


def _columns(credit: Credits, mistakes: Mistakes, name: str, suffix: str) -> np.ndarray:
    """The gradients (S V, columns) of which the loss's consists if it has this ratio."""
    score, kl, *others = pieces(mistakes, credit)
    weight = credit.weight(mistakes.length, mistakes.mask)
    ratio = credit.ratio(name)
    # Baselines have a gradient off-policy unless the ratio is there; so has k1 as a loss, the last column.
    others += [weight, weight * credit.values, weight * (credit.paid_k1.cumsum(1) - credit.paid_k1)]
    kl_ratio = ratio if suffix or not mistakes.kl.endswith("_loss") else credit.ones()
    columns = [ratio * score, kl_ratio * kl, *(ratio * piece for piece in others), weight]
    return np.stack([credit.gradient(column).ravel() for column in columns], 1)


def _parallel(gradient: np.ndarray, other: np.ndarray) -> float:
    """The component of a gradient orthogonal to the other one, as a share of its norm."""
    scale = float((gradient * other).sum()) / (float((other**2).sum()) or 1.0)
    norm = float(np.linalg.norm(gradient)) or 1.0
    return float(np.linalg.norm(gradient - scale * other)) / norm
