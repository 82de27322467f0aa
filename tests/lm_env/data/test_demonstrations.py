"""Demonstrations: which columns are learned, chats turn by turn, and refusals where that is not clear."""

from __future__ import annotations

import copy
import json

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_env.data.demonstrations import Demonstrations, read_demonstrations
from lm_env.errors import ConfigurationError, InvalidPromptError

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
QUESTION, ANSWER = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}
MORE = [{"role": "user", "content": "+1?"}, {"role": "assistant", "content": "5"}]


@pytest.fixture(scope="module")
def chatty(tokenizer):
    copied = copy.deepcopy(tokenizer)
    copied.chat_template = TEMPLATE
    return copied


def read(source, tokenizer, **options) -> Demonstrations:
    return read_demonstrations(source, tokenizer, **{"vocab_size": len(tokenizer), "max_tokens": 200} | options)


def parts(demonstrations: Demonstrations, tokenizer) -> list[tuple[str, str]]:
    """(given, learned) as text, by decoding the token ids themselves."""
    episodes = demonstrations.episodes
    rows = zip(episodes.input_ids, episodes.prompt_lengths, episodes.lengths, strict=True)
    return [(tokenizer.decode(row[:p]), tokenizer.decode(row[p:n])) for row, p, n in rows]


# -- columns -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("prompt", ["prompt", "text", "question", "query", "instruction"])
@pytest.mark.parametrize("response", ["response", "answer", "completion", "output"])
def test_the_response_is_learned_whatever_the_columns_are_called(tokenizer, prompt, response):
    rows = [{"id": 3, response: " story", prompt: "a good"}]
    found = read(rows, tokenizer)
    assert parts(found, tokenizer) == [("a good", " story<|end|>")]
    assert (found.prompt_column, found.response_column, found.unread) == (prompt, response, ("id",))


def test_columns_that_are_named_come_first(tokenizer):
    row = {"prompt": "p", "text": "t", "response": "r", "solution": "s"}
    assert parts(read([row], tokenizer, response_column="solution"), tokenizer) == [("p", "s<|end|>")]
    assert parts(read([row], tokenizer, prompt_column="text"), tokenizer) == [("t", "r<|end|>")]


@pytest.mark.parametrize(
    ("row", "options", "words"),
    [
        ({"question": "q", "solution": "s"}, {}, r"'question', 'solution'.*response_column, --response-column"),
        ({"prompt": "p", "answer": "a", "output": "o"}, {}, "'answer' and 'output'.*response_column"),
        ({"prompt": "p"}, {"response_column": "answer"}, "response_column='answer' is no column of the rows.*'prompt'"),
        ({"prompt": "p"}, {"prompt_column": "question"}, "prompt_column='question' is no column"),
        ("text", {"response_column": "answer"}, "have no columns, so none is 'answer'"),
        ({"prompt": "p", "response": None}, {}, "demonstration 0 has no 'response'"),
        ({"prompt": "p", "response": 3}, {}, "demonstration 0 has the response '3'"),
        ({"prompt": "p", "response": [QUESTION, ANSWER]}, {}, "a chat as its response to a prompt that is none"),
        ({"prompt": "p", "response": "r"}, {"separator": 3}, "separator must be text"),
        ({"prompt": "p", "response": "r"}, {"max_tokens": 1}, "demonstration 0 has nothing to learn"),
    ],
)
def test_what_is_not_clear_is_refused(tokenizer, row, options, words):
    with pytest.raises(ConfigurationError, match=words):
        read([row], tokenizer, **options)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"solution": "s"}, "no column that holds a prompt .*'solution'"),
        ({"role": "user", "content": "q"}, "is one message: a chat is a list of messages"),
        ({"messages": [QUESTION]}, "demonstration 0 has no message of the assistant"),
        ({"messages": [ANSWER]}, "begins with the assistant's own message"),
        ({"messages": [QUESTION, {"role": "assistant", "content": None}]}, "assistant's message of type NoneType"),
    ],
)
def test_rows_without_a_demonstration_are_refused(chatty, row, words):
    with pytest.raises(InvalidPromptError, match=words):
        read([row], chatty)


def test_a_text_with_further_columns_is_learned_whole_and_they_are_told(tokenizer):
    found = read([{"text": "the end", "label": 1}], tokenizer)
    assert found.response_column is None and found.unread == ("label",)
    (given_, learned), text = parts(found, tokenizer)[0], "the end<|end|>"
    assert given_ + learned == text and len(tokenizer(given_)["input_ids"]) == 1


def test_a_line_of_a_file_is_named(tmp_path, tokenizer):
    (tmp_path / "data.jsonl").write_text('{"prompt": "p", "answer": "a"}\n\n{"prompt": "p"}\n')
    with pytest.raises(ConfigurationError, match=r"data\.jsonl, line 3 has no 'answer'"):
        read(tmp_path / "data.jsonl", tokenizer)


def test_lists_files_and_datasets_are_the_same(tmp_path, tokenizer):
    rows = [{"question": "a", "answer": " b"}, {"question": "c", "answer": " d"}]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    expected = parts(read(rows, tokenizer), tokenizer)
    assert parts(read(tmp_path / "data.jsonl", tokenizer), tokenizer) == expected
    assert parts(read(datasets.Dataset.from_list(rows), tokenizer), tokenizer) == expected


def test_a_separator_stands_between_prompt_and_response(tokenizer):
    found = read([{"question": "a", "answer": "b"}], tokenizer, separator="\n")
    assert parts(found, tokenizer) == [("a\n", "b<|end|>")]


def test_an_eos_that_is_there_is_not_put_there_again(tokenizer):
    eos = tokenizer.eos_token_id
    rows = [{"prompt": [1], "response": [2, eos]}, {"prompt": [1], "response": [2]}, {"prompt": [eos], "response": []}]
    assert [r.tolist() for r in map(_row, [read(rows, tokenizer).episodes] * 3, range(3))] == [
        [1, 2, eos],
        [1, 2, eos],
        [eos, eos],  # the first is given, the second learned
    ]


def _row(episodes, i):
    return episodes.input_ids[i, : episodes.lengths[i]]


# -- chats -------------------------------------------------------------------------------------------
def test_each_message_of_the_assistant_is_learned_given_those_before_it(chatty):
    rows = [{"messages": [QUESTION, ANSWER, *MORE]}, {"messages": [QUESTION, ANSWER]}]
    first = "[user]2+2?<|end|>\n[assistant]"
    second = f"{first}4<|end|>\n[user]+1?<|end|>\n[assistant]"
    assert parts(read(rows, chatty), chatty) == [(first, "4<|end|>"), (second, "5<|end|>"), (first, "4<|end|>")]
    assert parts(read([[QUESTION, ANSWER]], chatty), chatty) == [(first, "4<|end|>")]


@pytest.mark.parametrize("response", ["4", [ANSWER]], ids=["text", "messages"])
def test_a_chat_and_its_response(chatty, response):
    rows = [{"prompt": [QUESTION], "completion": response}]
    assert parts(read(rows, chatty), chatty) == [("[user]2+2?<|end|>\n[assistant]", "4<|end|>")]


def test_what_is_given_is_the_prompt_that_an_environment_would_give(chatty):
    from lm_env import load_prompts

    prompt = load_prompts([[QUESTION]], chatty, vocab_size=len(chatty), max_prompt_tokens=99)[0]
    episodes = read([{"messages": [QUESTION, ANSWER]}], chatty).episodes
    assert episodes.input_ids[0, : episodes.prompt_lengths[0]].tolist() == prompt.ids.tolist()


def test_a_template_without_eos_gets_one(tokenizer):
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = TEMPLATE.replace("{{ eos_token }}", "")
    assert parts(read([[QUESTION, ANSWER]], plain), plain)[0][1] == "4\n<|end|>"


def test_a_template_that_rewrites_the_prompt_is_refused(tokenizer):
    odd = copy.deepcopy(tokenizer)
    odd.chat_template = TEMPLATE.replace("[assistant]{% endif %}", "<think>{% endif %}")
    with pytest.raises(InvalidPromptError, match="writes an answer otherwise than it asks for one"):
        read([[QUESTION, ANSWER]], odd)


def test_a_chat_needs_a_template(tokenizer):
    with pytest.raises(ConfigurationError, match="has no chat template"):
        read([[QUESTION, ANSWER]], tokenizer)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["user", "system", "assistant"]), min_size=1, max_size=6))
def test_a_chat_is_learned_at_its_assistants_messages_alone(chatty, roles):
    chat = [{"role": role, "content": f"say {i}"} for i, role in enumerate(roles)]
    turns = [i for i, role in enumerate(roles) if role == "assistant"]
    in_a_row = any(turn - 1 in turns for turn in turns)  # nothing was asked before the second
    if not turns or turns[0] == 0 or in_a_row:
        with pytest.raises(InvalidPromptError):
            read([chat], chatty)
        return
    whole = chatty.apply_chat_template(chat, tokenize=False)
    found = parts(read([chat], chatty, max_tokens=10_000), chatty)
    assert [learned for _, learned in found] == [f"say {i}<|end|>" for i in turns]
    assert all(whole.startswith(given_ + learned) for given_, learned in found)


# -- what is said before it starts -------------------------------------------------------------------
def test_the_description_tells_all_that_could_surprise(tokenizer):
    rows = [{"id": 1, "question": "How many?", "answer": "Four, for two and two are four."}] * 3
    words = read(rows, tokenizer, max_tokens=14).description(tokenizer)
    assert "3 demonstrations" in words and "column 'answer' is learned, given 'question'" in words
    assert "not read: 'id'" in words and "3 of them are longer than 14 tokens" in words
    assert "given:   'How many?'" in words and "learned:  'Four" in words and "pass a separator" in words
    spaced = read(rows, tokenizer, separator="\n").description(tokenizer)
    assert "separator" not in spaced and "<|end|>'" in spaced and "lose their end" not in spaced


def test_the_description_of_texts_ids_and_chats(tokenizer, chatty):
    assert "the texts are learned whole" in read(["a good film"], tokenizer).description(tokenizer)
    assert "column 'text' is learned whole" in read([{"text": "the end"}], tokenizer).description(tokenizer)
    assert "message of the assistant" in read([{"messages": [QUESTION, ANSWER]}], chatty).description(chatty)
    ids = read_demonstrations([[1, 2, 3]], None, vocab_size=9, max_tokens=9)
    assert "'1'" in ids.description(None) and "' 2 3'" in ids.description(None)


def test_a_long_example_is_shortened(tokenizer):
    words = read(["good " * 1000], tokenizer, max_tokens=4000).description(tokenizer)
    assert " ... " in words and len(words) < 1500
