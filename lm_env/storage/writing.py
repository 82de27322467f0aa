"""Write a folder whole or not at all, and delete nothing but what was saved."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from lm_env.errors import CheckpointCorruptError, CheckpointMismatchError, CheckpointWriteError, LMEnvError
from lm_env.storage.lock import FileLock
from lm_env.storage.manifest import MANIFEST, read_manifest, write_manifest
from lm_env.storage.reading import OLD, folder_of, real_place, sweep_links, workplace_of

__all__ = ["check_destination", "remove_folder", "write_folder"]

NEW = "new"
LOCK = "lock"


def check_destination(path: str | Path, *, size: int = 0) -> None:
    """Raise what `write_folder` would raise at `path`; better before the work than after it.

    Args:
        size: bytes that will be written there, as far as they are known.

    Raises:
        CheckpointWriteError: `path` holds something that was not written here, or cannot be written,
            or the disk has no room for `size` bytes.
        RunLockedError: another writer is at work there.
    """
    real = real_place(path)
    with _wrapped(real):
        _check_replaceable(real)
        with _workplace(real):
            free = shutil.disk_usage(real.parent).free
        if free < size:
            raise OSError(f"{size / 1e6:,.0f} MB are needed and the disk has {free / 1e6:,.0f} MB left")


def write_folder(path: str | Path, fill: Callable[[Path], object]) -> Path:
    """Have `fill(folder)` write files, then put the folder at `path` in one step.

    If a folder was saved there before, the files listed in its manifest are deleted and all others stay.
    If `path` is a symbolic link, the link stays and the folder it points to is replaced.

    Returns:
        the folder, absolute: `path`, or what `folder_of` makes of one that ends in `.zip`.

    Raises:
        CheckpointWriteError: anything went wrong, or `path` holds something that was not written here;
            what was at `path` before is still there.
        RunLockedError: another writer is at work there.
    """
    real = real_place(path)
    with _wrapped(real):
        _check_replaceable(real)
        with _workplace(real) as work:
            old = work / OLD
            if old.exists() and not real.exists():  # killed between the two renames of `_swap`
                os.rename(old, real)
            new = work / NEW
            new.mkdir()
            try:
                fill(new)
                write_manifest(new)
                _give_equal_rights(new)
                _flush(new)
                _swap(new, real, old)
            finally:
                shutil.rmtree(new, ignore_errors=True)  # gone already if all went well
            # The save is done: what cannot be removed now is tried again by the next one.
            with suppress(OSError):
                _retire(old, real)
    return folder_of(path).absolute()


def remove_folder(path: str | Path) -> None:
    """Delete what was saved at `path`, and what a killed save has left beside it; files of others stay.

    Raises:
        CheckpointWriteError: it cannot be deleted.
        CheckpointCorruptError: what is at `path` was not saved by this package, and is untouched.
        RunLockedError: another writer is at work there.
    """
    real = real_place(path)
    consequence = "some of its files may be gone, and the next attempt deletes the rest"
    with _wrapped(real, "delete", consequence), _workplace(real) as work:
        old = work / OLD
        if real.exists():
            read_manifest(real)
            _retire(old, real)
            os.rename(real, old)  # in one step, so that a reader finds all of it or nothing
        _retire(old, real)


@contextmanager
def _wrapped(
    real: Path, what: str = "write", consequence: str = "what was there before is untouched"
) -> Iterator[None]:
    try:
        yield
    except LMEnvError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointWriteError(f"cannot {what} {real}: {error}; {consequence}") from error


def _check_replaceable(real: Path) -> None:
    if not os.path.lexists(real):
        return
    if _is_around_the_working_directory(real):
        raise OSError("it is the current working directory or holds it; go to another directory or choose another name")
    if real.is_dir() and not any(real.iterdir()):
        return
    try:
        read_manifest(real)
    except CheckpointMismatchError as error:
        raise FileExistsError(f"{error}, or choose another name") from error
    except CheckpointCorruptError as error:
        raise FileExistsError(f"{real} was not saved by this package; choose another name or remove it") from error


def _is_around_the_working_directory(real: Path) -> bool:
    """Whether a save there would rename the folder that this process is in, so that no relative path works any more."""
    with suppress(OSError):  # it was deleted, or cannot be looked at
        here = Path.cwd()
        return any(os.path.samefile(real, folder) for folder in (here, *here.parents))
    return False


@contextmanager
def _workplace(real: Path) -> Iterator[Path]:
    """Inside, the work folder of `real` is there and locked, and nothing of killed saves and readers is left in it."""
    work = workplace_of(real)
    while True:
        work.mkdir(parents=True, exist_ok=True)
        found = os.listdir(work)
        if found and LOCK not in found:
            raise FileExistsError(f"{work} was not made by this package; remove it, or choose another name")
        with suppress(FileNotFoundError):  # another writer has just removed the folder
            lock = FileLock(work / LOCK, real)
            break
    try:
        shutil.rmtree(work / NEW, ignore_errors=True)
        sweep_links(real)
        yield work
    finally:
        if os.listdir(work) == [LOCK]:
            lock.release()
        else:  # the file stays with what could not be removed, as the sign that the folder is ours
            lock.release_and_keep_file()
        with suppress(OSError):
            work.rmdir()


def _swap(new: Path, real: Path, old: Path) -> None:
    if old.exists():
        _retire(old, real)
    if real.exists():
        os.rename(real, old)
    try:
        os.rename(new, real)
    except OSError:
        if old.exists():
            os.rename(old, real)
        raise
    _flush_one(real.parent)


def _retire(old: Path, real: Path) -> None:
    """Delete the saved files of `old`; all else in it was put there by somebody else and moves to `real`.

    The manifest goes last, so that this can be gone through again after a kill.
    """
    if not old.exists():
        return
    try:
        saved = read_manifest(old)
    except CheckpointCorruptError:  # its manifest is gone already, and so is all that it listed
        saved = {}
    ours = {old / name for name in saved}
    for file in _others(old, real, {*ours, old / MANIFEST}):
        target = _free_place(real, file.relative_to(old))
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(file, target)
    for file in ours:
        if file.is_symlink() or not file.is_dir():  # a folder here is empty by now
            file.unlink(missing_ok=True)
    for folder, _, _ in os.walk(old, topdown=False):
        if folder != str(old):
            os.rmdir(folder)
    (old / MANIFEST).unlink(missing_ok=True)
    old.rmdir()


def _others(folder: Path, target: Path, ours: set[Path]) -> list[Path]:
    """Files, links and folders that were not saved; a folder that `target` also has is listed entry by entry.

    Only files are saved, so that a folder where a saved file lay is somebody else's.
    """
    our_folders = {parent for file in ours for parent in file.parents}
    found: list[Path] = []
    for entry in sorted(folder.iterdir()):
        shared = entry in our_folders or (target / entry.name).is_dir()
        is_folder = entry.is_dir() and not entry.is_symlink()
        if shared and is_folder:
            found += _others(entry, target / entry.name, ours)
        elif is_folder or entry not in ours:
            found.append(entry)
    return found


def _free_place(real: Path, name: Path) -> Path:
    """Where to put somebody's file: by its own name, or by one that is free, so that it replaces nothing."""
    target = real / name
    taken = os.path.lexists(target) or not all(p.is_dir() or not os.path.lexists(p) for p in target.parents)
    number = 0
    while taken:
        number += 1
        target = real / f"{'_'.join(name.parts)}.kept-{number}"
        taken = os.path.lexists(target)
    return target


def _give_equal_rights(folder: Path) -> None:
    """All files as the umask has them; safetensors and temporary files are readable by their owner alone."""
    mode = (folder / MANIFEST).stat().st_mode & 0o777  # written by a plain `open`
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _flush(folder: Path) -> None:
    """Have everything in the folder on the disk before it takes its place."""
    for path in [*folder.rglob("*"), folder]:
        _flush_one(path)


def _flush_one(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
