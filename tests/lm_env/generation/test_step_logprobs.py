"""StepLogprobs against full forwards of each text, through everything that may happen between two steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lm_env import TextGenerationVectorEnv
from lm_env.data.episodes import Episodes
from lm_env.generation import LocalBackend, Sampling, StepLogprobs
from lm_env.objective.scoring import score_episodes

V = 61
SLOTS, MAX_LENGTH = 3, 20


class Texts:
    """Texts that grow in step with a StepLogprobs, and what each token's logprob is by a forward of the text alone."""

    def __init__(self, model: torch.nn.Module) -> None:
        rng = np.random.default_rng(0)
        self.model = model
        self.stepwise = StepLogprobs(model, SLOTS, MAX_LENGTH, 1.0)
        self.ids = rng.integers(1, V, (SLOTS, MAX_LENGTH))
        self.lengths = np.array([3, 1, 5])

    def ours(self) -> np.ndarray:
        """What StepLogprobs says of the next token of every text."""
        slots = np.arange(SLOTS)
        return self.stepwise.logprobs(slots, self.ids[slots, self.lengths], self.ids, self.lengths)

    @torch.no_grad()
    def alone(self) -> np.ndarray:
        """The same by a forward of each text, without padding or cache."""
        table = [
            torch.log_softmax(self.model(input_ids=torch.from_numpy(row[None, :n])).logits[0, -1].double(), -1)[row[n]]
            for row, n in zip(self.ids, self.lengths, strict=True)
        ]
        return torch.stack(table).numpy()

    def check(self, steps: int = 1, atol: float = 1e-5) -> None:
        """The next tokens have the logprobs of full forwards; then they are part of the texts."""
        for _ in range(steps):
            np.testing.assert_allclose(self.ours(), self.alone(), atol=atol)
            self.lengths += 1


KINDS = ["gpt2", "llama", "mistral", "gemma2", "gemma3", "gpt-neo", "phi3"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_step_gives_the_logprob_after_the_text_alone(kind, make_lm):
    """Windows of 4 tokens bind, and a rope that changes at 8 tokens is crossed by each row at another step."""
    Texts(make_lm(kind)).check(steps=14)


@pytest.mark.parametrize("kind", KINDS)
def test_stepping_through_an_environment_pays_what_scoring_pays(kind, id_task):
    env = TextGenerationVectorEnv(4, **id_task(kind, max_new_tokens=12), autoreset_mode="Disabled")
    env.reset(seed=0)
    rng = np.random.default_rng(1)
    rewards = np.array([env.step(rng.integers(1, V, 4))[1] for _ in range(12)]).T
    mdp = env.mdp
    episodes = Episodes(mdp.input_ids.copy(), mdp.prompt_lengths.copy(), mdp.lengths.copy(), list(mdp.prompts))
    np.testing.assert_allclose(rewards, score_episodes(env.task, episodes).rewards, atol=1e-4)


# --- what is cached is what the weights give -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_dtype_in_the_middle_of_a_text(dtype, make_lm):
    texts = Texts(make_lm("llama"))
    texts.check(steps=3)
    texts.model.to(dtype)
    texts.check(steps=3, atol=1e-6 if dtype == torch.float64 else 0.2)


def test_another_kind_of_attention_in_the_middle_of_a_text(make_lm):
    texts = Texts(make_lm("llama"))
    texts.check(steps=2)
    texts.model.set_attn_implementation("eager")
    texts.check(steps=2)


# --- failures --------------------------------------------------------------------------------------------------------


class Fuse:
    """A hook that lets a forward fail in the middle, once: the layers after this one have written no keys."""

    def __init__(self, layer: torch.nn.Module) -> None:
        self.blown = False
        layer.register_forward_hook(self)

    def __call__(self, *_: object) -> None:
        if self.blown:
            self.blown = False
            raise FloatingPointError("the first layer gave up")


@pytest.mark.parametrize("kind", ["llama", "mistral", "bloom"])
@pytest.mark.parametrize("missed", [0, 1, 3])
def test_a_failed_forward_leaves_no_hole(kind, missed, make_lm):
    """After it, tokens may be taken whose logprobs are published, so that nobody asks for them here."""
    model = make_lm(kind)
    fuse = Fuse(model.transformer.h[0] if kind == "bloom" else model.model.layers[0])
    texts = Texts(model)
    texts.check(steps=2)
    fuse.blown = True
    with pytest.raises(FloatingPointError):
        texts.ours()
    texts.lengths += missed
    texts.check(steps=3)


@pytest.mark.parametrize("kind", ["llama", "bloom"])
def test_a_failed_beginning_leaves_nothing_behind(kind, make_lm):
    model = make_lm(kind)
    fuse = Fuse(model.transformer.h[0] if kind == "bloom" else model.model.layers[0])
    texts = Texts(model)
    texts.check()
    texts.ids[:, 0] = 7  # a new text in every slot
    texts.stepwise.reset(np.arange(SLOTS))
    fuse.blown = True
    with pytest.raises(FloatingPointError):
        texts.ours()
    texts.check(steps=3)


# --- peft ------------------------------------------------------------------------------------------------------------

TARGETS = {"gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"]}


def count_tokens(trunk: torch.nn.Module) -> list[int]:
    """A list that gets rows x tokens of each forward of the trunk."""
    counts: list[int] = []
    trunk.register_forward_pre_hook(
        lambda _, args, kwargs: counts.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    return counts


@pytest.fixture
def lora(make_lm):
    """`lora(kind)`: a peft model whose adapter counts."""
    peft = pytest.importorskip("peft")

    def build(kind: str = "llama"):
        config = peft.LoraConfig(
            r=2, target_modules=TARGETS[kind], fan_in_fan_out=kind == "gpt2", init_lora_weights=False
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return peft.get_peft_model(make_lm(kind), config)

    return build


@pytest.mark.parametrize("wrapped_reference", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_peft_model_with_a_reference_of_its_own_steps_token_by_token(kind, wrapped_reference, id_task, lora, make_lm):
    """After the prompts, a step of 4 slots runs 4 tokens through the policy's trunk, and 4 through the reference's."""
    reference = lora(kind) if wrapped_reference else make_lm(kind, seed=1)
    options = id_task(kind, model=lora(kind), reference=reference, max_new_tokens=5, eos_token_id=())
    env = TextGenerationVectorEnv(4, **options, autoreset_mode="Disabled")
    trunks = [getattr(model, model.base_model_prefix) for model in (env.task.model, env.task.reference)]
    env.reset(seed=0)
    env.step(np.array([5, 6, 7, 8]))
    counts = [count_tokens(trunk) for trunk in trunks]
    for _ in range(3):
        env.step(np.array([5, 6, 7, 8]))
    assert counts == [[4, 4, 4]] * 2


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_peft_model_writes_token_by_token(kind, id_task, lora, make_lm):
    options = id_task(kind, model=lora(kind), reference=make_lm(kind, seed=1), max_new_tokens=5, eos_token_id=())
    task = TextGenerationVectorEnv(1, **options).task
    prompts = list(task.prompts)
    backend = LocalBackend(task, slots=4)
    backend.generate(prompts, Sampling(deterministic=True))
    counts = count_tokens(getattr(task.model, task.model.base_model_prefix))
    backend.generate(prompts, Sampling(deterministic=True))
    assert counts == [4 * max(len(p.ids) for p in prompts), 4, 4, 4, 4]


def written_by_hand(model):
    for p in model.parameters():
        if p.requires_grad:
            p.data -= 0.3


def another_adapter(model):
    import peft

    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=TARGETS["llama"], init_lora_weights=False))
    model.set_adapter("other")


def scaled(model):
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["default"] *= 3


@pytest.mark.parametrize(
    "change",
    [
        written_by_hand,
        another_adapter,
        scaled,
        lambda model: model.base_model.disable_adapter_layers(),
        lambda model: model.delete_adapter("default"),
        lambda model: model.unload(),
    ],
    ids=["p.data", "add and set", "scaling", "disable", "delete", "unload"],
)
def test_an_adapter_changed_in_the_middle_of_a_text_counts_from_the_next_token_on(change, lora):
    model = lora()
    inside = model.get_base_model()
    texts = Texts(inside)
    texts.check(steps=3)
    before = texts.alone()
    change(model)
    assert abs(texts.alone() - before).max() > 0.01, "else this tests nothing"
    texts.check(steps=2)


def test_an_adapter_put_into_a_plain_model_counts_from_the_next_token_on(make_lm):
    """Its dropout is off as well."""
    peft = pytest.importorskip("peft")
    texts = Texts(make_lm("llama"))
    texts.check(steps=3)
    before = texts.alone()
    targets = {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    adapter = peft.get_peft_model(texts.model, peft.LoraConfig(r=2, lora_dropout=0.5, **targets)).eval()
    expected = texts.alone()
    assert abs(expected - before).max() > 0.01, "else this tests nothing"
    adapter.train()
    np.testing.assert_allclose(texts.ours(), expected, atol=1e-5)
    assert adapter.training
