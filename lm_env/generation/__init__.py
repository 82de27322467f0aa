"""Text from a model: the backend protocol, continuous batching, sampling, and the KV cache of slots."""

from __future__ import annotations

from lm_env.generation.backend import Decoding, Generation, GenerationBackend, Sampling
from lm_env.generation.decoders import make_decoder
from lm_env.generation.generate import LocalBackend
from lm_env.generation.sampling import inverse_cdf, sample
from lm_env.generation.step_logprobs import StepLogprobs

__all__ = [
    "Decoding",
    "Generation",
    "GenerationBackend",
    "LocalBackend",
    "Sampling",
    "StepLogprobs",
    "inverse_cdf",
    "make_decoder",
    "sample",
]
