"""GRPO and RLOO here against TRL's, side by side in one process.

    pip install trl
    python benchmarks/vs_trl.py --algo rloo --epochs 1
    python benchmarks/vs_trl.py --algo grpo --dtype bf16 --json

Same random GPT-2, same batch, same settings; TRL's trainer is the installed package, unchanged.  The
two take turns: after each of TRL's rollouts with its updates, ours runs once.  A step's time is what
the trainer takes between its own begin and end; what to quote is the ratio of the medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from throughput import make_agent, make_model, time_agent
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

TRAINERS: dict[str, tuple[Any, Any]] = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}


class TakeTurns(TrainerCallback):
    """Times the trainer's rollouts and lets the other side run in between."""

    def __init__(self, steps_per_rollout: int, other: Any) -> None:
        self.steps_per_rollout, self.other = steps_per_rollout, other
        self.seconds: list[float] = []
        self._sum = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        self._sum += time.perf_counter() - self._began
        if state.global_step % self.steps_per_rollout == 0:
            self.seconds.append(self._sum)
            self._sum = 0.0
            self.other()


def words(vocab: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose word `wI` is token I."""
    table = {f"w{i}": i for i in range(vocab)}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w0", pad_token="w0", unk_token="w0")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    agent: Any = make_agent(args, make_model(args))
    ours: list[float] = []

    def run_ours() -> None:
        run = time_agent(agent)
        ours.append(run["rollout_s"] + run["score_s"] + run["update_s"])

    trainer_class, config_class = TRAINERS[args.algo]
    turns = TakeTurns(args.epochs, run_ours)
    prompts = [" ".join(f"w{i}" for i in p.ids) for p in agent.task.prompts]
    with tempfile.TemporaryDirectory() as folder:
        make_model(args).save_pretrained(f"{folder}/model")  # it loads its reference by name
        config = config_class(
            output_dir=folder, per_device_train_batch_size=args.batch, num_generations=agent.config.group_size,
            max_completion_length=args.new_tokens, num_iterations=args.epochs, beta=args.kl, learning_rate=1e-6,
            max_steps=(args.rollouts + 1) * args.epochs, use_cpu=args.device == "cpu", bf16=args.dtype == "bf16",
            gradient_checkpointing=False, report_to="none", save_strategy="no", logging_strategy="no",
            disable_tqdm=True,
            disable_dropout=True, model_init_kwargs={"dtype": "float32"},
        )  # fmt: skip
        trainer = trainer_class(
            model=f"{folder}/model", args=config, processing_class=words(args.vocab),
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            reward_funcs=lambda completions, **columns: [len(c) % 7 for c in completions], callbacks=[turns],
        )  # fmt: skip
        trainer.train()
    tokens = args.batch * args.new_tokens
    mine, theirs = statistics.median(ours[1:]), statistics.median(turns.seconds[1:])
    return {
        "algo": args.algo, "epochs": args.epochs, "dtype": args.dtype, "tokens_per_s": tokens / mine,
        "trl_tokens_per_s": tokens / theirs, "ratio": theirs / mine, "runs": ours[1:], "trl_runs": turns.seconds[1:],
    }  # fmt: skip


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--algo", default="grpo", choices=sorted(TRAINERS))
    p.add_argument("--epochs", type=int, default=1)
    p.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    p.add_argument("--rollouts", type=int, default=5)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--device", default="cpu")
    p.add_argument("--json", action="store_true")
    size = {"batch": 32, "prompt_len": 16, "new_tokens": 48, "layers": 4, "dim": 256, "heads": 4, "vocab": 2048}
    for name, default in size.items():
        p.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    p.add_argument("--kl", type=float, default=0.05)
    args = p.parse_args()
    args.episodes, args.sampled_lengths = None, None
    result = measure(args)
    if args.json:
        print(json.dumps(result))
    else:
        print(f"{args.algo}, {args.epochs} epoch(s), {args.dtype}: {result['tokens_per_s']:.0f} tokens/s, "
              f"TRL {result['trl_tokens_per_s']:.0f}, ratio {result['ratio']:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
