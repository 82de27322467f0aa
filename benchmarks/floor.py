"""The bare-metal floor: what generating, scoring and updating cost when nothing else is done.

A cached decoding loop of transformers in lockstep, sampling by inverse CDF; one forward of a
reference; and per epoch one forward, backward and Adam step.  No environment, no values, no reward,
no log.  No agent can be faster with the same forwards.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

__all__ = ["Floor"]


@dataclass
class Floor:
    """One model and its reference, and the three bare loops over them."""

    model: PreTrainedModel
    reference: nn.Module
    new_tokens: int
    bf16: bool

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-6, fused=True)

    def run(self, prompts: Tensor, epochs: int) -> dict[str, float]:
        """Seconds of each part; prompts int64 (B, P)."""
        start = time.perf_counter()
        ids = self.decode(prompts)
        decoded = time.perf_counter()
        self.score(ids, prompts.shape[1])
        scored = time.perf_counter()
        for _ in range(epochs):
            self.update(ids, prompts.shape[1])
        return {"rollout_s": decoded - start, "score_s": scored - decoded, "update_s": time.perf_counter() - scored}

    @torch.no_grad()
    def decode(self, prompts: Tensor) -> Tensor:
        """Sample `new_tokens` after each prompt."""
        cache = DynamicCache(config=self.model.config)
        ids, last = prompts, prompts
        for _ in range(self.new_tokens):
            logits = self.model(input_ids=last, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
            cumulative = torch.softmax(logits, -1).cumsum(-1)
            point = torch.rand(len(ids), 1, device=ids.device) * cumulative[:, -1:]
            last = torch.searchsorted(cumulative, point).clamp_(max=logits.shape[-1] - 1)
            ids = torch.cat([ids, last], 1)
        return ids.cpu().to(ids.device)

    @torch.no_grad()
    def score(self, ids: Tensor, prompt: int) -> Tensor:
        """Logprobs of the response under the reference."""
        return _logprobs(self.reference, ids, prompt).cpu()

    def update(self, ids: Tensor, prompt: int) -> None:
        """One gradient step of the response's log-likelihood."""
        with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            logprobs = _logprobs(self.model, ids, prompt)
        self.optimizer.zero_grad()
        (-logprobs.mean()).backward()
        float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0))
        self.optimizer.step()


def _logprobs(model: nn.Module, ids: Tensor, prompt: int) -> Tensor:
    logits = model(input_ids=ids, use_cache=False).logits[:, prompt - 1 : -1].float()
    return logits.gather(-1, ids[:, prompt:, None]).squeeze(-1) - logits.logsumexp(-1)
