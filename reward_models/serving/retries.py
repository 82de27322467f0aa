"""How long to wait before a server is asked again."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

__all__ = ["RETRIED", "pause_before", "retry_after_seconds"]

LONGEST_PAUSE = 30.0
"""Seconds, unless the server asks for more."""

RETRIED = frozenset({429, *range(500, 600)})
"""The statuses after which the same request may succeed later: too many requests, and the server's own faults."""


def pause_before(attempt: int, first: float, asked: float | None, rng: random.Random) -> float:
    """Seconds before attempt number `attempt` (2, 3, ...).

    A number drawn evenly from 0 to first, 2 first, 4 first, ..., at most 30 s: so many clients that failed together
    do not come back together ("full jitter", aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter).

    Args:
        first: the longest pause before the second attempt.
        asked: what the server asked for by Retry-After; the pause is at least that.
    """
    longest = min(LONGEST_PAUSE, first * 2.0 ** min(attempt - 2, 30))
    return (asked or 0.0) + rng.uniform(0.0, longest)


def retry_after_seconds(value: str | None, now: datetime | None = None) -> float | None:
    """The seconds that a Retry-After header asks for, by number or by date; None where it says nothing sensible."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text) if len(text) <= 9 else None
    try:
        date = parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())
