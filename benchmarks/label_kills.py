"""Labels given through the page by a scripted browser, while server and browser are killed: none lost, none twice.

python benchmarks/label_kills.py                   1,000 labels, five kills
python benchmarks/label_kills.py --labels 100 --kills 3

A headless Chromium presses the keys of a rule that the texts themselves state, so that afterward each record can be
compared with what had to be pressed.  A moment after a key has been pressed, so that the answer may be anywhere between
the keyboard and the disk, the server, the browser or both get SIGKILL and are started again.  Every 40th answer is
undone and given again.  Needs `pip install 'lm-env[label]' playwright` and a Chromium, at CHROMIUM or in the PATH.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

KEYS = {"larger": "", "tie": "t", "bad": "b", "skip": "s"}
WAIT_MS = 60_000
UNDO_EVERY = 40
READ = """() => ({
    ready: document.body.dataset.state === "ready",
    finished: !document.getElementById("finished").hidden,
    prompt: document.getElementById("prompt").textContent,
    texts: [...document.querySelectorAll(".response .text")].map((element) => element.textContent),
})"""


class Running(Protocol):
    """A server that was started: the whole address of its page, and a way to end it with SIGKILL."""

    address: str

    def kill(self) -> None: ...


class Server:
    """`lm-env label` in a process of its own."""

    def __init__(self, data: Path, store: Path, port: int) -> None:
        command = [sys.executable, "-m", "lm_env", "label", str(data), "--out", str(store), "--port", str(port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = next(line.split()[-1] for line in self.process.stdout if "#token=" in line)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Browser:
    """A headless Chromium with a profile that outlives it, driven over the DevTools protocol."""

    def __init__(self, playwright: Any, chromium: str, profile: Path) -> None:
        port_file = profile / "DevToolsActivePort"
        port_file.unlink(missing_ok=True)
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run"]
        self.process = subprocess.Popen(
            [chromium, *flags, f"--user-data-dir={profile}", "about:blank"],
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + WAIT_MS / 1000
        while not (port_file.exists() and port_file.read_text().count("\n") >= 1):
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError(f"{chromium} does not start")
            time.sleep(0.02)
        port = port_file.read_text().split()[0]
        self.connection = playwright.chromium.connect_over_cdp(f"http://127.0.0.1:{port}")
        self.page = self.connection.contexts[0].pages[0]

    def open(self, address: str) -> None:
        self.page.goto(f"{address}&annotator=ana")

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def write_data(path: Path, count: int, rng: random.Random) -> dict[str, str]:
    """Prompts that say which key to press; -> what each prompt asks for."""
    wanted = {}
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            asked = rng.choices(list(KEYS), weights=[8, 1, 1, 1])[0]
            prompt = f"item {i}: {asked}"
            wanted[prompt] = asked
            low = rng.randrange(1000)
            row = {"prompt": prompt, "responses": [f"value {low}", f"value {low + 1 + rng.randrange(1000)}"]}
            file.write(json.dumps(row) + "\n")
    return wanted


def key_for(prompt: str, texts: list[str]) -> str:
    """What the rule presses."""
    asked = prompt.rpartition(" ")[2]
    numbers = [int(text.split()[-1]) for text in texts]
    return KEYS[asked] or ("ArrowLeft" if numbers[0] > numbers[1] else "ArrowRight")


def label_all(
    playwright: Any,
    chromium: str,
    folder: Path,
    *,
    labels: int,
    kills: int,
    start: Callable[[Path, Path, int], Running] = Server,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Label everything through the page with so many kills; -> what was found afterward.

    Args:
        start: (data, file of labels, port) -> a running server.
    """
    rng = random.Random(seed)
    data, store = folder / "data.jsonl", folder / "labels.sqlite"
    wanted = write_data(data, labels, rng)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    at = sorted(rng.sample(range(labels // 20 + 1, labels - labels // 20), kills))
    targets = [("server", "browser", "both")[i % 3] for i in range(kills)]
    killings = dict(zip(at, targets, strict=True))
    begin = time.monotonic()
    server, browser = start(data, store, port), Browser(playwright, chromium, folder / "profile")
    undone = pressed = 0
    previous = ""
    try:
        browser.open(server.address)
        while True:
            shown = wait_for(browser.page, unlike=previous)
            if shown["finished"]:
                break
            browser.page.wait_for_timeout(160)  # the page takes no key in the first moments of a question
            browser.page.keyboard.press(key_for(shown["prompt"], shown["texts"]))
            pressed += 1
            previous = shown["prompt"]
            target = killings.pop(pressed, None)
            if target is not None:
                time.sleep(rng.random() * 0.03)
                say(f"label {pressed}: SIGKILL to {'server and browser' if target == 'both' else 'the ' + target}")
                if target != "server":
                    browser.kill()
                if target != "browser":
                    server.kill()
                    server = start(data, store, port)
                if target != "server":
                    browser, previous = Browser(playwright, chromium, folder / "profile"), ""
                    browser.open(server.address)
            elif pressed % UNDO_EVERY == 0:
                wait_for(browser.page, unlike=previous)
                browser.page.keyboard.press("u")
                wait_for(browser.page, like=previous)
                undone, previous = undone + 1, ""
    finally:
        browser.kill()
        server.kill()
    return {"seconds": time.monotonic() - begin, "pressed": pressed, "undone": undone, **compare(store, wanted)}


def wait_for(page: Any, *, unlike: str | None = None, like: str | None = None) -> dict[str, Any]:
    """What the page shows, as soon as it is ready, with this prompt or with another one, or finished."""
    deadline = time.monotonic() + WAIT_MS / 1000
    while True:
        found = page.evaluate(READ)
        changed = found["finished"] or found["prompt"] != unlike if like is None else found["prompt"] == like
        if found["ready"] and changed:
            return dict(found)
        if time.monotonic() > deadline:
            raise RuntimeError(f"the page stays as it is: {found}, {page.inner_text('body')!r}")
        page.wait_for_timeout(10)


def compare(store: Path, wanted: dict[str, str]) -> dict[str, Any]:
    """What is in the file, read with nothing of this package, against what had to be pressed."""
    with sqlite3.connect(store) as database:
        rows = database.execute(
            "SELECT i.prompt, i.responses, a.choice, a.ranking, a.withdrawn_at IS NULL FROM answers a"
            " JOIN questions q ON q.id = a.question JOIN items i ON i.id = q.item"
        ).fetchall()
    valid = [(json.loads(prompt), *rest) for prompt, *rest, counts in rows if counts]
    given = Counter(prompt for prompt, *_ in valid)
    wrong = 0
    for prompt, responses, choice, ranking in valid:
        numbers = [int(text.split()[-1]) for text in json.loads(responses)]
        ranks = json.loads(ranking)
        right = "ranked" if wanted[prompt] == "larger" else wanted[prompt]
        wrong += choice != right or (choice == "ranked" and ranks[numbers.index(max(numbers))] != 0)
    return {
        "labels": len(valid),
        "withdrawn": len(rows) - len(valid),
        "lost": len(wanted.keys() - given.keys()),
        "twice": sum(count > 1 for count in given.values()),
        "wrong": wrong,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--labels", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("no Chromium was found: install one, or name it in the variable CHROMIUM")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, sync_playwright() as playwright:
        found = label_all(
            playwright, chromium, Path(folder), labels=options.labels, kills=options.kills, seed=options.seed
        )
    print(json.dumps(found, indent=2))
    raise SystemExit(found["labels"] != options.labels or found["lost"] or found["twice"] or found["wrong"])


if __name__ == "__main__":
    main()
