"""The strings under the fields of a config are what `help()` shows."""

from __future__ import annotations

import dataclasses
import pydoc

import pytest

import agents
from lm_env.explain import explained, field_docs

CONFIGS = [value for name, value in vars(agents).items() if name.endswith("Config")]


@dataclasses.dataclass
class Parent:
    """A parent."""

    first: int
    """One
    sentence."""
    second: float = 0.5
    """The parent's text."""
    bare: str = ""
    note = "no field"
    """Not of a field."""


@explained
@dataclasses.dataclass
class Child(Parent):
    """A child."""

    second: float = 0.25
    """The child's text."""
    third: bool = True
    """Last."""


def test_texts_are_inherited_in_the_constructors_order_and_replaced():
    docs = field_docs(Child)
    assert list(docs.items()) == [
        ("first", "One sentence."),
        ("second", "The child's text."),
        ("bare", ""),
        ("third", "Last."),
    ]
    assert field_docs(Parent)["second"] == "The parent's text."


def test_help_lists_each_option_with_type_default_and_text():
    assert Child.__doc__ == (
        "A child.\n\nOptions:\n"
        "    first (int): One sentence.\n"
        "    second (float = 0.25): The child's text.\n"
        "    bare (str = '')\n"
        "    third (bool = True): Last."
    )


def test_a_class_without_source_has_no_texts():
    made = dataclasses.make_dataclass("made", [("x", int, 3)])
    assert field_docs(made) == {"x": ""}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.__name__)
def test_help_explains_every_option_of_every_config(config):
    shown = pydoc.render_doc(config, renderer=pydoc.plaintext)
    docs = field_docs(config)
    assert docs.keys() == {field.name for field in dataclasses.fields(config)}
    for name, text in docs.items():
        assert text.endswith("."), f"{config.__name__}.{name} needs a sentence on the line below it"
        assert f"{name} (" in shown and text in shown
