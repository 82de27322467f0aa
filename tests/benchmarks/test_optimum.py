"""docs/optimum.md is what its generator makes of the records beside it."""

from __future__ import annotations

from scripts import load_script

from lm_env.benchmark.results import summarize_records

page = load_script("benchmarks/optimum.py")


def test_the_page_is_made_from_the_committed_records():
    records = page.committed(page.RECORDS)
    assert page.PAGE.read_text(encoding="utf-8") == page.page_of(records, page.printed_tables())
    assert page.PICTURE.stat().st_size > 10_000


def test_each_place_in_the_words_is_filled():
    text = page.page_of(page.committed(page.RECORDS), {"TUNING": "| options |\n|---|", "LAMBDA": "| lambdas |\n|---|"})
    assert "<!--" not in text and "| options |" in text and "| lambdas |" in text


def test_the_table_has_every_run():
    records = page.committed(page.RECORDS)
    tables = {table.task: table for table in summarize_records(records).tables}
    budgets = {name: tables[name] for name in page.BUDGETS if name in tables}
    text = page.budgets_table(budgets)
    for budget, table in budgets.items():
        for row in table.rows:
            if row.trained:
                assert f"| `{row.agent}` | {budget} | {row.seeds} |" in text
