"""Weights & Biases and MLflow as outputs of the logger, each through its own package.

Both go on with a run that is under way in this process, and otherwise begin one and end it.  No training depends on
what they answer: what a tracker cannot take is a warning, and never ends a training.
"""

from __future__ import annotations

import json
import logging
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from typing import Any, ClassVar

from stable_baselines3.common.logger import KVWriter, filter_excluded_keys

from agents.run.records import RunWriter
from agents.run.samples import Sample
from lm_env.errors import ConfigurationError, MissingDependencyError

__all__ = ["LogTo", "MLflowWriter", "Tracker", "WandbWriter", "tracker"]

log = logging.getLogger(__name__)

LogTo = str | KVWriter | Sequence[str | KVWriter]
"""Names of trackers, or outputs for the logger, or a list of both."""

LONGEST_PARAMETER = 500
"""Characters of a parameter's value; MLflow's own limit differs by store, and no store refuses this."""


class Tracker(RunWriter):
    """What the trackers share: numbers alone are sent, and a failure is told and passed over."""

    package: ClassVar[str]

    def __init__(self) -> None:
        self._told: set[str] = set()
        try:
            self.module: Any = import_module(self.package)
        except ImportError as error:
            raise MissingDependencyError(
                f"log_to={self.package!r} needs the package {self.package} ({error}): pip install"
                f" 'lm-env[{self.package}]'"
            ) from error

    @abstractmethod
    def send_numbers(self, numbers: dict[str, float], step: int) -> None:
        """Send a row of the log."""

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Send the numbers among the values."""
        values = filter_excluded_keys(key_values, key_excluded, self.package)
        numbers = {key: float(value) for key, value in values.items() if _is_number(value)}
        self._try(lambda: self.send_numbers(numbers, step))

    def _try(self, send: Callable[[], object]) -> None:
        try:
            send()
        except Exception as error:  # a service that is down must not end a training of days
            text = f"{type(error).__name__}: {_in_short(error)}"
            if text not in self._told:
                log.warning("%s did not take what was logged, and training goes on: %s", self.package, text)
            self._told.add(text)


class WandbWriter(Tracker):
    """Weights & Biases, through `wandb`: the log, the settings as its config, sample texts as tables.

    Charts are over `time/total_timesteps`.  Without a login or a network: `mode="offline"`, or WANDB_MODE=offline.

    Args:
        options: of `wandb.init`, such as project, name, id, resume, mode; used where no run is under way.

    Raises:
        MissingDependencyError: wandb is not installed.
        ConfigurationError: it does not begin a run, for instance for want of a login.
    """

    package = "wandb"

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self._owns = self.module.run is None
        try:
            self.run = self.module.init(**options) if self._owns else self.module.run
        except Exception as error:
            raise ConfigurationError(
                f"wandb does not begin a run ({_in_short(error)}): log in with `wandb login`, or set WANDB_MODE=offline"
            ) from error
        self.run.define_metric("time/total_timesteps")
        self.run.define_metric("*", step_metric="time/total_timesteps")

    def send_numbers(self, numbers: dict[str, float], step: int) -> None:
        """Log one row."""
        self.run.log({"time/total_timesteps": step, **numbers})

    def write_settings(self, settings: dict[str, Any]) -> None:
        """Set the run's config."""
        self._try(lambda: self.run.config.update(settings, allow_val_change=True))

    def write_samples(self, samples: Sequence[Sample]) -> None:
        """Log a table."""
        columns = ["timesteps", "prompt", "response", "score", "kl"]
        rows = [[getattr(sample, name) for name in columns] for sample in samples]
        self._try(lambda: self.run.log({"samples": self.module.Table(columns=columns, data=rows)}))

    def write_warning(self, timesteps: int, text: str) -> None:
        """Put the warning into the run's summary."""
        self._try(lambda: self.run.summary.update({f"warnings/{timesteps}": text}))

    def close(self) -> None:
        """End the run, if it was begun here."""
        if self._owns:
            self._try(self.run.finish)


class MLflowWriter(Tracker):
    """MLflow, through `mlflow`: the log as metrics, the settings as parameters, sample texts as artifacts.

    Where it writes is MLflow's own affair: `mlflow.set_tracking_uri`, or MLFLOW_TRACKING_URI.  A name that MLflow does
    not take is changed: `rollout/score/Length` becomes `rollout/score.Length`, for `rollout/score` is a metric already.

    Args:
        options: of `mlflow.start_run`, such as run_name or run_id; used where no run is under way.

    Raises:
        MissingDependencyError: mlflow is not installed.
        ConfigurationError: it does not begin a run.
    """

    package = "mlflow"

    def __init__(self, **options: Any) -> None:
        super().__init__()
        active = self.module.active_run()
        self._owns = active is None
        try:
            self._id: str = (self.module.start_run(**options) if self._owns else active).info.run_id
        except Exception as error:
            raise ConfigurationError(
                f"mlflow does not begin a run ({_in_short(error)}): check MLFLOW_TRACKING_URI, such as"
                " sqlite:///mlflow.db"
            ) from error

    def send_numbers(self, numbers: dict[str, float], step: int) -> None:
        """Log one row."""
        self.module.log_metrics({mlflow_name(key): value for key, value in numbers.items()}, step=step, run_id=self._id)

    def write_settings(self, settings: dict[str, Any]) -> None:
        """Log the parameters, and all of it as run.json; parameters of a run that is gone on with stay as they are."""
        params = {mlflow_name(key): str(value)[:LONGEST_PARAMETER] for key, value in flat(settings).items()}

        def send() -> None:
            self._log_text(json.dumps(settings, indent=2, default=str), "run.json")
            known = self.module.get_run(self._id).data.params
            new = {key: value for key, value in params.items() if key not in known}
            self.module.log_params(new, run_id=self._id)

        self._try(send)

    def write_samples(self, samples: Sequence[Sample]) -> None:
        """Log a JSON-lines file."""
        lines = "".join(json.dumps(asdict(sample)) + "\n" for sample in samples)
        if samples:
            self._try(lambda: self._log_text(lines, f"samples/{samples[0].timesteps:012d}.jsonl"))

    def write_warning(self, timesteps: int, text: str) -> None:
        """Set a tag."""
        self._try(lambda: self.module.MlflowClient().set_tag(self._id, f"warning at {timesteps}", text))

    def close(self) -> None:
        """End the run, if it was begun here."""
        if self._owns:
            self._try(self.module.end_run)

    def _log_text(self, text: str, name: str) -> None:
        self.module.log_text(text, name, run_id=self._id)


TRACKERS: dict[str, Callable[[], Tracker]] = {"wandb": WandbWriter, "mlflow": MLflowWriter}


def tracker(output: str | KVWriter) -> KVWriter:
    """The tracker of that name, begun; an output that is made already, as it is.

    Raises:
        ConfigurationError, MissingDependencyError: see `make_logger`.
    """
    if isinstance(output, KVWriter):
        return output
    if output not in TRACKERS:
        raise ConfigurationError(
            f"log_to takes {', '.join(map(repr, TRACKERS))} or outputs of stable-baselines3's logger, not {output!r}"
        )
    return TRACKERS[output]()


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one: {"config": {"seed": 0}} -> {"config.seed": 0}."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def mlflow_name(name: str) -> str:
    """A name that each of MLflow's stores takes; one slash at the most, since `a/b` and `a/b/c` exclude each other."""
    first, slash, rest = name.partition("/")
    return re.sub(r"[^\w.\- /]", "_", first + slash + rest.replace("/", "."))


def _in_short(error: BaseException) -> str:
    """The error in one line."""
    line = " ".join(str(error).split())
    return line if len(line) <= 300 else line[:297] + "..."


def _is_number(value: object) -> bool:
    return not isinstance(value, str | bool) and hasattr(value, "__float__") and getattr(value, "ndim", 0) == 0
