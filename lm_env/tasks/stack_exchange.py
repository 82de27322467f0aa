"""lm_env/StackExchange-v0: answer a question as the votes of Stack Exchange rank answers (as in StackLLaMA).

`source=` names questions, such as a file of the paired answers, `reward_model=` a folder that `lm-env rm train` has
written, and `judge=` a second one that has seen other pairs, which is measured and never trained on.
"""

from __future__ import annotations

from lm_env.tasks.base import TextTask
from lm_env.tasks.base.named_source import preference_task

__all__ = ["as_question", "task"]


def as_question(prompt: str) -> str:
    """The question up to where its answer begins, as StackLLaMA writes it."""
    text = prompt.strip()
    if text.endswith("Answer:"):
        return text if text.startswith("Question:") else f"Question: {text}"
    return f"Question: {text.removeprefix('Question:').strip()}\n\nAnswer:"


def task(source: str | None = None, reward_model: str | None = None, judge: str | None = None) -> TextTask:
    """The task.

    Args:
        source, reward_model, judge: see above; each is a file, a folder or a hub id.
    """
    return preference_task(
        source=source,
        reward_model=reward_model,
        judge=judge,
        prompt_from=as_question,
        id="lm_env/StackExchange-v0",
        summary="answer a question as votes rank answers; the score is a reward model's",
        model="smollm2-135m",
        beta=0.2,
        max_new_tokens=128,
        budget=1_000_000,
        options={"stop_strings": ("\n\nQuestion:",), "max_prompt_tokens": 512, "overflow": "truncate"},
    )
