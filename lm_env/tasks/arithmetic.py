"""lm_env/Arithmetic-v0: answer a sum or a product; the score is 1 if the answer is right, else 0.

The default model, arithmetic-0.4m, is in the package and writes a character at a time.  Of the answers that it was
pretrained on, three in ten were right, four had a forgotten carry and three a wrong tens digit
(`examples/pretrain_arithmetic.py`).  So it knows what an answer looks like and often gives a wrong one, and the effect
of a minute of training can be seen.  It was pretrained on no problem of the validation and test splits.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from lm_env.errors import ConfigurationError
from lm_env.tasks.base import TextTask, split_rows
from lm_env.theory.ceilings import Ceiling
from lm_env.validation import check_integer

__all__ = ["LEVELS", "format_right", "optimum", "problems", "right", "task", "truth"]

LEVELS = {
    1: "one digit plus two digits",
    2: "two digits plus two digits",
    3: "three digits plus three digits",
    4: "two digits times one digit",
}
"""Level of difficulty -> the problems of that level."""

LEVEL_3_PROBLEMS = 10_000
"""How many of the 810,000 problems of the third level are used."""

Row = dict[Literal["prompt", "answer"], str]


def truth(prompt: str) -> str:
    """The right answer to a problem such as `"47+38="`.

    Raises:
        ConfigurationError: it is no such problem.
    """
    for sign in "+*":
        left, found, right = prompt.removesuffix("=").partition(sign)
        if found and left.isdecimal() and right.isdecimal():
            return str(int(left) + int(right) if sign == "+" else int(left) * int(right))
    raise ConfigurationError(f"{prompt!r} is no sum: write it as '47+38=' or '12*7='")


def problems(level: int = 2) -> list[Row]:
    """Every problem of a level with its answer; of the third level 10,000, drawn with a fixed seed.

    Raises:
        ConfigurationError: there is no such level.
    """
    _check_level(level)
    ones, tens = range(1, 10), range(10, 100)
    if level == 1:
        pairs = [*itertools.product(ones, tens), *itertools.product(tens, ones)]
    elif level == 2:
        pairs = list(itertools.product(tens, tens))
    elif level == 3:
        drawn = np.random.default_rng(0).choice(900 * 900, LEVEL_3_PROBLEMS, replace=False)
        pairs = [(100 + int(n) // 900, 100 + int(n) % 900) for n in drawn]
    else:
        pairs = [*itertools.product(tens, range(2, 10)), *itertools.product(range(2, 10), tens)]
    prompts = [f"{a}{'*' if level == 4 else '+'}{b}=" for a, b in pairs]
    return [{"prompt": prompt, "answer": truth(prompt)} for prompt in prompts]


def _check_level(level: int) -> None:
    if check_integer("level", level) not in LEVELS:
        raise ConfigurationError(f"level must be one of {', '.join(map(str, LEVELS))}, not {level}")


def right(prompts: Sequence[str], responses: Sequence[str], answer: Sequence[str], **columns: Any) -> list[float]:
    """The reward: 1 where the response is the answer and nothing else, else 0."""
    return [float(response == wanted) for response, wanted in zip(responses, answer, strict=True)]


def format_right(prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """1 where the response is a number without a leading zero, right or wrong, else 0."""
    return [float(r.isascii() and r.isdecimal() and str(int(r)) == r) for r in responses]


def optimum(task: Any) -> Ceiling:
    """The optimum of score - beta KL, exactly: from the reference's probability of each right answer and its EOS.

    Args:
        task: `lm_env.Task` of this environment, with any model.
    """
    from lm_env.tasks.base.exact import exact_ceiling

    answers = [[prompt.columns["answer"]] for prompt in task.prompts]
    return exact_ceiling(task, answers, [[1.0]] * len(answers), ended=True)


def task(level: int = 2) -> TextTask:
    """The task.

    Args:
        level: difficulty, 1 to 4, see `LEVELS`.
    """
    _check_level(level)
    return TextTask(
        id="lm_env/Arithmetic-v0",
        summary="answer a sum or a product; the score is 1 if the answer is right",
        source=lambda split: split_rows(problems(level), split),
        reward=right,
        model="arithmetic-0.4m",
        metrics={"is_a_number": format_right},
        beta=0.02,
        max_new_tokens=6,
        budget=30_000,
        success=1.0,
        highest=1.0,
        ceiling="exact: the reference's probability of the one right answer",
        optimum=optimum,
    )
