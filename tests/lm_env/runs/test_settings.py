"""Options of a run: one description for flags, files and Python, one rule of precedence, nothing misread in silence."""

from __future__ import annotations

import math
from typing import Literal

import gymnasium
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import REPOSITORY
from typer.testing import CliRunner

from lm_env.cli import app
from lm_env.errors import ConfigurationError
from lm_env.objective.options import TaskOptions
from lm_env.runs.agents import agent_kind, agent_names
from lm_env.runs.config_files import read_about, read_config, write_config
from lm_env.runs.options import Option
from lm_env.runs.options_page import options_page
from lm_env.runs.settings import SECTIONS, TrainSettings, options_of
from lm_env.runs.task import AS_THEY_ARE
from lm_env.tasks import TextTask, register_task

ENV = {"env": "lm_env/TokenMDP-v0"}


def option(kind, default=None) -> Option:
    return Option("width", kind, default, "Some text.")


# -- one value ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (int, "20", 20),
        (int, "2e5", 200_000),
        (int, 2e5, 200_000),
        (int, "1_000", 1000),
        (float, "1e-4", 1e-4),  # which YAML reads as a string
        (float, 3, 3.0),
        (float | None, "none", None),
        (float | None, None, None),
        (float | None, "0.5", 0.5),
        (bool, "true", True),
        (bool, "off", False),
        (bool, False, False),
        (str, "a", "a"),
        (Literal["a", "b"], "b", "b"),
        (tuple[int, ...], 3, (3,)),
        (tuple[int, ...], ["3", 4], (3, 4)),
        (tuple[str, ...] | None, "x", ("x",)),
    ],
)
def test_values_are_read_in_the_options_own_type(kind, value, expected):
    found = option(kind).parse(value)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, "2.5"),
        (int, 2.5),
        (int, True),
        (int, None),
        (int, "nan"),
        (int, "inf"),
        (int, "ten"),
        (int, [1]),
        (float, "x"),
        (float, True),
        (float, None),
        (float, {}),
        (bool, "maybe"),
        (bool, 1),
        (str, 3),
        (str, None),
        (Literal["a", "b"], "c"),
        (Literal["a", "b"], ["a"]),
        (tuple[int, ...], ["3", "x"]),
    ],
)
def test_a_value_of_another_type_is_an_error_that_names_the_option(kind, value):
    with pytest.raises(ConfigurationError, match="width must be"):
        option(kind).parse(value)


@given(st.floats(allow_nan=False))
def test_every_float_survives_its_way_through_text(value):
    assert option(float).parse(repr(value)) == value


@given(st.integers(), st.booleans())
def test_every_integer_and_switch_survives_its_way_through_text(number, switch):
    assert option(int).parse(str(number)) == number
    assert option(bool).parse(str(switch)) is switch


# -- all of them -------------------------------------------------------------------------------------
def test_a_keyword_stands_before_the_file_and_the_file_before_the_default(tmp_path):
    (tmp_path / "run.yaml").write_text("agent: rloo\nenv: lm_env/TokenMDP-v0\nlearning_rate: 1e-3\nseed: 5\n")
    settings = TrainSettings.of(tmp_path / "run.yaml", seed=7)
    assert (settings.run.agent, settings.run.seed, settings.timesteps) == ("rloo", 7, 600_000)
    assert settings.agent_options == {"learning_rate": 1e-3}


@pytest.mark.parametrize(
    ("options", "timesteps"),
    [
        ({"env": "lm_env/Arithmetic-v0"}, 30_000),
        ({"env": "lm_env/Arithmetic-v0", "timesteps": 7}, 7),
        ({"env": "lm_env/Arithmetic-v0", "prompts": "p.txt", "reward": "lexicon"}, 30_000),
        ({"prompts": "p.txt", "reward": "lexicon"}, 100_000),
        ({"env": "CartPole-v1"}, 100_000),  # registered, and no text task
    ],
)
def test_the_tokens_of_a_run_are_the_tasks_budget_by_default(options, timesteps):
    settings = TrainSettings.of(**options)
    assert settings.timesteps == timesteps
    assert settings.with_timesteps().options()["timesteps"] == timesteps


def test_the_budget_may_depend_on_an_option_of_the_tasks_own():
    def task(n: int = 3) -> TextTask:
        return TextTask(id="own/N-v0", summary="", source=[], reward=len, budget=1000 * n)

    register_task("own/N-v0", task)
    try:
        assert TrainSettings.of(env="own/N-v0").timesteps == 3000
        assert TrainSettings.of(env="own/N-v0", env_option=["n=5"]).timesteps == 5000
    finally:
        gymnasium.registry.pop("own/N-v0")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({**ENV, "learning_rat": 1}, "has no option 'learning_rat': did you mean 'learning_rate'"),
        ({**ENV, "agent": "rloo", "clip_range_vf": 1}, "agent rloo has no option 'clip_range_vf'.*'clip_range'"),
        ({**ENV, "out": "x"}, "has no option 'out'"),
        ({**ENV, "agent": "pppo"}, "no agent is called 'pppo': did you mean 'ppo'"),
        ({**ENV, "agent": "best-of-n"}, "best-of-n trains nothing"),
        ({"reward": "lexicon"}, "prompts is missing"),
        ({"prompts": "x.txt"}, "reward is missing"),
        ({"prompts": "x.txt", "reward": "lexicon", "split": "test"}, "split chooses among a registered"),
        ({**ENV, "timesteps": 0}, "timesteps must be an integer of at least 1"),
        ({**ENV, "lora": 0}, "lora must be an integer of at least 1"),
        ({**ENV, "quantize": "8bit"}, "name it with model"),
        ({**ENV, "eval_fraction": 0.1, "eval_prompts": "x"}, "give one of them"),
        ({**ENV, "eval_fraction": 1.0}, "eval_fraction"),
    ],
)
def test_what_cannot_work_is_told_by_name(options, words):
    with pytest.raises(ConfigurationError, match=words):
        TrainSettings.of(**options)


@pytest.mark.parametrize("name", agent_names())
def test_options_of_every_agent_come_back_from_a_file(name, tmp_path):
    """Defaults of the agent written out, and read again; in both formats of a file where TOML can say it."""
    defaults = {n: o.default for n, o in agent_kind(name).options.items() if o.default is not None}
    settings = TrainSettings.of(**ENV, agent=name, seed=3, lora=4, eos_token_id=[1, 2], **defaults)
    write_config(tmp_path / "run.yaml", settings.options(), {"command": "lm-env train"})
    assert TrainSettings.of(tmp_path / "run.yaml") == settings
    assert read_about(tmp_path / "run.yaml") == {"command": "lm-env train"}
    lines = [
        f"{n} = {v if not isinstance(v, bool) else str(v).lower()!s}"
        for n, v in defaults.items()
        if type(v) in (int, float, bool)
    ]
    lines += [f'{n} = "{v}"' for n, v in defaults.items() if isinstance(v, str)]
    lines += [f'agent = "{name}"', 'env = "lm_env/TokenMDP-v0"', "seed = 3", "lora = 4", "eos_token_id = [1, 2]"]
    (tmp_path / "run.toml").write_text("\n".join(lines))
    assert TrainSettings.of(tmp_path / "run.toml") == settings


PLAIN = st.one_of(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1),
    st.integers(),
    st.booleans(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.none(),
)


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,12}", fullmatch=True), st.one_of(PLAIN, st.lists(PLAIN))))
def test_any_options_come_back_from_the_file_of_a_run(tmp_path_factory, options):
    options.pop("about", None)
    path = tmp_path_factory.mktemp("run") / "run.yaml"
    write_config(path, options, {"command": "x: 'y'"})
    assert read_config(path) == options


# -- files -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.yaml", "agent: ppo\nagent: a2c\n", "'agent' stands there twice"),
        ("a.yaml", "agent: {name: ppo}\n", "'agent' holds a table"),
        ("a.yaml", "- agent\n", "holds no options"),
        ("a.yaml", "", "holds no options"),
        ("a.yaml", "agent: [ppo\n", "is no valid YAML"),
        ("a.yaml", "agent: !!python/object/apply:os.system ['touch owned']\n", "is no valid YAML"),
        ("a.yaml", "3: 4\n", "a line of its own"),
        ("a.toml", "agent = ppo\n", "is no valid TOML"),
        ("a.toml", "[agent]\nname = 'ppo'\n", "'agent' holds a table"),
        ("a.json", "{}", r"ends in \.yaml, \.yml or \.toml"),
        ("a.yaml", None, "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_a_run_is_one_sentence(name, text, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigurationError, match=words) as caught:
        read_config(tmp_path / name)
    assert "\n" not in str(caught.value) and not (tmp_path / "owned").exists()


# -- what is described -------------------------------------------------------------------------------
def test_every_option_of_a_task_can_be_given_by_name():
    """A new option of the environments has to appear here, or among those that have another name."""
    renamed = {"action_mask", "reward", "device", "download", "quantization_config"}  # the last is `quantize`
    assert set(TaskOptions.__annotations__) == (set(AS_THEY_ARE) - {"split"}) | renamed
    assert set(AS_THEY_ARE) | renamed - {"quantization_config"} <= options_of("task").keys()


def test_no_two_sections_have_an_option_of_the_same_name():
    for name in agent_names():
        sections = [set(options_of(section)) for section in SECTIONS] + [set(agent_kind(name).options)]
        assert sum(map(len, sections)) == len(set().union(*sections)), name


def test_every_option_has_a_text_and_a_default_of_its_own_type():
    for name in agent_names():
        for known in (*(options_of(section) for section in SECTIONS), agent_kind(name).options):
            for described in known.values():
                assert described.text.endswith("."), described
                if described.default is not None:
                    assert described.parse(described.default) == described.default
                    assert described.parse(str(described.default)) == described.default or described.takes_several


def test_the_page_of_options_is_current():
    page = (REPOSITORY / "docs" / "options.md").read_text()
    assert page == options_page(), "run: python -m lm_env.runs.options_page docs/options.md"


def test_a_run_in_this_process_leaves_the_descriptions_of_options_as_they_are():
    """`lm-env train` lists the agents in the help of its own flag, and nowhere else."""
    page = options_page()
    printed = CliRunner().invoke(app, ["train", "--agent", "rloo", "--help"], env={"COLUMNS": "300"}).output
    assert "Each has options of its own" in printed and "Each has options of its own" not in page
    assert options_page() == page


@pytest.mark.parametrize(
    "known", [*map(options_of, SECTIONS), *(agent_kind(name).options for name in ("ppo", "sb3-ppo"))]
)
def test_descriptions_of_options_are_read_only(known):
    name = next(iter(known))
    with pytest.raises(TypeError):
        known[name] = known[name]


def test_the_page_shows_the_defaults_of_python(tmp_path):
    from agents import PPOConfig

    row = next(line for line in options_page().split("## `ppo`\n")[1].splitlines() if "`clip_range`" in line)
    assert f"| {PPOConfig().clip_range} |" in row and math.isclose(PPOConfig.clip_range, 0.2)


def test_options_of_the_environments_own_are_read_in_their_types():
    settings = TrainSettings.of(env="lm_env/Arithmetic-v0", env_option=["level=3", "flag=true", "source=a=b.jsonl"])
    assert settings.task.own_options() == {"level": 3, "flag": True, "source": "a=b.jsonl"}
    assert TrainSettings.of(env="lm_env/Arithmetic-v0").task.own_options() == {}


@pytest.mark.parametrize("wrong", [["level"], ["=3"], ["le vel=3"], ["level=2", "level=3"]])
def test_an_option_of_the_environments_own_is_a_name_and_a_value(wrong):
    with pytest.raises(ConfigurationError, match="env_option must be written NAME=VALUE"):
        TrainSettings.of(env="lm_env/Arithmetic-v0", env_option=wrong)
    with pytest.raises(ConfigurationError, match="give env"):
        TrainSettings.of(prompts="a.txt", reward="lexicon", env_option=["level=2"])
