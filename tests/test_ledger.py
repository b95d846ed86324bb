"""The ledger: a result is owed until it was told, whoever is killed, frozen or cut off while
he tells it; and one bad file costs at most itself.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import pytest

import cao
from conftest import CAO, McpClient, be_cao, until
from faults import Faults
from test_nothing_lost import assign, conversation, idle_session, kill_runner, me, plan, put_loader

HERE = Path(__file__).resolve().parent

DEEP = '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"


# ---- bad files ----


def be_socket(path: Path) -> None:
    """Bind a socket: its path has to be short, so it is moved there."""
    with socket.socket(socket.AF_UNIX) as made:
        short = f"/tmp/cao-sock-{os.getpid()}"
        made.bind(short)
        os.rename(short, path)


def be_folder(path: Path) -> None:
    path.mkdir()
    (path / "below").write_text("x")


def be_unreadable(path: Path) -> None:
    path.write_text("{}")
    path.chmod(0)


def be_huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)  # it takes no room


BAD = {
    "deep": lambda path: path.write_text(DEEP),
    "folder": be_folder,
    "fifo": os.mkfifo,
    "loop": lambda path: path.symlink_to(path),
    "nowhere": lambda path: path.symlink_to("/nonexistent"),
    "socket": be_socket,
    "unreadable": be_unreadable,
    "huge": be_huge,
    "empty": Path.touch,
    "binary": lambda path: path.write_bytes(b"\xff\xfe\0\x1b[2J"),
    "list": lambda path: path.write_text("[1, 2]"),
    "null": lambda path: path.write_text("null"),
    "wrong types": lambda path: path.write_text(
        '{"id": 5, "kind": [], "task": {}, "session": 7, "text": null, "state": [], "name": 1,'
        ' "hook_event_name": {}, "format": 2, "version": 3, "sender": 1, "to": 2, "outcome": 3}'
    ),
}
ODD_NAMES = [
    "x", " ", "-", "--help", "..x", "a\nb", "\x1b[31mred", "ü" * 100, "n" * 255, "*", "a.json",
    b"\xff\xfe".decode(errors="surrogateescape"), "0" * 20, "0" * 20 + "-",
]  # fmt: skip


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.delenv("CAO_SESSION", raising=False)
    made = cao.Store(str(tmp_path / "cao"))
    for name in ("boss-2222", "worker-3333"):
        os.mkdir(made.folder(name), 0o700)
        made.create(cao.Session(name, "agent", supervisor="boss-2222" if "worker" in name else ""))
    return made


@pytest.mark.parametrize("kind", [kind for kind in BAD if kind != "wrong types"])
def test_what_is_no_json_file_is_moved_away_whatever_it_is(store, kind, capsys):
    path = Path(store.folder("worker-3333"), "state.json")
    BAD[kind](path)
    if kind == "unreadable" and os.getuid() == 0:
        path.write_text("")  # root reads all
    assert store.load_state("worker-3333") == {}
    assert not os.path.lexists(path)
    assert len(os.listdir(f"{store.home}/quarantine")) == 1
    assert "cannot be read; moved to" in capsys.readouterr().err
    assert '"quarantined"' in Path(store.folder("worker-3333"), "log.jsonl").read_text()


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
@pytest.mark.parametrize("part", ["inbox/new", "events/new"])
def test_a_file_of_any_name_costs_at_most_itself(store, part, name):
    Path(store.folder("worker-3333"), part, name).write_text("{}")
    store.put(cao.Message(f"{1:020d}-m", "message", "boss-2222", "worker-3333", "hi"))
    store.put_event(store.folder("worker-3333"), '{"n": 1}')
    assert [m.text for m in store.waiting("worker-3333")] == ["hi"]
    assert {"n": 1} in [payload for _, _, payload in store.events("worker-3333")]
    Path(store.folder("worker-3333"), part, name)


def test_what_cannot_even_be_moved_away_is_said_and_stops_nothing(store, capsys):
    Path(store.home, "quarantine").write_text("a file")
    store.put_event(store.folder("worker-3333"), "junk")
    store.put_event(store.folder("worker-3333"), '{"n": 1}')
    assert [payload for _, _, payload in store.events("worker-3333")] == [{"n": 1}]
    assert "nor moved away" in capsys.readouterr().err


@pytest.mark.parametrize("kind", BAD)
def test_an_entry_of_the_ledger_that_is_no_file_costs_at_most_itself(store, kind):
    task = "worker-3333.k3f9"
    note = cao.Message(f"{1:020d}-{task}", "task", "boss-2222", "worker-3333", "x", task=task)
    store.give(note)
    BAD[kind](Path(store.folder("boss-2222"), "out", "worker-3333.bad5"))
    assert store.owed("boss-2222") == [task]
    assert os.listdir(f"{store.folder('boss-2222')}/out") == [task]


def test_an_entry_whose_text_is_spoilt_is_still_owed(store):
    task = "worker-3333.k3f9"
    note = cao.Message(f"{1:020d}-{task}", "task", "boss-2222", "worker-3333", "x", task=task)
    for text in ("", "junk", "\0", "../../..", "x" * 100_000):
        store.give(note)
        Path(store.out_path("boss-2222", task)).write_text(text)
        assert store.owed("boss-2222") == [task], text


@pytest.mark.parametrize("kind", BAD)
def test_a_result_that_cannot_be_read_ends_its_task_as_lost(store, kind):
    task = "worker-3333.k3f9"
    BAD[kind](Path(store.result_path(task)))
    if kind == "unreadable" and os.getuid() == 0:
        return  # root reads all
    assert store.load_result(task).outcome == "lost"
    assert store.load_result(task).reason == "unreadable"


def plant(folder: Path, part: str, name: str) -> None:
    """Put every kind of bad file, and every odd name, into a part of a session's folder."""
    for number, (kind, make) in enumerate(BAD.items()):
        made = folder / part / name.format(number)
        assert not made.exists(), kind
        make(made)
    for odd in ODD_NAMES:
        path = folder / part / odd
        if not os.path.lexists(path):
            path.write_text("{}")


PARTS = {
    "events/new": "{:020d}-1-xx",
    "inbox/new": "{:020d}-m",
    "inbox/cur": "{:020d}-m",
    "results": "SESSION.bad{}.json",
    "out": "SESSION.bad{}",
}


WHOLE = ["ls", "ls --all --json", "clean", "clean --older 0s", "wait --timeout 0s",
         "wait --json --timeout 0s", "logs", "profiles"]  # fmt: skip
ONE = ["show", "why", "logs", "trace", "answer yes", "send hello"]


def all_go_well(place, words, session: str = "", codes=(0, cao.EXIT_TIMEOUT)) -> None:
    """Run commands: they end, without a traceback; codes: with one of these exit codes."""
    for line in words:
        verb, *rest = line.split()
        argv = [verb, *([session] if session else []), *rest]
        done = place.run(*argv, timeout_s=60)
        assert "Traceback" not in done.stderr, (argv, done.stderr)
        assert not codes or done.returncode in codes, (argv, done.returncode, done.stderr)


@pytest.mark.tmux
@pytest.mark.parametrize("part", PARTS)
def test_no_file_in_any_folder_stops_a_command_or_the_runner(place, part):
    task = place.ok("assign", "demo", "demo: say first").strip()
    session = task.partition(".")[0]
    assert place.ok("wait", task) == "first\n"
    runner = place.tmux("list-panes", "-t", f"={session}:", "-F", "#{pane_pid}")
    gone = place.ok("assign", "demo", "demo: say second").strip()
    place.ok("wait", gone)
    place.ok("stop", gone.partition(".")[0])
    for name in (session, gone.partition(".")[0], *place.store.all_sessions()):
        folder = place.home / "sessions" / name
        if not list((folder / part).glob("*bad3*")) and not list((folder / part).glob("0*3-*")):
            plant(folder, part, PARTS[part].replace("SESSION", session))
    place.store.poke(session)
    all_go_well(place, WHOLE)
    all_go_well(place, ONE, session, codes=())
    assert place.ok("wait", task) == "first\n"
    assert place.ok("handoff", session, "demo: say still here").endswith("still here\n")
    assert place.ok("handoff", "demo", "demo: say and new") == "and new\n"
    assert place.tmux("list-panes", "-t", f"={session}:", "-F", "#{pane_pid}") == runner
    place.ok("stop", session)
    until(lambda: place.store.is_locked(session), False)
    place.ok("ls", "--all")


@pytest.mark.tmux
@pytest.mark.parametrize(
    "file",
    [
        *("session.json", "state.json", "log.jsonl", "screen.txt"),
        *("launch/launch.json", "launch/env.json", "launch/runner.json"),
    ],
)
def test_no_file_of_an_ended_session_stops_a_command(place, file):
    """Of each kind one session; the others are not concerned."""
    task = place.ok("assign", "demo", "demo: say other").strip()
    place.ok("wait", task)
    bad = {}
    for kind, make in BAD.items():
        bad[kind] = place.store.new_folder("bad")
        place.store.create(cao.Session(bad[kind], "agent", "demo", "demo", str(place.work)))
        state = {"state": "ended", "since": 1.0, "why": "stopped"}
        place.store.save_state(bad[kind], state)
        path = place.home / "sessions" / bad[kind] / file
        path.unlink(missing_ok=True)
        make(path)
    all_go_well(place, [line for line in WHOLE if "older" not in line])
    all_go_well(place, ["show", "why", "logs", "trace", "send hello"], task.partition(".")[0])
    for kind in ("deep", "folder", "fifo", "loop", "huge", "wrong types"):
        all_go_well(place, [*ONE, "stop", "assign x"], bad[kind], codes=())
    assert place.ok("wait", task) == "other\n"
    all_go_well(place, WHOLE)


@pytest.mark.tmux
def test_a_note_of_a_runner_that_is_none_stops_no_command(place):
    name = place.store.new_folder("bad")
    place.store.create(cao.Session(name, "agent", "demo", "demo", str(place.work)))
    place.store.save_state(name, cao.fresh_state())  # it starts: its runner has no lock yet
    place.store.set_live(name, True)
    (place.home / "sessions" / name / "launch" / "runner.json").write_text('{"id": "x"}')
    place.ok("ls")
    assert place.state(name)["why"] == "lost"


@pytest.mark.tmux
@pytest.mark.parametrize("file", ["state.json", "launch/status.json", "launch/launch.json"])
@pytest.mark.parametrize("kind", ["deep", "fifo", "loop", "huge", "wrong types"])
def test_no_file_of_a_live_session_stops_a_command_or_its_runner(place, file, kind):
    session = idle_session(place)
    runner = place.tmux("list-panes", "-t", f"={session}:", "-F", "#{pane_pid}")
    path = place.home / "sessions" / session / file
    path.unlink(missing_ok=True)
    BAD[kind](path)
    all_go_well(place, [*WHOLE, "run demo hello"])
    all_go_well(place, ["show", "why", "logs", "trace", "send hello"], session)
    assert place.ok("handoff", session, "demo: say still here") == "still here\n"
    assert place.tmux("list-panes", "-t", f"={session}:", "-F", "#{pane_pid}") == runner


def test_a_line_that_is_nested_too_deeply_does_not_hide_the_others_of_a_transcript():
    """A model's tool arguments are enough."""
    lines = ['{"n": 1}', DEEP, '{"n": 2}']
    assert [*map(cao.parse_object, lines)] == [{"n": 1}, {}, {"n": 2}]
    assert cao.read_status_json(DEEP).state == "unknown"


# ---- telling, in a shell ----


class Home:
    """A place with a client, "boss", that is owed results of a worker that has ended."""

    def __init__(self, place) -> None:
        self.place, self.store, self.number = place, place.store, 0
        cao.make_client(self.store, "boss")
        os.mkdir(self.store.folder("worker-3333"))
        self.store.create(cao.Session("worker-3333", "agent", supervisor="boss"))
        self.store.save_state("worker-3333", {"state": "ended", "since": 1.0, "why": "stopped"})

    def give(self, owner: str = "boss") -> str:
        """Give a task and return it."""
        self.number += 1
        task = f"worker-3333.k{self.number}"
        key = f"{self.number:020d}-{task}"
        self.store.give(cao.Message(key, "task", owner, "worker-3333", "x", 1.0, task))
        self.store.take_message("worker-3333", key).told()
        return task

    def finish(self, task: str, owner: str = "boss", outcome: str = "done") -> None:
        answer = f"the answer to {task}." if outcome == "done" else ""
        detail = "" if answer else f"why {task} failed."
        result = cao.Result(task, "worker-3333", outcome, answer, "", "", detail)
        self.store.save_result(result._replace(ended_at=time.time()), owner)

    def owe(self, owner: str = "boss", outcome: str = "done") -> str:
        """Give a task that is finished and return it."""
        task = self.give(owner)
        self.finish(task, owner, outcome)
        return task

    def write(self, text: str) -> None:
        """Put a message to the client."""
        self.number += 1
        key = f"{self.number:020d}-m"
        self.store.put(cao.Message(key, "message", "worker-3333", "boss", text, time.time()))

    def read(self, *args: str, **env: str) -> dict:
        """Run a `cao wait` that tells, and return what it told."""
        done = self.place.run("wait", "--json", "--timeout", "0s", *args, CAO_CLIENT="boss", **env)
        assert "Traceback" not in done.stderr, done.stderr
        found = json.loads(done.stdout)
        found["said"], found["code"] = done.stderr, done.returncode
        found["told"] = [result["task"] for result in found["results"]]
        return found

    def start(self, *args: str, fault: tuple = (), **more) -> subprocess.Popen:
        """Start a `cao wait` that goes on beside the test; fault: (n-th change, mode)."""
        code = "import sys; sys.path[:0] = [{!r}, {!r}]; import cao, faults; {}sys.exit(cao.main())"
        plan = "faults.Faults({!r}, {!r}, {!r}, {!r}).arm(); "
        plan = plan.format(str(self.place.home), *fault, str(self.marker)) if fault else ""
        argv = [sys.executable, "-c", code.format(str(HERE.parent), str(HERE), plan), *args]
        env = {**self.place.env, "CAO_CLIENT": "boss"}
        more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        process = subprocess.Popen(
            argv, cwd=self.place.work, env=env, stdin=subprocess.PIPE, **more
        )
        self.place.started.append(process)
        return process

    @property
    def marker(self) -> Path:
        """The file that a process makes when its fault has come."""
        return self.place.folder / "fault.fired"

    def break_at(self, at: int, mode: str, *args: str) -> tuple[str, int, str]:
        """Run a command with a fault at its n-th change of a file, in a fork; return its
        stdout, its exit status, and where the fault came: "" where there are not so many."""
        self.marker.unlink(missing_ok=True)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            pid = os.fork()
            if not pid:
                Faults(str(self.place.home), at, mode, str(self.marker)).arm()
                with open(os.devnull) as stdin:
                    be_cao([*CAO, *args], [stdin, out, err],
                           {**self.place.env, "CAO_CLIENT": "boss"}, self.place.work)  # fmt: skip
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            for file in (out, err):
                file.seek(0)
            text, said = out.read().decode(), err.read().decode()
        assert "Traceback" not in said, said
        return text, status, self.marker.read_text() if self.marker.exists() else ""


@pytest.fixture
def home(place):
    return Home(place)


@pytest.mark.parametrize("by_name", [False, True], ids=["all", "by name"])
@pytest.mark.parametrize("mode", ["kill", "fail"])
def test_whatever_step_of_telling_breaks_the_result_is_told(home, mode, by_name):
    """Once more only where it broke after the telling: between the last byte and the entry."""
    at = 0
    while at < 100:
        at += 1
        task = home.owe()
        home.write(f"about {task}")
        argv = ["wait", "--json", "--timeout", "5s", *([task] if by_name else [])]
        out, status, where = home.break_at(at, mode, *argv)
        first = out.count(f"the answer to {task}.")
        rest = home.read()
        second = rest["told"].count(task)
        words = [m["text"] for m in rest["messages"]].count(f"about {task}")
        label = (at, where, status, out, rest)
        assert first + second >= 1, label
        assert out.count(f"about {task}") + words >= 1, label
        if first and second:  # it was killed, or could not note it
            noting = ("/results/", "/out/", "/inbox/", "fsync", "write text")
            assert any(part in where for part in noting), label
        assert home.store.owed("boss") == [], label
        assert home.store.waiting("boss") == [], label
        assert home.read()["told"] == []
        if not where:
            break
    assert at > 8


def test_a_reader_that_stands_still_at_any_step_of_telling_keeps_all_others_waiting(home):
    """By the name it is read all the same; killed, it leaves the result to the next."""
    at, taken = 0, 0
    while at < 100:
        at += 1
        task = home.owe()
        home.marker.unlink(missing_ok=True)
        frozen = home.start("wait", "--json", "--timeout", "30s", fault=(at, "hold"))
        until(lambda p=frozen: home.marker.exists() or p.poll() is not None)
        where = home.marker.read_text() if home.marker.exists() else ""
        if frozen.poll() is None:
            os.kill(frozen.pid, signal.SIGSTOP)
        other = home.read() if where else {"told": [], "running": [task], "said": ""}
        if not other["told"] and "/out/" not in where:
            assert other["running"] == [task], (at, where)
            assert "nothing is open" not in other["said"], (at, where)
            taken += bool(where)
            assert home.store.owed("boss") == ([task] if where else [])
            assert home.place.ok("wait", task, CAO_CLIENT="another") == f"the answer to {task}.\n"
        frozen.kill()
        frozen.communicate()
        rest = home.read()["told"]
        if where and "/out/" not in where:
            assert sorted(other["told"] + rest) == [task], (at, where)
        if not where:
            assert rest == []
            break
    assert taken >= 4


def test_a_wait_goes_on_waiting_while_another_tells_and_gets_what_that_one_left(home):
    task = home.owe()
    frozen = home.start("wait", "--json", fault=("/results/", "hold"))
    until(home.marker.exists)
    os.kill(frozen.pid, signal.SIGSTOP)
    others = [home.start("wait", "--json", "--timeout", "60s") for _ in range(2)]
    for other in others:
        until(lambda: [n for n in os.listdir(home.place.home / "wake")
                       if n.startswith(f"{other.pid}-")])  # fmt: skip # noqa: B023
    frozen.kill()
    found = [json.loads(other.communicate(timeout=60)[0]) for other in others]
    assert sorted(r["task"] for one in found for r in one["results"]) == [task]
    assert home.store.owed("boss") == []


@pytest.mark.parametrize("flags", ["", "--json"])
@pytest.mark.parametrize("outcome", ["done", "failed"])
@pytest.mark.parametrize("where", [">/dev/full", "2>/dev/full", ">&-", "| true", "2>&1 | true"])
def test_what_could_not_be_printed_was_not_told(home, flags, outcome, where):
    task = home.owe(outcome=outcome)
    home.write("and a message")
    command = cao.quote_argv([*CAO, "wait", *flags.split(), "--timeout", "5s"])
    gone = where.replace("true", "(exec <&-; sleep 0.3)")  # its reader leaves before it writes
    script = f"{{ sleep 0.1; exec {command}; }} {gone}"
    done = subprocess.run(["sh", "-c", script], check=False, capture_output=True, text=True,
                          env={**home.place.env, "CAO_CLIENT": "boss"}, cwd=home.place.work,
                          timeout=60)  # fmt: skip
    assert "Traceback" not in done.stderr
    told = f"the answer to {task}." in done.stdout or f"why {task} failed." in done.stdout
    told = told or f"why {task} failed." in done.stderr
    again = home.read()
    assert told or again["told"] == [task], (done, again)
    if not flags and outcome == "done" and where != "2>/dev/full":
        assert again["told"] == [task]
    if flags and where != "2>/dev/full":
        assert (again["told"], len(again["messages"])) == ([task], 1)


STRUCK = {
    "before it writes": "cao._report = lambda *_: os._exit(137)",
    "after it wrote": "cao.Waited.told = lambda *_: os._exit(137)",
}


@pytest.mark.parametrize("when", STRUCK)
@pytest.mark.parametrize("names", [False, True])
def test_a_reader_killed_just_before_or_after_it_writes_has_lost_nothing(home, when, names):
    task = home.owe()
    code = f"import os, sys, cao; {STRUCK[when]}; cao.main(sys.argv[1:])"
    argv = [sys.executable, "-c", code, "wait", *([task] if names else [])]
    env = {**home.place.env, "CAO_CLIENT": "boss", "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(argv, check=False, capture_output=True, text=True, env=env,
                          cwd=home.place.work, timeout=60)  # fmt: skip
    assert done.returncode == 137, done.stderr
    assert done.stdout == ("" if when == "before it writes" else f"the answer to {task}.\n")
    assert home.read()["told"] == [task]
    assert home.read()["told"] == []


@pytest.mark.parametrize("count", [2, 3])
def test_readers_without_names_are_told_each_result_once_in_all(home, count):
    tasks = [home.give() for _ in range(12)]
    readers = [home.start("wait", "--json", "--timeout", "60s") for _ in range(count)]
    for task in tasks:
        home.finish(task)
    found = [json.loads(reader.communicate(timeout=60)[0]) for reader in readers]
    told = [result["task"] for one in found for result in one["results"]]
    assert sorted(told) == sorted(tasks)
    assert home.read()["told"] == []


def test_readers_in_turns_are_told_each_result_once_however_many_are_killed(home):
    """Each notes what it was told, before that goes off the books: killed in between, it is
    told again, and only then."""
    journal, tasks = home.place.folder / "journal", [home.give() for _ in range(30)]
    code = """
import os, sys, cao
fd = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
boss = cao.Orchestrator(cao.Store(os.environ["CAO_HOME"]), cao.Caller("boss"))
while (found := boss.await_tasks(None, 60)) != cao.Waited():
    for result in found.results:
        os.write(fd, f"{os.getpid()} says {result.task}\\n".encode())
    found.told()
    for result in found.results:
        os.write(fd, f"{os.getpid()} told {result.task}\\n".encode())
"""
    env = {**home.place.env, "PYTHONPATH": str(HERE.parent)}

    def begin() -> subprocess.Popen:
        argv = [sys.executable, "-c", code, str(journal)]
        home.place.started.append(subprocess.Popen(argv, env=env, stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE))  # fmt: skip
        return home.place.started[-1]

    readers, rng, killed = [begin() for _ in range(3)], random.Random(7), set()
    for number, task in enumerate(tasks):
        home.finish(task)
        select.select([], [], [], rng.uniform(0, 0.05))
        if number % 3 == 0:
            reader = readers.pop(0)
            reader.kill()
            killed.add(str(reader.pid))
            readers.append(begin())
    for reader in readers:
        assert (reader.wait(60), reader.stderr.read()) == (0, b"")
    lines = [line.split() for line in journal.read_text().splitlines()]
    for task in tasks:
        says = [pid for pid, word, name in lines if (word, name) == ("says", task)]
        assert says, f"{task} was told to nobody"
        for pid in says[:-1]:  # told again
            assert pid in killed, (task, says)
            assert [pid, "told", task] not in lines
    assert home.store.owed("boss") == []


def test_by_its_name_a_result_is_read_again_and_again_by_anybody(home):
    task = home.owe()
    for client in ("boss", "boss", "nobody-yet", "boss"):
        for _ in range(2):
            assert home.place.ok("wait", task, CAO_CLIENT=client) == f"the answer to {task}.\n"
    assert home.store.owed("boss") == []  # the owner's read has discharged it
    assert home.read()["told"] == []


def test_a_strangers_read_by_name_discharges_nothing(home):
    task = home.owe()
    before = home.store.load_result(task)
    assert home.place.ok("wait", task, CAO_CLIENT="stranger") == f"the answer to {task}.\n"
    assert home.store.load_result(task) == before
    assert home.read()["told"] == [task]
    assert home.store.load_result(task).told_at


def test_when_it_was_told_stands_in_the_results_view(home):
    task = home.owe()
    at = time.time()
    assert home.read()["results"][0]["told_at"] is None
    (again,) = home.read(task)["results"]
    assert at - 1 < datetime.fromisoformat(again["told_at"]).timestamp() <= time.time()


NAMESPACES = ["unshare", "--pid", "--fork", "--mount-proc"]


def test_readers_in_pid_namespaces_of_their_own_share_one_home(home):
    if subprocess.run([*NAMESPACES, "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs the right to make a pid namespace")
    tasks = [home.give() for _ in range(6)]
    argv = [*NAMESPACES, *CAO, "wait", "--json", "--timeout", "60s"]
    env = {**home.place.env, "CAO_CLIENT": "boss"}
    readers = []
    for _ in range(3):
        readers.append(subprocess.Popen(argv, cwd=home.place.work, env=env, stdin=subprocess.PIPE,
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE))  # fmt: skip
        home.place.started.append(readers[-1])
    listeners = Path(home.store.folder("worker-3333"), "wake")
    until(lambda: len(os.listdir(listeners)) >= 3)
    home.place.ok("clean", CAO_CLIENT="boss")  # sees none of their pids
    assert len(os.listdir(home.place.home / "wake")) >= 3
    for task in tasks:
        home.finish(task)
    found = [json.loads(reader.communicate(timeout=60)[0]) for reader in readers]
    assert sorted(r["task"] for one in found for r in one["results"]) == sorted(tasks)


def test_a_message_that_another_is_telling_does_not_end_a_wait_for_all(home):
    done, open_ = home.owe(), home.give()
    home.write("somebody reads this just now")
    claim = home.store.take_message("boss", home.store.waiting("boss")[0].id)
    for tasks in ([done, open_], []):
        found = home.read("--all", "--timeout", "1s", *tasks)
        assert (found["running"], found["messages"]) == ([open_], [])
    claim.release()
    assert len(home.read("--timeout", "5s", open_)["messages"]) == 1


@pytest.mark.parametrize("by_name", [True, False])
def test_a_wait_for_all_that_runs_out_of_time_says_what_still_runs(home, by_name):
    done, open_ = home.owe(), home.give()
    named = [done, open_, "--all"] if by_name else []
    found = home.place.run("wait", *named, "--timeout", "1s", CAO_CLIENT="boss")
    assert (found.returncode, found.stdout) == (5, f"the answer to {done}.\n")
    assert f"still running: {open_}\n" in found.stderr
    first = home.place.run("wait", done, open_, CAO_CLIENT="boss")  # the first one is enough
    assert (first.returncode, first.stderr) == (0, "")


# ---- telling, over MCP ----


@pytest.fixture
def mcp(home):
    """Start a server for the client "boss"; fault: in that process."""

    def start(at: int = 0, mode: str = "kill") -> McpClient:
        home.marker.unlink(missing_ok=True)
        made = McpClient.__new__(McpClient)
        made.process = home.start("mcp", fault=(at, mode) if at else ())
        made.buffer, made.seen, made.next_id = b"", [], 0
        params = {"protocolVersion": "2025-11-25", "capabilities": {}}
        params["clientInfo"] = {"name": "boss", "version": "1"}
        made.post("initialize", params)
        return made

    return start


def told_by(client: McpClient, key: int) -> str | None:
    """Return the line that answers a request; None where the server died without one."""
    while (message := client.read()) is not None:
        if message.get("id") == key and "method" not in message:
            return json.dumps(message)
    return None


@pytest.mark.parametrize("by_name", [False, True], ids=["all", "by name"])
@pytest.mark.parametrize("mode", ["kill", "fail"])
def test_whatever_step_of_an_mcp_wait_breaks_the_result_is_told(home, mcp, mode, by_name):
    at = 0
    while at < 100:
        at += 1
        task = home.owe()
        client = mcp(at, mode)
        key = client.post_call("wait", timeout_s=5, **({"tasks": [task]} if by_name else {}))
        line = told_by(client, key) or ""
        status = client.close()
        where = home.marker.read_text() if home.marker.exists() else ""
        first, second = f"the answer to {task}." in line, home.read()["told"].count(task)
        assert first + second >= 1, (at, where, line)
        if first and second:
            noting = ("/results/", "/out/", "fsync", "write text")
            assert any(part in where for part in noting), (at, where)
        assert home.store.owed("boss") == []
        if status == 0 and not where:
            break
    assert at > 5


def test_a_client_that_is_gone_as_its_result_comes_was_not_told(home, mcp):
    task = home.give()
    client = mcp()
    client.post_call("wait")
    until(lambda: os.listdir(f"{home.store.folder('worker-3333')}/wake"))
    client.process.stdout.close()
    home.finish(task)
    assert client.process.wait(60) == 0
    assert home.store.owed("boss") == [task]
    again = mcp()
    (result,) = again.call("wait")["structuredContent"]["results"]
    assert result["task"] == task
    until(lambda: home.store.owed("boss"), [])
    again.close()


def test_a_client_that_takes_no_byte_of_its_result_was_not_told(home, mcp):
    """The pipe is full: the line is longer than it, and nobody reads."""
    task = home.give()
    client = mcp()
    until(lambda: select.select([client.process.stdout], [], [], 0)[0])
    client.post_call("wait")
    until(lambda: os.listdir(f"{home.store.folder('worker-3333')}/wake"))
    answer = "a long answer. " * 20_000
    long = cao.Result(task, "worker-3333", "done", answer, ended_at=time.time())
    fcntl.fcntl(client.process.stdout, getattr(fcntl, "F_SETPIPE_SZ", 1031), 4096)
    home.store.save_result(long, "boss")
    other = home.read()
    until(lambda: home.store.take_result("boss", task) is None)
    assert (home.read()["running"], home.store.owed("boss")) == ([task], [task])
    assert other["said"].count("nothing is open") == 0
    client.process.kill()
    client.process.wait()
    assert home.read()["told"] == [task]


@pytest.mark.parametrize("by_name", [False, True], ids=["all", "by name"])
def test_a_call_that_was_cancelled_has_told_nothing(home, mcp, by_name):
    task, client = home.give(), mcp()
    for _ in range(3):
        key = client.post_call("wait", **({"tasks": [task]} if by_name else {}))
        until(lambda: os.listdir(f"{home.store.folder('worker-3333')}/wake"))
        client.notify("notifications/cancelled", {"requestId": key})
        until(lambda: os.listdir(f"{home.store.folder('worker-3333')}/wake"), [])
    key = client.post_call("wait", **({"tasks": [task]} if by_name else {}))
    until(lambda: os.listdir(f"{home.store.folder('worker-3333')}/wake"))
    client.notify("notifications/cancelled", {"requestId": key})
    home.finish(task)
    found = client.call("wait")
    assert [r["task"] for r in found["structuredContent"]["results"]] == [task]
    assert found["structuredContent"]["earlier"].startswith(f"The call you cancelled left: {task}")
    until(lambda: home.store.owed("boss"), [])
    assert not [m for m in client.seen if m.get("id") == key]
    client.close()


def test_calls_cancelled_at_any_moment_lose_and_double_nothing(home, mcp):
    client, rng, told = mcp(), random.Random(5), []
    tasks = [home.give() for _ in range(40)]
    posted, cancelled = {}, set()
    for task in tasks:
        for _ in range(2):
            key = client.post_call("wait", timeout_s=20)
            posted[key] = task
            if rng.random() < 0.7:
                select.select([], [], [], rng.uniform(0, 0.01))
                client.notify("notifications/cancelled", {"requestId": key})
                cancelled.add(key)
        home.finish(task)
        select.select([], [], [], rng.uniform(0, 0.01))
    while True:
        found = client.call("wait", timeout_s=20)["structuredContent"]
        if found["outcome"] == "nothing":
            break
    for message in client.seen:
        data = message.get("result", {}).get("structuredContent") or {}
        told += [result["task"] for result in data.get("results", ())]
    assert sorted(told) == sorted(tasks)
    client.close()


def test_a_server_whose_view_of_a_result_fails_leaves_it_to_the_next_call(home, monkeypatch):
    task = home.owe()
    boss = cao.Orchestrator(home.store, cao.Caller("boss"))
    monkeypatch.setattr(cao, "view_result", lambda *_: 1 / 0)
    made = cao.McpServer(home.store, 0, 1)
    with pytest.raises(ZeroDivisionError):
        made.make_call(boss).wait(None, 5.0)
    claim = home.store.take_result("boss", task)
    assert claim
    claim.release()


def test_of_many_files_and_commits_a_tool_names_the_first_and_how_many(home):
    names = [f"file {n}" for n in range(cao.NAMES_SHOWN + 7)]
    changed = {"branch": "b", "diffstat": "", "dirty": True, "files": names, "commits": ["one"]}
    result = cao.Result("worker-3333.k1", "worker-3333", "done", worktree=changed)
    shown = cao.view_result(home.store, result, 100)["worktree"]
    assert shown == {**changed, "files": names[: cao.NAMES_SHOWN], "files_cut": len(names)}
    assert len(changed["files"]) == len(names)


def test_a_result_that_comes_as_the_wait_begins_is_not_waited_for(home, monkeypatch):
    task = home.give("boss")
    given = home.store.was_given

    def ends_meanwhile(name: str) -> bool:
        if not home.store.has_result(name):
            home.finish(name, "boss", "done")
            home.store.poke("worker-3333")
        return given(name)

    def sleep(wake: cao.Wake, _: float) -> None:
        assert cao.readable([wake.fd], 0), "it sleeps, though the result is there"

    monkeypatch.setattr(home.store, "was_given", ends_meanwhile)
    monkeypatch.setattr(cao.Wake, "wait", sleep)
    boss = cao.Orchestrator(home.store, cao.Caller("boss"))
    assert [result.task for result in boss.await_tasks([task], 60).results] == [task]


def test_after_an_answer_a_task_that_has_ended_by_then_is_named_to_wait_for(home, monkeypatch):
    task = home.owe()
    boss = cao.Orchestrator(home.store, cao.Caller("boss"))
    done = {"session": home.store.session_of(task), "answered": "red"}
    monkeypatch.setattr(cao.Orchestrator, "answer", lambda *_: dict(done))
    call = cao.McpServer(home.store, 0, 1).make_call(boss)
    said = cao._call_answer(call, {"session": done["session"], "answer": "red"})
    assert said.data["next"] == f'Call wait with tasks ["{task}"].'


# ---- telling, in a conversation ----

RESUMES = """
PROVIDERS["demo"] = PROVIDERS["demo"]._replace(resumes=True)
"""
LATE = """
hook = DemoAgent.hook
def late(self, name, **fields):
    time.sleep(5 if "Result of" in str(fields.get("prompt")) else 0)
    hook(self, name, **fields)
DemoAgent.hook = late
"""
TRANSCRIPT = """
named, start = DemoAgent.hook, DemoAgent.run
def with_transcript(self, name, **fields):
    named(self, name, transcript_path=f"{self.launch_folder}/conversation.jsonl", **fields)
def announced(self, prompt):
    self.hook("SessionStart")
    return start(self, prompt)
DemoAgent.hook, DemoAgent.run = with_transcript, announced
"""


def struck_supervisor(place, at: str, more: str = "") -> tuple[str, str]:
    """Return a supervisor whose runner was killed while it told it a result, at the first
    change of a file that has a text, and the result's task. LATE: killed after its CLI took
    it, before the CLI's hook has said so."""
    put_loader(place, RESUMES + more)
    fired = plan(place, at, "hold" if LATE in more else "kill")
    boss = idle_session(place)
    task = place.ok("assign", "demo", "demo: say for the boss", CAO_SESSION=boss).strip()
    until(fired.exists)
    if LATE in more:
        until(lambda: heard(place, boss, task))
        kill_runner(place, boss)
    until(lambda: place.store.is_locked(boss), False)
    (place.home / "fault.json").unlink()
    place.ok("ls", "--all")  # who looks buries it
    assert place.state(boss)["state"] == "ended"
    return boss, task


def heard(place, boss: str, task: str) -> list[str]:
    """Return the prompts that a supervisor's CLI took and that tell it of a task."""
    return [p for p in conversation(place, boss) if f"Result of {task} (" in p]


@pytest.mark.tmux
@pytest.mark.parametrize(
    ("step", "more", "before"),
    [("typed", "", 0), ("submitted", LATE, 1)],
    ids=["before Enter", "before the event"],
)
def test_a_supervisor_killed_before_it_was_known_to_have_a_result_gets_it_again_marked(
    place, resuming, step, more, before
):
    boss, task = struck_supervisor(place, f'"event": "{step}", "messages": ["demo-', more)
    assert place.store.owed(boss) == [task]
    assert len(heard(place, boss, task)) == before
    put_loader(place, RESUMES)
    again = resuming.assign(boss, "demo: say back", cao.TaskOptions())
    place.ok("wait", again)  # its answer is what it says of the result: that is for its task
    assert place.result(again)["turns"][0] == "back"
    found = until(lambda: heard(place, boss, task)[before:])
    assert found[0].startswith("[perhaps for the second time]\nResult of")
    until(lambda: place.store.owed(boss), [])
    assert place.ok("handoff", boss, "demo: say more") == "more\n"
    assert len(heard(place, boss, task)) == before + 1


@pytest.mark.tmux
def test_a_supervisor_killed_as_it_notes_that_a_result_was_taken_does_not_get_it_again(
    place, resuming
):
    """Its CLI's event is there, though its runner has not said so."""
    boss, task = struck_supervisor(place, "/out/demo-")
    assert len(heard(place, boss, task)) == 1
    assert place.store.owed(boss) == []
    put_loader(place, RESUMES)
    again = resuming.assign(boss, "demo: say back", cao.TaskOptions())
    assert place.ok("wait", again) == "back\n"
    assert len(heard(place, boss, task)) == 1


@pytest.mark.tmux
def test_the_transcript_decides_whether_a_result_was_taken(place, resuming):
    boss, task = struck_supervisor(
        place, '"event": "submitted", "messages": ["demo-', TRANSCRIPT + LATE
    )
    assert len(heard(place, boss, task)) == 1
    assert place.store.owed(boss) == [task]
    put_loader(place, RESUMES + TRANSCRIPT)
    again = resuming.assign(boss, "demo: say back", cao.TaskOptions())
    assert place.ok("wait", again) == "back\n"
    until(lambda: place.store.owed(boss), [])
    assert len(heard(place, boss, task)) == 1


@pytest.mark.tmux
@pytest.mark.parametrize("step", ["typed", "submitted"])
def test_a_supervisor_that_is_never_resumed_leaves_its_result_to_who_knows_its_name(place, step):
    boss, task = struck_supervisor(place, f'"event": "{step}", "messages": ["demo-')
    assert place.ok("wait", task) == "for the boss\n"
    found = json.loads(place.ok("wait", "--json", CAO_SESSION=boss))
    assert [r["task"] for r in found["results"]] in ([task], [])  # its CLI may have said so


# ---- faults that were found ----


@pytest.mark.tmux
def test_a_task_of_a_run_that_was_killed_is_lost_though_its_session_goes_on(place, resuming):
    """R3: the next run of the session is at work, and does not know of it."""
    put_loader(place, RESUMES)
    session, first = assign(place, "demo: sleep 60")
    place.until_state(session, "working")
    kill_runner(place, session)
    until(lambda: place.store.is_locked(session), False)
    second = resuming.assign(session, "demo: sleep 60", cao.TaskOptions())
    place.until_state(session, "working")
    done = place.run("wait", first, "--json", "--timeout", "20s", timeout_s=40)
    assert [r["outcome"] for r in json.loads(done.stdout)["results"]] == ["lost"]
    assert place.store.load_result(second) is None


@pytest.mark.tmux
def test_the_words_of_a_failed_check_fit_into_a_full_inbox(place):
    """R8. A draft in the input line holds all messages back."""
    go_on = place.work / "go-on"
    check = f"sh -c 'until [ -e {go_on} ]; do sleep 0.05; done; exit 1'"
    place.profile("checked", f'---\nprovider: demo\ncheck: "{check}"\ncheck_retries: 1\n---\n')
    session, task = assign(place, "demo: say done", "checked")
    until(lambda: [e for e in place.log(session) if e["event"] == "turn_ended"])
    place.tmux("send-keys", "-t", f"={session}:", "-l", "a draft")
    until(lambda: place.screen(session).rstrip().endswith("demo> a draft"))
    for number in range(100):
        place.store.put(cao.Message(f"{number:020d}-m", "message", me(place), session, "hello"))
    assert place.run("send", session, "one more").returncode == 1
    go_on.touch()
    until(lambda: len(place.store.waiting(session)), 101)
    assert place.store.is_locked(session)
    place.tmux("send-keys", "-t", f"={session}:", "C-u")
    done = place.run("wait", task, "--json", "--timeout", "60s")
    (result,) = json.loads(done.stdout)["results"]
    assert (result["outcome"], result["reason"]) == ("failed", "check_failed")


@pytest.mark.tmux
def test_a_resume_whose_start_fails_is_undone(place, resuming, monkeypatch):
    """R9."""
    session, task = assign(place, "demo: say first")
    place.ok("wait", task)
    place.ok("stop", session)
    until(lambda: place.store.is_locked(session), False)
    before = {k: v for k, v in place.state(session).items() if k != "evidence"}

    def fails(*_args, **_more):
        raise cao.CaoError("no room for a terminal")

    monkeypatch.setattr(resuming, "start", fails)
    with pytest.raises(cao.CaoError, match="no room"):
        resuming.assign(session, "demo: say again", cao.TaskOptions())
    assert place.store.owed("person") == []
    assert place.store.waiting(session) == []
    assert place.live() == []
    assert {k: v for k, v in place.state(session).items() if k != "evidence"} == before
    monkeypatch.undo()


# ---- commands that wait ----


@pytest.mark.tmux
@pytest.mark.parametrize("where", ["/dev/full", "pipe"])
@pytest.mark.parametrize("verb", ["handoff", "run"])
def test_a_handoff_whose_answer_could_not_be_printed_is_still_owed(place, verb, where):
    """R2."""
    argv = [*CAO, verb, "demo", "demo: sleep 0.3; say precious"]
    if where == "pipe":
        read, write = os.pipe()
        os.close(read)
    else:
        write = os.open(where, os.O_WRONLY)
    done = subprocess.run(argv, check=False, stdout=write, stderr=subprocess.PIPE, text=True,
                          stdin=subprocess.DEVNULL, env=place.env, cwd=place.work,
                          timeout=60)  # fmt: skip
    os.close(write)
    assert "Traceback" not in done.stderr
    assert done.returncode != 0
    found = json.loads(place.ok("wait", "--json", "--timeout", "20s"))
    assert [r["answer"] for r in found["results"]] == ["precious"]
    assert json.loads(place.ok("wait", "--json"))["results"] == []


@pytest.mark.tmux
@pytest.mark.parametrize("verb", ["handoff", "run"])
@pytest.mark.parametrize("when", STRUCK)
def test_a_handoff_killed_just_before_or_after_it_prints_has_lost_nothing(place, verb, when):
    code = f"import os, sys, cao; {STRUCK[when]}; cao.main(sys.argv[1:])"
    argv = [sys.executable, "-c", code, verb, "demo", "demo: say precious"]
    env = {**place.env, "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(argv, check=False, capture_output=True, text=True, env=env,
                          stdin=subprocess.DEVNULL, cwd=place.work, timeout=60)  # fmt: skip
    assert done.returncode == 137, done.stderr
    assert done.stdout == ("" if when == "before it writes" else "precious\n")
    found = json.loads(place.ok("wait", "--json", "--timeout", "20s"))
    assert [r["answer"] for r in found["results"]] == ["precious"]


@pytest.mark.tmux
def test_a_message_that_a_run_has_printed_was_told(place):
    done = place.run("run", "demo", "demo: tell half way; sleep 0.5; say all")
    assert (done.stdout, done.stderr.count("half way")) == ("all\n", 1)
    found = json.loads(place.ok("wait", "--json", "--timeout", "0s"))
    assert (found["messages"], found["results"]) == ([], [])


# ---- giving ----


@pytest.mark.parametrize("mode", ["kill", "fail"])
def test_a_giver_that_breaks_at_any_step_leaves_the_next_wait_undisturbed(home, mode):
    at = 0
    while at < 100:
        at += 1
        home.number += 1
        task = f"worker-3333.g{at}"
        key = f"{home.number:020d}-{task}"
        message = cao.Message(key, "task", "boss", "worker-3333", "x", 1.0, task)
        home.marker.unlink(missing_ok=True)
        pid = os.fork()
        if not pid:
            Faults(home.store.home, at, mode, str(home.marker)).arm()
            try:
                home.store.give(message)
            except cao.CaoError:
                os._exit(1)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        where = home.marker.read_text() if home.marker.exists() else ""
        given = any(m.task == task for m in home.store.waiting("worker-3333"))
        left = [n for n in os.listdir(f"{home.store.folder('boss')}/out") if task in n]
        assert home.store.owed("boss") == ([task] if given else []), (at, where)
        if status != 137:
            assert given == (status == 0), (at, where)
            assert left == ([task] if given else []), (at, where)
        home.store.withdraw("worker-3333", key)
        found = home.read()
        assert (found["told"], found["running"]) == ([], []), (at, where)
        assert "nothing is open" in found["said"]
        if not where:
            break
    assert at > 8


# ---- cleaning ----


def grow_old(home, days: float) -> None:
    """Let all that is in the home be so old."""
    at = time.time() - days * 86400
    for path in sorted(home.place.home.rglob("*"), reverse=True):
        if not path.is_symlink():
            os.utime(path, (at, at))


def test_clean_keeps_what_somebody_is_to_be_told_until_he_does_not_come_for_it(home):
    task = home.owe()
    home.write("hello")
    for days, older in ((0, "0s"), (3, "1d"), (13, "0s")):
        grow_old(home, days)
        home.place.ok("clean", "--older", older, CAO_CLIENT="other")
        home.place.ok("clean", "--older", older, CAO_CLIENT="other")
        assert home.store.owed("boss") == [task], days
        assert [m.text for m in home.store.waiting("boss")] == ["hello"]
        assert home.place.ok("wait", task, CAO_CLIENT="other") == f"the answer to {task}.\n"
    grow_old(home, 15)
    home.place.ok("clean", CAO_CLIENT="other")
    assert "boss" not in home.store.all_sessions()  # it does not come back
    assert "worker-3333" in home.store.all_sessions()  # of use to somebody when it was looked at
    home.place.ok("clean", CAO_CLIENT="other")
    assert "worker-3333" not in home.store.all_sessions()


def test_clean_removes_both_once_the_result_was_told(home):
    home.owe()
    assert home.read()["told"]
    home.place.ok("clean", "--older", "0s", CAO_CLIENT="other")
    assert {"boss", "worker-3333"}.isdisjoint(home.store.all_sessions())


def test_a_wait_ends_when_others_have_read_the_result_and_cleaned_it_away(home):
    task = home.give()
    slow = home.start("wait", task, "--timeout", "20s")
    folder = home.place.home / "wake"
    until(lambda: [name for name in os.listdir(folder) if name.startswith(f"{slow.pid}-")])
    os.kill(slow.pid, signal.SIGSTOP)
    home.finish(task)
    assert home.read()["told"] == [task]
    home.place.ok("clean", "--older", "0s", CAO_CLIENT="other")
    os.kill(slow.pid, signal.SIGCONT)
    _, said = slow.communicate(timeout=60)
    assert (slow.returncode, f"there is no task {task}" in said.decode()) == (3, True), said


@pytest.mark.parametrize("fresh", ["out", "inbox/new", "result"])
def test_a_client_made_long_ago_to_which_something_came_just_now_is_kept(home, fresh):
    """A shell's client has no lock, and its own folder does not change."""
    task = home.owe()
    home.write("hello")
    grow_old(home, 30)
    path = (
        home.store.result_path(task)
        if fresh == "result"
        else f"{home.store.folder('boss')}/{fresh}"
    )
    os.utime(path)
    home.place.ok("clean", CAO_CLIENT="other")
    assert home.store.owed("boss") == [task]
    assert home.read()["told"] == [task]


def test_an_ended_supervisor_that_was_not_told_expires_too(home):
    os.mkdir(home.store.folder("super-4444"))
    home.store.create(cao.Session("super-4444", "agent"))
    home.store.save_state("super-4444", {"state": "ended", "since": 1.0, "why": "stopped"})
    task = home.owe("super-4444")
    home.place.ok("clean", "--older", "0s", CAO_CLIENT="other")
    assert home.store.owed("super-4444") == [task]
    grow_old(home, 15)
    for _ in range(2):
        home.place.ok("clean", CAO_CLIENT="other")
    assert {"super-4444", "worker-3333"}.isdisjoint(home.store.all_sessions())
