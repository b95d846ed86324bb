"""Measure what cao costs, each figure beside its limit, and beside the reference program.

    python3 tests/bench.py [--quick] [--json FILE] [--script PATH] [--reference VENV]
    python3 tests/bench.py --host HOST [--quick] [--json FILE]   # only: workers on HOST

Works in runtime directories of its own below TMPDIR and removes them. Linux only: memory and
CPU are read from /proc. Not a test: the numbers belong to the machine, the limits are the
project's, and the exit code is 1 where one is not kept. What is compared is measured in
turns, in one run: `python3 -c pass`, a file written by hand, an empty runtime directory
beside a full one, cli-agent-orchestrator 2.5.4 in a venv with the same program as worker.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import cao  # noqa: E402 - found through the line above

HELLO = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "bench", "version": "1"},
}
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


CORES = len(os.sched_getaffinity(0))
# A worker that both programs can drive: what it reads it says back, after a sleep it names.
MOCK_CLI = """\
import re, sys, time
print("\\u276f ", end="", flush=True)
for line in sys.stdin:
    if line.strip() == "/exit":
        break
    if line.strip():
        named = re.search(r"sleep ([0-9.]+)", line)
        time.sleep(float(named[1]) if named else 0)
        print("> MOCK:", line.strip(), flush=True)
        print("\\u276f ", end="", flush=True)
"""
MOCK_PROFILE = """\
---
name: mock
description: Says back what it reads
provider: command
command: [mock_cli]
ready: '^\\u276f\\s*$'
answer: '> MOCK: (.*)'
---
"""


class Scale(NamedTuple):
    """How much is done of each; `grown` are (ended sessions, old messages) to reach. (0, 0)
    is the control: what two empty directories differ by is noise, and no row says less."""

    rounds: int
    calls: int
    fleets: tuple[int, ...]
    idle: int
    working: int
    watch_s: float
    messages: int
    grown: tuple[tuple[int, int], ...]
    far: int


WHOLE = Scale(9, 300, (1, 10, 50, 100), 50, 20, 10.0, 400,
              ((0, 0), (10, 0), (100, 0), (1000, 0), (1000, 100_000)), 20)  # fmt: skip
QUICK = Scale(2, 50, (1, 4), 4, 3, 1.5, 40, ((0, 0), (10, 1000)), 3)


class Row(NamedTuple):
    """One figure; `limit` is None where it is only for information."""

    figure: str
    value: float
    unit: str
    limit: float | None = None
    detail: str = ""
    reference: float | None = None  # the same of the reference program

    @property
    def kept(self) -> bool:
        return self.limit is None or self.value <= self.limit


class Place:
    """Owns a runtime directory, its tmux server and an environment; `close` ends it all."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="cao-"))
        self.home, self.work = self.folder / "cao", self.folder / "work"
        self.home.mkdir(mode=0o700)
        for name in ("work", "tmux", "home", "bin", "cao/profiles"):
            (self.folder / name).mkdir()
        self.env = {
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
            "HOME": str(self.folder / "home"),
            "CAO_HOME": str(self.home),
            "TMUX_TMPDIR": str(self.folder / "tmux"),
            "LANG": "C.UTF-8",
            "CAO_MAX_SESSIONS": "1000",
            "CAO_MAX_WAITING": "100000",
            "CAO_CALL_CEILING_S": "600",
            **{name: os.environ[name] for name in ("CAO_SSH",) if name in os.environ},
        }
        # One interpreter for all forms, without what else is installed on this machine.
        venv.create(self.folder / "venv", symlinks=True)
        self.python = str(self.folder / "venv/bin/python")
        (self.home / "profiles/mock.md").write_text(MOCK_PROFILE, encoding="utf-8")
        mock_cli = self.folder / "bin/mock_cli"
        mock_cli.write_text(f"#!{self.python} -IS\n{MOCK_CLI}", encoding="utf-8")
        mock_cli.chmod(0o755)

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

    def pids(self) -> list[int]:
        """Return our processes: HOME is in the environment of each."""
        mark, found = f"HOME={self.folder}/home".encode(), []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue  # it ended while we looked
        return found

    def runners(self) -> list[int]:
        """Return the runners: "… run-session NAME" (the tmux server's own line goes on)."""
        found = []
        for pid in self.pids():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # it ended while we looked
            if words[-3:-2] == [b"run-session"]:
                found.append(pid)
        return found

    def log(self, session: str) -> list[dict]:
        path = self.home / "sessions" / session / "log.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def runner(self, session: str) -> int:
        """Return the pid of a session's runner."""
        path = self.home / "sessions" / session / "launch" / "runner.json"
        return int(json.loads(path.read_text())["id"])

    def until_idle(self, session: str, *others: str) -> None:
        """Return when a session waits for its next task, or has one of some other states."""
        path = self.home / "sessions" / session / "state.json"
        end = time.monotonic() + 30
        while json.loads(path.read_text())["state"] not in ("idle", *others):
            if time.monotonic() > end:
                raise SystemExit(f"bench: {session} was not {others or 'idle'} after 30 s")
            pause(0.01)

    def cpu_s(self) -> float:
        """Return the CPU time of all our processes, and of those they have waited for."""
        return sum(map(cpu_s, self.pids()))

    def until_calm(self) -> None:
        """Return when what follows a turn's end is over too (the runner tells tmux's status
        line after it has written `idle`), or after 10 s: then the figure tells."""
        end, before = time.monotonic() + 10, -1.0
        while (now := self.cpu_s()) != before and time.monotonic() < end:
            before = now
            pause(0.3)

    def close(self) -> None:
        """End what was started here and leave no file."""
        for path in (self.folder / "tmux").glob("*/*"):
            kill = ["tmux", "-S", str(path), "kill-server"]
            subprocess.run(kill, env=self.env, capture_output=True, check=False)
        end = time.monotonic() + 10
        while (left := self.pids()) and time.monotonic() < end:
            pause(0.05)
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it ended by itself just now
        shutil.rmtree(self.folder, ignore_errors=True)


class Reference(Place):
    """Owns cli-agent-orchestrator: its server on a loopback port and a supervisor of its own."""

    def __init__(self, environment: Path) -> None:
        super().__init__()
        scripts = environment.resolve() / "bin"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        path = f"{self.folder}/bin:{scripts}:{os.environ['PATH']}"
        self.env.update(PATH=path, CAO_API_PORT=str(port), SHELL="/bin/bash")
        # Its workers are started by a login shell, which makes a PATH of its own.
        (self.folder / "home/.bash_profile").write_text(f"PATH={path}\nPS1='$ '\n")
        agents = self.folder / "home/.aws/cli-agent-orchestrator/agent-store"
        agents.mkdir(parents=True)
        (agents / "mock.md").write_text(
            "---\nname: mock\ndescription: Says back what it reads\nprovider: mock_cli\n---\nBe.\n"
        )
        self.url = f"http://127.0.0.1:{port}"
        self.argv = [str(scripts / "cao-mcp-server")]
        try:
            self.begin(scripts)
        except BaseException:
            self.close()
            raise

    def begin(self, scripts: Path) -> None:
        """Start the server and a supervisor; our client speaks for that."""
        with (self.folder / "server.log").open("w") as log:
            self.server = subprocess.Popen(
                [str(scripts / "cao-server")], env=self.env, cwd=self.work, stdout=log, stderr=log
            )
        end = time.monotonic() + 60
        while True:
            try:
                self.get("/health")
                break
            except OSError:
                if time.monotonic() > end or self.server.poll() is not None:
                    raise SystemExit(f"bench: {scripts}/cao-server does not answer") from None
                pause(0.05)
        launch = [
            str(scripts / "cao"), "launch", "--agents", "mock", "--provider", "mock_cli",
            "--headless", "--auto-approve", "--session-name", "bench",
        ]  # fmt: skip
        subprocess.run(
            launch, env=self.env, cwd=self.work, check=True, timeout=120, capture_output=True
        )
        terminal = self.get("/sessions/cao-bench")["terminals"][0]["id"]
        self.env["CAO_TERMINAL_ID"] = terminal

    def get(self, path: str) -> dict:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return json.load(answer)

    def close(self) -> None:
        super().close()
        self.server.wait()


class Client:
    """Speaks MCP with one tool server; answers are taken in any order."""

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

    def post_call(self, name: str, **arguments) -> int:
        return self.post("tools/call", {"name": name, "arguments": arguments})

    def take(self, key: int, timeout_s: float = 600.0) -> tuple[float, bytes]:
        """Return (when it came, by the wall clock; the line) of an answer."""
        end = time.monotonic() + timeout_s
        while key not in self.answers:
            left = max(0.0, end - time.monotonic())
            if not select.select([self.process.stdout], [], [], left)[0]:
                raise SystemExit(f"bench: no answer in {timeout_s} s")
            chunk = os.read(self.process.stdout.fileno(), 1 << 16)
            if not chunk:
                raise SystemExit("bench: the tool server ended")
            *lines, self.buffer = (self.buffer + chunk).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "id" in message:
                    self.answers[message["id"]] = (time.time(), line)
        return self.answers.pop(key)

    def ask(self, method: str, params: dict) -> bytes:
        return self.take(self.post(method, params))[1]

    def call(self, name: str, **arguments) -> dict:
        """Return what a tool gave, as data; a call that failed ends the run."""
        return read_result(self.take(self.post_call(name, **arguments))[1])

    def stop(self, sessions: list[str]) -> None:
        for key in [self.post_call("stop_session", session=name) for name in sessions]:
            read_result(self.take(key)[1])

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


def read_result(line: bytes) -> dict:
    result = json.loads(line).get("result") or {"isError": True, "content": line.decode()}
    if result.get("isError"):
        raise SystemExit(f"bench: a call failed: {result['content']}")
    return result["structuredContent"]


def pause(seconds: float) -> None:
    select.select([], [], [], seconds)


def timed(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def median_ms(seconds: list[float]) -> float:
    return statistics.median(seconds) * 1000


def kilobytes(pid: int, file: str, word: str) -> float:
    """Return a figure of /proc/PID/FILE ("VmRSS:   12 kB") in kB; 0 where it has just ended:
    a runner's fork is a runner by name, until it is the program that it starts."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        lines = []
    return float(next((line for line in lines if line.startswith(word)), "- 0").split()[1])


def memory(figure: str, pids: list[int], limit: float | None) -> Row:
    """Return what the largest of some processes holds; Pss parts what is shared (proc(5))."""
    rss, pss = max(
        (kilobytes(p, "status", "VmRSS"), kilobytes(p, "smaps_rollup", "Pss:")) for p in pids
    )
    count = f", largest of {len(pids)}" if len(pids) > 1 else ""
    return Row(figure, rss / 1000, "MB", limit, f"Pss {pss / 1000:.1f} MB{count}")


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process, its threads (to the nanosecond) or all there ever
    were (in ticks), and of the children it waited for (proc(5))."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
        now = sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9
    except OSError:
        return 0.0  # it ended: whoever waited for it has its time
    own, children = sum(map(int, fields[11:13])), sum(map(int, fields[13:15]))
    return max(own * TICK_S, now) + children * TICK_S


def machine_s() -> float:
    """Return the CPU time that all programs of this machine, and its host, have used."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    idle, waiting = fields[3:5]
    return (sum(map(int, fields)) - int(idle) - int(waiting)) * TICK_S


def bench_first(place: Place, argv: list[str]) -> list[Row]:
    """Memory where cao.py had to be compiled first: the file alone, and its first runner."""
    client = Client(place, argv)
    client.ask("tools/list", {})
    server = memory("cao mcp, copied file: memory", [client.process.pid], None)
    done = hand_off(client, "demo", "demo: say first")
    runner = memory("runner that compiled: memory", place.runners(), 18.0)
    client.stop([done.session])
    client.close()
    return [server, runner]


def bench_start(
    place: Place, forms: dict[str, list[str]], reference: Reference | None, rounds: int
) -> list[Row]:
    """Start to the answer of initialize, interleaved with `python3 -c pass`. The copied file
    is compiled anew at each start: its figure is for information."""
    names = (*forms, "plain", "hook", "no message", "reference")
    took: dict[str, list[float]] = {name: [] for name in names}

    def initialize(where: Place, argv: list[str]) -> float:
        start = time.perf_counter()
        client = Client(where, argv)
        seconds = time.perf_counter() - start
        client.close()
        return seconds

    def ran(argv: list[str]) -> float:
        return timed(lambda: subprocess.run(argv, env=place.env, input=b"{}", check=True))

    hook = [*forms["installed"][:-1], "hook", str(place.folder)]  # no session's: nothing is put
    waits = ["sh", "-c", cao._message_command(SimpleNamespace(hook=hook))]
    for number in range(rounds + 1):  # the first round warms the caches, and is not counted
        times = {"plain": ran([place.python, "-c", "pass"]), "hook": ran(hook)}
        times["no message"] = ran(waits)
        times.update({name: initialize(place, argv) for name, argv in forms.items()})
        if reference:
            times["reference"] = initialize(reference, reference.argv)
        for name in times if number else ():
            took[name].append(times[name])
    best = {name: min(times) for name, times in took.items() if times}
    one = best.pop("plain")
    theirs = best.pop("reference", None)
    rows = [Row("python3 -c pass", one * 1000, "ms", None, f"best of {rounds}")]
    for name, seconds in best.items():
        limit = 4.0 if name in ("installed", "console script") else None
        beside = theirs / one if theirs and name == "installed" else None
        figure = f"start to initialize, {name}"
        figure = {
            "hook": "a hook's start to end",
            "no message": "a tool call's hook, no message waits",
        }.get(name, figure)
        usual = statistics.median(took[name]) / statistics.median(took["plain"])
        detail = f"{seconds * 1000:.0f} ms; of the medians {usual:.2f} x"
        if name == "no message":
            detail += "; claude, codex, gemini, qwen, copilot"
        rows.append(Row(figure, seconds / one, "x", limit, detail, beside))
    return rows + bench_plugin(place)


def bench_plugin(place: Place) -> list[Row]:
    """What OpenCode and pi do after each tool call, in their own process; where node is."""
    node = shutil.which("node")
    if not node:
        return []
    look = re.search(r"readdirSync\(.*?\)\.some\(.*?test\(name\)\)", cao._OPENCODE_PLUGIN)[0]
    script = (
        f"const {{ readdirSync }} = require('fs'), hook = ['{place.folder}'], n = 10000;"
        "require('fs').mkdirSync(hook[0] + '/inbox/new', { recursive: true });"
        "const start = performance.now();"
        f"for (let i = 0; i < n; i++) {look};"
        "console.log((performance.now() - start) / n)"
    )
    done = subprocess.run([node, "-e", script], capture_output=True, text=True, check=True)
    figure = "a tool call's plugin, no message waits"
    return [Row(figure, float(done.stdout), "ms", None, "opencode, pi")]


def bench_server(
    client: Client, reference: Reference | None, theirs: Client | None, calls: int
) -> list[Row]:
    """Memory after tools/list, its size, and the round trip of a tool call."""
    asked = [json.loads(c.ask("tools/list", {}))["result"] for c in (client, theirs) if c]
    sizes = [len(json.dumps(a, ensure_ascii=False, separators=(",", ":")).encode()) for a in asked]
    used = memory("cao mcp: memory", [client.process.pid], 20.0)
    trips, other = [], []
    for number in range(calls):
        trips.append(timed(lambda: client.call("list_sessions")))
        if theirs and number < 20:
            other.append(timed(lambda: theirs.call("list_siblings")))
    p95 = sorted(trips)[int(len(trips) * 0.95)] * 1000
    row = Row("tool call, round trip", median_ms(trips), "ms", None,
              f"p95 {p95:.1f} ms, {calls} calls")  # fmt: skip
    size = Row("tools/list", sizes[0] / 1000, "kB", 10.0, f"{len(asked[0]['tools'])} tools")
    if not (reference and theirs):
        return [used, size, row]
    held = [memory("", [pid], None).value for pid in (theirs.process.pid, reference.server.pid)]
    return [
        used._replace(reference=held[0], detail=f"{used.detail}; its server {held[1]:.0f} MB"),
        size._replace(reference=sizes[1] / 1000),
        row._replace(reference=median_ms(other)),
    ]


class Handoff(NamedTuple):
    """Times of one handoff, by the wall clock of this machine."""

    asked_at: float
    answered_at: float
    session: str

    @property
    def seconds(self) -> float:
        return self.answered_at - self.asked_at


def hand_off(client: Client, target: str, task: str, **more: str) -> Handoff:
    asked = time.time()
    key = client.post_call("handoff", target=target, task=task, **more)
    return read_handoff(asked, *client.take(key))


def read_handoff(asked: float, answered: float, line: bytes) -> Handoff:
    found = read_result(line)
    if [done["outcome"] for done in found.get("results", ())] != ["done"]:
        raise SystemExit(f"bench: a handoff was not done: {str(found)[:500]}")
    return Handoff(asked, answered, found["results"][0]["task"].partition(".")[0])


def event_at(events: list[dict], name: str, kind: str = "") -> float:
    """Return when an event was last logged."""
    return [e["at"] for e in events if e["event"] == name and e.get("kind", "") == kind][-1]


def bench_handoff(place: Place, client: Client, rounds: int) -> list[Row]:
    """What a handoff adds to the worker's own time, and a message to an idle worker.

    New session: from the call until the CLI is started, and from the CLI's own sign that its
    turn ended until the answer is at the client. Second turn: all but the turn. A message:
    until the CLI said that it took it.
    """
    new, second, message = [], [], []
    for number in range(rounds):
        done = hand_off(client, "demo", f"demo: say {number}")
        session, log = done.session, place.log(done.session)
        new.append(done.seconds - event_at(log, "event", "ended") + event_at(log, "started"))
        place.until_idle(session)
        done = hand_off(client, session, f"demo: sleep 0.3; say {number} again")
        log = place.log(session)
        turn = event_at(log, "event", "ended") - event_at(log, "event", "submitted")
        second.append(done.seconds - turn)
        place.until_idle(session)
        start = time.perf_counter()
        receipt = client.call("send_message", target=session, message=f"note {number}")
        message.append(time.perf_counter() - start)
        if receipt["step"] != "taken":
            raise SystemExit(f"bench: a message to an idle worker was {receipt['step']}")
        client.stop([session])
    return [
        Row(figure, statistics.median(times), "s", limit,
            f"median of {rounds}, {min(times):.3f} to {max(times):.3f}")
        for figure, times, limit in (
            ("handoff, new session, adds", new, 0.2),
            ("handoff, second turn, adds", second, 0.2),
            ("message to an idle worker", message, 0.1),
        )
    ]  # fmt: skip


def bench_same_worker(client: Client, theirs: Client | None, rounds: int) -> list[Row]:
    """The whole of a handoff to a program that only has a screen, in a new session."""
    ours, other = [], []
    for number in range(rounds):
        done = hand_off(client, "mock", f"sleep 0.2 say {number}")
        ours.append(done.seconds)
        client.stop([done.session])
        if theirs and number < 3:  # seconds each
            other.append(reference_handoffs(theirs, 1))
    beside = statistics.median(other) if other else None
    detail = f"sleeps 0.2 s; median of {rounds}; the reference's closes its worker"
    whole = statistics.median(ours)
    return [Row("handoff to a plain program, whole", whole, "s", None, detail, beside)]


def reference_handoffs(theirs: Client, count: int) -> float:
    """Return how long the reference takes for handoffs side by side."""
    start = time.perf_counter()
    tasks = [f"sleep 0.2 say {number}" for number in range(count)]
    keys = [theirs.post_call("handoff", agent_profile="mock", message=task) for task in tasks]
    for key in keys:
        found = read_result(theirs.take(key)[1])
        if not found.get("success"):
            raise SystemExit(f"bench: a handoff of the reference failed: {found}")
    return time.perf_counter() - start


def bench_side_by_side(
    place: Place, client: Client, count: int, theirs: Client | None
) -> tuple[Row, list[str]]:
    """Return what so many handoffs at once take, and their sessions, which live on.

    The limit is what our own work takes on the cores that other programs left to us.
    """
    before, others = place.cpu_s(), machine_s()
    asked = time.time()
    target, task = ("mock", "sleep 0.2 say {}") if theirs else ("demo", "demo: say {}")
    keys = [client.post_call("handoff", target=target, task=task.format(n)) for n in range(count)]
    done = [read_handoff(asked, *client.take(key)) for key in keys]
    wall = max(one.answered_at for one in done) - asked
    used = place.cpu_s() - before
    others = max(0.0, machine_s() - others - used)
    limit = 1.3 * used / max(0.1, CORES - others / wall)
    detail = f"all answered; {used:.1f} s CPU, {used / count:.2f} each; others {others:.1f} s"
    row = Row(f"{count} handoffs side by side", wall, "s", limit if count >= 100 else None, detail)
    if theirs:
        row = row._replace(figure=f"{count} to a plain program",
                           reference=reference_handoffs(theirs, count))  # fmt: skip
    return row, [one.session for one in done]


def bench_many(
    place: Place, client: Client, scale: Scale, reference: Reference | None, theirs: Client | None
) -> list[Row]:
    """Handoffs side by side; then, with sessions that live: idle, at work, and messages."""
    rows = []
    for count in scale.fleets:
        row, sessions = bench_side_by_side(place, client, count, None)
        rows.append(row)
        client.stop(sessions)
        if theirs and 1 < count <= 10:
            row, sessions = bench_side_by_side(place, client, count, theirs)
            rows.append(row)
            client.stop(sessions)
    sessions = bench_side_by_side(place, client, scale.idle, None)[1]
    for session in sessions:
        place.until_idle(session)
    place.until_calm()
    runners = place.runners()
    rows.append(memory("runner, idle: memory", runners, 18.0))
    theirs_idle = Row("", 0.0, "") if not reference else watch_cpu(reference, "", scale, None)
    idle = watch_cpu(place, f"{len(sessions)} idle sessions: CPU", scale, 0.0)
    if reference:
        idle = idle._replace(reference=theirs_idle.value, detail=f"{idle.detail}; its: 1 session")
    rows.append(idle)
    busy = sessions[: scale.working]
    keys = [client.post_call("assign", target=s, task="demo: sleep 3600") for s in busy]
    for key in keys:
        read_result(client.take(key)[1])
    pause(2.0)  # the prompt's events and the first look are of the start
    rows.append(watch_cpu(place, f"{len(busy)} working sessions: CPU", scale, None))
    rows += [bench_messages(place, client, busy[:1], scale.messages),
             bench_messages(place, client, busy, scale.messages)]  # fmt: skip
    client.stop(sessions)
    return rows


def watch_cpu(place: Place, figure: str, scale: Scale, limit: float | None) -> Row:
    """Return the CPU time that all our processes use in a second, over a while."""
    pids = place.pids()
    before, start = sum(map(cpu_s, pids)), time.perf_counter()
    pause(scale.watch_s)
    used = (sum(map(cpu_s, pids)) - before) / (time.perf_counter() - start) * 1000
    return Row(figure, used, "ms/s", limit, f"{len(pids)} processes, {scale.watch_s:g} s")


def bench_messages(place: Place, client: Client, sessions: list[str], count: int) -> Row:
    """Messages a second into inboxes that nobody reads just now, beside such files
    written by hand one after the other (no limit: cao writes several at once)."""
    ours = by_hand = 0.0
    text = "x" * 200
    for number in range(0, count, 20):

        def send(first: int = number) -> None:
            to = [sessions[n % len(sessions)] for n in range(first, first + 20)]
            keys = [client.post_call("send_message", target=name, message=text) for name in to]
            for key in keys:
                read_result(client.take(key)[1])

        def write(first: int = number) -> None:
            store = cao.Store(str(place.home))
            for n in range(first, first + 20):
                store.write(f"{place.work}/by-hand-{n}", text, durable=True)

        ours += timed(send)
        by_hand += timed(write)
    figure = f"messages into {len(sessions)} inbox{'es' if len(sessions) > 1 else ''}"
    return Row(
        figure,
        count / ours,
        "/s",
        None,
        f"{count}; one after the other by hand: {count / by_hand:.0f}/s",
    )


def grow(place: Place, client: str, worker: str, sessions: int, messages: int) -> None:
    """Fill a runtime directory with ended sessions, and with old messages of the two."""
    store, now = cao.Store(str(place.home)), time.time()
    for number in range(len(store.all_sessions()), sessions):
        name = f"old-{number:04d}"
        task, at = f"{name}.abcd", now - 1e6 + number
        os.mkdir(store.folder(name))
        store.create(cao.Session(name, "agent", "demo", "demo", str(place.work), client, 1, at))
        store.save_state(name, {"state": "ended", "since": at, "why": "stopped"})
        result = cao.Result(task, name, "done", answer="old", ended_at=at)
        store.write(store.result_path(task), cao.dump(result))
    for owner in (client, worker):
        inbox = Path(store.folder(owner)) / "inbox/cur"
        for number in range(len(list(inbox.iterdir())), messages // 2):
            one = cao.Message(f"{int((now - 1e6) * 1e9) + number:020d}-{owner}", "message", client,
                              owner, "old", now - 1e6)  # fmt: skip
            (inbox / one.id).write_text(cao.dump(one))


def core_figures(place: Place, argv: list[str], client: Client, worker: str) -> dict[str, float]:
    """Return the figures that must not grow with what is old, in seconds, and MB."""
    took = {}
    start = time.perf_counter()
    other = Client(place, argv)
    other.call("list_sessions")
    took["start, a call"] = time.perf_counter() - start
    other.close()
    took["tool call"] = min(timed(lambda: client.call("list_sessions")) for _ in range(9))
    done = hand_off(client, "demo", "demo: say one")
    took["handoff, new session"] = done.seconds
    client.stop([done.session])
    took["handoff, second turn"] = hand_off(client, worker, "demo: say two").seconds
    place.until_idle(worker)
    took["message"] = timed(lambda: client.call("send_message", target=worker, message="three"))
    place.until_idle(worker)
    took["cao mcp: memory"] = kilobytes(client.process.pid, "status", "VmRSS") / 1000
    took["runner: memory"] = kilobytes(place.runner(worker), "status", "VmRSS") / 1000
    return took


def bench_growth(scale: Scale) -> list[Row]:
    """Each figure with much that is old in the runtime directory, over one with nothing."""
    places, sides, rows = [Place(), Place()], [], []
    try:
        for place in places:
            argv = [*place.lib_argv(), "mcp"]
            client = Client(place, argv)
            worker = hand_off(client, "demo", "demo: say ready").session
            place.until_idle(worker)
            sides.append((place, argv, client, worker))
        full, _, _, worker = sides[1]
        name = cao.Store(str(full.home)).load(worker).supervisor
        for sessions, messages in scale.grown:
            grow(full, name, worker, sessions, messages)
            rounds = [[core_figures(*side) for side in sides] for _ in range(scale.rounds)]
            there = f"{sessions:,} sessions" + (f", {messages:,} messages" if messages else "")
            for figure in rounds[0][0]:
                empty, grown = (min(one[side][figure] for one in rounds) for side in (0, 1))
                unit, by = ("MB", 1) if "memory" in figure else ("ms", 1000)
                detail = f"{grown * by:.1f} {unit} beside {empty * by:.1f}, best of {scale.rounds}"
                limit = 1.3 if sessions else None
                rows.append(Row(f"{there}: {figure}", grown / empty, "x", limit, detail))
    finally:
        for _, _, client, _ in sides:
            client.close()
        for place in places:
            place.close()
    return rows


def bench_host(place: Place, host: str, scale: Scale) -> list[Row]:
    """Workers on a machine that ssh reaches, beside such workers here: time, and what each
    costs here: its runner, its connection, and the picture in its pane."""
    allow = [*place.lib_argv(), "allow", "--host", host]
    subprocess.run(allow, env=place.env, check=True, stdout=subprocess.DEVNULL)
    client = Client(place, [*place.lib_argv(), "mcp"])
    targets = {"here": "demo", "there": f"demo@{host}"}
    took: dict[str, list[float]] = {name: [] for name in (*targets, "again")}
    for number in range(scale.rounds + 1):  # the first copies cao.py there, and is not counted
        times = {}
        for name, target in targets.items():
            done = hand_off(client, target, "demo: say one", cwd="/usr")
            times[name] = done.seconds
        times["again"] = hand_off(client, done.session, "demo: say two").seconds
        client.stop([done.session])
        for name in times if number else ():
            took[name].append(times[name])
    best = {name: min(times) for name, times in took.items()}
    rows = [
        Row(f"handoff, new session there, {one}", best[name] / best["here"], "x", None,
            f"{best[name]:.2f} s; here {best['here']:.2f} s")
        for name, one in (("there", "whole"), ("again", "its second turn"))
    ]  # fmt: skip
    before, start = set(place.pids()), time.perf_counter()
    task = {"target": targets["there"], "task": "demo: sleep 3600", "cwd": "/usr"}
    given = [client.post_call("assign", **task) for _ in range(scale.far)]
    sessions = [read_result(client.take(key)[1])["session"] for key in given]
    for session in sessions:
        place.until_idle(session, "working", "queued")  # by that machine's own cap
    seconds = (time.perf_counter() - start) / scale.far
    rows.append(Row(f"{scale.far} workers there: until begun, each", seconds, "s"))
    place.until_calm()
    new = [pid for pid in place.pids() if pid not in before]
    rss, pss = (
        sum(kilobytes(pid, file, word) for pid in new) / scale.far / 1000
        for file, word in (("status", "VmRSS"), ("smaps_rollup", "Pss:"))
    )
    rows.append(Row(f"{scale.far} workers there: memory here, each", rss, "MB", 35.0,
                    f"Pss {pss:.1f} MB, {len(new) / scale.far:.1f} processes"))  # fmt: skip
    rows.append(watch_cpu(place, f"{scale.far} workers there: CPU here", scale, None))
    client.stop(sessions)
    client.close()
    return rows


def measure(place: Place, scale: Scale, script: str, reference: Reference | None) -> list[Row]:
    """Return every row; a session or client that is started is ended with the place."""
    forms = {"copied file": [*place.copied_file(), "mcp"]}
    rows = bench_first(place, forms["copied file"])
    forms["installed"] = [*place.lib_argv(), "mcp"]
    forms["console script"] = [script] if script else place.console_script()
    rows += bench_start(place, forms, reference, scale.rounds)
    client = Client(place, forms["installed"])
    hand_off(client, "demo", "demo: say I keep the tmux server, which counts who has ended")
    theirs = Client(reference, reference.argv) if reference else None
    rows += bench_server(client, reference, theirs, scale.calls)
    rows += bench_handoff(place, client, scale.rounds)
    rows += bench_same_worker(client, theirs, scale.rounds)
    rows += bench_many(place, client, scale, reference, theirs)
    rows.append(memory("cao mcp, at the end: memory", [client.process.pid], None))
    client.close()
    if theirs:
        theirs.close()
    return rows + bench_growth(scale)


def render(rows: list[Row]) -> str:
    """Return the rows as a table of text; with a reference, how many times ours it is."""
    lines = []
    for row in rows:
        limit = "" if row.limit is None else f"<= {row.limit:.3g}"
        verdict = "" if row.limit is None else "ok" if row.kept else "OVER"
        other = ""
        if row.reference is not None:
            times = f" ({row.reference / row.value:.1f} x)" if row.value else ""
            other = f"reference {row.reference:.3f}{times}  "
        lines.append(f"{row.figure:<54} {row.value:>9.3f} {row.unit:<5} {limit:<8} {verdict:<5}"
                     f" {other}{row.detail}".rstrip())  # fmt: skip
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="less of everything: half a minute")
    parser.add_argument("--json", metavar="FILE", help="write the rows as JSON too")
    parser.add_argument(
        "--script", default="", help="an installed cao-mcp, instead of one made here"
    )
    parser.add_argument(
        "--reference", metavar="VENV", type=Path, help="a venv with cli-agent-orchestrator"
    )
    parser.add_argument("--host", default="", help="measure workers on this machine (CAO_SSH)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended then too
    place, reference = Place(), None
    try:
        reference = Reference(args.reference) if args.reference else None
        scale = QUICK if args.quick else WHOLE
        if args.host:
            rows = bench_host(place, args.host, scale)
        else:
            rows = measure(place, scale, args.script, reference)
    finally:
        place.close()
        if reference:
            reference.close()
    print(f"python {platform.python_version()}, {CORES} cores, load {os.getloadavg()[0]:.1f}")
    print(render(rows))
    if args.json:
        found = {
            "python": platform.python_version(),
            "cores": CORES,
            "rows": [{**row._asdict(), "kept": row.kept} for row in rows],
        }
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")
    return 0 if all(row.kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
