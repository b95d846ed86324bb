"""The README is true: its tables are the program's, its commands run."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

import cao
from conftest import CAO, PINNED, ROOT, run_block, until
from test_views import Terminal

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SOURCE = (ROOT / "cao.py").read_text(encoding="utf-8")
SCREEN_LINES, SCREEN_COLUMNS = 40, 80


def section(title: str) -> str:
    """Return what stands under a heading, up to the next of its level or above."""
    match = re.search(rf"^(#+) {re.escape(title)}\n", TEXT, re.M)
    assert match, f"there is no heading {title!r}"
    rest = TEXT[match.end() :]
    end = re.search(rf"^#{{1,{len(match[1])}}} ", re.sub(r"(?ms)^```.*?^```$", blank, rest), re.M)
    return rest[: end.start()] if end else rest


def blank(match: re.Match) -> str:
    """Return as many characters without a heading: a comment in a code block is none."""
    return re.sub(r"[^\n]", " ", match[0])


def table(title: str, number: int = 0) -> list[list[str]]:
    """Return the cells of a table under a heading, without its head."""
    found = re.findall(r"(?:^\|.*\|\n)+", section(title), re.M)[number]
    rows = [line.strip("|").split("|") for line in found.splitlines()[2:]]
    return [[cell.strip() for cell in row] for row in rows]


def coded(text: str) -> list[str]:
    """Return the words in text that are written as code."""
    return re.findall(r"`([^`]+)`", text)


def blocks(language: str, before: str = "") -> list[str]:
    """Return the code blocks in a language; before: the line that must stand above."""
    return re.findall(rf"^{before}```{language}\n(.*?)^```$", TEXT, re.M | re.S)


PROFILES = [text for text in blocks("markdown") if text.startswith("---")]
COMMAND_PROFILE = next(text for text in PROFILES if "provider: command" in text)
RUNNABLE = blocks("sh", "<!-- run -->\n")


# ---- the first screen ----


def test_the_first_screen_has_all_to_begin_with():
    lines = TEXT.splitlines()
    first = lines[:SCREEN_LINES]
    assert [line for line in first if len(line) > SCREEN_COLUMNS] == []
    assert next(n for n, line in enumerate(lines) if line.startswith("## ")) <= SCREEN_LINES
    intro = TEXT[: TEXT.index("\n## ")]
    for wanted in ("# cao\n", "3.9", "3.2", "cao.py demo", "cao config", "cao.py mcp", "◄─"):
        assert wanted in intro


def test_the_needs_are_those_of_the_program():
    assert f"Python {minimum_python()}+" in TEXT
    assert "tmux {}.{}+".format(*cao.TMUX_MINIMUM) in TEXT


def minimum_python() -> str:
    return re.search(r'requires-python = ">=(.+)"', (ROOT / "pyproject.toml").read_text())[1]


def test_the_picture_has_the_boxes_of_the_source():
    def boxed(text: str) -> list[str]:
        inside = [cell.strip() for cell in re.findall(r"│([^│◄►┌┐└┘]+)│", text)]
        return [cell for cell in inside if cell]

    assert boxed(TEXT[: TEXT.index("\n## ")]) == boxed(cao.__doc__) != []


# ---- the tables ----


def commands() -> dict[str, tuple[str, bool]]:
    """Return command -> (what it does, does it take --json)."""
    top, parsers = cao.command_line()
    listing = next(action for action in top._actions if action.dest == "command")
    words = {choice.dest: choice.help for choice in listing._choices_actions}
    found = {}
    for name, parser in parsers.items():
        flags = {a.option_strings[-1] for a in parser._actions if a.option_strings}
        found[name] = (words[name], "--json" in flags)
    return found


def test_the_commands_are_the_programs():
    documented = {coded(row[0])[0].split()[1]: row[1] for row in table("Commands")}
    assert documented == {name: known[0] for name, known in commands().items()}


def test_the_commands_without_json_are_named():
    named = re.search(r"All take `--json`(.*?)\.", section("Commands"), re.S)[1]
    assert set(coded(named)) == {name for name, known in commands().items() if not known[1]}


def test_the_tools_and_their_arguments_are_the_programs():
    documented = {}
    for name, arguments, _ in table("The MCP tools"):
        needed, _, free = arguments.partition("[")
        documented[coded(name)[0]] = (coded(needed), coded(free))
    assert documented["assign"] == (["handoff"], [])  # as handoff
    documented["assign"] = documented["handoff"]
    assert documented == {
        tool.name: (list(tool.required), [a for a in tool.arguments if a not in tool.required])
        for tool in cao.TOOLS.values()
    }


def test_the_clients_are_those_of_config():
    (named,) = re.findall(r"CLIENT is one of:\s(.*?)\. By\s+hand", TEXT, re.S)
    assert coded(named) == list(cao.CLIENTS)
    assert f"for {len(cao.CLIENTS)} clients" in TEXT


def test_the_protocol_versions_are_those_that_are_spoken():
    (line,) = re.findall(r"Protocol versions (.*?) \(", section("The MCP tools"), re.S)
    spoken = {*cao.LEGACY_VERSIONS, cao.MODERN_VERSION}
    assert set(re.findall(r"\d{4}-\d\d-\d\d", line)) == spoken


def test_the_clients_limits_are_those_of_the_program():
    text = section("The MCP tools")
    for seconds in {*cao.CALL_CEILINGS_S.values(), cao.CALL_CEILING_S}:
        assert f"{seconds:.0f} s" in text
    for characters in {*cao.ANSWER_CHARS_BY_CLIENT.values(), cao.ANSWER_CHARS}:
        assert f"{characters:,}" in text


def test_the_exit_codes_are_the_programs():
    known = {value for name, value in vars(cao).items() if name.startswith("EXIT_")}
    (listed,) = re.findall(r"\*\*Exit codes\*\*: (.*?)\.\n", TEXT, re.S)
    assert [
        int(code) for code in re.findall(r"(?:^|· )(\d+) ", listed.replace("\n", " "))
    ] == sorted(known)


def test_the_environment_variables_are_those_that_are_read():
    read = {name for name in re.findall(r"CAO_[A-Z_]+", SOURCE) if not name.startswith("CAO_TEST_")}
    assert {name for name in coded(section("Environment")) if name[:4] == "CAO_"} == read


def test_the_versions_of_the_clis_are_those_the_tests_run():
    (listed,) = re.findall(r"The tests run (.*?) Kiro CLI is unproven", TEXT, re.S)
    assert re.findall(r"\d+(?:\.\d+)+", listed) == list(PINNED.values())
    assert [name for name in cao.PROVIDERS if cao.unproven(name)] == ["kiro"]
    assert {name: row.proven for name, row in cao.PROVIDERS.items() if row.proven} == PINNED


# ---- profiles ----


DOCUMENTED_KEYS = {key for row in table("Profiles") for key in coded(row[0])}


def test_the_profile_keys_are_those_the_program_knows():
    assert cao.PROFILE_KEYS - {*cao._UNUSED_KEYS} == DOCUMENTED_KEYS


def test_the_grant_shown_is_a_grant():
    grant = cao.parse_profile(PROFILES[0], "x", "README.md").settings["grant"]
    assert tuple(grant) == cao.GRANT_KEYS


# ---- what runs ----


@pytest.fixture
def at_work(bare):
    """A place with `cao` on its PATH and the README's command profile in its directory."""
    words = cao.quote_argv(CAO)
    program = bare.folder / "bin" / "cao"
    program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    program.chmod(0o755)
    folder = bare.work / ".cao" / "profiles"
    folder.mkdir(parents=True)
    (folder / "py.md").write_text(COMMAND_PROFILE)
    bare.ok("allow")
    return bare


def test_there_is_something_to_run():
    assert len(RUNNABLE) >= 2
    assert all(re.search("cao (handoff|run|schedule|assign) ", block) for block in RUNNABLE)


@pytest.mark.tmux
@pytest.mark.parametrize("block", RUNNABLE)
def test_the_commands_of_a_block_run_and_print_what_they_say(at_work, block):
    if re.search("^git ", block, re.M) and not shutil.which("git"):
        pytest.skip("git is not installed")
    run_block(block, at_work.work, at_work.env)


@pytest.mark.tmux
def test_a_sessions_folder_holds_what_the_page_says(place):
    (listing,) = re.findall(r"^```text\n(sessions/.*?)^```$", section("Files"), re.M | re.S)
    inner, _, outer = listing.partition("\nflows/")
    inner = {name.rstrip("/") for name in inner.split()[1:]}
    outer = {"sessions", "flows", *(name.partition("/")[0] for name in outer.split())}
    place.ok("handoff", "demo", "demo: say seen")
    (name,) = place.live()
    place.ok("stop", name)
    assert set(os.listdir(place.home / "sessions" / name)) == inner
    assert set(os.listdir(place.home)) <= outer


# ---- the captured picture ----

AT_WORK = (
    "demo: assign developer {demo: sleep 90; say the parser is mended};"
    " assign reviewer {demo: say nothing to object};"
    " assign tester {demo: permit rm -rf build|Yes|No}; sleep 60"
)


def without_what_varies(screen: str, folder: str) -> list[str]:
    """Return the lines of a picture without names' ends, times and the space after them."""
    screen = re.sub(r"-[2-9a-z]{4}\b", "-NAME", screen.replace(folder, "~/project"))
    screen = re.sub(r"\((\w+), [2-9a-z]{6}\)", r"(\1)", screen)
    screen = re.sub(r"working +[\d.]+ s|since [\d:]+", "TIME", screen)
    return re.sub(r" {2,}", "  ", screen).strip().splitlines()


@pytest.mark.tmux
def test_the_picture_of_watch_is_what_watch_shows(place, request):
    for name in ("supervisor", "developer", "reviewer", "tester"):
        place.profile(name, "---\nprovider: demo\n---\n")
    session = place.ok("launch", "--detach").strip()
    place.ok("send", session, AT_WORK)
    until(place.live, lambda names: len(names) == 4)
    shown = Terminal(place, 78, 11, "watch")
    request.addfinalizer(shown.close)
    shown.sees("(?s)^cao  2 working  1 asking  1 idle.*asks: Bash")
    shown.press("Tab")
    seen = shown.sees("(?s)^  always: the same.*^enter attach")
    (picture,) = [text for text in blocks("text") if text.startswith("cao  ")]
    folder = str(place.work)
    assert without_what_varies(seen, folder) == without_what_varies(picture, folder)


# ---- the captured demo ----


def normalised(text: str, home: str) -> list[str]:
    """Return the lines of a demo without what varies: times, sizes, names, the home."""
    names: dict[str, str] = {}

    def anonymous(match: re.Match) -> str:
        return names.setdefault(match[0], "demo-NAME")

    text = text.replace(home, "~/.local/state/cao")
    text = re.sub(r"\bdemo-[2-9a-z]{4}\b", anonymous, text)
    text = re.sub(r"(NAME)\.[2-9a-z]{4}\b", r"\1.TASK", text)
    text = re.sub(r"^ *\d+\.\d s", "N s", text, flags=re.M)
    return re.sub(r"\d+ bytes", "N bytes", text).strip().splitlines()


STATE = re.compile(r"N s +demo-NAME is \w+$")


DEMO = """\
  0.0 s  you hand a task to a supervisor, an agent in a tmux session of its own
  0.1 s      demo-pvt9 is starting
  0.4 s      demo-pvt9 is working
  0.7 s          demo-9unj is starting
  0.9 s          demo-9unj is asking
  0.9 s  demo-9unj asks: Which name shall the release have? (Aurora, Borealis)
  1.4 s  you answer: Aurora   (cao answer demo-9unj 1)
  1.4 s          demo-9unj is working
  2.9 s          demo-n4da is idle
  2.9 s      demo-pvt9 is idle
  2.9 s  the supervisor's answer, exact, 113 bytes, from its hook:Stop:

    (on the way, demo-n4da: I am half way)
    demo-9unj: Aurora
    demo-n4da: the tests pass
    demo-t7bu: the parser is sound

  2.9 s  all of it is in files you can read: \
~/.local/state/cao/sessions/demo-pvt9/results/demo-pvt9.3hzb.json
Now with real agents:  cao handoff claude 'Which tests fail, and why?'
"""


@pytest.mark.tmux
def test_the_demo_shows_what_cao_does(place):
    told = normalised(DEMO, "~/.local/state/cao")
    seen = normalised(place.ok("demo", timeout_s=120), str(place.home))

    # Which states are caught, and in which order, is a matter of time; and the workers'
    # lines in the answer are in the order of their names, which are random.
    def steady(lines: list[str]) -> list[str]:
        spoken = [line for line in lines if not STATE.match(line)]
        answer = [line for line in spoken if line.startswith("    ")]
        return [line for line in spoken if line not in answer] + sorted(answer)

    assert steady(seen) == steady(told)
    assert {line for line in seen if STATE.match(line)} <= {
        line for line in told if STATE.match(line)
    }


# ---- the page itself ----


def test_every_inner_link_has_its_heading():
    headings = re.findall(r"^#+ (.*)$", re.sub(r"(?ms)^```.*?^```$", blank, TEXT), re.M)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}
    assert [link for link in re.findall(r"\]\(#([^)]+)\)", TEXT) if link not in anchors] == []


def test_every_file_that_is_named_is_there():
    named = re.findall(r"`(?:python3 )?((?:tests|\.ci)/[\w./]+)`", TEXT)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_no_path_of_a_machine_stands_in_it():
    assert [
        line for line in TEXT.splitlines() if re.search(r"/(root|home|Users|work)/", line)
    ] == []
    assert str(Path(sys.prefix)) not in TEXT
