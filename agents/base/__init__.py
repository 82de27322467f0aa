"""What all agents share: the loop of `learn`, options, and the families of actor-critics and of groups."""

from __future__ import annotations

from agents.base.actor_critic import ActorCritic, ActorCriticConfig, Targets
from agents.base.agent import BatchedAgent
from agents.base.config import AgentConfig, make_config
from agents.base.group import GroupAgent, GroupConfig, group_metrics
from agents.base.policy_agent import PolicyAgent
from agents.base.text_agent import TextAgent, task_of

__all__ = [
    "ActorCritic",
    "ActorCriticConfig",
    "AgentConfig",
    "BatchedAgent",
    "GroupAgent",
    "GroupConfig",
    "PolicyAgent",
    "Targets",
    "TextAgent",
    "group_metrics",
    "make_config",
    "task_of",
]
