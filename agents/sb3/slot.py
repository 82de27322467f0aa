"""Slot: one slot of a `TextVecEnv`, as `get_attr`, `set_attr` and `env_method` of stable-baselines3 see it."""

from __future__ import annotations

from typing import Any

import numpy as np

from lm_env.envs.mdp import TextMDP
from lm_env.objective.task import Task

__all__ = ["Slot", "attribute_of", "set_attribute"]


class Slot:
    """One slot, with the attributes and methods that stable-baselines3 asks of a single environment."""

    render_mode = None

    def __init__(self, mdp: TextMDP, index: int) -> None:
        self._mdp = mdp
        self._index = index

    @property
    def task(self) -> Task:
        """The task of the environment."""
        return self._mdp.task

    @property
    def prompt(self) -> str:
        """The text of the prompt; empty before the first reset."""
        prompt = self._mdp.prompts[self._index]
        return "" if prompt is None else prompt.text

    @property
    def response(self) -> list[int]:
        """The tokens taken so far."""
        return self._mdp.response(self._index)

    def action_masks(self) -> np.ndarray:
        """bool (V,): tokens that may come next."""
        return self._mdp.action_masks(np.array([self._index]))[0]

    def render(self) -> str:
        """The text so far, each token colored by its log-ratio to the reference."""
        return self._mdp.render(self._index)


def attribute_of(slot: Slot, name: str) -> Any:
    """An attribute or a method of a slot; AttributeError, as stable-baselines3 expects it, where there is none."""
    try:
        return getattr(slot, name)
    except AttributeError as error:
        raise AttributeError(
            f"the slots of a TextVecEnv have no {name!r}: there are the attributes task, prompt, response and"
            " render_mode, and the methods action_masks and render"
        ) from error


def set_attribute(slot: Slot, name: str, value: Any) -> None:
    """Set an attribute of a slot; AttributeError where it belongs to the environment."""
    if isinstance(getattr(Slot, name, None), property):
        raise AttributeError(f"{name} of a TextVecEnv cannot be set: make another environment")
    setattr(slot, name, value)
