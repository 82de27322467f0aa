"""Requests to a reward server: attempts, pauses, one deadline, and an exception for each way in which they can fail."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

from lm_env.errors import RewardError, RewardProtocolError, RewardTimeoutError, RewardUnavailableError
from lm_env.objective.scores import short_repr
from lm_env.validation import check_integer, check_number
from reward_models.serving.address import TOKEN_VARIABLE, Secret
from reward_models.serving.breaker import CircuitBreaker
from reward_models.serving.http import BACKGROUND, HttpClient, HttpFailure, Reply
from reward_models.serving.retries import RETRIED, pause_before, retry_after_seconds

__all__ = ["ServerCalls"]


class _RetriedStatus(Exception):
    """The last attempt too was answered by a status after which the same request may succeed later."""


class ServerCalls:
    """Sends requests to one server; see `RemoteReward` for the arguments and for what is tried again."""

    def __init__(
        self,
        url: str,
        token: Secret,
        *,
        proxies: bool,
        deadline: float,
        attempts: int,
        pause: float,
        max_answer_bytes: int,
        failures: int,
        rest: float,
    ) -> None:
        self.url = url
        self.deadline = check_number("deadline", deadline, low=0.0, above=True)
        self.attempts = check_integer("attempts", attempts)
        self.pause = check_number("pause", pause, low=0.0)
        self.max_answer_bytes = check_integer("max_answer_bytes", max_answer_bytes)
        self.breaker = CircuitBreaker(failures, rest)
        self._token = token
        self._client = HttpClient(token.headers(), proxies=proxies)
        self._rng = random.Random()  # of its own, so that pauses move no seeded stream

    @property
    def what(self) -> str:
        """The name of the server in messages."""
        return f"the reward server {self.url}"

    def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        self._client.close()

    def body(self, method: str, path: str, content: bytes | None, seconds: float) -> bytes:
        """The body of an answer with status 200.

        Args:
            seconds: what is left until the deadline.

        Raises:
            RewardUnavailableError, RewardTimeoutError, RewardProtocolError, RewardError: see `RemoteReward`.
        """
        try:
            with self.breaker.call(self.what, (HttpFailure, TimeoutError, _RetriedStatus)):
                if seconds <= 0:
                    raise TimeoutError
                reply = BACKGROUND.run(self._attempts(method, path, content, seconds))
        except (HttpFailure, _RetriedStatus) as error:
            raise RewardUnavailableError(
                f"{self.what} does not answer: {error}; see whether it runs, and at this address"
            ) from None
        except TimeoutError:
            raise RewardTimeoutError(
                f"{self.what} has not answered within {self.deadline:g} s: raise the deadline, or see why it is slow"
            ) from None
        except RewardProtocolError as error:
            raise RewardProtocolError(f"{self.what}: {error}") from None
        return reply.body if reply.status == 200 else self._refused(reply)

    async def _attempts(self, method: str, path: str, content: bytes | None, seconds: float) -> Reply:
        """The first answer whose status is not among `RETRIED`."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        async with asyncio.timeout(seconds):
            for attempt in range(1, self.attempts + 1):
                asked = None
                failure: HttpFailure | _RetriedStatus
                try:
                    reply = await self._exchange(method, path, content)
                except HttpFailure as error:
                    failure = error
                else:
                    if reply.status not in RETRIED:
                        return reply
                    asked = retry_after_seconds(reply.headers.get("retry-after"))
                    failure = _RetriedStatus(f"it answers with status {reply.status}{_said(reply)}")
                if attempt == self.attempts:
                    raise type(failure)(f"{failure} (attempt {attempt} of {self.attempts})")
                wait = pause_before(attempt + 1, self.pause, asked, self._rng)
                if loop.time() + wait >= end:
                    raise type(failure)(f"{failure}; the next attempt, in {wait:.3g} s, would be after the deadline")
                await asyncio.sleep(wait)
        raise AssertionError("the loop above returns or raises")

    async def _exchange(self, method: str, path: str, content: bytes | None) -> Reply:
        reply = await self._client.exchange(method, self.url + path, content, self.max_answer_bytes)
        headers = {k: self._token.redact(v.encode("utf-8", "replace")).decode() for k, v in reply.headers.items()}
        return Reply(reply.status, headers, self._token.redact(reply.body))

    def _refused(self, reply: Reply) -> Any:
        """Raise what a status other than 200 means."""
        if reply.status in (401, 403):
            given = "the token that was sent" if self._token.known else "a request without a token"
            raise RewardUnavailableError(
                f"{self.what} refuses {given} (status {reply.status}): put the server's token into the environment"
                f" variable {TOKEN_VARIABLE}"
            )
        if 300 <= reply.status < 400:
            there = short_repr(reply.headers.get("location", "nowhere"))
            raise RewardUnavailableError(
                f"{self.what} redirects to {there} (status {reply.status}), which is not followed, for the token would"
                " go along: give the address that is meant"
            )
        if reply.status == 422:
            raise RewardError(f"{self.what} could not score these texts{_said(reply)}")
        raise RewardUnavailableError(
            f"{self.what} refuses the request with status {reply.status}{_said(reply)}; see whether the address is that"
            " of a reward server, and whether the request fits its limits"
        )


def _said(reply: Reply) -> str:
    """The server's own words, in quotation marks, if it gives any."""
    try:
        said = json.loads(reply.body)["error"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    return f": {short_repr(said, 300)}" if isinstance(said, str) and said else ""
