"""One MDP, two ways: stepping token by token and scoring whole episodes give the same per-token rewards.

Both are held against a third way as well: each text alone through the plain models, unpadded, and the reward put
together here by hand.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from lm_env.data.episodes import Episodes
from lm_env.envs.env import TextGenerationEnv
from lm_env.envs.vector_env import TextGenerationVectorEnv

SLOTS = 4


@dataclass
class SteppedEpisode:
    """One episode as the steps of the environment showed it."""

    prompt: object
    ids: list[int]
    rewards: list[float] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ref_logprobs: list[float] = field(default_factory=list)
    score: float = 0.0
    terminated: bool = False

    @property
    def response(self) -> list[int]:
        return self.ids[len(self.prompt.ids) :]


def random_actions(env: TextGenerationVectorEnv, rng: np.random.Generator, eos: float) -> np.ndarray:
    masks = env.action_masks()
    actions = np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])
    return np.where((rng.random(len(actions)) < eos) & masks[:, 0], 0, actions)


def step_randomly(env, count: int, seed: int = 0, eos: float = 0.15, publish: float = 0.0) -> list[SteppedEpisode]:
    """Step slots at random, each ending and beginning on its own, until so many episodes have ended.

    Args:
        eos: how often a slot takes the EOS.
        publish: the share of the slots that publish a logprob, an arbitrary one.
    """
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    running = [SteppedEpisode(p, p.ids.tolist()) for p in env.mdp.prompts]
    finished: list[SteppedEpisode] = []
    while len(finished) < count:
        actions = random_actions(env, rng, eos)
        publishing = np.flatnonzero(rng.random(env.num_envs) < publish)
        if len(publishing):
            env.publish(actions[publishing], -rng.exponential(2.0, len(publishing)), slots=publishing)
        _, rewards, terminated, truncated, info = env.step(actions)
        for slot, episode in enumerate(running):
            if "_kl" not in info or not info["_kl"][slot]:  # the step that only resets: its action was ignored
                prompt = env.mdp.prompts[slot]
                running[slot] = SteppedEpisode(prompt, prompt.ids.tolist())
                continue
            episode.ids.append(int(actions[slot]))
            episode.rewards.append(rewards[slot])
            episode.logprobs.append(info["logprob"][slot])
            episode.ref_logprobs.append(info["ref_logprob"][slot])
            if terminated[slot] or truncated[slot]:
                episode.score, episode.terminated = info["score"][slot], bool(terminated[slot])
                finished.append(episode)
    return finished


def as_episodes(episodes: list[SteppedEpisode], with_logprobs: bool = False) -> Episodes:
    """The same episodes as arrays, with arbitrary values in the padding."""
    lengths = np.array([len(e.ids) for e in episodes])
    ids = np.full((len(episodes), lengths.max() + 3), 10**6)
    published = np.full((len(episodes), max(len(e.rewards) for e in episodes)), np.nan)
    for row, e in enumerate(episodes):
        ids[row, : len(e.ids)] = e.ids
        published[row, : len(e.logprobs)] = e.logprobs
    prompt_lengths = np.array([len(e.prompt.ids) for e in episodes])
    return Episodes(ids, prompt_lengths, lengths, [e.prompt for e in episodes], published if with_logprobs else None)


def rewards_of_plain_forwards(env, episode: SteppedEpisode, published: bool = False) -> list[float]:
    """The rewards of one text by the formula: two forwards over it alone, unpadded, and the score at its end."""
    task, p, n = env.task, len(episode.prompt.ids), len(episode.ids)
    ids = torch.tensor([episode.ids])

    def of_response(model, allowed=None):
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, p - 1 : n - 1].double()
        if allowed is not None:
            logits = torch.where(torch.tensor(allowed), logits, -torch.inf)
        return torch.log_softmax(logits / task.temperature, -1)[torch.arange(n - p), ids[0, p:]].numpy()

    allowed = None
    if task.action_mask is not None:
        row = np.array(episode.ids)
        allowed = np.stack([task.action_mask(row[:p], row[p:t]) for t in range(p, n)])
    logprobs = np.array(episode.logprobs) if published else of_response(task.model, allowed)
    rewards = -task.kl.beta * (logprobs - of_response(task.reference))
    ids_of = episode.response
    by_eos = ids_of[-1] in task.eos_token_ids
    text = task.tokenizer.decode(ids_of, skip_special_tokens=True) if task.stop_strings else ""
    ended = by_eos or any(stop in text for stop in task.stop_strings)
    assert ended or len(ids_of) == task.max_new_tokens
    assert episode.terminated == (ended or not task.cap_truncates)
    score = task.reward(prompts=[""], responses=[""], response_ids=[ids_of])[0]
    if not ended and task.missing_eos_score is not None:
        score = task.missing_eos_score
    if ended or not task.cap_truncates:
        rewards[-1] += score
    return rewards.tolist()


def assert_both_ways_agree(env, episodes: list[SteppedEpisode], published: bool = False, atol: float = 1e-5) -> None:
    """`env.score` of the episodes gives what the steps gave, and both give what the formula says."""
    scored = env.score(as_episodes(episodes, published))
    for row, episode in enumerate(episodes):
        steps = len(episode.rewards)
        for name in ("rewards", "logprobs", "ref_logprobs"):
            array = getattr(scored, name)
            assert array.dtype == np.float64 and (array[row, steps:] == 0).all()
            np.testing.assert_allclose(array[row, :steps], getattr(episode, name), rtol=0, atol=atol, err_msg=name)
        np.testing.assert_allclose(
            episode.rewards, rewards_of_plain_forwards(env, episode, published), rtol=0, atol=atol
        )
        assert scored.scores[row] == episode.score
        np.testing.assert_allclose(
            scored.kl[row], np.sum(episode.logprobs) - np.sum(episode.ref_logprobs), atol=10 * atol
        )


def no_two_alike(prompt: np.ndarray, response: np.ndarray) -> np.ndarray:
    """A mask: no token of the response again, and not the text's length modulo 5; EOS only late."""
    allowed = np.ones(61, bool)
    allowed[response] = False
    allowed[(len(prompt) + len(response)) % 5] = False
    allowed[0] = len(response) > 2
    return allowed


OPTIONS = {
    "plain": {},
    "cooler": {"temperature": 0.7},
    "missing EOS": {"missing_eos_score": -1.0},
    "truncated": {"cap_truncates": True, "temperature": 1.5},
    "two EOS": {"eos_token_id": (0, 7), "missing_eos_score": -2.0},
    "only the cap": {"eos_token_id": (), "beta": 0.05},
    "masked": {"action_mask": no_two_alike, "temperature": 0.8},
}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_both_ways_give_the_same_rewards(kind, options, id_task):
    env = TextGenerationVectorEnv(SLOTS, **id_task(kind, **OPTIONS[options]))
    assert_both_ways_agree(env, step_randomly(env, 12))


@pytest.mark.parametrize("kind", ["gpt2-eager", "qwen3", "gpt-neox", "opt", "mistral", "mamba", "cohere"])
def test_both_ways_agree_whatever_the_model(kind, id_task):
    env = TextGenerationVectorEnv(SLOTS, **id_task(kind, temperature=0.7, missing_eos_score=-1.0))
    assert_both_ways_agree(env, step_randomly(env, 10))


@pytest.mark.parametrize("options", ["plain", "cooler", "missing EOS", "truncated"])
def test_both_ways_agree_on_a_table(options, id_task):
    env = TextGenerationVectorEnv(SLOTS, **id_task("table", **OPTIONS[options]))
    assert_both_ways_agree(env, step_randomly(env, 12))


def test_both_ways_agree_in_double_precision(id_task):
    options = id_task("llama", temperature=0.7)
    options["model"].double()
    options["reference"].double()
    env = TextGenerationVectorEnv(SLOTS, **options)
    assert_both_ways_agree(env, step_randomly(env, 8), atol=1e-12)


@pytest.mark.parametrize("kind", ["gpt2", "table"])
def test_both_ways_agree_on_published_logprobs(kind, id_task):
    env = TextGenerationVectorEnv(SLOTS, **id_task(kind, temperature=0.7))
    assert_both_ways_agree(env, step_randomly(env, 10, publish=1.0), published=True)


def test_those_who_publish_now_and_then_get_the_models_logprobs_between(id_task):
    env = TextGenerationVectorEnv(SLOTS, **id_task("llama"))
    episodes = step_randomly(env, 12, publish=0.5)
    assert_both_ways_agree(env, episodes, published=True)
    silent = TextGenerationVectorEnv(SLOTS, **id_task("llama"))
    expected = silent.score(as_episodes(episodes))
    for row, episode in enumerate(episodes):
        close = np.isclose(episode.logprobs, expected.logprobs[row, : len(episode.logprobs)], atol=1e-5)
        assert close.any() or len(close) < 3  # the unpublished ones; a published one hardly ever hits the true value
    share = np.mean(
        np.concatenate(
            [
                np.isclose(e.logprobs, expected.logprobs[row, : len(e.logprobs)], atol=1e-5)
                for row, e in enumerate(episodes)
            ]
        )
    )
    assert 0.25 < share < 0.75


@pytest.mark.parametrize("extra", [{}, {"missing_eos_score": -1.0, "temperature": 0.7}])
def test_both_ways_agree_on_text_with_stop_strings(extra, text_task):
    env = TextGenerationVectorEnv(SLOTS, **text_task(stop_strings=["e", "oo", " f"], max_new_tokens=8, **extra))
    episodes = step_randomly(env, 16, eos=0.03)
    assert_both_ways_agree(env, episodes)
    texts = [env.task.tokenizer.decode(e.response) for e in episodes]
    assert any("e" in text for text in texts) and any(len(e.response) == 8 for e in episodes)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_the_single_environment_is_a_slot_of_the_vector(mode, id_task):
    options = id_task("gpt2", temperature=0.7)
    single, vector = TextGenerationEnv(**options), TextGenerationVectorEnv(1, autoreset_mode=mode, **options)
    rng = np.random.default_rng(0)
    for seed in range(3):
        a, b = single.reset(seed=seed)[0], vector.reset(seed=seed)[0]
        np.testing.assert_array_equal(a["input_ids"], b["input_ids"][0])
        done = False
        while not done:
            action = int(rng.integers(0, 61))
            _, reward, terminated, truncated, _ = single.step(action)
            _, rewards, ended, cut, _ = vector.step(np.array([action]))
            assert (reward, terminated, truncated) == (rewards[0], ended[0], cut[0])
            done = terminated or truncated


# --- what the reward is made of --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "llama", "table"])
def test_without_a_kl_weight_the_one_reward_is_the_score_at_the_last_token(kind, id_task):
    """gamma = lambda = 1, V = 0, beta = 0: the return at every token of the response is the score."""
    env = TextGenerationVectorEnv(SLOTS, **id_task(kind, beta=0.0))
    episodes = step_randomly(env, 12)
    scored = env.score(as_episodes(episodes))
    for row, episode in enumerate(episodes):
        assert np.flatnonzero(episode.rewards).tolist() == [len(episode.rewards) - 1]
        assert np.flatnonzero(scored.rewards[row]).tolist() == [len(episode.rewards) - 1]
        score = env.task.reward(prompts=[""], responses=[""], response_ids=[episode.response])[0]
        returns = np.cumsum(episode.rewards[::-1])[::-1]
        np.testing.assert_array_equal(returns, score)


@pytest.mark.parametrize("kind", ["gpt2", "gpt2-eager", "llama", "opt", "mistral", "table"])
def test_a_policy_that_is_its_reference_pays_exactly_no_kl(kind, id_task):
    env = TextGenerationVectorEnv(SLOTS, **id_task(kind, reference=None, temperature=0.7, missing_eos_score=-1.0))
    episodes = step_randomly(env, 10)
    scored = env.score(as_episodes(episodes))
    assert (scored.logprobs == scored.ref_logprobs).all() and (scored.kl == 0).all()
    for episode in episodes:
        assert episode.logprobs == episode.ref_logprobs and set(episode.rewards[:-1]) <= {0.0}
        assert episode.rewards[-1] == episode.score


def test_the_missing_eos_score_replaces_the_score(id_task):
    env = TextGenerationEnv(**id_task(beta=0.0, missing_eos_score=-1.0, max_new_tokens=2))
    env.reset(seed=0)
    assert env.step(5)[1] == 0
    assert env.step(6)[1] == -1.0  # not the score less 1
    env.reset(seed=0)
    env.step(5)
    assert env.step(0)[1] == env.task.reward([""], [""], [[5, 0]])[0]


def test_each_step_is_paid_at_the_beta_of_that_moment(id_task):
    env = TextGenerationEnv(**id_task())
    env.reset(seed=0)
    for beta in (0.3, 0.7, 0.0):
        env.task.kl.beta = beta
        _, reward, _, _, info = env.step(5)
        assert info["kl"] != 0 and reward == pytest.approx(-beta * info["kl"], abs=1e-12)


# --- weights that move -----------------------------------------------------------------------------------------------


def by_optimizer(optimizer_class, **options):
    def change(model: torch.nn.Module) -> None:
        optimizer = optimizer_class(model.parameters(), lr=0.1, **options)
        model(input_ids=torch.tensor([[1, 2, 3]])).logits.square().mean().backward()
        optimizer.step()

    return change


def by_hand_in_place(model: torch.nn.Module) -> None:
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)


def by_loading(model: torch.nn.Module) -> None:
    model.load_state_dict({k: 1.1 * v for k, v in model.state_dict().items()})


def by_new_data(model: torch.nn.Module) -> None:
    parameters = list(model.parameters())
    torch.nn.utils.vector_to_parameters(1.1 * torch.nn.utils.parameters_to_vector(parameters), parameters)


CHANGES = {
    "SGD": by_optimizer(torch.optim.SGD),
    "Adam": by_optimizer(torch.optim.Adam),
    "Adam, one by one": by_optimizer(torch.optim.Adam, foreach=False),
    "AdamW, fused": by_optimizer(torch.optim.AdamW, fused=True),
    "in place": by_hand_in_place,
    "load_state_dict": by_loading,
    "vector_to_parameters": by_new_data,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_weights_that_change_in_the_middle_of_an_episode_decide_the_next_logprob(kind, change, id_task):
    options = id_task(kind, temperature=0.7)
    env = TextGenerationVectorEnv(2, **options)
    env.reset(seed=0, options={"prompt": [3, 1, 4]})
    texts = [[3, 1, 4], [3, 1, 4]]

    def expected(model: torch.nn.Module, actions) -> list[float]:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor(texts)).logits[:, -1] / 0.7
        return torch.log_softmax(logits, -1)[torch.arange(2), torch.tensor(actions)].tolist()

    old = copy.deepcopy(options["model"])
    for step, actions in enumerate([[5, 6], [7, 8], [9, 10], [11, 12]]):
        if step == 2:
            CHANGES[change](options["model"])
            assert not np.allclose(expected(old, actions), expected(options["model"], actions), atol=1e-3)
        info = env.step(np.array(actions))[4]
        np.testing.assert_allclose(info["logprob"], expected(options["model"], actions), atol=1e-5)
        np.testing.assert_allclose(info["ref_logprob"], expected(options["reference"], actions), atol=1e-5)
        for text, action in zip(texts, actions, strict=True):
            text.append(action)


def test_training_moves_the_model_and_not_its_reference(id_task):
    env = TextGenerationVectorEnv(SLOTS, **id_task("gpt2", reference=None))
    model, reference = env.task.model, env.task.reference
    step_randomly(env, 4)
    before = copy.deepcopy(reference.state_dict())
    by_optimizer(torch.optim.Adam)(model)
    episodes = step_randomly(env, 6)
    assert_both_ways_agree(env, episodes)
    assert all(torch.equal(v, before[k]) for k, v in reference.state_dict().items())
    assert any(not torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert any(episode.logprobs != episode.ref_logprobs for episode in episodes)
    assert all(p.grad is None and not p.requires_grad for p in reference.parameters())
