"""What surrounds a training run: checkpoints, callbacks, evaluation, logs, progress, early warnings."""

from __future__ import annotations

from agents.run.callbacks import TrainingEnv, as_callback
from agents.run.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from agents.run.early_warning import EarlyWarning
from agents.run.evaluation import Evaluation, evaluate_texts
from agents.run.evaluation_callback import EvaluateTexts
from agents.run.progress import rollout_metrics
from agents.run.records import RunFiles, RunWriter
from agents.run.samples import Sample
from agents.run.trackers import MLflowWriter, WandbWriter
from agents.run.training_log import make_logger
from lm_env.storage import Checkpointing

__all__ = [
    "Checkpoint",
    "Checkpointing",
    "EarlyWarning",
    "EvaluateTexts",
    "Evaluation",
    "MLflowWriter",
    "RunFiles",
    "RunWriter",
    "Sample",
    "TrainingEnv",
    "WandbWriter",
    "as_callback",
    "evaluate_texts",
    "make_logger",
    "read_checkpoint",
    "rollout_metrics",
    "write_checkpoint",
]
