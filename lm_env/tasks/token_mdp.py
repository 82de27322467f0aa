"""lm_env/TokenMDP-v0: an enumerable token MDP whose optimum is known in closed form.

Without arguments it is T0: four tokens, at most three of them, 40 texts.  `mdp_seed` draws another
one at random; a `TokenMDP` of one's own goes to `make` directly.
"""

from __future__ import annotations

from typing import Any

from lm_env.envs.env import TextGenerationEnv
from lm_env.envs.vector_env import TextGenerationVectorEnv
from lm_env.errors import ConfigurationError
from lm_env.theory.token_env import token_task_options
from lm_env.theory.token_mdp import TokenMDP

__all__ = ["defaults", "make", "make_vec"]


def defaults(
    mdp: TokenMDP | None = None,
    mdp_seed: int | None = None,
    vocab_size: int = 6,
    horizon: int = 3,
    dense: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """The options of the task.

    Args:
        mdp: the MDP itself; else, with a seed, `TokenMDP.random(mdp_seed, vocab_size, horizon, dense=dense)`;
            else T0.
        dense: pay each token of the random MDP its own score, at once.
        options: any of `lm_env.Task`'s, such as another `model` over the same tokens.
    """
    if dense and mdp_seed is None:
        raise ConfigurationError("dense=True is for a random MDP: give its mdp_seed, or a dense TokenMDP as mdp")
    if mdp is None and mdp_seed is not None:
        mdp = TokenMDP.random(mdp_seed, vocab_size=vocab_size, horizon=horizon, dense=dense)
    mdp = TokenMDP.t0() if mdp is None else mdp
    return token_task_options(mdp, **options)


def make(**options: Any) -> TextGenerationEnv:
    """One slot; what `gymnasium.make` calls."""
    flat = options.pop("flat", False)
    render_mode = options.pop("render_mode", None)
    return TextGenerationEnv(flat=flat, render_mode=render_mode, **defaults(**options))


def make_vec(num_envs: int = 1, **options: Any) -> TextGenerationVectorEnv:
    """n slots; what `gymnasium.make_vec` calls."""
    vector = {k: options.pop(k) for k in ("flat", "render_mode", "autoreset_mode") if k in options}
    return TextGenerationVectorEnv(num_envs, **vector, **defaults(**options))
