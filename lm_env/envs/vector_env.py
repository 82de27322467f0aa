"""TextGenerationVectorEnv: n texts at once, as a natively batched `gymnasium.vector.VectorEnv`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, Unpack

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike

from lm_env.data.episodes import Episodes, ScoredEpisodes
from lm_env.envs.behavior import LogprobFn
from lm_env.envs.exclusive import OneAtATime
from lm_env.envs.inputs import as_array, checked_options, checked_seeds, checked_slots
from lm_env.envs.mdp import TextMDP
from lm_env.envs.render import RENDER_MODES, checked_render_mode, print_render
from lm_env.envs.spaces import action_space, flatten, observation_space
from lm_env.envs.state import SlotState
from lm_env.errors import ConfigurationError, InvalidActionError
from lm_env.objective.description import env_in_words
from lm_env.objective.options import check_task_options
from lm_env.objective.scoring import score_episodes
from lm_env.objective.task import Task, TaskOptions
from lm_env.validation import check_flag, check_integer

__all__ = ["TextGenerationVectorEnv"]


class TextGenerationVectorEnv(VectorEnv[Any, Any, Any]):
    """n slots of `TextGenerationEnv`, with one model forward of one token per slot and step.

    Observations, rewards, flags and `info` entries are arrays with a leading n; everything else is
    as in `TextGenerationEnv`.  `info["_KEY"]` tells in which slots an entry is meant.

    Args:
        num_envs: n.
        autoreset_mode: `NEXT_STEP` (Gymnasium's default: the step after an end resets and ignores
            the action), `SAME_STEP` (the end's observation and info are in `info["final_obs"]` and
            `info["final_info"]`) or `DISABLED` (call `reset(options={"reset_mask": ...})`).
        flat, render_mode, render_values, task: as in `TextGenerationEnv`.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        flat: bool = False,
        render_mode: str | None = None,
        render_values: str = "kl",
        **task: Unpack[TaskOptions],
    ) -> None:
        check_integer("the number of environments", num_envs)
        check_flag("flat", flat)
        mode = _checked_autoreset(autoreset_mode)
        checked_render_mode(render_mode, render_values)
        check_task_options(task)
        self._init(TextMDP(Task(**task), num_envs), mode, flat, render_mode, render_values)

    @classmethod
    def from_mdp(
        cls,
        mdp: TextMDP,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        flat: bool = False,
        render_mode: str | None = None,
        render_values: str = "kl",
    ) -> Self:
        """The Gymnasium interface over slots that there are."""
        env = cls.__new__(cls)
        env._init(mdp, _checked_autoreset(autoreset_mode), flat, render_mode, render_values)
        return env

    def _init(
        self, mdp: TextMDP, autoreset_mode: AutoresetMode, flat: bool, render_mode: str | None, render_values: str
    ) -> None:
        self.mdp = mdp
        self.num_envs = mdp.slots
        self.flat = flat
        self.autoreset_mode = autoreset_mode
        self.render_mode = checked_render_mode(render_mode, render_values)
        self.render_values = render_values
        self.metadata = {"autoreset_mode": autoreset_mode, "render_modes": RENDER_MODES, "render_fps": 4}
        self.single_observation_space = observation_space(self.task, flat)
        self.single_action_space = action_space(self.task)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._one_at_a_time = OneAtATime()

    def __repr__(self) -> str:
        return env_in_words(self)

    @property
    def task(self) -> Task:
        """The resolved options: model, reference, tokenizer, prompts, reward, KL controller."""
        return self.mdp.task

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin new texts.

        Args:
            seed: slot i gets seed + i, or the i-th of a sequence; same seeds, same prompts.
            options: `{"reset_mask": bool (n,)}` resets these slots alone; `{"prompt": ...}` as in
                `TextGenerationEnv.reset`.

        Raises:
            ConfigurationError, InvalidPromptError, BusyError: nothing has changed.
        """
        with self._one_at_a_time:
            chosen = checked_options(options, "prompt", "reset_mask")
            slots = self._reset_slots(chosen.get("reset_mask"))
            seeds = checked_seeds(seed, self.num_envs)
            self.mdp.reset(slots, chosen.get("prompt"), [seeds[slot] for slot in slots])
            super().reset(seed=seeds[0])
            return self.observation(), self._reset_info(slots)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Append one token in each slot; int (n,) in, arrays (n,) out."""
        with self._one_at_a_time:
            return self._step(self._checked_actions(actions))

    def _step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        mdp, n = self.mdp, self.num_envs
        resetting = np.zeros(n, dtype=bool)
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            resetting = ~mdp.running & np.array([p is not None for p in mdp.prompts])
        moving, fresh = np.flatnonzero(~resetting), np.flatnonzero(resetting)
        rewards, terminated, truncated = np.zeros(n), np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
        info: dict[str, Any] = {}
        if len(moving):
            result = mdp.step(moving, actions[moving])
            rewards[moving] = result.rewards
            terminated[moving] = result.terminated
            truncated[moving] = result.truncated
            info = _spread(result.info, moving, n)
        if len(fresh):
            mdp.reset(fresh)
            info |= self._reset_info(fresh)
        done = np.flatnonzero(terminated | truncated)
        if len(done) and self.render_mode == "human":
            print_render("\n".join(mdp.render(int(slot), self.render_values) for slot in done))
        if len(done) and self.autoreset_mode is AutoresetMode.SAME_STEP:
            info = self._final_info(done, result.info)
            mdp.reset(done)
            info |= self._reset_info(done)
        return self.observation(), rewards, terminated, truncated, info

    def observation(self) -> Any:
        """The n texts so far, as the last `reset`, `step` or `restore_state` left them; a copy of the caller's own."""
        return self._observation(None)

    def render(self) -> tuple[str, ...] | None:
        """The n texts so far, each token colored; None (and printed) in `"human"` mode.

        Raises:
            ResetNeeded: a slot has no text yet.
        """
        if self.render_mode is None:
            gymnasium.logger.warn(
                "render() needs a render_mode: make the environment with render_mode='ansi' or 'human'"
            )
            return None
        texts = tuple(self.mdp.render(slot, self.render_values) for slot in range(self.num_envs))
        if self.render_mode == "human":
            print_render("\n".join(texts))
            return None
        return texts

    def action_masks(self) -> np.ndarray:
        """bool (n, V): tokens that may come next."""
        return self.mdp.action_masks()

    def publish(self, actions: ArrayLike, logprobs: ArrayLike, slots: ArrayLike | None = None) -> None:
        """Announce the logprobs (nats) of the actions of the coming step, under the policy that sampled them.

        Args:
            actions, logprobs: (k,).
            slots: int (k,), those that are meant; all n by default.

        Raises:
            PublishedActionsError: no token ids, no logprobs, or not one of each for each slot.
        """
        self.mdp.behavior.publish(actions, logprobs, slots)

    def bind_logprob_fn(self, logprob_fn: LogprobFn | None) -> None:
        """Have `logprob_fn(observation, actions) -> logprobs` asked where nothing was published."""
        self.mdp.behavior.bind(logprob_fn)

    def score(self, episodes: Episodes) -> ScoredEpisodes:
        """Per-token rewards of whole episodes, equal to stepping through them; see `score_episodes`."""
        return score_episodes(self.task, episodes)

    # -- save, restore, fork --------------------------------------------------------------------------
    def save_state(self, slot: int) -> SlotState:
        """Where a slot's episode stands; see `TextGenerationEnv.save_state`."""
        return self.mdp.save_state(slot)

    def restore_state(self, state: SlotState, slots: ArrayLike | None = None) -> None:
        """Let slots stand where a slot of this task once stood; see `TextGenerationEnv.restore_state`.

        A slot that does not hold the text gets a copy of the KV cache's row of one that does.

        Args:
            slots: int (k,), all n by default.

        Raises:
            ConfigurationError: it is no state of this task, or these are no slots; nothing has changed.
        """
        with self._one_at_a_time:
            self.mdp.restore_state(state, checked_slots(slots, self.num_envs))

    def fork(self, slot: int, n: int) -> TextGenerationVectorEnv:
        """A new environment of n slots over the same task, all of which stand where `slot` stands.

        The same actions bring the same observations, rewards and infos as they would in `slot`.  The
        rows of the KV caches are copied, not computed again; a bound `logprob_fn` is bound there too; nothing
        else is shared.  Later episodes in the fork draw prompts of their own: other ones in each slot,
        the same in each fork of the same state.

        Example:
            >>> fork = env.fork(slot=0, n=64)
            >>> observation = fork.observation()

        Raises:
            ConfigurationError: there is no such slot, or n is no integer of at least 1.
            ResetNeeded: the slot has not been reset yet.
        """
        return TextGenerationVectorEnv.from_mdp(
            self.mdp.fork(slot, n),
            autoreset_mode=self.autoreset_mode,
            flat=self.flat,
            render_mode=self.render_mode,
            render_values=self.render_values,
        )

    # -- parts --------------------------------------------------------------------------------------
    def _reset_slots(self, mask: Any) -> np.ndarray:
        if mask is None:
            return np.arange(self.num_envs)
        try:
            mask = as_array(mask)
        except ValueError as error:
            raise ConfigurationError(f"reset_mask must be a bool array ({self.num_envs},): {error}") from error
        if mask.dtype != np.bool_ or mask.shape != (self.num_envs,) or not mask.any():
            raise ConfigurationError(
                f"reset_mask must be a bool array ({self.num_envs},) with at least one True, not {mask!r}"
            )
        return np.flatnonzero(mask)

    def _checked_actions(self, actions: Any) -> np.ndarray:
        try:
            tokens = as_array(actions)
        except ValueError as error:
            raise InvalidActionError(f"actions must be whole token ids: {error}") from error
        if tokens.shape != (self.num_envs,):
            raise InvalidActionError(
                f"actions of shape {tokens.shape}: give one token id for each of {self.num_envs} environments"
            )
        return tokens

    def _observation(self, slots: np.ndarray | None) -> Any:
        observation = self.mdp.observation(slots)
        return flatten(observation) if self.flat else observation

    def _reset_info(self, slots: np.ndarray) -> dict[str, Any]:
        prompts = [p for slot in slots if (p := self.mdp.prompts[slot]) is not None]
        columns = {
            "prompt": np.array([p.text for p in prompts], dtype=object),
            "prompt_index": np.array([p.index for p in prompts]),
        }
        return _spread(columns, slots, self.num_envs)

    def _final_info(self, done: np.ndarray, result: dict[str, np.ndarray]) -> dict[str, Any]:
        """Gymnasium's SAME_STEP layout: what belongs to the ended episodes stands under `final_info`."""
        n, last = self.num_envs, self._observation(done)
        final_obs = np.full(n, None, dtype=object)
        for i, slot in enumerate(done):
            final_obs[slot] = last[i] if self.flat else {k: v[i] for k, v in last.items()}
        ended = np.isin(np.arange(n), done)
        rest = np.flatnonzero(~ended)
        return {
            **_spread({k: v[rest] for k, v in result.items()}, rest, n),
            "final_obs": final_obs,
            "_final_obs": ended,
            "final_info": _spread({k: v[done] for k, v in result.items()}, done, n),
            "_final_info": ended.copy(),
        }


def _checked_autoreset(mode: AutoresetMode | str) -> AutoresetMode:
    try:
        return AutoresetMode(mode)
    except ValueError as error:
        modes = ", ".join(repr(m.value) for m in AutoresetMode)
        raise ConfigurationError(f"autoreset_mode must be one of {modes}, not {mode!r}") from error


def _spread(columns: dict[str, np.ndarray], slots: np.ndarray, n: int) -> dict[str, Any]:
    """Arrays of some slots (k,) -> arrays (n,), each with the mask `_key` of where it is meant."""
    if not len(slots):
        return {}
    mask = np.zeros(n, dtype=bool)
    mask[slots] = True
    info: dict[str, Any] = {}
    for key, values in columns.items():
        if len(slots) == n:
            info[key] = values
        else:
            info[key] = np.full(
                n, None if values.dtype == object else np.zeros((), values.dtype).item(), dtype=values.dtype
            )
            info[key][slots] = values
        info[f"_{key}"] = mask.copy()
    return info
