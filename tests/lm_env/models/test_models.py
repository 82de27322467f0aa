"""Logprobs two ways, what a probe finds out about a model, and what is refused at loading."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.modeling_outputs import CausalLMOutput

from lm_env import TextGenerationVectorEnv
from lm_env.data.episodes import Episodes
from lm_env.errors import ConfigurationError, ModelLoadError, NonFiniteError, UnsupportedModelError
from lm_env.models.inputs import length_batches
from lm_env.models.inspection import evaluating, facts_of
from lm_env.models.loading import load_causal_lm, load_model, load_tokenizer
from lm_env.models.logprobs import (
    LOGIT_BUDGET,
    response_hidden,
    response_logprobs,
    response_outputs,
    restrict,
    token_logprobs,
)

KINDS = ["gpt2", "gpt2-eager", "llama", "qwen2", "qwen3", "gpt-neox", "opt", "mistral", "gemma2", "bloom", "gpt-neo"]
KINDS += ["mamba", "granite", "cohere", "gemma3"]


def naive_logprobs(model: torch.nn.Module, episodes: Episodes, temperature: float = 1.0) -> np.ndarray:
    """Each row alone, unpadded, as the model itself runs it: log-softmax at every position, in float64."""
    rows = np.zeros(episodes.response_mask().shape)
    for i, (ids, p, n) in enumerate(zip(episodes.input_ids, episodes.prompt_lengths, episodes.lengths, strict=True)):
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(ids[None, :n])).logits[0].double() / temperature
        table = torch.log_softmax(logits, -1)
        rows[i, : n - p] = [table[t - 1, ids[t]] for t in range(p, n)]
    return rows


# --- logprobs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_response_logprobs_are_those_of_each_row_alone(kind, make_lm, make_episodes, rng):
    model, episodes = make_lm(kind), make_episodes(rng, rows=6)
    for temperature in (1.0, 0.7):
        ours = response_logprobs(model, episodes, temperature)
        np.testing.assert_allclose(ours, naive_logprobs(model, episodes, temperature), atol=1e-5)
        assert (ours[~episodes.response_mask()] == 0).all() and ours.dtype == np.float32


def logprobs_of_prefixes(model: torch.nn.Module, episodes: Episodes) -> np.ndarray:
    """Each response token by a forward of the tokens before it, and of nothing else."""
    rows = np.zeros(episodes.response_mask().shape)
    for i, (ids, p, n) in enumerate(zip(episodes.input_ids, episodes.prompt_lengths, episodes.lengths, strict=True)):
        for t in range(p, n):
            with torch.no_grad():
                logits = model(input_ids=torch.from_numpy(ids[None, :t])).logits[0, -1].double()
            rows[i, t - p] = torch.log_softmax(logits, -1)[ids[t]]
    return rows


def test_a_rope_that_changes_with_the_length_reads_each_prefix_as_if_it_were_alone(make_lm, make_episodes, rng):
    """Longrope changes beyond 8 tokens: neither a longer row in the batch nor the rest of the row may count."""
    model, episodes = make_lm("phi3"), make_episodes(rng, rows=6, prompt=12, response=9)
    assert episodes.prompt_lengths.min() < 8 < episodes.prompt_lengths.max()
    expected = logprobs_of_prefixes(model, episodes)
    assert abs(naive_logprobs(model, episodes) - expected).max() > 0.01, "else this tests nothing"
    np.testing.assert_allclose(response_logprobs(model, episodes), expected, atol=1e-5)
    hidden, tokens = response_hidden(model, episodes)
    np.testing.assert_allclose(
        token_logprobs(model.lm_head(hidden), tokens).detach(), expected[episodes.response_mask()], atol=1e-5
    )
    outputs, _ = response_outputs(model, episodes, want_hidden=True)
    torch.testing.assert_close(outputs.hidden, hidden)
    torch.testing.assert_close(outputs.logits, model.lm_head(hidden))


@pytest.mark.parametrize("padding", [0, 1, 60, -100, 10**9])
@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
def test_the_value_and_the_number_of_pads_mean_nothing(kind, padding, make_lm, make_episodes):
    """Absolute positions and relative ones; pad may be EOS (token 0 here), a word, or no token at all."""
    model = make_lm(kind)
    plain = make_episodes(np.random.default_rng(1), rows=5, padding=0)
    reference = response_logprobs(model, plain)
    for extra in (0, 1, 5):
        ids = np.pad(plain.input_ids, ((0, 0), (0, extra)))
        ids[np.arange(ids.shape[1]) >= plain.lengths[:, None]] = padding
        padded = Episodes(ids, plain.prompt_lengths, plain.lengths, plain.prompts)
        np.testing.assert_array_equal(response_logprobs(model, padded), reference)


def test_eos_inside_a_row_is_a_token_like_any_other(make_lm):
    """pad == eos: what counts is the length."""
    model = make_lm("gpt2")
    ids = np.array([[0, 5, 0, 0, 7, 0, 0, 0]])
    episodes = Episodes(ids, np.array([3]), np.array([7]), [None])
    np.testing.assert_allclose(response_logprobs(model, episodes), naive_logprobs(model, episodes), atol=1e-5)
    assert (response_logprobs(model, episodes) < 0).all()


class Successor(torch.nn.Module):
    """log odds of ids / 10 that a token is followed by the next one, 0 for every other; a very wide vocabulary."""

    vocab_size = 2**19

    def forward(self, input_ids):
        logits = torch.zeros(*input_ids.shape, self.vocab_size)
        return CausalLMOutput(logits=logits.scatter_(2, input_ids[..., None] + 1, input_ids[..., None] / 10))


def test_rows_that_need_several_batches_come_back_in_their_places():
    """So many logits that a batch holds a row or two; the logprobs are known in closed form."""
    lengths = np.array([30, 12, 40, 9, 33])
    ids = np.arange(5)[:, None] * 20 + np.arange(40)
    episodes = Episodes(ids, np.array([2, 3, 30, 8, 20]), lengths, [None] * 5)
    mask = episodes.response_mask()
    assert lengths.max() * len(lengths) * Successor.vocab_size > LOGIT_BUDGET  # else this tests nothing
    allowed = np.ones((int(mask.sum()), Successor.vocab_size), bool)
    allowed[:, Successor.vocab_size // 2 :] = False
    for choice, width in ((None, Successor.vocab_size), (allowed, Successor.vocab_size // 2)):
        x = (episodes.prompt_lengths[:, None] + np.arange(mask.shape[1]) - 1 + 20 * np.arange(5)[:, None]) / 10
        expected = np.where(mask, x - np.log(width - 1 + np.exp(x)), 0)
        np.testing.assert_allclose(response_logprobs(Successor(), episodes, 1.0, choice), expected, atol=1e-5)


def test_dropout_is_off_while_scoring_and_on_again_afterwards(make_lm, make_episodes, rng):
    model, episodes = make_lm("gpt2"), make_episodes(rng, rows=3)
    quiet = response_logprobs(model, episodes)
    model.train()
    model.transformer.h[0].eval()  # a part that its owner keeps in eval mode
    np.testing.assert_array_equal(response_logprobs(model, episodes), quiet)
    assert model.training and model.transformer.h[1].mlp.training and not model.transformer.h[0].mlp.training
    with pytest.raises(ZeroDivisionError), evaluating(model):
        assert not model.transformer.h[1].mlp.training
        _ = 1 / 0
    assert model.transformer.h[1].mlp.training


def test_gradients_flow_through_response_outputs(make_lm, make_episodes, rng):
    model, episodes = make_lm("gpt2"), make_episodes(rng, rows=3)
    outputs, tokens = response_outputs(model, episodes, want_hidden=True)
    assert outputs.logits.shape == (int(episodes.response_lengths.sum()), 61) and outputs.hidden.shape[1] == 32
    assert tokens.tolist() == [token for row in episodes.responses() for token in row]
    token_logprobs(outputs.logits, tokens).sum().backward()
    assert model.transformer.wte.weight.grad.abs().sum() > 0


def test_no_rows_give_no_numbers(make_lm):
    empty = Episodes(np.zeros((0, 4), np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64), [])
    assert response_logprobs(make_lm("gpt2"), empty).shape == (0, 0)


def test_token_logprobs_by_hand():
    logits = torch.tensor([[0.0, np.log(3.0)], [2.0, 2.0]])
    np.testing.assert_allclose(token_logprobs(logits, torch.tensor([1, 0])), np.log([0.75, 0.5]), rtol=1e-6)
    # temperature 1/2 squares the odds: 9 to 1
    np.testing.assert_allclose(token_logprobs(logits, torch.tensor([1, 0]), 0.5), np.log([0.9, 0.5]), rtol=1e-6)


def test_token_logprobs_are_computed_in_fp32_at_least():
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([1, 2, 3, 4])
    half = logits.bfloat16()
    assert token_logprobs(half, tokens).dtype == torch.float32
    expected = torch.log_softmax(half.double(), -1).gather(1, tokens[:, None])[:, 0]
    np.testing.assert_allclose(token_logprobs(half, tokens), expected, atol=1e-5)
    assert token_logprobs(logits.double(), tokens).dtype == torch.float64


def test_restrict_renormalizes_over_the_allowed():
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    inside = restrict(logits, np.array([[True, False, True]]))
    np.testing.assert_allclose(token_logprobs(inside, torch.tensor([2])), np.log(1 / (1 + np.exp(-2.0))), rtol=1e-6)
    assert token_logprobs(inside, torch.tensor([1])).item() == -np.inf


@given(st.lists(st.integers(1, 300), max_size=40), st.integers(1, 400))
def test_length_batches_hold_each_row_once_and_stay_within_the_budget(lengths, tokens):
    lengths = np.array(lengths, dtype=np.int64)
    batches = length_batches(lengths, tokens)
    assert sorted(int(i) for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= tokens
    flat = [int(lengths[i]) for batch in batches for i in batch]
    assert flat == sorted(flat, reverse=True)


# --- facts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_split_off_the_trunk_only_where_nothing_follows_the_head(kind, make_lm):
    assert facts_of(make_lm(kind)).splits is (kind not in ("granite", "cohere", "gemma2"))


def test_a_soft_cap_is_seen_even_while_the_logits_are_small(make_lm, make_episodes, rng):
    """An untrained model's logits are too small for the cap to bite: what was true then must stay true in training."""
    model = make_lm("gemma2", initializer_range=1e-3)
    assert not facts_of(model).splits
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(300)
    episodes = make_episodes(rng, rows=4)
    np.testing.assert_allclose(response_logprobs(model, episodes), naive_logprobs(model, episodes), atol=1e-5)


def test_facts_are_the_models_own(make_lm):
    gpt2 = facts_of(make_lm("gpt2", n_positions=9))
    assert (gpt2.vocab_size, gpt2.hidden_size, gpt2.max_positions) == (61, 32, 9)
    table = facts_of(make_lm("table"))
    assert (table.vocab_size, table.max_positions, table.splits) == (5, None, False)
    assert facts_of(make_lm("mamba")).max_positions is None


def test_the_probe_leaves_no_trace(make_lm):
    model = make_lm("gpt2").train()
    ids = torch.arange(6)[None]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad(), evaluating(model):
        logits = model(input_ids=ids).logits
        facts_of(model)
        torch.testing.assert_close(model(input_ids=ids).logits, logits, rtol=0, atol=0)
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(value, make_lm):
    model = make_lm("llama")
    name, weight = list(model.named_parameters())[3]
    with torch.no_grad():
        weight.view(-1)[0] = value
    with pytest.raises(NonFiniteError, match=f"LlamaForCausalLM cannot be used, its weight '{name}' holds NaN"):
        facts_of(model)


def test_logits_that_overflow_in_half_precision_when_they_are_scaled_are_no_fault(make_lm):
    model = make_lm("gpt2").half()
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(100.0)
    logits = model(input_ids=torch.tensor([[0, 1]])).logits
    assert torch.isfinite(logits).all() and not torch.isfinite(1000 * logits).all()
    assert facts_of(model).vocab_size == logits.shape[-1]


def test_a_sequence_beyond_the_positions_is_refused(make_lm, make_episodes, rng):
    episodes = make_episodes(rng, rows=4, response=12)
    with pytest.raises(UnsupportedModelError, match="8 positions"):
        response_logprobs(make_lm("gpt2", n_positions=8), episodes)


def test_the_facts_follow_embeddings_that_are_resized(make_lm, make_episodes, rng):
    for kind in ("gpt2", "llama", "opt"):
        model = make_lm(kind)
        assert facts_of(model).vocab_size == 61
        model.resize_token_embeddings(70, mean_resizing=False)
        assert facts_of(model).vocab_size == 70
        episodes = make_episodes(rng, rows=4, vocab_size=70)
        np.testing.assert_allclose(response_logprobs(model, episodes), naive_logprobs(model, episodes), atol=1e-5)


def test_the_facts_follow_another_head(make_lm):
    model = make_lm("llama")
    assert facts_of(model).vocab_size == 61
    model.lm_head = torch.nn.Linear(32, 7, bias=False)
    assert facts_of(model).vocab_size == 7


def episode_of(rng, id_task, kind):
    """An environment of this kind of model, stepped to the end of its episodes, and the model."""
    env = TextGenerationVectorEnv(2, **id_task(kind, max_new_tokens=3))
    env.reset(seed=0)
    for _ in range(3):
        env.step(rng.integers(1, 61, 2))
    return env.task.model


@pytest.mark.parametrize("kind", ["gpt2", "llama", "granite", "mistral", "gemma2"])
def test_a_model_stays_as_picklable_as_it_was(kind, id_task, rng, make_episodes, tmp_path):
    """After an environment's probes and steps, and after hidden states were read for a value head."""
    model = episode_of(rng, id_task, kind)
    episodes = make_episodes(rng, rows=3)
    response_outputs(model, episodes, want_hidden=True)
    expected = response_logprobs(model, episodes)
    torch.save(model, tmp_path / "model.pt")
    read = torch.load(tmp_path / "model.pt", weights_only=False)
    unpickled = pickle.loads(pickle.dumps(model))  # noqa: S301
    for other in (unpickled, copy.deepcopy(model), read):
        np.testing.assert_array_equal(response_logprobs(other, episodes), expected)
    assert not any(module._forward_hooks for module in model.modules())


# --- episodes --------------------------------------------------------------------------------------------------------


def test_rows_of_episodes_keep_their_logprobs_in_step(make_episodes, rng):
    episodes = make_episodes(rng, rows=6)
    mask = episodes.response_mask()
    given = Episodes(
        episodes.input_ids, episodes.prompt_lengths, episodes.lengths, episodes.prompts, np.where(mask, -1.5, np.nan)
    )
    short = np.argsort(episodes.response_lengths)[:3]
    part = given[short]
    assert part.logprobs.shape == part.response_mask().shape
    assert (part.logprobs[part.response_mask()] == -1.5).all() and part.prompts == [given.prompts[i] for i in short]
    chosen = np.isin(np.arange(6), short)
    assert given[chosen].responses() == [r for r, c in zip(given.responses(), chosen, strict=True) if c]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt_lengths": np.array([2])}, "one prompt length"),
        ({"prompt_lengths": np.array([0, 2])}, "prompt length"),
        ({"lengths": np.array([2, 3])}, "prompt length < length"),
        ({"lengths": np.array([3, 9])}, "columns"),
        ({"logprobs": np.zeros((2, 5))}, r"logprobs \(2, 5\)"),
    ],
)
def test_episodes_that_do_not_fit_together_are_refused(change, words):
    good = {
        "input_ids": np.zeros((2, 4), np.int64),
        "prompt_lengths": np.array([2, 1]),
        "lengths": np.array([4, 4]),
        "prompts": [None, None],
    }
    assert Episodes(**good).response_mask().tolist() == [[True, True, False], [True, True, True]]
    with pytest.raises(ConfigurationError, match=words):
        Episodes(**{**good, **change})


# --- loading ---------------------------------------------------------------------------------------------------------


def test_a_saved_folder_loads_in_eval_mode_with_the_same_numbers(model_folder, text_lm):
    model, tokenizer = load_model(model_folder), load_tokenizer(model_folder)
    assert not model.training and tokenizer.pad_token_id == tokenizer.eos_token_id
    ids = torch.arange(7)[None]
    torch.testing.assert_close(model(input_ids=ids).logits, text_lm()(input_ids=ids).logits)
    assert load_model(model_folder, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert load_causal_lm(model_folder)[0] is load_causal_lm(model_folder)[0]


def test_what_is_not_here_is_not_downloaded(tmp_path):
    for load in (load_model, load_tokenizer):
        with pytest.raises(ModelLoadError, match="download=True"):
            load("some-user/no-such-model")
        with pytest.raises(ModelLoadError, match="nothing-here"):
            load(tmp_path / "nothing-here")


def test_weights_without_a_head_are_no_causal_lm(make_lm, tmp_path):
    make_lm("llama").model.save_pretrained(tmp_path / "trunk")
    with pytest.raises(ModelLoadError, match=r"lm_head\.weight"):
        load_model(tmp_path / "trunk")


def test_pickled_weights_are_refused(model_folder, tmp_path, text_lm):
    (tmp_path / "tiny" / "model.safetensors").unlink()
    torch.save(text_lm().state_dict(), tmp_path / "tiny" / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="safetensors"):
        load_model(model_folder)


def test_code_in_a_model_folder_does_not_run(model_folder, tmp_path):
    config = json.loads((tmp_path / "tiny" / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(config))
    (tmp_path / "tiny" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ModelLoadError, match=r"homemade|trust_remote_code"):
        load_model(model_folder)
    assert not (tmp_path / "ran").exists()


def test_broken_weights_are_told_so(model_folder, tmp_path):
    weights = tmp_path / "tiny" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelLoadError, match="cannot load the model"):
        load_model(model_folder)


def test_a_config_that_is_no_json_is_told_so(model_folder, tmp_path):
    (tmp_path / "tiny" / "config.json").write_text("{")
    with pytest.raises(ModelLoadError, match="cannot load the model"):
        load_model(model_folder)
