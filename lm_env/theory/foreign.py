"""Functions that a user gives to be checked: what they raise, said in a sentence that names the function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lm_env.errors import ConfigurationError, LMEnvError
from lm_env.objective.rewards import name_of

__all__ = ["calling"]


@contextmanager
def calling(function: Callable[..., Any], call: str, remedy: str) -> Iterator[None]:
    """Inside, the function is called; what it raises is a ConfigurationError, and errors of this package stay.

    Args:
        call: how it is called, in the message: "loss(batch)".
        remedy: what it has to do, in the message: "takes a LossBatch and returns a scalar".
    """
    try:
        yield
    except LMEnvError:  # says by itself what is wrong, and what to do
        raise
    except (Exception, SystemExit) as error:
        raised = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigurationError(
            f"{name_of(function)} raised {raised} when it was called as {call}: correct it, so that it {remedy}"
        ) from error
