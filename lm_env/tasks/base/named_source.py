"""Prompts that the user names, and the tasks of human preference that are made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lm_env.errors import ConfigurationError, InvalidPreferenceError
from lm_env.tasks.base.splits import Split, prompt_of, split_rows
from lm_env.tasks.base.text_task import TextTask

__all__ = ["named_source", "preference_task"]


def named_source(
    id: str, source: str | None, row_of: Callable[[str, Any], dict[str, Any]]
) -> Callable[..., list[dict[str, Any]]]:
    """A function for `TextTask.source` that returns the rows of a split; the file is read when it is called.

    Args:
        source: a file or hub id; None: asking for prompts is an error that says what to name.
        row_of: `row_of(where, row)` makes a row with a prompt out of a row as it was read; `where` names that row in
            error messages.
    """

    def rows_of_split(split: Split, download: bool = False) -> list[dict[str, Any]]:
        from lm_env.data.prompts import named_rows

        rows = named_rows(_checked(id, source), download=download)
        return split_rows([row_of(where, row) for where, row in rows], split)

    return rows_of_split


def preference_task(
    *, source: str | None, reward_model: str | None, judge: str | None, prompt_from: Callable[[str], str], **fields: Any
) -> TextTask:
    """A task whose reward is a model of what people prefer.

    Args:
        source: the prompts: a file or hub id of human preferences in any format that `lm-env rm train` reads, of
            which the prompts alone are used, or of plain prompts.
        reward_model: the reward: what `lm-env rm train --out` has written, or a classifier by folder or hub id.
        judge: a second reward model, which the policy is not trained on; it becomes the metric `judge`.
        prompt_from: puts a prompt into the form that the task gives to its prompts.
        fields: further fields of `TextTask`.
    """

    def rows_of_split(split: Split, download: bool = False) -> list[Any]:
        return split_rows([prompt_from(p) for p in _prompts(_checked(fields["id"], source), download)], split)

    return TextTask(
        source=rows_of_split,
        reward=reward_model,
        metrics={} if judge is None else {"judge": judge},
        **fields,
    )


def _prompts(source: str, download: bool) -> Sequence[str]:
    """The prompts of a file of preferences, or of plain prompts."""
    from lm_env.data.prompts import named_rows
    from lm_env.objective.functions import load_function

    read = load_function("reward_models:read_preferences", "source")
    try:
        prompts = [record.prompt for record in read(source, download=download)]
    except (InvalidPreferenceError, ConfigurationError) as error:
        try:
            prompts = [prompt_of(row) for _, row in named_rows(source, download=download)]
        except (ValueError, TypeError):
            raise error from None  # the error of reading it as preferences is the more useful of the two
    return [_as_text(prompt) for prompt in prompts]


def _as_text(prompt: Any) -> str:
    """A prompt as text; a chat as hh-rlhf writes it, up to where the assistant answers."""
    if isinstance(prompt, str):
        return prompt
    who = {"user": "Human", "assistant": "Assistant"}
    turns = [f"\n\n{who.get(turn['role'], turn['role'].title())}: {turn['content']}" for turn in prompt]
    return "".join(turns) + "\n\nAssistant:"


def _checked(id: str, source: str | None) -> str:
    if source is None:
        raise ConfigurationError(
            f"{id} has no prompts of its own: name a file or hub id, source=... (lm-env train --env-option source=FILE)"
        )
    return source
