"""TextAgent: whatever writes texts for a task, trained or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium

from agents.base.description import agent_in_words
from agents.base.wrappers import check_wrappers
from agents.learning.randomness import Randomness
from agents.run.evaluation import Evaluation, evaluate_texts
from lm_env.data.episodes import Episodes
from lm_env.data.prompts import Prompt
from lm_env.envs.env import TextGenerationEnv
from lm_env.envs.vector_env import TextGenerationVectorEnv
from lm_env.errors import ConfigurationError
from lm_env.generation.backend import GenerationBackend, Sampling
from lm_env.objective.task import Task
from lm_env.theory.ceilings.tilting import Ceiling
from lm_env.validation import check_integer

__all__ = ["TextAgent", "task_of"]


class TextAgent:
    """An environment, a backend that writes texts with its model, and the streams of randomness.

    Args:
        env: a text environment, single or vectorized, or a registered id.  Wrappers around it that change rewards,
            actions, observations or ends are refused: nothing would call them.
        seed: the seed of prompts and sampling.
    """

    backend: GenerationBackend

    def __init__(self, env: Any, seed: int) -> None:
        self.env = gymnasium.make(env) if isinstance(env, str) else env
        self.task = task_of(self.env)
        self.randomness = Randomness(seed)

    def __repr__(self) -> str:
        return agent_in_words(self)

    def generate(
        self, prompts: Sequence[Any] | None = None, n: int | None = None, deterministic: bool = False
    ) -> list[str]:
        """Responses as text.

        Args:
            prompts: anything that `lm_env.load_prompts` takes; None: prompts of the task's own are drawn.
            n: texts per prompt, default 1, those of one prompt side by side; without prompts how many of the task's own
                are drawn, default 4, for one text each.
            deterministic: take the likeliest token each time.
        """
        episodes = self.generate_episodes(prompts, n, deterministic)
        return [self.task.text_of(response) for response in episodes.responses()]

    def generate_episodes(
        self, prompts: Sequence[Any] | None = None, n: int | None = None, deterministic: bool = False
    ) -> Episodes:
        """Like `generate`, as `Episodes` with logprobs, ready for `env.score`."""
        sampling = Sampling(self.randomness.sampling, deterministic)
        return self.backend.generate(self.choose_prompts(prompts, n), sampling).episodes

    def evaluate(
        self, prompts: Any = None, n: int | None = None, *, seed: int = 0, ceiling: Ceiling | None = None
    ) -> Evaluation:
        """Measure what the agent writes: score, exact KL, J, perplexity, length, with standard errors, and the texts.

        The same seed draws with the same uniform numbers whatever the weights, and no stream of the agent's
        randomness moves; so evaluations of one run can be compared, and do not change it.

        Args:
            prompts: anything that `lm_env.load_prompts` takes, best such as are not trained on; None: the first ones
                of the task's own.
            n: texts per prompt; None: as many as make at least 256 in all.
            ceiling: the optimum on the same prompts (`lm_env.theory.task_ceiling`), to say what share is attained.

        Raises:
            ConfigurationError, InvalidPromptError, RewardError: see `evaluate_texts`.
        """
        return evaluate_texts(self.task, self.backend, prompts, n, seed=seed, ceiling=ceiling)

    def choose_prompts(self, prompts: Sequence[Any] | None, n: int | None) -> Sequence[Prompt]:
        """The prompts of the texts to be written; see `generate` for the arguments."""
        task = self.task
        if prompts is None:
            return task.prompts.sample(self.randomness.prompts, 4 if n is None else n)
        given = isinstance(prompts, list | tuple) and prompts and isinstance(prompts[0], Prompt)
        chosen: Sequence[Prompt] = prompts if given else task.load_prompts(prompts)
        return chosen if n is None else [prompt for prompt in chosen for _ in range(check_integer("n", n))]


def task_of(env: Any) -> Task:
    """The task of a text environment, also of one in wrappers that change nothing.

    Raises:
        ConfigurationError: it is no text environment, or a wrapper around it changes it, see `check_wrappers`.
    """
    inner = getattr(env, "unwrapped", env)
    if not isinstance(inner, TextGenerationEnv | TextGenerationVectorEnv):
        raise ConfigurationError(
            f"a batched agent needs a text environment of lm_env, not {type(inner).__name__}: use stable-baselines3 for"
            " others"
        )
    check_wrappers(env, inner.task.max_new_tokens)
    return inner.task
