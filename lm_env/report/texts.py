"""Texts of a run side by side, before and after, each token by how much likelier it has become."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from lm_env.report.run_folder import Text

__all__ = ["FACTORS", "Pair", "Piece", "Shown", "pairs_of", "shown", "visible"]

FACTORS = (1.25, 2.0, 5.0, 20.0)
"""A token that has become so many times likelier, or less likely, gets the next deeper color."""
MOST_PAIRS = 8


@dataclass(frozen=True)
class Piece:
    """A token as it is shown."""

    text: str
    look: str
    """The class in the style sheet: more1 to more4, less1 to less4, or nothing."""
    hint: str


@dataclass(frozen=True)
class Shown:
    """One response."""

    when: str
    score: str
    kl: str
    pieces: Sequence[Piece]


@dataclass(frozen=True)
class Pair:
    """The first and the last response to a prompt; one alone where the log has no other."""

    prompt: str
    before: Shown | None
    after: Shown | None


def pairs_of(texts: Sequence[Text]) -> list[Pair]:
    """Prompts with their first and their last response; where fewer than three recur, first and last texts apart."""
    if not texts:
        return []
    first: dict[str, Text] = {}
    last: dict[str, Text] = {}
    for text in sorted(texts, key=lambda text: text.timesteps):
        first.setdefault(text.prompt, text)
        last[text.prompt] = text
    begin = min(text.timesteps for text in texts)
    again = [(p, t, last[p]) for p, t in first.items() if t.timesteps == begin and last[p].timesteps > t.timesteps]
    # The latest first, so that what is shown is as far along as it can be.
    again.sort(key=lambda found: -found[2].timesteps)
    if len(again) >= 3:
        return [Pair(visible(p), shown(a), shown(b)) for p, a, b in again[:MOST_PAIRS]]
    end = max(text.timesteps for text in texts)
    early = [Pair(visible(t.prompt), shown(t), None) for t in texts if t.timesteps == begin][: MOST_PAIRS // 2]
    late = [Pair(visible(t.prompt), None, shown(t)) for t in texts if t.timesteps == end][: MOST_PAIRS // 2]
    return early if begin == end else [*early, *late]


def shown(text: Text) -> Shown:
    """A response with its numbers in words."""
    when = "before training" if text.timesteps == 0 else f"after {text.timesteps:,} tokens"
    kl = (
        "KL not finite"
        if text.kl is None or not math.isfinite(text.kl)
        else f"KL {0.0 if abs(text.kl) < 0.005 else text.kl:.2f}"
    )
    if text.tokens:
        pieces = [_piece(*pair) for pair in zip(text.tokens, text.log_ratios, strict=True)]
    else:
        pieces = [Piece(visible(text.response), "", "")]
    return Shown(when, f"score {text.score:.3g}".replace("-", "\u2212"), kl.replace("-", "\u2212"), pieces)


def _piece(token: str, ratio: float | None) -> Piece:
    if ratio is None or math.isnan(ratio):
        return Piece(visible(token), "more4", "the reference gives this token no probability")
    level = sum(abs(ratio) >= math.log(factor) for factor in FACTORS)
    look = "" if level == 0 else f"{'more' if ratio > 0 else 'less'}{level}"
    factor = math.exp(min(abs(ratio), 50))
    words = f"{factor:,.3g} times {'likelier' if ratio > 0 else 'less likely'} than under the reference"
    return Piece(visible(token), look, words if level else "about as likely as under the reference")


def visible(text: str) -> str:
    r"""The text with characters that hide or reorder what is read written out, as in `\u202e`; newlines stay."""
    return "".join(repr(c)[1:-1] if _hides(c) else c for c in text)


def _hides(c: str) -> bool:
    joiners = "\n\t\u200c\u200d"  # the last two belong to the spelling of words and to emoji
    return c not in joiners and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")
