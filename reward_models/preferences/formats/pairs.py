"""Rows with `chosen` and `rejected`: TRL's preference data sets and the transcripts of hh-rlhf.

TRL has texts or messages, with the prompt apart or not; in a transcript of hh-rlhf the prompt is the beginning.

Sources: the TRL documentation, "Dataset formats and types"; Bai et al. 2022 (arXiv:2204.05862), whose transcripts are
"\\n\\nHuman: ...\\n\\nAssistant: ...".
"""

from __future__ import annotations

import re
import reprlib
from typing import Any

from lm_env.errors import InvalidPreferenceError
from reward_models.preferences.formats.base import (
    Format,
    Row,
    chat,
    common_fields,
    has_text,
    is_metadata,
    one_to_one,
    prompt_column,
    prompts_in,
    put_common,
    text,
)
from reward_models.preferences.records.preference import Preference

__all__ = ["CONVERSATIONS", "PAIRS", "TRANSCRIPTS", "without_prompt"]

RESPONSES = ("chosen", "rejected")
USED = ("prompt", *RESPONSES)
ANSWER = re.compile(r"\n\nAssistant:")


# -- three texts ---------------------------------------------------------------------------------------
def _reads_pairs(row: Row) -> bool:
    if not has_text(row, *RESPONSES):
        return False
    return row.get("prompt") is not None or (bool(prompts_in(row)) and not _are_dialogues(row))


def _read_pair(row: Row) -> list[Preference]:
    name = prompt_column(row)
    prompt: Any = row[name]
    if isinstance(prompt, list | tuple):
        prompt = chat(prompt, f"{name!r}")
    elif not isinstance(prompt, str):
        raise InvalidPreferenceError(f"{name!r} is {reprlib.repr(prompt)}: it must be text, or a list of messages")
    chosen, rejected = (text(row, each) for each in RESPONSES)
    return [Preference.pair(prompt, chosen, rejected, **common_fields(row, (name, *RESPONSES)))]


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
    prompt = record.prompt if isinstance(record.prompt, str) else list(record.prompt)
    return put_common(record, {"prompt": prompt, "chosen": chosen, "rejected": rejected})


PAIRS = Format(
    "pairs",
    "prompt (or question, instruction, query, input, text, messages), chosen, rejected: texts (TRL)",
    _reads_pairs,
    _read_pair,
    one_to_one(_write_pair),
)


# -- messages ------------------------------------------------------------------------------------------
def _reads_conversations(row: Row) -> bool:
    return isinstance(row.get("chosen"), list | tuple) and isinstance(row.get("rejected"), list | tuple)


def _read_conversation(row: Row) -> list[Preference]:
    if not _reads_conversations(row):
        raise InvalidPreferenceError("'chosen' and 'rejected' must be lists of messages")
    chosen, rejected = chat(row["chosen"], "'chosen'"), chat(row["rejected"], "'rejected'")
    name = "messages" if row.get("prompt") is None and len(chosen) == len(rejected) == 1 else "prompt"
    prompt: Any = row.get(name)
    if isinstance(prompt, list | tuple):
        before = chat(prompt, f"{name!r}")
    else:  # the prompt is what both begin with; in some data sets a column of that name repeats a part of it as text
        name, shared = "prompt", 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        before, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    for side, rest in (("chosen", chosen), ("rejected", rejected)):
        if len(rest) != 1 or rest[0]["role"] != "assistant":
            raise InvalidPreferenceError(
                f"{side!r} has {len(rest)} messages after the prompt: a response is one message of the assistant, so"
                " cut the conversations after the first message in which they differ"
            )
    if not before:
        raise InvalidPreferenceError("there is no message before the responses: add a 'prompt', a list of messages")
    fields = common_fields(row, (name, *RESPONSES))
    return [Preference.pair(before, chosen[0]["content"], rejected[0]["content"], **fields)]


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


# -- transcripts ---------------------------------------------------------------------------------------
def _reads_transcripts(row: Row) -> bool:
    """Two texts that begin with the same dialogue, or two texts and no other, which then begin with the prompt."""
    if not has_text(row, *RESPONSES) or row.get("prompt") is not None:
        return False
    return _are_dialogues(row) or not (prompts_in(row) or _other_texts(row))


def _are_dialogues(row: Row) -> bool:
    chosen, rejected = row["chosen"], row["rejected"]
    return ANSWER.search(chosen, 0, _alike(chosen, rejected)) is not None


def _other_texts(row: Row) -> list[str]:
    """The columns with a text that no part of a row with `chosen` and `rejected` is known to be."""
    return [
        name
        for name, value in row.items()
        if name not in USED and not is_metadata(name) and isinstance(value, str) and not _is_number(value)
    ]


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return value == ""
    return True


def without_prompt(row: Row) -> str | None:
    """What to do with a row of which it is not known where the prompt is; None for any other row."""
    if not has_text(row, *RESPONSES) or prompts_in(row) or not (others := _other_texts(row)):
        return None
    return (
        f"there is no 'prompt' beside 'chosen' and 'rejected': if {' or '.join(map(repr, others))} holds it, rename"
        " that column to 'prompt'; if both texts begin with it, pass format='transcripts' (--format transcripts)"
    )


def _read_transcript(row: Row) -> list[Preference]:
    chosen, rejected = text(row, "chosen"), text(row, "rejected")
    if chosen == rejected:
        raise InvalidPreferenceError("'chosen' and 'rejected' are equal, so that nothing is preferred: remove the row")
    cut = _shared(chosen, rejected)
    return [Preference.pair(chosen[:cut], chosen[cut:], rejected[cut:], **common_fields(row, RESPONSES))]


def _shared(a: str, b: str) -> int:
    """Where the prompt ends: behind the last "Assistant:" that both have; without one, at the last word they share."""
    length = _alike(a, b)
    ends = [match.end() for match in ANSWER.finditer(a, 0, length)]
    if ends:
        return ends[-1]
    return max(a.rfind(" ", 0, length), a.rfind("\n", 0, length)) + 1


def _alike(a: str, b: str) -> int:
    """How many characters two texts share at their beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _write_transcript(record: Preference) -> dict[str, Any]:
    if len(record.responses) != 2 or record.ranking != (0, 1) or not isinstance(record.prompt, str):
        raise InvalidPreferenceError("it is not a text prompt with two responses, the first of them better")
    chosen, rejected = record.responses
    return put_common(record, {"chosen": record.prompt + chosen, "rejected": record.prompt + rejected})


TRANSCRIPTS = Format(
    "transcripts",
    "chosen, rejected: two transcripts that begin alike (hh-rlhf)",
    _reads_transcripts,
    _read_transcript,
    one_to_one(_write_transcript),
)
