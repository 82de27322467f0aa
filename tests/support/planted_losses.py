"""Losses written out as a user would write them: right ones, and each with one mistake put in."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from lm_env.theory.loss import LossBatch


def to_go(rewards: Tensor, gamma: float = 1.0) -> Tensor:
    """The sum of a token's reward and all after it."""
    total = torch.zeros_like(rewards)
    for t in reversed(range(rewards.shape[1])):
        total[:, t] = rewards[:, t] + (gamma * total[:, t + 1] if t + 1 < rewards.shape[1] else 0)
    return total


def surrogate(batch: LossBatch, credit: Tensor, mask: Tensor | None = None) -> Tensor:
    """-sum ratio x credit over the tokens, per row."""
    ratio = torch.exp(batch.logprobs - batch.old_logprobs)
    return -(ratio * credit * (batch.mask if mask is None else mask)).sum() / len(batch)


def k1(batch: LossBatch) -> Tensor:
    return torch.where(batch.mask, batch.old_logprobs - batch.ref_logprobs, 0.0)


def score(batch: LossBatch) -> Tensor:
    return torch.where(batch.last, batch.scores[:, None], 0.0)


def advantages(batch: LossBatch) -> Tensor:
    return torch.where(batch.mask, to_go(batch.rewards) - batch.values, 0.0)


def of_group(batch: LossBatch, returns: Tensor) -> Tensor:
    """Each return (B,) less the mean of its group, (B, 1)."""
    groups = returns.view(-1, batch.group_size)
    return (groups - groups.mean(1, keepdim=True)).view(-1, 1)


# -- right ---------------------------------------------------------------------------------------------
def reward_to_go(batch):
    return surrogate(batch, to_go(batch.rewards))


def whole_return(batch):
    return surrogate(batch, batch.rewards.sum(1, keepdim=True).expand_as(batch.mask))


def actor_critic(batch):
    """With the token mean over the step that A2C and PPO take."""
    return surrogate(batch, advantages(batch)) * len(batch) / batch.whole.mask.sum()


def leave_one_out(batch):
    size = batch.group_size
    return surrogate(batch, of_group(batch, batch.rewards.sum(1)) * size / (size - 1))


def group_mean(batch):
    """A mean that holds the sample itself scales all of the gradient alike."""
    return surrogate(batch, of_group(batch, batch.rewards.sum(1)))


def one_step(batch):
    """A2C: right for one step on a batch."""
    return -(advantages(batch) * batch.logprobs * batch.mask).sum() / len(batch)


def whole_response(batch):
    """One ratio for the whole response, as TRL's RLOO has."""
    ratio = torch.exp(((batch.logprobs - batch.old_logprobs) * batch.mask).sum(1))
    return -(ratio * batch.rewards.sum(1)).mean()


def clipped(batch):
    """PPO's."""
    ratio = torch.exp(batch.logprobs - batch.old_logprobs)
    credit = advantages(batch)
    losses = -torch.minimum(ratio * credit, ratio.clamp(0.8, 1.2) * credit)
    return losses[batch.mask].mean()


def exact_kl(batch):
    """The reward's KL summed over the vocabulary for the tokens to come, and k1 for the one that was taken."""
    kl = batch.logits.detach().log_softmax(-1)
    kl = (kl.exp() * (kl - batch.reference(batch.input_ids).logits[:, :-1].log_softmax(-1))).sum(-1)
    following = pad(torch.where(batch.mask, kl, 0.0), (0, 1))[:, 1:]
    return surrogate(batch, to_go(score(batch) - batch.beta * following) - batch.beta * k1(batch))


RIGHT = [
    reward_to_go,
    whole_return,
    actor_critic,
    leave_one_out,
    group_mean,
    one_step,
    whole_response,
    clipped,
]


# -- one mistake each: (function, the causes that are to be named) ----------------------------------------
def without_kl(batch):
    return surrogate(batch, to_go(score(batch)))


def k1_as_loss(batch):
    kl = ((batch.logprobs - batch.ref_logprobs) * batch.mask).sum() / len(batch)
    return without_kl(batch) + batch.beta * kl


def kl_with_the_other_sign(batch):
    return surrogate(batch, to_go(score(batch) + batch.beta * k1(batch)))


def kl_of_the_token_before(batch):
    late = pad(k1(batch), (1, 0))[:, :-1] * batch.mask
    return surrogate(batch, to_go(score(batch) - batch.beta * late))


def kl_of_the_token_after(batch):
    return surrogate(batch, to_go(score(batch) - batch.beta * pad(k1(batch), (0, 1))[:, 1:]))


def kl_never_negative(batch):
    return surrogate(batch, to_go(score(batch) - batch.beta * k1(batch).clamp(min=0)))


def k3_in_the_reward(batch):
    return surrogate(batch, to_go(score(batch) - batch.beta * (torch.expm1(-k1(batch)) + k1(batch))))


def score_at_each_token(batch):
    return surrogate(batch, to_go(batch.scores[:, None] * batch.mask - batch.beta * k1(batch)))


def score_at_each_token_of_the_return(batch):
    rewards = batch.scores[:, None] * batch.mask - batch.beta * k1(batch)
    return surrogate(batch, rewards.sum(1, keepdim=True).expand_as(batch.mask))


def penalty(batch, kind: str) -> Tensor:
    """beta KL as a loss of each token."""
    x = batch.ref_logprobs - batch.logprobs
    per_token = x**2 / 2 if kind == "k2" else torch.expm1(x) - x
    if kind == "k3 with ratio":
        per_token = per_token * torch.exp(batch.logprobs - batch.old_logprobs)
    return batch.beta * (per_token * batch.mask).sum() / len(batch)


def k2_as_loss(batch):
    return without_kl(batch) + penalty(batch, "k2")


def k3_as_loss(batch):
    return without_kl(batch) + penalty(batch, "k3")


def k3_with_ratio_as_loss(batch):
    return without_kl(batch) + penalty(batch, "k3 with ratio")


def vocabulary_kl_as_loss(batch):
    logprobs, reference = (x.log_softmax(-1) for x in (batch.logits, batch.reference(batch.input_ids).logits[:, :-1]))
    kl = (logprobs.exp() * (logprobs - reference)).sum(-1)
    return without_kl(batch) + batch.beta * (kl * batch.mask).sum() / len(batch)


def own_length(batch):
    credit = of_group(batch, batch.rewards.sum(1)).expand_as(batch.mask)
    return surrogate(batch, credit / batch.lengths[:, None])


def own_length_with_a_critic(batch):
    return surrogate(batch, advantages(batch) / batch.lengths[:, None])


def whitened(batch, unbiased: bool = False) -> Tensor:
    """The advantages at mean 0 and std 1 in each response."""
    lengths = batch.lengths[:, None]
    centered = torch.where(batch.mask, advantages(batch) - advantages(batch).sum(1, keepdim=True) / lengths, 0.0)
    variance = (centered**2).sum(1, keepdim=True) / (lengths - int(unbiased)).clamp(min=1)
    return surrogate(batch, centered / torch.sqrt(variance + 1e-8))


def whitened_unbiased(batch):
    return whitened(batch, unbiased=True)


def entropy_bonus(batch):
    logprobs = batch.logits.log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return reward_to_go(batch) - 0.01 * (entropy * batch.mask).sum() / len(batch)


def eos_not_counted(batch):
    return surrogate(batch, advantages(batch), batch.mask & (batch.tokens != batch.eos_id))


def last_token_not_counted(batch):
    return surrogate(batch, to_go(batch.rewards), batch.mask & ~batch.last)


def first_token_not_counted(batch):
    return surrogate(batch, to_go(batch.rewards), batch.mask & (torch.arange(batch.mask.shape[1]) > 0))


def padding_counted(batch):
    credit = batch.rewards.sum(1, keepdim=True).expand_as(batch.mask)
    return surrogate(batch, credit, torch.ones_like(batch.mask))


def discounted(batch):
    return surrogate(batch, to_go(batch.rewards, gamma=0.9))


def own_reward_alone(batch):
    return surrogate(batch, batch.rewards)


def value_of_the_next_state(batch):
    return surrogate(batch, to_go(batch.rewards) - pad(torch.where(batch.mask, batch.values, 0.0), (0, 1))[:, 1:])


def descends(batch):
    return -reward_to_go(batch)


def rescaled(batch):
    return surrogate(batch, to_go(2 * score(batch) - batch.beta * k1(batch)))


def divided_by_the_std_of_the_batch(batch):
    return surrogate(batch, to_go(score(batch) / batch.scores.std() - batch.beta * k1(batch)))


def divided_by_the_std_of_the_group(batch):
    size = batch.group_size
    spread = batch.scores.view(-1, size).std(1).repeat_interleave(size)[:, None] + 1e-4
    credit = of_group(batch, batch.scores) / spread
    return surrogate(batch, credit - batch.beta * to_go(k1(batch)))


def return_divided_by_the_std_of_the_group(batch):
    size = batch.group_size
    returns = batch.rewards.sum(1)
    spread = returns.view(-1, size).std(1).repeat_interleave(size)[:, None] + 1e-4
    return surrogate(batch, of_group(batch, returns) / spread)


def group_mean_beside_a_kl_loss(batch):
    return surrogate(batch, of_group(batch, batch.scores)) + penalty(batch, "k2")


def grpo(batch):
    """The paper's."""
    size = batch.group_size
    spread = batch.scores.view(-1, size).std(1).repeat_interleave(size)[:, None] + 1e-4
    ratio = torch.exp(batch.logprobs - batch.old_logprobs)
    x = batch.ref_logprobs - batch.logprobs
    losses = -ratio * of_group(batch, batch.scores) / spread + batch.beta * (torch.expm1(x) - x)
    return ((losses * batch.mask).sum(1) / batch.lengths).mean()


def of_the_first_in_the_group(batch):
    """Only one sample of each group is learned from."""
    first = torch.arange(len(batch))[:, None] % batch.group_size == 0
    return surrogate(batch, to_go(batch.rewards) * first)


def masked_by_pad(batch):
    """Right where EOS and padding differ; the padding's id is the EOS."""
    return surrogate(batch, to_go(batch.rewards), batch.tokens != batch.eos_id)


def a_sine(batch):
    return surrogate(batch, torch.sin(3 * to_go(batch.rewards)))


def zero(batch):
    return (batch.logprobs * 0).sum()


PLANTED = {
    without_kl: ("no_kl",),
    k1_as_loss: ("no_kl",),
    kl_with_the_other_sign: ("kl_sign",),
    kl_of_the_token_before: ("kl_late",),
    kl_of_the_token_after: ("kl_early",),
    kl_never_negative: ("kl_clamped",),
    k3_in_the_reward: ("k3_reward",),
    score_at_each_token: ("score_at_each_token",),
    score_at_each_token_of_the_return: ("score_at_each_token",),
    k2_as_loss: ("k2_loss",),
    k3_as_loss: ("k3_loss",),
    k3_with_ratio_as_loss: ("k3_loss_with_ratio",),
    vocabulary_kl_as_loss: ("k3_loss_with_ratio",),
    own_length: ("length_normalization",),
    own_length_with_a_critic: ("length_normalization",),
    whitened: ("whitened_per_sample",),
    whitened_unbiased: ("whitened_per_sample",),
    entropy_bonus: ("entropy_bonus",),
    eos_not_counted: ("eos_not_counted",),
    last_token_not_counted: ("last_token_not_counted",),
    first_token_not_counted: ("first_token_not_counted",),
    padding_counted: ("padding_counted", "pad_is_eos"),
    discounted: ("gamma",),
    own_reward_alone: ("own_reward_only",),
    value_of_the_next_state: ("own_reward_only",),
    descends: ("loss_sign",),
    rescaled: ("score_rescaled",),
    divided_by_the_std_of_the_batch: ("score_divided_by_batch_std",),
    divided_by_the_std_of_the_group: ("score_divided_by_group_std",),
    return_divided_by_the_std_of_the_group: ("return_divided_by_group_std",),
    group_mean_beside_a_kl_loss: ("k2_loss", "mean_with_itself"),
    grpo: ("score_divided_by_group_std", "k3_loss", "length_normalization"),
    of_the_first_in_the_group: ("order_dependent",),
    masked_by_pad: ("eos_not_counted",),
    a_sine: ("unknown",),
    zero: ("no_gradient",),
}
