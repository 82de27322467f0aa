"""Supervised fine-tuning, the first phase of RLHF: maximize the likelihood of demonstrations.

Only the response's tokens and the EOS after it are learned, the prompt is given (Ouyang et al. 2022,
arXiv:2203.02155, section 3.5; Stiennon et al. 2020, arXiv:2009.01325, appendix B.1).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from agents.base.config import MEMORY_ONLY, make_config
from agents.learning.likelihood import add_likelihood_gradient, perplexity
from agents.learning.trainable import trained_by_name, unfreeze_if_frozen
from agents.run.early_stopping import EarlyStopping, HeldOutLoss
from lm_env.data.demonstrations import read_demonstrations
from lm_env.data.episodes import Episodes
from lm_env.distributed import processes
from lm_env.errors import ConfigurationError
from lm_env.explain import explained
from lm_env.models.fitting import fit
from lm_env.models.inputs import shuffled_batches
from lm_env.models.inspection import device_of, evaluating, facts_of
from lm_env.models.packing import check_packing
from lm_env.storage import Checkpointing
from lm_env.validation import check_field_types, check_integers, check_numbers

__all__ = ["SFTConfig", "SFTReport", "load_demonstrations", "supervised_finetune"]


@explained
@dataclass(frozen=True)
class SFTConfig:
    """Options of supervised fine-tuning."""

    epochs: int = 1
    """Passes over the demonstrations."""
    batch_size: int = 32
    """Demonstrations per optimizer step."""
    learning_rate: float = 1e-4
    """Adam's step size at the start; it falls to 0 along a cosine."""
    held_out_fraction: float = 0.1
    """The share of the demonstrations that is kept for the report's perplexity, below 1."""
    max_tokens: int | None = None
    """Longer demonstrations are cut; default the model's positions, or 1024 where it has no limit."""
    micro_batch_tokens: int = 16_384
    """Padded tokens per forward; memory only, the gradient is the same."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    bf16: bool = False
    """Forwards and backwards under bfloat16 autocast; the weights stay as they are."""
    packing: bool = False
    """Read short demonstrations side by side in rows without padding; the gradient is the same."""
    patience: int | None = None
    """Stop after so many measurements in a row on what is held out without a lower loss, and keep the best weights."""
    eval_steps: int | None = None
    """Steps between two such measurements; default one pass over the demonstrations."""
    seed: int = 0
    """The seed of what is held out, and of the batches."""

    def __post_init__(self) -> None:
        check_field_types(self)
        check_integers(self, "epochs", "batch_size", "micro_batch_tokens")
        check_integers(self, "seed", low=0)
        check_numbers(self, "learning_rate", "max_grad_norm", low=0.0, above=True)
        check_numbers(self, "held_out_fraction", low=0.0, high=0.99)
        if self.max_tokens is not None:
            check_integers(self, "max_tokens", low=2)
        for name in ("patience", "eval_steps"):
            if getattr(self, name) is not None:
                check_integers(self, name)
        if self.patience is not None and not self.held_out_fraction:
            raise ConfigurationError("patience looks at the demonstrations held out: raise held_out_fraction above 0")
        if self.eval_steps is not None and self.patience is None:
            raise ConfigurationError("eval_steps says when to look whether to stop: give patience as well")


@dataclass(frozen=True)
class SFTReport:
    """What a fine-tuning did."""

    losses: list[float]
    """One per step: the mean negative log-likelihood of its batch before the step, nats per token."""
    perplexity_before: float | None
    perplexity_after: float | None
    """Per response token of the demonstrations held out; None when none were."""
    held_out_losses: tuple[HeldOutLoss, ...] = ()
    """With `patience`: the loss on what is held out in the course of the training, nats per token."""


def load_demonstrations(source: Any, tokenizer: Any, **options: Any) -> Episodes:
    """Read demonstrations as episodes whose responses are learned; see `read_demonstrations` for all else."""
    return read_demonstrations(source, tokenizer, **options).episodes


def supervised_finetune(
    model: nn.Module,
    tokenizer: Any,
    source: Any,
    *,
    eos_token_id: int | None = None,
    prompt_column: str | None = None,
    response_column: str | None = None,
    separator: str = "",
    download: bool = False,
    progress_bar: bool = False,
    show: Callable[[str], object] | None = None,
    checkpoint: Checkpointing | None = None,
    resume: bool = False,
    **options: Any,
) -> SFTReport:
    """Train a causal LM in place; the same seed gives the same weights.  Dropout is off.

    Several processes of one run (`agents.processes`) divide each batch, and end with the weights that one would.

    Args:
        source, eos_token_id, prompt_column, response_column, separator, download: see `read_demonstrations`.
        show: is given, before anything is learned, a few lines that say what will be, with a decoded example;
            `print` shows them.
        checkpoint: save the run in a folder as it goes, and when Ctrl-C or SIGTERM ends it.
        resume: go on from the newest checkpoint there, with the model, the data and the options that the run
            began with; from the beginning where there is none.
        options: the fields of `SFTConfig`.

    Raises:
        ConfigurationError: an impossible setting, too few demonstrations to hold some out, rows of which it is not
            clear what is to be learned; or processes were given different options or data.
        UnsupportedModelError: texts are to be packed, and the model lets them see each other.
        NonFiniteError: a gradient is NaN or infinite; the weights are those of before that step.
        CheckpointMismatchError, CheckpointWriteError, TrainingInterrupted, LostProcessError: see
            `lm_env.models.fitting.fit`.
    """
    config = make_config(SFTConfig, "supervised_finetune", options)
    facts, rng = facts_of(model), np.random.default_rng(config.seed)
    demonstrations = read_demonstrations(
        source,
        tokenizer,
        vocab_size=facts.vocab_size,
        max_tokens=config.max_tokens or facts.max_positions or 1024,
        eos_token_id=eos_token_id,
        prompt_column=prompt_column,
        response_column=response_column,
        separator=separator,
        download=download,
    )
    if config.packing:
        check_packing(model)
    training, held_out = _split(demonstrations.episodes, config.held_out_fraction, rng)
    unfreeze_if_frozen(model)
    together = processes()
    together.broadcast_weights([model])
    if show is not None and together.first:
        show(demonstrations.description(tokenizer))
    before = None if held_out is None else perplexity(model, held_out)
    stopping = _early_stopping(model, len(training), held_out, config)
    losses = _train(
        model, training, config, rng, stopping, progress_bar=progress_bar, checkpoint=checkpoint, resume=resume
    )
    after = None if held_out is None else perplexity(model, held_out)
    return SFTReport(losses, before, after, () if stopping is None else tuple(stopping.history))


def _early_stopping(
    model: nn.Module, training: int, held_out: Episodes | None, config: SFTConfig
) -> EarlyStopping | None:
    if config.patience is None or held_out is None:
        return None
    every = config.eval_steps or -(-training // config.batch_size)
    return EarlyStopping(
        trained_by_name(model), lambda: math.log(perplexity(model, held_out)), every=every, patience=config.patience
    )


def _split(episodes: Episodes, fraction: float, rng: np.random.Generator) -> tuple[Episodes, Episodes | None]:
    """-> (to train on, held out)."""
    order, cut = rng.permutation(len(episodes)), round(fraction * len(episodes))
    if cut == len(episodes) or (fraction and not cut):
        raise ConfigurationError(
            f"{len(episodes)} demonstrations are too few to hold out {fraction:g} of: give more, or held_out_fraction=0"
        )
    return episodes[order[cut:]], episodes[order[:cut]] if cut else None


def _train(
    model: nn.Module,
    episodes: Episodes,
    config: SFTConfig,
    rng: np.random.Generator,
    stopping: EarlyStopping | None,
    **running: Any,
) -> list[float]:
    """The loss of each step; `running` is what `fit` takes about checkpoints and progress."""

    @contextmanager
    def forwards() -> Iterator[None]:
        with evaluating(model), torch.autocast(device_of(model).type, torch.bfloat16, enabled=config.bf16):
            yield

    def accumulate(rows: np.ndarray) -> float:
        return add_likelihood_gradient(
            model, episodes[rows], 1.0, config.micro_batch_tokens, forwards, packed=config.packing
        )

    options = {name: value for name, value in vars(config).items() if name not in MEMORY_ONLY}
    losses = fit(
        trained_by_name(model),
        list(shuffled_batches(len(episodes), config.batch_size, config.epochs, rng)),
        accumulate,
        learning_rate=config.learning_rate,
        max_grad_norm=config.max_grad_norm,
        identity={**options, "demonstrations": _digest(episodes)},
        stopping=stopping,
        title="fine-tuning",
        **running,
    )
    if stopping is not None:
        stopping.restore(len(losses))
    return losses


def _digest(episodes: Episodes) -> str:
    """A digest of all tokens, and of what is learned of them."""
    rows = (row[:n].tolist() for row, n in zip(episodes.input_ids, episodes.lengths, strict=True))
    content = json.dumps([list(rows), episodes.prompt_lengths.tolist()])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
