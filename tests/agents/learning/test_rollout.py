"""Rollouts by continuous refill: every prompt to its end, in order, nothing favored and nothing computed twice."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from agents.learning.policy import ValueHeadPolicy
from agents.learning.rollout import Rollout, collect
from lm_env.data.episodes import Episodes
from lm_env.errors import ConfigurationError
from lm_env.generation import LocalBackend, Sampling
from lm_env.models.logprobs import response_logprobs
from lm_env.objective.task import Task

SLOTS = 3
ENDS = list(range(0, 61, 5))  # many tokens end a text, so that lengths differ


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def policy_of(task: Task, critic="shared") -> ValueHeadPolicy:
    """With a value head that says something."""
    policy = ValueHeadPolicy(task.model, critic, task.temperature)
    if policy.value_head is not None:
        nn.init.normal_(policy.value_head.weight, generator=seeded(9))
        nn.init.constant_(policy.value_head.bias, 0.5)
    return policy


def roll_out(policy: ValueHeadPolicy, task: Task, prompts, slots: int) -> Rollout:
    backend = LocalBackend(task, slots, model=policy.lm, value_of=policy.value_of if policy.reads_trunk else None)
    return collect(backend, policy, task, prompts, Sampling(seeded()))


def write(model: nn.Module, task: Task, prompts, slots: int, generator=None, deterministic: bool = False) -> Episodes:
    backend = LocalBackend(task, slots, model=model)
    return backend.generate(prompts, Sampling(generator, deterministic)).episodes


class Hazard(nn.Module):
    """The same next-token distribution everywhere, so that lengths are geometric; token 0 ends a text."""

    def __init__(self, stop: float, vocab_size: int = 4) -> None:
        super().__init__()
        rest = torch.full((vocab_size - 1,), (1 - stop) / (vocab_size - 1))
        self.logits = nn.Parameter(torch.cat([torch.tensor([stop]), rest]).log())

    def forward(self, input_ids: torch.Tensor) -> CausalLMOutput:
        return CausalLMOutput(logits=self.logits.expand(*input_ids.shape, -1))


class Counting(nn.Module):
    """A causal LM that counts the rows it is run on."""

    def __init__(self, lm: nn.Module) -> None:
        super().__init__()
        self.lm, self.rows = lm, 0

    def forward(self, input_ids: torch.Tensor, output_hidden_states: bool = False):
        self.rows += len(input_ids)
        return self.lm(input_ids=input_ids, output_hidden_states=output_hidden_states)


# -- what is kept ----------------------------------------------------------------------------------
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt2-eager", "mistral", "table"])
def test_kept_logprobs_and_values_are_those_of_a_second_look(id_task, kind, temperature):
    """The table goes through full forwards, the others through the slot cache, Mistral with a window of 4 tokens."""
    task = Task(**id_task(kind, temperature=temperature, eos_token_id=0 if kind == "table" else ENDS))
    policy = policy_of(task)
    prompts = task.prompts.sample(np.random.default_rng(0), 11)
    rollout = roll_out(policy, task, prompts, SLOTS)
    episodes, mask = rollout.episodes, rollout.mask
    assert len(set(episodes.response_lengths.tolist())) > 1, "unequal lengths, or little is tested"
    again = response_logprobs(task.model, episodes, temperature)
    np.testing.assert_allclose(episodes.logprobs, again, rtol=0, atol=3e-5)
    np.testing.assert_allclose(rollout.values, policy.values(episodes), rtol=0, atol=3e-5)
    evaluation = policy.evaluate(episodes)
    np.testing.assert_allclose(evaluation.logprobs.detach(), again[mask], rtol=0, atol=1e-5)
    np.testing.assert_allclose(evaluation.values.detach(), rollout.values[mask], rtol=0, atol=3e-5)
    assert not rollout.values[~mask].any() and not rollout.last_values.any()
    np.testing.assert_array_equal(rollout.scored.logprobs, episodes.logprobs)


def test_values_of_a_separate_critic_are_its_own(id_task):
    task = Task(**id_task())
    policy = policy_of(task, copy.deepcopy(task.reference))
    rollout = roll_out(policy, task, task.prompts.sample(np.random.default_rng(0), 7), SLOTS)
    shared = policy_of(Task(**id_task()))
    np.testing.assert_allclose(rollout.values, policy.values(rollout.episodes), rtol=0, atol=1e-5)
    assert np.abs(rollout.values - shared.values(rollout.episodes)).max() > 0.1


def test_without_a_critic_values_are_0(id_task):
    task = Task(**id_task())
    rollout = roll_out(ValueHeadPolicy(task.model, "none"), task, task.prompts.head(4), SLOTS)
    assert not rollout.values.any()


def test_dropout_is_off_and_the_flags_stay(id_task, make_lm):
    lm = make_lm("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5).train()
    task = Task(**id_task(model=lm))
    episodes = write(lm, task, task.prompts.head(4), SLOTS, seeded())
    np.testing.assert_allclose(episodes.logprobs, response_logprobs(lm, episodes), rtol=0, atol=1e-5)
    assert all(module.training for module in lm.modules())


# -- every prompt, in order ------------------------------------------------------------------------
@pytest.mark.parametrize("slots", [1, 2, 5, 64])
def test_every_prompt_is_carried_to_its_end_in_order(id_task, slots):
    task = Task(**id_task(eos_token_id=ENDS))
    prompts = task.prompts.sample(np.random.default_rng(1), 23)
    episodes = write(task.model, task, prompts, slots, seeded())
    assert list(episodes.prompts) == prompts
    for row, prompt, p, n in zip(episodes.input_ids, prompts, episodes.prompt_lengths, episodes.lengths, strict=True):
        np.testing.assert_array_equal(row[:p], prompt.ids)
        response = row[p:n].tolist()
        assert not set(ENDS) & set(response[:-1]), "the text went on after its EOS"
        assert response[-1] in ENDS or len(response) == task.max_new_tokens, "the text stops before its end"


@pytest.mark.parametrize("kind", ["gpt2", "table"])
def test_greedy_texts_do_not_depend_on_the_slots(id_task, kind):
    task = Task(**id_task(kind, **({} if kind == "table" else {"eos_token_id": ENDS, "max_new_tokens": 12})))
    prompts = task.prompts.sample(np.random.default_rng(2), 9)
    one, many, all_at_once = (write(task.model, task, prompts, n, deterministic=True) for n in (1, 4, 64))
    for other in (many, all_at_once):
        np.testing.assert_array_equal(one.input_ids, other.input_ids)
        np.testing.assert_array_equal(one.lengths, other.lengths)
        np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("slots", [3, 40, 3000])
def test_lengths_are_geometric_whatever_the_slots(slots):
    """Closed form P(n) = h (1 - h)^(n - 1), the rest at the cap; chi-square over 12 lengths, 99.9%: 31.26."""
    stop, cap, count = 0.25, 12, 3000
    task = Task(
        model=Hazard(stop),
        prompts=[[1], [1, 2]],
        reward=lambda prompts, responses: [0.0] * len(prompts),
        eos_token_id=0,
        max_new_tokens=cap,
    )
    prompts = task.prompts.sample(np.random.default_rng(0), count)
    episodes = write(task.model, task, prompts, slots, seeded(7))
    probabilities = stop * (1 - stop) ** np.arange(cap)
    probabilities[-1] = (1 - stop) ** (cap - 1)
    counts, expected = np.bincount(episodes.response_lengths, minlength=cap + 1)[1:], count * probabilities
    assert ((counts - expected) ** 2 / expected).sum() < 31.26
    # The last to be taken in are as long as the first: nothing short was preferred on the way.
    early, late = np.split(episodes.response_lengths, 2)
    assert abs(early.mean() - late.mean()) < 4 * episodes.response_lengths.std() * np.sqrt(4 / count)


# -- what it costs ---------------------------------------------------------------------------------
@pytest.mark.parametrize("slots", [1, 4, 64])
def test_one_policy_forward_per_token_and_none_for_scoring(id_task, make_lm, slots):
    model, reference, critic = (Counting(make_lm("gpt2", seed)) for seed in range(3))
    task = Task(**id_task(model=model, reference=reference, eos_token_id=ENDS))
    policy = ValueHeadPolicy(model, critic)
    prompts = task.prompts.sample(np.random.default_rng(0), 10)
    write(model, task, prompts[:1], 1, seeded())  # whatever is tried out once, is
    for counter in (model, reference, critic):
        counter.rows = 0
    rollout = roll_out(policy, task, prompts, slots)
    tokens = int(rollout.episodes.response_lengths.sum())
    assert tokens > 20
    assert (model.rows, reference.rows, critic.rows) == (tokens, 10, 10)


def test_a_cached_step_runs_one_token_per_row(id_task):
    task = Task(**id_task(eos_token_id=ENDS))
    write(task.model, task, task.prompts.head(1), 1, seeded())
    shapes: list[tuple[int, ...]] = []
    handle = task.model.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    prompts = task.prompts.sample(np.random.default_rng(0), 10)
    episodes = write(task.model, task, prompts, 4, seeded())
    handle.remove()
    assert sum(rows for rows, _ in shapes) == episodes.response_lengths.sum()
    starts = sum(rows for rows, width in shapes if width > 1)
    assert starts <= len(prompts)
    assert max(rows for rows, _ in shapes) == 4


# -- ends ------------------------------------------------------------------------------------------
def test_stop_strings_end_a_text_where_they_appear(text_task, tokenizer):
    task = Task(**text_task(stop_strings=["a", "oo"], max_new_tokens=12, eos_token_id=()))
    prompts = task.prompts.sample(np.random.default_rng(0), 40)
    rollout = roll_out(policy_of(task), task, prompts, 8)
    ended = 0
    for response, by_itself in zip(rollout.episodes.responses(), rollout.scored.ended, strict=True):
        found = [stop in tokenizer.decode(response, skip_special_tokens=True) for stop in task.stop_strings]
        before = [stop in tokenizer.decode(response[:-1], skip_special_tokens=True) for stop in task.stop_strings]
        assert not any(before)
        assert any(found) == by_itself
        assert by_itself or len(response) == 12
        ended += by_itself
        assert not any(stop in task.text_of(response) for stop in task.stop_strings)
    assert 5 < ended < 40


def test_masked_tokens_are_never_sampled_and_the_logprobs_know_it(id_task):
    def even_after_odd(prompt, response):
        allowed = np.arange(61) % 2 == len(response) % 2
        allowed[0] = len(response) >= 2
        return allowed

    task = Task(**id_task(action_mask=even_after_odd, temperature=0.8))
    prompts = task.prompts.sample(np.random.default_rng(0), 12)
    rollout = roll_out(policy_of(task), task, prompts, SLOTS)
    for response in rollout.episodes.responses():
        assert all(token % 2 == t % 2 or (token == 0 and t >= 2) for t, token in enumerate(response))
    allowed = task.allowed_in(rollout.episodes)
    again = response_logprobs(task.model, rollout.episodes, 0.8, allowed)
    np.testing.assert_allclose(rollout.episodes.logprobs, again, rtol=0, atol=1e-5)
    free = response_logprobs(task.model, rollout.episodes, 0.8)
    assert (rollout.episodes.logprobs[rollout.mask] > free[rollout.mask]).all()


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_truncated_episodes_keep_the_value_after_their_last_token(id_task, critic):
    task = Task(**id_task(cap_truncates=True, max_new_tokens=3, eos_token_id=ENDS))
    policy = policy_of(task, critic)
    rollout = roll_out(policy, task, task.prompts.sample(np.random.default_rng(0), 60), 16)
    ended = rollout.scored.ended
    assert 0 < ended.sum() < 60
    assert not rollout.last_values[ended].any()
    assert not rollout.scored.scores[~ended].any()
    for row in np.flatnonzero(~ended)[:10]:
        text = torch.from_numpy(rollout.episodes.input_ids[row : row + 1, : rollout.episodes.lengths[row]])
        with torch.no_grad():
            hidden = policy.value_model(input_ids=text, output_hidden_states=True).hidden_states[-1][0, -1]
        assert rollout.last_values[row] == pytest.approx(policy.value_of(hidden).item(), abs=1e-5)


def test_terminated_at_the_cap_has_no_value_after_it(id_task):
    task = Task(**id_task(max_new_tokens=3))
    rollout = roll_out(policy_of(task), task, task.prompts.sample(np.random.default_rng(0), 20), 16)
    assert not rollout.scored.ended.all()
    assert not rollout.last_values.any()


# -- KL --------------------------------------------------------------------------------------------
def test_kl_is_0_while_the_policy_equals_its_reference(id_task):
    task = Task(**id_task(reference=None))
    rollout = roll_out(policy_of(task), task, task.prompts.sample(np.random.default_rng(0), 12), SLOTS)
    np.testing.assert_allclose(rollout.scored.logprobs, rollout.scored.ref_logprobs, rtol=0, atol=1e-5)


def test_same_seed_same_rollout_and_another_differs(id_task):
    task = Task(**id_task())
    prompts = task.prompts.sample(np.random.default_rng(0), 8)
    first, again, other = (write(task.model, task, prompts, SLOTS, seeded(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.input_ids, again.input_ids)
    np.testing.assert_array_equal(first.logprobs, again.logprobs)
    assert first.input_ids.shape != other.input_ids.shape or (first.input_ids != other.input_ids).any()


def test_no_prompts_is_an_error_that_says_so(id_task):
    task = Task(**id_task())
    with pytest.raises(ConfigurationError, match="at least one prompt"):
        write(task.model, task, [], SLOTS, seeded())
