"""Sentiment by a lexicon of human ratings: fast, no model, no download."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, get_args

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from lm_env.validation import check_choice

__all__ = ["LexiconSentiment"]

Scope = Literal["response", "full"]


@dataclass(frozen=True)
class LexiconSentiment:
    """The compound score of VADER: -1 (most negative) to 1 (most positive), 0 without sentiment words.

    Sums the ratings of some 7,500 words and emoticons, each the mean of ten human raters, with rules
    for negation, intensifiers, capitals and exclamation marks, and squashes the sum into (-1, 1).

    Source: Hutto and Gilbert 2014, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis".

    Args:
        scope: "response" scores the response alone, "full" the prompt and response as one text.

    Raises:
        ConfigurationError: there is no such scope.
    """

    reads_prefixes: ClassVar[bool] = True

    scope: Scope = "response"

    def __post_init__(self) -> None:
        check_choice("the scope of LexiconSentiment", self.scope, get_args(Scope))

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
        """-> B scores in [-1, 1]."""
        if self.scope == "full":
            texts = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
        else:
            texts = list(responses)
        analyzer = _analyzer()
        return [float(analyzer.polarity_scores(text)["compound"]) for text in texts]


@cache
def _analyzer() -> SentimentIntensityAnalyzer:
    """One per process: reading the lexicon takes a tenth of a second."""
    return SentimentIntensityAnalyzer()
