"""Task: what is to be written and how it is judged -- models, prompts, reward, and where a text ends.

Both gears of the environment share it: `TextMDP` steps through its texts token by token, and
`Task.score` judges whole episodes at once.

Shapes: B episodes, T response tokens, V vocabulary.
"""

from __future__ import annotations

import copy
import importlib
import math
import operator
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypedDict

import numpy as np
import torch
from torch import nn

from lm_env.episodes import Episodes, Scored
from lm_env.errors import ConfigurationError
from lm_env.forwards import (
    check_positions,
    evaluating,
    facts_of,
    length_batches,
    response_logprobs,
    response_outputs,
    token_logprobs,
)
from lm_env.kl import KLController, full_kl, k1, k2, k3, make_controller
from lm_env.models import load_causal_lm, load_tokenizer
from lm_env.prompts import Prompt, load_prompts
from lm_env.rewards import RewardFunction, compose_rewards, final_scores, score_responses

__all__ = ["Task", "TaskOptions", "has_adapter", "resolve_reward"]

ActionMask = Callable[[np.ndarray, np.ndarray], np.ndarray]


class TaskOptions(TypedDict, total=False):
    """The keyword arguments of every environment; see `Task` for what each means."""

    model: nn.Module | str | os.PathLike
    tokenizer: Any
    prompts: Any
    reward: RewardFunction | Callable[..., Any] | str
    reference: nn.Module | str | os.PathLike | None
    beta: float | KLController
    max_prompt_tokens: int | None
    max_new_tokens: int
    eos_token_id: int | Sequence[int] | None
    stop_strings: Sequence[str]
    missing_eos_score: float | None
    cap_truncates: bool
    temperature: float
    action_mask: ActionMask | None
    device: str
    download: bool


class Task:
    """Resolved and checked options of an environment.

    Args:
        model: the LM under training: a module with the forward of a transformers causal LM, or a
            name (`"reviews-3m"`, a folder, a hub id).  By name, the environment gets a copy of its own.
        tokenizer: a transformers tokenizer, or a name; default: the one beside a named model.
        prompts: anything `load_prompts` takes: strings, token ids, rows with extra columns for the
            reward, a .txt or .jsonl file, a `datasets.Dataset`, a hub id.
        reward: a `RewardFunction`, or the import path of one (`"reward_models:LexiconSentiment"`; a
            class is called without arguments).
        reference: the frozen model of the KL penalty.  Default: a frozen copy of `model`; for a peft
            model its own base, the adapter switched off, without a second copy of the weights.
        beta: weight of the KL penalty (reward per nat), or a controller of it.
        max_prompt_tokens: default: the longest prompt.  Longer prompts are an error.
        max_new_tokens: the length cap, tokens.
        eos_token_id: ids that end a text; default the tokenizer's; `()`: only the cap ends it.
        stop_strings: strings that end a text; the reward sees the text before them.
        missing_eos_score: paid INSTEAD of the score when the cap ends a text (-1 in
            arXiv:1909.08593); None: such texts are judged like any other.
        cap_truncates: the cap yields `truncated` and pays no score, instead of `terminated` and the
            score.  Off by default, for with a score paid, an agent must not add a bootstrap value.
        temperature: divides the logits of policy and reference.
        action_mask: `f(prompt_ids, response_ids) -> bool (V,)`, tokens that may come next.  Restricts
            the actions and the model's distribution, not the reference's: the optimum is then the
            reference conditioned on the allowed texts, tilted by the reward.
        device: where models given by name are put.
        download: allow fetching named models and data sets from the hub.

    Raises:
        ConfigurationError, ModelLoadError, UnsupportedModelError, InvalidPromptError.
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
    ) -> None:
        _check_numbers(max_prompt_tokens, max_new_tokens, missing_eos_score, temperature, cap_truncates)
        self.model, self.reference, self.tokenizer = _models(model, reference, tokenizer, device, download)
        self.adapter = self.model if reference is None and has_adapter(self.model) else None
        if self.adapter is not None:  # one copy of the weights: the layers under the adapter are the reference
            self.model = self.reference = _under(self.adapter)
        self.vocab_size = facts_of(self.model).vocab_size
        if facts_of(self.reference).vocab_size != self.vocab_size:
            raise ConfigurationError(
                f"the model has {self.vocab_size} logits and the reference {facts_of(self.reference).vocab_size}: they must share a vocabulary"
            )
        self.prompts = load_prompts(
            prompts, self.tokenizer, vocab_size=self.vocab_size,
            max_prompt_tokens=max_prompt_tokens or self._room(max_new_tokens), download=download,
        )  # fmt: skip
        self.max_prompt_tokens = max_prompt_tokens or max(len(p.ids) for p in self.prompts)
        self.max_new_tokens = max_new_tokens
        self.max_length = self.max_prompt_tokens + max_new_tokens
        check_positions(self.model, self.max_length)
        check_positions(self.reference, self.max_length)
        self.reward = resolve_reward(reward)
        self.kl = make_controller(beta)
        self.eos_token_ids = _eos_ids(eos_token_id, self.tokenizer, self.vocab_size)
        self._is_eos = np.zeros(self.vocab_size, dtype=bool)
        self._is_eos[list(self.eos_token_ids)] = True
        self.stop_strings = _stop_strings(stop_strings, self.tokenizer)
        self.missing_eos_score, self.cap_truncates, self.temperature = missing_eos_score, cap_truncates, float(temperature)
        self.action_mask = action_mask
        pad = getattr(self.tokenizer, "pad_token_id", None)
        self.pad_token_id = int(pad) if pad is not None and pad < self.vocab_size else 0

    def _room(self, max_new_tokens: int) -> int:
        positions = [m for m in (facts_of(self.model).max_positions, facts_of(self.reference).max_positions) if m]
        return max(min(positions) - max_new_tokens, 1) if positions else 2**31

    def as_reference(self) -> AbstractContextManager[Any]:
        """Inside, `reference` is the reference: a peft model's adapter is off."""
        return nullcontext() if self.adapter is None else self.adapter.disable_adapter()  # type: ignore[operator,no-any-return]

    # -- where a text ends, and what it is worth ----------------------------------------------------
    def text_of(self, response: Sequence[int]) -> str:
        """The response as the reward sees it: no EOS, no special tokens, cut before a stop string."""
        ids = response[:-1] if len(response) and response[-1] in self.eos_token_ids else response
        if self.tokenizer is None:
            return " ".join(map(str, ids))
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        cuts = [at for stop in self.stop_strings if (at := text.find(stop)) >= 0]
        return text[: min(cuts)] if cuts else text

    def ends(self, input_ids: np.ndarray, prompt_lengths: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where texts end, and the one place that says so.

        Args:
            input_ids: int64 (B, L); prompt_lengths, lengths: int64 (B,), with at least one response token.

        Returns:
            (ended, capped), bool (B,): by an EOS or a stop string; by the length cap alone.
        """
        ended = self._is_eos[input_ids[np.arange(len(lengths)), lengths - 1]]
        if self.stop_strings:
            for row in np.flatnonzero(~ended):
                text = str(self.tokenizer.decode(input_ids[row, prompt_lengths[row] : lengths[row]], skip_special_tokens=True))
                ended[row] = any(stop in text for stop in self.stop_strings)
        return ended, (lengths - prompt_lengths >= self.max_new_tokens) & ~ended

    def allowed_next(self, prompt: np.ndarray, response: np.ndarray) -> np.ndarray:
        """bool (V,): tokens that may follow; all of them without an `action_mask`."""
        if self.action_mask is None:
            return np.ones(self.vocab_size, dtype=bool)
        mask = np.asarray(self.action_mask(prompt.copy(), response.copy()))
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
        return np.stack([
            self.allowed_next(row[:p], row[p:t])
            for row, p, n in zip(episodes.input_ids, episodes.prompt_lengths, episodes.lengths, strict=True)
            for t in range(p, n)
        ])  # fmt: skip

    def judge(self, prompts: Sequence[Prompt], responses: Sequence[list[int]], ended: np.ndarray) -> np.ndarray:
        """The paid scores, float64 (B,): the reward function's, unless a missing EOS replaces it.

        Raises:
            RewardError, RewardValueError: see `score_responses`.
        """
        columns: dict[str, list[Any]] = {name: [p.columns.get(name) for p in prompts] for name in self.prompts.columns}
        columns |= {"prompt_ids": [p.ids.tolist() for p in prompts], "response_ids": [list(r) for r in responses]}
        scores = score_responses(self.reward, [p.text for p in prompts], [self.text_of(r) for r in responses], columns)
        return final_scores(scores, ended, self.missing_eos_score)

    def score(self, episodes: Episodes) -> Scored:
        """The second gear: per-token rewards of whole episodes, the same as stepping through them.

        log pi is `episodes.logprobs` where given, else the task's model gives it; the reference and the
        model run once over each sequence, batched by length.
        """
        mask = episodes.response_mask()
        responses = episodes.responses()
        ended, _ = self.ends(episodes.input_ids, episodes.prompt_lengths, episodes.lengths)
        with self.as_reference():
            ref_logp = response_logprobs(self.reference, episodes, self.temperature).astype(np.float64)
        told = episodes.logprobs
        if told is None:
            told = response_logprobs(self.model, episodes, self.temperature, self.allowed_in(episodes))
        logp = np.where(mask, told, 0.0).astype(np.float64)
        paid = ended if self.cap_truncates else np.ones_like(ended)
        scores = np.where(paid, self.judge(episodes.prompts, responses, ended), 0.0)
        last = (np.cumsum(mask, 1) == episodes.response_lengths[:, None]) & mask & paid[:, None]
        rewards = compose_rewards(scores[:, None], logp, ref_logp, last, self.kl.beta)
        return Scored(np.where(mask, rewards, 0.0), scores, logp, ref_logp, ended)

    def kl_report(self, episodes: Episodes) -> dict[str, float]:
        """Mean KL per episode between model and reference, nats: k1, k2, k3, and the exact sum `full`.

        `full` sums the KL of the next-token distributions over the vocabulary at each response
        position; its expectation over the model's own samples is the KL of the text distributions.
        """
        totals = dict.fromkeys(("k1", "k2", "k3", "full"), 0.0)
        with torch.no_grad(), evaluating(self.model), evaluating(self.reference):
            for rows in length_batches(episodes.lengths, max(1, 2**24 // self.vocab_size)):
                out, tokens = response_outputs(self.model, episodes[rows])
                with self.as_reference():
                    ref = response_outputs(self.reference, episodes[rows])[0].logits.to(out.logits.device)
                logp = token_logprobs(out.logits, tokens, self.temperature)
                ref_logp = token_logprobs(ref, tokens, self.temperature)
                for name, estimator in (("k1", k1), ("k2", k2), ("k3", k3)):
                    totals[name] += float(estimator(logp, ref_logp).sum())
                totals["full"] += float(full_kl(out.logits, ref, self.temperature).sum())
        return {name: value / len(episodes) for name, value in totals.items()}


# -- resolving the options -------------------------------------------------------------------------
def _models(
    model: nn.Module | str | os.PathLike,
    reference: nn.Module | str | os.PathLike | None,
    tokenizer: Any,
    device: str,
    download: bool,
) -> tuple[nn.Module, nn.Module, Any]:
    """(model, frozen reference, tokenizer); named models are loaded once and shared while frozen."""
    if isinstance(tokenizer, str | os.PathLike):
        tokenizer = load_tokenizer(str(tokenizer), download=download)
    if isinstance(model, str | os.PathLike):
        base, own = load_causal_lm(str(model), device, download)
        # The base may have been frozen already, as the reference of another environment.
        live, tokenizer = copy.deepcopy(base).requires_grad_(True), own if tokenizer is None else tokenizer
        reference = base if reference is None else reference
    else:
        live = model
    facts_of(live)
    if isinstance(reference, str | os.PathLike):
        reference = load_causal_lm(str(reference), device, download)[0]
    elif reference is None and has_adapter(live):
        return live, live, tokenizer
    elif reference is None:
        reference = copy.deepcopy(live)
    _check_apart(live, reference)
    reference.requires_grad_(False).eval()
    return live, reference, tokenizer


def has_adapter(model: nn.Module) -> bool:
    """Whether this is a peft model, whose adapter can be switched off."""
    return callable(getattr(model, "disable_adapter", None)) and callable(getattr(model, "get_base_model", None))


def _under(adapter: nn.Module) -> nn.Module:
    """The transformers model with the adapter's layers in it, which has the LM's own interface."""
    return adapter.get_base_model()  # type: ignore[operator,no-any-return]


def _check_apart(model: nn.Module, reference: nn.Module) -> None:
    own = {p.data_ptr() for p in model.parameters() if p.numel()}
    if any(p.data_ptr() in own for p in reference.parameters() if p.numel()):
        raise ConfigurationError("the reference shares weights with the model, so it would drift with it: leave it out, or pass a copy")


def resolve_reward(reward: Any) -> Callable[..., Any]:
    """A reward function as it is, or the one that an import path `"package.module:name"` names.

    Raises:
        ConfigurationError: it cannot be imported, or called.
    """
    if isinstance(reward, str):
        module, _, name = reward.partition(":")
        try:
            reward = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigurationError(f"reward {module}:{name} cannot be imported ({error}): write 'package.module:function'") from error
        try:
            reward = reward() if isinstance(reward, type) else reward
        except TypeError as error:
            message = f"reward {module}:{name} cannot be made without arguments ({error}): pass an instance"
            raise ConfigurationError(message) from error
    if not callable(reward):
        raise ConfigurationError(f"reward must be a function f(prompts, responses, **columns) -> floats, not {type(reward).__name__}")
    return reward


def _eos_ids(given: int | Iterable[int] | None, tokenizer: Any, vocab_size: int) -> frozenset[int]:
    if given is None:
        given = getattr(tokenizer, "eos_token_id", None)
        if given is None:
            raise ConfigurationError("no EOS: the tokenizer has no eos_token_id; pass eos_token_id=ID, or () to always run to the length cap")
    try:
        ids = frozenset(map(operator.index, given if isinstance(given, Iterable) else [given]))
    except TypeError as error:
        raise ConfigurationError(f"eos_token_id must be a token id, or several, not {given!r}") from error
    if bad := [i for i in ids if not 0 <= i < vocab_size]:
        raise ConfigurationError(f"eos_token_id {bad[0]} is outside the model's vocabulary of {vocab_size}")
    return ids


def _stop_strings(given: str | Sequence[str], tokenizer: Any) -> tuple[str, ...]:
    strings = (given,) if isinstance(given, str) else tuple(given)
    if bad := [s for s in strings if not isinstance(s, str) or not s]:
        raise ConfigurationError(f"stop_strings holds {bad[0]!r}: each must be a non-empty string")
    if strings and tokenizer is None:
        raise ConfigurationError("stop_strings need a tokenizer, to see the text")
    return strings


def _check_numbers(prompt: int | None, new: int, missing: float | None, temperature: float, cap_truncates: bool) -> None:
    for name, value in (("max_prompt_tokens", 1 if prompt is None else prompt), ("max_new_tokens", new)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigurationError(f"{name} must be a whole number of at least 1, not {value!r}")
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 < temperature < float("inf"):
        raise ConfigurationError(f"temperature must be a finite number above 0, not {temperature!r}")
    number = isinstance(missing, int | float) and not isinstance(missing, bool)
    if missing is not None and not (number and math.isfinite(missing)):
        raise ConfigurationError(f"missing_eos_score must be finite or None, not {missing!r}")
    if missing is not None and cap_truncates:
        raise ConfigurationError("missing_eos_score pays at the cap, cap_truncates pays nothing there: choose one")
