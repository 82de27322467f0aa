"""`lm-env label`: its ways of being called, and the whole way from a file over answers to a reward model."""

from __future__ import annotations

import json

import pytest
from labelling_server import page_of
from typer.testing import CliRunner

from lm_env.cli import app
from lm_env.errors import ConfigurationError
from reward_models.labelling import Answer, Item, LabelStore

RUNNER = CliRunner()


def run(*arguments: object) -> str:
    result = RUNNER.invoke(app, ["label", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def labelled(path, prompts: int = 24) -> LabelStore:
    """Two annotators: one prefers what is good, the other does so but in every sixth case, and skips one."""
    store = LabelStore(path, per_item=2)
    store.add([Item(f"This film was {i}", (f" good, {i}", f" bad, {i}")) for i in range(prompts)])
    for name in ("ana", "ben"):
        for i in range(prompts):
            shown = store.present(name, lambda candidates: candidates[0])
            if name == "ben" and i == 7:
                store.record(name, Answer(f"{name} {i}", shown.id, "skip"))
                continue
            good = "good" if name == "ana" or i % 6 else "bad"
            ranking = tuple(int(good not in text) for text in shown.responses)
            store.record(name, Answer(f"{name} {i}", shown.id, "ranked", ranking, seconds=2.0))
    store.close()
    return store


def test_the_answers_become_a_reward_model_with_no_further_step(tmp_path):
    labelled(tmp_path / "labels.sqlite")
    assert "47 records" in run("export", tmp_path / "labels.sqlite", tmp_path / "out.jsonl")
    result = RUNNER.invoke(
        app,
        [
            "rm",
            "train",
            str(tmp_path / "out.jsonl"),
            "--out",
            str(tmp_path / "rm"),
            "--trunk",
            "frozen",
            "--epochs",
            "1",
        ],
    )
    assert result.exit_code == 0, result.output
    from reward_models import load_reward

    assert len(load_reward(tmp_path / "rm")(["This film was 1"], [" good"])) == 1
    result = RUNNER.invoke(app, ["prefs", "inspect", str(tmp_path / "out.jsonl"), "--json"])
    found = json.loads(result.output)
    assert found["annotators"] == {"ana": 24, "ben": 23} and found["contradictions"] == 4


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_merged_records_in_each_kind_of_file(tmp_path, ending):
    from reward_models.preferences import read_preferences

    labelled(tmp_path / "labels.sqlite")
    run("export", tmp_path / "labels.sqlite", tmp_path / f"out.{ending}", "--merge")
    records = read_preferences(tmp_path / f"out.{ending}")
    assert len(records) == 24
    sure = [record for record in records if record.confidence > 0.6]
    assert len(sure) == 20  # in the other four two annotators contradict each other
    assert all("good" in record.responses[record.best] for record in sure)


def test_trl_takes_the_answers_too(tmp_path):
    labelled(tmp_path / "labels.sqlite")
    run("export", tmp_path / "labels.sqlite", tmp_path / "out.jsonl", "--to", "pairs", "--annotator", "ana")
    row = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert "good" in row["chosen"] and "bad" in row["rejected"]


def test_the_report_names_annotators_and_agreement(tmp_path):
    labelled(tmp_path / "labels.sqlite")
    found = json.loads(run("report", tmp_path / "labels.sqlite", "--per-item", "2", "--json"))
    assert (found["questions"], found["done"], found["answers"]) == (24, 23, 48)
    (_, _, kappa) = found["agreement"]["kappas"][0]
    assert kappa["units"] == 23 and kappa["share"] == pytest.approx(19 / 23)
    text = run("report", tmp_path / "labels.sqlite")
    assert "Krippendorff's alpha" in text and "Cohen's kappa of ana and ben" in text


def test_reports_and_exports_of_nothing_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="no file"):
        run("report", tmp_path / "missing.sqlite")
    LabelStore(tmp_path / "empty.sqlite").close()
    with pytest.raises(ConfigurationError, match="no answers"):
        run("export", tmp_path / "empty.sqlite", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["data.jsonl", "--order", "best"], "order must be one of"),
        (["data.jsonl", "--span-types", "a,a"], "span types"),
        (["data.jsonl", "--format", "nothing"], "format must be one of"),
        (["missing.sqlite"], "no file"),
        (["no-such-model"], "no-such-model"),
    ],
)
def test_what_cannot_be_served_is_refused_before_the_page(tmp_path, monkeypatch, arguments, match):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    with pytest.raises(ValueError, match=match):
        run(*arguments)


def test_a_port_in_use_is_told(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    store = LabelStore(tmp_path / "other.sqlite")
    store.add([Item("p", ("a", "b"))])
    with page_of(store) as address:
        port = address.partition("/#")[0].rpartition(":")[2]
        with pytest.raises(ConfigurationError, match="choose another port"):
            run(tmp_path / "data.jsonl", "--out", tmp_path / "labels.sqlite", "--port", port)
    store.close()


def test_the_first_word_is_a_command_or_what_is_to_be_labelled():
    assert "MODEL_OR_FILE" in run("--help")
    assert "--per-item" in run("serve", "--help") and "--per-item" in run("data.jsonl", "--help")
    assert "--merge" in run("export", "--help")
