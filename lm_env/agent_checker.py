"""check_agent: what Gymnasium's `check_env` is for environments, for agents.

Trains an agent on an enumerable MDP, whose optimum of E[score] - beta KL is known in closed form, and
says how far from it the agent came to rest.  If it rests elsewhere, its policy is held against the
exact fixed points of known other objectives, and the nearest one is named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import numpy as np
from torch import nn

from lm_env.errors import ConfigurationError
from lm_env.objectives import Objective, fixed_point
from lm_env.tasks.token_mdp import make
from lm_env.token_mdp import TokenMDP

__all__ = ["AgentCheck", "check_agent", "parse_mdp"]

MAX_GAP = 5e-3
"""Of J to the optimum, averaged over seeds, in units of the score's spread."""
MAX_TV = 0.02
"""Total variation between the text distributions, averaged over seeds."""
RECOGNISED_TV = 0.1
"""An agent this near to another objective's fixed point, and at most half as far as from the optimum, has that one."""

EXPLANATIONS = {
    "entropy_bonus": "an entropy bonus is added to the objective: set its coefficient to 0",
    "gamma": "returns are discounted (gamma < 1): set gamma to 1",
    "k2_loss": "the KL penalty is k2 as a per-token loss, which does not credit tokens with the KL that follows",
    "k3_loss": (
        "the KL penalty is k3 as a per-token loss (GRPO), whose fixed point is not the optimum: put k1 in the reward"
    ),
    "k3_loss_rescaled": "the KL penalty is k3 as a per-token loss, and the score is divided by its standard deviation "
    "(GRPO), so beta is in truth beta x std: put k1 in the reward, and leave the std out",
    "k3_loss_rescaled_by_length": "GRPO in full: k3 as a per-token loss, the score divided by its standard deviation "
    "(so beta is in truth beta x std), and each response's loss divided by its own length",
    "no_penalty": "the score of a missing EOS is forgotten",
    "reward_rescaled": "the reward is divided by its standard deviation, so beta is in truth beta x std",
    "subtracted_penalty": "the score of a missing EOS is added to the score instead of replacing it",
}

VARIANTS: dict[str, tuple[dict[str, float], ...]] = {
    "entropy_bonus": tuple({"entropy_coef": c} for c in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)),
    "gamma": tuple({"gamma": 1 - c} for c in (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)),
}
"""What is tried of the objectives with a number of their own."""

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
    KL: float
    tv: float
    passed: bool
    objective: str
    """`gibbs` for the optimum, the objective recognised, or `unknown`."""

    def sentence(self) -> str:
        """The verdict in words."""
        if self.passed:
            return "PASS: the agent maximises E[score] - beta KL"
        reason = EXPLANATIONS.get(self.objective, "no known objective has its optimum there: it may not have converged")
        return f"FAIL: the agent rests at '{self.objective}': {reason}"

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
        mdp: `"t0"`, `"random:SEED"`, or a `TokenMDP`.
        beta: weight of the KL penalty.

    Raises:
        ConfigurationError: an unknown MDP, or seeds < 1.
    """
    if seeds < 1:
        raise ConfigurationError(f"seeds must be at least 1, not {seeds}")
    label, mdp = (mdp, parse_mdp(mdp)) if isinstance(mdp, str) else ("given", mdp)
    results, log_probs = [], []
    for seed in range(seeds):
        env = make(mdp=mdp, beta=beta)
        policy = train(env, seed)
        policy = env.task.model if policy is None else policy
        results.append(mdp.evaluate(policy, beta))
        log_probs.append(mdp.trajectory_logprobs(policy))
    mean = {field: float(np.mean([getattr(r, field) for r in results])) for field in ("J", "gap", "R", "KL", "tv")}
    spread = float(np.std(mdp.scores())) or 1.0
    objective = _recognise(mdp, beta, np.exp(log_probs))
    near = mean["gap"] <= MAX_GAP * max(1.0, spread) and mean["tv"] <= MAX_TV
    # Some slips move the optimum by less than an honest agent's noise: an agent at the very place of one has it.
    passed = near and (objective == "unknown" or mean["tv"] <= MAX_TV / 2)
    objective = "gibbs" if passed else objective
    return AgentCheck(name, label, beta, seeds, J_star=mdp.optimum(beta).J, passed=passed, objective=objective, **mean)


def parse_mdp(text: str) -> TokenMDP:
    """`t0`, or `random:SEED`: vocabulary 5 to 8, horizon 3 or 4, drawn from the seed.

    The random scores are spread over all texts as T0's are, so that beta is about as strong at every
    seed: the question is what an agent optimises, not whether it finds a text of probability 1e-5.
    """
    if text == "t0":
        return TokenMDP.t0()
    kind, _, seed = text.partition(":")
    if kind != "random" or not seed.isdecimal():
        raise ConfigurationError(f"mdp must be 't0' or 'random:SEED', not {text!r}")
    rng = np.random.default_rng(int(seed))
    vocab, horizon = int(rng.integers(5, 9)), int(rng.integers(3, 5))
    mdp = TokenMDP.random(int(seed), vocab_size=vocab, horizon=horizon)
    raw, scale = mdp.score, float(TokenMDP.t0().raw_scores().std() / mdp.raw_scores().std())
    return replace(mdp, score=lambda ids: scale * raw(ids))


def _recognise(mdp: TokenMDP, beta: float, probabilities: np.ndarray) -> str:
    """The objective whose fixed point is nearest to the policies (seeds, N) in total variation."""
    distances: dict[str, float] = {}
    for objective in get_args(Objective):
        for options in VARIANTS.get(objective, ({},)):
            try:
                table = fixed_point(mdp, beta, objective, **options)
            except ConfigurationError:  # this MDP has no such fixed point
                continue
            distance = _total_variation(probabilities, np.exp(mdp.trajectory_logprobs(table)))
            distances[objective] = min(distance, distances.get(objective, np.inf))
    nearest = min(distances, key=lambda name: distances[name])
    clear = nearest != "gibbs" and distances[nearest] <= min(RECOGNISED_TV, distances["gibbs"] / 2)
    return nearest if clear else "unknown"


def _total_variation(probabilities: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(np.asarray(probabilities) - other).sum(-1).mean() / 2)
