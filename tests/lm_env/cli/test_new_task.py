"""`lm-env new-task`: what it writes passes its own tests, and nothing is written over."""

from __future__ import annotations

import importlib
import sys

import gymnasium
import pytest
from typer.testing import CliRunner

from lm_env.cli import app
from lm_env.cli.new_task import write_task
from lm_env.errors import ConfigurationError
from lm_env.tasks import get_task


def test_the_skeleton_passes_its_own_tests(tmp_path, monkeypatch):
    result = CliRunner().invoke(app, ["new-task", "politeness", "--out", str(tmp_path)])
    assert result.exit_code == 0 and "lm-env train --env" in result.output
    assert len((tmp_path / "politeness.py").read_text().splitlines()) < 40
    monkeypatch.syspath_prepend(tmp_path)
    try:
        tests = importlib.import_module("test_politeness")
        names = [name for name in vars(tests) if name.startswith("test_")]
        assert len(names) == 3
        for name in names:
            getattr(tests, name)()
        assert get_task("politeness:my/Politeness-v0").id == get_task(f"{tmp_path}/politeness.py:task").id
    finally:
        gymnasium.registry.pop("my/Politeness-v0", None)
        for name in ("politeness", "test_politeness"):
            sys.modules.pop(name, None)


def test_a_file_that_is_there_stays(tmp_path):
    (tmp_path / "test_mine.py").write_text("keep")
    with pytest.raises(ConfigurationError, match="is there already"):
        write_task("mine", tmp_path)
    assert (tmp_path / "test_mine.py").read_text() == "keep" and not (tmp_path / "mine.py").exists()


@pytest.mark.parametrize("name", ["My-Task", "class", "1st", "Mine", "../mine", "m\u00efne", ""])
def test_a_name_that_is_no_module_is_refused(name, tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be the name of a module"):
        write_task(name, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["random", "json", "lm_env", "torch", "_", "__init__", "match"])
def test_a_name_that_would_hide_another_module_is_refused(name, tmp_path):
    """With a file random.py in the folder, `import random` of any library would run it."""
    with pytest.raises(ConfigurationError, match=r"choose another name|beginning with a letter"):
        write_task(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        write_task("mine", tmp_path / "file")
