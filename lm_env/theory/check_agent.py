"""check_agent: what Gymnasium's `check_env` is for environments, for agents.

Trains an agent on an enumerable MDP, whose optimum of E[score] - beta KL is known in closed form, and
reports how far from it the agent converged.  If it converged elsewhere, its policy is compared with the
exact fixed points of other known objectives, and the nearest one is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import numpy as np
from torch import nn

from lm_env.errors import ConfigurationError, LMEnvError, NonFiniteError
from lm_env.models.inspection import evaluating
from lm_env.objective.rewards import name_of
from lm_env.theory.objectives import Objective, fixed_point
from lm_env.theory.token_env import make_token_env
from lm_env.theory.token_mdp import TokenMDP
from lm_env.validation import check_integer, check_number

__all__ = ["AgentCheck", "check_agent", "parse_mdp"]

MAX_GAP = 5e-3
"""The largest gap of J to the optimum that passes, averaged over seeds, in units of the score's spread."""
MAX_TV = 0.02
"""The largest total variation between the text distributions that passes, averaged over seeds."""
SCORE_STD = 0.55
"""The standard deviation of a random MDP's scores.  It is well below 1, so that dividing by it shows: at 1 a
rescaled reward would be the reward."""
RECOGNIZED_TV = 0.1
"""An agent this near to another objective's fixed point, and at most a third as far from it as from the optimum, has
that objective.  (An honest agent that was stopped early lies between the two, at half the way or more.)"""
UNTRAINED_TV = 1e-4
"""An agent this near to the reference has not learned at all."""

EXPLANATIONS = {
    "entropy_bonus": "an entropy bonus is added to the objective: set its coefficient to 0",
    "gamma": "returns are discounted (gamma < 1): set gamma to 1",
    "k2_loss": "the KL penalty is k2 as a per-token loss, which does not credit tokens with the KL that follows: "
    "put k1 in the reward",
    "k3_loss": (
        "the KL penalty is k3 as a per-token loss (GRPO), whose fixed point is not the optimum: put k1 in the reward"
    ),
    "k3_loss_rescaled": "the KL penalty is k3 as a per-token loss, and the score is divided by its standard deviation "
    "(GRPO), so beta is in truth beta x std: put k1 in the reward, and leave the std out",
    "k3_loss_rescaled_by_length": "GRPO in full: k3 as a per-token loss, the score divided by its standard deviation "
    "(so beta is in truth beta x std), and each response's loss divided by its own length",
    "last_score_only": "of the scores per token only the last token's is maximized: sum the rewards of all tokens",
    "no_penalty": "the score of a missing EOS is forgotten",
    "reward_rescaled": "the reward is divided by its standard deviation or another number, so beta is in truth "
    "beta x std: leave the reward as it is (if KL is too small, training may have ended early, too)",
    "subtracted_penalty": "the score of a missing EOS is added to the score instead of replacing it",
    "unknown": "no known objective has its optimum there: it may not have converged",
    "untrained": "the policy still equals the reference: train `env.task.model`, or return the model that was trained, "
    "and look at the learning rate",
}

FAMILIES: tuple[tuple[Objective, str, tuple[float, ...]], ...] = (
    ("entropy_bonus", "entropy_coef", (0.01, 0.03, 0.1, 0.2, 0.4)),
    ("gamma", "gamma", (0.98, 0.9, 0.8, 0.7, 0.5)),
    ("reward_rescaled", "scale", (0.9, 0.7, 0.5, 0.35, 0.2, 0.1)),
    ("reward_rescaled", "scale", (1.1, 1.4, 2.0, 3.0, 5.0, 10.0)),
)
"""The objectives with a number of their own, and the grid on which it is sought, from small to large deviations."""

Train = Callable[[Any, int], nn.Module | None]
"""`train(env, seed)`: trains `env.task.model` in place, or returns the policy's causal LM."""


@dataclass(frozen=True)
class AgentCheck:
    """How an agent did, averaged over seeds; nats and units of the score."""

    agent: str
    mdp: str
    beta: float
    seeds: int
    J_star: float
    J: float
    gap: float
    R: float
    """E[score]."""
    KL: float
    tv: float
    passed: bool
    objective: str
    """`gibbs` for the optimum, the objective recognized, `untrained`, or `unknown`."""

    def sentence(self) -> str:
        """The verdict in words."""
        if self.passed:
            return "PASS: the agent maximizes E[score] - beta KL"
        return f"FAIL: the agent rests at '{self.objective}': {EXPLANATIONS[self.objective]}"

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def check_agent(
    train: Train, *, name: str = "agent", mdp: str | TokenMDP = "t0", beta: float = 0.5, seeds: int = 3
) -> AgentCheck:
    """Train an agent `seeds` times and compare the policy with the closed form.

    Args:
        train: `train(env, seed)` gets a `TextGenerationEnv` over the MDP whose model is a table, and
            trains `env.task.model` (or returns another causal LM over the same tokens).
        mdp: `"t0"`, `"random:SEED"`, `"dense:SEED"` (the same, with a score at each token), or a `TokenMDP`.
        beta: weight of the KL penalty.

    Raises:
        ConfigurationError: an unknown MDP, no positive beta, seeds < 1, or a `train` that is no function or
            returns what is no causal LM over the MDP's tokens, does not take (env, seed), or raises (chained).
        NonFiniteError: the trained policy's logprobs are NaN.
    """
    if not callable(train):
        raise ConfigurationError(f"train must be a function train(env, seed), not a {type(train).__name__}")
    check_integer("seeds", seeds)
    check_number("beta", beta, low=0.0, above=True)
    label, mdp = (mdp, parse_mdp(mdp)) if isinstance(mdp, str) else ("given", mdp)
    logprobs = []
    for seed in range(seeds):
        env = make_token_env(mdp, beta=beta)
        logprobs.append(_text_logprobs(mdp, _trained(train, env, seed), env.task.model))
    best = mdp.optimum(beta)
    results = [mdp.evaluate_trajectories(row, beta) for row in logprobs]
    mean = {field: float(np.mean([getattr(r, field) for r in results])) for field in ("J", "gap", "R", "KL", "tv")}
    spread = float(np.std(mdp.scores())) or 1.0
    objective = _recognize(mdp, beta, np.exp(logprobs).mean(0))
    near = mean["gap"] <= MAX_GAP * max(1.0, spread) and mean["tv"] <= MAX_TV
    # Some slips move the optimum by less than an honest agent's noise, so an agent that rests exactly at another
    # objective's fixed point fails although it is near.
    passed = near and (objective == "unknown" or mean["tv"] <= MAX_TV / 2)
    objective = "gibbs" if passed else objective
    return AgentCheck(name, label, beta, seeds, J_star=best.J, passed=passed, objective=objective, **mean)


def parse_mdp(text: str) -> TokenMDP:
    """`t0`; `random:SEED`, vocabulary 5 to 8, horizon 3 or 4, drawn from the seed; or `dense:SEED`, the same MDP
    with its scores paid token by token, which has the same optimum.

    The draw of `TokenMDP.random` with the reference's logits halved, so that no text that matters is too
    rare to be met, and the scores scaled to a standard deviation of `SCORE_STD` under it: the question is
    what an agent optimizes, not whether it finds a text of probability 1e-6.
    """
    if text == "t0":
        return TokenMDP.t0()
    kind, _, seed = text.partition(":")
    if kind not in ("random", "dense") or not seed.isdecimal():
        raise ConfigurationError(f"mdp must be 't0', 'random:SEED' or 'dense:SEED', not {text!r}")
    rng = np.random.default_rng(int(seed))
    vocab = int(rng.integers(5, 9))
    horizon = int(rng.integers(3, 5))
    drawn = TokenMDP.random(int(seed), vocab_size=vocab, horizon=horizon, dense=kind == "dense")
    flatter = replace(drawn, reference_logits=drawn.reference_logits / 2)
    reference = np.exp(flatter.trajectory_logprobs(flatter.reference_logits))
    scores = flatter.raw_scores()
    scale = SCORE_STD / float(np.sqrt(reference @ (scores - reference @ scores) ** 2))
    return replace(flatter, score=lambda ids: (scale * np.asarray(drawn.score(ids))).tolist())


def _trained(train: Train, env: Any, seed: int) -> object:
    """What `train` returned; its own errors name the function and the signature that is expected."""
    try:
        return train(env, seed)
    except LMEnvError:  # says by itself what is wrong, and what to do
        raise
    except (Exception, SystemExit) as error:
        raised = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigurationError(
            f"{name_of(train)} raised {raised} when it was called as train(env, seed): correct it, so that it takes an"
            " environment and an integer and returns the trained causal LM, or None if it is env.task.model"
        ) from error


def _text_logprobs(mdp: TokenMDP, returned: object, given: nn.Module) -> np.ndarray:
    """logprob (N,) of each text under the trained policy: the model that `train` returned, else the given one."""
    policy = given if returned is None else returned
    if not isinstance(policy, nn.Module):
        raise ConfigurationError(
            f"train returned a {type(policy).__name__}: return the trained causal LM, or None if it is env.task.model"
        )
    try:
        with evaluating(policy):
            logprobs = mdp.trajectory_logprobs(policy)
    except ConfigurationError:  # another vocabulary
        raise
    except Exception as error:  # whatever a foreign module raises
        raise ConfigurationError(
            f"train returned a {type(policy).__name__} that does not run as a causal LM over the MDP's"
            f" {mdp.vocab_size} tokens: model(input_ids=...).logits raised {type(error).__name__}: {error}"
        ) from error
    if np.isnan(logprobs).any():
        raise NonFiniteError("the trained policy's logprobs are NaN: training diverged; lower the learning rate")
    return logprobs


def _recognize(mdp: TokenMDP, beta: float, probabilities: np.ndarray) -> str:
    """The objective whose fixed point is nearest in total variation to the policy (N,).

    The policy is the mean over seeds: where a loss is noisy at its fixed point, the mean is nearer than each seed is.
    """

    def distance(objective: Objective, **options: float) -> float:
        try:
            table = fixed_point(mdp, beta, objective, **options)
        except ConfigurationError:  # this MDP has no such fixed point
            return np.inf
        return _total_variation(probabilities, np.exp(mdp.trajectory_logprobs(table)))

    if _total_variation(probabilities, np.exp(mdp.trajectory_logprobs(mdp.reference_logits))) <= UNTRAINED_TV:
        return "untrained"
    sought = {objective for objective, *_ in FAMILIES} - {"reward_rescaled"}
    found = [(distance(objective), objective) for objective in get_args(Objective) if objective not in sought]
    for objective, option, values in FAMILIES:
        found.append((_least(lambda x, o=objective, k=option: distance(o, **{k: x}), values), objective))  # type: ignore[misc]
    # A beta that is a little off means training that stopped early, and is not to be taken for a slip.
    found.append((_least(lambda x: distance("reward_rescaled", scale=x), (0.9, 0.95, 1.0, 1.05, 1.1)), "gibbs"))
    nearest, name = min(found)
    clear = name != "gibbs" and nearest <= min(RECOGNIZED_TV, distance("gibbs") / 3)
    return name if clear else "unknown"


def _least(distance: Callable[[float], float], values: Sequence[float]) -> float:
    """The least distance over an interval, by a grid that is refined around its best point."""
    grid = np.asarray(values)
    for _ in range(4):
        distances = [distance(float(x)) for x in grid]
        best = int(np.argmin(distances))
        grid = np.linspace(grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)], 5)
    return min(distances)


def _total_variation(probabilities: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(probabilities - other).sum() / 2)
