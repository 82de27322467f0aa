"""The speedrun: how soon half of what can be gained on lm_env/Sentiment-v0 is attained, on two cores.

    python benchmarks/speedrun.py ppo --tokens 60000 gae_lambda=0.7
    python benchmarks/speedrun.py mine.py:Mine --tokens 40000        # your own agent, see docs/speedrun.md
    python benchmarks/speedrun.py ppo --tokens 60000 --publish       # an entry that is verified goes into the table
    python benchmarks/speedrun.py ppo --tokens 60000 --first-seed 4711      # an entry again with the seeds it had
    python benchmarks/speedrun.py                                    # only writes docs/speedrun.md again

An entry is an agent with its options and a number of tokens.  The script verifies it: it draws the first of five
consecutive seeds, so that nobody can have chosen them, trains five times, from the embedded model and with the task's
own beta, and measures each policy on held-out openings.  Every one of the five must attain at least half of the gain of
the ceiling, which is the J of the best policy less the J of the reference.  The ceiling is that of the published
results, so it is the same for all entries.

The time of an entry is the mean time of training, without evaluations, in one process with two threads; its tokens are
the mean of those generated.  The table is in the order of the seconds, and says the rank by tokens as well.  The result
of a verification is a line of JSON in `entries.jsonl`; the records of the five runs are in a folder beside it.
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
PAGE_TEMPLATE = Path(__file__).with_name("speedrun_page.md")
"""The text of the page, with the comment `<!-- ENTRIES -->` in the place of the table."""

Entry = dict[str, Any]
"""What `verify` returns: a line of JSON."""


@dataclass(frozen=True)
class Race:
    """What is trained and measured for an entry, and what has to be attained."""

    task: str = "lm_env/Sentiment-v0"
    share: float = 0.5
    """Of the ceiling's gain in J over the reference: every seed has to attain it."""
    seeds: int = 5
    """How many trainings there are, with consecutive seeds."""
    threads: int = 2
    prompts: int = 128
    """Held-out prompts on which a policy is measured."""
    texts: int = 512
    """Texts that are sampled on all of them together."""
    ceiling: Path | None = RESULTS / "Sentiment-v0.jsonl"
    """The file with the record of the ceiling; None: it is estimated anew, beside the runs."""


RACE = Race()
"""That of the published entries."""
CEILING_SAMPLES = 16
"""Samples per prompt for the ceiling that a benchmark always measures: few, where it is another ceiling that judges."""
DRAWN = "drawn"
"""An empty file of this name in a folder of runs says that the script has drawn their seeds."""


def option(text: str) -> tuple[str, Any]:
    """The name and the value in a word such as `learning_rate=2e-4`; a value that is not JSON is a text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"an option of the agent is written NAME=VALUE, not {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def verify(agent: str, options: dict[str, Any], tokens: int, out: Path, first_seed: int, race: Race = RACE) -> Entry:
    """Train with consecutive seeds and measure; returns the entry, whose `verified` says whether it has passed.

    Args:
        agent: a name of `lm-env train`, or somebody's own `file.py:Class` or `file.py:train`.
        options: of the agent.
        tokens: that each training generates, at least.
        out: a folder for the runs; runs that were begun there go on.
        first_seed: the others follow it.

    Raises:
        ConfigurationError: the ceiling is not that of this task and these prompts.
        SystemExit: a run failed.
    """
    judging_ceiling = None if race.ceiling is None else ceiling_in(race.ceiling)
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
            **(
                {} if judging_ceiling is None else {"ceiling_samples": CEILING_SAMPLES, "ceiling_most": CEILING_SAMPLES}
            ),
        }
    )
    found = run_bench(settings, out, say=print)
    if found.failed:
        raise SystemExit(f"{found.failed[0].cell}: {found.failed[0].error}")
    measured_ceiling = next(record for record in found.records if record["kind"] == "ceiling")
    runs = [record for record in found.records if record["kind"] == "run"]
    shares = shares_of(judging_ceiling or measured_ceiling, measured_ceiling, runs)
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


def shares_of(ceiling: Record, measured: Record, runs: list[Record]) -> list[float]:
    """The share of the ceiling's gain that each run has attained.

    Args:
        ceiling: the record of the ceiling that judges.
        measured: the record of the ceiling that was measured beside the runs, and so of their beta and prompts.
        runs: a record for each seed.

    Raises:
        ConfigurationError: the ceiling is that of another beta or of other prompts than the runs'.
    """
    if (ceiling["beta"], len(ceiling["J_by_prompt"])) != (measured["beta"], len(measured["J_by_prompt"])):
        raise ConfigurationError(
            f"the ceiling has beta {ceiling['beta']:g} and {len(ceiling['J_by_prompt'])} prompts, and the runs have"
            f" {measured['beta']:g} and {len(measured['J_by_prompt'])}: leave the options of the task as they are"
        )
    shares = [attained_share(ceiling, run["by_prompt"]["J"]) for run in runs]
    return [share.mean for share in shares if share is not None]


def digest_of(agent: str) -> dict[str, str]:
    """The SHA-256 of the file of somebody's own agent, as `sha256`, so that it is known which code was run; else {}."""
    path = Path(agent.rpartition(":")[0])
    return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()} if path.suffix == ".py" else {}


# -- the published entries --------------------------------------------------------------------------------
COLUMNS = (
    "| rank | entry | seconds | tokens | rank by tokens | attained by each seed | machine | date |\n"
    "|---|---|---|---|---|---|---|---|"
)


def published_entries(path: Path = ENTRIES) -> list[Entry]:
    """The published entries, in the order of their publication."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def publish(entry: Entry, path: Path = ENTRIES, page: Path = PAGE) -> None:
    """Add a verified entry to the file, and write the page.

    Raises:
        ConfigurationError: the entry is not verified, or was run from files that are in no commit.
    """
    if not entry["verified"]:
        raise ConfigurationError(f"the entry is not verified: every seed must attain {RACE.share:.0%}")
    if entry["commit"] is None or entry["commit"].endswith("+changes"):
        raise ConfigurationError("files differ from the commit: commit them, so that the entry can be repeated")
    write_lines(path, [*published_entries(path), entry])
    page.write_text(page_of(published_entries(path)), encoding="utf-8")


def page_of(entries: list[Entry]) -> str:
    """docs/speedrun.md."""
    template = PAGE_TEMPLATE.read_text(encoding="utf-8")
    if not entries:
        return template.replace("<!-- ENTRIES -->", "No entry has been verified yet.")
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
    return template.replace("<!-- ENTRIES -->", table)


def command_of(entry: Entry) -> str:
    """The command that verifies an entry again."""
    written = {name: value if isinstance(value, str) else json.dumps(value) for name, value in entry["options"].items()}
    options = " ".join(shlex.quote(f"{name}={value}") for name, value in written.items())
    words = ["python benchmarks/speedrun.py", entry["agent"], options, f"--tokens {entry['budget']}"]
    return " ".join(word for word in words if word)


def folder_of(out: Path, first_seed: int) -> Path:
    """The folder for the runs of the entry with this first seed."""
    return out / f"seed-{first_seed}"


def seed_of(out: Path, asked: int | None) -> tuple[int, bool]:
    """(the first seed, whether the script has drawn it): without one, it is drawn now.

    A seed that is asked for counts as drawn where an earlier run of the script in `out` has drawn it: so a killed entry
    may go on with it and be published.
    """
    if asked is None:
        return 1_000 + secrets.randbelow(10**6), True
    return asked, (folder_of(out, asked) / DRAWN).exists()


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("agent", nargs="?", help="a name of lm-env train, or your own 'file.py:Class' or 'file.py:train'")
    p.add_argument("options", nargs="*", type=option, help="options of the agent, NAME=VALUE")
    p.add_argument("--tokens", type=int, help="of each of the five runs")
    p.add_argument(
        "--first-seed", type=int, help="repeat an entry, or go on with a killed one; a repeated one is not published"
    )
    p.add_argument("--publish", action="store_true", help="add the entry, if it is verified, to the committed table")
    p.add_argument("--out", type=Path, default=Path("runs/speedrun"), help="a folder for the runs of entries")
    args = p.parse_intermixed_args()
    if args.agent is None:
        PAGE.write_text(page_of(published_entries()), encoding="utf-8")
        print(f"{len(published_entries())} entries -> {PAGE}")
        return
    if args.tokens is None:
        p.error("--tokens is needed: how many each of the five runs generates")
    first_seed, drawn = seed_of(args.out, args.first_seed)
    if args.publish and not drawn:
        p.error("an entry with chosen seeds cannot be published: leave --first-seed away")
    runs = folder_of(args.out, first_seed)
    runs.mkdir(parents=True, exist_ok=True)
    if drawn:
        (runs / DRAWN).touch()
    print(f"seeds {first_seed} to {first_seed + RACE.seeds - 1}; go on after a kill with --first-seed {first_seed}")
    entry = verify(args.agent, dict(args.options), args.tokens, runs, first_seed)
    with (args.out / "entries.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")
    print(json.dumps(entry, indent=1))
    print("verified" if entry["verified"] else f"not verified: every seed must attain {RACE.share:.0%}")
    if args.publish and entry["verified"]:
        publish(entry)
        print(f"published: {ENTRIES}, {PAGE}")


if __name__ == "__main__":
    main()
