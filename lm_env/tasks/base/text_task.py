"""TextTask: the declaration of a task: its prompts in three splits, its reward, its further metrics, its defaults.

A `TextTask` holds names and functions and loads nothing.  `TextTask.task(split)` makes a `lm_env.Task` of it, which has
the model, the tokenizer and the prompts of one split in memory.

Shapes: B texts.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_env.errors import ConfigurationError, RewardError
from lm_env.tasks.base.splits import SPLITS, Split, split_rows
from lm_env.validation import check_choice, check_integer, check_number

if TYPE_CHECKING:
    from lm_env.data.prompts import Prompt
    from lm_env.envs.env import TextGenerationEnv
    from lm_env.envs.vector_env import TextGenerationVectorEnv
    from lm_env.objective.task import Task
    from lm_env.theory.ceilings import Ceiling

__all__ = ["TextTask", "loaded"]

INTERFACE_OPTIONS = ("flat", "render_mode", "render_values", "autoreset_mode")
"""Options of the environment's interface; all others are options of `lm_env.Task`."""

MEASURED = frozenset(
    (
        *("score", "score_se", "gold", "J", "J_se", "attained", "attained_se", "ended", "length"),
        *("kl", "kl_se", "kl_k1", "kl_per_token", "perplexity", "independent_perplexity", "independent_bits_per_byte"),
        *("distinct_1", "distinct_2", "distinct_3", "repetition", "truncated", "bleu", "chrf", "rouge_1", "rouge_L"),
    )
)
"""What logs and benchmarks measure of every task; a metric of that name would take its place in a table."""


@dataclass(frozen=True, kw_only=True)
class TextTask:
    """What is to be written, how it is judged, and what a run of it is by default.

    Making one loads nothing: prompts are read by `prompts`, models are loaded by `make`.

    Args:
        id: the name it is registered under, `"namespace/Name-v0"`.
        summary: what is judged, in a line.
        source: the prompts.  A list of rows, a file or a hub id (anything that `lm_env.load_prompts` takes) is split
            by `split_rows`; a mapping has such a source for each of train, validation and test; a function is given
            the name of the split and returns its rows; it may also take `download`.
        reward: a reward function, or the name of one; see `lm_env.RewardFunction`.  None: the user names it.
        model: the default model by name, or a function without arguments that makes one.
        metrics: what else is measured of a text, name -> function with the arguments of a reward function, or the name
            of such a function.  No name can be one of `MEASURED`, what is measured of every task.
        beta: weight of the KL penalty, score per nat.
        max_new_tokens: the length cap of a response, tokens.
        temperature: divides the logits of policy and reference.
        budget: tokens that a training run generates by default.
        success: a text succeeds if its score is at least this; None: success is not defined for the task.
        highest: a number that no score can exceed; None: it is not known.
        ceiling: how the optimum of score - beta KL is obtained, in a line.
        optimum: a function of a `lm_env.Task` that returns its `Ceiling` exactly; None: it is estimated.
        options: other options of `lm_env.Task` that the task needs, such as `stop_strings`.

    Raises:
        ConfigurationError: the id is malformed, a number is out of its range, a split is missing, or a metric has the
            name of another number.
    """

    id: str
    summary: str
    source: Any
    reward: Callable[..., Any] | str | None
    model: str | Callable[[], Any] = "reviews-3m"
    metrics: Mapping[str, Callable[..., Any] | str] = field(default_factory=dict)
    beta: float = 0.1
    max_new_tokens: int = 48
    temperature: float = 1.0
    budget: int = 100_000
    success: float | None = None
    highest: float | None = None
    ceiling: str = "estimated from samples of the reference (lm-env ceiling)"
    optimum: Callable[[Task], Ceiling] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id or ":" in self.id or self.id != self.id.strip():
            raise ConfigurationError(
                f"the id of a task is a text such as 'me/Mine-v0', without a colon, not {self.id!r}"
            )
        check_number("beta", self.beta, low=0.0)
        check_number("temperature", self.temperature, low=0.0, above=True)
        check_integer("max_new_tokens", self.max_new_tokens)
        check_integer("budget", self.budget)
        if own := next((name for name in self.metrics if name in MEASURED), None):
            raise ConfigurationError(f"{own} is measured of every task: give that metric of {self.id} another name")
        for name in ("success", "highest"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name))
        if isinstance(self.source, Mapping) and (missing := [name for name in SPLITS if name not in self.source]):
            raise ConfigurationError(
                f"the prompts of {self.id} have no split {missing[0]!r}: give all three, or a list"
            )

    @property
    def model_name(self) -> str:
        """The name of the default model, or of the function that makes it."""
        return os.fspath(self.model) if isinstance(self.model, str | os.PathLike) else self.model.__name__

    def prompts(self, split: Split = "train", *, download: bool = False) -> list[Any]:
        """The rows of a split, as `lm_env.load_prompts` takes them: texts, or mappings with further columns.

        Args:
            download: allow a source on the hub to be fetched.

        Raises:
            ConfigurationError: there is no such split, or the source cannot be read.
            InvalidPromptError: a row cannot be read, or there is none.
            MissingDependencyError: the package with the material is not installed.
        """
        from lm_env.data.prompts import named_rows

        check_choice("split", split, SPLITS)
        if callable(self.source):
            takes = inspect.signature(self.source).parameters
            return list(self.source(split, **({"download": download} if "download" in takes else {})))
        if isinstance(self.source, Mapping):
            return [row for _, row in named_rows(self.source[split], download=download)]
        rows = [row for _, row in named_rows(self.source, download=download)]
        return split_rows(rows, split, self.options.get("prompt_column"))

    def task_options(self, split: Split = "train", **over: Any) -> dict[str, Any]:
        """The options of `lm_env.Task`: this task's own, replaced by the caller's where both name one.

        Args:
            split: which prompts, unless `over` has `prompts`.
            over: the caller's options of `lm_env.Task`.

        Raises:
            ConfigurationError, InvalidPromptError, MissingDependencyError: see `prompts`.
        """
        check_choice("split", split, SPLITS)
        found: dict[str, Any] = {
            "reward": self.reward,
            "beta": self.beta,
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            **self.options,
            **over,
        }
        if found["reward"] is None:
            raise ConfigurationError(
                f"{self.id} has no reward of its own: name one that `lm-env rm train` has written, reward_model=FOLDER"
                " (lm-env train --env-option reward_model=FOLDER)"
            )
        if "model" not in found:
            named = isinstance(self.model, str | os.PathLike)
            found["model"] = self.model if named else self.model()  # type: ignore[operator]
        if "prompts" not in found:
            found["prompts"] = self.prompts(split, download=over.get("download") is True)
        return found

    def task(self, split: Split = "train", **over: Any) -> Task:
        """`lm_env.Task` with the prompts of a split; arguments and errors as in `task_options` and `lm_env.Task`."""
        from lm_env.objective.task import Task

        return Task(**self.task_options(split, **over))

    def make(self, split: Split = "train", **over: Any) -> TextGenerationEnv:
        """The environment that writes one text at a time; `over` may also hold options of its own, such as `flat`."""
        from lm_env.envs.env import TextGenerationEnv

        interface = {name: over.pop(name) for name in INTERFACE_OPTIONS if name in over}
        return TextGenerationEnv(**interface, **self.task_options(split, **over))

    def make_vec(self, num_envs: int = 1, split: Split = "train", **over: Any) -> TextGenerationVectorEnv:
        """The environment of `num_envs` texts at a time; `over` may also hold options of its own, such as
        `autoreset_mode`."""
        from lm_env.envs.vector_env import TextGenerationVectorEnv

        interface = {name: over.pop(name) for name in INTERFACE_OPTIONS if name in over}
        return TextGenerationVectorEnv(num_envs, **interface, **self.task_options(split, **over))

    def measure(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> dict[str, np.ndarray]:
        """The task's metrics of B responses to B prompts, name -> float64 (B,).

        Args:
            prompts: those of a `lm_env.Task`, which hold the texts and the further columns that metrics read.

        Raises:
            RewardError, RewardValueError: a metric failed, or returned something else than B numbers.
        """
        from lm_env.objective.rewards import score_responses

        texts = [prompt.text for prompt in prompts]
        names = prompts[0].columns if len(prompts) else ()
        columns = {name: [prompt.columns[name] for prompt in prompts] for name in names}
        found = {}
        for name, metric in self.metrics.items():
            try:
                function = loaded(metric) if isinstance(metric, str) else metric
                found[name] = score_responses(function, texts, responses, columns)
            except RewardError as error:  # it speaks of a reward function, which a metric is called like
                raise type(error)(f"the metric {name} of {self.id} cannot be measured: {error}") from error
        return found


@lru_cache(maxsize=8)
def loaded(name: str) -> Callable[..., Any]:
    """The metric of a name; what was loaded for it, such as a network, is kept."""
    from lm_env.objective.options import resolve_reward

    return resolve_reward(name)
