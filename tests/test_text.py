"""Room 4, Text: pure functions, by tables and a few seeded loops."""

from __future__ import annotations

import json
import random

import pytest

import cao


def table(names, rows):
    """parametrize, with each row's first item as its id."""
    return pytest.mark.parametrize(names, [pytest.param(*row[1:], id=row[0]) for row in rows])


# ---- what is typed and shown ----


@table(
    "text, kept",
    [
        ("plain", "plain", "plain"),
        ("newline and tab stay", "a\n\tb", "a\n\tb"),
        ("crlf", "a\r\nb\r\n", "a\nb\n"),
        ("lone cr", "a\rb", "a\nb"),
        ("cr cr lf", "a\r\r\nb", "a\n\nb"),
        ("escape", "a\x1b[201~b", "a[201~b"),
        ("c1 csi", "a\x9b201~b", "a201~b"),
        ("nul and bell", "a\x00\x07b", "ab"),
        ("vertical tab, form feed", "a\x0b\x0cb", "ab"),
        ("delete", "a\x7fb", "ab"),
        ("all c1", "".join(map(chr, range(0x80, 0xA0))), ""),
        ("no-break space stays", "a\xa0b", "a\xa0b"),
        ("unicode stays", "ünï 😀 ﷽ \u2028", "ünï 😀 ﷽ \u2028"),
        ("empty", "", ""),
    ],
)
def test_strip_controls_keeps_newlines_tabs_and_words(text, kept):
    assert cao.strip_controls(text) == kept


def test_strip_controls_leaves_nothing_that_could_end_a_bracketed_paste():
    dice = random.Random(4)
    alphabet = [*map(chr, range(0x100)), "\r\n", "\x1b[201~", "😀", "\u2028"]
    forbidden = {*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0))} - {"\n", "\t"}
    for _ in range(500):
        text = "".join(dice.choices(alphabet, k=dice.randrange(60)))
        kept = cao.strip_controls(text)
        assert not forbidden & set(kept), repr(text)
        assert cao.strip_controls(kept) == kept
        assert [c for c in text if c.isprintable()] == [c for c in kept if c.isprintable()]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        pytest.param("a\x1b[1mb\x1b[0mc", "abc", id="sgr"),
        pytest.param("\x1b[38;5;246m❯\x1b[39m", "❯", id="256 colours"),
        pytest.param("\x1b[?25l\x1b[2Jx", "x", id="private and erase"),
        pytest.param("\x1b[1 qx", "x", id="an intermediate byte"),
        pytest.param("\x1b]0;title\x07x", "x", id="osc ended by bell"),
        pytest.param("\x1b]8;;http://x\x1b\\x\x1b]8;;\x1b\\", "x", id="osc ended by st"),
        pytest.param("\x1b7x\x1b8", "x", id="two bytes"),
        pytest.param("no escapes [0m", "no escapes [0m", id="none"),
        pytest.param("", "", id="empty"),
        pytest.param("\x1b(Bx", "x", id="charset"),
        pytest.param("\x1bP1$r0m\x1b\\x", "x", id="dcs"),
    ],
)
def test_strip_ansi_leaves_the_words(text, kept):
    assert cao.strip_ansi(text) == kept


@table(
    "sent, got, said",
    [
        ("same", "abc", "abc", "exact"),
        ("both empty", "", "", "exact"),
        (
            "in the middle",
            "abcdef",
            "abXdef",
            "differs at character 2 of 6: sent 'cdef', got 'Xdef'",
        ),
        ("cut off", "abc", "ab", "differs at character 2 of 3: sent 'c', got ''"),
        ("more at the end", "ab", "abc", "differs at character 2 of 2: sent '', got 'c'"),
        ("nothing came", "ab", "", "differs at character 0 of 2: sent 'ab', got ''"),
        (
            "tab to blanks",
            "a\tb",
            "a    b",
            "differs at character 1 of 3: sent '\\tb', got '    b'",
        ),
        (
            "at most 20 characters are shown",
            "x" * 50,
            "y" * 50,
            f"differs at character 0 of 50: sent '{'x' * 20}', got '{'y' * 20}'",
        ),
    ],
)
def test_first_difference_says_where(sent, got, said):
    assert cao.first_difference(sent, got) == said


@table(
    "sent, got, same",
    [
        ("the same", "do this", "do this", True),
        ("trimmed", "  do this  ", "do this", True),
        ("wrapped", "one line\nand two", "one line and\ntwo", True),
        ("tab to blanks", "a\tb", "a    b", True),
        ("in a wrapper", "do this thing", "<pasted>\ndo this thing\n</pasted>", True),
        ("a long one cut after its start", "x" * 300 + "end", "x" * 300, True),
        ("short words in another prompt", "yes", "yes, and more", False),
        ("another prompt", "do this thing", "do that thing", False),
        ("ours is longer", "do this thing and that", "do this thing", False),
        ("both empty", "", "", True),
        ("nothing came", "do this thing", "", False),
        ("composed", "Cafe\u0301", "Caf\u00e9", True),
        ("without what hides", "a\u200bb", "ab", True),
        ("without its last backslash", "a\\", "a", True),
        ("no letters but others", "\u202e...", "...", True),
    ],
)
def test_same_prompt_knows_ours_though_changed_on_its_way(sent, got, same):
    assert cao.same_prompt(sent, got) is same


# ---- durations, tables, names ----


@table(
    "text, seconds",
    [
        ("bare", "90", 90.0),
        ("s", "90s", 90.0),
        ("m", "10m", 600.0),
        ("h", "2h", 7200.0),
        ("d", "14d", 1209600.0),
        ("fraction", "1.5h", 5400.0),
        ("zero", "0", 0.0),
        ("blanks", "  10 m ", 600.0),
    ],
)
def test_parse_seconds_reads_a_duration(text, seconds):
    assert cao.parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-5", "1e3", "10 minutes", "1h30m", "nan", "inf", ".5"])
def test_parse_seconds_refuses_what_is_none_and_says_how(text):
    with pytest.raises(cao.UsageError) as caught:
        cao.parse_seconds(text)
    assert caught.value.what == f"{text!r} is not a duration"
    assert "10m" in caught.value.fix
    assert caught.value.exit_code == 2


@table(
    "seconds, text",
    [
        ("zero", 0, "0.0 s"),
        ("short", 3.21, "3.2 s"),
        ("ten", 10, "10 s"),
        ("some", 42.4, "42 s"),
        ("two minutes", 120, "2 min"),
        ("minutes", 300, "5 min"),
        ("an hour", 3600, "60 min"),
        ("hours", 7800, "2 h 10 min"),
        ("a day", 86_400, "24 h 0 min"),
    ],
)
def test_render_seconds_is_what_a_person_likes_to_read(seconds, text):
    assert cao.render_seconds(seconds) == text


@table(
    "rows, text",
    [
        ("none", [], ""),
        ("one", [["a", "b"]], "a  b"),
        ("columns line up", [["a", "bb", "c"], ["ddd", "e", "f"]], "a    bb  c\nddd  e   f"),
        ("no trailing blanks", [["a", ""], ["bbb", "c"]], "a\nbbb  c"),
    ],
)
def test_render_table_lines_up_its_columns(rows, text):
    assert cao.render_table(rows) == text


@table(
    "text, slug",
    [
        ("plain", "developer", "developer"),
        ("case and underscores", "Code_Supervisor", "code-supervisor"),
        ("blanks and signs", "  My  agent!! ", "my-agent"),
        ("cut without a hyphen at the end", "a" * 29 + "-b", "a" * 29),
        ("nothing left", "!!!", ""),
        ("not ascii", "Ünïcode", "n-code"),
        ("a path", "../../etc/passwd", "etc-passwd"),
    ],
)
def test_render_slug_makes_a_name(text, slug):
    assert cao.render_slug(text) == slug


def test_render_slug_is_a_name_or_nothing():
    dice = random.Random(7)
    for _ in range(500):
        text = "".join(
            chr(dice.choice((dice.randrange(128), dice.randrange(0x3000)))) for _ in range(40)
        )
        slug = cao.render_slug(text)
        assert slug == "" or cao.NAME.match(slug), repr(text)
        assert len(slug) <= 30


@pytest.mark.parametrize(
    ("text", "most", "tail"),
    [
        pytest.param("a\nb\nc", 2, "b\nc", id="last two"),
        pytest.param("a\nb\n\n  \n", 2, "a\nb", id="blank end"),
        pytest.param("a\n\nb", 2, "\nb", id="blank inside counts"),
        pytest.param("a", 5, "a", id="fewer"),
        pytest.param("", 5, "", id="empty"),
        pytest.param("a\nb", 0, "", id="none asked"),
    ],
)
def test_tail_lines_gives_the_end(text, most, tail):
    assert cao.tail_lines(text, most) == tail


@table(
    "text, most, line",
    [
        ("short", "a b", 10, "a b"),
        ("one line", "a\n  b\tc", 10, "a b c"),
        ("exactly", "abcde", 5, "abcde"),
        ("cut", "abcdef", 5, "abcd…"),
        ("empty", "", 5, ""),
    ],
)
def test_shorten_gives_one_line_of_at_most_so_much(text, most, line):
    assert cao.shorten(text, most) == line
    assert len(cao.shorten(text, most)) <= most


# ---- drafts: hand-made; the recorded screens are in test_providers.py ----

COMPOSER = r"^❯\xa0(.*)"


@pytest.mark.parametrize(
    ("line", "draft"),
    [
        pytest.param("❯\xa0", "", id="empty"),
        pytest.param("❯\xa0fix the bug", "fix the bug", id="plain"),
        pytest.param("\x1b[39m❯\xa0fix\x1b[7m \x1b[0m", "fix", id="cursor at the end"),
        pytest.param("❯\xa0\x1b[2mTry something\x1b[0m", "", id="a dim placeholder"),
        pytest.param("❯\xa0\x1b[0;2mTry something", "", id="dim with a reset before"),
        pytest.param("❯\xa0fix\x1b[2m the bug\x1b[22m", "fix", id="a dim completion"),
        pytest.param("❯\xa0\x1b[2mhint\x1b[0m typed", "typed", id="bright after dim"),
        pytest.param("❯\xa0\x1b[38;5;6m[Pasted]\x1b[39m", "[Pasted]", id="coloured"),
        pytest.param("$ ls", None, id="no input line"),
        pytest.param("", None, id="nothing"),
        pytest.param("❯\xa0\x1b[7mT\x1b[0;2mry something\x1b[0m", "", id="cursor on a placeholder"),
        pytest.param(
            "❯\xa0\x1b[7m\x1b[39mP\x1b[0;2m\x1b[39mress up\x1b[0m", "", id="cursor, then a colour"
        ),
        pytest.param("❯\xa0\x1b[38;5;2mfix\x1b[39m", "fix", id="green"),
        pytest.param("❯\xa0\x1b[2;3mhint\x1b[0m", "", id="dim italic"),
        pytest.param("❯\xa0\x1b[2mh\x1b[0;1mfix\x1b[0m", "fix", id="dim, then bold"),
    ],
)
def test_parse_draft_tells_what_a_person_typed_from_a_hint(line, draft):
    assert cao.parse_draft(f"● an answer\n{line}\n  ? for shortcuts", COMPOSER) == draft


def test_parse_draft_reads_the_last_input_line():
    assert cao.parse_draft("❯\xa0old prompt\n● done\n❯\xa0new", COMPOSER) == "new"


@pytest.mark.parametrize("before", ["", "half a "])
def test_parse_draft_reads_a_cursor_that_is_dim_itself(before):
    assert cao.parse_draft(f"{before}\x1b[2;7mT\x1b[27mype here\x1b[0m", "(.*)") == before.strip()


# ---- YAML ----


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param("", {}, id="empty"),
        pytest.param("# only a comment\n\n", {}, id="a comment"),
        pytest.param("a: b", {"a": "b"}, id="one"),
        pytest.param("a: b c  d ", {"a": "b c  d"}, id="words"),
        pytest.param("a:\nb: x", {"a": None, "b": "x"}, id="no value"),
        pytest.param("a: b # c", {"a": "b"}, id="a comment behind"),
        pytest.param("a: b#c", {"a": "b#c"}, id="a hash inside"),
        pytest.param("a: # c\n  b: d", {"a": {"b": "d"}}, id="a comment, then a mapping"),
        pytest.param("a: http://x:80/#y", {"a": "http://x:80/#y"}, id="a url"),
        pytest.param("a: b: c", {"a": "b: c"}, id="a colon in the value"),
        pytest.param("a: '#x'\nb: \"y # z\" # c", {"a": "#x", "b": "y # z"}, id="hashes in quotes"),
        pytest.param("a: 'it''s'", {"a": "it's"}, id="single quotes"),
        pytest.param(r'a: "q\"\n\té\\"', {"a": 'q"\n\té\\'}, id="double quotes"),
        pytest.param('a: "it\'s"', {"a": "it's"}, id="an apostrophe in double quotes"),
        pytest.param("a: ''\nb: \"\"", {"a": "", "b": ""}, id="empty strings"),
        pytest.param("\"a b\": 1\n'c': 2", {"a b": 1, "c": 2}, id="quoted keys"),
        pytest.param(
            "a: yes\nb: True\nc: on\nd: no\ne: FALSE\nf: off",
            {"a": True, "b": True, "c": True, "d": False, "e": False, "f": False},
            id="booleans",
        ),
        pytest.param(
            "a: 'yes'\nb: \"false\"", {"a": "yes", "b": "false"}, id="quoted booleans are text"
        ),
        pytest.param("a: ~\nb: null\nc: Null", {"a": None, "b": None, "c": None}, id="nothing"),
        pytest.param(
            "a: 1\nb: -2\nc: +3\nd: 1.5\ne: .5\nf: 1.5e+3",
            {"a": 1, "b": -2, "c": 3, "d": 1.5, "e": 0.5, "f": 1500.0},
            id="numbers",
        ),
        pytest.param(
            "a: 1.0.0\nb: 2026-11-22\nc: 12:30\nd: 5m",
            {"a": "1.0.0", "b": "2026-11-22", "c": "12:30", "d": "5m"},
            id="no numbers",
        ),
        pytest.param(
            "a:\n  b:\n    c: 1\n  d: 2\ne: 3", {"a": {"b": {"c": 1}, "d": 2}, "e": 3}, id="nested"
        ),
        pytest.param(
            "a:\n\n  # c\n  b: 1\n\n# d\n  e: 2",
            {"a": {"b": 1, "e": 2}},
            id="blank lines and comments",
        ),
        pytest.param(
            "a:\n  - x\n  - 2\n  - y z\nb: 1", {"a": ["x", 2, "y z"], "b": 1}, id="a list"
        ),
        pytest.param("a:\n- x\n- y\nb: 1", {"a": ["x", "y"], "b": 1}, id="a list not indented"),
        pytest.param(
            "a:\n  b:\n  - x\n  c: 1", {"a": {"b": ["x"], "c": 1}}, id="such a list below"
        ),
        pytest.param("a:\n  - 'k: v'\n  - \"- x\"", {"a": ["k: v", "- x"]}, id="quoted items"),
        pytest.param("a:\n  - --from\n  - -x", {"a": ["--from", "-x"]}, id="flags in a list"),
        pytest.param(
            "a:\n  - b: 1\n    c: 2\n  - b: 3",
            {"a": [{"b": 1, "c": 2}, {"b": 3}]},
            id="mappings in a list",
        ),
        pytest.param("a:\n  -\n    b: 1", {"a": [{"b": 1}]}, id="a mapping below its dash"),
        pytest.param(
            "a:\n  - b:\n      c: [1]\n    d: 2",
            {"a": [{"b": {"c": [1]}, "d": 2}]},
            id="deeper in a list",
        ),
        pytest.param("a: []\nb: {}", {"a": [], "b": {}}, id="empty flow"),
        pytest.param(
            "a: [x, 'y, z', \"w]\", 1, yes, ~]",
            {"a": ["x", "y, z", "w]", 1, True, None]},
            id="a flow list",
        ),
        pytest.param(
            "a: {b: 1, 'c d': [x, y], \"e\": {f: g}}",
            {"a": {"b": 1, "c d": ["x", "y"], "e": {"f": "g"}}},
            id="a flow mapping",
        ),
        pytest.param('a: {"b":"c","d":[1,2]}', {"a": {"b": "c", "d": [1, 2]}}, id="json"),
        pytest.param("a: [\n  x,\n  y,\n]\nb: 1", {"a": ["x", "y"], "b": 1}, id="flow over lines"),
        pytest.param("a: [x, y] # c", {"a": ["x", "y"]}, id="a comment behind flow"),
        pytest.param(
            "a:\n  - [1, 2]\n  - {b: c}", {"a": [[1, 2], {"b": "c"}]}, id="flow in a list"
        ),
        pytest.param("a: [http://x/y, b]", {"a": ["http://x/y", "b"]}, id="a url in flow"),
        pytest.param(
            "a: |\n  one\n    two\n\n  # three\nb: 1",
            {"a": "one\n  two\n\n# three\n", "b": 1},
            id="literal",
        ),
        pytest.param(
            "a: |-\n  one\n  two\n\nb: 1", {"a": "one\ntwo", "b": 1}, id="literal, stripped"
        ),
        pytest.param("a: >\n  one\n  two\nb: 1", {"a": "one two\n", "b": 1}, id="folded"),
        pytest.param("a: >- # c\n  one\n  two", {"a": "one two"}, id="folded, stripped"),
        pytest.param(
            "a:\n  - |\n    one\n    two\n  - b", {"a": ["one\ntwo\n", "b"]}, id="literal in a list"
        ),
        pytest.param("a: |\n  b: c\n  - d\n  [e", {"a": "b: c\n- d\n[e\n"}, id="yaml in a literal"),
        pytest.param("a: '>x'\nb: '|'", {"a": ">x", "b": "|"}, id="signs that are no block"),
        pytest.param("a: 1\r\nb:\r\n  - x\r\n", {"a": 1, "b": ["x"]}, id="crlf"),
        pytest.param("a: ^>>> $\nb: '^\\d+$'", {"a": "^>>> $", "b": "^\\d+$"}, id="regexes"),
        pytest.param(
            "a: >\n  one\n  two\n\n  three", {"a": "one two\nthree\n"}, id="folded paragraphs"
        ),
        pytest.param('a: "x\ty"', {"a": "x\ty"}, id="a tab in quotes"),
        pytest.param(r'a: "x\u2028b: y"', {"a": "x\u2028b: y"}, id="a line separator in a value"),
        pytest.param("a: [\n  x, # one\n  y\n]", {"a": ["x", "y"]}, id="a comment in flow"),
        pytest.param(
            'a: ["\\"["]\nb: 1', {"a": ['"['], "b": 1}, id="a bracket behind an escaped quote"
        ),
        pytest.param("a:\n  [x, y]", {"a": ["x", "y"]}, id="flow on the next line"),
    ],
)
def test_parse_yaml_reads_what_profiles_are_written_in(text, value):
    assert cao.parse_yaml(text, "p.md") == value


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        pytest.param("just words", 2, "'just words' is not 'key: value'", id="no key"),
        pytest.param("a: 1\nb", 3, "'b' is not 'key: value'", id="no key below"),
        pytest.param("a:b", 2, "'a:b' is not 'key: value'", id="no blank behind the colon"),
        pytest.param("a: 1\n   b: 2", 3, "is indented by 3", id="indented for no reason"),
        pytest.param("a:\n  b: 1\n c: 2", 4, "is indented by 1", id="indented in between"),
        pytest.param("a:\n  - x\n - y", 4, "is indented by 1", id="a dash in between"),
        pytest.param("a: [x, y", None, "never closed", id="an open list"),
        pytest.param("a: {b: 1", None, "never closed", id="an open mapping"),
        pytest.param("a: {b}", None, "is not 'key: value'", id="a flow mapping without value"),
        pytest.param("a: [x]]", None, "after the closing bracket", id="too many brackets"),
        pytest.param('a: "x', None, "has no closing quote", id="an open double quote"),
        pytest.param("a: 'x", None, "has no closing quote", id="an open single quote"),
        pytest.param("b: 1\na: 'x", 3, "has no closing quote", id="the line of an open quote"),
        pytest.param(
            "b: 1\na: [x] y\nc: 2", 3, "after the closing bracket", id="the line of an open list"
        ),
        pytest.param(r'a: "\q"', None, "q", id="an unknown escape"),
        pytest.param(r'a: "\x4"', None, "x4", id="an escape json has not"),
        pytest.param('a: "x" y', None, "y", id="text behind quotes"),
        pytest.param("a: 1\n- b\npermissions: ask", 3, "- b", id="a stray dash"),
        pytest.param("a: [x}", None, "}", id="the wrong bracket"),
        pytest.param("a: >x", 2, "x", id="a sign that is no block"),
        pytest.param("a: 'x\u2028b: y'", 2, "u2028b", id="a bare line separator in a value"),
    ],
)
def test_parse_yaml_says_where_it_is_wrong(text, line, words):
    with pytest.raises(cao.CaoError) as caught:
        cao.parse_yaml(text, "p.md")
    assert words in caught.value.what
    assert caught.value.what.startswith("p.md:")
    if line:
        assert caught.value.what.startswith(f"p.md:{line}: ")
    assert caught.value.fix


@pytest.mark.parametrize("text", ["- a\n- b", "- a: 1"])
def test_parse_yaml_refuses_a_frontmatter_that_is_a_list(text):
    with pytest.raises(cao.CaoError, match=r"p\.md:2: '- a.*' is not 'key: value'"):
        cao.parse_yaml(text, "p.md")


def test_parse_yaml_fails_only_with_a_word_for_the_user():
    dice = random.Random(3)
    parts = [
        "a",
        "b",
        ": ",
        ":",
        "- ",
        "\n",
        "\n  ",
        "\n    ",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "'",
        '"',
        "|",
        ">-",
        "#",
        " # c",
        "1",
        "yes",
        "~",
        "x y",
    ]
    for _ in range(3000):
        text = "a: " + "".join(dice.choices(parts, k=dice.randrange(14)))
        try:
            assert isinstance(cao.parse_yaml(text, "p.md"), dict)
        except cao.CaoError:
            continue


def test_parse_yaml_reads_back_what_json_writes():
    dice = random.Random(5)

    def made(depth):
        kind = dice.randrange(6 if depth else 4)
        if kind == 4:
            return [made(depth - 1) for _ in range(dice.randrange(4))]
        if kind == 5:
            return {f"k{n}": made(depth - 1) for n in range(dice.randrange(4))}
        return [dice.randrange(100), True, None, "".join(dice.choices("ab ,:#'[]{}é", k=6))][kind]

    for _ in range(300):
        value = [made(2) for _ in range(2)]
        text = json.dumps(value, ensure_ascii=False)
        assert cao.parse_yaml(f"a: {text}\nb: 1", "p.md") == {"a": value, "b": 1}, text


@pytest.mark.parametrize(
    ("text", "settings", "body"),
    [
        pytest.param("---\na: 1\n---\nbody\n", {"a": 1}, "body", id="plain"),
        pytest.param("---\r\na: 1\r\n---\r\nbody", {"a": 1}, "body", id="crlf"),
        pytest.param("\ufeff---\na: 1\n---\nbody", {"a": 1}, "body", id="a byte order mark"),
        pytest.param("--- \na: 1\n---\t\nbody", {"a": 1}, "body", id="blanks behind the dashes"),
        pytest.param("---\na: 1\n---", {"a": 1}, "", id="no body"),
        pytest.param(
            "---\na: 1\n---\none\n---\ntwo", {"a": 1}, "one\n---\ntwo", id="a rule in the body"
        ),
        pytest.param(
            "---\na: |\n  x\n  ---\n  y\n---\nb",
            {"a": "x\n---\ny\n"},
            "b",
            id="dashes in a literal",
        ),
        pytest.param("---\n# c\n---\nbody", {}, "body", id="only a comment"),
        pytest.param("---\n---\nbody", {}, "body", id="nothing between the dashes"),
        pytest.param("\n---\na: 1\n---\nbody", {"a": 1}, "body", id="a blank line above"),
    ],
)
def test_parse_frontmatter_parts_settings_and_body(text, settings, body):
    assert cao.parse_frontmatter(text, "p.md") == (settings, body)


def test_a_frontmatter_that_is_never_closed_is_refused():
    with pytest.raises(cao.CaoError):
        cao.parse_frontmatter("---\nrole: reviewer\npermissions: ask\n\nYou review.\n", "p.md")


# In the shape of the profiles that ship with AWS Labs' CLI Agent Orchestrator.

LABS_SUPERVISOR = """\
---
name: code_supervisor
description: Coding Supervisor Agent in a multi-agent system
role: supervisor  # @cao-mcp-server, fs_read, fs_list
model: sonnet
mcpServers:
  cao-mcp-server:
    type: stdio
    command: uvx
    args:
      - "--from"
      - "git+https://github.com/awslabs/cli-agent-orchestrator.git@main"
      - "cao-mcp-server"
---

# A supervisor

You hand work to others.

---
The end.
"""

LABS_TRANSPORT = """\
---
name: zone_supervisor
description: "Simulation only: plans the legs and delegates each"
provider: kiro_cli
skills: []  # Show no skill catalog to this agent.
allowedTools:
  - "@transport-sim"   # Simulator tools.
  - "@cao-mcp-server"  # Only the supervisor can delegate.
  - fs_*
mcpServers:
  # The entry below is replaced in the run copy of this profile. The
  # last argument becomes a file of its own.
  transport-sim:
    type: stdio
    command: python
    args: ["demo.py", "connect", "<run-dir>/credentials/supervisor.json"]
    env:
      SIM_HOST: 127.0.0.1:9000
      SIM_LEVEL: "3"
      EMPTY: ""
  cao-mcp-server:
    type: stdio
    command: cao-mcp-server
    args: []
toolsSettings:
  execute_bash:
    allowedCommands: ["git status", "git diff *"]
    autoAllowReadonly: true
toolAliases: {"@git/git_status": status}
---
You plan.
"""

LABS_RESEARCHER = """\
---
name: researcher
description: Web research \N{EM DASH} current search with snippets, and cited answers
provider: claude_code  # remote `type: http` servers pass through; see docs/agent-profile.md
role: reviewer  # @builtin, fs_read. NOTE: no web fetch - see "Security"
permissionMode: acceptEdits
tags:
- research
- web-search
capabilities:
  - "search the current web: cite sources"
  - answer questions that depend on new facts
mcpServers:
  you:
    type: http
    url: https://api.example.com/mcp?profile=free
    headers:
      Authorization: Bearer ${TOKEN}
container:
  path_maps:
    - host: /home/user/.aws/tmp
      guest: /workspace/tmp
    - host: /srv
      guest: /workspace/srv
provider_init_timeout: 180
codexConfig:
  model_reasoning_effort: high
  sandbox_workspace_write: {network_access: true}
---
You research.
"""


@table(
    "text, settings",
    [
        (
            "supervisor",
            LABS_SUPERVISOR,
            {
                "name": "code_supervisor",
                "description": "Coding Supervisor Agent in a multi-agent system",
                "role": "supervisor",
                "model": "sonnet",
                "mcpServers": {
                    "cao-mcp-server": {
                        "type": "stdio",
                        "command": "uvx",
                        "args": [
                            "--from",
                            "git+https://github.com/awslabs/cli-agent-orchestrator.git@main",
                            "cao-mcp-server",
                        ],
                    }
                },
            },
        ),
        (
            "transport",
            LABS_TRANSPORT,
            {
                "name": "zone_supervisor",
                "description": "Simulation only: plans the legs and delegates each",
                "provider": "kiro_cli",
                "skills": [],
                "allowedTools": ["@transport-sim", "@cao-mcp-server", "fs_*"],
                "mcpServers": {
                    "transport-sim": {
                        "type": "stdio",
                        "command": "python",
                        "args": ["demo.py", "connect", "<run-dir>/credentials/supervisor.json"],
                        "env": {"SIM_HOST": "127.0.0.1:9000", "SIM_LEVEL": "3", "EMPTY": ""},
                    },
                    "cao-mcp-server": {"type": "stdio", "command": "cao-mcp-server", "args": []},
                },
                "toolsSettings": {
                    "execute_bash": {
                        "allowedCommands": ["git status", "git diff *"],
                        "autoAllowReadonly": True,
                    }
                },
                "toolAliases": {"@git/git_status": "status"},
            },
        ),
        (
            "researcher",
            LABS_RESEARCHER,
            {
                "name": "researcher",
                "description": "Web research — current search with snippets, and cited answers",
                "provider": "claude_code",
                "role": "reviewer",
                "permissionMode": "acceptEdits",
                "tags": ["research", "web-search"],
                "capabilities": [
                    "search the current web: cite sources",
                    "answer questions that depend on new facts",
                ],
                "mcpServers": {
                    "you": {
                        "type": "http",
                        "url": "https://api.example.com/mcp?profile=free",
                        "headers": {"Authorization": "Bearer ${TOKEN}"},
                    }
                },
                "container": {
                    "path_maps": [
                        {"host": "/home/user/.aws/tmp", "guest": "/workspace/tmp"},
                        {"host": "/srv", "guest": "/workspace/srv"},
                    ]
                },
                "provider_init_timeout": 180,
                "codexConfig": {
                    "model_reasoning_effort": "high",
                    "sandbox_workspace_write": {"network_access": True},
                },
            },
        ),
    ],
)
def test_whole_frontmatters_of_the_reference_program_are_read(text, settings):
    found, body = cao.parse_frontmatter(text, "p.md")
    assert found == settings
    assert body == text.split("\n---\n", 1)[1].strip()
