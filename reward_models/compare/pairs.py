"""Pairs of responses for people to judge, written to a file that the labelling page reads."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm_env.errors import CheckpointWriteError, ConfigurationError
from reward_models.compare.outcomes import WRITTEN_BY, text_digest
from reward_models.compare.responses import Contestant
from reward_models.preferences.records.preference import PromptText

__all__ = ["write_pairs"]


def write_pairs(
    prompts: Sequence[PromptText], contestants: Sequence[Contestant], path: str | Path, *, seed: int = 0
) -> tuple[int, int]:
    """Write a row for each pair of models and each prompt: the prompt, two responses, and who wrote which.

    The rows stand in random order, and so do the two responses of each.  `lm-env label` reads the file; its judgements,
    or any others in a file that `read_preferences` reads and that keeps the column `written_by`, become
    `outcomes_from_records`.

    Returns:
        (rows written, pairs left out because both responses are the same).

    Raises:
        ConfigurationError: the path does not end in .jsonl, or all responses are alike.
        CheckpointWriteError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".jsonl":
        raise ConfigurationError(f"{path.name} does not end in .jsonl: pairs are written as JSON lines")
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    alike = 0
    for a, b in itertools.combinations(contestants, 2):
        for prompt, own, other in zip(prompts, a.responses, b.responses, strict=True):
            for pair in zip(own, other, strict=True):
                if pair[0] == pair[1]:
                    alike += 1
                    continue
                written_by = {a.name: text_digest(pair[0]), b.name: text_digest(pair[1])}
                responses = list(pair) if rng.random() < 0.5 else [pair[1], pair[0]]
                plain = prompt if isinstance(prompt, str) else [dict(message) for message in prompt]
                rows.append({"prompt": plain, "responses": responses, WRITTEN_BY: written_by})
    if not rows:
        raise ConfigurationError("all models gave the same responses: there is nothing to judge")
    try:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(rows[i]) + "\n" for i in rng.permutation(len(rows)))
    except OSError as error:
        raise CheckpointWriteError(f"cannot write {path}: {error}; choose another place") from error
    return len(rows), alike
