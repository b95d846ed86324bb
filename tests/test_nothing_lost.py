"""Nothing is ever lost: every task has one result, every message is taken or reported,
whatever is killed, cut or full. The long proof is `torture.py`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

import cao
from conftest import McpClient, Place, until
from faults import LOADER, Faults
from torture import audit, unanswered

pytestmark = pytest.mark.tmux
HERE = Path(__file__).resolve().parent


def torture(folder, *args):
    """Run torture.py in a folder and return what it printed; it must have found nothing wrong."""
    argv = [sys.executable, str(HERE / "torture.py"), "--seconds", "150", *args]
    env = {**os.environ, "TMPDIR": str(folder)}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=180, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


NONE = {"--messages": 0, "--results": 0, "--handoffs": 0, "--faults": 0, "--files": 0,
        "--storm": 0}  # fmt: skip


@pytest.mark.parametrize(("seed", "part"), [
    (1, {"--messages": 40}),
    (2, {"--handoffs": 6}),
    (3, {"--faults": 12, "--first-fault": 13}),
    (4, {"--files": 40}),
    (5, {"--results": 60}),
    (6, {"--storm": 12}),
], ids=["messages", "handoffs", "runner", "files", "readers", "storm"])  # fmt: skip
def test_nothing_is_lost_when_everything_is_killed_at_random(bare, seed, part):
    words = [str(word) for pair in {**NONE, **part}.items() for word in pair]
    assert "0 wrong" in torture(bare.work, "--seed", str(seed), *words)


# ---- what a test may do to a session ----


def assign(place, text, target="demo", **env):
    """Give a task and return (session, task), the session working."""
    task = place.ok("assign", target, text, **env).strip()
    session = task.partition(".")[0]
    return session, task


def idle_session(place, **env):
    """Return a session that has done its task, its result fetched."""
    found = json.loads(place.ok("handoff", "demo", "hello", "--json", **env))
    session = found["results"][0]["session"]
    place.until_state(session, "idle")
    return session


def runner_of(place, session):
    return int(place.tmux("list-panes", "-t", f"={session}:", "-F", "#{pane_pid}"))


def kill_runner(place, session):
    os.kill(runner_of(place, session), signal.SIGKILL)


def conversation(place, session):
    path = place.home / "sessions" / session / "launch" / "conversation.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["prompt"] for line in lines]


def folder_of(place, session):
    return place.home / "sessions" / session


def me(place):
    """Return the name of the client that this place's shell is."""
    (name,) = [n for n in place.store.all_sessions() if n.startswith("shell-")]
    return name


def notices(place):
    """Return the texts of the notices that `cao wait` gives now."""
    found = json.loads(place.run("wait", "--json", "--timeout", "30s").stdout)
    return [m["text"] for m in found["messages"] if m["kind"] == "notice"]


def put_loader(place, more=""):
    """Let this place's sessions run from the real code with a planned fault under it."""
    (code,) = cao.install_copy(place.store)[-1:]
    folder = Path(re.search(r"'(/[^']+)'", code)[1])
    text = LOADER.format(tests=str(HERE), home=str(place.home), source=cao.__file__)
    (folder / "cao.py").unlink()  # a link, to that of all places
    (folder / "cao.py").write_text(text + more)


def plan(place, at, mode):
    """Plan the fault of the runners that start from now on; return its marker."""
    words = {"who": "run-session", "at": at, "mode": mode}
    (place.home / "fault.json").write_text(json.dumps(words))
    return place.home / "fault.fired"


# ---- restart of anything ----


def test_cao_mcp_killed_in_a_handoff_and_the_next_one_gets_the_result(place):
    first = McpClient(place)
    first.post_call("handoff", target="demo", task="demo: sleep 1.5; say it went on")
    (session,) = until(place.live, lambda names: len(names) == 1)
    place.until_state(session, "working")
    first.process.kill()
    first.process.wait()
    second = McpClient(place)
    found = second.call("wait")["structuredContent"]["results"]
    assert [(r["outcome"], r["answer"]) for r in found] == [("done", "it went on")]
    assert "results" not in second.call("wait", timeout_s=5)["structuredContent"]
    assert place.ok("wait", found[0]["task"]) == "it went on\n"  # anybody, by its name
    second.close()


def test_cao_mcp_leaves_no_fifo_of_a_call_in_flight(place):
    client = McpClient(place)
    client.post_call("handoff", target="demo", task="demo: sleep 60")

    def fifos():
        names = os.listdir(place.home / "wake")
        return [name for name in names if name.startswith(f"{client.process.pid}-")]

    until(fifos)
    client.close()
    assert fifos() == []


def test_a_hook_that_cannot_be_noted_does_not_fail_the_cli(place):
    cao.make_client(place.store, "worker")
    (folder_of(place, "worker") / "events" / "tmp").rmdir()
    done = place.run("hook", str(folder_of(place, "worker")), stdin="{}")
    assert (done.returncode, "cao hook:" in done.stderr) == (0, True)


def test_an_idle_supervisor_is_told_at_once_that_its_worker_is_lost(place):
    """By the kernel's release of the lock: an idle runner looks at nothing for ten minutes."""
    boss = place.ok("launch", "demo", "--detach").strip()
    place.until_state(boss, "idle")
    worker, task = assign(place, "demo: sleep 60", CAO_SESSION=boss)
    place.until_state(worker, "working")
    kill_runner(place, worker)
    until(lambda: f"Result of {task} (lost" in "".join(conversation(place, boss)))
    until(lambda: place.store.owed(boss), [])


def test_a_second_wait_learns_of_a_runners_death_as_soon_as_the_first(place, verbs, monkeypatch):
    monkeypatch.setattr(cao, "PROGRESS_S", 1e6)  # no look but where somebody wakes it
    session, task = assign(place, "demo: sleep 60")
    place.until_state(session, "working")
    listening = Path(place.store.listeners(session))
    assert verbs.await_tasks([task], 0).running == (task,)
    found = []
    second = threading.Thread(target=lambda: found.append(verbs.await_tasks([task], 60)))
    listening = set(os.listdir(place.store.listeners(session)))
    second.start()
    until(lambda: {*os.listdir(place.store.listeners(session))} - listening)
    kill_runner(place, session)
    second.join()
    assert [r.outcome for r in found[0].results] == ["lost"]


NO_THREADS = """
import threading
starting_thread, threads = threading.Thread.start, [0]
def start_each_second(self):
    threads[0] += 1
    if threads[0] % 2:
        raise RuntimeError("can't start new thread")
    starting_thread(self)
if sys.argv[1:2] == ["run-session"]:
    threading.Thread.start = start_each_second
"""


@pytest.mark.parametrize(("steps", "event"), [
    ("", "ended"),
    ("ask Which?|A|B; ", "asking"),
    ("assign demo {demo: say one}; gather; ", "ended"),
])  # fmt: skip
def test_a_runner_that_gets_no_thread_now_starts_it_in_a_later_round(place, steps, event):
    put_loader(place, NO_THREADS)
    events = place.folder / "events"
    notify = f"sh -c 'echo $CAO_NOTIFY_EVENT >>{events}'"
    given = place.ok(
        "assign", "demo", f"demo: {steps}say two", "--check", "true", CAO_NOTIFY=notify
    )
    if event == "asking":
        session = place.store.session_of(given.strip())
        place.until_state(session, event)
        place.ok("answer", session, "A")
    assert place.ok("wait", given.strip()).endswith("two\n")
    until(lambda: events.exists() and event in events.read_text())


@pytest.fixture
def no_grace(verbs, monkeypatch):
    """The verbs, to which a session without a runner is starting for as long as it may be."""
    monkeypatch.setattr(cao, "STARTING_S", 1e6)
    return verbs


def test_a_runner_killed_while_its_cli_starts_is_found_as_soon_as_any_other(place, no_grace):
    put_loader(place)
    fired = plan(place, '"event": "started"', "kill")
    _, task = assign(place, "demo: sleep 60")
    until(fired.exists)
    assert [r.outcome for r in no_grace.await_tasks([task], 60).results] == ["lost"]


def test_a_runner_killed_before_it_has_its_lock_is_found_as_soon_as_any_other(place, no_grace):
    put_loader(place)
    fired = plan(place, "/lock", "hold")
    session, task = assign(place, "demo: sleep 60")
    until(fired.exists)
    assert place.state(session)["state"] == "starting"
    kill_runner(place, session)
    assert [r.outcome for r in no_grace.await_tasks([task], 60).results] == ["lost"]


def test_a_new_session_whose_folder_clean_just_takes_gets_another_name(place, verbs, monkeypatch):
    lock, seen = verbs.store.lock_session, []

    def taken(name):
        seen.append(name)
        if len(seen) == 1:
            return None
        if len(seen) == 2:
            os.rmdir(verbs.store.folder(name))
        return lock(name)

    monkeypatch.setattr(verbs.store, "lock_session", taken)
    where = str(place.work)
    session = verbs.launch(verbs.profile("demo", where), where, cao.TaskOptions())
    assert (session, len({*seen})) == (seen[2], 3)
    verbs.forget(session)


def test_a_task_for_a_session_that_is_gone_starts_no_other(place, verbs):
    """As another machine's cao names it: its conversation would be lost, unsaid."""
    profile = verbs.profile("demo", str(place.work))
    with pytest.raises(cao.NotFoundError, match="session demo-2222 is gone"):
        verbs.assign("demo", "x", cao.TaskOptions(profile=profile, session="demo-2222"))
    assert place.live() == []


@pytest.mark.parametrize("text", ["def main(:\n", ""], ids=["half", "empty"])
def test_a_cao_that_is_just_being_replaced_gives_no_task(place, verbs, monkeypatch, text):
    broken = place.folder / "cao.py"
    broken.write_text(text)
    monkeypatch.setattr(cao, "__file__", str(broken))
    for _ in range(2):
        with pytest.raises(cao.CaoError, match=r"cannot be run: .*Error"):
            verbs.assign("demo", "demo: say x", cao.TaskOptions())
    assert place.live() == []
    assert verbs.store.owed("person") == []


def test_a_session_whose_launcher_is_slow_is_starting_while_that_lives(place, verbs, monkeypatch):
    """As on a machine that stood still for a while: nothing is lost by that."""
    monkeypatch.setattr(cao, "STARTING_S", 0.0)
    where = str(place.work)
    session = verbs.launch(verbs.profile("demo", where), where, cao.TaskOptions())
    assert verbs.state_of(session)["state"] == "starting"
    gone = {"launcher": {"id": os.getpid(), "start": "the mark of another"}}
    place.store.save_state(session, {**place.state(session), **gone})
    assert verbs.state_of(session)["state"] == "ended"


def test_a_session_whose_launcher_was_just_killed_can_be_stopped(place, verbs, monkeypatch):
    """Its runner may still come: so long that is waited for."""
    monkeypatch.setattr(cao, "STARTING_S", 3.0)
    monkeypatch.setattr(cao, "STOP_S", 1.0)
    if not (child := os.fork()):
        monkeypatch.setattr(cao.Orchestrator, "_run_session", lambda *_: os._exit(9))
        try:
            verbs.assign("demo", "demo: say x", cao.TaskOptions())
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    (session,) = place.live()
    verbs.end(session)
    assert (place.state(session)["state"], place.live()) == ("ended", [])


SLEPT = """
now = time.time
time.time = lambda: now() + 7200 * os.path.exists("{home}/slept")
"""


def test_the_hours_that_a_machine_sleeps_are_not_the_tasks(place):
    put_loader(place, SLEPT.format(home=place.home))
    task = place.ok("assign", "demo", "demo: sleep 2; say awake", "--timeout", "1h").strip()
    place.until_state(task.partition(".")[0], "working")
    (place.home / "slept").touch()
    assert place.ok("wait", task) == "awake\n"


def test_a_runner_that_is_slow_to_take_its_lock_is_not_lost(place, monkeypatch):
    put_loader(place)
    fired = plan(place, "/lock", "hold")
    session, task = assign(place, "demo: say it came")
    until(fired.exists)
    monkeypatch.setattr(cao, "STARTING_S", 0.0)
    assert cao.Orchestrator(place.store, cao.Caller("")).state_of(session)["state"] == "starting"
    fired.unlink()
    assert place.ok("wait", task) == "it came\n"


def test_only_the_group_that_is_meant_is_ended_and_a_stopped_one_in_its_own_way():
    code = "import signal; signal.signal(15, lambda *_: exit(7)); print(flush=True); signal.pause()"
    argv = [sys.executable, "-c", code]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True) as cli:
        cli.stdout.readline()
        os.kill(cli.pid, signal.SIGSTOP)
        assert cao.end_group(cli.pid, "the mark of another") == 0  # its pid was used again
        assert cli.poll() is None
        assert cao.end_group(cli.pid, cao.start_mark(cli.pid), 5.0) == 1
        assert cli.wait(60) == 7


def test_a_process_that_was_gone_before_it_was_noted_does_not_run():
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert not cao.is_running({"id": gone.pid, "start": cao.start_mark(gone.pid)})


def test_a_tmux_server_killed_under_a_tree_answers_every_task_and_leaves_no_process(place):
    inner = "assign demo {demo: sleep 60}"
    top = place.start("handoff", "demo", f"demo: {inner}; {inner}; gather", "--json")
    names = until(place.live, lambda names: len(names) == 3)
    for name in names:
        place.until_state(name, "working")
    os.kill(int(place.tmux("display-message", "-p", "#{pid}")), signal.SIGKILL)
    out = top.communicate(timeout=30)[0]
    assert json.loads(out)["results"][0]["outcome"] == "lost"
    until(place.pids, [])
    place.ok("ls")
    assert unanswered(place.home) == []
    assert audit(place.home) == []


def test_a_tmux_server_killed_while_a_session_starts_makes_its_task_lost(place):
    real = shutil.which("tmux")
    stub = place.folder / "bin" / "tmux"
    # What tmux 3.3a says when its server is killed under a command.
    died = "echo 'server exited unexpectedly' >&2; exit 1"
    stub.write_text(f'#!/bin/sh\ncase "$*" in *new-session*) {died};; esac\nexec {real} "$@"\n')
    stub.chmod(0o755)
    done = place.run("handoff", "demo", "demo: say hi", "--json")
    assert [r["outcome"] for r in json.loads(done.stdout)["results"]] == ["lost"]
    assert place.live() == []


def test_a_tmux_server_that_leaves_as_a_session_starts_costs_no_task(place):
    """It leaves with its last session: a handoff right after a stop meets it."""
    real, left = shutil.which("tmux"), place.folder / "left"
    stub = place.folder / "bin" / "tmux"
    died = f"[ -e {left} ] || {{ touch {left}; echo 'server exited unexpectedly' >&2; exit 1; }}"
    stub.write_text(f'#!/bin/sh\ncase "$*" in *new-session*) {died};; esac\nexec {real} "$@"\n')
    stub.chmod(0o755)
    assert place.ok("handoff", "demo", "demo: say hi") == "hi\n"
    assert left.exists()


def test_a_message_that_the_runner_had_claimed_is_reported_with_all_of_its_batch(place):
    put_loader(place)
    plan(place, '"event": "claimed"', "kill")
    session, _ = assign(place, "demo: sleep 2.5", CAO_CLIENT="boss")
    place.until_state(session, "working")
    for number in range(3):
        place.ok("send", session, f"number {number}")
    until(lambda: place.store.is_locked(session), False)
    place.ok("ls")
    told = " ".join(notices(place))
    assert [n for n in range(3) if f"number {n}" in told] == [0, 1, 2]


SLOW_HOOKS = """
hook = DemoAgent.hook
def slow(self, name, **fields):
    time.sleep(0.3)
    hook(self, name, **fields)
DemoAgent.hook = slow
"""


def test_a_message_that_the_cli_took_is_not_reported_though_its_runner_never_knew(place):
    put_loader(place, SLOW_HOOKS)
    plan(place, '"event": "taken"', "kill")
    boss = place.ok("launch", "demo", "--detach").strip()
    place.until_state(boss, "idle")
    place.run("send", boss, "hello")
    until(lambda: place.store.is_locked(boss), False)
    place.ok("ls")
    assert conversation(place, boss)[0].endswith("hello")
    assert notices(place) == []


def test_a_message_beside_one_that_a_wait_is_telling_is_still_delivered(place):
    boss, _ = assign(place, "demo: sleep 3")
    place.until_state(boss, "working")
    sender = me(place)
    for key in ("1-slower", "2-quicker"):
        place.store.put(cao.Message(key, "message", sender, boss, f"the {key[2:]} one"))
    told = place.store.take_message(boss, "2-quicker")  # as a wait of the agent itself does
    until(lambda: "the slower one" in "".join(conversation(place, boss)))
    told.told()
    place.until_state(boss, "idle")
    assert place.store.waiting(boss) == []
    assert "the quicker one" not in "".join(conversation(place, boss))


@pytest.mark.parametrize("verb", ["assign", "send"])
def test_what_is_put_while_a_session_ends_is_answered_or_refused(place, verb):
    put_loader(place)
    session = idle_session(place)
    # The runner of this session has no fault; give it one by starting another.
    place.ok("stop", session)
    held = plan(place, '"event": "ended"', "hold")
    session = idle_session(place)
    stop = place.start("stop", session)
    until(held.exists)  # its tasks and messages are answered, its state is not yet `ended`
    given = place.run(verb, session, "too late?")
    held.unlink()
    stop.wait(60)
    if given.returncode:
        assert given.returncode == 3, given.stderr
    elif verb == "send":
        until(lambda: any("too late?" in text for text in notices(place)))
    else:
        done = place.run("wait", given.stdout.strip(), "--json", "--timeout", "30s")
        assert [r["outcome"] for r in json.loads(done.stdout)["results"]] == ["stopped"]
    until(lambda: place.store.waiting(session), [])


def test_a_session_whose_runner_is_leaving_goes_on_with_the_next_task(place, resuming):
    put_loader(place)
    held = plan(place, "/live/", "hold")
    session = idle_session(place)
    place.ok("stop", session)
    until(held.exists)  # its state is `ended`, its runner is there, and so is its pane
    (place.home / "fault.json").unlink()
    threading.Timer(0.3, held.unlink).start()
    task = resuming.assign(session, "demo: say again", cao.TaskOptions())
    assert place.ok("wait", task) == "again\n"
    assert place.live() == [session]


CLOSES_SLOWLY = """
finish = Runner._finish
def slow(self, outcome, reason, detail):
    time.sleep(1 if reason == "idle" else 0)
    finish(self, outcome, reason, detail)
Runner._finish = slow
"""


def test_a_session_that_closes_for_it_was_idle_goes_on_with_the_next_task(place, resuming):
    put_loader(place, CLOSES_SLOWLY)
    (found,) = json.loads(place.ok("handoff", "demo", "x", "--json", CAO_IDLE_CLOSE_S="0.3"))[
        "results"
    ]
    session = found["session"]
    until(lambda: place.state(session)["closing"])
    late = place.run("send", session, "anybody there?")
    assert (late.returncode, "has ended" in late.stderr) == (3, True)
    task = resuming.assign(session, "demo: say again", cao.TaskOptions())
    assert place.ok("wait", task) == "again\n"
    events = [entry["event"] for entry in place.log(session)]
    assert events.count("started") == 2


def test_a_task_put_as_its_session_closes_is_taken_back_and_given_again(
    place, resuming, monkeypatch
):
    put_loader(place, CLOSES_SLOWLY)
    (found,) = json.loads(place.ok("handoff", "demo", "x", "--json", CAO_IDLE_CLOSE_S="0.3"))[
        "results"
    ]
    session = found["session"]
    until(lambda: place.state(session)["closing"])
    looks, look = [], resuming.is_over
    monkeypatch.setattr(resuming, "is_over", lambda name: looks.append(name) or len(looks) > 1)
    task = resuming.assign(session, "demo: say again", cao.TaskOptions())
    assert look(session) is False
    assert place.ok("wait", task) == "again\n"
    assert place.store.results(session) == sorted([found["task"], task])


HELD_AS_IT_CLOSES = """
save = Runner._save
def held(self):
    while self.closing and os.path.exists(self.store.home + "/hold"):
        self.store.write(self.store.home + "/held", "")
        select.select([], [], [], 0.01)
    save(self)
Runner._save = held
"""


def test_a_session_to_which_a_task_comes_as_it_closes_goes_on(place):
    put_loader(place, HELD_AS_IT_CLOSES)
    (place.home / "hold").touch()
    (found,) = json.loads(place.ok("handoff", "demo", "x", "--json", CAO_IDLE_CLOSE_S="0.3"))[
        "results"
    ]
    until((place.home / "held").exists)
    task = place.ok("assign", found["session"], "demo: say just in time").strip()
    (place.home / "hold").unlink()
    assert place.ok("wait", task) == "just in time\n"


def test_a_session_that_is_still_at_its_end_is_not_said_to_have_ended(place, verbs, monkeypatch):
    put_loader(place)
    held = plan(place, '"event": "ended"', "hold")
    session = idle_session(place)
    monkeypatch.setattr(cao, "STOP_S", 0.2)
    done = verbs.stop_session(session, False)
    assert (done["state"], done["did"]) == ("idle", "told to end, and is still at it")
    held.unlink()
    until(lambda: place.state(session)["state"], "ended")


HANGS = """
read = Runner._read_events
def hangs(self):
    while os.path.exists(self.store.home + "/hang"):
        select.select([], [], [], 0.01)
    read(self)
Runner._read_events = hangs
"""


def test_a_cli_is_ended_though_its_runner_does_not_answer(place, verbs, monkeypatch):
    put_loader(place, HANGS)
    session, task = assign(place, "demo: sleep 60")
    cli = place.until_state(session, "working")["group"]["id"]
    hang = place.home / "hang"
    hang.touch()
    monkeypatch.setattr(cao, "STOP_S", 0.2)
    verbs.end(session)
    until(lambda: cao.group_members(cli), [])
    hang.unlink()
    until(place.pids, [])
    assert place.result(task)["outcome"] in ("lost", "stopped")


DEAF = """
SUBMIT_S = 0.3
take = DemoAgent.read_prompt
def read_prompt(self):
    while text := take(self):
        if not os.path.exists(self.store.home + "/deaf"):
            return text
DemoAgent.read_prompt = read_prompt
"""


STALLS = """
SUBMIT_S = 0.2
key = DemoAgent.key
def stalls(self, timeout_s=None):
    while os.path.exists(self.store.home + "/stall"):
        select.select([], [], [], 0.01)
    return key(self, timeout_s)
DemoAgent.key = stalls
"""


def test_a_cli_that_has_not_read_its_task_yet_is_waited_for(place):
    put_loader(place, STALLS)
    session = idle_session(place)
    stall = place.home / "stall"
    stall.touch()
    place.tmux("send-keys", "-t", f"={session}:", "Left")  # it reads its last key
    task = place.ok("assign", session, "demo: say late").strip()
    until(lambda: "submitted" in [e["event"] for e in place.log(session)])
    later = time.monotonic() + 3
    until(lambda: time.monotonic() > later)
    stall.unlink()
    assert place.ok("wait", task) == "late\n"


def test_a_task_that_the_cli_does_not_read_is_over_in_its_time(place):
    put_loader(place, STALLS)
    session = idle_session(place)
    (place.home / "stall").touch()
    place.tmux("send-keys", "-t", f"={session}:", "Left")  # it reads its last key
    task = place.ok("assign", session, "demo: sleep 60; say late", "--timeout", "4s").strip()
    assert place.run("wait", task, timeout_s=60).returncode == 5
    (place.home / "stall").unlink()
    until(lambda: "interrupted" in place.screen(session))
    assert place.ok("handoff", session, "demo: say on") == "on\n"


def test_who_only_looks_on_holds_up_no_task(place):
    """So does cao itself, where a worker is on another machine."""
    put_loader(place, "PERSON_S = 1000.0\n")
    session = idle_session(place)
    argv = ["tmux", "-u", "-L", cao.tmux_socket(str(place.home))]
    argv += ["attach", "-f", "read-only", "-t", f"={session}"]
    looks = subprocess.Popen(
        [sys.executable, "-c", f"import pty; pty.spawn({argv!r})"], stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL, env={**place.env, "TERM": "xterm-256color"},
    )  # fmt: skip
    until(lambda: place.tmux("list-clients"))
    done = place.run("handoff", session, "demo: say on", "--timeout", "20s")
    place.tmux("detach-client", "-s", f"={session}")
    looks.communicate(timeout=30)
    assert done.stdout == "on\n"


ODD_TMUX = """
person_active_s = Tmux.person_active_s
def fails(self, pane):
    try:
        os.unlink(runtime_home() + "/odd")
    except FileNotFoundError:
        return person_active_s(self, pane)
    raise TmuxError("tmux: exit status -9")
Tmux.person_active_s = fails
"""


def test_one_call_to_tmux_that_fails_holds_up_no_task(place):
    put_loader(place, ODD_TMUX)
    session = idle_session(place)
    (place.home / "odd").touch()
    assert place.ok("handoff", session, "demo: say on", timeout_s=60) == "on\n"
    assert not (place.home / "odd").exists()


def test_a_session_that_clean_is_at_gets_no_task(place, resuming, monkeypatch):
    session, task = assign(place, "demo: say x")
    place.ok("wait", task)
    place.ok("stop", session)
    until(lambda: place.store.is_locked(session), False)
    monkeypatch.setattr(cao, "STOP_S", 0.1)
    lock = place.store.lock_session(session)
    with pytest.raises(cao.CaoError, match=f"is at work on {session}"):
        resuming.assign(session, "demo: say y", cao.TaskOptions())
    os.close(lock)
    assert place.store.waiting(session) == []


def test_clean_keeps_a_session_that_got_a_message_while_git_took_its_time(
    place, verbs, monkeypatch
):
    session, task = assign(place, "demo: say x")
    place.ok("wait", task)
    place.ok("stop", session)

    def slow(store, name):
        store.put(cao.Message("1-late", "message", "other", name, "late"))
        return True

    monkeypatch.setattr(cao, "_drop_worktree", slow)
    assert session not in cao.clean(verbs, 0.0)[0]
    assert len(place.store.waiting(session)) == 1


def test_a_message_to_an_ended_session_is_refused_at_once(place):
    session = idle_session(place)
    place.ok("stop", session)
    late = place.run("send", session, "anybody there?")
    assert (late.returncode, "has ended" in late.stderr) == (3, True)
    assert place.store.waiting(session) == []


def test_messages_not_delivered_when_a_session_is_stopped_come_back_as_notices(place):
    session, task = assign(place, "demo: sleep 60")
    place.until_state(session, "working")
    for text in ("first thing", "second thing"):
        place.ok("send", session, text)
    place.ok("stop", session)
    told = notices(place)
    assert ["first thing" in told[0], "second thing" in told[1], len(told)] == [True, True, 2]
    assert place.result(task)["outcome"] == "stopped"


def test_an_agent_reads_in_its_conversation_that_its_message_was_not_delivered(place):
    boss = place.ok("launch", "demo", "--detach").strip()
    worker, _ = assign(place, "demo: sleep 60", CAO_SESSION=boss)
    place.until_state(worker, "working")
    place.ok("send", worker, "too late?", CAO_SESSION=boss)
    place.ok("stop", worker)
    notice = f"Notice from cao: Your message to {worker} ('too late?') was not delivered"
    until(lambda: [p for p in conversation(place, boss) if notice in p])


def test_a_message_that_the_cli_does_not_take_comes_back_to_its_sender(place):
    put_loader(place, DEAF)
    session = idle_session(place)
    (place.home / "deaf").touch()
    assert place.ok("send", session, "anybody there?") != f"{session}: taken\n"
    (told,) = until(lambda: notices(place))
    assert "'anybody there?'" in told
    assert "the CLI did not take it as a prompt" in told


def test_a_runner_that_is_told_to_end_answers_what_is_open(place):
    session, task = assign(place, "demo: sleep 60")
    place.until_state(session, "working")
    os.kill(runner_of(place, session), signal.SIGTERM)
    result = until(lambda: place.store.load_result(task))
    assert (result.outcome, result.reason) == ("stopped", "terminated")
    until(place.live, [])
    until(place.pids, [])


def test_a_session_has_one_runner(place):
    session = idle_session(place)
    assert place.run("run-session", session).returncode == 1
    assert "has a runner already" in (folder_of(place, session) / "runner.log").read_text()
    assert place.ok("handoff", session, "demo: say still mine") == "still mine\n"


def test_a_session_whose_directory_is_gone_does_not_go_on(place, resuming):
    where = place.work / "gone"
    where.mkdir()
    session, task = assign(place, "demo: say hi", "demo", cwd=where)
    place.ok("wait", task, cwd=where)
    place.ok("stop", session)
    where.rmdir()
    with pytest.raises(cao.NotFoundError, match="the directory of"):
        resuming.assign(session, "demo: say again", cao.TaskOptions())


def test_a_session_that_goes_on_is_neither_lost_nor_ended_by_an_order_it_never_read(
    place, resuming
):
    session = idle_session(place)
    assign(place, "demo: sleep 60")  # so that tmux stays, and reaps the runner
    place.ok("stop", session)
    place.store.put_event(str(folder_of(place, session)), '{"cao": "stop"}')
    real, held = shutil.which("tmux"), place.folder / "held"
    stub = place.folder / "bin" / "tmux"
    hold = f"touch {held}; while [ -e {held} ]; do sleep 0.02; done"
    stub.write_text(f'#!/bin/sh\ncase "$*" in *new-session*) {hold};; esac\nexec {real} "$@"\n')
    stub.chmod(0o755)
    given = []
    options = cao.TaskOptions(named=given.append)
    starter = threading.Thread(
        target=resuming.assign, args=(session, "demo: say again", options), daemon=True
    )
    starter.start()
    until(held.exists)  # its runner is not there yet, and that of the run before is dead
    shown = place.ok("ls")
    held.unlink()
    starter.join(60)
    assert re.search(rf"{session} +starting", shown)
    assert place.ok("wait", *given) == "again\n"


def test_a_session_that_goes_on_counts_for_the_cap(place, resuming, monkeypatch):
    session = idle_session(place)
    place.ok("stop", session)
    other, _ = assign(place, "demo: sleep 60")
    place.until_state(other, "working")
    monkeypatch.setenv("CAO_MAX_SESSIONS", "1")
    task = resuming.assign(session, "demo: say again", cao.TaskOptions())
    place.until_state(session, "queued")
    place.ok("stop", other)
    assert place.ok("wait", task) == "again\n"


def test_a_result_that_the_cli_did_not_take_is_told_after_its_next_turn(place):
    put_loader(place, DEAF)
    boss = place.ok("launch", "demo", "--detach").strip()
    place.until_state(boss, "idle")
    deaf = place.home / "deaf"
    deaf.touch()
    _, task = assign(place, "demo: say precious", CAO_SESSION=boss)
    until(lambda: [e for e in place.log(boss) if e["event"] == "undeliverable"])
    place.until_state(boss, "idle")
    assert place.store.owed(boss) == [task]
    deaf.unlink()
    place.tmux("send-keys", "-t", f"={boss}:", "hello", "Enter")
    until(lambda: [p for p in conversation(place, boss) if "precious" in p])
    assert len([p for p in conversation(place, boss) if f"Result of {task}" in p]) == 1
    until(lambda: place.store.owed(boss), [])


def test_a_hook_that_never_comes_and_the_status_file_decides_and_the_log_says_so(place):
    put_loader(place, "DemoAgent.hook = lambda *_, **__: None\n")
    done = place.run("handoff", "demo", "demo: sleep 3.5; say unheard", "--json", timeout_s=30)
    (result,) = json.loads(done.stdout)["results"]
    assert (result["outcome"], result["reason"]) == ("failed", "unknown_end")
    assert result["source"] == "status_file"
    log = place.log(result["session"])
    assert "UserPromptSubmit" in [e.get("hook") for e in log if e["event"] == "hook_missed"]
    assert [e["source"] for e in log if e["event"] == "turn_ended"] == ["status_file"]


STOP = """
hook = DemoAgent.hook
DemoAgent.hook = lambda self, name, **more: {}
"""


@pytest.mark.parametrize(
    ("stop", "detail"),
    [
        ("None if name == 'Stop' else hook(self, name, **more)", "nothing says how"),
        ("hook(self, name, **{**more, 'last_assistant_message': ''})", "without an answer"),
    ],
    ids=["no Stop", "no words"],
)
def test_a_turn_without_an_answer_is_neither_done_nor_a_persons_esc(place, stop, detail):
    put_loader(place, STOP.format(stop))
    done = place.run("handoff", "demo", "demo: sleep 3; say unheard", "--json", timeout_s=60)
    (result,) = json.loads(done.stdout)["results"]
    assert (result["outcome"], result["reason"]) == ("failed", "unknown_end"), result
    assert detail in result["detail"]


# ---- limits ----


def test_a_message_that_met_a_session_just_after_its_end_is_refused_and_counts_as_never_put(
    place, verbs, monkeypatch
):
    session = idle_session(place)
    put, locks = cao.Store.put, []

    def late(store, message):
        place.ok("stop", session)
        until(lambda: place.store.is_locked(session), False)
        # Who answers what is left in an inbox has been there, and is on his way out.
        locks.append(store.lock(f"{folder_of(place, session)}/lock"))
        put(store, message)

    monkeypatch.setattr(cao.Store, "put", late)
    with pytest.raises(cao.NotFoundError, match="has just ended; the message was not sent"):
        verbs.send_message(session, "too late")
    os.close(*locks)
    texts = [p.read_text() for p in folder_of(place, session).glob("inbox/*/*") if p.is_file()]
    assert "too late" not in "".join(texts)


def test_what_met_a_session_just_after_its_end_is_answered_though_its_sender_was_killed(place):
    session = idle_session(place)
    place.ok("stop", session)
    until(lambda: place.store.is_locked(session), False)
    task = f"{session}.late"
    place.store.give(
        cao.Message(f"{time.time_ns():020d}-{task}", "task", me(place), session, "x", task=task)
    )
    done = place.run("wait", task, "--json", timeout_s=30)
    (result,) = json.loads(done.stdout)["results"]
    assert (result["task"], result["outcome"]) == (task, "stopped")


LATE = """
SUBMIT_S = 0.2
hook = DemoAgent.hook
def late(self, name, **fields):
    time.sleep(0.8 if name == "UserPromptSubmit" else 0)
    hook(self, name, **fields)
DemoAgent.hook = late
"""


def test_a_prompt_event_that_is_late_still_says_what_reached_the_cli(place):
    put_loader(place, LATE)
    done = json.loads(place.ok("handoff", "demo", "demo: sleep 0.5; say hi", "--json"))
    assert done["results"][0]["exact"] == "exact"
    assert [e for e in place.log(done["results"][0]["session"]) if e["event"] == "hook_missed"]


def test_a_full_inbox_refuses_with_a_clear_error_and_loses_nothing(place):
    session, task = assign(place, "demo: ask Go on?|yes|no; say read")
    place.until_state(session, "asking")
    for number in range(2):
        place.ok("send", session, f"m{number}", CAO_MAX_WAITING="2")
    full = place.run("send", session, "m2", CAO_MAX_WAITING="2")
    assert (full.returncode, "2 messages waiting already" in full.stderr) == (1, True)
    refused = place.run("assign", session, "demo: say no", CAO_MAX_WAITING="2")
    assert refused.returncode == 1
    assert place.store.owed(me(place)) == [task]
    place.ok("answer", session, "yes")
    place.ok("wait", task)
    assert re.findall("m[0-9]", "".join(conversation(place, session))) == ["m0", "m1"]


def test_at_the_cap_the_longest_idle_session_without_keep_ends_for_a_new_one(place):
    cap = {"CAO_MAX_SESSIONS": "3"}
    kept = place.ok("assign", "demo", "hello", "--keep", **cap).partition(".")[0]
    place.until_state(kept, "idle")
    older, younger = idle_session(place, **cap), idle_session(place, **cap)
    newest = idle_session(place, **cap)
    until(place.live, sorted([kept, younger, newest]))
    assert place.state(older)["why"]
    assert unanswered(place.home) == []


def test_of_two_new_sessions_at_once_the_second_waits_for_the_first(place):
    """Both would take the last place in the queue."""
    lock = place.store.lock(f"{place.home}/lock")
    inode = os.fstat(lock).st_ino
    second = place.start("assign", "demo", "hello")
    waiting = re.compile(rf"-> FLOCK .*:{inode} ")
    until(lambda: waiting.search(Path("/proc/locks").read_text()))
    assert place.live() == []
    os.close(lock)
    assert second.wait(60) == 0
    assert len(place.live()) == 1


def test_at_the_cap_an_idle_session_that_is_owed_a_result_is_not_ended(place):
    cap = {"CAO_MAX_SESSIONS": "2", "CAO_IDLE_CLOSE_S": "1"}
    boss, _ = assign(place, "demo: ask Ready?|Yes", **cap)
    place.until_state(boss, "asking")
    given = "demo: assign demo {demo: sleep 60}"  # by another: no part of its task
    assert "queued" in place.ok("send", boss, given, CAO_CLIENT="another")
    place.ok("answer", boss, "Yes")
    (out,) = until(lambda: place.store.running(boss))
    since = place.until_state(boss, "idle")["since"]
    kept = place.ok("assign", "demo", "x", "--keep", **cap).partition(".")[0]
    place.until_state(kept, "idle")  # nor does it hold a slot
    # Nor does it close by itself: the result finds it.
    until(lambda: time.time() > since + 1.5)
    place.ok("stop", out.partition(".")[0], "--interrupt")
    until(lambda: f"Result of {out} (interrupted" in "".join(conversation(place, boss)))


def test_a_fork_bomb_stops_at_the_caps_and_every_task_is_answered(place):
    bomb = place.folder / "bomb"
    again = f"{{do what is in the file {bomb} (1 bytes)}}"
    bomb.write_text(f"demo: assign demo {again}; assign demo {again}; gather")
    cap = {"CAO_MAX_SESSIONS": "6"}
    place.profile("bomb", "---\nprovider: demo\nenv:\n  pass: [CAO_MAX_SESSIONS]\n---\n")
    bomb.write_text(bomb.read_text().replace("assign demo", "assign bomb"))
    done = place.run("handoff", "bomb", f"do what is in the file {bomb} (1 bytes)", "--json", **cap)
    assert json.loads(done.stdout)["results"], done.stderr
    made = [n for n in place.store.all_sessions() if n.startswith("bomb-")]
    assert len(made) >= 6
    place.ok("stop", *made)
    until(place.pids, [])
    assert unanswered(place.home) == []


def test_an_answer_held_for_a_worker_is_given_when_a_wait_of_the_agents_own_took_its_result(place):
    inner = "demo: ask Go on?|yes|no; say found"
    boss, task = assign(place, f"demo: assign demo {{{inner}}}; say I have given it away")
    log = place.home / "sessions" / boss / "log.jsonl"
    until(log.read_text, lambda text: "turn_ended" in text)
    (out,) = place.store.owed(boss)
    below = out.partition(".")[0]
    place.until_state(below, "asking")
    place.tmux("send-keys", "-t", f"={boss}:", "-l", "a draft")  # it holds the result back
    until(lambda: place.screen(boss).rstrip().endswith("demo> a draft"))
    place.ok("answer", below, "yes")
    assert place.ok("wait", out, CAO_SESSION=boss) == "yes\nfound\n"
    assert place.ok("wait", task) == "I have given it away\n"


def test_a_result_is_owed_until_it_was_told_and_no_more_when_the_wait_returns(place, verbs):
    found = cao.Result("demo-3333.k3f9", "demo-3333", "done", "found", ended_at=1000.5)
    place.store.create(cao.Session("demo-3333", "agent"))
    key = f"{1:020d}-{found.task}"
    place.store.give(cao.Message(key, "task", "person", "demo-3333", "x", task=found.task))
    place.store.write(place.store.result_path(found.task), cao.dump(found))
    waited = verbs.await_tasks([found.task], 5)
    assert waited.results == (found,)
    assert place.store.owed("person") == [found.task]
    waited.told()
    assert place.store.owed("person") == []


def test_rings_of_tasks_are_refused(place):
    boss = place.ok("launch", "demo", "--detach").strip()
    place.until_state(boss, "idle")
    left, _ = assign(place, "demo: sleep 60", CAO_SESSION=boss)
    right, _ = assign(place, "demo: sleep 60", CAO_SESSION=boss)
    up = place.run("assign", boss, "x", CAO_SESSION=left)
    assert (up.returncode, "above you" in up.stderr) == (2, True)
    place.ok("assign", right, "demo: sleep 60", CAO_SESSION=left)
    back = place.run("assign", left, "x", CAO_SESSION=right)
    assert (back.returncode, "both would wait for ever" in back.stderr) == (2, True)
    assert place.store.owed(right) == []


def test_a_ring_of_three_is_refused_too(place):
    boss = place.ok("launch", "demo", "--detach").strip()
    one, two, three = (assign(place, "demo: sleep 60", CAO_SESSION=boss)[0] for _ in range(3))
    assign(place, "demo: sleep 60", two, CAO_SESSION=one)
    assign(place, "demo: sleep 60", three, CAO_SESSION=two)
    back = place.run("assign", one, "x", CAO_SESSION=three)
    assert (back.returncode, "both would wait for ever" in back.stderr) == (2, True)
    assert place.store.owed(three) == []


def test_nobody_writes_to_itself_and_a_client_is_no_agent(place):
    session = idle_session(place)
    for argv, words in (
        (("assign", session, "x"), "that is yourself"),
        (("send", session, "x"), "that is yourself"),
        (("assign", me(place), "x"), "is a client, not an agent"),
        (("stop", me(place)), "is a client, not an agent"),
    ):
        refused = place.run(*argv, CAO_SESSION=session)
        assert (refused.returncode, words in refused.stderr) == (2, True), refused.stderr
    assert conversation(place, session) == ["hello"]


def test_a_client_called_like_a_profile_does_not_hide_it(place):
    place.ok("ls", CAO_CLIENT="demo")
    assert place.ok("handoff", "demo", "demo: say one") == "one\n"
    client = McpClient(place)
    assert "two" in str(client.call("handoff", target="demo", task="demo: say two"))
    client.close()


def test_a_worker_reaches_its_supervisor_and_siblings_and_no_stranger(place):
    boss = place.ok("launch", "demo", "--detach").strip()
    left, _ = assign(place, "demo: sleep 60", CAO_SESSION=boss)
    right, _ = assign(place, "demo: sleep 60", CAO_SESSION=boss)
    stranger = idle_session(place)
    for verb in ("assign", "send"):
        refused = place.run(verb, stranger, "x", CAO_SESSION=left)
        assert (refused.returncode, "sibling" in refused.stderr) == (2, True), refused.stderr
    assert conversation(place, stranger) == ["hello"]
    for to in (boss, right):
        place.ok("send", to, "x", CAO_SESSION=left)


# ---- once, and once only ----


def test_the_same_request_is_one_task_and_with_another_text_an_error(place):
    first, again = [place.run("assign", "demo", "hello", "--request-id", "r1") for _ in range(2)]
    assert (first.returncode, first.stderr) == (0, "")
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert "ago with this request_id, and not again now" in again.stderr
    assert len(place.live()) == 1
    other = place.run("assign", "demo", "goodbye", "--request-id", "r1")
    assert (other.returncode, "was used for another text" in other.stderr) == (2, True)
    until(lambda: conversation(place, place.live()[0]), ["hello"])


def test_the_note_of_a_task_that_was_never_given_is_forgotten(place):
    """Who gave it was killed between its note and its message; its worker has ended."""
    boss = place.ok("launch", "demo", "--detach").strip()
    place.until_state(boss, "idle")
    worker, _ = assign(place, "demo: say hi", CAO_SESSION=boss)
    place.ok("stop", worker)
    until(lambda: place.store.owed(boss), [])
    for task in (f"{worker}.2345", "demo-2345.2345"):  # a session that is no more
        (folder_of(place, boss) / "out" / task).write_text(f"{1:020d}-{task}")
    place.store.poke(boss)
    until(lambda: os.listdir(folder_of(place, boss) / "out"), [])
    assert "2345" not in "".join(conversation(place, boss))
    assert place.ok("handoff", boss, "demo: say still here") == "still here\n"


@pytest.mark.parametrize("want_all", [False, True])
def test_a_wait_does_not_miss_what_arrives_while_it_looks(verbs, monkeypatch, want_all):
    given = cao.TaskOptions()
    tasks = [verbs.assign("demo", f"demo: sleep 1; say {w}", given) for w in ("one", "two")]
    letters = verbs._take_letters

    def slowly(*given):  # all else happens between its look at the ledger and into the inbox
        until(lambda: verbs.store.running("person"), [])
        return letters(*given)

    monkeypatch.setattr(verbs, "_take_letters", slowly)
    monkeypatch.setattr(verbs, "watch", lambda *_: None)  # a thread, which outlives the test
    found = verbs.await_tasks(None, 60, want_all=want_all)
    assert sorted(result.answer for result in found.results) == ["one", "two"]
    assert sorted(result.task for result in found.results) == sorted(tasks)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_session_whose_folder_cannot_be_looked_at_just_now_stays_one(
    place, verbs, monkeypatch, number
):
    session, _ = assign(place, "demo: sleep 60")
    place.until_state(session, "working")

    def blind(real):
        def look(path, *how, **more):
            if os.fspath(path) == verbs.store.folder(session):
                raise OSError(number, os.strerror(number))
            return real(path, *how, **more)

        return look

    with monkeypatch.context() as patch:
        for call in ("stat", "lstat"):
            patch.setattr(os, call, blind(getattr(os, call)))
        assert verbs.state_of(session)["state"] == "working"
    assert place.live() == [session]


@pytest.mark.parametrize("sender", ["nobody_", "", "../..", "gone-2222"])
def test_a_sender_that_there_is_not_costs_only_its_own_task_and_message(place, sender):
    session, first = assign(place, "demo: sleep 2; say one")
    place.until_state(session, "working")
    bad = place.ok("assign", session, "demo: say two").strip()
    last = place.ok("assign", session, "demo: say three").strip()
    inbox = folder_of(place, session) / "inbox" / "new"
    for path in inbox.iterdir():
        if not path.name.endswith(last):
            fields = json.loads(path.read_text())
            path.write_text(json.dumps({**fields, "sender": sender}))
    assert place.ok("wait", last) == "three\n"
    assert [place.result(task)["answer"] for task in (first, bad)] == ["one", "two"]
    place.store.put(cao.Message("9-x", "message", sender, session, "you get no answer"))
    assert place.ok("stop", session).startswith(f"{session}: ")
    assert place.state(session)["state"] == "ended"


def test_an_interrupt_of_a_session_whose_state_is_unknown_is_no_success(place):
    session, _ = assign(place, "demo: sleep 60")
    place.until_state(session, "working")
    (folder_of(place, session) / "state.json").write_text("{")
    done = place.run("stop", "--interrupt", session)
    assert (done.returncode, "was not interrupted" in done.stderr) == (1, True)


def test_a_result_is_written_though_its_folder_was_removed(place):
    session, task = assign(place, "demo: sleep 1; say one")
    place.until_state(session, "working")
    (folder_of(place, session) / "results").rmdir()
    assert place.ok("wait", task) == "one\n"


@pytest.mark.parametrize("order", [
    {"cao": "answer"}, {"cao": "answer", "id": 5}, {"cao": "popup_closed"}, {"cao": 5},
    {"cao": "popup_closed", "questions": 5}, {"cao": "answer", "id": "1", "key": 7},
    {"cao": "answer", "id": "1", "question": []}, {"cao": ["answer"]},
], ids=json.dumps)  # fmt: skip
def test_an_order_that_is_none_ends_no_session(place, order):
    session, task = assign(place, "demo: ask Which?|A|B; say two")
    question = place.until_state(session, "asking")["questions"][0]["id"]
    if order["cao"] == "answer" and "question" not in order:
        order = {**order, "question": question}
    place.store.put_event(str(folder_of(place, session)), json.dumps(order))
    until(lambda: place.store.events(session), [])
    place.ok("answer", session, "B")
    assert place.ok("wait", task) == "B\ntwo\n"
    assert not (place.home / "quarantine").exists()


def test_the_same_request_of_two_processes_at_once_is_one_task(place):
    place.ok("ls")  # the client's folder
    both = [place.start("assign", "demo", "hello", "--request-id", "r1") for _ in range(2)]
    names = {process.communicate(timeout=60)[0] for process in both}
    assert len(names) == 1
    assert len(place.live()) == 1


def test_two_waits_that_race_get_a_result_once(place):
    assign(place, "demo: sleep 1; say once")
    both = [place.start("wait", "--json", "--timeout", "30s") for _ in range(2)]
    found = [json.loads(process.communicate(timeout=60)[0])["results"] for process in both]
    assert sorted(map(len, found)) == [0, 1]


def test_a_client_that_is_only_looked_at_is_adopted_by_its_next_cao_mcp(place):
    store = place.store
    cao.make_client(store, "editor-2222")
    names, over = set(), threading.Event()

    def look() -> None:
        while not over.is_set():
            store.is_locked("editor-2222")

    looker = threading.Thread(target=look)
    looker.start()
    for _ in range(300):
        caller, lock = cao.open_client(store, "editor-2222", True)
        os.close(lock)
        names.add(caller.name)
    over.set()
    looker.join()
    assert names == {"editor-2222"}


# ---- files ----


def test_a_message_whose_sender_is_told_it_failed_is_not_there(place):
    """Who is told that it failed sends it again: both would be read."""
    store, at, wrong = place.store, 0, []
    for name in ("boss-2222", "worker-2222"):
        os.mkdir(store.folder(name))
        store.create(cao.Session(name, "client"))
    while True:
        at += 1
        message = cao.Message(f"{at}-a", "message", "boss-2222", "worker-2222", "hello")
        faults, failed = Faults(store.home, at, "fail"), False
        faults.arm()
        try:
            store.put(message)
        except (OSError, cao.CaoError):
            failed = True
        finally:
            faults.disarm()
        if not faults.where:
            break
        # A folder that cannot be synced: the message is whole, and may be there or not.
        if failed and faults.where != "fsync" and message in store.waiting("worker-2222"):
            wrong.append((at, faults.where))
    assert wrong == []
    assert audit(place.home) == []


def test_two_that_tell_the_same_while_it_is_read_put_it_once(place):
    store, message = place.store, cao.Message("1-once", "notice", "cao", "boss-2222", "told")
    os.mkdir(store.folder("boss-2222"))
    store.create(cao.Session("boss-2222", "client"))
    held = place.home / "held"

    def tell(hold: bool) -> int:
        pid = os.fork()
        if not pid:
            if hold:
                Faults(store.home, "/new/1-once", "hold", str(held)).arm()
            store.put_once(message)
            os._exit(0)
        return pid

    def stands(pid: int) -> bool:
        """Tell whether a process waits for a lock, or is at its end."""
        waits = f"-> FLOCK  ADVISORY  WRITE {pid} " in Path("/proc/locks").read_text()
        return waits or Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] == "Z"

    first = tell(hold=True)
    until(held.exists)
    second = tell(hold=False)
    until(lambda: stands(second))
    reads = [store.take_message("boss-2222", "1-once")]
    held.unlink()
    for pid in (first, second):
        assert os.waitpid(pid, 0)[1] == 0
    reads.append(store.take_message("boss-2222", "1-once"))
    (read,) = filter(None, reads)
    read.told()
    assert store.waiting("boss-2222") == []


def test_a_message_cut_at_any_byte_is_quarantined_and_the_rest_is_delivered(place, monkeypatch):
    monkeypatch.setenv("CAO_MAX_WAITING", "1000")
    session = idle_session(place)
    store, inbox = place.store, folder_of(place, session) / "inbox"
    message = cao.Message("", "message", me(place), session, "whole")
    text = cao.dump(message._replace(id="1-cut", text="cut"))
    for size in range(len(text) - 1):
        (inbox / "tmp" / f"1-cut-{size:04}").write_text(text[:size])
        os.rename(inbox / "tmp" / f"1-cut-{size:04}", inbox / "new" / f"1-cut-{size:04}")
    store.put(message._replace(id="2-whole"))
    until(lambda: "whole" in "".join(conversation(place, session)))
    assert "cut" not in "".join(conversation(place, session))
    cut = [entry for entry in place.log(session) if entry["event"] == "quarantined"]
    assert len(cut) == len(text) - 1
    assert all(Path(entry["kept"]).exists() for entry in cut)


@pytest.mark.parametrize("cut", [0, 60])
def test_a_state_cut_by_a_power_cut_does_not_hide_that_the_runner_is_dead(place, cut):
    session, task = assign(place, "demo: sleep 60")
    place.until_state(session, "working")
    kill_runner(place, session)
    until(lambda: place.store.is_locked(session), False)
    path = folder_of(place, session) / "state.json"
    path.write_text(path.read_text()[:cut])
    done = place.run("wait", task, "--json", "--timeout", "30s")
    assert [r["outcome"] for r in json.loads(done.stdout)["results"]] == ["lost"], done.stderr
    until(place.pids, [])


def test_a_log_line_cut_by_a_power_cut_spoils_no_other_line(place):
    session = idle_session(place)
    with (folder_of(place, session) / "log.jsonl").open("a") as file:
        file.write('{"at": 17, "eve')
    place.ok("handoff", session, "demo: say more")
    shown = place.ok("logs", session)
    assert shown.count("turn_ended") == 2
    entries = [json.loads(line) for line in place.ok("logs", "--json", session).splitlines()]
    assert {entry["session"] for entry in entries} == {session}  # one entry a line: JSON Lines
    assert [entry["event"] for entry in entries].count("turn_ended") == 2


@pytest.mark.parametrize("named", [False, True])
def test_logs_that_are_followed_go_on_and_leave_no_link_behind(place, named):
    session = idle_session(place)
    following = place.start("logs", "-f", "--json", *([session] if named else []))
    os.set_blocking(following.stdout.fileno(), False)
    seen = []

    def is_told(event):
        seen.append((following.stdout.read() or b"").decode())
        entries = map(json.loads, "".join(seen).splitlines())
        return any(e["session"] == session and e["event"] == event for e in entries)

    until(lambda: is_told("turn_ended"))
    if not named:  # nor is one left out that starts later
        session = idle_session(place)
        until(lambda: is_told("turn_ended"))
    place.ok("stop", session)
    until(lambda: is_told("ended"))
    following.terminate()
    assert following.wait(30) == 130
    assert [*place.home.rglob(f"{following.pid}-*")] == []


def test_a_task_noted_but_never_put_does_not_stop_the_next_wait(place):
    """So is a client left that was killed between its note and the message."""
    session = idle_session(place)
    note = folder_of(place, me(place)) / "out" / f"{session}.zzzz"
    note.write_text(f"{1:020d}-{session}.zzzz")
    assert place.ok("handoff", "demo", "demo: say next") == "next\n"
    _, task = assign(place, "demo: say and this")
    done = place.run("wait", "--json", "--timeout", "30s")
    assert task in [r["task"] for r in json.loads(done.stdout or '{"results": []}')["results"]], (
        done
    )
    assert place.run("wait", "--timeout", "30s").returncode == 0  # nothing is owed
    assert not note.exists()


@pytest.fixture
def small_disk():
    """A place on a disk of its own with little room, where one can be had."""
    folder = Path(tempfile.mkdtemp(prefix="cao-", dir="/tmp"))
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m,mode=700", "tmpfs", str(folder)]
    if os.getuid() or not shutil.which("mount") or subprocess.run(mount, check=False).returncode:
        folder.rmdir()
        pytest.skip("needs root and a tmpfs of its own")
    made = Place(folder)
    yield made
    made.close()
    subprocess.run(["umount", "-l", str(folder)], check=False)
    shutil.rmtree(folder, ignore_errors=True)


def fill(path):
    """Write a file until the disk is full."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 512)
    assert os.statvfs(path).f_bavail == 0


def test_a_full_disk_is_a_clear_error_and_all_goes_on_when_there_is_room(small_disk):
    place = small_disk
    session = idle_session(place)
    busy, task = assign(place, "demo: sleep 2; say after the flood")
    place.until_state(busy, "working")
    runners = [runner_of(place, name) for name in (session, busy)]
    fill(place.folder / "filler")
    for argv in (
        ["send", session, "x" * 9000],
        ["assign", "demo", "hello"],
        ["assign", session, "y"],
    ):
        full = place.run(*argv)
        assert (full.returncode, "Traceback" in full.stderr) == (1, False), (argv, full.stderr)
        assert "space" in full.stderr
    until(lambda: "* after the flood" in place.screen(busy), timeout_s=30)
    (place.folder / "filler").unlink()
    assert audit(place.home) == []
    done = place.run("wait", task, "--json", "--timeout", "30s")
    (result,) = json.loads(done.stdout)["results"]
    assert (result["outcome"], result["answer"]) == ("done", "after the flood")
    assert runners == [runner_of(place, name) for name in (session, busy)]
    assert place.ok("handoff", "demo", "demo: say room again") == "room again\n"
    assert not any("xxxx" in text or text == "y" for text in conversation(place, session))
    assert unanswered(place.home) == []


def test_a_file_that_may_not_grow_is_a_clear_error_and_no_half_file(place):
    idle_session(place)
    session, _ = assign(place, "demo: sleep 60")
    full = subprocess.run(
        [sys.executable, str(HERE.parent / "cao.py"), "send", session, "x" * 9000],
        capture_output=True, text=True, cwd=place.work, env=place.env, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )  # fmt: skip
    assert (full.returncode, "Traceback" in full.stderr) == (1, False), full.stderr
    assert place.store.waiting(session) == []
    assert audit(place.home) == []


# ---- another version; cleaning ----


def other_format(place):
    """Return a session that another version of cao made."""
    session = idle_session(place)
    place.ok("stop", session)
    path = folder_of(place, session) / "session.json"
    other = json.dumps({**json.loads(path.read_text()), "format": 99, "version": "9.9"})
    place.store.write(str(path), other)  # whole: its runner, on its way out, reads it too
    return session


def test_a_session_of_another_format_is_refused_with_the_version_it_needs(place):
    session = other_format(place)
    for verb in ("show", "stop", "why", "logs"):
        done = place.run(verb, session)
        assert done.returncode == 1, (verb, done.stdout)
        assert "9.9" in done.stderr, verb
        assert "Traceback" not in done.stderr, verb


def test_a_session_of_another_format_does_not_stop_the_others(place):
    foreign = other_format(place)
    place.store.set_live(foreign, True)
    assert place.ok("handoff", "demo", "demo: say unhindered") == "unhindered\n"
    (session,) = [n for n in place.live() if n != foreign]
    assert session in place.ok("ls")
    assert session in place.ok("logs")
    place.ok("stop", session)
    assert place.state(session)["state"] == "ended"
    assert "9.9" in place.run("clean", "--older", "0s").stderr + place.run("ls", "--all").stderr
    assert folder_of(place, foreign).exists()


def test_clean_removes_what_ended_and_nothing_that_is_still_of_use(place):
    def git(*args):
        return subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@t", *args],
            check=True, capture_output=True, cwd=place.work, env=place.env,
        )  # fmt: skip

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "first")
    sessions = {}
    for kind in ("gone", "pure", "dirty", "live"):
        flags = ["--worktree"] if kind in ("pure", "dirty") else []
        task = place.ok("assign", "demo", "hello", *flags).strip()
        place.ok("wait", task)
        sessions[kind] = task.partition(".")[0]
    (place.home / "worktrees" / sessions["dirty"] / "work").write_text("not committed")
    sessions["lost"], _ = assign(place, "demo: sleep 60")
    place.until_state(sessions["lost"], "working")
    sessions["owes"], _ = assign(place, "demo: sleep 60", CAO_CLIENT="other")
    place.until_state(sessions["owes"], "working")
    kill_runner(place, sessions["lost"])
    place.ok("stop", *[sessions[k] for k in ("gone", "pure", "dirty", "owes")])
    message = cao.Message("1-x", "message", me(place), sessions["gone"], "never read")
    place.store.put(message)
    assert sessions["gone"] not in place.ok("clean", "--older", "0s")
    place.store.take_message(sessions["gone"], "1-x").told()
    # The results of `lost` and `owes` were not fetched yet: their answers are in their folders.
    left = {k for k, name in sessions.items() if folder_of(place, name).exists()}
    assert left == {"gone", "dirty", "live", "lost", "owes"}
    place.run("wait", CAO_CLIENT="other")
    place.run("wait")
    place.ok("clean", "--older", "0s")
    left = {k for k, name in sessions.items() if folder_of(place, name).exists()}
    assert left == {"dirty", "live"}
    until(place.pids, lambda pids: len(pids) == 2)  # the live one's runner and CLI
    assert b"cao/" + sessions["pure"].encode() not in git("branch").stdout


def test_a_foreign_file_among_the_live_sessions_is_none_of_them(place):
    place.ok("ls")
    (place.home / "live" / "README.txt").touch()
    for command in (["ls"], ["clean"], ["stop", "--all"]):
        assert "README" not in place.ok(*command)
    (place.home / "live" / "README.txt").unlink()


def test_clean_removes_the_copies_of_cao_that_no_session_runs_from(place):
    session = idle_session(place)
    (kept,) = os.listdir(place.home / "lib")
    (place.home / "lib" / "0123456789abcdef").mkdir()
    place.ok("clean", "--older", "0s")
    assert os.listdir(place.home / "lib") == [kept]
    assert place.ok("handoff", session, "demo: say it still runs") == "it still runs\n"


def test_an_answer_that_nobody_read_yet_outlives_clean(place):
    session, task = assign(place, "demo: say precious")
    place.until_state(session, "idle")
    place.ok("stop", session)
    place.ok("clean", "--older", "0s")
    assert place.ok("wait", task) == "precious\n"


def test_clean_goes_on_though_one_worktree_cannot_be_read(place):
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    for args in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *args], check=True, cwd=place.work, env=place.env)
    task = place.ok("assign", "demo", "hello", "--worktree").strip()
    place.ok("wait", task)
    plain = idle_session(place)
    place.ok("stop", task.partition(".")[0], plain)
    shutil.rmtree(place.work / ".git")
    place.ok("clean", "--older", "0s")
    assert not folder_of(place, plain).exists()


IN_BETWEEN = ["ended but in live/", "a folder without session.json", "in live/ without a folder"]


@pytest.mark.parametrize("what", IN_BETWEEN)
def test_clean_removes_what_a_kill_left_in_between(place, what):
    if what == IN_BETWEEN[0]:
        session = idle_session(place)
        place.ok("stop", session)
    else:
        session = place.store.new_folder("demo")
    if "live/" in what:
        place.store.set_live(session, True)
    if what == IN_BETWEEN[2]:
        folder_of(place, session).rmdir()
        assert place.ok("run", "demo", "demo: say hi") == "hi\n"
    place.ok("clean", "--older", "0s")
    assert not folder_of(place, session).exists()
    assert place.live() == []
