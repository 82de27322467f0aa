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
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from agents.learning.distributed import as_shards, whole
from agents.learning.gradient_checkpointing import recomputable_layers, recomputing
from agents.learning.metrics import Means
from agents.learning.options import UpdaterConfig, Updating
from agents.learning.policy import TokenEvaluation, ValueHeadPolicy
from agents.learning.rollout import MicroBatch, Rollout
from agents.learning.trainable import averaged_model, sharded_copy, trainable_parameters
from lm_env.distributed import processes
from lm_env.errors import CheckpointMismatchError
from lm_env.models.inputs import length_batches
from lm_env.models.inspection import device_of, evaluating, is_quantized
from lm_env.models.logprobs import check_liger
from lm_env.models.optimization import guarded_step, join_optimizer, make_adam, split_optimizer
from lm_env.models.packing import ROW_TOKENS, check_packing, pack
from lm_env.objective.task import Task

__all__ = ["MicroBatch", "UpdateStep", "Updater"]


class Updater:
    """Owns the optimizer, its schedule, the precision of the update and the average of the weights.

    Args:
        policy: the model under training with its critic; what is frozen in it stays frozen.
        task: the environment's task, for its action masks and its adapter.
        config: see `UpdaterConfig`.
        updating: how updates are computed.

    Raises:
        ConfigurationError: nothing can be trained, as in a quantized model without an adapter; or several processes
            are to divide the weights of a model with an adapter.
        UnsupportedModelError: the model does not support gradient checkpointing, packing or Liger's kernel.
        MissingDependencyError: Adam in 8 bits without bitsandbytes, or Liger's kernel without liger-kernel.
    """

    def __init__(
        self, policy: ValueHeadPolicy, task: Task, config: UpdaterConfig, updating: Updating | None = None
    ) -> None:
        self.policy = policy
        self.task = task
        self.config = config
        self.updating = updating or Updating()
        trained = trainable_parameters(policy, task)
        self._sharded = sharded_copy(policy, task) if self.updating.shard else None
        self.model: ValueHeadPolicy = policy if self._sharded is None else self._sharded.module
        """The policy whose gradient is computed: `policy`, or the copy of it that is divided among processes."""
        if self._sharded is not None:
            trained = [p for p in self.model.parameters() if p.requires_grad]
        if self.updating.packed:
            check_packing(self.model.lm if self._sharded is None else policy.lm)
        if self.updating.liger:
            check_liger(policy.lm)
        eight_bits = self.updating.optimizer == "adam-8bit"
        self.optimizer = make_adam(trained, config.learning_rate, eight_bits=eight_bits)
        self.ema: AveragedModel | None = averaged_model(policy.lm, config.ema_decay)
        self._checkpointed = recomputable_layers(self.model) if config.gradient_checkpointing else []
        self._means = Means()

    def begin(self) -> None:
        """Begin a training: all processes of the run take over the weights of the first one."""
        modules: list[nn.Module] = [self.policy]
        if self.task.reference is not self.task.model:
            modules.append(self.task.reference)
        processes().broadcast_weights(modules)
        if self._sharded is not None:
            self._sharded.read(self.policy)

    @property
    def rounded(self) -> bool:
        """Whether rounding makes the update's logprobs differ from those of sampling, which is then no mistake."""
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
        group = processes()
        try:
            with group.guarded():
                yield update
            summed: list[nn.Parameter] = self._trained if self._sharded is None else []
            loss = group.sum_gradients(summed, update.loss)
            norm = guarded_step(self.optimizer, self.model.parameters(), self.config.max_grad_norm, loss=loss)
        except BaseException:
            self.optimizer.zero_grad()
            self._means = Means()
            raise
        if self._sharded is not None:
            self._sharded.write(self.policy)
        if self.ema is not None:
            self.ema.update_parameters(self.policy.lm)
        self._means.add("grad_norm", norm)

    def metrics(self) -> dict[str, float]:
        """The means of what was recorded since the last call, by name."""
        means = Means.joined(processes().gather(self._means.state()))
        self._means = Means()
        return means.result()

    def parts(self, lengths: np.ndarray, together: int = 1) -> list[np.ndarray | None]:
        """How the rows of a minibatch, or groups of `together` rows, of these lengths, are divided into forwards.

        Returns:
            index arrays; None stands for a forward without rows of its own.  Where the weights are divided among
            processes, all of them must run the same number of forwards.
        """
        size = max(1, self.config.micro_batch_tokens // together)
        own = pack(lengths, min(size, ROW_TOKENS)) if self.updating.packed else length_batches(lengths, size)
        if self._sharded is None:
            return [*own]
        return [*own, *[None] * (processes().largest(len(own)) - len(own))]

    @contextmanager
    def forwards(self) -> Iterator[None]:
        """A context for the update's forwards: bfloat16 and gradient checkpointing where asked for, dropout off."""
        autocast = (
            torch.autocast(device_of(self.policy).type, dtype=torch.bfloat16) if self.config.bf16 else nullcontext()
        )
        with autocast, evaluating(self.model), recomputing(self._checkpointed):
            yield

    # -- on disk --------------------------------------------------------------------------------------
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors of the optimizer and of the weight average, a JSON dict with the number of trained tensors).

        The optimizer's options are not part of it: they are the config's.
        """
        tensors, _ = split_optimizer(whole(self.optimizer.state_dict()))
        tensors = {f"optimizer.{name}": tensor for name, tensor in tensors.items()}
        if self.ema is not None:
            tensors |= {f"ema.{name}": tensor for name, tensor in self.ema.state_dict().items()}
        return tensors, {"trained": len(self._trained), "optimizer": self.updating.optimizer}

    def check_state(self, tensors: dict[str, Tensor], layout: dict[str, Any]) -> None:
        """Raise CheckpointMismatchError unless `restore` can take these results of `state`."""
        if layout.get("trained") != len(self._trained):
            raise CheckpointMismatchError(
                f"{layout.get('trained')} tensors were trained, {len(self._trained)} are trainable here"
            )
        saved = layout.get("optimizer", "adam")
        if saved != self.updating.optimizer:
            raise CheckpointMismatchError(
                f"the optimizer was {saved!r}, {self.updating.optimizer!r} is given: pass Updating(optimizer={saved!r})"
            )
        for name, tensor in _with_prefix(tensors, "optimizer.").items():
            index = int(name.partition(".")[0])
            fits = index < len(self._trained) and tensor.shape in ((), self._trained[index].shape)
            if saved == "adam-8bit":  # its moments have shapes of their own, which its own loading checks
                fits = index < len(self._trained)
            if not fits:
                raise CheckpointMismatchError(f"the optimizer's {name} does not fit the tensor that it belongs to")
        own = {} if self.ema is None else self.ema.state_dict()
        given = _with_prefix(tensors, "ema.")
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in given.items()}:
            raise CheckpointMismatchError("the average of the weights does not fit: load with the same ema_decay")

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back the tensors that `state` gave."""
        layout = {"param_groups": self.optimizer.state_dict()["param_groups"]}
        state = join_optimizer(_with_prefix(tensors, "optimizer."), layout)
        for index, entry in state["state"].items():
            state["state"][index] = {name: as_shards(tensor, self._trained[index]) for name, tensor in entry.items()}
        self.optimizer.load_state_dict(state)
        if self.ema is not None:
            self.ema.load_state_dict(_with_prefix(tensors, "ema."))

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
            together: this many neighboring episodes always stay in one micro-batch, for losses that compare them;
                it must divide the size of the minibatch.
        """
        updater, rollout = self._updater, self._rollout
        groups = self._rows.reshape(-1, together)
        lengths = rollout.episodes.lengths[groups].max(1)
        own = processes().deal(lengths)
        for part in updater.parts(lengths[own], together):
            if part is None:  # see `Updater.parts`: this forward has the weight 0
                rows, means, weights = groups[0], Means(), np.zeros_like(self._weights)
            else:
                rows, means, weights = groups[own[part]].reshape(-1), self._means, self._weights
            batch = MicroBatch(rollout, rows, _compute_dtype(updater.policy), means)
            self._weight_of_tokens = batch.tokens(weights)
            if rollout.ratios is not None:
                self._weight_of_tokens = self._weight_of_tokens * batch.tokens(rollout.ratios)
            yield batch

    def evaluate(self, batch: MicroBatch, keep_logits: bool = False) -> TokenEvaluation:
        """The policy's logprobs and values of the batch's tokens, with their graph.

        Args:
            keep_logits: keep `TokenEvaluation.logits` as well, for losses that read the whole distribution.
        """
        updater = self._updater
        with updater.forwards():
            allowed = updater.task.allowed_in(batch.episodes)
            evaluation = updater.model.evaluate(
                batch.episodes, allowed, keep_logits, updater.updating.packed, updater.updating.liger
            )
        with torch.no_grad():
            log_ratio = evaluation.logprobs - batch.old_logprobs
            batch.record(approx_kl=torch.expm1(log_ratio) - log_ratio)
            batch.record_first(first_log_ratio=log_ratio.abs().max())
        return evaluation

    def backward(self, losses: Tensor) -> None:
        """Add the gradient of the losses (N,) of the micro-batch under way, weighted."""
        assert self._weight_of_tokens is not None, "backward is called inside the loop over micro_batches"
        loss = (losses * self._weight_of_tokens).sum()
        loss.backward()
        self._loss = self._loss.to(loss.device) + loss.detach()


def _compute_dtype(policy: ValueHeadPolicy) -> tuple[torch.device, torch.dtype]:
    """(the device, the dtype) in which losses are computed: fp32, or fp64 for a model in fp64."""
    dtypes = [p.dtype for p in policy.lm.parameters() if p.is_floating_point()]
    double = torch.float64 in dtypes
    return device_of(policy), torch.float64 if double else torch.float32


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
