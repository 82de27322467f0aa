"""What scoring texts costs beside the forward of the trunk alone.

    python benchmarks/scoring.py                                   # the embedded model's trunk
    python benchmarks/scoring.py --model all-MiniLM-L6-v2-FOLDER   # an encoder, or any other folder

The same texts go several ways in turns within one run, so that a machine that gets slower does so for all:

bare      forwards of the trunk over batches that were tokenized, sorted by length and padded beforehand
scoring   `reward(prompts, responses)`: tokenizing, batching, forwards, the head
served    the same over HTTP on this machine, with --served
in order  forwards alone over batches of 32 texts as they come, padded to the longest, as a plain loop does it

The ratio is the time of `bare` over the way's own: 1 is no cost at all.  On a CPU it is the processor's time in this
process, which other programs on the machine do not change; on a GPU it is the clock's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from lm_env.models.inputs import length_batches, pad_right
from lm_env.tasks.sentiment import openings
from reward_models import RemoteReward, RewardModel, RewardServer

PLAIN_BATCH = 32


def texts(count: int, longest: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Prompts, and responses of 1 to `longest` words, long ones rarer, as responses of a language model are."""
    rng = np.random.default_rng(seed)
    lines = [*openings("train"), *openings("test")]
    words = [word for line in lines for word in line.split()]
    lengths = np.clip(rng.exponential(longest / 3, count).astype(int), 1, longest)
    responses = [" ".join(rng.choice(words, n)) for n in lengths]
    return [lines[i] for i in rng.integers(len(lines), size=count)], responses


def trunk_pass(model: RewardModel, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """The trunk's forward, with the mask that it needs and nothing else."""
    trunk = model.network.trunk
    with torch.inference_mode():
        for ids, lengths in batches:
            if model.network.causal:
                trunk(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
            else:
                mask = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).to(ids.dtype)
                trunk(input_ids=ids, attention_mask=mask)
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def measure(model: RewardModel, count: int, longest: int, repeats: int, served: bool) -> dict[str, Any]:
    """Median seconds of each way, and their ratios."""
    prompts, responses = texts(count, longest)
    rows = model.encode(prompts, responses)
    lengths = [len(row) for row in rows]
    sorted_batches = [
        pad_right([rows[i] for i in batch], model.device) for batch in length_batches(lengths, model.batch_tokens)
    ]
    plain_batches = [pad_right(rows[i : i + PLAIN_BATCH], model.device) for i in range(0, count, PLAIN_BATCH)]
    ways: dict[str, Callable[[], Any]] = {
        "bare": lambda: trunk_pass(model, sorted_batches),
        "scoring": lambda: model(prompts, responses),
        "in order": lambda: trunk_pass(model, plain_batches),
    }
    if served:
        server = RewardServer(model).start()
        remote = RemoteReward(server.url, token=server.token, deadline=3600.0)
        ways["served"] = lambda: remote(prompts, responses)
    clock = time.process_time if model.device.type == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, run in ways.items():
            began = clock()
            run()
            if turn:  # the first one warms up
                seconds[name].append(clock() - began)
    if served:
        remote.close()
        server.stop()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {
        name: statistics.median(b / s for b, s in zip(seconds["bare"], seconds[name], strict=True)) for name in seconds
    }
    tokens = sum(lengths)
    return {
        "texts": count,
        "tokens": tokens,
        "seconds": medians,
        "tokens_per_second": {name: tokens / value for name, value in medians.items()},
        "ratio_to_bare": ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reviews-3m", help="a causal LM or an encoder: a name or a folder")
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--longest", type=int, default=96, help="words of a response at most")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--served", action="store_true", help="over HTTP as well")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = RewardModel.from_causal_lm(options.model, device=options.device)
    found = measure(model, options.texts, options.longest, options.repeats, options.served)
    if options.json:
        print(json.dumps({"model": options.model, **found}))
        return
    print(f"{options.model}: {found['texts']} texts, {found['tokens']:,} tokens, {options.threads} thread(s)")
    for name, seconds in found["seconds"].items():
        print(
            f"  {name:9s} {seconds:7.3f} s  {found['tokens_per_second'][name]:9,.0f} tokens/s  ratio"
            f" {found['ratio_to_bare'][name]:.2f}"
        )


if __name__ == "__main__":
    main()
