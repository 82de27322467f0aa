"""How far the ceiling of `lm_env.theory` can be believed: against the enumerated optimum, and in three ways on text.

    python benchmarks/ceiling_coverage.py                      # 50 random token MDPs, minutes
    python benchmarks/ceiling_coverage.py --text --particles   # held-out openings of lm_env/Sentiment-v0, minutes

On each MDP the reference writes to 20 prompts (all alike, so that the closed form is that of each), and the estimate
is compared with the enumerated J*: how often the 95% interval over prompts (Student's t) holds it, and the error in
units of what can be gained, J* - J_ref.  `trusted` counts the MDPs whose gate lets the number pass; the last columns
are of those alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lm_env.data.prompts import Prompt
from lm_env.generation.backend import Sampling
from lm_env.generation.generate import LocalBackend
from lm_env.objective.scoring import episode_scores, raw_scores
from lm_env.objective.task import Task
from lm_env.tasks import sentiment
from lm_env.theory import (
    Ceiling,
    TokenMDP,
    Twist,
    ceiling,
    make_token_env,
    particle_ceiling,
    sample_reference_scores,
    task_ceiling,
    upper_bound,
)

PROMPTS = 20
T95 = 2.093
"""The 97.5% point of Student's t with 19 degrees of freedom."""
Method = Callable[[Task, Sequence[Prompt], int], Ceiling]
"""(task, prompts, seed) -> the ceiling."""


def so_far(task: Task, slope: float = 1.0) -> Twist:
    """The score that the text would get if it ended here, times a slope."""
    return lambda prompts, responses: slope * raw_scores(task.reward, task, prompts, responses)


METHODS: dict[str, Method] = {
    "96 samples": lambda task, prompts, seed: task_ceiling(task, prompts, samples=96, most=96, seed=seed),
    "96 to 1536 samples": lambda task, prompts, seed: task_ceiling(task, prompts, samples=96, seed=seed),
    "8 x 64 particles": lambda task, prompts, seed: particle_ceiling(
        task, prompts, so_far(task), particles=64, runs=8, seed=seed
    ),
}


@dataclass
class Found:
    """One estimate beside the truth, in units of the gain."""

    covered: tuple[bool, bool, bool]
    """Whether the 95% intervals of J*, E*[score] and KL* hold the truth."""
    error: float
    trusted: bool
    samples: float


def compare(mdp: TokenMDP, beta: float, method: Method, seed: int) -> Found:
    """Estimate the ceiling of an MDP and hold it against the closed form."""
    task = make_token_env(mdp, beta=beta).task
    exact = mdp.optimum(beta)
    found = method(task, [task.prompts[0]] * PROMPTS, seed)
    J_ref = mdp.evaluate(mdp.reference_logits, beta).J
    pairs = ((found.J, exact.J), (found.score, exact.R), (found.KL, exact.KL))
    covered = [abs(estimate.mean - truth) <= T95 * estimate.se for estimate, truth in pairs]
    return Found(
        covered=(covered[0], covered[1], covered[2]),
        error=(found.J.mean - exact.J) / (exact.J - J_ref),
        trusted=found.trusted,
        samples=float(found.samples.mean()),
    )


def coverage(betas: Sequence[float], mdps: int) -> None:
    """Print the table of coverage."""
    print("| beta | method | samples | J* | E*[score] | KL* | error of J* | trusted | its J* | its largest error |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for beta in betas:
        for name, method in METHODS.items():
            found = [compare(TokenMDP.random(seed), beta, method, seed) for seed in range(mdps)]
            good = [f for f in found if f.trusted]
            shares = [f"{np.mean([f.covered[i] for f in found]):.0%}" for i in range(3)]
            error = f"{np.mean([f.error for f in found]):+.1%} ({max(abs(f.error) for f in found):.0%} at most)"
            own = (
                f"{np.mean([f.covered[0] for f in good]):.0%} | {max(abs(f.error) for f in good):.1%}"
                if good
                else " | "
            )
            print(
                f"| {beta:g} | {name} | {np.mean([f.samples for f in found]):.0f} | {' | '.join(shares)} | {error}"
                f" | {len(good)} | {own} |",
                flush=True,
            )


def own_stopping(beta: float, mdps: int) -> None:
    """Print the error of J* where each prompt gets more samples until its own effective sample size is 20."""
    errors = []
    for seed in range(mdps):
        mdp = TokenMDP.random(seed)
        probabilities = np.exp(mdp.trajectory_logprobs(mdp.reference_logits))
        rng = np.random.default_rng(seed)
        drawn = rng.choice(mdp.scores(), size=(2 * PROMPTS, 1536), p=probabilities / probabilities.sum())
        rows = []
        for row in drawn:
            n = 96
            while n < len(row) and ceiling(row[None, :n], beta).ess[0] < 20:
                n *= 2
            rows.append(row[:n])
        gain = mdp.optimum(beta).J - float(probabilities @ mdp.scores())
        errors.append((ceiling(rows, beta).J.mean - mdp.optimum(beta).J) / gain)
    spread = np.std(errors) / np.sqrt(mdps)
    print(
        f"beta {beta:g}, each prompt stopped on its own: error of J* {np.mean(errors):+.1%} +- {spread:.1%} of the gain"
    )


def text(openings: int, samples: int, most: int, beta: float, with_particles: bool) -> None:
    """Print what more and more samples, and particles, say of held-out openings of the sentiment task."""
    task = sentiment.make(split="test", max_prompt_tokens=40, beta=beta).task
    prompts = task.prompts.head(openings)
    print("| method | texts in all | J* | plain | E*[score] | KL* | ESS: median, least, below 10 | trusted | s |")
    print("|---|---|---|---|---|---|---|---|---|")
    started = time.perf_counter()

    def show(name: str, found: Ceiling) -> None:
        ess = f"{np.median(found.ess):.0f}, {found.ess.min():.1f}, {(found.ess < 10).mean():.0%}"
        print(
            f"| {name} | {found.samples.sum()} | {found.J} | {found.J_plain:.3f} | {found.score} | {found.KL} | {ess} |"
            f" {'yes' if found.trusted else 'no'} | {time.perf_counter() - started:.0f} |",
            flush=True,
        )

    scores = sample_reference_scores(task, prompts, samples)
    show(f"{samples} samples", ceiling(scores, beta))
    while 2 * scores.shape[1] <= most and not ceiling(scores, beta).trusted:
        size = scores.shape[1]
        scores = np.concatenate([scores, sample_reference_scores(task, prompts, size, seed=size)], axis=1)
        show(f"{2 * size} samples", ceiling(scores, beta))
    high = upper_bound(scores, beta, highest=1.0, rng=np.random.default_rng(0))
    print(f"| upper estimate by rejection | {scores.size} | {high} | | | | | | |", flush=True)
    if with_particles:
        started = time.perf_counter()
        slope = fitted_slope(task, prompts)
        show("8 x 32 particles", particle_ceiling(task, prompts, so_far(task, slope), particles=32, runs=8))


def fitted_slope(task: Task, prompts: Sequence[Prompt]) -> float:
    """The slope of the score on the score of the first half of the text, on 512 texts of the reference."""
    drawn = [prompts[i % len(prompts)] for i in range(512)]
    with task.as_reference():
        backend = LocalBackend(task, 128, model=task.reference)
        episodes = backend.generate(drawn, Sampling(torch.Generator().manual_seed(7))).episodes
    scores, _ = episode_scores(task, episodes)
    halves = [ids[: (len(ids) + 1) // 2] for ids in episodes.responses()]
    x = raw_scores(task.reward, task, drawn, halves)
    return float(np.cov(x, scores)[0, 1] / np.var(x))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--mdps", type=int, default=50)
    p.add_argument("--betas", type=float, nargs="+", default=[2.0, 1.0, 0.5], help="for the MDPs")
    p.add_argument("--text", action="store_true", help="the sentiment task instead of MDPs")
    p.add_argument("--beta", type=float, default=0.1, help="for the sentiment task")
    p.add_argument("--openings", type=int, default=234)
    p.add_argument("--samples", type=int, default=96, help="of the reference per opening, at the start")
    p.add_argument("--most", type=int, default=1536, help="and in the end, if the ceiling is still not to be trusted")
    p.add_argument("--particles", action="store_true", help="sequential Monte Carlo beside them")
    args = p.parse_args()
    if args.text:
        text(args.openings, args.samples, args.most, args.beta, args.particles)
    else:
        coverage(args.betas, args.mdps)
        for beta in args.betas:
            own_stopping(beta, args.mdps)


if __name__ == "__main__":
    main()
