"""How the commands speak: one console, without colors where no terminal is."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from lm_env.distributed import processes

__all__ = ["console", "say", "speaks_and_writes"]

console = Console(emoji=False)  # file.py:star: is the name of a task


def speaks_and_writes() -> bool:
    """Whether this is the process that writes: the only one, or the first of several.  The others fall silent here."""
    first = processes().first
    console.quiet = not first
    return first


def say(title: str, text: str) -> None:
    """A heading of a phase, or a remark in it."""
    # Not wrapped: a path that is broken across two lines could not be copied.
    console.print(f"[bold cyan]{title}[/bold cyan]  {escape(text)}" if title else f"   {escape(text)}", soft_wrap=True)
