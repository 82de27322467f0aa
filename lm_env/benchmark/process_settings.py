"""What a user's code may change of the whole process, put back afterwards: one cell must not change the next one."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import numpy as np
import torch

__all__ = ["keep_process_settings"]


@contextmanager
def keep_process_settings() -> Iterator[None]:
    """Put back, at its end, the settings that agents of other people's set and forget.

    These are PyTorch's default dtype and device, its threads, gradient mode, anomaly detection, deterministic
    algorithms and precision of matrix products; NumPy's floating-point errors; the filters of warnings; the working
    directory; `sys.stdout` and `sys.stderr`.  Random generators are not among them: each cell seeds them.

    It is a decorator as well.
    """
    before = _settings()
    folder = _working_directory()
    streams = sys.stdout, sys.stderr
    numpy_errors = np.geterr()
    filters = list(warnings.filters)
    try:
        yield
    finally:
        for name, value in _settings().items():
            if value != before[name]:
                _SETTERS[name](before[name])
        np.seterr(**numpy_errors)
        sys.stdout, sys.stderr = streams
        if list(warnings.filters) != filters:  # `warnings.catch_warnings` would show every warning once more per cell
            warnings.resetwarnings()
            cast("list[Any]", warnings.filters)[:] = filters
        if folder is not None and _working_directory() != folder:
            with suppress(OSError):  # it has been removed meanwhile
                os.chdir(folder)


def _settings() -> dict[str, Any]:
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "anomalies": (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "matmul": torch.get_float32_matmul_precision(),
    }


_SETTERS: dict[str, Callable[[Any], object]] = {
    "dtype": torch.set_default_dtype,
    "device": lambda device: torch.set_default_device(None if device.type == "cpu" else device),
    "threads": torch.set_num_threads,
    "gradients": torch.set_grad_enabled,
    "anomalies": lambda values: torch.autograd.set_detect_anomaly(*values),
    "deterministic": lambda values: torch.use_deterministic_algorithms(values[0], warn_only=values[1]),
    "matmul": torch.set_float32_matmul_precision,
}
"""Setting -> what sets it to a value of `_settings`."""


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it has been removed
        return None
