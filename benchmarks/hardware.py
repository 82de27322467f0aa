"""What a machine can do, measured, and the least time that a model's steps take on it.

A GEMM gives the FLOP per second, a copy the bytes per second.  The floor of a decoding step is the larger of
its FLOP over the one and its bytes over the other: all weights and all cached keys and values are read once.
Scoring is one forward of each token, an update three (the backward pass costs two).

Shapes: S slots.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["Machine", "Work", "synchronize"]


def synchronize(device: torch.device | str) -> None:
    """Wait for all that was given to an accelerator."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def _seconds(run: Callable[[], object], device: torch.device, times: int = 5) -> float:
    """The least of several runs, after one that warms up."""
    best = float("inf")
    for i in range(times + 1):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        if i:
            best = min(best, time.perf_counter() - start)
    return best


@dataclass(frozen=True)
class Machine:
    """Measured rates of one device in one dtype."""

    flops: float
    """FLOP per second of a large matrix product."""
    bytes: float
    """Bytes per second of a large copy, those read and those written."""

    @classmethod
    def measured(cls, device: torch.device | str, dtype: torch.dtype) -> Machine:
        """Rates of this machine now, with the threads that torch may use."""
        device = torch.device(device)
        size = 8192 if device.type == "cuda" else 1024
        one, other = (torch.randn((size, size), device=device).to(dtype) for _ in range(2))
        source = torch.empty(2**30 if device.type == "cuda" else 2**26, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        product = _seconds(lambda: one @ other, device)
        copied = _seconds(lambda: target.copy_(source), device)
        return cls(2 * size**3 / product, 2 * source.numel() / copied)


@dataclass(frozen=True)
class Work:
    """What one token costs in a model."""

    flops: float
    """FLOP of a forward, apart from attention's products with the keys and values."""
    weight_bytes: float
    key_bytes: float
    """Bytes of the keys and values of one token in all layers."""

    @classmethod
    def of(cls, model: nn.Module, dtype: torch.dtype) -> Work:
        """Of a transformers model whose forward runs in this dtype."""
        config: Any = model.config
        embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
        weights = sum(p.numel() for p in model.parameters())
        tied = model.get_output_embeddings().weight is embeddings.weight  # type: ignore[operator]
        positions = sum(p.numel() for name, p in model.named_parameters() if "wpe" in name)
        multiplied = weights - positions - (0 if tied else embeddings.weight.numel())
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        size = torch.empty((), dtype=dtype).element_size()
        return cls(2.0 * multiplied, float(size * weights), 2.0 * size * config.num_hidden_layers * heads * width)

    def decoding_floor(self, machine: Machine, slots: int, mean_length: float) -> float:
        """Seconds of one step of S texts, below which the machine cannot go."""
        read = self.weight_bytes + slots * mean_length * self.key_bytes
        return max(slots * self.flops / machine.flops, read / machine.bytes)
