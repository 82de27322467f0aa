"""A reward behind HTTP scores as it does here, takes no more than it says, and outlives what it is sent."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from agents import PPO
from lm_env import Causal, Span, TextGenerationVectorEnv
from lm_env.errors import CheckpointMismatchError, ConfigurationError, RewardError, RewardUnavailableError
from lm_env.objective.rewards import call_reward, is_causal, reads_prefixes, score_responses
from reward_models import (
    Affine,
    ExactMatch,
    Keyword,
    KeywordSpans,
    Length,
    LexiconSentiment,
    RemoteReward,
    RewardEnsemble,
    RewardModel,
    RewardServer,
    WeightedSum,
    load_reward,
)
from reward_models.serving import TOKEN_VARIABLE, Limits, reward_fingerprint

PROMPTS = ["a film"] * 4
RESPONSES = ["a good film", "", "bad, bad story", "the end of a good story"]
IDS = [[5, 6, 7], [0], [8, 9, 10, 0], [1, 2]]


@contextlib.contextmanager
def served(reward: Any, **options: Any) -> Iterator[RemoteReward]:
    """The reward, over HTTP."""
    remote = {name: options.pop(name) for name in ("deadline", "attempts", "columns") if name in options}
    with RewardServer(reward, **options) as server:
        found = RemoteReward(server.url, token=server.token, **{"deadline": 20.0, **remote})
        try:
            yield found
        finally:
            found.close()


@Causal
def dense(prompts, responses, response_ids, response_finished):
    return [[float(i) for i in ids] for ids in response_ids]


def own_model(text_lm, tokenizer, seed: int = 0) -> RewardModel:
    return RewardModel.from_causal_lm(text_lm(seed=seed), tokenizer, seed=seed)


REWARDS = {
    "rule": Keyword(["good"], count=True),
    "lexicon": LexiconSentiment(),
    "tokens": Length(max=3),
    "column": ExactMatch(),
    "spans": KeywordSpans(["good", "bad"]),
    "numbers per token": dense,
    "sum": WeightedSum([(1.0, KeywordSpans(["good"])), (0.5, Length()), (2.0, dense)]),
    "scaled": Affine(WeightedSum([(1.0, Keyword(["bad"])), (1.0, Length())]), 2.0, 1.0),
}


@pytest.mark.parametrize("name", REWARDS)
def test_a_served_reward_is_the_reward(name):
    reward = REWARDS[name]
    columns = {"response_ids": IDS, "answer": ["a good film", "x", "y", "z"]}
    with served(reward, limits=Limits(texts=3)) as remote:
        assert is_causal(remote) == is_causal(reward) and hasattr(remote, "causal") == hasattr(reward, "causal")
        assert reads_prefixes(remote) == reads_prefixes(reward)
        for finished in (None, np.array([True, False, True, False])):
            own = call_reward(reward, PROMPTS, RESPONSES, columns, finished, warn=False)
            parts = dict(getattr(reward, "last_parts", {}))
            theirs = call_reward(remote, PROMPTS, RESPONSES, columns, finished, warn=False)
            np.testing.assert_array_equal(theirs.at_end, own.at_end)
            assert theirs.spans == own.spans and theirs.tokens.keys() == own.tokens.keys()
            for i, values in own.tokens.items():
                np.testing.assert_array_equal(theirs.tokens[i], values)
            assert remote.last_parts.keys() == parts.keys()
            for part, values in parts.items():
                np.testing.assert_array_equal(remote.last_parts[part], values)


def test_a_served_network_is_the_network(text_lm, tokenizer):
    model = own_model(text_lm, tokenizer)
    ensemble = RewardEnsemble([model, own_model(text_lm, tokenizer, 1)], combine="lowest")
    for reward in (model, ensemble):
        with served(reward) as remote:
            own = reward(PROMPTS, RESPONSES, response_ids=IDS)
            np.testing.assert_array_equal(remote(PROMPTS, RESPONSES, response_ids=IDS), own.astype(np.float64))


def test_a_text_without_a_finite_score_is_that_text_alone():
    with served(lambda prompts, responses: [float("nan") if not text else 1.0 for text in responses]) as remote:
        with pytest.raises(RewardError, match="for sample 1"):
            score_responses(remote, PROMPTS, RESPONSES, {})
        assert remote(PROMPTS, RESPONSES) == [1.0, None, 1.0, 1.0]


def fails_at_bad(prompts, responses):
    if any("bad" in text for text in responses):
        raise ZeroDivisionError("a bad one")
    return [float(len(text)) for text in responses]


def test_a_reward_that_raises_is_an_error_there_and_here():
    with served(fails_at_bad) as remote:
        with pytest.raises(RewardError, match="ZeroDivisionError: a bad one"):
            remote(PROMPTS, RESPONSES)
        assert remote(["p"], ["ok"]).tolist() == [2.0]


class Gate:
    """A reward that waits until it is let go on, and notes its batches."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.entered, self.go = threading.Event(), threading.Event()
        self.batches: list[int] = []

    def __call__(self, prompts, responses):
        self.batches.append(len(responses))
        self.entered.set()
        assert self.go.wait(20.0)
        return self.inner(prompts, responses)


def in_threads(remote: RemoteReward, texts: list[str]) -> tuple[dict[str, Any], list[threading.Thread]]:
    found: dict[str, Any] = {}

    def work(text: str) -> None:
        try:
            found[text] = remote([""], [text]).tolist()
        except RewardError as error:
            found[text] = error

    threads = [threading.Thread(target=work, args=(text,), daemon=True) for text in texts]
    for thread in threads:
        thread.start()
    return found, threads


def wait_for(condition, seconds: float = 20.0) -> None:
    """Until it holds; nothing tells a test what another thread has in its queue."""
    never = threading.Event()
    for _ in range(int(seconds / 0.005)):
        if condition():
            return
        never.wait(0.005)
    raise AssertionError("it never came")


def test_requests_that_wait_are_scored_in_one_batch_and_a_bad_one_fails_alone():
    gate = Gate(fails_at_bad)
    with RewardServer(gate) as server:
        remote = RemoteReward(server.url, token=server.token, deadline=20.0)
        first, begun = in_threads(remote, ["first"])
        assert gate.entered.wait(20.0)
        texts = ["a", "bb", "ccc", "bad", "eeeee"]
        found, threads = in_threads(remote, texts)
        wait_for(lambda: server._scorer.waiting == 5)
        gate.go.set()
        for thread in (*begun, *threads):
            thread.join(20.0)
        assert first == {"first": [5.0]} and gate.batches[:2] == [1, 5]
        assert {text: found[text] for text in texts if text != "bad"} == {"a": [1], "bb": [2], "ccc": [3], "eeeee": [5]}
        assert isinstance(found["bad"], RewardError)
        remote.close()


def test_what_no_longer_fits_into_the_queue_is_asked_to_come_later():
    gate = Gate(fails_at_bad)
    with RewardServer(gate, limits=Limits(waiting_texts=2)) as server:
        remote = RemoteReward(server.url, token=server.token, deadline=20.0, attempts=1)
        _, begun = in_threads(remote, ["first"])
        assert gate.entered.wait(20.0)
        found, threads = in_threads(remote, ["a", "b"])
        wait_for(lambda: server._scorer.waiting == 2)
        answer = asked(server, "POST", "/v1/score", {"prompts": [""], "responses": ["c"]})
        assert answer[0] == 429 and answer[1]["retry-after"] == "1"
        gate.go.set()
        for thread in (*begun, *threads):
            thread.join(20.0)
        assert found == {"a": [1.0], "b": [1.0]}
        remote.close()


def test_a_reward_that_hangs_makes_the_server_unready_and_refuses_in_time():
    gate = Gate(fails_at_bad)
    with RewardServer(gate, limits=Limits(seconds=0.05)) as server:
        assert asked(server, "GET", "/ready")[0] == 200
        status, _, content = asked(server, "POST", "/v1/score", {"prompts": [""], "responses": ["c"]})
        assert status == 503 and "no scores after" in content["error"]
        wait_for(lambda: asked(server, "GET", "/ready")[0] == 503)
        assert asked(server, "GET", "/health")[0] == 200
        gate.go.set()
        wait_for(lambda: asked(server, "GET", "/ready")[0] == 200)


def test_texts_of_a_client_that_has_gone_are_not_scored():
    gate = Gate(fails_at_bad)
    with RewardServer(gate, token=None) as server:
        remote = RemoteReward(server.url, deadline=20.0)
        _, threads = in_threads(remote, ["first"])
        assert gate.entered.wait(20.0)
        body = json.dumps({"prompts": [""], "responses": ["gone"]}).encode()
        head = (
            f"POST /v1/score HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", server._running.port)) as connection:
            connection.sendall(head.encode() + body)
            wait_for(lambda: server._scorer.waiting == 1)
        wait_for(lambda: all(job.future.cancelled() for job in server._scorer._jobs))
        gate.go.set()
        threads[0].join(20.0)
        assert remote(["p"], ["last"]).tolist() == [4.0] and gate.batches == [1, 1]
        remote.close()


# -- what the server refuses -----------------------------------------------------------------------------
def asked(server: RewardServer, method: str, path: str, content: Any = None, **headers: str) -> tuple[int, dict, Any]:
    """(status, headers, content) of one request; `content` as JSON, or bytes as they are."""
    connection = HTTPConnection("127.0.0.1", server._running.port, timeout=20.0)
    sent = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    if server.token is not None:
        sent.setdefault("authorization", f"Bearer {server.token}")
    body = content if isinstance(content, bytes | None) else json.dumps(content).encode()
    connection.request(method, path, body, {name: value for name, value in sent.items() if value})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    found = {name.lower(): value for name, value in answer.getheaders()}
    return answer.status, found, json.loads(text) if found.get("content-type") == "application/json" else text


ONE = {"prompts": ["p"], "responses": ["r"]}


@pytest.fixture(scope="module")
def small_server() -> Iterator[RewardServer]:
    with RewardServer(Length(unit="characters"), limits=Limits(texts=2, request_bytes=300)) as server:
        yield server


@pytest.mark.parametrize(
    ("status", "content", "headers"),
    [
        (200, ONE, {}),
        (200, ONE, {"content_type": "application/json; charset=utf-8"}),
        (401, ONE, {"authorization": ""}),
        (401, ONE, {"authorization": "Bearer wrong"}),
        (401, ONE, {"authorization": "Basic dXNlcjpwYXNz"}),
        (401, ONE, {"authorization": "Bearer \xff"}),
        (400, ONE, {"host": "evil.example"}),
        (415, ONE, {"content_type": "text/plain"}),
        (415, ONE, {"content_encoding": "gzip"}),
        (400, b"{", {}),
        (400, b"[" * 290, {}),
        (400, b'{"prompts": ["p"], "responses": [NaN]}', {}),
        (400, {"prompts": ["p"]}, {}),
        (400, {"prompts": ["p"], "responses": ["r", "s"]}, {}),
        (400, {"prompts": ["p"] * 3, "responses": ["r"] * 3}, {}),
        (400, {**ONE, "columns": {"answer": [1, 2]}}, {}),
        (400, {**ONE, "columns": {"responses": ["x"]}}, {}),
        (400, {**ONE, "columns": {"response_ids": [["x"]]}}, {}),
        (400, {**ONE, "extra": 1}, {}),
        (413, {"prompts": ["p" * 400], "responses": ["r"]}, {}),
        (413, b"x" * 400, {"transfer_encoding": "chunked"}),
    ],
)
def test_the_server_says_what_it_refuses(small_server, status, content, headers):
    if headers.get("transfer_encoding"):
        content = b"190\r\n" + b"x" * 400 + b"\r\n0\r\n\r\n"
    answer = asked(small_server, "POST", "/v1/score", content, **headers)
    assert answer[0] == status, answer
    if status == 200:
        assert answer[2] == {"fingerprint": small_server.info.fingerprint, "scores": [1.0]}
    elif "host" not in headers:
        assert isinstance(answer[2]["error"], str) and small_server.token not in answer[2]["error"]


def test_paths_and_methods(small_server):
    assert asked(small_server, "GET", "/v1/reward", authorization="")[0] == 401
    assert asked(small_server, "GET", "/v1/reward")[2]["fingerprint"] == small_server.info.fingerprint
    assert asked(small_server, "GET", "/v1/score")[0] == 405
    assert asked(small_server, "GET", "/")[0] == 404
    assert asked(small_server, "GET", "/health", authorization="")[0] == 200
    assert asked(small_server, "GET", "/ready", authorization="")[2] == {"ready": True, "waiting_texts": 0}


def test_a_port_that_is_taken_is_an_error_before_anything_is_loaded(small_server):
    with pytest.raises(ConfigurationError, match="no server can listen"):
        RewardServer(lambda: 1 / 0, lazy=True, port=small_server._running.port)


def test_a_server_without_a_token():
    with RewardServer(Length(unit="words"), token=None) as server:
        reward = RemoteReward(server.url)
        assert reward(["p"], ["a b c"]).tolist() == [3.0]
        reward.close()


# -- what a reward is ------------------------------------------------------------------------------------
def test_fingerprints_tell_rewards_apart_and_know_them_again(text_lm, tokenizer):
    model = own_model(text_lm, tokenizer)
    normalized = copy.deepcopy(model)
    normalized.normalize(PROMPTS, RESPONSES)
    templated = RewardModel(model.network, tokenizer, template="Film: {prompt}")
    one, two = own_model(text_lm, tokenizer, 1), own_model(text_lm, tokenizer, 2)
    rewards = [
        model,
        normalized,
        templated,
        RewardEnsemble([model, one]),
        RewardEnsemble([model, two]),
        RewardEnsemble([model, one], combine="lowest"),
        Keyword(["good"]),
        Keyword(["bad"]),
        Keyword(["bad"], count=True),
        Affine(Keyword(["bad"])),
        Affine(Keyword(["bad"]), 2.0),
        WeightedSum([(1.0, Keyword(["bad"]))]),
        WeightedSum([(2.0, Keyword(["bad"]))]),
        fails_at_bad,
        dense,
        LexiconSentiment(),
    ]
    fingerprints = [reward_fingerprint(reward) for reward in rewards]
    assert len(set(fingerprints)) == len(rewards)
    assert [reward_fingerprint(copy.deepcopy(reward)) for reward in rewards] == fingerprints
    model(PROMPTS, RESPONSES)
    assert reward_fingerprint(model) == fingerprints[0]


def test_a_saved_model_has_the_fingerprint_of_the_live_one(text_lm, tokenizer, tmp_path):
    model = own_model(text_lm, tokenizer)
    model.save(tmp_path / "rm")
    again = [reward_fingerprint(load_reward(tmp_path / "rm", device="cpu")) for _ in range(2)]
    assert again[0] == again[1]


# -- in the package --------------------------------------------------------------------------------------
def test_the_address_is_the_name_of_a_reward(monkeypatch):
    with RewardServer(Length(unit="characters")) as server:
        monkeypatch.setenv(TOKEN_VARIABLE, server.token)
        reward = load_reward(server.url)
        assert reward(["p"], ["four"]).tolist() == [4.0]
        again = pickle.loads(pickle.dumps(reward))  # noqa: S301
        assert again(["p"], ["four"]).tolist() == [4.0] and server.token.encode() not in pickle.dumps(reward)
        own = RemoteReward(server.url, token=server.token)
        with pytest.raises(ConfigurationError, match="cannot be pickled"):
            pickle.dumps(own)
        for each in (reward, again, own):
            each.close()


def rule(prompts, responses, response_ids):
    return [0.5 + sum((t + 1) * (i + 1) for i, t in enumerate(ids)) / 1000 for ids in response_ids]


def test_training_and_stepping_are_those_with_the_reward_itself(text_task, tmp_path):
    """Bit for bit, and nothing on disk holds the token."""

    def trained(reward, folder):
        env = TextGenerationVectorEnv(2, **text_task(reward=reward))
        agent = PPO(env, rollout_episodes=4, slots=2, batch_size=4, n_epochs=1, seed=0, log_dir=str(folder))
        agent.learn(60)
        agent.save(folder / "agent")
        return [p.detach().clone() for p in agent.policy.parameters()], agent

    own, _ = trained(rule, tmp_path / "own")
    with RewardServer(rule) as server:
        remote = RemoteReward(server.url, token=server.token)
        theirs, agent = trained(remote, tmp_path / "remote")
        assert all(torch.equal(a, b) for a, b in zip(own, theirs, strict=True))
        assert server.token not in repr(agent) + repr(remote)
        for path in (tmp_path / "remote").rglob("*"):
            assert not path.is_file() or server.token.encode() not in path.read_bytes()
        remote.close()


def test_a_run_is_not_resumed_with_another_served_reward(text_task, tmp_path):
    from agents import Checkpointing

    def run(reward, resume):
        env = TextGenerationVectorEnv(2, **text_task(reward=reward))
        agent = PPO(env, rollout_episodes=4, slots=2, batch_size=4, n_epochs=1, seed=0)
        agent.learn(40, checkpoint=Checkpointing(tmp_path / "run", every=20), resume=resume)

    with served(Length(unit="characters")) as remote:
        run(remote, False)
        run(remote, True)
    with (
        served(Length(unit="words")) as remote,
        pytest.raises(CheckpointMismatchError, match="reward_settings differs"),
    ):
        run(remote, True)


def test_a_causal_reward_is_paid_at_its_tokens_over_http():
    with served(KeywordSpans(["good"])) as remote:
        scores = call_reward(remote, ["p"], ["a good film"], {"response_ids": [[1, 2, 3]]})
        assert scores.spans == {0: (Span(2, 7, 1.0),)} and scores.at_end.tolist() == [0.0]


def test_a_killed_server_is_an_error_in_words():
    with served(Length(unit="characters"), attempts=1) as remote:
        pass
    with pytest.raises(RewardUnavailableError, match="does not answer"):
        remote(["p"], ["r"])
    remote.close()


def test_the_command_serves_until_it_is_told_to_end():
    """Another process: token from the environment, a free port, SIGTERM."""
    environment = {**os.environ, TOKEN_VARIABLE: "from-the-environment", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "lm_env", "rm", "serve", "lexicon", "--port", "0"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = None
            for line in process.stdout:
                found = re.search(r"address\s+(http://127\.0\.0\.1:\d+)", line)
                url = found[1] if found else url
                if line.startswith("token"):
                    assert "from-the-environment" not in line
                    break
            assert url is not None
            remote = RemoteReward(url, token="from-the-environment", attempts=20, pause=0.2)
            np.testing.assert_array_equal(remote(PROMPTS, RESPONSES), LexiconSentiment()(PROMPTS, RESPONSES))
            remote.close()
        finally:
            process.send_signal(signal.SIGINT)
            rest = process.stdout.read() if process.stdout else ""
    assert process.returncode == 0 and "ended" in rest


def test_a_registered_environment_takes_the_address(monkeypatch):
    with RewardServer(Length(unit="characters")) as server:
        monkeypatch.setenv(TOKEN_VARIABLE, server.token)
        env = gymnasium.make("lm_env/Sentiment-v0", reward=server.url)
        assert server.url in repr(env.unwrapped)
        env.unwrapped.task.reward.close()
