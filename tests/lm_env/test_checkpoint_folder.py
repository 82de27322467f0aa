"""A run's folder of checkpoints: which is due, which are kept, which is the newest that can be read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from paths import REPOSITORY
from saved_folders import files_of, flip

from lm_env.errors import CheckpointCorruptError, CheckpointMismatchError, CheckpointWriteError, TrainingInterrupted
from lm_env.storage import (
    CheckpointFolder,
    Checkpointing,
    StopSignals,
    checkpoints_in,
    read_folder,
    read_json,
    remove_folder,
    write_folder,
)


def save(folder: CheckpointFolder, step: int) -> None:
    folder.save(
        step, lambda path: write_folder(path, lambda new: (new / "state.json").write_text(json.dumps({"n": step})))
    )


def read(path: Path) -> int:
    return read_folder(path, lambda held: read_json(held / "state.json")["n"])


def names(root: Path) -> list[str]:
    return [path.name for path in checkpoints_in(root)]


@pytest.fixture
def folder(tmp_path):
    with CheckpointFolder(Checkpointing(tmp_path / "run", every=10, keep=2)) as folder:
        yield folder


def test_when_one_is_due(folder):
    folder.begin(100)
    assert [folder.is_due(step) for step in (100, 109, 110, 500)] == [False, False, True, True]
    save(folder, 110)
    assert [folder.is_due(step) for step in (119, 120)] == [False, True]


def test_the_oldest_are_deleted_and_the_order_is_that_of_numbers(folder):
    for step in (5, 999_999_999, 1_000_000_000, 20_000_000_000):
        save(folder, step)
    assert names(folder.root) == ["1000000000", "20000000000"]
    assert sorted(os.listdir(folder.root)) == [".lock", "1000000000", "20000000000"], "nothing else is left"


def test_notes_and_other_folders_are_never_deleted(folder):
    save(folder, 1)
    (folder.place(1) / "notes.txt").write_text("the good one")
    (folder.root / "000000002").mkdir()
    (folder.root / "000000002" / "mine.txt").write_text("mine")
    (folder.root / "figures").mkdir()
    for step in (3, 4, 5):
        save(folder, step)
    assert (folder.place(1) / "notes.txt").read_text() == "the good one"
    assert files_of(folder.place(1)) == ["notes.txt"]
    assert (folder.root / "000000002" / "mine.txt").read_text() == "mine"
    assert {"000000004", "000000005", "figures"} <= set(os.listdir(folder.root))
    assert "000000003" not in os.listdir(folder.root)


def test_a_reader_goes_on_reading_what_is_deleted_meanwhile(folder):
    save(folder, 1)

    def slowly(held: Path) -> int:
        save(folder, 2), save(folder, 3)
        assert names(folder.root) == ["000000002", "000000003"]
        return read_json(held / "state.json")["n"]

    assert read_folder(folder.place(1), slowly) == 1


def test_what_lies_in_the_way_is_put_aside_each_under_a_name_of_its_own(folder):
    for _ in range(3):
        save(folder, 1)
        flip(folder.place(1) / "state.json")
        with pytest.warns(UserWarning, match=r"passed over the checkpoint 000000001.*starting from the beginning"):
            assert folder.newest(read) is None
    aside = {"000000001.damaged", "000000001.damaged-1", "000000001.damaged-2"}
    assert set(os.listdir(folder.root)) == {".lock", *aside}


def test_another_runs_checkpoint_is_an_error_and_not_passed_over(folder):
    save(folder, 1)

    def refuse(path):
        raise CheckpointMismatchError("seed differs")

    with pytest.raises(CheckpointMismatchError):
        folder.newest(refuse)
    assert names(folder.root) == ["000000001"]


def test_what_a_killed_save_left_is_removed_when_the_next_run_begins(tmp_path):
    (tmp_path / ".000000007.lm_env" / "new").mkdir(parents=True)
    (tmp_path / ".000000007.lm_env" / "lock").touch()
    (tmp_path / ".000000007.lm_env" / "new" / "half.safetensors").write_bytes(b"x" * 1000)
    with CheckpointFolder(Checkpointing(tmp_path)) as folder:
        folder.check_room(10)
        assert os.listdir(tmp_path) == [".lock"]


def test_no_room_is_found_before_the_run(folder):
    with pytest.raises(CheckpointWriteError, match="MB are needed"):
        folder.check_room(10**18)


def test_removing_what_was_not_saved_is_refused(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointCorruptError, match="nothing that this package saved"):
        remove_folder(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "thesis.tex").exists() and os.listdir(tmp_path) == ["thesis"]
    remove_folder(tmp_path / "nothing")
    assert os.listdir(tmp_path) == ["thesis"]


# -- killed ------------------------------------------------------------------------------------------
KILLED = """
import json, os, sys, warnings
from pathlib import Path
from lm_env.storage import CheckpointFolder, Checkpointing, read_folder, read_json, write_folder

EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.chmod", "os.truncate"}
warnings.simplefilter("ignore")


def save(folder, step):
    def fill(new):
        (new / "part").mkdir()
        (new / "part" / "state.json").write_text(json.dumps({"n": step}))

    folder.save(step, lambda path: write_folder(path, fill))


def read(path):
    return read_folder(path, lambda held: read_json(held / "part" / "state.json")["n"])


points = 0
for kill_at in range(1000):
    options = Checkpointing(Path(sys.argv[1]) / str(kill_at), every=1, keep=1)
    with CheckpointFolder(options) as folder:
        save(folder, 1)
    child = os.fork()
    if not child:
        folder = CheckpointFolder(options)
        left = [kill_at]

        def count(event, arguments):
            if event in EVENTS:
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)

        sys.addaudithook(count)
        save(folder, 2)
        os._exit(0)
    done = os.waitpid(child, 0)[1] == 0
    with CheckpointFolder(options) as folder:
        found = folder.newest(read)
        assert found is not None and found[1] in ((2,) if done else (1, 2)), (kill_at, found)
        folder.check_room(100)
        save(folder, 2)
        save(folder, 3)
        assert folder.newest(read)[1] == 3
        assert sorted(os.listdir(folder.root)) == [".lock", "000000003"], (kill_at, os.listdir(folder.root))
    points += 1
    if done:
        break
print(points)
"""


def test_killed_at_any_event_of_a_save_and_of_the_deletion_after_it(tmp_path):
    """One checkpoint is kept, so that the deletion of the one before is part of each save."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30


# -- signals -----------------------------------------------------------------------------------------
def test_an_ignored_signal_stays_ignored_and_a_handler_comes_back():
    calls = []
    before = signal.signal(signal.SIGTERM, lambda *_: calls.append(1))
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals("it is saved") as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.received is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.received is signal.SIGTERM and not calls
            os.kill(os.getpid(), signal.SIGTERM)
            assert calls == [1]
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, ignored)


def test_nobody_catches_it_and_the_exit_code_is_75():
    code = "from lm_env.errors import TrainingInterrupted; raise TrainingInterrupted('saved')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert (done.returncode, done.stdout + done.stderr) == (75, "")
    assert str(TrainingInterrupted("saved")) == "saved"
