"""How likely texts are under a language model that took no part in their training.

Perplexity under the reference is no independent measure: the KL penalty makes it part of what is optimized.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lm_env.data.episodes import text_episodes
from lm_env.data.prompts import Prompt
from lm_env.models.inspection import evaluating, facts_of
from lm_env.models.loading import load_model, load_tokenizer
from lm_env.models.logprobs import response_logprobs

__all__ = ["IndependentModel"]


class IndependentModel:
    """A causal language model with its own tokenizer.

    Args:
        name: as `lm_env.load_model` takes it: a folder, a hub id, the name of an embedded model.
        device: where it runs.
        download: allow fetching it from the hub.

    Raises:
        ModelLoadError, MissingDependencyError: it cannot be had.
    """

    def __init__(self, name: str, *, device: str = "cpu", download: bool = False) -> None:
        self.name = name
        self.model = load_model(name, device=device, download=download)
        self.tokenizer = load_tokenizer(name, download=download)

    def measure(self, prompts: Sequence[str], responses: Sequence[str]) -> dict[str, float]:
        """The perplexity of the responses, each read after its prompt.

        A prompt that does not fit into the model's positions together with its response loses its beginning.  A
        response that does not fit is read in parts of half as many tokens as there are positions, each after the
        tokens that fit before it.

        After a prompt without tokens they are read after the model's BOS, or else its EOS, as at the beginning of a
        document; of a model that has neither, the first token of a response is then not counted.

        Returns:
            `independent_perplexity` per token of this model, and `independent_bits_per_byte`, which compares models
            with different tokenizers.  {} if all responses are empty.
        """
        limit = facts_of(self.model).max_positions or 2**31
        rows: list[list[int]] = []
        given: list[int] = []
        byte_counts = []
        for prompt, response in zip(prompts, responses, strict=True):
            written = self.tokenizer(response, add_special_tokens=False)["input_ids"]
            if not written:
                continue
            before = self.tokenizer(prompt)["input_ids"] or self._beginning()
            if not before:  # there is nothing to predict the first token from
                before, written = written[:1], written[1:]
            if not written:
                continue
            at_once = len(written) if len(written) < limit else limit // 2
            for start in range(0, len(written), at_once):
                part = written[start : start + at_once]
                context = [*before, *written[:start]][-(limit - len(part)) :]
                rows.append([*context, *part])
                given.append(len(context))
            byte_counts.append(len(response.encode()))
        if not rows:
            return {}
        tokenized = [
            Prompt(np.array(row[:count]), "", {}, i) for i, (row, count) in enumerate(zip(rows, given, strict=True))
        ]
        episodes = text_episodes(tokenized, rows, given)
        with evaluating(self.model):
            logprobs = response_logprobs(self.model, episodes, 1.0)
        nats = -float(np.where(episodes.response_mask(), logprobs, 0.0).astype(np.float64).sum())
        tokens = float(episodes.response_lengths.sum())
        return {
            "independent_perplexity": math.exp(nats / tokens),
            "independent_bits_per_byte": nats / math.log(2) / sum(byte_counts),
        }

    def _beginning(self) -> list[int]:
        """The token that a text without a prompt is read after; [] if the tokenizer has none."""
        ids = (getattr(self.tokenizer, name, None) for name in ("bos_token_id", "eos_token_id"))
        return next(([int(token)] for token in ids if token is not None), [])
