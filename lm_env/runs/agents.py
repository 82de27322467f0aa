"""Every agent that a run can have, by name: its options, and how it is made, trained and saved."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from agents import AGENTS, PPOPtx
from agents.base import ActorCritic, BatchedAgent
from agents.run.training_log import make_logger
from agents.sb3 import save as save_sb3
from agents.sb3.named import SB3_AGENTS, make_sb3_agent
from agents.sb3.running import learn as learn_sb3
from lm_env.errors import ConfigurationError
from lm_env.models.inspection import is_quantized
from lm_env.objective.functions import load_named
from lm_env.objective.task import Task
from lm_env.runs.options import Option, fields_as_options, nearest

__all__ = ["AgentKind", "agent_kind", "agent_names"]


@dataclass(frozen=True)
class AgentKind:
    """An agent by name."""

    name: str
    summary: str
    """What it is, in a line."""
    options: Mapping[str, Option]
    """By name, read-only; `seed` is the run's and not among them."""
    make: Callable[..., Any]
    """`make(env, *, seed, log_dir, verbose, **options)`; the agent trains the environment's own model."""
    save: Callable[[Any, Path], Path]
    """Write the agent into a folder that transformers reads, too."""
    learn: Callable[..., Any]
    """`learn(agent, timesteps, callback=, progress_bar=, checkpoint=, resume=)`, as `BatchedAgent.learn`."""
    of_sb3: bool = False


def agent_names() -> list[str]:
    """The names that `agent_kind` knows."""
    return sorted([*(name for name in AGENTS if name != "best-of-n"), "ppo-ptx", *SB3_AGENTS])


def agent_kind(name: str) -> AgentKind:
    """The agent of that name, or a user's own class, `package.module:Class` or `file.py:Class`.

    Raises:
        ConfigurationError: there is none, it trains nothing, or the class is no `agents.base.BatchedAgent`.
        MissingDependencyError: its library is not installed.
    """
    if ":" in name:
        file = Path(name.rpartition(":")[0])
        return _own(name, file.stat().st_mtime_ns if file.is_file() else 0)
    if name == "best-of-n":
        raise ConfigurationError(
            "best-of-n trains nothing, so there is no run of it: use agents.BestOfN(env).generate() in Python"
        )
    if name == "dpo":
        raise ConfigurationError(
            "dpo learns from a file of comparisons, and not in an environment: `lm-env dpo MODEL FILE --out FOLDER`;"
            " online-dpo is its form for environments"
        )
    if name not in agent_names():
        near = nearest(name, agent_names()) or ":"
        raise ConfigurationError(
            f"no agent is called {name!r}{near} choose from {', '.join(agent_names())}, or name your own class,"
            " 'file.py:Class'"
        )
    return _sb3(name) if name in SB3_AGENTS else _batched(name)


# -- ours --------------------------------------------------------------------------------------------
CRITIC = "What values are read from: the model's own trunk, a copy of it, or the score of the text so far."
REWARD = {
    "on_reward_error": (
        Literal["raise", "retry", "skip"],
        "raise",
        "What a reward function that fails does: end the training; be asked three times; or leave its texts out.",
    ),
    "reward_deadline": (float | None, None, "Seconds that a call of the reward function may take."),
}
PTX = {
    "texts": (str, None, "What to keep likely: a .txt or .jsonl file of texts, or a hub id."),
    "max_text_tokens": (int, 128, "Where the texts are cut, tokens."),
    "ptx_coef": (float, 27.8, "Weight of the texts' mean log-likelihood, nats per token."),
    "ptx_ratio": (float, 1.0, "Texts per episode of a minibatch."),
}


@lru_cache
def _batched(name: str) -> AgentKind:
    return _of_class(name, PPOPtx if name == "ppo-ptx" else AGENTS[name])


@lru_cache
def _own(name: str, changed: int) -> AgentKind:
    """The agent of a user's class; it is read again when its file has changed."""
    found = load_named(name, "env, **options")
    if not isinstance(found, type) or not issubclass(found, BatchedAgent):
        raise ConfigurationError(
            f"{name} is no class derived from agents.base.BatchedAgent: train other classes and functions by `lm-env"
            " bench --agents`, or in a script of your own"
        )
    return _of_class(name, found)


def _of_class(name: str, agent: Any) -> AgentKind:
    options = fields_as_options(agent.Config)
    del options["seed"]
    if issubclass(agent, ActorCritic):
        kind = Literal["shared", "separate", "score"] | None
        unset = "score where the reward function reads unfinished texts, else shared"
        options["critic"] = Option("critic", kind, None, CRITIC, unset)
    options |= {key: Option(key, *parts) for key, parts in REWARD.items()}
    if name == "ppo-ptx":
        options |= {key: Option(key, *parts) for key, parts in PTX.items()}
        required = {"texts"}
    else:
        required = set()

    def make(env: Any, **given: Any) -> Any:
        if missing := sorted(required - given.keys()):
            raise ConfigurationError(f"{name} needs {missing[0]}: {options[missing[0]].text}")
        return agent(env, **given)

    def save(trained: Any, path: Path) -> Path:
        return trained.save(path, merge=_can_merge(trained.task))

    return AgentKind(name, _first_line(agent), MappingProxyType(options), make, save, agent.learn)


# -- stable-baselines3's -------------------------------------------------------------------------------
ARGUMENTS: dict[str, tuple[Any, str]] = {
    "learning_rate": (float, "The optimizer's step size at the start; of trpo, the critic's alone."),
    "n_steps": (int, "Tokens of each slot per rollout; a rollout is num_envs times as long."),
    "batch_size": (int, "Tokens per optimizer step; of trpo, of the critic."),
    "n_epochs": (int, "Passes over each rollout."),
    "gamma": (float, "Discount; below 1 the agent no longer maximizes E[score] - beta KL."),
    "gae_lambda": (float, "1 takes the whole return to come, lower values lean more on the critic."),
    "clip_range": (float, "How far the ratio may leave 1 before its gradient is cut."),
    "clip_range_vf": (float | None, "The largest trusted change of a value; none: no clipping."),
    "normalize_advantage": (bool, "Bring advantages to mean 0 and standard deviation 1 before each step."),
    "ent_coef": (float, "Weight of an entropy bonus; above 0 it moves the optimum."),
    "vf_coef": (float, "Weight of the value loss beside the policy's."),
    "max_grad_norm": (float, "Gradients are clipped to this norm."),
    "target_kl": (float | None, "Nats per token between two policies: an update stops there, and trpo steps that far."),
    "use_rms_prop": (bool, "RMSprop in place of Adam."),
    "rms_prop_eps": (float, "RMSprop's epsilon, which keeps its denominator from 0."),
    "cg_max_steps": (int, "Steps of conjugate gradients for the natural gradient."),
    "cg_damping": (float, "Added to the Fisher matrix's diagonal."),
    "line_search_shrinking_factor": (float, "By which a step that leaves the trust region is shortened."),
    "line_search_max_iter": (int, "How often it is shortened at the most."),
    "n_critic_updates": (int, "Passes of the critic over each rollout."),
    "sub_sampling_factor": (int, "Take every n-th token of the rollout alone for the policy's step."),
}
"""The arguments of the algorithms that can be written in a file: type and meaning."""


@lru_cache
def _sb3(name: str) -> AgentKind:
    known = SB3_AGENTS[name]
    defaults = known.defaults()
    options = {
        key: Option(key, kind, defaults[key], text) for key, (kind, text) in ARGUMENTS.items() if key in defaults
    }
    options |= {
        "num_envs": Option("num_envs", int, 32, "Slots, each with a text of its own."),
        "lr_schedule": Option(
            "lr_schedule", Literal["constant", "linear"], "constant", "Linear falls to 0 at the end of the training."
        ),
        "critic": Option(
            "critic", Literal["shared", "separate"], "shared", "The value head reads the model's own trunk, or a copy."
        ),
    }

    def make(env: Any, *, log_dir: Path | None, verbose: int, **given: Any) -> Any:
        return make_sb3_agent(name, env, logger=make_logger(verbose, log_dir), **given)

    summary = f"{known.algorithm} of {known.library.replace('_', '-')}, unmodified"
    return AgentKind(name, summary, MappingProxyType(options), make, _save_sb3, learn_sb3, of_sb3=True)


def _save_sb3(trained: Any, path: Path) -> Path:
    return save_sb3(trained, path, merge=_can_merge(trained.get_env().observation_space.env.task))


def _can_merge(task: Task) -> bool:
    """Whether the policy has an adapter that can be taken into its base, so that policy/ is a plain model."""
    return task.adapter is not None and not is_quantized(task.model)


def _first_line(agent: type) -> str:
    return (inspect.getdoc(agent) or "").partition("\n")[0].partition(";")[0].rstrip(".")
