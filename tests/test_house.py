"""The rules of the house, read off cao.py by ast and dis: it reads names, not types.

Each rule is a function of a source that returns what breaks it, "line N: …" each; the
small wrong sources at the end show that each rule does see what it is there for.
"""

from __future__ import annotations

import ast
import dis
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Callable, NamedTuple

import pytest

from conftest import ROOT


def words(text: str) -> list[str]:
    return text.split()


SOURCE = (ROOT / "cao.py").read_text(encoding="utf-8")

BANNER = re.compile(r"^# ==== (\d+)\. (\w+) =+$", re.M)
PURE_ROOMS = range(1, 6)
# What a pure room must not touch: clock, file, process, thread, environment, terminal.
IMPURE = frozenset(
    words(
        "os time select fcntl signal subprocess threading socket random secrets shutil tempfile"
        " datetime pathlib sys open print input __import__ exec"
    )
)
# Every hook and tool server pays for these: what no start can do without (DESIGN.md, 4).
TOP_IMPORTS = frozenset(
    words("__future__ errno fcntl functools json operator os re select signal stat sys time typing")
)
STARTING_ROOMS = frozenset({6, 9})
PRINTING_ROOMS = frozenset({12, 14})
BANNED_WORDS = frozenset(words("manager service helper helpers util utils misc"))
BANNED_STARTS = ("do_", "process_", "handle_")  # handle_ is McpServer's word for a message
# sys.stdlib_module_names is there from 3.10 on; 3.9 gets what this file may well want.
STDLIB = getattr(sys, "stdlib_module_names", None) or TOP_IMPORTS | frozenset(
    words(
        "argparse array ast base64 bisect calendar codecs collections concurrent configparser"
        " contextlib copy csv ctypes dataclasses datetime difflib enum fnmatch functools"
        " getpass glob grp gzip hashlib heapq hmac html http importlib inspect io itertools"
        " locale logging math mmap operator pathlib platform plistlib pwd queue random"
        " resource sched secrets shlex shutil socket sqlite3 stat string struct subprocess"
        " tempfile termios textwrap threading traceback curses tty types unicodedata urllib"
        " uuid warnings weakref xml zlib zoneinfo"
    )
)


class Use(NamedTuple):
    """A name that code looks up beyond its own function, or imports."""

    line: int
    name: str
    inside: str  # qualified: "Store.put", "" at module level
    imported: bool


@functools.lru_cache(None)
def tree_of(source: str) -> ast.Module:
    return ast.parse(source)


@functools.lru_cache(None)
def rooms_of(source: str) -> list[tuple[int, int, str]]:
    """Return (line, number, name) of each banner."""
    return [
        (source.count("\n", 0, found.start()) + 1, int(found[1]), found[2])
        for found in BANNER.finditer(source)
    ]


def room_at(source: str, line: int) -> int:
    """Return the number of the room a line stands in; 0 above the first."""
    return max((number for start, number, _ in rooms_of(source) if start <= line), default=0)


@functools.lru_cache(None)
def uses_of(source: str) -> list[Use]:
    """Return what the compiled code looks up outside itself.

    By bytecode, for the compiler knows the scopes; annotations are text there
    (`from __future__ import annotations`), so they do not count.
    """

    def walk(code, inside: str) -> Iterator[Use]:
        lines = dict(dis.findlinestarts(code))
        line = code.co_firstlineno
        for op in dis.get_instructions(code):
            line = lines.get(op.offset) or line
            if op.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
                yield Use(line, op.argval, inside, False)
            elif op.opname == "IMPORT_NAME":
                yield Use(line, op.argval.partition(".")[0], inside, True)
        for const in code.co_consts:
            if hasattr(const, "co_code"):
                own = "" if const.co_name.startswith("<") else const.co_name
                yield from walk(const, ".".join(filter(None, (inside, own))))

    return list(walk(compile(source, "cao.py", "exec"), ""))


def module_names(source: str) -> dict[str, list[int]]:
    """Return each name that the module defines, with the lines that do; imports not."""
    found: dict[str, list[int]] = {}
    for node in tree_of(source).body:
        names: list[str] = []
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names = [node.name]
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [n.id for t in targets for n in ast.walk(t)
                     if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]  # fmt: skip
        for name in names:
            found.setdefault(name, []).append(node.lineno)
    return found


def nodes_of(source: str, *kinds: type) -> Iterator[ast.AST]:
    return (node for node in ast.walk(tree_of(source)) if isinstance(node, kinds))


def lines_of(source: str, name: str) -> set[int]:
    """Return the line numbers of a function or class."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    found = (n for n in nodes_of(source, *kinds) if n.name == name)
    return {line for n in found for line in range(n.lineno, n.end_lineno + 1)}


# ---- the rules ----


def banners_that_differ_from_the_contents(source: str) -> list[str]:
    """The contents list in the docstring and the banners are the same, in order."""
    text = ast.get_docstring(tree_of(source)) or ""
    listed = re.findall(r"\b(\d+)\. (\w+)", text.partition("Contents")[2])
    contents = sorted((int(number), name) for number, name in listed)
    banners = [(number, name) for _, number, name in rooms_of(source)]
    if [number for number, _ in banners] != sorted({number for number, _ in banners}):
        return [f"the banners are not in rising order: {banners}"]
    return [
        f"room {room[0]}. {room[1]} is only in the {'contents' if room in contents else 'banners'}"
        for room in sorted({*contents} ^ {*banners})
    ]


def imports_beyond_the_standard_library(source: str) -> list[str]:
    """Nothing but Python itself is needed."""
    return [f"line {u.line}: imports {u.name}" for u in uses_of(source)
            if u.imported and u.name not in STDLIB]  # fmt: skip


def imports_at_the_top_that_cost_each_start(source: str) -> list[str]:
    """Only what every start needs is imported at the top."""
    return [f"line {u.line}: imports {u.name} at the top" for u in uses_of(source)
            if u.imported and not u.inside and u.name not in TOP_IMPORTS]  # fmt: skip


def uses_of_a_room_below(source: str) -> list[str]:
    """A room uses only names of its own and of the rooms above it."""
    defined = {name: room_at(source, lines[0]) for name, lines in module_names(source).items()}
    found = []
    for use in uses_of(source):
        room = room_at(source, use.line)
        if not use.imported and defined.get(use.name, 0) > room:
            found.append(f"line {use.line}: room {room} ({use.inside or 'module'}) uses"
                         f" {use.name} of room {defined[use.name]}")  # fmt: skip
    return sorted(set(found))


def impure_uses_in_a_pure_room(source: str) -> list[str]:
    """Rooms 1-5 know no clock, file, process, thread or environment."""
    return sorted({
        f"line {u.line}: room {room_at(source, u.line)} ({u.inside or 'module'}) uses {u.name}"
        for u in uses_of(source) if u.name in IMPURE and room_at(source, u.line) in PURE_ROOMS
    })  # fmt: skip


def subprocess_outside_run(source: str) -> list[str]:
    """The function `run` is the one door to subprocess."""
    return [f"line {u.line}: subprocess in {u.inside or 'module'}" for u in uses_of(source)
            if u.name == "subprocess" and u.inside != "run"]  # fmt: skip


def shells_that_are_started(source: str) -> list[str]:
    """No shell reads what we start: no os.system, os.popen, shell=True."""
    found = [f"line {n.lineno}: os.{n.attr}" for n in nodes_of(source, ast.Attribute)
             if n.attr in ("system", "popen") and ast.unparse(n.value) == "os"]  # fmt: skip
    return found + [f"line {n.value.lineno}: shell=" for n in nodes_of(source, ast.keyword)
                    if n.arg == "shell"]  # fmt: skip


def programs_started_elsewhere(source: str) -> list[str]:
    """Only Processes and Runner start a program; cmd_attach and cmd_diff become one."""
    excepted = {*lines_of(source, "cmd_attach"), *lines_of(source, "cmd_diff")}
    return [
        f"line {node.lineno}: os.{node.attr}"
        for node in nodes_of(source, ast.Attribute)
        if re.match(r"fork|exec[lv]|spawn|posix_spawn", node.attr)
        and ast.unparse(node.value) == "os"
        and room_at(source, node.lineno) not in STARTING_ROOMS
        and node.lineno not in excepted
    ]


def prints_outside_the_cli(source: str) -> list[str]:
    """Only verbs and main print: stdout of `cao mcp` and of a hook belongs to others."""
    return [f"line {u.line}: print in {u.inside or 'module'}" for u in uses_of(source)
            if u.name == "print" and room_at(source, u.line) not in PRINTING_ROOMS]  # fmt: skip


def broad_excepts(source: str) -> list[str]:
    """`except Exception` stands once, in McpServer; BaseException is raised again; none is bare."""
    found, doors = [], []
    for node in nodes_of(source, ast.ExceptHandler):
        caught = ast.unparse(node.type) if node.type else ""
        names = {caught} if caught.isidentifier() else set(re.findall(r"\w+", caught))
        raises = any(isinstance(n, ast.Raise) and not n.exc for n in ast.walk(node))
        if not caught:
            found.append(f"line {node.lineno}: a bare except")
        elif "BaseException" in names and not raises:
            found.append(f"line {node.lineno}: except BaseException that does not raise it again")
        elif "Exception" in names:
            doors.append(node.lineno)
            if all(isinstance(n, ast.Pass) for n in node.body):
                found.append(f"line {node.lineno}: except Exception: pass")
    if len(doors) != 1 or doors[0] not in lines_of(source, "McpServer"):
        found.append(f"lines {doors}: except Exception is to stand once, in McpServer")
    return found


def names_without_a_docstring(source: str) -> list[str]:
    """Every public function and class of the module has a docstring, but cmd_* (STYLE.md)."""
    return [
        f"line {node.lineno}: {node.name} has no docstring"
        for node in tree_of(source).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        and not node.name.startswith(("_", "cmd_"))
        and not ast.get_docstring(node)
    ]


def names_that_say_nothing(source: str) -> list[str]:
    """The drawers called manager, service, helper, util, misc; do_, process_, handle_."""
    server = {m for n in nodes_of(source, ast.ClassDef) if n.name.startswith("Mcp")
              for m in [x.name for x in ast.walk(n) if isinstance(x, ast.FunctionDef)]}  # fmt: skip
    named = [(n.lineno, n.name) for n in nodes_of(source, ast.FunctionDef, ast.ClassDef)]
    named += [(n.lineno, n.arg) for n in nodes_of(source, ast.arg)]
    named += [(n.lineno, n.id) for n in nodes_of(source, ast.Name) if isinstance(n.ctx, ast.Store)]
    found = []
    for line, name in sorted(set(named)):
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().split("_")
        begins = next((s for s in BANNED_STARTS if name.lstrip("_").startswith(s)), "")
        if begins == "handle_" and name in server:
            begins = ""
        if begins or BANNED_WORDS & {*words}:
            found.append(f"line {line}: the name {name}")
    return found


def names_defined_twice(source: str) -> list[str]:
    """A module-level name can be found by one grep."""
    return [f"lines {lines}: {name} is defined {len(lines)} times"
            for name, lines in module_names(source).items() if len(lines) > 1]  # fmt: skip


RULES: list[Callable[[str], list[str]]] = [
    banners_that_differ_from_the_contents,
    imports_beyond_the_standard_library,
    imports_at_the_top_that_cost_each_start,
    uses_of_a_room_below,
    impure_uses_in_a_pure_room,
    subprocess_outside_run,
    shells_that_are_started,
    programs_started_elsewhere,
    prints_outside_the_cli,
    broad_excepts,
    names_without_a_docstring,
    names_that_say_nothing,
    names_defined_twice,
]


@pytest.mark.parametrize("rule", RULES, ids=[rule.__name__ for rule in RULES])
def test_the_house_has_no(rule):
    broken = rule(SOURCE)
    assert not broken, f"{rule.__doc__}\n" + "\n".join(broken)


# ---- each rule sees what it is for ----

GOOD = '''\
"""A house.

Contents:
    1. Constants   4. Text   13. McpServer   14. CLI
"""
from __future__ import annotations
import re
# ==== 1. Constants ====
LIMIT = 1
# ==== 4. Text ====
def parse(text: str) -> McpServer:
    """Return it."""
    return re.compile(text), LIMIT
# ==== 13. McpServer ====
class McpServer:
    """Serves."""
    def handle_line(self):
        try:
            return parse("")
        except Exception as error:
            return error
# ==== 14. CLI ====
def run():
    """Run."""
    import subprocess
    try:
        print(subprocess)
    except BaseException:
        raise
'''
BREAKS = [
    (banners_that_differ_from_the_contents, "# ==== 4. Text ====", "# ==== 4. Words ===="),
    (banners_that_differ_from_the_contents, "# ==== 4. Text ====", ""),
    (banners_that_differ_from_the_contents, "13. McpServer   14", "14"),
    (imports_beyond_the_standard_library, "    import subprocess", "    import yaml"),
    (imports_at_the_top_that_cost_each_start, "import re", "import argparse"),
    (uses_of_a_room_below, "re.compile(text)", "McpServer()"),
    (uses_of_a_room_below, "LIMIT = 1", "LIMIT = lambda: parse(1)"),
    (impure_uses_in_a_pure_room, "re.compile(text)", "open(text)"),
    (impure_uses_in_a_pure_room, '    """Return it."""', '    """Return it."""\n    import time'),
    (impure_uses_in_a_pure_room, "LIMIT = 1", "import os\nLIMIT = os.sep"),
    (subprocess_outside_run, "def run", "def ran"),
    (shells_that_are_started, "print(subprocess)", "os.system('ls')"),
    (shells_that_are_started, "print(subprocess)", "subprocess.run('ls', shell=True)"),
    (programs_started_elsewhere, "print(subprocess)", "os.execve('ls')"),
    (programs_started_elsewhere, "re.compile(text)", "os.fork()"),
    (prints_outside_the_cli, "return error", "print(error)"),
    (broad_excepts, "            return error", "            pass"),
    (broad_excepts, "        raise", "        return"),
    (broad_excepts, "    except BaseException:", "    except:"),
    (broad_excepts, "    except BaseException:", "    except (OSError, Exception):"),
    (broad_excepts, "except Exception", "except ValueError"),
    (names_without_a_docstring, '    """Run."""', ""),
    (names_without_a_docstring, '    """Serves."""', ""),
    (names_that_say_nothing, "def parse(", "def do_parse("),
    (names_that_say_nothing, "def parse(", "def handle_parse("),
    (names_that_say_nothing, "class McpServer", "class McpManager"),
    (names_that_say_nothing, "LIMIT", "LIMIT_UTIL"),
    (names_defined_twice, "LIMIT = 1", "LIMIT = 1\nLIMIT = 2"),
]


@pytest.mark.parametrize("rule", RULES, ids=[rule.__name__ for rule in RULES])
def test_a_good_house_breaks_no_rule(rule):
    assert rule(GOOD) == []


BREAK_IDS = [f"{rule.__name__}: {new.strip()[:30]}" for rule, _, new in BREAKS]


@pytest.mark.parametrize(("rule", "old", "new"), BREAKS, ids=BREAK_IDS)
def test_a_rule_sees_a_break(rule, old, new):
    assert old in GOOD
    assert rule(GOOD.replace(old, new))


def test_every_rule_is_shown_to_see_a_break():
    assert {rule for rule, _, _ in BREAKS} == {*RULES}


def test_typing_is_not_imported_at_run_time():
    """It takes as long as half of our own body; under -S no .pth file of a site has it either."""
    code = f"import sys; sys.path.append({str(ROOT)!r}); import cao"
    code += "; sys.exit('typing' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-I", "-S", "-B", "-c", code], check=False).returncode == 0
    )
