"""A reward model made of a causal LM: its trunk, and a scalar read at the last token.

The network is tensors in, scores out; `RewardModel` adds the tokenizer and is a reward function.
Rows are right-padded: no real token attends to a pad, and the last token is found by length.

Shapes: B rows, L tokens of the longest row, D hidden.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from lm_env.errors import (
    CheckpointCorruptError,
    CheckpointMismatchError,
    ConfigurationError,
    ModelLoadError,
    UnsupportedModelError,
)
from lm_env.models.export import check_finite
from lm_env.models.inputs import length_batches, pad_right
from lm_env.models.loading import (
    default_device,
    load_tokenizer,
    load_trunk,
    read_pretrained,
    read_tokenizer,
    without_weight_bars,
)
from lm_env.objective.rewards import score_responses
from lm_env.storage import is_saved_folder, read_folder, read_json, write_folder
from lm_env.validation import check_integer
from reward_models.combine import standardizing

__all__ = ["RewardModel", "ScalarHeadModel"]

HEAD_FILE = "head.safetensors"
SETTINGS_FILE = "reward_model.json"
VERSION = 1  # of the settings


class ScalarHeadModel(nn.Module):
    """A transformer trunk and a linear head: one score per row.

    The head starts with standard deviation 1/sqrt(D + 1) and bias 0 (Ziegler et al. 2019,
    arXiv:1909.08593), in fp32 whatever the trunk is in.

    Attributes:
        trunk: a transformers base model, `last_hidden_state` (B, L, D) out.
        head: (D) -> (1).
        gain, bias: fp32 scalar buffers; the score is gain * head + bias.
    """

    gain: Tensor
    bias: Tensor

    def __init__(self, trunk: PreTrainedModel, *, seed: int = 0) -> None:
        super().__init__()
        config = trunk.config.get_text_config()
        width = getattr(config, "word_embed_proj_dim", None) or config.hidden_size  # OPT may project at the end
        self.trunk = trunk
        self.head = nn.Linear(width, 1)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.head.weight, std=1 / math.sqrt(width + 1), generator=generator)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("gain", torch.ones(()))
        self.register_buffer("bias", torch.zeros(()))
        self.to(trunk.device)

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Score rows.

        Args:
            input_ids: int64 (B, L), right-padded with any token.
            lengths: int64 (B,), each in 1..L.

        Returns:
            float32 (B,).
        """
        # All ones on purpose: right pads come after every real token, so causality alone hides them.
        mask = torch.ones_like(input_ids)
        hidden = self.trunk(input_ids=input_ids, attention_mask=mask, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(lengths), device=lengths.device), lengths - 1]
        return self.head(last.to(self.head.weight.dtype)).squeeze(-1) * self.gain + self.bias


class RewardModel:
    """A `ScalarHeadModel` and its tokenizer: a reward function, trained by `train_reward_model`.

    What it reads is the prompt's tokens followed by the response's.  Given as ids (`prompt_ids`,
    `response_ids`, which an environment hands over), they are taken as they are, an EOS only where
    there was one.  Given as text, the response is taken to be complete and an EOS is put after it.

    Args:
        network: scores right-padded rows.
        tokenizer: the trunk's own.
        max_length: tokens a row may have; a longer one loses its BEGINNING.  Default: the trunk's positions.
        batch_tokens: padded tokens per forward when scoring.
    """

    def __init__(
        self,
        network: ScalarHeadModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None = None,
        batch_tokens: int = 8192,
    ) -> None:
        positions = getattr(network.trunk.config.get_text_config(), "max_position_embeddings", None)
        if max_length is not None and not 1 <= check_integer("max_length", max_length, low=0) <= (
            positions or max_length
        ):
            raise ConfigurationError(f"max_length={max_length} is outside 1..{positions}, the positions of the trunk")
        check_integer("batch_tokens", batch_tokens)
        self.network = network
        self.tokenizer = tokenizer
        self.max_length = max_length or positions
        self.batch_tokens = batch_tokens

    @classmethod
    def from_causal_lm(
        cls,
        model: PreTrainedModel | str | Path,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        seed: int = 0,
        max_length: int | None = None,
        device: str | torch.device | None = None,
        download: bool = False,
    ) -> RewardModel:
        """Copy a causal LM's trunk, in fp32, and put a fresh head, drawn from `seed`, on it.

        Args:
            model: a live causal LM, which is left untouched, or any name that `lm_env.load_model` takes.
            tokenizer: may be left out when `model` is a name.
            device: where the copy goes.  Default: where a live model is; CUDA, where there is one, for a name.

        Raises:
            ConfigurationError: a live model without a tokenizer, or a bad `max_length`.
            ModelLoadError: the name could not be loaded.
            UnsupportedModelError: the model has no transformers trunk (merge LoRA adapters first).
        """
        if isinstance(model, str | Path):
            tokenizer = tokenizer or load_tokenizer(model, download=download)
            trunk: Any = load_trunk(model, download=download).to(device or default_device())
        else:
            trunk = copy.deepcopy(getattr(model, "base_model", None))
        if not isinstance(trunk, PreTrainedModel):
            raise UnsupportedModelError(
                f"{type(model).__name__} has no transformers trunk to copy: pass a transformers causal LM, "
                "its adapters merged"
            )
        if tokenizer is None:
            raise ConfigurationError("a live model needs its tokenizer: pass tokenizer=...")
        network = ScalarHeadModel(trunk.float().requires_grad_(True), seed=seed)
        return cls(network.to(device or trunk.device).eval(), tokenizer, max_length=max_length)

    @property
    def device(self) -> torch.device:
        """Where the scores are computed; move with `network.to`."""
        return self.network.head.weight.device

    def __call__(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        prompt_ids: Sequence[Sequence[int]] | None = None,
        response_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> np.ndarray:
        """-> float32 (B,).  The network is left in eval mode."""
        return self.score_rows(self.encode(prompts, responses, prompt_ids, response_ids))

    def encode(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        prompt_ids: Sequence[Sequence[int] | None] | None = None,
        response_ids: Sequence[Sequence[int] | None] | None = None,
    ) -> list[list[int]]:
        """-> B rows of token ids, at most `max_length` each; text is tokenized only where there are no ids.

        Raises:
            ConfigurationError: a row without a token, or B prompts that do not match B responses.
        """
        for name, given in (("responses", responses), ("prompt_ids", prompt_ids), ("response_ids", response_ids)):
            if given is not None and len(given) != len(prompts):
                raise ConfigurationError(f"{len(given)} {name} for {len(prompts)} prompts: give one each")
        eos = self.tokenizer.eos_token_id
        starts = self._tokenize(prompts, prompt_ids, add_special_tokens=True)
        ends = self._tokenize(responses, response_ids, add_special_tokens=False, after=[] if eos is None else [eos])
        keep = slice(-self.max_length, None) if self.max_length else slice(None)
        rows = [[*start, *end][keep] for start, end in zip(starts, ends, strict=True)]
        if [] in rows:
            raise ConfigurationError(f"sample {rows.index([])} has neither prompt nor response tokens to score")
        return rows

    def _tokenize(
        self,
        texts: Sequence[str],
        ids: Sequence[Sequence[int] | None] | None,
        *,
        add_special_tokens: bool,
        after: Sequence[int] = (),
    ) -> list[Sequence[int]]:
        """The ids, and the tokens of those texts that have none, `after` put behind them."""
        rows: list[Any] = [None] * len(texts) if ids is None else list(ids)
        missing = [i for i, row in enumerate(rows) if row is None]
        if missing:
            encoded = self.tokenizer([texts[i] for i in missing], add_special_tokens=add_special_tokens)["input_ids"]
            for i, row in zip(missing, encoded, strict=True):
                rows[i] = [*row, *after]
        return rows

    @torch.inference_mode()
    def score_rows(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """Score rows of token ids, batched by length -> float32 (B,)."""
        self.network.eval()
        scores = torch.empty(len(rows))
        for batch in length_batches([len(row) for row in rows], self.batch_tokens):
            scores[torch.from_numpy(batch)] = (
                self.network(*pad_right([rows[i] for i in batch], self.device)).float().cpu()
            )
        return scores.numpy()

    def normalize(self, prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> None:
        """Set gain and bias so that these reference samples score mean 0 and standard deviation 1.

        Rankings stay as they are; against the old score, beta then counts as beta times its standard
        deviation (see `effective_beta`).  Source: Ziegler et al. 2019 (arXiv:1909.08593), section 2.1,
        which does it before and after the training.

        Raises:
            ConfigurationError: fewer than two samples, or all score the same.
        """
        gain, bias = standardizing(score_responses(self, prompts, responses, columns))
        with torch.no_grad():
            self.network.gain.mul_(gain)
            self.network.bias.mul_(gain).add_(bias)

    def save(self, folder: str | Path) -> Path:
        """Write the trunk and tokenizer in transformers' layout, the head beside them; no pickle.

        The folder is written whole or not at all, with checksums, also over a reward model saved before.

        Raises:
            NonFiniteError: a weight is NaN or infinite; nothing was written.
            CheckpointWriteError: the folder could not be written, or holds something else.
        """
        check_finite(state := self.network.state_dict())
        head = {k: v.detach().cpu().contiguous() for k, v in state.items() if not k.startswith("trunk.")}
        settings = {"version": VERSION, "max_length": self.max_length, "batch_tokens": self.batch_tokens}

        def fill(folder: Path) -> None:
            with without_weight_bars():
                self.network.trunk.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            save_file(head, folder / HEAD_FILE)
            (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n")

        return write_folder(folder, fill)

    @classmethod
    def load(cls, folder: str | Path, *, device: str | torch.device | None = None) -> RewardModel:
        """Read what `save` wrote, onto CUDA by default where there is one.

        Raises:
            ModelLoadError: there is no such folder, or no reward model in it.
            CheckpointCorruptError: a file is missing or damaged.
            CheckpointMismatchError: a later version of this package saved it.
        """
        if not is_saved_folder(folder):
            raise ModelLoadError(
                f"no reward model was saved at {str(folder)!r}: give a folder that RewardModel.save wrote"
            )

        def read(held: Path) -> RewardModel:
            settings = _read_settings(held, folder)
            trunk = read_pretrained(AutoModel, held, name=folder).to(device or default_device())
            network = ScalarHeadModel(trunk).eval()
            try:
                head = load_file(held / HEAD_FILE)
                own = {k: v for k, v in network.state_dict().items() if k.startswith("trunk.")}
                network.load_state_dict(own | head)  # strict: every weight of the head, and no other
                return cls(network, read_tokenizer(held, name=folder), **settings)
            except (OSError, RuntimeError, SafetensorError, ConfigurationError) as error:
                raise CheckpointCorruptError(
                    f"{str(folder)!r} is no whole reward model ({error}): {HEAD_FILE} and {SETTINGS_FILE} must be as"
                    " they were saved"
                ) from error

        return read_folder(folder, read)


def _read_settings(held: Path, folder: str | Path) -> dict[str, Any]:
    """The keyword arguments of a saved reward model; their values are checked by the constructor."""
    if not (held / SETTINGS_FILE).is_file():
        raise ModelLoadError(f"{str(folder)!r} holds no reward model (no {SETTINGS_FILE}): give one that does")
    settings = read_json(held / SETTINGS_FILE)
    version = settings.pop("version", None)
    if isinstance(version, int) and version > VERSION:
        raise CheckpointMismatchError(
            f"{str(folder)!r} is a reward model of version {version} and this package reads {VERSION}: use a newer one"
        )
    if version != VERSION or settings.keys() != {"max_length", "batch_tokens"}:
        raise CheckpointCorruptError(f"{str(folder)!r}: {SETTINGS_FILE} is not as it was saved, use another copy")
    return settings
