"""A look at a task before training, and the numbers about texts, against what is known of them."""

from __future__ import annotations

import copy
import json
import math
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from agents import AGENTS
from lm_env import Task
from lm_env.benchmark.measures import IndependentModel, distinct, likeness, repetition
from lm_env.benchmark.preflight import TARGET_KL, preflight, suggested_beta
from lm_env.benchmark.preflight.measuring import Speed
from lm_env.cli import app
from lm_env.cli.benchmark.preflight import _scores
from lm_env.errors import ConfigurationError, MissingDependencyError, RewardValueError
from lm_env.models.loading import load_causal_lm
from lm_env.models.logprobs import token_logprobs
from lm_env.tasks import get_task
from lm_env.theory.ceilings import ceiling


def make(model_folder, reward, **options):
    prompts = [f"film {n}" for n in range(4)]
    return Task(model=str(model_folder), prompts=prompts, reward=reward, max_new_tokens=6, **options)


def lengths(prompts, responses, response_ids):
    return [float(len(ids)) for ids in response_ids]


def test_a_reward_that_is_the_length_is_found(model_folder):
    found = preflight(make(model_folder, lengths, beta=1.0), samples=128)
    assert found.prompts == 4 and found.samples == 32
    if found.length_correlation is not None:  # some text must have ended before the cap
        assert found.length_correlation == pytest.approx(1.0)
        assert any("goes with the length" in warning for warning in found.warnings)
    assert found.score == pytest.approx(found.length)
    assert sum(count for _, _, count in found.histogram) == 128
    assert found.ended + found.truncated == pytest.approx(1)


def test_a_reward_of_one_value_cannot_be_learned(model_folder):
    found = preflight(make(model_folder, lambda prompts, responses: [2.0] * len(responses)), samples=64)
    assert found.without_variance == found.equal_groups == 1 and found.suggested_beta is None
    assert found.warnings == ["all 64 samples score 2: nothing can be learned from them"]


def test_beta_0_is_warned_of_where_no_beta_can_be_suggested(model_folder):
    """The scores differ between prompts and not between the samples of one."""
    found = preflight(make(model_folder, lambda prompts, responses: [float(p[-1]) for p in prompts], beta=0.0))
    assert found.std > 0 and found.suggested_beta is None
    assert "beta is 0: nothing keeps the texts near the reference" in found.warnings


def test_a_small_beta_is_no_danger_where_its_optimum_is_near(model_folder):
    """Half of the tokens score 1, so the best texts are at most about log 2 nats away, whatever beta is."""

    def half(prompts, responses, response_ids):
        return [float(ids[0] % 2) for ids in response_ids]

    found = preflight(make(model_folder, half, beta=1e-4), samples=128)
    assert max(point.KL for point in found.betas) < TARGET_KL
    assert not any("allows texts far" in warning for warning in found.warnings)


def test_a_reward_that_pays_repetition_is_gamed(model_folder):
    """The count of the word that a degenerate text repeats."""
    found = preflight(
        make(model_folder, lambda prompts, responses: [float(r.count("good")) for r in responses]), samples=64
    )
    told = {text.name: text for text in found.degenerate}
    assert told["one word, repeated"].beats == 1.0
    assert told["an empty text"].mean == 0.0
    assert any('"one word, repeated" scores above' in warning for warning in found.warnings)


def test_beta_too_large_or_too_small_is_said(model_folder):
    def noise(prompts, responses):
        return [(sum(map(ord, r)) % 97) / 97 for r in responses]

    small = preflight(make(model_folder, noise, beta=1e-4), samples=128)
    large = preflight(make(model_folder, noise, beta=50.0), samples=128)
    assert small.suggested_beta == large.suggested_beta
    assert any("allows texts far from the reference" in warning for warning in small.warnings)
    assert any("holds the policy close" in warning for warning in large.warnings)
    assert np.all(np.diff([point.KL for point in small.betas]) > -1e-6)


def test_the_suggested_beta_is_where_the_optimum_has_that_kl():
    """Normal scores with standard deviation s have an optimum at KL s^2 / (2 beta^2)."""
    scores = np.random.default_rng(0).normal(0, 2.0, size=(30, 4000))
    beta = suggested_beta(scores)
    assert beta is not None
    assert ceiling(scores, beta).KL.mean == pytest.approx(TARGET_KL, rel=0.15)  # beta has two digits
    assert beta == pytest.approx(2.0 / math.sqrt(2 * TARGET_KL), rel=0.06)
    assert suggested_beta(np.ones((3, 8))) is None
    assert suggested_beta(np.arange(3)[:, None] * np.ones((3, 8))) is None


def test_where_the_best_texts_are_frequent_the_suggested_beta_still_reaches_them():
    """Of scores 0 and 1 with p = .5 no optimum is more than log 2 nats away: at nine tenths of that it scores .98."""
    scores = np.tile([0.0, 1.0], (10, 500))
    beta = suggested_beta(scores)
    assert beta is not None
    found = ceiling(scores, beta)
    assert found.KL.mean == pytest.approx(0.9 * math.log(2), rel=0.05) and found.score.mean > 0.97


def test_the_prompts_are_not_the_first_ones(model_folder):
    """Prompts often come in an order, such as sums from easy to hard."""
    prompts = [f"film {n}" for n in range(100)]
    seen: list[str] = []

    def reward(prompts, responses):
        seen.extend(prompts)
        return [0.5 * len(r) for r in responses]

    preflight(Task(model=str(model_folder), prompts=prompts, reward=reward, max_new_tokens=3), samples=320, seed=3)
    assert len(set(seen)) == 10 and set(seen) != set(prompts[:10])


def test_a_reward_that_is_rarely_paid_is_told(model_folder):
    """Two of 128 samples are paid, and no longer text or other prompt is."""
    calls = iter(range(10**6))

    def rare(prompts, responses):
        return [float(len(responses) == 128 and next(calls) % 64 == 63) for _ in responses]

    found = preflight(make(model_folder, rare), samples=128)
    assert found.commonest == (0.0, 126 / 128) and found.histogram == [(0.0, 0.0, 126), (1.0, 1.0, 2)]
    assert any(w.startswith("only 1.6% of the samples score more than 0, about 2.0 of the 128") for w in found.warnings)


def test_the_time_of_a_training_is_that_of_its_parts():
    """Writing, judging, two forwards for scoring and three for each pass of an update, for every token."""
    one, four = Speed(writing=0.5, forward=0.1).training(10, judging=2.0)
    assert one == pytest.approx(10 * (0.5 + 2.0 + 2 * 0.1 + 3 * 0.1))
    assert four == pytest.approx(10 * (0.5 + 2.0 + 2 * 0.1 + 12 * 0.1))


def test_texts_that_are_paid_for_not_ending_say_nothing_of_length(model_folder):
    """All that end score alike, and the others score 0: among all texts, shorter ones seem to score more."""

    def one(prompts, responses):
        return [1.0 for _ in responses]

    plain = preflight(make(model_folder, one, missing_eos_score=0.0), samples=256)
    assert 0 < plain.ended < 1 and plain.score == pytest.approx(plain.ended) and plain.length_correlation is None
    assert any("(missing_eos_score)" in warning for warning in plain.warnings) == (plain.truncated > 0.25)


def run_command(*words):
    return CliRunner().invoke(app, ["preflight", *map(str, words)], env={"NO_COLOR": "1", "COLUMNS": "160"})


def test_the_command_prints_and_writes(tmp_path):
    done = run_command("lm_env/TokenMDP-v0", "--samples", "64", "--out", tmp_path / "p.json")
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "p.json").read_text())
    assert written["samples"] * written["prompts"] == 64 and "best of 16" in done.output
    assert written["budget"] == get_task("lm_env/TokenMDP-v0").budget and "600,000 tokens of training" in done.output
    with pytest.raises(ConfigurationError, match="samples"):
        preflight(None, samples=10)  # type: ignore[arg-type]


def test_the_agents_named_beside_a_time_make_so_many_passes_by_default():
    said = run_command("lm_env/TokenMDP-v0", "--samples", "64").output
    one, four = re.search(r"one pass over each rollout \((.+?)\), .+? with four \((.+?)\)", said).groups()
    configs = {name: AGENTS[name].Config() for name in f"{one}, {four}".split(", ")}
    passes = {name: getattr(config, "n_epochs", 1) for name, config in configs.items()}  # A2C's update is one pass
    assert passes == {**dict.fromkeys(one.split(", "), 1), **dict.fromkeys(four.split(", "), 4)}


def test_the_command_takes_the_options_of_a_task_and_of_lm_env_train(tmp_path, model_folder):
    options = ["--env-option", "level=3", "--tokens", 77, "--beta", 0.5, "--samples", 64, "--out", tmp_path / "p.json"]
    assert run_command("lm_env/Arithmetic-v0", *options).exit_code == 0
    written = json.loads((tmp_path / "p.json").read_text())
    assert (written["budget"], written["beta"], written["model"]) == (77, 0.5, "arithmetic-0.4m")
    assert re.fullmatch(r"\d{3}\+\d{3}=", written["degenerate"][1]["example"])  # the prompt copied
    (tmp_path / "prompts.txt").write_text("a good film\nthe end\n")
    own = ["--prompts", tmp_path / "prompts.txt", "--reward", "lexicon", "--model", model_folder]
    done = run_command(*own, "--samples", 64, "--max-new-tokens", 4)
    assert done.exit_code == 0 and "100,000 tokens of training" in done.output and "the cap of 4" in done.output
    assert "give env" in str(run_command("--samples", 64).exception)


# -- texts -------------------------------------------------------------------------------------------
def test_diversity_by_hand():
    texts = ["a b a b", "A b"]
    assert distinct(texts, 1) == 2 / 6
    assert distinct(texts, 2) == 2 / 4
    assert distinct(["one"], 2) == 0.0
    assert repetition(["a b a b a b a b", "one two three four five"], 4) == pytest.approx((1 - 2 / 5) / 2)
    assert repetition([], 4) == 0.0


@given(st.lists(st.text(alphabet="ab ", max_size=12), max_size=5), st.integers(1, 3))
def test_diversity_counts_ngrams(texts, n):
    grams = []
    for text in texts:
        words = text.split()
        grams += list(zip(*(words[i:] for i in range(n)), strict=False))
    assert distinct(texts, n) == (len(set(grams)) / len(grams) if grams else 0.0)
    assert 0 <= repetition(texts, n) < 1


def test_likeness_of_a_text_to_itself():
    try:
        found = likeness(["the film was good and long"], ["the film was good and long"])
    except MissingDependencyError as error:
        assert "lm-env[textmetrics]" in str(error)
        return
    assert found["bleu"] == pytest.approx(100) and found["rouge_L"] == 1.0
    with pytest.raises(ConfigurationError):
        likeness(["a"], [])


def test_the_independent_perplexity_is_that_of_one_text_after_the_other(model_folder):
    prompts, responses = ["a good", "the", "an end"], [" film", " story of it", ""]
    found = IndependentModel(str(model_folder)).measure(prompts, responses)
    model, tokenizer = load_causal_lm(str(model_folder))
    nats = tokens = 0.0
    for prompt, response in zip(prompts, responses, strict=True):
        before = tokenizer(prompt)["input_ids"]
        after = tokenizer(response, add_special_tokens=False)["input_ids"]
        if not after:
            continue
        ids = torch.tensor([before + after])
        with torch.no_grad():
            logprobs = token_logprobs(model(input_ids=ids[:, :-1]).logits, ids[:, 1:])
        nats -= float(logprobs[0, len(before) - 1 :].sum())
        tokens += len(after)
    assert found["independent_perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    size = sum(len(response.encode()) for response in responses)
    assert found["independent_bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-4)
    assert IndependentModel(str(model_folder)).measure(["a"], [""]) == {}


def test_a_response_longer_than_the_positions_is_read_in_parts(model_folder):
    """Every token once, each after at least half as many tokens as there are positions, where there are so many."""
    other = IndependentModel(str(model_folder))
    limit = other.model.config.max_position_embeddings
    before = other.tokenizer("a good")["input_ids"]
    response = " story of a film" * limit
    after = other.tokenizer(response, add_special_tokens=False)["input_ids"]
    assert len(after) > 2 * limit
    ids = [*before, *after]
    nats = 0.0
    for i in range(len(before), len(ids)):
        part = (i - len(before)) // (limit // 2) * (limit // 2)  # where the part of this token starts in the response
        size = min(limit // 2, len(after) - part)
        seen = torch.tensor([ids[max(0, len(before) + part + size - limit) : i]])
        assert min(i, limit // 2) <= seen.shape[1] < limit
        with torch.no_grad():
            logits = other.model(input_ids=seen).logits[:, -1:]
        nats -= float(token_logprobs(logits, torch.tensor([[ids[i]]])).sum())
    found = other.measure(["a good"], [response])
    assert found["independent_perplexity"] == pytest.approx(math.exp(nats / len(after)), rel=1e-4)
    size = len(response.encode())
    assert found["independent_bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-4)


def test_histogram_edges_are_in_order(model_folder):
    found = preflight(make(model_folder, lambda prompts, responses: [float(sum(map(ord, r)) % 997) for r in responses]))
    assert len(found.histogram) == 12
    assert all(a[1] == b[0] for a, b in pairwise(found.histogram))


@pytest.mark.parametrize("scale", [1e30, 1e308, 1e-30, 5e-324])
def test_scores_of_a_size_that_no_beta_fits_are_told_by_how_much_to_scale_them(scale, model_folder):
    def reward(prompts, responses):
        return [scale * ((sum(map(ord, response)) % 7 - 3) / 3) for response in responses]

    with pytest.raises(RewardValueError) as caught:
        preflight(make(model_folder, reward), samples=64)
    (factor,) = re.findall(r"multiply the reward by (\S+| a large number),", str(caught.value).replace("by a", "by  a"))
    assert 0.1 <= float(factor) * scale <= 10 if scale > 1e-300 else factor == " a large number"


def test_scores_that_differ_little_for_their_size_are_shown_with_digits_that_tell_them_apart(model_folder):
    def far(prompts, responses):
        return [1e9 + sum(map(ord, response)) % 17 / 17 for response in responses]

    found = preflight(make(model_folder, far), samples=64)
    text, *bars = _scores(found)
    spans = [bar.partition("  #")[0].split(" to ") for bar in bars]
    edges = [[float(edge) for edge in span] for span in spans]
    assert all(low < high for low, high in edges) and len({low for low, _ in edges}) == len(bars) == 12
    assert f"mean {found.score:,.3f}" in text
    small = preflight(make(model_folder, lambda prompts, responses: [(v - 1e9) / 1e4 for v in far(prompts, responses)]))
    mean, spread = re.search(r"mean (\S+), standard deviation (\S+),", next(iter(_scores(small)))).groups()
    assert float(mean) == pytest.approx(small.score, rel=0.05) and float(spread) == pytest.approx(small.std, rel=0.05)


def test_a_score_of_the_prompt_alone_cannot_be_learned(model_folder):
    found = preflight(make(model_folder, lambda prompts, responses: [float(p[-1]) for p in prompts]), samples=64)
    assert found.std > 0 and found.without_variance == 1
    assert found.warnings[0].startswith("the samples of each prompt all score alike, so nothing can be learned")
    assert not any("GRPO and RLOO learn from the rest" in warning for warning in found.warnings)


def test_the_first_token_after_no_prompt_is_predicted_from_the_beginning_of_a_text(model_folder):
    model, tokenizer = load_causal_lm(str(model_folder))
    after = tokenizer(" film xyz", add_special_tokens=False)["input_ids"]

    def nats(ids, start):
        with torch.no_grad():
            return -float(token_logprobs(model(input_ids=ids[:, :-1]).logits, ids[:, 1:])[0, start:].sum())

    assert len(after) > 1 and len(tokenizer("a")["input_ids"]) == 1
    independent = IndependentModel(str(model_folder))
    found = independent.measure([""], [" film xyz"])["independent_perplexity"]
    whole = nats(torch.tensor([[tokenizer.eos_token_id, *after]]), 0)
    assert found == pytest.approx(math.exp(whole / len(after)), rel=1e-4)
    independent.tokenizer = copy.deepcopy(tokenizer)
    independent.tokenizer.eos_token = None
    found = independent.measure(["", ""], [" film xyz", "a"])["independent_perplexity"]
    assert found == pytest.approx(math.exp(nats(torch.tensor([after]), 0) / (len(after) - 1)), rel=1e-4)
