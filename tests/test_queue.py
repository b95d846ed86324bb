"""The cap queues: whoever finds no slot waits for one, the oldest first, and nobody for itself."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import cao
from conftest import ROOT, McpClient, until

pytestmark = pytest.mark.tmux


def give(place, text, target="demo", **env):
    """Give a task and return (session, task)."""
    task = place.ok("assign", target, text, **env).strip()
    return task.partition(".")[0], task


def runner_of(place, session) -> int:
    return int(place.tmux("list-panes", "-t", f"={session}:", "-F", "#{pane_pid}"))


def spans(place, sessions) -> list[tuple[float, float]]:
    """Return for each session when its CLI was started and when it had ended."""
    found = []
    for session in sessions:
        at = {entry["event"]: entry["at"] for entry in place.log(session)}
        found.append((at["started"], at.get("ended", 1e12)))
    return found


def most_at_once(place, sessions) -> int:
    known = spans(place, sessions)
    return max(sum(began <= at < ended for began, ended in known) for at, _ in known)


def outcomes(place, *tasks) -> list[str]:
    results = json.loads(place.run("wait", "--all", "--json", *tasks).stdout)["results"]
    return [result["outcome"] for result in results]


def places(place) -> dict[str, int]:
    """Return session -> its place in the queue."""
    views = json.loads(place.ok("ls", "--json"))
    return {v["session"]: v["place"] for v in views if v["state"] == "queued"}


@pytest.mark.parametrize("leaving", [{"state": "idle", "closing": True}, {"state": "ended"}])
def test_while_one_makes_room_no_other_is_asked_to(verbs, monkeypatch, leaving):
    idle = {"state": "idle", "may_close": True}
    states = {"first": {**idle, **leaving, "since": 1.0}, "second": {**idle, "since": 2.0}}
    asked = []
    monkeypatch.setattr(verbs.store, "load_state", states.get)
    monkeypatch.setattr(verbs.store, "put_event", lambda folder, _: asked.append(folder))
    verbs.make_room([*states])
    assert asked == []
    states["first"] = {"state": "working", "since": 1.0}
    verbs.make_room([*states])
    assert [Path(folder).name for folder in asked] == ["second"]


def test_forty_tasks_at_a_cap_of_four_are_done_in_order_four_at_a_time(place, verbs, monkeypatch):
    monkeypatch.setenv("CAO_MAX_SESSIONS", "4")
    tasks = [verbs.assign("demo", f"demo: say {n}", cao.TaskOptions()) for n in range(40)]
    found = verbs.await_tasks(tasks, 600, want_all=True)
    answers = {result.task: (result.outcome, result.answer) for result in found.results}
    assert [answers[task] for task in tasks] == [("done", str(n)) for n in range(40)]
    sessions = [task.partition(".")[0] for task in tasks]
    assert most_at_once(place, sessions) <= 4
    # Where several slots are free, those whose turn it is begin side by side: each is overtaken by
    # fewer than there are slots.
    began = [at for at, _ in spans(place, sessions)]
    overtaken = [sum(later < at for later in began[n:]) for n, at in enumerate(began)]
    assert max(overtaken) < 4
    assert os.listdir(place.home / "queue") == []


INNER = "{do what is in the file INNER (1 bytes)}"


@pytest.mark.parametrize(("cap", "text"), [
    ("2", "demo: " + "assign demo {demo: sleep 0.2; say x}; " * 6 + "gather"),
    ("1", f"demo: handoff demo {INNER}"),
    ("1", "demo: " + f"assign demo {INNER}; " * 3 + "gather"),
], ids=["wide", "deep", "both"])  # fmt: skip
def test_a_supervisor_whose_workers_fill_the_cap_waits_for_nobody(place, cap, text):
    inner, outer = place.folder / "inner", place.folder / "outer"
    inner.write_text("demo: handoff demo {demo: say deep}")
    outer.write_text(text.replace("INNER", str(inner)))
    task = f"do what is in the file {outer} (1 bytes)"
    done = json.loads(place.run("handoff", "demo", task, "--json", CAO_MAX_SESSIONS=cap).stdout)
    (result,) = done["results"]
    assert (result["outcome"], len(result["answer"].split("\n"))) == ("done", text.count("demo {"))


def test_the_receipt_and_the_views_tell_the_place(place):
    cap = {"CAO_MAX_SESSIONS": "1"}
    first, _ = give(place, "demo: sleep 60", **cap)
    place.until_state(first, "working")
    second = json.loads(place.ok("assign", "demo", "x", "--json", **cap))
    third = place.run("assign", "demo", "y", **cap)
    assert (second["state"], second["place"]) == ("queued", 1)
    assert re.fullmatch(r"demo-\w+\.\w+\n", third.stdout)
    assert "place 2 in the queue" in third.stderr
    other = McpClient(place, **cap)
    receipt = other.call("assign", target="demo", task="z")
    other.close()
    assert receipt["structuredContent"]["place"] == 3
    assert "place 3 in the queue" in receipt["content"][0]["text"]
    place.until_state(second["session"], "queued")
    assert re.search(rf"{second['session']} +queued .*place 1 in the queue", place.ok("ls"))
    assert "queued" in place.ok("why", second["session"])
    place.ok("stop", first)
    assert outcomes(place, second["task"], third.stdout.strip()) == ["done", "done"]


def test_who_has_a_slot_or_its_own_conversation_is_told_of_no_place(place):
    session, task = give(place, "hello", CAO_MAX_SESSIONS="1")
    place.ok("wait", task)
    more = place.run("assign", session, "hello", "--json", CAO_MAX_SESSIONS="1")
    assert set(json.loads(more.stdout)) == {"task", "session"}
    assert more.stderr == ""


@pytest.fixture
def queued(place):
    """A session at work, and three that wait behind it: (sessions, tasks)."""
    cap = {"CAO_MAX_SESSIONS": "1"}
    given = [give(place, "demo: sleep 60", **cap)]
    place.until_state(given[0][0], "working")
    given += [give(place, f"demo: say {n}", **cap) for n in "123"]
    for session, _ in given[1:]:
        place.until_state(session, "queued")
    return [session for session, _ in given], [task for _, task in given]


@pytest.mark.parametrize("victim", [0, 1, 2, 3])
def test_whoever_is_killed_the_others_go_on_in_order(place, queued, victim):
    sessions, tasks = queued
    os.kill(runner_of(place, sessions[victim]), signal.SIGKILL)
    if victim:
        until(lambda: place.ok("ls") and place.store.has_result(tasks[victim]))
        place.ok("stop", sessions[0])
    wanted = ["done"] * 4
    wanted[0] = "stopped"
    wanted[victim] = "lost"
    assert sorted(outcomes(place, *tasks)) == sorted(wanted)
    assert place.result(tasks[victim])["outcome"] == "lost"
    left = [s for n, s in enumerate(sessions) if n not in (0, victim)]
    assert most_at_once(place, left) == 1
    began = [at for at, _ in spans(place, left)]
    assert began == sorted(began)


def test_a_supervisor_that_is_killed_takes_its_waiting_workers_with_it(place):
    cap = {"CAO_MAX_SESSIONS": "1"}
    text = "demo: assign demo {demo: sleep 60}; assign demo {demo: sleep 60}; gather"
    boss, task = give(place, text, **cap)
    until(lambda: len(place.store.running(boss)), 2)
    below = [entry.partition(".")[0] for entry in place.store.running(boss)]
    until(lambda: sorted(place.state(name).get("state", "") for name in below),
          ["queued", "working"])  # fmt: skip
    _, mine = give(place, "demo: say mine", **cap)
    os.kill(runner_of(place, boss), signal.SIGKILL)
    assert outcomes(place, task) == ["lost"]
    assert place.ok("wait", mine) == "mine\n"
    assert [place.state(name)["state"] for name in below] == ["ended", "ended"]


def test_a_giver_killed_before_it_started_a_runner_holds_nobody_up(place, queued, verbs):
    sessions, tasks = queued
    pid = os.fork()
    if not pid:
        try:
            os.environ["CAO_MAX_SESSIONS"] = "1"
            verbs.start = lambda *_: os._exit(0)
            verbs.assign("demo", "demo: say never", cao.TaskOptions())
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    (made,) = set(place.live()) - set(sessions)
    _, task = give(place, "demo: say last", CAO_MAX_SESSIONS="1")
    place.ok("stop", sessions[0])
    assert outcomes(place, *tasks[1:], task) == ["done"] * 4
    (lost,) = place.store.results(made)
    assert place.result(lost)["outcome"] == "lost"


def test_one_that_waits_can_be_stopped_and_the_others_move_up(place, queued):
    sessions, tasks = queued
    assert places(place) == dict(zip(sessions[1:], (1, 2, 3)))
    assert "no turn was running" in place.ok("stop", "--interrupt", sessions[1])
    place.ok("stop", sessions[1])
    assert outcomes(place, tasks[1]) == ["stopped"]
    assert places(place) == dict(zip(sessions[2:], (1, 2)))
    assert [e["event"] for e in place.log(sessions[1]) if e["event"] == "started"] == []


def test_a_message_to_one_that_waits_comes_after_its_task(place, queued):
    sessions, tasks = queued
    assert "queued" in place.ok("send", sessions[1], "a word")
    place.ok("stop", sessions[0])
    assert outcomes(place, tasks[1]) == ["done"]
    taken = [e for e in place.log(sessions[1]) if e["event"] in ("submitted", "taken")]
    assert tasks[1] in str(taken[0]["messages"])


def test_when_too_many_wait_another_is_refused_and_leaves_nothing(
    place, queued, verbs, monkeypatch
):
    sessions, _ = queued
    monkeypatch.setenv("CAO_MAX_SESSIONS", "1")
    monkeypatch.setattr(cao, "MAX_QUEUED", 3)
    with pytest.raises(cao.CaoError, match="3 sessions wait already"):
        verbs.assign("demo", "x", cao.TaskOptions())
    assert place.live() == sorted(sessions)
    assert len(os.listdir(place.home / "queue")) == 3
    assert place.store.owed("person") == []


def test_environment_directory_and_version_are_the_givers(place, queued):
    sessions, _ = queued
    other = place.folder / "other"
    other.mkdir()
    program = place.folder / "newer.py"
    program.write_text((ROOT / "cao.py").read_text() + "# another version\n")
    place.profile("mine", "---\nprovider: demo\nenv:\n  pass: [MINE]\n---\n")
    env = {**place.env, "CAO_MAX_SESSIONS": "1", "MINE": "the giver's"}
    argv = [sys.executable, str(program), "assign", "mine", "demo: sleep 60", "--cwd", str(other)]
    done = subprocess.run(argv, env=env, cwd=place.work, capture_output=True, text=True, check=True)
    session = done.stdout.partition(".")[0]
    place.ok("stop", *sessions)
    child = place.until_state(session, "working")["group"]["id"]
    assert os.readlink(f"/proc/{child}/cwd") == str(other)
    assert "MINE=the giver's" in Path(f"/proc/{child}/environ").read_text().split("\0")
    sha = cao.sha256_of(program.read_text())[:16]
    for pid in (child, runner_of(place, session)):
        assert f"/lib/{sha}" in Path(f"/proc/{pid}/cmdline").read_text()


def test_a_directory_that_went_while_it_waited_ends_only_that_session(place, queued):
    sessions, tasks = queued
    gone = place.folder / "gone"
    gone.mkdir()
    task = place.ok("assign", "demo", "x", "--cwd", str(gone), CAO_MAX_SESSIONS="1").strip()
    place.until_state(task.partition(".")[0], "queued")
    gone.rmdir()
    _, last = give(place, "demo: say last", CAO_MAX_SESSIONS="1")
    place.ok("stop", sessions[0])
    assert sorted(outcomes(place, *tasks[1:], task, last)) == ["done"] * 4 + ["failed"]
    result = place.result(task)
    assert (result["outcome"], result["reason"]) == ("failed", "never_started")
    assert str(gone) in result["detail"]


TICKETS = {
    "of nobody": ("0" * 20 + "-gone-2222", "1"),
    "no ticket": ("README", "x"),
    "no number": ("", "many"),
}


@pytest.mark.parametrize(("name", "text"), TICKETS.values(), ids=TICKETS)
def test_no_file_in_the_queue_holds_anybody_up(place, queued, name, text):
    sessions, tasks = queued
    if name:
        (place.home / "queue" / name).write_text(text)
    else:
        Path(place.store.queue()[sessions[2]]).write_text(text)
    _, last = give(place, "demo: say last", CAO_MAX_SESSIONS="1")
    place.ok("stop", sessions[0])
    assert outcomes(place, *tasks[1:], last) == ["done"] * 4


def test_an_idle_session_that_is_asked_to_close_and_got_a_task_does_the_task(place, verbs):
    session, task = give(place, "hello")
    place.ok("wait", task)
    place.until_state(session, "idle")
    store = place.store
    message = cao.Message(f"{1:020d}-{session}.2222", "task", "person", session, "demo: say x",
                          1.0, f"{session}.2222")  # fmt: skip
    store.poke = lambda _: None  # the runner sees both at once
    store.give(message)
    store.put_event(store.folder(session), json.dumps({"cao": "close"}))
    place.store.poke(session)
    assert verbs.await_tasks([message.task], 60).results[0].answer == "x"


def test_one_that_is_kept_has_its_slot_until_it_is_stopped(place):
    cap = {"CAO_MAX_SESSIONS": "1"}
    kept = place.ok("assign", "demo", "hello", "--keep", **cap).partition(".")[0]
    place.until_state(kept, "idle")
    session, task = give(place, "demo: say now", **cap)
    place.until_state(session, "queued")
    place.ok("stop", kept)
    assert place.ok("wait", task) == "now\n"


def test_a_run_that_is_given_up_while_another_is_served_takes_its_task_back(place):
    session, task = give(place, "demo: sleep 12; say first")
    place.until_state(session, "working")
    run = place.start("run", session, "demo: say second")
    assert run.stderr.readline().startswith(b"cao: task ")  # it has given it
    (waiting,) = until(lambda: place.store.waiting(session))
    run.send_signal(signal.SIGINT)
    run.communicate()
    assert run.returncode == 130
    assert (place.store.waiting(session), place.store.owed(waiting.sender)) == ([], [task])
    assert outcomes(place, task) == ["done"]
    assert not place.store.has_result(waiting.task)
