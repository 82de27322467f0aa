"""PPO in a single file, in the manner of CleanRL, on `gymnasium.vector` alone.

    python examples/cleanrl_ppo.py

Nothing of `agents` is used: the environment is an ordinary vector environment with a flat Box as observation
(the length first, then the tokens), and the agent is an ordinary module.  One line is specific to text:
`publish` gives the environment the logprobs of the sampled tokens, so that the KL penalty in the reward needs
no second forward.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

import lm_env
from lm_env.theory.token_mdp import ExactEvaluation


@dataclass
class Args:
    """Hyperparameters."""

    env_id: str = "lm_env/TokenMDP-v0"
    beta: float = 0.5
    total_timesteps: int = 150_000
    num_envs: int = 128
    num_steps: int = 8
    minibatch_size: int = 256
    update_epochs: int = 4
    learning_rate: float = 0.03
    gamma: float = 1.0
    gae_lambda: float = 0.95
    clip_coef: float = 0.2
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    seed: int = 0


class Agent(nn.Module):
    """The environment's language model, and a linear critic on its hidden states."""

    def __init__(self, lm: nn.Module, hidden_size: int) -> None:
        super().__init__()
        self.lm = lm.eval()  # There is no dropout, so that the first ratio of an update is 1.
        self.critic = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.critic.weight)
        nn.init.zeros_(self.critic.bias)

    def forward(self, obs: Tensor, action: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(action, logprob, value), each (N,), of flat observations (N, 1 + L)."""
        length = obs[:, 0]
        ids = obs[:, 1 : 1 + int(length.max())]
        # The padding is on the right, where causal attention does not see it.
        out = self.lm(input_ids=ids, output_hidden_states=True)
        last = (torch.arange(len(ids)), length - 1)
        policy = torch.distributions.Categorical(logits=out.logits[last])
        action = policy.sample() if action is None else action
        return action, policy.log_prob(action), self.critic(out.hidden_states[-1][last]).squeeze(-1)


def main(args: Args) -> ExactEvaluation:
    """Train the environment's model; return how far it is from the optimum."""
    torch.manual_seed(args.seed)
    envs = gym.make_vec(
        args.env_id,
        num_envs=args.num_envs,
        beta=args.beta,
        flat=True,
        autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
    )
    env: Any = envs.unwrapped
    agent = Agent(env.task.model, env.task.model.hidden_size)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)

    shape = (args.num_steps, args.num_envs)
    obs = torch.zeros((*shape, envs.single_observation_space.shape[0]), dtype=torch.long)  # type: ignore[index]
    actions = torch.zeros(shape, dtype=torch.long)
    dones, logprobs, rewards, values, advantages = (torch.zeros(shape) for _ in range(5))

    next_obs, _ = envs.reset(seed=args.seed)
    iterations = args.total_timesteps // (args.num_steps * args.num_envs)
    for iteration in range(iterations):
        optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - iteration / iterations)

        for step in range(args.num_steps):
            obs[step] = torch.from_numpy(next_obs)
            with torch.no_grad():
                actions[step], logprobs[step], values[step] = agent(obs[step])
            env.publish(actions[step].numpy(), logprobs[step].numpy())
            next_obs, reward, terminated, truncated, _ = envs.step(actions[step].numpy())
            rewards[step] = torch.from_numpy(reward)
            dones[step] = torch.from_numpy(terminated | truncated)

        # Generalized advantage estimation runs backward through the rollout.
        with torch.no_grad():
            _, _, next_value = agent(torch.from_numpy(next_obs))
            advantage = torch.zeros(args.num_envs)
            for step in reversed(range(args.num_steps)):
                not_done = 1 - dones[step]
                delta = rewards[step] + args.gamma * not_done * next_value - values[step]
                advantage = delta + args.gamma * args.gae_lambda * not_done * advantage
                advantages[step] = advantage
                next_value = values[step]
        returns = advantages + values

        batch = [x.flatten(0, 1) for x in (obs, actions, logprobs, advantages, returns)]
        for _ in range(args.update_epochs):
            order = torch.from_numpy(np.random.permutation(args.num_steps * args.num_envs))
            for rows in order.split(args.minibatch_size):
                b_obs, b_actions, b_logprobs, b_advantages, b_returns = (x[rows] for x in batch)
                _, logprob, value = agent(b_obs, b_actions)
                b_advantages = (b_advantages - b_advantages.mean()) / (b_advantages.std() + 1e-8)
                ratio = (logprob - b_logprobs).exp()
                clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
                policy_loss = -torch.minimum(ratio * b_advantages, clipped * b_advantages).mean()
                loss = policy_loss + args.vf_coef * 0.5 * ((value - b_returns) ** 2).mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()
    envs.close()
    return lm_env.TokenMDP.t0().evaluate(env.task.model, args.beta)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=Args.total_timesteps)
    parser.add_argument("--beta", type=float, default=Args.beta)
    given = parser.parse_args()
    print(main(Args(total_timesteps=given.steps, beta=given.beta)))
