"""The settings of the smallest benchmark there is: one cell takes a second."""

from __future__ import annotations

TINY = {
    "tasks": ["lm_env/TokenMDP-v0"],
    "seeds": 1,
    "tokens": 30,
    "evaluations": 1,
    "curve_texts": 4,
    "texts": 8,
    "ceiling_samples": 16,
    "ceiling_most": 16,
}
"""Options of `BenchSettings.of`, without agents."""
