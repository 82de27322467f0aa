"""The published results are what the generator makes of the records beside it, and it loses nothing of them."""

from __future__ import annotations

import copy
import json

import pytest
from scripts import load_script

from lm_env.benchmark import BenchSettings, read_records, read_settings, run_bench
from lm_env.benchmark.results import render_page, summarize_records
from lm_env.benchmark.results.pictures import LEAST_SHARE, attained_figure

table = load_script("benchmarks/table.py")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Two agents on two tasks with two seeds, a second of training each."""
    small = {"rollout_episodes": 32, "batch_size": 32, "learning_rate": 0.05}
    settings = BenchSettings.of(
        {
            "tasks": [
                {"task": "lm_env/TokenMDP-v0", "label": "one"},
                {"task": "lm_env/TokenMDP-v0", "label": "two", "mdp_seed": 5},
            ],
            "agents": [{"agent": "rloo", **small}, {"agent": "sft", "batch_size": 8, "learning_rate": 0.1}],
            "seeds": 2,
            "tokens": 400,
            "evaluations": 2,
            "curve_texts": 16,
            "texts": 64,
            "ceiling_samples": 16,
            "ceiling_most": 16,
        }
    )
    found = run_bench(settings, tmp_path_factory.mktemp("bench"))
    assert not found.failed
    return found


def test_the_page_and_the_readme_are_made_from_the_committed_records():
    summary = summarize_records(table.committed())
    assert table.PAGE.read_text(encoding="utf-8") == table.page_of(summary)
    readme = table.README.read_text(encoding="utf-8")
    assert readme == table.readme_with(readme, summary) and table.overview_of(summary) in readme
    assert table.PICTURE.stat().st_size > 10_000
    assert {t.task for t in summary.tables} <= {task.label for task in read_settings(table.SETTINGS).tasks}


def test_it_is_said_how_many_runs_are_missing():
    wanted = [
        cell for cell in read_settings(table.SETTINGS).cells() if cell.agent != "baselines" and cell.trial is None
    ]
    runs = [{"kind": "run", "task": cell.task, "agent": cell.agent, "seed": cell.seed} for cell in wanted]
    runs.append({"kind": "baseline", "task": wanted[0].task, "agent": "random", "seed": 0})
    assert table.completeness(runs) == f"All {len(wanted)} runs that `benchmarks/table.yaml` names are in these tables."
    assert f"Of the {len(wanted)} runs" in table.completeness(runs[2:])
    assert f" {len(wanted) - 2} are in these tables" in table.completeness(runs[2:])


def test_no_committed_file_is_larger_than_needed():
    for path in table.RECORDS.glob("*.jsonl"):
        large = path.stat().st_size > 2 * table.LARGEST
        assert not large or all(table.slim(record) == record for record in read_records(path)), path.name


@pytest.mark.parametrize("largest", [0, 10**9])
def test_what_is_left_out_changes_no_figure(bench, tmp_path, largest):
    table.copy_records(bench.folder, tmp_path, largest)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.jsonl", "two.jsonl"]
    kept, whole = summarize_records(table.committed(tmp_path)), summarize_records(bench.records)
    assert len(kept.records) == len(whole.records)
    assert any(record.get("samples") for record in kept.records if record["kind"] == "run") == bool(largest)
    for ours, theirs in zip(kept.tables, whole.tables, strict=True):
        for row in theirs.rows:
            found = ours.row(row.agent)
            assert repr(found.metrics) == repr(row.metrics) and found.success == row.success
            assert found.attained.value == pytest.approx(row.attained.value, abs=1e-4)
            assert (found.tokens_to, found.score_at_kl is None) == (row.tokens_to, row.score_at_kl is None)
    assert "Benchmark" in render_page(kept, title="Benchmark", command="lm-env bench")  # what a leaderboard shows


def test_a_task_that_is_run_again_replaces_its_own_records_alone(bench, tmp_path):
    table.copy_records(bench.folder, tmp_path / "records")
    before = (tmp_path / "records" / "two.jsonl").read_bytes()
    (tmp_path / "again").mkdir()
    again = [{**record, "commit": "later"} for record in bench.records if record["task"] == "one"]
    (tmp_path / "again" / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in again))
    table.copy_records(tmp_path / "again", tmp_path / "records")
    assert read_records(tmp_path / "records" / "one.jsonl") == again
    assert (tmp_path / "records" / "two.jsonl").read_bytes() == before


def test_the_page_says_what_the_figures_rest_on(bench):
    text = table.page_of(summarize_records(bench.records))
    assert "with 2 seeds" in text and "fewer than 5 seeds" in text and "Nothing was tuned" in text
    assert bench.records[0]["hardware"]["cpu"] in text and "benchmarks/table.yaml" in text
    for name in ("random", "reference", "best-of-4", "best-of-16", "**rloo**", "**sft**"):
        assert text.count(f"| {name} | ") >= 2, name
    row = next(line for line in text.splitlines() if line.startswith("| **sft** |") and "400" not in line)
    assert row.count("|") == 5  # the agent, two tasks, and all of them


def test_the_readme_keeps_what_is_outside_of_the_marks(bench):
    summary = summarize_records(bench.records)
    text = f"before\n{table.BEGIN}\nold figures\n{table.END}\nafter\n"
    found = table.readme_with(text, summary)
    assert found.startswith("before\n") and found.endswith("\nafter\n") and "old figures" not in found
    assert table.readme_with(found, summary) == found


def test_a_collapsed_run_is_drawn_at_the_edge(bench):
    """One run far below the others neither widens the figure nor is lost; all other runs are dots."""
    records = copy.deepcopy(bench.records)
    run = next(record for record in records if record["kind"] == "run" and record["agent"] == "rloo")
    run["by_prompt"]["J"] = [-20.0] * len(run["by_prompt"]["J"])
    summary = summarize_records(records)
    low = summary.tables[0].row("rloo").attained.low
    panel = attained_figure(summary).axes[0]
    assert low < LEAST_SHARE == panel.get_xlim()[0]
    assert f"{low:.1f}".replace("-", "\u2212") in {text.get_text() for text in panel.texts}
    dots = [line for line in panel.lines if line.get_marker() == "o"]
    assert sorted(len(line.get_xdata()) for line in dots) == [1, 2]
    assert {"ceiling", "reference", "best of 4", "best of 16"} <= {text.get_text() for text in panel.texts}
