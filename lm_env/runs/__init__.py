"""A training run in one folder: its settings, by name, from a file or from flags; what is trained, and what is kept."""

from __future__ import annotations

from lm_env.runs.folder import RunFolder
from lm_env.runs.settings import LoraSettings, RunSettings, TaskSettings, TrainSettings
from lm_env.runs.train import TrainedRun, train

__all__ = ["LoraSettings", "RunFolder", "RunSettings", "TaskSettings", "TrainSettings", "TrainedRun", "train"]
