"""Rows of different lengths as batches, with the padding found by length and never by token id."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["length_batches", "pad_right"]


def length_batches(lengths: Sequence[int], max_tokens: int, *, equal: bool = False) -> list[list[int]]:
    """Group row indices of similar length, shortest first.

    Args:
        lengths: B row lengths.
        max_tokens: rows x longest row of a batch stays within it; a longer row goes alone.
        equal: put only rows of one length together, so that nothing is padded.

    Returns:
        batches of indices that hold each of 0..B-1 once.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):  # stable: ties stay in order
        fits = batches and (len(batches[-1]) + 1) * lengths[i] <= max_tokens
        if fits and not (equal and lengths[batches[-1][0]] != lengths[i]):
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def pad_right(rows: Sequence[Sequence[int]], device: torch.device, fill: int = 0) -> tuple[Tensor, Tensor]:
    """-> (int64 (B, L) with `fill` after each row's end, int64 (B,) lengths); L is the longest row."""
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.full((len(rows), int(lengths.max())), fill)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.as_tensor(row)
    return padded.to(device), lengths.to(device)
