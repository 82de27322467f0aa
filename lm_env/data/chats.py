"""Chats as prompts: lists of messages, rendered by the tokenizer's own template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_env.errors import ConfigurationError, InvalidPromptError

__all__ = ["is_chat", "render_chat", "render_reply"]


def is_chat(value: Any) -> bool:
    """Whether this is a list that holds a mapping: token ids never do."""
    return isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value)


def render_chat(where: str, messages: Sequence[Any], tokenizer: Any) -> str:
    """A chat as the text after which the assistant's next message begins.

    The template writes every special token itself, so the text is to be tokenized without adding any.

    Args:
        where: names the chat in messages, such as "prompt 3".
        messages: of the form {"role": "user", "content": "text"}; further keys go to the template.

    Raises:
        InvalidPromptError: a message has no role or no text, the last one is the assistant's, or the
            template refuses the chat.
        ConfigurationError: there is no tokenizer, or it has no chat template.
    """
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            kind = type(message).__name__
            raise InvalidPromptError(f"{where}, message {number} is of type {kind}: give a dict with role and content")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                problem = f"has a {key} of type {type(message[key]).__name__}" if key in message else f"has no {key}"
                raise InvalidPromptError(f"{where}, message {number} {problem}: it must be text")
    if messages[-1]["role"] == "assistant":
        raise InvalidPromptError(
            f"{where} ends with the assistant's own message: leave it out, or, to have it continued, give the rendered"
            " text as the prompt"
        )
    if not getattr(tokenizer, "chat_template", None):
        lacks = "there is no tokenizer" if tokenizer is None else "the tokenizer has no chat template"
        raise ConfigurationError(f"{where} is a chat and {lacks}: pass one that has a chat template, or give text")
    return _applied(where, messages, tokenizer, add_generation_prompt=True)


def render_reply(where: str, messages: Sequence[Any], prompt: str, tokenizer: Any) -> str:
    """The last message of a chat, the assistant's, as the template writes it behind `prompt`, with what ends it.

    Args:
        where: names the chat in messages, such as "prompt 3".
        prompt: `render_chat` of the messages before it.

    Raises:
        InvalidPromptError: the message has no text, or the template refuses the chat or writes its beginning in
            another way than when it asks for an answer.
    """
    content = messages[-1].get("content")
    if not isinstance(content, str):
        raise InvalidPromptError(
            f"{where} has an assistant's message of type {type(content).__name__}: it must be text"
        )
    whole = _applied(where, messages, tokenizer, add_generation_prompt=False)
    if not whole.startswith(prompt):
        raise InvalidPromptError(
            f"{where}: the chat template writes an answer otherwise than it asks for one, so that the answer cannot be"
            " told from the prompt: render the chats yourself, and give prompt and response as text"
        )
    return whole[len(prompt) :]


def _applied(where: str, messages: Sequence[Any], tokenizer: Any, *, add_generation_prompt: bool) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(list(messages), add_generation_prompt=add_generation_prompt, tokenize=False)
        )
    except Exception as error:  # the template's own code, which may refuse an order of roles
        reason = " ".join(str(error).split())
        raise InvalidPromptError(f"{where} is refused by the chat template ({reason}): change its messages") from error
