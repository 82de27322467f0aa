"""Whether weights have changed: every way of changing one is seen once, and nothing else is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lm_env.models.weight_watch import WeightWatch


@pytest.fixture
def model(make_lm):
    return make_lm("gpt2").train()


def corner(p: torch.Tensor) -> torch.Tensor:
    """An entry that is not one of those whose numbers are compared."""
    return p.detach().view(-1)[:1]


def test_each_single_tensor_changed_in_place_is_seen_once(model):
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


PAST_AUTOGRAD = {
    "write data": lambda p: p.data.sub_(0.3),
    "assign data": lambda p: setattr(p, "data", p.data.clone()),
    "copy into data": lambda p: p.data.copy_(p.data + 1.0),
}


@pytest.mark.parametrize("change", PAST_AUTOGRAD.values(), ids=PAST_AUTOGRAD)
def test_each_trainable_tensor_changed_past_autograd_is_seen(model, change):
    watch = WeightWatch(model)
    for p in model.parameters():
        change(p)
        assert watch.changed() and not watch.changed()


def test_a_frozen_model_changed_past_autograd_is_seen_where_all_weights_are(model):
    model.requires_grad_(False)
    watch = WeightWatch(model)
    for p in model.parameters():
        p.data -= 0.3
    assert watch.changed() and not watch.changed()


def test_the_only_trainable_tensor_is_seen_where_a_few_of_its_rows_are_written(make_lm):
    """As a step by hand does to an embedding, whose gradient is 0 but for the tokens of the batch."""
    model = make_lm("gpt2").requires_grad_(False)
    embedding = model.transformer.wte.weight.requires_grad_(True)
    watch = WeightWatch(model)
    for i in range(0, len(embedding), 5):
        embedding.data[i : i + 5] -= 0.3
        assert watch.changed() and not watch.changed()


def test_a_tensor_that_does_not_lie_in_one_piece_is_seen_as_well():
    layer = nn.Linear(5, 7, bias=False)
    layer.weight = nn.Parameter(torch.randn(5, 7).T)
    watch = WeightWatch(layer)
    layer.weight.data -= 0.3
    assert watch.changed() and not watch.changed()


def test_modules_put_in_taken_out_and_exchanged_are_seen(model):
    watch = WeightWatch(model)
    own = model.transformer.h[0].mlp
    changes = [
        lambda: setattr(model.transformer.h[0], "mlp", nn.Sequential(own)),  # the same weights in another module
        lambda: setattr(model.transformer.h[0], "mlp", own),
        lambda: model.transformer.h.append(model.transformer.h[0]),
        lambda: model.transformer.h.__delitem__(2),
    ]
    for change in changes:
        change()
        assert watch.changed() and not watch.changed()


def test_another_dtype_is_seen(model):
    watch = WeightWatch(model)
    for change in (model.double, model.bfloat16, model.float):
        change()
        assert watch.changed() and not watch.changed()


# --- adapters --------------------------------------------------------------------------------------------------------


@pytest.fixture
def lora(make_lm):
    """A peft model with adapters "default", which is active, and "other", on every linear layer."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    model = peft.get_peft_model(make_lm("llama"), config)
    model.add_adapter("other", config)
    return model


def test_each_tensor_of_an_adapter_written_by_hand_is_seen(lora):
    watch = WeightWatch(lora.get_base_model())
    trainable = [p for p in lora.parameters() if p.requires_grad]
    assert len(trainable) == 28
    for p in trainable:
        p.data -= 0.3
        assert watch.changed() and not watch.changed()


def test_everything_that_is_done_to_adapters_is_seen(lora):
    inside = lora.get_base_model()
    watch = WeightWatch(inside)
    changes = [
        lambda: lora.set_adapter("other"),
        lambda: lora.base_model.disable_adapter_layers(),
        lambda: lora.base_model.enable_adapter_layers(),
        lambda: lora.merge_adapter(),
        lambda: lora.unmerge_adapter(),
        lambda: lora.base_model.set_adapter(["default", "other"]),
        lambda: lora.add_adapter("third", lora.peft_config["default"]),
        lambda: lora.delete_adapter("other"),
        lambda: lora.unload(),
    ]
    for i, change in enumerate(changes):
        change()
        assert watch.changed() and not watch.changed(), f"change {i}"


def test_an_adapter_that_is_switched_off_for_a_moment_has_not_changed(lora):
    watch = WeightWatch(lora.get_base_model())
    with lora.disable_adapter():
        pass
    assert not watch.changed()


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
