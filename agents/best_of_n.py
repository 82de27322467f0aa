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

from agents.base.agent import BatchedAgent
from agents.base.config import AgentConfig
from agents.learning.critic import CriticSource
from agents.learning.rollout import Rollout
from lm_env.data.episodes import Episodes
from lm_env.data.prompts import Prompt
from lm_env.errors import ConfigurationError
from lm_env.objective.scoring import score_episodes

__all__ = ["BestOfN", "BestOfNConfig"]


@dataclass(frozen=True)
class BestOfNConfig(AgentConfig):
    """Options of best-of-n."""

    n: int = 4
    """Samples per response."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n < 1:
            raise ConfigurationError(f"n must be at least 1, not {self.n!r}")


class BestOfN(BatchedAgent):
    """Samples n responses and keeps the one that the reward scores highest."""

    Config: ClassVar[type[AgentConfig]] = BestOfNConfig
    default_critic: ClassVar[CriticSource] = "none"
    config: BestOfNConfig

    @property
    def kl_bound(self) -> float:
        """log n - (n - 1) / n, nats per response."""
        return math.log(self.config.n) - (self.config.n - 1) / self.config.n

    def learn(self, total_timesteps: int = 0, *args: Any, **kwargs: Any) -> Self:
        """Nothing to learn; here so that the name can be swapped."""
        return self

    def update(self, rollout: Rollout) -> dict[str, float]:
        """No update."""
        return {}

    def rollout_episodes(
        self, prompts: Sequence[Any] | None = None, n: int = 4, deterministic: bool = False
    ) -> Episodes:
        """The best of n samples for each prompt.

        Their logprobs are None: the distribution of the best sample has no cheap density.
        """
        if prompts is None:
            prompts = self.task.prompts.sample(self.prompt_rng, n)
        chosen: Sequence[Prompt] = self.load_prompts(prompts)
        size = self.config.n
        episodes = super().rollout_episodes([p for p in chosen for _ in range(size)], deterministic=deterministic)
        scores = score_episodes(self.task, episodes).scores.reshape(-1, size)
        best = episodes[np.arange(len(chosen)) * size + scores.argmax(1)]
        return Episodes(best.input_ids, best.prompt_lengths, best.lengths, best.prompts)
