"""The warning about prompts that the tokenizer cannot read, and its silence about all others."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lm_env.data.prompts import load_prompts

WORDS = {"a": 0, "b": 1, "<unk>": 2, "<s>": 3}


def tokenizer(**special) -> PreTrainedTokenizerFast:
    """One token per word of `WORDS`, with a BOS in front."""
    backend = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", **{"unk_token": "<unk>", **special})


def load(texts, **special):
    return load_prompts(texts, tokenizer(**special), vocab_size=4, max_prompt_tokens=64)


def test_a_prompt_of_nothing_but_unknown_tokens_is_told_with_the_share_of_all():
    with pytest.warns(
        UserWarning, match=r"^20% of the prompts' tokens .* and prompt 1 holds nothing else \(1 of 2"
    ) as w:
        load(["a b a b a b a b", "שלום мир"])
    assert w[0].filename == __file__ and len(w) == 1


def test_many_unknown_tokens_are_told():
    with pytest.warns(UserWarning, match=r"^50% of the prompts' tokens are unknown to the tokenizer: the model"):
        load(["a x", "b y"])


def test_a_few_are_not():
    load(["a b " * 10 + "x"])


def test_a_tokenizer_whose_unknown_token_is_its_eos_is_not_judged():
    """As GPT-2's, which is never unknown in a text."""
    load(["x y"], eos_token="<unk>")


def test_ids_that_one_gives_oneself_are_not_judged():
    load([[2, 2]])
