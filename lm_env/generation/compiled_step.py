"""CompiledStep: a decoder's one-token step made by torch.compile, or the step itself where that does not go."""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.utils._triton import has_triton

from lm_env.generation.slot_cache import SlotDecoder
from lm_env.models.logprobs import Outputs

__all__ = ["CompiledStep", "why_no_compiler"]

log = logging.getLogger(__name__)


class CompiledStep:
    """`decoder.step_first`, compiled at its first call; the widths of attention share one compilation.

    The first result is compared with that of the plain step.  Where compiling fails, or gives other logits, one
    sentence is logged and every call runs the plain step.
    """

    def __init__(self, decoder: SlotDecoder) -> None:
        self._plain = decoder.step_first
        self._step = self._plain
        self._tried = False
        if reason := why_no_compiler(decoder.device):
            self._give_up(reason)
        else:
            self._step = torch.compile(self._plain, dynamic=True)

    def __call__(self, tokens: Tensor, positions: Tensor, width: int) -> Outputs:
        if self._tried:
            return self._step(tokens, positions, width)
        self._tried = True
        expected = self._plain(tokens, positions, width)
        try:
            outputs = self._step(tokens, positions, width)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever the compiler makes of a foreign model
            self._give_up(f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}")
            return expected
        tolerance = 1e-3 if expected.logits.dtype in (torch.float32, torch.float64) else 0.1
        worst = float((outputs.logits.float() - expected.logits.float()).abs().max())
        if not worst <= tolerance:
            self._give_up(f"its logits are off by {worst:.2g}")
            return expected
        return outputs

    def _give_up(self, reason: str) -> None:
        log.warning("the decoding step is not compiled, it runs as it is (slower, same numbers): %s", reason)
        self._step = self._plain
        self._tried = True


def why_no_compiler(device: torch.device) -> str | None:
    """None where torch.compile can make code for a device, else the reason."""
    if device.type == "cuda":
        return None if has_triton() else "torch.compile needs Triton on CUDA: pip install triton"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError, OSError):
        return "no C++ compiler is installed: install g++, or set CXX to the one that there is"
    return None
