"""A permission in the form of the person's own client (MCP's elicitation), by a client of ours
that answers as each test says; tests/test_mcp_official.py has the official SDKs, and
tests/test_real_clients.py the real CLIs."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

import cao
from conftest import McpClient, until
from test_mcp import official, why_no_schemas

pytestmark = pytest.mark.tmux

LATEST = "2025-11-25"


class FormClient(McpClient):
    """A client that can show a form; `form` is the next that it is asked to show."""

    def __init__(self, place, name="claude-code", capabilities=None, version=LATEST, **env) -> None:
        super().__init__(place, init=False, **env)
        self.version = version
        if capabilities is None:
            capabilities = {"elicitation": {}}
        self.request("initialize", {
            "protocolVersion": version, "capabilities": capabilities,
            "clientInfo": {"name": name, "version": "1"},
        })  # fmt: skip

    def form(self) -> dict:
        while (message := self.read()).get("method") != "elicitation/create":
            pass
        if not why_no_schemas():
            official(self.version, "ElicitRequest").validate(message)
        return message

    def reply(self, form: dict, answer: object, action="accept") -> None:
        content = {"content": {"answer": answer}} if action == "accept" else {}
        self.send({"jsonrpc": "2.0", "id": form["id"], "result": {"action": action, **content}})

    def forms(self) -> list:
        return [m for m in self.seen if m.get("method") == "elicitation/create"]

    def withdrawn(self) -> list:
        """Return the ids of the forms that were withdrawn, so far."""
        notes = [m for m in self.seen if m.get("method") == "notifications/cancelled"]
        if not why_no_schemas():
            for note in notes:
                official(self.version, "CancelledNotification").validate(note)
        return [note["params"]["requestId"] for note in notes]

    def data(self, key) -> dict:
        return self.answer(key)["result"]["structuredContent"]


@pytest.fixture
def connect(place):
    made = []

    def start(*args, **more) -> FormClient:
        made.append(FormClient(place, *args, **more))
        return made[-1]

    yield start
    for client in made:
        assert client.close() == 0


def hand_off(client: FormClient, task="demo: permit rm -rf build|Yes|No", **more) -> int:
    return client.post_call("handoff", target="demo", task=task, **more)


def wait_for_asked(client: FormClient, place) -> int:
    """Call wait for a worker that asks already: then a short ceiling is long enough."""
    done = client.call("assign", target="demo", task="demo: permit rm -rf build|Yes|No")
    place.until_state(done["structuredContent"]["session"], "asking")
    return client.post_call("wait")


def options(form: dict) -> list:
    schema = form["params"]["requestedSchema"]
    ((name, field),) = schema["properties"].items()
    assert (schema["required"], field["type"]) == ([name], "string")
    return field["enum"]


def asker(form: dict) -> str:
    return form["params"]["message"].split()[1]


def approvals(place) -> list:
    path = place.home / "approvals.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("version", ["2025-06-18", LATEST])
@pytest.mark.parametrize(("answer", "said"), [("yes", "Yes"), ("no", "No")])
def test_what_the_person_chooses_is_the_answer_and_the_call_goes_on(
    connect, place, version, answer, said
):
    client = connect(version=version)
    key = hand_off(client)
    form = client.form()
    session = asker(form)
    assert form["params"]["message"] == f"cao: {session} asks: Bash: rm -rf build"
    assert options(form) == [f"I will look (cao answer {session})", "yes", "no"]
    client.reply(form, answer)
    (result,) = client.data(key)["results"]
    assert (result["session"], result["outcome"], result["answer"]) == (session, "done", said)
    assert [(a["session"], a["by"], a["answer"]) for a in approvals(place)] == [
        (session, "person", answer)
    ]
    assert client.withdrawn() == []


@pytest.mark.parametrize("reply", [
    {"result": {"action": "decline"}},
    {"result": {"action": "cancel"}},
    {"result": {"action": "decline", "content": {"answer": "yes"}}},
    {"result": {"action": "accept"}},
    {"result": {"action": "accept", "content": {"answer": "only on mondays"}}},
    {"result": {"action": "accept", "content": {"answer": ["yes"]}}},
    {"result": {"action": "accept", "content": "yes"}},
    {"result": {"content": {"answer": "yes"}}},
    {"result": "yes"},
    {"error": {"code": -32601, "message": "Method not found"}},
    {},
])  # fmt: skip
def test_what_is_no_answer_leaves_the_question_open_for_others(connect, place, reply):
    client = connect(CAO_CALL_CEILING_S="1")
    key = wait_for_asked(client, place)
    form = client.form()
    client.send({"jsonrpc": "2.0", "id": form["id"], **reply})
    data = client.data(key)
    assert data["outcome"] == "asking"
    assert "A person has to answer" in data["next"]
    session = asker(form)
    assert place.state(session)["state"] == "asking"
    assert approvals(place) == []
    # It is not shown again, and waited for like any other.
    assert client.data(client.post_call("wait"))["outcome"] == "asking"
    assert (len(client.forms()), client.withdrawn()) == (1, [])
    place.ok("answer", session, "yes")
    assert client.data(client.post_call("wait"))["results"][0]["answer"] == "Yes"


def test_a_person_who_will_look_is_told_all_and_answers_in_a_shell(connect, place):
    client = connect()
    key = hand_off(client)
    form = client.form()
    client.reply(form, options(form)[0])
    data = client.data(key)
    assert data["asking"][0]["question"]["text"] == "Bash: rm -rf build"
    place.ok("answer", asker(form), "no: not today")
    assert client.data(client.post_call("wait"))["results"][0]["answer"] == "No not today"


def test_a_question_answered_elsewhere_is_withdrawn_and_what_comes_late_is_void(connect, place):
    client = connect()
    key = hand_off(client, "demo: permit make a|Yes|No; sleep 9; permit make b|Yes|No")
    form = client.form()
    place.ok("answer", asker(form), "yes")
    data = client.data(key)  # for Codex, which takes a form from the screen with the call only
    assert (data["outcome"], client.withdrawn()) == ("running", [form["id"]])
    client.reply(form, "no")
    key = client.post_call("wait")
    second = client.form()
    assert "make b" in second["params"]["message"]
    client.reply(form, "no")  # once more, for the wrong one
    client.reply(second, "yes")
    assert client.data(key)["results"][0]["answer"] == "Yes\nYes"
    assert [a["answer"] for a in approvals(place)] == ["yes", "yes"]


def test_at_the_clients_ceiling_the_form_goes_before_the_call_and_comes_again(connect, place):
    client = connect(CAO_CALL_CEILING_S="1")
    key = wait_for_asked(client, place)
    form = client.form()
    data = client.data(key)
    assert (data["outcome"], client.withdrawn()) == ("asking", [form["id"]])
    order = [m.get("method") or m["id"] for m in client.seen]
    assert order.index("notifications/cancelled") < order.index(key)
    client.reply(form, "yes")  # late: void
    key = client.post_call("wait")
    again = client.form()
    assert again["params"] == form["params"]
    assert place.state(asker(form))["state"] == "asking"
    client.reply(again, "yes")
    assert client.data(key)["results"][0]["answer"] == "Yes"
    assert len(approvals(place)) == 1


def test_a_call_that_the_client_cancels_takes_its_form_with_it(connect, place):
    client = connect()
    key = hand_off(client)
    form = client.form()
    client.notify("notifications/cancelled", {"requestId": key})
    until(lambda: client.read() and client.withdrawn(), [form["id"]])
    client.reply(form, "yes")
    client.request("ping")
    assert place.state(asker(form))["state"] == "asking"
    wait = client.post_call("wait")
    client.reply(client.form(), "no")
    assert client.data(wait)["results"][0]["answer"] == "No"


def test_a_worker_that_dies_takes_its_form_with_it(connect, place):
    client = connect()
    key = hand_off(client)
    form = client.form()
    runner = place.store.read_json(place.store.launch_file(asker(form), "runner.json"))
    os.kill(runner["id"], signal.SIGKILL)
    task = client.data(key)["running"][0]
    assert client.withdrawn() == [form["id"]]
    assert client.data(client.post_call("wait", tasks=[task]))["outcome"] == "lost"


def test_forms_are_shown_one_at_a_time(connect):
    client = connect()
    keys = [hand_off(client, f"demo: permit make {n}|Yes|No") for n in range(3)]

    def asking() -> int:
        return client.call("list_sessions")["content"][0]["text"].count("  asks:")

    for left in (3, 2, 1):
        form = client.form()
        until(asking, left)
        assert client.forms()[-1] == form
        client.reply(form, "yes")
    assert [client.data(key)["results"][0]["answer"] for key in keys] == ["Yes"] * 3
    assert (len(client.forms()), client.withdrawn()) == (3, [])


def test_a_question_for_the_model_ends_the_call_though_a_form_is_open(connect, place):
    client = connect()
    tasks = [
        client.call("assign", target="demo", task=task)["structuredContent"]["task"]
        for task in ("demo: permit make a|Yes|No", "demo: sleep 6; ask Which?|red|blue")
    ]
    key = client.post_call("wait", tasks=tasks)
    form = client.form()
    data = client.data(key)
    assert {ask["question"]["kind"] for ask in data["asking"]} == {"permission", "question"}
    assert client.withdrawn() == [form["id"]]
    client.call("answer", session=tasks[1].partition(".")[0], answer="blue")
    # Its result first: it would end the next call, too, before the form is shown again.
    (blue,) = client.call("wait", tasks=tasks[1:])["structuredContent"]["results"]
    key = client.post_call("wait", tasks=tasks[:1])
    client.reply(client.form(), "yes")
    (made,) = client.data(key)["results"]
    assert (made["answer"], blue["answer"]) == ("Yes", "blue")


def columns(line: str) -> int:
    return sum(map(cao.letter_columns, line))


@pytest.mark.parametrize(("command", "whole"), [
    ("x" * 110, True),
    ("漢" * 55, True),
    ("a\\nb", True),
    ("x" * 130, False),
    ("漢" * 65, False),
    ("echo " + "x" * 3000 + " ; rm -rf precious", False),
])  # fmt: skip
def test_what_does_not_fit_whole_cannot_be_allowed_in_the_form(connect, place, command, whole):
    client = connect(CAO_CALL_CEILING_S="20")
    key = hand_off(client, f"demo: permit {command}|Yes|No")
    form = client.form()
    session, lines = asker(form), form["params"]["message"].split("\n")
    assert len(lines) <= 3
    assert all(columns(line) <= 48 for line in lines)  # 54 in Claude's frame
    assert ("".join(lines) == f"cao: {session} asks: Bash: {command}") == whole
    look = f"I will look (cao answer {session})"
    assert options(form) == ([look, "yes", "no"] if whole else [look, "no"])
    client.reply(form, "yes")
    data = client.data(key)
    assert data["outcome"] == ("done" if whole else "asking")


def test_nothing_in_a_form_hides_or_moves(connect, place):
    client = connect()
    hidden = "ls \x1b[2K\r\u202e\u200b"
    key = client.post_call("handoff", target="demo", task="demo: sleep 60")
    session = until(place.live)[0]
    place.until_state(session, "working")
    payload = {"hook_event_name": "PermissionRequest", "tool_name": "Bash"}
    asking = cao.Asking(place.store, session, {**payload, "tool_input": {"command": hidden}})
    form = client.form()
    message = form["params"]["message"].replace("\n", "")
    assert message.endswith(r"ls \x1b[2K\r\u202e\u200b")
    client.reply(form, "no")
    assert asking.wait()["answer"] == "no"
    asking.close()
    until(lambda: approvals(place))
    client.call("stop_session", session=session)
    assert client.data(key)["outcome"] == "stopped"


SIGNS = {"CLAUDECODE": "1", "AI_AGENT": "claude-code_2-1-332_harness"}
BARE = dict.fromkeys(cao.AGENT_SIGNS, "")


@pytest.mark.parametrize(("name", "env"), [
    ("claude-code", {}),
    ("claude-code", {**SIGNS, "CLAUDE_CODE_ENTRYPOINT": "cli"}),
    ("codex-mcp-client", {}),
    ("copilot-cli", {}),
    ("any-editor", {"CAO_ELICITATION": "person"}),
    ("copilot-cli", {**SIGNS, "CAO_ELICITATION": "person"}),
])  # fmt: skip
def test_these_have_a_person_in_front_of_them(connect, name, env):
    client = connect(name, **{**BARE, **env})
    key = hand_off(client)
    client.reply(client.form(), "yes")
    assert client.data(key)["outcome"] == "done"


@pytest.mark.parametrize(("name", "capabilities", "env"), [
    ("any-editor", {"elicitation": {}}, {}),
    ("claude-code", {"elicitation": {}}, {"CAO_ELICITATION": "off"}),
    ("claude-code", {"elicitation": {}}, {"CLAUDE_CODE_ENTRYPOINT": "sdk-cli"}),
    ("claude-code", {"elicitation": {}}, {"COPILOT_CLI": "1"}),
    ("copilot-cli", {"elicitation": {}}, SIGNS),
    ("codex-mcp-client", {"elicitation": {}}, {"CLAUDECODE": "1"}),
    ("claude-code", {}, {"CAO_ELICITATION": "person"}),
    ("claude-code", {"elicitation": None}, {}),
    ("claude-code", {"elicitation": "yes"}, {}),
])  # fmt: skip
def test_these_have_none_and_are_not_asked(connect, name, capabilities, env):
    client = connect(name, capabilities, **{**BARE, **env})
    assert client.data(hand_off(client))["outcome"] == "asking"
    assert client.forms() == []


def test_below_kimi_code_is_no_person(connect):
    name = Path("/proc/self/comm")  # Kimi Code sets no variable
    before = name.read_text()
    name.write_text("kimi-code")
    try:
        test_these_have_none_and_are_not_asked(connect, "codex-mcp-client", {"elicitation": {}}, {})
    finally:
        name.write_text(before)


@pytest.mark.parametrize("setting", ["", "person"])
def test_an_agent_of_ours_is_never_asked(connect, place, setting):
    boss = place.ok("launch", "demo", "--detach").strip()
    client = connect(CAO_SESSION=boss, CAO_ELICITATION=setting)
    key = client.post_call("handoff", target="demo", task="demo: permit make x|Yes|No")
    assert client.data(key)["outcome"] == "asking"
    assert client.forms() == []


# ---- checks ----


@pytest.mark.parametrize("tool", ["handoff", "assign"])
def test_a_person_may_allow_a_check_when_it_is_given(connect, place, tool):
    client = connect()
    job = {"target": "demo", "task": "demo: say x", "check": "test -d ."}
    key = client.post_call(tool, **job)
    form = client.form()
    said = form["params"]["message"].replace("\n", "")
    assert said == f"cao: may agents run this check in {place.work}, unasked? test -d ."
    assert options(form) == ["no", "yes"]
    assert place.live() == []
    client.reply(form, "yes")
    task = client.data(key)["task"] if tool == "assign" else client.data(key)["results"][0]["task"]
    assert client.data(client.post_call("wait", tasks=[task]))["outcome"] == "done"
    assert "test -d ." in place.ok("allow", "--list")
    assert client.data(client.post_call(tool, **job))  # and is not asked again
    assert len(client.forms()) == 1


def test_the_person_sees_that_a_check_is_allowed_in_the_whole_repository(connect, place):
    (place.work / ".git").mkdir()
    (place.work / "sub").mkdir()
    client, sub = connect(), str(place.work / "sub")
    client.post_call("assign", target="demo", task="demo: say x", check="test -d .", cwd=sub)
    said = client.form()["params"]["message"].replace("\n", "")
    where = f"the whole repository {place.work}/.git"
    assert said == f"cao: may agents run this check in {where}, unasked? test -d ."
    done = place.run("allow", "--check", "test -d .", cwd=place.work / "sub")
    assert f"cao: allowed in {where}\n" in done.stderr


def test_the_repository_that_the_person_saw_is_the_one_where_a_check_is_allowed(connect, place):
    inner = place.work / "sub"
    for folder in (place.work, inner):
        (folder / ".git").mkdir(parents=True)
    client = connect()
    job = {"target": "demo", "task": "demo: say x", "check": "test -d .", "cwd": str(inner)}
    key = client.post_call("assign", **job)
    form = client.form()
    assert f"{inner}/.git" in form["params"]["message"].replace("\n", "")
    (inner / ".git").rmdir()  # meanwhile: now it is the outer one's
    client.reply(form, "yes")
    assert "no person has allowed" in client.answer(key)["result"]["content"][0]["text"]
    assert "test -d ." not in place.ok("allow", "--list")


@pytest.mark.parametrize("how", ["no", "decline", "late", "long"])
def test_a_check_that_no_person_allows_is_refused_with_the_ways(connect, place, how):
    client = connect(CAO_CALL_CEILING_S="1" if how == "late" else "20")
    check = "test -d . " + "x" * 300 if how == "long" else "test -d ."
    key = client.post_call("assign", target="demo", task="demo: say x", check=check)
    if how != "long":  # that is not asked: it cannot be seen whole
        form = client.form()
        if how != "late":
            client.reply(form, "no", "accept" if how == "no" else "decline")
    result = client.answer(key)["result"]
    assert result["isError"]
    assert "cao allow --check" in result["content"][0]["text"]
    assert client.withdrawn() == ([form["id"]] if how == "late" else [])
    assert (len(client.forms()), place.live()) == (how != "long", [])
    if how == "late":
        client.reply(form, "yes")
    client.request("ping")
    assert place.store.allowed() == {}
