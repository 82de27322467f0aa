"""Prompts: rows of any source, tokenized and checked once, up front.

Nothing is downloaded unless asked, and no global random state is read or written: whoever samples
brings the generator.  Shapes: P tokens of a prompt.
"""

from __future__ import annotations

import itertools
import os
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, overload

import numpy as np

from lm_env.data.chats import is_chat, render_chat
from lm_env.data.sources import EncodedRow, NamedRow, read_rows
from lm_env.data.tokenizing import Tokenizer, check_tokenizer, encode_texts, without_appended_eos
from lm_env.errors import ConfigurationError, InvalidPromptError
from lm_env.validation import check_choice, check_flag, check_integer

__all__ = [
    "PROMPT_COLUMNS",
    "RESERVED_COLUMNS",
    "Overflow",
    "Prompt",
    "Prompts",
    "load_prompts",
    "named_rows",
    "prompts_from_rows",
]

Overflow = Literal["error", "truncate"]

PROMPT_COLUMNS = ("prompt", "text", "question", "query", "instruction", "messages")
RESERVED_COLUMNS = frozenset({"prompts", "responses", "prompt_ids", "response_ids"})  # the reward's own arguments

LONGEST_TEXT = 2**22
"""Characters of a prompt, about a million tokens; what is longer is not even tokenized, which could take minutes."""


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One prompt.  Two are equal only if they are the same object.

    Attributes:
        ids: int64 (P,), P >= 1, read-only: every episode that starts here shares it.
        text: what the reward function reads.  It is the text that was given; for a prompt that came as
            ids or as a chat, or was truncated, it is decoded from `ids`, without special tokens.
        columns: the extra columns, for the reward function alone; the policy never sees them.
        index: the position in the `Prompts` it belongs to.
    """

    ids: np.ndarray
    text: str
    columns: Mapping[str, Any]
    index: int


class Prompts(Sequence[Prompt]):
    """A fixed pool of valid prompts with the same extra columns; `load_prompts` makes it."""

    def __init__(self, prompts: Iterable[Prompt]) -> None:
        self._prompts = list(prompts)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the extra columns."""
        return tuple(self._prompts[0].columns)

    def sample(self, rng: np.random.Generator, n: int) -> list[Prompt]:
        """Draw n prompts, independent and uniform, with replacement; `rng` alone decides which."""
        check_integer("n", n, low=0)
        return [self._prompts[i] for i in rng.integers(len(self._prompts), size=n)]

    def head(self, n: int) -> list[Prompt]:
        """Return the first n prompts, or all of them if there are fewer."""
        check_integer("n", n, low=0)
        return self._prompts[:n]

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        return self._prompts[index]

    def __len__(self) -> int:
        return len(self._prompts)


def load_prompts(
    source: Any,
    tokenizer: Tokenizer | None,
    *,
    vocab_size: int,
    max_prompt_tokens: int,
    prompt_column: str | None = None,
    overflow: Overflow = "error",
    add_special_tokens: bool = True,
    download: bool = False,
    limit: int | None = None,
) -> Prompts:
    """Read, tokenize and check prompts.

    A prompt is a text, token ids, or a chat: a list of messages {"role": ..., "content": ...}, the last
    one not the assistant's, which the tokenizer's chat template renders up to where the assistant's
    answer begins.  Text that begins with a BOS of its own gets no second one.  An EOS that the tokenizer
    puts behind a text is left out, with a warning: the model is to go on from there.  So is one in what the
    tokenizer returned for a list of texts.  Other token ids stay as they are given, and in a chat the template
    alone decides on special tokens.

    Args:
        source: a list of prompts or of dicts that hold one; a .txt file (one prompt per non-empty line);
            a .jsonl or .json file in UTF-8 (a row per line, or one array); what a tokenizer returns for
            a list of texts (padding that its attention mask shows is dropped); a `datasets.Dataset` or
            `IterableDataset`; a hub id, "user/name" or "user/name:split" (split "train" if none is
            named); or `Prompts`, whose ids are kept.  A string that is an existing path is a path.
        tokenizer: turns text into ids; None will do if every prompt is token ids.
        vocab_size: the model's logit width; every id is below it.
        max_prompt_tokens: the longest prompt allowed, special tokens included.
        prompt_column: the column with the prompt; default the first of `PROMPT_COLUMNS` that the
            first row has.  Every other column goes to the reward function, None where a row lacks it.
        overflow: for a longer prompt, "error", or "truncate": keep the last `max_prompt_tokens`
            tokens, a leading BOS counted among them.
        add_special_tokens: whether the tokenizer adds to a text what it adds by itself (usually a BOS).
        download: allow a hub id to be fetched.
        limit: read only the first `limit` prompts; required where the source does not know its end.

    Raises:
        InvalidPromptError: a prompt is empty, too long, no text, ids or chat, or outside the vocabulary;
            the message names its index, or its file and line.
        ConfigurationError: the source or another argument cannot work.
    """
    check_tokenizer(tokenizer)
    return prompts_from_rows(
        named_rows(source, download=download, limit=limit),
        tokenizer,
        vocab_size=vocab_size,
        max_prompt_tokens=max_prompt_tokens,
        prompt_column=prompt_column,
        overflow=overflow,
        add_special_tokens=add_special_tokens,
        remedy="raise max_prompt_tokens, shorten it, or pass overflow='truncate'",
    )


def named_rows(source: Any, *, download: bool = False, limit: int | None = None) -> list[NamedRow]:
    """(its name in messages, row) of each row of a source; see `load_prompts` for arguments and errors."""
    if limit is not None:
        check_integer("limit", limit)
    check_flag("download", download)
    rows = list(itertools.islice(read_rows(source, download, limit), limit))
    if not rows:
        name = repr(str(source)) if isinstance(source, str | os.PathLike) else f"the {type(source).__name__} given"
        raise InvalidPromptError(f"{name} holds no prompts: give at least one")
    return rows


def prompts_from_rows(
    rows: Sequence[NamedRow],
    tokenizer: Tokenizer | None,
    *,
    vocab_size: int,
    max_prompt_tokens: int,
    prompt_column: str | None,
    overflow: Overflow,
    add_special_tokens: bool,
    remedy: str,
) -> Prompts:
    """`load_prompts` of rows that have been read.

    Args:
        remedy: what the error tells the user to do about a prompt that is too long.
    """
    check_integer("vocab_size", vocab_size)
    check_integer("max_prompt_tokens", max_prompt_tokens)
    check_choice("overflow", overflow, ("error", "truncate"))
    check_flag("add_special_tokens", add_special_tokens)
    if prompt_column is not None and not isinstance(prompt_column, str):
        raise ConfigurationError(f"prompt_column must be the name of a column, not {prompt_column!r:.60}")
    first = next((row for _, row in rows if isinstance(row, Mapping)), {})
    column = prompt_column or next((name for name in PROMPT_COLUMNS if name in first), PROMPT_COLUMNS[0])
    drafts = [_draft(where, row, column, tokenizer) for where, row in rows]
    _tokenize([draft for draft in drafts if draft.written], tokenizer, add_special_tokens)
    without_appended_eos([draft.ids for draft in drafts if draft.encoded], tokenizer)
    names = dict.fromkeys(name for draft in drafts for name in draft.columns)
    prompts = []
    for index, draft in enumerate(drafts):
        text = draft.text
        columns = {name: draft.columns.get(name) for name in names}
        ids = _fitted(draft, tokenizer, vocab_size, max_prompt_tokens, overflow, remedy)
        if text is None or len(ids) < len(draft.ids):
            text = " ".join(map(str, ids)) if tokenizer is None else tokenizer.decode(ids, skip_special_tokens=True)
        array = np.array(ids, dtype=np.int64)
        array.setflags(write=False)
        prompts.append(Prompt(array, text, columns, index))
    return Prompts(prompts)


@dataclass(slots=True)
class _Draft:
    """A row on its way to a prompt."""

    where: str
    """Names the row in messages: "prompt 3" or "train.jsonl, line 4"."""
    columns: dict[str, Any]
    text: str | None = None
    """What the reward will read; None: to be decoded from the ids."""
    ids: list[int] = field(default_factory=list)
    """Empty: still to be tokenized from `written`."""
    written: str = ""
    encoded: bool = False
    """The ids are what a tokenizer returned for a text."""
    rendered: bool = False
    """`written` came out of a chat template, which has put every special token into it."""


def _draft(where: str, row: Any, column: str, tokenizer: Tokenizer | None) -> _Draft:
    if isinstance(row, Prompt):
        return _Draft(where, dict(row.columns), row.text, row.ids.tolist())
    columns = dict(row) if isinstance(row, Mapping) else {column: row}
    if column not in columns:
        if columns.keys() >= {"role", "content"}:
            raise InvalidPromptError(f"{where} is one message: a chat is a list of messages, so put it into a list")
        has = ", ".join(map(reprlib.repr, itertools.islice(columns, 8))) or "none"
        raise InvalidPromptError(f"{where} has no column {column!r} (it has {has}): name the one with prompt_column")
    value = columns.pop(column)
    for name in columns:
        if not isinstance(name, str) or name in RESERVED_COLUMNS:
            shown = reprlib.repr(name)
            raise InvalidPromptError(f"{where} has a column {shown}, which the reward cannot be given: rename it")
    if is_chat(value):
        return _Draft(where, columns, written=_checked_text(where, render_chat(where, value, tokenizer)), rendered=True)
    if isinstance(value, str):
        text = _checked_text(where, value)
        return _Draft(where, columns, text, written=text)
    return _Draft(where, columns, ids=_checked_ids(where, value), encoded=isinstance(value, EncodedRow))


def _checked_text(where: str, text: str) -> str:
    if not text:
        raise InvalidPromptError(f"{where} is empty: give it text, or the token-id prompt [bos_token_id]")
    if len(text) > LONGEST_TEXT:
        raise InvalidPromptError(
            f"{where} has {len(text):,} characters, more than the {LONGEST_TEXT:,} that are tokenized: give one prompt"
            " per row, or token ids"
        )
    if re.search("[\ud800-\udfff]", text):
        raise InvalidPromptError(f"{where} holds half of a surrogate pair, which is no character: remove it")
    return str(text)


def _checked_ids(where: str, value: Any) -> list[int]:
    ids = value.tolist() if hasattr(value, "tolist") else value  # arrays and tensors
    if not isinstance(ids, list | tuple):
        kind = type(value).__name__
        raise InvalidPromptError(f"{where} is of type {kind}: give a string, a list of token ids or a chat")
    if not ids:
        raise InvalidPromptError(f"{where} is empty: give it at least one token, such as bos_token_id")
    for position, token in enumerate(ids):
        if not isinstance(token, int | np.integer) or isinstance(token, bool):
            raise InvalidPromptError(f"{where} holds {reprlib.repr(token)} at {position}: token ids are integers")
    return [int(token) for token in ids]


def _tokenize(drafts: list[_Draft], tokenizer: Tokenizer | None, add_special_tokens: bool) -> None:
    """Fill in the ids of those that are written as text."""
    if not drafts:
        return
    if tokenizer is None:
        raise ConfigurationError(f"{drafts[0].where} is text and there is no tokenizer: pass one, or give token ids")
    plain = [draft for draft in drafts if not draft.rendered]
    rendered = [draft for draft in drafts if draft.rendered]
    for group, special in ((plain, add_special_tokens), (rendered, False)):
        names = [draft.where for draft in group]
        texts = [draft.written for draft in group]
        for draft, ids in zip(group, encode_texts(names, texts, tokenizer, special), strict=True):
            draft.ids = ids


def _fitted(
    draft: _Draft, tokenizer: Tokenizer | None, vocab_size: int, size: int, overflow: str, remedy: str
) -> list[int]:
    """Return the ids, inside the vocabulary and at most `size` of them."""
    ids, where = draft.ids, draft.where
    for position, token in enumerate(ids):
        if not 0 <= token < vocab_size:
            shown = token if abs(token) < 10**30 else "a number of more than 30 digits"
            problem = f"holds token {shown} at {position}, outside the vocabulary of {vocab_size}"
            raise InvalidPromptError(f"{where} {problem}: use the tokenizer that belongs to the model")
    if len(ids) <= size:
        return ids
    if overflow == "error":
        raise InvalidPromptError(f"{where} has {len(ids)} tokens, more than max_prompt_tokens={size}: {remedy}")
    bos = ids[:1] if tokenizer is not None and ids[0] == tokenizer.bos_token_id else []
    return bos + ids[len(ids) - size + len(bos) :]
