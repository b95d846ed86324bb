#!/usr/bin/env python3
"""Torture cao: kill everything that can be killed, at random, and count what is left.

    python3 tests/torture.py [--seed N] [--messages M] [--senders 8] [--results R]
                             [--handoffs H] [--faults F] [--files G] [--storm T]
                             [--seconds S]

A. Messages: senders send M messages each to one session while senders, readers and hooks are
   killed; in a second, shorter round the runner is killed too. Sent = taken + reported.
B. Handoffs: H of them, each with one kill: of the worker's CLI, its runner, the client
   (`cao handoff` or `cao mcp`), the tmux server. Every task has exactly one result.
C. Faults: the runner's n-th change of a file fails, or is its last act; every F-th n
   (1: each one, 0: none).
D. Files: the same for the client's side, in forked children: for every n the way of a task
   and a message through the store; for every G-th n a whole assign with a request_id.
E. Readers: four that wait without names are told R results and as many messages while they
   are killed and stopped. Each is told once, and again only where its reader was killed.
F. Storm: T tasks, four at a time, while tmux, runners, CLIs and clients are stopped for a
   while (SIGSTOP), tmux's socket is removed, hostile files come as events, and, for root, the
   disk is full at times. Every task is done, with its own answer.

What is random comes from the seed; the moments of the kills are the machine's own. Prints
its tally; exit status 1 on any loss, 2 when S seconds were not enough. What it has started
ends with it, also when it is ended itself by a signal.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import cao  # noqa: E402 - found beside this folder, wherever we are started
import faults  # noqa: E402

SOON_S = 2.0  # so long after a kill may a result take


def pause(seconds: float) -> None:
    """Let time pass."""
    select.select([], [], [], seconds)


def until(look, timeout_s: float, every_s: float = 0.01):
    """Return what look() gives as soon as it is true, or its last word after the time."""
    end = time.monotonic() + timeout_s
    while not (seen := look()) and time.monotonic() < end:
        pause(every_s)
    return seen


def kill(pid: int) -> bool:
    """Kill a process and tell whether it was there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def read_json(path: Path):
    """Return the JSON in a file, None where there is no file or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def audit(home: Path) -> list[str]:
    """Return what is wrong with a runtime directory: every file is whole, each message in
    one place.

    Names that begin with a dot are what a killed writer left, read by nobody.
    """
    wrong = []
    for folder in sorted((home / "sessions").iterdir()):
        paths = [folder / "session.json", folder / "state.json"]
        paths += [
            p for part in ("inbox/new", "inbox/cur", "results") for p in folder.glob(f"{part}/*")
        ]
        paths = [p for p in paths if p.name[0] != "." and p.exists()]
        wrong += [f"not whole: {p}" for p in paths if not isinstance(read_json(p), dict)]
        new, cur = ({p.name for p in folder.glob(f"inbox/{part}/*")} for part in ("new", "cur"))
        wrong += [f"in new and cur: {folder.name} {name}" for name in new & cur]
    return wrong


def unanswered(home: Path) -> list[str]:
    """Return the tasks that have no result, or whose owner was not told it and never will be."""
    wrong = []
    for path in home.glob("sessions/*/inbox/[nc]*/*"):
        message = read_json(path)
        if not message or message["kind"] != "task":
            continue
        task, owner = message["task"], home / "sessions" / message["sender"]
        result = read_json(path.parents[2] / "results" / f"{task}.json")
        if not result:
            wrong.append(f"no result: {task}")
        elif owner.exists() and not (owner / "out" / task).exists() and not result["told_at"]:
            wrong.append(f"off the books, and not told: {task}")
    return wrong


class Ground:
    """One sealed place: folders, environment, and what runs there."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.folder = Path(tempfile.mkdtemp(prefix="cao-t"))
        self.home, self.work = self.folder / "cao", self.folder / "work"
        for part in (self.work, self.folder / "tmux"):
            part.mkdir()
        for name in [n for n in os.environ if n.startswith(("CAO_", "TMUX", "CLAUDE"))]:
            del os.environ[name]
        os.environ.update(
            HOME=str(self.folder), CAO_HOME=str(self.home), TMUX_TMPDIR=f"{self.folder}/tmux",
            LANG="C.UTF-8", CAO_MAX_WAITING="1000000",
        )  # fmt: skip
        os.chdir(self.work)
        self.store = cao.Store(str(self.home))
        self.children: list[subprocess.Popen] = []
        self.mounted = False
        self.tally: Counter = Counter()
        self.wrong: list[str] = []

    def start(self, *args: str) -> subprocess.Popen:
        """Start a cao command."""
        argv = [sys.executable, "-S", str(HERE / "start.py"), *args]
        pipe = subprocess.PIPE
        child = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
        self.children.append(child)
        return child

    def run(self, *args: str, timeout_s: float = 60) -> subprocess.CompletedProcess:
        """Run a cao command to its end."""
        argv = [sys.executable, "-S", str(HERE / "start.py"), *args]
        return subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, check=False)

    def tmux(self, *args: str) -> str:
        """Run a tmux command on our server; "" where there is none."""
        argv = ["tmux", "-L", cao.tmux_socket(str(self.home)), *args]
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()

    def server(self) -> int:
        """Return the pid of our tmux server, 0 where there is none."""
        return int(self.tmux("display-message", "-p", "#{pid}") or 0)

    def runner(self, session: str) -> int:
        """Return the pid of a session's runner, 0 where there is none."""
        return int(self.tmux("list-panes", "-t", f"={session}:", "-F", "#{pane_pid}") or 0)

    def cli(self, session: str) -> int:
        """Return the pid of a session's CLI, 0 before it is known."""
        state = read_json(self.home / "sessions" / session / "state.json") or {}
        return int((state.get("group") or {}).get("id") or 0)

    def pids(self) -> list[int]:
        """Return the processes whose environment names our home, but us."""
        mark, found = f"CAO_HOME={self.home}".encode(), []
        for entry in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in entry.read_bytes().split(b"\0"):
                    found.append(int(entry.parent.name))
            except OSError:
                continue
        return [pid for pid in found if pid != os.getpid()]

    def fail(self, words: str) -> None:
        """Note a loss, with what there is to see of it."""
        self.wrong.append(words)
        print(f"  WRONG: {words}", flush=True)

    def note_all(self, found) -> None:
        for words in found:
            self.fail(words)

    def drop(self, child: subprocess.Popen) -> None:
        """End a process of ours that may still run, and close its pipes."""
        child.kill()
        child.communicate()
        self.children.remove(child)

    def clear(self) -> None:
        """End all sessions by cao's own commands; nothing may be left of them."""
        for child in list(self.children):
            self.drop(child)
        live = [n for n in self.store.live() if self.store.load(n)]
        if live:
            self.run("stop", *live)
        self.note_all(audit(self.home))
        wrong = unanswered(self.home)
        if self.mounted:  # on a full disk it is not noted when a result was told
            wrong = [words for words in wrong if not words.startswith("off the books")]
        self.note_all(wrong)
        self.run("clean", "--older", "0s")
        if not until(lambda: not self.pids(), 3.0):
            self.note_all(f"left: process {pid} {command(pid)}" for pid in self.pids())
        if not until(lambda: not self.server(), 3.0):
            self.fail(f"left: tmux server {self.server()}")
        for part in ("wake", "live"):
            self.note_all(f"left: {part}/{n}" for n in os.listdir(self.home / part))

    def mount(self) -> bool:
        """Put the home, before anything is in it, on a small disk of its own; only root can."""
        argv = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", str(self.home)]
        if os.getuid() or not shutil.which("mount"):
            return False
        self.mounted = not subprocess.run(argv, check=False).returncode
        self.store = cao.Store(str(self.home))
        return self.mounted

    def close(self, keep: bool) -> None:
        """End what is left, by force."""
        for child in list(self.children):
            self.drop(child)
        self.tmux("kill-server")
        for _ in range(2):  # what is just being started is seen at the second look
            while left := self.pids():
                for pid in left:
                    kill(pid)
        os.chdir("/")
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.home)], check=False)
        if keep:
            print(f"kept for a look: {self.folder}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)


def command(pid: int) -> str:
    """Return a process's command line."""
    try:
        return (
            Path(f"/proc/{pid}/cmdline")
            .read_bytes()
            .replace(b"\0", b" ")
            .decode("utf-8", "replace")
        )
    except OSError:
        return ""


# ---- A. Messages ----


class Senders:
    """The sender processes: forked, killed at random, and started again where they were."""

    def __init__(self, ground: Ground, target: str, count: int, messages: int, first: int) -> None:
        self.ground, self.target, self.first = ground, target, first
        self.last = first + messages
        self.names = [f"sender-{n}" for n in range(count)]
        self.running: dict[str, int] = {}
        for name in self.names:
            if not ground.store.load(name):
                cao.make_client(ground.store, name)
            self.begin(name)

    def journal(self, name: str) -> Path:
        """Return the file where a sender notes what it began and what came of it."""
        return self.ground.folder / f"{name}.journal"

    def noted(self, name: str) -> list[tuple[str, int]]:
        path = self.journal(name)
        lines = path.read_text().splitlines() if path.exists() else []
        return [(word, int(number)) for word, number in map(str.split, lines)]

    def begin(self, name: str) -> None:
        """Fork a sender that goes on with its next message."""
        start = max([self.first, *(number + 1 for _, number in self.noted(name))])
        if start >= self.last:
            return
        pid = os.fork()
        if pid:
            self.running[name] = pid
            return
        status = 70
        try:
            self.send(name, start)
            status = 0
        except Exception:  # noqa: BLE001 - the parent sees the status, a person this
            traceback.print_exc()
        finally:
            os._exit(status)

    def send(self, name: str, start: int) -> None:
        """Send the messages from start on: a sender's whole life."""
        boss = cao.Orchestrator(cao.Store(self.ground.store.home), cao.Caller(name, person=True))
        fd = os.open(self.journal(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for number in range(start, self.last):
            os.write(fd, f"begin {number}\n".encode())
            try:
                boss.send_message(self.target, f"{name} {number:06}", 0)
                word = "ok"
            except cao.NotFoundError:
                word = "refused"
            os.write(fd, f"{word} {number}\n".encode())

    def reap(self) -> None:
        """See which senders have ended."""
        for name, pid in list(self.running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del self.running[name]
                if status:
                    self.ground.fail(f"{name} ended with {status}")

    def kill_one(self) -> None:
        """Kill a sender and start it again."""
        name = self.ground.rng.choice(sorted(self.running))
        kill(self.running[name])
        os.waitpid(self.running.pop(name), 0)
        self.ground.tally["senders killed"] += 1
        self.begin(name)

    def progress(self) -> float:
        """Return which part of all messages was begun."""
        begun = sum(word == "begin" for name in self.names for word, n in self.noted(name)
                    if n >= self.first)  # fmt: skip
        return begun / ((self.last - self.first) * len(self.names))


def disturb(ground: Ground, session: str, bystanders: list[subprocess.Popen]) -> None:
    """Start a reader or a hook, and kill one that was started before."""
    if bystanders:
        child = bystanders.pop(0)
        ground.tally["readers and hooks killed"] += child.poll() is None
        ground.drop(child)
    argv = ground.rng.choice([
        ["ls"], ["wait", "--timeout", "5s"], ["show", session], ["why", session],
        ["hook", ground.store.folder(session)],
    ])  # fmt: skip
    child = ground.start(*argv)
    if argv[0] == "hook":
        child.stdin.write(b'{"hook_event_name": "Nothing"}')
        child.stdin.close()
        child.stdin = None
    bystanders.append(child)


def send_round(ground: Ground, session: str, options, messages: int, first: int, *,
               runner_dies: bool) -> None:  # fmt: skip
    """Let the senders send, disturbed, until all is sent and nothing waits any more."""
    senders = Senders(ground, session, options.senders, messages, first)
    bystanders: list[subprocess.Popen] = []
    next_kill = next_reader = time.monotonic()
    while senders.running:
        now = time.monotonic()
        senders.reap()
        if now >= next_kill and senders.running:
            senders.kill_one()
            next_kill = now + ground.rng.uniform(0.02, 0.3)
        if now >= next_reader:
            disturb(ground, session, bystanders)
            next_reader = now + ground.rng.uniform(0.1, 0.5)
        if runner_dies and senders.progress() > 0.85:
            runner_dies = not kill(ground.runner(session))
            ground.tally["runners killed"] += 1
        options.check_time()
        pause(0.005)
    for child in bystanders:
        ground.drop(child)


def settled(ground: Ground, session: str) -> bool:
    """Tell whether nothing waits, and nothing is on its way or being reported."""
    state = ground.store.load_state(session)
    if ground.store.is_locked(session) and (state.get("state") != "idle" or state["delivering"]):
        return False
    if not ground.store.is_locked(session) and state.get("state") != "ended":
        return False
    return not os.listdir(f"{ground.store.folder(session)}/inbox/new")


def taken_texts(folder: Path) -> list[tuple[str, str]]:
    """Return (sender, text) of all that reached the conversation, in order."""
    found = []
    for line in (folder / "launch/conversation.jsonl").read_text(encoding="utf-8").splitlines():
        prompt = json.loads(line)["prompt"]
        named = re.search(r" is in the file (\S+) \(\d+ bytes\)", prompt)
        prompt = Path(named[1]).read_text(encoding="utf-8") if named else prompt
        found += re.findall(r"^Message from (\S+):\n(.*)$", prompt, re.M)
    return found


def tally_messages(ground: Ground, session: str, names: list[str]) -> None:
    """Hold sent against taken and reported, for every sender."""
    folder = ground.home / "sessions" / session
    files = [read_json(p) for part in ("new", "cur") for p in folder.glob(f"inbox/{part}/*")]
    put = Counter(m["text"] for m in files if m["kind"] == "message")
    said = taken_texts(folder)
    taken = Counter(text for _, text in said)
    words = ground.tally
    reported: Counter = Counter()
    for name in names:
        inbox = ground.home / "sessions" / name / "inbox"
        notices = [read_json(p) for p in inbox.glob("[nc]*/*")]
        reported.update(re.findall(rf"{name} \d{{6}}", " ".join(m["text"] for m in notices)))
        lines = (ground.folder / f"{name}.journal").read_text().splitlines()
        sent = {f"{name} {int(x.split()[1]):06}" for x in lines if x.startswith("ok ")}
        words["refused at once"] += sum(x.startswith("refused ") for x in lines)
        ground.note_all(f"receipt without a message: {text}" for text in sent - set(put))
        mine = [text for _, text in said if text.startswith(f"{name} ")]
        if mine != sorted(mine):
            ground.fail(f"order of {name} not kept")
    ground.note_all(f"put twice: {t}" for t, n in put.items() if n > 1)
    ground.note_all(f"taken {n} times: {t}" for t, n in taken.items() if n > 1)
    ground.note_all(f"reported {n} times: {t}" for t, n in reported.items() if n > 1)
    ground.note_all(f"never sent: {t}" for t in (set(taken) | set(reported)) - set(put))
    ground.note_all(f"wrong sender: {s} {t}" for s, t in said if not t.startswith(f"{s} "))
    ground.note_all(f"lost: {t}" for t in sorted(set(put) - set(taken) - set(reported)))
    both = set(taken) & set(reported)
    ground.note_all(f"taken, and reported as not delivered: {t}" for t in sorted(both))
    words.update({"sent": len(put), "taken": len(taken), "reported": len(reported)})


def torture_messages(ground: Ground, options) -> None:
    """Do part A."""
    print(f"A. {options.senders} senders x {options.messages} messages", flush=True)
    # By the command line: a watching thread in this process would go into every fork.
    task = ground.run("assign", "demo", "hello", "--keep").stdout.strip()
    session = ground.store.session_of(task)
    ground.run("wait", task)
    first = 0
    for part, runner_dies in ((1, False), (4, True)):
        messages = max(4, options.messages // part)
        send_round(ground, session, options, messages, first, runner_dies=runner_dies)
        first += messages
        at = time.monotonic()
        if not runner_dies:
            until(lambda: settled(ground, session) or options.check_time(), 1e6, 0.05)
        else:
            ground.run("ls")  # whoever looks finds the dead; all have looked by now
            if not until(lambda: settled(ground, session), SOON_S):
                ground.fail("the session of a killed runner was not found ended")
        ground.tally[f"seconds until all was taken, round {part}"] = round(time.monotonic() - at)
    tally_messages(ground, session, [f"sender-{n}" for n in range(options.senders)])
    ground.clear()


# ---- B. Handoffs ----


class Mcp:
    """A client of `cao mcp` that hands off once."""

    def __init__(self, ground: Ground, text: str) -> None:
        self.process = ground.start("mcp")
        self.say(0, "initialize", protocolVersion="2025-06-18", capabilities={},
                 clientInfo={"name": "torture", "version": "1"})  # fmt: skip
        self.say(1, "tools/call", name="handoff", arguments={"target": "demo", "task": text})

    def say(self, key: int, method: str, **params) -> None:
        line = json.dumps({"jsonrpc": "2.0", "id": key, "method": method, "params": params})
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def results(self, timeout_s: float) -> list[dict] | None:
        """Return the results of the answer to the handoff, None without an answer."""
        buffer, end = b"", time.monotonic() + timeout_s
        while not (re.search(rb'"id": ?1\b', buffer) and buffer.endswith(b"\n")):
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                return None
            chunk = os.read(self.process.stdout.fileno(), 1 << 16)
            if not chunk:
                return None
            buffer += chunk
        last = next(m for m in map(json.loads, buffer.splitlines()) if m.get("id") == 1)
        return last["result"].get("structuredContent", {}).get("results")


class Shell:
    """A `cao handoff`."""

    def __init__(self, ground: Ground, text: str) -> None:
        self.process = ground.start("handoff", "demo", text, "--json")

    def results(self, timeout_s: float) -> list[dict] | None:
        try:
            out = self.process.communicate(timeout=timeout_s)[0]
        except subprocess.TimeoutExpired:
            return None
        try:
            return json.loads(out)["results"]
        except ValueError:
            return None


def new_task(ground: Ground, before: set[str]) -> str:
    """Return the task that was put since, "" while there is none."""
    for name in set(ground.store.all_sessions()) - before:
        for path in (ground.home / "sessions" / name / "inbox").glob("[nc]*/*"):
            _, _, task = path.name.partition("-")
            if task.startswith(f"{name}."):
                return task
    return ""


def strike(ground: Ground, what: str, client, before: set[str], task: str) -> bool:
    """Kill it, waiting a little until it is there; False where it never was."""
    if what == "client":
        return kill(client.process.pid)
    session = task.partition(".")[0]
    find = {
        "cli": lambda: ground.cli(session),
        "runner": lambda: ground.runner(session),
        "tmux": ground.server,
    }[what]
    pid = until(find, 3.0)
    return bool(pid) and kill(pid)


def torture_handoff(ground: Ground, options, number: int) -> None:
    """Hand off once, kill once, and see that there is exactly one result in time."""
    rng, words = ground.rng, ground.tally
    what = rng.choice(("cli", "runner", "client", "client", "tmux"))
    by = rng.choice((Shell, Shell, Mcp))
    moment, sleep = rng.uniform(0, 1.2), rng.uniform(0.1, 0.9)
    before = set(ground.store.all_sessions())
    client = by(ground, f"demo: sleep {sleep:.2f}; say answer {number}")
    pause(moment)
    label = f"{number}: {what} of {by.__name__} at {moment:.2f} s"
    task = "" if what == "client" else until(lambda: new_task(ground, before), 5.0)
    struck = strike(ground, what, client, before, task)
    killed_at = time.monotonic()
    words[f"killed: {what}" if struck else "killed: nothing, it was over"] += 1
    task = task or new_task(ground, before)
    if not task and what == "client":
        words["client killed before it gave its task"] += 1
    elif not task:
        ground.fail(f"{label}: no task was given")
    elif what == "client" and struck:
        expect_by_name(ground, label, task, number)
    else:
        expect_in_time(ground, label, task, client, killed_at)
    ground.drop(client.process)
    options.check_time()


def expect_by_name(ground: Ground, label: str, task: str, number: int) -> None:
    """The client is dead: the work goes on, and its result is had by the task's name."""
    log = ground.home / "sessions" / task.partition(".")[0] / "log.jsonl"
    launched = log.exists() and '"started"' in log.read_text()
    done = ground.run("wait", task, "--json", "--timeout", "15s")
    try:
        (result,) = json.loads(done.stdout)["results"]
    except ValueError:
        ground.fail(f"{label}: cao wait {task} gave {done.returncode} {done.stderr!r}")
        return
    ground.tally[f"outcome: {result['outcome']}"] += 1
    if result["answer"] != f"answer {number}" and launched:
        ground.fail(f"{label}: {task} is {result['outcome']} {result['reason']} {result['detail']}")
    elif result["outcome"] != "done":
        ground.tally["client killed before it had started its worker"] += 1


def expect_in_time(ground: Ground, label: str, task: str, client, killed_at: float) -> None:
    """The client gets the one result, soon."""
    session = ground.home / "sessions" / task.partition(".")[0]
    locked = '"started"' in (session / "log.jsonl").read_text()
    found = client.results(SOON_S + 1.5)
    took = time.monotonic() - killed_at
    kept = read_json(session / "results" / f"{task}.json")
    if not found or not kept:
        ground.fail(f"{label}: {task} has no result {took:.1f} s after the kill")
        return
    ground.tally[f"outcome: {kept['outcome']}"] += 1
    if kept["outcome"] not in cao.OUTCOMES or len(found) != 1:
        ground.fail(f"{label}: {task} {kept['outcome']!r}, {len(found)} results")
    if found[0]["outcome"] != kept["outcome"]:
        ground.fail(f"{label}: {task} was told as {found[0]['outcome']}, kept as {kept['outcome']}")
    if kept["outcome"] != "done" and took > SOON_S:
        ground.fail(f"{label}: {task} took {took:.1f} s after the kill")
    if not locked:
        ground.tally["runner killed before it had its lock"] += 1
    slowest = "slowest result after a kill, ms" + ("" if locked else ", before the lock")
    if kept["outcome"] != "done":
        ground.tally[slowest] = max(ground.tally[slowest], int(took * 1000))


def torture_handoffs(ground: Ground, options) -> None:
    """Do part B."""
    print(f"B. {options.handoffs} handoffs", flush=True)
    os.environ["CAO_IDLE_CLOSE_S"] = "2"
    for number in range(options.handoffs):
        torture_handoff(ground, options, number)
    del os.environ["CAO_IDLE_CLOSE_S"]
    ground.clear()


# ---- C. Faults ----


def put_loader(ground: Ground) -> None:
    """Put the fault under the code that runners run from."""
    code = cao.install_copy(ground.store)[-1]
    folder = Path(re.search(r"'(/[^']+)'", code)[1])
    text = faults.LOADER.format(tests=str(HERE), home=str(ground.home), source=cao.__file__)
    (folder / "cao.py").write_text(text)


def torture_fault(ground: Ground, at: int, mode: str) -> bool:
    """Run one task on a runner with a fault; tell whether the fault came at all."""
    fired = ground.home / "fault.fired"
    plan = {"who": "run-session", "at": at, "mode": mode}
    (ground.home / "fault.json").write_text(json.dumps(plan))
    fired.unlink(missing_ok=True)
    boss = cao.Orchestrator(ground.store, cao.shell_caller(ground.store))
    task = boss.assign("demo", "demo: say fine", cao.TaskOptions())
    session = ground.store.session_of(task)
    found = boss.await_tasks([task], 15.0)
    found.told()
    fault_at = fired.stat().st_mtime if fired.exists() else 0.0
    label = f"{mode} at {at} ({fired.read_text() if fault_at else 'not reached'})"
    label = label.replace(str(ground.home), "")
    if not found.results:
        ground.fail(f"{label}: {task} has no result")
    else:
        (result,) = found.results
        ground.tally[f"faults: {mode}, {result.outcome}"] += 1
        started = '"started"' in ground.store.read_text(f"{ground.store.folder(session)}/log.jsonl")
        took = time.time() - max(fault_at, 0)
        if fault_at and result.outcome != "done" and started and took > SOON_S:
            ground.fail(f"{label}: {task} {result.outcome} took {took:.1f} s")
    boss.end(session)
    reached = fired.exists()
    left = until(lambda: not [p for p in ground.pids() if session in command(p)], 2.0)
    if not left:
        ground.fail(f"{label}: a process of {session} is left")
    return reached


def torture_faults(ground: Ground, options) -> None:
    """Do part C."""
    print(f"C. every {options.faults}. change of a file by the runner", flush=True)
    put_loader(ground)
    for mode in ("kill", "fail"):
        at = options.first_fault
        while torture_fault(ground, at, mode):
            at += options.faults
            options.check_time()
        ground.tally[f"faults: {mode}, changes"] = at
    (ground.home / "fault.json").unlink()
    ground.clear()


# ---- D. Files ----


def fork_with_fault(home: str, at: int, mode: str, act) -> tuple[int, str, int]:
    """Do act() in a child with a fault; return its exit status, where the fault came, and
    how many changes there were where it did not come.

    0: all went well, the fault was not reached; 137: killed; 3: it said what failed.
    """
    marker = f"{home}/fault.fired"
    Path(marker).unlink(missing_ok=True)
    pid = os.fork()
    if not pid:
        status = 70
        try:
            fault = faults.Faults(home, at, mode, marker)
            fault.arm()
            act()
            fault.disarm()
            Path(f"{home}/fault.count").write_text(str(fault.count))
            status = 0
        except (OSError, cao.CaoError):
            status = 3
        except Exception:  # noqa: BLE001 - the parent sees the status, a person this
            traceback.print_exc()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    where = Path(marker).read_text().replace(home, "") if os.path.exists(marker) else ""
    count = 0 if where else int(Path(f"{home}/fault.count").read_text())
    return status, where, count


def walk_through(store: cao.Store, letters: str) -> None:
    """Do all that the store does for a task, a result, a message and an event."""
    task = f"worker-2222.{letters}"
    store.set_live("worker-2222", True)
    store.give(cao.Message(f"1-{task}", "task", "boss-2222", "worker-2222", "do it", 1.0, task))
    store.save_state("worker-2222", {"state": "working", "task_message": f"1-{task}"})
    store.take_message("worker-2222", f"1-{task}").told()
    store.put_event(store.folder("worker-2222"), '{"hook_event_name": "Stop"}')
    store.drop_events("worker-2222", [e for e, _, _ in store.events("worker-2222")])
    result = cao.Result(task, "worker-2222", "done", "the answer", ended_at=2.0)
    store.save_result(result, "boss-2222")
    store.take_result("boss-2222", task).told()
    store.put(cao.Message(f"3-{letters}", "message", "boss-2222", "worker-2222", "more", 3.0))
    store.set_live("worker-2222", False)


def torture_store(ground: Ground, at: int, mode: str) -> bool:
    """Walk through a fresh store with a fault, then again without; tell whether it came."""
    home = tempfile.mkdtemp(prefix="store-", dir=ground.folder)
    store = cao.Store(home)
    for name in ("boss-2222", "worker-2222"):
        os.mkdir(store.folder(name))
        store.create(cao.Session(name, "client"))
    status, where, _ = fork_with_fault(home, at, mode, lambda: walk_through(store, "aaaa"))
    label = f"store: {mode} at {at} ({where})"
    if status not in (0, {"kill": 137, "fail": 3}[mode]):
        ground.fail(f"{label}: exit status {status}")
    if status == 0 and where:
        ground.tally["store: a fault that did no harm"] += 1
    ground.note_all(f"{label}: {words}" for words in audit(Path(home)))
    try:
        walk_through(store, "bbbb")
    except (OSError, cao.CaoError) as error:
        ground.fail(f"{label}: the next use fails: {error!r}")
    task = store.taken("worker-2222", "1-worker-2222.aaaa")
    if task:  # as a burial or the next runner does it
        store.save_result(cao.Result(task.task, "worker-2222", "lost", ended_at=4.0), task.sender)
    wrong = [words for words in unanswered(Path(home)) if task or "aaaa" not in words]
    if mode == "fail" and status == 0:  # when it was told may be what could not be written
        wrong = [
            words for words in wrong if words != "off the books, and not told: worker-2222.aaaa"
        ]
    ground.note_all(f"{label}: {words}" for words in [*wrong, *audit(Path(home))])
    shutil.rmtree(home)
    ground.tally[f"store: {mode}"] += 1
    return bool(where)


def torture_assign(ground: Ground, at: int, mode: str) -> int:
    """Assign with a fault, then again with the same request_id: one task, one result.

    Returns how many changes of a file an assign makes, where the fault did not come.
    """
    name, text = f"asker-{mode}-{at}", f"demo: say {mode} {at}."
    cao.make_client(ground.store, name)
    options = cao.TaskOptions(request_id="once")

    def assign() -> str:
        store = cao.Store(ground.store.home)
        return cao.Orchestrator(store, cao.Caller(name)).assign("demo", text, options)

    status, where, count = fork_with_fault(str(ground.home), at, mode, assign)
    label = f"assign: {mode} at {at} ({where})"
    if status not in (0, {"kill": 137, "fail": 3}[mode]):
        ground.fail(f"{label}: exit status {status}")
    boss = cao.Orchestrator(ground.store, cao.Caller(name))
    try:
        task = assign()
        found = boss.await_tasks([task], cao.STARTING_S + SOON_S)
        found.told()
        rest = boss.await_tasks(None, cao.STARTING_S, want_all=True)
    except (OSError, cao.CaoError) as error:
        ground.fail(f"{label}: the next use fails: {error!r}")
    else:
        ground.tally[f"assign: {mode}, {found.results[0].outcome if found.results else '?'}"] += 1
        if not found.results or rest.running:
            ground.fail(f"{label}: no result of {task} or {rest.running}")
    taken = [
        p for p in ground.home.glob("sessions/*/launch/conversation.jsonl") if text in p.read_text()
    ]
    if len(taken) > 1:
        ground.fail(f"{label}: the same request was worked on {len(taken)} times")
    for session in {p.parents[1].name for p in taken}:
        boss.end(session)
    return count


def torture_files(ground: Ground, options) -> None:
    """Do part D."""
    print(f"D. every change of a file by the store, every {options.files}. of assign", flush=True)
    cao.install_copy(ground.store)
    for mode in ("kill", "fail"):
        at = 1
        while torture_store(ground, at, mode):
            at += 1
        count = torture_assign(ground, 0, mode)
        for at in range(count - 2, 0, -options.files):
            torture_assign(ground, at, mode)
            options.check_time()
        ground.tally[f"assign: {mode}, changes"] = count
    ground.clear()


# ---- E. Readers ----


class Readers:
    """Processes that wait for all that a client is owed: forked, killed, and begun again.

    Each notes in one journal what it was told, before that goes off the books, and after.
    """

    def __init__(self, ground: Ground, owner: str, count: int) -> None:
        self.ground, self.owner = ground, owner
        self.journal = ground.folder / "readers.journal"
        self.killed: set[int] = set()
        self.running = {self.begin() for _ in range(count)}

    def begin(self) -> int:
        """Fork a reader and return its pid."""
        pid = os.fork()
        if pid:
            return pid
        status = 70
        try:
            self.read()
            status = 0
        except Exception:  # noqa: BLE001 - the parent sees the status, a person this
            traceback.print_exc()
        finally:
            os._exit(status)

    def read(self) -> None:
        """Wait until nothing is owed any more: a reader's whole life."""
        boss = cao.Orchestrator(cao.Store(self.ground.store.home), cao.Caller(self.owner))
        fd = os.open(self.journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        while (found := boss.await_tasks(None, 60.0)) != cao.Waited():
            names = [result.task for result in found.results]
            names += [message.id for message in found.messages]
            for word in ("says", "told"):
                for name in names:
                    os.write(fd, f"{word} {os.getpid()} {name}\n".encode())
                if word == "says":
                    found.told()

    def strike(self) -> None:
        """Stop a reader for a moment, or kill it and begin another."""
        pid = self.ground.rng.choice(sorted(self.running))
        os.kill(pid, signal.SIGSTOP)
        pause(self.ground.rng.choice((0.0, 0.0, 0.05)))
        if self.ground.rng.random() < 0.3:
            os.kill(pid, signal.SIGCONT)
            self.ground.tally["readers stopped for a while"] += 1
            return
        kill(pid)
        os.waitpid(pid, 0)
        self.ground.tally["readers killed at it"] += 1
        self.killed.add(pid)
        self.running.remove(pid)
        self.running.add(self.begin())

    def end(self) -> None:
        """See that all come to their end by themselves."""
        for pid in self.running:
            if status := os.waitpid(pid, 0)[1]:
                self.ground.fail(f"reader {pid} ended with {status}")

    def tally(self, names: list[str]) -> None:
        """Hold what there was to tell against what was told."""
        lines = [line.split() for line in self.journal.read_text().splitlines()]
        for name in names:
            says = [int(pid) for word, pid, what in lines if (word, what) == ("says", name)]
            told = [int(pid) for word, pid, what in lines if (word, what) == ("told", name)]
            if not says:
                self.ground.fail(f"told to nobody: {name}")
            if len(told) > 1 or any(pid not in self.killed for pid in says[:-1]):
                self.ground.fail(f"told again without need: {name} by {says}, off by {told}")
            again = "told again, for its reader was killed"
            self.ground.tally[again if len(says) > 1 else "told once"] += 1


def torture_readers(ground: Ground, options) -> None:
    """Do part E."""
    print(f"E. {options.results} results and messages to 4 readers", flush=True)
    store, owner, worker = ground.store, "owner-2222", "worker-2222"
    cao.make_client(store, owner)
    os.mkdir(store.folder(worker))
    store.create(cao.Session(worker, "agent", supervisor=owner))
    store.save_state(worker, {"state": "ended", "since": 1.0, "why": "stopped"})
    tasks = [f"{worker}.t{number}" for number in range(options.results)]
    for task in tasks:
        store.give(cao.Message(f"1-{task}", "task", owner, worker, "do it", 1.0, task))
        store.take_message(worker, f"1-{task}").told()
    readers, letters = Readers(ground, owner, 4), []
    for number, task in enumerate(tasks):
        letters.append(f"{number:020d}-m")
        store.put(cao.Message(letters[-1], "message", worker, owner, f"number {number}", 1.0))
        store.save_result(cao.Result(task, worker, "done", "yes", ended_at=time.time()), owner)
        pause(ground.rng.uniform(0, 0.03))
        if number % 2:
            readers.strike()
        options.check_time()
    readers.end()
    readers.tally([*tasks, *letters])
    ground.note_all(f"still owed: {task}" for task in store.owed(owner))
    ground.note_all(f"still waiting: {one.id}" for one in store.waiting(owner))
    ground.clear()


# ---- F. Storm ----


class Storm:
    """What comes over a home while work goes on in it: each kind as a method, and its end."""

    def __init__(self, ground: Ground) -> None:
        self.ground, self.rng = ground, ground.rng
        self.filler = ground.home / "filler"
        self.kinds = [self.stop, self.stop, self.remove_socket, self.put_events]
        self.kinds += [self.fill] if ground.mounted else []

    def sessions(self) -> list[str]:
        return [name for name in self.ground.store.live() if self.ground.store.is_locked(name)]

    def stop(self) -> None:
        """Stop a process for a while."""
        find = {
            "tmux": self.ground.server,
            "cli": lambda: self.ground.cli(self.rng.choice(self.sessions())),
            "runner": lambda: self.ground.runner(self.rng.choice(self.sessions())),
            "client": lambda: self.rng.choice(self.ground.children).pid,
        }
        what = self.rng.choice([*find])
        pid = find[what]()
        if not pid:
            return
        self.ground.tally[f"storm: {what} stopped"] += 1
        try:
            os.kill(pid, signal.SIGSTOP)
            pause(self.rng.uniform(0.1, 3.0))
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass

    def remove_socket(self) -> None:
        """Remove tmux's socket, as a cleaner of /tmp does."""
        for path in self.ground.folder.glob("tmux/tmux-*/*"):
            path.unlink(missing_ok=True)
            self.ground.tally["storm: socket removed"] += 1

    def put_events(self) -> None:
        """Put what no hook of ours writes among a session's events."""
        session = self.rng.choice(self.sessions())
        folder = self.ground.home / "sessions" / session / "events/new"
        for name in (f"{time.time_ns():020d}-1-x", "odd", "\x1b[2J", "x" * 200):
            path = folder / name
            made = self.rng.choice((
                lambda path: path.write_text('{"a":' * 9999), os.mkfifo, os.mkdir,
                lambda path: path.write_bytes(self.rng.randbytes(99)),
                lambda path: path.symlink_to(path.name),
                lambda path: path.write_text('{"cao": ["stop"], "hook_event_name": {}}'),
                lambda path: path.write_text('{"hook_event_name": "PermissionRequest"}'),
            ))  # fmt: skip
            try:
                made(path)
            except OSError:
                continue
            self.ground.tally["storm: hostile events"] += 1
        self.ground.store.poke(session)

    def fill(self) -> None:
        """Let the disk be full for a while."""
        try:
            with self.filler.open("wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 4096)
        except OSError:
            pass
        pause(self.rng.uniform(0.1, 3.0))
        self.filler.unlink()
        self.ground.tally["storm: disk full"] += 1


def torture_storm(ground: Ground, options) -> None:
    """Do part F."""
    where = "on a disk of its own" if ground.mount() else "without a full disk: that needs root"
    print(f"F. {options.storm} tasks in a storm, {where}", flush=True)
    storm, left, given = Storm(ground), options.storm, {}
    while left or ground.children:
        while left and len(ground.children) < 4:
            text = f"demo: sleep {ground.rng.uniform(0.1, 1.5):.1f}; say answer {left}"
            child = ground.start("handoff", "demo", text, "--timeout", "10m")
            given[child] = f"answer {left}"
            left -= 1
        if storm.sessions():
            ground.rng.choice(storm.kinds)()
        pause(ground.rng.uniform(0.0, 0.5))
        for child in [child for child in ground.children if child.poll() is not None]:
            out, err = (text.decode().strip() for text in child.communicate())
            ground.children.remove(child)
            if child.returncode and "No space left" in err:  # of the client: the work goes on
                named = re.search(r"cao: task (\S+)", err)
                ground.tally[f"storm: client had no room, {'later' if named else 'refused'}"] += 1
                out = ground.run("wait", named[1]).stdout.strip() if named else given[child]
            session = re.search(r"cao: task ([^.\s]+)", err)
            log = ground.store.folder(session[1]) + "/log.jsonl" if session else ""
            if out == given[child]:
                ground.tally["storm: answered"] += 1
            elif "No space left" in err and '"started"' not in ground.store.read_text(log):
                ground.tally["storm: no room to start its CLI"] += 1
            else:
                ground.fail(f"{given[child]}: {child.returncode} {out!r} {err}")
        options.check_time()
    ground.clear()


# ---- all ----


def parse_options():
    """Return the command line's options, and with them the clock that bounds all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--messages", type=int, default=1000)
    parser.add_argument("--senders", type=int, default=8)
    parser.add_argument("--results", type=int, default=500)
    parser.add_argument("--handoffs", type=int, default=200)
    parser.add_argument("--faults", type=int, default=1, metavar="EVERY")
    parser.add_argument("--files", type=int, default=1, metavar="EVERY")
    parser.add_argument("--storm", type=int, default=100, metavar="TASKS")
    parser.add_argument("--first-fault", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--keep", action="store_true", help="keep the folder for a look")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds

    def check_time() -> None:
        if time.monotonic() > end:
            raise TimeoutError(f"{options.seconds:.0f} s were not enough")

    options.check_time = check_time
    return options


def main() -> int:
    """Torture, print the tally, and return the exit status."""
    options = parse_options()
    started, status = time.monotonic(), 0
    print(f"seed {options.seed}", flush=True)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    ground = Ground(options.seed)
    try:
        if options.storm:  # while nothing is in its home
            torture_storm(ground, options)
            ground.close(options.keep)
            storm, ground = ground, Ground(options.seed)
            ground.tally, ground.wrong = storm.tally, storm.wrong
        if options.messages:
            torture_messages(ground, options)
        if options.results:  # before there are threads: it forks
            torture_readers(ground, options)
        if options.handoffs:
            torture_handoffs(ground, options)
        if options.faults:
            torture_faults(ground, options)
        if options.files:
            torture_files(ground, options)
    except TimeoutError as error:
        print(f"  TIME: {error}")
        status = 2
    finally:
        ground.close(options.keep)
    for name, number in sorted(ground.tally.items()):
        print(f"  {number:7}  {name}")
    print(f"{len(ground.wrong)} wrong, {time.monotonic() - started:.0f} s, seed {options.seed}")
    return 1 if ground.wrong else status


if __name__ == "__main__":
    sys.exit(main())
