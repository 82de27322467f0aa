"""`lm-env loop`: rounds of sampling, labelling, refitting the reward model and RL; a round's phases are the demo's."""

from __future__ import annotations

from lm_env.cli.loop.labellers import FileLabeller, GoldLabeller, Labeller
from lm_env.cli.loop.run import LoopConfig, resumed_loop, run_loop

__all__ = ["FileLabeller", "GoldLabeller", "Labeller", "LoopConfig", "resumed_loop", "run_loop"]
