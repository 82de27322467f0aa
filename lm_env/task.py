"""Task: what is to be written and how it is judged -- models, prompts, reward, and where a text ends.

Both gears of the environment share it: `TextMDP` steps through its texts token by token, and
`Task.score` judges whole episodes at once.

Shapes: B episodes, T response tokens, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

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
from lm_env.options import (
    ActionMask,
    TaskOptions,
    check_numbers,
    has_adapter,
    resolve_eos,
    resolve_models,
    resolve_reward,
    resolve_stop_strings,
    under_adapter,
)
from lm_env.prompts import Prompt, load_prompts
from lm_env.rewards import RewardFunction, compose_rewards, final_scores, score_responses

__all__ = ["Task", "TaskOptions"]


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
        quantization_config: how models given by name are loaded, see `load_model`.  A quantised model is
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
        check_numbers(max_prompt_tokens, max_new_tokens, missing_eos_score, temperature, cap_truncates)
        self.model, self.reference, self.tokenizer = resolve_models(
            model, reference, tokenizer, device, download, quantization_config
        )
        self.adapter = self.model if reference is None and has_adapter(self.model) else None
        if self.adapter is not None:  # one copy of the weights: the layers under the adapter are the reference
            self.model = self.reference = under_adapter(self.adapter)
        self.vocab_size = facts_of(self.model).vocab_size
        if facts_of(self.reference).vocab_size != self.vocab_size:
            raise ConfigurationError(
                f"the model has {self.vocab_size} logits and the reference {facts_of(self.reference).vocab_size}: they"
                " must share a vocabulary"
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
        self.eos_token_ids = resolve_eos(eos_token_id, self.tokenizer, self.vocab_size)
        self._is_eos = np.zeros(self.vocab_size, dtype=bool)
        self._is_eos[list(self.eos_token_ids)] = True
        self.stop_strings = resolve_stop_strings(stop_strings, self.tokenizer)
        self.missing_eos_score, self.cap_truncates, self.temperature = (
            missing_eos_score,
            cap_truncates,
            float(temperature),
        )
        self.action_mask = action_mask
        pad = getattr(self.tokenizer, "pad_token_id", None)
        self.pad_token_id = int(pad) if pad is not None and pad < self.vocab_size else 0

    def _room(self, max_new_tokens: int) -> int:
        positions = [m for m in (facts_of(self.model).max_positions, facts_of(self.reference).max_positions) if m]
        return max(min(positions) - max_new_tokens, 1) if positions else 2**31

    def as_reference(self) -> AbstractContextManager[Any]:
        """Inside, `reference` is the reference: a peft model's adapter is off."""
        return nullcontext() if self.adapter is None else self.adapter.disable_adapter()  # type: ignore[operator]

    # -- where a text ends, and what it is worth ----------------------------------------------------
    def text_of(self, response: Sequence[int]) -> str:
        """The response as the reward sees it: no EOS, no special tokens, cut before a stop string."""
        ids = response[:-1] if len(response) and response[-1] in self.eos_token_ids else response
        if self.tokenizer is None:
            return " ".join(map(str, ids))
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        cuts = [at for stop in self.stop_strings if (at := text.find(stop)) >= 0]
        return text[: min(cuts)] if cuts else text

    def ends(
        self, input_ids: np.ndarray, prompt_lengths: np.ndarray, lengths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where texts end, and the one place that says so.

        Args:
            input_ids: int64 (B, L); prompt_lengths, lengths: int64 (B,), with at least one response token.

        Returns:
            (ended, capped), bool (B,): by an EOS or a stop string; by the length cap alone.
        """
        ended = self._is_eos[input_ids[np.arange(len(lengths)), lengths - 1]]
        if self.stop_strings:
            for row in np.flatnonzero(~ended):
                text = str(
                    self.tokenizer.decode(input_ids[row, prompt_lengths[row] : lengths[row]], skip_special_tokens=True)
                )
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
