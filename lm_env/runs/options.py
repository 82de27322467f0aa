"""One option of a run: its name, its type, its default and its meaning, and how its value is read.

The same descriptions make the flags of `lm-env train`, read a configuration file and fill docs/options.md.
A value may come as text, from a flag or because YAML takes `1e-4` for a string.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Union

from lm_env.errors import ConfigurationError
from lm_env.explain import field_docs

__all__ = ["Option", "check_names", "fields_as_options", "nearest"]

TRUE = ("true", "yes", "on", "1")
FALSE = ("false", "no", "off", "0")
NONE = ("none", "null", "")


@dataclass(frozen=True)
class Option:
    """What can be set by a flag, by a line of a file, or by a keyword.

    Attributes:
        name: as in a file and in Python; the flag has dashes for underscores.
        kind: int, float, bool, str, a `Literal` of strings, a tuple of one of these with `...`, or one of these
            `| None`.
        default: what holds where nothing is given.
        text: one or two sentences.
        unset: what the default is in words, where None stands for something else.
    """

    name: str
    kind: Any
    default: Any
    text: str
    unset: str = ""

    @property
    def flag(self) -> str:
        """`--learning-rate`."""
        return "--" + self.name.replace("_", "-")

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of a `Literal`; () for other kinds."""
        kind = _without_none(self.kind)
        return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()

    @property
    def is_switch(self) -> bool:
        """Whether its flag takes no value: `--bf16`, `--no-bf16`."""
        return _without_none(self.kind) is bool

    @property
    def takes_several(self) -> bool:
        """Whether its flag may be given several times, and its line in a file may hold a list."""
        return typing.get_origin(_without_none(self.kind)) is tuple

    @property
    def shown_kind(self) -> str:
        """The type as a user reads it: `number`, `integer or none`, `linear | constant`."""
        kind = _without_none(self.kind)
        if self.takes_several:
            shown = f"{_WORDS[typing.get_args(kind)[0]]}s"
        else:
            shown = " | ".join(self.choices) or _WORDS[kind]
        return f"{shown} or none" if self.takes_none and self.default is not None else shown

    @property
    def takes_none(self) -> bool:
        """Whether None is a value."""
        return type(None) in typing.get_args(self.kind)

    @property
    def shown_default(self) -> str:
        """The default as a user writes it."""
        if self.default is None:
            return self.unset or "none"
        if isinstance(self.default, bool):
            return "on" if self.default else "off"
        return ", ".join(map(str, self.default)) if isinstance(self.default, tuple) else str(self.default)

    def parse(self, value: Any) -> Any:
        """The value in the option's own type.

        Raises:
            ConfigurationError: it is no such value; the message names the option.
        """
        if self.takes_none and (value is None or (isinstance(value, str) and value.lower() in NONE)):
            return None
        kind = _without_none(self.kind)
        if self.takes_several:
            values = value if isinstance(value, list | tuple) else [value]
            return tuple(self._one(typing.get_args(kind)[0], part) for part in values)
        return self._one(kind, value)

    def _one(self, kind: Any, value: Any) -> Any:
        if typing.get_origin(kind) is Literal:
            if value not in self.choices:
                raise ConfigurationError(
                    f"{self.name} must be one of {', '.join(self.choices)}, not {value!r}{nearest(value, self.choices)}"
                )
            return value
        try:
            return _READERS[kind](value)
        except (TypeError, ValueError, OverflowError) as error:
            words = _WORDS[kind]
            article = "an" if words[0] in "aeiou" else "a"
            raise ConfigurationError(f"{self.name} must be {article} {words}, not {value!r}") from error


def fields_as_options(config: type, **unset: str) -> dict[str, Option]:
    """The fields of a dataclass whose values can be written down, explained by the strings under them.

    Args:
        unset: the default in words, for fields in which None stands for it.
    """
    docs = field_docs(config)
    hints = typing.get_type_hints(config)
    return {
        field.name: Option(field.name, hints[field.name], field.default, docs[field.name], unset.get(field.name, ""))
        for field in dataclasses.fields(config)
        if is_plain(hints[field.name])
    }


def is_plain(kind: Any) -> bool:
    """Whether values of this type can be written in a file and behind a flag."""
    kind = _without_none(kind)
    if typing.get_origin(kind) is tuple:
        kind = typing.get_args(kind)[0]
    return kind in _READERS or typing.get_origin(kind) is Literal


def check_names(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise ConfigurationError for a name that is not known; the message suggests the nearest one."""
    names = list(known)
    for name in given:
        if name not in names:
            raise ConfigurationError(f"{where} has no option {name!r}{nearest(name, names) or ': see its --help'}")


def nearest(name: Any, names: Iterable[str]) -> str:
    """`: did you mean ...?`, or nothing."""
    close = difflib.get_close_matches(str(name), [str(n) for n in names], n=1, cutoff=0.6)
    return f": did you mean {close[0]!r}?" if close else ""


def _without_none(kind: Any) -> Any:
    if typing.get_origin(kind) in (Union, types.UnionType):
        parts = [part for part in typing.get_args(kind) if part is not type(None)]
        return parts[0] if len(parts) == 1 else kind
    return kind


def _integer(value: Any) -> int:
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            value = float(value)  # 2e5
    if isinstance(value, bool) or value != int(value):
        raise ValueError
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    return float(value)


def _switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or value.lower() not in (*TRUE, *FALSE):
        raise ValueError
    return value.lower() in TRUE


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


_READERS: dict[Any, Any] = {int: _integer, float: _number, bool: _switch, str: _text}
_WORDS: dict[Any, str] = {int: "integer", float: "number", bool: "switch (true or false)", str: "text"}
