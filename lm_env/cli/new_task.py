"""`lm-env new-task NAME`: the file of a task of one's own, and a test of it, to begin with."""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from lm_env.errors import ConfigurationError

__all__ = ["new_task", "write_task"]

TASK = '''"""{id}: say in a line what is to be written, and how it is judged."""

from lm_env.tasks import TextTask, register_task

PROMPTS = [f"The {{noun}} {{verb}}" for noun in ("film", "story", "music", "actor") for verb in ("is", "was", "has")]
WANTED = ("beautiful", "best", "enjoy", "excellent", "good", "great", "love", "wonderful")


def score(prompts, responses, **columns):
    """Half a point for each wanted word, at most 1.  Further columns of the prompts come by name."""
    return [min(1.0, sum(word in response.lower() for word in WANTED) / 2) for response in responses]


def words(prompts, responses, **columns):
    """What else is measured: the number of words."""
    return [float(len(response.split())) for response in responses]


def task() -> TextTask:
    """The task; parameters of this function would be options of the environment."""
    return TextTask(
        id="{id}",
        summary="say it in a line",
        source=PROMPTS,  # or a .jsonl file, a hub id, or {{"train": ..., "validation": ..., "test": ...}}
        reward=score,
        metrics={{"words": words}},
        model="reviews-3m",
        beta=0.1,
        max_new_tokens=16,
        budget=20_000,  # tokens
        highest=1.0,
        options={{"stop_strings": (".", "!", "?")}},  # a text ends with its sentence
    )


register_task("{id}", task)
'''

TEST = '''"""The task of {name}.py is sound, and its score says what it should."""

from {name} import score, task

from lm_env.tasks import check_task


def test_the_task_is_sound():
    check_task(task())


def test_a_better_text_scores_more():
    two, one, none = score(["", "", ""], [" a good story, and a great cast", " a good story", " a story"])
    assert two > one > none


def test_the_environment_pays_the_score():
    env = task().make("test")
    env.reset(seed=0)
    done = False
    while not done:
        _, _, terminated, truncated, info = env.step(env.action_space.sample())
        done = terminated or truncated
    assert 0 <= info["score"] <= 1
'''


def new_task(
    name: Annotated[str, typer.Argument(help="What the task is called; a Python identifier, such as politeness.")],
    out: Annotated[Path, typer.Option(help="The folder that the two files are written to.")] = Path("."),
) -> None:
    """Write the file of a task of your own, and a test of it; both run as they are, to be changed step by step."""
    task, test = write_task(name, out)
    id = task_id(name)
    print(f"{task}: the task {id}; fill in prompts and score\n{test}: its test")
    print(f"  pytest {test}")
    print(f"  lm-env preflight {task}:task")
    print(f"  lm-env train --env {task}:task --out runs/{name}")
    print(f"  lm-env sample --env {task}:task --model runs/{name}/policy")


def task_id(name: str) -> str:
    """The id of a task by the name of its file: `my/Politeness-v0`."""
    return f"my/{''.join(part.title() for part in name.split('_'))}-v0"


def write_task(name: str, out: Path) -> tuple[Path, Path]:
    """Write NAME.py and test_NAME.py; returns their paths.

    Raises:
        ConfigurationError: the name is no identifier in lower case, or that of a module that Python or a package has,
            or one of the files is there, or cannot be written.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise ConfigurationError(
            f"{name!r} cannot be the name of a module: write it in lower case, beginning with a letter, such as"
            " politeness"
        )
    if name in sys.stdlib_module_names or _is_installed(name, out):
        raise ConfigurationError(
            f"{name!r} is the name of a module already, and a file {name}.py would take its place: choose another name"
        )
    paths = (out / f"{name}.py", out / f"test_{name}.py")
    for path in paths:
        if path.exists():
            raise ConfigurationError(f"{path} is there already: choose another name, or another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, (TASK, TEST), strict=True):
            path.write_text(text.format(id=task_id(name), name=name), encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{out} cannot be written ({error}): choose another --out") from error
    return paths


def _is_installed(name: str, out: Path) -> bool:
    """Whether a module of this name is found elsewhere than in the working folder and the one to write to."""
    found = importlib.util.find_spec(name)
    here = (Path.cwd(), out.resolve())
    return found is not None and found.origin is not None and Path(found.origin).parent not in here
