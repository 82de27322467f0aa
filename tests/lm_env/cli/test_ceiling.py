"""`lm-env ceiling`: the table, the files, and what it refuses."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from lm_env.cli import app
from lm_env.errors import CheckpointWriteError, ConfigurationError
from lm_env.theory.token_mdp import TokenMDP


def test_the_ceiling_of_t0_is_printed_and_written(tmp_path):
    """On T0 at its default beta of .5 the closed form is J* = .589453."""
    command = ["ceiling", "lm_env/TokenMDP-v0", "--samples", "4000", "--out", str(tmp_path), "--highest", "2.5"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "optimum" in result.output and "best of 4" in result.output
    report = json.loads((tmp_path / "ceiling.json").read_text())
    exact = TokenMDP.t0().optimum(0.5)
    assert report["trusted"]
    assert report["ceiling"]["J"]["mean"] == pytest.approx(exact.J, abs=0.05)
    assert report["ceiling"]["KL"]["mean"] == pytest.approx(exact.KL, abs=0.1)
    assert (tmp_path / "ceiling.png").read_bytes().startswith(b"\x89PNG")


def test_a_number_that_cannot_be_trusted_is_called_a_lower_bound():
    command = ["ceiling", "lm_env/TokenMDP-v0", "--samples", "8", "--beta", "0.02"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "a lower bound only" in result.output


@pytest.mark.parametrize(("options", "samples"), [([], 128), (["--most", "16"], 16)])
def test_samples_are_doubled_as_long_as_the_number_cannot_be_trusted(options, samples, tmp_path):
    command = ["ceiling", "lm_env/TokenMDP-v0", "--samples", "8", "--beta", "0.02", "--out", str(tmp_path), *options]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert json.loads((tmp_path / "ceiling.json").read_text())["samples"] == samples


@pytest.mark.parametrize(
    ("command", "error", "words"),
    [
        (["ceiling", "lm_env/Nothing-v0"], ConfigurationError, "cannot be made"),
        (["ceiling", "lm_env/TokenMDP-v0", "--split", "dev"], ConfigurationError, "split must be one of"),
        (
            ["ceiling", "lm_env/TokenMDP-v0", "--out", "/proc/nothing"],
            CheckpointWriteError,
            "cannot write /proc/nothing",
        ),
    ],
)
def test_what_cannot_be_done_is_one_sentence(command, error, words):
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, error) and words in str(result.exception)
