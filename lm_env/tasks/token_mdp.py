"""lm_env/TokenMDP-v0: an enumerable token MDP whose optimum is known in closed form.

Without options it is `TokenMDP.t0()`: texts of at most three tokens out of a vocabulary of four, 40 texts in all.
`mdp_seed=` draws a random MDP instead, and `mdp=` takes a `TokenMDP` of your own.  There is a single prompt, the start
token, in all three splits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lm_env.envs.env import TextGenerationEnv
from lm_env.envs.vector_env import TextGenerationVectorEnv
from lm_env.errors import ConfigurationError
from lm_env.tasks.base import SPLITS, TextTask
from lm_env.tasks.base.registry import make_env, make_vec_env
from lm_env.theory.ceilings import Ceiling
from lm_env.theory.ceilings.tilting import assemble
from lm_env.theory.token_env import token_task_options
from lm_env.theory.token_mdp import TokenMDP

__all__ = ["make", "make_vec", "task"]

FUNCTION = "lm_env.tasks.token_mdp:task"


def _optimum(mdp: TokenMDP, beta: float) -> Ceiling:
    """The optimum of the only prompt, by enumeration."""
    found, reference = mdp.optimum(beta), mdp.evaluate(mdp.reference_logits, beta)
    return assemble(
        beta=beta,
        samples=np.zeros(1, dtype=np.int64),
        J_ref=np.array([reference.R]),
        J=np.array([found.J]),
        J_plain=found.J,
        score=np.array([found.R]),
        ess=np.array([np.inf]),
        highest=None,
    )


def task(
    mdp: TokenMDP | None = None,
    mdp_seed: int | None = None,
    vocab_size: int = 6,
    horizon: int = 3,
    dense: bool = False,
) -> TextTask:
    """The task.

    Args:
        mdp: the MDP; None: `TokenMDP.random(mdp_seed, vocab_size, horizon, dense=dense)` if a seed is given, else
            `TokenMDP.t0()`.
        dense: pay each token of the random MDP its own score, at once.
    """
    if dense and mdp_seed is None:
        raise ConfigurationError("dense=True is for a random MDP: give its mdp_seed, or a dense TokenMDP as mdp")
    if mdp is None and mdp_seed is not None:
        mdp = TokenMDP.random(mdp_seed, vocab_size=vocab_size, horizon=horizon, dense=dense)
    known = TokenMDP.t0() if mdp is None else mdp
    own = token_task_options(known)
    return TextTask(
        id="lm_env/TokenMDP-v0",
        summary="an enumerable token MDP with a closed-form optimum",
        source=dict.fromkeys(SPLITS, own["prompts"]),
        reward=own["reward"],
        model=known.policy_model,
        beta=own["beta"],
        max_new_tokens=own["max_new_tokens"],
        budget=600_000,
        ceiling="exact: J* = beta log Z by enumeration (lm_env.TokenMDP)",
        optimum=lambda made: _optimum(known, made.kl.beta),
        options={name: own[name] for name in ("reference", "tokenizer", "missing_eos_score")},
    )


def make(**options: Any) -> TextGenerationEnv:
    """The environment that `gymnasium.make("lm_env/TokenMDP-v0", ...)` returns."""
    return make_env(FUNCTION, **options)


def make_vec(num_envs: int = 1, **options: Any) -> TextGenerationVectorEnv:
    """The environment that `gymnasium.make_vec("lm_env/TokenMDP-v0", num_envs, ...)` returns."""
    return make_vec_env(FUNCTION, num_envs, **options)
