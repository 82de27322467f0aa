"""The requests and answers of a reward server as JSON; docs/serving.md describes them.

Everything that comes from the other side is checked to the last number before it is used: the readers below either
return something complete and valid or raise the exception that they name.

Shapes: B texts, T_i response tokens of text i.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lm_env.errors import ConfigurationError, RewardProtocolError, RewardValueError
from lm_env.objective.scores import Scores, Span, checked_scores, short_repr
from reward_models.serving.strict_json import plain, read_object

__all__ = [
    "INFO_PATH",
    "PROTOCOL",
    "SCORE_PATH",
    "Answer",
    "BadRequest",
    "RewardInfo",
    "ScoreRequest",
    "encode_answer",
    "encode_request",
    "read_answer",
    "read_info",
    "read_request",
]

PROTOCOL = 1
INFO_PATH = "/v1/reward"
SCORE_PATH = "/v1/score"
LONGEST_NAME = 400
"""Characters of a name or a fingerprint."""


class BadRequest(ValueError):
    """A request that does not follow the protocol; the message is sent back to the client."""


@dataclass(frozen=True)
class ScoreRequest:
    """B texts to score.

    Attributes:
        columns: name -> B values; `response_ids` are among them where the client knows the tokens.
    """

    prompts: list[str]
    responses: list[str]
    columns: dict[str, list[Any]]

    def __len__(self) -> int:
        return len(self.responses)


@dataclass(frozen=True)
class RewardInfo:
    """What a server says of its reward.

    Attributes:
        name: in words, for people.
        fingerprint: differs where the scores may differ.
        causal: as of a reward function (`lm_env.objective.RewardFunction`); None: the reward does not say.
        reads_prefixes: as of a reward function.
        columns: the columns that the reward looks at; None: any.
        max_texts, max_bytes: the largest request that is taken.
    """

    name: str
    fingerprint: str
    causal: bool | None = None
    reads_prefixes: bool = False
    columns: tuple[str, ...] | None = None
    max_texts: int = 1024
    max_bytes: int = 2**24

    def as_dict(self) -> dict[str, Any]:
        """JSON; `read_info` reads it."""
        return {"protocol": PROTOCOL, **{k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}}


@dataclass(frozen=True)
class Answer:
    """The scores of B texts.

    Attributes:
        fingerprint: of the reward that scored them.
        scores: checked; `scores.failed` are the texts that the server could not score.
        parts: name -> float64 (B,), see `RewardFunction`; NaN where a text was not scored.
    """

    fingerprint: str
    scores: Scores
    parts: dict[str, np.ndarray] = field(default_factory=dict)


# -- requests ------------------------------------------------------------------------------------------
def encode_request(prompts: Sequence[str], responses: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> bytes:
    """The body of a request to score B texts.

    Raises:
        ConfigurationError: a column holds something that JSON cannot, or has not one value for each text.
    """
    parts = [f'"prompts":{json.dumps(list(prompts))}', f'"responses":{json.dumps(list(responses))}']
    encoded = []
    for name, values in columns.items():
        if len(values) != len(responses):
            raise ConfigurationError(
                f"the column {name!r} has {len(values)} values for {len(responses)} texts: one each is needed"
            )
        try:
            text = json.dumps(list(values), default=plain, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigurationError(
                f"the column {name!r} cannot be sent to the reward server ({error}): drop it from the prompts, or say"
                " which columns are sent, RemoteReward(url, columns=[...])"
            ) from error
        encoded.append(f"{json.dumps(name)}:{text}")
    return f'{{{",".join(parts)},"columns":{{{",".join(encoded)}}}}}'.encode()


def read_request(body: bytes, max_texts: int) -> ScoreRequest:
    """The request that a body holds.

    Raises:
        BadRequest: it is none, or has more than `max_texts` texts.
    """
    content = read_object(body, BadRequest)
    unknown = sorted(content.keys() - {"prompts", "responses", "columns"})
    if unknown:
        raise BadRequest(f"the request has unknown fields {unknown}: send prompts, responses and columns")
    texts: dict[str, list[str]] = {}
    for name in ("prompts", "responses"):
        given = content.get(name)
        if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
            raise BadRequest(f"{name} must be a list of strings")
        texts[name] = given
    count = len(texts["responses"])
    if len(texts["prompts"]) != count:
        raise BadRequest(f"there are {len(texts['prompts'])} prompts for {count} responses: send one each")
    if count > max_texts:
        raise BadRequest(f"{count} texts are too many for one request: send at most {max_texts}")
    columns = content.get("columns", {})
    if not isinstance(columns, dict):
        raise BadRequest("columns must be an object of lists")
    for name, values in columns.items():
        if name in ("prompts", "responses") or not name.isidentifier():
            raise BadRequest(f"no column can be called {short_repr(name)}: use a Python identifier")
        if not isinstance(values, list) or len(values) != count:
            raise BadRequest(f"the column {name!r} must be a list of {count} values")
    if "response_ids" in columns and not all(_is_ids(row) for row in columns["response_ids"]):
        raise BadRequest("response_ids must be a list of lists of integers")
    return ScoreRequest(texts["prompts"], texts["responses"], columns)


# -- answers -------------------------------------------------------------------------------------------
def encode_answer(fingerprint: str, scores: Scores, parts: Mapping[str, np.ndarray]) -> bytes:
    """The body of the answer with B scores."""
    entries = [_entry(scores, i) for i in range(len(scores))]
    content: dict[str, Any] = {"fingerprint": fingerprint, "scores": entries}
    if parts:
        content["parts"] = {n: [float(x) if math.isfinite(x) else None for x in v] for n, v in parts.items()}
    return json.dumps(content, allow_nan=False).encode()


def _entry(scores: Scores, i: int) -> Any:
    if i in scores.failed:
        return None
    at_end = float(scores.at_end[i])
    if i not in scores.tokens and i not in scores.spans:
        return at_end
    entry: dict[str, Any] = {"score": at_end}
    if i in scores.tokens:
        entry["tokens"] = scores.tokens[i].tolist()
    if i in scores.spans:
        entry["spans"] = [[span.start, span.end, span.score] for span in scores.spans[i]]
    return entry


def read_answer(body: bytes, prompts: Sequence[str], responses: Sequence[str], lengths: Sequence[int] | None) -> Answer:
    """The scores that an answer holds.

    Args:
        prompts, responses: the texts that were sent, B.
        lengths: (B,), the response tokens of each text; None: unknown, so that no numbers per token are taken.

    Raises:
        RewardProtocolError: the body is no answer to these texts.
    """
    content = read_object(body, RewardProtocolError)
    fingerprint, entries = content.get("fingerprint"), content.get("scores")
    if not isinstance(fingerprint, str) or not _is_name(fingerprint) or not isinstance(entries, list):
        raise RewardProtocolError('the answer must hold a "fingerprint" and a list of "scores"')
    if len(entries) != len(responses):
        raise RewardProtocolError(f"there are {len(entries)} scores for {len(responses)} texts: one each is needed")
    at_end = np.zeros(len(entries))
    tokens: dict[int, np.ndarray] = {}
    spans: dict[int, tuple[Span, ...]] = {}
    failed = set()
    for i, entry in enumerate(entries):
        if entry is None:
            failed.add(i)
        elif isinstance(entry, dict):
            if not entry or entry.keys() - {"score", "tokens", "spans"}:
                raise RewardProtocolError(
                    f"the entry of text {i} must hold at least one of score, tokens and spans, and nothing else"
                )
            at_end[i] = _number(entry.get("score", 0.0), i)
            if "tokens" in entry:
                tokens[i] = np.array([_number(x, i) for x in _list(entry["tokens"], i)])
            if "spans" in entry:
                spans[i] = tuple(_span(x, i) for x in _list(entry["spans"], i))
        else:
            at_end[i] = _number(entry, i)
    scores = Scores(at_end, tokens, {i: some for i, some in spans.items() if some}, frozenset(failed))
    try:
        checked_scores("of the server", scores, prompts, responses, lengths)
        with np.errstate(over="ignore"):
            if not np.isfinite(scores.totals()).all():
                raise OverflowError("the numbers of a text have no finite sum")
    except (OverflowError, RewardValueError) as error:
        raise RewardProtocolError(f"the scores do not fit the texts: {error}") from error
    return Answer(fingerprint, scores, _parts(content.get("parts"), len(entries)))


def read_info(body: bytes) -> RewardInfo:
    """What a server says of its reward.

    Raises:
        RewardProtocolError: the body is no such description, or of another version of the protocol.
    """
    content = read_object(body, RewardProtocolError)
    if content.pop("protocol", None) != PROTOCOL:
        raise RewardProtocolError(
            f"no reward server with version {PROTOCOL} of the protocol answers there: check the address and its version"
        )
    known = {name: content[name] for name in RewardInfo.__dataclass_fields__ if name in content}  # later ones may add
    columns = known.get("columns")
    proper = (
        all(_is_name(known.get(name)) for name in ("name", "fingerprint"))
        and known.get("causal") in (True, False, None)
        and isinstance(known.get("reads_prefixes", False), bool)
        and (columns is None or (isinstance(columns, list) and all(isinstance(name, str) for name in columns)))
        and all(_is_count(known.get(name, 1)) for name in ("max_texts", "max_bytes"))
    )
    if not proper:
        raise RewardProtocolError(
            f"the server's description of its reward lacks a field, or one is invalid: {short_repr(content, 200)}"
        )
    return RewardInfo(**{**known, "columns": None if columns is None else tuple(columns)})


# -- values from outside -------------------------------------------------------------------------------
def _number(value: Any, i: int) -> float:
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RewardProtocolError(f"the score of text {i} is {short_repr(value)}: it must be a finite number")
    return number


def _list(value: Any, i: int) -> list[Any]:
    if not isinstance(value, list):
        raise RewardProtocolError(f"the tokens and spans of text {i} must be lists, not {short_repr(value)}")
    return value


def _span(value: Any, i: int) -> Span:
    if not isinstance(value, list) or len(value) != 3:
        raise RewardProtocolError(f"a span of text {i} must be [start, end, score], not {short_repr(value)}")
    return Span(value[0], value[1], _number(value[2], i))


def _parts(given: Any, count: int) -> dict[str, np.ndarray]:
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(v, list) and len(v) == count for v in given.values()):
        raise RewardProtocolError(f'"parts" must be an object of lists of {count} numbers')
    return {
        name: np.array([math.nan if x is None else _number(x, i) for i, x in enumerate(values)])
        for name, values in given.items()
    }


def _is_ids(row: Any) -> bool:
    return isinstance(row, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in row)


def _is_name(value: Any) -> bool:
    """Whether it may be shown in a terminal and saved: a short line of text."""
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and value.isprintable()


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
