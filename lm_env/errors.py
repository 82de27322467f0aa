"""Every error a user can meet.  Each message names the thing that is wrong and the remedy.

All derive from `LMEnvError`; those that a Gymnasium user would expect as a `ValueError` or as one
of Gymnasium's own errors derive from that as well, so existing `except` clauses keep working.
`TrainingInterrupted` and `LabelsAwaited` are no errors but ends that were asked for, and derive from SystemExit.
"""

from __future__ import annotations

import gymnasium.error


class LMEnvError(Exception):
    """The base class: `except LMEnvError` catches everything this project raises on purpose."""


class ConfigurationError(LMEnvError, ValueError):
    """An argument, or a combination of arguments, that cannot work."""


class MissingDependencyError(LMEnvError, ImportError):
    """An optional package is not installed; the message holds the `pip install` line."""


class ModelLoadError(LMEnvError, ValueError):
    """A model or tokenizer could not be loaded from the given name or folder."""


class UnsupportedModelError(LMEnvError, ValueError):
    """A model lacks what is asked of it (a causal LM forward, a slot cache, enough positions)."""


class InvalidPromptError(LMEnvError, ValueError):
    """A prompt is empty, too long, not text, or holds a token outside the vocabulary."""


class InvalidPreferenceError(LMEnvError, ValueError):
    """A record of human preferences lacks something or contradicts itself; the message names its row in the file."""


class InvalidActionError(LMEnvError, ValueError):
    """An action is not a token id of the vocabulary, or is masked.  The environment is unchanged."""


class ResetNeeded(LMEnvError, gymnasium.error.ResetNeeded):
    """`step` was called before `reset`, or on an episode that has ended."""


class BusyError(LMEnvError, RuntimeError):
    """An environment was called while another call of it was under way, from a second thread or from within."""


class PublishedActionsError(LMEnvError, ValueError):
    """Logprobs were published for other actions than the ones the environment was stepped with."""


class RewardError(LMEnvError, RuntimeError):
    """The reward function raised; the original exception is chained."""


class RewardValueError(RewardError, ValueError):
    """The reward function returned something else than one finite number per sample."""


class RewardTimeoutError(RewardError, TimeoutError):
    """The reward function did not answer before its deadline."""


class RewardUnavailableError(RewardError, ConnectionError):
    """A remote reward cannot be reached, refuses its caller, or is not the one it was: no text is to blame."""


class RewardProtocolError(RewardError):
    """What a remote reward answered is not what its protocol says, or is larger than allowed."""


class CheckpointError(LMEnvError):
    """Base of the checkpoint errors."""


class CheckpointWriteError(CheckpointError, OSError):
    """A checkpoint could not be written (disk full, no permission); the older ones are untouched."""


class RunLockedError(CheckpointWriteError):
    """Another writer, of this process or another one, is at work in the same place."""


class CheckpointCorruptError(CheckpointError, ValueError):
    """A checkpoint is missing a file, is truncated, or fails its checksum."""


class CheckpointMismatchError(CheckpointError, ValueError):
    """A checkpoint belongs to another configuration or format; the message names the field that differs."""


class UnsafeFileError(LMEnvError, ValueError):
    """A file would have to be unpickled, which runs code: refused."""


class LogReadError(LMEnvError, ValueError):
    """The log of a run is damaged, or is none; the message names the file, the line and the remedy."""


class NonFiniteError(LMEnvError, FloatingPointError):
    """A loss, gradient, weight or logit is NaN or infinite; the weights are those of before the update."""


class BackendError(LMEnvError, RuntimeError):
    """A program that writes the texts cannot be reached, refuses, or answers what cannot be right."""


class StaleWeightsError(BackendError):
    """Texts were, or would have been, written with other weights than those of the model under training."""


class LostProcessError(LMEnvError, RuntimeError):
    """Another process of a run of several has ended, so that this one cannot go on either."""


class TrainingInterrupted(SystemExit):
    """A signal ended a training run after a step, and all of it is saved: start it again with `resume=True`.

    It also ends work of a benchmark that has nothing to save, such as baselines: the same command begins it again.

    Where nobody catches it, the process ends without a traceback and with the exit code 75 (EX_TEMPFAIL of
    sysexits.h: not finished, try again), which neither a crash (1) nor a kill (130, 137, 143) gives.
    """

    EXIT_CODE = 75

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = self.EXIT_CODE


class LabelsAwaited(SystemExit):
    """People's labels are needed to go on; what they are to label is written, and all before it is saved.

    Where nobody catches it, the process ends without a traceback and with the exit code 4.
    """

    EXIT_CODE = 4

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = self.EXIT_CODE
