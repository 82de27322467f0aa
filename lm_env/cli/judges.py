"""What the commands take as a judge and as prompts."""

from __future__ import annotations

from typing import Any

from lm_env.objective.options import resolve_reward
from lm_env.tasks.sentiment import Split, openings

__all__ = ["default_prompts", "make_judge"]


def make_judge(spec: str, *, device: str, download: bool) -> Any:
    """`lexicon`, `package.module:function`, `file.py:function`, or a reward model or classifier: folder or hub id.

    Raises:
        ConfigurationError, ModelLoadError: it cannot be had.
    """
    import reward_models

    if spec == "lexicon":
        return reward_models.LexiconSentiment()
    module, _, name = spec.rpartition(":")
    if (module and name.isidentifier()) or spec.endswith(".py"):
        return resolve_reward(spec)
    return reward_models.load_reward(spec, device=device, download=download)


def default_prompts(given: str | None, *splits: Split) -> str | list[str]:
    """The prompts asked for, or else the package's own openings of these splits, one split after the other."""
    return given or [opening for split in splits for opening in openings(split)]
