"""Episodes as a Minari data set, for offline RL: observations, actions, per-token rewards and the prompts' texts.

The rewards are those of the environment; the KL penalty in them is that of the policy that wrote the episodes.

Shapes: B episodes, T response tokens, L tokens of the longest text.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from lm_env.data.episodes import Episodes, ScoredEpisodes
from lm_env.envs.spaces import action_space, flatten, observation_space
from lm_env.errors import CheckpointWriteError, ConfigurationError, MissingDependencyError
from lm_env.export.source import live_task
from lm_env.objective.scoring import score_episodes
from lm_env.objective.task import Task

try:
    import minari
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.storage.local import get_dataset_path
except ImportError as error:
    raise MissingDependencyError("to_minari needs minari: pip install 'lm-env[minari]'") from error

__all__ = ["to_minari"]


def to_minari(
    env: Any,
    episodes: Episodes,
    dataset_id: str,
    *,
    scored: ScoredEpisodes | None = None,
    **description: Any,
) -> Any:
    """Write episodes as a Minari data set, which `minari.load_dataset(dataset_id)` finds.

    Minari decides where: the folder that its MINARI_DATASETS_PATH names, else ~/.minari/datasets.

    Each step has the observation of the environment's space, the token, its reward, and `terminated` and `truncated`.
    `dataset.recover_environment()` makes the environment anew, if `gymnasium.make` has made it with plain options.
    The infos `score`, `logprob`, `ref_logprob` and `kl` are float64 (T + 1, 1): a NaN for the reset, then one number
    per token; `kl` is `logprob` - `ref_logprob`, in nats, and `score` is that of the whole text, at its last token, and
    0 before.  The metadata of an episode hold its `prompt`, `prompt_index`, `response`, `score` and whether it
    `ended` by itself; a NUL character in a text is written as U+2400.

    Args:
        env: the environment, or the `lm_env.Task`, that the episodes are of.
        episodes: what `agent.generate_episodes(n=...)` returns, or `agent.collect_rollout().episodes`.
        dataset_id: Minari's name for the data set, "namespace/name-v0".
        scored: the rewards of these episodes, as `env.score` gives them; None: they are scored now.  Rewards of other
            episodes are refused where their lengths, ends or logprobs show it.
        description: what Minari keeps of the data set's origin: `algorithm_name`, `author`, `author_email`,
            `code_permalink`, `description`, `requirements`, `data_format` ("hdf5", "arrow", "parquet").

    Returns:
        The `minari.MinariDataset`.

    Raises:
        MissingDependencyError: minari, or what its format needs, is not installed.
        ConfigurationError: the id is malformed or taken, there are no episodes, one of them does not fit the
            environment, or an option is unknown.
        CheckpointWriteError: the data set could not be written; no part of it is left, but a new namespace stays.
    """
    task = live_task(env, {})
    if not len(episodes):
        raise ConfigurationError("there are no episodes to write: give at least one")
    scored = score_episodes(task, episodes) if scored is None else scored
    if not isinstance(scored, ScoredEpisodes):
        raise ConfigurationError(f"scored is what env.score returns, not {type(scored).__name__}")
    _check_scored(task, episodes, scored)
    flat = bool(getattr(getattr(env, "unwrapped", env), "flat", False))
    folder = _unused_folder(dataset_id)
    try:
        with warnings.catch_warnings():  # Minari reminds of each thing that was left out; the docstring has named them
            warnings.filterwarnings("ignore", r".*is set to None|env_spec is None", UserWarning)
            made = minari.create_dataset_from_buffers(
                dataset_id,
                list(_buffers(task, episodes, scored, flat)),
                env=_recoverable(env),
                observation_space=observation_space(task, flat),
                action_space=action_space(task),
                **description,
            )
            made.storage.update_episode_metadata(list(_metadata(task, episodes, scored)))
    except BaseException as error:
        if isinstance(error, FileExistsError) or "cannot be overridden" in str(error):  # it has come meanwhile
            raise _taken(dataset_id, folder) from error
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, TypeError | ValueError | AssertionError):  # Minari asserts the types of its arguments
            named = f"one of {', '.join(description)}" if description else "an argument"
            reason = str(error) or f"{named} is of another type than it asks for"
            raise ConfigurationError(f"Minari does not take this: {reason}") from error
        if isinstance(error, ImportError):
            raise MissingDependencyError(f"{error} -- or pip install 'lm-env[minari]'") from error
        if isinstance(error, OSError):
            raise CheckpointWriteError(f"cannot write {folder}: {error}") from error
        raise
    return made


def _recoverable(env: Any) -> gymnasium.Env | None:
    """The environment, if Minari can write down how it was made, so that `dataset.recover_environment()` makes it."""
    if not isinstance(env, gymnasium.Env) or env.spec is None:
        return None
    try:
        env.spec.to_json()
    except (TypeError, ValueError):  # an option that is no plain value, such as a function
        return None
    return env


def _check_scored(task: Task, episodes: Episodes, scored: ScoredEpisodes) -> None:
    """Raise ConfigurationError where it shows that the scores are those of other episodes."""
    if len(scored.scores) != len(episodes):
        raise ConfigurationError(f"scored holds {len(scored.scores)} episodes, and there are {len(episodes)}")
    ended, _ = task.ends(episodes.input_ids, episodes.prompt_lengths, episodes.lengths)
    width = scored.logprobs.shape[1]
    padding = np.arange(width) >= episodes.response_lengths[:, None]
    other = (
        int(episodes.response_lengths.max()) > width or scored.logprobs[padding].any() or (ended != scored.ended).any()
    )
    if not other and episodes.logprobs is not None:  # then they are those of the scores as well
        mask = episodes.response_mask()
        other = (scored.logprobs[:, : mask.shape[1]][mask] != episodes.logprobs[mask]).any()
    if other:
        raise ConfigurationError(
            "scored is of other episodes, which have other lengths, ends or logprobs: give what env.score(episodes)"
            " returns, or leave scored out"
        )


def _unused_folder(dataset_id: str) -> Path:
    """The folder that Minari will write, which does not exist yet."""
    try:
        parse_dataset_id(dataset_id)
        folder = get_dataset_path(dataset_id)
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigurationError(
            f"{dataset_id!r} is no id of a Minari data set ({error}): write 'namespace/name-v0'"
        ) from error
    if folder.exists():
        raise _taken(dataset_id, folder)
    return Path(folder)


def _taken(dataset_id: str, folder: Path) -> ConfigurationError:
    return ConfigurationError(
        f"there is a Minari data set {dataset_id!r} already, in {folder}: choose another name or version, or remove it"
        f" with minari.delete_dataset({dataset_id!r})"
    )


def _buffers(task: Task, episodes: Episodes, scored: ScoredEpisodes, flat: bool) -> Iterator[EpisodeBuffer]:
    """Each episode with its T + 1 observations, the prompt alone first, and its T actions and rewards."""
    _, capped = task.ends(episodes.input_ids, episodes.prompt_lengths, episodes.lengths)
    truncated = capped & task.cap_truncates
    for row, (prompt, length) in enumerate(zip(episodes.prompt_lengths, episodes.lengths, strict=True)):
        steps = int(length - prompt)
        seen = np.arange(prompt, length + 1)  # tokens in the text at each time, the reset included
        ids = np.full((steps + 1, task.max_length), task.pad_token_id, dtype=np.int64)
        within = np.arange(length) < seen[:, None]
        ids[:, :length][within] = np.broadcast_to(episodes.input_ids[row, :length], within.shape)[within]
        observations = {"input_ids": ids, "length": seen[:, None].astype(np.int64)}
        last = np.arange(steps) == steps - 1
        yield EpisodeBuffer(
            id=row,
            observations=flatten(observations) if flat else observations,
            actions=episodes.input_ids[row, prompt:length],
            rewards=scored.rewards[row, :steps].tolist(),
            terminations=(last & ~truncated[row]).tolist(),
            truncations=(last & truncated[row]).tolist(),
            infos=_infos(scored, row, steps),
        )


def _infos(scored: ScoredEpisodes, row: int, steps: int) -> dict[str, np.ndarray]:
    """The infos (T + 1, 1) of the episode in a row, by name; a NaN stands for the reset."""
    logprobs, ref_logprobs = scored.logprobs[row, :steps], scored.ref_logprobs[row, :steps]
    score = np.zeros(steps)
    score[-1] = scored.scores[row]
    columns = {"score": score, "logprob": logprobs, "ref_logprob": ref_logprobs, "kl": logprobs - ref_logprobs}
    return {name: np.concatenate([[np.nan], values])[:, None] for name, values in columns.items()}


def _metadata(task: Task, episodes: Episodes, scored: ScoredEpisodes) -> Iterator[dict[str, Any]]:
    """What Minari stores once per episode."""
    for row, (prompt, response) in enumerate(zip(episodes.prompts, episodes.responses(), strict=True)):
        yield {
            "prompt": _storable(prompt.text),
            "prompt_index": prompt.index,
            "response": _storable(task.text_of(response)),
            "score": float(scored.scores[row]),
            "ended": bool(scored.ended[row]),
        }


def _storable(text: str) -> str:
    """The text without NUL characters, which HDF5 does not store in a text; the picture of one stands for each."""
    return text.replace("\0", "\u2400")
