"""Demonstrations: texts to learn from, as episodes whose response is what is learned.

Which columns hold the prompt and the response is found by their names or told; rows that would silently be learned
in part are refused.  A chat is rendered by the tokenizer's template, and each message of the assistant is learned.

Shapes: P tokens of a prompt, T of a response.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_env.data.chats import is_chat, render_chat, render_reply
from lm_env.data.episodes import Episodes, text_episodes
from lm_env.data.pieces import tokens_from_ids
from lm_env.data.prompts import PROMPT_COLUMNS, Prompt, named_rows, prompts_from_rows
from lm_env.data.sources import NamedRow
from lm_env.data.tokenizing import Tokenizer, check_tokenizer
from lm_env.errors import ConfigurationError, InvalidPromptError

__all__ = ["RESPONSE_COLUMNS", "Demonstrations", "read_demonstrations"]

RESPONSE_COLUMNS = ("response", "answer", "completion", "output")
"""The columns that hold a response, if no other is named."""

CHAT_COLUMN = "messages"
WHOLE_TEXT_COLUMN = "text"
_PROMPT = "prompt"  # the column of the rows that are made here
SHOWN = 400  # characters of an example


@dataclass(frozen=True)
class Demonstrations:
    """Texts, and which part of each is learned."""

    episodes: Episodes
    """The responses are what is learned; the EOS belongs to them."""
    prompt_column: str | None
    """None where the rows are texts, token ids or chats, without columns."""
    response_column: str | None
    """None where whole texts or chats are learned."""
    unread: tuple[str, ...]
    """Columns that play no part."""
    cut: int
    """How many lose their end, and the EOS with it, because they are longer than `max_tokens`."""
    max_tokens: int

    def __len__(self) -> int:
        return len(self.episodes)

    def description(self, tokenizer: Tokenizer | None, index: int = 0) -> str:
        """What will be learned, in words, with one example: a few lines of text."""
        tokens = int(self.episodes.response_lengths.sum())
        if self.response_column is not None:
            what = f"column {self.response_column!r} is learned, given {self.prompt_column!r}"
        elif self.prompt_column == CHAT_COLUMN:
            what = f"each message of the assistant in {CHAT_COLUMN!r} is learned, given those before it"
        elif self.prompt_column is not None:
            what = f"column {self.prompt_column!r} is learned whole"
        else:
            what = "the texts are learned whole"
        lines = [f"{len(self):,} demonstrations, {tokens:,} tokens to learn: {what}"]
        if self.unread:
            lines.append(f"columns that are not read: {', '.join(map(repr, self.unread))}")
        if self.cut:
            lines.append(f"{self.cut:,} of them are longer than {self.max_tokens:,} tokens and lose their end")
        given, learned = self.example(tokenizer, index)
        lines += [f"one of them, given:   {_shown(given)}", f"            learned:  {_shown(learned)}"]
        if self.response_column and given and learned and not (given[-1].isspace() or learned[0].isspace()):
            lines.append(
                "nothing stands between the two; where a space or a line break belongs there, pass a separator"
            )
        return "\n".join(lines)

    def example(self, tokenizer: Tokenizer | None, index: int = 0) -> tuple[str, str]:
        """(what is given, what is learned) of one demonstration, decoded with its special tokens."""
        end, start = int(self.episodes.lengths[index]), int(self.episodes.prompt_lengths[index])
        pieces = tokens_from_ids(tokenizer, self.episodes.input_ids[index, :end].tolist())
        return "".join(pieces[:start]), "".join(pieces[start:])


def read_demonstrations(
    source: Any,
    tokenizer: Tokenizer | None,
    *,
    vocab_size: int,
    max_tokens: int,
    eos_token_id: int | None = None,
    prompt_column: str | None = None,
    response_column: str | None = None,
    separator: str = "",
    download: bool = False,
) -> Demonstrations:
    """Read demonstrations.

    A row is one of
    - a prompt and a response, in columns: the response is learned.  The columns are found by their names
      (`PROMPT_COLUMNS`, `RESPONSE_COLUMNS`), or named.  The prompt may be a chat, which the response goes on with;
    - a chat, in a column `messages` or by itself: every message of the assistant is learned, given those
      before it; a chat with several of them makes as many demonstrations;
    - a text, by itself or in a column: it is learned from its second token on.

    Args:
        source: what `load_prompts` takes.
        max_tokens: longer ones lose their end, and the EOS with it.
        eos_token_id: put behind each, unless it ends with it; default the tokenizer's.
        separator: text put behind each prompt that is text; prompts need it wherever the model is used.

    Raises:
        InvalidPromptError: see `load_prompts`.
        ConfigurationError: it is not clear what is to be learned; a response is neither text, ids nor a chat;
            or nothing is left to learn of one.
    """
    check_tokenizer(tokenizer)
    if not isinstance(separator, str):
        raise ConfigurationError(f"separator must be text, not {separator!r:.60}")
    rows = [(_renamed(name), row) for name, row in named_rows(source, download=download)]
    columns = _columns_of(rows, prompt_column, response_column)
    drafts = [draft for name, row in rows for draft in _drafts(name, row, columns, separator, tokenizer)]
    prompts = prompts_from_rows(
        [(name, value if isinstance(value, Prompt) else {_PROMPT: value}) for name, value, _ in drafts],
        tokenizer,
        vocab_size=vocab_size,
        max_prompt_tokens=2**31 - 1,
        prompt_column=_PROMPT,
        overflow="error",
        add_special_tokens=True,
        remedy="",
    )
    eos = getattr(tokenizer, "eos_token_id", None) if eos_token_id is None else int(eos_token_id)
    token_rows = []
    given = []
    for prompt, (name, _, response) in zip(prompts, drafts, strict=True):
        whole = response is None
        row = prompt.ids.tolist()
        given.append(1 if whole else len(row))
        if not whole:
            row += _response_ids(name, response, tokenizer, vocab_size, eos)
        if eos is not None and row[given[-1] :][-1:] != [eos]:
            row.append(eos)
        if min(len(row), max_tokens) <= given[-1]:
            raise ConfigurationError(
                f"{name} has nothing to learn: what is given has {given[-1]} tokens, and max_tokens={max_tokens} leaves"
                f" {min(len(row), max_tokens)}; raise max_tokens, or drop it"
            )
        token_rows.append(row)
    cut = sum(len(row) > max_tokens for row in token_rows)
    episodes = text_episodes(list(prompts), [row[:max_tokens] for row in token_rows], given)
    named = columns.prompt if isinstance(rows[0][1], Mapping) else None
    return Demonstrations(episodes, named, columns.response, columns.unread, cut, max_tokens)


def _renamed(name: str) -> str:
    """A row of a list is "prompt 3" where prompts are read, and a demonstration here."""
    return f"demonstration {name.removeprefix('prompt ')}" if name.startswith("prompt ") else name


@dataclass(frozen=True)
class _Columns:
    prompt: str | None
    response: str | None
    unread: tuple[str, ...]


def _columns_of(rows: Sequence[NamedRow], prompt_column: str | None, response_column: str | None) -> _Columns:
    """Which columns are the prompt and the response; what is not clear is an error."""
    names = dict.fromkeys(name for _, row in rows if isinstance(row, Mapping) for name in row)
    if not names:
        if response_column is not None:
            raise ConfigurationError(
                f"the rows have no columns, so none is {response_column!r}: give rows with columns"
            )
        return _Columns(prompt_column, None, ())
    has = ", ".join(map(reprlib.repr, names))
    for kind, given in (("prompt_column", prompt_column), ("response_column", response_column)):
        if given is not None and given not in names:
            raise ConfigurationError(f"{kind}={given!r} is no column of the rows: they have {has}")
    if prompt_column is None and response_column is None and CHAT_COLUMN in names:
        return _Columns(CHAT_COLUMN, None, tuple(n for n in names if n != CHAT_COLUMN))
    if prompt_column is None and names.keys() >= {"role", "content"}:
        raise InvalidPromptError(f"{rows[0][0]} is one message: a chat is a list of messages, so put it into a list")
    prompt = prompt_column or next((name for name in PROMPT_COLUMNS if name in names), None)
    if prompt is None:
        raise InvalidPromptError(
            f"the rows have no column that holds a prompt (they have {has}): name it (prompt_column, --prompt-column)"
        )
    response = response_column or _response_among([n for n in RESPONSE_COLUMNS if n in names and n != prompt], has)
    unread = tuple(name for name in names if name not in (prompt, response))
    if response is None and unread and prompt_column is None and prompt not in (WHOLE_TEXT_COLUMN, CHAT_COLUMN):
        raise ConfigurationError(
            f"the rows have the columns {has}, and none of them is called {', '.join(RESPONSE_COLUMNS)}: name the one"
            f" with the response (response_column, --response-column), or the text to be learned whole (prompt_column)"
        )
    return _Columns(prompt, response, unread)


def _response_among(found: Sequence[str], has: str) -> str | None:
    if len(found) > 1 and found[0] != RESPONSE_COLUMNS[0]:
        raise ConfigurationError(
            f"more than one column may hold the response, {' and '.join(map(repr, found))} (the rows have {has}): name"
            " it (response_column, --response-column)"
        )
    return found[0] if found else None


# What a row is called, its prompt, and the response to it; None: the prompt is a text that is learned whole.
_Draft = tuple[str, Any, Any]


def _drafts(name: str, row: Any, columns: _Columns, separator: str, tokenizer: Tokenizer | None) -> list[_Draft]:
    """The demonstrations in a row."""
    value = row
    response = None
    if isinstance(row, Prompt):
        value, response = row, row.columns.get(columns.response or "")
    elif isinstance(row, Mapping):
        value = row.get(columns.prompt)
        if value is None:
            raise InvalidPromptError(f"{name} has no column {columns.prompt!r}, as the first row has: complete it")
        response = None if columns.response is None else row.get(columns.response)
    if columns.response is not None and response is None:
        raise ConfigurationError(f"{name} has no {columns.response!r} (None): complete the row, or drop it")
    if is_chat(value):
        return _of_chat(name, list(value), response, tokenizer)
    if is_chat(response):
        raise ConfigurationError(f"{name} has a chat as its response to a prompt that is none: write both as chats")
    if separator and isinstance(value, str) and response is not None:
        value += separator
    return [(name, value, response)]


def _of_chat(name: str, messages: list[Any], response: Any, tokenizer: Tokenizer | None) -> list[_Draft]:
    """One demonstration for each message of the assistant, or for the response that a chat is given."""
    if response is not None:
        if isinstance(response, str):
            response = [{"role": "assistant", "content": response}]
        if not is_chat(response):  # token ids, which no template touches
            return [(name, messages, response)]
        first, messages = len(messages), [*messages, *response]
    else:
        first = 0
    turns = [
        i for i, m in enumerate(messages) if i >= first and isinstance(m, Mapping) and m.get("role") == "assistant"
    ]
    if not turns or turns[0] == 0:
        problem = "has no message of the assistant" if not turns else "begins with the assistant's own message"
        raise InvalidPromptError(f"{name} {problem}: there is nothing to learn from it")
    drafts: list[_Draft] = []
    for turn in turns:
        where = name if len(turns) == 1 else f"{name}, message {turn}"
        prompt = render_chat(where, messages[:turn], tokenizer)
        reply = render_reply(where, messages[: turn + 1], prompt, tokenizer)
        drafts.append((where, messages[:turn], _Reply(reply)))
    return drafts


class _Reply(str):
    """The assistant's message as the template writes it, with what ends it."""


def _response_ids(
    name: str, response: Any, tokenizer: Tokenizer | None, vocab_size: int, eos: int | None
) -> Sequence[int]:
    if isinstance(response, str) and tokenizer is not None:
        ids = [int(i) for i in tokenizer([str(response)], add_special_tokens=False)["input_ids"][0]]
        if isinstance(response, _Reply) and eos in ids:
            return ids[: ids.index(eos) + 1]  # a template may write a line break behind the end of a message
        return ids
    given = np.asarray(response) if isinstance(response, list | tuple | np.ndarray) else np.zeros((0, 0))
    if given.ndim != 1 or (
        given.size and (given.dtype.kind not in "iu" or given.min() < 0 or given.max() >= vocab_size)
    ):
        raise ConfigurationError(
            f"{name} has the response {str(response)[:60]!r}: give text (with a tokenizer), or a list of token"
            f" ids below {vocab_size}"
        )
    return [int(i) for i in given]


def _shown(text: str) -> str:
    """In one line, its middle left out where it is long."""
    if len(text) > SHOWN:
        text = f"{text[: SHOWN // 2]} ... {text[-SHOWN // 2 :]}"
    return repr(text)
