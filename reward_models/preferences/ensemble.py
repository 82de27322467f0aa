"""Several reward models as one: their mean, the lowest score, or the mean less a penalty for disagreement.

A policy that maximizes one reward model finds the texts that this one alone overrates; what all of them say is harder
to exploit (Coste et al. 2023, arXiv:2310.02743, whose "worst-case" and "uncertainty-weighted" optimization these are).

Shapes: M members, B rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from lm_env.errors import CheckpointCorruptError, ConfigurationError, ModelLoadError
from lm_env.storage import is_saved_folder, read_folder, read_json, write_folder
from lm_env.validation import check_choice, check_number
from reward_models.preferences.folder import check_saved, read_held
from reward_models.preferences.model import RewardModel

__all__ = ["ENSEMBLE_FILE", "Combination", "RewardEnsemble"]

ENSEMBLE_FILE = "ensemble.json"
MEMBER = "member-{}"
Combination = Literal["mean", "lowest", "uncertainty"]


class RewardEnsemble:
    """A reward function made of M reward models, which should be normalized on the same samples.

    Args:
        members: at least two.
        combine: "mean"; "lowest", the worst case; or "uncertainty": mean - penalty * variance over the members.
        penalty: for "uncertainty", per unit of variance.

    Raises:
        ConfigurationError: fewer than two members, or an impossible setting.
    """

    def __init__(self, members: Sequence[RewardModel], *, combine: Combination = "mean", penalty: float = 0.5) -> None:
        if len(members) < 2:
            raise ConfigurationError(f"an ensemble of {len(members)} reward models is none: give at least two")
        check_choice("combine", combine, get_args(Combination))
        self.members = list(members)
        self.combine = combine
        self.penalty = check_number("penalty", penalty, low=0.0)

    def __repr__(self) -> str:
        return f"RewardEnsemble({self.combine} of {len(self.members)}: {self.members[0]!r})"

    @property
    def fingerprint(self) -> str:
        """Its settings, for checkpoints; see `RewardFunction`."""
        return f"{self.combine} of {len(self.members)}, penalty {self.penalty}"

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> np.ndarray:
        """-> float32 (B,)."""
        scores = self.scores(prompts, responses, **columns)
        if self.combine == "lowest":
            return scores.min(axis=0)
        mean = scores.mean(axis=0)
        return mean if self.combine == "mean" else mean - self.penalty * scores.var(axis=0)

    def scores(self, prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> np.ndarray:
        """What each member says, float32 (M, B)."""
        return np.stack([member(prompts, responses, **columns) for member in self.members])

    def disagreement(self, prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> np.ndarray:
        """The standard deviation over the members, float32 (B,)."""
        return self.scores(prompts, responses, **columns).std(axis=0)

    @property
    def tokenizer(self) -> Any:
        """The first member's."""
        return self.members[0].tokenizer

    def save(self, folder: str | Path, *, also: Callable[[Path], object] | None = None) -> Path:
        """Write all members into one folder; see `RewardModel.save`."""
        for member in self.members:
            check_saved(member.network)

        def fill(held: Path) -> None:
            for i, member in enumerate(self.members):
                (held / MEMBER.format(i)).mkdir()
                member.fill(held / MEMBER.format(i))
            settings = {"members": len(self.members), "combine": self.combine, "penalty": self.penalty}
            (held / ENSEMBLE_FILE).write_text(json.dumps(settings, indent=2) + "\n")
            if also is not None:
                also(held)

        return write_folder(folder, fill)

    @staticmethod
    def is_at(folder: str | Path) -> bool:
        """Whether a folder holds an ensemble."""
        return (Path(folder) / ENSEMBLE_FILE).is_file()

    @classmethod
    def load(cls, folder: str | Path, *, device: str | torch.device | None = None) -> RewardEnsemble:
        """Read what `save` wrote.

        Raises:
            ModelLoadError: there is no such folder, or no ensemble in it.
            CheckpointCorruptError: a file is missing or damaged.
        """
        if not is_saved_folder(folder):
            raise ModelLoadError(f"no reward models were saved at {str(folder)!r}: give a folder that `save` wrote")

        def read(held: Path) -> RewardEnsemble:
            if not (held / ENSEMBLE_FILE).is_file():
                raise ModelLoadError(f"{str(folder)!r} holds no ensemble (no {ENSEMBLE_FILE}): give one that does")
            settings = read_json(held / ENSEMBLE_FILE)
            try:
                count = int(settings.pop("members"))
                members = [read_held(held / MEMBER.format(i), folder, RewardModel, device) for i in range(count)]
                return cls(members, **settings)
            except (ConfigurationError, KeyError, TypeError, ValueError) as error:
                if isinstance(error, CheckpointCorruptError | ModelLoadError):
                    raise
                raise CheckpointCorruptError(
                    f"{str(folder)!r}: {ENSEMBLE_FILE} is not as it was saved ({error}), use another copy"
                ) from error

        return read_folder(folder, read)
