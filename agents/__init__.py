"""Batched agents that train a causal LM on the environments of `lm_env`.

| name | class | what it is |
|---|---|---|
| `ppo` | `PPO` | clipped updates, value head, GAE |
| `a2c` | `A2C` | one unclipped step per rollout |
| `grpo` | `GRPO` | group-standardized rewards, k3 in the loss |
| `rloo` | `RLOO` | leave-one-out baseline |
| `reinforce` | `Reinforce` | running-mean baseline |
| `reinforce-value` | `ReinforceValue` | value baseline, lambda 1 |
| `online-dpo` | `OnlineDPO` | pairs of samples, compared by their scores |
| `best-of-n` | `BestOfN` | no training |
| `ppo-penalty` | `PPOPenalty` | PPO, an adaptive KL penalty on the step instead of clipping |
| | `PPOPtx` | PPO with pretraining texts mixed in; needs `texts` |

Before all of them, `supervised_finetune` makes the model that they start from.  `dpo_finetune` learns from a file of
comparisons alone.  `agent.evaluate(prompts)` measures
an agent, and the callback `EvaluateTexts` does so while it trains.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agents.a2c import A2C, A2CConfig
from agents.best_of_n import BestOfN, BestOfNConfig
from agents.dpo import DPOConfig, DPOReport, dpo_finetune
from agents.grpo import GRPO, GRPOConfig
from agents.learning.options import Updating
from agents.online_dpo import OnlineDPO, OnlineDPOConfig
from agents.ppo import PPO, PPOConfig
from agents.ppo_penalty import PPOPenalty, PPOPenaltyConfig
from agents.ppo_ptx import PPOPtx
from agents.reinforce import Reinforce, ReinforceConfig, ReinforceValue, ReinforceValueConfig
from agents.rloo import RLOO, RLOOConfig
from agents.run.evaluation import Evaluation
from agents.run.evaluation_callback import EvaluateTexts
from agents.sft import SFTConfig, SFTReport, supervised_finetune
from lm_env.distributed import processes
from lm_env.namesake import namesake_problem
from lm_env.storage import Checkpointing

if _problem := namesake_problem(Path(__file__).parent):
    warnings.warn(_problem, stacklevel=2)

AGENTS: dict[str, Callable[..., Any]] = {
    "a2c": A2C,
    "best-of-n": BestOfN,
    "grpo": GRPO,
    "online-dpo": OnlineDPO,
    "ppo": PPO,
    "ppo-penalty": PPOPenalty,
    "reinforce": Reinforce,
    "reinforce-value": ReinforceValue,
    "rloo": RLOO,
}
"""The batched agents by name."""

__all__ = [
    "A2C",
    "AGENTS",
    "GRPO",
    "PPO",
    "RLOO",
    "A2CConfig",
    "BestOfN",
    "BestOfNConfig",
    "Checkpointing",
    "DPOConfig",
    "DPOReport",
    "EvaluateTexts",
    "Evaluation",
    "GRPOConfig",
    "OnlineDPO",
    "OnlineDPOConfig",
    "PPOConfig",
    "PPOPenalty",
    "PPOPenaltyConfig",
    "PPOPtx",
    "RLOOConfig",
    "Reinforce",
    "ReinforceConfig",
    "ReinforceValue",
    "ReinforceValueConfig",
    "SFTConfig",
    "SFTReport",
    "Updating",
    "dpo_finetune",
    "processes",
    "supervised_finetune",
]
