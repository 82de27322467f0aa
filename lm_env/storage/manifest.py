"""The manifest of a saved folder: what was saved in it, with checksums.

{"format": "lm_env", "version": 1, "checksum": "sha256", "files": {"agent/state.json": "ab12...", ...}}
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath

from lm_env.errors import CheckpointCorruptError, CheckpointMismatchError

__all__ = ["MANIFEST", "looks_saved", "problem_of", "read_manifest", "write_manifest"]

MANIFEST = "manifest.json"
FORMAT = "lm_env"
VERSION = 1
CHECKSUM = "sha256"

# What transformers reads without being asked, if it finds it.
_READ_UNASKED = (".jinja", ".json", ".model", ".safetensors")


def write_manifest(folder: Path) -> None:
    """List all files of the folder with their checksums."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    digests = {p.relative_to(folder).as_posix(): _digest(p) for p in files}
    content = {"format": FORMAT, "version": VERSION, "checksum": CHECKSUM, "files": digests}
    (folder / MANIFEST).write_text(json.dumps(content, indent=1))


def read_manifest(folder: Path) -> dict[str, str]:
    """Return {name of a saved file: checksum}.

    Raises:
        CheckpointCorruptError: there is no manifest of this package, or it is damaged.
        CheckpointMismatchError: a later version of this package wrote it.
    """
    file = folder / MANIFEST
    try:
        content = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointCorruptError(f"nothing that this package saved is at {folder} (no {MANIFEST})") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointCorruptError(f"{file} is damaged ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointCorruptError(f"{file} is damaged, or of another program (its format is not {FORMAT!r})")
    version = content.get("version")
    if isinstance(version, int) and version > VERSION:
        raise CheckpointMismatchError(
            f"{folder} was saved in version {version} of the format and this package reads up to {VERSION}:"
            " use a newer lm_env"
        )
    files = content.get("files")
    if (
        version != VERSION
        or content.get("checksum") != CHECKSUM
        or not isinstance(files, dict)
        or not all(isinstance(digest, str) for digest in files.values())
    ):
        raise CheckpointCorruptError(f"{file} is damaged (it is not as it was written)")
    for name in files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name:
            raise CheckpointCorruptError(f"{file} names a file outside the folder")
    return files


def looks_saved(folder: Path) -> bool:
    """Whether the manifest looks like one of this package, even if damaged."""
    try:
        content = (folder / MANIFEST).read_bytes()
    except OSError:
        return False
    return f'"{FORMAT}"'.encode() in content or f'"{CHECKSUM}"'.encode() in content


def problem_of(folder: Path) -> str | None:
    """What is wrong with a saved folder, as a sentence; None if all is as it was saved.

    Raises:
        CheckpointMismatchError: see `read_manifest`.
    """
    try:
        files = read_manifest(folder)
    except CheckpointCorruptError as error:
        return str(error)
    inside = folder.resolve()
    try:
        for name, digest in files.items():
            if not (folder / name).resolve().is_relative_to(inside):
                return f"{folder / MANIFEST} names a file outside the folder"
            if not (folder / name).is_file():
                return f"{folder / name} is missing"
            if _digest(folder / name) != digest:
                return f"{folder / name} is damaged (its checksum differs)"
        for file in folder.rglob("*"):
            if file.suffix in _READ_UNASKED and file.relative_to(folder).as_posix() not in {MANIFEST, *files}:
                return f"{file} was added later (it is not in {MANIFEST})"
    except (OSError, ValueError) as error:
        return f"{folder} cannot be read ({error})"
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, CHECKSUM).hexdigest()
