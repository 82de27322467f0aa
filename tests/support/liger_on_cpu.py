"""Liger's kernel on a CPU by Triton's interpreter (TRITON_INTERPRET=1), against the computation in parts.

Prints, as JSON, the largest differences of logprobs and of gradients.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import build_lm
from torch import Tensor, nn

from lm_env.models import logprobs as model_logprobs


def found_by(compute, model: nn.Module, hidden: Tensor, tokens: Tensor, weights: Tensor, temperature: float) -> dict:
    """Logprobs, and the gradients of their weighted sum."""
    model.zero_grad()
    states = hidden.clone().requires_grad_(True)
    logprobs = compute(model, states, tokens, temperature)
    (logprobs * weights).sum().backward()
    head = model.get_output_embeddings()
    gradients = {"hidden": states.grad, "weight": head.weight.grad}
    if head.bias is not None:
        gradients["bias"] = head.bias.grad
    return {"logprobs": logprobs.detach(), **{name: g.clone() for name, g in gradients.items()}}


def differences(bias: bool, temperature: float) -> dict[str, float]:
    """Of 23 tokens, weighted unequally, some with weight 0 and some negatively."""
    model = build_lm("gpt2").requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    old = model.get_output_embeddings()
    if bias:
        model.set_output_embeddings(nn.Linear(old.in_features, old.out_features))
    hidden = torch.randn(23, old.in_features, generator=generator)
    tokens = torch.randint(old.out_features, (23,), generator=generator)
    weights = torch.randn(23, generator=generator)
    weights[:3] = 0
    given = (model, hidden, tokens, weights, temperature)
    one = found_by(model_logprobs.liger_logprobs, *given)
    other = found_by(model_logprobs.chunked_logprobs, *given)
    return {name: float((one[name] - other[name]).abs().max()) for name in other}


if __name__ == "__main__":
    print(json.dumps([differences(bias, temperature) for bias in (False, True) for temperature in (1.0, 0.7)]))
