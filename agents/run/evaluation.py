"""Evaluation: what an agent's texts score, how far from the reference they are, and what share of the optimum that is.

`agent.evaluate(prompts)` measures once; the callback `EvaluateTexts` measures every so often during a training.
Each text is sampled with uniform random numbers of its own, which depend on the seed alone.  So differences between two
evaluations are due to the weights, and none of the training's random generators is used.

Shapes: P prompts, n texts per prompt, B = P n texts, T response tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lm_env.data.episodes import Episodes
from lm_env.data.prompts import Prompt
from lm_env.distributed import processes_for
from lm_env.errors import ConfigurationError, RewardError
from lm_env.generation.backend import GenerationBackend, Sampling
from lm_env.objective.scoring import episode_scores, measure_episodes
from lm_env.objective.task import Task
from lm_env.theory.ceilings.estimate import Estimate
from lm_env.theory.ceilings.tilting import Ceiling
from lm_env.validation import check_integer, check_number

__all__ = ["Evaluation", "MoreMeasures", "choose_texts", "evaluate_texts", "over_prompts", "summarize", "write_samples"]

TEXTS = 256
"""Texts of an evaluation by default: at most 256 prompts, and as many texts per prompt as make at least 256."""


MoreMeasures = Callable[[Sequence[Prompt], Sequence[str]], Mapping[str, np.ndarray]]
"""(B prompts, B responses) -> name -> float (B,)."""

MORE = "more/"
"""Before the names of what such a function measures, among the other measurements."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The measurements of an agent on P prompts; standard errors are over prompts, or over texts for a single prompt.

    Scores and J are in the unit of the reward function, KL in nats per response unless another unit is named.
    """

    beta: float
    """Weight of the KL in J, score per nat."""
    prompts: int
    texts: int
    """The number of texts in all; it is the same for each prompt."""
    score: Estimate
    kl: Estimate
    """The KL to the reference, its next-token distributions summed exactly over the vocabulary."""
    kl_per_token: Estimate
    J: Estimate
    """score - beta KL, the objective that agents maximize."""
    perplexity: Estimate
    """Of the texts under the reference at temperature 1."""
    length: Estimate
    """Response tokens."""
    ended: Estimate
    """Share of the texts that an EOS or a stop string ended."""
    attained: Estimate | None
    """(J - J_ref) / (J* - J_ref); None if no ceiling was given."""
    J_by_prompt: np.ndarray
    """float (P,): `Ceiling.attained` takes it."""
    samples: list[dict[str, Any]]
    """One row for each text, in the prompts' order: `prompt`, `response`, `score`, `kl`."""
    more: dict[str, Estimate] = field(default_factory=dict)
    """What else was measured, such as the metrics of a registered task, by name."""

    def metrics(self) -> dict[str, float]:
        """The means by name, and under NAME_se the standard errors of `score`, `kl`, `J` and `attained`."""
        estimates = {
            "score": self.score,
            "kl": self.kl,
            "kl_per_token": self.kl_per_token,
            "J": self.J,
            "perplexity": self.perplexity,
            "length": self.length,
            "ended": self.ended,
        }
        if self.attained is not None:
            estimates["attained"] = self.attained
        estimates = {**self.more, **estimates}
        found = {name: estimate.mean for name, estimate in estimates.items()}
        errors = {f"{name}_se": estimates[name].se for name in ("score", "kl", "J", "attained") if name in estimates}
        return {**found, **errors}

    def __str__(self) -> str:
        lines = [
            f"{self.texts} texts to {self.prompts} prompts",
            f"score           {self.score}",
            f"KL, nats        {self.kl} per response, {self.kl_per_token} per token",
            f"J               {self.J}, score - {self.beta:g} KL",
        ]
        if self.attained is not None:
            lines.append(f"attained        {self.attained} of the optimum's gain over the reference")
        lines += [
            f"perplexity      {self.perplexity} under the reference",
            f"tokens          {self.length}",
            f"share ended     {self.ended}",
            *(f"{name:<15} {estimate}" for name, estimate in self.more.items()),
        ]
        return "\n".join(lines)


def evaluate_texts(
    task: Task,
    backend: GenerationBackend,
    prompts: Any = None,
    n: int | None = None,
    *,
    seed: int = 0,
    ceiling: Ceiling | None = None,
    more: MoreMeasures | None = None,
    divided: bool = False,
) -> Evaluation:
    """Sample responses to prompts with a backend, and measure them; the task is not changed.

    Args:
        backend: samples from the task's own model.
        prompts: anything that `lm_env.load_prompts` takes; None: the first 256 of the task's own.
        n: texts per prompt; None: as many as make at least 256 in all.
        seed: of the uniform random numbers that the texts are sampled with.
        ceiling: that of the same prompts, see `lm_env.theory.ceilings.task_ceiling`; J is then computed with its beta.
        more: measures the texts further, see `Evaluation.more`: a function of B prompts and B responses that returns B
            numbers under each name, such as `lm_env.tasks.TextTask.measure`.
        divided: several processes call this alike; each writes and measures its share of the texts, and all of them
            get the same result.

    Raises:
        ConfigurationError: n or the seed is out of range, or the ceiling has another number of prompts.
        InvalidPromptError: see `lm_env.load_prompts`.
        RewardError, RewardValueError: the reward function failed, in any of the processes.
    """
    chosen, n = choose_texts(task, prompts, n, ceiling)
    drawn = [prompt for prompt in chosen for _ in range(n)]
    sampling = Sampling.fixed(len(drawn), task.max_new_tokens, check_integer("seed", seed, low=0))
    together = processes_for(len(drawn), divided)
    share = together.share(len(drawn))

    def measured() -> dict[str, np.ndarray]:
        """The texts of this process's share, and what was measured of them."""
        own = sampling.of_share(together, len(drawn), task.max_new_tokens)
        episodes = backend.generate(drawn[share], own).episodes
        scores, ended = episode_scores(task, episodes)
        distances = measure_episodes(task, episodes)
        texts = {name: getattr(episodes, name) for name in ("input_ids", "prompt_lengths", "lengths")}
        found = {**texts, "scores": scores, "ended": ended, "kl": distances["full"], "surprise": distances["surprise"]}
        if more is not None:
            responses = [task.text_of(ids) for ids in episodes.responses()]
            found |= {f"{MORE}{name}": values for name, values in more(episodes.prompts, responses).items()}
        return found

    own = together.attempt(measured, RewardError)
    found = together.gather_rows(own, len(own["scores"]))
    ids, prompt_lengths, lengths = (found.pop(name) for name in ("input_ids", "prompt_lengths", "lengths"))
    episodes = Episodes(ids, prompt_lengths, lengths, drawn)
    further = {name.removeprefix(MORE): found.pop(name) for name in list(found) if name.startswith(MORE)}
    return summarize(task, episodes, **found, n=n, ceiling=ceiling, more=further)


def choose_texts(
    task: Task, prompts: Any, n: int | None, ceiling: Ceiling | None = None
) -> tuple[Sequence[Prompt], int]:
    """The prompts of an evaluation, and how many texts are written to each; arguments as in `evaluate_texts`."""
    if prompts is None:
        chosen: Sequence[Prompt] = task.prompts.head(TEXTS)
    elif isinstance(prompts, list | tuple) and prompts and isinstance(prompts[0], Prompt):
        chosen = prompts
    else:
        chosen = list(task.load_prompts(prompts, any_length=True))
    if ceiling is not None and ceiling.prompts != len(chosen):
        raise ConfigurationError(
            f"the ceiling is that of {ceiling.prompts} prompts and the evaluation has {len(chosen)}: make both of the"
            " same prompts"
        )
    return chosen, -(-TEXTS // len(chosen)) if n is None else check_integer("n", n)


def summarize(
    task: Task,
    episodes: Episodes,
    *,
    scores: np.ndarray,
    kl: np.ndarray,
    surprise: np.ndarray,
    ended: np.ndarray,
    n: int,
    ceiling: Ceiling | None,
    more: Mapping[str, np.ndarray] | None = None,
) -> Evaluation:
    """Means and errors of measured texts.

    Args:
        episodes: B = P n of them, those of one prompt in consecutive rows.
        scores, kl, surprise, ended: (B,).  KL and surprise, the sum of -log pi_ref over the response at temperature
            1, are in nats per response; `ended` is True where an EOS or a stop string ended the text.
        more: what else was measured, name -> (B,).
    """
    beta = check_number("beta", task.kl.beta if ceiling is None else ceiling.beta, low=0.0)
    J = scores - beta * kl if beta else scores
    tokens = episodes.response_lengths.astype(np.float64)
    by_prompt = J.reshape(-1, n).mean(1)

    def mean(values: np.ndarray) -> Estimate:
        return over_prompts(values, n)

    log_perplexity = Estimate.ratio(_clusters(surprise, n), _clusters(tokens, n))
    perplexity = float(np.exp(log_perplexity.mean))
    texts = zip(episodes.prompts, episodes.responses(), scores.tolist(), kl.tolist(), strict=True)
    return Evaluation(
        beta=beta,
        prompts=len(by_prompt),
        texts=len(episodes),
        score=mean(scores),
        kl=mean(kl),
        kl_per_token=Estimate.ratio(_clusters(kl, n), _clusters(tokens, n)),
        J=mean(J),
        perplexity=Estimate(perplexity, perplexity * log_perplexity.se),
        length=mean(tokens),
        ended=mean(ended),
        attained=None if ceiling is None else ceiling.attained(by_prompt),
        J_by_prompt=by_prompt,
        samples=[
            {"prompt": prompt.text, "response": task.text_of(ids), "score": score, "kl": nats}
            for prompt, ids, score, nats in texts
        ],
        more={name: mean(values) for name, values in (more or {}).items()},
    )


def over_prompts(values: np.ndarray, n: int) -> Estimate:
    """The mean of values (P n,) with its error over prompts; over texts where there is one prompt."""
    return Estimate.of(_clusters(values.astype(np.float64), n))


def _clusters(values: np.ndarray, n: int) -> np.ndarray:
    """The means of the prompts, (P,); or the texts themselves where there is one prompt."""
    return values if len(values) == n else values.reshape(-1, n).mean(1)


def write_samples(path: Path, samples: Sequence[dict[str, Any]], timesteps: int) -> None:
    """Add rows of `Evaluation.samples` to a file of JSON lines, each with `timesteps`, the tokens trained on before.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for row in samples:
            file.write(json.dumps({"timesteps": timesteps, **row}, ensure_ascii=False) + "\n")
