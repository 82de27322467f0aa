"""A reward function from what a user writes on the command line."""

from __future__ import annotations

import importlib.util
from importlib.resources import files
from pathlib import Path
from typing import Any

from lm_env.errors import ConfigurationError

__all__ = ["default_prompts", "make_judge"]


def make_judge(spec: str, *, device: str, download: bool) -> Any:
    """`lexicon`, `package.module:function`, `file.py:function`, or a classifier's folder or hub id.

    Raises:
        ConfigurationError, ModelLoadError: it cannot be had.
    """
    import reward_models
    from lm_env.options import resolve_reward

    if spec == "lexicon":
        return reward_models.LexiconSentiment()
    module, _, name = spec.rpartition(":")
    if module.endswith(".py"):
        return _from_file(Path(module), name)
    if module and name.isidentifier():
        return resolve_reward(spec)
    return reward_models.SequenceClassifierReward(spec, device=device, download=download)


def default_prompts(given: str | None) -> str:
    """The prompts asked for, or the openings of held-out film reviews that the package ships."""
    return given or str(files("lm_env") / "assets" / "review_openings.txt")


def _from_file(path: Path, name: str) -> Any:
    if not path.is_file():
        raise ConfigurationError(f"--reward {path}:{name}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigurationError(
            f"--reward {path}:{name}: {path} has no function {name}(prompts, responses, **columns)"
        )
    return function() if isinstance(function, type) else function
