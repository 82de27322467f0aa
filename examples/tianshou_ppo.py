"""Tianshou 2's PPO, unmodified, with its collector and trainer, on text.

    pip install 'lm-env[contrib]'
    python examples/tianshou_ppo.py                                       # an MDP whose optimum is known
    python examples/tianshou_ppo.py --env lm_env/Sentiment-v0 --beta .05  # the embedded language model

Tianshou steps any subset of its environments.  `TextVectorEnv` makes them slots of one `TextMDP`, so that a step
is one batched forward.  `Actor` gives it the logprob of each token, for the KL in the reward.
"""

from __future__ import annotations

import argparse
from typing import Any

import gymnasium
import numpy as np
import torch

from agents.learning.policy import ValueHeadPolicy
from agents.sb3.sequences import Sequences
from lm_env import Task, TokenMDP
from lm_env.envs.mdp import TextMDP
from lm_env.envs.spaces import action_space, flatten
from lm_env.errors import MissingDependencyError
from lm_env.models.logprobs import plain_forward

try:
    from tianshou.algorithm import PPO
    from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory, LRSchedulerFactoryLinear
    from tianshou.data import Collector, VectorReplayBuffer
    from tianshou.env import BaseVectorEnv
    from tianshou.trainer import OnPolicyTrainerParams
except ImportError as error:
    raise MissingDependencyError("this example needs tianshou: pip install 'lm-env[contrib]'") from error


class TextVectorEnv(BaseVectorEnv):
    """Slots of one task with one model.  Observations are flat arrays (k, 1 + L), with the length first."""

    def __init__(self, task: Task, num_envs: int, logprob_fn: Any, seed: int) -> None:
        self.mdp = TextMDP(task, num_envs)
        self.env_num = num_envs
        self.is_async = False
        self.mdp.behavior.logprob_fn = logprob_fn
        for slot in range(num_envs):
            self.mdp.seed(slot, seed + slot)

    def get_env_attr(self, key: str, id: Any = None) -> list[Any]:
        return [{"action_space": action_space(self.mdp.task)}[key]] * self.env_num

    def reset(self, env_id: Any = None, **_: Any) -> tuple[np.ndarray, np.ndarray]:
        slots = np.arange(self.env_num) if env_id is None else env_id
        self.mdp.reset(slots)
        return flatten(self.mdp.observation(slots)), np.array([{} for _ in slots])

    def step(self, action: Any, id: Any = None) -> tuple[Any, ...]:
        result = self.mdp.step(id, action)
        infos = np.array([{"logprob": logprobs} for logprobs in result.info["logprob"]])
        return flatten(self.mdp.observation(id)), result.rewards, result.terminated, result.truncated, infos


class Actor(ValueHeadPolicy):
    """The language model and a value head, which Tianshou calls one after the other.

    It remembers the logits of the observations that it acted on last, for the environment's `logprob_fn`.
    """

    last_obs = np.zeros(0)

    def train(self, mode: bool = True) -> Actor:
        return super().train(False)  # There is no dropout, so that the first ratio of an update is 1.

    def outputs(self, obs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (n, V) of the next token and V (n,).  Rows that are prefixes of another row share its forward."""
        texts = Sequences.from_observations(obs[:, 1:], obs[:, 0])
        states = (torch.from_numpy(texts.rows), torch.from_numpy(texts.positions))
        out: Any = plain_forward(self.lm, torch.from_numpy(texts.input_ids), states, want_hidden=True)
        return out.logits.float() / self.temperature, self.value_of(out.hidden)

    def forward(self, obs: Any, state: Any = None, info: Any = None) -> tuple[torch.Tensor, Any]:
        self.last_obs = obs
        self.last_logits, _ = self.outputs(obs)
        return self.last_logits, state

    def value(self, obs: Any) -> torch.Tensor:
        """V (n,)."""
        return self.outputs(obs)[1]

    def logprob_fn(self, observation: dict[str, np.ndarray], actions: np.ndarray) -> np.ndarray:
        """Logprobs (k,) of the actions, from the last logits if they are those of this observation."""
        obs = flatten(observation)
        if not np.array_equal(self.last_obs, obs):
            self(obs)
        return self.last_logits.detach().log_softmax(-1)[np.arange(len(actions)), actions].numpy()


def build(task: Task, num_envs: int, num_steps: int, optim: Any, gamma: float, seed: int = 0) -> tuple[PPO, Collector]:
    """The agent and its collector.  With gamma below 1 the objective would not be E[score] - beta KL."""
    actor: Any = Actor(task.model, temperature=task.temperature)
    policy = DiscreteActorPolicy(actor=actor, action_space=action_space(task))
    agent = PPO(policy=policy, critic=actor.value, optim=optim, gamma=gamma, ent_coef=0.0, max_grad_norm=0.5)
    env = TextVectorEnv(task, num_envs, actor.logprob_fn, seed)
    return agent, Collector(agent, env, VectorReplayBuffer(num_envs * num_steps, num_envs))


def train(
    envs: Any,
    steps: int,
    num_steps: int = 32,
    batch_size: int = 512,
    epochs: int = 2,
    learning_rate: float = 2e-4,
    gamma: float = 1.0,
    seed: int = 0,
    verbose: bool = True,
) -> None:
    """Train the model of a text environment for `steps` tokens."""
    torch.manual_seed(seed)
    rollout = envs.num_envs * num_steps
    schedule = LRSchedulerFactoryLinear(1, steps, rollout)
    optim = AdamOptimizerFactory(lr=learning_rate, eps=1e-5).with_lr_scheduler_factory(schedule)
    agent, collector = build(envs.unwrapped.task, envs.num_envs, num_steps, optim, gamma, seed)
    agent.run_training(
        OnPolicyTrainerParams(
            training_collector=collector,
            collection_step_num_env_steps=rollout,
            max_epochs=1,
            epoch_num_steps=steps,
            batch_size=batch_size,
            update_step_num_repetitions=epochs,
            verbose=verbose,
            show_progress=verbose,
        )
    )


def main(env_id: str = "lm_env/TokenMDP-v0", steps: int = 100_000, beta: float = 0.5, **options: Any) -> Task:
    """Train for `steps` tokens; return the environment's task, which has the trained model."""
    envs: Any = gymnasium.make_vec(env_id, num_envs=64, beta=beta)
    if "TokenMDP" in env_id:
        options = {"num_steps": 16, "batch_size": 256, "epochs": 4, "learning_rate": 0.03, **options}
    train(envs, steps, **options)
    return envs.unwrapped.task


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="lm_env/TokenMDP-v0")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--beta", type=float, default=0.5)
    args = parser.parse_args()
    task = main(args.env, args.steps, args.beta)
    if "TokenMDP" in args.env:
        print(TokenMDP.t0().evaluate(task.model, args.beta))
