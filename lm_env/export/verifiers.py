"""A task as a taskset of `verifiers` (Prime Intellect): single replies, scored as the environment scores them.

    # sums_v1.py, on the Python path
    from lm_env.export.verifiers import OneReply, TextEnv, to_verifiers

    Sums = to_verifiers("lm_env/Arithmetic-v0")
    __all__ = ["OneReply", "Sums", "TextEnv"]

Then `PYTHONPATH=. vf-eval sums-v1 --model MODEL` of verifiers runs it.  The policy is behind an OpenAI-compatible
address; the KL penalty, if any, is the trainer's.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from lm_env.errors import MissingDependencyError
from lm_env.export.judging import cut_at_stop_string, score_texts
from lm_env.export.source import Source, check_samplable_elsewhere, tokenizer_of

try:
    import httpx
    import verifiers.v1 as vf
except ImportError as error:
    raise MissingDependencyError("to_verifiers needs verifiers: pip install 'lm-env[verifiers]'") from error

__all__ = ["OneReply", "TextData", "TextEnv", "TextEnvConfig", "TextTasksetConfig", "to_verifiers"]

COMPLETION_SECONDS = 600.0
"""How long a request to the model may take."""


class TextData(vf.TaskData):
    """A prompt, and how its reply is sampled; verifiers carries it between processes."""

    split: str
    prompt_index: int
    max_tokens: int
    temperature: float
    stop: list[str] = []  # noqa: RUF012 -- pydantic copies it


class TextTasksetConfig(vf.TasksetConfig):
    """Which prompts: `--env.taskset.split`."""

    split: str = "test"


class TextEnvConfig(vf.SingleAgentEnvConfig):
    """One agent, which runs in this process: a reply needs no sandbox."""

    agent: vf.AgentConfig = vf.AgentConfig(runtime=vf.SubprocessConfig())


class TextEnv(vf.Env[TextEnvConfig]):
    """An episode is one reply of one agent."""

    async def run(self, task: Any, agents: Any) -> None:
        """Have the agent answer."""
        await agents.agent.run(task)


class OneReply(vf.Harness[vf.HarnessConfig]):
    """One request to the model, without a program of its own: a text task needs no more.

    It asks for the task's length cap, temperature and stop strings; verifiers' `--sampling` replaces them.
    """

    APPENDS_SYSTEM_PROMPT = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self, ctx: Any, trace: Any, runtime: Any, endpoint: str, secret: str, mcp_urls: dict[str, str], data: Any
    ) -> Any:
        """Send the prompt to the endpoint, where verifiers records the exchange."""
        system, prompt = self.resolve_prompt(data)
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _as_sent(prompt)
        if system is not None:
            messages = [{"role": "system", "content": system}, *messages]
        body: dict[str, Any] = {"model": ctx.model, "messages": messages}
        if isinstance(data, TextData):
            body |= {"max_tokens": data.max_tokens, "temperature": data.temperature}
            body |= {"stop": data.stop} if data.stop else {}
        async with httpx.AsyncClient(timeout=COMPLETION_SECONDS) as client:
            answer = await client.post(
                f"{endpoint.rstrip('/')}/chat/completions", json=body, headers={"Authorization": f"Bearer {secret}"}
            )
        failed = answer.status_code >= 400
        return vf.ProgramResult(int(failed), "", answer.text if failed else "")


def to_verifiers(source: Any, **options: Any) -> type[Any]:
    """A `Taskset` class of verifiers whose reward is the task's score and whose metrics are the task's.

    Nothing is loaded before the taskset is iterated or a reply is scored.  A prompt that was given as a chat is sent
    as its messages, any other as one message of the user.

    Args:
        source: a task by name, a `TextTask`, a `lm_env.Task`, or a text environment.
        options: of a task by name or a `TextTask`: its own, and those of `lm_env.Task`.

    Raises:
        MissingDependencyError: verifiers is not installed.
        ConfigurationError: there is no such task or option; when it is iterated, the task has no tokenizer or masks
            tokens.
    """
    found = Source(source, options)

    class ReplyTask(TextReplyTask):
        """A prompt of this task."""

        source = found

    class TextTaskset(vf.Taskset[ReplyTask, TextTasksetConfig]):
        """The prompts of a split."""

        def load(self) -> list[ReplyTask]:
            """A task for each prompt."""
            split = _default_split(found, self.config.split)
            task = found.task(split)
            tokenizer_of(task, "verifiers")
            check_samplable_elsewhere(task, "verifiers")
            return [ReplyTask(_data(found, split, index), self.config.task) for index in range(len(task.prompts))]

    return TextTaskset


class TextReplyTask(vf.Task[TextData, vf.State, vf.TaskConfig]):
    """One prompt: its reward is the score that the environment pays for the reply."""

    source: ClassVar[Source]

    @vf.reward
    async def score_of_text(self, trace: Any) -> float:
        """The task's score of the reply."""
        return await asyncio.to_thread(self._score, trace)

    @vf.metric
    async def measures_of_text(self, trace: Any) -> dict[str, float]:
        """The task's further metrics of the reply, and whether it ended by itself."""
        return await asyncio.to_thread(self._measures, trace)

    def _score(self, trace: Any) -> float:
        prompt = self.source.prompt(self.data.split, self.data.prompt_index)
        task = self.source.task(self.data.split)
        with self.source.lock:  # a reward function need not be safe for threads
            scores, _ = score_texts(task, [prompt], [_reply(trace)], [not trace.is_truncated])
        return float(scores[0])

    def _measures(self, trace: Any) -> dict[str, float]:
        prompt = self.source.prompt(self.data.split, self.data.prompt_index)
        task = self.source.task(self.data.split)
        text, ended = cut_at_stop_string(task, _reply(trace), not trace.is_truncated)
        return {**self.source.measured(prompt, text), "ended": float(ended)}


def _reply(trace: Any) -> str:
    """The model's reply as it came, spaces and all."""
    replies = trace.assistant_messages
    return (replies[-1].content or "") if replies else ""


def _default_split(source: Source, split: str) -> str:
    """The split that is asked for; in the place of verifiers' default, the one split of a source without others."""
    return source.splits[0] if len(source.splits) == 1 and split == TextTasksetConfig().split else split


def _data(source: Source, split: str, index: int) -> Any:
    task = source.task(split)
    chat = source.chat(split, index)
    return TextData(
        name=f"{source.name}/{split}/{index}",
        prompt=source.prompt(split, index).text if chat is None else chat,
        split=split,
        prompt_index=index,
        max_tokens=task.max_new_tokens,
        temperature=task.temperature,
        stop=list(task.stop_strings),
    )


def _as_sent(messages: Any) -> list[dict[str, Any]]:
    return [message.model_dump(exclude_none=True) for message in messages or []]
