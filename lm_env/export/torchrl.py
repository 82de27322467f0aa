"""A task as a TorchRL environment: n texts token by token, in one batched forward.

The environment computes the KL penalty in the reward, as everywhere in lm_env, from the logprobs that the policy has
written into the tensordict, or else from those of the environment's own model.

Shapes: n texts, L tokens of the longest text, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lm_env.data.episodes import Episodes, ScoredEpisodes
from lm_env.envs.inputs import checked_seeds
from lm_env.envs.mdp import TextMDP
from lm_env.envs.vector_env import TextGenerationVectorEnv
from lm_env.errors import MissingDependencyError
from lm_env.export.source import live_task
from lm_env.objective.scoring import score_episodes
from lm_env.objective.task import Task

try:
    from tensordict import TensorDict, TensorDictBase
    from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded
    from torchrl.envs import EnvBase
except ImportError as error:
    raise MissingDependencyError("to_torchrl needs torchrl: pip install 'lm-env[contrib]'") from error

__all__ = ["TorchRLTextEnv", "to_torchrl"]

INFO = ("score", "logprob", "ref_logprob", "kl")


def to_torchrl(
    source: Any, num_envs: int | None = None, *, split: str = "train", seed: int | None = None, **options: Any
) -> TorchRLTextEnv:
    """A task as an `EnvBase` of TorchRL with the batch size (num_envs,).

    Args:
        source: a task by name, a `TextTask`, a `lm_env.Task`, or a text environment, whose model is then shared.
        num_envs: how many texts at a time; None: as many as a vector environment has, else one.
        split: which prompts: "train", "validation" or "test" of a task by name or a `TextTask`.
        seed: of the draw of prompts; text i has seed + i, as in `gymnasium.make_vec`.
        options: of a task by name or a `TextTask`: its own, and those of `lm_env.Task`.

    Raises:
        MissingDependencyError: torchrl is not installed.
        ConfigurationError: there is no such task, split or option, or `num_envs` or `seed` is out of range.
    """
    inner = getattr(source, "unwrapped", source)
    own = inner.num_envs if isinstance(inner, TextGenerationVectorEnv) else 1
    return TorchRLTextEnv(live_task(source, options, split), own if num_envs is None else num_envs, seed=seed)


class TorchRLTextEnv(EnvBase):
    """n texts of a task; `to_torchrl` makes it.

    Entries of the tensordict, all with the batch size (n,):

    - `input_ids` int64 (n, L), right-padded, and `length` int64 (n, 1): the text so far.
    - `action` int64 (n,): its next token.  `action_log_prob` float (n,), optional: the logprob of that token under the
      policy that chose it; without it the environment's own model gives the logprob.
    - `reward` float32 (n, 1), `terminated`, `truncated` and `done`, as in `TextGenerationEnv`.
    - `score`, `logprob`, `ref_logprob`, `kl` float32 (n, 1): the step's info, logprobs and KL in nats; 0 after a reset.
    - `action_mask` bool (n, V), for a task that masks tokens; TorchRL's `ActionMask` transform reads it.
    """

    def __init__(self, task: Task, num_envs: int = 1, *, seed: int | None = None) -> None:
        self._mdp = TextMDP(task, num_envs)
        super().__init__(device=torch.device("cpu"), batch_size=torch.Size([num_envs]))
        self._seeds: list[int | None] = checked_seeds(seed, num_envs)
        self._make_specs()

    @property
    def task(self) -> Task:
        """The task: model, reference, tokenizer, prompts, reward, KL controller."""
        return self._mdp.task

    @property
    def mdp(self) -> TextMDP:
        """The environment's core, which holds the n texts: for `mdp.behavior.bind` and `mdp.render`."""
        return self._mdp

    def score(self, episodes: Episodes) -> ScoredEpisodes:
        """Per-token rewards of whole episodes, equal to stepping through them; see `score_episodes`."""
        return score_episodes(self.task, episodes)

    def _make_specs(self) -> None:
        task, batch = self.task, self.batch_size
        column = torch.Size([*batch, 1])
        observed: dict[str, Any] = {
            "input_ids": Bounded(0, task.vocab_size - 1, torch.Size([*batch, task.max_length]), dtype=torch.int64),
            "length": Bounded(1, task.max_length, column, dtype=torch.int64),
            **{name: Unbounded(column, dtype=torch.float32) for name in INFO},
        }
        if task.action_mask is not None:
            observed["action_mask"] = Binary(
                task.vocab_size, shape=torch.Size([*batch, task.vocab_size]), dtype=torch.bool
            )
        self.observation_spec = Composite(observed, shape=batch)
        self.action_spec = Categorical(task.vocab_size, shape=batch, dtype=torch.int64)
        self.reward_spec = Unbounded(column, dtype=torch.float32)
        flags = {name: Binary(1, shape=column, dtype=torch.bool) for name in ("done", "terminated", "truncated")}
        self.done_spec = Composite(flags, shape=batch)

    def _set_seed(self, seed: int | None) -> None:
        self._seeds = checked_seeds(seed, self._mdp.slots)

    def _reset(self, tensordict: TensorDictBase | None = None, **unused: Any) -> TensorDictBase:
        slots = _chosen(tensordict, "_reset", self._mdp.slots)
        self._mdp.reset(slots, seeds=[self._seeds[slot] for slot in slots])
        for slot in slots:
            self._seeds[slot] = None  # a seed holds for the first draw; the later ones follow from it
        flags = {name: torch.zeros(*self.batch_size, 1, dtype=torch.bool) for name in ("terminated", "truncated")}
        info = {name: torch.zeros(*self.batch_size, 1) for name in INFO}  # a tensor each, for they are written in place
        done = torch.from_numpy(~self._mdp.running)[:, None]
        return self._outcome({**info, **flags, "done": done})

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        mdp = self._mdp
        slots = _chosen(tensordict, "_step", mdp.slots)
        actions = tensordict.get("action").detach().cpu().numpy()[slots]
        logprobs = tensordict.get("action_log_prob", None)
        if logprobs is not None:
            mdp.behavior.publish(actions, logprobs.detach().cpu().reshape(-1).numpy()[slots], slots)
        try:
            result = mdp.step(slots, actions)
        finally:
            mdp.behavior.clear(slots)
        terminated, truncated = (self._spread(slots, flag, bool) for flag in (result.terminated, result.truncated))
        info = {name: self._spread(slots, result.info[name], np.float32) for name in INFO}
        return self._outcome(
            {
                **info,
                "reward": self._spread(slots, result.rewards, np.float32),
                "terminated": terminated,
                "truncated": truncated,
                "done": terminated | truncated,
            }
        )

    def _outcome(self, entries: dict[str, Tensor]) -> TensorDictBase:
        """The observation, and the action masks of a task that has them, beside the entries given."""
        observation = {name: torch.from_numpy(value) for name, value in self._mdp.observation().items()}
        if self.task.action_mask is not None:
            observation["action_mask"] = torch.from_numpy(self._mdp.action_masks())
        return TensorDict({**observation, **entries}, batch_size=self.batch_size)

    def _spread(self, slots: np.ndarray, values: np.ndarray, dtype: Any) -> Tensor:
        """The values (k,) of the given slots as a column (n, 1) of all, 0 in the other slots."""
        column = np.zeros((self._mdp.slots, 1), dtype=dtype)
        column[slots, 0] = values
        return torch.from_numpy(column)


def _chosen(tensordict: TensorDictBase | None, key: str, slots: int) -> np.ndarray:
    """The slots that TorchRL's mask `key` selects; all of them where the tensordict has no such mask."""
    mask = None if tensordict is None else tensordict.get(key, None)
    return np.arange(slots) if mask is None else np.flatnonzero(mask.detach().cpu().reshape(-1).numpy())
