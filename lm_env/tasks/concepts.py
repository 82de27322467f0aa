"""lm_env/Concepts-v0: use all of some given words in one sentence (CommonGen, Lin et al. 2020, arXiv:1911.03705).

A concept counts as used if a word of the sentence has it as its lemma, so "dances" and "danced" use "dance" (the
lexicon is that of the package lemminflect).  The score is coverage x fluency.  Coverage is the share of the concepts
that are used; fluency is a rule that tells a sentence from a list: it is 1 for two other words per concept and no word
twice.

The task's own sets are three nouns that are frequent in film reviews, and their prompts begin the sentence: "A woman, a
house, a son: a film about a".  The beginning uses none of the concepts, and only the response is judged, so that a
concept counts where the response uses it, never because the prompt names it.

`source=` takes the sets of CommonGen: a .tsv file of "field look stand<TAB>a sentence" as the authors publish it, or a
.jsonl file with a column `concepts`.  They may hold any words of any part of speech, so their prompts are plain lists:
"field, look, stand:".
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm_env.data.prompts import named_rows
from lm_env.errors import ConfigurationError, InvalidPromptError
from lm_env.models.loading import EMBEDDED_MODEL
from lm_env.storage import read_lines
from lm_env.tasks.base import TextTask, split_rows
from lm_env.tasks.base.lexicon import distinct_share, lemmas, words_of
from lm_env.tasks.base.wordlists import CONCEPT_NOUNS

__all__ = ["coverage", "coverage_and_fluency", "fluency", "own_sets", "read_sets", "task"]

OTHERS_PER_CONCEPT = 2
COPIED_RUN = 4
"""So many words in a row that the prompt has in the same order are copied from it."""
TOKENS = 20
TOKENS_OF_A_SOURCE = 28
"""The length cap where sets are given, which may have more concepts than three."""

Row = dict[str, Any]


def own_sets() -> list[Row]:
    """All 220 sets of three of 12 nouns, each once, in an order that is drawn with a fixed seed."""
    rng = np.random.default_rng(0)
    found = []
    for nouns in itertools.combinations(CONCEPT_NOUNS, 3):
        words = [nouns[i] for i in rng.permutation(3)]
        found.append({"prompt": f"A {', a '.join(words)}: a film about a", "concepts": words})
    return found


def read_sets(source: str | Path) -> list[Row]:
    """The sets of concepts in a file: .tsv as CommonGen is published, or anything with a column `concepts`.

    Raises:
        ConfigurationError: there is no such file, or it is no UTF-8 text.
        InvalidPromptError: a line has no concepts, or one that is not a single word.
    """
    path = Path(source)
    if path.suffix == ".tsv":
        try:
            lines = read_lines(path)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{path} cannot be read ({error}): check the path") from error
        sets = [line.partition("\t")[0].split() for line in lines if line.strip()]
    else:
        rows = [row for _, row in named_rows(source)]
        sets = [_concepts_of(row) for row in rows]
    if not sets or not all(sets):
        raise InvalidPromptError(f"{path} has a line without concepts, or none at all: write 'field look stand'")
    distinct = dict.fromkeys(tuple(dict.fromkeys(_concept(word, path) for word in words)) for words in sets)
    return [{"prompt": f"{', '.join(words)}:", "concepts": list(words)} for words in distinct]


def _concepts_of(row: Any) -> list[str]:
    found = row.get("concepts", row.get("concept_set")) if isinstance(row, dict) else row
    if isinstance(found, str):
        return found.replace("#", " ").split()
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
        raise InvalidPromptError(f"a row has no column 'concepts' with words in it: {str(row)[:80]}")
    return found


def _concept(given: str, path: Path) -> str:
    """A concept in lower case, as the words of a response are."""
    found = words_of(given)
    if len(found) != 1 or len(found[0]) != len(given.strip().lower()):
        raise InvalidPromptError(
            f"{path} has the concept {given!r:.80}, which is not one word of letters, so no response could use it:"
            " write 'field look stand'"
        )
    return found[0]


def coverage(
    prompts: Sequence[str], responses: Sequence[str], concepts: Sequence[Sequence[str]], **columns: Any
) -> list[float]:
    """The share of the concepts that a response uses, 0 to 1.

    Words of the prompt do not count, nor do those that the response copies from it in a run of four or more; the run
    may begin with the last words of the prompt.  Capitals and repetitions among the concepts make no difference.
    """
    rows = zip(prompts, responses, map(_distinct, concepts), strict=True)
    return [len(_used(_own_words(prompt, response), wanted)) / len(wanted) for prompt, response, wanted in rows]


def fluency(
    prompts: Sequence[str], responses: Sequence[str], concepts: Sequence[Sequence[str]], **columns: Any
) -> list[float]:
    """How little a response is like a list, 0 to 1: distinct words / words x min(1, others / (2 x max(1, used))).

    Others are the words that are no concepts and not copied from the prompt, as `coverage` explains; used is the number
    of concepts that the response uses.
    """
    found = []
    for prompt, response, wanted in zip(prompts, responses, map(_distinct, concepts), strict=True):
        words = _own_words(prompt, response)
        used = len(_used(words, wanted))
        others = sum(not _lemmas(word) & wanted for word in words)
        enough = min(1.0, others / (OTHERS_PER_CONCEPT * max(used, 1)))
        found.append(distinct_share(words_of(response)) * enough)
    return found


def coverage_and_fluency(
    prompts: Sequence[str], responses: Sequence[str], concepts: Sequence[Sequence[str]], **columns: Any
) -> list[float]:
    """The reward: coverage x fluency, 0 to 1."""
    both = zip(coverage(prompts, responses, concepts), fluency(prompts, responses, concepts), strict=True)
    return [covered * fluent for covered, fluent in both]


def _own_words(prompt: str, response: str) -> list[str]:
    """The words of the response that are not in a run of four or more which the prompt has, too."""
    given, written = words_of(prompt), words_of(response)
    runs = {tuple(given[i : i + COPIED_RUN]) for i in range(len(given) - COPIED_RUN + 1)}
    words = [*given[max(0, len(given) - COPIED_RUN + 1) :], *written]  # a run may begin in the prompt
    starts = [i for i in range(len(words) - COPIED_RUN + 1) if tuple(words[i : i + COPIED_RUN]) in runs]
    copied = {i + k for i in starts for k in range(COPIED_RUN)}
    return [word for i, word in enumerate(words) if i not in copied and i >= len(words) - len(written)]


def _distinct(concepts: Sequence[str]) -> frozenset[str]:
    return frozenset(concept.lower() for concept in concepts)


def _used(words: Sequence[str], concepts: frozenset[str]) -> frozenset[str]:
    return concepts & {lemma for word in words for lemma in _lemmas(word)}


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
        source=lambda split: split_rows(own_sets() if source is None else read_sets(source), split),
        reward=coverage_and_fluency,
        model=EMBEDDED_MODEL,
        metrics={"coverage": coverage, "fluency": fluency},
        beta=0.05,
        max_new_tokens=TOKENS if source is None else TOKENS_OF_A_SOURCE,
        temperature=0.7,
        budget=60_000,
        highest=1.0,
        options={"stop_strings": (".", "!", "?")},
    )
