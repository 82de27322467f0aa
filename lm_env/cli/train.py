"""`lm-env train`: the flags of a run, among them those of the chosen agent, and what is said at its end.

The flags are made from the same descriptions that read a configuration file, so `--learning-rate`, the line
`learning_rate:` of a file and `lm_env.train(learning_rate=...)` are one option.
"""

from __future__ import annotations

import inspect
import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lm_env.cli.options import TaskArgument, named_task
from lm_env.errors import ConfigurationError
from lm_env.runs.agents import agent_kind, agent_names
from lm_env.runs.config_files import read_config
from lm_env.runs.console import console, say, speaks_and_writes
from lm_env.runs.folder import RunFolder
from lm_env.runs.options import Option
from lm_env.runs.settings import RunSettings, TrainSettings, options_of, resumed_settings
from lm_env.runs.train import train_run
from lm_env.storage import checkpoints_in

__all__ = ["call", "run_train"]

NO = "no_"
"""Before the keyword of the flag that turns a switch off."""

MEASURED = {
    "score": "score",
    "kl": "KL to the reference, nats per response",
    "J": "score - beta KL",
    "attained": "share of the optimum's gain",
    "length": "tokens per response",
    "ended": "share of texts that ended by themselves",
}
"""What the table at the end shows, by its name in the log."""

Out = Annotated[Path, typer.Option(help="The folder of the run; it must not hold another one.")]
Config = Annotated[
    Path | None,
    typer.Option(help="A .yaml or .toml file of the options below, without their dashes; flags override it."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out; begin it if there is none.")]
AsTable = Annotated[bool, typer.Option("--table", help="Print the log as a table after each rollout.")]


def call(args: Sequence[str], docstring: str | None) -> None:
    """Read the flags of the command, which depend on the agent named among them, and train.

    Args:
        args: what stands behind `lm-env train`.
        docstring: what `--help` begins with.
    """
    app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
    app.command()(_function(_panels(_agent_named(args)), docstring))
    command = typer.main.get_command(app)
    # Not `command.main`, which would take Ctrl-C for a success.
    with command.make_context("lm-env train", list(args)) as context:
        command.invoke(context)


def _function(panels: Mapping[str, Mapping[str, Option]], docstring: str | None) -> Callable[..., None]:
    """A function with a keyword for every flag, as typer takes one."""

    def command(
        ctx: typer.Context,
        *,
        task: str | None,
        out: Path,
        config: Path | None,
        resume: bool,
        table: bool,
        **flags: Any,
    ) -> None:
        known = {name: option for options in panels.values() for name, option in options.items()}
        given = _given(ctx, known, flags)
        if task is not None:
            given["env"] = named_task(task, given.get("env"))
        run_train(given, out=out, config=config, resume=resume, table=table)

    fixed: dict[str, Any] = {
        "ctx": typer.Context,
        "task": TaskArgument,
        "out": Out,
        "config": Config,
        "resume": Resume,
        "table": AsTable,
    }
    made: dict[str, Any] = {}
    for panel, options in panels.items():
        for option in options.values():
            made |= _flags(option, panel)
    defaults = {"ctx": inspect.Parameter.empty, "out": inspect.Parameter.empty, "resume": False, "table": False}
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name), annotation=kind)
            for name, kind in {**fixed, **made}.items()
        ]
    )
    command.__annotations__ = {**fixed, **made}
    command.__doc__ = docstring
    return command


def _flags(option: Option, panel: str) -> dict[str, Any]:
    """Annotations of a flag by its keyword; where it is not given its value is None, so that a file's value can stand.

    A switch has two flags, of which `--help` shows the one that changes something.
    """
    default = option.shown_default
    shown: dict[str, Any] = {
        "help": option.text if default == "none" else f"{option.text}  [default: {default}]",
        "rich_help_panel": panel,
        "show_default": False,
    }
    if option.is_switch:
        on = typer.Option(option.flag, hidden=option.default is True, **shown)
        off = typer.Option(f"--no-{option.flag[2:]}", hidden=option.default is not True, **shown)
        return {option.name: Annotated[bool | None, on], f"{NO}{option.name}": Annotated[bool | None, off]}
    kind = list[str] if option.takes_several else str
    metavar = "|".join(option.choices) or option.shown_kind.upper()
    return {option.name: Annotated[kind | None, typer.Option(option.flag, metavar=metavar, **shown)]}


def _given(ctx: typer.Context, options: Mapping[str, Option], flags: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, in their own types."""
    given: dict[str, Any] = {}
    for name, option in options.items():
        if flags.get(f"{NO}{name}"):
            given[name] = False
        elif flags[name] not in (None, []):
            try:
                given[name] = option.parse(flags[name])
            except ConfigurationError as error:
                raise typer.BadParameter(str(error), ctx=ctx, param_hint=option.flag) from error
    return given


def run_train(given: Mapping[str, Any], *, out: Path, config: Path | None, resume: bool, table: bool) -> None:
    """Train by the options given, and say what can be done with the result."""
    writes = speaks_and_writes()
    folder = RunFolder(out)
    goes_on = resume and folder.has_run
    asked = resumed_settings(folder, config, given) if goes_on else TrainSettings.of(config, **given)
    settings = asked.with_timesteps()
    trained = folder.trained_timesteps if goes_on else 0

    def begin() -> None:
        where = settings.task.env or f"{settings.task.prompts}, {settings.task.reward}"
        why = " (the task's budget)" if asked.run.timesteps is None and asked.task.budget else ""
        say("training", f"{settings.run.agent} on {where}, {settings.timesteps:,} tokens{why}, into {out}")
        if goes_on:
            there = checkpoints_in(folder.checkpoints)
            if there:  # without one, the log says that the run starts from the beginning
                say("", f"going on from {there[-1]}")

    if goes_on and folder.is_finished and trained >= settings.timesteps:
        say("finished", f"{out} has trained {trained:,} of {settings.timesteps:,} tokens, so nothing is left to do")
        say("", "to train it further, give a larger --timesteps")
    else:
        train_run(settings, folder, resume=resume, verbose=int(table), progress_bar=not table, begin=begin)
    if not writes:
        return
    _show_evaluations(folder.evaluations(), settings)
    for line in _what_next(folder, settings):
        say("", line)


def _show_evaluations(found: list[dict[str, float]], settings: TrainSettings) -> None:
    """The first and the last evaluation side by side."""
    if not found:
        return
    table = Table("", "before", "after", header_style="bold")
    for name, label in MEASURED.items():
        if name in found[-1]:
            cells = [_with_error(row, name) for row in (found[0], found[-1])]
            table.add_row(label, cells[0], f"[bold]{cells[1]}[/bold]")
    own = settings.task.registered
    for name in own.metrics if own is not None else ():
        if name in found[-1]:
            table.add_row(name.replace("_", " "), *(_with_error(row, name) for row in (found[0], found[-1])))
    console.print(table)
    run = settings.run
    held_out = run.eval_prompts is not None or run.eval_fraction > 0
    if settings.task.env is None and not held_out:
        say("", "measured on prompts that were trained on; --eval-prompts or --eval-fraction holds some out")


def _with_error(row: Mapping[str, float], name: str) -> str:
    error = row.get(f"{name}_se", math.nan)
    return f"{row.get(name, math.nan):.3f}" + ("" if math.isnan(error) else f" ± {error:.3f}")


def _what_next(folder: RunFolder, settings: TrainSettings) -> Iterator[str]:
    policy = folder.policy
    yield f"the policy is in {policy}: AutoModelForCausalLM.from_pretrained({str(policy)!r}) reads it"
    yield f"texts of it:     lm-env sample{_task_flags(settings)} --model {policy}"
    if folder.report.exists():
        yield f"the run's page:  {folder.report}"
    yield f"the same again:  lm-env train --config {folder.config} --out ANOTHER_FOLDER"


def _task_flags(settings: TrainSettings) -> str:
    """The flags by which `lm-env sample` writes for the task that was trained on."""
    task = settings.task
    registered = task.env if task.registered is not None else None
    given = {"env": registered, "prompts": task.prompts, "reward": task.reward}
    flags = [f" --{name} {shlex.quote(value)}" for name, value in given.items() if value is not None]
    own = [f" --env-option {shlex.quote(pair)}" for pair in task.env_option or () if registered is not None]
    return "".join([*flags, *own])


def _panels(agent: str) -> dict[str, Mapping[str, Option]]:
    """The options by the heading under which `--help` shows them."""
    run = dict(options_of("run"))
    run["agent"] = _described(
        run["agent"],
        f"The agent: {', '.join(agent_names())}, or your own 'file.py:Class'. Each has options of its own.",
    )
    kind = agent_kind(agent)
    title = f"Options of {agent} (--agent NAME --help shows another's)"
    return {"Run": run, "Task": options_of("task"), "LoRA": options_of("lora"), title: kind.options}


def _described(option: Option, text: str) -> Option:
    return Option(option.name, option.kind, option.default, text, option.unset)


def _agent_named(args: Sequence[str]) -> str:
    """The agent that the flags name, or else the file that they name, or the run that they go on with."""
    if (name := _value_of("--agent", args)) is not None:
        return name
    files = [Path(path)] if (path := _value_of("--config", args)) is not None else []
    if "--resume" in args and (out := _value_of("--out", args)) is not None:
        files.append(RunFolder(Path(out)).config)
    for file in files:
        if file.exists() and isinstance(name := read_config(file).get("agent"), str):
            return name
    return RunSettings.agent


def _value_of(flag: str, args: Sequence[str]) -> str | None:
    for i, arg in enumerate(args):
        if arg == flag and i + 1 < len(args):
            return args[i + 1]
        if arg.startswith(f"{flag}="):
            return arg.partition("=")[2]
    return None
