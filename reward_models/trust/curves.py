"""Two curves: accuracy over the number of training records, and the gold score of best-of-n by the reward model.

Shapes: P prompts, N samples of the policy for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lm_env.errors import ConfigurationError
from reward_models.preferences.encoding import score_records
from reward_models.preferences.recipe import Recipe, train_from_preferences
from reward_models.preferences.records.preference import Preference
from reward_models.trust.statistics import Share, wilson

__all__ = ["LearningPoint", "OverOptimization", "best_of_n_curve", "learning_curve", "over_optimization"]


@dataclass(frozen=True)
class LearningPoint:
    """The accuracy on the held-out records of a reward model trained on so many training records."""

    records: int
    accuracy: Share


def learning_curve(
    training: Sequence[Preference],
    held_out: Sequence[Preference],
    recipe: Recipe,
    *,
    points: int = 4,
    say: Callable[[str], None] | None = None,
) -> list[LearningPoint]:
    """Train anew on an eighth, a quarter, a half, ... of the records, drawn at random, and on all of them.

    Args:
        held_out: with comparisons, and without prompts of the training records.
        points: how many sizes, each twice the one before.
        say: called with a sentence about each.
    """
    order = np.random.default_rng(recipe.seed).permutation(len(training))
    found = []
    for power in reversed(range(points)):
        size = len(training) // 2**power
        if size < 2:
            continue
        part = [training[i] for i in order[:size]]
        single = replace(recipe, ensemble=1, held_out_fraction=recipe.held_out_fraction if size >= 20 else 0.0)
        reward = train_from_preferences(part, single).reward
        compared = [record for record in held_out if record.outcomes()]
        scores = score_records(reward, compared, reward.tokenizer)
        right = []
        for record, own in zip(compared, scores, strict=True):
            for better, worse, tied in record.outcomes():
                if not tied:
                    right.append(float(own[better] > own[worse]) + 0.5 * float(own[better] == own[worse]))
        share = wilson(right)
        if share is not None:
            found.append(LearningPoint(size, share))
            if say is not None:
                say(f"trained on {size:,} records: accuracy {share}")
    return found


@dataclass(frozen=True)
class OverOptimization:
    """Best-of-n by the reward model, scored by the gold reward function that the reward model stands in for.

    Attributes:
        n: how many samples the best is taken of.
        kl: the bound log n - (n - 1) / n of the KL to the policy sampled from, nats.
        proxy, gold: the mean score of the chosen text by the reward model, and by the gold function.
        gold_error: the standard error of the gold score over prompts; None of a single prompt.
        prompts, samples: how many prompts, and samples for each.
    """

    n: list[int]
    kl: list[float]
    proxy: list[float]
    gold: list[float]
    gold_error: list[float | None]
    prompts: int
    samples: int

    def falls(self) -> bool:
        """Whether the gold score at the largest n is below its peak by more than two standard errors.

        A single prompt has no standard error, and cannot show it.
        """
        peak = int(np.argmax(self.gold))
        at_peak, at_end = self.gold_error[peak], self.gold_error[-1]
        if at_peak is None or at_end is None:
            return False
        return self.gold[peak] - self.gold[-1] > 2 * math.hypot(at_peak, at_end)


def best_of_n_curve(proxy: np.ndarray, gold: np.ndarray, sizes: Sequence[int]) -> OverOptimization:
    """The mean gold score of the text that the proxy prefers among n, over all subsets of n of the samples.

    Without bias, by order statistics (Stiennon et al. 2020, arXiv:2009.01325, appendix G.3; Gao et al. 2022,
    arXiv:2210.10760, equation 7).  Samples of equal proxy share their gold score.

    Args:
        proxy, gold: (P, N).
        sizes: each at most N.

    Raises:
        ConfigurationError: the arrays do not fit, or a size is above N.
    """
    proxy, gold = np.asarray(proxy, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if proxy.ndim != 2 or proxy.shape != gold.shape or not sizes or max(sizes) > proxy.shape[1] or min(sizes) < 1:
        raise ConfigurationError(
            f"scores of shapes {proxy.shape} and {gold.shape} have no best of {list(sizes)}: give (P, N), N at least n"
        )
    samples = proxy.shape[1]
    order = np.argsort(proxy, axis=1, kind="stable")
    ranked = np.take_along_axis(gold, order, axis=1)
    own = np.take_along_axis(proxy, order, axis=1)
    for row, levels in zip(ranked, own, strict=True):
        for level in np.unique(levels):
            row[levels == level] = row[levels == level].mean()
    result = OverOptimization([], [], [], [], [], proxy.shape[0], samples)
    for n in sizes:
        weight = np.array([math.comb(i, n - 1) / math.comb(samples, n) for i in range(samples)])
        chosen = ranked @ weight
        result.n.append(int(n))
        result.kl.append(math.log(n) - (n - 1) / n)
        result.proxy.append(float((own @ weight).mean()))
        result.gold.append(float(chosen.mean()))
        error = float(chosen.std(ddof=1) / math.sqrt(len(chosen))) if len(chosen) > 1 else None
        result.gold_error.append(error)
    return result


def over_optimization(
    task: Any,
    reward: Callable[..., Any],
    gold: Callable[..., Any],
    *,
    prompts: int = 64,
    samples: int = 64,
    seed: int = 0,
) -> OverOptimization:
    """Sample a task's reference, and see what choosing by the reward model does to the gold score.

    Args:
        task: an `lm_env.objective.Task`; its own reward is not used.
        gold: the reward function that the reward model stands in for: a rule, another model, a judge.
        prompts: of the task, the first ones.
        samples: N, samples per prompt; n is 1, 2, 4, ..., up to N.

    Raises:
        RewardError, RewardValueError: a reward function failed.
    """
    import torch

    from lm_env.generation import LocalBackend, Sampling
    from lm_env.objective.scoring import raw_scores

    drawn = [prompt for prompt in task.prompts.head(prompts) for _ in range(samples)]
    sampling = Sampling(torch.Generator().manual_seed(seed))
    with task.as_reference():
        episodes = LocalBackend(task, 128, model=task.reference).generate(drawn, sampling, progress=None).episodes
    responses = episodes.responses()
    shape = (len(drawn) // samples, samples)
    sizes = [2**k for k in range(int(math.log2(samples)) + 1)]
    return best_of_n_curve(
        raw_scores(reward, task, drawn, responses).reshape(shape),
        raw_scores(gold, task, drawn, responses).reshape(shape),
        sizes,
    )
