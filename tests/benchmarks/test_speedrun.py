"""The speedrun: what makes an entry verified, and the published page is what the generator makes of the entries."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from scripts import load_script

from lm_env.errors import ConfigurationError

speedrun = load_script("benchmarks/speedrun.py")
TOY = speedrun.Race("lm_env/TokenMDP-v0", seeds=2, threads=1, prompts=1, texts=512, ceiling=None)
FAST = {"rollout_episodes": 256, "slots": 256, "batch_size": 256, "learning_rate": 0.05}


@pytest.fixture(scope="module")
def entry(tmp_path_factory):
    """Verified at toy size, from the command's own function."""
    return speedrun.verify("rloo", FAST, 24_000, tmp_path_factory.mktemp("race"), 77, TOY)


def test_an_entry_that_learns_is_verified_and_says_how(entry):
    assert entry["verified"] and len(entry["attained"]) == 2 and min(entry["attained"]) >= 0.5
    assert entry["seeds"] == [77, 78] and entry["seconds"] > 0 and 24_000 <= entry["tokens"] < 26_000
    assert entry["threads"] == 1 and {"cpu", "versions", "commit", "load", "date"} <= entry.keys()


def test_an_entry_that_does_not_learn_is_not_verified(tmp_path):
    lazy = speedrun.verify("rloo", {**FAST, "learning_rate": 1e-9}, 800, tmp_path, 5, TOY)
    assert not lazy["verified"] and max(lazy["attained"]) < 0.3
    with pytest.raises(ConfigurationError, match="not verified"):
        speedrun.publish(lazy, tmp_path / "entries.jsonl", tmp_path / "page.md")
    assert not (tmp_path / "page.md").exists()


def record(J, J_ref, beta=0.1):
    return {"kind": "ceiling", "beta": beta, "J_by_prompt": J, "J_ref_by_prompt": J_ref}


def test_shares_are_those_of_the_ceiling_given():
    """A run halfway between reference and ceiling, by hand; the ceiling measured beside it has no say."""
    runs = [{"by_prompt": {"J": list(np.linspace(0.5, 1.5, 4))}}, {"by_prompt": {"J": [0.0] * 4}}]
    shares = speedrun.shares_of(record([2.0] * 4, [0.0] * 4), record([9.0] * 4, [0.0] * 4), runs)
    assert shares == pytest.approx([0.5, 0.0])


@pytest.mark.parametrize("other", [record([2.0] * 4, [0.0] * 4, beta=0.2), record([2.0] * 3, [0.0] * 3)])
def test_a_ceiling_of_another_question_is_refused(other):
    with pytest.raises(ConfigurationError, match="leave the options of the task as they are"):
        speedrun.shares_of(other, record([2.0] * 4, [0.0] * 4), [])


def test_the_committed_ceiling_is_that_of_the_races_task():
    from lm_env.tasks import get_task

    found = speedrun.ceiling_in(speedrun.RACE.ceiling)
    assert f"lm_env/{found['task']}" == speedrun.RACE.task
    assert found["beta"] == get_task(speedrun.RACE.task).beta and len(found["J_by_prompt"]) == speedrun.RACE.prompts
    assert np.mean(found["J_by_prompt"]) > np.mean(found["J_ref_by_prompt"])


def test_published_entries_are_ranked_by_seconds_and_by_tokens(entry, tmp_path):
    clean = {**entry, "commit": "abc"}
    faster = {**clean, "agent": "mine.py:Mine", "options": {}, "seconds": 0.1, "tokens": 10**6, "budget": 999}
    file, page = tmp_path / "entries.jsonl", tmp_path / "page.md"
    file.write_text("")
    for each in (clean, faster):
        speedrun.publish(each, file, page)
    assert speedrun.published_entries(file) == [clean, faster]
    rows = [line.split(" | ") for line in page.read_text().splitlines() if line.startswith("| ")][1:]
    assert [(row[0], row[4]) for row in rows] == [("| 1", "2"), ("| 2", "1")]
    assert rows[0][1] == "`python benchmarks/speedrun.py mine.py:Mine --tokens 999`"
    assert "learning_rate=0.05" in rows[1][1] and rows[1][5].count("%") == 2
    with pytest.raises(ConfigurationError, match="commit them"):
        speedrun.publish({**clean, "commit": "abc+changes"}, file, page)
    assert len(speedrun.published_entries(file)) == 2


def test_the_page_is_made_from_the_committed_entries():
    entries = speedrun.published_entries()
    assert speedrun.PAGE.read_text(encoding="utf-8") == speedrun.page_of(entries), "run: python benchmarks/speedrun.py"
    assert all(each["verified"] and min(each["attained"]) >= speedrun.RACE.share for each in entries)


def test_somebodys_own_agent_is_known_by_its_digest(tmp_path):
    (tmp_path / "mine.py").write_text("x = 1\n")
    assert speedrun.digest_of(f"{tmp_path}/mine.py:Mine") == {"sha256": hashlib.sha256(b"x = 1\n").hexdigest()}
    assert speedrun.digest_of("rloo") == {}


def test_a_seed_counts_as_drawn_where_the_script_has_drawn_it(tmp_path):
    """A killed entry goes on with its own seed and may still be published; a seed that somebody chose may not."""
    first, drawn = speedrun.seed_of(tmp_path, None)
    assert drawn and first >= 1_000
    assert speedrun.seed_of(tmp_path, first) == (first, False)
    speedrun.folder_of(tmp_path, first).mkdir()
    assert speedrun.seed_of(tmp_path, first) == (first, False)
    (speedrun.folder_of(tmp_path, first) / speedrun.DRAWN).touch()
    assert speedrun.seed_of(tmp_path, first) == (first, True)
    assert speedrun.seed_of(tmp_path, first + 1) == (first + 1, False)


def test_options_are_read_as_json_where_they_are():
    assert speedrun.option("learning_rate=3e-4") == ("learning_rate", 3e-4)
    assert speedrun.option("critic=shared") == ("critic", "shared")
    assert speedrun.option("normalize=false") == ("normalize", False)
    command = speedrun.command_of({"agent": "ppo", "options": {"critic": "shared", "n": 2}, "budget": 5})
    assert command == "python benchmarks/speedrun.py ppo critic=shared n=2 --tokens 5"
