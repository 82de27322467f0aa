"""One writer at a time: a lock on a file, which the operating system lets go of when its process ends."""

from __future__ import annotations

import logging
import os
import socket
import weakref
from contextlib import suppress
from functools import cache
from pathlib import Path

from lm_env.errors import CheckpointWriteError, RunLockedError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["FileLock", "try_lock"]

log = logging.getLogger(__name__)

_MARK = b"lock of lm_env"
_BEYOND = 2**30  # Windows locks bytes, and nobody else can read a locked one.


class FileLock:
    """Held from here until `release`, or until the object or its process is gone.

    A file that a killed process has left behind is locked anew.

    Args:
        path: the file; made, and removed on release.
        place: what it stands for, in messages.

    Raises:
        RunLockedError: another writer holds it.
        CheckpointWriteError: the file there is none of this package's.
        OSError: it cannot be made.
    """

    def __init__(self, path: Path, place: Path) -> None:
        handle = _open_locked(path, place)
        content = os.read(handle, 1000)
        if content and not content.startswith(_MARK):
            os.close(handle)
            raise CheckpointWriteError(f"{path} was not written by this package: remove it, or choose another place")
        os.ftruncate(handle, 0)
        os.pwrite(handle, _MARK + f", process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._handle = handle
        self._release = weakref.finalize(self, _release, handle, path, os.getpid())

    def release(self) -> None:
        """Remove the file and let others write; the second time nothing happens."""
        self._release()

    def release_and_keep_file(self) -> None:
        """Let others write; the file stays."""
        if self._release.detach():
            _unlock(self._handle)


def try_lock(handle: int, *, shared: bool = False) -> bool:
    """Lock an open file or folder without waiting; False if somebody else holds it.

    On a file system without locks it is True for everybody, and the log says so.
    """
    try:
        if fcntl is not None:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        elif os.name == "nt":
            import msvcrt

            os.lseek(handle, _BEYOND, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:  # a file system without locks: nothing can be known
        if not shared:
            _tell_without_locks(str(error))
    return True


@cache
def _tell_without_locks(reason: str) -> None:
    """Once in a process."""
    log.warning("this file system has no locks (%s): see to it that no two runs write to the same folder", reason)


def _open_locked(path: Path, place: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        if not try_lock(handle):
            holder = os.read(handle, 1000).decode(errors="replace").strip() or "another process"
            os.close(handle)
            raise RunLockedError(f"{place} is being written by another writer ({holder}): wait for it, or end it")
        # The former holder may have removed the file between the two lines above.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)


def _release(handle: int, path: Path, owner: int) -> None:
    if os.getpid() != owner:  # a forked process has a copy of the object, and not the lock
        return
    with suppress(OSError):
        os.unlink(path)
    _unlock(handle)


def _unlock(handle: int) -> None:
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # also for forked processes, which share the open file
    os.close(handle)
