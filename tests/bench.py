"""Measure what cao costs: start-up, memory, what a handoff adds, idle sessions.

    python3 tests/bench.py [--quick] [--json FILE] [--script PATH]

Works in a runtime directory of its own below /tmp and removes it. Linux only: memory and
CPU are read from /proc. Not a test: the numbers belong to the machine, the limits are the
project's, and the exit code is 1 where one is not kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import cao  # noqa: E402 - found through the line above

HELLO = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "bench", "version": "1"},
}
TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")


class Row(NamedTuple):
    """One figure; `limit` is None where it is only for information."""

    figure: str
    value: float
    unit: str
    limit: float | None = None
    detail: str = ""

    @property
    def kept(self) -> bool:
        return self.limit is None or self.value <= self.limit


class Place:
    """Owns a runtime directory, its tmux server and an environment; `close` ends it all."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="cao-", dir="/tmp"))
        self.home, self.work = self.folder / "cao", self.folder / "work"
        self.home.mkdir(mode=0o700)
        for name in ("work", "tmux", "home"):
            (self.folder / name).mkdir()
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder / "home"),
            "CAO_HOME": str(self.home),
            "TMUX_TMPDIR": str(self.folder / "tmux"),
            "LANG": "C.UTF-8",
        }
        # One interpreter for all forms, without what else is installed on this machine.
        venv.create(self.folder / "venv", symlinks=True)
        self.python = str(self.folder / "venv/bin/python")

    def lib_argv(self) -> list[str]:
        """Return how cao's own runners, hooks and tool servers are started."""
        return cao.install_copy(cao.Store(str(self.home)))

    def console_script(self) -> list[str]:
        """Put cao.py into the venv, with the script that pip would write."""
        folder = self.folder / "venv"
        (packages,) = folder.glob("lib/python*/site-packages")
        shutil.copy(ROOT / "cao.py", packages)
        script = folder / "bin" / "cao-mcp"
        script.write_text(
            f"#!{folder}/bin/python\nimport sys\nfrom cao import main_mcp\n"
            "if __name__ == '__main__':\n    sys.exit(main_mcp())\n"
        )
        script.chmod(0o755)
        return [str(script)]

    def copied_file(self) -> list[str]:
        """Copy the file alone: it is compiled anew at each start."""
        alone = self.folder / "alone"
        alone.mkdir()
        shutil.copy(ROOT / "cao.py", alone)
        return [self.python, str(alone / "cao.py")]

    def pids(self, word: str = "") -> list[int]:
        """Return our processes that have a word in their command line."""
        mark, found = f"CAO_HOME={self.home}".encode(), []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                ours = mark in (entry / "environ").read_bytes().split(b"\0")
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # it ended while we looked
            if ours and (not word or word.encode() in words):
                found.append(int(entry.name))
        return found

    def log(self, session: str) -> list[dict]:
        path = self.home / "sessions" / session / "log.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def close(self) -> None:
        """End what was started here and leave no file."""
        socket = cao.tmux_socket(str(self.home))
        kill = ["tmux", "-L", socket, "kill-server"]
        subprocess.run(kill, env=self.env, capture_output=True, check=False)
        end = time.monotonic() + 5
        while (left := self.pids()) and time.monotonic() < end:
            pause(0.02)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)


class Client:
    """Speaks MCP with one `cao mcp`; answers are taken in any order."""

    def __init__(self, place: Place, argv: list[str]) -> None:
        self.process = subprocess.Popen(
            argv, cwd=place.work, env=place.env,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.buffer, self.next_id = b"", 0
        self.answers: dict[int, tuple[float, bytes]] = {}
        self.ask("initialize", HELLO)
        self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def send(self, message: dict) -> None:
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def post(self, method: str, params: dict) -> int:
        self.next_id += 1
        self.send({"jsonrpc": "2.0", "id": self.next_id, "method": method, "params": params})
        return self.next_id

    def post_handoff(self, target: str, task: str) -> int:
        arguments = {"target": target, "task": task}
        return self.post("tools/call", {"name": "handoff", "arguments": arguments})

    def take(self, key: int, timeout_s: float = 120.0) -> tuple[float, bytes]:
        """Return (when it came, by the wall clock; the line) of an answer."""
        end = time.monotonic() + timeout_s
        while key not in self.answers:
            if not select.select([self.process.stdout], [], [], end - time.monotonic())[0]:
                raise SystemExit(f"bench: no answer in {timeout_s} s")
            chunk = os.read(self.process.stdout.fileno(), 1 << 16)
            if not chunk:
                raise SystemExit("bench: cao mcp ended")
            *lines, self.buffer = (self.buffer + chunk).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "id" in message:
                    self.answers[message["id"]] = (time.time(), line)
        return self.answers.pop(key)

    def ask(self, method: str, params: dict) -> bytes:
        return self.take(self.post(method, params))[1]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


def pause(seconds: float) -> None:
    select.select([], [], [], seconds)


def timed(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def kilobytes(pid: int, file: str, word: str) -> float:
    """Return a figure of /proc/PID/FILE ("VmRSS:   12 kB") in kB."""
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(word)).split()[1])


def memory(figure: str, pids: list[int], limit: float | None) -> Row:
    """Return what the largest of some processes holds; Pss parts what is shared (proc(5))."""
    rss, pss = max(
        (kilobytes(p, "status", "VmRSS"), kilobytes(p, "smaps_rollup", "Pss:")) for p in pids
    )
    count = f", largest of {len(pids)}" if len(pids) > 1 else ""
    return Row(figure, rss / 1000, "MB", limit, f"Pss {pss / 1000:.1f} MB{count}")


def cpu_ms(pid: int) -> float:
    """Return the CPU time a process has used (proc(5): utime and stime, in ticks)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_MS


def bench_first(place: Place, argv: list[str]) -> list[Row]:
    """Memory where cao.py had to be compiled first: the file alone, and its first runner."""
    client = Client(place, argv)
    client.ask("tools/list", {})
    server = memory("cao mcp, copied file, memory", [client.process.pid], 20.0)
    done = hand_off(client, "demo", "demo: say first")
    log = place.log(done.session)
    took = f"launch to the turn's start {turn_started(log) - event_at(log, 'launched'):.3f} s"
    pause(1.0)
    runner = memory("runner that compiled, memory", place.pids("run-session"), 18.0)
    stop(client, done.session)
    client.close()
    return [server, runner._replace(detail=f"{runner.detail}, {took}")]


def bench_start(place: Place, forms: dict[str, list[str]], rounds: int) -> list[Row]:
    """Start to the answer of initialize, interleaved with `python3 -c pass`."""
    took: dict[str, list[float]] = {name: [] for name in forms}
    plain: list[float] = []
    for number in range(rounds + 1):  # the first round warms the caches, and is not counted
        start = time.perf_counter()
        subprocess.run([place.python, "-c", "pass"], env=place.env, check=True)
        plain += [time.perf_counter() - start] if number else []
        for name, argv in forms.items():
            start = time.perf_counter()
            client = Client(place, argv)
            took[name] += [time.perf_counter() - start] if number else []
            client.close()
    one = statistics.median(plain)
    rows = [Row("python3 -c pass", one * 1000, "ms", None, f"median of {rounds}")]
    for name, times in took.items():
        middle = statistics.median(times)
        rows.append(Row(f"initialize, {name}", middle / one, "x", 4.0, f"{middle * 1000:.0f} ms"))
    return rows


def bench_server(client: Client, calls: int) -> list[Row]:
    """Memory after tools/list, its size, and the round trip of a tool call."""
    tools = json.loads(client.ask("tools/list", {}))["result"]
    size = len(json.dumps(tools, ensure_ascii=False, separators=(",", ":")).encode())
    used = memory("cao mcp, memory", [client.process.pid], 20.0)
    call = {"name": "list_sessions", "arguments": {}}
    trips = [timed(lambda: client.ask("tools/call", call)) for _ in range(calls)]
    trips.sort()
    p95 = f"p95 {trips[int(len(trips) * 0.95)] * 1000:.1f} ms, {calls} calls"
    return [
        used,
        Row("tools/list", size / 1000, "kB", 10.0, f"{len(tools['tools'])} tools"),
        Row("tool call, round trip", statistics.median(trips) * 1000, "ms", None, p95),
    ]


class Handoff(NamedTuple):
    """Times of one handoff, by the wall clock of this machine."""

    asked_at: float
    answered_at: float
    session: str
    outcome: str


def hand_off(client: Client, target: str, task: str) -> Handoff:
    asked = time.time()
    answered, line = client.take(client.post_handoff(target, task))
    return read_handoff(asked, answered, line)


def read_handoff(asked: float, answered: float, line: bytes) -> Handoff:
    result = json.loads(line)["result"]
    if result.get("isError") or not result["structuredContent"]["results"]:
        raise SystemExit(f"bench: a handoff failed: {result['content'][0]['text']}")
    (done,) = result["structuredContent"]["results"]
    return Handoff(asked, answered, done["task"].partition(".")[0], done["outcome"])


def stop(client: Client, session: str) -> None:
    client.ask("tools/call", {"name": "stop_session", "arguments": {"session": session}})


def event_at(events: list[dict], name: str, kind: str = "") -> float:
    """Return when an event was last logged."""
    return [e["at"] for e in events if e["event"] == name and e.get("kind", "") == kind][-1]


def turn_started(events: list[dict]) -> float:
    return event_at(events, "event", "submitted")


def bench_handoff(place: Place, client: Client, rounds: int) -> tuple[list[Row], str]:
    """Return what a handoff adds to the worker's start and turn, and the last session.

    New session: from the call until the CLI is being launched, and from the CLI's own sign
    that its turn ended until the answer is at the client. Second turn: all but the turn.
    """
    new, start, second = [], [], []
    session = ""
    for number in range(rounds):
        if session:
            stop(client, session)
        done = hand_off(client, "demo", f"demo: say {number}")
        session, log = done.session, place.log(done.session)
        launched, ended = event_at(log, "launched"), event_at(log, "event", "ended")
        new.append(launched - done.asked_at + done.answered_at - ended)
        start.append(turn_started(log) - launched)
        pause(0.3)  # a supervisor thinks before it goes on; the worker is idle by then
        done = hand_off(client, session, f"demo: sleep 0.5; say {number} again")
        log = place.log(session)
        turn = event_at(log, "event", "ended") - turn_started(log)
        second.append(done.answered_at - done.asked_at - turn)
    median = f"median of {rounds}"
    worst = f"{median}, worst {max(new):.3f}"
    return [
        Row("handoff, new session, adds", statistics.median(new), "s", 0.25, worst),
        Row("  launch to the turn's start", statistics.median(start), "s", None, median),
        Row("handoff, second turn, adds", statistics.median(second), "s", 0.25,
            f"{median}, worst {max(second):.3f}"),
    ], session  # fmt: skip


def bench_side_by_side(client: Client, count: int) -> list[Row]:
    """Many handoffs of a two-second turn at once, against one."""
    one = hand_off(client, "demo", "demo: sleep 2; say one")
    asked = time.time()
    keys = [client.post_handoff("demo", f"demo: sleep 2; say {n}") for n in range(count)]
    done = [read_handoff(asked, *client.take(key)) for key in keys]
    alone = one.answered_at - one.asked_at
    together = max(handoff.answered_at for handoff in done) - asked
    detail = f"{together:.2f} s, one {alone:.2f} s"
    return [Row(f"{count} handoffs side by side", together / alone, "x", 2.0, detail)]


def bench_idle(place: Place, seconds: float) -> list[Row]:
    """Memory and CPU time of the sessions that live and do nothing, and of their cao mcp."""
    pause(1.0)
    runners, all_of_us = place.pids("run-session"), place.pids()
    before = sum(map(cpu_ms, all_of_us))
    pause(seconds)
    used = sum(map(cpu_ms, all_of_us)) - before
    detail = f"{len(runners)} sessions, {len(all_of_us)} processes, {seconds:.0f} s"
    return [
        memory("runner, idle, memory", runners, 18.0),
        Row("idle sessions, CPU", used / seconds, "ms/s", 0.0, detail),
    ]


def measure(place: Place, quick: bool, script: str) -> list[Row]:
    """Return every row; a session or client that is started is ended with the place."""
    forms = {"copied file": [*place.copied_file(), "mcp"]}
    rows = bench_first(place, forms["copied file"])
    forms["installed (lib copy)"] = [*place.lib_argv(), "mcp"]
    forms["console script"] = [script] if script else place.console_script()
    rows += bench_start(place, forms, 3 if quick else 15)
    client = Client(place, forms["installed (lib copy)"])
    rows += bench_server(client, 50 if quick else 300)
    more, session = bench_handoff(place, client, 2 if quick else 7)
    rows += more
    stop(client, session)
    rows += bench_side_by_side(client, 10)
    rows += bench_idle(place, 2.0 if quick else 5.0)
    rows.append(memory("cao mcp, memory at the end", [client.process.pid], None))
    client.close()
    return rows


def render(rows: list[Row]) -> str:
    """Return the rows as a table of text."""
    lines = []
    for row in rows:
        limit = "" if row.limit is None else f"<= {row.limit:g} {row.unit}"
        verdict = "" if row.limit is None else "ok" if row.kept else "OVER"
        lines.append(f"{row.figure:<30} {row.value:>9.3f} {row.unit:<5} {limit:<12} {verdict:<5}"
                     f" {row.detail}".rstrip())  # fmt: skip
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds: half a minute")
    parser.add_argument("--json", metavar="FILE", help="write the rows as JSON too")
    parser.add_argument(
        "--script", default="", help="an installed cao-mcp, instead of one made here"
    )
    args = parser.parse_args()
    place = Place()
    try:
        rows = measure(place, args.quick, args.script)
    finally:
        place.close()
    print(
        f"python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    print(render(rows))
    found = {
        "python": platform.python_version(),
        "rows": [{**r._asdict(), "kept": r.kept} for r in rows],
    }
    text = json.dumps(found, indent=1)
    if args.json:
        Path(args.json).write_text(text + "\n")
    return 0 if all(row.kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
