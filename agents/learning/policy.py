"""The policy of the batched agents: a causal LM with a value head.

Shapes: B episodes, N all their response tokens (row after row), V vocabulary, D hidden.
"""

from __future__ import annotations

import copy
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lm_env.data.episodes import Episodes
from lm_env.errors import ConfigurationError, UnsupportedModelError
from lm_env.models import logprobs as model_logprobs
from lm_env.models.inputs import length_batches
from lm_env.models.inspection import device_of, evaluating, facts_of
from lm_env.models.logprobs import (
    chunked_logprobs,
    liger_logprobs,
    plain_forward,
    response_hidden,
    response_outputs,
    restrict,
    token_logprobs,
)
from lm_env.models.packing import packed_hidden, packed_outputs

Critic = Literal["shared", "separate", "none"] | nn.Module

__all__ = ["Critic", "TokenEvaluation", "ValueHeadPolicy"]


class TokenEvaluation(NamedTuple):
    """What the policy says of N response tokens."""

    logprobs: Tensor
    """(N,) nats."""
    values: Tensor
    """(N,) V of the state before each token."""
    logits: Tensor | None
    """(N, V), masked as in sampling, not yet divided by the temperature; None unless `keep_logits`."""


class ValueHeadPolicy(nn.Module):
    """pi(token | text) from the LM, V(text) from a linear head on hidden states.

    Args:
        lm: the causal LM under training.
        critic: `"shared"`: the head sits on the LM's own last hidden states; `"separate"`: on those
            of a copy of the LM, trained for it alone; a module with hidden states of its own; or
            `"none"`: no value function, V = 0.
        temperature: divides the logits.
        value_head: (D) -> (1).  Default: one of zeros (Ziegler et al. 2019): V = 0 everywhere, and no
            gradient into the trunk at the first step.
    """

    def __init__(
        self,
        lm: nn.Module,
        critic: Critic = "shared",
        temperature: float = 1.0,
        value_head: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        if isinstance(critic, str) and critic not in ("shared", "separate", "none"):
            raise ConfigurationError(f"critic must be 'shared', 'separate', 'none' or a model, not {critic!r}")
        self.lm = lm
        self.temperature = temperature
        if isinstance(critic, nn.Module):
            self.critic: nn.Module | None = critic
        else:
            self.critic = copy.deepcopy(lm) if critic == "separate" else None
        self.value_head = value_head
        if value_head is None and critic != "none":
            self.value_head = self._new_head()

    def _new_head(self) -> nn.Linear:
        size = facts_of(self.value_model).hidden_size
        if size is None:
            raise UnsupportedModelError(
                f"{type(self.value_model).__name__} returns no hidden_states for the value head: pass critic=, a model"
                " that does"
            )
        dtype = next((p.dtype for p in self.value_model.parameters() if p.dtype == torch.float64), torch.float32)
        head = nn.Linear(size, 1, dtype=dtype, device=device_of(self.value_model))
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return head

    @property
    def value_model(self) -> nn.Module:
        """The model whose hidden states the value head reads."""
        return self.lm if self.critic is None else self.critic

    @property
    def reads_trunk(self) -> bool:
        """Whether values come from the LM's own hidden states, and so with its logits for free."""
        return self.critic is None and self.value_head is not None

    def value_of(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., D) -> V (...,)."""
        assert self.value_head is not None
        return self.value_head(hidden.to(self.value_head.weight.dtype)).squeeze(-1)

    def evaluate(
        self,
        episodes: Episodes,
        allowed: np.ndarray | None = None,
        keep_logits: bool = False,
        packed: bool = False,
        liger: bool = False,
    ) -> TokenEvaluation:
        """Logprobs and values of all response tokens, one forward per sequence, padding excluded.

        Logits that would fill more than `LOGIT_BUDGET` are never in memory whole, unless they are to be
        kept or masked.

        Args:
            allowed: bool (N, V), see `Task.allowed_in`.
            packed: the LM reads all episodes side by side in one row, see `lm_env.models.packing`.
            liger: logprobs by Liger's kernel, unless logits are to be kept or masked; see `check_liger`.
        """
        facts = facts_of(self.lm)
        logits_wanted = int(episodes.response_lengths.sum()) * facts.vocab_size
        in_parts = facts.splits and (liger or logits_wanted > model_logprobs.LOGIT_BUDGET)
        if in_parts and allowed is None and not keep_logits:
            hidden, tokens = (packed_hidden if packed else response_hidden)(self.lm, episodes)
            logprobs_of = liger_logprobs if liger else chunked_logprobs
            logprobs = logprobs_of(self.lm, hidden, tokens, self.temperature)
            return TokenEvaluation(logprobs, self._values(episodes, hidden, logprobs), None)
        read = packed_outputs if packed else response_outputs
        outputs, tokens = read(self.lm, episodes, want_hidden=self.reads_trunk)
        logits = outputs.logits if allowed is None else restrict(outputs.logits, allowed)
        logprobs = token_logprobs(logits, tokens, self.temperature)
        return TokenEvaluation(logprobs, self._values(episodes, outputs.hidden, logprobs), logits)

    def _values(self, episodes: Episodes, hidden: Tensor | None, like: Tensor) -> Tensor:
        """V (N,), from the trunk's hidden states or the critic's; zeros without a value head."""
        if self.value_head is None:
            return torch.zeros_like(like)
        if self.critic is not None:
            hidden = _hidden(self.critic, episodes)
        assert hidden is not None
        return self.value_of(hidden)

    @torch.no_grad()
    def values(self, episodes: Episodes) -> np.ndarray:
        """V before each response token: float64 (B, T), 0 in the padding; batched by length."""
        result = np.zeros(episodes.response_mask().shape)
        if self.value_head is None:
            return result
        size = max(1, model_logprobs.LOGIT_BUDGET // facts_of(self.value_model).vocab_size)
        with evaluating(self.value_model):
            for rows in length_batches(episodes.lengths, size):
                part = episodes[rows]
                i, t = np.nonzero(part.response_mask())
                result[rows[i], t] = self.value_of(_hidden(self.value_model, part)).cpu().numpy()
        return result

    @torch.no_grad()
    def next_outputs(self, input_ids: np.ndarray, lengths: np.ndarray) -> tuple[Tensor, Tensor]:
        """(logits (B, V) of the next token, V (B,)) of right-padded texts, by full forwards."""
        device = device_of(self.lm)
        ids = torch.from_numpy(np.ascontiguousarray(input_ids[:, : int(lengths.max())])).to(device)
        at = (torch.arange(len(ids), device=device), torch.from_numpy(lengths - 1).to(device))
        with evaluating(self):
            outputs = plain_forward(self.lm, ids, at, want_hidden=self.reads_trunk)
            if self.value_head is None:
                return outputs.logits, torch.zeros(len(ids), device=device)
            hidden = (
                outputs.hidden if self.critic is None else plain_forward(self.critic, ids, at, want_hidden=True).hidden
            )
        assert hidden is not None
        return outputs.logits, self.value_of(hidden)


def _hidden(model: nn.Module, episodes: Episodes) -> Tensor:
    """The hidden states (N, D) before each response token, without logits where the model can do without."""
    if facts_of(model).splits:
        return response_hidden(model, episodes)[0]
    hidden = response_outputs(model, episodes, want_hidden=True)[0].hidden
    assert hidden is not None
    return hidden
