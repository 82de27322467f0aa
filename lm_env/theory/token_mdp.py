"""Token MDPs small enough to enumerate, with the exact optimum of E[score] - beta KL(pi || pi_ref).

An episode starts from one start token, takes one token a step and ends at EOS or at `horizon`
tokens.  All theory is float64, by enumeration, and again by backward recursion.

Shapes: N trajectories, T horizon, V vocabulary, S states, numbered as in `prefix_tree`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch

from lm_env.errors import ConfigurationError
from lm_env.objective.rewards import call_reward, final_scores
from lm_env.objective.wrapping import Causal
from lm_env.theory.prefix_tree import (
    TableLM,
    Trajectories,
    VocabTokenizer,
    backward_recursion,
    count_states,
    enumerate_trajectories,
    gibbs_rule,
    logsumexp,
    read_only,
)
from lm_env.theory.results import ExactEvaluation, Optimum
from lm_env.validation import check_number

__all__ = ["ExactEvaluation", "Optimum", "TableLM", "TokenMDP", "VocabTokenizer"]

_LOGITS_PER_BATCH = 1 << 22  # 32 MB of float64

Policy: TypeAlias = np.ndarray | torch.Tensor | Callable[..., Any]
"""Logits (S, V), or a causal LM: `policy(input_ids=(B, L)).logits` (B, L, V)."""


@dataclass(frozen=True, eq=False)
class TokenMDP:
    """A vocabulary, a horizon, a reference policy, and a score per finished response or per token.

    Args:
        tokens: V different words.
        horizon: T, the most tokens of a response; V^T at most 2 million.
        reference_logits: (S, V), finite or -inf (a token the reference never takes); stored as
            normalized float64 logprobs, read-only.
        score: response token ids, the EOS included if there is one -> a finite number; of a dense MDP one number
            per token, each depending on the ids up to it alone.
        eos_id: index of EOS in `tokens`; also the start token, which is the whole prompt.
        missing_eos_score: REPLACES the score of a response without EOS; None pays the score.  Where tokens
            were paid before, the last one takes that back.
        dense: each token is paid its own number, at once, instead of the whole score at the last token.

    Raises:
        ConfigurationError: on construction, naming the argument.
        RewardError, RewardValueError: on first use of the scores, if `score` raises or is not finite; a
            ConfigurationError if the scores of a dense MDP depend on later tokens.
    """

    tokens: tuple[str, ...]
    horizon: int
    reference_logits: np.ndarray
    score: Callable[[Sequence[int]], float | Sequence[float]]
    eos_id: int
    missing_eos_score: float | None = None
    dense: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(self.tokens))
        if not 0 <= self.eos_id < len(self.tokens):
            raise ConfigurationError(f"eos_id {self.eos_id} is not an index into the {len(self.tokens)} tokens")
        if self.missing_eos_score is not None and not math.isfinite(self.missing_eos_score):
            raise ConfigurationError(f"missing_eos_score is {self.missing_eos_score}: pass a finite number or None")
        shape = (count_states(len(self.tokens), self.horizon), len(self.tokens))
        logits = np.array(self.reference_logits, dtype=np.float64)
        if logits.shape != shape:
            raise ConfigurationError(f"reference_logits have the shape {logits.shape}: (states, vocabulary) is {shape}")
        if not np.isfinite(logits.max(axis=1)).all():  # NaN and inf pass through max
            raise ConfigurationError("reference_logits: each row needs a finite entry, and the others finite or -inf")
        object.__setattr__(self, "reference_logits", read_only(logits - logsumexp(logits)[:, None]))
        _ = self.tokenizer  # checks the tokens

    @classmethod
    def t0(cls) -> TokenMDP:
        """A, B, C, EOS; at most 3 tokens; score: number of B, + 1/2 if AB occurs; no EOS: -1 instead."""
        after = [(0.1, 0.5, 0.2, 0.2), (0.3, 0.1, 0.3, 0.3), (0.25, 0.25, 0.1, 0.4), (0.25, 0.25, 0.25, 0.25)]
        rows = [(0.4, 0.3, 0.2, 0.1), *after, *(4 * after)]  # a state's last token is (state - 1) % 4
        return cls(("A", "B", "C", "EOS"), 3, np.log(rows), _t0_score, eos_id=3, missing_eos_score=-1.0)

    @classmethod
    def random(
        cls,
        seed: int,
        vocab_size: int = 6,
        horizon: int = 3,
        missing_eos_score: float | None = -1.0,
        dense: bool = False,
    ) -> TokenMDP:
        """Standard normal reference logits; score: normal weights of each (position, token) and adjacent pair.

        Dense, each token is paid its own weight and that of the pair it completes, so that every text
        has the same score, and the MDP the same optimum, as without `dense`.
        """
        rng = np.random.default_rng(seed)
        logits = rng.standard_normal((count_states(vocab_size, horizon), vocab_size))
        unary = rng.standard_normal((horizon, vocab_size)).tolist()  # lists: faster for a few tokens
        pair = rng.standard_normal((vocab_size, vocab_size)).tolist()

        def score(ids: Sequence[int]) -> float:
            at = sum(weights[token] for weights, token in zip(unary, ids, strict=False))
            return float(at + sum(pair[token][following] for token, following in itertools.pairwise(ids)))

        def token_scores(ids: Sequence[int]) -> list[float]:
            pairs = [0.0, *(pair[token][following] for token, following in itertools.pairwise(ids))]
            return [weights[token] + extra for weights, token, extra in zip(unary, ids, pairs, strict=False)]

        words = (*(f"w{i}" for i in range(vocab_size - 1)), "EOS")
        chosen = token_scores if dense else score
        return cls(words, horizon, logits, chosen, vocab_size - 1, missing_eos_score, dense)

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    @property
    def start_token(self) -> int:
        return self.eos_id

    @cached_property
    def tokenizer(self) -> VocabTokenizer:
        return VocabTokenizer(self.tokens, self.tokens[self.eos_id])

    @property
    def reward(self) -> Callable[..., Any]:
        """`score` of each response, before `missing_eos_score`, which the environment pays; causal if dense."""
        return Causal(self._reward) if self.dense else self._reward

    def _reward(
        self, prompts: list[str], responses: list[str], response_ids: Sequence[Sequence[int]]
    ) -> list[float | Sequence[float]]:
        return [self.score(ids) for ids in response_ids]

    @cached_property
    def enumeration(self) -> Trajectories:
        """The N trajectories with the states they pass and where they end."""
        return enumerate_trajectories(self.vocab_size, self.horizon, self.eos_id)

    def reference_model(self, dtype: torch.dtype = torch.float32) -> TableLM:
        """The reference policy, frozen."""
        return self.policy_model(dtype).requires_grad_(False)

    def policy_model(self, dtype: torch.dtype = torch.float32) -> TableLM:
        """A trainable table that starts at the reference."""
        return TableLM(self.vocab_size, self.horizon, torch.tensor(self.reference_logits), dtype)

    def trajectories(self) -> tuple[np.ndarray, np.ndarray]:
        """All N responses: token ids (N, T) int64, padded with EOS, and lengths (N,), both read-only."""
        return self.enumeration.tokens, self.enumeration.lengths

    def ended(self) -> np.ndarray:
        """(N,) bool: which trajectories end by EOS."""
        return self.enumeration.ended

    def scores(self) -> np.ndarray:
        """(N,) float64: the score that is paid for each trajectory."""
        if self.missing_eos_score is None:
            return self.raw_scores()
        return np.where(self.ended(), self.raw_scores(), self.missing_eos_score)

    def raw_scores(self) -> np.ndarray:
        """(N,) float64: `score` of each trajectory, before `missing_eos_score`."""
        return self._raw_scores[0]

    def step_scores(self) -> np.ndarray:
        """(N, T) float64: what each token of each trajectory is paid, 0 in the padding."""
        return final_scores(self.raw_step_scores(), self.enumeration.last, self.ended(), self.missing_eos_score)

    def raw_step_scores(self) -> np.ndarray:
        """(N, T) float64: the same before `missing_eos_score`."""
        return self._raw_scores[1]

    def trajectory_logprobs(self, policy: Policy) -> np.ndarray:
        """logprob (N,) float64, nats, of each trajectory under logits (S, V) or a causal LM.

        A model is run in batches, without gradients, in the train or eval mode that it is in.

        Raises:
            ConfigurationError: the logits have another shape.
        """
        e = self.enumeration
        if isinstance(policy, np.ndarray | torch.Tensor):
            table = policy.detach().cpu().double() if isinstance(policy, torch.Tensor) else policy
            logits = np.asarray(table, dtype=np.float64)
            if logits.shape != self.reference_logits.shape:
                raise ConfigurationError(
                    f"policy logits have the shape {logits.shape}: pass {self.reference_logits.shape}"
                )
            step = (logits - logsumexp(logits)[:, None])[e.states, e.tokens]
        else:
            step = self._model_logprobs(policy)
        return np.where(e.real, step, 0.0).sum(axis=1)

    def optimum(self, beta: float) -> Optimum:
        """The optimum by enumeration: every trajectory weighs pi_ref exp(score / beta).

        Raises:
            ConfigurationError: beta is not a positive finite number.
        """
        check_number("beta", beta, low=0.0, above=True)
        e = self.enumeration
        ref = self.reference_logits
        step = np.where(e.real, ref[e.states, e.tokens], 0.0)
        weights = (step + self.step_scores() / beta)[:, ::-1].cumsum(axis=1)[:, ::-1]  # the token at t and all after it
        soft_q = np.full(ref.shape, -np.inf)  # Q / beta + log pi_ref
        np.logaddexp.at(soft_q, (e.states[e.real], e.tokens[e.real]), weights[e.real])
        live = e.reachable(len(ref))
        log_z = np.zeros(len(ref))
        log_z[live] = logsumexp(soft_q[live])
        policy = np.where(live[:, None], soft_q - log_z[:, None], ref)
        return self._optimum(beta, weights[:, 0] - log_z[0], beta * log_z, policy)

    def soft_recursion(self, beta: float) -> Optimum:
        """The same optimum by the soft Bellman recursion, and trajectories by its policy's products."""
        check_number("beta", beta, low=0.0, above=True)
        policy, value = backward_recursion(
            self.enumeration, self.reference_logits, self.step_scores(), gibbs_rule(beta)
        )
        return self._optimum(beta, self.trajectory_logprobs(policy), value, policy)

    def evaluate(self, policy: Policy, beta: float) -> ExactEvaluation:
        """The exact figures of a policy (logits (S, V) or a causal LM); KL is inf off the reference's support."""
        return self.evaluate_trajectories(self.trajectory_logprobs(policy), beta)

    def evaluate_trajectories(self, logprobs: np.ndarray, beta: float) -> ExactEvaluation:
        """The same of logprobs (N,) of the trajectories."""
        best = self.optimum(beta)
        pi = np.exp(logprobs)
        score = float(pi @ self.scores())
        kl = self._kl(logprobs)
        objective = score - beta * kl
        tv = float(np.abs(pi - best.distribution).sum() / 2)
        return ExactEvaluation(objective, best.J - objective, score, kl, tv, float(pi @ self.ended()))

    def _optimum(self, beta: float, logprobs: np.ndarray, value: np.ndarray, policy: np.ndarray) -> Optimum:
        pi = np.exp(logprobs)
        first = self.enumeration.tokens[:, 0]
        with np.errstate(over="ignore"):
            z = float(np.exp(value[0] / beta))
        return Optimum(
            Z=z,
            J=float(value[0]),
            R=float(pi @ self.scores()),
            KL=self._kl(logprobs),
            p_eos=float(pi @ self.ended()),
            distribution=pi,
            first_token=np.bincount(first, pi, self.vocab_size),
            value=value,
            policy_logits=policy,
        )

    def _kl(self, logprobs: np.ndarray) -> float:
        """KL(pi || pi_ref) over trajectories, 0 log 0 = 0."""
        pi = np.exp(logprobs)
        ref_logprobs = self.trajectory_logprobs(self.reference_logits)
        taken = pi != 0
        return float((pi[taken] * (logprobs[taken] - ref_logprobs[taken])).sum())

    @torch.no_grad()
    def _model_logprobs(self, model: Callable[..., Any]) -> np.ndarray:
        """logprobs (N, T) float64 of the tokens, those at padding included."""
        tokens = torch.tensor(self.enumeration.tokens)
        parameter = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
        out = []
        for chunk in tokens.split(max(1, _LOGITS_PER_BATCH // (self.horizon * self.vocab_size))):
            inputs = torch.cat([torch.full_like(chunk[:, :1], self.start_token), chunk[:, :-1]], dim=1)
            logits = model(input_ids=inputs if parameter is None else inputs.to(parameter.device)).logits
            if logits.shape != (*chunk.shape, self.vocab_size):
                raise ConfigurationError(
                    f"the model's logits have the shape {tuple(logits.shape)}: "
                    f"a vocabulary of {self.vocab_size} needs {(*chunk.shape, self.vocab_size)}"
                )
            logprobs = torch.log_softmax(logits.cpu().double(), -1)
            out.append(logprobs.gather(-1, chunk[..., None])[..., 0])
        return torch.cat(out).numpy()

    @cached_property
    def _raw_scores(self) -> tuple[np.ndarray, np.ndarray]:
        """(the scores of the trajectories (N,), the same token by token (N, T))."""
        tree = self.enumeration
        ids = [row[:length].tolist() for row, length in zip(tree.tokens, tree.lengths, strict=True)]
        prompts = [self.tokens[self.start_token]] * len(ids)
        responses = self.tokenizer.batch_decode(ids)
        scores = call_reward(self.reward, prompts, responses, {"response_ids": ids})
        if scores.spans:
            raise ConfigurationError("the score of a TokenMDP is a number, or one per token, not a list of Spans")
        steps = scores.on_tokens(tree.lengths.tolist(), lambda _: ())
        table = np.zeros_like(self.reference_logits)
        table[tree.states[tree.real], tree.tokens[tree.real]] = steps[tree.real]
        differ = tree.real & ~np.isclose(table[tree.states, tree.tokens], steps, rtol=1e-9, atol=1e-9)
        if differ.any():
            row, t = (int(i) for i in np.argwhere(differ)[0])
            raise ConfigurationError(
                f"the score of token {t} in {responses[row]!r} depends on what follows it: a dense MDP pays each"
                " token for the ids up to it alone"
            )
        return read_only(scores.totals()), read_only(steps)


def _t0_score(ids: Sequence[int]) -> float:
    return list(ids).count(1) + 0.5 * ((0, 1) in itertools.pairwise(ids))  # A is 0, B is 1
