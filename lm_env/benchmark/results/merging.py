"""Records of several benchmarks put side by side, for a leaderboard."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from lm_env.benchmark.records import Record, comparable, read_records

__all__ = ["merge_files", "merge_records"]


def merge_files(paths: Sequence[str | Path]) -> list[Record]:
    """The records of several files as one list; see `merge_records`.

    Raises:
        LogReadError: a file cannot be read, or holds something else.
    """
    return merge_records([(_name(Path(path)), read_records(path)) for path in paths])


def merge_records(parts: Iterable[tuple[str, list[Record]]]) -> list[Record]:
    """The records of several sources as one list that `summarize_records` takes.

    Equal records, and ceilings of the same settings, are kept once.  If two sources have different results of one agent
    with one seed, the source's name is added to the agent's.  Runs of a task that were measured differently (another
    model, beta, or number of prompts or texts) make tables of their own.

    Args:
        parts: (name of the source, records).
    """
    found: list[Record] = []
    seen: dict[tuple[object, ...], Record] = {}
    for source, records in parts:
        clashing = {r.get("agent") for r in records if _clashes(r, seen)}
        for record in records:
            if record["kind"] == "trial" or _is_known(record, seen):
                continue
            if record.get("agent") in clashing and record["kind"] in ("run", "model"):
                record = {**record, "agent": f"{record['agent']} ({source})"}
            seen.setdefault(_key(record), record)
            found.append(record)
    return _apart(found)


def _key(record: Record) -> tuple[object, ...]:
    alike = (record["task"], record["model"], record["beta"], _prompts(record))
    if record["kind"] == "ceiling":
        return ("ceiling", *alike)
    return (record["kind"], *alike, record["texts"], record["agent"], record["seed"])


def _is_known(record: Record, seen: dict[tuple[object, ...], Record]) -> bool:
    """Whether the same is there already; baselines and ceilings of the same settings are the same."""
    other = seen.get(_key(record))
    return other is not None and (record["kind"] in ("ceiling", "baseline") or comparable(other) == comparable(record))


def _clashes(record: Record, seen: dict[tuple[object, ...], Record]) -> bool:
    return record["kind"] in ("run", "model") and _key(record) in seen and not _is_known(record, seen)


def _apart(records: list[Record]) -> list[Record]:
    """Tasks that were measured in several ways under a name for each."""
    ways: dict[str, dict[tuple[object, ...], str]] = {}
    for record in records:
        if record["kind"] != "ceiling":
            way: tuple[object, ...] = (record["model"], record["beta"], record["prompts"], record["texts"])
            words = f"{record['model']}, beta {record['beta']:g}, {record['prompts']} prompts, {record['texts']} texts"
            ways.setdefault(record["task"], {})[way] = words
    found = []
    for record in records:
        known = ways.get(record["task"], {})
        if len(known) < 2:
            found.append(record)
            continue
        for known_way, words in known.items():
            own = (record["model"], record["beta"], _prompts(record))
            if own == known_way[:3] and record.get("texts", known_way[3]) == known_way[3]:
                found.append({**record, "task": f"{record['task']} ({words})"})
    return found


def _prompts(record: Record) -> int:
    return len(record["J_by_prompt"]) if record["kind"] == "ceiling" else int(record["prompts"])


def _name(path: Path) -> str:
    """What tells a file from the others: its folder where it has the usual name."""
    return path.resolve().parent.name if path.name == "results.jsonl" else path.stem
