"""What can be exported (a task by name, a `TextTask`, a `lm_env.Task`, an environment), as a `Task` for each split."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from lm_env.data.chats import is_chat
from lm_env.data.prompts import PROMPT_COLUMNS, Prompt, named_rows
from lm_env.envs.env import TextGenerationEnv
from lm_env.envs.vector_env import TextGenerationVectorEnv
from lm_env.errors import ConfigurationError
from lm_env.export.unloaded import UnloadedModel
from lm_env.models.loading import load_tokenizer
from lm_env.objective.task import Task
from lm_env.tasks import SPLITS, TextTask
from lm_env.tasks.base.registry import with_own_options

__all__ = ["Source", "check_samplable_elsewhere", "live_task", "tokenizer_of"]

ONLY_SPLIT = ("train",)
"""The splits of a `lm_env.Task` and of an environment, which have one list of prompts."""


class Source:
    """A task whose texts another library samples and this package scores; each split is loaded once, when first used.

    A language model that is given by name is not loaded: its tokenizer and its configuration are all that is needed.

    Attributes:
        lock: held while something is loaded; whoever scores in several threads holds it as well.

    Args:
        given: a task by name (see `lm_env.tasks.get_task`), a `TextTask`, a `lm_env.Task`, or a text environment.
        options: of a task by name or a `TextTask`: the task's own, and those of `lm_env.Task`, which replace its own.

    Raises:
        ConfigurationError: `given` is none of these, or has no such option.
    """

    def __init__(self, given: Any, options: Mapping[str, Any]) -> None:
        if "split" in options:
            raise ConfigurationError(
                "an exported task has all of its splits: leave split out here, and name it where the prompts are asked"
                " for"
            )
        self._given, self._options = _resolved(given, options)
        self.lock = threading.RLock()
        self._tasks: dict[str, Task] = {}
        self._chats: dict[str, list[list[dict[str, Any]] | None]] = {}

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits: train, validation and test, or train alone where there is one list of prompts."""
        return ONLY_SPLIT if isinstance(self._given, Task) or "prompts" in self._options else SPLITS

    @property
    def name(self) -> str:
        """The id of the task; of a `lm_env.Task` and of an environment, "text-task"."""
        return self._given.id if isinstance(self._given, TextTask) else "text-task"

    @property
    def summary(self) -> str:
        """What is judged, in a line."""
        return self._given.summary if isinstance(self._given, TextTask) else repr(self._given)

    def task(self, split: str = "train") -> Task:
        """The task with the prompts of a split.

        Raises:
            ConfigurationError: there is no such split; and see `lm_env.Task`.
        """
        with self.lock:
            if split not in self.splits:
                raise ConfigurationError(
                    f"{self.name} has no split {split!r}: it has {' and '.join(map(repr, self.splits))}"
                )
            if split not in self._tasks:
                self._tasks[split], self._chats[split] = self._made(split)
            return self._tasks[split]

    def prompt(self, split: str, index: int) -> Prompt:
        """The prompt of a split at a position.

        Raises:
            ConfigurationError: there is no such split or position.
        """
        prompts = self.task(split).prompts
        if not 0 <= index < len(prompts):
            raise ConfigurationError(f"{self.name} has no prompt {index} in {split}: there are {len(prompts)}")
        return prompts[index]

    def chat(self, split: str, index: int) -> list[dict[str, Any]] | None:
        """The messages of a prompt that was given as a chat; None for a text or token ids."""
        self.task(split)
        return self._chats[split][index]

    def measured(self, prompt: Prompt, response: str) -> dict[str, float]:
        """The task's further metrics of a text; none where the source is no `TextTask`."""
        if not isinstance(self._given, TextTask) or not self._given.metrics:
            return {}
        with self.lock:
            return {name: float(found[0]) for name, found in self._given.measure([prompt], [response]).items()}

    def _made(self, split: str) -> tuple[Task, list[list[dict[str, Any]] | None]]:
        """(the task with the prompts of a split, the chat of each prompt that was given as one, else None)."""
        if isinstance(self._given, Task):
            return self._given, [None] * len(self._given.prompts)
        options = self._given.task_options(split, **{**self._options, **self._loaded()})  # type: ignore[arg-type]
        rows = [row for _, row in named_rows(options["prompts"], download=options.get("download") is True)]
        task = Task(**_with_unloaded_model({**options, "prompts": rows}))
        return task, _chats_of(rows, options.get("prompt_column"))

    def _loaded(self) -> dict[str, Any]:
        """What the splits share, empty before the first one is made; so a reward model is loaded only once."""
        task = next(iter(self._tasks.values()), None)
        if task is None:
            return {}
        shared = {name: getattr(task, name) for name in ("model", "reference", "tokenizer", "reward")}
        return {**shared, "quantization_config": None}


def live_task(given: Any, options: Mapping[str, Any], split: str = "train") -> Task:
    """The `lm_env.Task` of a source with its models loaded, unlike `Source.task`; arguments and errors as in `Source`.

    Raises:
        ConfigurationError: also if there is no such split; a `lm_env.Task` and an environment have `train` alone.
    """
    found, rest = _resolved(given, options)
    if not isinstance(found, Task):
        return found.task(split, **rest)  # type: ignore[arg-type]
    if split not in ONLY_SPLIT:
        raise ConfigurationError(
            f"there is no split {split!r} of a {type(given).__name__}, which has one list of prompts: leave split out,"
            " or give a task by name"
        )
    return found


def check_samplable_elsewhere(task: Task, library: str) -> None:
    """Refuse a task that restricts which tokens may come next, since another library's sampler does not know of it.

    Raises:
        ConfigurationError: the task has an `action_mask`.
    """
    if task.action_mask is not None:
        raise ConfigurationError(
            f"the task restricts its tokens with action_mask, which {library} knows nothing of: leave the mask out"
        )


def tokenizer_of(task: Task, library: str) -> Any:
    """The task's tokenizer.

    Raises:
        ConfigurationError: the task has none, so its prompts are token ids and not texts.
    """
    if task.tokenizer is None:
        raise ConfigurationError(f"{library} exchanges texts, and the task has no tokenizer: give it one, tokenizer=")
    return task.tokenizer


def _resolved(given: Any, options: Mapping[str, Any]) -> tuple[TextTask | Task, dict[str, Any]]:
    """(the task, the options that are still to be applied to it)."""
    if isinstance(given, str):
        return with_own_options(given, dict(options))
    if isinstance(given, TextTask):
        return given, dict(options)
    inner = getattr(given, "unwrapped", given)
    if isinstance(inner, TextGenerationEnv | TextGenerationVectorEnv):
        inner = inner.task
    if not isinstance(inner, Task):
        raise ConfigurationError(
            "give a task by name, a TextTask, a lm_env.Task or a text environment of lm_env to export, not"
            f" {type(inner).__name__}"
        )
    if options:
        raise ConfigurationError(
            f"{next(iter(options))!r} is an option for tasks by name: a {type(given).__name__} is exported as it is"
        )
    return inner, {}


def _with_unloaded_model(options: dict[str, Any]) -> dict[str, Any]:
    """The same options, with an `UnloadedModel` in place of a model that is given by name."""
    name = options["model"]
    if not isinstance(name, str | os.PathLike):
        return options
    download = options.get("download") is True
    tokenizer = options.get("tokenizer")
    model = UnloadedModel(os.fspath(name), download=download)
    return {
        **{key: value for key, value in options.items() if key != "quantization_config"},
        "model": model,
        "reference": model,
        "tokenizer": load_tokenizer(os.fspath(name), download=download) if tokenizer is None else tokenizer,
    }


def _chats_of(rows: Sequence[Any], column: str | None) -> list[list[dict[str, Any]] | None]:
    """The messages of each prompt that is a chat, None for the others; `column` holds the prompts."""
    first = next((row for row in rows if isinstance(row, Mapping)), {})
    column = column or next((name for name in PROMPT_COLUMNS if name in first), PROMPT_COLUMNS[0])
    values: list[Any] = [row.get(column) if isinstance(row, Mapping) else row for row in rows]
    return [[dict(message) for message in value] if is_chat(value) else None for value in values]
