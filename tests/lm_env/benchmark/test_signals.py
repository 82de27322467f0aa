"""The first SIGTERM or Ctrl-C: work with nothing to save ends at once, a training with checkpoints saves first."""

from __future__ import annotations

import contextlib
import signal

import pytest

from lm_env.benchmark import BenchSettings, comparable, run_bench
from lm_env.benchmark.settings import Cell
from lm_env.benchmark.workers import run_in_processes
from lm_env.errors import TrainingInterrupted
from lm_env.storage import EndOnSignals, StopSignals, checkpoints_in

TASK = '''
"""A task whose reward sends a signal once, as the file `stop` says: "CALL SIGNAL self" or "CALL SIGNAL parent"."""
import os, signal
from pathlib import Path
from lm_env.tasks import TextTask

HERE = Path(__file__).parent

def vowels(prompts, responses):
    with (HERE / "calls").open("a") as file:
        file.write(f"{{os.getpid()}}\\n")
    order = HERE / "stop"
    if order.exists():
        call, number, receiver = order.read_text().split()
        if len((HERE / "calls").read_text().splitlines()) == int(call):
            order.unlink()
            if receiver == "self":
                os.kill(os.getpid(), int(number))
            else:
                os.kill(os.getppid(), int(number))
                signal.pause()  # until this process is ended
    return [sum(c in "aeiou" for c in r) / (1 + len(r)) for r in responses]

def task():
    prompts = [f"{{word}} {{n}}" for word in ("good", "film", "story") for n in range(6)]
    return TextTask(
        id="me/Vowels-v0", summary="write vowels", source=prompts, reward=vowels, model={model!r}, max_new_tokens=4,
        beta=0.05,
    )
'''
BASELINES, RUN = Cell("vowels", "baselines"), Cell("vowels", "rloo", 0)


class Work:
    """A benchmark of one short run, and the reward calls of its parts."""

    def __init__(self, place, model_folder):
        self.place = place
        (place / "vowels.py").write_text(TASK.format(model=str(model_folder)))
        self.settings = BenchSettings.of(
            {
                "tasks": [{"task": f"{place / 'vowels.py'}:task", "label": "vowels"}],
                "agents": [{"agent": "rloo", "rollout_episodes": 8, "batch_size": 8, "learning_rate": 1e-3}],
                "tokens": 90,
                "seeds": 1,
                "evaluations": 1,
                "curve_texts": 4,
                "prompts": 4,
                "texts": 8,
                "ceiling_samples": 16,
                "ceiling_most": 16,
            }
        )

    def run(self, out, **options):
        (self.place / "calls").unlink(missing_ok=True)
        return run_bench(self.settings, self.place / out, **options)

    def calls(self):
        return len((self.place / "calls").read_text().splitlines())

    def stop_at(self, call, number=signal.SIGTERM, receiver="self"):
        (self.place / "stop").write_text(f"{call} {int(number)} {receiver}")


@pytest.fixture
def work(tmp_path, model_folder):
    return Work(tmp_path, model_folder)


@pytest.fixture
def baseline_calls(work):
    """How often the baselines call the reward: for the ceiling, for the samples of best-of-n, for random texts."""
    from lm_env.benchmark.cells import run_cell

    run_cell(work.settings, BASELINES, work.place / "counted")
    found = work.calls()
    assert found >= 3
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_baselines_at_once_in_this_process(work, baseline_calls, number):
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    whole = work.run("whole")
    for call in range(1, baseline_calls + 1):
        work.stop_at(call, number)
        with pytest.raises(TrainingInterrupted, match="0 of 2 cells done"):
            work.run("stopped")
        assert work.calls() == call, "the cell went on after the signal"
        assert not (work.place / "stopped" / BASELINES.path / "record.json").exists()
        assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    resumed = work.run("stopped")
    assert comparable(resumed.records) == comparable(whole.records)


def test_a_training_finishes_its_rollout_and_keeps_its_checkpoint(work, baseline_calls):
    """The calls of a run: an evaluation before it, one for each rollout, and then those of the evaluations."""
    whole = work.run("whole")
    work.stop_at(baseline_calls + 3)
    with pytest.raises(TrainingInterrupted, match="1 of 2 cells done"):
        work.run("stopped")
    assert work.calls() == baseline_calls + 3, "another rollout began after the signal"
    saved = checkpoints_in(work.place / "stopped" / RUN.path / "checkpoints")
    assert saved and not (work.place / "stopped" / RUN.path / "record.json").exists()
    resumed = work.run("stopped")
    assert comparable(resumed.records) == comparable(whole.records)


def test_the_evaluation_after_a_training_ends_at_once_and_the_training_is_kept(work):
    whole = work.run("whole")
    last = work.calls()
    work.stop_at(last)
    with pytest.raises(TrainingInterrupted, match="1 of 2 cells done"):
        work.run("stopped")
    assert checkpoints_in(work.place / "stopped" / RUN.path / "checkpoints")
    resumed = work.run("stopped")
    assert work.calls() == 2, "more was done again than the two evaluations after the last rollout"
    assert comparable(resumed.records) == comparable(whole.records)


@pytest.mark.slow
def test_a_signal_ends_the_baselines_of_a_worker_at_once(work):
    """The worker waits for its end inside the reward function, so the call returns only because it was ended."""
    work.stop_at(1, receiver="parent")
    waiting = [BASELINES, RUN]
    with StopSignals("what is under way is saved") as stop:
        ended = list(run_in_processes(work.settings, work.place, lambda: waiting.pop(0), lambda: stop.received, 1))
    assert stop.received is signal.SIGTERM and work.calls() == 1
    assert not ended and waiting == [RUN] and not (work.place / BASELINES.path / "record.json").exists()


def test_inside_a_training_the_first_signal_is_noted_and_the_second_one_raises():
    with pytest.raises(TrainingInterrupted, match="SIGTERM: the work ends at once"), EndOnSignals("the work"):
        with StopSignals("it is saved") as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.received is signal.SIGINT
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("the signal was only noted")


@pytest.mark.parametrize("after", [None, ValueError("the work goes on, and fails")])
def test_work_that_catches_the_interruption_is_interrupted_at_its_end(after):
    with pytest.raises(TrainingInterrupted, match="SIGINT: the work ends at once") as caught, EndOnSignals("the work"):
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGINT)
        if after is not None:
            raise after
    assert caught.value.__cause__ is after
