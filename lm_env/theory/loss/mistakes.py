"""The known mistakes of losses, and all combinations of up to `MOST` of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

__all__ = ["EXPLANATIONS", "MOST", "Mistakes", "combinations"]

SCORE = {
    "end": "",
    "at_each_token": "score_at_each_token",
    "times_length": "score_at_each_token",
    "group_std": "score_divided_by_group_std",
}
KL = {
    "reward": "",
    "late": "kl_late",
    "early": "kl_early",
    "early_in_return": "kl_early",
    "last_token": "kl_of_last_token_only",
    "clamped": "kl_clamped",
    "absolute": "kl_absolute",
    "k2_reward": "k2_reward",
    "k3_reward": "k3_reward",
    "k2_loss": "k2_loss",
    "k3_loss": "k3_loss",
}
LENGTH = {"constant": "", "own_length": "length_normalization"}
MASK = {
    "all": "",
    "no_eos": "eos_not_counted",
    "no_last": "last_token_not_counted",
    "no_first": "first_token_not_counted",
}
WHOLE = {
    "whitened_advantages": "whitened_per_sample",
    "whitened_advantages_unbiased": "whitened_per_sample",
    "whitened_returns": "whitened_per_sample",
    "whitened_returns_unbiased": "whitened_per_sample",
    "whitened_rewards": "whitened_per_sample",
    "whitened_rewards_unbiased": "whitened_per_sample",
    "standardized_return": "return_divided_by_group_std",
    "preference": "preference_loss",
    **{f"gae_{trace}": "" for trace in (0.8, 0.9, 0.95, 0.97, 0.98, 0.99)},  # right, unless there is a discount
}
"""SCORE, KL, LENGTH, MASK, WHOLE: the kinds of `Credits`, and the name of each as a mistake ('' if it is right)."""

MOST = 3
"""Mistakes that are combined at most."""
NO_FUTURE = 1e-3
"""Below this discount a token is credited with no reward but its own."""

EXPLANATIONS = {
    "entropy_bonus": "an entropy bonus is added to the objective: set its coefficient to 0",
    "eos_not_counted": "the EOS has no gradient: build the mask from lengths, not from `== pad` or `== eos`",
    "first_token_not_counted": "the first token of a response has no gradient: the mask is shifted by one",
    "gamma": "returns are discounted (gamma < 1): set gamma to 1",
    "k2_loss": "the KL penalty is k2 as a per-token loss: no token is credited with the KL that follows it; put"
    " k1 in the reward",
    "k2_reward": "k2 is in the reward in place of k1: its gradient is not that of the KL",
    "k3_loss": "the KL penalty is k3 as a per-token loss (GRPO): put k1 in the reward",
    "k3_loss_with_ratio": "the KL penalty is k3 times the importance ratio (TRL's GRPO), or the KL summed over the"
    " vocabulary, as a per-token loss, whose gradient is that of k2: no token is credited with the KL that follows it;"
    " put k1 in the reward",
    "k3_reward": "k3 is in the reward in place of k1: its gradient is not that of the KL, and nearly 0 at the"
    " reference",
    "kl_absolute": "the penalty is |log pi - log pi_ref|: leave its sign",
    "kl_clamped": "log pi - log pi_ref is clamped at 0: leave its negative values",
    "kl_early": "each token pays for the KL of the next one: the KL and the tokens are shifted by one",
    "kl_late": "each token pays for the KL of the one before it: the KL and the tokens are shifted by one",
    "kl_of_last_token_only": "only the last token's KL is paid: sum it over all tokens",
    "kl_sign": "the KL penalty has the wrong sign, and drives the policy away from the reference",
    "last_token_not_counted": "the last token of a response has no gradient: the mask is one too short",
    "length_normalization": "each response's loss is divided by its own length, which favors short texts among good"
    " ones and long ones among bad: divide by a constant",
    "loss_sign": "the loss has the wrong sign: its gradient descends where it should ascend",
    "mean_with_itself": "the mean of a group holds the sample itself, so the score weighs (G - 1) / G beside the KL in"
    " the loss: leave the sample out (RLOO)",
    "micro_batches": "the gradient depends on how a batch is cut into micro-batches: divide by the tokens of the whole"
    " batch",
    "no_gradient": "the gradient is zero: the graph is cut, or all advantages vanish",
    "no_importance_ratio": "the importance ratio is missing, so more than one step per batch is biased",
    "no_kl": "there is no KL penalty, or its gradient is 0 in expectation (k1 as a loss): put k1 in the reward",
    "not_repeatable": "the loss gives two gradients for the same batch, so it keeps a state between calls or is random:"
    " padding, EOS, order and micro-batches are left undecided; to have them tested, take the state out of the loss",
    "order_dependent": "the gradient depends on the order of the samples in their group",
    "own_reward_only": "each token is credited with its own reward alone: the rewards to come are missing (gamma 0), or"
    " the baseline is the value of the state after the token",
    "padding_counted": "padding has a gradient: apply the mask to the loss of each token",
    "pad_is_eos": "the gradient depends on the id of the padding: build the mask from lengths, not from `== pad`",
    "preference_loss": "pairs of samples are compared (online DPO): the gradient is not that of E[score] - beta KL, but"
    " vanishes at the same policy; `check_agent` tests where it comes to rest",
    "return_divided_by_group_std": "the whole return is divided by its group's standard deviation, which weighs"
    " groups differently: leave the std out",
    "score_at_each_token": "the score is paid at every token in place of the last one",
    "score_divided_by_batch_std": "the score is divided by its standard deviation, so beta is in truth beta x std:"
    " leave it as it is",
    "score_divided_by_group_std": "the score is divided by its group's standard deviation (GRPO), so beta is in truth"
    " beta x std, and differs from group to group: leave the std out",
    "score_rescaled": "the score and the KL weigh differently than 1 to beta",
    "score_rescaled_variously": "the score and the KL weigh differently than 1 to beta, in another way under each"
    " policy",
    "unknown": "no known mistake, nor two or three together, has this gradient",
    "unknown_importance_ratio": "off-policy the importance ratio is none of the known ones: it may be upside down, of"
    " another token, raised to a power, or clipped at once, so more than one step per batch is biased",
    "whitened_per_sample": "returns or rewards are whitened within each response, which takes away what the responses"
    " are worth beside one another: whiten over the whole batch, and advantages only",
}


@dataclass(frozen=True)
class Mistakes:
    """A combination of kinds of `Credits`; the default is the right loss."""

    score: str = "end"
    kl: str = "reward"
    length: str = "constant"
    mask: str = "all"
    whole: str | None = None
    gamma: float = 1.0

    @property
    def causes(self) -> tuple[str, ...]:
        """The mistakes by name."""
        named = [SCORE[self.score], KL[self.kl], LENGTH[self.length], MASK[self.mask]]
        if self.whole is not None:
            named.append(WHOLE[self.whole])
        if self.gamma != 1:
            named.append("own_reward_only" if self.gamma < NO_FUTURE else "gamma")
        return tuple(name for name in named if name)

    @property
    def takes_gamma(self) -> bool:
        """Whether a discount makes sense with it; it is searched for beside one other mistake at most."""
        if self.whole is not None:
            return self.whole.startswith("gae") and (self.length, self.mask) == ("constant", "all")
        return self.score == "end" and self.mask == "all" and len(self.causes) <= 1

    def with_gamma(self, gamma: float) -> Mistakes:
        """The same mistakes with discounted returns."""
        return replace(self, gamma=gamma)


def combinations() -> Iterator[Mistakes]:
    """All combinations of at most `MOST` mistakes."""
    parts = [Mistakes(*kinds) for kinds in itertools.product(SCORE, KL, LENGTH, MASK)]
    parts += [Mistakes(whole=whole, length=length, mask=mask) for whole in WHOLE for length in LENGTH for mask in MASK]
    yield from (mistakes for mistakes in parts if len(mistakes.causes) <= MOST)
