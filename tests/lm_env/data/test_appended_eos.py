"""An EOS that a tokenizer puts behind every text is left out of prompts, in text and in what the tokenizer returned."""

from __future__ import annotations

import warnings

import pytest
from tokenizers import processors

from lm_env import load_prompts


@pytest.fixture
def appending():
    """A tokenizer that writes <s> before and </s> behind each text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"a": 0, "b": 1, "<s>": 2, "</s>": 3}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def ids(source, tokenizer):
    return [p.ids.tolist() for p in load_prompts(source, tokenizer, vocab_size=4, max_prompt_tokens=9)]


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("tensors", [None, "np", "pt"])
def test_an_encoding_is_taken_without_it_and_that_is_said(appending, padding, tensors):
    encoding = appending(["a b", "b"], padding=padding or tensors is not None, return_tensors=tensors)
    with pytest.warns(UserWarning, match=r"its EOS \(3\) behind every text") as caught:
        assert ids(encoding, appending) == [[2, 0, 1], [2, 1]] == ids_of_text(appending)
    assert caught[0].filename == __file__ and len(caught) == 1


def ids_of_text(tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return ids(["a b", "b"], tokenizer)


def test_text_points_at_the_caller_too(appending):
    with pytest.warns(UserWarning, match="behind every text") as caught:
        ids(["a"], appending)
    assert caught[0].filename == __file__


def test_ids_that_one_gives_oneself_stay_as_they_are(appending):
    assert ids([[2, 0, 3]], appending) == [[2, 0, 3]]


def test_an_encoding_without_special_tokens_stays_as_it_is(appending):
    encoding = appending(["a b"], add_special_tokens=False)
    assert ids(encoding, appending) == [[0, 1]]


def test_a_tokenizer_that_appends_none_leaves_an_eos_that_was_written(tokenizer):
    eos = tokenizer.eos_token_id
    encoding = tokenizer([f"a film{tokenizer.eos_token}", tokenizer.eos_token])
    found = load_prompts(encoding, tokenizer, vocab_size=len(tokenizer), max_prompt_tokens=9)
    assert [p.ids[-1] for p in found] == [eos, eos]


def test_it_is_never_all_of_a_prompt(appending):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ids({"input_ids": [[3]]}, appending) == [[3]]
