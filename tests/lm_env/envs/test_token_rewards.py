"""Scores of tokens in the environment: each is paid at once, stepwise and episode-wise alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lm_env import Causal, Span, TokenMDP
from lm_env.data.episodes import Episodes
from lm_env.envs.env import TextGenerationEnv
from lm_env.envs.vector_env import TextGenerationVectorEnv
from lm_env.errors import ConfigurationError, NonFiniteError, RewardValueError
from lm_env.theory.token_env import make_token_env
from reward_models import Affine, KeywordSpans, Length, WeightedSum

EOS = 0


def token_worth(prompt: list[int], ids: list[int]) -> list[float]:
    """Each token's score depends on its place, on the token and on the prompt."""
    return [(t + 1) * (token % 7 - 3) / 10 + prompt[0] / 100 for t, token in enumerate(ids)]


@Causal
def dense(prompts, responses, prompt_ids, response_ids):
    return [token_worth(prompt, ids) for prompt, ids in zip(prompt_ids, response_ids, strict=True)]


@Causal
def some_dense(prompts, responses, prompt_ids, response_ids):
    """Texts that begin with an even token are scored whole, the others token by token, some not at all."""
    return [
        [] if ids[0] % 5 == 0 else 1.5 if ids[0] % 2 == 0 else np.array(token_worth(prompt, ids))
        for prompt, ids in zip(prompt_ids, response_ids, strict=True)
    ]


def played(env: TextGenerationVectorEnv, episodes: int, seed: int = 0, eos: float = 0.15) -> list[dict]:
    """Random play; each finished episode with its prompt, ids, rewards and what `info` said at the end."""
    rng = np.random.default_rng(seed)
    task = env.task
    env.reset(seed=seed)
    eos_id = min(task.eos_token_ids)
    done: list[dict] = []
    running = [{"prompt": p, "ids": p.ids.tolist(), "rewards": []} for p in env.mdp.prompts]
    while len(done) < episodes:
        actions = rng.integers(1, task.vocab_size, env.num_envs)
        actions[rng.random(env.num_envs) < eos] = eos_id
        _, rewards, terminated, truncated, info = env.step(actions)
        for slot, episode in enumerate(running):
            if not info["_score"][slot]:  # the step that only resets
                prompt = env.mdp.prompts[slot]
                running[slot] = {"prompt": prompt, "ids": prompt.ids.tolist(), "rewards": []}
                continue
            episode["ids"].append(int(actions[slot]))
            episode["rewards"].append(rewards[slot])
            if terminated[slot] or truncated[slot]:
                done.append({**episode, "score": info["score"][slot], "truncated": truncated[slot]})
    return done


def as_episodes(played: list[dict]) -> Episodes:
    lengths = np.array([len(e["ids"]) for e in played])
    ids = np.zeros((len(played), lengths.max()), np.int64)
    for row, e in enumerate(played):
        ids[row, : len(e["ids"])] = e["ids"]
    prompts = [e["prompt"] for e in played]
    return Episodes(ids, np.array([len(p.ids) for p in prompts]), lengths, prompts)


def compare(env, episodes: list[dict]):
    scored = env.score(as_episodes(episodes))
    for row, episode in enumerate(episodes):
        n = len(episode["rewards"])
        np.testing.assert_allclose(scored.rewards[row, :n], episode["rewards"], rtol=0, atol=1e-5)
        assert not scored.rewards[row, n:].any() and not scored.token_scores[row, n:].any()
        assert scored.scores[row] == episode["score"]
    np.testing.assert_allclose(scored.token_scores.sum(1), scored.scores, atol=1e-12)
    penalty = env.task.kl.beta * (scored.logprobs - scored.ref_logprobs)
    np.testing.assert_allclose(scored.rewards, scored.token_scores - penalty, atol=1e-12)
    return scored


OPTIONS = {
    "plain": {},
    "missing EOS": {"missing_eos_score": -1.0},
    "truncated": {"cap_truncates": True},
    "only the cap": {"eos_token_id": ()},
}


@pytest.mark.parametrize("reward", [dense, some_dense], ids=["dense", "some dense"])
@pytest.mark.parametrize("options", [name for name in OPTIONS if name != "only the cap"])
def test_each_token_is_paid_its_own_score_both_ways(options, reward, id_task):
    env = TextGenerationVectorEnv(4, **id_task(reward=reward, **OPTIONS[options]))
    episodes = played(env, 30)
    scored = compare(env, episodes)
    for row, episode in enumerate(episodes):
        prompt = episode["prompt"].ids.tolist()
        response = episode["ids"][len(prompt) :]
        n = len(response)
        (given,) = reward(prompts=[""], responses=[""], prompt_ids=[prompt], response_ids=[response])
        expected = np.zeros(n)
        if isinstance(given, float):
            expected[-1] = 0.0 if episode["truncated"] else given
        elif len(given):
            expected[:] = given
        if options == "missing EOS" and response[-1] != EOS:
            expected[-1] = -1.0 - expected[:-1].sum()
        np.testing.assert_allclose(scored.token_scores[row, :n], expected, atol=1e-12)
    assert {bool(e["truncated"]) for e in episodes} == ({True, False} if options == "truncated" else {False})


def test_scores_that_are_not_known_to_be_causal_are_paid_at_the_end_both_ways(id_task):
    def backwards(prompts, responses, response_ids):
        return [ids[::-1] for ids in response_ids]

    backwards.causal = False
    env = TextGenerationVectorEnv(4, **id_task(reward=backwards, missing_eos_score=-1.0))
    scored = compare(env, played(env, 20))
    assert ((scored.token_scores != 0).sum(1) <= 1).all()


def test_a_function_that_is_not_causal_after_all_is_refused_and_the_step_has_not_happened(id_task):
    @Causal
    def backwards(prompts, responses, response_ids):
        return [[float(i) for i in ids[::-1]] for ids in response_ids]

    env = TextGenerationEnv(**id_task(reward=backwards))
    env.reset(seed=0)
    env.step(5)
    before = env.mdp.observation()
    with pytest.raises(
        RewardValueError, match=r"backwards is not causal.*token 0 was worth 5 when it came and is.* 6 "
    ):
        env.step(6)
    after = env.mdp.observation()
    assert all((before[k] == after[k]).all() for k in before) and env.mdp.running[0]
    assert env.mdp.token_scores[0].tolist() == [5, 0, 0, 0, 0, 0]
    env.step(5)  # this fits


# -- spans -------------------------------------------------------------------------------------------

REWARDS = {
    "words": KeywordSpans(["a", "b", "film", "good", "e", "é"]),
    "case": KeywordSpans(["a", "A", "Film"], score=-0.5, case_sensitive=True),
    "sum": WeightedSum([(2.0, KeywordSpans(["a", "film"])), (0.5, Length()), (-1.0, dense)]),
    "affine": Affine(KeywordSpans(["a", "b"]), gain=2.0, bias=0.75),
}


@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize("options", [{}, {"stop_strings": ("e", "oo", "\n")}, {"cap_truncates": True}], ids=str)
def test_spans_of_text_are_paid_alike_both_ways_whatever_the_bytes(options, reward, text_task):
    """Random tokens: half characters, stop strings over several tokens, words that go on."""
    env = TextGenerationVectorEnv(8, **text_task(reward=REWARDS[reward], max_new_tokens=12, beta=0.1, **options))
    scored = compare(env, played(env, 40, eos=0.05))
    middle = (scored.token_scores[:, :-1] != 0).any()
    assert middle and scored.scores.any()


def test_a_keyword_is_paid_at_the_token_after_it(text_task, tokenizer):
    env = TextGenerationEnv(**text_task(reward=KeywordSpans(["art"]), beta=0.0, max_new_tokens=12))
    letters = [tokenizer(letter)["input_ids"][0] for letter in "art artist art"]
    env.reset(options={"prompt": "the"})
    rewards = [env.step(i)[1] for i in letters[:12]]
    assert rewards == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    env.reset(options={"prompt": "the"})
    rewards = [env.step(i)[1] for i in [*letters[:3], tokenizer.eos_token_id]]
    assert rewards == [0, 0, 0, 1]  # the EOS ends it


def test_a_span_whose_last_character_takes_two_tokens_is_paid_at_the_second(text_task, tokenizer):
    @Causal
    def accents(prompts, responses):
        return [[Span(i, i + 1, 1.0) for i, c in enumerate(text) if c == "é"] for text in responses]

    env = TextGenerationEnv(**text_task(reward=accents, beta=0.0))
    env.reset(options={"prompt": "the"})
    ids = [*tokenizer("xéé")["input_ids"], tokenizer.eos_token_id]
    assert [env.step(i)[1] for i in ids] == [0, 0, 1, 0, 1, 0]


# -- rendering ---------------------------------------------------------------------------------------


def test_rendered_rewards_are_each_tokens_own_and_the_score_is_the_total(text_task, tokenizer):
    env = TextGenerationEnv(
        **text_task(reward=KeywordSpans(["a"]), beta=0.0, max_new_tokens=8), render_mode="ansi", render_values="reward"
    )
    env.reset(options={"prompt": "the"})
    for i in [*tokenizer(" a")["input_ids"], *tokenizer(" a")["input_ids"]]:
        env.step(i)
    assert env.render().splitlines()[-1].startswith("sum of rewards +1.000")
    env.step(tokenizer.eos_token_id)
    assert env.render().splitlines()[-1].startswith("score +2.000 | sum of rewards +2.000 over ")
    assert np.count_nonzero(env.mdp.step_rewards[0]) == 2


# -- a reference without some tokens -----------------------------------------------------------------


def without_c(beta: float) -> TextGenerationEnv:
    """T0, its reference without the token C."""
    mdp = TokenMDP.t0()
    logits = mdp.reference_logits.copy()
    logits[:, 2] = -np.inf
    barred = TokenMDP(mdp.tokens, mdp.horizon, logits, mdp.score, mdp.eos_id)
    return make_token_env(barred, model=mdp.policy_model(), beta=beta)


def one_episode(env: TextGenerationEnv, *response: int) -> Episodes:
    prompt = env.task.prompts[0]
    ids = np.array([[*prompt.ids.tolist(), *response]])
    return Episodes(ids, np.array([1]), np.array([ids.shape[1]]), [prompt])


def test_at_beta_0_a_token_of_reference_probability_0_is_paid_its_score_both_ways():
    env = without_c(0.0)
    env.reset()
    rewards = [env.step(token)[1] for token in (1, 2, 3)]
    assert rewards == [0, 0, 1] == env.score(one_episode(env, 1, 2, 3)).rewards[0].tolist()


def test_at_a_positive_beta_a_token_of_reference_probability_0_is_refused_both_ways():
    env = without_c(0.5)
    env.reset()
    env.step(1)
    message = "logprob of token 2 under the reference is -inf, so its KL penalty at beta 0.5 is not finite"
    with pytest.raises(ConfigurationError, match=message):
        env.step(2)
    assert env.mdp.response(0) == [1] and env.mdp.running[0]
    with pytest.raises(ConfigurationError, match=message):
        env.score(one_episode(env, 1, 2, 3))
    assert env.step(3)[2]


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_weights_that_become_nan_are_named_both_ways(beta):
    env = make_token_env(TokenMDP.t0(), beta=beta)
    env.reset()
    env.step(1)
    with torch.no_grad():
        for parameter in env.task.model.parameters():
            parameter.fill_(torch.nan)
    message = "logprob of token 3 under the policy is NaN, as its weights or logits are"
    with pytest.raises(NonFiniteError, match=message):
        env.step(3)
    assert env.mdp.response(0) == [1] and env.mdp.running[0]
    with pytest.raises(NonFiniteError, match="under the policy is NaN"):
        env.score(one_episode(env, 1, 3))
