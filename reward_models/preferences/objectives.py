"""The training data of a reward model, as rows of tokens with judgements about them, and the losses.

All judgements about one prompt make one group, in which each distinct response is one row: its score is computed by one
forward, however many comparisons it is in (Ouyang et al. 2022, arXiv:2203.02155, section 3.5).

Shapes: R rows of a group, K ranked responses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from lm_env.distributed import processes
from lm_env.errors import ConfigurationError
from lm_env.models.inputs import length_batches, pad_right
from lm_env.validation import check_choice
from reward_models.preferences.encoding import prompt_text
from reward_models.preferences.losses import best_of_loss, pairwise_loss, plackett_luce_loss, regression_loss
from reward_models.preferences.model import RewardModel
from reward_models.preferences.records.comparison import Comparison
from reward_models.preferences.records.preference import Preference, prompt_key, ranking_outcomes

__all__ = [
    "Group",
    "Judgement",
    "Objective",
    "Record",
    "Scorer",
    "encode_groups",
    "frozen_features",
    "make_scorer",
    "resolve_objective",
    "summed_loss",
]

ObjectiveName = Literal["pairwise", "plackett-luce", "best-of", "regression"]
Record: TypeAlias = Comparison | Preference
Scorer: TypeAlias = Callable[[Sequence[Sequence[int]]], Tensor]
"""Rows of token ids -> their scores, with gradients."""

MOST_ROWS = 16
"""Responses of a group; a prompt with more of them makes several groups."""


@dataclass(frozen=True)
class Judgement:
    """One record of a group: which rows it ranks, and how."""

    rows: tuple[int, ...]
    ranking: tuple[int | None, ...]
    ratings: tuple[float, ...] | None
    margin: float | None


@dataclass(frozen=True)
class Group:
    """Distinct rows of tokens, and the judgements about them."""

    rows: list[list[int]]
    judgements: list[Judgement]

    @cached_property
    def outcomes(self) -> list[tuple[int, int, bool, float]]:
        """(better row, worse row, tied, margin) of each comparison."""
        found = []
        for judgement in self.judgements:
            rows = judgement.rows
            for better, worse, tied in ranking_outcomes(judgement.ranking):
                margin = 0.0 if tied or judgement.margin is None else judgement.margin
                found.append((rows[better], rows[worse], tied, margin))
        return found


@dataclass(frozen=True)
class Objective:
    """How judgements become a loss.

    Attributes:
        name: "pairwise" (all comparisons of a ranking), "plackett-luce" (the ranking as a whole), "best-of" (the choice
            of the best), or "regression" (the ratings themselves).
        drop_ties: leave ties out, as InstructGPT does, instead of counting them as half a win for each side.
        use_margins: train the chosen score to be the higher one by the record's margin.
        rating_mean, rating_std: of the training ratings; the scores are trained to be (rating - mean) / std.
    """

    name: ObjectiveName = "pairwise"
    drop_ties: bool = False
    use_margins: bool = False
    rating_mean: float = 0.0
    rating_std: float = 1.0


def resolve_objective(name: str | None, records: Sequence[Record], drop_ties: bool, use_margins: bool) -> Objective:
    """The objective asked for, or what the records allow: regression for single rated responses, else pairwise.

    Raises:
        ConfigurationError: no such objective, or the records hold nothing for it.
    """
    if name is None:
        single = all(isinstance(r, Preference) and len(r.responses) == 1 for r in records)
        name = "regression" if single and records else "pairwise"
    check_choice("objective", name, get_args(ObjectiveName))
    if name != "regression":
        return Objective(name, drop_ties, use_margins)  # type: ignore[arg-type]
    ratings = [rating for r in records if isinstance(r, Preference) for rating in r.ratings or ()]
    spread = float(np.std(ratings)) if ratings else 0.0
    if spread == 0.0:
        held = (
            f"the {len(ratings)} ratings of the records are all {ratings[0]:g}" if ratings else "the records hold none"
        )
        raise ConfigurationError(f"regression needs ratings that differ, and {held}: choose another objective")
    return Objective("regression", drop_ties, use_margins, float(np.mean(ratings)), spread)


# -- groups --------------------------------------------------------------------------------------------
def encode_groups(model: RewardModel, records: Sequence[Record], objective: Objective) -> list[Group]:
    """Tokenize the records and put those of one prompt together; a record that the objective cannot use is left out.

    Each `Comparison` is a group by itself, and so is each record without a prompt.
    """
    kept = [record for record in records if _usable(record, objective)]
    prompts: list[str] = []
    texts: list[str] = []
    prompt_ids: list[Sequence[int] | None] = []
    ids: list[Sequence[int] | None] = []
    columns: dict[str, list[object]] = {name: [] for r in kept if isinstance(r, Preference) for name in r.columns}
    for record in kept:
        one = isinstance(record, Comparison)
        responses = (record.chosen, record.rejected) if isinstance(record, Comparison) else record.responses
        prompts += [prompt_text(record.prompt, model.tokenizer)] * len(responses)
        texts += responses
        prompt_ids += [record.prompt_ids if isinstance(record, Comparison) else None] * len(responses)
        ids += [record.chosen_ids, record.rejected_ids] if isinstance(record, Comparison) else [None] * len(responses)
        for name, values in columns.items():
            values += [None if one else record.columns.get(name)] * len(responses)  # type: ignore[union-attr]
    rows = iter(model.encode(prompts, texts, prompt_ids, ids, columns) if texts else [])
    groups: list[Group] = []
    open_groups: dict[str, Group] = {}
    for record in kept:
        own = [next(rows) for _ in range(2 if isinstance(record, Comparison) else len(record.responses))]
        key = None if isinstance(record, Comparison) or record.prompt == "" else prompt_key(record.prompt)
        group = open_groups.get(key) if key is not None else None
        if group is None or len(group.rows) + len(own) > MOST_ROWS:
            group = Group([], [])
            groups.append(group)
            if key is not None:
                open_groups[key] = group
        group.judgements.append(_judgement(record, _places(group, own)))
    return groups


def _usable(record: Record, objective: Objective) -> bool:
    if isinstance(record, Comparison):
        return objective.name != "regression"
    if objective.name == "regression":
        return record.ratings is not None
    if objective.name == "best-of":
        return record.best is not None
    outcomes = record.outcomes()
    return any(not outcome.tied for outcome in outcomes) if objective.drop_ties else bool(outcomes)


def _places(group: Group, rows: list[list[int]]) -> tuple[int, ...]:
    """The index of each row in the group; rows that are not in it yet are added."""
    places = []
    for row in rows:
        if row not in group.rows:
            group.rows.append(row)
        places.append(group.rows.index(row))
    return tuple(places)


def _judgement(record: Record, places: tuple[int, ...]) -> Judgement:
    if isinstance(record, Comparison):
        return Judgement(places, (0, 1), None, None)
    return Judgement(places, record.ranking, record.ratings, record.margin)


# -- losses --------------------------------------------------------------------------------------------
def summed_loss(scores: Tensor, groups: Sequence[Group], objective: Objective) -> Tensor:
    """The sum over groups of the mean loss of a group's comparisons, rankings, choices or ratings; a scalar.

    Args:
        scores: of the groups' rows, one group after the other.
    """
    starts = np.cumsum([0, *(len(group.rows) for group in groups)])[:-1].tolist()
    if objective.name == "pairwise":
        return _pairwise(scores, groups, starts, objective)
    if objective.name == "regression":
        return _regression(scores, groups, starts, objective)
    total = scores.sum() * 0.0
    for start, group in zip(starts, groups, strict=True):
        for judgement in group.judgements:
            own = scores[[start + row for row in judgement.rows]]
            if objective.name == "plackett-luce":
                loss = plackett_luce_loss(own, judgement.ranking)
            else:
                loss = best_of_loss(own[None], torch.tensor([judgement.ranking.index(0)], device=scores.device))
            total = total + loss / len(group.judgements)
    return total


def _pairwise(scores: Tensor, groups: Sequence[Group], starts: Sequence[int], objective: Objective) -> Tensor:
    found: list[tuple[int, int, bool, float, float]] = []
    for start, group in zip(starts, groups, strict=True):
        kept = [outcome for outcome in group.outcomes if not (objective.drop_ties and outcome[2])]
        found += [(start + i, start + j, tied, margin, 1 / len(kept)) for i, j, tied, margin in kept]
    better, worse, tied, margins, weights = zip(*found, strict=True)
    return pairwise_loss(
        scores[list(better)],
        scores[list(worse)],
        margins=_like(scores, margins) if objective.use_margins else None,
        tied=torch.tensor(tied, device=scores.device) if any(tied) else None,
        weights=_like(scores, weights),
    )


def _regression(scores: Tensor, groups: Sequence[Group], starts: Sequence[int], objective: Objective) -> Tensor:
    rows: list[int] = []
    targets: list[float] = []
    weights: list[float] = []
    for start, group in zip(starts, groups, strict=True):
        rated = [(start + r, x) for j in group.judgements for r, x in zip(j.rows, j.ratings or (), strict=True)]
        rows += [row for row, _ in rated]
        targets += [(rating - objective.rating_mean) / objective.rating_std for _, rating in rated]
        weights += [1 / len(rated)] * len(rated)
    return regression_loss(scores[rows], _like(scores, targets), weights=_like(scores, weights))


def _like(scores: Tensor, values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=scores.dtype, device=scores.device)


# -- scores --------------------------------------------------------------------------------------------
def make_scorer(model: RewardModel, groups: Sequence[Group]) -> Scorer:
    """Scores with gradients: by the whole network, or, where the trunk is frozen, from features computed once."""
    network = model.network
    if any(p.requires_grad for p in network.trunk.parameters()):
        return lambda rows: network(*pad_right(rows, model.device))
    distinct = list(dict.fromkeys(tuple(row) for group in groups for row in group.rows))
    features = frozen_features(model, distinct)
    place = {row: i for i, row in enumerate(distinct)}
    return lambda rows: network.score_features(features[[place[tuple(row)] for row in rows]])


@torch.no_grad()
def frozen_features(model: RewardModel, rows: Sequence[Sequence[int]]) -> Tensor:
    """What the head reads of each row, (rows, D); several processes call this alike, and each reads its share."""
    together = processes()
    own = rows[together.share(len(rows))]
    width = model.network.head.in_features
    features = torch.empty(len(own), width, dtype=model.network.head.weight.dtype, device=model.device)
    for batch in length_batches([len(row) for row in own], model.batch_tokens):
        features[torch.from_numpy(batch)] = model.network.features(*pad_right([own[i] for i in batch], model.device))
    if together.count == 1:
        return features
    content = together.gather_rows({"features": features.cpu().view(torch.uint8).numpy()}, len(own))["features"]
    return torch.from_numpy(content.copy()).view(features.dtype).to(model.device)
