"""Every agent on lm_env/Sentiment-v0 with the embedded model: the same token budget, several seeds.

    python benchmarks/learning_curves.py                             # all agents, three seeds; finished runs are kept
    python benchmarks/learning_curves.py --agents ppo rloo --timesteps 100000 --plot curves.png

Trains on the openings of the split "train" and measures on those of "test": the lexicon's score, the KL to
the supervised model (nats per response) and the perplexity of the responses under it.  Beside the
agents stand the supervised model itself and the best of 4 of its samples, which trains nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any, cast

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from agents import AGENTS, BestOfN
from agents.base.agent import BatchedAgent
from lm_env.data.episodes import Episodes
from lm_env.data.prompts import Prompt
from lm_env.models.logprobs import response_logprobs
from lm_env.objective.scoring import score_episodes
from lm_env.objective.task import Task
from lm_env.tasks import sentiment

# What differs between the agents: how many steps they take on a rollout, and how large those are.
OPTIONS: dict[str, dict[str, Any]] = {
    "a2c": {"learning_rate": 3e-4, "rollout_episodes": 32},
    "grpo": {"learning_rate": 3e-4, "batch_size": 32},
    "ppo": {"learning_rate": 3e-4, "batch_size": 64},
    "ppo-penalty": {"learning_rate": 3e-4, "batch_size": 64},
    "reinforce": {"learning_rate": 3e-4, "batch_size": 32},
    "reinforce-value": {"learning_rate": 3e-4, "rollout_episodes": 32},
    "rloo": {"learning_rate": 3e-4, "batch_size": 32},
}
UNTRAINED = ("supervised", "best-of-4")
KEYS = ("score", "kl", "perplexity")
Record = dict[str, Any]


class Curve(BaseCallback):
    """Tokens, score and KL of each rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.points: dict[str, list[float]] = {"tokens": [], "score": [], "kl": []}

    def _on_step(self) -> bool:
        agent: Any = self.model
        scored = self.locals["rollout"].scored
        for name, value in (
            ("tokens", agent.num_timesteps),
            ("score", scored.scores.mean()),
            ("kl", scored.kl.mean()),
        ):
            self.points[name].append(float(value))
        return True


def measure(task: Task, episodes: Episodes) -> dict[str, float]:
    """Score, KL (nats per response; NaN for episodes without logprobs) and perplexity under the reference."""
    scored = score_episodes(task, episodes)
    plain = response_logprobs(task.reference, episodes)
    return {
        "score": float(scored.scores.mean()),
        "kl": float("nan") if episodes.logprobs is None else float(scored.kl.mean()),
        "perplexity": float(np.exp(-plain.sum() / episodes.response_lengths.sum())),
    }


def run(name: str, seed: int, timesteps: int, beta: float) -> Record:
    """Train one agent (or none) and measure it."""
    env = sentiment.make(split="train", beta=beta, max_prompt_tokens=40)
    agent: BatchedAgent = AGENTS.get(name, AGENTS["best-of-n"])(
        env, seed=seed, **OPTIONS.get(name, {"n": 1 if name == "supervised" else 4})
    )
    curve = Curve()
    agent.learn(timesteps, callback=curve, progress_bar=True)
    held_out = sentiment.openings("test")
    prompts: list[Prompt] = list(agent.choose_prompts(held_out, n=len(held_out)))
    result = measure(env.task, agent.rollout_episodes(prompts))
    if name == "supervised":
        result["kl"] = 0.0
    elif name == "best-of-4":
        result["kl"] = cast(BestOfN, agent).kl_bound
    return {"agent": name, "seed": seed, "timesteps": timesteps, "beta": beta, **result, "curve": curve.points}


def kept(path: Path, name: str, seed: int, timesteps: int, beta: float) -> Record:
    """The run's record, from its file where it has been made with the same settings."""
    if path.exists():
        record: Record = json.loads(path.read_text())
        if record["timesteps"] == timesteps and record["beta"] == beta:
            return record
    print(f"{name}, seed {seed}", flush=True)
    record = run(name, seed, timesteps, beta)
    path.write_text(json.dumps(record))
    return record


def table(runs: dict[str, list[Record]]) -> str:
    """One line an agent: mean, smallest and largest over the seeds."""

    def cell(records: list[Record], key: str) -> str:
        values = [r[key] for r in records]
        return f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"

    lines = ["| agent | score | KL, nats per response | perplexity under the reference |", "|---|---|---|---|"]
    lines += [f"| `{name}` | " + " | ".join(cell(rs, key) for key in KEYS) + " |" for name, rs in runs.items()]
    return "\n".join(lines)


def plot(runs: dict[str, list[Record]], path: Path) -> None:
    """Score against tokens with the spread over the seeds; and score against KL of the trained agents."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    colors = iter(plt.get_cmap("Dark2").colors)  # type: ignore[attr-defined]
    for name, records in runs.items():
        if name in UNTRAINED:
            line, marker = ((":", "s"), ("--", "^"))[UNTRAINED.index(name)]
            color = "0.35"
            left.axhline(statistics.mean(r["score"] for r in records), color=color, linestyle=line, linewidth=1.2)
        else:
            color, marker = next(colors), "o"
            tokens = np.linspace(max(r["curve"]["tokens"][0] for r in records), records[0]["timesteps"], 60)
            lines = np.array([np.interp(tokens, r["curve"]["tokens"], r["curve"]["score"]) for r in records])
            left.plot(tokens / 1000, lines.mean(0), color=color)
            left.fill_between(tokens / 1000, lines.min(0), lines.max(0), color=color, alpha=0.15, linewidth=0)
        right.scatter([r["kl"] for r in records], [r["score"] for r in records], color=color, marker=marker, label=name)
    left.set(xlabel="thousand tokens", ylabel="score of the rollouts (lexicon, -1 to 1)")
    right.set(xlabel="KL to the supervised model, nats per response", ylabel="score on held-out openings")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    right.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--agents", nargs="+", choices=sorted(OPTIONS), default=sorted(OPTIONS))
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--timesteps", type=int, default=60_000, help="tokens per run")
    p.add_argument("--beta", type=float, default=0.1)
    p.add_argument("--out", type=Path, default=Path("runs/curves"), help="a folder for the runs' records")
    p.add_argument("--plot", type=Path, help="write the picture here")
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    runs = {
        name: [kept(args.out / f"{name}-{seed}.json", name, seed, args.timesteps, args.beta) for seed in args.seeds]
        for name in (*UNTRAINED, *args.agents)
    }
    if args.plot:
        plot(runs, args.plot)
    print(table(runs))


if __name__ == "__main__":
    main()
