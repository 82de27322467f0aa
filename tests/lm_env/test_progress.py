"""Progress where no terminal is: whole lines now and then, without control codes."""

from __future__ import annotations

import io

import pytest

from agents import PPO
from lm_env.progress import Progress, tracked
from lm_env.tasks.token_mdp import make


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(steps: int, seconds_each: float, total: int | None) -> list[str]:
    clock, stream = Clock(), io.StringIO()
    with Progress(total, "training", stream=stream, clock=clock) as progress:
        for _ in range(steps):
            clock.now += seconds_each
            progress.update(100, "score 0.5")
    assert "\x1b" not in stream.getvalue() and "\r" not in stream.getvalue()
    assert stream.getvalue().endswith("\n")
    return stream.getvalue().splitlines()


def test_a_short_run_is_one_line():
    assert run(10, 1.0, 1000) == ["training: 1,000 of 1,000 tokens (100%), 100 tokens/s, score 0.5"]


def test_a_line_each_half_minute_with_the_time_that_is_left():
    lines = run(90, 1.0, 9000)
    assert lines[0] == "training: 3,000 of 9,000 tokens (33%), 100 tokens/s, 1:00 left, score 0.5"
    assert [line.split(" of ")[0] for line in lines] == [f"training: {n},000" for n in (3, 6, 9)]


def test_a_week_is_some_hundred_lines():
    assert 50 < len(run(7 * 24 * 60, 60.0, None)) < 250


def test_without_a_total_there_is_no_share():
    assert run(2, 1.0, None) == ["training: 200 tokens, 100 tokens/s, score 0.5"]


def test_what_was_done_before_does_not_count_as_speed():
    clock, stream = Clock(), io.StringIO()
    with Progress(300, done=100, stream=stream, clock=clock) as progress:
        clock.now = 10.0
        progress.update(100)
    assert stream.getvalue() == "200 of 300 tokens (67%), 10 tokens/s, 0:10 left\n"


def test_nothing_is_shown_when_it_is_off(capsys):
    assert list(tracked(range(3), "work", enabled=False)) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_what_does_not_stay_leaves_no_line():
    stream = io.StringIO()
    with Progress(3, leave=False, stream=stream) as progress:
        progress.update(3)
    assert stream.getvalue() == ""


@pytest.mark.parametrize("items", [[1, 2, 3], iter([1, 2, 3])])
def test_tracked_items_come_through(items, capsys):
    assert list(tracked(items, "counting")) == [1, 2, 3]
    assert capsys.readouterr().err.startswith("counting: 3")


def test_a_training_without_a_terminal_writes_plain_lines(capsys):
    """pytest's stderr is no terminal."""
    agent = PPO(make(), rollout_episodes=16, slots=8, batch_size=8).learn(100, progress_bar=True)
    shown = capsys.readouterr()
    assert shown.out == "" and "\x1b" not in shown.err and "\r" not in shown.err
    done = agent.num_timesteps
    assert shown.err.count("\n") == 1 and f"{done} of {done} tokens (100%)" in shown.err and "score" in shown.err
    assert done > 100 and "100 tokens were asked for" in shown.err


def test_units_beyond_the_total_count_for_the_speed():
    """A last rollout of 400 tokens ends a training of 500 at 700: in ten seconds that is 70 tokens/s, not 50."""
    clock, stream = Clock(), io.StringIO()
    with Progress(500, stream=stream, clock=clock) as progress:
        clock.now = 5.0
        progress.update(300)
        clock.now = 10.0
        progress.update(400)
    assert stream.getvalue() == "700 of 700 tokens (100%), 70 tokens/s\n"


def test_a_bar_keeps_its_shape_beyond_the_total(monkeypatch, capsys):
    monkeypatch.setattr("lm_env.progress._shows_bars", lambda: True)
    with Progress(500, unit="step") as progress:
        progress.update(300)
        progress.update(400)
    assert "700/700" in capsys.readouterr().err
