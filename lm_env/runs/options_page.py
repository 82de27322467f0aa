"""docs/options.md: every option of `lm-env train` on a line of its own, from the same texts as `--help`.

python -m lm_env.runs.options_page docs/options.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from agents.base import AgentConfig
from lm_env.runs.agents import agent_kind, agent_names
from lm_env.runs.options import Option, fields_as_options
from lm_env.runs.settings import options_of

__all__ = ["options_page"]

HEAD = """# Options

What [`lm-env train`](train.md) takes: as a flag (`--learning-rate 1e-4`), as a line of a file (`learning_rate: 1e-4`)
and as a keyword of `lm_env.train` (`learning_rate=1e-4`).  A flag overrides the file, and both the default.
A switch is turned on by `--bf16` and off by `--no-bf16`, and is `true` or `false` in a file; several values are
a flag given several times, and a list in a file.

The options of the agents are also those of their classes in Python: `PPO(env, clip_range=0.1)`, `help(PPOConfig)`.

This page is made by `python -m lm_env.runs.options_page docs/options.md`.
"""

TITLES = {"run": "The run", "task": "The task", "lora": "Adapters (LoRA)"}


def options_page() -> str:
    """The page, as Markdown."""
    return "\n".join([HEAD, *_sections()])


def _sections() -> Iterator[str]:
    for section, title in TITLES.items():
        yield f"## {title}\n"
        yield from _table(options_of(section))
    kinds = [agent_kind(name) for name in agent_names()]
    ours = [kind.options for kind in kinds if not kind.of_sb3]
    names = [name for name in ours[0] if all(name in options for options in ours)]
    general = {**fields_as_options(AgentConfig), **agent_kind("rloo").options}
    shared = {name: general[name] for name in names}
    yield "## Every agent of `agents`\n"
    yield from _table(shared)
    for kind in kinds:
        yield f"## `{kind.name}`\n"
        also = "" if kind.of_sb3 else "; the options of every agent of `agents`, and:"
        yield f"{kind.summary}{also}\n"
        yield from _table({n: o for n, o in kind.options.items() if kind.of_sb3 or shared.get(n) != o})


def _table(options: Mapping[str, Option]) -> Iterator[str]:
    yield "| option | value | default | what it does |"
    yield "|---|---|---|---|"
    for option in options.values():
        cells = (f"`{option.name}`", option.shown_kind, option.shown_default, option.text)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(options_page(), encoding="utf-8")
