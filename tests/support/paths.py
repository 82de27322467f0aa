"""Where the tests find the repository, and data that is not part of it."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SHARED_DATA = Path(os.environ.get("LM_ENV_SHARED", REPOSITORY.parent / "shared" / "data"))
"""Optional data beside the repository; tests that read it are skipped without it."""
