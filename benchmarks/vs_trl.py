"""GRPO, RLOO and PPO here against TRL's, side by side in one process.

    pip install trl
    python benchmarks/vs_trl.py --algo rloo --epochs 1
    python benchmarks/vs_trl.py --algo grpo --dtype bf16 --json
    python benchmarks/vs_trl.py --algo grpo --compile
    python benchmarks/vs_trl.py --algo grpo --sampled-lengths 24 --new-tokens 128
    pip install 'trl==1.12.*'                            # the last with a PPO
    python benchmarks/vs_trl.py --algo ppo --epochs 4
    python benchmarks/vs_trl.py --algo sb3-ppo           # stable-baselines3's PPO, unmodified

Same random GPT-2, same batch, same settings; TRL's trainer is the installed package, unchanged.  The
two take turns: after each of TRL's rollouts with its updates, ours runs once.  A step's time is what
the trainer takes between its own begin and end; what to quote is the ratio of the medians.

TRL's PPO has a value model of its own, ours a value head on the policy's trunk; its reward model is
one layer of 16 dimensions here, for it takes no function.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from sb3 import make_halves
from throughput import PARTS, make_agent, make_model, time_agent
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2ForSequenceClassification, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

GROUP = 8


class TakeTurns(TrainerCallback):
    """Times the trainer's rollouts and lets the other side run in between."""

    def __init__(self, steps_per_rollout: int, other: Any) -> None:
        self.steps_per_rollout, self.other = steps_per_rollout, other
        self.seconds: list[float] = []
        self.tokens: list[float] = []
        self._sum = 0.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._began = time.perf_counter()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        self._sum += time.perf_counter() - self._began
        if state.global_step % self.steps_per_rollout == 0:
            self.seconds.append(self._sum)
            self._sum = 0.0
            self.other()
        self._began = time.perf_counter()  # PPO's trainer does not tell when a step begins


def words(vocab: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose word `wI` is token I."""
    table = {f"w{i}": i for i in range(vocab)}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w0", pad_token="w0", unk_token="w0")


def common(args: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Options that all of TRL's configs take."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": args.batch,
        "learning_rate": 1e-6,
        "use_cpu": args.device == "cpu",
        "bf16": args.dtype == "bf16",
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }


def group_trainer(args: argparse.Namespace, folder: str, prompts: list[str], turns: TakeTurns) -> Any:
    """TRL's GRPO or RLOO."""
    trainer, config = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}[args.algo]
    make_model(args).save_pretrained(f"{folder}/model")  # it loads its reference by name

    def reward(completion_ids: list[list[int]], **columns: Any) -> list[float]:
        turns.tokens.append(float(sum(map(len, completion_ids))))
        return [len(ids) % 7 for ids in completion_ids]

    return trainer(
        model=f"{folder}/model",
        processing_class=words(args.vocab),
        callbacks=[turns],
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        reward_funcs=reward,
        args=config(
            **common(args, folder),
            num_generations=GROUP,
            max_completion_length=args.new_tokens,
            num_iterations=args.epochs,
            beta=args.kl,
            max_steps=(args.rollouts + 1) * args.epochs,
            disable_dropout=True,
            model_init_kwargs={"dtype": "float32"},
        ),
    )


def ppo_trainer(args: argparse.Namespace, folder: str, prompts: list[str], turns: TakeTurns) -> Any:
    """TRL's PPO, with a value model of the policy's size."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = words(args.vocab)

    def scorer(layers: int, dim: int, heads: int) -> GPT2ForSequenceClassification:
        config = GPT2Config(
            vocab_size=args.vocab,
            n_embd=dim,
            n_layer=layers,
            n_head=heads,
            n_positions=args.prompt_len + args.new_tokens,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
        )
        config.num_labels = 1
        return GPT2ForSequenceClassification(config)

    return PPOTrainer(
        model=make_model(args),
        ref_model=make_model(args),
        processing_class=tokenizer,
        callbacks=[turns],
        reward_model=scorer(1, 16, 1),
        value_model=scorer(args.layers, args.dim, args.heads),
        train_dataset=Dataset.from_dict(dict(tokenizer(prompts, return_token_type_ids=False))),
        eval_dataset=Dataset.from_dict(dict(tokenizer(prompts[:2], return_token_type_ids=False))),
        args=PPOConfig(
            **common(args, folder),
            num_ppo_epochs=args.epochs,
            num_mini_batches=1,
            response_length=args.new_tokens,
            kl_coef=args.kl,
            total_episodes=args.batch * (args.rollouts + 1),
            num_sample_generations=0,
            local_rollout_forward_batch_size=args.batch,
            temperature=1.0,
        ),
    )


def our_run(args: argparse.Namespace, agent: Any) -> Callable[[], tuple[float, float]]:
    """(seconds, tokens) of a rollout and its update here."""
    if args.algo == "sb3-ppo":
        collect, update = make_halves("episode_buffer", args.new_tokens, args.epochs)

        def run() -> tuple[float, float]:
            start = time.perf_counter()
            collect()
            update()
            return time.perf_counter() - start, args.batch * args.new_tokens

        return run

    def run_batched() -> tuple[float, float]:
        times = time_agent(agent)
        return sum(times[part] for part in PARTS), times["tokens"]

    return run_batched


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    is_ppo = args.algo.endswith("ppo")
    agent: Any = make_agent(
        argparse.Namespace(**{**vars(args), "algo": "ppo" if is_ppo else args.algo}), make_model(args)
    )
    run, ours = our_run(args, agent), list[tuple[float, float]]()
    turns = TakeTurns(1 if is_ppo else args.epochs, lambda: ours.append(run()))
    prompts = [" ".join(f"w{i}" for i in p.ids) for p in agent.task.prompts]
    with tempfile.TemporaryDirectory() as folder:
        (ppo_trainer if is_ppo else group_trainer)(args, folder, prompts, turns).train()
    trl_tokens = turns.tokens or [args.batch * args.new_tokens] * len(turns.seconds)
    mine = statistics.median(tokens / seconds for seconds, tokens in ours[1:])
    theirs = statistics.median(t / s for s, t in list(zip(turns.seconds, trl_tokens, strict=True))[1:])
    return {
        "algo": args.algo,
        "epochs": args.epochs,
        "dtype": args.dtype,
        "tokens_per_s": mine,
        "trl_tokens_per_s": theirs,
        "ratio": mine / theirs,
        "runs": [seconds for seconds, _ in ours[1:]],
        "trl_runs": turns.seconds[1:],
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--algo", default="grpo", choices=("grpo", "ppo", "rloo", "sb3-ppo"))
    p.add_argument("--epochs", type=int, default=1)
    p.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    p.add_argument("--compile", action="store_true", help="compile our decoding step; TRL's stays as it is")
    p.add_argument("--rollouts", type=int, default=5)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--device", default="cpu")
    p.add_argument("--json", action="store_true")
    size = {"batch": 32, "prompt_len": 16, "new_tokens": 48, "layers": 4, "dim": 256, "heads": 4, "vocab": 2048}
    for name, default in size.items():
        p.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    p.add_argument("--kl", type=float, default=0.05)
    p.add_argument("--sampled-lengths", type=float, help="mean length; EOS comes at random  [default: to the cap]")
    args = p.parse_args()
    args.episodes = None
    if args.sampled_lengths and args.algo.endswith("ppo"):
        p.error("--sampled-lengths is for grpo and rloo")
    result = measure(args)
    if args.json:
        print(json.dumps(result))
    else:
        print(
            f"{args.algo}, {args.epochs} epoch(s), {args.dtype}: {result['tokens_per_s']:.0f} tokens/s, "
            f"TRL {result['trl_tokens_per_s']:.0f}, ratio {result['ratio']:.2f}"
        )


if __name__ == "__main__":
    main()
