"""Tokens: counted from what a CLI wrote, shown everywhere, and held to a budget."""

from __future__ import annotations

import json
import os
import re

import pytest

import cao
from conftest import McpClient, until

# A line of each CLI's transcript that tells of a request of 1000 uncached, 200 cached, 10 out, as
# recorded (what does not matter is left out), and one beside it that tells of none.
LINES = {
    "claude": (
        '{"type":"assistant","timestamp":"T","message":{"id":"msg_1","usage":{"input_tokens":600,'
        '"cache_creation_input_tokens":400,"cache_read_input_tokens":200,"output_tokens":10,'
        '"output_tokens_details":{"thinking_tokens":3}}}}',
        '{"type":"user","timestamp":"T","message":{"role":"user","content":"usage"}}',
    ),
    "codex": (
        '{"timestamp":"T","type":"event_msg","payload":{"type":"token_count","info":{'
        '"total_token_usage":{"input_tokens":1200,"total_tokens":1210},"last_token_usage":{'
        '"input_tokens":1200,"cached_input_tokens":200,"output_tokens":10,'
        '"reasoning_output_tokens":4,"total_tokens":1210}}}}',
        '{"timestamp":"T","type":"event_msg","payload":{"type":"token_count","info":null}}',
    ),
    "gemini": (
        '{"id":"1","timestamp":"T","type":"gemini","content":"one","tokens":{"input":1200,'
        '"output":6,"cached":200,"thoughts":4,"tool":0,"total":1210}}',
        '{"id":"2","timestamp":"T","type":"user","content":"tokens"}',
    ),
    "qwen": (
        '{"uuid":"1","timestamp":"T","type":"assistant","usageMetadata":{"promptTokenCount":1200,'
        '"candidatesTokenCount":10,"thoughtsTokenCount":4,"totalTokenCount":1210,'
        '"cachedContentTokenCount":200}}',
        '{"uuid":"2","timestamp":"T","type":"system","subtype":"ui_telemetry","systemPayload":'
        '{"uiEvent":{"input_token_count":1200,"output_token_count":10}}}',
    ),
    "copilot": (
        '{"id":"1","timestamp":"T","type":"session.usage_record","data":{"usage":{"inputTokens":'
        '1200,"outputTokens":10,"cacheReadTokens":200,"cacheWriteTokens":0}}}',
        '{"id":"2","timestamp":"T","type":"subagent.completed","data":{"totalTokens":5320}}',
    ),
    "kimi": (
        '{"type":"usage.record","agentId":"main","usage":{"inputOther":900,"output":10,'
        '"inputCacheRead":200,"inputCacheCreation":100},"usageScope":"turn","time":MS}',
        '{"type":"subagent.completed","subagentId":"agent-0","usage":{"inputOther":5000,'
        '"output":20,"inputCacheRead":300,"inputCacheCreation":0},"time":MS}',
    ),
    "pi": (
        '{"type":"message","id":"1","timestamp":"T","message":{"role":"assistant","usage":{'
        '"input":900,"output":10,"cacheRead":200,"cacheWrite":100,"totalTokens":1210}}}',
        '{"type":"message","id":"2","timestamp":"T","message":{"role":"user"}}',
    ),
    "opencode": ('{"id":"1","at":MS,"usage":{"input":1000,"cached":200,"output":10}}', "{}"),
}
NOW = 1_795_846_000.5
STAMP = {"T": cao.utc_stamp(NOW) + "Z", "MS": str(int(NOW * 1000))}
ONE = {"input": 1000, "cached": 200, "output": 10}


def dated(line: str) -> str:
    return line.replace('"T"', f'"{STAMP["T"]}"').replace(":MS", f":{STAMP['MS']}")


@pytest.fixture(params=list(LINES))
def written(request, tmp_path):
    """A meter of each CLI, its transcript, and the lines to write there."""
    path = tmp_path / ("usage.jsonl" if request.param == "opencode" else "conv.jsonl")
    meter = cao.Meter(cao.PROVIDERS[request.param].tokens)

    def used(since=NOW):
        meter.read("" if request.param == "opencode" else str(path), str(tmp_path), "conv")
        return meter.used_since(cao.utc_stamp(since))

    return path, used, [dated(line) + "\n" for line in LINES[request.param]]


def test_every_cli_that_is_proven_tells_its_tokens():
    assert set(LINES) == {name for name, row in cao.PROVIDERS.items() if row.proven}
    tells = {name for name, row in cao.PROVIDERS.items() if row.tokens}
    assert tells == {*LINES, "demo"}


def test_a_request_counts_once_however_often_it_is_written(written):
    path, used, (line, other) = written
    assert used() is None
    path.write_text(line + other)
    assert used() == used() == ONE
    with path.open("a") as file:
        file.write(other + line)
    assert used() == ONE


def test_what_was_before_the_task_is_not_its_own(written):
    path, used, (line, _) = written
    path.write_text(line)
    assert used(NOW + 1) == {"input": 0, "cached": 0, "output": 0}


ODD = [None, True, 0, -1, 10**400, 1.5, "", "x", [], [[]], [{}], {}, {"a": 1}]


def replaced(value, odd):
    """Return what becomes of a JSON value where one part of it, each in turn, is odd."""
    yield odd
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from ({**value, key: other} for other in replaced(inner, odd))


def test_a_line_of_other_types_counts_nothing_and_stops_nothing(written):
    path, used, (line, other) = written
    for one in map(json.loads, (line, other)):
        for odd in ODD:
            path.write_text("".join(json.dumps(it) + "\n" for it in replaced(one, odd)))
            used()
    path.write_text(line)
    os.utime(path, (1, 1))
    assert used()


def test_half_a_line_counts_when_it_is_whole(written):
    path, used, (line, _) = written
    path.write_text(line[:-20])
    used()
    path.write_text(line)
    assert used() == ONE


def test_a_file_that_is_written_anew_is_read_anew(written):
    path, used, (line, other) = written
    path.write_text(other * 3 + line)
    assert used() == ONE
    path.unlink()
    path.write_text(line)
    assert used() == ONE


@pytest.mark.parametrize("junk", ["", "[]", "null", '{"usage":[]}', "{" * 2000, '{"message":3}'])
def test_what_is_no_line_of_a_transcript_counts_nothing(written, junk):
    path, used, (line, _) = written
    path.write_text(f"{junk}\n{line}{junk}\n")
    assert used() == ONE


BELOW = {  # where the transcripts of sub-agents are, as each CLI was seen to put them
    "claude": "conv/subagents/agent-1.jsonl",
    "gemini": "conv/1.jsonl",
    "qwen": "../subagents/conv/agent-general-1.jsonl",
    "kimi": "../agent-0/wire.jsonl",
}


@pytest.mark.parametrize("cli", list(BELOW))
def test_sub_agents_count(tmp_path, cli):
    path = tmp_path / "a[b]" / "main" / ("wire.jsonl" if cli == "kimi" else "conv.jsonl")
    below = path.parent / BELOW[cli]
    below.parent.mkdir(parents=True)
    path.parent.mkdir(exist_ok=True)
    path.write_text(dated(LINES[cli][0]) + "\n")
    below.write_text(dated(LINES[cli][0]) + "\n")
    meter = cao.Meter(cao.PROVIDERS[cli].tokens)
    meter.read(str(path), str(tmp_path), "conv")
    assert meter.used_since(cao.utc_stamp(NOW)) == {key: 2 * n for key, n in ONE.items()}


def test_sub_agents_of_codex_are_found_by_their_ids_also_those_of_sub_agents(tmp_path):
    days = [tmp_path / "2026/11" / day for day in ("28", "29")]
    for day in days:
        day.mkdir(parents=True)
    line, _ = LINES["codex"]

    def spawned(name: str) -> str:
        item = {"type": "CollabAgentToolCall", "receiver_thread_ids": [name]}
        return json.dumps({"type": "event_msg", "payload": {"item": item}}) + "\n"

    main = days[0] / "rollout-1-main.jsonl"
    main.write_text(dated(line) + "\n" + spawned("aa"))
    (days[1] / "rollout-2-aa.jsonl").write_text(spawned("bb") + dated(line) + "\n")
    (days[1] / "rollout-3-bb.jsonl").write_text(dated(line) + "\n")
    (days[1] / "rollout-4-other.jsonl").write_text(dated(line) + "\n")
    meter = cao.Meter(cao.PROVIDERS["codex"].tokens)
    meter.read(str(main), str(tmp_path), "main")
    assert meter.used_since(cao.utc_stamp(NOW)) == {key: 3 * n for key, n in ONE.items()}


# ---- in use ----

pytestmark = pytest.mark.tmux
WORDS = "1,000 tokens in (+200 cached), 30 out"


def test_a_tasks_tokens_are_in_its_result_and_in_every_view(place, client):
    text = "demo: tokens 600 200 10; say x; tokens 400 0 20"
    task = place.ok("assign", "demo", text).strip()
    session = task.partition(".")[0]
    (result,) = json.loads(place.ok("wait", "--json", task))["results"]
    assert result["usage"] == {"input": 1000, "cached": 200, "output": 30}
    assert json.loads(place.ok("show", session, "--json"))["usage"] == result["usage"]
    assert WORDS in place.ok("show", session)
    assert re.search(rf"{session} .* \[1,030 tokens\] ", place.ok("ls"))
    trace = json.loads(place.ok("trace", "--output", "-"))["traceEvents"]
    assert [e["args"]["usage"] for e in trace if e["ph"] == "s" and "usage" in e["args"]] == [
        result["usage"]
    ]
    told = client.call("wait", tasks=[task])
    assert told["structuredContent"]["results"][0]["usage"] == result["usage"]
    more = place.run("handoff", session, "demo: tokens 1 2 3; exit 1")
    assert "1 tokens in (+2 cached), 3 out)" in more.stderr
    done = place.ok("run", "demo", "demo: tokens 7 8 9; say y", "--json")
    assert json.loads(done)["results"][0]["usage"] == {"input": 7, "cached": 8, "output": 9}


def test_the_tokens_of_a_turn_that_runs_are_shown(place):
    session = place.ok("assign", "demo", "demo: tokens 5 6 7; sleep 60").partition(".")[0]
    until(lambda: place.state(session).get("usage"), {"input": 5, "cached": 6, "output": 7})


@pytest.mark.parametrize("how", ["option", "profile", "tool", "flow"])
def test_a_task_above_its_tokens_is_interrupted_and_failed(place, how):
    text = "demo: tokens 900 5000 100; sleep 1.5; tokens 1 0 0; sleep 60"
    most = "max_tokens: 1000\n" if how == "profile" else ""
    place.profile("worker", f"---\nprovider: demo\n{most}---\n")
    if how == "tool":
        client = McpClient(place)
        result = client.call("handoff", target="worker", task=text, max_tokens=1000)
        (result,) = result["structuredContent"]["results"]
        assert client.close() == 0
    elif how == "flow":
        flow = place.work / "flow.md"
        head = "name: f\nschedule: '@daily'\nagent_profile: worker\nmax_tokens: 1000"
        flow.write_text(f"---\n{head}\n---\n{text}\n")
        place.ok("schedule", "add", str(flow))
        assert place.run("schedule", "run", "f").returncode == 1
        (result,) = json.loads(place.ok("schedule", "log", "--json"))
        assert "901 tokens in (+5,000 cached), 100 out" in place.ok("schedule", "log")
    else:
        flags = ["--max-tokens", "1000"] if how == "option" else []
        done = place.run("handoff", "worker", text, "--json", *flags)
        (result,) = json.loads(done.stdout)["results"]
        assert result["seconds"] < 30
        assert place.ok("handoff", result["session"], "demo: say alive") == "alive\n"
    assert (result["outcome"], result["reason"]) == ("failed", "budget")
    assert result["usage"] == {"input": 901, "cached": 5000, "output": 100}
    assert "max_tokens is 1,000" in result["detail"]


def test_an_answer_that_is_there_is_no_failure_though_it_took_too_many(place):
    flags = ("--max-tokens", "10", "--json")
    done = place.run("handoff", "demo", "demo: tokens 900 0 1; say x", *flags)
    (result,) = json.loads(done.stdout)["results"]
    assert result["outcome"] == "done"
    note = "used 901 tokens, more than max_tokens 10: it was done before that was counted"
    assert result["notes"] == [note]
    assert place.ok("handoff", "demo", "demo: tokens 9 5 1; say x", *flags).count("max_tokens") == 0


def test_a_limit_that_nobody_could_hold_is_refused(place):
    head = "provider: command\ncommand: [python3, -i, -q]\nready: '^>>> $'"
    place.profile("calc", f"---\n{head}\n---\n")
    done = place.run("handoff", "calc", "6 * 7", "--max-tokens", "10")
    assert (done.returncode, "does not tell how many tokens" in done.stderr) == (2, True)
    assert place.live() == []
    done = place.run("handoff", "demo", "x", "--max-tokens", "0")
    assert (done.returncode, "--max-tokens" in done.stderr) == (2, True)
    for word in ("0", "many", "1.5", "yes"):
        place.profile("wrong", f"---\nprovider: demo\nmax_tokens: {word}\n---\n")
        assert "'max_tokens' must be" in place.run("handoff", "wrong", "x").stderr


def test_a_task_that_was_killed_has_the_tokens_known_of_it(place):
    task = place.ok("assign", "demo", "demo: tokens 5 6 7; sleep 60").strip()
    session = task.partition(".")[0]
    until(lambda: place.state(session).get("usage"))
    waiting = place.ok("assign", session, "demo: say never").strip()
    pid = int(place.tmux("list-panes", "-t", f"={session}:", "-F", "#{pane_pid}"))
    os.kill(pid, 9)
    (result,) = json.loads(place.run("wait", "--json", task).stdout)["results"]
    assert (result["outcome"], result["usage"]) == ("lost", {"input": 5, "cached": 6, "output": 7})
    assert place.result(waiting)["usage"] is None
