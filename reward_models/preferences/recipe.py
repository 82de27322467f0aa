"""Recipe: from records of preferences to a normalized reward model, with defaults that depend on the trunk's size."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from lm_env.errors import CheckpointCorruptError
from lm_env.models.adapters import inject_lora, merge_lora
from lm_env.storage import Checkpointing, read_folder, remove_checkpoints
from lm_env.validation import check_choice, check_integers, check_number
from reward_models.preferences.encoding import PLAIN, record_texts
from reward_models.preferences.ensemble import Combination, RewardEnsemble
from reward_models.preferences.model import RewardModel
from reward_models.preferences.network import Pooling
from reward_models.preferences.reading import read_preferences, write_preferences
from reward_models.preferences.records.preference import Preference
from reward_models.preferences.splitting import pair_ratings, split_records
from reward_models.preferences.train import TrainingReport, train_reward_model

__all__ = [
    "Recipe",
    "Trained",
    "Trunk",
    "digest",
    "held_out_records",
    "remove_training_checkpoints",
    "train_from_preferences",
]

Trunk = Literal["full", "lora", "frozen"]
EPOCHS = {"full": 1, "lora": 3, "frozen": 30}
"""The default number of epochs for each `Trunk`."""
REFERENCE_SAMPLES = 1024
"""The most training responses on which the scores are normalized."""
WATCHED_FRACTION = 0.1
"""The share of the training prompts that is used for early stopping."""
FEWEST_TO_WATCH = 200
"""With fewer training records there is no early stopping: on a handful of comparisons chance decides when it stops,
and it can return the untrained weights."""
HELD_OUT_FILE = "held_out.jsonl"
TRAINING_FILE = "training.json"
HEAD_LEARNING_RATE = 1e-3
MEMBER_CHECKPOINTS = "member-{}"
"""The folder of each member's checkpoints."""


@dataclass(frozen=True)
class Recipe:
    """How a reward model is trained from preferences; None: a default that depends on the trunk and the data."""

    model: str = "reviews-3m"
    """A causal LM or an encoder: 'reviews-3m' (embedded), a folder, or a hub id."""
    trunk: Trunk = "full"
    """What is trained besides the head: the whole trunk (the network below the head), LoRA layers, or nothing."""
    objective: str | None = None
    """pairwise, plackett-luce, best-of or regression; None: regression for single rated responses, else pairwise."""
    epochs: int | None = None
    batch_size: int = 64
    """Prompts per update."""
    learning_rate: float | None = None
    """That of the trunk; the head's is the larger of this and 0.001.  None: see `default_learning_rate`."""
    held_out_fraction: float = 0.1
    patience: int = 2
    """With several epochs: stop after this many in a row without a better loss on a tenth of the training prompts."""
    pair_ratings: float | None = None
    """Compare single rated responses whose ratings differ by at least this much."""
    drop_ties: bool = False
    use_margins: bool = False
    template: str = PLAIN
    """What is shown before the response: {prompt} and any column."""
    pooling: Pooling | None = None
    max_length: int | None = None
    ensemble: int = 1
    """How many reward models are trained, from different seeds, and combined."""
    combine: Combination = "mean"
    lora_rank: int = 16
    seed: int = 0
    device: str | None = None
    download: bool = False

    def __post_init__(self) -> None:
        check_choice("trunk", self.trunk, get_args(Trunk))
        check_integers(self, "batch_size", "patience", "ensemble", "lora_rank")
        check_number("held_out_fraction", self.held_out_fraction, low=0.0, high=0.99)
        if self.pair_ratings is not None:
            check_number("pair_ratings", self.pair_ratings, low=0.0, above=True)


@dataclass(frozen=True)
class Trained:
    """A trained reward model, its data and its reports."""

    reward: RewardModel | RewardEnsemble
    reports: list[TrainingReport]
    """One for each member."""
    training: list[Preference]
    held_out: list[Preference]
    """As they were read, before any pairing."""
    compared: list[Preference]
    """The training records after the pairing of ratings, where that was asked for."""
    recipe: Recipe
    facts: dict[str, Any] = field(default_factory=dict)
    """JSON that goes into the saved folder with the rest."""

    def save(self, folder: str | Path, *, also: Callable[[Path], object] | None = None) -> Path:
        """Write the reward model with the records held out and what is known of the training beside it.

        Args:
            also: `also(folder)` writes further files, to be saved with the rest.
        """

        def fill(held: Path) -> None:
            content = {
                "recipe": asdict(self.recipe),
                **self.facts,
                "training_records": len(self.training),
                "held_out_records": len(self.held_out),
                "members": [_report(report) for report in self.reports],
                "training_digests": sorted({digest(record) for record in self.training}),
            }
            (held / TRAINING_FILE).write_text(json.dumps(content, indent=1) + "\n")
            if self.held_out:
                write_preferences(self.held_out, held / HELD_OUT_FILE)
            if also is not None:
                also(held)

        return self.reward.save(folder, also=fill)


def train_from_preferences(
    records: Sequence[Preference],
    recipe: Recipe,
    *,
    say: Callable[[str], None] | None = None,
    bar: bool = False,
    checkpoints: str | Path | None = None,
    resume: bool = False,
) -> Trained:
    """Hold out records, pair ratings if asked to, train, and normalize the scores.

    With several epochs and at least 200 training records, a tenth of the training prompts is used for early stopping,
    so that the held-out records do not influence the training.

    Args:
        say: called with a sentence about each step.
        bar: show a progress bar.
        checkpoints: a folder in which each member is saved as it is trained, every ten minutes and when a signal ends
            the training; it can be deleted (`remove_checkpoints` of each folder in it) once the result is saved.
        resume: go on from there with the same records and recipe, at the member and the update that the training had
            come to; from the beginning where nothing is saved.

    Raises:
        ConfigurationError, ModelLoadError, NonFiniteError: see `train_reward_model` and `RewardModel.from_causal_lm`.
        CheckpointMismatchError, CheckpointWriteError, TrainingInterrupted: see `lm_env.models.fitting.fit`.
    """
    tell = say or (lambda sentence: None)
    rng = np.random.default_rng(recipe.seed)
    training, held_out = split_records(records, recipe.held_out_fraction, rng)
    seen: list[Preference] = list(training)
    watched: list[Preference] = []
    if (recipe.epochs or EPOCHS[recipe.trunk]) > 1 and len(training) >= FEWEST_TO_WATCH:
        seen, watched = split_records(training, WATCHED_FRACTION, rng)
    if recipe.pair_ratings is not None:
        seen = pair_ratings(seen, min_difference=recipe.pair_ratings, seed=recipe.seed)
        watched = pair_ratings(watched, min_difference=recipe.pair_ratings, seed=recipe.seed) if watched else []
        tell(f"{len(seen):,} comparisons of ratings that differ by at least {recipe.pair_ratings:g}")
    members, reports = [], []
    for i in range(recipe.ensemble):
        if recipe.ensemble > 1:
            tell(f"member {i + 1} of {recipe.ensemble}")
        place = None if checkpoints is None else Checkpointing(Path(checkpoints) / MEMBER_CHECKPOINTS.format(i))
        model, report = _train_member(seen, watched, recipe, recipe.seed + i, bar, place, resume)
        members.append(model)
        reports.append(report)
    reward = members[0] if len(members) == 1 else RewardEnsemble(members, combine=recipe.combine)
    return Trained(reward, reports, training, held_out, seen, recipe)


def remove_training_checkpoints(folder: str | Path) -> None:
    """Delete what `train_from_preferences` has saved in a folder of checkpoints, once its result is saved elsewhere."""
    place = Path(folder)
    if place.is_dir():
        for member in sorted(place.glob(MEMBER_CHECKPOINTS.format("*"))):
            remove_checkpoints(member)
        with suppress(OSError):  # something else is in it
            place.rmdir()


def prepare_trunk(trunk: nn.Module, recipe: Recipe, seed: int) -> float:
    """Make trainable what the recipe trains of a trunk: all, LoRA layers, or nothing; returns the learning rate."""
    size = sum(p.numel() for p in trunk.parameters())
    trunk.requires_grad_(recipe.trunk == "full")
    if recipe.trunk == "lora":
        with torch.random.fork_rng(devices=[]):  # so that the same seed gives the same layers
            torch.manual_seed(seed)
            inject_lora(trunk, rank=recipe.lora_rank)
    return recipe.learning_rate or default_learning_rate(recipe.trunk, size)


def _train_member(
    records: Sequence[Preference],
    watched: Sequence[Preference],
    recipe: Recipe,
    seed: int,
    bar: bool,
    checkpoint: Checkpointing | None,
    resume: bool,
) -> tuple[RewardModel, TrainingReport]:
    model = RewardModel.from_causal_lm(
        recipe.model,
        seed=seed,
        max_length=recipe.max_length,
        pooling=recipe.pooling,
        template=recipe.template,
        device=recipe.device,
        download=recipe.download,
    )
    trunk = model.network.trunk
    rate = prepare_trunk(trunk, recipe, seed)
    epochs = recipe.epochs or EPOCHS[recipe.trunk]
    report = train_reward_model(
        model,
        records,
        objective=recipe.objective,
        epochs=epochs,
        batch_size=recipe.batch_size,
        learning_rate=rate,
        head_learning_rate=max(rate, HEAD_LEARNING_RATE),
        held_out=watched,
        patience=recipe.patience if watched else None,
        drop_ties=recipe.drop_ties,
        use_margins=recipe.use_margins,
        seed=seed,
        progress_bar=bar,
        checkpoint=checkpoint,
        resume=resume,
    )
    if recipe.trunk == "lora":
        merge_lora(trunk)
    prompts, responses, columns = record_texts(records, model.tokenizer, REFERENCE_SAMPLES)
    model.normalize(prompts, responses, **columns)
    return model, report


def default_learning_rate(trunk: Trunk, size: int) -> float:
    """A step size that falls with the square root of the number of parameters: 3e-4 up to 3 million, 6e-6 at 7 billion.

    For LoRA layers it is ten times as much, up to 1e-3; for a head alone it is 1e-3.
    """
    full = 3e-4 * math.sqrt(min(1.0, 3e6 / size))
    return {"full": full, "lora": min(10 * full, 1e-3), "frozen": HEAD_LEARNING_RATE}[trunk]


def digest(record: Preference) -> str:
    """A short hash of the prompt, or of the responses if there is no prompt, to find records of the training data."""
    said = record.prompt if record.prompt != "" else record.responses
    return hashlib.sha256(repr(said).encode()).hexdigest()[:16]


def _report(report: TrainingReport) -> dict[str, Any]:
    content = asdict(report)
    content["updates"] = len(content.pop("losses"))
    return content


def held_out_records(folder: str | Path) -> tuple[list[Preference], set[str], dict[str, Any]]:
    """(records that were held out, digests of those trained on, the other content of training.json) of a saved folder.

    All empty where the folder has no such files.

    Raises:
        CheckpointCorruptError: a file is damaged, or training.json holds no JSON object.
    """

    def read(held: Path) -> tuple[list[Preference], set[str], dict[str, Any]]:
        records = list(read_preferences(held / HELD_OUT_FILE)) if (held / HELD_OUT_FILE).exists() else []
        if not (held / TRAINING_FILE).exists():
            return records, set(), {}
        content = json.loads((held / TRAINING_FILE).read_text())
        if not isinstance(content, dict):
            raise CheckpointCorruptError(f"{TRAINING_FILE} of {folder} holds no JSON object: train again")
        return records, set(content.pop("training_digests", [])), content

    return read_folder(folder, read)
