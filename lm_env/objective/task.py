"""Task: what is to be written and how it is scored: models, prompts, reward, and where a text ends.

The stepwise and episode-wise paths share it: `TextMDP` goes through its texts token by token, and
`score_episodes` scores whole episodes at once.

Shapes: B episodes, T response tokens, L all tokens of an episode, V vocabulary, N response tokens of all episodes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from torch import nn

from lm_env.data.episodes import Episodes
from lm_env.data.prompts import Overflow, Prompts, named_rows, prompts_from_rows
from lm_env.errors import ConfigurationError
from lm_env.models.adapters import adapter_off
from lm_env.models.inspection import check_positions, facts_of
from lm_env.objective.description import name_of_model, task_in_words
from lm_env.objective.kl import KLController, make_controller
from lm_env.objective.options import (
    ActionMask,
    TaskOptions,
    check_limits,
    checked_action_mask,
    resolve_eos,
    resolve_models,
    resolve_reward,
    resolve_stop_strings,
)
from lm_env.objective.rewards import RewardFunction, check_keywords, name_of

__all__ = ["Task", "TaskOptions"]


class Task:
    """Resolved and checked options of an environment.

    Args:
        model: the LM under training: a module with the forward of a transformers causal LM, or a
            name (`"reviews-3m"`, a folder, a hub id).  By name, the environment gets a copy of its own.
        tokenizer: a transformers tokenizer, or a name; default: the one beside a named model.
        prompts: anything `load_prompts` takes: strings, token ids, chats, rows with extra columns for
            the reward, a tokenizer's output, a .txt or .jsonl file, a `datasets.Dataset`, a hub id.
        prompt_column, overflow, add_special_tokens: how prompts are read, see `load_prompts`.
        reward: a `RewardFunction`, or where one is: `"reward_models:LexiconSentiment"` or
            `"file.py:function"`, of which a class is called without arguments; `"lexicon"`; a folder with a
            saved reward model or a sequence classifier; or the address of a reward server, `"http://..."`.
        reference: the frozen model of the KL penalty; a live one is frozen and put into eval mode.  Default: a
            frozen copy of `model`; for a peft model its own base, the adapter switched off, without a second copy
            of the weights.
        beta: weight of the KL penalty (reward per nat), or a controller of it.
        max_prompt_tokens: default: the longest prompt.  Longer prompts are an error, or cut, as `overflow`
            says.
        max_new_tokens: the length cap, tokens.
        eos_token_id: ids that end a text; default the tokenizer's; `()`: only the cap ends it.
        stop_strings: strings that end a text; the reward sees the text before them.
        missing_eos_score: paid INSTEAD of the score when the cap ends a text (-1 in
            arXiv:1909.08593); None: such texts are scored like any other.
        cap_truncates: the cap yields `truncated` and pays no score, instead of `terminated` and the
            score.  Off by default: where the score is paid, an agent must not bootstrap from a value.
        temperature: divides the logits of policy and reference.
        action_mask: `f(prompt_ids, response_ids) -> bool (V,)`, tokens that may come next.  Restricts
            the actions and the model's distribution, not the reference's: the optimum is then the
            reference conditioned on the allowed texts, tilted by the reward.
        device: where models given by name are put.
        download: allow fetching named models and data sets from the hub.
        quantization_config: how models given by name are loaded, see `load_model`.  A quantized model is
            frozen: train LoRA adapters on one, or give it as the reference of another model.

    Raises:
        ConfigurationError, ModelLoadError, MissingDependencyError, UnsupportedModelError, InvalidPromptError.
    """

    def __init__(
        self,
        *,
        model: nn.Module | str | os.PathLike,
        prompts: Any,
        reward: RewardFunction | Callable[..., Any] | str,
        tokenizer: Any = None,
        reference: nn.Module | str | os.PathLike | None = None,
        beta: float | KLController = 0.1,
        prompt_column: str | None = None,
        overflow: Overflow = "error",
        add_special_tokens: bool = True,
        max_prompt_tokens: int | None = None,
        max_new_tokens: int = 48,
        eos_token_id: int | Sequence[int] | None = None,
        stop_strings: Sequence[str] = (),
        missing_eos_score: float | None = None,
        cap_truncates: bool = False,
        temperature: float = 1.0,
        action_mask: ActionMask | None = None,
        device: str = "cpu",
        download: bool = False,
        quantization_config: Any = None,
    ) -> None:
        check_limits(max_prompt_tokens, max_new_tokens, missing_eos_score, temperature, cap_truncates)
        resolved = resolve_models(model, reference, tokenizer, device, download, quantization_config)
        self.model_name = name_of_model(model)
        self.model = resolved.model
        self.reference = resolved.reference
        self.adapter = resolved.adapter
        self.tokenizer = resolved.tokenizer
        self.vocab_size = facts_of(self.model).vocab_size
        if facts_of(self.reference).vocab_size != self.vocab_size:
            raise ConfigurationError(
                f"the model has {self.vocab_size} logits and the reference {facts_of(self.reference).vocab_size}: they"
                " must share a vocabulary"
            )
        self.prompt_column = prompt_column
        self.overflow: Overflow = overflow
        self.add_special_tokens = add_special_tokens
        self.max_prompt_tokens = max_prompt_tokens or self._room(max_new_tokens)  # provisional: load_prompts reads it
        self.prompts = self._own_prompts(prompts, download, max_prompt_tokens, max_new_tokens)
        self.max_prompt_tokens = max_prompt_tokens or max(len(p.ids) for p in self.prompts)
        self.max_new_tokens = max_new_tokens
        self.max_length = self.max_prompt_tokens + max_new_tokens
        check_positions(self.model, self.max_length)
        check_positions(self.reference, self.max_length)
        self.reward = resolve_reward(reward, device=device)
        check_keywords(self.reward)
        self.kl = make_controller(beta)
        self.eos_token_ids = resolve_eos(eos_token_id, self.tokenizer, self.vocab_size)
        self._is_eos = np.zeros(self.vocab_size, dtype=bool)
        self._is_eos[list(self.eos_token_ids)] = True
        self.stop_strings = resolve_stop_strings(stop_strings, self.tokenizer)
        self.missing_eos_score = missing_eos_score
        self.cap_truncates = cap_truncates
        self.temperature = float(temperature)
        self.action_mask = checked_action_mask(action_mask)
        pad = getattr(self.tokenizer, "pad_token_id", None)
        self.pad_token_id = int(pad) if pad is not None and pad < self.vocab_size else 0

    def __repr__(self) -> str:
        return f"Task({task_in_words(self)})"

    def load_prompts(self, source: Any, *, download: bool = False, any_length: bool = False) -> Prompts:
        """Other prompts, read as the task's own are: the same tokenizer, column, limit and special tokens.

        Args:
            any_length: allow prompts beyond `max_prompt_tokens` as far as the models' positions go; for callers
                that write whole texts, as an evaluation does, and hand none of them to `reset` or `score`.

        Raises:
            InvalidPromptError, ConfigurationError: see `lm_env.load_prompts`.
        """
        return self._load(
            source,
            download,
            remedy="make the environment with a higher max_prompt_tokens or with overflow='truncate', or shorten it",
            any_length=any_length,
        )

    def _own_prompts(self, source: Any, download: bool, given: int | None, max_new_tokens: int) -> Prompts:
        """The task's own prompts; where no limit was given, what is too long is too long for the positions."""
        if given is not None:
            remedy = "raise max_prompt_tokens, shorten it, or pass overflow='truncate'"
            return self._load(source, download, remedy=remedy)
        return self._load(
            source,
            download,
            remedy=f"this limit comes from the model's positions, of which max_new_tokens={max_new_tokens} are for"
            " the response, so lower max_new_tokens, shorten the prompt, or pass overflow='truncate'",
        )

    def _load(self, source: Any, download: bool, *, remedy: str, any_length: bool = False) -> Prompts:
        return prompts_from_rows(
            named_rows(source, download=download),
            self.tokenizer,
            vocab_size=self.vocab_size,
            max_prompt_tokens=self._room(self.max_new_tokens) if any_length else self.max_prompt_tokens,
            prompt_column=self.prompt_column,
            overflow=self.overflow,
            add_special_tokens=self.add_special_tokens,
            remedy=remedy,
        )

    def _room(self, max_new_tokens: int) -> int:
        positions = [m for m in (facts_of(self.model).max_positions, facts_of(self.reference).max_positions) if m]
        return max(min(positions) - max_new_tokens, 1) if positions else 2**31

    def as_reference(self) -> AbstractContextManager[Any]:
        """A context in which `self.reference` is the reference policy: a shared adapter is switched off."""
        if self.adapter is None or self.reference is not self.model:
            return nullcontext()
        return adapter_off(self.adapter)

    # -- the text, and where it ends -------------------------------------------
    def text_of(self, response: Sequence[int]) -> str:
        """The finished response as the reward sees it: no EOS, no special tokens, cut before a stop string."""
        ids = response[:-1] if len(response) and response[-1] in self.eos_token_ids else response
        text = self._decoded(ids)
        cuts = [at for stop in self.stop_strings if (at := text.find(stop)) >= 0]
        return text[: min(cuts)] if cuts else text

    def text_so_far(self, response: Sequence[int]) -> str:
        """The settled part of an unfinished response: no partial character, no start of a stop string."""
        text = self.text_of(response)
        return text if self.tokenizer is None else self.settled(text)

    def settled(self, text: str) -> str:
        """The part of an unfinished text that later tokens cannot change, see `text_so_far`."""
        text = text.rstrip("\ufffd")
        beginnings = [n for stop in self.stop_strings for n in range(1, len(stop)) if text.endswith(stop[:n])]
        return text[: len(text) - max(beginnings, default=0)]

    def until_end(self, response: Sequence[int] | np.ndarray) -> list[int]:
        """The tokens of a response up to where it ends: an EOS, a stop string, or the length cap."""
        ids = [int(token) for token in response[: self.max_new_tokens]]
        ids = ids[: next((count for count, token in enumerate(ids, 1) if token in self.eos_token_ids), len(ids))]
        if self.stop_strings and self.holds_stop_string(ids):
            ids = next(ids[:count] for count in range(1, len(ids) + 1) if self.holds_stop_string(ids[:count]))
        return ids

    def is_eos(self, tokens: np.ndarray) -> np.ndarray:
        """bool, the shape of `tokens`: which of them end a text."""
        return self._is_eos[tokens]

    def holds_stop_string(self, response: Sequence[int] | np.ndarray) -> bool:
        """Whether one of the stop strings occurs in the response."""
        text = self._decoded(response)
        return any(stop in text for stop in self.stop_strings)

    def ends(
        self, input_ids: np.ndarray, prompt_lengths: np.ndarray, lengths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where texts end, and the one place that says so.

        Args:
            input_ids: int64 (B, L); prompt_lengths, lengths: int64 (B,), with at least one response token.

        Returns:
            (ended, capped), bool (B,): by an EOS or a stop string; by the length cap alone.
        """
        ended = self.is_eos(input_ids[np.arange(len(lengths)), lengths - 1])
        if self.stop_strings:
            for row in np.flatnonzero(~ended):
                ended[row] = self.holds_stop_string(input_ids[row, prompt_lengths[row] : lengths[row]])
        return ended, (lengths - prompt_lengths >= self.max_new_tokens) & ~ended

    def _decoded(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of some tokens, special tokens left out; without a tokenizer the ids themselves."""
        if self.tokenizer is None:
            return " ".join(map(str, ids))
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def allowed_next(self, prompt: np.ndarray, response: np.ndarray) -> np.ndarray:
        """bool (V,): tokens that may follow; all of them without an `action_mask`."""
        if self.action_mask is None:
            return np.ones(self.vocab_size, dtype=bool)
        try:
            mask = np.asarray(self.action_mask(prompt.copy(), response.copy()))
        except (Exception, SystemExit) as error:
            raise ConfigurationError(
                f"action_mask {name_of(self.action_mask)} raised {type(error).__name__}: {error} (after"
                f" {len(response)} tokens of the response): correct it, so that f(prompt_ids, response_ids) returns"
                f" bool ({self.vocab_size},)"
            ) from error
        if mask.shape != (self.vocab_size,) or mask.dtype != np.bool_ or not mask.any():
            raise ConfigurationError(
                f"action_mask must return a bool array of {self.vocab_size} with at least one True, "
                f"not shape {mask.shape}, dtype {mask.dtype}, {int(np.count_nonzero(mask))} True"
            )
        return mask

    def allowed_in(self, episodes: Episodes) -> np.ndarray | None:
        """bool (N, V): `allowed_next` at each response token, row after row; None if all tokens may."""
        if self.action_mask is None:
            return None
        return np.stack(
            [
                self.allowed_next(row[:p], row[p:t])
                for row, p, n in zip(episodes.input_ids, episodes.prompt_lengths, episodes.lengths, strict=True)
                for t in range(p, n)
            ]
        )
