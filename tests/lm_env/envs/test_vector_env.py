"""TextGenerationVectorEnv against Gymnasium's own SyncVectorEnv over the single environment, step by step."""

from __future__ import annotations

import copy

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_env.envs.env import TextGenerationEnv
from lm_env.envs.vector_env import TextGenerationVectorEnv
from lm_env.errors import (
    ConfigurationError,
    InvalidActionError,
    InvalidPromptError,
    PublishedActionsError,
    ResetNeeded,
    RewardError,
)

N = 4
MODES = list(AutoresetMode)


def assert_same(ours, theirs, path: str = "") -> None:
    """Equal values, layout and dtypes; floats up to the rounding of a batched forward."""
    if isinstance(theirs, dict):
        assert isinstance(ours, dict) and set(ours) == set(theirs), (path, set(ours) ^ set(theirs))
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{path}/{key}")
    elif isinstance(theirs, np.ndarray) and theirs.dtype == object:
        assert ours.dtype == object and ours.shape == theirs.shape, path
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(a, b, f"{path}[{i}]")
    elif isinstance(theirs, np.ndarray):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape, (path, ours.dtype, theirs.dtype)
        tolerance = 1e-5 if theirs.dtype.kind == "f" else 0
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance, err_msg=path)
    else:
        assert ours == theirs and type(ours) is type(theirs), path


class Both:
    """Our vector beside Gymnasium's, with the same slots."""

    def __init__(self, mode: AutoresetMode, flat: bool = False, n: int = N, **options) -> None:
        self.n = n
        self.ours = TextGenerationVectorEnv(n, autoreset_mode=mode, flat=flat, **options)
        self.theirs = SyncVectorEnv([lambda: TextGenerationEnv(flat=flat, **options)] * n, autoreset_mode=mode)

    def reset(self, **kwargs) -> None:
        ours, theirs = self.ours.reset(**copy.deepcopy(kwargs)), self.theirs.reset(**copy.deepcopy(kwargs))
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b)
        assert ours[0] in self.ours.observation_space

    def step(self, actions: np.ndarray) -> np.ndarray:
        """Which slots ended."""
        ours, theirs = self.ours.step(actions), self.theirs.step(actions)
        for name, a, b in zip(("observation", "reward", "terminated", "truncated", "info"), ours, theirs, strict=True):
            assert_same(a, b, name)
        assert ours[0] in self.ours.observation_space
        return ours[2] | ours[3]


@pytest.mark.parametrize("flat", [False, True], ids=["dict", "flat"])
@pytest.mark.parametrize("cap_truncates", [False, True], ids=["terminated", "truncated"])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_step_by_step_as_gymnasiums_own_vector(mode, cap_truncates, flat, id_task):
    both = Both(mode, flat, **id_task(cap_truncates=cap_truncates, max_new_tokens=4))
    rng = np.random.default_rng(0)
    both.reset(seed=11)
    seen = set()
    for _ in range(20):
        actions = np.where(rng.random(N) < 0.25, 0, rng.integers(0, 61, N))
        ended = both.step(actions)
        seen.add(int(ended.sum()))
        if mode is AutoresetMode.DISABLED and ended.any():
            both.reset(options={"reset_mask": ended})
    assert {0, 1} < seen  # steps that ended no slot, one, and several


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(MODES), st.integers(1, 3), st.integers(0, 2**32 - 1), st.data())
def test_any_schedule_of_resets_and_steps_is_gymnasiums(id_task, mode, n, seed, data):
    both = Both(mode, n=n, **id_task("table", max_new_tokens=3))
    both.reset(seed=seed)
    for _ in range(data.draw(st.integers(1, 14))):
        ended = both.step(np.array(data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))))
        mask = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
        if mode is AutoresetMode.DISABLED:
            mask |= ended
        if mask.any():
            seeds = data.draw(
                st.none() | st.integers(0, 99) | st.lists(st.integers(0, 99) | st.none(), min_size=n, max_size=n)
            )
            both.reset(seed=seeds, options={"reset_mask": mask})
        elif data.draw(st.booleans()):
            both.reset(seed=data.draw(st.none() | st.integers(0, 99)))


def test_text_and_columns_and_stop_strings_too(text_task):
    both = Both(AutoresetMode.SAME_STEP, **text_task(stop_strings=["e"], missing_eos_score=-1.0, max_new_tokens=5))
    both.reset(seed=[5, 9, 2, 7])
    rng = np.random.default_rng(3)
    assert sum(both.step(rng.integers(0, 290, N)).sum() for _ in range(15)) > 6


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_slot_i_is_the_single_environment_seeded_with_seed_plus_i(mode, id_task):
    options = id_task(prompts=[[i] for i in range(1, 50)], max_new_tokens=3)
    vector = TextGenerationVectorEnv(N, autoreset_mode=mode, **options)
    singles = [TextGenerationEnv(**options) for _ in range(N)]
    observations, info = vector.reset(seed=40)
    starts = [env.reset(seed=40 + i) for i, env in enumerate(singles)]
    assert info["prompt_index"].tolist() == [one["prompt_index"] for _, one in starts]
    assert len(set(info["prompt_index"].tolist())) > 1
    _, again = vector.reset()  # the streams go on
    assert again["prompt_index"].tolist() == [env.reset()[1]["prompt_index"] for env in singles]
    actions = np.array([5, 0, 7, 8])
    observations, rewards, terminated, *_ = vector.step(actions)
    for i, env in enumerate(singles):
        observation, reward, ended, *_ = env.step(int(actions[i]))
        assert rewards[i] == pytest.approx(reward, abs=1e-5) and terminated[i] == ended
        if not ended:
            np.testing.assert_array_equal(observations["input_ids"][i], observation["input_ids"])


@pytest.mark.parametrize(
    "seed", [3, np.int64(3), [3, 4, 5, 6], (3, 4, 5, 6), np.array([3, 4, 5, 6])], ids=lambda value: type(value).__name__
)
def test_seeds_of_every_kind(seed, id_task):
    options = id_task(prompts=[[i] for i in range(1, 50)])
    expected = [TextGenerationEnv(**options).reset(seed=3 + i)[1]["prompt_index"] for i in range(N)]
    vector = TextGenerationVectorEnv(N, **options)
    assert vector.reset(seed=seed)[1]["prompt_index"].tolist() == expected


def test_another_number_of_seeds_is_refused(id_task):
    vector = TextGenerationVectorEnv(N, **id_task())
    with pytest.raises(ConfigurationError, match="3 seeds for 4"):
        vector.reset(seed=[1, 2, 3])


# --- autoreset, by hand ----------------------------------------------------------------------------------------------


def test_next_step_ignores_the_action_of_the_step_that_resets(id_task):
    vector = TextGenerationVectorEnv(2, **id_task())
    assert vector.metadata["autoreset_mode"] is vector.autoreset_mode is AutoresetMode.NEXT_STEP
    vector.reset(seed=0)
    before = vector.step(np.array([0, 5]))[0]
    observation, rewards, terminated, _, info = vector.step(np.array([-99, 6]))
    assert rewards[0] == 0 and not terminated.any() and info["_prompt"].tolist() == [True, False]
    assert info["_kl"].tolist() == [False, True] and observation["length"][1] == before["length"][1] + 1
    assert vector.mdp.response(0) == []


def test_same_step_shows_the_last_text_and_the_new_one(id_task):
    vector = TextGenerationVectorEnv(2, autoreset_mode="SameStep", **id_task())
    start, _ = vector.reset(seed=0)
    vector.step(np.array([5, 6]))
    observation, rewards, terminated, _, info = vector.step(np.array([0, 7]))
    assert terminated.tolist() == [True, False] and info["_final_obs"].tolist() == [True, False]
    last = info["final_obs"][0]
    p = start["length"][0, 0]
    assert last["length"].tolist() == [p + 2] and last["input_ids"][p : p + 2].tolist() == [5, 0]
    assert info["final_obs"][1] is None and vector.mdp.response(0) == []
    assert info["final_info"]["score"][0] > 0 and info["_score"].tolist() == [False, True]
    np.testing.assert_allclose(
        rewards[0], info["final_info"]["score"][0] - 0.3 * info["final_info"]["kl"][0], atol=1e-12
    )
    observation["input_ids"][:] = 0  # nobody else's
    assert last["input_ids"][p] == 5 and vector.mdp.input_ids[0, 0] != 0


def test_disabled_waits_for_the_reset(id_task):
    vector = TextGenerationVectorEnv(2, autoreset_mode=AutoresetMode.DISABLED, **id_task())
    vector.reset(seed=0)
    vector.step(np.array([0, 5]))
    before = vector.mdp.input_ids.copy()
    with pytest.raises(ResetNeeded, match="slot 0"):
        vector.step(np.array([5, 5]))
    np.testing.assert_array_equal(vector.mdp.input_ids, before)
    vector.reset(options={"reset_mask": np.array([True, False])})
    assert vector.mdp.response(1) == [5]
    vector.step(np.array([5, 5]))


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_a_step_needs_a_reset_first(mode, id_task):
    vector = TextGenerationVectorEnv(2, autoreset_mode=mode, **id_task())
    with pytest.raises(ResetNeeded):
        vector.step(np.array([5, 5]))
    vector.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(ResetNeeded, match="slot 1"):
        vector.step(np.array([5, 5]))


@pytest.mark.parametrize(
    "mask", [np.zeros(N, bool), np.ones(N - 1, bool), np.ones(N), [1, 0, 0, 0], np.ones((N, 1), bool), True, "all"]
)
def test_a_reset_mask_that_is_none_changes_nothing(mask, id_task):
    vector = TextGenerationVectorEnv(N, **id_task())
    vector.reset(seed=0)
    before = vector.mdp.input_ids.copy()
    with pytest.raises(ConfigurationError, match="reset_mask"):
        vector.reset(options={"reset_mask": mask})
    np.testing.assert_array_equal(vector.mdp.input_ids, before)


def test_the_callers_options_stay_his(id_task):
    options = {"reset_mask": np.array([True, False])}
    TextGenerationVectorEnv(2, **id_task()).reset(options=options)
    assert options["reset_mask"].tolist() == [True, False]


@pytest.mark.parametrize(
    "bad", [{"autoreset_mode": "sometimes"}, {"autoreset_mode": None}, {"num_envs": 0}, {"num_envs": 1.5}]
)
def test_what_makes_no_vector(bad, id_task):
    with pytest.raises(ConfigurationError, match=r"autoreset_mode|number of environments"):
        TextGenerationVectorEnv(**{"num_envs": 2, **bad}, **id_task())


# --- prompts, actions, publishing ------------------------------------------------------------------------------------


def test_one_prompt_for_all_slots_that_are_reset(id_task):
    vector = TextGenerationVectorEnv(3, **id_task())
    vector.reset(seed=0)
    vector.step(np.array([5, 6, 7]))
    mask = np.array([True, False, True])
    _, info = vector.reset(options={"reset_mask": mask, "prompt": [50, 51]})
    assert vector.mdp.input_ids[[0, 2], :2].tolist() == [[50, 51]] * 2 and vector.mdp.response(1) == [6]
    assert info["prompt_index"].tolist() == [-1, 0, -1] and info["_prompt_index"].tolist() == mask.tolist()
    with pytest.raises(InvalidPromptError):
        vector.reset(options={"prompt": [61]})
    assert vector.mdp.response(1) == [6]


@pytest.mark.parametrize(
    "actions",
    [
        [5],
        [5, 6, 7],
        5,
        [[5], [6]],
        np.array([[5, 6]]),
        [5.0, 6.0],
        [5, 3.7],
        [5, np.nan],
        [True, False],
        [5, None],
        ["5", "6"],
        [5, [6]],
        [-1, 5],
        [5, 61],
        None,
        [],
        torch.tensor([5.0, 6.0]),
        np.array([5, 6], object),
        [5, 2**70],
    ],
    ids=lambda value: type(value).__name__,
)
def test_actions_that_are_none_are_refused_and_change_nothing(actions, id_task):
    vector = TextGenerationVectorEnv(2, **id_task())
    vector.reset(seed=0)
    before = (vector.mdp.input_ids.copy(), vector.mdp.lengths.copy())
    with pytest.raises(InvalidActionError):
        vector.step(actions)
    np.testing.assert_array_equal(vector.mdp.input_ids, before[0])
    np.testing.assert_array_equal(vector.mdp.lengths, before[1])
    vector.step([5, 6])


@pytest.mark.parametrize(
    "actions", [(5, 6), np.array([5, 6], np.uint8), torch.tensor([5, 6])], ids=lambda value: type(value).__name__
)
def test_whole_numbers_in_every_container_are_actions(actions, id_task):
    vector = TextGenerationVectorEnv(2, **id_task())
    vector.reset(seed=0)
    vector.step(actions)
    assert vector.mdp.response(0) == [5] and vector.mdp.response(1) == [6]


def test_a_reward_that_fails_for_one_slot_moves_none(id_task):
    answers = [OSError("no connection"), [1.0]]

    def reward(prompts, responses):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    vector = TextGenerationVectorEnv(2, **id_task(reward=reward))
    quiet = TextGenerationVectorEnv(2, **id_task(reward=lambda prompts, responses: [1.0]))
    for env in (vector, quiet):
        env.reset(seed=0)
        env.step(np.array([5, 6]))
    before = vector.mdp.input_ids.copy()
    with pytest.raises(RewardError):
        vector.step(np.array([7, 0]))
    np.testing.assert_array_equal(vector.mdp.input_ids, before)
    a, b = vector.step(np.array([7, 0])), quiet.step(np.array([7, 0]))
    np.testing.assert_allclose(a[1], b[1], atol=1e-5)
    assert a[2].tolist() == [False, True]


def test_some_slots_publish_and_the_rest_ask_the_model(id_task):
    vector = TextGenerationVectorEnv(3, **id_task())
    vector.reset(seed=0)
    vector.publish(np.array([6]), np.array([-1.5]), slots=np.array([1]))
    info = vector.step(np.array([5, 6, 7]))[4]
    assert info["logprob_source"].tolist() == ["model", "published", "model"] and info["logprob"][1] == -1.5
    vector.publish(np.array([5, 6, 7]), np.array([-1.0, -2.0, -3.0]))
    with pytest.raises(PublishedActionsError, match="slot 2"):
        vector.step(np.array([5, 6, 8]))
    info = vector.step(np.array([5, 6, 7]))[4]
    assert set(info["logprob_source"]) == {"model"}


def test_what_a_resetting_slot_published_is_dropped(id_task):
    """An agent publishes for all slots, and one of them only resets."""
    vector = TextGenerationVectorEnv(2, **id_task())
    vector.reset(seed=0)
    vector.step(np.array([0, 5]))
    vector.publish(np.array([8, 9]), np.array([-1.0, -2.0]))
    info = vector.step(np.array([8, 9]))[4]
    assert info["logprob"].tolist() == [0.0, -2.0]
    info = vector.step(np.array([10, 11]))[4]
    assert set(info["logprob_source"]) == {"model"}


def test_masks_of_all_slots(id_task):
    vector = TextGenerationVectorEnv(3, **id_task(action_mask=lambda prompt, response: np.arange(61) != len(response)))
    vector.reset(seed=0)
    vector.step(np.array([5, 6, 7]))
    masks = vector.action_masks()
    assert masks.shape == (3, 61) and (masks.sum(1) == 60).all() and not masks[:, 1].any()
    with pytest.raises(InvalidActionError, match=r"slot 2 is masked"):
        vector.step(np.array([5, 6, 1]))


def test_rendering_all_slots(text_task, capsys):
    vector = TextGenerationVectorEnv(2, render_mode="ansi", **text_task())
    vector.reset(options={"prompt": "the end"})
    frames = vector.render()
    assert len(frames) == 2 and all("the end" in frame for frame in frames) and capsys.readouterr().out == ""
    human = TextGenerationVectorEnv(2, render_mode="human", **text_task(max_new_tokens=1))
    human.reset(options={"prompt": "the end"})
    human.step(np.array([9, 9]))
    assert capsys.readouterr().out.count("the end") == 2
    assert human.render() is None and capsys.readouterr().out.count("the end") == 2


def test_before_a_reset_there_is_nothing_to_render(id_task):
    vector = TextGenerationVectorEnv(2, render_mode="ansi", **id_task())
    with pytest.raises(ResetNeeded, match="slot 0"):
        vector.render()
    vector.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(ResetNeeded, match="slot 1"):
        vector.render()


def test_without_a_mode_nothing_is_rendered(id_task):
    vector = TextGenerationVectorEnv(2, **id_task())
    with pytest.warns(UserWarning, match="render_mode"):
        assert vector.render() is None


# --- by id -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize("name", ["lm_env/Sentiment-v0", "lm_env/TokenMDP-v0"])
def test_gymnasium_makes_the_native_vector(name, mode, model_folder):
    arguments = {"model": model_folder, "prompts": ["a good film", "the end"]} if "Sentiment" in name else {}
    vector = gymnasium.make_vec(name, num_envs=3, autoreset_mode=mode, flat=True, **arguments)
    assert isinstance(vector.unwrapped, TextGenerationVectorEnv)
    assert vector.num_envs == 3 and vector.metadata["autoreset_mode"] is mode and vector.spec.id == name
    observations, _ = vector.reset(seed=0)
    assert observations in vector.observation_space
    vector.action_space.seed(0)
    observations, rewards, *_ = vector.step(vector.action_space.sample())
    assert observations in vector.observation_space and rewards.shape == (3,) and np.isfinite(rewards).all()
    vector.close()


@pytest.mark.parametrize("name", ["lm_env/Sentiment-v0", "lm_env/TokenMDP-v0"])
def test_the_native_vector_is_gymnasiums_vector_of_the_same_id(name, model_folder):
    arguments = {"model": model_folder, "prompts": ["a good film", "the end"]} if "Sentiment" in name else {}
    native = gymnasium.make_vec(name, num_envs=2, **arguments)
    sync = gymnasium.make_vec(name, num_envs=2, vectorization_mode="sync", **arguments)
    assert_same(native.reset(seed=1)[0], sync.reset(seed=1)[0])
    for actions in ([1, 2], [0, 1], [2, 2], [1, 1]):
        for a, b in zip(native.step(np.array(actions)), sync.step(np.array(actions)), strict=True):
            assert_same(a, b)
