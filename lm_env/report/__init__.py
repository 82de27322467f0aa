"""A run as one page: curves, score against KL, texts before and after, warnings, settings, the command.

It reads files alone, no model, and what it writes is a single HTML file that needs no network and no script.
"""

from __future__ import annotations

from lm_env.report.page import REPORT_FILE, render_report, write_report
from lm_env.report.run_folder import (
    PROGRESS_FILE,
    RUN_FILE,
    RUN_FILES,
    SAMPLES_FILE,
    WARNINGS_FILE,
    Run,
    read_run,
)

__all__ = [
    "PROGRESS_FILE",
    "REPORT_FILE",
    "RUN_FILE",
    "RUN_FILES",
    "SAMPLES_FILE",
    "WARNINGS_FILE",
    "Run",
    "read_run",
    "render_report",
    "write_report",
]
