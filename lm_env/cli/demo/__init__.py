"""`lm-env demo`: one round of the loop, and the comparison of before and after."""

from __future__ import annotations

from lm_env.cli.demo.run import DemoConfig, resumed_demo, run_demo

__all__ = ["DemoConfig", "resumed_demo", "run_demo"]
