"""`cao mcp` as a strict client sees it: real processes, both eras of MCP, the demo agent.

Whatever a test does, all that its servers wrote is checked when it ends (`connect`): one
message a line, no answer nobody asked for, nothing on stderr; and, where CAO_TEST_MCP_SCHEMAS
names the folder of the official schemas (2024-11-05.json …) and jsonschema can be imported,
each message by the schema of its version.
"""

from __future__ import annotations

import ast
import fcntl
import functools
import importlib.util
import json
import os
import re
import select
import shutil
import signal
import struct
import sys
import tempfile
import termios
import textwrap
import threading
import time
from pathlib import Path

import pytest

import cao
from conftest import CAO, McpClient, Place, until
from test_main_job import HALF_A_PAIR
from test_nothing_lost import put_loader

LEGACY = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"]
MODERN = "2026-07-28"
META = "io.modelcontextprotocol/"
ENVELOPE = {META + "protocolVersion": MODERN, META + "clientCapabilities": {}}
RESULTS = {  # method: the official name of its result, and a key no other result has
    "initialize": ("InitializeResult", "protocolVersion"),
    "server/discover": ("DiscoverResult", "supportedVersions"),
    "tools/list": ("ListToolsResult", "tools"),
    "tools/call": ("CallToolResult", "content"),
    "prompts/list": ("ListPromptsResult", "prompts"),
    "prompts/get": ("GetPromptResult", "messages"),
    "resources/list": ("ListResourcesResult", "resources"),
    "resources/templates/list": ("ListResourceTemplatesResult", "resourceTemplates"),
    "resources/read": ("ReadResourceResult", "contents"),
}


# ---- what every message is checked by ----


def why_no_schemas() -> str:
    if not os.environ.get("CAO_TEST_MCP_SCHEMAS"):
        return "CAO_TEST_MCP_SCHEMAS names no folder with the official schemas"
    if importlib.util.find_spec("jsonschema") is None:
        return "jsonschema is not installed"
    return ""


@functools.cache
def official(version: str, name: str):
    """Return a validator of one definition of a version's official schema."""
    import jsonschema

    folder = Path(os.environ["CAO_TEST_MCP_SCHEMAS"])
    schema = json.loads((folder / f"{version}.json").read_text())
    where = "$defs" if "$defs" in schema else "definitions"
    assert name in schema[where], (version, name)
    rule = {"$schema": schema["$schema"], "$ref": f"#/{where}/{name}", where: schema[where]}
    return jsonschema.validators.validator_for(rule)(rule)


@functools.cache
def output_of(tool: str):
    """Return a validator of what a tool of ours says it gives."""
    import jsonschema

    schema = cao.render_tool(cao.TOOLS[tool])["outputSchema"]
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


class Asked:
    """One request: what was asked, and of which version of MCP."""

    def __init__(self, message: dict, version: str) -> None:
        params = message.get("params")
        meta = params.get("_meta") if isinstance(params, dict) else None
        self.method = message["method"]
        self.tool = str(params.get("name")) if isinstance(params, dict) else ""
        self.modern = isinstance(meta, dict) and META + "protocolVersion" in meta
        self.version = MODERN if self.modern else version

    def may_have(self, result: dict) -> bool:
        """Say whether a result is of our kind: an id may come again with another method."""
        if self.method == "tools/call" and self.tool not in cao.TOOLS:
            return False
        keys = {key for _, key in RESULTS.values()} & set(result)
        wanted = {RESULTS[self.method][1]} if self.method in RESULTS else set()
        return keys == wanted and self.modern == ("resultType" in result)


LONG_S = 20.0  # a call that waits takes longer, a stall of the machine does not


class Talk(McpClient):
    """A client that notes what it asked, so that all it was told can be checked."""

    def __init__(self, place, *args, **more) -> None:
        self.asked, self.version, self.line, self.checked = {}, LEGACY[-1], b"", set()
        self.place = place
        super().__init__(place, *args, **more)

    def write(self, data: bytes) -> None:
        *lines, self.line = (self.line + data).split(b"\n")
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:
                continue
            except RecursionError:  # too deep for us, perhaps not for the server
                found = re.match(
                    rb'{"jsonrpc":"2.0","id":(\d+),"method":"([a-z/]+)","params":{"name":"(\w+)"',
                    line,
                )
                if not found:
                    continue
                message = request(int(found[1]), found[2].decode(), name=found[3].decode())
            if (
                isinstance(message, dict)
                and "id" in message
                and isinstance(message.get("method"), str)
            ):
                self.asked.setdefault(json.dumps(message["id"]), []).append(
                    Asked(message, self.version)
                )
        super().write(data)

    def read(self, timeout_s=90.0):
        message = super().read(timeout_s)
        version = isinstance(message, dict) and (message.get("result") or {}).get("protocolVersion")
        self.version = version or self.version
        return message

    def line_in(self, data: bytes, timeout_s=90.0):
        """Send a line as it is and return the next message."""
        self.write(data + b"\n")
        return self.read(timeout_s)

    def call(self, name, **arguments):
        """Call a tool and return its result (timeout_s is the tool's)."""
        return self.answer(self.post_call(name, **arguments))["result"]

    def data(self, name, **arguments) -> dict:
        """Call a tool and return its result as data."""
        return self.call(name, **arguments)["structuredContent"]

    def first(self, name, **arguments) -> dict:
        """Call a tool that gives one task's result and return that."""
        (result,) = self.data(name, **arguments)["results"]
        return result

    def told(self, key) -> list:
        """Return the responses to a request, so far."""
        return [
            m
            for m in self.seen
            if isinstance(m, dict) and json.dumps(m.get("id")) == json.dumps(key)
        ]

    def is_quiet(self) -> None:
        """Hold that nothing is on the way to us: the next message answers our ping."""
        assert self.line_in(b'{"jsonrpc":"2.0","id":"quiet","method":"ping"}') == {
            "jsonrpc": "2.0", "id": "quiet", "result": {},
        }  # fmt: skip

    def end(self, timeout_s=LONG_S) -> int:
        """Close our side and return the exit status."""
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        while not self.process.stdout.closed and self.read(timeout_s) is not None:
            pass
        return self.process.wait(timeout_s)

    def check_all(self) -> None:
        """Hold that all we were told was asked for and is as the protocol has it."""
        assert self.buffer == b"", "a line without its end"
        for message in self.seen:
            self.check(message)

    def check(self, message) -> None:
        assert message["jsonrpc"] == "2.0"
        if "method" in message:
            assert "id" not in message, "requests are not for a server of ours"
            assert message["method"] == "notifications/progress"
            self.fits(self.version, "ServerNotification", message)
            return
        assert set(message) <= {"jsonrpc", "id", "result", "error"}
        assert ("result" in message) != ("error" in message)
        asked = self.asked.get(json.dumps(message["id"]), []) if "id" in message else []
        if "error" in message:
            self.check_error(message, asked[-1].version if asked else LEGACY[-1])
        else:
            self.check_result(message, asked)

    def check_result(self, message, asked) -> None:
        result = message["result"]
        fitting = [one for one in asked if one.may_have(result)]
        assert fitting, f"nobody asked for {message}"
        method, tool, version = fitting[-1].method, fitting[-1].tool, fitting[-1].version
        if method == "tools/call":
            self.check_tool(tool, result)
        name = RESULTS[method][0] if method in RESULTS else "EmptyResult"
        self.fits(result.get("protocolVersion") or version, name, result)

    def check_error(self, message, version: str) -> None:
        # The id is optional from 2025-11-25 on; before, an error without one had no schema.
        assert type(message["error"]["code"]) is int
        assert "Traceback" not in message["error"]["message"]
        name = "JSONRPCErrorResponse" if version >= LEGACY[-1] else "JSONRPCError"
        self.fits(version, name, message)
        if message["error"]["code"] == -32022:
            self.fits(MODERN, "UnsupportedProtocolVersionError", message)

    @staticmethod
    def check_tool(tool: str, result) -> None:
        texts = [part["text"] for part in result["content"]]
        assert all(texts)
        assert not any("Traceback" in text or "cao failed" in text for text in texts), texts
        if result.get("isError"):
            assert "structuredContent" not in result
        elif not why_no_schemas():
            output_of(tool).validate(result["structuredContent"])

    def fits(self, version: str, name: str, value) -> None:
        if why_no_schemas():
            return
        same = (version, name, json.dumps({k: v for k, v in value.items() if k != "id"}))
        if same not in self.checked:  # ten thousand pings are one
            self.checked.add(same)
            official(version, name).validate(value)


@pytest.fixture
def connect(place):
    """Start clients; when the test ends, so do they, and all they were told is checked."""
    made = []

    def start(*args, **more) -> Talk:
        made.append(Talk(place, *args, **more))
        return made[-1]

    yield start
    for talk in made:
        talk.end()
        talk.check_all()
        assert talk.process.stderr.read() == b""


@pytest.fixture
def talk(connect):
    """A client after its handshake, with the newest version that has one."""
    return connect()


class Shared:
    """One server for each version, for the tables below: what one row sends must leave
    nothing behind for the next. One that ended is started again, so a row fails alone.
    """

    def __init__(self) -> None:
        self.place = Place(Path(tempfile.mkdtemp(prefix="cao-", dir="/tmp")))
        self.talks: dict[str, Talk] = {}

    def get(self, version: str):
        talk = self.talks.get(version)
        if not talk or talk.process.poll() is not None:
            self.talks[version] = talk = Talk(self.place, version=version)
        yield talk
        try:
            talk.is_quiet()
            talk.check_all()
            assert not select.select([talk.process.stderr], [], [], 0)[0], (
                talk.process.stderr.read1()
            )
            assert self.place.live() == []
        except BaseException:
            talk.process.kill()
            talk.end()
            raise
        finally:
            talk.seen.clear()
            talk.asked.clear()


@pytest.fixture(scope="module")
def shared():
    made = Shared()
    yield made
    made.place.close()


@pytest.fixture
def steady(shared):
    """A client after its handshake, the same for many tests."""
    yield from shared.get(LEGACY[-1])


@pytest.fixture
def raw(connect):
    """A client that has not said a word."""
    return connect(init=False)


def lines(*messages) -> bytes:
    return b"".join(json.dumps(m).encode() + b"\n" for m in messages)


def request(key, method, **params) -> dict:
    return {"jsonrpc": "2.0", "id": key, "method": method, **({"params": params} if params else {})}


def call(key, tool, **arguments) -> dict:
    return request(key, "tools/call", name=tool, arguments=arguments)


def hello(version="2025-11-25") -> dict:
    return request("hello", "initialize", protocolVersion=version, capabilities={},
                   clientInfo={"name": "test-client", "version": "1"})  # fmt: skip


def code(message) -> int:
    return message["error"]["code"]


def text(result) -> str:
    return "\n".join(part["text"] for part in result["content"])


def unread(talk: Talk) -> int:
    """Return how many bytes wait for us in the server's stdout."""
    return struct.unpack("i", fcntl.ioctl(talk.process.stdout, termios.FIONREAD, b"\0" * 4))[0]


def test_the_official_schemas_hold_for_a_conversation_in_each_version(connect):
    if why_no_schemas():
        pytest.skip(why_no_schemas())
    for version in LEGACY:
        client = connect(version=version)
        client.request("tools/list")
        client.call("list_sessions")
        client.call("read_session")
        client.request("nonsense")
        client.check_all()
        assert {name for at, name, _ in client.checked if at == version} >= {
            "InitializeResult", "ListToolsResult", "CallToolResult",
        }  # fmt: skip
    client = connect(init=False)
    client.request("server/discover", {"_meta": ENVELOPE})
    client.request("tools/list", {"_meta": ENVELOPE})
    client.request("tools/call", {"name": "list_sessions", "_meta": ENVELOPE})
    client.check_all()
    assert {name for at, name, _ in client.checked if at == MODERN} == {
        "DiscoverResult", "ListToolsResult", "CallToolResult",
    }  # fmt: skip


# ---- the handshake ----


def test_nothing_is_said_before_the_first_request(raw):
    assert select.select([raw.process.stdout, raw.process.stderr], [], [], 0.4)[0] == []
    raw.is_quiet()


def test_ping_is_answered_before_the_handshake(raw):
    assert raw.request("ping")["result"] == {}


@pytest.mark.parametrize("method", ["tools/list", "tools/call"])
def test_a_request_before_the_handshake_is_refused_and_says_why(raw, method):
    error = raw.request(method, {"name": "list_sessions"})["error"]
    assert error["code"] == -32600
    assert "initialize" in error["message"]
    raw.send(hello())
    assert raw.answer("hello")["result"]["protocolVersion"] == "2025-11-25"


@pytest.mark.parametrize("version", LEGACY)
def test_each_version_with_a_handshake_is_echoed(raw, version):
    raw.send(hello(version))
    result = raw.answer("hello")["result"]
    assert result["protocolVersion"] == version
    assert result["capabilities"] == {"tools": {}, "prompts": {}, "resources": {}}
    assert (result["serverInfo"]["name"], result["serverInfo"]["version"]) == ("cao", cao.VERSION)
    assert 0 < len(result["instructions"].encode()) < 2048


@pytest.mark.parametrize("version", ["2026-07-28", "1999-01-01", ""])
def test_an_unknown_version_is_answered_with_our_newest(raw, version):
    raw.send(hello(version))
    assert raw.answer("hello")["result"]["protocolVersion"] == "2025-11-25"


def test_a_second_handshake_does_not_change_the_version(talk):
    talk.send(hello("2025-03-26"))
    refused = talk.answer("hello")
    assert (code(refused), LEGACY[-1] in refused["error"]["message"]) == (-32600, True)


def test_a_handshake_with_wrong_params_is_refused_and_a_right_one_works_after_it(raw):
    raw.send({"jsonrpc": "2.0", "id": "none", "method": "initialize"})
    assert code(raw.answer("none")) == -32602
    for key, params in enumerate([
        None, [], "x", 7, True, {}, {"protocolVersion": None}, {"protocolVersion": 5},
        {"protocolVersion": ["2025-11-25"]}, {"protocolVersion": {"a": 1}},
    ]):  # fmt: skip
        raw.send({"jsonrpc": "2.0", "id": key, "method": "initialize", "params": params})
        assert code(raw.answer(key)) == -32602, params
    raw.send(hello())
    assert "result" in raw.answer("hello")


@pytest.mark.parametrize("info", [None, 5, {"name": 5}], ids=repr)
def test_client_info_of_any_kind_is_no_reason_to_fail(raw, info):
    raw.send(
        request(1, "initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo=info)
    )
    assert "result" in raw.answer(1)
    assert not raw.call("list_sessions").get("isError")


def test_tools_are_listed_without_waiting_for_initialized(raw):
    raw.send(hello())
    assert raw.request("tools/list")["result"]["tools"]


def test_a_handshake_may_come_in_one_write_with_what_follows(raw):
    initialized = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    raw.write(lines(hello(), initialized, request(1, "tools/list")))
    assert raw.read()["id"] == "hello"
    assert raw.read()["result"]["tools"]
    raw.is_quiet()


# ---- requests ----


def test_an_unknown_method_is_named(steady):
    error = steady.request("no/such/method")["error"]
    assert (error["code"], "no/such/method" in error["message"]) == (-32601, True)


@pytest.mark.parametrize("method", [
    "resources/subscribe", "resources/unsubscribe", "completion/complete", "tasks/list",
    "tasks/get", "logging/setLevel",
    "subscriptions/listen", "sampling/createMessage", "roots/list",
])  # fmt: skip
def test_what_was_not_declared_is_not_there(steady, method):
    assert code(steady.request(method)) == -32601


def test_an_unknown_tool_is_named(steady):
    error = steady.request("tools/call", {"name": "no_such_tool", "arguments": {}})["error"]
    assert (error["code"], "no_such_tool" in error["message"]) == (-32602, True)


@pytest.mark.parametrize("line", [
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call"}',
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{}}',
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"arguments":{}}}',
])  # fmt: skip
def test_a_tool_call_without_a_name_is_refused(steady, line):
    answer = steady.line_in(line)
    assert (answer["id"], code(answer)) == (1, -32602)


JSON_TYPES = [None, True, 7, 1.5, "x", [], [1], {"a": 1}]


@pytest.mark.parametrize("method", ["ping", "tools/list", "tools/call"])
def test_params_of_a_wrong_type_are_refused_with_the_id(steady, method):
    for value in JSON_TYPES[:-1]:
        steady.send({"jsonrpc": "2.0", "id": 5, "method": method, "params": value})
        answer = steady.read()
        assert (answer["id"], code(answer)) == (5, -32602), value


def test_a_tool_name_of_a_wrong_type_is_refused(steady):
    for value in JSON_TYPES:
        answer = steady.request("tools/call", {"name": value, "arguments": {}})
        assert code(answer) == -32602, value


def test_arguments_of_a_wrong_type_are_an_error_that_says_so(steady):
    for value in JSON_TYPES[1:-1]:
        answer = steady.request("tools/call", {"name": "list_sessions", "arguments": value})
        said = text(answer["result"]) if "result" in answer else answer["error"]["message"]
        assert "must be an object" in said, value


def test_null_for_arguments_is_none_given(steady):
    answer = steady.request("tools/call", {"name": "list_sessions", "arguments": None})
    assert "sessions" in answer["result"]["structuredContent"]


def test_a_message_of_another_kind_is_refused_under_its_id(place):
    client = McpClient(place)
    client.send({"jsonrpc": "1.0", "id": "mine", "method": "ping"})
    refused = client.read()
    assert (refused["id"], refused["error"]["code"]) == ("mine", -32600)
    client.close()


def test_calls_in_flight_when_the_client_closes_our_input_are_answered(place):
    client = McpClient(place)
    for _ in range(16):
        client.post_call("list_sessions")
    client.process.stdin.close()
    answers = client.process.stdout.read().splitlines()
    assert {json.loads(line)["id"] for line in answers} >= set(range(2, 18))


def test_a_wait_in_flight_when_the_client_closes_our_input_ends_and_tells_nothing(place):
    client = McpClient(place)
    task = client.call("assign", target="demo", task="demo: sleep 3; say kept")
    client.post_call("wait", tasks=[task["structuredContent"]["task"]])
    client.process.stdin.close()
    assert client.process.wait(60) == 0
    later = McpClient(place)
    (result,) = later.call("wait", 60.0)["structuredContent"]["results"]
    assert result["answer"] == "kept"
    later.close()


def test_a_meta_of_a_wrong_type_is_refused(steady):
    for value in JSON_TYPES[:-1]:
        assert code(steady.request("tools/list", {"_meta": value})) == -32602, value


def test_a_progress_token_of_a_wrong_type_is_ignored(steady):
    for token in (None, True, 1.5, [], {}, [1]):
        params = {"name": "list_sessions", "arguments": {}, "_meta": {"progressToken": token}}
        assert not steady.request("tools/call", params)["result"].get("isError"), token


@pytest.mark.parametrize("line", [
    "{}", "[]", "5", "true", "null", '"x"', "1.5",
    '{"jsonrpc":"1.0","id":1,"method":"ping"}',
    '{"jsonrpc":2.0,"id":1,"method":"ping"}',
    '{"id":1,"method":"ping"}',
    '{"jsonrpc":"2.0","id":1}',
    '{"jsonrpc":"2.0"}',
    '{"jsonrpc":"2.0","id":1,"method":5}',
    '{"jsonrpc":"2.0","id":1,"method":null}',
    '{"jsonrpc":"2.0","id":1,"method":["ping"]}',
])  # fmt: skip
def test_what_is_no_request_gets_one_error_and_the_next_is_answered(steady, line):
    assert code(steady.line_in(line.encode())) == -32600


@pytest.mark.parametrize("line", [
    b"x", b"{", b"}{", b"'ping'", b"[1,]", b"\x00", b"\xef",
    b'{"jsonrpc":"2.0","id":1,"method":"ping"',
    b'{"jsonrpc":"2.0","id":1,"method":"ping"} {"jsonrpc":"2.0","id":2,"method":"ping"}',
    b'{"jsonrpc":"2.0","id":1,"method":"\xff\xfe"}', b"\xff\xfe\x00", b'{"a":"\xed\xa0\x80"}',
    b'{"jsonrpc":"2.0","id":NaN,"method":"ping"}',
    b'{"jsonrpc":"2.0","id":-Infinity,"method":"ping"}',
    b"GET / HTTP/1.1\r", b"Content-Length: 46\r",
], ids=repr)  # fmt: skip
def test_what_is_not_json_in_utf8_is_a_parse_error_without_an_id(steady, line):
    answer = steady.line_in(line)
    assert code(answer) == -32700
    assert "id" not in answer


def test_crlf_and_blank_lines_are_no_trouble(raw):
    raw.write(b'\n\r\n   \n\t\r\n{"jsonrpc":"2.0","id":1,"method":"ping"}\r\n\r\n\n')
    assert raw.read() == {"jsonrpc": "2.0", "id": 1, "result": {}}
    raw.is_quiet()


def test_a_line_may_come_byte_by_byte_and_the_next_with_its_end(steady):
    line = '{"jsonrpc":"2.0","id":"é☃","method":"ping"}\n'.encode()
    for at in range(len(line)):
        steady.write(line[at : at + 1])
        select.select([], [], [], 0.002)
    assert steady.read()["id"] == "é☃"
    steady.write(line[:20])
    steady.write(line[20:] + line + line[:10])
    assert (steady.read()["id"], steady.read()["id"]) == ("é☃", "é☃")
    steady.write(line[10:])
    assert steady.read()["id"] == "é☃"


BIG = 10_000_000


def test_a_request_of_ten_megabytes_is_answered(steady):
    assert steady.request("ping", {"padding": "x" * BIG})["result"] == {}


def test_an_argument_of_ten_megabytes_is_a_tool_error_that_says_the_limit(steady):
    result = steady.call("handoff", target="demo", task="x" * BIG)
    assert result["isError"]
    assert str(cao.MAX_MESSAGE_BYTES) in text(result)
    assert len(text(result)) < 1000


def test_ten_megabytes_of_garbage_are_one_short_error(steady):
    answer = steady.line_in(b"\xf0garbage " * (BIG // 9))
    assert code(answer) == -32700
    assert len(json.dumps(answer)) < 1000


@pytest.mark.parametrize(
    ("opening", "closing"), [("[", "]"), ('{"a":', "}")], ids=["arrays", "objects"]
)
@pytest.mark.parametrize("where", ["line", "argument", "id", "open"])
def test_nesting_of_a_hundred_thousand_is_one_error(steady, opening, closing, where):
    deep = opening * 100_000 + ("1" + closing * 100_000 if where != "open" else "")
    line = {
        "line": deep,
        "open": deep,
        "argument": '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"wait",'
        f'"arguments":{{"tasks":{deep}}}}}}}',
        "id": f'{{"jsonrpc":"2.0","id":{deep},"method":"ping"}}',
    }[where]
    assert code(steady.line_in(line.encode())) in (-32700, -32600)


@pytest.mark.parametrize("depth", [100, 300, 500, 900, 950, 970, 980, 990, 1000, 2000])
def test_nesting_of_any_depth_gets_an_answer_wherever_it_stands(steady, depth):
    deep = "[" * depth + "]" * depth
    for params in (
        f'{{"name":"wait","arguments":{{"tasks":{deep}}}}}',
        f'{{"name":"wait","arguments":{{"timeout_s":{deep}}}}}',
        f'{{"name":{deep}}}',
        f'{{"_meta":{{"{META}protocolVersion":{deep}}}}}',
    ):
        answer = steady.line_in(
            f'{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}'.encode()
        )
        assert "error" in answer or answer["result"]["isError"]


@pytest.mark.parametrize(
    "number", ["1e999", "-1e999", "NaN", "Infinity", "9" * 5000, "1e-999", "-0", "1.5"]
)
def test_odd_numbers_get_one_answer_wherever_they_stand(steady, number):
    for line in (
        f'{{"jsonrpc":"2.0","id":{number},"method":"ping"}}',
        f'{{"jsonrpc":"2.0","id":1,"method":"ping","params":{{"n":{number}}}}}',
        f'{{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{{"name":{number}}}}}',
        f'{{"jsonrpc":"2.0","id":3,"method":"tools/list","params":{{"cursor":{number}}}}}',
        f'{{"jsonrpc":"2.0","id":4,"method":"tools/call","params":{{"name":"read_session",'
        f'"arguments":{{"session":"x","lines":{number}}}}}}}',
        f'{{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{{"name":"list_sessions",'
        f'"arguments":{{}},"_meta":{{"progressToken":{number}}}}}}}',
        f'{{"jsonrpc":"2.0","id":6,"method":"ping","params":{{"_meta":{{"{META}protocolVersion":{number}}}}}}}',
        f'{{"jsonrpc":"2.0","id":7,"method":"resources/read","params":{{"uri":{number}}}}}',
    ):
        answer = steady.line_in(line.encode())
        assert answer is not None, line
        if "e" in number and f'"id":{number}' not in line:
            assert answer["id"] == json.loads(line)["id"]


# ---- batches: no version has them any more ----


@pytest.mark.parametrize("version", [*LEGACY, ""])
def test_a_batch_is_refused_with_one_error_and_nothing_in_it_is_done(connect, version):
    talk = connect(version=version) if version else connect(init=False)
    for batch in (
        [],
        [5],
        [request(1, "ping"), request(2, "ping")],
        [hello(), call(3, "assign", target="demo", task="demo: say hi")],
        [{"jsonrpc": "2.0", "method": "notifications/x"}],
    ):
        talk.send(batch)
        answer = talk.read()
        assert (code(answer), "id" in answer) == (-32600, False)
        assert answer["error"]["message"].endswith("send one message a line")
    talk.is_quiet()
    assert talk.place.live() == []


# ---- ids and notifications ----


@pytest.mark.parametrize("key", [
    "1", "", "ünï ☃ 😀", "x" * 5000, "\n\"\\", 0, -5, 2**53 - 1, 10**20 + 7, 1,
], ids=lambda key: repr(key)[:12])  # fmt: skip
def test_an_id_comes_back_as_it_was(steady, key):
    steady.write(lines(request(key, "ping"), call(key, "list_sessions"), call(key, "no_such_tool")))
    answers = [steady.read() for _ in range(3)]
    assert all(type(a["id"]) is type(key) and a["id"] == key for a in answers)
    assert sorted(sorted(a)[0] for a in answers) == ["error", "id", "id"]


@pytest.mark.parametrize("key", ["null", "true", "1.5", "[1]", '{"a":1}'])
def test_an_id_that_is_neither_string_nor_integer_is_an_error_without_an_id(steady, key):
    for method in ("ping", "tools/list", "notifications/initialized"):
        answer = steady.line_in(f'{{"jsonrpc":"2.0","id":{key},"method":"{method}"}}'.encode())
        assert code(answer) == -32600
        assert "id" not in answer


def test_each_of_two_requests_with_one_id_is_answered(steady):
    steady.write(lines(call(9, "list_sessions"), call(9, "list_sessions"), request(9, "ping")))
    assert sorted(len(steady.read()["result"]) for _ in range(3)) == [0, 2, 2]


@pytest.mark.parametrize("message", [
    {"jsonrpc": "2.0", "method": "notifications/unknown"},
    {"jsonrpc": "2.0", "method": "notifications/unknown", "params": 5},
    {"jsonrpc": "2.0", "method": "notifications/roots/list_changed"},
    {"jsonrpc": "2.0", "method": "notifications/initialized"},
    {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": 1}},
    {"jsonrpc": "2.0", "method": "ping"},
    {"jsonrpc": "2.0", "method": "tools/call", "params": {"name": "list_sessions"}},
    {"jsonrpc": "2.0", "id": 77, "result": {}},
    {"jsonrpc": "2.0", "id": "77", "error": {"code": -1, "message": "no"}},
    {"jsonrpc": "2.0", "error": {"code": -32600, "message": "no"}},
    *({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params} for params in (
        None, [], "x", {}, {"requestId": None}, {"requestId": 99}, {"requestId": "99"},
        {"requestId": [1]}, {"requestId": {}}, {"requestId": True}, {"requestId": 1.5},
        {"requestId": 1, "reason": 7},
    )),
], ids=lambda message: json.dumps(message)[17:70])  # fmt: skip
def test_notifications_and_stray_responses_are_never_answered(steady, message):
    steady.send(message)


# ---- arguments ----


@pytest.mark.parametrize(("tool", "arguments", "named"), [
    ("handoff", {}, "target"),
    ("handoff", {"target": "demo"}, "task"),
    ("handoff", {"target": None, "task": "x"}, "target"),
    ("handoff", {"target": "demo", "task": ["x"]}, "task"),
    ("handoff", {"target": "demo", "task": "x", "cwd": ["/"]}, "cwd"),
    ("handoff", {"target": "demo", "task": "x", "worktree": "yes"}, "worktree"),
    ("handoff", {"target": "demo", "task": "x", "timeout_s": True}, "timeout_s"),
    ("handoff", {"target": "demo", "task": "x", "timeout_s": 0}, "timeout_s"),
    ("handoff", {"target": "demo", "task": "x", "timeout_s": -1}, "timeout_s"),
    ("handoff", {"target": "demo", "task": "x", "timeout_s": 1e12}, "timeout_s"),
    ("assign", {"target": "demo", "task": "x", "keep": 1}, "keep"),
    ("assign", {"target": "demo", "task": "x", "colour": "red"}, "colour"),
    ("send_message", {"target": "demo-2222"}, "message"),
    ("send_message", {"target": "demo-2222", "message": {}}, "message"),
    ("wait", {"tasks": [1]}, "tasks"),
    ("wait", {"all": "yes"}, "all"),
    ("wait", {"timeout_s": -1}, "timeout_s"),
    ("list_sessions", {"every": True}, "every"),
    ("read_session", {}, "session"),
    ("read_session", {"session": "demo-2222", "lines": 0}, "lines"),
    ("read_session", {"session": "demo-2222", "lines": "many"}, "lines"),
    ("answer", {"session": "demo-2222"}, "answer"),
    ("stop_session", {"session": "demo-2222", "interrupt": "no"}, "interrupt"),
])  # fmt: skip
def test_a_wrong_argument_is_a_tool_error_that_names_it(steady, tool, arguments, named):
    result = steady.call(tool, **arguments)
    assert result["isError"]
    assert f"{tool}:" in text(result)
    assert repr(named) in text(result)
    assert re.search(r'\ntry: (write \W*"|the arguments are: )', text(result))  # not what it means


@pytest.mark.parametrize(("tool", "arguments", "meant"), [
    ("wait", {"tasks": "a-2222.2222"}, {"tasks": ["a-2222.2222"]}),
    ("wait", {"tasks": "a-2222.2222, b-2222.2222"}, {"tasks": ["a-2222.2222", "b-2222.2222"]}),
    ("wait", {"tasks": '["a-2222.2222"]'}, {"tasks": ["a-2222.2222"]}),
    ("wait", {"tasks": "", "all": None, "timeout_s": None}, {"tasks": []}),
    ("wait", {"timeout_s": "60", "all": "True"}, {"timeout_s": 60, "all": True}),
    ("answer", {"session": "a-2222", "answer": 1}, {"session": "a-2222", "answer": "1"}),
])  # fmt: skip
def test_an_argument_in_another_obvious_form_is_what_it_means(tool, arguments, meant):
    assert cao.check_arguments(cao.TOOLS[tool], arguments) == meant


@pytest.mark.parametrize(("tool", "arguments", "said", "fix"), [
    ("handoff", {"target": "nobody", "task": "x"}, "'nobody'", "demo"),
    ("handoff", {"target": "", "task": "x"}, "''", "demo"),
    ("handoff", {"target": "../x", "task": "x"}, "'../x'", "demo"),
    ("handoff", {"target": "demo", "task": ""}, "empty", "write the text"),
    ("handoff", {"target": "demo", "task": "x", "cwd": "/no/dir"}, "/no/dir", "a whole path"),
    ("handoff", {"target": "demo", "task": "x", "cwd": "~/dir"}, "/~/dir", "a whole path"),
    ("assign", {"target": "demo", "task": "x", "max_tokens": "200k"}, "'200k'", "without a unit"),
    ("assign", {"target": "demo", "task": "x", "worktree": True}, "no worktree", "with a commit"),
    ("send_message", {"target": "demo-2222", "message": "x"}, "'demo-2222'", "list_sessions"),
    ("send_message", {"target": "supervisor", "message": "x"}, "no supervisor", "list_sessions"),
    ("wait", {"tasks": ["demo-2222.2222"]}, "demo-2222.2222", "list_sessions shows"),
    ("wait", {"tasks": ["../../etc"]}, "not a task's name", "looks like"),
    ("read_session", {"session": "demo-2222"}, "'demo-2222'", "list_sessions"),
    ("read_session", {"session": "../.."}, "'../..'", "list_sessions"),
    ("answer", {"session": "demo-2222", "answer": "1"}, "'demo-2222'", "list_sessions"),
    ("stop_session", {"session": "demo-2222"}, "'demo-2222'", "list_sessions"),
])  # fmt: skip
def test_an_error_says_what_happened_and_what_to_try(steady, tool, arguments, said, fix):
    result = steady.call(tool, **arguments)
    assert result["isError"]
    assert said in text(result)
    assert fix in text(result)


@pytest.mark.parametrize("method", [
    "tools/list", "prompts/list", "resources/list", "resources/templates/list",
])  # fmt: skip
def test_a_cursor_we_never_gave_is_refused(steady, method):
    for cursor in ("", "abc", 5, True, [], {}):
        assert code(steady.request(method, {"cursor": cursor})) == -32602, cursor
    assert "nextCursor" not in steady.request(method)["result"]


# ---- text ----

ASCII_ONLY = {
    "LC_ALL": "C", "LANG": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
}  # fmt: skip


@pytest.mark.tmux
@pytest.mark.parametrize(
    "env", [{"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}, ASCII_ONLY], ids=["C", "ascii"]
)
def test_unicode_comes_through_where_the_locale_is_c_and_home_is_missing(connect, place, env):
    del place.env["HOME"]
    talk = connect(**env)
    error = talk.request("tools/call", {"name": "wörk ☃ 😀"})["error"]
    assert "wörk ☃ 😀" in error["message"]
    result = talk.call("handoff", target="demo", task="demo: say grüße ☃ 😀 ﷽")
    assert result["structuredContent"]["results"][0]["answer"] == "grüße ☃ 😀 ﷽"
    assert "grüße ☃ 😀 ﷽" in text(result)


def test_a_lone_surrogate_is_answered_wherever_it_stands(steady):
    lone = "\\ud800 and \\udfff"
    for at, line in enumerate([
        f'{{"jsonrpc":"2.0","id":"{lone}","method":"ping"}}',
        f'{{"jsonrpc":"2.0","id":1,"method":"{lone}"}}',
        f'{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"{lone}"}}}}',
        f'{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"wait","arguments":{{"{lone}":1}}}}}}',
    ]):  # fmt: skip
        answer = steady.line_in(line.encode())
        assert answer["id"] == ("\ud800 and \udfff" if at == 0 else 1)
    for tool, arguments in (
        ("handoff", {"target": "\ud800", "task": "x"}),
        ("read_session", {"session": "\ud800"}),
        ("send_message", {"target": "\ud800", "message": "x"}),
        ("wait", {"tasks": ["\ud800"]}),
        ("assign", {"target": "demo", "task": "x", "cwd": "/\ud800"}),
        ("assign", {"target": "demo", "task": "x", "check": "\ud800", "cwd": "/nowhere"}),
    ):
        assert steady.call(tool, **arguments)["isError"], tool


@pytest.mark.tmux
@pytest.mark.parametrize("check", ["test -f a\0b", "true \ud800"])
def test_a_check_that_no_program_can_be_given_fails_its_task(place, talk, check):
    place.profile("free", "---\nprovider: demo\npermissions: all\n---\n")  # checks need no word
    done = talk.call("handoff", target="free", task="demo: say x", check=check, check_retries=0)
    assert "check_failed" in text(done)
    assert "could not be started" in json.dumps(done)


@pytest.mark.tmux
def test_of_several_results_the_outcome_is_done_only_where_all_are(talk):
    tasks = [
        talk.data("assign", target="demo", task=f"demo: {what}")["task"]
        for what in ("say a", "fail api", "say b")
    ]
    assert talk.data("wait", tasks=tasks, all=True)["outcome"] == "failed"
    assert talk.data("wait", tasks=[tasks[0], tasks[2]], all=True)["outcome"] == "done"


@pytest.mark.tmux
def test_a_task_with_a_lone_surrogate_is_delivered_or_refused_with_words(talk):
    result = talk.call("handoff", target="demo", task="demo: say a \ud800 b")
    if result.get("isError"):
        assert "cao failed" not in text(result)
    else:
        assert result["structuredContent"]["outcome"] == "done"
    named = talk.call("handoff", target="demo", task="demo: say x", request_id="a \ud800 b")
    assert named["structuredContent"]["outcome"] == "done"


def test_a_result_with_half_a_letter_can_be_read_by_a_strict_client(place, connect):
    put_loader(place, HALF_A_PAIR)
    client = connect()
    task = client.data("assign", target="demo", task="demo: say x")["task"]
    (result,) = client.data("wait", tasks=[task])["results"]
    assert result["answer"] == "half \ufffd end"
    assert json.loads(Path(result["file"]).read_bytes())["answer"] == "half \ud83d end"
    until(lambda: str(client.data("list_sessions")), lambda listed: "half \ufffd end" in listed)


# ---- many, fast, slow ----


def send_beside(talk: Talk, data: bytes) -> threading.Thread:
    """Send in a thread: while our input waits to be read, the server's waits too."""
    thread = threading.Thread(target=talk.write, args=(data,))
    thread.start()
    return thread


def test_ten_thousand_pings_in_one_write_are_answered_in_order(steady):
    sender = send_beside(steady, b"".join(lines(request(n, "ping")) for n in range(10_000)))
    assert [steady.read()["id"] for _ in range(10_000)] == list(range(10_000))
    sender.join()


def test_a_client_that_stops_reading_loses_no_answer(talk):
    sender = send_beside(talk, b"".join(
        lines(request(n, "tools/list"), call(-n, "list_sessions")) for n in range(1, 201)
    ))  # fmt: skip
    full = until(lambda: unread(talk), lambda size: size > 30_000)
    assert select.select([], [], [], 0.5)[0] == []  # and we go on not reading
    assert unread(talk) >= full
    keys = [talk.read()["id"] for _ in range(400)]
    sender.join()
    assert sorted(keys) == [n for n in range(-200, 201) if n]
    talk.is_quiet()


def test_fifty_calls_at_once_are_each_answered_once(steady):
    steady.write(b"".join(lines(call(n, "list_sessions")) for n in range(1000, 1050)))
    assert sorted(steady.read()["id"] for _ in range(50)) == list(range(1000, 1050))


@pytest.mark.tmux
def test_ping_and_other_calls_are_answered_during_25_slow_ones(talk, place):
    task = talk.data("assign", target="demo", task="demo: sleep 4; say slow")["task"]
    slow = [talk.post_call("wait", tasks=[task]) for _ in range(25)]
    place.until_state(task.partition(".")[0], "working")
    for _ in range(3):
        assert talk.request("ping")["result"] == {}
        assert talk.request("tools/list")["result"]["tools"]
        assert "working" in text(talk.call("list_sessions"))
    assert not any(talk.told(key) for key in slow)
    for key in slow:
        (result,) = talk.answer(key)["result"]["structuredContent"]["results"]
        assert result["answer"] == "slow"


def test_two_thousand_calls_leave_the_memory_as_it_was(talk):
    def resident() -> int:
        status = Path(f"/proc/{talk.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])

    if not Path("/proc/self/status").exists():
        pytest.skip("there is no /proc to read the memory from")
    sizes = []
    for _ in range(8):
        talk.write(b"".join(lines(call(n, "list_sessions")) for n in range(250)))
        for _ in range(250):
            talk.read()
        talk.seen.clear()
        sizes.append(resident())
    assert sizes[-1] - sizes[0] < 8_000


def test_three_thousand_errors_are_answered_though_nobody_reads_stderr(talk):
    kinds = [b"garbage\n", *(lines(m) for m in (
        request(2, "no/such/method"), call(3, "no_such_tool"), call(4, "wait", colour=1),
        call(5, "read_session", session="nobody"), {"jsonrpc": "2.0", "id": None, "method": "ping"},
    ))]  # fmt: skip
    sender = send_beside(talk, b"".join(kinds) * 500)
    for _ in range(3000):
        answer = talk.read()
        assert "error" in answer or answer["result"]["isError"]
    sender.join()
    talk.is_quiet()


# ---- progress ----


def progress_of(talk: Talk, token) -> list:
    notes = [m["params"] for m in talk.seen if m.get("method") == "notifications/progress"]
    return [n for n in notes if json.dumps(n["progressToken"]) == json.dumps(token)]


def post_with_token(talk: Talk, token, tool: str, **arguments) -> int:
    meta = {"progressToken": token}
    return talk.post("tools/call", {"name": tool, "arguments": arguments, "_meta": meta})


@pytest.fixture
def patched(connect, monkeypatch):
    """Start the same server after a statement that changes it."""

    def start(statement: str) -> Talk:
        code = f"import sys; sys.path.insert(0, {str(Path(cao.__file__).parent)!r}); import cao; "
        code += f"{statement}; sys.exit(cao.main(['mcp']))"
        monkeypatch.setattr("conftest.CAO", [CAO[0], "-c", code])
        return connect()

    return start


@pytest.fixture
def quick(patched):
    """Start the same server with another time between two words of progress than its own."""
    return lambda seconds: patched(f"cao.PROGRESS_S = {seconds}")


@pytest.mark.tmux
def test_progress_comes_with_the_callers_token_and_ends_with_the_answer(quick):
    talk, every_s = quick(1.0), 1.0
    job = {"target": "demo", "task": "demo: sleep 3.5; say done"}
    tokens = ["tok-\u03b1", 7, 0, "", "7"]
    keys = [post_with_token(talk, token, "handoff", **job) for token in tokens]
    keys.append(talk.post_call("handoff", **job))
    for key in keys:
        assert talk.answer(key)["result"]["structuredContent"]["outcome"] == "done"
    for token, key in zip(tokens, keys):
        notes = progress_of(talk, token)
        at = [0.0, *(note["progress"] for note in notes)]
        assert all(later - sooner >= every_s * 0.9 for sooner, later in zip(at, at[1:]))
        assert any("working" in note["message"] for note in notes)
        order = [m.get("id", m.get("params", {}).get("progressToken")) for m in talk.seen]
        assert talk.seen.index(talk.told(key)[0]) > order.index(token)
    count = sum(len(progress_of(talk, token)) for token in tokens)
    assert sum(m.get("method") == "notifications/progress" for m in talk.seen) == count
    talk.is_quiet()


@pytest.mark.tmux
def test_progress_rises_and_stops_for_a_cancelled_call(quick):
    talk = quick(0.1)
    task = talk.data("assign", target="demo", task="demo: sleep 2.5; say done")["task"]
    keys = [post_with_token(talk, token, "wait", tasks=[task]) for token in (0, 1)]
    until(lambda: talk.read() and len(progress_of(talk, 0)) >= 3)
    talk.notify("notifications/cancelled", {"requestId": keys[0]})
    talk.request("ping")  # what was on its way has come by now, but for one note in the making
    cancelled_at = len(progress_of(talk, 0))
    assert talk.answer(keys[1])["result"]["structuredContent"]["outcome"] == "done"
    assert len(progress_of(talk, 0)) <= cancelled_at + 1
    notes = [note["progress"] for note in progress_of(talk, 1)]
    assert len(notes) > 4
    assert notes == sorted(set(notes))
    assert talk.told(keys[0]) == []
    talk.is_quiet()


# ---- cancellation ----


@pytest.mark.tmux
def test_a_cancelled_handoff_is_not_answered_and_its_worker_lives_on(talk, place):
    key = talk.post_call("handoff", target="demo", task="demo: sleep 1.5; say still here")
    (session,) = until(place.live, lambda names: len(names) == 1)
    place.until_state(session, "working")
    talk.notify("notifications/cancelled", {"requestId": key, "reason": "the person pressed Esc"})
    said = text(talk.call("list_sessions"))  # the very next result
    task = place.state(session)["task"]
    assert said.startswith(f"The call you cancelled left: {task}.")
    assert "wait gets the result" in said
    assert "stop_session" in said
    assert "you cancelled" not in text(talk.call("list_sessions"))  # once is enough
    result = talk.first("wait")
    assert result["answer"] == "still here"
    assert talk.told(key) == []


@pytest.mark.tmux
def test_a_handoff_cancelled_at_once_is_an_assign(talk, place):
    key = talk.post_call("handoff", target="demo", task="demo: say made anyway")
    talk.notify("notifications/cancelled", {"requestId": key})
    until(place.live, lambda names: len(names) == 1)
    said = until(lambda: text(talk.call("wait")), lambda said: "made anyway" in said)
    assert "Result of" in said
    assert talk.told(key) == []


@pytest.mark.tmux
def test_only_the_call_with_the_very_id_is_cancelled(talk, place):
    task = talk.data("assign", target="demo", task="demo: sleep 1.5; say here")["task"]
    for key, other in ((17, "17"), ("18", 18)):
        talk.send(call(key, "wait", tasks=[task]))
        talk.notify("notifications/cancelled", {"requestId": other})
    for key in (17, "18"):
        assert talk.answer(key)["result"]["structuredContent"]["results"][0]["answer"] == "here"


def test_cancelling_what_is_done_is_silent(steady):
    key = steady.post_call("list_sessions")
    steady.answer(key)
    steady.notify("notifications/cancelled", {"requestId": key})
    steady.is_quiet()
    steady.send(call(key, "list_sessions"))  # and the id may be used again
    steady.read()
    assert len(steady.told(key)) == 2


def frozen(talk: Talk, what) -> None:
    """Let something happen, and a cancellation arrive, while the server cannot run."""
    os.kill(talk.process.pid, signal.SIGSTOP)
    try:
        what()
    finally:
        os.kill(talk.process.pid, signal.SIGCONT)


@pytest.mark.tmux
@pytest.mark.parametrize("named", [False, True], ids=["wait", "handoff"])
def test_a_result_that_comes_with_the_cancellation_is_not_lost(talk, place, named):
    script = "demo: sleep 3; say precious"
    if named:
        key = talk.post_call("handoff", target="demo", task=script)
    else:
        talk.call("assign", target="demo", task=script)
        key = talk.post_call("wait")
    (session,) = until(place.live, lambda names: len(names) == 1)
    place.until_state(session, "working")
    talk.request("ping")

    def cancel_when_done() -> None:
        place.until_state(session, "idle")
        talk.notify("notifications/cancelled", {"requestId": key})

    frozen(talk, cancel_when_done)
    said = text(talk.call("wait"))
    # Where the call had ended first, its own answer may be written after that of `wait`.
    until(lambda: "precious" in said or (talk.request("ping"), talk.told(key))[1])


@pytest.mark.tmux
def test_a_message_that_comes_with_the_cancellation_is_not_lost(talk, place):
    talk.call("assign", target="demo", task="demo: sleep 0.3; tell precious; sleep 30")
    key = talk.post_call("wait")
    (client,) = [name for name in place.store.all_sessions() if name not in place.live()]
    talk.request("ping")

    def cancel_when_told() -> None:
        until(lambda: os.listdir(place.home / "sessions" / client / "inbox" / "new"))
        talk.notify("notifications/cancelled", {"requestId": key})

    frozen(talk, cancel_when_told)
    said = text(talk.call("wait", timeout_s=0.5))
    assert "precious" in said or talk.told(key)


@pytest.mark.tmux
def test_a_question_that_comes_with_the_cancellation_is_not_lost(talk, place):
    talk.call("assign", target="demo", task="demo: sleep 0.3; ask Precious?|yes|no")
    key = talk.post_call("wait")
    (session,) = place.live()
    talk.request("ping")

    def cancel_when_asked() -> None:
        place.until_state(session, "asking")
        talk.notify("notifications/cancelled", {"requestId": key})

    frozen(talk, cancel_when_asked)
    said = text(talk.call("wait", timeout_s=0.5))
    assert "Precious?" in said or talk.told(key)


# ---- the end ----


ENDS = [
    "at the start", "idle", "in the middle of a line",
    pytest.param("in a call", marks=pytest.mark.tmux),
]  # fmt: skip


@pytest.mark.parametrize("how", ENDS)
def test_the_end_of_input_ends_it_at_once_with_status_0(connect, place, how):
    talk = connect(init=how != "at the start")
    if how == "in the middle of a line":
        talk.write(b'{"jsonrpc":"2.0","id":1,"meth')
    if how == "in a call":
        begin_long_call(talk, place)
    assert talk.end() == 0
    assert leftovers(place) == []
    if how == "in a call":  # it is the worker that goes on
        (session,) = place.live()
        assert place.state(session)["state"] == "working"


def begin_long_call(talk: Talk, place) -> None:
    talk.post_call("handoff", target="demo", task="demo: sleep 60")
    (session,) = until(place.live, lambda names: len(names) == 1)
    place.until_state(session, "working")
    talk.request("ping")


def leftovers(place) -> list:
    """Return the FIFOs of waits and the processes of `cao mcp` that are still there."""
    sessions = place.home / "sessions"
    fifos = [str(p) for p in sessions.glob("*/*") if p.is_fifo() and p.name != "wake"]
    fifos += [str(p) for p in place.home.glob("*") if p.is_fifo()]
    return fifos + [pid for pid in place.pids() if b"mcp" in cmdline(pid).split(b"\0")]


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize(("number", "how"), [
    (signal.SIGTERM, "idle"), (signal.SIGINT, "idle"), (signal.SIGHUP, "idle"),
    pytest.param(signal.SIGTERM, "in a call", marks=pytest.mark.tmux),
])  # fmt: skip
def test_a_signal_ends_it_at_once_with_status_0(connect, place, how, number):
    talk = connect()
    if how == "in a call":
        begin_long_call(talk, place)
    talk.process.send_signal(number)
    assert talk.process.wait(LONG_S) == 0
    assert leftovers(place) == []
    assert len(place.live()) == (how == "in a call")


def test_a_signal_ends_it_while_nobody_reads_what_it_writes(talk):
    sender = send_beside(talk, lines(*(request(n, "tools/list") for n in range(40))))
    until(lambda: unread(talk), lambda size: size > 30_000)
    talk.process.send_signal(signal.SIGTERM)
    assert talk.process.wait(LONG_S) == 0
    sender.join()
    talk.process.stdout.close()  # the last line was cut off in the middle
    talk.buffer = b""


def test_a_client_that_closes_our_output_ends_us_without_a_traceback(talk):
    talk.process.stdout.close()
    talk.send(request(1, "ping"))
    assert talk.process.wait(LONG_S) == 0


@pytest.mark.tmux
def test_a_client_that_closes_our_output_in_a_call_ends_us_with_its_answer(talk, place):
    talk.post_call("handoff", target="demo", task="demo: sleep 0.5; say nobody hears")
    until(place.live, lambda names: len(names) == 1)
    talk.process.stdout.close()
    assert talk.process.wait(LONG_S) == 0


# ---- 2026-07-28: no handshake ----


def modern(talk: Talk, method: str, meta=None, **params) -> dict:
    return talk.request(method, {**params, "_meta": {**ENVELOPE, **(meta or {})}})


def test_discover_says_who_we_are_without_a_handshake(raw):
    result = modern(raw, "server/discover")["result"]
    assert result["supportedVersions"] == [MODERN, *LEGACY]
    assert set(result["capabilities"]) == {"tools", "prompts", "resources"}
    assert result["resultType"] == "complete"
    assert (result["ttlMs"] >= 0, result["cacheScope"]) == (True, "private")
    assert result["_meta"][META + "serverInfo"] == {"name": "cao", "version": cao.VERSION}
    assert "handoff" in result["instructions"]


TASKS = {"extensions": {META + "tasks": {}}}


@pytest.mark.parametrize(("capabilities", "versions"), [
    ({"elicitation": {}}, LEGACY),
    ({"elicitation": {"form": {}, "url": {}}, "sampling": {}}, LEGACY),  # Copilot CLI
    (TASKS, LEGACY),
    ({"roots": {}, "elicitation": {"form": {}}, **TASKS}, LEGACY),  # Claude Code
    ({"roots": {}, "sampling": {}, "elicitation": None}, [MODERN, *LEGACY]),
    ({"extensions": {"io.modelcontextprotocol/ui": {}}}, [MODERN, *LEGACY]),
    ({"extensions": None}, [MODERN, *LEGACY]),
], ids=repr)  # fmt: skip
def test_a_client_that_can_be_asked_is_sent_to_the_handshake(steady, capabilities, versions):
    """A question of 2026-07-28 cannot be withdrawn; and nobody is given a task's handle."""
    meta = {META + "clientCapabilities": capabilities}
    assert modern(steady, "server/discover", meta)["result"]["supportedVersions"] == versions
    refused = modern(steady, "tools/list", {**meta, META + "protocolVersion": "2099-01-01"})
    assert refused["error"]["data"]["supported"] == versions


def test_the_first_request_of_all_may_be_a_tool_call(raw):
    result = modern(raw, "tools/call", name="list_sessions", arguments={})["result"]
    assert result["resultType"] == "complete"
    assert result["_meta"][META + "serverInfo"]["name"] == "cao"
    assert "ttlMs" not in result
    failed = modern(raw, "tools/call", name="read_session", arguments={})["result"]
    assert (failed["resultType"], failed["isError"]) == ("complete", True)


def test_the_modern_list_is_the_same_with_what_its_version_wants(raw):
    listed = modern(raw, "tools/list")["result"]
    raw.send(hello())
    raw.answer("hello")
    assert raw.request("tools/list")["result"]["tools"] == listed["tools"]
    assert (listed["resultType"], listed["cacheScope"]) == ("complete", "private")
    assert type(listed["ttlMs"]) is int


@pytest.mark.parametrize("capabilities", ["missing", None, 5, "x", []], ids=repr)
@pytest.mark.parametrize("method", ["server/discover", "tools/list", "tools/call"])
def test_a_modern_request_needs_the_clients_capabilities(steady, method, capabilities):
    meta = {META + "protocolVersion": MODERN, META + "clientCapabilities": capabilities}
    if capabilities == "missing":
        del meta[META + "clientCapabilities"]
    answer = steady.request(method, {"name": "list_sessions", "arguments": {}, "_meta": meta})
    assert (code(answer), "clientCapabilities" in answer["error"]["message"]) == (-32602, True)


@pytest.mark.parametrize("info", ["missing", None, 5, {}, {"name": "x", "version": "1"}], ids=repr)
def test_a_modern_client_need_not_say_who_it_is(steady, info):
    meta = {} if info == "missing" else {META + "clientInfo": info}
    assert "result" in modern(steady, "tools/call", meta, name="list_sessions", arguments={})


@pytest.mark.parametrize(
    "method", ["server/discover", "tools/list", "tools/call", "ping", "no/such/method"]
)
@pytest.mark.parametrize("version", ["2099-01-01", "2025-11-25", ""])
def test_another_version_is_refused_with_those_we_know(steady, method, version):
    meta = {**ENVELOPE, META + "protocolVersion": version}
    error = steady.request(method, {"_meta": meta})["error"]
    assert error["code"] == -32022
    assert error["data"] == {"supported": [MODERN, *LEGACY], "requested": version}


@pytest.mark.parametrize("version", [None, 5, 1.5, True, [], {}], ids=repr)
def test_a_version_that_is_no_string_is_a_wrong_param(steady, version):
    answer = steady.request(
        "tools/list", {"_meta": {**ENVELOPE, META + "protocolVersion": version}}
    )
    assert code(answer) == -32602


@pytest.mark.parametrize("method", [
    "initialize", "ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe",
    "subscriptions/listen", "tasks/list", "tasks/result", "tasks/get", "tasks/update",
    "tasks/cancel", "no/such/method",
])  # fmt: skip
@pytest.mark.parametrize("capabilities", [{}, TASKS], ids=["plain", "tasks"])
def test_what_the_modern_version_does_not_have_is_not_there(steady, method, capabilities):
    answer = modern(steady, method, {META + "clientCapabilities": capabilities},
                    protocolVersion=MODERN, capabilities={},
                    clientInfo={"name": "x", "version": "1"})  # fmt: skip
    assert code(answer) == -32601


def test_modern_faults_have_the_codes_of_their_version(steady):
    assert code(modern(steady, "tools/call", name="no_such_tool", arguments={})) == -32602
    assert code(modern(steady, "tools/call")) == -32602
    assert code(modern(steady, "tools/list", cursor="abc")) == -32602


def test_both_eras_are_served_in_one_process(raw):
    assert "result" in modern(raw, "server/discover")
    raw.send(hello("2025-06-18"))
    assert raw.answer("hello")["result"]["protocolVersion"] == "2025-06-18"
    assert "resultType" not in raw.request("tools/list")["result"]
    assert modern(raw, "tools/list")["result"]["resultType"] == "complete"
    assert raw.request("ping")["result"] == {}
    assert code(modern(raw, "ping")) == -32601
    assert "resultType" not in raw.call("list_sessions")


@pytest.mark.tmux
def test_a_modern_client_has_its_name_from_its_first_request(raw, place):
    me = {META + "clientInfo": {"name": "Modern Client", "version": "1"}}
    answer = modern(
        raw, "tools/call", me, name="handoff", arguments={"target": "demo", "task": "demo: say hi"}
    )
    assert answer["result"]["structuredContent"]["results"][0]["answer"] == "hi"
    assert [name for name in place.store.all_sessions() if name.startswith("modern-client-")]


# ---- the table of tools ----


def test_the_whole_list_is_small_enough_for_every_agents_context(steady):
    steady.request("tools/list")
    assert len(json.dumps(steady.seen[-1], ensure_ascii=False).encode()) <= 10_000


def test_every_tool_says_what_it_is(steady):
    for tool in steady.request("tools/list")["result"]["tools"]:
        assert 0 < len(tool["title"]) < 40
        assert 40 < len(tool["description"].encode()) < 2048
        hints = tool["annotations"]
        assert {name for name, value in hints.items() if type(value) is bool} == {
            "readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint",
        }  # fmt: skip
        assert not (hints["readOnlyHint"] and hints["destructiveHint"])
        schema = tool["inputSchema"]
        assert (schema["type"], schema["additionalProperties"]) == ("object", False)
        assert set(schema.get("required", ())) <= set(schema["properties"])
        for name, rule in schema["properties"].items():
            assert rule["description"], (tool["name"], name)
            assert rule["type"] in ("string", "boolean", "number", "array"), (tool["name"], name)
        assert tool["outputSchema"]["type"] == "object"


def test_the_tools_are_those_of_the_design_always_in_the_same_order(connect):
    lists = [connect().request("tools/list")["result"] for _ in range(2)]
    assert lists[0] == lists[1]
    options = ["cwd", "worktree", "check", "check_retries", "timeout_s", "max_tokens"]
    options += ["keep", "request_id"]
    assert [(t["name"], list(t["inputSchema"]["properties"])) for t in lists[0]["tools"]] == [
        ("handoff", ["target", "task", *options]),
        ("assign", ["target", "task", *options]),
        ("send_message", ["target", "message"]),
        ("wait", ["tasks", "all", "timeout_s"]),
        ("list_sessions", ["all"]),
        ("read_session", ["session", "lines"]),
        ("answer", ["session", "answer", "question"]),
        ("stop_session", ["session", "interrupt"]),
    ]  # fmt: skip


def test_the_tools_that_only_read_are_marked_and_the_one_that_ends(steady):
    hints = {t["name"]: t["annotations"] for t in steady.request("tools/list")["result"]["tools"]}
    assert [n for n, h in hints.items() if h["readOnlyHint"]] == ["list_sessions", "read_session"]
    assert [n for n, h in hints.items() if h["destructiveHint"]] == ["stop_session"]


# ---- prompts and resources ----


def test_the_prompt_makes_a_supervisor_and_holds_the_goal(steady):
    (prompt,) = steady.request("prompts/list")["result"]["prompts"]
    assert prompt["name"] == "supervisor"
    assert [a["name"] for a in prompt["arguments"]] == ["goal"]
    for goal in ("port the parser ☃", ""):
        got = steady.request("prompts/get", {"name": "supervisor", "arguments": {"goal": goal}})[
            "result"
        ]
        (message,) = got["messages"]
        assert message["role"] == "user"
        assert len(message["content"]["text"]) > 200
        assert message["content"]["text"].endswith(goal or "\n") or not goal
    assert "result" in steady.request("prompts/get", {"name": "supervisor"})


@pytest.mark.parametrize("params", [
    {}, {"name": None}, {"name": 5}, {"name": "nobody"}, {"name": ["supervisor"]},
    {"name": "supervisor", "arguments": None}, {"name": "supervisor", "arguments": []},
    {"name": "supervisor", "arguments": {"goal": 5}},
    {"name": "supervisor", "arguments": {"goal": None}},
], ids=repr)  # fmt: skip
def test_a_prompt_that_is_not_there_or_a_wrong_argument_is_a_wrong_param(steady, params):
    assert code(steady.request("prompts/get", params)) == -32602


def test_a_broken_supervisor_profile_is_an_error_that_names_it(talk, place):
    place.profile("supervisor", "---\nname: x\nthis is no pair\n---\n")
    answer = talk.request("prompts/get", {"name": "supervisor"}, timeout_s=3)
    assert "supervisor.md" in answer["error"]["message"]
    talk.is_quiet()


def test_a_fault_that_nothing_foresaw_is_an_error_and_ends_no_server(patched):
    talk = patched("cao.Orchestrator.list_sessions = lambda *_: 1 / 0")
    answer = talk.request("resources/read", {"uri": "cao://sessions"}, timeout_s=3)
    assert answer["error"]["code"] == -32603
    assert "ZeroDivisionError" in answer["error"]["message"]
    assert b"Traceback" in talk.process.stderr.read1()
    talk.is_quiet()


def test_what_the_machine_refuses_is_an_error_that_names_the_file(talk, place):
    (place.home / "live").rmdir()
    (place.home / "live").touch()
    answer = talk.request("resources/read", {"uri": "cao://sessions"}, timeout_s=3)
    assert answer["error"]["code"] == -32603
    assert f"{place.home}/live: Not a directory" in answer["error"]["message"]
    talk.is_quiet()


@pytest.mark.tmux
@pytest.mark.parametrize("told_roots", [False, True])
def test_a_server_whose_directory_was_removed_gives_work_elsewhere_and_there_again(
    place, rooted, told_roots
):
    start, other = place.folder / "start", place.folder / "other"
    start.mkdir()
    other.mkdir()
    talk = rooted([uri(start)] if told_roots else None, start)
    start.rmdir()
    for tool in ("list_sessions", "wait"):
        assert not talk.call(tool).get("isError")
    elsewhere = talk.data("assign", target="demo", task="hello", cwd=str(other))
    assert elsewhere["cwd"] == str(other.resolve())
    refused = text(talk.call("assign", target="demo", task="hello"))
    assert f"{start}/ is no directory that can be entered" in refused
    start.symlink_to(other)  # an agent may have put that there
    assert "the current directory is gone" in text(talk.call("assign", target="demo", task="hello"))
    start.unlink()
    start.mkdir()
    assert talk.data("assign", target="demo", task="hello")["cwd"] == str(start.resolve())


@pytest.mark.tmux
def test_resources_are_the_sessions_and_each_whole_answer(connect):
    talk = connect("codex-mcp-client")
    listed = talk.request("resources/list")["result"]["resources"]
    assert [resource["uri"] for resource in listed] == ["cao://sessions"]
    (template,) = talk.request("resources/templates/list")["result"]["resourceTemplates"]
    whole = "0123456789" * 2000
    result = talk.first("handoff", target="demo", task=f"demo: echo\n{whole}")
    assert len(result["answer"]) < len(whole)
    uri = template["uriTemplate"].replace("{task}", result["task"])
    (content,) = talk.request("resources/read", {"uri": uri})["result"]["contents"]
    assert (content["uri"], content["mimeType"], content["text"]) == (uri, "text/plain", whole)
    (content,) = talk.request("resources/read", {"uri": "cao://sessions"})["result"]["contents"]
    assert result["session"] in [view["session"] for view in json.loads(content["text"])]


BAD_URIS = [
    None, 5, [], {}, "", "x", "file:///etc/passwd", "cao://", "cao://answers/", "cao://answers/x",
    "cao://answers/../../../etc/passwd", "cao://answers/demo-2222.2222", "cao://answers/demo-2222.2222\n",
    "cao://answers/\x00", "cao://answers/\ud800", "cao://answers/" + "x" * 5000, "cao://answers/a/b.c",
]  # fmt: skip


@pytest.mark.parametrize("uri", BAD_URIS, ids=lambda uri: repr(uri)[:40])
def test_a_resource_that_is_not_there_is_an_error_of_its_version(steady, uri):
    assert code(steady.request("resources/read", {"uri": uri}, timeout_s=3)) in (-32002, -32602)
    assert code(modern(steady, "resources/read", uri=uri)) == -32602


def test_an_unknown_resource_is_named(steady):
    error = steady.request("resources/read", {"uri": "cao://nothing"})["error"]
    assert (error["code"], error["data"]) == (-32002, {"uri": "cao://nothing"})
    assert "cao://nothing" in error["message"]
    assert modern(steady, "resources/read", uri="cao://nothing")["error"]["data"] == {
        "uri": "cao://nothing"
    }


def test_the_modern_lists_say_how_long_they_hold(steady):
    for method, params in (
        ("prompts/list", {}), ("resources/list", {}), ("resources/templates/list", {}),
        ("resources/read", {"uri": "cao://sessions"}),
    ):  # fmt: skip
        result = modern(steady, method, **params)["result"]
        assert (type(result["ttlMs"]), result["cacheScope"]) == (int, "private")
    assert "ttlMs" not in modern(steady, "prompts/get", name="supervisor")["result"]


@pytest.mark.tmux
@pytest.mark.parametrize("capabilities", [{}, TASKS], ids=["plain", "tasks"])
def test_a_modern_handoff_waits(raw, capabilities):
    answer = modern(raw, "tools/call", {META + "clientCapabilities": capabilities}, name="handoff",
                    arguments={"target": "demo", "task": "demo: say waited"})  # fmt: skip
    result = answer["result"]
    assert (result["resultType"], "waited" in text(result)) == ("complete", True)


# ---- the tools, against the demo agent ----


def given(talk: Talk, script: str, **more) -> tuple:
    """Assign a script to a new demo agent; return the task and its session."""
    result = talk.call("assign", target="demo", task=script, **more)
    assert not result.get("isError"), text(result)
    task, session = result["structuredContent"]["task"], result["structuredContent"]["session"]
    assert task.startswith(f"{session}.")
    return task, session


def collect(talk: Talk, enough: int, kind: str = "results") -> list:
    """Wait until so many results (or messages, or questions) have come; return them."""
    found: list = []
    until(lambda: found.extend(talk.data("wait").get(kind, ())) or len(found) >= enough)
    return found


@pytest.mark.tmux
def test_handoff_gives_the_whole_answer_in_text_and_data(talk, place):
    result = talk.call("handoff", target="demo", task="demo: say one; say two")
    data = result["structuredContent"]
    assert data["outcome"] == "done"
    (found,) = data["results"]
    assert (found["outcome"], found["answer"], found["source"]) == ("done", "one\ntwo", "hook:Stop")
    assert text(result).endswith("one\ntwo")
    assert found["task"] in text(result)
    assert json.loads(Path(found["file"]).read_text())["answer"] == "one\ntwo"


@pytest.mark.tmux
def test_handoff_to_a_session_goes_on_with_its_conversation(talk, place):
    first = talk.first("handoff", target="demo", task="hello")
    again = talk.data("handoff", target=first["session"], task="demo: say again")
    assert (again["results"][0]["session"], again["results"][0]["answer"]) == (
        first["session"],
        "again",
    )
    assert place.live() == [first["session"]]


@pytest.mark.tmux
def test_a_task_that_fails_is_a_result_with_its_reason(talk):
    result = talk.call("handoff", target="demo", task="demo: exit 3")
    (found,) = result["structuredContent"]["results"]
    assert (found["outcome"], found["reason"], found["exit_status"]) == ("failed", "exited", 3)
    assert "exited" in text(result)
    assert "exit status 3" in text(result)


@pytest.mark.tmux
def test_assign_returns_before_the_worker_is_done_and_wait_gives_the_result_once(talk):
    task, _ = given(talk, "demo: sleep 1.5; say later")
    assert talk.data("wait", tasks=[task], timeout_s=0)["outcome"] == "running"
    result = talk.call("wait", tasks=[task])
    assert result["structuredContent"]["results"][0]["answer"] == "later"
    assert talk.data("wait")["outcome"] == "nothing"
    again = talk.data("wait", tasks=[task])  # by its name, as often as one likes
    assert again["results"][0]["answer"] == "later"


@pytest.mark.tmux
def test_wait_beside_an_assign_in_the_making_is_no_error(talk, place):
    for n in range(3):
        key = talk.post_call("assign", target="demo", task=f"demo: say {n}")
        while not talk.told(key):
            result = talk.call("wait", timeout_s=0)
            assert not result.get("isError"), text(result)


@pytest.mark.tmux
def test_wait_all_waits_for_the_last_and_wait_for_the_first(talk):
    slow, _ = given(talk, "demo: sleep 2; say slow")
    quick, _ = given(talk, "demo: say quick")
    first = talk.data("wait")
    assert ([r["task"] for r in first["results"]], first["running"]) == ([quick], [slow])
    assert slow in first["next"]
    both = talk.data("wait", tasks=[slow, quick], all=True)
    assert sorted(r["answer"] for r in both["results"]) == ["quick", "slow"]
    assert (both["outcome"], "running" in both) == ("done", False)


@pytest.mark.tmux
def test_wait_with_no_time_says_what_runs_and_what_to_do(talk):
    task, _ = given(talk, "demo: sleep 30")
    began = time.monotonic()
    result = talk.call("wait", timeout_s=0)
    assert time.monotonic() - began < LONG_S
    assert (result["structuredContent"]["outcome"], result["structuredContent"]["running"]) == (
        "running",
        [task],
    )
    assert f'Call wait with tasks ["{task}"]' in text(result)
    assert "stop_session" in text(result)


def test_wait_with_nothing_to_wait_for_says_so_at_once(steady):
    result = steady.call("wait", timeout_s=20)
    assert result["structuredContent"] == {"outcome": "nothing"}
    assert "Nothing is running" in text(result)


@pytest.mark.tmux
def test_two_questions_side_by_side_are_answered_each_by_its_session(talk):
    tasks = dict(
        [
            given(talk, "demo: ask Which name?|Aurora|Borealis"),
            given(talk, "demo: ask How many?|1|2|3"),
        ]
    )
    asked = {a["session"]: a for a in collect(talk, 2, "asking")}
    assert set(asked) == set(tasks.values())
    choice = {"Which name?": "Borealis", "How many?": "3"}
    for session, ask in asked.items():
        question = ask["question"]
        assert question["kind"] == "question"
        (option,) = [o for o in question["options"] if o[1] == choice[question["text"]]]
        done = talk.call("answer", session=session, answer=option[0])
        assert option[1] in done["structuredContent"]["answered"]
    results = talk.data("wait", tasks=list(tasks), all=True)["results"]
    assert sorted(r["answer"] for r in results) == ["3", "Borealis"]


@pytest.mark.tmux
def test_handoff_returns_early_with_a_question_and_the_words_to_go_on(talk):
    result = talk.call("handoff", target="demo", task="demo: ask Shall I?|Yes|No")
    data = result["structuredContent"]
    assert (data["outcome"], len(data["running"])) == ("asking", 1)
    session = data["asking"][0]["session"]
    assert "Shall I?" in text(result)
    assert "1: Yes" in text(result)
    assert f"Answer it with the tool answer, or cao answer {session} ANSWER" in text(result)
    assert data["asking"][0]["how"] in text(result)
    wrong = talk.call("answer", session=session, answer=" ")
    assert wrong["isError"]
    assert "1: Yes; 2: No" in text(wrong)
    talk.call("answer", session=session, answer="No")
    assert talk.first("wait", tasks=data["running"])["answer"] == "No"
    late = talk.call("answer", session=session, answer="No")
    assert late["isError"]
    assert "asks nothing now" in text(late)


@pytest.mark.tmux
def test_a_permission_is_refused_to_the_tool_with_words_that_say_what_to_do(talk, place):
    result = talk.call("handoff", target="demo", task="demo: permit rm -rf build|Yes|No")
    (ask,) = result["structuredContent"]["asking"]
    session = ask["session"]
    assert ask["question"]["kind"] == "permission"
    assert f"A person has to answer: cao answer {session}" in text(result)
    refused = talk.call("answer", session=session, answer="1")
    assert refused["isError"]
    assert "a person's to give" in text(refused)
    assert f"cao answer {session}" in text(refused)
    assert place.state(session)["state"] == "asking"
    place.ok("answer", session, "yes")  # the person does as the words say
    assert talk.first("wait")["answer"] == "Yes"


@pytest.mark.tmux
def test_a_long_command_is_whole_in_what_a_tool_returns(talk):
    command = "echo " + " ".join(f"word{n:03}" for n in range(375)) + " end"
    result = talk.call("handoff", target="demo", task=f"demo: permit {command}|Yes|No")
    (ask,) = result["structuredContent"]["asking"]
    assert ask["question"]["text"] == f"Bash: {command}"
    assert command in text(result)
    assert command in text(talk.call("read_session", session=ask["session"]))


@pytest.mark.tmux
def test_a_permission_may_be_answered_where_the_profile_says_so(talk, place):
    place.profile("trusted", "---\nprovider: demo\napprove: supervisor\n---\n")
    result = talk.call("handoff", target="trusted", task="demo: permit make build|Yes|No")
    (ask,) = result["structuredContent"]["asking"]
    for_ever = talk.call("answer", session=ask["session"], answer="always")
    assert for_ever["isError"]
    assert "`always` is a person's to say" in text(for_ever)
    assert not talk.call("answer", session=ask["session"], answer="yes").get("isError")
    (noted,) = map(json.loads, (place.home / "approvals.jsonl").read_text().splitlines())
    assert noted["by"].startswith("test-client-")
    assert talk.first("wait")["answer"] == "Yes"


@pytest.mark.tmux
def test_a_receipt_says_how_far_a_message_came(talk, place):
    task, session = given(talk, "demo: sleep 1.5; say first")
    place.until_state(session, "working")
    busy = talk.call("send_message", target=session, message="and more")
    assert (busy["structuredContent"]["to"], busy["structuredContent"]["step"]) == (
        session,
        "queued",
    )
    assert "queued" in text(busy)
    talk.call("wait", tasks=[task])
    place.until_state(session, "idle")
    idle = talk.data("send_message", target=session, message="good morning")
    assert (idle["step"], idle["exact"]) == ("taken", "exact")
    assert "Message from test-client-" in place.screen(session)


@pytest.mark.tmux
def test_a_workers_message_comes_before_its_result(talk):
    result = talk.call("handoff", target="demo", task="demo: tell half way; sleep 1.5; say done")
    data = result["structuredContent"]
    (message,) = data["messages"]
    assert (message["kind"], message["text"]) == ("message", "half way")
    assert f"Message from {message['sender']}:\nhalf way" in text(result)
    assert data["outcome"] == "running"
    assert talk.first("wait", tasks=data["running"])["answer"] == "done"


@pytest.mark.tmux
def test_read_session_shows_screen_state_and_evidence(talk, place):
    session = talk.first("handoff", target="demo", task="demo: say visible")["session"]
    place.until_state(session, "idle")
    until(
        lambda: (
            "demo>" in place.screen(session).splitlines()[-1:][0]
            or "demo>" in place.screen(session)
        )
    )
    result = talk.call("read_session", session=session)
    data = result["structuredContent"]
    assert (data["session"], data["state"], data["provider"]) == (session, "idle", "demo")
    assert "* visible" in data["screen"]
    assert "* visible" in text(result)
    assert data["evidence"]
    short = talk.data("read_session", session=session, lines=1)["screen"]
    assert len(short.splitlines()) == 1


@pytest.mark.tmux
def test_list_sessions_shows_the_tree_what_each_asks_and_the_profiles(talk, place):
    place.profile("mine", "---\nprovider: demo\n---\n")
    task, session = given(talk, "demo: handoff demo {demo: ask Which colour?|red|blue}")
    below = until(place.live, lambda names: len(names) == 2)
    (inner,) = [name for name in below if name != session]
    place.until_state(inner, "asking")
    result = talk.call("list_sessions")
    views = result["structuredContent"]["sessions"]
    assert [(v["depth"], v["kind"]) for v in views] == [(0, "client"), (1, "agent"), (2, "agent")]
    assert [v["session"] for v in views[1:]] == [session, inner]
    assert (views[1]["task"], views[2]["questions"][0]["text"]) == (task, "Which colour?")
    assert f"    {inner}  asking" in text(result)
    assert "Which colour?" in text(result)
    assert {"mine", "demo", "claude", "codex", "developer"} <= set(
        result["structuredContent"]["profiles"]
    )


@pytest.mark.tmux
def test_a_worker_is_shown_whom_it_may_reach_and_nobody_else(connect, place):
    boss = place.ok("launch", "demo", "--detach").strip()
    stranger = place.ok("launch", "demo", "--detach").strip()
    worker, sibling = (
        place.ok("assign", "demo", "demo: sleep 60", CAO_SESSION=boss).partition(".")[0]
        for _ in range(2)
    )
    result = connect(CAO_SESSION=worker).call("list_sessions")
    views = result["structuredContent"]["sessions"]
    assert [v["session"] for v in views] == [boss, *sorted((worker, sibling))]
    assert stranger not in text(result)


@pytest.mark.tmux
def test_a_worker_outlives_the_folder_of_who_is_above_it_in_the_list(talk, place):
    _, session = given(talk, "demo: sleep 60")
    (client,) = [n for n in place.store.all_sessions() if place.store.load(n).kind == "client"]
    place.ok("ls")  # as a person, from a shell: another client
    shutil.rmtree(place.home / "sessions" / client)
    views = json.loads(place.ok("ls", "--json"))
    assert [(v["session"], v["depth"]) for v in views if v["kind"] == "agent"] == [(session, 0)]


@pytest.mark.tmux
def test_a_session_of_another_format_is_listed_as_unknown_with_the_reason(talk, place):
    _, session = given(talk, "demo: sleep 60")
    place.until_state(session, "working")
    path = place.home / "sessions" / session / "session.json"
    record = json.loads(path.read_text())
    other = json.dumps({**record, "format": 99, "version": "9.9"})
    place.store.write(str(path), other)  # whole: others read it too
    assert f"{session}  unknown for 0.0 s   ()  session {session} was made by cao 9.9" in text(
        talk.call("list_sessions")
    )
    place.store.write(str(path), json.dumps(record))


@pytest.mark.tmux
def test_a_question_far_below_is_told_with_the_way_to_it(talk, place):
    result = talk.call("handoff", target="demo", task="demo: handoff demo {demo: ask Deep?|yes|no}")
    (ask,) = result["structuredContent"]["asking"]
    assert len(ask["path"]) == 2
    assert ask["path"][-1] == ask["session"]
    assert f"by way of {' > '.join(ask['path'])}" in text(result)
    talk.call("answer", session=ask["session"], answer="yes")
    result = talk.first("wait")
    assert result["outcome"] == "done"
    # Typed as a result, or read by its own wait, which may not have seen the question.
    assert "Result of" in result["answer"] or result["answer"] == "yes"


@pytest.mark.tmux
def test_stop_session_interrupts_a_turn_and_then_ends_the_session(talk, place):
    task, session = given(talk, "demo: sleep 60")
    place.until_state(session, "working")
    done = talk.data("stop_session", session=session, interrupt=True)
    assert (done["did"], done["state"]) == ("interrupted", "idle")
    assert talk.first("wait", tasks=[task])["outcome"] == "interrupted"
    idle = talk.data("stop_session", session=session, interrupt=True)
    assert idle["did"] == "nothing: no turn was running"
    second = talk.data("assign", target=session, task="demo: sleep 60")["task"]
    assert talk.data("stop_session", session=session)["did"] == "ended"
    until(place.live, [])
    assert talk.first("wait", tasks=[second])["outcome"] == "stopped"
    assert talk.data("stop_session", session=session)["did"] == "nothing: it had ended"
    assert session not in text(talk.call("list_sessions"))
    assert session in text(talk.call("list_sessions", all=True))


@pytest.mark.tmux
def test_a_client_stops_and_answers_only_its_own_workers(connect, place):
    _, session = given(connect("first-client"), "demo: ask Mine?|yes|no")
    place.until_state(session, "asking")
    other = connect("second-client")
    given(other, "demo: sleep 60")  # who has workers of its own is no nearer to this one
    for tool, more in (
        ("stop_session", {}),
        ("stop_session", {"interrupt": True}),
        ("answer", {"answer": "yes"}),
    ):
        refused = other.call(tool, session=session, **more)
        assert refused["isError"]
        assert f"{session} is not your worker" in text(refused)
    assert place.state(session)["state"] == "asking"


@pytest.mark.tmux
def test_the_same_request_id_is_the_same_task_and_another_text_an_error(talk, place):
    first, session = given(talk, "demo: say once", request_id="r1")
    assert "earlier" not in talk.seen[-1]["result"]["structuredContent"]
    assert given(talk, "demo: say once", request_id="r1") == (first, session)
    assert place.live() == [session]
    before = re.compile(rf"Task {first} was given .* ago with this request_id, and not again now")
    assert before.match(talk.seen[-1]["result"]["structuredContent"]["earlier"])
    assert before.match(text(talk.seen[-1]["result"]))
    result = talk.call("handoff", target="demo", task="demo: say once", request_id="r1")
    assert result["structuredContent"]["results"][0]["task"] == first
    assert before.match(result["structuredContent"]["earlier"])
    assert before.match(text(result))
    other = talk.call("assign", target="demo", task="demo: say twice", request_id="r1")
    assert other["isError"]
    assert first in text(other)
    assert "new request_id" in text(other)
    second, _ = given(talk, "demo: say once", request_id="r2")
    assert second != first


@pytest.mark.tmux
def test_one_request_id_given_many_times_at_once_is_one_task(talk, place):
    job = {"target": "demo", "task": "demo: say once", "request_id": "r1"}
    keys = [talk.post_call("assign", **job) for _ in range(8)]
    assert len({talk.answer(key)["result"]["structuredContent"]["task"] for key in keys}) == 1
    assert len(place.live()) == 1


@pytest.mark.tmux
def test_before_the_clients_own_limit_handoff_says_running_and_wait_gets_the_answer(connect):
    talk = connect(CAO_CALL_CEILING_S="1")
    result = talk.call("handoff", target="demo", task="demo: sleep 2.5; say at last")
    data = result["structuredContent"]
    assert (data["outcome"], "results" in data) == ("running", False)
    assert not result.get("isError")
    assert f'Call wait with tasks ["{data["running"][0]}"]' in data["next"]
    assert data["next"] in text(result)
    again = {"tasks": data["running"], "timeout_s": 600}
    found = until(lambda: talk.data("wait", **again),
                  lambda found: found["outcome"] != "running")  # fmt: skip
    assert found["results"][0]["answer"] == "at last"


@pytest.mark.tmux
@pytest.mark.parametrize(("name", "most"), [
    ("test-client", cao.ANSWER_CHARS), *cao.ANSWER_CHARS_BY_CLIENT.items(),
])  # fmt: skip
def test_an_answer_over_the_clients_limit_is_cut_only_for_the_client(connect, name, most):
    talk = connect(name)
    whole = "".join(f"line {n}: ünïcödé\n" for n in range(most // 10))[: most + 500].rstrip("\n")
    result = talk.call("handoff", target="demo", task=f"demo: echo\n{whole}")
    (found,) = result["structuredContent"]["results"]
    assert found["answer"] == whole[:most]
    assert f"first {most} of {len(whole)} characters" in found["cut"]
    assert found["file"] in found["cut"]
    assert found["cut"] in text(result)
    assert whole[:most] in text(result)
    assert whole[: most + 1] not in text(result)
    assert json.loads(Path(found["file"]).read_text())["answer"] == whole
    short = talk.call(
        "handoff", target=found["session"], task=f"demo: echo\n{whole[:most].strip()}"
    )
    (found,) = short["structuredContent"]["results"]
    assert (found["answer"], "cut" in found) == (whole[:most].strip(), False)


def test_what_earlier_turns_said_is_told_too_and_cut_alike(place):
    result = cao.Result("a-2222.bcde", "a-2222", "done", answer="end", turns=("y" * 50, "z"))
    shown = cao.view_result(place.store, result, 20)
    first, second = shown["turns"]
    assert (first.split("\n")[0], second) == ("y" * 20, "z")
    assert f"the first 20 of 50 characters; all of it is in the file {shown['file']}" in first
    told = cao.render_result(result._replace(turns=tuple(shown["turns"])))
    assert told.startswith("Result of a-2222.bcde (done, 0.0 s):\nend\nIn the same task it also ")
    assert first in told


@pytest.mark.tmux
def test_all_that_one_wait_tells_is_within_the_clients_limit(connect, place):
    talk = connect("codex-mcp-client")
    most = cao.ANSWER_CHARS_BY_CLIENT["codex-mcp-client"]
    texts = {letter: letter * most for letter in "abc"}
    tasks = [
        talk.data("assign", target="demo", task=f"demo: echo\n{texts[x]}")["task"] for x in "ab"
    ]
    small = talk.data("assign", target="demo", task="demo: say small")["task"]
    until(lambda: all(map(place.store.load_result, [*tasks, small])))
    client = place.store.load(place.store.session_of(small)).supervisor
    place.store.put(cao.Message("1-x", "message", "demo-2222", client, texts["c"]))
    result = talk.call("wait", tasks=[], all=True)
    found = result["structuredContent"]
    answers = {r["task"]: r["answer"] for r in found["results"]}
    assert answers[small] == "small"
    share = (most - len("small")) // 3
    for task, letter in zip(tasks, "ab"):
        assert answers[task] == texts[letter][:share]
    (message,) = found["messages"]
    cut, _, note = message["text"].partition("\n")
    assert cut == texts["c"][:share]
    assert cut in text(result)
    assert texts["c"][: share + 1] not in text(result)
    file = Path(re.search(r"is in the file (\S+), key `text`", note)[1])
    until(file.exists)  # it is moved there once the line was written
    assert json.loads(file.read_text())["text"] == texts["c"]


@pytest.mark.parametrize(("sizes", "most", "cut_at"), [
    ([], 10, 10), ([5], 10, 10), ([5, 5], 10, 10), ([11], 10, 10), ([6, 6], 10, 5),
    ([1, 20, 20], 10, 4), ([20, 1, 3], 10, 6), ([9] * 3, 2, 0),
])  # fmt: skip
def test_texts_that_are_too_long_share_what_the_short_ones_leave(sizes, most, cut_at):
    assert cao.longest_that_fits(sizes, most) == cut_at


# ---- a model that sees the data alone ----


class Obedient:
    """A model that sees only `structuredContent` and does what `next` says, word for word;
    where that names no tool it has ended. The person it is to tell does as it is told."""

    def __init__(self, talk: Talk, place, person=True) -> None:
        self.talk, self.place, self.person, self.calls = talk, place, person, 0

    def call(self, tool: str, **arguments) -> dict:
        self.calls += 1
        assert self.calls <= 10
        return self.talk.data(tool, **arguments)

    def run(self, tool: str, **arguments) -> dict:
        data = self.call(tool, **arguments)
        while said := data.get("next"):
            if "you may end your turn" in said:
                break
            if asked := re.search(r"Question (\S+): .*?the tool answer, or cao answer (\S+)", said):
                (ask,) = [a for a in data["asking"] if a["question"]["id"] == asked[1]]
                option = ask["question"]["options"][0][0]
                data = self.call("answer", session=asked[2], question=asked[1], answer=option)
            elif told := re.search(r"A person has to answer: (cao answer \S+ yes)", said):
                if self.person:
                    self.place.ok(*told[1].split()[1:])
                data = self.wait(said)
            else:
                data = self.wait(said)
        return data

    def wait(self, said: str) -> dict:
        """Call wait as a sentence says, once."""
        tasks = re.search(r"[Cc]all wait with tasks (\[.*?\])", said)
        assert tasks, said
        return self.call("wait", tasks=json.loads(tasks[1]))


@pytest.mark.tmux
@pytest.mark.parametrize("tool", ["handoff", "assign"])
@pytest.mark.parametrize(("task", "outcome", "answer"), [
    ("demo: say fine", "done", "fine"),
    ("demo: sleep 3; say at last", "done", "at last"),
    ("demo: tell half way; sleep 1; say whole", "done", "whole"),
    ("demo: ask Which?|red|blue", "done", "red"),
    ("demo: ask One?|a|b; ask Two?|c|d", "done", "a\nc"),
    ("demo: handoff demo {demo: ask Deep?|yes|no}", "done", "Result of"),
    ("demo: permit make all|Yes|No", "done", "Yes"),
    ("demo: assign demo {demo: permit make a|Yes|No}; permit make b|Yes|No; gather", "done", "Yes"),
    ("demo: fail api_error", "failed", ""),
    ("demo: exit 3", "failed", ""),
    ("demo: sleep 90", "timeout", ""),
])  # fmt: skip
def test_an_obedient_model_reaches_an_answer_or_an_end(connect, place, tool, task, outcome, answer):
    talk = connect(CAO_CALL_CEILING_S="2")
    limit = {"timeout_s": 2} if outcome == "timeout" else {}
    data = Obedient(talk, place).run(tool, target="demo", task=task, **limit)
    assert data["outcome"] == outcome, data
    (result,) = data["results"]
    assert answer in result["answer"]
    assert result["cwd"] == str(place.work)


@pytest.mark.tmux
def test_an_obedient_model_gives_the_permission_that_is_its_to_give(talk, place):
    place.profile("trusted", "---\nprovider: demo\napprove: supervisor\n---\n")
    model = Obedient(talk, place, person=False)
    data = model.run("handoff", target="trusted", task="demo: permit make build|Yes|No")
    assert data["results"][0]["answer"] == "Yes"


@pytest.mark.tmux
@pytest.mark.parametrize("ended", ["stop", "kill"])
def test_an_obedient_model_hears_that_its_worker_was_ended(connect, place, ended):
    talk = connect(CAO_CALL_CEILING_S="2")
    task, session = given(talk, "demo: sleep 90")
    place.until_state(session, "working")
    if ended == "stop":
        place.ok("stop", session)
    else:
        runner = place.store.read_json(place.store.launch_file(session, "runner.json"))
        os.kill(runner["id"], signal.SIGKILL)
    data = Obedient(talk, place).run("wait", tasks=[task])
    assert data["outcome"] == {"stop": "stopped", "kill": "lost"}[ended]


@pytest.mark.tmux
def test_an_obedient_model_stops_waiting_for_a_person_who_does_not_come(connect, place):
    talk = connect(CAO_CALL_CEILING_S="5")
    model = Obedient(talk, place, person=False)
    data = model.run("handoff", target="demo", task="demo: permit rm -rf build|Yes|No")
    assert (data["outcome"], model.calls) == ("asking", 2)
    (ask,) = data["asking"]  # it is told all of it each time
    assert ask["question"]["text"] == "Bash: rm -rf build"
    assert f"A person has to answer: cao answer {ask['session']} yes" in data["next"]


def test_every_tool_declares_what_leads_on(steady):
    for tool in steady.request("tools/list")["result"]["tools"]:
        assert {"next", "earlier"} <= set(tool["outputSchema"]["properties"])


def test_no_error_of_a_verb_tells_a_model_to_run_a_command():
    """But for what only a person may do, or what is of no tool: worktrees, cao allow, merging."""
    source = Path(cao.__file__).read_text()
    rooms = source[source.index("# ==== 7. Store") : source.index("# ---- worktrees ----")]
    rooms += source[source.index("# ==== 12. Verbs") : source.index("def _say_error")]
    rooms += source[source.index("# ==== 13. McpServer") : source.index("# ==== 14. CLI")]
    fixes = [
        ast.unparse(node.exc.args[1])
        for node in ast.walk(ast.parse(textwrap.dedent(rooms)))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args[1:]
    ]
    assert len(fixes) > 40
    allowed = ["'cao mcp'", "'cao allow --list'", "\"cao allow --check 'COMMAND' allows a check\""]
    assert {fix for fix in fixes if re.match("f?.cao ", fix)} == set(allowed)


def test_clis_that_are_not_installed_are_not_offered(connect, place):
    place.profile("mine", "---\nprovider: claude\n---\n")
    place.profile("broken", "no head at all\n")
    (place.folder / "bin" / "claude").unlink()
    (place.folder / "bin" / "kimi").unlink()
    empty = f"{place.folder}/bin:{Path(sys.executable).parent}:/usr/bin:/bin"
    profiles = connect(PATH=empty).data("list_sessions")["profiles"]
    assert {"codex", "demo"} <= set(profiles)
    assert not {"kimi", "claude", "mine"} & set(profiles)
    (mine,) = [words for words in profiles if words.startswith("mine ")]
    assert "claude is not installed" in mine
    assert any(words.startswith("broken (cannot be used: ") for words in profiles)


# ---- where a task works that names no directory ----


class Rooted(Talk):
    """A client that says which directories it has open, or keeps silent (None)."""

    def __init__(self, place, roots, **env) -> None:
        self.roots, self.roots_asked, self.asked_as = roots, 0, None
        super().__init__(place, init=False, **env)
        capabilities = {} if roots is None else {"roots": {}}
        self.request("initialize", {
            "protocolVersion": LEGACY[-1], "capabilities": capabilities,
            "clientInfo": {"name": "editor", "version": "1"},
        })  # fmt: skip

    def read(self, timeout_s=90.0):
        message = super().read(timeout_s)
        if isinstance(message, dict) and message.get("method") == "roots/list":
            self.roots_asked += 1
            self.asked_as = message["id"]
            if self.roots != "silent":
                self.say_roots(self.roots)
            self.seen.remove(message)
            return self.read(timeout_s)
        return message

    def say_roots(self, roots) -> None:
        """Answer the last roots/list."""
        self.send({"jsonrpc": "2.0", "id": self.asked_as, "result": {"roots": roots}})


@pytest.fixture
def rooted(place):
    """Start a client in a directory, with the roots it has open."""
    made = []

    def start(roots, cwd) -> Rooted:
        place.work = Path(cwd)
        made.append(Rooted(place, roots))
        return made[-1]

    yield start
    for talk in made:
        assert talk.end() == 0


def uri(path) -> dict:
    return {"uri": Path(path).as_uri(), "name": "x"}


@pytest.mark.tmux
@pytest.mark.parametrize("start", ["/", "home", "elsewhere"])
@pytest.mark.parametrize("roots", [
    ["one"], ["one", "two"], ["one with blank"], ["missing", "one"], ["/", "one"],
])  # fmt: skip
def test_a_task_works_where_the_client_has_its_first_root(place, rooted, start, roots):
    for name in ("one", "two", "one with blank", "elsewhere"):
        (place.folder / name).mkdir()
    where = {"/": "/", "home": place.user, "elsewhere": place.folder / "elsewhere"}[start]
    talk = rooted([uri("/" if r == "/" else place.folder / r) for r in roots], where)
    data = talk.data("assign", target="demo", task="hello")
    wanted = next(r for r in roots if r.startswith("one"))
    assert data["cwd"] == str((place.folder / wanted).resolve())
    assert data["cwd"] in text(talk.told(talk.next_id)[0]["result"])
    (place.user / "project").mkdir()
    named = talk.data("assign", target="demo", task="hello", cwd=str(place.user / "project"))
    assert (named["cwd"], talk.roots_asked) == (str((place.user / "project").resolve()), 1)


@pytest.mark.tmux
def test_a_root_that_is_hidden_is_worked_in_and_the_home_is_not(place, rooted):
    hidden = place.user / ".dotfiles"
    hidden.mkdir()
    talk = rooted([uri(hidden)], place.user)
    assert talk.data("assign", target="demo", task="hello")["cwd"] == str(hidden.resolve())
    assert talk.data("assign", target="demo", task="hello", cwd=".")["cwd"] == str(hidden.resolve())
    refused = talk.call("assign", target="demo", task="hello", cwd=str(place.user))
    assert "no agent starts a worker there" in text(refused)


@pytest.mark.parametrize(("roots", "start"), [(["one"], "elsewhere"), ([], "one")])
def test_the_profiles_are_listed_of_the_place_where_a_task_works(place, rooted, roots, start):
    for name in ("one", "elsewhere"):
        folder = place.folder / name / ".cao/profiles"
        folder.mkdir(parents=True)
        (folder / f"in-{name}.md").write_text("---\nprovider: demo\n---\nx\n")
        place.ok("allow", str(place.folder / name))
    talk = rooted([uri(place.folder / name) for name in roots], place.folder / start)
    profiles = talk.data("list_sessions")["profiles"]
    assert [name for name in profiles if name.startswith("in-")] == ["in-one"]
    assert rooted(None, place.user).data("list_sessions")["profiles"]


@pytest.mark.tmux
@pytest.mark.parametrize("roots", [
    None, "silent", [], [uri("/")], [{}], [5], "x", {"a": 1}, [{"uri": "https://a/b"}],
])  # fmt: skip
def test_without_a_root_a_project_is_worked_in_and_neither_home_nor_the_root(place, rooted, roots):
    for where in ("/", place.user):
        refused = rooted(roots, where).call("handoff", target="demo", task="hello")
        assert refused["isError"]
        assert f"started in {where}" in text(refused)
        assert "cwd" in text(refused)
    assert place.live() == []
    talk = rooted(roots, place.folder)
    assert talk.data("assign", target="demo", task="hello")["cwd"] == str(place.folder.resolve())


def test_a_client_that_does_not_say_its_roots_is_asked_once(place, rooted):
    silent = rooted("silent", place.folder)
    for _ in range(2):
        silent.data("list_sessions")
    assert silent.roots_asked == 1


@pytest.mark.tmux
@pytest.mark.parametrize("then", ["answers late", "says they changed"])
def test_a_client_that_was_slow_once_is_asked_again(place, rooted, then):
    root = place.folder / "one"
    root.mkdir()
    talk = rooted("silent", place.folder)

    def works_in() -> str:
        return talk.data("assign", target="demo", task="hello")["cwd"]

    assert works_in() == str(place.folder.resolve())
    if then == "answers late":
        talk.say_roots([uri(root)])
    else:
        talk.roots = [uri(root)]
        talk.notify("notifications/roots/list_changed")
    assert [works_in(), works_in()] == [str(root.resolve())] * 2
    assert talk.roots_asked == (2 if then == "answers late" else 3)


def test_calls_side_by_side_ask_a_client_for_its_roots_one_after_another(place, rooted):
    talk = rooted("silent", place.user)
    keys = [talk.post_call("assign", target="demo", task="hello") for _ in range(4)]
    for key in keys:
        assert "started in" in text(talk.answer(key)["result"])
    assert talk.roots_asked == 1


def test_a_task_for_another_machine_works_in_no_directory_of_this_one(rooted):
    refused = rooted(None, "/").call("assign", target="demo@far", task="hello")
    assert refused["isError"]
    assert "started in" not in text(refused)


@pytest.mark.tmux
def test_a_relative_cwd_counts_from_where_a_task_works_without_one(place, rooted):
    inner = place.folder / "one" / "inner"
    inner.mkdir(parents=True)
    talk = rooted([uri(inner.parent)], "/")
    first = talk.data("assign", target="demo", task="hello", cwd="inner")
    assert first["cwd"] == str(inner.resolve())
    again = talk.data("assign", target=first["session"], task="hello", cwd="inner")
    assert again["cwd"] == first["cwd"]
    missing = talk.call("assign", target="demo", task="hello", cwd="none")
    assert f"{inner.parent.resolve()}/none is no directory" in text(missing)
    refused = rooted(None, "/").call("assign", target="demo", task="hello", cwd=".")
    assert "whole path as cwd" in text(refused)


@pytest.mark.tmux
def test_where_the_root_is_around_us_the_task_works_where_we_are(place, rooted):
    inner = place.folder / "one" / "inner"
    inner.mkdir(parents=True)
    talk = rooted([uri(place.folder / "one")], inner)
    first = talk.data("assign", target="demo", task="hello")
    assert first["cwd"] == str(inner.resolve())
    again = talk.data("assign", target=first["session"], task="hello")  # it has its directory
    assert (again["cwd"], talk.roots_asked) == (first["cwd"], 1)


# ---- clients and their names ----


def client_names(place) -> list:
    return sorted(n for n in place.store.all_sessions() if place.store.load(n).kind == "client")


def test_a_client_that_only_looks_leaves_no_folder(talk, place):
    talk.request("tools/list")
    for tool in ("list_sessions", "wait"):
        assert not talk.call(tool).get("isError")
    assert talk.call("read_session", session="demo-2222")["isError"]
    assert place.store.all_sessions() == []


@pytest.mark.tmux
@pytest.mark.parametrize("in_a_call", [False, True], ids=["assign", "handoff"])
def test_after_kill_9_a_second_server_of_the_client_finds_the_result(connect, place, in_a_call):
    first = connect()
    first.post_call(
        "handoff" if in_a_call else "assign", target="demo", task="demo: sleep 1.2; say found again"
    )
    (session,) = until(place.live, lambda names: len(names) == 1)
    place.until_state(session, "working")
    first.process.kill()
    first.process.wait()
    second = connect()
    result = second.first("wait")
    assert (result["session"], result["answer"]) == (session, "found again")
    assert len(client_names(place)) == 1
    assert not second.call("stop_session", session=session).get("isError")  # it is its worker


@pytest.mark.tmux
def test_two_servers_of_one_client_at_once_have_different_names(connect, place):
    talks = [connect(), connect()]
    tasks = [given(talk, f"demo: say for {n}")[0] for n, talk in enumerate(talks)]
    assert len(client_names(place)) == 2
    for n, talk in enumerate(talks):
        result = talk.first("wait")
        assert (result["task"], result["answer"]) == (tasks[n], f"for {n}")
    for talk in talks:
        talk.end()
    given(connect(), "demo: say third")
    assert len(client_names(place)) == 2  # a free one is adopted


@pytest.mark.tmux
def test_of_two_windows_that_were_restarted_each_gets_its_own_by_name(connect, place):
    talks = [connect(), connect()]
    pairs = [given(talk, f"demo: permit make {n}|Yes|No") for n, talk in enumerate(talks)]
    for talk in talks:
        talk.end()
    second, first = connect(), connect()  # in the other order
    found = second.data("wait")  # it has given nothing, as far as anybody knows
    assert (found["outcome"], "results" in found) == ("nothing", False)
    assert sorted(json.loads(found["next"][found["next"].index("[") : -1])) == sorted(
        task for task, _ in pairs
    )
    for talk, (task, session) in zip((first, second), pairs):
        assert talk.data("wait", tasks=[task], timeout_s=1)["asking"][0]["session"] == session
        assert not talk.call("stop_session", session=session).get("isError")
        assert talk.first("wait", tasks=[task])["outcome"] == "stopped"
    # Both were read, by who asked for them; the other server takes its own off the books.
    until(lambda: "next" not in second.data("wait"))


@pytest.mark.tmux
def test_a_window_that_was_restarted_gets_messages_by_name_and_repeats_its_requests(connect, place):
    """Also where two windows were open at some time before, so that it adopts no folder."""
    talks = [connect(), connect()]
    for talk in talks:
        assert talk.call("handoff", target="demo", task="demo: say done")
    job = {"script": "demo: tell before; say done", "request_id": "r1", "keep": True}
    task, session = given(talks[0], **job)
    until(lambda: place.store.has_result(task))
    for talk in talks:
        talk.end()

    talk = connect()
    assert given(talk, **job) == (task, session)
    again = talk.call("assign", target="demo", task="demo: say other", request_id="r1")
    assert not again.get("isError")  # the other window may have used that id
    assert talk.first("wait")["answer"] == "other"
    found = talk.data("wait", tasks=[task])
    assert [m["text"] for m in found["messages"]] == ["before"]
    until(lambda: "next" not in talk.data("wait"))  # read, and off the books

    place.ok("send", session, "demo: tell after")
    assert task in until(lambda: talk.data("wait").get("next"))
    found = talk.data("wait", tasks=[task])
    assert [m["text"] for m in found["messages"]] == ["after"]
    until(lambda: "next" not in talk.data("wait"))


@pytest.mark.tmux
def test_a_claude_code_that_was_started_again_finds_what_its_last_session_gave(connect, place):
    """It has another CLAUDE_CODE_SESSION_ID then. One that still runs, or works elsewhere, keeps
    its own."""
    ids = [{"CLAUDE_CODE_SESSION_ID": f"{n}b7e5543-7f3d-406b-9be6-f8c41c4f9ab3"} for n in range(4)]
    first = connect(**ids[0])
    task, session = given(first, "demo: tell half way; permit make it|Yes|No")
    place.until_state(session, "asking")
    other = connect(**ids[1])
    assert "next" not in other.data("wait")
    assert "not your worker" in text(other.call("stop_session", session=session))
    first.end()

    place.work, here = place.user, place.work
    assert "next" not in connect(**ids[2]).data("wait")
    place.work = here
    again = connect(**ids[3])
    assert task in again.data("wait")["next"]
    found = again.data("wait", tasks=[task])
    assert [m["text"] for m in found["messages"]] == ["half way"]
    assert found["asking"][0]["session"] == session
    assert not again.call("stop_session", session=session).get("isError")
    assert again.first("wait", tasks=[task])["outcome"] == "stopped"
    until(lambda: "next" not in again.data("wait"))


@pytest.mark.tmux
def test_a_conversation_that_works_by_its_shell_is_not_taken_for_one_that_has_ended(connect, place):
    ids = [{"CLAUDE_CODE_SESSION_ID": f"{n}b7e5543-7f3d-406b-9be6-f8c41c4f9ab3"} for n in range(2)]
    task = place.ok("assign", "demo", "demo: tell half way; say x", **ids[0]).strip()
    until(lambda: place.store.has_result(task))
    other = connect(**ids[1])
    assert "next" not in other.data("wait")
    assert "messages" not in other.data("wait", tasks=[task])
    assert "not your worker" in text(other.call("stop_session", session=task.partition(".")[0]))
    done = place.run("wait", **ids[0])
    assert (done.stdout, "half way" in done.stderr) == ("x\n", True)


@pytest.mark.tmux
@pytest.mark.parametrize("name", ["docs-api", "docs-1a2b3c4d", "docs-2"])
def test_a_client_whose_name_begins_like_anothers_has_none_of_its_work(connect, place, name):
    task = place.ok("assign", "demo", "demo: say x", CAO_CLIENT=name).strip()
    session = task.partition(".")[0]
    until(lambda: place.store.has_result(task))
    other = connect(CAO_CLIENT="docs")
    assert "next" not in other.data("wait")
    assert "not your worker" in text(other.call("stop_session", session=session))
    other.call("wait", tasks=[task])
    assert place.ok("wait", CAO_CLIENT=name) == "x\n"


@pytest.mark.tmux
@pytest.mark.parametrize(("env", "name"), [
    ({"CAO_CLIENT": "My Editor"}, "my-editor"),
    ({"CAO_CLIENT": "編集"}, "client-11f9049d"),
    ({"CLAUDE_CODE_SESSION_ID": "2b7e5543-7f3d-406b-9be6-f8c41c4f9ab3"}, "claude-2b7e5543"),
])  # fmt: skip
def test_the_environment_may_name_the_client(connect, place, env, name):
    given(connect(**env), "hello")
    assert client_names(place) == [name]


@pytest.mark.tmux
def test_the_name_of_an_agents_session_is_no_clients(connect, place):
    """That client would act as the agent, and read what it is owed."""
    _, session = given(connect(), "demo: sleep 30")
    done = place.run("wait", "--timeout", "0s", CAO_CLIENT=session)
    assert (done.returncode, "set CAO_CLIENT to another name" in done.stderr) == (2, True)
    inside = connect(CAO_CLIENT=session)
    for refused in inside.call("list_sessions"), inside.call("assign", target="demo", task="x"):
        assert (refused["isError"], "set CAO_CLIENT" in text(refused)) == (True, True)
    assert place.live() == [session]


@pytest.mark.tmux
def test_inside_a_worker_the_caller_is_the_worker(talk, connect, place):
    _, session = given(talk, "demo: sleep 30")
    place.until_state(session, "working")
    inside = connect("claude-code", CAO_SESSION=session)
    assert not inside.call("send_message", target="supervisor", message="from inside").get(
        "isError"
    )
    (message,) = collect(talk, 1, "messages")
    assert (message["sender"], message["text"]) == (session, "from inside")
    _, below = given(inside, "hello")
    assert place.store.load(below).supervisor == session
    place.until_state(below, "idle")
    assert inside.call("stop_session", session=session)["isError"]


def test_a_session_that_is_not_there_is_named_and_nothing_is_started(connect, place):
    talk = connect(CAO_SESSION="worker-2222")
    result = talk.call("assign", target="demo", task="x")
    assert result["isError"]
    assert "worker-2222" in text(result)
    answer = talk.request("resources/read", {"uri": "cao://sessions"}, timeout_s=3)
    assert "worker-2222" in answer["error"]["message"]
    assert place.live() == []
