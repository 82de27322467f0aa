"""Files of an earlier run in a folder that is used again: they are renamed or moved, and never overwritten."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

__all__ = ["put_files_aside", "put_into_folder_aside"]


def put_files_aside(folder: Path, names: Sequence[str]) -> None:
    """Rename those of the files that are there, all with the same number: progress.csv becomes progress.1.csv."""
    there = [name for name in names if (folder / name).exists()]
    for number in itertools.count(1) if there else ():
        numbered = [folder / f"{Path(name).stem}.{number}{Path(name).suffix}" for name in names]
        if not any(os.path.lexists(path) for path in numbered):
            for name in there:
                os.rename(folder / name, folder / f"{Path(name).stem}.{number}{Path(name).suffix}")
            return


def put_into_folder_aside(folder: Path, name: str, files: Sequence[Path]) -> None:
    """Move files into a new folder beside them: with the name tensorboard, tensorboard.1 or the next number."""
    if not files:
        return
    aside = next(place for n in itertools.count(1) if not os.path.lexists(place := folder / f"{name}.{n}"))
    aside.mkdir()
    for path in files:
        os.rename(path, aside / path.name)
