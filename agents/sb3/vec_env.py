"""TextVecEnv: the text MDP as a `VecEnv` of stable-baselines3, n texts in one process.

It runs the same `TextMDP` as the Gymnasium environments, so its rewards are the same.  The interface
differs: a slot that ends is reset within the step, its last observation is in
`info["terminal_observation"]`, and `info["TimeLimit.truncated"]` says whether to bootstrap there.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Unpack, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from agents.base.text_agent import task_of
from agents.base.wrappers import check_wrappers
from agents.sb3.sampled_actions import ActingPolicy, Sample
from agents.sb3.slot import Slot, attribute_of, set_attribute
from lm_env.envs.behavior import LogprobFn
from lm_env.envs.mdp import StepResult, TextMDP
from lm_env.envs.spaces import action_space, observation_space
from lm_env.errors import ConfigurationError
from lm_env.models.adapters import without_wrapper
from lm_env.objective.description import env_in_words
from lm_env.objective.task import Task, TaskOptions
from lm_env.validation import check_integer

__all__ = ["TextSpace", "TextVecEnv"]


class TextSpace(spaces.Dict):
    """The observation space of a `TextVecEnv`, with a weak reference to it.

    stable-baselines3 gives a policy the spaces and nothing else; this one leads it to the model under training.
    Copies and pickles are plain `Dict`s.
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
        kl_update_episodes: after this many finished episodes the task's KL controller is given their mean KL
            (a fixed beta ignores it); None: never, as for an evaluation environment.
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
        """An environment with the task of another one.

        Args:
            source: a text environment (of Gymnasium or a `TextVecEnv`, wrapped or not), its `Task`, or a
                registered id such as `"lm_env/Sentiment-v0"`.
            num_envs: default: as many as `source` has.
            options: of the task; for a registered id only.

        Raises:
            ConfigurationError: options without an id, an environment that is not one of text, or a wrapper around
                it that changes it and would be dropped.
        """
        if isinstance(source, str):
            source = gymnasium.make_vec(source, num_envs=num_envs or 1, **options)
        elif options:
            raise ConfigurationError(
                f"{', '.join(options)}: an existing task cannot be changed; pass a registered id to set options"
            )
        env = cls.__new__(cls)
        env._init(_task_of(source), num_envs or int(getattr(source, "num_envs", 1)), kl_update_episodes)
        return env

    def _init(self, task: Task, num_envs: int, kl_update_episodes: int | None) -> None:
        if kl_update_episodes is not None:
            check_integer("kl_update_episodes (None for never)", kl_update_episodes)
        self.mdp = TextMDP(task, slots=num_envs)
        self.mdp.idle_controller.settle()
        self.kl_update_episodes = kl_update_episodes
        self._finished_kl: list[float] = []
        self._slots = [Slot(self.mdp, index) for index in range(num_envs)]
        self._all = np.arange(num_envs)
        self._actions: Any = None
        self._policy_logprob_fn: LogprobFn | None = None
        space = TextSpace(cast(spaces.Dict, observation_space(task, flat=False)), self)
        super().__init__(num_envs, space, action_space(task))

    def __repr__(self) -> str:
        return env_in_words(self)

    @property
    def task(self) -> Task:
        """The resolved options: model, reference, tokenizer, prompts, reward, KL controller."""
        return self.mdp.task

    def shows(self, input_ids: np.ndarray, lengths: np.ndarray) -> bool:
        """Whether these, (n, L) and (n,), are the texts that the environment holds at the moment."""
        return np.array_equal(lengths, self.mdp.lengths) and np.array_equal(input_ids, self.mdp.input_ids)

    # -- who acts in it -------------------------------------------------------------------------------
    def publish(self, actions: ArrayLike, logprobs: ArrayLike, slots: ArrayLike | None = None) -> None:
        """Give the logprobs (nats) of the actions of the coming step; see `Behavior.publish`.

        The policies of this package need not call it: their actions carry the logprobs.
        """
        self.mdp.behavior.publish(actions, logprobs, slots)

    def bind_logprob_fn(self, logprob_fn: LogprobFn | None) -> None:
        """Have `logprob_fn(observation, actions) -> logprobs` asked where no policy has published."""
        self.mdp.behavior.bind(logprob_fn)

    def set_policy(self, policy: ActingPolicy) -> None:
        """Ask `policy` for the logprobs of actions that it did not sample, where the own model has others.

        Called by the policy that is made for this environment, and by a step with actions of another one.

        Raises:
            ConfigurationError: the policy took its temperature from an environment with another one, or it does not
                know the action masks of this task.
        """
        task = self.task
        if task.action_mask is not None and not policy.takes_action_masks:
            raise ConfigurationError("the task masks tokens: use MaskableCausalLMPolicy with sb3-contrib's MaskablePPO")
        if policy.temperature != task.temperature and not policy.temperature_given:
            raise ConfigurationError(
                f"the policy samples at temperature {policy.temperature:g}, and this environment has"
                f" {task.temperature:g}: create the environment with that temperature, or set the policy's with"
                " policy_kwargs={'temperature': ...}"
            )
        if policy.lm is not without_wrapper(task.model) or policy.temperature != task.temperature:
            self._policy_logprob_fn = policy.logprob_fn
            self.bind_logprob_fn(self._policy_logprob_fn)
        elif self._policy_logprob_fn is not None and self.mdp.behavior.logprob_fn == self._policy_logprob_fn:
            self._policy_logprob_fn = None
            self.bind_logprob_fn(None)

    # -- VecEnv ---------------------------------------------------------------------------------------
    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Have slot i begin with the seed `seed` + i at the next `reset`; None: with a random one."""
        return super().seed(None if seed is None else check_integer("seed", seed, low=0))

    def set_options(self, options: list[dict] | dict | None = None) -> None:
        """Keep `{"prompt": ...}`, for all slots or a list of one for each, for the next `reset`.

        Raises:
            ConfigurationError: another option, or another number of dicts than slots.
            InvalidPromptError: a prompt that the task cannot take.
        """
        given = options if isinstance(options, list) else [options] * self.num_envs
        if len(given) != self.num_envs:
            raise ConfigurationError(f"{len(given)} options for {self.num_envs} environments: give one dict each")
        for own in given:
            if not isinstance(own, dict | None) or set(own or {}) - {"prompt"}:
                raise ConfigurationError(f"the options of a reset are {{'prompt': ...}}, not {own!r}")
        super().set_options([self._checked_options(own or {}) for own in given])

    def reset(self) -> dict[str, np.ndarray]:
        """Begin n new texts, with the seeds of `seed` and the prompts of `set_options({"prompt": ...})`."""
        for slot, seed in enumerate(self._seeds):
            if seed is not None:
                self.mdp.seed(slot, seed)
        given = [slot for slot, options in enumerate(self._options) if options]
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

        Raises:
            InvalidActionError, ResetNeeded, PublishedActionsError, RewardError: see `TextMDP.step`.
        """
        actions = self._actions
        self._actions = None
        sample = getattr(actions, "sample", None)
        if isinstance(sample, Sample):
            self._receive(sample, actions)
        result = self.mdp.step(self._all, actions)
        done = result.terminated | result.truncated
        infos = _infos(result)
        if done.any():
            self._finish(np.flatnonzero(done), infos)
        return self.mdp.observation(), result.rewards.astype(np.float32), done, infos

    def close(self) -> None:
        """Do nothing: no resource is held open."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """`task`, `prompt`, `response`, `render_mode`, or what `set_attr` has set, per slot."""
        return [attribute_of(slot, attr_name) for slot in self._chosen(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of slots."""
        for slot in self._chosen(indices):
            set_attribute(slot, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call `action_masks` or `render` of slots."""
        return [attribute_of(slot, method_name)(*args, **kwargs) for slot in self._chosen(indices)]

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """False for each slot: none has a wrapper of its own."""
        return [False for _ in self._chosen(indices)]

    # -- parts ----------------------------------------------------------------------------------------
    def _chosen(self, indices: VecEnvIndices) -> list[Slot]:
        return [self._slots[i] for i in self._get_indices(indices)]

    def _checked_options(self, options: dict[str, Any]) -> dict[str, Any]:
        prompt = options.get("prompt")
        return {} if prompt is None else {"prompt": self.mdp.checked_prompt(prompt)}

    def _receive(self, sample: Sample, actions: Any) -> None:
        """Publish the logprobs that the actions carry, where they were sampled for the present texts.

        Actions altered after `predict` have other logprobs: `logprob_fn` or the environment's model computes them.
        Actions of a rollout must not be altered; `step` refuses altered ones.
        """
        self.set_policy(sample.policy)
        sample.received = True
        if self.shows(sample.input_ids, sample.lengths) and (sample.final or np.array_equal(actions, sample.tokens)):
            self.publish(sample.tokens, sample.logprobs)

    def _finish(self, done: np.ndarray, infos: list[dict[str, Any]]) -> None:
        """Report the last observations of the slots that are done, reset these, and update the KL controller."""
        last = self.mdp.observation(done)
        for row, slot in enumerate(done):
            infos[slot]["terminal_observation"] = {key: values[row].copy() for key, values in last.items()}
        if self.kl_update_episodes is not None:
            self._finished_kl += self.mdp.log_ratios[done].sum(1).tolist()
        self.mdp.reset(done)
        if self.kl_update_episodes is not None and len(self._finished_kl) >= self.kl_update_episodes:
            finished = self._finished_kl
            self._finished_kl = []
            self.task.kl.update(float(np.mean(finished)), len(finished))


def _task_of(source: Any) -> Task:
    """The task of a `TextVecEnv` or a text environment of Gymnasium, wrapped or not, or the task itself."""
    if isinstance(source, Task):
        return source
    inner = getattr(source, "unwrapped", source)
    if not isinstance(inner, TextVecEnv):
        return task_of(source)
    check_wrappers(source, inner.task.max_new_tokens)
    return inner.task


def _infos(result: StepResult) -> list[dict[str, Any]]:
    """One dict per slot; a plain loop over lists is far cheaper than indexing arrays."""
    keys = [*result.info, "TimeLimit.truncated"]
    columns = [values.tolist() for values in result.info.values()]
    return [dict(zip(keys, row, strict=True)) for row in zip(*columns, result.truncated.tolist(), strict=True)]
