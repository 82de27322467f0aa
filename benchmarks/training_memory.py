"""How much memory a training takes, by arithmetic, and the largest model that fits; and one small run beside it.

    python benchmarks/training_memory.py                         # the table of docs/distributed.md
    python benchmarks/training_memory.py --run full              # arithmetic and measured peak of a small model
    python benchmarks/training_memory.py --run lora

Counted are the weights, the reference, gradients, Adam's moments, the copy that writes texts, its KV cache, the
activations of one micro-batch, and its logits.  Fragmentation and the libraries' own memory are not: `MARGIN` is kept
free for them.

Shapes: D hidden size, V vocabulary, L layers here.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

__all__ = ["WAYS", "Shape", "Way", "largest", "needed"]

MARGIN = 0.1
"""The share of the memory that is left for what is not counted."""
LOGITS = 2**25
"""Logits that stand in memory at a time (`lm_env.models.logprobs.LOGIT_BUDGET`)."""


@dataclass(frozen=True)
class Shape:
    """A decoder: L layers of D channels, each with attention and a feed-forward part of 4 D; output and input tied."""

    layers: int
    hidden: int
    vocab: int = 128_000
    keys: float = 1.0
    """Key and value heads over query heads."""

    @property
    def parameters(self) -> int:
        """12 D^2 for each layer (4 D^2 of attention, 8 D^2 of the feed-forward part), and the embeddings."""
        return 12 * self.layers * self.hidden**2 + self.vocab * self.hidden


@dataclass(frozen=True)
class Way:
    """How a model is trained: bytes for each number."""

    name: str
    weight: float
    """Of the weights under training, or of the frozen ones under an adapter."""
    trained: float = 1.0
    """The share of the weights that is trained."""
    moments: float = 8.0
    """Of Adam's two moments, for each trained number."""
    reference: float = 4.0
    """Of a weight of the reference; 0 where it is the base of an adapter."""
    writer: float = 0.0
    """Of a weight of a copy that writes texts; 0 where the model itself does."""
    processes: int = 1
    """How many divide the weights of the update, gradients and moments, beside the whole weights."""
    activation: float = 2.0
    """Of a number of the activations, and of the KV cache."""


WAYS = {
    "full fp32": Way("full fp32", 4.0, activation=4.0),
    "full, bf16 texts and reference": Way("full, bf16 texts and reference", 4.0, reference=2.0, writer=2.0),
    "full, the same with Adam in 8 bits": Way("full, Adam in 8 bits", 4.0, reference=2.0, writer=2.0, moments=2.0),
    "full, the same, reference in 8 bits": Way(
        "full, reference in 8 bits", 4.0, reference=1.0, writer=2.0, moments=2.0
    ),
    "LoRA on bf16": Way("LoRA on bf16", 2.0, trained=0.01, reference=0.0),
    "LoRA on 8 bits": Way("LoRA on 8 bits", 1.0, trained=0.01, reference=0.0),
    "LoRA on 4 bits": Way("LoRA on 4 bits", 0.5 + 0.5 / 8, trained=0.01, reference=0.0),
    "full, bf16, divided among 8": Way("full, bf16, divided among 8", 4.0, reference=2.0, writer=2.0, processes=8),
}
"""4-bit weights have a scale of 4 bytes for each 64 of them, .0625 bytes for each."""


def needed(shape: Shape, way: Way, *, slots: int = 32, length: int = 1024, tokens: int = 4096) -> dict[str, float]:
    """Bytes by what they are for.

    Args:
        slots, length: of the texts that are written at a time, tokens.
        tokens: of a micro-batch, with gradient checkpointing.

    The activations are those of Korthikanti et al. 2022 (arXiv:2205.05198), table 2: 34 D bytes for each token of a
    layer at 2 bytes, without attention's products, which are not kept; with recomputation one layer stands whole, and
    of the others 2 D bytes.
    """
    count = shape.parameters
    adapter = count * way.trained if way.trained < 1 else 0.0
    trained = count * way.trained
    parts = way.processes
    found = {
        "weights": way.weight * count + 4.0 * adapter,
        "reference": way.reference * count,
        "gradients": 4.0 * trained / parts,
        "moments": way.moments * trained / parts,
        "divided copy": 4.0 * count / parts if parts > 1 else 0.0,
        "writer": way.writer * count,
        "cache": 2.0 * way.activation * slots * length * shape.layers * shape.hidden * shape.keys,
        "activations": tokens * shape.hidden * way.activation * (17.0 + shape.layers),
        "logits": 3 * 4.0 * min(LOGITS, tokens * shape.vocab),
    }
    return {**found, "total": sum(found.values())}


def largest(memory: float, way: Way, *, vocab: int = 128_000, **sizes: int) -> Shape | None:
    """The largest decoder of the usual proportions, D = 128 L, that fits into so many bytes; None if none does."""
    best = None
    for layers in range(2, 200):
        shape = Shape(layers, 128 * layers, vocab, keys=0.25)
        if needed(shape, way, **sizes)["total"] > (1 - MARGIN) * memory:
            break
        best = shape
    return best


def table() -> None:
    places = {"one GPU of 140 GB": 140e9, "two CPU cores with 23 GB": 23e9}
    print(f"| way | {' | '.join(places)} |\n|---|{'---|' * len(places)}")
    for name, way in WAYS.items():
        cells = []
        for memory in places.values():
            small = memory < 100e9
            on_cpu = Way(**{**vars(way), "activation": 4.0}) if small else way
            shape = largest(memory, on_cpu, **({"slots": 16, "length": 256, "tokens": 1024} if small else {}))
            cells.append("-" if shape is None else f"{shape.parameters / 1e9:.1f} billion")
        print(f"| {name} | {' | '.join(cells)} |")


def peak(kind: str, layers: int, hidden: int) -> tuple[float, float]:
    """(bytes by arithmetic, peak resident bytes above those before the model) of a rollout with its update, fp32."""
    from agents import GRPO
    from lm_env import TextGenerationEnv

    if kind == "lora":
        import peft  # noqa: F401  # its own memory is not the training's

    shape = Shape(layers, hidden, vocab=8192)
    config = GPT2Config(
        vocab_size=8192, n_embd=hidden, n_layer=layers, n_head=8, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    torch.manual_seed(0)
    model: Any = GPT2LMHeadModel(config)
    trained = 1.0
    if kind == "lora":
        from lm_env.models import add_lora

        model = add_lora(model, rank=8)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad) / shape.parameters
    env = TextGenerationEnv(
        model=model,
        prompts=[[1, 2, 3, 4]],
        reward=lambda prompts, responses, response_ids: [float(ids[0] % 7) for ids in response_ids],
        eos_token_id=(),
        max_new_tokens=12,
    )
    agent = GRPO(env, rollout_episodes=16, slots=16, batch_size=16, group_size=4, gradient_checkpointing=True)
    agent.learn(1)
    agent.learn(1)
    way = Way(kind, 4.0, trained=trained, reference=0.0 if kind == "lora" else 4.0, activation=4.0)
    counted = needed(shape, way, slots=16, length=16, tokens=256)["total"]
    return counted, 1024.0 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--run", choices=("full", "lora"), help="train a small model instead, and measure")
    p.add_argument("--layers", type=int, default=8)
    p.add_argument("--hidden", type=int, default=1024)
    p.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.run is None:
        table()
    elif args.here:
        counted, measured = peak(args.run, args.layers, args.hidden)
        print(f"{args.run}: {counted / 2**20:.0f} MiB by arithmetic, {measured / 2**20:.0f} MiB measured at the peak")
    else:  # in a fresh process, whose peak is of this alone
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--here"], check=True)


if __name__ == "__main__":
    main()
