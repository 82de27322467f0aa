"""Settings in a file: YAML or TOML in, YAML out."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lm_env.errors import ConfigurationError
from lm_env.storage import write_file
from lm_env.storage.yaml_text import as_yaml, parse_yaml

__all__ = ["ABOUT", "named_values", "plain_value", "read_about", "read_config", "write_config"]

ABOUT = "about"
"""The key under which a run notes what is no option: its command, versions, and when it began."""


REPEAT = "lm-env train --config THIS_FILE --out ANOTHER_FOLDER repeats this run."


def read_config(path: str | Path) -> dict[str, Any]:
    """The options in a file, flat: name -> value.  What a run has noted under `about` is left out.

    Raises:
        ConfigurationError: no such file, another suffix than .yaml, .yml and .toml, or no table of options.
    """
    options = _read(Path(path))
    options.pop(ABOUT, None)
    if "out" in options:
        raise ConfigurationError(
            f"{path}: a file of options cannot say where to write: leave `out` away there, and give --out FOLDER"
            " (in Python the first argument of `train`)"
        )
    for name, value in options.items():
        if not isinstance(name, str) or isinstance(value, Mapping):
            raise ConfigurationError(
                f"{path}: {name!r} holds a table, and the file of a run is flat: write each option on a line of its own"
            )
    return options


def read_about(path: str | Path) -> dict[str, Any]:
    """What a run has noted beside its options; {} where there is nothing."""
    about = _read(Path(path)).get(ABOUT)
    return about if isinstance(about, dict) else {}


def write_config(path: Path, options: Mapping[str, Any], about: Mapping[str, Any], *, remark: str = REPEAT) -> None:
    """Write options, and notes under `about`, as YAML that `read_config` reads.

    Args:
        remark: the first line, a comment.
    """
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    text = (
        f"# {remark}\n"
        + (as_yaml(plain) if plain else "")
        + "\n# What follows is a record, and is not read.\n"
        + as_yaml({ABOUT: dict(about)})
    )
    write_file(path, text)


def plain_value(text: str) -> Any:
    """A number, true, false or null as YAML reads it; every other text as it is."""
    try:
        value = parse_yaml(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) or (value is None and text) else text


def named_values(pairs: Iterable[str]) -> dict[str, Any]:
    """Options of a task's own written as NAME=VALUE, by name; numbers, true and false in their own types.

    Raises:
        ConfigurationError: one is not written so, or is given twice.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier() or name in found:
            raise ConfigurationError(f"env_option must be written NAME=VALUE, each name once, not {pair!r}")
        found[name] = plain_value(value)
    return found


def _read(path: Path) -> dict[str, Any]:
    if path.suffix not in (".yaml", ".yml", ".toml"):
        raise ConfigurationError(f"{path}: a configuration file ends in .yaml, .yml or .toml")
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else parse_yaml(text)
    except OSError as error:
        raise ConfigurationError(f"the configuration cannot be read ({error}): check the path") from error
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(f"{path} is no valid {path.suffix[1:].upper()} ({reason}): correct it") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} holds no options: write lines such as 'agent: ppo'")
    return content
