"""What a run keeps besides its numbers: settings, texts, warnings; and what it says where a package is missing."""

from __future__ import annotations

import csv
import json
import math
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import Logger

from agents import GRPO, PPO
from agents.run.progress import rollout_metrics, standard_error
from agents.run.records import RunFiles
from agents.run.samples import PER_ROLLOUT, Sample, SampleChooser, samples_as_markdown
from agents.run.training_log import ProgressFile, make_logger
from lm_env.data.pieces import tokens_from_ids
from lm_env.envs.env import TextGenerationEnv
from lm_env.errors import CheckpointWriteError, RewardError, RewardValueError
from lm_env.objective.rewards import parts_of
from lm_env.tasks.token_mdp import make
from reward_models import WeightedSum

SMALL = {"rollout_episodes": 16, "slots": 8, "batch_size": 8, "n_epochs": 1}


def lines_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def sample(timesteps: int, prompt: str = "p", response: str = "r") -> Sample:
    return Sample(timesteps, prompt, response, 0.5, 0.25, ["r"], [0.25])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("log")
    agent = PPO(make(), log_dir=folder, learning_rate=0.05, seed=1, **SMALL).learn(300)
    agent.logger.close()
    return agent, folder


def test_the_texts_are_those_of_the_rollouts(trained):
    """Their score is what the reward function gives to them, and their tokens' log-ratios add up to the KL."""
    agent, folder = trained
    rows = lines_of(folder / "samples.jsonl")
    id_of = {tokens_from_ids(agent.task.tokenizer, [i])[0]: i for i in range(agent.task.vocab_size)}
    assert {row["timesteps"] for row in rows} >= {0} and len({row["timesteps"] for row in rows}) > 3
    for row in rows:
        assert "".join(row["tokens"]) != "" and len(row["tokens"]) == len(row["log_ratios"])
        assert sum(row["log_ratios"]) == pytest.approx(row["kl"], abs=5e-4 * len(row["tokens"]))
        ids = [[id_of[token.strip()] for token in row["tokens"]]]
        score = agent.task.reward(prompts=[row["prompt"]], responses=[row["response"]], response_ids=ids)
        ended = ids[0][-1] in agent.task.eos_token_ids
        assert row["score"] == pytest.approx(float(score[0]) if ended else agent.task.missing_eos_score, abs=1e-9)
    assert all(abs(ratio) < 1e-5 for row in rows if row["timesteps"] == 0 for ratio in row["log_ratios"])
    assert any(abs(ratio) > 1e-3 for row in rows if row["timesteps"] > 0 for ratio in row["log_ratios"])


def test_the_settings_hold_every_option_of_the_agent_and_what_it_trained_on(trained):
    agent, folder = trained
    settings = json.loads((folder / "run.json").read_text())
    assert settings["agent"] == "PPO" and settings["seed"] == 1
    assert settings["config"] == {name: value for name, value in vars(agent.config).items()}
    assert settings["task"]["parameters"] == sum(p.numel() for p in agent.task.model.parameters())
    assert settings["task"]["beta"] == agent.task.kl.beta


def test_an_early_warning_is_kept(tmp_path):
    env = TextGenerationEnv(**{**vars_of_task(), "reward": lambda prompts, responses: [1.0] * len(responses)})
    agent = PPO(env, log_dir=tmp_path, **SMALL).learn(1)
    agent.logger.close()
    rows = lines_of(tmp_path / "warnings.jsonl")
    assert [row["timesteps"] for row in rows] == [agent.num_timesteps] * len(rows)
    assert any("does not tell the texts apart" in row["warning"] for row in rows)


def vars_of_task() -> dict:
    task = make().task
    return {"model": task.model, "prompts": [[0]], "eos_token_id": sorted(task.eos_token_ids), "max_new_tokens": 3}


def test_the_log_changes_nothing_of_the_training(tmp_path):
    agents = [PPO(make(), seed=3, log_dir=folder, **SMALL).learn(150) for folder in (None, tmp_path)]
    agents[1].logger.close()
    for one, other in zip(*(agent.policy.state_dict().values() for agent in agents), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_training_that_fails_leaves_its_page_and_its_last_texts(error, tmp_path):
    calls = []

    def reward(prompts, responses):
        calls.append(1)
        if len(calls) == 35:
            raise error("enough")
        return [float(i) for i in range(len(responses))]

    env = TextGenerationEnv(**{**vars_of_task(), "reward": reward})
    agent = PPO(env, log_dir=tmp_path, **SMALL)
    with pytest.raises((RewardError, KeyboardInterrupt), match="enough"):
        agent.learn(10**6)
    agent.logger.close()
    assert "Score against KL" in (tmp_path / "report.html").read_text()
    steps = [
        float(row["time/total_timesteps"])
        for row in csv.DictReader((tmp_path / "progress.csv").read_text().splitlines())
    ]
    # The 34th rollout is none of those whose texts are kept anyway.  It began where the 33rd had ended.
    assert len(steps) == 34 and lines_of(tmp_path / "samples.jsonl")[-1]["timesteps"] == steps[32]


def test_a_new_run_puts_all_files_of_another_aside_under_one_number(tmp_path):
    for _ in range(2):
        PPO(make(), log_dir=tmp_path, **SMALL).learn(40).logger.close()
    (tmp_path / "progress.2.csv").write_text("someone's")
    first = {name: (tmp_path / name).read_bytes() for name in ("progress.csv", "samples.jsonl", "run.json")}
    PPO(make(), log_dir=tmp_path, **SMALL).learn(40).logger.close()
    assert (tmp_path / "progress.2.csv").read_text() == "someone's"
    for name, content in first.items():
        stem, ending = name.split(".")
        assert (tmp_path / f"{stem}.3.{ending}").read_bytes() == content
        assert (tmp_path / f"{stem}.1.{ending}").exists()


def test_a_resumed_run_goes_on_with_the_texts_and_watches_the_same_prompts(tmp_path):
    agent = PPO(make(), log_dir=tmp_path / "log", **SMALL).learn(60)
    agent.logger.close()
    before = (tmp_path / "log" / "samples.jsonl").read_bytes()
    again = PPO.load(agent.save(tmp_path / "agent"), make(), log_dir=tmp_path / "log")
    again.learn(60, reset_num_timesteps=False)
    again.logger.close()
    after = (tmp_path / "log" / "samples.jsonl").read_bytes()
    assert after.startswith(before) and len(after) > len(before)
    assert RunFiles(tmp_path / "log").watched_prompts() == [lines_of(tmp_path / "log" / "samples.jsonl")[0]["prompt"]]


def test_going_back_to_a_checkpoint_takes_back_what_came_after(tmp_path):
    files = RunFiles(tmp_path)
    for timesteps in (0, 100, 200):
        files.write_samples([sample(timesteps)])
        files.write_warning(timesteps + 100, f"at {timesteps}")
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write(json.dumps({"timesteps": 200, "prompt": "p", "response": "evaluated", "score": 1, "kl": 0}) + "\n")
        file.write('{"timesteps": 20')  # killed
    files.rewind(200)
    rows = lines_of(tmp_path / "samples.jsonl")
    # The rollout that began at 200 will be made again; the evaluation at 200 will not.
    assert [(row["timesteps"], row["response"]) for row in rows] == [(0, "r"), (100, "r"), (200, "evaluated")]
    assert [row["timesteps"] for row in lines_of(tmp_path / "warnings.jsonl")] == [100, 200]


def test_a_line_that_was_cut_off_ends_before_the_next_text(tmp_path):
    (tmp_path / "samples.jsonl").write_text('{"timesteps": 1')
    RunFiles(tmp_path).write_samples([sample(7)])
    assert json.loads((tmp_path / "samples.jsonl").read_text().splitlines()[1])["timesteps"] == 7


def test_texts_that_cannot_be_written_are_a_named_error(tmp_path):
    (tmp_path / "samples.jsonl").mkdir()
    with pytest.raises(CheckpointWriteError, match="choose another log_dir"):
        RunFiles(tmp_path).write_samples([sample(0)])


# -- which texts ---------------------------------------------------------------------------------------
def test_texts_are_kept_of_ever_fewer_rollouts():
    due = [n for n in range(1, 100_001) if SampleChooser.due(n)]
    assert due[:32] == list(range(1, 33)) and len(due) < 240
    assert max(b / a for a, b in pairwise(due[40:])) < 1.07  # never much time without any


def test_the_same_prompts_are_chosen_again():
    chooser = SampleChooser()
    first = [f"p{i}" for i in range(20)]
    assert chooser.choose(first) == list(range(PER_ROLLOUT))
    later = ["x", "p3", "y", "p0", "p3"]
    assert [later[row] for row in chooser.choose(later)] == ["p0", "p3", "x", "y"]  # each once, the watched first


def test_markup_in_a_text_is_shown_and_not_obeyed():
    table = samples_as_markdown([sample(0, response="<script>|a|\n*b*")])
    assert "<" not in table and table.count("\n") == 2 and table.splitlines()[-1].count("|") == 5


def test_tensorboard_gets_texts_and_settings(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained[1])).Reload()
    assert {"samples/text_summary", "settings/text_summary"} <= set(events.Tags()["tensors"])
    assert events.Tensors("samples/text_summary")[0].step == 0


def test_without_tensorboard_a_notice_says_how_to_get_it(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    make_logger(0, tmp_path / "a").close()
    make_logger(0, tmp_path / "b").close()
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1 and "pip install 'lm-env[tensorboard]'" in told[0]


# -- parts of a sum, and errors --------------------------------------------------------------------------
class Counted:
    def __init__(self, gain: float) -> None:
        self.gain, self.calls = gain, 0

    def __call__(self, prompts, responses, response_ids):
        self.calls += 1
        return [self.gain * sum(ids) for ids in response_ids]


@pytest.mark.parametrize("cls", [PPO, GRPO])
def test_the_parts_of_a_sum_are_logged_and_nothing_is_computed_twice(cls, tmp_path):
    one, other = Counted(1.0), Counted(-0.5)
    env = TextGenerationEnv(**{**vars_of_task(), "reward": WeightedSum([(2.0, one), (0.5, other)]), "beta": 0.1})
    agent = cls(env, log_dir=tmp_path, **SMALL, **({"group_size": 4} if cls is GRPO else {})).learn(100)
    agent.logger.close()
    assert one.calls == other.calls == agent.num_rollouts
    rows = list(csv.DictReader((tmp_path / "progress.csv").read_text().splitlines()))
    for row in rows:
        parts = [float(row["rollout/score/Counted"]), float(row["rollout/score/Counted_2"])]
        assert parts[1] == pytest.approx(-0.5 * parts[0])
        assert float(row["rollout/score"]) == pytest.approx(2.0 * parts[0] + 0.5 * parts[1])
    texts = lines_of(tmp_path / "samples.jsonl")
    assert all(t["score"] == pytest.approx(2 * t["parts"]["Counted"] + 0.5 * t["parts"]["Counted_2"]) for t in texts)


def test_texts_that_were_not_scored_have_no_parts(tmp_path):
    """With `cap_truncates`, a text that the cap has cut is not scored: it has no parts, and no mean counts it."""
    env = TextGenerationEnv(
        **{**vars_of_task(), "reward": WeightedSum([(2.0, Counted(1.0))]), "cap_truncates": True, "max_new_tokens": 2}
    )
    agent = PPO(env, log_dir=tmp_path, **SMALL)
    rollout = agent.collect_rollout()
    ended = rollout.scored.ended
    parts = rollout.scored.parts["Counted"]
    assert 0 < ended.sum() < len(ended) and np.isnan(parts[~ended]).all()
    np.testing.assert_allclose(2.0 * parts[ended], rollout.scored.scores[ended])
    assert rollout_metrics(rollout)["rollout/score/Counted"] == pytest.approx(parts[ended].mean())
    agent.logger.close()


def test_parts_that_do_not_fit_the_texts_are_refused():
    def reward(prompts, responses):
        return [1.0] * len(responses)

    reward.last_parts = {"mine": [1.0, 2.0, 3.0]}
    assert parts_of(reward, 3)["mine"].tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(RewardValueError, match="last_parts of the reward function reward must hold 4 numbers"):
        parts_of(reward, 4)
    reward.last_parts = 3
    with pytest.raises(RewardValueError, match="which 3 does not"):
        parts_of(reward, 4)


def test_a_standard_error_of_independent_texts():
    values = np.random.default_rng(0).normal(size=50)
    names = [str(i) for i in range(50)]
    assert standard_error(values, names) == pytest.approx(values.std(ddof=1) / math.sqrt(50))
    assert standard_error(values, ["the same"] * 50) == pytest.approx(values.std(ddof=1) / math.sqrt(50))
    assert math.isnan(standard_error(values[:1], names[:1]))


def test_a_standard_error_counts_prompts_and_not_texts():
    """Texts of a prompt that score alike tell as much as one of them."""
    values = np.random.default_rng(0).normal(size=20)
    once = standard_error(values, [str(i) for i in range(20)])
    assert standard_error(np.repeat(values, 8), [str(i) for i in range(20) for _ in range(8)]) == pytest.approx(once)
    assert standard_error(np.repeat(values, 8), [str(i) for i in range(160)]) < 0.5 * once


def test_every_output_of_the_logger_that_is_none_of_ours_is_left_alone(tmp_path):
    agent = PPO(make(), **SMALL)
    agent.set_logger(Logger(folder=str(tmp_path), output_formats=[ProgressFile(tmp_path)]))
    agent.learn(40)
    agent.logger.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["progress.csv"]
