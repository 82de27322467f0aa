"""Causal language models: loading, inspection, inputs, logprobs, adapters, export."""

from __future__ import annotations

from lm_env.models.adapters import add_lora
from lm_env.models.export import base_of, export_language_model
from lm_env.models.inspection import ModelFacts, facts_of
from lm_env.models.loading import EMBEDDED_MODEL, load_model, load_tokenizer
from lm_env.models.logprobs import response_logprobs, token_logprobs
from lm_env.models.weight_watch import WeightWatch

__all__ = [
    "EMBEDDED_MODEL",
    "ModelFacts",
    "WeightWatch",
    "add_lora",
    "base_of",
    "export_language_model",
    "facts_of",
    "load_model",
    "load_tokenizer",
    "response_logprobs",
    "token_logprobs",
]
