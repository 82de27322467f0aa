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
PAGES = sorted(DOCS.glob("*.md"))


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


def test_every_page_is_in_the_navigation_once():
    assert sorted(pages_in(settings()["nav"])) == [page.name for page in PAGES]


def links_of(page: Path) -> list[tuple[str, str]]:
    """(page, heading or "") of the links to pages, outside of code."""
    text = re.sub(r"```.*?^```|`[^`]*`", "", page.read_text(), flags=re.S | re.M)
    found = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", text)
    return [(target or page.name, heading) for target, heading in found]


def test_every_page_is_two_clicks_from_the_front_page():
    near = {target for target, _ in links_of(DOCS / "index.md")}
    near |= {target for page in near if page.endswith(".md") for target, _ in links_of(DOCS / page)}
    assert {page.name for page in PAGES} <= near | {"index.md"}


def headings_of(page: Path) -> set[str]:
    """The anchors of the headings, as GitHub and mkdocs both make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
    titles = (re.sub(r"[^\w\- ]", "", title.lower()) for title in re.findall(r"^#+ (.+)$", text, re.M))
    return {title.strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_pages_of_the_site_and_their_headings(page):
    for target, heading in links_of(page):
        assert (DOCS / target).is_file() and "/" not in target, f"{page.name} links to {target}, outside of docs/"
        assert not heading or heading in headings_of(DOCS / target), f"{page.name} links to {target}#{heading}"


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


# -- t0.md: what a block prints stands below it ------------------------------------------------------
def printed(page: Path) -> list[tuple[Block, str]]:
    """Each block of Python that has its output below it, and that output."""
    blocks = blocks_of(page)
    return [(a, b.text) for a, b in itertools.pairwise(blocks) if (a.language, b.language) == ("python", "text")]


@pytest.mark.parametrize(("block", "output"), printed(DOCS / "t0.md"), ids=lambda value: getattr(value, "name", ""))
def test_the_mathematics_prints_what_the_page_says(block, output):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block.text, block.name, "exec"), {"__name__": "page"})
    assert out.getvalue() == output


def test_every_block_of_the_mathematics_has_its_output():
    assert len(printed(DOCS / "t0.md")) == sum(block.language == "python" for block in blocks_of(DOCS / "t0.md")) > 5


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
