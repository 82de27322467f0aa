"""Which charts a run has: score, KL, objective, score against KL; parts of the score; what shows its health."""

from __future__ import annotations

import math

from lm_env.report.chart import Chart, Line, Mark
from lm_env.report.progress_table import Curve
from lm_env.report.run_folder import Run
from lm_env.report.story import beta_in_words, reference_score

__all__ = ["health_charts", "main_charts", "part_charts"]

TOKENS = "generated tokens"
SMALL = {"width": 300.0, "height": 170.0, "left": 42.0, "right": 14.0, "top": 10.0, "bottom": 40.0, "tick_count": 3}
HEALTH = (
    ("rollout/entropy", "Entropy", "nats per token", "Near 0 the policy has collapsed."),
    ("rollout/length", "Length", "tokens of a response", "No jump to the cap, none to 1."),
    ("rollout/ep_len_mean", "Length", "tokens of a response", "No jump to the cap, none to 1."),
    ("rollout/ended", "Texts that ended", "share", "Not 0, unless every text is meant to run to the cap."),
    ("rollout/beta", "Beta", "score per nat", "The weight of the KL penalty."),
    ("train/approx_kl", "KL of an update", "nats per token", ".001 to .05 is healthy."),
    ("train/clip_fraction", "Clipped tokens", "share", "0 to .3 is healthy."),
    (
        "train/explained_variance",
        "Explained variance",
        "share",
        "Near 1; below 0 the critic is worse than a constant.",
    ),
    ("train/grad_norm", "Gradient norm", "before clipping", ""),
    ("train/equal_groups", "Groups of equal returns", "share", "They teach nothing; well below 1 is healthy."),
    ("train/learning_rate", "Learning rate", "Adam's step size", ""),
)


def main_charts(run: Run) -> list[Chart]:
    """The three curves, and one against the other."""
    progress = run.progress
    score = progress.curve("rollout/score")
    kl = progress.curve("rollout/kl")
    objective = progress.curve("rollout/reward", "rollout/ep_rew_mean")
    held_score, held_kl, held_J = (progress.curve(f"eval/{name}") for name in ("score", "kl", "J"))
    reference = reference_score(run)
    beta = beta_in_words(run)
    weight = "" if beta is None else f", \u03b2 {beta}"
    level = [] if reference is None else [_level("reference", reference, score, held_score)]
    charts = []
    if score or held_score:
        lines = [_line("in training", score, "a"), _line("held out", held_score, "b")]
        lines += [_line("judge", progress.curve("rollout/gold"), "c"), *level]
        charts.append(Chart("Score", TOKENS, "mean score", lines))
    if kl or held_kl:
        lines = [_line("in training", kl, "a"), _line("held out", held_kl, "b")]
        lines.append(_level("reference", 0.0, kl, held_kl))
        charts.append(Chart("KL to the reference", TOKENS, "KL, nats per response", lines, from_zero=True))
    if objective or held_J:
        lines = [_line("in training", objective, "a"), _line("held out", held_J, "b"), *level]
        best = _ceiling(run, "J")
        if best is not None and beta is not None and _same_beta(run, beta):
            lines.append(_level("optimum", best, objective, held_J))
        title = f"Objective: score \u2212 \u03b2 \u00b7 KL{weight}"
        charts.append(Chart(title, TOKENS, "mean of score \u2212 \u03b2 \u00b7 KL", lines))
    against = _score_against_kl(run, score, kl) if score and kl else None
    return [*charts, against] if against is not None else charts


def part_charts(run: Run) -> list[Chart]:
    """One small chart for each part of a sum of rewards, unweighted; each has a scale of its own."""
    prefix = "rollout/score/"
    curves = [(name.removeprefix(prefix), run.progress.curve(name)) for name in run.progress.names(prefix)]
    return [Chart(name, TOKENS, "", [_line("", curve, "a")], **SMALL) for name, curve in curves]  # type: ignore[arg-type]


def health_charts(run: Run) -> list[Chart]:
    """Small charts of what tells whether a training is sound; what never moves is left out."""
    charts = []
    for name, title, unit, note in HEALTH:
        curve = run.progress.curve(name)
        constant = name in ("rollout/beta", "train/learning_rate", "rollout/ended") and len(set(curve.y)) == 1
        if curve and not constant:
            charts.append(Chart(title, TOKENS, unit, [_line("", curve, "a")], note=note, **SMALL))  # type: ignore[arg-type]
    return charts


def _score_against_kl(run: Run, score: Curve, kl: Curve) -> Chart | None:
    """Each rollout as a point of a path, from the reference on; with the most that can be had, where it is known."""
    by_x = dict(zip(kl.x, kl.y, strict=True))
    pairs = [(by_x[x], y) for x, y in zip(score.x, score.y, strict=True) if x in by_x]
    if len(pairs) < 2:
        return None
    lines = [Line("", [p[0] for p in pairs], [p[1] for p in pairs], kind="path")]
    marks = [Mark("start", *pairs[0], kind="a"), Mark("end", *pairs[-1], kind="a", shape="star")]
    frontier = _frontier(run)
    note = ""
    if frontier:
        lines.append(Line("best possible", [p[0] for p in frontier], [p[1] for p in frontier], kind="ref"))
        note = "The dashed line is the most score that a KL can buy."
    return Chart(
        "Score against KL",
        "KL to the reference, nats per response",
        "mean score",
        lines,
        marks,
        note=note,
        x_is_tokens=False,
        right=104.0 if frontier else 40.0,
    )


def _frontier(run: Run) -> list[tuple[float, float]]:
    try:
        points = [(float(point["KL"]), float(point["score"])) for point in run.ceiling["frontier"]]
        start = (0.0, float(run.ceiling["ceiling"]["J_ref"]["mean"]))
    except (KeyError, TypeError, ValueError):
        return []
    return sorted(p for p in [start, *points] if all(map(math.isfinite, p)))


def _ceiling(run: Run, name: str) -> float | None:
    try:
        value = float(run.ceiling["ceiling"][name]["mean"])
    except (KeyError, TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _same_beta(run: Run, beta: str) -> bool:
    try:
        return math.isclose(float(run.ceiling["beta"]), float(beta), rel_tol=1e-3)
    except (KeyError, TypeError, ValueError):
        return False


def _line(label: str, curve: Curve, kind: str) -> Line:
    return Line(label, curve.x, curve.y, curve.se, kind)


def _level(label: str, value: float, *curves: Curve) -> Line:
    """A horizontal line as long as the curves."""
    end = max((x for curve in curves for x in curve.x), default=1.0)
    return Line(label, [0.0, end], [value, value], kind="ref")
