"""Episodes from outside: `score` takes all that `step` can make, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_env.data.episodes import Episodes
from lm_env.envs.env import TextGenerationEnv
from lm_env.errors import ConfigurationError
from lm_env.generation import LocalBackend, Sampling
from lm_env.objective.scoring import score_episodes
from lm_env.objective.task import Task

EOS = 0


@pytest.fixture(scope="module")
def plain_task(id_task) -> Task:
    return Task(**id_task())


def sampled(task: Task, rows: int = 12, seed: int = 0) -> Episodes:
    prompts = task.prompts.sample(np.random.default_rng(seed), rows)
    return LocalBackend(task, 8).generate(prompts, Sampling(torch.Generator().manual_seed(seed))).episodes


def not_the_length(prompt: np.ndarray, response: np.ndarray) -> np.ndarray:
    allowed = np.ones(61, bool)
    allowed[len(prompt) + len(response)] = False
    return allowed


OPTIONS = {
    "plain": {},
    "two EOS": {"eos_token_id": (0, 7)},
    "only the cap": {"eos_token_id": ()},
    "truncated": {"cap_truncates": True},
    "missing EOS": {"missing_eos_score": -1.0},
    "masked": {"action_mask": not_the_length},
}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_the_backend_writes_is_taken(options, id_task):
    task = Task(**id_task(**OPTIONS[options]))
    for seed in range(3):
        episodes = sampled(task, seed=seed)
        assert score_episodes(task, episodes).rewards.shape == episodes.response_mask().shape
        score_episodes(task, replace(episodes, logprobs=None))


@pytest.mark.parametrize("stops", [("e", "oo", " f"), ("\n",)])
def test_what_the_backend_writes_to_its_stop_strings_is_taken(stops, text_task):
    task = Task(**text_task(stop_strings=stops, max_new_tokens=12))
    assert score_episodes(task, sampled(task, 24)).scores.shape == (24,)


# -- mutations ---------------------------------------------------------------------------------------


def outside(episodes, task, row, rng):
    at = int(rng.integers(0, episodes.lengths[row]))
    episodes.input_ids[row, at] = rng.choice([-1, task.vocab_size, 10**9])
    return episodes


def other_prompt(episodes, task, row, rng):
    at = int(rng.integers(0, episodes.prompt_lengths[row]))
    episodes.input_ids[row, at] = (episodes.input_ids[row, at] + 1 + rng.integers(0, 59)) % 61
    return episodes


def early_eos(episodes, task, row, rng):
    if episodes.response_lengths[row] == 1:
        return None
    at = int(rng.integers(episodes.prompt_lengths[row], episodes.lengths[row] - 1))
    episodes.input_ids[row, at] = EOS
    return episodes


def no_end(episodes, task, row, rng):
    if episodes.response_lengths[row] == task.max_new_tokens:
        return None
    episodes.input_ids[row, episodes.lengths[row] - 1] = 5
    return episodes


def shifted_prompt(episodes, task, row, rng):
    """One prompt token is counted as a token of the response."""
    if episodes.prompt_lengths[row] == 1:
        return None
    episodes.prompt_lengths[row] -= 1
    return replace(episodes, logprobs=None)


def bad_logprob(episodes, task, row, rng):
    episodes.logprobs[row, 0] = rng.choice([np.nan, -np.inf, np.inf, 0.5])
    return episodes


MUTATIONS = {
    outside: "outside the vocabulary of 61",
    other_prompt: "begins with other tokens",
    early_eos: "goes on after an EOS",
    no_end: "ends neither by an EOS",
    shifted_prompt: "prompt of another length",
    bad_logprob: "a logprob that is not a finite number",
}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(MUTATIONS)), st.integers(0, 2**32 - 1))
def test_a_mutated_episode_is_refused_and_its_row_named(plain_task, mutation, seed):
    rng = np.random.default_rng(seed)
    task = plain_task
    episodes = sampled(task, 6, seed % 5)
    row = int(rng.integers(6))
    fresh = Episodes(
        episodes.input_ids.copy(),
        episodes.prompt_lengths.copy(),
        episodes.lengths.copy(),
        episodes.prompts,
        episodes.logprobs.copy(),
    )
    changed = mutation(fresh, task, row, rng)
    if changed is None:  # this row cannot be broken in this way
        return
    with pytest.raises(ConfigurationError, match=f"episode {row} .*{MUTATIONS[mutation]}"):
        score_episodes(task, changed)


def row_of(task: Task, *ids: int, prompt: int) -> Episodes:
    named = replace(task.prompts[1], ids=np.array(ids[:prompt]))
    return Episodes(np.array([ids]), np.array([prompt]), np.array([len(ids)]), [named])


@pytest.mark.parametrize(
    ("ids", "prompt", "words"),
    [
        ([1, 2, 3, 4, 5, 6, 9, EOS], 6, "max_prompt_tokens=5"),
        ([6, 1, 2, 3, 4, 5, 6, 7, EOS], 1, "max_new_tokens=6"),
        ([6, 1, 2, 3], 1, "ends neither by an EOS or a stop string nor at 6 tokens"),
        ([6, EOS, EOS], 1, "goes on after an EOS"),
    ],
)
def test_lengths_that_no_step_reaches(ids, prompt, words, id_task):
    task = Task(**id_task())
    with pytest.raises(ConfigurationError, match=words):
        score_episodes(task, row_of(task, *ids, prompt=prompt))


def test_a_response_that_goes_on_after_a_stop_string(text_task, tokenizer):
    env = TextGenerationEnv(**text_task(stop_strings=["THE"], max_new_tokens=9))
    task = env.task
    prompt = task.prompts[0]
    letters = [tokenizer(letter)["input_ids"][0] for letter in "xTHEx"]

    def episode(*response: int) -> Episodes:
        ids = [*prompt.ids.tolist(), *response]
        return Episodes(np.array([ids]), np.array([len(prompt.ids)]), np.array([len(ids)]), [prompt])

    assert env.score(episode(*letters[:4])).ended.all()
    with pytest.raises(ConfigurationError, match="episode 0 goes on after a stop string"):
        env.score(episode(*letters, tokenizer.eos_token_id))


def test_a_masked_token_is_refused_with_and_without_logprobs(id_task):
    task = Task(**id_task(action_mask=not_the_length))
    fine = row_of(task, 6, 5, 7, EOS, prompt=1)
    score_episodes(task, fine)
    masked = row_of(task, 6, 5, 2, EOS, prompt=1)  # two tokens stand before it
    for episodes in (masked, replace(masked, logprobs=np.full((1, 3), -1.0))):
        with pytest.raises(ConfigurationError, match="episode 0 holds a token that action_mask does not allow"):
            score_episodes(task, episodes)


def test_token_ids_are_integers(id_task):
    task = Task(**id_task())
    fine = row_of(task, 6, 5, EOS, prompt=1)
    with pytest.raises(ConfigurationError, match="must be integers with 2 dimensions, not float64"):
        score_episodes(task, replace(fine, input_ids=fine.input_ids.astype(float)))


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint64, "list", "tensor"], ids=str)
def test_any_integers_are_taken_as_token_ids(kind, id_task):
    task = Task(**id_task())
    fine = row_of(task, 6, 5, EOS, prompt=1)
    convert = {"list": np.ndarray.tolist, "tensor": torch.from_numpy}.get(kind, lambda values: values.astype(kind))
    names = ("input_ids", "prompt_lengths", "lengths")
    same = replace(fine, **{name: convert(getattr(fine, name)) for name in names})
    np.testing.assert_array_equal(score_episodes(task, same).rewards, score_episodes(task, fine).rewards)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lengths": np.array([4.0])}, "lengths of episodes must be integers"),
        ({"input_ids": np.array([1, 2, 3, 0])}, "input_ids of episodes must be integers with 2 dimensions"),
        ({"input_ids": [[1, 2], [3]]}, "input_ids of episodes cannot be made a numpy array"),
        ({"logprobs": [["a", "b", "c"]]}, "logprobs of episodes must be floats"),
        ({"prompts": ["a text"]}, "must be Prompt objects, not str"),
    ],
    ids=str,
)
def test_what_is_no_array_of_its_kind_is_named(change, words, id_task):
    task = Task(**id_task())
    fine = row_of(task, 6, 5, EOS, prompt=1)
    with pytest.raises(ConfigurationError, match=words):
        score_episodes(task, replace(fine, **change))


def test_only_episodes_are_scored(id_task):
    with pytest.raises(ConfigurationError, match=r"takes lm_env.Episodes, not NoneType"):
        score_episodes(Task(**id_task()), None)
