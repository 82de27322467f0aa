"""From a file of preferences to a reward: encoders, templates, ensembles, folders, and the commands."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys

import numpy as np
import pytest
import torch
from saved_folders import edit_json, files_of, flip
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

import lm_env
from lm_env.cli import app, main
from lm_env.errors import (
    CheckpointCorruptError,
    CheckpointMismatchError,
    ConfigurationError,
    ModelLoadError,
    UnsupportedModelError,
)
from lm_env.runs.judges import make_judge
from reward_models import (
    Preference,
    Recipe,
    RewardEnsemble,
    RewardModel,
    SequenceClassifierReward,
    load_reward,
    train_from_preferences,
    write_preferences,
)
from reward_models.preferences.inspection import inspect_preferences, leaks
from reward_models.preferences.recipe import held_out_records, remove_training_checkpoints

SMALL_BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
    "initializer_range": 0.25,
}
WORDS = ["good", "bad", "film", "it", "was"]


def film_records(count: int, seed: int = 0, k: int = 2) -> list[Preference]:
    """The text with more "good" in it is preferred."""
    rng = np.random.default_rng(seed)
    records = []
    while len(records) < count:
        texts = tuple(" ".join(rng.choice(WORDS, 5)) for _ in range(k))
        ratings = tuple(float(t.count("good")) for t in texts)
        if len(set(ratings)) == k:
            records.append(Preference(f"film {len(records)}", texts, ratings=ratings))
    return records


@pytest.fixture(scope="module")
def encoder() -> tuple[BertModel, PreTrainedTokenizerFast]:
    """A tiny BERT and a tokenizer of whole words."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, "a", "what", "?"]
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(names), **SMALL_BERT)
    return BertModel(config).eval(), tokenizer


# -- encoders --------------------------------------------------------------------------------------
def test_an_encoder_reads_both_ways_and_never_a_pad(encoder):
    model = RewardModel.from_causal_lm(*encoder)
    assert not model.network.causal and model.network.pooling == "mean"
    rows = model.encode(["what ?", ""], ["good film", "bad"])
    assert rows == [[2, 10, 11, 3, 4, 6, 3], [2, 5, 3]]
    alone = [model.network(torch.tensor([row]), torch.tensor([len(row)])).item() for row in rows]
    for fill in (0, 7):
        padded = torch.full((2, 12), fill)
        for i, row in enumerate(rows):
            padded[i, : len(row)] = torch.tensor(row)
        together = model.network(padded, torch.tensor([len(row) for row in rows]))
        np.testing.assert_allclose(together.tolist(), alone, rtol=1e-5)
    with torch.no_grad():  # by transformers' own masked forward, and the mean over the row
        hidden = model.network.trunk(input_ids=torch.tensor([rows[0]])).last_hidden_state[0].mean(0)
        expected = model.network.head(hidden).item()
    assert alone[0] == pytest.approx(expected, rel=1e-5)
    first = RewardModel.from_causal_lm(*encoder, pooling="first")
    assert first(["what ?"], ["good film"])[0] != pytest.approx(alone[0])
    with pytest.raises(ConfigurationError, match="pooling"):
        RewardModel.from_causal_lm(*encoder, pooling="last")


def test_a_long_pair_keeps_the_frame_and_the_response(encoder):
    model = RewardModel.from_causal_lm(*encoder, max_length=7)
    assert model.encode(["what ? a film it"], ["good film"]) == [[2, 6, 7, 3, 4, 6, 3]]
    assert model.encode(["what ?"], ["good good good good good bad film"]) == [[2, 3, 4, 4, 5, 6, 3]]


def test_an_encoder_reads_the_text_of_a_policy_with_other_tokens(encoder, text_task):
    model = RewardModel.from_causal_lm(*encoder)
    env = lm_env.TextGenerationEnv(**text_task(reward=model))
    env.reset(seed=0)
    ended = False
    while not ended:
        _, _, terminated, truncated, info = env.step(env.action_space.sample())
        ended = terminated or truncated
    assert np.isfinite(info["score"])


@pytest.mark.parametrize("trunk", ["full", "frozen"])
def test_an_encoder_learns_and_is_saved(encoder, trunk, tmp_path):
    encoder[0].save_pretrained(tmp_path / "encoder")
    encoder[1].save_pretrained(tmp_path / "encoder")
    recipe = Recipe(str(tmp_path / "encoder"), trunk=trunk, epochs=12, learning_rate=3e-3, batch_size=16, device="cpu")
    trained = train_from_preferences(film_records(200), recipe)
    right = [np.argmax(trained.reward([r.prompt] * 2, r.responses)) == r.best for r in trained.held_out]
    assert len(right) == 20 and np.mean(right) > {"full": 0.85, "frozen": 0.6}[trunk]
    trained.save(tmp_path / "rm")
    again = load_reward(tmp_path / "rm")
    np.testing.assert_array_equal(again(["what ?"], ["good"]), trained.reward(["what ?"], ["good"]))
    assert again.network.pooling == "mean"
    records, digests, facts = held_out_records(tmp_path / "rm")
    assert records == trained.held_out and len(digests) == 180 and facts["recipe"]["trunk"] == trunk


@pytest.mark.parametrize("trunk", ["full", "lora"])
def test_a_killed_training_goes_on_to_the_same_scores(encoder, trunk, tmp_path):
    """Killed in the second member of an ensemble."""
    trunk_model, tokenizer = encoder
    trunk_model.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    recipe = Recipe(str(tmp_path / "bert"), trunk, epochs=2, batch_size=8, ensemble=2, held_out_fraction=0.2)
    records = film_records(50)
    texts = (["film"] * 2, ["good film it was bad", "bad bad it was"])
    whole = train_from_preferences(records, recipe)
    members = []

    def killed(sentence):
        members.append(sentence)
        if len(members) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_from_preferences(records, recipe, say=killed, checkpoints=tmp_path / "unfinished")
    assert sorted(path.name for path in (tmp_path / "unfinished").iterdir()) == ["member-0"]
    torch.manual_seed(99)  # the state of no global generator matters
    again = train_from_preferences(records, recipe, checkpoints=tmp_path / "unfinished", resume=True)
    np.testing.assert_array_equal(whole.reward.scores(*texts), again.reward.scores(*texts))
    assert [r.losses for r in whole.reports] == [r.losses for r in again.reports]
    with pytest.raises(CheckpointMismatchError, match="drop_ties differs"):
        other = dataclasses.replace(recipe, drop_ties=True)
        train_from_preferences(records, other, checkpoints=tmp_path / "unfinished", resume=True)
    remove_training_checkpoints(tmp_path / "unfinished")
    assert not (tmp_path / "unfinished").exists()


def test_adapters_on_another_base_are_not_gone_on_with(encoder, tmp_path):
    _, tokenizer = encoder
    for name, seed in (("one", 1), ("two", 2)):
        torch.manual_seed(seed)
        BertModel(BertConfig(vocab_size=len(tokenizer), **SMALL_BERT)).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    recipe = Recipe(str(tmp_path / "one"), "lora", epochs=1, batch_size=8, held_out_fraction=0.2)
    train_from_preferences(film_records(30), recipe, checkpoints=tmp_path / "unfinished")
    with pytest.raises(CheckpointMismatchError, match="frozen_weights differs"):
        other = dataclasses.replace(recipe, model=str(tmp_path / "two"))
        train_from_preferences(film_records(30), other, checkpoints=tmp_path / "unfinished", resume=True)


def test_the_reference_samples_score_mean_0_and_std_1(model_folder):
    trained = train_from_preferences(film_records(60), Recipe(model_folder, device="cpu"))
    texts = list(dict.fromkeys((r.prompt, t) for r in trained.compared for t in r.responses))
    scores = trained.reward(*map(list, zip(*texts, strict=True))).astype(np.float64)
    assert abs(scores.mean()) <= 1e-5 and abs(scores.std() - 1) <= 1e-5


# -- templates -------------------------------------------------------------------------------------
def test_a_template_shows_what_the_policy_does_not_see(encoder):
    model = RewardModel.from_causal_lm(*encoder, template="it was {fact} {prompt}")
    rows = model.encode(["what ?"], ["film"], columns={"fact": ["bad"]})
    assert rows == [[2, 7, 8, 5, 10, 11, 3, 6, 3]]
    good, bad = (model(["what ?"], ["film"], fact=[fact])[0] for fact in ("good", "bad"))
    assert good != bad
    with pytest.raises(ConfigurationError, match="its fields may be prompt, other"):
        model.encode(["what ?"], ["film"], columns={"other": ["bad"]})
    for template in ("{fact}", "{prompt"):
        with pytest.raises(ConfigurationError, match="template"):
            RewardModel.from_causal_lm(*encoder, template=template)


def test_a_reward_model_learns_from_the_column_that_decides(tmp_path, text_lm, tokenizer):
    text_lm().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    records = []
    for i in range(160):
        gold, other = rng.permutation(["good", "bad"]).tolist()
        records.append(Preference.pair(f"film {i}", gold, other, columns={"gold": gold}))
    found = []
    for template in ("{prompt}", "{gold} {prompt}"):
        recipe = Recipe(
            str(tmp_path),
            template=template,
            epochs=4,
            learning_rate=3e-3,
            batch_size=8,
            device="cpu",
            held_out_fraction=0.2,
        )
        trained = train_from_preferences(records, recipe)
        right = [
            np.argmax(trained.reward([r.prompt] * 2, r.responses, gold=[r.columns["gold"]] * 2)) == r.best
            for r in trained.held_out
        ]
        found.append(np.mean(right))
    assert found[0] < 0.75 < 0.9 < found[1]


# -- folders ---------------------------------------------------------------------------------------
def test_transformers_reads_the_folder_as_a_classifier(text_lm, tokenizer, tmp_path, recwarn):
    model = RewardModel.from_causal_lm(text_lm(), tokenizer)
    texts = ["a good film", "the end", "bad"]
    model.normalize([""] * 3, texts)
    model.save(tmp_path / "rm")
    assert not recwarn.list
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").eval()
    assert theirs.num_labels == 1
    rows = model.encode([""] * 3, texts)
    logits = []
    for row in rows:
        hidden = theirs.base_model(input_ids=torch.tensor([row])).last_hidden_state
        logits.append(theirs.score(hidden)[0, -1].item())
    ours = model([""] * 3, texts)
    np.testing.assert_allclose(np.diff(logits), np.diff(ours), rtol=1e-4, atol=1e-5)
    # And as the reward that any classifier is.
    judge = SequenceClassifierReward(theirs, tokenizer, template="{prompt}{response}" + tokenizer.eos_token)
    np.testing.assert_allclose(np.diff(judge([""] * 3, texts)), np.diff(ours), rtol=1e-4, atol=1e-5)
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("transformers").addHandler(handler)
    try:
        again = load_reward(tmp_path / "rm")
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    np.testing.assert_array_equal(again([""] * 3, texts), ours)
    assert not said  # no report of transformers about the classifier's head


def test_a_folder_of_the_first_version_is_read(text_lm, tokenizer, tmp_path):
    model = RewardModel.from_causal_lm(text_lm(), tokenizer, max_length=9)
    model.save(tmp_path / "rm")
    edit_json(
        tmp_path / "rm",
        "reward_model.json",
        lambda old: {"version": 1, "max_length": old["max_length"], "batch_tokens": old["batch_tokens"]},
    )
    again = RewardModel.load(tmp_path / "rm")
    assert again.max_length == 9 and again.template == "{prompt}"
    np.testing.assert_array_equal(again(["a"], ["b"]), model(["a"], ["b"]))


def test_what_is_no_reward_is_refused(tmp_path, text_lm, tokenizer):
    with pytest.raises(ModelLoadError):
        load_reward(tmp_path / "nothing")
    from transformers import T5Config, T5Model

    t5 = T5Model(T5Config(vocab_size=8, d_model=8, d_ff=8, num_layers=1, num_heads=1, d_kv=8))
    with pytest.raises(UnsupportedModelError, match="no transformers trunk"):
        RewardModel.from_causal_lm(t5, tokenizer)


# -- ensembles -------------------------------------------------------------------------------------
def test_an_ensemble_by_hand_and_from_a_folder(text_lm, tokenizer, tmp_path):
    members = [RewardModel.from_causal_lm(text_lm(), tokenizer, seed=seed) for seed in range(3)]
    prompts, responses = ["", "a"], ["good", "bad film"]
    each = np.stack([member(prompts, responses) for member in members])
    expected = {
        "mean": each.mean(0),
        "lowest": each.min(0),
        "uncertainty": each.mean(0) - 0.25 * each.var(0),
    }
    for combine, scores in expected.items():
        ensemble = RewardEnsemble(members, combine=combine, penalty=0.25)
        np.testing.assert_allclose(ensemble(prompts, responses), scores, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(ensemble.disagreement(prompts, responses), each.std(0), rtol=1e-4, atol=1e-6)
        ensemble.save(tmp_path / combine)
        again = load_reward(tmp_path / combine)
        assert isinstance(again, RewardEnsemble) and again.combine == combine
        np.testing.assert_allclose(again(prompts, responses), scores, rtol=1e-5, atol=1e-6)
    folder = tmp_path / "mean"
    name = next(n for n in files_of(folder) if n.startswith("member-1") and n.endswith("head.safetensors"))
    flip(folder / name, 100)
    with pytest.raises(CheckpointCorruptError):
        load_reward(folder)
    with pytest.raises(ConfigurationError, match="at least two"):
        RewardEnsemble(members[:1])


# -- inspection ------------------------------------------------------------------------------------
def test_inspection_by_hand():
    records = [
        Preference.pair("p", "aa", "b", annotator="x"),
        Preference.pair("p", "aa", "b", annotator="x"),
        Preference.pair("p", "b", "aa", annotator="y"),
        Preference("q", ("a", "b", "cccc"), (0, 0, 1)),
        Preference("", ("t",), ratings=(3.0,)),
        Preference.pair("r", "same", "same"),
        Preference.pair("r", "", "z"),
    ]
    found = inspect_preferences(records)
    assert (found.records, found.prompts, found.sizes) == (7, 4, {1: 1, 2: 5, 3: 1})
    assert (found.comparisons, found.ties, found.duplicates) == (8, 1, 1)
    assert (found.repeated, found.contradictions, found.identical, found.empty) == (1, 1, 1, 1)
    assert found.longer_wins == pytest.approx(2 / 6) and found.agreement() == 0.0
    assert found.annotators == {"x": 2, "y": 1} and found.ratings == (3.0, 3.0, 3.0)
    assert leaks(records[:4], records[3:]) == (1, 3)
    assert leaks(records[:3], records[4:5]) == (0, 0)


# -- the commands ----------------------------------------------------------------------------------
def invoke(*arguments: object):
    settings = {"NO_COLOR": "1", "COLUMNS": "200"}
    return CliRunner().invoke(app, [str(a) for a in arguments], terminal_width=200, env=settings)


def test_few_records_are_learned_and_do_not_stop_early(model_folder):
    """A tenth of 30 records is 3 comparisons: early stopping on them would often return the untrained weights."""
    recipe = Recipe(model_folder, device="cpu", epochs=12, batch_size=4, learning_rate=3e-3)
    (report,) = train_from_preferences(film_records(30), recipe).reports
    assert not report.history and len(report.losses) >= 12 and report.train_accuracy > 0.9


def test_from_a_file_to_a_reward_in_an_environment(tmp_path, text_lm, tokenizer, text_task, monkeypatch, capsys):
    text_lm().save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    data = write_preferences(film_records(160), tmp_path / "data.csv")
    trained = invoke(
        "rm",
        "train",
        data,
        "--out",
        tmp_path / "rm",
        "--model",
        tmp_path / "lm",
        "--epochs",
        3,
        "--batch-size",
        8,
        "--learning-rate",
        3e-3,
        "--device",
        "cpu",
    )
    assert trained.exit_code == 0, trained.output
    assert "160 records" in trained.output and "words alone" in trained.output
    evaluated = invoke("rm", "evaluate", tmp_path / "rm", "--json", "--device", "cpu")
    found = json.loads(evaluated.output.splitlines()[0])
    assert found["accuracy"]["count"] == 16 and found["leaked"] == 0
    assert found["word_baseline"]["mean"] > 0.8
    assert evaluated.exit_code == 3 and any("are few" in doubt for doubt in found["doubts"])
    assert (tmp_path / "rm-trust.html").read_text().startswith("<!doctype html>")
    leaking = invoke("rm", "evaluate", tmp_path / "rm", data, "--json", "--out", tmp_path / "x.html", "--device", "cpu")
    assert json.loads(leaking.output.splitlines()[0])["leaked"] == 144
    for reward in (load_reward(tmp_path / "rm"), make_judge(str(tmp_path / "rm"), device="cpu", download=False)):
        env = lm_env.TextGenerationVectorEnv(num_envs=2, **text_task(reward=reward))
        env.reset(seed=0)
        env.step(env.action_space.sample())
    # What cannot work is one sentence, and nothing is written.
    wrong = invoke("rm", "train", data, "--trunk", "half", "--out", tmp_path / "y").exception
    assert isinstance(wrong, ConfigurationError) and "trunk must be one of" in str(wrong)
    assert not (tmp_path / "y").exists()
    monkeypatch.setattr(sys, "argv", ["lm-env", "rm", "evaluate", str(tmp_path / "lm")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1 and "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("pairing", [[], ["--pair-ratings", 1]])
def test_held_out_ratings_that_cannot_be_compared_do_not_lose_the_model(pairing, model_folder, tmp_path):
    rows = [Preference("p", (" ".join(["good"] * (i % 5)) or "film",), ratings=(float(i % 5),)) for i in range(12)]
    data = write_preferences(rows, tmp_path / "data.jsonl")
    trained = invoke(
        "rm", "train", data, "--out", tmp_path / "rm", "--model", model_folder, "--device", "cpu", *pairing
    )
    assert trained.exit_code == 0, (trained.output, trained.exception)
    assert "accuracy on what was held out: not known, " in trained.output  # one record is held out
    assert len(load_reward(tmp_path / "rm")([""], ["film"])) == 1
    assert not (tmp_path / "rm.unfinished").exists()
    evaluated = invoke("rm", "evaluate", tmp_path / "rm", "--device", "cpu").exception
    assert isinstance(evaluated, ConfigurationError)


@pytest.mark.parametrize("difference", [-1, 0])
def test_a_difference_of_ratings_that_cannot_be_is_named_as_it_is_typed(difference, tmp_path):
    error = invoke("rm", "train", tmp_path / "x.jsonl", "--pair-ratings", difference).exception
    assert isinstance(error, ConfigurationError) and "pair_ratings must be a finite number above 0" in str(error)


def test_inspect_and_convert(tmp_path):
    records = [Preference.pair("p", "a", "b"), Preference.pair("p", "b", "a"), Preference.pair("q", "a", "b")]
    path = write_preferences(records, tmp_path / "x.jsonl", format="pairs")
    clean = write_preferences(records[2:], tmp_path / "clean.jsonl", format="pairs")
    shown = invoke("prefs", "inspect", path, "--held-out", clean)
    assert shown.exit_code == 3
    lines = {
        line.split("│")[1].strip(): line.split("│")[2].strip() for line in shown.output.splitlines() if "│" in line
    }
    assert lines["contradictions among them"] == "1" and lines["prompts that the held-out file shares"] == "1"
    assert lines["format"] == "pairs" and lines["comparisons"] == "3"
    assert invoke("prefs", "inspect", clean).exit_code == 0
    as_json = json.loads(invoke("prefs", "inspect", path, "--json").output)
    assert as_json["contradictions"] == 1 and as_json["shared_prompts"] is None
    converted = invoke("prefs", "convert", path, tmp_path / "y.parquet", "--to", "stack-exchange-pairs")
    assert converted.exit_code == 0 and (tmp_path / "y.parquet").exists()
    assert "label-studio" in invoke("prefs", "formats").output
    (tmp_path / "bad.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prompt": "p"}\n')
    broken = invoke("prefs", "inspect", tmp_path / "bad.jsonl")
    assert "line 2" in str(broken.exception)
    assert invoke("prefs", "inspect", tmp_path / "bad.jsonl", "--skip-bad").exit_code == 3
