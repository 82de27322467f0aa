"""A reward model: a trunk with a scalar head, the tokenizer, and the template of what it is shown.

The network (`network.py`) is tensors in, scores out; `RewardModel` adds the text and is a reward function.

Shapes: B rows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_env.errors import ConfigurationError, UnsupportedModelError
from lm_env.models.inputs import length_batches, pad_right
from lm_env.models.inspection import usable_device
from lm_env.models.loading import load_tokenizer, load_trunk
from lm_env.objective.description import parameters_in_words
from lm_env.objective.rewards import score_responses
from lm_env.storage import write_folder
from lm_env.validation import check_integer
from reward_models.combine import standardizing
from reward_models.preferences.encoding import PLAIN, RowEncoder, prefix_groups
from reward_models.preferences.folder import SETTINGS_FILE, check_saved, fill_folder, read_saved
from reward_models.preferences.network import Pooling, ScalarHeadModel

__all__ = ["RewardModel"]

UNLIMITED = 10**9
"""Tokenizers without a limit say 1e30."""


class RewardModel:
    """A `ScalarHeadModel` and its tokenizer: a reward function, trained by `train_reward_model`.

    What it reads is the prompt's tokens followed by the response's and an EOS, whether an EOS, a stop string or the
    length cap has ended the response.  Ids of its own tokenizer (`prompt_ids`, `response_ids`, which an environment
    hands over) are taken in the place of the text.  So it scores the texts of any policy, those of its own tokenizer
    to the token, and the same text alike in both ways.

    Args:
        network: scores right-padded rows.
        tokenizer: the trunk's own.
        max_length: tokens a row may have; a longer one loses its BEGINNING.  Default: the trunk's positions.
        batch_tokens: padded tokens per forward when scoring.
        template: what is shown before the response: {prompt}, and any extra column of the prompts, so that the
            reward model can see what the policy does not, "Facts: {facts} Question: {prompt}".
    """

    def __init__(
        self,
        network: ScalarHeadModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None = None,
        batch_tokens: int = 8192,
        template: str = PLAIN,
    ) -> None:
        positions = getattr(network.trunk.config.get_text_config(), "max_position_embeddings", None)
        if max_length is not None and not 1 <= check_integer("max_length", max_length, low=0) <= (
            positions or max_length
        ):
            raise ConfigurationError(f"max_length={max_length} is outside 1..{positions}, the positions of the trunk")
        if not network.causal:  # RoBERTa's positions begin at 2, so that its tokenizer knows the limit better
            limit = getattr(tokenizer, "model_max_length", UNLIMITED)
            positions = min(positions or UNLIMITED, limit) if limit < UNLIMITED else positions
        check_integer("batch_tokens", batch_tokens)
        self.network = network
        self.tokenizer = tokenizer
        self.max_length = max_length or positions
        self.batch_tokens = batch_tokens
        self.encoder = RowEncoder(tokenizer, network.causal, self.max_length, template)

    def __repr__(self) -> str:
        trunk = self.network.trunk
        return f"RewardModel({type(trunk).__name__} with {parameters_in_words(trunk)})"

    @property
    def template(self) -> str:
        """What is shown before the response."""
        return self.encoder.template

    @property
    def fingerprint(self) -> str:
        """Its settings, for checkpoints; see `RewardFunction`."""
        return f"{self.network.pooling} state of at most {self.max_length} tokens of {self.template!r}"

    @classmethod
    def from_causal_lm(
        cls,
        model: PreTrainedModel | str | Path,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        seed: int = 0,
        max_length: int | None = None,
        pooling: Pooling | None = None,
        template: str = PLAIN,
        device: str | torch.device | None = None,
        download: bool = False,
    ) -> RewardModel:
        """Copy the trunk of a causal LM, or an encoder, in fp32, and put a fresh head, drawn from `seed`, on it.

        Args:
            model: a live causal LM, or encoder, which is left untouched, or any name that `lm_env.load_model` takes.
            tokenizer: may be left out when `model` is a name.
            pooling: which state is read: "last" (the default) or "mean" of a causal LM, "mean" (the default) or
                "first" of an encoder.
            device: where the copy goes.  Default: where a live model is; CUDA, where there is one, for a name.

        Raises:
            ConfigurationError: a live model without a tokenizer, a device that cannot be used, or a bad `max_length`,
                `pooling` or `template`.
            ModelLoadError: the name could not be loaded.
            UnsupportedModelError: the model has no transformers trunk (merge LoRA adapters first).
        """
        if isinstance(model, str | Path):
            tokenizer = tokenizer or load_tokenizer(model, download=download)
            trunk: Any = load_trunk(model, download=download).to(usable_device(device))
        else:
            trunk = copy.deepcopy(getattr(model, "base_model", None))
        if not isinstance(trunk, PreTrainedModel) or getattr(trunk.config, "is_encoder_decoder", False):
            raise UnsupportedModelError(
                f"{type(model).__name__} has no transformers trunk to copy: pass a transformers causal LM or encoder,"
                " its adapters merged"
            )
        if tokenizer is None:
            raise ConfigurationError("a live model needs its tokenizer: pass tokenizer=...")
        network = ScalarHeadModel(trunk.float().requires_grad_(True).eval(), pooling=pooling, seed=seed)
        return cls(network.to(device or trunk.device).eval(), tokenizer, max_length=max_length, template=template)

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
        response_finished: Sequence[bool] | None = None,
        **columns: Any,
    ) -> np.ndarray:
        """The scores of B responses to their prompts, as a reward function gives them.

        The network is left in eval mode.  For the arguments and the errors see `encode`.

        Args:
            response_finished: False for a response that is still being written, which is read without an EOS.

        Returns:
            float32 (B,).
        """
        return self.score_rows(
            self.encode(prompts, responses, prompt_ids, response_ids, columns, finished=response_finished)
        )

    def encode(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        prompt_ids: Sequence[Sequence[int] | None] | None = None,
        response_ids: Sequence[Sequence[int] | None] | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
        finished: Sequence[bool] | None = None,
    ) -> list[list[int]]:
        """The rows that the network reads, B lists of at most `max_length` token ids; see `RowEncoder.rows`.

        Args:
            prompts, responses: B texts each.
            prompt_ids, response_ids: the token ids that a policy has read and written, None for a text without them.
                They are taken in the place of the texts where they are of this model's own tokenizer.
            columns: further columns of the prompts by name, B values each, for the template.
            finished: False for responses that are still being written, which get no EOS; default: all are finished.

        Raises:
            ConfigurationError: a row without a token, a column that the template names and the prompts lack, or B
                prompts that do not match B responses.
        """
        return self.encoder.rows(prompts, responses, prompt_ids, response_ids, columns, finished)

    @torch.inference_mode()
    def score_rows(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """The scores of rows of token ids, as `encode` makes them.  The network is left in eval mode.

        Rows are batched by length.  A causal trunk reads a row that is a prefix of another one together with that one,
        in a single forward over the longer row, so that it costs next to nothing.

        Args:
            rows: B rows of at least one token id each.

        Returns:
            float32 (B,), in the order of the rows.
        """
        self.network.eval()
        groups = prefix_groups(rows) if self.network.causal else [[index] for index in range(len(rows))]
        longest = [group[0] for group in groups]
        scores = torch.empty(len(rows))
        for batch in length_batches([len(rows[index]) for index in longest], self.batch_tokens):
            input_ids, _ = pad_right([rows[longest[i]] for i in batch], self.device)
            members = [index for i in batch for index in groups[i]]
            lengths = torch.tensor([len(rows[index]) for index in members], device=self.device)
            read_in = torch.tensor([place for place, i in enumerate(batch) for _ in groups[i]], device=self.device)
            scores[torch.tensor(members)] = self.network(input_ids, lengths, read_in).float().cpu()
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

    def save(self, folder: str | Path, *, also: Callable[[Path], object] | None = None) -> Path:
        """Write the trunk and tokenizer in transformers' layout, the head beside them; no pickle.

        The folder is written whole or not at all, with checksums, also over a reward model saved before.  Where
        the last state is scored and transformers has a sequence classifier for the trunk,
        `AutoModelForSequenceClassification` loads the folder too: its logit is the score up to a constant.

        Args:
            also: `also(folder)` writes further files, to be saved with the rest.

        Raises:
            NonFiniteError: a weight is NaN or infinite; nothing was written.
            CheckpointWriteError: the folder could not be written, or holds something else.
        """
        check_saved(self.network)

        def fill(held: Path) -> None:
            self.fill(held)
            if also is not None:
                also(held)

        return write_folder(folder, fill)

    def fill(self, folder: Path) -> None:
        """Write the files of `save` into a folder that is there, without checksums."""
        settings = {"max_length": self.max_length, "batch_tokens": self.batch_tokens, "template": self.template}
        fill_folder(folder, self.network, self.tokenizer, settings)

    @staticmethod
    def is_at(folder: str | Path) -> bool:
        """Whether a folder holds a reward model."""
        return (Path(folder) / SETTINGS_FILE).is_file()

    @classmethod
    def load(cls, folder: str | Path, *, device: str | torch.device | None = None) -> RewardModel:
        """Read what `save` wrote, onto CUDA by default where there is one.

        Raises:
            ModelLoadError: there is no such folder, or no reward model in it.
            CheckpointCorruptError: a file is missing or damaged.
            CheckpointMismatchError: a later version of this package saved it.
        """
        return read_saved(folder, cls, device)
