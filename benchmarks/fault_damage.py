"""Damaged, foreign and hostile files, and places that cannot be used: each with its error; see faults.py."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import re
import resource
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fault_kills import SMALL, table_of, text_env, tiny_gpt2
from stable_baselines3 import PPO as SB3PPO

import agents.sb3
from agents import PPO, Checkpointing
from agents.sb3 import CausalLMPolicy, TextVecEnv
from lm_env import load_model
from lm_env.errors import CheckpointCorruptError, CheckpointMismatchError, LMEnvError
from lm_env.models.export import export_language_model
from lm_env.models.loading import load_causal_lm
from lm_env.storage import write_folder
from lm_env.tasks.token_mdp import make
from reward_models import RewardModel

Row = tuple[str, str, str]


# -- flipped bits --------------------------------------------------------------------------------------
def loaders(place: Path) -> dict[str, tuple[Path, Callable[[Path], object]]]:
    """name -> (a saved folder, what loads it)."""
    env = text_env(tiny_gpt2())
    PPO(env, batch_size=4, **SMALL).learn(40).save(place / "agent")
    vec_env = TextVecEnv.from_env(text_env(tiny_gpt2()))
    agents.sb3.save(SB3PPO(CausalLMPolicy, vec_env, n_steps=8, batch_size=4), place / "sb3")
    lm: Any
    lm, tokenizer = load_causal_lm("reviews-3m")
    RewardModel.from_causal_lm(lm, tokenizer).save(place / "reward_model")
    write_folder(place / "model", lambda folder: export_language_model(tiny_gpt2(), None, folder))
    return {
        "agent": (place / "agent", lambda path: PPO.load(path, env)),
        "stable-baselines3 agent": (place / "sb3", lambda path: agents.sb3.load(SB3PPO, path, vec_env)),
        "reward model": (place / "reward_model", lambda path: RewardModel.load(path, device="cpu")),
        "`--model`": (place / "model", lambda path: load_model(str(path))),
    }


def flipped_bits(flips: int, rng: random.Random) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for name, (folder, load) in loaders(Path(place)).items():
            load(folder)  # undamaged, it loads
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            seen = 0
            for _ in range(flips):
                file = rng.choice(files)
                content = bytearray(file.read_bytes())
                at = rng.randrange(8 * len(content))
                content[at // 8] ^= 1 << at % 8
                whole = file.read_bytes()
                file.write_bytes(content)
                try:
                    load(folder)
                except (CheckpointCorruptError, CheckpointMismatchError):
                    seen += 1
                finally:
                    file.write_bytes(whole)
            rows.append((f"one flipped bit, {name}", f"{flips} bits in {len(files)} files", f"{seen} of {flips} seen"))
    return rows


# -- each with its error ---------------------------------------------------------------------------------
class Payload:
    """Unpickled, it leaves a file behind."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def named_errors() -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for case in (full_disk, unwritable, two_writers, changed, pickles, archives, own_code):
            rows += case(root / case.__name__)
    return rows


def _tried(fault: str, call: Callable[[], object], held: Callable[[], bool] = lambda: True) -> Row:
    """The error that a call gives, and whether afterward what should hold holds."""
    try:
        call()
    except LMEnvError as error:
        said = re.sub(rf"{tempfile.gettempdir()}/tmp\w+/\w+/", "", str(error).splitlines()[0])
        outcome = f"`{type(error).__name__}`: {said[:100]} ..."
    except Exception as error:
        outcome = f"UNNAMED {type(error).__name__}: {error}"
    else:
        outcome = "NO ERROR"
    return (fault, "once", outcome if held() else f"{outcome} -- BUT WHAT SHOULD HOLD DOES NOT")


def full_disk(root: Path) -> list[Row]:
    """A limit on the size of a file stands in for the disk."""
    agent = PPO(text_env(tiny_gpt2()), batch_size=4, **SMALL).learn(40)
    agent.save(root / "agent")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        row = _tried("disk full while saving", lambda: agent.save(root / "agent"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    loads = lambda: bool(PPO.load(root / "agent", text_env(tiny_gpt2())))  # noqa: E731
    return [(row[0], row[1], row[2] + (", the older one loads" if loads() else " BUT THE OLDER ONE IS LOST"))]


def unwritable(root: Path) -> list[Row]:
    root.mkdir()
    (root / "file").write_text("")
    agent = PPO(make(), **SMALL)
    train = lambda: agent.learn(40, checkpoint=Checkpointing(root / "file" / "run"))  # noqa: E731
    return [_tried("unwritable folder, found before the first rollout", train, lambda: agent.num_rollouts == 0)]


def two_writers(root: Path) -> list[Row]:
    options = Checkpointing(root / "run", every=1)
    rows: list[Row] = []

    def second(local: Any, _: Any) -> bool:
        if not rows:
            rows.append(_tried("two trainings, one folder", lambda: PPO(make(), **SMALL).learn(9, checkpoint=options)))
        return True

    PPO(make(), **SMALL).learn(60, second, checkpoint=options)
    return rows


def changed(root: Path) -> list[Row]:
    options = Checkpointing(root / "run")
    PPO(make(), **SMALL).learn(40, checkpoint=options)
    others = {
        "another seed": lambda: PPO(make(), seed=1, **SMALL),
        "another reward": lambda: PPO(make(reward=lambda prompts, responses: [0.0] * len(responses)), **SMALL),
        "another vocabulary": lambda: PPO(make(mdp_seed=0), **SMALL),
    }
    rows = []
    for name, make_agent in others.items():
        agent = make_agent()
        go_on = lambda agent=agent: agent.learn(80, checkpoint=options, resume=True)  # noqa: E731
        rows.append(_tried(f"resumed with {name}", go_on))
    return rows


def pickles(root: Path) -> list[Row]:
    root.mkdir()
    target = root / "it-ran"
    rows = []
    for form in ("a pickle", "a torch archive"):
        content = io.BytesIO()
        torch.save({"w": Payload(target)}, content) if form == "a torch archive" else pickle.dump(
            Payload(target), content
        )
        model = root / form.replace(" ", "-")
        tiny_gpt2().save_pretrained(model)
        (model / "model.safetensors").unlink()
        (model / "pytorch_model.bin").write_bytes(content.getvalue())
        load = lambda model=model: load_model(str(model))  # noqa: E731
        rows.append(_tried(f"a model folder with {form} as its weights", load, lambda: not target.exists()))
        agent = PPO(make(), **SMALL).save(root / f"agent-{form[2]}")
        (agent / "agent" / "policy.safetensors").write_bytes(content.getvalue())
        load_agent = lambda agent=agent: PPO.load(agent, make())  # noqa: E731
        rows.append(_tried(f"an agent with {form} as its weights", load_agent, lambda: not target.exists()))
    return rows


def archives(root: Path) -> list[Row]:
    root.mkdir()
    target = root / "it-ran"
    with zipfile.ZipFile(root / "sb3.zip", "w") as archive:
        archive.writestr("data", json.dumps({"policy_class": {":type:": "x", ":serialized:": "gASVAAAA"}}))
        archive.writestr("policy.pth", pickle.dumps(Payload(target)))
    env = TextVecEnv.from_env(make())
    agent = PPO(make(), **SMALL).save(root / "agent")
    manifest = json.loads((agent / "manifest.json").read_text())
    manifest["files"]["../../etc/passwd"] = "0" * 64
    (agent / "manifest.json").write_text(json.dumps(manifest))
    return [
        _tried(
            "a zip of stable-baselines3 with code in it",
            lambda: agents.sb3.load(SB3PPO, root / "sb3.zip", env),
            lambda: not target.exists(),
        ),
        _tried("a manifest that names a file outside its folder", lambda: PPO.load(agent, make())),
    ]


def own_code(root: Path) -> list[Row]:
    """A repository that asks transformers to run its code."""
    target = root / "it-ran"
    tiny_gpt2().save_pretrained(root / "model")
    config = json.loads((root / "model" / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {k: f"own.{k}" for k in ("AutoConfig", "AutoModelForCausalLM")}}
    (root / "model" / "config.json").write_text(json.dumps(config))
    (root / "model" / "own.py").write_text(f"open({str(target)!r}, 'w')\n")
    load = lambda: load_model(str(root / "model"))  # noqa: E731
    return [_tried("a model folder with `auto_map`", load, lambda: not target.exists())]


def reader_beside_a_writer(reads: int) -> list[Row]:
    """A child saves without a pause; each read must be of a single save."""
    env = make()
    agent = PPO(env, **SMALL)
    with tempfile.TemporaryDirectory() as place:
        path = agent.save(Path(place) / "agent")
        child = os.fork()
        if not child:
            step = 0
            while True:
                step += 1
                agent.num_timesteps = step
                with torch.no_grad():
                    table_of(agent).fill_(float(step))
                agent.save(path)
        reader_env = make()
        good, seen = 0, set()
        try:
            with torch.no_grad():
                table_of(agent).zero_()
            for _ in range(reads):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # that an older folder was taken
                    loaded = PPO.load(path, reader_env)
                table = table_of(loaded).detach().numpy()
                whole = np.unique(table).size == 1 and table.flat[0] == loaded.num_timesteps
                good += bool(whole) or loaded.num_timesteps == 0
                seen.add(loaded.num_timesteps)
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)
    return [("a reader beside a writer", f"{reads} reads", f"{good} of {reads} whole, of {len(seen)} different saves")]
