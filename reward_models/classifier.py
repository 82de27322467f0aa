"""Any transformers sequence classifier, or model with a scalar head, as a reward function."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from lm_env.errors import ConfigurationError, UnsupportedModelError
from lm_env.models.inputs import length_batches
from lm_env.models.inspection import usable_device
from lm_env.models.loading import load_pretrained, load_tokenizer
from lm_env.objective.description import parameters_in_words

__all__ = ["SequenceClassifierReward"]

# Tokenizers without a limit say 1e30.
UNLIMITED = 10**9

Output = Literal["logit", "probability", "log_probability"]


class SequenceClassifierReward:
    """One label of a sequence classifier, scored over the prompt and the response as text.

    Decoder classifiers of transformers look for the last token that differs from the pad id, which is
    the wrong one when the text itself ends in it (pad == eos).  Here the end of each row is its length,
    so a batch gives what single rows give, whatever the pad is.

    Args:
        model: a live `...ForSequenceClassification`, or a folder or hub id of one in safetensors.
        tokenizer: the classifier's own tokenizer; may be left out when `model` is a name.
        label: which label's score is the reward, by name or index; may be left out when there is one.
        output: "logit" is the raw score; "probability" and "log_probability" go through the softmax over
            the labels, or the sigmoid where there is one label or the labels do not exclude each other.
        template: the classifier's text, with fields {prompt}, {response} and any extra column.
        max_length: tokens a row may have, special tokens included.  A longer text loses its BEGINNING.
            Default: what tokenizer and model both can take.
        batch_tokens: padded tokens per forward, the memory knob.
        device: where to put the model.  Default: a live model stays where it is, a loaded one goes to
            CUDA where there is one.
        download: let a hub id that is not in the local cache be fetched.

    Raises:
        ConfigurationError: an unknown label or output, a bad template or length, no tokenizer.
        ModelLoadError: the name could not be loaded.
        CheckpointCorruptError: a folder that this package saved is damaged.
        UnsupportedModelError: the model has no `num_labels` logits.
    """

    def __init__(
        self,
        model: PreTrainedModel | str | Path,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        label: str | int | None = None,
        output: Output = "logit",
        template: str = "{prompt}{response}",
        max_length: int | None = None,
        batch_tokens: int = 8192,
        device: str | torch.device | None = None,
        download: bool = False,
    ) -> None:
        if output not in get_args(Output):
            raise ConfigurationError(f"output={output!r} is not one of {', '.join(map(repr, get_args(Output)))}")
        if batch_tokens < 1:
            raise ConfigurationError(f"batch_tokens={batch_tokens} leaves no room for a token: give at least 1")
        live: Any = model
        if isinstance(model, str | Path):
            tokenizer = tokenizer or load_tokenizer(model, download=download)
            live = load_pretrained(AutoModelForSequenceClassification, model, download=download).to(
                usable_device(device)
            )
        if tokenizer is None:
            raise ConfigurationError("a live classifier needs its tokenizer: pass tokenizer=...")
        self.model = live if device is None else live.to(device)
        self._last_token_head = _last_token_head(self.model)
        # A copy: truncation is a setting of the tokenizer, and the caller's keeps its own.
        self.tokenizer = copy.deepcopy(tokenizer)
        self.tokenizer.truncation_side = "left"
        self.max_length = _max_length(max_length, self.tokenizer, self.model.config)
        self.label = _label_index(label, self.model.config)
        self.output = output
        self.template = template
        self.batch_tokens = batch_tokens

    def __repr__(self) -> str:
        labels = getattr(self.model.config, "id2label", None) or {}
        label = labels.get(self.label, self.label)
        model = f"{type(self.model).__name__} with {parameters_in_words(self.model)}"
        return f"SequenceClassifierReward({model}, label {label!r}, {self.output})"

    @property
    def fingerprint(self) -> str:
        """Its settings, for checkpoints; see `RewardFunction`."""
        return f"{self.output} of label {self.label}, at most {self.max_length} tokens of {self.template!r}"

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[str], responses: Sequence[str], **columns: Sequence[Any]) -> np.ndarray:
        """-> float32 (B,).  The model is left in eval mode."""
        pairs = zip(prompts, responses, strict=True)
        texts = [self._text(prompt, response, columns, i) for i, (prompt, response) in enumerate(pairs)]
        if not texts:
            return np.empty(0, dtype=np.float32)
        encoded = self.tokenizer(
            texts, truncation=self.max_length is not None, max_length=self.max_length, return_attention_mask=False
        )
        rows: list[list[int]] = encoded["input_ids"]
        for i, row in enumerate(rows):
            if not row:
                raise ConfigurationError(f"sample {i} has no token to classify: put some text into the template")
        self.model.eval()
        pad = self.tokenizer.pad_token_id
        # A model that pools by itself may look for the pad id, or have none: then nothing is padded.
        unpadded = self._last_token_head is None and (pad is None or any(pad in row for row in rows))
        scores = torch.empty(len(rows))
        for batch in length_batches([len(row) for row in rows], self.batch_tokens, equal=unpadded):
            inputs = self._inputs({k: [v[i] for i in batch] for k, v in encoded.items()}, pad or 0)
            scores[torch.from_numpy(batch)] = self._read(self._logits(inputs)).cpu()
        return scores.numpy()

    def _text(self, prompt: str, response: str, columns: Mapping[str, Sequence[Any]], i: int) -> str:
        extra = {name: values[i] for name, values in columns.items()}
        try:
            return self.template.format(**{**extra, "prompt": prompt, "response": response})
        except (AttributeError, LookupError, ValueError) as error:
            raise ConfigurationError(
                f"the template {self.template!r} does not fit ({type(error).__name__}: {error}): "
                f"its fields may be {', '.join(['prompt', 'response', *extra])}"
            ) from error

    def _inputs(self, rows: Mapping[str, list[list[int]]], pad: int) -> dict[str, Tensor]:
        """Pad the tokenizer's fields (input_ids, token_type_ids) and add the mask of the real tokens."""
        width = max(map(len, rows["input_ids"]))
        left = self._last_token_head is None and self.tokenizer.padding_side == "left"

        def padded(row: list[int], fill: int) -> list[int]:
            padding = [fill] * (width - len(row))
            return padding + row if left else row + padding

        inputs = {k: [padded(row, pad if k == "input_ids" else 0) for row in v] for k, v in rows.items()}
        inputs["attention_mask"] = [padded([1] * len(row), 0) for row in rows["input_ids"]]
        return {k: torch.tensor(v, device=self.model.device) for k, v in inputs.items()}

    def _logits(self, inputs: dict[str, Tensor]) -> Tensor:
        """-> (B, num_labels)."""
        if self._last_token_head is None:
            return self.model(**inputs).logits
        ids = inputs["input_ids"]
        mask = inputs["attention_mask"]
        hidden = self.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        last = mask.sum(dim=1) - 1
        return self._last_token_head(hidden[torch.arange(len(last), device=last.device), last])

    def _read(self, logits: Tensor) -> Tensor:
        """(B, num_labels) -> the wanted score, float32 (B,)."""
        logits = logits.float()
        if self.output == "logit":
            return logits[:, self.label]
        independent = logits.shape[1] == 1 or self.model.config.problem_type == "multi_label_classification"
        logprobs = F.logsigmoid(logits) if independent else F.log_softmax(logits, dim=1)
        chosen = logprobs[:, self.label]
        return chosen if self.output == "log_probability" else chosen.exp()


def _max_length(asked: int | None, tokenizer: PreTrainedTokenizerBase, config: Any) -> int | None:
    """The longest row: what is asked, else the lower of the tokenizer's and the model's limit, if any."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None) or -1
    longest = min(tokenizer.model_max_length, positions if positions > 0 else UNLIMITED)
    if asked is None:
        return longest if longest < UNLIMITED else None
    shortest = tokenizer.num_special_tokens_to_add() + 1
    if not shortest <= asked <= longest:
        raise ConfigurationError(f"max_length={asked} is outside {shortest}..{longest}, what the classifier can take")
    return asked


def _label_index(label: str | int | None, config: Any) -> int:
    names = {int(index): name for index, name in config.id2label.items()}
    listed = ", ".join(f"{index} ({name!r})" for index, name in sorted(names.items()))
    if label is None:
        if config.num_labels == 1:
            return 0
        raise ConfigurationError(f"the classifier has the labels {listed}: name the one that is the reward, label=...")
    for index, name in names.items():
        if label == name or (label == index and not isinstance(label, bool)):
            return index
    raise ConfigurationError(f"label={label!r} is none of the classifier's: {listed}")


@torch.inference_mode()
def _last_token_head(model: Any) -> nn.Module | None:
    """The head of a decoder classifier that reads the last token; None for a model that pools its own way.

    What it does decides: on a row without pads, the head on the trunk's last state must be the output.
    """
    if not hasattr(getattr(model, "config", None), "num_labels") or not hasattr(model, "base_model"):
        raise UnsupportedModelError(
            f"{type(model).__name__} is no transformers sequence classifier: pass a ...ForSequenceClassification"
        )
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or getattr(model.config, "is_encoder_decoder", False):
        return None
    model.eval()
    pad = model.config.get_text_config().pad_token_id
    row = [i for i in range(5) if i != pad][:4]
    ids = torch.tensor([row], device=model.device)
    own = model(input_ids=ids).logits
    read = head(model.base_model(input_ids=ids).last_hidden_state)[:, -1]
    return head if torch.allclose(own, read, rtol=1e-3, atol=1e-5) else None
