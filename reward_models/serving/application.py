"""The server's side of the protocol: paths, token, limits, and a status for whatever goes wrong."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lm_env.errors import LMEnvError
from reward_models.serving.schema import (
    INFO_PATH,
    SCORE_PATH,
    BadRequest,
    RewardInfo,
    ScoreRequest,
    encode_answer,
    read_request,
)
from reward_models.serving.scorer import Limits, Overloaded, Scored, Scorer

__all__ = ["make_application"]

Handler = Callable[[Request], Awaitable[Response]]

BODY_SECONDS = 60.0
"""What a request's body may take to arrive."""


class _Refusal(Exception):
    """A request that is answered by a status other than 200."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def make_application(
    scorer: Scorer, info: RewardInfo, limits: Limits, token: str | None, hosts: list[str] | None
) -> Starlette:
    """The ASGI application of a reward server.

    Args:
        token: what a client must send; None: nothing.
        hosts: the names by which the server may be addressed, which keeps web pages from reaching it by a name of
            theirs that leads here; None: any.
    """

    async def health(request: Request) -> Response:
        return JSONResponse({"alive": True})

    async def ready(request: Request) -> Response:
        if scorer.hangs():
            raise _Refusal(503, "the reward function has not answered for too long")
        return JSONResponse({"ready": True, "waiting_texts": scorer.waiting})

    async def describe(request: Request) -> Response:
        _check_token(request, token)
        return JSONResponse(info.as_dict())

    async def score(request: Request) -> Response:
        _check_token(request, token)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise _Refusal(415, "send the request as application/json")
        body = await _read_body(request, limits.request_bytes)
        try:
            wanted = read_request(body, limits.texts)
        except BadRequest as error:
            raise _Refusal(400, str(error)) from None
        scored = await _scored(request, scorer, wanted, limits.seconds)
        content = encode_answer(info.fingerprint, scored.scores, scored.parts)
        return Response(content, media_type="application/json")

    routes = [
        Route("/health", _answered(health)),
        Route("/ready", _answered(ready)),
        Route(INFO_PATH, _answered(describe)),
        Route(SCORE_PATH, _answered(score), methods=["POST"]),
    ]
    middleware = [] if hosts is None else [Middleware(TrustedHostMiddleware, allowed_hosts=hosts)]
    return Starlette(routes=routes, middleware=middleware)


def _answered(handler: Handler) -> Handler:
    """The handler, with refusals as answers."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except _Refusal as refusal:
            return JSONResponse({"error": str(refusal)}, refusal.status, headers=refusal.headers)

    return answer


def _check_token(request: Request, token: str | None) -> None:
    if token is None:
        return
    given = request.headers.get("authorization", "")
    scheme, _, sent = given.partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(sent.strip().encode(), token.encode()):
        raise _Refusal(401, "a token is needed: Authorization: Bearer TOKEN", www_authenticate="Bearer")


async def _read_body(request: Request, most: int) -> bytes:
    too_large = f"the request is too large: send at most {most} bytes"
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared[:18]) > most:
        raise _Refusal(413, too_large, connection="close")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise _Refusal(415, "send the request uncompressed")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise _Refusal(413, too_large, connection="close")
    except TimeoutError:
        raise _Refusal(408, "the request did not arrive in time", connection="close") from None
    except ClientDisconnect:
        raise _Refusal(400, "the request was not finished") from None
    return bytes(body)


async def _scored(request: Request, scorer: Scorer, wanted: ScoreRequest, seconds: float) -> Scored:
    """The scores; a client that goes away is not waited for, and its texts are not scored if they wait still."""
    try:
        future = asyncio.wrap_future(scorer.submit(wanted))
    except Overloaded as error:
        raise _Refusal(429, f"{error}: ask again later", retry_after="1") from None
    gone = asyncio.ensure_future(_gone(request))
    both: set[asyncio.Future[Any]] = {future, gone}
    try:
        done, _ = await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if future not in done:
            reason = "the client has gone" if gone in done else f"there are no scores after {seconds:g} s"
            raise _Refusal(503, reason)
        return future.result()
    except asyncio.CancelledError:
        if not future.cancelled():
            raise
        raise _Refusal(503, "the server is being shut down") from None
    except LMEnvError as error:
        raise _Refusal(422, _in_one_line(error)) from None
    finally:
        gone.cancel()
        future.cancel()


async def _gone(request: Request) -> None:
    """Returns when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
