"""The phases of a round of RLHF: sample pairs, have them labelled, fit a reward model, train against it with RL.

Each phase writes a file or folder into the round's folder and is not repeated once that is there:

    pairs.jsonl                     two samples to each prompt
    comparisons.jsonl               which of them is better
    reward_model/                   what was learned from all comparisons so far
    run.yaml, progress.csv, ...     the training, a folder of `lm-env train`, with policy/ as its result
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import reward_models
from lm_env.cli.loop.files import kept, read_rows, write_rows
from lm_env.cli.loop.labellers import Labeller
from lm_env.cli.loop.samples import Gold, sample_responses, score
from lm_env.data.prompts import Prompt
from lm_env.errors import ConfigurationError
from lm_env.models.loading import load_causal_lm
from lm_env.objective.rewards import no_reward
from lm_env.objective.task import Task
from lm_env.runs.console import say
from lm_env.runs.folder import RunFolder
from lm_env.runs.judges import default_prompts
from lm_env.runs.settings import TrainSettings
from lm_env.runs.train import train_reserved
from lm_env.storage import Checkpointing, is_saved_folder, remove_checkpoints
from lm_env.tasks.sentiment import openings
from reward_models import Comparison, RewardModel

__all__ = [
    "CANDIDATES",
    "COMPARISONS",
    "REWARD_MODEL",
    "TEMPERATURE",
    "Pairing",
    "RLHFConfig",
    "Round",
    "make_task",
    "run_round",
    "split_prompts",
]

EVALUATION_EPISODES = 256
COMPARISONS = "comparisons.jsonl"
REWARD_MODEL = "reward_model"
TEMPERATURE = 0.7  # of sampling, in policy and reference alike (Ziegler et al. 2019)
CANDIDATES = 4
"""Samples of which the best and the worst are compared."""

Pairing = Literal["policy", "reference", "best-worst"]
"""What is compared: two samples of the current policy; one with a sample of the supervised model; or the best and the
worst of four samples of the current policy, by the last reward model."""


@dataclass(frozen=True)
class RLHFConfig:
    """What `lm-env demo --help` and `lm-env loop --help` explain."""

    out: Path
    model: str = "reviews-3m"
    prompts: str | None = None
    judge: str | None = "lexicon"
    beta: float = 0.25
    comparisons: int = 2048
    timesteps: int = 120_000
    new_tokens: int = 32
    seed: int = 0
    device: str = "cpu"
    download: bool = False

    def options(self) -> dict[str, Any]:
        """All options except the folder."""
        return {name: value for name, value in asdict(self).items() if name != "out"}


@dataclass(frozen=True)
class Round:
    """One round: its folder, and what went before.

    Attributes:
        folder: reserved for it.
        number: of the round, from 1.
        supervised: the task of the supervised model, which is the reference of every round.
        training_prompts, test_prompts: for sampling and training, and for what is measured after the round.
        earlier: the folders of the rounds before, the first one first.
        pairing: which samples are compared after the first round.
    """

    folder: RunFolder
    number: int
    supervised: Task
    training_prompts: list[Prompt]
    test_prompts: list[Prompt]
    earlier: Sequence[RunFolder] = ()
    pairing: Pairing = "policy"

    @property
    def path(self) -> Path:
        """The folder with the results of the round's phases."""
        return self.folder.path

    def seed(self, config: RLHFConfig) -> int:
        """The seed of the round's samples, which differs from round to round."""
        return config.seed + 1 + 1000 * (self.number - 1)


def run_round(config: RLHFConfig, this: Round, labeller: Labeller, judge: Any, resume: bool) -> dict[str, Any]:
    """Run the phases that are not finished.

    Args:
        judge: a reward function whose score of each rollout is logged; None: there is none.

    Returns:
        `accuracy` of the reward model on comparisons held out, `comparisons` of this round and `all_comparisons`.
    """
    pairs = kept(this.path / "pairs.jsonl", lambda: sample_pairs(config, this))
    say("2  a reward model from comparisons", f"{len(pairs)} pairs of samples, preferred by {labeller.name}")
    rows = kept(this.path / COMPARISONS, lambda: [asdict(c) for c in labeller.label(pairs, this.path)])
    first = pairs if not this.earlier else read_rows(this.earlier[0].path / "pairs.jsonl")
    before = [row for folder in this.earlier for row in read_rows(folder.path / COMPARISONS)]
    compared = [Comparison(**row) for row in (*before, *rows)]
    accuracy = train_reward_model(config, this, first, compared, resume)
    say("", f"{len(compared)} comparisons without ties; held-out accuracy {accuracy:.3f}")
    say("3  PPO against the reward model", f"beta {config.beta:g}, {config.timesteps:,} tokens")
    settings = training_settings(config, this)
    if not this.folder.is_finished:
        callbacks = [] if judge is None else [Gold(judge)]
        train_reserved(settings, this.folder, resume=resume, progress_bar=True, callbacks=callbacks)
    return {"accuracy": accuracy, "comparisons": len(rows), "all_comparisons": len(compared)}


# -- the phases --------------------------------------------------------------------------------------
def make_task(config: RLHFConfig, judge: Any, *, model: str | None = None, reference: Any = None) -> Task:
    """The task, with the supervised model or another one under training; its reward is the judge, 0 without one."""
    lm, tokenizer = load_causal_lm(model or config.model, config.device, config.download)
    return Task(
        model=lm,
        reference=reference,
        tokenizer=tokenizer,
        prompts=default_prompts(config.prompts, "train", "test"),
        reward=no_reward if judge is None else judge,
        beta=config.beta,
        max_new_tokens=config.new_tokens,
        temperature=TEMPERATURE,
        download=config.download,
    )


def split_prompts(config: RLHFConfig, task: Task) -> tuple[list[Prompt], list[Prompt]]:
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


def sample_pairs(config: RLHFConfig, this: Round) -> list[dict[str, Any]]:
    """Two samples to each of so many prompts: texts, token ids, and the prompts' columns."""
    first = config.comparisons * (this.number - 1)
    prompts = this.training_prompts
    drawn = [prompts[i % len(prompts)] for i in range(first, first + config.comparisons)]
    task = this.supervised
    if this.earlier:
        task = make_task(config, None, model=str(this.earlier[-1].policy), reference=this.supervised.reference)
    if this.earlier and this.pairing == "best-worst":
        one, other = _best_and_worst(config, this, task, drawn)
    elif this.earlier and this.pairing == "reference":
        one = sample_responses(task, drawn, this.seed(config)).responses()
        other = sample_responses(this.supervised, drawn, this.seed(config) + 1).responses()
    else:
        both = sample_responses(task, [*drawn, *drawn], this.seed(config)).responses()
        one, other = both[: len(drawn)], both[len(drawn) :]
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
        for prompt, a, b in zip(drawn, one, other, strict=True)
    ]


def _best_and_worst(
    config: RLHFConfig, this: Round, task: Task, drawn: list[Prompt]
) -> tuple[list[list[int]], list[list[int]]]:
    """Of `CANDIDATES` samples to each prompt, those with the highest and the lowest score by the last reward model."""
    rm = RewardModel.load(this.earlier[-1].path / REWARD_MODEL, device=config.device)
    episodes = sample_responses(task, [p for p in drawn for _ in range(CANDIDATES)], this.seed(config))
    scores = score(rm, task, episodes).reshape(-1, CANDIDATES)
    responses = episodes.responses()
    starts = np.arange(len(drawn)) * CANDIDATES
    best, worst = starts + scores.argmax(1), starts + scores.argmin(1)
    return [responses[i] for i in best], [responses[i] for i in worst]


def train_reward_model(
    config: RLHFConfig, this: Round, pairs: list[dict[str, Any]], comparisons: list[Comparison], resume: bool
) -> float:
    """Train the reward model, unless it is there; its accuracy on comparisons held out.

    Args:
        pairs: samples of the supervised model, on which the scores are normalized.
    """
    place = this.path / REWARD_MODEL
    noted = this.path / "reward_model.json"
    if is_saved_folder(place) and noted.exists():
        say("", f"kept: {place}")
        return float(json.loads(noted.read_text())["held_out_accuracy"])
    trunk: Any = this.supervised.model
    # Most texts end at the length cap, in the middle of a sentence, where the last state says little of the whole.
    rm = RewardModel.from_causal_lm(trunk, this.supervised.tokenizer, seed=config.seed, pooling="mean")
    unfinished = this.path / f"{REWARD_MODEL}.unfinished"
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


def training_settings(config: RLHFConfig, this: Round) -> TrainSettings:
    """PPO as `lm-env train` runs it, from the policy of the round before, with its prompts and its reward in files."""
    task = this.supervised
    files = {name: this.path / f"prompts_{name}.jsonl" for name in ("train", "test")}
    for path, prompts in ((files["train"], this.training_prompts), (files["test"], this.test_prompts)):
        write_rows(path, [{"prompt": p.text, **p.columns} for p in prompts])
    goes_on = {"model": str(this.earlier[-1].policy), "reference": config.model} if this.earlier else {}
    return TrainSettings.of(
        agent="ppo",
        timesteps=config.timesteps,
        seed=config.seed,
        **{"model": config.model, **goes_on},
        prompts=str(files["train"]),
        reward=str(this.path / REWARD_MODEL),
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
        critic="score",  # the reward model scores all beginnings of a text at once: the same score for less KL
        eval_prompts=str(files["test"]),
        eval_every=0,
        eval_texts=64,
    )
