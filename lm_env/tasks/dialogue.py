"""lm_env/Dialogue-v0: answer as people prefer an assistant to (hh-rlhf, Bai et al. 2022, arXiv:2204.05862).

`source=` names prompts, such as a file of hh-rlhf's comparisons, `reward_model=` a folder that `lm-env rm train` has
written, and `judge=` a second one that has seen other comparisons, which is measured and never trained on.
"""

from __future__ import annotations

from lm_env.tasks.base import TextTask
from lm_env.tasks.base.named_source import preference_task

__all__ = ["as_dialogue", "task"]


def as_dialogue(prompt: str) -> str:
    """The prompt as a dialogue up to where the assistant answers; a bare text is what the human says."""
    text = prompt.rstrip()
    if "Assistant:" in text:
        return text if text.endswith("Assistant:") else f"{text}\n\nAssistant:"
    return f"{text}\n\nAssistant:" if text.lstrip().startswith("Human:") else f"\n\nHuman: {text}\n\nAssistant:"


def task(source: str | None = None, reward_model: str | None = None, judge: str | None = None) -> TextTask:
    """The task.

    Args:
        source, reward_model, judge: see above; each is a file, a folder or a hub id.
    """
    return preference_task(
        source=source,
        reward_model=reward_model,
        judge=judge,
        prompt_from=as_dialogue,
        id="lm_env/Dialogue-v0",
        summary="answer as people prefer an assistant to; the score is a reward model's",
        model="smollm2-135m",
        beta=0.1,
        max_new_tokens=96,
        budget=1_000_000,
        options={"stop_strings": ("\n\nHuman:",), "max_prompt_tokens": 256, "overflow": "truncate"},
    )
