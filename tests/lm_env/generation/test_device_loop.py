"""Writing on the device: the same texts however often the host looks, and nothing read from the device in between."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaModel

from lm_env.data.episodes import Episodes
from lm_env.errors import ConfigurationError, NonFiniteError
from lm_env.generation import Decoding, LocalBackend, Sampling, inverse_cdf
from lm_env.generation.cache_support import why_no_slot_cache, why_no_static_step
from lm_env.generation.continuous_batch import ContinuousBatch
from lm_env.generation.host_reads import HostReadError, no_host_reads
from lm_env.generation.static_writer import StaticWriter
from lm_env.models.inspection import evaluating, facts_of
from lm_env.objective.task import Task

ENDS = list(range(0, 61, 5))  # many tokens end a text, so that lengths differ
STATIC = [
    "gpt2",
    "gpt2-eager",
    "llama",
    "qwen3",
    "gpt-neox",
    "opt",
    "granite",
    "mistral",
    "gemma2",
    "gemma3",
    "gpt-neo",
]
COUNT = 17


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prompts_of(task: Task, count: int = COUNT):
    return task.prompts.sample(np.random.default_rng(0), count)


def written(task: Task, slots: int, sampling: Sampling | None = None, **decoding) -> Episodes:
    backend = LocalBackend(task, slots, decoding=Decoding(**decoding))
    return backend.generate(prompts_of(task), sampling or Sampling(seeded())).episodes


def written_statically(task: Task, slots: int, look_every: int, value_of=None) -> ContinuousBatch:
    """The same by the step that is captured on CUDA, run as it is."""
    prompts = prompts_of(task)
    writer = StaticWriter(task.model, slots, task.max_length, task.max_new_tokens, task.temperature, value_of)
    batch = ContinuousBatch(task, prompts, Sampling(seeded()), writer, writer.begin(len(prompts)), look_every)
    with torch.no_grad(), evaluating(task.model):
        while batch.busy():
            batch.refill()
            batch.advance()
    return batch


@torch.no_grad()
def each_by_itself(task: Task) -> tuple[list[list[int]], list[list[float]]]:
    """Responses and their logprobs, one text after the other by forwards of the text alone."""
    generator, responses, logprobs = seeded(), [], []
    for prompt in prompts_of(task):
        uniforms = torch.rand(task.max_new_tokens, generator=generator)
        text, nats = prompt.ids.tolist(), []
        for uniform in uniforms:
            logits = task.model(input_ids=torch.tensor([text])).logits[0, -1] / task.temperature
            token = int(inverse_cdf(logits.softmax(-1)[None], uniform[None]))
            text.append(token)
            nats.append(float(logits.log_softmax(-1)[token]))
            if token in task.eos_token_ids:
                break
        responses.append(text[len(prompt.ids) :])
        logprobs.append(nats)
    return responses, logprobs


def same(one: Episodes, other: Episodes) -> None:
    np.testing.assert_array_equal(one.lengths, other.lengths)
    np.testing.assert_array_equal(one.input_ids, other.input_ids)
    np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=1e-5)


# -- the same texts --------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [*STATIC, "table", "mamba"])
def test_texts_are_those_of_each_prompt_by_itself(kind, id_task):
    ends = 0 if kind == "table" else ENDS
    task = Task(**id_task(kind, eos_token_id=ends, max_new_tokens=6 if kind == "table" else 9, temperature=0.8))
    responses, logprobs = each_by_itself(task)
    assert len({len(response) for response in responses}) > 1, "unequal lengths, or little is tested"
    for slots, look_every in ((1, 1), (3, 4), (5, 1), (5, 3), (64, 8)):
        episodes = written(task, slots, look_every=look_every)
        assert episodes.responses() == responses
        np.testing.assert_allclose(
            episodes.logprobs[episodes.response_mask()], np.concatenate(logprobs), rtol=0, atol=3e-5
        )


@pytest.mark.parametrize("kind", STATIC)
def test_the_static_step_writes_the_same(kind, id_task):
    """Slots that are no power of two, fewer and more than there are prompts; values along with the tokens."""
    task = Task(**id_task(kind, eos_token_id=ENDS, max_new_tokens=9))
    assert why_no_static_step(task.model, task.max_length) is None
    head = nn.Linear(32, 1).requires_grad_(False)
    backend = LocalBackend(task, 4, value_of=lambda hidden: head(hidden).squeeze(-1))
    usual = backend.generate(prompts_of(task), Sampling(seeded()))
    assert len(set(usual.episodes.response_lengths.tolist())) > 1
    for slots, look_every in ((3, 1), (19, 4), (40, 8)):
        batch = written_statically(task, slots, look_every, backend.value_of)
        same(usual.episodes, batch.episodes())
        np.testing.assert_allclose(batch.values_before(), usual.values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("ends", [(), ENDS])
def test_texts_up_to_the_last_position_of_the_model(ends, id_task):
    """A text that reaches it goes on being stepped until the host looks, and has nowhere to write."""
    task = Task(**id_task(eos_token_id=ends, prompts=[[1] * 58, [2] * 58, [3] * 57], max_new_tokens=6))
    usual = written(task, 5)
    assert (usual.lengths == 64).any() and (not ends or (usual.response_lengths < 6).any())
    for look_every in (1, 4, 5, 8):
        same(usual, written(task, 5, look_every=look_every))
        same(usual, written_statically(task, 5, look_every).episodes())


def test_the_likeliest_tokens_are_the_same_too(id_task):
    task = Task(**id_task(eos_token_id=ENDS, max_new_tokens=9))
    greedy = [written(task, slots, Sampling(None, True), look_every=k) for slots, k in ((1, 1), (4, 3), (64, 8))]
    same(greedy[0], greedy[1])
    same(greedy[0], greedy[2])


def test_stop_strings_are_found_whenever_the_host_looks(text_task):
    task = Task(**text_task(stop_strings=["a", "oo"], max_new_tokens=12, eos_token_id=()))
    usual = written(task, 4)
    assert 0 < (usual.response_lengths < 12).sum() < COUNT
    for look_every in (2, 5, 8, 50):
        same(usual, written(task, 4, look_every=look_every))
        same(usual, written_statically(task, 4, look_every).episodes())


def test_a_mask_of_actions_is_asked_before_every_token(id_task):
    def even_after_odd(prompt, response):
        return np.arange(61) % 2 == len(response) % 2

    task = Task(**id_task(action_mask=even_after_odd, eos_token_id=ENDS, max_new_tokens=9))
    usual = written(task, 4)
    assert all(token % 2 == t % 2 for response in usual.responses() for t, token in enumerate(response))
    same(usual, written(task, 4, look_every=8))


def test_a_rollout_leaves_the_generator_where_the_number_of_texts_puts_it(id_task):
    """However long the texts become, the next call draws the same numbers."""
    short, long = Task(**id_task(eos_token_id=ENDS)), Task(**id_task(eos_token_id=()))
    after = []
    for task in (short, long):
        generator = seeded()
        written(task, 4, Sampling(generator))
        after.append(generator.get_state())
    assert torch.equal(*after)


def test_look_every_is_a_positive_integer():
    for bad in (0, 2.0, True):
        with pytest.raises(ConfigurationError, match="look_every"):
            Decoding(look_every=bad)


# -- nothing is read from the device ---------------------------------------------------------------
@pytest.mark.parametrize("kind", STATIC)
def test_the_inner_loop_reads_nothing(kind, id_task):
    task = Task(**id_task(kind, eos_token_id=ENDS, max_new_tokens=9))
    head = nn.Linear(32, 1).requires_grad_(False)
    writer = StaticWriter(task.model, 4, task.max_length, 9, 0.9, lambda hidden: head(hidden).squeeze(-1))
    assert writer.begin(4) == 4
    slots = np.arange(4)
    ids = np.array([[1, 2, 3], [4, 0, 0], [5, 6, 0], [7, 8, 9]])
    with torch.no_grad(), evaluating(task.model):
        writer.start(slots, ids, np.array([3, 1, 2, 3]), np.random.default_rng(0).random((4, 9), dtype=np.float32))
        with no_host_reads():
            texts = [writer.step(slots) for _ in range(8)]
    assert [w.tokens.shape for w in texts] == [(4,)] * 8 and all(w.values is not None for w in texts)


@pytest.mark.parametrize("kind", STATIC)
def test_the_inner_loop_runs_where_numbers_cannot_be_read(kind, make_lm):
    """On torch's meta device, where there are none: reading is an error, and so is a tensor of another device."""
    model = make_lm(kind)
    facts_of(model)
    model.to("meta")
    with torch.no_grad(), evaluating(model):
        writer = StaticWriter(model, 20, 30, 9, 0.9, None)
        assert writer.begin(20) == 20
        slots = np.arange(20)
        texts = [writer.step(slots) for _ in range(9)]  # of empty texts: a prompt is read at a look
        writer.keep(slots[:10])
        texts.append(writer.step(slots[:5]))
    assert [w.tokens.shape for w in texts] == [(20,)] * 9 + [(10,)]
    assert {w.logprobs.device.type for w in texts} == {"meta"}
    with pytest.raises(RuntimeError, match="meta"):
        texts[0].tokens[0].item()


READS = {
    "item": lambda t: t.sum().item(),
    "float": lambda t: float(t.sum()),
    "if": lambda t: 1 if (t > 0).all() else 0,
    "numpy": lambda t: t.numpy(),
    "tolist": lambda t: t.tolist(),
    "cpu": lambda t: t.cpu(),
    "nonzero": lambda t: t.nonzero(),
    "where": lambda t: torch.where(t > 0),
    "mask": lambda t: t[t > 0],
    "write by mask": lambda t: t.__setitem__(t > 0, torch.zeros(())),
    "masked_select": lambda t: t.masked_select(t > 0),
    "unique": lambda t: t.unique(),
    "equal": lambda t: torch.equal(t, t),
    "to": lambda t: t.to("meta"),
    "repeat": lambda t: torch.repeat_interleave(t.long().abs()),
}


@pytest.mark.parametrize("name", READS)
def test_what_reads_from_the_device_is_refused(name):
    tensor = torch.tensor([1.0, 0.0, 2.0])
    READS[name](tensor.clone())
    with pytest.raises(HostReadError), no_host_reads():
        READS[name](tensor)


def test_what_stays_on_the_device_is_not():
    tensor, index = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([2, 0])
    with no_host_reads():
        picked = torch.where(tensor > 0, tensor, 3.0)[index].masked_fill(index == 0, 7.0)
        tensor[index] = picked.to(tensor.dtype)
        tensor.copy_(tensor.double().cumsum(0))
    assert tensor.tolist() == [7.0, 7.0, 9.0]


class Curious(LlamaModel):
    """Reads its positions, and computes as before."""

    def forward(self, input_ids, position_ids=None, **kwargs):
        assert position_ids is None or int(position_ids.max()) < 1000
        return super().forward(input_ids, position_ids=position_ids, **kwargs)


def test_a_model_that_reads_its_positions_is_run_as_it_is(make_lm, id_task, caplog):
    model = make_lm("llama")
    usual = written(Task(**id_task(model=model, eos_token_id=ENDS)), 4)
    weights = model.model.state_dict()
    model.model = Curious(model.config).eval()
    model.model.load_state_dict(weights)
    task = Task(**id_task(model=model, eos_token_id=ENDS))
    assert why_no_slot_cache(model, task.max_length) is None
    with caplog.at_level(logging.WARNING, logger="lm_env"):
        for _ in range(2):
            assert "needs the host" in (why_no_static_step(model, task.max_length) or "")
        same(usual, written(task, 4, compile=True, look_every=4))
    assert ["needs the host" in record.getMessage() for record in caplog.records] == [True]


# -- what is kept between two calls ----------------------------------------------------------------
def test_weights_that_were_nan_leave_nothing_behind(id_task):
    task = Task(**id_task(eos_token_id=ENDS))
    usual = written(task, 4)
    with torch._inductor.config.patch("cpp.cxx", ("no-such-compiler",)):
        backend = LocalBackend(task, 4, decoding=Decoding(compile=True))
        same(usual, backend.generate(prompts_of(task), Sampling(seeded())).episodes)
        weight = task.model.transformer.h[0].ln_1.weight
        before = weight.detach().clone()
        weight.data.fill_(float("nan"))
        with pytest.raises(NonFiniteError):
            backend.generate(prompts_of(task), Sampling(seeded()))
        weight.data.copy_(before)
        for _ in range(2):  # the second time with the memory of the first
            same(usual, backend.generate(prompts_of(task), Sampling(seeded())).episodes)


# -- compiled --------------------------------------------------------------------------------------
def test_without_a_compiler_the_step_runs_as_it_is_and_says_so(id_task, caplog):
    task = Task(**id_task(eos_token_id=ENDS))
    with (
        torch._inductor.config.patch("cpp.cxx", ("no-such-compiler",)),
        caplog.at_level(logging.WARNING, logger="lm_env"),
    ):
        backend = LocalBackend(task, 4, decoding=Decoding(compile=True))
        for _ in range(2):
            same(written(task, 4), backend.generate(prompts_of(task), Sampling(seeded())).episodes)
    assert ["install g++" in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.* is deprecated:DeprecationWarning")  # torch's own import
def test_the_compiled_step_writes_the_same(make_lm, id_task, caplog):
    model, reference = (make_lm("gpt2", seed, n_layer=1) for seed in range(2))
    task = Task(**id_task(model=model, reference=reference, eos_token_id=ENDS, max_new_tokens=9))
    backend = LocalBackend(task, 4, decoding=Decoding(compile=True))
    for look_every in (1, 3):
        with caplog.at_level(logging.WARNING, logger="lm_env"):
            compiled = backend.generate(prompts_of(task), Sampling(seeded())).episodes
        same(written(task, 4, look_every=look_every), compiled)
    assert not caplog.records, "it was not compiled"
    with torch.no_grad():  # the weights that it runs with are the present ones
        model.transformer.wte.weight.mul_(1.5)
    changed = backend.generate(prompts_of(task), Sampling(seeded())).episodes
    same(written(task, 4), changed)
    assert changed.input_ids.shape != compiled.input_ids.shape or (changed.input_ids != compiled.input_ids).any()
