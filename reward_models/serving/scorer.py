"""The one thread that calls the reward function, and the requests that wait for it.

A reward function need not be safe to call from several threads.  So requests wait in a queue, and whenever the thread
is free it takes as many as fit into one call.  Texts of many clients are scored in one batch, and a single request
never waits for others.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_env.errors import LMEnvError, RewardError
from lm_env.objective.rewards import ask_reward, name_of, parts_of
from lm_env.objective.scores import Scores, checked_rows
from lm_env.validation import check_integers, check_number
from reward_models.serving.schema import ScoreRequest

__all__ = ["Limits", "Overloaded", "Scored", "Scorer"]

log = logging.getLogger(__name__)


class Overloaded(Exception):
    """Too many texts wait already."""


@dataclass(frozen=True)
class Limits:
    """What a server takes; a client that asks for more is refused.

    Raises:
        ConfigurationError: one of them is not above 0.
    """

    texts: int = 1024
    """Of one request, and of one call of the reward function."""
    request_bytes: int = 2**24
    waiting_texts: int = 8192
    """Of all requests that wait; one more is answered by 429."""
    seconds: float = 600.0
    """From the arrival of a request to its answer; then it is answered by 503."""
    connections: int = 256
    """Beyond it a connection is answered by 503."""

    def __post_init__(self) -> None:
        check_integers(self, "texts", "request_bytes", "waiting_texts", "connections")
        check_number("seconds", self.seconds, low=0.0, above=True)


@dataclass(frozen=True)
class Scored:
    """The scores of a request's texts, and the parts of a sum of rewards."""

    scores: Scores
    parts: dict[str, np.ndarray]


@dataclass
class _Job:
    request: ScoreRequest
    future: Future[Scored]


class Scorer:
    """Scores requests, several of them in one call of the reward function.

    Args:
        reward: any reward function; it is called in one thread.
    """

    def __init__(self, reward: Any, limits: Limits) -> None:
        self._reward = reward
        self._limits = limits
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._since: float | None = None
        self._thread = threading.Thread(target=self._work, name="reward", daemon=True)
        self._thread.start()

    def submit(self, request: ScoreRequest) -> Future[Scored]:
        """The scores, once they are known; cancelling it takes the request out of the queue.

        The future raises RewardError where the reward function failed.

        Raises:
            Overloaded: too many texts wait, or the server is being shut down.
        """
        job = _Job(request, Future())
        with self._changed:
            waiting = sum(len(other.request) for other in self._jobs)
            if self._closed or (self._jobs and waiting + len(request) > self._limits.waiting_texts):
                raise Overloaded(f"{waiting} texts wait to be scored")
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def hangs(self) -> bool:
        """Whether the reward function has been at one call for longer than a request may take."""
        since = self._since
        return since is not None and time.monotonic() - since > self._limits.seconds

    @property
    def waiting(self) -> int:
        """Texts in the queue."""
        with self._changed:
            return sum(len(job.request) for job in self._jobs)

    def close(self, seconds: float = 5.0) -> None:
        """Score nothing more; what waits is cancelled."""
        with self._changed:
            self._closed = True
            for job in self._jobs:
                job.future.cancel()
            self._jobs.clear()
            self._changed.notify()
        self._thread.join(seconds)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if self._closed:
                    return
                jobs = self._next()
            self._since = time.monotonic()
            try:
                self._answer(jobs)
            finally:
                self._since = None

    def _next(self) -> list[_Job]:
        """The first request, and the others with its columns as far as they fit into the same call; maybe none."""
        chosen: list[_Job] = []
        left: deque[_Job] = deque()
        texts = 0
        for job in self._jobs:
            alike = not chosen or job.request.columns.keys() == chosen[0].request.columns.keys()
            fits = alike and (not chosen or texts + len(job.request) <= self._limits.texts)
            if not fits:
                left.append(job)
            elif job.future.set_running_or_notify_cancel():
                chosen.append(job)
                texts += len(job.request)
        self._jobs = left
        return chosen

    def _answer(self, jobs: Sequence[_Job]) -> None:
        if len(jobs) > 1:
            try:
                scored = self._score([job.request for job in jobs])
            except Exception:  # one of the requests is to blame, and the others are not
                for job in jobs:
                    self._answer([job])
                return
            for job, own in zip(jobs, scored, strict=True):
                job.future.set_result(own)
            return
        for job in jobs:
            try:
                job.future.set_result(self._score([job.request])[0])
            except LMEnvError as error:
                log.warning("%s", error)
                job.future.set_exception(error)
            except BaseException as error:  # the thread must live on, and the client must hear of it
                log.exception("scoring failed")
                job.future.set_exception(RewardError(f"{type(error).__name__}: {error}"))

    def _score(self, requests: Sequence[ScoreRequest]) -> list[Scored]:
        prompts = [text for request in requests for text in request.prompts]
        responses = [text for request in requests for text in request.responses]
        columns = {name: [v for r in requests for v in r.columns[name]] for name in requests[0].columns}
        if not responses:
            return [Scored(Scores(np.zeros(0)), {}) for _ in requests]
        ids = columns.get("response_ids")
        lengths = None if ids is None else [len(row) for row in ids]
        raw = ask_reward(self._reward, prompts, responses, columns)
        scores = checked_rows(name_of(self._reward), raw, prompts, responses, lengths)
        parts = parts_of(self._reward, len(responses))
        found, start = [], 0
        for request in requests:
            rows = range(start, start + len(request))
            found.append(
                Scored(_taken(scores, rows), {n: values[rows.start : rows.stop] for n, values in parts.items()})
            )
            start = rows.stop
        return found


def _taken(scores: Scores, rows: range) -> Scores:
    """The scores of some of the texts."""
    first = rows.start
    return Scores(
        scores.at_end[first : rows.stop],
        {i - first: values for i, values in scores.tokens.items() if i in rows},
        {i - first: spans for i, spans in scores.spans.items() if i in rows},
        frozenset(i - first for i in scores.failed if i in rows),
    )
