"""The random numbers of a rollout, divided with its texts."""

from __future__ import annotations

import torch

from lm_env.distributed import Processes
from lm_env.generation.backend import Sampling

__all__ = ["sampling_of_share"]


def sampling_of_share(together: Processes, sampling: Sampling, texts: int, tokens: int) -> Sampling:
    """The random numbers with which one of several processes writes its share of some texts.

    Every process draws one uniform number for each token of each text, of the shares of the others as well, from a
    generator that is in the same state in all of them, and uses those of its share.  So no two use the same numbers,
    and the texts do not depend on the number of processes, one included.

    Args:
        sampling: that of all texts.
        texts: how many texts there are.
        tokens: the most tokens of a text.
    """
    if sampling.deterministic or together.count == 1:
        return sampling
    uniforms = sampling.uniforms
    if uniforms is None:
        rows = [
            torch.rand(tokens, generator=sampling.generator) for _ in range(texts)
        ]  # in the order in which a single process draws them
        uniforms = torch.stack(rows).numpy()
    return Sampling(uniforms=uniforms[together.share(texts)])
