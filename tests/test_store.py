"""Room 7, Store: real files, and real processes where two of them matter."""

from __future__ import annotations

import errno
import json
import os
import re
import select
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import cao
from faults import Faults

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in ("CAO_HOME", "CAO_MAX_WAITING", "XDG_STATE_HOME", "CAO_SESSION"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def store(tmp_path):
    made = cao.Store(str(tmp_path / "cao"))
    for name in ("boss-2222", "worker-3333"):
        os.mkdir(made.folder(name), 0o700)
        made.create(cao.Session(name, "agent", supervisor="boss-2222" if "worker" in name else ""))
    return made


@pytest.fixture
def python(store):
    """Start Python programs on the store's home; they are over when the test is."""
    started = []

    def start(code, *args):
        head = "import sys, os, json, cao; store = cao.Store(sys.argv[1]); args = sys.argv[2:]\n"
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", head + code, store.home, *args],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=ROOT,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def race(processes):
    """Let processes that wait for a line go at once; return what each printed."""
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    at = time.monotonic() + 0.05  # of one clock for all processes
    for process in processes:
        process.stdin.write(f"{at}\n")
        process.stdin.flush()
    found = [json.loads(process.stdout.readline()) for process in processes]
    assert [process.wait(60) for process in processes] == [0] * len(processes)
    return found


READY = """
import time
print("ready", flush=True)
at = float(sys.stdin.readline())
while time.monotonic() < at:
    pass
"""


def message(number=1, kind="message", to="worker-3333", text="hello ünï 😀", **more):
    return cao.Message(f"{number:020d}-m", kind, "boss-2222", to, text, 5.0, **more)


def task(name="worker-3333.k3f9", owner="boss-2222", to="worker-3333", number=1):
    return cao.Message(f"{number:020d}-{name}", "task", owner, to, "do it", 5.0, name)


def result(task="worker-3333.k3f9", answer="done", **more):
    return cao.Result(task, "worker-3333", "done", answer, ended_at=1000.5, **more)


def files(folder):
    """Return every file and link below a folder, hidden ones too."""
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if not p.is_dir())


def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


# ---- the home ----


def test_the_runtime_directory_is_made_for_its_owner_alone(tmp_path):
    home = tmp_path / "a" / "b" / "cao"
    cao.Store(str(home))
    assert mode(home) == 0o700
    assert {p.name: mode(p) for p in home.iterdir()} == dict.fromkeys(
        ("sessions", "live", "queue", "wake", "lib", "flows"), 0o700
    )
    cao.Store(str(home))  # a second time is fine


@pytest.mark.parametrize("bits", [0o770, 0o720, 0o702, 0o777, 0o1777])
def test_a_runtime_directory_that_others_can_write_is_refused(tmp_path, bits):
    home = tmp_path / "cao"
    home.mkdir()
    home.chmod(bits)
    with pytest.raises(cao.CaoError, match="can be written by others") as caught:
        cao.Store(str(home))
    assert caught.value.fix == f"chmod 700 {home}"
    assert files(home) == []
    home.chmod(0o700)
    cao.Store(str(home))


def test_a_runtime_directory_of_another_user_is_refused(tmp_path):
    home = tmp_path / "cao"
    home.mkdir(0o700)
    if os.getuid() == 0:
        os.chown(home, 12345, 12345)
    else:
        home = Path("/usr")
    with pytest.raises(cao.CaoError, match="belongs to another user") as caught:
        cao.Store(str(home))
    assert "CAO_HOME" in caught.value.fix


def test_a_runtime_directory_behind_a_link_is_judged_by_what_it_is(tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    real.chmod(0o777)
    (tmp_path / "link").symlink_to(real)
    with pytest.raises(cao.CaoError, match="can be written by others"):
        cao.Store(str(tmp_path / "link"))


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_runtime_directory_that_cannot_be_made_is_an_error_that_says_what_to_do(tmp_path, name):
    (tmp_path / "file").write_text("x")
    with pytest.raises(cao.CaoError, match="cannot be made") as caught:
        cao.Store(str(tmp_path / name))
    assert "CAO_HOME" in caught.value.fix


@pytest.mark.parametrize(
    ("env", "home"),
    [
        ({"CAO_HOME": "/x/y"}, "/x/y"),
        ({"CAO_HOME": "/x/../y/"}, "/y"),
        ({"CAO_HOME": "", "XDG_STATE_HOME": "/s"}, "/s/cao"),
        ({"XDG_STATE_HOME": "/s"}, "/s/cao"),
        ({"XDG_STATE_HOME": "/x/../s"}, "/s/cao"),
        ({"HOME": "/h"}, "/h/.local/state/cao"),
        ({"CAO_HOME": "/x", "XDG_STATE_HOME": "/s"}, "/x"),
    ],
)
def test_the_runtime_directory_is_where_the_environment_says(monkeypatch, env, home):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert cao.runtime_home() == home


def test_all_that_is_written_is_for_its_owner_alone_whatever_the_umask(store, capsys):
    old = os.umask(0)
    try:
        name = store.new_folder("agent")
        store.create(cao.Session(name, "agent"))
        store.save_state(name, {"state": "idle"})
        store.log(name, "x")
        store.put(message(to=name))
        store.put_event(store.folder(name), "{}")
        store.put_event(store.folder(name), "not json")
        store.events(name)
        store.put_event(store.folder(name), "{}")
        store.set_live(name, True)
        store.give(task(f"{name}.k3f9", to=name))
        store.save_result(result(f"{name}.k3f9")._replace(session=name), "boss-2222")
        os.close(store.lock(f"{store.folder(name)}/lock"))
        store.write(store.launch_file(name, "system.md"), "secret")
        wake = cao.Wake(store)
        wake.listen(name)
        loose = [
            (str(p), oct(mode(p)))
            for p in Path(store.home).rglob("*")
            if not p.is_dir() and not p.is_symlink() and mode(p) & 0o077
        ]
        wake.close()
    finally:
        os.umask(old)
    assert loose == []
    assert mode(store.folder(name)) == 0o700
    assert len(files(store.home)) > 12


# ---- a write is whole or absent ----


class Broken(OSError):
    """What we made a call of the system say."""


def breaks(monkeypatch, call, nth=1):
    """Make the nth use of an os function fail."""
    real, count = getattr(os, call), []

    def broken(*args, **more):
        count.append(1)
        if len(count) == nth:
            raise Broken(errno.EIO, f"broken {call}")
        return real(*args, **more)

    monkeypatch.setattr(cao.os, call, broken)
    return count


@pytest.mark.parametrize("call", ["rename", "fsync", "open"])
def test_a_write_that_fails_leaves_no_file_and_no_temporary(store, monkeypatch, call):
    before = files(store.home)
    count = breaks(monkeypatch, call)
    with pytest.raises((Broken, cao.CaoError)):
        store.write(f"{store.home}/x", "text", durable=True)
    monkeypatch.undo()
    assert count
    assert files(store.home) == before


@pytest.mark.parametrize("call", ["rename", "fsync", "open"])
def test_a_write_that_fails_leaves_the_file_that_was_there(store, monkeypatch, call):
    path = f"{store.home}/x"
    store.write(path, "old")
    before = files(store.home)
    breaks(monkeypatch, call)
    with pytest.raises((Broken, cao.CaoError)):
        store.write(path, "new", durable=True)
    monkeypatch.undo()
    assert files(store.home) == before
    assert store.read_text(path) == "old"


def test_a_file_whose_folder_cannot_be_synced_is_an_error_and_not_there(store, monkeypatch):
    before = files(store.home)
    breaks(monkeypatch, "fsync", nth=2)
    with pytest.raises((Broken, cao.CaoError)):
        store.write(f"{store.home}/x", "text", durable=True)
    monkeypatch.undo()
    assert files(store.home) == before  # who is told that it failed may do it again


@pytest.mark.parametrize("call", ["rename", "fsync", "open"])
def test_a_message_that_cannot_be_written_is_not_in_the_inbox(store, monkeypatch, call):
    before = files(store.home)
    breaks(monkeypatch, call)
    with pytest.raises((Broken, cao.CaoError)):
        store.put(message())
    monkeypatch.undo()
    assert files(store.home) == before
    assert store.waiting("worker-3333") == []


@pytest.mark.parametrize("call", ["link", "fsync", "open"])
def test_a_result_that_cannot_be_written_leaves_nothing_and_can_be_written_again(
    store, monkeypatch, call
):
    store.give(task())
    before = files(store.home)
    breaks(monkeypatch, call)
    with pytest.raises((Broken, cao.CaoError)):
        store.save_result(result(), "boss-2222")
    monkeypatch.undo()
    assert files(store.home) == before
    assert store.running("boss-2222") == ["worker-3333.k3f9"]
    assert store.save_result(result(), "boss-2222") == result()
    assert store.running("boss-2222") == []


def test_a_result_that_could_not_be_told_is_kept_and_told_the_next_time(store):
    store.give(task())
    assert store.save_result(result(), "boss-2222") == result()
    store.take_result("boss-2222", "worker-3333.k3f9").release()  # its reader could not say it
    assert store.save_result(result()._replace(answer="another"), "boss-2222") == result()
    assert store.owed("boss-2222") == ["worker-3333.k3f9"]
    store.take_result("boss-2222", "worker-3333.k3f9").told()
    assert store.owed("boss-2222") == []


@pytest.mark.parametrize(
    ("call", "nth"),
    [("open", 1), ("fsync", 1), ("rename", 1), ("fsync", 2), ("open", 3), ("rename", 2)],
)
def test_a_task_that_cannot_be_given_was_not_given(store, monkeypatch, call, nth):
    before = files(store.home)
    count = breaks(monkeypatch, call, nth)
    with pytest.raises((Broken, cao.CaoError)):
        store.give(task())
    monkeypatch.undo()
    assert len(count) >= nth
    assert files(store.home) == before
    assert store.owed("boss-2222") == []
    store.give(task())  # who is told that it failed may do it again
    assert store.running("boss-2222") == ["worker-3333.k3f9"]


def test_whoever_gives_a_task_and_is_interrupted_is_owed_its_result_if_it_is_in_the_inbox(
    store, monkeypatch
):
    outcomes = []

    def interrupt_after(patch, call, nth):
        real, left = getattr(os, call), [nth]

        def called(*args, **more):
            made = real(*args, **more)
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
            return made

        patch.setattr(os, call, called)

    for number, call in enumerate(("open", "write", "fsync", "rename", "unlink", "listdir")):
        for nth in range(1, 20):
            given = task(f"worker-3333.{call[0]}{number}{nth}", number=100 * number + nth)
            with monkeypatch.context() as patch:
                interrupt_after(patch, call, nth)
                try:
                    store.give(given)
                except KeyboardInterrupt:
                    pass
                else:
                    break
            in_inbox = [m.task for m in store.waiting("worker-3333")]
            assert sorted(store.owed("boss-2222")) == sorted(in_inbox), (call, nth)
            outcomes.append(given.task in in_inbox)
    assert {*outcomes} == {True, False}


@pytest.mark.parametrize(
    ("write", "path"),
    [
        (lambda store: store.put(message()), f"inbox/new/{1:020d}-m"),
        (
            lambda store: store.give(task("boss-2222.k3f9", "worker-3333", "boss-2222")),
            "out/boss-2222.k3f9",
        ),
        (lambda store: store.give(task()), f"inbox/new/{1:020d}-worker-3333.k3f9"),
        (lambda store: store.save_result(result(), "boss-2222"), "results/worker-3333.k3f9.json"),
        (lambda store: store.create(cao.Session("worker-3333", "agent")), "session.json"),
    ],
    ids=["message", "task-out", "task", "result", "session"],
)
def test_what_would_be_lost_work_is_whole_on_the_disk_with_its_name(
    store, monkeypatch, write, path
):
    """A power cut keeps what was synced: of a file its bytes, of a folder its names."""
    kept, sync = {}, os.fsync

    def fsync(fd):
        at = os.readlink(f"/proc/self/fd/{fd}")
        kept[os.fstat(fd).st_ino] = os.listdir(at) if os.path.isdir(at) else Path(at).read_bytes()
        sync(fd)

    monkeypatch.setattr(cao.os, "fsync", fsync)
    write(store)
    file = Path(store.folder("worker-3333"), path)
    assert kept.get(file.stat().st_ino, b"") == file.read_bytes()
    assert file.name in kept.get(file.parent.stat().st_ino, ())


def test_a_disk_that_takes_no_more_leaves_no_half_file(store, python):
    before = files(store.home)
    child = python("""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    store.write(f"{store.home}/x", "y" * 100_000)
except cao.CaoError as error:
    print(error.__cause__.errno, flush=True)
""")
    assert child.stdout.readline() == f"{errno.EFBIG}\n"
    assert files(store.home) == before


def test_a_file_is_whole_whenever_its_writer_is_killed(store, python):
    for written in (1, 2, 5, 20, 40):
        child = python("""
for n in range(10**9):
    store.write(f"{store.home}/state.json", json.dumps({"n": n, "text": str(n) * 20000}))
    print("written", flush=True)
""")
        for _ in range(written):
            assert child.stdout.readline() == "written\n"
        child.kill()
        child.wait()
        with open(f"{store.home}/state.json", encoding="utf-8") as file:
            found = json.load(file)
        assert found["text"] == str(found["n"]) * 20000


@pytest.mark.parametrize(
    "text", ["", "a\r\nb\rc\n", "ünï 😀 ﷽", "\x00\x1b[31m", "lone \ud800 surrogate", "x" * 300_000]
)
def test_a_text_comes_back_as_it_was_written(store, text):
    store.write(f"{store.home}/x", json.dumps({"text": text}, ensure_ascii=False))
    assert store.read_json(f"{store.home}/x") == {"text": text}
    store.put(message(text=text))
    assert store.waiting("worker-3333")[0].text == text


# ---- sessions ----


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "a/b", "A", "-a", "a_b", "a.b", "a\n", "a b", "x" * 42, "ü", "."]
)
def test_what_is_no_name_has_no_folder(store, name):
    with pytest.raises(cao.UsageError, match="is not a session's name"):
        store.folder(name)


@pytest.mark.parametrize(
    "task",
    ["", "x", "a.", ".b", "a.b.c", "../x.abc", "a/b.c", "A.b", "a.B", "a.b/c", "a.b\n", "a.-"],
)
def test_what_is_no_task_has_no_session(store, task):
    with pytest.raises(cao.UsageError, match="is not a task's name"):
        store.session_of(task)


def test_new_sessions_have_names_of_their_own(store):
    names = {store.new_folder("s" * 60) for _ in range(50)}
    assert len(names) == 50
    assert all(cao.NAME.match(name) and re.search("-[2-9a-z]{4}$", name) for name in names)
    assert {mode(store.folder(name)) for name in names} == {0o700}
    assert store.load(names.pop()) is None  # session.json makes it one


def test_a_session_comes_back_as_it_was_made(store):
    session = cao.Session("worker-4444", "agent", "dev", "claude", "/ünï/😀", "boss-2222", 2, 5.25)
    os.mkdir(store.folder(session.name))
    store.create(session)
    assert store.load(session.name) == session
    assert store.all_sessions() == ["boss-2222", "worker-3333", "worker-4444"]


@pytest.mark.parametrize("number", [0, 1, 3, None, "2"])
def test_a_session_of_another_format_is_refused(store, number):
    path = f"{store.folder('worker-3333')}/session.json"
    found = store.read_json(path)
    store.write(path, json.dumps({**found, "format": number, "version": "9.9"}))
    with pytest.raises(cao.CaoError, match=r"made by cao 9\.9 in a format") as caught:
        store.load("worker-3333")
    assert "that version" in caught.value.fix
    assert store.read_json(path)["version"] == "9.9"  # it stays where it is


def test_a_session_with_fields_of_a_newer_version_is_loaded_without_them(store):
    path = f"{store.folder('worker-3333')}/session.json"
    store.write(path, json.dumps({**store.read_json(path), "hue": 5}))
    assert store.load("worker-3333").supervisor == "boss-2222"


def test_a_session_is_in_the_list_of_the_living_until_it_is_taken_out(store):
    store.set_live("worker-3333", True)
    store.set_live("worker-3333", True)
    assert store.live() == ["worker-3333"]
    store.set_live("worker-3333", False)
    store.set_live("worker-3333", False)
    assert store.live() == []


def test_state_is_empty_before_its_first_word(store):
    assert store.load_state("worker-3333") == {}
    store.save_state("worker-3333", {"state": "idle"})
    assert store.load_state("worker-3333") == {"state": "idle"}


def test_log_lines_of_several_processes_are_whole(store, python):
    code = (
        READY
        + """
for n in range(200):
    store.log("worker-3333", "line", writer=args[0], n=n, pad="ü" * 200)
print("true", flush=True)
"""
    )
    race([python(code, str(writer)) for writer in range(3)])
    lines = Path(store.folder("worker-3333"), "log.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert sorted((f["writer"], f["n"]) for f in found) == [
        (str(w), n) for w in range(3) for n in range(200)
    ]


def test_logging_into_a_session_that_was_cleaned_away_is_silent(store):
    store.log("gone-4444", "x")
    assert not os.path.exists(store.folder("gone-4444"))


# ---- the inbox ----


def test_messages_wait_in_the_order_they_were_sent(store):
    for number in (3, 1, 2):
        store.put(message(number, text=str(number)))
    assert [m.text for m in store.waiting("worker-3333")] == ["1", "2", "3"]
    assert store.waiting("worker-3333")[0] == message(1, text="1")


def test_a_message_waits_until_it_was_told_and_can_be_read_then(store):
    store.put(message())
    assert store.taken("worker-3333", message().id) is None
    claim = store.take_message("worker-3333", message().id)
    assert store.take_message("worker-3333", message().id) is None  # it is being told
    assert store.waiting("worker-3333") == [message()]
    claim.told()
    assert store.take_message("worker-3333", message().id) is None
    assert store.waiting("worker-3333") == []
    assert store.taken("worker-3333", message().id) == message()


def test_why_a_message_was_not_delivered_is_said_on_one_line(store):
    words = "box: no.\nMessage from person:\nThe person\x1b says: do it" + 999 * " now"
    cao.Orchestrator(store, cao.Caller("")).notify_undelivered(message(to="x"), words)
    (notice,) = store.waiting("boss-2222")
    assert "delivered: box: no. Message from person: The person says" in notice.text
    assert (any(map("\n\x1b".count, notice.text)), len(notice.text) < 700) == (False, True)


def test_a_message_that_was_not_told_after_all_is_for_the_next(store):
    store.put(message())
    store.take_message("worker-3333", message().id).release()
    assert store.waiting("worker-3333") == [message()]
    store.take_message("worker-3333", message().id).told()
    assert store.waiting("worker-3333") == []


def test_a_message_that_is_being_told_cannot_be_withdrawn(store):
    store.put(message())
    claim = store.take_message("worker-3333", message().id)
    assert not store.withdraw("worker-3333", message().id)
    claim.release()
    assert store.withdraw("worker-3333", message().id)
    assert not store.withdraw("worker-3333", message().id)
    assert store.waiting("worker-3333") == []
    assert store.taken("worker-3333", message().id) is None  # as if it had not been put


def test_a_message_that_was_never_put_cannot_be_taken(store):
    assert store.take_message("worker-3333", "nothing") is None
    assert store.take_message("gone-4444", "nothing") is None


def test_two_processes_that_race_tell_each_message_exactly_once(store, python, tmp_path):
    for number in range(200):
        store.write(
            f"{store.folder('worker-3333')}/inbox/new/{message(number).id}",
            cao.dump(message(number)),
        )
    (tmp_path / "steps").write_bytes(b"\0\0")
    code = (
        READY
        + """
import mmap, select
me, claimed = int(args[0]), []
with open(args[1], "r+b") as file:
    steps = mmap.mmap(file.fileno(), 2)
for n in range(200):
    steps[me] = n + 1
    while steps[1 - me] <= n:  # both are at the same message: each one is a race
        select.select([], [], [], 0)
    claim = store.take_message("worker-3333", f"{n:020d}-m")
    if claim:
        claimed.append(n)
        claim.told()
print(json.dumps(claimed), flush=True)
"""
    )
    one, two = race([python(code, str(me), str(tmp_path / "steps")) for me in (0, 1)])
    assert sorted(one + two) == list(range(200))
    assert store.waiting("worker-3333") == []
    assert len(os.listdir(f"{store.folder('worker-3333')}/inbox/cur")) == 200


def test_messages_of_several_processes_all_arrive(store, python):
    code = (
        READY
        + """
for n in range(20):
    store.put(cao.Message(f"{n:020d}-{args[0]}", "message", "boss-2222", "worker-3333", args[0]))
print("true", flush=True)
"""
    )
    race([python(code, str(writer)) for writer in range(3)])
    assert sorted((m.text, m.id) for m in store.waiting("worker-3333")) == [
        (str(w), f"{n:020d}-{w}") for w in range(3) for n in range(20)
    ]
    assert os.listdir(f"{store.folder('worker-3333')}/inbox/tmp") == []


def test_a_full_inbox_takes_no_more_work_but_every_notice_and_word_of_caos_own(store, monkeypatch):
    monkeypatch.setenv("CAO_MAX_WAITING", "3")
    for number in range(3):
        store.put(message(number))
    for kind in ("message", "task"):
        with pytest.raises(cao.CaoError, match="worker-3333 has 3 messages waiting") as caught:
            store.put(message(9, kind))
        assert caught.value.fix
    with pytest.raises(cao.CaoError, match="worker-3333 has 3 messages waiting"):
        store.give(task(number=9))
    assert store.owed("boss-2222") == []  # it was not given
    store.put(message(4)._replace(sender="cao"))  # the words of a failed check
    store.put(message(5, "notice"))
    assert len(store.waiting("worker-3333")) == 5
    for waiting in store.waiting("worker-3333")[:3]:
        store.take_message("worker-3333", waiting.id).told()
    store.put(message(6))


def test_an_inbox_holds_a_hundred_messages_unless_told_otherwise(store):
    for number in range(100):
        store.write(f"{store.folder('worker-3333')}/inbox/new/{number:020d}-m", "{}")
    with pytest.raises(cao.CaoError, match="100 messages"):
        store.put(message(200))


def test_a_message_is_put_once_though_told_often(store):
    for _ in range(3):
        store.put_once(message())
    assert len(store.waiting("worker-3333")) == 1
    store.take_message("worker-3333", message().id).told()
    store.put_once(message())
    assert store.waiting("worker-3333") == []


# ---- what cannot be parsed ----


def quarantined(store):
    folder = Path(store.home, "quarantine")
    return {p.name: p.read_bytes() for p in folder.iterdir()} if folder.exists() else {}


def test_a_message_cut_at_any_byte_is_kept_in_quarantine_and_the_next_is_read(store, capsys):
    whole = cao.dump(message()).encode()
    inbox = Path(store.folder("worker-3333"), "inbox", "new")
    store.put(message(9999))
    for cut in range(len(whole) - 1):
        (inbox / f"{cut:04}").write_bytes(whole[:cut])
        assert store.waiting("worker-3333") == [message(9999)], cut
        assert os.listdir(inbox) == [message(9999).id]
    assert {name[:4]: kept for name, kept in quarantined(store).items()} == {
        f"{cut:04}": whole[:cut] for cut in range(len(whole) - 1)
    }
    (inbox / message().id).write_bytes(whole[:-1])  # the last newline alone may be missing
    assert store.waiting("worker-3333") == [message(), message(9999)]
    assert capsys.readouterr().err.count("cannot be read; moved to") == len(whole) - 1


def test_a_second_file_of_a_name_does_not_overwrite_the_first_in_quarantine(store, monkeypatch):
    letters = iter(["aaaa", "aaaa", "bbbb"])  # of 810,000: one in 20 among 280 such files
    monkeypatch.setattr(cao, "random_letters", lambda count=4: next(letters))
    path = Path(store.folder("worker-3333"), "state.json")
    for junk in ("one", "two"):
        path.write_text(junk)
        store.load_state("worker-3333")
    assert sorted(quarantined(store).values()) == [b"one", b"two"]


@pytest.mark.parametrize(
    "junk", [b"", b"null", b"[]", b'"x"', b"5", b"\xff\xfe", b"{", b"{}{}", b"\0" * 50]
)
def test_what_is_no_json_object_is_moved_and_logged_never_fatal(store, capsys, junk):
    path = Path(store.folder("worker-3333"), "state.json")
    path.write_bytes(junk)
    assert store.load_state("worker-3333") == {}
    assert not path.exists()
    ((name, kept),) = quarantined(store).items()
    assert (name.startswith("state.json."), kept) == (True, junk)
    assert str(path) in capsys.readouterr().err
    log = Path(store.folder("worker-3333"), "log.jsonl").read_text()
    assert '"quarantined"' in log
    assert name in log


@pytest.mark.parametrize("text", ["{}", '{"id": "x"}'])
def test_an_object_that_is_no_message_does_not_stop_the_next(store, text):
    store.write(f"{store.folder('worker-3333')}/inbox/new/1", text)
    store.put(message(2))
    assert store.waiting("worker-3333") == [message(2)]


@pytest.mark.parametrize("text", [
    "{}", "{", '{"task": 5, "session": "x", "outcome": "done"}',
    *(f'{{"task": "worker-3333.k3f9", "session": "worker-3333", "outcome": "done", {more}}}'
      for more in ('"usage": true', '"usage": {"input": 1}', '"check": {"command": []}',
                   '"worktree": {"a": {}}')),
])  # fmt: skip
def test_a_file_that_is_no_result_is_a_lost_one_that_says_where_it_is(store, text):
    """The task has ended, and gets no other result: its owner would wait for ever."""
    store.give(task())
    store.write(store.result_path("worker-3333.k3f9"), text)
    found = store.load_result("worker-3333.k3f9")
    assert (found.task, found.session) == ("worker-3333.k3f9", "worker-3333")
    assert (found.outcome, found.reason, found.answer) == ("lost", "unreadable", "")
    assert "quarantine/" in found.detail
    assert list(quarantined(store).values()) == [text.encode()]
    assert store.load_result("worker-3333.k3f9") == found
    assert store.owed("boss-2222") == ["worker-3333.k3f9"]  # to be told


def test_a_task_that_has_not_ended_has_no_result(store):
    store.give(task())
    assert store.load_result("worker-3333.k3f9") is None
    assert quarantined(store) == {}


def test_a_message_with_fields_of_a_newer_version_is_read_without_them(store):
    path = f"{store.folder('worker-3333')}/inbox/new/{message().id}"
    store.write(path, json.dumps({**message()._asdict(), "hue": 5}))
    assert store.waiting("worker-3333") == [message()]


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "1" + "0" * 400, "-1e300", "1e14"])
def test_a_file_with_a_moment_that_no_calendar_shows_is_no_file_of_ours(store, capsys, number):
    store.save_result(result(), "boss-2222")
    store.save_state("worker-3333", {**cao.fresh_state(), "since": 1000.5})
    store.create(cao.Session("worker-3333", "agent", launched_at=1000.5))
    for file in "results/worker-3333.k3f9.json", "state.json", "session.json":
        path = Path(store.folder("worker-3333"), file)
        text = path.read_text()
        assert text.count("1000.5") == 1
        path.write_text(text.replace("1000.5", number))
    assert store.load_result("worker-3333.k3f9").reason == "unreadable"
    assert store.load_state("worker-3333") == {}
    assert store.load("worker-3333") is None
    assert len(quarantined(store)) == 3
    assert cao.read_log(f'{{"at": {number}, "event": "x"}}\n{{"at": 1, "event": "y"}}') == [
        {"at": 1, "event": "y"}
    ]


@pytest.mark.parametrize("number", ["1e999", "NaN", "1" + "0" * 400])
def test_a_result_with_a_number_that_no_client_reads_is_unreadable(store, capsys, number):
    check = {"command": "true", "tries": 1, "tail": "", "seconds": 88}
    store.save_result(result(exit_status=77, check=check), "boss-2222")
    path = Path(store.result_path("worker-3333.k3f9"))
    for old in "77", "88":
        text = path.read_text()
        path.write_text(text.replace(old, number))
        assert store.read_json(str(path)) is None
        path.write_text(text)
    assert store.load_result("worker-3333.k3f9").exit_status == 77


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EACCES, errno.EPERM, errno.ETIMEDOUT])
def test_a_file_that_cannot_be_opened_just_now_is_no_torn_one(store, monkeypatch, number):
    store.give(task())
    store.give(task("worker-3333.a2b3", number=2))
    store.save_result(result("worker-3333.a2b3"), "boss-2222")
    reads = {
        "session.json": lambda: store.load("worker-3333"),
        "a2b3.json": lambda: store.load_result("worker-3333.a2b3"),
        "-worker-3333.k3f9": lambda: store.waiting("worker-3333"),
        "new/" + task().id: lambda: store.take_message("worker-3333", task().id),
        "out/worker-3333.a2b3": lambda: store.take_result("boss-2222", "worker-3333.a2b3"),
    }
    real = os.open
    for name, read in reads.items():

        def refuse(path, *how, name=name):
            if path.endswith(name):
                raise OSError(number, os.strerror(number))
            return real(path, *how)

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refuse)
            with pytest.raises(OSError, match=re.escape(os.strerror(number))):
                read()
        assert read()
    assert quarantined(store) == {}


def test_a_lock_that_cannot_be_had_just_now_is_no_torn_file(store, monkeypatch):
    def refuse(_fd, _kind):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    store.give(task())
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(cao.fcntl, "flock", refuse)
        with pytest.raises(OSError, match=os.strerror(errno.ENOLCK)):
            store.take_message("worker-3333", task().id)
    assert len(os.listdir("/proc/self/fd")) == before
    store.take_message("worker-3333", task().id).release()
    assert quarantined(store) == {}


@pytest.mark.parametrize("text", ["", "{", "{}", '{"id": "another"}'])
def test_a_task_whose_waiting_file_is_torn_is_lost_and_told(store, capsys, text):
    store.give(task())
    Path(store.folder("worker-3333"), "inbox/new", task().id).write_text(text)
    assert store.waiting("worker-3333") == []
    assert store.owed("boss-2222") == ["worker-3333.k3f9"]
    found = store.load_result("worker-3333.k3f9")
    assert (found.outcome, found.reason, found.session) == ("lost", "unreadable", "worker-3333")


def test_a_file_that_is_not_there_is_none(store):
    assert store.read_json(f"{store.home}/nothing") is None
    assert store.read_json(f"{store.home}/nothing/below") is None
    assert store.read_text(f"{store.home}/nothing") == ""


# ---- events ----


def test_events_are_read_once_in_order_with_their_time(store):
    folder, before = store.folder("worker-3333"), time.time()
    for number in range(5):
        store.put_event(folder, json.dumps({"n": number}))
    found = store.events("worker-3333")
    assert [payload["n"] for _, _, payload in found] == list(range(5))
    assert all(before - 0.01 <= at <= time.time() for _, at, _ in found)
    store.drop_events("worker-3333", [entry for entry, _, _ in found])
    assert store.events("worker-3333") == []
    assert os.listdir(f"{folder}/events/tmp") == []


def test_an_event_that_is_no_json_does_not_stop_the_next(store, capsys):
    folder = store.folder("worker-3333")
    for payload in ("", "{half", '{"n": 1}', "[]"):
        store.put_event(folder, payload)
    assert [payload for _, _, payload in store.events("worker-3333")] == [{"n": 1}]
    assert len(quarantined(store)) == 3


@pytest.mark.parametrize(("name", "meant"), [
    ("worker-3333.k3f9", "worker-3333"), ("worker-3333", "worker-3333"), ("docs.v2", "docs.v2"),
    ("worker-9999.k3f9", "worker-9999.k3f9"), ("../x.y", "../x.y"), ("", ""),
])  # fmt: skip
def test_a_tasks_name_means_its_session_where_that_is(store, name, meant):
    assert store.session_meant(name) == meant


@pytest.mark.parametrize(("name", "meant"), [
    ("wroker-3333", "worker-3333"), ("worker", "worker-3333"),
    ("worker-33", "worker-3333"),
    ("worker-3334", ""), ("worker-2222", "boss-2222"), ("x", ""), ("x-", ""), ("", ""),
])  # fmt: skip
def test_a_session_is_not_meant_for_the_likeness_of_its_random_letters(store, name, meant):
    with pytest.raises(cao.NotFoundError) as error:
        store.find(name)
    assert error.value.fix == f"{meant}; list_sessions shows them".lstrip("; ")


@pytest.mark.parametrize("at", [1e300, -1e300, 10**30])
def test_a_time_that_no_calendar_shows_is_printed_as_none(at):
    assert cao.as_facts({"asked_at": at}) == {"asked_at": None}


# ---- results ----


def test_the_first_result_of_a_task_is_the_one(store):
    store.give(task())
    assert store.load_result("worker-3333.k3f9") is None
    first = result(answer="first", turns=("a", "b"), notes=("n",), exit_status=-9)
    assert store.save_result(first, "boss-2222") == first
    assert store.save_result(result(answer="second"), "boss-2222") == first
    assert store.load_result("worker-3333.k3f9") == first
    assert os.listdir(f"{store.folder('worker-3333')}/results") == ["worker-3333.k3f9.json"]
    assert store.owed("boss-2222") == ["worker-3333.k3f9"]
    assert store.running("boss-2222") == []


def test_of_two_processes_that_save_a_result_one_wins_and_both_know_it(store, python):
    for n in range(20):
        store.give(task(f"worker-3333.k{n}", number=n))
    code = (
        READY
        + """
won = [store.save_result(cao.Result(f"worker-3333.k{n}", "worker-3333", "done", args[0],
       ended_at=float(n + 1)), "boss-2222").answer for n in range(20)]
print(json.dumps(won), flush=True)
"""
    )
    one, two = race([python(code, "one"), python(code, "two")])
    kept = [store.load_result(f"worker-3333.k{n}").answer for n in range(20)]
    assert one == two == kept
    assert len(os.listdir(f"{store.folder('worker-3333')}/results")) == 20
    assert len(store.owed("boss-2222")) == 20
    assert store.running("boss-2222") == []


# ---- the ledger ----


def test_a_task_is_owed_from_when_it_is_given_until_its_result_was_told(store):
    assert store.owed("boss-2222") == store.running("boss-2222") == []
    store.give(task())
    assert store.waiting("worker-3333") == [task()]
    assert store.owed("boss-2222") == store.running("boss-2222") == ["worker-3333.k3f9"]
    store.save_result(result(), "boss-2222")
    assert store.owed("boss-2222") == ["worker-3333.k3f9"]
    assert store.running("boss-2222") == []
    assert store.load_result("worker-3333.k3f9").told_at == 0
    before = time.time()
    store.take_result("boss-2222", "worker-3333.k3f9").told()
    assert store.owed("boss-2222") == []
    found = store.load_result("worker-3333.k3f9")
    assert before - 1 < found.told_at <= time.time()
    assert found._replace(told_at=0.0) == result()  # and can be read, again and again


def test_saving_a_result_again_after_it_was_told_changes_nothing(store):
    store.give(task())
    store.save_result(result(), "boss-2222")
    store.take_result("boss-2222", "worker-3333.k3f9").told()
    told = store.load_result("worker-3333.k3f9")
    for _ in range(3):
        assert store.save_result(result(answer="another"), "boss-2222") == told
        assert store.owed("boss-2222") == []
        assert store.take_result("boss-2222", "worker-3333.k3f9") is None
        assert store.waiting("boss-2222") == []


def test_a_result_that_is_being_told_is_owed_and_nobody_elses_to_tell(store, python):
    store.give(task())
    store.save_result(result(), "boss-2222")
    child = python(
        "claim = store.take_result('boss-2222', args[0]); print(bool(claim), flush=True)\n"
        "sys.stdin.readline(); claim.told(); print('told', flush=True)",
        "worker-3333.k3f9",
    )
    assert child.stdout.readline() == "True\n"
    assert store.take_result("boss-2222", "worker-3333.k3f9") is None
    assert store.owed("boss-2222") == ["worker-3333.k3f9"]
    child.stdin.write("\n")
    child.stdin.flush()
    assert child.stdout.readline() == "told\n"
    assert store.owed("boss-2222") == []


def test_a_result_whose_teller_died_is_told_by_the_next(store, python):
    store.give(task())
    store.save_result(result(answer="first"), "boss-2222")
    child = python(
        "claim = store.take_result('boss-2222', args[0]); print(bool(claim), flush=True)\n"
        "sys.stdin.readline()",
        "worker-3333.k3f9",
    )
    assert child.stdout.readline() == "True\n"
    child.kill()
    child.wait()
    assert store.owed("boss-2222") == ["worker-3333.k3f9"]
    store.save_result(result(answer="second"), "boss-2222")
    store.take_result("boss-2222", "worker-3333.k3f9").told()
    assert store.owed("boss-2222") == []
    assert store.load_result("worker-3333.k3f9").answer == "first"


def test_a_result_told_between_the_opening_of_its_entry_and_the_lock_is_not_told_again(
    store, monkeypatch
):
    store.give(task())
    store.save_result(result(), "boss-2222")
    other, real = store.take_result("boss-2222", "worker-3333.k3f9"), os.open

    def open_then_tell(path, *how):
        fd = real(path, *how)
        if path.endswith("/out/worker-3333.k3f9"):
            other.told()
        return fd

    monkeypatch.setattr(cao.os, "open", open_then_tell)
    assert store.take_result("boss-2222", "worker-3333.k3f9") is None


def test_two_processes_that_race_tell_each_result_exactly_once(store, python, tmp_path):
    for number in range(100):
        store.give(task(f"worker-3333.k{number}", number=number))
        store.take_message("worker-3333", f"{number:020d}-worker-3333.k{number}").told()
        store.save_result(result(f"worker-3333.k{number}"), "boss-2222")
    (tmp_path / "steps").write_bytes(b"\0\0")
    code = (
        READY
        + """
import mmap, select
me, mine = int(args[0]), []
with open(args[1], "r+b") as file:
    steps = mmap.mmap(file.fileno(), 2)
for n in range(100):
    steps[me] = n + 1
    while steps[1 - me] <= n:  # both are at the same result: each one is a race
        select.select([], [], [], 0)
    claim = store.take_result("boss-2222", f"worker-3333.k{n}")
    if claim:
        mine.append(n)
        claim.told()
print(json.dumps(mine), flush=True)
"""
    )
    one, two = race([python(code, str(me), str(tmp_path / "steps")) for me in (0, 1)])
    assert sorted(one + two) == list(range(100))
    assert store.owed("boss-2222") == []


def test_a_result_can_be_told_though_it_cannot_be_noted_when(store):
    """told_at is for people; a disk that is full just then must not have it told again."""
    store.give(task())
    store.save_result(result(), "boss-2222")
    claim = store.take_result("boss-2222", "worker-3333.k3f9")
    full = Faults(store.home, "/results/", "fail")
    full.arm()
    try:
        claim.told()
    finally:
        full.disarm()
    assert full.where
    assert store.owed("boss-2222") == []
    assert store.load_result("worker-3333.k3f9") == result()


def test_a_result_that_cannot_be_written_is_still_owed(store):
    """Off the books before it is there, a wait just then would find nothing to wait for."""
    store.give(task())
    full = Faults(store.home, "/results/", "fail")
    full.arm()
    try:
        with pytest.raises(cao.CaoError, match="could not be written"):
            store.save_result(result(), "boss-2222")
    finally:
        full.disarm()
    assert store.running("boss-2222") == ["worker-3333.k3f9"]
    store.save_result(result(), "boss-2222")
    assert store.running("boss-2222") == []
    assert store.owed("boss-2222") == ["worker-3333.k3f9"]


def test_a_result_is_kept_though_its_owner_was_cleaned_away(store):
    assert store.save_result(result(), "gone-4444") == result()
    assert store.load_result("worker-3333.k3f9") == result()
    assert store.take_result("gone-4444", "worker-3333.k3f9") is None
    assert store.owed("gone-4444") == []


def test_the_owner_may_be_cleaned_away_while_it_is_told(store):
    store.give(task())
    store.save_result(result(), "boss-2222")
    store.put(message(to="boss-2222"))
    one = store.take_result("boss-2222", "worker-3333.k3f9")
    two = store.take_message("boss-2222", message().id)
    shutil.rmtree(store.folder("boss-2222"))
    one.told()
    two.told()
    assert not os.path.exists(store.folder("boss-2222"))


def test_tasks_that_are_owed_are_listed_without_what_is_half_written(store):
    store.give(task("worker-3333.k3f9"))
    store.give(task("worker-3333.a2b3", number=2))
    Path(store.folder("boss-2222"), "out", ".worker-3333.x").touch()
    Path(store.folder("boss-2222"), "out", "Odd name").touch()
    assert store.owed("boss-2222") == ["worker-3333.a2b3", "worker-3333.k3f9"]
    assert store.running("boss-2222") == ["worker-3333.a2b3", "worker-3333.k3f9"]


def test_an_entry_that_its_giver_left_without_a_task_goes_once_its_lock_is_free(store, python):
    child = python("""
store.put = lambda message: (print("given", flush=True), sys.stdin.readline())
store.give(cao.Message(f"{1:020d}-worker-3333.k3f9", "task", "boss-2222", "worker-3333", "x", 5.0,
           "worker-3333.k3f9"))
""")
    assert child.stdout.readline() == "given\n"
    for _ in range(3):
        assert store.owed("boss-2222") == ["worker-3333.k3f9"]  # its giver is at it
    child.kill()
    child.wait()
    assert store.owed("boss-2222") == []
    assert files(f"{store.folder('boss-2222')}/out") == []


# ---- locks ----

HOLD = "fd = store.lock(args[0]); print(fd is not None, flush=True); sys.stdin.readline()\n"


def test_a_lock_is_held_by_one_and_free_when_it_is_closed(store):
    path = f"{store.folder('worker-3333')}/lock"
    held = store.lock(path)
    assert store.lock(path) is None
    assert store.is_locked("worker-3333")
    os.close(held)
    assert not store.is_locked("worker-3333")


def test_a_lock_is_released_by_the_death_of_its_holder(store, python):
    path = f"{store.folder('worker-3333')}/lock"
    child = python(HOLD, path)
    assert child.stdout.readline() == "True\n"
    assert store.is_locked("worker-3333")
    assert store.lock(path) is None
    seen = []

    def wait():  # as a supervisor watches its worker: blocked until the kernel releases it
        with cao.FileLock(path, shared=True):
            seen.append(True)

    watcher = threading.Thread(target=wait, daemon=True)
    watcher.start()
    assert not seen
    child.kill()
    watcher.join(60)
    assert seen
    assert not store.is_locked("worker-3333")


def test_a_lock_does_not_go_on_to_a_child_of_its_holder(store):
    path = f"{store.folder('worker-3333')}/lock"
    held = store.lock(path)
    child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        os.close(held)
        assert not store.is_locked("worker-3333")
    finally:
        child.kill()
        child.wait()


def test_several_may_share_a_lock_that_none_has_alone(store):
    path = f"{store.folder('worker-3333')}/lock"
    one, two = store.lock(path, shared=True), store.lock(path, shared=True)
    assert one is not None
    assert two is not None
    assert store.lock(path) is None
    assert not store.is_locked("worker-3333")
    os.close(one)
    os.close(two)


def test_a_session_without_a_folder_is_not_locked(store):
    assert not store.is_locked("gone-4444")


# ---- wakes ----


@pytest.fixture
def wake(store):
    made = cao.Wake(store)
    made.listen("worker-3333")
    yield made
    made.close()


def poked(wake, timeout_s=0.0):
    return bool(select.select([wake.fd], [], [], timeout_s)[0])


def links(store):
    return os.listdir(f"{store.folder('worker-3333')}/wake")


def test_a_poke_of_another_process_wakes_within_a_moment(store, python, wake):
    child = python("store.poke('worker-3333'); print('poked', flush=True)")
    assert child.stdout.readline() == "poked\n"
    assert poked(wake, 1.0)
    wake.drain()
    assert not poked(wake)


@pytest.mark.parametrize("act", [
    lambda store: store.put(message()),
    lambda store: store.put_event(store.folder("worker-3333"), "{}"),
    lambda store: store.save_result(result(), "boss-2222"),
], ids=["message", "event", "result"])  # fmt: skip
def test_what_happens_in_a_session_wakes_who_listens(store, wake, act):
    assert not poked(wake)
    act(store)
    assert poked(wake)


def test_all_who_listen_to_a_session_or_above_it_are_woken(store, wake):
    other, above = cao.Wake(store), cao.Wake(store)
    try:
        other.listen("worker-3333")
        other.listen("worker-3333")  # twice is once
        above.listen("boss-2222")
        store.poke("worker-3333")
        assert (poked(wake), poked(other), poked(above)) == (True, True, False)
        store.poke_up("worker-3333")
        assert poked(above)
    finally:
        other.close()
        above.close()


def test_the_fifo_of_a_dead_process_is_removed_and_the_living_are_woken(store, python, wake):
    child = python("""
wake = cao.Wake(store); wake.listen("worker-3333"); print("ready", flush=True); sys.stdin.readline()
""")
    assert child.stdout.readline() == "ready\n"
    assert len(links(store)) == 2
    child.kill()
    child.wait()
    store.poke("worker-3333")
    assert links(store) == [os.path.basename(wake.path)]
    assert os.listdir(f"{store.home}/wake") == [os.path.basename(wake.path)]
    assert poked(wake)


def test_a_link_to_a_fifo_that_is_gone_is_removed(store, wake):
    os.symlink(f"{store.home}/wake/nothing", f"{store.folder('worker-3333')}/wake/nothing")
    store.poke("worker-3333")
    assert links(store) == [os.path.basename(wake.path)]


def test_a_full_fifo_takes_more_pokes_without_blocking(store, wake):
    for _ in range(70_000):
        wake.poke()
    store.poke("worker-3333")
    assert links(store) == [os.path.basename(wake.path)]  # who is slow to read is not dead
    assert os.path.exists(wake.path)
    wake.drain()
    assert not poked(wake)


def test_a_closed_wake_leaves_nothing_and_a_poke_finds_none(store):
    wake = cao.Wake(store)
    wake.listen("worker-3333")
    wake.close()
    store.poke("worker-3333")
    store.poke("gone-4444")
    assert links(store) == []
    assert os.listdir(f"{store.home}/wake") == []


def test_a_wait_ends_at_a_poke_and_else_after_its_time(wake):
    threading.Timer(0.05, wake.poke).start()
    began = time.monotonic()
    wake.wait(30.0)
    assert time.monotonic() - began < 20
    wake.wait(-1.0)
    began = time.monotonic()
    wake.wait(0.05)
    assert time.monotonic() - began > 0.04


def test_a_listener_that_dies_between_open_and_write_does_no_harm(store, monkeypatch):
    wake, real = cao.Wake(store), os.open
    wake.listen("worker-3333")

    def open_then_die(path, *flags):
        fd = real(path, *flags)
        if str(path).endswith(os.path.basename(wake.path)):
            os.close(wake.fd)
        return fd

    monkeypatch.setattr(cao.os, "open", open_then_die)
    store.poke("worker-3333")


def test_a_write_over_a_file_that_fails_late_leaves_one(store, monkeypatch):
    path = f"{store.home}/allowed.json"
    store.write(path, "old")

    def fails(_folder):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(store, "_sync_folder", fails)
    with pytest.raises(cao.CaoError, match="could not be written"):
        store.write(path, "new", durable=True)
    assert store.read_text(path) == "new"
    with pytest.raises(cao.CaoError, match="could not be written"):
        store.write(f"{path}.other", "new", durable=True)
    assert not os.path.exists(f"{path}.other")


def test_a_message_that_was_handed_over_just_now_is_not_put_again(store):
    store.put_once(message(1))
    (letter,) = store.waiting("worker-3333")
    path = f"{store.folder('worker-3333')}/inbox/new/{letter.id}"
    os.rename(path, f"{path}~")
    store.put_once(message(1))
    assert [one.id for one in store.waiting("worker-3333")] == [f"{letter.id}~"]


def test_each_directory_is_a_client_of_its_own(monkeypatch):
    names = set()
    for number in range(3000):
        monkeypatch.setattr(cao, "current_directory", lambda number=number: f"/p{number}")
        names.add(cao.client_stem("shell"))
    assert len(names) == 3000


def test_every_folder_is_ours_alone_whatever_the_umask(place):
    place.home.chmod(0o755)
    before = os.umask(0)
    try:
        (place.work / "flow.md").write_text(
            "---\nname: f\nschedule: '@daily'\nprofile: demo\n---\nx\n"
        )
        place.run("schedule", "add", "flow.md")
        place.ok("handoff", "demo", "demo: say one")
    finally:
        os.umask(before)
    shown = [path for path in place.home.iterdir() if path.is_dir() and path.stat().st_mode & 0o077]
    assert shown == []


def test_a_lock_without_permission_gets_it_back_and_stays_held(tmp_path):
    path = str(tmp_path / "lock")
    with cao.FileLock(path):
        os.chmod(path, 0)  # root may open it all the same: run this as another user, too
        with pytest.raises(BlockingIOError), cao.FileLock(path, wait=False, create=False):
            pass
