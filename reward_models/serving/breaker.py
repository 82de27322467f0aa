"""A circuit breaker: a server that keeps failing is not asked for a while, and then tried once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from lm_env.errors import RewardUnavailableError
from lm_env.validation import check_integer, check_number

__all__ = ["CircuitBreaker"]

State = Literal["closed", "open", "half-open"]


class CircuitBreaker:
    """Counts failures in a row, and refuses calls while there are too many.

    Closed, every call goes through.  After `failures` in a row it is open: calls fail at once, for `seconds`.  Then it
    is half-open: one call goes through while the others still fail at once; if it succeeds the breaker is closed, if
    it fails the breaker is open for `seconds` again.  Threads may share one.  (Nygard, "Release It!", 2007, chapter 5.)

    Args:
        failures: at least 1.
        seconds: at least 0.
        clock: seconds that only grow.
    """

    def __init__(
        self, failures: int = 5, seconds: float = 30.0, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.failures = check_integer("failures", failures)
        self.seconds = check_number("seconds", seconds, low=0.0)
        self._clock = clock
        self._lock = threading.Lock()
        self._in_a_row = 0
        self._opened: float | None = None
        self._trying = False

    @property
    def state(self) -> State:
        """Whether a call would go through now; in "half-open", one would."""
        with self._lock:
            return self._state()

    @contextmanager
    def call(self, what: str, blame: tuple[type[BaseException], ...]) -> Iterator[None]:
        """One call runs inside; it has failed if it raises one of `blame`.  Any other exception counts as an answer.

        Raises:
            RewardUnavailableError: the breaker is open; `what` is how the message calls the server.
        """
        with self._lock:
            if (state := self._state()) == "open" or (state == "half-open" and self._trying):
                assert self._opened is not None
                left = max(0.0, self._opened + self.seconds - self._clock())
                raise RewardUnavailableError(
                    f"{what} was not asked: {self._in_a_row} calls in a row have failed, and the next attempt is"
                    f" {f'in {left:.1f} s' if left else 'under way'}; see why it does not answer"
                )
            attempt = state == "half-open"
            self._trying = attempt
        try:
            yield
        except BaseException as error:
            # A call that was cancelled tells nothing of the server; the next one may try.
            self._ended(attempt, failed=isinstance(error, blame), answered=isinstance(error, Exception))
            raise
        self._ended(attempt, failed=False, answered=True)

    def _state(self) -> State:
        if self._opened is None:
            return "closed"
        return "open" if self._clock() < self._opened + self.seconds else "half-open"

    def _ended(self, attempt: bool, *, failed: bool, answered: bool) -> None:
        with self._lock:
            if attempt:
                self._trying = False
            if failed:
                self._in_a_row += 1
                if attempt or self._in_a_row >= self.failures:
                    self._opened = self._clock()
            elif answered and (attempt or self._opened is None):
                self._in_a_row = 0
                self._opened = None
