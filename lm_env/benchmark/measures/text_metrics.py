"""Numbers about texts that need no reward function: diversity, repetition, and similarity to given texts.

Words are what whitespace separates, in lower case.
"""

from __future__ import annotations

from collections.abc import Sequence

from lm_env.errors import ConfigurationError, MissingDependencyError
from lm_env.validation import check_integer

__all__ = ["distinct", "likeness", "repetition"]


def distinct(texts: Sequence[str], n: int) -> float:
    """Distinct-n: different n-grams in all texts over n-grams in all texts, 0 to 1 (0 if there are none).

    It falls with the number of texts, so only equal numbers of texts of like length can be compared.
    Source: Li et al. 2016 (arXiv:1510.03055), section 5.1.
    """
    check_integer("n", n)
    grams = [gram for text in texts for gram in _ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(texts: Sequence[str], n: int = 4) -> float:
    """The share of a text's n-grams that occurred earlier in it, mean over texts; 0 for a text without n-grams.

    Source: seq-rep-n of Welleck et al. 2020 (arXiv:1908.04319), equation 9.
    """
    check_integer("n", n)
    shares = [1 - len(set(grams)) / len(grams) if (grams := _ngrams(text, n)) else 0.0 for text in texts]
    return sum(shares) / len(shares) if shares else 0.0


def likeness(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """BLEU and chrF of sacrebleu, 0 to 100 over all texts, and the mean ROUGE-1 and ROUGE-L of rouge-score, 0 to 1.

    They tell how many words a text shares with one good answer, not how good it is.

    Args:
        references: one text for each.

    Raises:
        ConfigurationError: the numbers of texts differ, or there are none.
        MissingDependencyError: sacrebleu or rouge-score is not installed.
    """
    if len(texts) != len(references) or not texts:
        raise ConfigurationError(f"{len(texts)} texts and {len(references)} references: give one reference for each")
    try:
        import sacrebleu
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise MissingDependencyError(
            "BLEU, chrF and ROUGE need sacrebleu and rouge-score: pip install 'lm-env[textmetrics]'"
        ) from error
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    rouge = [scorer.score(reference, text) for text, reference in zip(texts, references, strict=True)]
    return {
        "bleu": float(sacrebleu.corpus_bleu(list(texts), [list(references)]).score),
        "chrf": float(sacrebleu.corpus_chrf(list(texts), [list(references)]).score),
        "rouge_1": sum(found["rouge1"].fmeasure for found in rouge) / len(rouge),
        "rouge_L": sum(found["rougeL"].fmeasure for found in rouge) / len(rouge),
    }


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
