"""Options of the updates that every batched agent shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lm_env.errors import ConfigurationError
from lm_env.explain import explained
from lm_env.validation import check_choice, check_field_types, check_integers, check_numbers

__all__ = ["UpdaterConfig", "Updating"]


@explained
@dataclass(frozen=True)
class UpdaterConfig:
    """How an agent's losses become steps of Adam."""

    learning_rate: float = 1e-4
    """Adam's step size at the start."""
    lr_schedule: Literal["constant", "linear"] = "linear"
    """Linear falls to 0 at `total_timesteps`."""
    warmup_rollouts: int = 0
    """The learning rate rises from a tenth over this many rollouts (10 in InstructGPT)."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    ema_decay: float | None = None
    """Keep `agent.ema.module`, an exponential moving average of the LM's weights (.992 in InstructGPT)."""
    bf16: bool = False
    """Forwards and backwards of the update under bfloat16 autocast; weights and sums stay fp32."""
    micro_batch_tokens: int = 16_384
    """Padded tokens per forward of an update.  It affects memory use only; the gradient does not depend on it."""
    gradient_checkpointing: bool = False
    """Layers keep only their inputs for the backward pass: less memory for one more forward, the same gradient."""

    def __post_init__(self) -> None:
        check_field_types(self)
        check_numbers(self, "learning_rate", "max_grad_norm", low=0.0, above=True)
        check_integers(self, "warmup_rollouts", low=0)
        check_integers(self, "micro_batch_tokens")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigurationError(f"ema_decay must lie between 0 and 1, not {self.ema_decay!r}")


@dataclass(frozen=True)
class Updating:
    """How updates are computed.

    Apart from rounding, `logprobs_of` and `ratio_limit`, no choice changes what is learned; and these two matter only
    where texts are written in lower precision or by another program than the model under training.
    """

    shard: bool = False
    """Several processes divide weights, gradients and optimizer state of the update among them (FSDP2), in
    place of one whole copy for each.  Every process still holds the whole weights once, to write texts with."""
    packed: bool = False
    """Texts are put side by side in a row without padding, where the model's attention keeps them apart."""
    optimizer: Literal["adam", "adam-8bit"] = "adam"
    """`adam-8bit` keeps Adam's two moments in 8 bits (bitsandbytes): 2 bytes for each trained number in place of 8."""
    liger: bool = False
    """Logprobs and their gradient by Liger's fused linear cross-entropy, on CUDA; where whole distributions are needed,
    as for an entropy bonus or an action mask, they are computed as without it."""
    logprobs_of: Literal["policy", "sampler"] = "policy"
    """Whose logprobs the KL penalty, and the ratios that are clipped, are made of where the two differ.  `policy`:
    those that the model under training gives to the texts before its update, for one more forward over the rollout.
    Then all ratios begin at 1, score and KL weigh alike, and the optimum is at rest with k1 in the reward.  `sampler`:
    those that came with the texts, which is faster, and close enough for texts of a bfloat16 copy.  Then the sampler
    is what becomes optimal; and the ratio weights the score but not a KL penalty in the loss (`GRPO(kl_in="loss")`),
    which is worse than no ratio."""
    ratio_limit: float | None = None
    """Weight each token's loss with the probability that the model under training gives to it over the probability
    that it was sampled with, at most this much.  It corrects for texts that were written in lower precision or by
    another program (truncated importance sampling; Yao et al. 2025 take 2).  None: no weights."""
    ratio_of: Literal["token", "text"] = "token"
    """What the weight is made of: the probability of the token, with little variance, or of the whole text, without
    bias while the limit is not reached."""

    def __post_init__(self) -> None:
        check_field_types(self)
        if self.liger and self.shard:
            raise ConfigurationError("Liger's kernel reads the whole head, which shard=True divides: choose one")
        check_choice("optimizer", self.optimizer, ("adam", "adam-8bit"))
        check_choice("logprobs_of", self.logprobs_of, ("policy", "sampler"))
        check_choice("ratio_of", self.ratio_of, ("token", "text"))
        if self.ratio_limit is not None:
            check_numbers(self, "ratio_limit", low=1.0)
            if self.logprobs_of == "sampler":
                raise ConfigurationError(
                    'ratio_limit needs the policy\'s own logprobs: leave out logprobs_of="sampler", or ratio_limit'
                )
