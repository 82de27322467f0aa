"""The JSON between server and client: whatever arrives is either whole or an error."""

from __future__ import annotations

import contextlib
import json
import math
import random
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_env.errors import ConfigurationError, RewardProtocolError, RewardUnavailableError
from lm_env.objective.scores import Scores, Span
from reward_models.serving import CircuitBreaker, RewardInfo
from reward_models.serving.retries import LONGEST_PAUSE, pause_before, retry_after_seconds
from reward_models.serving.schema import (
    Answer,
    BadRequest,
    ScoreRequest,
    encode_answer,
    encode_request,
    read_answer,
    read_info,
    read_request,
)

finite = st.floats(-1e300, 1e300)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(
    ["fingerprint", "scores", "parts", "score", "tokens", "spans", "prompts", "responses", "columns"]
)
NEARLY = st.recursive(
    JSON,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@st.composite
def scored_texts(draw) -> tuple[list[str], list[int], Scores, dict[str, np.ndarray]]:
    responses = draw(st.lists(st.text(max_size=6), max_size=5))
    lengths = [draw(st.integers(1, 4)) for _ in responses]
    tokens, spans, failed = {}, {}, set()
    at_end = np.zeros(len(responses))
    for i, text in enumerate(responses):
        if draw(st.booleans()):
            failed.add(i)
            continue
        at_end[i] = draw(finite)
        if draw(st.booleans()):
            tokens[i] = np.array([draw(finite) for _ in range(lengths[i])])
        if text and draw(st.booleans()):
            start = draw(st.integers(0, len(text) - 1))
            end = draw(st.none() | st.integers(start + 1, len(text)))
            spans[i] = (Span(start, end, draw(finite)),)
    parts = {"a": np.array([draw(finite | st.just(math.nan)) for _ in responses])} if draw(st.booleans()) else {}
    return responses, lengths, Scores(at_end, tokens, spans, frozenset(failed)), parts


@given(scored_texts())
def test_scores_arrive_as_they_were(case):
    responses, lengths, scores, parts = case
    answer = read_answer(encode_answer("f", scores, parts), responses, responses, lengths)
    assert answer.fingerprint == "f" and answer.scores.failed == scores.failed
    np.testing.assert_array_equal(answer.scores.at_end, scores.at_end)
    assert answer.scores.tokens.keys() == scores.tokens.keys() and answer.scores.spans == scores.spans
    for i, values in scores.tokens.items():
        np.testing.assert_array_equal(answer.scores.tokens[i], values)
    assert answer.parts.keys() == parts.keys()
    for name, values in parts.items():
        np.testing.assert_array_equal(answer.parts[name], values)


def check_whole(answer: Answer, count: int, lengths: list[int]) -> None:
    """Nothing that is not a finite number of a text that was sent, at a place that it has."""
    assert len(answer.scores) == count and np.isfinite(answer.scores.totals()).all()
    for i, values in answer.scores.tokens.items():
        assert len(values) == lengths[i] and np.isfinite(values).all()
    for spans in answer.scores.spans.values():
        assert all(math.isfinite(span.score) and span.start >= 0 for span in spans)
    assert all(len(values) == count for values in answer.parts.values())


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode), st.integers(0, 3))
def test_any_bytes_are_an_answer_or_an_error(body, count):
    try:
        check_whole(read_answer(body, ["p"] * count, ["r"] * count, [1] * count), count, [1] * count)
    except RewardProtocolError as error:
        assert str(error)


@settings(max_examples=300)
@given(NEARLY, JSON, st.integers(0, 3))
def test_any_json_is_an_answer_or_an_error(entries, parts, count):
    content = {"fingerprint": "f", "scores": entries, "parts": parts}
    for value in (content, {"fingerprint": "f", "scores": [entries] * count}, entries):
        try:
            answer = read_answer(json.dumps(value).encode(), ["p"] * count, ["rr"] * count, [2] * count)
        except RewardProtocolError:
            continue
        check_whole(answer, count, [2] * count)


def test_numbers_whose_sum_is_not_finite_are_an_error():
    for entry in ({"tokens": [1e308, 1e308]}, {"score": 1e308, "spans": [[0, 1, 1e308]]}):
        with pytest.raises(RewardProtocolError, match="do not fit the texts"):
            read_answer(json.dumps({"fingerprint": "f", "scores": [entry]}).encode(), ["p"], ["r"], [2])


@settings(max_examples=200)
@given(scored_texts(), st.data())
def test_a_damaged_answer_is_an_answer_or_an_error(case, data):
    responses, lengths, scores, parts = case
    body = bytearray(encode_answer("f", scores, parts))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(body) - 1))
        body[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(RewardProtocolError):
        check_whole(read_answer(bytes(body), responses, responses, lengths), len(responses), lengths)


@given(JSON, st.dictionaries(st.sampled_from([*RewardInfo.__dataclass_fields__, "protocol"]), JSON))
def test_any_description_is_one_or_an_error(whole, fields):
    for content in (whole, {"protocol": 1, "name": "n", "fingerprint": "f", **fields}):
        try:
            info = read_info(json.dumps(content).encode())
        except RewardProtocolError:
            continue
        assert info.name.isprintable() and info.fingerprint and info.max_texts >= 1 and info.max_bytes >= 1
        assert read_info(json.dumps(info.as_dict()).encode()) == info


@given(st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5), JSON, st.lists(st.integers(0, 9))), max_size=4))
def test_requests_arrive_as_they_were(rows):
    prompts, responses, values, ids = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [], [])
    columns = {"answer": values, "response_ids": [np.array(row, dtype=np.int64) for row in ids]}
    try:
        body = encode_request(prompts, responses, columns)
    except ConfigurationError:  # NaN is no JSON
        assert "NaN" in json.dumps(values) or "Infinity" in json.dumps(values)
        return
    request = read_request(body, 4)
    assert (request.prompts, request.responses) == (prompts, responses)
    assert request.columns == {"answer": values, "response_ids": ids}


@settings(max_examples=300)
@given(st.binary(max_size=40) | st.dictionaries(KEYS, NEARLY, max_size=4).map(lambda x: json.dumps(x).encode()))
def test_any_request_is_one_or_an_error(body):
    try:
        request = read_request(body, 3)
    except BadRequest as error:
        assert str(error)
        return
    assert isinstance(request, ScoreRequest) and len(request.prompts) == len(request) <= 3
    assert all(len(values) == len(request) for values in request.columns.values())


# -- pauses and the breaker ----------------------------------------------------------------------------
def test_pauses_are_spread_doubled_and_bounded():
    rng = random.Random(0)
    for attempt, longest in ((2, 0.5), (3, 1.0), (4, 2.0), (60, LONGEST_PAUSE)):
        pauses = [pause_before(attempt, 0.5, None, rng) for _ in range(2000)]
        assert 0 <= min(pauses) < 0.02 * longest and 0.98 * longest < max(pauses) <= longest
        assert abs(np.mean(pauses) - longest / 2) < 4 * longest / math.sqrt(12 * 2000)
        asked = [pause_before(attempt, 0.5, 7.0, rng) for _ in range(100)]
        assert min(asked) >= 7.0 and max(asked) <= 7.0 + longest


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        (" 120 ", 120.0),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 59.0),
        ("Fri, 31 Dec 1999 23:58:00 GMT", 0.0),
        ("Fri, 31 Dec 1999 23:59:59", 59.0),
        (None, None),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("1e3", None),
        ("9" * 400, None),
        ("Fri, 99 Dec 9999 99:99:99 GMT", None),
    ],
)
def test_retry_after_is_a_number_or_a_date(value, seconds):
    assert retry_after_seconds(value, datetime(1999, 12, 31, 23, 59, tzinfo=UTC)) == seconds


@given(st.text(max_size=40))
def test_retry_after_is_never_an_error(value):
    seconds = retry_after_seconds(value)
    assert seconds is None or (seconds >= 0 and math.isfinite(seconds))


class Broken(Exception):
    pass


def ask(breaker: CircuitBreaker, error: BaseException | None = None) -> None:
    with breaker.call("the server", (Broken,)):
        if error is not None:
            raise error


def test_the_breaker_opens_half_opens_and_closes():
    now = [100.0]
    breaker = CircuitBreaker(3, 10.0, clock=lambda: now[0])
    for _ in range(2):
        with pytest.raises(Broken):
            ask(breaker, Broken())
    ask(breaker)  # a success begins the count anew
    for _ in range(3):
        assert breaker.state == "closed"
        with pytest.raises(Broken):
            ask(breaker, Broken())
    assert breaker.state == "open"
    now[0] += 9.5
    with pytest.raises(RewardUnavailableError, match=r"in 0\.5 s"):
        ask(breaker)
    now[0] += 0.5
    assert breaker.state == "half-open"
    with breaker.call("the server", (Broken,)), pytest.raises(RewardUnavailableError, match="under way"):
        ask(breaker)  # while one tries, no other does
    assert breaker.state == "closed"


def test_a_failed_attempt_opens_the_breaker_at_once():
    now = [0.0]
    breaker = CircuitBreaker(2, 10.0, clock=lambda: now[0])
    for _ in range(2):
        with pytest.raises(Broken):
            ask(breaker, Broken())
    now[0] = 10.0
    with pytest.raises(Broken):
        ask(breaker, Broken())
    assert breaker.state == "open"
    now[0] = 20.0
    with pytest.raises(KeyboardInterrupt):  # says nothing of the server: the next call tries
        ask(breaker, KeyboardInterrupt())
    assert breaker.state == "half-open"
    with pytest.raises(ZeroDivisionError):  # the server has answered, whatever the caller made of it
        ask(breaker, ZeroDivisionError())
    assert breaker.state == "closed"
