"""Options that many commands share are the same in all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from lm_env.cli import app


def commands_with(option: str, command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words that call each command with an option."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands_with(option, inner, (*path, name))
    if any(option in each.opts for each in command.params):
        yield path


@pytest.mark.parametrize("words", list(commands_with("--seed", typer.main.get_command(app))), ids=" ".join)
def test_a_seed_is_not_negative(words):
    result = CliRunner().invoke(app, [*words, "--seed", "-1"], env={"NO_COLOR": "1", "COLUMNS": "200"})
    assert result.exit_code == 2 and "Invalid value for '--seed'" in result.output
