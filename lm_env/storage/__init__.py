"""The one way to disk: a folder is written whole or not at all, and verified when it is read.

A save of `runs/a` happens in `runs/.a.lm_env`, which is there only while it lasts, or after a process
was killed in it:

    lock    held by the process that saves; the operating system lets go of it when that process ends
    new/    the files being written, their manifest of checksums last
    old/    what lay at `runs/a` before, from the moment that `new` takes its place until it is removed

So at every moment a whole folder lies at `runs/a` or in `old`.  The loaders look for both, and the
next save tidies up.  Only files that a manifest lists are ever deleted: whatever else lies in the
folder moves along.

A training run has a folder of such folders (`CheckpointFolder`).  A signal lets it save before it ends
(`StopSignals`); work that has nothing to save ends at once (`EndOnSignals`).  A single file is written by
`write_file`, whole or not at all, and its lines are read by `read_lines`.
"""

from __future__ import annotations

from lm_env.storage.checkpoints import CheckpointFolder, Checkpointing, checkpoints_in, remove_checkpoints
from lm_env.storage.files import check_file_destination, read_lines, write_file
from lm_env.storage.interruption import EndOnSignals, StopSignals
from lm_env.storage.lock import FileLock
from lm_env.storage.reading import folder_of, is_saved_folder, read_folder, read_json, verify_folder
from lm_env.storage.writing import check_destination, remove_folder, write_folder

__all__ = [
    "CheckpointFolder",
    "Checkpointing",
    "EndOnSignals",
    "FileLock",
    "StopSignals",
    "check_destination",
    "check_file_destination",
    "checkpoints_in",
    "folder_of",
    "is_saved_folder",
    "read_folder",
    "read_json",
    "read_lines",
    "remove_checkpoints",
    "remove_folder",
    "verify_folder",
    "write_file",
    "write_folder",
]
