"""Gradient checkpointing: a layer keeps its input alone, and computes the rest again in the backward pass.

Chen et al. 2016 (arXiv:1604.06174): memory of one layer instead of all, for one more forward.
transformers' own switch acts in training mode alone, where dropout would run and the first ratio would
differ from 1; so its layers are wrapped here, for the forwards of an update and no longer.  A rollout's
forwards, and the keys and values that they keep, see nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from agents.learning.policy import ValueHeadPolicy
from lm_env.errors import UnsupportedModelError
from lm_env.models.inspection import evaluating

__all__ = ["recomputable_layers", "recomputing"]


def recomputable_layers(policy: ValueHeadPolicy) -> list[nn.Module]:
    """The layers of the LM, and of a critic of its own, that transformers allows to be checkpointed.

    Raises:
        UnsupportedModelError: one of the models has none.
    """
    found: list[nn.Module] = []
    for model in filter(None, (policy.lm, policy.critic)):
        layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
        if not layers or not getattr(model, "supports_gradient_checkpointing", True):
            raise UnsupportedModelError(
                f"{type(model).__name__} does not support gradient checkpointing: leave gradient_checkpointing off"
                " (a smaller micro_batch_tokens saves memory too), or use a transformers model that does"
            )
        found += layers
    return found


@contextmanager
def recomputing(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, these layers run under `torch.utils.checkpoint`, dropout off in both runs."""
    own = [vars(layer).get("forward") for layer in layers]  # accelerate puts its hooks there
    for layer in layers:
        layer.forward = partial(checkpoint, partial(_evaluate, layer, layer.forward), use_reentrant=False)
    try:
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


def _evaluate(layer: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with evaluating(layer):  # the second run comes in the backward pass, outside of the update's own `evaluating`
        return forward(*args, **kwargs)
