"""PPO-ptx: PPO with the pretraining loss mixed in (Ouyang et al. 2022, arXiv:2203.02155, equation 2).

    maximize  E[score - beta KL]  +  ptx_coef x E_pretraining[log pi(text)]

Every gradient step adds that of a batch of pretraining texts, so the policy keeps what RL would wash
out.  The paper's coefficient is 27.8, with 8 pretraining texts per episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from agents.learning.likelihood import add_likelihood_gradient, text_episodes
from agents.learning.rollout import Rollout
from agents.ppo import PPO
from lm_env.data.prompts import Prompt, load_prompts
from lm_env.errors import CheckpointMismatchError, ConfigurationError
from lm_env.validation import check_integer, check_number

__all__ = ["PPOPtx"]


class PPOPtx(PPO):
    """PPO with pretraining texts mixed into every step.

    Args:
        env: as in `PPO`.
        texts: what to keep likely: strings, or anything `load_prompts` takes; longer ones are cut.
        max_text_tokens: where they are cut.
        ptx_coef: weight of the mean log-likelihood, nats per token.
        ptx_ratio: pretraining texts per episode of a minibatch.
        options: see `PPOConfig`.
    """

    def __init__(
        self,
        env: Any,
        texts: Sequence[Any] | str,
        *,
        max_text_tokens: int = 128,
        ptx_coef: float = 27.8,
        ptx_ratio: float = 1.0,
        **options: Any,
    ) -> None:
        self.max_text_tokens = check_integer("max_text_tokens", max_text_tokens, low=2)
        self.ptx_coef = check_number("ptx_coef", ptx_coef, low=0.0)
        self.ptx_ratio = check_number("ptx_ratio", ptx_ratio, low=0.0, above=True)
        super().__init__(env, **options)
        if self.updater.model is not self.policy:
            raise ConfigurationError("PPO-ptx reads its texts with the whole policy: leave Updating(shard=True) out")
        pool = load_prompts(texts, self.task.tokenizer, vocab_size=self.task.vocab_size, max_prompt_tokens=2**31 - 1)
        self.texts: list[Prompt] = [p for p in pool if len(p.ids) >= 2]
        if not self.texts:
            raise ConfigurationError("texts for PPO-ptx need at least two tokens each, to have one to predict")
        self.text_rng = np.random.default_rng([self.config.seed, 2])

    def update(self, rollout: Rollout) -> dict[str, float]:
        """PPO's update, with the gradient of some pretraining texts added before each step."""
        targets = self.targets(rollout)
        for rows in self.minibatches(rollout, self.config.batch_size, self.config.n_epochs):
            with self.updater.step(rollout, rows) as step:
                for batch in step.micro_batches():
                    evaluation = step.evaluate(batch, self.needs_logits)
                    step.backward(self.loss(evaluation, batch, targets))
                self.add_text_gradient(self.draw_texts())
        return {**self.updater.metrics(), **targets.metrics}

    def draw_texts(self) -> list[Prompt]:
        """The pretraining texts of one minibatch."""
        count = max(1, round(self.config.batch_size * self.ptx_ratio))
        return [self.texts[i] for i in self.text_rng.integers(len(self.texts), size=count)]

    def add_text_gradient(self, texts: Sequence[Prompt]) -> None:
        """Accumulate the gradient of -ptx_coef x mean log pi(token) over all tokens but the first."""
        rows = [p.ids[: self.max_text_tokens].tolist() for p in texts]
        episodes = text_episodes(texts, rows, [1] * len(rows))
        add_likelihood_gradient(
            self.policy.lm, episodes, self.ptx_coef, self.config.micro_batch_tokens, self.updater.forwards
        )

    def extra_state(self) -> dict[str, Any]:
        """How the texts are mixed in, and which come next."""
        return {"mix": self._mix, "text_rng": self.text_rng.bit_generator.state}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take it back."""
        if state["mix"] != self._mix:
            raise CheckpointMismatchError(
                f"saved with ptx_coef, ptx_ratio, max_text_tokens {state['mix']}, now {self._mix}: load with the same"
            )
        self.text_rng.bit_generator.state = state["text_rng"]

    @property
    def _mix(self) -> list[float]:
        return [self.ptx_coef, self.ptx_ratio, self.max_text_tokens]
