"""The page over HTTP, without a browser: who is let in, what is refused, what each request answers."""

from __future__ import annotations

import json
import sys
from importlib.resources import files

import pytest

from lm_env.errors import MissingDependencyError
from reward_models.labelling import Item, LabelStore, QuestionChooser
from reward_models.labelling.app import ASSETS, LARGEST_REQUEST, make_app
from reward_models.labelling.page import LabellingSession, PageSettings

pytest.importorskip("starlette")
from starlette.testclient import TestClient

TOKEN = "token-of-the-test"
ITEMS = [Item(f"prompt {i}", (f"one {i}", f"two {i}"), {"facts": f"fact {i}", "secret": "model A"}) for i in range(3)]


@pytest.fixture
def store(tmp_path):
    store = LabelStore(tmp_path / "labels.sqlite")
    store.add(ITEMS)
    return store


@pytest.fixture
def page(store):
    settings = PageSettings(span_types=("rude", "wrong"), show=("facts",))
    return client_of(store, settings)


def client_of(store: LabelStore, settings: PageSettings, host: str = "127.0.0.1:8765") -> TestClient:
    app = make_app(LabellingSession(store, QuestionChooser(store), settings), TOKEN)
    return TestClient(app, base_url=f"http://{host}", headers={"Authorization": f"Bearer {TOKEN}"})


def call(page: TestClient, name: str, content: object, status: int = 200) -> dict:
    response = page.post(f"/api/{name}", json=content)
    assert response.status_code == status, response.text
    return response.json()


def answer_to(state: dict, **fields) -> dict:
    presentation = state["question"]["presentation"]
    return {"annotator": "ana", "id": f"of {presentation}", "presentation": presentation, "choice": "tie", **fields}


# -- who is let in -------------------------------------------------------------------------------------
@pytest.mark.parametrize("token", ["", "Bearer ", "Bearer wrong", TOKEN, f"Bearer {TOKEN}x", "Bearer \u00fc"])
def test_without_the_token_nothing_is_told(page, store, token):
    for name in ("session", "next", "answer", "undo", "marks", "overview", "nothing"):
        response = page.post(f"/api/{name}", json={"annotator": "ana"}, headers={"Authorization": token.encode()})
        assert response.status_code == 403
        assert "prompt" not in response.text
    assert store.answers() == []


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "", "localhost@evil"])
def test_another_host_name_is_refused(page, host):
    """As after DNS rebinding: the browser sends the name under which the page was loaded."""
    for response in (
        page.get("/", headers={"Host": host}),
        page.post("/api/session", json={}, headers={"Host": host}),
    ):
        assert response.status_code == 400


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost:1234", "localhost", "[::1]:8765"])
def test_names_of_this_machine_are_let_in(store, host):
    page = client_of(store, PageSettings(), host="127.0.0.1")
    assert page.post("/api/session", json={}, headers={"Host": host}).status_code == 200


def test_the_page_allows_no_content_from_elsewhere(page):
    for path in ("/", *(f"/assets/{name}" for name in ASSETS)):
        response = page.get(path)
        assert response.status_code == 200
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Cache-Control"] == "no-store"
        text = response.text.replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text.replace('"//', ""), f"{path} names an address"
    assert page.get("/assets/../page.py").status_code == 404
    assert page.get("/assets/%2e%2e%2fpage.py").status_code == 404
    assert page.get("/api/next").status_code == 405


def test_every_asset_is_served():
    folder = files("reward_models.labelling") / "assets"
    assert {entry.name for entry in folder.iterdir()} == {*ASSETS, "page.html"}


# -- what is refused -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{}", "text/plain", 415),
        (b"{}", "application/x-www-form-urlencoded", 415),
        (b"nonsense", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b'"' + b"x" * LARGEST_REQUEST + b'"', "application/json", 413),
    ],
    ids=["text", "form", "no JSON", "a list", "deep", "no UTF-8", "large"],
)
def test_what_is_no_small_json_object_is_refused(page, body, kind, status):
    response = page.post("/api/next", content=body, headers={"Content-Type": kind})
    assert response.status_code == status and response.json()["error"]


def test_a_body_without_a_length_is_limited_too(page):
    def chunks():
        for _ in range(40):
            yield b"x" * (LARGEST_REQUEST // 20)

    response = page.post("/api/next", content=chunks(), headers={"Content-Type": "application/json"})
    assert response.status_code == 413


@pytest.mark.parametrize(
    "name", [None, "", "   ", "x" * 65, "an\u202ea", "a\nb", 3, ["ana"]], ids=lambda name: repr(name)[:12]
)
def test_a_name_that_is_none_is_refused(page, name):
    assert "name" in call(page, "next", {"annotator": name}, 400)["error"]


def test_only_the_annotators_that_were_named_may_answer(store):
    page = client_of(store, PageSettings(annotators=("ana", "ben")))
    call(page, "next", {"annotator": "ana"})
    call(page, "next", {"annotator": "cem"}, 400)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"choice": "best"}, 400),
        ({"choice": None}, 400),
        ({"id": 3}, 400),
        ({"id": "x" * 101}, 400),
        ({"seconds": "long"}, 400),
        ({"seconds": -1}, 400),
        ({"seconds": True}, 400),
        ({"ranking": {"0": 1}, "choice": "ranked"}, 400),
        ({"ranking": [0, 1.5], "choice": "ranked"}, 400),
        ({"spans": "all"}, 400),
        ({"spans": [{"response": 0}]}, 400),
        ({"spans": [{"response": 0, "start": 0, "end": 10**9, "kind": "rude"}]}, 400),
        ({"spans": [{"response": 0, "start": 0, "end": 1, "kind": "rude", "more": 1}]}, 400),
        ({"presentation": "nothing"}, 409),
    ],
)
def test_an_answer_that_is_none_changes_nothing(page, store, fields, status):
    state = call(page, "next", {"annotator": "ana"})
    assert call(page, "answer", answer_to(state, **fields), status)["error"]
    assert store.answers() == []
    assert call(page, "next", {"annotator": "ana"}) == state


def test_a_full_disk_is_told_and_can_be_tried_again(page, store):
    state = call(page, "next", {"annotator": "ana"})
    connection = store._database._connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    spans = [{"response": 0, "start": 0, "end": 1, "kind": "rude" * 20}] * 400
    assert "full" in call(page, "answer", answer_to(state, spans=spans), 503)["error"]
    assert store.answers() == []
    connection.execute("PRAGMA max_page_count = 1000000")
    call(page, "answer", answer_to(state, spans=spans))
    assert len(store.answers()) == 1


# -- what is answered ----------------------------------------------------------------------------------
def test_a_whole_labelling(page, store):
    session = call(page, "session", {})
    assert session["span_types"] == ["rude", "wrong"] and session["store"] == store.id
    state = call(page, "next", {"annotator": "ana"})
    assert state["question"]["columns"].keys() == {"facts"}  # what is not to be shown does not leave the server
    assert "model A" not in json.dumps(state) and state["last"] is None
    span = {"response": 1, "start": 0, "end": 3, "kind": "rude", "weight": 1}
    call(page, "marks", {"annotator": "ana", "presentation": state["question"]["presentation"], "spans": [span]})
    assert call(page, "next", {"annotator": "ana"})["question"]["spans"] == [span]
    answer = answer_to(state, choice="ranked", ranking=[1, 0], spans=[span], seconds=2)
    after = call(page, "answer", answer)
    assert after["last"] == answer["id"] and after["progress"]["yours"] == 1 and after["progress"]["left"] == 2
    assert call(page, "answer", answer) == after  # it was sent again
    stored = store.answers()[0]
    chosen = ITEMS[stored.item - 1].responses[stored.responses[stored.ranking.index(0)]]
    assert chosen == state["question"]["responses"][1]
    undone = call(page, "undo", {"annotator": "ana", "answer": answer["id"]})
    assert undone["question"] == state["question"] | {"spans": [span]} and undone["progress"]["yours"] == 0
    assert call(page, "undo", {"annotator": "ana", "answer": answer["id"]}) == undone
    state = undone
    for i in range(3):
        state = call(page, "answer", answer_to(state, id=str(i), choice="bad"))
    assert state["question"] is None and state["progress"]["done"] == 3
    found = call(page, "overview", {})
    assert found["annotators"][0]["choices"] == {"bad": 3} and found["done"] == 3


def test_half_a_surrogate_pair_reaches_the_page(tmp_path):
    store = LabelStore(tmp_path / "labels.sqlite")
    store.add([Item("\ud83d", ("\ude00 a", "b"))])
    state = call(client_of(store, PageSettings()), "next", {"annotator": "ana"})
    assert state["question"]["prompt"] == "\ud83d"


def test_settings_that_cannot_work_are_refused():
    for kinds in (("a", "a"), tuple("abcdefghij"), ("",), ("x\u202e",)):
        with pytest.raises(ValueError, match=r"span types|name"):
            PageSettings(span_types=kinds)


def test_without_starlette_the_extra_is_named(store, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "starlette"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette", None)
    with pytest.raises(MissingDependencyError, match=r"lm-env\[label\]"):
        make_app(LabellingSession(store, QuestionChooser(store), PageSettings()), TOKEN)
