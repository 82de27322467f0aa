"""A reward of spans: paid for each of some words, at the token where the word is known to have ended."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lm_env.errors import ConfigurationError
from lm_env.objective.scores import Span
from lm_env.validation import check_number

__all__ = ["KeywordSpans"]

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class KeywordSpans:
    """`score` for each occurrence of one of the words in the response, paid as soon as the word has ended.

    A word has ended with the character after it, or with the text: "art" is not found in "artist", and so
    is not paid before the space behind it.  As each score depends on the text up to its token alone, the
    reward is causal: the stepwise and the episode-wise environment both pay it at that token.

    Args:
        words: runs of letters, digits and underscores.
        score: what each occurrence is worth; negative is a penalty.
        case_sensitive: "Art" is not "art".

    Raises:
        ConfigurationError: no words, one that is no such run, a single string in place of a list, or a
            score that is not finite.
    """

    words: Sequence[str]
    score: float = 1.0
    case_sensitive: bool = False
    causal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.words, str):
            raise ConfigurationError(f"KeywordSpans takes a list of words: write [{self.words!r}]")
        object.__setattr__(self, "words", tuple(self.words))
        if not self.words:
            raise ConfigurationError("KeywordSpans needs at least one word")
        for word in self.words:
            if not isinstance(word, str) or not _WORD.fullmatch(word):
                raise ConfigurationError(
                    f"KeywordSpans takes words of letters, digits and underscores, not {word!r}: give several words"
                    " one by one"
                )
        check_number("score", self.score)

    def __call__(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        response_finished: Sequence[bool] | None = None,
        **columns: Any,
    ) -> list[list[Span]]:
        """-> B lists of spans, each a word and the character after it."""
        finished = [True] * len(responses) if response_finished is None else response_finished
        wanted = {self._key(word) for word in self.words}
        return [self._spans(text, wanted, whole) for text, whole in zip(responses, finished, strict=True)]

    def _spans(self, text: str, wanted: set[str], whole: bool) -> list[Span]:
        spans = []
        for match in _WORD.finditer(text):
            ended = match.end() < len(text)
            if self._key(match[0]) in wanted and (ended or whole):
                spans.append(Span(match.start(), match.end() + 1 if ended else None, self.score))
        return spans

    def _key(self, word: str) -> str:
        return word if self.case_sensitive else word.casefold()
