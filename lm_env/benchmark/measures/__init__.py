"""What a benchmark measures: a trained policy, its learning curve, and baselines without training."""

from __future__ import annotations

from lm_env.benchmark.measures.baselines import ceiling_of, random_texts, without_training
from lm_env.benchmark.measures.curve import LearningCurve
from lm_env.benchmark.measures.independent import IndependentModel
from lm_env.benchmark.measures.measuring import Measures, SampledTexts, measure, measure_texts, plain, sample_texts
from lm_env.benchmark.measures.text_metrics import distinct, likeness, repetition

__all__ = [
    "IndependentModel",
    "LearningCurve",
    "Measures",
    "SampledTexts",
    "ceiling_of",
    "distinct",
    "likeness",
    "measure",
    "measure_texts",
    "plain",
    "random_texts",
    "repetition",
    "sample_texts",
    "without_training",
]
