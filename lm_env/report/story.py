"""What a run was and what came of it, in sentences and in one table of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm_env.report.chart import short_number
from lm_env.report.progress_table import Curve
from lm_env.report.run_folder import Run

__all__ = [
    "NumberRow",
    "beta_in_words",
    "beta_of",
    "caption",
    "command_of",
    "facts_of_run",
    "headline",
    "number_rows",
    "reference_score",
    "subtitle",
]


@dataclass(frozen=True)
class NumberRow:
    """One quantity before and after."""

    name: str
    note: str
    before: str
    after: str


def subtitle(run: Run) -> str:
    """What was trained, on what: "PPO on lm_env/Sentiment-v0"."""
    agent = run.settings.get("agent") or run.options.get("agent")
    registered = run.options.get("env") or run.settings.get("env") or ""
    where = registered if "/" in str(registered) else _first(_model(run), registered or None)
    if agent is None and _config(run):
        agent = "PPO"  # the demo of this package
    if agent is None:
        return f"A run in {run.folder.resolve().name}"
    return f"{agent} on {where}" if where else str(agent)


def facts_of_run(run: Run) -> list[tuple[str, str]]:
    """(name, value): model, reward, beta, seed and length of the run, as far as they are known."""
    task = run.settings.get("task", {})
    task = task if isinstance(task, dict) else {}
    model = _model(run)
    if model and isinstance(task.get("parameters"), int):
        model = f"{model}, {_millions(task['parameters'])} parameters"
    reward = task.get("reward") or run.options.get("reward") or _config(run).get("judge")
    tokens = f"{run.progress.ends[-1]:,.0f}" if run.progress.ends else None
    seed = _first(run.options.get("seed"), run.settings.get("seed"), run.summary.get("seed"))
    found = [
        ("model", model),
        ("beta", beta_in_words(run)),
        ("seed", seed),
        ("tokens generated", tokens),
        ("rollouts", len(run.progress.curve("rollout/score", "rollout/ep_rew_mean").y) or None),
        ("begun", _time(_first(run.about.get("started"), run.settings.get("started")))),
        ("reward", reward),
    ]
    return [(name, str(value)) for name, value in found if value is not None]


def caption(run: Run) -> str:
    """What the charts are of, for whoever sees them alone."""
    wanted = {"model": "", "beta": "\u03b2 ", "seed": "seed "}
    title = subtitle(run)
    # A run on a model of one's own has the model's name in its title.
    known = [
        wanted[name] + value.removeprefix(f"{title.partition(' on ')[2]}, ")
        for name, value in facts_of_run(run)
        if name in wanted
    ]
    bands = any(math.isfinite(se) for se in run.progress.curve("rollout/score").se or [])
    told = " Bands are two standard errors to each side." if bands else ""
    return ", ".join([title, *known]) + "." + told


def beta_of(run: Run) -> Curve:
    """The weight of the KL penalty over the run."""
    return run.progress.curve("rollout/beta")


def beta_in_words(run: Run) -> str | None:
    """One number, or how it moved."""
    curve = beta_of(run)
    if curve:
        first, last = curve.y[0], curve.y[-1]
        return short_number(first) if first == last else f"{short_number(first)} to {short_number(last)}"
    task = run.settings.get("task", {})
    beta = _first(run.options.get("beta"), task.get("beta") if isinstance(task, dict) else None)
    beta = _first(beta, _config(run).get("beta"))
    return None if beta is None else str(beta)


def reference_score(run: Run) -> float | None:
    """The mean score of the reference: that of texts before the training, if the policy was the reference then."""
    for score, kl in (
        (run.progress.curve("eval/score"), "eval/kl"),
        (run.progress.curve("rollout/score"), "rollout/kl"),
    ):
        curve = run.progress.curve(kl)
        if score and curve and score.x[0] == 0 and curve.x[0] == 0:
            error = curve.se[0] if curve.se and math.isfinite(curve.se[0]) else 0.0
            if abs(curve.y[0]) <= 4 * error + 1e-3:
                return score.y[0]
    return None


def headline(run: Run) -> list[str]:
    """The result in one or two sentences."""
    progress = run.progress
    held_out = _tells_what_came_of_it(run)
    score = progress.curve("eval/score") if held_out else progress.curve("rollout/score")
    if not score:
        reward = progress.curve("rollout/ep_rew_mean")
        if not reward:
            return ["The log holds neither scores nor rewards of episodes."]
        return [f"The mean reward of an episode {_moved(reward)}."]
    where = " on held-out prompts" if held_out else ""
    kl = progress.curve("eval/kl") if held_out else progress.curve("rollout/kl")
    sentence = f"The mean score{where} {_moved(score)}"
    if kl:
        sentence += f", at a KL of {_plus_minus(kl, -1)} nats per response from the reference"
    said = [sentence + "."]
    J = progress.curve("eval/J") if held_out else progress.curve("rollout/reward")
    if J:
        text = f"The objective, score \u2212 \u03b2 \u00b7 KL, {_moved(J)}"
        attained = attained_share(run, J)
        text += f": {attained:.0%} of what can be attained over the reference" if attained is not None else ""
        said.append(text + ".")
    return said


def _tells_what_came_of_it(run: Run) -> bool:
    """Whether there is an evaluation after the first, which is made before the training."""
    evaluations = run.progress.curve("eval/score")
    return len(evaluations.y) > 1 or bool(evaluations and not run.progress.curve("rollout/score"))


def attained_share(run: Run, J: Curve) -> float | None:
    """(J - J_ref) / (J* - J_ref): as it was logged, or by the ceiling that lies beside the log, if its beta is ours."""
    logged = run.progress.curve("eval/attained")
    if logged:
        return logged.y[-1]
    try:
        reference, best = (float(run.ceiling["ceiling"][name]["mean"]) for name in ("J_ref", "J"))
        beta = float(run.ceiling["beta"])
    except (KeyError, TypeError, ValueError):
        return None
    curve = beta_of(run)
    if not curve or not math.isclose(beta, curve.y[-1], rel_tol=1e-6) or best <= reference:
        return None
    return (J.y[-1] - reference) / (best - reference)


def number_rows(run: Run) -> list[NumberRow]:
    """First and last value of what matters; the demo's own measurements on held-out prompts come first."""
    rows = [
        NumberRow(text, note, short_number(before), short_number(after))
        for key, text, note in DEMO_NUMBERS
        if (before := _number(run.summary.get(f"{key}_before"))) is not None
        and (after := _number(run.summary.get(f"{key}_after"))) is not None
    ]
    for name, text, note in NUMBERS:
        curve = run.progress.curve(name)
        if curve:
            last = _plus_minus(curve, -1) if len(curve.y) > 1 else "not yet"
            rows.append(NumberRow(text, note, _plus_minus(curve, 0), last))
    return rows


NUMBERS = (
    ("eval/score", "score, held out", "prompts that are not trained on"),
    ("eval/kl", "KL, held out", "nats per response"),
    ("eval/J", "objective, held out", "score \u2212 \u03b2 \u00b7 KL"),
    ("eval/perplexity", "perplexity, held out", "of the texts under the reference"),
    ("rollout/score", "score", "mean of a rollout"),
    ("rollout/kl", "KL to the reference", "nats per response"),
    ("rollout/reward", "objective", "score \u2212 \u03b2 \u00b7 KL"),
    ("rollout/gold", "judge\u2019s score", "never seen by the agent"),
    ("rollout/ep_rew_mean", "reward of an episode", "score \u2212 \u03b2 \u00b7 KL"),
    ("rollout/entropy", "entropy", "nats per token"),
    ("rollout/length", "length", "tokens of a response"),
    ("rollout/ended", "ended by themselves", "share of texts that an end of text or a stop string ended"),
)
DEMO_NUMBERS = (
    (
        "rm_score",
        "reward model\u2019s score, held out",
        "what was maximized; 0 on average at first",
    ),
    ("gold", "judge\u2019s score, held out", "never seen by the agent"),
    ("perplexity", "perplexity, held out", "of the texts under the supervised model"),
    ("distinct2", "distinct-2, held out", "share of distinct word pairs"),
)


def command_of(run: Run) -> str | None:
    """What to type to repeat the run."""
    command = _first(run.about.get("command"), run.settings.get("command"))
    if command is None and _config(run):
        options = {k: v for k, v in _config(run).items() if v is not None and k != "download"}
        names = {"judge": "reward"}
        flags = " ".join(f"--{names.get(k, k).replace('_', '-')} {_quoted(v)}" for k, v in options.items())
        return f"lm-env demo {flags}"
    return None if command is None else str(command)


def _moved(curve: Curve) -> str:
    """How a curve went from its first to its last value; a difference within its errors is called none."""
    first, last = _plus_minus(curve, 0), _plus_minus(curve, -1)
    if len(curve.y) == 1:
        return f"is {last}"
    errors = [0.0 if curve.se is None or math.isnan(curve.se[i]) else curve.se[i] for i in (0, -1)]
    difference = curve.y[-1] - curve.y[0]
    if abs(difference) <= 2 * math.hypot(*errors):
        return f"did not move clearly: {first} at first, {last} at last"
    return f"{'rose' if difference > 0 else 'fell'} from {first} to {last}"


def _plus_minus(curve: Curve, index: int) -> str:
    """A value with two standard errors, both with as many decimals as the error has a meaning for."""
    value = curve.y[index]
    error = 2 * curve.se[index] if curve.se is not None and math.isfinite(curve.se[index]) else 0.0
    if abs(value) < 1e-4 and error < 1e-4:  # rounding, where policy and reference are the same
        return "0"
    if error == 0:
        return short_number(value)
    decimals = max(0, 1 - math.floor(math.log10(error))) if f"{error:.0e}"[0] == "1" else -math.floor(math.log10(error))
    decimals = min(max(decimals, 0), 6)
    return f"{value:,.{decimals}f} \u00b1 {error:,.{decimals}f}".replace("-", "\u2212")


def _model(run: Run) -> Any:
    """What the model was asked for by, or else its class."""
    task = run.settings.get("task", {})
    class_name = task.get("model") if isinstance(task, dict) else None
    return _first(run.options.get("model"), _config(run).get("model"), class_name)


def _time(moment: object) -> str | None:
    """A moment as it was noted, to the minute."""
    return None if moment is None else str(moment)[:16].replace("T", " ") + (" UTC" if "+00:00" in str(moment) else "")


def _millions(count: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def _config(run: Run) -> Mapping[str, Any]:
    """The options of a demo."""
    config = run.summary.get("config", {})
    return config if isinstance(config, dict) else {}


def _quoted(value: object) -> str:
    import shlex

    return shlex.quote(str(value))


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
