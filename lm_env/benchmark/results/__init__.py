"""From the records of a benchmark to tables, figures, a page, a leaderboard and model cards."""

from __future__ import annotations

from lm_env.benchmark.results.card import CARD, card_text, check_card, write_card
from lm_env.benchmark.results.markdown import as_markdown, overview_of
from lm_env.benchmark.results.merging import merge_files, merge_records
from lm_env.benchmark.results.page import render_page
from lm_env.benchmark.results.pictures import plot_attained, plot_benchmark
from lm_env.benchmark.results.summary import Summary, summarize_records
from lm_env.benchmark.results.tables import TaskTable, attained_share
from lm_env.benchmark.results.writing import Files, write_results

__all__ = [
    "CARD",
    "Files",
    "Summary",
    "TaskTable",
    "as_markdown",
    "attained_share",
    "card_text",
    "check_card",
    "merge_files",
    "merge_records",
    "overview_of",
    "plot_attained",
    "plot_benchmark",
    "render_page",
    "summarize_records",
    "write_card",
    "write_results",
]
