"""What is compared: responses of several models to the same prompts, sampled here or read from files.

Shapes: P prompts, N samples for each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm_env.data.chats import is_chat
from lm_env.data.prompts import PROMPT_COLUMNS, RESERVED_COLUMNS, named_rows
from lm_env.errors import ConfigurationError, InvalidPromptError
from lm_env.generation import LocalBackend, Sampling
from lm_env.models.loading import load_model, load_tokenizer
from lm_env.objective.rewards import no_reward, score_responses
from lm_env.objective.scoring import raw_scores
from lm_env.objective.task import Task
from lm_env.validation import check_integer, check_number
from reward_models.preferences.records.preference import PromptText, prompt_key

__all__ = ["Contestant", "SamplingOptions", "contestant_names", "gather", "is_response_file"]

RESPONSE_COLUMNS = ("response", "completion", "output", "answer")
RESPONSE_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
SLOTS = 128

Judge = Callable[..., Any]


@dataclass(frozen=True)
class SamplingOptions:
    """How the responses of models are sampled.

    Raises:
        ConfigurationError: an option has an impossible value.
    """

    samples: int = 1
    """N, responses to each prompt."""
    new_tokens: int = 48
    temperature: float = 1.0
    seed: int = 0
    """Sample n of a prompt is drawn with the same random numbers by every model."""
    device: str = "cpu"
    download: bool = False

    def __post_init__(self) -> None:
        check_integer("samples", self.samples)
        check_integer("new_tokens", self.new_tokens)
        check_number("temperature", self.temperature, low=0.0, above=True)


@dataclass(frozen=True)
class Contestant:
    """A model's responses, and what a judge gave them.

    Attributes:
        responses: P lists of N texts.
        scores: float64 (P, N); None where nobody has judged.
    """

    name: str
    responses: list[list[str]]
    scores: np.ndarray | None


def contestant_names(given: Sequence[str]) -> dict[str, str]:
    """Name -> model or file, of "NAME=MODEL" or of the model alone.

    Raises:
        ConfigurationError: two have the same name, or there are fewer than two.
    """
    found: dict[str, str] = {}
    for text in given:
        name, equals, source = text.partition("=")
        if not equals or not name or not source or "/" in name:
            name = source = text
        if name in found:
            raise ConfigurationError(f"two models are called {name!r}: name them apart, as in first={source}")
        found[name] = source
    if len(found) < 2:
        raise ConfigurationError(
            f"a comparison needs at least two models, and {len(found)} was named: name two or more"
        )
    return found


def is_response_file(source: str) -> bool:
    """Whether the name is that of a file of responses; otherwise it names a model."""
    return Path(source).suffix.lower() in RESPONSE_SUFFIXES


def gather(
    contestants: Mapping[str, str],
    prompts: Any,
    judge: Judge | None,
    options: SamplingOptions,
    *,
    limit: int | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[list[PromptText], list[Contestant]]:
    """Get the responses of all contestants to the same prompts, and the judge's scores of them.

    Args:
        contestants: name -> whatever `lm_env.load_model` takes, or a file with a row for each response: its prompt, and
            the response in a column "response", "completion", "output" or "answer".
        prompts: whatever `lm_env.load_prompts` takes; None: those of the first file.
        judge: a reward function; None: nobody judges.
        limit: how many of the prompts are used, from the first on; None: all.
        say: called with a sentence about each contestant.

    Returns:
        (P prompts, the contestants in their order).

    Raises:
        ConfigurationError: a file lacks responses to a prompt, or an option cannot work.
        ModelLoadError, InvalidPromptError, RewardError: a model or the prompts cannot be loaded, or scoring failed.
    """
    files = {n: _read_file(s, options.download) for n, s in contestants.items() if is_response_file(s)}
    if prompts is None:
        if not files:
            raise ConfigurationError("there are no prompts: give some, or a file with prompts and responses")
        prompts = _prompts_of(next(iter(files.values())))
    rows = [row for _, row in named_rows(prompts, download=options.download, limit=limit)]
    texts = [_prompt_of(row) for row in rows]
    found = []
    for name, source in contestants.items():
        if name in files:
            found.append(_from_file(name, source, files[name], rows, texts, judge, options.samples))
        else:
            found.append(_from_model(name, source, rows, judge, options))
        if say is not None:
            scores = found[-1].scores
            mean = "" if scores is None else f", mean score {scores.mean():.4g}"
            say(f"{name}: {len(rows):,} prompts, {options.samples} response(s) to each{mean}")
    return texts, found


def _from_model(name: str, source: str, rows: list[Any], judge: Judge | None, options: SamplingOptions) -> Contestant:
    task = Task(
        model=load_model(source, device=options.device, download=options.download),
        tokenizer=load_tokenizer(source, download=options.download),
        prompts=rows,
        reward=judge or no_reward,
        beta=0.0,
        max_new_tokens=options.new_tokens,
        temperature=options.temperature,
        device=options.device,
        download=options.download,
    )
    n = options.samples
    drawn = [prompt for prompt in task.prompts for _ in range(n)]
    sampling = Sampling.fixed(len(drawn), options.new_tokens, options.seed)
    episodes = LocalBackend(task, SLOTS).generate(drawn, sampling, progress=f"   {name}").episodes
    responses = episodes.responses()
    texts = [task.text_of(response) for response in responses]
    scores = None if judge is None else raw_scores(judge, task, drawn, responses).reshape(-1, n)
    return Contestant(name, [texts[i : i + n] for i in range(0, len(texts), n)], scores)


def _from_file(
    name: str,
    source: str,
    written: dict[str, list[dict[str, Any]]],
    rows: list[Any],
    prompts: list[PromptText],
    judge: Judge | None,
    samples: int,
) -> Contestant:
    responses = []
    for prompt in prompts:
        own = written.get(prompt_key(prompt), [])
        if len(own) < samples:
            raise ConfigurationError(
                f"{source} has {len(own)} response(s) to the prompt {prompt!r:.60}, and {samples} are needed: add some,"
                " or compare on other prompts"
            )
        responses.append([row["response"] for row in own[:samples]])
    if judge is None:
        return Contestant(name, responses, None)
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise ConfigurationError(f"{source} cannot be judged on chats, which each model renders: give prompts as text")
    columns: dict[str, list[Any]] = {}
    for key in dict.fromkeys(key for row in rows if isinstance(row, Mapping) for key in row):
        if key not in PROMPT_COLUMNS and key not in RESERVED_COLUMNS and str(key).isidentifier():
            values = [row.get(key) if isinstance(row, Mapping) else None for row in rows]
            columns[key] = [value for value in values for _ in range(samples)]
    scores = score_responses(
        judge,
        [str(prompt) for prompt in prompts for _ in range(samples)],
        [text for own in responses for text in own],
        columns,
    )
    return Contestant(name, responses, scores.reshape(-1, samples))


def _read_file(source: str, download: bool) -> dict[str, list[dict[str, Any]]]:
    """Key of a prompt -> its rows, each with a `response`."""
    from lm_env.data.tables import TABLE_SUFFIXES, table_rows

    path = Path(source)
    if not path.is_file():
        raise ConfigurationError(f"there is no file {source}: give one with a prompt and a response in each row")
    rows = table_rows(path) if path.suffix.lower() in TABLE_SUFFIXES else named_rows(os.fspath(path))
    found: dict[str, list[dict[str, Any]]] = {}
    for where, row in rows:
        name = next((n for n in RESPONSE_COLUMNS if isinstance(row, Mapping) and isinstance(row.get(n), str)), None)
        if name is None:
            raise InvalidPromptError(
                f"{where} holds no response: put it into a column called one of {', '.join(RESPONSE_COLUMNS)}"
            )
        found.setdefault(prompt_key(_prompt_of(row)), []).append({**row, "response": row[name]})
    return found


def _prompts_of(written: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each prompt, with its columns."""
    left_out = {*RESPONSE_COLUMNS, "score", "scores", "timesteps", "kl"}
    return [{k: v for k, v in rows[0].items() if k not in left_out} for rows in written.values()]


def _prompt_of(row: Any) -> PromptText:
    """The prompt of a row, as text or as a chat."""
    if isinstance(row, Mapping):
        row = next((row[name] for name in PROMPT_COLUMNS if row.get(name) is not None), None)
    if isinstance(row, str):
        return row
    if is_chat(row):
        return tuple(dict(message) for message in row)
    raise InvalidPromptError(f"models with their own tokenizers share only prompts of text, or chats, not {row!r:.60}")
