"""Means over prompts with their standard errors.

Shapes: P prompts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["Estimate"]


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts, and its standard error over prompts."""

    mean: float
    se: float

    @classmethod
    def of(cls, values: np.ndarray) -> Estimate:
        """The mean of values (P,); the error is NaN for a single prompt."""
        se = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
        return cls(float(values.mean()), se)

    @classmethod
    def ratio(cls, above: np.ndarray, below: np.ndarray) -> Estimate:
        """The ratio of two means over the same prompts, by the delta method (Cochran 1977, equation 6.4).

        The error takes into account that both vary together from prompt to prompt.

        Args:
            above, below: float (P,); the mean of `below` is not 0.
        """
        mean = float(above.mean() / below.mean())
        rest = cls.of(above - mean * below)
        return cls(mean, rest.se / abs(float(below.mean())))

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if math.isnan(self.se) else f"{self.mean:.3f} +- {self.se:.3f}"
