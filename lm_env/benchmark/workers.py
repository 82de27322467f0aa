"""How cells are run: one after the other in this process, or by several worker processes, which end with the runner."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from lm_env.benchmark.cells import run_cell
from lm_env.benchmark.settings import BenchSettings, Cell
from lm_env.errors import TrainingInterrupted
from lm_env.storage import write_file

__all__ = ["Outcome", "run_here", "run_in_processes"]

SAVING_TIME = 120.0
"""Seconds that workers have after a signal to save their cells."""
ERROR = "error.txt"
"""The traceback of a cell that failed."""
LOST = "its process ended without an answer, perhaps killed for memory: try fewer --processes"


@dataclass(frozen=True)
class Outcome:
    """How a cell ended."""

    cell: Cell
    error: str | None = None
    """The error in one line; None: its records are written."""


class _Worker:
    """A process, and the cell that it is running."""

    def __init__(self, settings: BenchSettings, out: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, settings, out), daemon=True)
        self.process.start()
        other.close()
        self.cell: Cell | None = None

    def give(self, cell: Cell) -> None:
        self.cell = cell
        self.connection.send(cell)


def run_here(
    settings: BenchSettings, out: Path, next_cell: Callable[[], Cell | None], stopped: Callable[[], Any]
) -> Iterator[Outcome]:
    """Run one cell after the other in this process, and yield each outcome."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        while not stopped() and (cell := next_cell()) is not None:
            yield _attempt(settings, out, cell)
    finally:
        torch.set_num_threads(before)


def run_in_processes(
    settings: BenchSettings,
    out: Path,
    next_cell: Callable[[], Cell | None],
    stopped: Callable[[], Any],
    processes: int,
) -> Iterator[Outcome]:
    """Run cells in several processes and yield each outcome as it comes; after a signal the workers save and end.

    Args:
        next_cell: returns the next cell that can begin, or None if none can now; called again after each outcome.
        stopped: whether a signal has come.
    """
    workers: list[_Worker] = []
    try:
        while True:
            for worker in workers:
                if worker.cell is None and not stopped() and (cell := next_cell()) is not None:
                    worker.give(cell)
            while len(workers) < processes and not stopped() and (cell := next_cell()) is not None:
                workers.append(_Worker(settings, out))
                workers[-1].give(cell)
            busy = [worker for worker in workers if worker.cell is not None]
            if not busy:
                return
            if stopped():
                yield from _stop(busy)
                return
            for ready in wait([worker.connection for worker in busy], timeout=0.5):
                worker = next(worker for worker in busy if worker.connection is ready)
                cell, worker.cell = worker.cell, None
                assert cell is not None
                try:
                    yield Outcome(cell, worker.connection.recv())
                except (EOFError, OSError):
                    workers.remove(worker)
                    yield Outcome(cell, LOST)
    finally:
        _end(workers)


def _attempt(settings: BenchSettings, out: Path, cell: Cell) -> Outcome:
    """Run a cell; its error, if there is one, becomes part of the outcome.  A stop by a signal is raised.

    The traceback goes into the file `error.txt` of the cell's folder, which the next attempt removes.
    """
    file = out / cell.path / ERROR
    with suppress(OSError):
        file.unlink()
    try:
        run_cell(settings, cell, out)
    except (TrainingInterrupted, KeyboardInterrupt):
        raise
    except (Exception, SystemExit) as error:  # the second where an agent calls sys.exit()
        line = " ".join(f"{type(error).__name__}: {error}".split())
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_file(file, "".join(traceback.format_exception(error)).encode("utf-8", "backslashreplace"))
            line += f" (traceback: {file})"
        return Outcome(cell, line)
    return Outcome(cell)


def _serve(connection: Connection, settings: BenchSettings, out: Path) -> None:
    """What a worker process runs: cells from the connection, until None comes."""
    _end_with_the_runner()
    # Ctrl-C reaches the whole group of processes: the runner decides, and asks by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(settings.threads)
    with suppress(EOFError, OSError):
        while (cell := connection.recv()) is not None:
            connection.send(_attempt(settings, out, cell).error)


def _end_with_the_runner() -> None:
    """End this process at once when the runner has ended, even if it was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    if wait([parent.sentinel], 0):  # it ended while this process was still importing
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()


def _stop(busy: list[_Worker]) -> Iterator[Outcome]:
    """Make the workers save and end: on SIGTERM a training ends after its rollout, anything else at once."""
    for worker in busy:
        worker.process.terminate()
    until = time.monotonic() + SAVING_TIME
    for worker in busy:
        worker.process.join(max(0.0, until - time.monotonic()))
        with suppress(EOFError, OSError):
            if worker.connection.poll() and worker.cell is not None:
                yield Outcome(worker.cell, worker.connection.recv())


def _end(workers: list[_Worker]) -> None:
    for worker in workers:
        with suppress(OSError, ValueError):
            worker.connection.send(None)
    for worker in workers:
        worker.process.join(10)
        if worker.process.is_alive():
            print(f"lm-env: process {worker.process.pid} did not end by itself and is ended", file=sys.stderr)
            worker.process.kill()
            worker.process.join()
