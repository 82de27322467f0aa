"""Records of preferences as token sequences: each response once, and which pairs of them were compared.

Shapes: R responses of all records, K responses of a record, C comparisons of one or of several records.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_env.data.demonstrations import read_demonstrations
from lm_env.data.episodes import Episodes, text_episodes
from lm_env.data.prompts import Prompt
from lm_env.errors import ConfigurationError, InvalidPromptError
from lm_env.models.inputs import length_batches
from reward_models.preferences.records import Comparison
from reward_models.preferences.records.preference import Outcome, Preference

__all__ = ["JudgedBatch", "JudgedRecord", "JudgedTexts", "describe_texts", "encode_judged"]

NO_LIMIT = 2**31 - 1

Text = tuple[list[int], int]
"""The token ids of a prompt and a response to it, and how many of them are the prompt's."""


@dataclass(frozen=True)
class JudgedRecord:
    """The comparisons that a record holds."""

    rows: np.ndarray
    """int (K,): its responses, rows of `JudgedTexts.episodes`."""
    first: np.ndarray
    """int (C,): index into `rows` of the response that won, or of one of those that tie."""
    second: np.ndarray
    """int (C,): index into `rows` of the other one."""
    chances: np.ndarray
    """float64 (C,): 1 where the first one won, 1/2 for a tie."""


@dataclass(frozen=True)
class JudgedTexts:
    """Responses as episodes, and the records that compare them."""

    episodes: Episodes
    """R responses with their prompts."""
    records: list[JudgedRecord]
    cut: int
    """How many responses lost their end, because prompt and response are longer than `max_tokens`."""
    left_out: int
    """How many records have nothing to learn: a prompt that fills `max_tokens`, no comparison, or equal texts."""

    def __len__(self) -> int:
        return len(self.records)

    def micro_batches(self, chosen: np.ndarray, tokens: int) -> Iterator[JudgedBatch]:
        """Some records in parts of similar length, of at most about `tokens` padded tokens.

        Args:
            chosen: int, indexes of records.
        """
        records = [self.records[int(i)] for i in chosen]
        most = max((len(record.rows) for record in records), default=1)
        for part in length_batches(self.longest(chosen), max(1, tokens // most)):
            yield self._batch([records[int(i)] for i in part])

    def longest(self, chosen: np.ndarray) -> np.ndarray:
        """int: the tokens of the longest response of each of some records, its prompt included."""
        return np.array([self.episodes.lengths[self.records[int(i)].rows].max() for i in chosen], dtype=np.int64)

    def _batch(self, records: Sequence[JudgedRecord]) -> JudgedBatch:
        rows = np.concatenate([record.rows for record in records])
        starts = np.cumsum([0, *(len(record.rows) for record in records)])[:-1]
        return JudgedBatch(
            self.episodes[rows],
            rows,
            np.concatenate([start + record.first for start, record in zip(starts, records, strict=True)]),
            np.concatenate([start + record.second for start, record in zip(starts, records, strict=True)]),
            np.concatenate([record.chances for record in records]),
            np.concatenate([np.full(len(record.first), 1 / len(record.first)) for record in records]),
        )

    def digest(self) -> str:
        """A digest of all tokens and comparisons."""
        content = [
            [row[:n].tolist() for row, n in zip(self.episodes.input_ids, self.episodes.lengths, strict=True)],
            self.episodes.prompt_lengths.tolist(),
            [[r.rows.tolist(), r.first.tolist(), r.second.tolist(), r.chances.tolist()] for r in self.records],
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class JudgedBatch:
    """Some whole records."""

    episodes: Episodes
    """Their responses."""
    rows: np.ndarray
    """int: where these responses are among all of `JudgedTexts.episodes`."""
    first: np.ndarray
    """int (C,): index into the batch's responses of the one that won, or of one of two that tie."""
    second: np.ndarray
    """int (C,): the same of the other one."""
    chances: np.ndarray
    """float64 (C,): 1 where the first one won, 1/2 for a tie."""
    weights: np.ndarray
    """float64 (C,): 1 / the comparisons of the record, so that records count alike."""


def encode_judged(
    records: Sequence[Comparison | Preference],
    tokenizer: Any,
    *,
    vocab_size: int,
    max_tokens: int,
    eos_token_id: int | None = None,
    separator: str = "",
) -> JudgedTexts:
    """Tokenize records of preferences.

    The token ids of a `Comparison` are taken as they are, so that a response that was cut off by a length cap gets no
    EOS; a text is taken to be complete, and an EOS is put behind it.

    Args:
        max_tokens: longer texts lose their end; a record whose prompt leaves no room for a response is left out.
        eos_token_id: default: the tokenizer's.
        separator: text put behind each prompt that is text.

    Raises:
        InvalidPromptError, ConfigurationError: a prompt is empty or cannot be rendered; the message names the record.
    """
    written = [record for record in records if not _has_ids(record)]
    read = iter(_tokenized(written, tokenizer, vocab_size, eos_token_id, separator))
    prompts: list[Prompt] = []
    texts: list[Text] = []
    found = []
    cut = 0
    for record in records:
        own = _of_ids(record) if _has_ids(record) else [next(read) for _ in _responses(record)]
        outcomes = [o for o in _outcomes(record) if own[o.better] != own[o.worse]]
        if not outcomes or any(given >= max_tokens for _, given in own):
            continue
        rows = np.arange(len(texts), len(texts) + len(own))
        shown = record.prompt if isinstance(record.prompt, str) else ""
        for ids, given in own:
            cut += len(ids) > max_tokens
            texts.append((ids[:max_tokens], given))
            prompts.append(Prompt(np.array(ids[:given]), shown, {}, len(prompts)))
        better, worse, tied = (np.array(column) for column in zip(*outcomes, strict=True))
        found.append(JudgedRecord(rows, better, worse, np.where(tied, 0.5, 1.0)))
    if not found:
        raise ConfigurationError(
            f"none of {len(records)} records compares two responses within {max_tokens} tokens: give comparisons or"
            " rankings, or raise max_tokens"
        )
    episodes = text_episodes(prompts, [ids for ids, _ in texts], [given for _, given in texts])
    return JudgedTexts(episodes, found, cut, len(records) - len(found))


def describe_texts(training: JudgedTexts, held_out: JudgedTexts | None) -> str:
    """A few lines for a reader: how many records and comparisons there are, and what was cut or left out.

    Args:
        training: the records that are trained on.
        held_out: those that are not; None if there are none.
    """
    kept = "none held out" if held_out is None else f"{len(held_out):,} more held out"
    lines = [f"{len(training):,} records with {sum(len(r.first) for r in training.records):,} comparisons; {kept}"]
    cut = training.cut + (held_out.cut if held_out else 0)
    left_out = training.left_out + (held_out.left_out if held_out else 0)
    if cut:
        lines.append(f"{cut:,} responses are too long and lose their end")
    if left_out:
        lines.append(f"{left_out:,} records are left out: too long a prompt, equal responses, or nothing compared")
    return "\n".join(lines)


def _has_ids(record: Comparison | Preference) -> bool:
    if not isinstance(record, Comparison):
        return False
    return None not in (record.prompt_ids, record.chosen_ids, record.rejected_ids)


def _of_ids(record: Any) -> list[Text]:
    start = list(record.prompt_ids)
    return [([*start, *ids], len(start)) for ids in (record.chosen_ids, record.rejected_ids)]


def _responses(record: Comparison | Preference) -> tuple[str, ...]:
    return (record.chosen, record.rejected) if isinstance(record, Comparison) else record.responses


def _outcomes(record: Comparison | Preference) -> list[Outcome]:
    return [Outcome(0, 1, False)] if isinstance(record, Comparison) else record.outcomes()


def _tokenized(
    records: Sequence[Comparison | Preference], tokenizer: Any, vocab_size: int, eos: int | None, separator: str
) -> list[Text]:
    """The token ids of every response of the records with its prompt, and how many of them are the prompt's."""
    rows: list[dict[str, Any]] = []
    owners = []
    for number, record in enumerate(records):
        prompt = record.prompt if isinstance(record.prompt, str) else list(record.prompt)
        rows += [{"prompt": prompt, "response": response} for response in _responses(record)]
        owners += [number] * len(_responses(record))
    if not rows:
        return []
    try:
        episodes = read_demonstrations(
            rows,
            tokenizer,
            vocab_size=vocab_size,
            max_tokens=NO_LIMIT,
            eos_token_id=eos,
            prompt_column="prompt",
            response_column="response",
            separator=separator,
        ).episodes
    except (ConfigurationError, InvalidPromptError) as error:  # it counts responses
        named = re.sub(r"demonstration (\d+)", lambda found: f"record {owners[int(found[1])]}", str(error))
        raise type(error)(named) from error
    lengths = zip(episodes.input_ids, episodes.prompt_lengths.tolist(), episodes.lengths.tolist(), strict=True)
    return [(row[:end].tolist(), given) for row, given, end in lengths]
