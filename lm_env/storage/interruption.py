"""Ctrl-C and SIGTERM as a request: save what can be saved, and leave with an exit code of its own."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from lm_env.errors import TrainingInterrupted

__all__ = ["EndOnSignals", "StopSignals"]

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Inside `with`, the first SIGINT or SIGTERM is noted in `received`, and the program goes on.

    From then on the handlers that were there before are back, so that a second Ctrl-C raises
    KeyboardInterrupt and a second SIGTERM ends the process at once.  A signal that is ignored stays ignored,
    as in a job that a shell has put into the background.  In a thread other than the main one Python
    delivers no signals, and this does nothing.

    Args:
        promise: what will be done before the program ends, for the message that a signal is answered with.
    """

    def __init__(self, promise: str) -> None:
        self.promise = promise
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                handler = signal.getsignal(number)
                if handler is not None and handler is not signal.SIG_IGN:  # None: it was set outside Python
                    self._before[number] = handler
                    signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._put_back()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._put_back()
        log.warning("%s: %s; a second one ends this process at once", self.received.name, self.promise)

    def _put_back(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())


class EndOnSignals(StopSignals):
    """Inside `with`, the first SIGINT or SIGTERM ends the work at once: for work that has nothing to save.

    The signal raises KeyboardInterrupt, which even code that catches SystemExit lets through, such as the call of a
    reward function; out of the block comes TrainingInterrupted, whatever the code inside makes of it.  A `StopSignals`
    inside the block, such as that of a training with checkpoints, comes first: there the first signal is only noted,
    and a second one ends the work.

    Args:
        work: what is ended, for the message.
    """

    def __init__(self, work: str) -> None:
        super().__init__(f"{work} ends at once; what was saved before is kept")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        if self.received is not None:  # also if the work has caught the KeyboardInterrupt and gone on
            cause = None if isinstance(error, KeyboardInterrupt) else error
            raise TrainingInterrupted(f"{self.received.name}: {self.promise}") from cause

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._put_back()
        raise KeyboardInterrupt
