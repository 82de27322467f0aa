"""`lm-env bench`: train agents on tasks with equal budgets, and write tables, figures and one page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from lm_env.cli.options import Download

__all__ = ["bench"]


def bench(
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            help="Tasks, separated by commas: ids, or your own 'file.py:function'.  [default: all that need no file and"
            " no download]"
        ),
    ] = None,
    agents: Annotated[
        list[str] | None,
        typer.Option(
            help="Agents, separated by commas: names of lm-env train, sft, dpo, tianshou-ppo, torchrl-ppo, trl-grpo,"
            " trl-rloo, or your own 'module:Class' or 'file.py:train'.  [default: all that are installed and train on"
            " any task, which leaves out trpo and TRL's]"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder; what is done there is not done again.")] = Path("runs/bench"),
    config: Annotated[
        Path | None, typer.Option(help="A .yaml file of the options, where tasks and agents may have options, too.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Run only the tasks with these labels, separated by commas; others in the folder wait."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs of each agent on each task.  [default: 5]", min=1)] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Training tokens of each run.  [default: the task's budget]", min=1)
    ] = None,
    tune: Annotated[
        int | None,
        typer.Option(
            help="Learning rates tried first per agent and task, each with the tokens of a run.  [default: 0]"
        ),
    ] = None,
    evaluations: Annotated[int | None, typer.Option(help="Points on a learning curve.  [default: 8]", min=1)] = None,
    curve_texts: Annotated[
        int | None, typer.Option(help="Texts of each point on a learning curve.  [default: 128]", min=1)
    ] = None,
    prompts: Annotated[int | None, typer.Option(help="Test prompts at most.  [default: 128]", min=1)] = None,
    texts: Annotated[int | None, typer.Option(help="Texts of the final evaluation.  [default: 512]", min=1)] = None,
    ceiling_samples: Annotated[
        int | None, typer.Option(help="Samples per prompt that the ceiling starts with.  [default: 96]")
    ] = None,
    ceiling_most: Annotated[
        int | None, typer.Option(help="The most samples per prompt for the ceiling.  [default: 16 x --ceiling-samples]")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model that all start from.  [default: the task's]")] = None,
    independent: Annotated[
        str | None, typer.Option(help="A language model that takes no part, for a perplexity of its own.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="Runs side by side.  [default: the machine's cores / --threads]", min=1)
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of torch in each.  [default: 1]", min=1)] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...  [default: cpu]")] = None,
    download: Download = False,
    keep_policies: Annotated[bool, typer.Option("--keep-policies", help="Keep the trained models.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Minutes instead of hours: it shows that all works, and proves nothing.")
    ] = False,
) -> None:
    """Train every agent on every task with the same number of tokens, and compare them.

    Rows without training stand beside the agents: the reference, random tokens, best-of-4, best-of-16, and the
    ceiling.  Writes results.jsonl, results.md, results.png and results.html.  The same command resumes a
    benchmark that was stopped or killed.
    """
    from lm_env.benchmark import run_bench
    from lm_env.runs.console import say

    given: dict[str, Any] = {
        "seeds": seeds,
        "tokens": tokens,
        "tune": tune,
        "evaluations": evaluations,
        "curve_texts": curve_texts,
        "prompts": prompts,
        "texts": texts,
        "ceiling_samples": ceiling_samples,
        "ceiling_most": ceiling_most,
        "model": model,
        "independent": independent,
        "threads": threads,
        "device": device,
    }
    over = {name: value for name, value in given.items() if value is not None}
    over |= {name: True for name, value in (("download", download), ("keep_policies", keep_policies)) if value}
    chosen = _split(only)
    settings = _settings(config, _split(tasks), _split(agents), chosen, over, quick)
    workers = processes or max(1, (os.cpu_count() or 1) // settings.threads)
    found = run_bench(settings, out, processes=workers, only=chosen or None, say=lambda line: say("", line))
    for failed in found.failed:
        say("failed", f"{failed.cell}: {failed.error}")
    if any(record["kind"] == "run" for record in found.records):
        _write_results(found, out)
    if found.failed:
        say("", "the same command tries again what failed")
        raise typer.Exit(1)


def _write_results(found: Any, out: Path) -> None:
    """The tables, figures and page of a benchmark, and the cards of models that were kept."""
    from lm_env.benchmark.commands import repeat_command, task_command
    from lm_env.benchmark.results import write_card, write_results
    from lm_env.benchmark.runner import kept_policies
    from lm_env.runs.console import say

    settings = found.settings
    commands = {task.label: task_command(settings, task.label, str(out)) for task in settings.tasks}
    command = repeat_command(settings, str(out))
    files = write_results(found.records, out, title="Benchmark", command=command, task_commands=commands)
    print(files.markdown.read_text(encoding="utf-8"))
    say("written", f"{found.results}, {files.markdown.name}, {files.picture.name}, {files.page.name}")
    for policy, record in kept_policies(found.records, out):
        write_card(policy, record, found.records)


def _settings(
    config: Path | None, tasks: list[str], agents: list[str], only: list[str], over: dict[str, Any], quick: bool
) -> Any:
    from lm_env.benchmark import BenchSettings, quick_settings, read_settings
    from lm_env.benchmark.defaults import installed_agents, installed_tasks, quick_agents, quick_tasks
    from lm_env.errors import ConfigurationError

    named = {name: value for name, value in (("tasks", tasks), ("agents", agents)) if value}
    if config is not None:
        settings = read_settings(config, **named, **over)
    else:
        defaults = {
            "tasks": lambda: quick_tasks() if quick else installed_tasks(),
            "agents": lambda: quick_agents() if quick else installed_agents(),
        }
        settings = BenchSettings.of({**{n: named.get(n) or make() for n, make in defaults.items()}, **over})
    if only:
        from dataclasses import replace

        labels = [task.label for task in settings.tasks]
        if unknown := [label for label in only if label not in labels]:
            raise ConfigurationError(f"no task has the label {unknown[0]}: choose from {', '.join(labels)}")
        settings = replace(settings, tasks=tuple(task for task in settings.tasks if task.label in only))
    return quick_settings(settings) if quick else settings


def _split(given: list[str] | None) -> list[str]:
    return [name.strip() for part in given or [] for name in part.split(",") if name.strip()]
