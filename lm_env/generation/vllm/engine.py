"""VLLMEngine: a `GenerationBackend` whose texts are written by a vLLM engine in this process."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_env.data.prompts import Prompt
from lm_env.errors import BackendError, ConfigurationError, MissingDependencyError
from lm_env.generation.backend import Generation, Sampling
from lm_env.generation.vllm.texts import Answer, as_generation, check_task, sampling_fields, seeds_of
from lm_env.generation.vllm.weights import write_weights
from lm_env.models.weight_watch import WeightWatch
from lm_env.objective.task import Task

__all__ = ["VLLMEngine"]

SET_HERE = ("model", "logprobs_mode", "skip_tokenizer_init")
"""Arguments of the engine that `VLLMEngine` sets itself."""


class VLLMEngine:
    """Texts from vLLM in this process.

    Give it to an agent: `agent.backend = VLLMEngine(agent.task, gpu_memory_utilization=0.4)`.

    The engine has its own copy of the weights beside the model under training, on the same GPU; it loads the new ones
    through files before each generation with changed weights.

    Args:
        task: whose model is under training.
        folder: where the weights are handed over; default: a temporary one.
        options: more arguments of `vllm.LLM`, such as `gpu_memory_utilization` and `max_model_len`.

    Raises:
        MissingDependencyError: vLLM is not installed.
        ConfigurationError: the task masks tokens, or an option is one that is set here.
    """

    def __init__(self, task: Task, folder: str | Path | None = None, **options: Any) -> None:
        check_task(task)
        if taken := sorted(set(options) & set(SET_HERE)):
            raise ConfigurationError(f"{taken[0]} is set by VLLMEngine itself: leave it out")
        try:
            import vllm
        except ImportError as error:
            raise MissingDependencyError("VLLMEngine needs vLLM: pip install 'lm-env[vllm]'") from error
        self.task = task
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="lm_env-vllm-"), "weights")
            weakref.finalize(self, shutil.rmtree, folder.parent, ignore_errors=True)
        self.folder = Path(folder)
        write_weights(task, self.folder)
        no_text = {} if task.stop_strings else {"skip_tokenizer_init": True}  # stop strings are found in the text
        self._llm: Any = vllm.LLM(model=str(self.folder), logprobs_mode="processed_logprobs", **no_text, **options)
        self._parameters: Any = vllm.SamplingParams
        self._watch = WeightWatch(task.model)
        self._version = 1
        self._current = True

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, *, progress: str | None = None) -> Generation:
        """See `GenerationBackend.generate`; a seed of its own for each text makes it repeatable as far as vLLM is.

        Raises:
            ConfigurationError: there are no prompts, or the uniforms have a wrong shape.
            BackendError: an answer is malformed, or impossible for the task.
        """
        if not prompts:
            raise ConfigurationError("there is nothing to write to: give at least one prompt")
        seeds = seeds_of(sampling, len(prompts), self.task.max_new_tokens)
        self._hand_over()
        parameters = [
            self._parameters(**sampling_fields(self.task, seed, sampling.deterministic), detokenize=self._needs_text)
            for seed in seeds
        ]
        inputs = [{"prompt_token_ids": prompt.ids.tolist()} for prompt in prompts]
        outputs = self._llm.generate(inputs, parameters, use_tqdm=progress is not None)
        answers = [_answer(output) for output in outputs]
        return as_generation(self.task, prompts, answers, self._version, sampling.deterministic)

    @property
    def _needs_text(self) -> bool:
        return bool(self.task.stop_strings)

    def _hand_over(self) -> None:
        """Load the model's present weights into the engine, unless it has them."""
        changed = self._watch.changed()
        if not changed and self._current:
            return
        self._current = False  # until all steps below have succeeded
        self._version += 1
        write_weights(self.task, self.folder)
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(self.folder)})
        self._llm.reset_prefix_cache()
        self._current = True


def _answer(output: Any) -> Answer:
    try:
        first = output.outputs[0]
        tokens = [int(token) for token in first.token_ids]
        return Answer(tokens, [float(at[token].logprob) for token, at in zip(tokens, first.logprobs, strict=True)])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise BackendError(f"vLLM gave no token_ids with their logprobs ({error!r})") from error
