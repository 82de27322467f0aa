"""lm_env/RandomWalks-v0: find a shortest path; the model has seen only random walks.

The graph has 21 nodes, named a to u, and edges drawn at random; node a is the goal.  The prompt is the first node of a
walk, the response its next nodes, and the score says how short the walk to the goal is: 1 for a shortest path, 0 for a
walk that uses a missing edge or does not arrive within 10 nodes.  Everything is known: the shortest paths by
breadth-first search, and the optimum of score - beta KL by enumerating every walk that arrives.

The task is that of Chen et al. 2021 (Decision Transformer, arXiv:2106.01345, section 1), as CarperAI's trlX made it a
benchmark of RLHF ("examples/randomwalks"), on a graph of its own.  The default model, walks-0.1m, has been trained on
random walks (`examples/pretrain_walks.py`).  The 20 starts are the whole task, so they are the prompts of all splits.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np

from lm_env.tasks.base import SPLITS, TextTask
from lm_env.theory.ceilings import Ceiling

__all__ = ["GOAL", "NODES", "arrives", "edges", "is_possible", "optimality", "optimum", "shortest", "task", "walks"]

NODES = string.ascii_lowercase[:21]
GOAL = "a"
LONGEST = 10
"""Nodes of a walk, the start among them."""
SHARE_OF_EDGES = 0.1


@cache
def edges() -> dict[str, tuple[str, ...]]:
    """The nodes that may follow each node: each possible edge is there with probability .1, by a fixed seed.

    Graphs are drawn until every node leads somewhere, and the goal can be reached from each within 9 nodes; no edge
    leaves the goal.
    """
    rng = np.random.default_rng(0)
    while True:
        drawn = rng.random((len(NODES), len(NODES))) < SHARE_OF_EDGES
        np.fill_diagonal(drawn, False)
        found = {NODES[i]: tuple(NODES[j] for j in np.flatnonzero(row)) for i, row in enumerate(drawn)}
        found[GOAL] = ()
        lengths = _distances(found)
        if len(lengths) == len(NODES) and max(lengths.values()) < LONGEST - 1:
            return found


def shortest() -> dict[str, int]:
    """The nodes of a shortest path from each node to the goal, both ends counted; 1 for the goal itself."""
    return {node: moves + 1 for node, moves in _distances(edges()).items()}


def _distances(graph: dict[str, tuple[str, ...]]) -> dict[str, int]:
    """The fewest moves from each node that can arrive to the goal, by breadth-first search backwards."""
    moves = {GOAL: 0}
    frontier = [GOAL]
    while frontier:
        frontier = [node for node, following in graph.items() if node not in moves and set(following) & set(frontier)]
        moves |= dict.fromkeys(frontier, max(moves.values()) + 1)
    return moves


def walk_length(text: str) -> int | None:
    """How many nodes a walk has up to the goal; None if it uses a missing edge or does not arrive within 10 nodes.

    What is written after the goal does not count.
    """
    walk = text[: text.index(GOAL) + 1] if GOAL in text else ""
    possible = all(after in edges().get(before, ()) for before, after in itertools.pairwise(walk))
    return len(walk) if walk and possible and len(walk) <= LONGEST else None


def optimality(prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """The reward: (10 - length) / (10 - shortest length) of a walk that arrives, 0 of any other; 0 to 1."""
    best = shortest()
    scores = []
    for prompt, response in zip(prompts, responses, strict=True):
        length = walk_length(prompt + response)
        scores.append(0.0 if length is None else (LONGEST - length) / (LONGEST - best[prompt]))
    return scores


def arrives(prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """1 where the walk reaches the goal along edges of the graph, within 10 nodes."""
    return [float(walk_length(p + r) is not None) for p, r in zip(prompts, responses, strict=True)]


def is_possible(prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """1 where every edge of the walk is in the graph, whether the walk arrives or not."""
    found = []
    for prompt, response in zip(prompts, responses, strict=True):
        text = prompt + response
        walk = text[: text.index(GOAL) + 1] if GOAL in text else text
        found.append(float(all(b in edges().get(a, ()) for a, b in itertools.pairwise(walk))))
    return found


def walks(start: str) -> Iterator[str]:
    """Every walk from a start that arrives within 10 nodes, without the start itself."""
    for node in edges()[start]:
        yield from _continued(node, LONGEST - 1)


def _continued(node: str, room: int) -> Iterator[str]:
    if node == GOAL:
        yield node
    elif room > 1:
        yield from (node + rest for following in edges()[node] for rest in _continued(following, room - 1))


def optimum(task: Any) -> Ceiling:
    """The optimum of score - beta KL, exactly: all walks that arrive are enumerated, and all else scores 0.

    Args:
        task: `lm_env.Task` of this environment, with any model that reads its characters.
    """
    from lm_env.tasks.base.exact import exact_ceiling

    paths = [list(walks(prompt.text)) for prompt in task.prompts]
    scores = [optimality([p.text] * len(found), found) for p, found in zip(task.prompts, paths, strict=True)]
    return exact_ceiling(task, paths, scores)


def task() -> TextTask:
    """The task; it has no options of its own."""
    return TextTask(
        id="lm_env/RandomWalks-v0",
        summary="find the shortest way through a graph; the model has seen only random walks",
        source={split: [node for node in NODES if node != GOAL] for split in SPLITS},
        reward=optimality,
        model="walks-0.1m",
        metrics={"arrives": arrives, "is_possible": is_possible},
        beta=0.02,
        max_new_tokens=LONGEST,
        budget=200_000,
        success=1.0,
        highest=1.0,
        ceiling="exact: every walk that arrives is enumerated; the largest score is 1, by breadth-first search",
        optimum=optimum,
    )
