"""Updater: from per-token losses of a rollout to one step of the optimizer.

An algorithm writes its loss; everything else about a step is here: micro-batches, weighting by
the tokens of the whole minibatch, bfloat16, gradient checkpointing, gradient clipping, refusing non-finite
losses and gradients, and the exponential moving average (EMA) of the weights.

    with updater.step(rollout, rows) as step:
        for batch in step.micro_batches():
            evaluation = step.evaluate(batch)
            step.backward(loss(evaluation, batch))

Shapes: B episodes of the rollout, T response tokens, N response tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from agents.learning.gradient_checkpointing import recomputable_layers, recomputing
from agents.learning.metrics import Means
from agents.learning.policy import Evaluation, ValueHeadPolicy
from agents.learning.rollout import Rollout
from agents.learning.trainable import averaged_model, trainable_parameters
from lm_env.data.episodes import Episodes
from lm_env.errors import CheckpointMismatchError, ConfigurationError
from lm_env.explain import explained
from lm_env.models.inputs import length_batches
from lm_env.models.inspection import device_of, evaluating
from lm_env.models.loading import is_quantized
from lm_env.models.optimization import guarded_step, join_optimizer, split_optimizer
from lm_env.objective.task import Task
from lm_env.validation import check_field_types, check_integers, check_numbers

__all__ = ["MicroBatch", "UpdateStep", "Updater", "UpdaterConfig"]


@explained
@dataclass(frozen=True)
class UpdaterConfig:
    """How an agent's losses become steps of Adam."""

    learning_rate: float = 1e-4
    """Adam's step size at the start."""
    lr_schedule: Literal["constant", "linear"] = "linear"
    """Linear falls to 0 at `total_timesteps`."""
    warmup_rollouts: int = 0
    """The learning rate rises from a tenth over this many rollouts (10 in InstructGPT)."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    ema_decay: float | None = None
    """Keep `agent.ema.module`, an exponential moving average of the LM's weights (.992 in InstructGPT)."""
    bf16: bool = False
    """Forwards and backwards of the update under bfloat16 autocast; weights and sums stay fp32."""
    micro_batch_tokens: int = 16_384
    """Padded tokens per forward of an update.  It affects memory use only; the gradient does not depend on it."""
    gradient_checkpointing: bool = False
    """Layers keep only their inputs for the backward pass: less memory for one more forward, the same gradient."""

    def __post_init__(self) -> None:
        check_field_types(self)
        check_numbers(self, "learning_rate", "max_grad_norm", low=0.0, above=True)
        check_integers(self, "warmup_rollouts", low=0)
        check_integers(self, "micro_batch_tokens")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigurationError(f"ema_decay must lie between 0 and 1, not {self.ema_decay!r}")


class Updater:
    """Owns the optimizer, its schedule, the precision of the update and the average of the weights.

    Args:
        policy: the model under training with its critic; what is frozen in it stays frozen.
        task: the environment's task, for its action masks and its adapter.
        config: see `UpdaterConfig`.

    Raises:
        ConfigurationError: nothing can be trained, as in a quantized model without an adapter.
        UnsupportedModelError: gradient checkpointing is asked of a model that does not support it.
    """

    def __init__(self, policy: ValueHeadPolicy, task: Task, config: UpdaterConfig) -> None:
        self.policy = policy
        self.task = task
        self.config = config
        trained = trainable_parameters(policy, task)
        self.optimizer = torch.optim.Adam(trained, lr=config.learning_rate, eps=1e-8, fused=True)
        self.ema: AveragedModel | None = averaged_model(policy.lm, config.ema_decay)
        self._checkpointed = recomputable_layers(policy) if config.gradient_checkpointing else []
        self._means = Means()

    @property
    def rounds(self) -> bool:
        """Whether the update's logprobs differ from sampling's by rounding, which is then no sign of a mistake."""
        return self.config.bf16 or is_quantized(self.task.model)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the coming step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def schedule(self, remaining: float, rollouts: int) -> None:
        """Set the learning rate for the next rollout.

        Args:
            remaining: the share of the training that is still ahead, 1 to 0.
            rollouts: how many rollouts there have been, for the warm-up.
        """
        factor = remaining if self.config.lr_schedule == "linear" else 1.0
        if rollouts < self.config.warmup_rollouts:
            factor *= 0.1 + 0.9 * rollouts / self.config.warmup_rollouts
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * factor

    @contextmanager
    def step(
        self, rollout: Rollout, rows: np.ndarray | None = None, weights: np.ndarray | None = None
    ) -> Iterator[UpdateStep]:
        """One step of the optimizer, taken when the block ends.

        Args:
            rows: the episodes of the minibatch, indices into the rollout; default: all of them.
            weights: float (B,), the weight of the loss of each token of an episode.  Default: 1 / all tokens
                of the minibatch, so that the loss is the mean over its tokens.

        Raises:
            NonFiniteError: a loss or a gradient is NaN or infinite; the weights are those of before this step.
        """
        rows = np.arange(len(rollout)) if rows is None else rows
        if weights is None:
            weights = np.full(len(rollout), 1 / rollout.episodes.response_lengths[rows].sum())
        self.optimizer.zero_grad()
        update = UpdateStep(self, rollout, rows, weights, self._means)
        try:
            yield update
            norm = guarded_step(self.optimizer, self.policy.parameters(), self.config.max_grad_norm, loss=update.loss)
        except BaseException:
            self.optimizer.zero_grad()
            self._means = Means()
            raise
        if self.ema is not None:
            self.ema.update_parameters(self.policy.lm)
        self._means.add("grad_norm", norm)

    def metrics(self) -> dict[str, float]:
        """The means of what was recorded since the last call, by name."""
        means = self._means.result()
        self._means = Means()
        return means

    @contextmanager
    def forwards(self) -> Iterator[None]:
        """Forwards of the update: bfloat16 and gradient checkpointing where asked for, dropout off."""
        autocast = (
            torch.autocast(device_of(self.policy).type, dtype=torch.bfloat16) if self.config.bf16 else nullcontext()
        )
        with autocast, evaluating(self.policy), recomputing(self._checkpointed):
            yield

    # -- on disk --------------------------------------------------------------------------------------
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors of the optimizer and of the weight average, a JSON dict with the number of trained tensors).

        The optimizer's options are not part of it: they are the config's.
        """
        tensors, _ = split_optimizer(self.optimizer.state_dict())
        tensors = {f"optimizer.{name}": tensor for name, tensor in tensors.items()}
        if self.ema is not None:
            tensors |= {f"ema.{name}": tensor for name, tensor in self.ema.state_dict().items()}
        return tensors, {"trained": len(self._trained)}

    def check_state(self, tensors: dict[str, Tensor], layout: dict[str, Any]) -> None:
        """Raise CheckpointMismatchError unless `restore` could take what `state` gave."""
        if layout.get("trained") != len(self._trained):
            raise CheckpointMismatchError(
                f"{layout.get('trained')} tensors were trained, {len(self._trained)} are trainable here"
            )
        for name, tensor in _part(tensors, "optimizer.").items():
            index = int(name.partition(".")[0])
            fits = index < len(self._trained) and tensor.shape in ((), self._trained[index].shape)
            if not fits:
                raise CheckpointMismatchError(f"the optimizer's {name} does not fit the tensor that it belongs to")
        own = {} if self.ema is None else self.ema.state_dict()
        given = _part(tensors, "ema.")
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in given.items()}:
            raise CheckpointMismatchError("the average of the weights does not fit: load with the same ema_decay")

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back the tensors that `state` gave."""
        layout = {"param_groups": self.optimizer.state_dict()["param_groups"]}
        self.optimizer.load_state_dict(join_optimizer(_part(tensors, "optimizer."), layout))
        if self.ema is not None:
            self.ema.load_state_dict(_part(tensors, "ema."))

    @property
    def _trained(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]


class UpdateStep:
    """The gradient of one minibatch, micro-batch by micro-batch; made by `Updater.step`."""

    def __init__(self, updater: Updater, rollout: Rollout, rows: np.ndarray, weights: np.ndarray, means: Means) -> None:
        self._updater = updater
        self._rollout = rollout
        self._rows = rows
        self._weights = weights
        self._means = means
        self._weight_of_tokens: Tensor | None = None
        self._loss = torch.zeros(())

    @property
    def loss(self) -> float:
        """The weighted sum of all losses given to `backward` so far."""
        return float(self._loss)

    def micro_batches(self, together: int = 1) -> Iterator[MicroBatch]:
        """The minibatch in parts of similar length, which keeps padding and memory low.

        The weights are those of the whole minibatch, so the gradient does not depend on how it is cut.

        Args:
            together: so many neighboring episodes are never cut apart, for losses that compare them; it divides the
                minibatch.
        """
        groups = self._rows.reshape(-1, together)
        lengths = self._rollout.episodes.lengths[groups].max(1)
        for part in length_batches(lengths, max(1, self._updater.config.micro_batch_tokens // together)):
            rows = groups[part].reshape(-1)
            batch = MicroBatch(self._rollout, rows, _compute_dtype(self._updater.policy), self._means)
            self._weight_of_tokens = batch.tokens(self._weights)
            yield batch

    def evaluate(self, batch: MicroBatch, keep_logits: bool = False) -> Evaluation:
        """The policy's logprobs and values of the batch's tokens, with their graph.

        Args:
            keep_logits: keep `Evaluation.logits` as well, for losses that read the whole distribution.
        """
        updater = self._updater
        with updater.forwards():
            evaluation = updater.policy.evaluate(batch.episodes, updater.task.allowed_in(batch.episodes), keep_logits)
        with torch.no_grad():
            log_ratio = evaluation.logprobs - batch.old_logprobs
            batch.record(approx_kl=torch.expm1(log_ratio) - log_ratio)
            self._means.first("first_log_ratio", log_ratio.abs().max())
        return evaluation

    def backward(self, losses: Tensor) -> None:
        """Add the gradient of the losses (N,) of the micro-batch under way, weighted."""
        assert self._weight_of_tokens is not None, "backward is called inside the loop over micro_batches"
        loss = (losses * self._weight_of_tokens).sum()
        loss.backward()
        self._loss = self._loss.to(loss.device) + loss.detach()


class MicroBatch:
    """Some episodes of a rollout, and its arrays cut to their response tokens."""

    def __init__(self, rollout: Rollout, rows: np.ndarray, dtype: tuple[torch.device, torch.dtype], means: Means):
        self.rows = rows
        """int (k,): which episodes of the rollout these are."""
        self.episodes: Episodes = rollout.episodes[rows]
        self._rollout = rollout
        self._mask = rollout.mask[rows]
        self._device, self._dtype = dtype
        self._means = means

    def tokens(self, values: np.ndarray) -> Tensor:
        """The entries (N,) of the batch's response tokens, row after row.

        Args:
            values: of the whole rollout, (B, T) one per token, or (B,) one per episode.
        """
        rows = values[self.rows]
        real = rows[self._mask] if values.ndim == 2 else np.repeat(rows, self._mask.sum(1))
        return torch.from_numpy(real).to(self._device, self._dtype)

    @property
    def old_logprobs(self) -> Tensor:
        """(N,) logprobs under the policy that sampled, nats."""
        return self.tokens(self._rollout.scored.logprobs)

    @property
    def ref_logprobs(self) -> Tensor:
        """(N,) logprobs under the reference, nats."""
        return self.tokens(self._rollout.scored.ref_logprobs)

    @property
    def old_values(self) -> Tensor:
        """(N,) values before each token, as the critic saw them when sampling."""
        return self.tokens(self._rollout.values)

    def record(self, **columns: Tensor) -> None:
        """Log the means over all tokens of the update, by name; each column is (N,)."""
        self._means.add_tokens(**{name: column.detach() for name, column in columns.items()})


def _compute_dtype(policy: ValueHeadPolicy) -> tuple[torch.device, torch.dtype]:
    """Where losses are computed, and in what: fp32, or fp64 for a model in it."""
    dtypes = [p.dtype for p in policy.lm.parameters() if p.is_floating_point()]
    double = torch.float64 in dtypes
    return device_of(policy), torch.float64 if double else torch.float32


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
