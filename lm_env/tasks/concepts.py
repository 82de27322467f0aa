"""lm_env/Concepts-v0: use all of some given words in one sentence (CommonGen, Lin et al. 2020, arXiv:1911.03705).

A concept counts as used if a word of the sentence has it as its lemma, so "dances" and "danced" use "dance" (the
lexicon is that of the package lemminflect).  The score is coverage x fluency.  Coverage is the share of the concepts
that are used; fluency is a rule that tells a sentence from a list: it is 1 for two other words per concept and no word
twice.

`source=` takes the sets of CommonGen: a .tsv file of "field look stand<TAB>a sentence" as the authors publish it, or a
.jsonl file with a column `concepts`.  Without it, sets are drawn from the package's own words.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm_env.data.prompts import named_rows
from lm_env.errors import ConfigurationError, InvalidPromptError
from lm_env.models.loading import EMBEDDED_MODEL
from lm_env.tasks.base import TextTask, split_rows
from lm_env.tasks.base.lexicon import distinct_share, lemmas, words_of
from lm_env.tasks.base.wordlists import CONCEPT_NOUNS, CONCEPT_VERBS

__all__ = ["coverage", "coverage_and_fluency", "drawn_sets", "fluency", "read_sets", "task"]

DRAWN = 2_000
OTHERS_PER_CONCEPT = 2

Row = dict[str, Any]


def drawn_sets() -> list[Row]:
    """2,000 sets of two nouns and a verb, drawn with a fixed seed from words that are frequent in film reviews."""
    rng = np.random.default_rng(0)
    found: dict[tuple[str, ...], None] = {}
    while len(found) < DRAWN:
        nouns = rng.permutation(len(CONCEPT_NOUNS))[:2]
        words = [*(CONCEPT_NOUNS[i] for i in nouns), CONCEPT_VERBS[rng.integers(len(CONCEPT_VERBS))]]
        found[tuple(sorted(words))] = None
    return [_row(words) for words in found]


def read_sets(source: str | Path) -> list[Row]:
    """The sets of concepts in a file: .tsv as CommonGen is published, or anything with a column `concepts`.

    Raises:
        ConfigurationError: there is no such file.
        InvalidPromptError: a line has no concepts.
    """
    path = Path(source)
    if path.suffix == ".tsv":
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{path} cannot be read ({error}): check the path") from error
        sets = [line.partition("\t")[0].split() for line in lines if line.strip()]
    else:
        rows = [row for _, row in named_rows(source)]
        sets = [_concepts_of(row) for row in rows]
    if not sets or not all(sets):
        raise InvalidPromptError(f"{path} has a line without concepts, or none at all: write 'field look stand'")
    return [_row(words) for words in dict.fromkeys(tuple(words) for words in sets)]


def _concepts_of(row: Any) -> list[str]:
    found = row.get("concepts", row.get("concept_set")) if isinstance(row, dict) else row
    if isinstance(found, str):
        return found.replace("#", " ").split()
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
        raise InvalidPromptError(f"a row has no column 'concepts' with words in it: {str(row)[:80]}")
    return found


def _row(words: Sequence[str]) -> Row:
    return {"prompt": f"{', '.join(words)}:", "concepts": list(words)}


def coverage(
    prompts: Sequence[str], responses: Sequence[str], concepts: Sequence[Sequence[str]], **columns: Any
) -> list[float]:
    """The share of the concepts that a response uses, 0 to 1."""
    return [len(_used(response, wanted)) / len(wanted) for response, wanted in zip(responses, concepts, strict=True)]


def fluency(
    prompts: Sequence[str], responses: Sequence[str], concepts: Sequence[Sequence[str]], **columns: Any
) -> list[float]:
    """How far a response is from a list, 0 to 1: two words that are no concepts for each concept that is used, and the
    share of words that are not repeated."""
    found = []
    for response, wanted in zip(responses, concepts, strict=True):
        words = words_of(response)
        used = len(_used(response, wanted))
        others = sum(not _lemmas(word) & set(wanted) for word in words)
        found.append(distinct_share(words) * min(1.0, others / (OTHERS_PER_CONCEPT * max(used, 1))))
    return found


def coverage_and_fluency(
    prompts: Sequence[str], responses: Sequence[str], concepts: Sequence[Sequence[str]], **columns: Any
) -> list[float]:
    """The reward: coverage x fluency, 0 to 1."""
    both = zip(coverage(prompts, responses, concepts), fluency(prompts, responses, concepts), strict=True)
    return [covered * fluent for covered, fluent in both]


def _used(text: str, concepts: Sequence[str]) -> set[str]:
    found = {lemma for word in words_of(text) for lemma in _lemmas(word)}
    return found & set(concepts)


def _lemmas(word: str) -> set[str]:
    return {word, *(lemma for several in lemmas(word).values() for lemma in several)}


def task(source: str | None = None) -> TextTask:
    """The task.

    Args:
        source: a file with the sets of CommonGen; None: sets of the package's own words.
    """
    return TextTask(
        id="lm_env/Concepts-v0",
        summary="use all of some given words in one sentence; the score is coverage x fluency",
        source=lambda split: split_rows(drawn_sets() if source is None else read_sets(source), split),
        reward=coverage_and_fluency,
        model=EMBEDDED_MODEL,
        metrics={"coverage": coverage, "fluency": fluency},
        beta=0.05,
        max_new_tokens=28,
        temperature=0.7,
        budget=240_000,
        highest=1.0,
        options={"stop_strings": (".", "!", "?")},
    )
