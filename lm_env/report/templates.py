"""The templates of HTML pages that lie in the package, with the text of models escaped."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from lm_env.report.texts import visible

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["page_templates"]


@cache
def page_templates(*paths: str) -> Environment:
    """Templates by the last part of their paths, compiled once in a process.

    Strings that are put into them are escaped, and their control characters are made visible.

    Args:
        paths: below lm_env/assets, such as "report/page.html".
    """
    from jinja2 import DictLoader, Environment, StrictUndefined

    assets = files("lm_env") / "assets"
    return Environment(
        loader=DictLoader({path.rpartition("/")[2]: (assets / path).read_text(encoding="utf-8") for path in paths}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
