"""One call at a time: an environment is moved by one caller, and only once the move before has ended."""

from __future__ import annotations

import threading
from typing import Any

from lm_env.errors import BusyError

__all__ = ["OneAtATime"]


class OneAtATime:
    """A context manager that lets one caller in and refuses all others until that one has left.

    It neither waits nor lets the same thread in twice: two threads that step one environment in turns
    would read each other's observations, and a reward function that resets the environment which asks
    it would pull the text away from under the step.  A copy is a new, free one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise BusyError(
                "another call of this environment is under way, in a second thread or around this one (as in a reward"
                " function): make one environment for each thread, and call it when the step has ended"
            )

    def __exit__(self, *_: Any) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return OneAtATime, ()
