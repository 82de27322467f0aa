"""Prompts and episodes: what goes into an environment and what comes out of it."""

from __future__ import annotations

from lm_env.data.episodes import Episodes, ScoredEpisodes
from lm_env.data.prompts import Prompt, Prompts, load_prompts
from lm_env.data.tokenizing import Tokenizer

__all__ = [
    "Episodes",
    "Prompt",
    "Prompts",
    "ScoredEpisodes",
    "Tokenizer",
    "load_prompts",
]
