"""`lm-env report`: a run as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["report"]


def report(
    folder: Annotated[
        Path, typer.Argument(help="The folder of lm-env train or lm-env demo, or the log_dir of an agent.")
    ],
    out: Annotated[Path | None, typer.Option(help="The file to write.  [default: report.html in the folder]")] = None,
) -> None:
    """Make one self-contained HTML page of a run: curves, score against KL, texts before and after, warnings, settings.

    The page needs no network and runs no script.  lm-env train and lm-env demo make it at their end; this
    command makes it again, or while a run is under way.
    """
    from lm_env.report import write_report

    print(f"the page is in {write_report(folder, out)}")
