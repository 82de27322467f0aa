"""docs/train.md, typed as it is printed: its files, its Python and its commands, with fewer tokens."""

from __future__ import annotations

import json
import re
import runpy
import shlex

from paths import REPOSITORY
from typer.testing import CliRunner

from lm_env.cli import app

FEW = ["--rollout-episodes", "8", "--max-new-tokens", "4", "--eval-texts", "2", "--eval-every", "0"]


def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (REPOSITORY / "docs" / "train.md").read_text()
    commands = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page, re.S | re.M):
        if name := re.match(r"# (\S+\.(?:py|yaml))\n", block):
            (tmp_path / name[1]).write_text(block)
        elif language == "python":
            short = block.replace("timesteps=50_000", "timesteps=60, rollout_episodes=8, eval_texts=2")
            assert short != block
            exec(compile(short, "train.md", "exec"), {})
        else:
            commands += [line for line in block.replace("\\\n", " ").splitlines() if line]
    for command in commands:
        program, *words = shlex.split(command)
        if program == "python":
            runpy.run_path(words[0])
            continue
        if words[0] == "train" and "--resume" not in words:
            at = words.index("--timesteps") if "--timesteps" in words else len(words)
            words[at : at + 2] = ["--timesteps", "60"]
            words += FEW
        result = CliRunner().invoke(app, words)
        assert program == "lm-env" and result.exit_code == 0, (command, result.exception, result.output)
    assert len(commands) == 6
    assert {p.name for p in (tmp_path / "runs").iterdir()} == {"first", "python", "topic", "grpo"}
    rows = [json.loads(line) for line in (tmp_path / "runs" / "topic" / "samples.jsonl").read_text().splitlines()]
    assert all("A word about the" in row["prompt"] for row in rows)
    table = page.split("## The folder")[1].split("##")[0]
    named = set(re.findall(r"^\| `([\w.]+)/?` \|", table, re.M))
    assert named <= {p.name for p in (tmp_path / "runs" / "grpo").iterdir()}
