"""Which characters of a decoded text belong to which token.

Shapes: T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lm_env.data.tokenizing import Tokenizer

__all__ = ["piece_ends", "tokens_from_ids"]


def tokens_from_ids(tokenizer: Tokenizer | None, ids: Sequence[int]) -> list[str]:
    """Split the decoded text of T ids into T pieces, one per token, special tokens included.

    Joined, the pieces are exactly `tokenizer.decode(ids)`; a character that several tokens make up
    belongs to the last of them, and the others are empty.  Where a tokenizer drops the space at the
    start of a text, decode prompt and response together and slice.  The cost is T decodings.

    Without a tokenizer the pieces are the ids, separated by spaces.
    """
    ids = [int(token) for token in ids]
    if tokenizer is None:
        return [f" {token}" if position else str(token) for position, token in enumerate(ids)]

    def decode(some: Sequence[int]) -> str:
        return str(tokenizer.decode(some, skip_special_tokens=False))

    text = decode(ids)
    ends = piece_ends(text, ids, decode)
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def piece_ends(text: str, ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[int]:
    """T character offsets, nondecreasing: token t extends the text from offset t - 1 (or 0) to offset t.

    The offset after t tokens is the length of the common prefix of their decoding and the whole text: a split
    character decodes to U+FFFD, and some tokenizers remove spaces once the next token is known.

    Args:
        text: the text of all T ids; the last offset is its length.
        decode: the text of the first tokens alone.
    """
    ends = []
    end = 0
    for count in range(1, len(ids) + 1):
        prefix = text if count == len(ids) else decode(ids[:count])
        end = max(end, _shared_length(prefix, text))
        ends.append(end)
    return ends


def _shared_length(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
