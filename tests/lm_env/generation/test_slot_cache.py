"""SlotDecoder against full forwards of each text alone; which models fall back, and why."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.modeling_outputs import CausalLMOutput

from lm_env.errors import UnsupportedModelError
from lm_env.generation.cache_support import why_no_slot_cache
from lm_env.generation.decoders import FullDecoder, make_decoder
from lm_env.generation.slot_cache import SlotDecoder
from lm_env.models.inspection import facts_of

CACHED = ["gpt2", "gpt2-eager", "llama", "llama-eager", "qwen2", "qwen3", "gpt-neox", "opt"]
WINDOWED = [
    "mistral",
    "mistral-eager",
    "gemma2",
    "gemma2-eager",
    "gemma3",
    "gpt-neo",
]  # their windows are 4 tokens wide
CACHED += WINDOWED
WHOLE = {"mamba": "recurrent state", "bloom": "ALiBi"}
SLOTS, MAX_LENGTH, MAX_PROMPT = 4, 12, 6


def logits_of(model: torch.nn.Module, text: list[int]) -> torch.Tensor:
    """The next token's logits by one forward over this text alone: no cache, no padding, no mask."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([text])).logits[0, -1]


class Checked:
    """A decoder beside the texts that its slots should hold; each answer is compared."""

    def __init__(self, model: torch.nn.Module, vocab_size: int, max_length: int = MAX_LENGTH) -> None:
        self.model, self.vocab_size = model, vocab_size
        self.decoder = make_decoder(model, SLOTS, max_length)
        self.texts: list[list[int]] = [[] for _ in range(SLOTS)]

    def check(self, slots: list[int], outputs) -> None:
        expected = torch.stack([logits_of(self.model, self.texts[slot]) for slot in slots])
        torch.testing.assert_close(outputs.logits, expected, atol=1e-5, rtol=1e-5)
        assert outputs.hidden is None and not outputs.logits.requires_grad
        assert self.decoder.lengths.tolist() == [len(text) for text in self.texts]

    def start(self, slots: list[int], texts: list[list[int]], padding: int = 0) -> None:
        ids = np.full((len(slots), max(map(len, texts)) + 1), padding)
        for row, slot, text in zip(ids, slots, texts, strict=True):
            row[: len(text)] = text
            self.texts[slot] = list(text)
        self.check(slots, self.decoder.start(np.array(slots), ids, np.array([len(t) for t in texts])))

    def step(self, slots: list[int], tokens: list[int]) -> None:
        for slot, token in zip(slots, tokens, strict=True):
            self.texts[slot].append(token)
        self.check(slots, self.decoder.step(np.array(slots), np.array(tokens)))

    def keep(self, slots: list[int]) -> None:
        self.decoder.keep(np.array(slots))
        self.texts = [self.texts[slot] for slot in slots]
        assert self.decoder.lengths.tolist() == [len(text) for text in self.texts]


def random_schedule(data: st.DataObject, checked: Checked, max_length: int, max_prompt: int) -> None:
    tokens = st.integers(0, checked.vocab_size - 1)
    for _ in range(data.draw(st.integers(2, 9))):
        slots = range(len(checked.texts))
        open_slots = [slot for slot in slots if 0 < len(checked.texts[slot]) < max_length]
        kind = data.draw(st.sampled_from(["start", "step", "step", "step", "keep"])) if open_slots else "start"
        if kind == "keep" and len(checked.texts) > 1:
            checked.keep(data.draw(st.lists(st.sampled_from(slots), min_size=1, unique=True)))
        elif kind == "step":
            some = sorted(data.draw(st.lists(st.sampled_from(open_slots), min_size=1, unique=True)))
            checked.step(some, data.draw(st.lists(tokens, min_size=len(some), max_size=len(some))))
        else:
            some = data.draw(st.lists(st.sampled_from(slots), min_size=1, unique=True))
            texts = st.lists(st.lists(tokens, min_size=1, max_size=max_prompt), min_size=len(some), max_size=len(some))
            checked.start(some, data.draw(texts), padding=data.draw(tokens))


@pytest.mark.parametrize("kind", CACHED)
def test_any_schedule_gives_the_logits_of_full_forwards(kind, make_lm):
    model = make_lm(kind)

    @settings(max_examples=12, deadline=None)
    @given(st.data())
    def run(data):
        checked = Checked(model, facts_of(model).vocab_size)
        assert isinstance(checked.decoder, SlotDecoder)
        random_schedule(data, checked, MAX_LENGTH, MAX_PROMPT)

    run()


@pytest.mark.parametrize("kind", [*WHOLE, "table"])
def test_models_without_a_slot_cache_take_any_schedule_too(kind, make_lm):
    model = make_lm(kind)
    longest, prompt = (6, 3) if kind == "table" else (MAX_LENGTH, MAX_PROMPT)

    @settings(max_examples=6, deadline=None)
    @given(st.data())
    def run(data):
        checked = Checked(model, facts_of(model).vocab_size, longest)
        assert isinstance(checked.decoder, FullDecoder)
        random_schedule(data, checked, longest, prompt)

    run()


@pytest.mark.parametrize("kind", CACHED)
def test_a_slot_starts_anew_while_the_others_go_on(kind, make_lm):
    checked = Checked(make_lm(kind), 61)
    checked.start([0, 1, 2, 3], [[5, 6, 7, 8, 9, 10], [11], [12, 13], [14, 15, 16]], padding=60)
    for token in range(4):
        checked.step([0, 1, 2, 3], [20 + token] * 4)
    checked.start([2, 0], [[30], [31, 32]])  # over longer texts, whose keys lie there still
    for token in range(6):
        checked.step([0, 2], [40 + token] * 2)
    checked.step([1, 3], [50, 51])
    checked.keep([3, 0])
    checked.step([0, 1], [52, 53])


@pytest.mark.parametrize("kind", CACHED)
def test_slots_of_one_length_need_no_mask_and_give_the_same(kind, make_lm):
    checked = Checked(make_lm(kind), 61)
    checked.start([0, 1, 2, 3], [[1, 2, 3]] * 2 + [[4, 5, 6]] * 2)
    for token in (7, 8, 9):
        checked.step([0, 1, 2, 3], [token, token + 1, token + 2, token + 3])
    checked.step([1, 2], [20, 21])
    checked.step([0, 3], [22, 23])


@pytest.mark.parametrize("kind", ["gpt2", "granite", "mistral", "table"])
def test_hidden_states_are_those_under_the_logits(kind, make_lm):
    model = make_lm(kind)
    decoder = make_decoder(model, 2, 6, want_hidden=True)
    ids = np.array([[1, 2, 3], [4, 0, 0]])
    outputs = [decoder.start(np.arange(2), ids, np.array([3, 1])), decoder.step(np.arange(2), np.array([2, 3]))]
    for texts, out in zip([[[1, 2, 3], [4]], [[1, 2, 3, 2], [4, 3]]], outputs, strict=True):
        for row, text in enumerate(texts):
            with torch.no_grad():
                states = model(input_ids=torch.tensor([text]), output_hidden_states=True).hidden_states[-1]
            torch.testing.assert_close(out.hidden[row], states[0, -1], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(out.logits[row], logits_of(model, text), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "words"), WHOLE.items())
def test_the_reason_of_a_fallback_is_logged_once(kind, words, make_lm, caplog):
    model = make_lm(kind)
    with caplog.at_level(logging.WARNING, logger="lm_env"):
        for _ in range(3):
            assert isinstance(make_decoder(model, 2, 6), FullDecoder)
    assert words in (why_no_slot_cache(model, 6) or "")
    assert [words in record.getMessage() for record in caplog.records] == [True]


class Bigram(torch.nn.Module):
    """The least that is a causal LM: ids in, logits out, without a config or keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(7, 7)

    def forward(self, input_ids):
        return CausalLMOutput(logits=self.table(input_ids))


def test_a_model_from_elsewhere_is_run_whole(caplog):
    checked = Checked(Bigram(), 7)
    checked.start([2, 1], [[1, 2, 3], [4]])
    checked.step([1, 2], [5, 6])
    assert [r.getMessage().startswith("Bigram is not a transformers model") for r in caplog.records] == [True]


def test_a_model_that_is_whole_on_purpose_is_no_news(make_lm, caplog):
    assert isinstance(make_decoder(make_lm("table"), 2, 6), FullDecoder) and not caplog.records


# --- windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WINDOWED)
@pytest.mark.parametrize("max_length", [4, 5, 20])
def test_a_window_of_4_tokens_binds_texts_of_5(kind, max_length, make_lm):
    """Prompts shorter and longer than it, rows of one length and of several."""
    checked = Checked(make_lm(kind), 61, max_length)
    assert isinstance(checked.decoder, SlotDecoder)
    prompts = [[1, 2, 3], [4], [5, 6], list(range(7, 7 + max_length - 1))]
    checked.start([0, 1, 2, 3], prompts)
    while max(lengths := [len(text) for text in checked.texts]) < max_length or min(lengths) < max_length:
        slots = [slot for slot, length in enumerate(lengths) if length < max_length]
        checked.step(slots, [20 + slot for slot in slots])


@pytest.mark.parametrize("kind", WINDOWED)
def test_slots_of_one_length_beyond_the_window(kind, make_lm):
    checked = Checked(make_lm(kind), 61, 20)
    checked.start([0, 1, 2, 3], [[slot, *range(8)] for slot in range(4)])
    for token in range(4):
        checked.step([0, 1, 2, 3], [10 + token, 20, 30, 40])
    checked.step([1, 2], [5, 6])


def test_layers_with_and_without_a_window_are_told_apart(make_lm):
    """Qwen2's windows begin at a layer of their own choice; its masks come one for each type of layer."""
    model = make_lm("qwen2", use_sliding_window=True, sliding_window=3, max_window_layers=1)
    assert set(model.config.layer_types) == {"full_attention", "sliding_attention"}
    checked = Checked(model, 61, 15)
    assert isinstance(checked.decoder, SlotDecoder)
    checked.start([0, 1, 2, 3], [[1, 2, 3, 4, 5, 6], [7], [8, 9], [10, 11, 12]])
    for token in range(8):
        checked.step([0, 1, 2, 3], [20 + token] * 4)


def test_a_window_wider_than_the_probe_is_crossed_by_it(make_lm, caplog):
    """Where the model's window is not the one that its configuration tells, a text that crosses it shows."""
    model = make_lm("mistral", sliding_window=40)
    assert why_no_slot_cache(model, 60) is None
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(_blind_to_the_first_token, with_kwargs=True)
    assert why_no_slot_cache(copy.deepcopy(model), 38) is None
    assert "other logits" in (why_no_slot_cache(copy.deepcopy(model), 60) or "")


def _blind_to_the_first_token(_module, args, kwargs):
    """From 42 keys on, the first token is attended to after all, but only while there is a cache."""
    mask = kwargs["attention_mask"]
    if mask is not None and kwargs.get("past_key_values") is not None and mask.shape[-1] >= 42:
        kwargs["attention_mask"] = torch.ones_like(mask)
    return args, kwargs


# --- ropes that depend on the length ---------------------------------------------------------------------------------


def test_longrope_has_a_cache_where_all_texts_are_short(make_lm):
    checked = Checked(make_lm("phi3"), 61, 8)
    assert isinstance(checked.decoder, SlotDecoder)
    checked.start([0, 1, 2, 3], [[1, 2, 3, 4], [5], [6, 7], [8, 9, 10, 11]])
    for token in range(4):
        checked.step([0, 1, 2, 3], [20 + token] * 4)


def test_longrope_crosses_its_length_by_full_forwards(make_lm):
    """Each row by itself: a row beyond 8 tokens must not change how the shorter ones beside it are read."""
    model = make_lm("phi3")
    assert "beyond 8 tokens" in (why_no_slot_cache(model, 9) or "")
    checked = Checked(model, 61, 14)
    assert isinstance(checked.decoder, FullDecoder)
    checked.start([0, 1, 2, 3], [[1] * 10, [5], [6, 7] * 4, [8, 9, 10, 11]])
    for token in range(4):
        checked.step([0, 1, 2, 3], [20 + token] * 4)


@pytest.mark.parametrize("rope", ["dynamic", "linear", "yarn"])
def test_other_ropes_have_a_cache_up_to_the_last_position(rope, make_lm):
    scaling = {"rope_type": rope, "factor": 4.0}
    model = make_lm("llama", max_position_embeddings=16, rope_scaling=scaling)
    checked = Checked(model, 61, 16)
    assert isinstance(checked.decoder, SlotDecoder)
    checked.start([0, 1, 2, 3], [[1] * 14, [5], [6, 7] * 4, [8, 9, 10, 11]])
    for token in range(2):
        checked.step([0, 1, 2, 3], [20 + token] * 4)
    with pytest.raises(UnsupportedModelError, match="16 positions"):
        make_decoder(model, 2, 17)


class Stretched(LlamaModel):
    """Its positions shrink as soon as any text is longer than 8 tokens, and no configuration says so."""

    def forward(self, input_ids, position_ids=None, **kwargs):
        if position_ids is not None and int(position_ids.max()) >= 8:
            position_ids = position_ids // 2
        return super().forward(input_ids, position_ids=position_ids, **kwargs)


def test_positions_that_depend_on_the_length_are_found_out_by_trying(make_lm):
    model = make_lm("llama")
    model.model = Stretched(model.config).eval()
    assert isinstance(make_decoder(model, 2, 8), SlotDecoder)
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match="with padding up to"):
            make_decoder(model, 2, 20)


# --- what is decided, and when it is decided again --


def test_a_window_that_is_switched_off_is_no_window(make_lm):
    assert why_no_slot_cache(make_lm("mistral", sliding_window=None), 6) is None


def test_a_model_that_only_seems_to_fit_is_found_out_by_trying(make_lm):
    class Deaf(GPT2Model):
        """Counts positions on its own as soon as there is a cache."""

        def forward(self, input_ids, past_key_values=None, position_ids=None, **kwargs):
            own = position_ids if past_key_values is None else None
            return super().forward(input_ids, past_key_values=past_key_values, position_ids=own, **kwargs)

    model = make_lm("gpt2")
    model.transformer = Deaf(model.config).eval()
    assert "other logits" in (why_no_slot_cache(model, 6) or "")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_a_trial_that_ran_out_of_memory_is_made_again(error, make_lm, caplog):
    model = make_lm("gpt2")
    facts_of(model)

    def full(module, args):
        raise error("no memory left")

    hook = model.transformer.register_forward_pre_hook(full)
    with pytest.raises(error, match="no memory left"):
        why_no_slot_cache(model, 6)
    hook.remove()
    assert why_no_slot_cache(model, 6) is None and not caplog.records


def test_too_few_positions_are_an_error_at_construction(make_lm):
    model = make_lm("gpt2", n_positions=8)
    make_decoder(model, 2, 8)
    with pytest.raises(UnsupportedModelError, match="8 positions and cannot hold 9 tokens"):
        make_decoder(model, 2, 9)


@pytest.mark.parametrize("positions", [2, 3, 4, 5, 7])
def test_models_of_few_positions_are_decoded_to_their_last_one(make_lm, positions):
    model = make_lm("gpt2", n_positions=positions)
    decoder, full = make_decoder(model, 2, positions), FullDecoder(model, 2, positions)
    assert isinstance(decoder, SlotDecoder) == (positions >= 3), "two positions are no room for a step to try it on"
    both, lengths = np.arange(2), np.array([1, max(1, positions - 2)])
    ids = np.arange(2 * positions).reshape(2, positions)
    pairs = [(decoder.start(both, ids, lengths), full.start(both, ids, lengths))]
    while decoder.lengths.max() < positions:
        tokens = ids[both, decoder.lengths]
        pairs.append((decoder.step(both, tokens), full.step(both, tokens)))
    for mine, theirs in pairs:
        torch.testing.assert_close(mine.logits, theirs.logits, rtol=0, atol=1e-5)


def test_the_decision_follows_the_kind_of_attention(make_lm):
    """Switched by hand after the model was tried."""
    model = make_lm("llama")
    assert why_no_slot_cache(model, 12) is None
    model.config._attn_implementation = "flex_attention"
    assert "flex_attention" in (why_no_slot_cache(model, 12) or "")
    model.config._attn_implementation = "eager"
    checked = Checked(model, 61)
    assert isinstance(checked.decoder, SlotDecoder)
    checked.start([0, 1], [[1, 2, 3], [4]])
    checked.step([0, 1], [5, 6])


def test_another_kind_of_attention_under_a_decoder(make_lm):
    model = make_lm("llama")
    checked = Checked(model, 61)
    checked.start([0, 1], [[1, 2, 3], [4]])
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        checked.step([0, 1], [5, 6])
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(UnsupportedModelError, match="anew"):
        checked.decoder.step(np.arange(2), np.array([7, 8]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_decoder_goes_on_in_another_dtype(dtype, make_lm):
    model = make_lm("llama")
    decoder = make_decoder(model, 2, 8)
    decoder.start(np.arange(2), np.array([[1, 2, 3], [4, 0, 0]]), np.array([3, 1]))
    model.to(dtype)
    logits = decoder.step(np.arange(2), np.array([5, 6])).logits
    expected = torch.stack([logits_of(model, text) for text in ([1, 2, 3, 5], [4, 6])])
    torch.testing.assert_close(logits, expected, atol=1e-5 if dtype == torch.float64 else 0.2, rtol=0)


@pytest.mark.parametrize("kind", ["gpt2", "table"])
def test_a_full_slot_takes_no_more(kind, make_lm):
    decoder = make_decoder(make_lm(kind), 2, 3)
    decoder.start(np.arange(2), np.array([[1, 2, 3], [4, 4, 4]]), np.array([3, 1]))
    with pytest.raises(UnsupportedModelError, match="cannot hold 4 tokens"):
        decoder.step(np.arange(2), np.array([1, 1]))
    assert decoder.lengths.tolist() == [3, 1]
    with pytest.raises(UnsupportedModelError, match="max_length"):
        decoder.start(np.arange(1), np.array([[1, 2, 3, 4]]), np.array([4]))


def test_the_probes_leave_each_training_flag_as_it_was(make_lm):
    model = make_lm("gpt2").train()
    model.transformer.h[0].eval()
    assert why_no_slot_cache(model, 6) is None
    assert model.training and model.transformer.h[1].mlp.training and not model.transformer.h[0].mlp.training


class NoLogits(torch.nn.Module):
    def forward(self, input_ids):
        return torch.zeros(*input_ids.shape, 5)


TINY = GPT2Config(vocab_size=11, n_embd=8, n_layer=1, n_head=2, n_positions=8, num_labels=3, pad_token_id=0)
BERT = BertConfig(
    vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, initializer_range=0.2
)
T5 = T5Config(vocab_size=11, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: GPT2Model(TINY), "causal LM"),
        (lambda: GPT2ForSequenceClassification(TINY), r"shape \(\d, 3\)"),
        (NoLogits, "causal LM"),
        (lambda: torch.nn.Linear(2, 2), "causal LM"),
        (lambda: "gpt2", "torch.nn.Module"),
        (lambda: BertForMaskedLM(BERT), "later token"),
        (lambda: T5ForConditionalGeneration(T5), "encoder-decoder"),
        (lambda: GPT2LMHeadModel(TINY).to("meta"), "meta device"),
    ],
)
def test_what_is_no_causal_lm_is_told_so(model, words):
    with pytest.raises(UnsupportedModelError, match=words):
        make_decoder(model(), 2, 4)
