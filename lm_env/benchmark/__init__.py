"""Benchmarks: agents on text tasks with equal budgets, beside baselines without training and the attainable optimum.

from lm_env.benchmark import BenchSettings, run_bench
from lm_env.benchmark.results import write_results

settings = BenchSettings.of({"tasks": ["lm_env/Sentiment-v0"], "agents": ["ppo", "rloo"], "seeds": 5})
found = run_bench(settings, "runs/bench", processes=2)
write_results(found.records, "runs/bench", title="Benchmark", command="...")
"""

from __future__ import annotations

from lm_env.benchmark.records import comparable, read_records
from lm_env.benchmark.runner import Bench, run_bench
from lm_env.benchmark.settings import BenchSettings, quick_settings, read_settings

__all__ = [
    "Bench",
    "BenchSettings",
    "comparable",
    "quick_settings",
    "read_records",
    "read_settings",
    "run_bench",
]
