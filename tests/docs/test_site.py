"""The documentation site: every page is in its navigation, questions are near, links and printed numbers are right."""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from blocks import Block, blocks_of
from paths import REPOSITORY

from lm_env.errors import MissingDependencyError

DOCS = REPOSITORY / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def settings() -> dict[str, Any]:
    """mkdocs.yml."""
    return dict(yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text()))


def pages_in(navigation: Any) -> Iterator[str]:
    """The files that a navigation names."""
    if isinstance(navigation, str):
        yield navigation
    elif isinstance(navigation, dict):
        for below in navigation.values():
            yield from pages_in(below)
    else:
        for below in navigation:
            yield from pages_in(below)


def place(page: Path) -> str:
    """A page or picture within docs/, with slashes; of another file the whole path, which no page of the site has."""
    return page.relative_to(DOCS).as_posix() if page.is_relative_to(DOCS) else str(page)


def test_every_page_is_in_the_navigation_once():
    assert sorted(pages_in(settings()["nav"])) == sorted(place(page) for page in PAGES)


def links_of(page: Path) -> list[tuple[str, str]]:
    """(place, heading or "") of the links to pages and pictures, outside of code."""
    text = re.sub(r"```.*?^```|`[^`]*`", "", page.read_text(), flags=re.S | re.M)
    found = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", text)
    return [(place((page.parent / target).resolve() if target else page), heading) for target, heading in found]


def test_every_page_is_two_clicks_from_the_front_page():
    near = {target for target, _ in links_of(DOCS / "index.md")}
    near |= {target for page in near if page.endswith(".md") for target, _ in links_of(DOCS / page)}
    assert {place(page) for page in PAGES} <= near | {"index.md"}


def headings_of(page: Path) -> set[str]:
    """The anchors of the headings, as GitHub and mkdocs both make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
    titles = (re.sub(r"[^\w\- ]", "", title.lower()) for title in re.findall(r"^#+ (.+)$", text, re.M))
    return {title.strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=place)
def test_links_lead_to_pages_of_the_site_and_their_headings(page):
    for target, heading in links_of(page):
        assert (DOCS / target).is_file() and not Path(target).is_absolute(), f"{page} links to {target}, not in docs/"
        assert not heading or heading in headings_of(DOCS / target), f"{page} links to {target}#{heading}"


@pytest.mark.parametrize("name", re.findall(r"^::: (\S+)", "".join(p.read_text() for p in PAGES), re.M))
def test_what_the_api_pages_name_exists(name):
    try:
        home = name if find_spec_or_none(name) else name.rpartition(".")[0]
        module = __import__(home, fromlist=["_"])
        assert home == name or getattr(module, name.rpartition(".")[2]).__doc__
    except MissingDependencyError:  # of a library that is not installed here; the site is made from the file as well
        home, _, last = name.rpartition(".")
        body = ast.parse((REPOSITORY / home.replace(".", "/")).with_suffix(".py").read_text()).body
        assert any(ast.get_docstring(node) for node in body if getattr(node, "name", None) == last)


def find_spec_or_none(name: str) -> Any:
    """The spec of a module; None if the name is not one of a module."""
    try:
        return find_spec(name)
    except ModuleNotFoundError:
        return None


# -- t0.md and the physics: what a block prints stands below it ---------------------------------------
def printed(page: Path) -> list[tuple[Block, str]]:
    """Each block of Python that has its output below it, and that output."""
    blocks = blocks_of(page)
    return [(a, b.text) for a, b in itertools.pairwise(blocks) if (a.language, b.language) == ("python", "text")]


WITH_OUTPUT = [DOCS / "t0.md", *(page for page in (DOCS / "physics").glob("*.md") if page.name != "index.md")]


@pytest.mark.parametrize(
    ("block", "output"),
    [pair for page in WITH_OUTPUT for pair in printed(page)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_mathematics_prints_what_the_page_says(block, output):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block.text, block.name, "exec"), {"__name__": "page"})
    assert out.getvalue() == output


@pytest.mark.parametrize("page", WITH_OUTPUT, ids=place)
def test_every_block_of_the_mathematics_has_its_output(page):
    assert len(printed(page)) == sum(block.language == "python" for block in blocks_of(page)) > 0


# -- trouble.md: the early warnings ------------------------------------------------------------------
def warnings_in_the_code() -> list[str]:
    """A pattern for each sentence that `EarlyWarning` can give."""
    tree = ast.parse((REPOSITORY / "agents" / "run" / "early_warning.py").read_text())
    values = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Subscript)
        and node.targets[0].value.id == "found"
    ]
    return [pattern_of(value) for value in values]


def pattern_of(value: ast.expr) -> str:
    parts = value.values if isinstance(value, ast.JoinedStr) else [value]
    return "".join(re.escape(part.value) if isinstance(part, ast.Constant) else r"-?[\d.]+" for part in parts)


def test_the_quoted_warnings_are_those_that_exist():
    quotes = re.findall(r"^> .+(?:\n> .+)*", (DOCS / "trouble.md").read_text(), re.M)
    quoted = [" ".join(line.removeprefix("> ") for line in quote.splitlines()) for quote in quotes]
    patterns = warnings_in_the_code()
    assert len(patterns) >= 7
    for pattern in patterns:
        assert any(re.fullmatch(pattern, quote) for quote in quoted), f"no quotation of {pattern}"
    for quote in quoted:
        assert any(re.fullmatch(pattern, quote) for pattern in patterns), f"no such warning: {quote}"
