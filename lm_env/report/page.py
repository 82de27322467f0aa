"""The page of a run: one HTML file, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

from lm_env.errors import CheckpointWriteError
from lm_env.report.charts import health_charts, main_charts, part_charts
from lm_env.report.run_folder import Run, read_run
from lm_env.report.story import caption, command_of, facts_of_run, headline, number_rows, subtitle
from lm_env.report.templates import page_templates
from lm_env.report.texts import FACTORS, pairs_of
from lm_env.storage import write_file

__all__ = ["REPORT_FILE", "render_report", "write_report"]

TEMPLATES = ("report/page.html", "report/chart.html", "report/page.css")

REPORT_FILE = "report.html"


def write_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Make the page of the run in a folder.

    Args:
        folder: of `lm-env train` or `lm-env demo`, or the `log_dir` of an agent; see `read_run`.
        out: the file to write.  Default: report.html in the folder.

    Returns:
        the file.

    Raises:
        ConfigurationError: the folder holds no run.
        LogReadError: a file of the run is damaged.
        CheckpointWriteError: the page cannot be written; an older one is still there.
    """
    page = render_report(read_run(folder))
    path = Path(folder) / REPORT_FILE if out is None else Path(out)
    try:
        write_file(path, page)
    except OSError as error:
        raise CheckpointWriteError(f"cannot write {path}: {error}; choose another --out") from error
    return path


def render_report(run: Run) -> str:
    """The page as a string of HTML.  Every text of the run is escaped, and the page allows no script to run."""
    settings = {
        name: json.dumps(value, indent=2, default=str, ensure_ascii=False)
        for name, value in (("run.yaml", run.options), ("run.json", run.settings))
        if value
    }
    return (
        page_templates(*TEMPLATES)
        .get_template("page.html")
        .render(
            title=subtitle(run),
            headline=headline(run),
            facts=facts_of_run(run),
            numbers=number_rows(run),
            caption=caption(run),
            charts=main_charts(run),
            parts=part_charts(run),
            health=health_charts(run),
            pairs=pairs_of(run.texts),
            colored=any(text.log_ratios for text in run.texts),
            factors=FACTORS,
            warnings=run.warnings,
            settings=settings,
            command=command_of(run),
        )
    )
