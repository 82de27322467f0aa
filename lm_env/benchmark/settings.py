"""The settings of a benchmark, from flags or a file: tasks, agents, seeds, and budgets that all agents share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from lm_env.benchmark.measures.baselines import BASELINE_NAMES
from lm_env.errors import ConfigurationError
from lm_env.explain import explained
from lm_env.runs.config_files import ABOUT
from lm_env.storage.yaml_text import parse_yaml
from lm_env.tasks import get_task
from lm_env.validation import check_field_types, check_integer, check_integers, check_known

__all__ = [
    "BASELINES",
    "AgentSpec",
    "BenchSettings",
    "Cell",
    "TaskSpec",
    "quick_settings",
    "read_settings",
    "slug",
]

BASELINES = "baselines"
MOST_TRIALS = 7
LONGEST_LABEL = 200
"""File systems take names of 255 bytes."""


def slug(name: str) -> str:
    """A name as part of a path: `lm_env/Sentiment-v0` becomes `lm_env.Sentiment-v0`."""
    return "".join(c if c.isalnum() or c in "-_." else "." for c in name).strip(".") or "unnamed"


@dataclass(frozen=True)
class TaskSpec:
    """A task of the benchmark."""

    name: str
    """What `lm_env.tasks.get_task` takes."""
    options: Mapping[str, Any]
    """The task's own options."""
    label: str
    """The name of the task in the results, by default its id, which `lm-env evaluate` names it by as well."""
    tokens: int | None = None
    """Training tokens per run; None: the benchmark's, else the task's own budget."""
    seeds: int | None = None
    """Runs of each agent; None: the benchmark's."""

    @classmethod
    def of(cls, given: Any) -> Self:
        """From a name, or a mapping with `task`, `label`, `tokens`, `seeds` and the task's own options."""
        rest = {"task": given} if isinstance(given, str) else _mapping("a task", given)
        name = rest.pop("task", None)
        if not isinstance(name, str):
            raise ConfigurationError(f"a task needs its name under 'task', not {given!r}")
        tokens, seeds = (
            None if (value := rest.pop(key, None)) is None else check_integer(key, value) for key in ("tokens", "seeds")
        )
        label = _label(rest.pop("label")) if "label" in rest else _task_id(name, rest)
        return cls(name, rest, label, tokens, seeds)


@dataclass(frozen=True)
class AgentSpec:
    """An agent of the benchmark."""

    name: str
    """A name of `lm-env train --agent`, or one's own `package.module:Class` or `file.py:Class`."""
    options: Mapping[str, Any]
    label: str

    @classmethod
    def of(cls, given: Any) -> Self:
        """From a name, or a mapping with `agent`, `label` and the agent's options."""
        if isinstance(given, str):
            return cls(given, {}, given.rpartition(":")[2] if ":" in given else given)
        rest = _mapping("an agent", given)
        name = rest.pop("agent", None)
        if not isinstance(name, str):
            raise ConfigurationError(f"an agent needs its name under 'agent', not {given!r}")
        label = _label(rest.pop("label", name.rpartition(":")[2]))
        if "seed" in rest:
            raise ConfigurationError(f"the seeds are the benchmark's: leave seed out of the options of {label}")
        return cls(name, rest, label)


@dataclass(frozen=True)
class Cell:
    """One piece of work: an agent on a task with a seed, a trial of its tuning, or the baselines of a task."""

    task: str
    """A label."""
    agent: str
    """A label; `baselines` for reference, random, best-of-n and the ceiling."""
    seed: int = 0
    trial: int | None = None
    """Which learning rate is tried; None: the run that is reported."""

    @property
    def path(self) -> Path:
        """Where its files are, relative to the benchmark's folder."""
        last = f"seed-{self.seed}" if self.trial is None else f"trial-{self.trial}"
        return Path("cells") / slug(self.task) / slug(self.agent) / last

    def __str__(self) -> str:
        if self.agent == BASELINES:
            return f"{self.task}: ceiling and baselines"
        what = f"seed {self.seed}" if self.trial is None else f"tuning trial {self.trial}"
        return f"{self.task}: {self.agent}, {what}"


@explained
@dataclass(frozen=True)
class BenchSettings:
    """The settings of a benchmark: tasks and agents, each with options of its own, and what is the same for all."""

    tasks: tuple[TaskSpec, ...]
    """The tasks that every agent is trained on."""
    agents: tuple[AgentSpec, ...]
    """The agents that are compared."""
    seeds: int = 5
    """Runs of each agent on each task, with the seeds `first_seed`, `first_seed` + 1, ..."""
    first_seed: int = 0
    """The seed of the first run."""
    tokens: int | None = None
    """Training tokens of a run; None: the task's own budget."""
    tune: int = 0
    """Learning rates that are tried per agent and task, on the validation prompts, before the runs; 0: none."""
    evaluations: int = 8
    """Points on a learning curve after the first."""
    curve_texts: int = 128
    """Texts of a point on a learning curve."""
    prompts: int = 128
    """Test prompts of the final evaluation and of the ceiling, at most: the first ones of the split."""
    texts: int = 512
    """Texts of the final evaluation; each prompt gets the same number."""
    ceiling_samples: int = 96
    """Samples of the reference per prompt that the ceiling starts with; it doubles them until it is accurate."""
    ceiling_most: int | None = None
    """The most samples per prompt for the ceiling; None: 16 times as many as at the start."""
    model: str | None = None
    """The model that all start from; None: the task's own."""
    independent: str | None = None
    """A language model that takes no part in the training, for a perplexity of its own."""
    device: str = "cpu"
    """The device of all models: cpu, cuda, ..."""
    threads: int = 1
    """Threads of torch in each process; with another number, results differ in their last bits."""
    download: bool = False
    """Allow fetching models and data sets from the hub."""
    keep_policies: bool = False
    """Keep the trained models."""

    def __post_init__(self) -> None:
        check_field_types(self)
        check_integers(self, "seeds", "evaluations", "curve_texts", "prompts", "texts", "threads")
        check_integer("ceiling_samples", self.ceiling_samples, low=16)  # best-of-16 takes as many
        if not 0 <= check_integer("tune", self.tune, low=0) <= MOST_TRIALS:
            raise ConfigurationError(f"tune must be at most {MOST_TRIALS} learning rates, not {self.tune}")
        check_integer("first_seed", self.first_seed, low=0)
        if self.ceiling_most is not None:
            check_integer("ceiling_most", self.ceiling_most, low=self.ceiling_samples)
        if self.tokens is not None:
            check_integer("tokens", self.tokens)
        for what, specs in (("task", self.tasks), ("agent", self.agents)):
            labels = [slug(spec.label) for spec in specs]
            if not labels:
                raise ConfigurationError(f"a benchmark needs at least one {what}")
            if twice := next((label for label in labels if labels.count(label) > 1), None):
                raise ConfigurationError(f"two {what}s are called {twice}: give one of them a label")
            if long := next((label for label in labels if len(label.encode()) > LONGEST_LABEL), None):
                raise ConfigurationError(
                    f"a label names a folder and has at most {LONGEST_LABEL} bytes: give the {what} {long[:40]}... a"
                    " shorter one"
                )
        for spec in self.agents:
            if spec.label in BASELINE_NAMES or slug(spec.label) == BASELINES:
                raise ConfigurationError(
                    f"no agent can be called {spec.label}, as a baseline is: give it another label"
                )

    def seed_numbers(self, task: TaskSpec) -> range:
        """The seeds of the runs on a task."""
        return range(self.first_seed, self.first_seed + (task.seeds or self.seeds))

    def task(self, label: str) -> TaskSpec:
        """The task of that label."""
        return next(spec for spec in self.tasks if spec.label == label)

    def agent(self, label: str) -> AgentSpec:
        """The agent of that label."""
        return next(spec for spec in self.agents if spec.label == label)

    def cells(self) -> list[Cell]:
        """All cells in the order of the results: baselines, tuning trials, then the runs, which wait for the trials."""
        found = [Cell(task.label, BASELINES) for task in self.tasks]
        pairs = [(task, agent.label) for task in self.tasks for agent in self.agents]
        found += [Cell(task.label, agent, trial=trial) for task, agent in pairs for trial in range(self.tune)]
        return found + [Cell(task.label, agent, seed) for task, agent in pairs for seed in self.seed_numbers(task)]

    def shared(self) -> dict[str, Any]:
        """The settings that must not change between two calls with the same folder; the others may."""
        own = asdict(self)
        free = ("tasks", "agents", "seeds", "keep_policies", "download")
        return {name: value for name, value in own.items() if name not in free}

    def as_options(self) -> dict[str, Any]:
        """The settings as a mapping that `of` takes."""
        tasks = []
        for task in self.tasks:
            own = {name: value for name in ("tokens", "seeds") if (value := getattr(task, name)) is not None}
            tasks.append({"task": task.name, "label": task.label, **own, **task.options})
        agents = [{"agent": agent.name, "label": agent.label, **agent.options} for agent in self.agents]
        rest = {name: value for name, value in asdict(self).items() if name not in ("tasks", "agents")}
        return {"tasks": tasks, "agents": agents, **{name: value for name, value in rest.items() if value is not None}}

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """From a mapping as it stands in a file.

        Raises:
            ConfigurationError: an option does not exist, or has an impossible value.
        """
        given = dict(options)
        check_known("lm-env bench", given, list(cls.__dataclass_fields__))
        for name, kind in (("tasks", TaskSpec), ("agents", AgentSpec)):
            value = given.get(name)
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise ConfigurationError(f"{name} must be a list, not {value!r}")
            given[name] = tuple(kind.of(part) for part in value)
        return cls(**given)


def read_settings(path: str | Path, **over: Any) -> BenchSettings:
    """The settings in a .yaml file; `over` replaces options of the file.

    Raises:
        ConfigurationError: the file cannot be read or holds something else.
    """
    try:
        content = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} is no readable YAML ({' '.join(str(error).split())}): correct it") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} holds no benchmark: write lines such as 'agents: [ppo, rloo]'")
    content.pop(ABOUT, None)  # what an earlier call has noted
    return BenchSettings.of({**content, **over})


def quick_settings(settings: BenchSettings) -> BenchSettings:
    """The settings cut to a few minutes: at most three seeds, small budgets, few texts.  The numbers prove nothing."""
    return replace(
        settings,
        seeds=min(settings.seeds, 3),
        tokens=min(settings.tokens or 8000, 8000),
        tasks=tuple(replace(task, tokens=None, seeds=None) for task in settings.tasks),
        evaluations=min(settings.evaluations, 4),
        curve_texts=min(settings.curve_texts, 64),
        prompts=min(settings.prompts, 32),
        texts=min(settings.texts, 128),
        ceiling_samples=min(settings.ceiling_samples, 64),
        ceiling_most=512 if settings.ceiling_most is None else settings.ceiling_most,
        tune=0,
    )


def _task_id(name: str, options: Mapping[str, Any]) -> str:
    """The id of a task, without the package's own prefix; one that is a user's function has to be made for it."""
    return (get_task(name, **options).id if ":" in name else name).removeprefix("lm_env/")


def _label(given: Any) -> str:
    """A label as it stands in a file: a text with something to read in it, or a number."""
    if isinstance(given, bool) or not isinstance(given, str | int | float) or not str(given).strip():
        raise ConfigurationError(f"a label is a text, not {given!r}: leave it out, or name the row of the tables")
    return str(given)


def _mapping(what: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise ConfigurationError(f"{what} is a name or a mapping of options, not {given!r}")
    return dict(given)
