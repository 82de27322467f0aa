"""TextVecEnv: the text MDP as a `VecEnv` of stable-baselines3, n texts in one process.

The same `TextMDP` as under the Gymnasium environments, so the same rewards.  What is different is
the manner: a slot that ends is reset within the step, its last observation is in
`info["terminal_observation"]`, and `info["TimeLimit.truncated"]` says whether to bootstrap there.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Unpack, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from agents.base.text_agent import task_of
from lm_env.envs.behavior import LogprobFn
from lm_env.envs.mdp import StepResult, TextMDP
from lm_env.envs.spaces import action_space, observation_space
from lm_env.errors import ConfigurationError
from lm_env.objective.task import Task, TaskOptions

__all__ = ["TextSpace", "TextVecEnv"]


class TextSpace(spaces.Dict):
    """The observation space of a `TextVecEnv`, with a weak reference to it.

    It is how a policy, which stable-baselines3 hands the spaces and nothing else, finds the model
    under training and tells the environment its logprobs.  Copies and pickles are plain `Dict`s.
    """

    def __init__(self, space: spaces.Dict, env: TextVecEnv) -> None:
        super().__init__(dict(space.spaces))
        self._env = weakref.ref(env)

    @property
    def env(self) -> TextVecEnv | None:
        """The environment, while it is there."""
        return self._env()

    def __reduce__(self) -> tuple[Any, ...]:
        return spaces.Dict, (dict(self.spaces),)


class TextVecEnv(VecEnv):
    """n slots of text for stable-baselines3 and sb3-contrib.

    Args:
        num_envs: n.
        kl_update_episodes: after so many finished episodes the task's KL controller is told their
            mean KL (a fixed beta does not care); None: never, as for an evaluation environment.
        task: every option of `lm_env.Task`: model, tokenizer, prompts, reward, reference, beta, ...

    Example:
        >>> from stable_baselines3 import PPO
        >>> from agents.sb3 import CausalLMPolicy, EpisodeRolloutBuffer, TextVecEnv
        >>> env = TextVecEnv.from_env("lm_env/TokenMDP-v0", num_envs=8)
        >>> agent = PPO(CausalLMPolicy, env, n_steps=16, gamma=1.0, rollout_buffer_class=EpisodeRolloutBuffer)
    """

    def __init__(self, num_envs: int = 1, *, kl_update_episodes: int | None = 128, **task: Unpack[TaskOptions]) -> None:
        self._init(Task(**task), num_envs, kl_update_episodes)

    @classmethod
    def from_env(
        cls,
        source: Task | Any | str,
        num_envs: int | None = None,
        *,
        kl_update_episodes: int | None = 128,
        **options: Any,
    ) -> TextVecEnv:
        """The same task as an environment that there is.

        Args:
            source: a text environment (single or vectorized, wrapped or not), its `Task`, or a
                registered id such as `"lm_env/Sentiment-v0"`.
            num_envs: default: as many as `source` has.
            options: of the task, with an id.

        Raises:
            ConfigurationError: options without an id, or an environment that is none of text.
        """
        if isinstance(source, str):
            source = gymnasium.make_vec(source, num_envs=num_envs or 1, **options)
        elif options:
            raise ConfigurationError(
                f"{', '.join(options)}: the task of an existing environment is settled; pass an id"
            )
        task = source if isinstance(source, Task) else task_of(source)
        env = cls.__new__(cls)
        env._init(task, num_envs or int(getattr(source, "num_envs", 1)), kl_update_episodes)
        return env

    def _init(self, task: Task, num_envs: int, kl_update_episodes: int | None) -> None:
        if kl_update_episodes is not None and kl_update_episodes < 1:
            raise ConfigurationError(f"kl_update_episodes must be at least 1 or None, not {kl_update_episodes!r}")
        self.mdp = TextMDP(task, slots=num_envs)
        self.kl_update_episodes = kl_update_episodes
        self._finished_kl: list[float] = []
        self._slots = [_Slot(self.mdp, index) for index in range(num_envs)]
        self._all = np.arange(num_envs)
        space = TextSpace(cast(spaces.Dict, observation_space(task, flat=False)), self)
        super().__init__(num_envs, space, action_space(task))

    @property
    def task(self) -> Task:
        """The resolved options: model, reference, tokenizer, prompts, reward, KL controller."""
        return self.mdp.task

    def bind_logprob_fn(self, logprob_fn: LogprobFn | None) -> None:
        """Have `logprob_fn(observation, actions) -> logprobs` asked where no policy has published."""
        self.mdp.behavior.logprob_fn = logprob_fn

    # -- VecEnv ---------------------------------------------------------------------------------------
    def reset(self) -> dict[str, np.ndarray]:
        """Begin n new texts, with the seeds of `seed` and the prompts of `set_options({"prompt": ...})`."""
        for slot, seed in enumerate(self._seeds):
            if seed is not None:
                self.mdp.seed(slot, seed)
        given = [i for i, options in enumerate(self._options) if options.get("prompt") is not None]
        drawn = np.setdiff1d(self._all, given)
        for slot in given:
            self.mdp.reset(np.array([slot]), self._options[slot]["prompt"])
        if len(drawn):
            self.mdp.reset(drawn)
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = [{"prompt": p.text, "prompt_index": p.index} for p in self.mdp.prompts if p is not None]
        return self.mdp.observation()

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions (n,) for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Append one token in each slot.

        Returns:
            (observation, rewards float32 (n,), dones bool (n,), n infos): see `TextGenerationEnv` for
            the entries of an info.
        """
        result = self.mdp.step(self._all, self._actions)
        done = result.terminated | result.truncated
        infos = _infos(result)
        if done.any():
            self._finish(np.flatnonzero(done), infos)
        return self.mdp.observation(), result.rewards.astype(np.float32), done, infos

    def close(self) -> None:
        """Nothing is held open."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """`task`, `prompt`, `response`, `render_mode`, or what `set_attr` has set, per slot."""
        return [getattr(slot, attr_name) for slot in self._chosen(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of slots."""
        for slot in self._chosen(indices):
            setattr(slot, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call `action_masks` or `render` of slots."""
        return [getattr(slot, method_name)(*args, **kwargs) for slot in self._chosen(indices)]

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """No slot is wrapped by anything."""
        return [False for _ in self._chosen(indices)]

    # -- parts ----------------------------------------------------------------------------------------
    def _chosen(self, indices: VecEnvIndices) -> Iterable[_Slot]:
        return [self._slots[i] for i in self._get_indices(indices)]

    def _finish(self, done: np.ndarray, infos: list[dict[str, Any]]) -> None:
        """Put down the last observations, reset these slots, and tell the KL controller."""
        last = self.mdp.observation(done)
        for row, slot in enumerate(done):
            infos[slot]["terminal_observation"] = {key: values[row].copy() for key, values in last.items()}
        if self.kl_update_episodes is not None:
            self._finished_kl += self.mdp.log_ratios[done].sum(1).tolist()
        self.mdp.reset(done)
        if self.kl_update_episodes is not None and len(self._finished_kl) >= self.kl_update_episodes:
            finished, self._finished_kl = self._finished_kl, []
            self.task.kl.update(float(np.mean(finished)), len(finished))


class _Slot:
    """One slot as stable-baselines3 asks for it: attributes and methods of an environment of its own."""

    render_mode = None

    def __init__(self, mdp: TextMDP, index: int) -> None:
        self._mdp, self._index = mdp, index

    @property
    def task(self) -> Task:
        return self._mdp.task

    @property
    def prompt(self) -> str:
        prompt = self._mdp.prompts[self._index]
        return "" if prompt is None else prompt.text

    @property
    def response(self) -> list[int]:
        return self._mdp.response(self._index)

    def action_masks(self) -> np.ndarray:
        return self._mdp.action_masks(np.array([self._index]))[0]

    def render(self) -> str:
        return self._mdp.render(self._index)


def _infos(result: StepResult) -> list[dict[str, Any]]:
    """One dict a slot; a plain loop over lists is far cheaper than indexing arrays."""
    keys = [*result.info, "TimeLimit.truncated"]
    columns = [values.tolist() for values in result.info.values()]
    return [dict(zip(keys, row, strict=True)) for row in zip(*columns, result.truncated.tolist(), strict=True)]
