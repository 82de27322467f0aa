"""What of a policy is trained, and the average of its weights."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from agents.learning.distributed import ShardedCopy
from agents.learning.policy import ValueHeadPolicy
from lm_env.distributed import processes
from lm_env.errors import ConfigurationError
from lm_env.models.adapters import trains_adapter
from lm_env.models.inspection import device_of, evaluating, is_quantized
from lm_env.objective.task import Task

__all__ = [
    "averaged_model",
    "check_adapter_trains",
    "sharded_copy",
    "trainable_parameters",
    "trained_by_name",
    "unfreeze_if_frozen",
]


def trainable_parameters(policy: ValueHeadPolicy, task: Task) -> list[nn.Parameter]:
    """All that requires a gradient.  A model that is frozen whole is unfrozen whole, with a warning.

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
        check_adapter_trains(task)
        unfreeze_if_frozen(lm)
        policy.requires_grad_(True)
    return [p for p in policy.parameters() if p.requires_grad]


def _check_gradients_pass(lm: nn.Module) -> None:
    """Some kernels of quantized weights are for inference alone, and drop the gradient without a word."""
    trained = trained_by_name(lm)
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


def check_adapter_trains(task: Task) -> None:
    """Refuse an adapter of which nothing is trained: unfrozen with its base, the model would move its own reference.

    Raises:
        ConfigurationError: as peft loads an adapter, all of it is frozen.
    """
    if task.adapter is not None and not any(p.requires_grad for p in task.model.parameters()):
        raise ConfigurationError(
            f"the adapter of {type(task.model).__name__} is frozen, and the base below it is not to be trained: load it"
            " with PeftModel.from_pretrained(base, folder, is_trainable=True)"
        )


def unfreeze_if_frozen(model: nn.Module) -> None:
    """Make all parameters of a model trainable if none is, with a warning: its owner has frozen them.

    A model with some trainable parameters stays as it is: with an adapter, the weights below it are frozen on purpose.
    A model that is given by name comes trainable.
    """
    if not any(p.requires_grad for p in model.parameters()):
        warnings.warn(
            f"all parameters of {type(model).__name__} are frozen, and it is to be trained: all are unfrozen now."
            "  Freeze a part of them to keep that part, or give the trainer a copy to keep this model as it is",
            stacklevel=3,
        )
        model.requires_grad_(True)


def trained_by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def averaged_model(lm: nn.Module, decay: float | None) -> AveragedModel | None:
    """The exponential moving average of the LM's weights; None without a decay.

    Raises:
        ConfigurationError: the weights are quantized, and cannot be averaged.
    """
    if decay is None:
        return None
    if is_quantized(lm):
        raise ConfigurationError(f"{type(lm).__name__} is quantized, which cannot be averaged: leave ema_decay out")
    return AveragedModel(lm, multi_avg_fn=get_ema_multi_avg_fn(decay))


def sharded_copy(policy: ValueHeadPolicy, task: Task) -> ShardedCopy[ValueHeadPolicy] | None:
    """The copy of the policy that several processes divide among them; None in a run of one process.

    Raises:
        ConfigurationError: the model has an adapter, or is quantized: then what is trained is small, and the rest is
            needed whole to write texts.
    """
    if processes().count == 1:
        return None
    if task.adapter is not None or is_quantized(policy.lm):
        raise ConfigurationError(
            "shard=True divides the weights that are trained, and an adapter's are few: leave shard off; each process"
            " then holds the frozen weights once"
        )
    return ShardedCopy(policy, ("lm",) if policy.critic is None else ("lm", "critic"))
