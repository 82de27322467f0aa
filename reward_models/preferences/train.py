"""Train a reward model on human preferences: comparisons, rankings, choices, ratings.

Source: Ouyang et al. 2022 (arXiv:2203.02155), equation 1; one epoch, batches of 64 and a cosine learning rate as in
Stiennon et al. 2020 (arXiv:2009.01325).  Dropout is off.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from lm_env.distributed import processes
from lm_env.errors import ConfigurationError
from lm_env.models.fitting import fit, weights_digest
from lm_env.models.inputs import shuffled_batches
from lm_env.storage import Checkpointing
from lm_env.validation import check_choice, check_integer, check_number
from reward_models.preferences.model import RewardModel
from reward_models.preferences.objectives import (
    Group,
    Objective,
    Record,
    Scorer,
    encode_groups,
    make_scorer,
    resolve_objective,
    summed_loss,
)
from reward_models.preferences.splitting import split_records
from reward_models.preferences.stopping import EarlyStopping, HeldOut, Watched, group_batches, longest_rows, measure

__all__ = ["TrainingReport", "train_reward_model"]

MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class TrainingReport:
    """What a training run did.  Accuracy: the share of untied comparisons ranked right, equal scores counting half."""

    losses: list[float]
    """The mean loss of each update's batch before that update; nats, or squared standard deviations of the ratings."""
    train_accuracy: float | None
    """On the records trained on, afterward; None where they hold no comparisons."""
    held_out_accuracy: float | None
    """On those held out, afterward; None when none were."""
    held_out_loss: float | None = None
    """On those held out, afterward."""
    history: list[HeldOut] = field(default_factory=list)
    """The measurements of early stopping; empty without it."""
    objective: str = "pairwise"


def train_reward_model(
    model: RewardModel,
    records: Sequence[Record],
    *,
    objective: str | None = None,
    epochs: int = 1,
    batch_size: int = 64,
    learning_rate: float = 1e-5,
    head_learning_rate: float | None = None,
    weight_decay: float = 0.0,
    held_out: Sequence[Record] | None = None,
    held_out_fraction: float = 0.1,
    patience: int | None = None,
    watched: Watched = "loss",
    drop_ties: bool = False,
    use_margins: bool = False,
    seed: int = 0,
    progress_bar: bool = False,
    checkpoint: Checkpointing | None = None,
    resume: bool = False,
) -> TrainingReport:
    """Train a reward model in place; the same seed gives the same weights.

    Several processes of one run (`agents.processes`) divide each batch, and end with the weights that one would.

    Whole prompts are held out, so that no response is in both parts.  If a single prompt is more than the fraction
    asked for, single records are held out instead.  Every parameter of the network that requires a gradient is trained;
    if the trunk has none, its hidden states are computed once.

    Args:
        records: `Comparison`s, `Preference`s, or both.  Preferences of one prompt make up one batch element, in which
            each distinct response is scored once.
        objective: "pairwise", "plackett-luce", "best-of" or "regression" (see `Objective`); default: regression where
            the records are single rated responses, else pairwise.
        epochs: passes over the records; with more than one a reward model overfits fast.
        batch_size: prompts (or comparisons) per update; cut into micro-batches of similar length, of at most
            `model.batch_tokens` tokens, whose gradients add up to the whole batch's.
        learning_rate: of Adam, falling to 0 along a cosine.
        head_learning_rate: of the head alone; default: the same.
        weight_decay: of AdamW, on the trunk's and the head's matrices; 0 is Adam.
        held_out: records to measure on, in place of a fraction of those given; an empty list for none.
        held_out_fraction: in [0, 1), of the prompts.
        patience: measure on the held-out records before the first and after each epoch, stop when this many
            measurements in a row were no better than the best one before, and restore the best weights.
        watched: what "better" is: a lower held-out "loss", or a higher "accuracy".
        drop_ties: leave ties out; default: a tie counts as half a win for each side.
        use_margins: a record's margin is by how much the better response should score higher.
        checkpoint: save the run in a folder as it goes, and when Ctrl-C or SIGTERM ends it.
        resume: continue from the newest checkpoint there, with the same model, records and options; without one, start
            from the beginning.

    Raises:
        ConfigurationError: an impossible setting, too few records to hold some out, or none for the objective; or
            processes were given different options or data.
        NonFiniteError: a gradient is NaN or infinite; the weights are those of before that update.
        CheckpointMismatchError, CheckpointWriteError, TrainingInterrupted, LostProcessError: see
            `lm_env.models.fitting.fit`.
    """
    _check_settings(epochs, batch_size, learning_rate, held_out_fraction, watched)
    rng = np.random.default_rng(seed)
    training, held_out = _split(records, held_out, held_out_fraction, rng)
    aim = resolve_objective(objective, training, drop_ties, use_margins)
    groups, others = encode_groups(model, training, aim), encode_groups(model, held_out, aim)
    if not groups:
        raise ConfigurationError(f"none of {len(training)} records holds anything for {aim.name!r}: choose another")
    model.network.eval()  # no dropout: the scores trained are the scores used
    processes().broadcast_weights([model.network])
    scorer = make_scorer(model, [*groups, *others])
    every = math.ceil(len(groups) / batch_size)
    stopping = _early_stopping(model, scorer, others, aim, patience, watched, every)
    settings = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "patience": patience,
        "head_learning_rate": head_learning_rate,
        "weight_decay": weight_decay,
        "watched": watched,
        "seed": seed,
    }
    losses = fit(
        {name: p for name, p in model.network.named_parameters() if p.requires_grad},
        list(shuffled_batches(len(groups), batch_size, epochs, rng)),
        lambda rows: _accumulate_gradient(model, scorer, [groups[i] for i in rows], aim),
        learning_rate=learning_rate,
        max_grad_norm=MAX_GRAD_NORM,
        optimizer=_optimizer(model, learning_rate, head_learning_rate, weight_decay),
        identity={**settings, **_identity(model, aim, groups)},
        stopping=stopping,
        checkpoint=checkpoint,
        resume=resume,
        title="reward model",
        progress_bar=progress_bar,
    )
    if stopping is not None:
        stopping.restore()
    return _report(losses, model, scorer, groups, others, aim, stopping)


def _split(
    records: Sequence[Record], held_out: Sequence[Record] | None, fraction: float, rng: np.random.Generator
) -> tuple[list[Record], Sequence[Record]]:
    """(the records to train on, those to measure on)."""
    return split_records(records, fraction, rng) if held_out is None else (list(records), held_out)


def _check_settings(
    epochs: int, batch_size: int, learning_rate: float, held_out_fraction: float, watched: Watched
) -> None:
    check_choice("watched", watched, ("loss", "accuracy"))
    check_integer("epochs", epochs)
    check_integer("batch_size", batch_size)
    check_number("learning_rate", learning_rate, low=0.0, above=True)
    check_number("held_out_fraction", held_out_fraction, low=0.0)
    if held_out_fraction >= 1:
        raise ConfigurationError(
            f"held_out_fraction must be below 1, to leave something to train on, not {held_out_fraction}"
        )


def _optimizer(
    model: RewardModel, learning_rate: float, head_learning_rate: float | None, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW of the trunk's parameters and of the head's; what does not require a gradient is left out."""
    head = {id(p) for p in model.network.head.parameters()}
    trained = [p for p in model.network.parameters() if p.requires_grad]
    own = {} if head_learning_rate is None else {"lr": check_number("head_learning_rate", head_learning_rate, low=0.0)}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if id(p) not in head]},
        {"params": [p for p in trained if id(p) in head], **own},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=learning_rate, weight_decay=weight_decay
    )


def _early_stopping(
    model: RewardModel,
    scorer: Scorer,
    groups: Sequence[Group],
    aim: Objective,
    patience: int | None,
    watched: Watched,
    every: int,
) -> EarlyStopping | None:
    if patience is None:
        return None
    if not groups:
        raise ConfigurationError("patience needs held-out records to measure on: raise held_out_fraction, or pass some")
    patience = check_integer("patience", patience)
    return EarlyStopping(model, scorer, groups, aim, patience=patience, watched=watched, every=every)


def _report(
    losses: list[float],
    model: RewardModel,
    scorer: Scorer,
    groups: Sequence[Group],
    others: Sequence[Group],
    aim: Objective,
    stopping: EarlyStopping | None,
) -> TrainingReport:
    after = measure(scorer, others, aim, model.batch_tokens) if others else None
    return TrainingReport(
        losses,
        measure(scorer, groups, aim, model.batch_tokens).accuracy,
        after.accuracy if after else None,
        after.loss if after else None,
        stopping.history if stopping else [],
        aim.name,
    )


def _identity(model: RewardModel, aim: Objective, groups: Sequence[Group]) -> dict[str, Any]:
    """What tells a run from others beside its settings: objective, data, and the weights that stay as they are."""
    return {
        "objective": aim.name,
        "drop_ties": aim.drop_ties,
        "use_margins": aim.use_margins,
        "records": _digest(groups),
        "frozen_weights": weights_digest(p for p in model.network.parameters() if not p.requires_grad),
    }


def _digest(groups: Sequence[Group]) -> str:
    """A digest of the training data."""
    return hashlib.sha256(json.dumps([asdict(group) for group in groups], default=str).encode()).hexdigest()[:16]


def _accumulate_gradient(model: RewardModel, scorer: Scorer, groups: list[Group], aim: Objective) -> float:
    """Add the gradient of the batch's mean loss, micro-batch by micro-batch; returns that loss.

    Of several processes, each does so for its share of the groups, and returns its part of the loss.
    """
    total = 0.0
    own = [groups[i] for i in processes().deal(longest_rows(groups))]
    for part in group_batches(own, model.batch_tokens):
        members = [own[i] for i in part]
        scores = scorer([row for group in members for row in group.rows])
        loss = summed_loss(scores, members, aim) / len(groups)
        loss.backward()
        total += loss.item()
    return total
