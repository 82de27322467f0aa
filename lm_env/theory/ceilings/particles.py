"""Sequential Monte Carlo for the ceiling, where plain samples of the reference are too few.

Particles are unfinished texts, N of them in each independent run.  They grow token by token, sampled from the
reference.  A twist psi estimates, for each text so far, the mean of exp(score / beta) over its continuations.  At each
token a particle's weight is multiplied by psi(text with the new token) / psi(text before it), and at the end of the
text by exp(score / beta) / psi.  When the effective sample size of a run falls below N / 2, its particles are resampled
in proportion to their weights, so that computation goes to promising texts.  The product of the mean weights is an
unbiased estimate of Z = E_ref[exp(score / beta)] for every twist; a good twist makes its variance smaller.

Sources: Del Moral 2004, "Feynman-Kac Formulae", theorem 7.4.2, for the unbiasedness; Zhao et al. 2024
(arXiv:2404.17546) for language models.

Shapes: P prompts, R runs per prompt, N particles per run, K = P R N particles in all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm

from lm_env.data.prompts import Prompt
from lm_env.errors import RewardValueError
from lm_env.generation.decoders import Decoder, make_decoder
from lm_env.generation.sampling import sample
from lm_env.models.inspection import evaluating
from lm_env.objective.scoring import paid_scores
from lm_env.objective.task import Task
from lm_env.theory.ceilings.reference_samples import check_unmasked, sample_reference_scores
from lm_env.theory.ceilings.tilting import Ceiling, assemble, ceiling
from lm_env.validation import check_integer, check_number

__all__ = ["ParticleRuns", "Twist", "particle_ceiling", "run_particles"]

Twist = Callable[[Sequence[Prompt], Sequence[Sequence[int]]], np.ndarray]
"""`twist(prompts, responses)`: float (B,), in units of the score, of unfinished responses, token ids of at least 1:
an estimate of beta log E_ref[exp(score / beta) | prompt, response so far], up to a constant of each prompt."""


@dataclass(frozen=True, eq=False)
class ParticleRuns:
    """The estimates of independent runs of sequential Monte Carlo."""

    log_z: np.ndarray
    """float64 (P, R): the logarithm of each run's unbiased estimate of Z."""
    score: np.ndarray
    """float64 (P, R): each run's estimate of E*[score]."""
    particles: int
    """N."""


def run_particles(
    task: Task,
    prompts: Sequence[Prompt],
    twist: Twist,
    beta: float,
    *,
    particles: int = 64,
    runs: int = 8,
    seed: int = 0,
    slots: int = 512,
    progress: str | None = None,
) -> ParticleRuns:
    """Estimate Z and E*[score] of each prompt by sequential Monte Carlo with the reference as proposal.

    Args:
        twist: see `Twist`; with a twist of zeros this is plain sampling, weighted at the end.
        beta: weight of the KL penalty, score per nat.
        particles: N; the runs are independent.
        slots: about how many texts are decoded at a time; all runs of a prompt are decoded together, whatever their
            size.
        progress: the label of a progress bar over the prompts; None shows none.

    Raises:
        ConfigurationError: a number cannot work, or the task masks tokens, so that the optimum is no tilted reference.
        RewardError, RewardValueError: the reward function failed, or the twist gave no finite numbers.
    """
    check_number("beta", beta, low=0.0, above=True)
    for name, value in (("particles", particles), ("runs", runs), ("slots", slots)):
        check_integer(name, value)
    check_unmasked(task)
    generator = torch.Generator().manual_seed(check_integer("seed", seed, low=0))
    rng = np.random.default_rng([seed, 1])
    together = max(1, slots // (particles * runs))
    log_z, score = [], []
    with (
        torch.no_grad(),
        task.as_reference(),
        evaluating(task.reference),
        tqdm(total=len(prompts), desc=progress, unit="prompt", leave=False, disable=progress is None) as bar,
    ):
        for start in range(0, len(prompts), together):
            part = prompts[start : start + together]
            swarm = _Swarm(task, part, beta, particles, runs)
            while swarm.alive.any():
                swarm.advance(twist, generator)
                swarm.resample(rng)
            found = swarm.results()
            log_z.append(found[0])
            score.append(found[1])
            bar.update(len(part))
    return ParticleRuns(np.concatenate(log_z), np.concatenate(score), particles)


def particle_ceiling(
    task: Task,
    prompts: Sequence[Prompt],
    twist: Twist,
    *,
    particles: int = 64,
    runs: int = 8,
    samples: int = 96,
    seed: int = 0,
    highest: float | None = None,
    progress: str | None = None,
) -> Ceiling:
    """The ceiling by sequential Monte Carlo at the task's beta; J_ref is that of plain samples.

    J* is jackknifed over the runs.  `Ceiling.ess` is the effective sample size of plain sampling whose
    estimate of Z would have the same variance as that of the runs.

    Args:
        twist, particles, runs, seed, progress: see `run_particles`; at least 2 runs.
        samples: plain samples of the reference per prompt.
        highest: see `ceiling`.

    Raises:
        ConfigurationError, RewardError, RewardValueError: see `run_particles`.
    """
    check_integer("runs", runs, low=2)
    beta = task.kl.beta
    found = run_particles(task, prompts, twist, beta, particles=particles, runs=runs, seed=seed, progress=progress)
    plain = sample_reference_scores(task, prompts, samples, seed=seed, progress=progress)
    # Runs are averaged as samples are: with "scores" of beta log Z, the mean of exp(score / beta) is that of Z.
    of_runs = ceiling(beta * found.log_z, beta)
    shares = np.exp(found.log_z - found.log_z.max(1, keepdims=True))
    score = (shares * found.score).sum(1) / shares.sum(1)
    spread = (runs / of_runs.ess - 1) / (runs - 1)  # the squared relative error of the mean of Z
    return assemble(
        beta=beta,
        samples=np.full(len(prompts), particles * runs),
        J_ref=plain.mean(1),
        J=of_runs.J_by_prompt,
        J_plain=of_runs.J_plain,
        score=score,
        ess=1 / (spread + 1 / (particles * runs)),
        highest=highest,
    )


class _Swarm:
    """The particles of some prompts: K rows, those of a run side by side, and the runs of a prompt."""

    def __init__(self, task: Task, prompts: Sequence[Prompt], beta: float, particles: int, runs: int) -> None:
        self.task, self.beta, self.particles, self.runs = task, beta, particles, runs
        owner = np.repeat(np.arange(len(prompts)), runs * particles)
        self.prompts = [prompts[i] for i in owner.tolist()]
        own = np.array([len(p.ids) for p in prompts])
        width = int(own.max()) + task.max_new_tokens
        first = np.full((len(prompts), width), task.pad_token_id, dtype=np.int64)
        for row, prompt in zip(first, prompts, strict=True):
            row[: len(prompt.ids)] = prompt.ids
        self.ids = first[owner]
        self.prompt_lengths = own[owner]
        self.lengths = self.prompt_lengths.copy()
        self.alive = np.ones(len(owner), dtype=bool)
        self.values = np.zeros(len(owner))  # the twist of each text, and in the end its score
        self.log_weights = np.zeros(len(owner))
        self.log_z = np.zeros(len(owner) // particles)
        self.decoder: Decoder = make_decoder(task.reference, len(prompts), width)
        self.logits = self.decoder.start(np.arange(len(prompts)), first, own).logits[torch.from_numpy(owner)]
        self.decoder.keep(owner)  # each particle goes on from a copy of its prompt's cache
        self.slots = np.arange(len(owner))  # of the particles that are alive, by row

    def advance(self, twist: Twist, generator: torch.Generator) -> None:
        """Write one token of each particle that is alive, and weigh all particles."""
        rows = np.flatnonzero(self.alive)
        tokens, _ = sample(self.logits, self.task.temperature, generator)
        self.ids[rows, self.lengths[rows]] = tokens.cpu().numpy()
        self.lengths[rows] += 1
        ended, capped = self.task.ends(self.ids[rows], self.prompt_lengths[rows], self.lengths[rows])
        done = ended | capped
        values = np.empty(len(rows))
        if done.any():
            finished = ended[done] | (not self.task.cap_truncates)
            prompts, texts = self._texts(rows[done])
            values[done] = paid_scores(self.task, prompts, texts, ended[done], finished).totals
        if not done.all():
            values[~done] = checked_twist(twist(*self._texts(rows[~done])), int((~done).sum()))
        self.log_weights[rows] += (values - self.values[rows]) / self.beta
        self.values[rows] = values
        self.alive[rows[done]] = False

    def resample(self, rng: np.random.Generator) -> None:
        """Draw the particles of runs with unequal weights anew, and read the next token of those that are alive."""
        weights = self.log_weights.reshape(-1, self.particles)
        shares = np.exp(weights - weights.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        chosen = np.arange(len(self.ids)).reshape(weights.shape)
        unequal = np.flatnonzero((shares**2).sum(1) * self.particles > 2)  # an effective sample size below N / 2
        for run in unequal:
            points = (np.arange(self.particles) + rng.random()) / self.particles  # systematic resampling
            drawn = np.searchsorted(np.cumsum(shares[run]), points)
            chosen[run] = run * self.particles + np.minimum(drawn, self.particles - 1)
            self.log_z[run] += _log_mean_exp(weights[run])
            weights[run] = 0
        rows = chosen.reshape(-1)
        self.ids, self.lengths, self.values = self.ids[rows], self.lengths[rows], self.values[rows]
        self.alive = self.alive[rows]
        living = np.flatnonzero(self.alive)
        if not len(living):
            return
        kept = self.slots[rows[living]]
        if len(kept) != len(self.decoder.lengths) or (kept != np.arange(len(kept))).any():
            self.decoder.keep(kept)
        self.slots[living] = np.arange(len(living))
        last = self.ids[living, self.lengths[living] - 1]
        self.logits = self.decoder.step(np.arange(len(living)), last).logits

    def results(self) -> tuple[np.ndarray, np.ndarray]:
        """log Z and E*[score], float64 (P, R) each, once no particle is alive."""
        weights = self.log_weights.reshape(-1, self.particles)
        log_z = self.log_z + np.array([_log_mean_exp(row) for row in weights])
        shares = np.exp(weights - weights.max(1, keepdims=True))
        score = (shares * self.values.reshape(shares.shape)).sum(1) / shares.sum(1)
        return log_z.reshape(-1, self.runs), score.reshape(-1, self.runs)

    def _texts(self, rows: np.ndarray) -> tuple[list[Prompt], list[list[int]]]:
        """The prompts and the responses so far of some particles."""
        spans = zip(self.prompt_lengths[rows].tolist(), self.lengths[rows].tolist(), strict=True)
        responses = [self.ids[row, p:n].tolist() for row, (p, n) in zip(rows.tolist(), spans, strict=True)]
        return [self.prompts[row] for row in rows.tolist()], responses


def checked_twist(values: np.ndarray, count: int) -> np.ndarray:
    """The values of a twist as float64 (count,); RewardValueError where they are not finite or not so many."""
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (count,) or not np.isfinite(values).all():
        raise RewardValueError(f"the twist must give {count} finite numbers for {count} texts, not {values!r:.80}")
    return values


def _log_mean_exp(values: np.ndarray) -> float:
    return float(np.logaddexp.reduce(values) - np.log(len(values)))
