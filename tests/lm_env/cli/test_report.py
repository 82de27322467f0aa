"""`lm-env report`, `--version`, `python -m lm_env`, and what is printed where no terminal is."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

import lm_env
from agents import PPO
from lm_env.cli import app
from lm_env.envs.env import TextGenerationEnv
from lm_env.envs.render import print_render, render_episode
from lm_env.errors import ConfigurationError
from lm_env.tasks.token_mdp import make


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_page_of_a_log_is_made_at_the_end_and_again_by_the_command(tmp_path):
    agent = PPO(make(), log_dir=tmp_path, rollout_episodes=16, slots=8, batch_size=8, seed=11).learn(200)
    agent.logger.close()
    made = (tmp_path / "report.html").read_text()
    assert "PPO on" in made and "seed 11" in made and "Score against KL" in made
    (tmp_path / "report.html").unlink()
    result = invoke("report", tmp_path)
    assert result.exit_code == 0 and str(tmp_path / "report.html") in result.output
    assert (tmp_path / "report.html").read_text() == made
    invoke("report", tmp_path, "--out", tmp_path / "other.html")
    assert (tmp_path / "other.html").read_text() == made


def test_a_folder_without_a_run_is_one_sentence(tmp_path):
    assert isinstance(invoke("report", tmp_path).exception, ConfigurationError)


def test_the_version():
    result = invoke("--version")
    assert result.exit_code == 0 and result.output == f"lm-env {lm_env.__version__}\n"


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "lm_env", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"lm-env {lm_env.__version__}\n"


@pytest.mark.parametrize(("variables", "colored"), [({}, False), ({"FORCE_COLOR": "1"}, True)])
def test_no_color_codes_go_into_a_pipe(variables, colored, monkeypatch, capsys):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    print_render(render_episode("a", [" b", " c\x1b[31m"], [1.0, -1.0], score=0.5))
    shown = capsys.readouterr().out
    assert ("\x1b[" in shown) == colored and "\\x1b[31m" in shown and "score +0.500" in shown


def test_a_human_render_into_a_pipe_has_no_color_codes(id_task, capsys, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    env = TextGenerationEnv(**id_task(max_new_tokens=2), render_mode="human")
    env.reset(seed=0)
    for _ in range(2):
        env.step(5)
    shown = capsys.readouterr().out
    assert shown and "\x1b" not in shown
