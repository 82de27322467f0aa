"""From settings to an environment: model, adapters, prompts and reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from agents.base import task_of
from agents.run.evaluation import MoreMeasures
from lm_env.data.prompts import Prompt
from lm_env.envs.env import TextGenerationEnv
from lm_env.errors import ConfigurationError
from lm_env.models.adapters import add_lora
from lm_env.models.loading import EMBEDDED_MODEL, load_model, load_tokenizer
from lm_env.objective.functions import load_function
from lm_env.objective.kl import AdaptiveKL
from lm_env.runs.judges import make_judge
from lm_env.runs.settings import LoraSettings, RunSettings, TaskSettings
from lm_env.tasks import get_task, is_text_task, make_named

__all__ = ["further_metrics", "held_out_prompts", "make_env"]

AS_THEY_ARE = (
    "model",
    "prompts",
    "reference",
    "tokenizer",
    "beta",
    "max_new_tokens",
    "temperature",
    "prompt_column",
    "max_prompt_tokens",
    "overflow",
    "add_special_tokens",
    "eos_token_id",
    "stop_strings",
    "missing_eos_score",
    "cap_truncates",
    "split",
)
"""Settings that are options of the environment under the same name."""


def make_env(task: TaskSettings, lora: LoraSettings) -> gymnasium.Env:
    """The environment of the settings, with a model of its own to train.

    Raises:
        ConfigurationError: an unknown environment, or an option that it does not have.
        ModelLoadError, MissingDependencyError, InvalidPromptError, UnsupportedModelError: a part cannot be had.
    """
    options: dict[str, Any] = {name: v for name in AS_THEY_ARE if (v := getattr(task, name)) is not None}
    if task.reward is not None:
        options["reward"] = make_judge(task.reward, device=task.device, download=task.download)
    if task.action_mask is not None:
        options["action_mask"] = load_function(task.action_mask, "prompt_ids, response_ids")
    if task.adaptive_kl is not None:
        start = {} if task.beta is None else {"beta": task.beta}
        options["beta"] = AdaptiveKL(target=task.adaptive_kl, **start)
    if task.env is None:
        options = {"model": EMBEDDED_MODEL, **options}
    if task.quantize is not None or lora.lora is not None:
        options |= _adapted(task, lora, options)
    return _make(task, {"device": task.device, "download": task.download, **options})


def held_out_prompts(run: RunSettings, settings: TaskSettings, env: gymnasium.Env) -> Sequence[Prompt]:
    """The prompts to evaluate on; where none are held out, those that are trained on.

    With an `eval_fraction`, they are taken out of the environment's own; the same ones whatever the seed.

    Raises:
        ConfigurationError: too few prompts to keep some.
    """
    task = task_of(env)
    if run.eval_prompts is not None:
        return task.load_prompts(run.eval_prompts, download=settings.download, any_length=True)
    if run.eval_fraction > 0:
        order = np.random.default_rng(0).permutation(len(task.prompts))
        kept = round(run.eval_fraction * len(order))
        if not 0 < kept < len(order):
            raise ConfigurationError(
                f"eval_fraction {run.eval_fraction:g} of {len(order)} prompts leaves none to evaluate or to train on:"
                " give more prompts, or eval_prompts"
            )
        held_out = [task.prompts[int(i)] for i in order[:kept]]
        task.prompts = task.load_prompts([task.prompts[int(i)] for i in order[kept:]])
        return held_out
    if settings.env is not None and settings.prompts is None and settings.split is None and is_text_task(settings.env):
        held_out = get_task(settings.env, **settings.own_options()).prompts("test", download=settings.download)
        return task.load_prompts(held_out, any_length=True)
    return task.prompts


def further_metrics(run: RunSettings, settings: TaskSettings) -> MoreMeasures | None:
    """What a registered task measures of its texts beside the score; None where it measures nothing else.

    Also None for prompts of the user's own, which need not have the columns that the metrics read.
    """
    found = None if settings.prompts is not None or run.eval_prompts is not None else settings.registered
    return found.measure if found is not None and found.metrics else None


def _make(task: TaskSettings, options: dict[str, Any]) -> gymnasium.Env:
    if task.env is None:
        return TextGenerationEnv(**options)
    return make_named(task.env, **{**task.own_options(), **options})


def _adapted(task: TaskSettings, lora: LoraSettings, options: dict[str, Any]) -> dict[str, Any]:
    """The model with fresh adapters on it, and its tokenizer."""
    name = options.get("model")
    if name is None:  # the registered environment's own
        own = _make(task, {"device": task.device, "download": task.download, **options}).unwrapped.task  # type: ignore[attr-defined]
        model, tokenizer = own.model, own.tokenizer
    else:
        quantized = None if task.quantize is None else {f"load_in_{task.quantize}": True}
        model = load_model(name, device=task.device, download=task.download, quantization_config=quantized)
        tokenizer = load_tokenizer(options.get("tokenizer", name), download=task.download)
    if lora.lora is not None:
        targets = lora.lora_targets[0] if lora.lora_targets == ("all-linear",) else list(lora.lora_targets)
        model = add_lora(model, rank=lora.lora, alpha=lora.lora_alpha, targets=targets)
    return {"model": model, "tokenizer": tokenizer}
