"""Files of preferences as people have them: where the prompt is, what a cell of a table means, how they are written."""

from __future__ import annotations

import csv
import json
import resource
import signal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lm_env.cli import app
from lm_env.data.tables import table_rows
from lm_env.errors import CheckpointWriteError, ConfigurationError, InvalidPreferenceError, InvalidPromptError
from reward_models.preferences import Preference, read_preferences, write_preferences

CHAT = ({"role": "user", "content": "hi"},)
PAIR = {"chosen": "A happy dog.", "rejected": "A sad cat."}


def convert(*arguments) -> tuple[int, str]:
    """The exit status and the error of `lm-env prefs convert`."""
    result = CliRunner().invoke(app, ["prefs", "convert", *map(str, arguments)])
    return result.exit_code, str(result.exception or "")


# -- where the prompt is -------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["prompt", "question", "instruction", "query", "input", "text"])
@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_the_prompt_is_found_by_the_names_that_prompts_have(name, suffix, tmp_path):
    row = {"system": "Be brief.", name: "Tell a story.", **PAIR}
    path = tmp_path / f"x.{suffix}"
    with path.open("w", newline="") as file:
        if suffix == "jsonl":
            file.write(json.dumps(row))
        else:
            writer = csv.DictWriter(file, row)
            writer.writeheader()
            writer.writerow(row)
    read = read_preferences(path)
    assert read.format == "pairs" and read.extra_columns == ("system",)
    expected = Preference.pair("Tell a story.", *PAIR.values(), columns={"system": "Be brief."})
    assert list(read) == [expected]


def test_the_columns_that_a_template_does_not_show_are_named():
    read = read_preferences([{"prompt": "p", **PAIR, "system": "Be brief.", "sys": "x"}])
    assert read.description("f", "{system} {prompt}").endswith("columns that the model is not shown: 'sys'")
    assert read.description("f").endswith("not shown: 'system', 'sys'")
    assert "not shown" not in read.description("f", "{sys} {system!s:>9} {prompt}")


@pytest.mark.parametrize("name", ["prompt", "messages"])
def test_a_chat_may_stand_before_two_texts_or_two_messages(name, tmp_path):
    expected = [Preference.pair(CHAT, *PAIR.values())]
    assert list(read_preferences([{name: list(CHAT), **PAIR}])) == expected
    answers = {side: [{"role": "assistant", "content": text}] for side, text in PAIR.items()}
    assert list(read_preferences([{name: list(CHAT), **answers}])) == expected
    path = write_preferences(expected, tmp_path / "x.jsonl", format="pairs")
    assert list(read_preferences(path)) == expected


def test_a_prompt_that_is_not_to_be_found_is_no_guess():
    with pytest.raises(InvalidPreferenceError, match="may be in 'instruction' or 'input'"):
        read_preferences([{"instruction": "Add.", "input": "1, 2", **PAIR}])
    assert read_preferences([{"instruction": "Add.", "input": "", **PAIR}])[0].prompt == "Add."
    with pytest.raises(ConfigurationError, match=r"if 'task' holds it, rename that column to 'prompt'.*--format trans"):
        read_preferences([{"task": "Tell a story.", **PAIR}])
    forced = read_preferences([{"task": "t", **PAIR}], format="transcripts")
    assert forced[0] == Preference.pair("A ", "happy dog.", "sad cat.", columns={"task": "t"})


def test_texts_that_begin_with_the_prompt():
    dialogue = "\n\nHuman: q\n\nAssistant:"
    both = {side: dialogue + text for side, text in PAIR.items()}
    assert read_preferences([{"question": "q", **both}])[0].prompt == dialogue  # the question is in both texts
    implicit = {side: f"The sky is {text}" for side, text in PAIR.items()}
    read = read_preferences([{**implicit, "margin": "2", "id": "7"}])
    assert (read.format, read[0].prompt, read[0].margin) == ("transcripts", "The sky is A ", 2.0)


@pytest.mark.parametrize("name", ["Prompt", " prompt ", "PROMPT"])
def test_names_in_another_case_are_recognized_in_the_message(name):
    with pytest.raises(ConfigurationError, match=f"rename '{name}' to 'prompt'$"):
        read_preferences([{name: "p", **PAIR}])


# -- values that do not fit ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": 1, "chosen": 2, "rejected": 3}, r"row 0: 'prompt' is 1: it must be text"),
        ({"prompt": "p", "response": "r", "rating": "3,5"}, r"row 0: 'rating' is '3,5': it must be a finite number"),
        ({"text": "t", "stars": "many"}, r"row 0: 'stars' is 'many'"),
        ({"prompt": "p", "chosen": "a", "rejected": "b \ud800"}, r"row 0: it holds half of a surrogate pair"),
    ],
    ids=str,
)
def test_values_that_do_not_fit_known_columns_are_named(row, words):
    with pytest.raises(InvalidPreferenceError, match=words):
        read_preferences([row])


# -- cells ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mark", [",", "\t"])
def test_an_empty_cell_of_a_text_column_is_a_missing_value(mark, tmp_path):
    path = tmp_path / ("x.csv" if mark == "," else "x.tsv")
    rows = [["prompt", "chosen", "rejected", "topic"], ["p", "a", "b", ""], ["p", "", "b", "t"], ["", "a", "b", "t"]]
    path.write_text("\n".join(map(mark.join, rows)))
    with pytest.raises(InvalidPreferenceError, match="line 3: 'chosen' is missing"):
        read_preferences(path)
    read = read_preferences(path, skip_bad=True)
    assert list(read) == [Preference.pair("p", "a", "b", columns={"topic": ""})]
    assert len(read.problems) == 2
    # In JSON an empty text is what it says.
    assert read_preferences([{"prompt": "", "chosen": "a", "rejected": ""}])[0] == Preference.pair("", "a", "")


def test_what_a_csv_file_cannot_say_is_not_written(tmp_path):
    path = tmp_path / "x.csv"
    with pytest.raises(InvalidPreferenceError, match="record 0 cannot be written as 'pairs'"):
        write_preferences([Preference.pair("p", "a", "")], path, format="pairs")
    looks_like_a_chat = json.dumps(CHAT)
    with pytest.raises(InvalidPreferenceError, match="read back as something else"):
        write_preferences([Preference.pair(looks_like_a_chat, "a", "b")], path, format="pairs")
    assert not path.exists()


@pytest.mark.parametrize("format", ["conversations", "pairs", "rankings"])
def test_chats_read_back_from_a_csv_file(format, tmp_path):
    records = [Preference.pair((*CHAT, {"role": "system", "content": text}), "a", "b") for text in ('say "x"', "é,\n")]
    path = write_preferences(records, tmp_path / "x.csv", format=format)
    read = read_preferences(path)
    assert read.format == format and list(read) == records


cells = st.text(st.sampled_from('ab \t\n\r",;[{}]é😀') | st.characters(codec="utf-8"), max_size=12)


@settings(deadline=None, max_examples=60)
@given(texts=st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=4))
@example(texts=[("a\r", "\rb", "\n")])
def test_texts_of_any_kind_read_back_from_a_csv_file(texts, tmp_path_factory):
    records = [Preference(p, (a, b, b), (0, None, 0), columns={"n": 3, "of": [a]}) for p, a, b in texts]
    path = write_preferences(records, tmp_path_factory.mktemp("x") / "x.csv")
    assert list(read_preferences(path)) == records
    pairs = [Preference.pair(p + ".", a + ".", b + ".", columns={"n": "3"}) for p, a, b in texts]
    write_preferences(pairs, path, format="pairs")
    assert list(read_preferences(path)) == pairs


def test_a_tsv_file_of_another_program_is_not_read_with_its_quotation_marks(tmp_path):
    import pandas

    said = ['She said, "Hi"', "plain", '"all quoted"', "tab\there"]
    path = tmp_path / "x.tsv"
    pandas.DataFrame({"text": said, "rating": 1.0}).to_csv(path, sep="\t", index=False)
    problems: list[InvalidPromptError] = []
    rows = [row["text"] for _, row in table_rows(path, problems.append)]
    assert rows == ["plain"]
    assert [str(problem).split(" has ")[0] for problem in problems] == [
        "x.tsv, line 2",
        "x.tsv, line 4",
        "x.tsv, line 5",
    ]
    with pytest.raises(InvalidPreferenceError, match=r"line 2 has a cell in quotation marks.*save it as \.csv"):
        read_preferences(path)
    pandas.DataFrame({"text": said, "rating": 1.0}).to_csv(path, sep="\t", index=False, quoting=csv.QUOTE_ALL)
    with pytest.raises(ConfigurationError, match="names of its columns in quotation marks"):
        read_preferences(path)


@settings(deadline=None, max_examples=40)
@given(texts=st.lists(st.text(st.sampled_from('ab" ,'), min_size=1, max_size=6), min_size=1, max_size=4))
def test_a_raw_tsv_file_is_read_as_it_is_or_refused(texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("x") / "x.tsv"
    path.write_text("".join(f"{text}\n" for text in ["text\tn", *(f"{t}\t1" for t in texts)]))
    skipped: list[InvalidPromptError] = []
    found = [row["text"] for _, row in table_rows(path, skipped.append)]
    assert found == [text for text in texts if not is_of_a_writer(text)]
    assert len(found) + len(skipped) == len(texts)


def is_of_a_writer(cell: str) -> bool:
    """Whether a program that doubles quotation marks has made the cell of a text with some in it."""
    inner = cell[1:-1].replace('""', "\0")
    return len(cell) > 3 and cell[0] == cell[-1] == '"' and '"' not in inner and "\0" in inner


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.csv", b"prompt;chosen;rejected\na;b;c\n", r"separated by semicolons.*\.csv file are by commas"),
        ("x.csv", b"\xef\xbb\xbfprompt;chosen;rejected\r\na;b;c\r\n", "separated by semicolons"),
        ("x.tsv", b"prompt,chosen,rejected\na,b,c\n", "separated by commas"),
        (
            "x.csv",
            b'prompt,chosen,rejected\na,b,c\na,"b,c\nd,e,f\n',
            r"x\.csv cannot be read from line 3 on.*quotation",
        ),
        (
            "x.csv",
            b"prompt,chosen,rejected\na,b,c\na,caf\xe9,c\n",
            r"x\.csv, line 3 cannot be read.*save the file as UTF-8",
        ),
    ],
    ids=str,
)
def test_a_table_that_cannot_be_read_says_where_and_why(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=words):
        read_preferences(tmp_path / name)


# -- writing -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_full_disk_leaves_what_was_there(suffix, tmp_path):
    path = write_preferences([Preference.pair("p", "a", "b")], tmp_path / f"x.{suffix}")
    before = path.read_bytes()
    large = [Preference.pair(f"p{i}", f"{i * 7919 % 1000:04}" * 50, "b") for i in range(400)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 1000, limits[1]))
    try:
        with pytest.raises(CheckpointWriteError, match="cannot write"):
            write_preferences(large, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_half_a_surrogate_pair_is_refused_and_the_file_stays(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "a", "chosen": "x", "rejected": "y"}\n{"prompt": "a", "chosen": "\\ud800"}\n')
    before = path.read_bytes()
    code, error = convert(path, path, "--replace")
    assert code == 1 and "x.jsonl, line 2: it holds half of a surrogate pair" in error
    assert path.read_bytes() == before
    for record in (Preference.pair("p", "a", "\ud800"), Preference.pair("p", "a", "b", columns={"x": ["\udfff"]})):
        with pytest.raises(InvalidPreferenceError, match=r"record 1 cannot be written.*half of a surrogate"):
            write_preferences([Preference.pair("p", "a", "b"), record], path)
    assert path.read_bytes() == before


def test_convert_replaces_only_what_it_is_asked_to(tmp_path):
    source, out = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    source.write_text(json.dumps({"prompt": "p", **PAIR}))
    out.write_text("precious")
    code, error = convert(source, out)
    assert code == 1 and "is there already" in error and "--replace" in error and out.read_text() == "precious"
    assert convert(source, out, "--replace")[0] == 0
    assert list(read_preferences(out)) == list(read_preferences(source))
    assert convert(source, out)[0] == 0  # the same again
    assert convert(source, source, "--to", "best-of")[0] == 1 and json.loads(source.read_text())["prompt"] == "p"
    link = tmp_path / "link.jsonl"
    link.symlink_to(out)
    assert convert(source, link, "--replace", "--to", "pairs")[0] == 0
    assert link.is_symlink() and json.loads(out.read_text()) == {"prompt": "p", **PAIR}
