"""`train`: train an agent by name on a task, from settings to a folder with the result; `lm-env train` calls it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback

from agents import Checkpointing, EvaluateTexts, processes
from agents.base import task_of
from agents.sb3.named import TextMetrics
from lm_env.models.adapters import save_adapter
from lm_env.objective.kl import FixedKL
from lm_env.objective.task import Task
from lm_env.runs.folder import RunFolder, command_line
from lm_env.runs.settings import TrainSettings, resumed_settings
from lm_env.runs.task import further_metrics, held_out_prompts, make_env
from lm_env.storage import write_folder

__all__ = ["TrainedRun", "train", "train_reserved", "train_run"]


NEVER = 2**61
"""More timesteps than any run has."""


@dataclass(frozen=True)
class TrainedRun:
    """The result of a run."""

    folder: Path
    agent: Any
    """The trained agent; its environment's model is the trained one."""
    settings: TrainSettings
    """All options, with the defaults that the environment and the agent chose."""


def train(
    out: str | Path, config: str | Path | None = None, *, resume: bool = False, verbose: int = 0, **options: Any
) -> TrainedRun:
    """Train an agent by name on a task, into a folder: what `lm-env train` does.

    Args:
        out: the folder; docs/train.md says what is in it.  It must not hold another run.
        config: a .yaml or .toml file of options, such as the run.yaml of another run.
        resume: continue the run in `out`; start it if there is none.
        verbose: 1 prints the log as a table after each rollout.
        options: what `lm-env train --help` lists, with underscores: `agent="rloo"`, `env=...` or `model=...`,
            `prompts=...` and `reward=...`, `timesteps=...`, `seed=...`, the options of the agent.  They override
            those of the file.

    Raises:
        ConfigurationError: an option does not exist or has an impossible value; or `out` holds another run.
        CheckpointWriteError: `out` cannot be written; raised before the training.
        RunLockedError: another process writes there.
        TrainingInterrupted: Ctrl-C or SIGTERM has come, and the run is saved; continue with resume=True.
        MissingDependencyError, ModelLoadError, InvalidPromptError, UnsupportedModelError: a package, the model or the
            prompts cannot be loaded, or the model is not supported.

    Example:
        >>> import lm_env
        >>> run = lm_env.train("runs/first", agent="rloo", env="lm_env/Sentiment-v0", timesteps=20_000)
        >>> run.agent.generate(["This film was"])
    """
    folder = RunFolder(Path(out))
    settings = resumed_settings(folder, config, options) if resume and folder.has_run else None
    if settings is None:
        settings = TrainSettings.of(config, **options)
    return train_run(settings, folder, resume=resume, verbose=verbose)


def train_run(
    settings: TrainSettings,
    folder: RunFolder,
    *,
    resume: bool = False,
    verbose: int = 0,
    progress_bar: bool = False,
    begin: Callable[[], object] | None = None,
) -> TrainedRun:
    """`train` with `TrainSettings` in place of options; see `train_reserved` for `begin`."""
    with _own_folder(folder, resume) as own:
        run = train_reserved(settings, own, resume=resume, verbose=verbose, progress_bar=progress_bar, begin=begin)
    return replace(run, folder=folder.path)


@contextmanager
def _own_folder(folder: RunFolder, resume: bool) -> Iterator[RunFolder]:
    """The folder, reserved; in processes other than the first, a place for what nobody will look at."""
    if processes().first:
        with folder.reserve(resume=resume):
            yield folder
    else:
        with TemporaryDirectory() as nowhere:
            yield RunFolder(Path(nowhere))


def train_reserved(
    settings: TrainSettings,
    folder: RunFolder,
    *,
    resume: bool = False,
    verbose: int = 0,
    progress_bar: bool = False,
    callbacks: Sequence[BaseCallback] = (),
    begin: Callable[[], object] | None = None,
) -> TrainedRun:
    """`train_run` in a folder that the caller has reserved.

    Args:
        callbacks: additional callbacks, called before those of the run.
        begin: called when all is there that the training needs.
    """
    settings = settings.with_timesteps()
    run = settings.run
    torch.manual_seed(run.seed)  # new weights are drawn by it; all else has generators of its own
    env = make_env(settings.task, settings.lora)
    task = task_of(env)
    folder.check_room(4 * 4 * sum(p.numel() for p in task.model.parameters()))
    agent = settings.kind.make(env, seed=run.seed, log_dir=folder.path, verbose=verbose, **settings.agent_options)
    settings = _resolved(settings, agent, task)
    try:
        every = _callbacks(settings, env, folder)
        folder.write_config(settings.options(), command_line())
        if begin is not None:
            begin()
        agent = settings.kind.learn(
            agent,
            settings.timesteps,
            callback=[*callbacks, *every],
            progress_bar=progress_bar,
            checkpoint=Checkpointing(folder.checkpoints, run.checkpoint_every, run.checkpoint_keep),
            resume=resume,
        )
        if (adapter := task.adapter) is not None:
            write_folder(folder.adapter, lambda place: save_adapter(adapter, str(place)))
        settings.kind.save(agent, folder.policy)
    finally:
        agent.logger.close()
    return TrainedRun(folder.path, agent, settings)


def _callbacks(settings: TrainSettings, env: Any, folder: RunFolder) -> list[BaseCallback]:
    run = settings.run
    every = settings.timesteps // 5 if run.eval_every is None else run.eval_every
    prompts = held_out_prompts(run, settings.task, env)[: run.eval_texts]
    evaluate = EvaluateTexts(
        list(prompts),
        math.ceil(run.eval_texts / len(prompts)),
        every=max(every, 1) if run.eval_every != 0 else NEVER,
        ceiling=run.eval_ceiling,
        samples=folder.samples,
        more=further_metrics(run, settings.task),
        seed=run.seed,
    )
    return [evaluate, *([TextMetrics()] if settings.kind.of_sb3 else [])]


def _resolved(settings: TrainSettings, agent: Any, task: Task) -> TrainSettings:
    """The settings with the defaults that the environment and the agent chose."""
    found: dict[str, Any] = {"max_new_tokens": task.max_new_tokens, "temperature": task.temperature}
    if isinstance(task.kl, FixedKL):
        found["beta"] = task.kl.beta
    config = asdict(agent.config) if is_dataclass(getattr(agent, "config", None)) else {}
    known = {name: config.get(name, option.default) for name, option in settings.kind.options.items()}
    known = {name: value for name, value in known.items() if value is not None or name in config}
    chosen = replace(settings.task, **{n: v for n, v in found.items() if getattr(settings.task, n) is None})
    return replace(settings, task=chosen, agent_options={**known, **settings.agent_options})
