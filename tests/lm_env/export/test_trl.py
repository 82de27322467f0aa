"""TRL: the data set, the rewards, and a step of its own trainers; all equal to what the environment says."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from lm_env import Episodes, TextGenerationEnv, load_model
from lm_env.errors import ConfigurationError, RewardError
from lm_env.export import to_trl
from lm_env.generation import LocalBackend, Sampling
from lm_env.tasks import SPLITS, TextTask, get_task

CHAT = [{"role": "user", "content": "a good film"}]
ROWS = [{"prompt": "a good film", "worth": 1.0}, {"prompt": "the end", "worth": 2.0}, {"prompt": "bad", "worth": 4.0}]


def by_text(prompts, responses, worth):
    return [w + len(p) / 100 + sum(map(ord, r)) / 1000 for p, r, w in zip(prompts, responses, worth, strict=True)]


def called(trl_task, dataset, rows, completion_ids):
    """The rewards, asked for as TRL's trainers do: with everything that it passes along."""
    columns = {name: [dataset[row][name] for row in rows] for name in dataset.column_names if name != "prompt"}
    return trl_task.reward(
        prompts=[dataset[row]["prompt"] for row in rows],
        completions=["" for _ in rows],
        completion_ids=completion_ids,
        trainer_state=None,
        log_extra=print,
        log_metric=print,
        **columns,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stop_strings": ["e", " a"]},
        {"missing_eos_score": -1.0},
        {"cap_truncates": True},
        {"overflow": "truncate", "max_prompt_tokens": 2},
    ],
)
def test_rewards_are_those_of_the_environment(text_task, changes):
    env = TextGenerationEnv(**text_task(prompts=ROWS, reward=by_text, **changes))
    films = to_trl(env)
    dataset = films.dataset("train").shuffle(seed=1)
    assert dataset.column_names == ["prompt", "worth", "split", "prompt_index"]
    torch.manual_seed(0)
    rows = [i % len(dataset) for i in range(30)]
    prompts = [env.task.prompts[dataset[row]["prompt_index"]] for row in rows]
    episodes = LocalBackend(env.task, 8).generate(prompts, Sampling()).episodes
    assert called(films, dataset, rows, episodes.responses()) == env.score(episodes).scores.tolist()
    assert dataset[0]["prompt"] == prompts[0].text


def test_the_prompts_of_all_splits_are_those_of_the_environment():
    sums = to_trl("lm_env/Arithmetic-v0")
    answers = []
    for split in ("train", "validation", "test"):
        task = get_task("lm_env/Arithmetic-v0").task(split)
        dataset = sums.dataset(split)
        assert dataset["prompt"][:] == [p.text for p in task.prompts] and set(dataset["split"]) == {split}
        assert dataset["answer"][:] == [p.columns["answer"] for p in task.prompts]
        assert sums.tokenizer(dataset["prompt"][:9])["input_ids"] == [p.ids.tolist() for p in task.prompts[:9]]
        right = [
            sums.tokenizer(str(answer))["input_ids"] + [sums.tokenizer.eos_token_id] for answer in dataset["answer"][:3]
        ]
        answers.append(called(sums, dataset, [0, 1, 2, 0], [*right, right[0][:1]]))
    assert answers == [[1.0, 1.0, 1.0, 0.0]] * 3
    task = get_task("lm_env/Arithmetic-v0")
    assert sums.options == {
        "max_completion_length": task.max_new_tokens,
        "temperature": task.temperature,
        "beta": task.beta,
        "top_p": 1.0,
        "top_k": 0,
    }


OFFLINE = ["RandomWalks", "Sentiment", "Descriptiveness", "Concepts", "Rhyme", "Haiku", "Arithmetic"]


@pytest.mark.parametrize("name", OFFLINE)
def test_trl_reads_the_tasks_of_the_package_as_the_environment_does(name):
    """A BOS that the tokenizer adds included; `dataset` compares every prompt, and here some are compared again."""
    task = to_trl(f"lm_env/{name}-v0")
    dataset = task.dataset("test")
    prompts = get_task(f"lm_env/{name}-v0").task("test").prompts
    assert len(dataset) == len(prompts)
    assert task.tokenizer(text=dataset["prompt"][:5])["input_ids"] == [p.ids.tolist() for p in prompts[:5]]


def test_a_batch_of_both_splits():
    sums = to_trl("lm_env/Arithmetic-v0")
    train, test = sums.dataset("train")[0], sums.dataset("test")[0]
    ids = [sums.tokenizer(str(row["answer"]))["input_ids"] + [sums.tokenizer.eos_token_id] for row in (test, train)]
    rewards = sums.reward(completion_ids=ids, split=["test", "train"], prompt_index=[0, 0])
    swapped = sums.reward(completion_ids=ids, split=["train", "test"], prompt_index=[0, 0])
    assert rewards == [1.0, 1.0] and swapped == [0.0, 0.0]


def test_chats_are_read_as_the_environment_reads_them(tokenizer, text_lm):
    talking = copy.deepcopy(tokenizer)
    talking.chat_template = (
        "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    rows = [{"prompt": CHAT, "worth": 1.0}]
    declared = TextTask(
        id="me/Chat-v0",
        summary="chats",
        source=dict.fromkeys(SPLITS, rows),
        reward=by_text,
        model=text_lm,
        max_new_tokens=6,
    )
    films = to_trl(declared, tokenizer=talking)
    dataset = films.dataset("test")
    assert dataset[0]["prompt"] == CHAT
    response = [5, 6, 7]
    wanted = by_text(["<user> a good film\n<assistant>"], [talking.decode(response)], [1.0])
    assert called(films, dataset, [0], [response]) == wanted
    both = to_trl(replace(declared, source={split: [*rows, *ROWS] for split in SPLITS}), tokenizer=talking)
    with pytest.raises(ConfigurationError, match="all texts or all chats"):
        both.dataset()


def test_prompts_that_trl_reads_otherwise(text_task, tokenizer):
    ids = tokenizer("a good film")["input_ids"]
    split_up = [tokenizer.convert_tokens_to_ids(letter) for letter in "film"]
    assert len(tokenizer("film")["input_ids"]) < 4
    films = to_trl(TextGenerationEnv(**text_task(prompts=[ids, split_up, "bad"])))
    with pytest.raises(ConfigurationError, match=r"TRL reads prompt 1 of train, 'film', as the tokens .*on_mismatch"):
        films.dataset()
    kept = films.dataset(on_mismatch="drop")
    assert kept["prompt"][:] == ["a good film", "bad"] and kept["prompt_index"][:] == [0, 2]
    with pytest.raises(ConfigurationError, match="none is left"):
        to_trl(TextGenerationEnv(**text_task(prompts=[split_up]))).dataset(on_mismatch="drop")


def test_what_trl_cannot_do_is_refused(text_task, id_task):
    with pytest.raises(ConfigurationError, match="TRL exchanges texts, and the task has no tokenizer"):
        to_trl(TextGenerationEnv(**id_task()))
    with pytest.raises(ConfigurationError, match="action_mask, which TRL knows nothing of"):
        to_trl(TextGenerationEnv(**text_task(action_mask=lambda prompt, response: np.ones(1, dtype=bool))))
    with pytest.raises(ConfigurationError, match=r"at the tokenizer's EOS, 0, and the task at \[\]"):
        to_trl(TextGenerationEnv(**text_task(eos_token_id=())))
    with pytest.raises(ConfigurationError, match="TRL needs a tokenizer of transformers"):
        to_trl("lm_env/TokenMDP-v0")
    films = to_trl(TextGenerationEnv(**text_task()))
    with pytest.raises(ConfigurationError, match="columns split and prompt_index"):
        films.reward(prompts=["bad"], completions=["x"], completion_ids=[[5]])
    with pytest.raises(ConfigurationError, match="the task's own tokenizer"):
        films.reward(completion_ids=[[10_000]], split=["train"], prompt_index=[0])
    with pytest.raises(ConfigurationError, match="2 completions, 1 splits and 1 prompt_indexes"):
        films.reward(completion_ids=[[5], [6]], split=["train"], prompt_index=[0])
    endless = copy.deepcopy(text_task()["tokenizer"])
    endless.eos_token = None
    with pytest.raises(ConfigurationError, match="this one has none"):
        to_trl(TextGenerationEnv(**text_task(tokenizer=endless, eos_token_id=())))
    failing = to_trl(TextGenerationEnv(**text_task(reward=lambda prompts, responses: 1 / 0)))
    with pytest.raises(RewardError, match="ZeroDivisionError"):
        failing.reward(completion_ids=[[5]], split=["train"], prompt_index=[0])
    mixed = [{"prompt": "bad", "worth": 1}, {"prompt": "the end", "worth": {"a": 1}}]
    with pytest.raises(ConfigurationError, match="the columns worth of the prompts cannot be stored"):
        to_trl(TextGenerationEnv(**text_task(prompts=mixed))).dataset()


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ["RLOO", "GRPO"])
def test_trls_own_trainers_train_on_it(name, tmp_path, monkeypatch, capfd):
    """Two steps; each reward that TRL used is the environment's for these very tokens, and the weights move."""
    trl = pytest.importorskip("trl")
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    sums = to_trl("lm_env/Arithmetic-v0", max_new_tokens=3, missing_eos_score=-0.5)
    env = get_task("lm_env/Arithmetic-v0").make("train", max_new_tokens=3, missing_eos_score=-0.5)
    calls = []

    class Recording(getattr(trl, f"{name}Trainer")):
        def _calculate_rewards(self, inputs, prompts, completions, completion_ids):
            rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids)
            calls.append(([row["prompt_index"] for row in inputs], completion_ids, rewards[:, 0].tolist()))
            return rewards

    model = load_model("arithmetic-0.4m")
    before = [p.detach().clone() for p in model.parameters()]
    config = getattr(trl, f"{name}Config")(
        str(tmp_path),
        per_device_train_batch_size=32,
        num_generations=8,
        max_steps=2,
        learning_rate=1e-3,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **sums.options,
    )
    trainer = Recording(
        model=model,
        processing_class=sums.tokenizer,
        args=config,
        train_dataset=sums.dataset("train"),
        reward_funcs=sums.reward,
    )
    trainer.train()
    assert trainer.state.global_step == 2 and len(calls) >= 2
    assert any((a != b).any() for a, b in zip(before, model.parameters(), strict=True))
    seen = set()
    for indices, responses, rewards in calls:
        prompts = [env.task.prompts[i] for i in indices]
        rows = [[*p.ids.tolist(), *ids] for p, ids in zip(prompts, responses, strict=True)]
        ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
        for line, row in zip(ids, rows, strict=True):
            line[: len(row)] = row
        given, whole = [len(p.ids) for p in prompts], [len(row) for row in rows]
        wanted = env.score(Episodes(ids, np.array(given), np.array(whole), prompts)).scores
        np.testing.assert_allclose(rewards, wanted, atol=1e-6)
        seen |= set(rewards)
    assert {-0.5, 1.0} <= seen  # cut at the cap, and right
