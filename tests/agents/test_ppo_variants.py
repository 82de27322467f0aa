"""PPO-ptx, PPO with a penalty on the step, the average of the weights, and the warm-up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from agents import PPO, PPOPenalty, PPOPtx
from agents.base.actor_critic import Targets
from agents.learning.metrics import Means
from agents.learning.updater import MicroBatch
from lm_env import AdaptiveKL, TextGenerationEnv, TokenMDP
from lm_env.errors import CheckpointMismatchError, ConfigurationError
from lm_env.tasks.token_mdp import make

T0 = TokenMDP.t0()
SMALL = {"rollout_episodes": 16, "slots": 16, "batch_size": 16, "max_grad_norm": 1e9}


def gradients(agent) -> list[torch.Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in agent.policy.parameters()]


# -- PPO-ptx -----------------------------------------------------------------------------------------
TEXTS = ["a good film", "the end of a good story", "a bad story", "a bad film and the end"]


@pytest.mark.parametrize("coefficient", [0.0, 1.0, 27.8])
def test_the_gradient_of_ptx_is_that_of_ppo_plus_the_pretraining_one(text_task, coefficient):
    options = text_task()
    options["model"].double()  # the sum of two gradients rounds in fp32
    agent = PPOPtx(TextGenerationEnv(**options), TEXTS, ptx_coef=coefficient, n_epochs=1, **SMALL)
    texts = agent.texts

    def pretraining() -> torch.Tensor:  # one text at a time: no padding, no batching
        model, of_texts = agent.task.model, []
        for text in texts:
            ids = torch.tensor(text.ids)[None]
            logprobs = model(input_ids=ids[:, :-1]).logits.log_softmax(-1)
            of_texts.append(logprobs[0, torch.arange(ids.shape[1] - 1), ids[0, 1:]])
        return -torch.cat(of_texts).mean()

    alone = PPO(agent.env, n_epochs=1, **SMALL)
    alone.policy.load_state_dict(agent.policy.state_dict())
    rollout = agent.collect_rollout()
    seen: dict[str, list[torch.Tensor]] = {}

    class Caught(Exception):
        """Raised in place of the optimizer's step, when both gradients stand."""

    def stop(optimizer, *_):
        seen["all"] = gradients(agent if optimizer is agent.updater.optimizer else alone)
        raise Caught

    agent.text_rng = Cycle(len(texts))
    agent.updater.optimizer.register_step_pre_hook(stop)
    with pytest.raises(Caught):
        agent.update(rollout)
    both = seen["all"]
    alone.updater.optimizer.register_step_pre_hook(stop)
    with pytest.raises(Caught):
        alone.update(rollout)
    ppo = seen["all"]
    agent.policy.zero_grad()
    pretraining().backward()
    ptx = gradients(agent)
    assert max(float(g.abs().max()) for g in ptx) > 1e-3 < max(float(g.abs().max()) for g in ppo)
    for got, a, b in zip(both, ppo, ptx, strict=True):
        expected = a + coefficient * b
        assert (got - expected).abs().max() <= 1e-12 * max(1.0, float(expected.abs().max()))


def test_ptx_is_loaded_with_the_mix_that_it_was_saved_with(text_task, tmp_path):
    PPOPtx(TextGenerationEnv(**text_task()), TEXTS, ptx_coef=3.0, **SMALL).save(tmp_path / "agent")
    env = TextGenerationEnv(**text_task())
    with pytest.raises(CheckpointMismatchError, match=r"3\.0.*27\.8"):
        PPOPtx.load(tmp_path / "agent", env, texts=TEXTS)
    assert PPOPtx.load(tmp_path / "agent", env, texts=TEXTS, ptx_coef=3.0).ptx_coef == 3.0


class Cycle:
    """Draws every text equally often."""

    def __init__(self, count: int) -> None:
        self.count = count

    def integers(self, high: int, size: int) -> np.ndarray:
        assert high == self.count and size % high == 0
        return np.arange(size) % high


def test_ptx_keeps_its_texts_likely(text_task):
    def surprise(agent) -> float:
        ids = torch.tensor(agent.texts[1].ids)[None]
        with torch.no_grad():
            logprobs = agent.task.model(input_ids=ids[:, :-1]).logits.log_softmax(-1)
        return -float(logprobs[0, torch.arange(ids.shape[1] - 1), ids[0, 1:]].mean())

    agent = PPOPtx(TextGenerationEnv(**text_task()), TEXTS, learning_rate=3e-3, ptx_ratio=0.5, **SMALL)
    before = surprise(agent)
    agent.learn(600)
    assert surprise(agent) < before - 1


def test_texts_are_cut_and_counted_by_tokens(text_task):
    agent = PPOPtx(TextGenerationEnv(**text_task()), TEXTS, max_text_tokens=3, ptx_coef=1.0, **SMALL)
    agent.policy.zero_grad()
    agent.add_text_gradient(agent.texts)
    got = gradients(agent)
    agent.policy.zero_grad()
    total, count = torch.zeros(()), 0
    for text in agent.texts:
        ids = torch.tensor(text.ids[:3])[None]
        logprobs = agent.task.model(input_ids=ids[:, :-1]).logits.log_softmax(-1)
        total = total - logprobs[0, torch.arange(ids.shape[1] - 1), ids[0, 1:]].sum()
        count += ids.shape[1] - 1
    (total / count).backward()
    assert any(len(t.ids) > 3 for t in agent.texts)
    for a, b in zip(got, gradients(agent), strict=True):
        assert (a - b).abs().max() <= 1e-6


def test_micro_batches_do_not_change_the_pretraining_gradient(text_task):
    results = []
    for budget in (4, 10_000):
        agent = PPOPtx(TextGenerationEnv(**text_task()), TEXTS, micro_batch_tokens=budget, **SMALL)
        agent.policy.zero_grad()
        agent.add_text_gradient(agent.texts)
        results.append(gradients(agent))
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() <= 1e-5 * max(1.0, float(a.abs().max()))


@pytest.mark.parametrize(
    ("texts", "options", "words"),
    [
        (["a"], {}, "at least two tokens"),
        (TEXTS, {"ptx_coef": -1.0}, "ptx_coef"),
        (TEXTS, {"ptx_coef": float("nan")}, "ptx_coef"),
        (TEXTS, {"ptx_ratio": 0.0}, "ptx_ratio"),
    ],
)
def test_ptx_refuses(text_task, texts, options, words):
    with pytest.raises(ConfigurationError, match=words):
        PPOPtx(TextGenerationEnv(**text_task()), texts, **options)


# -- PPO with a penalty on the step ------------------------------------------------------------------
@pytest.mark.parametrize(
    ("factor", "coefficient"), [(0.5, 2.0), (0.66, 2.0), (0.68, 1.0), (1.49, 1.0), (1.51, 0.5), (3, 0.5)]
)
def test_the_penalty_doubles_above_its_target_and_halves_below(factor, coefficient):
    """The target is set to the step's own KL, seen in a dry run, over `factor`."""
    dry = PPOPenalty(make(mdp=T0), learning_rate=0.02, n_epochs=2, **SMALL)
    kl = dry.update(dry.collect_rollout())["approx_kl"]
    assert kl > 1e-5
    agent = PPOPenalty(make(mdp=T0), learning_rate=0.02, n_epochs=2, target_step_kl=kl * factor, **SMALL)
    metrics = agent.update(agent.collect_rollout())
    assert metrics["approx_kl"] == pytest.approx(kl, rel=1e-5) and metrics["step_coef"] == 1
    assert agent.step_coef == coefficient


def test_the_penalty_by_hand():
    """-ratio A + c (ratio - 1 - log ratio), k3 on tokens of the old policy."""
    agent = PPOPenalty(make(mdp=T0), vf_coef=0.0, **SMALL)
    agent.step_coef = 3.0
    rollout = agent.collect_rollout()
    scored = replace(rollout.scored, logprobs=rollout.scored.logprobs - 0.5)  # as if every token had become likelier
    batch = MicroBatch(replace(rollout, scored=scored), np.arange(16), (torch.device("cpu"), torch.float32), Means())
    advantages = np.where(rollout.mask, 2.0, 0.0)
    targets = Targets(advantages, np.zeros_like(advantages), {})
    losses = agent.loss(agent.policy.evaluate(rollout.episodes), batch, targets)
    ratio = np.exp(0.5)
    assert losses.tolist() == pytest.approx([-2 * ratio + 3 * (ratio - 1 - 0.5)] * len(losses), rel=1e-5)


def test_the_penalty_learns_t0():
    agent = PPOPenalty(make(mdp=T0, beta=0.5), learning_rate=0.03, rollout_episodes=256, slots=256, batch_size=128)
    agent.learn(30_000)
    assert T0.evaluate(agent.task.model, 0.5).gap < 0.05


@pytest.mark.parametrize("target", [0.0, -1.0, float("nan")])
def test_the_penalty_refuses_a_target_of(target):
    with pytest.raises(ConfigurationError, match="target_step_kl"):
        PPOPenalty(make(mdp=T0), target_step_kl=target)


# -- weights' average, warm-up, KL control -----------------------------------------------------------
def test_the_average_of_the_weights_by_hand():
    agent = PPO(make(mdp=T0), ema_decay=0.7, n_epochs=1, **{**SMALL, "batch_size": 4}, learning_rate=0.05)
    expected, steps = None, []

    def note(*_):
        steps.append(agent.task.model.table.detach().clone())

    agent.updater.optimizer.register_step_post_hook(note)
    agent.learn(60)
    assert len(steps) >= 8
    for table in steps:  # the average starts at the first step's weights
        expected = table if expected is None else 0.7 * expected + 0.3 * table
    assert torch.allclose(agent.ema.module.table, expected, atol=1e-6)
    assert not torch.allclose(agent.ema.module.table, steps[-1], atol=1e-3)


def test_no_average_unless_asked():
    assert PPO(make(mdp=T0), **SMALL).ema is None


def test_the_learning_rate_warms_up_from_a_tenth():
    agent = PPO(make(mdp=T0), learning_rate=0.01, warmup_rollouts=4, lr_schedule="constant", n_epochs=1, **SMALL)
    rates = []
    agent.updater.optimizer.register_step_pre_hook(
        lambda *_: rates.append(agent.updater.optimizer.param_groups[0]["lr"])
    )
    agent.learn(300)
    assert rates[:6] == pytest.approx([0.001, 0.00325, 0.0055, 0.00775, 0.01, 0.01])


def test_the_linear_schedule_falls_with_the_tokens():
    agent = PPO(make(mdp=T0), learning_rate=0.01, n_epochs=1, **SMALL)
    rates, tokens = [], []
    agent.updater.optimizer.register_step_pre_hook(
        lambda *_: rates.append(agent.updater.optimizer.param_groups[0]["lr"])
    )
    agent.learn(200, callback=lambda local, _: tokens.append(agent.num_timesteps) is None)
    before = [0, *tokens[:-1]]  # the tokens generated before each rollout
    assert rates == pytest.approx([0.01 * (1 - n / 200) for n in before])


def test_the_agent_tells_the_controller_each_rollouts_kl():
    """The target is the second rollout's own KL, seen in a dry run, over 1.1: within the controller's clip."""
    dry = PPO(make(mdp=T0), learning_rate=0.05, **SMALL)
    dry.update(dry.collect_rollout())
    kl = dry.collect_rollout().scored.kl.mean()
    assert kl > 0.01
    agent = PPO(make(mdp=T0), learning_rate=0.05, **SMALL)
    agent.update(agent.collect_rollout())
    agent.task.kl = AdaptiveKL(0.5, target=kl / 1.1, horizon=100)
    agent.collect_rollout()
    assert agent.task.kl.beta == pytest.approx(0.5 * (1 + 0.1 * 16 / 100), rel=1e-12)
