"""Another distribution with a package called `agents`: noticed, and said in one sentence with the remedy."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.machinery import PathFinder

import pytest
from paths import REPOSITORY

from lm_env.namesake import namesake_problem, own_agents_problem

OWN = REPOSITORY / "agents"


@pytest.fixture
def site(tmp_path):
    """A folder in which openai-agents is installed."""
    info = tmp_path / "site" / "openai_agents-0.6.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: openai-agents\nVersion: 0.6.0\n")
    (info / "RECORD").write_text("agents/__init__.py,,\n")
    package = tmp_path / "site" / "agents"
    package.mkdir()
    (package / "__init__.py").write_text("class Agent: pass\n")
    return tmp_path / "site"


def test_nothing_is_said_without_it(tmp_path):
    assert namesake_problem(OWN, [str(tmp_path)]) is None and namesake_problem(OWN) is None


def test_mixed_files_are_told_from_two_folders(site):
    mixed = namesake_problem(site / "agents", [str(site)])
    assert "the files of the two are mixed, and uninstalling one breaks the other" in mixed
    apart = namesake_problem(OWN, [str(site)])
    assert "only one of the two can be imported" in apart and str(OWN) in apart
    for sentence in (mixed, apart):
        assert "python -m venv" in sentence and "\n" not in sentence


def run(code: str, cwd, *folders) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)


def test_importing_agents_says_it_once(site):
    code = (
        "import warnings\nwith warnings.catch_warnings(record=True) as caught:\n    warnings.simplefilter('always')\n"
        "    import agents\nprint(*[w.message for w in caught if 'openai-agents' in str(w.message)], sep='\\n')"
    )
    result = run(code, REPOSITORY, REPOSITORY, site)
    assert result.returncode == 0 and result.stdout.count("python -m venv") == 1, result.stderr


def test_the_command_line_says_it_where_the_other_one_is_found(site):
    (site / "lm_env").symlink_to(REPOSITORY / "lm_env")
    code = "import sys; sys.argv = ['lm-env', 'check-agent', 'ppo']; from lm_env.cli import main; main()"
    result = run(code, site, site)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "the package agents is another one" in result.stderr and "pip install --force-reinstall" in result.stderr


def test_what_uninstalling_has_left_is_told_from_the_whole(site):
    def spec_in(folder):
        return PathFinder.find_spec("agents", [str(folder)])

    assert own_agents_problem(spec_in(REPOSITORY)) is None
    assert "is another one" in own_agents_problem(spec_in(site))
    (site / "agents" / "__init__.py").unlink()
    assert "is missing or incomplete" in own_agents_problem(spec_in(site))
    assert "is missing or incomplete" in own_agents_problem(None)
