"""A critic held against Monte-Carlo values, with intervals.

    python examples/audit_critic.py                                # PPO's critic on film reviews
    python examples/audit_critic.py --env lm_env/TokenMDP-v0       # beside the exact values as well
    python examples/audit_critic.py --plot audit.png

A critic that is right lies inside the 95% interval of the Monte-Carlo value in 95% of the states.
"""

from __future__ import annotations

import argparse
from typing import Any

import gymnasium
import numpy as np
import torch
from monte_carlo_values import Z95, Estimate, estimate, sample_returns

import lm_env
from agents import PPO
from lm_env.envs import SlotState, TextGenerationEnv
from lm_env.generation import sample
from lm_env.models.logprobs import restrict


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
