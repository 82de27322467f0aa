"""The page's table of the gold simulation is what its script makes of the published results."""

from __future__ import annotations

import json
import re
from pathlib import Path

from scripts import load_script

ROOT = Path(__file__).parents[2]


gold_simulation = load_script("benchmarks/gold_simulation.py")


def published() -> dict:
    return json.loads((ROOT / "benchmarks" / "results" / "gold_simulation.json").read_text(encoding="utf-8"))


def test_the_page_quotes_the_table():
    assert gold_simulation.table(published()) in (ROOT / "docs" / "preferences.md").read_text(encoding="utf-8")


def test_its_intervals_are_those_of_wilson():
    """Computed here from the share and the number of texts alone (Wilson 1927, equation 4)."""
    z = 1.959963984540054
    for found in published().values():
        for part in [found.get("won"), found.get("accuracy"), found.get("best of 16, won")]:
            if not isinstance(part, dict):
                continue
            n, p = part["count"], part["mean"]
            middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
            half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
            assert abs(part["low"] - (middle - half)) < 1e-4, part
            assert abs(part["high"] - (middle + half)) < 1e-4, part


def test_a_row_for_every_model():
    results = published()
    rows = re.findall(r"^\| \d", gold_simulation.table(results), re.MULTILINE)
    assert len(rows) == sum(name.startswith(("reward model", "dpo")) for name in results)
