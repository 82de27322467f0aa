"""Which question comes next: the one whose answer tells most about which response is better, or any."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from lm_env.validation import check_choice, check_integer
from reward_models.labelling.export import stored_votes
from reward_models.labelling.posterior import Votes, expected_information, fit_annotators, fit_groups, flip_rates
from reward_models.labelling.posterior.votes import FIRST, TIE
from reward_models.labelling.store import LabelStore

__all__ = ["ORDERS", "QuestionChooser"]

ORDERS = ("information", "random")
PRIOR_SD = 1.5
"""Of a strength, in log odds: the better of two responses is then preferred in about four of five judgements."""
CHANGES_PER_WAIT = 200
"""The posterior is fitted anew after each change of the answers while there are fewer than 400 changes, after every
second one while there are fewer than 600, and so on: one more of waiting for each 200."""
TOLERANCE = 1e-4
"""The fit of the annotators stops when no probability moves by more; a choice among questions needs no better one."""


class QuestionChooser:
    """Chooses among the questions that may be put to an annotator.

    With "information" it is the question with the most expected information about the strengths of its responses, see
    `expected_information`.  The strengths have a Bradley-Terry posterior for each prompt, which takes the reliability
    of the annotators into account; a question with more than two responses counts as the mean over its pairs.  Equal
    questions are chosen among at random, and with "random" all of them are.

    Args:
        order: "information" or "random".
        seed: of the random choices.
    """

    def __init__(self, store: LabelStore, order: str = "information", seed: int = 0) -> None:
        check_choice("order", order, ORDERS)
        self.store = store
        self.order = order
        self._random = random.Random(check_integer("seed", seed, low=0))
        self._fitted_at: int | None = None
        self._place: dict[int, int] = {}
        self._flips: dict[str, float] = {}

    def __call__(self, annotator: str, candidates: Sequence[int]) -> int:
        """One of the candidates, which are numbers of questions."""
        if self.order == "random" or len(candidates) == 1:
            return self._random.choice(list(candidates))
        value = self.information(annotator, candidates)
        best = np.flatnonzero(value >= value.max() - 1e-9)
        return candidates[self._random.choice(best.tolist())]

    def information(self, annotator: str, questions: Sequence[int]) -> np.ndarray:
        """Expected information of each question, if this annotator answers it, in nats."""
        self._refresh(questions)
        places = np.array([self._place[question] for question in questions])
        mean, variance, weight = self._mean[places], self._variance[places], self._weight[places]
        return (expected_information(mean, variance, self._flips.get(annotator, 0.0)) * weight).sum(1)

    def difference(self, question: int) -> float:
        """The posterior mean of how much stronger the first response of a question is than the second, in log odds."""
        self._refresh([question])
        return float(self._mean[self._place[question], 0])

    def _refresh(self, questions: Sequence[int]) -> None:
        """Fit the posterior anew if there are enough new answers, or if one of these questions is new."""
        changes = self.store.changes()
        fitted = self._fitted_at
        is_known = all(question in self._place for question in questions)
        if is_known and fitted is not None and changes - fitted < max(1, changes // CHANGES_PER_WAIT):
            return
        if not is_known:  # another process may have added items to the file
            self._take_questions()
        self._fitted_at = changes
        self._fit(stored_votes(self.store.answers()))

    def _take_questions(self) -> None:
        questions = self.store.questions()
        self._place = {number: place for place, number in enumerate(questions)}
        most = max(len(responses) * (len(responses) - 1) // 2 for _, responses in questions.values())
        shape = (len(questions), most)
        self._items = np.array([item for item, _ in questions.values()])
        self._pairs = np.zeros((*shape, 2), dtype=np.int64)
        self._weight = np.zeros(shape)
        for place, (_, responses) in enumerate(questions.values()):
            pairs = list(combinations(responses, 2))
            self._pairs[place, : len(pairs)] = pairs
            self._weight[place, : len(pairs)] = 1 / len(pairs)

    def _fit(self, votes: Votes) -> None:
        """Mean and variance of the difference of strengths of each pair of each question."""
        self._mean = np.zeros(self._weight.shape)
        self._variance = np.full(self._weight.shape, 2 * PRIOR_SD**2)
        if not len(votes.unit):
            return
        flips = np.zeros(1)
        if len(votes.annotators) > 1:
            flips = flip_rates(fit_annotators(votes, tolerance=TOLERANCE).accuracy)
        self._flips = dict(zip(votes.annotators, flips.tolist(), strict=True))
        units = np.array([(unit.item, unit.first, unit.second) for unit in votes.units])
        judged, group = np.unique(units[:, 0], return_inverse=True)
        size = int(max(units[:, 2].max(), self._pairs.max())) + 1
        wins = np.where(votes.value == TIE, 0.5, votes.value == FIRST)
        mean, covariance = fit_groups(
            group[votes.unit],
            units[votes.unit, 1],
            units[votes.unit, 2],
            wins,
            flips[votes.annotator],
            votes.weight,
            (len(judged), size),
            PRIOR_SD,
        )
        known = np.isin(self._items, judged)
        of_question = np.searchsorted(judged, self._items[known])[:, None]
        i, j = self._pairs[known, :, 0], self._pairs[known, :, 1]
        self._mean[known] = mean[of_question, i] - mean[of_question, j]
        own = covariance[of_question, i, i] + covariance[of_question, j, j]
        self._variance[known] = own - 2 * covariance[of_question, i, j]
