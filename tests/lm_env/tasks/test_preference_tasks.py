"""Tasks of human preference: prompts from files of comparisons or of prompts, a reward model, and a judge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lm_env.errors import ConfigurationError
from lm_env.tasks import check_task, get_task
from lm_env.tasks.dialogue import as_dialogue
from lm_env.tasks.stack_exchange import as_question
from lm_env.tasks.summarize import as_post

TASKS = ("lm_env/Dialogue-v0", "lm_env/Summarize-v0", "lm_env/StackExchange-v0")
HH = Path("/work/shared/data/hh_rlhf_200.jsonl")

JUDGES = '''"""Two judges that disagree."""
def reward(prompts, responses):
    return [float(len(response)) for response in responses]
def judge(prompts, responses):
    return [-float(len(response)) for response in responses]
'''


def write(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_dialogue_ends_where_the_assistant_answers():
    assert as_dialogue("hello") == "\n\nHuman: hello\n\nAssistant:"
    whole = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    assert as_dialogue(whole) == whole == as_dialogue(whole + " ") == as_dialogue(whole.removesuffix("\n\nAssistant:"))
    assert as_dialogue("Human: a") == "Human: a\n\nAssistant:"


def test_a_post_ends_where_its_summary_begins():
    assert (
        as_post("POST: x\nTL;DR:") == as_post("POST: x") == as_post("POST: x \nTL;DR: a summary") == "POST: x\nTL;DR:"
    )


def test_a_question_ends_where_its_answer_begins():
    assert as_question("How?") == as_question("Question: How?\n\nAnswer:") == "Question: How?\n\nAnswer:"


@pytest.mark.parametrize("name", TASKS)
def test_prompts_come_from_comparisons_and_from_prompts(name, tmp_path):
    rows = [{"prompt": f"question {i}", "chosen": "yes", "rejected": "no"} for i in range(12) for _ in range(2)]
    pairs = get_task(name, source=write(tmp_path / "pairs.jsonl", rows)).prompts("train")
    plain = get_task(name, source=write(tmp_path / "plain.jsonl", [{"prompt": r["prompt"]} for r in rows])).prompts(
        "train"
    )
    assert pairs == plain and len(pairs) == 10 and "question" in pairs[0]


def test_chats_and_transcripts_become_the_same_dialogue(tmp_path):
    opening = [{"role": "user", "content": "hi"}]
    chats = [{"prompt": [*opening, {"role": "assistant", "content": "ho"}, {"role": "user", "content": str(i)}],
              "chosen": [{"role": "assistant", "content": "a"}], "rejected": [{"role": "assistant", "content": "b"}]}
             for i in range(5)]  # fmt: skip
    begin = "\n\nHuman: hi\n\nAssistant: ho\n\nHuman: "
    texts = [{"chosen": f"{begin}{i}\n\nAssistant: a", "rejected": f"{begin}{i}\n\nAssistant: b"} for i in range(5)]
    found = [
        get_task(TASKS[0], source=write(tmp_path / f"{name}.jsonl", rows)).prompts("train")
        for name, rows in (("chats", chats), ("texts", texts))
    ]
    assert found[0] == found[1] and len(found[0]) == 3


def test_the_reward_is_trained_on_and_the_judge_is_measured(tmp_path):
    (tmp_path / "judges.py").write_text(JUDGES)
    source = write(tmp_path / "plain.jsonl", [{"prompt": f"question {i}"} for i in range(12)])
    judges = {"reward_model": f"{tmp_path}/judges.py:reward", "judge": f"{tmp_path}/judges.py:judge"}
    declared = get_task(TASKS[0], source=source, **judges)
    check_task(declared)
    task = declared.task("test", model="reviews-3m", max_new_tokens=4)
    assert task.reward(["a"], ["abc"]) == [3.0]
    assert declared.measure(list(task.prompts)[:1], ["abc"])["judge"].tolist() == [-3.0]
    without = get_task(TASKS[0], source=source)
    with pytest.raises(ConfigurationError, match="reward_model=FOLDER"):
        without.task("test", model="reviews-3m")


def test_a_file_that_is_neither_is_an_error(tmp_path):
    with pytest.raises(ConfigurationError, match="missing"):
        get_task(TASKS[0], source=str(tmp_path / "missing.jsonl")).prompts("train")
    with pytest.raises(ValueError, match=r"row|columns|format"):
        get_task(TASKS[0], source=write(tmp_path / "odd.jsonl", [{"x": 1}] * 4)).prompts("train")


@pytest.mark.skipif(not HH.exists(), reason="the comparisons of hh-rlhf are not here")
def test_real_comparisons_give_dialogues():
    task = get_task(TASKS[0], source=str(HH))
    sizes = [len(task.prompts(split)) for split in ("train", "validation", "test")]
    assert 190 <= sum(sizes) <= 200
    assert all(
        prompt.startswith("\n\nHuman:") and prompt.endswith("\n\nAssistant:") for prompt in task.prompts("train")
    )
