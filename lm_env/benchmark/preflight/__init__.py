"""Preflight: what samples of the reference show of a task before a training."""

from __future__ import annotations

from lm_env.benchmark.preflight.betas import TARGET_KL, suggested_beta
from lm_env.benchmark.preflight.findings import BetaPoint, DegenerateText, Preflight
from lm_env.benchmark.preflight.measuring import preflight

__all__ = ["TARGET_KL", "BetaPoint", "DegenerateText", "Preflight", "preflight", "suggested_beta"]
