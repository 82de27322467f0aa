"""What the six figures and tables have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE, OCHRE, GRAY = "#0067a3", "#b34700", "#00735a", "#9b3676", "#7a5c00", "#595959"
PAGES = Path(__file__).resolve().parents[2] / "docs" / "physics"
STYLE: Any = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "lines.linewidth": 2,
    "lines.markersize": 6,
}


def new_figure(panels: int = 1) -> tuple[Figure, Any]:
    """A figure of 7 by 4.2 inches, and its axes: one, or an array of `panels` side by side."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        return figure, figure.subplots(1, panels)


def annotate(axes: Any, x: float, y: float, text: str, color: str, **options: Any) -> None:
    """Name a curve beside it, at (x, y) of the data, in the curve's color."""
    box = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0.5}
    options = {"xytext": (0, 0), "va": "center", "fontsize": 10, "zorder": 1.5, "bbox": box, **options}
    axes.annotate(text, (x, y), color=color, textcoords="offset points", **options)


def number(value: float, digits: int = 3) -> str:
    """The value with so many decimals; a value that rounds to zero has no minus sign."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def run(name: str, summary: str, report: Callable[[], str], draw: Callable[[], Figure]) -> None:
    """The command line of each script: print the tables that its page quotes, and draw its figure.

    Args:
        name: of the script and of the figure in docs/physics, which --out replaces by another file.
    """
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--out", type=Path, default=PAGES / f"{name}.png", help="where the figure goes, a PNG file")
    path = parser.parse_args().out
    print(report())
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        draw().savefig(path, dpi=160, metadata={"Software": None})
