"""Small MDPs on which the expectation of any loss is exact: a batch has each group in proportion to its probability.

Every next-token probability of the sampling policy is a multiple of 1/4, so each response has a probability k / 4^T,
and there is a finite batch in which every group of G responses occurs in proportion to its probability.  A loss over
this batch is its own expectation, whatever it does with means, ratios or groups.

Shapes: N responses, T horizon, S states, V vocabulary, G responses to a prompt.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from lm_env.theory.credit import Credits
from lm_env.theory.loss.batch import LossBatch
from lm_env.theory.prefix_tree import TableLM, count_states
from lm_env.theory.token_mdp import TokenMDP

__all__ = ["MAX_GROUP_SIZE", "LossProblem", "make_problems"]

VOCABULARY = ("A", "B", "EOS")
HORIZON = 3
MAX_GROUP_SIZE = 3
"""A batch of all groups of three has 786,432 rows."""
STEP = 0.03
"""How far an off-policy policy's logits are from those that sampled, at most: the ratio of a whole response stays
within 0.83 and 1.2, and so within the usual range of clipping."""


@dataclass(frozen=True, eq=False)
class LossProblem:
    """An MDP, the policy that samples, and the policy under training."""

    mdp: TokenMDP
    behavior: np.ndarray
    """float64 (S, V): log-probabilities of the policy that samples, whose probabilities are multiples of 1/4."""
    policy: np.ndarray
    """float64 (S, V): log-probabilities of the policy under training, the same one or one a step further."""
    beta: float
    group_size: int

    @cached_property
    def credits(self) -> Credits:
        """The credits that right and wrong losses assign to each token."""
        return Credits(self.mdp, self.policy, self.beta, self.behavior, self.group_size)

    def batch(self) -> LossBatch:
        """Every group in proportion to its probability; with G = 1 a group is one response."""
        counts = np.rint(self.credits.probabilities * 4**self.mdp.horizon).astype(np.int64)
        responses = np.repeat(np.arange(len(counts)), counts)
        groups = np.indices((len(responses),) * self.group_size).reshape(self.group_size, -1).T
        return self._batch(responses[groups.reshape(-1)])

    def sampled_batch(self, groups: int, seed: int) -> LossBatch:
        """Groups drawn at random, for what must hold of every single batch."""
        rng = np.random.default_rng(seed)
        return self._batch(
            rng.choice(len(self.credits.probabilities), groups * self.group_size, p=self.credits.probabilities)
        )

    def _batch(self, rows: np.ndarray) -> LossBatch:
        mdp = self.mdp
        tree = mdp.enumeration
        credits = self.credits

        def tensor(values: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(values[rows])

        return LossBatch(
            model=self._table(self.policy),
            behavior=self._table(self.behavior).requires_grad_(False),
            reference=mdp.reference_model(torch.float64),
            tokens=tensor(tree.tokens),
            mask=tensor(tree.real),
            old_logprobs=tensor(credits.old_logprobs),
            ref_logprobs=tensor(credits.old_logprobs - credits.paid_k1),
            values=tensor(credits.values),
            scores=tensor(mdp.scores()),
            group_size=self.group_size,
            beta=self.beta,
            max_length=mdp.horizon,
            eos_id=mdp.eos_id,
        )

    def _table(self, logits: np.ndarray) -> TableLM:
        return TableLM(self.mdp.vocab_size, self.mdp.horizon, torch.from_numpy(logits.copy()), torch.float64)

    def objective_gradient(self) -> np.ndarray:
        """The exact gradient (S, V) of J = E[score] - beta KL in the policy's logits, by differentiation.

        It knows of no advantage and of no estimator: J is summed over all responses.
        """
        tree = self.mdp.enumeration
        table = torch.from_numpy(self.policy.copy()).requires_grad_(True)
        states, tokens, real = (torch.from_numpy(np.array(x)) for x in (tree.states, tree.tokens, tree.real))
        steps = torch.log_softmax(table, -1)[states, tokens]
        logprobs = torch.where(real, steps, 0.0).sum(1)
        ref_logprobs = torch.from_numpy(self.mdp.trajectory_logprobs(self.mdp.reference_logits))
        worth = torch.from_numpy(self.mdp.scores().copy()) - self.beta * (logprobs - ref_logprobs)
        (gradient,) = torch.autograd.grad((logprobs.exp() * worth).sum(), table)
        return gradient.numpy()


def make_problems(beta: float, group_size: int, seed: int) -> tuple[list[LossProblem], list[LossProblem]]:
    """(problems on-policy, the first of them at the reference; the last of them with policies a step further)."""
    rng = np.random.default_rng(seed)
    on_policy = []
    for at_reference in (True, False, False, False):
        behavior = _quarters(rng)
        reference = behavior if at_reference else rng.standard_normal(behavior.shape)
        on_policy.append(LossProblem(_mdp(rng, reference), behavior, behavior, beta, group_size))
    last = on_policy[-1]
    steps = rng.uniform(-STEP, STEP, (3, *last.behavior.shape))
    return on_policy, [replace(last, policy=_normalized(last.behavior + step)) for step in steps]


def _mdp(rng: np.random.Generator, reference: np.ndarray) -> TokenMDP:
    """Scores drawn from a normal distribution, one for each response."""
    eos = len(VOCABULARY) - 1
    scores: dict[tuple[int, ...], float] = {}
    for length in range(1, HORIZON + 1):
        for ids in itertools.product(range(len(VOCABULARY)), repeat=length):
            if eos not in ids[:-1] and (ids[-1] == eos or length == HORIZON):
                scores[ids] = float(rng.standard_normal())
    return TokenMDP(VOCABULARY, HORIZON, reference, lambda ids: scores[tuple(ids)], eos)


def _quarters(rng: np.random.Generator) -> np.ndarray:
    """log-probabilities (S, V): 1/2, 1/4 and 1/4, in an order that differs from state to state."""
    states = count_states(len(VOCABULARY), HORIZON)
    return np.log(rng.permuted(np.tile([0.5, 0.25, 0.25], (states, 1)), axis=1))


def _normalized(logits: np.ndarray) -> np.ndarray:
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
