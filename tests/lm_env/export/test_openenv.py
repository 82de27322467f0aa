"""The OpenEnv environment, in process and behind WebSockets: its prompts, its rewards, its errors."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from lm_env import TextGenerationEnv
from lm_env.data.prompts import LONGEST_TEXT
from lm_env.errors import ConfigurationError, ResetNeeded, RewardError
from lm_env.generation import LocalBackend, Sampling
from lm_env.tasks import TextTask, get_task

pytest.importorskip("openenv")

from lm_env.export import openenv_app, to_openenv
from lm_env.export.openenv import TextAction

ENDS = [0, *range(40, 80)]
ROWS = [{"prompt": "a good film", "worth": 1.0}, {"prompt": "the end", "worth": 2.0}, {"prompt": "bad", "worth": 4.0}]


def by_text(prompts, responses, worth):
    return [w + len(p) / 100 + sum(map(ord, r)) / 1000 for p, r, w in zip(prompts, responses, worth, strict=True)]


@pytest.fixture(params=[{}, {"stop_strings": ["e"]}, {"missing_eos_score": -1.0}, {"cap_truncates": True}])
def env(request, text_task):
    return TextGenerationEnv(**text_task(prompts=ROWS, reward=by_text, eos_token_id=ENDS, **request.param))


def test_rewards_are_those_of_the_environment(env):
    """A whole evaluation: the prompt drawn, a text of the model, its score; as tokens and as text."""
    served = to_openenv(env)
    torch.manual_seed(0)
    for seed in range(8):
        observation = served.reset(seed=seed)
        _, info = env.reset(seed=seed)
        assert observation.prompt == info["prompt"] and not observation.done and observation.reward is None
        prompt = env.task.prompts[info["prompt_index"]]
        assert observation.prompt_ids == prompt.ids.tolist()
        episode = LocalBackend(env.task, 1).generate([prompt], Sampling()).episodes
        paid, (ids,) = env.score(episode), episode.responses()
        ended = bool(paid.ended[0])
        outcome = served.step(TextAction(token_ids=[*ids, 9, 9] if ended else ids))
        assert outcome.reward == paid.scores[0] and outcome.done and outcome.ended == ended
        assert outcome.response == env.task.text_of(ids)
        served.reset(index=info["prompt_index"])
        bare = ids[:-1] if ids[-1] in ENDS else ids
        again = served.step(TextAction(text=env.task.tokenizer.decode(bare), ended=ended))
        assert (again.reward, again.ended, again.response) == (outcome.reward, outcome.ended, outcome.response)


def test_tasks_can_be_discovered():
    served = to_openenv("lm_env/Arithmetic-v0")
    declared = get_task("lm_env/Arithmetic-v0")
    assert served.list_splits() == ["train", "validation", "test"]
    for split in served.list_splits():
        prompts = declared.prompts(split)
        assert served.num_tasks(split) == len(prompts) == len(served.list_tasks(split))
        assert served.get_task(split, 2)["prompt"] == prompts[2]["prompt"]
    assert [entry["index"] for entry in served.get_task_range("test", 3, 6)] == [3, 4, 5]
    assert served.get_task_range("test", -1)[0]["index"] == served.num_tasks("test") - 1
    with pytest.raises(IndexError, match="and no 5000000"):
        served.get_task("test", 5_000_000)
    assert served.get_metadata().name == "lm_env/Arithmetic-v0"
    observation = served.reset(split="test", index=3)
    answer = declared.prompts("test")[3]["answer"]
    outcome = served.step(TextAction(text=str(answer)))
    assert observation.max_new_tokens == declared.max_new_tokens and outcome.reward == 1.0
    assert outcome.metadata == {"is_a_number": 1.0}
    state = served.state
    assert (state.split, state.prompt_index, state.step_count) == ("test", 3, 1)


def test_errors_change_nothing(text_task):
    failing = []

    def reward(prompts, responses):
        return [1.0 / len(failing)] * len(prompts)

    served = to_openenv(TextGenerationEnv(**text_task(reward=reward)))
    with pytest.raises(ResetNeeded):
        served.step(TextAction(text="x"))
    served.reset(seed=0, episode_id="mine")
    for bad in ({"split": "test"}, {"index": 3}, {"index": -1}, {"seed": -1}, {"unknown": 1}):
        with pytest.raises(ConfigurationError):
            served.reset(**bad)
    for action in (
        TextAction(),
        TextAction(text="x", token_ids=[1]),
        TextAction(token_ids=[]),
        TextAction(token_ids=[9999]),
    ):
        with pytest.raises(ConfigurationError):
            served.step(action)
    for fields in ({"text": "x" * (LONGEST_TEXT + 1)}, {"token_ids": [1] * (LONGEST_TEXT + 1)}, {"nothing": 1}):
        with pytest.raises(ValueError, match="validation error"):
            TextAction(**fields)
    with pytest.raises(RewardError, match="ZeroDivisionError"):
        served.step(TextAction(text="x"))
    assert served.state.episode_id == "mine" and served.state.step_count == 0
    failing.append(1)
    assert served.step(TextAction(text="x")).reward == 1.0
    with pytest.raises(ResetNeeded):
        served.step(TextAction(text="x"))


def test_a_metric_that_fails_leaves_the_prompt_waiting(model_folder):
    broken = [True]

    def length(prompts, responses):
        return [1 / 0 if broken else float(len(response)) for response in responses]

    served = to_openenv(
        TextTask(
            id="me/Measured-v0",
            summary="all texts score 1",
            source=["a", "b", "c"],
            reward=lambda prompts, responses: [1.0] * len(responses),
            metrics={"characters": length},
            model=model_folder,
        )
    )
    served.reset(seed=0)
    with pytest.raises(RewardError, match="the metric characters"):
        served.step(TextAction(text="abc"))
    broken.clear()
    found = served.step(TextAction(text="abc"))
    assert found.reward == 1.0 and found.metadata == {"characters": 3.0}


def test_what_openenv_cannot_do_is_refused(text_task, id_task):
    with pytest.raises(ConfigurationError, match="OpenEnv exchanges texts"):
        to_openenv(TextGenerationEnv(**id_task()))
    with pytest.raises(ConfigurationError, match="action_mask, which OpenEnv"):
        openenv_app(TextGenerationEnv(**text_task(action_mask=lambda prompt, response: np.ones(1, dtype=bool))))
    with pytest.raises(ConfigurationError, match="sessions"):
        openenv_app(TextGenerationEnv(**text_task()), sessions=0)


@pytest.fixture
def address():
    """A server of the sums on this machine."""
    uvicorn = pytest.importorskip("uvicorn")
    place = socket.socket()
    place.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(openenv_app("lm_env/Arithmetic-v0", sessions=4), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
    thread.start()
    yield f"http://127.0.0.1:{place.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    place.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_openenvs_own_client_over_the_network(address):
    """Several sessions at a time, each with its own prompt; a client's mistake is an answer, not the end."""
    from openenv.core import GenericEnvClient

    test = get_task("lm_env/Arithmetic-v0").prompts("test")

    def session(first):
        rewards = []
        with GenericEnvClient(base_url=address).sync() as client:
            for index in range(first, first + 5):
                begun = client.reset(split="test", index=index)
                assert begun.observation["prompt"] == test[index]["prompt"] and not begun.done
                right = str(test[index]["answer"])
                rewards.append(client.step({"text": right if index % 2 else f"{right}0"}).reward)
            with pytest.raises(RuntimeError, match="call reset first"):
                client.step({"text": "1"})
            with pytest.raises(RuntimeError, match="no split 'tests'"):
                client.reset(split="tests")
            assert client.reset(seed=3).observation["prompt"] == to_openenv("lm_env/Arithmetic-v0").reset(seed=3).prompt
            assert client.state()["split"] == "train"
        return rewards

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(session, [0, 10, 20]))
    assert found == [[float(index % 2) for index in range(first, first + 5)] for first in (0, 10, 20)]
