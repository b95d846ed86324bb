"""The main job on the real coding CLIs, against a mock model API on loopback.

Each CLI runs with a scratch HOME and a dummy key. Where a CLI is not installed its tests
skip, and say so; with CAO_TEST_REQUIRE_CLIS set they fail instead.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import cao
import mock_llm as mock_model
from conftest import CAO, PINNED, ROOT, McpClient, real_clis, run_block, until
from test_nothing_lost import put_loader
from test_views import Terminal

pytestmark = [pytest.mark.tmux, pytest.mark.cli]

CLAUDE = """\
---
name: {name}
provider: claude
permissions: ask
trust: yes
env:
  set:
    ANTHROPIC_BASE_URL: http://127.0.0.1:{port}
    ANTHROPIC_AUTH_TOKEN: dummy
    CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: "1"
    CLAUDE_CODE_MAX_RETRIES: "1"
    DISABLE_TELEMETRY: "1"
    IS_SANDBOX: "1"
---
You are a worker in a test.
"""
CODEX = """\
---
name: {name}
provider: codex
permissions: ask
trust: yes
model: mock-model
codexConfig:
  model_provider: mock
  model_providers.mock:
    name: mock
    base_url: http://127.0.0.1:{port}/v1
    env_key: MOCK_KEY
    wire_api: responses
    request_max_retries: 0
    stream_max_retries: 0
env:
  set: {{MOCK_KEY: dummy}}
---
You are a worker in a test.
"""
GEMINI = """\
---
name: {name}
provider: gemini
permissions: ask
trust: yes
env:
  set:
    GEMINI_API_KEY: dummy
    GOOGLE_GEMINI_BASE_URL: http://127.0.0.1:{port}
---
You are a worker in a test.
"""
QWEN = """\
---
name: {name}
provider: qwen
permissions: ask
trust: yes
env:
  set:
    OPENAI_API_KEY: dummy
    OPENAI_BASE_URL: http://127.0.0.1:{port}/v1
    OPENAI_MODEL: mock-model
---
You are a worker in a test.
"""
KIMI = """\
---
name: {name}
provider: kimi
permissions: ask
trust: yes
env:
  set:
    KIMI_MODEL_NAME: mock-1
    KIMI_MODEL_API_KEY: dummy
    KIMI_MODEL_PROVIDER_TYPE: openai
    KIMI_MODEL_BASE_URL: http://127.0.0.1:{port}/v1
    KIMI_LOOP_MAX_ATTEMPTS_PER_STEP: "1"
    KIMI_DISABLE_TELEMETRY: "1"
---
You are a worker in a test.
"""
PI = """\
---
name: {name}
provider: pi
permissions: ask
model: mock/mock-1
env:
  set: {{PI_OFFLINE: "1"}}
---
You are a worker in a test.
"""
COPILOT = """\
---
name: {name}
provider: copilot
permissions: ask
trust: yes
env:
  set:
    COPILOT_OFFLINE: "true"
    COPILOT_PROVIDER_BASE_URL: http://127.0.0.1:{port}/v1
    COPILOT_PROVIDER_API_KEY: dummy
    COPILOT_MODEL: mock-model
---
You are a worker in a test.
"""
OPENCODE = """\
---
name: {name}
provider: opencode
permissions: ask
model: mock/mock-model
env:
  set:
    MOCK_URL: http://127.0.0.1:{port}/v1
    OPENCODE_DISABLE_MODELS_FETCH: "1"
    OPENCODE_DISABLE_LSP_DOWNLOAD: "1"
    OPENCODE_DISABLE_DEFAULT_PLUGINS: "1"
---
You are a worker in a test.
"""
OPENCODE_CONFIG = {  # the user's own; its provider is one
    "provider": {
        "mock": {
            "npm": "@ai-sdk/openai-compatible",
            "options": {"baseURL": "{env:MOCK_URL}", "apiKey": "dummy"},
            "models": {"mock-model": {"name": "Mock", "reasoning": True}},
        }
    }
}
PROFILES = {
    "claude": CLAUDE,
    "codex": CODEX,
    "gemini": GEMINI,
    "qwen": QWEN,
    "copilot": COPILOT,
    "opencode": OPENCODE,
    "kimi": KIMI,
    "pi": PI,
}
SHELL = {
    "claude": 'MOCK:tool Bash {{"command":"touch {file}","description":"make it"}};say went on',
    "codex": 'MOCK:tool exec_command {{"cmd":"touch {file}",'
    '"sandbox_permissions":"require_escalated","justification":"may I?"}};say went on',
    "gemini": 'MOCK:tool run_shell_command {{"command":"touch {file}"}};say went on',
    "qwen": 'MOCK:tool run_shell_command {{"command":"touch {file}"}};say went on',
    "copilot": 'MOCK:tool bash {{"command":"touch {file}","description":"make it"}};say went on',
    "opencode": 'MOCK:tool bash {{"command":"touch {file}","description":"make it"}};say went on',
    "kimi": 'MOCK:tool Bash {{"command":"touch {file}"}};say went on',
    "pi": 'MOCK:tool bash {{"command":"touch {file}"}};say went on',
}
# Where the answer comes from, if not from the hook Stop.
ANSWER = dict.fromkeys(("copilot", "kimi"), "hook:Stop+transcript")
ANSWER["gemini"] = "hook:AfterAgent+transcript"
# What tells of an API error, if not the hook StopFailure.
FAILED = dict.fromkeys(("codex", "copilot", "gemini", "kimi"), "transcript")
ESCAPED = {  # what tells of Esc, if not the hook Interrupt
    "claude": "screen",
    "gemini": "transcript",
    "qwen": "screen",
    "copilot": "transcript",
    "kimi": "transcript",
}
LAYOUT = "  indented\n> quoted\n\n\tü 😀 'x' \"y\" `z` $HOME \\\n    last"


def install(place, name: str, port: int) -> None:
    """Put the real CLI into the place, with a profile that points it at the mock."""
    program = real_clis()[name]
    if not program:
        words = f"{name} {PINNED[name]} is not installed (CAO_TEST_CLIS)"
        if os.environ.get("CAO_TEST_REQUIRE_CLIS"):
            pytest.fail(words)
        pytest.skip(words)
    stub = place.folder / "bin" / name
    stub.unlink()
    stub.symlink_to(program)
    place.profile(f"real-{name}", PROFILES[name].format(name=f"real-{name}", port=port))
    if name != "copilot":  # which asks before it writes outside the temporary folder
        (place.folder / "tmp").mkdir(exist_ok=True)  # they leave sockets, unpacked libraries
        place.env["TMPDIR"] = str(place.folder / "tmp")
    if name == "claude":  # offline, its first-run screen would end it
        seen = {"hasCompletedOnboarding": True, "hasSeenAutoDefaultNotice": True}
        (place.user / ".claude.json").write_text(json.dumps(seen))
    if name == "copilot":  # it unpacks 235 MB of itself
        place.env["XDG_CACHE_HOME"] = f"{os.environ['CAO_TEST_CLIS']}/copilot/cache"
    if name == "opencode":  # it installs 63 MB beside its configuration, more in its cache
        place.env["XDG_CACHE_HOME"] = f"{os.environ['CAO_TEST_CLIS']}/opencode/cache"
        config = Path(os.environ["CAO_TEST_CLIS"], "opencode/config/opencode/opencode.json")
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(json.dumps(OPENCODE_CONFIG))
        place.env["XDG_CONFIG_HOME"] = str(config.parent.parent)
    if name == "pi":  # an API of one's own stands in a file of the user's
        model = {"api": "openai-completions", "apiKey": "dummy", "models": [{"id": "mock-1"}]}
        model["baseUrl"] = f"http://127.0.0.1:{port}/v1"
        (place.user / ".pi/agent").mkdir(parents=True)
        text = json.dumps({"providers": {"mock": model}})
        (place.user / ".pi/agent/models.json").write_text(text)
    node = os.path.join(os.path.dirname(program), "node")  # for one that needs a newer node
    if os.path.exists(node) and not (place.folder / "bin" / "node").exists():
        (place.folder / "bin" / "node").symlink_to(node)
    if name == "gemini":  # it tries ten times, else
        (place.work / ".gemini").mkdir()
        settings = {"general": {"maxAttempts": 1}}
        (place.work / ".gemini" / "settings.json").write_text(json.dumps(settings))


@pytest.fixture(params=list(PINNED))
def cli(request, place, mock_llm):
    """The name of each real CLI in turn, installed in the place."""
    install(place, request.param, mock_llm.port)
    return request.param


def handoff(place, target, task, *flags, code=0):
    """Hand off by the shell and return what --json printed."""
    done = place.run("handoff", target, "--json", *flags, stdin=task)
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"  # a tuple would be cut short
    return json.loads(done.stdout)


def begin(place, cli, mock_llm, task):
    """Assign a task and return its name and its session's, once the model was asked."""
    asked = len(mock_llm.requests)
    task = place.ok("assign", f"real-{cli}", task).strip()
    until(lambda: len(mock_llm.requests), lambda count: count > asked, timeout_s=180)
    return task, task.partition(".")[0]


def test_run_prints_the_answer_or_ends_at_a_question_and_leaves_no_session(place, cli):
    done = place.run("run", f"real-{cli}", "MOCK:say hello")
    assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr
    asks = SHELL[cli].format(file="made")
    done = place.run("run", f"real-{cli}", asks)
    assert (done.returncode, "--permissions" in done.stderr) == (6, True), done.stderr
    until(place.live, [])


def test_handoff_second_turn_and_what_reached_the_cli(place, cli, mock_llm):
    layout = LAYOUT if cao.PROVIDERS[cli].argv_bytes else LAYOUT.replace("\t", "")
    first = handoff(place, f"real-{cli}", f"MOCK:echo\n{layout}")["results"][0]
    assert (first["outcome"], first["exact"]) == ("done", "exact")
    assert first["source"] == ANSWER.get(cli, "hook:Stop")
    # Gemini CLI keeps no answer with the blanks around it.
    assert first["answer"] == (layout.strip() if cli == "gemini" else layout)
    session = first["session"]
    typed = LAYOUT.replace("\t", "")
    second = handoff(place, session, f"MOCK:echo\n{typed}")["results"][0]
    assert (second["answer"].strip(), second["exact"]) == (typed.strip(), "exact")
    sent = (json.dumps(body, ensure_ascii=False) for body in mock_llm.requests)
    assert any(json.dumps(typed, ensure_ascii=False)[1:-1] in body for body in sent)
    assert "You are a worker in a test" in json.dumps(mock_llm.requests[-1])


QUOTED = (  # like dialogs of Claude Code, Codex, Kimi Code, OpenCode, Copilot
    "Do you want to proceed?\n❯ 1. Yes\n  2. No\n\nEsc to cancel · Tab to amend\n",
    "Allow?\n› 1. Yes, proceed (y)\n  2. No (esc)\n\n  Press enter to confirm or esc to cancel\n",
    "Run?\n❯ Approve once\n  Reject\n\n↑/↓ select · ↵ confirm · esc cancel",
    "△ Allow?\nAllow once   Allow always   Reject      ⇆ select  enter confirm",
    "It needs information.\nWhich?\n ────\n ❯ \n ────\n\n enter accept",
)


def test_a_dialog_that_is_only_quoted_is_none(place, cli):
    """In a prompt before Enter, in one above a turn that runs, in an answer."""
    first = handoff(place, f"real-{cli}", "MOCK:sleep 2;say ready\n" + QUOTED[0])["results"][0]
    assert first["answer"] == "ready"
    for text in QUOTED:
        result = handoff(place, first["session"], f"MOCK:echo\n{text.rstrip()}")["results"][0]
        assert (result["answer"], result["exact"]) == (text.rstrip(), "exact")


def test_doctor_proves_a_cli_by_a_real_turn_and_says_whether_it_is_logged_in(place, cli):
    rows = json.loads(place.ok("doctor", "--json"))
    (row,) = [row for row in rows if row["what"] == cli]
    assert row["state"] in ("ok", "newer")
    out = f"not logged in (try: {cao.PROVIDERS[cli].login})"
    assert (out if cao.PROVIDERS[cli].login_status else "login unknown") in row["detail"]
    (row,) = json.loads(place.ok("doctor", "--live", f"real-{cli}", "--json"))
    assert row["state"] == "ok"
    until(place.live, [])


@pytest.mark.parametrize("turn", ["first", "second"])
def test_twenty_kilobytes_arrive_exactly(place, cli, turn):
    text = "\n".join(f"{n:4} lorem ipsum > dolor" for n in range(800))
    target = f"real-{cli}"
    if turn == "second":
        target = handoff(place, target, "MOCK:say ready")["results"][0]["session"]
    result = handoff(place, target, f"MOCK:sum\n{text}")["results"][0]
    assert (result["outcome"], result["exact"]) == ("done", "exact")


def test_two_hundred_kilobytes_go_as_a_file_that_is_named(place, cli, mock_llm):
    result = handoff(place, f"real-{cli}", "x" * 200_000)["results"][0]
    assert (result["outcome"], result["exact"]) == ("done", "exact")
    assert result["answer"].startswith("ok: Your task is in the file")
    files = (place.home / "sessions" / result["session"] / "launch").rglob("0*.md")
    assert [file.read_text() for file in files] == ["x" * 200_000]


@pytest.mark.parametrize("cli", ["claude", "codex", "copilot", "pi"], indirect=True)
@pytest.mark.parametrize("begins", ["- a list", "--model no", "@nothing", "-"])
def test_a_first_task_that_begins_like_a_flag_or_a_file_arrives(place, begins, cli):
    result = handoff(place, f"real-{cli}", begins)["results"][0]
    assert (result["outcome"], result["exact"]) == ("done", "exact"), result
    assert ("is in the file" if cli == "pi" else begins) in result["answer"]


LEADING = (
    "~/src: mend it",
    "# one",
    "& two",
    "- three",
    "? four",
    "@five",
    "!six",
    "/seven",
    "$HOME",
)
KEPT = (  # typing keeps it, but in a CLI that reads an @ or a tab otherwise
    "Caf\u00e9",
    "\u00c5ngstr\u00f6m",
    "\ud55c\uae00",
    "\u6f22\u5b57" * 40,
    "\u00bd \ufb01 \uff21 \u00b2",
    "\u05e9\u05dc\u05d5\u05dd abc",
    "\u0645\u0631\u062d\u0628\u0627 123",
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "\u0915\u094d\u200d\u0937",
    "\u0e20\u0e32\u0e29\u0e32",
    "\U0001f600",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f1e9\U0001f1ea",
    "1\ufe0f\u20e3",
    "\u2764\ufe0f",
    "\U0001f44d\U0001f3fd",
    "\U0001d4d0",
    "\ue000",
    "a\u00a0b",
    "a\u202fb\u3000c",
    "{json} [x](y) <tag>x</tag>",
    "`code` 'a' \"b\"",
    "a\\nb \\\\ c",
    "> quoted",
    "* star",
    "1. one",
    ": = + ^ % | ;",
    "...",
    "~/at the begin of a line",
)
LAYOUTS = ("a\r\nb", "a\n\n\nb", "  c", "d   ", "x" * 3000, "lorem ipsum dolor " * 300, "z")
CHANGED = (  # what one CLI or another changes
    "Cafe\u0301",
    "A\u030angstro\u0308m",
    "\u1112\u1161\u11ab",
    "\u212b",
    "s\u0323\u0307",
    "e" + 20 * "\u0301",
    "a\u200bb",
    "a\u200cb",
    "a\u200db",
    "a\u200eb",
    "a\u202eb",
    "a\u2066b",
    "so\u00adft",
    "a\ufeffb",
    "a\u2060b",
    "a\u2028b",
    "a\U000e0041b",
    "a\ufe0fb",
    "a\tb",
    "a\x85b",
)
ENDING = ("exit", " quit", "ends with \\", "ends with a name: @x/y", "ends with a blank ")


def test_sixty_texts_arrive_exactly_or_as_a_file_or_are_said_to_differ(place, cli, mock_llm):
    kept, changed = "\n".join(KEPT), "\n".join(CHANGED)

    def arrived(text, receipt):
        if receipt.startswith("differs"):
            return
        assert receipt == "exact", (text, receipt)
        text = cao.strip_controls(text)
        sent = json.dumps(mock_llm.requests[asked:], ensure_ascii=False)
        files = (place.home / "sessions" / session / "launch").rglob("0*.md")
        written = [file.read_bytes().decode() for file in files]
        typed = json.dumps(text, ensure_ascii=False)[1:-1] in sent
        assert typed or any(text in file for file in written), text

    def give(target, text):
        nonlocal asked
        asked = len(mock_llm.requests)
        (result,) = handoff(place, target, text, "--keep")["results"]
        assert result["outcome"] == "done", (text, result)
        return result

    asked = 0
    first = give(f"real-{cli}", f"As the first:\n{kept}\n{changed}")
    session = first["session"]
    arrived(f"As the first:\n{kept}\n{changed}", first["exact"])
    for text in (*LEADING, *ENDING, kept, changed, "\n".join(LAYOUTS)):
        arrived(text, give(session, text)["exact"])
    for text in (kept, changed):
        asked = len(mock_llm.requests)
        place.ok("send", session, stdin=text)
        events = until(
            lambda: place.log(session)[-2:], lambda last: last[0]["event"] == "turn_ended"
        )
        assert events[1]["state"] == "idle"
        (*_, taken) = [e for e in place.log(session) if e["event"] == "taken"]
        arrived(text, taken["exact"])


def test_a_word_by_which_a_cli_ends_itself_is_a_task_like_any(place, cli):
    assert handoff(place, f"real-{cli}", "exit")["results"][0]["outcome"] == "done"


def test_words_like_a_sign_of_work_hold_up_no_answer(place, cli):
    says = "It shows [retrying (esc to interrupt) esc to cancel Working esc esc interrupt"
    assert handoff(place, f"real-{cli}", f"MOCK:say {says}")["results"][0]["answer"] == says


def test_assign_and_wait(place, cli):
    task = place.ok("assign", f"real-{cli}", "MOCK:sleep 0.5;say assigned").strip()
    assert place.ok("wait", task) == "assigned\n"


# What the README's tasks are to the mock.
README_TASKS = {
    "Say hello.": "MOCK:say Hello",
    "Run: touch made-by-a-worker": SHELL["claude"].format(file="made-by-a-worker"),
}


def test_the_readmes_five_minutes_with_claude_code(place, mock_llm):
    """Its lines run as they stand, by a person who has used Claude Code in that folder before."""
    install(place, "claude", mock_llm.port)
    (block,) = re.findall(
        r"^<!-- run with claude -->\n```sh\n(.*?)^```$",
        (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S,
    )  # fmt: skip
    for task, script in README_TASKS.items():
        assert task in block
        block = block.replace(f"'{task}'", cao.quote_argv([script]))
    seen = json.loads((place.user / ".claude.json").read_text())
    seen["projects"] = {str(place.work): {"hasTrustDialogAccepted": True}}
    (place.user / ".claude.json").write_text(json.dumps(seen))
    program = place.folder / "bin/cao"
    program.write_text(f'#!/bin/sh\nexec {cao.quote_argv(CAO)} "$@"\n')
    program.chmod(0o755)
    login = {
        "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{mock_llm.port}", "ANTHROPIC_AUTH_TOKEN": "dummy",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    run_block(block, place.work, {**place.env, **login}, 240.0)
    assert (place.work / "made-by-a-worker").exists()


@pytest.mark.parametrize("inner", ["claude", "codex"])
def test_a_worker_hands_off_to_another_real_cli_over_mcp(place, cli, inner, mock_llm):
    if inner != cli:
        install(place, inner, mock_llm.port)
    call = json.dumps({"target": f"real-{inner}", "task": "MOCK:say from below"})
    target, task = f"real-{cli}", f"MOCK:tool handoff {call};result"
    if cli == "pi":  # it has no MCP: cao's command in its shell, which it may run unasked
        target = handoff(place, target, "MOCK:say ready")["results"][0]["session"]
        script = f"{place.home}/sessions/{target}/launch/cao.sh"
        command = {"command": f"sh {script} handoff real-{inner} 'MOCK:say from below'"}
        task = f"MOCK:tool bash {json.dumps(command)};result"
    result = handoff(place, target, task)["results"][0]
    assert result["outcome"] == "done"
    assert "from below" in result["answer"]
    kinds = {place.store.load(name).depth for name in place.live()}
    assert kinds == {1, 2}


@pytest.mark.parametrize(("outer", "inner"), [("claude", "gemini"), ("codex", "claude")])
def test_a_worker_of_a_worker_is_logged_in_by_the_persons_environment(
    place, mock_llm, outer, inner
):
    install(place, outer, mock_llm.port)
    install(place, inner, mock_llm.port)
    login = re.findall(r"(?m)^    (\w+): \"?(.*?)\"?$", PROFILES[inner])
    place.env.update((key, value.format(port=mock_llm.port)) for key, value in login)
    path = place.home / "profiles" / f"real-{inner}.md"
    path.write_text(re.sub(r"(?m)^env:\n(  .*\n)+", "", path.read_text()))
    call = json.dumps({"target": f"real-{inner}", "task": "MOCK:say from below"})
    result = handoff(place, f"real-{outer}", f"MOCK:tool handoff {call};result")["results"][0]
    assert "from below" in result["answer"]


COLOURS = {
    "question": "Which colour?",
    "header": "Colour",
    "options": [{"label": "Red", "description": "r"}, {"label": "Blue", "description": "b"}],
}
COLOUR = {"type": "object", "properties": {"colour": {"type": "string", "enum": ["Red", "Blue"]}}}
ASK = {  # how each CLI's model asks a question of its own; Codex and pi have no tool for that
    "claude": ("AskUserQuestion", {"questions": [{**COLOURS, "multiSelect": False}]}),
    "gemini": ("ask_user", {"questions": [{**COLOURS, "type": "choice"}]}),
    "qwen": ("ask_user_question", {"questions": [{**COLOURS, "multiSelect": False}]}),
    "kimi": ("AskUserQuestion", {"questions": [COLOURS]}),
    "copilot": ("ask_user", {"message": "Which colour?", "requestedSchema": COLOUR}),
    "opencode": ("question", {"questions": [COLOURS]}),
}
LONG = " ".join(f"word{n:03}" for n in range(400))
NO = 'no: use <make> "clean" ü'


def asked_by(place, target, task, kind):
    """Give a task; return the session, its one question and the task, once it has asked."""
    found = handoff(place, target, task, code=6)
    (ask,) = found["asking"]
    assert ask["question"]["kind"] == kind
    (task,) = found["running"]
    return ask["session"], ask["question"], task


def edits_alone(place, name: str, port: int) -> str:
    """Put a CLI into the place that may change files in its directory, and has no shell. Return
    its profile."""
    install(place, name, port)
    profile = place.home / "profiles" / f"real-{name}.md"
    scope = "permissions: edits\nallowedTools: [fs_read, fs_list, fs_write]"
    profile.write_text(profile.read_text().replace("permissions: ask", scope))
    return f"real-{name}"


def test_pi_asks_before_it_writes_outside_its_directory(place, mock_llm):
    target, outside = edits_alone(place, "pi", mock_llm.port), place.user / "outside"
    (place.work / "link").symlink_to(place.user)
    (place.work / "nothing").symlink_to(outside)
    (place.work / ".git" / "hooks").mkdir(parents=True)
    (place.work / "hooks").symlink_to(".git/hooks")

    def write(path: str) -> str:
        return f"MOCK:tool write {json.dumps({'path': path, 'content': 'x'})};say went on"

    above = f"{place.work}/link/../outside"  # the kernel follows the link first
    paths = ["~/outside", f"@{outside}", "link/outside", "nothing", above, "\0"]
    (place.work / "pi").symlink_to(".pi")
    inside = (".git/config", "hooks/post-checkout", ".pi/extensions/x.js", "pi/settings.json")
    for path in (*paths, *inside):
        target, question, task = asked_by(place, target, write(path), "permission")
        assert path in question["text"]
        place.ok("answer", target, "no")
        assert place.ok("wait", task) == "went on\n"
    assert not outside.exists()
    assert not (place.folder / "outside").exists()
    assert [*(place.work / ".git").rglob("*")] == [place.work / ".git" / "hooks"]
    assert not (place.work / ".pi").exists()
    assert handoff(place, target, write("new/inside"))["results"][0]["answer"] == "went on"
    assert (place.work / "new" / "inside").read_text() == "x"


def test_a_hook_in_a_claude_profile_runs_beside_caos_own(place, mock_llm):
    install(place, "claude", mock_llm.port)
    guard = {"type": "command", "command": "echo guarded >&2; exit 2"}
    config = {"hooks": {"PreToolUse": [{"matcher": "Bash", "hooks": [guard]}]}}
    head = f"permissions: all\nclaudeConfig: {json.dumps(config)}"
    profile = place.home / "profiles/real-claude.md"
    profile.write_text(profile.read_text().replace("permissions: ask", head))
    handoff(place, "real-claude", SHELL["claude"].format(file="made"))
    assert not (place.work / "made").exists()
    assert "guarded" in str(mock_llm.requests)


def test_edits_alone_of_qwen_stay_in_their_directory(place, mock_llm):
    target, calls = edits_alone(place, "qwen", mock_llm.port), ""
    inside = place.work / "work-private" / "x"
    outside = [place.folder / name for name in ("other/x", "work-b/x", "workb/.c/x", "work.txt")]
    for path in (inside, *outside):
        path.parent.mkdir(parents=True, exist_ok=True)
        call = json.dumps({"file_path": str(path), "content": "x"})
        calls += f"tool write_file {call};"
    assert handoff(place, target, f"MOCK:{calls}say went on")["results"][0]["answer"] == "went on"
    assert [path for path in (inside, *outside) if path.exists()] == [inside]


# How its model writes a file; Copilot changes one that is there.
WRITE = {
    "opencode": 'read {"filePath": "%s"};tool write {"filePath": "%s", "content": "{}"}',
    "qwen": 'read_file {"file_path": "%s"};tool write_file {"file_path": "%s", "content": "{}"}',
    "gemini": 'read_file {"file_path": "%s"};tool write_file {"file_path": "%s", "content": "{}"}',
    "copilot": 'edit {"path": "%s", "old_str": "{", "new_str": "{ "}',
}


@pytest.mark.parametrize("name", ["opencode", "qwen", "copilot"])
def test_edits_alone_write_nothing_unasked_that_says_what_runs(place, mock_llm, name):
    target = edits_alone(place, name, mock_llm.port)
    (place.folder / "tmp").mkdir(exist_ok=True)  # in this folder Copilot writes unasked
    place.env["TMPDIR"] = str(place.folder / "tmp")
    (place.work / "link").symlink_to(place.home)
    for way in ("env.json", "link"):
        if (name, way) == ("opencode", "link"):
            continue  # see the README
        session = handoff(place, target, "MOCK:say ready", "--keep")["results"][0]["session"]
        home = place.work / "link" if way == "link" else place.home
        path = home / "sessions" / session / "launch" / "env.json"
        before = path.read_text()
        script = WRITE[name].replace("%s", str(path))
        found = place.run("handoff", session, f"MOCK:tool {script};say went on", "--json")
        if found.returncode == 6:  # whether it may read that
            place.run("answer", session, "yes")
            place.run("wait")
        assert path.read_text() == before
        place.ok("stop", session)


# What git, or the CLI's own next session, runs.
RUN = {
    "opencode": (".git/config", ".opencode/plugin/x.js", "opencode.json", "tui.json"),
    # Its settings.json it changes itself; a skill there may have hooks.
    "qwen": (".git/config", ".qwen/x.json", ".agents/skills/x/SKILL.md"),
    "gemini": (".git/config", ".gemini/settings.json"),
    "copilot": (
        *(".git/config", ".github/hooks/x.json", ".mcp.json", ".vscode/mcp.json"),
        # Custom agents name MCP servers.
        *(".github/agents/x.agent.md", ".claude/agents/x.md", "sub/.github/agents/x.agent.md"),
        ".github/extensions/x/extension.mjs",
    ),
}


@pytest.mark.parametrize("name", list(WRITE))
def test_edits_alone_change_nothing_unasked_that_git_or_a_next_session_runs(place, mock_llm, name):
    target, calls = edits_alone(place, name, mock_llm.port), ""
    if name == "gemini":  # what the person allows his own sessions
        (place.user / ".gemini/policies").mkdir(parents=True)
        rule = (
            '[[rule]]\ntoolName = ["write_file", "replace"]\ndecision = "allow"\npriority = 100\n'
        )
        (place.user / ".gemini/policies/mine.toml").write_text(rule)
    free = ("inside", "x.gemini/a.md", "src/mcp.json", ".gitignore")
    for path in (*RUN[name], *free):
        (place.work / path).parent.mkdir(parents=True, exist_ok=True)
        (place.work / path).write_text("{ }\n")
        calls += f"tool {WRITE[name]};".replace("%s", str(place.work / path))
    found = place.run("handoff", target, f"MOCK:{calls}say went on", "--json")
    while found.returncode == 6:
        place.ok("answer", *place.live(), "no")
        found = place.run("wait", "--json")
    assert json.loads(found.stdout)["results"][0]["answer"] == "went on"
    changed = [path for path in RUN[name] if (place.work / path).read_text() != "{ }\n"]
    assert changed == []
    assert [path for path in free if (place.work / path).read_text() == "{ }\n"] == []


@pytest.mark.parametrize("name", list(WRITE))
def test_edits_alone_do_not_change_unasked_where_a_worktrees_git_is(place, mock_llm, name):
    for words in (["init", "-q"], [*"-c user.name=x -c user.email=x@x commit -q -m first".split(),
                                   "--allow-empty"]):  # fmt: skip
        subprocess.run(["git", *words], cwd=place.work, check=True)
    target = edits_alone(place, name, mock_llm.port)
    flags = ("--worktree", "--keep")
    session = handoff(place, target, "MOCK:say ready", *flags)["results"][0]["session"]
    path = place.home / "worktrees" / session / ".git"
    before = path.read_text()
    script = WRITE[name].replace("%s", str(path)).replace('"{"', '"gitdir: "', 1)
    found = place.run("handoff", session, f"MOCK:tool {script};say went on", "--json")
    if found.returncode == 6:
        place.ok("answer", session, "no")
    assert path.read_text() == before


def test_a_yes_to_a_plan_lets_claude_go_on(place, mock_llm):
    install(place, "claude", mock_llm.port)
    plan = 'tool EnterPlanMode {};tool ExitPlanMode {"plan": "do it"};say went on'
    (ask,) = handoff(place, "real-claude", f"MOCK:{plan}", code=6)["asking"]
    assert "ExitPlanMode" in ask["question"]["text"]
    place.ok("answer", ask["session"], "yes")
    (result,) = json.loads(place.ok("wait", "--json"))["results"]
    assert result["answer"] == "went on"


def set_opencode(place, users: dict) -> None:
    """Give OpenCode this configuration of the user's, beside the one of all tests."""
    shared, own = Path(place.env["XDG_CONFIG_HOME"], "opencode"), place.folder / "xdg/opencode"
    own.mkdir(parents=True)
    for path in shared.iterdir():
        (own / path.name).symlink_to(path)
    (own / "opencode.json").unlink()
    (own / "opencode.json").write_text(json.dumps({**OPENCODE_CONFIG, **users}))
    place.env["XDG_CONFIG_HOME"] = str(own.parent)


def test_an_answer_that_fills_opencodes_context_is_kept(place, mock_llm):
    """Behind it, it sums up the conversation, and bids its model go on."""
    install(place, "opencode", mock_llm.port)
    mock = json.loads(json.dumps(OPENCODE_CONFIG["provider"]["mock"]))
    mock["models"]["mock-model"]["limit"] = {"context": 100_000, "output": 8_000}
    set_opencode(place, {"provider": {"mock": mock}})
    (result,) = handoff(place, "real-opencode", "MOCK:tokens 150000;say the answer")["results"]
    assert (result["outcome"], result["answer"]) == ("done", "the answer")
    assert "Continue" in "".join(result["turns"])
    done = handoff(place, result["session"], "MOCK:tokens 9;say another")["results"][0]
    assert (done["answer"], done["turns"]) == ("another", [])


BASH = 'bash {"command": "touch made", "description": "x"}'
TASK = {"description": "x", "prompt": f"MOCK:tool {BASH}", "subagent_type": "general"}


def test_opencode_asks_whatever_the_users_own_rules_allow(place, mock_llm):
    install(place, "opencode", mock_llm.port)
    build, general = {"*": "allow", "bash": "allow"}, {"ba*": "allow"}
    users = {"bash": {"*": "ask", "touch *": "allow"}, "read": "allow", "a.(b_*": "deny"}
    agents = {"build": {"permission": build}, "general": {"permission": general}}
    set_opencode(place, {"permission": users, "agent": agents})
    (place.work / ".env").write_text("SECRET=1\n")
    place.env["OPENCODE_PERMISSION"] = '{"*": "allow", "bash": "allow"}'
    target, read = "real-opencode", json.dumps({"filePath": str(place.work / ".env")})
    for tool in (BASH, f"task {json.dumps(TASK)}", f"read {read}"):
        target, _, task = asked_by(place, target, f"MOCK:tool {tool};say went on", "permission")
        place.ok("answer", target, "no")
        assert place.ok("wait", task) == "went on\n"
    assert not (place.work / "made").exists()


@pytest.mark.parametrize("trust", [False, True])
def test_opencode_runs_a_folders_programs_only_where_it_is_trusted(place, mock_llm, trust):
    target = edits_alone(place, "opencode", mock_llm.port)
    set_opencode(place, {"lsp": True, "formatter": True})
    if trust:
        profile = place.home / "profiles/real-opencode.md"
        profile.write_text(profile.read_text().replace("permissions:", "trust: yes\npermissions:"))
    (place.work / "package.json").write_text("{}")
    (place.work / "composer.json").write_text('{"require": {"laravel/pint": "*"}}')
    modules = place.work / "node_modules/typescript"
    (modules / "lib").mkdir(parents=True)
    (modules / "package.json").write_text('{"name": "typescript", "version": "5.0.0"}')
    ran = place.user / "ran"
    script = f"require('fs').appendFileSync('{ran}', 'server\\n')"
    (modules / "lib/tsserver.js").write_text(script)
    formatter = place.work / "vendor/bin/pint"
    formatter.parent.mkdir(parents=True)
    formatter.write_text(f"#!/bin/sh\necho formatter >> '{ran}'\n")
    formatter.chmod(0o755)
    calls = ""
    for name in ("a.ts", "b.php"):
        call = {"filePath": str(place.work / name), "content": "let a = 1\n"}
        calls += f"tool write {json.dumps(call)};"
    (result,) = handoff(place, target, f"MOCK:{calls}say went on")["results"]
    assert result["answer"] == "went on"
    programs = {*ran.read_text().split()} if ran.exists() else set()
    assert programs == ({"server", "formatter"} if trust else set())


@pytest.mark.parametrize(
    ("scope", "users"),
    [
        (
            "permissions: auto\nallowedTools: [fs_read]",
            {"edit": "ask", "bash": "ask", "b*": "allow", "*": "ask"},
        ),
        ("permissions: edits", {"edit": {"*": "deny"}, "ba*": "deny"}),
    ],
    ids=["profile", "user"],
)
def test_what_the_profile_or_the_user_refuses_opencode_does_not_do(place, mock_llm, scope, users):
    install(place, "opencode", mock_llm.port)
    set_opencode(place, {"permission": users})
    profile = place.home / "profiles/real-opencode.md"
    profile.write_text(profile.read_text().replace("permissions: ask", scope))
    write = json.dumps({"filePath": str(place.work / "made"), "content": "x"})
    handoff(place, "real-opencode", f"MOCK:tool write {write};tool {BASH};say went on")
    assert not (place.work / "made").exists()
    assert handoff(place, "real-opencode", "MOCK:tool cao_list_sessions {};say again")


SERVER = """\
import sys, json
for line in sys.stdin:
    asked, said = json.loads(line), {}
    if asked["method"] == "initialize":
        said = {"protocolVersion": asked["params"]["protocolVersion"],
                "capabilities": {"tools": {}}, "serverInfo": {"name": "x", "version": "1"}}
    if asked["method"] == "tools/list":
        said = {"tools": [{"name": "run", "inputSchema": {"type": "object", "properties": {}}}]}
    if asked["method"] == "tools/call":
        open(sys.argv[1], "w").close()
        said = {"content": [{"type": "text", "text": "ran"}]}
    if "id" in asked:
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": said}), flush=True)
"""


def test_opencode_asks_about_a_server_whose_name_begins_like_caos(place, mock_llm):
    install(place, "opencode", mock_llm.port)
    script, made = place.folder / "server.py", place.folder / "made"
    script.write_text(SERVER)
    argv = {"command": sys.executable, "args": [str(script), str(made)]}
    profile = place.home / "profiles/real-opencode.md"
    head = f"permissions: ask\nmcpServers: {json.dumps({'cao_shell': argv})}\n"
    profile.write_text(profile.read_text().replace("permissions: ask\n", head))
    asked_by(place, "real-opencode", "MOCK:tool cao_shell_run {};say went on", "permission")
    assert not made.exists()


@pytest.mark.parametrize(
    ("cli", "calls"),
    [
        ("claude", ('Bash {"command": "cd sub"}', 'Bash {"command": "rm -rf *"}')),
        (
            "codex",
            (
                'exec_command {"cmd": "rm -rf *", "workdir": "%s", "justification": "may I?",'
                ' "sandbox_permissions": "require_escalated"}',
            ),
        ),
    ],
    indirect=["cli"],
)
def test_a_permission_says_where_its_command_runs(place, cli, calls):
    sub = place.work / "sub"
    sub.mkdir()
    script = "".join(f"tool {call};" for call in calls).replace("%s", str(sub))
    session, question, task = asked_by(
        place, f"real-{cli}", f"MOCK:{script}say went on", "permission"
    )
    assert question["text"].startswith(f"in {sub}: ")
    place.ok("answer", session, "no")
    assert place.ok("wait", task) == "went on\n"
    session, question, _ = asked_by(place, session, SHELL[cli].format(file="made"), "permission")
    assert question["text"].startswith(f"in {sub}: ") == (
        cli == "claude"
    )  # whose shell stays there


def test_opencode_shows_all_that_it_asks(place, mock_llm):
    install(place, "opencode", mock_llm.port)
    server = Path(__file__).with_name("mcp_fixture_server.py")
    entry = {"lab": {"command": sys.executable, "args": [str(server)]}}
    profile = place.home / "profiles/real-opencode.md"
    head = f"permissions: ask\nmcpServers: {json.dumps(entry)}"
    profile.write_text(profile.read_text().replace("permissions: ask", head))
    target, path, sub = "real-opencode", place.work / "a.txt", place.work / "sub"
    path.write_text("one\ntwo\n")
    sub.mkdir()
    edit = {"filePath": str(path), "oldString": "two", "newString": "three"}
    write = {"filePath": str(path), "content": "one\nfour\n"}
    outside = f'external_directory: touch {place.user}/x\ndirectories: ["{place.user}"]'
    for tool, given, text in (
        ("write", write, f"edit: {path}\ncontent: one\nfour\n"),
        ("edit", edit, f"edit: {path}\noldString: two\nnewString: three"),
        ("bash", {"command": "touch x", "workdir": str(sub)}, f"bash: touch x\nworkdir: {sub}"),
        ("bash", {"command": f"touch {place.user}/x"}, outside),
        ("lab_test_error_handling", {"what": "sent"}, "lab_test_error_handling:\nwhat: sent"),
    ):
        task = f"MOCK:tool {tool} {json.dumps(given)};say went on"
        target, question, task = asked_by(place, target, task, "permission")
        assert question["text"].startswith(text)
        place.ok("answer", target, "no")
        assert place.ok("wait", task) == "went on\n"


def test_questions_are_shown_whole_and_answered_as_data(place, cli, mock_llm):
    # Outside the working directory; OpenCode asks for that too, by a dialog of its own.
    folder = place.work if cli == "opencode" else place.user
    made, refused = folder / "made", folder / "refused"
    task = SHELL[cli].format(file=f"{made} # {LONG}")
    session, question, task = asked_by(place, f"real-{cli}", task, "permission")
    assert f"touch {made} # {LONG}" in question["text"]
    assert [key for key, _ in question["options"]][:2] == ["yes", "no"]
    # It stays open, whatever is drawn there meanwhile.
    asked_at = place.state(session)["questions"][0]["asked_at"]
    until(lambda: time.time() - asked_at > cao.SCREEN_S + cao.UNSEEN_S)
    assert [q["id"] for q in place.state(session)["questions"]] == [question["id"]]
    assert not made.exists()
    place.ok("answer", session, "yes")
    assert place.ok("wait", task) == "went on\n"
    assert made.exists()

    before = len(mock_llm.requests)
    task = SHELL[cli].format(file=refused)
    session, question, task = asked_by(place, session, task, "permission")
    place.ok("answer", session, NO)
    answered = place.ok("wait", task)
    assert answered == "went on\n" or "The user refused" in answered
    assert not refused.exists()
    sent = json.dumps(mock_llm.requests[before:], ensure_ascii=False)
    # Codex gives the words to its model as text that is quoted twice.
    assert "use <make> " + ('\\\\\\\\\\\\\\"clean' if cli == "codex" else '\\"clean') in sent
    if cli not in ASK:
        return

    tool, given = ASK[cli]
    for answer in ("2", "Other words: use 2 tabs & 1 % of it"):
        task = f"MOCK:tool {tool} {json.dumps(given)};result"
        session, question, task = asked_by(place, session, task, "question")
        assert question["text"] == "Which colour?"
        assert question["options"] == [["1", "Red"], ["2", "Blue"]]
        place.ok("answer", session, answer)
        assert {"2": "Blue"}.get(answer, answer) in place.ok("wait", task)


@pytest.mark.parametrize("code", [400, 500])
def test_an_api_error_is_a_failure_with_its_words(place, cli, code):
    if (cli, code) == ("opencode", 500):  # it tries again for ever: that is work, and is seen
        task = place.ok("assign", f"real-{cli}", f"MOCK:error {code}").strip()
        session = task.partition(".")[0]
        until(lambda: "retrying, attempt" in place.ok("ls"), timeout_s=120)
        assert place.state(session)["state"] == "working"
        return
    if (cli, code) == ("qwen", 500):  # it tries seven times, over more than a minute
        result = handoff(place, f"real-{cli}", "MOCK:error 500 2;say alive")["results"][0]
        assert (result["outcome"], result["answer"]) == ("done", "alive")
        return
    if (cli, code) == ("gemini", 500):  # it asks whether to try again
        found = handoff(place, f"real-{cli}", f"MOCK:error {code}", code=6)
        (ask,) = found["asking"]
        assert ask["question"]["kind"] == "screen"
        assert re.search("1. Keep trying(.|\\n)*2. Stop", ask["question"]["text"])
        place.ok("answer", ask["session"], "--key", "2")
        result = json.loads(place.run("wait", "--json", *found["running"]).stdout)["results"][0]
    else:
        result = handoff(place, f"real-{cli}", f"MOCK:error {code}", code=1)["results"][0]
    assert (result["outcome"], result["reason"]) == ("failed", "api_error")
    assert result["source"] == FAILED.get(cli, "hook:StopFailure")
    assert result["detail"]
    assert handoff(place, result["session"], "MOCK:say alive")["results"][0]["answer"] == "alive"


def test_a_persons_escape_is_seen_and_the_task_goes_on_with_a_message(place, cli, mock_llm):
    task, session = begin(place, cli, mock_llm, "MOCK:slow 30 one two three four five six")
    until(lambda: re.search(cao.PROVIDERS[cli].busy, place.screen(session)))
    place.tmux("send-keys", "-t", f"={session}:", "C-c" if cli == "copilot" else "Escape")
    if cli == "opencode":
        until(lambda: "again to interrupt" in place.screen(session))
        place.tmux("send-keys", "-t", f"={session}:", "Escape")
    place.until_state(session, "asking")
    assert [q["kind"] for q in place.state(session)["questions"]] == ["interrupted"]
    source = place.state(session)["evidence"]["interrupted"]
    assert source == ESCAPED.get(cli, "hook:Interrupt")
    place.ok("send", session, "MOCK:say went on")
    assert place.ok("wait", task) == "went on\n"


def test_interrupt_by_order_ends_the_task(place, cli):
    task = place.ok("assign", f"real-{cli}", "MOCK:slow 30 one two three four five six").strip()
    session = task.partition(".")[0]
    place.until_state(session, "working", 60)
    until(lambda: re.search(cao.PROVIDERS[cli].busy, place.screen(session)))
    place.ok("stop", "--interrupt", session)
    (found,) = json.loads(place.run("wait", "--json", task).stdout)["results"]
    assert found["outcome"] == "interrupted"
    assert handoff(place, session, "MOCK:say alive")["results"][0]["answer"] == "alive"


def test_a_cli_that_is_not_logged_in_says_so_and_leaves_no_session(place, cli):
    if cli == "opencode":
        pytest.skip("without a login it takes a free model of its maker's: it asks for none")
    place.profile(
        f"real-{cli}", f"---\nprovider: {cli}\ntrust: yes\nenv:\n  set:\n    IS_SANDBOX: '1'\n---\n"
    )
    (place.user / ".pi/agent/models.json").unlink(missing_ok=True)  # that is its login
    done = place.run("handoff", f"real-{cli}", "hello", "--json")
    (result,) = json.loads(done.stdout)["results"]
    assert (done.returncode, result["outcome"], result["reason"]) == (1, "failed", "auth")
    assert cao.PROVIDERS[cli].login in result["detail"]
    until(place.live, [])
    until(place.pids, [])


def test_a_lost_session_goes_on_with_its_conversation(place, cli, mock_llm):
    task = place.ok("assign", f"real-{cli}", "MOCK:say the word is borealis").strip()
    place.ok("wait", task)
    session = task.partition(".")[0]
    group = place.state(session)["group"]["id"]
    runner = int(Path(f"/proc/{group}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(runner, signal.SIGKILL)
    result = handoff(place, session, "MOCK:say again")["results"][0]
    assert (result["answer"], result["session"]) == ("again", session)
    assert "the word is borealis" in json.dumps(mock_llm.requests[-1])
    assert place.state(session)["group"]["id"] != group


def test_without_any_hook_the_next_source_decides_and_the_log_says_so(place, mock_llm):
    install(place, "claude", mock_llm.port)
    path = place.home / "profiles" / "real-claude.md"
    path.write_text(
        path.read_text().replace("env:", "claudeConfig: {disableAllHooks: true}\nenv:", 1)
    )
    result = handoff(place, "real-claude", "MOCK:say by transcript")["results"][0]
    assert (result["outcome"], result["answer"]) == ("done", "by transcript")
    assert result["source"] == "transcript"
    missed = [
        line["hook"] for line in place.log(result["session"]) if line["event"] == "hook_missed"
    ]
    assert missed[-1:] == ["Stop"]
    again = handoff(place, result["session"], "MOCK:say it again")["results"][0]
    assert (again["outcome"], again["answer"]) == ("done", "it again")


def test_a_supervisor_in_a_small_terminal_gets_its_tasks_too(place, cli, request):
    """Its window has the size of the terminal that shows it; a worker's always has its own."""
    session = place.ok("launch", f"real-{cli}", "--detach").strip()
    place.until_state(session, "idle")
    shown = Terminal(place, 80, 24, "attach", session)
    request.addfinalizer(shown.close)
    form = ("display-message", "-p", "-t", f"={session}:", "#{pane_width}x#{pane_height}")
    until(lambda: place.tmux(*form), "80x23\n")
    text = f"{'a word and one more ' * 60}\nMOCK:say small"
    assert handoff(place, session, text)["results"][0]["answer"] == "small"
    shown.tmux("resize-window", "-x", "150", "-y", "40")
    until(lambda: place.tmux(*form), "150x39\n")
    result = handoff(place, session, "MOCK:say large")["results"][0]
    assert (result["answer"], result["exact"]) == ("large", "exact")


def test_exit_by_a_person_ends_the_task(place, cli):
    session = handoff(place, f"real-{cli}", "MOCK:say ready")["results"][0]["session"]
    leave = "/quit" if cli == "pi" else "/exit"
    place.tmux("send-keys", "-t", f"={session}:", "-l", leave)
    until(lambda: leave in place.screen(session))
    task = place.ok("assign", session, "MOCK:say never").strip()
    place.tmux("send-keys", "-t", f"={session}:", "Enter")
    found = json.loads(place.run("wait", "--json", task).stdout)["results"][0]
    assert (found["outcome"], found["exit_status"]) == ("failed", 0)


def test_a_killed_cli_ends_the_task_within_a_second(place, cli, mock_llm):
    task, session = begin(place, cli, mock_llm, "MOCK:hang")
    group = place.until_state(session, "working")["group"]["id"]
    waiting = place.start("wait", "--json", task)
    os.kill(group, signal.SIGKILL)
    out, _ = waiting.communicate(timeout=30)
    (found,) = json.loads(out)["results"]
    assert (found["outcome"], found["reason"], found["exit_status"]) == ("failed", "exited", -9)
    until(place.pids, [])


@pytest.mark.parametrize("kill", ["kill-session", "kill-server"])
def test_nothing_of_gemini_outlives_its_tmux_session(place, mock_llm, kill):
    """It is two processes that do not heed a hangup, and its shell has a terminal of its own."""
    install(place, "gemini", mock_llm.port)
    path = place.home / "profiles" / "real-gemini.md"
    path.write_text(path.read_text().replace("permissions: ask", "permissions: all"))
    made = place.work / "made"
    task = place.ok("assign", "real-gemini", SHELL["gemini"].format(file=f"{made}; sleep 400"))
    until(made.exists)
    place.tmux(kill, *(["-t", f"={task.partition('.')[0]}"] if kill == "kill-session" else []))
    until(place.pids, [], 15)


def test_an_ended_session_goes_on_with_its_conversation(place, cli, mock_llm):
    session = handoff(place, f"real-{cli}", "MOCK:say the word is aurora")["results"][0]["session"]
    place.ok("stop", session)
    result = handoff(place, session, "MOCK:say again")["results"][0]
    assert (result["answer"], result["session"]) == ("again", session)
    assert "the word is aurora" in json.dumps(mock_llm.requests[-1])


@pytest.mark.parametrize("cli", ["claude", "kimi", "qwen"])
def test_without_trust_the_dialog_is_reported_and_a_person_may_answer(place, cli, mock_llm):
    install(place, cli, mock_llm.port)  # Codex asks for no trust where -s and -a are given
    path = place.home / "profiles" / f"real-{cli}.md"
    path.write_text(path.read_text().replace("trust: yes\n", ""))
    mark = place.user / "hostile-hook-ran"
    hook = {"hooks": [{"type": "command", "command": f"touch {mark}"}]}
    (place.work / ".qwen").mkdir()
    text = json.dumps({"hooks": {"SessionStart": [hook], "UserPromptSubmit": [hook]}})
    (place.work / ".qwen/settings.json").write_text(text)
    found = handoff(place, f"real-{cli}", "MOCK:say trusted", code=6)
    (ask,) = found["asking"]
    assert ask["question"]["kind"] == "screen"
    assert re.search("(?i)trust this folder", ask["question"]["text"])
    agent = McpClient(place)
    said = agent.call("answer", session=ask["session"], answer="1")
    assert said["isError"]
    agent.close()
    session, (task,) = ask["session"], found["running"]
    if cli == "claude":  # the cursor stands on No
        place.ok("answer", session, "--key", "Down")
        place.until_state(session, "asking")
    assert not mark.exists()
    place.ok("answer", session, "--key", "Enter")
    assert place.ok("wait", task) == "trusted\n"
    assert mark.exists() is (cli == "qwen")


def test_claudes_first_run_is_shown_within_seconds(place, mock_llm):
    install(place, "claude", mock_llm.port)
    (place.user / ".claude.json").unlink()
    rows = {row["what"]: row for row in json.loads(place.ok("doctor", "--json"))}
    assert "first run is to come" in rows["claude"]["detail"]
    found = handoff(place, "real-claude", "MOCK:say never", code=6)
    (ask,) = found["asking"]
    assert ask["question"]["kind"] == "screen"
    assert "Choose the text style" in ask["question"]["text"]
    begun = place.log(ask["session"])[0]["at"]
    (asked,) = place.state(ask["session"])["questions"]
    assert asked["asked_at"] - begun < 40  # 11 on a machine that does nothing else


def test_a_prompt_that_esc_takes_back_is_an_interruption(place, mock_llm):
    install(place, "copilot", mock_llm.port)  # it removes the prompt from its own file
    session = handoff(place, "real-copilot", "MOCK:say ready")["results"][0]["session"]
    task = place.ok("assign", session, "MOCK:sleep 30;say never").strip()
    until(lambda: "esc edit prompt" in place.screen(session))
    place.tmux("send-keys", "-t", f"={session}:", "Escape")
    until(lambda: "esc again" in place.screen(session))
    place.tmux("send-keys", "-t", f"={session}:", "Escape")
    place.until_state(session, "asking")
    assert place.state(session)["evidence"]["interrupted"] == "transcript"
    place.ok("send", session, "MOCK:say went on")
    assert place.ok("wait", task) == "went on\n"


def test_copilot_reports_the_trust_dialog_and_runs_nothing_of_the_folder(place, mock_llm):
    install(place, "copilot", mock_llm.port)
    place.env["COPILOT_ALLOW_ALL"] = "true"  # the person's own habit
    path = place.home / "profiles" / "real-copilot.md"
    path.write_text(path.read_text().replace("trust: yes", "trust: no"))
    mark = place.user / "hostile-hook-ran"
    hook = {"type": "command", "bash": f"touch {mark}"}
    (place.work / ".github/hooks").mkdir(parents=True)
    text = json.dumps({"version": 1, "hooks": {"sessionStart": [hook]}})
    (place.work / ".github/hooks/hooks.json").write_text(text)
    found = handoff(place, "real-copilot", "MOCK:say trusted", code=6)
    (ask,) = found["asking"]
    assert ask["question"]["kind"] == "screen"
    assert cao.PROVIDERS["copilot"].trusts[0] in ask["question"]["text"]
    assert not mark.exists()
    place.ok("answer", ask["session"], "--key", "1")
    assert place.ok("wait", *found["running"]) == "trusted\n"
    assert mark.exists()


def test_a_question_that_is_left_to_claudes_dialog_is_asked_as_its_screen(place, mock_llm):
    install(place, "claude", mock_llm.port)
    made = place.work / "made"
    task = SHELL["claude"].format(file=made)
    session, _, task = asked_by(place, "real-claude", task, "permission")
    place.ok("answer", session, "--dialog")
    until(lambda: [q["kind"] for q in place.state(session)["questions"]], ["screen"])
    place.ok("answer", session, "--key", "Down")
    until(lambda: [q["kind"] for q in place.state(session)["questions"]], ["screen"])
    place.ok("answer", session, "--key", "1")
    assert place.ok("wait", task) == "went on\n"
    assert made.exists()


def test_words_like_copilots_trust_dialog_answer_no_other_dialog(place, mock_llm, request):
    target, outside = (
        edits_alone(place, "copilot", mock_llm.port),
        Path("/var/tmp", place.folder.name),
    )
    request.addfinalizer(lambda: outside.unlink(missing_ok=True))
    call = json.dumps({"path": str(outside), "file_text": "x"})
    task = f"{cao.PROVIDERS['copilot'].trusts[0]}\nMOCK:tool create {call};say went on"
    session, question, task = asked_by(place, target, task, "screen")
    assert outside.name in question["text"]
    assert not outside.exists()
    place.ok("answer", session, "--key", "Escape")


def test_always_holds_for_the_tool_in_this_session(place, mock_llm):
    for cli in ("claude", "opencode"):
        install(place, cli, mock_llm.port)
        task = SHELL[cli].format(file=place.work / cli)
        session, question, task = asked_by(place, f"real-{cli}", task, "permission")
        assert [key for key, _ in question["options"]] == ["yes", "no", "always"]
        place.ok("answer", session, "always")
        assert place.ok("wait", task) == "went on\n"
        again = SHELL[cli].format(file=place.work / cli)
        assert handoff(place, session, again)["results"][0]["answer"] == "went on"


def test_parallel_calls_are_approved_as_the_dialog_shows_them(place, mock_llm):
    """Gemini CLI tells of all at once, in any order, and asks about one after the other."""
    install(place, "gemini", mock_llm.port)
    path = place.home / "profiles" / "real-gemini.md"
    server = json.dumps({"tickets": {"command": CAO[0], "args": [*CAO[1:], "mcp"]}})
    path.write_text(path.read_text().replace("trust: yes", f"trust: yes\nmcpServers: {server}"))
    files = [place.work / "first", place.work / "second"]
    commands = [f"touch {file}" for file in files]
    hidden = "#\n" * 60
    commands.insert(0, f"touch {place.work}/other {hidden}# {commands[0]}")
    calls = (f"tool run_shell_command {json.dumps({'command': c})}" for c in commands)
    task = place.ok("assign", "real-gemini", f"MOCK:{' & '.join(calls)};say went on").strip()
    session = task.partition(".")[0]
    asked = until(
        lambda: place.state(session).get("questions", []), lambda asked: len(asked) == 3, 180
    )
    _, first, second = sorted(asked, key=lambda q: ("/other" not in q["text"], q["text"]))
    # The dialog of the other call is cut, and ends with the words of the first.
    until(lambda: "lines hidden" in place.screen(session))
    wrong = place.run("answer", session, "yes", "--question", first["id"])
    assert (wrong.returncode, "attach" in wrong.stderr) == (1, True), wrong
    assert list(place.work.glob("other")) == []
    place.tmux("send-keys", "-t", f"={session}:", "1")
    until(lambda: "lines hidden" not in place.screen(session))
    place.ok("answer", session, "--dialog", "--question", first["id"])  # there it stands already
    wrong = place.run("answer", session, "yes", "--question", second["id"])
    assert (wrong.returncode, "answer that one first" in wrong.stderr) == (1, True), wrong
    assert not any(file.exists() for file in files)
    wrong = place.run("answer", session, "no", "--question", second["id"])
    assert (wrong.returncode, "answer that one first" in wrong.stderr) == (1, True), wrong
    assert [m for m in place.store.waiting(session) if m.sender == "cao"] == []  # nobody refused
    for question in (first, second):
        place.ok("answer", session, "yes", "--question", question["id"])
    open_questions(place, session, 0)
    assert place.ok("wait", task) == "went on\n"
    assert all(file.exists() for file in files)

    # Of an MCP tool only its dialog shows the arguments.
    task = 'MOCK:tool mcp_tickets_list_sessions {"all": true};say went on'
    session, question, task = asked_by(place, session, task, "screen")
    until(lambda: '{"all":true}' in place.screen(session))
    assert place.run("answer", session, "yes").returncode == 2
    place.ok("answer", session, "--key", "1")
    assert place.ok("wait", task) == "went on\n"


def test_no_plan_waits_for_a_terminal(place, mock_llm):
    """Neither Gemini CLI nor Qwen Code takes a yes to a plan from a hook; by a key, Gemini CLI
    would write unasked from then on. No worker gets their tool for it."""
    for name in ("gemini", "qwen"):
        install(place, name, mock_llm.port)
        assert handoff(place, f"real-{name}", "MOCK:say on")["results"][0]["answer"] == "on"
    tools = [request.get("tools") for request in mock_llm.requests if request.get("tools")]
    assert "write_file" in str(tools)
    assert [t for t in ("enter_plan_mode", "propose_goal") if t in names_of_tools(tools)] == []


@pytest.mark.parametrize(
    "call", ['CreateGoal {"objective": "x"}', 'CronCreate {"cron": "* * * * *", "prompt": "x"}']
)
def test_kimis_goals_and_timers_are_refused(place, mock_llm, call):
    """Behind its answer it would go on by itself; the first answer there is: never ask again."""
    install(place, "kimi", mock_llm.port)
    (result,) = handoff(place, "real-kimi", f"MOCK:tool {call};result")["results"]
    assert (result["outcome"], "A worker has its task alone" in result["answer"]) == ("done", True)


def test_codex_has_no_goals(place, mock_llm):
    install(place, "codex", mock_llm.port)
    assert handoff(place, "real-codex", "MOCK:say on")["results"][0]["answer"] == "on"
    names = names_of_tools([request.get("tools") for request in mock_llm.requests])
    assert ("exec_command" in names, "create_goal" in names) == (True, False)


def test_a_task_that_comes_while_kimi_sums_up_for_a_person_waits(place, mock_llm, monkeypatch):
    install(place, "kimi", mock_llm.port)
    begun, go_on = threading.Event(), threading.Event()
    answer = mock_model.Handler.answer

    def summing(self, wire, body):
        if "summar" in str(mock_model.history(body)[-1:]).lower():
            begun.set()
            go_on.wait(60)
        return answer(self, wire, body)

    monkeypatch.setattr(mock_model.Handler, "answer", summing)
    session = handoff(place, "real-kimi", "MOCK:say first")["results"][0]["session"]
    handoff(place, session, f"MOCK:say some{3000 * ' words'}")  # else there is nothing to sum up
    place.tmux("send-keys", "-t", f"={session}:", "-l", "/compact")
    # The first Enter only ends the choice of the command.
    until(lambda: begun.wait(1) or place.tmux("send-keys", "-t", f"={session}:", "Enter"))
    until(lambda: "Compacting context" in place.screen(session))
    tasks = [place.ok("assign", session, f"MOCK:say {word}").strip() for word in ("one", "two")]
    until(lambda: place.state(session)["held_back"])
    go_on.set()
    assert [place.ok("wait", task) for task in tasks] == ["one\n", "two\n"]


def test_qwen_code_works_for_those_who_speak_no_english_or_type_as_in_vim(place, mock_llm):
    install(place, "qwen", mock_llm.port)
    (place.user / ".qwen").mkdir(exist_ok=True)
    settings = {"general": {"language": "zh", "vimMode": True, "chatRecording": False}}
    (place.user / ".qwen/settings.json").write_text(json.dumps(settings))
    place.env.update(LANG="zh_CN.UTF-8", QWEN_CODE_LANG="zh")
    session = handoff(place, "real-qwen", "MOCK:say first")["results"][0]["session"]
    (result,) = handoff(place, session, "MOCK:say second")["results"]
    assert (result["answer"], bool(result["usage"])) == ("second", True)
    place.ok("stop", session)
    assert handoff(place, session, "MOCK:say third")["results"][0]["answer"] == "third"


def test_copilot_takes_tasks_in_vims_normal_mode(place, mock_llm):
    install(place, "copilot", mock_llm.port)
    (place.user / ".copilot").mkdir(exist_ok=True)
    (place.user / ".copilot/settings.json").write_text('{"editorMode": "vim"}')
    session = handoff(place, "real-copilot", "MOCK:say first")["results"][0]["session"]
    place.tmux("send-keys", "-t", f"={session}:", "Escape")
    until(lambda: "-- NORMAL --" in place.screen(session))
    assert handoff(place, session, "MOCK:say second")["results"][0]["answer"] == "second"


def test_no_key_moves_claude_code_out_of_its_session(place, mock_llm):
    install(place, "claude", mock_llm.port)
    task, session = begin(place, "claude", mock_llm, "MOCK:slow 60 one two three four")
    until(lambda: "two" in place.screen(session))
    place.tmux("send-keys", "-t", f"={session}:", "Left")
    assert place.ok("wait", task) == "one two three four\n"
    assert "for agents" not in place.screen(session)
    assert handoff(place, session, "MOCK:say again")["results"][0]["answer"] == "again"


def test_no_task_is_typed_into_the_view_of_a_sub_agent_of_claude_code(place, mock_llm):
    install(place, "claude", mock_llm.port)
    prompt = "MOCK:slow 20 a b c d e REPORT"
    call = {"description": "look", "prompt": prompt, "subagent_type": "general-purpose"}
    tool = json.dumps({**call, "run_in_background": True})
    task, session = begin(place, "claude", mock_llm, f"MOCK:tool Agent {tool};say started")
    until(lambda: "to manage" in place.screen(session))
    for key in ("Down", "Down", "Enter"):
        place.tmux("send-keys", "-t", f"={session}:", key)
    until(lambda: "Message @" in place.screen(session))
    assert json.loads(place.run("wait", task, "--json").stdout)["results"][0]["outcome"] == "done"
    task = place.ok("assign", session, "MOCK:say second").strip()
    place.until_state(session, "asking")  # a person has to leave that view
    place.ok("answer", session, "--key", "Escape", "--key", "Escape")
    assert place.ok("wait", task) == "second\n"


def test_the_persons_agent_teams_keep_no_task_of_claude_code_open(place, mock_llm):
    install(place, "claude", mock_llm.port)
    (place.user / ".claude").mkdir(exist_ok=True)
    settings = {"env": {"CLAUDE_CODE_EXPERIMENTAL_AGENT_TEAMS": "1"}}
    (place.user / ".claude/settings.json").write_text(json.dumps(settings))
    call = {"description": "look", "prompt": "MOCK:say report", "name": "anna",
            "subagent_type": "general-purpose"}  # fmt: skip
    task = f"MOCK:tool Agent {json.dumps(call)};say started"
    (result,) = handoff(place, "real-claude", task, "--timeout", "60s")["results"]
    assert result["outcome"] == "done"


def test_the_persons_own_agent_of_opencode_that_plans_is_not_its_workers(place, mock_llm):
    install(place, "opencode", mock_llm.port)
    config = place.folder / "opencode.json"
    config.write_text('{"default_agent": "plan"}')
    place.env["OPENCODE_CONFIG"] = str(config)
    assert handoff(place, "real-opencode", "MOCK:say there")["results"][0]["answer"] == "there"
    assert "plan mode" not in json.dumps(mock_llm.requests[-1]).lower()


def test_codex_waits_for_the_agents_of_its_newer_models_and_counts_them(place, mock_llm):
    install(place, "codex", mock_llm.port)
    path = place.home / "profiles/real-codex.md"
    path.write_text(path.read_text().replace("model: mock-model", "model: gpt-6-sol"))
    allow_all(place, "codex")
    call = json.dumps({"task_name": "below", "message": "MOCK:sleep 4;say sub done"})
    wanted = f"MOCK:tool spawn_agent {call};say started"
    (result,) = handoff(place, "real-codex", wanted)["results"]
    assert (result["answer"], result["background"], result["seconds"] > 4) == ("started", [], True)
    assert result["usage"]["output"] == 3 * 10  # the agent's request, too
    # A message to an agent that has ended starts it no more.
    message = json.dumps({"target": "below", "message": "hello"})
    wanted = f"MOCK:tool send_message {message};say told it"
    (result,) = handoff(place, result["session"], wanted, "--timeout", "30s")["results"]
    assert result["outcome"] == "done"


def test_a_question_of_claude_code_waits_whatever_the_person_has_set(place, mock_llm):
    install(place, "claude", mock_llm.port)
    (place.user / ".claude").mkdir(exist_ok=True)
    (place.user / ".claude/settings.json").write_text('{"askUserQuestionTimeout": "60s"}')
    options = [{"label": label, "description": "x"} for label in ("Red", "Blue")]
    ask = {"question": "Which?", "header": "x", "multiSelect": False, "options": options}
    call = json.dumps({"questions": [ask]})
    (asked,) = handoff(place, "real-claude", f"MOCK:tool AskUserQuestion {call};result", code=6)[
        "asking"
    ]
    begun = time.monotonic()
    until(lambda: time.monotonic() - begun > 65, timeout_s=90)
    place.ok("answer", asked["session"], "Blue")
    (result,) = json.loads(place.ok("wait", "--json"))["results"]
    assert "Blue" in result["answer"]


def test_the_persons_own_agent_of_claude_code_is_not_its_workers(place, mock_llm):
    install(place, "claude", mock_llm.port)
    (place.user / ".claude/agents").mkdir(parents=True)
    (place.user / ".claude/settings.json").write_text('{"agent": "planner"}')
    (place.user / ".claude/agents/planner.md").write_text(
        "---\nname: planner\ndescription: x\ntools: Read\n---\nYou are the planner.\n"
    )
    assert handoff(place, "real-claude", "MOCK:say there")["results"][0]["answer"] == "there"
    request = mock_llm.requests[-1]
    assert "Write" in [tool["name"] for tool in request["tools"]]
    assert "You are the planner" not in json.dumps(request["system"])


def test_no_completion_of_claude_code_changes_what_is_typed(place, mock_llm):
    install(place, "claude", mock_llm.port)
    session = handoff(place, "real-claude", "MOCK:say first")["results"][0]["session"]
    (result,) = handoff(place, session, "MOCK:say sort by :id")["results"]
    assert (result["answer"], result["exact"]) == ("sort by :id", "exact")


@pytest.mark.parametrize("cli", ["codex", "opencode"], indirect=True)
def test_enter_submits_in_a_worker_whatever_the_person_has_bound_it_to(place, cli):
    if cli == "codex":
        (place.user / ".codex").mkdir(exist_ok=True)
        (place.user / ".codex/config.toml").write_text(
            '[tui.keymap.composer]\nsubmit = "ctrl-enter"\n'
        )
    else:
        file = place.folder / "tui.json"
        file.write_text('{"keybinds": {"input_submit": "ctrl+s", "input_newline": "return"}}')
        place.env["OPENCODE_TUI_CONFIG"] = str(file)
    session = handoff(place, f"real-{cli}", "MOCK:say first")["results"][0]["session"]
    assert handoff(place, session, "MOCK:say second")["results"][0]["answer"] == "second"


@pytest.mark.parametrize("cli", ["claude", "pi"], indirect=True)
def test_where_enter_sends_nothing_that_is_said(place, cli):
    """No setting of one launch overrules the person's key bindings in these two."""
    file, bindings = ".pi/agent/keybindings.json", {"tui.input.submit": ["ctrl+enter"],
                                                    "tui.input.newLine": ["enter"]}  # fmt: skip
    if cli == "claude":
        keys = {"enter": "chat:newline", "ctrl+enter": "chat:submit"}
        file = ".claude/keybindings.json"
        bindings = {"bindings": [{"context": "Chat", "bindings": keys}]}
    (place.user / file).parent.mkdir(parents=True, exist_ok=True)
    (place.user / file).write_text(json.dumps(bindings))
    session = handoff(place, f"real-{cli}", "MOCK:say first")["results"][0]["session"]
    (result,) = handoff(place, session, "MOCK:say second", code=1)["results"]
    assert (result["reason"], "Enter does not send it" in result["detail"]) == (
        "never_started", True)  # fmt: skip


def test_pi_tries_again_as_the_persons_settings_say(place, mock_llm):
    install(place, "pi", mock_llm.port)
    retry = {"maxRetries": 5, "baseDelayMs": 6000, "provider": {"maxRetries": 0}}
    (place.user / ".pi/agent/settings.json").write_text(json.dumps({"retry": retry}))
    (result,) = handoff(place, "real-pi", "MOCK:error 503 1;say there")["results"]
    assert (result["outcome"], result["answer"]) == ("done", "there")


def test_no_agent_of_opencode_outlives_its_turn(place, mock_llm):
    install(place, "opencode", mock_llm.port)
    allow_all(place, "opencode")
    place.env["OPENCODE_EXPERIMENTAL"] = "1"
    call = {"description": "x", "prompt": "MOCK:sleep 4;say sub done", "subagent_type": "general"}
    tool = json.dumps({**call, "background": True})
    session = handoff(place, "real-opencode", f"MOCK:tool task {tool};say started")["results"][0][
        "session"
    ]
    (result,) = handoff(place, session, "MOCK:sleep 6;say next one")["results"]
    assert (result["answer"], result["turns"]) == ("next one", [])
    names = [tool["function"]["name"] for tool in mock_llm.requests[-1]["tools"]]
    assert "plan_exit" not in names


def test_qwen_code_makes_no_team(place, mock_llm):
    install(place, "qwen", mock_llm.port)
    (place.user / ".qwen").mkdir(exist_ok=True)
    (place.user / ".qwen/settings.json").write_text('{"experimental": {"agentTeam": true}}')
    place.env["QWEN_CODE_ENABLE_AGENT_TEAM"] = "1"
    handoff(place, "real-qwen", "MOCK:say there")
    assert "team_create" not in json.dumps(mock_llm.requests[-1]["tools"])


def test_a_task_is_not_typed_while_the_panel_of_qwens_agents_has_the_keys(place, mock_llm):
    install(place, "qwen", mock_llm.port)
    allow_all(place, "qwen")
    call = {"subagent_type": "general-purpose", "description": "look",
            "prompt": "MOCK:slow 6 a b c REPORT"}  # fmt: skip
    wanted = f"MOCK:say I begin;tool agent {json.dumps(call)};say one"
    task, session = begin(place, "qwen", mock_llm, wanted)
    until(lambda: place.screen(session).count("look") > 1)
    second = place.ok("assign", session, "MOCK:say two").strip()
    until(lambda: place.tmux("send-keys", "-t", f"={session}:", "Down")
          or "navigate" in place.screen(session))  # fmt: skip
    assert json.loads(place.ok("wait", task, "--json"))["results"][0]["outcome"] == "done"
    assert place.ok("wait", second) == "two\n"


@pytest.mark.parametrize("cli", ["claude", "codex"], indirect=True)
def test_hooks_that_the_persons_settings_switch_off_are_on_in_a_worker(place, cli):
    file, text = {
        "claude": (".claude/settings.json", '{"disableAllHooks": true}'),
        "codex": (".codex/config.toml", "[features]\nhooks = false\n"),
    }[cli]
    (place.user / file).parent.mkdir(exist_ok=True)
    (place.user / file).write_text(text)
    (result,) = handoff(place, f"real-{cli}", "MOCK:say there", "--timeout", "30s")["results"]
    assert (result["answer"], result["exact"]) == ("there", "exact")


def test_copilots_own_permission_mode_is_refused_where_it_would_skip_checks(place, mock_llm):
    install(place, "copilot", mock_llm.port)
    folder = place.user / ".copilot"
    folder.mkdir(exist_ok=True)
    settings = '// the person\n{"defaultPermissionMode": "%s"}'
    (folder / "settings.json").write_text(settings % "allow-all")
    refused = place.run("handoff", "real-copilot", "MOCK:say x")
    assert (refused.returncode, "defaultPermissionMode allow-all" in refused.stderr) == (2, True)
    assert place.live() == []
    flags = ("handoff", "real-copilot", "MOCK:say y", "--permissions", "all")
    assert place.ok(*flags) == "y\n"
    (folder / "settings.json").write_text(settings % "manual")
    assert place.ok("handoff", "real-copilot", "MOCK:say z") == "z\n"


@pytest.mark.parametrize("mode", ["autopilot", "plan"])
def test_the_persons_own_mode_of_copilot_is_not_its_workers(place, mock_llm, mode):
    install(place, "copilot", mock_llm.port)
    folder = place.user / ".copilot"
    folder.mkdir(exist_ok=True)
    (folder / "settings.json").write_text(json.dumps({"defaultMode": mode}))
    (result,) = handoff(place, "real-copilot", "MOCK:say the answer")["results"]
    assert (result["answer"], result["turns"], result["notes"]) == ("the answer", [], [])


@pytest.mark.parametrize("words", ["/clear", "/new"])
def test_a_person_may_begin_another_conversation_in_kimi(place, mock_llm, words):
    install(place, "kimi", mock_llm.port)
    session = handoff(place, "real-kimi", "MOCK:say first")["results"][0]["session"]
    conversation = place.state(session)["conversation"]
    place.tmux("send-keys", "-t", f"={session}:", "-l", words)
    place.tmux("send-keys", "-t", f"={session}:", "Enter")
    until(lambda: place.state(session)["conversation"] != conversation)
    for answer in ("second", "third"):
        (result,) = handoff(place, session, f"MOCK:say {answer}")["results"]
        assert (result["outcome"], result["answer"]) == ("done", answer), result


@pytest.mark.parametrize(
    ("script", "shown"), [("slow 60 one two three four", "two"), ("error 500;say x", "Retrying")]
)
def test_pis_turn_ends_with_its_conversation(place, mock_llm, script, shown):
    place.env["CAO_INTERRUPTED_S"] = "1"
    install(place, "pi", mock_llm.port)
    task, session = begin(place, "pi", mock_llm, f"MOCK:{script}")
    until(lambda: shown in place.screen(session))
    place.tmux("send-keys", "-t", f"={session}:", "-l", "/new")
    place.tmux("send-keys", "-t", f"={session}:", "Enter")
    result = until(lambda: place.store.load_result(task))
    assert (result.outcome, result.reason) == ("interrupted", "interrupted_by_person")
    # Until its old request has ended pi takes no prompt; it lives, whatever timer of ours was due.
    until(lambda: [e for e in place.log(session) if e.get("kind") == "started"][1:])
    assert place.until_state(session, "idle")


CUT_OFF = {"anthropic": ("stop_reason", "end_turn", "max_tokens"),
           "chat": ("finish_reason", "stop", "length")}  # fmt: skip


@pytest.mark.parametrize("cli", ["claude", "opencode", "pi"], indirect=True)
def test_an_answer_that_is_cut_off_says_so_or_is_kept(place, cli, monkeypatch):
    """Claude Code goes on by itself; the first part is in `turns`."""
    cut = mock_model.Handler.answer

    def answer(self, wire, body):
        write = self.wfile.write
        key, usual, other = CUT_OFF.get(wire.__name__, ("", "", ""))

        def shorter(content):
            write(content.replace(f'"{key}": "{usual}"'.encode(), f'"{key}": "{other}"'.encode()))

        last = [text for kind, text in mock_model.history(body) if kind == "U"][-1:]
        if "part one" in str(last):
            self.wfile.write = shorter
        return cut(self, wire, body)

    monkeypatch.setattr(mock_model.Handler, "answer", answer)
    (result,) = handoff(place, f"real-{cli}", "MOCK:say part one of it")["results"]
    assert result["outcome"] == "done"
    if cli == "claude":
        assert "part one of it" in result["turns"]
    else:
        assert (result["answer"], "limit of output" in str(result["notes"])) == (
            "part one of it", True)  # fmt: skip


@pytest.mark.parametrize(
    ("cli", "script"),
    [("claude", "sleep 0"), ("codex", "think a while"), ("qwen", "think a while")],
    indirect=["cli"],
)
def test_a_turn_in_which_the_model_says_nothing_has_no_answer(place, cli, script):
    """Nor that of the turn before, nor what the CLI puts in its place."""
    session = handoff(place, f"real-{cli}", "MOCK:say first")["results"][0]["session"]
    (result,) = handoff(place, session, f"MOCK:{script}", code=1)["results"]
    assert (result["outcome"], result["reason"], result["answer"]) == ("failed", "unknown_end", "")
    assert result["detail"] == "the turn ended without an answer"
    assert handoff(place, session, "MOCK:say next")["results"][0]["answer"] == "next"


def test_claudes_answer_is_its_turns_after_a_resume_and_for_any_reason(
    place, mock_llm, monkeypatch
):
    install(place, "claude", mock_llm.port)
    session = handoff(place, "real-claude", "MOCK:say first")["results"][0]["session"]
    place.ok("stop", session)
    (result,) = handoff(place, session, "MOCK:sleep 0", code=1)["results"]
    assert (result["reason"], result["answer"]) == ("unknown_end", "")
    answer = mock_model.Handler.answer

    def otherwise(self, wire, body):
        write = self.wfile.write
        self.wfile.write = lambda content: write(content.replace(b"end_turn", b"stop_sequence"))
        return answer(self, wire, body)

    monkeypatch.setattr(mock_model.Handler, "answer", otherwise)
    for _ in range(2):
        assert handoff(place, session, "MOCK:say the same")["results"][0]["answer"] == "the same"


def test_opencode_moves_no_file_past_its_permission(place, mock_llm):
    """A GPT model has apply_patch, whose permission goes by a file's old name."""
    target = edits_alone(place, "opencode", mock_llm.port)
    mock = json.loads(json.dumps(OPENCODE_CONFIG["provider"]["mock"]))
    mock["models"]["gpt-5"] = {"name": "Mock"}
    set_opencode(place, {"provider": {"mock": mock}})
    profile = place.home / "profiles" / "real-opencode.md"
    profile.write_text(profile.read_text().replace("mock/mock-model", "mock/gpt-5"))
    (place.work / "a.txt").write_text("x\n")
    moved = "*** Begin Patch\n*** Update File: a.txt\n*** Move to: .opencode/plugin/x.js\n"
    patch = json.dumps({"patchText": f"{moved}@@\n-x\n+y\n*** End Patch"})
    (result,) = handoff(place, target, f"MOCK:tool apply_patch {patch};result")["results"]
    assert "Not permitted: to move a file" in result["answer"]
    assert not (place.work / ".opencode" / "plugin").exists()


def test_words_of_copilots_own_are_no_answer(place, mock_llm, monkeypatch):
    install(place, "copilot", mock_llm.port)
    answer = mock_model.Handler.answer

    def filtered(self, wire, body):
        write = self.wfile.write
        if "sleep 0" in str(mock_model.history(body)[-1:]):
            self.wfile.write = lambda content: write(
                content.replace(b'"finish_reason": "stop"', b'"finish_reason": "content_filter"')
            )
        return answer(self, wire, body)

    monkeypatch.setattr(mock_model.Handler, "answer", filtered)
    (result,) = handoff(place, "real-copilot", "MOCK:sleep 0", code=1)["results"]
    assert (result["outcome"], result["reason"], result["answer"]) == ("failed", "api_error", "")
    assert "content filtering" in result["detail"]


def names_of_tools(value) -> set:
    """Return all names in what requests list as tools."""
    names = set()
    if isinstance(value, list):
        for one in value:
            names |= names_of_tools(one)
    elif isinstance(value, dict):
        names = {value["name"]} if isinstance(value.get("name"), str) else set()
        for key in ("function", "functionDeclarations"):
            names |= names_of_tools(value.get(key))
    return names


@pytest.mark.parametrize("cli", ["opencode", "pi"], indirect=True)
def test_a_prompt_that_is_too_long_is_no_end_of_a_turn(place, cli):
    """The CLI sums up its conversation, and tries again."""
    allow_all(place, cli)
    target = f"real-{cli}"
    for number in range(4):  # there has to be something to sum up
        words = "words" + 3000 * " words"
        (result,) = handoff(place, target, f"MOCK:say more {number} {words}")["results"]
        target = result["session"]
    (result,) = handoff(place, target, "MOCK:error overflow 1;say the answer")["results"]
    assert (result["outcome"], result["answer"]) == ("done", "the answer"), result
    (result,) = handoff(place, target, "MOCK:say another")["results"]
    assert (result["outcome"], result["answer"]) == ("done", "another"), result


def test_a_failure_behind_which_pi_sums_up_is_told_when_it_has(place, mock_llm, monkeypatch):
    answer = mock_model.Handler.answer

    def fails(self, wire, body):
        if mock_model.history(body)[-1][0] == "R" and body.get("tools"):  # a tool's result
            return self.fail(400, "no credit left")
        return answer(self, wire, body)

    monkeypatch.setattr(mock_model.Handler, "answer", fails)
    install(place, "pi", mock_llm.port)
    words = "words" + 3000 * " words"
    session = handoff(place, "real-pi", f"MOCK:say {words}")["results"][0]["session"]
    allow_all(place, "pi")
    task = 'MOCK:tokens 150000;tool read {"path": "nothing"};say never'
    (result,) = handoff(place, session, task, "--timeout", "100s", code=1)["results"]
    assert (result["outcome"], result["reason"]) == ("failed", "api_error")
    assert "[compaction]" in place.screen(session)


@pytest.mark.parametrize("looks", [True, False])
def test_a_task_that_comes_while_pi_sums_up_is_done_once(place, mock_llm, monkeypatch, looks):
    """looks: cao sees it in time; else its prompt is kept, and pi does it when it has summed up."""
    if not looks:
        put_loader(place, "Runner._is_at_work = lambda self, limit_s: False\n")
    install(place, "pi", mock_llm.port)
    begun, go_on = threading.Event(), threading.Event()
    answer = mock_model.Handler.answer

    def summing(self, wire, body):
        if not body.get("tools"):
            begun.set()
            go_on.wait(60)
        return answer(self, wire, body)

    monkeypatch.setattr(mock_model.Handler, "answer", summing)
    session = handoff(place, "real-pi", "MOCK:say first")["results"][0]["session"]
    first = place.ok("assign", session, f"MOCK:tokens 150000;say one{3000 * ' words'}").strip()
    assert begun.wait(60)
    second = place.ok("assign", session, "MOCK:say two").strip()
    if looks:
        until(lambda: place.state(session)["held_back"])
    else:
        until(lambda: [e for e in place.log(session) if e["event"] == "submitted"][1:])
    go_on.set()
    assert place.ok("wait", first).startswith("one words")
    assert place.ok("wait", second) == "two\n"


def kimi_sub_agents(*scripts):
    """Return a task that has sub-agents do these side by side."""
    given = {"description": "x", "subagent_type": "coder"}
    calls = (
        f"tool Agent {json.dumps({**given, 'prompt': f'MOCK:{script};say hi'})}"
        for script in scripts
    )
    return f"MOCK:{' & '.join(calls)};say went on"


def test_kimis_parallel_calls_are_approved_as_the_dialog_shows_them(place, mock_llm):
    """It asks about one after the other, and cao alone answers where it asks about cao's own."""
    install(place, "kimi", mock_llm.port)
    files = [place.work / "fürst", place.work / "second"]
    calls = [f"tool Bash {json.dumps({'command': f'touch {file}'})}" for file in files]
    calls[1:] = [f"sleep 1;{calls[1]}", "sleep 2;tool list_sessions {}"]
    task = place.ok("assign", "real-kimi", kimi_sub_agents(*calls)).strip()
    session = task.partition(".")[0]
    until(lambda: len(place.state(session).get("questions", [])), 3, 180)
    first, second, _ = sorted(place.state(session)["questions"], key=lambda q: q["text"])
    wrong = place.run("answer", session, "yes", "--question", second["id"])
    assert (wrong.returncode, "answer that one first" in wrong.stderr) == (1, True), wrong
    assert not any(file.exists() for file in files)
    for question in (first, second):
        place.ok("answer", session, "yes", "--question", question["id"])
    open_questions(place, session, 0)
    assert place.ok("wait", task) == "went on\n"
    assert all(file.exists() for file in files)


LOST_HOOK = """
put_event = Store.put_event
def put_unless_bash_asks(store, folder, payload):
    if '"PermissionRequest"' in payload and '"Bash"' in payload:
        os._exit(1)
    put_event(store, folder, payload)
Store.put_event = put_unless_bash_asks
"""


def test_cao_presses_no_key_in_kimis_dialog_for_another_call_than_its_own(place, mock_llm):
    install(place, "kimi", mock_llm.port)
    put_loader(place, LOST_HOOK)
    made = place.work / "made"
    bash = f"tool Bash {json.dumps({'command': f'touch {made}'})}"
    calls = kimi_sub_agents(bash, "sleep 1;tool list_sessions {}")
    task = place.ok("assign", "real-kimi", calls).strip()
    session = task.partition(".")[0]

    def asks():
        asked = place.state(session).get("questions", [])
        return made.exists() or any("mcp__cao__" in question["text"] for question in asked)

    until(asks, timeout_s=180)
    assert not made.exists()
    place.tmux("send-keys", "-t", f"={session}:", "1")
    open_questions(place, session, 0)  # cao answers for its own, once that dialog stands
    assert place.ok("wait", task) == "went on\n"
    assert made.exists()


@pytest.mark.parametrize(
    ("cli", "tool", "given"),
    [
        ("kimi", "Agent", {"description": "do it", "subagent_type": "coder"}),
        ("gemini", "invoke_agent", {"agent_name": "generalist"}),
        ("opencode", "task", {"description": "do it", "subagent_type": "general"}),
    ],
    indirect=["cli"],
)
def test_the_end_of_a_sub_agent_is_not_the_agents_own(place, cli, tool, given):
    """Kimi Code fires its Stop with nothing that says so, and shows a spinner over a dialog."""
    inner = SHELL[cli].format(file="made").replace("say went on", "say not the answer")
    task = f"MOCK:tool {tool} {json.dumps({**given, 'prompt': inner})};sleep 4;say went on"
    session, question, task = asked_by(place, f"real-{cli}", task, "permission")
    assert bool(question["agent"]) == (cli != "gemini")  # which does not say who asks
    place.ok("answer", session, "yes")
    assert place.ok("wait", task) == "went on\n"


DYING_HOOK = """
ask_by_hook = lambda *_: sys.stdout.write({says!r})
"""


@pytest.mark.parametrize(
    ("cli", "says"), [("pi", "garbage {"), ("pi", ""), ("opencode", "garbage {")], indirect=["cli"]
)
def test_a_permission_hook_that_dies_leaves_its_question_to_the_dialog(place, cli, says):
    put_loader(place, DYING_HOOK.format(says=says))
    made = place.work / "made"
    found = handoff(place, f"real-{cli}", SHELL[cli].format(file=made), code=6)
    (ask,) = found["asking"]
    assert ask["question"]["kind"] == "screen"
    assert not made.exists()
    place.ok("answer", ask["session"], "--key", "Enter")
    assert place.ok("wait", *found["running"]) == "went on\n"
    assert made.exists()


def open_questions(place, session, count):
    """Return the ids of the questions by the last word of what they ask, once so many are open."""
    asked = until(
        lambda: place.state(session).get("questions", []), lambda asked: len(asked) == count
    )
    return {question["text"].split()[-1]: question["id"] for question in asked}


def stop_hooks(place):
    """Stop the hooks that run in this place as a hung disk would."""
    for pid in place.pids():
        with contextlib.suppress(OSError):
            if "\0hook\0" in Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(pid, signal.SIGSTOP)


@pytest.mark.parametrize("cli", ["opencode", "pi"], indirect=True)
def test_a_permission_hook_that_hangs_runs_no_tool_and_keeps_no_session(place, cli):
    made = place.work / "made"
    session, _, task = asked_by(place, f"real-{cli}", SHELL[cli].format(file=made), "permission")
    stop_hooks(place)
    until(lambda: re.search("Allow once|Yes, once", place.screen(session)))
    assert not made.exists()
    place.tmux("send-keys", "-t", f"={session}:", "Enter")
    open_questions(place, session, 0)
    assert place.ok("wait", task) == "went on\n"
    assert made.exists()
    session, _, task = asked_by(
        place, session, SHELL[cli].format(file=f"{made} && mkdir {made}2"), "permission"
    )
    stop_hooks(place)
    until(lambda: re.search("Allow once|Yes, once", place.screen(session)))
    place.ok("stop", session)
    assert not Path(f"{made}2").exists()
    until(place.pids, [])


USERS_PLUGIN = """\
export const users = async () => ({
  "permission.ask": async (_, asked) => { asked.status = "allow" },
  "tool.execute.before": async (_, { args }) => {
    if (args.command?.includes("forbidden")) throw new Error("the user's plugin refuses it")
    args.command = args.command?.replace("written", "changed")
  },
})
"""


def test_opencode_sends_nothing_to_another_model_than_the_profiles(place, mock_llm):
    install(place, "opencode", mock_llm.port)
    profile = place.home / "profiles/real-opencode.md"
    profile.write_text(profile.read_text().replace("mock/mock-model", "mock/no-such-model"))
    asked = len(mock_llm.requests)
    (result,) = handoff(place, "real-opencode", "MOCK:say hello", code=1)["results"]
    assert (result["outcome"], result["reason"]) == ("failed", "api_error")
    assert result["detail"].endswith("not mock/no-such-model: see opencode models")
    assert len(mock_llm.requests) == asked


def test_opencode_uses_the_profiles_model_whatever_the_users_agent_has(place, mock_llm):
    install(place, "opencode", mock_llm.port)
    set_opencode(place, {
        "provider": {"mock": {**OPENCODE_CONFIG["provider"]["mock"], "models": {
            "mock-model": {"name": "Mock"}, "other": {"name": "Other"},
        }}},
        "agent": {"build": {"model": "mock/other"}},
    })  # fmt: skip
    before = len(mock_llm.requests)
    assert place.ok("handoff", "real-opencode", "MOCK:say hello") == "hello\n"
    sent = mock_llm.requests[before:]
    assert {request["model"] for request in sent if request} == {"mock-model"}


def test_opencodes_parallel_calls_get_an_answer_each_beside_a_users_plugin(place, mock_llm):
    install(place, "opencode", mock_llm.port)
    path = place.home / "profiles" / "real-opencode.md"
    path.write_text(path.read_text().replace("permissions: ask", "permissions: ask\ntrust: yes"))
    (place.folder / "users.js").write_text(USERS_PLUGIN)
    own = {"plugin": [f"file://{place.folder}/users.js"]}
    (place.work / "opencode.json").write_text(json.dumps(own))

    def assign(target, *commands, then="say went on"):
        given = ({"command": command} for command in commands)
        calls = " & ".join(f"tool bash {json.dumps(call)}" for call in given)
        task = place.ok("assign", target, f"MOCK:{calls};{then}").strip()
        return task.partition(".")[0], task

    # What the plugin refuses is not asked; what it allows is; what it changes is shown so.
    session, task = assign("real-opencode", "touch forbidden", then="result")
    assert place.ok("wait", task) == "the user's plugin refuses it\n"
    session, task = assign(session, "touch first-written", "touch second")
    asked = open_questions(place, session, 2)
    options = [q["options"] for q in place.state(session)["questions"]]
    assert [option[-1] for option in options] == [["always", "touch *, in this session"]] * 2
    # While the first waits the second is answered, runs, and hands a message over at its end.
    place.ok("send", session, "a word in between")
    place.ok("answer", session, "yes", "--question", asked["second"])
    inbox = place.home / "sessions" / session / "inbox/new"
    until(lambda: [name[-1] for name in os.listdir(inbox)], ["~"])
    assert list(open_questions(place, session, 1)) == ["first-changed"]
    place.ok("answer", session, "no: not <this>")
    assert place.ok("wait", task) == "went on\n"
    said = [m["content"] for m in mock_llm.requests[-1]["messages"] if m["role"] == "tool"]
    assert said[-2].endswith("feedback: not <this>")
    assert said[-1].endswith("a word in between")
    assert not list(place.work.glob("first*"))

    # OpenCode 1.18.33 refuses by one "no" all that is asked beside it; the turn goes on.
    session, task = assign(session, "touch third", "touch fourth")
    asked = open_questions(place, session, 2)
    place.ok("answer", session, "no", "--question", asked["third"])
    open_questions(place, session, 0)
    assert place.ok("wait", task) == "went on\n"
    # An interruption ends the turn, not the question alone.
    session, task = assign(session, "touch fifth", then="slow 60 not interrupted")
    open_questions(place, session, 1)
    until(lambda: "Allow once" in place.screen(session))
    place.ok("stop", "--interrupt", session)
    open_questions(place, session, 0)
    (found,) = json.loads(place.run("wait", "--json", task).stdout)["results"]
    assert (found["outcome"], found["reason"]) == ("interrupted", "by_order")
    assert sorted(file.name for file in place.work.iterdir()) == ["opencode.json", "second"]


@pytest.mark.parametrize("mode", ["edits", "auto", "all"])
def test_copilot_asks_nothing_that_its_flags_allow(place, mock_llm, mode):
    install(place, "copilot", mock_llm.port)
    path = place.home / "profiles" / "real-copilot.md"
    path.write_text(path.read_text().replace("permissions: ask", f"permissions: {mode}"))
    made = place.work / "made"
    shell = SHELL["copilot"].format(file=made)
    edit = f"MOCK:tool create {json.dumps({'path': str(made), 'file_text': 'x'})};say went on"
    task = edit if mode == "edits" else shell
    result = handoff(place, "real-copilot", task)["results"][0]
    assert (result["answer"], made.exists()) == ("went on", True)
    if mode == "edits":
        asked_by(place, result["session"], shell, "permission")


EFFORT = {  # name -> the model for which the mock is asked, and where the effort stands
    "claude": ("", ("output_config", "effort")),
    "codex": ("", ("reasoning", "effort")),
    "gemini": ("gemini-3-pro-preview", ("generationConfig", "thinkingConfig", "thinkingLevel")),
    "qwen": ("", ("reasoning", "effort")),
    "opencode": ("", ("reasoning_effort",)),
}


@pytest.mark.parametrize("name", list(EFFORT))
def test_the_effort_reaches_the_model(place, mock_llm, name):
    model, path = EFFORT[name]
    install(place, name, mock_llm.port)
    file = place.home / "profiles" / f"real-{name}.md"
    text = file.read_text().replace("permissions: ask", "permissions: ask\neffort: low")
    file.write_text(text if not model else re.sub("(?m)^model: .*", f"model: {model}", text))
    before = len(mock_llm.requests)
    handoff(place, f"real-{name}", "MOCK:say hello")
    found = [b for b in mock_llm.requests[before:] if "MOCK:say hello" in json.dumps(b)]
    for key in path:
        found = [body[key] for body in found if key in body]
    assert {str(effort).lower() for effort in found} == {"low"}


def put_users_hook(place, cli, event, script):
    """Give the CLI a hook of the user's own, or of the project's where it takes no other."""
    command = {"type": "command", "command": script}
    hooks = {"hooks": {event: [{"hooks": [command]}]}}
    if cli == "kimi":
        path, text = place.user / ".kimi-code/config.toml", "[[hooks]]\n"
        text += f"event = {json.dumps(event)}\ncommand = {json.dumps(script)}\n"
    elif cli == "copilot":
        path = place.work / ".github/hooks/hooks.json"
        text = json.dumps({"version": 1, "hooks": {event: [{"type": "command", "bash": script}]}})
    elif cli == "codex":
        path = place.user / ".codex/config.toml"
        ((key, value),) = cao._codex_trust(event, {"hooks": [{**command, "timeout": 20}]}).items()
        key = key.replace("/<session-flags>/config.toml", str(path))
        text = f"[[hooks.{event}]]\n[[hooks.{event}.hooks]]\ntype = 'command'\ntimeout = 20\n"
        text += f"command = {json.dumps(script)}\n[hooks.state.{json.dumps(key)}]\n"
        text += f"trusted_hash = {json.dumps(value['trusted_hash'])}\n"
    else:
        path = (place.work if cli == "gemini" else place.user) / f".{cli}/settings.json"
        own = json.loads(path.read_text()) if path.exists() else {}
        text = json.dumps({**own, **hooks})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


PROMPTED = dict.fromkeys(("claude", "codex", "qwen", "kimi"), "UserPromptSubmit")
PROMPTED.update(gemini="BeforeAgent", copilot="userPromptSubmitted")
REFUSAL = "this word is not <allowed>"


@pytest.mark.parametrize("cli", PROMPTED, indirect=True)
def test_a_prompt_that_a_users_hook_refuses_fails_with_its_words(place, cli):
    says = f"echo '{REFUSAL}' >&2; exit 2"
    if cli == "copilot":  # 1.0.102 heeds no exit status there
        says = f"""echo '{{"decision":"block","reason":"{REFUSAL}"}}'"""
    seeks = """grep -Eq '"(prompt|text)": ?"MOCK:say FORBIDDEN'"""
    put_users_hook(place, cli, PROMPTED[cli], f"if {seeks}; then {says}; fi")
    target = f"real-{cli}"
    for _ in range(2):
        (result,) = handoff(place, target, "MOCK:say FORBIDDEN", "--keep", code=1)["results"]
        assert (result["outcome"], result["reason"]) == ("failed", "blocked"), result
        assert REFUSAL in result["detail"]
        target = result["session"]
        again = handoff(place, target, "MOCK:say alive")["results"][0]
        assert again["answer"] == "alive"


@pytest.mark.parametrize(
    ("cli", "event"),
    [("claude", "PreToolUse"), ("claude", "PostToolUse"), ("gemini", "AfterTool")],
    indirect=["cli"],
)
def test_a_turn_that_a_users_hook_stops_at_a_tool_fails_with_its_words(place, cli, event):
    path = place.home / "profiles" / f"real-{cli}.md"
    path.write_text(path.read_text().replace("permissions: ask", "permissions: all"))
    says = json.dumps({"continue": False, "stopReason": REFUSAL})
    put_users_hook(place, cli, event, f"echo '{says}'")
    task = SHELL[cli].format(file=place.work / "made")
    (result,) = handoff(place, f"real-{cli}", task, code=1)["results"]
    assert (result["outcome"], result["reason"]) == ("failed", "blocked"), result
    assert REFUSAL in result["detail"]


@pytest.mark.parametrize("hook_s", [6, 0])
@pytest.mark.parametrize(
    ("cli", "event"),
    [("kimi", "Stop"), ("claude", "Stop"), ("codex", "Stop"), ("copilot", "agentStop")],
    indirect=["cli"],
)
def test_a_turn_whose_end_a_users_hook_blocks_goes_on_to_its_answer(place, cli, event, hook_s):
    """One Stop a turn is all that Kimi Code fires: the first is not the end. Until the hook has
    blocked it, the turn looks as if it had ended; after that, in Codex, until the model speaks."""
    once = place.folder / "once"
    says = "MOCK:sleep 4;say mended"
    block = f"touch {once}; sleep {hook_s}; echo '{says}' >&2; exit 2"
    if cli == "copilot":
        block = f"""touch {once}; sleep {hook_s}; echo '{{"decision":"block","reason":"{says}"}}'"""
    put_users_hook(place, cli, event, f"[ -e {once} ] || {{ {block}; }}")
    result = handoff(place, f"real-{cli}", "MOCK:say too early")["results"][0]
    assert (result["outcome"], result["answer"]) == ("done", "mended")


LEFT_RUNNING = {  # how each CLI's model starts a sub-agent, or a shell, in the background
    ("claude", "agent"): 'tool Agent {"description":"x","subagent_type":"general-purpose",'
                         '"run_in_background":true,"prompt":"MOCK:sleep 4;say sub done"}',
    ("codex", "agent"): 'tool spawn_agent {"message":"MOCK:sleep 4;say sub done"}',
    ("copilot", "agent"): 'tool task {"name":"x","description":"x","mode":"background",'
                          '"agent_type":"general-purpose","prompt":"MOCK:sleep 4;say sub done"}',
    ("kimi", "agent"): 'tool Agent {"description":"x","subagent_type":"coder",'
                       '"run_in_background":true,"prompt":"MOCK:sleep 4;say sub done"}',
    ("qwen", "agent"): 'tool agent {"description":"x","subagent_type":"general-purpose",'
                       '"run_in_background":true,"prompt":"MOCK:sleep 4;say sub done"}',
    ("claude", "shell"): 'tool Bash {"command":"sleep 4","description":"x",'
                         '"run_in_background":true}',
    ("copilot", "shell"): 'tool bash {"command":"sleep 4","description":"x","mode":"async"}',
    ("kimi", "shell"): 'tool Bash {"command":"sleep 4","description":"x",'
                       '"run_in_background":true}',
    ("qwen", "shell"): 'tool run_shell_command {"command":"sleep 4","is_background":true}',
}  # fmt: skip


def allow_all(place, cli):
    path = place.home / "profiles" / f"real-{cli}.md"
    path.write_text(path.read_text().replace("permissions: ask", "permissions: all"))


@pytest.mark.parametrize(("cli", "kind"), LEFT_RUNNING, indirect=["cli"])
def test_a_task_is_not_done_while_its_cli_works_in_the_background(place, cli, kind):
    allow_all(place, cli)
    task = f"MOCK:{LEFT_RUNNING[cli, kind]};say started"
    (result,) = handoff(place, f"real-{cli}", task)["results"]
    assert (result["outcome"], result["background"], result["seconds"] > 4) == ("done", [], True)
    # All but Codex start a turn with what came of it.
    texts = (["started"], "ok: ") if cli != "codex" else ([], "started")
    assert (result["turns"], result["answer"][: len(texts[1])]) == texts


@pytest.mark.parametrize("cli", ["claude", "codex", "copilot", "kimi"], indirect=True)
def test_what_works_in_the_background_may_ask(place, cli):
    tool = {"copilot": "bash", "codex": "exec_command"}.get(cli, "Bash")
    call = {"command": f"touch {place.work}/made", "description": "x"}
    if cli == "codex":
        call = {"cmd": call["command"], "sandbox_permissions": "require_escalated",
                "justification": "x"}  # fmt: skip
    steps = json.dumps(f"MOCK:tool {tool} {json.dumps(call)}")[1:-1]
    begins = LEFT_RUNNING[cli, "agent"].replace("MOCK:sleep 4", steps)
    task = place.ok("assign", f"real-{cli}", f"MOCK:{begins};say started").strip()
    assert place.run("wait", task).returncode == 6
    place.ok("answer", task, "yes")
    result = json.loads(place.ok("wait", task, "--json"))["results"][0]
    turns = [] if cli == "codex" else ["started"]  # which starts no turn when that has ended
    assert (result["outcome"], result["turns"]) == ("done", turns)
    assert (place.work / "made").exists()
    session = result["session"]
    place.ok("stop", session)  # the conversation that goes on is the agent's own
    assert handoff(place, session, "MOCK:say again")["results"][0]["answer"] == "again"
    assert place.screen(session).count("MOCK:") > 1


@pytest.mark.parametrize("kind", ["agent", "shell"])
@pytest.mark.parametrize("cli", ["claude", "copilot", "kimi", "qwen"], indirect=True)
def test_what_ends_while_the_model_says_its_last_words_is_waited_for(place, cli, kind):
    allow_all(place, cli)
    begins = LEFT_RUNNING[cli, kind].replace("sleep 4", "sleep 1")
    target = f"real-{cli}"
    for number in range(3):
        task = f"MOCK:{begins};sleep 3;say whole {number}"
        (result,) = handoff(place, target, task)["results"]
        assert (result["outcome"], result["turns"]) == ("done", [f"whole {number}"])
        assert result["answer"].startswith("ok: ")
        target = result["session"]


@pytest.mark.parametrize("background", ["true", "false"])
@pytest.mark.parametrize("cli", ["claude", "copilot", "kimi"], indirect=True)
def test_a_sub_agent_that_fails_does_not_fail_the_task(place, cli, background):
    allow_all(place, cli)
    begins = LEFT_RUNNING[cli, "agent"].replace("MOCK:sleep 4;say sub done", "MOCK:error 400")
    if background == "false":
        begins = begins.replace('"run_in_background":true', '"run_in_background":false')
        begins = begins.replace('"mode":"background"', '"mode":"sync"')
    (result,) = handoff(place, f"real-{cli}", f"MOCK:{begins};sleep 4;say did it")["results"]
    assert result["outcome"] == "done"
    assert "did it" in (result["answer"], *result["turns"])


@pytest.mark.parametrize("cli", ["claude", "copilot", "kimi"], indirect=True)
def test_a_task_waits_for_a_turn_that_the_cli_began_by_itself(place, cli, mock_llm):
    put_loader(place, "SHELL_S = 3.0")
    allow_all(place, cli)
    begins = LEFT_RUNNING[cli, "shell"].replace("sleep 4", "sleep 8")
    begins = begins.replace('"description":"x"', '"description":"MOCK:sleep 14;say built"')
    (result,) = handoff(place, f"real-{cli}", f"MOCK:{begins};say building")["results"]
    asked = len(mock_llm.requests)
    until(lambda: len(mock_llm.requests) > asked, timeout_s=60)
    (second,) = handoff(place, result["session"], "MOCK:say the second")["results"]
    assert (second["outcome"], second["answer"]) == ("done", "the second")


@pytest.mark.parametrize("cli", ["claude", "copilot", "kimi", "qwen"], indirect=True)
def test_a_shell_that_never_ends_holds_a_task_up_for_a_while(place, cli):
    put_loader(place, "SHELL_S = 6.0")
    allow_all(place, cli)
    begins = LEFT_RUNNING[cli, "shell"].replace("sleep 4", "sleep 600")
    (result,) = handoff(place, f"real-{cli}", f"MOCK:{begins};say serving")["results"]
    assert (result["answer"], len(result["background"])) == ("serving", 1)
    assert any("left running in the background" in note for note in result["notes"])
    # Nor is it another's that comes behind one without an answer.
    for task, code, answer in (("say at once", 0, "at once"), ("error 400", 1, ""),
                               ("say again", 0, "again")):  # fmt: skip
        (other,) = handoff(place, result["session"], f"MOCK:{task}", code=code)["results"]
        assert (other["answer"], other["seconds"] < 6) == (answer, True)
    if cli == "copilot":  # 1.0.102 does not tell of its end while the first runs
        return
    begins = begins.replace("sleep 600", "sleep 2")  # in the same words: the task's own
    (other,) = handoff(place, result["session"], f"MOCK:{begins};say another")["results"]
    assert (other["turns"], other["answer"][:4]) == (["another"], "ok: ")


@pytest.mark.parametrize("when", ["last words", "check", "between tools"])
@pytest.mark.parametrize("cli", ["claude", "copilot"], indirect=True)
def test_what_an_earlier_task_left_says_nothing_in_the_next_ones_answer(place, cli, when):
    """Its shell ends in the next task."""
    put_loader(place, "SHELL_S = 2.0")
    allow_all(place, cli)
    begins = LEFT_RUNNING[cli, "shell"].replace("sleep 4", f"sleep 12; touch {place.work}/built")
    (first,) = handoff(place, f"real-{cli}", f"MOCK:{begins};say building")["results"]
    assert (first["outcome"], len(first["background"])) == ("done", 1)
    steps, flags = "MOCK:sleep 15;say the answer", ()
    if when == "check":
        steps, flags = "MOCK:say the answer", ("--check", "sleep 15")
    if when == "between tools":
        tool = {"copilot": "bash"}.get(cli, "Bash")
        calls = [json.dumps({"command": f"sleep {n}", "description": "x"}) for n in (14, 1)]
        steps = "MOCK:" + "".join(f"tool {tool} {call};" for call in calls) + "say the answer"
    (second,) = handoff(place, first["session"], steps, *flags)["results"]
    assert (place.work / "built").exists()
    assert (second["outcome"], second["answer"], second["turns"]) == ("done", "the answer", [])


@pytest.mark.parametrize("cli", ["claude", "qwen"], indirect=True)
def test_what_a_task_left_that_was_broken_off_is_not_the_next_ones(place, cli, mock_llm):
    allow_all(place, cli)
    begins = LEFT_RUNNING[cli, "shell"].replace("sleep 4", "sleep 25")
    asked = len(mock_llm.requests)
    task = place.ok("assign", f"real-{cli}", f"MOCK:{begins};sleep 90;say never").strip()
    session = task.partition(".")[0]
    until(lambda: len(mock_llm.requests) >= asked + 2, timeout_s=60)
    place.ok("stop", "--interrupt", session)
    (first,) = json.loads(place.run("wait", task, "--json").stdout)["results"]
    assert (first["outcome"], len(first["background"])) == ("interrupted", 1)
    (second,) = handoff(place, session, "MOCK:sleep 25;say the answer")["results"]
    assert (second["outcome"], second["answer"], second["turns"]) == ("done", "the answer", [])


@pytest.mark.parametrize("cli", ["copilot"], indirect=True)
def test_a_shell_with_the_name_of_an_earlier_one_is_the_tasks_own(place, cli):
    """Its model names it."""
    put_loader(place, "SHELL_S = 4.0")
    allow_all(place, cli)
    call = {"command": "sleep 9", "description": "x", "mode": "async", "shellId": "build"}
    task = f"MOCK:tool bash {json.dumps(call)};say building"
    (first,) = handoff(place, f"real-{cli}", task)["results"]
    assert (first["answer"], first["background"]) == ("building", ["shell build"])
    until(lambda: "ok: " in place.state(first["session"])["last_line"], timeout_s=60)  # it is told
    (second,) = handoff(place, first["session"], task.replace("sleep 9", "sleep 2"))["results"]
    assert (second["turns"], second["answer"][:4]) == (["building"], "ok: ")


@pytest.mark.parametrize("cli", ["qwen"], indirect=True)
def test_a_monitor_of_qwens_is_waited_for(place, cli):
    allow_all(place, cli)
    call = json.dumps({"command": "sleep 4; echo it is ready", "description": "x"})
    (result,) = handoff(place, f"real-{cli}", f"MOCK:tool monitor {call};say I watch")["results"]
    assert (result["outcome"], result["turns"][0]) == ("done", "I watch")
    assert (result["answer"][:4], result["background"]) == ("ok: ", [])


@pytest.mark.parametrize("cli", ["kimi", "qwen"], indirect=True)
def test_a_task_that_a_person_corrects_still_waits_for_its_sub_agent(place, cli, mock_llm):
    allow_all(place, cli)
    begins = LEFT_RUNNING[cli, "agent"].replace("sleep 4", "sleep 20")
    asked = len(mock_llm.requests)
    task = place.ok("assign", f"real-{cli}", f"MOCK:{begins};sleep 60;say never").strip()
    session = task.partition(".")[0]
    until(lambda: len(mock_llm.requests) >= asked + 3, timeout_s=60)  # both work
    place.tmux("send-keys", "-t", f"={session}:", "Escape")
    place.until_state(session, "asking")
    place.ok("send", session, "MOCK:say I do this instead")
    result = json.loads(place.ok("wait", task, "--json"))["results"][0]
    assert (result["outcome"], result["turns"]) == ("done", ["I do this instead"])
    assert result["answer"].startswith("ok: ")


@pytest.mark.parametrize("cli", ["kimi"], indirect=True)
def test_a_persons_esc_is_seen_after_a_no_that_ended_no_turn(place, cli, mock_llm):
    call = json.dumps({"command": f"touch {place.work}/made", "description": "x"})
    task = place.ok("assign", f"real-{cli}", f"MOCK:tool Bash {call};say went on").strip()
    session = task.partition(".")[0]
    assert place.run("wait", task).returncode == 6
    place.ok("answer", session, "no")
    place.ok("wait", task)
    asked = len(mock_llm.requests)
    place.ok("assign", session, "MOCK:sleep 60;say never")
    until(lambda: len(mock_llm.requests) > asked, timeout_s=60)  # it is deaf to Esc before that
    place.tmux("send-keys", "-t", f"={session}:", "Escape")
    (asked,) = place.until_state(session, "asking")["questions"]
    assert asked["kind"] == "interrupted"


@pytest.mark.parametrize("cli", ["claude"], indirect=True)
def test_a_shell_in_the_background_makes_no_timeout_of_an_answer(place, cli):
    allow_all(place, cli)
    begins = LEFT_RUNNING[cli, "shell"].replace("sleep 4", "sleep 600")
    task = f"MOCK:{begins};say serving"
    (result,) = handoff(place, f"real-{cli}", task, "--timeout", "15s")["results"]
    assert (result["outcome"], result["answer"]) == ("done", "serving")


@pytest.mark.parametrize("cli", ["copilot"], indirect=True)
def test_the_budget_reaches_a_sub_agent_in_the_background(place, cli):
    allow_all(place, cli)
    call = {"command": "sleep 600", "description": "x"}
    steps = json.dumps(f"MOCK:tokens 90000 0 20;tool bash {json.dumps(call)};say never")[1:-1]
    begins = LEFT_RUNNING[cli, "agent"].replace("MOCK:sleep 4;say sub done", steps)
    task, flags = f"MOCK:{begins};say started", ("--max-tokens", "60000")
    (result,) = handoff(place, f"real-{cli}", task, *flags, code=1)["results"]
    assert (result["outcome"], result["reason"]) == ("failed", "budget")
    until(lambda: "restarted" in [e["event"] for e in place.log(result["session"])])


@pytest.mark.parametrize("how", ["order", "timeout"])
@pytest.mark.parametrize("cli", ["claude", "codex", "copilot", "kimi"], indirect=True)
def test_a_task_that_is_broken_off_takes_its_sub_agents_with_it_and_no_other_task(place, cli, how):
    allow_all(place, cli)
    limit = {"order": "10m", "timeout": "15s"}[how]
    begins = LEFT_RUNNING[cli, "agent"].replace("sleep 4", "sleep 600")
    task = place.ok("assign", f"real-{cli}", f"MOCK:{begins};say started", "--timeout", limit)
    task = task.strip()
    session = task.partition(".")[0]
    waiting = place.ok("assign", session, "MOCK:say the second").strip()
    until(lambda: [e for e in place.log(session) if e.get("kind") == "ended"], timeout_s=60)
    if cli != "claude":  # whose state file says busy
        until(lambda: place.state(session)["why"], lambda why: "it still runs agent" in why)
    if how == "order":
        assert "interrupted" in place.ok("stop", "--interrupt", session)
    done = place.run("wait", task, "--json")
    (result,) = json.loads(done.stdout)["results"]
    assert result["outcome"] == {"order": "interrupted", "timeout": "timeout"}[how]
    assert (result["turns"], len(result["background"])) == (["started"], 1)
    assert "was ended" in "".join(result["notes"])
    # The CLI is another process, which has no sub-agent: no task waits for that.
    second = json.loads(place.ok("wait", waiting, "--json"))["results"][0]
    assert (second["answer"], second["exact"]) == ("the second", "exact")
    assert [e["event"] for e in place.log(session)].count("restarted") == 1
    (third,) = handoff(place, session, "MOCK:say again")["results"]
    assert (third["answer"], third["background"]) == ("again", [])


def asked_below(place, cli, before="", after="say one"):
    """Give a task whose sub-agent asks for a permission while the task's own turn has ended."""
    tool = {"copilot": "bash"}.get(cli, "Bash")
    call = {"command": f"touch {place.work}/made", "description": "x"}
    steps = json.dumps(f"MOCK:{before}tool {tool} {json.dumps(call)};{after}")[1:-1]
    begins = LEFT_RUNNING[cli, "agent"].replace("MOCK:sleep 4;say sub done", steps)
    task = place.ok("assign", f"real-{cli}", f"MOCK:{begins};say started").strip()
    session = task.partition(".")[0]
    assert place.run("wait", task).returncode == 6
    until(lambda: [e for e in place.log(session) if e.get("kind") == "ended"], timeout_s=60)
    return task, session


@pytest.mark.parametrize("pause", ["", "sleep 8;"])
@pytest.mark.parametrize("cli", ["copilot", "kimi"], indirect=True)
def test_an_interrupt_while_a_sub_agent_asks_is_the_end_of_that_task_alone(place, cli, pause):
    task, session = asked_below(place, cli, pause, "sleep 20")
    place.ok("stop", "--interrupt", session)
    (result,) = json.loads(place.run("wait", task, "--json").stdout)["results"]
    assert (result["outcome"], result["reason"]) == ("interrupted", "by_order")
    (second,) = handoff(place, session, "MOCK:sleep 5;say again")["results"]
    assert (second["outcome"], second["answer"]) == ("done", "again")
    assert not (place.work / "made").exists()


@pytest.mark.parametrize("cli", ["claude"], indirect=True)
def test_a_turn_that_begins_while_a_sub_agent_asks_is_the_tasks(place, cli):
    task, session = asked_below(place, cli)
    place.tmux("send-keys", "-t", f"={session}:", "MOCK:sleep 6;say a persons")
    place.tmux("send-keys", "-t", f"={session}:", "Enter")
    begun = "MOCK:sleep 6"
    until(lambda: begun in place.state(session)["last_line"], timeout_s=60)
    place.ok("answer", task, "yes")
    result = json.loads(place.ok("wait", task, "--json"))["results"][0]
    assert result["outcome"] == "done"
    assert {"started", "a persons"} <= {result["answer"], *result["turns"]}


@pytest.mark.parametrize("how", ["order", "timeout"])
@pytest.mark.parametrize("cli", ["claude", "copilot", "kimi"], indirect=True)
def test_a_turn_that_is_broken_off_leaves_no_sub_agent_at_work(place, cli, how, mock_llm):
    allow_all(place, cli)
    tool = {"copilot": "bash"}.get(cli, "Bash")
    call = {"command": f"touch {place.work}/made", "description": "x"}
    steps = json.dumps(f"MOCK:sleep 15;tool {tool} {json.dumps(call)}")[1:-1]
    begins = LEFT_RUNNING[cli, "agent"].replace("MOCK:sleep 4", steps)
    limit = {"order": "10m", "timeout": "8s"}[how]
    asked = len(mock_llm.requests)
    start = (f"real-{cli}", f"MOCK:{begins};sleep 60;say never", "--timeout", limit)
    task = place.ok("assign", *start).strip()
    session = task.partition(".")[0]
    until(lambda: len(mock_llm.requests) >= asked + 3, timeout_s=60)  # both work
    at = time.time()
    if how == "order":
        place.ok("stop", "--interrupt", session)
    (result,) = json.loads(place.run("wait", task, "--json").stdout)["results"]
    assert result["outcome"] == {"order": "interrupted", "timeout": "timeout"}[how]
    until(lambda: time.time() > at + 25, timeout_s=60)
    assert not (place.work / "made").exists()
    assert handoff(place, session, "MOCK:say again")["results"][0]["answer"] == "again"


@pytest.mark.parametrize("cli", ["copilot"], indirect=True)
def test_a_sub_agent_that_gets_a_message_is_waited_for_again(place, cli, mock_llm):
    allow_all(place, cli)
    begins = LEFT_RUNNING[cli, "agent"].replace("sleep 4", "sleep 1")
    (first,) = handoff(place, f"real-{cli}", f"MOCK:{begins};say started")["results"]
    name = re.findall(r"agent_id: ([0-9a-f-]{36})", json.dumps(mock_llm.requests))[-1]
    again = json.dumps({"agent_id": name, "message": "MOCK:sleep 6;say more"})
    task = f"MOCK:tool write_agent {again};say told it"
    (result,) = handoff(place, first["session"], task)["results"]
    assert (result["outcome"], result["turns"]) == ("done", ["told it"])


@pytest.mark.parametrize("goes_on", ["a hook blocked it", "a sub-agent runs"])
def test_a_cli_that_is_killed_in_a_turn_that_went_on_has_no_answer(place, mock_llm, goes_on):
    install(place, "claude", mock_llm.port)
    text, says = "MOCK:say too early", "MOCK:sleep 60;say mended"
    if goes_on == "a sub-agent runs":
        call = {"description": "do it", "subagent_type": "general-purpose", "prompt": says}
        tool = json.dumps({**call, "run_in_background": True})
        text = f"MOCK:tool Agent {tool};say too early"
    else:
        once = place.folder / "once"
        block = f"touch {once}; echo '{says}' >&2; exit 2"
        put_users_hook(place, "claude", "Stop", f"[ -e {once} ] || {{ {block}; }}")
    task = place.ok("assign", "real-claude", text).strip()
    session = task.partition(".")[0]
    (ended,) = until(
        lambda: [e for e in place.log(session) if e.get("kind") == "ended"],
        lambda ends: len(ends) == 1,
        60,
    )
    until(lambda: time.time() > ended["at"] + 2 * cao.UNSEEN_S)
    assert place.state(session)["state"] == "working"
    os.kill(place.state(session)["group"]["id"], signal.SIGKILL)
    done = place.run("wait", task, "--json")
    (result,) = json.loads(done.stdout)["results"]
    assert (result["outcome"], result["reason"], result["answer"]) == ("failed", "exited", "")


@pytest.mark.parametrize("trust", ["yes", "no"])
def test_hooks_of_a_hostile_repository_do_not_run_because_of_us(place, mock_llm, trust):
    install(place, "codex", mock_llm.port)
    path = place.home / "profiles" / "real-codex.md"
    path.write_text(path.read_text().replace("trust: yes", f"trust: {trust}"))
    mark = place.user / "hostile-hook-ran"
    hook = {"hooks": [{"type": "command", "command": f"touch {mark}"}]}
    (place.work / ".codex").mkdir()
    text = json.dumps({"hooks": {"UserPromptSubmit": [hook], "Stop": [hook]}})
    (place.work / ".codex" / "hooks.json").write_text(text)
    done = place.run("handoff", "real-codex", "--json", "MOCK:say safe")
    (ask,) = json.loads(done.stdout)["asking"]
    if trust == "no":  # Codex asks for trust where a folder brings settings of its own
        assert ask["question"]["kind"] == "screen"
        assert "rust" in ask["question"]["text"]
    else:
        assert "Hooks need review" in ask["question"]["text"]
        place.ok("answer", ask["session"], "--key", "3")
        assert place.ok("wait", *json.loads(done.stdout)["running"]) == "safe\n"
    assert not mark.exists()


@pytest.mark.parametrize("name", ["gemini", "qwen"])
def test_a_folders_env_file_makes_no_setting_of_caos(place, mock_llm, name):
    install(place, name, mock_llm.port)
    lines = f"CAO_NOTIFY=touch notified\nCAO_MAX_WAITING=1\nCAO_TMUX_CONF={place.work}/.env\n"
    (place.work / ".env").write_text(lines)
    tool = {"gemini": "mcp_cao_handoff", "qwen": "mcp__cao__handoff"}[name]
    inner = json.dumps({"target": "demo", "task": "demo: say x"})
    handoff(place, f"real-{name}", f"MOCK:tool {tool} {inner};say went on")
    (worker,) = (place.home / "sessions").glob("demo-*")
    env = json.loads((worker / "launch/env.json").read_text())
    assert (env["CAO_NOTIFY"], env["CAO_MAX_WAITING"]) == ("", "")
    assert not (place.work / "notified").exists()
    assert not (place.home / "tmux-own-conf").exists()


@pytest.mark.parametrize("trust", ["yes", "no"])
def test_opencode_runs_a_repositorys_plugin_only_where_it_is_trusted(place, mock_llm, trust):
    install(place, "opencode", mock_llm.port)
    path = place.home / "profiles" / "real-opencode.md"
    path.write_text(path.read_text().replace("permissions: ask", f"trust: {trust}"))
    mark = place.user / "hostile-plugin-ran"
    (place.work / ".opencode/plugin").mkdir(parents=True)
    (place.work / ".opencode/plugin/evil.js").write_text(
        'import { writeFileSync } from "node:fs"\n'
        f'export const evil = async () => {{ writeFileSync("{mark}", ""); return {{}} }}\n'
    )
    place.ok("handoff", "real-opencode", "MOCK:say safe")
    assert mark.exists() is (trust == "yes")


def test_pi_starts_beside_a_repositorys_extensions_only_where_they_are_trusted(place, mock_llm):
    install(place, "pi", mock_llm.port)
    mark = place.user / "hostile-extension-ran"
    (place.work / ".pi/extensions").mkdir(parents=True)
    (place.work / ".pi/extensions/evil.js").write_text(
        f'require("node:fs").writeFileSync("{mark}", ""); module.exports = () => {{}}\n'
    )
    done = place.run("handoff", "real-pi", "MOCK:say safe")
    assert (done.returncode, "trust: yes" in done.stderr) == (2, True), done.stderr
    assert (place.live(), mark.exists()) == ([], False)
    path = place.home / "profiles" / "real-pi.md"
    path.write_text(path.read_text().replace("permissions: ask", "trust: yes"))
    assert place.ok("handoff", "real-pi", "MOCK:say safe") == "safe\n"
    assert mark.exists()


@pytest.mark.parametrize("moment", ["queued", "starting"])
def test_pi_runs_nothing_that_came_into_its_folder_after_the_task(place, mock_llm, moment):
    install(place, "pi", mock_llm.port)
    mark, came = place.user / "hostile-extension-ran", place.work / ".pi/extensions/evil.js"
    evil = f'require("node:fs").writeFileSync("{mark}", ""); module.exports = () => {{}}'
    if moment == "starting":  # it comes when our last look is over
        pi = os.path.realpath(place.folder / "bin/pi")
        (place.folder / "bin/pi").unlink()
        write = f"mkdir -p {came.parent}; echo '{evil}' > {came}"
        place.program("pi", f'{write}\nexec {pi} "$@"')
        task = place.ok("assign", "real-pi", "MOCK:say safe").strip()
    else:
        busy = place.ok("assign", "demo", "demo: sleep 60", CAO_MAX_SESSIONS="1").strip()
        task = place.ok("assign", "real-pi", "MOCK:say safe", CAO_MAX_SESSIONS="1").strip()
        place.until_state(task.partition(".")[0], "queued")
        came.parent.mkdir(parents=True)
        came.write_text(evil)
        place.ok("stop", busy)
    (result,) = json.loads(place.run("wait", task, "--json").stdout)["results"]
    assert (result["outcome"], result["reason"]) == ("failed", "never_started")
    assert "would run, unasked, what" in f"{result['detail']} {result['screen']}"
    assert not mark.exists()


SUB_AGENT = {  # how each CLI's model starts one, in the foreground; pi has none
    "claude": 'tool Agent {"description":"x","subagent_type":"general-purpose",'
    '"run_in_background":false,"prompt":"PROMPT"}',
    "codex": 'tool spawn_agent {"message":"PROMPT"};sleep 3',
    "gemini": 'tool invoke_agent {"agent_name":"generalist","prompt":"PROMPT"}',
    "qwen": 'tool agent {"description":"x","subagent_type":"general-purpose",'
    '"run_in_background":false,"prompt":"PROMPT"}',
    "copilot": 'tool task {"name":"x","description":"x","agent_type":"general-purpose",'
    '"mode":"sync","prompt":"PROMPT"}',
    "opencode": 'tool task {"description":"x","subagent_type":"general","prompt":"PROMPT"}',
    "kimi": 'tool Agent {"description":"x","subagent_type":"coder","prompt":"PROMPT"}',
    "pi": "think hard",
}


def test_the_tokens_of_each_task_are_what_the_model_said(place, cli, mock_llm):
    """Over several turns, sub-agents and a resume; side requests are not told by any CLI."""
    path = place.home / "profiles" / f"real-{cli}.md"
    path.write_text(path.read_text().replace("permissions: ask", "permissions: all"))
    sub = SUB_AGENT[cli].replace("PROMPT", "MOCK:tokens 5000 300 20;say sub")
    target = f"real-{cli}"
    for task in (
        "tokens 1000 200 10;say one",
        f"tokens 3000 100 40;{sub};say two",
        "",
        "tokens 7;say x",
    ):
        if not task:  # the next goes on with the ended conversation
            place.ok("stop", target)
            continue
        before = len(mock_llm.usage)
        result = handoff(place, target, f"MOCK:{task}")["results"][0]
        said = [counts for *counts, side in mock_llm.usage[before:] if not side]
        assert len(said) >= (2 if "tool" in task else 1)
        wanted = dict(zip(("input", "cached", "output"), map(sum, zip(*said))))
        assert result["usage"] == wanted, (task, said)
        target = result["session"]
    assert (result["turns"], result["background"]) == ([], [])  # nothing of an earlier task's
    assert json.loads(place.ok("ls", "--json"))[-1]["usage"] == {
        "input": 7,
        "cached": 0,
        "output": 10,
    }


def test_a_task_over_its_tokens_is_interrupted_and_the_session_goes_on(place, cli):
    path = place.home / "profiles" / f"real-{cli}.md"
    path.write_text(path.read_text().replace("permissions: ask", "permissions: all"))
    # OpenCode tells a request's tokens when its tool has ended: so what takes long is the next one.
    tool = SHELL[cli].format(file="x").replace("say went on", "sleep 300;say never")
    tool = tool.replace("MOCK:", "MOCK:tokens 900 0 200;")
    tool = tool.replace(
        '"sandbox_permissions":"require_escalated","justification":"may I?"', '"workdir":"."'
    )
    flags = ("--max-tokens", "1000", "--timeout", "150s")
    result = handoff(place, f"real-{cli}", tool, *flags, code=1)["results"][0]
    assert (result["outcome"], result["reason"]) == ("failed", "budget"), result
    assert result["usage"] == {"input": 900, "cached": 0, "output": 200}
    again = handoff(place, result["session"], "MOCK:tokens 5;say alive")["results"][0]
    assert again["answer"] == "alive"
