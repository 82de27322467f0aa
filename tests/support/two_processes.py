"""What one of several processes does in tests/agents/learning/test_distributed.py: `run_process`.

It writes its findings to FOLDER/RANK.npz, messages to FOLDER/RANK.json, and what it prints on stderr to
FOLDER/RANK.txt.  The functions above `main` make agents for the run of one process as well.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import build_lm, build_tokenizer
from supervised_trainings import TRAININGS, fine_tuned, texts

from agents import GRPO, PPO, Checkpointing, EvaluateTexts, OnlineDPO, PPOPtx
from agents.learning import Updating
from lm_env import TextGenerationEnv
from lm_env.distributed import processes
from lm_env.errors import LMEnvError, LostProcessError
from lm_env.theory import task_ceiling

FIVE_STEPS = {"rollout_episodes": 15, "slots": 4, "batch_size": 6, "n_epochs": 2, "learning_rate": 0.003}
"""Rollouts of 15 episodes in minibatches of 6, 6 and 3; the second process has one episode more than the first."""
TIMESTEPS = 100


def uneven(prompts, responses, response_ids):
    """A score that tells texts apart; of unequal size, so that means over unequal shares differ."""
    return [sum(((token * 7) % 11) * (i + 1) for i, token in enumerate(ids)) / 20 for ids in response_ids]


def make_env(reward=uneven) -> TextGenerationEnv:
    """Texts of 1 to 12 tokens: many tokens end one.  In double precision, for Adam makes steps of full size out of what
    is only rounding in gradients that ought to be 0, as those of the attention's key biases."""
    return TextGenerationEnv(
        model=build_lm("gpt2").double(),
        reference=build_lm("gpt2", seed=1).double(),
        prompts=[[1, 2, 3, 4, 5], [6], [7, 8, 9], [10, 11]],
        reward=reward,
        eos_token_id=list(range(0, 61, 8)),
        max_new_tokens=12,
        beta=0.1,
    )


def make_ppo(reward=uneven, **options) -> PPO:
    """PPO with a value head that says something."""
    agent = PPO(make_env(reward), critic="shared", **{**FIVE_STEPS, **options})
    torch.nn.init.constant_(agent.policy.value_head.weight, 0.1)
    return agent


def make_grpo(**options) -> GRPO:
    return GRPO(make_env(), group_size=3, **{**FIVE_STEPS, **options})


def make_online_dpo(**options) -> OnlineDPO:
    return OnlineDPO(make_env(), group_size=3, **{**FIVE_STEPS, **options})


def make_packed_online_dpo() -> OnlineDPO:
    return make_online_dpo(updating=Updating(packed=True))


def make_packed() -> PPO:
    return make_ppo(updating=Updating(packed=True), micro_batch_tokens=24)


def make_ptx(**options) -> PPOPtx:
    texts = [{"ids": [i, i + 1, 3][: 2 + i % 2]} for i in range(1, 9)]
    return PPOPtx(make_env(), [row["ids"] for row in texts], critic="shared", ptx_coef=0.5, **FIVE_STEPS, **options)


OTHERS = {
    "grpo": make_grpo,
    "ptx": make_ptx,
    "online-dpo": make_online_dpo,
    "packed": make_packed,
    "packed-online-dpo": make_packed_online_dpo,
}
"""Agents besides PPO whose two processes are compared with one."""


HELD_OUT = [[i, i + 1] for i in range(1, 8)]


def held_out(samples: Path | None = None) -> EvaluateTexts:
    """Three texts to each of seven prompts, so that the shares are unequal."""
    return EvaluateTexts(HELD_OUT, 3, every=50, samples=samples, shown=7)


def scored_references() -> tuple[float, list[int]]:
    """The optimum on these prompts, and how many texts this process has scored to estimate it."""
    calls: list[int] = []

    def counting(prompts, responses, response_ids):
        calls.append(len(responses))
        return uneven(prompts, responses, response_ids)

    found = task_ceiling(make_env(counting).task, HELD_OUT, samples=9, most=9, divided=True)
    return found.J.mean, calls


def weights_of(agent) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().copy() for name, p in agent.policy.named_parameters()}


def first_gradient(agent, per_process_mean: bool = False) -> dict[str, np.ndarray]:
    """The gradient of the first minibatch of a rollout, as the optimizer gets it.

    Args:
        per_process_mean: divide by the tokens of this process's share, and by the number of processes: the mistake that
            must not be made.
    """
    agent.updater.begin()
    rollout = agent.collect_rollout()
    rows = np.arange(3)
    targets = agent.targets(rollout)
    lengths = rollout.episodes.response_lengths
    weights = None
    if per_process_mean:
        own = processes().deal(rollout.episodes.lengths[rows])
        weights = np.full(len(rollout), 1 / lengths[rows][own].sum() / processes().count)
    agent.updater.optimizer.step = lambda *_: None
    with agent.updater.step(rollout, rows, weights) as step:
        for batch in step.micro_batches():
            step.backward(agent.loss(step.evaluate(batch), batch, targets))
    return {name: p.grad.numpy().copy() for name, p in agent.policy.named_parameters()}


def write_data(folder: Path) -> None:
    """A tiny model with its tokenizer, demonstrations and comparisons, for `commands`."""
    tokenizer = build_tokenizer()
    build_lm("gpt2", vocab_size=len(tokenizer)).save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    said = texts(12, seed=4)
    rows = [{"prompt": f"p{i}", "response": text} for i, text in enumerate(said)]
    pairs = [{"prompt": f"p{i}", "chosen": text, "rejected": text + " bad"} for i, text in enumerate(said)]
    for name, content in (("demos", rows), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))


def commands(folder: Path) -> list[Callable[[], None]]:
    """`lm-env sft`, `lm-env dpo` and `lm-env rm train`, each into a folder of its own in this one."""
    from typer.testing import CliRunner

    from lm_env.cli import app

    model, small = str(folder / "tiny"), ["--held-out-fraction", "0.2", "--device", "cpu"]
    lines = [
        ["sft", str(folder / "demos.jsonl"), "--model", model, "--out", str(folder / "by-sft"), *small],
        ["dpo", model, str(folder / "pairs.jsonl"), "--out", str(folder / "by-dpo"), "--new-tokens", "2", *small],
        ["rm", "train", str(folder / "pairs.jsonl"), "--model", model, "--out", str(folder / "by-rm"), *small],
    ]

    def run(line: list[str]) -> None:
        result = CliRunner().invoke(app, line)
        assert result.exit_code == 0, (result.output, result.exception)
        assert bool(result.stdout) == processes().first, "one process speaks"

    return [partial(run, line) for line in lines]


class FailsForOne:
    """A reward function that raises in the second process only."""

    def __call__(self, prompts, responses, response_ids):
        if processes().rank == 1:
            raise ValueError("no score today")
        return uneven(prompts, responses, response_ids)


class DiesInRollout:
    """A reward function during whose second call the second process ends, as if it were killed."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, prompts, responses, response_ids):
        self.calls += 1
        if self.calls == 2 and processes().rank == 1:
            os._exit(9)
        return uneven(prompts, responses, response_ids)


def main(folder: Path) -> None:
    together = processes()
    found: dict[str, np.ndarray] = {}
    said: dict[str, object] = {"rank": together.rank, "count": together.count}

    def keep(prefix: str, arrays: dict[str, np.ndarray]) -> None:
        found.update({f"{prefix}/{name}": array for name, array in arrays.items()})

    keep("gradient", first_gradient(make_ppo(max_grad_norm=1e9)))
    keep("mistake", first_gradient(make_ppo(max_grad_norm=1e9), per_process_mean=True))

    seen: list[str] = []
    agent = make_ppo(log_dir=folder / "log", on_reward_error="retry")
    reward = agent.task.reward
    agent.reward.reward = lambda prompts, responses, **columns: (
        seen.append(len(responses)) or reward(prompts, responses, columns["response_ids"])
    )
    agent.learn(TIMESTEPS, checkpoint=Checkpointing(folder / "two", every=1, keep=9))
    keep("ppo", weights_of(agent))
    said["ppo"] = {"texts": seen, "timesteps": agent.num_timesteps}
    agent.save(folder / "saved")

    divided = make_ppo(updating=Updating(shard=True))
    divided.learn(TIMESTEPS // 2, checkpoint=Checkpointing(folder / "divided", every=1))
    said["divided"] = {
        "numbers": sum(p.to_local().numel() for p in divided.updater.model.parameters()),
        "moments": sum(s["exp_avg"].to_local().numel() for s in divided.updater.optimizer.state.values()),
        "of": sum(p.numel() for p in divided.policy.parameters()),
    }
    other = make_ppo(updating=Updating(shard=True))
    other.learn(TIMESTEPS, checkpoint=Checkpointing(folder / "divided", every=1), resume=True)
    keep("divided", weights_of(other))

    for name, make in OTHERS.items():
        other = make()
        other.learn(TIMESTEPS)
        keep(name, weights_of(other))
    for name, train in TRAININGS.items():
        trained, report = train()
        keep(name, trained)
        said[name] = report
    keep("sft-resumed", fine_tuned(folder / "sft-one", resume=True)[0])
    fine_tuned(folder / "sft-two")
    try:
        fine_tuned(epochs=1 + together.rank)
    except LMEnvError as error:
        said["differing sft"] = str(error)

    for command in commands(folder):
        command()

    watched = make_ppo()
    calls: list[int] = []
    reward = watched.task.reward
    watched.task.reward = lambda prompts, responses, **columns: (
        calls.append(len(responses)) or reward(prompts, responses, columns["response_ids"])
    )
    callback = held_out(folder / "samples.jsonl")
    watched.learn(TIMESTEPS, callback=callback)
    said["evaluated"] = [found.evaluation.metrics() for found in callback.history]
    said["calls"] = calls
    said["ceiling"] = scored_references()
    keep("watched", weights_of(watched))
    try:
        make_ppo(FailsForOne()).learn(TIMESTEPS, callback=held_out())
    except LMEnvError as error:
        said["failed"] = str(error)

    resumed = make_ppo()
    resumed.learn(TIMESTEPS, checkpoint=Checkpointing(folder / "one", every=1), resume=True)
    keep("resumed", weights_of(resumed))

    try:
        make_ppo(seed=together.rank).learn(TIMESTEPS)
    except LMEnvError as error:
        said["differing"] = str(error)

    np.savez(folder / f"{together.rank}.npz", **found)
    (folder / f"{together.rank}.json").write_text(json.dumps(said))
    try:
        make_ppo(DiesInRollout()).learn(10**6)
    except LostProcessError as error:
        (folder / "lost.json").write_text(json.dumps(str(error)))


def run_process(folder: Path, environment: dict[str, str]) -> None:
    """`main` in a process that has just been forked, with the variables that torchrun would set."""
    os.environ.update(environment)
    with (folder / f"{environment['RANK']}.txt").open("w") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())
    warnings.simplefilter("ignore")
    main(folder)
