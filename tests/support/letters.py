"""A tokenizer of letters, whose ids can be told by heart."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def letter_tokenizer(letters: str, **special: str) -> PreTrainedTokenizerFast:
    """One token a letter, from 0 on, then <s> and </s>; prompts begin with <s>.

    Args:
        special: further special tokens, such as `pad_token="</s>"`.
    """
    bos, eos = len(letters), len(letters) + 1
    vocabulary = {letter: i for i, letter in enumerate(letters)} | {"<s>": bos, "</s>": eos}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", **special)
