"""Texts of a policy, and what is measured of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback

from lm_env.data.episodes import Episodes
from lm_env.data.prompts import Prompt
from lm_env.generation import LocalBackend, Sampling
from lm_env.models.logprobs import response_logprobs
from lm_env.objective.scoring import raw_scores
from lm_env.objective.task import Task

__all__ = ["Gold", "Sampled", "distinct", "sample_responses", "score"]


class Gold(BaseCallback):
    """Logs the judge's score of each rollout, which PPO does not see."""

    def __init__(self, judge: Any) -> None:
        super().__init__()
        self.judge = judge

    def _on_step(self) -> bool:
        agent: Any = self.model
        gold = score(self.judge, agent.task, self.locals["rollout"].episodes)
        agent.logger.record("rollout/gold", float(gold.mean()))
        return True


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

    def metrics(self, rm: Any, judge: Any) -> dict[str, float]:
        """Means over the responses; KL in nats per response, perplexity per token under the reference at T = 1.

        Args:
            rm, judge: reward functions; what a missing one (None) would say is left out.
        """
        task = self.task
        episodes = self.episodes
        assert episodes.logprobs is not None
        reference = response_logprobs(task.reference, episodes, task.temperature)
        plain = response_logprobs(task.reference, episodes)
        scorers = {"rm_score": rm, "gold": judge}
        return {
            **{name: float(score(by, task, episodes).mean()) for name, by in scorers.items() if by is not None},
            "kl": float((episodes.logprobs - reference).sum(1).mean()),
            "perplexity": float(np.exp(-plain.sum() / episodes.response_lengths.sum())),
            "distinct2": distinct(self.texts, 2),
        }

    def rows(self, judge: Any) -> list[tuple[str, str, float]]:
        """(prompt, response, judge's score) of each."""
        gold = score(judge, self.task, self.episodes)
        return [(p.text, text, float(g)) for p, text, g in zip(self.episodes.prompts, self.texts, gold, strict=True)]


def distinct(texts: list[str], n: int) -> float:
    """Distinct n-grams of words over all n-grams (Li et al. 2016, arXiv:1510.03055)."""
    grams = [tuple(words[i : i + n]) for t in texts for words in [t.split()] for i in range(len(words) - n + 1)]
    return len(set(grams)) / max(len(grams), 1)


def score(reward: Any, task: Task, episodes: Episodes) -> np.ndarray:
    """The reward function's own scores of episodes, float (B,)."""
    return raw_scores(reward, task, episodes.prompts, episodes.responses())
