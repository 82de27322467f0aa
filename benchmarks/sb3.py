"""Tokens per second of stable-baselines3's PPO on the text environment, end to end: rollout and update.

    python benchmarks/sb3.py --json                              # the four ways, at 1 and 4 epochs
    python benchmarks/sb3.py --new-tokens 16 48 128 --plot growth.png

| way | what it is |
|---|---|
| `plain` | an ordinary policy: the whole text again for each token, SB3's own buffer |
| `stock_buffer` | `CausalLMPolicy`, SB3's own buffer |
| `episode_buffer` | `CausalLMPolicy`, `EpisodeRolloutBuffer` |
| `batched` | `agents.PPO` |

A random GPT-2 of 4 layers and 256 dimensions, vocabulary 2048, fp32, 32 texts of 16 + 48 tokens, one
rollout an update, minibatches of 8 texts.  The ways take turns, and the median round counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import agents
from agents.sb3 import CausalLMPolicy, EpisodeRolloutBuffer, TextVecEnv
from lm_env import TextGenerationVectorEnv
from lm_env.generation.sampling import sample
from lm_env.models.logprobs import plain_forward, token_logprobs

WAYS = ("plain", "stock_buffer", "episode_buffer", "batched")
TEXTS, PROMPT, VOCABULARY = 32, 16, 2048


class PlainPolicy(CausalLMPolicy):
    """What one writes first: a forward of the whole text for each token, in rollout and update."""

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        logits, values = self._outputs(obs)
        tokens, logprobs = sample(logits, deterministic=deterministic)
        self.observation_space.env.publish(tokens.numpy(), logprobs.numpy())  # type: ignore[attr-defined]
        return tokens, values, logprobs

    def evaluate_actions(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, values = self._outputs(obs)
        return values, token_logprobs(logits, actions), torch.distributions.Categorical(logits=logits).entropy()

    def predict_values(self, obs: Any) -> Tensor:
        return self._outputs(obs)[1]

    def _outputs(self, obs: Any) -> tuple[Tensor, Tensor]:
        lengths = obs["length"].flatten()
        ids = obs["input_ids"][:, : int(lengths.max())]
        logits, hidden = plain_forward(self.network.lm, ids, (torch.arange(len(ids)), lengths - 1), want_hidden=True)
        assert hidden is not None
        return logits, self.network.value_of(hidden)


def options(new_tokens: int) -> dict[str, Any]:
    """Options of the task: texts always run to the length cap, so that every round has the same work."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    positions = PROMPT + new_tokens
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=256, n_layer=4, n_head=4, n_positions=positions, bos_token_id=0, eos_token_id=0
    )
    return {
        "model": GPT2LMHeadModel(config).eval(),
        "prompts": rng.integers(0, VOCABULARY, (64, PROMPT)).tolist(),
        "reward": lambda prompts, responses, response_ids: [float(np.mean(np.array(r) % 2)) for r in response_ids],
        "max_new_tokens": new_tokens,
        "eos_token_id": (),
    }


Halves = tuple[Callable[[], Any], Callable[[], Any]]


def sb3_halves(policy: type[CausalLMPolicy], buffer: Any, new_tokens: int, epochs: int) -> tuple[Halves, PPO]:
    """((collect, update), the agent)."""
    env = TextVecEnv(TEXTS, **options(new_tokens))
    agent = PPO(
        policy,
        env,
        n_steps=new_tokens,
        batch_size=TEXTS * new_tokens // 4,
        n_epochs=epochs,
        gamma=1.0,
        learning_rate=1e-5,
        rollout_buffer_class=buffer,
        seed=0,
        device="cpu",
    )
    agent.set_logger(configure(None, []))
    _, callback = agent._setup_learn(10**9)

    return (lambda: agent.collect_rollouts(env, callback, agent.rollout_buffer, agent.n_steps), agent.train), agent


def batched_halves(new_tokens: int, epochs: int) -> Halves:
    """The same work by the batched agent."""
    env = TextGenerationVectorEnv(1, **options(new_tokens))
    agent = agents.PPO(
        env, rollout_episodes=TEXTS, slots=TEXTS, batch_size=TEXTS // 4, n_epochs=epochs, learning_rate=1e-5
    )
    rollouts: list[Any] = []
    return lambda: rollouts.append(agent.collect_rollout()), lambda: agent.update(rollouts.pop())


def make_halves(way: str, new_tokens: int, epochs: int) -> Halves:
    """Rollout and update of one of `WAYS`."""
    if way == "batched":
        return batched_halves(new_tokens, epochs)
    policy, buffer = {
        "plain": (PlainPolicy, None),
        "stock_buffer": (CausalLMPolicy, None),
        "episode_buffer": (CausalLMPolicy, EpisodeRolloutBuffer),
    }[way]
    return sb3_halves(policy, buffer, new_tokens, epochs)[0]


def seconds_of(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(ways: tuple[str, ...], new_tokens: int, epochs: int, rounds: int) -> dict[str, dict[str, float]]:
    """Way -> seconds and tokens per second, after a round to warm up (the plain way, of minutes, goes without)."""
    halves = {way: make_halves(way, new_tokens, epochs) for way in ways}
    seconds: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for turn in range(rounds + 1):
        for way, (collect, update) in halves.items():
            if turn or way != "plain":
                seconds[way].append((seconds_of(collect), seconds_of(update)))
    result = {}
    for way, times in seconds.items():
        kept = times[1:] if way != "plain" else times
        rollout, update = (statistics.median(column) for column in zip(*kept, strict=True))
        total = statistics.median(r + u for r, u in kept)
        result[way] = {"tokens_per_s": TEXTS * new_tokens / total, "rollout_s": rollout, "update_s": update}
    return result


@contextmanager
def timed(*models: nn.Module) -> Iterator[list[float]]:
    """The CPU seconds that forwards of these GPT-2s take inside the block, as a list that grows."""
    spans: list[float] = []
    begun: list[float] = []
    handles = []
    for part in (p for m in models for p in (m.transformer, m.lm_head)):
        handles.append(part.register_forward_pre_hook(lambda *_: begun.append(time.thread_time())))  # type: ignore[union-attr]
        handles.append(part.register_forward_hook(lambda *_: spans.append(time.thread_time() - begun.pop())))  # type: ignore[union-attr]
    yield spans
    for handle in handles:
        handle.remove()


def bookkeeping(new_tokens: int, rounds: int) -> dict[str, float]:
    """Shares of a rollout: outside the models' trunk and head; and outside acting and scoring, with all they do."""
    (collect, _), agent = sb3_halves(CausalLMPolicy, EpisodeRolloutBuffer, new_tokens, 1)
    env: Any = agent.get_env()
    task = env.task
    collect()
    strict, loose = [], []
    for _ in range(rounds):
        with timed(task.model, task.reference) as spans:
            start = time.thread_time()
            collect()
            strict.append(1 - sum(spans) / (time.thread_time() - start))
        with (
            patched(agent.policy, "forward", "predict_values") as acting,
            patched(env.mdp._reference, "logprobs") as scoring,
        ):
            start = time.thread_time()
            collect()
            loose.append(1 - (sum(acting) + sum(scoring)) / (time.thread_time() - start))
    return {
        "bookkeeping_share": statistics.median(strict),
        "outside_acting_and_scoring_share": statistics.median(loose),
    }


@contextmanager
def patched(owner: Any, *names: str) -> Iterator[list[float]]:
    """The CPU seconds that these methods of an object take inside the block."""
    spans: list[float] = []

    def clocked(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            result = method(*args, **kwargs)
            spans.append(time.thread_time() - start)
            return result

        return run

    for name in names:
        vars(owner)[name] = clocked(getattr(owner, name))
    yield spans
    for name in names:
        del vars(owner)[name]


def growth(new_tokens: list[int], rounds: int, ways: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Way -> tokens per second at each number of new tokens, one epoch."""
    table: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for count in new_tokens:
        for way, result in measure(ways, count, 1, rounds).items():
            table[way][str(count)] = result["tokens_per_s"]
    return dict(table)


def plot(table: dict[str, dict[str, float]], path: str) -> None:
    """Tokens per second against the length of the response."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for way, row in table.items():
        axes.plot([int(k) for k in row], list(row.values()), marker="o", label=way)
    axes.set(xlabel="new tokens per text", ylabel="tokens per second, rollout and update", xscale="log", yscale="log")
    axes.set_xticks([int(k) for k in next(iter(table.values()))], list(next(iter(table.values()))))
    axes.set_yticks(shown := [20, 50, 100, 200, 500, 1000, 2000], [str(y) for y in shown])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, nargs="+", default=[48], help="more than one: growth, at one epoch")
    parser.add_argument("--plot", help="write the growth as a picture")
    args = parser.parse_args()
    ways = tuple(args.ways)
    if len(args.new_tokens) > 1:
        report: dict[str, Any] = {"growth": growth(args.new_tokens, args.rounds, ways)}
        if args.plot:
            plot(report["growth"], args.plot)
    else:
        report = {way: {} for way in ways}
        for epochs in args.epochs:
            for way, result in measure(ways, args.new_tokens[0], epochs, args.rounds).items():
                suffix = "" if epochs == args.epochs[0] else f"_{epochs}_epochs"
                report[way] |= {f"{name}{suffix}": value for name, value in result.items()}
        report |= bookkeeping(args.new_tokens[0], args.rounds)
        report["threads"] = torch.get_num_threads()
    print(json.dumps(report, indent=None if args.json else 2))


if __name__ == "__main__":
    main()
