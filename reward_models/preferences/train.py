"""Train a reward model by pairwise comparison.

Source: Ouyang et al. 2022 (arXiv:2203.02155), equation 1, with two responses per prompt; one epoch,
batches of 64 and a cosine learning rate as in Stiennon et al. 2020 (arXiv:2009.01325).  Dropout is off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lm_env.errors import ConfigurationError
from lm_env.models.inputs import length_batches, pad_right, shuffled_batches
from lm_env.models.optimization import guarded_step
from lm_env.progress import tracked
from lm_env.validation import check_integer, check_number
from reward_models.preferences.losses import pairwise_loss
from reward_models.preferences.model import RewardModel
from reward_models.preferences.records import Comparison

__all__ = ["TrainingReport", "train_reward_model"]

MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class TrainingReport:
    """What a training run did.  Accuracy: the share of comparisons ranked right, ties counting half."""

    losses: list[float]
    """The mean pairwise loss of each update's batch, nats, before that update."""
    train_accuracy: float
    """On the comparisons trained on, afterward."""
    held_out_accuracy: float | None
    """On those held out, afterward; None when none were."""


def train_reward_model(
    model: RewardModel,
    comparisons: Sequence[Comparison],
    *,
    epochs: int = 1,
    batch_size: int = 64,
    learning_rate: float = 1e-5,
    held_out_fraction: float = 0.1,
    seed: int = 0,
    progress_bar: bool = False,
) -> TrainingReport:
    """Train a reward model in place; the same seed gives the same weights.

    Whole prompts are held out, so that no response is on both sides.  Where a single prompt would be
    more than the fraction asked, single comparisons are.

    Args:
        epochs: passes over the comparisons; with more than one a reward model overfits fast.
        batch_size: comparisons per update; cut into micro-batches of similar length, of at most
            `model.batch_tokens` tokens, whose gradients add up to the whole batch's.
        learning_rate: of Adam, falling to 0 along a cosine.
        held_out_fraction: in [0, 1), of the prompts.

    Raises:
        ConfigurationError: an impossible setting, or too few comparisons to hold some out.
        NonFiniteError: a gradient is NaN or infinite; the weights are those of before that update.
    """
    _check_settings(epochs, batch_size, learning_rate, held_out_fraction)
    rng = np.random.default_rng(seed)
    training, held_out = _split(comparisons, held_out_fraction, rng)
    pairs = _encode(model, training)
    updates = epochs * math.ceil(len(pairs) / batch_size)
    model.network.eval()  # no dropout: the scores trained are the scores used
    parameters = [p for p in model.network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=updates)
    losses = []
    batches = shuffled_batches(len(pairs), batch_size, epochs, rng)
    for rows in tracked(batches, "reward model", total=updates, enabled=progress_bar):
        losses.append(_accumulate_gradient(model, [pairs[i] for i in rows]))
        guarded_step(optimizer, parameters, MAX_GRAD_NORM, loss=losses[-1])
        optimizer.zero_grad()
        schedule.step()
    held_out_accuracy = _accuracy(model, _encode(model, held_out)) if held_out else None
    return TrainingReport(losses, _accuracy(model, pairs), held_out_accuracy)


# A comparison as tokens: the row of the chosen response, the row of the rejected one.
Pair = tuple[list[int], list[int]]


def _check_settings(epochs: int, batch_size: int, learning_rate: float, held_out_fraction: float) -> None:
    check_integer("epochs", epochs)
    check_integer("batch_size", batch_size)
    check_number("learning_rate", learning_rate, low=0.0, above=True)
    check_number("held_out_fraction", held_out_fraction, low=0.0)
    if held_out_fraction >= 1:
        raise ConfigurationError(
            f"held_out_fraction must be below 1, to leave something to train on, not {held_out_fraction}"
        )


def _split(
    comparisons: Sequence[Comparison], fraction: float, rng: np.random.Generator
) -> tuple[list[Comparison], list[Comparison]]:
    """-> (training, held out)."""
    numbers = {prompt: n for n, prompt in enumerate(dict.fromkeys(c.prompt for c in comparisons))}
    by_prompt = len(numbers) * fraction >= 1
    groups = [numbers[c.prompt] if by_prompt else i for i, c in enumerate(comparisons)]
    count = len(numbers) if by_prompt else len(comparisons)
    chosen = set(rng.permutation(count)[: round(count * fraction)].tolist())
    training = [c for c, group in zip(comparisons, groups, strict=True) if group not in chosen]
    held_out = [c for c, group in zip(comparisons, groups, strict=True) if group in chosen]
    if not training or (fraction and not held_out):
        raise ConfigurationError(
            f"{len(comparisons)} comparisons are too few to train on and to hold out {fraction:g} of: give more"
        )
    return training, held_out


def _encode(model: RewardModel, comparisons: Sequence[Comparison]) -> list[Pair]:
    prompts = [c.prompt for c in comparisons]
    prompt_ids = [c.prompt_ids for c in comparisons]
    chosen = model.encode(prompts, [c.chosen for c in comparisons], prompt_ids, [c.chosen_ids for c in comparisons])
    rejected = model.encode(
        prompts, [c.rejected for c in comparisons], prompt_ids, [c.rejected_ids for c in comparisons]
    )
    return list(zip(chosen, rejected, strict=True))


def _accumulate_gradient(model: RewardModel, pairs: list[Pair]) -> float:
    """Add the gradient of the batch's mean loss, micro-batch by micro-batch -> that loss."""
    total = 0.0
    longest = [max(len(chosen), len(rejected)) for chosen, rejected in pairs]
    for part in length_batches(longest, max(1, model.batch_tokens // 2)):
        rows = [pairs[i][0] for i in part] + [pairs[i][1] for i in part]
        chosen, rejected = model.network(*pad_right(rows, model.device)).chunk(2)
        loss = pairwise_loss(chosen, rejected) * (len(part) / len(pairs))
        loss.backward()
        total += loss.item()
    return total


def _accuracy(model: RewardModel, pairs: list[Pair]) -> float:
    scores = model.score_rows([row for pair in pairs for row in pair]).reshape(-1, 2)
    margins = scores[:, 0] - scores[:, 1]
    return float(np.mean((margins > 0) + 0.5 * (margins == 0)))
