"""The page over HTTP: a Starlette application, to be run by `reward_models.serving.running`.

The token is in the fragment of the address (`/#token=...`), which no browser sends: the page reads it from there, keeps
it for its own origin, and sends it in a header with each request, so that no other page can act in its name.  The page
and its style and script hold no secret and are served to anybody who can reach the port.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_env.errors import (
    CheckpointWriteError,
    ConfigurationError,
    InvalidPreferenceError,
    LMEnvError,
    MissingDependencyError,
)
from reward_models.labelling.page import LabellingSession

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["CONNECTIONS", "LOOPBACK", "kept_token", "make_app"]

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
LARGEST_REQUEST = 2**20
"""Bytes."""
CONNECTIONS = 200
"""How many of them the page's server keeps at a time."""
ASSETS = {
    "page.css": "text/css",
    "page.js": "text/javascript",
    "answering.js": "text/javascript",
    "cursor.js": "text/javascript",
    "marking.js": "text/javascript",
    "overview.js": "text/javascript",
    "ranking.js": "text/javascript",
    "spans.js": "text/javascript",
    "view.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
STATUS_OF_ERROR: Sequence[tuple[type[LMEnvError], int]] = (
    (InvalidPreferenceError, 400),
    (CheckpointWriteError, 503),
    (ConfigurationError, 409),
)


def make_app(session: LabellingSession, token: str, *, hosts: Sequence[str] = LOOPBACK) -> Starlette:
    """The application.

    Requests are answered only if their Host header is one of `hosts`.  That keeps out web pages whose own host name has
    been made to point at this machine.  Requests that read or write labels need the token as well.

    Args:
        token: what `Authorization: Bearer ...` has to hold.
        hosts: names by which the page may be reached.

    Raises:
        MissingDependencyError: starlette is not installed.
    """
    try:
        from starlette.applications import Starlette
        from starlette.concurrency import run_in_threadpool
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.responses import Response
        from starlette.routing import Route
    except ImportError as error:
        raise MissingDependencyError("the labelling page needs starlette: pip install 'lm-env[label]'") from error

    folder = files("reward_models.labelling") / "assets"

    def reply(content: Any, status: int = 200) -> Response:
        # ASCII, so that half a surrogate pair in a text arrives as it is.
        return Response(json.dumps(content), status, HEADERS, "application/json")

    def asset(name: str, kind: str) -> Response:
        return Response((folder / name).read_bytes(), 200, HEADERS, kind)

    async def page(request: Request) -> Response:
        return asset("page.html", "text/html")

    async def part(request: Request) -> Response:
        name = request.path_params["name"]
        return asset(name, ASSETS[name]) if name in ASSETS else reply({"error": "there is no such file"}, 404)

    async def call(request: Request) -> Response:
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            return reply(
                {"error": "the token is missing or wrong: open the address that lm-env label has printed"}, 403
            )
        answer = session.requests.get(request.path_params["name"])
        if answer is None:
            return reply({"error": "there is no such request"}, 404)
        content, status = await _content(request)
        if status != 200:
            return reply({"error": content}, status)
        try:
            return reply(await run_in_threadpool(answer, content))
        except LMEnvError as error:
            status = next((status for kind, status in STATUS_OF_ERROR if isinstance(error, kind)), 500)
            return reply({"error": str(error)}, status)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/assets/{name}", part),
            Route("/api/{name}", call, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)],
    )


async def _content(request: Request) -> tuple[Any, int]:
    """(the JSON object of a request, 200), or (what is wrong with it, the status that says so)."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return "send the request as application/json", 415
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_REQUEST:
            return f"the request is too large: send at most {LARGEST_REQUEST:,} bytes", 413
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return "the request must hold a JSON object", 400
    return (content, 200) if isinstance(content, dict) else ("the request must hold a JSON object", 400)


# -- the server ----------------------------------------------------------------------------------------
def kept_token(store: str | Path) -> str:
    """The token of a file of labels, from a file beside it that only its owner can read; a new one if there is none.

    Because the token stays the same, an open page goes on after a restart of the server.

    Raises:
        CheckpointWriteError: the file of the token cannot be read or written.
    """
    path = Path(f"{store}.token")
    try:
        if path.exists():
            token = path.read_text(encoding="ascii").strip()
            private = os.name != "posix" or not path.stat().st_mode & 0o077
            if len(token) >= 32 and private:
                return token
            path.unlink()
        token = secrets.token_urlsafe(32)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(token)
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointWriteError(f"cannot keep the page's token in {path}: {error}; remove that file") from error
    return token
