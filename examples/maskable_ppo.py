"""sb3-contrib's MaskablePPO, unmodified, on texts of a prescribed format.

    pip install 'lm-env[contrib]'
    python examples/maskable_ppo.py

The task's `action_mask` says which tokens may come next: here, that the words of a text are all
different.  It restricts what is sampled, learned and counted in the KL, not the reference: the
optimum is the reference conditioned on the allowed texts, tilted by the reward.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecMonitor

from agents.sb3 import MaskableCausalLMPolicy, MaskableEpisodeRolloutBuffer, TextVecEnv
from lm_env import TokenMDP
from lm_env.errors import MissingDependencyError

try:
    from sb3_contrib import MaskablePPO
except ImportError as error:
    raise MissingDependencyError("this example needs sb3-contrib: pip install 'lm-env[contrib]'") from error

BETA = 0.5


def no_word_twice(prompt: np.ndarray, response: np.ndarray) -> np.ndarray:
    """bool (V,): every token but those that the text has already."""
    return ~np.isin(np.arange(4), response)


def best_distribution() -> dict[tuple[int, ...], float]:
    """The optimum's probability of each allowed text, in closed form."""
    mdp = TokenMDP.t0()
    tokens, lengths = mdp.trajectories()
    weights = np.exp(mdp.trajectory_logprobs(mdp.reference_logits) + mdp.scores() / BETA)
    texts = [tuple(row[:n].tolist()) for row, n in zip(tokens, lengths, strict=True)]
    allowed = {text: weight for text, weight in zip(texts, weights, strict=True) if len(set(text)) == len(text)}
    return {text: float(weight / sum(allowed.values())) for text, weight in allowed.items()}


def main(steps: int = 100_000, verbose: int = 1) -> float:
    """Train; the total variation between sampled texts and the optimum."""
    env = TextVecEnv.from_env("lm_env/TokenMDP-v0", num_envs=128, beta=BETA, action_mask=no_word_twice)
    agent = MaskablePPO(
        MaskableCausalLMPolicy,
        VecMonitor(env),
        n_steps=8,
        batch_size=256,
        n_epochs=4,
        gamma=1.0,
        learning_rate=LinearSchedule(0.03, 0.0, 1.0),
        rollout_buffer_class=MaskableEpisodeRolloutBuffer,
        seed=0,
        verbose=verbose,
    )
    agent.learn(steps, log_interval=20)
    best, counts = best_distribution(), dict.fromkeys(best_distribution(), 0)
    observation: Any = env.reset()
    for _ in range(200):
        masks = np.stack(env.env_method("action_masks"))
        actions, _ = agent.predict(observation, action_masks=masks)
        observation, _, dones, infos = env.step(actions)
        for slot in np.flatnonzero(dones):
            last = infos[slot]["terminal_observation"]
            counts[tuple(last["input_ids"][1 : last["length"][0]].tolist())] += 1  # after the start token
    total = sum(counts.values())
    return sum(abs(counts[text] / total - p) for text, p in best.items()) / 2


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    print(f"total variation from the optimum: {main(parser.parse_args().steps):.3f}")
