"""`lm-env bench` and what goes with it: preflight, evaluate, leaderboard."""

from __future__ import annotations

from lm_env.cli.benchmark.bench import bench

__all__ = ["bench"]
