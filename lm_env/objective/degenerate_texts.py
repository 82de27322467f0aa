"""Texts that nobody wants, to see what a reward pays for them: made from a prompt, or from a response to it."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["BESIDE_A_RESPONSE", "DEGENERATE", "NO_TEXT"]

NO_TEXT = "an empty text"

DEGENERATE: dict[str, Callable[[str], str]] = {
    NO_TEXT: lambda prompt: "",
    "a blank": lambda prompt: " ",
    "the prompt copied": lambda prompt: prompt,
    "one word, repeated": lambda prompt: " ".join(["good"] * 30),
    "line breaks": lambda prompt: "\n" * 20,
    "other scripts and signs": lambda prompt: "\u2603 \U0001f600 \u00e9\u0301 \u4f60\u597d !?.,;:",
    "a number": lambda prompt: " 1,234.50",
    "a long text": lambda prompt: "the film is about the film, " * 200,
}
"""What the text is -> a function that makes it from the prompt."""


def _of_prompt(name: str) -> Callable[[str, str], str | None]:
    return lambda prompt, text: DEGENERATE[name](prompt)


def _first_words(text: str, n: int) -> str:
    return " ".join(text.split()[:n])


BESIDE_A_RESPONSE: dict[str, Callable[[str, str], str | None]] = {
    NO_TEXT: _of_prompt(NO_TEXT),
    "the prompt copied": lambda prompt, text: prompt or None,
    "three words, repeated": lambda prompt, text: " ".join([_first_words(text, 3)] * 12) if text.strip() else None,
    "one word, repeated": _of_prompt("one word, repeated"),
    "the text twice": lambda prompt, text: f"{text} {text}" if text.strip() else None,
    "words in reverse": lambda prompt, text: " ".join(reversed(text.split())) if len(text.split()) > 3 else None,
}
"""Name -> a function of a prompt and a response that makes a text to be compared with the response; it returns None
where the text would be the same."""
