"""Tokens per second of an agent's rollout, scoring and update, beside the bare-metal floor.

    python benchmarks/throughput.py --floor                    # 32 x (16 + 48) tokens, one epoch
    python benchmarks/throughput.py --floor --dtype bf16 --epochs 4
    python benchmarks/throughput.py --sampled-lengths 24 --new-tokens 128 --floor
    python benchmarks/throughput.py --growth 16 64 256
    python benchmarks/throughput.py --compile --decode-dtype bf16 --peak
    python benchmarks/throughput.py --device cuda --dtype bf16 --decode-dtype bf16 --batch 256 --peak

The model is a random GPT-2.  Agent and floor take turns within one run, so that a machine whose
speed drifts slows both; the ratio of medians is what to quote.  A token is a generated one.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
from typing import Any

import numpy as np
import torch
from floor import Floor
from hardware import Machine, Work, synchronize
from transformers import GPT2Config, GPT2LMHeadModel

import agents
from agents.base.agent import BatchedAgent
from agents.learning.rollout import collect
from lm_env.envs.env import TextGenerationEnv
from lm_env.generation import Decoding, Sampling
from lm_env.models.inspection import device_of

PARTS = ("rollout_s", "score_s", "update_s")


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--algo", default="ppo", choices=sorted(agents.AGENTS))
    p.add_argument("--epochs", type=int, default=1, help="passes over each rollout")
    p.add_argument("--batch", type=int, default=32, help="sequences decoded at a time")
    p.add_argument("--prompt-len", type=int, default=16)
    p.add_argument("--new-tokens", type=int, default=48, help="length cap")
    p.add_argument("--layers", type=int, default=4)
    p.add_argument("--dim", type=int, default=256)
    p.add_argument("--heads", type=int, default=4)
    p.add_argument("--vocab", type=int, default=2048)
    p.add_argument("--kl", type=float, default=0.05, help="beta")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the update (bf16: autocast)")
    p.add_argument("--decode-dtype", choices=("fp32", "bf16"), default="fp32", help="of the model that writes")
    p.add_argument("--compile", action="store_true", help="compile the decoding step")
    p.add_argument("--look-every", type=int, help="tokens between two looks of the host  [default: the backend's]")
    p.add_argument("--peak", action="store_true", help="measure the machine, and give each part's share of its peak")
    p.add_argument("--device", default="cpu")
    p.add_argument("--rollouts", type=int, default=5, help="timed rollouts, after one warm-up")
    p.add_argument("--episodes", type=int, help="per rollout  [default: --batch]")
    p.add_argument(
        "--sampled-lengths", type=float, help="mean length; EOS comes at random  [default: all run to the cap]"
    )
    p.add_argument("--floor", action="store_true", help="time the bare loops too, in turns with the agent")
    p.add_argument("--growth", type=int, nargs="+", help="repeat for these numbers of new tokens")
    p.add_argument("--json", action="store_true", help="print one JSON line and nothing else")
    return p.parse_args()


def make_model(args: argparse.Namespace) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=args.vocab,
        n_embd=args.dim,
        n_layer=args.layers,
        n_head=args.heads,
        n_positions=args.prompt_len + args.new_tokens,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config)
    if args.sampled_lengths:
        raise_eos(model, args.sampled_lengths)
    return model.to(args.device).eval()


@torch.no_grad()
def raise_eos(model: GPT2LMHeadModel, mean_length: float) -> None:
    """Give token 0 about 1 / mean_length of the probability everywhere: texts end at random."""
    embeddings, last = model.transformer.wte.weight, model.transformer.ln_f
    last.weight[0], last.bias[0] = 0.0, 3.0  # one axis on which all hidden states are alike, and token 0 alone lies out
    embeddings[:, 0] = 0.0
    embeddings[0] = 0.0
    spread = math.exp(float(embeddings[1:].var() * embeddings.shape[1]) / 2)  # mean of exp(logit) of the others
    embeddings[0, 0] = math.log((len(embeddings) - 1) * spread / (mean_length - 1)) / 3.0


def make_agent(args: argparse.Namespace, model: GPT2LMHeadModel) -> BatchedAgent:
    rng = np.random.default_rng(0)
    env = TextGenerationEnv(
        model=model,
        prompts=rng.integers(args.vocab, size=(256, args.prompt_len)).tolist(),
        reward=lambda prompts, responses: [len(r) % 7 for r in responses],
        beta=args.kl,
        eos_token_id=0 if args.sampled_lengths else (),
        max_new_tokens=args.new_tokens,
    )
    episodes = args.episodes or args.batch
    return agents.AGENTS[args.algo](
        env,
        rollout_episodes=episodes,
        slots=args.batch,
        batch_size=episodes,
        n_epochs=args.epochs,
        learning_rate=1e-6,
        bf16=args.dtype == "bf16",
        decoding=decoding_of(args),
    )


def decoding_of(args: argparse.Namespace) -> Decoding:
    """What the command asks for; the benchmarks that borrow `make_agent` do not ask."""
    asked = vars(args)
    return Decoding(
        bf16=asked.get("decode_dtype") == "bf16",
        compile=asked.get("compile", False),
        look_every=asked.get("look_every"),
    )


def time_agent(agent: BatchedAgent) -> dict[str, float]:
    """Seconds of one rollout, its scoring and its update, and its tokens."""
    start = time.perf_counter()
    scoring: list[float] = []
    prompts = agent.draw_prompts()
    rollout = collect(agent.backend, agent.policy, agent.task, prompts, Sampling(agent.randomness.sampling))
    scoring.append(rollout.scoring_seconds)
    collected = time.perf_counter()
    agent.update(rollout)
    synchronize(device_of(agent.policy))
    return {
        "rollout_s": collected - start - scoring[0],
        "score_s": scoring[0],
        "update_s": time.perf_counter() - collected,
        "tokens": float(rollout.episodes.response_lengths.sum()),
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    model = make_model(args)
    agent = make_agent(args, model)
    floor = Floor(copy.deepcopy(model), copy.deepcopy(model), args.new_tokens, args.dtype == "bf16")
    prompts = torch.randint(args.vocab, (args.batch, args.prompt_len), device=args.device)
    ours, bare = [], []
    for i in range(args.rollouts + 1):
        one, other = time_agent(agent), floor.run(prompts, args.epochs) if args.floor else None
        if i:  # the first is a warm-up
            ours.append(one)
            bare.append(other)
    totals = [sum(run[part] for part in PARTS) for run in ours]
    median = {part: statistics.median(run[part] for run in ours) for part in PARTS}
    result: dict[str, Any] = {
        "algo": args.algo,
        "epochs": args.epochs,
        "dtype": args.dtype,
        "new_tokens": args.new_tokens,
        "threads": args.threads,
        "tokens_per_s": statistics.median(run["tokens"] / total for run, total in zip(ours, totals, strict=True)),
        **median,
        "floor_tokens_per_s": None,
        "runs": totals,
        "tokens": [run["tokens"] for run in ours],
    }
    for part in PARTS:
        result[part.replace("_s", "_tokens_per_s")] = statistics.median(run["tokens"] / run[part] for run in ours)
    if args.peak:
        result |= shares(args, model, statistics.mean(run["tokens"] for run in ours), median)
    if args.floor:
        sums = [sum(run[part] for part in PARTS) for run in bare if run]
        # A lockstep batch decodes to the cap; only the tokens up to each EOS count, as many as ours have.
        useful = args.batch * statistics.mean(run["tokens"] for run in ours) / agent.config.rollout_episodes
        result["floor_tokens_per_s"] = useful / statistics.median(sums)
        result["of_floor"] = result["tokens_per_s"] / result["floor_tokens_per_s"]
        result |= {f"floor_{part}": statistics.median(run[part] for run in bare if run) for part in PARTS}
    return result


def shares(
    args: argparse.Namespace, model: GPT2LMHeadModel, tokens: float, seconds: dict[str, float]
) -> dict[str, float]:
    """How near each part comes to what the machine can do; scoring and updates read the prompts as well."""
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    written, updated = dtypes[args.decode_dtype], dtypes[args.dtype]
    machines = {dtype: Machine.measured(args.device, dtype) for dtype in {written, updated, torch.float32}}
    episodes = args.episodes or args.batch
    length = tokens / episodes
    read = tokens + episodes * args.prompt_len
    work = Work.of(model, written)
    floor = work.decoding_floor(machines[written], args.batch, args.prompt_len + length / 2)
    return {
        "gemm_tflops": machines[updated].flops / 1e12,
        "copy_gbytes": machines[written].bytes / 1e9,
        "decoding_floor_tokens_per_s": args.batch / floor,
        "rollout_of_floor": floor * tokens / args.batch / seconds["rollout_s"],
        "score_of_peak": work.flops * read / seconds["score_s"] / machines[torch.float32].flops,
        "update_of_peak": 3 * args.epochs * work.flops * read / seconds["update_s"] / machines[updated].flops,
    }


def show(result: dict[str, Any]) -> None:
    print(
        f"{result['algo']}, {result['epochs']} epoch(s), {result['dtype']}, {result['new_tokens']} new tokens,"
        f" {result['threads']} threads"
    )
    for part in PARTS:
        bare = f"   floor {result['floor_' + part]:7.3f}" if f"floor_{part}" in result else ""
        rate = result[part.replace("_s", "_tokens_per_s")]
        print(f"  {part:10s} {result[part]:7.3f}   {rate:9.0f} tokens/s{bare}")
    print(f"  tokens/s   {result['tokens_per_s']:7.0f}", end="")
    print(
        f"   floor {result['floor_tokens_per_s']:7.0f}   ({result['of_floor']:.0%} of it)"
        if result["floor_tokens_per_s"]
        else ""
    )
    if "gemm_tflops" in result:
        print(f"  machine: GEMM {result['gemm_tflops']:.2f} TFLOP/s, copy {result['copy_gbytes']:.0f} GB/s")
        print(
            f"  decoding at {result['rollout_of_floor']:.0%} of the physical floor"
            f" ({result['decoding_floor_tokens_per_s']:.0f} tokens/s), scoring at {result['score_of_peak']:.0%} and"
            f" update at {result['update_of_peak']:.0%} of the GEMM"
        )


def main() -> None:
    args = parse()
    results = []
    for new_tokens in args.growth or [args.new_tokens]:
        args.new_tokens = new_tokens
        results.append(measure(args))
        if not args.json:
            show(results[-1])
    if args.json:
        print(json.dumps(results[0] if len(results) == 1 else {"growth": results}))


if __name__ == "__main__":
    main()
