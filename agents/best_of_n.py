"""Best of n samples: no training, and the baseline that every RL run must beat.

Its KL to the sampling policy is at most log n - (n - 1) / n nats (Stiennon et al. 2020, appendix G.3;
tight without ties; Beirami et al. 2024, arXiv:2401.01879).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from agents.base.config import make_config
from agents.base.text_agent import TextAgent
from agents.run.evaluation import Evaluation, choose_texts, summarize
from lm_env.data.episodes import Episodes
from lm_env.data.prompts import Prompt
from lm_env.explain import explained
from lm_env.generation.backend import Sampling
from lm_env.generation.generate import LocalBackend
from lm_env.objective.scoring import episode_scores, measure_episodes
from lm_env.theory.ceilings.best_of_n import best_of_n
from lm_env.theory.ceilings.tilting import Ceiling
from lm_env.validation import check_field_types, check_integer, check_integers

__all__ = ["BestOfN", "BestOfNConfig"]


@explained
@dataclass(frozen=True)
class BestOfNConfig:
    """Options of best-of-n."""

    n: int = 4
    """Samples per response."""
    slots: int = 32
    """Texts decoded at a time."""
    seed: int = 0
    """The seed of prompts and sampling."""

    def __post_init__(self) -> None:
        check_field_types(self)
        check_integers(self, "n", "slots")
        check_integers(self, "seed", low=0)


class BestOfN(TextAgent):
    """Samples n responses and keeps the one that the reward scores highest; it owns no weights and learns nothing.

    Args:
        env: a text environment, single or vectorized, wrapped or not, or a registered id.
        options: the fields of `BestOfNConfig`.
    """

    Config: ClassVar[type[BestOfNConfig]] = BestOfNConfig

    def __init__(self, env: Any, **options: Any) -> None:
        self.config = make_config(BestOfNConfig, "BestOfN", options)
        super().__init__(env, self.config.seed)
        self.backend = LocalBackend(self.task, self.config.slots)

    @property
    def kl_bound(self) -> float:
        """log n - (n - 1) / n, nats per response."""
        return math.log(self.config.n) - (self.config.n - 1) / self.config.n

    def learn(self, total_timesteps: int = 0, *args: Any, **kwargs: Any) -> Self:
        """Do nothing; present so that `--agent best-of-n` can replace any other agent."""
        return self

    def generate_episodes(
        self, prompts: Sequence[Any] | None = None, n: int | None = None, deterministic: bool = False
    ) -> Episodes:
        """The best of `config.n` samples for each text; see `generate` for the arguments.

        Their logprobs are None: the distribution of the best sample has no cheap density.
        """
        best, _ = self._choose(self.choose_prompts(prompts, n), Sampling(self.randomness.sampling, deterministic))
        return best

    def evaluate(
        self, prompts: Any = None, n: int | None = None, *, seed: int = 0, ceiling: Ceiling | None = None
    ) -> Evaluation:
        """See `TextAgent.evaluate`.

        The KL is that of the best of the samples to the model that they are drawn from, from their ranks with ties
        (`lm_env.theory.ceilings.best_of_n`), plus the mean log-ratio of that model to the reference.
        """
        task = self.task
        chosen, n = choose_texts(task, prompts, n, ceiling)
        drawn = [prompt for prompt in chosen for _ in range(n)]
        size = self.config.n
        sampling = Sampling.fixed(len(drawn) * size, task.max_new_tokens, check_integer("seed", seed, low=0))
        best, scores = self._choose(drawn, sampling)
        of_ranks = [best_of_n(group[None], size).KL if size > 1 else 0.0 for group in scores.reshape(len(chosen), -1)]
        distances = measure_episodes(task, best)
        return summarize(
            task,
            best,
            scores=scores.max(1),
            kl=np.repeat(of_ranks, n) + distances["k1"],
            surprise=distances["surprise"],
            ended=task.ends(best.input_ids, best.prompt_lengths, best.lengths)[0],
            n=n,
            ceiling=ceiling,
        )

    def _choose(self, prompts: Sequence[Prompt], sampling: Sampling) -> tuple[Episodes, np.ndarray]:
        """The best of n samples for each of B prompts, without logprobs; and the scores (B, n) of all samples."""
        size = self.config.n
        episodes = self.backend.generate([p for p in prompts for _ in range(size)], sampling).episodes
        scores = episode_scores(self.task, episodes)[0].reshape(-1, size)
        best = episodes[np.arange(len(prompts)) * size + scores.argmax(1)]
        return Episodes(best.input_ids, best.prompt_lengths, best.lengths, best.prompts), scores
