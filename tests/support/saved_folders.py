"""What the tests of saved folders share: damage, edits with right checksums, and the files of a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm_env.storage.manifest import MANIFEST, write_manifest


def flip(file: Path, at: int = -1) -> None:
    """Turn one bit of a file around."""
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def files_of(folder: Path) -> list[str]:
    """The names of all files, the manifest among them."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def sign(folder: Path) -> None:
    """Make the manifest anew, as someone does who has edited files and knows how it is made."""
    (folder / MANIFEST).unlink(missing_ok=True)
    write_manifest(folder)


def edit_json(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Change a JSON file of a saved folder, and its checksum with it."""
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(change(content)))
    sign(folder)
