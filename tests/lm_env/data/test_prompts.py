"""Prompts: every source gives the same pool, everything wrong is named, sampling is seeded by its generator alone."""

from __future__ import annotations

import copy
import json
import os
import random
import re
import string
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paths import REPOSITORY, SHARED_DATA
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lm_env.data.chats import is_chat
from lm_env.data.prompts import LONGEST_TEXT, Prompt, Prompts, load_prompts
from lm_env.errors import ConfigurationError, InvalidPromptError

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
BOS = len(ALPHABET)
VOCAB = BOS + 1
# The byte-level alphabet, by its definition: printable Latin-1 bytes stand for themselves, the rest for 256, 257, ...
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTE_CHARS = {byte: chr(byte) for byte in PRINTABLE}
BYTE_CHARS |= {byte: chr(256 + i) for i, byte in enumerate(sorted(set(range(256)) - set(PRINTABLE)))}
BYTE_ID = {byte: ALPHABET.index(char) for byte, char in BYTE_CHARS.items()}
RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def byte_tokenizer(bos: bool = True, padding: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE without merges, one token a byte; pad == eos == bos as with GPT-2."""
    vocabulary = {char: i for i, char in enumerate(ALPHABET)} | {"<|end|>": BOS}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", BOS)])
    if padding:
        backend.enable_padding(pad_id=BOS, pad_token="<|end|>", length=32)
    end = "<|end|>"
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end, pad_token=end)


def special_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Like `byte_tokenizer`, with a BOS <s> and an EOS </s> apart, which the template places."""
    vocabulary = {char: i for i, char in enumerate(ALPHABET)} | {"<s>": BOS, "</s>": BOS + 1}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokens = [("<s>", BOS), ("</s>", BOS + 1)]
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=tokens)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


TOKENIZER = byte_tokenizer()
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role not in ['user', 'system', 'assistant'] %}{{ raise_exception('no role ' ~ message.role) }}"
    "{% endif %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
CHATTY = byte_tokenizer()
CHATTY.chat_template = CHAT_TEMPLATE
USER = {"role": "user", "content": "hi"}
CHAT = [{"role": "system", "content": "be brief"}, USER]


def byte_ids(text: str, bos: bool = True) -> list[int]:
    return [BOS] * bos + [BYTE_ID[byte] for byte in text.encode()]


def load(source, tokenizer=TOKENIZER, **options) -> Prompts:
    return load_prompts(source, tokenizer, **{"vocab_size": VOCAB, "max_prompt_tokens": 100} | options)


def plain(prompts) -> list[tuple]:
    return [(prompt.ids.tolist(), prompt.text, dict(prompt.columns), prompt.index) for prompt in prompts]


class TestSources:
    def test_texts(self):
        prompts = load(["ab", "é 😀", " c "])
        assert [p.text for p in prompts] == ["ab", "é 😀", " c "]
        assert [p.ids.tolist() for p in prompts] == [byte_ids("ab"), byte_ids("é 😀"), byte_ids(" c ")]
        assert [p.index for p in prompts] == [0, 1, 2]
        assert all(p.ids.dtype == np.int64 and not p.ids.flags.writeable for p in prompts)
        assert prompts.columns == () and len(prompts) == 3 and prompts[-1] is prompts[2]

    def test_without_special_tokens(self):
        assert load(["ab"], add_special_tokens=False)[0].ids.tolist() == byte_ids("ab", bos=False)

    @pytest.mark.parametrize("column", ["prompt", "text", "question", "query"])
    def test_dicts(self, column):
        prompts = load([{column: "a", "answer": 1, "facts": ["x"]}, {"facts": None, column: "b", "answer": 2}])
        assert plain(prompts) == [
            (byte_ids("a"), "a", {"answer": 1, "facts": ["x"]}, 0),
            (byte_ids("b"), "b", {"answer": 2, "facts": None}, 1),
        ]
        assert prompts.columns == ("answer", "facts")

    def test_column_order_and_choice(self):
        row = {"query": "q", "question": "w", "text": "t", "prompt": "p"}
        assert load([row])[0].text == "p"
        chosen = load([row], prompt_column="question")[0]
        assert chosen.text == "w" and chosen.columns == {"query": "q", "text": "t", "prompt": "p"}

    def test_a_column_that_some_rows_lack_is_none_there(self):
        prompts = load([{"prompt": "a", "x": 1}, "b", {"prompt": "c", "y": 2}])
        assert [dict(p.columns) for p in prompts] == [{"x": 1, "y": None}, {"x": None, "y": None}, {"x": None, "y": 2}]

    @pytest.mark.parametrize(
        "make",
        [
            lambda rows: rows,
            lambda rows: [tuple(row) for row in rows],
            lambda rows: [np.array(row, dtype=np.uint16) for row in rows],
            lambda rows: np.array(rows),
            lambda rows: torch.tensor(rows),
            lambda rows: [[np.int32(token) for token in row] for row in rows],
            lambda rows: [{"prompt": row} for row in rows],
        ],
    )
    def test_token_ids(self, make):
        rows = [byte_ids("a"), byte_ids("b")]
        assert [p.ids.tolist() for p in load(make(rows), None)] == rows
        assert [p.text for p in load(make(rows))] == ["a", "b"]  # the BOS is not shown
        assert [p.text for p in load(make(rows), None)] == [" ".join(map(str, row)) for row in rows]

    def test_text_file(self, tmp_path):
        path = tmp_path / "some.txt"
        path.write_bytes("\ufeffone \r\n\n   \r\n two\u2028\x85 lines\nlast".encode())
        for source in (path, str(path)):
            assert [p.text for p in load(source)] == ["one ", " two\u2028\x85 lines", "last"]

    @pytest.mark.parametrize("suffix", [".jsonl", ".json"])
    def test_json_lines(self, tmp_path, suffix):
        path = tmp_path / f"some{suffix}"
        path.write_text('{"prompt": "a", "answer": [1]}\n\n"b"\r\n{"prompt": [65], "answer": null}')
        assert plain(load(path)) == plain(load([{"prompt": "a", "answer": [1]}, "b", {"prompt": [65]}]))

    def test_json_array(self, tmp_path):
        path = tmp_path / "some.json"
        path.write_text(json.dumps([{"text": "a", "n": 1}, {"text": "b", "n": 2}], indent=2))
        assert plain(load(path)) == plain(load([{"text": "a", "n": 1}, {"text": "b", "n": 2}]))

    def test_datasets(self):
        rows = [{"question": "a", "answer": "1"}, {"question": "b", "answer": "2"}, {"question": "c", "answer": "3"}]
        dataset = datasets.Dataset.from_list(rows)
        assert plain(load(dataset)) == plain(load(rows))
        assert plain(load(dataset.to_iterable_dataset(), limit=2)) == plain(load(rows[:2]))
        with pytest.raises(ConfigurationError, match=r"IterableDataset.*limit=N"):
            load(dataset.to_iterable_dataset())
        with pytest.raises(ConfigurationError, match="DatasetDict: give one of its parts"):
            load(datasets.DatasetDict(train=dataset))

    def test_prompts_are_used_again(self):
        first = load([{"prompt": "abc", "answer": 1}, {"prompt": "d", "answer": 2}])
        assert plain(load(first)) == plain(load(list(first))) == plain(load(first, None)) == plain(first)
        again = load(first.sample(np.random.default_rng(0), 5), overflow="truncate", max_prompt_tokens=3)
        assert {p.text for p in again} == {"bc", "d"} and [p.index for p in again] == [0, 1, 2, 3, 4]
        with pytest.raises(InvalidPromptError, match=f"prompt 0 holds token {BOS} at 0, outside the vocabulary of 256"):
            load(first, vocab_size=256)

    def test_limit(self, tmp_path):
        assert [p.text for p in load(list("abc"), limit=2)] == ["a", "b"]
        assert len(load(list("abc"), limit=9)) == 3
        path = tmp_path / "some.jsonl"
        path.write_text('"a"\n"b"\nbroken')
        assert len(load(path, limit=2)) == 2
        assert len(load((str(i) for i in range(10**9)), limit=3)) == 3

    def test_an_existing_path_wins_over_a_hub_id(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "user").mkdir()
        (tmp_path / "user" / "name").write_text("a")
        with pytest.raises(ConfigurationError, match=r"name is not \.txt, \.jsonl or \.json"):
            load("user/name", download=True)
        (tmp_path / "user" / "name.txt").write_text("a")
        assert load("user/name.txt")[0].text == "a"

    def test_no_datasets_is_imported_for_a_list_and_nothing_downloads(self):
        code = (
            "import sys, lm_env.data.prompts as p\n"
            "p.load_prompts([[1]], None, vocab_size=2, max_prompt_tokens=1)\n"
            "assert 'datasets' not in sys.modules\n"
            "try: p.load_prompts('user/name:test', None, vocab_size=2, max_prompt_tokens=1)\n"
            "except p.ConfigurationError as error: assert 'download=True' in str(error), error\n"
            "assert 'datasets' not in sys.modules\n"
            "try: p.load_prompts('user/name:test', None, vocab_size=2, max_prompt_tokens=1, download=True)\n"
            "except p.ConfigurationError as error: assert 'could not be loaded' in str(error), error\n"
            "assert 'datasets' in sys.modules\n"
        )
        offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        subprocess.run([sys.executable, "-c", code], check=True, env=offline, cwd=REPOSITORY)


class TestInvalid:
    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ([], r"list given holds no prompts"),
            (["a", ""], r"prompt 1 is empty"),
            ([[1], []], r"prompt 1 is empty"),
            ([np.array([], dtype=np.int64)], r"prompt 0 is empty"),
            (["a", None], r"prompt 1 is of type NoneType"),
            (["a", 3], r"prompt 1 is of type int"),
            (["a", b"b"], r"prompt 1 is of type bytes"),
            ([1, 2, 3], r"prompt 0 is of type int"),
            (np.array([1, 2]), r"prompt 0 is of type int"),
            ([{"prompt": None}], r"prompt 0 is of type NoneType"),
            (["a\ud800"], r"prompt 0 holds half of a surrogate pair"),
            ([[1, 2, -1]], r"prompt 0 holds token -1 at 2, outside the vocabulary of 257"),
            ([[1], [0, VOCAB]], r"prompt 1 holds token 257 at 1, outside"),
            ([[2**70]], r"prompt 0 holds token 1180591620717411303424 at 0, outside"),
            ([np.array([2**63], dtype=np.uint64)], r"holds token 9223372036854775808 at 0, outside"),
            ([[1, True]], r"prompt 0 holds True at 1: token ids are integers"),
            ([np.array([True])], r"prompt 0 holds True at 0"),
            ([[1, np.True_]], r"prompt 0 holds np.True_ at 1"),
            ([[1.0]], r"prompt 0 holds 1.0 at 0"),
            ([torch.tensor([0.5])], r"prompt 0 holds 0.5 at 0"),
            ([["a", "b"]], r"prompt 0 holds 'a' at 0"),
            ([[[1, 2]]], r"prompt 0 holds \[1, 2\] at 0"),
            ([list(range(101))], r"prompt 0 has 101 tokens, more than max_prompt_tokens=100.*overflow='truncate'"),
            (["a", "b" * 100], r"prompt 1 has 101 tokens"),
            ([{"a": "x", "b": 1}], r"prompt 0 has no column 'prompt' \(it has 'a', 'b'\).*prompt_column"),
            ([{"text": "x"}, {"prompt": "y"}], r"prompt 1 has no column 'text' \(it has 'prompt'\)"),
            ([{}], r"prompt 0 has no column 'prompt' \(it has none\)"),
            ([{"prompt": "a", 3: "b"}], r"prompt 0 has a column 3"),
            *(
                ([{"prompt": "a"}, {"prompt": "a", name: "b"}], rf"prompt 1 has a column '{name}'")
                for name in ("prompts", "responses", "prompt_ids", "response_ids")
            ),
        ],
    )
    def test_rows(self, source, message):
        with pytest.raises(InvalidPromptError, match=message):
            load(source)

    def test_nothing_left_after_tokenizing(self):
        silent = Tokenizer(models.WordLevel({"known": 0}, unk_token="none"))
        silent.pre_tokenizer = pre_tokenizers.Whitespace()
        with pytest.raises(InvalidPromptError, match=r"prompt 1, ' ', tokenizes to nothing: begin it with a BOS"):
            load(["known", " "], PreTrainedTokenizerFast(tokenizer_object=silent))

    def test_a_tokenizer_larger_than_the_model(self):
        with pytest.raises(InvalidPromptError, match=r"holds token 256 at 0.*tokenizer that belongs to the model"):
            load(["a"], vocab_size=256)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.txt", b"", r"a\.txt' holds no prompts"),
            ("a.txt", b"\n  \n", r"a\.txt' holds no prompts"),
            ("a.txt", b"one\ntw\xffo", r"a\.txt, line 2: byte 0xff at offset 6 is not UTF-8"),
            ("a.txt", b"\xef\xbb\xbfone\n\xc3\n", r"a\.txt, line 2: byte 0xc3 at offset 7 "),
            ("a.jsonl", b'"a"\n\n"b\xe9"', r"a\.jsonl, line 3: byte 0xe9 at offset 7 "),
            ("a.jsonl", b'"a"\n\n{"prompt": }\n', r"a\.jsonl, line 3: invalid JSON, Expecting value"),
            ("a.jsonl", b'{"prompt": "a"}\n{"prompt": null}', r"a\.jsonl, line 2 is of type NoneType"),
            (
                "a.jsonl",
                b'{"prompt": "a"}\n{"answer": 1}',
                r"a\.jsonl, line 2 has no column 'prompt' \(it has 'answer'\)",
            ),
            ("a.jsonl", b'"\\ud800"', r"a\.jsonl, line 1 holds half of a surrogate"),
            ("a.jsonl", b"[" * 100_000, r"a\.jsonl, line 1: invalid JSON"),
            ("a.jsonl", b"1" * 5000, r"a\.jsonl, line 1: invalid JSON"),
            ("a.json", b'[\n"a",\n"b"\n,]', r"a\.json, line 4: invalid JSON"),
            ("a.json", b'["a", 2]', r"a\.json, entry 1 is of type int"),
            ("a.json", b"[]", r"a\.json' holds no prompts"),
        ],
    )
    def test_files(self, tmp_path, name, content, message):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidPromptError, match=message):
            load(tmp_path / name)

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            (Path("nowhere.txt"), r"No such file or directory: 'nowhere.txt'\): check the path"),
            ("nowhere.jsonl", r"^nowhere\.jsonl cannot be read .*No such file"),
            ("user/nowhere.txt", r"No such file or directory"),
            (Path(__file__).parent, r"Is a directory"),
            (Path(__file__), r"test_prompts\.py is not \.txt, \.jsonl or \.json"),
            ("\0.txt", r"cannot be read"),
            ("x" * 5000, r"is neither a file here nor a hub id"),
            (
                "The film was",
                r"'The film was' is neither a file here nor a hub id 'user/name': .* written as \[text\]",
            ),
            ("user/name", r"'user/name' is no file here; a hub id is downloaded only if asked: pass download=True"),
            ("user/name:train", r"pass download=True"),
            ({"prompt": ["a"]}, r"not a dict: give one of its parts"),
            ({"a", "b"}, r"cannot be read from a set"),
            (b"ab", r"cannot be read from a bytes"),
            (None, r"cannot be read from a NoneType"),
            (7, r"cannot be read from a int"),
            (iter(["a"]), r"does not know where it ends: pass limit=N"),
        ],
    )
    def test_sources(self, source, message):
        with pytest.raises(ConfigurationError, match=message):
            load(source)

    @pytest.mark.parametrize(
        "options",
        [
            {"vocab_size": 0},
            {"vocab_size": 2.0},
            {"max_prompt_tokens": 0},
            {"limit": 0},
            {"limit": True},
            {"overflow": "drop"},
            {"add_special_tokens": "no"},
        ],
    )
    def test_options(self, options):
        with pytest.raises(ConfigurationError, match=next(iter(options))):
            load(["a"], **options)

    def test_text_without_a_tokenizer(self):
        with pytest.raises(ConfigurationError, match="prompt 1 is text and there is no tokenizer"):
            load([[1], "a"], None)


class TestTruncation:
    def test_the_last_tokens_and_the_bos_stay(self):
        prompt = load(["abcdef"], overflow="truncate", max_prompt_tokens=4)[0]
        assert prompt.ids.tolist() == byte_ids("def") and prompt.text == "def"

    def test_no_bos_no_exception(self):
        prompt = load(["abcdef"], overflow="truncate", max_prompt_tokens=4, add_special_tokens=False)[0]
        assert prompt.ids.tolist() == byte_ids("cdef", bos=False) and prompt.text == "cdef"

    def test_ids_without_a_tokenizer(self):
        prompt = load([[BOS, 1, 2, 3]], None, overflow="truncate", max_prompt_tokens=2)[0]
        assert prompt.ids.tolist() == [2, 3] and prompt.text == "2 3"

    def test_one_token(self):
        assert load(["ab"], overflow="truncate", max_prompt_tokens=1)[0].ids.tolist() == [BOS]
        assert load([[7, 8]], overflow="truncate", max_prompt_tokens=1)[0].ids.tolist() == [8]

    def test_a_prompt_that_fits_is_left_alone(self):
        assert load(["abc"], overflow="truncate", max_prompt_tokens=4)[0].ids.tolist() == byte_ids("abc")

    @RELAXED
    @given(st.lists(st.integers(0, BOS), min_size=1, max_size=12), st.integers(1, 12))
    def test_any_ids(self, ids, size):
        kept = load([ids], overflow="truncate", max_prompt_tokens=size)[0].ids.tolist()
        assert len(kept) == min(len(ids), size)
        assert kept[0] == BOS or ids[0] != BOS
        assert kept == ids or kept[1:] == (ids[-(size - 1) :] if size > 1 else [])


class TestTokenizers:
    def test_pad_equal_to_eos_and_configured_padding_do_not_matter(self):
        texts = ["a", "<|end|>b<|end|>", "longer than the others"]
        padded = load(texts, byte_tokenizer(padding=True))
        assert plain(padded) == plain(load(texts))
        assert padded[1].ids.tolist() == [BOS, BYTE_ID[ord("b")], BOS]

    def test_batches_do_not_change_order_or_ids(self):
        texts = [str(i) for i in range(3000)]
        assert [p.ids.tolist() for p in load(texts)] == [byte_ids(text) for text in texts]

    def test_texts_and_ids_mixed(self):
        rows = ["a", byte_ids("b"), "c", byte_ids("d")]
        assert [p.text for p in load(rows)] == ["a", "b", "c", "d"]

    def test_a_real_tokenizer(self):
        if not (SHARED_DATA / "stories260K").is_dir():
            pytest.skip("stories260K is not here")
        tokenizer = AutoTokenizer.from_pretrained(SHARED_DATA / "stories260K")
        options = {
            "tokenizer": tokenizer,
            "vocab_size": 512,
            "max_prompt_tokens": 64,
            "overflow": "truncate",
            "limit": 300,
        }
        prompts = load(SHARED_DATA / "tinystories_train_head.txt", **options)
        lines = [line for line in (SHARED_DATA / "tinystories_train_head.txt").read_text().split("\n") if line.strip()]
        assert len(prompts) == 300
        assert all(p.ids[0] == tokenizer.bos_token_id and len(p.ids) <= 64 for p in prompts)
        whole = [i for i, p in enumerate(prompts) if p.text == lines[i]]
        assert all(tokenizer(lines[i])["input_ids"] == prompts[i].ids.tolist() for i in whole[:20]) and len(whole) > 50
        problems = load(SHARED_DATA / "gsm8k_train_2000.jsonl", **options)
        assert len(problems) == 300 and problems.columns == ("answer",) and "####" in problems[5].columns["answer"]
        with pytest.raises(InvalidPromptError, match=r"line 1 has no column 'prompt' \(it has 'chosen', 'rejected'\)"):
            load(SHARED_DATA / "hh_rlhf_200.jsonl", **options)


class TestSpecialTokens:
    def test_a_text_that_begins_with_a_bos_gets_no_second_one(self):
        assert load(["<|end|>ab", "ab"])[0].ids.tolist() == load(["ab"])[0].ids.tolist() == byte_ids("ab")
        assert load(["<|end|><|end|>ab"])[0].ids.tolist() == [BOS, *byte_ids("ab")]  # two of the text's own stay
        assert load(["<|end|>"])[0].ids.tolist() == [BOS]
        assert load(["<|end|>ab"], byte_tokenizer(bos=False))[0].ids.tolist() == byte_ids("ab")

    def test_a_rendered_chat_as_text_is_the_chat(self):
        text = CHATTY.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
        assert load([text], CHATTY)[0].ids.tolist() == load([CHAT], CHATTY)[0].ids.tolist()

    @pytest.mark.parametrize("bos", [True, False])
    def test_an_eos_that_the_tokenizer_appends_is_left_out_with_one_warning(self, bos):
        appending = special_tokenizer("<s> $A </s>" if bos else "$A </s>")
        texts = ["ab", "c", "<s>d"]
        with pytest.warns(UserWarning, match="puts its EOS .* behind every text") as caught:
            prompts = load(texts, appending, vocab_size=260)
        assert len(caught) == 1
        without = special_tokenizer("<s> $A" if bos else "$A")
        assert [p.ids.tolist() for p in prompts] == [p.ids.tolist() for p in load(texts, without, vocab_size=260)]
        assert [p.text for p in prompts] == texts
        assert appending("ab")["input_ids"][-1] == appending.eos_token_id not in prompts[0].ids

    def test_an_eos_of_the_users_own_stays(self):
        tokenizer = special_tokenizer("<s> $A")
        eos = tokenizer.eos_token_id
        assert load(["ab</s>"], tokenizer, vocab_size=260)[0].ids[-1] == eos
        assert load([[1, eos]], tokenizer, vocab_size=260)[0].ids.tolist() == [1, eos]
        assert load([tokenizer("ab")["input_ids"]], tokenizer, vocab_size=260)[0].ids[0] == tokenizer.bos_token_id
        with pytest.warns(UserWarning, match="EOS"):
            prompt = load(["ab</s>"], special_tokenizer("<s> $A </s>"), vocab_size=260)[0]
        assert prompt.ids[-1] == eos and prompt.ids.tolist().count(eos) == 1

    def test_nothing_is_added_when_it_is_not_wanted(self):
        prompts = load(["ab", "<s>ab"], special_tokenizer("<s> $A </s>"), vocab_size=260, add_special_tokens=False)
        assert [p.ids[0] == prompts[1].ids[0] for p in prompts] == [False, True]

    @RELAXED
    @given(
        st.lists(st.lists(st.sampled_from(["a", "b", "<s>", "</s>"]), min_size=1, max_size=5), min_size=1, max_size=4),
        st.sampled_from(["$A", "<s> $A", "$A </s>", "<s> $A </s>"]),
    )
    def test_whatever_the_text_it_is_the_text_after_one_bos(self, rows, template):
        tokenizer = special_tokenizer(template)
        ids = {"a": BYTE_ID[97], "b": BYTE_ID[98], "<s>": tokenizer.bos_token_id, "</s>": tokenizer.eos_token_id}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            prompts = load(["".join(row) for row in rows], tokenizer, vocab_size=260)
        bos = ["<s>"] if template.startswith("<s>") else []
        expected = [[ids[part] for part in (row if row[0] == "<s>" else bos + row)] for row in rows]
        assert [p.ids.tolist() for p in prompts] == expected


class TestChats:
    def test_a_list_of_messages_is_what_the_template_makes_of_it(self):
        ids = CHATTY.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=True, return_dict=False)
        rows = [CHAT, {"prompt": CHAT, "answer": "x"}, {"prompt": tuple(CHAT)}]
        prompts = load(rows, CHATTY)
        assert all(p.ids.tolist() == ids for p in prompts) and ids.count(BOS) == 1 == ids[:1].count(BOS)
        assert [p.columns["answer"] for p in prompts] == [None, "x", None]

    def test_the_reward_reads_the_chat_without_special_tokens(self):
        assert load([CHAT], CHATTY)[0].text == "system: be brief\nuser: hi\nassistant: "

    def test_add_special_tokens_is_the_templates_business(self):
        with_it, without = (load([CHAT], CHATTY, add_special_tokens=add)[0].ids.tolist() for add in (True, False))
        assert with_it == without
        no_bos = copy.deepcopy(CHATTY)
        no_bos.chat_template = CHAT_TEMPLATE.removeprefix("{{ bos_token }}")
        assert load([CHAT], no_bos)[0].ids.tolist() == with_it[1:]

    def test_chats_texts_and_ids_may_be_mixed(self):
        prompts = load([CHAT, "ab", [1, 2]], CHATTY)
        assert [p.ids.tolist() for p in prompts] == [load([CHAT], CHATTY)[0].ids.tolist(), byte_ids("ab"), [1, 2]]

    def test_a_chat_that_is_too_long_keeps_its_end_and_its_bos(self):
        prompt = load([CHAT], CHATTY, overflow="truncate", max_prompt_tokens=12)[0]
        assert prompt.ids.tolist() == byte_ids("assistant: "[-11:]) and prompt.text == "assistant: "

    def test_files_and_datasets_hold_chats(self, tmp_path):
        (tmp_path / "chats.jsonl").write_text(json.dumps({"prompt": CHAT}) + "\n" + json.dumps(CHAT))
        expected = load([CHAT, CHAT], CHATTY)
        assert plain(load(tmp_path / "chats.jsonl", CHATTY)) == plain(expected)
        assert plain(load(datasets.Dataset.from_list([{"prompt": CHAT}] * 2), CHATTY)) == plain(expected)

    @pytest.mark.parametrize(
        ("messages", "words"),
        [
            ([{"content": "a"}], r"prompt 0, message 0 has no role: it must be text"),
            ([{"role": "user"}], r"prompt 0, message 0 has no content"),
            ([USER, {"role": "user", "content": None}], r"message 1 has a content of type NoneType"),
            ([{"role": "user", "content": [{"type": "text", "text": "a"}]}], r"content of type list"),
            ([{"role": 3, "content": "a"}], r"message 0 has a role of type int"),
            ([USER, "a"], r"message 1 is of type str: give a dict with role and content"),
            (["a", USER], r"message 0 is of type str"),
            ([USER, {"role": "assistant", "content": "b"}], r"ends with the assistant's own message: leave it out"),
            ([{"role": "user", "content": "\ud800"}], r"half of a surrogate pair"),
            ([{"role": "judge", "content": "a"}], r"refused by the chat template \(no role judge\)"),
        ],
    )
    def test_a_malformed_chat_is_named(self, messages, words):
        for source in ([messages], [{"prompt": messages}]):
            with pytest.raises(InvalidPromptError, match=words):
                load(source, CHATTY)

    def test_one_chat_in_place_of_a_list_of_chats(self):
        with pytest.raises(InvalidPromptError, match=r"prompt 0 is one message: .* put it into a list"):
            load(CHAT, CHATTY)

    def test_an_empty_chat(self):
        with pytest.raises(InvalidPromptError, match="prompt 0 is empty"):
            load([{"prompt": []}], CHATTY)

    @pytest.mark.parametrize(("tokenizer", "words"), [(TOKENIZER, "has no chat template"), (None, "no tokenizer")])
    def test_no_template(self, tokenizer, words):
        with pytest.raises(ConfigurationError, match=f"prompt 0 is a chat and .*{words}"):
            load([CHAT], tokenizer)

    @RELAXED
    @given(
        st.lists(
            st.dictionaries(
                st.sampled_from(["role", "content", "name"]),
                st.sampled_from(["user", "system", "assistant", "", "text <|end|>"]) | st.none() | st.integers(),
            )
            | st.text(max_size=2),
            min_size=1,
            max_size=4,
        ).filter(is_chat)
    )
    def test_any_messages_are_rendered_or_named(self, messages):
        fine = all(
            isinstance(m, dict)
            and isinstance(m.get("content"), str)
            and m.get("role") in ("user", "system", "assistant")
            for m in messages
        )
        if fine and messages[-1]["role"] != "assistant":
            theirs = CHATTY.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            assert load([messages], CHATTY)[0].ids.tolist() == theirs
        else:
            with pytest.raises(InvalidPromptError, match="prompt 0"):
                load([messages], CHATTY)


class TestTokenizedBatches:
    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("tensors", [None, "pt", "np"])
    def test_the_padding_is_dropped(self, side, tensors):
        texts = ["a", "longer than that", "bc"]
        tokenizer = byte_tokenizer()
        tokenizer.padding_side = side
        batch = tokenizer(texts, padding=True, return_tensors=tensors)
        assert [p.ids.tolist() for p in load(batch)] == [byte_ids(text) for text in texts]
        assert [p.ids.tolist() for p in load(dict(batch))] == [byte_ids(text) for text in texts]
        assert [p.text for p in load(batch, limit=2)] == texts[:2]

    def test_a_batch_without_padding(self):
        batch = TOKENIZER(["a", "bcd"])
        assert [p.ids.tolist() for p in load(batch, None)] == [byte_ids("a"), byte_ids("bcd")]
        unmasked = TOKENIZER(["a", "bcd"], return_attention_mask=False)
        assert [p.ids.tolist() for p in load(unmasked, None)] == [byte_ids("a"), byte_ids("bcd")]

    def test_the_encoding_of_a_single_text(self):
        with pytest.raises(ConfigurationError, match=r"single text: tokenize a list, as in tokenizer\(\[text\]\)"):
            load(TOKENIZER("abc"))

    @pytest.mark.parametrize(
        ("ids", "mask", "error", "words"),
        [
            ([[1, 2, 3]], [[1, 0, 1]], InvalidPromptError, "prompt 0 has an attention_mask that is no single run"),
            ([[1], [1, 2]], [[1], [1]], InvalidPromptError, "prompt 1 has an attention_mask"),
            ([[1, 2]], [[2, 1]], InvalidPromptError, "prompt 0 has an attention_mask"),
            ([[1, 2]], [[0, 0]], InvalidPromptError, "prompt 0 is empty"),
            ([[1, 2]], [[1, 1], [1, 1]], ConfigurationError, "1 rows: its attention_mask needs one list for each"),
            ([[1, 2]], [1], ConfigurationError, "one list for each"),
            ([["a"]], [[1]], InvalidPromptError, "prompt 0 holds 'a' at 0"),
            ([], [], InvalidPromptError, "holds no prompts"),
        ],
    )
    def test_masks_that_cannot_be(self, ids, mask, error, words):
        with pytest.raises(error, match=words):
            load({"input_ids": ids, "attention_mask": mask})

    @RELAXED
    @given(st.lists(st.lists(st.integers(0, BOS - 1), min_size=1, max_size=6), min_size=1, max_size=5), st.booleans())
    def test_any_batch_gives_its_rows_back(self, rows, left):
        tokenizer = byte_tokenizer()
        tokenizer.padding_side = "left" if left else "right"
        padded = tokenizer.pad({"input_ids": rows})
        assert [p.ids.tolist() for p in load(padded, None)] == rows


class TestFiles:
    def test_a_hundred_megabytes_on_one_line_are_refused_without_being_held(self, tmp_path):
        path = tmp_path / "big.jsonl"
        path.write_bytes(b'"fine"\n"' + b"a" * 100_000_000 + b'"\n"b"\n')
        tracemalloc.start()
        with pytest.raises(InvalidPromptError, match=r"line 2 has 100,000,003 bytes, .* one prompt per line") as caught:
            load(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 80_000_000 and len(str(caught.value)) < 200
        assert len(load(path, limit=1)) == 1

    def test_a_text_that_is_too_long_to_be_tokenized(self, tmp_path):
        text = "a" * (LONGEST_TEXT + 1)
        (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": text}))
        (tmp_path / "long.json").write_text(json.dumps([{"prompt": "a"}, {"prompt": text}]))
        for source, name in (
            ([text], "prompt 0"),
            (tmp_path / "long.jsonl", "long.jsonl, line 1"),
            (tmp_path / "long.json", "long.json, entry 1"),
        ):
            with pytest.raises(InvalidPromptError, match=f"{name} has 4,194,305 characters") as caught:
                load(source, overflow="truncate")
            assert len(str(caught.value)) < 200

    @pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
    @pytest.mark.parametrize(
        ("suffix", "text"), [(".txt", "a film\nanother"), (".jsonl", '"a"\n"b"'), (".json", '["a"]')]
    )
    def test_other_encodings_are_named(self, tmp_path, codec, suffix, text):
        path = tmp_path / f"some{suffix}"
        path.write_bytes(text.encode(codec))
        with pytest.raises(InvalidPromptError, match=rf"some\{suffix}, line 1: .*UTF-16.*save the file as UTF-8"):
            load(path)

    @pytest.mark.parametrize(
        ("row", "words"),
        [
            ('{"prompt": "a", "n": NaN}', "NaN is not a number in JSON"),
            ('{"prompt": "a", "n": [-Infinity]}', "-Infinity is not a number in JSON"),
            ("[Infinity]", "Infinity is not a number in JSON"),
            ('{"prompt": "a", "n": 1e999}', "'1e999' is too large for a float"),
            ('{"prompt": "a", "prompt": "b"}', "an object has the key 'prompt' twice"),
            ('{"prompt": "a", "x": {"k": 1, "k": 1}}', "an object has the key 'k' twice"),
            ('{"prompt": ' + "[" * 50_000 + "]" * 50_000 + "}", "invalid JSON"),
        ],
    )
    def test_what_is_no_json_is_refused_with_its_line(self, tmp_path, row, words):
        (tmp_path / "some.jsonl").write_text('{"prompt": "fine", "n": 1.5}\n' + row + "\n")
        with pytest.raises(InvalidPromptError, match=rf"some\.jsonl, line 2: .*{words}"):
            load(tmp_path / "some.jsonl")
        (tmp_path / "some.json").write_text(f'["fine", {row}]')
        with pytest.raises(InvalidPromptError, match=r"some\.json(, line 1)?: invalid JSON, "):
            load(tmp_path / "some.json")

    def test_names_of_columns_are_shown_in_part(self):
        with pytest.raises(InvalidPromptError) as caught:
            load([{f"column {i} " + "x" * 1000: 1 for i in range(1000)}])
        assert len(str(caught.value)) < 600
        with pytest.raises(InvalidPromptError, match="more than 30 digits"):
            load([[10**5000]])

    @RELAXED
    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            max_leaves=8,
        )
    )
    def test_any_json_value_comes_back_or_is_named(self, tmp_path, value):
        (tmp_path / "some.jsonl").write_text(json.dumps({"prompt": "a", "value": value}))
        try:
            assert load(tmp_path / "some.jsonl")[0].columns["value"] == value
        except InvalidPromptError as error:
            assert "some.jsonl, line 1" in str(error) and re.search("NaN|Infinity", json.dumps(value))

    @RELAXED
    @given(
        st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\0"), max_size=9), max_size=5)
    )
    def test_any_lines_come_back(self, tmp_path, lines):
        path = tmp_path / "some.txt"
        path.write_bytes("\n".join(lines).encode())
        expected = [line.removesuffix("\r") for line in lines if line.strip()]
        if expected and expected[0] == lines[0].removesuffix("\r"):
            expected[0] = expected[0].removeprefix("\ufeff")
        expected = [line for line in expected if line.strip()]
        if expected:
            assert [p.text for p in load(path)] == expected
        else:
            with pytest.raises(InvalidPromptError, match="holds no prompts"):
                load(path)


class TestSampling:
    prompts = load(list(string.ascii_letters))

    def test_the_generator_alone_decides(self):
        def indices(seed):
            return [p.index for p in self.prompts.sample(np.random.default_rng(seed), 20)]

        random.seed(1)
        np.random.seed(1)
        states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        first = indices(3)
        assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
        np.random.seed(2)
        assert first == indices(3) != indices(4)

    def test_one_by_one_or_at_once_are_the_same_prompts(self):
        one, many = np.random.default_rng(5), np.random.default_rng(5)
        assert [self.prompts.sample(one, 1)[0] for _ in range(7)] == self.prompts.sample(many, 7)

    def test_uniform_and_independent(self):
        count, draws = len(self.prompts), 52_000
        drawn = np.array([p.index for p in self.prompts.sample(np.random.default_rng(0), draws)])
        singles = np.bincount(drawn, minlength=count)
        pairs = np.bincount(drawn[::2] * count + drawn[1::2], minlength=count**2)
        for observed in (singles, pairs):  # chi-square has mean k - 1 and variance 2 (k - 1)
            expected, freedom = observed.sum() / len(observed), len(observed) - 1
            statistic = ((observed - expected) ** 2 / expected).sum()
            assert abs(statistic - freedom) < 4 * np.sqrt(2 * freedom)

    def test_numbers(self):
        rng = np.random.default_rng(0)
        assert self.prompts.sample(rng, 0) == [] and len(self.prompts.sample(rng, 500)) == 500
        assert self.prompts.head(2) == self.prompts[:2] == [self.prompts[0], self.prompts[1]]
        assert len(self.prompts.head(99)) == 52 and self.prompts.head(0) == []
        for method in (lambda n: self.prompts.sample(rng, n), self.prompts.head):
            with pytest.raises(ConfigurationError, match="n must be an integer of at least 0, not -1"):
                method(-1)

    def test_a_pool_can_be_copied(self):
        """`gymnasium.make` copies its arguments."""
        prompts = load([{"prompt": "a", "answer": [1]}])
        assert plain(copy.deepcopy(prompts)) == plain(prompts)

    def test_a_prompt_is_itself_alone(self):
        first, second = load(["a", "a"])
        assert first != second and first in [second, first] and len({first, second, first}) == 2
        with pytest.raises(ValueError, match="read-only"):
            first.ids[0] = 0
        with pytest.raises(AttributeError):
            first.text = "b"
        assert isinstance(first, Prompt)


class TestOutsideData:
    @RELAXED
    @given(st.lists(st.text(st.characters(), max_size=20), min_size=1, max_size=5))
    def test_any_text_keeps_its_bytes_or_is_named(self, texts):
        invalid = [i for i, t in enumerate(texts) if not t or any("\ud800" <= c <= "\udfff" for c in t)]
        if invalid:
            with pytest.raises(InvalidPromptError, match=f"prompt {invalid[0]} "):
                load(texts)
        else:
            assert [p.text for p in load(texts)] == texts
            assert [p.ids.tolist() for p in load(texts, byte_tokenizer(bos=False))] == [
                byte_ids(text, bos=False) for text in texts
            ]

    @RELAXED
    @given(
        st.lists(
            st.dictionaries(st.sampled_from(["prompt", "answer", "n", "prompts"]), st.none() | st.text(max_size=5)),
            min_size=1,
            max_size=4,
        )
    )
    def test_any_json_lines(self, tmp_path, rows):
        path = tmp_path / "some.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows))
        wrong = [i for i, row in enumerate(rows, start=1) if not row.get("prompt") or "prompts" in row]
        if wrong:
            with pytest.raises(InvalidPromptError, match=rf"some\.jsonl, line {wrong[0]} "):
                load(path)
        else:
            assert plain(load(path)) == plain(load(rows))

    @RELAXED
    @given(st.binary(max_size=40), st.sampled_from([".txt", ".jsonl", ".json"]))
    def test_any_file_is_read_or_named(self, tmp_path, content, suffix):
        path = tmp_path / f"some{suffix}"
        path.write_bytes(content)
        try:
            prompts = load(path)
        except InvalidPromptError as error:
            assert path.name in str(error)
        else:
            assert len(prompts) >= 1 and all(len(p.ids) >= 1 for p in prompts)

    anything = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.binary(max_size=3)
    )

    @RELAXED
    @given(st.lists(st.lists(st.integers(-2, VOCAB + 1) | anything, max_size=6) | anything, max_size=4))
    def test_any_rows_are_valid_or_named(self, rows):
        def valid(row):
            if isinstance(row, str):
                return row != ""
            return isinstance(row, list) and row != [] and all(type(t) is int and 0 <= t < VOCAB for t in row)

        if rows and all(map(valid, rows)):
            ids = [byte_ids(row) if isinstance(row, str) else row for row in rows]
            assert [p.ids.tolist() for p in load(rows)] == ids
        else:
            with pytest.raises(InvalidPromptError, match=r"prompt \d|holds no prompts"):
                load(rows)
