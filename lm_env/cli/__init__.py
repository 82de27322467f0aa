"""`lm-env`: the command line, and the one place that knows all three packages."""

from __future__ import annotations

import importlib.util
import re
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lm_env import __version__
from lm_env.cli.benchmark import bench, evaluate, leaderboard, preflight_command
from lm_env.cli.check_loss import check_loss_command
from lm_env.cli.commands import ceiling, check_agent, demo, envs, sample, sft, train
from lm_env.cli.dpo import dpo
from lm_env.cli.loop_command import loop
from lm_env.cli.new_task import new_task
from lm_env.cli.report import report
from lm_env.cli.rewards import compare
from lm_env.cli.rewards.label import label_app
from lm_env.cli.rewards.prefs import prefs_app
from lm_env.cli.rewards.rm import rm_app
from lm_env.errors import LabelsAwaited, LMEnvError, TrainingInterrupted
from lm_env.namesake import own_agents_problem

__all__ = ["app", "main"]


class _Commands(TyperGroup):
    """The commands; Ctrl-C is answered by a sentence, where typer itself would end without one."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            hint = ""
            if self._can_resume():
                hint = ": the same command with --resume goes on from what is saved, or begins anew if nothing is"
            print(f"\nlm-env: interrupted{hint}", file=sys.stderr)
            raise typer.Exit(130) from None

    def _can_resume(self) -> bool:
        """Whether the command that was typed has the option `--resume`."""
        words = sys.argv[1:]
        command: Any = self
        for word in words:
            if word not in getattr(command, "commands", {}):
                break
            command = command.commands[word]
        return words[:1] == ["train"] or any("--resume" in option.opts for option in command.params)


app = typer.Typer(
    cls=_Commands,
    help="Text generation as a reinforcement-learning environment: train a language model with any RL algorithm.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # in which [score] is text; in rich's own markup it is a tag, and not printed
)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"lm-env {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


app.command()(demo)
app.command()(sft)
app.command()(dpo)
app.command()(loop)
# The flags of this one depend on the agent; `lm_env.cli.train` makes and reads them, --help among them.
app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True}, add_help_option=False)(train)
app.command()(sample)
app.command()(report)
app.command()(bench)
app.command(name="preflight")(preflight_command)
app.command()(evaluate)
app.command()(leaderboard)
app.command()(compare)
app.command(name="ceiling")(ceiling)
app.command(name="check-agent")(check_agent)
app.command(name="check-loss")(check_loss_command)
app.add_typer(prefs_app, name="prefs")
app.add_typer(rm_app, name="rm")
app.add_typer(label_app, name="label")
app.command()(envs)
app.command(name="new-task")(new_task)


def main() -> None:
    """Entry point: an error that a user can remedy is one sentence, not a traceback."""
    try:
        app(standalone_mode=True)
    except LMEnvError as error:
        print(f"lm-env: {_as_typed(error)}", file=sys.stderr)
        raise SystemExit(1) from None
    except (LabelsAwaited, TrainingInterrupted) as stopped:  # all is saved; the exit code is its own
        print(f"lm-env: {_as_typed(stopped)}", file=sys.stderr)
        raise
    except ImportError as error:  # an LMEnvError has been caught above
        problem = own_agents_problem(importlib.util.find_spec("agents"))
        if problem is None:
            raise
        print(f"lm-env: {problem} ({error})", file=sys.stderr)
        raise SystemExit(1) from None


def _as_typed(message: object) -> str:
    """A message of the Python interface in the words of the command line."""
    return re.sub(r"\b(resume|download|skip_bad|replace)=True(?: \(--[a-z-]+\))?", _as_flag, str(message))


def _as_flag(keyword: re.Match[str]) -> str:
    return f"--{keyword[1].replace('_', '-')}"
