"""Room 5, Providers: recorded screens, hook payloads and transcripts; profiles.

A file's name is the expectation: screens/<provider>/<state>-<what>.txt (as a person sees it)
and .ansi (with colours); transcripts/<provider>/<kind>-<what>.jsonl. The screens and payloads
are from Claude Code 2.1.330, Codex 0.169.0 and the other versions in conftest.PINNED, but for
*-numbered-* of Claude Code and Codex, *-quoted-* and asking-question, which are put together
from them, and the hooks of Kiro, written from its documents. A new bug of a provider starts as
a new file.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import shlex
from pathlib import Path

import pytest

import cao
from conftest import PINNED

HERE = Path(__file__).resolve().parent
CLAUDE, CODEX = cao.PROVIDERS["claude"], cao.PROVIDERS["codex"]


def params(folder, ending, states=None):
    """Return one parameter per file below a folder."""
    found = []
    for path in sorted((HERE / folder).glob(f"*/*{ending}")):
        name = f"{path.parent.name}/{path.name[: -len(ending)]}"
        if states is None or path.name.partition("-")[0] in states:
            found.append(pytest.param(path, id=name))
    assert found
    return found


def state_of(path):
    return path.name.partition("-")[0]


def row_of(path):
    return cao.PROVIDERS[path.parent.name]


# ---- recorded screens ----

DRAFTS = {
    "claude/draft-numbered-list": "1. Read the file",
    "claude/draft-pasted": "[Pasted text #101 +48 lines]",
    "claude/draft-put-back-by-esc": "MOCK:sleep 20;say never",
    "codex/draft-numbered-list": "1. Read the file",
    "codex/draft-pasted": "[Pasted Content 3419 chars]",
    "kimi/draft-line": "half a line",
    "opencode/draft-line": "half a line",
    "pi/draft-line": "half a line",
    "qwen/draft-put-back-by-esc": "MOCK:say long;sleep 20;say never",
    "copilot/draft-pasted": "[Paste #1 - 40 lines]",
    "copilot/draft-put-back-by-esc": "MOCK:slow 20 one two three",
}


@pytest.mark.parametrize("path", params("screens", ".ansi"))
def test_the_input_line_is_read_as_empty_as_a_draft_or_as_not_there(path):
    """In no recorded dialog is there one: nothing may be typed there."""
    expected = {
        "asking": None,
        "exited": None,
        "draft": DRAFTS.get(f"{path.parent.name}/{path.stem}"),
    }
    draft = cao.parse_draft(path.read_text(), row_of(path).composer)
    assert draft == expected.get(state_of(path), "")


def test_the_end_of_a_long_text_is_claudes_input_line():
    """Lines that are all alike do not tell whether its beginning has left the screen."""
    rule = "─" * 100
    screen = f"● ready\n─── ↑ 9 more {rule}\n  a b a b\n  a b a b\n{rule}\n  ⏸ manual mode on\n"
    composer = cao.PROVIDERS["claude"].composer
    assert cao.parse_draft(screen, composer) == "a b a b"
    assert cao.parse_draft(screen.replace("↑ 9 more", "plan"), composer) is None


def test_an_earlier_prompt_is_no_input_line():
    screen = (HERE / "screens/gemini/starting-resumes.txt").read_text()
    assert "\n > MOCK:say again 2\n" in screen
    assert cao.parse_draft(screen, cao.PROVIDERS["gemini"].composer) is None


@pytest.mark.parametrize("tip", ["shift+enter: newline | ctrl+c: cancel", "esc: back", ""])
def test_a_list_in_a_draft_above_kimis_tips_is_no_dialog(tip):
    text = (HERE / "screens/kimi/draft-line.ansi").read_text()
    head, line, foot = re.split(r"(?m)^(.*half a line.*\n)", text)
    quoted = line.replace("> half a line", "  > quoted   ") + line.replace("> half", "  indented")
    foot = foot.replace("/goal for multi-step work with a clear finish line", tip)
    draft = cao.parse_draft(head + line + quoted + foot, cao.PROVIDERS["kimi"].composer)
    assert draft == "half a line"


@pytest.mark.parametrize("name", ["asking-permission", "asking-question", "asking-trust"])
def test_a_text_that_looks_like_kimis_input_line_is_none_above_a_dialog(name):
    composer = cao.PROVIDERS["kimi"].composer
    screen = (HERE / f"screens/kimi/{name}.txt").read_text()
    assert cao.parse_draft(f" ✨ a table:\n    │ > │\n    ╰───╯\n{screen}", composer) is None


QUOTED = [
    "Do you want to proceed?\n❯ 1. Yes\n  2. No\n\nEsc to cancel · Tab to amend\n",
    "Allow once   Allow always   Reject      ⇆ select  enter confirm\n",
    "╭──────────╮\n│ Allow?   │\n│ ● 1. Yes │\n╰──────────╯\n  Press enter to confirm\n",
    "▶ 1. Approve once\n  2. Reject\n\n↑/↓ select · ↵ confirm\n",
]


@pytest.mark.parametrize(
    "path", params("screens", ".ansi", states=["ready", "working", "finished", "failed", "draft"])
)
def test_a_dialog_that_is_only_quoted_does_not_hide_the_input_line(path):
    composer, screen = row_of(path).composer, path.read_text()
    draft = cao.parse_draft(screen, composer)
    assert draft is not None
    raw = screen.split("\n")
    at = max(
        n for n in range(len(raw)) if cao.parse_draft("\n".join(raw[n:]), composer) is not None
    )
    at += path.parent.name == "pi"  # whose match begins at the rule above
    bar = re.match(r"\s*[│┃]?", cao.strip_ansi(raw[at]))[0]
    for quoted in QUOTED:
        assert cao.parse_draft(f"{quoted}\n{screen}", composer) == draft
        inside = [f"{bar}   {line}" for line in quoted.rstrip().split("\n")]
        typed = "\n".join(raw[: at + 1] + inside + raw[at + 1 :])
        # Codex's own dialogs have that line below their cursor: typing waits, to be safe.
        hides = path.parent.name == "codex" and quoted is QUOTED[2]
        assert (cao.parse_draft(typed, composer) is None) is hides


@pytest.mark.parametrize("path", params("screens", ".txt"))
def test_the_busy_sign_is_there_exactly_while_a_turn_runs(path):
    busy = re.search(row_of(path).busy, path.read_text())
    turns = ("working", "asking") if path.parent.name == "pi" else ("working",)
    assert bool(busy) is (state_of(path) in turns)  # pi's spinner turns above its dialog


RETRIES = {
    "claude/working-retry-401": "4/10",
    "claude/working-retry-500-last": "10/10",
    "claude/working-retry-529": "3/10",
    "codex/working-retry-500": "3/5",
    "codex/working-retry-529": "2/5",
    "kimi/working-retry": "7/10",
    "opencode/working-retry": "3",
    "pi/working-retry": "3/3",
}


@pytest.mark.parametrize("path", params("screens", ".txt"))
def test_a_failed_request_that_is_tried_again_is_seen(path):
    row = row_of(path)
    attempts = re.findall(row.retries, path.read_text(), re.M) if row.retries else []
    assert attempts[-1:] == [*filter(None, [RETRIES.get(f"{row.name}/{path.stem}")])]


@pytest.mark.parametrize("path", params("screens", ".txt"))
def test_a_screen_in_one_line_is_words_and_no_rule(path):
    line = cao.last_words(path.read_text(), 200)
    assert re.search(r"\w{2}", line)
    assert not re.search(r"[─-▟=_-]{8}", line), line


@pytest.mark.parametrize("path", params("screens", ".ansi"))
def test_a_screen_without_its_escapes_is_the_plain_screen(path):
    def lines(text):
        return [line.rstrip() for line in text.rstrip().split("\n")]

    assert lines(cao.strip_ansi(path.read_text())) == lines(path.with_suffix(".txt").read_text())


FAILURES = {
    "codex/failed-400": ('{"error": {"message": "mock error 400"', "api_error"),
    "codex/failed-401": ("unexpected status 401 Unauthorized", "auth"),
    "codex/failed-500": ("We’re currently experiencing high demand", "api_error"),
    "codex/failed-529": ("unexpected status 529", "api_error"),
}


@pytest.mark.parametrize(
    "path", [p for p in params("screens", ".txt", states=["failed"]) if p.id in FAILURES]
)
def test_a_failed_turns_words_are_found_on_the_screen(path):
    words, reason = FAILURES[f"{path.parent.name}/{path.stem}"]
    (found,) = re.findall(row_of(path).failure, path.read_text(), re.M)
    assert found.startswith(words)
    assert cao.classify_failure(found) == reason


def test_every_recorded_screen_has_the_place_of_its_expectation():
    ids = {p.id for p in params("screens", ".txt")}
    assert {f"{name}/asking-permission" for name in PINNED} <= ids
    assert {i for i in ids if "/draft-" in i} == set(DRAFTS)
    states = {i.partition("/")[2].partition("-")[0] for i in ids}
    assert states == {
        *("asking", "draft", "exited", "failed", "finished"),
        *("interrupted", "ready", "starting", "working"),
    }


# ---- hooks ----

HOOKS = {  # file -> kind, text, reason; a hook that is not here says nothing to us
    "claude/PermissionRequest.Bash": (
        "asked",
        "Bash: touch /home/dev/run/touched2 (touch a file)",
        "Bash",
    ),
    "claude/SessionEnd.other": ("leaving", "", ""),
    "claude/SessionEnd.prompt_input_exit": ("leaving", "", ""),
    "claude/SessionStart.resume": ("started", "", ""),
    "claude/SessionStart.startup": ("started", "", ""),
    "claude/Stop": ("ended", "INBOX13", ""),
    "claude/StopFailure": (
        "failed",
        "API Error: 500 mock error 500. This is a server-side issue, usually temporary — try again"
        " in a moment. If it persists, check your inference gateway (127.0.0.1:8931).",
        "api_error",
    ),
    "claude/UserPromptSubmit": ("submitted", "MOCK:tool now {};say FIRST\nline", ""),
    "codex/Interrupt": ("interrupted", "", ""),
    "codex/PermissionRequest.Bash": ("asked", "Bash: touch /home/dev/run/perm-codex (j)", "Bash"),
    "codex/SessionEnd.other": ("leaving", "", ""),
    "codex/SessionStart.resume": ("started", "", ""),
    "codex/SessionStart.startup": ("started", "", ""),
    "kimi/Interrupt": ("interrupted", "", ""),
    "kimi/PermissionRequest": ("asked", "Bash: echo permtest > x.txt", "Bash"),
    "kimi/PermissionRequest.subagent-shell": ("asked", "Bash: touch s", "Bash"),
    "kimi/SessionEnd": ("leaving", "", ""),
    "kimi/SessionStart": ("started", "", ""),
    "kimi/Stop": ("ended", "", ""),
    "kimi/Stop.subagent": ("ended", "", ""),  # nothing says whose it is: the transcript does
    "kimi/StopFailure": ("failed", "400 mock error 400", "api_error"),
    "kimi/UserPromptSubmit": ("submitted", "MOCK:say hello from kimi", ""),
    "kiro/agentSpawn": ("started", "", ""),
    "kiro/stop": ("ended", "hello\nthere", ""),
    "kiro/userPromptSubmit": ("submitted", "say hello\nin two lines", ""),
    "pi/Interrupt": ("interrupted", "", ""),
    "pi/PermissionRequest": ("asked", "bash: touch x", "bash"),
    "pi/SessionEnd": ("leaving", "", ""),
    "pi/SessionStart": ("started", "", ""),
    "pi/Stop": ("ended", "went on", ""),
    "pi/UserPromptSubmit": ("submitted", 'MOCK:tool bash {"command":"touch x"};say went on', ""),
    "codex/Stop": ("ended", "longline\n" * 80, ""),
    "codex/UserPromptSubmit": ("submitted", "MOCK:repeat 80 longline", ""),
    "copilot/SessionStart": ("started", "", ""),
    "copilot/Stop": ("ended", "", ""),
    "copilot/UserPromptSubmit": (
        "submitted",
        'MOCK:tool bash {"command":"touch /var/tmp/asked-for","description":"make it"};say after',
        "",
    ),
}


HOOKS.update(
    {
        "gemini/AfterAgent": ("ended", "", ""),
        "gemini/AfterAgent.error": ("ended", "", ""),
        "gemini/BeforeAgent": ("submitted", "MOCK:say hello from gemini", ""),
        "gemini/Notification.subagent": (
            "asked",
            "Confirm Shell Command: touch s\nrootCommand: touch",
            "Confirm Shell Command",
        ),
        "gemini/Notification": (
            "asked",
            "Confirm MCP Tool Execution:\nserverName: lab\ntoolName: echo\n"
            "toolDisplayName: echo (lab MCP Server)",
            "Confirm MCP Tool Execution",
        ),
        "gemini/SessionEnd": ("leaving", "", ""),
        "gemini/SessionStart": ("started", "", ""),
        "qwen/PermissionRequest": (
            "asked",
            "run_shell_command: echo permtest > x.txt (x)\nis_background: false",
            "run_shell_command",
        ),
        "qwen/SessionEnd": ("leaving", "", ""),
        "qwen/SessionStart": ("started", "", ""),
        "qwen/Stop": ("ended", "hello from qwen", ""),
        "qwen/StopFailure": ("failed", "[API Error: 400 mock error 400]", "api_error"),
        "qwen/UserPromptSubmit": ("submitted", "MOCK:say hello from qwen", ""),
    }
)
LONG = "printf %s '" + 'x<y>&"z" ' * 300
HUNDRED_LINES = 'line 1 ünï "q" <b>\n', 'line 120 ünï "q" <b>'
COLOURS = "Which colour? (Red, Blue)\nWhich parts? (Core, Docs, Tests)"
BOOM = "mcp__lab__boom:\nwhat: " + "w" * 3000
WHOLE = {  # file -> how what is asked begins and ends, the tool: all of it is there
    "claude/PermissionRequest.AskUserQuestion": (COLOURS, "", "AskUserQuestion"),
    "claude/PermissionRequest.Edit": (
        "Edit: /home/dev/proj/w.txt\nold_string: line 5 \nnew_string: LINE FIVE\n\n",
        "replace_all: false",
        "Edit",
    ),
    "claude/PermissionRequest.WebFetch": (
        "WebFetch: https://example.invalid/x?y=1\nprompt: read it",
        "",
        "WebFetch",
    ),
    "claude/PermissionRequest.Write": (
        f"Write: /home/dev/proj/w.txt\ncontent: {HUNDRED_LINES[0]}",
        HUNDRED_LINES[1],
        "Write",
    ),
    "claude/PermissionRequest.long-shell": (f"Bash: {LONG}", "' > long.txt (make it)", "Bash"),
    "claude/PermissionRequest.mcp__lab__boom": (BOOM, "", "mcp__lab__boom"),
    "claude/PermissionRequest.subagent-shell": ("Bash: touch s1 (make it)", "", "Bash"),
    "codex/PermissionRequest.apply_patch": (
        f"apply_patch: *** Begin Patch\n*** Add File: w.txt\n+{HUNDRED_LINES[0]}+line 2",
        f"+{HUNDRED_LINES[1]}\n*** End Patch",
        "apply_patch",
    ),
    "codex/PermissionRequest.long-shell": (f"Bash: {LONG}", "' > long.txt (may I?)", "Bash"),
    "codex/PermissionRequest.mcp__lab__boom": (BOOM, "", "mcp__lab__boom"),
    "codex/PermissionRequest.subagent-write": (
        "apply_patch: *** Begin Patch\n*** Add File: sw.txt\n+x\n*** End Patch",
        "",
        "apply_patch",
    ),
    "copilot/PermissionRequest": ("bash: touch /var/tmp/asked-for", "", "bash"),
    "copilot/PermissionRequest.create": (
        "edit: /home/dev/proj/w.txt\ndiff: \ndiff --git a/",
        f"+{HUNDRED_LINES[1]}\n",
        "edit",
    ),
    "copilot/PermissionRequest.lab-boom": ("lab/boom:\nwhat: " + "w" * 3000, "", "lab/boom"),
    "copilot/PermissionRequest.long-shell": (f"bash: {LONG}", "' > long.txt", "bash"),
    "copilot/PermissionRequest.subagent-shell": ("bash: touch s1", "", "bash"),
    "qwen/PermissionRequest.agent": (
        "agent: (do it)\nprompt: MOCK:tool run_shell_command {",
        "say sub done kid\nsubagent_type: general-purpose",
        "agent",
    ),
    "qwen/PermissionRequest.ask_user_question": (COLOURS, "", "ask_user_question"),
    "qwen/PermissionRequest.long-shell": (
        f"run_shell_command: {LONG}",
        "is_background: false",
        "run_shell_command",
    ),
    "qwen/PermissionRequest.mcp__lab__boom": (BOOM, "", "mcp__lab__boom"),
    "qwen/PermissionRequest.subagent-shell": (
        "run_shell_command: touch s2 (make it)\nis_background: false",
        "",
        "run_shell_command",
    ),
    "qwen/PermissionRequest.write_file": (
        f"write_file: /home/dev/proj/w.txt\ncontent: {HUNDRED_LINES[0]}",
        HUNDRED_LINES[1],
        "write_file",
    ),
}


def request_of(path):
    return cao.claude_shaped(json.loads((HERE / "hooks" / f"{path}.json").read_text()))


@pytest.mark.parametrize("name", WHOLE)
def test_all_of_what_is_asked_is_read_from_the_hook_that_asks(name):
    begins, ends, tool = WHOLE[name]
    row, payload = cao.PROVIDERS[name.partition("/")[0]], request_of(name)
    assert cao.waits_at_hook(row, payload)
    event = cao.read_hook(payload)
    assert (event.kind, event.reason) == ("asked", tool)
    assert event.text.startswith(begins)
    assert event.text.rstrip().endswith(ends.rstrip())
    assert (payload.get("agent_id") is None) == ("subagent" not in name)
    given = [v for v in payload["tool_input"].values() if isinstance(v, str)]
    assert all(value in event.text for value in given)
    assert event.conversation == ("" if "subagent" in name else payload["session_id"])


@pytest.mark.parametrize("path", [p for p in params("hooks", ".json") if p.id not in WHOLE])
def test_a_recorded_hook_payload_says_what_happened(path):
    payload = json.loads(path.read_text())
    event = (row_of(path).read_event or cao.read_hook)(payload)
    expected = HOOKS.get(f"{path.parent.name}/{path.name[: -len('.json')]}")
    if not expected:
        assert event is None
        return
    kind, text, reason = expected
    keys = ("session_id", "conversation_id", "sessionId")
    conversation = next(payload[key] for key in keys if key in payload)
    transcript = payload.get("transcript_path", "")
    if cao.agent_of(payload):  # Codex's sub-agents name their own
        conversation = transcript = ""
    assert event == cao.Event(
        kind,
        text,
        reason,
        source=f"hook:{payload['hook_event_name']}",
        conversation=conversation,
        transcript=transcript,
    )


def test_every_expected_hook_payload_was_recorded():
    assert {*HOOKS, *WHOLE} <= {p.id for p in params("hooks", ".json")}


def hook(name, **fields):
    return cao.read_hook({"hook_event_name": name, "session_id": "s", **fields})


@pytest.mark.parametrize(
    ("tasks", "background", "blocking"),
    [
        pytest.param([], (), False, id="none"),
        pytest.param(None, (), False, id="null"),
        pytest.param(
            [
                {
                    "id": "k1",
                    "type": "MCP task",
                    "status": "running",
                    "server": "lab",
                    "tool": "wait",
                }
            ],
            ("MCP task k1",),
            True,
            id="a tool call",
        ),
        pytest.param(
            [{"id": "b1", "type": "shell", "status": "running", "description": "npm run dev"}],
            ("shell npm run dev",),
            False,
            id="a shell",
        ),
        pytest.param(
            [{"id": "b1", "type": "shell", "status": "completed", "description": "make"}],
            (),
            False,
            id="a shell that ended",
        ),
        pytest.param(
            [{"id": "a1", "type": "agent"}, {"id": "b1", "type": "shell"}],
            ("agent a1", "shell b1"),
            True,
            id="an agent and a shell",
        ),
        pytest.param(["x", 5], (), False, id="not objects"),
        pytest.param(5, (), False, id="not a list"),
    ],
)
def test_what_still_runs_at_a_turns_end_is_listed(tasks, background, blocking):
    event = hook("Stop", last_assistant_message="x", background_tasks=tasks)
    held_s = cao.hold_s(event.background)
    assert (tuple(event.background.values()), held_s == float("inf")) == (background, blocking)
    assert (held_s > 0) == bool(background)  # a shell holds up a task, but not for ever


@pytest.mark.parametrize(
    ("error", "words", "reason", "retry_at"),
    [
        ("server_error", "API Error: 500 mock", "api_error", ""),
        ("unknown", "API Error: 400 mock error 400", "api_error", ""),
        ("authentication_failed", "Not logged in · Please run /login", "auth", ""),
        ("rate_limit", "You've hit your limit · resets 3pm (Europe/Berlin)", "rate_limit",
         "3pm (Europe/Berlin)"),
        ("", "API Error: Connection lost mid-response.", "api_error", ""),
        (None, None, "api_error", ""),
    ],
)  # fmt: skip
def test_a_failed_turn_says_why_and_when_to_try_again(error, words, reason, retry_at):
    event = hook("StopFailure", error=error, last_assistant_message=words)
    assert (event.kind, event.text) == ("failed", words or "")
    assert (event.reason, event.retry_at) == (reason, retry_at)


@pytest.mark.parametrize(
    "payload",
    [{}, {"hook_event_name": None}, {"hook_event_name": 5}, {"hook_event_name": "SubagentStop"},
     {"type": "agent-turn-complete"}, {"cao": "stop"}],
    ids=repr,
)  # fmt: skip
def test_a_payload_that_is_not_for_us_says_nothing(payload):
    assert cao.read_hook(payload) is None


@pytest.mark.parametrize("name", [*cao._HOOK_KINDS])
def test_a_payload_with_fields_of_another_type_is_still_read(name):
    fields = ("prompt", "last_assistant_message", "error", "tool_name", "tool_input", "session_id")
    for value in (None, 5, True, [], {}, "", "x", [5], {"a": 5}):
        event = cao.read_hook({"hook_event_name": name, **dict.fromkeys(fields, value)})
        assert event.kind == cao._HOOK_KINDS[name]
        assert all(isinstance(part, str) for part in event[:7]), value


@pytest.mark.parametrize(
    ("tool", "given", "text"),
    [
        ("Bash", {"command": "ls", "description": "list"}, "Bash: ls (list)"),
        ("Bash", {"command": "ls"}, "Bash: ls"),
        ("Write", {"file_path": "/a/b", "content": "x\ny"}, "Write: /a/b\ncontent: x\ny"),
        ("WebFetch", {"url": "http://x"}, "WebFetch: http://x"),
        ("mcp__a__b", {"k": "é", "n": [1, "ü"]}, 'mcp__a__b:\nk: é\nn: [1, "ü"]'),
        ("mcp__a__b", {"command": ["ls", "-l"]}, "mcp__a__b: ['ls', '-l']"),
        ("Bash", {"command": "ls", "path": "/x", "url": ""}, "Bash: ls\npath: /x\nurl: "),
        ("AskUserQuestion", {"questions": [{"question": "Which?"}]}, "Which?"),
        ("AskUserQuestion", {"questions": [{"question": "Two\nlines?"}]}, "Two\nlines?"),
        ("AskUserQuestion", {"questions": []}, "AskUserQuestion:\nquestions: []"),
        ("X", None, "X"),
        ("X", "words", "X"),
        ("X", {}, "X:"),
    ],
)
def test_a_permission_request_reads_as_a_person_likes_it(tool, given, text):
    assert cao.render_request({"tool_name": tool, "tool_input": given}) == text


# ---- questions and answers ----

FORM = {
    "message": "Two things",
    "requestedSchema": {
        "properties": {
            "colour": {"type": "string", "title": "Which colour?", "enum": ["Red", "Blue"]},
            "parts": {"type": "array", "items": {"type": "string", "enum": ["Core", "Docs"]}},
        },
        "required": ["colour"],
    },
}
ONE_FIELD = {"message": "Which?", "requestedSchema": {"properties": {"c": {"enum": ["Red"]}}}}
PLAIN = {"message": "Which\none?", "requestedSchema": {"properties": {"text": {"type": "string"}}}}


@pytest.mark.parametrize(
    ("tool", "given", "questions"),
    [
        ("Bash", {"questions": [{"question": "Which?"}]}, []),
        ("ask_user", FORM, [("Two things: Which colour?", ["Red", "Blue"]),
                            ("parts", ["Core", "Docs"])]),
        ("ask_user", ONE_FIELD, [("Which?", ["Red"])]),
        ("ask_user", PLAIN, [("Which\none?", [])]),
        ("ask_user", {"message": "Which?"}, [("Which?", [])]),
        ("question", {"questions": [{"header": "H", "options": [{"label": "a"}, "b"]}]},
         [("H", ["a", "b"])]),
        *((tool, {"questions": broken}, []) for tool in cao.QUESTION_TOOLS
          for broken in (None, 5, "x", {}, [5], ["x"])),
        *(("ask_user", {"message": "Which?", "requestedSchema": broken}, [("Which?", [])])
          for broken in (None, 5, [], {"properties": 5}, {"properties": {"a": 5}},
                         {"properties": {"a": {"enum": 5, "items": 5}}})),
        ("ask_user", {"questions": [{"question": None, "options": [None, {}, 5]}]},
         [("", ["", "", "5"])]),
        ("ask_user", None, []),
        (["ask_user"], FORM, []),
    ],
)  # fmt: skip
def test_the_questions_of_a_model_are_found_in_what_its_tool_is_given(tool, given, questions):
    payload = {"hook_event_name": "PermissionRequest", "tool_name": tool, "tool_input": given}
    assert cao.questions_in(payload) == questions
    assert cao.read_hook(payload).kind == "asked"


@pytest.mark.parametrize(
    ("provider", "event", "tool", "waits"),
    [
        ("claude", "PermissionRequest", "Bash", True),
        ("claude", "PermissionRequest", "AskUserQuestion", True),
        ("claude", "PreToolUse", "Bash", False),
        ("codex", "PermissionRequest", "apply_patch", True),
        ("qwen", "PermissionRequest", "ask_user_question", True),
        ("copilot", "PermissionRequest", "bash", True),
        ("copilot", "PreToolUse", "ask_user", True),
        ("copilot", "PreToolUse", "bash", False),
        ("opencode", "PermissionRequest", "question", True),
        ("pi", "PermissionRequest", "bash", True),
        ("demo", "PermissionRequest", "Bash", True),
        ("gemini", "BeforeTool", "ask_user", True),
        ("gemini", "BeforeTool", "run_shell_command", False),
        ("gemini", "PermissionRequest", "run_shell_command", False),
        ("kimi", "PermissionRequest", "Bash", False),
        ("kimi", "PreToolUse", "AskUserQuestion", True),
        ("kimi", "PreToolUse", "Bash", False),
        ("claude", "Stop", "AskUserQuestion", False),
    ],
)
def test_a_hook_waits_exactly_for_what_its_output_answers(provider, event, tool, waits):
    given = {"questions": [{"question": "Which?", "options": []}]}
    payload = {"hook_event_name": event, "tool_name": tool, "tool_input": given}
    assert cao.waits_at_hook(cao.PROVIDERS[provider], payload) is waits


@pytest.mark.parametrize("provider", [n for n, row in cao.PROVIDERS.items() if row.asks])
def test_a_permission_has_yes_and_no_and_always_where_the_cli_takes_that(provider):
    row = cao.PROVIDERS[provider]
    payload = {"tool_name": "Bash", "tool_input": {"command": "x"}}
    keys = [option.key for option in cao.options_of(row, payload)]
    takes = provider in ("claude", "opencode", "demo")
    assert keys == ["yes", "no", *["always"] * takes]


@pytest.mark.parametrize(("name", "own"), [
    ("mcp__cao__handoff", True), ("mcp__cao__list_sessions: {}", True), ("cao/wait", True),
    ("mcp__cao__shell__run", False), ("mcp__cao__a_b__run", False), ("mcp__cao___run", False),
    ("mcp__caos__run", False), ("x mcp__cao__wait", False), ("mcp__cao__my-server__run", False),
    ("mcp__cao__wait-more__run", False), ("mcp__cao__run", False),
])  # fmt: skip
def test_a_server_whose_name_begins_like_ours_is_another(name, own):
    assert bool(cao.OWN_TOOL.match(name)) is own
    assert list(cao.TOOLS) == cao.OWN_TOOLS


ALLOWS_OTHER = [  # than the words beside `always` say, or nothing
    ("claude", {"tool_name": "Write", "tool_input": {"file_path": "/a", "content": "x"}}),
    ("claude", {"tool_name": "WebFetch", "tool_input": {"url": "https://a.example"}}),
    ("claude", {"tool_name": "mcp__tickets__delete", "tool_input": {"id": 1}}),
    ("claude", {"tool_name": "mcp__x__run", "tool_input": {"command": "ls"}}),
    ("claude", {"tool_name": "Bash", "tool_input": {"command": "rm *"}}),
    ("opencode", {"tool_name": "bash", "tool_input": {"command": "x"}, "always": "a *, " * 50}),
]


@pytest.mark.parametrize(("provider", "payload"), ALLOWS_OTHER)
def test_always_is_offered_only_where_it_allows_what_it_names(provider, payload):
    options = cao.options_of(cao.PROVIDERS[provider], payload)
    assert [option.key for option in options] == ["yes", "no"]


def asks(*questions):
    listed = [
        {"question": q, "options": [{"label": o} for o in options]} for q, options in questions
    ]
    return {"tool_name": "AskUserQuestion", "tool_input": {"questions": listed}}


def test_one_question_has_its_options_and_several_are_answered_by_lines():
    options = cao.options_of(CLAUDE, asks(("Which?", ["Red", "Blue"])))
    assert options == (cao.Option("1", "Red"), cao.Option("2", "Blue"))
    assert cao.options_of(CLAUDE, asks(("Which?", []))) == ()
    assert cao.options_of(CLAUDE, asks(("A?", ["Red"]), ("B?", ["x"]))) == ()


def permission(**fields):
    return {"hook_event_name": "PermissionRequest", "tool_name": "Bash",
            "tool_input": {"command": "touch x"}, **fields}  # fmt: skip


def decided(**decision):
    return {"hookSpecificOutput": {"hookEventName": "PermissionRequest", "decision": decision}}


def denied_before(reason):
    return {"hookSpecificOutput": {"hookEventName": "PreToolUse", "permissionDecision": "deny",
                                   "permissionDecisionReason": reason}}  # fmt: skip


WORDS = 'use "b" <c>\nü'
ONE = asks(("Which colour?", ["Red", "Blue"]))
TWO = asks(("Which colour?", ["Red"]), ("Which\nparts?", []))
SESSION_RULE = {"type": "addRules", "rules": [{"toolName": "Bash", "ruleContent": "touch x"}],
                "behavior": "allow", "destination": "session"}  # fmt: skip


def claude_answers(asked, **answers):
    given = {**asked["tool_input"], "answers": answers["answers"]}
    return decided(behavior="allow", updatedInput=given)


@pytest.mark.parametrize(
    ("provider", "payload", "answer", "words", "reply"),
    [
        *((name, permission(), *case) for name in ("claude", "codex", "qwen") for case in (
            ("yes", "", decided(behavior="allow")),
            ("no", WORDS, decided(behavior="deny", message=WORDS)),
            ("no", "", decided(behavior="deny", message="The user refused this.")),
        )),
        ("claude", permission(), "always", "",
         decided(behavior="allow", updatedPermissions=[SESSION_RULE])),
        ("copilot", permission(), "yes", "", {"behavior": "allow"}),
        ("copilot", permission(), "no", WORDS, {"behavior": "deny", "message": WORDS}),
        *((name, permission(), "yes", "", {"answer": "yes", "message": ""})
          for name in ("opencode", "pi", "demo")),
        *((name, permission(), "no", WORDS, {"answer": "no", "message": WORDS})
          for name in ("opencode", "pi", "demo")),
        ("opencode", permission(), "always", "",
         {"answer": "always", "message": ""}),
        # a question of the model's: as data where the CLI takes data
        ("claude", {**permission(), **ONE}, "words", "Blue",
         claude_answers(ONE, answers={"Which colour?": "Blue"})),
        ("claude", {**permission(), **ONE}, "words", WORDS,
         claude_answers(ONE, answers={"Which colour?": WORDS})),
        ("claude", {**permission(), **TWO}, "words", "Red\nCore, Docs",
         claude_answers(TWO, answers={"Which colour?": "Red", "Which\nparts?": "Core, Docs"})),
        *(("opencode", {**permission(), **asked}, "words", words,
           {"answer": "words", "message": message, "answers": answers})
          for asked, words, message, answers in (
            (ONE, "Blue", "The user answered: Blue", [["Blue"]]),
            (ONE, "a\nb", "The user answered: a\nb", [["a\nb"]]),
            (TWO, "Red\nb", "The user answered: Which colour? = Red; Which\nparts? = b",
             [["Red"], ["b"]]),
        )),
        # else as the words of a denial
        ("qwen", {**permission(), **ONE}, "words", WORDS,
         decided(behavior="deny", message=f"The user answered: {WORDS}")),
        ("qwen", {**permission(), **TWO}, "words", "Red\nb", decided(
            behavior="deny", message="The user answered: Which colour? = Red; Which\nparts? = b")),
        ("kimi", {**permission(hook_event_name="PreToolUse"), **ONE}, "words", WORDS,
         denied_before(f"The user answered: {WORDS}")),
        ("copilot", {**permission(hook_event_name="PreToolUse"), **ONE}, "words", "Blue",
         {"permissionDecision": "deny", "permissionDecisionReason": "The user answered: Blue"}),
        ("gemini", {**permission(hook_event_name="BeforeTool"), **ONE}, "words", "Blue",
         {"decision": "deny", "reason": "The user answered: Blue"}),
    ],
)  # fmt: skip
def test_an_answer_is_printed_as_its_cli_takes_it(provider, payload, answer, words, reply):
    assert cao.hook_reply(cao.PROVIDERS[provider], payload, answer, words) == reply


# ---- failures ----


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("API Error: 500 mock error 500", "api_error"),
        ("API Error: 529 overloaded", "api_error"),
        ("stream disconnected before completion", "api_error"),
        ("We’re currently experiencing high demand", "api_error"),
        ("", "api_error"),
        ("port 14010 refused, 4290 bytes", "api_error"),
        ("5-hour limit reached ∙ resets 3am", "rate_limit"),
        ("API Error: 429 slow down", "rate_limit"),
        ("rate_limit", "rate_limit"),
        ("Rate limit reached", "rate_limit"),
        ("You've hit your limit · resets 3pm", "rate_limit"),
        ("usage_limit_exceeded", "rate_limit"),
        ("You exceeded your current quota", "rate_limit"),
        ("billing_error", "rate_limit"),
        ("unexpected status 401 Unauthorized", "auth"),
        ("403 Forbidden", "auth"),
        ("authentication_failed", "auth"),
        ("Invalid API key · Please run /login", "auth"),
        ("Not logged in", "auth"),
        ("{'http_connection_failed': {'http_status_code': 401}}", "auth"),
        ("401: rate limit", "rate_limit"),
    ],
)
def test_a_failure_is_classified_by_the_clis_own_words(words, reason):
    assert cao.classify_failure(words) == reason


@pytest.mark.parametrize(
    ("words", "when"),
    [
        ("You've hit your limit · resets 3pm (Europe/Berlin)", "3pm (Europe/Berlin)"),
        ("Your limit will reset at 15:30 UTC.", "at 15:30 UTC"),
        ("You've hit your usage limit. Try again at 9:10 PM.", "at 9:10 PM"),
        ("Try again in 2 hours 5 minutes.", "in 2 hours 5 minutes"),
        ("limit resets Oct 7, 1am", "Oct 7, 1am"),
        ("resets on 2026-11-23 at 10:00 | upgrade", "on 2026-11-23 at 10:00"),
        ("retry after 30 s; or wait", "after 30 s"),
        ("try again in a moment. See 127.0.0.1:8931", ""),
        ("exceeded retry limit, last status: 429 Too Many Requests", ""),
        ("5-hour limit reached ∙ resets 3am", "3am"),
        ("retrying in 24s · attempt 10/10", ""),
        ("API Error: 500", ""),
        ("", ""),
        pytest.param(
            "Rate limit reached. Please try again in 1.898s. Visit the site.", "in 1.898s"
        ),
    ],
)
def test_the_time_to_try_again_is_read_from_the_clis_own_words(words, when):
    assert cao.retry_time(words) == when


# ---- transcripts ----

TURNS = {  # file -> text, reason, retry_at
    "claude/ended-after-a-tool": ("two files", "", ""),
    "claude/ended-one-turn": ("hello “there”\nsecond line", "", ""),
    "claude/ended-with-a-sidechain": ("main answer", "", ""),
    "claude/failed-api-error": (
        "API Error: 500 mock error 500. This is a server-side issue, usually temporary — try again"
        " in a moment.",
        "api_error",
        "",
    ),
    "claude/failed-auth": ("Not logged in · Please run /login", "auth", ""),
    "claude/failed-rate-limit": (
        "You've hit your limit · resets 3pm (Europe/Berlin)",
        "rate_limit",
        "3pm (Europe/Berlin)",
    ),
    "kimi/ended-after-a-tool": ("done", "", ""),
    "kimi/ended-it-began-again": (
        'ok: <notification id="task:agent-b2t7k3wj:failed" category="task',
        "",
        "",
    ),
    "kimi/ended-one-turn": ("ready", "", ""),
    "kimi/failed-400": ("400 mock error 400", "api_error", ""),
    "pi/ended-after-a-tool": ("done", "", ""),
    "codex/ended-one-turn": ("hello “there”\nsecond line", "", ""),
    "codex/ended-two-turns": ("second", "", ""),
    "codex/failed-with-no-words": (  # a hook of the user's refused the prompt
        "the turn ended without an answer: a hook of yours may have refused the prompt",
        "blocked",
        "",
    ),
    "codex/failed-400": (
        '{"type": "error", "error": {"message": "mock error 400"}}',
        "api_error",
        "",
    ),
    "codex/failed-401": (
        "unexpected status 401 Unauthorized: mock error 401, url: http://127.0.0.1:8931/v1/responses",
        "auth",
        "",
    ),
    "copilot/ended-after-a-tool": ("after", "", ""),
    "copilot/ended-one-turn": ("hello", "", ""),
    "copilot/failed-400": ("400 mock error 400", "api_error", ""),
    "copilot/failed-500": (
        "Failed to get response from the AI model; retried 5 times (total retry wait time: 15.73"
        " seconds) Last error: 500 mock error 500",
        "api_error",
        "",
    ),
    "codex/failed-500": (
        "We’re currently experiencing high demand, which may cause temporary errors.",
        "api_error",
        "",
    ),
    "codex/failed-drop": (
        "stream disconnected before completion: stream closed before response.completed",
        "api_error",
        "",
    ),
    "codex/failed-then-nothing": ("plain words", "api_error", ""),
    "codex/failed-usage-limit": (
        "You've hit your usage limit. Try again at 9:10 PM.",
        "rate_limit",
        "at 9:10 PM",
    ),
}
TURNS.update(
    {
        "gemini/ended-after-a-tool": ("after", "", ""),
        "gemini/ended-one-turn": (
            "use \\@pytest.fixture and \\@exists.txt me\\@example.com",
            "",
            "",
        ),
        "gemini/failed-400": (
            '[API Error: {"type":"error","error":{"type":"invalid_request_error",'
            '"message":"mock error 400","code":400,"status":"invalid_request_error"}}]',
            "api_error",
            "",
        ),
        "qwen/ended-after-a-tool": ("after", "", ""),
        "qwen/ended-one-turn": (
            "  indented\n> quoted\n\n\tü 😀 'x' \"y\" `z` $HOME \\\n    last",
            "",
            "",
        ),
    }
)


REFUSED = "a hook of yours refused it: this is NOT allowed <by me>"
TURNS.update(
    {
        "claude/ended-a-hook-stopped-at-the-end": ("hello", "", ""),
        "claude/failed-a-hook-refused-the-prompt": (REFUSED, "blocked", ""),
        "claude/failed-a-hook-stopped-before-a-tool": (REFUSED, "blocked", ""),
        "claude/failed-a-hook-stopped-the-prompt": (REFUSED, "blocked", ""),
        "copilot/failed-a-hook-refused-the-prompt": (REFUSED, "blocked", ""),
        "gemini/ended-a-hook-sent-it-back": ("ok: this is NOT allowed <by me>", "", ""),
        "gemini/ended-a-hook-stopped-at-the-end": ("hello", "", ""),
        "gemini/failed-a-hook-refused-the-prompt": (REFUSED, "blocked", ""),
        "gemini/failed-a-hook-stopped-after-a-tool": (REFUSED, "blocked", ""),
        "kimi/failed-a-hook-refused-the-prompt": (REFUSED, "blocked", ""),
    }
)


def read(path, text):
    return row_of(path).read_transcript(text.split("\n"))


# What was said at an end that did not count.
EARLIER = {
    "codex/ended-two-turns": ("first",),
    "gemini/ended-a-hook-sent-it-back": ("hello",),
    "kimi/ended-it-began-again": ("the agent failed, so I did it myself",),
}


@pytest.mark.parametrize("path", params("transcripts", ".jsonl"))
def test_a_transcript_tells_how_the_turn_ended(path):
    event = read(path, path.read_text())
    kind = state_of(path)
    if kind == "none":
        assert event is None
        return
    text, reason, retry_at = TURNS.get(f"{path.parent.name}/{path.stem}", ("", "", ""))
    earlier = EARLIER.get(f"{path.parent.name}/{path.stem}", ())
    assert event == cao.Event(kind, text, reason, "transcript", retry_at=retry_at, earlier=earlier)


def test_every_expected_transcript_is_there():
    ids = {p.id for p in params("transcripts", ".jsonl")}
    assert {i for i in ids if re.search("/(ended|failed)-", i)} == set(TURNS)


@pytest.mark.parametrize("path", params("transcripts", ".jsonl"))
def test_a_half_written_last_line_counts_for_nothing(path):
    whole = path.read_text()
    start = whole.rstrip("\n").rfind("\n") + 1
    before = read(path, whole[:start])
    for end in range(start, len(whole) - 1):
        assert read(path, whole[:end]) == before, whole[start:end]
    assert read(path, whole[:-1]) == read(path, whole)  # the newline alone may be missing


@pytest.mark.parametrize("provider", [n for n, row in cao.PROVIDERS.items() if row.program])
def test_a_transcript_of_nothing_or_of_strange_lines_says_nothing(provider):
    lines = ["", "null", "5", "[]", '"x"', "{}", "{", '{"type":"user"}', '{"type":"event_msg"}',
             '{"type":"assistant","message":null}', '{"type":"event_msg","payload":5}',
             '{"type":"assistant","message":{"parts":5}}',
             '{"type":"agent.message.appended","message":{"message":5}}']  # fmt: skip
    assert cao.PROVIDERS[provider].read_transcript([]) is None
    assert cao.PROVIDERS[provider].read_transcript(lines) is None


def test_a_turn_of_copilots_ends_with_its_hooks_unless_one_blocks_that():
    lines = (HERE / "transcripts/copilot/ended-one-turn.jsonl").read_text().splitlines()
    ours = [n for n, line in enumerate(lines) if '"agentStop"' in line]
    read = cao.PROVIDERS["copilot"].read_transcript
    assert read(lines[: ours[0]]).text == "hello"  # there may be no such hook
    assert read(lines[: ours[0] + 1]) is None
    assert read(lines[: ours[1] + 1]) == read(lines[: ours[0]])
    blocks = json.loads(lines[ours[1]])
    blocks["data"]["output"] = {"decision": "block", "reason": "go on"}
    blocked = [*lines[: ours[1]], json.dumps(blocks)]
    assert (read(blocked).text, read(blocked).blocking) == ("hello", True)
    started = json.dumps({"type": "assistant.turn_start", "data": {}})
    assert read([*blocked, started]) is None


def test_qwen_may_tell_of_several_shells_that_have_ended_in_one_text():
    def entry(**part):
        return json.dumps({"type": "user", "message": {"parts": [part]}})

    def begun(name):
        output = f"Background shell started.\nid: {name}\npid: 5"
        return entry(functionResponse={"response": {"output": output}})

    def ended(*names):
        form = "<task-notification>\n<task-id>{}</task-id>\n<kind>shell</kind>"
        return entry(text="\n\n".join(map(form.format, names)))

    read = cao.PROVIDERS["qwen"].read_work
    lines = [begun("bg_1"), begun("bg_2"), begun("bg_3")]
    assert read([*lines, ended("bg_1")]) == {"bg_1": "", "bg_2": "shell bg_2", "bg_3": "shell bg_3"}
    assert set(read([*lines, ended("bg_1"), ended("bg_3", "bg_2")]).values()) == {""}


def test_a_claude_transcript_with_words_for_blocks_is_read():
    assert CLAUDE.read_transcript(['{"type":"user","message":{"content":["x"]}}']) is None


# ---- typing ----


@pytest.mark.parametrize(
    ("provider", "text", "fault"),
    [
        ("claude", "fix the bug", ""),
        ("claude", "two\nlines", ""),
        ("claude", "  indented\nlast", ""),
        ("claude", "quotes ' \" $HOME `id` \\ # % ;", ""),
        ("claude", "!ls", "'!' at character 0"),
        ("claude", "/compact", "'/' at character 0"),
        ("claude", "  /compact", "'  /' at character 0"),
        ("claude", "\n!ls", "'\\n!' at character 0"),
        ("claude", "a /path", ""),
        ("claude", "ends with a blank ", "' ' at character 17"),
        ("claude", "ends with a newline\n", "'\\n' at character 19"),
        ("claude", "ends with \\", "'\\\\' at character 10"),
        ("claude", "a\tb", "'\\t' at character 1"),
        ("claude", "x" * 32_000, ""),
        ("claude", "x" * 32_001, "32001 bytes are more than 32000"),
        ("claude", "é" * 16_001, "32002 bytes are more than 32000"),
        ("codex", "a\tb", ""),
        ("codex", " indented", "' ' at character 0"),
        ("codex", "\nlate", "'\\n' at character 0"),
        ("codex", "!ls", "'!' at character 0"),
        ("codex", "/new", "'/' at character 0"),
        ("command", "print(1)", ""),
        ("command", "two\nlines", "'\\n' at character 3"),
        ("command", "é", "'é' at character 0"),
        ("command", "a\tb", "'\\t' at character 1"),
        ("command", "x" * 1000, ""),
        ("command", "x" * 1001, "1001 bytes are more than 1000"),
        ("demo", "!any\t/thing \n", ""),
        pytest.param("claude", "a \ud800 b", r"'\ud800' at character 2"),
        ("claude", "Caf\u00e9", ""),
        ("claude", "Cafe\u0301", "'e' at character 3"),
        ("claude", "x\u200by", r"'\u200b' at character 1"),
        ("gemini", "x\u202ey", r"'\u202e' at character 1"),
        ("codex", "so\u00adft", r"'\xad' at character 2"),
        ("pi", "a\u2028b", r"'\u2028' at character 1"),
        ("opencode", "\U0001f468\u200d\U0001f469 1\ufe0f\u20e3 \u05e9\u05dc", ""),
        ("opencode", "see @x/y", "'@x/y' at character 4"),
        ("copilot", "see a@b.c", "'@b.c' at character 5"),
        ("copilot", "see @x/y now", ""),
        ("kimi", "a\\", "'\\\\' at character 1"),
    ],
)  # fmt: skip
def test_text_that_typing_would_change_or_run_is_found(provider, text, fault):
    found = cao.typing_fault(cao.PROVIDERS[provider], text)
    assert found.endswith(fault)
    assert bool(found) is bool(fault)


@pytest.mark.parametrize(("newlines", "characters"), [(2, 700), (1, 1), (1, 5), (10**9, 10**9)])
def test_pieces_hold_no_more_than_they_may_and_make_the_text(newlines, characters):
    for text in ("", "x", "\n", "\n\n\n\n\n", "a\nb\nc\nd\n", "x" * 1500, "é\n" * 50):
        pieces = cao.split_pieces(text, newlines, characters)
        assert "".join(pieces) == text
        assert all(p and p.count("\n") <= newlines and len(p) <= characters for p in pieces)


def test_pieces_of_any_text_hold_no_more_than_they_may_and_make_the_text():
    dice = random.Random(9)
    for _ in range(500):
        text = "".join(dice.choices("ab\n", k=dice.randrange(80)))
        newlines, characters = dice.randrange(1, 5), dice.randrange(1, 30)
        pieces = cao.split_pieces(text, newlines, characters)
        assert "".join(pieces) == text
        assert all(p and p.count("\n") <= newlines and len(p) <= characters for p in pieces)


@pytest.mark.parametrize("row", [*cao.PROVIDERS.values()], ids=[*cao.PROVIDERS])
def test_a_providers_row_is_whole(row):
    for pattern in (row.composer, row.busy, row.failure, row.untypable):
        re.compile(pattern)
    assert not row.composer or re.compile(row.composer).groups == 1
    assert not row.failure or re.compile(row.failure).groups == 1
    assert row.name in cao.PROVIDERS
    assert row.by_output == (row.name == "command")
    assert (
        not row.resumes
        or row.name == "opencode"  # its conversations are in a database
        or row.entry_says is not cao.Provider._field_defaults["entry_says"]
    )


@pytest.mark.parametrize("name", [*cao.ALIASES])
def test_an_alias_names_a_provider(name):
    assert cao.provider_name(name) in cao.PROVIDERS
    assert cao.provider_name(cao.provider_name(name)) == cao.ALIASES[name]


@pytest.mark.parametrize(
    ("text", "state", "why"),
    [
        ('{"status":"idle","pid":5}', "idle", ""),
        ('{"status":"busy"}', "busy", ""),
        ('{"status":"waiting","waitingFor":"permission prompt"}', "asking", "permission prompt"),
        ('{"status":"waiting","waitingFor":null}', "asking", ""),
        ('{"status":"new word"}', "unknown", ""),
        ("{}", "unknown", ""),
        ("[]", "unknown", ""),
        ("null", "unknown", ""),
        ("", "unknown", "not JSON"),
        ('{"status":"id', "unknown", "not JSON"),
    ],
)
def test_a_clis_own_state_file_is_read_and_unknown_stays_unknown(text, state, why):
    assert cao.read_status_json(text) == cao.Look(state, "status_file", why)


# ---- provider: command ----


def command(**settings):
    base = {"command": ["python3", "-i", "-q"], "ready": "^>>> $"}
    return cao.Profile("p", "p.md", "command", "", settings={**base, **settings})


ASK = {"busy": r"^\.\.\. running", "asking": r"^Overwrite .*\? \[y/N\]"}


@pytest.mark.parametrize(
    ("screen", "settings", "state", "why"),
    [
        (">>> ", {}, "idle", "ready: '>>> '"),
        (">>> \n\n\n", {}, "idle", "ready: '>>> '"),
        ("5\n>>> \n  \n", {}, "idle", "ready: '>>> '"),
        (">>> 2+3", {}, "unknown", "last line: '>>> 2+3'"),
        (">>> \nTraceback", {}, "unknown", "last line: 'Traceback'"),
        ("", {}, "unknown", "empty screen"),
        ("\n \n", {}, "unknown", "empty screen"),
        ("... running\n>>> ", ASK, "busy", "busy: '... running'"),
        ("Overwrite x? [y/N] ", ASK, "asking", "Overwrite x? [y/N]"),
        ("... running\nOverwrite x? [y/N]", ASK, "asking", "Overwrite x? [y/N]"),
        ("done\n>>> ", ASK, "idle", "ready: '>>> '"),
    ],
)
def test_a_profiles_own_patterns_tell_the_state(screen, settings, state, why):
    assert cao.ScreenProgram(None, "", command(**settings)).read_screen(screen) == cao.Look(
        state, "screen", why
    )


@pytest.mark.parametrize(
    ("printed", "settings", "answer"),
    [
        (">>> 2+3\n5\n>>> \n", {}, "5"),
        (">>> f()\none  \n\n  two\n>>> \n\n\n", {}, "one\n\n  two"),
        (">>> x = 1\n>>> ", {}, ""),
        (">>> f()\nno prompt yet", {}, "no prompt yet"),
        (">>> ", {}, ""),
        ("", {}, ""),
        (">>> f()\n<<a>>\nmore\n<<b\n>>> ", {"answer": "<<(.*?)(?:>>)?$"}, "b"),
        (">>> f()\n= 5\n>>> ", {"answer": "^= .*"}, "= 5"),
        (">>> f()\nnothing\n>>> ", {"answer": "^= (.*)"}, ""),
        (">>> f()\na=1 b=2\n>>> ", {"answer": "a=(.) b=(.)"}, "1"),
    ],
)
def test_the_answer_is_what_was_printed_between_prompt_and_ready(printed, settings, answer):
    assert cao.ScreenProgram(None, "", command(**settings)).parse_printed(printed) == answer


class Pane:
    """Stands for tmux, with a screen that a test draws."""

    def capture(self, *_, **_more) -> str:
        return self.screen


def test_what_looks_like_a_prompt_is_believed_when_it_has_stood_for_a_while():
    pane = Pane()
    program = cao.ScreenProgram(pane, "", command())
    pane.screen, ready = ">>> ", []
    for now in (10.0, 10.1, 10.2):
        program.look(now)
        ready.append(program.is_ready())
    pane.screen = ">>> 6 * 7"
    program.mark_turn("6 * 7")
    pane.screen = ">>> 6 * 7\n42\n>>> "  # before the first look after Enter
    for now in (10.3, 10.4, 10.5):
        program.look(now)
        ready.append(program.is_ready())
    assert ready == [False, False, True] * 2
    assert program.answer() == "42"


# ---- profiles ----


def parse(frontmatter, body="You work."):
    return cao.parse_profile(f"---\n{frontmatter}\n---\n{body}\n", "file-name", "p.md")


def test_a_profile_whose_head_says_nothing_is_a_developer_that_asks():
    profile = parse("")
    assert profile == cao.Profile("file-name", "p.md", "", "You work.", settings={})
    assert (profile.role, profile.permissions, profile.trust) == ("developer", "ask", False)


def test_a_profile_has_all_that_its_frontmatter_says():
    profile = parse(
        "name: dev\ndescription: writes code\nprovider: codex\nrole: reviewer\nmodel: gpt-5\n"
        "effort: high\npermissions: edits\ntrust: yes\napprove: supervisor\nkeep: true\n"
        "zone: 5\ncontainer: {a: b}"
    )
    assert profile._replace(settings={}, tools=tuple(cao.TOOL_WORDS)) == cao.Profile(
        "file-name", "p.md", "codex", "You work.", "writes code", "reviewer", "gpt-5", "high",
        "edits",
        True, "supervisor", True, {}, ("zone", "container"),
    )  # fmt: skip
    assert profile.settings["zone"] == 5


@pytest.mark.parametrize(
    ("frontmatter", "field", "value"),
    [
        ("role: supervisor", "role", "supervisor"),
        ("role: developer", "role", "developer"),
        ("role:", "role", "developer"),
        ("provider: claude", "provider", "claude"),
        ("provider: claude_code", "provider", "claude"),
        ("provider: codex_cli", "provider", "codex"),
        ("provider: demo", "provider", "demo"),
        ("provider:", "provider", ""),
        ("permissions: ask", "permissions", "ask"),
        ("permissions: edits", "permissions", "edits"),
        ("permissions: auto", "permissions", "auto"),
        ("permissions: all", "permissions", "all"),
        ("permissionMode: default", "permissions", "ask"),
        ("permissionMode: manual", "permissions", "ask"),
        ("permissionMode: plan", "permissions", "ask"),
        ("permissionMode: acceptEdits", "permissions", "edits"),
        ("permissionMode: auto", "permissions", "auto"),
        ("permissionMode: dontAsk", "permissions", "auto"),
        ("permissionMode: bypassPermissions", "permissions", "all"),
        ("permissionMode: newMode", "permissions", "ask"),
        ("permissionMode: bypassPermissions\npermissions: ask", "permissions", "ask"),
        ("trust: yes", "trust", True),
        ("worktree: no", "unknown", ()),
        ("keep: on", "keep", True),
        ("model: 4.5", "model", "4.5"),
        ("approve: person", "approve", "person"),
        ("tags: [a]\ncapabilities: []\nskills:\n- x\nuseLegacyMcpJson: no", "unknown", ()),
        ("engine: v2\nname: x\nnative_agent: y", "unknown", ("engine", "native_agent")),
    ],
)
def test_a_key_of_the_frontmatter_means(frontmatter, field, value):
    assert getattr(parse(frontmatter), field) == value


def test_the_body_is_the_prompt_and_the_prompt_key_stands_in_for_an_empty_one():
    assert parse("prompt: from the key", "the body").prompt == "the body"
    assert parse("prompt: from the key", "").prompt == "from the key"


@pytest.mark.parametrize(
    ("frontmatter", "what", "fix"),
    [
        ("trust: 'yes'", "'trust' must be yes or no, got 'yes'", "without quotes"),
        ("keep: 1", "'keep' must be yes or no, got 1", "without quotes"),
        ("worktree: maybe", "'worktree' must be yes or no, got 'maybe'", "without quotes"),
        ("env:\n  pas: [TOKEN]", "'env': 'pas' does not exist", "pass, deny, set"),
        ("provider: kiro2", "provider 'kiro2' is not supported", "claude"),
        ("provider: [claude]", "provider ['claude'] is not supported", "claude"),
        ("provider: cursor_cli", "provider 'cursor_cli' is not supported", "one of: claude, codex"),
        ("permissions: [all]", "permissions ['all'] does not exist", "ask, edits, auto, all"),
        ("permissions: yolo", "permissions 'yolo' does not exist", "ask, edits, auto, all"),
        ("approve: worker", "approve 'worker' does not exist", "supervisor"),
        ("provider: command", "provider 'command' needs 'command:'", "README"),
        ("provider: command\ncommand: [cat]", "provider 'command' needs 'ready:'", "README"),
        ("provider: command\ncommand: [cat]\nready: '['", "'ready' is not a regular", "quote it"),
        ("provider: command\ncommand: [cat]\nready: x\nbusy: '('", "'busy' is not a", "quote"),
        ("provider: command\ncommand: [cat]\nready: x\nasking: '*'", "'asking' is not a", "quote"),
        ("provider: command\ncommand: [cat]\nready: x\nanswer: '('", "'answer' is not a", "quote"),
        ("mcpServers: lab", "'mcpServers' must be a mapping, got 'lab'", "indent"),
        ("mcpServers:\n  - lab", "'mcpServers' must be a mapping, got ['lab']", "indent"),
        ("codexConfig: x", "'codexConfig' must be a mapping", "indent"),
        ("env: [PATH]", "'env' must be a mapping", "indent"),
        pytest.param("provider: command\ncommand: bash -i\nready: x", "command", ""),
        pytest.param("mcpServers:\n  lab: python3", "mcpServers", ""),
        pytest.param("env:\n  pass: TOKEN", "env", ""),
        pytest.param("env:\n  set: [A]", "env", ""),
        pytest.param("env:\n  deny: 5", "env", ""),
    ],
)  # fmt: skip
def test_a_frontmatter_that_must_not_pass_is_refused_with_a_word_on_what_to_write(
    frontmatter, what, fix
):
    with pytest.raises(cao.CaoError) as caught:
        parse(frontmatter)
    assert caught.value.what.startswith("p.md: ")
    assert what in caught.value.what
    assert fix in caught.value.fix
    assert caught.value.fix


@pytest.mark.parametrize(
    "path", sorted((HERE.parent / "profiles").glob("*.md")), ids=lambda p: p.stem
)
def test_a_shipped_profile_is_valid_and_knows_all_its_keys(path):
    profile = cao.parse_profile(path.read_text(), path.stem, str(path))
    assert profile.name == path.stem
    assert profile.description
    assert profile.prompt
    assert profile.unknown == ()
    assert profile.permissions in ("ask", "edits")


# ---- argv ----


def launch(**more):
    provider = more.pop("provider", "codex")
    profile = cao.Profile("dev", "p.md", provider, "You work.", **more.pop("profile", {}))
    base = {
        "name": "dev-7k2m",
        "folder": "/home/u/.cao/sessions/dev-7k2m/launch",
        "cwd": "/home/u/proj",
        "profile": profile,
        "system": 'Be "exact".\nAlways: ünï \\ $HOME',
        "hook": ("/usr/bin/python3", "-c", 'it\'s "quoted" ü 😀 < & >', "hook"),
        "mcp": ("/usr/bin/python3", "-c", "x", "mcp"),
        "mcp_env": {"CAO_SESSION": "dev-7k2m"},
        "conversation": "0b0e7f9e-6d3c-4b52-9a7e-000000000000",
    }
    return cao.Launch(**{**base, **more})


def settings_of(argv):
    """Return what stands behind each -c of a Codex argv: key -> TOML."""
    return dict(argv[n + 1].split("=", 1) for n, word in enumerate(argv) if word == "-c")


def test_codex_trusts_exactly_the_hooks_we_set_by_codexs_own_hash():
    settings = settings_of(CODEX.start(launch()).argv)
    trusted = json.loads(
        settings["hooks.state"].replace("=", ":").replace('"trusted_hash":', '"h":')
    )
    hooks = {k[len("hooks.") :]: v for k, v in settings.items() if re.match(r"hooks\.[A-Z]", k)}
    names = {
        "SessionStart": "session_start", "UserPromptSubmit": "user_prompt_submit",
        "PermissionRequest": "permission_request", "PostToolUse": "post_tool_use",
        "Stop": "stop", "Interrupt": "interrupt", "SessionEnd": "session_end",
        "PreToolUse": "pre_tool_use",
    }  # fmt: skip
    assert set(hooks) == set(names)
    expected = {}
    for event, snake in names.items():
        command, more = cao.quote_argv(launch().hook), {}
        if event == "PreToolUse":  # by a shell line of its own
            more = {"matcher": "(mcp__)?codex_tui.*"}
            command = "echo 'that is not for a worker' >&2; exit 2"
        if event == "PostToolUse":  # by a shell line that starts ours where a message waits
            command = cao._message_command(launch())
        timeout_s = {"interrupt": 3, "session_end": 3, "permission_request": 86400}.get(snake, 30)
        assert json.dumps(command, ensure_ascii=False) in hooks[event]
        assert f'"timeout":{timeout_s}' in hooks[event].replace('" ', '"').replace("=", ":")
        d = {
            **more,
            "event_name": snake,
            "hooks": [
                {"async": False, "command": command, "timeout": timeout_s, "type": "command"}
            ],
        }
        text = json.dumps(d, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        expected[f"/<session-flags>/config.toml:{snake}:0:0"] = {
            "h": "sha256:" + hashlib.sha256(text.encode()).hexdigest()
        }
    assert trusted == expected
    assert not any("bypass-hook-trust" in word for word in CODEX.start(launch()).argv)


def test_the_hash_of_a_codex_hook_is_that_of_its_canonical_json():
    hook = {"type": "command", "command": "CMD", "timeout": 30}
    canonical = (
        '{"event_name":"stop","hooks":'
        '[{"async":false,"command":"CMD","timeout":30,"type":"command"}]}'
    )
    assert cao._codex_trust("Stop", {"hooks": [hook]}) == {
        "/<session-flags>/config.toml:stop:0:0": {
            "trusted_hash": "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()
        }
    }


@pytest.mark.parametrize(
    "value",
    [
        "plain",
        'quotes " and \\ and \n newline \t tab',
        "ünï 😀",
        5,
        1.5,
        True,
        ["a", 1, ["b"]],
        {"a": {"b c": [1, 2]}, "/home/ü": "x", "d.e": False},
        {},
        [],
        pytest.param({"/home/😀": 1}),
        pytest.param("\x7f"),
    ],
    ids=repr,
)
def test_what_codex_is_given_is_toml(value):
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    assert tomllib.loads(f"x = {cao._toml(value)}") == {"x": value}


UNQUOTED = "cao.py _codex_argv: mcp_servers.{name} without quotes"


@pytest.mark.parametrize("name", ["lab", "my-server"])
def test_a_profiles_mcp_server_reaches_codex_under_its_name(name):
    tomllib = pytest.importorskip("tomllib")
    server = {"type": "stdio", "command": "uvx", "args": ["--x"], "env": {"A": "b"}}
    argv = CODEX.start(launch(profile={"settings": {"mcpServers": {name: server}}})).argv
    lines = [word for word in argv if word.startswith("mcp_servers.")]
    found = tomllib.loads("\n".join(lines))["mcp_servers"]
    assert set(found) == {name, "cao"}
    assert found[name]["command"] == "uvx"
    assert found[name]["env"] == {"A": "b"}


def test_every_hook_command_is_one_shell_word_per_argument():
    for argv in (["a"], ["a b", "c'd", 'e"f', "$HOME", "`id`", ""], list(launch().hook)):
        assert shlex.split(cao.quote_argv(argv)) == argv


@pytest.mark.parametrize("mode", cao.PERMISSIONS)
def test_no_cli_skips_its_permission_checks_unless_the_profile_says_all(mode):
    asked = {"profile": {"permissions": mode}, "prompt": "do it"}
    claude = launch(provider="claude", **asked)
    words = " ".join(CLAUDE.start(claude).argv + CODEX.start(launch(**asked)).argv)
    words += repr(CLAUDE.start(claude).files["settings.json"])
    skips = re.search("bypassPermissions|dangerously|skipDangerous", words)
    assert bool(skips) is (mode == "all")


@pytest.mark.parametrize("row", [CLAUDE, CODEX], ids=["claude", "codex"])
def test_the_first_prompt_stands_behind_a_double_dash(row):
    assert row.start(launch(provider=row.name, prompt="-x {y}; do it")).argv[-2:] == [
        "--",
        "-x {y}; do it",
    ]
    assert "--" not in row.start(launch(provider=row.name)).argv


@pytest.mark.parametrize("trust", [True, False])
def test_a_folder_is_trusted_only_where_the_profile_says_so(trust):
    asked = launch(profile={"trust": trust})
    assert ("CLAUDE_CODE_SANDBOXED" in CLAUDE.start(asked).env) is trust
    assert ("projects" in settings_of(CODEX.start(asked).argv)) is trust
    settings = cao.PROVIDERS["qwen"].start(launch_of("qwen", trust=trust)).files["settings.json"]
    assert settings["security"]["folderTrust"]["enabled"] is not trust
    # Set to "true" by the user for another purpose, these trust any folder.
    gemini = cao.PROVIDERS["gemini"].start(launch_of("gemini", trust=trust)).env
    assert gemini["GEMINI_CLI_TRUST_WORKSPACE"] == ("true" if trust else "")
    copilot = cao.PROVIDERS["copilot"].start(launch_of("copilot", trust=trust)).env
    assert copilot["COPILOT_ALLOW_ALL"] == ""


def test_claude_gets_prompt_and_servers_by_files_and_the_reference_programs_server_is_left_out():
    servers = {"cao-mcp-server": {"command": "uvx"}, "lab": {"command": "x"}}
    asked = launch(provider="claude", profile={"settings": {"mcpServers": servers}})
    assert not any("exact" in word for word in CLAUDE.start(asked).argv)
    files = CLAUDE.start(asked).files
    assert set(files["mcp.json"]["mcpServers"]) == {"lab", "cao"}
    hooks = files["settings.json"]["hooks"]
    assert hooks.pop("WorktreeCreate")
    names = "SessionStart UserPromptSubmit PermissionRequest Stop StopFailure SessionEnd"
    assert set(hooks) == {*names.split(), "PostToolUse", "PostToolUseFailure"}
    for event, groups in hooks.items():
        ((found,),) = [[h["command"] for h in group["hooks"]] for group in groups]
        words = shlex.split(found)
        if event.startswith("PostToolUse"):  # its shell line starts ours where a message waits
            assert words[-len(asked.hook) :] == list(asked.hook)
            continue
        assert words[: len(asked.hook)] == list(asked.hook)
        assert (words[len(asked.hook) :] == []) or event == "SessionStart"


def test_a_resumed_conversation_is_named_to_the_cli():
    argv = CLAUDE.start(launch(provider="claude", resume="ID")).argv
    assert argv[:2] == ["--resume", "ID"]
    assert "--session-id" not in argv
    argv = CODEX.start(launch(resume="ID", prompt="go")).argv
    assert (argv[0], argv[-3:]) == ("resume", ["ID", "--", "go"])


# ---- the rows that write a home or an extension ----


def launch_of(provider, cwd="/home/dev/My Proj.", **fields):
    profile = cao.Profile("w", "test", provider, "", **fields)
    return cao.Launch(
        "w-1", "/h/launch", cwd, profile, "BE BRIEF", ("py", "hook"), ("py", "mcp"), {}, "id"
    )


def test_kimi_has_the_users_settings_but_not_the_users_mode_and_not_another_sessions_hooks():
    row = cao.PROVIDERS["kimi"]
    user = 'default_permission_mode = "auto"\ndefault_model = "k2"\n[[hooks]]\nevent = "Stop"\n'
    first = row.start(launch_of("kimi")._replace(own={"config.toml": user})).files[
        "kimi/config.toml"
    ]
    assert first.startswith('default_permission_mode = "manual"\n')
    assert 'default_model = "k2"\n[[hooks]]\nevent = "Stop"\n' in first
    assert '"auto"' not in first
    below = launch_of("kimi")._replace(own={"config.toml": first}, hook=("py", "other"))
    second = row.start(below).files["kimi/config.toml"]
    assert "'hook'" in first
    assert "'hook'" not in second
    assert second.count("default_permission_mode") == 1


@pytest.mark.parametrize(
    ("folder", "key"),
    [
        ("/home/dev/run", "wd_run_ccaa1c0847b3"),  # as 2.1.0 itself wrote it
        ("/home/dev/My Proj.", "wd_my-proj._"),
        ("/", "wd_workspace_"),
    ],
)
def test_kimi_is_told_that_a_folder_is_trusted_only_under_trust_yes(folder, key):
    row = cao.PROVIDERS["kimi"]
    assert not [f for f in row.start(launch_of("kimi", folder)).files if "trust" in f]
    (file,) = [f for f in row.start(launch_of("kimi", folder, trust=True)).files if "trust" in f]
    assert file.startswith(f"kimi/workspace-trust/{key}")


@pytest.mark.parametrize(
    ("env", "own", "chosen"),
    [
        ({"GOOGLE_GENAI_USE_VERTEXAI": "true", "GEMINI_API_KEY": "x"}, "", "vertex-ai"),
        ({"GEMINI_API_KEY": "x"}, '{"selectedType": "oauth-personal"}', "gemini-api-key"),
        ({}, '{"security": {"auth": {"selectedType": "cloud-shell"}}}', "cloud-shell"),
        ({}, "", "oauth-personal"),
    ],
)
def test_gemini_logs_in_as_the_environment_says_or_the_user_chose(env, own, chosen):
    asked = launch_of("gemini")._replace(env=env, own={".gemini/settings.json": own})
    files = cao.PROVIDERS["gemini"].start(asked).files
    settings = files["home/.gemini/settings.json"]
    assert settings["security"]["auth"]["selectedType"] == chosen


def test_what_a_sub_agent_of_copilots_says_ends_no_turn():
    lines = (HERE / "transcripts/copilot/ended-one-turn.jsonl").read_text().splitlines()
    below = [json.dumps({**json.loads(line), "agentId": "a1"}) for line in lines]
    assert cao.PROVIDERS["copilot"].read_transcript(below) is None


def test_what_pi_may_run_unasked_is_caos_command_and_nothing_behind_it():
    text = cao.PROVIDERS["pi"].start(launch_of("pi")).files["extension.js"]
    facts = json.loads(json.loads(re.search(r"JSON.parse\((.*)\)", text)[1]))
    free = re.compile(facts["free"])
    assert facts["mode"] == "ask"
    assert free.search("sh /h/launch/cao.sh handoff codex 'two\nlines; $x'")
    for command in (
        "sh /h/launch/cao.sh ls; rm -rf x",
        "sh /h/launch/cao.sh ls\nrm -rf x",
        'sh /h/launch/cao.sh handoff codex "$(rm x)"',
        "sh /h/launch/cao.shx ls",
        "sh /h/launch/cao.sh ls > file",
        "x=1 sh /h/launch/cao.sh ls",
        "sh /h/launch/cao.sh trace --output notes.md",
        "sh /h/launch/cao.sh schedule add flow.md",
        "sh /h/launch/cao.sh discard dev-2222 --yes",
        "sh /h/launch/cao.sh clean --older 0s",
        "sh /h/launch/cao.sh run demo x",
        "sh /h/launch/cao.sh --json schedule run x",
    ):
        assert not free.search(command), command


@pytest.mark.parametrize("name", ["kiro"])
def test_what_was_never_run_is_called_unproven_and_writes_below_its_own_folder_alone(name):
    row = cao.PROVIDERS[name]
    assert row.proven == ""
    assert "unproven" in cao.unproven(name)
    assert all(file.startswith("home/") for file in row.start(launch_of(name)).files)
    assert row.home_in({"HOME": "/home/dev"}) == "/home/dev"
    assert not {f"{row.shadow}/{link}" for link in row.links.split()} & set(
        row.start(launch_of(name)).files
    )
    assert row.start(launch_of(name)).env == {"HOME": "/h/launch/home"}
    for mode in cao.PERMISSIONS:
        argv = row.start(launch_of(name, permissions=mode)).argv
        assert ("--trust-all-tools" in argv) == (mode == "all")


@pytest.mark.parametrize("name", [n for n, row in cao.PROVIDERS.items() if row.program])
def test_a_row_passes_the_effort_on(name):
    row = cao.PROVIDERS[name]
    profile = cao.Profile("p", "p.md", name, "", effort="very-high")
    launch = cao.Launch("p-2222", "/l", "/w", profile, "sys", ("h",), ("m",), {}, "id")
    said = repr(row.start(launch))
    assert "very-high" in said.lower()


# ---- sub-agents ----


@pytest.mark.parametrize("who", [{"agent_id": "a1"}, {"agentId": "a1"}])
def test_of_a_sub_agent_only_what_it_asks_is_heard(who):
    assert hook("Stop", last_assistant_message="not the agent's", **who) is None
    assert hook("UserPromptSubmit", prompt="not a person's", **who) is None
    assert hook("PermissionRequest", tool_name="Bash", tool_input={"command": "x"}, **who)
    assert hook("Stop", last_assistant_message="its own", agent_id="main").text == "its own"


def test_always_is_not_offered_where_the_rule_would_allow_more_than_was_asked():
    payload = {"tool_name": "Bash", "tool_input": {"command": "touch z*"}}
    assert [option.key for option in cao.options_of(CLAUDE, payload)] == ["yes", "no"]


@pytest.mark.parametrize(("tools", "told"), [((), True), (("fs_read", "fs_list"), False)])
def test_a_pi_is_told_of_the_shell_command_only_where_it_has_a_shell(tools, told):
    fields = {"tools": tools} if tools else {}
    system = cao.PROVIDERS["pi"].start(launch_of("pi", **fields)).files["system.md"]
    assert system.startswith("BE BRIEF\n")
    assert ("shell command" in system) == told


@pytest.mark.parametrize("mode", ["ask", "edits", "auto", "all"])
def test_opencode_asks_before_every_tool_that_nobody_has_named(mode):
    started = cao.PROVIDERS["opencode"].start(
        launch(provider="opencode", profile={"permissions": mode})
    )
    config = json.loads(started.env["OPENCODE_CONFIG_CONTENT"])
    assert config["permission"] == {"**": "deny"}  # until the plugin has put in our rules
    named = json.loads(re.search("rules = (.*)", started.files["opencode.js"])[1])
    assert (named.get("*") == "ask") is (mode in ("ask", "edits"))
    assert named["cao_wait"] == "allow"
    if mode in ("ask", "edits"):
        assert (named["grep"], named["bash"]) == ("allow", "ask")
    if mode == "edits":
        asked = ["*.git", "*.git/*", "*.opencode/*", "*opencode.json*", "*tui.json*"]
        assert [*named["edit"].items()] == [("*", "allow"), *((path, "ask") for path in asked)]


@pytest.mark.parametrize("mode", ["ask", "edits"])
@pytest.mark.parametrize("provider", ["claude", "qwen", "copilot", "opencode"])
def test_of_a_sessions_own_files_its_cli_gets_the_letters_alone(provider, mode):
    started = cao.PROVIDERS[provider].start(
        launch(provider=provider, profile={"permissions": mode})
    )
    given = [*started.argv, started.env.get("OPENCODE_CONFIG_CONTENT", "")]
    given = "\n".join([*given, *re.findall("rules = .*", started.files.get("opencode.js", ""))])
    folder = launch().folder
    reached = re.findall(rf"(?:--add-dir\n|Read\(/|\"){re.escape(folder)}([^\n)\"]*)", given)
    wanted = {"claude": ["/letters/**"], "opencode": ["/system.md", "/letters/**"]}
    assert reached == wanted.get(provider, ["/letters"])


@pytest.mark.parametrize(("name", "tool"), [("claude", "Skill"), ("qwen", "skill")])
def test_a_yes_to_a_skill_says_that_it_may_be_for_more(name, tool):
    payload = {"tool_name": tool, "tool_input": {"skill": "helper"}}
    yes, no = cao.options_of(cao.PROVIDERS[name], payload)
    assert (yes.key, "all that the skill allows" in yes.text, no.key) == ("yes", True, "no")


@pytest.mark.parametrize(
    ("shown", "once"),
    [
        ("│ ● 1. Allow once   │\n│   2. Allow for this session │", True),
        ("   ▶ 1. Approve once\n     2. Approve for this session", True),
        (" ▶ 1. Switch to Never Ask and start\n   3. Start in Always Ask", False),
        (" ● 1.  Yes, automatically accept edits   Approves plan\n", False),
        ("  1. Allow once\n ▶ 1. Switch to Never Ask and start", False),  # a command's own line
    ],
)
def test_a_yes_by_a_key_is_given_where_the_first_answer_is_once(shown, once):
    assert bool(cao._FIRST_IS_ONCE.search(shown)) == once
