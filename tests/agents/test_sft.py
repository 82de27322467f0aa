"""Supervised fine-tuning: only the response is learned, by its likelihood, and the report tells the truth."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from agents.learning.likelihood import add_likelihood_gradient, perplexity
from agents.sft import load_demonstrations, supervised_finetune
from lm_env.errors import ConfigurationError, InvalidPromptError, NonFiniteError, UnsupportedModelError
from lm_env.models.adapters import add_lora
from lm_env.models.packing import check_packing, pack
from lm_env.theory.prefix_tree import TableLM

ROWS = [
    {"prompt": [1, 2, 3], "response": [4, 5]},
    {"prompt": [7], "response": [8, 9, 10, 11]},
    {"prompt": [3, 3], "response": [6]},
    {"prompt": [5, 1, 2, 9], "response": [2, 7, 4]},
]
EOS = 0


def load(source=ROWS, tokenizer=None, **options):
    return load_demonstrations(source, tokenizer, **{"vocab_size": 61, "max_tokens": 40, "eos_token_id": EOS} | options)


# -- what is learned -------------------------------------------------------------------------------
def test_a_row_is_its_prompt_its_response_and_an_eos():
    episodes = load()
    for row, given_, length, source in zip(
        episodes.input_ids, episodes.prompt_lengths, episodes.lengths, ROWS, strict=True
    ):
        assert row[:given_].tolist() == source["prompt"]
        assert row[given_:length].tolist() == [*source["response"], EOS]


def test_whole_texts_are_learned_from_their_second_token_on(tokenizer):
    (text,) = load(["a good film"], tokenizer, vocab_size=len(tokenizer)).responses()
    ids = tokenizer("a good film")["input_ids"]
    assert text == [*ids[1:], EOS]


def test_text_and_ids_are_the_same_demonstration(tokenizer):
    size = {"vocab_size": len(tokenizer), "eos_token_id": None}
    texts = load([{"prompt": "a good", "response": " film"}], tokenizer, **size)
    ids = [
        {
            "prompt": tokenizer("a good")["input_ids"],
            "response": tokenizer(" film", add_special_tokens=False)["input_ids"],
        }
    ]
    np.testing.assert_array_equal(texts.input_ids, load(ids, tokenizer, **size).input_ids)
    assert texts.input_ids[0, -1] == tokenizer.eos_token_id


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6), st.integers(2, 20))
def test_what_is_too_long_loses_its_end_or_is_refused(sizes, most):
    rows = [{"prompt": [1] * p, "response": [2] * r} for p, r in sizes]
    if any(p >= most for p, _ in sizes):
        with pytest.raises(ConfigurationError, match="has nothing to learn"):
            load(rows, max_tokens=most)
        return
    episodes = load(rows, max_tokens=most)
    for (p, r), row, n in zip(sizes, episodes.input_ids, episodes.lengths, strict=True):
        assert n == min(p + r + 1, most) and row[:n].tolist() == ([1] * p + [2] * r + [EOS])[:most]


# -- the gradient ----------------------------------------------------------------------------------
@pytest.mark.parametrize("micro", [1, 12, 10_000])
def test_loss_and_gradient_are_those_of_rows_without_padding(make_lm, micro):
    """Row by row through torch's cross-entropy: prompt and padding count for nothing."""
    model, episodes = make_lm("gpt2"), load()
    other = copy.deepcopy(model)
    loss = add_likelihood_gradient(model, episodes, 2.0, micro, nullcontext)
    total, count = torch.zeros(()), int(episodes.response_lengths.sum())
    for row, p, n in zip(episodes.input_ids, episodes.prompt_lengths, episodes.lengths, strict=True):
        ids = torch.from_numpy(row[None, :n])
        total = total + F.cross_entropy(other(input_ids=ids).logits[0, p - 1 : -1], ids[0, p:], reduction="sum")
    (2.0 * total / count).backward()
    assert loss == pytest.approx(total.item() / count, abs=1e-6)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=1e-6)


def test_a_table_learns_the_frequencies():
    """The likelihood's maximum in closed form: each state's next tokens as often as they were shown."""
    texts = [[0, 1, 1], [0, 1, 2], [0, 1, 2], [0, 2, 1]]
    model = TableLM(3, 2)
    report = supervised_finetune(
        model, None, texts, eos_token_id=None, epochs=400, learning_rate=0.1, batch_size=4, held_out_fraction=0
    )
    probs = model(input_ids=torch.tensor([[0, 1, 1]])).logits[0].softmax(-1)
    np.testing.assert_allclose(probs[0, 1:].detach(), [3 / 4, 1 / 4], atol=5e-3)
    np.testing.assert_allclose(probs[1, 1:].detach(), [1 / 3, 2 / 3], atol=5e-3)
    entropy = -(3 * np.log(3 / 4) + np.log(1 / 4) + np.log(1 / 3) + 2 * np.log(2 / 3)) / 8
    assert report.losses[-1] == pytest.approx(entropy, abs=5e-3)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(make_lm):
    def trained(seed):
        model = make_lm("gpt2")
        supervised_finetune(model, None, ROWS * 4, eos_token_id=EOS, batch_size=4, learning_rate=1e-3, seed=seed)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(trained(3), trained(3)) and not torch.equal(trained(3), trained(4))


def test_dropout_is_off_and_the_flags_stay(make_lm):
    model = make_lm("gpt2", dropout=0.5).train()
    twin = copy.deepcopy(model).eval()
    losses = supervised_finetune(model, None, ROWS, eos_token_id=EOS, held_out_fraction=0).losses
    assert losses[0] == pytest.approx(np.log(perplexity(twin, load())), abs=1e-5)
    assert all(m.training for m in model.modules())


# -- the report ------------------------------------------------------------------------------------
def test_held_out_perplexity_falls_where_there_is_something_to_learn(make_lm):
    rows = [{"prompt": [i % 7 + 1], "response": [i % 7 + 10, i % 7 + 20]} for i in range(70)]
    report = supervised_finetune(
        make_lm("gpt2"), None, rows, eos_token_id=EOS, epochs=20, batch_size=16, learning_rate=3e-3
    )
    assert report.perplexity_before > 40, "61 tokens, nothing known"
    assert report.perplexity_after < 1.2, "a function of the prompt, learned"


def test_what_is_held_out_is_not_trained_on():
    rows = [[0, i, i] for i in range(1, 11)]
    model = TableLM(11, 2)
    report = supervised_finetune(model, None, rows, epochs=50, learning_rate=0.3, batch_size=9, held_out_fraction=0.1)
    assert report.perplexity_after > report.perplexity_before == pytest.approx(11)


# -- bad input -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([], InvalidPromptError, "no prompts|empty"),
        ([{"prompt": [1], "response": [99]}], ConfigurationError, "demonstration 0 .*below 61"),
        ([{"prompt": [1], "response": [2]}, {"prompt": [1]}], ConfigurationError, "demonstration 1 .*None"),
        ([{"prompt": [1], "response": "text"}], ConfigurationError, "with a tokenizer"),
        ([{"prompt": [1], "response": [2.5]}], ConfigurationError, "list of token ids"),
        ([{"prompt": [1], "response": [[2]]}], ConfigurationError, "list of token ids"),
    ],
)
def test_bad_demonstrations_are_named(rows, error, message):
    with pytest.raises(error, match=message):
        load(rows)


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0},
        {"batch_size": True},
        {"learning_rate": float("nan")},
        {"held_out_fraction": 1.0},
        {"max_tokens": 1},
        {"seed": -1},
        {"no_such_option": 3},
    ],
)
def test_bad_options_are_named(make_lm, options):
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        supervised_finetune(make_lm("gpt2"), None, ROWS, **options)


def test_too_few_to_hold_some_out(make_lm):
    with pytest.raises(ConfigurationError, match="too few to hold out"):
        supervised_finetune(make_lm("gpt2"), None, ROWS)


def test_a_gradient_that_is_not_finite_changes_nothing(make_lm):
    model = make_lm("gpt2")
    model.transformer.ln_f.weight.register_hook(lambda gradient: gradient * torch.inf)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NonFiniteError, match="this step was not taken"):
        supervised_finetune(model, None, ROWS, held_out_fraction=0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


# -- packing ---------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(1, 40))
def test_packed_rows_hold_each_text_once_and_are_no_longer_than_asked(lengths, tokens):
    rows = pack(lengths, tokens)
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(lengths)))
    for row in rows:
        assert len(row) == 1 or sum(lengths[i] for i in row) <= tokens
    fullness = sorted(sum(lengths[i] for i in row) for row in rows)
    assert len(rows) == 1 or fullness[0] + fullness[1] > tokens, "two rows would fit into one"


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3", "llama-eager"])
@pytest.mark.parametrize("micro", [9, 10_000])
def test_packing_changes_neither_loss_nor_gradient(make_lm, kind, micro):
    model, episodes = make_lm(kind), load()
    check_packing(model)
    other = copy.deepcopy(model)
    padded = add_likelihood_gradient(model, episodes, 1.0, 10_000, nullcontext)
    packed = add_likelihood_gradient(other, episodes, 1.0, micro, nullcontext, packed=True)
    assert packed == pytest.approx(padded, abs=1e-6)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=1e-6)


def test_a_packed_training_comes_to_the_same_weights(make_lm):
    def trained(packing):
        model = make_lm("llama")
        options = {"eos_token_id": EOS, "batch_size": 4, "learning_rate": 1e-3, "packing": packing}
        supervised_finetune(model, None, ROWS * 4, **options)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    torch.testing.assert_close(trained(True), trained(False), rtol=0, atol=1e-4)


def test_packing_with_adapters_comes_to_the_same_weights(make_lm):
    def trained(packing):
        model = add_lora(make_lm("llama"), rank=2)
        options = {"eos_token_id": EOS, "batch_size": 4, "learning_rate": 1e-3, "packing": packing}
        supervised_finetune(model, None, ROWS * 4, **options)
        return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])

    torch.testing.assert_close(trained(True), trained(False), rtol=0, atol=1e-4)


class SeesAll(PreTrainedModel):
    """A causal LM that takes positions and does not look at them: each token is predicted from all before it."""

    config_class = PretrainedConfig

    def __init__(self) -> None:
        super().__init__(PretrainedConfig(vocab_size=9))
        self.table = nn.Embedding(9, 9)

    def forward(self, input_ids, position_ids=None, attention_mask=None):
        return CausalLMOutput(logits=self.table(input_ids).cumsum(1))


def test_a_model_that_would_mix_packed_texts_is_refused():
    with pytest.raises(UnsupportedModelError, match="see each other: leave packing off"):
        supervised_finetune(SeesAll(), None, [[1, 2, 3]] * 20, packing=True)
    with pytest.raises(UnsupportedModelError, match="is no model of transformers"):
        supervised_finetune(TableLM(3, 2), None, [[0, 1, 1]] * 20, packing=True)


# -- early stopping --------------------------------------------------------------------------------
def test_it_stops_when_the_held_out_loss_rises_and_keeps_the_best_weights():
    """Texts that all differ: every step makes those held out less likely, so the first weights are the best."""
    rows = [[0, i, i] for i in range(1, 11)]
    model = TableLM(11, 2)
    before = copy.deepcopy(model.state_dict())
    report = supervised_finetune(model, None, rows, epochs=50, learning_rate=0.3, batch_size=9, patience=3)
    losses = [found.loss for found in report.held_out_losses]
    assert len(report.losses) == 3 and [found.step for found in report.held_out_losses] == [0, 1, 2, 3]
    assert losses[0] == pytest.approx(np.log(11)) and min(losses[1:]) > losses[0]
    assert report.perplexity_after == pytest.approx(report.perplexity_before)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_it_goes_on_while_the_loss_falls_and_looks_as_often_as_asked(make_lm):
    rows = [{"prompt": [i % 7 + 1], "response": [i % 7 + 10]} for i in range(70)]
    options = {"eos_token_id": EOS, "epochs": 2, "batch_size": 16, "learning_rate": 3e-3}
    stopped, whole = make_lm("gpt2"), make_lm("gpt2")
    report = supervised_finetune(stopped, None, rows, patience=1, eval_steps=3, **options)
    supervised_finetune(whole, None, rows, **options)
    assert [found.step for found in report.held_out_losses] == [0, 3, 6, 8]
    assert np.log(report.perplexity_after) == pytest.approx(min(found.loss for found in report.held_out_losses))
    for mine, theirs in zip(stopped.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs), "looking changes nothing"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patience": 0}, "patience"),
        ({"patience": 1, "held_out_fraction": 0}, "patience looks at the demonstrations held out"),
        ({"eval_steps": 5}, "give patience as well"),
        ({"bf16": "x"}, "bf16 must be True or False"),
        ({"packing": 1}, "packing must be True or False"),
    ],
)
def test_options_that_cannot_work_together(make_lm, options, words):
    with pytest.raises(ConfigurationError, match=words):
        supervised_finetune(make_lm("gpt2"), None, ROWS, **options)


def test_what_will_be_learned_is_shown_before_it_is(make_lm):
    said = []
    model = make_lm("gpt2")
    before = copy.deepcopy(model.state_dict())

    def show(text):
        said.append(text)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())

    supervised_finetune(model, None, ROWS * 4, eos_token_id=EOS, show=show)
    assert len(said) == 1 and "column 'response' is learned, given 'prompt'" in said[0]
