"""What agents, environments, tasks and rewards say of themselves: what they are, in a line or two, no weights."""

from __future__ import annotations

import gymnasium
import pytest

from agents import GRPO, PPO, BestOfN, EvaluateTexts
from agents.sb3 import TextVecEnv
from lm_env import AdaptiveKL, FixedKL
from lm_env.envs.env import TextGenerationEnv
from lm_env.envs.vector_env import TextGenerationVectorEnv
from lm_env.objective.description import count_in_words, reward_in_words
from reward_models import Affine, Clipped, Keyword, Length, RewardEnsemble, RewardModel, WeightedSum


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda task: TextGenerationEnv(**task), ["TextGenerationEnv(", "beta 0.5", "3 prompts"]),
        (lambda task: TextGenerationVectorEnv(4, **task), ["TextGenerationVectorEnv(4 at a time, "]),
        (lambda task: TextVecEnv(4, **task), ["TextVecEnv(4 at a time, "]),
        (lambda task: TextGenerationEnv(**task).task, ["Task(", "new tokens"]),
        (
            lambda task: PPO(TextGenerationEnv(**task), seed=7),
            ["PPO(TextGenerationEnv: ", "seed=7", "0 tokens generated"],
        ),
        (lambda task: GRPO(TextGenerationEnv(**task)), ["GRPO(TextGenerationEnv: "]),
        (lambda task: BestOfN(TextGenerationEnv(**task), n=8), ["BestOfN(TextGenerationEnv: ", "n=8"]),
    ],
)
def test_what_it_is(make, words, id_task):
    task = {**id_task(), "prompts": [[1], [2], [3]], "beta": 0.5}
    thing = make(task)
    said = repr(thing)
    parameters = count_in_words(sum(p.numel() for p in task["model"].parameters()))
    assert all(word in said for word in [*words, f"{parameters} parameters"]), said
    assert len(said) < 400 and "\n" not in said and "tensor" not in said


def test_a_registered_environment_gives_its_id():
    env = gymnasium.make("lm_env/TokenMDP-v0")
    assert repr(env.unwrapped).startswith("TextGenerationEnv(lm_env/TokenMDP-v0: ")
    assert repr(PPO(env, rollout_episodes=16)).startswith("PPO(lm_env/TokenMDP-v0: ")


def ones(prompts, responses):
    return [1.0] * len(responses)


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (ones, "ones"),
        (Length(max=5), "Length(target=None, max=5, unit='tokens')"),
        (WeightedSum([(1, ones), (-0.5, ones)]), "WeightedSum(1 * ones - 0.5 * ones)"),
        (WeightedSum([(-2, ones)]), "WeightedSum(- 2 * ones)"),
        (Affine(Length(max=5), 2.0), "Affine(reward=Length(target=None, max=5, unit='tokens'), gain=2.0, bias=0.0)"),
    ],
)
def test_rewards(reward, said):
    assert reward_in_words(reward) == said


def test_a_trained_reward_model_says_what_it_is_in_a_line():
    model = RewardModel.from_causal_lm("reviews-3m")
    trunk = model.network.trunk
    said = f"RewardModel(LlamaModel with {count_in_words(sum(p.numel() for p in trunk.parameters()))} parameters)"
    assert repr(model) == said
    assert repr(RewardEnsemble([model, model], combine="lowest")) == f"RewardEnsemble(lowest of 2: {said})"


@pytest.mark.parametrize(
    ("prompts", "words"),
    [(None, "the task's prompts"), ("held_out.txt", "'held_out.txt'"), (["a", "b"], "2 prompts")],
)
def test_an_evaluation_callback_says_what_it_is(prompts, words):
    said = repr(EvaluateTexts(prompts, 3, every=500))
    assert said == f"EvaluateTexts({words}, n=3, every=500, 0 evaluations so far)"


def test_a_reward_with_a_network_tells_its_size(build_tiny):
    class Network:
        def __init__(self):
            self.model = build_tiny

        def __call__(self, prompts, responses):
            return [0.0] * len(responses)

    total = sum(p.numel() for p in build_tiny.parameters())
    assert reward_in_words(Network()) == f"Network ({count_in_words(total)} parameters)"


@pytest.fixture
def build_tiny():
    import torch

    return torch.nn.Linear(30, 50)


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0"), (999, "999"), (1000, "1k"), (999_499, "999k"), (999_600, "1M"), (3_412_345, "3.41M"), (1.24e9, "1.24B")],
)
def test_counts(count, words):
    assert count_in_words(int(count)) == words


def test_controllers():
    assert repr(FixedKL(0.25)) == "FixedKL(beta=0.25)"
    assert repr(AdaptiveKL(target=6)) == "AdaptiveKL(beta=0.15, target=6, horizon=10000)"
    assert repr(Clipped(Keyword(["good"]), high=1.0)).startswith("Clipped(reward=Keyword(")
