"""A reward function that lives in another process or on another machine: `RemoteReward(url)`."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from lm_env.errors import ConfigurationError, RewardProtocolError, RewardUnavailableError, RewardValueError
from lm_env.objective.scores import Scores, short_repr
from reward_models.serving.address import TOKEN_VARIABLE, Secret, checked_url
from reward_models.serving.calls import ServerCalls
from reward_models.serving.schema import (
    INFO_PATH,
    SCORE_PATH,
    Answer,
    RewardInfo,
    encode_request,
    read_answer,
    read_info,
)

__all__ = ["RemoteReward"]

ALWAYS_SENT = ("response_ids", "response_finished")
"""Columns that are always sent: scores per token are checked against the number of tokens that they give."""

T = TypeVar("T")


class RemoteReward:
    """The reward of a server (`lm-env rm serve`), as a reward function like any other.

    The server is asked for its description at once, so that a wrong address or token is an error here and not in the
    middle of a training.  A call is sent in as many requests as the server's limits demand.  A request that is answered
    by 429 or 5xx, or by a closed connection, is sent again after a pause; everything else is an error at once.  After
    `failures` requests in a row that failed so, calls fail at once for `rest` seconds (`CircuitBreaker`).  Redirects
    are not followed.  If the server comes to serve another reward, which the fingerprint in its answers tells, every
    further call is an error.  Threads may share one.

    The token is sent as `Authorization: Bearer`.  It is in no repr, no message, no log and no file; with a token that
    was given as `token=` it cannot be pickled, and one from the environment is read again where it is unpickled.

    Args:
        url: "http://127.0.0.1:8000", or with a path before the protocol's own; no user, password or query.
        token: default: what the environment variable `LM_ENV_REWARD_TOKEN` holds, if it is set.
        deadline: seconds that a call may take in all, attempts and pauses included.
        attempts: how often a request is sent at most.
        pause: seconds before the second attempt at most; they double from one to the next.
        columns: the columns that are sent; default: those that the server's reward looks at.
        max_answer_bytes: a longer answer is not read.
        failures, rest: of the circuit breaker.

    Attributes:
        info: what the server says of its reward.
        last_parts: the parts of the scores of the last call, where the reward is a sum of others.

    Raises:
        ConfigurationError: an impossible setting.
        RewardUnavailableError, RewardTimeoutError, RewardProtocolError: no server of rewards answers there.
        MissingDependencyError: there is no HTTP client package.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        deadline: float = 60.0,
        attempts: int = 4,
        pause: float = 0.5,
        columns: Sequence[str] | None = None,
        max_answer_bytes: int = 2**26,
        failures: int = 5,
        rest: float = 30.0,
    ) -> None:
        self.url, loopback = checked_url(url)
        if isinstance(columns, str):
            raise ConfigurationError(f"columns must be a list of names: write [{columns!r}]")
        self._options: dict[str, Any] = {
            "deadline": deadline,
            "attempts": attempts,
            "pause": pause,
            "max_answer_bytes": max_answer_bytes,
            "failures": failures,
            "rest": rest,
        }
        self._own_token = token is not None
        secret = Secret(token if token is not None else os.environ.get(TOKEN_VARIABLE) or None)
        self._calls = ServerCalls(self.url, secret, proxies=not loopback, **self._options)
        self.columns = None if columns is None else tuple(columns)
        self.last_parts: dict[str, np.ndarray] = {}
        if secret.known and self.url.lower().startswith("http:") and not loopback:
            warnings.warn(
                f"the token for {self.url} travels unencrypted: use https, or a tunnel to a loopback address",
                stacklevel=2,
            )
        try:
            body = self._calls.body("GET", INFO_PATH, None, self._calls.deadline)
            self.info: RewardInfo = self._read(read_info, body)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"RemoteReward({self.url!r}, {self.info.fingerprint})"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._own_token:
            raise ConfigurationError(
                "a RemoteReward that was given its token cannot be pickled, for that would write the token: put it into"
                f" the environment variable {TOKEN_VARIABLE} instead"
            )
        return _restored, (self.url, self.info.fingerprint, {**self._options, "columns": self.columns})

    def __deepcopy__(self, memo: dict[int, Any]) -> RemoteReward:
        return self  # it has no state that a copy would need for itself

    @property
    def fingerprint(self) -> str:
        """Differs where another reward is served; checkpoints remember it."""
        return self.info.fingerprint

    @property
    def causal(self) -> bool:
        """What the server's reward says of itself; AttributeError where it says nothing."""
        if self.info.causal is None:
            raise AttributeError("the served reward does not say whether it is causal")
        return self.info.causal

    @property
    def reads_prefixes(self) -> bool:
        """As the server's reward."""
        return self.info.reads_prefixes

    def close(self) -> None:
        """Close the connections; a further call opens new ones."""
        self._calls.close()

    def __call__(
        self, prompts: Sequence[str], responses: Sequence[str], **columns: Any
    ) -> np.ndarray | Scores | list[float | None]:
        """-> float64 (B,), or `Scores` where the reward scores tokens; a text that the server could not score is None.

        Raises:
            RewardUnavailableError: the server cannot be reached, refuses the token, redirects, or serves another
                reward than before.
            RewardTimeoutError: it has not answered by the deadline.
            RewardProtocolError: its answer is no answer to these texts.
            RewardError: its reward function failed.
            RewardValueError: it could not score some text, and its reward scores tokens.
            ConfigurationError: a text or column cannot be sent.
        """
        end = time.monotonic() + self._calls.deadline
        sent = {name: values for name, values in columns.items() if self._is_sent(name)}
        size = self.info.max_texts
        answers = [
            self._scored(prompts[i : i + size], responses[i : i + size], _cut(sent, i, size), end)
            for i in range(0, len(responses), size)
        ]
        answer = _joined(answers, self.info.fingerprint)
        self.last_parts = answer.parts
        scores = answer.scores
        if not scores.failed:
            return scores.simplest()
        if scores.per_token:
            i = min(scores.failed)
            raise RewardValueError(f"{self._calls.what} could not score text {i} (response {short_repr(responses[i])})")
        return [None if i in scores.failed else x for i, x in enumerate(scores.at_end.tolist())]

    def _is_sent(self, name: str) -> bool:
        wanted = self.info.columns if self.columns is None else self.columns
        return wanted is None or name in wanted or name in ALWAYS_SENT

    def _scored(
        self, prompts: Sequence[str], responses: Sequence[str], columns: Mapping[str, Sequence[Any]], end: float
    ) -> Answer:
        """The answer for texts of one request, or of several where one would have too many bytes."""
        content = encode_request(prompts, responses, columns)
        if len(content) > self.info.max_bytes:
            half = len(responses) // 2
            if not half:
                raise ConfigurationError(
                    f"a text and its columns have {len(content):,} bytes, and {self._calls.what} takes at most"
                    f" {self.info.max_bytes:,}: shorten it, or send fewer columns, RemoteReward(url, columns=[...])"
                )
            parts = [(0, half), (half, len(responses) - half)]
            answers = [
                self._scored(prompts[i : i + n], responses[i : i + n], _cut(columns, i, n), end) for i, n in parts
            ]
            return _joined(answers, self.info.fingerprint)
        body = self._calls.body("POST", SCORE_PATH, content, end - time.monotonic())
        ids = columns.get("response_ids")
        lengths = None if ids is None else [len(row) for row in ids]
        answer = self._read(read_answer, body, prompts, responses, lengths)
        if answer.fingerprint != self.info.fingerprint:
            raise RewardUnavailableError(
                f"{self._calls.what} serves another reward than it did: {self.info.fingerprint} at first, and now"
                f" {answer.fingerprint}; serve the first one again, or begin anew with the second"
            )
        return answer

    def _read(self, read: Callable[..., T], body: bytes, *arguments: Any) -> T:
        try:
            return read(body, *arguments)
        except RewardProtocolError as error:
            raise RewardProtocolError(f"the answer of {self._calls.what} cannot be used: {error}") from None


def _cut(columns: Mapping[str, Sequence[Any]], start: int, count: int) -> dict[str, Sequence[Any]]:
    return {name: values[start : start + count] for name, values in columns.items()}


def _joined(answers: Sequence[Answer], fingerprint: str) -> Answer:
    """The answers for several runs of texts as the answer for all of them."""
    if len(answers) == 1:
        return answers[0]
    total = Scores(np.zeros(sum(len(answer.scores) for answer in answers)))
    parts: dict[str, np.ndarray] = {}
    start = 0
    for answer in answers:
        rows = list(range(start, start + len(answer.scores)))
        total = total.placed(rows, answer.scores).without(rows[i] for i in answer.scores.failed)
        for name, values in answer.parts.items():
            parts.setdefault(name, np.full(len(total), np.nan))[rows] = values
        start += len(rows)
    return Answer(fingerprint, total, parts)


def _restored(url: str, fingerprint: str, options: dict[str, Any]) -> RemoteReward:
    """What was pickled: the same server, asked again, with the token of the environment.

    Raises:
        RewardUnavailableError: it serves another reward now.
    """
    reward = RemoteReward(url, **options)
    if reward.fingerprint != fingerprint:
        raise RewardUnavailableError(
            f"the reward server {url} serves another reward than it did: {fingerprint} at first, and now"
            f" {reward.fingerprint}; serve the first one again, or make a new RemoteReward"
        )
    return reward
