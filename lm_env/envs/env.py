"""TextGenerationEnv: one text at a time, as a `gymnasium.Env`."""

from __future__ import annotations

import sys
from typing import Any, Unpack

import gymnasium
import numpy as np
from numpy.typing import ArrayLike

from lm_env.data.episodes import Episodes, ScoredEpisodes
from lm_env.envs.behavior import LogprobFn
from lm_env.envs.exclusive import OneAtATime
from lm_env.envs.inputs import checked_options, checked_seeds
from lm_env.envs.mdp import TextMDP
from lm_env.envs.render import RENDER_MODES, checked_render_mode, print_render
from lm_env.envs.spaces import action_space, flatten, observation_space
from lm_env.envs.state import SlotState
from lm_env.envs.time_limit import TimeLimitWarner
from lm_env.envs.vector_env import TextGenerationVectorEnv
from lm_env.objective.description import env_in_words
from lm_env.objective.options import check_task_options
from lm_env.objective.scoring import score_episodes
from lm_env.objective.task import Task, TaskOptions
from lm_env.validation import check_flag

__all__ = ["TextGenerationEnv"]

ONLY_SLOT = np.zeros(1, dtype=np.int64)  # the index array of slot 0


class TextGenerationEnv(gymnasium.Env[Any, Any]):
    """Write a text token by token; be paid its score minus a per-token KL penalty.

    - Observation: `Dict(input_ids: Box int64 (L,), length: Box int64 (1,))`, right-padded.
    - Action: `Discrete(V)`, the next token.
    - Reward: minus beta times the log-ratio log pi - log pi_ref (nats) of the token just taken, plus the score that is
      paid at this token: by default that of the whole text, at its last token.
    - `terminated`: an EOS, a stop string, or the length cap (the score is paid there too, so nothing
      is left to bootstrap).  `truncated`: the cap, with `cap_truncates`.  A `TimeLimit` is not needed, and cuts
      texts whose score is then never paid; choose the length with `max_new_tokens`.
    - `info`: `score`, `logprob`, `ref_logprob`, `kl` (of this token, nats) and `logprob_source`, where log pi
      comes from: `"published"`, `"logprob_fn"` or `"model"`.

    Args:
        flat: one Box (1 + L,) instead of the Dict, the length first.
        render_mode: `"ansi"` returns the colored text, `"human"` prints it at each end of episode.
        render_values: color tokens by `"kl"` (log-ratio to the reference) or `"reward"`.
        task: every option of `lm_env.Task`: model, tokenizer, prompts, reward, reference, beta, ...

    Raises:
        ConfigurationError, ModelLoadError, InvalidPromptError: on construction.
        InvalidActionError, ResetNeeded, RewardError, BusyError: on `step`; the state is then as before.
    """

    metadata: dict[str, Any] = {"render_modes": RENDER_MODES, "render_fps": 4}  # noqa: RUF012

    def __init__(
        self,
        *,
        flat: bool = False,
        render_mode: str | None = None,
        render_values: str = "kl",
        **task: Unpack[TaskOptions],
    ) -> None:
        self.render_mode = checked_render_mode(render_mode, render_values)
        self.render_values = render_values
        check_flag("flat", flat)
        check_task_options(task)
        self.mdp = TextMDP(Task(**task), slots=1)
        self.flat = flat
        self.observation_space = observation_space(self.task, flat)
        self.action_space = action_space(self.task)
        self._one_at_a_time = OneAtATime()
        self._time_limit = TimeLimitWarner()

    def __repr__(self) -> str:
        return env_in_words(self)

    @property
    def task(self) -> Task:
        """The resolved options: model, reference, tokenizer, prompts, reward, KL controller."""
        return self.mdp.task

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin a new text.

        Args:
            seed: an integer of at least 0, which reseeds the choice of prompts; same seed, same prompts.
            options: `{"prompt": ...}` starts from this prompt (text, token ids, or a row) instead.

        Returns:
            (observation, info): info holds the `prompt`'s text and its `prompt_index`, -1 for one
            given in `options`.

        Raises:
            ConfigurationError, InvalidPromptError, BusyError: nothing has changed.
        """
        self._time_limit.notice(sys._getframe(1), self.task.max_new_tokens)
        with self._one_at_a_time:
            chosen = checked_options(options, "prompt")
            seeds = checked_seeds(seed if seed is None else [seed], 1)
            self.mdp.reset(ONLY_SLOT, chosen.get("prompt"), seeds)
            super().reset(seed=seeds[0])
            prompt = self.mdp.prompts[0]
            assert prompt is not None
            return self.observation(), {"prompt": prompt.text, "prompt_index": prompt.index}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Append one token; see the class for what comes back."""
        with self._one_at_a_time:
            result = self.mdp.step(ONLY_SLOT, [action])
            info = {k: v.tolist()[0] for k, v in result.info.items()}
            terminated, truncated = bool(result.terminated[0]), bool(result.truncated[0])
            if self.render_mode == "human" and (terminated or truncated):
                print_render(self.mdp.render(0, self.render_values))
            return self.observation(), float(result.rewards[0]), terminated, truncated, info

    def observation(self) -> Any:
        """The text so far, as the last `reset`, `step` or `restore_state` left it; a copy of the caller's own."""
        observation = {k: v[0] for k, v in self.mdp.observation().items()}
        return flatten(observation) if self.flat else observation

    def render(self) -> str | None:
        """The text so far, each token colored; None (and printed) in `"human"` mode.

        Raises:
            ResetNeeded: there is no text yet.
        """
        if self.render_mode is None:
            gymnasium.logger.warn(
                "render() needs a render_mode: make the environment with render_mode='ansi' or 'human'"
            )
            return None
        text = self.mdp.render(0, self.render_values)
        if self.render_mode == "ansi":
            return text
        print_render(text)
        return None

    def action_masks(self) -> np.ndarray:
        """bool (V,): tokens that may come next."""
        return self.mdp.action_masks(ONLY_SLOT)[0]

    def publish(self, action: ArrayLike, logprob: ArrayLike) -> None:
        """Announce the logprob (nats) of the action of the coming step, under the policy that sampled it.

        Raises:
            PublishedActionsError: no token id, or no logprob.
        """
        self.mdp.behavior.publish(action, logprob)

    def bind_logprob_fn(self, logprob_fn: LogprobFn | None) -> None:
        """Have `logprob_fn(observation, actions) -> logprobs` asked where nothing was published."""
        self.mdp.behavior.bind(logprob_fn)

    def score(self, episodes: Episodes) -> ScoredEpisodes:
        """Per-token rewards of whole episodes, equal to stepping through them; see `score_episodes`."""
        return score_episodes(self.task, episodes)

    # -- save, restore, fork --------------------------------------------------------------------------
    def save_state(self) -> SlotState:
        """Where the episode stands: plain data, which can be kept, copied and pickled.

        The weights and beta are not part of it, nor is a logprob that is published for the coming step.

        Raises:
            ResetNeeded: there is no episode yet.
        """
        return self.mdp.save_state(0)

    def restore_state(self, state: SlotState) -> None:
        """Go back to a state; the same actions then bring the same observations, rewards and infos.

        To an earlier point of the running episode, this costs no forward.  To another episode, its text is
        read again at the next step, and logprobs may differ by rounding.

        Raises:
            ConfigurationError: the state belongs to another task; nothing has changed.
        """
        with self._one_at_a_time:
            self.mdp.restore_state(state, ONLY_SLOT)

    def fork(self, n: int) -> TextGenerationVectorEnv:
        """n copies of the episode as it stands, which go on by themselves; see `TextGenerationVectorEnv.fork`."""
        mdp = self.mdp.fork(0, n)
        return TextGenerationVectorEnv.from_mdp(
            mdp, flat=self.flat, render_mode=self.render_mode, render_values=self.render_values
        )
