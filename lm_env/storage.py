"""The one way to disk: a folder is written whole or not at all, and verified when it is read.

A folder is written beside its place under a temporary name, with a manifest of checksums last,
flushed, and renamed.  What was there before is moved to `NAME.previous` and removed afterwards, so a
process killed at any moment leaves a whole folder behind; the loader looks for both.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from lm_env.errors import CheckpointCorruptError, CheckpointWriteError

__all__ = ["check_destination", "verify_folder", "write_folder"]

MANIFEST = "manifest.json"


def check_destination(path: Path) -> None:
    """Raise CheckpointWriteError where `write_folder` could not write; better before the work than after it."""
    path = path.absolute()
    try:
        for folder in (path, _previous(path)):
            if folder.exists() and not (folder / MANIFEST).is_file() and not _is_empty(folder):
                raise FileExistsError(f"{folder} was not saved by this package; choose another name or remove it")
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent).cleanup()
    except OSError as error:
        raise CheckpointWriteError(f"cannot write {path}: {error}; what was there before is untouched") from error


def write_folder(path: Path, fill: Callable[[Path], object]) -> Path:
    """Have `fill(folder)` write files, then put the folder at `path` in one step.

    Raises:
        CheckpointWriteError: anything went wrong, or `path` holds something that was not written here;
            what was at `path` before is still there.
    """
    path = path.absolute()
    check_destination(path)
    staging: Path | None = None
    try:
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        fill(staging)
        files = sorted(p for p in staging.rglob("*") if p.is_file())
        manifest = {str(p.relative_to(staging)): _digest(p) for p in files}
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for written in [*staging.rglob("*"), staging]:
            _flush(written)
        os.chmod(staging, 0o755)
        _swap(staging, path)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointWriteError(f"cannot write {path}: {error}; what was there before is untouched") from error
    finally:
        if staging is not None:  # gone already if all went well
            shutil.rmtree(staging, ignore_errors=True)
    return path


def verify_folder(path: Path) -> Path:
    """The newest whole folder at `path`; a warning tells of one that was passed over.

    Raises:
        CheckpointCorruptError: a file is missing or differs from its checksum, in every copy.
    """
    problems: list[str] = []
    for folder in (path, _previous(path)):
        problem = _problem(folder)
        if problem is None:
            if problems:
                warnings.warn(f"{problems[0]}: taking {folder}, which was saved before it", stacklevel=4)
            return folder
        problems.append(problem)
    raise CheckpointCorruptError(f"{problems[0]}: use another checkpoint, or save again")


def _swap(staging: Path, path: Path) -> None:
    previous = _previous(path)
    if path.exists():
        shutil.rmtree(previous, ignore_errors=True)
        os.rename(path, previous)
    os.rename(staging, path)
    _flush(path.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _previous(path: Path) -> Path:
    return path.with_name(path.name + ".previous")


def _problem(folder: Path) -> str | None:
    if not (folder / MANIFEST).is_file():
        return f"{folder} is no saved agent (it has no {MANIFEST})"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, digest in manifest.items():
            if not (folder / name).resolve().is_relative_to(folder.resolve()):
                return f"{folder / MANIFEST} names a file outside the folder"
            if not (folder / name).is_file():
                return f"{folder / name} is missing"
            if _digest(folder / name) != digest:
                return f"{folder / name} is damaged (its checksum differs)"
        # transformers reads what it finds (an adapter, say), so nothing of that kind may have been added.
        for file in [*folder.glob("*"), *folder.glob("agent/*")]:
            if file.suffix in (".json", ".safetensors") and str(file.relative_to(folder)) not in {MANIFEST, *manifest}:
                return f"{file} was added later (it is not in {MANIFEST})"
    except (OSError, ValueError, AttributeError) as error:
        return f"{folder / MANIFEST} is damaged ({error})"
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
