"""The file of labels: nothing lost, nothing twice, whatever the order of requests; items in, records out."""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_env.errors import CheckpointWriteError, ConfigurationError, InvalidPreferenceError
from reward_models.labelling import (
    Answer,
    Item,
    LabelStore,
    QuestionChooser,
    SampleSettings,
    add_samples,
    export_labels,
    merged_records,
    read_items,
    records_of,
    survey,
)
from reward_models.labelling.overview import labels_per_minute
from reward_models.preferences import LabelledSpan, read_preferences

ITEMS = [Item(f"prompt {i}", (f"good {i}", f"bad {i}")) for i in range(6)]
NUMBERS = count()


def first(candidates: list[int]) -> int:
    return candidates[0]


def opened(folder, items=ITEMS, **options) -> LabelStore:
    store = LabelStore(folder / f"labels-{next(NUMBERS)}.sqlite", **options)
    store.add(items)
    return store


def answered(store: LabelStore, annotator: str, best: str | None = None, **fields) -> Answer:
    """Present the next question and prefer the response that begins with `best`, or answer as the fields say."""
    shown = store.present(annotator, first)
    if best is not None:
        fields |= {"choice": "ranked", "ranking": tuple(int(not r.startswith(best)) for r in shown.responses)}
    answer = Answer(f"answer {next(NUMBERS)}", shown.id, **fields)
    assert store.record(annotator, answer)
    return answer


# -- answers -------------------------------------------------------------------------------------------
def test_an_answer_that_arrives_again_is_taken_once(tmp_path):
    store = opened(tmp_path)
    answer = answered(store, "ana", "good")
    assert not store.record("ana", answer)
    assert len(store.answers()) == 1
    with pytest.raises(ConfigurationError, match="belongs to another"):
        store.record("ana", Answer(answer.id, answer.presentation, "tie"))
    with pytest.raises(ConfigurationError, match="answered already"):
        store.record("ana", Answer("other", answer.presentation, "tie"))
    assert [a.choice for a in store.answers()] == ["ranked"]


def test_whatever_the_order_on_the_screen_the_ranking_is_of_the_responses(tmp_path):
    store = opened(tmp_path, [Item(f"prompt {i}", (f"good {i}", f"bad {i}")) for i in range(40)])
    seen = set()
    for _ in range(40):
        shown = store.present("ana", first)
        seen.add(shown.responses[0].split()[0])
        answered(store, "ana", "good")
    assert seen == {"good", "bad"}  # chance would show one side alone once in 2^39 files
    for record in records_of(store.answers(), store.items()):
        assert record.responses[record.best].startswith("good")


def test_the_same_question_stays_open_until_it_is_answered(tmp_path):
    store = opened(tmp_path)
    shown = store.present("ana", first)
    again = LabelStore(store.path).present("ana", first)  # as after a restart
    assert again == shown


def test_an_answer_is_waited_for_until_it_is_on_the_disk(tmp_path):
    store = opened(tmp_path)
    statements = []
    store._database._connection.set_trace_callback(statements.append)
    answered(store, "ana", "good")
    written = next(i for i, text in enumerate(statements) if text.startswith("INSERT INTO answers"))
    modes = [text for text in statements[:written] if "synchronous" in text]
    assert modes[-1] == "PRAGMA synchronous = FULL"
    assert store._database.rows("PRAGMA journal_mode") == [("wal",)]


def test_undo_keeps_the_history_and_opens_the_question_as_it_was(tmp_path):
    store = opened(tmp_path)
    one = answered(store, "ana", "good")
    shown = store.present("ana", first)
    span = LabelledSpan(0, 0, 3, "rude")
    two = Answer("two", shown.id, "bad", spans=(span,))
    store.record("ana", two)
    ahead = store.present("ana", first)
    with pytest.raises(ConfigurationError, match="only the last"):
        store.withdraw("ana", one.id)
    assert store.withdraw("ana", "two")
    assert not store.withdraw("ana", "two")
    back = store.present("ana", first)
    assert (back.responses, back.spans) == (shown.responses, (span,))
    assert store.record("ana", Answer("three", back.id, "tie"))
    assert store.present("ana", first) == ahead  # what had been open before the undo
    with sqlite3.connect(store.path) as database:
        rows = database.execute("SELECT id, withdrawn_at IS NULL FROM answers ORDER BY number").fetchall()
    assert rows == [(one.id, 1), ("two", 0), ("three", 1)]
    with pytest.raises(ConfigurationError, match="no such answer"):
        store.withdraw("ben", "three")


def test_each_question_goes_to_as_many_annotators_as_asked(tmp_path):
    store = opened(tmp_path, per_item=2)
    for name in ("ana", "ben", "cem"):
        while store.present(name, first) is not None:
            answered(store, name, "good")
    given = Counter((a.question, a.annotator) for a in store.answers())
    assert set(given.values()) == {1}
    assert set(Counter(question for question, _ in given).values()) == {2}
    assert store.progress() == (6, 6)


def test_two_annotators_at_once_are_not_given_the_same_question(tmp_path):
    store = opened(tmp_path)
    questions = [store.present(name, first).question for name in ("ana", "ben", "cem")]
    assert len(set(questions)) == 3
    assert store.open_to("dan", now=2e10) != store.open_to("dan")  # after half an hour they are free again


def test_a_skip_leaves_the_question_to_others(tmp_path):
    store = opened(tmp_path, ITEMS[:1])
    answered(store, "ana", choice="skip")
    assert store.present("ana", first) is None
    answered(store, "ben", "good")
    assert store.present("cem", first) is None
    assert [r.annotator for r in records_of(store.answers(), store.items())] == ["ben"]


@pytest.mark.parametrize(
    "fields",
    [
        {"choice": "best"},
        {"choice": "ranked"},
        {"choice": "ranked", "ranking": (0,)},
        {"choice": "ranked", "ranking": (None, None)},
        {"choice": "ranked", "ranking": (0, 0)},
        {"choice": "ranked", "ranking": (0, 2)},
        {"choice": "ranked", "ranking": (True, False)},
        {"choice": "tie", "seconds": float("nan")},
        {"choice": "tie", "spans": (LabelledSpan(2, 0, 1, "rude"),)},
        {"choice": "tie", "spans": (LabelledSpan(0, 3, 3, "rude"),)},
        {"choice": "tie", "spans": (LabelledSpan(0, 0, 1000, "rude"),)},
        {"choice": "tie", "spans": (LabelledSpan(0, 0, 1, ""),)},
        {"choice": "tie", "spans": (LabelledSpan(0, 0, 1, "rude", "heavy"),)},
    ],
)
def test_an_answer_that_does_not_fit_changes_nothing(tmp_path, fields):
    store = opened(tmp_path)
    shown = store.present("ana", first)
    with pytest.raises(InvalidPreferenceError):
        store.record("ana", Answer("one", shown.id, **fields))
    with pytest.raises(ConfigurationError, match="never shown"):
        store.record("ana", Answer("one", "nothing", "tie"))
    with pytest.raises(ConfigurationError, match="shown to 'ana'"):
        store.record("ben", Answer("one", shown.id, "tie"))
    assert store.answers() == [] and store.present("ana", first) == shown


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["ana", "ben"]), st.sampled_from(["answer", "skip", "resend", "undo", "undo again"])),
    max_size=25,
)


@settings(max_examples=25, deadline=None)
@given(OPERATIONS)
def test_any_order_of_requests_leaves_what_a_plain_list_would(tmp_path_factory, operations):
    store = opened(tmp_path_factory.mktemp("store"), ITEMS[:3])
    valid: dict[str, list[Answer]] = {"ana": [], "ben": []}
    undone: list[tuple[str, str]] = []
    for name, operation in operations:
        if operation in ("answer", "skip"):
            shown = store.present(name, first)
            if shown is None:
                continue
            choice = "tie" if operation == "answer" else "skip"
            answer = Answer(f"{len(undone)}-{sum(map(len, valid.values()))}-{next(NUMBERS)}", shown.id, choice)
            assert store.record(name, answer)
            valid[name].append(answer)
        elif operation == "resend" and valid[name]:
            assert not store.record(name, valid[name][-1])
        elif operation == "undo" and valid[name]:
            answer = valid[name].pop()
            assert store.withdraw(name, answer.id)
            undone.append((name, answer.id))
        elif operation == "undo again" and undone:
            assert not store.withdraw(*undone[-1])
    kept = {"ana": [], "ben": []}
    for answer in store.answers():
        kept[answer.annotator].append(answer.id)
    assert kept == {name: [a.id for a in answers] for name, answers in valid.items()}
    pairs = [(a.question, a.annotator) for a in store.answers()]
    assert len(set(pairs)) == len(pairs)
    store.close()


@pytest.mark.parametrize("content", [b"not a database at all, but some text that is long enough" * 20, None])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    path = tmp_path / "other.sqlite"
    if content is None:
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE mine (x)")
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="choose another name"):
        LabelStore(path)
    assert path.read_bytes() == before
    with pytest.raises(ConfigurationError, match="no file"):
        LabelStore(tmp_path / "missing.sqlite", create=False)
    with pytest.raises(CheckpointWriteError, match="cannot open"):
        LabelStore(path / "below.sqlite")


def test_texts_that_no_encoding_holds_come_back(tmp_path):
    item = Item("\ud83d half", ("\u202egnp.exe\x00", "a\r\nb"), {"facts": "<b>", "object": object()})
    store = opened(tmp_path, [item])
    shown = store.present("ana", first)
    assert shown.prompt == item.prompt and set(shown.responses) == set(item.responses)
    assert shown.columns == {"facts": "<b>"}


# -- items in ------------------------------------------------------------------------------------------
def test_items_are_read_from_judged_and_unjudged_rows(tmp_path):
    judged = [{"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": "p", "chosen": "b", "rejected": "a"}]
    found = read_items(judged)
    assert [item.responses for item in found.items] == [("a", "b")] and found.repeated == 1
    path = tmp_path / "unjudged.jsonl"
    rows = [
        {"prompt": "p", "responses": ["a", "b", "a"], "facts": "f"},
        {"prompt": [{"role": "user", "content": "hi"}], "responses": ["a", "b", "c"]},
        {"prompt": "q", "responses": ["a", "a"]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_items(path)
    assert [item.responses for item in found.items] == [("a", "b"), ("a", "b", "c")]
    assert found.too_few == 1 and found.items[0].columns == {"facts": "f"}
    table = tmp_path / "pairs.csv"
    table.write_text("prompt,response_a,response_b\np,a,b\nq,c,d\n")
    assert [item.responses for item in read_items(table).items] == [("a", "b"), ("c", "d")]


def test_broken_unjudged_rows_are_named_or_skipped(tmp_path):
    path = tmp_path / "broken.jsonl"
    path.write_text('{"prompt": "p", "responses": ["a", "b"]}\n{"prompt": "p", "responses": [1, 2]}\nnonsense\n')
    with pytest.raises(InvalidPreferenceError, match=r"broken.jsonl, line 2.*--skip-bad"):
        read_items(path)
    found = read_items(path, skip_bad=True)
    assert len(found.items) == 1 and len(found.problems) == 2
    with pytest.raises(InvalidPreferenceError, match="two different responses"):
        read_items([{"prompt": "p", "responses": ["a", "a"]}])


def test_adding_the_same_items_again_adds_nothing(tmp_path):
    store = opened(tmp_path)
    turned = [Item(item.prompt, item.responses[::-1]) for item in ITEMS]
    assert store.add(turned) == 0
    assert store.add([Item("new", ("a", "b"))]) == 1
    assert len(store.questions()) == 7


def test_samples_of_a_model_are_drawn_once(tmp_path):
    store = LabelStore(tmp_path / "labels.sqlite")
    wanted = SampleSettings("reviews-3m", responses=3, new_tokens=4, limit=5)
    new, alike = add_samples(store, ["This film was", "The actors", "It is", "I", "We", "They"], wanted)
    assert new + alike == 5
    items = store.items()
    assert add_samples(store, ["anything"], wanted) == (0, 0)
    assert store.items() == items
    with pytest.raises(ConfigurationError, match="choose another --out"):
        add_samples(store, ["anything"], SampleSettings("reviews-3m", seed=1))


# -- records out ---------------------------------------------------------------------------------------
def test_the_records_hold_what_was_answered(tmp_path):
    items = [Item("p", ("good", "bad"), {"facts": "f"}), Item("q", ("x", "y", "z")), Item("r", ("s", "t"))]
    store = opened(tmp_path, items)
    shown = store.present("ana", first)
    place = shown.responses.index("bad")
    mark = LabelledSpan(place, 1, 3, "rude")
    store.record("ana", Answer("1", shown.id, "ranked", tuple(int(i == place) for i in range(2)), (mark,), 1.5))
    shown = store.present("ana", first)
    ranks = {"z": 0, "x": None, "y": 1}
    store.record("ana", Answer("2", shown.id, "ranked", tuple(ranks[r] for r in shown.responses)))
    answered(store, "ana", choice="bad")
    path = tmp_path / "out.jsonl"
    assert export_labels(store, path) == 3
    one, two, three = read_preferences(path)
    assert one.responses[one.best] == "good" and one.annotator == "ana"
    (span,) = one.spans
    assert (one.responses[span.response][span.start : span.end], span.kind) == ("ad", "rude")
    assert one.columns["facts"] == "f" and one.columns["label_seconds"] == 1.5
    assert dict(zip(two.responses, two.ranking, strict=True)) == ranks
    assert three.ranking == (0, 0) and three.columns["label_choice"] == "bad"
    with pytest.raises(ConfigurationError, match="no answers of 'ben'"):
        export_labels(store, path, annotator="ben")


def test_merged_records_follow_the_reliable_annotators(tmp_path):
    """Two reliable annotators outvote three who answer at random, where a majority would not."""
    items = [Item(f"p{i}", (f"good {i}", f"bad {i}")) for i in range(40)]
    store = opened(tmp_path, items, per_item=5)
    rng = np.random.default_rng(0)
    for name in ("ana", "ben", "x", "y", "z"):
        for _ in items:
            answered(store, name, "good" if name in ("ana", "ben") or rng.random() < 0.5 else "bad")
    answers = store.answers()
    merged = merged_records(answers, store.items())
    right = sum(r.responses[r.best].startswith("good") for r in merged)
    majority = Counter((r.prompt, r.responses[r.best][:4]) for r in records_of(answers, store.items()))
    assert right == 40 > sum(majority[f"p{i}", "good"] > 2 for i in range(40))
    lines = {line.name: line.accuracy for line in survey(store).annotators}
    assert min(lines["ana"][1], lines["ben"][1]) > max(lines[name][2] for name in "xyz")


def test_pairs_of_more_than_two_responses(tmp_path):
    store = opened(tmp_path, [Item("p", ("a", "b", "c"))], pairs=True)
    while store.present("ana", first) is not None:
        answered(store, "ana", choice="tie")
    assert sorted(a.responses for a in store.answers()) == [(0, 1), (0, 2), (1, 2)]
    assert all(len(r.responses) == 2 for r in records_of(store.answers(), store.items()))


# -- the next question ---------------------------------------------------------------------------------
def test_what_is_unknown_comes_before_what_is_disputed_before_what_is_agreed(tmp_path):
    store = opened(tmp_path, ITEMS[:3], per_item=9)
    for name, best in (("ana", "good"), ("ben", "good")):  # item 0: agreed
        answered(store, name, best)
    for name, best in (("ana", "good"), ("ben", "bad")):  # item 1: disputed
        answered(store, name, best)
    chooser = QuestionChooser(store)
    questions = list(store.questions())
    agreed, disputed, unknown = chooser.information("cem", questions)
    assert unknown > disputed > agreed
    assert chooser("cem", questions) == questions[2]
    assert chooser("cem", questions[:2]) == questions[1]


def test_questions_that_another_process_adds_are_chosen_too(tmp_path):
    store = opened(tmp_path)
    answered(store, "ana", "good")
    chooser = QuestionChooser(store)
    assert chooser("ben", store.open_to("ben")) in store.open_to("ben")
    other = LabelStore(store.path)
    other.add([Item("added later", ("one", "two", "three"))])
    other.close()
    new = max(store.open_to("ben"))
    assert chooser.information("ben", [new]) > 0
    assert chooser("ben", [new]) == new


def test_the_rate_leaves_pauses_out():
    assert labels_per_minute([0.0, 10.0]) is None
    assert labels_per_minute([0.0, 10.0, 20.0, 5000.0, 5010.0]) == pytest.approx(6)


def test_the_token_is_for_the_owner_alone_and_stays(tmp_path):
    from reward_models.labelling.app import kept_token

    token = kept_token(tmp_path / "labels.sqlite")
    path = tmp_path / "labels.sqlite.token"
    assert len(token) >= 40 and kept_token(tmp_path / "labels.sqlite") == token
    assert os.stat(path).st_mode & 0o777 == 0o600
    path.chmod(0o644)  # others may have read it
    assert kept_token(tmp_path / "labels.sqlite") != token
