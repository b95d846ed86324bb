"""`bench.py --quick` gives a whole table and the same as JSON; no figure is judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

FIGURES = (
    "python3 -c pass",
    "start to initialize, installed",
    "a hook's start to end",
    "a tool call's hook, no message waits",
    "cao mcp: memory",
    "runner, idle: memory",
    "tools/list",
    "tool call, round trip",
    "handoff, new session, adds",
    "handoff, second turn, adds",
    "message to an idle worker",
    "handoff to a plain program, whole",
    "4 handoffs side by side",
    "messages into 1 inbox",
    "messages into 3 inboxes",
    "4 idle sessions: CPU",
    "3 working sessions: CPU",
    "10 sessions, 1,000 messages: handoff, new session",
)


@pytest.mark.tmux
def test_a_quick_bench_gives_every_figure_and_leaves_nothing(place):
    out, folders = place.folder / "bench.json", place.folder / "bench"
    folders.mkdir()
    argv = [sys.executable, str(ROOT / "tests/bench.py"), "--quick", "--json", str(out)]
    env = {**os.environ, "TMPDIR": str(folders)}
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False, env=env)
    assert ran.returncode in (0, 1), ran.stderr  # 1: a limit was not kept, on a busy machine
    assert out.exists(), ran.stderr  # it said what failed
    rows = json.loads(out.read_text())["rows"]
    for figure in FIGURES:
        (row,) = [row for row in rows if row["figure"] == figure]
        assert row["value"] >= 0
        assert row["unit"]
        assert row["kept"] == (row["limit"] is None or row["value"] <= row["limit"])
    _, *lines = ran.stdout.splitlines()
    assert [line[:54].strip() for line in lines] == [row["figure"] for row in rows]
    assert [" OVER " in line for line in lines] == [not row["kept"] for row in rows]
    assert not list(folders.iterdir())
    assert not processes_of(folders)


def processes_of(folder):
    """Return the processes whose HOME is below a folder."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"\0HOME={folder}/".encode() in b"\0" + environ.read_bytes():
                found.append(environ.parent.name)
        except OSError:
            continue  # it ended while we looked
    return found
