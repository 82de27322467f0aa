"""Sequential Monte Carlo against enumeration: unbiased for every twist, right where plain samples see nothing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from lm_env import TokenMDP
from lm_env.envs.env import TextGenerationEnv
from lm_env.errors import ConfigurationError, RewardValueError
from lm_env.tasks.token_mdp import make
from lm_env.theory import ceiling, particle_ceiling, sample_reference_scores
from lm_env.theory.ceilings.particles import run_particles
from lm_env.theory.prefix_tree import count_states

T0 = TokenMDP.t0()


def state_of(ids, vocab_size: int) -> int:
    state = 0
    for token in ids:
        state = vocab_size * state + token + 1
    return state


def exact_twist(mdp: TokenMDP, beta: float):
    """The soft value of the text so far."""
    value = mdp.optimum(beta).value
    return lambda prompts, responses: np.array([value[state_of(ids, mdp.vocab_size)] for ids in responses])


def no_twist(prompts, responses):
    return np.zeros(len(responses))


def misleading_twist(beta: float):
    """Has nothing to do with the score, and makes some weights 11 times others, so that particles are drawn anew."""
    return lambda prompts, responses: np.array([1.2 * beta * (-1) ** (sum(ids) + len(ids)) for ids in responses])


def z_of(runs, J: float, beta: float) -> np.ndarray:
    """Each run's estimate of Z over the true one."""
    return np.exp(runs.log_z - J / beta).ravel()


@pytest.mark.parametrize("mdp", [T0, TokenMDP.random(3), TokenMDP.random(5, dense=True)], ids=["t0", "random", "dense"])
@pytest.mark.parametrize("twist", ["exact", "none", "misleading"])
def test_the_estimate_of_z_is_unbiased_for_every_twist(mdp, twist):
    beta = 1.0
    chosen = {"exact": exact_twist(mdp, beta), "none": no_twist, "misleading": misleading_twist(beta)}[twist]
    task = make(mdp=mdp).task
    runs = run_particles(task, [task.prompts[0]], chosen, beta, particles=6, runs=2500, seed=1, slots=10**6)
    z = z_of(runs, mdp.optimum(beta).J, beta)
    error = z.std(ddof=1) / np.sqrt(len(z))
    assert error < 0.06
    assert abs(z.mean() - 1) < 4 * error


def test_a_good_twist_makes_it_steadier():
    beta = 0.2
    task = make(mdp=T0).task
    spread = [
        z_of(
            run_particles(task, [task.prompts[0]], twist, beta, particles=16, runs=400, slots=10**5),
            T0.optimum(beta).J,
            beta,
        ).std()
        for twist in (exact_twist(T0, beta), no_twist)
    ]
    assert spread[0] < 0.5 * spread[1]


def test_with_many_particles_the_score_is_that_of_the_optimum():
    beta = 0.5
    task = make(mdp=T0).task
    exact = T0.optimum(beta)
    for twist in (exact_twist(T0, beta), misleading_twist(beta)):
        runs = run_particles(task, [task.prompts[0]], twist, beta, particles=4000, runs=4, slots=10**5)
        assert runs.score.mean() == pytest.approx(exact.R, abs=0.05)
        assert beta * runs.log_z.mean() == pytest.approx(exact.J, abs=0.02)


def rare_mode(horizon: int = 6) -> TokenMDP:
    """One text in a million, A A A A A A, is worth 9; all others are worth 0."""
    row = np.log([0.1, 0.5, 0.3, 0.1])
    logits = np.tile(row, (count_states(4, horizon), 1))
    return TokenMDP(("A", "B", "C", "EOS"), horizon, logits, lambda ids: 9.0 * (list(ids) == [0] * horizon), eos_id=3)


def test_where_the_mode_is_never_sampled_a_twist_finds_it():
    """Plain samples see scores of 0 alone, and the gate refuses them; particles that are led there do not fail."""
    mdp = rare_mode()
    task = make(mdp=mdp, beta=0.5).task
    J = mdp.optimum(0.5).J
    assert J > 1.0
    plain = ceiling(sample_reference_scores(task, [task.prompts[0]] * 2, 2000), 0.5)
    assert plain.J.mean == pytest.approx(0, abs=1e-9) and not plain.trusted

    def follow(prompts, responses):
        """What a critic might say that has seen such texts: worth more with each A in a row."""
        return np.array([1.1 * len(ids) * (set(ids) == {0}) for ids in responses])

    runs = run_particles(task, [task.prompts[0]], follow, 0.5, particles=64, runs=60, slots=10**5)
    z = z_of(runs, J, 0.5)
    assert abs(z.mean() - 1) < 4 * z.std(ddof=1) / np.sqrt(len(z)) < 0.8
    found = particle_ceiling(task, [task.prompts[0]] * 2, follow, particles=256, runs=16)
    assert found.J.mean == pytest.approx(J, abs=0.1)
    assert found.score.mean == pytest.approx(mdp.optimum(0.5).R, abs=0.5)
    assert found.J_ref.mean == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("cached", [True, False])
def test_texts_go_on_from_the_cache_of_those_they_were_drawn_from(make_lm, cached):
    """With a transformers model, whose cache rows are copied whenever particles are drawn anew, on enumerated texts."""
    beta, size = 0.3, 5
    model = make_lm("gpt2", vocab_size=size)

    def reward(prompts, responses, response_ids):
        return [sum((t + 1) * i for i, t in enumerate(ids)) / 10 for ids in response_ids]

    task = TextGenerationEnv(
        model=model, prompts=[[1, 2, 3], [4]], reward=reward, eos_token_id=0, max_new_tokens=3, beta=beta
    ).task
    if not cached:
        task.reference.kv_cache = False
    runs = run_particles(
        task, list(task.prompts), misleading_twist(beta), beta, particles=8, runs=600, seed=2, slots=10**6
    )
    for prompt, log_z in zip(task.prompts, runs.log_z, strict=True):
        total = 0.0
        for ids in itertools.product(range(size), repeat=3):
            response = ids[: ids.index(0) + 1] if 0 in ids else ids
            if any(ids[len(response) :]):
                continue  # texts that have ended are counted once, padded with 0
            with torch.no_grad():
                logits = task.reference(input_ids=torch.tensor([[*prompt.ids, *response]])).logits[0]
            logprobs = torch.log_softmax(logits.double(), -1)[len(prompt.ids) - 1 :]
            probability = float(sum(logprobs[t, token] for t, token in enumerate(response)).exp())
            total += probability * np.exp(reward(None, None, [response])[0] / beta)
        z = np.exp(log_z) / total
        assert abs(z.mean() - 1) < 4 * z.std(ddof=1) / np.sqrt(len(z)) < 0.2


def test_the_ceiling_of_particles_is_that_of_the_closed_form():
    """Several prompts, each with errors of its own runs."""
    beta = 0.5
    task = make(mdp=T0, beta=beta).task
    found = particle_ceiling(task, [task.prompts[0]] * 30, exact_twist(T0, beta), particles=64, runs=8)
    exact = T0.optimum(beta)
    for got, wanted in ((found.J, exact.J), (found.score, exact.R), (found.KL, exact.KL)):
        assert abs(got.mean - wanted) < 4 * got.se and got.se < 0.03, (got, wanted)
    assert found.trusted and (found.ess > 20).all()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"beta": 0.0}, ConfigurationError, "beta must be"),
        ({"particles": 0}, ConfigurationError, "particles must be"),
        ({"runs": 0}, ConfigurationError, "runs must be"),
        ({"twist": lambda p, r: np.full(len(r), np.nan)}, RewardValueError, "the twist must give"),
        ({"twist": lambda p, r: np.zeros(1)}, RewardValueError, "the twist must give"),
    ],
)
def test_what_cannot_work_is_said(options, error, words):
    task = make(mdp=T0).task
    with pytest.raises(error, match=words):
        run_particles(task, [task.prompts[0]], **{"twist": no_twist, "beta": 1.0, "particles": 8, **options})


def test_a_task_with_an_action_mask_is_refused(id_task):
    task = TextGenerationEnv(**id_task(action_mask=lambda prompt, response: np.arange(61) > 3)).task
    with pytest.raises(ConfigurationError, match="not estimated for a task with an action_mask"):
        run_particles(task, list(task.prompts), no_twist, 1.0)
    with pytest.raises(ConfigurationError, match="not estimated for a task with an action_mask"):
        sample_reference_scores(task, list(task.prompts), 4)
