"""Texts written by vLLM, with the weights of the model under training: `VLLMServer` over HTTP, `VLLMEngine` in-process.

The formats are those of vLLM 0.32 and its documentation.  docs/generation.md says how to start a server.
"""

from __future__ import annotations

from lm_env.generation.vllm.engine import VLLMEngine
from lm_env.generation.vllm.server import VLLMServer

__all__ = ["VLLMEngine", "VLLMServer"]
