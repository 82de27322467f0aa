"""Single files: written whole or not at all; and YAML, whose numbers are numbers and whose text stays text."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_env.benchmark.settings import read_settings
from lm_env.runs.config_files import plain_value, read_config, write_config
from lm_env.storage import read_lines, write_file
from lm_env.storage.yaml_text import as_yaml, parse_yaml


# -- files -------------------------------------------------------------------------------------------
def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "a.txt"
    for content in ("one\n", b"\xff\x00", "zwei \u00e4\n"):
        assert write_file(path, content) == path
        assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert os.listdir(tmp_path) == ["a.txt"]


def test_what_cannot_be_written_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_file(path, "earlier")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_file(path, "later")
    with pytest.raises(UnicodeEncodeError):
        write_file(path, "\ud800")
    assert path.read_text() == "earlier" and os.listdir(tmp_path) == ["a.txt"]


def test_threads_that_write_one_file_leave_the_content_of_one_of_them(tmp_path):
    contents = [f"{number}" * 1000 for number in range(4)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda content: [write_file(tmp_path / "a.txt", content) for _ in range(30)], contents))
    assert (tmp_path / "a.txt").read_text() in contents and os.listdir(tmp_path) == ["a.txt"]


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])), max_size=5))
def test_lines_are_read_as_they_were_written(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("lines") / "a.txt"
    write_file(path, "".join(f"{line}\n" for line in lines))
    assert read_lines(path) == lines
    write_file(path, "\r\n".join([*lines, "the last"]))
    assert read_lines(path) == [*lines, "the last"]


def test_only_a_line_feed_ends_a_line(tmp_path):
    whole = "one\x85two\u2028three\u2029four"
    assert read_lines(write_file(tmp_path / "a.txt", f"{whole}\nlast")) == [whole, "last"]


# -- YAML --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text, value",
    [
        ("3e-4", 3e-4),
        ("1e5", 1e5),
        ("1.0e5", 1e5),
        ("-.5E+2", -50.0),
        ("2.e3", 2000.0),
        ("+1e1", 10.0),
        ("0.5", 0.5),
        ("7", 7),
        ("e3", "e3"),
        ("1e", "1e"),
        ("1e5 tokens", "1e5 tokens"),
        ("'3e-4'", "3e-4"),
        ("1-e4", "1-e4"),
        ("[1e-3, a]", [1e-3, "a"]),
    ],
)
def test_numbers_are_those_of_yaml_1_2(text, value):
    found = parse_yaml(text)
    assert found == value and type(found) is type(value)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
NUMBERLIKE = st.from_regex(r"[-+]?[0-9.]{0,4}[eE]?[-+]?[0-9]{0,3}", fullmatch=True)
VALUES = PLAIN | NUMBERLIKE


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text() | NUMBERLIKE, VALUES | st.lists(VALUES, max_size=3), max_size=4))
def test_what_is_written_is_read_as_it_was(content):
    found = parse_yaml(as_yaml(content))
    assert found == content
    assert [type(value) for value in found.values()] == [type(value) for value in content.values()]


@pytest.mark.parametrize("text", ["a: 1\na: 2", "[1", "{a: {b: 1, b: 2}}", "[" * 5000, "!!python/object:os.system x"])
def test_what_is_no_yaml_is_one_kind_of_error(text):
    with pytest.raises(ValueError):
        parse_yaml(text)


def test_every_command_reads_the_same_numbers(tmp_path):
    """A rate in the file of a benchmark, in that of a run, and in an option of an environment."""
    bench = tmp_path / "bench.yaml"
    bench.write_text("tasks: [lm_env/Sentiment-v0]\nagents:\n- {agent: ppo, learning_rate: 3e-4}\n")
    assert read_settings(bench).agents[0].options["learning_rate"] == 3e-4
    run = tmp_path / "run.yaml"
    run.write_text("learning_rate: 3e-4\n")
    assert read_config(run) == {"learning_rate": 3e-4}
    assert plain_value("3e-4") == 3e-4
    assert [plain_value(text) for text in ("a: 1", "{a: 1, a: 2}")] == ["a: 1", "{a: 1, a: 2}"]
    write_config(run, {"prompts": "1e5", "learning_rate": 1e-5}, {})
    assert read_config(run) == {"prompts": "1e5", "learning_rate": 1e-5}
