"""Logprobs by Liger's kernel: what is refused, what is handed to it, and the kernel itself where it is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from paths import REPOSITORY
from torch import nn

from agents import PPO, Updating
from agents.learning.policy import ValueHeadPolicy
from lm_env import TextGenerationEnv
from lm_env.errors import ConfigurationError, MissingDependencyError, UnsupportedModelError
from lm_env.models.logprobs import check_liger

STAND_IN = '''
"""Stands for liger_kernel.ops: the same arguments, computed by plain torch; it counts its calls."""
import torch

calls = []

class LigerFusedLinearCrossEntropyFunction:
    @staticmethod
    def apply(_input, weight, target, bias=None, ce_weight=None, ignore_index=-100, lse_square_scale=0.0,
              label_smoothing=0.0, reduction="mean"):
        assert ce_weight is None and lse_square_scale == label_smoothing == 0 and reduction == "none"
        calls.append(len(target))
        logits = torch.nn.functional.linear(_input, weight, bias)
        return torch.nn.functional.cross_entropy(logits, target, reduction="none"), None, None, None
'''


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """`installed("0.8.5")` puts a stand-in for that release of liger-kernel in front of what is installed."""

    def install(version: str) -> None:
        package = tmp_path / "liger_kernel"
        package.mkdir()
        (package / "__init__.py").write_text("")
        (package / "ops.py").write_text(STAND_IN)
        about = tmp_path / f"liger_kernel-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: liger-kernel\nVersion: {version}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        for name in ("liger_kernel", "liger_kernel.ops"):
            monkeypatch.delitem(sys.modules, name, raising=False)

    yield install
    for name in ("liger_kernel", "liger_kernel.ops"):
        sys.modules.pop(name, None)


# -- what is refused ---------------------------------------------------------------------------------
@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is not None, reason="liger-kernel is installed")
def test_without_it_the_extra_is_named(id_task):
    with pytest.raises(MissingDependencyError, match=r"lm-env\[liger\]"):
        PPO(TextGenerationEnv(**id_task()), updating=Updating(liger=True))


def test_a_release_with_wrong_gradients_is_refused(installed, make_lm):
    installed("0.8.2")
    with pytest.raises(MissingDependencyError, match=r"0\.8\.2 may give wrong gradients: .*>=0\.8\.5"):
        check_liger(make_lm("gpt2"))


def test_a_model_on_the_cpu_is_refused(installed, make_lm):
    installed("0.8.5")
    with pytest.raises(ConfigurationError, match="runs on CUDA, and the model is on cpu"):
        check_liger(make_lm("gpt2"))


def test_a_head_that_is_divided_is_refused():
    with pytest.raises(ConfigurationError, match="shard=True divides: choose one"):
        Updating(liger=True, shard=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
def test_a_head_that_is_no_plain_layer_is_refused(installed, make_lm):
    installed("0.8.5")
    for model in (make_lm("gpt2").double(), make_lm("table")):
        with pytest.raises(UnsupportedModelError, match="plain linear layer"):
            check_liger(model.cuda())


# -- what is handed to it ----------------------------------------------------------------------------
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_logprobs_values_and_gradients_are_those_without_it(installed, make_lm, make_episodes, rng, packed, bias):
    """At a temperature, with weights on the tokens; the kernel itself is a stand-in."""
    installed("0.8.5")
    lm = make_lm("gpt2").double().requires_grad_(True)
    if bias:
        old = lm.get_output_embeddings()
        lm.set_output_embeddings(nn.Linear(old.in_features, old.out_features, dtype=torch.float64))
    policy = ValueHeadPolicy(lm, "shared", 0.7)
    nn.init.constant_(policy.value_head.weight, 0.1)
    episodes = make_episodes(rng, 4)
    weights = torch.randn(int(episodes.response_lengths.sum()), dtype=torch.float64)
    found = []
    for liger in (False, True):
        policy.zero_grad()
        evaluation = policy.evaluate(episodes, packed=packed, liger=liger)
        ((evaluation.logprobs + 0.3 * evaluation.values) * weights).sum().backward()
        gradients = [p.grad.clone() for p in policy.parameters()]
        found.append([evaluation.logprobs.detach(), evaluation.values.detach(), *gradients])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    from liger_kernel.ops import calls

    assert calls == [len(weights)], "once, and only where it was asked for"


def test_kept_and_masked_logits_are_computed_without_it(installed, make_lm, make_episodes, rng):
    installed("0.8.5")
    policy = ValueHeadPolicy(make_lm("gpt2"), "none")
    episodes = make_episodes(rng, 4)
    count = int(episodes.response_lengths.sum())
    kept = policy.evaluate(episodes, keep_logits=True, liger=True)
    assert kept.logits is not None and kept.logits.shape[0] == count
    policy.evaluate(episodes, np.ones((count, kept.logits.shape[1]), dtype=bool), liger=True)
    from liger_kernel.ops import calls

    assert calls == []


# -- the kernel --------------------------------------------------------------------------------------
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("liger_kernel", "triton")),
    reason="liger-kernel and triton are not installed",
)
def test_the_kernel_equals_the_computation_in_parts():
    """By Triton's interpreter, in a process of its own, since it has to be chosen before Triton is imported."""
    script = REPOSITORY / "tests" / "support" / "liger_on_cpu.py"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, textwrap.shorten(done.stderr[-2000:], 2000)
    for found in json.loads(done.stdout):
        assert max(found.values()) < 1e-4, found
