"""SIGKILL to server and browser while labels are given; a short form of benchmarks/label_kills.py."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import module_from_spec, spec_from_file_location

import pytest
from labelling_server import CommandServer, answer_and_die, processes
from paths import REPOSITORY

from reward_models.labelling import LabelStore

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it sends SIGKILL")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


def test_an_answer_is_on_the_disk_when_it_is_reported(tmp_path):
    path = tmp_path / "labels.sqlite"
    process = processes().Process(target=answer_and_die, args=(str(path),))
    process.start()
    process.join()
    store = LabelStore(path, create=False)
    assert [answer.id for answer in store.answers()] == ["x"]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_labels_survive_kills(tmp_path):
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    playwright = pytest.importorskip("playwright.sync_api")
    spec = spec_from_file_location("label_kills", REPOSITORY / "benchmarks" / "label_kills.py")
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    with playwright.sync_playwright() as running:
        found = script.label_all(
            running, CHROMIUM, tmp_path, labels=12, kills=2, start=CommandServer, say=lambda text: None
        )
    assert {name: found[name] for name in ("labels", "lost", "twice", "wrong")} == {
        "labels": 12,
        "lost": 0,
        "twice": 0,
        "wrong": 0,
    }
