"""The commands that repeat a benchmark, or the figures of one task of it."""

from __future__ import annotations

import shlex
from dataclasses import fields

from lm_env.benchmark.settings import AgentSpec, BenchSettings, TaskSpec

__all__ = ["repeat_command", "task_command"]

LISTS = ("tasks", "agents")


def repeat_command(settings: BenchSettings, out: str) -> str:
    """The command that runs the whole benchmark again in another folder."""
    if _needs_a_file(settings):
        return f"lm-env bench --config {shlex.quote(out)}/bench.yaml --out ANOTHER_FOLDER"
    tasks, agents = (",".join(spec.name for spec in specs) for specs in (settings.tasks, settings.agents))
    return f"lm-env bench --tasks {shlex.quote(tasks)} --agents {shlex.quote(agents)}{_flags(settings)} --out FOLDER"


def task_command(settings: BenchSettings, label: str, out: str) -> str:
    """The command that runs the benchmark of one task again in another folder."""
    if _needs_a_file(settings):
        return f"lm-env bench --config {shlex.quote(out)}/bench.yaml --only {shlex.quote(label)} --out ANOTHER_FOLDER"
    agents = ",".join(spec.name for spec in settings.agents)
    name = settings.task(label).name
    return f"lm-env bench --tasks {shlex.quote(name)} --agents {shlex.quote(agents)}{_flags(settings)} --out FOLDER"


def _needs_a_file(settings: BenchSettings) -> bool:
    """Whether an option, a label or a budget was chosen that no flag can express."""
    plain = (
        tuple(TaskSpec.of(task.name) for task in settings.tasks),
        tuple(AgentSpec.of(agent.name) for agent in settings.agents),
    )
    return plain != (settings.tasks, settings.agents)


def _flags(settings: BenchSettings) -> str:
    """The flags of the settings that differ from their defaults."""
    words = []
    for field in fields(BenchSettings):
        value = getattr(settings, field.name)
        if field.name in LISTS or value == field.default:
            continue
        flag = "--" + field.name.replace("_", "-")
        words += [flag] if value is True else [flag, shlex.quote(str(value))]
    return "".join(f" {word}" for word in words)
