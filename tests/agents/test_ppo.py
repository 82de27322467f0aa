"""PPO's update: the right tokens, the right gradient, and nothing that padding, batching or dropout could add."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from agents import PPO, PPOConfig
from agents.base.actor_critic import VALUE_HEAD_LAMBDA
from agents.learning.advantages import gae, whiten
from agents.learning.losses import entropy
from agents.learning.rollout import Rollout
from lm_env.envs.env import TextGenerationEnv
from lm_env.errors import ConfigurationError, NonFiniteError
from lm_env.tasks.token_mdp import make
from lm_env.theory.objectives import fixed_point
from lm_env.theory.token_mdp import TokenMDP

ENDS = list(range(0, 61, 5))  # many tokens end a text, so that lengths differ


@pytest.fixture
def make_agent(id_task):
    """`make_agent(kind, task={...}, **options)`: a PPO on a tiny model with a value head that says something."""

    def build(kind: str = "gpt2", task: dict | None = None, head: float = 0.1, **options) -> PPO:
        ends = {} if kind == "table" else {"eos_token_id": ENDS}
        env = TextGenerationEnv(**id_task(kind, **{**ends, **(task or {})}))
        defaults = {"rollout_episodes": 12, "slots": 5, "batch_size": 12, "n_epochs": 1, "learning_rate": 1e-3}
        agent = PPO(env, **{**defaults, **options})
        if agent.policy.value_head is not None:
            nn.init.normal_(agent.policy.value_head.weight, std=head, generator=torch.Generator().manual_seed(9))
        return agent

    return build


def gradients(agent: PPO) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in agent.policy.named_parameters() if p.grad is not None}


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def fingerprint(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# -- the first ratio is 1 --------------------------------------------------------------------------
DROPOUT = {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3}


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("gpt2", {}),
        ("llama", {}),
        ("table", {}),
        ("gpt2", {"temperature": 0.7}),
        ("gpt2", {"action_mask": lambda prompt, response: np.arange(61) % 3 != 1, "temperature": 1.5}),
    ],
    ids=["gpt2", "llama", "table", "temperature", "mask"],
)
def test_first_ratio_is_1(make_agent, kind, task):
    """Also after the weights have moved: what counts is the policy that sampled, not the reference."""
    agent = make_agent(kind, task)
    for _ in range(3):
        metrics = agent.update(agent.collect_rollout())
        assert metrics["first_log_ratio"] <= 1e-5
        assert metrics["clip_fraction"] == 0
        assert abs(metrics["approx_kl"]) < 1e-9
    rollout = agent.collect_rollout()
    metrics = agent.update(replace(rollout, scored=replace(rollout.scored, logprobs=rollout.scored.logprobs + 0.5)))
    assert metrics["first_log_ratio"] == pytest.approx(0.5, abs=1e-5), "other logprobs would show"
    assert metrics["clip_fraction"] == 1


def test_first_ratio_is_1_for_a_model_with_dropout(make_agent, make_lm):
    """Also where somebody has switched the model to training since."""
    agent = make_agent(task={"model": make_lm("gpt2", **DROPOUT).train()})
    for _ in range(2):
        assert agent.update(agent.collect_rollout())["first_log_ratio"] <= 1e-5
        agent.task.model.train()


def test_later_minibatches_have_other_ratios(make_agent):
    agent = make_agent(n_epochs=3, batch_size=4, learning_rate=0.01)
    metrics = agent.update(agent.collect_rollout())
    assert metrics["first_log_ratio"] <= 1e-5
    assert metrics["approx_kl"] > 1e-6
    assert metrics["clip_fraction"] > 0


# -- the gradient is that of the mean over all tokens ----------------------------------------------
@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_micro_batches_change_nothing(make_agent, make_lm, critic):
    """12 x 1 = 4 x 3 = 1 x 12, and the same again by hand, text by text without padding; lengths differ."""
    found = []
    for tokens in (1, 40, 10**6):
        double = {"model": make_lm("gpt2").double()}
        agent = make_agent(task=double, critic=critic, micro_batch_tokens=tokens, max_grad_norm=1e9)
        rollout = agent.collect_rollout()
        assert len(set(rollout.episodes.response_lengths.tolist())) > 2
        start = copy.deepcopy(agent.policy)
        agent.update(rollout)
        found.append(gradients(agent))
    for other in (*found[:2], by_hand(start, rollout, agent.config)):
        assert other.keys() == found[2].keys()
        for name, gradient in found[2].items():
            torch.testing.assert_close(other[name], gradient, rtol=0, atol=1e-10)


def by_hand(policy: nn.Module, rollout: Rollout, config: PPOConfig) -> dict[str, torch.Tensor]:
    """The gradient of one step on the whole rollout: ratio 1, so -A grad log pi + c (V - R) grad V, over N tokens."""
    mask = rollout.mask
    advantages, returns = gae(rollout.scored.rewards, rollout.values, mask, gamma=config.gamma, lam=VALUE_HEAD_LAMBDA)
    advantages, total = whiten(advantages, mask), torch.zeros((), dtype=torch.float64)
    policy.zero_grad()
    for row, (p, n) in enumerate(zip(rollout.episodes.prompt_lengths, rollout.episodes.lengths, strict=True)):
        ids = torch.from_numpy(rollout.episodes.input_ids[row : row + 1, :n])
        out = policy.lm(input_ids=ids, output_hidden_states=True)
        critic = out if policy.critic is None else policy.critic(input_ids=ids, output_hidden_states=True)
        logprobs = torch.log_softmax(out.logits[0, p - 1 : n - 1], -1)[range(n - p), ids[0, p:n]]
        values = policy.value_of(critic.hidden_states[-1][0, p - 1 : n - 1])
        a, r = (torch.from_numpy(x[row, : n - p]) for x in (advantages, returns))
        total = total - (logprobs * a).sum() + config.vf_coef / 2 * ((values - r) ** 2).sum()
    (total / int(mask.sum())).backward()
    return {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}


def test_gradients_are_clipped_to_their_norm(make_agent):
    free, clipped = (make_agent(max_grad_norm=norm) for norm in (1e9, 1e-3))
    for agent in (free, clipped):
        agent.update(agent.collect_rollout())
    norm = torch.stack([g.norm() for g in gradients(free).values()]).norm()
    assert norm > 1e-3
    for name, gradient in gradients(clipped).items():
        torch.testing.assert_close(gradient, gradients(free)[name] * 1e-3 / norm, rtol=1e-3, atol=1e-9)


def test_every_episode_is_used_once_per_epoch(make_agent):
    agent = make_agent(batch_size=5)
    batches = list(agent.minibatches(agent.collect_rollout(), batch_size=5, n_epochs=2))
    assert [len(rows) for rows in batches] == [5, 5, 2] * 2
    epochs = [np.concatenate(batches[:3]), np.concatenate(batches[3:])]
    for epoch in epochs:
        assert sorted(epoch) == list(range(12))
    assert (epochs[0] != epochs[1]).any()


# -- padding ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("rubbish", [np.nan, 1e30])
def test_what_lies_in_the_padding_changes_no_bit(make_agent, rubbish):
    clean, dirty = (make_agent(n_epochs=2, batch_size=5, micro_batch_tokens=30) for _ in range(2))
    rollout = clean.collect_rollout()
    metrics = clean.update(rollout)
    assert metrics == dirty.update(polluted(rollout, rubbish))
    assert same(gradients(clean), gradients(dirty))
    assert same(weights_of(clean.policy), weights_of(dirty.policy))


def polluted(rollout: Rollout, rubbish: float) -> Rollout:
    """Other tokens, more columns and no numbers wherever nothing is real."""
    episodes, mask = rollout.episodes, rollout.mask
    assert not mask.all()
    ids = np.concatenate([episodes.input_ids, np.zeros((len(episodes), 3), dtype=np.int64)], 1)
    padding = np.arange(ids.shape[1]) >= episodes.lengths[:, None]
    ids = np.where(padding, np.random.default_rng(0).integers(0, 61, ids.shape), ids)
    fill = {
        name: np.where(mask, getattr(rollout.scored, name), rubbish) for name in ("rewards", "logprobs", "ref_logprobs")
    }
    return replace(
        rollout,
        episodes=replace(episodes, input_ids=ids, logprobs=np.where(mask, episodes.logprobs, rubbish)),
        values=np.where(mask, rollout.values, rubbish),
        scored=replace(rollout.scored, **fill),
    )


def test_the_metrics_leave_the_padding_out(make_agent):
    agent = make_agent()
    rollout = agent.collect_rollout()
    mask = rollout.mask
    advantages, returns = gae(rollout.scored.rewards, rollout.values, mask)
    metrics = agent.update(rollout)
    assert metrics["advantage_std"] == pytest.approx(advantages[mask].std())
    residual = (returns - rollout.values)[mask]
    assert metrics["value_loss"] == pytest.approx((residual**2).mean() / 2, rel=1e-5)
    assert metrics["explained_variance"] == pytest.approx(1 - residual.var() / returns[mask].var())
    assert metrics["policy_loss"] == pytest.approx(-whiten(advantages, mask)[mask].mean(), abs=1e-6)


# -- the reward of each token ----------------------------------------------------------------------
def test_kl_and_score_enter_at_their_tokens():
    """T0 by hand: -beta (log pi - log pi_ref) of the token taken, the score at the last one, without EOS -1 instead."""
    mdp, beta = TokenMDP.t0(), 0.5
    env = make(mdp=mdp, beta=beta)
    with torch.no_grad():
        env.task.model.table += torch.randn(env.task.model.table.shape, generator=torch.Generator().manual_seed(0))
    logprobs = torch.log_softmax(env.task.model.table.detach().double(), -1).numpy()
    ref_logprobs = mdp.reference_logits
    rollout = PPO(env, rollout_episodes=100, slots=16).collect_rollout()
    seen = set()
    for row, response in enumerate(rollout.episodes.responses()):
        state, expected = 0, []
        for token in response:
            expected.append(-beta * (logprobs[state, token] - ref_logprobs[state, token]))
            state = 4 * state + token + 1
        ended = response[-1] == 3
        expected[-1] += mdp.score(response) if ended else -1
        np.testing.assert_allclose(rollout.scored.rewards[row, : len(response)], expected, rtol=0, atol=1e-5)
        assert not rollout.scored.rewards[row, len(response) :].any()
        seen.add((len(response), ended))
    assert seen == {(1, True), (2, True), (3, True), (3, False)}


def test_score_alone_is_the_return_of_every_token(make_agent):
    agent = make_agent(task={"beta": 0.0}, head=0.0)
    rollout = agent.collect_rollout()
    rewards, mask = rollout.scored.rewards, rollout.mask
    assert ((rewards != 0).sum(1) == 1).all()
    _, returns = gae(rewards, rollout.values, mask, gamma=1.0, lam=1.0)
    np.testing.assert_array_equal(returns, np.where(mask, rollout.scored.scores[:, None], 0.0))


# -- the reference stays, the policy moves ---------------------------------------------------------
@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_the_reference_stays_and_the_policy_moves(make_agent, critic):
    agent = make_agent(task={"reference": None}, critic=critic, n_epochs=2)
    task = agent.task
    before = fingerprint(task.reference), fingerprint(task.model)
    first = agent.collect_rollout()
    np.testing.assert_allclose(first.scored.logprobs, first.scored.ref_logprobs, rtol=0, atol=1e-5)
    agent.learn(200)
    assert fingerprint(task.reference) == before[0]
    assert fingerprint(task.model) != before[1]
    storages = [{p.untyped_storage().data_ptr() for p in m.parameters()} for m in (agent.policy, task.reference)]
    assert not storages[0] & storages[1]
    assert not any(p.requires_grad for p in task.reference.parameters())
    trained = {id(p) for group in agent.updater.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in agent.policy.parameters()}
    assert {id(p) for p in task.model.parameters()} <= trained


def test_frozen_weights_stay_frozen(make_agent, make_lm):
    lm = make_lm("llama")
    lm.model.embed_tokens.requires_grad_(False)
    agent = make_agent("llama", {"model": lm})
    before = weights_of(lm)
    agent.learn(100)
    moved = {name for name, tensor in lm.state_dict().items() if not torch.equal(tensor, before[name])}
    assert "model.embed_tokens.weight" not in moved
    assert "lm_head.weight" in moved


def test_a_wholly_frozen_model_is_trained_and_its_owner_is_told(make_agent, make_lm):
    with pytest.warns(UserWarning, match="all parameters of LlamaForCausalLM are frozen") as caught:
        agent = make_agent("llama", {"model": make_lm("llama").requires_grad_(False)})
    assert len(caught) == 1
    before = fingerprint(agent.task.model)
    agent.learn(50)
    assert fingerprint(agent.task.model) != before


def test_a_separate_critic_leaves_the_policy_its_own_gradient(make_agent):
    """The value loss reaches the shared trunk, and with a separate critic it does not."""
    found = {}
    for critic in ("shared", "separate"):
        for vf_coef in (0.0, 1.0):
            agent = make_agent(critic=critic, vf_coef=vf_coef, max_grad_norm=1e9)
            agent.update(agent.collect_rollout())
            found[critic, vf_coef] = {k: g for k, g in gradients(agent).items() if k.startswith("lm.")}
            if critic == "separate":
                own = {p.untyped_storage().data_ptr() for p in agent.policy.critic.parameters()}
                assert not own & {p.untyped_storage().data_ptr() for p in agent.task.model.parameters()}
    assert same(found["separate", 0.0], found["separate", 1.0])
    assert not same(found["shared", 0.0], found["shared", 1.0])


def test_without_a_critic_there_is_no_value_loss(make_agent):
    agent = make_agent(critic="none")
    rollout = agent.collect_rollout()
    agent.update(rollout)
    assert not rollout.values.any()
    assert all(name.startswith("lm.") for name in gradients(agent))


# -- EOS -------------------------------------------------------------------------------------------
def test_eos_has_a_gradient_although_it_is_the_pad_token():
    env = make(beta=0.1)
    assert env.task.pad_token_id in env.task.eos_token_ids
    agent = PPO(env, rollout_episodes=64, slots=64, batch_size=64, n_epochs=1)
    agent.update(agent.collect_rollout())
    assert env.task.model.table.grad[:4, 3].abs().min() > 1e-4  # the start, and after A, B and C


@pytest.mark.parametrize(("worth", "p_eos"), [(-1.0, 1.0), (1.0, 0.0)], ids=["short", "long"])
def test_eos_is_learned_and_unlearned(worth, p_eos):
    """A score of so much per token makes texts end at once, or never."""

    def per_token(prompts, responses, response_ids):
        return [worth * len(ids) for ids in response_ids]

    env = make(beta=0.01, missing_eos_score=None, reward=per_token)
    PPO(env, learning_rate=0.05, rollout_episodes=64, slots=64, batch_size=32, n_epochs=4).learn(4000)
    first = torch.softmax(env.task.model.table[0], -1)[3].item()
    assert first == pytest.approx(p_eos, abs=0.05)


# -- options ---------------------------------------------------------------------------------------
def test_entropy_bonus_reaches_its_own_fixed_point():
    """Its gradient exact: J + ent_coef x entropy has another optimum, known in closed form."""
    mdp, beta, ent_coef = TokenMDP.t0(), 0.5, 0.3
    env = make(mdp=mdp, beta=beta)
    PPO(
        env,
        ent_coef=ent_coef,
        normalize_advantage=False,
        learning_rate=0.03,
        rollout_episodes=512,
        slots=512,
        batch_size=128,
    ).learn(60_000)
    expected = np.exp(mdp.trajectory_logprobs(fixed_point(mdp, beta, "entropy_bonus", entropy_coef=ent_coef)))
    got = np.exp(mdp.trajectory_logprobs(env.task.model))
    assert np.abs(got - expected).sum() / 2 < 0.02
    assert mdp.evaluate(env.task.model, beta).tv > 0.05


def test_entropy_is_that_of_the_possible_tokens_and_its_gradient_finite():
    logits = torch.tensor([[0.3, -torch.inf, 1.0, -torch.inf], [2.0, 2.0, 2.0, 2.0]], requires_grad=True)
    p = torch.softmax(torch.tensor([0.3, 1.0]), -1)
    value = entropy(logits)
    torch.testing.assert_close(value.detach(), torch.stack([-(p * p.log()).sum(), torch.tensor(4.0).log()]))
    value.sum().backward()
    assert torch.isfinite(logits.grad).all()
    expected = -p * (p.log() + value[0].detach())
    torch.testing.assert_close(logits.grad[0, [0, 2]], expected)
    assert logits.grad[0, 1] == 0


def test_entropy_bonus_with_masked_tokens(make_agent):
    two_thirds = {"action_mask": lambda prompt, response: np.arange(61) % 3 != 1, "temperature": 0.7}
    agent = make_agent(task=two_thirds, ent_coef=0.1)
    agent.update(agent.collect_rollout())
    assert all(torch.isfinite(g).all() for g in gradients(agent).values())


@pytest.mark.parametrize("clip_range_vf", [None, 0.2, 3.0])
def test_value_clip(make_agent, clip_range_vf):
    """Values that have moved by 1 since the rollout: their error counts as of a move by the clip, if that is larger."""
    agent = make_agent(clip_range_vf=clip_range_vf)
    rollout = agent.collect_rollout()
    mask, values = rollout.mask, rollout.values
    old = np.where(mask, values - 1, 0.0)
    _, returns = gae(rollout.scored.rewards, old, mask)
    expected = (values - returns)[mask] ** 2
    if clip_range_vf is not None:
        expected = np.maximum(expected, (old + min(clip_range_vf, 1) - returns)[mask] ** 2)
    metrics = agent.update(replace(rollout, values=old))
    assert metrics["value_loss"] == pytest.approx(expected.mean() / 2, rel=1e-4)


def test_bf16_updates_leave_fp32_weights(make_agent):
    agent = make_agent(bf16=True, n_epochs=2)
    before = weights_of(agent.policy)
    metrics = agent.update(agent.collect_rollout())
    assert all(np.isfinite(v) for v in metrics.values())
    assert metrics["first_log_ratio"] < 0.2
    after = agent.policy.state_dict()
    assert all(t.dtype == torch.float32 for t in after.values())
    assert any(not torch.equal(after[k], before[k]) for k in after)


def test_nothing_normalized_nothing_whitened(make_agent):
    """Without whitening twice the reward is twice the gradient of the policy; with it, the same."""
    found = {}
    for normalize in (True, False):
        for factor in (1.0, 2.0):
            agent = make_agent(normalize_advantage=normalize, vf_coef=0.0, max_grad_norm=1e9, head=0.0)
            rollout = agent.collect_rollout()
            scored = replace(rollout.scored, rewards=factor * rollout.scored.rewards)
            agent.update(replace(rollout, scored=scored))
            found[normalize, factor] = gradients(agent)["lm.transformer.wte.weight"]
    torch.testing.assert_close(found[False, 2.0], 2 * found[False, 1.0])
    torch.testing.assert_close(found[True, 2.0], found[True, 1.0], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("where", ["value", "reward"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_leaves_the_weights(make_agent, where, bad):
    agent = make_agent(batch_size=4)
    agent.update(agent.collect_rollout())  # the optimizer has a state
    before, optimizer = weights_of(agent.policy), copy.deepcopy(agent.updater.optimizer.state_dict())
    rollout = agent.collect_rollout()
    if where == "value":
        rollout.values[0, 0] = bad
    else:
        rollout.scored.rewards[0, 0] = bad
    with np.errstate(invalid="ignore"), pytest.raises(NonFiniteError, match="weights are unchanged"):
        agent.update(rollout)
    assert same(weights_of(agent.policy), before)
    for index, state in agent.updater.optimizer.state_dict()["state"].items():
        assert same(state, optimizer["state"][index])
    agent.update(agent.collect_rollout())  # and training goes on
    assert not same(weights_of(agent.policy), before)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"learning_rate": "1e-4"}, "learning_rate"),
        ({"lr_schedule": "cosine"}, "lr_schedule"),
        ({"rollout_episodes": 0}, "rollout_episodes"),
        ({"rollout_episodes": 8.0}, "rollout_episodes"),
        ({"slots": True}, "slots"),
        ({"batch_size": -1}, "batch_size"),
        ({"n_epochs": 0}, "n_epochs"),
        ({"max_grad_norm": float("inf")}, "max_grad_norm"),
        ({"critic": "both"}, "critic"),
        ({"micro_batch_tokens": 0}, "micro_batch_tokens"),
        ({"seed": -1}, "seed"),
        ({"gamma": 1.1}, "gamma"),
        ({"gamma": -0.1}, "gamma"),
        ({"gae_lambda": 2}, "gae_lambda"),
        ({"clip_range": 0}, "clip_range"),
        ({"clip_range_vf": 0}, "clip_range_vf"),
        ({"vf_coef": -1}, "vf_coef"),
        ({"ent_coef": float("nan")}, "ent_coef"),
        ({"clip_rnage": 0.1}, "clip_rnage"),
    ],
    ids=str,
)
def test_options_that_cannot_work_are_named(options, named):
    with pytest.raises(ConfigurationError, match=named):
        PPO("lm_env/TokenMDP-v0", **options)
