"""A reward behind HTTP: `RewardServer(reward)`."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from types import TracebackType
from typing import Any

from lm_env.errors import ConfigurationError, MissingDependencyError
from lm_env.validation import check_integer
from reward_models.serving.address import Secret, is_loopback
from reward_models.serving.identity import describe_reward
from reward_models.serving.running import RunningApplication
from reward_models.serving.schema import RewardInfo
from reward_models.serving.scorer import Limits, Scorer

__all__ = ["RewardServer", "new_token"]


def new_token() -> str:
    """A token that nobody can guess, 32 random bytes."""
    return secrets.token_urlsafe(32)


class RewardServer:
    """Serves a reward function over HTTP, by the protocol of docs/serving.md; `RemoteReward` is its client.

        with RewardServer(reward) as server:
            remote = RemoteReward(server.url, token=server.token)

    Args:
        make: a reward function; or with `lazy=True` a function without arguments that returns one, which is called
            after the port was found free, so that a taken port is an error before anything is loaded.
        host: an address of this machine; the default cannot be reached from another one.
        port: 0 takes a free one.
        token: what clients must send; default: a fresh one, see the attribute.  None: anyone who reaches the port may
            have texts scored.
        limits: what is taken.

    Attributes:
        token: what clients must send; None: nothing.
        info: what clients are told of the reward.

    Raises:
        ConfigurationError: the port is taken, or a setting cannot work.
        MissingDependencyError: the extra `serve` is not installed.
    """

    def __init__(
        self,
        make: Callable[..., Any],
        *,
        lazy: bool = False,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = "",
        limits: Limits | None = None,
    ) -> None:
        if not callable(make):
            raise ConfigurationError(f"a RewardServer takes a reward function, not {make!r:.60}")
        self.token = new_token() if token == "" else token
        Secret(self.token)  # checks it
        self.limits = Limits() if limits is None else limits
        application = _application()
        self._running = RunningApplication(host, check_integer("port", port, low=0))
        try:
            reward = make() if lazy else make
            self.info: RewardInfo = describe_reward(reward, self.limits.texts, self.limits.request_bytes)
        except BaseException:
            self._running.stop()
            raise
        self._scorer = Scorer(reward, self.limits)
        hosts = [host.strip("[]"), "localhost", "127.0.0.1", "[::1]"] if is_loopback(host) else None
        self._application = application(self._scorer, self.info, self.limits, self.token, hosts)

    def __repr__(self) -> str:
        return f"RewardServer({self.info.fingerprint} at {self.url})"

    @property
    def url(self) -> str:
        """Where clients find it."""
        return self._running.url

    def run(self) -> None:
        """Serve in this thread until SIGINT or SIGTERM."""
        try:
            self._running.run(self._application, connections=self.limits.connections)
        finally:
            self._scorer.close()

    def start(self) -> RewardServer:
        """Serve in a thread of its own."""
        self._running.start(self._application, connections=self.limits.connections)
        return self

    def stop(self) -> None:
        """End it; requests under way are answered, those that wait are refused."""
        self._scorer.close()
        self._running.stop()

    def __enter__(self) -> RewardServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _application() -> Any:
    try:
        from reward_models.serving.application import make_application
    except ImportError as error:
        raise MissingDependencyError("serving needs starlette and uvicorn: pip install 'lm-env[serve]'") from error
    return make_application
