"""The ledger: a result is owed until it was told, whoever is killed, frozen or cut off while
he tells it; and one bad file costs at most itself.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

import cao
from conftest import until

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
