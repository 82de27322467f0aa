"""Records of several benchmarks put side by side, for a leaderboard."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from lm_env.benchmark.measures.baselines import BASELINE_NAMES
from lm_env.benchmark.records import Record, comparable, options_in_words, read_records

__all__ = ["merge_files", "merge_records"]

_Key = tuple[object, ...]
"""What tells a record from those of other agents, tasks, seeds and ways of measuring."""


def merge_files(paths: Sequence[str | Path]) -> list[Record]:
    """The records of several files as one list; see `merge_records`.

    Raises:
        LogReadError: a file cannot be read, or holds something else.
    """
    names = [_name(Path(path)) for path in paths]
    names = [name if names.count(name) == 1 else _place(Path(path)) for name, path in zip(names, paths, strict=True)]
    return merge_records([(name, read_records(path)) for name, path in zip(names, paths, strict=True)])


def merge_records(parts: Iterable[tuple[str, list[Record]]]) -> list[Record]:
    """The records of several sources as one list that `summarize_records` takes.

    Equal records, and ceilings of the same settings, are kept once.  If there are different results of one agent with
    one seed, or a model has the name of an agent or of a baseline, the name of the later one gets something behind it:
    its source, or, for two models of one source, their paths.  Runs of a task that were measured differently (other
    options of the task, another model, beta, or number of prompts or texts) make tables of their own.

    Args:
        parts: (name of the source, records).
    """
    sources = list(parts)
    baselines = {r["agent"] for _, records in sources for r in records if r["kind"] == "baseline"}
    kinds = dict.fromkeys([*BASELINE_NAMES, *baselines], "baseline")
    found: list[Record] = []
    seen: dict[_Key, Record] = {}
    for source, records in sources:
        names = _names(source, records, seen, kinds)
        for number, record in enumerate(records):
            if number in names:
                record = {**record, "agent": names[number]}
            elif record["kind"] in ("run", "model", "trial"):
                continue  # the same is there already
            if not _is_known(record, seen):
                seen[_key(record)] = record
                found.append(record)
    return _apart(found)


def _names(source: str, records: list[Record], seen: Mapping[_Key, Record], kinds: dict[str, str]) -> dict[int, str]:
    """The name of the row of each run and model of a source, by its place among the records; equal ones once.

    All records of an agent get one name.  Where the source has several results with one seed, the second ones are
    another agent's, and so on.

    Args:
        seen: the records of earlier sources.
        kinds: name of a row -> the kind of its records; the new names are added.
    """
    results: dict[_Key, list[Record]] = {}
    groups: dict[tuple[str, str, int], list[int]] = {}
    for number, record in enumerate(records):
        earlier = results.setdefault(_key(record), [])
        if record["kind"] in ("run", "model") and not any(_are_equal(record, other) for other in earlier):
            groups.setdefault((record["kind"], record["agent"], len(earlier)), []).append(number)
            earlier.append(record)
    names: dict[int, str] = {}
    taken: set[str] = set()
    for (kind, agent, _), numbers in groups.items():
        own = [records[number] for number in numbers]
        for name in _candidates(agent, source, own):
            renamed = [{**record, "agent": name} for record in own]
            fits = all(_key(record) not in seen or _is_known(record, seen) for record in renamed)
            if fits and name not in taken and kinds.get(name, kind) == kind:
                break
        kinds[name] = kind
        taken.add(name)
        names.update(dict.fromkeys(numbers, name))
    return names


def _candidates(agent: str, source: str, records: list[Record]) -> Iterator[str]:
    """Names for the records of an agent, the plain one first."""
    yield agent
    paths = {record.get("path") for record in records}
    if len(paths) == 1 and isinstance(path := paths.pop(), str):
        yield f"{agent} ({path})"
    yield f"{agent} ({source})"
    yield from (f"{agent} ({source}, {number})" for number in itertools.count(2))


def _key(record: Record) -> _Key:
    alike = (record["task"], *_setting(record))
    if record["kind"] == "ceiling":
        return ("ceiling", *alike)
    return (record["kind"], *alike, record["texts"], record["agent"], record["seed"])


def _is_known(record: Record, seen: Mapping[_Key, Record]) -> bool:
    """Whether the same is there already; baselines and ceilings of the same settings are the same."""
    other = seen.get(_key(record))
    return other is not None and (record["kind"] in ("ceiling", "baseline") or _are_equal(other, record))


def _are_equal(one: Record, other: Record) -> bool:
    return bool(comparable(one) == comparable(other))


def _apart(records: list[Record]) -> list[Record]:
    """Tasks that were measured in several ways under a name for each."""
    ways: dict[str, dict[tuple[object, ...], str]] = {}
    for record in records:
        if record["kind"] != "ceiling":
            way = (*_setting(record), record["texts"])
            options = options_in_words(record)
            words = f"{record['model']}, beta {record['beta']:g}, {record['prompts']} prompts, {record['texts']} texts"
            words = f"{options}, {words}" if options else words
            ways.setdefault(record["task"], {})[way] = words
    found = []
    for record in records:
        known = ways.get(record["task"], {})
        if len(known) < 2:
            found.append(record)
            continue
        for known_way, words in known.items():
            if _setting(record) == known_way[:-1] and record.get("texts", known_way[-1]) == known_way[-1]:
                found.append({**record, "task": f"{record['task']} ({words})"})
    return found


def _setting(record: Record) -> tuple[object, ...]:
    """What runs and ceilings in one table have in common."""
    return (options_in_words(record), record["model"], record["beta"], _prompts(record))


def _prompts(record: Record) -> int:
    return len(record["J_by_prompt"]) if record["kind"] == "ceiling" else int(record["prompts"])


def _name(path: Path) -> str:
    """What tells a file from the others: its folder where it has the usual name."""
    return path.resolve().parent.name if path.name == "results.jsonl" else path.stem


def _place(path: Path) -> str:
    """The same, where two files would have one name."""
    return str(path.parent if path.name == "results.jsonl" else path)
