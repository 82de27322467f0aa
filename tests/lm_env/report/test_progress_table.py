"""progress.csv as a table: what an interrupted run wrote twice counts once, and each row has its place."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.run.training_log import ProgressFile
from lm_env.report.chart import Chart, Line, nice_ticks, thinned
from lm_env.report.progress_table import read_progress


def table(tmp_path, text: str):
    (tmp_path / "progress.csv").write_text(text)
    return read_progress(tmp_path / "progress.csv")


def log_of(tmp_path, totals, column="rollout/score"):
    lines = "".join(f"{total},{i}\n" for i, total in enumerate(totals))
    return table(tmp_path, f"time/total_timesteps,{column}\n{lines}")


def test_what_a_resumed_run_did_again_counts_once(tmp_path):
    """Rows 3 and 4 were lost with the process; 5 and 6 are the same steps again."""
    found = log_of(tmp_path, [100, 200, 300, 400, 500, 300, 400])
    assert found.ends == [100, 200, 300, 400] and found.columns["rollout/score"] == [0, 1, 5, 6]


def test_a_second_training_that_counts_from_0_goes_on_from_the_first(tmp_path):
    found = log_of(tmp_path, [100, 200, 100, 250])
    assert found.ends == [100, 200, 300, 450] and found.columns["rollout/score"] == [0, 1, 2, 3]
    assert found.starts == [0, 100, 200, 300]


def test_a_log_that_begins_in_the_middle_of_a_run(tmp_path):
    text = "time/total_timesteps,time/tokens_per_s,time/rollout_s,time/update_s,rollout/score\n5000,100,4,6,1\n"
    assert table(tmp_path, text).starts == [4000]


def test_lines_that_were_cut_off_are_left_out(tmp_path):
    text = "time/total_timesteps,rollout/score\n100,0.5\n200\n300,0.7\n400,0.8"
    assert table(tmp_path, text).columns["rollout/score"] == [0.5, 0.7]


def test_empty_cells_and_words_are_no_numbers(tmp_path):
    found = table(tmp_path, "time/total_timesteps,rollout/score,mine\n1,,good\n2,0.5,bad\n,0.9,\n")
    assert math.isnan(found.columns["rollout/score"][0]) and found.ends == [1, 2]
    assert found.curve("rollout/score").y == [0.5] and not found.curve("mine")


def test_an_infinite_kl_is_not_drawn(tmp_path):
    assert table(tmp_path, "time/total_timesteps,rollout/kl\n1,inf\n2,0.5\n").curve("rollout/kl").y == [0.5]


def test_no_file_and_an_empty_file_are_an_empty_table(tmp_path):
    assert len(read_progress(tmp_path / "progress.csv")) == 0 == len(table(tmp_path, ""))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_what_the_log_writes_is_read_back(tmp_path_factory, scores):
    folder = tmp_path_factory.mktemp("log")
    file = ProgressFile(folder)
    for i, score in enumerate(scores, 1):
        file.write(
            {"time/total_timesteps": 10 * i, "rollout/score": score}, {"time/total_timesteps": (), "rollout/score": ()}
        )
    file.close()
    curve = read_progress(folder / "progress.csv").curve("rollout/score")
    assert curve.y == scores and curve.x == [10.0 * i for i in range(len(scores))]


# -- charts -----------------------------------------------------------------------------------------------
NUMBERS = st.floats(-1e9, 1e9).filter(lambda x: x == 0 or abs(x) > 1e-9)


@given(NUMBERS, NUMBERS)
def test_ticks_are_few_round_and_within(a, b):
    low, high = min(a, b), max(a, b)
    ticks = nice_ticks(low, high)
    if high - low > 1e-6 * max(abs(low), abs(high)):
        assert 1 <= len(ticks) <= 7
        assert all(low - 1e-6 * (high - low) <= tick <= high + 1e-6 * (high - low) for tick in ticks)


@given(st.lists(st.lists(NUMBERS, min_size=2, max_size=5), min_size=1, max_size=6))
def test_names_at_the_lines_never_overlap_and_all_is_within_the_picture(lines):
    chart = Chart("T", "x", "y", [Line(f"n{i}", range(len(ys)), ys) for i, ys in enumerate(lines)])
    places = sorted(label.y for label in chart.labels)
    assert all(b - a > 14.9 for a, b in pairwise(places))
    assert chart.top <= places[0] and places[-1] <= chart.height - chart.bottom
    for path, _ in [*chart.paths, *chart.bands]:
        for place in path.strip("MZ ").split(" L"):
            x, y = map(float, place.split())
            assert chart.left - 0.1 <= x <= chart.width - chart.right + 0.1
            assert chart.top - 0.1 <= y <= chart.height - chart.bottom + 0.1


def test_a_long_line_keeps_its_ends_its_mean_and_a_smaller_error():
    ys = [float(i % 7) for i in range(1002)]
    line = thinned(Line("a", range(1002), ys, [0.7] * 1002))
    assert len(line.y) < 160 and (line.y[0], line.y[-1]) == (ys[0], ys[-1]) and (line.x[0], line.x[-1]) == (0, 1001)
    assert Chart("T", "x", "y", [Line("a", range(1002), ys)]).neighbors == 7
    assert line.se[1] == pytest.approx(0.7 / math.sqrt(7))  # seven neighbors make a point
    assert sum(y * 7 for y in line.y[1:142]) == pytest.approx(sum(ys[1:988]))


def test_the_band_is_two_standard_errors_to_each_side():
    chart = Chart("T", "x", "y", [Line("a", [0, 1], [1.0, 2.0], [0.5, 0.25])])
    heights = [float(place.split()[1]) for place in chart.bands[0][0].strip("MZ ").split(" L")]
    assert heights == [pytest.approx(chart.py(y)) for y in (2.0, 2.5, 1.5, 0.0)]
