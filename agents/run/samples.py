"""Which texts of a training run are kept for reading, and what is kept of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from agents.learning.rollout import Rollout
from lm_env.data.pieces import tokens_from_ids
from lm_env.objective.task import Task

__all__ = ["PER_ROLLOUT", "Sample", "SampleChooser", "as_shown", "samples_as_markdown"]

PER_ROLLOUT = 8
"""Texts that are kept of a rollout."""


@dataclass(frozen=True)
class Sample:
    """One text of a rollout, as a line of samples.jsonl; None stands for a number that is not finite."""

    timesteps: int
    """Tokens that had been generated for training before this text; at 0 the policy had learned nothing."""
    prompt: str
    response: str
    """As the reward function read it."""
    score: float
    kl: float | None
    """log pi - log pi_ref of the response, nats."""
    tokens: list[str]
    """The response token by token, special tokens included."""
    log_ratios: list[float | None]
    """log pi - log pi_ref of each token, nats: how much likelier it has become."""
    parts: dict[str, float | None] = field(default_factory=dict)
    """Scores of the parts of a sum of rewards."""


class SampleChooser:
    """Chooses texts of rollouts, the same prompts again and again, so that early and late texts can be compared.

    Args:
        watched: prompts whose texts were kept before; default: those of the first rollout that is given.
    """

    def __init__(self, watched: Iterable[str] = ()) -> None:
        self._watched = list(watched)[:PER_ROLLOUT]

    @staticmethod
    def due(rollout: int) -> bool:
        """Whether texts of the rollout of this number, counted from 1, are kept: all of 32, then ever fewer.

        Of n rollouts these are about 16 log2(n / 8), for n from 16 on, so that a file grows ever more slowly.
        """
        every = 2 ** max(0, (rollout - 1).bit_length() - 5)
        return (rollout - 1) % every == 0

    def choose(self, prompts: Sequence[str]) -> list[int]:
        """Rows of a rollout with these prompts: one of each watched prompt that occurs, then others, all different."""
        first: dict[str, int] = {}
        for row, prompt in enumerate(prompts):
            first.setdefault(prompt, row)
        self._watched = self._watched or list(first)[:PER_ROLLOUT]
        again = [first.pop(prompt) for prompt in self._watched if prompt in first]
        return [*again, *first.values()][:PER_ROLLOUT]

    def take(self, task: Task, rollout: Rollout, timesteps: int) -> list[Sample]:
        """The texts of this rollout that are kept; `timesteps` as in `Sample`."""
        episodes, scored = rollout.episodes, rollout.scored
        samples = []
        for row in self.choose([prompt.text for prompt in episodes.prompts]):
            start, end = int(episodes.prompt_lengths[row]), int(episodes.lengths[row])
            ids = episodes.input_ids[row, :end].tolist()
            ratios = (scored.logprobs - scored.ref_logprobs)[row, : end - start]
            samples.append(
                Sample(
                    timesteps=timesteps,
                    prompt=episodes.prompts[row].text,
                    response=task.text_of(ids[start:]),
                    score=float(scored.scores[row]),
                    kl=_finite(float(scored.kl[row])),
                    tokens=tokens_from_ids(task.tokenizer, ids)[start:],
                    log_ratios=[_finite(round(float(ratio), 3)) for ratio in ratios],
                    parts={name: _finite(float(values[row])) for name, values in scored.parts.items()},
                )
            )
        return samples


def samples_as_markdown(samples: Sequence[Sample]) -> str:
    """A table, as TensorBoard shows it; what the texts hold of markup is shown and not obeyed."""
    lines = ["| prompt | response | score | KL, nats |", "|---|---|---|---|"]
    for sample in samples:
        kl = "not finite" if sample.kl is None else f"{sample.kl:.2f}"
        lines.append(f"| {as_shown(sample.prompt)} | {as_shown(sample.response)} | {sample.score:.3f} | {kl} |")
    return "\n".join(lines)


def as_shown(text: str) -> str:
    """The text in one line of Markdown: what Markdown or HTML would read as markup is written as entities."""
    marks = "&<>|`*_[]()!#~\\"
    return "".join(f"&#{ord(c)};" if c in marks else " " if c.isspace() else c for c in text)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
