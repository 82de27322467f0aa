"""Every code block of the README and the docs: Python is run, commands are parsed by what they name.

Trainings are shortened by the substitutions below; nothing else of a block is changed.
"""

from __future__ import annotations

import ast
import functools
import re
import shlex
import sys
import tomllib
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import pytest
from blocks import Block, blocks_of
from paths import REPOSITORY
from typer.main import get_command

from agents import PPO
from lm_env.cli import app
from lm_env.errors import MissingDependencyError

PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
SHELL = [block for block in BLOCKS if block.language in ("", "sh", "bash", "console")]
TREE = "lm_env/     "  # the first line of the README's tree, which tests/test_house.py reads

SHORTER = [
    (r"\blearn\([\d_]+", "learn(60"),
    (r"\bPPO\(env, verbose=1\)", "PPO(env, verbose=1, rollout_episodes=4, slots=4, batch_size=4)"),
    (r"\bnum_envs=32\b", "num_envs=2"),
    (r"\bn_steps=64\b", "n_steps=8, batch_size=16"),
    (r"\btimesteps=50_000\b", "timesteps=60, rollout_episodes=4, eval_texts=4"),
    (r"\bRLOO\(\"lm_env/Sentiment-v0\", ", 'RLOO("lm_env/Sentiment-v0", rollout_episodes=4, batch_size=4, '),
    (r"\bPPO\(\"lm_env/Sentiment-v0\", log_dir", 'PPO("lm_env/Sentiment-v0", rollout_episodes=4, log_dir'),
    (r"openings\(\"test\"\)", 'openings("test")[:2]'),
    (r"\[:2\], every=", "[:2], n=2, every="),
    (r"\bcompile=True\b", "compile=False"),
    (r"\bload_reward\(\"runs/rm\"\)", 'load_reward("lexicon")'),
    (r"\bparticles=16, runs=4\b", "particles=4, runs=2"),
    (r"\bn=50\b", "n=2"),
    (r"\bhead\(16\), samples=32, most=64\b", "head(2), samples=4, most=8"),
]


def shortened(code: str) -> str:
    for pattern, short in SHORTER:
        code = re.sub(pattern, short, code)
    return code


def ids(blocks: list[Block]) -> list[str]:
    return [block.name for block in blocks]


def test_the_pages_are_read():
    assert len(PYTHON) >= 5 and len(SHELL) >= 5 and {block.page.name for block in BLOCKS} >= {"README.md", "agents.md"}


@pytest.mark.parametrize("block", BLOCKS, ids=ids(BLOCKS))
def test_every_block_has_a_test(block):
    assert block in PYTHON or block in SHELL or block.language in ("yaml", "toml", "json", "text"), block.language


# -- Python ------------------------------------------------------------------------------------------
def is_excerpt(block: Block) -> bool:
    """Of an `update`, whose names are those of its class."""
    return "self." in block.text.partition("\n")[0]


RUN = [block for block in PYTHON if not is_excerpt(block)]


@pytest.mark.parametrize("block", RUN, ids=ids(RUN))
def test_python_runs_as_printed(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    code = compile(ast.parse(shortened(block.text), filename=block.name), block.name, "exec")
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # where dataclasses look for the names in their annotations
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # at what TRL's options set
        try:
            exec(code, vars(module))
        except MissingDependencyError as error:  # of an extra, which the message has to name
            assert set(re.findall(r"lm-env\[([\w-]+)\]", str(error))) & extras().keys()
        except ModuleNotFoundError as error:  # of a library that the block imports itself, and that an extra installs
            installed = {re.split(r"[^\w-]", name)[0] for names in extras().values() for name in names}
            assert (error.name or "").partition(".")[0].replace("_", "-") in installed


EXCERPTS = [block for block in PYTHON if is_excerpt(block)]


@pytest.mark.parametrize("block", EXCERPTS, ids=ids(EXCERPTS))
def test_an_excerpt_of_an_update_is_one(block):
    """It runs as the update of an agent, and trains."""
    body = "\n".join(f"    {line}" for line in block.text.splitlines())
    scope: dict[str, Any] = {}
    exec(f"def update(self, rollout, config, targets):\n{body}\n", scope)
    agent = PPO(gymnasium.make("lm_env/TokenMDP-v0"), rollout_episodes=8, slots=8, batch_size=4)
    rollout = agent.collect_rollout()
    before = [p.detach().clone() for p in agent.policy.parameters()]
    config = type("Config", (), {"batch_size": 4, "n_epochs": 1})
    scope["update"](agent, rollout, config, agent.targets(rollout))
    assert any((a != b).any() for a, b in zip(before, agent.policy.parameters(), strict=True))


# -- commands ----------------------------------------------------------------------------------------
def commands_in(block: Block) -> list[str]:
    lines = block.text.replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in re.sub(r"(^|\s)#.*", "", line).split("&&")]
    return [part.strip().removeprefix("$ ") for part in parts if part.strip()]


IN_BLOCKS = [
    (block.name, command) for block in SHELL if not block.text.startswith(TREE) for command in commands_in(block)
]
IN_LINES = [
    (page.name, command)
    for page in PAGES
    for command in re.findall(
        r"`((?:lm-env|python|make|pip) [^`]+)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    )
]
COMMANDS = sorted({*IN_BLOCKS, *((name, " ".join(command.split())) for name, command in IN_LINES)})


@pytest.mark.parametrize(("where", "command"), COMMANDS, ids=[f"{where}: {command}" for where, command in COMMANDS])
def test_commands_are_ones(where, command):
    words = shlex.split(command)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    program = Path(words[0]).name
    check = {
        "lm-env": check_lm_env,
        "python": check_python,
        "python3": check_python,
        "make": check_make,
        "pip": check_pip,
        "torchrun": check_launched,
        "accelerate": lambda arguments: check_launched(arguments[1:]),
        "vllm": lambda arguments: None,
        "pytest": lambda arguments: None,
        "pre-commit": lambda arguments: None,
        "run": lambda arguments: None,
    }.get(program)
    assert check is not None, f"{where}: no test knows the command {program!r}"
    check(words[1:])


@functools.cache
def commands() -> Any:
    """The command line with all its commands and their options, which takes a while to be made of the functions."""
    return get_command(app)


def check_lm_env(arguments: list[str]) -> None:
    """The command line takes the options; nothing is run."""
    group = commands()
    if arguments[:1] in (["--help"], ["--version"]):
        return
    assert arguments[0] in group.commands, f"no command {arguments[0]}"
    if len(arguments) == 1 and any(p.required for p in group.commands[arguments[0]].params):
        return  # only named, as in "`lm-env check-agent` trains an agent where ..."
    group.commands[arguments[0]].make_context(arguments[0], [*arguments[1:]])


def check_python(arguments: list[str]) -> None:
    """The script is there, or on a page, and has the options."""
    if arguments[0] == "-m":
        assert find_spec(arguments[1]) is not None
        return
    if f"# {arguments[0]}" in {block.text.partition("\n")[0] for block in PYTHON}:
        return
    script = REPOSITORY / arguments[0]
    assert script.is_file(), script
    source = script.read_text()
    for option in (word.partition("=")[0] for word in arguments[1:] if word.startswith("--")):
        assert f'"{option}"' in source, f"{script.name} has no option {option}"


def check_launched(arguments: list[str]) -> None:
    """What is started in several processes is a script that is there, or a module, after the launcher's options."""
    while arguments[0] not in ("-m",) and not arguments[0].endswith(".py"):
        arguments = arguments[2:] if "=" not in arguments[0] else arguments[1:]
    if arguments[0] == "-m" and arguments[1] == "lm_env":
        check_lm_env(arguments[2:])
    elif arguments[0] != "my_training.py":
        check_python(arguments)


def check_make(arguments: list[str]) -> None:
    targets = re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.M)
    for word in arguments:
        assert "=" in word or word in targets, f"the Makefile has no target {word}"


def check_pip(arguments: list[str]) -> None:
    """What is installed of this project exists: extras, files."""
    for word in arguments:
        for names in re.findall(r"^(?:\.|lm-env)\[([\w,-]+)\]$", word):
            assert set(names.split(",")) <= extras().keys(), f"no extra {names}"
        if word.endswith(".txt"):
            assert (REPOSITORY / word).is_file()


@pytest.mark.parametrize(
    "command",
    [
        "lm-env no-such-command",
        "python examples/train.py --no-such-option",
        "make nothing",
        "pip install 'lm-env[nothing]'",
    ],
)
def test_a_command_that_is_none_is_found(command):
    with pytest.raises(AssertionError):
        test_commands_are_ones("here", command)


def test_an_option_that_is_none_is_found():
    with pytest.raises(Exception, match="No such option"):
        test_commands_are_ones("here", "lm-env demo --no-such-option 3")


def test_links_between_the_pages_lead_somewhere():
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def extras() -> dict[str, list[str]]:
    """The project's own, by name."""
    found = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return dict(found)
