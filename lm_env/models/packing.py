"""Several texts side by side in one row, without padding: each attends to itself alone, and its positions begin at 0.

Transformers' models see by the positions that there are several texts in a row, if no attention mask is given
(Krell et al. 2021, arXiv:2107.02027).  That this holds for a model is tried out before it is relied on.

Shapes: B texts, L tokens of a packed row, N response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lm_env.data.episodes import Episodes
from lm_env.errors import UnsupportedModelError
from lm_env.models.adapters import without_wrapper
from lm_env.models.inspection import device_of, evaluating, facts_of, trunk_of
from lm_env.models.logprobs import Outputs, forward

__all__ = ["ROW_TOKENS", "check_packing", "pack", "packed_hidden", "packed_outputs"]

ROW_TOKENS = 512
"""A packed row is no longer than this, or than its one text: what a longer row costs in attention, it does not save."""


def pack(lengths: Sequence[int] | np.ndarray, tokens: int) -> list[np.ndarray]:
    """Put texts into rows of at most `tokens` tokens each, or of one text that is longer: the longest first, each into
    the first row with room for it.

    Args:
        lengths: int (B,).

    Returns:
        index arrays that hold each text exactly once.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length = int(lengths[index])
        row = next((i for i, left in enumerate(room) if left >= length), None)
        if row is None:
            rows.append([])
            room.append(tokens)
            row = len(rows) - 1
        rows[row].append(index)
        room[row] -= length
    return [np.array(row) for row in rows]


def packed_outputs(model: nn.Module, episodes: Episodes, want_hidden: bool = False) -> tuple[Outputs, Tensor]:
    """Logits that predict each response token of the episodes, which are read side by side in one row.

    Returns:
        Outputs with logits (N, V), hidden (N, D) if asked for, and the response tokens (N,), text after text.
    """
    arguments, at = _packed_row(model, episodes)
    ids = arguments["input_ids"]
    return forward(model, (torch.zeros_like(at), at - 1), want_hidden, **arguments), ids[0, at]


def packed_hidden(model: nn.Module, episodes: Episodes) -> tuple[Tensor, Tensor]:
    """The hidden states (N, D) under those logits, and the tokens (N,), of a model that `splits`."""
    arguments, at = _packed_row(model, episodes)
    trunk = trunk_of(model)
    assert trunk is not None, "a model that splits has a trunk"
    return trunk(**arguments).last_hidden_state[0, at - 1], arguments["input_ids"][0, at]


def _packed_row(model: nn.Module, episodes: Episodes) -> tuple[dict[str, Any], Tensor]:
    """The arguments of a forward over all texts in one row, and the positions (N,) of the response tokens in it."""
    device = device_of(model)
    lengths = episodes.lengths
    real = np.arange(episodes.input_ids.shape[1]) < lengths[:, None]
    ids = torch.from_numpy(episodes.input_ids[real])[None].to(device)
    positions = torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))[None].to(device)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    learned = [
        np.arange(start + p, start + n) for start, p, n in zip(starts, episodes.prompt_lengths, lengths, strict=True)
    ]
    at = torch.from_numpy(np.concatenate(learned)).to(device)
    # With a cache, transformers does not see that positions begin anew.  A wrapper of peft passes the argument on.
    cache = {"use_cache": False} if "use_cache" in facts_of(without_wrapper(model)).arguments else {}
    return {"input_ids": ids, "position_ids": positions, **cache}, at


@torch.no_grad()
def check_packing(model: nn.Module) -> None:
    """Raise UnsupportedModelError unless texts in a packed row have the logits that they have by themselves."""
    facts = facts_of(model)
    name = type(model).__name__
    if "position_ids" not in facts.arguments or not isinstance(without_wrapper(model), PreTrainedModel):
        raise UnsupportedModelError(
            f"{name} is no model of transformers that takes position_ids, so texts cannot be packed: leave packing off"
        )
    tokens = (np.arange(12).reshape(2, 6) % min(facts.vocab_size, 7)).astype(np.int64)
    pair = Episodes(tokens, np.array([1, 1]), np.array([6, 5]), [None, None])  # type: ignore[list-item]
    with evaluating(model):
        packed = packed_outputs(model, pair)[0].logits
        single = torch.cat([packed_outputs(model, pair[np.array([i])])[0].logits for i in range(2)])
    size = float(single.abs().max())
    noise = 1e-4 if single.dtype in (torch.float32, torch.float64) else 3e-2
    if not torch.allclose(packed, single, rtol=0, atol=noise * size):
        raise UnsupportedModelError(
            f"{name} lets the texts of a packed row see each other: leave packing off, or load it with another"
            " attn_implementation (sdpa, eager)"
        )
