"""Processes, of `lm-env` above all, forked from one that has torch imported: the import costs more than a small run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess

SERVER = multiprocessing.get_context("forkserver")
IMPORTED = ["lm_env.cli", "lm_env.runs.train", "lm_env.models.fitting", "lm_env.report", "agents", "peft"]


def forked(target: Callable[..., None], *arguments: object) -> ForkServerProcess:
    """A process that will run a function of a module; it is killed with the tests if it has not ended by then."""
    SERVER.set_forkserver_preload(IMPORTED)
    return SERVER.Process(target=target, args=arguments, daemon=True)


class Command:
    """`lm-env WORDS` with what `subprocess.Popen` says of a process; one that is not ended is killed with the tests."""

    def __init__(self, *words: object):
        self.process = forked(_run, [str(word) for word in words])
        self.process.start()

    def poll(self) -> int | None:
        """The exit status, None while it runs."""
        self.process.join(0)
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, as soon as there is one; subprocess.TimeoutExpired after so many seconds."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired("lm-env", timeout)
        return self.process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Send it to the process, which must run."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)


def _run(words: list[str]) -> None:
    from lm_env.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["lm-env", *words]
    main()
