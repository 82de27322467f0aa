"""Episodes as a Minari data set: written, loaded and iterated, they are what stepping through them brings."""

from __future__ import annotations

import importlib
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch

from lm_env import TextGenerationEnv, TextGenerationVectorEnv
from lm_env.errors import CheckpointWriteError, ConfigurationError
from lm_env.generation import LocalBackend, Sampling

minari = pytest.importorskip("minari")

from lm_env.export import to_minari  # noqa: E402

ENDS = [0, *range(20, 40)]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Where Minari keeps its data sets."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


def written(task, texts=8):
    torch.manual_seed(0)
    return LocalBackend(task, 8).generate(task.prompts.sample(np.random.default_rng(0), texts), Sampling()).episodes


@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
@pytest.mark.parametrize("changes", [{}, {"flat": True}, {"cap_truncates": True}])
def test_a_data_set_is_what_stepping_brings(text_task, changes, data_format):
    if data_format == "hdf5":
        pytest.importorskip("h5py")
    env = TextGenerationEnv(**text_task(eos_token_id=ENDS, **changes))
    episodes = written(env.task)
    to_minari(env, episodes, "films/sampled-v0", data_format=data_format, algorithm_name="none")
    dataset = minari.load_dataset("films/sampled-v0")
    assert dataset.total_episodes == len(episodes) and dataset.total_steps == episodes.response_lengths.sum()
    assert dataset.observation_space == env.observation_space and dataset.action_space == env.action_space
    ends = set()
    for row, (found, response) in enumerate(zip(dataset.iterate_episodes(), episodes.responses(), strict=True)):
        np.testing.assert_array_equal(found.actions, response)
        first, _ = env.reset(options={"prompt": episodes.prompts[row]})
        observations, steps = [first], []
        for token, logprob in zip(response, episodes.logprobs[row], strict=False):
            env.publish(token, logprob)
            observation, *step = env.step(token)
            observations.append(observation)
            steps.append(step)
        rewards, terminated, truncated, infos = zip(*steps, strict=True)
        seen = found.observations if env.flat else found.observations["input_ids"]
        wanted = observations if env.flat else [o["input_ids"] for o in observations]
        np.testing.assert_array_equal(seen, wanted)
        if not env.flat:
            np.testing.assert_array_equal(found.observations["length"], [o["length"] for o in observations])
        np.testing.assert_allclose(found.rewards, rewards, atol=1e-5, rtol=0)
        np.testing.assert_array_equal(found.terminations, terminated)
        np.testing.assert_array_equal(found.truncations, truncated)
        for name in ("score", "logprob", "ref_logprob", "kl"):
            values = found.infos[name][:, 0]
            assert np.isnan(values[0])
            np.testing.assert_allclose(values[1:], [info[name] for info in infos], atol=1e-5, rtol=0)
        ends.add((bool(found.terminations[-1]), bool(found.truncations[-1]), len(response) < 6))
    assert ends >= {(True, False, True), (not env.task.cap_truncates, env.task.cap_truncates, False)}
    about = list(dataset.storage.get_episode_metadata(range(len(episodes))))
    scored = env.score(episodes)
    assert [bool(entry["ended"]) for entry in about] == scored.ended.tolist()
    assert [entry["score"] for entry in about] == pytest.approx(scored.scores.tolist())
    assert [entry["prompt"] for entry in about] == [p.text for p in episodes.prompts]
    texts = [env.task.text_of(ids) for ids in episodes.responses()]
    assert [entry["response"] for entry in about] == [text.replace("\0", "\u2400") for text in texts]


def test_the_environment_is_recovered():
    env = gymnasium.make("lm_env/Arithmetic-v0", beta=0.25)
    dataset = to_minari(env, written(env.task, 2), "sums-v0", data_format="arrow")
    recovered = dataset.recover_environment()
    assert isinstance(recovered.unwrapped, TextGenerationEnv) and recovered.unwrapped.task.kl.beta == 0.25
    with_function = gymnasium.make("lm_env/Arithmetic-v0", reward=lambda prompts, responses: [0.0] * len(prompts))
    to_minari(with_function, written(with_function.task, 2), "sums-v1", data_format="arrow")
    assert minari.load_dataset("sums-v1").spec.env_spec is None


def test_scores_that_are_known_are_not_asked_for_again(text_task):
    calls = []

    def reward(prompts, responses):
        calls.append(len(prompts))
        return [1.0] * len(prompts)

    env = TextGenerationVectorEnv(2, **text_task(reward=reward))
    episodes = written(env.task, 4)
    scored = env.score(episodes)
    assert calls == [4]
    dataset = to_minari(env, episodes, "known-v0", scored=scored, data_format="arrow")
    assert calls == [4]
    np.testing.assert_array_equal(
        [sum(found.rewards) for found in dataset.iterate_episodes()], [sum(row) for row in scored.rewards]
    )
    assert episodes.logprobs is not None
    for changed in (
        scored[np.arange(4)[::-1]],
        replace(scored, ended=~scored.ended),
        replace(scored, logprobs=scored.logprobs[:, :-1]),
    ):
        with pytest.raises(ConfigurationError, match="scored is of other episodes"):
            to_minari(env, episodes, "known-v2", scored=changed)
    with pytest.raises(ConfigurationError, match="scored holds 3 episodes, and there are 4"):
        to_minari(env, episodes, "known-v1", scored=scored[np.arange(3)])


def test_what_cannot_be_written_leaves_nothing(text_task, place, monkeypatch):
    env = TextGenerationEnv(**text_task())
    episodes = written(env.task, 2)
    for name in ("no id", "", None, "../../out-v0"):
        with pytest.raises(ConfigurationError, match="is no id of a Minari data set"):
            to_minari(env, episodes, name)
    with pytest.raises(ConfigurationError, match=r"scored is what env\.score returns, not list"):
        to_minari(env, episodes, "films-v0", scored=[1.0, 2.0])
    for wrong in ({"data_format": "tar"}, {"nonsense": 1}, {"author": 3}):
        with pytest.raises(ConfigurationError, match="Minari does not take this"):
            to_minari(env, episodes, "films-v0", **wrong)
    with pytest.raises(ConfigurationError, match="no episodes to write"):
        to_minari(env, episodes[np.arange(0)], "films-v0")

    def fails(*args, **kwargs):
        raise OSError(28, "No space left on device")

    importlib.import_module("minari.dataset._storages.arrow_storage")  # minari imports it when it is first needed
    with monkeypatch.context() as full:  # a disk that fills up after the first episodes
        full.setattr(minari.dataset._storages.arrow_storage.ArrowStorage, "update_episode_metadata", fails)
        with pytest.raises(CheckpointWriteError, match="No space left"):
            to_minari(env, episodes, "films-v0", data_format="arrow")
    assert not [path for path in place.rglob("*") if path.is_file()]
    to_minari(env, episodes, "films-v0", data_format="arrow")
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    with pytest.raises(ConfigurationError, match="there is a Minari data set 'films-v0' already"):
        to_minari(env, episodes, "films-v0", data_format="arrow")
    assert before == {path: path.stat().st_mtime_ns for path in place.rglob("*")}


def test_a_data_set_that_another_process_makes_meanwhile_is_refused_and_kept(text_task):
    env = TextGenerationEnv(**text_task())
    episodes = written(env.task, 2)

    class Meanwhile(gymnasium.Wrapper):
        @property
        def spec(self):  # it is asked for between the check of the name and the writing
            if "films/sampled-v0" not in minari.list_local_datasets():
                to_minari(env, episodes, "films/sampled-v0", data_format="arrow", author="the first")

    with pytest.raises(ConfigurationError, match="there is a Minari data set 'films/sampled-v0' already"):
        to_minari(Meanwhile(env), episodes, "films/sampled-v0", data_format="arrow", author="the second")
    found = minari.load_dataset("films/sampled-v0")
    assert found.storage.metadata["author"] == {"the first"} and found.total_episodes == 2
