"""From prompts and responses to the rows of tokens that a reward model reads."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_env.data.chats import render_chat
from lm_env.data.prompts import RESERVED_COLUMNS
from lm_env.errors import ConfigurationError
from lm_env.objective.rewards import score_responses
from reward_models.preferences.records.preference import Preference, PromptText

__all__ = ["PLAIN", "RowEncoder", "prefix_groups", "prompt_text", "record_texts", "score_records"]

PLAIN = "{prompt}"
"""The template that shows the prompt and nothing else."""

CHECKED = 8
"""Prompts and responses of a call that are decoded, to see whether their token ids are of the reward model's own
tokenizer."""

Ids = Sequence[Sequence[int] | None] | None
"""The token ids of B texts, None for a text without them; None for a call without any."""


def prefix_groups(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Group rows such that every row of a group is a prefix of the group's first row, or equal to it.

    A causal trunk scores a whole group by one forward over its first row.

    Args:
        rows: token ids; they may have different lengths.

    Returns:
        groups of indexes into `rows`: each index in exactly one group, the longest row of a group first, and as few
        groups as possible.
    """
    keys = [tuple(row) for row in rows]
    groups: list[list[int]] = []
    # In descending lexicographic order the rows that extend a row stand directly before it.
    for index in sorted(range(len(keys)), key=keys.__getitem__, reverse=True):
        key = keys[index]
        if groups and keys[groups[-1][0]][: len(key)] == key:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def prompt_text(prompt: PromptText, tokenizer: Any) -> str:
    """A prompt as text: a chat by the tokenizer's template, or, if it has none, as "role: content" paragraphs."""
    if isinstance(prompt, str):
        return prompt
    if getattr(tokenizer, "chat_template", None):
        return render_chat("the prompt", prompt, tokenizer)
    return "".join(f"{message['role']}: {message['content']}\n\n" for message in prompt) + "assistant: "


@dataclass(frozen=True)
class RowEncoder:
    """Prompt and response -> one row of token ids.

    For a causal trunk a row is the prompt's tokens, the response's, and an EOS; only a response that is still being
    written has none.  For an encoder the two texts are set between the special tokens that its
    tokenizer puts around a pair.

    A row that is too long is cut from its BEGINNING: a causal trunk's row loses the BOS and the first tokens of the
    prompt, and if the response alone is too long, its first tokens, too.  An encoder's row keeps its special tokens and
    loses those of the prompt, then of the response, in the same order.

    Attributes:
        template: what is shown before the response, with the fields {prompt} and any column.
    """

    tokenizer: Any
    causal: bool
    max_length: int | None
    template: str = PLAIN

    def __post_init__(self) -> None:
        try:
            fields = [field for _, field, _, _ in string.Formatter().parse(self.template) if field is not None]
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"the template {self.template!r} is no format string ({error})") from error
        if "prompt" not in fields:
            raise ConfigurationError(f"the template {self.template!r} has no field {{prompt}}: put it where it belongs")

    def rows(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        prompt_ids: Ids = None,
        response_ids: Ids = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
        finished: Sequence[bool] | None = None,
    ) -> list[list[int]]:
        """-> B rows of token ids, at most `max_length` each.

        Ids are taken instead of the text where they are given, a causal trunk reads them, and they are of this
        tokenizer: they decode to the texts of the prompts and the responses.  A policy with another tokenizer hands
        over ids that mean nothing here.  The prompt's ids count only where the template shows nothing but the prompt.

        A response is read in the same way with ids and without, whatever has ended it.  One that a stop string ended,
        which the ids hold and the text does not, is read from the text.  One that the length cap has cut gets an EOS
        like all others: people have compared it as it is, and the last state of a row without an EOS is one that
        training on texts has never seen.

        Args:
            finished: False for responses that are still being written: they get no EOS, so that all beginnings of a
                text can be read in one forward.  Default: all are finished.

        Raises:
            ConfigurationError: a row without a token, a column that the template names and the prompts lack, or B
                prompts that do not match B responses.
        """
        for name, given in (("responses", responses), ("prompt_ids", prompt_ids), ("response_ids", response_ids)):
            if given is not None and len(given) != len(prompts):
                raise ConfigurationError(f"{len(given)} {name} for {len(prompts)} prompts: give one each")
        if not self.causal or not self._ids_match_text(prompts, responses, prompt_ids, response_ids):
            prompt_ids = response_ids = None
        if self.template != PLAIN:
            prompts = [self._filled_template(prompt, columns or {}, i) for i, prompt in enumerate(prompts)]
            prompt_ids = None
        if self.causal:
            rows = self._causal_rows(prompts, responses, prompt_ids, response_ids, finished)
        else:
            rows = self._pair_rows(prompts, responses)
        if [] in rows:
            raise ConfigurationError(f"sample {rows.index([])} has neither prompt nor response tokens to score")
        return rows

    def _ids_match_text(
        self, prompts: Sequence[str], responses: Sequence[str], prompt_ids: Ids, response_ids: Ids
    ) -> bool:
        """Whether the ids decode to what the texts say; not where there is no text with ids to tell it by."""
        try:
            found = [
                self._text_of(row).startswith(text)  # a stop string may follow
                for text, row in _with_ids(responses, response_ids)[:CHECKED]
            ]
            found += [
                self._text_of(row).strip() == text.strip() or self.tokenizer.decode(list(row)).endswith(text)
                for text, row in _with_ids(prompts, prompt_ids)[:CHECKED]
            ]
        except (IndexError, KeyError, OverflowError, TypeError, ValueError):  # ids beyond this tokenizer's vocabulary
            return False
        return bool(found) and all(found)

    def _text_of(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _without_end(self, responses: Sequence[str], ids: Ids, finished: Sequence[bool] | None) -> Ids:
        """The ids, those of finished responses without an EOS at their end, None where they hold a stop string too."""
        if ids is None:
            return None
        special = set(self.tokenizer.all_special_ids)
        bodies: list[Sequence[int] | None] = list(ids)
        for i, (text, row) in enumerate(zip(responses, ids, strict=True)):
            if row is None or (finished is not None and not finished[i]):
                continue
            end = len(row)
            while end and row[end - 1] in special:
                end -= 1
            bodies[i] = None if len(self._text_of(row)) > len(text) else row[:end]
        return bodies

    def _eos(self) -> list[int]:
        eos = self.tokenizer.eos_token_id
        return [] if eos is None else [eos]

    def _filled_template(self, prompt: str, columns: Mapping[str, Sequence[Any]], i: int) -> str:
        fields = {name: values[i] for name, values in columns.items()}
        try:
            return self.template.format(**{**fields, "prompt": prompt})
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ConfigurationError(
                f"the template {self.template!r} does not fit ({type(error).__name__}: {error}): its fields may be"
                f" {', '.join(['prompt', *fields])}, so give the prompts the column that it names"
            ) from error

    def _causal_rows(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        prompt_ids: Ids,
        response_ids: Ids,
        finished: Sequence[bool] | None,
    ) -> list[list[int]]:
        starts = self._tokenized(prompts, prompt_ids, special=True)
        bodies = self._tokenized(responses, self._without_end(responses, response_ids, finished), special=False)
        whole = [True] * len(responses) if finished is None else finished
        ends = [[*body, *self._eos()] if done else body for body, done in zip(bodies, whole, strict=True)]
        keep = slice(None) if self.max_length is None else slice(-self.max_length, None)
        return [[*start, *end][keep] for start, end in zip(starts, ends, strict=True)]

    def _tokenized(self, texts: Sequence[str], ids: Ids, *, special: bool) -> list[Sequence[int]]:
        """The ids, and the tokens of those texts that have none."""
        rows: list[Any] = [None] * len(texts) if ids is None else list(ids)
        missing = [i for i, row in enumerate(rows) if row is None]
        if missing:
            distinct = list(dict.fromkeys(texts[i] for i in missing))
            encoded = self.tokenizer(distinct, add_special_tokens=special)["input_ids"]
            bos = self.tokenizer.bos_token_id
            found = {}
            for text, row in zip(distinct, encoded, strict=True):
                twice = special and bos is not None and row[:2] == [bos, bos]  # a chat template writes its own
                found[text] = row[twice:]
            for i in missing:
                rows[i] = found[texts[i]]
        return rows

    def _pair_rows(self, prompts: Sequence[str], responses: Sequence[str]) -> list[list[int]]:
        before, between, behind = self._frame()
        starts = self._tokenized(prompts, None, special=False)
        ends = self._tokenized(responses, None, special=False)
        rows = []
        for start, end in zip(starts, ends, strict=True):
            middle = between if start else []
            if self.max_length is not None:
                room = self.max_length - len(before) - len(middle) - len(behind)
                end = end[max(0, len(end) - room) :]
                start = start[max(0, len(start) - (room - len(end))) :]
            rows.append([*before, *start, *middle, *end, *behind])
        return rows

    def _frame(self) -> tuple[list[int], list[int], list[int]]:
        """The special tokens before, between and behind a pair of texts."""
        pair = self.tokenizer("a", "a", return_special_tokens_mask=True)
        ids, mask = pair["input_ids"], pair["special_tokens_mask"]
        first, last = mask.index(0), len(mask) - mask[::-1].index(0)
        inner = [token for token, special in zip(ids[first:last], mask[first:last], strict=True) if special]
        return ids[:first], inner, ids[last:]


Key = tuple[str, str, str]
"""(the prompt, the response, the columns as JSON)."""


def record_texts(
    records: Sequence[Preference], tokenizer: Any, limit: int | None = None
) -> tuple[list[str], list[str], dict[str, list[Any]]]:
    """(prompts, responses, columns) of all distinct responses of the records, in their order, at most `limit`.

    The same response to the same prompt counts once, unless the prompt has other columns.
    """
    found: dict[Key, dict[str, Any]] = {}
    for record in records:
        for key in _keys(record, tokenizer):
            found.setdefault(key, _columns_of(record))
        if limit is not None and len(found) >= limit:
            break
    chosen = list(found.items())[:limit]
    names = dict.fromkeys(name for _, columns in chosen for name in columns)
    columns = {name: [columns.get(name) for _, columns in chosen] for name in names}
    return [prompt for (prompt, _, _), _ in chosen], [response for (_, response, _), _ in chosen], columns


def score_records(reward: Callable[..., Any], records: Sequence[Preference], tokenizer: Any) -> list[np.ndarray]:
    """The scores of each record's responses, float64 (K,) each; what `record_texts` counts once is scored once."""
    prompts, responses, columns = record_texts(records, tokenizer)
    scores = score_responses(reward, prompts, responses, columns)
    keys = dict.fromkeys(key for record in records for key in _keys(record, tokenizer))
    known = dict(zip(keys, map(float, scores), strict=True))
    return [np.array([known[key] for key in _keys(record, tokenizer)]) for record in records]


def _keys(record: Preference, tokenizer: Any) -> list[Key]:
    """What each response of a record is scored by."""
    prompt = prompt_text(record.prompt, tokenizer)
    columns = json.dumps(_columns_of(record), sort_keys=True, default=_as_json)
    return [(prompt, response, columns) for response in record.responses]


def _columns_of(record: Preference) -> dict[str, Any]:
    """The columns that a reward function can take as keywords."""
    return {
        name: value for name, value in record.columns.items() if name.isidentifier() and name not in RESERVED_COLUMNS
    }


def _as_json(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else repr(value)


def _with_ids(texts: Sequence[str], ids: Ids) -> list[tuple[str, Sequence[int]]]:
    """(text, its ids) of the texts that have both."""
    return [(text, row) for text, row in zip(texts, ids or (), strict=False) if text and row is not None]
