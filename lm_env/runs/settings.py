"""The settings of a training run: a flag overrides the file of options, and the file overrides the defaults.

A file is flat: its keys are the names of the options, including those of the chosen agent.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self

from lm_env.errors import ConfigurationError
from lm_env.explain import explained
from lm_env.models.loading import EMBEDDED_MODEL
from lm_env.objective.task import Task
from lm_env.runs.agents import AgentKind, agent_kind
from lm_env.runs.config_files import named_values, read_config
from lm_env.runs.folder import RunFolder
from lm_env.runs.options import Option, check_names, fields_as_options
from lm_env.tasks import TextTask, get_task, is_text_task
from lm_env.validation import check_integers, check_numbers

__all__ = ["LoraSettings", "RunSettings", "TaskSettings", "TrainSettings", "options_of", "resumed_settings"]

TIMESTEPS = 100_000
"""The tokens of a run without a registered task, whose budget would be the default."""

MAY_CHANGE = ("timesteps", "device", "download", "checkpoint_every", "checkpoint_keep")
"""Options that may differ when a run is resumed."""


@explained
@dataclass(frozen=True)
class RunSettings:
    """Which agent is trained, for how long, how it is evaluated, and what is saved."""

    agent: str = "ppo"
    """The name of the agent, or your own class, 'file.py:Class'."""
    timesteps: int | None = None
    """Tokens generated in training, in total; whole rollouts are generated, so the last one may exceed it."""
    seed: int = 0
    """The seed of everything random: prompts, sampling, minibatches, new weights."""
    checkpoint_every: int | None = None
    """Tokens between two checkpoints, from which an interrupted run resumes; made after a rollout, and at a signal."""
    checkpoint_keep: int = 2
    """How many of the newest checkpoints are kept."""
    eval_prompts: str | None = None
    """Held-out prompts to evaluate on: a file or hub id; none: the environment's test split, else the training's."""
    eval_fraction: float = 0.0
    """Hold out this share of the prompts for the evaluation."""
    eval_every: int | None = None
    """Tokens between two evaluations; 0: only the two before and after the training, which are always made."""
    eval_texts: int = 128
    """Texts per evaluation: one for each of this many prompts, or several for each if there are fewer prompts."""
    eval_ceiling: bool = False
    """First estimate the optimum on these prompts, to log the attained share of the possible gain; takes a while."""

    def __post_init__(self) -> None:
        check_integers(self, "eval_texts", "checkpoint_keep")
        check_integers(self, "seed", low=0)
        if self.timesteps is not None:
            check_integers(self, "timesteps")
        check_numbers(self, "eval_fraction", low=0.0, high=0.9)
        if self.checkpoint_every is not None:
            check_integers(self, "checkpoint_every")
        if self.eval_every is not None:
            check_integers(self, "eval_every", low=0)
        if self.eval_prompts is not None and self.eval_fraction > 0:
            raise ConfigurationError("eval_prompts and eval_fraction both say what to evaluate on: give one of them")


@explained
@dataclass(frozen=True)
class TaskSettings:
    """Model, prompts, reward and the end of a text; None: the default of the environment or of `lm_env.Task`."""

    env: str | None = None
    """A registered environment, such as lm_env/Sentiment-v0, or your own as module:id or file.py:function."""
    model: str | None = None
    """The model that is trained: 'reviews-3m' (embedded), a folder in transformers' layout, or a hub id."""
    prompts: str | None = None
    """A .txt file with a prompt per line, a .jsonl file (its other columns go to the reward), or a hub id."""
    reward: str | None = None
    """'lexicon', 'package.module:function', 'file.py:function', the folder of a reward model, a classifier's folder
    or hub id, or the address of a reward server, http://..."""
    reference: str | None = None
    """The frozen model of the KL penalty; none: the model as it is before the training."""
    tokenizer: str | None = None
    """A tokenizer's folder or hub id; none: the one beside the model."""
    beta: float | None = None
    """Weight of the KL penalty, reward per nat."""
    adaptive_kl: float | None = None
    """Adapt beta so that the KL approaches this many nats per response."""
    max_new_tokens: int | None = None
    """Length cap of a response, tokens."""
    temperature: float | None = None
    """Divides the logits in sampling, of policy and reference alike."""
    prompt_column: str | None = None
    """The column that holds the prompt; none: the first of prompt, text, question, query."""
    max_prompt_tokens: int | None = None
    """The longest prompt allowed; none: the longest there is."""
    overflow: Literal["error", "truncate"] | None = None
    """What happens to a longer prompt: it is an error, or is cut at its beginning."""
    add_special_tokens: bool | None = None
    """Let the tokenizer add its special tokens to a prompt, usually a BOS."""
    eos_token_id: tuple[int, ...] | None = None
    """Ids that end a text; none: the tokenizer's."""
    stop_strings: tuple[str, ...] | None = None
    """Strings that end a text; the reward sees the text before them."""
    missing_eos_score: float | None = None
    """Paid instead of the score if the length cap ends a text."""
    cap_truncates: bool | None = None
    """If the length cap ends a text, no score is paid, and the episode counts as truncated."""
    action_mask: str | None = None
    """'package.module:function' or 'file.py:function' that says which tokens may come next."""
    split: str | None = None
    """Which split of a registered environment's prompts: train, validation or test."""
    env_option: tuple[str, ...] | None = None
    """An option of the environment's own, as NAME=VALUE, such as level=3 or source=problems.jsonl."""
    quantize: Literal["8bit", "4bit"] | None = None
    """Load the model, given by name, in fewer bits, and train adapters on it (lora)."""
    device: str = "cpu"
    """Where the models are: cpu, cuda, cuda:1, ..."""
    download: bool = False
    """Allow fetching hub ids; nothing is downloaded otherwise."""

    def __post_init__(self) -> None:
        if self.env is None and (self.prompts is None or self.reward is None):
            missing = "prompts" if self.prompts is None else "reward"
            raise ConfigurationError(
                f"no task: give env (`lm-env envs` lists them), or prompts and reward of your own; {missing} is missing"
            )
        if self.quantize is not None and self.model is None:
            raise ConfigurationError("quantize says how the model is loaded: name it with model")
        if self.env is None and self.split is not None:
            raise ConfigurationError(
                "split chooses among a registered environment's prompts: give env, or leave it out"
            )
        if self.env is None and self.env_option is not None:
            raise ConfigurationError("env_option is an option of an environment: give env, or leave it out")
        self.own_options()

    @property
    def registered(self) -> TextTask | None:
        """The registered task; None where `env` is none.

        Raises:
            ConfigurationError: the task does not take the options of its own that are given.
        """
        return get_task(self.env, **self.own_options()) if self.env is not None and is_text_task(self.env) else None

    @property
    def budget(self) -> int | None:
        """The budget of the registered task, tokens; None where `env` is none.  Raises: as `registered`."""
        found = self.registered
        return None if found is None else found.budget

    def own_options(self) -> dict[str, Any]:
        """The options of the environment's own, by name; numbers, true and false in their own types.

        Raises:
            ConfigurationError: one is not written as NAME=VALUE, or is given twice.
        """
        return named_values(self.env_option or ())


@explained
@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), which are trained in place of the model's own weights."""

    lora: int | None = None
    """The rank of the adapters; none: all weights are trained."""
    lora_alpha: int | None = None
    """The adapters are scaled by alpha / rank; none: twice the rank."""
    lora_targets: tuple[str, ...] = ("all-linear",)
    """Names of the layers that get an adapter; all-linear: all but the output layer."""

    def __post_init__(self) -> None:
        if self.lora is not None:
            check_integers(self, "lora")
        if self.lora_alpha is not None:
            check_integers(self, "lora_alpha")


TASK_DEFAULTS = ("beta", "max_new_tokens", "temperature", "overflow", "add_special_tokens", "cap_truncates")
"""Options whose default is the environment's, or the one of `Task`."""

SECTIONS: dict[str, type] = {"run": RunSettings, "task": TaskSettings, "lora": LoraSettings}


@lru_cache
def options_of(section: str) -> Mapping[str, Option]:
    """The options of `run`, `task` or `lora` by name; they are made once, so they cannot be changed."""
    if section != "task":
        words = {
            "timesteps": f"the task's budget; without a registered task {TIMESTEPS}",
            "eval_every": "a fifth of timesteps",
            "checkpoint_every": "ten minutes",
        }
        return MappingProxyType(fields_as_options(SECTIONS[section], **words))
    own = {name: p.default for name, p in inspect.signature(Task).parameters.items()}
    unset = {name: f"the environment's, else {_plain(own[name])}" for name in TASK_DEFAULTS}
    unset["model"] = f"the environment's, else {EMBEDDED_MODEL}"
    return MappingProxyType(fields_as_options(TaskSettings, **unset))


def _plain(value: Any) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value) if value != () else "none"


@dataclass(frozen=True)
class TrainSettings:
    """All options of a training run except the folder that it writes to.

    `TrainSettings.of(agent="rloo", env="lm_env/Sentiment-v0", learning_rate=2e-4)` sorts flat options into the
    sections, and `options()` gives them back.
    """

    run: RunSettings
    task: TaskSettings
    lora: LoraSettings = field(default_factory=LoraSettings)
    agent_options: Mapping[str, Any] = field(default_factory=dict)
    """The options of the agent that were given, or all of them once it is made."""

    @classmethod
    def of(cls, config: str | Path | None = None, /, **options: Any) -> Self:
        """The settings from a file and from options, which override those of the file.

        Args:
            config: a .yaml, .yml or .toml file, such as the run.yaml of another run.
            options: of the run, the task, LoRA, or the agent.

        Raises:
            ConfigurationError: an option does not exist, or its value has another type or is impossible.
        """
        given = {**(read_config(config) if config is not None else {}), **options}
        kind = agent_kind(given.get("agent", RunSettings.agent))
        sections = {name: options_of(name) for name in SECTIONS}
        known = {name: option for section in (*sections.values(), kind.options) for name, option in section.items()}
        check_names(given, known, f"lm-env train with the agent {kind.name}")
        parsed = {name: known[name].parse(value) for name, value in given.items()}
        made = {
            section: SECTIONS[section](**{name: value for name, value in parsed.items() if name in own})
            for section, own in sections.items()
        }
        agent_options = {name: value for name, value in parsed.items() if name in kind.options}
        return cls(made["run"], made["task"], made["lora"], agent_options)

    @property
    def kind(self) -> AgentKind:
        """The agent's class, options and files."""
        return agent_kind(self.run.agent)

    @property
    def timesteps(self) -> int:
        """Tokens of the training: as given, else the task's budget, else 100,000.

        Raises:
            ConfigurationError: see `TaskSettings.budget`.
        """
        return self.run.timesteps or self.task.budget or TIMESTEPS

    def with_timesteps(self) -> Self:
        """The same with `timesteps` written down."""
        return replace(self, run=replace(self.run, timesteps=self.timesteps))

    def options(self) -> dict[str, Any]:
        """Flat, in the order of the sections; what is None by default and was not given is left out."""
        flat: dict[str, Any] = {}
        for part in (self.run, self.task, self.lora):
            defaults = {f.name: f.default for f in fields(part)}
            flat |= {name: v for name, v in asdict(part).items() if v is not None or defaults[name] is not None}
        if self.lora.lora is None:
            flat = {name: value for name, value in flat.items() if name not in {f.name for f in fields(LoraSettings)}}
        return flat | dict(self.agent_options)


def resumed_settings(folder: RunFolder, config: str | Path | None, options: Mapping[str, Any]) -> TrainSettings:
    """The settings of the run in a folder; options given again must be the same, except those of `MAY_CHANGE`.

    Raises:
        ConfigurationError: another option differs, or `timesteps` is made less than what is trained already; the
            message names it.
    """
    before = TrainSettings.of(folder.config).with_timesteps().options()
    given = {**({} if config is None else read_config(config)), **options}

    def compare(name: str, value: Any) -> None:
        if name not in MAY_CHANGE and before.get(name) != value:
            raise ConfigurationError(
                f"{name} is {before.get(name)!r} in {folder.path} and {value!r} here: a run goes on as it"
                " began; leave it out, or choose another folder for a new run"
            )

    if given.get("agent") is not None:  # Before the options are merged, since another agent has others.
        compare("agent", given["agent"])
    merged = TrainSettings.of(folder.config, **given).with_timesteps()
    after = merged.options()
    for name in given:
        compare(name, after.get(name))
    asked, trained = merged.timesteps, folder.trained_timesteps
    if asked < before["timesteps"] and asked < trained:
        raise ConfigurationError(
            f"timesteps is {asked:,} here, and the run in {folder.path} has trained {trained:,} already: leave it out,"
            " or give more"
        )
    return merged
