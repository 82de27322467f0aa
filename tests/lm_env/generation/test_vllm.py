"""Texts by vLLM, spoken to in its own format: whole distributions, current weights, and nothing believed unseen."""

from __future__ import annotations

import copy
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm_stand_in import module, serving

from agents import PPO
from lm_env import TextGenerationEnv
from lm_env.data.prompts import Prompt
from lm_env.errors import BackendError, ConfigurationError, MissingDependencyError, StaleWeightsError
from lm_env.generation import LocalBackend, Sampling
from lm_env.generation.vllm import VLLMEngine, VLLMServer
from lm_env.generation.vllm.texts import as_generation
from lm_env.models.logprobs import response_logprobs

ENDS = list(range(0, 61, 8))


@pytest.fixture
def task(id_task):
    env = TextGenerationEnv(**id_task(max_new_tokens=6, eos_token_id=ENDS, temperature=0.7))
    return env.task


@pytest.fixture(scope="module")
def lasting_task(id_task):
    return TextGenerationEnv(**id_task(max_new_tokens=3)).task


@pytest.fixture
def server(make_lm):
    """It starts with other weights than the task's."""
    with serving(make_lm("gpt2", seed=5)) as running:
        yield running


@pytest.fixture(params=["server", "engine"])
def backend(request, task, tmp_path, monkeypatch):
    """(the backend, what stands for vLLM's engine behind it)."""
    if request.param == "server":
        running = request.getfixturevalue("server")
        return VLLMServer(task, running.url, tmp_path / "weights"), running.engine
    monkeypatch.setitem(sys.modules, "vllm", module())
    made = VLLMEngine(task, gpu_memory_utilization=0.4)
    return made, made._llm.engine


def drawn(task, count: int = 12):
    return task.prompts.sample(np.random.default_rng(0), count)


def seeded(seed: int = 0) -> Sampling:
    return Sampling(torch.Generator().manual_seed(seed))


def test_the_logprobs_are_the_models_own(backend, task):
    generation = backend[0].generate(drawn(task), seeded())
    own = response_logprobs(task.model, generation.episodes, task.temperature)
    mask = generation.episodes.response_mask()
    assert np.abs(own - generation.episodes.logprobs)[mask].max() < 1e-5
    assert generation.rounded and generation.values is None
    ended, capped = task.ends(
        generation.episodes.input_ids, generation.episodes.prompt_lengths, generation.episodes.lengths
    )
    assert (ended ^ capped).all() and ended.any() and capped.any()


def test_likeliest_texts_are_those_of_the_local_backend(backend, task):
    prompts = drawn(task)
    local = LocalBackend(task).generate(prompts, Sampling(deterministic=True)).episodes
    theirs = backend[0].generate(prompts, Sampling(deterministic=True)).episodes
    assert local.responses() == theirs.responses()
    assert np.allclose(local.logprobs, theirs.logprobs, atol=1e-5)


def test_every_text_has_a_seed_of_its_own_that_its_numbers_decide(backend, task):
    made, engine = backend
    first = made.generate(drawn(task), seeded()).episodes.responses()
    assert len(set(engine.seeds)) == 12
    assert made.generate(drawn(task), seeded()).episodes.responses() == first
    fixed = Sampling.fixed(12, task.max_new_tokens, seed=3)
    rows = made.generate(drawn(task), fixed).episodes.responses()
    part = Sampling(uniforms=fixed.uniforms[4:7])
    assert made.generate(drawn(task)[4:7], part).episodes.responses() == rows[4:7]
    with pytest.raises(ConfigurationError, match="uniforms"):
        made.generate(drawn(task), part)


def test_no_filter_is_left_to_the_server(backend, task):
    backend[0].generate(drawn(task), seeded())
    sent = backend[1].fields[0]
    assert sent["top_p"] == 1.0 and sent["top_k"] == 0 and sent["min_p"] == 0.0 and sent["repetition_penalty"] == 1.0
    assert sent["temperature"] == 0.7 and sent["ignore_eos"] and sent["stop_token_ids"] == ENDS


@pytest.mark.parametrize("name", ["top_k", "top_p", "min_p", "logit_bias", "temperature", "n", "bad_words"])
def test_what_changes_the_distribution_is_refused(server, task, tmp_path, name):
    with pytest.raises(ConfigurationError, match=name):
        VLLMServer(task, server.url, tmp_path / "weights", extra={name: 1})
    assert VLLMServer(task, server.url, tmp_path / "weights", extra={"priority": 1}).extra == {"priority": 1}


def test_an_agent_trains_with_texts_of_vllm(backend, task, id_task):
    """Its weights are handed over after each update: the ratios of every rollout begin at 1."""
    made, engine = backend
    env = TextGenerationEnv(**id_task(model=task.model, max_new_tokens=6, eos_token_id=ENDS, temperature=0.7))
    agent = PPO(env, critic="none", rollout_episodes=8, batch_size=8, n_epochs=1, learning_rate=0.01)
    agent.backend = made
    before = copy.deepcopy(task.model.state_dict())
    for version in range(1, 4):
        rollout = agent.collect_rollout()
        assert agent.update(rollout)["first_log_ratio"] < 1e-4 and rollout.mismatch.max() < 1e-4
        assert made._version == version
    assert any((task.model.state_dict()[name] - tensor).abs().max() > 1e-3 for name, tensor in before.items())
    changed = [call for call in engine.calls if call in ("/reset_prefix_cache", "reset_prefix_cache")]
    assert len(changed) == (3 if engine.version != "default" else 2), "once for each change of the weights"


def test_weights_that_did_not_change_are_not_handed_over_again(server, task, tmp_path):
    made = VLLMServer(task, server.url, tmp_path / "weights")
    for _ in range(3):
        made.generate(drawn(task, 2), seeded())
    assert server.engine.calls.count("/collective_rpc") == 1
    calls = [call for call in server.engine.calls if call != "/v1/completions"]
    assert calls == ["/pause", "/collective_rpc", "/reset_prefix_cache", "/update_weight_version", "/resume"]


def test_texts_of_other_weights_are_an_error_and_then_handed_over_anew(server, task, tmp_path):
    made = VLLMServer(task, server.url, tmp_path / "weights")
    made.generate(drawn(task, 2), seeded())
    server.engine.version = "default"  # as after a restart
    with pytest.raises(StaleWeightsError, match="'default'"):
        made.generate(drawn(task, 2), seeded())
    made.generate(drawn(task, 2), seeded())
    server.stolen = True
    with pytest.raises(StaleWeightsError, match="another program's"):
        made.generate(drawn(task, 2), seeded())


def test_servers_that_will_not_do_are_refused_at_once(server, task, tmp_path, id_task):
    server.mode = "raw_logprobs"
    with pytest.raises(ConfigurationError, match="processed_logprobs"):
        VLLMServer(task, server.url, tmp_path / "weights")
    server.dev_mode = False
    with pytest.raises(ConfigurationError, match="VLLM_SERVER_DEV_MODE"):
        VLLMServer(task, server.url, tmp_path / "weights")
    masked = TextGenerationEnv(**id_task(action_mask=lambda prompt, response: np.ones(61, dtype=bool))).task
    with pytest.raises(ConfigurationError, match="action_mask"):
        VLLMServer(masked, server.url, tmp_path / "weights")


def test_without_a_server_the_message_names_the_place(task, tmp_path):
    with pytest.raises(BackendError, match=r"127\.0\.0\.1:9"):
        VLLMServer(task, "http://127.0.0.1:9", tmp_path / "weights", timeout=2)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 70) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
CHOICE = st.fixed_dictionaries({"token_ids": JSON, "logprobs": st.fixed_dictionaries({"token_logprobs": JSON}) | JSON})


@settings(max_examples=60, deadline=None)
@given(answer=JSON.filter(lambda x: x is not None) | CHOICE.map(lambda choice: {"choices": [choice]}))
def test_whatever_a_server_answers_is_an_error_of_ours_or_a_text(answer, lasting_task):
    made = VLLMServer.__new__(VLLMServer)
    made.task, made.served, made.extra, made.url = lasting_task, "tiny", {}, "http://nowhere"
    made._call = lambda *_: answer if isinstance(answer, dict) else {}
    prompt = Prompt(np.array([1]), "", {}, 0)
    try:
        found = as_generation(lasting_task, [prompt], [made._text(prompt, 0, False)], 1, False).episodes
    except BackendError:
        return
    ended, capped = lasting_task.ends(found.input_ids, found.prompt_lengths, found.lengths)
    assert ended[0] or capped[0]


def test_without_vllm_the_engine_says_what_to_install(task, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingDependencyError, match=r"lm-env\[vllm\]"):
        VLLMEngine(task)
    with pytest.raises(ConfigurationError, match="logprobs_mode"):
        VLLMEngine(task, logprobs_mode="raw_logprobs")


def test_a_stop_string_cuts_the_text_where_it_is_complete(text_task, tmp_path, text_lm):
    env = TextGenerationEnv(**text_task(max_new_tokens=12, stop_strings=["a", "e"]))
    with serving(text_lm(seed=3)) as running:  # it does not know stop strings, and writes on
        found = VLLMServer(env.task, running.url, tmp_path / "w").generate(drawn(env.task, 20), seeded()).episodes
    ended, capped = env.task.ends(found.input_ids, found.prompt_lengths, found.lengths)
    assert (ended | capped).all() and ended.any()
    shorter = found.lengths - 1
    long = shorter > found.prompt_lengths
    before, _ = env.task.ends(found.input_ids[long], found.prompt_lengths[long], shorter[long])
    assert not before.any(), "no text had ended a token earlier"
