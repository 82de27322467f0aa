"""What a reward model reads of a text, and which texts are scored once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from letters import letter_tokenizer

from lm_env.errors import ConfigurationError
from reward_models.preferences.encoding import RowEncoder, record_texts, score_records
from reward_models.preferences.records.preference import Preference

LETTERS = "abcdefgh."
BOS, EOS = 9, 10


TOKENIZER = letter_tokenizer(LETTERS)
ENCODER = RowEncoder(TOKENIZER, causal=True, max_length=None)


def ids_of(text):
    return [LETTERS.index(letter) for letter in text]


# -- ids and texts -----------------------------------------------------------------------------------
@settings(deadline=None)
@given(st.text(LETTERS, min_size=1, max_size=4), st.text(LETTERS, max_size=4), st.text(LETTERS, max_size=3))
def test_a_response_is_read_in_the_same_way_as_text_and_as_ids(prompt, text, stop):
    """An EOS ended it, or a stop string, which the ids hold and the text does not, or the length cap."""
    whole = [[BOS, *ids_of(prompt + text), EOS]]
    for end in ([EOS], [EOS, EOS], ids_of(stop)):
        ids = [*ids_of(text), *end]
        assert ENCODER.rows([prompt], [text], [[BOS, *ids_of(prompt)]], [ids]) == whole
    assert ENCODER.rows([prompt], [text]) == whole


def test_a_response_that_is_still_being_written_has_no_eos():
    rows = ENCODER.rows(["ab"] * 2, ["c."] * 2, [[BOS, 0, 1]] * 2, [ids_of("c.")] * 2, finished=[False, True])
    assert rows == [[BOS, 0, 1, *ids_of("c.")], [BOS, 0, 1, *ids_of("c."), EOS]]
    assert ENCODER.rows(["ab"] * 2, ["c."] * 2, finished=[False, True]) == rows


@pytest.mark.parametrize(("given", "left"), [(4, [2, 3, 4, EOS]), (2, [4, EOS]), (9, [BOS, 0, 1, 2, 3, 4, EOS])])
def test_a_long_row_loses_its_beginning(given, left):
    assert RowEncoder(TOKENIZER, causal=True, max_length=given).rows(["ab"], ["cde"]) == [left]


# -- the template ------------------------------------------------------------------------------------
@pytest.mark.parametrize("field", ["answer[x]", "answer.x", "other", "answer:d", "answer[9]"])
def test_a_template_that_does_not_fit_the_columns_is_named(field):
    encoder = RowEncoder(TOKENIZER, causal=True, max_length=None, template=f"{{prompt}} {{{field}}}")
    with pytest.raises(ConfigurationError, match=r"does not fit .*its fields may be prompt, answer"):
        encoder.rows(["a"], ["b"], columns={"answer": ["text"]})


# -- records -----------------------------------------------------------------------------------------
def test_the_same_response_with_other_columns_is_scored_with_its_own():
    asked = []

    def reward(prompts, responses, answer):
        asked.extend(zip(prompts, responses, answer, strict=True))
        return [float(response == right) for response, right in zip(responses, answer, strict=True)]

    records = [
        Preference("a", ("b", "c"), ratings=(0.0, 1.0), columns={"answer": "b"}),
        Preference("a", ("b", "c"), ratings=(0.0, 1.0), columns={"answer": "c"}),
        Preference("a", ("c", "c"), ratings=(0.0, 1.0), columns={"answer": "c"}),
    ]
    found = score_records(reward, records, TOKENIZER)
    assert [scores.tolist() for scores in found] == [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
    assert len(asked) == len(set(asked)) == 4
    assert record_texts(records, TOKENIZER, limit=3) == (["a"] * 3, ["b", "c", "b"], {"answer": ["b", "b", "c"]})
