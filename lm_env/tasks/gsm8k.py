"""lm_env/GSM8K-v0: word problems of grade school; the score is 1 if the last number of the response is the answer.

The problems are in a file or on the hub, which `source=` names: rows with `question` and `answer`, where the answer is
a number, or a solution whose last number it is, as in "... #### 72" (Cobbe et al. 2021, arXiv:2110.14168).  The
default model is the smallest that can be installed as a package; expect good answers only from larger ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from lm_env.errors import ConfigurationError, InvalidPromptError
from lm_env.tasks.base import TextTask
from lm_env.tasks.base.named_source import named_source

__all__ = ["last_number", "right", "task"]

NUMBER = re.compile(r"[-\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
LONGEST = 40
"""Characters of the longest number that counts as one; longer ones are passed over."""


def last_number(text: str) -> Decimal | None:
    """The last number in a text, commas between thousands allowed; None if there is none.

    A hyphen after a digit, as in "3-5", is not read as a minus sign.
    """
    found = None
    for match in NUMBER.finditer(text):
        written = match[0].replace(",", "").replace("\u2212", "-")
        before = text[match.start() - 1 : match.start()]
        if written[0] == "-" and before.isdigit():
            written = written[1:]
        if len(written) <= LONGEST:
            found = Decimal(written)
    return found


def right(prompts: Sequence[str], responses: Sequence[str], answer: Sequence[str], **columns: Any) -> list[float]:
    """The reward: 1 where the last number of the response equals that of the answer, else 0."""
    pairs = [
        (last_number(response), last_number(str(wanted))) for response, wanted in zip(responses, answer, strict=True)
    ]
    return [float(found is not None and found == wanted) for found, wanted in pairs]


def has_number(prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """1 where the response has a number, right or wrong."""
    return [float(last_number(response) is not None) for response in responses]


def task(source: str | None = None) -> TextTask:
    """The task.

    Args:
        source: a .jsonl file with `question` and `answer`, or a hub id of such rows.
    """
    return TextTask(
        id="lm_env/GSM8K-v0",
        summary="word problems of grade school; the score is 1 if the last number is right",
        source=named_source("lm_env/GSM8K-v0", source, _row),
        reward=right,
        model="smollm2-135m",
        metrics={"has_number": has_number},
        beta=0.01,
        max_new_tokens=200,
        budget=2_000_000,
        success=1.0,
        highest=1.0,
        options={"stop_strings": ("\nQuestion:",)},
    )


def _row(where: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict) or not {"question", "answer"} <= row.keys():
        raise InvalidPromptError(f"{where} needs the columns question and answer: check that it is a file of GSM8K")
    if last_number(str(row["answer"])) is None:
        raise ConfigurationError(
            f"{where} has no number in its answer: give a file of problems with numbers as answers"
        )
    return {"prompt": f"Question: {row['question']}\nAnswer:", "answer": str(row["answer"])}
