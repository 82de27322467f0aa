"""Make the model of lm_env/RandomWalks-v0: a GPT-2 of 0.1M parameters that has read random walks through the graph.

    python examples/pretrain_walks.py                      # into lm_env/assets, a minute on one core
    python examples/pretrain_walks.py --out runs/walker    # elsewhere, to compare

A walk starts anywhere but at the goal, takes each edge of its node with equal probability, and ends at the goal or
after ten nodes; Chen et al. 2021 (arXiv:2106.01345) train on such walks.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from character_model import Rows, fit, make_model, make_tokenizer, save

from lm_env.tasks.random_walks import GOAL, LONGEST, NODES, edges

WALKS = 1000


def random_walks(count: int, seed: int) -> Rows:
    """(start, the nodes that follow) of each walk."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        walk = str(rng.choice([node for node in NODES if node != GOAL]))
        while walk[-1] != GOAL and len(walk) < LONGEST:
            walk += str(rng.choice(edges()[walk[-1]]))
        found.append((walk[0], walk[1:]))
    return found


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    assets = Path(__file__).parents[1] / "lm_env" / "assets"
    p.add_argument("--out", type=Path, default=assets / "walks-0.1m")
    p.add_argument("--steps", type=int, default=400)
    p.add_argument("--batch", type=int, default=100)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer(NODES)
    model = make_model(len(tokenizer), layers=2, dim=64, positions=16)
    print(f"{sum(q.numel() for q in model.parameters()):,} parameters", flush=True)
    rows, rng = random_walks(WALKS, args.seed), np.random.default_rng(args.seed)

    def draw(count: int) -> Rows:
        return [rows[i] for i in rng.integers(len(rows), size=count)]

    losses = fit(model, tokenizer, draw, steps=args.steps, batch=args.batch, rate=0.01)
    print(f"loss {np.mean(losses[-50:]):.4f} nats per token")
    save(model.eval(), tokenizer, args.out)


if __name__ == "__main__":
    main()
