"""What tests have instead of downloads: small random models and a tokenizer, of transformers' own classes.

The fixtures `make_lm`, `text_lm`, `id_task` and `text_task` are functions, one for the whole session; each call of one
makes new models, which the test may change.
"""

from __future__ import annotations

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from lm_env.data.episodes import Episodes
from lm_env.data.prompts import Prompt
from lm_env.theory.token_mdp import TableLM

torch.set_num_threads(1)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)

V = 61  # of the models that need no tokenizer
POSITIONS = 64
SMALL = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.25,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
MHA = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
GPT2 = {
    "vocab_size": V,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": POSITIONS,
    "initializer_range": 0.25,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
# kind: (name of the configuration in transformers, without the ending; options)
KINDS: dict[str, tuple[str, dict]] = {
    "gpt2": ("GPT2", GPT2),
    "llama": ("Llama", SMALL),
    "qwen2": ("Qwen2", SMALL),
    "qwen3": ("Qwen3", {**SMALL, "head_dim": 8}),
    "gpt-neox": ("GPTNeoX", MHA),
    "opt": (
        "OPT",
        {
            "vocab_size": V,
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": POSITIONS,
            "word_embed_proj_dim": 32,
            "init_std": 0.25,
        },
    ),
    "mistral": ("Mistral", {**SMALL, "sliding_window": 4}),
    "gemma2": ("Gemma2", {**SMALL, "head_dim": 8, "sliding_window": 4}),
    "gemma3": ("Gemma3Text", {**SMALL, "head_dim": 8, "sliding_window": 4, "sliding_window_pattern": 2}),
    # Beyond 8 tokens, texts are read with other rotary frequencies from their first token on.
    "phi3": (
        "Phi3",
        {
            **SMALL,
            "original_max_position_embeddings": 8,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0]},
        },
    ),
    "mamba": (
        "Mamba",
        {
            "vocab_size": V,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 4,
            "initializer_range": 0.25,
        },
    ),
    "bloom": ("Bloom", {"vocab_size": V, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.25}),
    "gpt-neo": (
        "GPTNeo",
        {
            "vocab_size": V,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "max_position_embeddings": POSITIONS,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 4,
            "initializer_range": 0.25,
        },
    ),
    "granite": ("Granite", {**SMALL, "logits_scaling": 4.0}),
    "cohere": ("Cohere", {**SMALL, "logit_scale": 0.25}),
}


def build_lm(kind: str, seed: int = 0, **options) -> torch.nn.Module:
    """A random causal LM in eval mode; `KIND-eager` has its attention spelled out; "table" is a `TableLM`."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "table":
        v, horizon = options.get("vocab_size", 5), options.get("horizon", 6)
        states = sum(v**p for p in range(horizon))
        return TableLM(v, horizon, torch.randn(states, v, generator=generator))
    name, small = KINDS[kind.removesuffix("-eager")]
    config = getattr(transformers, f"{name}Config")(**{**small, **options})
    attention = {"attn_implementation": "eager"} if kind.endswith("-eager") else {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, **attention).eval()


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with some merges, pad == eos."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["a good film, a bad film and the end of a good story\n" * 4], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", pad_token="<|end|>")


def build_episodes(
    rng: np.random.Generator, rows: int, vocab_size: int = V, prompt: int = 5, response: int = 7, padding: int = 0
) -> Episodes:
    """Random rows with at least one prompt and one response token; what lies beyond a row is `padding`."""
    p = rng.integers(1, prompt + 1, rows)
    lengths = p + rng.integers(1, response + 1, rows)
    ids = rng.integers(0, vocab_size, (rows, int(lengths.max()) + 2))
    ids[np.arange(ids.shape[1]) >= lengths[:, None]] = padding
    prompts = [Prompt(row[:n].copy(), f"prompt {i}", {}, i) for i, (row, n) in enumerate(zip(ids, p, strict=True))]
    return Episodes(ids, p, lengths, prompts)


@pytest.fixture(scope="session")
def make_lm() -> Callable[..., torch.nn.Module]:
    """`make_lm(kind, seed=0, **config)`, a new model each time; see `build_lm`."""
    return build_lm


@pytest.fixture(scope="session")
def make_episodes() -> Callable[..., Episodes]:
    """`make_episodes(rng, rows, ...)`; see `build_episodes`."""
    return build_episodes


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, pad == eos; nobody changes it."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def text_lm(tokenizer) -> Callable[..., torch.nn.Module]:
    """`text_lm(kind="gpt2", seed=0)`: a model for `tokenizer`, its logits wider than the tokenizer is long."""
    return lambda kind="gpt2", seed=0, **options: build_lm(kind, seed, vocab_size=len(tokenizer) + 6, **options)


@pytest.fixture
def model_folder(tmp_path, text_lm, tokenizer) -> str:
    """A tiny GPT-2 and its tokenizer, saved as transformers saves them."""
    text_lm().save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def worth(prompts, responses, response_ids) -> list[float]:
    """A score that tells every response from every other, never 0."""
    return [0.5 + sum((t + 1) * (i + 1) for i, t in enumerate(ids)) / 1000 for ids in response_ids]


@pytest.fixture(scope="session")
def id_task() -> Callable[..., dict]:
    """`id_task(kind="gpt2", **options)`: an environment over token ids; EOS is 0, the reference another model."""

    def options(kind: str = "gpt2", **changes) -> dict:
        table = kind == "table"  # knows texts of six tokens, after any one token
        return {
            "model": build_lm(kind, seed=0),
            "reference": build_lm(kind, seed=1),
            "prompts": [[1], [2], [3]] if table else [[1, 2, 3, 4, 5], [6], [7, 0, 0], [8, 9]],
            "reward": worth,
            "eos_token_id": 0,
            "max_new_tokens": 6,
            "beta": 0.3,
            **changes,
        }

    return options


@pytest.fixture(scope="session")
def text_task(text_lm, tokenizer) -> Callable[..., dict]:
    """`text_task(**options)`: options of an environment over text; its logits are wider than the tokenizer is long."""

    def options(**changes) -> dict:
        return {
            "model": text_lm(seed=0),
            "reference": text_lm(seed=1),
            "tokenizer": tokenizer,
            "prompts": ["a good film", "the end", "bad"],
            "reward": worth,
            "max_new_tokens": 6,
            "beta": 0.3,
            **changes,
        }

    return options
