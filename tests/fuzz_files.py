#!/usr/bin/env python3
"""Put something else in the place of a file of a live runtime directory; then every command.

    python3 tests/fuzz_files.py [--seed N] [--rounds R] [--seconds S] [--file TEXT] [--kind KIND]

Each round takes one file of a home in which sessions work, are idle, ask and have ended, and
puts nothing, garbage, JSON of other types, deep JSON, a directory, a FIFO, a symlink to itself,
100 MB or a file without permission there. Then each command runs once: it ends in time, without
a traceback; a new worker answers; and no runner has died. As root nothing is without permission:
run it as another user too. Exit status 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from torture import Ground, until  # noqa: E402

OTHER_TYPES = [7, "x", None, True, [], {}, [1, "a"], {"a": {}}, -1e400, "2026", "\ud83d\x1b[2J"]


def other_json(path: Path, dice: random.Random) -> None:
    """Give some values of an object other types; without one, any JSON."""
    found = None
    try:
        if path.is_file():  # a FIFO would block us
            found = json.loads(path.read_text())
    except (OSError, ValueError):
        pass
    if isinstance(found, dict) and found:
        for key in dice.sample(sorted(found), dice.randrange(1, len(found) + 1)):
            found[key] = dice.choice(OTHER_TYPES)
    else:
        found = dice.choice(OTHER_TYPES)
    swap(path, lambda: path.write_text(json.dumps(found), errors="surrogatepass"))


def swap(path: Path, make) -> None:
    """Put something in a file's place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    make()


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(100 << 20)


def locked(path: Path, dice: random.Random) -> None:
    """Take all permissions away."""
    if path.is_file() and not path.is_symlink():
        path.chmod(0)


KINDS = {
    "nothing": lambda path, dice: swap(path, lambda: None),
    "empty": lambda path, dice: swap(path, path.touch),
    "garbage": lambda path, dice: swap(path, lambda: path.write_bytes(dice.randbytes(300))),
    "other": other_json,
    "deep": lambda path, dice: swap(path, lambda: path.write_text('{"a":' * 9999)),
    "folder": lambda path, dice: swap(path, lambda: (path.mkdir(), (path / "x").touch())),
    "fifo": lambda path, dice: swap(path, lambda: os.mkfifo(path)),
    "loop": lambda path, dice: swap(path, lambda: path.symlink_to(path.name)),
    "huge": lambda path, dice: swap(path, lambda: huge(path)),
    "locked": locked,
}

NO_FILE = ("nothing", "folder", "fifo", "loop")

FLOW = "---\nname: nightly\nschedule: '0 3 * * *'\nagent_profile: demo\n---\nsay hello\n"
CRONTAB = "#!/bin/sh\ncase $1 in -l) cat {0} 2>/dev/null || {{ echo no crontab for me >&2; exit 1; }};; *) cat >{0};; esac\n"  # noqa: E501


class Home:
    """A live home: who is in it, and what is done to it."""

    def __init__(self, seed: int) -> None:
        self.ground = ground = Ground(seed)
        self.home, self.store = ground.home, ground.store
        (ground.folder / "bin").mkdir()
        crontab = ground.folder / "bin/crontab"
        crontab.write_text(CRONTAB.format(ground.folder / "crontab"))
        crontab.chmod(0o755)
        os.environ["PATH"] = f"{ground.folder}/bin:{os.environ['PATH']}"
        os.environ["CAO_CLIENT"] = "fuzz"
        (self.home / "profiles").mkdir(exist_ok=True)
        (self.home / "profiles/mine.md").write_text("---\nprovider: demo\n---\nDo it.\n")
        (ground.work / "flow.md").write_text(FLOW)
        (ground.work / ".cao/profiles").mkdir(parents=True)
        (ground.work / ".cao/profiles/here.md").write_text("---\nprovider: demo\n---\nHere.\n")
        for words in (["allow"], ["schedule", "add", "flow.md"]):
            done = ground.run(*words)
            assert done.returncode == 0, done.stderr
        self.tasks = [
            self.assign("demo: sleep 9999"),
            self.assign("demo: permit it?|Yes|No; say so"),
            self.assign("demo: handoff demo {demo: permit below?|Yes|No}"),
            self.assign("demo: say idle"),
            self.assign("demo: say ended"),
        ]
        ground.run("wait", *self.tasks[3:], "--all", "--timeout", "30s")
        self.busy, self.asking, self.boss, self.idle, self.ended = (
            task.partition(".")[0] for task in self.tasks
        )
        ground.run("stop", self.ended)
        ground.run("send", self.busy, "a message that waits")
        until(lambda: len(self.runners()) == 5, 20.0)
        self.living = self.runners()
        assert len(self.living) == 5, self.living

    def assign(self, text: str) -> str:
        done = self.ground.run("assign", "demo", text, "--keep", "--timeout", "9h")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def runners(self) -> dict[str, int]:
        """Return the runner's pid of each session in tmux."""
        listed = self.ground.tmux("list-panes", "-a", "-F", "#{session_name} #{pane_pid}")
        return {name: int(pid) for name, pid in map(str.split, listed.splitlines())}

    def files(self) -> list[str]:
        """Return every file of the home; the byte code beside cao.py is Python's own."""
        found = [
            os.path.relpath(os.path.join(folder, name), self.home)
            for folder, _, names in os.walk(self.home)
            for name in names
            if "__pycache__" not in folder and "/quarantine" not in folder
        ]
        return sorted(found)

    def commands(self) -> list[list[str]]:
        """Return each command once."""
        busy, idle, ended = self.busy, self.idle, self.ended
        return [
            ["ls"], ["ls", "--all", "--json"], ["show", idle], ["show", ended], ["why", busy],
            ["why", self.asking, "--json"], ["logs"], ["logs", busy], ["trace", "--output", "-"],
            ["wait", "--timeout", "0s"], ["wait", self.tasks[4], "--timeout", "0s"],
            ["wait", self.tasks[1], "--timeout", "0s"], ["send", busy, "more"],
            ["answer", self.asking, "maybe"], ["answer"], ["stop", "--interrupt", idle],
            ["profiles"], ["profiles", "mine"], ["profiles", "here"], ["allow", "--list"],
            ["schedule", "list"], ["schedule", "show", "nightly"], ["schedule", "log", "nightly"],
            ["schedule", "run", "nightly"], ["config", "cursor"], ["diff", idle], ["doctor"],
            ["assign", idle, "demo: say again"], ["clean"], ["hook", self.store.folder(idle)],
            ["mcp"],
        ]  # fmt: skip

    def close(self) -> None:
        self.ground.close(False)


CALLS = "".join(
    json.dumps({"jsonrpc": "2.0", "id": n, "method": method, "params": params}) + "\n"
    for n, (method, params) in enumerate([
        ("initialize", {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {}}),
        ("tools/call", {"name": "list_sessions", "arguments": {"all": True}}),
        ("tools/call", {"name": "wait", "arguments": {"timeout_s": 0}}),
        ("resources/read", {"uri": "cao://sessions"}),
    ])
)  # fmt: skip


def run(home: Home, argv: list[str], timeout_s: float = 60.0) -> tuple[str, str]:
    """Run a command; return what is wrong with it, and what it said."""
    texts = {"mcp": CALLS, "hook": '{"hook_event_name": "Nothing"}'}
    full = [sys.executable, "-S", str(HERE / "start.py"), *argv]
    try:
        done = subprocess.run(full, input=texts.get(argv[0], ""), capture_output=True, text=True,
                              errors="replace", timeout=timeout_s, check=False)  # fmt: skip
    except subprocess.TimeoutExpired as late:
        return "hangs", f"{late.stdout!r} {late.stderr!r}"
    said = done.stdout + done.stderr
    if "Traceback" in said or done.returncode not in (0, 1, 2, 3, 4, 5, 6):
        return f"exit status {done.returncode}", said
    if "cao failed" in said:
        return "an internal error", said
    return "", said


def fuzz(home: Home, file: str, kind: str, dice: random.Random, commands: int) -> list[str]:
    """Do one round and return what is wrong."""
    path, wrong = home.home / file, []
    KINDS[kind](path, dice)
    chosen = home.commands()
    if commands < len(chosen):
        chosen = dice.sample(chosen, commands)
    for argv in chosen:
        words, said = run(home, argv)
        if words:
            wrong.append(f"cao {' '.join(argv)}: {words}: {said[-1500:]}")
    done = home.ground.run("handoff", "demo", "demo: say new", "--timeout", "40s")
    if done.stdout != "new\n":
        wrong.append(f"a new worker: {done.stdout} {done.stderr}")
    now = home.runners()
    for name, pid in home.living.items():
        if now.get(name) != pid:
            log = home.store.read_text(f"{home.home}/sessions/{name}/runner.log")
            wrong.append(f"the runner of {name} died: {log[-1500:]}")
    for name in set(now) - set(home.living):
        run(home, ["stop", name])
    return wrong


def main() -> int:
    """Fuzz, say what was wrong, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--rounds", type=int, default=10**6)
    parser.add_argument("--commands", type=int, default=99, help="so many of them each round")
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--file", default="", help="only files with this in their path")
    parser.add_argument("--kind", default="", choices=["", *KINDS])
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):  # what was started ends with us
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    dice, end = random.Random(options.seed), time.monotonic() + options.seconds
    print(f"seed {options.seed}", flush=True)
    home, count, failed = Home(options.seed), 0, 0
    try:
        while count < options.rounds and time.monotonic() < end:
            files = [file for file in home.files() if options.file in file]
            file = dice.choice(files)
            kinds = NO_FILE if file.startswith("lib/") else KINDS  # code, if it is a file
            kind = options.kind or dice.choice(sorted(kinds))
            wrong = fuzz(home, file, kind, dice, options.commands)
            count += 1
            for words in wrong:
                print(f"WRONG {kind} at {file}: {words}", flush=True)
            if wrong or count % 10 == 0:  # what was there is gone: another home
                failed += bool(wrong)
                home.close()
                home = Home(options.seed)
    finally:
        home.close()
    print(f"{count} rounds, {failed} wrong, seed {options.seed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
