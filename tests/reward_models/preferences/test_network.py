"""Which state of a text becomes its score: whether a trunk reads from left to right, and rows that begin alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

from agents import PPO
from lm_env.errors import ConfigurationError
from lm_env.models.loading import load_model
from reward_models import RewardModel
from reward_models.preferences.encoding import prefix_groups
from reward_models.preferences.network import ScalarHeadModel, reads_left_to_right

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture
def threads():
    """Sets the number of torch's threads; it is as before afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_the_embedded_model_reads_from_left_to_right_with_any_number_of_threads(threads, number):
    """Two threads share the rows of a batch and round in other ways, so no two rows need be equal to the last bit."""
    threads(number)
    assert ScalarHeadModel(load_model("reviews-3m").model).pooling == "last"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("kind", "config", "causal"), [(LlamaModel, LlamaConfig, True), (BertModel, BertConfig, False)]
)
def test_rounding_does_not_decide(monkeypatch, kind, config, causal, seed):
    """States that come with noise in their last bits, as from another order of summation on each call."""
    torch.manual_seed(seed)
    trunk = kind(config(vocab_size=50, **SMALL))
    noise = torch.Generator().manual_seed(seed)
    forward = trunk.forward

    def rounded(*args, **kwargs):
        found = forward(*args, **kwargs)
        state = found.last_hidden_state
        found.last_hidden_state = state * (1 + 1e-7 * torch.randn(state.shape, generator=noise))
        return found

    monkeypatch.setattr(trunk, "forward", rounded)
    assert reads_left_to_right(trunk) is causal
    assert trunk.training


# -- rows that begin alike ----------------------------------------------------------------------------
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=12))
def test_groups_hold_each_row_once_and_are_as_few_as_can_be(rows):
    groups = prefix_groups(rows)
    assert sorted(index for group in groups for index in group) == list(range(len(rows)))
    for first, *others in groups:
        assert all(rows[first][: len(rows[index])] == rows[index] for index in others)
    alone = {tuple(row) for row in rows if not any(len(o) > len(row) and o[: len(row)] == row for o in rows)}
    assert len(groups) == len(alone)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_unfinished_texts_have_the_scores_that_they_have_alone(monkeypatch, pooling):
    """All beginnings of some texts, in any order, in one forward for each text."""
    rng = np.random.default_rng(0)
    model = RewardModel.from_causal_lm("reviews-3m", seed=1, pooling=pooling)
    whole = [rng.integers(3, 200, size=length).tolist() for length in (3, 9, 12)]
    rows = [row[:end] for row in [*whole, [*whole[1][:4], 5]] for end in range(1, len(row) + 1)]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    alone = [float(model.score_rows([row])[0]) for row in rows]
    rows_read = []
    forward = model.network.forward
    monkeypatch.setattr(model.network, "forward", lambda ids, *rest: rows_read.append(len(ids)) or forward(ids, *rest))
    np.testing.assert_allclose(model.score_rows(rows), alone, rtol=1e-4, atol=1e-5)
    assert sum(rows_read) == 4


# -- the mean over a text -----------------------------------------------------------------------------
def test_the_mean_over_a_text_is_that_of_transformers_own_states(tmp_path):
    model = RewardModel.from_causal_lm("reviews-3m", seed=1, pooling="mean")
    row = [1, 40, 7, 90]
    with torch.no_grad():
        states = model.network.trunk(input_ids=torch.tensor([row])).last_hidden_state[0]
        expected = model.network.head(states.mean(0)).item()
    assert model.score_rows([row])[0] == pytest.approx(expected, rel=1e-4)
    assert model.score_rows([row, [1, 2, 3, 4, 5, 6]])[0] == pytest.approx(expected, rel=1e-4)  # padded
    loaded = RewardModel.load(model.save(tmp_path / "rm"))
    assert loaded.network.pooling == "mean" and loaded.score_rows([row])[0] == pytest.approx(expected, rel=1e-4)
    # transformers' classifiers read the last token: what they would load is the trunk alone.
    assert "ForSequenceClassification" not in (tmp_path / "rm" / "config.json").read_text()


def test_a_model_that_reads_the_mean_is_no_critic():
    model = RewardModel.from_causal_lm("reviews-3m", pooling="mean")
    with pytest.raises(ConfigurationError, match="critic='score'"):
        PPO("lm_env/Sentiment-v0", critic=model)
