"""Servers of the labelling page for tests: in a thread, or in a process that can be killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path

TOKEN = "token-of-the-test"
PATIENCE_S = 60


@contextmanager
def page_of(store, settings=None, *, order="random", port=0):
    """Serve a file of labels from a thread; the address of the page, with its token."""
    from reward_models.labelling import QuestionChooser
    from reward_models.labelling.app import CONNECTIONS, make_app
    from reward_models.labelling.page import LabellingSession, PageSettings
    from reward_models.serving.running import RunningApplication

    session = LabellingSession(store, QuestionChooser(store, order), settings or PageSettings())
    app = make_app(session, TOKEN)
    server = RunningApplication("127.0.0.1", port)
    server.start(app, connections=CONNECTIONS)
    try:
        yield f"{server.url}/#token={TOKEN}"
    finally:
        server.stop()


def processes():
    """Where processes come from that have imported everything before they begin, and so begin at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lm_env.cli", "reward_models.labelling", "reward_models.labelling.app", "uvicorn"])
    return context


def run_command(arguments, log):
    """`lm-env` with these arguments, what it prints in a file."""
    import sys

    from lm_env.cli import main

    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.argv = ["lm-env", *arguments]
    main()


class CommandServer:
    """`lm-env label` with SIGKILL at hand."""

    def __init__(self, data: Path, store: Path, port: int, *options: str) -> None:
        log = store.with_name("server.log")
        log.unlink(missing_ok=True)
        arguments = ["label", str(data), "--out", str(store), "--port", str(port), *options]
        self.process = processes().Process(target=run_command, args=(arguments, str(log)), daemon=True)
        self.process.start()
        deadline = time.monotonic() + PATIENCE_S
        while not (log.exists() and "#token=" in log.read_text() and "Ctrl-C" in log.read_text()):
            assert time.monotonic() < deadline and self.process.is_alive(), log.exists() and log.read_text()
            self.process.join(0.02)
        self.address = next(line.split()[-1] for line in log.read_text().splitlines() if "#token=" in line)

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()


def answer_and_die(path):
    """Answer a question in a new file of labels, and end without closing anything right after it was taken."""
    from reward_models.labelling import Answer, Item, LabelStore

    store = LabelStore(path)
    store.add([Item("p", ("a", "b"))])
    shown = store.present("ana", lambda candidates: candidates[0])
    store.record("ana", Answer("x", shown.id, "tie"))
    os.kill(os.getpid(), signal.SIGKILL)
