"""no_host_reads: a context in which nothing may be read from the device, so that no step waits for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["HostReadError", "no_host_reads"]

# Operators whose result, or whose shape, the host has to know.
READS = (
    "_local_scalar_dense",
    "_unique",
    "_unique2",
    "bincount",
    "equal",
    "histc",
    "is_nonzero",
    "item",
    "masked_select",
    "nonzero",
    "nonzero_numpy",
    "nonzero_static",
    "repeat_interleave",
    "unique_consecutive",
    "unique_dim",
)
# Methods that do not come by the dispatcher, or not where host and device are the same.
METHODS = ("__array__", "__bool__", "__float__", "__index__", "__int__", "cpu", "item", "numpy", "tolist")
COPIES = ("_to_copy", "copy_", "_copy_from")


class HostReadError(RuntimeError):
    """Something on the device was to be read by the host."""


@contextmanager
def no_host_reads() -> Iterator[None]:
    """Inside, an operation that would make the host wait for the device raises HostReadError.

    It tells on the CPU as well, where nothing waits: `item`, `tolist`, `numpy`, `cpu`, a tensor in an `if`, results
    whose shape depends on the numbers (`nonzero`, an index by a bool mask), and copies from one device to another.
    """
    with _NoReadingMethods(), _NoReadingOperators():
        yield


class _NoReadingMethods(TorchFunctionMode):
    def __torch_function__(
        self, function: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name in METHODS and args and isinstance(args[0], Tensor):
            raise HostReadError(f"Tensor.{name} reads from the device")
        return function(*args, **(kwargs or {}))


class _NoReadingOperators(TorchDispatchMode):
    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function._schema.name.removeprefix("aten::")
        if name in READS or (name.startswith(("index", "_index")) and _by_bool(args)):
            raise HostReadError(f"the operator {name} reads from the device")
        if name in COPIES and _crosses(args, kwargs):
            raise HostReadError(f"the operator {name} copies from one device to another")
        return function(*args, **kwargs)


def _by_bool(args: Sequence[Any]) -> bool:
    """Whether an index is a mask, which takes as many entries as it has True ones."""
    indices = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _crosses(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    devices = {torch.device(device).type for device in (kwargs.get("device"),) if device is not None}
    devices |= {arg.device.type for arg in args if isinstance(arg, Tensor)}
    return len(devices) > 1
