"""Preference data, the reward model made of a causal LM, and its training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from letters import letter_tokenizer
from saved_folders import edit_json, files_of, flip, sign
from transformers import (
    AutoModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from lm_env.errors import (
    CheckpointCorruptError,
    CheckpointMismatchError,
    CheckpointWriteError,
    ConfigurationError,
    ModelLoadError,
    NonFiniteError,
    RewardError,
    UnsupportedModelError,
)
from lm_env.models.inputs import pad_right
from lm_env.objective.rewards import score_responses
from lm_env.storage import write_folder
from reward_models import (
    Comparison,
    Length,
    RewardModel,
    ScalarHeadModel,
    label_comparisons,
    pairwise_loss,
    train_reward_model,
)

LETTERS = "abcdefgh"
BOS, EOS = 8, 9  # the eos is the pad too


TOKENIZER = letter_tokenizer(LETTERS, pad_token="</s>")
IDS = {"vocab_size": 10, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": EOS}


def causal_lm(kind: str = "gpt2", seed: int = 0, dropout: float = 0.0):
    torch.manual_seed(seed)
    if kind == "gpt2":
        dropouts = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
        return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=32, **dropouts, **IDS))
    if kind == "llama":
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
        return LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=32, **IDS))
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 48}
    return OPTForCausalLM(OPTConfig(**sizes, word_embed_proj_dim=16, max_position_embeddings=32, **IDS))


def reward_model(kind: str = "gpt2", seed: int = 0, **arguments) -> RewardModel:
    return RewardModel.from_causal_lm(causal_lm(kind, seed), TOKENIZER, seed=seed, **arguments)


def random_texts(rng: np.random.Generator, count: int, lengths: tuple[int, int] = (1, 9)) -> list[str]:
    return ["".join(rng.choice(list(LETTERS), rng.integers(*lengths))) for _ in range(count)]


def planted(seed: int, count: int, judge) -> list[Comparison]:
    rng = np.random.default_rng(seed)
    return label_comparisons(*(random_texts(rng, count) for _ in range(3)), judge)


def weights(model: RewardModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.network.state_dict().items()}


# -- the loss --------------------------------------------------------------------------------------
def test_pairwise_loss_golden():
    zeros = torch.zeros(5)
    assert pairwise_loss(zeros, zeros).item() == pytest.approx(math.log(2), abs=1e-7)
    assert pairwise_loss(zeros + 7, zeros + 7).item() == pytest.approx(math.log(2), abs=1e-7)
    # Margins 2 and -1: (log(1 + e^-2) + log(1 + e^1)) / 2.
    loss = pairwise_loss(torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0]))
    assert loss.item() == pytest.approx((0.126928 + 1.313262) / 2, abs=1e-6)
    # Far apart it is linear and finite, not log(0).
    assert pairwise_loss(torch.tensor([-500.0]), torch.tensor([500.0])).item() == pytest.approx(1000)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20)), min_size=1, max_size=8), st.floats(-50, 50))
def test_pairwise_loss_is_its_formula_and_sees_differences_only(margins, shift):
    chosen, rejected = torch.tensor(margins, dtype=torch.float64).T
    expected = np.mean([-math.log(1 / (1 + math.exp(-(a - b)))) for a, b in margins])
    assert pairwise_loss(chosen, rejected).item() == pytest.approx(expected, rel=1e-6, abs=1e-12)
    shifted = pairwise_loss(chosen + shift, rejected + shift)
    assert shifted.item() == pytest.approx(expected, rel=1e-6, abs=1e-12)


# -- labels ----------------------------------------------------------------------------------------
def test_label_comparisons_drops_ties_and_keeps_the_tokens():
    comparisons = label_comparisons(
        ["p", "q", "r"],
        ["aa", "b", "c"],
        ["a", "bbb", "d"],
        Length(unit="characters"),
        prompt_ids=[[1], [2], [3]],
        response_ids_a=[[0, 0], [1], [2]],
        response_ids_b=[[0], [1, 1, 1], [3]],
    )
    assert comparisons == [
        Comparison("p", "aa", "a", [1], [0, 0], [0]),
        Comparison("q", "bbb", "b", [2], [1, 1, 1], [1]),
    ]


def test_the_judge_sees_ids_and_columns():
    seen = []

    def judge(prompts, responses, prompt_ids, response_ids, answer):
        seen.append((responses, prompt_ids, response_ids, answer))
        return [len(ids) for ids in response_ids]

    label_comparisons(
        ["p"], ["a"], ["b"], judge, prompt_ids=[[5]], response_ids_a=[[1]], response_ids_b=[[2, 2]], answer=["4"]
    )
    assert seen == [(["a"], [[5]], [[1]], ["4"]), (["b"], [[5]], [[2, 2]], ["4"])]
    # Without ids the judge gets none, not a list of None.
    assert label_comparisons(["p"], ["ab"], ["a"], Length(unit="characters")) == [Comparison("p", "ab", "a")]


def test_label_comparisons_refuses_lists_that_do_not_match():
    with pytest.raises(ConfigurationError, match="1 responses_b for 2 prompts"):
        label_comparisons(["p", "q"], ["a", "b"], ["a"], Length(unit="words"))
    with pytest.raises(ConfigurationError, match="3 answer for 1 prompts"):
        label_comparisons(["p"], ["a"], ["b"], Length(unit="words"), answer=[1, 2, 3])


# -- the network -----------------------------------------------------------------------------------
KINDS = ["gpt2", "llama", "opt"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fill", [0, EOS])
def test_padding_changes_nothing(kind, fill):
    model = reward_model(kind)
    rows = [[BOS, 1, 2, EOS], [BOS, 3], [BOS, 4, 5, 6, 7, 0, EOS, EOS], [EOS]]
    single = [model.network(torch.tensor([row]), torch.tensor([len(row)])).item() for row in rows]
    batch = model.network(*pad_right(rows, model.device, fill=fill))
    np.testing.assert_allclose(batch.detach(), single, rtol=1e-5, atol=1e-6)
    assert batch.dtype == torch.float32
    # An extra eos at the end is a token of its own, although it is the pad: it is read.
    assert model.score_rows([[BOS, 3, EOS]]) != model.score_rows([[BOS, 3, EOS, EOS]])


@pytest.mark.parametrize("kind", KINDS)
def test_the_score_is_the_head_at_the_last_token(kind):
    lm = causal_lm(kind)
    model = RewardModel.from_causal_lm(lm, TOKENIZER)
    ids = torch.tensor([[BOS, 1, 2, EOS]])
    with torch.no_grad():
        hidden = lm.eval().base_model(ids).last_hidden_state[0, -1]
    expected = hidden @ model.network.head.weight[0] + model.network.head.bias
    assert model(["bc"], [""])[0] == pytest.approx(expected.item(), rel=1e-5)


def test_the_head_is_drawn_from_its_seed_with_the_right_spread():
    width = 1023
    trunk = GPT2LMHeadModel(GPT2Config(n_embd=width, n_layer=0, n_head=1, **IDS)).base_model
    head = ScalarHeadModel(trunk, seed=1).head
    assert head.weight.std().item() == pytest.approx(1 / math.sqrt(width + 1), rel=0.1)
    assert head.bias.item() == 0
    torch.manual_seed(123)
    assert torch.equal(ScalarHeadModel(trunk, seed=1).head.weight, head.weight)
    assert not torch.equal(ScalarHeadModel(trunk, seed=2).head.weight, head.weight)


def test_the_trunk_is_a_copy_that_trains():
    lm = causal_lm("gpt2").requires_grad_(False).bfloat16()
    before = {k: v.clone() for k, v in lm.state_dict().items()}
    model = RewardModel.from_causal_lm(lm, TOKENIZER)
    train_reward_model(model, planted(0, 20, Length(unit="characters")), learning_rate=0.1)
    assert all(torch.equal(v, before[k]) for k, v in lm.state_dict().items())
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in lm.parameters())
    assert not torch.equal(model.network.trunk.wte.weight, before["transformer.wte.weight"].float())


# -- as a reward function --------------------------------------------------------------------------
def test_ids_are_taken_as_they_are_and_text_gets_its_eos():
    model = reward_model()
    text = model.encode(["ab", ""], ["c", ""])
    assert text == [[BOS, 0, 1, 2, EOS], [BOS, EOS]]
    # A response that the length cap has cut, and one that is still being written.
    assert model.encode(["a"], ["bc"], [[BOS, 0]], [[1, 2]]) == [[BOS, 0, 1, 2, EOS]]
    assert model.encode(["a"], ["bc"], [[BOS, 0]], [[1, 2]], finished=[False]) == [[BOS, 0, 1, 2]]
    # A prompt without the beginning that text would get, and with special tokens that its text spells out.
    assert model.encode(["a"], ["bc"], [[0]], [[1, 2]]) == [[0, 1, 2, EOS]]
    assert model.encode(["</s>a"], ["bc"], [[BOS, EOS, 0]], [[1, 2]]) == [[BOS, EOS, 0, 1, 2, EOS]]
    # Some with ids, some without.
    mixed = model.encode(["ab", "h"], ["b", "c"], [None, [7]], [[1], None])
    assert mixed == [[BOS, 0, 1, 1, EOS], [7, 2, EOS]]
    from_text = score_responses(model, ["ab"], ["c"], {})
    columns = {"prompt_ids": [[BOS, 0, 1]], "response_ids": [np.array([2, EOS])], "answer": ["unused"]}
    np.testing.assert_array_equal(score_responses(model, ["ab"], ["c"], columns), from_text)


def test_ids_of_another_tokenizer_are_not_read():
    """A policy with a tokenizer of its own hands over ids that say something else, or nothing, in this one."""
    model = reward_model()
    text = model.encode(["ab"], ["cde"])
    for ids in ([0, 1, 2], [70, 71], [2, 3], [-1]):
        assert model.encode(["ab"], ["cde"], [[0, 1]], [ids]) == text
        assert model.encode(["ab"], ["cde"], None, [ids]) == text
    assert model.encode(["ab"], ["cde"], [[0, 1]], [[2, 3, 4, EOS]]) == [[0, 1, 2, 3, 4, EOS]]
    # The prompt's ids are another tokenizer's, whatever the response's are.
    for ids in ([5], [0, 1, 2], [70], [-1], []):
        assert model.encode(["ab"], ["cde"], [ids], [[2, 3, 4]]) == text
        assert model.encode(["ab"], ["cde"], [ids]) == text
        assert model.encode(["ab"], [""], [ids], [[EOS]]) == model.encode(["ab"], [""])
    # There is no text that could tell whose ids they are.
    assert model.encode([""], [""], [[5]], [[6]]) == model.encode([""], [""])


def test_a_long_row_keeps_its_end():
    model = reward_model(max_length=4)
    assert model.encode(["abcdef"], ["gh"]) == [[5, 6, 7, EOS]]
    assert reward_model().max_length == 32
    for length in (0, 33):
        with pytest.raises(ConfigurationError, match=rf"max_length={length} is outside 1\.\.32"):
            reward_model(max_length=length)


def test_a_row_needs_a_token():
    ids = {"prompt_ids": [[1], []], "response_ids": [[], []]}
    with pytest.raises(RewardError, match="sample 1 has neither"):
        score_responses(reward_model(), ["b", ""], ["", ""], {**ids, "response_finished": [False] * 2})
    assert len(score_responses(reward_model(), ["b", ""], ["", ""], ids)) == 2  # an EOS is a token
    with pytest.raises(ConfigurationError, match="1 response_ids for 2 prompts"):
        reward_model().encode(["a", "b"], ["", ""], None, [[1]])
    assert reward_model()([], []).shape == (0,)


@pytest.mark.parametrize("budget", [1, 20, 10**6])
def test_scores_come_back_in_order_whatever_the_batches(budget):
    model = reward_model("llama")
    texts = random_texts(np.random.default_rng(0), 30)
    expected = np.array([model([""], [text])[0] for text in texts])
    model.batch_tokens = budget
    np.testing.assert_allclose(model([""] * 30, texts), expected, rtol=1e-5, atol=1e-6)
    assert len(np.unique(expected.round(4))) > 15


def test_normalize_gives_mean_0_and_std_1_and_keeps_the_ranking():
    model = reward_model()
    texts = random_texts(np.random.default_rng(1), 64)
    prompts = [""] * 64
    raw = model(prompts, texts)
    model.normalize(prompts[:20], texts[:20])
    for _ in range(2):  # from what other samples gave, and once more
        model.normalize(prompts, texts)
        scores = model(prompts, texts).astype(np.float64)
        assert abs(scores.mean()) <= 1e-5
        assert abs(scores.std() - 1) <= 1e-5
        np.testing.assert_array_equal(np.argsort(scores, kind="stable"), np.argsort(raw, kind="stable"))
    with pytest.raises(ConfigurationError, match="no spread"):
        reward_model().normalize(["", ""], ["a", "a"])


@pytest.mark.parametrize(
    ("lm", "tokenizer", "error"),
    [
        (causal_lm(), None, ConfigurationError),
        (torch.nn.Linear(2, 2), TOKENIZER, UnsupportedModelError),
        ("nobody/nothing", None, ModelLoadError),
    ],
    ids=["no tokenizer", "no trunk", "no such name"],
)
def test_what_makes_no_reward_model_is_refused(lm, tokenizer, error):
    with pytest.raises(error):
        RewardModel.from_causal_lm(lm, tokenizer)


# -- save and load ---------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load_give_the_same_scores(kind, tmp_path):
    model = reward_model(kind, max_length=7)
    train_reward_model(model, planted(0, 30, Length(unit="characters")), learning_rate=1e-2)
    texts = random_texts(np.random.default_rng(2), 20)
    model.normalize([""] * 20, texts)
    model.save(tmp_path / "rm")
    loaded = RewardModel.load(tmp_path / "rm")
    np.testing.assert_array_equal(loaded([""] * 20, texts), model([""] * 20, texts))
    assert loaded.max_length == 7
    assert all(torch.equal(v, weights(loaded)[k]) for k, v in weights(model).items())
    # The trunk is what transformers loads, and nothing in the folder is a pickle.
    assert type(AutoModel.from_pretrained(tmp_path / "rm")) is type(model.network.trunk)
    assert {path.suffix for path in (tmp_path / "rm").iterdir()} <= {".json", ".safetensors", ".txt", ".jinja"}


def test_a_causal_lm_is_taken_from_a_folder(tmp_path):
    lm = causal_lm("llama")
    lm.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    named, live = RewardModel.from_causal_lm(tmp_path), RewardModel.from_causal_lm(lm, TOKENIZER)
    np.testing.assert_array_equal(named(["a"], ["b"]), live(["a"], ["b"]))


def test_one_flipped_bit_in_any_file_is_refused(tmp_path):
    folder = reward_model().save(tmp_path / "rm")
    for name in files_of(folder):
        content = (folder / name).read_bytes()
        flip(folder / name, len(content) // 2)
        with pytest.raises(CheckpointCorruptError):
            RewardModel.load(folder)
        (folder / name).write_bytes(content)
    RewardModel.load(folder)


@pytest.mark.parametrize("name", ["head.safetensors", "config.json", "tokenizer.json"])
def test_a_missing_file_is_named(name, tmp_path):
    folder = reward_model().save(tmp_path / "rm")
    (folder / name).unlink()
    with pytest.raises(CheckpointCorruptError, match=f"{name} is missing"):
        RewardModel.load(folder)


def test_a_reward_model_is_saved_over_another(tmp_path):
    first, second = reward_model(seed=0), reward_model("llama", seed=1)
    first.save(tmp_path / "rm")
    (tmp_path / "rm" / "notes.txt").write_text("the good one")
    second.save(tmp_path / "rm")
    texts = random_texts(np.random.default_rng(2), 20)
    np.testing.assert_array_equal(RewardModel.load(tmp_path / "rm")([""] * 20, texts), second([""] * 20, texts))
    assert (tmp_path / "rm" / "notes.txt").read_text() == "the good one"
    assert [p.name for p in tmp_path.iterdir()] == ["rm"]


@pytest.mark.parametrize("part", ["trunk", "head"])
def test_a_weight_that_is_infinite_is_not_saved(part, tmp_path):
    model = reward_model()
    with torch.no_grad():
        next(getattr(model.network, part).parameters()).view(-1)[0] = torch.inf
    with pytest.raises(NonFiniteError, match=rf"{part}.* holds NaN or infinite weights, so nothing was saved"):
        model.save(tmp_path / "rm")
    assert not (tmp_path / "rm").exists()


def test_a_folder_of_others_is_not_written_into(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointWriteError, match="was not saved by this package"):
        reward_model().save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    "edit",
    [
        lambda old: {"unknown": 1},
        lambda old: {**old, "max_length": "7"},
        lambda old: {**old, "max_length": [7]},
        lambda old: {**old, "batch_tokens": 0},
        lambda old: {**old, "batch_tokens": None},
        lambda old: {**old, "version": "1"},
        lambda old: {**old, "network": 1},
        lambda old: [old],
        lambda old: None,
    ],
)
def test_wrong_settings_with_right_checksums_are_refused(edit, tmp_path):
    folder = reward_model().save(tmp_path / "rm")
    edit_json(folder, "reward_model.json", edit)
    with pytest.raises(CheckpointCorruptError, match=r"reward_model\.json"):
        RewardModel.load(folder)


def test_settings_of_a_later_version_are_named(tmp_path):
    folder = reward_model().save(tmp_path / "rm")
    edit_json(folder, "reward_model.json", lambda old: {**old, "version": 3, "shape": "wide"})
    with pytest.raises(CheckpointMismatchError, match="version 3"):
        RewardModel.load(folder)


@pytest.mark.parametrize("head", [{"head.weight": torch.zeros(1, 32)}, {"head.weight": torch.zeros(1, 48)}], ids=str)
def test_a_head_that_does_not_fit_is_refused(head, tmp_path):
    from safetensors.torch import save_file

    folder = reward_model().save(tmp_path / "rm")
    save_file(head, folder / "head.safetensors")
    sign(folder)
    with pytest.raises(CheckpointCorruptError, match="no whole reward model"):
        RewardModel.load(folder)


def test_a_folder_without_a_reward_model_is_named(model_folder, tmp_path):
    with pytest.raises(ModelLoadError, match=r"no reward model was saved at .*tiny"):
        RewardModel.load(model_folder)
    with pytest.raises(ModelLoadError, match=r"no reward model was saved at .*nothing"):
        RewardModel.load(tmp_path / "nothing")
    write_folder(tmp_path / "other", lambda folder: (folder / "notes.txt").write_text(""))
    with pytest.raises(ModelLoadError, match="holds no reward model"):
        RewardModel.load(tmp_path / "other")


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointWriteError, match="cannot write"):
        reward_model().save(tmp_path / "file")


# -- training --------------------------------------------------------------------------------------
def count_of_a(prompts, responses):
    return [text.count("a") for text in responses]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_planted_preference_is_learned(seed):
    model = reward_model(["gpt2", "llama", "gpt2"][seed], seed)
    comparisons = planted(seed, 1200, count_of_a)
    report = train_reward_model(model, comparisons, learning_rate=1e-2, epochs=2, held_out_fraction=0.25, seed=seed)
    assert report.held_out_accuracy > 0.9
    assert report.train_accuracy > 0.9
    assert report.losses[0] == pytest.approx(math.log(2), abs=0.35)
    assert np.mean(report.losses[-5:]) < 0.3


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_without_a_signal_held_out_accuracy_is_near_chance(seed):
    coins = np.random.default_rng(100 + seed)
    comparisons = planted(seed, 800, lambda prompts, responses: coins.random(len(prompts)))
    report = train_reward_model(
        reward_model("gpt2", seed), comparisons, learning_rate=1e-2, epochs=2, held_out_fraction=0.5, seed=seed
    )
    # About 400 held out: chance is .5 with a standard deviation of .025.
    assert abs(report.held_out_accuracy - 0.5) < 0.1
    assert np.mean(report.losses[-5:]) > 0.5


def test_training_is_deterministic_by_its_seed():
    comparisons = planted(0, 60, count_of_a)

    def run(seed):
        torch.manual_seed(int(np.random.default_rng().integers(1000)))  # the global state has no say
        model = RewardModel.from_causal_lm(causal_lm(dropout=0.5), TOKENIZER)
        report = train_reward_model(model, comparisons, learning_rate=1e-2, batch_size=8, seed=seed)
        return report, weights(model)

    (report, first), (again, second), (other, third) = run(0), run(0), run(1)
    assert report == again != other
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not all(torch.equal(first[k], third[k]) for k in first)


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_add_up_to_the_batch(kind):
    comparisons = planted(0, 24, count_of_a)
    results = []
    for budget in (1, 60, 10**6):
        model = reward_model(kind)
        model.batch_tokens = budget
        # In float64, for Adam makes steps of rounding errors where a gradient is 0.
        model.network.double()
        report = train_reward_model(model, comparisons, learning_rate=1e-3, batch_size=8, held_out_fraction=0.0)
        results.append((report.losses, weights(model)))
    for losses, state in results[:2]:
        np.testing.assert_allclose(losses, results[2][0], rtol=1e-9)
        for name, value in state.items():
            torch.testing.assert_close(value, results[2][1][name], rtol=1e-6, atol=1e-9)


def test_training_is_adam_on_the_formula():
    comparisons = planted(0, 10, count_of_a)
    model, by_hand = reward_model(), reward_model()
    for each in (model, by_hand):
        each.network.double()
    report = train_reward_model(model, comparisons, learning_rate=1e-2, epochs=4, held_out_fraction=0.0)

    prompts = [c.prompt for c in comparisons]
    chosen = pad_right(by_hand.encode(prompts, [c.chosen for c in comparisons]), by_hand.device)
    rejected = pad_right(by_hand.encode(prompts, [c.rejected for c in comparisons]), by_hand.device)
    optimizer = torch.optim.Adam(by_hand.network.parameters())
    losses = []
    for update in range(4):
        margins = by_hand.network(*chosen) - by_hand.network(*rejected)
        loss = torch.log(1 + torch.exp(-margins)).mean()
        losses.append(loss.item())
        gradient = torch.autograd.grad(loss, list(by_hand.network.parameters()))
        norm = torch.cat([g.flatten() for g in gradient]).norm()
        for parameter, g in zip(by_hand.network.parameters(), gradient, strict=True):
            parameter.grad = g / max(1.0, norm.item())
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 + math.cos(math.pi * update / 4)) / 2
        optimizer.step()
    assert report.losses == pytest.approx(losses, rel=1e-5)
    assert report.held_out_accuracy is None
    for name, value in weights(model).items():
        torch.testing.assert_close(value, weights(by_hand)[name], rtol=1e-4, atol=1e-6)


def test_accuracy_counts_ties_half():
    model = reward_model()
    torch.nn.init.zeros_(model.network.head.weight)
    model.network.requires_grad_(False)
    model.network.head.bias.requires_grad_(True)  # a constant scorer, and nothing to learn
    report = train_reward_model(model, planted(0, 20, count_of_a), held_out_fraction=0.5)
    assert report.train_accuracy == report.held_out_accuracy == 0.5
    assert report.losses == [pytest.approx(math.log(2), abs=1e-6)]


def test_sampled_tokens_are_what_is_trained_on():
    # The texts are the same; the tokens carry the preference: one response has a special token in it.
    rng, model = np.random.default_rng(0), reward_model()
    comparisons = []
    for _ in range(200):
        ids = rng.integers(0, 8, 3).tolist()
        text = "".join(LETTERS[i] for i in ids)
        comparisons.append(Comparison("a", text, text, [BOS, 0], [*ids[:2], BOS, *ids[2:]], ids))
    rows = [[*c.prompt_ids, *ids, EOS] for c in comparisons for ids in (c.chosen_ids, c.rejected_ids)]
    scores = torch.tensor(model.score_rows(rows)).reshape(-1, 2)
    settings = {"learning_rate": 1e-2, "epochs": 3, "batch_size": 200}
    report = train_reward_model(model, comparisons, held_out_fraction=0.0, **settings)
    assert report.losses[0] == pytest.approx(pairwise_loss(*scores.T).item(), rel=1e-5)
    report = train_reward_model(reward_model(), comparisons, learning_rate=1e-2, epochs=2, held_out_fraction=0.25)
    assert report.held_out_accuracy > 0.9


def test_whole_prompts_are_held_out():
    # Each prompt has its own favorite, so only prompts seen in training can be answered.
    rng = np.random.default_rng(0)
    prompts = ["".join(p) for p in rng.choice(list(LETTERS), (20, 6))]
    comparisons = []
    for prompt in prompts:
        good, bad = rng.permutation(list("ab"))
        comparisons += [Comparison(prompt, good, bad)] * 10
    report = train_reward_model(
        reward_model(), comparisons, learning_rate=5e-3, epochs=40, held_out_fraction=0.25, batch_size=32
    )
    assert report.train_accuracy > 0.95
    # Five prompts held out whole, each ranked right or wrong: a multiple of a fifth.
    assert report.held_out_accuracy * 5 == pytest.approx(round(report.held_out_accuracy * 5))
    assert report.held_out_accuracy < 0.95


@pytest.mark.parametrize(
    "arguments",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"held_out_fraction": 1.0},
        {"held_out_fraction": -0.1},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(arguments):
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        train_reward_model(reward_model(), planted(0, 20, count_of_a), **arguments)


@pytest.mark.parametrize(("count", "fraction"), [(0, 0.0), (0, 0.1), (1, 0.1), (1, 0.9)])
def test_too_few_comparisons_are_refused(count, fraction):
    with pytest.raises(ConfigurationError, match=f"{count} comparisons are too few"):
        train_reward_model(reward_model(), [Comparison("a", "b", "c")] * count, held_out_fraction=fraction)


def test_a_non_finite_gradient_leaves_the_weights_alone():
    model = reward_model()
    with torch.no_grad():
        model.network.head.bias.fill_(math.nan)
    before = weights(model)
    with pytest.raises(NonFiniteError, match="this step was not taken"):
        train_reward_model(model, planted(0, 20, count_of_a))
    assert all(torch.equal(v, before[k]) for k, v in weights(model).items() if k != "head.bias")
    assert all(p.grad is None for p in model.network.parameters())
