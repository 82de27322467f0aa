"""The manner of stable-baselines3: learn with callbacks and a logger, predict, generate."""

from __future__ import annotations

import csv

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EveryNTimesteps
from stable_baselines3.common.logger import configure
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from agents import PPO, BestOfN
from lm_env.envs.env import TextGenerationEnv
from lm_env.envs.vector_env import TextGenerationVectorEnv
from lm_env.errors import ConfigurationError, InvalidPromptError, UnsupportedModelError
from lm_env.objective.kl import AdaptiveKL
from lm_env.tasks.token_mdp import make, make_vec

ENDS = list(range(0, 61, 5))
SMALL = {"rollout_episodes": 16, "slots": 8, "batch_size": 8, "n_epochs": 1}


@pytest.fixture
def agent() -> PPO:
    """On T0: rollouts of 16 texts, 16 to 48 tokens."""
    return PPO(make(), **SMALL)


class Recorder(BaseCallback):
    """Notes when it is called and what it sees."""

    def __init__(self, stop_after: int = 10**6) -> None:
        super().__init__()
        self.stop_after, self.events, self.timesteps, self.rates = stop_after, [], [], []

    def _on_training_start(self) -> None:
        self.events.append("start")

    def _on_rollout_start(self) -> None:
        self.events.append("rollout")

    def _on_step(self) -> bool:
        self.events.append("step")
        self.timesteps.append(self.num_timesteps)
        self.rates.append(self.model.updater.optimizer.param_groups[0]["lr"])
        assert len(self.locals["rollout"].episodes) == 16
        return self.n_calls < self.stop_after

    def _on_rollout_end(self) -> None:
        self.events.append("end of rollout")

    def _on_training_end(self) -> None:
        self.events.append("end")


# -- the environment ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "env",
    [
        lambda: "lm_env/TokenMDP-v0",
        lambda: gymnasium.make("lm_env/TokenMDP-v0"),
        lambda: gymnasium.wrappers.RecordEpisodeStatistics(make()),
        lambda: make_vec(num_envs=3),
        lambda: gymnasium.make_vec("lm_env/TokenMDP-v0", num_envs=2),
    ],
    ids=["id", "made", "wrapped", "vector", "made vector"],
)
def test_any_text_environment_will_do(env):
    agent = PPO(env(), **SMALL)
    table = agent.task.model.table.detach().clone()
    assert agent.learn(40) is agent
    assert not torch.equal(agent.task.model.table, table)


def test_other_environments_are_refused():
    with pytest.raises(ConfigurationError, match="text environment"):
        PPO(gymnasium.make("CartPole-v1"))


def test_a_model_without_hidden_states_needs_a_critic_of_its_own_or_none(id_task):
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(61))

        def forward(self, input_ids: torch.Tensor) -> CausalLMOutput:
            return CausalLMOutput(logits=self.logits.expand(*input_ids.shape, -1))

    env = TextGenerationEnv(**id_task(model=Bare(), reference=None))
    with pytest.raises(UnsupportedModelError, match="hidden_states"):
        PPO(env, **SMALL)
    PPO(env, critic="none", **SMALL).learn(20)


# -- learn ---------------------------------------------------------------------------------------------
def test_learn_counts_generated_tokens(agent):
    seen = []

    def count(local, world) -> bool:
        seen.append(int(local["rollout"].episodes.response_lengths.sum()))
        return True

    agent.learn(100, count)
    assert agent.num_timesteps == sum(seen) >= 100
    assert sum(seen[:-1]) < 100, "it stops with the rollout that reaches the total"


def test_callbacks_are_called_in_order_once_per_rollout(agent):
    first, second = Recorder(), Recorder()
    agent.learn(60, [first, second])
    assert first.events == second.events
    rounds = first.events.count("step")
    assert first.events == ["start", *["rollout", "end of rollout", "step"] * rounds, "end"]
    assert first.timesteps[-1] == agent.num_timesteps


def test_a_callback_can_stop(agent):
    recorder = Recorder(stop_after=2)
    agent.learn(10**6, recorder)
    assert recorder.events == ["start", *["rollout", "end of rollout", "step"] * 2, "end"]


def test_a_function_can_stop(agent):
    agent.learn(10**6, lambda local, world: local["self"].num_timesteps < 100)
    assert 100 <= agent.num_timesteps < 100 + 48


def test_callbacks_of_sb3(agent, tmp_path):
    recorder = Recorder()
    agent.learn(120, [EveryNTimesteps(60, recorder), CheckpointCallback(1, str(tmp_path), "policy")])
    assert 1 <= len(recorder.timesteps) <= 2
    saved = {int(p.name.split("_")[1]): p for p in tmp_path.iterdir()}
    assert len(saved) >= 3
    assert all(PPO.load(path, make()).num_timesteps == steps for steps, path in saved.items())


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_learning_rate_schedule(schedule):
    agent, recorder = PPO(make(), learning_rate=0.01, lr_schedule=schedule, **SMALL), Recorder()
    agent.learn(200, recorder)
    before = np.array([0, *recorder.timesteps[:-1]])
    expected = 0.01 * (1 - before / 200) if schedule == "linear" else np.full(len(before), 0.01)
    np.testing.assert_allclose(recorder.rates, expected, rtol=1e-12)


def test_learning_goes_on_where_it_was(agent):
    """As in stable-baselines3: so many MORE tokens; the schedule's end moves with them."""
    agent.learn(60)
    done, recorder = agent.num_timesteps, Recorder()
    agent.learn(100, recorder, reset_num_timesteps=False)
    assert done + 100 <= agent.num_timesteps < done + 100 + 48
    assert recorder.rates[0] == pytest.approx(agent.config.learning_rate * (1 - done / (done + 100)))
    agent.learn(10)
    assert agent.num_timesteps <= 48, "and by default it starts anew"


def test_warm_up():
    recorder = Recorder()
    agent = PPO(make(), learning_rate=0.01, lr_schedule="constant", warmup_rollouts=4, **SMALL)
    agent.learn(300, recorder)
    np.testing.assert_allclose(recorder.rates[:6], [0.001, 0.00325, 0.0055, 0.00775, 0.01, 0.01])


def test_same_seed_same_training():
    tables = [PPO(make(), seed=seed, **SMALL).learn(150).task.model.table.detach() for seed in (3, 3, 4)]
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])


def test_global_random_state_is_left_alone(agent):
    torch.manual_seed(0)
    before, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()
    agent.learn(60)
    agent.generate(n=2)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], legacy)


def test_the_kl_controller_is_told_after_the_rewards_are_made():
    kl = AdaptiveKL(beta=0.5, target=0.1, horizon=100)
    agent = PPO(make(beta=kl), learning_rate=0.05, **SMALL)
    rollout = agent.collect_rollout()
    scored = rollout.scored
    last = (np.arange(3) == rollout.episodes.response_lengths[:, None] - 1)[:, : rollout.mask.shape[1]]
    expected = -0.5 * (scored.logprobs - scored.ref_logprobs) + last * scored.scores[:, None]
    np.testing.assert_allclose(scored.rewards, np.where(rollout.mask, expected, 0), rtol=0, atol=1e-12)
    assert kl.beta == pytest.approx(0.5 * (1 + np.clip(scored.kl.mean() / 0.1 - 1, -0.2, 0.2) * 16 / 100))


# -- what is logged ----------------------------------------------------------------------------------------
def test_progress_is_written_as_csv(tmp_path):
    agent, recorder = PPO(make(), log_dir=tmp_path, **SMALL), Recorder()
    agent.learn(100, recorder)
    agent.logger.close()
    rows = list(csv.DictReader((tmp_path / "progress.csv").read_text().splitlines()))
    assert [int(float(row["time/total_timesteps"])) for row in rows] == recorder.timesteps
    names = {"rollout/score", "rollout/reward", "rollout/kl", "rollout/entropy", "rollout/length", "rollout/ended"}
    names |= {"rollout/beta", "train/policy_loss", "train/value_loss", "train/approx_kl", "train/clip_fraction"}
    names |= {"train/grad_norm", "train/explained_variance", "train/learning_rate", "time/tokens_per_s"}
    assert names <= rows[0].keys()
    for name in names - {"train/explained_variance"}:
        assert all(np.isfinite(float(row[name])) for row in rows), name


def test_what_is_logged_of_a_rollout(tmp_path):
    seen = []
    agent = PPO(make(), log_dir=tmp_path, **SMALL)
    agent.learn(1, lambda local, world: not seen.append(local["rollout"]))
    agent.logger.close()
    (row,) = csv.DictReader((tmp_path / "progress.csv").read_text().splitlines())
    scored, mask = seen[0].scored, seen[0].mask
    kl = np.where(mask, scored.logprobs - scored.ref_logprobs, 0).sum(1).mean()
    expected = {
        "score": scored.scores.mean(),
        "kl": kl,
        "reward": scored.scores.mean() - 0.5 * kl,
        "entropy": -scored.logprobs[mask].mean(),
        "length": mask.sum() / 16,
        "ended": scored.ended.mean(),
        "beta": 0.5,
    }
    for name, value in expected.items():
        assert float(row[f"rollout/{name}"]) == pytest.approx(value, abs=1e-9), name


def test_nothing_is_printed_unasked(agent, capsys):
    agent.learn(40)
    assert capsys.readouterr() == ("", "")


def test_verbose_prints_a_table(capsys):
    PPO(make(), verbose=1, **SMALL).learn(20)
    assert "approx_kl" in capsys.readouterr().out


def test_the_progress_bar_shows_score_and_kl(agent, capsys):
    agent.learn(40, progress_bar=True)
    shown = capsys.readouterr().err
    assert "100%" in shown
    assert "score" in shown and "KL" in shown


def test_another_logger_can_be_set(agent, tmp_path):
    agent.set_logger(configure(str(tmp_path), ["json"]))
    agent.learn(20)
    agent.logger.close()
    assert "rollout/score" in (tmp_path / "progress.json").read_text()


# -- predict -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("flat", [False, True])
def test_predict_is_the_argmax_of_the_model(id_task, flat):
    """One observation or a batch of unequal lengths, a Dict or a flat Box; what lies in the padding does not matter."""
    options = id_task(eos_token_id=())
    single = TextGenerationEnv(flat=flat, **options)
    vector = TextGenerationVectorEnv(5, flat=flat, **{**options, "model": single.task.model})
    agent = PPO(single, **SMALL)
    observations, _ = vector.reset(seed=0)
    for _ in range(3):
        actions, state = agent.predict(observations, deterministic=True)
        assert state is None
        assert actions.shape == (5,) and actions.dtype == np.int64
        for slot, action in enumerate(actions):
            text = torch.from_numpy(vector.mdp.input_ids[slot : slot + 1, : vector.mdp.lengths[slot]])
            assert action == agent.task.model(input_ids=text).logits[0, -1].argmax()
            one = observations[slot] if flat else {k: v[slot] for k, v in observations.items()}
            alone, _ = agent.predict(one, deterministic=True)
            assert alone == action and np.ndim(alone) == 0
            assert vector.single_action_space.contains(alone)
        observations, *_ = vector.step(actions)


def test_predict_samples_from_the_policy(id_task):
    agent = PPO(TextGenerationEnv(**id_task(temperature=0.5)), **SMALL)
    ids = np.tile(np.array([[3, 4, 0, 0]]), (4000, 1))
    tokens, _ = agent.predict({"input_ids": ids, "length": np.full((4000, 1), 2)})
    logits = agent.task.model(input_ids=torch.tensor([[3, 4]])).logits[0, -1].detach().double()
    expected = 4000 * torch.softmax(logits / 0.5, -1).numpy()
    likely = expected >= 5
    counts = np.bincount(tokens, minlength=61)
    chi2 = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    assert likely.sum() >= 5
    assert chi2 < likely.sum() + 4 * np.sqrt(2 * likely.sum())


def test_an_agent_plays_the_environment_it_was_trained_on(agent):
    env = agent.env
    observation, _ = env.reset(seed=0)
    for _ in range(20):
        action, _ = agent.predict(observation)
        observation, _, terminated, _, _ = env.step(action)
        if terminated:
            observation, _ = env.reset()


def test_predict_with_masks(id_task):
    options = id_task(action_mask=lambda prompt, response: np.arange(61) % 7 == len(response))
    env = TextGenerationEnv(**options)
    agent = PPO(env, **SMALL)
    observation, _ = env.reset(seed=0)
    with pytest.raises(ConfigurationError, match=r"action_masks=env.action_masks\(\)"):
        agent.predict(observation)
    for t in range(3):
        for deterministic in (True, False):
            action, _ = agent.predict(observation, deterministic=deterministic, action_masks=env.action_masks())
            assert action % 7 == t
        observation, *_ = env.step(action)
    vector = TextGenerationVectorEnv(4, **options)
    observations, _ = vector.reset(seed=0)
    actions, _ = agent.predict(observations, action_masks=vector.action_masks())
    assert (actions % 7 == 0).all()


# -- generate ------------------------------------------------------------------------------------------------
def test_generate_writes_text(text_task, tokenizer):
    env = TextGenerationEnv(**text_task())
    agent = PPO(env, **SMALL)
    texts = agent.generate(["bad", "the end"], deterministic=True)
    assert texts == agent.generate(["bad", "the end"], deterministic=True)
    assert all(isinstance(text, str) for text in texts)
    for prompt, text in zip(["bad", "the end"], texts, strict=True):
        ids = list(tokenizer(prompt)["input_ids"])
        for _ in range(6):
            ids.append(int(agent.task.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        written = ids[len(tokenizer(prompt)["input_ids"]) :]
        cut = written[: written.index(0) + 1] if 0 in written else written
        assert text == agent.task.text_of(cut)
    assert len(agent.generate(n=7)) == 7
    assert len(agent.generate([agent.task.prompts[1]])) == 1


def test_n_is_the_number_of_texts_per_prompt_in_generate_as_in_evaluate(text_task):
    agent = PPO(TextGenerationEnv(**text_task()), **SMALL)
    episodes = agent.generate_episodes(["bad", "the end"], n=3)
    assert [prompt.text for prompt in episodes.prompts] == ["bad"] * 3 + ["the end"] * 3
    assert len(agent.generate(["bad"], n=5)) == agent.evaluate(["bad"], n=5).texts == 5
    best = BestOfN(agent.env, n=2)
    assert len(best.generate(["bad"], n=5)) == 5 and len(best.generate()) == 4
    with pytest.raises(ConfigurationError, match="n must be"):
        agent.generate(["bad"], n=0)


def test_generate_reads_prompts_as_the_task_does(text_task, tokenizer):
    """Chats, tokenized batches and the task's own special tokens; one text alone is not taken for its letters."""
    agent = PPO(TextGenerationEnv(**text_task(prompt_column="story", overflow="truncate", max_prompt_tokens=2)))
    ids = tokenizer("a good film")["input_ids"]
    for prompts in (["a good film"], [{"story": "a good film", "prompt": "x"}], tokenizer(["a good film"]), [ids]):
        episodes = agent.generate_episodes(prompts)
        assert [p.ids.tolist() for p in episodes.prompts] == [ids[-2:]] and len(ids) > 2
    with pytest.raises(ConfigurationError, match=r"a single prompt is written as \[text\]"):
        agent.generate("a good film")


def test_generated_episodes_can_be_scored(agent):
    episodes = agent.generate_episodes(n=9)
    scored = agent.env.score(episodes)
    np.testing.assert_array_equal(scored.logprobs, episodes.logprobs)
    np.testing.assert_allclose(scored.logprobs, scored.ref_logprobs, rtol=0, atol=1e-5)


def test_prompts_that_cannot_be_written_to(text_task):
    agent = PPO(TextGenerationEnv(**text_task()), **SMALL)
    with pytest.raises(InvalidPromptError):
        agent.generate(["a good film " * 50])
    with pytest.raises(InvalidPromptError):
        agent.generate([])
    with pytest.raises(ConfigurationError, match="at least one prompt"):
        agent.generate(n=0)
