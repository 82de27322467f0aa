"""`RemoteReward` against a server on the loopback interface that does whatever a server can do wrong."""

from __future__ import annotations

import gzip
import json
import logging
import socket
import threading
import traceback

import numpy as np
import pytest
from scripted_server import INFO, Received, ScriptedServer

from lm_env.errors import (
    ConfigurationError,
    RewardError,
    RewardProtocolError,
    RewardTimeoutError,
    RewardUnavailableError,
)
from lm_env.objective.patience import SkippingReward
from lm_env.objective.rewards import score_responses
from reward_models import RemoteReward

TOKEN = "s3cret-T0ken-9f1c"
TEXTS = (["p", "p"], ["a", "b"])


def fine(request: Received) -> None:
    request.scores([float(ord(text[0])) for text in request.content["responses"]])


def remote(server: ScriptedServer, **options) -> RemoteReward:
    return RemoteReward(server.url, **{"token": TOKEN, "pause": 0.001, "deadline": 20.0, **options})


def test_scores_come_back_in_order_and_the_token_goes_along():
    with ScriptedServer([fine]) as server:
        reward = remote(server)
        assert reward(*TEXTS).tolist() == [97.0, 98.0]
        assert server.requests[0].headers["authorization"] == f"Bearer {TOKEN}"
        assert server.requests[0].headers["accept-encoding"] == "identity"
        reward.close()


def hangs(request: Received) -> None:
    request.hang()


def trickles_its_headers(request: Received) -> None:
    for byte in b"HTTP/1.1 200 OK\r\nx-padding: " + b"." * 100_000:
        if request.stopped.wait(0.01):
            return
        request.connection.sendall(bytes([byte]))


def trickles_its_body(request: Received) -> None:
    request.reply(content_length="100000")
    while not request.stopped.wait(0.01):
        request.connection.sendall(b" ")


@pytest.mark.parametrize("behavior", [hangs, trickles_its_headers, trickles_its_body])
def test_the_deadline_holds_for_all_of_a_call(behavior):
    with ScriptedServer([behavior]) as server:
        reward = remote(server, deadline=5.0)
        reward._calls.deadline = 0.15  # that of the call alone, so that a slow machine has time to connect
        with pytest.raises(RewardTimeoutError, match=r"has not answered within 0\.15 s"):
            reward(*TEXTS)
        reward.close()


def closes_at_once(request: Received) -> None:
    request.connection.shutdown(socket.SHUT_RDWR)


def closes_in_the_middle(request: Received) -> None:
    request.reply(body=b'{"fingerprint": "scr', content_length="500")
    request.connection.shutdown(socket.SHUT_RDWR)


def is_at_fault(request: Received) -> None:
    request.reply(500, {"error": "it broke"})


def has_too_much_to_do(request: Received) -> None:
    request.reply(429, {"error": "later"}, retry_after="0")


@pytest.mark.parametrize("behavior", [closes_at_once, closes_in_the_middle, is_at_fault, has_too_much_to_do])
def test_a_server_that_may_answer_another_time_is_asked_another_time(behavior):
    with ScriptedServer([behavior, behavior, fine]) as server:
        reward = remote(server)
        assert reward(*TEXTS).tolist() == [97.0, 98.0]
        assert len(server.requests) == 3
        reward.close()


@pytest.mark.parametrize("behavior", [closes_at_once, closes_in_the_middle, is_at_fault, has_too_much_to_do])
def test_but_not_more_often_than_allowed(behavior):
    with ScriptedServer([behavior]) as server:
        reward = remote(server, attempts=3)
        with pytest.raises(RewardUnavailableError, match="attempt 3 of 3"):
            reward(*TEXTS)
        assert len(server.requests) == 3
        reward.close()


def test_a_pause_beyond_the_deadline_is_not_begun():
    with ScriptedServer([lambda request: request.reply(429, retry_after="3600")]) as server:
        reward = remote(server)
        with pytest.raises(RewardUnavailableError, match="after the deadline"):
            reward(*TEXTS)
        assert len(server.requests) == 1
        reward.close()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 415, 422])
def test_what_would_be_refused_again_is_not_asked_again(status):
    with ScriptedServer([lambda request: request.reply(status, {"error": f"no, {TOKEN}"})]) as server:
        reward = remote(server)
        with pytest.raises(RewardError) as raised:
            reward(*TEXTS)
        assert len(server.requests) == 1
        assert TOKEN not in str(raised.value) and str(status if status != 422 else "no, ***") in str(raised.value)
        reward.close()


def test_a_redirect_is_not_followed_and_the_token_stays():
    with ScriptedServer([fine]) as thief:
        there = f"{thief.url.replace('127.0.0.1', 'localhost')}/v1/score"
        for status in (301, 302, 303, 307, 308):
            with ScriptedServer([lambda request, s=status: request.reply(s, location=there)]) as server:
                reward = remote(server)
                with pytest.raises(RewardUnavailableError, match=r"redirects to .*localhost"):
                    reward(*TEXTS)
                reward.close()
        assert thief.requests == []


def endless(request: Received) -> None:
    request.reply(transfer_encoding="chunked")
    chunk = b"%x\r\n%b\r\n" % (2**16, b" " * 2**16)
    while not request.stopped.is_set():
        request.connection.sendall(chunk)


BAD_ANSWERS = {
    "no JSON": lambda r: r.reply(body=b"<html>502 from a proxy</html>"),
    "no object": lambda r: r.reply(body=[1.0, 2.0]),
    "no UTF-8": lambda r: r.reply(body=b'{"fingerprint": "\xff"}'),
    "too few scores": lambda r: r.scores([1.0]),
    "too many scores": lambda r: r.scores([1.0, 2.0, 3.0]),
    "NaN": lambda r: r.reply(body=b'{"fingerprint": "scripted-1", "scores": [NaN, 1.0]}'),
    "infinity": lambda r: r.reply(body=b'{"fingerprint": "scripted-1", "scores": [-Infinity, 1.0]}'),
    "1e999": lambda r: r.reply(body=b'{"fingerprint": "scripted-1", "scores": [1e999, 1.0]}'),
    "a number of 5000 digits": lambda r: r.reply(body=b'{"fingerprint": "s", "scores": [%b, 1]}' % (b"9" * 5000)),
    "true": lambda r: r.scores([True, 1.0]),
    "text": lambda r: r.scores(["1.0", 1.0]),
    "deep": lambda r: r.reply(body=b"[" * 500_000),
    "deep objects": lambda r: r.reply(body=b'{"a":' * 200_000),
    "compressed": lambda r: r.reply(body=gzip.compress(b" " * 10**8), content_encoding="gzip"),
    "announced as too large": lambda r: r.reply(content_length=str(10**12)),
    "without end": endless,
}


@pytest.mark.parametrize("kind", BAD_ANSWERS)
def test_an_answer_that_is_none_is_an_error_at_once(kind):
    with ScriptedServer([BAD_ANSWERS[kind]]) as server:
        reward = remote(server, max_answer_bytes=2**20)
        with pytest.raises(RewardProtocolError):
            reward(*TEXTS)
        assert len(server.requests) == 1
        reward.close()


def test_a_refusal_without_end_is_a_refusal():
    def refuse(request: Received) -> None:
        request.reply(404, transfer_encoding="chunked")
        while not request.stopped.is_set():
            request.connection.sendall(b"%x\r\n%b\r\n" % (2**16, b"x" * 2**16))

    with ScriptedServer([refuse]) as server:
        reward = remote(server)
        with pytest.raises(RewardUnavailableError, match="status 404"):
            reward(*TEXTS)
        reward.close()


def test_a_text_that_the_server_could_not_score_is_that_text_alone():
    with ScriptedServer([lambda request: request.scores([1.0, None])]) as server:
        reward = remote(server)
        with pytest.raises(RewardError, match="for sample 1"):
            score_responses(reward, *TEXTS, {})
        skipped = SkippingReward(reward)(*TEXTS)
        assert skipped.failed == {1} and skipped.at_end.tolist() == [1.0, 0.0]
        reward.close()


def test_a_server_that_is_gone_costs_a_skipping_agent_one_call():
    with ScriptedServer([fine]) as server:
        reward = remote(server, attempts=2)
    reward.close()
    skipping = SkippingReward(reward)
    assert skipping(["p"] * 8, ["a"] * 8).failed == set(range(8))
    assert skipping.errors == 1


def test_another_model_in_mid_run_is_an_error():
    answers = [lambda r: r.scores([1.0, 2.0]), lambda r: r.scores([1.0, 2.0], fingerprint="scripted-2")]
    with ScriptedServer(answers) as server:
        reward = remote(server)
        reward(*TEXTS)
        with pytest.raises(RewardUnavailableError, match="scripted-1 at first, and now scripted-2"):
            reward(*TEXTS)
        reward.close()


@pytest.mark.parametrize(
    "info",
    [
        {**INFO, "protocol": 2},
        {**INFO, "fingerprint": ""},
        {**INFO, "fingerprint": "a\x1b[31mred"},
        {**INFO, "name": "n" * 10_000},
        {**INFO, "max_texts": 0},
        {**INFO, "max_bytes": True},
        {**INFO, "causal": "yes"},
        {**INFO, "columns": "answer"},
        {"hello": "world"},
    ],
    ids=str,
)
def test_a_server_of_something_else_is_an_error_at_the_start(info):
    with ScriptedServer([fine], info=info) as server, pytest.raises(RewardProtocolError):
        remote(server)


def test_no_server_is_an_error_at_the_start():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(RewardUnavailableError, match="does not answer"):
        RemoteReward(f"http://127.0.0.1:{port}", pause=0.001)


def test_the_breaker_spares_a_dead_server_and_tries_it_once():
    dead = threading.Event()
    dead.set()

    def mortal(request: Received) -> None:
        is_at_fault(request) if dead.is_set() else fine(request)

    with ScriptedServer([mortal]) as server:
        reward = remote(server, attempts=1, failures=2, rest=3600.0)
        for _ in range(2):
            with pytest.raises(RewardUnavailableError, match="it broke"):
                reward(*TEXTS)
        with pytest.raises(RewardUnavailableError, match="was not asked: 2 calls in a row have failed"):
            reward(*TEXTS)
        assert len(server.requests) == 2
        reward._calls.breaker.seconds = 0.0  # the hour is over
        dead.clear()
        assert reward(*TEXTS).tolist() == [97.0, 98.0]
        assert reward._calls.breaker.state == "closed"
        reward.close()


def test_several_threads_share_one():
    with ScriptedServer([fine]) as server:
        reward = remote(server)
        found: dict[int, list[float]] = {}

        def work(i: int) -> None:
            found[i] = [reward(["p"], [chr(97 + i)])[0] for _ in range(5)]

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20.0)
        assert found == {i: [97.0 + i] * 5 for i in range(8)}
        reward.close()


def test_large_batches_are_cut_to_what_the_server_takes():
    info = {**INFO, "max_texts": 7, "max_bytes": 400}
    with ScriptedServer([fine], info=info) as server:
        reward = remote(server)
        responses = [chr(97 + i % 26) for i in range(30)]
        scores = reward(["p"] * 30, responses, response_ids=[[i] * (i % 9) for i in range(30)])
        assert scores.tolist() == [float(ord(text)) for text in responses]
        assert max(len(r.content["responses"]) for r in server.requests) <= 7
        assert max(len(r.body) for r in server.requests) <= 400
        sent = [row for r in server.requests for row in r.content["columns"]["response_ids"]]
        assert sorted(map(len, sent)) == sorted(i % 9 for i in range(30))
        with pytest.raises(ConfigurationError, match=r"a text and its columns have .* bytes"):
            reward(["p"], ["x" * 500])
        reward.close()


def test_only_the_wanted_columns_are_sent():
    info = {**INFO, "columns": ["answer"]}
    columns = {"answer": np.array([1, 2]), "other": [object(), object()], "response_ids": [[1], [2]]}
    with ScriptedServer([fine], info=info) as server:
        reward = remote(server)
        reward(*TEXTS, **columns)
        assert server.requests[0].content["columns"] == {"answer": [1, 2], "response_ids": [[1], [2]]}
        reward.close()
    with ScriptedServer([fine]) as server:
        reward = remote(server)
        with pytest.raises(ConfigurationError, match=r"column .other. cannot be sent"):
            reward(*TEXTS, **columns)
        with pytest.raises(ConfigurationError, match="column 'nan' cannot be sent"):
            reward(*TEXTS, nan=[float("nan"), 1.0])
        assert server.requests == []
        reward.close()


# -- the token -----------------------------------------------------------------------------------------
def echoes(request: Received) -> None:
    request.reply(400, {"error": f"you sent {request.headers['authorization']}"}, x_token=TOKEN)


def echoes_in_a_redirect(request: Received) -> None:
    request.reply(302, location=f"http://elsewhere.example/?t={TOKEN}")


def echoes_as_answer(request: Received) -> None:
    request.reply(body=f"{TOKEN} and more".encode())


def echoes_as_scores(request: Received) -> None:
    request.scores([TOKEN, 1.0])


@pytest.mark.parametrize(
    "behavior", [echoes, echoes_in_a_redirect, echoes_as_answer, echoes_as_scores, is_at_fault, closes_at_once, hangs]
)
def test_the_token_is_shown_nowhere(behavior, caplog, tmp_path):
    caplog.set_level(logging.DEBUG)
    with ScriptedServer([behavior]) as server:
        reward = remote(server, attempts=2)
        if behavior is hangs:
            reward._calls.deadline = 0.1
        with pytest.raises(RewardError) as raised:
            reward(*TEXTS)
        told = "".join(traceback.format_exception(raised.value))
        error: BaseException | None = raised.value
        while error is not None:
            told += repr(error) + repr(vars(error)) + repr(error.args)
            error = error.__cause__ or error.__context__
        told += caplog.text + repr(reward) + repr(vars(reward)) + repr(vars(reward._calls))
        assert TOKEN not in told
        reward.close()


@pytest.mark.parametrize("token", ["", "with blank", "line\nbreak", "ünïcode", "nul\0"])
def test_a_token_that_no_header_can_hold_is_refused_unseen(token):
    with pytest.raises(ConfigurationError) as raised:
        RemoteReward("http://127.0.0.1:9", token=token)
    assert not token or token not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "ftp://127.0.0.1",
        "http://",
        "http://user:passw0rd@127.0.0.1:8000",
        "http://passw0rd@127.0.0.1",
        "http://127.0.0.1:8000/?token=passw0rd",
        "http://127.0.0.1:8000/#passw0rd",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:8000/a b",
        "http://127.0.0.1\\@elsewhere",
        7,
    ],
)
def test_an_address_that_is_none_or_holds_a_secret_is_refused(url):
    with pytest.raises(ConfigurationError) as raised:
        RemoteReward(url)
    assert "passw0rd" not in str(raised.value)


def test_a_token_on_an_open_network_is_warned_of(monkeypatch):
    with (
        pytest.warns(UserWarning, match="unencrypted"),
        pytest.raises((RewardUnavailableError, RewardTimeoutError)),
    ):
        RemoteReward("http://0.0.0.0:9", token=TOKEN, attempts=1, deadline=5.0)


def test_json_of_the_request_is_plain(monkeypatch):
    with ScriptedServer([fine]) as server:
        reward = remote(server)
        reward(["ä\ud800", "\0"], ["\U0001f600", "b"])
        content = json.loads(server.requests[0].body)
        assert content["prompts"] == ["ä\ud800", "\0"] and content["responses"] == ["\U0001f600", "b"]
        reward.close()
