"""Tasks by name: the package's own and a user's, as objects and as environments.

A name is an id that is registered here, `module:id` (the module is imported first, as Gymnasium does), or a function
that returns a `TextTask`: `module:function` or `file.py:function`.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gymnasium

from lm_env.errors import ConfigurationError
from lm_env.tasks.base.splits import Split
from lm_env.tasks.base.text_task import TextTask
from lm_env.validation import check_known

if TYPE_CHECKING:
    from lm_env.envs.env import TextGenerationEnv
    from lm_env.envs.vector_env import TextGenerationVectorEnv

__all__ = [
    "get_task",
    "is_text_task",
    "make_env",
    "make_named",
    "make_vec_env",
    "register_task",
    "task_names",
    "task_parameters",
    "with_own_options",
]

ENTRY_POINT = "lm_env.tasks:make_env"
VECTOR_ENTRY_POINT = "lm_env.tasks:make_vec_env"
FUNCTIONS: dict[str, Callable[..., TextTask]] = {}
"""`module:function` -> a function that was registered as an object.  It is kept here because a function of a script or
a notebook cannot be imported by its name."""


def register_task(id: str, function: str | Callable[..., TextTask]) -> None:
    """Make a task known by its id, to `get_task`, `gymnasium.make` and `lm-env train --env`.

    Registering an id again replaces what it stood for.

    Args:
        id: `"namespace/Name-v0"`.
        function: returns the `TextTask`; its parameters become options of the environment.  It may be named, as
            `"module:function"` or `"file.py:function"`, and is then imported when it is needed.

    Raises:
        ConfigurationError: the id is malformed, or belongs to an environment that is no text task.
    """
    home = function if isinstance(function, str) else f"{function.__module__}:{function.__qualname__}"
    if not isinstance(function, str):
        FUNCTIONS[home] = function
    known = gymnasium.registry.pop(id, None)
    if known is not None and not _is_ours(known):
        gymnasium.registry[id] = known
        raise ConfigurationError(f"{id} is another environment's id: choose another name for the task")
    try:
        gymnasium.register(
            id=id,
            entry_point=ENTRY_POINT,
            vector_entry_point=VECTOR_ENTRY_POINT,
            kwargs={"task": home},
            # No wrapper hides `publish`, `score`, `fork` and `task`: the environment enforces the order of
            # calls itself, and Gymnasium's checker is run on it in the tests.
            order_enforce=False,
            disable_env_checker=True,
        )
    except gymnasium.error.Error as error:
        raise ConfigurationError(f"{id!r} is no id ({error}): write 'namespace/Name-v0'") from error


def task_names() -> list[str]:
    """The registered ids of text tasks, a user's included, in the order of their registration."""
    return [name for name, spec in gymnasium.registry.items() if _is_ours(spec)]


def get_task(name: str, **options: Any) -> TextTask:
    """The task of a name.

    Args:
        name: a registered id, `module:id`, `module:function` or `file.py:function`, as this file's beginning explains.
        options: parameters of the task's own function, such as `level=` of `lm_env/Arithmetic-v0`.

    Raises:
        ConfigurationError: there is no such task, it has no such option, or the option has an impossible value.
    """
    function = _function(name)
    known = _parameters(function)
    if options and not known:
        raise ConfigurationError(
            f"the task {name} has no options of its own, such as {next(iter(options))!r}: leave it out"
        )
    check_known(f"the task {name}", options, known)
    made = function(**options)
    if not isinstance(made, TextTask):
        raise ConfigurationError(f"{name} must be a function that returns a TextTask, not {type(made).__name__}")
    return made


def task_parameters(name: str) -> tuple[str, ...]:
    """The options that a task has of its own, beside those of every environment."""
    return _parameters(_function(name))


def make_env(task: str, split: Split = "train", **options: Any) -> TextGenerationEnv:
    """The environment of a task by name; what `gymnasium.make` calls.

    Args:
        split: which prompts: train, validation or test.
        options: the task's own, and those of `TextGenerationEnv` and `lm_env.Task`, which replace the task's.
    """
    made, rest = with_own_options(task, options)
    return made.make(split, **rest)


def make_vec_env(task: str, num_envs: int = 1, split: Split = "train", **options: Any) -> TextGenerationVectorEnv:
    """The environment of several slots; what `gymnasium.make_vec` calls."""
    made, rest = with_own_options(task, options)
    return made.make_vec(num_envs, split, **rest)


def make_named(name: str, **options: Any) -> gymnasium.Env:
    """An environment by any name: what `gymnasium.make` takes, and `module:function` or `file.py:function` of a task.

    Raises:
        ConfigurationError: there is none of this name, or an option cannot work.
    """
    try:
        if ":" in name and is_text_task(name):
            return make_env(name, **options)
        return gymnasium.make(name, **options)
    except (gymnasium.error.Error, ModuleNotFoundError, TypeError) as error:
        reason = " ".join(str(error).split())
        similar = _similar(name) if isinstance(error, gymnasium.error.UnregisteredEnv) else None
        meant = "" if similar is None else f"did you mean {similar!r}?  "
        raise ConfigurationError(
            f"{name} cannot be made ({reason}): {meant}`lm-env envs` lists the environments"
        ) from error


def is_text_task(name: str) -> bool:
    """Whether there is a text task of this name."""
    try:
        task_parameters(name)
    except ConfigurationError:
        return False
    return True


def with_own_options(name: str, options: dict[str, Any]) -> tuple[TextTask, dict[str, Any]]:
    """The task of a name, made with those of the options that are its own, and the other options."""
    own = set(task_parameters(name))
    made = get_task(name, **{key: value for key, value in options.items() if key in own})
    return made, {key: value for key, value in options.items() if key not in own}


def _is_ours(spec: Any) -> bool:
    return spec.entry_point == ENTRY_POINT


def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def _similar(name: str) -> str | None:
    """The registered id that is spelled most like a name, their namespaces aside; None if none is similar."""
    bare = {id.rpartition("/")[2]: id for id in task_names()}
    found = difflib.get_close_matches(name.rpartition("/")[2], bare, n=1)
    return bare[found[0]] if found else None


def _function(name: str) -> Callable[..., Any]:
    """The function behind a name."""
    from lm_env.objective.functions import load_function

    if name in FUNCTIONS:
        return FUNCTIONS[name]
    home, _, last = name.rpartition(":")
    if home and "/" not in last and not re.search(r"-v\d+$", last):
        return load_function(name, "the task's own options")
    if home:
        try:
            importlib.import_module(home)
        except ImportError as error:
            raise ConfigurationError(f"{name}: the module {home} cannot be imported ({error})") from error
    spec = gymnasium.registry.get(last)
    if spec is None or not _is_ours(spec):
        similar = _similar(last)
        if spec is None and similar is not None:
            raise ConfigurationError(
                f"{name}: there is no task of this name; did you mean {similar!r}?  `lm-env envs` lists all"
            )
        problem = "there is no task of this name" if spec is None else "this environment is no text task"
        raise ConfigurationError(
            f"{name}: {problem}: choose from {', '.join(task_names())}, or write 'module:id' or 'file.py:function' for"
            " your own"
        )
    named = spec.kwargs["task"]
    return FUNCTIONS.get(named) or load_function(named, "the task's own options")
