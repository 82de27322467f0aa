"""Whether weights have changed: every way of changing one is seen once, and nothing else is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lm_env.models.weight_watch import FROZEN_PROBES, WeightWatch


@pytest.fixture
def model(make_lm):
    return make_lm("gpt2").train()


def corner(p: torch.Tensor) -> torch.Tensor:
    """An entry that is not the one that is looked at."""
    return p.detach().view(-1)[:1]


def test_each_single_tensor_changed_in_place_is_seen_once(model):
    assert len(list(model.parameters())) > 2 * FROZEN_PROBES, "most of them are not probed"
    watch = WeightWatch(model)
    for p in model.parameters():
        assert not watch.changed()
        corner(p).add_(1.0)
        assert watch.changed() and not watch.changed()


def test_each_parameter_put_in_anothers_place_is_seen(model):
    watch = WeightWatch(model)
    for part in model.modules():
        for name, p in list(part._parameters.items()):
            for _ in range(0 if p is None else 2):  # the second time, autograd's counts are alike
                setattr(part, name, nn.Parameter(p.detach().clone()))
                assert watch.changed() and not watch.changed(), name


@pytest.mark.parametrize("fused", [True, False])
def test_an_optimizers_step_on_any_one_tensor_is_seen(model, fused):
    watch = WeightWatch(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
        p.grad.view(-1)[0] = 1.0
        torch.optim.Adam([p], lr=1e-3, fused=fused).step()
        assert watch.changed() and not watch.changed()


def test_another_models_optimizer_is_not_our_concern(model, make_lm):
    watch, other = WeightWatch(model), make_lm("gpt2", seed=1)
    other(input_ids=torch.ones(1, 3, dtype=torch.long)).logits.sum().backward()
    torch.optim.Adam(other.parameters(), fused=True).step()
    assert not watch.changed()


@pytest.mark.parametrize(
    "change",
    [lambda p: p.data.add_(1.0), lambda p: setattr(p, "data", p.data.clone()), lambda p: p.data.copy_(p.data + 1.0)],
    ids=["write data", "assign data", "copy into data"],
)
def test_what_goes_past_autograd_is_seen_where_all_weights_do(model, change):
    watch = WeightWatch(model)
    for p in model.parameters():
        change(p)
    assert watch.changed() and not watch.changed()


def test_running_a_model_changes_nothing(model):
    watch = WeightWatch(model)
    model(input_ids=torch.ones(2, 5, dtype=torch.long)).logits.sum().backward()
    model.zero_grad()
    model.eval().requires_grad_(False)
    assert not watch.changed()


def test_loading_weights_is_seen_even_into_inference_tensors(model, make_lm):
    watch = WeightWatch(model)
    model.load_state_dict(make_lm("gpt2", seed=3).state_dict())
    assert watch.changed()
    with torch.inference_mode():
        quiet = make_lm("gpt2", seed=4)
        watch = WeightWatch(quiet)
        assert not watch.changed()
        for p in quiet.parameters():
            p.add_(1.0)
    assert watch.changed() and not watch.changed()


def test_a_model_without_weights_never_changes():
    assert not WeightWatch(nn.Identity()).changed()
