"""ProcessGroup: several processes of torch.distributed that train one model.

Nothing is pickled: what is sent are tensors, arrays by their bytes, and JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lm_env.distributed.processes import Processes, Result
from lm_env.errors import ConfigurationError, LMEnvError, LostProcessError

__all__ = ["TIMEOUT", "ProcessGroup"]

BUCKET = 2**25
"""Gradients are summed this many numbers at a time, so that no second copy of all of them is in memory."""

TIMEOUT = timedelta(hours=6)
"""How long a process waits for one that still runs; one that has ended is noticed at once, by its closed connection."""


class ProcessGroup(Processes):
    """The default group of `torch.distributed`, which is initialized; see `Processes` for the methods."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.count = dist.get_world_size()

    # -- how work is divided --------------------------------------------------------------------------
    def deal(self, lengths: np.ndarray) -> np.ndarray:
        """See `Processes.deal`: the rows, longest first, go to ranks 0, 1, ..., n - 1, n - 1, ..., 1, 0, 0, 1, ..."""
        longest_first = np.argsort(-np.asarray(lengths), kind="stable")
        place = np.arange(len(longest_first)) % (2 * self.count)
        owner = np.minimum(place, 2 * self.count - 1 - place)
        return np.sort(longest_first[owner == self.rank])

    # -- what the processes exchange ----------------------------------------------------------------------
    def gather_rows(self, arrays: Mapping[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
        """See `Processes.gather_rows`."""
        layout = {name: [str(array.dtype), list(array.shape)] for name, array in arrays.items()}
        headers = self.gather({"arrays": layout, "rows": rows})
        content = self._gather_bytes(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays.values()))
        by_rank = [_read_arrays(header["arrays"], part) for header, part in zip(headers, content, strict=True)]
        unknown = [np.full(header["rows"], np.nan) for header in headers]
        names = dict.fromkeys(name for own in by_rank for name in own)
        return {
            name: _concatenated([own.get(name, nan) for own, nan in zip(by_rank, unknown, strict=True)])
            for name in names
        }

    def gather(self, content: Any) -> list[Any]:
        """See `Processes.gather`."""
        return [json.loads(part) for part in self._gather_bytes(json.dumps(content).encode())]

    def any(self, flag: bool) -> bool:
        """See `Processes.any`."""
        return bool(self.largest(int(flag)))

    def wait(self) -> None:
        """See `Processes.wait`."""
        self.largest(0)

    def attempt(self, work: Callable[[], Result], kind: type[LMEnvError]) -> Result:
        """See `Processes.attempt`."""
        failure = None
        try:
            result = work()
        except kind as error:
            failure = error
        messages = self.gather(None if failure is None else str(failure))
        if failure is not None:
            raise failure
        for rank, message in enumerate(messages):
            if message is not None:
                raise kind(f"process {rank}: {message}")
        return result

    def largest(self, number: int) -> int:
        """See `Processes.largest`."""
        value = torch.tensor([number])
        self._reduce(value, dist.ReduceOp.MAX)
        return int(value)

    def sum_gradients(self, parameters: Sequence[nn.Parameter], loss: float) -> float:
        """See `Processes.sum_gradients`.  The sums are in the gradients' own precision, the loss in double."""
        # One exchange for both: for each parameter how many processes have a gradient, and behind them the loss.
        counts_and_loss = torch.tensor([float(p.grad is not None) for p in parameters] + [loss], dtype=torch.float64)
        self._reduce(counts_and_loss)
        for parameter, count in zip(parameters, counts_and_loss[:-1].tolist(), strict=True):
            if count and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in parameters if p.grad is not None]
        for kind in dict.fromkeys((g.dtype, g.device) for g in gradients):
            for bucket in _buckets([g for g in gradients if (g.dtype, g.device) == kind]):
                flat = torch.cat([g.reshape(-1) for g in bucket])
                self._reduce(flat)
                for gradient, total in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                    gradient.copy_(total.view_as(gradient))
        return float(counts_and_loss[-1])

    @torch.no_grad()
    def broadcast_weights(self, modules: Iterable[nn.Module]) -> None:
        """See `Processes.broadcast_weights`."""
        for module in modules:
            for tensor in [*module.parameters(), *module.buffers()]:
                tensor.copy_(self._from_first(tensor.detach().clone()))

    def check_alike(self, what: str, describe: Callable[[], Any]) -> None:
        """See `Processes.check_alike`."""
        text = json.dumps(describe(), sort_keys=True, default=str)
        digests = self.gather(hashlib.sha256(text.encode()).hexdigest())
        for rank, digest in enumerate(digests):
            if digest != digests[0]:
                raise ConfigurationError(
                    f"{what} of process {rank} differs from that of process 0: give all processes of a run the same"
                    " options, the same data and the same seed (the work is divided among them all the same)"
                )

    def from_first(self, content: tuple[Any, Mapping[str, Tensor]] | None) -> tuple[Any, Mapping[str, Tensor]] | None:
        """See `Processes.from_first`."""
        own = content if self.first else None
        header = None if own is None else [own[0], _layout(own[1])]
        header = json.loads(self._gather_bytes(json.dumps(header).encode() if self.first else b"")[0])
        if header is None:
            return None
        described, layout = header
        tensors: dict[str, Tensor] = {}
        for name, (dtype, shape) in layout.items():
            if own is None:
                tensors[name] = self._from_first(torch.empty(shape, dtype=getattr(torch, dtype)))
            else:
                tensors[name] = self._from_first(own[1][name].detach().cpu())
        return described, tensors

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """See `Processes.guarded`."""
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, LMEnvError) or not _is_connection_error(error):
                raise
            raise LostProcessError(
                f"process {self.rank} of {self.count} ends because another one has ended or cannot be reached"
                f" ({str(error).splitlines()[0][:200]}): read the last messages of that process; a run with checkpoint="
                " resumes from its last checkpoint with resume=True"
            ) from error

    def _from_first(self, tensor: Tensor) -> Tensor:
        """The first process's tensor, as bytes whatever its dtype.

        Args:
            tensor: in the first process the one that is sent; in others one of its shape and dtype.
        """
        content = tensor.contiguous().reshape(-1).view(torch.uint8)
        with self.guarded():
            dist.broadcast(content, 0)
        return content.view(tensor.dtype).view(tensor.shape)

    def _reduce(self, tensor: Tensor, operation: Any = dist.ReduceOp.SUM) -> None:
        """Replace a tensor, in place, by its sum over all processes, or by what another operation makes of them."""
        with self.guarded():
            dist.all_reduce(tensor, operation)

    def _gather_bytes(self, content: bytes) -> list[bytes]:
        """The bytes that each process gives, by rank; they are padded to one length on the way."""
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        with self.guarded():
            dist.all_gather(sizes, torch.tensor([len(content)]))
        longest = max(int(size) for size in sizes)
        padded = torch.zeros(max(longest, 1), dtype=torch.uint8)
        padded[: len(content)] = torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8)[: len(content)]
        parts = [torch.empty_like(padded) for _ in range(self.count)]
        with self.guarded():
            dist.all_gather(parts, padded)
        return [part[: int(size)].numpy().tobytes() for part, size in zip(parts, sizes, strict=True)]


def _is_connection_error(error: RuntimeError) -> bool:
    """Whether an error comes from torch.distributed, and not from the model: gloo raises plain RuntimeErrors."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return any(word in text for word in ("gloo", "connection closed", "connection reset", "nccl", "broken pipe"))


def _layout(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, list[int]]]:
    """Name -> (dtype, shape), JSON."""
    return {name: (str(t.dtype).removeprefix("torch."), list(t.shape)) for name, t in tensors.items()}


def _read_arrays(layout: Mapping[str, Any], content: bytes) -> dict[str, np.ndarray]:
    """The arrays whose bytes follow each other in `content`; the layout is name -> (dtype, shape), in their order."""
    arrays = {}
    start = 0
    for name, (dtype, shape) in layout.items():
        kind = np.dtype(dtype)
        count = int(np.prod(shape))
        arrays[name] = np.frombuffer(content, kind, count, start).reshape(shape)
        start += count * kind.itemsize
    return arrays


def _concatenated(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays one after the other; two-dimensional ones are padded with 0 on the right to the widest."""
    if parts[0].ndim < 2:
        return np.concatenate(parts)
    width = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in parts])


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in their order, in lists of at most `BUCKET` numbers or of one tensor."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(t.numel() for t in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
