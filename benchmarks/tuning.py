"""Try options of an agent on lm_env/Sentiment-v0 without looking at the openings on which results are reported.

    python benchmarks/tuning.py ppo learning_rate=2e-4 --timesteps 240000 --seed 0 --out runs/tuning

Four fifths of the training openings are learned from, and the last fifth is measured on.  Each run adds a line of
JSON to tuning.jsonl in the folder: the options, and score, KL (nats per response), J = score - beta KL and the
attained share of what can be gained, with standard errors over the openings.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from agents import AGENTS
from lm_env.tasks import sentiment
from lm_env.theory import task_ceiling

BETA = 0.1
TEXTS_PER_OPENING = 8


def option(text: str) -> tuple[str, Any]:
    """`learning_rate=2e-4` as a name and a value; what is no JSON is text."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("agent", choices=sorted(AGENTS))
    p.add_argument("options", nargs="*", type=option, help="options of the agent, NAME=VALUE")
    p.add_argument("--timesteps", type=int, default=60_000, help="tokens")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, default=Path("runs/tuning"), help="a folder for tuning.jsonl")
    args = p.parse_args()
    openings = sentiment.openings("train")
    cut = len(openings) * 4 // 5
    env = sentiment.make(prompts=openings[:cut], beta=BETA, max_prompt_tokens=40)
    ceiling = task_ceiling(env.task, openings[cut:])
    agent = AGENTS[args.agent](env, seed=args.seed, **dict(args.options))
    agent.learn(args.timesteps, progress_bar=True)
    found = agent.evaluate(openings[cut:], TEXTS_PER_OPENING, ceiling=ceiling)
    record = {
        "agent": args.agent,
        "options": dict(args.options),
        "timesteps": args.timesteps,
        "seed": args.seed,
        **found.metrics(),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "tuning.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    print(found)


if __name__ == "__main__":
    main()
