"""Where prompts come from: lists, files, `datasets` objects and hub ids, all checked once, up front.

Nothing is downloaded unless asked, and no global random state is read or written: whoever samples
brings the generator.  Shapes: P tokens of a prompt.
"""

from __future__ import annotations

import codecs
import itertools
import json
import os
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, overload

import numpy as np

from lm_env.errors import ConfigurationError, InvalidPromptError
from lm_env.validation import check_integer

__all__ = ["PROMPT_COLUMNS", "RESERVED_COLUMNS", "Prompt", "Prompts", "Tokenizer", "load_prompts"]

PROMPT_COLUMNS = ("prompt", "text", "question", "query")
RESERVED_COLUMNS = frozenset({"prompts", "responses", "prompt_ids", "response_ids"})  # the reward's own arguments

_FILE_SUFFIXES = (".txt", ".jsonl", ".json")
_HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(:(?P<split>[\w.%+\[\]:-]+))?")
_TOKENIZER_BATCH = 1024


class Tokenizer(Protocol):
    """What is used of a tokenizer; every tokenizer of transformers has it."""

    @property
    def bos_token_id(self) -> int | None: ...

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Any: ...

    def decode(self, token_ids: Any, *, skip_special_tokens: bool) -> Any: ...


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One prompt.  Two are equal only if they are the same object.

    Attributes:
        ids: int64 (P,), P >= 1, read-only: every episode that starts here shares it.
        text: what the reward function reads; decoded from `ids`, without special tokens, if the
            prompt came as ids or was truncated.
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
    overflow: Literal["error", "truncate"] = "error",
    add_special_tokens: bool = True,
    download: bool = False,
    limit: int | None = None,
) -> Prompts:
    """Read, tokenize and check prompts.

    Args:
        source: a list of strings, of dicts, or of token-id lists or arrays; a .txt file (one prompt
            per non-empty line); a .jsonl or .json file (a row per line, or one array); a `datasets.Dataset`
            or `IterableDataset`; a hub id, "user/name" or "user/name:split" (split "train" if none is
            named); or `Prompts`, whose ids are kept.  A string that is an existing path is a path.
        tokenizer: turns text into ids; None will do if every prompt is token ids.
        vocab_size: the model's logit width; every id is below it.
        max_prompt_tokens: the longest prompt allowed, special tokens included.
        prompt_column: the column with the prompt; default the first of `PROMPT_COLUMNS` that the
            first row has.  Every other column goes to the reward function, None where a row lacks it.
        overflow: for a longer prompt, "error", or "truncate": keep the last `max_prompt_tokens`
            tokens, a leading BOS counted among them.
        add_special_tokens: whether the tokenizer adds what it adds by itself (usually a BOS).
        download: allow a hub id to be fetched.
        limit: read only the first `limit` prompts; required where the source does not know its end.

    Raises:
        InvalidPromptError: a prompt is empty, too long, not text or ids, or outside the vocabulary;
            the message names its index, or its file and line.
        ConfigurationError: the source or another argument cannot work.
    """
    check_integer("vocab_size", vocab_size)
    check_integer("max_prompt_tokens", max_prompt_tokens)
    if limit is not None:
        check_integer("limit", limit)
    if overflow not in ("error", "truncate"):
        raise ConfigurationError(f"overflow={overflow!r} is unknown: use 'error' or 'truncate'")
    rows = list(itertools.islice(_rows(source, download, limit), limit))
    if not rows:
        name = repr(str(source)) if isinstance(source, str | os.PathLike) else f"the {type(source).__name__} given"
        raise InvalidPromptError(f"{name} holds no prompts: give at least one")
    first = next((row for _, row in rows if isinstance(row, Mapping)), {})
    column = prompt_column or next((name for name in PROMPT_COLUMNS if name in first), PROMPT_COLUMNS[0])
    drafts = [_draft(where, row, column) for where, row in rows]
    _tokenize(drafts, tokenizer, add_special_tokens)
    names = dict.fromkeys(name for draft in drafts for name in draft.columns)
    prompts = []
    for index, draft in enumerate(drafts):
        text, columns = draft.text, {name: draft.columns.get(name) for name in names}
        ids = _fitted(draft, tokenizer, vocab_size, max_prompt_tokens, overflow)
        if text is None or len(ids) < len(draft.ids):
            text = " ".join(map(str, ids)) if tokenizer is None else tokenizer.decode(ids, skip_special_tokens=True)
        array = np.array(ids, dtype=np.int64)
        array.setflags(write=False)
        prompts.append(Prompt(array, text, columns, index))
    return Prompts(prompts)


@dataclass(slots=True)
class _Draft:
    where: str  # "prompt 3" or "train.jsonl, line 4", for messages
    columns: dict[str, Any]
    text: str | None  # None: to be decoded from the ids
    ids: list[int]  # empty: to be tokenized from the text


def _rows(source: Any, download: bool, limit: int | None) -> Iterator[tuple[str, Any]]:
    """Each row with the words that name it in a message."""
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if not isinstance(source, str) or os.path.exists(path) or path.suffix.lower() in _FILE_SUFFIXES:
            return _file_rows(path)
        source = _from_hub(source, download)
    if hasattr(source, "keys"):  # splits or columns by name
        raise ConfigurationError(f"prompts are a list of rows, not a {type(source).__name__}: give one of its parts")
    if isinstance(source, bytes | Set) or not hasattr(source, "__iter__"):
        raise ConfigurationError(f"prompts cannot be read from a {type(source).__name__}: give a list, file or dataset")
    if limit is None and not hasattr(source, "__len__"):
        raise ConfigurationError(f"a {type(source).__name__} does not know where it ends: pass limit=N for the first N")
    return ((f"prompt {i}", row) for i, row in enumerate(source))


def _file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    suffix = path.suffix.lower()
    if suffix not in _FILE_SUFFIXES and not os.path.isdir(path):
        raise ConfigurationError(f"{path.name} is not .txt, .jsonl or .json: load it with datasets, give the Dataset")
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"prompts cannot be read from a file ({error}): check the path") from error
    text = _decoded(path, data)
    if suffix == ".json" and text.lstrip().startswith("["):
        yield from ((f"{path.name}, entry {i}", row) for i, row in enumerate(_parsed(path, 1, text)))
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            row = line.removesuffix("\r") if suffix == ".txt" else _parsed(path, number, line)
            yield f"{path.name}, line {number}", row


def _decoded(path: Path, data: bytes) -> str:
    body = data.removeprefix(codecs.BOM_UTF8)
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        line, offset = body.count(b"\n", 0, error.start) + 1, len(data) - len(body) + error.start
        problem = f"byte 0x{data[offset]:02x} at offset {offset} is not UTF-8"
        raise InvalidPromptError(f"{path.name}, line {line}: {problem}: save the file as UTF-8") from error


def _parsed(path: Path, line: int, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also thousands of digits, or of brackets
        line, reason = line + getattr(error, "lineno", 1) - 1, getattr(error, "msg", error)
        raise InvalidPromptError(f"{path.name}, line {line}: invalid JSON, {reason}: correct that line") from error


def _from_hub(name: str, download: bool) -> Any:
    match, shown = _HUB_ID.fullmatch(name), reprlib.repr(name)
    if match is None:
        raise ConfigurationError(f"{shown} is neither a file nor a hub id 'user/name': write one prompt as [text]")
    if not download:
        raise ConfigurationError(f"{shown} is no file here; a hub id is downloaded only if asked: pass download=True")
    try:
        import datasets

        return datasets.load_dataset(match["name"], split=match["split"] or "train")
    except Exception as error:  # network, access rights, a missing split or configuration: the library's own words
        raise ConfigurationError(f"{shown} could not be loaded, {error}: check it, or give a Dataset") from error


def _draft(where: str, row: Any, column: str) -> _Draft:
    if isinstance(row, Prompt):
        return _Draft(where, dict(row.columns), row.text, row.ids.tolist())
    columns = dict(row) if isinstance(row, Mapping) else {column: row}
    if column not in columns:
        has = ", ".join(map(repr, columns)) or "none"
        raise InvalidPromptError(f"{where} has no column {column!r} (it has {has}): name the one with prompt_column")
    value = columns.pop(column)
    for name in columns:
        if not isinstance(name, str) or name in RESERVED_COLUMNS:
            raise InvalidPromptError(f"{where} has a column {name!r}, which the reward cannot be given: rename it")
    if not isinstance(value, str):
        return _Draft(where, columns, None, _checked_ids(where, value))
    if not value:
        raise InvalidPromptError(f"{where} is empty: give it text, or the token-id prompt [bos_token_id]")
    if re.search("[\ud800-\udfff]", value):
        raise InvalidPromptError(f"{where} holds half of a surrogate pair, which is no character: remove it")
    return _Draft(where, columns, str(value), [])


def _checked_ids(where: str, value: Any) -> list[int]:
    ids = value.tolist() if hasattr(value, "tolist") else value  # arrays and tensors
    if not isinstance(ids, list | tuple):
        raise InvalidPromptError(f"{where} is of type {type(value).__name__}: give a string or a list of token ids")
    if not ids:
        raise InvalidPromptError(f"{where} is empty: give it at least one token, such as bos_token_id")
    for position, token in enumerate(ids):
        if isinstance(token, Mapping):
            raise InvalidPromptError(f"{where} is a chat: turn it into text with tokenizer.apply_chat_template first")
        if not isinstance(token, int | np.integer) or isinstance(token, bool):
            raise InvalidPromptError(f"{where} holds {reprlib.repr(token)} at {position}: token ids are integers")
    return [int(token) for token in ids]


def _tokenize(drafts: list[_Draft], tokenizer: Tokenizer | None, add_special_tokens: bool) -> None:
    """Fill in the ids of those that came as text."""
    texts = [draft for draft in drafts if not draft.ids]
    if not texts:
        return
    if tokenizer is None:
        raise ConfigurationError(f"{texts[0].where} is text and there is no tokenizer: pass one, or give token ids")
    for start in range(0, len(texts), _TOKENIZER_BATCH):
        batch = texts[start : start + _TOKENIZER_BATCH]
        encoded = tokenizer([draft.text or "" for draft in batch], add_special_tokens=add_special_tokens)["input_ids"]
        for draft, ids in zip(batch, encoded, strict=True):
            if not len(ids):
                shown = reprlib.repr(draft.text)
                raise InvalidPromptError(f"{draft.where}, {shown}, tokenizes to nothing: begin it with a BOS token")
            draft.ids = _checked_ids(draft.where, ids)


def _fitted(draft: _Draft, tokenizer: Tokenizer | None, vocab_size: int, size: int, overflow: str) -> list[int]:
    """Return the ids, inside the vocabulary and at most `size` of them."""
    ids, where = draft.ids, draft.where
    for position, token in enumerate(ids):
        if not 0 <= token < vocab_size:
            problem = f"holds token {token} at {position}, outside the vocabulary of {vocab_size}"
            raise InvalidPromptError(f"{where} {problem}: use the tokenizer that belongs to the model")
    if len(ids) <= size:
        return ids
    if overflow == "error":
        mend = "raise max_prompt_tokens, shorten it, or pass overflow='truncate'"
        raise InvalidPromptError(f"{where} has {len(ids)} tokens, more than max_prompt_tokens={size}: {mend}")
    bos = ids[:1] if tokenizer is not None and ids[0] == tokenizer.bos_token_id else []
    return bos + ids[len(ids) - size + len(bos) :]
