"""How far a long piece of work has come: a bar in a terminal or a notebook, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self, TextIO, TypeVar

from tqdm.auto import tqdm

__all__ = ["Progress", "tracked"]

Item = TypeVar("Item")

SECONDS = 30.0
"""Between two plain lines at the least; later ones are a twentieth of the time so far apart, about 150 in a week."""


class Progress:
    """The progress of `total` units of work, on stderr.

    Where stderr is no terminal, such as in a pipe or a log of a cluster, lines without control codes are written: one
    every so often, and one at the end.

    Args:
        total: units in all; None: not known.
        label: what is under way.
        unit: what is counted, in the singular.
        done: units that were done before.
        enabled: False shows nothing.
        leave: whether the bar, or a line at the end, stays.
        stream: where to, for tests; a stream that is given is written plain lines.
        clock: seconds that go on, for tests.
    """

    def __init__(
        self,
        total: int | None,
        label: str = "",
        *,
        unit: str = "token",
        done: int = 0,
        enabled: bool = True,
        leave: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.done, self.label = total, done, label.strip()
        self._unit, self._leave, self._stream, self._clock = unit, leave, stream, clock
        self._begun_at, self._begun_with = clock(), done
        self._told_at, self._told = self._begun_at, -1
        self._note = ""
        self._bar: Any = None
        self._plain = enabled and (stream is not None or not _shows_bars())
        if enabled and not self._plain:
            self._bar = tqdm(
                total=total, initial=done, desc=label or None, unit=_SHORT.get(unit, unit), unit_scale=True, leave=leave
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def update(self, count: int = 1, note: str = "") -> None:
        """So many more units are done; `note` tells how it stands.

        Work that exceeds the total raises it, so that the speed is that of all units.
        """
        self.done += count
        self._note = note
        if self.total is not None:
            self.total = max(self.total, self.done)
        if self._bar is not None:
            self._bar.total = self.total
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
        now = self._clock()
        if self._plain and now - self._told_at >= max(SECONDS, (now - self._begun_at) / 20):
            self._tell(now)

    def close(self) -> None:
        """The work is over."""
        if self._bar is not None:
            self._bar.close()
        if self._plain and self._leave and self._told != self.done:
            self._tell(self._clock())
        self._plain = False

    def _tell(self, now: float) -> None:
        self._told_at, self._told = now, self.done
        seconds = now - self._begun_at
        of = f" of {self.total:,}" if self.total is not None else ""
        share = f" ({self.done / self.total:.0%})" if self.total else ""
        words = [f"{self.label + ': ' if self.label else ''}{self.done:,}{of} {self._unit}s{share}"]
        if seconds > 0 and self.done > self._begun_with:
            rate = (self.done - self._begun_with) / seconds
            words.append(f"{rate:,.3g} {self._unit}s/s")
            if self.total is not None and self.done < self.total:
                words.append(f"{_clock_time((self.total - self.done) / rate)} left")
        words += [self._note] if self._note else []
        print(", ".join(words), file=self._stream or sys.stderr, flush=True)


def tracked(
    items: Iterable[Item],
    label: str,
    *,
    total: int | None = None,
    initial: int = 0,
    unit: str = "step",
    enabled: bool = True,
) -> Iterator[Item]:
    """The items one after the other, with their progress shown.

    Args:
        initial: items of `total` that were done before.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    with Progress(total, label, unit=unit, done=initial, enabled=enabled) as progress:
        for item in items:
            yield item
            progress.update()


_SHORT = {"token": "tok"}


def _shows_bars() -> bool:
    """Whether stderr is a terminal, or this is a notebook whose bars tqdm knows how to draw."""
    in_notebook = any(kind.__name__ == "tqdm_notebook" for kind in tqdm.__mro__)
    return in_notebook or bool(getattr(sys.stderr, "isatty", lambda: False)())


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
