"""Hold records out without a prompt, or a text that is judged by itself, on both sides; and make pairs of ratings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from lm_env.errors import ConfigurationError
from lm_env.validation import check_integer, check_number
from reward_models.preferences.records.comparison import Comparison
from reward_models.preferences.records.preference import Preference, prompt_key

__all__ = ["pair_ratings", "split_records"]

R = TypeVar("R", bound=Comparison | Preference)


def split_records(records: Sequence[R], fraction: float, rng: np.random.Generator) -> tuple[list[R], list[R]]:
    """-> (training, held out), by whole prompts.

    Texts judged by themselves (no prompt, one response) are held out by text.  Where a single prompt would be more
    than the fraction asked, single records are held out.

    Raises:
        ConfigurationError: too few records to train on and to hold some out.
    """
    numbers = {key: n for n, key in enumerate(dict.fromkeys(_unit(record) for record in records))}
    by_unit = len(numbers) * fraction >= 1
    groups = [numbers[_unit(record)] if by_unit else i for i, record in enumerate(records)]
    count = len(numbers) if by_unit else len(records)
    chosen = set(rng.permutation(count)[: round(count * fraction)].tolist())
    training = [record for record, group in zip(records, groups, strict=True) if group not in chosen]
    held_out = [record for record, group in zip(records, groups, strict=True) if group in chosen]
    if not training or (fraction and not held_out):
        raise ConfigurationError(
            f"{len(records)} comparisons are too few to train on and to hold out {fraction:g} of: give more"
        )
    return training, held_out


def _unit(record: Comparison | Preference) -> tuple[str, str]:
    alone = isinstance(record, Preference) and record.prompt == "" and len(record.responses) == 1
    return (prompt_key(record.prompt), record.responses[0] if alone else "")  # type: ignore[union-attr]


def pair_ratings(
    records: Sequence[Preference], *, min_difference: float, pairs_per_response: int = 4, seed: int = 0
) -> list[Preference]:
    """Comparisons out of single rated responses: pairs of one prompt whose ratings differ by enough.

    Split first and pair afterward, so that no response is on both sides.  The difference becomes the margin.

    Args:
        records: those with one rated response are paired; all others are left out.
        min_difference: in the units of the ratings.
        pairs_per_response: partners drawn for each response; a pair is kept once.

    Raises:
        ConfigurationError: no pair differs by as much.
    """
    check_number("min_difference", min_difference, low=0.0, above=True)
    check_integer("pairs_per_response", pairs_per_response)
    rng = np.random.default_rng(seed)
    pools: dict[str, list[Preference]] = defaultdict(list)
    for record in records:
        if len(record.responses) == 1 and record.ratings is not None:
            pools[prompt_key(record.prompt)].append(record)
    found = []
    for pool in pools.values():
        ratings = np.array([record.ratings[0] for record in pool])  # type: ignore[index]
        order = np.argsort(ratings, kind="stable")
        ascending = ratings[order]
        low = np.searchsorted(ascending, ratings - min_difference, side="right")  # so many are lower by enough
        high = len(pool) - np.searchsorted(ascending, ratings + min_difference, side="left")
        seen = set()
        for i, (below, above) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
            count = min(pairs_per_response, below + above)
            for place in rng.choice(below + above, size=count, replace=False) if count else ():
                j = int(order[place] if place < below else order[len(pool) - above + place - below])
                better, worse = (i, j) if ratings[i] > ratings[j] else (j, i)
                if (better, worse) not in seen:
                    seen.add((better, worse))
                    found.append(_pair(pool[better], pool[worse]))
    if not found:
        raise ConfigurationError(
            f"no two ratings of one prompt differ by {min_difference:g}: lower it, or train on the ratings themselves"
        )
    return found


def _pair(better: Preference, worse: Preference) -> Preference:
    assert better.ratings is not None and worse.ratings is not None
    ratings = (better.ratings[0], worse.ratings[0])
    return Preference(
        better.prompt,
        (better.responses[0], worse.responses[0]),
        ratings=ratings,
        margin=ratings[0] - ratings[1],
        columns=better.columns if better.prompt != "" else {},
    )
