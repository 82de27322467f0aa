"""What the values are read from: the policy's own trunk, a copy of it, or a trained reward model's.

Learning to summarize (Stiennon et al. 2020, arXiv:2009.01325) and InstructGPT (Ouyang et al. 2022,
arXiv:2203.02155) start the value function from the reward model: V(text so far) is at first the score
that the text would get if it ended there, which is nearer to the truth than a head of zeros.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from agents.learning.policy import ValueHeadPolicy
from agents.learning.score_critic import ScoreCritic
from lm_env.errors import CheckpointCorruptError, ConfigurationError, UnsupportedModelError
from lm_env.models.inspection import device_of, facts_of
from lm_env.objective.task import Task

if TYPE_CHECKING:
    from typing import Literal

    from reward_models import RewardModel

__all__ = ["CriticSource", "RewardCritic", "describe_critic", "make_policy", "rebuild_critic"]


class RewardCritic(nn.Module):
    """The trunk of a reward model, under a value head; its forward is a causal LM's, with hidden states for logits."""

    def __init__(self, trunk: PreTrainedModel) -> None:
        super().__init__()
        self.trunk = trunk
        self.config = trunk.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool = True) -> CausalLMOutput:
        """Right-padded ids (B, L) -> hidden states (B, L, D), computed as the reward model does."""
        out = self.trunk(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return CausalLMOutput(logits=out.last_hidden_state, hidden_states=(out.last_hidden_state,))


CriticSource: TypeAlias = "Literal['shared', 'separate', 'none'] | RewardModel | RewardCritic"


def make_policy(task: Task, critic: CriticSource) -> ValueHeadPolicy:
    """The task's model with the critic that is asked for.

    Args:
        critic: `"shared"`: a value head on the LM's own trunk; `"separate"`: on a copy of it; `"none"`; a
            `RewardModel`: on a copy of ITS trunk, V starting as its score, normalization included; a
            `RewardCritic`: on its trunk, V starting at 0.

    Raises:
        ConfigurationError: none of these, or a reward model that reads other tokens or shorter texts than the task's,
            or not the last state of a text.
        UnsupportedModelError: the reward model's trunk does not read from left to right.
    """
    if isinstance(critic, str | RewardCritic):
        return ValueHeadPolicy(task.model, critic, task.temperature)
    network: Any = getattr(critic, "network", None)
    if not isinstance(getattr(network, "trunk", None), PreTrainedModel) or not hasattr(network, "head"):
        raise ConfigurationError(
            "critic must be 'shared', 'separate', 'none' or a reward_models.RewardModel, not"
            f" {critic if isinstance(critic, bool | int) else type(critic).__name__}"
        )
    _check_reads(critic, task)
    device = device_of(task.model)
    trunk = copy.deepcopy(network.trunk).requires_grad_(True).eval().to(device)
    return ValueHeadPolicy(task.model, RewardCritic(trunk), task.temperature, _scoring_head(network).to(device))


def _scoring_head(network: Any) -> nn.Linear:
    """A head (D) -> (1) that gives gain * head + bias of a `ScalarHeadModel`."""
    head = copy.deepcopy(network.head).requires_grad_(True)
    with torch.no_grad():
        head.weight.mul_(network.gain)
        head.bias.mul_(network.gain).add_(network.bias)
    return head


def _check_reads(reward: RewardModel, task: Task) -> None:
    """Refuse a reward model that could not read what the policy writes, each prefix by itself."""
    trunk = reward.network.trunk
    own = task.tokenizer
    theirs = reward.tokenizer
    if own is not None and own is not theirs and _vocabulary(own) != _vocabulary(theirs):
        raise ConfigurationError(
            "the reward model has another tokenizer than the policy, so its trunk cannot read the policy's tokens:"
            " train one on a model of the policy's tokenizer (RewardModel.from_causal_lm), or use critic='separate'"
        )
    known = len(trunk.get_input_embeddings().weight)  # type: ignore[arg-type]
    if known < task.vocab_size:
        raise ConfigurationError(
            f"the policy can write {task.vocab_size} tokens, the reward model's {type(trunk).__name__} has embeddings"
            f" for {known}: give one of the policy's vocabulary"
        )
    if reward.max_length is not None and reward.max_length < task.max_length:
        raise ConfigurationError(
            f"the reward model reads {reward.max_length} tokens, a text of the environment can have {task.max_length}:"
            " raise its max_length, or lower max_prompt_tokens or max_new_tokens"
        )
    try:
        facts_of(RewardCritic(trunk))
    except UnsupportedModelError as error:
        raise UnsupportedModelError(
            f"the reward model's {type(trunk).__name__} cannot be a critic, which values each prefix of a text: {error}"
        ) from error
    if reward.network.pooling != "last":
        raise ConfigurationError(
            f"the reward model reads the {reward.network.pooling} state of a text, and a critic the last one: use"
            " critic='score', or a reward model with pooling='last'"
        )


def _vocabulary(tokenizer: Any) -> Any:
    return tokenizer.get_vocab() if callable(getattr(tokenizer, "get_vocab", None)) else tokenizer


# -- on disk ---------------------------------------------------------------------------------------
def describe_critic(policy: ValueHeadPolicy) -> str | dict[str, Any]:
    """The critic as JSON: its name, or what `rebuild_critic` needs to know."""
    if policy.value_head is None:
        return "none"
    if policy.critic is None:
        return "shared"
    if not isinstance(policy.critic, RewardCritic):
        return "separate"
    trunk = policy.critic.trunk
    return {
        "trunk": trunk.config.to_dict(),
        "dtype": str(trunk.dtype).removeprefix("torch."),
        "attention": trunk.config._attn_implementation,
    }


def rebuild_critic(description: str | dict[str, Any]) -> str | RewardCritic | ScoreCritic:
    """What `describe_critic` described, its weights at random; or a `ScoreCritic`, with what it has learned."""
    if isinstance(description, str):
        return description
    if isinstance(description.get("score"), dict):
        return ScoreCritic.from_state(description["score"])
    try:
        dtype = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}[description["dtype"]]
        config = AutoConfig.for_model(**description["trunk"])
        trunk = AutoModel.from_config(config, dtype=dtype, attn_implementation=description["attention"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointCorruptError(f"the saved description of the critic is damaged ({error!r})") from error
    return RewardCritic(trunk.eval())
