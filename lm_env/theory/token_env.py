"""A text environment over an enumerable token MDP, so that agents can be trained where the optimum is known."""

from __future__ import annotations

from typing import Any

from lm_env.envs.env import TextGenerationEnv
from lm_env.theory.token_mdp import TokenMDP

__all__ = ["make_token_env", "token_task_options"]


def token_task_options(mdp: TokenMDP, **options: Any) -> dict[str, Any]:
    """The options of `lm_env.Task` for a token MDP: a table as the model, the MDP's reference and score.

    Args:
        options: any of `lm_env.Task`'s, which take precedence, such as another `model` over the same tokens.
    """
    return {
        "model": mdp.policy_model(),
        "reference": mdp.reference_model(),
        "tokenizer": mdp.tokenizer,
        "prompts": [[mdp.start_token]],
        "reward": mdp.reward,
        "beta": 0.5,
        "max_new_tokens": mdp.horizon,
        "missing_eos_score": mdp.missing_eos_score,
        **options,
    }


def make_token_env(mdp: TokenMDP, **options: Any) -> TextGenerationEnv:
    """One slot over the MDP; `options` as in `token_task_options`."""
    return TextGenerationEnv(**token_task_options(mdp, **options))
