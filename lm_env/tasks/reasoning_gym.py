"""lm_env/ReasoningGym-v0: any of the data sets of the package reasoning-gym, by name, with its own scorer.

The problems are generated (`env_option dataset=...`, as many as `size`, from `data_seed`, as hard as `config` says),
and the score is the one that the data set gives to the answer, 0 to 1 (Stojanovski et al. 2025, arXiv:2505.24760).  The
answer is the text between the last <answer> and </answer> of the response or, without these tags, its first line that
is not empty.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from lm_env.errors import ConfigurationError, MissingDependencyError
from lm_env.tasks.base import TextTask, split_rows
from lm_env.tasks.base.splits import Split
from lm_env.validation import check_integer

__all__ = ["answer_in", "task"]

TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def answer_in(response: str) -> str:
    """The answer in a response, without blanks around it; "" if there is none."""
    tagged = TAGGED.findall(response)
    if tagged:
        return str(tagged[-1]).strip()
    return next((line.strip() for line in response.splitlines() if line.strip()), "")


def task(dataset: str = "chain_sum", size: int = 1000, data_seed: int = 0, config: str = "") -> TextTask:
    """The task.

    Args:
        dataset: the name of the data set, such as chain_sum, leg_counting or spell_backward.
        size: how many problems are generated; those that come twice are kept once.
        data_seed: the seed of their generation.
        config: settings of the data set's own, such as "min_terms=2,max_terms=2,max_digits=1"; "": its defaults, most
            of which are too hard for a small model.
    """
    check_integer("size", size, low=10)
    check_integer("data_seed", data_seed, low=0)
    settings = _settings(config)

    def score(prompts: Sequence[str], responses: Sequence[str], problem: Sequence[int], **columns: Any) -> list[float]:
        """What the data set's own scorer gives to each answer, 0 to 1; 0 where there is none."""
        problems = _problems(dataset, size, data_seed, settings)
        found = []
        for response, index in zip(responses, problem, strict=True):
            answer = answer_in(response)
            paid = float(problems.score_answer(answer=answer, entry=problems[index])) if answer else 0.0
            found.append(min(max(paid, 0.0), 1.0))
        return found

    return TextTask(
        id="lm_env/ReasoningGym-v0",
        summary="a data set of reasoning-gym by name; the score is its own",
        source=_rows(dataset, size, data_seed, settings),
        reward=score,
        model="smollm2-135m",
        metrics={"answered": answered},
        beta=0.02,
        max_new_tokens=64,
        budget=500_000,
        success=1.0,
        highest=1.0,
    )


def answered(prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """1 where there is an answer, right or wrong."""
    return [float(bool(answer_in(response))) for response in responses]


Settings = tuple[tuple[str, Any], ...]
"""(name, value) of the settings of a data set."""


def _settings(config: str) -> Settings:
    """The settings in a text such as "max_terms=2,max_digits=1"; numbers, true and false in their own types."""
    found = []
    for pair in filter(None, (part.strip() for part in str(config).split(","))):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not name.isidentifier() or not value:
            raise ConfigurationError(f"config must be written NAME=VALUE,NAME=VALUE, not {config!r}")
        try:
            found.append((name, json.loads(value.lower())))
        except ValueError:
            found.append((name, value))
    return tuple(found)


def _rows(dataset: str, size: int, seed: int, settings: Settings) -> Callable[[Split], list[dict[str, Any]]]:
    def of_split(split: Split) -> list[dict[str, Any]]:
        problems = _problems(dataset, size, seed, settings)
        rows = [
            {
                "prompt": f"Question: {problems[i]['question']}\nAnswer:",
                "answer": str(problems[i]["answer"]),
                "problem": i,
            }
            for i in range(len(problems))
        ]
        return split_rows(rows, split)

    return of_split


@lru_cache(maxsize=4)
def _problems(dataset: str, size: int, seed: int, settings: Settings) -> Any:
    try:
        import reasoning_gym
    except ImportError as error:
        raise MissingDependencyError(
            "these problems are in a package of its own: pip install 'lm-env[reasoning]'"
        ) from error
    from reasoning_gym.factory import DATASETS

    if dataset not in DATASETS:
        raise ConfigurationError(
            f"reasoning-gym has no data set {dataset!r}: give env_option dataset=NAME, with a name out of"
            f" {', '.join(sorted(DATASETS))}"
        )
    try:
        return reasoning_gym.create_dataset(dataset, size=size, seed=seed, **dict(settings))
    except (TypeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split()) or "a value is out of range"
        given = ", ".join(f"{name}={value}" for name, value in settings)
        raise ConfigurationError(f"reasoning-gym's {dataset} cannot be made with {given} ({reason})") from error
