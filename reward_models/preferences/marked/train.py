"""Train a reward model on what people have marked: for each kind of fault, which segments hold one.

Source: Wu et al. 2023 (arXiv:2306.01693), section 4.1: binary cross-entropy for each kind at each segment.

Shapes: S segments, K kinds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from lm_env.distributed import processes
from lm_env.errors import ConfigurationError
from lm_env.models.fitting import fit, weights_digest
from lm_env.models.inputs import length_batches, shuffled_batches
from lm_env.storage import Checkpointing
from lm_env.validation import check_integer, check_number
from reward_models.preferences.encoding import prompt_text
from reward_models.preferences.marked.model import SpanRewardModel
from reward_models.preferences.marked.network import segments
from reward_models.preferences.records.preference import Preference

__all__ = ["SpanReport", "SpanShare", "marked_segments", "train_span_reward_model"]

MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class MarkedText:
    """A response that somebody has marked."""

    record: Preference
    response: str
    faults: np.ndarray
    """bool (segments, K): whether a marked span of the kind reaches into the segment."""


@dataclass(frozen=True)
class SpanShare:
    """How well segments with faults of a kind are told from those without, on texts held out."""

    kind: str
    segments: int
    marked: int
    """How many of the segments hold such a fault."""
    ranked: float
    """How often a segment with a fault has the higher logit than one without, equal ones counting half (the area
    under the ROC curve); 1/2 is chance.  NaN where one of the two is missing."""
    by_length: float
    """The same for the length of the segment alone, longer ones taken to be worse."""
    by_words: float
    """The same for a count of words: the log-odds of the words of faulty and of other training segments."""


@dataclass(frozen=True)
class SpanReport:
    """What a training did."""

    losses: list[float]
    """The mean cross-entropy of each update's batch before it, nats per segment and kind."""
    training: int
    held_out: int
    """How many marked texts were trained on, and held out."""
    shares: list[SpanShare]
    """One for each kind; empty when nothing was held out."""


def marked_segments(
    records: Sequence[Preference], kinds: Sequence[str] | None = None
) -> tuple[tuple[str, ...], list[MarkedText]]:
    """(the kinds of faults, the responses that have a mark, with the faults of each of their segments).

    A response without a mark is left out: nobody may have looked at it.

    Args:
        kinds: those to be told apart, in this order; marks of others are left out.  Default: all that occur.

    Raises:
        ConfigurationError: no record has a marked span.
    """
    kinds = tuple(kinds or sorted({span.kind for record in records for span in record.spans}))
    if not kinds:
        raise ConfigurationError(f"none of {len(records)} records has marked spans: give some, or another objective")
    found = []
    for record in records:
        for index in sorted({span.response for span in record.spans}):
            text = record.responses[index]
            places = segments(text)
            faults = np.zeros((len(places), len(kinds)), dtype=bool)
            for span in record.spans:
                if span.response == index and span.kind in kinds:
                    inside = [start < span.end and span.start < end for start, end in places]
                    faults[inside, kinds.index(span.kind)] = True
            found.append(MarkedText(record, text, faults))
    return kinds, found


def train_span_reward_model(
    model: SpanRewardModel,
    training: Sequence[MarkedText],
    held_out: Sequence[MarkedText] = (),
    *,
    epochs: int = 1,
    batch_size: int = 16,
    learning_rate: float = 1e-5,
    head_learning_rate: float | None = None,
    seed: int = 0,
    progress_bar: bool = False,
    checkpoint: Checkpointing | None = None,
    resume: bool = False,
) -> SpanReport:
    """Train in place, normalize on the training texts, and measure; the same seed gives the same weights.

    Every parameter that requires a gradient is trained; dropout is off.  Several processes of one run
    (`agents.processes`) divide each batch, and end with the weights that one would.

    Args:
        training, held_out: of `marked_segments`; their kinds are the model's, in that order.
        batch_size: texts per update.
        learning_rate: of AdamW, falling to 0 along a cosine; head_learning_rate: that of the head.
        checkpoint, resume: see `lm_env.models.fitting.fit`.

    Raises:
        ConfigurationError: an impossible setting, or nothing to train on.
        NonFiniteError, CheckpointMismatchError, CheckpointWriteError, TrainingInterrupted: see `fit`.
    """
    check_integer("epochs", epochs)
    check_integer("batch_size", batch_size)
    check_number("learning_rate", learning_rate, low=0.0, above=True)
    if not training:
        raise ConfigurationError("there is no marked text to train on: give at least one")
    network = model.network.eval()
    processes().broadcast_weights([network])
    prompts, responses, columns = _shown(model, training)
    rows = model.rows(prompts, responses, columns)
    rate = learning_rate if head_learning_rate is None else check_number("head_learning_rate", head_learning_rate)
    trunk = [p for p in network.trunk.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": trunk}, {"params": list(network.head.parameters()), "lr": rate}]

    def accumulate(chosen: np.ndarray) -> float:
        count = sum(training[i].faults.size for i in chosen) or 1
        chosen = chosen[processes().deal(np.array([len(rows[i][0]) for i in chosen]))]
        total = 0.0
        for part in length_batches([len(rows[i][0]) for i in chosen], model.batch_tokens):
            members = [int(chosen[i]) for i in part]
            logits = network([rows[i] for i in members])
            known = [training[i].faults[[first >= 0 for first, _ in rows[i][1]]] for i in members]
            target = torch.from_numpy(np.concatenate(known)).to(logits)
            loss = F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / count
            loss.backward()
            total += loss.item()
        return total

    losses = fit(
        {name: p for name, p in network.named_parameters() if p.requires_grad},
        list(shuffled_batches(len(training), batch_size, epochs, np.random.default_rng(seed))),
        accumulate,
        learning_rate=learning_rate,
        max_grad_norm=MAX_GRAD_NORM,
        optimizer=torch.optim.AdamW([g for g in groups if g["params"]], lr=learning_rate, weight_decay=0.0),
        identity=_identity(model, training, rows, epochs, batch_size, learning_rate, rate, seed),
        checkpoint=checkpoint,
        resume=resume,
        title="reward model of spans",
        progress_bar=progress_bar,
    )
    model.normalize(prompts, responses, **columns)
    shares = _shares(model, training, held_out) if held_out else []
    return SpanReport(losses, len(training), len(held_out), shares)


def _shown(model: SpanRewardModel, texts: Sequence[MarkedText]) -> tuple[list[str], list[str], dict[str, list[Any]]]:
    prompts = [prompt_text(text.record.prompt, model.tokenizer) for text in texts]
    names = dict.fromkeys(name for text in texts for name in text.record.columns if name.isidentifier())
    columns = {name: [text.record.columns.get(name) for text in texts] for name in names}
    return prompts, [text.response for text in texts], columns


def _identity(model: SpanRewardModel, training: Sequence[MarkedText], rows: Any, *settings: Any) -> dict[str, Any]:
    names = ("epochs", "batch_size", "learning_rate", "head_learning_rate", "seed")
    content = [[row, places, text.faults.tolist()] for (row, places), text in zip(rows, training, strict=True)]
    return {
        **dict(zip(names, settings, strict=True)),
        "kinds": list(model.kinds),
        "texts": hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16],
        "frozen_weights": weights_digest(p for p in model.network.parameters() if not p.requires_grad),
    }


# -- how good it is ------------------------------------------------------------------------------------
def _shares(model: SpanRewardModel, training: Sequence[MarkedText], held_out: Sequence[MarkedText]) -> list[SpanShare]:
    prompts, responses, columns = _shown(model, held_out)
    logits = np.concatenate(model.segment_logits(prompts, responses, columns))
    known = np.isfinite(logits).all(1)
    faults = np.concatenate([text.faults for text in held_out])[known]
    pieces = [text.response[start:end] for text in held_out for start, end in segments(text.response)]
    pieces = [piece for piece, seen in zip(pieces, known, strict=True) if seen]
    lengths = np.array([len(piece) for piece in pieces], dtype=np.float64)
    found = []
    for k, kind in enumerate(model.kinds):
        odds = _word_odds(training, k)
        said = np.array([np.mean([odds.get(word, 0.0) for word in _words(piece)] or [0.0]) for piece in pieces])
        target = faults[:, k]
        ranked = [_ranked(values, target) for values in (logits[known, k], lengths, said)]
        found.append(SpanShare(kind, len(target), int(target.sum()), *ranked))
    return found


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.lower().split())


def _word_odds(training: Sequence[MarkedText], kind: int) -> dict[str, float]:
    """The log-odds of each word in segments with a fault against those without, with one added to each count."""
    counts: dict[str, list[int]] = {}
    for text in training:
        for (start, end), fault in zip(segments(text.response), text.faults[:, kind], strict=True):
            for word in set(_words(text.response[start:end])):
                counts.setdefault(word, [1, 1])[int(fault)] += 1
    return {word: float(np.log(with_fault / without)) for word, (without, with_fault) in counts.items()}


def _ranked(values: np.ndarray, target: np.ndarray) -> float:
    """How often a value of the target is above one of the others, equal ones counting half."""
    positive, negative = values[target], values[~target]
    if not len(positive) or not len(negative):
        return float("nan")
    difference = positive[:, None] - negative[None, :]
    return float((difference > 0).mean() + (difference == 0).mean() / 2)
