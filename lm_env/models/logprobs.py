"""Forwards of a causal LM, and logprobs of given tokens; see `lm_env.models.inspection` for what a model is.

Shapes: B rows, P prompt, T response, L = P + T, V vocabulary, D hidden, N = all response tokens.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np
import torch
from packaging.version import Version
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lm_env.data.episodes import Episodes
from lm_env.errors import ConfigurationError, MissingDependencyError, UnsupportedModelError
from lm_env.models.inputs import length_batches, plain_arguments, response_index
from lm_env.models.inspection import check_positions, device_of, evaluating, facts_of, trunk_of

__all__ = [
    "LOGIT_BUDGET",
    "Outputs",
    "Positions",
    "check_liger",
    "chunked_logprobs",
    "forward",
    "liger_logprobs",
    "log_distribution",
    "plain_forward",
    "response_hidden",
    "response_logprobs",
    "response_outputs",
    "restrict",
    "token_logprobs",
]

# Logits that may stand in memory at once: 32M numbers, 128 MB in fp32.
LOGIT_BUDGET = 2**25

LIGER = Version("0.8.5")
"""The first release of liger-kernel that is known to weight each token's gradient as it should."""

Positions = tuple[Tensor, Tensor] | tuple[slice, int]


class Outputs(NamedTuple):
    """Logits (..., V) and, when asked for, the last hidden states (..., D) under them."""

    logits: Tensor
    hidden: Tensor | None


def forward(model: nn.Module, at: Positions, want_hidden: bool = False, **arguments: Any) -> Outputs:
    """One forward, with logits for the chosen positions alone.

    Args:
        at: (rows (N,), positions (N,)) of the logits wanted, or a (slice, position) of them.
        arguments: what the model's forward is called with (`input_ids`, a cache, ...).

    Returns:
        Outputs with logits (N, V) and hidden (N, D).

    Raises:
        UnsupportedModelError: hidden states are wanted of a model that returns none.
    """
    facts = facts_of(model)
    if facts.splits:
        hidden = trunk_of(model)(**arguments).last_hidden_state[at]  # type: ignore[misc]
        return Outputs(model.get_output_embeddings()(hidden), hidden if want_hidden else None)  # type: ignore[operator]
    if not want_hidden:
        return Outputs(model(**arguments).logits[at], None)
    if facts.hidden_size is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} returns no hidden_states, so it cannot carry a value head: pass a separate critic"
        )
    trunk = trunk_of(model)
    if trunk is None:
        out = model(**arguments, output_hidden_states=True)
        return Outputs(out.logits[at], out.hidden_states[-1][at])
    # Asking a transformers model for all its hidden states would leave hooks on it that cannot be pickled.
    states: list[Tensor] = []
    handle = trunk.register_forward_hook(lambda _module, _inputs, output: states.append(output.last_hidden_state))
    try:
        logits = model(**arguments).logits[at]
    finally:
        handle.remove()
    return Outputs(logits, states[0][at])


def plain_forward(model: nn.Module, ids: Tensor, at: tuple[Tensor, Tensor], want_hidden: bool = False) -> Outputs:
    """Logits after chosen prefixes of right-padded rows, without a cache.

    Args:
        ids: int64 (B, L).
        at: (rows (N,), positions (N,)); the prefix ends with the token at its position.

    Returns:
        Outputs with logits (N, V) and hidden (N, D), each as a forward of the prefix alone would give it.
    """
    facts = facts_of(model)
    parts = [
        (chosen, forward(model, where, want_hidden, **plain_arguments(facts.arguments, part)))
        for chosen, part, where in _parts_by_length(facts.switches, ids, at)
    ]
    logits = _in_order([(chosen, outputs.logits) for chosen, outputs in parts])
    hidden = [(chosen, outputs.hidden) for chosen, outputs in parts if outputs.hidden is not None]
    return Outputs(logits, _in_order(hidden) if hidden else None)


def _parts_by_length(
    switches: tuple[int, ...], ids: Tensor, at: tuple[Tensor, Tensor]
) -> list[tuple[Tensor | None, Tensor, tuple[Tensor, Tensor]]]:
    """Cut a forward so that each prefix is read in one whose length lies on the same side of all `switches`.

    Returns:
        (indices into `at`, or None for all of them; ids; rows and positions in these ids) of each forward.
    """
    rows, positions = at
    width = ids.shape[1]
    ends = [end for end in switches if end < width]
    if not ends:
        return [(None, ids, at)]
    parts: list[tuple[Tensor | None, Tensor, tuple[Tensor, Tensor]]] = []
    for start, end in zip([0, *ends], [*ends, width], strict=True):
        chosen = ((positions >= start) & (positions < end)).nonzero().squeeze(-1)
        if len(chosen):
            used, local = rows[chosen].unique(return_inverse=True)
            parts.append((chosen, ids[used, :end], (local, positions[chosen])))
    return parts


def _in_order(parts: list[tuple[Tensor | None, Tensor]]) -> Tensor:
    """What was computed in parts, (N, ...), in the order that it was asked for."""
    if len(parts) == 1:
        return parts[0][1]
    order = torch.cat([chosen for chosen, _ in parts if chosen is not None])
    return torch.cat([values for _, values in parts])[order.argsort()]


def response_outputs(model: nn.Module, episodes: Episodes, want_hidden: bool = False) -> tuple[Outputs, Tensor]:
    """Logits that predict each response token of the episodes, padding excluded.

    Returns:
        Outputs with logits (N, V), hidden (N, D), and the response tokens (N,), row after row.
    """
    ids, rows, at = response_index(episodes, device_of(model))
    return plain_forward(model, ids, (rows, at - 1), want_hidden), ids[rows, at]


def response_hidden(model: nn.Module, episodes: Episodes) -> tuple[Tensor, Tensor]:
    """The hidden states (N, D) under those logits, and the tokens (N,), of a model that `splits`."""
    ids, rows, at = response_index(episodes, device_of(model))
    facts = facts_of(model)
    trunk = trunk_of(model)
    assert trunk is not None, "a model that splits has a trunk"
    parts = [
        (chosen, trunk(**plain_arguments(facts.arguments, part)).last_hidden_state[where])
        for chosen, part, where in _parts_by_length(facts.switches, ids, (rows, at - 1))
    ]
    return _in_order(parts), ids[rows, at]


def chunked_logprobs(model: nn.Module, hidden: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """log pi(token) from hidden states, at most `LOGIT_BUDGET` logits in memory at a time.

    Each chunk's logits are computed again for the backward pass, so N x V never stands whole.

    Args:
        hidden: (N, D) of `response_hidden`.
    """
    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
    size = max(1, LOGIT_BUDGET // facts_of(model).vocab_size)

    def piece(states: Tensor, chosen: Tensor) -> Tensor:
        return token_logprobs(head(states), chosen, temperature)

    pieces = zip(hidden.split(size), tokens.split(size), strict=True)
    return torch.cat([checkpoint(piece, states, chosen, use_reentrant=False) for states, chosen in pieces])


def liger_logprobs(model: nn.Module, hidden: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """What `chunked_logprobs` gives, by the fused linear cross-entropy of liger-kernel.

    A chunk's logits are read once from memory, and their gradient takes their place; for the backward pass they are
    computed again.  In bfloat16 the division by the temperature is rounded, since it comes before the head.

    Args:
        model: one that `check_liger` lets pass, on a CUDA device.
    """
    from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction

    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    bias = head.bias
    if temperature != 1.0:
        hidden, bias = hidden / temperature, None if bias is None else bias / temperature
    no_weights, ignored, z_loss, smoothing = None, -100, 0.0, 0.0
    losses = LigerFusedLinearCrossEntropyFunction.apply(
        hidden, head.weight, tokens, bias, no_weights, ignored, z_loss, smoothing, "none"
    )[0]
    return -losses


def check_liger(model: nn.Module) -> None:
    """Raise an error unless `liger_logprobs` can compute a model's logprobs.

    Raises:
        MissingDependencyError: liger-kernel is not installed, or in a release with wrong gradients.
        ConfigurationError: the model is not on a CUDA device.
        UnsupportedModelError: its logits are not those of a plain linear layer in at most 32 bits.
    """
    try:
        found = Version(version("liger-kernel"))
    except PackageNotFoundError as error:
        raise MissingDependencyError(
            "Liger's kernel needs liger-kernel: pip install 'lm-env[liger]', or leave liger off"
        ) from error
    if found < LIGER:
        raise MissingDependencyError(
            f"liger-kernel {found} may give wrong gradients: pip install 'liger-kernel>={LIGER}', or leave liger off"
        )
    if device_of(model).type != "cuda":
        raise ConfigurationError(
            f"Liger's kernel runs on CUDA, and the model is on {device_of(model)}: leave liger off"
        )
    head: Any = model.get_output_embeddings() if facts_of(model).splits else None  # type: ignore[operator]
    if type(head) is not nn.Linear or head.weight.dtype == torch.float64:
        raise UnsupportedModelError(
            f"the logits of {type(model).__name__} are not those of a plain linear layer in at most 32 bits over its"
            " hidden states, which Liger's kernel needs: leave liger off"
        )


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """log pi(token) of the softmax of logits / temperature; the one place where it is computed.

    Args:
        logits: (..., V), any floating dtype; computed in fp32 at least.
        tokens: int64 (...,).

    Returns:
        (...,) nats.
    """
    logits, index = _tempered(logits, temperature), tokens.unsqueeze(-1)
    # `log_softmax` takes a third of the time, but adds up naively: 1e-4 nats off at a flat vocabulary of 150,000.
    if logits.shape[-1] <= 8192:
        return torch.log_softmax(logits, -1).gather(-1, index).squeeze(-1)
    return logits.gather(-1, index).squeeze(-1) - logits.logsumexp(-1)


def log_distribution(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """log pi of all V tokens, nats (..., V), for sums over the vocabulary."""
    return torch.log_softmax(_tempered(logits, temperature), -1)


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if temperature == 1.0 else logits / temperature


def restrict(logits: Tensor, allowed: np.ndarray) -> Tensor:
    """-inf where `allowed` (bool, the shape of `logits`) is False."""
    return logits.masked_fill(~torch.from_numpy(allowed).to(logits.device), -torch.inf)


def _flat_rows(mask: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Indices into all N response tokens of those of some rows, row after row."""
    starts = np.concatenate([[0], np.cumsum(mask.sum(1))])
    return np.concatenate([np.arange(starts[r], starts[r + 1]) for r in rows])


@torch.no_grad()
def response_logprobs(
    model: nn.Module, episodes: Episodes, temperature: float = 1.0, allowed: np.ndarray | None = None
) -> np.ndarray:
    """Logprobs of all response tokens: one forward per sequence, batched by length.

    Each is log pi(token | the tokens before it), whatever comes after it or beside it in a batch.

    Args:
        allowed: bool (N, V), tokens that the model's distribution is restricted to.

    Returns:
        float32 (float64 for a float64 model) (B, T) nats, 0 in the padding.
    """
    facts = facts_of(model)
    check_positions(model, int(episodes.lengths.max(initial=0)))
    result: np.ndarray | None = None
    mask = episodes.response_mask()
    with evaluating(model):
        for rows in length_batches(episodes.lengths, max(1, LOGIT_BUDGET // facts.vocab_size)):
            part = episodes[rows]
            outputs, tokens = response_outputs(model, part)
            logits = outputs.logits if allowed is None else restrict(outputs.logits, allowed[_flat_rows(mask, rows)])
            values = token_logprobs(logits, tokens, temperature).cpu().numpy()
            if result is None:
                result = np.zeros(mask.shape, dtype=values.dtype)
            i, t = np.nonzero(part.response_mask())
            result[rows[i], t] = values
    return np.zeros(mask.shape, np.float32) if result is None else result
