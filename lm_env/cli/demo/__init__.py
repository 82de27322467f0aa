"""`lm-env demo`: its phases, what runs them, and the comparison of before and after."""

from __future__ import annotations

from lm_env.cli.demo.phases import DemoConfig
from lm_env.cli.demo.run import resumed_demo, run_demo

__all__ = ["DemoConfig", "resumed_demo", "run_demo"]
