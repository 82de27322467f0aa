"""The optimizer's side of a batched agent: what is trained, and one step of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from agents.learning.policy import ValueHeadPolicy
from agents.learning.rollout import Rollout
from lm_env.errors import ConfigurationError, NonFiniteError
from lm_env.models.adapters import trains_adapter
from lm_env.models.inputs import length_batches
from lm_env.models.inspection import device_of, evaluating
from lm_env.models.loading import is_quantized
from lm_env.objective.task import Task

if TYPE_CHECKING:
    from agents.base.agent import BatchedAgent

__all__ = ["gradient_step", "make_average", "trained_parameters"]


def trained_parameters(policy: ValueHeadPolicy, task: Task) -> list[nn.Parameter]:
    """All that requires a gradient; a model that is frozen whole, as one loaded by name, is thawed whole.

    Raises:
        ConfigurationError: the model is quantized, and has no adapter to train or lets no gradient through.
    """
    lm = task.model
    frozen = not any(p.requires_grad for p in lm.parameters())
    if is_quantized(lm):
        adapted = task.adapter is not None or trains_adapter(lm)
        if frozen or not adapted:
            raise ConfigurationError(
                f"{type(lm).__name__} is quantized, and gradients cannot move quantized weights: train LoRA adapters on"
                " it, model=peft.get_peft_model(model, peft.LoraConfig(...))"
            )
        _check_gradients_pass(lm)
    elif frozen:
        policy.requires_grad_(True)
    return [p for p in policy.parameters() if p.requires_grad]


def _check_gradients_pass(lm: nn.Module) -> None:
    """Some kernels of quantized weights are for inference alone, and drop the gradient without a word."""
    trained = {name: p for name, p in lm.named_parameters() if p.requires_grad}
    with evaluating(lm):
        logits = lm(input_ids=torch.arange(2, device=device_of(lm)).unsqueeze(0)).logits
    found: tuple[Tensor | None, ...] = (None,) * len(trained)
    if logits.requires_grad:
        found = torch.autograd.grad(logits.float().square().sum(), list(trained.values()), allow_unused=True)
    if lost := [name for name, gradient in zip(trained, found, strict=True) if gradient is None]:
        raise ConfigurationError(
            f"no gradient reaches {lost[0]} through the quantized weights of {type(lm).__name__} on"
            f" {device_of(lm)}, whose kernels are for inference: train on another device, or with other bits"
        )


def make_average(lm: nn.Module, decay: float | None) -> AveragedModel | None:
    """The exponential moving average of the LM's weights, if one is asked for."""
    if decay is None:
        return None
    if is_quantized(lm):
        raise ConfigurationError(f"{type(lm).__name__} is quantized, which cannot be averaged: leave ema_decay out")
    return AveragedModel(lm, multi_avg_fn=get_ema_multi_avg_fn(decay))


def gradient_step(
    agent: BatchedAgent,
    rollout: Rollout,
    rows: np.ndarray,
    token_loss: Callable[[Any, np.ndarray], Tensor],
    weights: np.ndarray | None,
) -> float:
    """See `BatchedAgent.optimize`.

    Micro-batches of similar length keep padding and memory low; the weights are those of the whole
    minibatch, so the gradient does not depend on how it was cut.
    """
    counts = rollout.episodes.response_lengths[rows]
    if weights is None:
        weights = np.full(len(rows), 1 / counts.sum())
    agent.optimizer.zero_grad()
    for part in length_batches(rollout.episodes.lengths[rows], agent.config.micro_batch_tokens):
        chosen = rows[part]
        episodes = rollout.episodes[chosen]
        with agent.autocast():
            evaluation = agent.policy.evaluate(episodes, agent.task.allowed_in(episodes), agent.needs_logits)
        losses = token_loss(evaluation, chosen)
        (losses * torch.from_numpy(np.repeat(weights[part], counts[part])).to(losses)).sum().backward()
    agent.add_gradients()
    norm = float(torch.nn.utils.clip_grad_norm_(agent.policy.parameters(), agent.config.max_grad_norm))
    if not np.isfinite(norm):
        agent.optimizer.zero_grad()
        raise NonFiniteError(
            f"the gradient's norm is {norm}: the weights are unchanged; lower the learning rate or look at the rewards"
        )
    agent.optimizer.step()
    if agent.ema is not None:
        agent.ema.update_parameters(agent.policy.lm)
    return norm
