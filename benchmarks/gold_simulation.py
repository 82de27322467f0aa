"""RLHF where the truth is known: reward models learn from labels of a lexicon, which stands in for people.

    nice python benchmarks/gold_simulation.py                # three seeds; finished parts are kept
    python benchmarks/gold_simulation.py --seeds 0 --timesteps 8000 --sizes 64 512 --out runs/quick

The embedded model writes pairs of texts, and the lexicon prefers one of each (the higher score; ties are left out).
Reward models are trained on the first 64, 512 and 4096 of these comparisons, in an order that depends on the seed.
Each is measured three ways: its accuracy on other comparisons; the gold score of the best of n samples that it
chooses; and what PPO makes of it.  The win rate of a policy is how often its text has a higher gold score than the
supervised model's text to the same opening, ties counting half.  DPO on the same comparisons stands beside them.

Prints a table, and writes results.json and over_optimization.png, the gold and the proxy score over the square root of
the KL (Gao et al. 2023, arXiv:2210.10760), both in standard deviations of the supervised model's texts.  The published
results are benchmarks/results/gold_simulation.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback

from agents import PPO, dpo_finetune
from lm_env.generation import LocalBackend, Sampling
from lm_env.objective.scoring import measure_episodes, raw_scores
from lm_env.tasks import sentiment
from reward_models import Comparison, LexiconSentiment, RewardModel, label_comparisons, train_reward_model
from reward_models.trust import wilson
from reward_models.trust.curves import best_of_n_curve

GOLD = LexiconSentiment()
HELD_OUT = 500
TEXTS = 1000
BEST_OF = (128, 16)
"""Openings, and samples to each, of best-of-n."""
PPO_OPTIONS: dict[str, Any] = {
    "learning_rate": 3e-4,
    "rollout_episodes": 128,
    "slots": 128,
    "batch_size": 64,
    "n_epochs": 2,
}
BLUE, VERMILION, GREEN = "#0072b2", "#d55e00", "#009e73"
Record = dict[str, Any]


class Curve(BaseCallback):
    """Proxy and gold score and KL of each rollout, before its update."""

    def __init__(self) -> None:
        super().__init__()
        self.points: list[list[float]] = []

    def _on_step(self) -> bool:
        agent: Any = self.model
        rollout = self.locals["rollout"]
        gold = raw_scores(GOLD, agent.task, rollout.episodes.prompts, rollout.episodes.responses())
        self.points.append([float(rollout.scored.kl.mean()), float(rollout.scored.scores.mean()), float(gold.mean())])
        return True


def make_task(split: sentiment.Split = "train", **options: Any) -> Any:
    """The task of lm_env/Sentiment-v0, whose reference is the supervised model."""
    return sentiment.make(split=split, max_prompt_tokens=40, **options).task


def sampled(task: Any, prompts: list[Any], seed: int) -> Any:
    """A response of the task's model to each prompt, as episodes."""
    sampling = Sampling(torch.Generator().manual_seed(seed))
    return LocalBackend(task, 128).generate(prompts, sampling, progress="sampling").episodes


def compared(task: Any, pairs: int, seed: int) -> list[Comparison]:
    """Comparisons of two samples of the supervised model to each of so many prompts, labelled by the lexicon."""
    drawn = [task.prompts[i % len(task.prompts)] for i in range(pairs)]
    responses = sampled(task, [*drawn, *drawn], seed).responses()
    a, b = responses[:pairs], responses[pairs:]
    return label_comparisons(
        [p.text for p in drawn],
        [task.text_of(r) for r in a],
        [task.text_of(r) for r in b],
        GOLD,
        prompt_ids=[p.ids.tolist() for p in drawn],
        response_ids_a=[list(map(int, r)) for r in a],
        response_ids_b=[list(map(int, r)) for r in b],
    )


def trained(task: Any, comparisons: list[Comparison], seed: int) -> RewardModel:
    """A reward model, normalized on the texts that it was trained on; small data are gone through up to four times."""
    model = RewardModel.from_causal_lm(task.reference, task.tokenizer, seed=seed)
    epochs = max(1, min(4, 1024 // len(comparisons)))
    options: dict[str, Any] = {"epochs": epochs, "batch_size": 32, "learning_rate": 3e-4, "held_out": [], "seed": seed}
    train_reward_model(model, comparisons, progress_bar=True, **options)
    part = comparisons[:1024]
    ids: dict[str, list[Any]] = {
        "prompt_ids": [c.prompt_ids for c in part],
        "response_ids": [c.chosen_ids for c in part],
    }
    other: dict[str, list[Any]] = {"prompt_ids": ids["prompt_ids"], "response_ids": [c.rejected_ids for c in part]}
    both = {name: [*ids[name], *other[name]] for name in ids}
    model.normalize(2 * [c.prompt for c in part], [c.chosen for c in part] + [c.rejected for c in part], **both)
    return model


def accuracy(model: RewardModel, comparisons: list[Comparison]) -> Record:
    """On comparisons that it was not trained on, with the 95% interval."""
    prompts, prompt_ids = [c.prompt for c in comparisons], [c.prompt_ids for c in comparisons]
    score: Any = model
    chosen = score(prompts, [c.chosen for c in comparisons], prompt_ids, [c.chosen_ids for c in comparisons])
    rejected = score(prompts, [c.rejected for c in comparisons], prompt_ids, [c.rejected_ids for c in comparisons])
    return vars(wilson((chosen > rejected) + 0.5 * (chosen == rejected)))


def gold_of(task: Any, episodes: Any) -> np.ndarray:
    return raw_scores(GOLD, task, episodes.prompts, episodes.responses())


def won(ours: np.ndarray, theirs: np.ndarray) -> Record:
    """How often our text has the higher gold score, ties counting half, with the 95% interval."""
    return vars(wilson((ours > theirs) + 0.5 * (ours == theirs)))


def kept(path: Path, make: Callable[[], list[Comparison]]) -> list[Comparison]:
    """The comparisons in a file, or else new ones, which are written there."""
    if not path.exists():
        rows = make()
        path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    return [Comparison(**json.loads(line)) for line in path.read_text().splitlines()]


class Simulation:
    """The parts of the simulation; each is kept in `results.json` when it is done."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.path = args.out / "results.json"
        args.out.mkdir(parents=True, exist_ok=True)
        self.results: Record = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.train, self.test = make_task("train"), make_task("test")
        # About 2% of the pairs are ties, and are left out.
        self.pool = kept(args.out / "pool.jsonl", lambda: compared(self.train, round(1.05 * max(args.sizes)), seed=1))
        self.held_out = kept(args.out / "held_out.jsonl", lambda: compared(self.test, HELD_OUT, seed=2))
        self.prompts = [self.test.prompts[i % len(self.test.prompts)] for i in range(TEXTS)]
        self.supervised = gold_of(self.test, sampled(self.test, self.prompts, seed=3))
        openings, samples = BEST_OF
        self.drawn = [p for p in self.prompts[:openings] for _ in range(samples)]
        self.candidates = sampled(self.test, self.drawn, seed=4)
        self.candidate_gold = gold_of(self.test, self.candidates)
        self.results["supervised"] = {"gold": float(self.supervised.mean()), "std": float(self.supervised.std())}

    def part(self, name: str, make: Callable[[], Record]) -> None:
        """Make a part, unless it is there, and write all of them."""
        if name not in self.results:
            self.results[name] = make()
            self.path.write_text(json.dumps(self.results, indent=1) + "\n")
            print(name, json.dumps({k: v for k, v in self.results[name].items() if k != "curve"}), flush=True)

    def run(self) -> None:
        """All parts: what matters most comes first."""
        largest = max(self.args.sizes)
        first = self.args.seeds[0]
        *smaller, _ = sorted(self.args.sizes)
        for size in smaller:
            for seed in self.args.seeds:
                self.reward_model(size, seed)
        for seed in self.args.seeds:
            self.part(f"ppo {largest} {seed}", partial(self.ppo, self.reward_model(largest, seed), seed))
        self.part(f"dpo {largest} {first}", partial(self.dpo, largest, first))
        for size in smaller:
            self.part(f"ppo {size} {first}", partial(self.ppo, self.reward_model(size, first), first))

    def reward_model(self, size: int, seed: int) -> RewardModel:
        """Train it, unless it is there, and measure its accuracy and the best of n by it."""
        place = self.args.out / f"reward-model-{size}-{seed}"
        if not place.exists():
            trained(self.train, self.comparisons(seed, size), seed).save(place)
        model = RewardModel.load(place, device="cpu")

        def measured() -> Record:
            shape = BEST_OF
            proxy = raw_scores(model, self.test, self.drawn, self.candidates.responses()).reshape(shape)
            gold = self.candidate_gold.reshape(shape)
            chosen = gold[np.arange(shape[0]), proxy.argmax(1)]
            curve = best_of_n_curve(proxy, gold, [2**k for k in range(5)])
            return {
                "accuracy": accuracy(model, self.held_out),
                "best of 16, won": won(chosen, self.supervised[: shape[0]]),
                "curve": list(zip(curve.kl, curve.proxy, curve.gold, strict=True)),
            }

        self.part(f"reward model {size} {seed}", measured)
        return model

    def comparisons(self, seed: int, size: int) -> list[Comparison]:
        order = np.random.default_rng(seed).permutation(len(self.pool))
        return [self.pool[int(i)] for i in order[:size]]

    def ppo(self, model: RewardModel, seed: int) -> Record:
        """PPO against a reward model: its win rate on the held-out openings, and its curve."""
        env: Any = sentiment.make(split="train", max_prompt_tokens=40, reward=model, beta=self.args.beta)
        curve = Curve()
        PPO(env, seed=seed, **PPO_OPTIONS).learn(self.args.timesteps, callback=curve, progress_bar=True)
        return {**self.policy(env.unwrapped.task, model), "curve": curve.points}

    def dpo(self, size: int, seed: int) -> Record:
        """DPO on the same comparisons, with the same beta."""
        env: Any = sentiment.make(split="train", max_prompt_tokens=40, beta=self.args.beta)
        task = env.unwrapped.task
        options: dict[str, Any] = {
            "temperature": task.temperature,
            "learning_rate": 1e-4,
            "seed": seed,
            "progress_bar": True,
        }
        report: Any = dpo_finetune(
            task.model, task.tokenizer, self.comparisons(seed, size), beta=self.args.beta, **options
        )
        return {**self.policy(task, None), "accuracy": report.after.accuracy}

    def policy(self, task: Any, model: RewardModel | None) -> Record:
        """Gold score, win rate and KL of a trained policy on the held-out openings."""
        episodes = sampled(task, self.prompts, seed=5)
        gold = gold_of(self.test, episodes)
        found = {"gold": float(gold.mean()), "won": won(gold, self.supervised)}
        if model is not None:
            found["proxy"] = float(raw_scores(model, self.test, episodes.prompts, episodes.responses()).mean())
        return {**found, "kl": float(measure_episodes(task, episodes[:256])["full"].mean())}


def table(results: Record) -> str:
    """The results as a Markdown table: a row per trained model, with 95% intervals."""

    def shown(found: Record) -> str:
        return f"{found['mean']:.3f} ({found['low']:.3f} to {found['high']:.3f})"

    lines = [
        "| comparisons, seed | accuracy | wins, best of 16 | wins, PPO | KL of PPO, nats |",
        "|---|---|---|---|---|",
    ]
    for name, found in results.items():
        if not name.startswith("reward model"):
            continue
        size, seed = name.split()[-2:]
        ppo = results.get(f"ppo {size} {seed}")
        of_ppo = ["", ""] if ppo is None else [shown(ppo["won"]), f"{ppo['kl']:.1f}"]
        cells = [f"{int(size):,}, {seed}", shown(found["accuracy"]), shown(found["best of 16, won"]), *of_ppo]
        lines.append("| " + " | ".join(cells) + " |")
    for name, found in results.items():
        if name.startswith("dpo"):
            size, seed = name.split()[-2:]
            of_dpo = [f"{found['accuracy']:.3f}", "", shown(found["won"]), f"{found['kl']:.1f}"]
            lines.append(f"| {int(size):,}, {seed}, DPO | " + " | ".join(of_dpo) + " |")
    return "\n".join(lines)


def plot(results: Record, path: Path) -> None:
    """Gold (solid) and proxy (dashed) score over the square root of the KL: PPO on the left, best-of-n on the right."""
    from matplotlib.figure import Figure

    mean, std = results["supervised"]["gold"], results["supervised"]["std"]
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, kind, title in ((axes[0], "ppo", "PPO"), (axes[1], "reward model", "best of n = 1 ... 16")):
        sizes = sorted({int(name.split()[-2]) for name in results if name.startswith(kind)})
        for size, color in zip(sizes, (GREEN, VERMILION, BLUE), strict=False):
            curves = [np.array(v["curve"]) for k, v in results.items() if k.startswith(f"{kind} {size} ")]
            for i, curve in enumerate(curves):
                distance = np.sqrt(np.maximum(curve[:, 0], 0))
                axis.plot(distance, (curve[:, 2] - mean) / std, color=color, label=f"{size:,}" if i == 0 else None)
                axis.plot(distance, curve[:, 1], color=color, linestyle="--", alpha=0.6)
        axis.set(xlabel="square root of the KL, nats", title=title)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.set_xlim(left=0)
    axes[0].set_ylabel("score, standard deviations")
    axes[0].legend(title="comparisons\n(gold solid, proxy dashed)", frameon=False, alignment="left", loc="upper left")
    figure.savefig(path, dpi=140)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--sizes", type=int, nargs="+", default=[64, 512, 4096])
    p.add_argument("--timesteps", type=int, default=24_000, help="tokens of each PPO")
    p.add_argument("--beta", type=float, default=0.05)
    p.add_argument("--out", type=Path, default=Path("runs/gold-simulation"))
    args = p.parse_args()
    simulation = Simulation(args)
    simulation.run()
    print(table(simulation.results))
    plot(simulation.results, args.out / "over_optimization.png")
    print(f"{args.out / 'results.json'} and {args.out / 'over_optimization.png'}")


if __name__ == "__main__":
    main()
