"""Text generation as a reinforcement-learning environment.

    import gymnasium, lm_env
    env = gymnasium.make("lm_env/Sentiment-v0")

Importing this package registers its environments and nothing more; torch and transformers come in
when the first environment is made.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lm_env import errors
from lm_env.tasks import register

if TYPE_CHECKING:
    from lm_env.data.episodes import Episodes, ScoredEpisodes
    from lm_env.data.prompts import load_prompts
    from lm_env.envs.env import TextGenerationEnv
    from lm_env.envs.vector_env import TextGenerationVectorEnv
    from lm_env.models.loading import load_model, load_tokenizer
    from lm_env.objective.kl import AdaptiveKL, FixedKL
    from lm_env.objective.patience import PatientReward
    from lm_env.objective.scores import Span
    from lm_env.objective.task import Task
    from lm_env.objective.wrapping import Causal
    from lm_env.runs.train import train
    from lm_env.theory.check_agent import check_agent
    from lm_env.theory.loss import check_loss
    from lm_env.theory.token_mdp import TokenMDP

__version__ = "0.1.0"

_MODULE_OF = {
    "AdaptiveKL": "objective",
    "Causal": "objective",
    "Episodes": "data",
    "FixedKL": "objective",
    "PatientReward": "objective",
    "ScoredEpisodes": "data",
    "Span": "objective",
    "Task": "objective",
    "TextGenerationEnv": "envs",
    "TextGenerationVectorEnv": "envs",
    "TokenMDP": "theory",
    "check_agent": "theory",
    "check_loss": "theory",
    "load_model": "models",
    "load_prompts": "data",
    "load_tokenizer": "models",
    "train": "runs",
}

__all__ = [
    "AdaptiveKL",
    "Causal",
    "Episodes",
    "FixedKL",
    "PatientReward",
    "ScoredEpisodes",
    "Span",
    "Task",
    "TextGenerationEnv",
    "TextGenerationVectorEnv",
    "TokenMDP",
    "__version__",
    "check_agent",
    "check_loss",
    "errors",
    "load_model",
    "load_prompts",
    "load_tokenizer",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"lm_env.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'lm_env' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


register()
