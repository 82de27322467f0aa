"""The commands that serve a reward, and that compare models by one."""

from __future__ import annotations

from lm_env.cli.rewards.compare import compare
from lm_env.cli.rewards.serve import serve

__all__ = ["compare", "serve"]
