"""An ASGI application behind a socket: in a thread, for tests and notebooks, or in this one, until a signal comes."""

from __future__ import annotations

import socket
import threading
from typing import Any

from lm_env.errors import ConfigurationError, MissingDependencyError

__all__ = ["RunningApplication"]

START_SECONDS = 30.0
GRACE_SECONDS = 10
"""What requests under way are given when the server ends."""


class RunningApplication:
    """Binds a socket at once, so that a port that is taken is an error before anything is loaded.

    Args:
        host: an address of this machine.
        port: 0 takes a free one.

    Raises:
        ConfigurationError: the socket cannot be bound.
    """

    def __init__(self, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # asyncio switches Nagle's algorithm off, which costs 40 ms an answer, where the socket says that it is TCP.
        self._socket = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except (OSError, OverflowError) as error:
            self._socket.close()
            raise ConfigurationError(
                f"no server can listen at {host} port {port} ({error}): choose another port, or 0 for a free one"
            ) from error
        self._host = host
        self.port: int = self._socket.getsockname()[1]
        self._server: Any = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where it is reached."""
        return f"http://{f'[{self._host}]' if ':' in self._host else self._host}:{self.port}"

    def accept(self) -> None:
        """From here on a connection waits until the application runs, where it would be refused before."""
        self._socket.listen(128)

    def run(self, application: Any, *, connections: int) -> None:
        """Serve in this thread until SIGINT or SIGTERM; requests under way are answered first."""
        self._make(application, connections)
        self._server.run(sockets=[self._socket])

    def start(self, application: Any, *, connections: int) -> None:
        """Serve in a thread of its own; it answers when this returns."""
        self._make(application, connections)
        self.accept()
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="server", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the server, and wait until it has."""
        if self._server is not None:
            self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(START_SECONDS)
        self._socket.close()

    def _make(self, application: Any, connections: int) -> None:
        uvicorn = _uvicorn()
        self._server = uvicorn.Server(
            uvicorn.Config(
                application,
                lifespan="off",
                http="h11",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=connections,
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
        )


def _uvicorn() -> Any:
    try:
        import uvicorn
    except ImportError as error:
        raise MissingDependencyError("serving a page or a reward needs uvicorn: pip install 'lm-env[serve]'") from error
    return uvicorn
