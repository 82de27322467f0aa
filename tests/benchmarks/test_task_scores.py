"""The table of scores in docs/tasks.md is of today's tasks, as far as their sizes and exact optima can say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lm_env.tasks import SPLITS, get_task

PAGE = Path(__file__).parents[2] / "docs" / "tasks.md"
ROWS = re.findall(r"^\| `(\w+-v0)` \| (\d[\d,]* / .*) \|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.mark.parametrize(("name", "cells"), ROWS, ids=[name for name, _ in ROWS])
def test_row_is_of_the_task(name: str, cells: str) -> None:
    sizes, budget, beta, _, _, _, _, optimum = cells.split(" | ")
    task = get_task(f"lm_env/{name}")
    assert sizes == " / ".join(f"{len(task.prompts(split)):,}" for split in SPLITS)
    assert budget == f"{task.budget:,}"
    assert beta == f"{task.beta:g}"
    assert optimum.endswith("(exact)") == (task.optimum is not None)
    if task.optimum is not None:
        exact = task.optimum(task.task("test"))
        assert optimum == f"{exact.score.mean:.3f}, J {exact.J.mean:.3f} (exact)"
