"""BatchedAgent: what all agents here share -- an environment, a policy, the loop of `learn`, files.

The manner is stable-baselines3's: `Agent(env, ...).learn(total_timesteps)`, `.predict()`, `.save()`,
`.load()`, its logger and its callbacks.  An agent's own file holds its config and its `update`.
A timestep is one generated token.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import gymnasium
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.logger import Logger
from torch import Tensor

from agents.base.config import AgentConfig, make_config
from agents.learning.critic import CriticSource, make_policy
from agents.learning.gradient_checkpointing import recomputable_layers, recomputing
from agents.learning.rollout import Rollout, collect
from agents.learning.updater import gradient_step, make_average, trained_parameters
from agents.run.checkpoint import load_agent, save_agent
from agents.run.early_warning import EarlyWarning
from agents.run.progress import ProgressLine
from agents.run.training_log import log_rollout, make_logger
from lm_env.data.episodes import Episodes
from lm_env.data.prompts import Prompt
from lm_env.envs.env import TextGenerationEnv
from lm_env.envs.vector_env import TextGenerationVectorEnv
from lm_env.errors import ConfigurationError
from lm_env.generation.backend import Sampling
from lm_env.generation.generate import LocalBackend
from lm_env.generation.sampling import sample
from lm_env.models.inspection import device_of, evaluating
from lm_env.models.loading import is_quantized
from lm_env.models.logprobs import restrict
from lm_env.objective.task import Task

__all__ = ["AgentConfig", "BatchedAgent", "task_of"]

log = logging.getLogger(__name__)


class BatchedAgent(ABC):
    """Trains the environment's own model in place.

    Args:
        env: a text environment, single or vectorized, wrapped or not, or a registered id.  Its task
            gives the model, the prompts, the reward and the KL controller.
        critic: what the values are read from: `"shared"` (the LM's own trunk), `"separate"` (a copy of
            it), a `RewardModel` (a copy of its trunk; V starts as its score, so let it be the reward
            that is paid), or `"none"`, the default of agents that need no values.
        verbose: 1 prints the log as a table after each rollout.
        log_dir: also write progress.csv, and TensorBoard files where it is installed, there.
        options: the fields of the agent's config.
    """

    Config: ClassVar[type[AgentConfig]] = AgentConfig
    needs_logits: bool = False
    """Whether the loss reads `Evaluation.logits`."""

    default_critic: ClassVar[CriticSource] = "shared"

    def __init__(
        self,
        env: Any,
        *,
        critic: CriticSource | None = None,
        verbose: int = 0,
        log_dir: str | Path | None = None,
        **options: Any,
    ) -> None:
        self.config = make_config(self.Config, type(self).__name__, options)
        self.env = gymnasium.make(env) if isinstance(env, str) else env
        self.task = task_of(self.env)
        self.policy = make_policy(self.task, self.default_critic if critic is None else critic)
        self.policy.train(False)  # dropout would make the first ratio differ from 1
        trained = trained_parameters(self.policy, self.task)
        self.optimizer = torch.optim.Adam(trained, lr=self.config.learning_rate, eps=1e-8, fused=True)
        self.ema = make_average(self.policy.lm, self.config.ema_decay)
        # Whether the update's logprobs differ from sampling's by rounding, which is then no sign of a mistake.
        self._rounds = self.config.bf16 or is_quantized(self.task.model)
        self._recomputed = recomputable_layers(self.policy) if self.config.gradient_checkpointing else []
        self.num_timesteps = 0
        self.num_rollouts = 0
        self.verbose = verbose
        self.early_warning = EarlyWarning()
        self.logger: Logger = make_logger(verbose, log_dir)
        self.prompt_rng = np.random.default_rng(self.config.seed)
        self.shuffle_rng = np.random.default_rng([self.config.seed, 1])
        self.generator = torch.Generator().manual_seed(self.config.seed)
        self.backend = LocalBackend(
            self.task, self.config.slots, value_of=self.policy.value_of if self.policy.reads_trunk else None
        )

    # -- what an agent defines ----------------------------------------------------------------------
    @abstractmethod
    def update(self, rollout: Rollout) -> dict[str, float]:
        """Improve the policy from one rollout; returns the metrics to log under `train/`."""

    # -- learning -------------------------------------------------------------------------------------
    def learn(
        self,
        total_timesteps: int,
        callback: Callable[..., Any] | BaseCallback | list[BaseCallback] | None = None,
        progress_bar: bool = False,
        reset_num_timesteps: bool = True,
    ) -> Self:
        """Roll out and update until `total_timesteps` more tokens have been generated.

        Args:
            callback: an SB3 callback, a list of them, or `f(locals, globals) -> bool`; `on_step` is
                called once per rollout, and False stops the training.
            reset_num_timesteps: False goes on counting from where it was, and with the schedule: it
                falls to 0 at the sum.
        """
        if reset_num_timesteps:
            self.num_timesteps = 0
        total = self.num_timesteps + total_timesteps
        callbacks = self._callbacks(callback)
        callbacks.on_training_start(locals(), globals())
        with ProgressLine(total, self.num_timesteps, enabled=progress_bar) as line:
            while self.num_timesteps < total:
                self._set_learning_rate(1 - self.num_timesteps / total)
                callbacks.on_rollout_start()
                started = time.perf_counter()
                rollout = self.collect_rollout()
                rolled = time.perf_counter()
                callbacks.update_locals(locals())
                if not callbacks.on_step():
                    break
                callbacks.on_rollout_end()
                metrics = self.update(rollout)
                for text in self.early_warning.look(rollout, metrics, self._rounds):
                    log.warning("%s", text)
                log_rollout(self, rollout, metrics, rolled - started, time.perf_counter() - rolled)
                line.show(self.num_timesteps, rollout)
        callbacks.on_training_end()
        return self

    def draw_prompts(self) -> list[Prompt]:
        """The prompts of the next rollout, fixed before any text is written."""
        return self.task.prompts.sample(self.prompt_rng, self.config.rollout_episodes)

    def collect_rollout(self) -> Rollout:
        """Sample and score `rollout_episodes` episodes, and tell the KL controller."""
        prompts = self.draw_prompts()
        rollout = collect(self.backend, self.policy, self.task, prompts, Sampling(self.generator))
        self.num_timesteps += int(rollout.episodes.response_lengths.sum())
        self.num_rollouts += 1
        self.task.kl.update(float(rollout.scored.kl.mean()), len(prompts))
        return rollout

    def minibatches(self, episodes: int) -> Iterator[np.ndarray]:
        """One epoch: a random cut of the rollout into batches of `batch_size` episodes."""
        order = self.shuffle_rng.permutation(episodes)
        for start in range(0, episodes, self.config.batch_size):
            yield order[start : start + self.config.batch_size]

    def optimize(
        self,
        rollout: Rollout,
        rows: np.ndarray,
        token_loss: Callable[[Any, np.ndarray], Tensor],
        weights: np.ndarray | None = None,
    ) -> float:
        """One optimizer step on some episodes, in micro-batches: the weighted sum of the per-token losses.

        Args:
            token_loss: (Evaluation of a micro-batch, its rows) -> losses (N,).
            weights: float (len(rows),), of each token of a row; default: 1 / all tokens, the mean.

        Returns:
            the gradient's norm before clipping.

        Raises:
            NonFiniteError: a loss or gradient is NaN or infinite; the weights are as before.
        """
        return gradient_step(self, rollout, rows, token_loss, weights)

    def add_gradients(self) -> None:
        """Called before each step, for an agent that adds the gradient of another objective."""
        return

    def extra_state(self) -> dict[str, Any]:
        """What an agent has beyond all this, as JSON; saved with it and given to `load_extra_state`."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what `extra_state` gave."""
        return

    # -- acting -----------------------------------------------------------------------------------------
    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[Any, None]:
        """The next token for an observation of the environment, one or a batch; (actions, None) as in SB3.

        Args:
            action_masks: bool (V,) or (B, V), `env.action_masks()`; needed if the task masks tokens, for
                an observation does not tell where its prompt ends.
        """
        if self.task.action_mask is not None and action_masks is None:
            raise ConfigurationError("this task masks tokens: call predict(..., action_masks=env.action_masks())")
        flat = not isinstance(observation, dict)
        ids = np.asarray(observation)[..., 1:] if flat else np.asarray(observation["input_ids"])
        lengths = np.asarray(observation)[..., :1] if flat else np.asarray(observation["length"])
        single = ids.ndim == 1
        ids, lengths = np.atleast_2d(ids), lengths.reshape(-1)
        logits, _ = self.policy.next_outputs(ids, lengths)
        if action_masks is not None:
            logits = restrict(logits, np.broadcast_to(action_masks, tuple(logits.shape)).copy())
        tokens = sample(logits, self.task.temperature, self.generator, deterministic)[0].cpu().numpy()
        return (tokens[0] if single else tokens), None

    def generate(self, prompts: Sequence[Any] | None = None, n: int = 4, deterministic: bool = False) -> list[str]:
        """Responses as text to the given prompts, or to n prompts of the task."""
        episodes = self.rollout_episodes(prompts, n, deterministic)
        return [self.task.text_of(r) for r in episodes.responses()]

    def rollout_episodes(
        self, prompts: Sequence[Any] | None = None, n: int = 4, deterministic: bool = False
    ) -> Episodes:
        """Like `generate`, as `Episodes` with logprobs, ready for `env.score`."""
        chosen = self.task.prompts.sample(self.prompt_rng, n) if prompts is None else self.load_prompts(prompts)
        return self.backend.generate(chosen, Sampling(self.generator, deterministic)).episodes

    def load_prompts(self, prompts: Sequence[Any]) -> Sequence[Prompt]:
        """Anything that `lm_env.load_prompts` takes as prompts of the task; a list of `Prompt`s as it is."""
        if isinstance(prompts, list | tuple) and prompts and isinstance(prompts[0], Prompt):
            return prompts
        return self.task.load_prompts(prompts)

    # -- files ------------------------------------------------------------------------------------------
    def save(self, path: str | Path) -> Path:
        """Write a folder that `load` and, for a transformers model, `AutoModelForCausalLM.from_pretrained` read.

        Safetensors and JSON only; written beside and renamed into place, with checksums.
        """
        return save_agent(self, Path(path))

    @classmethod
    def load(cls, path: str | Path, env: Any, **options: Any) -> Self:
        """An agent on `env`, with the saved weights (put into the env's model), optimizer and counters.

        Args:
            env: made as it was for the saved agent: its reference is not part of the checkpoint.
            options: of the constructor, in place of the saved ones or beside them (`verbose`, `log_dir`).

        Raises:
            CheckpointCorruptError, CheckpointMismatchError: see `agents.run.checkpoint`.
        """
        return load_agent(cls, Path(path), env, **options)

    # -- SB3's callbacks and logger look here -------------------------------------------------------------
    def get_env(self) -> Any:
        """The environment, as SB3's callbacks ask for it."""
        return self.env

    def set_logger(self, logger: Logger) -> None:
        """Use a logger made by `stable_baselines3.common.logger.configure`."""
        self.logger = logger

    def _callbacks(self, callback: Any) -> BaseCallback:
        if isinstance(callback, list):
            callback = CallbackList(callback)
        elif not isinstance(callback, BaseCallback):
            callback = ConvertCallback(callback or (lambda local, world: True))
        callback.init_callback(self)
        return callback

    def _set_learning_rate(self, remaining: float) -> None:
        factor = remaining if self.config.lr_schedule == "linear" else 1.0
        if self.num_rollouts < self.config.warmup_rollouts:
            factor *= 0.1 + 0.9 * self.num_rollouts / self.config.warmup_rollouts
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * factor

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Forwards of the update: bfloat16 and gradient checkpointing where asked, dropout off."""
        device = device_of(self.policy)
        with (
            torch.autocast(device.type, dtype=torch.bfloat16) if self.config.bf16 else nullcontext(),
            evaluating(self.policy),
            recomputing(self._recomputed),
        ):
            yield


def task_of(env: Any) -> Task:
    """The task of a text environment, whatever it is wrapped in."""
    inner = getattr(env, "unwrapped", env)
    if not isinstance(inner, TextGenerationEnv | TextGenerationVectorEnv):
        raise ConfigurationError(
            f"a batched agent needs a text environment of lm_env, not {type(inner).__name__}: use stable-baselines3 for"
            " others"
        )
    return inner.task
