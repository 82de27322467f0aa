"""Training for long with a reward function that fails at random; see faults.py."""

from __future__ import annotations

import logging
import math
import random
import sys
import time
from typing import Any

import gymnasium
import torch

from agents import PPO

DEADLINE_S = 0.5
EPISODES = 16


class Moody:
    """The embedded reward, which in a fifth of its calls raises, hangs, returns NaN or the wrong number of scores."""

    def __init__(self, reward: Any, seed: int) -> None:
        self.reward = reward
        self.rng = random.Random(seed)
        self.moods = dict.fromkeys(("fine", "raises", "hangs", "NaN", "wrong count"), 0)

    def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
        mood = self.rng.choices(list(self.moods), [80, 6, 2, 6, 6])[0]
        self.moods[mood] += 1
        if mood == "raises":
            raise OSError("the service is away")
        if mood == "hangs":
            time.sleep(3 * DEADLINE_S)
        scores = [float(score) for score in self.reward(prompts=prompts, responses=responses)]
        if mood == "NaN":
            scores[self.rng.randrange(len(scores))] = math.nan
        return [*scores, 0.0] if mood == "wrong count" else scores


def resident_mb() -> float:
    """Memory of this process, MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6


def failing_rewards(minutes: float) -> list[tuple[str, str, str]]:
    """Train for so many minutes; memory is measured from a tenth of the time on."""
    logging.getLogger("lm_env.objective.patience").setLevel(logging.ERROR)
    env = gymnasium.make("lm_env/Sentiment-v0", max_new_tokens=12)
    task = env.unwrapped.task  # type: ignore[attr-defined]
    moody = Moody(task.reward, seed=0)
    task.reward = moody
    agent = PPO(
        env,
        rollout_episodes=EPISODES,
        slots=EPISODES,
        batch_size=8,
        n_epochs=1,
        learning_rate=1e-5,
        lr_schedule="constant",
        on_reward_error="skip",
        reward_deadline=DEADLINE_S,
    )
    started = time.monotonic()
    learned = skipped = errors = 0.0
    memory: list[float] = []

    def watch(local: dict[str, Any], _: dict[str, Any]) -> bool:
        nonlocal learned, skipped, errors
        learned += len(local["rollout"])
        skipped += agent.logger.name_to_value["rollout/skipped"]
        errors += agent.logger.name_to_value["rollout/reward_errors"]
        elapsed = time.monotonic() - started
        if elapsed > 6 * minutes:
            memory.append(resident_mb())
        if agent.num_rollouts % 200 == 0:
            print(f"{elapsed / 60:.1f} min, {agent.num_rollouts} rollouts, {resident_mb():.0f} MB", file=sys.stderr)
        return elapsed < 60 * minutes

    agent.learn(10**12, watch)
    finite = all(bool(torch.isfinite(p).all()) for p in agent.policy.parameters())
    bad = sum(count for mood, count in moody.moods.items() if mood != "fine")
    adds_up = learned + skipped == EPISODES * agent.num_rollouts and errors == bad
    growth = max(memory) / memory[0] - 1
    calls = ", ".join(f"{count} {mood}" for mood, count in moody.moods.items())
    outcome = (
        f"{agent.num_rollouts} rollouts, {learned:.0f} episodes learned and {skipped:.0f} skipped; calls: {calls};"
        f" the counters {'add up' if adds_up else 'DO NOT ADD UP'}, the policy is"
        f" {'finite' if finite else 'NOT FINITE'},"
        f" memory at most {growth:+.1%} above that after the first {6 * minutes:.0f} s"
    )
    return [("a reward that raises, hangs, returns NaN or the wrong count", f"{minutes:g} minutes", outcome)]
