"""The registered environments, one file each: prompts, reward and defaults of a text task.

| id | what it is |
|---|---|
| `lm_env/Sentiment-v0` | go on with the opening of a film review; the score is its sentiment |
| `lm_env/TokenMDP-v0` | an enumerable token MDP with a closed-form optimum |
"""

from __future__ import annotations

import gymnasium

__all__ = ["register"]

_MODULES = {"lm_env/Sentiment-v0": "sentiment", "lm_env/TokenMDP-v0": "token_mdp"}


def register() -> None:
    """Register every id with Gymnasium, once."""
    for name, module in _MODULES.items():
        if name not in gymnasium.registry:
            gymnasium.register(
                id=name,
                entry_point=f"lm_env.tasks.{module}:make",
                vector_entry_point=f"lm_env.tasks.{module}:make_vec",
            )
