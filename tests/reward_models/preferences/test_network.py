"""Whether a trunk reads from left to right, which decides how its states become a score."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

from lm_env.models.loading import load_model
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
