"""Supervised trainings of small models, the same in one process and in several: each a function of a folder or None.

Each returns (the trained weights by name, what it reports as JSON).  The data are such that the processes' shares hold
unequal numbers of tokens or records, and that the last batch is too small to be divided.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import build_lm, build_tokenizer
from torch import nn

from agents import dpo_finetune
from agents.sft import supervised_finetune
from lm_env.storage import Checkpointing
from reward_models import Comparison, Preference, RewardModel, ScalarHeadModel, train_reward_model
from reward_models.preferences.marked import (
    SpanHeadModel,
    SpanRewardModel,
    marked_segments,
    segments,
    train_span_reward_model,
)
from reward_models.preferences.records import LabelledSpan

Found = tuple[dict[str, np.ndarray], dict[str, Any]]
WORDS = ("good", "bad", "film", "story", "the", "end")


def texts(count: int, seed: int) -> list[str]:
    """Of 1 to 9 words each."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 1 + int(rng.integers(9)))) for _ in range(count)]


def weights(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().copy() for name, p in module.named_parameters()}


def fine_tuned(folder: Path | None = None, resume: bool = False, epochs: int = 2, **options: Any) -> Found:
    """13 demonstrations in batches of 4, and 2 held out; with a folder, saved after each step."""
    model = build_lm("gpt2").double()
    rows = [{"prompt": [1 + i % 5] * (1 + i % 3), "response": [7 + i] * (1 + (i * i) % 11)} for i in range(15)]
    report = supervised_finetune(
        model,
        None,
        rows,
        eos_token_id=0,
        epochs=epochs,
        batch_size=4,
        learning_rate=3e-3,
        held_out_fraction=0.15,
        micro_batch_tokens=20,
        checkpoint=None if folder is None else Checkpointing(folder, every=1, keep=99),
        resume=resume,
        **options,
    )
    return weights(model), {"losses": report.losses, "after": report.perplexity_after}


def preferred() -> Found:
    """DPO on 9 pairs and 4 rankings of 3, in batches of 3, until the held-out loss has not fallen for a while."""
    tokenizer = build_tokenizer()
    model = build_lm("gpt2", vocab_size=len(tokenizer)).double()
    said = texts(30, seed=1)
    records: list[Comparison | Preference] = [
        Comparison(f"p{i}", said[2 * i], said[2 * i + 1] + " story", None, None, None) for i in range(9)
    ]
    records += [Preference(f"q{i}", tuple(said[18 + 3 * i : 21 + 3 * i]), (0, 1, 1)) for i in range(4)]
    report = dpo_finetune(
        model,
        tokenizer,
        records,
        epochs=2,
        batch_size=3,
        learning_rate=3e-3,
        beta=0.5,
        held_out_fraction=0.25,
        patience=3,
        micro_batch_tokens=100,
    )
    assert report.after is not None
    return weights(model), {"losses": report.losses, "after": asdict(report.after), "held_out": report.held_out}


def scored(frozen: bool = False, objective: str | None = None) -> Found:
    """A reward model of 11 comparisons and 2 rated rankings, in batches of 3, with early stopping."""
    tokenizer = build_tokenizer()
    network = ScalarHeadModel(build_lm("gpt2", vocab_size=len(tokenizer)).base_model, seed=3).double()
    network.requires_grad_(True)
    network.trunk.requires_grad_(not frozen)
    model = RewardModel(network, tokenizer, batch_tokens=60)
    said = texts(28, seed=2)
    records: list[Comparison | Preference] = [
        Comparison(f"p{i}", said[2 * i], said[2 * i + 1] + " bad", None, None, None) for i in range(11)
    ]
    records += [Preference(f"q{i}", tuple(said[22 + 3 * i : 25 + 3 * i]), ratings=(3.0, 1.0, 2.0)) for i in range(2)]
    report = train_reward_model(
        model,
        records,
        objective=objective,
        epochs=3,
        batch_size=3,
        learning_rate=3e-3,
        held_out_fraction=0.2,
        patience=3,
    )
    return weights(network), asdict(report)


def marked() -> Found:
    """A reward model of 9 marked texts, in batches of 4."""
    tokenizer = build_tokenizer()
    said = [". ".join(texts(1 + i % 4, seed=i)) for i in range(9)]
    records = []
    for i, text in enumerate(said):
        start, end = segments(text)[i % len(segments(text))]
        records.append(Preference(f"p{i}", (text,), spans=(LabelledSpan(0, start, end, "odd"),), ratings=(0.0,)))
    network = SpanHeadModel(build_lm("gpt2", vocab_size=len(tokenizer)).base_model, 1, seed=3).double()
    network.requires_grad_(True)
    model = SpanRewardModel(network, tokenizer, ["odd"], batch_tokens=60)
    report = train_span_reward_model(model, marked_segments(records)[1], epochs=2, batch_size=4, learning_rate=3e-3)
    return weights(network), {"losses": report.losses}


TRAININGS: dict[str, Callable[[], Found]] = {
    "sft": fine_tuned,
    "sft-packed": lambda: fine_tuned(packing=True),
    "sft-patience": lambda: fine_tuned(patience=2, eval_steps=2),
    "dpo": preferred,
    "rm": scored,
    "rm-frozen": lambda: scored(frozen=True),
    "rm-plackett-luce": lambda: scored(objective="plackett-luce"),
    "spans": marked,
}
