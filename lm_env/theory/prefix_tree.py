"""The tree of all token prefixes: its numbering, its paths, recursion over it, a table LM and a tokenizer for it.

Shapes: B rows, L positions, N paths, T horizon, V vocabulary, S = sum_{p<T} V^p states.  A state is
a prefix of response tokens, numbered level by level: the prefix of p tokens that read as the base-V
number k is (V^p - 1) / (V - 1) + k, so the empty one is 0 and the child of s by token a is V s + a + 1.
Prefixes that go on after EOS have a number too, and are never reached.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from transformers.modeling_outputs import CausalLMOutput

from lm_env.errors import ConfigurationError, InvalidPromptError

__all__ = [
    "Rule",
    "TableLM",
    "Trajectories",
    "VocabTokenizer",
    "backward_recursion",
    "count_states",
    "enumerate_trajectories",
    "gibbs_rule",
    "logsumexp",
    "read_only",
]

MAX_TRAJECTORIES = 2_000_000

Rule: TypeAlias = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(Q (n, V), log pi_ref (n, V)) -> (log pi (n, V), state values (n,))."""


class Trajectories(NamedTuple):
    """Every response, shortest first; read-only arrays."""

    tokens: np.ndarray  # (N, T) int64, padded with EOS
    lengths: np.ndarray  # (N,) int64
    states: np.ndarray  # (N, T) int64, the state before each token
    real: np.ndarray  # (N, T) bool, False at padding
    ended: np.ndarray  # (N,) bool, by EOS

    @property
    def last(self) -> np.ndarray:
        """(N, T) bool: the last token of each."""
        return np.arange(self.tokens.shape[1]) == self.lengths[:, None] - 1

    def reachable(self, num_states: int) -> np.ndarray:
        """(S,) bool: the prefixes without EOS, where a token is still to be taken."""
        reachable = np.zeros(num_states, dtype=bool)
        reachable[self.states[self.real]] = True
        return reachable


class TableLM(torch.nn.Module):
    """A causal LM with one row of logits per prefix: what every other policy approximates.

    `input_ids` are the start token (any id) and then the response; rows are right-padded, so a mask
    is not needed.  Its hidden state is the one-hot state, so a linear value head on it is a table.

    Args:
        vocab_size, horizon: V >= 2 and T >= 1, with V^T at most 2 million.
        logits: (S, V), copied; zeros (the uniform policy) by default.

    Raises:
        ConfigurationError: sizes out of range, or logits of another shape.
    """

    kv_cache = False  # a table needs none

    def __init__(
        self, vocab_size: int, horizon: int, logits: torch.Tensor | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.horizon = horizon
        self.hidden_size = count_states(vocab_size, horizon)
        shape = (self.hidden_size, vocab_size)
        if logits is not None and tuple(logits.shape) != shape:
            raise ConfigurationError(f"logits have the shape {tuple(logits.shape)}: (states, vocabulary) is {shape}")
        table = torch.zeros(shape, dtype=dtype) if logits is None else logits.detach().to(dtype, copy=True)
        self.table = torch.nn.Parameter(table)

    def states(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The state (B, L) int64 before each next token; 0 from position T on, where no token follows."""
        states = torch.zeros_like(input_ids)
        for p in range(1, min(input_ids.shape[1], self.horizon)):
            states[:, p] = states[:, p - 1] * self.vocab_size + input_ids[:, p] + 1
        return states

    def forward(
        self,
        input_ids: torch.Tensor,
        *,
        output_hidden_states: bool = False,
        logits_to_keep: int | torch.Tensor = 0,
        **_: Any,
    ) -> CausalLMOutput:
        """Logits (B, L, V) for `input_ids` (B, L) int64 in [0, V), the first column aside.

        Other keywords of a transformers forward (masks, positions, cache) are accepted and ignored.
        `hidden_states` is a tuple of one one-hot (B, L, S), on demand.  `logits_to_keep` as in
        transformers: the last k positions, 0 for all, or an index tensor.
        """
        states = self.states(input_ids)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden = None
        if output_hidden_states:
            one_hot = torch.zeros(*states.shape, self.hidden_size, dtype=self.table.dtype, device=states.device)
            hidden = (one_hot.scatter_(2, states[..., None], 1.0),)
        logits = torch.nn.functional.embedding(states[:, keep], self.table)
        return CausalLMOutput(logits=logits, hidden_states=hidden)


class VocabTokenizer:
    """Words separated by spaces, with the attributes of a transformers tokenizer that lm_env reads.

    The pad token is EOS: masks come from lengths.  There is no BOS.
    """

    bos_token_id = None

    def __init__(self, tokens: Iterable[str], eos: str) -> None:
        self.tokens = tuple(tokens)
        self._ids = {token: i for i, token in enumerate(self.tokens)}
        if len(self._ids) != len(self.tokens) or any(token.split() != [token] for token in self.tokens):
            raise ConfigurationError(f"tokens {self.tokens}: each must be a different word without spaces")
        if eos not in self._ids:
            raise ConfigurationError(f"eos {eos!r} is not one of the tokens {self.tokens}: add it")
        self.eos_token = self.pad_token = eos
        self.eos_token_id = self.pad_token_id = self._ids[eos]

    def __len__(self) -> int:
        return len(self.tokens)

    def __call__(self, texts: str | Sequence[str], add_special_tokens: bool = True) -> dict[str, Any]:
        """`{"input_ids": ids}` of one text, or a list of them for a list; there are no special tokens to add."""
        return {"input_ids": self._encode(texts) if isinstance(texts, str) else [self._encode(text) for text in texts]}

    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        return [self.tokens[int(i)] for i in ids]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        words = self.convert_ids_to_tokens(ids)
        return " ".join(word for word in words if not (skip_special_tokens and word == self.eos_token))

    def batch_decode(self, sequences: Iterable[Iterable[int]], skip_special_tokens: bool = True) -> list[str]:
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    def _encode(self, text: str) -> list[int]:
        unknown = [word for word in text.split() if word not in self._ids]
        if unknown:
            raise InvalidPromptError(f"text {text!r} holds {unknown[0]!r}: use words of the vocabulary {self.tokens}")
        return [self._ids[word] for word in text.split()]


def count_states(vocab_size: int, horizon: int) -> int:
    """S.

    Raises:
        ConfigurationError: V < 2, T < 1, or V^T above 2 million, too many to enumerate.
    """
    if vocab_size < 2 or horizon < 1:
        raise ConfigurationError(f"vocab_size {vocab_size} and horizon {horizon}: at least 2 and 1 are needed")
    if horizon * math.log(vocab_size) > math.log(MAX_TRAJECTORIES):
        raise ConfigurationError(
            f"{vocab_size}^{horizon} responses are too many to enumerate: at most {MAX_TRAJECTORIES}, "
            "so shrink the vocabulary or the horizon"
        )
    return sum(vocab_size**p for p in range(horizon))


def enumerate_trajectories(vocab_size: int, horizon: int, eos_id: int) -> Trajectories:
    """Every response that ends at its first EOS or at `horizon` tokens."""
    finished = []
    lengths = []
    prefixes = np.zeros((1, 0), dtype=np.int64)
    for length in range(1, horizon + 1):
        next_tokens = np.tile(np.arange(vocab_size), len(prefixes))
        grown = np.column_stack([prefixes.repeat(vocab_size, axis=0), next_tokens])
        done = (next_tokens == eos_id) | (length == horizon)
        finished.append(np.pad(grown[done], ((0, 0), (0, horizon - length)), constant_values=eos_id))
        lengths.append(np.full(done.sum(), length))
        prefixes = grown[~done]
    tokens = np.concatenate(finished)
    length_of = np.concatenate(lengths)
    states = np.zeros_like(tokens)
    for t in range(1, horizon):
        states[:, t] = states[:, t - 1] * vocab_size + tokens[:, t - 1] + 1
    real = np.arange(horizon) < length_of[:, None]
    ended = tokens[np.arange(len(tokens)), length_of - 1] == eos_id
    return Trajectories(*map(read_only, (tokens, length_of, states, real, ended)))


def backward_recursion(
    tree: Trajectories, ref_logprobs: np.ndarray, step_scores: np.ndarray, rule: Rule, gamma: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """log pi (S, V) and values (S,) of a rule applied to every state, the last ones first.

    Q(s, a) = r(s, a) + gamma V(child), with V = 0 after the end.  States past EOS keep the reference's row
    and the value 0.

    Args:
        ref_logprobs: (S, V) logprobs of the reference.
        step_scores: (N, T), what each token of each trajectory is paid, a function of the state and the token.
    """
    logprobs = ref_logprobs.copy()
    value = np.zeros(len(ref_logprobs))
    q = np.zeros_like(ref_logprobs)
    q[tree.states[tree.real], tree.tokens[tree.real]] = step_scores[tree.real]
    reachable = tree.reachable(len(ref_logprobs))
    horizon = tree.tokens.shape[1]
    vocab_size = ref_logprobs.shape[1]
    for t in reversed(range(horizon)):
        level = np.unique(tree.states[tree.real[:, t], t])
        if t < horizon - 1:
            children = level[:, None] * vocab_size + np.arange(vocab_size) + 1
            q[level] += gamma * np.where(reachable[children], value[children], 0.0)
        logprobs[level], value[level] = rule(q[level], ref_logprobs[level])
    return logprobs, value


def gibbs_rule(beta: float) -> Rule:
    """pi = pi_ref exp(Q / beta) / sum, V = beta log sum: the best response to its own future KL."""

    def rule(q: np.ndarray, ref_logprobs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits = ref_logprobs + q / beta
        log_z = logsumexp(logits)
        return logits - log_z[:, None], beta * log_z

    return rule


def logsumexp(x: np.ndarray) -> np.ndarray:
    """log sum exp over the last axis."""
    return np.logaddexp.reduce(x, axis=-1)


def read_only(array: np.ndarray) -> np.ndarray:
    """The same array, closed to writing."""
    array.setflags(write=False)
    return array
