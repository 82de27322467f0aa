"""TRL's preference data sets: {prompt, chosen, rejected}, as text or as messages, with the prompt apart or not.

Source: the TRL documentation, "Dataset formats and types".
"""

from __future__ import annotations

from typing import Any

from lm_env.errors import InvalidPreferenceError
from reward_models.preferences.formats.base import Format, Row, chat, common_fields, has_text, one_to_one, put_common
from reward_models.preferences.records.preference import Preference

__all__ = ["CONVERSATIONS", "PAIRS"]

USED = ("prompt", "chosen", "rejected")


def _reads_pairs(row: Row) -> bool:
    return has_text(row, *USED)


def _read_pair(row: Row) -> list[Preference]:
    for name in USED:
        if not isinstance(row.get(name), str):
            raise InvalidPreferenceError(f"{name!r} is {row.get(name)!r}: it must be text")
    return [Preference.pair(row["prompt"], row["chosen"], row["rejected"], **common_fields(row, USED))]


def _chosen_and_rejected(record: Preference) -> tuple[str, str]:
    """The two responses, the better one first.

    Raises:
        InvalidPreferenceError: the record is something else than two responses of which one is better.
    """
    outcomes = record.outcomes()
    if len(record.responses) != 2 or outcomes[0].tied:
        raise InvalidPreferenceError("it is not two responses of which one is better, and this format holds no other")
    return record.responses[outcomes[0].better], record.responses[outcomes[0].worse]


def _write_pair(record: Preference) -> dict[str, Any]:
    chosen, rejected = _chosen_and_rejected(record)
    return put_common(record, {"prompt": record.prompt, "chosen": chosen, "rejected": rejected})


PAIRS = Format(
    "pairs", "prompt, chosen, rejected: three texts (TRL)", _reads_pairs, _read_pair, one_to_one(_write_pair)
)


# -- messages ------------------------------------------------------------------------------------------
def _reads_conversations(row: Row) -> bool:
    return isinstance(row.get("chosen"), list | tuple) and isinstance(row.get("rejected"), list | tuple)


def _read_conversation(row: Row) -> list[Preference]:
    if not _reads_conversations(row):
        raise InvalidPreferenceError("'chosen' and 'rejected' must be lists of messages")
    chosen, rejected = chat(row["chosen"], "'chosen'"), chat(row["rejected"], "'rejected'")
    prompt: Any = row.get("prompt")
    if isinstance(prompt, list | tuple):
        before = chat(prompt, "'prompt'")
    else:  # the prompt is what both begin with; in some data sets a column of that name repeats a part of it as text
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        before, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    for name, rest in (("chosen", chosen), ("rejected", rejected)):
        if len(rest) != 1 or rest[0]["role"] != "assistant":
            raise InvalidPreferenceError(
                f"{name!r} has {len(rest)} messages after the prompt: a response is one message of the assistant, so"
                " cut the conversations after the first message in which they differ"
            )
    if not before:
        raise InvalidPreferenceError("there is no message before the responses: add a 'prompt'")
    return [Preference.pair(before, chosen[0]["content"], rejected[0]["content"], **common_fields(row, USED))]


def _write_conversation(record: Preference) -> dict[str, Any]:
    if isinstance(record.prompt, str):
        raise InvalidPreferenceError("its prompt is text: this format holds messages")
    chosen, rejected = ([{"role": "assistant", "content": c}] for c in _chosen_and_rejected(record))
    return put_common(record, {"prompt": list(record.prompt), "chosen": chosen, "rejected": rejected})


CONVERSATIONS = Format(
    "conversations",
    "chosen, rejected: lists of messages, prompt apart or in both (TRL)",
    _reads_conversations,
    _read_conversation,
    one_to_one(_write_conversation),
)
