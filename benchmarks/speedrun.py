"""The speedrun: how soon half of what can be gained on lm_env/Sentiment-v0 is attained, on two cores.

    python benchmarks/speedrun.py ppo --tokens 60000 n_epochs=1
    python benchmarks/speedrun.py mine.py:Mine --tokens 40000        # your own agent, see docs/speedrun.md
    python benchmarks/speedrun.py ppo --tokens 60000 --publish       # an entry that is verified goes into the table
    python benchmarks/speedrun.py ppo --tokens 60000 --first-seed 4711      # the runs of an entry once more
    python benchmarks/speedrun.py                                    # only writes docs/speedrun.md again

An entry is an agent with its options and a number of tokens.  It is verified with five seeds that are drawn now, so
that nobody can have chosen them: every one of the five must attain at least half of the ceiling's gain over the
reference on the held-out openings, after training on the others from the embedded model with the task's own beta.  The
ceiling is that of the published results, so it is the same for all entries.  The time of an entry is the mean time of
training, without evaluations, in one process with two threads; its tokens are the mean of those generated.  Ranked are
seconds, and tokens separately.  The result is a line of JSON, and the run's folder has all records.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import secrets
import shlex
import statistics
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lm_env.benchmark import BenchSettings, read_records, run_bench
from lm_env.benchmark.records import Record, write_lines
from lm_env.benchmark.results import attained_share
from lm_env.errors import ConfigurationError

HOME = Path(__file__).resolve().parents[1]
RESULTS = HOME / "benchmarks" / "results"
ENTRIES = RESULTS / "speedrun.jsonl"
PAGE = HOME / "docs" / "speedrun.md"

Entry = dict[str, Any]


@dataclass(frozen=True)
class Race:
    """What is run, and what has to be attained."""

    task: str = "lm_env/Sentiment-v0"
    share: float = 0.5
    """Of the ceiling's gain, by every seed."""
    seeds: int = 5
    threads: int = 2
    prompts: int = 128
    texts: int = 512
    ceiling: Path | None = RESULTS / "Sentiment-v0.jsonl"
    """The file with the record of the ceiling; None: it is estimated anew, beside the runs."""


RACE = Race()


def option(text: str) -> tuple[str, Any]:
    """`learning_rate=2e-4` as a name and a value; what is no JSON is text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"an option of the agent is written NAME=VALUE, not {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def verify(agent: str, options: dict[str, Any], tokens: int, out: Path, first_seed: int, race: Race = RACE) -> Entry:
    """Train with consecutive seeds and measure; returns the entry, verified or not.

    Raises:
        ConfigurationError: the ceiling is not that of this task and these prompts.
        SystemExit: a run failed.
    """
    known = None if race.ceiling is None else ceiling_in(race.ceiling)
    load = os.getloadavg()[0]
    settings = BenchSettings.of(
        {
            "tasks": [race.task],
            "agents": [{"agent": agent, "label": "entry", **options}],
            "seeds": race.seeds,
            "first_seed": first_seed,
            "tokens": tokens,
            "evaluations": 1,
            "curve_texts": 16,
            "prompts": race.prompts,
            "texts": race.texts,
            "threads": race.threads,
            **({} if known is None else {"ceiling_samples": 16, "ceiling_most": 16}),  # only for the baselines' rows
        }
    )
    found = run_bench(settings, out, say=print)
    if found.failed:
        raise SystemExit(f"{found.failed[0].cell}: {found.failed[0].error}")
    own = next(record for record in found.records if record["kind"] == "ceiling")
    runs = [record for record in found.records if record["kind"] == "run"]
    shares = shares_of(known or own, own, runs)
    return {
        "agent": agent,
        "options": options,
        "budget": tokens,
        "verified": len(shares) == race.seeds and min(shares) >= race.share,
        "attained": [round(share, 3) for share in shares],
        "seconds": round(statistics.mean(r["seconds"] for r in runs), 1),
        "tokens": round(statistics.mean(r["tokens"] for r in runs)),
        "seeds": [r["seed"] for r in runs],
        "threads": race.threads,
        "load": round(load, 2),
        "cpu": runs[0]["hardware"]["cpu"],
        "versions": runs[0]["versions"],
        "commit": runs[0]["commit"],
        "date": datetime.now(UTC).date().isoformat(),
        **digest_of(agent),
    }


def ceiling_in(path: Path) -> Record:
    """The record of the ceiling in a file of records."""
    return next(record for record in read_records(path) if record["kind"] == "ceiling")


def shares_of(ceiling: Record, own: Record, runs: list[Record]) -> list[float]:
    """The share of the ceiling's gain that each run has attained.

    Raises:
        ConfigurationError: the ceiling is that of another beta or of other prompts than the runs'.
    """
    if (ceiling["beta"], len(ceiling["J_by_prompt"])) != (own["beta"], len(own["J_by_prompt"])):
        raise ConfigurationError(
            f"the ceiling has beta {ceiling['beta']:g} and {len(ceiling['J_by_prompt'])} prompts, and the runs have"
            f" {own['beta']:g} and {len(own['J_by_prompt'])}: leave the options of the task as they are"
        )
    found = [attained_share(ceiling, run["by_prompt"]["J"]) for run in runs]
    return [share.mean for share in found if share is not None]


def digest_of(agent: str) -> dict[str, str]:
    """The SHA-256 of the file of somebody's own agent, by which it can be told later which code was run."""
    path = Path(agent.rpartition(":")[0])
    return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()} if path.suffix == ".py" else {}


# -- the published entries --------------------------------------------------------------------------------
HEAD = """\
# The speedrun

How soon does a training attain half of the possible gain on `lm_env/Sentiment-v0`, on two cores?  This page is written
by `benchmarks/speedrun.py` from `benchmarks/results/speedrun.jsonl`.
"""
RULES = """\
## Rules

- The training starts from the embedded model, at the task's own beta, on its training prompts.
- Every one of five fresh seeds has to attain half of the gain of the [ceiling](ceiling.md) in J on 128 held-out
  prompts.  The ceiling is the one of the [published results](results.md), the same for all entries.
- The time is the mean over the seeds of the time of training, without evaluations, in one process with two threads.
  Tokens are the mean of those generated, and are ranked separately: they do not depend on the machine.
- Everything is allowed that the [benchmark](benchmark.md#your-own-agent) takes: other options, your own agent.

## Enter

An entry is an agent, its options and a number of tokens.  Close other programs, since their load counts in the time:

```
python benchmarks/speedrun.py ppo --tokens 60000
python benchmarks/speedrun.py mine.py:Mine --tokens 40000
```

The script draws the five seeds, trains, measures, and says whether the entry is verified; a killed one goes on with
`--first-seed` and its number, in the same folder.  The line of JSON in `runs/speedrun/entries.jsonl` has the seeds, the
machine and its load, the versions, the commit, and of an agent of your own the digest of its file; the records of all
runs are beside it.  `--publish` adds a verified entry to the table on this page.  Anybody verifies an entry again by
the command in its row, with new seeds, or with its own ones by `--first-seed`.
"""
COLUMNS = (
    "| rank | entry | seconds | tokens | rank by tokens | attained by each seed | machine | date |\n"
    "|---|---|---|---|---|---|---|---|"
)


def committed(path: Path = ENTRIES) -> list[Entry]:
    """The published entries, in the order of their publication."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def publish(entry: Entry, path: Path = ENTRIES, page: Path = PAGE) -> None:
    """Add a verified entry to the file, and write the page.

    Raises:
        ConfigurationError: it is not verified, or was run from files that are in no commit.
    """
    if not entry["verified"]:
        raise ConfigurationError(f"the entry is not verified: every seed must attain {RACE.share:.0%}")
    if entry["commit"] is None or entry["commit"].endswith("+changes"):
        raise ConfigurationError("files differ from the commit: commit them, so that the entry can be repeated")
    write_lines(path, [*committed(path), entry])
    page.write_text(page_of(committed(path)), encoding="utf-8")


def page_of(entries: list[Entry]) -> str:
    """docs/speedrun.md."""
    if not entries:
        return f"{HEAD}\nNo entry has been verified yet.\n\n{RULES}"
    by_seconds = sorted(entries, key=lambda entry: entry["seconds"])
    by_tokens = sorted(entries, key=lambda entry: entry["tokens"])
    rows = [
        [
            str(rank),
            f"`{command_of(entry)}`",
            f"{entry['seconds']:,.1f}",
            f"{entry['tokens']:,}",
            str(by_tokens.index(entry) + 1),
            ", ".join(f"{share:.0%}" for share in entry["attained"]),
            f"{entry['cpu']}, {entry['threads']} threads, load {entry['load']:g} before",
            entry["date"],
        ]
        for rank, entry in enumerate(by_seconds, 1)
    ]
    table = "\n".join([COLUMNS, *(f"| {' | '.join(row)} |" for row in rows)])
    return f"{HEAD}\n{table}\n\n{RULES}"


def command_of(entry: Entry) -> str:
    """The command that verifies an entry again."""
    shown = {name: value if isinstance(value, str) else json.dumps(value) for name, value in entry["options"].items()}
    options = " ".join(shlex.quote(f"{name}={value}") for name, value in shown.items())
    words = ["python benchmarks/speedrun.py", entry["agent"], options, f"--tokens {entry['budget']}"]
    return " ".join(word for word in words if word)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("agent", nargs="?", help="a name of lm-env train, or your own 'file.py:Class' or 'file.py:train'")
    p.add_argument("options", nargs="*", type=option, help="options of the agent, NAME=VALUE")
    p.add_argument("--tokens", type=int, help="of each of the five runs")
    p.add_argument("--first-seed", type=int, help="repeat an entry, or go on with it; such an entry is not published")
    p.add_argument("--publish", action="store_true", help="add the entry, if it is verified, to the committed table")
    p.add_argument("--out", type=Path, default=Path("runs/speedrun"), help="a folder for the runs of entries")
    args = p.parse_intermixed_args()
    if args.agent is None:
        PAGE.write_text(page_of(committed()), encoding="utf-8")
        print(f"{len(committed())} entries -> {PAGE}")
        return
    if args.tokens is None:
        p.error("--tokens is needed: how many each of the five runs generates")
    place = args.out / f"seed-{args.first_seed}"
    drawn = args.first_seed is None or (place / "drawn").exists()
    first_seed = 1_000 + secrets.randbelow(10**6) if args.first_seed is None else args.first_seed
    place = args.out / f"seed-{first_seed}"
    if args.publish and not drawn:
        p.error("an entry with chosen seeds cannot be published: leave --first-seed away")
    place.mkdir(parents=True, exist_ok=True)
    if drawn:
        (place / "drawn").touch()  # the script drew this seed, so a killed entry may go on with it
    print(f"seeds {first_seed} to {first_seed + RACE.seeds - 1}; go on after a kill with --first-seed {first_seed}")
    entry = verify(args.agent, dict(args.options), args.tokens, place, first_seed)
    with (args.out / "entries.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")
    print(json.dumps(entry, indent=1))
    print("verified" if entry["verified"] else f"not verified: every seed must attain {RACE.share:.0%}")
    if args.publish and entry["verified"]:
        publish(entry)
        print(f"published: {ENTRIES}, {PAGE}")


if __name__ == "__main__":
    main()
