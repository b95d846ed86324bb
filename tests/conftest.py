"""Sealed fixtures: a runtime directory, a tmux server and a HOME of the test's own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import NoReturn

import pytest

import cao
from mock_llm import MockServer
from side_by_side import pytest_addoption, pytest_runtestloop  # noqa: F401 - hooks of pytest


def interrupt(*_) -> NoReturn:
    """End the tests as Ctrl-C does, and finish tearing down whatever comes after it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    raise KeyboardInterrupt


# SIGINT also because a shell starts what it puts into the background with SIGINT ignored,
# and everything that we start would ignore it too.
signal.signal(signal.SIGINT, interrupt)
signal.signal(signal.SIGTERM, interrupt)
# nohup has SIGHUP ignored: we go on, and what we start has it as ever.
nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
signal.signal(signal.SIGHUP, (lambda *_: None) if nohup else interrupt)

# All is as on any machine: no language, no umask, no ~/.gitconfig, no repository of a git hook.
for variable in [name for name in os.environ if name.startswith(("GIT_", "LC_", "LANG"))]:
    del os.environ[variable]
os.environ.update(LANG="C.UTF-8", GIT_CONFIG_GLOBAL="/nonexistent/gitconfig")
os.umask(0o022)

ROOT = Path(__file__).resolve().parent.parent
CAO = [sys.executable, "-S", str(ROOT / "tests" / "start.py")]
PINNED = {
    "claude": "2.1.332",
    "codex": "0.171.0",
    "gemini": "0.61.0",
    "qwen": "0.24.4",
    "copilot": "1.0.102",
    "opencode": "1.18.33",
    "kimi": "2.1.0",
    "pi": "0.73.1",
}


def pytest_report_header() -> list[str]:
    return [f"{name}: {program or 'not installed'}" for name, program in real_clis().items()]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup():
    """Skip a test that starts a program which is not installed here."""
    try:
        return (yield)
    except FileNotFoundError as error:
        if error.filename in ("git",) and not shutil.which(error.filename):
            pytest.skip(f"{error.filename} is not installed")
        raise


pytest_runtest_call = pytest_runtest_setup


def real_clis() -> dict[str, str]:
    """Return where the pinned CLIs are: CAO_TEST_CLIS is a folder with one per CLI."""
    folder = Path(os.environ.get("CAO_TEST_CLIS", "/nonexistent"))
    found = {name: folder / name / "node_modules/.bin" / name for name in PINNED}
    return {name: str(path) if path.exists() else "" for name, path in found.items()}


def until(look, wanted=bool, timeout_s=60.0, show=lambda: ""):
    """Return what look() gives once it is as wanted: the only waiting there is.

    It looks for a third of the time at most: the machine is also that of what is waited for.
    """
    end = time.monotonic() + timeout_s
    while True:
        began = time.monotonic()
        seen = look()
        if wanted(seen) if callable(wanted) else seen == wanted:
            return seen
        if time.monotonic() > end:
            raise AssertionError(f"waited {timeout_s} s, still {seen!r}\n{show()}")
        select.select([], [], [], max(0.02, 2 * (time.monotonic() - began)))


def find_admin(name: str) -> str | None:
    """Return an administrator's program: su leaves its folder out of PATH."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin:/sbin")


def kill(pid: int) -> None:
    """Kill a process that may be gone already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def run_cao(args, env, cwd, stdin="", timeout_s=180.0) -> subprocess.CompletedProcess:
    """Run a cao command to its end, in a fork of this process: it has read cao.py already, and
    starting Python is most of what a command costs. What is started otherwise (servers,
    runners, hooks; CAO) is a Python of its own, and so is this beside threads.
    """
    argv = [*CAO, *map(str, args)]
    if threading.active_count() > 1 or not hasattr(os, "pidfd_open"):
        return subprocess.run(argv, check=False, input=stdin, capture_output=True, text=True,
                              timeout=timeout_s, cwd=cwd, env=env)  # fmt: skip
    with contextlib.ExitStack() as open_files:
        files = [open_files.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        files[0].write(stdin.encode())
        files[0].seek(0)
        pid = os.fork()
        if not pid:
            be_cao(argv, files, env, cwd)
        ending, late = os.pidfd_open(pid), True
        try:
            late = not select.select([ending], [], [], timeout_s)[0]
        finally:  # also when the tests are interrupted
            os.close(ending)
            if late:
                os.kill(pid, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        for file in files:
            file.seek(0)
        out, err = (io.TextIOWrapper(io.BytesIO(file.read())).read() for file in files[1:])
    if late:
        raise subprocess.TimeoutExpired(argv, timeout_s, out, err)
    return subprocess.CompletedProcess(argv, status, out, err)


def be_cao(argv, files, env, cwd) -> NoReturn:
    """Be the process of a command: what tests/start.py is to a shell."""
    status = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        for fd, file in enumerate(files):
            os.dup2(file.fileno(), fd)
        os.closerange(3, 4096)  # also what this one tells another by
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        time.tzset()
        warnings.simplefilter("ignore")
        sys.argv = argv[len(CAO) - 1 :]
        sys.stdin, sys.stdout, sys.stderr = (
            open(fd, mode, encoding="utf-8", closefd=False)  # noqa: SIM115 - until we end
            for fd, mode in enumerate("rww")
        )
        sys.__stdout__ = sys.stdout
        try:
            status = cao.main()
        except SystemExit as leaving:
            status = leaving.code
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001 - says it, as Python does at its end
        traceback.print_exc()
        sys.stderr.flush()  # it is a file here, and would keep that to itself
        status = 1
    finally:
        os._exit(status)


CRONTAB = """case $1 in
-l) [ -e {0} ] || {{ echo "no crontab for test" >&2; exit 1; }}; cat {0};;
-r) rm {0};;
*) cat > {0};;
esac"""


class Place:
    """One sealed place: its folders, its environment, and cao run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.started = folder, []
        self.home, self.work, self.user = folder / "cao", folder / "work", folder / "home"
        for part in (self.work, self.user, folder / "tmux", folder / "bin"):
            part.mkdir()
        (self.home / "profiles").mkdir(parents=True, mode=0o700)
        self.home.chmod(0o700)
        stub = folder / "stub"
        stub.write_text("#!/bin/sh\nexit 97\n")
        stub.chmod(0o755)
        for name in PINNED:  # no real agent by accident
            os.link(stub, folder / "bin" / name)
        self.crontab = folder / "crontab"  # no real one by accident, either
        self.program("crontab", CRONTAB.format(self.crontab))
        self.env = {
            "PATH": f"{folder}/bin:{os.environ['PATH']}",
            "HOME": str(self.user),
            "CAO_HOME": str(self.home),
            "TMUX_TMPDIR": f"{folder}/tmux",
            "LANG": "C.UTF-8",
        }

    def enter(self, monkeypatch) -> None:
        """Give this process the environment that cao has in the place."""
        monkeypatch.delenv("GIT_CONFIG_GLOBAL", raising=False)
        for key, value in self.env.items():
            monkeypatch.setenv(key, value)

    def program(self, name: str, script: str) -> None:
        """Put a shell script on the PATH."""
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def run(self, *args, stdin="", timeout_s=180, cwd=None, **env):
        """Run a cao command and return the finished process, its output as text."""
        return run_cao(args, {**self.env, **env}, cwd or self.work, stdin, timeout_s)

    def ok(self, *args, **more) -> str:
        """Run a cao command that must succeed and return its stdout."""
        done = self.run(*args, **more)
        assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
        return done.stdout

    def start(self, *args, **env) -> subprocess.Popen:
        """Start a cao command that goes on beside the test; `close` ends it."""
        started = subprocess.Popen(
            [*CAO, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.work,
            env={**self.env, **env},
        )
        self.started.append(started)
        return started

    def profile(self, name: str, text: str) -> None:
        (self.home / "profiles" / f"{name}.md").write_text(text)

    @property
    def store(self) -> cao.Store:
        return cao.Store(str(self.home))

    def state(self, session: str) -> dict:
        """Return a session's state.json."""
        try:
            return json.loads((self.home / "sessions" / session / "state.json").read_text())
        except FileNotFoundError:
            return {}

    def log(self, session: str) -> list[dict]:
        """Return a session's log."""
        path = self.home / "sessions" / session / "log.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def result(self, task: str) -> dict:
        """Return a task's result file."""
        session = task.partition(".")[0]
        return json.loads(
            (self.home / "sessions" / session / "results" / f"{task}.json").read_text()
        )

    def live(self) -> list[str]:
        """Return the names of the sessions that were started and not ended."""
        path = self.home / "live"
        return sorted(os.listdir(path)) if path.exists() else []

    def until_state(self, session: str, state: str, timeout_s=90.0) -> dict:
        return until(
            lambda: self.state(session),
            lambda s: s.get("state") == state,
            timeout_s,
            lambda: self.screen(session),
        )

    def tmux(self, *args) -> str:
        """Run a tmux command on this place's server; "" where there is no server."""
        socket = cao.tmux_socket(str(self.home))
        argv = ["tmux", "-u", "-L", socket, *args]
        return subprocess.run(
            argv, check=False, capture_output=True, text=True, env=self.env
        ).stdout

    def screen(self, session: str) -> str:
        return self.tmux("capture-pane", "-p", "-t", f"={session}:")

    def pids(self, mark="") -> list[int]:
        """Return the processes whose environment names this place; not tmux's own."""
        mark = (mark or f"CAO_HOME={self.home}\0").encode()
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/environ", "rb") as environ:
                    if mark in environ.read():
                        found.append(int(pid))
            except OSError:
                continue
        return [pid for pid in found if pid != os.getpid()]

    def close(self) -> None:
        """End everything that was started here, and leave no file."""
        if os.listdir(self.folder / "tmux"):
            self.tmux("kill-server")
        for process in self.started:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                try:
                    stream.close()
                except BrokenPipeError:  # a dead reader, with something left to flush
                    stream.close()
        # Until both are gone: what is just being started names no folder yet, and writes there.
        # The folder stays until nobody is seen twice: without it tmux makes its socket in /tmp.
        end, alone = time.monotonic() + 20, 0
        while time.monotonic() < end:
            left = self.pids(f"{self.folder}/")
            for pid in left:
                kill(pid)
            alone = 0 if left else alone + 1
            if alone > 1:
                shutil.rmtree(self.folder, ignore_errors=True)
                if not self.folder.exists():
                    break
            select.select([], [], [], 0.005)


@pytest.fixture(scope="session")
def compiled():
    """The copy of cao.py that sessions run from, made and compiled once for all places."""
    with tempfile.TemporaryDirectory(prefix="cao-", dir="/tmp") as folder:
        lib = Path(folder, "cao", "lib")
        cao.install_copy(cao.Store(str(lib.parent)))
        yield lib
        (copy,) = lib.glob("*/cao.py")
        assert copy.read_bytes() == (ROOT / "cao.py").read_bytes()  # places have links to it


@pytest.fixture
def bare(monkeypatch):
    """A sealed place in which cao never ran; a unix socket's path is short, so it is right
    below /tmp.
    """
    for name in ("CAO_HOME", "CAO_SESSION", "CAO_CLIENT", "TMUX", "TMUX_PANE", "CLAUDECODE",
                 "CLAUDE_CODE_SESSION_ID", "XDG_STATE_HOME"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    with tempfile.TemporaryDirectory(prefix="cao-", dir="/tmp") as folder:
        made = Place(Path(folder))
        yield made
        made.close()


@pytest.fixture
def place(bare, compiled):
    """A sealed place that has its copy of cao.py already."""
    shutil.copytree(compiled, bare.home / "lib", copy_function=os.link)
    return bare


@pytest.fixture
def verbs(place, monkeypatch):
    """The verbs in this process, for a person."""
    place.enter(monkeypatch)
    cao.make_client(place.store, "person")
    return cao.Orchestrator(place.store, cao.Caller("person", person=True))


@pytest.fixture
def resuming(verbs, monkeypatch):
    """The same, where an ended demo agent can go on with its conversation."""
    monkeypatch.setitem(cao.PROVIDERS, "demo", cao.PROVIDERS["demo"]._replace(resumes=True))
    return verbs


class McpClient:
    """A small MCP client on the stdio of `cao mcp`."""

    def __init__(
        self, place: Place, name="test-client", version="2025-11-25", init=True, **env
    ) -> None:
        self.process = place.start("mcp", **env)
        self.buffer, self.seen, self.next_id = b"", [], 0
        if init:
            self.request("initialize", {
                "protocolVersion": version, "capabilities": {},
                "clientInfo": {"name": name, "version": "1"},
            })  # fmt: skip
            self.notify("notifications/initialized")

    def write(self, data: bytes) -> None:
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def send(self, message) -> None:
        self.write(json.dumps(message).encode() + b"\n")

    def notify(self, method, params=None) -> None:
        self.send({"jsonrpc": "2.0", "method": method, "params": params or {}})

    def post(self, method, params=None) -> int:
        """Send a request and return its id, without waiting."""
        self.next_id += 1
        self.send({"jsonrpc": "2.0", "id": self.next_id, "method": method, "params": params or {}})
        return self.next_id

    def read(self, timeout_s=90.0):
        """Return the next message, or None at end of file."""
        end = time.monotonic() + timeout_s
        while b"\n" not in self.buffer:
            left = end - time.monotonic()
            assert left > 0, f"no message in {timeout_s} s; seen: {self.seen[-3:]}"
            if select.select([self.process.stdout], [], [], left)[0]:
                chunk = os.read(self.process.stdout.fileno(), 1 << 16)
                if not chunk:
                    return None
                self.buffer += chunk
        line, _, self.buffer = self.buffer.partition(b"\n")
        message = json.loads(line)
        if isinstance(message, dict):  # an id is the client's own; all else is text
            json.dumps({**message, "id": None}, ensure_ascii=False).encode()
        self.seen.append(message)
        return message

    def answer(self, key, timeout_s=90.0):
        """Return the response to a request; what comes before it stays in `seen`."""
        for message in self.seen:
            if isinstance(message, dict) and message.get("id") == key and "method" not in message:
                return message
        while True:
            message = self.read(timeout_s)
            assert message is not None, self.process.stderr.read()
            if isinstance(message, dict) and message.get("id") == key and "method" not in message:
                return message

    def request(self, method, params=None, timeout_s=90.0):
        return self.answer(self.post(method, params), timeout_s)

    def post_call(self, name, **arguments) -> int:
        return self.post("tools/call", {"name": name, "arguments": arguments})

    def call(self, name, timeout_s=30.0, **arguments):
        """Call a tool and return its result."""
        return self.answer(self.post_call(name, **arguments), timeout_s)["result"]

    def close(self) -> int:
        self.process.stdin.close()
        status = self.process.wait(60)
        for stream in (self.process.stdout, self.process.stderr):
            stream.close()
        return status


@pytest.fixture
def client(place):
    made = McpClient(place)
    yield made
    made.close()


@pytest.fixture(scope="module")  # beside its thread, run_cao does not fork
def mock_llm():
    with MockServer().start() as server:
        yield server


def run_block(block: str, cwd, env, timeout_s: float = 60.0) -> None:
    """Run the lines of a README's block as a person's shell does. They must succeed, and print in
    this order what stands behind `# prints`."""
    done = subprocess.run(
        ["sh", "-eu"], check=False, input=re.sub(r"\s+# prints .*", "", block), cwd=cwd, env=env,
        capture_output=True, text=True, timeout=timeout_s,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout, done.stderr)
    at = 0
    for words in re.findall(r"# prints (.*)", block):
        found = done.stdout.find(words, at)
        assert found >= 0, f"{words!r} is not printed here\n{done.stdout}\n{done.stderr}"
        at = found + len(words)
