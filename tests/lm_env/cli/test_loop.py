"""`lm-env loop` and `lm-env dpo`, as a user types them: rounds, labels through a file, going on after a stop."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from lm_env.cli import app
from lm_env.cli.loop import FileLabeller, GoldLabeller, LoopConfig, run_loop
from lm_env.cli.loop.labellers import TO_LABEL
from lm_env.errors import ConfigurationError, InvalidPreferenceError, LabelsAwaited
from lm_env.runs.agents import agent_kind
from reward_models import Preference, write_preferences

JUDGE = """
def letters(prompts, responses, **columns):
    return [sum(c in 'aeiou' for c in r) / 10 for r in responses]
"""


@pytest.fixture
def task(tmp_path, model_folder):
    """The options of a small loop."""
    (tmp_path / "prompts.txt").write_text("a good film\na bad film\nthe end of\na story\ngood\nbad\n")
    (tmp_path / "judge.py").write_text(JUDGE)
    return {
        "model": model_folder,
        "prompts": str(tmp_path / "prompts.txt"),
        "judge": f"{tmp_path / 'judge.py'}:letters",
        "comparisons": 64,
        "timesteps": 300,
        "new_tokens": 4,
        "seed": 3,
        "rounds": 2,
    }


def invoke(command: str, *positional: object, **options: object):
    flags = {"judge": "reward", "new_tokens": "new-tokens"}
    given = [part for name, value in options.items() for part in (f"--{flags.get(name, name)}", value)]
    arguments = [str(part) for part in (command, *positional, *given) if part is not True]
    return CliRunner().invoke(app, arguments, terminal_width=200, env={"NO_COLOR": "1", "COLUMNS": "200"})


def weights(folder) -> bytes:
    return (folder / "policy" / "model.safetensors").read_bytes()


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rounds_go_on_from_one_another_and_a_loop_from_where_it_was_stopped(tmp_path, task, model_folder):
    out = tmp_path / "loop"
    result = invoke("loop", out=out, **task)
    assert result.exit_code == 0, (result.exception, result.output)
    summary = json.loads((out / "summary.json").read_text())
    one, two = summary["rounds"]
    assert one["all_comparisons"] == one["comparisons"] > 20
    assert two["all_comparisons"] == one["comparisons"] + two["comparisons"], "the reward model learns from all so far"
    assert summary["supervised"]["kl"] == pytest.approx(0, abs=1e-5) and {"gold", "rm_score", "kl"} <= two.keys()
    begun = yaml.safe_load((out / "round-2" / "run.yaml").read_text())
    assert begun["model"] == str(out / "round-1" / "policy") and begun["reference"] == model_folder
    assert weights(out / "round-1") != weights(out / "round-2")
    assert rows(out / "round-1" / "pairs.jsonl") != rows(out / "round-2" / "pairs.jsonl")
    assert (out / "loop.png").read_bytes().startswith(b"\x89PNG")
    # Begun anew it is not; stopped in its second round it goes on to the same weights.
    refused = invoke("loop", out=out, **task)
    assert isinstance(refused.exception, ConfigurationError) and "holds a loop: go on" in str(refused.exception)
    part = tmp_path / "part"
    shutil.copytree(out / "round-1", part / "round-1")
    (part / "round-2").mkdir()
    for name in ("loop.yaml", "supervised.json", "round-2/pairs.jsonl"):
        shutil.copy(out / name, part / name)
    begun = (part / "loop.yaml").read_text()
    (part / "loop.yaml").write_text(begun)
    again = invoke("loop", out=part, resume=True)
    assert again.exit_code == 0, (again.exception, again.output)
    assert "kept:" in again.output
    assert weights(part / "round-2") == weights(out / "round-2")
    changed = invoke("loop", out=part, resume=True, beta=0.7)
    assert isinstance(changed.exception, ConfigurationError) and "beta is 0.1 in" in str(changed.exception)


def test_the_demo_is_the_first_round(tmp_path, task):
    same = {name: value for name, value in task.items() if name != "rounds"}
    loop = invoke("loop", out=tmp_path / "loop", rounds=1, beta=0.25, **same)
    demo = invoke("demo", out=tmp_path / "demo", beta=0.25, **same)
    assert (loop.exit_code, demo.exit_code) == (0, 0), (loop.exception, demo.exception)
    assert weights(tmp_path / "loop" / "round-1") == weights(tmp_path / "demo")


def pairs_of(count: int) -> list[dict]:
    return [
        {
            "prompt": f"p{i}",
            "response_a": "aeiou"[: i % 5 + 1],
            "response_b": "xyz",
            "prompt_ids": [1, i],
            "response_ids_a": [2, i],
            "response_ids_b": [3, i],
            "columns": {"source": "s"},
        }
        for i in range(count)
    ]


def letters(prompts, responses, **columns):
    return [sum(c in "aeiou" for c in r) for r in responses]


def test_labels_through_a_file_are_those_of_the_judge_who_made_them(tmp_path):
    """Two independent ways: the gold rule, and its answers written and read as a file of records."""
    pairs = pairs_of(30)
    labeller = FileLabeller()
    with pytest.raises(LabelsAwaited, match=r"30 pairs wait for labels.*resume=True") as awaited:
        labeller.label(pairs, tmp_path)
    assert awaited.value.code == LabelsAwaited.EXIT_CODE == 4
    asked = rows(tmp_path / TO_LABEL)
    assert asked[0] == {"source": "s", "prompt": "p0", "responses": ["a", "xyz"]}
    labelled = [
        Preference(row["prompt"], tuple(row["responses"][::-1]), ratings=tuple(letters([], row["responses"][::-1])))
        for row in reversed(asked)  # in another order, sides exchanged
    ]
    write_preferences(labelled, tmp_path / "labelled.jsonl")
    found = labeller.label(pairs, tmp_path)
    assert sorted(found, key=lambda c: c.prompt) == sorted(
        GoldLabeller(letters, "letters").label(pairs, tmp_path), key=lambda c: c.prompt
    )


def test_ties_and_labels_that_nobody_asked_for(tmp_path):
    pairs = pairs_of(30)
    records = [Preference(p["prompt"], (p["response_a"], p["response_b"]), (0, 1)) for p in pairs]
    tied = [Preference(p["prompt"], (p["response_a"], p["response_b"]), (0, 0)) for p in pairs[:5]]
    write_preferences([*tied, *records[5:]], tmp_path / "labelled.jsonl")
    assert len(FileLabeller().label(pairs, tmp_path)) == 25
    write_preferences([*tied, *records[15:]], tmp_path / "labelled.jsonl")
    with pytest.raises(ConfigurationError, match="only 15 of 30"):
        FileLabeller().label(pairs, tmp_path)
    write_preferences([*records, Preference("other", ("a", "b"), (0, 1))], tmp_path / "labelled.jsonl")
    with pytest.raises(InvalidPreferenceError, match="record 30 of"):
        FileLabeller().label(pairs, tmp_path)


def test_a_loop_stops_for_labels_and_goes_on_with_them(tmp_path, task):
    out = tmp_path / "loop"
    options = {name: value for name, value in task.items() if name != "judge"} | {"labels": "file", "rounds": 1}
    stopped = invoke("loop", out=out, **options)
    assert stopped.exit_code == 4, (stopped.exception, stopped.output)
    assert not (out / "round-1" / "policy").exists()
    waiting = rows(out / "round-1" / TO_LABEL)
    answers = [{"prompt": r["prompt"], "chosen": max(r["responses"]), "rejected": min(r["responses"])} for r in waiting]
    (out / "round-1" / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    result = invoke("loop", out=out, resume=True)
    assert result.exit_code == 0, (result.exception, result.output)
    (measured,) = json.loads((out / "summary.json").read_text())["rounds"]
    assert measured["comparisons"] == len(waiting) and "gold" not in measured, "there is no judge who could measure"


@pytest.mark.parametrize("pairs", ["reference", "best-worst"])
def test_the_other_pairs_of_later_rounds(tmp_path, task, pairs):
    config = LoopConfig(out=tmp_path / "loop", **{**task, "comparisons": 48, "timesteps": 60}, pairs=pairs)
    summary = run_loop(config)
    assert len(summary["rounds"]) == 2
    second = rows(tmp_path / "loop" / "round-2" / "pairs.jsonl")
    assert len(second) == 48 and any(row["response_a"] != row["response_b"] for row in second)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"labels": "guess"}, "judge"), ({"pairs": "all"}, "best-worst"), ({"judge": None}, "name a reward function")],
)
def test_impossible_settings_of_a_loop(tmp_path, options, message):
    with pytest.raises(ConfigurationError, match=message):
        LoopConfig(out=tmp_path, **options)


# -- dpo ---------------------------------------------------------------------------------------------
def test_dpo_from_a_file_to_a_model(tmp_path, model_folder):
    path = tmp_path / "pairs.jsonl"
    write = [{"prompt": f"a good {i}", "chosen": " good film", "rejected": " bad film"} for i in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in write))
    options = {"out": tmp_path / "dpo", "learning-rate": 0.003, "epochs": 3, "new-tokens": 4}
    result = invoke("dpo", model_folder, path, **options)
    assert result.exit_code == 0, (result.exception, result.output)
    assert "on 3 comparisons held out: accuracy of the implied reward 1.000" in result.output
    assert "KL to the model before" in result.output and not (tmp_path / "dpo.unfinished").exists()
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "dpo")
    original = AutoModelForCausalLM.from_pretrained(model_folder)
    assert any((a != b).any() for a, b in zip(trained.parameters(), original.parameters(), strict=True))
    refused = invoke("dpo", model_folder, path, **options)
    assert isinstance(refused.exception, ConfigurationError) and "choose another --out" in str(refused.exception)


def test_dpo_is_no_agent_of_an_environment():
    with pytest.raises(ConfigurationError, match="lm-env dpo MODEL FILE"):
        agent_kind("dpo")
