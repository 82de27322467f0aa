"""The runner: it runs all cells of a benchmark that are not done yet, and joins their records in one file.

OUT/bench.yaml        the settings
OUT/cells/...         a folder for each cell: its records, or the checkpoints that it resumes from
OUT/results.jsonl     all records, in the order of the settings, whatever the order of the work
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lm_env.benchmark.cells import CHECKPOINTS_FOLDER, RECORD, has_best_rate, read_cell
from lm_env.benchmark.entrants import entrant
from lm_env.benchmark.records import Record, environment, write_lines
from lm_env.benchmark.settings import BenchSettings, Cell, TaskSpec, read_settings
from lm_env.benchmark.workers import Outcome, run_here, run_in_processes
from lm_env.distributed import require_one_process
from lm_env.errors import CheckpointWriteError, ConfigurationError, TrainingInterrupted
from lm_env.models.inspection import usable_device
from lm_env.runs.config_files import write_config
from lm_env.runs.folder import command_line
from lm_env.storage import FileLock, StopSignals, is_saved_folder
from lm_env.tasks import get_task
from lm_env.validation import check_integer

__all__ = ["RESULTS", "SETTINGS", "Bench", "Failed", "kept_policies", "run_bench"]

log = logging.getLogger(__name__)

RESULTS = "results.jsonl"
SETTINGS = "bench.yaml"


@dataclass(frozen=True)
class Failed:
    """A cell that ended with an error."""

    cell: Cell
    error: str


@dataclass(frozen=True)
class Bench:
    """The results of a benchmark."""

    folder: Path
    settings: BenchSettings
    records: list[Record]
    failed: list[Failed]

    @property
    def results(self) -> Path:
        """The file of all records."""
        return self.folder / RESULTS


def run_bench(
    settings: BenchSettings,
    out: str | Path,
    *,
    processes: int = 1,
    only: Collection[str] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Bench:
    """Run what is not done yet, and write all results.

    With the folder of an earlier call, which may have been killed, it resumes that benchmark.  Tasks, agents and seeds
    may then be added; `download`, `keep_policies`, and the options of a task or an agent of which no cell has begun,
    may change; nothing else may.  A cell that fails does not stop the others; `Bench.failed` has it, and the next call
    tries it again.  If that is a trial of the tuning, the runs take the best rate of the other trials until it is done,
    and those whose rate it changes are then run again.

    Args:
        out: the folder.
        processes: how many cells run at a time; the results do not depend on it.
        only: labels of the tasks whose cells are run; what is not done yet of the others, such as those of an earlier
            call, waits.  Default: all.
        say: called with a line of text for each event, such as a cell that is done.

    Returns:
        The joined settings of all calls, the records of all cells that are done, also of earlier calls, and the cells
        that failed in this one.

    Raises:
        ConfigurationError, MissingDependencyError: a task, an agent, an option or a label in `only` does not exist, a
            library is missing, or the folder holds a benchmark with other settings.  Nothing has been run then.
        CheckpointWriteError: the folder cannot be written.
        RunLockedError: another process runs a benchmark in the folder.
        TrainingInterrupted: Ctrl-C or SIGTERM has come; the same call resumes the benchmark.
    """
    require_one_process("a benchmark runs")
    check_integer("processes", processes)
    folder = Path(out)
    usable_device(settings.device)
    for task in settings.tasks:
        get_task(task.name, **task.options)
    for agent in settings.agents:
        entrant(agent)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", folder)
    except CheckpointWriteError:
        raise
    except OSError as error:
        raise CheckpointWriteError(f"cannot write to {folder}: {error}; choose another --out") from error
    try:
        settings = _joined_with_earlier(settings, folder, only)
        return _run(settings, folder, processes, only, say)
    finally:
        lock.release()


def _run(
    settings: BenchSettings, folder: Path, processes: int, only: Collection[str] | None, say: Callable[[str], None]
) -> Bench:
    cells = [cell for cell in settings.cells() if only is None or cell.task in only]
    known = {cell: read_cell(folder, cell) for cell in settings.cells()}
    waiting = [cell for cell in cells if known[cell] is None or not has_best_rate(settings, folder, cell, known[cell])]
    done = len(cells) - len(waiting)
    # A trial that is done only now may change the rate of runs that were done without it: they are looked at again.
    unfinished = set(waiting)
    again = {cell for cell in cells if cell not in unfinished and _has_trials_left(waiting, cell)}
    waiting += [cell for cell in cells if cell in again]
    say(f"{len(cells)} cells, {done} of them done; {processes} process{'es' if processes > 1 else ''}, into {folder}")
    if others := _other_commits(settings, known):
        say(
            f"records in {folder} were made at {', '.join(others)}: runs of one agent are comparable only if its"
            " defaults have not changed since"
        )
    _write_results(settings, folder, known)
    failed: list[Failed] = []
    under_way: set[Cell] = set()

    def next_cell() -> Cell | None:
        """The first waiting cell whose trials have all ended."""
        nonlocal done
        for cell in list(waiting):
            if cell.trial is None and _has_trials_left([*waiting, *under_way], cell):
                continue
            waiting.remove(cell)
            if cell in again:
                if has_best_rate(settings, folder, cell, known[cell]):
                    continue
                done -= 1
            under_way.add(cell)
            return cell
        return None

    with StopSignals("what is under way is saved, and the same command goes on from there") as stop:

        def stopped() -> Any:
            return stop.received

        many = min(processes, len(waiting)) > 1
        work: Iterator[Outcome] = (
            run_in_processes(settings, folder, next_cell, stopped, processes)
            if many
            else run_here(settings, folder, next_cell, stopped)
        )
        try:
            for outcome in work:
                under_way.discard(outcome.cell)
                done += outcome.error is None
                if outcome.error is not None:
                    failed.append(Failed(outcome.cell, outcome.error))
                say(f"[{done}/{len(cells)}] {outcome.cell}" + (f"  FAILED: {outcome.error}" if outcome.error else ""))
                known[outcome.cell] = read_cell(folder, outcome.cell)
                _write_results(settings, folder, known)
        except TrainingInterrupted as error:
            raise TrainingInterrupted(_interrupted("a signal", done, len(cells))) from error
        if stop.received is not None and done + len(failed) < len(cells):
            raise TrainingInterrupted(_interrupted(stop.received.name, done, len(cells)))
    return Bench(folder, settings, _write_results(settings, folder, known), failed)


def _interrupted(what: str, done: int, cells: int) -> str:
    return f"{what} ended the benchmark with {done} of {cells} cells done; the same command goes on from there"


def _has_trials_left(unfinished: list[Cell], cell: Cell) -> bool:
    """Whether a tuning trial of the cell's agent on its task is among the unfinished cells."""
    pair = (cell.task, cell.agent)
    return any(other.trial is not None and (other.task, other.agent) == pair for other in unfinished)


def _other_commits(settings: BenchSettings, known: dict[Cell, list[Record] | None]) -> list[str]:
    """The versions of this package, with their commits, that made records in the folder, but for the present one."""
    records = [record for found in known.values() for record in found or []]
    if not records:
        return []
    own = environment(settings.threads, settings.device)
    return sorted({_version_of(record) for record in records} - {_version_of(own)})


def _version_of(record: Record) -> str:
    version = f"lm-env {record['versions'].get('lm-env', 'of an unknown version')}"
    commit, changed, _ = (record["commit"] or "").partition("+")
    return f"{version}, commit {commit[:12]}{changed and ' with changes'}" if commit else version


def _write_results(settings: BenchSettings, folder: Path, known: dict[Cell, list[Record] | None]) -> list[Record]:
    """Write the records of all cells that are done, in the order of the settings."""
    found = [record for cell in settings.cells() for record in known[cell] or []]
    write_lines(folder / RESULTS, found)
    return found


def _joined_with_earlier(settings: BenchSettings, folder: Path, only: Collection[str] | None) -> BenchSettings:
    """Write the settings, joined with those of the folder: tasks, agents and seeds of earlier calls stay.

    Raises:
        ConfigurationError: another option differs, or `only` has a label that no task has; the message names it.
    """
    path = folder / SETTINGS
    if path.exists():
        before = read_settings(path)
        old, new = before.shared(), settings.shared()
        if name := next((name for name in new if old[name] != new[name]), None):
            raise ConfigurationError(
                f"{name} is {old[name]!r} in {folder} and {new[name]!r} here: a benchmark goes on as it began; leave"
                " it out, or choose another --out"
            )
        for kind, ours, theirs in (("task", settings.tasks, before.tasks), ("agent", settings.agents, before.agents)):
            known: dict[str, Any] = {spec.label: spec for spec in theirs}
            for spec in ours:
                if _fixed(known.get(spec.label, spec)) != _fixed(spec) and _is_begun(folder, before, kind, spec.label):
                    raise ConfigurationError(
                        f"the {kind} {spec.label} has other options in {folder} than here: give it another label"
                    )
        settings = replace(
            settings,
            tasks=tuple(_with_seeds(task, before, settings) for task in _joined(before.tasks, settings.tasks)),
            agents=_joined(before.agents, settings.agents),  # of those begun, old and new are the same
            seeds=max(before.seeds, settings.seeds),
        )
    labels = [task.label for task in settings.tasks]
    if unknown := [label for label in only or () if label not in labels]:
        raise ConfigurationError(f"no task is called {unknown[0]!r}: only= takes some of {', '.join(labels)}")
    remark = "lm-env bench --config THIS_FILE --out ANOTHER_FOLDER repeats this benchmark."
    write_config(path, settings.as_options(), {"command": command_line()}, remark=remark)
    return settings


def _joined(before: tuple[Any, ...], new: tuple[Any, ...]) -> tuple[Any, ...]:
    labels = {spec.label for spec in before}
    named = {spec.label: spec for spec in new}
    return (*(named.get(spec.label, spec) for spec in before), *(spec for spec in new if spec.label not in labels))


def _is_begun(folder: Path, settings: BenchSettings, kind: str, label: str) -> bool:
    """Whether a cell of that task or agent has left records or checkpoints."""
    cells = [cell for cell in settings.cells() if label == (cell.task if kind == "task" else cell.agent)]
    return any((folder / cell.path / name).exists() for cell in cells for name in (RECORD, CHECKPOINTS_FOLDER))


def _fixed(spec: Any) -> Any:
    """What must not change of a task or an agent: the number of seeds may."""
    return replace(spec, seeds=None) if isinstance(spec, TaskSpec) else spec


def _with_seeds(task: TaskSpec, *calls: BenchSettings) -> TaskSpec:
    """The task with the most seeds that it has had in any of the calls, where one of them named a number for it."""
    named = [(own, call) for call in calls for own in call.tasks if own.label == task.label]
    if all(own.seeds is None for own, _ in named):
        return task
    return replace(task, seeds=max(own.seeds or call.seeds for own, call in named))


def kept_policies(records: list[Record], folder: Path) -> Iterator[tuple[Path, Record]]:
    """(folder of a trained model that was kept, the record of its run)."""
    for record in records:
        if record["kind"] == "run":
            policy = folder / Cell(record["task"], record["agent"], record["seed"]).path / "policy"
            if is_saved_folder(policy):
                yield policy, record
