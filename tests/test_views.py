"""What people look at: `cao watch` in a real tmux, questions, notify, and the trace."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

import cao
from conftest import CAO, until
from test_nothing_lost import put_loader

START = 1_790_000_000.0
SIZES = [(80, 24), (200, 50)]


class Terminal:
    """A person's terminal of some size with a cao command in it: a pane of a tmux server
    that has nothing to do with cao's."""

    def __init__(self, place, columns, lines, *command, **env) -> None:
        self.env = {**place.env, "SHELL": "/bin/sh", **env}
        self.name = f"p{len(place.started)}-{random.randrange(10**6)}"
        self.socket = f"person-{self.name}"
        config = place.folder / "person.conf"
        config.write_text("set -g remain-on-exit on\nset -g bell-action any\n"
                          "set-hook -g alert-bell 'set -g @rang yes'\n")  # fmt: skip
        size = ("-x", str(columns), "-y", str(lines))
        self.tmux("-f", str(config), "new-session", "-d", "-s", "w", *size, "-c", str(place.work),
                  "--", *CAO, *command, ";", "resize-window", "-t", "w", *size)  # fmt: skip

    def tmux(self, *args) -> str:
        argv = ["tmux", "-u", "-L", self.socket, *args]
        return subprocess.run(
            argv, check=False, capture_output=True, text=True, env=self.env
        ).stdout

    def screen(self, *flags) -> str:
        return self.tmux("capture-pane", "-p", *flags, "-t", "w")

    def press(self, *keys) -> None:
        self.tmux("send-keys", "-t", "w", *keys)

    def sees(self, pattern, timeout_s=60.0) -> str:
        """Wait until a regex is on the screen, and return the screen."""
        return until(self.screen, lambda s: bool(re.search(pattern, s, re.M)), timeout_s)

    def ask(self, form) -> str:
        return self.tmux("display-message", "-p", "-t", "w", form).strip()

    def close(self) -> None:
        self.tmux("kill-server")


@pytest.fixture
def terminal(place):
    """Start a command in a terminal of a size; all are closed afterwards."""
    opened = []

    def open_terminal(columns, lines, *command, **env):
        opened.append(Terminal(place, columns, lines, *command, **env))
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.close()


def begin(place, script) -> str:
    """Give the demo agent a task and return the session's name."""
    return place.ok("assign", "demo", f"demo: {script}").strip().partition(".")[0]


# ---- watch ----


@pytest.mark.tmux
@pytest.mark.parametrize(("columns", "lines"), SIZES)
def test_watch_shows_the_tree_with_state_age_task_and_question(place, terminal, columns, lines):
    boss = begin(place, "assign demo {demo: permit rm build|Yes|No}; gather")
    idle = begin(place, "say the tests pass")
    place.until_state(idle, "idle")
    shown = terminal(columns, lines, "watch")
    screen = shown.sees(r"(?s)asks: Bash: rm build$.*^enter attach")
    worker = next(name for name in place.live() if name not in (boss, idle))
    assert re.search(r"^cao  1 working  1 asking  1 idle$", screen, re.M)
    assert re.search(rf"^{'  ' + boss:16}working  \d+(\.\d)? s  +demo: assign demo", screen, re.M)
    assert re.search(rf"^{worker:16}asking   since \d\d:\d\d  ", screen, re.M)
    assert re.search(rf"^{'  ' + idle:16}idle     since \d\d:\d\d .*the tests pass$", screen, re.M)
    assert screen.index(worker) < screen.index("shell-") < screen.index(boss)  # it asks
    assert screen.splitlines()[-1].startswith("enter attach  r read  a answer")
    assert len(screen.splitlines()) == lines
    shown.press("Tab")
    shown.sees(
        rf"^{worker} asks \(permission, \w{{6}}\): Bash: rm build\n  yes: once\n  no: refuse"
    )


@pytest.mark.tmux
def test_a_question_can_be_answered_after_all_of_it_was_shown(place, terminal):
    """What cannot be read must not look as if it were all, and must not be approved."""
    command = "echo " + " ".join(f"word{n:03}" for n in range(375)) + " end"
    assert len(command) > 3000
    session = begin(place, f"permit {command}|Yes|No; say ended")
    place.until_state(session, "asking")
    screen = terminal(200, 50, "watch").sees("no: refuse")
    assert "".join(command.split()) in "".join(screen.split())
    small = terminal(80, 24, "watch")
    screen = small.sees(r"^\(\d+ more lines: a shows them\)$")
    assert "word090" in screen
    assert "no: refuse" not in screen
    small.press("a", "y", "e", "s", "Enter")
    seen = small.sees(rf"^{session}: page down, \d+ more lines \(Esc goes back\): yes$")
    assert re.search(r"^cao .*\(0 more above, \d+ more below\)$", seen, re.M)
    small.press("NPage", "Enter")
    small.sees(r"\(20 more above, \d more below\)$")  # none was left out
    small.sees(rf"^{session}: page down, \d more lines?")
    assert place.state(session)["state"] == "asking"
    small.press("NPage")
    small.sees(r"(?s)^  no: refuse.*: answer \(Esc goes back\): yes$")
    small.press("Enter")
    small.sees(rf"^{session}: yes$")
    place.until_state(session, "idle")


@pytest.mark.tmux
@pytest.mark.parametrize(("columns", "lines"), SIZES)
def test_watch_obeys_its_keys(place, terminal, columns, lines):
    session = begin(place, "permit rm|Yes|No; ask Which?|red|blue; say chosen; sleep 60")
    place.until_state(session, "asking")
    shown = terminal(columns, lines, "watch")
    shown.sees("asks: Bash: rm")
    shown.press("a", "9", "Enter")
    shown.sees("'9' is not one of the options")
    shown.press("BSpace", "n", "o", "Enter")  # what was refused can be mended
    shown.sees(rf"^{session}: no$")
    shown.sees("asks: Which")
    shown.press("a", "7", "BSpace", "b", "l", "u", "Enter")
    shown.sees(rf"^{session}: blue$")
    shown.sees("working 60 s")  # its screen
    shown.press("a")
    shown.sees(rf"^{session} asks nothing$")
    shown.press("r")
    shown.sees(r"^demo agent: it needs no account")
    shown.sees("^q back")
    shown.press("q", "s")
    shown.press("-l", "and you?")
    shown.sees(rf"^{session}: message \(Esc goes back\): and you")
    shown.press("Escape")
    until(shown.screen, lambda s: "message" not in s)
    shown.press("i")
    shown.sees(rf"^{session}: interrupted$")
    shown.press("s")
    shown.press("-l", "and you?")
    shown.press("Enter")
    shown.sees(rf"^{session}: (queued|typed|submitted|taken)$")  # how far it came in 3 s
    until(lambda: "Message from" in place.state(session).get("last_line", ""))
    shown.press("x", "n", "o", "Enter")
    shown.sees("not ended")
    shown.press("x", "y", "e", "s", "Enter")
    shown.sees(rf"^{session}: ended$")
    until(place.live, [])
    shown.press("q")
    # Under load tmux 3.3a itself may forget to reap: then it knows no status.
    until(lambda: shown.ask("#{pane_dead}#{pane_dead_status}"), lambda seen: seen in ("1", "10"))


@pytest.mark.tmux
def test_an_answer_that_watch_refuses_can_be_mended_and_is_no_command(place, terminal):
    session = begin(place, "permit make all|Yes|No")
    place.until_state(session, "asking")
    shown = terminal(80, 24, "watch")
    shown.sees("asks: Bash: make all")
    shown.press("a", "i", "x", "Enter")
    shown.sees("'ix' is not one of the options")
    shown.sees(rf"^{session}: answer \(Esc goes back\): ix$")
    shown.press("Space", "y", "C-w")
    shown.sees(rf"^{session}: answer \(Esc goes back\): ix$")
    shown.press("C-u", "n", "o", "Enter")
    shown.sees(rf"^{session}: no")
    until(lambda: place.state(session)["state"], "idle")


@pytest.mark.tmux
def test_what_is_typed_in_watch_is_for_the_session_and_question_it_was_begun_for(place, terminal):
    session = begin(place, "ask Which?|red|blue; sleep 1; ask And then?|red|white; say chosen")
    other = begin(place, "say hello")
    place.until_state(session, "asking")
    place.until_state(other, "idle")
    shown = terminal(80, 24, "watch")
    shown.sees("asks: Which")
    shown.press("Tab", "a", "r")
    shown.sees(rf"^{session}: answer \(Esc goes back\): r$")
    place.ok("answer", session, "red")
    shown.sees("asks: And then")
    shown.press("e", "d", "Enter")
    shown.sees("asks this no more")
    shown.press("x", "y", "e")
    shown.sees(r"type yes \(Esc goes back\): ye$")
    place.ok("stop", session)
    until(shown.screen, lambda s: f"{session}  asking" not in s)
    shown.press("s", "Enter")
    shown.sees("nothing: it had ended")
    assert place.live() == [other]


@pytest.mark.tmux
def test_watch_attaches_and_comes_back(place, terminal):
    session = begin(place, "say seen")
    place.until_state(session, "idle")
    shown = terminal(80, 24, "watch")
    shown.sees("seen")
    shown.press("Enter")
    status = rf"^{session}  C-b d leaves  C-b S-Up/S-Down scrolls +0 working  0 asking  1 idle$"
    shown.sees(status)  # tmux's
    assert place.tmux("list-windows", "-F", "#W") == f"{session}\n"
    place.ok("assign", session, "demo: ask Which colour do you want for it?|red|blue; say chosen")
    shown.sees(rf"^{session}  C-b d leaves  C-b S-Up/S-Down scrolls  asks: Which colour do you ?…$")
    place.ok("answer", session, "red")
    shown.sees(status)
    shown.press("C-b", "d")
    shown.sees("^cao  0 working")


@pytest.mark.tmux
def test_the_list_of_watch_scrolls_counts_what_does_not_fit_and_is_filtered(place, terminal):
    names = sorted(begin(place, f"say number {n}") for n in range(4))
    for name in names:
        place.until_state(name, "idle")
    shown = terminal(80, 9, "watch")  # three rows: the client of the four stands above them
    shown.sees(rf"(?s)^cao .*4 idle  \(0 more above, 2 more below\)$.*^{names[0]}  demo  demo ")
    steps = (("G", 3), ("k", 2), ("PPage", None), ("NPage", 2), ("g", None), ("Down", 0))
    wheel = (("\x1b[Ma!!", 1), ("\x1b[Ma!!", 2), ("\x1b[M`!!", 1), ("\x1b[M !!", 1))  # a click
    for keys, at in steps + wheel:
        shown.press("-l" if "[" in keys else "-N1", keys)
        shown.sees(rf"^{'shell-.*' if at is None else names[at]}  demo  demo |^shell-\w+ +/")
        if keys == "G":
            shown.sees(r"\(2 more above, 0 more below\)$")
    shown.press("/")
    shown.press("-l", "number 2")
    screen = shown.sees(r"(?s)^cao .*4 idle  /number 2$.*^show only \(Esc goes back\): number 2$")
    assert len(re.findall("^ *demo-.* idle ", screen, re.M)) == 1
    shown.press("Enter")
    shown.sees("(?s)4 idle  /number 2$.*^enter attach")
    shown.press("Escape")
    shown.sees(r"(?s)4 idle  \(.*^enter attach")
    shown.press("/", "#", "Enter")
    shown.sees("^No session has these words$")


@pytest.mark.tmux
def test_watch_shows_all_its_keys_and_goes_back_as_one_expects(place, terminal):
    place.until_state(begin(place, "say hello"), "idle")
    shown = terminal(80, 24, "watch")
    for back in ("q", "Escape"):
        shown.sees("^enter attach .* x end  [?] keys  q quit$")
        shown.press("?")
        shown.sees("(?s)^Keys$.*^q +go back; quit from the list$.*^q back")
        shown.press(back)
    shown.sees("^enter attach")
    shown.press("Escape")  # leaves nothing
    shown.sees("^enter attach")
    assert shown.ask("#{pane_dead}") == "0"


def test_a_row_has_its_host_its_tokens_and_its_place_in_the_queue():
    view = {"session": "a-1", "depth": 0, "state": "queued", "for_s": 2.0, "host": "build"}
    view.update(why=cao.WAITS.format(3), usage={"input": 1000, "cached": 5, "output": 234})
    ((name, state, rest),) = cao.session_rows([view], 120)
    assert (name.strip(), state.strip()) == ("a-1@build", "queued")
    assert "  [1,234 tokens]  " in rest
    assert "  waits until a session ends: place 3 in the queue" in rest
    assert "  waits until a session ends: pl" in cao.session_rows([view], 80)[0][2]


def switches(pid: int) -> int:
    """Return how often the threads of a process have run."""
    texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    return sum(int(n) for text in texts for n in re.findall(r"ctxt_switches:\s*(\d+)", text))


@pytest.mark.tmux
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="reads /proc")
def test_watch_sleeps_when_nothing_works_and_counts_seconds_when_something_does(place, terminal):
    place.until_state(begin(place, "permit rm|Yes|No"), "asking")
    shown = terminal(80, 24, "watch")
    shown.sees("1 asking")
    pid = int(shown.ask("#{pane_pid}"))
    until(lambda: (switches(pid), settle(0.3), switches(pid)), lambda seen: seen[0] == seen[2])
    before = switches(pid)
    settle(1.5)  # twice what it takes to count a second
    assert switches(pid) == before
    begin(place, "sleep 30")  # no key is pressed: its runner wakes us
    shown.sees(r"working  1\.\d s")
    shown.sees(r"working  [2-9]\.\d s")


def settle(seconds: float) -> None:
    """Let time pass in which nothing must happen."""
    with pytest.raises(AssertionError):
        until(lambda: False, timeout_s=seconds)


@pytest.mark.tmux
def test_watch_sees_the_death_of_an_idle_runner(place, terminal):
    session = begin(place, "say hello")
    place.until_state(session, "idle")
    shown = terminal(80, 24, "watch")
    shown.sees(session)
    os.kill(int(place.tmux("list-panes", "-a", "-F", "#{pane_pid}")), signal.SIGKILL)
    until(shown.screen, lambda s: session not in s)


@pytest.mark.tmux
def test_watch_rings_the_bell_when_one_asks_or_ends_and_not_before(place, terminal):
    steps = "ask Begin?|yes|no; sleep 3; ask Which?|red|blue; sleep 3; say chosen"
    session = begin(place, steps)
    place.until_state(session, "asking")
    shown = terminal(80, 24, "watch")
    shown.sees("asks: Begin")  # it asked before
    place.ok("answer", session, "yes")
    for state in ("asking", "idle"):
        shown.sees("working")
        assert shown.tmux("show-option", "-gqv", "@rang") == ""
        place.until_state(session, state)
        until(lambda: shown.tmux("show-option", "-gqv", "@rang"), "yes\n")
        shown.tmux("set-option", "-gu", "@rang")
        if state == "asking":
            place.ok("answer", session, "red")


@pytest.mark.tmux
def test_the_arrow_keys_select_and_stop_at_the_ends(place, terminal):
    names = sorted(begin(place, f"say number {n}") for n in range(3))
    for name in names:
        place.until_state(name, "idle")
    shown = terminal(80, 24, "watch")
    shown.sees(rf"(?s)^{names[0]}  demo  demo .*^enter attach")
    for key, at in (("Down", 1), ("j", 2), ("Down", 2), ("Up", 1), ("k", 0)):
        shown.press(key)
        shown.sees(rf"^{names[at]}  demo  demo ")
    shown.press("Up")  # the client that is above them
    shown.sees(r"^shell-\w+  ")


@pytest.mark.tmux
def test_a_terminal_that_curses_does_not_know_is_named(place, terminal):
    shown = terminal(80, 24, "watch")
    shown.sees("q quit")
    name = shown.ask("#{session_name}")
    command = cao.quote_argv(["env", "TERM=no-such", *CAO, "watch"])
    shown.tmux("new-window", "-t", f"{name}:", "-c", str(place.work), "sh", "-c", f"{command}; cat")
    shown.sees(r"(?s)this terminal \(no-such\).*try: set TERM")


@pytest.mark.tmux
def test_launch_attaches_the_terminal_and_without_one_says_how(place, terminal):
    shown = terminal(80, 24, "launch", "demo")
    shown.sees("demo agent: it needs no account")
    (session,) = place.live()
    until(lambda: shown.ask("#{pane_current_command}"), "tmux")
    shown.press("C-b", "d")
    # Ours ends, with 0; tmux 3.3a does not always learn how. The session goes on.
    until(lambda: shown.ask("#{pane_dead}#{pane_dead_status}"), lambda seen: seen in ("1", "10"))
    assert place.until_state(session, "idle")
    told = place.run("launch", "demo")
    assert f"later: cao attach {told.stdout.strip()}" in told.stderr


@pytest.mark.tmux
def test_a_launched_supervisor_has_the_size_of_the_terminal_that_shows_it(place, terminal):
    session = place.ok("launch", "demo", "--detach").strip()
    place.until_state(session, "idle")
    form = ("display-message", "-p", "-t", f"={session}:", "#{pane_width}x#{pane_height}")
    terminal(80, 24, "attach", session).sees("^demo>")
    until(lambda: place.tmux(*form), "80x23\n")
    terminal(150, 40, "attach", session).sees("^demo>")
    until(lambda: place.tmux(*form), "150x39\n")
    task = place.ok("assign", session, "demo: say in a small one").strip()
    assert place.ok("wait", task) == "in a small one\n"


@pytest.mark.tmux
def test_a_terminal_that_is_too_small_for_a_worker_says_how_to_see_the_rest(place, terminal):
    session = begin(place, "ask What now? " + "x" * 200 + "|a|b")
    place.until_state(session, "asking")
    small = terminal(100, 24, "attach", session)
    small.sees(rf"^{session}  C-b d leaves  C-b S-Up/S-Down scrolls  asks: What now\? x+…$")
    large = terminal(210, 60, "attach", session)
    large.sees(rf"^{session}  C-b d leaves  asks: What now\? x+")


@pytest.mark.tmux
def test_a_on_a_row_that_asks_nothing_says_how_to_get_to_one_that_asks(place, terminal):
    idle, asking = begin(place, "say hello"), begin(place, "ask Which?|red|blue")
    place.until_state(idle, "idle")
    place.until_state(asking, "asking")
    shown = terminal(80, 24, "watch")
    shown.sees("asks: Which")
    shown.press("G", "a")
    shown.sees("asks nothing; tab selects one that asks$")
    shown.press("Tab", "a")
    shown.sees(rf"^{asking}: answer")


@pytest.mark.tmux
def test_watch_drops_no_letter_in_the_c_locale(place, terminal):
    session = begin(place, "ask Größe?|groß|日本")
    place.until_state(session, "asking")
    shown = terminal(80, 24, "watch", LC_ALL="C")
    shown.sees(r"asks: Gr\\xf6\\xdfe\?")
    shown.press("a")
    shown.sees(r"2: \\u65e5\\u672c")


@pytest.mark.tmux
def test_a_task_that_nobody_gives_is_asked_for(place, terminal):
    shown = terminal(80, 24, "handoff", "demo")
    shown.sees("or pipe it in")


@pytest.mark.tmux
def test_watch_follows_the_size_of_its_terminal(place, terminal):
    names = [begin(place, "say hello") for _ in range(3)]
    shown = terminal(80, 24, "watch")
    shown.sees(names[0])
    for columns, lines in ((100, 40), (80, 24), (30, 6), (10, 2), (120, 30)):
        shown.tmux("resize-window", "-t", "w", "-x", str(columns), "-y", str(lines))
        until(
            lambda: shown.screen().splitlines(),
            lambda rows, size=(columns, lines): (
                len(rows) == size[1] and rows[-1][:5] == "enter"[: size[0]]
            ),
            show=shown.screen,
        )
        assert shown.ask("#{pane_dead}") == "0"
    shown.sees("q quit")


@pytest.mark.tmux
def test_watch_draws_all_anew_where_its_terminal_was_another_for_a_moment(place, terminal):
    shown = terminal(80, 24, "watch")
    shown.sees("q quit")
    with open(shown.ask("#{pane_tty}"), "w") as tty:
        tty.write("\x1b[2J")  # what a smaller size did to it; now it is as large as before
    until(shown.screen, lambda screen: "q quit" not in screen)
    os.kill(int(shown.ask("#{pane_pid}")), signal.SIGWINCH)
    shown.sees("q quit")


@pytest.mark.tmux
@pytest.mark.parametrize("command", ["watch", "ls"])
def test_colours_are_for_terminals_and_no_color_is_respected(place, terminal, command):
    place.until_state(begin(place, "ask Which?|red|blue"), "asking")
    colour = re.compile(r"\x1b\[[0-9;]*[34][0-7]m")
    for env, wanted in (({}, True), ({"NO_COLOR": "1"}, False)):
        shown = terminal(80, 24, command, **env)
        shown.sees("asking")
        assert bool(colour.search(shown.screen("-e"))) == wanted
    assert "\x1b" not in place.ok("ls")


def test_watch_without_a_terminal_says_what_to_do_instead(place):
    done = place.run("watch")
    assert (done.returncode, "cao ls" in done.stderr) == (2, True)


# ---- questions in one place ----


@pytest.mark.tmux
def test_answer_alone_goes_through_all_questions(place):
    first, second, third = (begin(place, f"permit Which {n}?|red|blue") for n in "abc")
    for session in (first, second, third):
        place.until_state(session, "asking")
    begin(place, "say not me")
    assert place.ok("ls", "--asking").count("asks: Bash: Which") == 3
    order = sorted((first, second, third))
    done = place.run("answer", stdin="7\nno\n\nyes\n")  # a wrong one is asked again
    assert done.returncode == 0
    assert done.stdout == f"{order[0]}: no\n{order[2]}: yes\n"
    assert done.stderr.count("answer (nothing: skip it)") == 4
    assert "  yes: once\n  no: refuse" in done.stderr
    assert order[1] in place.ok("ls", "--asking")
    assert place.ok("answer", order[1], stdin="no\n") == f"{order[1]}: no\n"
    assert "no session asks" in place.run("answer").stderr


@pytest.mark.tmux
def test_answer_alone_leaves_out_what_a_person_interrupted(place):
    session = begin(place, "sleep 60")
    until(lambda: "working 60 s" in place.screen(session))
    place.tmux("send-keys", "-t", f"={session}:", "Escape")
    (asked,) = place.until_state(session, "asking")["questions"]
    assert asked["kind"] == "interrupted"
    done = place.run("answer", stdin="1\n")
    assert (done.returncode, done.stdout) == (0, "")
    assert "a person interrupted the turn" in done.stderr
    assert "answer (nothing" not in done.stderr


@pytest.mark.tmux
def test_the_notify_command_gets_the_facts_when_one_asks_or_ends(place):
    script = place.folder / "bin" / "tell me"
    told = place.folder / "told"
    facts = "env | grep ^CAO_NOTIFY_ | sort"
    script.write_text(f'#!/bin/sh\n{{ {facts}; echo "$#|$1|$2|$CAO_SESSION"; }} >>{told}\n')
    script.chmod(0o755)
    command = f"'{script}' '$HOME; `id`'"
    task = place.ok(
        "assign", "demo", "demo: ask Which name?|red|blue; say a; say b", CAO_NOTIFY=command
    )
    session, task = task.partition(".")[0], task.strip()
    until(lambda: told.exists() and told.read_text(), lambda text: text and "|" in text)
    assert told.read_text().splitlines() == [
        "CAO_NOTIFY_EVENT=asking",
        "CAO_NOTIFY_OUTCOME=",
        f"CAO_NOTIFY_SESSION={session}",
        f"CAO_NOTIFY_TASK={task}",
        "CAO_NOTIFY_TEXT=Which name?",
        f"2|$HOME; `id`|{session} asks: Which name?|",
    ]
    told.unlink()
    place.ok("answer", session, "red")
    until(lambda: told.exists() and told.read_text(), lambda text: text and "|" in text)
    assert "CAO_NOTIFY_OUTCOME=done\n" in told.read_text()
    assert f"|{session} done: red a b|\n" in told.read_text()


@pytest.mark.tmux
def test_notify_tells_once_of_a_crash_and_a_bad_command_harms_nothing(place):
    told = place.folder / "told"
    script = place.folder / "bin" / "tell"
    script.write_text(f'#!/bin/sh\necho "$1" >>{told}\n')
    script.chmod(0o755)
    place.run("handoff", "demo", "demo: exit 3", CAO_NOTIFY=str(script))
    until(
        lambda: told.exists() and told.read_text(), lambda text: text and "failed: exited" in text
    )
    task = place.ok("assign", "demo", "demo: say fine", CAO_NOTIFY="/nonexistent").strip()
    assert place.ok("wait", task) == "fine\n"
    until(lambda: [e for e in place.log(task.partition(".")[0]) if e["event"] == "notify_failed"])
    assert told.read_text().count("\n") == 1


# ---- tmux: the status line, the user's conf, viewers ----


@pytest.mark.tmux
def test_the_status_line_counts_working_asking_and_idle(place, terminal):
    begin(place, "sleep 60")
    asking, idle = begin(place, "ask Which?|red|blue"), begin(place, "say hello")
    place.until_state(asking, "asking")
    place.until_state(idle, "idle")
    place.tmux("set-option", "-g", "status-interval", "0")  # by events alone
    shown = terminal(120, 30, "attach", idle)
    shown.sees(rf"1 working  1 asking  1 idle  {asking} asks: cao answer *$")
    terminal(80, 30, "attach", idle).sees(rf" scrolls +{asking} asks: cao answer *$")
    place.ok("answer", asking, "1")
    shown.sees("1 working  0 asking  2 idle *$")
    place.ok("stop", asking)
    shown.sees("1 working  0 asking  1 idle *$")


@pytest.mark.tmux
def test_the_users_tmux_conf_is_read_only_if_told_and_cannot_end_or_reflow_a_worker(place):
    (place.user / ".tmux.conf").write_text("set -g prefix C-x\n")
    begin(place, "say hello")
    assert place.tmux("show-options", "-gv", "prefix") == "C-b\n"
    place.tmux("kill-server")
    conf = place.folder / 'my "own" $conf.tmux'
    conf.write_text(
        "set -g prefix C-a\nset -g window-size smallest\nset -g destroy-unattached on\n"
        "set -g remain-on-exit on\nset -g update-environment SECRET\nset -s exit-unattached on\n"
    )
    done = place.run("handoff", "demo", "demo: say hello", CAO_TMUX_CONF=str(conf), SECRET="x")
    assert (done.returncode, done.stdout) == (0, "hello\n")
    assert place.tmux("show-options", "-gv", "prefix") == "C-a\n"
    assert place.tmux("show-options", "-gqv", "update-environment").strip() == ""
    assert place.tmux("list-windows", "-a", "-F", "#{window_width}x#{window_height}") == "200x50\n"
    place.ok("stop", *place.live())
    until(lambda: place.tmux("list-sessions"), "")  # no dead pane stays
    wrong = place.run("handoff", "demo", "hello", CAO_TMUX_CONF="/nonexistent/conf")
    assert (wrong.returncode, "/nonexistent/conf" in wrong.stderr) == (2, True)


@pytest.mark.tmux
def test_several_viewers_of_any_size_do_not_reflow_a_worker(place, terminal):
    session = begin(place, "say " + "x" * 150)
    place.until_state(session, "idle")

    def size() -> str:
        form = "#{pane_width}x#{pane_height} #{session_attached}"
        return place.tmux("display-message", "-p", "-t", f"={session}:", form).strip()

    screen = place.screen(session)
    small, large = terminal(80, 24, "attach", session), terminal(230, 60, "attach", session)
    until(size, "200x50 2")
    small.tmux("resize-window", "-t", "w", "-x", "60", "-y", "15")
    large.tmux("resize-window", "-t", "w", "-x", "90", "-y", "20")
    until(lambda: small.ask("#{pane_width}"), "60")
    assert size() == "200x50 2"
    small.press("C-b", "d")
    until(size, "200x50 1")
    large.close()
    until(size, "200x50 0")
    assert place.screen(session) == screen


@pytest.mark.tmux
def test_nothing_is_typed_right_after_a_person_has(place, terminal):
    session = begin(place, "say hello")
    place.until_state(session, "idle")
    shown = terminal(80, 24, "attach", session)
    shown.sees("^demo>")
    shown.press("C-u")  # which leaves no draft
    task = place.ok("assign", session, "demo: say mine").strip()
    until(lambda: place.state(session).get("held_back"), "a person is at the session")
    assert place.ok("wait", task) == "mine\n"


@pytest.mark.tmux
def test_a_pane_left_scrolled_back_by_a_viewer_still_gets_its_keys(place):
    session = begin(place, "say hello")
    place.until_state(session, "idle")
    place.tmux("copy-mode", "-t", f"={session}:")
    assert place.ok("handoff", session, "demo: say still here", timeout_s=30) == "still here\n"
    task = place.ok("assign", session, "demo: ask Which?|red|blue").strip()
    place.until_state(session, "asking")
    place.tmux("copy-mode", "-t", f"={session}:")
    place.ok("answer", session, "blue")
    assert place.ok("wait", task) == "blue\n"


def test_a_small_terminal_that_attaches_sees_the_end_of_a_full_screen_program(place, request):
    """Claude Code 2.1.332 hides the cursor, and has its dialog and its input line there."""
    draw = "printf '\\033[?1049h\\033[?25l\\033[5;1HFIRST\\033[50;1HREADY>'; cat"
    place.profile("full", f"---\nprovider: command\ncommand: [sh, -c, {json.dumps(draw)}]\n"
                          "ready: 'READY>$'\n---\n")  # fmt: skip
    session = place.ok("assign", "full", "x").strip().partition(".")[0]
    place.until_state(session, "working")
    shown = Terminal(place, 80, 24, "attach", session)
    request.addfinalizer(shown.close)
    shown.sees("READY>")
    shown.tmux("resize-window", "-x", "80", "-y", "15")
    shown.sees("(?s)^(?!.*FIRST).*READY>")


@pytest.mark.parametrize("last", [10, 25, 48])
def test_a_small_terminal_that_attaches_sees_where_a_hidden_cursor_is(place, request, last):
    """Claude Code 2.1.332 hides it; its first dialogs fill a half of the window."""
    draw = f"printf '\\033[?25l'; for n in $(seq 0 {last}); do echo row $n; done"
    draw += "; printf '\\033[A'; cat"
    place.profile("half", f"---\nprovider: command\ncommand: [sh, -c, {json.dumps(draw)}]\n"
                          f"ready: 'row {last}$'\n---\n")  # fmt: skip
    session = place.ok("assign", "half", "x").strip().partition(".")[0]
    place.until_state(session, "working")
    shown = Terminal(place, 80, 24, "attach", session)
    request.addfinalizer(shown.close)
    shown.sees(f"ow {last}$")
    shown.tmux("resize-window", "-x", "80", "-y", "15")
    until(lambda: shown.ask("#{pane_height}"), "15")
    shown.sees(f"ow {last}$")


def test_what_a_person_answers_in_the_pane_is_an_answer_though_it_is_not_shown(place, request):
    ask = 'printf "> "; read a; printf "Password: "; stty -echo; read x; stty echo; echo; echo $x'
    ask += "; cat"
    place.profile("login", f"---\nprovider: command\ncommand: [sh, -c, {json.dumps(ask)}]\n"
                           "ready: '^> $|^secret *$'\nasking: 'Password:'\n---\n")  # fmt: skip
    task = place.ok("assign", "login", "begin").strip()
    session = task.partition(".")[0]
    place.until_state(session, "asking")
    shown = Terminal(place, 200, 50, "attach", session)
    request.addfinalizer(shown.close)
    shown.sees("Password:")
    shown.press("secret", "Enter")
    until(lambda: place.state(session)["state"] != "asking")
    assert place.ok("wait", task) == "Password:\n"


# ---- what teaches ----


def test_every_example_is_of_a_command_with_the_options_it_has():
    _, parsers = cao.command_line()
    for text in (cao._FIRST_STEPS, *(row.example for row in cao.VERBS)):
        for name, rest in re.findall(r"\bcao ([a-z]+)\b(.*)", text):
            assert name in parsers
            flags = re.findall(r"(?<!\S)(-{1,2}[a-z-]+)", re.sub("'.*?'", "", rest))
            assert set(flags) <= set(parsers[name]._option_string_actions)
    for name, parser in parsers.items():
        assert f"cao {name}" in parser.format_help().partition("example")[2]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("send", "what it says to that stands on its screen: cao show"),
        ("config", "-I -S -c in an entry: Python imports the compiled cao.py"),
        ("ls", "connected while its cao mcp runs, else away"),
    ],
)
def test_the_help_of_a_command_explains_what_it_shows(command, words):
    _, parsers = cao.command_line()
    assert words in " ".join(parsers[command].format_help().split())


ALL_KEYS = """\
---
name: code_writer
description: Writes code
provider: claude_code
role: developer
allowedTools: ["@builtin", "fs_*", "@cao-mcp-server"]
tools: ["*"]
toolAliases: {}
toolsSettings: {execute_bash: {allowedCommands: ["ls.*"]}}
model: sonnet
permissionMode: acceptEdits
mcpServers:
  cao-mcp-server:
    type: stdio
    command: uvx
    args:
      - "--from"
      - "git+https://github.com/awslabs/cli-agent-orchestrator.git@main"
      - "cao-mcp-server"
  tickets: {command: tickets-mcp}
claudeConfig: {model: opus}
codexConfig: {model_reasoning_effort: high}
codexProfile: fast
tags: [a, b]
capabilities: [write]
skills: [docs]
resources: ["file://README.md"]
hooks: {agentSpawn: [{command: "git status"}]}
useLegacyMcpJson: false
prompt: not used where there is a body
---
# CODE WRITER

You write code.
"""


def test_a_profile_of_the_reference_program_loads_unchanged_and_is_explained(place):
    place.profile("code_writer", ALL_KEYS)
    facts = json.loads(place.ok("profiles", "code_writer", "--json"))
    assert facts["from"] == f"{place.home}/profiles/code_writer.md"
    assert (facts["provider"], facts["permissions"].split()[0]) == ("claude", "edits")
    assert "unknown keys" not in facts
    ignored = facts["read, not used"].split()
    assert {"codexConfig", "codexProfile", "tags", "hooks"} <= set(ignored)
    assert "claudeConfig" not in ignored
    listed = json.loads(place.ok("profiles", "--json"))
    found = next(row for row in listed if row["name"] == "code_writer")
    assert found["source"] == f"{place.home}/profiles/code_writer.md"


# ---- trace ----


def invent_sessions(store: cao.Store, count: int) -> None:
    """Write sessions with the logs that work would have left: a supervisor, workers, and
    workers of every fifth of them."""
    dice, above = random.Random(count), ["lead-2222"]
    store_one(store, "lead-2222", "", 0, [(0, "working"), (600, "idle")])
    for n in range(1, count):
        name, at = f"worker-{n:04}", n * 400 / count
        boss = above[n % len(above)]
        depth = 1 if boss == "lead-2222" else 2
        length = dice.uniform(5, 120)
        states = [(at, "starting"), (at + 1, "working"), (at + length, "idle")]
        if n % 4 == 0:
            states[2:2] = [(at + length / 3, "asking"), (at + length / 2, "working")]
        store_one(store, name, boss, depth, states)
        if n % 5 == 1 and depth == 1:
            above.append(name)
        give(store, name, boss, "task", at, f"task {n} <b>&amp;</b>", f"{name}.t222")
        if n % 6 == 0:
            give(store, boss, name, "message", at + length / 2, "half way")
        how = ("failed", "api_error") if n % 7 == 0 else ("done", "")
        result = cao.Result(f"{name}.t222", name, how[0], reason=how[1], answer=f"answer {n}",
                            ended_at=START + at + length)  # fmt: skip
        os.makedirs(f"{store.folder(name)}/results", exist_ok=True)
        store.write(store.result_path(result.task), cao.dump(result))


def add_log(store: cao.Store, name: str, at: float, event: str, **fields) -> None:
    with open(f"{store.folder(name)}/log.jsonl", "a") as file:
        file.write(json.dumps({"at": START + at, "event": event, **fields}) + "\n")


def store_one(store: cao.Store, name: str, boss: str, depth: int, states) -> None:
    os.makedirs(store.folder(name), exist_ok=True)
    session = cao.Session(name, "agent", "developer", "demo", "/", boss, depth, START)
    store.create(session)
    for at, state in [*states, (700, "ended")]:
        add_log(store, name, at, "state", state=state, why="")
    store.save_state(name, {"state": "ended", "since": START + 700})


def give(store, to: str, sender: str, kind: str, at: float, text: str, task: str = "") -> None:
    message_id = f"{int((START + at) * 1e9):020d}-{task or sender}"
    message = cao.Message(message_id, kind, sender, to, text, 0.0, task)
    store.write(f"{store.folder(to)}/inbox/cur/{message.id}", cao.dump(message))
    add_log(store, to, at, "queued", message=message.id, kind=kind, sender=sender)


FIELDS = {  # of the trace-event format: what each kind of event must have, and may have
    "M": ({"args"}, set()),
    "X": ({"dur", "cat"}, {"args"}),
    "i": ({"s", "cat"}, {"args"}),
    "s": ({"id", "cat"}, {"args"}),
    "f": ({"id", "cat", "bp"}, {"args"}),
}


def trace_of(place, *root) -> list[dict]:
    """Return the events of `cao trace`, all of them as the format wants them."""
    trace = json.loads(place.ok("trace", *root, "--output", "-"))
    assert set(trace) == {"traceEvents", "displayTimeUnit", "otherData"}
    events = trace["traceEvents"]
    assert [e["ts"] for e in events] == sorted(e["ts"] for e in events)
    flows: dict = {}
    for event in events:
        needs, may = FIELDS[event["ph"]]
        common = {"ph", "name", "pid", "tid", "ts"}
        assert needs | common <= set(event) <= needs | common | may
        assert event["name"]
        assert {type(event[key]) for key in ("pid", "tid", "ts")} == {int}
        if "args" in event:  # speedscope shows them beside the name, {} too
            assert isinstance(event["args"], dict)
            assert event["args"]
        if event["ph"] == "X":
            assert (type(event["dur"]), event["dur"] > 0) == (int, True)
        elif event["ph"] in "sf":
            flows.setdefault((event["cat"], event["name"], event["id"]), []).append(event)
    assert len({number for _, _, number in flows}) == len(flows)
    for pair in flows.values():
        assert [event["ph"] for event in pair] == ["s", "f"]
        assert pair[1]["bp"] == "e"
    spans = [e for e in events if e["ph"] == "X"]
    for event in (e for e in events if e["ph"] in "sfi"):  # within a span of its thread, after it
        around = [s for s in spans if s["tid"] == event["tid"]
                  and s["ts"] <= event["ts"] < s["ts"] + s["dur"]]  # fmt: skip
        assert len(around) == 1, event
        assert events.index(around[0]) < events.index(event)
    for thread in {s["tid"] for s in spans}:
        own = [s for s in spans if s["tid"] == thread]
        assert all(a["ts"] + a["dur"] <= b["ts"] for a, b in zip(own, own[1:]))
    return events


def threads(events) -> dict[int, str]:
    """Return the names of the threads, in the order in which a viewer shows them."""
    order = {e["tid"]: e["args"]["sort_index"] for e in events if e["name"] == "thread_sort_index"}
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert set(order) == set(names)
    return {tid: names[tid] for tid in sorted(names, key=order.get)}


def arrows(events, kind: str) -> list[tuple]:
    """Return (from, to, what it says) of each arrow of a kind."""
    names = {tid: name.split()[0] for tid, name in threads(events).items()}
    ends = {(e["id"], e["ph"]): e for e in events if e["ph"] in "sf" and e["name"] == kind}
    return [(names[ends[n, "s"]["tid"]], names[e["tid"]], e["args"])
            for (n, phase), e in ends.items() if phase == "f"]  # fmt: skip


@pytest.mark.parametrize("count", [3, 60])
def test_the_trace_has_all_states_and_an_arrow_for_all_that_went_between_sessions(place, count):
    invent_sessions(place.store, count)
    assert place.ok("trace").strip() == str(place.work / "cao-trace.json")
    events = trace_of(place)
    assert json.loads((place.work / "cao-trace.json").read_text())["traceEvents"] == events
    shown = list(threads(events).values())
    assert (len(shown), shown[0]) == (count, "lead-2222 (demo)")
    if count == 60:  # a worker's workers stand below it, before the next worker
        assert shown[1:4] == ["worker-0001 (demo)", "worker-0003 (demo)", "worker-0005 (demo)"]
    tasks = arrows(events, "task")
    assert len(tasks) == count - 1
    assert ("lead-2222", "worker-0001", {"task": "worker-0001.t222", "text": "task 1 <b>&amp;</b>"}
            ) in tasks  # fmt: skip
    results = arrows(events, "result")
    assert len(results) == count - 1
    assert {(a, b) for a, b, _ in results} == {(b, a) for a, b, _ in tasks}
    failed = [e for e in events if e["ph"] == "i"]
    assert len(failed) == (count - 1) // 7
    assert all((e["name"], e["args"]["reason"]) == ("failed", "api_error") for e in failed)
    assert len(arrows(events, "message")) == (count - 1) // 6
    states = [e["name"] for e in events if e["ph"] == "X"]
    assert set(states) == {"starting", "working", "idle"} | ({"asking"} if count > 4 else set())
    (begun,) = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert begun == "cao"


@pytest.mark.tmux
def test_the_trace_of_a_root_shows_it_and_what_is_below(place):
    place.ok("handoff", "demo", "demo: handoff demo {demo: say deep}; say up")
    lone = begin(place, "fail badly")
    place.until_state(lone, "idle")
    (worker,) = [
        n for n in place.live() if place.store.load(n).depth > place.store.load(lone).depth
    ]
    root = place.store.load(worker).supervisor
    events = trace_of(place, root)
    assert [name.split()[0] for name in threads(events).values()] == [root, worker]
    ((source, target, about),) = arrows(events, "result")
    assert (source, target, about["text"], about["outcome"]) == (worker, root, "deep", "done")
    working = [e for e in events if e["ph"] == "X" and e["name"] == "working"]
    assert {e["tid"] for e in working} == {1, 2}
    alone = trace_of(place, lone)
    assert [name.split()[0] for name in threads(alone).values()] == [lone]
    (mark,) = [e for e in alone if e["ph"] == "i"]
    assert (mark["name"], mark["args"]["text"]) == ("failed", "badly")
    missing = place.run("trace", "nobody-2222")
    assert (missing.returncode, "nobody-2222" in missing.stderr) == (3, True)


@pytest.mark.tmux
def test_a_client_is_in_the_trace_from_its_first_task_to_the_last_result(place):
    """It has no states, and a result leaves no trace in its log."""
    task = place.run("handoff", "demo", "demo: tell hello; say hi").stderr.split()[2]
    until(lambda: place.store.load_result(task))
    events = trace_of(place)
    client, worker = (name.split()[0] for name in threads(events).values())
    (span,) = [e for e in events if e["ph"] == "X" and e["tid"] == 1]
    assert span["name"] == "client"
    assert {(kind, a, b) for kind in ("task", "message", "result")
            for a, b, _ in arrows(events, kind)} == {
        ("task", client, worker), ("message", worker, client), ("result", worker, client)
    }  # fmt: skip


@pytest.mark.tmux
def test_a_task_of_a_session_that_was_stopped_is_marked_so(place):
    session = place.ok("assign", "demo", "demo: sleep 60").strip().partition(".")[0]
    place.until_state(session, "working")
    place.ok("stop", session)
    events = trace_of(place)
    (mark,) = [e for e in events if e["ph"] == "i"]
    assert mark["name"] == "stopped"
    assert len(arrows(events, "result")) == 1


@pytest.mark.parametrize(("text", "columns", "wanted"), [
    ("hello", 8, "hello   "),
    ("hello", 5, "hello"),
    ("hello", 4, "hel…"),
    ("日本語", 6, "日本語"),
    ("日本語", 5, "日本…"),
    ("日本語", 4, "日… "),
    ("e\u0301te", 3, "e\u0301te"),
    ("a\tb\x1b[1m", 16, "a       b\\x1b[1m"),
    ("x", 0, ""),
])  # fmt: skip
def test_text_is_fitted_into_columns_of_a_terminal(text, columns, wanted):
    assert cao.fit_columns(text, columns) == wanted


@pytest.mark.parametrize(("text", "words", "wanted"), [
    ("one two three", True, ["one two ", "   three"]),
    ("one two three", False, ["one two th", "ree"]),
    ("a bcdefghijkl m", True, ["a bcdefghi", "   jkl m"]),
    ("abcdefghij kl", True, ["abcdefghij", "    kl"]),
    ("ab cd 漢字漢字", True, ["ab cd ", "   漢字漢", "   字"]),
    ("", True, [""]),
])  # fmt: skip
def test_all_of_a_text_is_wrapped_behind_a_word_where_one_ends_near(text, words, wanted):
    assert cao.wrap_columns(text, 10, words) == wanted


# ---- a question that the CLI itself does not show ----

UNSEEN = "PROVIDERS['demo'] = PROVIDERS['demo']._replace(shows=False)\n"


def attached(place, terminal, columns, lines):
    """Attach a terminal to a demo session whose questions no dialog shows."""
    put_loader(place, UNSEEN)
    (result,) = json.loads(place.ok("handoff", "demo", "demo: say ready", "--json"))["results"]
    shown = terminal(columns, lines, "attach", result["session"])
    shown.sees("demo>")
    return result["session"], shown


@pytest.mark.tmux
@pytest.mark.parametrize("said", ["yes", ""])
def test_who_is_attached_is_asked_in_a_popup_where_the_cli_shows_no_dialog(place, terminal, said):
    session, shown = attached(place, terminal, 100, 30)
    task = place.ok("assign", session, "demo: permit ls|Yes|No; say after").strip()
    shown.sees(rf"(?s){session}.* asks \(permission.*ls.*answer \(nothing: skip it\)")
    shown.press(*([said] if said else []), "Enter")
    until(lambda: place.state(session)["questions"] == [])
    if not said:  # the popup is closed: the CLI's own dialog has the question
        shown.press("1")
    assert place.ok("wait", task) == "Yes\nafter\n"
    until(lambda: "answer (nothing" in shown.screen(), False)


@pytest.mark.tmux
def test_a_popup_takes_an_answer_only_once_it_has_shown_all_that_is_asked(place, terminal):
    session, shown = attached(place, terminal, 80, 20)
    words = [f"word{n}" for n in range(150)]
    task = place.ok("assign", session, f"demo: permit {' '.join(words)}|Yes|No; say after").strip()
    first = shown.sees(r"\(\d+ more lines: Enter; skip it: s\)")
    assert "answer (nothing" not in first
    shown.press("yes", "Enter")  # said before all was shown: it is no answer
    second = shown.sees(r"answer \(nothing: skip it\)")
    assert [word for word in words if not re.search(rf"{word}\b", first + second)] == []
    assert len(place.state(session)["questions"]) == 1
    shown.press("yes", "Enter")
    until(lambda: place.state(session)["questions"] == [])
    assert place.ok("wait", task) == "Yes\nafter\n"


@pytest.mark.tmux
def test_what_a_person_types_to_the_agent_is_no_answer_in_a_popup(place, terminal):
    session, shown = attached(place, terminal, 100, 30)
    script = "demo: sleep 2; ask Drop which database?|staging|production; say after"
    task = place.ok("assign", session, script).strip()
    until(lambda: [e["event"] for e in place.log(session)].count("taken"), 2)
    typed = itertools.cycle("when you are done, please run all of the tests ")
    asked_at = []

    def goes_on_typing():
        shown.press("-l", "--", next(typed))
        if place.state(session)["questions"]:
            asked_at.append(time.time())
        return asked_at and time.time() - asked_at[0] > 1.5

    until(goes_on_typing)
    assert "answer (nothing" not in shown.screen()
    shown.press("Enter")
    shown.sees(r"(?s)Drop which.*answer \(nothing: skip it\)")
    shown.press("staging", "Enter")
    until(lambda: place.state(session)["questions"] == [])
    assert place.ok("wait", task) == "staging\nafter\n"


@pytest.mark.tmux
def test_an_answer_typed_ahead_is_not_the_next_questions(place, terminal):
    for what in ("one", "two"):
        session = begin(place, f"permit {what}|Yes|No; say after")
        place.until_state(session, "asking")
    shown = terminal(100, 30, "answer")
    shown.sees(r"answer \(nothing")
    shown.press("yes", "Enter", "yes", "Enter")
    shown.sees(r"(?s)answer \(nothing.*answer \(nothing")
    shown.press("no", "Enter")
    until(lambda: len((place.home / "approvals.jsonl").read_text().splitlines()), 2)
    given = (place.home / "approvals.jsonl").read_text().splitlines()
    assert [json.loads(line)["answer"] for line in given] == ["yes", "no"]


@pytest.mark.parametrize("columns", [40, 79])
def test_no_wrapped_line_of_a_question_looks_like_one_of_ours(columns):
    head = "demo-ab12 asks (permission, k2): Bash: rm -rf x #"
    forged = "work-9x2k asks (permission, p3xq7a): Bash: ls"
    blanks = " " * (-len(head) % columns)
    asked = {"id": "k2", "kind": "permission", "options": [["yes", "once"]],
             "text": f"Bash: rm -rf x #{blanks}{forged}"}  # fmt: skip
    lines = cao.wrap_columns(cao.render_question("demo-ab12", asked), columns, True)
    assert [line for line in lines if line.startswith(("work-9x2k", "  "))][-1:] == ["  yes: once"]
    assert not any(line.startswith("work-9x2k") for line in lines)


@pytest.mark.tmux
def test_the_popup_goes_where_the_question_was_answered_elsewhere(place, terminal):
    session, shown = attached(place, terminal, 100, 30)
    task = place.ok("assign", session, "demo: permit ls|Yes|No; say after").strip()
    shown.sees(r"(?s)asks \(permission.*answer \(nothing: skip it\)")
    place.ok("answer", session, "no")
    assert place.ok("wait", task) == "No\nafter\n"
    until(lambda: "answer (nothing" in shown.screen(), False)


@pytest.mark.tmux
def test_a_later_question_has_its_popup_too_and_who_left_holds_nothing_up(place, terminal):
    session, shown = attached(place, terminal, 100, 30)
    script = "demo: permit one|Yes|No; permit two|Yes|No; permit three|Yes|No; say after"
    task = place.ok("assign", session, script).strip()
    for word in ("one", "two"):
        shown.sees(rf"(?s)asks \(permission.*{word}.*answer \(nothing: skip it\)")
        place.ok("answer", session, "yes")
    shown.sees(r"(?s)asks \(permission.*three.*answer \(nothing: skip it\)")
    client = place.tmux("list-clients", "-F", "#{client_name}").strip()
    place.tmux("detach-client", "-t", client)
    until(lambda: place.tmux("list-clients"), "")
    place.ok("answer", session, "yes")
    assert place.ok("wait", task) == "Yes\nYes\nYes\nafter\n"


@pytest.mark.tmux
@pytest.mark.parametrize("command", ["attach", "why", "logs"])
def test_a_client_is_no_dead_session(place, command):
    session = begin(place, "sleep 60")
    place.until_state(session, "working")
    client = place.store.load(session).supervisor
    done = place.run(command, client)
    if command == "attach":
        assert (done.returncode, "is a client, not an agent" in done.stderr) == (2, True)
    assert place.live() == [session]
    assert not (place.home / "sessions" / client / "state.json").exists()


def test_a_trace_never_takes_the_place_of_a_directory(place):
    place.ok("handoff", "demo", "demo: say one")
    (place.work / "cao-trace.json").mkdir()
    (place.work / "cao-trace.json" / "work").write_text("mine")
    refused = place.run("trace")
    assert (refused.returncode, "is a directory" in refused.stderr) == (2, True)
    assert (place.work / "cao-trace.json" / "work").read_text() == "mine"


@pytest.mark.tmux
def test_a_trace_is_written_to_what_its_path_names(place):
    place.ok("handoff", "demo", "demo: say one")
    pipe, link, file = (place.work / name for name in ("pipe", "link", "file"))
    os.mkfifo(pipe)
    link.symlink_to("file")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    place.ok("trace", "--output", "pipe")
    assert json.loads(os.read(reader, 1 << 16))["traceEvents"]
    os.close(reader)
    place.ok("trace", "--output", "link")
    assert json.loads(file.read_text())["traceEvents"]
    assert (pipe.is_fifo(), link.is_symlink(), file.stat().st_mode & 0o777) == (True, True, 0o600)
