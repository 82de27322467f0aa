"""The TorchRL environment: its specs, its rewards, partial steps and resets, seeds and masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lm_env import Episodes, TextGenerationEnv, TextGenerationVectorEnv
from lm_env.errors import ConfigurationError, InvalidActionError, PublishedActionsError, RewardError

torchrl = pytest.importorskip("torchrl")

from tensordict.nn import TensorDictModule  # noqa: E402
from torchrl.collectors import Collector  # noqa: E402
from torchrl.envs import TransformedEnv, check_env_specs  # noqa: E402
from torchrl.envs.transforms import ActionMask  # noqa: E402

from lm_env.export import to_torchrl  # noqa: E402

ENDS = [0, 1, 2, 3, 4, 5, 6, 7]


@pytest.fixture
def options(id_task):
    return id_task(eos_token_id=ENDS)


def uniform_policy(vocab_size):
    """Acts at random and writes down the logprobs of doing so."""

    def act(length):
        rows = length.shape[0]
        return torch.randint(vocab_size, (rows,)), torch.full((rows,), -float(np.log(vocab_size)))

    return TensorDictModule(act, in_keys=["length"], out_keys=["action", "action_log_prob"])


def episodes_of(env, data):
    """The whole texts of a rollout (n, T), and the rewards that it gave them."""
    by_ids = {tuple(p.ids.tolist()): p for p in env.task.prompts}
    rows, rewards = [], []
    for slot in data.unbind(0):
        ends = np.flatnonzero(slot["next", "done"][:, 0].numpy())
        for begin, end in zip([0, *(ends[:-1] + 1)], ends, strict=True):
            start = int(slot["length"][begin, 0])
            prompt = by_ids[tuple(slot["input_ids"][begin, :start].tolist())]
            response = slot["action"][begin : end + 1].tolist()
            np.testing.assert_array_equal(slot["next", "input_ids"][end, start : start + len(response)], response)
            rows.append((prompt, response))
            rewards.append(slot["next", "reward"][begin : end + 1, 0].numpy())
    lengths = [(len(p.ids), len(p.ids) + len(r)) for p, r in rows]
    ids = np.zeros((len(rows), max(whole for _, whole in lengths)), dtype=np.int64)
    for line, (prompt, response) in zip(ids, rows, strict=True):
        line[: len(prompt.ids) + len(response)] = [*prompt.ids, *response]
    given, whole = np.array(lengths).T
    return Episodes(ids, given, whole, [p for p, _ in rows]), rewards


@pytest.mark.parametrize("break_when_any_done", [True, False])
@pytest.mark.parametrize("changes", [{}, {"cap_truncates": True}, {"max_new_tokens": 1}])
def test_the_specs_are_true(options, changes, break_when_any_done):
    env = to_torchrl(TextGenerationEnv(**{**options, **changes}), 3)
    check_env_specs(env, break_when_any_done=break_when_any_done)


def test_rewards_are_those_of_score(options):
    """With the environment's own model, which no module has published for."""
    torch.manual_seed(0)
    env = to_torchrl(TextGenerationVectorEnv(4, **options), seed=0)
    assert env.batch_size == (4,)
    episodes, rewards = episodes_of(env, env.rollout(24, break_when_any_done=False))
    assert len(rewards) > 12 and len({len(r) for r in rewards}) > 2
    scored = env.score(episodes)
    for seen, wanted in zip(rewards, scored.rewards, strict=True):
        np.testing.assert_allclose(seen, wanted[: len(seen)], atol=1e-5, rtol=0)


def test_the_logprobs_of_the_policy_are_in_the_reward(options):
    """Those that the policy wrote down, of a policy that is not the environment's model; in a `Collector`."""
    torch.manual_seed(0)
    env = to_torchrl(TextGenerationEnv(**options), 4, seed=0)
    policy = uniform_policy(env.task.vocab_size)
    collector = Collector(env, policy, frames_per_batch=96, auto_register_policy_transforms=False)
    data = next(iter(collector))
    episodes, rewards = episodes_of(env, data)
    mask = episodes.response_mask()
    published = Episodes(
        episodes.input_ids,
        episodes.prompt_lengths,
        episodes.lengths,
        episodes.prompts,
        np.where(mask, -np.log(env.task.vocab_size), 0.0),
    )
    own, foreign = env.score(episodes).rewards, env.score(published).rewards
    assert np.abs(own - foreign).max() > 0.1
    for seen, wanted in zip(rewards, foreign, strict=True):
        np.testing.assert_allclose(seen, wanted[: len(seen)], atol=1e-5, rtol=0)
    np.testing.assert_allclose(
        data["next", "kl"], data["next", "logprob"] - data["next", "ref_logprob"], atol=1e-5, rtol=0
    )


def test_the_same_seed_and_actions_bring_the_same_as_the_vector_environment(options, rng):
    env = to_torchrl(TextGenerationEnv(**options), 3, seed=7)
    other = TextGenerationVectorEnv(3, autoreset_mode="Disabled", **options)
    seen, (wanted, _) = env.reset(), other.reset(seed=7)
    for _ in range(3):
        np.testing.assert_array_equal(seen["input_ids"], wanted["input_ids"])
        np.testing.assert_array_equal(seen["length"], wanted["length"])
        assert not seen["done"].any()
        actions = rng.integers(8, env.task.vocab_size, 3)  # none ends a text
        seen = env.step(seen.set("action", torch.from_numpy(actions)))["next"]
        wanted, reward, terminated, truncated, info = other.step(actions)
        np.testing.assert_allclose(seen["reward"][:, 0], reward, atol=1e-5, rtol=0)
        np.testing.assert_allclose(seen["ref_logprob"][:, 0], info["ref_logprob"], atol=1e-5, rtol=0)
        np.testing.assert_array_equal(seen["terminated"][:, 0], terminated)
        np.testing.assert_array_equal(seen["truncated"][:, 0], truncated)
        seen = seen.clone()
    for reset in (env.set_seed, env.set_seed):  # the same draws again after the same seed, and others from then on
        reset(7)
        drawn = [env.reset()["input_ids"].numpy() for _ in range(6)]
        wanted = [other.reset(seed=7 if i == 0 else None)[0]["input_ids"] for i in range(6)]
        np.testing.assert_array_equal(drawn, wanted)
    assert any((ids != drawn[0]).any() for ids in drawn)


def test_what_reset_returns_shares_no_memory(options):
    """Who writes into one entry of a tensordict, as transforms do, changes no other."""
    found = to_torchrl(TextGenerationEnv(**options), 2).reset()
    names = ("score", "logprob", "ref_logprob", "kl", "terminated", "truncated", "done")
    assert len({found[name].data_ptr() for name in names}) == len(names)
    found["score"].add_(1.0)
    assert not found["kl"].any() and not found["logprob"].any()


def test_slots_are_stepped_and_reset_by_themselves(options):
    """A rollout up to the end of all: slots that have ended wait, and a part of them is reset."""
    env = to_torchrl(TextGenerationEnv(**options), 3, seed=0)
    data = env.reset()
    lengths = data["length"][:, 0].clone()
    data = env.step(data.set("action", torch.tensor([0, 20, 21])))["next"]
    assert data["done"][:, 0].tolist() == [True, False, False]
    data = env.step(data.clone().set("action", torch.tensor([9, 9, 9])).set("_step", torch.tensor([False, True, True])))
    after = data["next"]
    assert (after["length"][:, 0] - lengths).tolist() == [1, 2, 2] and after["reward"][0] == 0
    after["done"][0] = True
    begun = env.reset(after.clone().set("_reset", torch.tensor([[True], [False], [False]])))
    assert begun["done"][:, 0].tolist() == [False, False, False]
    assert (begun["length"][1:, 0] - lengths[1:]).tolist() == [2, 2]
    whole = env.rollout(50, break_when_any_done=False, break_when_all_done=True)
    assert whole["next", "done"][:, -1].all() and whole.shape[1] <= env.task.max_new_tokens


def test_masked_tokens(id_task):
    def even(prompt, response):
        return np.arange(61) % 2 == 0

    env = to_torchrl(TextGenerationEnv(**id_task(action_mask=even)), 2)
    check_env_specs(TransformedEnv(env, ActionMask()))
    data = TransformedEnv(env, ActionMask()).rollout(5, break_when_any_done=False)
    assert (data["action"] % 2 == 0).all() and data["action_mask"][..., 1::2].sum() == 0
    begun = env.reset()
    with pytest.raises(InvalidActionError, match="masked"):
        env.step(begun.set("action", torch.tensor([2, 3])))


def test_a_step_that_fails_leaves_no_published_logprob(options):
    env = to_torchrl(TextGenerationEnv(**options), 2)
    begun = env.reset()
    bad = begun.clone().set("action", torch.tensor([9, 9])).set("action_log_prob", torch.tensor([0.5, -1.0]))
    with pytest.raises(PublishedActionsError, match="at most 0"):
        env.step(bad)
    outside = begun.clone().set("action", torch.tensor([9, 999])).set("action_log_prob", torch.tensor([-1.0, -1.0]))
    with pytest.raises(PublishedActionsError, match="no token id"):
        env.step(outside)
    after = env.step(begun.set("action", torch.tensor([10, 10])))["next"]  # else: published for other actions
    assert (after["length"] - begun["length"]).flatten().tolist() == [1, 1]


def test_a_reward_that_fails_leaves_no_published_logprob(id_task):
    """The step that is tried again without a logprob has that of the environment's model."""
    failures = [1]

    def reward(prompts, responses):
        if failures:
            raise RuntimeError("down")
        return [0.0] * len(responses)

    env = to_torchrl(TextGenerationEnv(**id_task(reward=reward)), 1)
    begun = env.reset().set("action", torch.tensor([0]))  # an EOS
    with pytest.raises(RewardError, match="down"):
        env.step(begun.clone().set("action_log_prob", torch.tensor([-50.0])))
    failures.clear()
    assert env.step(begun)["next", "logprob"].item() > -20


def test_arguments(options):
    env = TextGenerationVectorEnv(3, **options)
    assert to_torchrl(env).batch_size == (3,) and to_torchrl(env, 2).batch_size == (2,)
    assert to_torchrl(env).task is env.task
    by_name = to_torchrl("lm_env/Arithmetic-v0", split="test", max_new_tokens=3)
    assert by_name.task.max_new_tokens == 3 and by_name.batch_size == (1,)
    assert len(by_name.task.prompts) != len(to_torchrl("lm_env/Arithmetic-v0").task.prompts)
    for bad in (0, 1.5):
        with pytest.raises(ConfigurationError):
            to_torchrl(env, bad)
    with pytest.raises(ConfigurationError, match="seed"):
        to_torchrl(env, seed=-1)
    for given in (env, env.task):  # one list of prompts: another split would be ignored
        with pytest.raises(ConfigurationError, match="no split 'test'"):
            to_torchrl(given, split="test")
