"""Everything that is to be known of the package on one GPU, in one command.

    python benchmarks/gpu.py --out gpu.json             # GPT-2 of 124M, bf16, 256 slots x (64 + 192) tokens
    python benchmarks/gpu.py --out try.json --device cpu --layers 2 --dim 64 --vocab 512 --batch 8 --prompt-len 8 \\
        --new-tokens 16 --no-tests                      # the same steps on a machine without one

It runs the tests, those of the CUDA path first; times decoding by captured steps, beside the same steps uncaptured,
other numbers of steps between two looks, and the `generate` of transformers; times PPO's whole loop, and TRL's GRPO if
TRL is installed; measures memory; and profiles one rollout with its update.  The results are one JSON file, and
PROFILE.txt beside it.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from hardware import synchronize
from throughput import make_agent, make_model, measure, time_agent
from torch.profiler import ProfilerActivity, profile

from lm_env.envs.env import TextGenerationEnv
from lm_env.generation import Decoding, LocalBackend, Sampling

REPOSITORY = Path(__file__).resolve().parent.parent


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    p.add_argument("--device", default="cuda")
    p.add_argument("--batch", type=int, default=256, help="slots")
    p.add_argument("--prompt-len", type=int, default=64)
    p.add_argument("--new-tokens", type=int, default=192)
    p.add_argument("--layers", type=int, default=12)
    p.add_argument("--dim", type=int, default=768)
    p.add_argument("--heads", type=int, default=None, help="[default: --dim / 64]")
    p.add_argument("--vocab", type=int, default=50257)
    p.add_argument("--rollouts", type=int, default=5)
    p.add_argument("--no-tests", action="store_true")
    args = p.parse_args()
    args.heads = args.heads or max(1, args.dim // 64)
    # What `throughput` asks of its own command line besides.
    rest = {"algo": "ppo", "epochs": 1, "episodes": None, "kl": 0.05, "threads": torch.get_num_threads()}
    rest |= {"dtype": "bf16", "decode_dtype": "bf16", "compile": False, "look_every": None, "sampled_lengths": None}
    rest |= {"floor": True, "peak": True}
    for name, value in rest.items():
        setattr(args, name, value)
    return args


def tests() -> dict[str, int]:
    """The exit status of pytest: over the CUDA path, and over everything."""
    paths = {"cuda": ["tests/lm_env/generation/test_cuda.py"], "all": []}
    command = [sys.executable, "-m", "pytest", "-q"]
    return {name: subprocess.run([*command, *path], cwd=REPOSITORY).returncode for name, path in paths.items()}


def tokens_per_s(run: Callable[[], int], args: argparse.Namespace) -> dict[str, float]:
    """Median of several runs after one that warms up; `run` returns how many tokens it wrote."""
    rates = []
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(args.rollouts + 1):
        synchronize(args.device)
        start = time.perf_counter()
        tokens = run()
        synchronize(args.device)
        rates.append(tokens / (time.perf_counter() - start))
    memory = torch.cuda.max_memory_allocated() / 2**30 if args.device == "cuda" else 0.0
    return {"tokens_per_s": float(np.median(rates[1:])), "first_tokens_per_s": rates[0], "peak_gib": memory}


def decoding(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Decoding alone, in the ways that there are."""
    model = make_model(args)
    rng = np.random.default_rng(0)
    env = TextGenerationEnv(
        model=model,
        prompts=rng.integers(args.vocab, size=(args.batch, args.prompt_len)).tolist(),
        reward=lambda prompts, responses: [0.0] * len(prompts),
        eos_token_id=(),
        max_new_tokens=args.new_tokens,
    )
    prompts = list(env.task.prompts)
    results = {}
    ways = {
        "bf16": Decoding(bf16=True),
        "bf16, a look at every token": Decoding(bf16=True, look_every=1),
        "bf16, a look at every 32": Decoding(bf16=True, look_every=32),
        "bf16, compiled": Decoding(bf16=True, compile=True),
        "fp32": Decoding(),
    }
    for name, way in ways.items():
        backend = LocalBackend(env.task, args.batch, decoding=way)

        def run(backend: LocalBackend = backend) -> int:
            generation = backend.generate(prompts, Sampling(torch.Generator().manual_seed(0)))
            return int(generation.episodes.response_lengths.sum())

        results[name] = tokens_per_s(run, args)
        backend.release()
    return results | {"transformers.generate, bf16": plain_generate(model, args)}


def plain_generate(model: Any, args: argparse.Namespace) -> dict[str, float]:
    """The loop of transformers over as many texts, sampling from the whole distribution."""
    model = model.to(torch.bfloat16)
    ids = torch.randint(args.vocab, (args.batch, args.prompt_len), device=args.device)
    options = {"do_sample": True, "top_k": 0, "min_new_tokens": args.new_tokens, "max_new_tokens": args.new_tokens}

    def run() -> int:
        with torch.no_grad():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)
        return out[:, args.prompt_len :].numel()

    return tokens_per_s(run, args)


def whole_loop(args: argparse.Namespace) -> dict[str, Any]:
    """PPO: rollout, scoring and update, beside the bare loops; and TRL, if it is there."""
    result: dict[str, Any] = {"ppo": measure(args)}
    if args.device == "cuda":
        result["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    if find_spec("trl"):
        names = ("batch", "prompt_len", "new_tokens", "layers", "dim", "heads", "vocab", "device", "dtype")
        options = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in names]
        command = [sys.executable, str(REPOSITORY / "benchmarks/vs_trl.py"), "--algo=grpo", "--json", *options]
        done = subprocess.run(command, capture_output=True, text=True)
        result["grpo_beside_trl"] = json.loads(done.stdout) if done.returncode == 0 else done.stderr[-2000:]
    return result


def profiled(args: argparse.Namespace) -> str:
    """Where the time of one rollout with its update goes."""
    agent = make_agent(args, make_model(args))
    time_agent(agent)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if args.device == "cuda" else [])
    with profile(activities=activities) as trace:
        time_agent(agent)
    order = "self_cuda_time_total" if args.device == "cuda" else "self_cpu_time_total"
    return trace.key_averages().table(sort_by=order, row_limit=40)


def main() -> None:
    args = parse()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device is available: run it on a machine that has one, or try it with --device cpu")
    result: dict[str, Any] = {
        "machine": torch.cuda.get_device_name() if args.device == "cuda" else platform.processor(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "arguments": {name: value for name, value in vars(args).items() if name != "out"},
    }
    steps: dict[str, Callable[[], Any]] = {
        "decoding": lambda: decoding(args),
        "loop": lambda: whole_loop(args),
    }
    if not args.no_tests:
        steps = {"tests": tests, **steps}
    for name, step in steps.items():
        result[name] = step()
        args.out.write_text(json.dumps(result, indent=1, default=str))  # what is known, if a later step fails
        print(json.dumps({name: result[name]}, indent=1, default=str), flush=True)
    args.out.with_name("PROFILE.txt").write_text(profiled(args))


if __name__ == "__main__":
    main()
