"""Processes: how a run divides its work among processes that train one model, and what they exchange.

Every process runs the same program, holds the same weights, draws the same prompts, and has all episodes of a rollout
after it.  So advantages, KL means and metrics are computed from the whole rollout, by code that does not depend on the
number of processes.  Only two things are divided: the texts that are sampled and scored (`share`, `gather_rows`), and
the episodes of a minibatch whose gradient is computed (`deal`, `sum_gradients`).  Supervised training divides its
batches in the same way (`lm_env.models.fitting`), and its evaluations.

`Processes` itself is a run in one process, in which nothing is divided and nothing is sent.

Shapes: B episodes of a rollout, T response tokens, k rows of a minibatch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn

from lm_env.errors import LMEnvError

__all__ = ["Processes"]

Found = TypeVar("Found")


class Processes:
    """A run in one process; `ProcessGroup` is one of several."""

    rank: int = 0
    """The number of this process, from 0 on."""
    count: int = 1
    """How many processes there are."""

    @property
    def first(self) -> bool:
        """Whether this process logs and saves."""
        return self.rank == 0

    # -- how work is divided --------------------------------------------------------------------------
    def share(self, count: int) -> slice:
        """Which of `count` things this process handles; the shares are contiguous, disjoint and cover all."""
        return slice(count * self.rank // self.count, count * (self.rank + 1) // self.count)

    def deal(self, lengths: np.ndarray) -> np.ndarray:
        """The rows of a minibatch whose gradient this process computes, ascending; all get about as many tokens.

        Args:
            lengths: int (k,), tokens of each row; the same in all processes.
        """
        return np.arange(len(lengths))

    # -- what the processes exchange ----------------------------------------------------------------------
    def gather_rows(self, arrays: Mapping[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
        """The arrays of all processes, one after the other in the order of their ranks.

        Args:
            arrays: name -> numbers (n,) or (n, width); narrow ones are padded with 0 on the right.
            rows: how many rows this process has; of an array that only other processes have, its rows are NaN.
        """
        return dict(arrays)

    def gather(self, content: Any) -> list[Any]:
        """The JSON content of all processes, by rank."""
        return [content]

    def any(self, flag: bool) -> bool:
        """Whether the flag is True in any of the processes."""
        return flag

    def wait(self) -> None:
        """Return once all processes have come to this point."""

    def attempt(self, work: Callable[[], Found], kind: type[LMEnvError]) -> Found:
        """What `work` returns; if it raises an error of this kind in any of the processes, all of them raise one."""
        return work()

    def largest(self, number: int) -> int:
        """The largest number that any of the processes has."""
        return number

    def sum_gradients(self, parameters: Sequence[nn.Parameter], loss: float) -> float:
        """Put the sum of all processes' gradients into `grad`; returns the sum of their losses.

        A parameter without a gradient in any of them keeps none.
        """
        return loss

    def broadcast_weights(self, modules: Iterable[nn.Module]) -> None:
        """Give all processes the weights and buffers that the first one has."""

    def check_alike(self, what: str, describe: Callable[[], Any]) -> None:
        """Raise ConfigurationError unless `describe()`, JSON, is the same in all processes.

        Args:
            what: what is described, for the message.
        """

    def from_first(self, content: tuple[Any, Mapping[str, Tensor]] | None) -> tuple[Any, Mapping[str, Tensor]] | None:
        """The first process's content, (JSON, named tensors) or None, in all processes."""
        return content

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """A context in which a lost connection to another process raises LostProcessError."""
        yield
