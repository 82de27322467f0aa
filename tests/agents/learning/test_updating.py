"""`Updating`: ratios that correct what another sampler wrote, texts side by side without padding, Adam in 8 bits."""

from __future__ import annotations

import copy
import importlib.util
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from agents import GRPO, PPO, Updating
from lm_env import TextGenerationEnv
from lm_env.data.episodes import Episodes
from lm_env.errors import ConfigurationError, MissingDependencyError, UnsupportedModelError
from lm_env.generation import Generation, Sampling
from lm_env.models.logprobs import response_logprobs, response_outputs, token_logprobs
from lm_env.theory.token_mdp import TableLM

SMALL = {"rollout_episodes": 8, "slots": 8, "batch_size": 8, "n_epochs": 1, "max_grad_norm": 1e9}


# -- ratios ------------------------------------------------------------------------------------------
class AllTexts:
    """A backend that "samples" every text of an enumerable environment once, with another model's probabilities."""

    def __init__(self, sampler: torch.nn.Module, tokens: int, vocab: int) -> None:
        self.sampler = sampler
        self.responses = np.array(list(itertools.product(range(vocab), repeat=tokens)))

    def generate(self, prompts, sampling, *, progress=None) -> Generation:
        ids = np.array([[*prompt.ids, *row] for prompt, row in zip(prompts, self.responses, strict=True)])
        start = np.array([len(prompt.ids) for prompt in prompts])
        plain = Episodes(ids, start, np.full(len(ids), ids.shape[1]), prompts)
        return Generation(replace(plain, logprobs=response_logprobs(self.sampler, plain)), None, 0, rounded=True)


def table(seed: int, tokens: int, scale: float = 1.0) -> TableLM:
    logits = scale * torch.randn(1 + 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return TableLM(3, tokens, logits[: sum(3**p for p in range(tokens))].contiguous())


def gradient(tokens: int, updating: Updating | None, sampler_seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """(the expected gradient of REINFORCE on texts of another sampler, the gradient of E[score] under the policy)."""
    model = table(0, tokens)
    env = TextGenerationEnv(
        model=model,
        prompts=[[0]],
        reward=lambda prompts, responses, response_ids: [1.0 + r[0] - 2.0 * (r[-1] == 2) for r in response_ids],
        eos_token_id=(),
        max_new_tokens=tokens,
        beta=0.0,
    )
    agent = PPO(env, critic="none", **{**SMALL, "rollout_episodes": 3**tokens}, updating=updating)
    agent.backend = AllTexts(table(sampler_seed, tokens), tokens, 3)
    rollout = agent.collect_rollout()
    sampled = agent.backend.generate(rollout.episodes.prompts, Sampling()).episodes
    probabilities = np.exp(sampled.logprobs.sum(1))
    scores = rollout.scored.scores
    agent.updater.optimizer.step = lambda *_: None
    with agent.updater.step(rollout, weights=probabilities) as step:
        for batch in step.micro_batches():
            step.backward(-batch.tokens(scores) * step.evaluate(batch).logprobs)
    found = -env.task.model.table.grad.clone()
    env.task.model.table.grad = None
    outputs, ids = response_outputs(env.task.model, rollout.episodes)
    of_texts = token_logprobs(outputs.logits, ids).view(-1, tokens).sum(1).exp()
    (of_texts * torch.from_numpy(scores)).sum().backward()
    return found, env.task.model.table.grad


@pytest.mark.parametrize("tokens, ratio_of", [(1, "token"), (1, "text"), (2, "text")])
def test_ratios_make_the_expected_gradient_that_of_the_policy(tokens, ratio_of):
    """Enumerated: over all texts, each as often as the other sampler writes it."""
    biased, true = gradient(tokens, None)
    corrected, _ = gradient(tokens, Updating(ratio_limit=1e6, ratio_of=ratio_of))
    assert (biased - true).abs().max() > 0.05
    assert (corrected - true).abs().max() < 1e-6


def test_token_ratios_leave_less_bias_than_none_and_a_low_limit_leaves_more():
    biased, true = gradient(2, None)
    by_token, _ = gradient(2, Updating(ratio_limit=1e6))
    limited, _ = gradient(2, Updating(ratio_limit=1.0, ratio_of="text"))
    whole, _ = gradient(2, Updating(ratio_limit=1e6, ratio_of="text"))
    assert (by_token - true).norm() < (biased - true).norm()
    assert (whole - true).norm() < (limited - true).norm()


@pytest.mark.parametrize("ratio_of", ["token", "text"])
def test_ratios_change_nothing_where_the_sampler_is_the_policy(ratio_of):
    plain, _ = gradient(2, None, sampler_seed=0)
    weighted, _ = gradient(2, Updating(ratio_limit=2.0, ratio_of=ratio_of), sampler_seed=0)
    assert torch.allclose(plain, weighted, rtol=0, atol=1e-12)


def test_ratios_are_limited_logged_and_cut_with_the_rollout():
    updating = Updating(ratio_limit=1.25)
    env = TextGenerationEnv(
        model=table(0, 2),
        prompts=[[0]],
        reward=lambda prompts, responses: [float(i) for i in range(len(responses))],
        eos_token_id=(),
        max_new_tokens=2,
        beta=0.1,
    )
    agent = PPO(env, critic="none", **{**SMALL, "rollout_episodes": 9}, updating=updating)
    agent.backend = AllTexts(table(1, 2), 2, 3)
    rollout = agent.collect_rollout()
    sampled = agent.backend.generate(rollout.episodes.prompts, Sampling()).episodes.logprobs
    own = response_logprobs(env.task.model, rollout.episodes)
    assert np.allclose(rollout.ratios, np.minimum(np.exp(own - sampled), 1.25)) and rollout.ratios.max() == 1.25
    assert np.allclose(rollout.scored.logprobs, own) and np.allclose(rollout.mismatch, np.abs(own - sampled).ravel())
    assert np.array_equal(rollout[np.array([3, 1])].ratios, rollout.ratios[[3, 1]])
    assert agent.update(rollout)["first_log_ratio"] == pytest.approx(0, abs=1e-12)


def test_texts_of_the_model_itself_get_no_ratios(id_task):
    agent = PPO(TextGenerationEnv(**id_task()), **SMALL, updating=Updating(ratio_limit=2.0))
    assert agent.collect_rollout().ratios is None


# -- packed ------------------------------------------------------------------------------------------
def gradient_of(agent, rollout) -> dict[str, torch.Tensor]:
    agent.updater.optimizer.step = lambda *_: None
    agent.update(rollout)
    return {name: p.grad.clone() for name, p in agent.policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("cls, critic", [(PPO, "shared"), (PPO, "separate"), (GRPO, "none")])
def test_packed_texts_have_the_same_gradient(id_task, kind, cls, critic):
    task = id_task(kind, max_new_tokens=20, eos_token_id=list(range(0, 61, 8)))
    plain, packed = (
        cls(TextGenerationEnv(**{**task, "model": copy.deepcopy(task["model"])}), critic=critic, updating=way, **SMALL)
        for way in (None, Updating(packed=True))
    )
    for agent in (plain, packed):
        if agent.policy.value_head is not None:
            torch.nn.init.constant_(agent.policy.value_head.weight, 0.1)
    rollout = plain.collect_rollout()
    assert len(set(rollout.episodes.lengths.tolist())) > 2
    expected, found = gradient_of(plain, rollout), gradient_of(packed, rollout)
    size = max(float(g.abs().max()) for g in expected.values())
    assert expected.keys() == found.keys() and size > 0.01
    assert all((found[name] - g).abs().max() <= 1e-5 * size for name, g in expected.items())


def test_packing_is_refused_of_a_model_that_mixes_texts(id_task):
    with pytest.raises(UnsupportedModelError, match="packed"):
        PPO(TextGenerationEnv(**id_task("mamba")), critic="none", **SMALL, updating=Updating(packed=True))


# -- Adam in 8 bits, and options ----------------------------------------------------------------------
HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None


@pytest.mark.skipif(HAS_BITSANDBYTES, reason="bitsandbytes is installed")
def test_adam_in_8_bits_says_what_to_install(id_task):
    with pytest.raises(MissingDependencyError, match=r"lm-env\[quantized\]"):
        PPO(TextGenerationEnv(**id_task()), **SMALL, updating=Updating(optimizer="adam-8bit"))


@pytest.mark.skipif(not HAS_BITSANDBYTES, reason="bitsandbytes is not installed")
@pytest.mark.filterwarnings("ignore")
def test_adam_in_8_bits_learns_and_goes_on_from_its_checkpoint(id_task, make_lm, tmp_path):
    wide = {"n_embd": 128}  # weights of fewer than 4,096 numbers keep their moments in fp32
    eight = Updating(optimizer="adam-8bit")

    def make(**options):
        env = TextGenerationEnv(**id_task(model=make_lm("gpt2", **wide), reference=make_lm("gpt2", **wide)))
        return PPO(env, critic="none", **SMALL, updating=eight, **options)

    agent = make()
    before = agent.policy.lm.transformer.wte.weight.clone()
    agent.learn(60)
    states = agent.updater.optimizer.state_dict()["state"].values()
    tensors = [t for state in states for t in state["__bnb_optimizer_quant_state__"].values()]
    assert torch.uint8 in {t.dtype for t in tensors if torch.is_tensor(t)}
    assert not torch.equal(before, agent.policy.lm.transformer.wte.weight)
    agent.save(tmp_path / "a")
    again = PPO.load(tmp_path / "a", make().env, updating=eight)
    for one in (agent, again):
        one.learn(60, reset_num_timesteps=False)
    assert all(torch.equal(a, b) for a, b in zip(agent.policy.parameters(), again.policy.parameters(), strict=True))
    with pytest.raises(Exception, match="adam-8bit"):
        PPO.load(tmp_path / "a", make().env)


def test_options_that_cannot_be_are_refused():
    for bad in ({"ratio_limit": 0.5}, {"optimizer": "sgd"}, {"ratio_of": "batch"}, {"packed": 1}):
        with pytest.raises(ConfigurationError, match=next(iter(bad))):
            Updating(**bad)


def test_in_one_process_there_is_nothing_to_divide(id_task):
    agent = PPO(TextGenerationEnv(**id_task()), **SMALL, updating=Updating(shard=True))
    assert agent.updater.model is agent.policy
