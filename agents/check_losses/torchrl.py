"""The loss of TorchRL's `ClipPPOLoss`, with its own generalized advantage estimation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lm_env.errors import MissingDependencyError
from lm_env.theory.loss import Loss, LossBatch

__all__ = ["torchrl_loss"]


def torchrl_loss(loss_class: type | None = None, gamma: float = 1.0, lmbda: float = 0.95, **options: Any) -> Loss:
    """The objective's loss of TorchRL's PPO.

    Args:
        loss_class: default: `ClipPPOLoss`, without its entropy bonus.
        gamma, lmbda: of its GAE.
        options: of the loss.

    Raises:
        MissingDependencyError: TorchRL is not installed.
    """
    try:
        from tensordict import TensorDict
        from tensordict.nn import TensorDictModule
        from torchrl.data import Categorical
        from torchrl.modules import ProbabilisticActor
        from torchrl.objectives import ClipPPOLoss, ValueEstimators
    except ImportError as error:
        raise MissingDependencyError("TorchRL's loss needs it: pip install 'lm-env[contrib]'") from error
    kind = ClipPPOLoss if loss_class is None else loss_class

    def loss(batch: LossBatch) -> Tensor:
        rows, columns = batch.mask.nonzero(as_tuple=True)
        states = batch.model.states(batch.input_ids)[rows, columns]
        data = _steps(TensorDict, batch, rows, columns, states)
        actor = ProbabilisticActor(
            TensorDictModule(lambda state: batch.model.table[state], in_keys=["state"], out_keys=["logits"]),
            in_keys=["logits"],
            spec=Categorical(batch.model.vocab_size),
            return_log_prob=True,
            distribution_class=torch.distributions.Categorical,
        )
        critic = TensorDictModule(lambda value: value, in_keys=["exact_value"], out_keys=["state_value"])
        own = {"entropy_bonus": False, "functional": False, "normalize_advantage": True}
        module = kind(actor, critic, **{**own, **options})
        module.make_value_estimator(ValueEstimators.GAE, gamma=gamma, lmbda=lmbda, deactivate_vmap=True)
        module.value_estimator(data)
        losses = module(data)
        return losses["loss_objective"] + losses.get("loss_entropy", torch.zeros(()))

    loss.__name__ = "torchrl-ppo"
    return loss


def _steps(make: Any, batch: LossBatch, rows: Tensor, columns: Tensor, states: Tensor) -> Any:
    """The transitions of the batch, one response after the other, along one dimension of time."""
    last = batch.last[rows, columns]
    values = batch.values[rows, columns]
    following = torch.cat([values[1:], values.new_zeros(1)])

    def column(values: Tensor) -> Tensor:
        return values[:, None]

    return make(
        {
            "state": states,
            "exact_value": column(values),
            "action": batch.tokens[rows, columns],
            "action_log_prob": batch.old_logprobs[rows, columns],
            "next": {
                "exact_value": column(torch.where(last, 0.0, following)),
                "reward": column(batch.rewards[rows, columns]),
                "done": column(last),
                "terminated": column(last),
            },
        },
        batch_size=[len(rows)],
    )
