"""The registered environments, one file each: prompts, reward and defaults of a text task.

| id | what it is |
|---|---|
| `lm_env/Sentiment-v0` | go on with the opening of a film review; the score is its sentiment |
| `lm_env/TokenMDP-v0` | an enumerable token MDP with a closed-form optimum |
"""

from __future__ import annotations

from importlib import import_module

import gymnasium

__all__ = ["modules", "register"]

_MODULES = {"lm_env/Sentiment-v0": "sentiment", "lm_env/TokenMDP-v0": "token_mdp"}


def register() -> None:
    """Register every id with Gymnasium, once."""
    for name, module in _MODULES.items():
        if name not in gymnasium.registry:
            gymnasium.register(
                id=name,
                entry_point=f"lm_env.tasks.{module}:make",
                vector_entry_point=f"lm_env.tasks.{module}:make_vec",
                # No wrapper hides `publish`, `score`, `fork` and `task`: the environment enforces the order of
                # calls itself, and Gymnasium's checker is run on it in the tests.
                order_enforce=False,
                disable_env_checker=True,
            )


def modules() -> dict[str, str]:
    """Registered id -> the first line of its module's docstring."""
    homes = {name: import_module(f"lm_env.tasks.{module}") for name, module in _MODULES.items()}
    return {name: (home.__doc__ or "").partition("\n")[0].partition(": ")[2] for name, home in homes.items()}
