"""What a model is given: right-padded rows, cut into batches of similar length.

Sequences are right-padded everywhere.  Position ids are then 0, 1, 2, ..., no real token attends to
padding, and models with absolute positions need no special treatment.

Shapes: B rows, P prompt tokens, T response tokens, L = P + T, N response tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from lm_env.data.episodes import Episodes

__all__ = ["ResponseIndex", "length_batches", "pad_right", "plain_arguments", "response_index", "shuffled_batches"]

# From this many padded tokens on, a separate forward costs less than the padding that it saves.
WORTH_A_FORWARD = 512

ResponseIndex = tuple[Tensor, Tensor, Tensor]
"""Ids (B, L), and the row and the position of each response token, (N,) each."""


def plain_arguments(accepted: Collection[str], ids: Tensor) -> dict[str, Tensor | bool]:
    """The arguments of a forward without a cache over right-padded rows `ids (B, L)`.

    The attention mask is all ones on purpose.  Padding comes after every real token, so causality alone
    hides it, and attention can use its fast kernel, which takes no mask.

    Args:
        accepted: the names that the model's forward takes; others are left out.
    """
    arguments: dict[str, Tensor | bool] = {"input_ids": ids}
    if "attention_mask" in accepted:
        arguments["attention_mask"] = torch.ones_like(ids)
    if "position_ids" in accepted:
        arguments["position_ids"] = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    if "use_cache" in accepted:
        arguments["use_cache"] = False
    return arguments


def response_index(episodes: Episodes, device: torch.device) -> ResponseIndex:
    """The ids of some episodes, with 0 as padding, and where their response tokens are."""
    width = int(episodes.lengths.max())
    padding = np.arange(width) >= episodes.lengths[:, None]
    ids = torch.from_numpy(np.where(padding, 0, episodes.input_ids[:, :width])).to(device)
    rows, columns = np.nonzero(episodes.response_mask())
    positions = columns + episodes.prompt_lengths[rows]
    return ids, torch.from_numpy(rows).to(device), torch.from_numpy(positions).to(device)


def pad_right(rows: Sequence[Sequence[int]], device: torch.device, fill: int = 0) -> tuple[Tensor, Tensor]:
    """Token ids of B rows as one tensor.

    Returns:
        (int64 (B, L) with `fill` after each row's end, int64 (B,) lengths); L is the longest row.
    """
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.full((len(rows), int(lengths.max())), fill)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.as_tensor(row)
    return padded.to(device), lengths.to(device)


def length_batches(lengths: Sequence[int] | np.ndarray, tokens: int, *, equal: bool = False) -> list[np.ndarray]:
    """Cut rows into batches of similar length, each of at most `tokens` padded tokens (or one row).

    A batch ends where rows get shorter than three quarters of its longest row, as soon as it is large
    enough to be worth a forward of its own.  So at most a quarter of what is computed is padding.

    Args:
        lengths: int (B,).
        equal: put only rows of one length together, so that nothing is padded.

    Returns:
        index arrays that hold each row exactly once, the longest rows first.
    """
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")
    descending = lengths[order]
    batches = []
    start = 0
    while start < len(order):
        longest = int(descending[start])
        shortest = longest if equal else 0.75 * longest
        similar = int(np.searchsorted(-descending, -shortest, side="right")) - start
        if not equal:
            similar = max(similar, -(-WORTH_A_FORWARD // longest))
        size = min(max(1, tokens // longest), similar)
        batches.append(order[start : start + size])
        start += size
    return batches


def shuffled_batches(count: int, size: int, epochs: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Index arrays of `size` rows (the last of an epoch may be smaller), each row once per epoch, in random order."""
    for _ in range(epochs):
        order = rng.permutation(count)
        for start in range(0, count, size):
            yield order[start : start + size]
