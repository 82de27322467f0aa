"""Several processes that train one model: two equal one, whatever they divide, and one that dies ends the run."""

from __future__ import annotations

import csv
import json
import shutil
import socket
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import forked
from supervised_trainings import TRAININGS, fine_tuned
from two_processes import (
    OTHERS,
    TIMESTEPS,
    first_gradient,
    held_out,
    make_ppo,
    run_process,
    scored_references,
    weights_of,
    write_data,
)

from agents import Checkpointing
from lm_env.distributed import Processes, processes
from lm_env.distributed.group import ProcessGroup
from lm_env.generation import Sampling
from lm_env.storage import verify_folder

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed package")


def launch(folder: Path, count: int = 2) -> list[ForkServerProcess]:
    """The processes of tests/support/two_processes.py, with the environment that torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    running = [
        forked(run_process, folder, {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(count)
    ]
    for process in running:
        process.start()
    return running


@pytest.fixture(scope="module")
def one_run(tmp_path_factory):
    """(an agent trained in one process, its folder): in `one` lies the checkpoint after its first rollout."""
    folder = tmp_path_factory.mktemp("processes")
    agent = make_ppo()
    agent.learn(TIMESTEPS, checkpoint=Checkpointing(folder / "whole", every=1, keep=9))
    first = sorted((folder / "whole").glob("0*"))[0]
    shutil.copytree(first, folder / "one" / first.name)
    write_data(folder)
    fine_tuned(folder / "sft-whole")
    halfway = sorted((folder / "sft-whole").glob("0*"))[3]
    shutil.copytree(halfway, folder / "sft-one" / halfway.name)
    return agent, folder


@pytest.fixture(scope="module")
def two(one_run):
    """(what each of two processes found, what it said, the seconds until both had ended, the folder)."""
    folder = one_run[1]
    running = launch(folder)
    for process in running:
        process.join(timeout=240)
    lasting = [process.exitcode for process in running]
    logs = [(folder / f"{rank}.txt").read_text() for rank in range(2)]
    assert (folder / "1.json").exists(), "\n".join(logs)
    assert lasting == [0, 9], "\n".join(logs)
    found = [dict(np.load(folder / f"{rank}.npz")) for rank in range(2)]
    said = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    return found, said, folder


def part(found: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(f"{prefix}/"): a for name, a in found.items() if name.startswith(f"{prefix}/")}


def furthest(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    assert a.keys() == b.keys() and a
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def test_the_gradient_of_two_processes_is_that_of_one(two):
    expected = first_gradient(make_ppo(max_grad_norm=1e9))
    size = max(float(np.abs(g).max()) for g in expected.values())
    for rank in range(2):
        assert furthest(part(two[0][rank], "gradient"), expected) <= 1e-6 * max(size, 1.0)
    mistaken = furthest(part(two[0][0], "mistake"), expected)
    assert mistaken > 1e-2 * size, "the texts are too much alike for this test to notice a mean of means"


def test_five_steps_of_two_processes_lead_to_the_weights_of_one(two, one_run):
    agent, _ = one_run
    assert agent.num_rollouts == 2, "twelve steps"
    for rank in range(2):
        assert furthest(part(two[0][rank], "ppo"), weights_of(agent)) <= 1e-5
    assert furthest(weights_of(agent), weights_of(make_ppo())) > 1e-2


@pytest.mark.parametrize("name", OTHERS)
def test_groups_pretraining_texts_and_packed_rows_are_divided_too(two, name):
    agent = OTHERS[name]()
    before = weights_of(agent)
    agent.learn(TIMESTEPS)
    assert furthest(before, weights_of(agent)) > 1e-3
    for rank in range(2):
        assert furthest(part(two[0][rank], name), weights_of(agent)) <= 1e-5


@pytest.mark.parametrize("name", TRAININGS)
def test_supervised_training_is_divided(two, name):
    """Weights, losses, and what is measured on texts held out."""
    weights, report = TRAININGS[name]()
    for rank in range(2):
        assert furthest(part(two[0][rank], name), weights) <= 1e-5
        assert_alike(two[1][rank][name], json.loads(json.dumps(report)))


def assert_alike(found, expected) -> None:
    """The same JSON, numbers to 1e-5."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_alike(found[name], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
    else:
        assert found == expected


def test_a_fine_tuning_goes_on_in_another_number_of_processes(two, tmp_path):
    expected = fine_tuned()[0]
    for rank in range(2):
        assert furthest(part(two[0][rank], "sft-resumed"), expected) <= 1e-5
    saved = sorted((two[2] / "sft-two").glob("0*"))
    assert len(saved) == 8, "the first process has saved each step"
    shutil.copytree(saved[2], tmp_path / saved[2].name)
    assert furthest(fine_tuned(tmp_path, resume=True)[0], expected) <= 1e-5


@pytest.mark.parametrize("name", ["by-sft", "by-dpo", "by-rm"])
def test_the_commands_write_one_folder(two, name):
    verify_folder(two[2] / name)
    assert (two[2] / name / "model.safetensors").exists()
    assert not [path.name for path in two[2].iterdir() if path.name.startswith((f"{name}.", f".{name}."))]


def test_an_evaluation_is_divided(two):
    callback = held_out(two[2] / "alone.jsonl")
    agent = make_ppo()
    agent.learn(TIMESTEPS, callback=callback)
    expected = [found.evaluation.metrics() for found in callback.history]
    assert len(expected) == 3
    for rank in range(2):
        assert_alike(two[1][rank]["evaluated"], expected)
        assert furthest(part(two[0][rank], "watched"), weights_of(agent)) <= 1e-5
    calls = [said["calls"] for said in two[1]]
    evaluations = [numbers[::2] for numbers in calls]  # between two of them there is a rollout
    assert evaluations == [[10] * 3, [11] * 3], "each of the 21 texts is scored in one process"
    rows = [
        [json.loads(line) for line in (two[2] / name).read_text().splitlines()]
        for name in ("samples.jsonl", "alone.jsonl")
    ]
    assert len(rows[0]) == 7 * len(expected), "the first process writes"
    assert_alike(*rows)


def test_the_estimate_of_a_ceiling_is_divided(two):
    optimum, calls = scored_references()
    assert calls == [63]
    assert [said["ceiling"][1] for said in two[1]] == [[31], [32]]
    assert [said["ceiling"][0] for said in two[1]] == pytest.approx([optimum] * 2, abs=1e-6)


def test_a_reward_that_fails_in_one_process_fails_the_evaluation_in_all(two):
    assert all("no score today" in said["failed"] for said in two[1])


def test_weights_and_moments_that_are_divided_lead_to_the_same(two, one_run):
    """Saved halfway, and gone on with."""
    for rank in range(2):
        assert furthest(part(two[0][rank], "divided"), weights_of(one_run[0])) <= 1e-5
    numbers = [said["divided"]["numbers"] for said in two[1]]
    assert sum(numbers) == two[1][0]["divided"]["of"] and max(numbers) <= 0.6 * sum(numbers)
    assert [said["divided"]["moments"] for said in two[1]] == numbers


def test_every_text_is_scored_by_one_process(two, one_run):
    texts = [said["ppo"]["texts"] for said in two[1]]
    assert len(texts[0]) == len(texts[1]) == one_run[0].num_rollouts
    assert all(a + b == 15 and abs(a - b) <= 1 for a, b in zip(*texts, strict=True))
    assert [said["ppo"]["timesteps"] for said in two[1]] == [one_run[0].num_timesteps] * 2


def test_the_first_process_writes_and_its_log_is_of_all_texts(two, one_run):
    rows = list(csv.DictReader((two[2] / "log" / "progress.csv").read_text().splitlines()))
    assert len(rows) == one_run[0].num_rollouts
    last = make_ppo()
    rollout = last.collect_rollout()
    assert float(rows[0]["rollout/score"]) == pytest.approx(rollout.scored.scores.mean(), abs=1e-5)
    assert float(rows[0]["rollout/kl"]) == pytest.approx(rollout.scored.kl.mean(), abs=1e-4)
    metrics = last.update(rollout)
    for name in ("policy_loss", "value_loss", "approx_kl", "grad_norm", "explained_variance"):
        assert float(rows[0][f"train/{name}"]) == pytest.approx(metrics[name], rel=1e-3, abs=1e-5)


def test_a_checkpoint_of_two_processes_goes_on_in_one(two, one_run, tmp_path):
    checkpoints = sorted((two[2] / "two").glob("0*"))
    assert len(checkpoints) == one_run[0].num_rollouts
    shutil.copytree(checkpoints[0], tmp_path / checkpoints[0].name)
    agent = make_ppo()
    agent.learn(TIMESTEPS, checkpoint=Checkpointing(tmp_path, every=1), resume=True)
    assert furthest(weights_of(agent), weights_of(one_run[0])) <= 1e-5


def test_a_checkpoint_of_one_process_goes_on_in_two(two, one_run):
    assert furthest(part(two[0][0], "resumed"), weights_of(one_run[0])) <= 1e-5


def test_processes_with_different_options_are_refused(two):
    for name in ("differing", "differing sft"):
        assert all("process 1 differs" in said[name] for said in two[1])


def test_a_process_that_dies_ends_the_others_with_one_sentence(two):
    message = json.loads((two[2] / "lost.json").read_text())
    assert "process 0 of 2 ends because another one has ended" in message and "resume=True" in message


def test_one_process_sends_nothing_and_changes_nothing():
    together = processes()
    assert type(together) is Processes and together.first
    arrays = {"a": np.arange(3), "b": np.ones((3, 2))}
    assert together.gather_rows(arrays, 3) == arrays
    sampling = Sampling(torch.Generator())
    assert sampling.of_share(together, 5, 4) is sampling
    assert together.deal(np.array([3, 1, 2])).tolist() == [0, 1, 2]
    assert range(7)[together.share(7)] == range(7)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_shares_and_deals_cover_everything_once_and_evenly(count, rng):
    members = []
    for rank in range(count):
        member = ProcessGroup.__new__(ProcessGroup)
        member.rank, member.count = rank, count
        members.append(member)
    assert [i for member in members for i in range(29)[member.share(29)]] == list(range(29))
    lengths = rng.integers(5, 200, 64)
    dealt = [member.deal(lengths) for member in members]
    assert sorted(np.concatenate(dealt).tolist()) == list(range(64))
    tokens = [int(lengths[rows].sum()) for rows in dealt]
    assert max(tokens) - min(tokens) <= lengths.max()
