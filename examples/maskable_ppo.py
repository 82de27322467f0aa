"""sb3-contrib's MaskablePPO, unmodified, on texts of a prescribed format.

    pip install 'lm-env[contrib]'
    python examples/maskable_ppo.py

The task's `action_mask` says which tokens may come next: here, only words that are not yet in the text.  It
restricts the policy (in sampling, in the update and in the KL), but not the reference.  The optimum is then
proportional to reference probability times exp(score / beta) on the allowed texts, and 0 elsewhere.
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
    """bool (V,): True for every token that is not yet in the response."""
    return ~np.isin(np.arange(4), response)


def best_distribution() -> dict[tuple[int, ...], float]:
    """The probability of each allowed text under the optimal policy, in closed form."""
    mdp = TokenMDP.t0()
    tokens, lengths = mdp.trajectories()
    weights = np.exp(mdp.trajectory_logprobs(mdp.reference_logits) + mdp.scores() / BETA)
    texts = [tuple(row[:n].tolist()) for row, n in zip(tokens, lengths, strict=True)]
    allowed = {text: weight for text, weight in zip(texts, weights, strict=True) if len(set(text)) == len(text)}
    return {text: float(weight / sum(allowed.values())) for text, weight in allowed.items()}


def main(steps: int = 100_000, verbose: int = 1) -> float:
    """Train for `steps` tokens; return the total variation distance between sampled texts and the optimum."""
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
    return distance_to_optimum(agent, env)


def distance_to_optimum(agent: MaskablePPO, env: TextVecEnv) -> float:
    """The total variation distance between texts sampled in 200 steps per slot and the optimum."""
    best = best_distribution()
    counts = dict.fromkeys(best, 0)
    observation: Any = env.reset()
    for _ in range(200):
        masks = np.stack(env.env_method("action_masks"))
        actions, _ = agent.predict(observation, action_masks=masks)
        observation, _, dones, infos = env.step(actions)
        for slot in np.flatnonzero(dones):
            last = infos[slot]["terminal_observation"]
            response = last["input_ids"][1 : last["length"][0]]  # The prompt is one token.
            counts[tuple(response.tolist())] += 1
    total = sum(counts.values())
    return sum(abs(counts[text] / total - p) for text, p in best.items()) / 2


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    print(f"total variation distance to the optimum: {main(parser.parse_args().steps):.3f}")
