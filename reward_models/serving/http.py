"""One HTTP exchange with a deadline over all of it, a limit on what is read, and no redirects.

The time-outs of HTTP clients count from one byte to the next, so a server that sends a byte a second is never too
slow for them.  Here the whole exchange, name resolution and TLS included, is a coroutine that is cancelled when its
time is over.  All run in one event loop in a thread of its own, so that callers may be plain functions, in any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import threading
import weakref
from collections.abc import Coroutine, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from lm_env.errors import MissingDependencyError, RewardProtocolError

__all__ = ["BackgroundLoop", "HttpClient", "HttpFailure", "Reply"]

T = TypeVar("T")

LONGEST_REFUSAL = 2**16
"""Bytes that are read of an answer that holds no scores."""


exchanging: ContextVar[bool] = ContextVar("exchanging", default=False)
"""Whether the running task is an exchange of this module."""


class HttpFailure(Exception):
    """An exchange that came to no answer: refused, reset, closed in the middle, or not HTTP."""


@dataclass(frozen=True)
class Reply:
    """An HTTP answer; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class BackgroundLoop:
    """An event loop in a daemon thread, started when it is first needed, and anew in a forked process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0

    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop of this process."""
        with self._lock:
            if self._loop is None or self._process != os.getpid():
                self._loop = asyncio.new_event_loop()
                self._process = os.getpid()
                threading.Thread(target=self._loop.run_forever, name="remote rewards", daemon=True).start()
            return self._loop

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What a coroutine returns or raises; it is cancelled if the caller is interrupted."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop())
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


BACKGROUND = BackgroundLoop()


class HttpClient:
    """Connections to one server, kept open between exchanges.  Threads may share it; a forked process makes its own.

    Args:
        headers: sent with every request, besides those of the exchange.
        proxies: whether the proxies that the environment names are used.

    Raises:
        MissingDependencyError: there is no HTTP client package.
    """

    def __init__(self, headers: Mapping[str, str], *, proxies: bool) -> None:
        self._httpx = _httpx()
        # Nothing is ever decompressed, so that a small answer cannot grow in the memory.
        self._headers = {**headers, "accept-encoding": "identity", "accept": "application/json"}
        self._proxies = proxies
        self._lock = threading.Lock()
        self._client: Any = None
        self._process = 0
        self._finalizer: Any = None

    async def exchange(self, method: str, url: str, content: bytes | None, most: int) -> Reply:
        """Send a request and read its answer.

        Args:
            most: bytes that an answer of status 200 may have; of any other, the first 64 KiB are read.

        Raises:
            HttpFailure: there was no answer.
            RewardProtocolError: the answer is larger than `most`, or compressed.
        """
        headers = {"content-type": "application/json"} if content is not None else {}
        exchanging.set(True)  # of this task alone
        try:
            async with self._connected().stream(method, url, content=content, headers=headers) as response:
                return await _read(response, most)
        except self._httpx.TransportError as error:
            # Not chained: the error holds the request, and with it the token.
            reason = " ".join(str(error).split())
            raise HttpFailure(f"{type(error).__name__}: {reason}" if reason else type(error).__name__) from None

    def close(self) -> None:
        """Close the connections; the next exchange opens new ones."""
        with self._lock:
            finalizer, self._client, self._finalizer = self._finalizer, None, None
        if finalizer is not None:
            finalizer()

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None or self._process != os.getpid():
                if self._finalizer is not None:
                    self._finalizer.detach()  # the connections of the process that this one was forked from
                self._client = self._httpx.AsyncClient(
                    headers=self._headers, timeout=None, follow_redirects=False, trust_env=self._proxies
                )
                self._process = os.getpid()
                self._finalizer = weakref.finalize(self, _close, self._client, BACKGROUND.loop(), self._process)
                self._finalizer.atexit = False  # the operating system closes them
            return self._client


async def _read(response: Any, most: int) -> Reply:
    headers = {name.lower(): value for name, value in response.headers.items()}
    wanted = response.status_code == 200
    limit = most if wanted else LONGEST_REFUSAL
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        if wanted:
            raise RewardProtocolError(
                f"the answer is compressed ({encoding[:20]!r}) though no compression was asked for: it is not read"
            )
        return Reply(response.status_code, headers, b"")
    declared = headers.get("content-length", "0")
    if wanted and declared.isdigit() and int(declared[:18]) > limit:
        raise RewardProtocolError(f"the answer has {int(declared[:18]):,} bytes, and at most {limit:,} are read")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > limit:
            if wanted:
                raise RewardProtocolError(f"the answer has more than the {limit:,} bytes that are read")
            break
    return Reply(response.status_code, headers, bytes(body[:limit]))


class _HideExchanges(logging.Filter):
    """Keeps the HTTP package from logging our exchanges: it logs whole headers, in which a server may echo a token."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not exchanging.get()


HIDE_EXCHANGES = _HideExchanges()


def _close(client: Any, loop: asyncio.AbstractEventLoop, process: int) -> None:
    if process != os.getpid() or loop.is_closed():
        return
    coroutine = client.aclose()
    try:
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    except RuntimeError:  # the loop has ended meanwhile
        coroutine.close()
        return
    try:
        asyncio.get_running_loop()  # the collector may run in the loop's own thread, which cannot wait for itself
    except RuntimeError:
        with contextlib.suppress(Exception):
            future.result(timeout=1.0)


def _httpx() -> Any:
    """httpx2, which continues httpx and which huggingface_hub needs; or httpx, which an older one needs."""
    for name, transport in (("httpx2", "httpcore2"), ("httpx", "httpcore")):
        try:
            package = importlib.import_module(name)
        except ImportError:
            continue
        for part in ("connection", "http11", "http2", "proxy", "socks"):
            logging.getLogger(f"{transport}.{part}").addFilter(HIDE_EXCHANGES)  # once, however often it is added
        logging.getLogger(name).addFilter(HIDE_EXCHANGES)
        return package
    raise MissingDependencyError("remote rewards need an HTTP client: pip install httpx2")
