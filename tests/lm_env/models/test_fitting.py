"""Supervised training that is stopped and gone on with: the same weights and losses to the last bit."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch
from torch import nn

from agents.sft import supervised_finetune
from lm_env.errors import CheckpointMismatchError, ConfigurationError, TrainingInterrupted
from lm_env.models.fitting import fit
from lm_env.storage import Checkpointing, checkpoints_in
from reward_models.preferences import Comparison, RewardModel, train_reward_model

X = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
BATCHES = list(np.arange(24).reshape(8, 3))


class Crash(Exception):
    """Stands for a process that ends in the middle of a run."""


def regression(crash_at: int | None = None, crash=None, **options):
    """(the weights as bytes, the losses) of a linear regression of eight steps."""
    model = nn.Linear(3, 1)
    nn.init.ones_(model.weight), nn.init.zeros_(model.bias)
    steps = []

    def accumulate(rows):
        steps.append(rows)
        if len(steps) == crash_at:
            crash()
        loss = (model(X[rows]) - X[rows].sum(1, keepdim=True) ** 2).square().mean()
        loss.backward()
        return loss.item()

    losses = fit(
        dict(model.named_parameters()),
        BATCHES,
        accumulate,
        **{"learning_rate": 0.1, "max_grad_norm": 1.0, "identity": {"seed": 0}, **options},
    )
    return [p.detach().numpy().tobytes() for p in model.parameters()], losses


def crash():
    raise Crash


def test_two_crashes_change_nothing(tmp_path):
    whole = regression()
    place = {"checkpoint": Checkpointing(tmp_path, every=2), "resume": True}
    for at in (4, 3):
        with pytest.raises(Crash):
            regression(at, crash, **place)
    assert checkpoints_in(tmp_path)[-1].name == "000000004"
    assert regression(**place) == whole
    assert regression(**place) == whole, "a run that is done is only read"
    assert len(whole[1]) == 8 and whole[1][-1] < whole[1][0]


def test_a_signal_saves_after_the_step(tmp_path):
    place = {"checkpoint": Checkpointing(tmp_path, every=100), "resume": True}
    with pytest.raises(TrainingInterrupted, match="after step 3 of 8") as ended:
        regression(3, lambda: os.kill(os.getpid(), signal.SIGTERM), **place)
    assert ended.value.code == 75
    assert regression(**place) == regression()


class StopsAt:
    """Ends the run after a step, and remembers how often it was asked."""

    def __init__(self, last: int) -> None:
        self.last, self.asked, self.best = last, 0, torch.zeros(2)

    def stops(self, step: int) -> bool:
        self.asked += 1
        self.best = self.best + step
        return step == self.last

    def state(self):
        return {"asked": self.asked}, {"best": self.best}

    def load_state(self, state, tensors):
        self.asked, self.best = state["asked"], tensors["best"]


def test_a_run_that_was_ended_early_stays_ended_and_its_judge_remembers(tmp_path):
    whole = regression(stopping=StopsAt(6))
    assert len(whole[1]) == 6
    place = {"checkpoint": Checkpointing(tmp_path, every=1), "resume": True}
    with pytest.raises(Crash):
        regression(5, crash, stopping=StopsAt(6), **place)
    for _ in range(2):
        judge = StopsAt(6)
        assert regression(stopping=judge, **place) == whole
        assert judge.asked == 6 and judge.best.tolist() == [21.0, 21.0]


def test_another_run_is_refused(tmp_path):
    place = {"checkpoint": Checkpointing(tmp_path)}
    regression(**place)
    with pytest.raises(CheckpointMismatchError, match=r"seed differs: .* 0, 1 is given"):
        regression(identity={"seed": 1}, resume=True, **place)
    with pytest.raises(ConfigurationError, match="resume=True"):
        regression(**place)
    with pytest.raises(ConfigurationError, match="needs checkpoint="):
        regression(resume=True)


def test_fine_tuning_goes_on(make_lm, tmp_path):
    rows = [{"prompt": [i, 2], "response": [i + 1, 5]} for i in range(1, 13)]

    def tune(crash_at=None, **options):
        model = make_lm("gpt2")
        if crash_at:
            calls = []
            model.transformer.register_forward_hook(
                lambda *_: calls.append(1) or (len(calls) == crash_at and crash()) or None
            )
        options = {"batch_size": 4, "epochs": 2, "eos_token_id": 0, "held_out_fraction": 0.2, **options}
        return model, supervised_finetune(model, None, rows, **options)

    whole, report = tune()
    place = {"checkpoint": Checkpointing(tmp_path, every=1), "resume": True}
    with pytest.raises(Crash):
        tune(crash_at=5, **place)
    assert len(checkpoints_in(tmp_path)) > 0
    resumed, again = tune(**place)
    assert again == report
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))
    with pytest.raises(CheckpointMismatchError, match="demonstrations differs"):
        supervised_finetune(
            make_lm("gpt2"),
            None,
            rows[1:],
            batch_size=4,
            epochs=2,
            eos_token_id=0,
            **{"held_out_fraction": 0.2, **place},
        )


def test_the_training_of_a_reward_model_goes_on(text_lm, tokenizer, tmp_path):
    comparisons = [Comparison(f"film {i}", " good", " bad") for i in range(12)]

    def train(crash_at=None, **options):
        model = RewardModel.from_causal_lm(text_lm(), tokenizer, seed=0)
        if crash_at:
            calls = []
            model.network.register_forward_hook(
                lambda *_: calls.append(1) or (len(calls) == crash_at and crash()) or None
            )
        return model, train_reward_model(model, comparisons, batch_size=3, epochs=2, **options)

    whole, report = train()
    place = {"checkpoint": Checkpointing(tmp_path, every=1), "resume": True}
    with pytest.raises(Crash):
        train(crash_at=4, **place)
    assert checkpoints_in(tmp_path)[-1].name == "000000003"
    resumed, again = train(**place)
    assert again == report
    pairs = zip(resumed.network.parameters(), whole.network.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
