"""Items from a model: K responses of it to each prompt."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lm_env.errors import ConfigurationError
from lm_env.generation import LocalBackend, Sampling
from lm_env.models.loading import load_causal_lm
from lm_env.objective.rewards import no_reward
from lm_env.objective.task import Task
from lm_env.validation import check_integer
from reward_models.labelling.items import Item, items_from_preferences
from reward_models.labelling.store import LabelStore
from reward_models.preferences.records.preference import Preference

__all__ = ["SampleSettings", "add_samples", "sample_items"]

SLOTS = 64


@dataclass(frozen=True)
class SampleSettings:
    """The model whose responses are sampled, and how.

    Attributes:
        model: a name that `load_causal_lm` takes.
        responses: how many to each prompt, K >= 2.
        new_tokens: length cap of a response, tokens.
        temperature: divides the logits.
        limit: how many of the prompts are used, from the first on; None: all.
        seed: the seed of the sampling.
    """

    model: str
    responses: int = 2
    new_tokens: int = 48
    temperature: float = 1.0
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("responses", self.responses, low=2)
        if self.limit is not None:
            check_integer("limit", self.limit)


def sample_items(
    prompts: Any, settings: SampleSettings, *, device: str = "cpu", download: bool = False
) -> tuple[list[Item], int]:
    """Sample K responses to each prompt.

    Args:
        prompts: whatever `load_prompts` takes; their extra columns are kept.

    Returns:
        the items, and how many prompts were left out because all responses to them are alike.

    Raises:
        ModelLoadError, InvalidPromptError: the model or the prompts cannot be loaded.
        ConfigurationError: a setting cannot work, or all responses to each prompt are equal.
    """
    model, tokenizer = load_causal_lm(settings.model, device, download)
    task = Task(
        model=model,
        tokenizer=tokenizer,
        prompts=prompts,
        reward=no_reward,
        beta=0.0,
        max_new_tokens=settings.new_tokens,
        temperature=settings.temperature,
        download=download,
    )
    chosen = task.prompts.head(settings.limit or len(task.prompts))
    drawn = [prompt for prompt in chosen for _ in range(settings.responses)]
    sampling = Sampling(torch.Generator().manual_seed(settings.seed))
    episodes = LocalBackend(task, SLOTS).generate(drawn, sampling, progress="   sampling").episodes
    texts = [task.text_of(response) for response in episodes.responses()]
    k = settings.responses
    records = [
        Preference(prompt.text, tuple(texts[i * k : (i + 1) * k]), (0,) * k, columns=prompt.columns)
        for i, prompt in enumerate(chosen)
    ]
    found = items_from_preferences(records)
    if not found.items:
        raise ConfigurationError(f"{settings.model} gave {k} equal responses to every prompt: raise --temperature")
    return list(found.items), found.too_few


def add_samples(
    store: LabelStore, prompts: Any, settings: SampleSettings, *, device: str = "cpu", download: bool = False
) -> tuple[int, int]:
    """Sample items into a file of labels, once: a file that holds samples of these settings is left as it is.

    Returns:
        (items that are new, prompts left out because all responses to them are alike).

    Raises:
        ConfigurationError: the file holds samples of other settings.
    """
    about = json.dumps({**asdict(settings), "prompts": prompts if isinstance(prompts, str) else None}, sort_keys=True)
    kept = store.note("samples")
    if kept is not None:
        if kept != about:
            raise ConfigurationError(
                f"{store.path} holds samples drawn with {kept}, which differs from {about}: choose another --out"
            )
        return 0, 0
    items, alike = sample_items(prompts, settings, device=device, download=download)
    return store.add(items, note=("samples", about)), alike
