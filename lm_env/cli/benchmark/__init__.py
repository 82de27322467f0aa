"""`lm-env bench` and what goes with it: preflight, evaluate, leaderboard."""

from __future__ import annotations

from lm_env.cli.benchmark.bench import bench
from lm_env.cli.benchmark.evaluate import evaluate
from lm_env.cli.benchmark.leaderboard import leaderboard
from lm_env.cli.benchmark.preflight import preflight_command

__all__ = ["bench", "evaluate", "leaderboard", "preflight_command"]
