"""What real CLIs send to an MCP server, as it was recorded, sent to ours.

traffic/<cli>.jsonl has the client's lines of one server process: handshake, tools/list, a
call of a tool of the recording server, and a cancellation where one was sent. Recorded in
November 2026 with Claude Code 2.1.330, Codex 0.169.0, Copilot CLI 1.0.102, Gemini CLI 0.61.0,
Kimi Code 2.1.0, OpenCode 1.18.33 and Qwen Code 0.15.10.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import cao
from conftest import McpClient

FOLDER = Path(__file__).resolve().parent / "traffic"
CLIS = sorted(path.stem for path in FOLDER.glob("*.jsonl"))


def recorded(cli: str) -> list[bytes]:
    return (FOLDER / f"{cli}.jsonl").read_bytes().splitlines()


def check(request: dict, answer: dict) -> None:
    """Hold that an answer is what its request has to get from us."""
    assert answer["jsonrpc"] == "2.0"
    assert (answer["id"], type(answer["id"])) == (request["id"], type(request["id"]))
    tool = (request.get("params") or {}).get("name")
    if request["method"] == "server/discover":  # Claude Code, Copilot CLI: both can be asked
        assert answer["result"]["supportedVersions"] == list(cao.LEGACY_VERSIONS)
    elif request["method"] != "tools/call":
        assert "result" in answer, answer
    elif tool not in cao.TOOLS:
        assert answer["error"]["code"] == -32602
        assert tool in answer["error"]["message"]
    else:  # the recording server had a tool `wait` too, with other arguments
        assert answer["result"]["isError"]
        assert "'seconds'" in answer["result"]["content"][0]["text"]


def test_there_is_traffic_of_every_cli_whose_client_was_recorded():
    assert CLIS == ["claude", "codex", "copilot", "gemini", "kimi", "opencode", "qwen"]


@pytest.mark.parametrize("cli", CLIS)
def test_each_request_gets_one_answer_at_once_and_nothing_else_is_said(place, cli):
    client = McpClient(place, init=False)
    for line in recorded(cli):
        message = json.loads(line)
        client.write(line + b"\n")
        if "id" in message:
            check(message, client.read())
    # An answer to a notification would come before this one.
    client.write(b'{"jsonrpc":"2.0","id":"end","method":"ping"}\n')
    assert client.read() == {"jsonrpc": "2.0", "id": "end", "result": {}}
    client.process.stdin.close()
    assert client.read() is None
    assert client.process.wait(60) == 0
    assert client.process.stderr.read() == b""


@pytest.mark.parametrize("cli", CLIS)
def test_a_client_that_waits_for_no_answer_gets_them_all(place, cli):
    client = McpClient(place, init=False)
    client.write(b"\n".join(recorded(cli)) + b"\n")
    requests = {json.dumps(m["id"]): m for m in map(json.loads, recorded(cli)) if "id" in m}
    cancelled = {
        json.dumps(m["params"]["requestId"])
        for m in map(json.loads, recorded(cli))
        if m["method"] == "notifications/cancelled"
    }
    # tools/list is answered in place; a call may be cancelled before it is made.
    client.write(b'{"jsonrpc":"2.0","id":"end","method":"ping"}\n')
    client.answer("end")
    for key in set(requests) - cancelled:
        check(requests[key], client.answer(requests[key]["id"], 5))
    client.process.stdin.close()
    while client.read() is not None:
        pass
    keys = [json.dumps(message["id"]) for message in client.seen]
    assert len(keys) == len(set(keys))
    assert set(requests) - cancelled <= set(keys) - {'"end"'} <= set(requests)
    assert client.process.wait(60) == 0


@pytest.mark.parametrize("cli", ["claude", "codex", "gemini", "qwen"])
def test_the_limit_of_a_call_is_known_by_the_name_the_client_gives(cli):
    hello = next(m for m in map(json.loads, recorded(cli)) if m["method"] == "initialize")
    # Qwen Code adds the server's name, which was "lab" in the recording.
    name = hello["params"]["clientInfo"]["name"].replace("-lab", "-cao")
    assert any(name.startswith(known) for known in cao.CALL_CEILINGS_S), name
