"""What the commands take as a judge and as prompts."""

from __future__ import annotations

from typing import Any

from lm_env.tasks.sentiment import Split, openings

__all__ = ["default_prompts", "make_judge"]


def make_judge(spec: str, *, device: str, download: bool) -> Any:
    """The reward of that name; see `reward_models.load_reward`."""
    from reward_models import load_reward

    return load_reward(spec, device=device, download=download)


def default_prompts(given: str | None, *splits: Split) -> str | list[str]:
    """The prompts asked for, or else the package's own openings of these splits, one split after the other."""
    return given or [opening for split in splits for opening in openings(split)]
