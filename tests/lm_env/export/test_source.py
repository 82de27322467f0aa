"""What is exported: which tasks and splits, without weights; and the scores of tokens and texts written elsewhere."""

from __future__ import annotations

import copy
import shutil
import sys
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch

import lm_env.export
from lm_env import Causal, Span, TextGenerationEnv, load_model
from lm_env.errors import ConfigurationError, MissingDependencyError, ModelLoadError
from lm_env.export.judging import cut_at_stop_string, score_texts, score_tokens
from lm_env.export.source import Source
from lm_env.generation import LocalBackend, Sampling
from lm_env.tasks import SPLITS, TextTask

CHAT = [{"role": "user", "content": "a good film"}]
CHATS = [{"prompt": CHAT, "worth": 1.0}]


def by_text(prompts, responses, worth, response_finished=None):
    """A score that tells texts and columns apart and reads no tokens."""
    return [w + len(p) / 100 + sum(map(ord, r)) / 1000 for p, r, w in zip(prompts, responses, worth, strict=True)]


def per_token(prompts, responses, response_ids, response_finished=None):
    return [np.arange(1.0, len(ids) + 1) / (1 + ids[0]) for ids in response_ids]


ROWS = [{"prompt": "a good film", "worth": 1.0}, {"prompt": "the end", "worth": 2.0}, {"prompt": "bad", "worth": 4.0}]
WAYS = {
    "plain": {},
    "stop": {"stop_strings": ["e", " a"]},
    "missing": {"missing_eos_score": -1.0},
    "stop-missing": {"stop_strings": ["e"], "missing_eos_score": -1.0},
    "cut": {"cap_truncates": True},
    "stop-cut": {"stop_strings": ["e"], "cap_truncates": True},
}


ENDS = [0, *range(40, 80)]
"""So many tokens end a text that a model of random weights ends some."""


@pytest.fixture(params=WAYS)
def env(request, text_task):
    return TextGenerationEnv(**text_task(prompts=ROWS, reward=by_text, eos_token_id=ENDS, **WAYS[request.param]))


def written(env, texts=60):
    """Episodes of the environment's own model."""
    torch.manual_seed(0)
    prompts = [env.task.prompts[i % len(env.task.prompts)] for i in range(texts)]
    return LocalBackend(env.task, 16).generate(prompts, Sampling.fixed(texts, env.task.max_new_tokens, 0)).episodes


def test_tokens_are_paid_as_the_environment_pays_them(env):
    """Whatever another sampler writes behind the end changes nothing."""
    episodes = written(env)
    paid = env.score(episodes)
    assert paid.ended.any() and (~paid.ended).any() and len(set(paid.scores.round(6))) > 20
    longer = [[*ids, 9, 9, 9] if over else ids for ids, over in zip(episodes.responses(), paid.ended, strict=True)]
    scores, ended = score_tokens(env.task, episodes.prompts, longer)
    np.testing.assert_array_equal(scores, paid.scores)
    np.testing.assert_array_equal(ended, paid.ended)


def test_texts_are_paid_as_the_environment_pays_their_tokens(env):
    episodes = written(env)
    paid = env.score(episodes)
    bare = [ids[:-1] if ids[-1] in ENDS else ids for ids in episodes.responses()]
    whole = [env.task.tokenizer.decode(ids, skip_special_tokens=True) for ids in bare]
    scores, ended = score_texts(env.task, episodes.prompts, whole, list(paid.ended))
    np.testing.assert_array_equal(scores, paid.scores)
    np.testing.assert_array_equal(ended, paid.ended)
    cut = [env.task.text_of(ids) for ids in episodes.responses()]  # as a server that leaves the stop string out
    np.testing.assert_array_equal(score_texts(env.task, episodes.prompts, cut, list(paid.ended))[0], paid.scores)


@Causal
def per_character(prompts, responses, response_finished=None):
    """A point for each character: what is half written is paid later, or never."""
    return [[Span(i, i + 1, 1.0) for i in range(len(text))] for text in responses]


@pytest.mark.parametrize(("text", "points"), [("film a", 4), ("film ag", 7), ("film an", 4), ("good\ufffd", 4)])
def test_a_text_that_the_cap_truncates_is_paid_for_what_is_settled(text_task, text, points):
    """The beginning of a stop string, " and", and half a character may become something else."""
    options = {"reward": per_character, "stop_strings": [" and"], "cap_truncates": True, "eos_token_id": ()}
    task = TextGenerationEnv(**text_task(prompts=["a good film"], **options)).task
    assert score_texts(task, task.prompts[:1], [text], [False])[0].tolist() == [points]
    assert score_texts(task, task.prompts[:1], [text], [True])[0].tolist() == [len(text)]
    ids = task.tokenizer([text], add_special_tokens=False)["input_ids"][0]
    if "\ufffd" not in text:
        exactly = TextGenerationEnv(**text_task(prompts=["a good film"], max_new_tokens=len(ids), **options))
        assert score_tokens(exactly.task, task.prompts[:1], [ids])[0].tolist() == [points]


def test_the_first_stop_string_in_a_text_ends_it(text_task):
    task = TextGenerationEnv(**text_task(stop_strings=["e", " a"])).task
    for text, wanted in {"film ace": "film", "fine a": "fin", "good": "good", "": ""}.items():
        assert cut_at_stop_string(task, text, False) == (wanted, wanted != text)
        assert cut_at_stop_string(task, text, True) == (wanted, True)
        assert wanted == task.text_of(task.tokenizer(text)["input_ids"])


@pytest.mark.parametrize("reward", [per_token, Causal(per_token)])
@pytest.mark.filterwarnings("ignore:reward function per_token scores tokens")
def test_scores_per_token_add_up(text_task, reward):
    env = TextGenerationEnv(**text_task(reward=reward, missing_eos_score=-1.0, eos_token_id=ENDS))
    episodes = written(env)
    np.testing.assert_allclose(
        score_tokens(env.task, episodes.prompts, episodes.responses())[0], env.score(episodes).scores
    )


def test_a_response_ends_where_step_ends_it(env, rng):
    for _ in range(12):
        tokens = rng.integers(0, env.task.vocab_size, 12).tolist()
        env.reset(options={"prompt": ROWS[0]})
        taken = []
        for token in tokens:
            *_, terminated, truncated, _ = env.step(token)
            taken.append(token)
            if terminated or truncated:
                break
        assert env.task.until_end(tokens) == taken


def test_no_tokens_and_foreign_tokens_are_refused(env):
    for bad in ([], [env.task.vocab_size], [-1]):
        with pytest.raises(ConfigurationError, match="let the trainer use the task's own tokenizer"):
            score_tokens(env.task, env.task.prompts[:1], [bad])


def test_a_named_model_is_not_loaded(model_folder):
    """The weights are not even there; prompts, limits and scores are those of the whole model."""
    declared = TextTask(
        id="me/Film-v0",
        summary="films",
        source=dict.fromkeys(SPLITS, ROWS),
        reward=by_text,
        model=model_folder,
        max_new_tokens=6,
        metrics={"letters": lengths},
    )
    env = declared.make("test")
    bare = shutil.copytree(model_folder, f"{model_folder}-bare", ignore=shutil.ignore_patterns("*.safetensors"))
    source = Source(replace(declared, model=bare), {})
    task = source.task("test")
    assert [p.ids.tolist() for p in task.prompts] == [p.ids.tolist() for p in env.task.prompts]
    assert (task.vocab_size, task.max_length, task.eos_token_ids) == (
        env.task.vocab_size,
        env.task.max_length,
        env.task.eos_token_ids,
    )
    episodes = written(env, 12)
    np.testing.assert_array_equal(
        score_tokens(task, list(task.prompts) * 4, episodes.responses())[0], env.score(episodes).scores
    )
    assert source.measured(task.prompts[0], "good") == {"letters": 4.0}
    assert source.task("test") is task and source.task("train") is not task
    with pytest.raises(ModelLoadError, match="cannot load the model"):
        load_model(bare)


def lengths(prompts, responses):
    return [len(r) for r in responses]


def test_an_unloaded_model_is_refused_where_there_is_none():
    with pytest.raises(ModelLoadError, match="no folder of this name"):
        Source("lm_env/Sentiment-v0", {"model": "no-such-model"}).task()


def test_splits(text_task):
    by_name = Source("lm_env/Arithmetic-v0", {})
    assert by_name.splits == ("train", "validation", "test") and by_name.name == "lm_env/Arithmetic-v0"
    test = {p.text for p in by_name.task("test").prompts}
    assert test and not test & {p.text for p in by_name.task("train").prompts}
    replaced = Source("lm_env/Arithmetic-v0", {"prompts": ["1+1="], "max_new_tokens": 3})
    assert replaced.splits == ("train",) and replaced.task().max_new_tokens == 3
    env = TextGenerationEnv(**text_task())
    for given in (env, env.task):
        whole = Source(given, {})
        assert (
            whole.splits == ("train",) and whole.task() is env.task and whole.measured(env.task.prompts[0], "x") == {}
        )
    with pytest.raises(ConfigurationError, match="has no split 'test': it has 'train'"):
        whole.task("test")
    with pytest.raises(ConfigurationError, match="has no prompt 3 in train: there are 3"):
        whole.prompt("train", 3)


def test_what_is_loaded_is_shared_by_the_splits(text_lm, tokenizer):
    made = []

    def model():
        made.append(text_lm())
        return made[-1]

    declared = TextTask(
        id="me/Film-v0", summary="films", source=dict.fromkeys(SPLITS, ROWS), reward="lexicon", model=model
    )
    source = Source(declared, {"tokenizer": tokenizer, "max_new_tokens": 6})
    train, test = source.task("train"), source.task("test")
    assert len(made) == 1 and train.model is test.model and train.reward is test.reward
    assert train.reference is test.reference and train.prompts is not test.prompts


def test_what_cannot_be_exported_is_named(text_task):
    env = TextGenerationEnv(**text_task())
    with pytest.raises(ConfigurationError, match="not CartPoleEnv"):
        Source(gymnasium.make("CartPole-v1"), {})
    with pytest.raises(ConfigurationError, match="'beta' is an option for tasks by name"):
        Source(env, {"beta": 1})
    with pytest.raises(ConfigurationError, match="no task of this name"):
        Source("lm_env/Nothing-v0", {})
    with pytest.raises(ConfigurationError, match="leave split out here"):
        Source("lm_env/TokenMDP-v0", {"split": "test"})


def test_chats_stay_chats(text_lm, tokenizer):
    talking = copy.deepcopy(tokenizer)
    talking.chat_template = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}<assistant>"
    declared = TextTask(
        id="me/Chat-v0",
        summary="chats",
        reward=by_text,
        model=text_lm,
        source=dict.fromkeys(SPLITS, CHATS),
        max_new_tokens=6,
    )
    source = Source(declared, {"tokenizer": talking})
    assert source.chat("train", 0) == CHAT
    assert source.prompt("train", 0).text == "<user> a good film\n<assistant>"
    assert Source(source.task(), {}).chat("train", 0) is None


TARGETS = {
    "to_minari": ("minari", r"lm-env\[minari\]"),
    "to_openenv": ("openenv", r"lm-env\[openenv\]"),
    "to_torchrl": ("torchrl", r"lm-env\[contrib\]"),
    "to_verifiers": ("verifiers", r"lm-env\[verifiers\]"),
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_missing_library_is_named(name, monkeypatch):
    library, extra = TARGETS[name]
    monkeypatch.delitem(sys.modules, f"lm_env.export.{library}", raising=False)
    monkeypatch.delattr(lm_env.export, library, raising=False)
    for module in [m for m in sys.modules if m.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)  # what the import system takes for "not there"
    with pytest.raises(MissingDependencyError, match=extra):
        getattr(lm_env.export, name)
