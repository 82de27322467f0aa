"""Single files: written whole or not at all, and read line by line.  Several together are `write_folder`'s."""

from __future__ import annotations

import os
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from lm_env.errors import CheckpointWriteError

__all__ = ["check_file_destination", "read_lines", "write_file"]


def check_file_destination(path: str | Path, remedy: str) -> None:
    """Make the folder of a file that is to be written, and see that it can be: before the work, and not after it.

    Args:
        remedy: what the message ends with, such as "choose another --out".

    Raises:
        CheckpointWriteError: it cannot be written; what is there is untouched.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise CheckpointWriteError(f"cannot write {path}: {error}; {remedy}") from error


def write_file(path: str | Path, content: str | bytes) -> Path:
    """Have the file hold this content from one moment to the next; text is written in UTF-8.

    Whoever reads meanwhile, or after a kill, finds the earlier file or the new one.  If several processes or threads
    write, one of them wins.

    Raises:
        OSError: it cannot be written; what was there before is still there.
    """
    path = Path(path)
    new = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.new")
    try:
        with new.open("wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise
    return path


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file in UTF-8, without their ends; only a line feed, or CR and LF, ends a line.

    `str.splitlines` cuts at U+0085, U+2028 and U+2029 as well, which a text within a line may hold.

    Raises:
        OSError, UnicodeDecodeError: it cannot be read.
    """
    *lines, rest = Path(path).read_text(encoding="utf-8").split("\n")
    return [*lines, rest] if rest else lines
