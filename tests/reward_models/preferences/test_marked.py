"""Reward models of marked spans: which segments they read, what they learn, and where the environment pays them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from saved_folders import flip
from typer.testing import CliRunner

from lm_env import TextGenerationEnv
from lm_env.cli import app
from lm_env.data.episodes import Episodes
from lm_env.errors import CheckpointCorruptError, ConfigurationError, InvalidPreferenceError, ModelLoadError
from lm_env.objective.scoring import score_episodes
from reward_models import Preference, load_reward, write_preferences
from reward_models.preferences.marked import (
    SpanHeadModel,
    SpanRewardModel,
    marked_segments,
    segments,
    train_span_reward_model,
)
from reward_models.preferences.records import LabelledSpan


@pytest.fixture
def span_model(text_lm, tokenizer):
    """An untrained reward model of spans."""

    def make(kinds=("bad", "odd"), outputs: int | None = None, **options) -> SpanRewardModel:
        network = SpanHeadModel(text_lm().base_model, outputs or len(kinds), seed=0)
        return SpanRewardModel(network, tokenizer, kinds, **options)

    return make


# -- segments ----------------------------------------------------------------------------------------
def cut(text: str) -> list[str]:
    return [text[start:end] for start, end in segments(text)]


def test_segments_golden():
    assert cut("It rained, by 3.5 mm. Why? Nobody knows") == ["It rained, ", "by 3.5 mm. ", "Why? ", "Nobody knows"]
    assert cut('He said "no."  Then left;\nshe too') == ['He said "no."  ', "Then left;\n", "she too"]
    assert cut("") == [] and cut("...") == ["..."] and cut("a") == ["a"]


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab .,;!?\n\"')", max_size=40))
def test_segments_make_up_the_whole_text(text):
    assert "".join(cut(text)) == text and all(cut(text))


def test_a_mark_belongs_to_the_segments_that_it_reaches_into():
    record = Preference(
        "p", ("aa, bb, cc", "dd"), (0, 0), spans=(LabelledSpan(0, 2, 5, "bad"), LabelledSpan(0, 8, 9, "odd"))
    )
    kinds, (text,) = marked_segments([record, Preference("q", ("x", "y"), (0, 1))])
    assert kinds == ("bad", "odd") and text.response == "aa, bb, cc", "nobody has marked the others"
    assert text.faults.tolist() == [[True, False], [True, False], [False, True]]
    assert marked_segments([record], ["odd"])[1][0].faults[:, 0].tolist() == [False, False, True]
    with pytest.raises(ConfigurationError, match="none of 1 records has marked spans"):
        marked_segments([Preference("q", ("x", "y"), (0, 1))])


# -- what is read ------------------------------------------------------------------------------------
def test_each_segment_is_read_at_its_last_token(span_model, tokenizer):
    """Against the trunk itself on the text up to there: it reads from left to right."""
    model = span_model()
    start = tokenizer("the end of")["input_ids"]
    text = "a good film. a story"
    (logits,) = model.segment_logits(["the end of"], [text])
    assert len(logits) == 2
    whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    for (_, end), found in zip(segments(text), logits, strict=True):
        ids = [
            token for token, (_, stop) in zip(whole["input_ids"], whole["offset_mapping"], strict=True) if stop <= end
        ]
        with torch.no_grad():
            hidden = model.network.trunk(input_ids=torch.tensor([[*start, *ids]])).last_hidden_state[0, -1]
            torch.testing.assert_close(torch.from_numpy(found), model.network.head(hidden), rtol=0, atol=1e-5)


def test_scores_do_not_depend_on_the_batch(span_model):
    model = span_model()
    prompts = ["a good", "the end of", "bad", "a story"]
    responses = ["film. a bad film", "good", "bad film, good, bad. " * 2, ""]
    together = model(prompts, responses)
    for prompt, response, spans in zip(prompts, responses, together, strict=True):
        (alone,) = model([prompt], [response])
        assert [(s.start, s.end) for s in spans] == [(s.start, s.end) for s in alone]
        np.testing.assert_allclose([s.score for s in spans], [s.score for s in alone], atol=1e-5)
    assert together[3] == [], "an empty response has no segments"


def test_a_row_that_is_too_long_loses_its_first_segments(tokenizer, text_lm):
    trunk = text_lm().base_model
    model = SpanRewardModel(SpanHeadModel(trunk, 1), tokenizer, ["bad"], max_length=12)
    text = "a good film. a bad film. the end of a story"
    (spans,) = model(["the"], [text])
    whole = SpanRewardModel(SpanHeadModel(trunk, 1), tokenizer, ["bad"], max_length=60)
    (every,) = whole(["the"], [text])
    assert 0 < len(spans) < len(every) == 3
    assert [(s.start, s.end) for s in spans] == [(s.start, s.end) for s in every[-len(spans) :]]


# -- learning ----------------------------------------------------------------------------------------
def marked_records(count: int, tokenizer_words=("good", "bad", "film", "story")) -> list[Preference]:
    """The segments with "bad" in them are marked."""
    rng = np.random.default_rng(0)
    records = []
    while len(records) < count:
        clauses = [" ".join(rng.choice(tokenizer_words, 3)) for _ in range(3)]
        text = ". ".join(clauses)
        places = segments(text)
        spans = tuple(LabelledSpan(0, a, b, "bad") for a, b in places if "bad" in text[a:b])
        if spans:
            records.append(Preference(f"p{len(records)}", (text,), spans=spans, ratings=(0.0,)))
    return records


def test_it_learns_what_was_marked_and_is_paid_there(tokenizer, text_lm, tmp_path):
    records = marked_records(120)
    _, texts = marked_segments(records)
    model = SpanRewardModel(SpanHeadModel(text_lm().base_model, 1), tokenizer, ["bad"])
    report = train_span_reward_model(model, texts[:100], texts[100:], epochs=20, learning_rate=3e-3)
    (share,) = report.shares
    assert share.ranked > 0.7 > 0.5 > share.by_length and share.segments == 60
    assert share.by_words > 0.8, "the word itself tells"
    prompts, responses = [r.prompt for r in records[:100]], [r.responses[0] for r in records[:100]]
    scores = np.array([s.score for spans in model(prompts, responses) for s in spans])
    assert abs(scores.mean()) < 1e-4 and abs(scores.std() - 1) < 1e-4, "an average segment is paid nothing"
    faulty = np.concatenate([text.faults[:, 0] for text in texts[:100]])
    assert scores[faulty].mean() < scores[~faulty].mean() - 1
    # Saved and loaded, it is a reward function of an environment, by name.
    folder = model.save(tmp_path / "rm")
    again = load_reward(str(folder), device="cpu")
    assert isinstance(again, SpanRewardModel) and again(["p"], ["bad film. good"]) == model(["p"], ["bad film. good"])
    flip(folder / "span_head.safetensors")
    with pytest.raises(CheckpointCorruptError):
        SpanRewardModel.load(folder)


def test_the_environment_pays_a_segment_when_it_ends_stepwise_and_episode_wise(span_model, tokenizer, text_lm):
    """Step by step through a text of three segments, beside the rewards of the whole episode."""
    model = span_model()
    env = TextGenerationEnv(
        model=text_lm(), tokenizer=tokenizer, prompts=["the end of"], reward=model, beta=0.0, max_new_tokens=20
    )
    text = " a good film. a bad story, a film"
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    env.reset(seed=0)
    paid = [env.step(token)[1] for token in ids]
    spans = model(["the end of"], [text])[0]
    assert [span.end for span in spans] == [15, 28, None]
    assert np.count_nonzero(np.abs(paid) > 1e-4) == 3 and paid[-1] == pytest.approx(spans[-1].score, abs=1e-5)
    prompt = env.unwrapped.task.prompts[0]
    row = np.array([[*prompt.ids, *ids]])
    episodes = Episodes(row, np.array([len(prompt.ids)]), np.array([row.shape[1]]), [prompt])
    np.testing.assert_allclose(score_episodes(env.unwrapped.task, episodes).rewards[0], paid, atol=1e-5)


def test_weights_of_kinds(span_model):
    plain, weighted = span_model(), span_model(weights={"bad": 2.0, "odd": 0.0})
    (logits,) = plain.segment_logits(["a"], ["good"])
    assert plain(["a"], ["good"])[0][0].score == pytest.approx(-float(logits.sum()), abs=1e-6)
    assert weighted(["a"], ["good"])[0][0].score == pytest.approx(-2 * float(logits[0, 0]), abs=1e-6)


@pytest.mark.parametrize(
    ("kinds", "options", "message"),
    [((), {}, "give one name"), (("a", "a"), {}, "give one name"), (("a",), {"weights": {"b": 1.0}}, "'b'")],
)
def test_impossible_settings(span_model, kinds, options, message):
    with pytest.raises(ConfigurationError, match=message):
        span_model(kinds, outputs=max(len(kinds), 1), **options)


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(ModelLoadError, match="no reward model of spans"):
        SpanRewardModel.load(tmp_path)


def test_from_a_file_on_the_command_line(tmp_path, model_folder):
    write_preferences(marked_records(40), tmp_path / "marked.jsonl")
    out = tmp_path / "rm"
    command = ["rm", "train", str(tmp_path / "marked.jsonl"), "--objective", "spans", "--model", model_folder]
    result = CliRunner().invoke(app, [*command, "--out", str(out), "--epochs", "2", "--trunk", "lora"])
    assert result.exit_code == 0, (result.exception, result.output)
    assert "segments held out" in result.output and not (tmp_path / "rm.unfinished").exists()
    assert json.loads((out / "span_reward_model.json").read_text())["kinds"] == ["bad"]
    (tmp_path / "plain.jsonl").write_text(
        "".join(json.dumps({"prompt": f"p{i}", "chosen": "a", "rejected": "b"}) + "\n" for i in range(30))
    )
    command[2] = str(tmp_path / "plain.jsonl")
    refused = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "other")])
    assert isinstance(refused.exception, ConfigurationError | InvalidPreferenceError)
