"""From records with marked spans to a reward model that is paid at them, with the defaults of `Recipe`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lm_env.errors import ConfigurationError
from lm_env.models.adapters import merge_lora
from lm_env.storage import Checkpointing
from reward_models.preferences.marked.model import SpanRewardModel
from reward_models.preferences.marked.train import SpanReport, marked_segments, train_span_reward_model
from reward_models.preferences.recipe import EPOCHS, HEAD_LEARNING_RATE, Recipe, prepare_trunk
from reward_models.preferences.records.preference import Preference
from reward_models.preferences.splitting import split_records

__all__ = ["train_on_marks"]


def train_on_marks(
    records: Sequence[Preference],
    recipe: Recipe,
    *,
    bar: bool = False,
    checkpoints: str | Path | None = None,
    resume: bool = False,
) -> tuple[SpanRewardModel, SpanReport]:
    """Hold out records by prompts, train on the marked responses of the others, and normalize.

    Args:
        recipe: its model, trunk, epochs, batch_size, learning_rate, held_out_fraction, template, max_length,
            lora_rank, seed, device and download.
        bar: show a progress bar.
        checkpoints, resume: see `train_from_preferences`.

    Raises:
        ConfigurationError: an ensemble is asked for, or no record has marks; see also `train_span_reward_model`.
    """
    if recipe.ensemble > 1:
        raise ConfigurationError("reward models of spans are trained one at a time: leave the ensemble out")
    training, held_out = split_records(list(records), recipe.held_out_fraction, np.random.default_rng(recipe.seed))
    kinds, texts = marked_segments(training)
    others = marked_segments(held_out, kinds)[1] if held_out else []
    model = SpanRewardModel.from_model(
        recipe.model,
        kinds,
        seed=recipe.seed,
        max_length=recipe.max_length,
        template=recipe.template,
        device=recipe.device,
        download=recipe.download,
    )
    trunk = model.network.trunk
    rate = prepare_trunk(trunk, recipe, recipe.seed)
    report = train_span_reward_model(
        model,
        texts,
        others,
        epochs=recipe.epochs or EPOCHS[recipe.trunk],
        batch_size=recipe.batch_size,
        learning_rate=rate,
        head_learning_rate=max(rate, HEAD_LEARNING_RATE),
        seed=recipe.seed,
        progress_bar=bar,
        checkpoint=None if checkpoints is None else Checkpointing(Path(checkpoints) / "member-0"),
        resume=resume,
    )
    if recipe.trunk == "lora":
        merge_lora(trunk)
    return model, report
