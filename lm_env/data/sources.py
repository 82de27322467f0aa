"""Where the rows of prompts are read from: lists, text and JSON files, tokenized batches, datasets, the hub.

Each row comes with the words that name it in a message: "prompt 3", "train.jsonl, line 4".
"""

from __future__ import annotations

import codecs
import itertools
import json
import math
import os
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

from lm_env.errors import ConfigurationError, InvalidPromptError

__all__ = ["EncodedRow", "NamedRow", "read_rows"]

NamedRow = tuple[str, Any]
"""How messages name a row, and the row."""

LONGEST_LINE = 2**25
"""Bytes of a line in a file.  A longer line is skipped to its end without keeping it in memory, and refused."""

_FILE_SUFFIXES = (".txt", ".jsonl", ".json")
_HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(:(?P<split>[\w.%+\[\]:-]+))?")
# A mapping with input_ids and nothing but these is what a tokenizer returns for a list of texts.
_ENCODING_KEYS = frozenset({"input_ids", "attention_mask", "token_type_ids", "special_tokens_mask", "length"})


class EncodedRow(list[int]):
    """The token ids of one row of what a tokenizer returned."""


def read_rows(
    source: Any,
    download: bool,
    limit: int | None,
    *,
    noun: str = "prompt",
    skip: Callable[[InvalidPromptError], None] | None = None,
) -> Iterator[NamedRow]:
    """(its name in messages, row) of each row of a source; see `load_prompts` for the sources.

    Args:
        noun: what a row of a list is called: "prompt 3".
        skip: is given the error about each line of a file that cannot be read, and the reading goes on with the next
            line; default: the error is raised.

    Raises:
        ConfigurationError: there are no rows to be had from the source.
        InvalidPromptError: a line of a file, or a row of a tokenized batch, cannot be read.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if not isinstance(source, str) or os.path.exists(path) or path.suffix.lower() in _FILE_SUFFIXES:
            return _file_rows(path, skip)
        source = _from_hub(source, download, noun)
    if isinstance(source, Mapping) and "input_ids" in source and _ENCODING_KEYS.issuperset(source):
        return _encoded_rows(source)
    if hasattr(source, "keys"):  # splits or columns by name
        raise ConfigurationError(f"prompts are a list of rows, not a {type(source).__name__}: give one of its parts")
    if isinstance(source, bytes | Set) or not hasattr(source, "__iter__"):
        raise ConfigurationError(f"prompts cannot be read from a {type(source).__name__}: give a list, file or dataset")
    if limit is None and not hasattr(source, "__len__"):
        raise ConfigurationError(f"a {type(source).__name__} does not know where it ends: pass limit=N for the first N")
    return ((f"{noun} {i}", row) for i, row in enumerate(source))


# -- tokenized batches ---------------------------------------------------------------------------------
def _encoded_rows(encoding: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The token ids of each row, without the padding that the attention mask shows on either side."""
    rows = _as_lists(encoding["input_ids"])
    if not all(isinstance(row, list) for row in rows):
        raise ConfigurationError("prompts are the encoding of a single text: tokenize a list, as in tokenizer([text])")
    masks = _as_lists(encoding["attention_mask"]) if "attention_mask" in encoding else [[1] * len(row) for row in rows]
    if len(masks) != len(rows) or not all(isinstance(mask, list) for mask in masks):
        raise ConfigurationError(f"the encoding has {len(rows)} rows: its attention_mask needs one list for each")
    for index, (ids, mask) in enumerate(zip(rows, masks, strict=True)):
        start = mask.index(1) if 1 in mask else 0
        end = start + mask.count(1)
        if mask != [int(start <= position < end) for position in range(len(ids))]:
            raise InvalidPromptError(
                f"prompt {index} has an attention_mask that is no single run of ones, as long as its input_ids, with"
                " zeros beside it: tokenize it again"
            )
        yield f"prompt {index}", EncodedRow(ids[start:end])


def _as_lists(rows: Any) -> list[Any]:
    """The rows of a batch, which may be arrays or tensors, as lists."""
    if hasattr(rows, "tolist"):
        return list(rows.tolist())
    return [row.tolist() if hasattr(row, "tolist") else row for row in rows]


# -- files ---------------------------------------------------------------------------------------------
def _file_rows(path: Path, skip: Callable[[InvalidPromptError], None] | None) -> Iterator[tuple[str, Any]]:
    suffix = path.suffix.lower()
    if suffix not in _FILE_SUFFIXES and not os.path.isdir(path):
        raise ConfigurationError(
            f"{path.name} is not .txt, .jsonl or .json: write its rows as one of these, or in Python give a list or a"
            " Dataset"
        )
    try:
        if suffix == ".json" and _starts_an_array(path):
            text = _decoded(path.name, path.read_bytes(), line=1, offset=0)
            yield from ((f"{path.name}, entry {i}", row) for i, row in enumerate(_parsed(path.name, text)))
            return
        for number, offset, line in _lines(path):
            try:
                text = _decoded(path.name, _whole(path.name, line, number), line=number, offset=offset)
                text = text.removesuffix("\n")
                if not text.strip():
                    continue
                row = text.removesuffix("\r") if suffix == ".txt" else _parsed(path.name, text, number)
            except InvalidPromptError as error:
                if skip is None:
                    raise
                skip(error)
                continue
            yield f"{path.name}, line {number}", row
    except InvalidPromptError:
        raise
    except (OSError, ValueError) as error:  # a ValueError for a zero byte in the path
        raise ConfigurationError(f"{path} cannot be read ({error}): check the path") from error


def _starts_an_array(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
    return start.startswith(b"[")


def _lines(path: Path) -> Iterator[tuple[int, int, bytes | int]]:
    """(number, the first being 1; offset of its first byte; the line) of each; a line ends at a line feed alone.

    Of a line that is too long to be kept in memory there is only the number of its bytes.
    """
    offset = 0
    with path.open("rb") as file:
        for number in itertools.count(1):
            line = file.readline(LONGEST_LINE + 1)
            if not line:
                return
            size = len(line)
            if size > LONGEST_LINE:
                while not line.endswith(b"\n") and (line := file.readline(2**20)):
                    size += len(line)
                yield number, offset, size
            else:
                yield number, offset, line
            offset += size


def _whole(name: str, line: bytes | int, number: int) -> bytes:
    if isinstance(line, bytes):
        return line
    raise InvalidPromptError(
        f"{name}, line {number} has {line:,} bytes, more than the {LONGEST_LINE:,} that are read: write one prompt per"
        " line"
    )


def _decoded(name: str, data: bytes, *, line: int, offset: int) -> str:
    """The text of a file's part that begins at `offset` bytes, in `line`."""
    if offset == 0 and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InvalidPromptError(f"{name}, line {line}: the file is UTF-16 or UTF-32: save the file as UTF-8")
    body = data.removeprefix(codecs.BOM_UTF8) if offset == 0 else data
    start = offset + len(data) - len(body)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        problem = f"byte 0x{body[error.start]:02x} at offset {start + error.start} is not UTF-8"
        line += body.count(b"\n", 0, error.start)
        raise InvalidPromptError(f"{name}, line {line}: {problem}: save the file as UTF-8") from error
    if (zero := body.find(b"\0")) >= 0:
        line += body.count(b"\n", 0, zero)
        problem = f"there is a zero byte at offset {start + zero}, as in UTF-16"
        raise InvalidPromptError(f"{name}, line {line}: {problem}: save the file as UTF-8")
    return text


# -- JSON ----------------------------------------------------------------------------------------------
def _parsed(name: str, text: str, line: int | None = None) -> Any:
    """The value of one line, or of a whole file if `line` is None."""
    try:
        return json.loads(text, parse_constant=_refused, parse_float=_finite, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:  # also thousands of digits, or of brackets
        line = getattr(error, "lineno", None) if line is None else line
        where = name if line is None else f"{name}, line {line}"
        reason = getattr(error, "msg", error)
        raise InvalidPromptError(f"{where}: invalid JSON, {reason}: correct it there") from error


def _refused(constant: str) -> float:
    """What Python's reader makes of NaN, Infinity and -Infinity, which are not JSON."""
    raise ValueError(f"{constant} is not a number in JSON")


def _finite(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise ValueError(f"{reprlib.repr(digits)} is too large for a float")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs; Python's reader would silently take the last of two with the same key."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"an object has the key {reprlib.repr(key)} twice")
        found[key] = value
    return found


# -- the hub -------------------------------------------------------------------------------------------
def _from_hub(name: str, download: bool, noun: str) -> Any:
    match, shown = _HUB_ID.fullmatch(name), reprlib.repr(name)
    if match is None:
        text = "; in Python a single prompt is written as [text]" if noun == "prompt" else ""
        raise ConfigurationError(f"{shown} is neither a file here nor a hub id 'user/name': check the path{text}")
    if not download:
        raise ConfigurationError(f"{shown} is no file here; a hub id is downloaded only if asked: pass download=True")
    try:
        import datasets

        return datasets.load_dataset(match["name"], split=match["split"] or "train")
    except Exception as error:  # network, access rights, a missing split or configuration: the library's own words
        raise ConfigurationError(f"{shown} could not be loaded, {error}: check it, or give a Dataset") from error
