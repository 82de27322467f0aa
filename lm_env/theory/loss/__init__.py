"""What a loss optimizes, from its exact expected gradient on small MDPs; see `check_loss`."""

from __future__ import annotations

from lm_env.theory.loss.batch import LossBatch
from lm_env.theory.loss.check_loss import INVARIANCES, Loss, LossCheck, check_loss

__all__ = ["INVARIANCES", "Loss", "LossBatch", "LossCheck", "check_loss"]
