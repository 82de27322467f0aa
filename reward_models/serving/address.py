"""Where a reward server is, and the token that it wants."""

from __future__ import annotations

import ipaddress
from typing import Any
from urllib.parse import urlsplit

from lm_env.errors import ConfigurationError
from lm_env.objective.scores import short_repr

__all__ = ["TOKEN_VARIABLE", "Secret", "checked_url", "is_loopback", "is_reward_url"]

TOKEN_VARIABLE = "LM_ENV_REWARD_TOKEN"
"""The environment variable that holds the token, for the server and for its clients."""


class Secret:
    """A token, or none, that appears in no repr, message, log or pickle.

    Raises:
        ConfigurationError: it is empty, or holds what no HTTP header can; the message does not show it.
    """

    def __init__(self, text: str | None) -> None:
        proper = text is None or (isinstance(text, str) and text.isascii() and text.isprintable() and " " not in text)
        if not proper or text == "":
            raise ConfigurationError(
                "the token of a reward server must be at least one printable ASCII character, without blanks"
            )
        self._text = text

    def __repr__(self) -> str:
        return "Secret(***)" if self.known else "Secret(none)"

    def __reduce__(self) -> Any:
        raise ConfigurationError(
            f"a token cannot be pickled, for that would write it: put it into the environment variable {TOKEN_VARIABLE}"
        )

    @property
    def known(self) -> bool:
        """Whether there is a token."""
        return self._text is not None

    def headers(self) -> dict[str, str]:
        """The headers that a request needs."""
        return {"authorization": f"Bearer {self._text}"} if self.known else {}

    def redact(self, received: bytes) -> bytes:
        """What a server sent, with the token replaced by *** wherever the server sent it back."""
        return received.replace(self._text.encode(), b"***") if self._text is not None else received


def is_reward_url(name: str) -> bool:
    """Whether the name of a reward is the address of a server."""
    return name.lower().startswith(("http://", "https://"))


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, and no other one can reach it there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def checked_url(url: str) -> tuple[str, bool]:
    """(the address without a slash at its end, whether it is a loopback address).

    Raises:
        ConfigurationError: it is no address of a server, or holds a user, password, query or fragment.  The message
            does not show what may be a password.
    """
    if not isinstance(url, str) or not is_reward_url(url):
        raise ConfigurationError(f"a reward server is named like 'http://127.0.0.1:8000', not {short_repr(url)}")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigurationError(f"the address of the reward server cannot be read ({error}): correct it") from None
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        raise ConfigurationError(
            f"the address of the reward server at {host} holds a user or a password, which would be logged and saved:"
            f" leave them out, and put a token into the environment variable {TOKEN_VARIABLE}"
        )
    if parts.query or parts.fragment or "?" in url:
        raise ConfigurationError(
            f"the address of the reward server at {host} has a query or a fragment: give 'http://HOST:PORT' alone, or"
            " with a path"
        )
    if not host or port == 0 or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise ConfigurationError(f"a reward server is named like 'http://127.0.0.1:8000', not {short_repr(url)}")
    return url.rstrip("/"), is_loopback(host)
