"""What is measured of texts: of a trained policy, while it learns, and of what can be had without training."""

from __future__ import annotations

from lm_env.benchmark.measures.baselines import ceiling_of, random_texts, without_training
from lm_env.benchmark.measures.curve import LearningCurve
from lm_env.benchmark.measures.independent import IndependentModel
from lm_env.benchmark.measures.measuring import Measures, Written, measure, measure_written, plain, write
from lm_env.benchmark.measures.text_metrics import distinct, likeness, repetition

__all__ = [
    "IndependentModel",
    "LearningCurve",
    "Measures",
    "Written",
    "ceiling_of",
    "distinct",
    "likeness",
    "measure",
    "measure_written",
    "plain",
    "random_texts",
    "repetition",
    "without_training",
    "write",
]
