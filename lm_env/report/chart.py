"""A line chart as geometry: where ticks, lines, bands, points and labels are.  The template draws them as SVG.

Lines differ by color and by dashes, and carry their names at their ends.  Units are those of the SVG's viewBox.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

__all__ = ["Chart", "Line", "Mark", "Placed", "nice_ticks", "short_number", "tokens_in_words"]

MOST_POINTS = 150
"""Longer lines are drawn as means of neighbors, so that a page of a long run stays small."""
LABEL_GAP = 15.0


@dataclass(frozen=True)
class Line:
    """One line with its name; `kind` is its look in the style sheet: a, b, c, d, or ref for a quiet one."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    se: Sequence[float] | None = None
    """Standard errors; the band is two of them to each side."""
    kind: str = "a"


@dataclass(frozen=True)
class Mark:
    """One point with its name."""

    label: str
    x: float
    y: float
    kind: str = "a"
    shape: str = "circle"
    """"circle" or "star"."""


@dataclass(frozen=True)
class Placed:
    """A text at a place."""

    x: float
    y: float
    text: str
    kind: str = ""
    anchor: str = "start"


@dataclass(frozen=True)
class Chart:
    """Lines and points on two axes; title and axes are said in full."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    marks: Sequence[Mark] = ()
    note: str = ""
    """A sentence beneath it."""
    x_is_tokens: bool = True
    from_zero: bool = False
    """Whether the vertical axis has to show 0."""
    width: float = 500.0
    height: float = 300.0
    left: float = 54.0
    right: float = 104.0
    top: float = 14.0
    bottom: float = 46.0
    tick_count: int = 5
    shown: list[Line] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shown", [thinned(line) for line in self.lines if len(line.y)])

    # -- from numbers to places -------------------------------------------------------------------------
    @property
    def x_range(self) -> tuple[float, float]:
        """The smallest and the largest x."""
        xs = [x for line in self.shown for x in line.x] + [mark.x for mark in self.marks]
        low, high = (min(0.0, *xs), max(xs)) if len(xs) > 1 else (0.0, max(xs, default=1.0))
        return low, high if high > low else low + 1.0

    @property
    def y_range(self) -> tuple[float, float]:
        """The smallest and the largest y, bands included, with some air."""
        ys = [mark.y for mark in self.marks]
        for line in self.shown:
            ys += [y for pair in self._edges(line) for y in pair] or list(line.y)
        ys += [0.0] if self.from_zero else []
        low, high = min(ys, default=0.0), max(ys, default=1.0)
        air = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
        return low - air, high + air

    def px(self, x: float) -> float:
        """Where x is."""
        low, high = self.x_range
        return round(self.left + (x - low) / (high - low) * (self.width - self.left - self.right), 2)

    def py(self, y: float) -> float:
        """Where y is."""
        low, high = self.y_range
        return round(self.height - self.bottom - (y - low) / (high - low) * (self.height - self.top - self.bottom), 2)

    # -- what the template draws --------------------------------------------------------------------------
    @property
    def x_ticks(self) -> list[Placed]:
        """Ticks of the horizontal axis."""
        show = tokens_in_words if self.x_is_tokens else short_number
        return [
            Placed(self.px(t), self.height - self.bottom, show(t)) for t in nice_ticks(*self.x_range, self.tick_count)
        ]

    @property
    def y_ticks(self) -> list[Placed]:
        """Ticks of the vertical axis."""
        ticks = nice_ticks(*self.y_range, self.tick_count)
        return [Placed(self.left, self.py(tick), short_number(tick)) for tick in ticks]

    @property
    def paths(self) -> list[tuple[str, str]]:
        """(path, kind) of each line."""
        return [(self._path(line.x, line.y), line.kind) for line in self.shown]

    @property
    def bands(self) -> list[tuple[str, str]]:
        """(closed path, kind) of each band."""
        found = []
        for line in self.shown:
            edges = self._edges(line)
            if edges:
                xs, lower, upper = list(line.x), [e[0] for e in edges], [e[1] for e in edges]
                found.append((self._path(xs + xs[::-1], upper + lower[::-1]) + " Z", line.kind))
        return found

    @property
    def points(self) -> list[tuple[float, float, str, str]]:
        """(x, y, kind, shape) of each mark, of each line that is a single point, and of each point of a path."""
        path = [
            (self.px(x), self.py(y), "dot", "circle")
            for line in self.shown
            if line.kind == "path"
            for x, y in zip(line.x, line.y, strict=True)
        ]
        single = [
            (self.px(line.x[0]), self.py(line.y[0]), line.kind, "circle") for line in self.shown if len(line.y) == 1
        ]
        return path + single + [(self.px(m.x), self.py(m.y), m.kind, m.shape) for m in self.marks]

    @property
    def labels(self) -> list[Placed]:
        """The names of the lines at their ends, none upon another; those of points beside them."""
        named = [line for line in self.shown if line.label]
        early = [line for line in named if len(line.y) == 1 and line.x[0] < sum(self.x_range) / 2]
        ends = [
            Placed(self.px(line.x[-1]) + 6, self.py(line.y[-1]), line.label, line.kind)
            for line in named
            if line not in early
        ]
        ends.sort(key=lambda label: label.y)
        floor = self.height - self.bottom
        for i, label in enumerate(ends):
            least = self.top + 6 if i == 0 else ends[i - 1].y + LABEL_GAP
            ends[i] = replace(label, y=max(label.y, least))
        for i in range(len(ends) - 1, -1, -1):
            most = floor if i == len(ends) - 1 else ends[i + 1].y - LABEL_GAP
            ends[i] = replace(ends[i], y=min(ends[i].y, most))
        # A single point at the beginning, such as an evaluation before the training: above it, clear of the lines.
        beside = [Placed(self.px(line.x[0]) + 4, self.py(line.y[0]) - 14, line.label, line.kind) for line in early]
        for mark in self.marks:
            x, y = self.px(mark.x), self.py(mark.y)
            far = x > self.left + 0.75 * (self.width - self.left - self.right) and self.right < 60
            away = -12 if mark.shape == "star" or y + 20 > self.height - self.bottom else 14
            beside.append(Placed(x - 8 if far else x + 8, y + away, mark.label, mark.kind, "end" if far else "start"))
        return [*ends, *beside]

    @property
    def neighbors(self) -> int:
        """How many numbers of the log a point of the longest line stands for."""
        return max((points_together(len(line.y)) for line in self.lines), default=1)

    @property
    def words(self) -> str:
        """The chart for those who do not see it."""
        said = [f"{self.title}: {self.y_label or self.title} over {self.x_label}."]
        for line in self.lines:
            if len(line.y):
                begin, end = short_number(line.y[0]), short_number(line.y[-1])
                said.append(f"{line.label or 'The line'} goes from {begin} to {end}.")
        return " ".join(said)

    def _edges(self, line: Line) -> list[tuple[float, float]]:
        if line.se is None:
            return []
        errors = [2 * se if math.isfinite(se) else 0.0 for se in line.se]
        return [(y - e, y + e) for y, e in zip(line.y, errors, strict=True)] if any(errors) else []

    def _path(self, xs: Sequence[float], ys: Sequence[float]) -> str:
        places = [f"{self.px(x):g} {self.py(y):g}" for x, y in zip(xs, ys, strict=True)]
        return "M" + " L".join(places) if places else ""


def points_together(count: int) -> int:
    """How many neighbors of a line of `count` points are drawn as one."""
    return max(1, math.ceil((count - 2) / MOST_POINTS))


def thinned(line: Line) -> Line:
    """A line of at most `MOST_POINTS` points: the first and the last as they are, between them means of neighbors."""
    inner, size = len(line.y) - 2, points_together(len(line.y))
    if size == 1:
        return line
    cuts = [(0, 1), *((i, min(i + size, inner + 1)) for i in range(1, inner + 1, size)), (inner + 1, inner + 2)]
    se = None
    if line.se is not None:
        se = [math.sqrt(sum(e * e for e in line.se[a:b])) / (b - a) for a, b in cuts]
    x = [sum(line.x[a:b]) / (b - a) for a, b in cuts]
    return replace(line, x=x, y=[sum(line.y[a:b]) / (b - a) for a, b in cuts], se=se)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers within [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / max(count, 1)
    if not (math.isfinite(raw) and raw > 0):
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((m * power for m in (1, 2, 5) if m * power >= raw * 0.999), 10 * power)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) + 0.0 for k in range(first, math.floor(high / step + 1e-9) + 1)]


def short_number(value: float) -> str:
    """Three digits: 0.0123, 1.23, 12.3, 1,234, 1.2e7; a minus is one, and no hyphen."""
    if not math.isfinite(value):
        return "not finite"
    if 1000 <= abs(value) < 1e6:
        text = f"{value:,.0f}"
    elif value and not 1e-3 <= abs(value) < 1e6:
        digits, _, power = f"{value:.2e}".partition("e")
        text = f"{float(digits):g}e{int(power)}"
    else:
        text = f"{value:.3g}"
    return text.replace("-", "\u2212")


def tokens_in_words(count: float) -> str:
    """0, 500, 20k, 1.5M."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"
