"""The pages on the physics of RLHF quote what their scripts print, and the figures can be drawn."""

from __future__ import annotations

import re
import runpy
import sys
from importlib import import_module

import grpo
import kl_estimators
import numpy as np
import pytest
import sampler_mismatch
from paths import REPOSITORY

PAGES = REPOSITORY / "docs" / "physics"
SCRIPTS = ("over_optimization", "kl_estimators", "best_of_n", "grpo", "staleness", "sampler_mismatch")


def test_each_page_has_a_script_and_a_figure():
    assert sorted(page.stem for page in PAGES.glob("*.md")) == sorted([*SCRIPTS, "index"])
    for name in SCRIPTS:
        text = (PAGES / f"{name}.md").read_text()
        assert f"\npython examples/physics/{name}.py\n" in text and f"]({name}.png)" in text
        assert len(re.findall(r"^\d\. ", text.partition("## Exercises")[2], re.M)) == 2
        assert len((REPOSITORY / "examples" / "physics" / f"{name}.py").read_text().splitlines()) <= 120


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_page_quotes_what_its_script_prints(name):
    page = (PAGES / f"{name}.md").read_text()
    for part in import_module(name).report().split("\n\n"):
        assert part in page, f"docs/physics/{name}.md differs from what examples/physics/{name}.py prints:\n{part}"


def test_a_script_prints_its_tables_and_draws_its_figure(tmp_path, monkeypatch, capsys):
    script, figure = REPOSITORY / "examples" / "physics" / "over_optimization.py", tmp_path / "new" / "figure.png"
    monkeypatch.setattr(sys, "argv", [str(script), "--out", str(figure)])
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.strip() in (PAGES / "over_optimization.md").read_text()
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("draw", "points"),
    [
        (kl_estimators.draw, np.array([0.5, 1.0])),
        (grpo.draw, np.array([0.1, 0.5])),
        (sampler_mismatch.draw, np.array([0.9, 1.1])),
    ],
    ids=["kl_estimators", "grpo", "sampler_mismatch"],
)
def test_the_figures_of_many_points_can_be_drawn_of_few(draw, points):
    figure = draw(points)
    assert all(axes.get_xlabel() and axes.get_ylabel() and axes.lines and axes.texts for axes in figure.axes)


@pytest.mark.parametrize("name", ["best_of_n", "staleness"])
def test_the_other_figures_can_be_drawn(name):
    (axes,) = import_module(name).draw().axes
    assert axes.get_xlabel() and axes.get_ylabel() and len(axes.lines) > 4
