"""The loop of supervised training: batches in a fixed order, Adam with a cosine schedule, checkpoints on the way.

Fine-tuning, DPO and the training of a reward model use this loop with their own losses.  Where torchrun has started
several processes, each computes the gradient of its part of a batch, and all of them take the same steps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lm_env.distributed import processes
from lm_env.errors import CheckpointCorruptError, CheckpointMismatchError, ConfigurationError, TrainingInterrupted
from lm_env.models.export import check_finite
from lm_env.models.optimization import guarded_step, join_optimizer, split_optimizer
from lm_env.progress import tracked
from lm_env.storage import CheckpointFolder, Checkpointing, StopSignals, read_folder, read_json, write_folder

__all__ = ["Stopping", "fit", "weights_digest"]

VERSION = 1
STATE = "state.json"
WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
STOPPING = "stopping.safetensors"
SAMPLED = 64
"""Numbers at either end of a tensor that tell it from another one."""


class Stopping(Protocol):
    """A rule that may end a run before its last batch, such as early stopping on a held-out loss."""

    def stops(self, step: int) -> bool:
        """Whether the run ends now; called after each step, with the number of steps taken."""

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Its whole state: JSON, and tensors by name."""

    def load_state(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""


def fit(
    parameters: Mapping[str, nn.Parameter],
    batches: Sequence[np.ndarray],
    accumulate: Callable[[np.ndarray], float],
    *,
    learning_rate: float,
    max_grad_norm: float,
    identity: Mapping[str, Any],
    optimizer: torch.optim.Optimizer | None = None,
    stopping: Stopping | None = None,
    checkpoint: Checkpointing | None = None,
    resume: bool = False,
    title: str = "training",
    progress_bar: bool = False,
) -> list[float]:
    """One optimizer step per batch; the learning rate falls to 0 along a cosine.

    Several processes call this alike, with the same weights; their gradients and losses are added.  The first process
    keeps the checkpoints, and a run goes on in any number of them.

    A run that is resumed from a checkpoint ends with the same weights, to the last bit, as one that was never
    stopped (on the CPU, with the same number of threads).

    Args:
        parameters: what is trained, by name.
        batches: int arrays, the samples of each step in order; a resumed run must be given the same ones.
        accumulate: given a batch, adds the gradient of its loss to the parameters, and returns the loss; of several
            processes, each does so for the part that `processes().deal` gives it, such that the parts' losses add up to
            the batch's.
        identity: JSON that tells this run from others (options, digest of the data); a checkpoint with another
            identity is a CheckpointMismatchError.
        optimizer: of these parameters, with learning rates of its own; default: Adam with `learning_rate`.
        stopping: may end the run early; its state is saved with the run's.
        checkpoint: save every `checkpoint.every` steps, at the end, and when Ctrl-C or SIGTERM ends the run.
        resume: continue from the newest checkpoint in that folder; without one, start from the beginning.

    Returns:
        the loss of each step, including the steps before the checkpoint.

    Raises:
        NonFiniteError: a loss or gradient is NaN or infinite; the weights are those before that step.
        ConfigurationError, CheckpointMismatchError, CheckpointWriteError, RunLockedError: the checkpoints belong to
            another run, or cannot be written; or processes were given different options or data.
        LostProcessError: another process has ended.
        TrainingInterrupted: a signal has come, and the run is saved.
    """
    optimizer = optimizer or torch.optim.Adam(list(parameters.values()), lr=learning_rate)
    run = _Fit(parameters, len(batches), optimizer, {**identity, "steps": len(batches)}, stopping)
    together = processes()
    together.check_alike("the training", lambda: run.identity)
    with _saving(run, checkpoint, resume) as saver:
        left = [] if run.stopped else batches[run.step :]
        shown = progress_bar and together.first
        for rows in tracked(left, title, total=len(batches), initial=run.step, enabled=shown):
            run.optimizer.zero_grad()
            run.losses.append(together.sum_gradients(list(parameters.values()), accumulate(rows)))
            guarded_step(run.optimizer, parameters.values(), max_grad_norm, loss=run.losses[-1])
            run.schedule.step()
            run.stopped = stopping is not None and stopping.stops(run.step)
            if saver.saved_and_told_to_stop() or run.stopped:
                break
        run.optimizer.zero_grad()
    return run.losses


def weights_digest(tensors: Iterable[Tensor]) -> str:
    """A digest of the first and last numbers of each tensor: it tells models apart, to the last bit of those numbers.

    For the `identity` of a run that keeps some weights as they were, such as those below an adapter.
    """
    digest = hashlib.sha256()
    for tensor in tensors:
        ends = tensor.detach().flatten()
        ends = torch.cat([ends[:SAMPLED], ends[-SAMPLED:]]).cpu()
        digest.update(ends.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


class _Fit:
    """The state of a run that changes from step to step: parameters, optimizer, schedule, losses."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        steps: int,
        optimizer: torch.optim.Optimizer,
        identity: Mapping[str, Any],
        stopping: Stopping | None,
    ) -> None:
        self.parameters = parameters
        self.stopping = stopping
        self.stopped = False
        self.identity = json.loads(json.dumps(identity))
        self.optimizer = optimizer
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=max(steps, 1))
        self.losses: list[float] = []

    @property
    def step(self) -> int:
        """How many steps have been taken."""
        return len(self.losses)

    def write(self, path: Path) -> None:
        """Save the run."""
        weights = {name: p.detach().cpu().clone().contiguous() for name, p in self.parameters.items()}
        check_finite(weights)
        moments, layout = split_optimizer(self.optimizer.state_dict())
        remembered, tensors = ({}, {}) if self.stopping is None else self.stopping.state()
        state = {
            "version": VERSION,
            "identity": self.identity,
            "losses": self.losses,
            "optimizer": layout,
            "schedule": self.schedule.state_dict(),
            "stopping": remembered,
            "stopped": self.stopped,
        }

        def fill(folder: Path) -> None:
            save_file(weights, folder / WEIGHTS)
            save_file(moments, folder / OPTIMIZER)
            save_file({k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}, folder / STOPPING)
            (folder / STATE).write_text(json.dumps(state))

        write_folder(path, fill)

    def read(self, path: Path) -> _Saved:
        """Read what `write` wrote, and check that it is of this run; nothing is changed."""
        saved = read_folder(path, _read)
        if saved.state["version"] > VERSION:
            raise CheckpointMismatchError(
                f"{path} has format {saved.state['version']}, and this lm_env reads up to {VERSION}: update lm_env"
            )
        theirs = saved.state["identity"]
        for name in sorted(theirs.keys() | self.identity.keys()):
            if theirs.get(name) != self.identity.get(name):
                raise CheckpointMismatchError(
                    f"{name} differs: the run in {path} has {theirs.get(name)!r}, {self.identity.get(name)!r} is given;"
                    " a run goes on with the options, the model and the data that it began with"
                )
        if {k: v.shape for k, v in saved.weights.items()} != {k: v.shape for k, v in self.parameters.items()}:
            raise CheckpointMismatchError(f"the weights in {path} are of another model than the one that is given")
        return saved

    @torch.no_grad()
    def restore(self, saved: _Saved) -> None:
        """Set the run to what `read` returned."""
        for name, parameter in self.parameters.items():
            parameter.copy_(saved.weights[name])
        self.optimizer.load_state_dict(join_optimizer(saved.moments, saved.state["optimizer"]))
        self.schedule.load_state_dict(saved.state["schedule"])
        self.losses = list(saved.state["losses"])
        self.stopped = saved.state["stopped"]
        if self.stopping is not None:
            self.stopping.load_state(saved.state["stopping"], saved.stopping)


@dataclass(frozen=True)
class _Saved:
    state: dict[str, Any]
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    stopping: dict[str, Tensor]

    def content(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """All of it as JSON and tensors by name, to be sent to other processes."""
        parts = {"weights": self.weights, "moments": self.moments, "stopping": self.stopping}
        return self.state, {f"{part}/{name}": t for part, tensors in parts.items() for name, t in tensors.items()}

    @classmethod
    def of(cls, state: dict[str, Any], tensors: Mapping[str, Tensor]) -> _Saved:
        """What `content` took apart."""
        parts: dict[str, dict[str, Tensor]] = {"weights": {}, "moments": {}, "stopping": {}}
        for path, tensor in tensors.items():
            part, _, name = path.partition("/")
            parts[part][name] = tensor
        return cls(state, **parts)


def _read(folder: Path) -> _Saved:
    state = read_json(folder / STATE)
    kinds = {"version": int, "identity": dict, "losses": list, "optimizer": dict, "schedule": dict}
    kinds |= {"stopping": dict, "stopped": bool}
    if not all(isinstance(state.get(name), kind) for name, kind in kinds.items()):
        raise CheckpointCorruptError(f"{STATE} is not what a training run writes: use another checkpoint")
    try:
        return _Saved(state, *(load_file(folder / name) for name in (WEIGHTS, OPTIMIZER, STOPPING)))
    except (OSError, SafetensorError) as error:
        raise CheckpointCorruptError(f"the saved weights cannot be read ({error}): use another checkpoint") from error


class _Saver:
    """The checkpoints of a run, or none.  Of several processes, the first one has the folder."""

    def __init__(self, run: _Fit, folder: CheckpointFolder | None = None, stop: StopSignals | None = None) -> None:
        self._run = run
        self._folder = folder
        self._stop = stop
        self._together = processes()

    def resume(self) -> None:
        """Restore the newest checkpoint that can be read; if there is none, leave the run as it is."""
        found = None if self._folder is None else self._folder.newest(self._run.read)
        content = self._together.from_first(None if found is None else found[1].content())
        if content is None:
            return
        self._run.restore(_Saved.of(*content))
        if self._folder is not None:
            self._folder.begin(self._run.step)

    def saved_and_told_to_stop(self) -> bool:
        """After a step: save, if it is time to; True once a signal has come to any of the processes."""
        if self._stop is None:
            return False
        if self._folder is not None and self._folder.is_due(self._run.step):
            self._folder.save(self._run.step, self._run.write)
        return self._together.any(self._stop.received is not None)

    def finish(self, stop: StopSignals) -> None:
        """Make the last checkpoint; raises TrainingInterrupted where a signal has ended the run."""
        run, folder = self._run, self._folder
        stopped = self._together.any(stop.received is not None)
        if folder is not None and (run.step != folder.last or (stopped and not folder.place(run.step).exists())):
            folder.save(run.step, run.write)
        self._together.wait()  # torchrun ends the first process as soon as another one has failed
        if stopped and run.step < run.identity["steps"] and not run.stopped:
            name = "a signal to another process" if stop.received is None else stop.received.name
            raise TrainingInterrupted(
                f"{name} ended the training after step {run.step} of {run.identity['steps']}; it is saved"
                f"{'' if folder is None else f' in {folder.root}'}: go on with resume=True"
            )


@contextmanager
def _saving(run: _Fit, checkpoint: Checkpointing | None, resume: bool) -> Iterator[_Saver]:
    """The context of a run: signals only set a flag inside it, and the last checkpoint is made at its end."""
    if checkpoint is None:
        if resume:
            raise ConfigurationError("resume=True needs checkpoint=Checkpointing(folder), where the run was saved")
        yield _Saver(run)
        return
    own = CheckpointFolder(checkpoint) if processes().first else nullcontext()
    with own as folder, StopSignals("this step is finished, then the run is saved") as stop:
        saver = _Saver(run, folder, stop)
        if folder is not None and not resume:
            folder.check_unused(0)
        if resume:
            saver.resume()
        if folder is not None:
            folder.check_room(3 * sum(p.numel() * p.element_size() for p in run.parameters.values()))
        yield saver
        saver.finish(stop)
