"""Where cao meets others: tmux's languages, a terminal, the folders above its own, its caller."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pty
import re
import select
import shlex
import shutil
import stat
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

import cao
from conftest import CAO, McpClient, until
from test_views import Terminal

# What tmux's command line, its formats, its configuration, strftime, a shell or a terminal
# would not take as it is.
NAMES = [
    "x#(touch pwned)", "e;", "e\\;", ";", "a%Hb%", "#{pid}", "##[x]", "#[fg=red]", "~", "$HOME",
    "a'b\"c", "new\nline", "-c", "sp ace", "{x}", "b\\", "[a]*?", "é日本", "\x1b[31m", "\udcff",
]  # fmt: skip


# ---- strings that reach tmux ----


@pytest.fixture
def tmux(place, monkeypatch):
    """Our door to a server of this test's own, and what it has started."""
    monkeypatch.setenv("TMUX_TMPDIR", place.env["TMUX_TMPDIR"])
    conf = place.folder / "base.conf"
    conf.write_text(cao.TMUX_CONF)
    door = cao.Tmux("edges", str(conf))
    yield door
    door.run("kill-server")


# Writes (cwd, HERE, its arguments) into the file it is told, then all that is typed to it.
TYPED_TO = """\
import os, sys, tty
tty.setraw(0)
with open(sys.argv[1] + ".new", "w") as file:
    file.write(repr((os.getcwd(), os.environ["HERE"], sys.argv[2:])))
os.rename(sys.argv[1] + ".new", sys.argv[1])
os.write(1, b"\\x1b[?2004h")
with open(sys.argv[1] + ".typed", "wb", buffering=0) as file:
    while data := os.read(0, 65536):
        file.write(data)
        os.write(1, b"more\\n")
"""


def start(tmux, place, cwd: str, *argv: str) -> tuple[str, Path]:
    """Start such a program in a directory; return its pane and its file."""
    out = place.folder / f"out{len(list(place.folder.glob('out*')))}"
    run = [sys.executable, "-c", TYPED_TO, str(out), *argv]
    name = f"s{out.name[3:]}"
    tmux.new_session(name, cwd, {"HERE": cwd}, run, fixed=True)
    until(lambda: Path(f"{out}.typed").exists())
    return tmux.pane_of(name), out


@pytest.mark.tmux
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_tmux_takes_a_path_an_argument_and_a_command_as_they_are(tmux, place, name):
    cwd = f"{place.work}/{name}"
    os.mkdir(cwd)
    pane, out = start(tmux, place, cwd, cwd, ";", "a;")
    assert eval(out.read_text(errors="surrogateescape")) == (cwd, cwd, [cwd, ";", "a;"])
    tmux.pipe(pane, "exec cat >" + cao.quote_argv([f"{cwd}/printed"]))
    tmux.run("send-keys", "-t", pane, "-l", "--", "-x;")
    tmux.run("send-keys", "-t", pane, "-l", "--", ";")
    until(lambda: os.path.exists(f"{cwd}/printed") and Path(f"{cwd}/printed").read_text())
    until(lambda: Path(f"{out}.typed").read_text(), "-x;;")
    assert [*place.folder.rglob("pwned*")] == []


@pytest.mark.tmux
def test_what_is_pasted_is_exact_whatever_it_begins_with(tmux, place):
    pane, out = start(tmux, place, str(place.work))
    letters = [chr(code) for code in range(32, 127)]
    pieces = [first + rest for first in letters for rest in ("", "/src/a.c", first)]
    pieces += ["~root x", "$HOME", "${HOME}", "#(touch pwned)", "%if 1", "\\101", "a;", "é👩‍👩‍👧"]
    pieces += ["line\n  # two\n~three\n\\", "tab\there", "x" * 5000]
    tmux.paste(pane, pieces)
    wanted = "".join(f"\x1b[200~{piece}\x1b[201~" for piece in pieces)
    until(lambda: len(Path(f"{out}.typed").read_bytes()), len(wanted.encode()))
    assert Path(f"{out}.typed").read_text() == wanted
    assert [*place.folder.rglob("pwned*")] == []


@pytest.mark.tmux
def test_a_session_has_its_size_on_each_tmux(tmux, place):
    start(tmux, place, str(place.work))
    asked = ("list-windows", "-F", "#{window_width}x#{window_height} #{window-size}")
    assert tmux.run(*asked).split() == ["200x50", "manual"]


@pytest.mark.tmux
def test_what_an_agent_asks_is_no_format_in_the_status_line(place, request):
    session = place.ok("launch", "demo", "--detach").strip()
    place.until_state(session, "idle")
    shown = Terminal(place, 120, 10, "attach", session)
    request.addfinalizer(shown.close)
    conf = place.home / "tmux.conf"
    door = cao.Tmux(cao.tmux_socket(str(place.home)), str(conf))
    door.env = place.env
    for name in [*NAMES, "#" * 5]:
        door.show_state(f"={session}:", "asking", [{"text": f"{name} end"}])
        words = " ".join(cao.visible(f"asks: {name} end").split())
        until(shown.screen, lambda s, w=words: s.endswith(f"{session}  C-b d leaves  {w}\n"))
    door.show_state(f"={session}:", "asking", [{"text": "a" * 300}])
    shown.sees(rf"^{session}  C-b d leaves  asks: a+…$")
    assert [*place.folder.rglob("pwned*")] == []


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_worker_works_in_any_directory(place, name):
    (place.work / name).mkdir()
    given = ("handoff", "demo", "demo: say done")
    assert place.ok(*given, f"--cwd={name}") == "done\n"
    assert place.ok(*given, cwd=place.work / name) == "done\n"
    seen = json.loads(place.ok("ls", "--json"))
    assert {v["cwd"] for v in seen if v["kind"] == "agent"} == {f"{place.work}/{name}"}
    assert [*place.folder.rglob("pwned*")] == []


@pytest.mark.parametrize("name", [n for n in NAMES if n != "\udcff"], ids=ascii)
def test_a_runtime_directory_may_have_any_name(place, name):
    place.profile("calc", CALC)
    home = f"{place.folder}/{name}"
    shutil.copytree(place.home, home)
    assert place.ok("handoff", "demo", "demo: say done", CAO_HOME=home) == "done\n"
    assert place.ok("handoff", "calc", "6*7", CAO_HOME=home) == "42\n"
    for session in os.listdir(f"{home}/live"):
        place.ok("stop", session, CAO_HOME=home)
    assert [*place.folder.rglob("pwned*")] == []


CALC = """---
provider: command
command: [python3, -iq]
ready: '^>>> $'
---
"""


def test_the_users_tmux_conf_is_kept_until_it_is_taken_back(place):
    conf = place.folder / 'my [own] "$conf" #(touch pwned);'
    conf.write_text("set -g prefix C-a\n")

    def prefix(**env) -> str:
        place.ok("handoff", "demo", "demo: say hello", **env)
        told = place.tmux("show-options", "-gv", "prefix")
        place.ok("stop", *place.live())
        until(lambda: place.tmux("list-sessions"), "")
        return told.strip()

    assert prefix(CAO_TMUX_CONF=str(conf)) == "C-a"
    assert prefix() == "C-a"
    assert prefix(CAO_TMUX_CONF="") == "C-b"
    assert prefix() == "C-b"
    assert prefix(CAO_TMUX_CONF=str(conf)) == "C-a"
    session = place.ok("assign", "demo", "demo: say x").partition(".")[0]
    for agents in "", "/nonexistent/conf":  # an agent's, by its folder's .env say, is none
        assert prefix(CAO_TMUX_CONF=agents, CAO_SESSION=session) == "C-a"
    conf.unlink()  # cao works on without it
    assert prefix() == "C-b"


def test_a_socket_that_tmux_cannot_reach_is_told_in_its_words(place):
    long = place.folder / ("y" * 100)
    long.mkdir()
    env = {"TMUX_TMPDIR": str(long)}
    refused = place.run("handoff", "demo", "hello", **env)
    assert (refused.returncode, "File name too long" in refused.stderr) == (4, True)
    assert place.live() == []
    checked = place.run("doctor", **env)
    assert (checked.returncode, "File name too long" in checked.stdout) == (4, True)


# ---- text that reaches a terminal ----


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rm -rf ~\r\x1b[2K ls", r"rm -rf ~\r\x1b[2K ls"),
        ("\x1b]52;c;AAAA\x07", r"\x1b]52;c;AAAA\x07"),
        ("\x9b2J \x85 \x00 \x7f", r"\x9b2J \x85 \x00 \x7f"),
        ("a\u202eb\u2066c\u200fd", r"a\u202eb\u2066c\u200fd"),
        ("r\u200dm r\u200bm r\u00adm r\ufe0fm", r"r\u200dm r\u200bm r\xadm r\ufe0fm"),
        ("\U000e0041 \ufeff \u2028 \u3164 \ud83d", r"\U000e0041 \ufeff \u2028 \u3164 \ud83d"),
        ("😀\ufe0f\ufe0f\ufe0e", "😀\ufe0f\\ufe0f\\ufe0e"),  # no channel for hidden bytes
        ("❤️‍🔥 👩‍👩‍👧 1️⃣ é e\u0301 日本 می‌خواهم क्‍ष", "❤️‍🔥 👩‍👩‍👧 1️⃣ é e\u0301 日本 می‌خواهم क्‍ष"),
        ("two\n\tlines \\x1b", "two\n\tlines \\x1b"),
    ],
)
def test_nothing_hides_in_visible_text(text, shown):
    assert cao.visible(text) == shown


def test_the_table_of_what_hides_has_all_that_unicode_calls_so():
    from unicodedata import category

    hides = {c for c in map(chr, range(sys.maxunicode + 1)) if category(c) in ("Cc", "Cs", "Zl")}
    shown = {c for c in hides if cao.visible(c) == c}
    assert shown == {"\n", "\t"}
    formats = {c for c in map(chr, range(sys.maxunicode + 1)) if category(c) == "Cf"}
    signs = [f"{ord(c):x}" for c in formats if cao.visible(c) == c]
    # Arabic, Syriac and Kaithi number signs, Egyptian joiners: drawn
    assert all(s[:2] in ("60", "6d", "70", "89", "8e", "11", "13") for s in signs), signs


def on_terminal(place, *args, until_seen="", keys=b"", columns=100) -> tuple[str, int]:
    """Run a cao command on a terminal; return all that it wrote there, and its exit status."""
    pid, fd = pty.fork()
    if not pid:
        os.chdir(place.work)
        os.execvpe(CAO[0], [*CAO, *args], {**place.env, "TERM": "xterm-256color"})
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    seen = b""
    try:
        while select.select([fd], [], [], 60)[0] and (data := os.read(fd, 65536)):
            seen += data
            if keys and until_seen.encode() in seen:
                os.write(fd, keys)
                keys = b""
    except OSError as error:
        assert error.errno == errno.EIO  # noqa: PT017 - so a terminal says that all have closed it
    os.close(fd)
    return seen.decode(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


EVIL = "rm -rf ~\\r\\x1b[2K\\x1b]52;c;AAAA\\x07 l\\u200bs \\u202e"


@pytest.fixture
def asking(place):
    """A session that asks for something which hides."""
    task = place.ok("assign", "demo", "demo: permit rm -rf ~|Yes|No").strip()
    session = task.partition(".")[0]
    place.until_state(session, "asking")
    path = place.home / "sessions" / session / "state.json"
    state = json.loads(path.read_text())
    text = EVIL.encode().decode("unicode_escape")
    state["questions"][0]["text"] = state["task_line"] = state["last_line"] = text
    path.write_text(json.dumps(state))
    return task, session, text


@pytest.mark.parametrize("command", ["answer", "ls", "why", "wait", "show", "watch"])
def test_a_question_hides_nothing_on_a_terminal(place, asking, command):
    task, session, text = asking
    more = {"why": [session], "wait": [task], "show": [session], "answer": [session]}
    keys = {"watch": b"q", "answer": b"\n"}.get(command, b"")
    shown = {"watch": "AAAA", "ls": "rm -rf ~", "show": "rm -rf ~"}.get(command, "rm -rf ~\\r")
    argv = [command, *more.get(command, [])]
    seen, _ = on_terminal(place, *argv, until_seen=shown, keys=keys, columns=200)
    assert shown in seen
    assert r"\x1b[2K" in seen
    for hidden in ("\x1b]52", "\u200b", "\u202e", "\x07", "\r\x1b[2K"):
        assert hidden not in seen
    if command in ("ls", "why", "show"):
        again = json.loads(place.ok(*argv, "--json"))
        assert text in json.dumps(again, ensure_ascii=False).replace("\\r", "\r").replace(
            "\\u001b", "\x1b"
        ).replace("\\u0007", "\x07")


@pytest.mark.parametrize(("command", "keys"), [("ls", b""), ("watch", b"q")])
def test_a_terminal_that_was_told_no_size_shows_the_sessions(place, asking, command, keys):
    seen, code = on_terminal(place, command, until_seen="asking", keys=keys, columns=0)
    assert (asking[1] in seen, code) == (True, 0), seen


def test_an_answer_hides_nothing_on_a_terminal_and_is_exact_in_a_pipe(place):
    task = place.ok("assign", "demo", "demo: say x").strip()
    place.ok("wait", task)
    session = task.partition(".")[0]
    path = place.home / "sessions" / session / "results" / f"{task}.json"
    text = "\x1b[8mhidden\x1b[m 👩‍👩‍👧\u202e\r\nend"
    path.write_text(json.dumps({**json.loads(path.read_text()), "answer": text}))
    shown = cao.visible(text).replace("\n", "\r\n")
    assert shown in on_terminal(place, "wait", task)[0]
    piped = subprocess.run(
        [*CAO, "wait", task], env=place.env, cwd=place.work, capture_output=True, check=True
    ).stdout
    assert piped == text.encode() + b"\n"


def test_no_line_of_a_question_or_of_a_log_passes_for_another(place, asking):
    task, session, _ = asking
    path = place.home / "sessions" / session / "state.json"
    state = json.loads(path.read_text())
    asked = state["questions"][0]
    another = "\n  yes: Yes\nother-2222 asks (permission, abcdef): make"
    asked["text"], asked["options"][0][1] = f"ls{another}", f"once{another}"
    path.write_text(json.dumps(state))
    said = place.run("wait", task).stderr
    lines = re.findall(r"(?m)^(?:\S.* asks .*|  yes: .*)", said)
    assert lines == [f"{session} asks (permission, {asked['id']}): ls", "  yes: once"]
    log = place.home / "sessions" / session / "log.jsonl"
    log.write_text(json.dumps({"at": 1, "event": "lost", "why": "x\n00:00:00  other"}) + "\n")
    assert len(place.ok("logs", session).splitlines()) == 1


@pytest.mark.parametrize("pager", ["cat", "cat -v | cat", "not-installed-here"])
def test_a_diff_hides_nothing_on_a_terminal_and_is_exact_in_a_pipe(place, pager, monkeypatch):
    me = ["-c", "user.name=me", "-c", "user.email=me@here"]
    for words in (
        ["init", "-q"], [*me, "commit", "-q", "--allow-empty", "-m", "first"],
        ["config", "color.diff.new", "white blue"], ["config", "color.diff.meta", "208"],
    ):  # fmt: skip
        subprocess.run(["git", *words], cwd=place.work, env=place.env, check=True)
    session = place.ok("assign", "demo", "demo: say x", "--worktree").partition(".")[0]
    place.until_state(session, "idle")
    text = b"\x1b[8mhidden\x1b[m \x1b]0;title\x07 \xe2\x80\xae \xff \x1b[41;31mred\r\n"
    (place.home / "worktrees" / session / "file").write_bytes(text)
    place.env["GIT_PAGER"] = pager
    seen, status = on_terminal(place, "diff", session)
    hidden = r"\x1b[8mhidden", r"\x1b]0;title\x07 \u202e \xff", r"\x1b[41;31mred"
    assert (status, [words in seen for words in hidden]) == (0, [True] * 3)
    assert seen.count(r"\x1b") == 3, seen  # no colour of git's, at the blank at the end neither
    assert ("\x1b[32m" in seen, "^[[32m" in seen) == ("-v" not in pager, "-v" in pager)
    with monkeypatch.context() as patch:
        patch.setitem(place.env, "NO_COLOR", "1")
        plain, _ = on_terminal(place, "diff", session)
    assert (hidden[0] in plain, "[32m" in plain) == (True, False)
    argv = [*CAO, "diff", session]
    piped = subprocess.run(argv, env=place.env, cwd=place.work, capture_output=True, check=True)
    assert b"+" + text in piped.stdout


def test_an_error_hides_nothing_on_a_terminal(place):
    seen, status = on_terminal(place, "show", "a\x1b]52;c;AAAA\x07\u202e")
    assert (status, "\\x1b]52" in seen, "\x1b" in seen) == (3, True, False)


@pytest.mark.parametrize(
    ("where", "said"), [(">/dev/full", "No space left on device"), ("| (exec <&-; sleep 1)", "")]
)
def test_what_could_not_be_printed_is_said_in_our_words(place, where, said):
    command = cao.quote_argv([*CAO, "profiles"])
    script = f"{{ sleep 0.3; {command}; echo status $? >&2; }} {where}"
    done = subprocess.run(["sh", "-c", script], env=place.env, cwd=place.work, check=False,
                          capture_output=True, text=True)  # fmt: skip
    assert "status 1\n" in done.stderr
    assert said in done.stderr
    assert "Exception" not in done.stderr


# ---- the folders above the runtime directory ----


def test_a_folder_above_that_others_own_or_can_write_is_refused(place, monkeypatch):
    above = place.folder / "above"
    above.mkdir()
    home = f"{above}/of/cao"
    for mode, good in ((0o755, True), (0o777, False), (0o1777, True), (0o775, None), (0o700, True)):
        above.chmod(mode)
        shutil.rmtree(above / "of", ignore_errors=True)
        if good is None:  # by its group: only where the user is alone in it
            continue
        done = place.run("ls", CAO_HOME=home)
        assert (done.returncode == 0) == good, (oct(mode), done.stderr)
        assert (above / "of").exists() == good
        if not good:
            assert f"{above} can be written by others" in done.stderr
            assert "chmod go-w" in done.stderr


def test_a_home_that_a_clients_json_names_by_a_tilde_is_in_the_users_home(place):
    place.ok("ls", CAO_HOME="~/of/cao")
    assert ((place.user / "of" / "cao").is_dir(), (place.work / "~").exists()) == (True, False)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_what_another_user_made_first_is_refused(place):
    first = place.folder / "cao-1000"
    first.mkdir()
    os.chown(first, 12345, 12345)
    done = place.run("ls", CAO_HOME=f"{first}/cao")
    assert (done.returncode, f"{first} belongs to another user" in done.stderr) == (1, True)
    assert [*first.iterdir()] == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a link away")
def test_a_link_on_the_way_leads_nowhere_that_others_choose(place):
    mine, theirs = place.folder / "mine", place.folder / "theirs"
    mine.mkdir()
    theirs.symlink_to(mine)
    os.chown(theirs, 12345, 12345, follow_symlinks=False)
    with pytest.raises(cao.CaoError, match=f"{theirs} belongs to another user"):
        cao.make_home(f"{theirs}/cao")  # as /tmp/cao-UID, where there is no HOME
    for env in ({"CAO_HOME": theirs}, {"CAO_HOME": "", "XDG_STATE_HOME": theirs}):
        done = place.run("ls", **{name: str(path) for name, path in env.items()})
        assert (done.returncode, f"{theirs} belongs to another user" in done.stderr) == (1, True)
    their_folder = place.folder / "cao-1000"
    their_folder.mkdir()
    (their_folder / "cao").symlink_to(mine)
    os.chown(their_folder, 12345, 12345)
    with pytest.raises(cao.CaoError, match=f"{their_folder} belongs to another user"):
        cao.Store(f"{their_folder}/cao")
    assert [*mine.iterdir()] == []
    mine.chmod(0o777)
    (mine / "state").mkdir()
    link = place.folder / "link"
    link.symlink_to(mine / "state")
    done = place.run("ls", CAO_HOME="", XDG_STATE_HOME=str(link))
    assert (done.returncode, f"{mine} can be written by others" in done.stderr) == (1, True)
    assert [*mine.rglob("cao")] == []


@pytest.mark.parametrize(("name", "members", "good"), [
    ("me", [], True), ("me", ["me"], True), ("me", ["me", "you"], False), ("staff", [], False),
])  # fmt: skip
def test_a_group_may_write_where_the_user_is_alone_in_it(monkeypatch, name, members, good):
    import grp
    import pwd
    from types import SimpleNamespace

    monkeypatch.setattr(pwd, "getpwuid", lambda _: SimpleNamespace(pw_name="me"))
    group = SimpleNamespace(gr_name=name, gr_mem=members)
    monkeypatch.setattr(grp, "getgrgid", lambda _: group)
    facts = SimpleNamespace(st_mode=stat.S_IFDIR | 0o775, st_gid=1)
    assert cao.others_can_replace(facts) == (not good)


def test_a_home_by_another_name_is_the_same_home(place):
    session = place.ok("assign", "demo", "demo: say one; sleep 30").partition(".")[0]
    link = place.folder / "link"
    link.symlink_to(place.home)
    seen = json.loads(place.ok("show", session, "--json", CAO_HOME=str(link)))
    until(lambda: "working 30 s" in place.ok("show", session, CAO_HOME=str(link)))
    assert seen["session"] == session
    assert place.ok("stop", session, CAO_HOME=str(link)) == f"{session}: ended\n"
    assert place.pids(f"CAO_HOME={link}\0") == []


# ---- one clear line ----


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        ("''", 2, "'' is no command"),
        ("run-session", 2, "'run-session' is no command"),
        ("run-session ''", 3, "there is no session"),
        ("demo-agent", 2, "'demo-agent' is no command"),
        ("demo-agent x </dev/null", 2, "'demo-agent' is no command"),
        ("ls >&-", 1, "standard output is closed"),
        ("mcp >&-", 1, "standard output is closed"),
        ("mcp <&-", 0, ""),
        ("hook F <&-", 0, ""),
        ("hook F <&- >&-", 0, ""),
        ("handoff demo <&-", 2, "the text is empty"),
        ("nope 2>&-", 2, ""),
        ("ls <&- >&- 2>&-", 0, ""),
        ("ls 2>&-", 0, "no session is running"),
        ("handoff demo x --timeout 9999999999h", 2, "is not a duration"),
        ("launch --detach demo --cwd /nonexistent", 2, "/nonexistent is no directory"),
        ("launch --detach demo --cwd /dev/null", 2, "/dev/null is no directory"),
        ("handoff demo x --cwd /nonexistent", 2, "/nonexistent is no directory"),
    ],
)
def test_odd_calls_end_with_one_clear_line(place, line, status, words):
    done = subprocess.run(f"exec {shlex.join(CAO)} {line}", shell=True, env=place.env, check=False,  # noqa: S602
                          cwd=place.work, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=60)  # fmt: skip
    printed = done.stdout + done.stderr
    assert (done.returncode, words in printed) == (status, True), printed
    assert "Traceback" not in printed
    assert place.live() == []


ODD = ["²", "٣", "0", "-1", " ", "1e3", "9" * 30, "#(x)", "a\nb", "\udcff", "nan", "inf", "/", "1h"]
SETTINGS = (
    "MAX_WAITING MAX_SESSIONS IDLE_CLOSE_S INTERRUPTED_S CALL_CEILING_S PROVIDER CLIENT SESSION"
    " TMUX_CONF NOTIFY HOME"
).split()


@pytest.mark.parametrize("name", SETTINGS)
def test_an_odd_setting_is_refused_by_name_or_does_no_harm(place, name):
    for value in ODD:
        env = {f"CAO_{name}": value}
        done = place.run("assign", "demo", "demo: say x", **env)
        assert "Traceback" not in done.stderr, (env, done.stderr)
        assert done.returncode in (0, 1, 2, 3), (env, done.stderr)
        if done.returncode:
            assert len(done.stderr.splitlines()) == 2, (env, done.stderr)
        for session in place.live():
            place.run("stop", session)
        client = McpClient(place, **env, init=False)
        client.process.stdin.close()
        assert b"Traceback" not in client.process.stderr.read()
    for home in place.work.iterdir():  # CAO_HOME was one of these
        for session in os.listdir(home / "live"):
            place.run("stop", session, CAO_HOME=str(home))


def test_a_current_directory_that_is_gone_is_an_error_of_one_line(place):
    gone = place.work / "gone"
    gone.mkdir()
    for args, status in (("ls",), 1), (("mcp",), 1), (("handoff", "demo", "x"), 1):
        argv = shlex.join([*CAO, *args])
        done = subprocess.run(["sh", "-c", f"mkdir -p {gone}; cd {gone}; rmdir {gone}; {argv}"],
                              env={**place.env, "CAO_HOME": "relative"}, capture_output=True,
                              check=False, text=True, stdin=subprocess.DEVNULL)  # fmt: skip
        assert done.returncode == status
        assert "cao: the current directory is gone" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_tool_server_serves_in_a_directory_that_is_not_utf8(place):
    (place.work / "a\udcff").mkdir()
    process = subprocess.run(
        [*CAO, "mcp"], env=place.env, cwd=place.work / "a\udcff", capture_output=True, check=True,
        input=b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}\n',
    )  # fmt: skip
    assert json.loads(process.stdout)["id"] == 1


@pytest.mark.parametrize(("content", "words"), [
    (b"demo: say caf\xe9\n", "byte 14 is 0xe9"),
    ("demo: say x".encode("utf-16"), "byte 1 is 0xff"),
], ids=["latin-1", "utf-16"])  # fmt: skip
def test_a_task_that_is_not_utf8_is_refused_with_the_byte(place, content, words):
    (place.work / "t.md").write_bytes(content)
    for args in ("run", "demo", "--file", "t.md"), ("run", "demo"), ("schedule", "add", "t.md"):
        with (place.work / "t.md").open() as stdin:
            done = subprocess.run([*CAO, *args], env=place.env, cwd=place.work, check=False,
                                  stdin=stdin, capture_output=True, text=True)  # fmt: skip
        assert (done.returncode, done.stdout, words in done.stderr) == (2, "", True), done.stderr
        assert "iconv" in done.stderr
    assert place.live() == []


@pytest.mark.parametrize("args", [
    ("handoff", "demo", "demo: say caf\udce9"), ("send", "demo-abcd", "caf\udce9"),
    ("answer", "demo-abcd", "no: caf\udce9"),
], ids=["task", "message", "answer"])  # fmt: skip
def test_an_argument_that_is_not_utf8_is_refused_with_the_byte(place, args):
    done = place.run(*args)
    assert (done.returncode, "the text is not UTF-8: byte" in done.stderr) == (2, True), done.stderr


def test_a_profile_that_is_not_utf8_is_refused_by_name(place):
    (place.home / "profiles/cafe.md").write_bytes(b"---\nprovider: demo\n---\nSay caf\xe9.\n")
    done = place.run("handoff", "cafe", "demo: say x")
    assert (done.returncode, "cafe.md is not UTF-8: byte 31 is 0xe9" in done.stderr) == (2, True)
    assert "cafe" in place.ok("profiles")


def test_a_tool_refuses_a_nul_in_a_path_or_a_name(client):
    for more in ({"cwd": "a\0b"}, {"target": "demo\0"}, {"check": "true\0"}):
        result = client.call("handoff", **{"target": "demo", "task": "demo: say x", **more})
        assert not result["content"][0]["text"].startswith("internal"), result


# ---- who is a person ----


# The signs of clients for which `cao config` prints an entry, and which cao never starts.
CALLERS = {"CURSOR_AGENT", "CLINE_ACTIVE", "COPILOT_AGENT"}


@pytest.mark.parametrize("name", sorted(CALLERS | {*cao.AGENT_SIGNS}))
def test_a_shell_with_the_sign_of_a_cli_is_no_persons(verbs, monkeypatch, name):
    for sign in cao.AGENT_SIGNS:
        monkeypatch.delenv(sign, raising=False)
    assert cao.shell_caller(verbs.store).person
    monkeypatch.setenv(name, "1")
    assert not cao.shell_caller(verbs.store).person


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="told by /proc")
def test_a_shell_below_kimi_code_is_no_persons(place):
    task = place.ok("assign", "demo", "demo: permit rm -rf build|Yes|No").strip()
    session = task.partition(".")[0]
    place.until_state(session, "asking")
    kimi = (
        "import os, sys; open('/proc/self/comm', 'w').write('kimi-code');"
        " import subprocess; sys.exit(subprocess.call(sys.argv[1:]))"
    )
    argv = [
        sys.executable,
        "-c",
        kimi,
        "sh",
        "-c",
        f"{shlex.join(CAO)} answer {session} yes; exit $?",
    ]
    done = subprocess.run(argv, env=place.env, cwd=place.work, capture_output=True, check=False)
    assert (done.returncode, b"a person's to give" in done.stderr) == (2, True), done.stderr
    place.ok("answer", session, "No")


# ---- the entry for a client ----


@pytest.mark.parametrize("form", ["uvx", "pipx"])
def test_an_entry_installs_from_a_folder_never_from_an_index(place, form, tmp_path):
    stub = place.folder / "bin" / form
    stub.write_text("#!/bin/sh\n")
    stub.chmod(0o755)
    alone = tmp_path / "cao.py"
    shutil.copy(cao.__file__, alone)
    argv = [sys.executable, alone, "config", "cursor", "--form", form]
    done = subprocess.run(argv, env=place.env, capture_output=True, text=True, check=False)
    assert (done.returncode, "the folder of a checkout" in done.stderr) == (2, True), done
    noted = tmp_path / "cao_mcp-0.1.0.dist-info"
    noted.mkdir()
    (noted / "METADATA").write_text("Name: cao-mcp\nVersion: 0.1.0\n")
    (noted / "direct_url.json").write_text(json.dumps({"url": "https://x.example/cao.whl"}))
    done = subprocess.run(argv, env=place.env, capture_output=True, text=True, check=False)
    assert (done.returncode, "the folder of a checkout" in done.stderr) == (2, True)
    checkout = tmp_path / "check out"
    checkout.mkdir()
    (checkout / "pyproject.toml").touch()
    (noted / "direct_url.json").write_text(json.dumps({"url": checkout.as_uri(), "dir_info": {}}))
    done = subprocess.run(argv, env=place.env, capture_output=True, text=True, check=True)
    server = json.loads(done.stdout.partition("\n")[2])["mcpServers"]["cao"]
    flags = {"uvx": ["--from"], "pipx": ["run", "--spec"]}[form]
    assert [server["command"], *server["args"]] == [str(stub), *flags, str(checkout), "cao-mcp"]


@pytest.mark.parametrize(
    ("python", "form"),
    [
        ("/home/u/.cache/uv/archive-v0/x4/bin/python", "uvx"),
        ("/c/environments-v2/cao-mcp-1/bin/python", "uvx"),
        ("/home/u/.cache/pipx/1ab/bin/python", "pipx"),
        ("/Users/u/Library/Caches/pipx/1ab/bin/python", "pipx"),
        ("/home/u/.local/pipx/.cache/1ab/bin/python", "pipx"),
    ],
)
def test_an_entry_names_no_path_in_a_cache(place, monkeypatch, python, form):
    monkeypatch.setattr(sys, "executable", python)
    monkeypatch.setattr(cao, "find_program", lambda name: f"/bin/{name}")
    argv = cao.own_command("now")
    assert (argv[0], argv[-2:]) == (f"/bin/{form}", [os.path.dirname(cao.__file__), "cao-mcp"])


@pytest.mark.parametrize("by_path", [False, True])
def test_an_entry_names_the_cao_that_prints_it_not_another_that_is_installed(
    tmp_path, monkeypatch, by_path
):
    installed = tmp_path / "cao-mcp"
    installed.write_text("#!/bin/sh\n")
    installed.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(sys, "argv", [cao.__file__ if by_path else str(tmp_path / "cao")])
    assert (cao.own_command("now") == [str(installed)]) == (not by_path)


@pytest.mark.parametrize("name", ["cao", "cao-new.py", "link", "cao.py"])
def test_an_entry_starts_the_file_that_prints_it_whatever_its_name(place, name):
    beside = place.user / "bin"
    beside.mkdir()
    (beside / "cao.py").write_text("raise SystemExit('an old version')\n")
    if name == "link":
        (beside / name).symlink_to(cao.__file__)
        argv = [sys.executable, beside / name, "config", "cursor"]
    else:
        shutil.copy(cao.__file__, beside / name)
        (beside / name).chmod(0o755)
        argv = [beside / name, "config", "cursor"]
    done = subprocess.run(argv, env=place.env, capture_output=True, text=True, check=True)
    server = json.loads(done.stdout.partition("\n")[2])["mcpServers"]["cao"]
    ping = b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n'
    served = subprocess.run([server["command"], *server["args"]], env=place.env, input=ping,
                            capture_output=True, check=True)  # fmt: skip
    assert json.loads(served.stdout) == {"jsonrpc": "2.0", "id": 1, "result": {}}


@pytest.mark.tmux
def test_a_tasks_name_stands_for_its_session_in_every_command_and_tool(place):
    task = place.ok("assign", "demo", "demo: permit make it|Yes|No; say made").strip()
    session = task.partition(".")[0]
    place.until_state(session, "asking")
    assert place.ok("answer", task, "yes") == f"{session}: yes\n"
    assert place.ok("wait", task) == "Yes\nmade\n"
    assert place.ok("send", task, "well done").startswith(session)
    assert json.loads(place.ok("show", task, "--json"))["session"] == session
    assert "turn done" in place.ok("why", task)
    assert "launched" in place.ok("logs", task)
    assert json.loads(place.ok("trace", task, "--output", "-"))["traceEvents"]
    client = McpClient(place)
    assert client.call("read_session", session=task)["structuredContent"]["session"] == session
    found = client.call("handoff", target="demo", task="demo: say one")["structuredContent"]
    first = found["results"][0]["task"]
    found = client.call("handoff", target=first, task="demo: say two")["structuredContent"]
    assert found["results"][0]["session"] == first.partition(".")[0]
    done = client.call("stop_session", session=first)["structuredContent"]
    assert done["session"] == first.partition(".")[0]
    client.close()
    assert place.ok("stop", task) == f"{session}: ended\n"
    assert f"session {session} has ended" in place.run("attach", task).stderr


@pytest.mark.tmux
def test_a_sessions_name_stands_for_its_newest_task_in_a_wait(place):
    session = place.ok("assign", "demo", "demo: say one").strip().partition(".")[0]
    assert place.ok("wait", session) == "one\n"
    place.ok("assign", session, "demo: sleep 1; say two")
    assert place.ok("wait", session) == "two\n"
    assert place.ok("wait", session) == "two\n"
    idle = place.ok("launch", "demo", "--detach").strip()
    assert f"{idle!r} is not a task's name" in place.run("wait", idle).stderr


@pytest.mark.tmux
def test_only_a_key_is_pressed(place):
    task = place.ok("assign", "demo", "demo: ask Which?|red|blue").strip()
    place.until_state(task.partition(".")[0], "asking")
    for words in ("foo", "Down foo", "Retrun"):
        done = place.run("answer", task, "--key", words)
        assert (done.returncode, f"{words.split()[-1]!r} is no key" in done.stderr) == (2, True)
    for name in "Enter escape C-c M-x Up BTab NPage F12 1 ; ~".split():
        assert cao.KEY_NAME.match(name)
    place.ok("answer", task, "--key", "2")
    assert place.ok("wait", task) == "blue\n"


@pytest.mark.parametrize(("word", "meant"), [
    ("ps", "ls"), ("kill", "stop"), ("delegate", "assign"), ("version", "--version"),
    ("atach", "attach"), ("zzz", "--help"),
])  # fmt: skip
def test_a_command_that_others_have_gets_the_name_of_ours(place, word, meant):
    done = place.run(word)
    assert (done.returncode, done.stderr.endswith(f"try: cao {meant}\n")) == (2, True)


@pytest.mark.tmux
def test_who_attaches_by_another_socket_is_told_where_the_session_was_looked_for(place, request):
    session = place.ok("launch", "demo", "--detach").strip()
    place.until_state(session, "idle")
    (place.folder / "other").mkdir()
    done = place.run("attach", session, TMUX_TMPDIR=str(place.folder / "other"))
    assert (done.returncode, "set TMUX_TMPDIR as it was" in done.stderr) == (3, True)


@pytest.mark.tmux
def test_a_task_with_the_line_ends_of_windows_ends_where_it_does(place):
    (place.work / "task.txt").write_bytes(b"demo: echo\r\none\r\ntwo\r\n")
    assert place.ok("run", "demo", "--file", "task.txt") == "one\ntwo\n"
    assert place.ok("run", "demo", stdin="demo: echo\r\none\r\ntwo\r\n") == "one\ntwo\n"
