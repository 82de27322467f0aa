"""A task for TRL: a data set, a reward function, and the options of `GRPOConfig` and `RLOOConfig` that belong to it.

TRL samples and computes the KL penalty itself, from models that it holds; from here it gets the scores.

    sums = to_trl("lm_env/Arithmetic-v0")
    trainer = RLOOTrainer(
        model=lm_env.load_model("arithmetic-0.4m"),
        processing_class=sums.tokenizer,
        args=RLOOConfig("runs/trl", **sums.options),
        train_dataset=sums.dataset("train"),
        reward_funcs=sums.reward,
    )
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any, Literal

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lm_env.errors import ConfigurationError
from lm_env.export.judging import score_tokens
from lm_env.export.source import Source, check_samplable_elsewhere, tokenizer_of
from lm_env.validation import check_choice

__all__ = ["TRLTask", "to_trl"]

TRLS_OWN = {
    *("prompt", "completion", "completions", "completion_ids", "chat_template_kwargs", "environment", "environments"),
    *("image", "images", "log_extra", "log_metric", "tools", "trainer_state", "split", "prompt_index"),
}
"""Columns that TRL gives a meaning of its own, and those that tell the reward function which prompt it is."""


def to_trl(source: Any, **options: Any) -> TRLTask:
    """A task for TRL's `GRPOTrainer` and `RLOOTrainer`.

    Args:
        source: a task by name, a `TextTask`, a `lm_env.Task`, or a text environment.
        options: of a task by name or a `TextTask`: its own, and those of `lm_env.Task`.

    Raises:
        ConfigurationError: the task has no tokenizer of transformers, masks tokens, or does not end at the tokenizer's
            EOS.
    """
    return TRLTask(Source(source, options))


class TRLTask:
    """A task in the form that TRL takes; `to_trl` makes it.

    Attributes:
        tokenizer: for the trainer's `processing_class`.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        task = source.task(source.splits[0])
        check_samplable_elsewhere(task, "TRL")
        self.tokenizer = tokenizer_of(task, "TRL")
        if not isinstance(self.tokenizer, PreTrainedTokenizerBase):
            raise ConfigurationError(
                f"TRL needs a tokenizer of transformers, and the task's is a {type(self.tokenizer).__name__}: give the"
                " task another one, tokenizer="
            )
        if self.tokenizer.eos_token_id is None:
            raise ConfigurationError(
                "TRL ends texts at the tokenizer's EOS, and this one has none: give the task a tokenizer with an"
                " eos_token, tokenizer="
            )
        if self.tokenizer.eos_token_id not in task.eos_token_ids:
            raise ConfigurationError(
                f"TRL ends texts at the tokenizer's EOS, {self.tokenizer.eos_token_id}, and the task at"
                f" {sorted(task.eos_token_ids)}: leave eos_token_id out"
            )

    @property
    def options(self) -> dict[str, Any]:
        """The options of `GRPOConfig` and `RLOOConfig` that the task decides: length cap, temperature, beta.

        top-p and top-k are off, as in this package.  `beta` is the present value: TRL has no adaptive KL controller.
        """
        task = self._source.task(self._source.splits[0])
        return {
            "max_completion_length": task.max_new_tokens,
            "temperature": task.temperature,
            "top_p": 1.0,
            "top_k": 0,
            "beta": float(task.kl.beta),
        }

    def dataset(self, split: str = "train", *, on_mismatch: Literal["error", "drop"] = "error") -> Dataset:
        """The prompts of a split: `prompt` (a text, or a chat), their further columns, `split` and `prompt_index`.

        A column whose name TRL gives a meaning of its own, such as `completion` or `tools`, is not in the data set; the
        task's reward function gets it all the same, for `reward` takes the columns from the task.

        Args:
            on_mismatch: what to do with prompts that TRL tokenizes otherwise than the environment, which may happen to
                those given as token ids and to truncated ones: "error" raises, "drop" leaves them out.

        Raises:
            ConfigurationError: TRL would read a prompt as other tokens, no prompt is left, texts and chats are mixed,
                or a column cannot be stored in a data set.
        """
        check_choice("on_mismatch", on_mismatch, ("error", "drop"))
        prompts = self._source.task(split).prompts
        chats = [self._source.chat(split, index) for index in range(len(prompts))]
        written = [prompt.text if chat is None else chat for prompt, chat in zip(prompts, chats, strict=True)]
        read = self._read(written)
        alike = [ids == prompt.ids.tolist() for ids, prompt in zip(read, prompts, strict=True)]
        if on_mismatch == "error" and not all(alike):
            index = alike.index(False)
            raise ConfigurationError(
                f"TRL reads prompt {index} of {split}, {reprlib.repr(written[index])}, as the tokens"
                f" {read[index][:12]}, and the environment as {prompts[index].ids.tolist()[:12]}: leave"
                " such prompts out with on_mismatch='drop', or let the task read prompts as its tokenizer does"
            )
        kept = [index for index, same in enumerate(alike) if same]
        if not kept:
            raise ConfigurationError(f"TRL reads every prompt of {split} as other tokens: none is left")
        columns = {name: [prompts[i].columns[name] for i in kept] for name in prompts.columns if name not in TRLS_OWN}
        own = {"split": [split] * len(kept), "prompt_index": kept}
        try:
            return Dataset.from_dict({"prompt": [written[i] for i in kept], **columns, **own})
        except (TypeError, ValueError, OverflowError) as error:  # those of pyarrow derive from them
            raise ConfigurationError(
                f"the columns {', '.join(columns)} of the prompts cannot be stored in a data set ({error}): give"
                " prompts whose columns hold values of one type each"
            ) from error

    def reward(
        self,
        completion_ids: Sequence[Sequence[int]],
        split: Sequence[str] | None = None,
        prompt_index: Sequence[int] | None = None,
        **columns: Any,
    ) -> list[float]:
        """The scores of completions of any split, for the trainer's `reward_funcs`.

        Args:
            completion_ids, split, prompt_index: B entries each, as TRL passes them from its sampler and the data set.

        Raises:
            ConfigurationError: the tokens are not of the task's tokenizer, or the data set is not one of `dataset`.
            RewardError, RewardValueError: see `lm_env.objective.score_responses`.
        """
        if split is None or prompt_index is None:
            raise ConfigurationError(
                "the data set has no columns split and prompt_index, which tell the prompts apart: train and evaluate"
                " on those of .dataset(split)"
            )
        if not len(completion_ids) == len(split) == len(prompt_index):
            raise ConfigurationError(
                f"{len(completion_ids)} completions, {len(split)} splits and {len(prompt_index)} prompt_indexes: give"
                " one of each for every completion"
            )
        scores = [0.0] * len(completion_ids)
        for name in dict.fromkeys(split):
            rows = [row for row, own in enumerate(split) if own == name]
            prompts = [self._source.prompt(name, prompt_index[row]) for row in rows]
            found, _ = score_tokens(self._source.task(name), prompts, [completion_ids[row] for row in rows])
            for row, score in zip(rows, found, strict=True):
                scores[row] = float(score)
        return scores

    def _read(self, prompts: Sequence[Any]) -> list[list[int]]:
        """The tokens that TRL makes of each prompt, a text or a chat."""
        if all(isinstance(prompt, str) for prompt in prompts):
            return [list(ids) for ids in self.tokenizer(text=list(prompts))["input_ids"]]
        if any(isinstance(prompt, str) for prompt in prompts):
            raise ConfigurationError("TRL takes prompts that are all texts or all chats, and here are both: split them")
        rendered = self.tokenizer.apply_chat_template(
            conversation=list(prompts), add_generation_prompt=True, tokenize=True, return_dict=True
        )
        return [list(ids) for ids in rendered["input_ids"]]
