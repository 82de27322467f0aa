"""Rendering: the colors say what the values are, the text stays legible, and no text can command the terminal."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import SHARED_DATA
from rich.color import Color
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lm_env.envs.render import render_episode, tokens_from_ids
from lm_env.errors import ConfigurationError

SGR = re.compile(r"\x1b\[([0-9;]*)m")
BACKGROUND = re.compile(r"\x1b\[38;5;(\d+);48;5;(\d+)m([^\x1b]*)\x1b\[0m")
RELAXED = settings(deadline=None)
SAMPLE = "Once there was a café; naïve 東京 people said 😀 👩‍👩‍👧 hello, hello again.\n" * 3


def bpe_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with a few merges; pad == eos."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([SAMPLE], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", pad_token="<|end|>")


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """In the manner of SentencePiece: a word begins with a mark that is no space at the start of a text."""
    backend = Tokenizer(models.WordLevel({"▁a": 0, "▁b": 1, "c": 2, "</s>": 3}, unk_token="c"))
    backend.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>")


class CleaningTokenizer:
    """Takes spaces back in hindsight, as decoders with a clean-up do."""

    bos_token_id = None
    words = ("I", " do", " n't", " know", " .")

    def __call__(self, text, *, add_special_tokens):
        raise NotImplementedError

    def decode(self, token_ids, *, skip_special_tokens):
        text = "".join(self.words[token] for token in token_ids)
        return text.replace(" n't", "n't").replace(" .", ".").removesuffix(" ")


BPE, METASPACE = bpe_tokenizer(), metaspace_tokenizer()


def visible(rendered: str) -> str:
    return SGR.sub("", rendered)


def backgrounds(rendered: str) -> dict[str, int]:
    return {text: int(shade) for _, shade, text in BACKGROUND.findall(rendered)}


class TestText:
    def test_plain(self):
        rendered = render_episode(
            "The film", [" was", " good", "."], [0.5, -0.25, 0.0], score=1.5, title="Episode 7", color=False
        )
        assert rendered == "Episode 7\nThe film was good.\nscore +1.500 | sum of KL +0.250 nats over 3 tokens"

    def test_colors_change_nothing_but_the_legend(self):
        options = {"score": -2.0, "title": "T"}
        colored = render_episode("a\nb", ["c", "\n\nd", ""], [1.0, -1.0, 2.0], **options)
        plain = render_episode("a\nb", ["c", "\n\nd", ""], [1.0, -1.0, 2.0], color=False, **options)
        assert visible(colored) == plain + " | log-ratio  -2.00  0  +2.00 "
        assert plain.splitlines()[:4] == ["T", "a↵", "bc↵", "↵"]

    def test_parts_that_are_not_there_yet(self):
        assert render_episode("p", ["a"], None, color=False) == "pa"
        assert render_episode("p", ["a"], None, score=0.25, color=False) == "pa\nscore +0.250"
        assert render_episode("p", [], [], color=False) == "p\nsum of KL +0.000 nats over 0 tokens"

    def test_rewards_are_not_called_kl(self):
        rendered = visible(render_episode("p", ["a", "b"], [-0.5, 2.0], quantity="reward"))
        assert rendered.endswith("sum of rewards +1.500 over 2 tokens | reward  -2.00  0  +2.00 ")

    def test_arrays(self):
        values = np.array([0.5, -0.5], dtype=np.float32)
        assert render_episode("p", ["a", "b"], values) == render_episode("p", ["a", "b"], [0.5, -0.5])

    @pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0, 3.0]])
    def test_one_value_per_token(self, values):
        with pytest.raises(ConfigurationError, match=f"{len(values)} values for 2 tokens"):
            render_episode("p", ["a", "b"], values)

    @pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
    def test_scale(self, scale):
        with pytest.raises(ConfigurationError, match="must be a positive number"):
            render_episode("p", ["a"], [1.0], scale=scale)


class TestMarks:
    @pytest.mark.parametrize("mark", ["\u061c", "\u200e", "\u200f", "\u202e", "\u2066", "\x1b", "\x9b", "\r", "\x07"])
    @pytest.mark.parametrize("color", [True, False])
    def test_marks_that_move_reorder_or_command_are_written_out(self, mark, color):
        rendered = render_episode(f"p{mark}", [f"a{mark}b", "c"], [0.0, 1.0], title=f"t{mark}", color=color)
        assert mark not in visible(rendered) and visible(rendered).count(repr(mark)[1:-1]) == 3

    def test_letters_and_emoji_of_all_scripts_stay(self):
        text = "caf\u00e9 \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u6771\u4eac"
        text += " \U0001f469\u200d\U0001f469\u200d\U0001f467"
        assert render_episode(text, [text], None, color=False) == text + text


class TestColors:
    def test_sign_gives_the_hue_and_size_the_strength(self):
        values = {"a": -1.0, "b": -0.5, "c": 0.0, "d": 0.5, "e": 1.0}
        shades = backgrounds(render_episode("p", list(values), list(values.values())))
        assert "c" not in shades
        color = {text: Color.from_ansi(shade).get_truecolor() for text, shade in shades.items()}
        assert all(color[t].red > color[t].green == color[t].blue for t in "ab")
        assert all(color[t].green > color[t].red == color[t].blue for t in "de")
        assert color["a"].green < color["b"].green and color["e"].red < color["d"].red

    def test_four_steps_each_way(self):
        values = [-1.0, -0.75, -0.5, -0.15, -0.1, 0.1, 0.15, 0.5, 0.75, 1.0]
        shades = backgrounds(render_episode("p", [str(i) for i in range(10)], values))
        assert list(shades.values())[:8] == [203, 210, 217, 224, 194, 157, 120, 83]

    def test_scale_sets_the_strongest(self):
        tokens = ["a", "b"]
        shades = backgrounds(render_episode("p", tokens, [1.0, 9.0], scale=4.0))
        assert shades == {"a": 194, "b": 83, " -4.00 ": 203, " +4.00 ": 83}
        assert backgrounds(render_episode("p", tokens, [1.0, 4.0]))["b"] == 83

    def test_rounding_noise_has_no_color(self):
        assert set(backgrounds(render_episode("p", ["a", "b"], [3e-8, -1e-7]))) == {" -0.10 ", " +0.10 "}

    def test_not_finite(self):
        rendered = render_episode("p", ["a", "b", "c", "d"], [math.nan, math.inf, -math.inf, 1.0])
        assert backgrounds(rendered) == {"b": 83, "c": 203, "d": 83, " -1.00 ": 203, " +1.00 ": 83}
        assert "sum of KL +nan nats" in visible(rendered)

    def test_legible_on_any_terminal(self):
        """WCAG 2.1 contrast of at least 7 : 1 (AAA) for each colored token, whatever the terminal's own colors."""

        def luminance(number):
            parts = [part / 255 for part in Color.from_ansi(number).get_truecolor()]
            linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
            return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

        rendered = render_episode("p", ["x"] * 21, [i / 10 for i in range(-10, 11)])
        pairs = {(int(front), int(back)) for front, back, _ in BACKGROUND.findall(rendered)}
        assert len(pairs) == 8
        for front, back in pairs:
            assert min(front, back) >= 16  # 0..15 are what a theme makes of them
            assert (luminance(back) + 0.05) / (luminance(front) + 0.05) >= 7

    def test_no_color_crosses_a_line_end(self):
        rendered = render_episode("p\nq", ["a\n\nb"], [1.0], title="t\nu", score=1.0)
        for line in rendered.split("\n"):
            codes = SGR.findall(line)
            assert codes[1::2] == ["0"] * (len(codes) // 2) and len(codes) % 2 == 0

    def test_the_prompt_is_dim(self):
        assert render_episode("prompt", ["a"], None).startswith("\x1b[2mprompt\x1b[0ma")

    @pytest.mark.parametrize(
        ("no_color", "color", "expected"),
        [("1", None, False), ("1", True, True), ("", None, True), (None, None, True), (None, False, False)],
    )
    def test_no_color(self, monkeypatch, no_color, color, expected):
        monkeypatch.delenv("NO_COLOR", raising=False)
        if no_color is not None:
            monkeypatch.setenv("NO_COLOR", no_color)
        assert ("\x1b" in render_episode("p", ["a"], [1.0], color=color)) is expected


class TestUntrustedText:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
            ("\x1b[2J\x9b2J", r"\x1b[2J\x9b2J"),
            ("a\rb\tc\x08\x7f\x00", r"a\rb\tc\x08\x7f\x00"),
            ("a\u202eb\u2066c\u2028d", r"a\u202eb\u2066c\u2028d"),
            ("\ud800", r"\ud800"),
            ("a\nb", "a↵\nb"),
            ("[bold red]é 😀[/]", "[bold red]é 😀[/]"),
        ],
    )
    def test_escaped_everywhere(self, text, shown):
        rendered = render_episode(text, [text], [1.0], title=text, color=False)
        assert rendered.startswith(f"{shown}\n{shown}{shown}\n")
        assert visible(render_episode(text, [text], [1.0], title=text)).startswith(f"{shown}\n{shown}{shown}\n")

    @RELAXED
    @given(
        st.text(st.characters(), max_size=30),
        st.lists(st.tuples(st.text(st.characters(), max_size=8), st.floats(-3, 3)), max_size=6),
        st.none() | st.text(st.characters(), max_size=10),
        st.booleans(),
    )
    def test_any_text(self, prompt, pairs, title, color):
        tokens, values = [token for token, _ in pairs], [value for _, value in pairs]
        rendered = render_episode(prompt, tokens, values, score=0.0, title=title, color=color)
        ours = {"0", "1", "2"} | {f"38;5;16;48;5;{shade}" for shade in (224, 217, 210, 203, 194, 157, 120, 83)}
        assert set(SGR.findall(rendered)) <= (ours if color else set())
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]", visible(rendered))
        newlines = sum(text.count("\n") for text in [prompt, *tokens, title or ""])
        assert visible(rendered).count("\n") == newlines + 1 + (title is not None)
        rendered.encode()


class TestTokensFromIds:
    @RELAXED
    @given(st.lists(st.integers(0, len(BPE) - 1), max_size=24))
    def test_any_ids_join_to_the_decoded_text(self, ids):
        pieces = tokens_from_ids(BPE, ids)
        assert len(pieces) == len(ids) and "".join(pieces) == BPE.decode(ids)

    @RELAXED
    @given(st.text(max_size=20))
    def test_any_text_joins_to_itself(self, text):
        ids = BPE(text)["input_ids"]
        pieces = tokens_from_ids(BPE, ids)
        assert "".join(pieces) == text
        assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text

    def test_a_character_belongs_to_its_last_token(self):
        byte = {token: i for token, i in BPE.get_vocab().items() if len(token) == 1}
        # The four bytes f0 9f a6 8a of a fox, as the byte-level alphabet writes them, between two letters.
        ids = [byte[c] for c in "aðŁ¦Ĭb"]
        assert BPE.decode(ids) == "a🦊b"
        assert tokens_from_ids(BPE, ids) == ["a", "", "", "", "🦊", "b"]
        assert "".join(tokens_from_ids(BPE, ids[:3])) == "a\ufffd"

    def test_plain_tokens_are_their_own_text(self):
        ids = BPE(" hello, hello")["input_ids"]
        assert tokens_from_ids(BPE, ids) == [BPE.decode([token]) for token in ids]

    def test_special_tokens_are_shown(self):
        assert tokens_from_ids(BPE, [*BPE("a")["input_ids"], BPE.eos_token_id]) == ["a", "<|end|>"]

    def test_word_marks(self):
        assert tokens_from_ids(METASPACE, [0, 2, 1, 0]) == ["a", "c", " b", " a"]
        assert tokens_from_ids(METASPACE, [0, 1])[1:] == [" b"]

    def test_spaces_taken_back_in_hindsight(self):
        pieces = tokens_from_ids(CleaningTokenizer(), [0, 1, 2, 3, 4])
        assert pieces == ["I", " do", "n't", " know", "."]

    def test_without_a_tokenizer(self):
        assert tokens_from_ids(None, [3, 14, 15]) == ["3", " 14", " 15"]
        assert tokens_from_ids(None, torch.tensor([7])) == ["7"] and tokens_from_ids(None, []) == []

    def test_a_real_tokenizer(self):
        if not (SHARED_DATA / "stories260K").is_dir():
            pytest.skip("stories260K is not here")
        tokenizer = AutoTokenizer.from_pretrained(SHARED_DATA / "stories260K")
        ids = tokenizer("Once upon a time, é 😀 there")["input_ids"]
        pieces = tokens_from_ids(tokenizer, np.array(ids))
        assert "".join(pieces) == tokenizer.decode(ids) == "<s> Once upon a time, é 😀 there"
        assert pieces[:5] == ["<s>", " Once", " upon", " a", " time"] and pieces[-1] != ""
        assert sum("😀" in piece for piece in pieces) == 1
