"""The losses of this package's batched agents."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from agents import AGENTS
from agents.learning.rollout import Rollout
from lm_env.data.episodes import Episodes, ScoredEpisodes
from lm_env.data.prompts import Prompt
from lm_env.envs.env import TextGenerationEnv
from lm_env.objective.rewards import no_reward
from lm_env.theory.loss import Loss, LossBatch

__all__ = ["batched_loss", "text_env"]

NO_STEP = 1e-300
"""A learning rate at which no weight changes."""
NO_CLIPPING = 1e9


def batched_loss(name: str, **options: Any) -> Loss:
    """The gradient that `AGENTS[name].update` has for its optimizer, advantages and micro-batches included.

    Args:
        options: of the agent's config.
    """

    def loss(batch: LossBatch) -> None:
        whole = batch.whole
        rollout = rollout_of(whole)
        fields = AGENTS[name].Config.__dataclass_fields__  # type: ignore[attr-defined]
        given = {
            "rollout_episodes": len(whole),
            "batch_size": len(whole),
            "n_epochs": 1,
            "group_size": batch.group_size,
            "learning_rate": NO_STEP,
            "max_grad_norm": NO_CLIPPING,
            "micro_batch_tokens": 4 * max(64, len(whole) // 4),
        }
        agent = AGENTS[name](text_env(whole), **{**{k: v for k, v in given.items() if k in fields}, **options})
        if batch.rows is not None:
            _learn_only_from(agent, batch.rows, len(whole))
        agent.update(rollout)

    loss.__name__ = name
    return loss


def text_env(batch: LossBatch) -> TextGenerationEnv:
    """An environment whose policy and reference are those of the batch; its texts are not scored."""
    return TextGenerationEnv(
        model=batch.model,
        reference=batch.reference,
        prompts=[[batch.eos_id]],
        reward=no_reward,
        eos_token_id=batch.eos_id,
        max_new_tokens=batch.max_length,
        beta=batch.beta,
    )


def rollout_of(batch: LossBatch) -> Rollout:
    """The batch as a rollout of a batched agent."""
    lengths = batch.lengths.numpy()
    longest = int(lengths.max())
    mask = batch.mask.numpy()[:, :longest]

    def on_tokens(values: Tensor) -> np.ndarray:
        return np.where(mask, values.numpy()[:, :longest], 0.0)

    prompt = Prompt(np.array([batch.eos_id]), "", {}, 0)
    episodes = Episodes(
        batch.input_ids.numpy(), np.ones(len(batch), dtype=np.int64), lengths + 1, [prompt] * len(batch)
    )
    scores = batch.scores.numpy()
    scored = ScoredEpisodes(
        rewards=on_tokens(batch.rewards),
        scores=scores,
        logprobs=on_tokens(batch.old_logprobs),
        ref_logprobs=on_tokens(batch.ref_logprobs),
        ended=batch.ended.numpy(),
        token_scores=np.where(batch.last.numpy()[:, :longest], scores[:, None], 0.0),
    )
    return Rollout(episodes, on_tokens(batch.values), np.zeros(len(batch)), scored)


def _learn_only_from(agent: Any, rows: np.ndarray, size: int) -> None:
    """Have an agent's loss be 0 outside some rows of the rollout, as if the others were other micro-batches."""
    kept = np.isin(np.arange(size), rows).astype(np.float64)
    of_all = agent.loss

    def of_part(evaluation: Any, batch: Any, *rest: Any) -> Tensor:
        return of_all(evaluation, batch, *rest) * batch.tokens(kept)

    agent.loss = of_part
