"""kill -9 while a checkpoint is saved, and while an agent trains; see faults.py.

python benchmarks/fault_kills.py train NAME FOLDER      one training of the table, which prints its rollouts
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from agents import GRPO, PPO, Checkpointing
from agents.base import BatchedAgent
from lm_env import AdaptiveKL, TextGenerationEnv
from lm_env.storage import CheckpointFolder, checkpoints_in
from lm_env.tasks.token_mdp import make

EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.chmod", "os.truncate"}
TOKENS = 600
SMALL: dict[str, Any] = {"rollout_episodes": 8, "slots": 8, "learning_rate": 1e-2}


def letters(prompts: list[str], responses: list[str], response_ids: list[list[int]]) -> list[float]:
    """A score that tells every response from every other."""
    return [sum((t + 1) * (i + 1) for i, t in enumerate(ids)) / 1000 for ids in response_ids]


def tiny_gpt2(**options: Any) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=61, bos_token_id=0, eos_token_id=0, n_embd=32, n_layer=2, n_head=4, n_positions=64, **options
        )
    )


def text_env(model: torch.nn.Module, **options: Any) -> TextGenerationEnv:
    prompts = [[1, 2, 3], [6], [8, 9]]
    task = {"prompts": prompts, "reward": letters, "eos_token_id": list(range(0, 61, 5)), "max_new_tokens": 6}
    return TextGenerationEnv(model=model, **{**task, "beta": 0.3, **options})


def lora_env() -> TextGenerationEnv:
    import peft  # type: ignore[import-not-found,unused-ignore]

    config = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["c_attn"], fan_in_fan_out=True)
    return text_env(peft.get_peft_model(tiny_gpt2(), config))


def dropout_env() -> TextGenerationEnv:
    return text_env(tiny_gpt2(resid_pdrop=0.2, attn_pdrop=0.2, embd_pdrop=0.2).train())


TRAININGS: dict[str, Callable[[Any], BatchedAgent]] = {
    "ppo": lambda log: PPO(text_env(tiny_gpt2()), batch_size=4, log_dir=log, **SMALL),
    "grpo": lambda log: GRPO(text_env(tiny_gpt2()), group_size=4, batch_size=8, log_dir=log, **SMALL),
    "ppo, LoRA": lambda log: PPO(lora_env(), batch_size=4, log_dir=log, **SMALL),
    "ppo, EMA": lambda log: PPO(text_env(tiny_gpt2()), batch_size=4, ema_decay=0.9, log_dir=log, **SMALL),
    "ppo, adaptive KL": lambda log: PPO(
        text_env(tiny_gpt2(), beta=AdaptiveKL(0.3, target=1.0, horizon=200)), batch_size=4, log_dir=log, **SMALL
    ),
    "ppo, dropout model": lambda log: PPO(dropout_env(), batch_size=4, log_dir=log, **SMALL),
}


# -- in training ---------------------------------------------------------------------------------------
def train(name: str, folder: Path) -> None:
    """Train with a checkpoint after each rollout, tell each rollout, and end with a digest of everything."""
    warnings.simplefilter("ignore")
    agent = TRAININGS[name](folder / "log")
    told = lambda local, _: print("rollout", flush=True) or True  # noqa: E731
    agent.learn(TOKENS, told, checkpoint=Checkpointing(folder / "checkpoints", every=1), resume=True)
    digest = hashlib.sha256()
    state = agent.state()
    for key, tensor in sorted({**agent.policy.state_dict(), **state.updater}.items()):
        digest.update(key.encode() + tensor.detach().numpy().tobytes())
    digest.update(repr([state.settings[k] for k in ("num_timesteps", "num_rollouts", "kl", "randomness")]).encode())
    lines = (folder / "log" / "progress.csv").read_text().count("\n")
    print("done", digest.hexdigest(), lines, flush=True)


def killed_trainings(kills: int, rng: random.Random) -> list[tuple[str, str, str]]:
    """Each training is killed so many times, at random moments, and resumed until its end."""
    rows = []
    for name in TRAININGS:
        with tempfile.TemporaryDirectory() as place:
            whole = _run(name, Path(place) / "whole")
            pause = whole[0] / TOKENS * SMALL["rollout_episodes"] * 4  # about as long as a rollout and its checkpoint
            done = 0
            for _ in range(kills):
                done += _run(name, Path(place) / "killed", rng.randint(1, 3), rng.uniform(0, pause)) is None
            resumed = _run(name, Path(place) / "killed")
        same = "the same, and the log has the same rows" if resumed[1:] == whole[1:] else "DIFFERENT"
        rows.append((f"kill -9 in training, {name}", f"{done} kills", f"final weights, optimizer and counters: {same}"))
        print(rows[-1], file=sys.stderr)
    return rows


def _run(name: str, folder: Path, rollouts: int | None = None, pause: float = 0.0) -> Any:
    """(seconds of training, digest, lines of the log); None if it was killed.

    Args:
        rollouts: kill it so many seconds (`pause`) after its n-th rollout; None: not at all.
    """
    command = [sys.executable, __file__, "train", name, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        started = 0.0
        for number, line in enumerate(process.stdout, start=1):
            started = started or time.monotonic()
            if line.startswith("done"):
                return (time.monotonic() - started, *line.split()[1:])
            if number == rollouts:
                time.sleep(pause)
                process.kill()
        if rollouts is not None and process.wait() == -signal.SIGKILL:
            return None
    raise RuntimeError(f"{name} ended with the exit code {process.returncode}")


# -- in saving -----------------------------------------------------------------------------------------
def table_of(agent: PPO) -> torch.Tensor:
    """The weights of the model of a TokenMDP."""
    model: Any = agent.task.model
    return model.table


class Saver:
    """An agent whose weights and counter say at which step they were saved."""

    def __init__(self, root: Path) -> None:
        self.agent = PPO(make(), **SMALL)
        self.options = Checkpointing(root, every=1, keep=2)
        self.step = 1
        with CheckpointFolder(self.options) as folder:
            self.save(folder)

    def save(self, folder: CheckpointFolder) -> None:
        self.agent.num_timesteps = self.step
        with torch.no_grad():
            table_of(self.agent).fill_(float(self.step))
        folder.save(self.step, self.agent.save)

    def recovered(self, at_least: int) -> bool:
        """Whether the newest checkpoint is whole, of one save, and not older than it should be; and saving goes on."""
        with CheckpointFolder(self.options) as folder:
            found = folder.newest(self.agent.read_run)
            if found is None:
                return False
            step = int(found[0].name)
            table = found[1].weights["lm.table"]
            good = found[1].settings["num_timesteps"] == step >= at_least and bool((table == step).all())
            folder.check_room(1000)
            self.step = step + 1
            self.save(folder)
            newest = checkpoints_in(folder.root)[-1]
            left = {name for name in os.listdir(folder.root) if name.startswith(".")} - {".lock"}
            return good and int(newest.name) == self.step and not left


def killed_saves(kills: int, rng: random.Random) -> list[tuple[str, str, str]]:
    """A child saves and saves, and is killed at a random moment."""
    good = 0
    with tempfile.TemporaryDirectory() as place:
        saver = Saver(Path(place) / "run")
        started = time.monotonic()
        with CheckpointFolder(saver.options) as folder:
            for _ in range(3):
                saver.step += 1
                saver.save(folder)
        seconds = (time.monotonic() - started) / 3
        for _ in range(kills):
            read_end, write_end = os.pipe()
            child = os.fork()
            if not child:
                with CheckpointFolder(saver.options) as folder:
                    while True:
                        saver.step += 1
                        saver.save(folder)
                        os.write(write_end, f"{saver.step}\n".encode())
            os.close(write_end)
            time.sleep(rng.uniform(0, 3 * seconds))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            with os.fdopen(read_end) as told:
                last = [int(line) for line in told] or [saver.step]
            good += saver.recovered(last[-1])
    outcome = f"{good} of {kills} recovered: the last finished save or a newer one, and the next save succeeded"
    return [("kill -9 at a random moment of saving", f"{kills} kills", outcome)]


def killed_at_events() -> list[tuple[str, str, str]]:
    """A child's save ends before its n-th event in the file system, for every n."""
    good = points = 0
    with tempfile.TemporaryDirectory() as place:
        saver = Saver(Path(place) / "run")
        while True:
            last = saver.step
            child = os.fork()
            if not child:
                with CheckpointFolder(saver.options) as folder:
                    left = [points]

                    def count(event: str, arguments: object, left: list[int] = left) -> None:
                        if event in EVENTS:
                            left[0] -= 1
                            if left[0] < 0:
                                os.kill(os.getpid(), signal.SIGKILL)

                    sys.addaudithook(count)
                    saver.step += 1
                    saver.save(folder)
                    os._exit(0)
            finished = os.waitpid(child, 0)[1] == 0
            good += saver.recovered(last)
            points += 1
            if finished:
                break
    outcome = f"{good} of {points} recovered, and the next save succeeded"
    return [("kill -9 before each file-system event of a save", f"{points} points", outcome)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(sys.argv[2], Path(sys.argv[3]))
