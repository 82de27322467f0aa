"""Write one file whole or not at all; what consists of several files is `write_folder`'s."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["write_file"]


def write_file(path: str | Path, content: str | bytes) -> Path:
    """Have the file hold this content from one moment to the next; text is written in UTF-8.

    Whoever reads meanwhile, or after a kill, finds the earlier file or the new one.  If several processes write, one of
    them wins.

    Raises:
        OSError: it cannot be written; what was there before is still there.
    """
    path = Path(path)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
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
