"""Formats of preferences: what each reads, that what is written reads back, and what broken rows say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import SHARED_DATA

from lm_env.errors import CheckpointWriteError, ConfigurationError, InvalidPreferenceError
from reward_models.preferences import FORMATS, LabelledSpan, Preference, read_preferences, write_preferences
from reward_models.preferences.formats import vote_score

CHAT = [{"role": "user", "content": "hi"}]
ANSWERS = ["a1", "a2", "a3", "a4"]
ARENA = dict.fromkeys(["winner_model_a", "winner_model_b", "winner_tie"], 0)


def one(row: dict, format: str | None = None) -> Preference:
    """The single record of a row, its format recognized."""
    read = read_preferences([row], format=format)
    assert len(read) == 1
    return read[0]


# -- each format, as its authors publish it --------------------------------------------------------
PUBLISHED = {
    "pairs": (
        {"prompt": "p", "chosen": "good", "rejected": "bad", "margin": 2, "source": "s"},
        Preference("p", ("good", "bad"), (0, 1), margin=2.0, columns={"source": "s"}),
    ),
    "conversations": (
        {
            "prompt": "hi",
            "chosen": [*CHAT, {"role": "assistant", "content": "good"}],
            "rejected": [*CHAT, {"role": "assistant", "content": "bad"}],
        },
        Preference(tuple(CHAT), ("good", "bad"), (0, 1)),
    ),
    "transcripts": (
        {
            "chosen": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: good",
            "rejected": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: bad",
        },
        Preference("\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant:", (" good", " bad"), (0, 1)),
    ),
    "stack-exchange-pairs": (
        {"qid": 1, "question": "q", "response_j": "good", "response_k": "bad"},
        Preference("q", ("good", "bad"), (0, 1), columns={"qid": 1}),
    ),
    "stack-exchange": (
        {"question": "q", "answers": [{"text": "a", "votes": 7}, {"text": "b", "votes": 6, "accepted": True}]},
        Preference("q", ("a", "b"), ratings=(3.0, 4.0)),
    ),
    "verdicts": (
        {"prompt": "p", "response_a": "a", "response_b": "b", "winner": "b", "margin": 2, "topic": "t"},
        Preference("p", ("a", "b"), (1, 0), margin=2.0, columns={"topic": "t"}),
    ),
    "summaries": (
        {
            "info": {"id": "x", "post": "p", "title": "t"},
            "summaries": [{"text": "s0", "policy": "sup"}, {"text": "s1", "policy": "ref"}],
            "choice": 1,
            "worker": "w",
            "extra": {"confidence": 8},
        },
        Preference(
            "p",
            ("s0", "s1"),
            (1, 0),
            annotator="w",
            confidence=8.0,
            columns={"info": {"id": "x", "title": "t"}, "summaries": [{"policy": "sup"}, {"policy": "ref"}]},
        ),
    ),
    "best-of": (
        {"query": "q", "sample0": "a", "sample1": "b", "sample2": "c", "sample3": "d", "best": 2},
        Preference("q", ("a", "b", "c", "d"), (None, None, 0, None)),
    ),
    "rankings": (
        {
            "prompt": "p",
            "answers": [{"answer": "a", "rank": 2}, {"answer": "b", "rank": 1}, {"answer": "c", "rank": 2}],
        },
        Preference("p", ("a", "b", "c"), (1, 0, 1)),
    ),
    "ratings": (
        {"prompt": "p", "response": "r", "rating": "4", "annotator": "ann"},
        Preference("p", ("r",), ratings=(4.0,), annotator="ann"),
    ),
    "scored-texts": ({"text": "t", "mean_rating": -1.5}, Preference("", ("t",), ratings=(-1.5,))),
    "qa-feedback": (
        {
            "question": "q",
            "predictions": ANSWERS,
            "preference": [1, 1, 1, 0, 2, 2],
            "errors_of_prediction_1": [{"error type": "Irrelevant", "start": 0, "end": 2}],
        },
        Preference("q", tuple(ANSWERS), (0, 2, 2, 1), spans=(LabelledSpan(0, 0, 2, "Irrelevant"),)),
    ),
    "label-studio": (
        {
            "id": 1,
            "data": {"prompt": "p", "text1": "a", "text2": "b"},
            "annotations": [
                {"completed_by": 7, "result": [{"type": "pairwise", "value": {"selected": "right"}}]},
                {"was_cancelled": True, "result": []},
            ],
        },
        Preference("p", ("a", "b"), (1, 0), annotator="7"),
    ),
    "argilla": (
        {
            "id": "x",
            "status": "completed",
            "fields": {"instruction": "p", "response_a": "a", "response_b": "b"},
            "metadata": {"m": 1},
            "responses": {"preference": [{"value": "response_b", "user_id": "u", "status": "submitted"}]},
        },
        Preference("p", ("a", "b"), (1, 0), annotator="u", columns={"m": 1}),
    ),
    "potato": (
        {
            "instance_id": "1",
            "user_id": "u",
            "prompt": "p",
            "responses": ["a", "b"],
            "label_annotations": {"preference": {"selection": "B"}},
        },
        Preference("p", ("a", "b"), (1, 0), annotator="u"),
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_published_row_is_recognized_and_read(name):
    row, expected = PUBLISHED[name]
    read = read_preferences([row])
    assert read.format == name
    assert read.records == (expected,)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {
                "prompt": "p",
                "response1": "a",
                "response2": "b",
                "x.responses": [["response2", "response1"]],
                "x.responses.users": ["u"],
                "x.responses.status": ["submitted"],
            },
            Preference("p", ("a", "b"), (1, 0), annotator="u"),
        ),
        (
            {
                "fields": {"prompt": "p", "response1": "a", "response2": "b", "response3": "c"},
                "responses": [
                    {
                        "user_id": "u",
                        "status": "submitted",
                        "values": {
                            "x": {
                                "value": [
                                    {"value": "response1", "rank": 2},
                                    {"value": "response2", "rank": 1},
                                    {"value": "response3", "rank": 2},
                                ]
                            }
                        },
                    },
                    {"user_id": "v", "status": "discarded", "values": {}},
                ],
            },
            Preference("p", ("a", "b", "c"), (1, 0, 1), annotator="u"),
        ),
        (
            {"id": "1", "user": "u", "response_a": "a", "response_b": "b", "scale.scale_value": "-2"},
            Preference("", ("a", "b"), (0, 1), margin=2.0, annotator="u"),
        ),
        (
            {
                "data": {"prompt": "p", "items": [{"id": "x", "body": "a"}, {"id": "y", "body": "b"}]},
                "annotations": [{"result": [{"type": "ranker", "value": {"ranker": {"rank": ["y", "x"]}}}]}],
            },
            Preference("p", ("a", "b"), (1, 0)),
        ),
        (
            {
                "prompt": "p",
                "completions": [{"response": "a", "overall_score": 3}, {"response": "b", "overall_score": 5}],
            },
            Preference("p", ("a", "b"), ratings=(3.0, 5.0)),
        ),
        (
            {
                "prompt": CHAT,
                "chosen": [{"role": "assistant", "content": "x"}],
                "rejected": [{"role": "assistant", "content": "y"}],
            },
            Preference(tuple(CHAT), ("x", "y"), (0, 1)),
        ),
        (
            {"question": "p", "response_0": "a", "response_1": "b", "better_response_id": 1},
            Preference("p", ("a", "b"), (1, 0)),
        ),
        (
            {"prompt": "p", "response_a": "a", "response_b": "b", **ARENA, "winner_model_a": "1"},
            Preference("p", ("a", "b"), (0, 1)),
        ),
        (
            {"prompt": CHAT, "response_a": "a", "response_b": "b", **ARENA, "winner_tie": 1},
            Preference(tuple(CHAT), ("a", "b"), (0, 0)),
        ),
        (
            {"info": {"article": "p"}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 0},
            Preference("p", ("a", "b"), (0, 1), columns={"part": "article"}),
        ),
    ],
    ids=[
        "argilla flat",
        "argilla 1.x",
        "potato scale",
        "ranker",
        "ultrafeedback",
        "trl explicit",
        "ids",
        "arena",
        "tie",
        "article",
    ],
)
def test_the_other_shapes_of_a_format(row, expected):
    assert one(row) == expected


def test_turns_in_json_are_one_text_or_refused():
    """Chatbot Arena's table holds lists of turns; a text that only looks like one is a text."""
    votes = {"winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0}
    row = {"prompt": '["Is \\"it\\" right?"]', "response_a": '["Yes, \\ndear"]', "response_b": '["No"]', **votes}
    read = one(row)
    assert (read.prompt, read.responses, read.ranking) == ('Is "it" right?', ("Yes, \ndear", "No"), (1, 0))
    with pytest.raises(InvalidPreferenceError, match="'response_b' holds 2 turns in JSON"):
        one({**row, "response_b": '["No", "Yes"]'})
    assert one({**row, "response_b": '["No'}).responses[1] == '["No'


def test_choices_that_fit_no_ranking_become_six_pairs():
    row = {"question": "q", "predictions": ANSWERS, "preference": [1, 2, 1, 1, 0, 0]}  # 1 > 2 > 3 > 1
    read = read_preferences([row])
    assert [(r.responses, r.ranking) for r in read] == [
        (("a1", "a2"), (0, 1)),
        (("a1", "a3"), (1, 0)),
        (("a1", "a4"), (0, 1)),
        (("a2", "a3"), (0, 1)),
        (("a2", "a4"), (0, 0)),
        (("a3", "a4"), (0, 0)),
    ]


def test_votes_as_the_paper_counts_them():
    assert [vote_score(v) for v in (-3, 0, 1, 3, 6, 7, 100)] == [-1, 0, 1, 2, 3, 3, 7]
    assert vote_score(0, accepted=True) == 1 and vote_score(-1, accepted=True) == -1


def test_token_ids_are_decoded_by_a_tokenizer():
    class Letters:
        def decode(self, ids, skip_special_tokens):
            return "".join("abc"[i] for i in ids)

    row = {"query": [0, 1], "sample0": [2], "sample1": [1], "best": 0}
    with pytest.raises(InvalidPreferenceError, match="pass the tokenizer"):
        read_preferences([row])
    assert read_preferences([row], tokenizer=Letters())[0] == Preference("ab", ("c", "b"), (0, None))


# -- round trips -----------------------------------------------------------------------------------
texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=20)
numbers = st.floats(-1e6, 1e6).map(lambda x: round(x, 3))
extras = {
    "annotator": st.none() | texts,
    "confidence": st.none() | numbers,
    "margin": st.none() | st.floats(0, 9).map(lambda x: round(x, 3)),
    "columns": st.dictionaries(st.sampled_from(["facts", "topic"]), texts),
}


@st.composite
def any_record(draw) -> Preference:
    count = draw(st.integers(1, 5))
    responses = tuple(draw(st.lists(texts, min_size=count, max_size=count)))
    prompt = draw(
        texts
        | st.just("")
        | st.lists(texts, min_size=1, max_size=3).map(lambda said: tuple({"role": "user", "content": t} for t in said))
    )
    ranks = st.lists(st.none() | st.integers(0, 4), min_size=count, max_size=count).map(tuple)
    ranking = draw(ranks.filter(lambda r: any(x is not None for x in r)))
    spans = tuple(
        LabelledSpan(i, 0, len(responses[i]), "kind", 0.5) for i in draw(st.sets(st.integers(0, count - 1), max_size=2))
    )
    ratings = draw(st.none() | st.lists(numbers, min_size=count, max_size=count).map(tuple))
    return Preference(prompt, responses, ranking, ratings, spans=spans, **{k: draw(v) for k, v in extras.items()})


@settings(deadline=None, max_examples=15)
@given(records=st.lists(any_record(), min_size=1, max_size=4))
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_rankings_hold_everything(records, suffix, tmp_path_factory):
    if suffix == "parquet":  # a column of a table is of one type
        records = [r for r in records if isinstance(r.prompt, str)] or [Preference.pair("p", "a", "b")]
    path = write_preferences(records, tmp_path_factory.mktemp("x") / f"x.{suffix}")
    assert list(read_preferences(path, format="rankings")) == records


PAIR_FIELDS = {"pairs": extras, "stack-exchange-pairs": extras, "conversations": extras, "transcripts": extras}
POOR = {k: extras[k] for k in ("annotator", "columns")}  # what exports of tools have room for


@settings(deadline=None, max_examples=10)
@given(data=st.data())
@pytest.mark.parametrize(
    "name",
    ["pairs", "conversations", "transcripts", "stack-exchange-pairs", "summaries", "label-studio", "argilla", "potato"],
)
def test_pairs_read_back_as_they_were_written(name, data, tmp_path_factory):
    fields = data.draw(st.fixed_dictionaries(PAIR_FIELDS.get(name, POOR)))
    prompt: object = data.draw(texts)
    a, b = data.draw(texts), data.draw(texts)
    if name == "conversations":
        prompt = ({"role": "user", "content": prompt},)
    if name == "transcripts":
        prompt, a, b = f"\n\nHuman: {prompt}\n\nAssistant:", "x" + a, "y" + b
    record = Preference.pair(prompt, a, b, **fields)
    path = write_preferences([record], tmp_path_factory.mktemp("x") / "x.jsonl", format=name)
    read = read_preferences(path)
    assert read.format == name and read.records == (record,)


@settings(deadline=None, max_examples=10)
@given(data=st.data())
@pytest.mark.parametrize("name", ["stack-exchange", "ratings", "scored-texts", "best-of", "qa-feedback"])
def test_the_other_formats_read_back_as_they_were_written(name, data, tmp_path_factory):
    fields = data.draw(st.fixed_dictionaries(extras))
    prompt = data.draw(texts)
    count = {"ratings": 1, "scored-texts": 1, "qa-feedback": 4}.get(name) or data.draw(st.integers(2, 4))
    responses = tuple(data.draw(st.lists(texts, min_size=count, max_size=count)))
    ratings = tuple(data.draw(st.lists(numbers, min_size=count, max_size=count)))
    if name == "best-of":
        record = Preference.best_of(prompt, responses, data.draw(st.integers(0, count - 1)), **fields)
    elif name == "qa-feedback":
        ranks = data.draw(st.lists(st.integers(0, 3), min_size=4, max_size=4).map(tuple))
        record = Preference(prompt, responses, ranks, **fields)
    else:
        record = Preference("" if name == "scored-texts" else prompt, responses, ratings=ratings, **fields)
    path = write_preferences([record], tmp_path_factory.mktemp("x") / "x.jsonl", format=name)
    read = read_preferences(path)
    assert read.format == name and read.records == (record,)


@settings(deadline=None, max_examples=25)
@given(data=st.data())
@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_verdicts_read_back_as_they_were_written(suffix, data, tmp_path_factory):
    fields = data.draw(st.fixed_dictionaries(extras))
    prompt = data.draw(texts | texts.map(lambda said: ({"role": "user", "content": said},)))
    ranking = data.draw(st.sampled_from([(0, 1), (1, 0), (0, 0)]))
    record = Preference(prompt, (data.draw(texts), data.draw(texts)), ranking, **fields)
    path = write_preferences([record], tmp_path_factory.mktemp("x") / f"x.{suffix}", format="verdicts")
    read = read_preferences(path)
    assert read.format == "verdicts" and read.records == (record,)


@pytest.mark.parametrize("column", ["winner", "label", "preference", "choice"])
@pytest.mark.parametrize(
    ("said", "ranking"),
    [
        *[(word, (0, 1)) for word in ("a", "A", " a ", "model_a", "response_a", "Assistant A", "left", "first")],
        *[(word, (1, 0)) for word in ("b", "B", "model_b", "Response B", "right")],
        *[(word, (0, 0)) for word in ("tie", "Tie", "tie (bothbad)", "both_bad", "bothbad", "both good", "equal")],
    ],
)
def test_verdicts_in_the_words_that_people_use(column, said, ranking):
    row = {"prompt": "p", "response_a": "x", "response_b": "y", column: said}
    assert one(row) == Preference("p", ("x", "y"), ranking)
    numbered = {"prompt": "p", "response_1": "x", "response_2": "y", column: said}
    if not said.lower().startswith("response"):
        assert one(numbered) == Preference("p", ("x", "y"), ranking)


def test_a_number_is_a_verdict_only_where_the_responses_have_numbers():
    for first, number, ranking in ((1, 1, (0, 1)), (1, "2", (1, 0)), (0, 1.0, (1, 0)), (0, "response_0", (0, 1))):
        row = {"prompt": "p", f"response_{first}": "x", f"response_{first + 1}": "y", "winner": number}
        assert one(row) == Preference("p", ("x", "y"), ranking)
    lettered = {"prompt": "p", "response_a": "x", "response_b": "y"}
    for said in (0, 1, "1", 2, True, "model_1", "c", "better", ""):
        with pytest.raises(InvalidPreferenceError, match=r"'winner' is .*: it must say which .* 'a', 'b', 'tie'"):
            one({**lettered, "winner": said})
    with pytest.raises(InvalidPreferenceError, match="does not say which response is better: give a column 'winner'"):
        read_preferences([lettered], format="verdicts")
    with pytest.raises(InvalidPreferenceError, match="one must be 1 and the others 0"):
        one({**lettered, **ARENA})
    with pytest.raises(InvalidPreferenceError, match="'prompt' is missing"):
        one({**lettered, "prompt": None, "winner": "a", "task": "Tell a story."})


def test_six_inconsistent_pairs_read_back(tmp_path):
    read = read_preferences([{"question": "q", "predictions": ANSWERS, "preference": [1, 2, 1, 1, 0, 0]}])
    path = write_preferences(read, tmp_path / "x.jsonl", format="qa-feedback")
    assert json.loads(path.read_text())["preference"] == [1, 2, 1, 1, 0, 0]
    assert read_preferences(path).records == read.records


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_tables_of_text(suffix, tmp_path):
    path = tmp_path / f"x.{suffix}"
    mark = "," if suffix == "csv" else "\t"
    quoted = '"he said ""no"", twice"' if suffix == "csv" else '"he said'
    path.write_text(f"prompt{mark}response{mark}rating\np{mark}{quoted}{mark}4\n", encoding="utf-8-sig")
    expected = 'he said "no", twice' if suffix == "csv" else '"he said'
    assert list(read_preferences(path)) == [Preference("p", (expected,), ratings=(4.0,))]


def test_csv_and_datasets(tmp_path):
    import datasets

    records = [Preference.pair("p", "a, b", 'c "d"\ne', margin=1.5), Preference.pair("q", "a", "b", margin=0.5)]
    path = write_preferences(records, tmp_path / "x.csv", format="pairs")
    assert list(read_preferences(path)) == records
    rows = datasets.Dataset.from_list([{"prompt": r.prompt, "chosen": "a", "rejected": "b"} for r in records])
    assert [r.prompt for r in read_preferences(rows)] == ["p", "q"]
    assert read_preferences(records).records == tuple(records)


# -- what is wrong ---------------------------------------------------------------------------------
def test_a_broken_row_is_named_and_can_be_skipped(tmp_path):
    path = tmp_path / "x.jsonl"
    good = json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"})
    bad = '{"prompt": "p", "chosen": 3, "rejected": "b"}'
    path.write_text("\n".join([good, good, bad, good]))
    with pytest.raises(InvalidPreferenceError, match=r"x\.jsonl, line 3: 'chosen' is 3.*--skip-bad"):
        read_preferences(path)
    path.write_text("\n".join([good, good, bad, "{broken", good]))
    with pytest.raises(InvalidPreferenceError, match=r"x\.jsonl, line 4: invalid JSON.*--skip-bad"):
        read_preferences(path)
    read = read_preferences(path, skip_bad=True)
    assert len(read) == 3 and read.rows == 5
    assert sorted(problem.split(":")[0] for problem in read.problems) == ["x.jsonl, line 3", "x.jsonl, line 4"]


def test_a_row_of_a_table_with_a_cell_too_many(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("text,rating\na,1\nb,2,3\nc,4\n")
    with pytest.raises(InvalidPreferenceError, match=r"x\.csv, line 3 has 3 cells"):
        read_preferences(path)
    assert [r.responses[0] for r in read_preferences(path, skip_bad=True)] == ["a", "c"]


BROKEN = {
    "pairs": {"prompt": "p", "chosen": "a", "rejected": None},
    "conversations": {"chosen": [*CHAT, *CHAT], "rejected": [*CHAT, {"role": "assistant", "content": "x"}]},
    "transcripts": {"chosen": "same", "rejected": "same"},
    "stack-exchange": {"question": "q", "answers": [{"text": "a", "votes": "many"}]},
    "summaries": {"info": {"post": "p"}, "summaries": [{"text": "a"}], "choice": 0},
    "best-of": {"query": "q", "sample0": "a", "sample1": "b", "best": 7},
    "rankings": {"prompt": "p", "responses": ["a", "b"], "ranking": [0]},
    "ratings": {"prompt": "p", "response": "r", "rating": "nan"},
    "qa-feedback": {"question": "q", "predictions": ANSWERS, "preference": [1, 2, 3, 0, 0, 0]},
    "label-studio": {"data": {"prompt": "p", "text1": "a", "text2": "b"}, "annotations": [{"result": []}]},
    "argilla": {
        "fields": {"prompt": "p", "response1": "a", "response2": "b"},
        "responses": {"x": [{"value": "response9z", "status": "submitted"}]},
    },
    "potato": {"id": "1", "responses": ["a", "b"], "label_annotations": {"x": {"selection": "Q"}}},
    "verdicts": {"prompt": "p", "response_a": "a", "response_b": "b", "label": 1},
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_row_of_each_format_is_refused(name):
    with pytest.raises(InvalidPreferenceError, match="row 0: "):
        read_preferences([BROKEN[name]], format=name)


COLUMNS = [
    "prompt",
    "chosen",
    "rejected",
    "responses",
    "ranking",
    "ratings",
    "spans",
    "data",
    "annotations",
    "fields",
    "text",
    "rating",
    "question",
    "answers",
    "predictions",
    "preference",
    "info",
    "summaries",
    "choice",
    "query",
    "sample0",
    "sample1",
    "best",
    "id",
    "label_annotations",
]
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.sampled_from(COLUMNS), anything, min_size=1), st.sampled_from(list(FORMATS)))
def test_no_row_raises_anything_else(row, name):
    try:
        for record in read_preferences([row], format=name):
            assert isinstance(record, Preference)
    except InvalidPreferenceError:
        pass


def test_what_a_format_cannot_hold_is_not_written(tmp_path):
    tie = Preference("p", ("a", "b"), (0, 0))
    for name in ("pairs", "transcripts", "best-of", "ratings"):
        with pytest.raises(InvalidPreferenceError, match="record 0 cannot be written"):
            write_preferences([tie], tmp_path / "x.jsonl", format=name)
    assert not (tmp_path / "x.jsonl").exists()
    # Nothing is lost in silence: the third response would be read back with the prompt cut elsewhere.
    with pytest.raises(InvalidPreferenceError, match="read back as something else"):
        write_preferences([Preference.pair("no marker", "ab", "ac")], tmp_path / "x.jsonl", format="transcripts")
    with pytest.raises(ConfigurationError, match="does not end in"):
        write_preferences([tie], tmp_path / "x.txt")
    with pytest.raises(CheckpointWriteError, match="cannot write"):
        write_preferences([tie], tmp_path / "nowhere" / "x.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.jsonl", "", r"empty\.jsonl holds no rows: give at least one"),
        ("header.csv", "prompt,chosen,rejected\n", r"header\.csv holds no rows below the line that names its columns"),
    ],
)
def test_a_file_without_rows_is_named(name, content, words, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(InvalidPreferenceError, match=words):
        read_preferences(tmp_path / name)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ([{"a": 1}], "no format of preferences has the columns 'a'"),
        (["text"], "the first row is a str"),
        ([], "the list given holds no rows: give at least one"),
        ("nowhere", "'nowhere' is neither a file here nor a hub id 'user/name': check the path$"),
        (Path(__file__), r"test_formats\.py is no file of preferences: these end in \.jsonl"),
        ("nobody/nothing", "pass download=True"),
    ],
    ids=str,
)
def test_what_holds_no_preferences_is_refused(source, words):
    with pytest.raises((ConfigurationError, InvalidPreferenceError), match=words):
        read_preferences(source)
    with pytest.raises(ConfigurationError, match="format must be one of"):
        read_preferences([], format="xml")
    with pytest.raises(ConfigurationError, match="not 'pair': did you mean 'pairs'"):
        read_preferences([], format="pair")


@pytest.mark.parametrize(
    "arguments",
    [
        ("p", ()),
        ("p", ("a", "b")),
        ("p", ("a", "b"), (0,)),
        ("p", ("a", "b"), (None, None)),
        ("p", ("a", "b"), (0.5, 1)),
        ("p", ("a",), (), (float("nan"),)),
        ("p", ["a", "b"], (0, 1)),
        (None, ("a", "b"), (0, 1)),
        ((), ("a", "b"), (0, 1)),
    ],
    ids=str,
)
def test_a_record_that_makes_no_sense(arguments):
    with pytest.raises(InvalidPreferenceError):
        Preference(*arguments)
    with pytest.raises(InvalidPreferenceError, match="lies outside"):
        Preference("p", ("abc",), spans=(LabelledSpan(0, 1, 4, "x"),))


def test_outcomes_by_hand():
    record = Preference("p", ("a", "b", "c", "d"), (3, None, 3, 7))
    assert record.ranking == (0, None, 0, 1)
    assert [tuple(o) for o in record.outcomes()] == [
        (0, 1, False),
        (0, 2, True),
        (0, 3, False),
        (2, 1, False),
        (3, 1, False),
        (2, 3, False),
    ]
    assert record.best is None and Preference.best_of("p", ("a", "b"), 1).best == 1


# -- real files ------------------------------------------------------------------------------------
@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the shared data are not here")
def test_the_real_files_are_recognized_and_read_whole():
    hh = read_preferences(SHARED_DATA / "hh_rlhf_200.jsonl")
    rows = [json.loads(line) for line in (SHARED_DATA / "hh_rlhf_200.jsonl").read_text().splitlines()]
    assert hh.format == "transcripts" and len(hh) == 200
    for record, row in zip(hh, rows, strict=True):
        assert record.prompt.endswith("\n\nAssistant:")
        assert [record.prompt + r for r in record.responses] == [row["chosen"], row["rejected"]]
    qa = read_preferences(SHARED_DATA / "qa_feedback_300.jsonl")
    assert qa.format == "qa-feedback" and sum(len(r.outcomes()) for r in qa) == 6 * 300
    vader = read_preferences(SHARED_DATA / "vader_human_ratings.tsv", limit=500)
    assert vader.format == "scored-texts" and len(vader) == 500 and not vader.problems
