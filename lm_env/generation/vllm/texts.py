"""What `VLLMServer` and `VLLMEngine` share: the fields of a request, and the episodes made of the answers.

vLLM has random numbers of its own.  So each text gets a seed, made from the numbers that the generation of this package
would draw with.

Shapes: B texts, T response tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lm_env.data.episodes import Episodes
from lm_env.data.prompts import Prompt
from lm_env.errors import BackendError, ConfigurationError
from lm_env.generation.backend import Generation, Sampling
from lm_env.models.logprobs import response_logprobs
from lm_env.objective.task import Task

__all__ = ["UNFILTERED", "Answer", "as_generation", "check_extra", "check_task", "sampling_fields", "seeds_of"]

UNFILTERED: dict[str, Any] = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""Sent with every request, because vLLM otherwise takes the values of the model's generation_config.json."""

HARMLESS = ("cache_salt", "kv_transfer_params", "priority", "user", "vllm_xargs")
"""Fields of a request that leave the distribution of its text as it is."""


@dataclass(frozen=True)
class Answer:
    """One text as vLLM gives it."""

    tokens: list[int]
    """Response tokens, the one that ended it included."""
    logprobs: list[float]
    """Logprobs of these tokens, nats, under the distribution sampled from."""


def check_task(task: Task) -> None:
    """Raise ConfigurationError for a task whose texts vLLM cannot write."""
    if task.action_mask is not None:
        raise ConfigurationError(
            "action_mask is a Python function of each text, which vLLM does not call: leave this task to LocalBackend"
        )


def check_extra(extra: Mapping[str, Any]) -> None:
    """Raise ConfigurationError for a field of a request that changes which distribution the tokens are drawn from."""
    for name in extra:
        if name not in HARMLESS:
            raise ConfigurationError(
                f"{name} cannot be set: the logprobs must be those of the model's whole distribution, and what filters"
                f" or renormalizes it (top_k, top_p, a penalty) breaks that; allowed are {', '.join(HARMLESS)}"
            )


def sampling_fields(task: Task, seed: int, deterministic: bool) -> dict[str, Any]:
    """The sampling parameters of a text by vLLM's names, which are the same over HTTP and in Python."""
    stops = {"stop": list(task.stop_strings), "include_stop_str_in_output": True} if task.stop_strings else {}
    return {
        **UNFILTERED,
        **stops,
        "max_tokens": task.max_new_tokens,
        "temperature": 0.0 if deterministic else task.temperature,
        "seed": seed,
        "logprobs": 0,  # of the token that was drawn, and of no other
        "stop_token_ids": sorted(task.eos_token_ids),
        "ignore_eos": True,  # the task says which tokens end a text
        "skip_special_tokens": False,
    }


def seeds_of(sampling: Sampling, texts: int, tokens: int) -> list[int]:
    """A seed for each text, a digest of its uniform numbers; it does not depend on the other texts.

    Raises:
        ConfigurationError: the uniforms have a wrong shape.
    """
    uniforms = sampling.uniforms
    if uniforms is None:
        uniforms = torch.rand(texts, 4, generator=sampling.generator).numpy()
    elif uniforms.shape != (texts, tokens):
        raise ConfigurationError(f"uniforms have the shape {uniforms.shape}: (texts, tokens) is {(texts, tokens)}")
    rows = np.ascontiguousarray(uniforms, dtype=np.float32)
    return [int.from_bytes(hashlib.sha256(row.tobytes()).digest()[:4], "big") for row in rows]


def as_generation(
    task: Task, prompts: Sequence[Prompt], answers: Sequence[Answer], version: int, deterministic: bool
) -> Generation:
    """The answers to all prompts, checked, and each cut where it ends by the task's rules.

    Raises:
        BackendError: an answer is impossible for the task.
    """
    rows = [_checked(task, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    lengths = np.array([len(prompt.ids) for prompt in prompts])
    written = np.array([len(row.tokens) for row in rows])
    ids = np.full((len(rows), int((lengths + written).max())), task.pad_token_id, dtype=np.int64)
    logprobs = np.zeros((len(rows), int(written.max())), dtype=np.float64)
    for i, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        ids[i, : lengths[i]] = prompt.ids
        ids[i, lengths[i] : lengths[i] + written[i]] = row.tokens
        logprobs[i, : written[i]] = row.logprobs
    episodes = Episodes(ids, lengths, lengths + written, prompts, logprobs)
    if deterministic:  # vLLM's logprobs of likeliest tokens are not at the task's temperature
        own = response_logprobs(task.model, episodes, task.temperature)
        episodes = Episodes(ids, lengths, lengths + written, prompts, own)
    return Generation(episodes, None, version, rounded=True)


def _checked(task: Task, prompt: Prompt, answer: Answer) -> Answer:
    tokens, logprobs = answer.tokens, np.asarray(answer.logprobs, dtype=np.float64)
    problem = None
    if not tokens or len(tokens) != len(logprobs):
        problem = f"{len(tokens)} tokens with {len(logprobs)} logprobs"
    elif not all(type(t) is int and 0 <= t < task.vocab_size for t in tokens):
        problem = f"tokens outside the model's vocabulary of {task.vocab_size}"
    elif not (np.isfinite(logprobs) & (logprobs <= 1e-3)).all():
        problem = "logprobs that are not finite or above 0"
    if problem is not None:
        raise BackendError(f"vLLM answered with {problem}: check that it serves the model under training")
    end = _end(task, prompt, tokens)
    if end is None:
        raise BackendError(
            f"vLLM ended a text after {len(tokens)} of {task.max_new_tokens} tokens with token {tokens[-1]}, which"
            " ends no text of this task: it must return the token that ended a text, and have room for the longest"
            " text (--max-model-len)"
        )
    return Answer(tokens[:end], logprobs[:end].tolist())


def _end(task: Task, prompt: Prompt, tokens: list[int]) -> int | None:
    """How many of the tokens belong to the text, by the task's rules; None if none of them ends it."""
    start = len(prompt.ids)
    row = np.concatenate([prompt.ids, np.array(tokens, dtype=np.int64)])[None]
    lengths = range(1, len(tokens) + 1)
    if not task.stop_strings:  # then only a token can have ended it
        ends = np.flatnonzero(task.is_eos(row[0, start:]))
        lengths = range(int(ends[0]) + 1, int(ends[0]) + 2) if len(ends) else range(len(tokens), len(tokens) + 1)
    for length in lengths:
        ended, capped = task.ends(row, np.array([start]), np.array([start + length]))
        if ended[0] or capped[0]:
            return length
    return None
