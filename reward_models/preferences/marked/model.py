"""A reward model that scores each segment of a text for each kind of fault, and pays at the segment's end.

Fine-grained RLHF (Wu et al. 2023, arXiv:2306.01693): people mark what is wrong in a text and of which kind it is; a
classifier learns for each kind which segments (clauses or sentences) hold such a fault; and the policy is paid where a
segment ends, so that it learns from dense rewards which part of its text was bad.

Shapes: B texts, L tokens of the longest row, D hidden, S segments of all texts, K kinds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModel, PreTrainedTokenizerBase

from lm_env.errors import CheckpointCorruptError, ConfigurationError, ModelLoadError, UnsupportedModelError
from lm_env.models.export import check_finite
from lm_env.models.inputs import length_batches
from lm_env.models.inspection import usable_device
from lm_env.models.loading import (
    load_tokenizer,
    load_trunk,
    read_pretrained,
    read_tokenizer,
    without_weight_bars,
)
from lm_env.objective.scores import Span
from lm_env.storage import is_saved_folder, read_folder, read_json, write_folder
from lm_env.validation import check_integer, check_number
from reward_models.preferences.encoding import PLAIN, RowEncoder
from reward_models.preferences.marked.network import Row, SpanHeadModel, segments

__all__ = ["SpanRewardModel"]

HEAD_FILE = "span_head.safetensors"
SETTINGS_FILE = "span_reward_model.json"
SETTINGS = ("kinds", "weights", "max_length", "batch_tokens", "template")
VERSION = 1


class SpanRewardModel:
    """A `SpanHeadModel` and its tokenizer: a reward function whose scores are paid segment by segment.

    The score of a segment is minus the weighted sum over kinds of its logits, each of which `normalize` brings to mean
    0 and standard deviation 1, so that an average segment is paid nothing and more text is not worth more by itself.
    With a trunk that reads from left to right the environment pays each segment when it ends, see `causal`; texts must
    then fit into `max_length`.

    Args:
        network: whose outputs are the logits of `kinds`.
        tokenizer: the trunk's own, a fast one, which knows where in the text its tokens are.
        kinds: of faults, K names.
        weights: of each kind in the score, by name; default 1.
        max_length: tokens of a row; a longer one loses its beginning.  Default: the trunk's positions.
        batch_tokens: padded tokens per forward when scoring.
        template: what is shown before the response, see `RewardModel`.

    Raises:
        ConfigurationError: no kinds, or a weight for a kind that is none.
        UnsupportedModelError: the tokenizer does not say where its tokens are.
    """

    def __init__(
        self,
        network: SpanHeadModel,
        tokenizer: PreTrainedTokenizerBase,
        kinds: Sequence[str],
        *,
        weights: Mapping[str, float] | None = None,
        max_length: int | None = None,
        batch_tokens: int = 8192,
        template: str = PLAIN,
    ) -> None:
        if not kinds or len(set(kinds)) != len(kinds) or len(kinds) != network.head.out_features:
            raise ConfigurationError(
                f"the kinds of spans are {list(kinds)}: give one name for each of {network.head.out_features} outputs"
            )
        if unknown := sorted((weights or {}).keys() - set(kinds)):
            raise ConfigurationError(f"there is a weight for {unknown[0]!r}, and the kinds are {', '.join(kinds)}")
        if not getattr(tokenizer, "is_fast", False):
            raise UnsupportedModelError(
                f"{type(tokenizer).__name__} does not say where in the text its tokens are: use a fast tokenizer"
            )
        positions = getattr(network.trunk.config.get_text_config(), "max_position_embeddings", None)
        limit = getattr(tokenizer, "model_max_length", None)
        if not network.causal and limit and (positions is None or limit < positions):
            positions = limit
        self.network = network.eval()
        self.tokenizer = tokenizer
        self.kinds = tuple(kinds)
        self.weights = {kind: check_number("weight", (weights or {}).get(kind, 1.0)) for kind in self.kinds}
        self.max_length = max_length or positions
        self.batch_tokens = check_integer("batch_tokens", batch_tokens)
        self.encoder = RowEncoder(tokenizer, network.causal, self.max_length, template)

    @property
    def fingerprint(self) -> str:
        """Its settings, for checkpoints; see `RewardFunction`."""
        return f"{self.weights}, at most {self.max_length} tokens of {self.encoder.template!r}"

    @property
    def causal(self) -> bool:
        """Whether a segment's score depends on the text up to its end alone, so that an environment can pay it there.

        It does if the trunk reads from left to right; what an encoder says is paid together at the end of the text.
        """
        return self.network.causal

    @classmethod
    def from_model(
        cls,
        model: str | Path,
        kinds: Sequence[str],
        *,
        seed: int = 0,
        device: str | torch.device | None = None,
        download: bool = False,
        **options: Any,
    ) -> SpanRewardModel:
        """On the trunk of a causal LM or encoder, any name that `lm_env.load_model` takes; options as above."""
        trunk: Any = load_trunk(model, download=download).to(usable_device(device))
        network = SpanHeadModel(trunk.float().requires_grad_(True).eval(), len(kinds), seed=seed)
        return cls(network, load_tokenizer(model, download=download), kinds, **options)

    def __call__(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        prompt_ids: object = None,
        response_ids: object = None,
        response_finished: Sequence[bool] | None = None,
        **columns: Any,
    ) -> list[list[Span]]:
        """-> B lists of spans, one for each segment that can be read and has ended.

        A segment has ended with the character after it, at whose token it is paid, or with the text.
        """
        weights = np.array([self.weights[kind] for kind in self.kinds])
        gain, bias = self.network.gain.cpu().numpy(), self.network.bias.cpu().numpy()
        finished = [True] * len(responses) if response_finished is None else response_finished
        result = []
        every = self.segment_logits(prompts, responses, columns)
        for text, logits, whole in zip(responses, every, finished, strict=True):
            scores = (-((logits * gain + bias) @ weights)).tolist()
            spans = []
            for (start, end), score in zip(segments(text), scores, strict=True):
                ended = end < len(text)
                if math.isfinite(score) and (ended or whole):
                    spans.append(Span(start, end + 1 if ended else None, score))
            result.append(spans)
        return result

    def rows(
        self, prompts: Sequence[str], responses: Sequence[str], columns: Mapping[str, Sequence[Any]] | None = None
    ) -> list[Row]:
        """The token ids of each text, and where its segments are; a segment that the row has lost cannot be read."""
        if self.network.causal:
            behind, before = int(self.tokenizer.eos_token_id is not None), 0
        else:
            mask = self.tokenizer("a", "a", return_special_tokens_mask=True)["special_tokens_mask"]
            behind, before = mask[::-1].index(0), mask.index(0)
        found = []
        for row, text in zip(self.encoder.rows(prompts, responses, columns=columns), responses, strict=True):
            offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            ends = np.array([end for _, end in offsets], dtype=np.int64)
            first = len(row) - behind - len(ends)
            places = []
            start = 0
            for _, end in segments(text):
                stop = int(np.searchsorted(ends, end, side="right"))  # so many tokens end in it or before it
                known = stop > start and first + start >= before
                places.append((first + start, first + stop - 1) if known else (-1, -1))
                start = stop
            found.append((row, places))
        return found

    @torch.inference_mode()
    def segment_logits(
        self, prompts: Sequence[str], responses: Sequence[str], columns: Mapping[str, Sequence[Any]] | None = None
    ) -> list[np.ndarray]:
        """float32 (segments, K) of each text, before normalization; NaN where a segment cannot be read."""
        self.network.eval()
        rows = self.rows(prompts, responses, columns)
        found = [np.full((len(places), len(self.kinds)), np.nan, dtype=np.float32) for _, places in rows]
        for batch in length_batches([len(row) for row, _ in rows], self.batch_tokens):
            logits = self.network([rows[i] for i in batch]).float().cpu().numpy()
            start = 0
            for i in batch:
                known = np.array([first >= 0 for first, _ in rows[i][1]], dtype=bool)
                found[i][known] = logits[start : start + known.sum()]
                start += int(known.sum())
        return found

    def normalize(self, prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> None:
        """Bring each kind's logits to mean 0 and standard deviation 1 over the segments of these texts.

        Raises:
            ConfigurationError: fewer than two segments, or all of them alike.
        """
        logits = np.concatenate(self.segment_logits(prompts, responses, columns)).astype(np.float64)
        logits = logits[np.isfinite(logits).all(1)]
        if len(logits) < 2 or (logits.std(0) == 0).any():
            raise ConfigurationError(f"{len(logits)} segments that score alike cannot be normalized: give more texts")
        with torch.no_grad():
            self.network.gain.copy_(torch.from_numpy(1 / logits.std(0)))
            self.network.bias.copy_(torch.from_numpy(-logits.mean(0) / logits.std(0)))

    # -- on disk -----------------------------------------------------------------------------------------
    def save(self, folder: str | Path, *, also: Callable[[Path], object] | None = None) -> Path:
        """Write the trunk and tokenizer in transformers' layout, the head beside them; see `RewardModel.save`."""
        state = self.network.state_dict()
        check_finite(state)
        head = {k: v.detach().cpu().contiguous() for k, v in state.items() if not k.startswith("trunk.")}
        settings = {name: getattr(self, name) for name in SETTINGS if name != "template"}

        def fill(held: Path) -> None:
            with without_weight_bars():
                self.network.trunk.save_pretrained(held)
            self.tokenizer.save_pretrained(held)
            save_file(head, held / HEAD_FILE)
            content = {"version": VERSION, **settings, "template": self.encoder.template}
            (held / SETTINGS_FILE).write_text(json.dumps(content, indent=2) + "\n")
            if also is not None:
                also(held)

        return write_folder(folder, fill)

    @staticmethod
    def is_at(folder: str | Path) -> bool:
        """Whether a folder holds such a reward model."""
        return (Path(folder) / SETTINGS_FILE).is_file()

    @classmethod
    def load(cls, folder: str | Path, *, device: str | torch.device | None = None) -> SpanRewardModel:
        """Read what `save` wrote.

        Raises:
            ModelLoadError: there is no such folder, or no such reward model in it.
            CheckpointCorruptError: a file is missing or damaged.
        """
        if not is_saved_folder(folder) or not cls.is_at(folder):
            raise ModelLoadError(f"no reward model of spans was saved at {str(folder)!r}: give a folder that has one")

        def read(held: Path) -> SpanRewardModel:
            settings = read_json(held / SETTINGS_FILE)
            if settings.pop("version", None) != VERSION or settings.keys() != set(SETTINGS):
                raise CheckpointCorruptError(f"{SETTINGS_FILE} of {str(folder)!r} is not as it was saved: use a copy")
            trunk: Any = read_pretrained(AutoModel, held, name=folder).to(usable_device(device)).eval()
            try:
                network = SpanHeadModel(trunk, len(settings["kinds"]))
                own = {k: v for k, v in network.state_dict().items() if k.startswith("trunk.")}
                network.load_state_dict(own | load_file(held / HEAD_FILE))
                return cls(network, read_tokenizer(held, name=folder), settings.pop("kinds"), **settings)
            except (OSError, RuntimeError, TypeError, SafetensorError, ConfigurationError) as error:
                raise CheckpointCorruptError(f"{str(folder)!r} is no whole reward model of spans ({error})") from error

        return read_folder(folder, read)
