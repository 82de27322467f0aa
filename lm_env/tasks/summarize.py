"""lm_env/Summarize-v0: summarize a post as people prefer it (TL;DR, Stiennon et al. 2020, arXiv:2009.01325).

`source=` names posts, such as a file of the comparisons or of prompts that end in "TL;DR:", `reward_model=` a folder
that `lm-env rm train` has written, and `judge=` a second one that has seen other comparisons, which is measured and
never trained on.  A summary ends with its line.
"""

from __future__ import annotations

from lm_env.tasks.base import TextTask
from lm_env.tasks.base.named_source import preference_task

__all__ = ["as_post", "task"]

ASKED = "TL;DR:"


def as_post(prompt: str) -> str:
    """The post up to where its summary begins."""
    return f"{prompt.partition(ASKED)[0].rstrip()}\n{ASKED}"


def task(source: str | None = None, reward_model: str | None = None, judge: str | None = None) -> TextTask:
    """The task.

    Args:
        source, reward_model, judge: see above; each is a file, a folder or a hub id.
    """
    return preference_task(
        source=source,
        reward_model=reward_model,
        judge=judge,
        prompt_from=as_post,
        id="lm_env/Summarize-v0",
        summary="summarize a post as people prefer it; the score is a reward model's",
        model="smollm2-135m",
        beta=0.05,
        max_new_tokens=48,
        temperature=0.7,
        budget=1_000_000,
        options={"stop_strings": ("\n",), "max_prompt_tokens": 512, "overflow": "truncate"},
    )
