"""TorchRL's PPO (GymWrapper, Collector, GAE, ClipPPOLoss), unmodified, on text.

    pip install 'lm-env[contrib]'
    python examples/torchrl_ppo.py                                       # an MDP whose optimum is known
    python examples/torchrl_ppo.py --env lm_env/Sentiment-v0 --beta .05  # the embedded language model

GymWrapper resets ended slots itself, so the vector environment's own autoreset is off.  `publish`, the last
module of the acting policy, gives the environment the logprob of each token, for the KL in the reward.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import gymnasium
import torch
from torch import Tensor

from agents.learning.policy import ValueHeadPolicy
from agents.sb3.sequences import Sequences
from lm_env import Task, TokenMDP
from lm_env.errors import MissingDependencyError
from lm_env.models.logprobs import plain_forward

try:
    from tensordict.nn import TensorDictModule, TensorDictSequential
    from torchrl.collectors import Collector
    from torchrl.data import LazyTensorStorage, ReplayBuffer, SamplerWithoutReplacement
    from torchrl.envs import GymWrapper
    from torchrl.modules import ProbabilisticActor
    from torchrl.objectives import ClipPPOLoss, ValueEstimators
except ImportError as error:
    raise MissingDependencyError("this example needs torchrl: pip install 'lm-env[contrib]'") from error


class TextNet(ValueHeadPolicy):
    """The language model, and a value head on its hidden states."""

    def forward(self, input_ids: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (..., V) of the next token and V (..., 1), for texts (..., L) and their lengths (..., 1).

        Texts that are prefixes of another one share its forward.
        """
        texts = Sequences.from_observations(input_ids.flatten(0, -2).numpy(), length.flatten().numpy())
        states = (torch.from_numpy(texts.rows), torch.from_numpy(texts.positions))
        out: Any = plain_forward(self.lm, torch.from_numpy(texts.input_ids), states, want_hidden=True)
        logits = out.logits.float() / self.temperature
        values = self.value_of(out.hidden)
        return logits.unflatten(0, length.shape[:-1]), values.unflatten(0, length.shape)


def build(envs: Any, num_steps: int, gamma: float = 1.0) -> tuple[Collector, ClipPPOLoss]:
    """The collector, and the loss with its GAE.

    With gamma below 1 the objective would not be E[score] - beta KL.
    """
    text_env = envs.unwrapped
    task = text_env.task
    env = GymWrapper(envs, categorical_action_encoding=True)
    module = TextNet(task.model, temperature=task.temperature)
    module.eval()  # There is no dropout, so that the first ratio of an update is 1.
    net = TensorDictModule(module, in_keys=["input_ids", "length"], out_keys=["logits", "state_value"])
    actor = ProbabilisticActor(
        net,
        in_keys=["logits"],
        spec=env.action_spec,
        return_log_prob=True,
        distribution_class=torch.distributions.Categorical,
    )

    def publish_arrays(actions: Tensor, logprobs: Tensor) -> None:
        text_env.publish(actions.numpy(), logprobs.numpy())

    # The rollout stores these two; the logits, a vocabulary per token, would take far more memory.
    stored = ["action", "action_log_prob"]
    publish = TensorDictModule(publish_arrays, in_keys=stored, out_keys=[])
    acting = TensorDictSequential(actor, publish, selected_out_keys=stored)
    frames = num_steps * envs.num_envs
    collector = Collector(env, acting, frames_per_batch=frames, auto_register_policy_transforms=False)
    loss = ClipPPOLoss(
        actor,
        net,
        entropy_bonus=False,
        critic_coeff=0.5,
        loss_critic_type="l2",
        normalize_advantage=True,
        functional=False,
    )
    loss.make_value_estimator(ValueEstimators.GAE, gamma=gamma, lmbda=0.95, deactivate_vmap=True)
    return collector, loss


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
    envs.reset(seed=seed)
    collector, loss = build(envs, num_steps, gamma)
    optimizer = torch.optim.Adam(loss.parameters(), lr=learning_rate, eps=1e-5)
    rollout = num_steps * envs.num_envs
    iterations = math.ceil(steps / rollout)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, iterations)
    buffer = ReplayBuffer(
        storage=LazyTensorStorage(rollout), sampler=SamplerWithoutReplacement(), batch_size=batch_size
    )
    for iteration, data in zip(range(iterations), collector, strict=False):
        loss.value_estimator(data)
        buffer.extend(data.flatten())
        for _ in range(epochs):
            for minibatch in buffer:
                losses = loss(minibatch)
                optimizer.zero_grad()
                (losses["loss_objective"] + losses["loss_critic"]).backward()
                torch.nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
                optimizer.step()
        schedule.step()
        if verbose and iteration % 5 == 0:
            reward = data["next", "reward"].sum()
            texts = data["next", "done"].sum()
            print(f"{(iteration + 1) * rollout} tokens: reward {reward / texts:.3f} per text")


def main(env_id: str = "lm_env/TokenMDP-v0", steps: int = 100_000, beta: float = 0.5, **options: Any) -> Task:
    """Train for `steps` tokens; return the environment's task, which has the trained model."""
    envs: Any = gymnasium.make_vec(env_id, num_envs=64, beta=beta, autoreset_mode="Disabled")
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
