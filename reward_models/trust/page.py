"""One page about a reward model: self-contained HTML, with the pictures in it."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from lm_env.errors import CheckpointWriteError
from lm_env.storage import write_file
from reward_models.trust.evaluation import Trust
from reward_models.trust.statistics import Share

__all__ = ["or_dash", "write_page"]

BLUE, GREEN, RED, GRAY = "#2a6fb0", "#2e8b57", "#c0392b", "#8a8f98"
STYLE = """
:root { color-scheme: light dark; --text: #1d2430; --soft: #667085; --line: #d9dee6; --page: #ffffff; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e9ee; --soft: #9aa4b2; --line: #343b46; --page: #14181e; --card: #1c222b; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; } .wide { overflow-x: auto; }
td, th { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.soft { color: var(--soft); } code { overflow-wrap: anywhere; }
ul.doubts li { margin: .3rem 0; } .good { border-left: 4px solid #2e8b57; padding-left: .8rem; }
.bad { border-left: 4px solid #c0392b; padding-left: .8rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); gap: 1rem; }
figure { margin: 0; background: #ffffff; border: 1px solid var(--line); border-radius: 6px; padding: .5rem; }
figure svg { width: 100%; height: auto; } figcaption { color: #444b57; font-size: .85rem; padding: 0 .4rem .3rem; }
"""


def write_page(trust: Trust, path: str | Path, *, title: str, facts: Sequence[tuple[str, str]] = ()) -> Path:
    """Write the page.

    Args:
        path: an .html file.
        title: what was evaluated.
        facts: (name, value) rows about model and data.

    Raises:
        CheckpointWriteError: it cannot be written.
    """
    body = [
        f"<h1>{escape(title)}</h1>",
        _table([(name, value, "") for name, value in facts]) if facts else "",
        _verdict(trust),
        "<h2>Numbers</h2>",
        _table(_numbers(trust)),
        "<h2>Pictures</h2>",
        f'<div class="pictures">{"".join(_pictures(trust))}</div>',
        _degenerate(trust),
        _annotators(trust),
    ]
    text = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, text.encode())
    except OSError as error:
        raise CheckpointWriteError(f"cannot write {path}: {error}; choose another place") from error
    return path


def _verdict(trust: Trust) -> str:
    doubts = trust.doubts()
    if not doubts:
        return '<h2>Verdict</h2><p class="good">Nothing that was measured here speaks against it.</p>'
    listed = "".join(f"<li>{escape(doubt)}</li>" for doubt in doubts)
    return f'<h2>Verdict</h2><div class="bad"><p>Reasons not to trust it:</p><ul class="doubts">{listed}</ul></div>'


def _numbers(trust: Trust) -> list[tuple[str, str, str]]:
    """(name, value, remark) of each row."""
    rows = [
        ("comparisons", f"{trust.comparisons:,}", f"of {trust.prompts:,} prompts, {trust.records:,} records"),
        ("accuracy", _share(trust.accuracy), "where one response is better; 95% interval"),
        ("score from the length alone", _share(trust.length_baseline), "fitted to the same training data"),
        ("score from the words alone", _share(trust.word_baseline), "fitted to the same training data"),
        ("ties", f"{trust.ties:,}", "not in the accuracy"),
    ]
    if trust.tie_gap is not None and trust.decided_gap is not None:
        rows.append(("difference of scores", f"{trust.tie_gap:.3f}, {trust.decided_gap:.3f}", "on ties, on the others"))
    if trust.best_of is not None:
        rows.append(("best of K found", _share(trust.best_of), f"chance is {trust.best_of_chance:.3f}"))
    if trust.ece is not None and trust.scale is not None:
        rows.append(("calibration error", f"{trust.ece:.3f}", "distance between how sure it is and how often right"))
        remark = f"if its differences were multiplied by {trust.scale:.2f}"
        rows.append(("the same, rescaled", f"{trust.ece_scaled:.3f}", remark))
    if trust.length_correlation is not None:
        rows.append(("score and length", f"{trust.length_correlation:+.3f}", "rank correlation over all responses"))
    if trust.longer_wins is not None:
        rows.append(("the longer one wins", f"{trust.longer_wins:.3f}", "as people judged"))
    if trust.rating_correlation is not None:
        pearson, rank = trust.rating_correlation
        rows.append(("score and rating", f"{or_dash(pearson)}, {or_dash(rank)}", "Pearson's and rank correlation"))
    if trust.leaked is not None:
        rows.append(("records of training prompts", f"{trust.leaked:,}", "must be 0"))
    return rows


def _share(share: Share | None) -> str:
    return "-" if share is None else f"{share.mean:.3f} ({share.low:.3f} to {share.high:.3f})"


def or_dash(value: float | None) -> str:
    """A signed number, or a dash where there is none."""
    return "-" if value is None else f"{value:+.3f}"


def _table(rows: Sequence[tuple[str, str, str]]) -> str:
    cells = "".join(
        f'<tr><td>{escape(name)}</td><td>{escape(value)}</td><td class="soft">{escape(remark)}</td></tr>'
        for name, value, remark in rows
    )
    return f'<div class="wide"><table>{cells}</table></div>'


def _degenerate(trust: Trust) -> str:
    if not trust.degenerate:
        return ""
    cells = "".join(
        f'<tr><td>{escape(kind.name)}</td><td class="number">{kind.beats:.0%}</td>'
        f'<td class="number">{kind.percentile:.0%}</td>'
        f'<td class="soft"><code>{escape(kind.example[:90])}</code></td></tr>'
        for kind in trust.degenerate
    )
    return (
        "<h2>Texts that nobody would prefer</h2>"
        '<div class="wide"><table><tr><th>text</th><th class="number">above the real one</th>'
        f'<th class="number">percentile</th><th>example</th></tr>{cells}</table></div>'
    )


def _annotators(trust: Trust) -> str:
    if not trust.annotator_accuracy:
        return ""
    rows = [(name, _share(share), f"{share.count} comparisons") for name, share in trust.annotator_accuracy.items()]
    return "<h2>Accuracy by annotator</h2>" + _table(rows)


# -- pictures ------------------------------------------------------------------------------------------
def _pictures(trust: Trust) -> list[str]:
    found = []
    if trust.accuracy is not None:
        found.append(_figure(_draw_accuracy, trust, "Accuracy beside the baselines, with 95% intervals."))
    if trust.calibration:
        found.append(_figure(_draw_calibration, trust, "How often it is right, over how sure it is."))
    if trust.by_length:
        found.append(_figure(_draw_lengths, trust, "Accuracy by how much longer the better response is."))
    if trust.curve:
        found.append(_figure(_draw_curve, trust, "Accuracy over the number of training records."))
    if trust.gold is not None:
        found.append(_figure(_draw_gold, trust, "Best of n by the reward model: its own score, and the gold score."))
    return found


def _figure(draw: Any, trust: Trust, caption: str) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "path", "font.size": 10, "svg.hashsalt": caption}):
        figure = Figure(figsize=(4.6, 3.1), layout="constrained")
        axis = figure.subplots()
        draw(axis, trust)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), flags=re.S)
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _bars(axis: Any, shares: Sequence[Share], places: Sequence[float], **style: Any) -> None:
    means = [share.mean for share in shares]
    errors = [[s.mean - s.low for s in shares], [s.high - s.mean for s in shares]]
    axis.errorbar(places, means, yerr=errors, fmt="o", capsize=3, **style)


def _draw_accuracy(axis: Any, trust: Trust) -> None:
    named = [("reward\nmodel", trust.accuracy), ("words\nalone", trust.word_baseline)]
    named.append(("length\nalone", trust.length_baseline))
    shown = [(name, share) for name, share in named if share is not None]
    for place, (_, share) in enumerate(shown):
        _bars(axis, [share], [place], color=BLUE if place == 0 else GRAY)
    axis.axhline(0.5, color=RED, lw=1, ls="--")
    axis.set_xticks(range(len(shown)), [name for name, _ in shown])
    axis.set(xlim=(-0.6, len(shown) - 0.4), ylabel="accuracy")


def _draw_calibration(axis: Any, trust: Trust) -> None:
    sure, right, count = zip(*trust.calibration, strict=True)
    axis.plot([0.5, 1], [0.5, 1], color=GRAY, lw=1, ls="--")
    sizes = [20 + 180 * c / max(count) for c in count]
    axis.scatter(sure, right, s=sizes, color=BLUE, alpha=0.7)
    axis.set(xlim=(0.48, 1.02), ylim=(min(0.4, *right) - 0.02, 1.02), xlabel="sureness", ylabel="share right")


def _draw_lengths(axis: Any, trust: Trust) -> None:
    bins = trust.by_length
    _bars(axis, [b.accuracy for b in bins], range(len(bins)), color=BLUE)
    axis.axhline(0.5, color=RED, lw=1, ls="--")
    axis.set_xticks(range(len(bins)), [f"{b.low:+d} to\n{b.high:+d}" for b in bins], fontsize=8)
    axis.set(xlabel="characters that the better one is longer", ylabel="accuracy")


def _draw_curve(axis: Any, trust: Trust) -> None:
    _bars(axis, [p.accuracy for p in trust.curve], [p.records for p in trust.curve], color=BLUE)
    axis.set_xscale("log", base=2)
    axis.set_xticks([p.records for p in trust.curve], [f"{p.records:,}" for p in trust.curve])
    axis.minorticks_off()
    axis.set(xlabel="training records", ylabel="held-out accuracy")


def _draw_gold(axis: Any, trust: Trust) -> None:
    gold = trust.gold
    assert gold is not None
    root = [math.sqrt(kl) for kl in gold.kl]
    axis.errorbar(
        root, gold.gold, yerr=[error or 0.0 for error in gold.gold_error], color=GREEN, marker="o", ms=4, capsize=2
    )
    axis.set(xlabel="square root of the KL bound, nats", ylabel="gold score")
    axis.yaxis.label.set_color(GREEN)
    twin = axis.twinx()
    twin.plot(root, gold.proxy, color=BLUE, marker="s", ms=3, lw=1)
    twin.set_ylabel("reward model's score", color=BLUE)
    twin.spines[["top"]].set_visible(False)
    for x, y, n in zip(root, gold.gold, gold.n, strict=True):
        axis.annotate(str(n), (x, y), textcoords="offset points", xytext=(3, -11), fontsize=7, color="#555555")
