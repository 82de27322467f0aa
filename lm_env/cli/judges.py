"""A reward function from what a user writes on the command line."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from lm_env.cli.functions import load_function

__all__ = ["default_prompts", "make_judge"]


def make_judge(spec: str, *, device: str, download: bool) -> Any:
    """`lexicon`, `package.module:function`, `file.py:function`, or a classifier's folder or hub id.

    Raises:
        ConfigurationError, ModelLoadError: it cannot be had.
    """
    import reward_models

    if spec == "lexicon":
        return reward_models.LexiconSentiment()
    module, _, name = spec.rpartition(":")
    if module and name.isidentifier():
        return load_function(spec, "prompts, responses, **columns")
    return reward_models.SequenceClassifierReward(spec, device=device, download=download)


def default_prompts(given: str | None) -> str:
    """The prompts asked for, or the openings of held-out film reviews that the package ships."""
    return given or str(files("lm_env") / "assets" / "review_openings.txt")
