"""reward_models: rules, sentiment, classifiers, and sums of them."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
)
from transformers.modeling_outputs import SequenceClassifierOutput

import reward_models
from lm_env.errors import ConfigurationError, ModelLoadError, RewardError, RewardValueError, UnsupportedModelError
from lm_env.models.inputs import length_batches, pad_right
from lm_env.objective.rewards import score_responses
from reward_models import (
    Affine,
    Clipped,
    ExactMatch,
    Keyword,
    Length,
    LexiconSentiment,
    Regex,
    SequenceClassifierReward,
    WeightedSum,
    normalize,
)


# -- the package -----------------------------------------------------------------------------------
def test_exported_names_are_sorted_and_exist():
    assert reward_models.__all__ == sorted(reward_models.__all__)
    for name in reward_models.__all__:
        assert getattr(reward_models, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = reward_models.Nothing


def test_a_rule_does_not_import_torch():
    code = "import sys; from reward_models import Length; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- rules -----------------------------------------------------------------------------------------
def score(reward, *responses, **columns):
    prompts = [f"prompt {i}" for i in range(len(responses))]
    return score_responses(reward, prompts, list(responses), columns).tolist()


def test_length_in_its_three_readings():
    ids = [[], [7], [7, 7], [7] * 4, [7] * 6]
    texts = ["", "x", "xx", "xxxx", "xxxxxx"]
    assert score(Length(), *texts, response_ids=ids) == [0, 1, 2, 4, 6]
    assert score(Length(max=4), *texts, response_ids=ids) == [0, 0.25, 0.5, 1, 1]
    assert score(Length(target=2), *texts, response_ids=ids) == [0, 0.5, 1, 0, -1]


def test_length_in_its_three_units():
    texts = ["two  words\n", "née", ""]
    assert score(Length(unit="words"), *texts) == [2, 1, 0]
    assert score(Length(unit="characters"), *texts) == [11, 3, 0]
    with pytest.raises(RewardError, match=r"no response_ids.*unit='words'"):
        score(Length(), *texts)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"target": 3, "max": 4}, "a target or a max, not both"),
        ({"target": 0}, "the target of Length must be an integer of at least 1, not 0"),
        ({"max": -1}, "the max of Length must be an integer of at least 1, not -1"),
        ({"target": "3"}, "the target of Length must be an integer .* not '3'"),
        ({"max": 2.5}, "the max of Length must be an integer"),
        ({"max": True}, "the max of Length must be an integer"),
        ({"unit": "lines"}, "the unit of Length must be one of 'tokens', 'words', 'characters', not 'lines'"),
    ],
    ids=str,
)
def test_an_impossible_length_is_refused(arguments, words):
    with pytest.raises(ConfigurationError, match=words):
        Length(**arguments)


def test_regex():
    texts = ["42", "it is 42.", "none", "", "42 it is"]
    assert score(Regex(r"\d+"), *texts) == [1, 1, 0, 0, 1]
    assert score(Regex(r"\d+", mode="full"), *texts) == [1, 0, 0, 0, 0]
    assert score(Regex(r"(?i)IT"), *texts) == [0, 1, 0, 0, 1]
    with pytest.raises(ConfigurationError, match=r"'\('"):
        Regex("(")
    with pytest.raises(ConfigurationError, match="the mode of Regex must be one of 'search', 'full', not 'match'"):
        Regex("a", mode="match")  # type: ignore[arg-type]


def test_exact_match():
    answers = ["Paris", "4", 4]
    assert score(ExactMatch(), " Paris\n", "4.0", "4", answer=answers) == [1, 0, 1]
    assert score(ExactMatch(strip=False), "Paris ", "4", "4", answer=answers) == [0, 1, 1]
    assert score(ExactMatch(), "paris", "", "5", answer=answers) == [0, 0, 0]
    assert score(ExactMatch(casefold=True, column="city"), "STRASSE", city=["straße"]) == [1]
    with pytest.raises(RewardError, match=r"column 'answer'; there are \['city'\]"):
        score(ExactMatch(), "x", city=["y"])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Regex(3), "a pattern must be a string in the syntax of re, not 3"),
        (lambda: Regex(b"a"), "a pattern must be a string"),
        (lambda: Regex("a", mode=["full"]), "the mode of Regex"),
        (lambda: ExactMatch(extract=3), "a pattern must be a string"),
        (lambda: ExactMatch(column=None), "the column of ExactMatch must be a string, not None"),
        (lambda: ExactMatch(ignore=None), "the ignore of ExactMatch must be a string, not None"),
        (lambda: Keyword(None), "Keyword takes a list of words, not None"),
        (lambda: Keyword(3), "Keyword takes a list of words, not 3"),
        (lambda: LexiconSentiment(scope=None), "the scope of LexiconSentiment"),
    ],
)
def test_rules_refuse_what_cannot_work(make, words):
    with pytest.raises(ConfigurationError, match=words):
        make()


def test_a_prompt_without_an_answer_is_no_wrong_answer():
    """A row that lacks the column gets None, and the text "None" would be right."""
    with pytest.raises(RewardError, match="no answer for sample 1: give every prompt a column 'answer'"):
        score(ExactMatch(), "4", "None", answer=["4", None])


def test_exact_match_reads_gsm8k():
    reward = ExactMatch(extract=r"####\s*(-?[\d.,]*\d)", ignore=",")
    solution = "He has 1,000 + 234 = <<1000+234=1234>>1,234 apples.\n#### 1,234"
    responses = [
        "so it is\n#### 1234",  # right, no separator
        "#### 1,234.",  # right, a full stop after it
        "#### 12 no, #### 1234",  # the last one counts
        "#### 1234 no, #### 12",
        "1234",  # no marker: no answer given
        "#### -1234",
        "",
    ]
    assert score(reward, *responses, answer=[solution] * 7) == [1, 1, 1, 0, 0, 0, 0]
    assert score(reward, *responses, answer=[1234] * 7) == [1, 1, 1, 0, 0, 0, 0]  # bare answers too
    assert score(reward, "no answer", answer=["none here"]) == [0]


def test_keyword():
    texts = ["Art for art's sake", "start", "new york, New York", ""]
    assert score(Keyword(["art"]), *texts) == [1, 0, 0, 0]
    assert score(Keyword(["art"], count=True), *texts) == [2, 0, 0, 0]
    assert score(Keyword(["art"], count=True, case_sensitive=True), *texts) == [1, 0, 0, 0]
    assert score(Keyword(["art"], whole_word=False), *texts) == [1, 1, 0, 0]
    assert score(Keyword(["new", "york", "new york"], count=True), *texts) == [0, 0, 2, 0]
    assert score(Keyword(["C++", "(a|b)"], count=True), "C++ is not C", "(a|b) or a") == [1, 1]


@pytest.mark.parametrize("words", ["art", [], ["a", " "], [1]])
def test_keyword_refuses_what_is_no_list_of_words(words):
    with pytest.raises(ConfigurationError):
        Keyword(words)


@settings(deadline=None)
@given(st.text(), st.text())
def test_rules_take_any_text(prompt, response):
    columns = {"answer": [response], "response_ids": [[0]]}
    for rule in (Length(), Length(target=3, unit="words"), Regex("a+$"), Keyword(["a"]), ExactMatch()):
        assert math.isfinite(score_responses(rule, [prompt], [response], columns)[0])
    assert score_responses(ExactMatch(), [prompt], [response], columns) == [1.0]


def test_rules_are_values():
    assert Length(target=3) == Length(target=3) != Length(target=4)
    assert hash(Keyword(["a", "b"])) == hash(Keyword(("a", "b")))


# -- sentiment -------------------------------------------------------------------------------------
def test_sentiment_orders_as_a_reader_would():
    texts = ["a wonderful film", "a good film", "a film", "not a good film", "a horrible film"]
    scores = score(LexiconSentiment(), *texts)
    assert scores[0] > scores[1] > scores[2] == 0 > scores[3] > scores[4]
    # One word rated +1.9: 1.9 / sqrt(1.9^2 + 15), from the paper's normalization.
    assert scores[1] == round(1.9 / math.sqrt(1.9**2 + 15), 4)


def test_sentiment_scope():
    prompts, responses = ["I hate it, "], ["a good film"]
    assert LexiconSentiment()(prompts, responses) == LexiconSentiment()([""], responses)
    assert LexiconSentiment("full")(prompts, responses) == LexiconSentiment()([""], ["I hate it, a good film"])
    with pytest.raises(
        ConfigurationError, match="the scope of LexiconSentiment must be one of 'response', 'full', not 'prompt'"
    ):
        LexiconSentiment("prompt")  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.text())
def test_sentiment_takes_any_text(text):
    assert -1 <= LexiconSentiment()([""], [text])[0] <= 1


# -- sums ------------------------------------------------------------------------------------------
def characters(prompts, responses):
    return torch.tensor([len(r) for r in responses])


def twice_the_answer(prompts, responses, answer):
    return [2 * a for a in answer]


def test_weighted_sum_golden():
    total = WeightedSum([(0.5, characters), (-2.0, twice_the_answer), (1.0, characters)])
    assert total.last_parts == {}
    assert score(total, "abcd", "", answer=[1, -3]) == [0.5 * 4 - 2 * 2 + 4, 12.0]
    assert list(total.last_parts) == ["characters", "twice_the_answer", "characters_2"]
    np.testing.assert_array_equal(total.last_parts["twice_the_answer"], [2, -6])
    # `parts` computes afresh and leaves the last call's alone.
    assert total.parts(["p"], ["abc"], answer=[0])["characters"].tolist() == [3]
    assert total.last_parts["characters"].tolist() == [4, 0]


def test_weighted_sum_names_the_part_that_fails():
    def broken(prompts, responses):
        return [0.0, math.nan]

    with pytest.raises(RewardValueError, match=r"broken gave nan.*sample 1.*'second'"):
        score(WeightedSum([(1.0, Length(unit="words")), (0.0, broken)]), "first", "second")


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ([], "at least one"),
        ([(math.nan, characters)], "the weight of characters must be a finite number, not nan"),
        ([(math.inf, characters)], "the weight of characters"),
        ([("1", characters)], "the weight of characters must be a finite number, not '1'"),
        ([(characters, 1.0)], "WeightedSum takes a reward function .* not 1.0"),
        ([characters], "pairs, not"),
        ([(1.0, characters, 2.0)], "pairs, not"),
        (characters, "a list of at least one"),
        (None, "a list of at least one"),
    ],
)
def test_weighted_sum_refuses_impossible_terms(terms, words):
    with pytest.raises(ConfigurationError, match=words):
        WeightedSum(terms)


@pytest.mark.parametrize("make", [Affine, Clipped, lambda reward: normalize(reward, ["", ""], ["a", "b"])])
def test_what_wraps_a_reward_takes_nothing_else(make):
    with pytest.raises(ConfigurationError, match=r"takes a reward function .* not 'Length'"):
        make("Length")


SPREAD = st.lists(st.integers(0, 400), min_size=2, max_size=30).filter(lambda n: len(set(n)) > 1)


@settings(deadline=None)
@given(lengths=SPREAD, gain=st.floats(0.01, 100), bias=st.floats(-100, 100))
def test_normalize_gives_mean_0_and_std_1_and_keeps_the_ranking(lengths, gain, bias):
    texts = ["x" * n for n in lengths]
    raw = Affine(Length(unit="characters"), gain, bias)
    scores = np.array(score(normalize(raw, [""] * len(texts), texts), *texts))
    assert abs(scores.mean()) <= 1e-9
    assert abs(scores.std() - 1) <= 1e-9
    for i, n in enumerate(lengths):
        for j, m in enumerate(lengths):
            assert (scores[i] > scores[j]) == (n > m)


def test_normalize_golden():
    reward = normalize(twice_the_answer, ["", ""], ["", ""], answer=[1, 4])  # 2 and 8: mean 5, std 3
    assert (reward.gain, reward.bias) == (pytest.approx(1 / 3), pytest.approx(-5 / 3))
    assert score(reward, "", answer=[4.75]) == [pytest.approx(1.5)]


@pytest.mark.parametrize("texts", [[], ["one"], ["one", "two"]])
def test_normalize_needs_a_spread(texts):
    with pytest.raises(ConfigurationError, match="no spread"):
        normalize(characters, [""] * len(texts), texts)


def test_normalize_sees_through_rounding():
    with pytest.raises(ConfigurationError, match="no spread"):
        normalize(lambda prompts, responses: [0.1 + 0.2, 0.3, 0.3], ["", "", ""], ["", "", ""])


@pytest.mark.parametrize(
    ("gain", "bias"), [(0.0, 0.0), (-1.0, 0.0), (math.nan, 0.0), (1.0, math.inf), ("2", 0.0), (1.0, None)]
)
def test_affine_refuses_to_turn_the_ranking(gain, bias):
    with pytest.raises(ConfigurationError, match=r"the (gain|bias) of Affine must be a finite number"):
        Affine(characters, gain, bias)


# -- batching --------------------------------------------------------------------------------------
@settings(deadline=None)
@given(st.lists(st.integers(1, 40), max_size=40), st.integers(1, 100), st.booleans())
def test_length_batches_hold_each_row_once_within_the_budget(lengths, budget, equal):
    batches = length_batches(lengths, budget, equal=equal)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        rows = [lengths[i] for i in batch]
        assert len(batch) == 1 or len(batch) * max(rows) <= budget
        assert not equal or len(set(rows)) == 1


def test_pad_right():
    ids, lengths = pad_right([[5, 6, 7], [8]], torch.device("cpu"), fill=9)
    assert ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert lengths.tolist() == [3, 1]


# -- classifiers -----------------------------------------------------------------------------------
EOS, PAD, CLS, SEP = "<eos>", "<pad>", "<cls>", "<sep>"


def byte_tokenizer(template: str, pad: str, **arguments) -> PreTrainedTokenizerFast:
    """Ids 0..255 are bytes; the template says where special tokens go."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [EOS, PAD, CLS, SEP]
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, tokenizer.token_to_id(token)) for token in special]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS, pad_token=pad, clean_up_tokenization_spaces=False, **arguments
    )


LAYERS = {"layers": 1, "attention_heads": 2, "ffn_dim": 48}
SIZES = {"vocab_size": 260, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXTS = ["a", "a longer text of many bytes", "mid-size", "a", "x" * 50, "yes, mid-size"]
ENDS_IN_PAD = byte_tokenizer(f"$A {EOS}", EOS)
ENCODER_STYLE = byte_tokenizer(f"{CLS} $A {SEP}", PAD)


def classifier(kind: str, num_labels: int = 2):
    torch.manual_seed(0)
    # The decoders' pad is their eos, with which the text ends.
    ids = {"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256}
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=260, n_embd=32, n_layer=2, n_head=4, n_positions=128, num_labels=num_labels, **ids
        )
        model = GPT2ForSequenceClassification(config)
    elif kind == "llama":
        config = LlamaConfig(**SIZES, intermediate_size=48, max_position_embeddings=128, num_labels=num_labels, **ids)
        model = LlamaForSequenceClassification(config)
    elif kind == "bart":
        sides = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in LAYERS.items()}
        config = BartConfig(
            vocab_size=260, d_model=32, max_position_embeddings=64, num_labels=num_labels, **sides, **ids
        )
        model = BartForSequenceClassification(config)
    elif kind == "xlnet":
        config = XLNetConfig(vocab_size=260, d_model=32, n_layer=2, n_head=4, d_inner=48, num_labels=num_labels)
        model = XLNetForSequenceClassification(config)
    else:
        config_class, model_class = {
            "bert": (BertConfig, BertForSequenceClassification),
            "roberta": (RobertaConfig, RobertaForSequenceClassification),
        }[kind]
        config = config_class(
            # RoBERTa's positions begin after its pad id.
            **SIZES,
            intermediate_size=48,
            max_position_embeddings=160 if kind == "bert" else 512,
            num_labels=num_labels,
            pad_token_id=257,
        )
        model = model_class(config)
    for parameter in model.parameters():  # the usual initialization is too small to tell rows apart
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def singly(reward, texts):
    return np.concatenate([reward([""], [text]) for text in texts])


@pytest.mark.parametrize("pad", [EOS, PAD])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_decoder_classifier_reads_the_last_token_by_length(kind, pad):
    model, tokenizer = classifier(kind, num_labels=1), byte_tokenizer(f"$A {EOS}", pad)
    model.config.pad_token_id = tokenizer.pad_token_id
    reward = SequenceClassifierReward(model, tokenizer, batch_tokens=100)
    with torch.no_grad():
        rows = [torch.tensor([tokenizer(text)["input_ids"]]) for text in TEXTS]
        last = torch.stack([model.score(model.base_model(row).last_hidden_state[0, -1]) for row in rows])[:, 0]
        own = torch.cat([model(row).logits[:, 0] for row in rows])
    np.testing.assert_allclose(reward([""] * 6, TEXTS), last, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(singly(reward, TEXTS), last, rtol=1e-4, atol=1e-5)
    # The trap is real: with pad == eos transformers reads the token before.
    assert torch.allclose(own, last, atol=1e-5) == (pad == PAD)
    assert last.std() > 0.1


@pytest.mark.parametrize("pad_in_text", [False, True])
@pytest.mark.parametrize(("kind", "side"), [("bert", "right"), ("roberta", "right"), ("xlnet", "left")])
def test_a_model_with_its_own_pooling_scores_a_batch_as_single_rows(kind, side, pad_in_text):
    # BERT and RoBERTa read the first token; XLNet the last, behind pads on the left.
    model = classifier(kind)
    texts = [text + PAD * pad_in_text for text in TEXTS]
    fields = ["input_ids", "token_type_ids", "attention_mask"] if kind == "bert" else ["input_ids", "attention_mask"]
    tokenizer = byte_tokenizer(f"{CLS} $A {SEP}", PAD, padding_side=side, model_input_names=fields)
    reward = SequenceClassifierReward(model, tokenizer, label=1, batch_tokens=120)
    with torch.no_grad():
        own = [model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, 1].item() for text in texts]
    np.testing.assert_allclose(reward([""] * 6, texts), own, rtol=1e-4, atol=1e-5)
    assert np.std(own) > 0.1


def test_an_encoder_decoder_that_looks_for_its_eos_gets_no_pads_that_look_like_it():
    model = classifier("bart", num_labels=1)
    reward = SequenceClassifierReward(model, ENDS_IN_PAD)
    with torch.no_grad():
        own = [model(torch.tensor([ENDS_IN_PAD(text)["input_ids"]])).logits[0, 0].item() for text in TEXTS]
    np.testing.assert_allclose(reward([""] * 6, TEXTS), own, rtol=1e-4, atol=1e-5)


class MeanPooled(LlamaForSequenceClassification):
    """Has the `score` head of the others, and pools its own way."""

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        hidden = self.model(input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask if attention_mask is not None else torch.ones_like(input_ids)
        mean = (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
        return SequenceClassifierOutput(logits=self.score(mean))


def test_a_model_that_pools_its_own_way_is_let_to():
    model = classifier("llama", num_labels=1)
    model.__class__ = MeanPooled
    reward = SequenceClassifierReward(model, byte_tokenizer(f"$A {EOS}", PAD))
    with torch.no_grad():
        rows = [torch.tensor([ENDS_IN_PAD(text)["input_ids"]]) for text in TEXTS]
        own = [model(row).logits[0, 0].item() for row in rows]
    np.testing.assert_allclose(reward([""] * 6, TEXTS), own, rtol=1e-4, atol=1e-5)


def test_outputs_and_labels():
    model = classifier("bert", num_labels=3)
    model.config.id2label = {0: "negative", 1: "neutral", 2: "positive"}

    def read(label, output):
        return SequenceClassifierReward(model, ENCODER_STYLE, label=label, output=output)(["p"], ["text"])[0]

    logits = np.array([read(i, "logit") for i in range(3)], dtype=np.float64)
    softmax = np.exp(logits) / np.exp(logits).sum()
    assert read("positive", "logit") == logits[2]
    assert read("positive", "probability") == pytest.approx(softmax[2], rel=1e-5)
    assert read("negative", "log_probability") == pytest.approx(math.log(softmax[0]), rel=1e-5)
    model.config.problem_type = "multi_label_classification"
    assert read(1, "probability") == pytest.approx(1 / (1 + math.exp(-logits[1])), rel=1e-5)

    for label in ("Positive", 3, -1, True, "1"):
        with pytest.raises(ConfigurationError, match=r"label=.*2 \('positive'\)"):
            read(label, "logit")
    with pytest.raises(ConfigurationError, match=r"labels.*0 \('negative'\).*label="):
        SequenceClassifierReward(model, ENCODER_STYLE)
    with pytest.raises(ConfigurationError, match="output='softmax'"):
        read(1, "softmax")


def test_one_label_is_a_scalar_head():
    model = classifier("gpt2", num_labels=1)
    logit = SequenceClassifierReward(model, ENDS_IN_PAD)(["p"], ["r"])
    assert logit.dtype == np.float32
    probability = SequenceClassifierReward(model, ENDS_IN_PAD, output="probability")(["p"], ["r"])
    assert probability[0] == pytest.approx(1 / (1 + math.exp(-logit[0])), rel=1e-5)


def test_a_long_text_keeps_its_end_and_its_special_tokens():
    reward = SequenceClassifierReward(classifier("bert"), ENCODER_STYLE, label=0, max_length=6)
    long, tail = reward(["a much longer prompt "], ["tail"]), reward([""], ["tail"])
    np.testing.assert_allclose(long, tail, rtol=1e-5)
    assert reward([""], ["tai"]) != tail
    assert ENCODER_STYLE.truncation_side == "right"  # the caller's tokenizer is as it was
    with pytest.raises(ConfigurationError, match=r"max_length=2 is outside 3\.\.160"):
        SequenceClassifierReward(classifier("bert"), ENCODER_STYLE, label=0, max_length=2)
    with pytest.raises(ConfigurationError, match="max_length=161"):
        SequenceClassifierReward(classifier("bert"), ENCODER_STYLE, label=0, max_length=161)
    # The default is what the model has positions for.
    assert np.isfinite(SequenceClassifierReward(classifier("bert"), ENCODER_STYLE, label=0)([""], ["x" * 999]))


def test_the_template_takes_columns():
    model = classifier("bert", num_labels=1)
    plain = SequenceClassifierReward(model, ENCODER_STYLE)
    facts = SequenceClassifierReward(model, ENCODER_STYLE, template="{facts}: {prompt} -> {response}")
    expected = plain(["", ""], ["F{1}: P -> R", "G: Q -> S"])
    got = facts(["P", "Q"], ["R", "S"], facts=["F{1}", "G"], response_ids=[[1], [2]])
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    with pytest.raises(RewardError, match=r"'facts'.*may be prompt, response, answer"):
        score(facts, "R", answer=["4"])


def test_dropout_is_off_and_nothing_is_tracked():
    model = classifier("gpt2", num_labels=1)
    reward = SequenceClassifierReward(model, ENDS_IN_PAD)
    model.train()
    np.testing.assert_array_equal(reward([""], ["text"]), reward([""], ["text"]))
    assert reward([], []).shape == (0,)


def test_empty_text_needs_a_token():
    reward = SequenceClassifierReward(classifier("gpt2", 1), byte_tokenizer("$A", EOS))
    with pytest.raises(RewardError, match="sample 1 has no token"):
        score_responses(reward, ["p", ""], ["r", ""], {})


def test_what_is_no_classifier_is_refused():
    with pytest.raises(ConfigurationError, match="pass tokenizer"):
        SequenceClassifierReward(classifier("gpt2"), label=0)
    with pytest.raises(UnsupportedModelError, match="Linear is no transformers sequence classifier"):
        SequenceClassifierReward(torch.nn.Linear(2, 2), ENDS_IN_PAD, label=0)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="batch_tokens=0"):
        SequenceClassifierReward(classifier("gpt2"), ENDS_IN_PAD, label=0, batch_tokens=0)


def test_a_classifier_is_loaded_from_a_folder(tmp_path):
    model = classifier("bert")
    model.save_pretrained(tmp_path)
    ENCODER_STYLE.save_pretrained(tmp_path)
    loaded = SequenceClassifierReward(tmp_path, label="LABEL_1")
    live = SequenceClassifierReward(model, ENCODER_STYLE, label=1)
    np.testing.assert_allclose(loaded(["p"] * 6, TEXTS), live(["p"] * 6, TEXTS), rtol=1e-5)


def test_what_cannot_be_loaded_says_so(tmp_path):
    with pytest.raises(ModelLoadError, match=r"nobody/nothing.*download=True"):
        SequenceClassifierReward("nobody/nothing", label=0)

    # Pickled weights are not read.
    model = classifier("bert")
    pickled = tmp_path / "pickled"
    ENCODER_STYLE.save_pretrained(pickled)
    model.config.save_pretrained(pickled)
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="safetensors"):
        SequenceClassifierReward(pickled, label=0)

    # A language model has no trained classification head: nothing is left at random.
    lm = tmp_path / "lm"
    ENDS_IN_PAD.save_pretrained(lm)
    GPT2LMHeadModel(classifier("gpt2").config).save_pretrained(lm)
    with pytest.raises(ModelLoadError, match=r"no weights for score\.weight"):
        SequenceClassifierReward(lm, label=0)

    # A repository with its own code is not trusted.
    config = json.loads((pickled / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    (pickled / "config.json").write_text(json.dumps(config))
    (pickled / "own.py").write_text("raise SystemExit('this must not run')\n")
    with pytest.raises(ModelLoadError):
        SequenceClassifierReward(pickled, ENCODER_STYLE, label=0)
