"""What the machine refuses for a while, stops, or turns back: it ends no session."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import cao
from conftest import CAO, McpClient, until
from test_nothing_lost import put_loader

HERE = Path(__file__).resolve().parent


def idle_session(place, **env):
    """Return a session that has done its task, its result fetched."""
    found = json.loads(place.ok("handoff", "demo", "demo: say hello", "--json", **env))
    session = found["results"][0]["session"]
    place.until_state(session, "idle")
    return session


def runner_of(place, session) -> int:
    return int(place.tmux("list-panes", "-t", f"={session}:", "-F", "#{pane_pid}"))


def stop(pid) -> None:
    """Stop a process, and wait until it is."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")


# ---- one system call of the runner fails ----


def can_trace() -> bool:
    """Tell whether strace is there, and may trace."""
    argv = ["strace", "-o", "/dev/null", "true"]
    return bool(shutil.which("strace")) and not subprocess.run(argv, check=False).returncode


@pytest.mark.skipif(not can_trace(), reason="needs strace")
@pytest.mark.parametrize(
    ("call", "error", "first", "every"),
    [
        ("open", "EMFILE", 120, 150),
        ("open", "EIO", 181, 190),
        ("write", "ENOSPC", 3, 40),
        ("fsync", "EIO", 1, 2),
        ("rename", "ENOSPC", 4, 4),
        ("link", "ENOSPC", 1, 1),
        ("unlink", "EIO", 3, 9),
        ("write", "EINTR", 9, 60),
        ("poll", "ENOMEM", 5, 15),
    ],
)
def test_a_system_call_of_the_runner_that_fails_ends_no_worker(bare, call, error, first, every):
    argv = [sys.executable, HERE / "syscalls.py", "--calls", call, "--errors", error]
    argv += ["--first", str(first), "--every", str(every), "--seconds", "100"]
    env = {**os.environ, "TMPDIR": str(bare.work)}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=150, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- a process is stopped for a while ----


@pytest.mark.parametrize("who", ["runner", "cli", "tmux", "caller"])
def test_a_process_that_is_stopped_for_a_while_costs_nothing(place, who):
    caller = place.start("handoff", "demo", "demo: sleep 3; say fine")
    (session,) = until(place.live, lambda names: len(names) == 1)
    place.until_state(session, "working")
    pid = {
        "runner": lambda: runner_of(place, session),
        "cli": lambda: place.state(session)["group"]["id"],
        "tmux": lambda: int(place.tmux("display-message", "-p", "#{pid}")),
        "caller": lambda: caller.pid,
    }[who]()
    os.kill(pid, signal.SIGSTOP)  # tmux continues a runner, and a runner its CLI, at once
    began = time.monotonic()
    until(lambda: time.monotonic() - began > 4)
    os.kill(pid, signal.SIGCONT)
    assert caller.communicate(timeout=60)[0] == b"fine\n"
    assert place.ok("handoff", session, "demo: say again") == "again\n"


# ---- locks ----


def test_a_resume_that_is_slow_keeps_no_other_from_launching(place, resuming):
    session = idle_session(place)
    place.ok("stop", session)
    kept = idle_session(place)  # and with it the tmux server
    server = int(place.tmux("display-message", "-p", "#{pid}"))
    stop(server)
    try:
        argv = (session, "demo: say resumed", cao.TaskOptions())
        thread = threading.Thread(target=resuming.assign, args=argv)
        thread.start()
        until(lambda: running(place, "kill-session"))  # it waits for tmux
        lock = place.store.lock(f"{place.home}/lock")
        assert lock is not None
        os.close(lock)
    finally:
        os.kill(server, signal.SIGCONT)
    thread.join(60)
    assert [r.answer for r in resuming.await_tasks(None, 60).results] == ["resumed"]
    assert sorted(place.live()) == sorted([session, kept])


def test_a_wait_for_a_lock_says_for_whom(place):
    lock = place.store.lock(f"{place.home}/lock")
    waiting = place.start("assign", "demo", "hello")
    said = waiting.stderr.readline().decode()
    assert f"waiting for process {os.getpid()} to let go of {place.home}/lock" in said
    os.close(lock)
    assert waiting.wait(60) == 0


# ---- clocks ----

MOVED = """
import time
real_time, real_time_ns = time.time, time.time_ns

def moved():
    try:
        with open({path!r}) as file:
            return float(file.read() or 0)
    except OSError:
        return 0.0

time.time = lambda: real_time() + moved()
time.time_ns = lambda: real_time_ns() + int(moved() * 1e9)
"""


@pytest.fixture
def clock(place):
    """Return what sets the clock of all runners, so many seconds from the real one."""
    path = place.folder / "clock"
    (code,) = place.home.glob("lib/*/cao.py")
    real = f"exec(compile(open({cao.__file__!r}).read(), 'cao', 'exec'))"
    source = MOVED.format(path=str(path)) + real
    code.unlink()  # it is linked to that of other tests
    code.write_text(source)

    def move(seconds: float) -> None:
        path.write_text(str(seconds))

    return move


@pytest.mark.parametrize("moved", [7 * 86400.0, -3600.0])
def test_a_clock_that_is_set_makes_nothing_due_and_delays_nothing(place, clock, moved):
    session = idle_session(place, CAO_IDLE_CLOSE_S="60")
    pid = runner_of(place, session)
    clock(moved)
    place.store.poke(session)
    began = time.monotonic()
    found = json.loads(place.ok("handoff", session, "demo: sleep 0.2; say fine", "--json"))
    took = time.monotonic() - began
    (result,) = found["results"]
    assert (result["answer"], runner_of(place, session)) == ("fine", pid)
    assert 0.2 <= result["seconds"] <= took
    question = place.ok("assign", session, "demo: permit it?|Yes|No; say yes").strip()
    place.until_state(session, "asking")
    assert "-" not in json.dumps(json.loads(place.ok("show", session, "--json"))["for_s"])
    place.ok("answer", session, "yes")
    assert "yes" in place.ok("wait", question)


def test_messages_keep_their_order_though_the_clock_is_set_back(store, monkeypatch):
    ids = []
    for hour in (3, 2, 9, 1):
        monkeypatch.setattr(time, "time_ns", lambda hour=hour: hour * 3600 * 10**9)
        ids.append(store.new_id("worker-2222", "x"))
        store.put(
            cao.Message(ids[-1], "message", "boss-2222", "worker-2222", str(hour), hour * 3600.0)
        )
        store.put_event(store.folder("worker-2222"), json.dumps({"hour": hour}))
    assert [message.text for message in store.waiting("worker-2222")] == ["3", "2", "9", "1"]
    assert [said["hour"] for _, _, said in store.events("worker-2222")] == [3, 2, 9, 1]


def test_a_launch_is_as_old_as_no_clock_can_make_it(verbs, place, monkeypatch):
    """One whose launcher was killed is found lost after the same time, whatever the clock says."""
    state = {**cao.fresh_state(), "launcher": {"id": 1, "start": "none"}}
    name = place.store.new_folder("demo")
    place.store.create(cao.Session(name, "agent"))
    assert verbs._is_coming(name, state)
    for since in (time.time() - 1e6, time.time() + 1e6):
        assert verbs._is_coming(name, {**state, "since": since})
    for clock in (-cao.STARTING_S - 1, 1e6):  # of long ago, or of before the machine started
        assert not verbs._is_coming(name, {**state, "clock": time.monotonic() + clock})


@pytest.fixture
def store(tmp_path):
    tmp_path.chmod(0o700)
    made = cao.Store(str(tmp_path / "home"))
    for name in ("boss-2222", "worker-2222"):
        os.mkdir(made.folder(name))
        made.create(cao.Session(name, "client"))
    return made


# ---- few descriptors, or many ----


def test_a_wake_works_on_a_descriptor_that_select_does_not_take(store):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 3000:
        pytest.skip("so many files may not be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (3000, hard))
    filler = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    wake = cao.Wake(store)
    try:
        assert wake.fd > 1023
        wake.poke()
        began = time.monotonic()
        wake.wait(30)
        assert time.monotonic() - began < 20
    finally:
        wake.close()
        for fd in filler:
            os.close(fd)


def test_at_the_limit_of_open_files_a_call_says_so_and_the_others_go_on(place):
    task = place.ok("assign", "demo", "demo: sleep 4; say late").strip()
    script = place.folder / "few"
    script.write_text(f"#!/bin/sh\nulimit -n 64\nexec {' '.join(CAO)} mcp\n")
    client = McpClient.__new__(McpClient)
    client.process = subprocess.Popen(
        ["sh", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        cwd=place.work, env=place.env,
    )  # fmt: skip
    place.started.append(client.process)
    client.buffer, client.seen, client.next_id = b"", [], 0
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x"}}
    client.request("initialize", hello)
    keys = [client.post_call("wait", tasks=[task], timeout_s=30) for _ in range(100)]
    texts = [client.answer(key)["result"]["content"][0]["text"] for key in keys]
    refused = [text for text in texts if "ulimit -n" in text]
    assert refused
    assert all("late" in text for text in texts if text not in refused)
    assert client.call("list_sessions")["content"]
    until(lambda: os.listdir(place.home / "wake"), lambda names: len(names) < 5)


def test_waits_with_few_descriptors_tell_all_that_waits_each_once(place):
    place.ok("ls", CAO_CLIENT="boss")
    task = place.ok("assign", "demo", "demo: say the answer", CAO_CLIENT="boss").strip()
    until(lambda: place.store.load_result(task))
    words = [f"letter {n}." for n in range(70)]
    for n, word in enumerate(words):
        place.store.put(cao.Message(f"{n:02d}-x", "message", "worker-2222", "boss", word))
    script = place.folder / "few"
    script.write_text(f"#!/bin/sh\nulimit -n 40\nexec {' '.join(CAO)} mcp\n")
    client = McpClient.__new__(McpClient)
    client.process = subprocess.Popen(
        ["sh", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        cwd=place.work, env={**place.env, "CAO_CLIENT": "boss"},
    )  # fmt: skip
    place.started.append(client.process)
    client.buffer, client.seen, client.next_id = b"", [], 0
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x"}}
    client.request("initialize", hello)
    told = []
    while place.store.waiting("boss") or place.store.owed("boss"):
        found = client.call("wait", timeout_s=5)
        assert not found.get("isError"), found
        data = found["structuredContent"]
        told += [message["text"] for message in data.get("messages", ())]
        told += [result["answer"] for result in data.get("results", ())]
    assert sorted(told) == sorted([*words, "the answer"])
    assert len(os.listdir(f"/proc/{client.process.pid}/fd")) < 24
    assert client.call("list_sessions")["content"]


def test_a_runner_with_few_descriptors_delivers_all_that_waits_each_once(place):
    session = idle_session(place)
    place.ok("assign", session, "demo: sleep 3")
    place.until_state(session, "working")
    resource.prlimit(runner_of(place, session), resource.RLIMIT_NOFILE, (40, 40))
    words = [f"letter {n}." for n in range(60)]
    for n, word in enumerate(words):
        place.store.put(cao.Message(f"{n:02d}-x", "message", "boss-2222", session, word))
    until(lambda: place.store.waiting(session), [])
    path = place.home / "sessions" / session / "launch" / "conversation.jsonl"
    assert re.findall(r"letter \d+\.", path.read_text()) == words


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), KeyboardInterrupt()],
                         ids=lambda error: type(error).__name__)  # fmt: skip
@pytest.mark.parametrize(("call", "nth"), [
    ("take_message", 3), ("take_result", 1), ("take_result", 2), ("load_result", 2),
])  # fmt: skip
def test_a_wait_that_breaks_leaves_all_to_the_next(store, monkeypatch, call, nth, error):
    store.create(cao.Session("worker-2222", "agent"))
    tasks = [f"worker-2222.k{n}" for n in (2, 3)]
    for n, task in enumerate(tasks):
        store.give(cao.Message(f"{n}-{task}", "task", "boss-2222", "worker-2222", "x", 1.0, task))
        store.save_result(cao.Result(task, "worker-2222", "done", "x", ended_at=1.0), "boss-2222")
    for n in range(4):
        store.put(cao.Message(f"{n}-x", "message", "worker-2222", "boss-2222", "x"))
    boss, left, real = cao.Orchestrator(store, cao.Caller("boss-2222")), [nth], getattr(store, call)

    def broken(*args):
        left[0] -= 1
        if not left[0]:
            raise error
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(store, call, broken)
        with pytest.raises(type(error)):
            boss.await_tasks(None, 5)
    waited = boss.await_tasks(None, 5)
    assert (len(waited.messages), len(waited.results), waited.running) == (4, 2, ())
    waited.release()


def test_a_call_that_gets_no_thread_says_so_and_the_next_one_works(place, monkeypatch):
    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    out, into = os.pipe()
    server = cao.McpServer(place.store, 0, into)
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x"}}
    call = {"jsonrpc": "2.0", "method": "tools/call", "params": {"name": "list_sessions"}}
    try:
        server.handle({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello})
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            server.handle({**call, "id": 2})
        server.handle({**call, "id": 3})
        server.threads[0].join()
        answers = [json.loads(line) for line in os.read(out, 1 << 16).splitlines()]
    finally:
        os.close(out)
        os.close(into)
    assert [answer["id"] for answer in answers] == [1, 2, 3]
    assert "a new thread" in answers[1]["error"]["message"]
    assert "result" in answers[2]
    assert server.running == {}


def test_a_call_whose_answer_is_no_json_gets_an_error_and_what_it_tells_stays_owed(place):
    store = place.store
    path = f"{store.home}/owed"
    store.write(path, "")
    claim = store._take("", path)
    tool = cao.TOOLS["list_sessions"]._replace(
        call=lambda *_: cao.Answer("", {"seconds": float("inf")}, claims=(claim,))
    )
    out, into = os.pipe()
    server = cao.McpServer(store, 0, into)
    server.version, server.tools = cao.LEGACY_VERSIONS[-1], {"list_sessions": tool}
    try:
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
        server.handle({**call, "params": {"name": "list_sessions"}})
        server.threads[0].join()
        assert cao.readable([out], 0)
        answer = json.loads(os.read(out, 1 << 16))
    finally:
        os.close(out)
        os.close(into)
    assert (answer["id"], answer["error"]["code"]) == (1, -32603)
    again = store._take("", path)
    assert again
    again.release()


# ---- tmux ----


def running(place, word="") -> list[str]:
    """Return the tmux processes of a place that have a word on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text().split("\0")
        except (OSError, UnicodeDecodeError):
            continue
        if words[0].endswith("/tmux") and f"{place.home}/tmux.conf" in words:
            found += [path.parent.name] if not word or word in words else []
    return found


@pytest.mark.parametrize("command", ["show", "handoff", "stop"])
def test_the_next_command_of_anybody_has_a_removed_socket_made_again(place, command):
    session = idle_session(place)
    (socket,) = (place.folder / "tmux").glob("tmux-*/*")
    until(lambda: len(running(place)), 1)  # for a moment a server has a child that looks like it
    socket.unlink()
    if command == "show":
        assert "* hello" in place.ok("show", session)
    elif command == "handoff":
        assert place.ok("handoff", "demo", "demo: say new") == "new\n"
    else:
        assert place.ok("stop", session) == f"{session}: ended\n"
        assert place.pids(f"CAO_SESSION={session}\0") == []
        return
    until(lambda: len(running(place)), 1)
    assert session in place.tmux("list-sessions")


def test_a_session_that_ends_during_a_look_at_it_does_not_fail_a_wait(place, verbs, monkeypatch):
    session = idle_session(place)
    pane = verbs.tmux.pane_of(session)
    place.tmux("kill-session", "-t", f"={session}")
    assert verbs.render_progress(session).startswith(session)
    monkeypatch.setattr(cao.Tmux, "pane_of", lambda *_: pane)
    monkeypatch.setattr(verbs, "state_of", lambda _: {"state": "idle", "since": 0.0})
    assert verbs.read_session(session, 5)["session"] == session


# ---- an automatic answer ----


@pytest.mark.parametrize("kind", ["screen", "permission"])
def test_an_answer_of_our_own_that_fails_is_given_a_few_times_and_then_a_persons(kind):
    runner = cao.Runner.__new__(cao.Runner)
    runner.row = SimpleNamespace(trusts=("Do you trust this?", "1"), asks_own=True)
    runner.begun, runner._screen = False, lambda: "\n╭──╮\n│ Do you trust this? │\n╰──╯"
    runner.launch = SimpleNamespace(profile=SimpleNamespace(trust=True))
    runner._dialog_shows = lambda question: True
    runner.tried, pressed = [], []
    runner._press = lambda question, key: pressed.append(key)
    text = {"screen": "Do you trust this?", "permission": "mcp__cao__wait"}[kind]
    for number in range(20):  # a dialog that is drawn anew is a new question
        name = "same" if kind == "permission" else f"id{number}"
        runner._auto_answer(cao.Question(name, kind, text))
    assert pressed == ["1"] * 3


GOOD = "touch good"
CUT = "... first 29 lines hidden (Ctrl+O to show) ..."
FAKED = ("# x", "╭────╮", f"│ {GOOD} │", "╰────╯", "Allow execution of [Shell]?")


def runner_that_asks(cli, payloads):
    """Return a Runner with the open questions of these hooks, each under its name; none runs."""
    runner = cao.Runner.__new__(cao.Runner)
    runner.name, runner.handled, runner.row = "w-2222", {"read"}, cao.PROVIDERS[cli]
    runner.questions, runner.subjects = {}, {}
    for name, payload in payloads.items():
        event = (runner.row.read_event or cao.read_hook)(payload)
        runner.questions[name] = cao.Question(name, "permission", event.text, where="keys")
        runner.subjects[name] = cao.dialog_subject(payload)
    runner.store = SimpleNamespace(events=lambda _: [])
    runner._hook_runs = lambda: False
    return runner


@pytest.mark.parametrize(
    ("drawn", "more", "shows"),
    [
        ((GOOD,), {}, True),
        (("touch", "good"), {}, True),  # a line that is too long goes on in the next
        ((GOOD,), {"other": GOOD}, True),
        ((GOOD,), {"other": "touch go od"}, False),
        ((GOOD,), {"other": f"{GOOD}\x1b]0;\nrm -r x\x07"}, False),
        ((GOOD,), {"tool": "WriteFile"}, False),
        ((GOOD,), {"asks": "To run [Shell], allow access to the following?"}, False),
        ((GOOD,), {"unread": True}, False),
        (("touch gôod",), {"good": "touch gôod"}, True),
        ((GOOD,), {"screen": True}, False),  # a dialog whose hook died
        ((GOOD,), {"alone": True, "hook": True}, True),
        (FAKED, {"alone": True, "hook": True}, False),
        ((f"touch evil # {GOOD}",), {}, False),
        ((CUT, GOOD), {}, False),
        (FAKED, {}, False),
        ((GOOD,), {"alone": True, "unread": True}, False),
        (FAKED, {"alone": True}, True),
    ],
)
def test_of_several_questions_a_dialog_is_that_of_which_it_shows_all(drawn, more, shows):
    def framed(*lines, width=70):
        rule, inside = "─" * (width + 2), [f"│ {line:{width}} │" for line in lines]
        return [f"╭{rule}╮", *inside, f"╰{rule}╯"]

    command = framed(*drawn, width=66)
    tool, asks = more.get("tool", "Shell"), more.get("asks", "Allow execution of [Shell]?")
    screen = framed(f"? {tool}  {GOOD}", *command, asks, "", "● 1. Allow once")
    asked = {"good": more.get("good", GOOD), "evil": more.get("other", f"touch evil # {GOOD}")}
    told = {"notification_type": "ToolPermission", "hook_event_name": "Notification"}
    told["details"] = {"type": "exec", "title": "Confirm Shell Command"}
    runner = runner_that_asks(
        "gemini",
        {
            name: {**told, "details": {**told["details"], "command": command}}
            for name, command in asked.items()
        },
    )
    if more.get("alone"):
        del runner.questions["evil"]
    if more.get("screen"):
        runner.questions["found"] = cao.Question("found", "screen", "Allow execution?")
    runner._hook_runs = lambda: bool(more.get("hook"))
    events = [("read", 0.0, told), ("new", 0.0, told if more.get("unread") else {})]
    runner.store = SimpleNamespace(events=lambda _: events)
    runner._screen = lambda: "\n".join(["what was said before", *framed(GOOD), *screen])
    assert runner._dialog_shows(runner.questions["good"]) is shows


KIMI_OPTIONS = (
    *("▶ 1. Approve once", "  2. Approve for this session", "  3. Reject"),
    *("  4. Reject with feedback", "", "↑/↓ select · 1/2/3/4 choose · ↵ confirm"),
)
RUNS = ("▶ Run this command?", "", "cwd: /tmp", "$ ")


@pytest.mark.parametrize(
    ("drawn", "shown"),
    [
        ((*RUNS[:3], "$ touch good", ""), "good"),
        ((*RUNS[:3], "Dangerous: sudo", "$ touch", "  good", ""), "good"),  # a long line goes on
        ((*RUNS[:3], "$ touch evil #", "· touch good", ""), "evil"),
        ((*RUNS[:3], "$ touch told", "  why", ""), "told"),  # its description
        ((*RUNS[:3], "$ touch good", "", *KIMI_OPTIONS, ""), None),  # the command goes on below
        ((*RUNS[:3], "$ touch other", ""), None),
        (("▶ Approve mcp__cao__wait?", "", "Approve mcp__cao__wait", ""), "own"),
        (("▶ Approve mcp__x__run?", "", "$ touch good", ""), "run"),
        (("▶ Write this file?", "", "/tmp/mcp__cao__wait", ""), None),
    ],
)
def test_of_several_questions_kimis_dialog_is_that_of_which_it_shows_all(drawn, shown):
    told = {"hook_event_name": "PermissionRequest", "tool_name": "Bash"}
    runner = runner_that_asks(
        "kimi",
        {
            "good": {**told, "tool_input": {"command": "touch good"}},
            "evil": {**told, "tool_input": {"command": "touch evil #\ntouch good"}},
            "told": {**told, "tool_input": {"command": "touch told", "description": "why"}},
            "own": {**told, "tool_name": "mcp__cao__wait", "tool_input": {}},
            "run": {**told, "tool_name": "mcp__x__run", "tool_input": {"command": "touch good"}},
        },
    )
    rule = " " + "─" * 70
    lines = [rule, *(f"   {line}".rstrip() for line in (*drawn, *KIMI_OPTIONS)), rule, " mock-1"]
    runner._screen = lambda: "\n".join(["what was said", *lines, ""])
    named = [name for name in runner.questions if runner._dialog_shows(runner.questions[name])]
    assert named == [shown] * bool(shown)
    runner.questions = {"own": runner.questions["own"]}  # nobody is asked about this
    assert runner._dialog_shows(runner.questions["own"]) is (shown == "own")


# ---- files that are not ours ----


@pytest.mark.parametrize("seed", [1])
def test_no_file_of_a_live_home_stops_a_command_or_a_runner(bare, seed):
    argv = [sys.executable, HERE / "fuzz_files.py", "--seed", str(seed), "--rounds", "2"]
    env = {**os.environ, "TMPDIR": str(bare.work)}
    done = subprocess.run([*argv, "--commands", "8"], capture_output=True, text=True,
                          timeout=600, check=False, env=env)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_runner_whose_lock_was_removed_is_not_buried_and_has_it_again(place, verbs):
    session = idle_session(place)
    runner, lock = runner_of(place, session), place.home / "sessions" / session / "lock"
    lock.unlink()
    assert verbs.state_of(session)["state"] == "idle"
    until(lambda: place.store.is_locked(session))
    assert place.ok("handoff", session, "demo: say again") == "again\n"
    assert runner_of(place, session) == runner


def test_a_runner_is_woken_for_its_removed_lock_when_we_let_it_go(place, verbs, monkeypatch):
    session = idle_session(place)
    place.ok("stop", session)  # in its place we are the runner that lives, and has no lock
    lock = place.home / "sessions" / session / "lock"
    until(lambda: place.store.is_locked(session), False)
    place.store.save_state(session, {"state": "idle", "since": 1.0})
    note = cao.dump(cao.note_process(os.getpid()))
    place.store.write(place.store.launch_file(session, "runner.json"), note)
    ours = []

    def poke(_name):
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        ours.append(str(lock) in [os.readlink(link) for link in links if os.path.islink(link)])

    monkeypatch.setattr(verbs.store, "poke", poke)
    assert verbs.state_of(session)["state"] == "idle"
    assert ours == [False]


def test_what_stands_in_the_place_of_a_file_of_ours_is_moved_aside(store):
    for make in (os.mkdir, os.mkfifo, lambda path: os.symlink(path, path)):
        path = f"{store.home}/a-file"
        make(path)
        store.write(path, "text")
        assert store.read_text(path) == "text"
        os.unlink(path)
        make(path)
        with cao.FileLock(path):
            assert store.lock(path) is None
        os.unlink(path)  # the lock's file
    os.mkfifo(f"{store.home}/approvals.jsonl")  # nobody reads it
    asked = {"kind": "permission", "text": "x", "where": "hook"}
    store.note_approval("worker-2222", asked, "yes", "person")


@pytest.mark.parametrize(
    "wrong",
    [
        {"questions": ["text"]}, {"questions": [{"id": "x"}]}, {"questions": {"a": 1}},
        {"group": {"id": "7", "start": 3}}, {"delivery": []}, {"evidence": {"event": {"at": "x"}}},
        {"task": 7}, {"since": "now"}, {"reply": {"id": 1}}, {"exit_status": "1"},
        {"usage": True}, {"usage": {"input": 1}},
    ],
)  # fmt: skip
def test_a_state_of_other_types_is_put_aside(store, wrong):
    good = {"state": "idle", "since": 1.0, "questions": [], "group": None, "delivery": None}
    store.save_state("worker-2222", good)
    assert store.load_state("worker-2222") == good
    store.save_state("worker-2222", {**good, **wrong})
    assert store.load_state("worker-2222") == {}
    assert os.listdir(f"{store.home}/quarantine")


@pytest.mark.parametrize("wrong", [{"usage": True}, {"answer": 7}, {"seconds": "x"}])
def test_a_runs_record_of_other_types_is_put_aside(store, wrong):
    runs = Path(store.home, "flows/nightly/runs")
    runs.mkdir(parents=True)
    good = {"outcome": "done", "answer": "hi", "usage": None}
    for text in (good, {**good, **wrong}):
        (runs / "20261128T095000.175714Z.json").write_text(json.dumps(text))
        (record,) = cao.Schedule(store).runs("nightly")
        assert record["outcome"] == ("done" if text is good else "lost")
    assert os.listdir(f"{store.home}/quarantine")


class LeavesAtOnce(Exception):
    """Raised at the second step of Runner._leave, with what the first has found."""


@pytest.mark.parametrize("order", ["stop", "interrupt"])
def test_a_session_whose_pane_is_gone_before_it_read_the_order_to_stop_is_not_lost(
    order, monkeypatch
):
    def result(_task, _session, outcome, **_fields):
        raise LeavesAtOnce(outcome)

    monkeypatch.setattr(cao, "Result", result)
    runner = SimpleNamespace(
        store=SimpleNamespace(events=lambda _: [("a", 1.0, {"cao": order})]),
        name="demo-aaaa",
        turns=[],
        exit_status=None,
        task_exact="",
        usage=None,
        _note_handed=lambda: None,
        _note_turn=lambda: None,
        _screen=lambda first: "",
        _count_tokens=lambda: None,
    )
    with pytest.raises(LeavesAtOnce, match={"stop": "stopped"}.get(order, "lost")):
        cao.Runner._leave(runner, "lost", "terminal_gone", "no server running")


# An agent whose Stop hook tells of a shell ("bg") or a sub-agent ("ag") that runs on, as Claude
# Code's, and that begins a turn by itself when that shell ends: after Esc or, beside its sub-agent
# (which ends in that turn), of its own accord.
BACKGROUND = """
SHELL_S, REPORT_S = 1.0, 0.5
hook, read_prompt = DemoAgent.hook, DemoAgent.read_prompt
DemoAgent.left, DemoAgent.esc, DemoAgent.again = {}, False, False
def tells(self, name, **fields):
    if name == "Stop":
        self.again = self.again or "again" in fields["last_assistant_message"]
        for word, one, kind in ("bg", "s1", "shell"), ("ag", "a2", "subagent"):
            if word in fields["last_assistant_message"]:
                self.left = {**self.left, one: kind}
        fields["background_tasks"] = [{"id": one, "type": kind, "description": "x"}
                                      for one, kind in self.left.items()]
    hook(self, name, **fields)
    self.esc = self.esc or name == "Interrupt"
    while name == "Stop" and "busy" in fields["last_assistant_message"]:
        self.status("busy")  # as Claude Code's while its sub-agents run
        select.select([], [], [], 0.2)
def ends(self):
    if "s1" in self.left and (self.esc or "a2" in self.left):
        told = "<task-notification><task-id>s1</task-id></task-notification>"
        self.status("busy")
        tells(self, "UserPromptSubmit", prompt=told)
        select.select([], [], [], 1)
        words = "the build has ended" + "; so has mine" * ("a2" in self.left)
        self.left, again = {}, "a2" in self.left and self.again
        if again:
            words, self.left = "the build runs again", {"a2": "subagent", "s3": "shell"}
        tells(self, "Stop", last_assistant_message=words)
        self.status("idle")
        if again:
            tells(self, "UserPromptSubmit", prompt=told.replace("s1", "a2"))
            self.left = {}
            tells(self, "Stop", last_assistant_message="mine has ended")
    return read_prompt(self)
DemoAgent.hook, DemoAgent.read_prompt = tells, ends
"""


# An agent that takes a prompt away from its input line, and does it when it has another.
KEEPS_PROMPTS = """
SUBMIT_S = 0.5
read_prompt = DemoAgent.read_prompt
DemoAgent.kept = []
def keeps(self):
    if self.kept:  # cao has looked at the turn before
        select.select([], [], [], 1.5)
    while not self.kept:
        self.kept.append(read_prompt(self))
        while os.path.exists(self.store.home + "/deaf") and not self.kept[1:]:
            self.show("\\x1b[2J\\x1b[Hdemo> ")
            self.kept.append(read_prompt(self))
    return self.kept.pop(0)
DemoAgent.read_prompt = keeps
"""


def left_a_shell(place):
    """Return a session of which a task has left a shell at work."""
    put_loader(place, BACKGROUND)
    done = json.loads(place.ok("handoff", "demo", "demo: say bg", "--json", "--keep"))
    (result,) = done["results"]
    assert result["background"] == ["shell x"]
    return result["session"]


def test_esc_is_not_forgotten_where_the_cli_begins_a_turn_for_an_earlier_task(place):
    place.env["CAO_INTERRUPTED_S"] = "5"
    session = left_a_shell(place)
    task = place.ok("assign", session, "demo: sleep 60; say second").strip()
    until(lambda: [e["event"] for e in place.log(session)].count("taken"), 2)
    place.tmux("send-keys", "-t", f"={session}:", "Escape")
    result = until(lambda: place.store.load_result(task))
    assert (result.outcome, result.reason) == ("interrupted", "interrupted_by_person")


def test_what_a_task_left_may_end_in_a_turn_for_an_earlier_one(place):
    session = left_a_shell(place)
    (result,) = json.loads(place.ok("handoff", session, "demo: say ag", "--json"))["results"]
    assert (result["answer"], result["turns"]) == ("the build has ended; so has mine", ["ag"])
    assert result["background"] == []


def test_what_begins_in_a_turn_for_an_earlier_task_is_not_the_open_ones(place):
    session = left_a_shell(place)
    done = place.ok("handoff", session, "demo: say ag again", "--json")
    (result,) = json.loads(done)["results"]
    assert (result["answer"], result["turns"]) == ("mine has ended", ["ag again"])


@pytest.mark.parametrize("words", ["second", "first"])
def test_a_text_that_was_given_up_answers_no_later_task(place, words):
    """Kimi Code keeps what is typed while it sums up its conversation, and does it later. The same
    words again are the later task's."""
    put_loader(place, KEEPS_PROMPTS)
    session = place.ok("handoff", "demo", "demo: say ready", "--json", "--keep")
    session = json.loads(session)["results"][0]["session"]
    (place.home / "deaf").touch()
    first = place.ok("assign", session, "demo: say first").strip()
    assert place.run("wait", first).returncode == 1
    assert place.ok("handoff", session, f"demo: say {words}") == f"{words}\n"


def test_no_key_of_a_turn_that_timed_out_reaches_the_cli_that_starts_anew(place):
    put_loader(place, BACKGROUND)
    task = place.ok("assign", "demo", "demo: say ag busy", "--timeout", "4s", "--keep").strip()
    session = task.partition(".")[0]
    second = place.ok("assign", session, "demo: sleep 2; say second").strip()
    first = json.loads(place.run("wait", task, "--json").stdout)["results"][0]
    assert (first["outcome"], first["turns"]) == ("timeout", ["ag busy"])
    assert "was ended" in "".join(first["notes"])
    assert place.ok("wait", second) == "second\n"
    assert [e["event"] for e in place.log(session)].count("restarted") == 1


def test_a_program_ends_with_the_process_groups_below_it(tmp_path):
    """Kimi Code starts its shells so."""
    ticks = "while :; do echo >> {}; sleep 0.1; done"
    code = (
        "import subprocess, sys, time\n"
        "for file in sys.argv[1:]:\n"
        f"    argv = ['sh', '-c', {ticks!r}.format(file)]\n"
        "    subprocess.Popen(argv, start_new_session=True)\n"
        "time.sleep(60)\n"
    )
    files = [tmp_path / "one", tmp_path / "two"]
    argv = [sys.executable, "-c", code, *map(str, files)]
    program = subprocess.Popen(argv, start_new_session=True)
    until(lambda: all(file.exists() for file in files))
    cao.end_program(cao.note_process(program.pid))
    program.wait()
    assert str(tmp_path) not in cao.command_lines()


def test_who_read_an_older_state_buries_no_session_that_starts(place, monkeypatch):
    """Its lock was held, and its state without a launcher, as that was read; then it was free."""
    place.enter(monkeypatch)
    store, me = place.store, cao.Caller("client-x", person=True)
    cao.make_client(store, me.name)
    boss = cao.Orchestrator(store, me)
    name = boss.launch(boss.profile("demo", str(place.work)), str(place.work), cao.TaskOptions())
    fresh = store.load_state(name)
    assert boss.state_of(name)["state"] == "starting"
    older = [{**fresh, "clock": -1e9}]
    load = store.load_state
    looker = cao.Orchestrator(store, me)
    monkeypatch.setattr(store, "load_state", lambda n: older.pop() if older else load(n))
    assert looker.state_of(name)["state"] == "starting"
    assert (older, load(name)["state"]) == ([], "starting")
