"""Files of records come from anybody: damaged ones are named, equal names are told apart, and no text is markup."""

from __future__ import annotations

import copy
import json
import math
from contextlib import suppress

import pytest

from lm_env.benchmark import read_records
from lm_env.benchmark.records import write_lines
from lm_env.benchmark.results import as_markdown, merge_files, merge_records, render_page, summarize_records
from lm_env.benchmark.results.pictures import plot_benchmark
from lm_env.benchmark.shapes import record_problem
from lm_env.errors import ConfigurationError, LMEnvError, LogReadError

COMMON = {
    "schema": 1,
    "task": "T",
    "model": "m",
    "beta": 0.1,
    "versions": {"torch": "2"},
    "hardware": {"cpu": "c", "cores": 2, "threads": 1, "device": "cpu"},
    "commit": None,
}


def estimate(mean, se=0.1):
    return {"mean": mean, "se": se}


def ceiling():
    numbers = {name: estimate(value) for name, value in (("J", 1.0), ("J_ref", 0.0), ("score", 1.2), ("KL", 2.0))}
    points = [{"KL": 1.0, "score": 0.8}, {"KL": 2.0, "score": 1.2}]
    per_prompt = {"J_by_prompt": [1.0, 1.0], "J_ref_by_prompt": [0.0, 0.0]}
    return {**COMMON, "kind": "ceiling", **numbers, **per_prompt, "doubts": [], "frontier": points}


def measured(kind, agent, seed=0, J=0.5, **more):
    """A record of a row: two prompts with the same J."""
    names = ("score", "kl", "kl_k1", "kl_per_token", "J", "perplexity", "length", "truncated")
    sample = {"prompt": "a", "response": "b", "score": J}
    return {
        **COMMON,
        **{"kind": kind, "agent": agent, "seed": seed, "prompts": 2, "texts": 4},
        "metrics": {name: estimate(J) for name in names},
        "by_prompt": {"score": [J, J], "J": [J, J]},
        "samples": [sample],
        "inference_tokens": 3.0,
        **more,
    }


def run(agent="rloo", seed=0, J=0.5, **more):
    curve = [{"tokens": t, "seconds": float(t), "score": J, "kl": 0.1 * t, "J": J} for t in (0, 5, 10)]
    own = {"settings": {"agent": agent, "budget": 10}, "tokens": 10, "seconds": 1.0, "tokens_per_second": 10.0}
    return measured("run", agent, seed, J, **own, curve=curve, curve_prompts=2, **more)


def benchmark():
    baselines = [measured("baseline", name, J=0.1) for name in ("reference", "best-of-4", "best-of-16", "random")]
    return [ceiling(), *baselines, run(seed=0), run(seed=1, J=0.6)]


def rows(records):
    """Name of each row that is no baseline -> J of its records, in a benchmark of one table."""
    (table,) = summarize_records(records).tables
    found = {row.agent: [r["by_prompt"]["J"][0] for r in row.records] for row in table.rows}
    return {
        name: values for name, values in found.items() if name not in ("reference", "best-of-4", "best-of-16", "random")
    }


def written(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def shown(records):
    """All that is made of records, but the picture."""
    summary = summarize_records(merge_records([("a", records)]))
    return as_markdown(summary) + render_page(summary, title="t", command="c")


@pytest.mark.parametrize("place", [0, 2, 5])
def test_whatever_is_missing_or_of_another_kind_is_named(place, tmp_path):
    """A ceiling, a baseline and a run without each key, and with other values: refused by name, or shown."""
    refused = set()
    for key in benchmark()[place]:
        for value in (..., None, "x", 3, -1, True, [], [None], {}, math.nan):
            records = copy.deepcopy(benchmark())
            if value is ...:
                del records[place][key]
            else:
                records[place][key] = value
            path = written(tmp_path / "x.jsonl", records)
            try:
                found = read_records(path)
            except LogReadError as error:
                assert f"line {place + 1}" in str(error)
                refused.add(key)
                continue
            with suppress(LMEnvError):  # such as records that cannot stand in one table
                assert shown(found)
    optional = {"inference_tokens", "tokens_per_second"}
    assert refused >= set(benchmark()[place]) - optional


def trial():
    return {**run(), "kind": "trial", "trial": 0, "learning_rate": 0.1}


@pytest.mark.parametrize(
    ("record", "change", "problem"),
    [
        (trial(), {"metrics": {}}, "metrics.J is missing"),
        (run(), {"metrics": {"score": estimate(1.0)}}, "metrics.J is missing"),
        (measured("baseline", "random"), {"metrics": {}}, "metrics.J is missing"),
        (trial(), {"learning_rate": ...}, "learning_rate is missing"),
        (run(), {"by_prompt": {"score": [1.0], "J": [1.0, 1.0]}}, "by_prompt.score has 1 numbers for 2 prompts"),
        (run(), {"by_prompt": {"score": [1.0, 1.0], "J": [1.0]}}, "by_prompt.J has 1 numbers for 2 prompts"),
        (run(), {"seed": 2**62}, "seed is 4611686018427387904, and not an integer from 0 to 2^62 - 1"),
        (run(), {"seed": True}, "seed is True, and not an integer from 0 to 2^62 - 1"),
        (run(), {"texts": 0}, "texts is 0, and not an integer from 1 to 2^62 - 1"),
        (run(), {"beta": 10**400}, "beta is 1000000000000000000000000000000000000..., and not a finite number"),
        (run(), {"model": 3}, "model is 3, and not a text or null"),
        (ceiling(), {"J_by_prompt": [1.0, "x"]}, "J_by_prompt[1] is 'x', and not a finite number or null"),
        (run(), {"samples": [3]}, "samples[0] is 3, and no JSON object"),
    ],
)
def test_what_is_wrong_is_said_in_words(record, change, problem):
    changed = {name: value for name, value in {**record, **change}.items() if value is not ...}
    assert record_problem(record) is None and record_problem(changed) == problem


def test_a_model_without_a_reference_has_no_J():
    record = measured(
        "model", "m", metrics={"score": estimate(1.0)}, by_prompt={"score": [1.0, 1.0], "J": [None, None]}
    )
    assert record_problem(record) is None


def test_a_line_in_a_text_does_not_cut_a_record(tmp_path):
    """U+2028 and its like are allowed within the strings of JSON, and end no line of a file of records."""
    text = "one\u2028two\u2029three\x85four\x0cfive\x1csix"
    record = run()
    record["samples"][0]["response"] = text
    write_lines(tmp_path / "x.jsonl", [record, record])
    assert [r["samples"][0]["response"] for r in read_records(tmp_path / "x.jsonl")] == [text, text]


@pytest.mark.parametrize(
    "line", ["[" * 100_000, "[1]", "3", '{"schema": 1, "kind": {}}', '{"schema": true, "kind": "run"}']
)
def test_what_is_no_record_is_refused(line, tmp_path):
    (tmp_path / "x.jsonl").write_text(f"\n{line}\n")
    with pytest.raises(LogReadError, match="line 2"):
        read_records(tmp_path / "x.jsonl")


def test_folders_of_one_name_are_told_apart(tmp_path):
    """Three machines with other results of the same agent and seed: three rows, and not one of three seeds."""
    own = [[r for r in benchmark() if r["kind"] != "run"] + [run(J=J)] for J in (0.5, 0.6, 0.7)]
    paths = [written(tmp_path / name / "bench" / "results.jsonl", r) for name, r in zip("abc", own, strict=True)]
    found = rows(merge_files(paths))
    assert sorted(found.values()) == [[0.5], [0.6], [0.7]] and "rloo" in found
    assert all("bench" in name for name in found if name != "rloo")


def test_two_models_of_one_name_are_two_rows():
    """Trained policies are all in folders called `policy`, which is the name of their rows."""
    models = [measured("model", "policy", J=J, path=f"runs/{name}/policy") for name, J in (("a", 0.3), ("b", 0.4))]
    found = rows(merge_records([("models", [*benchmark(), *models, models[0]])]))
    assert found["policy"] == [0.3] and sorted(found.values()) == [[0.3], [0.4], [0.5, 0.6]]
    again = [measured("model", "policy", J=J, path="runs/a/policy") for J in (0.3, 0.4, 0.5)]
    assert sorted(rows(merge_records([("models", [*benchmark(), *again])])).values()) == [
        [0.3],
        [0.4],
        [0.5],
        [0.5, 0.6],
    ]


@pytest.mark.parametrize("name", ["rloo", "reference", "best-of-4"])
def test_a_model_with_the_name_of_an_agent_or_a_baseline_is_a_row_of_its_own(name):
    model = measured("model", name, J=0.9)
    for parts in ([("a", benchmark()), ("b", [model])], [("b", [model]), ("a", benchmark())]):
        (table,) = summarize_records(merge_records(parts)).tables
        assert len(table.rows) == 6
        assert [r["kind"] for r in table.row("reference").records] == ["baseline"]
        (own,) = [row for row in table.rows if row.records[0]["kind"] == "model"]
        assert own.metrics["J"].value == 0.9 and own.seeds == 1
    with pytest.raises(ConfigurationError, match="names a"):
        summarize_records([*benchmark(), model])


def test_seeds_of_two_files_of_one_agent_are_one_row():
    """The usual case: half of the seeds on each machine; and a file that is given twice counts once."""
    one, other = [*benchmark()[:5], run(seed=0)], [*benchmark()[:5], run(seed=1, J=0.6)]
    assert rows(merge_records([("a", one), ("b", other), ("a", one)])) == {"rloo": [0.5, 0.6]}


def test_a_run_that_diverged_is_not_left_out_of_a_mean():
    """J of minus infinity is null in the file: the agent's mean is then unknown, and not that of the other seeds."""
    lost = run(seed=2)
    lost["metrics"]["J"] = lost["metrics"]["kl"] = {"mean": None, "se": None}
    lost["by_prompt"]["J"] = [None, None]
    (table,) = summarize_records([*benchmark(), lost]).tables
    row = table.row("rloo")
    assert "J" not in row.metrics and row.attained is None and row.metrics["score"].value > 0


def test_no_name_and_no_text_is_markup(tmp_path):
    """Tags, escape sequences of a terminal, formulas of matplotlib, names that a legend hides."""
    records = copy.deepcopy(benchmark())
    bad = "<script>alert(1)</script>\x1b[31m $\\frac$ |"
    for record in records:
        record["task"] = f"_{bad}"
        record["versions"] = {"torch": bad}
        for sample in record.get("samples", ()):
            sample["response"] = sample["prompt"] = bad
    records += [{**run(f"_{bad}"), "task": f"_{bad}"}]
    assert "<script" not in shown(records) and "\x1b" not in shown(records)
    plot_benchmark(summarize_records(records), tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_versions_of_all_machines_are_told():
    other = {**run(seed=1, J=0.6), "versions": {"torch": "3"}}
    assert "torch 2 and 3" in as_markdown(summarize_records([*benchmark()[:-1], other]))


def test_a_task_with_other_options_is_another_task():
    """One name, two levels: each has a table with its own ceiling, and one table of both is refused."""
    records = []
    for level, best in ((1, 1.0), (3, 2.0)):
        own = {"task_options": {"level": level}}
        records += [{**ceiling(), "J_by_prompt": [best, best], **own}, {**measured("model", "a"), **own}]
    with pytest.raises(ConfigurationError, match=r"options \(level 1; level 3\)"):
        summarize_records(records)
    tables = summarize_records(merge_records([("one", records[:2]), ("other", records[2:])])).tables
    assert [table.task.partition(",")[0] for table in tables] == ["T (level 1", "T (level 3"]
    assert [table.rows[0].attained.value for table in tables] == [pytest.approx(0.5), pytest.approx(0.25)]
    assert [row.agent for table in tables for row in table.rows] == ["a", "a"]
    together = merge_records(
        [("one", records[:2]), ("two", [{**measured("model", "b"), "task_options": {"level": 1}}])]
    )
    assert [row.agent for row in summarize_records(together).tables[0].rows] == ["a", "b"]
