"""Supervised fine-tuning, the first phase of RLHF: maximize the likelihood of demonstrations.

Only the response's tokens and the EOS after it are learned, the prompt is given (Ouyang et al. 2022,
arXiv:2203.02155, section 3.5; Stiennon et al. 2020, arXiv:2009.01325, appendix B.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from agents.base.config import make_config
from agents.learning.likelihood import add_likelihood_gradient, perplexity, text_episodes
from lm_env.data.episodes import Episodes
from lm_env.data.prompts import Prompt, load_prompts
from lm_env.errors import ConfigurationError
from lm_env.models.inputs import shuffled_batches
from lm_env.models.inspection import device_of, evaluating, facts_of
from lm_env.models.optimization import guarded_step
from lm_env.progress import tracked
from lm_env.validation import check_integers, check_numbers

__all__ = ["SFTConfig", "SFTReport", "load_demonstrations", "supervised_finetune"]


@dataclass(frozen=True)
class SFTConfig:
    """Options of supervised fine-tuning."""

    epochs: int = 1
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
    bf16: bool = False
    """Forwards and backwards under bfloat16 autocast; the weights stay as they are."""
    seed: int = 0
    """The seed of what is held out, and of the batches."""

    def __post_init__(self) -> None:
        check_integers(self, "epochs", "batch_size", "micro_batch_tokens")
        check_integers(self, "seed", low=0)
        check_numbers(self, "learning_rate", "max_grad_norm", low=0.0, above=True)
        check_numbers(self, "held_out_fraction", low=0.0, high=0.99)
        if self.max_tokens is not None:
            check_integers(self, "max_tokens", low=2)


@dataclass(frozen=True)
class SFTReport:
    """What a fine-tuning did."""

    losses: list[float]
    """One per step: the mean negative log-likelihood of its batch before the step, nats per token."""
    perplexity_before: float | None
    perplexity_after: float | None
    """Per response token of the demonstrations held out; None when none were."""


def load_demonstrations(
    source: Any,
    tokenizer: Any,
    *,
    vocab_size: int,
    max_tokens: int,
    eos_token_id: int | None = None,
    response_column: str = "response",
    download: bool = False,
) -> Episodes:
    """Read demonstrations as episodes.

    Args:
        source: what `load_prompts` takes.  Rows with a `response_column` (text, or token ids) are
            prompts and what to answer; others are whole texts, learned from their second token on.
        max_tokens: longer ones lose their end, and the EOS with it.
        eos_token_id: put behind each; default the tokenizer's.

    Raises:
        InvalidPromptError: see `load_prompts`.
        ConfigurationError: a response that is neither text nor ids, or nothing is left to learn of one.
    """
    prompts = load_prompts(source, tokenizer, vocab_size=vocab_size, max_prompt_tokens=2**31 - 1, download=download)
    eos = getattr(tokenizer, "eos_token_id", None) if eos_token_id is None else eos_token_id
    end = [] if eos is None else [int(eos)]
    answered = response_column in prompts.columns
    rows = []
    given = []
    for prompt in prompts:
        response = _response_ids(prompt, response_column, tokenizer, vocab_size) if answered else []
        row = [*prompt.ids.tolist(), *response, *end][:max_tokens]
        given.append(len(prompt.ids) if answered else 1)
        if len(row) <= given[-1]:
            raise ConfigurationError(
                f"demonstration {prompt.index} has nothing to learn: its prompt has {given[-1]} tokens, and"
                f" max_tokens={max_tokens} leaves {len(row)}; raise max_tokens, or drop it"
            )
        rows.append(row)
    return text_episodes(list(prompts), rows, given)


def supervised_finetune(
    model: nn.Module,
    tokenizer: Any,
    source: Any,
    *,
    eos_token_id: int | None = None,
    response_column: str = "response",
    download: bool = False,
    progress_bar: bool = False,
    **options: Any,
) -> SFTReport:
    """Train a causal LM in place; the same seed gives the same weights.  Dropout is off.

    Args:
        source, eos_token_id, response_column, download: see `load_demonstrations`.
        options: the fields of `SFTConfig`.

    Raises:
        ConfigurationError: an impossible setting, or too few demonstrations to hold some out.
        NonFiniteError: a gradient is NaN or infinite; the weights are those of before that step.
    """
    config = make_config(SFTConfig, "supervised_finetune", options)
    facts, rng = facts_of(model), np.random.default_rng(config.seed)
    episodes = load_demonstrations(
        source,
        tokenizer,
        vocab_size=facts.vocab_size,
        max_tokens=config.max_tokens or facts.max_positions or 1024,
        eos_token_id=eos_token_id,
        response_column=response_column,
        download=download,
    )
    training, held_out = _split(episodes, config.held_out_fraction, rng)
    if not any(p.requires_grad for p in model.parameters()):
        model.requires_grad_(True)  # a model loaded by name comes frozen; adapters keep their base so
    before = None if held_out is None else perplexity(model, held_out)
    losses = _train(model, training, config, rng, progress_bar)
    return SFTReport(losses, before, None if held_out is None else perplexity(model, held_out))


def _split(episodes: Episodes, fraction: float, rng: np.random.Generator) -> tuple[Episodes, Episodes | None]:
    """-> (to train on, held out)."""
    order, cut = rng.permutation(len(episodes)), round(fraction * len(episodes))
    if cut == len(episodes) or (fraction and not cut):
        raise ConfigurationError(
            f"{len(episodes)} demonstrations are too few to hold out {fraction:g} of: give more, or held_out_fraction=0"
        )
    return episodes[order[cut:]], episodes[order[:cut]] if cut else None


def _train(
    model: nn.Module, episodes: Episodes, config: SFTConfig, rng: np.random.Generator, progress_bar: bool
) -> list[float]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=config.learning_rate)
    batches = list(shuffled_batches(len(episodes), config.batch_size, config.epochs, rng))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=len(batches))
    losses: list[float] = []

    @contextmanager
    def forwards() -> Iterator[None]:
        with evaluating(model), torch.autocast(device_of(model).type, torch.bfloat16, enabled=config.bf16):
            yield

    for rows in tracked(batches, "fine-tuning", enabled=progress_bar):
        optimizer.zero_grad()
        losses.append(add_likelihood_gradient(model, episodes[rows], 1.0, config.micro_batch_tokens, forwards))
        guarded_step(optimizer, parameters, config.max_grad_norm, loss=losses[-1])
        schedule.step()
    optimizer.zero_grad()
    return losses


def _response_ids(prompt: Prompt, column: str, tokenizer: Any, vocab_size: int) -> Sequence[int]:
    response = prompt.columns[column]
    if isinstance(response, str) and tokenizer is not None:
        return tokenizer(response, add_special_tokens=False)["input_ids"]
    ids = np.asarray(response) if isinstance(response, list | tuple | np.ndarray) else np.zeros((0, 0))
    if ids.ndim != 1 or (ids.size and (ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= vocab_size)):
        raise ConfigurationError(
            f"demonstration {prompt.index} has {column} {str(response)[:60]!r}: give text (with a tokenizer), or a list"
            f" of token ids below {vocab_size}"
        )
    return ids.tolist()
