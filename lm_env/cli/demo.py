"""`lm-env demo`: supervised model, reward model from comparisons, PPO -- and what came of it.

A person would compare the samples; here a judge does, by default a lexicon whose words people have
rated.  PPO sees the trained reward model alone, never the judge: the judge's own score before and
after (`gold`) tells whether the optimized reward was worth optimizing.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback

import reward_models
from agents import PPO
from agents.run.training_log import ProgressFile
from lm_env.cli.before_after import SAMPLES, SUMMARY, BeforeAfter, Curves, plot_curves, write_summary
from lm_env.cli.console import say
from lm_env.cli.judges import default_prompts, make_judge
from lm_env.data.episodes import Episodes
from lm_env.data.prompts import Prompt
from lm_env.envs.env import TextGenerationEnv
from lm_env.errors import CheckpointWriteError, ConfigurationError
from lm_env.generation import LocalBackend, Sampling
from lm_env.models.loading import load_causal_lm
from lm_env.models.logprobs import response_logprobs
from lm_env.objective.scoring import raw_scores
from lm_env.objective.task import Task
from lm_env.report import REPORT_FILE, write_report
from lm_env.storage import FileLock, check_destination
from lm_env.tasks.sentiment import openings
from reward_models import RewardModel

__all__ = ["DemoConfig", "run_demo"]

EVALUATION_EPISODES = 256
POLICY = "policy"
REWARD_MODEL = "reward_model"
LOG = "log"
CURVES = "curves.png"
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


def run_demo(config: DemoConfig) -> dict[str, Any]:
    """Run the three phases; writes everything to `config.out` and returns the summary.

    Raises:
        CheckpointWriteError: something in `config.out` cannot be written, found before the first phase.
        RunLockedError: another run writes there.
    """
    with _reserved(config.out):
        return _run_demo(config)


def _run_demo(config: DemoConfig) -> dict[str, Any]:
    started = time.time()
    torch.manual_seed(config.seed)

    say("1  the supervised model", f"{config.model}, {TEMPERATURE} temperature")
    judge = make_judge(config.judge, device=config.device, download=config.download)
    supervised = _task(config, judge)
    _check_room(config.out, supervised.model)
    training_prompts, test_prompts = _split(config, supervised)
    before = _Sampled(supervised, test_prompts, config.seed)

    say(
        "2  a reward model from comparisons",
        f"{config.comparisons} pairs of its samples, preferred by the judge '{config.judge}'",
    )
    rm, accuracy, pairs = _reward_model(config, supervised, training_prompts, judge)
    say("", f"{pairs} comparisons without ties; held-out accuracy {accuracy:.3f}")

    say("3  PPO against the reward model", f"beta {config.beta:g}, {config.timesteps:,} tokens")
    env = TextGenerationEnv(
        model=copy.deepcopy(supervised.model),
        reference=supervised.model,
        tokenizer=supervised.tokenizer,
        prompts=[{"prompt": p.text, **p.columns} for p in training_prompts],
        reward=rm,
        beta=config.beta,
        max_prompt_tokens=supervised.max_prompt_tokens,
        max_new_tokens=config.new_tokens,
        temperature=TEMPERATURE,
    )
    agent = PPO(
        env,
        learning_rate=2e-4,
        rollout_episodes=256,
        slots=128,
        batch_size=64,
        n_epochs=2,
        seed=config.seed,
        log_dir=config.out / LOG,
    )
    curves = _Watch(judge)
    agent.learn(config.timesteps, callback=curves, progress_bar=True)
    agent.logger.close()

    after = _Sampled(env.task, test_prompts, config.seed)
    report = BeforeAfter(before.metrics(rm, judge), after.metrics(rm, judge), before.rows(judge), after.rows(judge))
    say("4  before and after", f"{len(test_prompts)} prompts that PPO did not see")
    report.show()
    summary = {
        "rm_accuracy": accuracy,
        **report.summary(),
        "seconds": round(time.time() - started, 1),
        "seed": config.seed,
        "config": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()},
    }
    agent.save(config.out / POLICY)
    rm.save(config.out / REWARD_MODEL)
    plot_curves(curves.curves, config.out / CURVES)
    write_summary(config.out, summary, report)
    page = write_report(config.out)
    say(
        "",
        f"{summary['seconds']:.0f} s; everything is in {config.out}: look at {page}, and try  lm-env sample --model"
        f" {config.out / POLICY}",
    )
    return summary


# -- the phases --------------------------------------------------------------------------------------
def _task(config: DemoConfig, judge: Any) -> Task:
    model, tokenizer = load_causal_lm(config.model, config.device, config.download)
    return Task(
        model=model,
        tokenizer=tokenizer,
        prompts=default_prompts(config.prompts, "train", "test"),
        reward=judge,
        beta=config.beta,
        max_new_tokens=config.new_tokens,
        temperature=TEMPERATURE,
        download=config.download,
    )


def _split(config: DemoConfig, task: Task) -> tuple[list[Prompt], list[Prompt]]:
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


def _reward_model(config: DemoConfig, task: Task, prompts: list[Prompt], judge: Any) -> tuple[RewardModel, float, int]:
    """(trained reward model, its held-out accuracy, comparisons without ties)."""
    drawn = [prompts[i % len(prompts)] for i in range(config.comparisons)]
    episodes = _sample(task, [*drawn, *drawn], config.seed + 1)
    responses = episodes.responses()
    texts = [task.text_of(r) for r in responses]
    half = config.comparisons
    columns: dict[str, list[Any]] = {name: [p.columns.get(name) for p in drawn] for name in task.prompts.columns}
    comparisons = reward_models.label_comparisons(
        [p.text for p in drawn],
        texts[:half],
        texts[half:],
        judge,
        prompt_ids=[p.ids.tolist() for p in drawn],
        response_ids_a=responses[:half],
        response_ids_b=responses[half:],
        **columns,
    )
    if len(comparisons) < 20:
        raise ConfigurationError(
            f"only {len(comparisons)} of {half} comparisons were no ties: the judge '{config.judge}' scores most"
            " samples alike"
        )
    trunk: Any = task.model
    rm = RewardModel.from_causal_lm(trunk, task.tokenizer, seed=config.seed)
    report = reward_models.train_reward_model(
        rm,
        comparisons,
        epochs=2,
        batch_size=32,
        learning_rate=3e-4,
        held_out_fraction=0.15,
        seed=config.seed,
        progress_bar=True,
    )
    ids = {"prompt_ids": [p.ids.tolist() for p in drawn], "response_ids": responses[:half]}
    rm.normalize([p.text for p in drawn], texts[:half], **ids)  # samples of the supervised model: mean 0, std 1
    assert report.held_out_accuracy is not None
    return rm, report.held_out_accuracy, len(comparisons)


class _Watch(BaseCallback):
    """Notes reward, KL, and the judge's score of each rollout, which PPO does not see."""

    def __init__(self, judge: Any) -> None:
        super().__init__()
        self.judge, self.curves = judge, Curves()

    def _on_step(self) -> bool:
        agent: Any = self.model
        rollout = self.locals["rollout"]
        task = agent.task
        gold = _score(self.judge, task, rollout.episodes)
        before = agent.num_timesteps - int(rollout.episodes.response_lengths.sum())
        self.curves.add(before, rollout.scored.scores.mean(), gold.mean(), rollout.scored.kl.mean())
        agent.logger.record("rollout/gold", float(gold.mean()))
        return True


def _sample(task: Task, prompts: list[Prompt], seed: int) -> Episodes:
    """A response of the task's model to each prompt, behind a progress bar."""
    sampling = Sampling(torch.Generator().manual_seed(seed))
    return LocalBackend(task, 128).generate(prompts, sampling, progress="   sampling").episodes


# -- measuring ---------------------------------------------------------------------------------------
class _Sampled:
    """Responses of the task's model to fixed prompts, and what is measured of them."""

    def __init__(self, task: Task, prompts: list[Prompt], seed: int) -> None:
        self.task = task
        self.episodes = _sample(task, prompts, seed)
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


@contextmanager
def _reserved(out: Path) -> Iterator[None]:
    """Inside, the folder is this run's alone; what could not be written there at the end is an error at once."""
    lock = None
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock", out)
        for name in (POLICY, REWARD_MODEL):
            check_destination(out / name)
        ProgressFile(out / LOG).close()
        for file in (out / CURVES, out / SUMMARY, out / SAMPLES, out / REPORT_FILE):
            if file.exists():
                file.open("ab").close()
    except OSError as error:  # CheckpointWriteError and RunLockedError among them
        if lock is not None:
            lock.release()
        kind = type(error) if isinstance(error, CheckpointWriteError) else CheckpointWriteError
        raise kind(f"cannot write to {out}: {error}; choose another --out") from error
    try:
        yield
    finally:
        lock.release()


def _check_room(out: Path, model: Any) -> None:
    """Raise CheckpointWriteError where the disk has no room for what will be saved.

    It is the policy, two moments of it, and the reward model; all in fp32 at the most.
    """
    check_destination(out / POLICY, size=4 * 4 * sum(p.numel() for p in model.parameters()))
