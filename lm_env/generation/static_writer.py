"""StaticWriter: a writer whose step runs the same operations on the same memory every time, as CUDA graphs require.

All inputs of a step are in tensors of fixed size on the model's device: the KV cache, the last tokens, the positions,
the random numbers and how many of them are used.  So a step needs nothing from the host.  On CUDA it is captured as a
CUDA graph, one for each number of slots and number of keys, and replayed by one call; with `compiled` the step is first
compiled by torch.compile.

Slots whose text has ended keep running until they get the next prompt; the tokens that they produce are discarded, and
stay within the memory that their text had.

Shapes: S slots, n of them in use by a step, P prompt tokens, T response tokens, V vocabulary, D hidden.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from lm_env.generation.compiled_step import CompiledStep
from lm_env.generation.sampling import choose
from lm_env.generation.slot_cache import SlotDecoder
from lm_env.generation.writer import ValueOf, Written
from lm_env.models.inspection import device_of

__all__ = ["StaticWriter"]

# On CUDA the number of keys is rounded up to a multiple of this, because each number of keys is a graph of its own.
WIDTHS = 64
# Uncaptured steps before a capture, in which libraries choose their kernels.
WARM_UP = 2
# A step with fewer slots than this takes as long as one with this many.
FEWEST_SLOTS = 8

Drawn = tuple[Tensor, Tensor, Tensor | None]
"""Tokens (n,), logprobs (n,), and hidden states (n, D) where there is a value head to ask."""


class StaticWriter:
    """A `Writer` for models for which `why_no_static_step` is None, and for tasks that do not mask tokens.

    It may be used for several batches, one after the other; its memory is kept between them.

    Args:
        slots: S.
        max_length: the longest text, in tokens.
        room: T, the longest response.
        compiled: compile the step by torch.compile.  Batches of fewer than S rows run uncompiled.
    """

    def __init__(
        self,
        model: nn.Module,
        slots: int,
        max_length: int,
        room: int,
        temperature: float,
        value_of: ValueOf | None,
        compiled: bool = False,
    ) -> None:
        self.temperature = temperature
        self.value_of = value_of
        self.max_length = max_length
        self.slots = slots
        self.decoder = SlotDecoder(model, slots, max_length, want_hidden=value_of is not None)
        self.device = device_of(model)
        self._compiled = CompiledStep(self.decoder) if compiled else None
        whole = torch.zeros(slots, dtype=torch.long, device=self.device)
        self._last = whole
        self._positions = whole.clone()
        self._ends = whole.clone()  # the last position that each slot may write to
        self._count = whole.clone()  # how many of its random numbers each slot has used
        self._uniforms = torch.zeros((slots, room), device=self.device)
        self._drawing = True
        self._size = slots
        self._graphs: dict[tuple[int, int, bool], tuple[torch.cuda.CUDAGraph, Drawn]] = {}
        self._pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None

    def begin(self, texts: int) -> int:
        """Empty all slots for a new batch of texts; returns n, how many slots it has."""
        self.decoder.lengths[:] = 0
        for tensor in self._state:
            tensor.zero_()
        self._size = self.size_for(texts)
        return self._size

    def start(
        self,
        slots: np.ndarray,
        ids: np.ndarray,
        lengths: np.ndarray,
        uniforms: np.ndarray | None,
        allowed: np.ndarray | None = None,
    ) -> Written:
        assert allowed is None, "a mask is a function of the host's"
        index = self._index(slots)
        outputs = self.decoder.start(slots, ids, lengths)
        self._drawing = uniforms is not None
        first = None
        if uniforms is not None:
            on_device = torch.as_tensor(uniforms, device=self.device)
            self._uniforms[index] = on_device
            first = on_device[:, 0]
        tokens, logprobs = choose(outputs.logits, first, self.temperature)
        positions = self._index(lengths)
        self._last[index] = tokens
        self._positions[index] = positions
        self._ends[index] = positions + self._uniforms.shape[1] - 1
        self._count[index] = 1
        return Written(slots, tokens, logprobs, self._values(outputs.hidden))

    def step(self, slots: np.ndarray, allowed: np.ndarray | None = None) -> Written:
        assert allowed is None, "a mask is a function of the host's"
        self.decoder.lengths[slots] += 1
        width = self._width(int(self.decoder.lengths[slots].max()))
        tokens, logprobs, hidden = self._replay(width) if self._pool is not None else self._advance(width)
        return Written(np.arange(self._size), tokens.clone(), logprobs.clone(), self._values(hidden))

    def size_for(self, count: int) -> int:
        size = self.slots
        while size >= 2 * max(count, FEWEST_SLOTS):
            size //= 2
        return size

    def keep(self, slots: np.ndarray) -> None:
        index = self._index(slots)
        self.decoder.move_first(slots)
        self.decoder.lengths[: len(slots)] = self.decoder.lengths[slots]
        for tensor in self._state:
            tensor[: len(slots)] = tensor[index]
        self._size = len(slots)

    @property
    def _state(self) -> list[Tensor]:
        return [self._last, self._positions, self._ends, self._count, self._uniforms]

    def _width(self, longest: int) -> int:
        """How many keys attention reads for texts of at most so many tokens."""
        if self._pool is None:
            return longest
        return min(-(-longest // WIDTHS) * WIDTHS, self.max_length)

    def _advance(self, width: int) -> Drawn:
        """Write one token in each slot of the batch, and move on; nothing here depends on the host."""
        n = self._size
        forward = self._compiled if self._compiled is not None and n == self.slots else self.decoder.step_first
        outputs = forward(self._last[:n], self._positions[:n], width)
        uniform = None
        if self._drawing:
            uniform = self._uniforms[:n].gather(1, self._count[:n, None]).squeeze(1)
        tokens, logprobs = choose(outputs.logits, uniform, self.temperature)
        self._last[:n].copy_(tokens)
        torch.minimum(self._positions[:n] + 1, self._ends[:n], out=self._positions[:n])
        self._count[:n].add_(1).clamp_(max=self._uniforms.shape[1] - 1)
        return tokens, logprobs, outputs.hidden

    def _replay(self, width: int) -> Drawn:
        """`_advance` by replaying a captured graph, which is a single launch."""
        key = (self._size, width, self._drawing)
        if key not in self._graphs:
            self._graphs[key] = self._capture(width)
        graph, drawn = self._graphs[key]
        graph.replay()
        return drawn

    def _capture(self, width: int) -> tuple[torch.cuda.CUDAGraph, Drawn]:
        before = [tensor.clone() for tensor in self._state]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._advance(width)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            drawn = self._advance(width)
        # The warm-up wrote keys beyond the texts; the texts' own overwrite them before they are read.
        for tensor, old in zip(self._state, before, strict=True):
            tensor.copy_(old)
        return graph, drawn

    def _values(self, hidden: Tensor | None) -> Tensor | None:
        """The values, computed outside the graph, because a value head may be replaced between two calls."""
        return None if self.value_of is None or hidden is None else self.value_of(hidden)

    def _index(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, dtype=torch.long, device=self.device)
