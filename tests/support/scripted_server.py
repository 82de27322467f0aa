"""A server on the loopback interface that does what a test says, to the byte."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

INFO = {"protocol": 1, "name": "scripted", "fingerprint": "scripted-1", "max_texts": 64, "max_bytes": 2**20}


@dataclass
class Received:
    """A request, and the connection that it came by."""

    line: str
    headers: dict[str, str]
    body: bytes
    connection: socket.socket
    stopped: threading.Event

    @property
    def content(self) -> Any:
        return json.loads(self.body)

    def reply(self, status: int = 200, body: bytes | Any = b"", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"HTTP/1.1 {status} X", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
        if "content_length" not in headers and "transfer_encoding" not in headers:
            lines.append(f"content-length: {len(content)}")
        self.connection.sendall("\r\n".join([*lines, "", ""]).encode() + content)

    def scores(self, scores: list[Any], fingerprint: str = "scripted-1") -> None:
        self.reply(body={"fingerprint": fingerprint, "scores": scores})

    def hang(self) -> None:
        """Until the test ends, or the client has gone."""
        self.connection.settimeout(10.0)
        try:
            while not self.stopped.is_set() and self.connection.recv(1024):
                pass
        except OSError:
            pass


Behavior = Callable[[Received], None]


@dataclass
class ScriptedServer:
    """Answers what `behaviors` say, one request after the other, the last one for ever.

    Requests of what is served are answered by `info` and not counted.
    """

    behaviors: list[Behavior]
    info: Any = field(default_factory=lambda: dict(INFO))
    requests: list[Received] = field(default_factory=list)

    def __enter__(self) -> ScriptedServer:
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        with self._lock:
            for connection in (self._listener, *self._open):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                connection.close()
        for thread in self._threads:
            thread.join(5.0)

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _listen(self) -> None:
        while not self._stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._open.append(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            try:
                while (request := self._read(stream, connection)) is not None:
                    if request.line.startswith("GET") and isinstance(self.info, dict):
                        request.reply(body=self.info)
                        continue
                    with self._lock:
                        number = len(self.requests)
                        self.requests.append(request)
                    self.behaviors[min(number, len(self.behaviors) - 1)](request)
                    if "close" in request.headers.get("x-then", ""):
                        return
            except (OSError, ValueError):
                return

    def _read(self, stream: Any, connection: socket.socket) -> Received | None:
        line = stream.readline().decode().strip()
        if not line:
            return None
        headers = {}
        while text := stream.readline().decode().strip():
            name, _, value = text.partition(":")
            headers[name.lower()] = value.strip()
        body = stream.read(int(headers.get("content-length", 0)))
        return Received(line, headers, body, connection, self._stopped)
