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

Result = TypeVar("Result")


class Processes:
    """A run in one process; `ProcessGroup` is one of several."""

    rank: int = 0
    """The number of this process, counted from 0."""
    count: int = 1
    """How many processes there are."""

    @property
    def first(self) -> bool:
        """Whether this is the process of rank 0, the only one that logs and saves."""
        return self.rank == 0

    # -- how work is divided --------------------------------------------------------------------------
    def share(self, things: int) -> slice:
        """Which of some things in a row this process handles.

        The shares of all processes are disjoint, cover everything, follow each other in the order of the ranks, and
        differ in length by at most 1.

        Args:
            things: how many there are.
        """
        return slice(things * self.rank // self.count, things * (self.rank + 1) // self.count)

    def deal(self, lengths: np.ndarray) -> np.ndarray:
        """The rows of a minibatch whose gradient this process computes, such that all have about as many tokens.

        Args:
            lengths: int (k,), tokens of each row; the same in all processes.

        Returns:
            int, indexes into `lengths`, ascending.  Each row is dealt to one process.
        """
        return np.arange(len(lengths))

    # -- what the processes exchange ----------------------------------------------------------------------
    def gather_rows(self, arrays: Mapping[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
        """The rows of all processes, in the order of their ranks; every process gets them.

        Args:
            arrays: name -> numbers (rows,) or (rows, width).  Where widths differ between processes, rows are padded
                with 0 on the right.
            rows: how many rows this process contributes.  A name that only other processes have stands in the result
                too, with so many NaN for this process.

        Returns:
            name -> numbers (rows of all processes,) or (rows of all processes, width).
        """
        return dict(arrays)

    def gather(self, content: Any) -> list[Any]:
        """What each process has given, JSON, in the order of the ranks; every process gets the list."""
        return [content]

    def any(self, flag: bool) -> bool:
        """Whether the flag is True in at least one process; all processes get the same answer."""
        return flag

    def wait(self) -> None:
        """Return once all processes have come to this point."""

    def attempt(self, work: Callable[[], Result], kind: type[LMEnvError]) -> Result:
        """Do work that may fail in one process and not in another, so that either all go on or all raise.

        Args:
            work: this process's part.
            kind: the error that may occur.

        Returns:
            what this process's `work` returned.

        Raises:
            kind: `work` raised it in this process, or in another one, which the message then names.
        """
        return work()

    def largest(self, number: int) -> int:
        """The largest number that any of the processes has."""
        return number

    def sum_gradients(self, parameters: Sequence[nn.Parameter], loss: float) -> float:
        """Replace each gradient by its sum over all processes; returns the sum of their losses.

        A parameter that has a gradient in no process keeps none.

        Args:
            parameters: the same ones in the same order in all processes.
            loss: this process's part.
        """
        return loss

    def broadcast_weights(self, modules: Iterable[nn.Module]) -> None:
        """Give all processes the weights and buffers that the first one has, in place."""

    def check_alike(self, what: str, describe: Callable[[], Any]) -> None:
        """Check that something is the same in all processes.

        Args:
            what: what is described, for the message: "the training".
            describe: returns JSON; it is not called in a run of one process.

        Raises:
            ConfigurationError: what it returns differs between processes.
        """

    def from_first(self, content: tuple[Any, Mapping[str, Tensor]] | None) -> tuple[Any, Mapping[str, Tensor]] | None:
        """What the first process gives, (JSON, tensors by name) or None; every process gets it.

        Of several processes, all get the tensors on the CPU.

        Args:
            content: is only read in the first process.
        """
        return content

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """A context for an exchange with other processes.

        Raises:
            LostProcessError: the connection to another process is lost.
        """
        yield
