"""The state of the labelling: progress, each annotator's choices and reliability, and their agreement."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from reward_models.labelling.answers import StoredAnswer
from reward_models.labelling.export import stored_votes
from reward_models.labelling.posterior import Agreement, fit_annotators, measure_agreement
from reward_models.labelling.store import LabelStore
from reward_models.trust.statistics import Share, wilson

__all__ = ["AnnotatorLine", "Overview", "labels_per_minute", "survey"]

LONGEST_PAUSE_S = 300.0
RECENT = 20


@dataclass(frozen=True)
class AnnotatorLine:
    """One annotator.

    Attributes:
        answers: valid answers, skips included.
        choices: how many of them were of each kind.
        seconds: median time of an answer.
        shown_first: how often the annotator preferred the response that was shown first, ties left out; a share far
            from 1/2 says that the order, not the text, decides.
        accuracy: (mean, low, high) of the posterior with its 95% interval; None where nobody else has judged what this
            annotator has, so that nothing is known.
    """

    name: str
    answers: int
    choices: dict[str, int]
    seconds: float
    shown_first: Share | None
    accuracy: tuple[float, float, float] | None


@dataclass(frozen=True)
class Overview:
    """What the overview of the page and `lm-env label report` show.

    Attributes:
        items: prompts with their responses.
        questions: asked about them.
        done: questions that enough annotators have answered.
        per_item: how many are enough.
        answers: valid ones, skips included.
        annotators: those with the most answers first.
        agreement: of all annotators; None before any answer but skips.
        spans: marked spans by kind.
    """

    items: int
    questions: int
    done: int
    per_item: int
    answers: int
    annotators: tuple[AnnotatorLine, ...]
    agreement: Agreement | None
    spans: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """JSON; kappas become a list of [one, other, kappa]."""
        content = asdict(self)
        if self.agreement is not None:
            content["agreement"]["kappas"] = [[*names, asdict(kappa)] for names, kappa in self.agreement.kappas.items()]
        return content


def survey(store: LabelStore) -> Overview:
    """Count and measure what a file of labels holds."""
    answers = store.answers()
    questions = store.questions()
    judged = Counter(a.question for a in answers if a.choice != "skip")
    votes = stored_votes(answers)
    accuracy: dict[str, tuple[float, float, float]] = {}
    if len(votes.unit):
        fit = fit_annotators(votes)
        found = zip(fit.accuracy.tolist(), fit.low.tolist(), fit.high.tolist(), strict=True)
        shared = votes.table() >= 0
        compared = (shared & (shared.sum(0) > 1)).any(1).tolist()
        named = zip(fit.annotators, found, compared, strict=True)
        accuracy = {name: interval for name, interval, known in named if known}
    own: dict[str, list[StoredAnswer]] = {}
    for answer in answers:
        own.setdefault(answer.annotator, []).append(answer)
    lines = [_line(name, given, accuracy.get(name)) for name, given in own.items()]
    return Overview(
        items=len({item for item, _ in questions.values()}),
        questions=len(questions),
        done=sum(judged[number] >= store.per_item for number in questions),
        per_item=store.per_item,
        answers=len(answers),
        annotators=tuple(sorted(lines, key=lambda line: -line.answers)),
        agreement=measure_agreement(votes) if len(votes.unit) else None,
        spans=dict(Counter(span.kind for a in answers for span in a.spans).most_common()),
    )


def _line(name: str, answers: Sequence[StoredAnswer], accuracy: tuple[float, float, float] | None) -> AnnotatorLine:
    decided = [a for a in answers if a.choice == "ranked" and len(a.ranking) == 2]
    first = [float(a.ranking[a.shown[0]] == 0) for a in decided]
    return AnnotatorLine(
        name,
        len(answers),
        dict(Counter(a.choice for a in answers)),
        statistics.median(a.seconds for a in answers),
        wilson(first),
        accuracy,
    )


def labels_per_minute(times: Sequence[float]) -> float | None:
    """The rate over the last 20 answers, pauses of more than five minutes left out; None for fewer than three.

    Args:
        times: of the answers of one annotator, in seconds, ascending.
    """
    recent = times[-RECENT:]
    gaps = [b - a for a, b in pairwise(recent) if b - a <= LONGEST_PAUSE_S]
    return 60 * len(gaps) / sum(gaps) if len(gaps) >= 2 and sum(gaps) > 0 else None
