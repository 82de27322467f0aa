"""Tiny language models with a token per character: their tokenizer, their training, and how they are saved.

`pretrain_arithmetic.py` and `pretrain_walks.py` make the models of two tasks with it.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

EOS, UNKNOWN = "</s>", "?"
IGNORED = -100

Rows = list[tuple[str, str]]
"""(prompt, response) each."""


def make_tokenizer(characters: str) -> PreTrainedTokenizerFast:
    """A token per character; the EOS, which also pads, is 0, and a character that is not among them reads as `?`."""
    vocabulary = {token: index for index, token in enumerate([EOS, UNKNOWN, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS, clean_up_tokenization_spaces=False
    )


def make_model(vocab_size: int, *, layers: int, dim: int, positions: int) -> GPT2LMHeadModel:
    """A GPT-2 without dropout; its weights are drawn by torch's seed."""
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=positions,
        n_embd=dim,
        n_layer=layers,
        n_head=max(1, dim // 32),
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return GPT2LMHeadModel(config)


def encode(tokenizer: PreTrainedTokenizerFast, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, labels), int64 (B, L): the labels are the response and its EOS alone."""
    prompts, responses = (tokenizer(list(texts))["input_ids"] for texts in zip(*rows, strict=True))
    pairs = [(prompt, [*response, 0]) for prompt, response in zip(prompts, responses, strict=True)]
    width = max(len(p) + len(r) for p, r in pairs)
    ids = torch.zeros(len(pairs), width, dtype=torch.long)
    labels = torch.full((len(pairs), width), IGNORED)
    for i, (prompt, response) in enumerate(pairs):
        whole = torch.tensor([*prompt, *response])
        ids[i, : len(whole)] = whole
        labels[i, len(prompt) : len(whole)] = whole[len(prompt) :]
    return ids, labels


def fit(
    model: Any, tokenizer: PreTrainedTokenizerFast, draw: Callable[[int], Rows], *, steps: int, batch: int, rate: float
) -> list[float]:
    """Minimize the negative log-likelihood of drawn responses; returns the loss of each step, nats per token.

    Args:
        draw: so many fresh rows.
        rate: the step size of Muon, for the matrices, after a warm-up; it falls to 0 along a cosine.  That of AdamW,
            for all else, is a fifth of it.
    """
    named = [(name, p) for name, p in model.named_parameters()]
    matrices = [p for name, p in named if p.ndim == 2 and "wte" not in name and "wpe" not in name]
    others = [p for name, p in named if p.ndim != 2 or "wte" in name or "wpe" in name]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=rate / 5, betas=(0.9, 0.99), weight_decay=0.0),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda n: min((n + 1) / 50, 1.0) * 0.5 * (1 + math.cos(math.pi * n / steps))
        )
        for optimizer in optimizers
    ]
    losses = []
    for _ in tqdm(range(steps), mininterval=10):
        ids, labels = encode(tokenizer, draw(batch))
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        losses.append(loss.item())
    return losses


def save(model: Any, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """float16 weights in safetensors, of a model that loads as float32."""
    half: Any = copy.deepcopy(model).half()
    half.save_pretrained(out)
    config = json.loads((out / "config.json").read_text())
    config["dtype"] = "float32"
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer.save_pretrained(out)
