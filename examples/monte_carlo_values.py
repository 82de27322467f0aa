"""The value of a text so far by Monte Carlo, and a critic held against it.

    python examples/monte_carlo_values.py                                # PPO's critic on film reviews
    python examples/monte_carlo_values.py --env lm_env/TokenMDP-v0       # beside the exact values
    python examples/monte_carlo_values.py --plot audit.png

V(s) is the expected sum of the rewards from s on, KL penalty included.  `env.fork` makes n copies of s, the
policy continues each to its end, and the mean of their returns estimates V(s) without a bias, with a standard
error that says how well.  A critic that is right lies inside the 95% interval in 95% of the states.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch

import lm_env
from agents import PPO
from lm_env.envs import SlotState, TextGenerationEnv
from lm_env.generation import make_decoder, sample
from lm_env.models.logprobs import restrict

Z95 = 1.96  # half the width of a 95% interval, in standard errors


class Estimate(NamedTuple):
    """A mean and its standard error."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} +- {Z95 * self.error:.3f}"


def estimate(values: np.ndarray) -> Estimate:
    return Estimate(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))


def sample_returns(env: TextGenerationEnv, n: int, generator: torch.Generator) -> np.ndarray:
    """Sums of rewards (n,) of n continuations of the environment's episode by its own model."""
    task = env.task
    fork = env.fork(n).mdp  # its slots can be stepped in groups: here those that still run
    returns = np.zeros(n)
    running = np.arange(n)
    decoder = make_decoder(task.model, n, task.max_length)
    logits = decoder.start(running[:1], fork.input_ids[:1], fork.lengths[:1]).logits.repeat(n, 1)
    decoder.copy_row(decoder, 0, running, int(fork.lengths[0]))
    while True:
        logits = restrict(logits, fork.action_masks(running))
        tokens, logprobs = sample(logits, task.temperature, generator)
        fork.behavior.publish(tokens, logprobs, running)
        returns[running] += fork.step(running, tokens).rewards
        going = fork.running[running]
        tokens = tokens[torch.from_numpy(going)]
        running = running[going]
        if not len(running):
            return returns
        logits = decoder.step(running, tokens.cpu().numpy()).logits


def sample_states(env: TextGenerationEnv, count: int, generator: torch.Generator) -> list[SlotState]:
    """States on the policy's way: from each of `count` texts that it writes, one at random."""
    chosen = []
    for _ in range(count):
        env.reset()
        path = [env.save_state()]
        while path[-1].running:
            with torch.no_grad():
                logits = env.task.model(input_ids=torch.tensor(path[-1].ids[None])).logits[:, -1]
            tokens, _ = sample(restrict(logits, env.action_masks()[None]), env.task.temperature, generator)
            env.step(tokens[0])
            path.append(env.save_state())
        chosen.append(path[int(torch.randint(len(path) - 1, (), generator=generator))])
    return chosen


def exact_values(mdp: lm_env.TokenMDP, policy_logits: np.ndarray, beta: float) -> np.ndarray:
    """V (S,) of a policy (S, V) on a token MDP, by enumeration of all texts; 0 where no text goes on."""
    tree = mdp.enumeration
    logprobs = policy_logits - np.logaddexp.reduce(policy_logits, axis=1, keepdims=True)
    taken = np.where(tree.real, logprobs[tree.states, tree.tokens], 0.0)
    rewards = -beta * np.where(tree.real, taken - mdp.reference_logits[tree.states, tree.tokens], 0.0)
    rewards[np.arange(len(rewards)), tree.lengths - 1] += mdp.scores()
    probabilities = np.exp(taken[:, ::-1].cumsum(1)[:, ::-1])  # of the text from each state on
    returns = rewards[:, ::-1].cumsum(1)[:, ::-1]
    values = np.zeros(len(policy_logits))
    np.add.at(values, tree.states[tree.real], (probabilities * returns)[tree.real])
    return values


def state_number(mdp: lm_env.TokenMDP, state: SlotState) -> int:
    """The row of `exact_values` that belongs to a state."""
    number = 0
    for token in state.response:
        number = number * mdp.vocab_size + int(token) + 1
    return number


def audit_critic(
    env: TextGenerationEnv, critic: Any, states: list[SlotState], n: int, generator: torch.Generator
) -> tuple[np.ndarray, list[Estimate]]:
    """What a critic says of each state, and the Monte-Carlo value beside it.

    Args:
        critic: `critic(ids (1, L), lengths (1,)) -> value (1,)` of a text so far.
    """
    said, estimates = [], []
    for state in states:
        env.restore_state(state)
        estimates.append(estimate(sample_returns(env, n, generator)))
        said.append(float(critic(state.ids[None], np.array([len(state.ids)]))[0]))
    return np.array(said), estimates


def plot(path: str, values: np.ndarray, estimates: list[Estimate]) -> None:
    """A point for each state, with its interval; on the line the critic is right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    means = [e.mean for e in estimates]
    ends = [min(*means, *values), max(*means, *values)]
    figure, axes = pyplot.subplots(figsize=(4.5, 4), layout="constrained")
    axes.plot(ends, ends, "--", color="gray", linewidth=1)
    axes.errorbar(means, values, xerr=[Z95 * e.error for e in estimates], fmt="o", markersize=4)
    axes.set(xlabel="Monte-Carlo value, 95% interval", ylabel="critic's value")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main(args: argparse.Namespace) -> dict[str, Any]:
    env: Any = gymnasium.make(args.env)
    env.reset(seed=args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    agent = PPO(env, seed=args.seed).learn(args.timesteps)
    states = sample_states(env, args.states, generator)
    values, estimates = audit_critic(
        env, lambda ids, lengths: agent.policy.next_outputs(ids, lengths)[1].tolist(), states, args.samples, generator
    )
    means = np.array([e.mean for e in estimates])
    inside = np.abs(values - means) <= [Z95 * e.error for e in estimates]
    bias = estimate(values - means)
    for state, value, monte_carlo in list(zip(states, values, estimates, strict=True))[:8]:
        print(f"{value:+.3f} beside {monte_carlo}: {env.task.text_of(state.ids.tolist())!r}")
    print(f"the critic lies inside the interval in {inside.mean():.0%} of {len(states)} states")
    print(f"correlation {np.corrcoef(values, means)[0, 1]:.2f}, mean error {bias}")
    if args.env == "lm_env/TokenMDP-v0":
        mdp = lm_env.TokenMDP.t0()
        exact = exact_values(mdp, env.task.model.table.detach().double().numpy(), env.task.kl.beta)
        errors = means - exact[[state_number(mdp, state) for state in states]]
        right = np.abs(errors) <= [Z95 * e.error for e in estimates]
        print(f"the exact value lies inside the interval in {right.mean():.0%} of the states")
    if args.plot:
        plot(args.plot, values, estimates)
    return {"values": values, "estimates": estimates, "bias": bias}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--env", default="lm_env/Sentiment-v0", help="a registered id")
    parser.add_argument("--timesteps", type=int, default=6_000, help="tokens that PPO is trained for before the audit")
    parser.add_argument("--states", type=int, default=16)
    parser.add_argument("--samples", type=int, default=48, help="continuations of each state")
    parser.add_argument("--plot", help="write a scatter plot to this PNG file")
    parser.add_argument("--seed", type=int, default=0)
    main(parser.parse_args())
