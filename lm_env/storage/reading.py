"""Read a saved folder: verified, and always from a single save, even while another process saves there."""

from __future__ import annotations

import glob
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from lm_env.errors import CheckpointCorruptError
from lm_env.storage.lock import try_lock
from lm_env.storage.manifest import MANIFEST, looks_saved, problem_of, read_manifest

__all__ = [
    "OLD",
    "folder_of",
    "is_saved_folder",
    "read_folder",
    "read_json",
    "real_place",
    "sweep_links",
    "verify_folder",
]

T = TypeVar("T")

OLD = "old"

# A reader that meets a save tries again after a pause.  The folder is away for microseconds, or for as long as a busy
# machine lets the process wait that puts it back; only after most of a second is the older copy taken, with a warning.
_ATTEMPTS = 500
_AWAY_ATTEMPTS = 400
_PAUSE_S = 0.002


def read_folder(path: str | Path, read: Callable[[Path], T]) -> T:
    """`read(folder)` of a folder that holds what was saved at `path`, verified, and stays as it is meanwhile.

    What `read` gets is a folder of hard links beside `path`, with the saved files alone: another process
    may replace `path` or delete it, and what somebody has added to it is not read.  Where links cannot be
    made, it gets `path` itself; then, if anything there has changed while it read, it is called again.

    Raises:
        CheckpointCorruptError: nothing was saved at `path`, or a file is missing or differs from its
            checksum, in every copy.  A warning tells of a copy that was passed over for an older one.
        CheckpointMismatchError: it was saved in a later version of the format.
    """
    real = real_place(path)
    old = workplace_of(real) / OLD
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_S)
        try:
            return _read_once(real, real, read)
        except _Replaced:
            continue
        except _Unusable as error:
            problem = str(error)
        away = not real.exists()
        if away and old.exists() and attempt < _AWAY_ATTEMPTS:
            continue
        try:
            result = _read_once(old, real, read)
        except _Replaced:
            continue
        except _Unusable:
            if away and real.exists():  # it came back between the two looks
                continue
            raise CheckpointCorruptError(f"{problem}: use another checkpoint, or save again") from None
        warnings.warn(f"{problem}: taking {old}, which was saved before it", stacklevel=3)
        return result
    raise CheckpointCorruptError(f"{real} is replaced faster than it can be read: try again later")


def verify_folder(path: str | Path) -> Path:
    """The newest whole folder that was saved at `path`, which another process may replace; see `read_folder`.

    Raises:
        CheckpointCorruptError, CheckpointMismatchError: see `read_folder`.
    """
    real = real_place(path)
    problems: list[str] = []
    for folder in (real, workplace_of(real) / OLD):
        problem = problem_of(folder)
        if problem is None:
            if problems:
                warnings.warn(f"{problems[0]}: taking {folder}, which was saved before it", stacklevel=4)
            return folder
        problems.append(problem)
    raise CheckpointCorruptError(f"{problems[0]}: use another checkpoint, or save again")


def is_saved_folder(path: str | Path) -> bool:
    """Whether this package saved something at `path`, be it damaged by now."""
    real = real_place(path)
    return looks_saved(real) or looks_saved(workplace_of(real) / OLD)


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a saved folder.

    Raises:
        CheckpointCorruptError: there is none.
    """
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointCorruptError(f"{file.name} cannot be read ({error}): use another checkpoint") from error
    if not isinstance(content, dict):
        raise CheckpointCorruptError(f"{file.name} holds no JSON object: use another checkpoint")
    return content


# -- places -------------------------------------------------------------------------------------------
def folder_of(path: str | Path) -> Path:
    """The folder that a path names: of one that ends in `.zip` and is no folder, the path without that ending.

    stable-baselines3's callbacks put `.zip` behind what they save, and its users write it themselves.
    """
    path = Path(path)
    return path.with_suffix("") if path.suffix == ".zip" and not path.is_dir() else path


def real_place(path: str | Path) -> Path:
    """The folder itself, where `path` is a symbolic link to it or goes through one; see also `folder_of`."""
    return Path(os.path.realpath(folder_of(path)))


def workplace_of(real: Path) -> Path:
    """The folder in which a save of `real` happens."""
    return real.with_name(f".{real.name}.lm_env")


def sweep_links(real: Path) -> None:
    """Remove the links of readers that were killed."""
    for links in real.parent.glob(glob.escape(_links_prefix(real)) + "*"):
        with suppress(OSError):
            handle = os.open(links, os.O_RDONLY)
            try:
                if try_lock(handle):
                    shutil.rmtree(links, ignore_errors=True)
            finally:
                os.close(handle)


def _links_prefix(real: Path) -> str:
    return f".{real.name}.lm_env-read-"


# -- one attempt --------------------------------------------------------------------------------------
class _Unusable(Exception):
    """What lies there is not what was saved."""


class _Replaced(Exception):
    """The folder was replaced, so that what was read may be of two saves."""


def _read_once(folder: Path, real: Path, read: Callable[[Path], T]) -> T:
    """Verify and read: through links if they can be made, else in place."""
    with _opened(folder) as source, _links_beside(real) as links:
        held = folder
        if links is not None and source is not None and _link_all(source, links):
            held = links
        before = _stamps(held)
        problem = problem_of(held)
        if problem is not None:
            if source is not None and not _is_still(folder, source):
                raise _Replaced
            raise _Unusable(problem.replace(str(held), str(folder)))
        try:
            result = read(held)
        except Exception:
            if _stamps(held) != before:
                raise _Replaced from None
            raise
        if _stamps(held) != before:
            raise _Replaced
        return result


@contextmanager
def _opened(folder: Path) -> Iterator[int | None]:
    """A handle of the folder, which stays the same folder when it is renamed; None where there is no such thing."""
    try:
        handle = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    except PermissionError:  # Windows
        yield None
        return
    except OSError as error:
        raise _Unusable(f"nothing that this package saved is at {folder} ({error.strerror})") from error
    try:
        yield handle
    finally:
        os.close(handle)


@contextmanager
def _links_beside(real: Path) -> Iterator[Path | None]:
    """An empty folder beside `real` for links to its files; None where it cannot be made, or not be locked."""
    made = _locked_folder_beside(real)
    if made is None:
        yield None
        return
    links, handle = made
    try:
        yield links
    finally:
        shutil.rmtree(links, ignore_errors=True)
        os.close(handle)


def _locked_folder_beside(real: Path) -> tuple[Path, int] | None:
    """(a new folder for links, its handle); while the handle is open, no save sweeps the folder away."""
    while True:
        try:
            links = Path(tempfile.mkdtemp(prefix=_links_prefix(real), dir=real.parent))
        except OSError:
            return None
        try:
            handle = os.open(links, os.O_RDONLY)
        except FileNotFoundError:  # a save has swept it away already
            continue
        except OSError:  # Windows opens no folders
            links.rmdir()
            return None
        try_lock(handle, shared=True)
        if links.exists():
            return links, handle
        os.close(handle)


def _link_all(source: int, links: Path) -> bool:
    """Link the manifest and what it lists; what is missing is left out.  False where links cannot be made."""
    try:
        _link(source, MANIFEST, links)
        for name in read_manifest(links):
            _link(source, name, links)
    except CheckpointCorruptError:  # `problem_of` tells what is wrong
        return True
    except (OSError, NotImplementedError):
        return False
    return True


def _link(source: int, name: str, links: Path) -> None:
    (links / name).parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        os.link(name, links / name, src_dir_fd=source, follow_symlinks=False)


def _stamps(folder: Path) -> dict[str, tuple[int, int, int]]:
    """(inode, size, mtime) of each file, to detect a change without reading it.

    Raises:
        _Replaced: a folder went away while it was listed.
    """
    found = {}
    try:
        for path in folder.rglob("*"):
            with suppress(FileNotFoundError):
                stat = path.stat()
                found[str(path)] = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    except FileNotFoundError:
        raise _Replaced from None
    return found


def _is_still(folder: Path, source: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(folder), os.fstat(source))
    return False
