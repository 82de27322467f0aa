"""The page of a run: well-formed, safe, self-contained, and its numbers are those of the log."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_env.errors import CheckpointWriteError, ConfigurationError, LogReadError
from lm_env.report import read_run, render_report, write_report
from lm_env.report.run_folder import Run, Text
from lm_env.report.texts import pairs_of

VOID = {"meta", "line", "path", "circle", "br"}
ROW = {
    "rollout/score": 0.1,
    "rollout/score_se": 0.02,
    "rollout/kl": 0.0,
    "rollout/kl_se": 0.0,
    "rollout/reward": 0.1,
    "rollout/beta": 0.1,
    "rollout/entropy": 2.0,
    "time/total_timesteps": 1000,
    "time/tokens_per_s": 100.0,
    "time/rollout_s": 4.0,
    "time/update_s": 6.0,
}


class Tags(HTMLParser):
    """Fails where a tag is not closed, or another one is."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def write_progress(folder, rows) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with (folder / "progress.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def rows_of(scores, kls=None) -> list[dict]:
    kls = kls or [0.5 * i for i in range(len(scores))]
    pairs = enumerate(zip(scores, kls, strict=True), 1)
    return [{**ROW, "rollout/score": s, "rollout/kl": kl, "time/total_timesteps": 1000 * i} for i, (s, kl) in pairs]


@pytest.fixture
def folder(tmp_path):
    write_progress(tmp_path, rows_of([0.1, 0.3, 0.75]))
    texts = [
        {"timesteps": step, "prompt": f"prompt {i}", "response": " a b", "score": step / 1000, "kl": 0.0}
        for step in (0, 2000)
        for i in range(4)
    ]
    for row in texts:
        row |= {"tokens": [" a", " b"], "log_ratios": [0.9 if row["timesteps"] else 0.0, -2.0]}
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    (tmp_path / "warnings.jsonl").write_text('{"timesteps": 2000, "warning": "entropy has fallen"}\n')
    (tmp_path / "run.yaml").write_text(
        "agent: ppo\nenv: lm_env/Sentiment-v0\nseed: 5\nabout:\n  command: lm-env train --agent ppo --seed 5\n"
    )
    return tmp_path


# -- what it says ------------------------------------------------------------------------------------------
def test_its_numbers_are_those_of_the_log(folder):
    page = Tags(render_report(read_run(folder)))
    assert "The mean score rose from 0.10 ± 0.04 to 0.75 ± 0.04, at a KL of 1 nats" in page.words
    assert "ppo on lm_env/Sentiment-v0" in page.words and "seed 5" in page.words
    assert "lm-env train --agent ppo --seed 5" in page.words
    assert "After 2,000 tokens: entropy has fallen." in page.words
    assert '"env": "lm_env/Sentiment-v0", "seed": 5' in page.words  # all settings, as they are


def test_a_change_within_the_errors_is_called_none(folder):
    write_progress(folder, rows_of([0.1, 0.3, 0.12]))
    assert (
        "did not move clearly: 0.10 ± 0.04 at first, 0.12 ± 0.04 at last" in Tags(render_report(read_run(folder))).words
    )


def test_every_curve_begins_at_step_0(folder):
    """A rollout's numbers belong to the tokens before it; the first shows the model that nothing was taught."""
    curve = read_run(folder).progress.curve("rollout/score")
    assert curve.x == [0, 1000, 2000] and curve.y == [0.1, 0.3, 0.75]


def test_titles_axes_and_labels_of_the_curves(folder):
    words = Tags(render_report(read_run(folder))).words
    for text in (
        "Score",
        "mean score",
        "KL to the reference",
        "KL, nats per response",
        "generated tokens",
        "reference",
    ):
        assert text in words
    assert "Score against KL" in words and "β 0.1" in words


def test_an_evaluation_before_the_training_alone_does_not_tell_what_came_of_it(folder):
    before = {"eval/score": 0.2, "eval/score_se": 0.01, "eval/kl": 0.0, "time/total_timesteps": 0}
    write_progress(folder, [before, *rows_of([0.1, 0.3, 0.75])])
    words = Tags(render_report(read_run(folder))).words
    assert "The mean score rose from 0.10 ± 0.04 to 0.75 ± 0.04" in words
    assert "prompts that are not trained on 0.20 ± 0.02 not yet" in words


def test_held_out_numbers_come_first_where_there_are_any(folder):
    held_out = {"eval/score": 0.2, "eval/score_se": 0.01, "eval/kl": 0.0, "eval/J": 0.2, "eval/attained": 0.0}
    rows = [
        {"time/total_timesteps": 0, **held_out},
        *rows_of([0.1, 0.3]),
        {"time/total_timesteps": 2000, **held_out, "eval/score": 0.6, "eval/J": 0.5, "eval/attained": 0.41},
    ]
    write_progress(folder, rows)
    run = read_run(folder)
    assert run.progress.curve("eval/score").x == [0, 2000] and run.progress.curve("rollout/score").x == [0, 1000]
    words = Tags(render_report(run)).words
    assert "The mean score on held-out prompts rose from 0.20 ± 0.02 to 0.60 ± 0.02" in words
    assert "41% of what can be attained" in words


def test_the_share_of_a_ceiling_that_lies_beside_the_log(folder):
    ceiling = {
        "beta": 0.1,
        "ceiling": {"J_ref": {"mean": 0.1}, "J": {"mean": 0.5}},
        "frontier": [{"KL": 1, "score": 1}],
    }
    write_progress(folder, [{**row, "rollout/reward": r} for row, r in zip(rows_of([0, 0]), (0.1, 0.3), strict=True)])
    for beta, said in ((0.1, True), (0.2, False)):  # another beta has another optimum
        (folder / "ceiling.json").write_text(json.dumps({**ceiling, "beta": beta}))
        assert ("50% of what can be attained" in Tags(render_report(read_run(folder))).words) == said


def test_texts_stand_beside_each_other_with_their_tokens_colored(folder):
    page = Tags(render_report(read_run(folder)))
    looks = [
        (attributes["class"], attributes["title"])
        for tag, attributes in page.tags
        if "title" in attributes and "class" in attributes
    ]
    assert ("more2", "2.46 times likelier than under the reference") in looks
    assert ("less3", "7.39 times less likely than under the reference") in looks
    assert page.words.count("before training: score 0") == 4 and page.words.count("after 2,000 tokens: score 2") == 4


def test_prompts_that_never_recur_are_shown_apart():
    texts = [Text(t, f"p{t}{i}", "r", 0.0, 0.0) for t in (0, 10) for i in range(6)]
    pairs = pairs_of(texts)
    assert {(p.before is None, p.after is None) for p in pairs} == {(False, True), (True, False)} and len(pairs) == 8


def test_the_log_of_stable_baselines3_alone(tmp_path):
    write_progress(
        tmp_path,
        [
            {"rollout/ep_rew_mean": r, "rollout/ep_len_mean": 9, "time/total_timesteps": t}
            for r, t in ((1, 64), (2, 128))
        ],
    )
    page = Tags(render_report(read_run(tmp_path)))
    assert "The mean reward of an episode rose from 1 to 2." in page.words
    assert read_run(tmp_path).progress.curve("rollout/ep_rew_mean").x == [0, 64]


# -- safe and whole ------------------------------------------------------------------------------------------
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> & \" ' </p></svg> {{ 7*7 }} \u202eabc\x1b[31m\ud800"


def test_hostile_text_is_shown_and_does_nothing(tmp_path):
    write_progress(tmp_path, [{**row, f"rollout/score/{HOSTILE[:60]}": 0.1} for row in rows_of([0.1, 0.3])])
    text = {"prompt": HOSTILE, "response": HOSTILE, "score": 1, "kl": 1, "tokens": [HOSTILE], "log_ratios": [1.0]}
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps({"timesteps": t, **text}) + "\n" for t in (0, 5)))
    (tmp_path / "warnings.jsonl").write_text(json.dumps({"timesteps": 1, "warning": HOSTILE}) + "\n")
    (tmp_path / "run.json").write_text(json.dumps({"agent": HOSTILE, "command": HOSTILE, "task": {"reward": HOSTILE}}))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    found = Tags(page)
    assert not {tag for tag, _ in found.tags} & {"script", "img"}
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in found.words and "{{ 7*7 }}" in found.words
    assert not re.search("[\u202e\x1b\ud800]", page) and "\\u202e" in page
    assert "Content-Security-Policy" in page and "default-src 'none'" in page


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=4), st.floats(), st.text(max_size=20))
def test_any_text_and_any_number_make_a_whole_page(texts, number, name):
    from pathlib import Path

    from lm_env.report.progress_table import ProgressTable

    table = ProgressTable(
        [1.0, 2.0], [0.0, 1.0], {"rollout/score": [0.5, number], f"rollout/score/{name}": [1.0, number]}
    )
    run = Run(
        Path("here"),
        table,
        [Text(i, text, text, number, number, (text, text), (number, None)) for i, text in enumerate(texts)],
        settings={"agent": name, "task": {"reward": name}},
    )
    render_report(run).encode()
    Tags(render_report(run))


def test_it_needs_nothing_from_elsewhere(folder):
    page = render_report(read_run(folder))
    found = Tags(page)
    links = [a.get(n) for _, a in found.tags for n in ("src", "href") if a.get(n)]
    assert all(link.startswith("#") for link in links) and "url(" not in page and "@import" not in page
    assert "prefers-color-scheme: dark" in page


def test_lines_differ_by_more_than_their_colors(folder):
    """Whoever sees no colors tells them apart by dashes and by the names at their ends."""
    page = render_report(read_run(folder))
    dashes = dict(re.findall(r"\.line\.(\w+) \{[^}]*?stroke-dasharray: ([^;]+);", page))
    assert len(set(dashes.values())) == len(dashes) == 4  # b, c, d and ref; a is drawn through


def test_a_page_is_made_without_torch(folder):
    code = (
        "import sys; from lm_env.report import write_report; write_report(sys.argv[1]);"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


# -- what is missing, and what is broken ---------------------------------------------------------------------
@pytest.mark.parametrize("name", ["progress.csv", "samples.jsonl", "warnings.jsonl", "run.yaml"])
def test_a_missing_file_is_left_out(folder, name):
    (folder / name).unlink()
    Tags(write_report(folder).read_text())


def test_the_folder_of_a_demo(folder):
    (folder / "log").mkdir()
    for name in ("progress.csv", "samples.jsonl", "warnings.jsonl"):
        (folder / name).rename(folder / "log" / name)
    (folder / "run.yaml").unlink()
    config = {"model": "reviews-3m", "judge": "lexicon", "beta": 0.25, "out": "runs/demo", "prompts": None}
    summary = {"gold_before": 0.1, "gold_after": 0.6, "seed": 3, "config": config}
    (folder / "summary.json").write_text(json.dumps(summary))
    task = {"model": "LlamaForCausalLM", "parameters": 3_412_345}
    (folder / "log" / "run.json").write_text(json.dumps({"agent": "PPO", "env": "TextGenerationEnv", "task": task}))
    words = Tags(render_report(read_run(folder))).words
    assert "reviews-3m, 3.41M parameters" in words
    assert "PPO on reviews-3m" in words and "judge\u2019s score, held out" in words
    assert "lm-env demo --model reviews-3m --reward lexicon --beta 0.25 --out runs/demo" in words


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(ConfigurationError, match=r"holds no run: there is no progress\.csv"):
        write_report(tmp_path)
    with pytest.raises(ConfigurationError, match="is no folder"):
        write_report(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("progress.csv", "a,b\n1,2\n", "has no column time/total_timesteps"),
        ("progress.csv", "time/total_timesteps,rollout/score\n1,0.5\n2,oops\n", r"line 3: rollout/score is 'oops'"),
        ("progress.csv", "time/total_timesteps,a\n1,2,3\n", "line 2, has 3 cells for 2 columns"),
        ("progress.csv", "time/total_timesteps\n-5\n", "line 2: time/total_timesteps is -5"),
        ("progress.csv", b"\xff\xfe\x00", "cannot be read"),
        ("samples.jsonl", "{}\n{}\n", "line 1, is no text of a run"),
        ("samples.jsonl", "[\n{}\n", "line 1, is no JSON"),
        (
            "samples.jsonl",
            '{"timesteps": 1, "prompt": "p", "response": "r", "score": 1, "tokens": ["a"]}',
            "1 tokens and 0",
        ),
        ("warnings.jsonl", "3\n", "line 1, is no table"),
        ("run.yaml", "a: [", "is no YAML"),
        ("run.json", "{", "is no JSON"),
        ("run.json", "[]", "holds no table"),
    ],
)
def test_a_broken_file_is_named_with_its_line(folder, name, content, words):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LogReadError, match=words) as caught:
        write_report(folder)
    assert name in str(caught.value) and "\n" not in str(caught.value)
    assert not (folder / "report.html").exists()


def test_an_old_page_survives_a_failure(folder, tmp_path):
    write_report(folder)
    old = (folder / "report.html").read_bytes()
    (folder / "run.json").write_text("{")
    with pytest.raises(LogReadError):
        write_report(folder)
    assert (folder / "report.html").read_bytes() == old
    with pytest.raises(CheckpointWriteError, match="choose another --out"):
        write_report_of_sound(folder, folder / "run.yaml" / "page.html")
    assert not [name for name in os.listdir(folder) if name.endswith(".new")]


def write_report_of_sound(folder, out):
    (folder / "run.json").unlink()
    return write_report(folder, out)


def test_no_yaml_makes_an_object(folder):
    (folder / "run.yaml").write_text("agent: !!python/object/apply:os.system ['touch /tmp/never']\n")
    with pytest.raises(LogReadError, match="is no YAML"):
        write_report(folder)
