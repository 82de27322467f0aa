"""Exact ceilings, for tasks whose texts with a score other than 0 can be listed.

The optimum is pi* = pi_ref exp(score / beta) / Z.  Let w_1 ... w_n be beginnings of texts, none of which begins with
another.  If a text that begins with w_i scores s_i, and every other text scores 0, then for each prompt, with
p_i = pi_ref(w_i),

    Z = 1 + sum_i p_i (exp(s_i / beta) - 1),   J* = beta log Z,   E*[score] = sum_i p_i s_i exp(s_i / beta) / Z.

Source: Ziegler et al. 2019 (arXiv:1909.08593), equation 2.

Shapes: P prompts, W beginnings of all prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lm_env.data.episodes import text_episodes
from lm_env.models.logprobs import response_logprobs
from lm_env.objective.task import Task
from lm_env.theory.ceilings.tilting import Ceiling, assemble

__all__ = ["beginning_logprobs", "exact_ceiling"]


def beginning_logprobs(task: Task, rows: Sequence[tuple[Any, str, bool]]) -> np.ndarray:
    """log pi_ref of beginnings of responses, nats, float64 (W,).

    Args:
        rows: (the prompt, the beginning, whether the EOS follows it) of each.
    """
    eos = min(task.eos_token_ids)
    texts = task.tokenizer([text for _, text, _ in rows], add_special_tokens=False)["input_ids"]
    whole = [[*p.ids, *ids, *([eos] if ends else [])] for (p, _, ends), ids in zip(rows, texts, strict=True)]
    episodes = text_episodes([p for p, _, _ in rows], whole, [len(p.ids) for p, _, _ in rows])
    with task.as_reference():
        return response_logprobs(task.reference, episodes, task.temperature).astype(np.float64).sum(1)


def exact_ceiling(
    task: Task, beginnings: Sequence[Sequence[str]], scores: Sequence[Sequence[float]], *, ended: bool = False
) -> Ceiling:
    """The ceiling at the task's beta, without sampling.

    Args:
        beginnings: of each of the task's P prompts, the beginnings of responses that score; none begins with another.
        scores: the score of each of these beginnings.
        ended: the beginnings are whole responses, which the EOS follows.

    Returns:
        the `Ceiling`, with infinite effective sample sizes since nothing was sampled.
    """
    rows = [(p, text, ended) for p, texts in zip(task.prompts, beginnings, strict=True) for text in texts]
    logprobs = np.split(beginning_logprobs(task, rows), np.cumsum([len(texts) for texts in beginnings])[:-1])
    beta = task.kl.beta
    J, J_ref, score = np.zeros((3, len(beginnings)))
    for i, (log_p, paid) in enumerate(zip(logprobs, scores, strict=True)):
        s = np.asarray(paid, dtype=np.float64)
        rest = np.log1p(-min(float(np.exp(log_p).sum()), 1.0 - 1e-15))
        log_z = np.logaddexp.reduce([rest, *(log_p + s / beta)])
        J[i] = beta * log_z
        J_ref[i] = np.exp(log_p) @ s
        score[i] = np.exp(log_p + s / beta - log_z) @ s
    infinite = np.full(len(J), np.inf)
    return assemble(
        beta=float(beta),
        samples=np.zeros(len(J), dtype=np.int64),
        J_ref=J_ref,
        J=J,
        J_plain=float(J.mean()),
        score=score,
        ess=infinite,
        highest=None,
    )
