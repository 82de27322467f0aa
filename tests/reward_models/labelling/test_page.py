"""The page in a real browser: by keyboard, by mouse, with hostile texts, on a phone, in the dark."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from itertools import count

import pytest
from labelling_server import page_of

from reward_models.labelling import Item, LabelStore, records_of
from reward_models.labelling.page import PageSettings

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("there is no Chromium", allow_module_level=True)

PAIRS = [Item(f"prompt {i}", (f"good {i}", f"bad {i}")) for i in range(8)]
KINDS = PageSettings(span_types=("irrelevant", "not factual"))
MOMENT_MS = 170  # the page takes no key in the first moments of a question
NUMBERS = count()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, tmp_path):
    """visit(items, settings, ...) -> (page at its first question, store)."""
    closing = []

    def visit(items=PAIRS, settings=None, *, pairs=False, per_item=1, name="ana", **context):
        store = LabelStore(tmp_path / f"labels-{next(NUMBERS)}.sqlite", pairs=pairs, per_item=per_item)
        store.add(items)
        serving = page_of(store, settings)
        address = serving.__enter__()
        closing.append(lambda: (serving.__exit__(None, None, None), store.close()))
        page = open_page(address, name, **context)
        return page, store

    def open_page(address, name, **context):
        opened = browser.new_context(**context)
        opened.set_default_timeout(10_000)
        closing.append(opened.close)
        page = opened.new_page()
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
        page.address = address
        page.goto(address + (f"&annotator={name}" if name else ""))
        if name:
            ready(page)
        return page

    visit.open = open_page
    yield visit
    for close in reversed(closing):
        close()


def ready(page):
    page.wait_for_selector("body[data-state=ready]")
    page.wait_for_timeout(MOMENT_MS)


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)
    ready(page)


def texts(page) -> list[str]:
    return page.locator(".response .text").all_inner_texts()


def toward(page, wanted: str) -> str:
    """The arrow toward the response that begins with this."""
    return "ArrowLeft" if texts(page)[0].startswith(wanted) else "ArrowRight"


def test_by_keyboard(visit):
    page, store = visit()
    assert page.evaluate("location.hash") == ""  # the token does not stay in the history
    for _ in range(3):
        press(page, toward(page, "good"))
    press(page, "1" if texts(page)[0].startswith("good") else "2")
    for key in "tbs":
        press(page, key)
    assert "7 of 8" in page.inner_text("#standing")
    press(page, "u")
    assert "6 of 8" in page.inner_text("#standing")
    press(page, "t")
    answers = store.answers()
    assert Counter(a.choice for a in answers) == {"ranked": 4, "tie": 2, "bad": 1}
    assert all(r.responses[r.best].startswith("good") for r in records_of(answers, store.items())[:4])
    assert all(0.1 < a.seconds < 60 for a in answers)
    press(page, "b")
    assert page.locator("#finished").is_visible() and "lm-env label export" in page.inner_text("#export")
    press(page, "u")
    assert page.locator("#ask").is_visible() and len(store.answers()) == 7
    assert page.problems == []


def test_by_mouse(visit):
    page, store = visit(PAIRS[:3])
    page.get_by_role("button", name="2 is better" if texts(page)[1].startswith("good") else "1 is better").click()
    ready(page)
    page.get_by_role("button", name="Both bad").click()
    ready(page)
    page.get_by_role("button", name="Undo").click()
    ready(page)
    page.get_by_role("button", name="Tie").click()
    ready(page)
    assert [a.choice for a in store.answers()] == ["ranked", "tie"]
    (record, _) = records_of(store.answers(), store.items())
    assert record.responses[record.best].startswith("good")


def test_a_key_that_is_held_down_counts_once(visit):
    page, store = visit()
    page.keyboard.down("t")
    ready(page)
    for _ in range(5):
        page.keyboard.down("t")  # what a held key repeats
        page.wait_for_timeout(40)
    page.keyboard.up("t")
    page.keyboard.press("Control+b")
    page.keyboard.press("Alt+ArrowRight")
    ready(page)
    assert [a.choice for a in store.answers()] == ["tie"]


def test_a_ranking_of_many(visit):
    items = [Item(f"p{i}", tuple(f"{letter}{i}" for letter in "abcd")) for i in range(2)]
    page, store = visit(items)
    place = {text[0]: str(i + 1) for i, text in enumerate(texts(page))}
    page.keyboard.press(place["c"])
    page.keyboard.press(place["d"])
    page.keyboard.press("Backspace")
    page.keyboard.press(place["a"])
    page.keyboard.press("=")
    page.keyboard.press(place["b"])
    assert page.locator(".response.ranked").count() == 3
    press(page, "Enter")
    for letter in "dcba":
        place = [text[0] for text in texts(page)].index(letter)
        page.locator(".response .rank").nth(place).click()
    page.get_by_role("button", name="Save ranking").click()
    ready(page)
    said = [
        dict(zip((r[0] for r in x.responses), x.ranking, strict=True))
        for x in records_of(store.answers(), store.items())
    ]
    assert said == [{"a": 1, "b": 1, "c": 0, "d": None}, {"a": 3, "b": 2, "c": 1, "d": 0}]
    assert page.problems == []


HOSTILE = (
    "<script>document.title = 'taken'; window.taken = true</script><img src=x onerror='window.taken = true'>"
    "</div><b>bold</b> &lt; &amp;"
)


def test_texts_are_text(visit):
    item = Item(HOSTILE, (HOSTILE + "1", "safe \u202egnp.exe\u202c \u2066x\u2069 \x07 end"), {"facts": HOSTILE})
    page, _ = visit([item, *PAIRS[:1]], PageSettings(instruction=HOSTILE, show=("facts",), span_types=("<i>x</i>",)))
    while HOSTILE not in page.inner_text("#prompt"):
        press(page, "s")
        press(page, "u") if page.locator("#finished").is_visible() else None
    assert page.inner_text("#prompt") == HOSTILE and page.inner_text("#instruction") == HOSTILE
    assert page.inner_text("#columns dd") == HOSTILE
    assert HOSTILE + "1" in texts(page)
    assert r"safe \u202egnp.exe\u202c \u2066x\u2069 \u0007 end" in texts(page)
    page.keyboard.press("m")
    assert page.inner_text("#kinds button").startswith("<i>x</i>")
    page.keyboard.press("1")
    page.keyboard.press("o")
    page.wait_for_timeout(300)
    assert page.evaluate("window.taken") is None and "labels" in page.title()
    assert page.locator("script").count() == 1 and page.locator("img, b, i").count() == 0
    assert page.problems == []


CENTER = """(word) => {
    const walker = document.createTreeWalker(document.getElementById("responses"), NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const start = walker.currentNode.data.indexOf(word);
        if (start < 0) continue;
        const range = document.createRange();
        range.setStart(walker.currentNode, start);
        range.setEnd(walker.currentNode, start + word.length);
        const box = range.getBoundingClientRect();
        return [box.x + box.width / 2, box.y + box.height / 2];
    }
}"""


def test_spans_are_marked_by_mouse_and_counted_in_code_points(visit):
    page, store = visit([Item("p", ("\U0001f600\U0001f600 one wrong\u202e word here", "other text"))], KINDS)
    page.mouse.dblclick(*page.evaluate(CENTER, "wrong"))
    page.locator("#kinds").get_by_role("button", name="not factual").click()
    page.mouse.dblclick(*page.evaluate(CENTER, "other"))
    page.locator("#kinds").get_by_role("button", name="irrelevant").click()
    page.mouse.move(*page.evaluate(CENTER, "word"))
    page.mouse.down()
    page.mouse.move(*page.evaluate(CENTER, "other"))  # a selection that leaves its response ends there
    page.mouse.up()
    page.keyboard.press("Escape")
    page.locator("mark", has_text="other").click()
    ready(page)
    page.reload()  # what is marked is kept
    ready(page)
    assert page.locator("mark").all_inner_texts() == ["wrong"]
    press(page, "t")
    (span,) = records_of(store.answers(), store.items())[0].spans
    text = store.items()[1].responses[span.response]
    assert (text[span.start : span.end], span.kind) == ("wrong", "not factual")
    assert page.problems == []


def test_spans_are_marked_by_keyboard_and_removed(visit):
    page, store = visit([Item("p", ("a \U0001f600 bc\u202ed e f", "one two three four"))], KINDS)
    place = texts(page).index("one two three four")
    page.keyboard.press("m")
    if place == 1:
        page.keyboard.press("ArrowDown")
    for key in ("ArrowRight", "Shift+ArrowRight", "1"):  # two three
        page.keyboard.press(key)
    page.keyboard.press("m")
    for key in (
        "ArrowUp",
        "ArrowRight",
        "ArrowRight",
        "2",
    ):  # in the other response: the word with the hidden character
        page.keyboard.press(key)
    page.keyboard.press("m")
    page.keyboard.press("1")
    assert page.locator("mark.last").count() == 3
    page.locator(".response .text").nth(0).locator("mark").first.focus()
    page.keyboard.press("Delete")
    assert page.locator("mark.last").count() == 2
    page.keyboard.press("m")
    page.keyboard.press("Escape")
    press(page, "ArrowLeft")
    item = store.items()[1]
    (answer,) = store.answers()
    marked = {item.responses[s.response][s.start : s.end]: s.kind for s in answer.spans}
    assert set(marked.items()) <= {
        ("two three", "irrelevant"),
        ("bc\u202ed", "not factual"),
        ("a", "irrelevant"),
        ("one", "irrelevant"),
    }
    assert len(marked) == 2 and page.problems == []


def test_the_page_waits_for_the_server_and_loses_nothing(visit, tmp_path):
    store = LabelStore(tmp_path / "labels.sqlite")
    store.add(PAIRS)
    with page_of(store) as address:
        page = visit.open(address, "ana")
        press(page, "t")
    port = int(address.partition("/#")[0].rpartition(":")[2])
    page.keyboard.press("b")
    page.wait_for_selector("#notice:not([hidden])")
    assert "Not saved yet" in page.inner_text("#notice")
    page.keyboard.press("s")  # not taken while an answer is on its way
    with page_of(store, port=port):
        ready(page)
        assert page.locator("#notice").is_hidden()
        assert [a.choice for a in store.answers()] == ["tie", "bad"]
        page.goto("about:blank")
    store.close()


def test_an_answer_in_another_tab_is_not_given_twice(visit):
    page, store = visit()
    other = page.context.new_page()
    other.goto(page.address + "&annotator=ana")
    ready(other)
    assert texts(other) == texts(page)
    press(page, "t")
    press(other, "b")
    assert "not taken" in other.inner_text("#notice") and texts(other) == texts(page)
    assert [a.choice for a in store.answers()] == ["tie"]


def test_two_annotators_see_different_questions_and_sign_in(visit):
    page, store = visit(settings=PageSettings(annotators=("ana", "Jos\u00e9")))
    other = visit.open(page.address, None)
    other.get_by_label("Name").fill("eve")
    other.keyboard.press("Enter")
    other.wait_for_selector("#notice:not([hidden])")
    assert "not among the annotators" in other.inner_text("#notice")
    other.get_by_label("Name").fill(" Jose\u0301 ")
    other.get_by_role("button", name="Begin").click()
    ready(other)
    assert texts(other) != texts(page)
    press(other, "t")
    press(page, "t")
    other.reload()  # the name is kept
    ready(other)
    assert {a.annotator for a in store.answers()} == {"ana", "Jos\u00e9"}


def test_without_its_token_the_page_shows_nothing(visit):
    page, _ = visit()
    plain = page.address.partition("#")[0]
    for address in (plain, f"{plain}#token=wrong"):
        other = visit.open(address, None)
        other.wait_for_selector("#closed:not([hidden])")
        assert "prompt" not in other.inner_text("body")


CONTRAST = """() => {
    const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
    const over = (under, [r, g, b, a = 1]) => [r, g, b].map((v, i) => v * a + under[i] * (1 - a));
    const behind = (element) => {
        const layers = [];
        for (let e = element; e; e = e.parentElement) layers.unshift(parse(getComputedStyle(e).backgroundColor));
        return layers.reduce(over, [255, 255, 255]);
    };
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        const seen = walker.currentNode.data.trim() && element.checkVisibility();
        if (!seen || element.closest(":disabled, .sr, noscript")) continue;
        const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) found.push([walker.currentNode.data, ratio]);
    }
    return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("phone", [False, True], ids=["desk", "phone"])
def test_it_can_be_read_light_and_dark_wide_and_narrow(visit, scheme, phone):
    words = "A long answer with averyverylongwordwithoutanybreak" + "x" * 80 + " and more. " * 60
    items = [Item(({"role": "user", "content": words},), (words + "1", words + "2"), {"facts": words})]
    context = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True} if phone else {}
    page, _ = visit(items, PageSettings(span_types=("rude",), show=("facts",)), color_scheme=scheme, **context)
    page.keyboard.press("m")
    page.keyboard.press("1")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(CONTRAST) == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    boxes = [button.bounding_box() for button in page.locator("#choices button").all()]
    assert min(box["height"] for box in boxes) >= 44  # what a finger hits
    height = page.evaluate("innerHeight")
    assert all(box["y"] + box["height"] <= height for box in boxes)  # in view, however long the texts are
    first, second = page.locator(".response").nth(0).bounding_box(), page.locator(".response").nth(1).bounding_box()
    assert (first["x"] == second["x"]) == phone  # one above the other on a phone, else side by side
    page.keyboard.press("o")
    page.wait_for_timeout(200)
    assert page.evaluate(CONTRAST) == [] and page.problems == []


def test_motion_is_left_out_where_it_is_not_wanted(visit):
    moving = "getComputedStyle(document.querySelector('.responses')).animationName"
    page, _ = visit(reduced_motion="reduce")
    assert page.evaluate(moving) == "none"
    page, _ = visit(reduced_motion="no-preference")
    assert page.evaluate(moving) == "appear"


def test_every_control_has_a_name_and_can_be_reached_by_keyboard(visit):
    page, _ = visit(settings=KINDS)
    names = set()
    for _ in range(20):
        page.keyboard.press("Tab")
        names.add(page.evaluate("document.activeElement.innerText || document.activeElement.ariaLabel"))
    reached = " ".join(name for name in names if name)
    for name in ("Overview", "Keys", "1 is better", "Tie", "Both bad", "Skip", "2 is better"):
        assert name in reached
    page.keyboard.press("?")
    assert page.get_by_role("dialog", name="Keys").is_visible()
    press(page, "Escape")
    assert page.get_by_role("progressbar").get_attribute("aria-label")
    assert page.get_by_role("article", name="Response 1").is_visible()
