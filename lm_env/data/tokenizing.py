"""Texts to token ids, with exactly those special tokens that a prompt needs."""

from __future__ import annotations

import reprlib
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

from lm_env.errors import ConfigurationError, InvalidPromptError

__all__ = ["Tokenizer", "check_tokenizer", "encode_texts", "without_appended_eos"]

_AT_ONCE = 1024  # texts
_MANY_UNKNOWN = 0.1  # of all tokens; fewer are an emoji here and there


class Tokenizer(Protocol):
    """What is used of a tokenizer; every tokenizer of transformers has it."""

    @property
    def bos_token_id(self) -> int | None: ...

    @property
    def eos_token_id(self) -> int | None: ...

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Any: ...

    def decode(self, token_ids: Any, *, skip_special_tokens: bool) -> Any: ...


def check_tokenizer(tokenizer: Any) -> None:
    """Raise ConfigurationError unless it is None or can do what a `Tokenizer` does."""
    if tokenizer is None:
        return
    missing = [name for name in ("bos_token_id", "eos_token_id", "decode") if not hasattr(tokenizer, name)]
    if missing or not callable(tokenizer):
        lacks = f"it has no {missing[0]}" if missing else "it cannot be called"
        raise ConfigurationError(
            f"the tokenizer is of type {type(tokenizer).__name__}, and {lacks}: give a tokenizer of transformers, or"
            " the name of one"
        )


def encode_texts(
    names: Sequence[str], texts: Sequence[str], tokenizer: Tokenizer, add_special_tokens: bool
) -> list[list[int]]:
    """The token ids of each text.

    With `add_special_tokens`, two of the tokens that the tokenizer adds are taken back: a BOS before a
    text that begins with one of its own, as the output of a chat template does; and an EOS behind a
    text, with a warning, for the model would take the prompt for finished.  There is also a warning if
    many tokens, or all of a text, are unknown to the tokenizer.

    Args:
        names: how messages name each text.

    Raises:
        InvalidPromptError: a text has no tokens.
    """
    rows = _encode(texts, tokenizer, add_special_tokens)
    if add_special_tokens:
        _take_back(rows, texts, tokenizer)
    for name, text, ids in zip(names, texts, rows, strict=True):
        if not ids:
            shown = reprlib.repr(text)
            raise InvalidPromptError(f"{name}, {shown}, tokenizes to nothing: begin it with a BOS token")
    _warn_of_unknown(names, rows, tokenizer)
    return rows


def without_appended_eos(rows: Sequence[list[int]], tokenizer: Tokenizer | None) -> None:
    """Remove the EOS from the end of rows that a tokenizer encoded, if it puts one behind every text; with a warning.

    Args:
        rows: token ids, changed in place.
    """
    eos = None if tokenizer is None else tokenizer.eos_token_id
    suspects = [row for row in rows if len(row) > 1 and row[-1] == eos]
    if tokenizer is None or not suspects:
        return
    (with_it,), (without,) = (_encode(["a"], tokenizer, special) for special in (True, False))
    if with_it[-1:] == [eos] and without[-1:] != [eos]:
        for row in suspects:
            del row[-1]
        _warn_of_eos(eos, stacklevel=5)


def _encode(texts: Sequence[str], tokenizer: Tokenizer, add_special_tokens: bool) -> list[list[int]]:
    rows: list[list[int]] = []
    for start in range(0, len(texts), _AT_ONCE):
        encoded = tokenizer(list(texts[start : start + _AT_ONCE]), add_special_tokens=add_special_tokens)
        rows += [[int(token) for token in ids] for ids in encoded["input_ids"]]
    return rows


def _take_back(rows: list[list[int]], texts: Sequence[str], tokenizer: Tokenizer) -> None:
    """Remove a repeated BOS and an appended EOS from the rows, where it was the tokenizer that added them."""
    bos = tokenizer.bos_token_id
    eos = tokenizer.eos_token_id
    suspects = [i for i, ids in enumerate(rows) if len(ids) > 1 and (ids[-1] == eos or ids[:2] == [bos, bos])]
    if not suspects:
        return
    own_rows = _encode([texts[i] for i in suspects], tokenizer, add_special_tokens=False)
    appended = False
    for i, own in zip(suspects, own_rows, strict=True):
        if own[:1] == [bos] and rows[i][: len(own) + 1] == [bos, *own]:
            del rows[i][0]
        if rows[i][-len(own) - 1 :] == [*own, eos]:
            del rows[i][-1]
            appended = True
    if appended:
        _warn_of_eos(eos, stacklevel=7)


def _warn_of_unknown(names: Sequence[str], rows: Sequence[list[int]], tokenizer: Tokenizer) -> None:
    """Warn of texts that the model cannot tell apart, as their characters are one unknown token to the tokenizer."""
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None or unknown in ends:  # GPT-2's are one token, and no text of a byte-level tokenizer is unknown
        return
    written = [[token for token in ids if token not in ends] for ids in rows]
    count, total = sum(ids.count(unknown) for ids in written), sum(map(len, written))
    whole = [name for name, ids in zip(names, written, strict=True) if ids and set(ids) == {unknown}]
    if whole or count > _MANY_UNKNOWN * total:
        alone = f", and {whole[0]} holds nothing else ({len(whole)} of {len(rows)} do)" if whole else ""
        warnings.warn(
            f"{count / total:.0%} of the prompts' tokens are unknown to the tokenizer{alone}: the model cannot tell"
            " such texts apart, while the reward is given the true ones; write the prompts in the tokenizer's words"
            " and characters, or use a model that knows these",
            stacklevel=6,
        )


def _warn_of_eos(eos: int | None, stacklevel: int) -> None:
    warnings.warn(
        f"the tokenizer puts its EOS ({eos}) behind every text: prompts are taken without it, for the model is to"
        " go on from them",
        stacklevel=stacklevel,
    )
