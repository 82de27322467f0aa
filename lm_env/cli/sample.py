"""`lm-env sample`: colored texts in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from lm_env.objective.task import Task

__all__ = ["print_samples"]

DEFAULTS = {"max_new_tokens": 32, "temperature": 0.7}
"""Options where no registered task has its own."""


def print_samples(
    *,
    n: int,
    seed: int,
    device: str = "cpu",
    download: bool = False,
    env: str | None = None,
    env_option: Sequence[str] = (),
    judge: str | None = None,
    new_tokens: int | None = None,
    model: str | None = None,
    reference: str | None = None,
    **options: Any,
) -> None:
    """Sample n texts, score them, and print them token by token against the reference.

    Args:
        env: a registered task, which says what is not given here; None: openings of film reviews and their sentiment.
        env_option: options of the task's own, NAME=VALUE.
        reference: the model to compare with; None: the one that `model` was trained from, or, where it does not
            say which, `model` itself, so that nothing is colored.
        options: of `lm_env.Task`; those that are None are the task's own.
    """
    from lm_env.envs.render import print_render, render_episode, tokens_from_ids
    from lm_env.generation import LocalBackend, Sampling
    from lm_env.objective.scoring import score_episodes
    from lm_env.runs.judges import make_judge

    if reference is None and model is not None:
        reference = _base(model, device, download)
    judged = None if judge is None else make_judge(judge, device=device, download=download)
    named = {**options, "model": model, "reference": reference, "max_new_tokens": new_tokens, "reward": judged}
    given = {name: value for name, value in named.items() if value is not None}
    task = _task(env, env_option, {**given, "device": device, "download": download})
    chosen = task.prompts.sample(np.random.default_rng(seed), n)
    sampling = Sampling(torch.Generator().manual_seed(seed))
    episodes = LocalBackend(task).generate(chosen, sampling).episodes
    scored = score_episodes(task, episodes)
    for i, prompt in enumerate(chosen):
        start, end = episodes.prompt_lengths[i], episodes.lengths[i]
        tokens = tokens_from_ids(task.tokenizer, episodes.input_ids[i, :end].tolist())[start:]
        ratios = (scored.logprobs - scored.ref_logprobs)[i, : len(tokens)].tolist()
        print_render(render_episode(prompt.text, tokens, ratios, score=float(scored.scores[i])), end="\n\n")


def _task(env: str | None, env_option: Sequence[str], given: dict[str, Any]) -> Task:
    """The task that is written for, with what was given in place of its own."""
    from lm_env.errors import ConfigurationError
    from lm_env.models.loading import EMBEDDED_MODEL
    from lm_env.objective.task import Task
    from lm_env.runs.config_files import named_values
    from lm_env.runs.judges import default_prompts, make_judge
    from lm_env.tasks import get_task

    if env is not None:
        return get_task(env, **named_values(env_option)).task("test", **given)
    if env_option:
        raise ConfigurationError("env_option is an option of a task: name the task with --env")
    own = {"model": EMBEDDED_MODEL, "prompts": default_prompts(None, "test"), **DEFAULTS}
    if "reward" not in given:
        own["reward"] = make_judge("lexicon", device="cpu", download=False)
    return Task(**{**own, **given})


def _base(model: str, device: str, download: bool) -> str | None:
    """The model that this one was trained from; None where it is not known.

    Raises:
        ModelLoadError: it cannot be loaded.
    """
    from lm_env.errors import ModelLoadError
    from lm_env.models.export import base_of
    from lm_env.models.loading import load_causal_lm

    base = base_of(model)
    if base is None:
        return None
    try:
        load_causal_lm(base, device, download)
    except ModelLoadError as error:
        raise ModelLoadError(
            f"{model} was trained from {base}, which cannot be loaded: name a model to compare with, --reference"
        ) from error
    return base
