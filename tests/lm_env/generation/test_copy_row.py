"""A row that is copied, within a decoder or into another one, goes on as if it had been read there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lm_env.generation.decoders import make_decoder
from lm_env.generation.step_logprobs import StepLogprobs

KINDS = ["gpt2", "llama", "qwen3", "mistral", "mamba"]
TEXTS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]])
LENGTHS = np.array([5, 3])


def expected(model: torch.nn.Module, texts: list[list[int]]) -> torch.Tensor:
    """The next token's logits, each text by itself."""
    with torch.no_grad():
        return torch.stack([model(input_ids=torch.tensor([text])).logits[0, -1] for text in texts])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("own", [True, False])
def test_a_copied_row_goes_on(kind, own, make_lm):
    model = make_lm(kind)
    source = make_decoder(model, 4, 12)
    source.start(np.array([0, 2]), TEXTS, LENGTHS)
    source.step(np.array([0, 2]), np.array([7, 8]))
    target = source if own else make_decoder(model, 4, 12)
    rows = np.array([0, 1, 3])
    target.copy_row(source, 0, rows, 6)
    assert target.lengths.tolist() == [6, 6, 4 if own else 0, 6]
    outputs = target.step(rows, np.array([10, 11, 12]))
    texts = [[3, 1, 4, 1, 5, 7, token] for token in (10, 11, 12)]
    torch.testing.assert_close(outputs.logits, expected(model, texts), atol=1e-5, rtol=1e-5)
    outputs = source.step(np.array([2]), np.array([13]))
    torch.testing.assert_close(outputs.logits, expected(model, [[9, 2, 6, 8, 13]]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_can_be_cut_back(kind, make_lm):
    model = make_lm(kind)
    decoder = make_decoder(model, 2, 12)
    decoder.start(np.array([0, 1]), TEXTS, LENGTHS)
    decoder.copy_row(decoder, 0, np.array([0, 1]), 2)
    assert decoder.lengths.tolist() == [2, 2]
    outputs = decoder.step(np.array([0, 1]), np.array([7, 8]))
    torch.testing.assert_close(outputs.logits, expected(model, [[3, 1, 7], [3, 1, 8]]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_holds_fewer_tokens_leaves_the_others_empty(kind, make_lm):
    model = make_lm(kind)
    source, target = make_decoder(model, 2, 12), make_decoder(model, 2, 12)
    target.copy_row(source, 0, np.array([0]), 3)  # which has never run
    source.start(np.array([0, 1]), TEXTS, LENGTHS)
    target.copy_row(source, 1, np.array([1]), 4)
    assert target.lengths.tolist() == [0, 0]
    outputs = target.start(np.array([0, 1]), TEXTS, LENGTHS)
    torch.testing.assert_close(outputs.logits, expected(model, [[3, 1, 4, 1, 5], [9, 2, 6]]), atol=1e-5, rtol=1e-5)


def test_logprobs_of_a_copied_row_are_those_of_the_weights_of_now(make_lm):
    model = make_lm("llama")
    source, target = StepLogprobs(model, 1, 12, 1.0), StepLogprobs(model, 2, 12, 1.0)
    ids = np.zeros((2, 12), dtype=np.int64)
    ids[:, :5] = [3, 1, 4, 1, 5]
    source.logprobs(np.array([0]), np.array([7]), ids[:1], np.array([5]))
    ids[:, 5] = 7
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    target.copy_row(source, 0, np.array([0, 1]), 5)
    logprobs = target.logprobs(np.array([0, 1]), np.array([8, 9]), ids, np.array([6, 6]))
    wanted = torch.log_softmax(expected(model, [[3, 1, 4, 1, 5, 7]])[0], -1)[[8, 9]]
    np.testing.assert_allclose(logprobs, wanted, atol=1e-5)
