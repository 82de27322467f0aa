"""Rewards that need no model: length, regular expression, exact match, keywords.

Each is a small immutable value that is called like any other reward function; every one looks at the
response alone, never at the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from lm_env.errors import ConfigurationError
from lm_env.validation import check_choice, check_integer

__all__ = ["ExactMatch", "Keyword", "Length", "Regex"]

Unit = Literal["tokens", "words", "characters"]
Mode = Literal["search", "full"]


@dataclass(frozen=True)
class Length:
    """How long the response is, in one of three readings.

    `Length()` pays 1 per unit; `Length(max=n)` pays in proportion up to 1 at n units and no more
    beyond; `Length(target=n)` pays 1 at n units and 1/n less for each unit away from it, on both
    sides and below 0 (0 units and 2n units both give 0, 3n gives -1).

    Args:
        target: the wished length, at least 1; not together with `max`.
        max: the length from which on more is not better, at least 1.
        unit: "tokens" counts the column `response_ids`, so the EOS counts as one; "words" are runs of
            non-blank characters; "characters" are Unicode code points.

    Raises:
        ConfigurationError: both or an impossible length; when called, "tokens" without `response_ids`.
    """

    reads_prefixes: ClassVar[bool] = True

    target: int | None = None
    max: int | None = None
    unit: Unit = "tokens"

    def __post_init__(self) -> None:
        check_choice("the unit of Length", self.unit, get_args(Unit))
        if self.target is not None and self.max is not None:
            raise ConfigurationError("Length takes a target or a max, not both: drop one of them")
        for name, value in (("target", self.target), ("max", self.max)):
            if value is not None:
                check_integer(f"the {name} of Length", value)

    def __call__(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        response_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float]:
        """-> B scores."""
        if self.unit == "tokens" and response_ids is None:
            raise ConfigurationError("Length counts tokens but got no response_ids: pass them, or use unit='words'")
        if self.unit == "tokens":
            counts = [len(ids) for ids in response_ids or ()]
        elif self.unit == "words":
            counts = [len(text.split()) for text in responses]
        else:
            counts = [len(text) for text in responses]
        return [self._score(count) for count in counts]

    def _score(self, count: int) -> float:
        if self.target is not None:
            return 1.0 - abs(count - self.target) / self.target
        if self.max is not None:
            return min(count, self.max) / self.max
        return float(count)


@dataclass(frozen=True)
class Regex:
    """1.0 where the pattern matches the response, else 0.0.

    Args:
        pattern: Python's `re` syntax; flags go inline, as in `(?i)`.
        mode: "search" finds it anywhere, "full" demands that it covers the whole response.

    Raises:
        ConfigurationError: the pattern does not compile.
    """

    pattern: str
    mode: Mode = "search"

    def __post_init__(self) -> None:
        check_choice("the mode of Regex", self.mode, get_args(Mode))
        _compile(self.pattern)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
        """-> B scores, each 0.0 or 1.0."""
        pattern = _compile(self.pattern)
        match = pattern.fullmatch if self.mode == "full" else pattern.search
        return [float(match(text) is not None) for text in responses]


@dataclass(frozen=True)
class ExactMatch:
    r"""1.0 where the response's answer equals the prompt's own answer, else 0.0.

    For GSM8K, whose solutions end in '#### 1,234':
    `ExactMatch(extract=r"####\s*(-?[\d.,]*\d)", ignore=",")`.

    Args:
        column: the prompts' extra column with the right answers; each is compared as `str(answer)`.
        extract: the answer is the LAST match of this pattern, its first group if it has one.  It is
            applied to both sides; a response without a match scores 0, a right answer without a match
            is taken whole (so the column may hold bare answers or worked solutions).
        strip: drop blanks around both.
        casefold: compare without regard to case.
        ignore: characters dropped from both, such as the thousands separator.

    Raises:
        ConfigurationError: the pattern does not compile, or `column` or `ignore` is no string; when
            called, the column is missing, or a prompt has no answer in it.
    """

    column: str = "answer"
    extract: str | None = None
    strip: bool = True
    casefold: bool = False
    ignore: str = ""

    def __post_init__(self) -> None:
        if self.extract is not None:
            _compile(self.extract)
        for name, value in (("column", self.column), ("ignore", self.ignore)):
            if not isinstance(value, str):
                raise ConfigurationError(f"the {name} of ExactMatch must be a string, not {value!r}")

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
        """-> B scores, each 0.0 or 1.0."""
        if self.column not in columns:
            raise ConfigurationError(
                f"ExactMatch needs the prompts' column {self.column!r}; there are {sorted(columns)}: name one of them"
            )
        scores = []
        for index, (response, answer) in enumerate(zip(responses, columns[self.column], strict=True)):
            if answer is None:
                raise ConfigurationError(
                    f"ExactMatch has no answer for sample {index}: give every prompt a column {self.column!r}"
                )
            found = self._extracted(response)
            expected = self._extracted(str(answer))
            right = self._canonical(str(answer) if expected is None else expected)
            scores.append(float(found is not None and self._canonical(found) == right))
        return scores

    def _extracted(self, text: str) -> str | None:
        if self.extract is None:
            return text
        matches = list(_compile(self.extract).finditer(text))
        if not matches:
            return None
        return matches[-1].group(1 if matches[-1].re.groups else 0)

    def _canonical(self, text: str) -> str:
        for character in self.ignore:
            text = text.replace(character, "")
        text = text.strip() if self.strip else text
        return text.casefold() if self.casefold else text


@dataclass(frozen=True)
class Keyword:
    """Whether, or how often, any of the words occurs in the response.

    Args:
        words: words or phrases.  Overlaps count once, for the longest.
        count: pay 1 per occurrence instead of 1 for one or more.
        whole_word: "art" is not found in "start".
        case_sensitive: "Art" is not "art".

    Raises:
        ConfigurationError: no words, an empty one, or a single string in place of a list.
    """

    reads_prefixes: ClassVar[bool] = True

    words: Sequence[str]
    count: bool = False
    whole_word: bool = True
    case_sensitive: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.words, str):
            raise ConfigurationError(f"Keyword takes a list of words: write [{self.words!r}]")
        if not isinstance(self.words, Iterable):
            raise ConfigurationError(f"Keyword takes a list of words, not {self.words!r}")
        object.__setattr__(self, "words", tuple(self.words))
        if not self.words or not all(isinstance(word, str) and word.strip() for word in self.words):
            raise ConfigurationError(f"Keyword needs at least one word, and none of them empty: {list(self.words)!r}")

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
        """-> B scores: counts, or each 0.0 or 1.0."""
        longest_first = sorted(self.words, key=len, reverse=True)
        words = "|".join(re.escape(word) for word in longest_first)
        pattern = re.compile(
            rf"(?<!\w)(?:{words})(?!\w)" if self.whole_word else words,
            0 if self.case_sensitive else re.IGNORECASE,
        )
        counts = [sum(1 for _ in pattern.finditer(text)) for text in responses]
        return [float(n if self.count else n > 0) for n in counts]


def _compile(pattern: str) -> re.Pattern[str]:
    if not isinstance(pattern, str):
        raise ConfigurationError(f"a pattern must be a string in the syntax of re, not {pattern!r}")
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigurationError(f"the pattern {pattern!r} is not a regular expression: {error}") from error
