"""PolicyAgent: a policy and its updater, with predict, save and load.  The training loop is in `agent.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import gymnasium
import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from agents.base.config import AgentConfig, make_config
from agents.base.observations import checked_masks, checked_observation
from agents.base.text_agent import TextAgent, task_of
from agents.learning.critic import CriticSource, describe_critic, make_policy, rebuild_critic
from agents.learning.options import Updating
from agents.learning.randomness import Randomness
from agents.learning.updater import Updater
from agents.run.checkpoint import Checkpoint, language_model_tensors, read_checkpoint, write_checkpoint
from lm_env.distributed import processes
from lm_env.errors import CheckpointCorruptError, CheckpointMismatchError, ConfigurationError, UnsafeFileError
from lm_env.generation.backend import Decoding
from lm_env.generation.generate import LocalBackend
from lm_env.generation.sampling import sample
from lm_env.models.export import check_finite, check_mergeable, export_language_model
from lm_env.models.logprobs import restrict
from lm_env.objective.fingerprint import check_fingerprint, task_fingerprint
from lm_env.objective.task import Task
from lm_env.storage import folder_of, read_folder
from lm_env.validation import check_flag, checked_path

__all__ = ["PolicyAgent"]


class PolicyAgent(TextAgent):
    """The environment's own model as a policy, perhaps with a critic, and the updater that trains both.

    Args:
        env: see `TextAgent`.
        critic, decoding, updating: see `BatchedAgent`.
        options: the fields of the agent's config.
    """

    Config: ClassVar[type[AgentConfig]] = AgentConfig
    default_critic: ClassVar[CriticSource] = "shared"

    def __init__(
        self,
        env: Any,
        *,
        critic: CriticSource | None = None,
        decoding: Decoding | None = None,
        updating: Updating | None = None,
        **options: Any,
    ) -> None:
        self.config = make_config(self.Config, type(self).__name__, options)
        super().__init__(env, self.config.seed)
        self.policy = make_policy(self.task, self.default_critic if critic is None else critic)
        self.policy.train(False)  # dropout would make the first ratio differ from 1
        self.updater = Updater(self.policy, self.task, self.config, updating)
        value_of = self.policy.value_of if self.policy.reads_trunk else None
        self.backend = LocalBackend(self.task, self.config.slots, value_of=value_of, decoding=decoding)
        self.num_timesteps = 0
        self.num_rollouts = 0

    @property
    def ema(self) -> Any:
        """The average of the LM's weights, in `ema.module`; None unless `ema_decay` is set."""
        return self.updater.ema

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

        Raises:
            ConfigurationError: it is no observation of such an environment, or the masks do not fit it.
        """
        if self.task.action_mask is not None and action_masks is None:
            raise ConfigurationError("this task masks tokens: call predict(..., action_masks=env.action_masks())")
        ids, lengths, single = checked_observation(observation, self.task.vocab_size)
        logits, _ = self.policy.next_outputs(ids, lengths)
        if action_masks is not None:
            logits = restrict(logits, checked_masks(action_masks, tuple(logits.shape)))
        tokens, _ = sample(logits, self.task.temperature, self.randomness.sampling, deterministic)
        actions = tokens.cpu().numpy()
        return (actions[0] if single else actions), None

    # -- state that a subclass adds ---------------------------------------------------
    def extra_state(self) -> dict[str, Any]:
        """State of a subclass that `state` does not cover, as JSON; it is saved and passed to `load_extra_state`."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what `extra_state` gave."""
        return

    # -- files ------------------------------------------------------------------------------------------
    def save(self, path: str | Path, *, merge: bool = False) -> Path:
        """Write a folder that `load` and, for a transformers model, `AutoModelForCausalLM.from_pretrained` read.

        Safetensors and JSON only; written beside and renamed into place, with checksums.  A path that ends
        in `.zip`, as stable-baselines3's callbacks write it, names the folder without that ending.  Of several
        processes that train together all call this, and the first one writes.

        Args:
            merge: of a peft model, write the whole language model, its adapter merged into a copy of it.
                Otherwise the adapter alone is written, with the name of its base, as peft does; `load_model`
                and, where peft is installed, `AutoModelForCausalLM` read that too.

        Returns:
            the folder.

        Raises:
            ConfigurationError: no path, or an adapter that cannot be merged into its quantized base.
            NonFiniteError: a weight is NaN or infinite; nothing was written.
            CheckpointWriteError: see `lm_env.storage`; what was there before is untouched.
        """
        check_flag("merge", merge)
        return self.write(checked_path("the path", path), self.state(), merge=merge)

    def write(self, path: Path, checkpoint: Checkpoint, *, merge: bool = False) -> Path:
        """Write what `state` gave, with the language model beside it; see `save`."""
        if not processes().first:
            return path
        task = self.task
        lm = task.adapter or task.model
        if merge:
            check_mergeable(lm)
        check_finite(self.policy.state_dict())
        base = getattr(task.reference, "name_or_path", None)

        def export(folder: Path) -> None:
            export_language_model(lm, task.tokenizer, folder, merge=merge, base=base)

        return write_checkpoint(path, checkpoint, export)

    def saved_bytes(self) -> int:
        """About how many bytes `save` writes: all weights, two moments of those that are trained, the average."""
        whole = _bytes(self.policy.state_dict().values()) + _bytes(() if self.ema is None else self.ema.parameters())
        return whole + 2 * _bytes(p for p in self.policy.parameters() if p.requires_grad)

    @classmethod
    def load(cls, path: str | Path, env: Any, **options: Any) -> Self:
        """An agent on `env`, with the saved weights (put into the env's model), optimizer and counters.

        Nothing of the environment has changed if this raises.

        Args:
            env: made as it was for the saved agent: its reference is not part of the checkpoint.
            options: of the constructor, in place of the saved ones or beside them (`verbose`, `log_dir`).

        Raises:
            CheckpointCorruptError: a file is missing, damaged, or edited into something else.
            CheckpointMismatchError: another agent, model or vocabulary; the message names what differs.

        Warns:
            UserWarning: another reward, reference, prompts, ... than when it was saved; or another fixed beta,
                which the saved one replaces.
        """
        given = checked_path("the path", path)
        place = folder_of(given)
        if given.is_file() and not place.is_dir():
            raise UnsafeFileError(
                f"{given} is a file, such as stable-baselines3's own save, which is unpickled: give a folder that"
                f" {cls.__name__}.save wrote"
            )
        env = gymnasium.make(env) if isinstance(env, str) else env
        task = task_of(env)
        checkpoint = read_folder(place, lambda folder: cls._read(folder, place, task, check_fingerprint))
        settings = checkpoint.settings
        if "critic" not in options:
            options["critic"] = rebuild_critic(settings["critic"])
        agent = cls(env, **{**settings["config"], **options})
        agent.restore(checkpoint)
        return agent

    @classmethod
    def _read(cls, folder: Path, place: Path, task: Task, check: Callable[[Any, Task, Any], None]) -> Checkpoint:
        """The checkpoint in a verified folder, once it is known to be of this class and to fit the task.

        Args:
            place: what the folder is called in messages.
            check: given the saved fingerprint, the task and the place, refuses a task that does not fit.
        """
        checkpoint = read_checkpoint(folder)
        settings = checkpoint.settings
        if settings["agent"] != cls.__name__:
            raise CheckpointMismatchError(
                f"{place} holds an agent of class {settings['agent']}, not {cls.__name__}: load it with that class"
            )
        known = {field.name for field in fields(cls.Config)}
        if unknown := sorted(settings["config"].keys() - known):  # such as log_dir, which would name a place to write
            raise CheckpointMismatchError(
                f"the config in {place} has an option {unknown[0]!r}, which {cls.Config.__name__} does not have"
            )
        _check_saved_config(cls, settings["config"], place)
        check(settings["task"], task, place)
        if not _is_exported_whole(task):
            return checkpoint
        exported = {f"lm.{k}": v for k, v in language_model_tensors(task.model, folder).items()}
        return replace(checkpoint, weights={**checkpoint.weights, **exported})

    def state(self) -> Checkpoint:
        """Everything needed to resume training, except the environment."""
        updater, layout = self.updater.state()
        settings = {
            "agent": type(self).__name__,
            "config": vars(self.config),
            "critic": describe_critic(self.policy),
            "task": task_fingerprint(self.task),
            "num_timesteps": self.num_timesteps,
            "num_rollouts": self.num_rollouts,
            "kl": self.task.kl.state_dict(),
            "randomness": self.randomness.state(),
            "optimizer": layout,
            "extra": self.extra_state(),
        }
        return Checkpoint(settings, self._own_weights(), {k: _plain(v) for k, v in updater.items()})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take back what `state` gave, with the language model's weights.

        Whatever can be refused is refused before the environment changes.
        """
        settings = checkpoint.settings
        weights = checkpoint.weights
        self._check_weights(weights)
        self.updater.check_state(checkpoint.updater, settings["optimizer"])
        randomness = Randomness.from_state(settings["randomness"])
        try:
            self.load_extra_state(settings["extra"])
        except CheckpointMismatchError:
            raise
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise CheckpointCorruptError(f"the agent's own state is damaged ({error!r}): take another one") from error
        self.task.kl.load_state_dict(settings["kl"])  # the last that can be refused
        self.policy.load_state_dict(weights, strict=self.task.adapter is None)
        self.updater.restore(checkpoint.updater)
        self.num_timesteps = settings["num_timesteps"]
        self.num_rollouts = settings["num_rollouts"]
        self.randomness = randomness

    def _own_weights(self) -> dict[str, Tensor]:
        """What the exported language model does not hold: heads, critics, tables; all that an adapter trains."""
        state = self.policy.state_dict()
        if self.task.adapter is not None:
            trained = {name for name, p in self.policy.named_parameters() if p.requires_grad}
            state = {name: tensor for name, tensor in state.items() if name in trained}
        elif _is_exported_whole(self.task):
            state = {name: tensor for name, tensor in state.items() if not name.startswith("lm.")}
        return {name: _plain(tensor) for name, tensor in state.items()}

    def _check_weights(self, weights: dict[str, Tensor]) -> None:
        """Raise CheckpointMismatchError unless each tensor has its place in the policy, and the other way round."""
        own = self.policy.state_dict() if self.task.adapter is None else self._own_weights()
        problem = None
        if odd := sorted(own.keys() ^ weights.keys()):
            problem = f"{odd[0]} is only in {'the environment' if odd[0] in own else 'the checkpoint'}"
        else:
            for name, tensor in weights.items():
                if tensor.shape != own[name].shape:
                    problem = f"{name} has the shape {tuple(tensor.shape)}, not {tuple(own[name].shape)}"
                    break
        if problem:
            raise CheckpointMismatchError(f"the saved weights do not fit the environment's model: {problem}")


def _check_saved_config(cls: type[PolicyAgent], saved: dict[str, Any], place: Path) -> None:
    """Raise CheckpointCorruptError if a saved option is none that the agent could have had."""
    try:
        make_config(cls.Config, cls.__name__, saved)
    except ConfigurationError as error:
        raise CheckpointCorruptError(f"the config in {place} is not as it was saved: {error}") from error


def _is_exported_whole(task: Task) -> bool:
    """Whether the exported language model holds all of the LM's weights as they are in the policy."""
    return isinstance(task.model, PreTrainedModel) and task.adapter is None


def _plain(tensor: Tensor) -> Tensor:
    """A copy that safetensors can write."""
    return tensor.detach().cpu().clone().contiguous()


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
