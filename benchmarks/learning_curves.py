"""Every agent on lm_env/Sentiment-v0 with the embedded model, beside what can be had at all: the same token budget.

    python benchmarks/learning_curves.py                             # all agents, three seeds; finished runs are kept
    python benchmarks/learning_curves.py --agents ppo rloo --timesteps 100000 --plot curves.png

Trains on the openings of the split "train" and measures on those of "test", four texts each: the lexicon's
score, the exact KL to the supervised model (nats per response), J = score - beta KL, the share of what can
be gained that J attains, and the perplexity of the texts under the supervised model.  The optimum and
best-of-n are estimated from samples of the supervised model on the same openings.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from agents import AGENTS
from lm_env.tasks import sentiment
from lm_env.theory.ceilings.best_of_n import best_of_n
from lm_env.theory.ceilings.task_ceiling import enough_reference_scores
from lm_env.theory.ceilings.tilting import ceiling, frontier

# What differs from the agents' defaults: how many steps they take on a rollout, and how large those are.  The settings
# were found on other openings than those that are measured here.  By default the agents with a critic make it of the
# lexicon, which is the reward; "ppo-shared" and "a2c-shared" have a value head on the language model instead.
OPTIONS: dict[str, dict[str, Any]] = {
    "a2c": {"rollout_episodes": 32},
    "a2c-shared": {"agent": "a2c", "critic": "shared", "rollout_episodes": 32},
    "grpo": {"learning_rate": 3e-4, "batch_size": 32},
    "ppo": {},
    "ppo-shared": {"agent": "ppo", "critic": "shared", "learning_rate": 3e-4, "batch_size": 64},
    "ppo-penalty": {},
    "reinforce": {"learning_rate": 3e-4, "rollout_episodes": 32},
    "reinforce-value": {"learning_rate": 3e-4, "rollout_episodes": 32},
    "rloo": {"learning_rate": 3e-4, "batch_size": 32},
}
TEXTS_PER_OPENING = 4
FRONTIER_FACTORS = tuple(2.0**power for power in np.arange(5, -1.5, -0.5))
KEYS = ("score", "kl", "J", "attained", "perplexity")
Record = dict[str, Any]


class Curve(BaseCallback):
    """Tokens, score and KL of each rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.points: dict[str, list[float]] = {"tokens": [], "score": [], "kl": []}

    def _on_step(self) -> bool:
        agent: Any = self.model
        scored = self.locals["rollout"].scored
        self.points["tokens"].append(float(agent.num_timesteps))
        self.points["score"].append(float(scored.scores.mean()))
        self.points["kl"].append(float(scored.kl.mean()))
        return True


def make_task(split: sentiment.Split, beta: float) -> Any:
    """An environment over one split; its prompts may be those of the other one, too."""
    return sentiment.make(split=split, beta=beta, max_prompt_tokens=40)


def measure_what_can_be_had(beta: float, samples: int) -> Record:
    """The ceiling, its frontier and best-of-n on the held-out openings, from as many samples as the ceiling takes."""
    task = make_task("test", beta).task
    scores = enough_reference_scores(task, list(task.prompts), beta, samples=samples, progress="the ceiling")
    found = ceiling(scores, beta)
    best = {n: best_of_n(scores, n) for n in (1, 2, 4, 8, 16)}
    return {
        "at_least": samples,
        "samples": scores.shape[1],
        "beta": beta,
        "J_ref": found.J_ref.mean,
        "J": found.J.mean,
        "J_se": found.J.se,
        "score": found.score.mean,
        "kl": found.KL.mean,
        "doubts": found.doubts(),
        "ess_median": float(np.median(found.ess)),
        "frontier": [[p.KL, p.score] for p in frontier(scores, [beta * factor for factor in FRONTIER_FACTORS])],
        "best": {n: {"score": b.score.mean, "kl": b.KL, "J": b.J(beta)} for n, b in best.items()},
    }


def run(name: str, seed: int, timesteps: int, beta: float) -> Record:
    """Train one agent and measure it."""
    env = make_task("train", beta)
    options = dict(OPTIONS[name])
    agent = AGENTS[options.pop("agent", name)](env, seed=seed, **options)
    curve = Curve()
    agent.learn(timesteps, callback=curve, progress_bar=True)
    found = agent.evaluate(sentiment.openings("test"), TEXTS_PER_OPENING, seed=seed).metrics()
    measured = {key: found[key] for key in ("score", "kl", "perplexity")}
    return {"agent": name, "seed": seed, "timesteps": timesteps, "beta": beta, **measured, "curve": curve.points}


def kept(path: Path, settings: Record, make: Any) -> Record:
    """What a file holds, where it was made with these settings; else made now and kept."""
    if path.exists():
        record: Record = json.loads(path.read_text())
        if all(record.get(key) == value for key, value in settings.items()):
            return record
    print(path.stem, flush=True)
    record = make()
    path.write_text(json.dumps(record))
    return record


def table(runs: dict[str, list[Record]], possible: Record) -> str:
    """One line an agent: mean, smallest and largest over the seeds."""

    def attained(J: float) -> float:
        return (J - possible["J_ref"]) / (possible["J"] - possible["J_ref"])

    def cell(records: list[Record], key: str) -> str:
        values = [record[key] for record in records]
        if key == "attained":
            return f"{statistics.mean(values):.0%} ({min(values):.0%} to {max(values):.0%})"
        return f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"

    lines = [
        "| agent | score, -1 to 1 | KL, nats per response | J = score - beta KL | attained | perplexity |",
        "|---|---|---|---|---|---|",
        f"| supervised model | {possible['J_ref']:.2f} | 0 | {possible['J_ref']:.2f} | 0% | |",
    ]
    for name, records in runs.items():
        for record in records:
            record["J"] = record["score"] - record["beta"] * record["kl"]
            record["attained"] = attained(record["J"])
        lines.append(f"| `{name}` | " + " | ".join(cell(records, key) for key in KEYS) + " |")
    for n, best in possible["best"].items():
        if int(n) > 1:
            share = f"{attained(best['J']):.0%}"
            lines.append(f"| best of {n} | {best['score']:.2f} | {best['kl']:.2f} | {best['J']:.2f} | {share} | |")
    optimum = f"{possible['J']:.3f} +- {possible['J_se']:.3f}"
    lines.append(f"| **the optimum** | {possible['score']:.2f} | {possible['kl']:.2f} | {optimum} | 100% | |")
    return "\n".join([*lines, *(f"The optimum is a lower bound: {doubt}." for doubt in possible["doubts"])])


def plot(runs: dict[str, list[Record]], possible: Record, path: Path) -> None:
    """Score over tokens with the spread over the seeds; and score over KL below what can be had."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    colors = iter(colormaps["Dark2"].colors)  # type: ignore[attr-defined]
    for name, records in runs.items():
        color = next(colors)
        tokens = np.linspace(max(r["curve"]["tokens"][0] for r in records), records[0]["timesteps"], 60)
        lines = np.array([np.interp(tokens, r["curve"]["tokens"], r["curve"]["score"]) for r in records])
        left.plot(tokens / 1000, lines.mean(0), color=color, label=name)
        left.fill_between(tokens / 1000, lines.min(0), lines.max(0), color=color, alpha=0.15, linewidth=0)
        right.scatter([r["kl"] for r in records], [r["score"] for r in records], color=color, s=22)
    points = sorted([[0.0, possible["J_ref"]], *possible["frontier"]])
    right.plot([p[0] for p in points], [p[1] for p in points], color="0.25", linewidth=1.6)
    right.annotate("what can be had", points[-2], color="0.25", xytext=(-30, 8), textcoords="offset points")
    best = [(b["kl"], b["score"], n) for n, b in possible["best"].items() if int(n) > 1]
    right.scatter([b[0] for b in best], [b[1] for b in best], color="0.25", marker="^", s=22)
    for kl, score, n in best:
        right.annotate(
            f"best of {n}", (kl, score), color="0.25", fontsize=8, xytext=(6, -10), textcoords="offset points"
        )
    left.axhline(possible["J_ref"], color="0.5", linestyle=":", linewidth=1.2)
    left.annotate(
        "supervised model", (1, possible["J_ref"]), color="0.4", fontsize=8, xytext=(0, 4), textcoords="offset points"
    )
    left.set(xlabel="thousand tokens", ylabel="score of the rollouts, -1 to 1", title="score over tokens")
    right.set(
        xlabel="KL to the supervised model, nats per response",
        ylabel="score on held-out openings, -1 to 1",
        title="score over KL, in the same colors",
    )
    left.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=130)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--agents", nargs="*", choices=sorted(OPTIONS), default=sorted(OPTIONS))
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--timesteps", type=int, default=60_000, help="tokens per run")
    p.add_argument("--beta", type=float, default=0.1)
    p.add_argument("--samples", type=int, default=96, help="of the supervised model per opening, at least")
    p.add_argument("--out", type=Path, default=Path("runs/curves"), help="a folder for the runs' records")
    p.add_argument("--plot", type=Path, help="write the picture here")
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    possible = kept(
        args.out / "ceiling.json",
        {"at_least": args.samples, "beta": args.beta},
        lambda: measure_what_can_be_had(args.beta, args.samples),
    )
    runs = {
        name: [
            kept(
                args.out / f"{name}-{seed}.json",
                {"timesteps": args.timesteps, "beta": args.beta},
                lambda name=name, seed=seed: run(name, seed, args.timesteps, args.beta),
            )
            for seed in args.seeds
        ]
        for name in args.agents
    }
    if args.plot:
        plot(runs, possible, args.plot)
    print(table(runs, possible))


if __name__ == "__main__":
    main()
