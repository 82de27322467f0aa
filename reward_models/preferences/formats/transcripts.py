"""hh-rlhf: {chosen, rejected}, two transcripts that share their beginning.

Source: Bai et al. 2022 (arXiv:2204.05862), whose transcripts are "\\n\\nHuman: ...\\n\\nAssistant: ...".
"""

from __future__ import annotations

import re
from typing import Any

from lm_env.errors import InvalidPreferenceError
from reward_models.preferences.formats.base import Format, Row, common_fields, has_text, one_to_one, put_common, text
from reward_models.preferences.records.preference import Preference

__all__ = ["TRANSCRIPTS"]

USED = ("chosen", "rejected")
ANSWER = re.compile(r"\n\nAssistant:")


def _reads(row: Row) -> bool:
    return has_text(row, *USED) and row.get("prompt") is None


def _read(row: Row) -> list[Preference]:
    chosen, rejected = text(row, "chosen"), text(row, "rejected")
    if chosen == rejected:
        raise InvalidPreferenceError("'chosen' and 'rejected' are equal, so that nothing is preferred: remove the row")
    cut = _shared(chosen, rejected)
    return [Preference.pair(chosen[:cut], chosen[cut:], rejected[cut:], **common_fields(row, USED))]


def _shared(a: str, b: str) -> int:
    """Where the prompt ends: behind the last "Assistant:" that both have; without one, at the last word they share."""
    length = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    ends = [match.end() for match in ANSWER.finditer(a, 0, length)]
    if ends:
        return ends[-1]
    return max(a.rfind(" ", 0, length), a.rfind("\n", 0, length)) + 1


def _write(record: Preference) -> dict[str, Any]:
    if len(record.responses) != 2 or record.ranking != (0, 1) or not isinstance(record.prompt, str):
        raise InvalidPreferenceError("it is not a text prompt with two responses, the first of them better")
    chosen, rejected = record.responses
    return put_common(record, {"chosen": record.prompt + chosen, "rejected": record.prompt + rejected})


TRANSCRIPTS = Format(
    "transcripts",
    "chosen, rejected: two transcripts that begin alike (hh-rlhf)",
    _reads,
    _read,
    one_to_one(_write),
)
