"""Baselines that a reward model has to beat: a score from the length alone, and one from the words alone.

Both are fitted to the same training records, as Bradley-Terry models of comparisons, or, where there are none, by
least squares to the ratings.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from lm_env.errors import CheckpointCorruptError
from lm_env.storage import read_json
from reward_models.preferences.records.preference import Preference

__all__ = ["BASELINES_FILE", "Baselines", "WordBaseline", "fit_baselines", "load_baselines"]

BASELINES_FILE = "baselines.json"
MOST_WORDS = 20_000
WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class WordBaseline:
    """A linear score of a text: the sum over its distinct words of a weight each, times log(1 + count)."""

    weights: dict[str, float]

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """The score of each text, float64 (B,)."""
        return np.array(
            [sum(self.weights.get(word, 0.0) * math.log1p(n) for word, n in _words(text).items()) for text in texts]
        )


@dataclass(frozen=True)
class Baselines:
    """The two baselines; `length` is what one unit of log(1 + characters) adds to the score."""

    length: float
    words: WordBaseline

    def lengths(self, texts: Sequence[str]) -> np.ndarray:
        """The score from the length alone, float64 (B,)."""
        return self.length * np.array([math.log1p(len(text)) for text in texts])

    def save(self, folder: Path) -> None:
        """Write them into a folder that is there."""
        content = {"length": self.length, "words": {w: round(x, 5) for w, x in self.words.weights.items() if x}}
        (folder / BASELINES_FILE).write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def load_baselines(folder: Path) -> Baselines | None:
    """Those that `save` wrote, or None where there are none.

    Raises:
        CheckpointCorruptError: the file is not as it was written.
    """
    if not (folder / BASELINES_FILE).exists():
        return None
    content = read_json(folder / BASELINES_FILE)
    try:
        return Baselines(float(content["length"]), WordBaseline({w: float(x) for w, x in content["words"].items()}))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointCorruptError(f"{BASELINES_FILE} is not as it was written ({error}): train again") from error


def fit_baselines(records: Sequence[Preference], *, penalty: float = 1.0) -> Baselines | None:
    """Fit both to the comparisons of the records, or to their ratings; None where they hold neither.

    Args:
        penalty: half of it times the squared weights of the words is added to the sum of the losses over the
            comparisons.
    """
    texts = list(dict.fromkeys(response for record in records for response in record.responses))
    place = {text: i for i, text in enumerate(texts)}
    pairs = [
        (place[r.responses[o.better]], place[r.responses[o.worse]]) for r in records for o in r.outcomes() if not o.tied
    ]
    ratings = [(place[t], x) for r in records for t, x in zip(r.responses, r.ratings or (), strict=False)]
    if not pairs and not ratings:
        return None
    counts = [_words(text) for text in texts]
    frequent = Counter(word for count in counts for word in count).most_common(MOST_WORDS)
    vocabulary = {word: i for i, (word, n) in enumerate(frequent) if n > 1}
    words = [[(vocabulary[w], math.log1p(n)) for w, n in count.items() if w in vocabulary] for count in counts]
    weights = _fitted(words, len(vocabulary), pairs, ratings, penalty)
    lengths = [[(0, math.log1p(len(text)))] for text in texts]
    length = _fitted(lengths, 1, pairs, ratings, 1e-6)
    return Baselines(float(length[0]), WordBaseline({w: float(weights[i]) for w, i in vocabulary.items()}))


def _words(text: str) -> Counter[str]:
    return Counter(WORD.findall(text.lower()))


def _fitted(
    features: Sequence[Sequence[tuple[int, float]]],
    width: int,
    pairs: Sequence[tuple[int, int]],
    ratings: Sequence[tuple[int, float]],
    penalty: float,
) -> np.ndarray:
    """The weights (width,) of the convex problem, by L-BFGS."""
    flat = [entry for row in features for entry in row]
    index = torch.tensor([i for i, _ in flat], dtype=torch.long)
    value = torch.tensor([v for _, v in flat], dtype=torch.float64)
    starts = torch.tensor(np.cumsum([0, *(len(row) for row in features)])[:-1], dtype=torch.long)
    weights = torch.zeros(max(width, 1), 1, dtype=torch.float64, requires_grad=True)
    intercept = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer: Any = torch.optim.LBFGS([weights, intercept], max_iter=100, line_search_fn="strong_wolfe")
    better, worse = (torch.tensor([p[k] for p in pairs], dtype=torch.long) for k in (0, 1))
    rated = torch.tensor([i for i, _ in ratings], dtype=torch.long)
    targets = torch.tensor([x for _, x in ratings], dtype=torch.float64)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        if width:
            bags = F.embedding_bag(index, weights, starts, mode="sum", per_sample_weights=value)[:, 0]
        else:
            bags = weights.sum() * torch.zeros(len(features), dtype=torch.float64)
        if pairs:
            loss = -F.logsigmoid(bags[better] - bags[worse]).sum()
        else:
            loss = ((bags[rated] + intercept - targets) ** 2).sum() / 2
        loss = loss + penalty / 2 * (weights**2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach().numpy()[:, 0]
