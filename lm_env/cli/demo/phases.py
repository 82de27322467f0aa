"""The phases of the demo: what each makes, and what is measured in the end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback

import reward_models
from lm_env.cli.demo.before_after import Curves
from lm_env.data.episodes import Episodes
from lm_env.data.prompts import Prompt
from lm_env.errors import ConfigurationError
from lm_env.generation import LocalBackend, Sampling
from lm_env.models.loading import load_causal_lm
from lm_env.models.logprobs import response_logprobs
from lm_env.objective.scoring import raw_scores
from lm_env.objective.task import Task
from lm_env.runs.console import say
from lm_env.runs.folder import RunFolder
from lm_env.runs.judges import default_prompts
from lm_env.runs.settings import TrainSettings
from lm_env.storage import Checkpointing, is_saved_folder, remove_checkpoints
from lm_env.tasks.sentiment import openings
from reward_models import Comparison, RewardModel

__all__ = [
    "REWARD_MODEL",
    "TEMPERATURE",
    "DemoConfig",
    "Gold",
    "Sampled",
    "compare",
    "curves_of",
    "distinct",
    "kept",
    "make_task",
    "sample_pairs",
    "split_prompts",
    "train_reward_model",
    "training_settings",
    "write_rows",
]

EVALUATION_EPISODES = 256
REWARD_MODEL = "reward_model"
TEMPERATURE = 0.7  # of sampling, in policy and reference alike (Ziegler et al. 2019)


@dataclass(frozen=True)
class DemoConfig:
    """What `lm-env demo --help` explains."""

    out: Path
    model: str = "reviews-3m"
    prompts: str | None = None
    judge: str = "lexicon"
    beta: float = 0.25
    comparisons: int = 2048
    timesteps: int = 120_000
    new_tokens: int = 32
    seed: int = 0
    device: str = "cpu"
    download: bool = False

    def options(self) -> dict[str, Any]:
        """All but the place."""
        return {name: value for name, value in asdict(self).items() if name != "out"}


# -- the phases --------------------------------------------------------------------------------------
def make_task(config: DemoConfig, judge: Any, *, model: str | None = None, reference: Any = None) -> Task:
    """The demo's task, with the supervised model or another one under training; its reward is the judge."""
    lm, tokenizer = load_causal_lm(model or config.model, config.device, config.download)
    return Task(
        model=lm,
        reference=reference,
        tokenizer=tokenizer,
        prompts=default_prompts(config.prompts, "train", "test"),
        reward=judge,
        beta=config.beta,
        max_new_tokens=config.new_tokens,
        temperature=TEMPERATURE,
        download=config.download,
    )


def split_prompts(config: DemoConfig, task: Task) -> tuple[list[Prompt], list[Prompt]]:
    """(prompts to train on, EVALUATION_EPISODES prompts to test on); apart where there are enough.

    The package's own openings have a fixed test split, which comes last; of other prompts a third is drawn.
    """
    order = np.random.default_rng(config.seed).permutation(len(task.prompts))
    cut = min(len(order) // 3, EVALUATION_EPISODES)
    if config.prompts is None:
        cut = len(openings("test"))
        order = np.arange(len(order))[::-1]
    if cut == 0:
        raise ConfigurationError(
            f"{len(order)} prompts are too few: a third of them is kept for the test, so give at least 3"
        )
    test = [task.prompts[int(i)] for i in np.resize(order[:cut], EVALUATION_EPISODES)]
    return [task.prompts[int(i)] for i in order[cut:]], test


def sample_pairs(config: DemoConfig, task: Task, prompts: list[Prompt]) -> list[dict[str, Any]]:
    """Two samples of the supervised model to each of so many prompts: texts, token ids, and the prompts' columns."""
    drawn = [prompts[i % len(prompts)] for i in range(config.comparisons)]
    responses = sample_responses(task, [*drawn, *drawn], config.seed + 1).responses()
    sides = zip(drawn, responses[: len(drawn)], responses[len(drawn) :], strict=True)
    return [
        {
            "prompt": prompt.text,
            "response_a": task.text_of(a),
            "response_b": task.text_of(b),
            "prompt_ids": prompt.ids.tolist(),
            "response_ids_a": list(map(int, a)),
            "response_ids_b": list(map(int, b)),
            "columns": dict(prompt.columns),
        }
        for prompt, a, b in sides
    ]


def compare(config: DemoConfig, pairs: list[dict[str, Any]], judge: Any) -> list[dict[str, Any]]:
    """Which of the two the judge prefers; pairs that it scores alike are left out."""
    columns = {name: [pair["columns"].get(name) for pair in pairs] for name in pairs[0]["columns"]}

    def all_of(name: str) -> list[Any]:
        return [pair[name] for pair in pairs]

    comparisons = reward_models.label_comparisons(
        all_of("prompt"),
        all_of("response_a"),
        all_of("response_b"),
        judge,
        prompt_ids=all_of("prompt_ids"),
        response_ids_a=all_of("response_ids_a"),
        response_ids_b=all_of("response_ids_b"),
        **columns,
    )
    if len(comparisons) < 20:
        raise ConfigurationError(
            f"only {len(comparisons)} of {len(pairs)} comparisons were no ties: the judge '{config.judge}' scores most"
            " samples alike"
        )
    return [asdict(comparison) for comparison in comparisons]


def train_reward_model(
    config: DemoConfig, task: Task, pairs: list[dict[str, Any]], comparisons: list[Comparison], resume: bool
) -> float:
    """Train the reward model, unless it is there; its accuracy on comparisons held out."""
    place = config.out / REWARD_MODEL
    noted = config.out / "reward_model.json"
    if is_saved_folder(place) and noted.exists():
        say("", f"kept: {place}")
        return float(json.loads(noted.read_text())["held_out_accuracy"])
    trunk: Any = task.model
    rm = RewardModel.from_causal_lm(trunk, task.tokenizer, seed=config.seed)
    unfinished = config.out / f"{REWARD_MODEL}.unfinished"
    report = reward_models.train_reward_model(
        rm,
        comparisons,
        epochs=2,
        batch_size=32,
        learning_rate=3e-4,
        held_out_fraction=0.15,
        seed=config.seed,
        progress_bar=True,
        checkpoint=Checkpointing(unfinished),
        resume=resume,
    )
    # Samples of the supervised model score mean 0 and standard deviation 1.
    ids = {"prompt_ids": [p["prompt_ids"] for p in pairs], "response_ids": [p["response_ids_a"] for p in pairs]}
    rm.normalize([p["prompt"] for p in pairs], [p["response_a"] for p in pairs], **ids)
    noted.write_text(json.dumps({"held_out_accuracy": report.held_out_accuracy}) + "\n")
    rm.save(place)
    remove_checkpoints(unfinished)
    assert report.held_out_accuracy is not None
    return report.held_out_accuracy


def training_settings(config: DemoConfig, task: Task, training: list[Prompt], test: list[Prompt]) -> TrainSettings:
    """PPO as `lm-env train` runs it, with its prompts and its reward in files."""
    files = {name: config.out / f"prompts_{name}.jsonl" for name in ("train", "test")}
    for path, prompts in ((files["train"], training), (files["test"], test)):
        write_rows(path, [{"prompt": p.text, **p.columns} for p in prompts])
    return TrainSettings.of(
        agent="ppo",
        timesteps=config.timesteps,
        seed=config.seed,
        model=config.model,
        prompts=str(files["train"]),
        reward=str(config.out / REWARD_MODEL),
        beta=config.beta,
        max_prompt_tokens=task.max_prompt_tokens,
        max_new_tokens=config.new_tokens,
        temperature=TEMPERATURE,
        device=config.device,
        download=config.download,
        learning_rate=2e-4,
        rollout_episodes=256,
        slots=128,
        batch_size=64,
        n_epochs=2,
        eval_prompts=str(files["test"]),
        eval_every=0,
        eval_texts=64,
    )


class Gold(BaseCallback):
    """Logs the judge's score of each rollout, which PPO does not see."""

    def __init__(self, judge: Any) -> None:
        super().__init__()
        self.judge = judge

    def _on_step(self) -> bool:
        agent: Any = self.model
        gold = _score(self.judge, agent.task, self.locals["rollout"].episodes)
        agent.logger.record("rollout/gold", float(gold.mean()))
        return True


def curves_of(folder: RunFolder) -> Curves:
    """One point per rollout, at the tokens before it; from the log, which an earlier process may have begun."""
    curves = Curves()
    before = 0.0
    for row in folder.log_rows():
        if row.get("rollout/gold"):
            curves.add(before, *(float(row[f"rollout/{name}"]) for name in ("score", "gold", "kl")))
            before = float(row["time/total_timesteps"])
    return curves


def sample_responses(task: Task, prompts: list[Prompt], seed: int) -> Episodes:
    """A response of the task's model to each prompt, behind a progress bar."""
    sampling = Sampling(torch.Generator().manual_seed(seed))
    return LocalBackend(task, 128).generate(prompts, sampling, progress="   sampling").episodes


class Sampled:
    """Responses of the task's model to fixed prompts, and what is measured of them."""

    def __init__(self, task: Task, prompts: list[Prompt], seed: int) -> None:
        self.task = task
        self.episodes = sample_responses(task, prompts, seed)
        self.texts = [task.text_of(r) for r in self.episodes.responses()]

    def metrics(self, rm: RewardModel, judge: Any) -> dict[str, float]:
        """Means over the responses; KL in nats per response, perplexity per token under the reference at T = 1."""
        task = self.task
        episodes = self.episodes
        assert episodes.logprobs is not None
        reference = response_logprobs(task.reference, episodes, task.temperature)
        plain = response_logprobs(task.reference, episodes)
        return {
            "rm_score": float(_score(rm, task, episodes).mean()),
            "gold": float(_score(judge, task, episodes).mean()),
            "kl": float((episodes.logprobs - reference).sum(1).mean()),
            "perplexity": float(np.exp(-plain.sum() / episodes.response_lengths.sum())),
            "distinct2": distinct(self.texts, 2),
        }

    def rows(self, judge: Any) -> list[tuple[str, str, float]]:
        """(prompt, response, judge's score) of each."""
        gold = _score(judge, self.task, self.episodes)
        return [(p.text, text, float(g)) for p, text, g in zip(self.episodes.prompts, self.texts, gold, strict=True)]


def distinct(texts: list[str], n: int) -> float:
    """Distinct n-grams of words over all n-grams (Li et al. 2016, arXiv:1510.03055)."""
    grams = [tuple(words[i : i + n]) for t in texts for words in [t.split()] for i in range(len(words) - n + 1)]
    return len(set(grams)) / max(len(grams), 1)


def _score(reward: Any, task: Task, episodes: Episodes) -> np.ndarray:
    return raw_scores(reward, task, episodes.prompts, episodes.responses())


# -- files -------------------------------------------------------------------------------------------
def kept(path: Path, make: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of a phase: those in its file, or else new ones, which are written there whole or not at all."""
    if path.exists():
        say("", f"kept: {path}")
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = make()
    write_rows(path, rows)
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write JSON lines, whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    new.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(new, path)
