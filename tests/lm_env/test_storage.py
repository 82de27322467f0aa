"""A folder is written whole or not at all, read as one save, and nobody else's file is ever deleted."""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import REPOSITORY
from saved_folders import flip

from lm_env.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointWriteError,
    RunLockedError,
)
from lm_env.storage import (
    FileLock,
    check_destination,
    is_saved_folder,
    lock,
    read_folder,
    remove_folder,
    verify_folder,
    write_folder,
)


def fill_with(number: int, names: tuple[str, ...] = ("a.json", "part/b.json")):
    """A `fill` that writes the number into each file."""

    def fill(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps(number))

    return fill


def numbers(folder: Path) -> set[int]:
    """The numbers in the files of a save; one number if it is one save."""
    return {json.loads(p.read_text()) for p in folder.rglob("*.json") if p.name != "manifest.json"}


def names_in(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*")}


@pytest.fixture
def place(tmp_path) -> Path:
    """A saved folder with the number 1 in it."""
    return write_folder(tmp_path / "agent", fill_with(1))


# -- killed -------------------------------------------------------------------------------------------------
KILLED = """
import json, os, sys, warnings
from pathlib import Path

from lm_env.storage import read_folder, write_folder

EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.chmod", "os.truncate"}
warnings.simplefilter("ignore")  # that an older folder was taken


def fill_with(number):
    def fill(folder):
        (folder / "part").mkdir()
        for name in ("a.json", "part/b.json"):
            (folder / name).write_text(json.dumps(number))
    return fill


def numbers(folder):
    return {json.loads((folder / name).read_text()) for name in ("a.json", "part/b.json")}


def save(path, number, kill_at):
    \"\"\"Save in a child that ends as if killed at its n-th event in the file system; True if it came to its end.\"\"\"
    child = os.fork()
    if not child:
        left = [kill_at]

        def count(event, arguments):
            if event in EVENTS:
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)

        sys.addaudithook(count)
        write_folder(path, fill_with(number))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


base = Path(sys.argv[1])
points = 0
for kill_at in range(1000):
    path = base / str(kill_at) / "agent"
    write_folder(path, fill_with(1))
    (path / "part" / "notes.txt").write_text("mine")
    done = save(path, 2, kill_at)
    found = read_folder(path, numbers)
    assert found in ({1}, {2}), (kill_at, found)
    # A second save is killed on the way, too; every thirteenth point of it.
    for second in range(kill_at % 13, 70, 13):
        (number,) = found
        finished = save(path, number + 1, second)
        found = read_folder(path, numbers)
        assert found == {number + 1} if finished else found in ({number}, {number + 1}), (kill_at, second, found)
    write_folder(path, fill_with(99))
    assert read_folder(path, numbers) == {99}
    assert (path / "part" / "notes.txt").read_text() == "mine", kill_at
    assert os.listdir(path.parent) == ["agent"], (kill_at, os.listdir(path.parent))
    points += 1
    if done:
        break
print(points)
"""


def test_killed_at_any_event_a_whole_save_loads_and_the_next_one_succeeds(tmp_path):
    """Each rename, removal, opening, ... of a save is a point where it is killed, and so are those of the next save.

    A user's note in the folder outlives all of this.
    """
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20, "hardly any point was found"


def test_a_folder_that_is_away_is_taken_from_where_the_save_was_killed(place):
    work = place.with_name(".agent.lm_env")
    work.mkdir()
    os.rename(place, work / "old")
    with pytest.warns(UserWarning, match=r"taking .*\.agent\.lm_env/old"):
        assert read_folder(place, numbers) == {1}
    with pytest.warns(UserWarning, match="which was saved before it"):
        assert verify_folder(place) == work / "old"


# -- what others have written -----------------------------------------------------------------------------------------
FOREIGN = {
    "a file": lambda path: path.write_text("years of work"),
    "a folder": lambda path: (path.mkdir(), (path / "thesis.tex").write_text("years of work")),
    "another manifest": lambda path: (
        path.mkdir(),
        (path / "manifest.json").write_text('{"name": "app", "files": {"thesis.tex": "ab"}}'),
        (path / "thesis.tex").write_text("years of work"),
    ),
    "a list as manifest": lambda path: (path.mkdir(), (path / "manifest.json").write_text("[1, 2]")),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_was_not_saved_here_is_not_replaced(tmp_path, kind):
    path = tmp_path / "x"
    FOREIGN[kind](path)
    before = {p: p.read_bytes() for p in [path, *path.rglob("*")] if p.is_file()}
    for write in (lambda: write_folder(path, fill_with(1)), lambda: check_destination(path)):
        with pytest.raises(CheckpointWriteError, match="was not saved by this package"):
            write()
    assert {p: p.read_bytes() for p in [path, *path.rglob("*")] if p.is_file()} == before
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("name", ["agent.previous", ".agent", "agent.old", ".agent.lm_env-mine"])
def test_folders_beside_it_are_left_alone(place, name):
    beside = place.with_name(name)
    beside.mkdir()
    (beside / "thesis.tex").write_text("years of work")
    write_folder(place, fill_with(2))
    write_folder(place, fill_with(3))
    assert (beside / "thesis.tex").read_text() == "years of work"


def test_a_folder_of_others_where_the_save_would_happen_is_refused(place):
    work = place.with_name(".agent.lm_env")
    (work / "old").mkdir(parents=True)
    (work / "old" / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointWriteError, match="was not made by this package"):
        write_folder(place, fill_with(2))
    (work / "lock").write_text("my own lock")
    with pytest.raises(CheckpointWriteError, match="was not written by this package"):
        write_folder(place, fill_with(2))
    assert (work / "old" / "thesis.tex").read_text() == "years of work"
    assert (work / "lock").read_text() == "my own lock"


def test_notes_links_and_folders_laid_into_a_saved_folder_stay(place, tmp_path):
    (place / "notes.txt").write_text("the good one")
    (place / "part" / "notes.txt").write_text("this part, too")
    (place / "plots" / "deep").mkdir(parents=True)
    (place / "plots" / "deep" / "curve.csv").write_text("1,2")
    (place / "empty").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "data").write_text("d")
    (place / "link").symlink_to(tmp_path / "elsewhere")
    before = names_in(place)
    write_folder(place, fill_with(2, ("a.json",)))
    assert names_in(place) == before - {"part/b.json"}
    assert (place / "part" / "notes.txt").read_text() == "this part, too"
    assert (place / "link").is_symlink() and (tmp_path / "elsewhere" / "data").read_text() == "d"
    assert numbers(verify_folder(place)) == {2}


def test_a_note_whose_name_is_taken_by_the_save_gets_another(place):
    (place / "c.json").write_text('"a note"')
    (place / "d").write_text("a note")
    write_folder(place, fill_with(2, ("a.json", "c.json", "d/e.json")))
    assert {(place / f"{name}.kept-1").read_text() for name in ("c.json", "d")} == {'"a note"', "a note"}
    assert read_folder(place, numbers) == {2}


@settings(max_examples=30, deadline=None)
@given(
    saved=st.lists(st.sampled_from(["a", "b", "d/a", "d/b", "d/e/a"]), unique=True),
    again=st.lists(st.sampled_from(["a", "c", "d/a", "d/c", "d/e/a"]), unique=True),
    added=st.lists(st.sampled_from(["a", "b", "c", "d/a", "d/c", "d/e/b", "f/a"]), unique=True),
)
def test_saving_again_deletes_what_was_saved_and_nothing_else(tmp_path_factory, saved, again, added):
    path = tmp_path_factory.mktemp("x") / "agent"

    def fill(names):
        def write(folder: Path) -> None:
            for name in names:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text("saved")

        return write

    write_folder(path, fill(saved))
    notes = [name for name in added if name not in saved]
    for name in notes:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(f"note {name}")
    write_folder(path, fill(again))
    found = {p.relative_to(path).as_posix(): p.read_text() for p in path.rglob("*") if p.is_file()}
    assert {name for name, text in found.items() if text == "saved"} == set(again)
    assert sorted(text for text in found.values() if text.startswith("note")) == sorted(f"note {n}" for n in notes)
    assert all(found[name] == f"note {name}" for name in notes if name not in again)


def test_a_link_stays_and_the_folder_it_points_to_is_replaced(place, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "latest"
    link.symlink_to(place)
    assert write_folder(link, fill_with(2)) == link
    assert link.is_symlink() and read_folder(place, numbers) == read_folder(link, numbers) == {2}
    assert os.listdir(tmp_path / "elsewhere") == ["latest"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "x").mkdir()
    assert read_folder(write_folder(tmp_path / "x", fill_with(1)), numbers) == {1}


@pytest.mark.parametrize("again", [("a.json", "c"), ("a.json",), ("a.json", "c/d.json")], ids=str)
def test_a_folder_laid_where_a_saved_file_was_is_kept_and_blocks_no_save(tmp_path, again):
    place = write_folder(tmp_path / "agent", fill_with(1, ("a.json", "c")))
    (place / "c").unlink()
    (place / "c").mkdir()
    (place / "c" / "thesis.tex").write_text("years of work")
    for number in (2, 3):
        write_folder(place, fill_with(number, again))
        assert read_folder(place, numbers) == {number}
        assert [p.read_text() for p in place.rglob("thesis.tex")] == ["years of work"]
        assert os.listdir(place.parent) == ["agent"]


@pytest.mark.parametrize("inside", ["", "part"], ids=["itself", "inside"])
def test_the_working_directory_is_not_replaced(place, monkeypatch, inside):
    monkeypatch.chdir(place / inside)
    for write in (lambda: write_folder(place, fill_with(2)), lambda: check_destination(place)):
        with pytest.raises(CheckpointWriteError, match="is the current working directory or holds it; go to another"):
            write()
    assert Path.cwd() == place / inside and read_folder(place, numbers) == {1}
    assert read_folder(write_folder("run", fill_with(2)), numbers) == {2}


def test_an_empty_working_directory_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointWriteError, match="is the current working directory"):
        write_folder(".", fill_with(1))
    assert Path.cwd() == tmp_path and os.listdir(tmp_path) == []


# -- failures and rights ----------------------------------------------------------------------------------------------
def test_whatever_stops_the_writing_nothing_is_left_behind(place):
    def fill(folder: Path) -> None:
        (folder / "half").write_text("")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(place, fill)
    assert os.listdir(place.parent) == ["agent"]
    assert read_folder(place, numbers) == {1}


def test_a_full_disk_leaves_what_was_there(place):
    """A limit on the size of files stands in for it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(CheckpointWriteError, match="what was there before is untouched"):
            write_folder(place, lambda folder: (folder / "a.json").write_text("2" * 30_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_folder(place, numbers) == {1}
    assert os.listdir(place.parent) == ["agent"]


def test_a_disk_too_small_is_found_before_the_work(place):
    with pytest.raises(CheckpointWriteError, match="MB are needed and the disk has"):
        check_destination(place, size=2**60)
    check_destination(place, size=2**10)
    assert os.listdir(place.parent) == ["agent"]


def test_what_cannot_be_deleted_is_not_said_to_be_untouched_and_is_deleted_by_the_next_attempt(place, monkeypatch):
    def refuses(path, **how):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as held:  # a file that a virus scanner holds, on Windows
        held.setattr(Path, "unlink", refuses)
        with pytest.raises(CheckpointWriteError, match=r"cannot delete .*agent: .*; some of its files may be gone"):
            remove_folder(place)
    remove_folder(place)
    assert not os.listdir(place.parent)


def test_a_place_inside_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    for write in (lambda path: write_folder(path, fill_with(1)), check_destination):
        with pytest.raises(CheckpointWriteError, match="cannot write"):
            write(tmp_path / "file" / "agent")


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002], ids=oct)
def test_all_files_have_the_rights_of_the_umask(tmp_path, mask):
    def fill(folder: Path) -> None:
        fill_with(1)(folder)
        (folder / "a.json").chmod(0o600)  # as safetensors leaves its files

    before = os.umask(mask)
    try:
        path = write_folder(tmp_path / "agent", fill)
    finally:
        os.umask(before)
    rights = {stat.S_IMODE(p.stat().st_mode) for p in path.rglob("*") if p.is_file()}
    folders = {stat.S_IMODE(p.stat().st_mode) for p in [path, *path.rglob("*")] if p.is_dir()}
    assert (rights, folders) == ({0o666 & ~mask}, {0o777 & ~mask})


# -- two writers ------------------------------------------------------------------------------------------------------
def test_the_second_writer_is_told_of_the_first(place):
    def fill(folder: Path) -> None:
        for write in (lambda: write_folder(place, fill_with(3)), lambda: check_destination(place)):
            with pytest.raises(RunLockedError, match=f"agent is being written .*process {os.getpid()} on"):
                write()
        fill_with(2)(folder)

    write_folder(place, fill)
    assert read_folder(place, numbers) == {2}
    write_folder(place, fill_with(3))
    assert os.listdir(place.parent) == ["agent"]


HOLDER = """
import sys
from pathlib import Path
from lm_env.storage import write_folder

def fill(folder):
    (folder / "a.json").write_text("5")
    print("inside", flush=True)
    sys.stdin.read()

write_folder(Path(sys.argv[1]), fill)
"""


def test_another_process_holds_the_lock_until_it_is_killed(place):
    command = [sys.executable, "-c", HOLDER, str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY) as other:
        assert other.stdout.readline() == b"inside\n"
        with pytest.raises(RunLockedError, match=f"process {other.pid} on"):
            write_folder(place, fill_with(2))
        assert read_folder(place, numbers) == {1}, "whoever reads is not held up"
        other.kill()
        other.wait()
        write_folder(place, fill_with(2))
    assert read_folder(place, numbers) == {2}
    assert os.listdir(place.parent) == ["agent"]


def test_a_file_system_without_locks_is_told_once(tmp_path, monkeypatch, caplog):
    fcntl = pytest.importorskip("fcntl")

    def has_none(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    lock._tell_without_locks.cache_clear()
    with monkeypatch.context() as network:
        network.setattr(fcntl, "flock", has_none)
        held = [FileLock(tmp_path / name, tmp_path) for name in ("a", "a", "b")]
        for one in held:
            one.release()
    assert caplog.text.count("this file system has no locks ([Errno 37] No locks available)") == 1


def test_a_lock_ends_with_its_object(tmp_path):
    lock = FileLock(tmp_path / "lock", tmp_path)
    with pytest.raises(RunLockedError):
        FileLock(tmp_path / "lock", tmp_path)
    del lock
    FileLock(tmp_path / "lock", tmp_path).release()
    assert not os.listdir(tmp_path)


# -- reading while others write ---------------------------------------------------------------------------------------
WRITER = """
import json, os, sys
from pathlib import Path
from lm_env.storage import write_folder

def fill_with(number):
    def fill(folder):
        (folder / "part").mkdir()
        for name in ("a.json", "b.json", "part/c.json", "part/d.json"):
            (folder / name).write_text(json.dumps(number))
    return fill

number = 1
while os.read(0, 1) == b"s":
    for _ in range(9):  # an odd number, so that each round ends with the other state
        number = 3 - number
        write_folder(Path(sys.argv[1]), fill_with(number))
    os.write(1, b"d")
"""


def test_a_folder_that_goes_away_while_it_is_listed_is_read_again(tmp_path, monkeypatch):
    path = write_folder(tmp_path / ("a" * 240), fill_with(1, ("a.json", "part/b.json")))
    list_folder = Path.rglob
    failures = iter([True, False])

    def vanishing(folder, pattern):
        if next(failures, False):
            raise FileNotFoundError(str(folder))
        return list_folder(folder, pattern)

    monkeypatch.setattr(Path, "rglob", vanishing)
    assert read_folder(path, lambda folder: (folder / "part/b.json").exists())
    assert next(failures, None) is None


@pytest.mark.parametrize("name", ["agent", "a" * 240], ids=["links", "in place"])
def test_a_reader_never_mixes_two_saves(tmp_path, name):
    """Another process saves 1 and 2 in turn while this one reads; each reading is one save, and none fails.

    Beside a folder with so long a name there is no place for links, so that it is read in place.
    """
    path = write_folder(tmp_path / name, fill_with(1, ("a.json", "b.json", "part/c.json", "part/d.json")))
    command = [sys.executable, "-c", WRITER, str(path)]
    seen = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY) as writer:
        for _ in range(10):
            writer.stdin.write(b"s")
            writer.stdin.flush()
            seen += [read_folder(path, numbers) for _ in range(12)]
            assert writer.stdout.read(1) == b"d"
            seen.append(read_folder(path, numbers))  # between two rounds 1 and 2 take turns
        writer.stdin.close()
        writer.wait()
    assert all(found in ({1}, {2}) for found in seen)
    assert {1} in seen and {2} in seen
    assert os.listdir(tmp_path) == [name]


def test_a_folder_is_read_again_if_it_changes_meanwhile(tmp_path):
    """In place, where nothing holds the files: a save between two files is noticed, whether or not reading fails."""
    path = write_folder(tmp_path / ("a" * 240), fill_with(1))
    calls = []

    def read(folder: Path) -> set[int]:
        first = (folder / "a.json").read_text()
        calls.append(first)
        if len(calls) == 1:
            write_folder(path, fill_with(2))
        if len(calls) == 2:
            write_folder(path, fill_with(3))
            raise KeyError("as if by the change")
        return {int(first), int((folder / "part" / "b.json").read_text())}

    assert read_folder(path, read) == {3}
    assert calls == ["1", "2", "3"]


def test_links_hold_a_save_that_is_replaced_meanwhile(place):
    def read(folder: Path) -> set[int]:
        write_folder(place, fill_with(2))
        return numbers(folder)

    assert read_folder(place, read) == {1}
    assert read_folder(place, numbers) == {2}
    assert os.listdir(place.parent) == ["agent"]


def test_links_of_a_killed_reader_are_swept(place):
    code = (
        "import os, sys; from lm_env.storage import read_folder; read_folder(sys.argv[1], lambda folder: os._exit(0))"
    )
    subprocess.run([sys.executable, "-c", code, str(place)], check=True, cwd=REPOSITORY)
    assert len(os.listdir(place.parent)) == 2

    def read(folder: Path) -> set[int]:
        write_folder(place, fill_with(2))
        assert sorted(os.listdir(place.parent)) == sorted(["agent", folder.name]), "a live reader's are not"
        return numbers(folder)

    assert read_folder(place, read) == {1}


def test_where_a_folder_cannot_be_opened_a_save_is_read_in_place(place, monkeypatch):
    """As on Windows."""
    opens = os.open

    def opens_files(path, *how, **more):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return opens(path, *how, **more)

    monkeypatch.setattr(os, "open", opens_files)
    assert read_folder(place, numbers) == {1}
    assert os.listdir(place.parent) == ["agent"]


def test_an_error_of_the_reader_itself_is_its_own(place):
    calls = []

    def read(folder: Path) -> None:
        calls.append(folder)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        read_folder(place, read)
    assert len(calls) == 1
    assert os.listdir(place.parent) == ["agent"]


# -- damage -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["a.json", "part/b.json"])
@pytest.mark.parametrize("load", [lambda path: read_folder(path, numbers), verify_folder], ids=["read", "verify"])
def test_a_damaged_or_missing_file_is_named(place, name, load):
    flip(place / name)
    with pytest.raises(CheckpointCorruptError, match=rf"agent/{name} is damaged"):
        load(place)
    (place / name).unlink()
    with pytest.raises(CheckpointCorruptError, match=rf"agent/{name} is missing"):
        load(place)
    assert os.listdir(place.parent) == ["agent"]


def test_any_flipped_bit_of_the_manifest_is_noticed_and_the_folder_is_still_taken_for_ours(place):
    file = place / "manifest.json"
    content = file.read_bytes()
    for at in range(len(content)):
        flip(file, at)
        assert is_saved_folder(place), at
        if json_or_none(file) != json.loads(content):
            with pytest.raises((CheckpointCorruptError, CheckpointMismatchError)):
                read_folder(place, numbers)
        file.write_bytes(content)


def json_or_none(file: Path):
    try:
        return json.loads(file.read_bytes())
    except ValueError:
        return None


def test_a_manifest_of_another_program_is_not_ours(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "app", "files": ["a.js"]}')
    assert not is_saved_folder(tmp_path)


def test_nothing_there(tmp_path):
    for load in (lambda path: read_folder(path, numbers), verify_folder):
        with pytest.raises(CheckpointCorruptError, match=r"nothing that this package saved is at .*nothing"):
            load(tmp_path / "nothing")
    assert not os.listdir(tmp_path)


def test_a_damaged_folder_gives_way_to_the_one_before_it(place):
    old = place.with_name(".agent.lm_env") / "old"
    old.parent.mkdir()
    write_folder(place.with_name("new"), fill_with(2))
    os.rename(place, old)
    os.rename(place.with_name("new"), place)
    flip(place / "a.json")
    with pytest.warns(UserWarning, match=r"agent/a\.json is damaged.*taking .*old"):
        assert read_folder(place, numbers) == {1}
    flip(old / "a.json")
    with pytest.raises(CheckpointCorruptError, match=r"/agent/a\.json is damaged"):
        read_folder(place, numbers)


def test_a_later_version_is_no_damage(place):
    manifest = json.loads((place / "manifest.json").read_text())
    (place / "manifest.json").write_text(json.dumps({**manifest, "version": 2, "files": None}))
    for load in (lambda path: read_folder(path, numbers), verify_folder):
        with pytest.raises(CheckpointMismatchError, match=r"in version 2 of the format.*use a newer lm_env"):
            load(place)
    with pytest.raises(CheckpointWriteError, match=r"version 2 of .* a newer lm_env, or choose another name"):
        write_folder(place, fill_with(2))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(field=st.sampled_from(["", "format", "version", "checksum", "files"]), value=JSON)
def test_whatever_is_written_into_the_manifest_the_error_is_ours(tmp_path_factory, field, value):
    path = write_folder(tmp_path_factory.mktemp("x") / "agent", fill_with(1))
    manifest = json.loads((path / "manifest.json").read_text())
    edited = {**manifest, field: value} if field else value
    (path / "manifest.json").write_text(json.dumps(edited))
    if edited != manifest and not (field == "files" and value == {}):  # of no files, all are as they were saved
        with pytest.raises(CheckpointError):
            read_folder(path, numbers)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "link", "a/../../secret", "a\0b"])
def test_the_manifest_cannot_name_files_elsewhere(place, tmp_path, name):
    (tmp_path / "secret").write_text("x")
    (place / "link").symlink_to(tmp_path / "secret")
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["files"][name] = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    (place / "manifest.json").write_text(json.dumps(manifest))
    for load in (lambda path: read_folder(path, numbers), verify_folder):
        with pytest.raises(CheckpointCorruptError, match="outside the folder"):
            load(place)
    assert (tmp_path / "secret").read_text() == "x"


@pytest.mark.parametrize("name", ["adapter_config.json", "part/more.safetensors", "chat_template.jinja"])
def test_what_was_added_later_is_not_read(place, name):
    """The folder of links has no such file; the folder itself, which transformers would search, is refused."""
    (place / name).write_text("7")
    assert name not in read_folder(place, names_in)
    with pytest.raises(CheckpointCorruptError, match="was added later"):
        verify_folder(place)
