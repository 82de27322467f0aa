"""What a user's code may change of the whole process, put back afterwards: one cell must not change the next one."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import reduce
from typing import Any, NamedTuple, cast

import numpy as np
import torch

__all__ = ["keep_process_settings"]

log = logging.getLogger(__name__)


@contextmanager
def keep_process_settings() -> Iterator[None]:
    """Put back, at its end, the settings that agents of other people's set and forget.

    These are PyTorch's default dtype and device, its threads, gradient mode, anomaly detection, deterministic
    algorithms and the precision of matrix products and convolutions; cuDNN's benchmark mode; NumPy's floating-point
    errors; the filters of warnings; the working directory; `sys.stdout` and `sys.stderr`.  One that cannot be put back
    is a line in the log.  Environment variables are not among them, nor are random generators: each cell seeds them.

    It is a decorator as well.
    """
    with ExitStack() as stack:
        for setting in _SETTINGS:
            stack.callback(_put_back, setting, _value(setting))
        yield


class _Setting(NamedTuple):
    name: str
    get: Callable[[], Any]
    set: Callable[[Any], object]


_UNREADABLE = object()
"""Stands for the value of a setting that cannot be asked for."""


def _value(setting: _Setting) -> Any:
    """The value that a setting has; PyTorch refuses to tell a precision that was set in its older and newer ways."""
    try:
        return setting.get()
    except (RuntimeError, OSError):  # the second: the working directory has been removed
        return _UNREADABLE


def _put_back(setting: _Setting, before: Any) -> None:
    if before is _UNREADABLE or _value(setting) == before:
        return
    try:
        setting.set(before)
    except Exception as error:  # the others are put back in any case, and an error of the cell itself is not hidden
        log.warning("%s cannot be put back as it was before the cell: %s", setting.name, error)


def _backend(path: str) -> _Setting:
    """The setting `torch.backends.PATH`."""
    *owners, name = path.split(".")
    owner: Any = reduce(getattr, owners, torch.backends)
    return _Setting(f"torch.backends.{path}", lambda: getattr(owner, name), lambda value: setattr(owner, name, value))


def _set_filters(filters: list[Any]) -> None:
    """Set the filters of warnings; `warnings.catch_warnings` would show each warning again in every cell."""
    warnings.resetwarnings()
    cast("list[Any]", warnings.filters)[:] = filters


_SETTINGS = (
    # The last one is put back first.  A precision in PyTorch's older way sets those of its newer way, and one of a
    # whole library those of its operations, so the order is from the most special to the most general.
    _backend("cuda.matmul.fp32_precision"),
    _backend("cudnn.conv.fp32_precision"),
    _backend("cudnn.rnn.fp32_precision"),
    _backend("mkldnn.matmul.fp32_precision"),
    _backend("mkldnn.conv.fp32_precision"),
    _backend("mkldnn.rnn.fp32_precision"),
    _backend("cudnn.fp32_precision"),
    _backend("fp32_precision"),
    _backend("cudnn.allow_tf32"),
    _Setting("the precision of products", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    _backend("cudnn.benchmark"),
    _backend("cudnn.deterministic"),
    _Setting("PyTorch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    _Setting(
        "PyTorch's default device",
        torch.get_default_device,
        lambda device: torch.set_default_device(None if device.type == "cpu" else device),
    ),
    _Setting("the number of threads", torch.get_num_threads, torch.set_num_threads),
    _Setting("gradient mode", torch.is_grad_enabled, torch.set_grad_enabled),
    _Setting(
        "anomaly detection",
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda values: torch.autograd.set_detect_anomaly(*values),
    ),
    _Setting(
        "deterministic algorithms",
        lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        lambda values: torch.use_deterministic_algorithms(values[0], warn_only=values[1]),
    ),
    _Setting("NumPy's floating-point errors", np.geterr, lambda errors: np.seterr(**errors)),
    _Setting("the filters of warnings", lambda: list(warnings.filters), _set_filters),
    _Setting("the working directory", os.getcwd, os.chdir),
    _Setting("sys.stdout", lambda: sys.stdout, lambda stream: setattr(sys, "stdout", stream)),
    _Setting("sys.stderr", lambda: sys.stderr, lambda stream: setattr(sys, "stderr", stream)),
)
