"""Heads of profiles and flows: read as PyYAML reads them, or refused with the line."""

import json
import random
import re

import pytest

import cao


def table(names, rows):
    """parametrize, with each row's first item as its id."""
    return pytest.mark.parametrize(names, [pytest.param(*row[1:], id=row[0]) for row in rows])


def refused(text):
    """Return the words of the error by which a text is refused; it names a line."""
    with pytest.raises(cao.CaoError) as caught:
        cao.parse_yaml(text, "p.md")
    assert re.match(r"p\.md:\d+: ", caught.value.what)
    assert caught.value.fix
    return caught.value.what


# ---- the file begins with its head ----

HEAD = "---\nrole: reviewer\n---\nYou review.\n"


@table(
    "text, line, first",
    [
        ("nothing at all", "", 1, "''"),
        ("no head", "You review.\n", 1, "'You review.'"),
        ("a title", f"# Reviewer\n{HEAD}", 1, "'# Reviewer'"),
        ("blank lines and a title", f"\n \n# Reviewer\n\n{HEAD}", 3, "'# Reviewer'"),
        ("a licence", f"<!-- Licence: MIT -->\n{HEAD}", 1, "'<!-- Licence: MIT -->'"),
        ("a comment", f"# Licence: MIT\n{HEAD}", 1, "'# Licence: MIT'"),
        ("a fence of code", f"```yaml\n{HEAD}```\n", 1, "'```yaml'"),
        ("four dashes", "----\nrole: reviewer\n----\n", 1, "'----'"),
        ("two dashes", "--\nrole: reviewer\n--\n", 1, "'--'"),
        ("stars", "***\nrole: reviewer\n***\n", 1, "'***'"),
        ("a word behind the dashes", "---yaml\nrole: reviewer\n---\n", 1, "'---yaml'"),
        ("a comment behind the dashes", "--- # x\nrole: reviewer\n---\n", 1, "'--- # x'"),
        ("indented dashes", f" {HEAD}", 1, "'---'"),
        ("toml", "+++\nrole = 'reviewer'\n+++\n", 1, "'+++'"),
        ("json", "{role: reviewer}\n", 1, "'{role: reviewer}'"),
        ("settings alone", "role: reviewer\n", 1, "'role: reviewer'"),
    ],
)
def test_a_file_without_a_head_at_its_top_is_refused(text, line, first):
    for parse in (
        lambda: cao.parse_frontmatter(text, "p.md"),
        lambda: cao.parse_profile(text, "p", "p.md"),
        lambda: cao.parse_flow(text, "p.md"),
    ):
        with pytest.raises(cao.CaoError) as caught:
            parse()
        assert caught.value.what.startswith(f"p.md:{line}: a file begins with its head")
        assert caught.value.what.endswith(f"not with {first}")
        assert "key: value" in caught.value.fix


@table(
    "text, line",
    [
        ("never closed", "\n\n---\nrole: reviewer\n\nYou review.\n", 3),
        ("closed with four dashes", "---\nrole: reviewer\n----\n", 1),
        ("dashes alone", "---", 1),
        ("blanks behind the dashes", "--- \t\nrole: reviewer\n", 1),
    ],
)
def test_a_head_that_is_never_closed_is_refused_with_its_line(text, line):
    with pytest.raises(cao.CaoError, match=rf"p\.md:{line}: the head .* is never closed"):
        cao.parse_frontmatter(text, "p.md")


@pytest.mark.parametrize("above", ["", "\ufeff", "\n\n", "\ufeff \n\t\n", "\r\n", "\n\ufeff"])
def test_a_byte_order_mark_and_blank_lines_may_stand_above_the_head(above):
    assert cao.parse_frontmatter(above + HEAD, "p.md") == ({"role": "reviewer"}, "You review.")


def test_an_error_counts_the_blank_lines_above_the_head():
    with pytest.raises(cao.CaoError, match=r"p\.md:5: 'x'"):
        cao.parse_frontmatter("\n\n---\na: 1\nx\n---\n", "p.md")


# ---- read as PyYAML does ----

WRAPPED = [
    ("a plain value", "a: one\n  two\n  three\nb: 1", {"a": "one two three", "b": 1}),
    ("with blank lines", "a: one\n\n  two\n\n\n  three", {"a": "one\ntwo\n\nthree"}),
    ("below its key", "a:\n  one\n  two\nb: 1", {"a": "one two", "b": 1}),
    ("indented more and less", "a: one\n      two\n  three", {"a": "one two three"}),
    ("in single quotes", "a: 'one\n\n  it''s\n  two'", {"a": "one\nit's two"}),
    ("in quotes with a colon", 'a: "one: x\n  b: y"', {"a": "one: x b: y"}),
    ("in quotes, at the left", "a: 'one\ntwo'\nb: 1", {"a": "one two", "b": 1}),
    ("as yaml.dump", 'a: "one \\\n  \\ two\\n\\\n  \\n"', {"a": "one  two\n\n"}),
    ("a backslash in single quotes", "a: 'one\\\n  two'", {"a": "one\\ two"}),
    ("blanks around the end", 'a: "one  \n \t two"', {"a": "one two"}),
    ("in a list", "a:\n  - one\n    two\n  - three", {"a": ["one two", "three"]}),
    ("in a list not indented", "a:\n- one\n  two\n- three", {"a": ["one two", "three"]}),
    ("in a mapping in a list", "a:\n- b: one\n    two\n  c: 1", {"a": [{"b": "one two", "c": 1}]}),
    ("in brackets", "a: [one\n  two, 'three\n  four']", {"a": ["one two", "three four"]}),
    ("in brackets, at the left", "a: {b: one\ntwo}", {"a": {"b": "one two"}}),
    ("a dash goes on", "a: one\n  - two", {"a": "one - two"}),
    ("signs go on", "a: one\n  [two\n  *x\n  &y", {"a": "one [two *x &y"}),
    ("numbers in words", "a: 1\n  2", {"a": "1 2"}),
]
BLOCKS = [
    ("tabs", "a: |\n  x\ty\n  \tz", {"a": "x\ty\n\tz\n"}),
    ("blanks behind", "a: |\n  x  \n   \n  y", {"a": "x  \n \ny\n"}),
    ("kept", "a: |+\n  x\n\n\nb: 1", {"a": "x\n\n\n", "b": 1}),
    ("stripped", "a: |-\n  x\n\n\nb: 1", {"a": "x", "b": 1}),
    ("clipped", "a: |\n  x\n\n\nb: 1", {"a": "x\n", "b": 1}),
    ("kept at the end", "a: |+\n  x\n\n", {"a": "x\n\n"}),
    ("kept, ended as yaml.dump does", "a: |+\n  x\n\n...\n", {"a": "x\n\n"}),
    ("indentation", "a: |2\n    x\n  y", {"a": "  x\ny\n"}),
    ("indentation, stripped", "a: |1-\n   x\n y\nb: 1", {"a": "  x\ny", "b": 1}),
    ("stripped, indentation", "a: |-1\n   x\n y\nb: 1", {"a": "  x\ny", "b": 1}),
    ("nothing in it", "a: |\nb: >\nc: |+\n\nd: 1", {"a": "", "b": "", "c": "\n", "d": 1}),
    ("blank lines first", "a: |\n\n\n  x", {"a": "\n\nx\n"}),
    ("folded", "a: >\n  x\n  y\n\n  z\n\n\n  w", {"a": "x y\nz\n\nw\n"}),
    ("a list in folded", "a: >\n  x\n    - y\n    - z\n  w", {"a": "x\n  - y\n  - z\nw\n"}),
    ("a list between blank lines", "a: >\n  x\n\n    - y\n\n  w", {"a": "x\n\n  - y\n\nw\n"}),
    ("a tab in folded", "a: >\n  x\n  \ty\n  z", {"a": "x\n\ty\nz\n"}),
    ("folded, kept", "a: >+\n  x\n  y\n\n", {"a": "x y\n\n"}),
    ("folded, blanks behind", "a: >\n  x \n  y", {"a": "x  y\n"}),
    ("folded, blank lines first", "a: >\n\n  x\n  y", {"a": "\nx y\n"}),
    ("comments are text", "a: |\n  # x\n  y # z", {"a": "# x\ny # z\n"}),
    ("in a list", "a:\n- |\n  x\n   y\n- >-\n  z\n  w", {"a": ["x\n y\n", "z w"]}),
    ("below its key", "a:\n  |\n  x", {"a": "x\n"}),
]
OTHERS = [
    ("lists in lists", "a:\n- - 1\n  - - 2\n- 3", {"a": [[1, [2]], 3]}),
    ("a mapping in lists", "a:\n- - b: 1\n    c: 2", {"a": [[{"b": 1, "c": 2}]]}),
    ("nothing in a list", "a:\n-\n- 1\n-", {"a": [None, 1, None]}),
    ("nothing in brackets", "a: {b: , c:, d: }", {"a": {"b": None, "c": None, "d": None}}),
    ("the whole in brackets", "{a: 1,\nb: [2]}", {"a": 1, "b": [2]}),
    ("a blank before the colon", "a : 1\n'b' : 2", {"a": 1, "b": 2}),
    ("a comment at brackets", "a: [1, # x\n 2]# y\nb: 'x'# z", {"a": [1, 2], "b": "x"}),
    ("escapes", r'a: "\0\a\b\t\v\f\e\/\N\_\L\x41\u00e9\U0001F600"',
     {"a": "\0\a\b\t\v\f\x1b/\x85\xa0\u2028A\xe9\U0001f600"}),
    ("words", "a: [y, n, TRUE, oN, None, nULL]", {"a": ["y", "n", True, "oN", "None", "nULL"]}),
    ("numbers", "a: [0, -0, 01.5, 1., .5, 1.5e+3]", {"a": [0, 0, 1.5, 1.0, 0.5, 1500.0]}),
    ("no numbers", "a: [1-2, 1.2.3, 12px, +, ., 1__a]",
     {"a": ["1-2", "1.2.3", "12px", "+", ".", "1__a"]}),
    ("no merges", "a: <<x\n<<b: << c\nd: <<\n  e", {"a": "<<x", "<<b": "<< c", "d": "<< e"}),
    ("other blanks than ours", "a: \u3000x\xa0\nb: 1", {"a": "\u3000x\xa0", "b": 1}),
]  # fmt: skip


@table("text, value", WRAPPED + BLOCKS + OTHERS)
def test_yaml_is_read_as_pyyaml_reads_it(text, value):
    assert repr(cao.parse_yaml(text, "p.md")) == repr(value)


@table(
    "text, value",
    [
        ("a date", "a: 2026-11-22\nb: 2026-11-22 10:00:00", "2026-11-22 2026-11-22 10:00:00"),
        ("a time of day", "a: 12:30\nb: 1:02:03.5", "12:30 1:02:03.5"),
        ("a colon", "a: Use when: always\nb: x:", "Use when: always x:"),
        ("a colon, wrapped", "a: 'x'\nb: Use when: it\n  rains", "x Use when: it rains"),
    ],
)
def test_what_pyyaml_reads_otherwise_stays_text_on_purpose(text, value):
    assert " ".join(cao.parse_yaml(text, "p.md").values()) == value


def test_keys_are_always_text():
    found = cao.parse_yaml("on: 1\n2: 2\nnull: 3\n2026-11-22: {yes: 4}", "p.md")
    assert found == {"on": 1, "2": 2, "null": 3, "2026-11-22": {"yes": 4}}


# ---- refused ----


@table(
    "text, line, words",
    [
        ("an anchor", "a: 1\nb: &x y", 3, "begins with an anchor"),
        ("an anchor at a key", "a: 1\n&x b: y", 3, "begins with an anchor"),
        ("an alias", "a:\n  - *x", 3, "begins with an alias"),
        ("an alias as key", "*x : 1", 2, "begins with an alias"),
        ("a star", "tools: *", 2, "begins with an alias"),
        ("an alias in brackets", "a: [b,\n *x]", 3, "begins with an alias"),
        ("a merge", "a:\n  <<: {b: 1}", 3, "begins with a merge"),
        ("a merge in brackets", "a: {<<: b}", 2, "begins with a merge"),
        ("a merge in brackets, of nothing", "a: {<<:}", 2, "begins with a merge"),
        ("a merge as value", "a: << # x", 2, "begins with a merge"),
        ("a merge in a list", "a: [<<]", 2, "begins with a merge"),
        ("a tag", "a: !!str 1", 2, "begins with a tag"),
        ("a tag at a mapping", "a: !x\n  b: 1", 2, "begins with a tag"),
        ("a complex key", "a: 1\n? b\n: c", 3, "begins with a complex key"),
        ("a complex key in brackets", "a: {? b : c}", 2, "begins with a complex key"),
        ("a second document", "a: 1\n--- x\nb: 2", 3, "begins with a second document"),
        ("the end of a document", "a: 1\n...\nb: 2", 3, "the end of a document"),
        ("a directive", "%YAML 1.2\na: 1", 2, "begins with a directive"),
        ("a tab that indents", "a:\n\tb: 1", 3, "begins with a tab"),
        ("a tab behind a value", "a: 1\t\nb: 2", 2, "begins with a tab"),
        ("a tab behind a colon", "a:\tb", 2, "begins with a tab"),
        ("a sign kept for later", "a: @x", 2, "'@x' is no value"),
        ("a backquote", "a: `x`", 2, "is no value"),
        ("a key twice", "a: 1\nb: 2\na: 3", 4, "'3' would be the second value of 'a'"),
        ("a key twice, quoted", "role: x\n'role': y", 3, "'y' would be the second value of 'role'"),
        ("a key twice in brackets", "a: {b: 1, b: 2}", 2, "the second value of 'b'"),
        ("a pair in a list", "a: [b: c]", 2, "': c]' stands where , or ] is expected"),
        ("an octal number", "a: 1\nb: 010", 3, "'010' does not mean the same"),
        ("zeros before", "a: 08", 2, "'08' does not mean the same"),
        ("an octal number of 1.2", "a: 0o10", 2, "does not mean the same"),
        ("a hexadecimal number", "a: 0x1F", 2, "does not mean the same"),
        ("a binary number", "a: 0b101", 2, "does not mean the same"),
        ("digits in groups", "a: 1_000", 2, "does not mean the same"),
        ("a bare exponent", "a: 1e3", 2, "does not mean the same"),
        ("an exponent without a sign", "a: 1.5e3", 2, "does not mean the same"),
        ("a sign before a point", "a: -.5", 2, "does not mean the same"),
        ("infinity", "a: -.inf", 2, "does not mean the same"),
        ("no number", "a: .NaN", 2, "does not mean the same"),
        ("a default", "a: =", 2, "does not mean the same"),
        ("a long number", f"a: {'9' * 5000}", 2, "does not mean the same"),
        ("a block's sign", "a: |x\n  y", 2, "'x' stands behind a block's sign"),
        ("a block's width of 0", "a: |0\n  y", 2, "stands behind a block's sign"),
        ("less than its block", "a: |\n    x\n  y", 4, "is indented by 2"),
        ("a key that goes on", "a: x\n  b: y", 3, "is indented by 2"),
        ("a list on its key's line", "a: - b", 2, "'- b' is no value"),
        ("a list", "- a\n- b", 2, "'- a' is not 'key: value'"),
        ("a word", "a: 1\n\nword", 4, "'word' is not 'key: value'"),
        ("half a letter", r'a: "\ud83d\ude00"', 2, "an escape that is not known"),
        ("no letter", r'a: "\UFFFFFFFF"', 2, "an escape that is not known"),
        ("a control", "a: 1\nb: 'x\x07y'", 3, "begins with what is no text"),
        ("a line separator", "a: 1\nb: x\u2028c: y", 3, "begins with what is no text"),
        ("a next line", "a: 1\nb: x\x85c: y", 3, "begins with what is no text"),
        ("a byte order mark", "a: 1\n\ufeffb: 2", 3, "begins with what is no text"),
        ("brackets without end", "a: " + "[" * 3000, 2, "is nested too deep"),
        ("dashes without end", "a:\n" + "- " * 3000, 3, "is nested too deep"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_refused_by_its_name_and_line(text, line, words):
    what = refused(text)
    assert what.startswith(f"p.md:{line}: ")
    assert words in what


# ---- PyYAML is the oracle ----


@pytest.fixture(scope="module")
def oracle():
    """Give what PyYAML reads; keys, dates and times of day stay the text that they are."""
    yaml = pytest.importorskip("yaml")

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    key.tag = "tag:yaml.org,2002:str"
            return super().construct_mapping(node, deep)

    def number(kind):
        read = getattr(yaml.SafeLoader, f"construct_yaml_{kind}")
        return lambda own, node: node.value if ":" in node.value else read(own, node)

    Loader.yaml_implicit_resolvers = {
        first: [row for row in rows if not row[0].endswith(":timestamp")]
        for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for kind in ("int", "float"):
        Loader.add_constructor(f"tag:yaml.org,2002:{kind}", number(kind))

    def read(text):
        return yaml.load(text if text.endswith("\n") else text + "\n", Loader) or {}

    read.dump = yaml.safe_dump
    return read


def has_colon(value):
    """Tell whether a text in value has what PyYAML refuses and cao reads."""
    if isinstance(value, (dict, list)):
        return any(map(has_colon, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) and bool(re.search(r":(\s|$)", value))


def compared(oracle, text):
    """Return "same" or "refused"; anything else is a difference without a word."""
    try:
        value = cao.parse_yaml(text, "p.md")
    except cao.CaoError as error:
        if not re.match(r"p\.md:\d+: ", error.what):
            raise
        return "refused"
    try:
        wanted = oracle(text)
    except Exception:  # noqa: BLE001 - not all of PyYAML's are YAMLErrors
        assert has_colon(value), f"PyYAML refuses {text!r}, and cao reads {value!r}"
        return "same"
    assert repr(value) == repr(wanted), text
    return "same"


@table("text, value", WRAPPED + BLOCKS + OTHERS)
def test_the_table_is_what_pyyaml_says(oracle, text, value):
    assert repr(oracle(text)) == repr(value)


SIGNS = "ab cd ef.,:#-?&*!|>%@`'\"[]{}<=~\\/()$+_ é漢 0123456789\u00a0"
TEXTS = [
    "lorem ipsum dolor ", "\n", " ", "\t", "\n\n", "  \n", "- x", "a: b", "yes", "x\n  y\n",
    "1_0", "\x07", "😀", "'", '"', "\\",
]  # fmt: skip
BITS = [
    *SIGNS, *"\n\t\r\\\x85\u2028\ufeff", "\n  ", "\n    ", ": ", ":\n", "- ", "\n- ", "|\n",
    "|-\n", ">\n", ">+\n", "|2\n", " #", "# c", "''", '""', "? ", "<<: ", "*a", "&a ", "---\n",
    "...\n", "!!str ", "yes", "0x1f", "012", "1_0", "1e3", ".inf", "12:30", "2026-01-02", "\\\n",
    "\n\n", " \n",
]  # fmt: skip


class Writer:
    """Makes documents of one seed."""

    def __init__(self, seed):
        self.dice = random.Random(seed)

    def word(self, most):
        return "".join(self.dice.choices(SIGNS, k=self.dice.randrange(1, most)))

    def text(self):
        parts = [*TEXTS, self.word(12), self.word(30)]
        return "".join(self.dice.choices(parts, k=self.dice.randrange(12)))

    def value(self, depth, only_text):
        kind = self.dice.randrange(9 if depth else 6)
        if kind > 6:
            return [self.value(depth - 1, only_text) for _ in range(self.dice.randrange(4))]
        if kind == 6:
            return self.mapping(depth - 1, only_text)
        others = [self.dice.randrange(-5, 100), True, False, None, 1.5, -0.25, 1e20, 3e-9, 0.0]
        return self.text() if only_text or kind > 1 else self.dice.choice(others)

    def mapping(self, depth, only_text):
        return {self.word(9): self.value(depth, only_text) for _ in range(self.dice.randrange(5))}

    def dumped(self, dump):
        style = self.dice.choice([None, None, None, "|", ">", '"', "'"])
        return dump(
            self.mapping(3, style is not None),  # a number in quotes is dumped with a tag
            default_style=style,
            default_flow_style=self.dice.choice([None, False, False, True]),
            width=self.dice.choice([20, 40, 80, 1000]),
            indent=self.dice.choice([None, 2, 4, 7]),
            allow_unicode=self.dice.choice([True, False]),
            sort_keys=False,
        )

    def mutated(self, text):
        for _ in range(self.dice.randrange(1, 5)):
            at, lines = self.dice.randrange(len(text) + 1), text.split("\n")
            n, kind = self.dice.randrange(len(lines)), self.dice.randrange(7)
            if kind < 3:
                text = text[:at] + self.dice.choice(BITS) + text[at:]
                continue
            if kind == 3:
                text = text[:at] + text[at + self.dice.randrange(1, 6) :]
                continue
            if kind == 4:
                lines[n] = self.dice.choice(["", " ", "  ", "   ", "\t"]) + lines[n]
            elif kind == 5:
                lines[n] = lines[n][self.dice.randrange(1, 4) :]
            else:
                lines.insert(self.dice.randrange(len(lines) + 1), self.dice.choice(lines))
            text = "\n".join(lines)
        return text


def test_what_yaml_dump_writes_is_read_and_nothing_differs_without_a_word(oracle):
    seen = {"same": 0, "refused": 0}
    for seed in range(400):
        writer = Writer(seed)
        text = writer.dumped(oracle.dump)
        assert compared(oracle, text) == "same", text
        for _ in range(3):
            seen[compared(oracle, writer.mutated(text))] += 1
    assert min(seen.values()) > 200


def test_random_signs_are_read_as_pyyaml_reads_them_or_refused(oracle):
    dice = random.Random(7)
    parts = [*BITS, "k: ", "[", "]", "{", "}", ", ", ",", "\n ", "\na: ", "\nb:", ">-\n  ", "x y"]
    seen = {"same": 0, "refused": 0}
    for _ in range(3000):
        seen[compared(oracle, "a: " + "".join(dice.choices(parts, k=dice.randrange(12))))] += 1
    assert min(seen.values()) > 200


# ---- profiles that are not as they should be ----


def test_an_unreadable_profile_is_a_row_and_hides_no_other(place, client):
    place.profile("titled", "# A title\n---\nrole: reviewer\n---\n")
    place.profile("binary", "\x00\x01")
    place.profile("deep", "---\na: " + "[" * 5000 + "\n---\n")
    place.profile("good", "---\nprovider: demo\ndescription: one\n  two\n---\n")
    broken = ("titled", "binary", "deep")
    rows = {row["name"]: row for row in json.loads(place.ok("profiles", "--json"))}
    assert {rows[name]["provider"] for name in broken} == {"broken"}
    assert "a file begins with its head" in rows["titled"]["description"]
    assert rows["good"]["description"] == "one two"
    listed = client.call("list_sessions")["structuredContent"]["profiles"]
    assert {*broken, "good"} <= {words.partition(" (cannot be used: ")[0] for words in listed}
    for name in broken:
        done = place.run("handoff", name, "x")
        assert (done.returncode, "Traceback" in done.stderr) == (1, False)
        assert f"{name}.md:" in done.stderr


def test_a_profile_that_cannot_be_opened_is_an_error_of_ours(tmp_path, monkeypatch):
    tmp_path.chmod(0o700)
    store = cao.Store(str(tmp_path))
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "shut.md").write_text(HEAD)

    def shut(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", shut)  # root may open everything
    with pytest.raises(cao.CaoError, match=r"shut\.md cannot be read"):
        cao.load_profile("shut", store, str(tmp_path))


def test_the_references_workflow_scout_loads_with_a_reviewers_tools_and_says_so(place):
    place.profile(
        "workflow_scout",
        "---\nname: workflow_scout\nprovider: demo\n"
        "role: workflow_scout  # @builtin, fs_read, execute_bash\n---\nYou look.\n",
    )
    shown = json.loads(place.ok("profiles", "workflow_scout", "--json"))
    assert shown["role"] == "reviewer"
    assert shown["tools"] == "fs_read fs_list"
    assert shown["unknown keys"] == "role: workflow_scout (taken as reviewer)"
    assert "role: workflow_scout (taken as reviewer)" in place.ok("profiles", "workflow_scout")


@pytest.mark.parametrize("role", ["develper", "no", "0", "[developer]", "''", "{}", "Developer"])
def test_a_role_that_is_none_never_falls_open(role):
    profile = cao.parse_profile(f"---\nrole: {role}\n---\n", "p", "p.md")
    assert profile.tools == ("fs_read", "fs_list")
    assert profile.role == "reviewer"
    assert profile.unknown[0].startswith("role: ")
