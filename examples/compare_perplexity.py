"""Held-out perplexity of the embedded model beside a unigram, a trigram and an untrained model.

    pip install 'lm-env[data]'  # the reviews
    python examples/compare_perplexity.py [--model runs/reviews-3m]

All four predict the same tokens: the 2% of the reviews that no training saw, in windows of 256.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from pretrain_reviews import encode, load_reviews
from transformers import AutoModelForCausalLM

from lm_env.models.loading import EMBEDDED_MODEL, load_model, load_tokenizer, resolve
from lm_env.models.logprobs import token_logprobs


def windows(docs: list[np.ndarray], length: int) -> torch.Tensor:
    """(W, length + 1) consecutive windows of the concatenated reviews."""
    stream = torch.from_numpy(np.concatenate(docs)).long()
    count = (len(stream) - 1) // length
    return torch.stack([stream[i * length : (i + 1) * length + 1] for i in range(count)])


@torch.no_grad()
def of_model(model: Any, ids: torch.Tensor) -> float:
    """Nats per token, in fp32."""
    total = sum(-token_logprobs(model(input_ids=b[:, :-1]).logits, b[:, 1:]).sum().item() for b in ids.split(16))
    return total / ids[:, 1:].numel()


def of_unigram(train: list[np.ndarray], ids: torch.Tensor, vocab: int) -> float:
    """Add-one smoothed frequencies."""
    counts = np.bincount(np.concatenate(train), minlength=vocab) + 1.0
    return float(-np.log(counts / counts.sum())[ids[:, 1:].numpy()].mean())


def of_trigram(train: list[np.ndarray], ids: torch.Tensor, vocab: int, discount: float = 0.75) -> float:
    """Interpolated Kneser-Ney (Chen & Goodman 1999) over trigrams, bigrams, unigrams and the uniform."""
    stream = np.concatenate(train).tolist()
    tri, bi = Counter(zip(stream, stream[1:], stream[2:], strict=False)), Counter(pairwise(stream))
    after_tri: Counter[tuple[int, int]] = Counter(g[:2] for g in tri)
    context_tri: Counter[tuple[int, int]] = Counter()
    for (a, b, _), n in tri.items():
        context_tri[a, b] += n
    # Lower orders count the distinct words before, not occurrences.
    bi_cont: Counter[tuple[int, int]] = Counter()
    after_bi: Counter[int] = Counter()
    context_bi: Counter[int] = Counter()
    uni_cont: Counter[int] = Counter()
    for _, b, c in tri:
        bi_cont[b, c] += 1
    for (b, _), n in bi_cont.items():
        after_bi[b] += 1
        context_bi[b] += n
    for _, c in bi:
        uni_cont[c] += 1
    total = sum(uni_cont.values())

    def probability(a: int, b: int, c: int) -> float:
        p = (max(uni_cont[c] - discount, 0) + discount * len(uni_cont) / vocab) / total
        if context_bi[b]:
            p = (max(bi_cont[b, c] - discount, 0) + discount * after_bi[b] * p) / context_bi[b]
        if context_tri[a, b]:
            p = (max(tri[a, b, c] - discount, 0) + discount * after_tri[a, b] * p) / context_tri[a, b]
        return p

    # A window's first prediction has one token of context, for the models as well.
    rows = [row.tolist() for row in ids]
    logs = [-math.log(probability(row[max(i - 2, 0)], row[i - 1], row[i])) for row in rows for i in range(1, len(row))]
    return sum(logs) / len(logs)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--model", default=EMBEDDED_MODEL)
    p.add_argument("--json", action="store_true")
    args = p.parse_args()
    tokenizer = load_tokenizer(args.model)
    model: Any = load_model(args.model)
    train, held_out = load_reviews()
    docs, ids = encode(tokenizer, train), windows(encode(tokenizer, held_out), 256)
    torch.manual_seed(0)
    untrained = AutoModelForCausalLM.from_config(model.config).eval()
    vocab = model.config.vocab_size
    nats = {
        "untrained": of_model(untrained, ids),
        "unigram": of_unigram(docs, ids, vocab),
        "trigram (Kneser-Ney)": of_trigram(docs, ids, vocab),
        resolve(args.model).rsplit("/", 1)[-1]: of_model(model, ids),
    }
    if args.json:
        print(json.dumps(nats))
        return
    print(f"{ids[:, 1:].numel():,} held-out tokens")
    for name, value in nats.items():
        print(f"{name:22s} {value:.4f} nats/token   perplexity {math.exp(value):8.1f}")


if __name__ == "__main__":
    main()
