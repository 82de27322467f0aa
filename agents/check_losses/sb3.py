"""The losses of stable-baselines3's PPO and A2C, with this package's policy and buffer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from agents.check_losses.batched import NO_CLIPPING, text_env
from lm_env.theory.loss import Loss, LossBatch

__all__ = ["sb3_loss"]


def sb3_loss(name: str, **options: Any) -> Loss:
    """The gradient that `train` of stable-baselines3's PPO or A2C has for its optimizer, its GAE included.

    Args:
        options: of the algorithm.
    """
    import stable_baselines3

    from agents.sb3 import CausalLMPolicy, EpisodeRolloutBuffer, TextVecEnv

    algorithm = getattr(stable_baselines3, name)

    def loss(batch: LossBatch) -> None:
        tokens = int(batch.lengths.sum())
        own: dict[str, Any] = {"batch_size": tokens, "n_epochs": 1} if name == "PPO" else {"use_rms_prop": False}
        agent = algorithm(
            CausalLMPolicy,
            TextVecEnv.from_env(text_env(batch), num_envs=1),
            n_steps=tokens,
            learning_rate=0.0,
            max_grad_norm=NO_CLIPPING,
            rollout_buffer_class=EpisodeRolloutBuffer,
            **{"gamma": 1.0, **own, **options},
        )
        agent.set_logger(stable_baselines3.common.logger.Logger(None, []))
        _fill(agent.rollout_buffer, batch)
        agent.train()

    loss.__name__ = f"sb3-{name.lower()}"
    return loss


def _fill(buffer: Any, batch: LossBatch) -> None:
    """The responses one after the other, as one environment would have had them; the first token is the prompt."""
    ids = batch.input_ids.numpy()
    buffer.reset()
    for row in range(len(batch)):
        for t in range(int(batch.lengths[row])):
            text = np.zeros((1, buffer.observation_space["input_ids"].shape[0]), dtype=np.int64)
            text[0, : t + 1] = ids[row, : t + 1]
            buffer.add(
                {"input_ids": text, "length": np.array([[t + 1]])},
                ids[row, t + 1 : t + 2],
                batch.rewards[row, t].numpy(),
                np.array([t == 0]),
                batch.values[row, t : t + 1],
                batch.old_logprobs[row, t : t + 1],
            )
    buffer.compute_returns_and_advantage(torch.zeros(1), np.array([True]))
