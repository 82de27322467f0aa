"""The losses of TRL's GRPO and RLOO trainers.

TRL's own code computes rewards, advantages and loss.  Two methods are replaced: the one that generates gives the
responses of the batch, and the one that runs the language model looks the logprobs up in the batch's tables.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor

from lm_env.errors import MissingDependencyError
from lm_env.theory.loss import Loss, LossBatch

__all__ = ["trl_loss"]


def trl_loss(name: str, trainer: type | None = None, **options: Any) -> Loss:
    """The loss of TRL's `GRPOTrainer` or `RLOOTrainer`, its advantages included.

    Args:
        name: `"GRPO"` or `"RLOO"`.
        trainer: a subclass of that trainer; default: the trainer itself.
        options: of `GRPOConfig` or `RLOOConfig`; beta and the group size are the batch's.

    Raises:
        MissingDependencyError: TRL is not installed.
    """
    try:
        import trl
    except ImportError as error:
        raise MissingDependencyError("TRL's losses need it: pip install trl") from error
    kind = _on_tables(getattr(trl, f"{name}Trainer") if trainer is None else trainer, name)
    config = getattr(trl, f"{name}Config")
    made: dict[int, Any] = {}

    def loss(batch: LossBatch) -> Tensor:
        size = batch.group_size
        if size not in made:
            with tempfile.TemporaryDirectory() as folder:
                made[size] = _trainer(kind, config, size, folder, options)
        return made[size].loss_of(batch)

    loss.__name__ = f"trl-{name.lower()}"
    return loss


def _on_tables(trainer: type, name: str) -> Any:
    """The trainer with the policies of a batch in place of a language model."""

    class OnTables(trainer):
        """Takes responses and logprobs from a batch."""

        batch: LossBatch

        def loss_of(self, batch: LossBatch) -> Tensor:
            """The loss of a batch, or of a part of one whose advantages are those of the whole."""
            self.batch = batch.whole
            self.beta = batch.beta
            self.ref_model = batch.reference
            self.model.train()
            self.current_gradient_accumulation_steps = 1
            inputs = self._generate_and_score_completions([{"prompt": "EOS"}] * len(self.batch))
            if batch.rows is not None:
                rows = torch.from_numpy(batch.rows)
                inputs = {k: v[rows] if _per_row(v, len(self.batch)) else v for k, v in inputs.items()}
            return self.compute_loss(self.model, inputs)

        def _generate_single_turn(self, *_: Any, **__: Any) -> Any:
            batch = self.batch
            rows = zip(batch.tokens.tolist(), batch.lengths.tolist(), strict=True)
            responses = [ids[:length] for ids, length in rows]
            return (responses, None) if name == "GRPO" else responses

        def _get_per_token_logps_and_entropies(
            self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *_: Any, **__: Any
        ) -> tuple[Tensor, Tensor, None]:
            table = self.batch.model if torch.is_grad_enabled() else self.batch.behavior
            table = self.ref_model if model is self.ref_model else table
            logprobs = table(input_ids).logits[:, -logits_to_keep - 1 : -1].log_softmax(-1)
            taken = logprobs.gather(-1, input_ids[:, -logits_to_keep:, None])[..., 0]
            return taken, -(logprobs.exp() * logprobs).sum(-1), None

        def _calculate_rewards(self, *_: Any, **__: Any) -> Tensor:
            return self.batch.scores[:, None].clone()

    return OnTables


def _trainer(kind: Any, config: Any, size: int, folder: str, options: dict[str, Any]) -> Any:
    """A trainer of a model that is never run."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"A": 0, "B": 1, "EOS": 2}, unk_token="EOS"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="EOS", pad_token="EOS")
    sizes: dict[str, Any] = {"vocab_size": 3, "n_embd": 4, "n_layer": 1, "n_head": 1, "n_positions": 8}
    own = {
        "output_dir": folder,
        "per_device_train_batch_size": size,
        "num_generations": size,
        "steps_per_generation": 1,
        "num_iterations": 2,  # so that the logprobs of the policy that sampled are kept
        "max_completion_length": 3,
        "beta": 0.0,  # else a reference is loaded; the batch has one
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return kind(
        model=GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=2, eos_token_id=2)),
        processing_class=tokenizer,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        train_dataset=Dataset.from_dict({"prompt": ["EOS"] * size}),
        args=config(**{**own, **options}),
    )


def _per_row(value: Any, rows: int) -> bool:
    """Whether a value has an entry for each row."""
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == rows
