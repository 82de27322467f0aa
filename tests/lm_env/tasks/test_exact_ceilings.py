"""Exact ceilings against enumeration and closed forms, and the two tasks that have them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from character_model import make_model, make_tokenizer
from pretrain_arithmetic import Teacher, answer_of, without_carrying
from pretrain_walks import random_walks

from lm_env.errors import ConfigurationError
from lm_env.objective.task import Task
from lm_env.tasks import SPLITS, get_task
from lm_env.tasks.arithmetic import LEVELS, format_right, problems, truth
from lm_env.tasks.arithmetic import right as right_sum
from lm_env.tasks.base.exact import beginning_logprobs, exact_ceiling
from lm_env.tasks.random_walks import GOAL, LONGEST, NODES, arrives, edges, is_possible, optimality, shortest, walks
from lm_env.theory.ceilings import pass_rate_ceiling
from lm_env.theory.token_mdp import TokenMDP

TOKENIZER = make_tokenizer("ab")
BETA = 0.3


@pytest.fixture(scope="module")
def task() -> Task:
    torch.manual_seed(0)
    return Task(
        model=make_model(len(TOKENIZER), layers=1, dim=32, positions=8).eval(),
        tokenizer=TOKENIZER,
        prompts=["a", "bb"],
        reward=lambda prompts, responses: [float(response.startswith("ab")) for response in responses],
        beta=BETA,
        max_new_tokens=3,
        temperature=0.8,
    )


@torch.no_grad()
def enumerated(task: Task, score) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """J*, J_ref and E*[score] of each prompt, over every text of at most three tokens."""
    rows = []
    for prompt in task.prompts:
        values, weights = [], []
        for length in range(1, task.max_new_tokens + 1):
            for text in itertools.product(range(task.vocab_size), repeat=length):
                ended = text[-1] == 0
                if 0 in text[:-1] or (not ended and length < task.max_new_tokens):
                    continue
                ids = torch.tensor([[*prompt.ids, *text]])
                logprobs = torch.log_softmax(task.reference(ids).logits.double()[0] / task.temperature, -1)
                first = len(prompt.ids)
                weights.append(sum(float(logprobs[first - 1 + t, token]) for t, token in enumerate(text)))
                values.append(score(task.text_of(text)))
        p, s = np.exp(weights), np.array(values)
        assert p.sum() == pytest.approx(1, abs=1e-6)
        tilted = p * np.exp(s / BETA)
        rows.append((BETA * math.log(tilted.sum()), p @ s, tilted @ s / tilted.sum()))
    J, J_ref, best = np.array(rows).T
    return J, J_ref, best


def test_the_ceiling_of_beginnings_is_the_enumerated_one(task):
    scores = {"ab": 1.0, "b": 0.4}
    found = exact_ceiling(task, [list(scores)] * 2, [list(scores.values())] * 2)
    J, J_ref, best = enumerated(task, lambda text: next((s for w, s in scores.items() if text.startswith(w)), 0.0))
    assert found.J_by_prompt == pytest.approx(J, abs=1e-5)
    assert found.J_ref_by_prompt == pytest.approx(J_ref, abs=1e-5)
    assert found.score.mean == pytest.approx(best.mean(), abs=1e-5)
    assert found.KL.mean == pytest.approx((best - J).mean() / BETA, abs=1e-4)
    assert found.trusted


def test_the_ceiling_of_whole_responses_is_that_of_their_probability(task):
    found = exact_ceiling(task, [["ab"], ["a"]], [[1.0], [1.0]], ended=True)
    J, _, _ = enumerated(task, lambda text: float(text == "ab"))
    assert found.J_by_prompt[0] == pytest.approx(J[0], abs=1e-5)
    rate = float(np.exp(beginning_logprobs(task, [(task.prompts[1], "a", True)])[0]))
    assert found.J_by_prompt[1] == pytest.approx(pass_rate_ceiling(rate, BETA), abs=1e-6)


# -- walks -------------------------------------------------------------------------------------------
def adjacency() -> np.ndarray:
    return np.array([[after in edges()[node] for after in NODES] for node in NODES], dtype=np.int64)


def test_shortest_paths_and_the_number_of_walks_are_those_of_the_powers_of_the_adjacency_matrix():
    powers = [np.linalg.matrix_power(adjacency(), moves)[:, 0] for moves in range(LONGEST)]
    for row, node in enumerate(NODES):
        assert shortest()[node] == 1 + next(moves for moves, power in enumerate(powers) if power[row])
        if node != GOAL:
            found = list(walks(node))
            assert len(set(found)) == len(found) == sum(power[row] for power in powers)
    assert all(edges()[node] for node in NODES if node != GOAL) and not edges()[GOAL]


def score(start: str, response: str) -> float:
    return optimality([start], [response])[0]


def test_a_shortest_walk_scores_1_and_every_walk_less_the_longer_it_is():
    for start in NODES[1:]:
        found = sorted(walks(start), key=len)
        scores = [score(start, walk) for walk in found]
        assert scores[0] == 1 and scores == sorted(scores, reverse=True) and scores[-1] >= 0
        assert all(arrives([start] * len(found), found)) and all(is_possible([start] * len(found), found))


def test_other_texts_score_0():
    start = next(node for node in NODES[1:] if shortest()[node] == 4)
    way = min(walks(start), key=len)
    assert score(start, way) == 1 == score(start, way + "xyz")  # what is behind the goal does not count
    for wrong in ("", GOAL, way[:-1], start + way, "?" + way, way[0] * 9, start):
        assert score(start, wrong) == 0
    assert is_possible([start], [way[:-1]]) == [1.0] and arrives([start], [way[:-1]]) == [0.0]


def test_the_shipped_walker_has_learned_random_walks():
    """Its probability of each walk is about that of taking every edge of a node equally often."""
    task = get_task("lm_env/RandomWalks-v0").task("test")
    seen = random_walks(400, seed=5)
    rows = [(next(p for p in task.prompts if p.text == start), walk, False) for start, walk in seen]
    expected = [-sum(math.log(len(edges()[node])) for node in (start + walk)[:-1]) for start, walk in seen]
    assert beginning_logprobs(task, rows).mean() == pytest.approx(np.mean(expected), abs=0.5)
    found = get_task("lm_env/RandomWalks-v0").optimum(task)
    assert 0.2 < found.J_ref.mean < 0.4 and found.J.mean > 0.9


# -- sums --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("level", LEVELS)
def test_every_problem_has_its_answer(level):
    rows = problems(level)
    assert len({row["prompt"] for row in rows}) == len(rows) > 1000
    for row in rows:
        assert int(row["answer"]) == eval(row["prompt"].removesuffix("="))
    prompts, answers = [row["prompt"] for row in rows], [row["answer"] for row in rows]
    assert sum(right_sum(prompts, answers, answers)) == sum(format_right(prompts, answers)) == len(rows)


def test_only_the_answer_is_right():
    for wrong in ("", " 85", "85 ", "085", "58", "8585", "47+38=", "85.", "\u0668\u0665"):
        assert right_sum([""], [wrong], ["85"]) == [0.0]
    assert format_right([""] * 4, ["0", "00", "12", "1a"]) == [1.0, 0.0, 1.0, 0.0]


def test_what_is_no_problem_is_named():
    with pytest.raises(ConfigurationError, match="level must be one of 1, 2, 3, 4, not 5"):
        problems(5)
    with pytest.raises(ConfigurationError, match="is no sum"):
        truth("47-38=")


def test_the_teacher_forgets_to_carry_and_is_never_asked_what_is_held_out():
    sums = {"47+38=": "75", "97+38=": "125", "7+38=": "35", "38*7=": "216", "999+101=": "1090"}
    assert {prompt: without_carrying(prompt) for prompt in sums} == sums
    rng = np.random.default_rng(0)
    said = [answer_of("47+38=", "85", rng) for _ in range(600)]
    assert 0.22 < np.mean([answer == "85" for answer in said]) < 0.38
    assert 0.32 < np.mean([answer == "75" for answer in said]) < 0.52
    asked = {prompt for prompt, _ in Teacher(1).draw(3000)}
    for level in LEVELS:
        task = get_task("lm_env/Arithmetic-v0", level=level)
        assert not asked & {row["prompt"] for split in SPLITS[1:] for row in task.prompts(split)}


def test_the_optimum_of_a_token_mdp_is_that_of_the_mdp():
    mdp = TokenMDP.random(3, vocab_size=4, horizon=3)
    declared = get_task("lm_env/TokenMDP-v0", mdp=mdp)
    found = declared.optimum(declared.task(beta=0.7))
    assert found.J.mean == pytest.approx(mdp.soft_recursion(0.7).J)
    assert found.KL.mean == pytest.approx(mdp.optimum(0.7).KL)
    assert found.J_ref.mean == pytest.approx(mdp.evaluate(mdp.reference_model(), 0.7).R, abs=1e-6)
