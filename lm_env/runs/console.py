"""How the commands speak: one console, without colors where no terminal is."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

__all__ = ["console", "say"]

console = Console()


def say(title: str, text: str) -> None:
    """A heading of a phase, or a remark in it."""
    # Not wrapped: a path that is broken across two lines could not be copied.
    console.print(f"[bold cyan]{title}[/bold cyan]  {escape(text)}" if title else f"   {escape(text)}", soft_wrap=True)
