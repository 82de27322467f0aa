"""Evaluation against enumeration and by hand; the callback; and that neither moves the training."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from sb3_helpers import make_agent, text_options
from stable_baselines3 import A2C as SB3A2C
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import KVWriter, Logger

from agents import A2C, GRPO, PPO, RLOO, BestOfN, Checkpointing, EvaluateTexts, PPOPenalty, Reinforce
from agents.run.evaluation import evaluate_texts
from agents.sb3 import TextVecEnv
from lm_env import AdaptiveKL, TextGenerationEnv, TokenMDP
from lm_env.errors import CheckpointWriteError, ConfigurationError, InvalidPromptError, RewardError, TrainingInterrupted
from lm_env.generation.backend import Sampling
from lm_env.generation.generate import LocalBackend
from lm_env.objective.scoring import measure_episodes, score_episodes
from lm_env.tasks.token_mdp import make
from lm_env.theory import Estimate, ceiling, task_ceiling

T0 = TokenMDP.t0()
PROMPTS = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 1], [2]]


def some_policy(seed: int = 0) -> torch.nn.Module:
    """A table that is neither the reference nor the optimum of T0."""
    model = T0.policy_model()
    with torch.no_grad():
        model.table += 0.6 * torch.randn(model.table.shape, generator=torch.Generator().manual_seed(seed))
    return model


def weights_of(agent) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in agent.policy.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Rows(KVWriter):
    """What a logger writes, row by row."""

    def __init__(self) -> None:
        self.rows: list[dict] = []

    def write(self, key_values, key_excluded, step=0):
        self.rows.append(dict(key_values))

    def close(self):
        pass


# -- the numbers -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("agent", [PPO, RLOO])
def test_on_t0_the_numbers_are_those_of_the_enumeration(agent):
    model = some_policy()
    exact = T0.evaluate(model, beta=0.5)
    pi = np.exp(T0.trajectory_logprobs(model))
    lengths = T0.enumeration.lengths
    surprise = -T0.trajectory_logprobs(T0.reference_logits)
    found = agent(make(mdp=T0, model=model)).evaluate(n=8000)
    assert found.prompts == 1 and found.texts == 8000 and found.beta == 0.5
    for got, wanted in (
        (found.score, exact.R),
        (found.kl, exact.KL),
        (found.J, exact.J),
        (found.ended, exact.p_eos),
        (found.length, pi @ lengths),
        (found.kl_per_token, exact.KL / (pi @ lengths)),
        (found.perplexity, np.exp(pi @ surprise / (pi @ lengths))),
    ):
        assert abs(got.mean - wanted) <= 4 * got.se, (got, wanted)
        assert 0 < got.se < 0.03
    # The sum over the vocabulary is far steadier than the log-ratios of the sampled tokens.
    log_ratio = T0.trajectory_logprobs(model) + surprise
    assert found.kl.se < 0.7 * np.sqrt(pi @ (log_ratio - exact.KL) ** 2 / 8000)


def test_the_errors_are_over_prompts(id_task):
    """Texts of one prompt are alike, so errors over texts would be far too small."""
    env = TextGenerationEnv(**id_task(prompts=PROMPTS))
    agent = PPO(env, rollout_episodes=8, batch_size=8)
    found = agent.evaluate(n=3, seed=4)
    episodes = agent.backend.generate(
        [p for p in agent.task.prompts for _ in range(3)], Sampling.fixed(15, agent.task.max_new_tokens, seed=4)
    ).episodes
    scores = score_episodes(agent.task, episodes).scores
    distances = measure_episodes(agent.task, episodes)
    J = (scores - 0.3 * distances["full"]).reshape(5, 3).mean(1)
    np.testing.assert_allclose(found.J_by_prompt, J, atol=1e-6)
    assert found.J.mean == pytest.approx(J.mean(), abs=1e-6)
    assert found.J.se == pytest.approx(J.std(ddof=1) / np.sqrt(5), rel=1e-5)
    tokens = episodes.response_lengths
    assert found.kl_per_token.mean == pytest.approx(distances["full"].sum() / tokens.sum(), rel=1e-5)
    assert [row["score"] for row in found.samples] == pytest.approx(scores.tolist())
    assert [row["kl"] for row in found.samples] == pytest.approx(distances["full"].tolist())
    assert [row["prompt"] for row in found.samples] == [p.text for p in agent.task.prompts for _ in range(3)]
    assert [row["response"] for row in found.samples] == [agent.task.text_of(ids) for ids in episodes.responses()]


def test_the_kl_of_a_masked_policy_is_that_of_its_restricted_distribution(id_task):
    """Of tokens that may not come the policy takes none, so they are no part of its KL."""

    def odd_tokens(prompt, response):
        return np.arange(61) % 2 == 1

    task = TextGenerationEnv(**id_task(prompts=PROMPTS, action_mask=odd_tokens, temperature=0.8)).task
    episodes = LocalBackend(task).generate(list(task.prompts), Sampling()).episodes
    wanted = []
    for ids, p, n in zip(episodes.input_ids, episodes.prompt_lengths, episodes.lengths, strict=True):
        with torch.no_grad():
            logits, ref = (
                model(input_ids=torch.tensor(ids[None, :n])).logits[0, p - 1 : n - 1].double() / 0.8
                for model in (task.model, task.reference)
            )
        logits[:, ::2] = -torch.inf
        log_pi, log_ref = torch.log_softmax(logits, -1), torch.log_softmax(ref, -1)
        wanted.append(float((log_pi.exp() * (log_pi - log_ref))[:, 1::2].sum()))
    np.testing.assert_allclose(measure_episodes(task, episodes)["full"], wanted, rtol=1e-4)


def test_the_kl_of_an_unchanged_model_is_zero_and_its_j_the_score():
    found = A2C(make(mdp=T0)).evaluate(n=50)
    assert found.kl.mean == pytest.approx(0, abs=1e-6) and found.J.mean == pytest.approx(found.score.mean, abs=1e-6)


@pytest.mark.parametrize("moved", [False, True])
def test_best_of_four_on_t0(moved):
    """Score and KL of the best of four by enumeration, also where the model is not the reference."""
    model = some_policy(3) if moved else T0.policy_model()
    pi = np.exp(T0.trajectory_logprobs(model))
    scores = T0.scores()
    below = np.array([pi[scores < s].sum() for s in scores])
    equal = np.array([pi[scores == s].sum() for s in scores])
    best = pi / equal * ((below + equal) ** 4 - below**4)
    kl = float(best @ (np.log(best) - T0.trajectory_logprobs(T0.reference_logits)))
    found = BestOfN(make(mdp=T0, model=model), n=4, slots=512).evaluate(n=4000)
    assert found.score.mean == pytest.approx(float(best @ scores), abs=4 * found.score.se)
    assert found.kl.mean == pytest.approx(kl, abs=0.02)
    assert found.J.mean == pytest.approx(found.score.mean - 0.5 * found.kl.mean)


def test_a_ratio_of_means_and_its_error():
    """Over many draws of 40 prompts, the error given is the spread of the ratio, which both parts share."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(3000):
        gain = rng.uniform(0.2, 1.0, 40)
        found.append(Estimate.ratio(0.5 * gain + 0.1 * rng.standard_normal(40), gain))
    means = np.array([e.mean for e in found])
    errors = np.array([e.se for e in found])
    assert means.mean() == pytest.approx(0.5, abs=0.003)
    assert errors.mean() == pytest.approx(means.std(), rel=0.06)


def test_the_share_attained_is_measured_on_the_same_prompts(id_task):
    env = TextGenerationEnv(**id_task(prompts=PROMPTS, beta=0.01))
    agent = GRPO(env, rollout_episodes=8, batch_size=8)
    most = task_ceiling(agent.task, samples=40)
    found = agent.evaluate(n=20, ceiling=most)
    J_ref = most.J_ref_by_prompt
    by_hand = (found.J_by_prompt - J_ref).mean() / (most.J_by_prompt - J_ref).mean()
    assert found.attained is not None and found.attained.mean == pytest.approx(by_hand)
    assert found.metrics()["attained"] == found.attained.mean and found.metrics()["attained_se"] > 0
    with pytest.raises(ConfigurationError, match="5 prompts and the evaluation has 2"):
        agent.evaluate(PROMPTS[:2], ceiling=most)


def test_the_optimum_attains_all_of_it():
    optimum = T0.policy_model()
    with torch.no_grad():
        optimum.table.copy_(torch.tensor(T0.optimum(0.5).policy_logits))
    env = make(mdp=T0, model=optimum)
    most = ceiling(np.tile(T0.scores()[reference_draws(20_000)], (1, 1)), 0.5)
    assert PPO(env).evaluate(n=4000, ceiling=most).attained.mean == pytest.approx(1, abs=0.07)
    reference = PPO(make(mdp=T0)).evaluate(n=4000, ceiling=most)
    assert reference.attained.mean == pytest.approx(0, abs=0.07)


def reference_draws(count: int) -> np.ndarray:
    p = np.exp(T0.trajectory_logprobs(T0.reference_logits))
    return np.random.default_rng(0).choice(len(p), size=count, p=p / p.sum())


@pytest.mark.parametrize("cls", [PPO, BestOfN])
def test_held_out_prompts_may_be_longer_than_those_of_the_task(cls, id_task):
    """As far as the model's positions go, of which there are 64."""
    agent = cls(TextGenerationEnv(**id_task(prompts=[[1], [2]])))
    assert agent.evaluate([[1] * 20, [2]], n=3).prompts == 2
    with pytest.raises(InvalidPromptError, match="59 tokens"):
        agent.evaluate([[1] * 59])


# -- the same uniform numbers ------------------------------------------------------------------------------
def test_a_text_does_not_depend_on_those_beside_it(id_task):
    task = TextGenerationEnv(**id_task(prompts=PROMPTS)).task
    prompts = list(task.prompts) * 3
    sampling = Sampling.fixed(15, 6, seed=1)
    wanted = LocalBackend(task, slots=15).generate(prompts, sampling).episodes.responses()
    assert LocalBackend(task, slots=4).generate(prompts, sampling).episodes.responses() == wanted
    alone = Sampling(uniforms=sampling.uniforms[7:8])
    assert LocalBackend(task).generate(prompts[7:8], alone).episodes.responses() == wanted[7:8]
    other = LocalBackend(task).generate(prompts, Sampling.fixed(15, 6, seed=2)).episodes.responses()
    assert other != wanted
    with pytest.raises(ConfigurationError, match=r"uniforms have the shape \(15, 6\): \(texts, tokens\) is \(1, 6\)"):
        LocalBackend(task).generate(prompts[:1], sampling)


def test_the_uniform_numbers_give_the_models_distribution():
    """The texts drawn with them come as often as their probabilities say."""
    task = make(mdp=T0).task
    count = 20_000
    episodes = LocalBackend(task, 1024).generate([task.prompts[0]] * count, Sampling.fixed(count, 3, 0)).episodes
    tokens, lengths = T0.trajectories()
    number = {tuple(row[:n].tolist()): i for i, (row, n) in enumerate(zip(tokens, lengths, strict=True))}
    seen = np.bincount([number[tuple(r)] for r in episodes.responses()], minlength=len(tokens))
    wanted = np.exp(T0.trajectory_logprobs(T0.reference_logits)) * count
    often = wanted >= 5
    chi2 = ((seen[often] - wanted[often]) ** 2 / wanted[often]).sum()
    assert chi2 < often.sum() + 5 * np.sqrt(2 * often.sum())


@pytest.mark.parametrize("cls", [PPO, BestOfN])
def test_an_evaluation_repeats_itself_and_moves_no_stream_of_randomness(cls, id_task):
    agent = cls(TextGenerationEnv(**id_task(prompts=PROMPTS)))
    before = agent.randomness.state()
    torch_before = torch.get_rng_state()
    first, again = agent.evaluate(n=4), agent.evaluate(n=4)
    assert first.samples == again.samples and first.metrics() == again.metrics()
    assert agent.evaluate(n=4, seed=1).samples != first.samples
    assert agent.randomness.state() == before and torch.equal(torch.get_rng_state(), torch_before)


# -- while training ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("cls", [PPO, A2C, GRPO, RLOO, Reinforce, PPOPenalty])
def test_training_with_and_without_evaluation_gives_the_same_weights(cls, id_task, tmp_path):
    """Bit for bit, with dropout in the model, a KL controller, and a critic that reads the trunk."""
    weights = []
    for callback in (None, EvaluateTexts([[9, 9], [3]], n=4, every=40, ceiling=True, samples=tmp_path / "s.jsonl")):
        env = TextGenerationEnv(**id_task(prompts=PROMPTS, beta=AdaptiveKL(target=1.0, horizon=100)))
        agent = cls(env, rollout_episodes=16, slots=4, learning_rate=0.01)
        agent.learn(250, callback=callback)
        weights.append(weights_of(agent))
        beta = agent.task.kl.beta
        assert agent.num_rollouts > 2
    assert callback is not None and len(callback.history) == agent.num_rollouts + 1
    assert same(*weights) and beta != 0.15


@pytest.mark.parametrize("cls", [SB3PPO, SB3A2C])
def test_agents_of_stable_baselines3_are_evaluated_and_train_the_same(cls, make_lm):
    weights = []
    callback = EvaluateTexts([[9, 9], [3]], n=4, every=16)
    for used in (None, callback):
        torch.manual_seed(0)
        env = TextVecEnv(3, **{**text_options(make_lm), "model": make_lm("gpt2")})
        options = {"n_epochs": 1} if cls is SB3PPO else {}
        agent = make_agent(cls, env, n_steps=8, learning_rate=0.01, **options)
        agent.learn(48, used)
        weights.append({k: v.clone() for k, v in agent.policy.state_dict().items()})
    assert same(*weights)
    assert [e.timesteps for e in callback.history] == [0, 18, 33, 48, 48]
    kls = [e.evaluation.kl.mean for e in callback.history]
    assert kls[0] > 0 and len(set(kls)) == 3, "the weights of the first rollout, of the second, and at the end"
    after = PPO(TextGenerationEnv(**{**text_options(make_lm), "model": env.task.model})).evaluate([[9, 9], [3]], n=4)
    assert after.kl.mean == pytest.approx(kls[-1], rel=1e-4)


def test_another_policy_of_stable_baselines3_is_refused():
    agent = SB3PPO("MultiInputPolicy", make(), n_steps=8, batch_size=8)
    with pytest.raises(ConfigurationError, match="give it a policy of agents"):
        agent.learn(8, EvaluateTexts())


def test_the_log_has_the_evaluations_from_the_start_to_the_end(id_task):
    agent = RLOO(TextGenerationEnv(**id_task(prompts=PROMPTS)), rollout_episodes=16, learning_rate=0.01)
    rows = Rows()
    agent.set_logger(Logger(None, [rows]))
    callback = EvaluateTexts([[9, 9], [3]], n=3, every=150)
    agent.learn(400, callback=callback)
    at = [row["time/total_timesteps"] for row in rows.rows if "eval/J" in row]
    assert at == [e.timesteps for e in callback.history]
    assert at[0] == 0 and at[-1] == agent.num_timesteps >= 400
    passed = [t // 150 for t in at]
    assert passed[:3] == [0, 1, 2] and len(rows.rows) in (agent.num_rollouts + 1, agent.num_rollouts + 2)
    for row, made in zip((row for row in rows.rows if "eval/J" in row), callback.history, strict=True):
        assert {
            k.removeprefix("eval/"): v for k, v in row.items() if k.startswith("eval/")
        } == made.evaluation.metrics()
    again = agent.evaluate([[9, 9], [3]], n=3)
    assert again.metrics() == callback.history[-1].evaluation.metrics(), "the last is that of the trained weights"


def test_a_training_that_goes_on_evaluates_at_the_same_counts(id_task):
    agent = RLOO(TextGenerationEnv(**id_task(prompts=PROMPTS)), rollout_episodes=16, learning_rate=0.01)
    agent.learn(100)
    callback = EvaluateTexts([[9, 9], [3]], n=3, every=150)
    before = agent.num_timesteps
    agent.learn(300, callback=callback, reset_num_timesteps=False)
    assert before < callback.history[0].timesteps, "no evaluation at the start of what is gone on with"
    assert callback.history[0].timesteps // 150 == before // 150 + 1


def test_the_texts_are_written_as_json_lines(id_task, tmp_path):
    path = tmp_path / "new" / "samples.jsonl"
    for seed in (0, 1):
        agent = RLOO(TextGenerationEnv(**id_task(prompts=PROMPTS)), rollout_episodes=16, seed=seed)
        callback = EvaluateTexts(PROMPTS, n=2, every=10**6, samples=path, shown=3)
        agent.learn(10, callback=callback)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 6 and {row["timesteps"] for row in rows} == {0, agent.num_timesteps}
    assert [row["prompt"] for row in rows[:3]] == [" ".join(map(str, ids)) for ids in PROMPTS[:3]]
    assert rows[3:] == [
        {"timesteps": agent.num_timesteps, **row} for row in callback.history[-1].evaluation.samples[:6:2]
    ]
    assert len(path.with_name("samples.1.jsonl").read_text().splitlines()) == 6, "the earlier run's"
    agent.learn(10, callback=EvaluateTexts(PROMPTS, n=2, samples=path, shown=3), reset_num_timesteps=False)
    assert len(path.read_text().splitlines()) == 9, "a training that goes on adds to the file"


LINE_ENDS = ["a\u2028good film", "the\x85end\u2029"]
"""Prompts with the characters that are line ends to `str.splitlines`, and not to JSON lines."""


def test_a_training_goes_on_whatever_characters_its_texts_hold(text_task, tmp_path):
    path = tmp_path / "samples.jsonl"
    agent = RLOO(TextGenerationEnv(**text_task(prompts=LINE_ENDS)), rollout_episodes=16)
    agent.learn(10, callback=EvaluateTexts(n=2, samples=path))
    before = path.read_bytes()
    agent.learn(10, callback=EvaluateTexts(n=2, samples=path), reset_num_timesteps=False)
    assert path.read_bytes().startswith(before) and not path.with_name("samples.1.jsonl").exists()
    rows = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    assert [row["prompt"] for row in rows] == LINE_ENDS * 3


@pytest.mark.parametrize("others", ["not JSON\n", '{"prompt": "a", "response": "b"}\n', '[1, 2]\n"a"\nnull\n7\n'])
def test_a_file_with_other_lines_is_renamed_and_half_a_line_is_dropped(others, id_task, tmp_path):
    path = tmp_path / "samples.jsonl"
    agent = RLOO(TextGenerationEnv(**id_task(prompts=PROMPTS)), rollout_episodes=16)
    agent.learn(10)
    path.write_text(others)
    agent.learn(10, callback=EvaluateTexts(PROMPTS, n=2, samples=path, shown=3), reset_num_timesteps=False)
    assert path.with_name("samples.1.jsonl").read_text() == others
    whole = path.read_text()
    assert len(whole.splitlines()) == 3
    for cut in (whole + '{"timesteps": 1, "pro', whole.removesuffix("\n")):  # killed within the last line, or after it
        path.write_text(cut)
        callback = EvaluateTexts(PROMPTS, n=2, samples=path, shown=3)
        agent.learn(10, callback=callback, reset_num_timesteps=False)
        assert path.read_text().startswith(whole) and len(path.read_text().splitlines()) == 6
    assert not path.with_name("samples.2.jsonl").exists()


def test_the_last_evaluation_is_made_up_for_after_a_signal_before_it(id_task, tmp_path):
    """The signal comes with the last update: all of the training is done, and its evaluation is not."""
    path = tmp_path / "samples.jsonl"

    def learn(resume, stop=None):
        agent = RLOO(TextGenerationEnv(**id_task(prompts=PROMPTS)), rollout_episodes=16)
        callback = EvaluateTexts(PROMPTS, n=2, every=10**6, samples=path, shown=3)
        callbacks = [callback] if stop is None else [callback, stop]
        agent.learn(10, callback=callbacks, checkpoint=Checkpointing(tmp_path / "run"), resume=resume)
        return agent, callback

    class StopsAtOnce(BaseCallback):
        def _on_step(self):
            signal.raise_signal(signal.SIGTERM)
            return True

    with pytest.raises(TrainingInterrupted):
        learn(False, StopsAtOnce())
    assert {json.loads(line)["timesteps"] for line in path.read_text().splitlines()} == {0}
    agent, callback = learn(True)
    assert [made.timesteps for made in callback.history] == [agent.num_timesteps]
    rows = [json.loads(line)["timesteps"] for line in path.read_text().splitlines()]
    assert rows == [0] * 3 + [agent.num_timesteps] * 3
    assert not learn(True)[1].history, "nothing is missing the next time"


@pytest.mark.parametrize("by_callback", [False, True])
def test_what_else_is_measured_is_a_mean_of_the_same_texts(id_task, by_callback):
    """Their number of words, from the texts of the evaluation themselves."""
    seen: list[str] = []

    def more(prompts, responses):
        assert [len(prompts), len(responses)] == [10, 10]
        seen.extend(responses)
        return {"words": np.array([float(len(r.split())) for r in responses])}

    agent = RLOO(TextGenerationEnv(**id_task(prompts=PROMPTS)), rollout_episodes=16)
    if by_callback:
        callback = EvaluateTexts(PROMPTS, n=2, more=more)
        agent.learn(10, callback=callback)
        found = callback.history[-1].evaluation
    else:
        found = evaluate_texts(agent.task, LocalBackend(agent.task), PROMPTS, 2, more=more)
    assert seen[-10:] == [row["response"] for row in found.samples]
    words = [len(text.split()) for text in seen[-10:]]
    assert found.metrics()["words"] == pytest.approx(np.mean(words)) and "words" in str(found)
    assert evaluate_texts(
        agent.task, LocalBackend(agent.task), PROMPTS, 2
    ).metrics().keys() == found.metrics().keys() - {"words"}


def test_texts_go_to_tensorboard_and_nowhere_else(id_task, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    agent = RLOO(TextGenerationEnv(**id_task(prompts=PROMPTS)), rollout_episodes=16, log_dir=tmp_path)
    agent.learn(10, callback=EvaluateTexts(PROMPTS, n=2, shown=3))
    agent.logger.close()
    events = event_accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    written = events.Tensors("eval/samples/text_summary")
    assert [event.step for event in written] == [0, agent.num_timesteps]
    assert "**1 2 3**" in written[0].tensor_proto.string_val[0].decode()
    assert "eval/samples" not in (tmp_path / "progress.csv").read_text()


def test_tensorboard_shows_the_markup_in_texts_and_does_not_obey_it(text_task, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    env = TextGenerationEnv(**text_task(prompts=["<img src=x> and *a* | b"]))
    agent = RLOO(env, rollout_episodes=16, log_dir=tmp_path)
    agent.learn(10, callback=EvaluateTexts(n=2))
    agent.logger.close()
    events = event_accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    shown = events.Tensors("eval/samples/text_summary")[0].tensor_proto.string_val[0].decode()
    assert shown.startswith("**&#60;img src=x&#62; and &#42;a&#42; &#124; b** ")
    assert not set("<>|") & set(shown)


def test_a_ceiling_is_estimated_once_and_can_be_given_on(id_task, caplog):
    calls = []

    def reward(prompts, responses, response_ids):
        calls.append(len(responses))
        return [len(set(ids)) / 6 for ids in response_ids]

    agent = RLOO(TextGenerationEnv(**id_task(prompts=PROMPTS, reward=reward, beta=0.02)), rollout_episodes=16)
    first = EvaluateTexts([[9, 9], [3]], n=3, ceiling=True)
    agent.learn(10, callback=first)
    assert first.ceiling is not None and first.ceiling.prompts == 2 and first.ceiling.beta == 0.02
    assert any("the ceiling is a lower bound" in text for text in caplog.messages) is not first.ceiling.trusted
    calls.clear()
    second = EvaluateTexts([[9, 9], [3]], n=3, ceiling=first.ceiling)
    agent.learn(10, callback=second)
    assert max(calls) <= 16, "no sample of the reference is drawn again"
    assert "attained" in second.history[0].evaluation.metrics()


# -- stable-baselines3's own evaluation ------------------------------------------------------------------------
def test_evaluate_policy_measures_the_same_j():
    """Token by token in an environment around the same model, on T0."""
    model = some_policy(1)
    agent = PPO(make(mdp=T0, model=model))
    returns, _ = evaluate_policy(
        agent,
        make(mdp=T0, model=model),
        n_eval_episodes=200,
        deterministic=False,
        return_episode_rewards=True,
        warn=False,
    )
    exact = T0.evaluate(model, beta=0.5)
    assert abs(np.mean(returns) - exact.J) < 4 * np.std(returns) / np.sqrt(200)
    assert abs(agent.evaluate(n=2000).J.mean - exact.J) < 0.1


# -- what is refused ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": 0}, "every must be an integer of at least 1"),
        ({"n": 0}, "n must be an integer of at least 1"),
        ({"shown": -1}, "shown must be"),
        ({"seed": -1}, "seed must be"),
        ({"ceiling": 3}, "ceiling must be True, False or a Ceiling, not int"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ConfigurationError, match=words):
        EvaluateTexts(**options)


def test_what_cannot_be_evaluated_is_said(id_task, tmp_path):
    agent = RLOO(TextGenerationEnv(**id_task(prompts=PROMPTS)))
    with pytest.raises(ConfigurationError, match="n must be an integer"):
        agent.evaluate(n=0)
    with pytest.raises(InvalidPromptError, match="outside the vocabulary"):
        agent.evaluate([[1, 999]])
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointWriteError, match="choose another place"):
        agent.learn(10, callback=EvaluateTexts(samples=tmp_path / "file" / "samples.jsonl"))
    assert agent.num_rollouts == 0


def test_a_reward_that_fails_in_an_evaluation_leaves_the_agent_as_it_was(id_task):
    fails = []

    def reward(prompts, responses, response_ids):
        if fails:
            raise OSError("the server is away")
        return [0.0] * len(responses)

    agent = RLOO(TextGenerationEnv(**id_task(prompts=PROMPTS, reward=reward)), rollout_episodes=16)
    before, state = weights_of(agent), agent.randomness.state()
    fails.append(True)
    with pytest.raises(RewardError, match="the server is away"):
        agent.evaluate()
    assert same(before, weights_of(agent)) and agent.randomness.state() == state


def test_an_evaluation_prints_what_it_found():
    found = PPO(make(mdp=T0)).evaluate(n=20)
    shown = str(found)
    assert "20 texts to 1 prompts" in shown and "nats" in shown and f"{found.J.mean:.3f}" in shown


def test_other_callbacks_see_the_evaluation(id_task):
    """A callback after it in the list can act on what was just measured."""
    agent = RLOO(TextGenerationEnv(**id_task(prompts=PROMPTS)), rollout_episodes=16)
    evaluation = EvaluateTexts([[3]], n=4, every=1)

    class StopAfterThree(BaseCallback):
        def _on_step(self) -> bool:
            return len(evaluation.history) < 3

    agent.learn(10**6, callback=[evaluation, StopAfterThree()])
    assert agent.num_rollouts == 2
    assert not Path("samples.jsonl").exists()
