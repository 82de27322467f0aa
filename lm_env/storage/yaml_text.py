"""YAML as this package reads and writes it: PyYAML's safe subset, with the numbers of YAML 1.2, and no key twice.

PyYAML follows YAML 1.1, to which `3e-4`, `1e5` and `1.0e5` are text, since they lack a point or a sign.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

__all__ = ["as_yaml", "parse_yaml"]

_EXPONENT = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")
"""Numbers with an exponent, by the core schema of YAML 1.2."""


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; a key that stands twice is an error, where PyYAML silently takes the last."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if isinstance(key, str) and keys.count(key) > 1:
                raise ValueError(f"the key {key!r} stands there twice")
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes text that the loader would take for a number, and escapes what it would take for a line break."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """A node for a string; PyYAML writes these characters as they are unless the string is in double quotes."""
        style = '"' if set(text) & set("\x85\u2028\u2029\ufeff") else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)

for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def parse_yaml(text: str) -> Any:
    """What a YAML text says.

    Raises:
        ValueError: it is no YAML, or a key stands in a mapping twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def as_yaml(content: Any) -> str:
    """Text that `parse_yaml` reads as this content: plain values, lists, and mappings in the order given."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)
