"""Direct preference optimization: learn from comparisons without a reward model and without sampling.

The policy itself is the reward model: beta log(pi / pi_ref) is trained to explain who won (Rafailov et al. 2023,
arXiv:2305.18290).  If the comparisons follow the Bradley-Terry model of a reward r and the policy can be anything, the
minimum is pi_ref exp(r / beta) / Z, the same optimum of E[r] - beta KL that the RL agents look for.

Shapes: R responses of all records.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from agents.base.config import MEMORY_ONLY, make_config
from agents.learning.likelihood import text_logprobs
from agents.learning.policy import ValueHeadPolicy
from agents.learning.preference.implied_reward import NO_COMPARISONS, ImpliedReward, ranked_comparisons
from agents.learning.preference.judged_texts import JudgedBatch, JudgedTexts, describe_texts, encode_judged
from agents.learning.preference.loss import PreferenceLoss, preference_loss, response_sums
from agents.learning.trainable import trained_by_name, unfreeze_if_frozen
from agents.run.early_stopping import EarlyStopping, HeldOutLoss
from lm_env.distributed import processes
from lm_env.errors import ConfigurationError
from lm_env.explain import explained
from lm_env.models.fitting import fit, weights_digest
from lm_env.models.inputs import shuffled_batches
from lm_env.models.inspection import ModelFacts, device_of, evaluating, facts_of
from lm_env.storage import Checkpointing
from lm_env.validation import check_choice, check_field_types, check_integers, check_numbers
from reward_models.preferences.reading import read_preferences
from reward_models.preferences.records import Comparison
from reward_models.preferences.records.preference import Preference
from reward_models.preferences.splitting import split_records

__all__ = ["DPOConfig", "DPOReport", "ImpliedReward", "dpo_finetune"]


@explained
@dataclass(frozen=True)
class DPOConfig:
    """Options of direct preference optimization."""

    beta: float = 0.1
    """Weight of the KL penalty, score per nat: the implied reward is beta log(pi / pi_ref)."""
    loss: PreferenceLoss = "sigmoid"
    """`sigmoid` is DPO; `ipo` stays finite where one response always wins."""
    label_smoothing: float = 0.0
    """The probability that a label is wrong, below 1/2; above 0 it is conservative DPO."""
    temperature: float = 1.0
    """Divides the logits of policy and reference; the temperature that the policy will be sampled at."""
    epochs: int = 1
    """Passes over the records."""
    batch_size: int = 32
    """Records per optimizer step."""
    learning_rate: float = 2e-5
    """Adam's step size at the start; it falls to 0 along a cosine."""
    held_out_fraction: float = 0.1
    """The share of the prompts whose records are kept for the report, below 1."""
    max_tokens: int | None = None
    """Longer texts are cut; default the model's positions, or 1024 where it has no limit."""
    micro_batch_tokens: int = 16_384
    """Padded tokens per forward; memory only, the gradient is the same."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    bf16: bool = False
    """Forwards and backwards under bfloat16 autocast; the weights stay as they are."""
    patience: int | None = None
    """Stop after so many measurements in a row on what is held out without a lower loss, and keep the best weights."""
    eval_steps: int | None = None
    """Steps between two such measurements; default one pass over the records."""
    seed: int = 0
    """The seed of what is held out, and of the batches."""

    def __post_init__(self) -> None:
        check_field_types(self)
        check_choice("loss", self.loss, get_args(PreferenceLoss))
        check_integers(self, "epochs", "batch_size", "micro_batch_tokens")
        check_integers(self, "seed", low=0)
        check_numbers(self, "beta", "temperature", "learning_rate", "max_grad_norm", low=0.0, above=True)
        check_numbers(self, "label_smoothing", low=0.0, high=0.499)
        check_numbers(self, "held_out_fraction", low=0.0, high=0.99)
        for name, low in (("max_tokens", 2), ("patience", 1), ("eval_steps", 1)):
            if getattr(self, name) is not None:
                check_integers(self, name, low=low)
        if self.patience is not None and not self.held_out_fraction:
            raise ConfigurationError("patience looks at the records held out: raise held_out_fraction above 0")
        if self.eval_steps is not None and self.patience is None:
            raise ConfigurationError("eval_steps says when to look whether to stop: give patience as well")


@dataclass(frozen=True)
class DPOReport:
    """What a training did."""

    losses: list[float]
    """One per step: the mean loss of its records before the step."""
    training: int
    held_out: int
    """How many records were trained on, and held out."""
    before: ImpliedReward | None
    after: ImpliedReward | None
    """On the records held out; None when none were."""
    held_out_losses: tuple[HeldOutLoss, ...] = ()
    """With `patience`: the loss on what is held out in the course of the training."""


def dpo_finetune(
    model: nn.Module,
    tokenizer: Any,
    source: Any,
    *,
    reference: nn.Module | None = None,
    eos_token_id: int | None = None,
    separator: str = "",
    format: str | None = None,
    skip_bad: bool = False,
    download: bool = False,
    progress_bar: bool = False,
    show: Callable[[str], object] | None = None,
    checkpoint: Checkpointing | None = None,
    resume: bool = False,
    **options: Any,
) -> DPOReport:
    """Train a causal LM in place on comparisons; the same seed gives the same weights.  Dropout is off.

    All comparisons of a record are in one batch element, in which each response is read once.  The reference's logprobs
    are computed once, before the training, so that no step of the training needs the reference.  Several
    processes of one run (`agents.processes`) divide each batch, and end with the weights that one would.

    Args:
        source: what `read_preferences` takes, or a list of `Comparison`s and `Preference`s.
        reference: the model of the KL penalty; default: `model` as it is given.
        eos_token_id: put behind each response that is text; default: the tokenizer's.
        separator: text put behind each prompt that is text; prompts need it wherever the model is used.
        format, skip_bad, download: see `read_preferences`.
        show: called before the training with a few lines about the data, for example `print`.
        checkpoint: save the run in a folder as it goes, and when Ctrl-C or SIGTERM ends it.
        resume: go on from the newest checkpoint there, with the model, the data and the options that the run began
            with; from the beginning where there is none.
        options: the fields of `DPOConfig`.

    Raises:
        ConfigurationError: an impossible setting, too few records to hold some out, or none that compares two texts; or
            processes were given different options or data.
        InvalidPreferenceError, InvalidPromptError: a row or a prompt is broken; the message names it.
        NonFiniteError: a gradient is NaN or infinite; the weights are those of before that step.
        CheckpointMismatchError, CheckpointWriteError, TrainingInterrupted, LostProcessError: see
            `lm_env.models.fitting.fit`.
    """
    config = make_config(DPOConfig, "dpo_finetune", options)
    facts, rng = facts_of(model), np.random.default_rng(config.seed)
    records = _records(source, format=format, skip_bad=skip_bad, tokenizer=tokenizer, download=download)
    texts, held_out_texts = _encoded(records, tokenizer, facts, config, rng, eos_token_id, separator)
    if show is not None and processes().first:
        show(describe_texts(texts, held_out_texts))
    reference = model if reference is None else reference
    unfreeze_if_frozen(model)
    processes().broadcast_weights([model] if reference is model else [model, reference])
    training = _LossOnRecords(model, reference, texts, config)
    held_out = None if held_out_texts is None else _LossOnRecords(model, reference, held_out_texts, config)
    before = None if held_out is None else held_out.measure()
    running = {"checkpoint": checkpoint, "resume": resume, "progress_bar": progress_bar}
    losses, history = _train(model, reference, training, held_out, rng, **running)
    after = None if held_out is None else held_out.measure()
    return DPOReport(losses, len(texts), 0 if held_out is None else len(held_out.texts), before, after, history)


class _LossOnRecords:
    """The loss of a model, as it is at each call, on encoded records with R responses.

    The reference is only needed once, for its logprobs of the responses, and is not kept.
    """

    def __init__(self, model: nn.Module, reference: nn.Module, texts: JudgedTexts, config: DPOConfig) -> None:
        self.policy = ValueHeadPolicy(model, "none", config.temperature)
        self.texts = texts
        self.config = config
        self.ref_logprobs = text_logprobs(reference, texts.episodes, config.temperature)
        """float64 (R,): of each whole response under the reference, nats."""

    def accumulate(self, chosen: np.ndarray) -> float:
        """Add the gradient of the mean loss of some records, in micro-batches of whole records; returns that loss.

        Of several processes, each does so for its share of the records, whose indexes are `chosen`, and returns its
        part of the loss.
        """
        total = 0.0
        own = chosen[processes().deal(self.texts.longest(chosen))]
        for batch in self.texts.micro_batches(own, self.config.micro_batch_tokens):
            with torch.autocast(device_of(self.policy).type, torch.bfloat16, enabled=self.config.bf16):
                logprobs = self._logprobs(batch)
            loss = self._loss(batch, logprobs) / len(chosen)
            loss.backward()
            total += loss.item()
        return total

    def _logprobs(self, batch: JudgedBatch) -> Tensor:
        """The logprob of each whole response of the batch, nats."""
        with evaluating(self.policy):
            return response_sums(self.policy.evaluate(batch.episodes).logprobs, batch.episodes)

    def _loss(self, batch: JudgedBatch, logprobs: Tensor) -> Tensor:
        """The sum over records of the mean loss of a record's comparisons, a scalar."""
        ratio = logprobs - torch.from_numpy(self.ref_logprobs[batch.rows]).to(logprobs)
        losses = preference_loss(
            ratio[torch.from_numpy(batch.first)] - ratio[torch.from_numpy(batch.second)],
            torch.from_numpy(batch.chances).to(logprobs),
            self.config.beta,
            kind=self.config.loss,
            label_smoothing=self.config.label_smoothing,
        )
        return (losses * torch.from_numpy(batch.weights).to(losses)).sum()

    @torch.no_grad()
    def measure(self) -> ImpliedReward:
        """The implied reward on all records; several processes each take a part of them."""
        loss = 0.0
        ranked = []
        together = processes()
        own = np.arange(len(self.texts))[together.share(len(self.texts))]
        for batch in self.texts.micro_batches(own, self.config.micro_batch_tokens):
            logprobs = self._logprobs(batch)
            loss += float(self._loss(batch, logprobs))
            ranked.append(ranked_comparisons(batch, logprobs.double().cpu().numpy(), self.ref_logprobs[batch.rows]))
        table = together.gather_rows({"ranked": np.concatenate([NO_COMPARISONS, *ranked])}, 0)["ranked"]
        return ImpliedReward.of(table, self.config.beta, sum(together.gather(loss)) / len(self.texts))


def _records(source: Any, **reading: Any) -> list[Comparison | Preference]:
    """The records of a source: a list of them as it is, all else by `read_preferences` with its arguments `reading`."""
    if isinstance(source, Sequence) and source and all(isinstance(r, Comparison | Preference) for r in source):
        return list(source)
    return list(read_preferences(source, **reading))


def _encoded(
    records: Sequence[Comparison | Preference],
    tokenizer: Any,
    facts: ModelFacts,
    config: DPOConfig,
    rng: np.random.Generator,
    eos_token_id: int | None,
    separator: str,
) -> tuple[JudgedTexts, JudgedTexts | None]:
    """(the records to train on, those held out or None if none are), as token ids."""
    training, held_out = split_records(records, config.held_out_fraction, rng)
    encode = partial(
        encode_judged,
        tokenizer=tokenizer,
        vocab_size=facts.vocab_size,
        max_tokens=config.max_tokens or facts.max_positions or 1024,
        eos_token_id=eos_token_id,
        separator=separator,
    )
    return encode(training), encode(held_out) if held_out else None


def _identity(config: DPOConfig, texts: JudgedTexts, reference: nn.Module) -> dict[str, Any]:
    """What must be the same where a run is resumed, JSON."""
    return {
        **{name: value for name, value in vars(config).items() if name not in MEMORY_ONLY},
        "records": texts.digest(),
        "reference": weights_digest(reference.parameters()),
    }


def _early_stopping(
    model: nn.Module, training: _LossOnRecords, held_out: _LossOnRecords | None
) -> EarlyStopping | None:
    """What ends the training by its loss on the records held out; None without `patience` or without such records."""
    config = training.config
    if config.patience is None or held_out is None:
        return None
    every = config.eval_steps or -(-len(training.texts) // config.batch_size)
    return EarlyStopping(trained_by_name(model), lambda: held_out.measure().loss, every=every, patience=config.patience)


def _train(
    model: nn.Module,
    reference: nn.Module,
    training: _LossOnRecords,
    held_out: _LossOnRecords | None,
    rng: np.random.Generator,
    **running: Any,
) -> tuple[list[float], tuple[HeldOutLoss, ...]]:
    """(the loss of each step, the held-out losses); with early stopping, the model ends with its best weights.

    `running` is what `fit` takes about checkpoints and progress.
    """
    config = training.config
    stopping = _early_stopping(model, training, held_out)
    losses = fit(
        trained_by_name(model),
        list(shuffled_batches(len(training.texts), config.batch_size, config.epochs, rng)),
        training.accumulate,
        learning_rate=config.learning_rate,
        max_grad_norm=config.max_grad_norm,
        identity=_identity(config, training.texts, reference),
        stopping=stopping,
        title="DPO",
        **running,
    )
    if stopping is None:
        return losses, ()
    stopping.restore(len(losses))
    return losses, tuple(stopping.history)
