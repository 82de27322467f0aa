"""What a task resolves and refuses, where a text ends, and what it is worth."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from lm_env.data.episodes import Episodes
from lm_env.envs.env import TextGenerationEnv
from lm_env.errors import (
    ConfigurationError,
    InvalidPromptError,
    LMEnvError,
    ModelLoadError,
    RewardError,
    RewardValueError,
    UnsupportedModelError,
)
from lm_env.models.names import resolve
from lm_env.objective.kl import AdaptiveKL, full_kl
from lm_env.objective.options import _check_same_words, resolve_reward
from lm_env.objective.scoring import measure_kl, paid_scores, score_episodes
from lm_env.objective.task import Task

EOS = 0


def flat_reward(prompts, responses):
    return [1.5] * len(responses)


class Praise:
    """A reward class that its import path names."""

    def __call__(self, prompts, responses):
        return [float("good" in r) for r in responses]


class NeedsArguments:
    def __init__(self, path):
        self.path = path

    def __call__(self, prompts, responses):
        raise NotImplementedError


class Judge:
    """Keeps what it was shown, and pays a fixed score."""

    def __init__(self, score: float = 2.5) -> None:
        self.score, self.calls = score, []

    def __call__(self, prompts, responses, **columns):
        self.calls.append({"prompts": prompts, "responses": responses, **columns})
        return [self.score] * len(responses)


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text)["input_ids"]


def end_of(task: Task, response: list[int]) -> tuple[bool, bool]:
    """(ended, capped) of one response after a prompt of two tokens, with junk behind it."""
    row = np.array([[7, EOS, *response, EOS, 9]])
    ended, capped = task.ends(row, np.array([2]), np.array([2 + len(response)]))
    return bool(ended[0]), bool(capped[0])


# --- where a text ends -----------------------------------------------------------------------------------------------


def test_eos_ends_a_text_the_cap_caps_it_and_an_eos_at_the_cap_is_an_end(id_task):
    task = Task(**id_task(max_new_tokens=3, eos_token_id=(EOS, 5)))
    assert end_of(task, [9]) == (False, False)
    assert end_of(task, [9, EOS]) == end_of(task, [5]) == end_of(task, [9, 9, EOS]) == (True, False)
    assert end_of(task, [9, 9, 9]) == (False, True)


def test_without_eos_only_the_cap_is_left(id_task):
    task = Task(**id_task(max_new_tokens=2, eos_token_id=()))
    assert end_of(task, [EOS]) == (False, False) and end_of(task, [EOS, EOS]) == (False, True)


def test_a_stop_string_ends_a_text_even_across_tokens(text_task, tokenizer):
    task = Task(**text_task(stop_strings=["THE", "\n\n"], max_new_tokens=9))
    letters = [ids_of(tokenizer, letter)[0] for letter in "xTHE\n"]
    x, t, h, e, newline = letters
    assert tokenizer.decode([t, h, e]) == "THE"
    assert [end_of(task, r) for r in ([x, t], [x, t, h], [x, t, h, e])] == [(False, False)] * 2 + [(True, False)]
    assert end_of(task, [newline]) == (False, False) and end_of(task, [newline, newline]) == (True, False)
    assert task.text_of([x, t, h, e]) == "x"


def test_the_prompt_does_not_stop_the_text(text_task, tokenizer):
    """A stop string that only the prompt and the response together make up is none."""
    task = Task(**text_task(stop_strings=["THE"]))
    t, h, e = (ids_of(tokenizer, letter)[0] for letter in "THE")
    ended, _ = task.ends(np.array([[t, h, e]]), np.array([2]), np.array([3]))
    assert not ended[0]


def test_one_stop_string_may_come_bare(text_task):
    assert Task(**text_task(stop_strings="\n")).stop_strings == ("\n",)


def test_the_text_has_no_eos_no_special_tokens_and_ends_before_the_first_stop(text_task, tokenizer):
    task = Task(**text_task(stop_strings=["bad", "the"]))
    eos = tokenizer.eos_token_id
    assert task.text_of([*ids_of(tokenizer, "a good film"), eos]) == "a good film"
    assert task.text_of(ids_of(tokenizer, "a good film")) == "a good film"
    assert task.text_of(ids_of(tokenizer, "so the bad end")) == "so "
    assert task.text_of([eos]) == "" and task.text_of([]) == ""
    other = Task(**text_task(eos_token_id=ids_of(tokenizer, ".")[0]))
    assert other.text_of([*ids_of(tokenizer, "a"), eos, *ids_of(tokenizer, "b.")]) == "ab"


def test_tokens_beyond_the_tokenizer_have_no_text(text_task, tokenizer):
    task = Task(**text_task())
    assert task.vocab_size == len(tokenizer) + 6
    assert task.text_of([*ids_of(tokenizer, "a"), task.vocab_size - 1]) == "a"


def test_without_a_tokenizer_the_text_is_the_ids(id_task):
    assert Task(**id_task()).text_of([5, 7, EOS]) == "5 7"


# --- what it is worth ------------------------------------------------------------------------------------------------


def test_a_missing_eos_replaces_the_score_and_nothing_else(id_task):
    task = Task(**id_task(reward=Judge(), missing_eos_score=-1.0))
    prompts = task.prompts[:2]
    assert paid_scores(task, prompts, [[5, EOS], [5, 6]], np.array([True, False])).totals.tolist() == [2.5, -1.0]
    off = Task(**id_task(reward=Judge()))
    assert paid_scores(off, prompts, [[5, EOS], [5, 6]], np.array([True, False])).totals.tolist() == [2.5, 2.5]


def test_the_reward_sees_text_ids_and_columns(text_task, tokenizer):
    judge = Judge()
    rows = [{"prompt": "a good", "answer": "film", "year": 1999}, {"prompt": "the", "answer": "end"}]
    task = Task(**text_task(prompts=rows, reward=judge, stop_strings=["!"]))
    eos, responses = tokenizer.eos_token_id, [ids_of(tokenizer, " film!"), ids_of(tokenizer, " end")]
    paid_scores(task, list(task.prompts), [responses[0], [*responses[1], eos]], np.array([True, True]))
    assert judge.calls == [
        {
            "prompts": ["a good", "the"],
            "responses": [" film", " end"],
            "prompt_ids": [ids_of(tokenizer, "a good"), ids_of(tokenizer, "the")],
            "response_ids": [responses[0], [*responses[1], eos]],
            "answer": ["film", "end"],
            "year": [1999, None],
        }
    ]


@pytest.mark.parametrize(
    ("values", "error"),
    [(math.nan, RewardValueError), (None, RewardValueError), ("1", RewardValueError), (1 / 3, None)],
)
def test_what_a_reward_function_returns_is_checked(values, error, id_task):
    task = Task(**id_task(reward=lambda prompts, responses: [values] * len(responses)))
    if error is None:
        assert paid_scores(task, task.prompts[:1], [[5]], np.array([True])).totals.tolist() == [values]
    else:
        with pytest.raises(error, match="sample 0"):
            paid_scores(task, task.prompts[:1], [[5]], np.array([True]))


def test_a_reward_function_that_raises_is_named(id_task):
    def broken(prompts, responses):
        raise KeyError("answer")

    with pytest.raises(RewardError, match="broken raised KeyError"):
        paid_scores(Task(**id_task(reward=broken)), [], [], np.zeros(0, bool))


@pytest.mark.parametrize(("path", "score"), [(f"{__name__}:flat_reward", 1.5), (f"{__name__}:Praise", 1.0)])
def test_a_reward_by_its_import_path(path, score, text_task, tokenizer):
    task = Task(**text_task(reward=path))
    assert paid_scores(task, task.prompts[:1], [ids_of(tokenizer, "good")], np.array([True])).totals.tolist() == [score]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("no_such_module:f", "no_such_module"),
        (f"{__name__}:nothing", "nothing"),
        ("test_task", "package.module:function"),
        ("", "package.module:function"),
        (f"{__name__}:EOS", "no function EOS: one is needed that takes prompts, responses"),
        (f"{__name__}:NeedsArguments", "pass an instance"),
        (3.0, "not float"),
    ],
)
def test_a_reward_that_is_none(path, words):
    with pytest.raises(ConfigurationError, match=words):
        resolve_reward(path)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 2.5}, "max_new_tokens"),
        ({"max_new_tokens": True}, "max_new_tokens"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens"),
        ({"max_prompt_tokens": "9"}, "max_prompt_tokens"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"missing_eos_score": math.nan}, "missing_eos_score"),
        ({"missing_eos_score": "-1"}, "missing_eos_score"),
        ({"missing_eos_score": -1.0, "cap_truncates": True}, "choose one"),
        ({"beta": -0.1}, "beta"),
        ({"beta": math.nan}, "beta"),
        ({"beta": "0.1"}, "beta"),
        ({"beta": None}, "beta"),
        ({"eos_token_id": None}, "eos_token_id"),
        ({"eos_token_id": 61}, "outside the model's vocabulary of 61"),
        ({"eos_token_id": (0, -1)}, "-1"),
        ({"eos_token_id": "end"}, "eos_token_id"),
        ({"eos_token_id": 1.0}, "eos_token_id"),
        ({"stop_strings": ["\n"]}, "tokenizer"),
        ({"reward": None}, "reward"),
    ],
)
def test_each_bad_option_is_named(options, words, id_task):
    with pytest.raises(ConfigurationError, match=words):
        Task(**id_task(**options))


@pytest.mark.parametrize("stop", [[""], ["a", ""], [5], ""])
def test_stop_strings_are_strings_that_mean_something(stop, text_task):
    with pytest.raises(ConfigurationError, match="non-empty string"):
        Task(**text_task(stop_strings=stop))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"prompts": []}, InvalidPromptError, "no prompts"),
        ({"prompts": [[61]]}, InvalidPromptError, "outside the vocabulary of 61"),
        ({"prompts": ["text"]}, ConfigurationError, "no tokenizer"),
        ({"prompts": [[1] * 9], "max_prompt_tokens": 8}, InvalidPromptError, "9 tokens"),
        ({"model": "some-user/no-such-model"}, ModelLoadError, "no-such-model"),
        ({"reference": "some-user/no-such-model"}, ModelLoadError, "no-such-model"),
        ({"tokenizer": "some-user/no-such-model"}, ModelLoadError, "no-such-model"),
        ({"model": 3}, UnsupportedModelError, "torch.nn.Module"),
        ({"reference": torch.nn.Linear(2, 2)}, UnsupportedModelError, "causal LM"),
    ],
)
def test_each_bad_source_is_named(options, error, words, id_task):
    with pytest.raises(error, match=words) as caught:
        Task(**id_task(**options))
    assert isinstance(caught.value, LMEnvError)


@pytest.mark.parametrize("which", ["model", "reference"])
def test_texts_that_do_not_fit_the_positions_are_an_error_at_construction(which, make_lm, id_task):
    short = {which: make_lm("gpt2", n_positions=10)}
    assert Task(**id_task(max_new_tokens=5, **short)).max_length == 10
    remedy = "positions, of which max_new_tokens=6 are for the response, so lower max_new_tokens"
    with pytest.raises(InvalidPromptError, match=f"5 tokens, more than .*{remedy}"):  # of five tokens; four have room
        Task(**id_task(**short))
    with pytest.raises(UnsupportedModelError, match="10 positions and cannot hold 11"):
        Task(**id_task(max_prompt_tokens=5, **short))
    with pytest.raises(UnsupportedModelError, match="10 positions and cannot hold 13"):
        Task(**id_task(prompts=[[1]], max_new_tokens=12, **short))


def test_model_and_reference_must_share_a_vocabulary(make_lm, id_task):
    with pytest.raises(ConfigurationError, match="61 logits and the reference 60"):
        Task(**id_task(reference=make_lm("gpt2", vocab_size=60)))


def with_other_words(folder, rename):
    """The embedded model of sums, under the same ids with other words."""
    shutil.copytree(resolve("arithmetic-0.4m"), folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"] = {rename(word): i for word, i in content["model"]["vocab"].items()}
    path.write_text(json.dumps(content))
    return folder


def test_a_reference_to_which_the_ids_are_other_words_is_refused(tmp_path):
    """The sizes of the two vocabularies are the same, so the logits alone do not tell them apart."""
    other = with_other_words(tmp_path / "other", lambda w: str((int(w) + 1) % 10) if w.isdecimal() else w)
    options = {"model": "arithmetic-0.4m", "prompts": ["1+1="], "reward": flat_reward, "max_new_tokens": 4}
    with pytest.raises(ConfigurationError, match=r"another vocabulary .*: token \d+ is '\d' to it and '\d' to"):
        Task(**options, reference=other)
    assert Task(**options, reference=with_other_words(tmp_path / "same", lambda w: w)).reference is not None


@pytest.mark.parametrize("size", [20, 300, 2000])
def test_special_tokens_may_differ_from_those_of_the_reference_and_no_others(size):
    """A chat model's <|im_start|> is a reserved token of its base model."""

    def words(special=(), added=(), **changed):
        vocabulary = {changed.get(f"w{i}", f"w{i}"): i for i in range(size)}
        extra = {word: i for word, i in vocabulary.items() if i in added}
        return SimpleNamespace(
            get_vocab=lambda: vocabulary, all_special_ids=list(special), get_added_vocab=lambda: extra
        )

    chat = {"w7": "<|im_start|>", "w8": "<|im_end|>"}
    _check_same_words(words(), words(special=[7, 8], **chat), "base")
    _check_same_words(words(**chat, added=[7, 8]), words(), "base")
    _check_same_words(words(), words(special=[7], added=[8], **chat), "base")
    _check_same_words(words(), SimpleNamespace(get_vocab=words().get_vocab), "base")
    _check_same_words(words(), object(), "a tokenizer of another kind")
    with pytest.raises(ConfigurationError, match=r"token 8 is '<\|im_end\|>' to it and 'w8' to the model"):
        _check_same_words(words(), words(special=[7], w9="c", **chat), "base")


def test_the_longest_prompt_sets_the_room(id_task):
    task = Task(**id_task(max_new_tokens=6))
    assert (task.max_prompt_tokens, task.max_length) == (5, 11)
    assert Task(**id_task(max_prompt_tokens=8)).max_length == 14


def test_a_controller_or_a_number_may_be_beta(id_task):
    controller = AdaptiveKL(0.2)
    assert Task(**id_task(beta=controller)).kl is controller
    assert Task(**id_task(beta=0)).kl.beta == 0


# --- the reference ---------------------------------------------------------------------------------------------------


def digest(model: torch.nn.Module) -> str:
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()


def train_a_little(model: torch.nn.Module) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for _ in range(3):
        model(input_ids=torch.tensor([[1, 2, 3]])).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_by_default_the_reference_is_a_frozen_copy_that_training_does_not_reach(make_lm, id_task):
    model = make_lm("gpt2").train()
    env = TextGenerationEnv(**id_task(model=model, reference=None))
    reference = env.task.reference
    assert env.task.model is model and model.training and not reference.training
    storages = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert storages.isdisjoint(p.untyped_storage().data_ptr() for p in reference.parameters())
    assert not any(p.requires_grad for p in reference.parameters()) and all(p.requires_grad for p in model.parameters())
    before = digest(reference)
    assert before == digest(model)
    for _ in range(2):
        env.reset()
        for action in (5, 6, EOS):
            env.step(action)
        train_a_little(model)
    assert digest(reference) == before != digest(model)


def test_a_reference_that_shares_weights_is_refused(make_lm, id_task):
    model, other = make_lm("llama"), make_lm("llama", seed=1)
    with pytest.raises(ConfigurationError, match="shares weights"):
        Task(**id_task(model=model, reference=model))
    other.model.embed_tokens = model.model.embed_tokens
    with pytest.raises(ConfigurationError, match="shares weights"):
        Task(**id_task(model=model, reference=other))


def test_a_model_by_name_is_a_trainable_copy_beside_one_frozen_reference(model_folder, text_task):
    options = text_task(model=model_folder, reference=None, tokenizer=None)
    first, second = Task(**options), Task(**{**options, "model": Path(model_folder)})
    assert first.reference is second.reference and first.model is not second.model
    for task in (first, second):
        assert all(p.requires_grad for p in task.model.parameters())
        assert not any(p.requires_grad for p in task.reference.parameters())
        assert task.tokenizer.eos_token_id in task.eos_token_ids
    train_a_little(first.model)
    assert digest(first.reference) == digest(second.model) != digest(first.model)


def test_a_reference_by_name(model_folder, text_task, tokenizer):
    task = Task(**text_task(reference=model_folder))
    assert task.tokenizer is tokenizer and not any(p.requires_grad for p in task.reference.parameters())


# --- masks -----------------------------------------------------------------------------------------------------------


def test_a_mask_sees_copies_of_prompt_and_response(id_task):
    seen = []

    def mask(prompt, response):
        seen.append((prompt.tolist(), response.tolist()))
        prompt[:], response[:] = 0, 0
        return np.arange(61) != 9

    env = TextGenerationEnv(**id_task(action_mask=mask))
    env.reset(options={"prompt": [4, 5]})
    env.step(7)
    assert not env.action_masks()[9] and env.action_masks().sum() == 60
    assert seen[0] == ([4, 5], []) and seen[-1] == ([4, 5], [7])


@pytest.mark.parametrize(
    "mask", [np.ones(60, bool), np.ones(61), np.zeros(61, bool), np.ones((1, 61), bool), [True] * 60, None]
)
def test_a_mask_that_is_none_is_told_so(mask, id_task):
    env = TextGenerationEnv(**id_task(action_mask=lambda prompt, response: mask))
    env.reset()
    with pytest.raises(ConfigurationError, match="bool array of 61"):
        env.step(5)


def test_without_a_mask_every_token_may_come(id_task):
    env = TextGenerationEnv(**id_task())
    env.reset()
    assert env.action_masks().all() and env.action_masks().shape == (61,)


# --- whole episodes --------------------------------------------------------------------------------------------------


def row(*ids: int, prompt: int, task: Task, logprobs=None) -> Episodes:
    return Episodes(np.array([ids]), np.array([prompt]), np.array([len(ids)]), [task.prompts[1]], logprobs)


def ended(episodes: Episodes, eos: int) -> Episodes:
    """The same, the last token of each replaced by an EOS."""
    episodes.input_ids[np.arange(len(episodes)), episodes.lengths - 1] = eos
    return episodes


def test_junk_in_the_padding_of_logprobs_is_not_read(id_task):
    task = Task(**id_task(beta=1.0))
    ids, mask = np.array([[6, 5, EOS], [6, EOS, 5]]), np.array([[True, True], [True, False]])
    for junk in (np.nan, 1e30, -np.inf):
        given = np.where(mask, -1.0, junk)
        scored = score_episodes(task, Episodes(ids, np.array([1, 1]), np.array([3, 2]), 2 * [task.prompts[1]], given))
        assert (
            np.isfinite(scored.rewards).all() and scored.rewards[1, 1] == 0 and scored.logprobs[1].tolist() == [-1, 0]
        )


def test_a_truncated_text_is_paid_nothing(id_task):
    task = Task(**id_task(cap_truncates=True, beta=0.0, max_new_tokens=2, reward=Judge()))
    scored = score_episodes(task, row(6, 5, 6, prompt=1, task=task))
    assert (scored.scores, scored.ended, scored.rewards.tolist()) == ([0.0], [False], [[0.0, 0.0]])
    assert score_episodes(task, row(6, 5, EOS, prompt=1, task=task)).rewards.tolist() == [[0.0, 2.5]]


def test_no_episodes_have_no_rewards(id_task):
    task = Task(**id_task(reward=Judge()))
    empty = Episodes(np.zeros((0, 4), np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64), [])
    scored = score_episodes(task, empty)
    assert scored.rewards.shape == (0, 0) and scored.scores.shape == (0,)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_rows_do_not_know_of_each_other(id_task, make_episodes, seed):
    task = Task(**id_task(eos_token_id=60, max_new_tokens=7))
    episodes = ended(make_episodes(np.random.default_rng(seed), rows=5, response=6, vocab_size=60), 60)
    together = score_episodes(task, episodes)
    for i in range(5):
        alone = score_episodes(task, episodes[np.array([i])])
        t = alone.rewards.shape[1]
        np.testing.assert_allclose(together.rewards[i, :t], alone.rewards[0], atol=1e-5)
        assert together.scores[i] == alone.scores[0]


def test_the_kl_report_is_the_mean_per_episode(id_task, make_episodes, rng):
    task = Task(**id_task(temperature=0.7))
    episodes = make_episodes(rng, rows=6)
    k1 = k2 = k3 = full = 0.0
    for ids, p, n in zip(episodes.input_ids, episodes.prompt_lengths, episodes.lengths, strict=True):
        with torch.no_grad():
            pi, ref = (
                m(input_ids=torch.tensor(ids[None, :n])).logits[0, p - 1 : n - 1] for m in (task.model, task.reference)
            )
        full += float(full_kl(pi.double(), ref.double(), 0.7).sum())
        logs = [torch.log_softmax(x.double() / 0.7, -1)[torch.arange(n - p), ids[p:n]] for x in (pi, ref)]
        x = (logs[0] - logs[1]).numpy()
        k1, k2, k3 = k1 + x.sum(), k2 + (x**2 / 2).sum(), k3 + (np.exp(-x) - 1 + x).sum()
    report = measure_kl(task, episodes)
    expected = {"k1": k1 / 6, "k2": k2 / 6, "k3": k3 / 6, "full": full / 6}
    assert report == pytest.approx(expected, rel=1e-4)
    same = measure_kl(Task(**id_task(model=copy.deepcopy(task.model), reference=None)), episodes)
    assert same == pytest.approx({"k1": 0, "k2": 0, "k3": 0, "full": 0}, abs=1e-5)


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_how_prompts_are_read_is_an_option_of_the_task(text_task, tokenizer):
    rows = [{"story": "a good film", "prompt": "the answer"}, {"story": "the end", "prompt": "x"}]
    task = Task(**text_task(prompts=rows, prompt_column="story", max_prompt_tokens=2, overflow="truncate"))
    ids = [tokenizer(row["story"])["input_ids"] for row in rows]
    assert [p.ids.tolist() for p in task.prompts] == [row[-2:] for row in ids] and max(map(len, ids)) > 2
    assert [p.columns["prompt"] for p in task.prompts] == ["the answer", "x"]
    with pytest.raises(ConfigurationError, match="overflow must be one of 'error', 'truncate'"):
        Task(**text_task(overflow="drop"))


@pytest.mark.parametrize("add", [True, False])
def test_special_tokens_are_added_to_every_prompt_or_to_none(add, text_task, tokenizer):
    """Those of the pool, those given to reset, and those given to `load_prompts` alike."""
    tokenizer = copy.deepcopy(tokenizer)
    end = [("<|end|>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|end|> $A", special_tokens=end)
    tokenizer.bos_token = "<|end|>"
    env = TextGenerationEnv(**text_task(tokenizer=tokenizer, add_special_tokens=add, max_prompt_tokens=12))
    bare = tokenizer("a good film", add_special_tokens=False)["input_ids"]
    expected = [tokenizer.bos_token_id, *bare] if add else bare
    assert env.task.prompts[0].ids.tolist() == env.task.load_prompts(["a good film"])[0].ids.tolist() == expected
    observation, _ = env.reset(options={"prompt": "a good film"})
    assert observation["input_ids"][: observation["length"][0]].tolist() == expected


def test_an_environment_begins_with_chats(text_task, tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}answer:"
    chat = [{"role": "user", "content": "a good film"}]
    env = TextGenerationEnv(**text_task(tokenizer=tokenizer, prompts=[chat], max_prompt_tokens=40))
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    for options in (None, {"prompt": chat}):
        observation, _ = env.reset(options=options)
        assert observation["input_ids"][: observation["length"][0]].tolist() == ids
