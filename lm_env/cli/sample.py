"""`lm-env sample`: colored texts in the terminal."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

__all__ = ["print_samples"]


def print_samples(
    *,
    n: int,
    seed: int,
    judge: str,
    prompts: str | None,
    new_tokens: int,
    model: str,
    reference: str | None = None,
    **options: Any,
) -> None:
    """Sample n texts, score them, and print them token by token against the reference.

    Args:
        reference: the model to compare with; None: the one that `model` was trained from, or, where it does not
            say which, `model` itself, so that nothing is colored.
    """
    from lm_env.envs.render import print_render, render_episode, tokens_from_ids
    from lm_env.generation import LocalBackend, Sampling
    from lm_env.objective.scoring import score_episodes
    from lm_env.objective.task import Task
    from lm_env.runs.judges import default_prompts, make_judge

    reward = make_judge(judge, device=options["device"], download=options["download"])
    task = Task(
        model=model,
        reference=reference or _base(model, options["device"], options["download"]),
        prompts=default_prompts(prompts, "test"),
        reward=reward,
        max_new_tokens=new_tokens,
        **options,
    )
    chosen = task.prompts.sample(np.random.default_rng(seed), n)
    sampling = Sampling(torch.Generator().manual_seed(seed))
    episodes = LocalBackend(task).generate(chosen, sampling).episodes
    scored = score_episodes(task, episodes)
    for i, prompt in enumerate(chosen):
        start, end = episodes.prompt_lengths[i], episodes.lengths[i]
        tokens = tokens_from_ids(task.tokenizer, episodes.input_ids[i, :end].tolist())[start:]
        ratios = (scored.logprobs - scored.ref_logprobs)[i, : len(tokens)].tolist()
        print_render(render_episode(prompt.text, tokens, ratios, score=float(scored.scores[i])), end="\n\n")


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
