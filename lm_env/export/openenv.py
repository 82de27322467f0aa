"""A task as an OpenEnv environment, in this process or behind HTTP and WebSockets: one prompt, one response, one score.

    # server.py
    from lm_env.export import openenv_app

    app = openenv_app("lm_env/Arithmetic-v0")  # uvicorn server:app

A client needs OpenEnv alone, and not this package: `openenv.core.GenericEnvClient(base_url)`.  The policy and the KL
penalty are the client's.
"""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np

from lm_env.data.prompts import LONGEST_TEXT
from lm_env.errors import ConfigurationError, MissingDependencyError, ResetNeeded
from lm_env.export.judging import cut_at_stop_string, score_texts, score_tokens
from lm_env.export.source import Source, check_samplable_elsewhere, tokenizer_of
from lm_env.validation import check_integer

try:
    from openenv.core.env_server import Action, Environment, Observation, State, create_app
    from openenv.core.env_server.types import EnvironmentMetadata
    from pydantic import Field
except ImportError as error:
    raise MissingDependencyError("to_openenv needs openenv: pip install 'lm-env[openenv]'") from error

__all__ = ["TextAction", "TextEnvironment", "TextObservation", "TextState", "openenv_app", "to_openenv"]


class TextAction(Action):
    """A whole response: `text`, or `token_ids` of the task's own tokenizer, its EOS included.

    Tokens after the length cap are left out.  A text is scored as it is: stop at `max_new_tokens` tokens yourself.
    `ended` is read with a `text` only: True if an EOS or a stop string ended it, False if the length cap cut it.  From
    `token_ids` the environment sees that itself.
    """

    text: str | None = Field(None, max_length=LONGEST_TEXT)
    token_ids: list[int] | None = Field(None, max_length=LONGEST_TEXT)
    ended: bool = True


class TextObservation(Observation):
    """After `reset` the prompt; after `step` also the text that was scored, and whether it ended by itself.

    `prompt_ids` are the prompt's tokens; `messages` are those of a prompt that was given as a chat, else None.
    `max_new_tokens`, `temperature` and `stop_strings` say how the sampler is to write the response.
    """

    prompt: str = ""
    prompt_ids: list[int] = []  # noqa: RUF012 -- pydantic copies it
    messages: list[dict[str, Any]] | None = None
    max_new_tokens: int = 0
    temperature: float = 1.0
    stop_strings: list[str] = []  # noqa: RUF012
    response: str | None = None
    ended: bool | None = None


class TextState(State):
    """Where an episode stands."""

    task: str = ""
    split: str = ""
    prompt_index: int | None = None


def to_openenv(source: Any, **options: Any) -> TextEnvironment:
    """A task as an OpenEnv `Environment`, in this process.

    Args:
        source: a task by name, a `TextTask`, a `lm_env.Task`, or a text environment.
        options: of a task by name or a `TextTask`: its own, and those of `lm_env.Task`.

    Raises:
        MissingDependencyError: openenv is not installed.
        ConfigurationError: there is no such task or option, or the task has no tokenizer or masks tokens.
    """
    return TextEnvironment(Source(source, options))


def openenv_app(source: Any, *, sessions: int = 64, **options: Any) -> Any:
    """The FastAPI application that serves a task; uvicorn runs it.

    Args:
        source, options: as in `to_openenv`; what is loaded is shared by all sessions.
        sessions: the most WebSocket sessions at a time.

    Raises:
        MissingDependencyError, ConfigurationError: see `to_openenv`.
    """
    check_integer("sessions", sessions)
    shared = Source(source, options)
    TextEnvironment(shared)  # what cannot work shows now, and not at the first request
    return create_app(
        lambda: TextEnvironment(shared),
        TextAction,
        TextObservation,
        env_name=shared.name.replace("/", "-"),
        max_concurrent_envs=sessions,
        state_cls=TextState,
    )


class TextEnvironment(Environment[TextAction, TextObservation, TextState]):
    """One prompt, one response, one score; `to_openenv` makes it."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, source: Source) -> None:
        super().__init__()
        self._source = source
        task = source.task(source.splits[0])
        tokenizer_of(task, "OpenEnv")
        check_samplable_elsewhere(task, "OpenEnv")
        self._state = TextState(task=source.name)
        self._generator = np.random.default_rng()
        self._waiting = False

    def reset(
        self,
        seed: int | None = None,
        episode_id: str | None = None,
        split: str = "train",
        index: int | None = None,
        **unknown: Any,
    ) -> TextObservation:
        """Begin with a prompt.

        Args:
            seed: reseeds the draw of prompts; the same seed draws what `env.reset(seed=...)` of lm_env draws.
            episode_id: the name of the episode in `state`; None: a random one.
            split: which prompts.
            index: the position of the prompt; None: it is drawn.

        Raises:
            ConfigurationError: there is no such split or prompt, or an argument is unknown; nothing has changed.
        """
        if unknown:
            raise ConfigurationError(f"reset takes seed, episode_id, split and index, not {next(iter(unknown))!r}")
        task = self._source.task(split)
        generator = self._generator if seed is None else np.random.default_rng(check_integer("seed", seed, low=0))
        if index is None:
            prompt = task.prompts.sample(generator, 1)[0]
        else:
            prompt = self._source.prompt(split, check_integer("index", index, low=0))
        self._generator = generator
        self._state = TextState(
            episode_id=episode_id or str(uuid.uuid4()), task=self._source.name, split=split, prompt_index=prompt.index
        )
        self._waiting = True
        return self._observation()

    def step(self, action: TextAction, timeout_s: float | None = None, **unused: Any) -> TextObservation:
        """Score a response; the episode is over then.

        Args:
            action: the response.
            timeout_s: OpenEnv passes it; a reward function has no such limit, and it is not looked at.
            unused: what OpenEnv's server adds to a request, such as its id; not looked at either.

        Raises:
            ResetNeeded: there is no prompt that waits for a response.
            ConfigurationError: the action has both a text and tokens, or neither, or tokens outside the vocabulary.
            RewardError, RewardValueError: see `lm_env.objective.score_responses`.  In every case nothing has changed.
        """
        if not self._waiting:
            raise ResetNeeded("there is no prompt that waits for a response: call reset first")
        if (action.text is None) == (action.token_ids is None):
            raise ConfigurationError("an action has either text or token_ids: give one of them")
        split, index = self._state.split, self._state.prompt_index or 0
        task, prompt = self._source.task(split), self._source.prompt(split, index)
        written = action.text
        with self._source.lock:  # a reward function need not be safe for threads
            if written is None:
                ids: list[int] = action.token_ids or []
                scores, done = score_tokens(task, [prompt], [ids])
                text, ended = task.text_of(task.until_end(ids)), bool(done[0])
            else:
                scores, _ = score_texts(task, [prompt], [written], [action.ended])
                text, ended = cut_at_stop_string(task, written, action.ended)
            measured = self._source.measured(prompt, text)
        self._waiting = False
        self._state = self._state.model_copy(update={"step_count": 1})
        return self._observation(response=text, ended=ended, reward=float(scores[0]), done=True, metadata=measured)

    @property
    def state(self) -> TextState:
        """Which prompt it is, and whether there has been a step."""
        return self._state

    def get_metadata(self) -> Any:
        """The task's id and what it judges."""
        return EnvironmentMetadata(name=self._source.name, description=self._source.summary)

    # -- the discovery of tasks ---------------------------------------------------------------------------
    def list_splits(self) -> list[str]:
        """The names of the splits."""
        return list(self._source.splits)

    def num_tasks(self, split: str) -> int:
        """The number of prompts of a split."""
        return len(self._source.task(split).prompts)

    def get_task(self, split: str, index: int) -> dict[str, Any]:
        """A prompt, as `reset(split=, index=)` begins with it.

        Raises:
            IndexError: there is no such prompt; OpenEnv asks for this error.
        """
        if not 0 <= index < self.num_tasks(split):
            raise IndexError(f"{self._source.name} has {self.num_tasks(split)} prompts in {split}, and no {index}")
        prompt = self._source.prompt(split, index)
        return {"id": f"{split}-{index}", "split": split, "index": index, "prompt": prompt.text}

    def list_tasks(self, split: str) -> list[dict[str, Any]]:
        """All prompts of a split."""
        return self.get_task_range(split)

    def get_task_range(self, split: str, start: int | None = None, stop: int | None = None) -> list[dict[str, Any]]:
        """The prompts of a slice of a split."""
        return [self.get_task(split, index) for index in range(self.num_tasks(split))[start:stop]]

    def _observation(self, **outcome: Any) -> TextObservation:
        split, index = self._state.split, self._state.prompt_index or 0
        task, prompt = self._source.task(split), self._source.prompt(split, index)
        return TextObservation(
            prompt=prompt.text,
            prompt_ids=prompt.ids.tolist(),
            messages=self._source.chat(split, index),
            max_new_tokens=task.max_new_tokens,
            temperature=task.temperature,
            stop_strings=list(task.stop_strings),
            **outcome,
        )
