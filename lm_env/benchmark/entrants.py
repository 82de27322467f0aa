"""Entrants of a benchmark: the agents of `lm-env train`, `sft` and `dpo`, those of other libraries, and a user's own.

`entrant(spec)` gives each of them the same function `train`, which trains the task's own model in place for a number of
tokens.  A user's entrant is named as `package.module:NAME` or `file.py:NAME`, where NAME is one of these:

- a subclass of `agents.base.BatchedAgent`: it has a learning curve, and goes on from a checkpoint after a kill;
- another class: `Class(env, seed=..., **options)` with `learn(timesteps)`; `env` has one slot;
- a function `train(env, timesteps, seed=..., **options)`; `env` has 32 slots and does not reset itself.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lm_env
from agents import AGENTS
from agents.base import ActorCritic, BatchedAgent
from agents.base.config import make_config
from lm_env.benchmark.measures.curve import LearningCurve
from lm_env.benchmark.offline import OFFLINE
from lm_env.benchmark.process_settings import keep_process_settings
from lm_env.benchmark.settings import AgentSpec
from lm_env.errors import ConfigurationError, MissingDependencyError
from lm_env.objective.functions import load_named
from lm_env.objective.task import Task
from lm_env.runs.agents import agent_kind, agent_names
from lm_env.runs.options import check_names
from lm_env.storage import Checkpointing, checkpoints_in

__all__ = ["EXAMPLES", "Entrant", "Trained", "entrant"]

SLOTS = 32
"""Slots of the environment that a function trains on: so many texts are written at a time."""
CHECKPOINTS_PER_RUN = 8


class Example(NamedTuple):
    """Where an agent is that trains by a script."""

    library: str
    file: str
    """In the repository's examples."""
    attribute: str = "train"
    """The function or class in that file."""


EXAMPLES = {
    "tianshou-ppo": Example("tianshou", "tianshou_ppo.py"),
    "torchrl-ppo": Example("torchrl", "torchrl_ppo.py"),
    "trl-grpo": Example("trl", "trl_agents.py", "GRPOFromTRL"),
    "trl-rloo": Example("trl", "trl_agents.py", "RLOOFromTRL"),
}
"""Name -> its script."""

Kind = Literal["batched", "sb3", "class", "function"]


@dataclass(frozen=True)
class Trained:
    """What a training returns; the task's model itself was changed in place."""

    agent: Any
    """None for a function."""
    tokens: int
    """Generated tokens as the agent counts them; for a function, the tokens that it was asked for."""


@dataclass(frozen=True)
class Entrant:
    """An agent that can be trained on any task."""

    spec: AgentSpec
    kind: Kind
    train: Callable[..., Trained]
    """`train(make, tokens, seed, curve_of, folder)`, see `entrant`."""
    learning_rate: float | None
    """The learning rate that it trains with unless another is given; None: it has no such option, and is not tuned."""

    @property
    def resumes(self) -> bool:
        """Whether a killed run resumes from its checkpoint and ends with the same weights; if not, it begins again."""
        return self.kind == "batched"


@keep_process_settings()  # the module of a user's agent may change some while it is imported
def entrant(spec: AgentSpec) -> Entrant:
    """The entrant of a name, its options checked.

    Its `train` takes a function `make(num_envs)` that makes the environment, the tokens, the seed, a function
    `curve_of(task)` that makes the `LearningCurve`, and a folder for checkpoints.

    Raises:
        ConfigurationError: there is none of that name, or it does not have an option.
        MissingDependencyError: its library is not installed.
    """
    if spec.name in EXAMPLES:
        return _own(spec, _example(spec.name))
    if spec.name in OFFLINE:
        learner = OFFLINE[spec.name]
        make_config(learner.Config, spec.name, spec.options)
        return Entrant(spec, "class", _train_class(learner, spec), _learning_rate(learner.Config, spec))
    if ":" in spec.name:
        return _own(spec, load_named(spec.name, "train(env, timesteps, seed)"))
    names = [*agent_names(), *OFFLINE, *EXAMPLES]
    if spec.name not in names:
        similar = difflib.get_close_matches(spec.name, names, n=1)
        meant = f"did you mean {similar[0]!r}?" if similar else f"choose from {', '.join(sorted(names))}"
        raise ConfigurationError(f"there is no agent {spec.name!r} (yours would be 'file.py:NAME'): {meant}")
    known = agent_kind(spec.name)
    check_names(spec.options, known.options, f"the agent {spec.name}")
    options = {name: known.options[name].parse(value) for name, value in spec.options.items()}
    if spec.name in AGENTS:
        _check_config(AGENTS[spec.name], spec.name, options)
    default = known.options["learning_rate"].default if "learning_rate" in known.options else None

    def train(
        make: Callable[[int], Any], tokens: int, seed: int, curve_of: Callable[[Task], LearningCurve], folder: Path
    ) -> Trained:
        env = make(1)
        agent = known.make(env, seed=seed, log_dir=None, verbose=0, **options)
        curve = curve_of(env.unwrapped.task)
        agent = known.learn(agent, tokens, callback=[curve], progress_bar=False, **_checkpoints(folder, tokens))
        return Trained(agent, int(agent.num_timesteps))

    return Entrant(spec, "sb3" if known.of_sb3 else "batched", train, options.get("learning_rate", default))


def _checkpoints(folder: Path, tokens: int) -> dict[str, Any]:
    """Arguments of `learn`: checkpoints as it goes, and the newest one to go on from where there is one."""
    return {
        "checkpoint": Checkpointing(folder, max(1, tokens // CHECKPOINTS_PER_RUN), 1),
        "resume": bool(checkpoints_in(folder)),
    }


def _own(spec: AgentSpec, thing: Callable[..., Any]) -> Entrant:
    """A user's class or function."""
    if not isinstance(thing, type):
        _check_call(thing, spec, "timesteps", needed="(env, timesteps, seed)")
        _check_runs_at_once(thing, spec.name)
        return Entrant(spec, "function", _train_function(thing, spec.options), _learning_rate(thing, spec))
    if issubclass(thing, BatchedAgent):
        if thing.__init__ is BatchedAgent.__init__ or thing.__init__ is ActorCritic.__init__:
            _check_config(thing, spec.name, spec.options)
        return Entrant(spec, "batched", _train_batched(thing, spec.options), _learning_rate(thing.Config, spec))
    if not callable(getattr(thing, "learn", None)):
        raise ConfigurationError(f"{spec.name} has no method learn(timesteps): an agent of a benchmark needs one")
    _check_call(thing, spec, needed="(env, seed)")
    _check_learn(thing, spec.name)
    return Entrant(spec, "class", _train_class(thing, spec), _learning_rate(thing, spec))


def _check_config(agent_class: Any, name: str, options: Mapping[str, Any]) -> None:
    """Raise ConfigurationError for an option that the agent does not have, or with an impossible value."""
    of_class = {*inspect.signature(BatchedAgent).parameters, *inspect.signature(ActorCritic).parameters}
    make_config(agent_class.Config, name, {key: value for key, value in options.items() if key not in of_class})


def _check_call(thing: Callable[..., Any], spec: AgentSpec, *places: str, needed: str) -> None:
    """Raise ConfigurationError unless a user's class or function can be called with a seed and the given options."""
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):  # written in C: nothing is known before it is called
        return
    try:
        signature.bind(None, *places, seed=0, **spec.options)
    except TypeError as error:
        raise ConfigurationError(
            f"{spec.name} cannot be called with (env, {''.join(f'{place}, ' for place in places)}seed=...,"
            f" **options): {error}; it needs {needed}, and a parameter for each of its options"
        ) from error


def _check_learn(agent_class: Any, name: str) -> None:
    """Raise ConfigurationError unless `learn` can be called with a number of tokens, and then learns."""
    try:
        inspect.signature(agent_class.learn).bind(None, 1)
    except TypeError as error:
        raise ConfigurationError(f"{name}.learn cannot be called with a number of tokens: {error}") from error
    except ValueError:  # written in C: nothing is known before it is called
        return
    _check_runs_at_once(agent_class.learn, f"{name}.learn")


def _check_runs_at_once(function: Callable[..., Any], name: str) -> None:
    """Raise ConfigurationError for a generator or a coroutine: a call of one runs nothing, so nothing is trained."""
    kinds = (inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction)
    if any(is_kind(function) for is_kind in kinds):
        raise ConfigurationError(f"{name} has a yield or an async, and does not run when it is called: leave it out")


def _tokens_of(agent: Any, name: str, asked: int) -> int:
    """The tokens that an agent has counted in `num_timesteps`, or those that it was asked for."""
    counted = getattr(agent, "num_timesteps", asked)
    try:
        tokens = int(counted)
    except (TypeError, ValueError, OverflowError):
        tokens = -1
    if tokens < 0:
        raise ConfigurationError(f"num_timesteps of {name} is {counted!r}, and counts tokens: leave it out, or count")
    return tokens


def _train_batched(agent_class: Callable[..., Any], options: Mapping[str, Any]) -> Callable[..., Trained]:
    def train(make: Callable[[int], Any], tokens: int, seed: int, curve_of: Any, folder: Path) -> Trained:
        agent = agent_class(make(1), seed=seed, **options)
        agent.learn(tokens, callback=[curve_of(agent.task)], **_checkpoints(folder, tokens))
        return Trained(agent, int(agent.num_timesteps))

    return train


def _train_class(agent_class: Callable[..., Any], spec: AgentSpec) -> Callable[..., Trained]:
    def train(make: Callable[[int], Any], tokens: int, seed: int, curve_of: Any, folder: Path) -> Trained:
        env = make(1)
        curve = curve_of(env.unwrapped.task)
        curve.add_point(0)
        with keep_process_settings():
            agent = agent_class(env, seed=seed, **spec.options)
            curve.start_clock()
            agent.learn(tokens)
        done = _tokens_of(agent, spec.name, tokens)
        curve.add_point(done)
        return Trained(agent, done)

    return train


def _train_function(function: Callable[..., Any], options: Mapping[str, Any]) -> Callable[..., Trained]:
    quiet = {"verbose": False} if "verbose" in _parameters(function) else {}

    def train(make: Callable[[int], Any], tokens: int, seed: int, curve_of: Any, folder: Path) -> Trained:
        env = make(SLOTS)
        curve = curve_of(env.unwrapped.task)
        curve.add_point(0)
        curve.start_clock()
        with keep_process_settings():
            function(env, tokens, seed=seed, **{**quiet, **options})
        curve.add_point(tokens)
        return Trained(None, tokens)

    return train


def _learning_rate(of: Callable[..., Any], spec: AgentSpec) -> float | None:
    """The value or the default of an option `learning_rate`."""
    parameter = _parameters(of).get("learning_rate")
    default = None if parameter is None or not isinstance(parameter.default, float) else parameter.default
    return spec.options.get("learning_rate", default)


def _parameters(of: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The parameters of a class or function by name; none of one that is written in C and does not tell them."""
    try:
        return inspect.signature(of).parameters
    except (TypeError, ValueError):
        return {}


def _example(name: str) -> Callable[..., Any]:
    """The function or class of an example, which is in the repository and not in the installed package."""
    library, file, attribute = EXAMPLES[name]
    path = Path(lm_env.__file__).parents[1] / "examples" / file
    if not path.is_file():
        raise MissingDependencyError(
            f"{name} is an example of the repository, examples/{file}: copy it and give it as 'FILE:{attribute}',"
            f" with {library} installed (pip install {library})"
        )
    try:
        return load_named(f"{path}:{attribute}", "train(env, timesteps, seed)")
    except ConfigurationError as error:
        if isinstance(error.__cause__, ImportError):
            raise MissingDependencyError(f"{name} needs {library}: pip install {library}") from error
        raise
