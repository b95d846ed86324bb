"""Scope: what a profile comes to, what a grant takes away, and what each CLI is held to."""

from __future__ import annotations

import json
import subprocess
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

import cao
from conftest import run_cao, until
from test_nothing_lost import put_loader
from test_real_clis import handoff, install

ALL = tuple(cao.TOOL_WORDS)
READ = ("fs_read", "fs_list")


def parse(frontmatter, name="worker"):
    return cao.parse_profile(f"---\n{frontmatter}\n---\nYou work.\n", name, "p.md")


# ---- what a profile comes to ----


@pytest.mark.parametrize(
    ("frontmatter", "tools", "unknown"),
    [
        ("", ALL, ()),
        ("role: developer", ALL, ()),
        ("role: supervisor", READ, ()),
        ("role: reviewer", READ, ()),
        ("role: reviewer\nallowedTools:", READ, ()),
        ("role: reviewer\nallowedTools: [execute_bash]", ("execute_bash",), ()),
        ("allowedTools: ['*']\nrole: reviewer", ALL, ()),
        ("allowedTools: ['@builtin', 'fs_*', '@cao-mcp-server']", (*READ, "fs_write"), ()),
        ("allowedTools: []", (), ()),
        ("allowedTools: [fs_raed, web_fetch]", ("web_fetch",), ("allowedTools: fs_raed",)),
    ],
)
def test_role_and_allowed_tools_come_to_the_tools_an_agent_has(frontmatter, tools, unknown):
    profile = parse(frontmatter or "model: x")
    assert sorted(profile.tools) == sorted(tools)
    assert profile.unknown == unknown


@pytest.mark.parametrize(
    ("frontmatter", "what"),
    [
        ("allowedTools: fs_read", "'allowedTools' must be a list"),
        ("grant: all", "'grant' must be a mapping"),
        ("grant: {profiles: developer}", "'grant: profiles' must be a list"),
        ("grant: {permission: edits}", "'grant': 'permission' does not exist"),
        ("grant: {permissions: yolo}", "grant: permissions 'yolo' does not exist"),
        ("grant:", "'grant' says nothing"),
        ("grant: {}", "'grant' says nothing"),
        ("grant: {permissions: }", "'grant: permissions' says nothing"),
        ("grant: {permissions: ask, profiles: }", "'grant: profiles' says nothing"),
        ("claudeConfig: '{permissions: {deny: [Bash]}}'", "'claudeConfig' must be a mapping"),
        ("claudeConfig: {env: [A=1]}", "'claudeConfig: env' must be a mapping"),
        ("claudeConfig: {hooks: x}", "'claudeConfig: hooks' must be a mapping"),
        ("claudeConfig: {hooks: {Stop: x}}", "'claudeConfig: hooks: Stop' must be a list"),
        ("codexConfig: {hooks.Stop: [x]}", "cao sets the hooks itself"),
        ("check: [pytest]", "'check' must be a command"),
        ("check_retries: many", "'check_retries' a number"),
        ("check_retries: -1", "'check_retries' a number"),
    ],
)
def test_a_scope_that_cannot_be_read_is_refused_and_never_falls_open(frontmatter, what):
    with pytest.raises(cao.CaoError) as caught:
        parse(frontmatter)
    assert what in caught.value.what


@pytest.mark.parametrize(
    ("grant", "what", "fix"),
    [
        ("{tools: [fs_read]}", "'tools' is gone", "'allowedTools:' in the worker's own profile"),
        ("{permissions: ask, tools: []}", "'tools' is gone", "'allowedTools:'"),
        ("{tools: fs_read}", "'tools' is gone", "'allowedTools:'"),
        ("{env: [GITHUB_*]}", "'env' is gone", "'env:' in the worker's own profile"),
        ("{profiles: [x], env:}", "'env' is gone", "'env:'"),
    ],
)
def test_a_grant_of_tools_or_environment_is_refused_and_says_what_to_use(grant, what, fix):
    with pytest.raises(cao.CaoError) as caught:
        parse(f"grant: {grant}")
    assert what in caught.value.what
    assert fix in caught.value.fix


# ---- grants ----

WIDE = (
    "provider: claude\npermissions: all\nenv: {pass: [GITHUB_*, NPM_TOKEN], set: {A: b}}\n"
    "mcpServers: {tickets: {command: t}, web: {command: w}}"
)


@pytest.mark.parametrize(
    ("grant", "took"),
    [
        ({}, ()),
        ({"permissions": "all", "profiles": ["*"]}, ()),
        ({"permissions": "edits"}, ("permissions all -> edits",)),
        ({"permissions": "ask", "profiles": ["work*"]}, ("permissions all -> ask",)),
    ],
)
def test_a_grant_takes_away_what_is_beyond_it_and_says_what(grant, took):
    profile = cao.clip_profile(parse(WIDE), grant)
    assert profile.clipped == took
    assert cao.clip_profile(profile, grant) == profile  # once is as good as twice


@pytest.mark.parametrize(
    "own",
    [
        "provider: claude\nclaudeConfig: {permissions: {defaultMode: bypassPermissions}}",
        "provider: codex\ncodexConfig: {sandbox_mode: danger-full-access}",
        "provider: codex\ncodexProfile: wild",
        "provider: claude\napprove: supervisor",
        "provider: pi\ntrust: yes",
    ],
)
def test_a_clis_own_settings_do_not_undo_a_grant_unless_the_profile_is_named_in_it(own):
    key = own.split("\n")[1].partition(":")[0]
    clipped = cao.clip_profile(parse(own), {"permissions": "edits"})
    assert clipped.clipped == (key,)
    assert not getattr(clipped, key, clipped.settings.get(key))
    named = cao.clip_profile(parse(own), {"permissions": "edits", "profiles": ["work*"]})
    assert (named, named.clipped) == (parse(own), ())


def test_what_a_grant_leaves_is_what_both_allow():
    grant = {"permissions": "auto"}
    profile = cao.clip_profile(parse(WIDE), grant)
    assert profile == parse(WIDE)._replace(permissions="auto", clipped=profile.clipped)
    assert cao.clip_profile(parse("permissions: ask"), grant).permissions == "ask"


@pytest.mark.parametrize(
    ("frontmatter", "grant", "what"),
    [
        ("model: x", {"profiles": ["developer", "rev*"]}, "does not allow 'worker'"),
        ("model: x", {"profiles": []}, "does not allow 'worker'"),
        ("provider: command\ncommand: [cat]\nready: x", {"permissions": "ask"}, "of its own"),
    ],
)
def test_what_no_clipping_can_hold_is_refused(frontmatter, grant, what):
    with pytest.raises(cao.UsageError) as caught:
        cao.clip_profile(parse(frontmatter), grant)
    assert what in caught.value.what
    assert not caught.value.fix.endswith("one of: ")
    assert cao.clip_profile(parse(frontmatter), {**grant, "profiles": ["work*"]})


BOSS = """\
---
provider: demo
permissions: ask
grant:
  permissions: edits
  profiles: [wide, boss-below]
---
"""


@pytest.mark.tmux
def test_a_grant_reaches_the_workers_of_workers_and_their_results_say_so(place):
    place.profile("boss", BOSS)
    place.profile("boss-below", "---\nprovider: demo\ngrant: {permissions: all}\n---\n")
    place.profile("wide", "---\nprovider: demo\npermissions: all\n---\n")
    step = "handoff boss-below {demo: assign wide hello; sleep 0.5; say given}"
    place.ok("handoff", "boss", f"demo: {step}")
    (name,) = [n for n in place.live() if n.startswith("wide")]
    until(lambda: place.store.results(name))
    (result,) = [place.result(task) for task in place.store.results(name)]
    assert "taken away by a supervisor's grant: permissions all -> edits" in result["notes"]
    scope = json.loads(place.ok("show", name, "--json"))["scope"]
    assert scope["permissions"].startswith("edits")


@pytest.mark.tmux
def test_an_ended_session_goes_on_with_what_it_was_granted(place, resuming):
    place.profile("boss", BOSS)
    place.profile("wide", "---\nprovider: demo\npermissions: all\n---\n")
    boss = place.ok("launch", "boss", "--detach").strip()
    task = place.ok("assign", "wide", "hello", CAO_SESSION=boss).strip()
    name = task.partition(".")[0]
    until(lambda: place.store.results(name))
    place.ok("stop", name)
    again = resuming.assign(name, "demo: say again", cao.TaskOptions())
    until(lambda: place.store.load_result(again))
    assert place.result(again)["notes"] == place.result(task)["notes"] != []


@pytest.mark.tmux
def test_an_agent_launches_no_supervisor_beside_its_grant_and_depth(place):
    place.profile("boss", "---\nprovider: demo\ngrant: {permissions: edits}\n---\n")
    session = place.ok("assign", "boss", "hello").strip().partition(".")[0]
    for agent in ({"CAO_SESSION": session}, {"CLAUDECODE": "1"}):
        done = place.run("launch", "demo", "--detach", **agent)
        assert (done.returncode, "only a person" in done.stderr) == (2, True)
    assert place.live() == [session]


@pytest.mark.tmux
@pytest.mark.parametrize("action", ["add", "run", "enable", "disable", "remove"])
def test_an_agent_changes_and_runs_no_flow_beside_its_grant(place, action):
    place.profile("boss", "---\nprovider: demo\ngrant: {permissions: edits}\n---\n")
    session = place.ok("assign", "boss", "hello").strip().partition(".")[0]
    flow = place.work / "daily.md"
    flow.write_text("---\nschedule: '@yearly'\nagent_profile: demo\n---\ndemo: say done\n")
    for agent in ({"CAO_SESSION": session}, {"CLAUDECODE": "1"}):
        done = place.run("schedule", action, "daily.md", **agent)
        assert (done.returncode, f"only a person may {action} a flow" in done.stderr) == (2, True)
        assert place.ok("schedule", "list", "--json", **agent) == "[]\n"


@pytest.mark.tmux
def test_an_agent_removes_no_session(place):
    ended, own = (
        place.ok("assign", "demo", "demo: say x").strip().partition(".")[0] for _ in range(2)
    )
    place.ok("stop", ended)
    for agent in ({"CAO_SESSION": own}, {"CLAUDECODE": "1"}):
        done = place.run("clean", "--older", "0s", **agent)
        assert (done.returncode, "only a person may remove" in done.stderr) == (2, True)
    assert (place.home / "sessions" / ended).exists()


@pytest.mark.tmux
def test_a_sibling_does_no_more_for_an_agent_than_its_grant_allows(place):
    place.profile("boss", "---\nprovider: demo\ngrant: {permissions: edits}\n---\n")
    place.profile("wide", "---\nprovider: demo\npermissions: all\n---\n")
    place.profile("py", "---\nprovider: command\ncommand: [python3, -i, -q]\nready: '>>> $'\n---\n")
    boss, wide, calm, py = (
        place.ok("assign", profile, "1").strip().partition(".")[0]
        for profile in ("boss", "wide", "demo", "py")
    )
    for session, words in ((wide, "may do more than your"), (py, "which no grant can hold")):
        done = place.run("assign", session, "demo: say x", CAO_SESSION=boss)
        assert (done.returncode, words in done.stderr) == (2, True), done.stderr
        done = place.run("send", session, "demo: say x", CAO_SESSION=boss)
        assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    assert place.ok("handoff", calm, "demo: say x", CAO_SESSION=boss) == "x\n"
    place.ok("send", calm, "demo: say y", CAO_SESSION=boss)
    below = place.ok("assign", "demo", "demo: say x", CAO_SESSION=boss).partition(".")[0]
    place.ok("send", "supervisor", "demo: say up", CAO_SESSION=below)
    place.ok("send", below, "demo: say down", CAO_SESSION=boss)


@pytest.mark.tmux
def test_no_agent_has_a_worker_among_or_above_the_files_that_programs_go_by(place):
    for words in (["init", "-q"], [*"-c user.name=x -c user.email=x@x commit -q -m first".split(),
                                   "--allow-empty"]):  # fmt: skip
        subprocess.run(["git", *words], cwd=place.work, check=True)
    link = place.work / "link"
    link.symlink_to(place.home)
    below = place.home / "profiles"
    hidden, bare = place.user / ".pi" / "agent", place.user / "x.git"
    for folder in (hidden, bare):
        folder.mkdir(parents=True)
    task = place.ok("assign", "demo", "demo: say x", "--worktree").strip()
    boss = task.partition(".")[0]
    for agent in ({"CAO_SESSION": boss}, {"CLAUDECODE": "1"}):
        for cwd in (place.home, below, place.home / "worktrees", place.home.parent, "/", link,
                    place.work / ".git/hooks", place.user, hidden, bare):  # fmt: skip
            done = place.run("assign", "demo", "demo: say x", "--cwd", str(cwd), **agent)
            assert (done.returncode, "no agent starts a worker there" in done.stderr) == (2, True)
        worktree = str(place.home / "worktrees" / boss)
        assert place.ok("handoff", "demo", "demo: say x", "--cwd", worktree, **agent) == "x\n"
    assert place.ok("handoff", "demo", "demo: say x", "--cwd", str(place.home)) == "x\n"
    done = place.run("assign", "demo", "demo: say x", cwd=hidden, CAO_SESSION=boss)  # by its shell
    assert (done.returncode, "no agent starts a worker there" in done.stderr) == (2, True)
    # A worktree of the caller's repository may lie anywhere.
    tree = place.work / ".claude/worktrees/x"
    subprocess.run(["git", "worktree", "add", "-q", tree], cwd=place.work, check=True)
    agent = {"CLAUDECODE": "1"}
    assert place.ok("handoff", "demo", "demo: say x", "--cwd", str(tree), **agent) == "x\n"
    assert place.ok("handoff", "demo", "demo: say x", cwd=tree, **agent) == "x\n"
    # Where a person started it above or among these files, its workers may be there as well.
    for folder in (str(place.home.parent), str(hidden)):
        task = place.ok("assign", "demo", "demo: say x", "--cwd", folder).strip()
        agent = {"CAO_SESSION": task.partition(".")[0]}
        assert place.ok("handoff", "demo", "demo: say x", cwd=folder, **agent) == "x\n"


@pytest.mark.tmux
def test_a_program_is_typed_to_by_those_above_it_alone(place):
    place.profile("py", "---\nprovider: command\ncommand: [python3, -i, -q]\nready: '>>> $'\n---\n")
    session, sibling = (
        place.ok("assign", profile, "1").strip().partition(".")[0] for profile in ("py", "demo")
    )
    for caller in ({"CAO_SESSION": sibling}, {"CLAUDECODE": "1", "CAO_CLIENT": "other"}):
        done = place.run("assign", session, "open('pwned', 'w')", **caller)
        assert (done.returncode, f"{session} is not your worker" in done.stderr) == (2, True)
    assert not (place.work / "pwned").exists()


@pytest.mark.tmux
def test_a_profile_that_is_not_granted_is_refused_and_leaves_no_session(place):
    place.profile("boss", BOSS)
    session = place.ok("assign", "boss", "hello").strip().partition(".")[0]
    for argv in (("handoff", "demo", "x"), ("launch", "demo", "--detach")):
        done = place.run(*argv, CAO_SESSION=session)
        assert (done.returncode, "does not allow 'demo'" in done.stderr) == (2, True)
        assert "wide, boss-below" in done.stderr
    assert place.live() == [session]


# ---- what reaches a worker ----


@pytest.mark.tmux
def test_the_callers_secrets_do_not_reach_a_worker_unless_passed(place):
    secrets = {"MY_TOKEN": "hush-1", "MY_KEY": "hush-2", "MY_OTHER": "hush-3"}
    rules = "{pass: [MY_*], deny: [MY_OTHER], set: {EDITOR: hush-4}}"
    place.profile("passes", f"---\nprovider: demo\nenv: {rules}\n---\n")
    shut = place.ok("assign", "demo", "hello", **secrets).strip().partition(".")[0]
    opened = place.ok("assign", "passes", "hello", **secrets).strip().partition(".")[0]
    seen = {}
    for session in (shut, opened):
        pid = place.until_state(session, "idle")["group"]["id"]
        runner = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        seen[session] = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"hush" not in Path(f"/proc/{runner}/environ").read_bytes()
    assert b"hush" not in seen[shut]
    assert [f"hush-{n}".encode() in seen[opened] for n in (1, 2, 3, 4)] == [True, True, False, True]
    shown = place.ok("show", opened)
    assert "hush" not in shown  # names only
    assert {"EDITOR", "MY_KEY", "MY_TOKEN"} <= set(shown.split())


@pytest.mark.tmux
def test_a_workers_worker_has_the_users_environment_not_that_of_the_clis_own_home(place):
    boss = place.ok("launch", "demo", "--detach").strip()
    given = place.ok("assign", "demo", "hello", CAO_SESSION=boss, XDG_CONFIG_HOME="/the/clis/own")
    env = place.store.launch_file(given.partition(".")[0], "env.json")
    assert "XDG_CONFIG_HOME" not in json.loads(Path(env).read_text())


LOGINS = {
    "claude": {"ANTHROPIC_API_KEY": "hush-a", "CLAUDE_CODE_OAUTH_TOKEN": "hush-o"},
    "codex": {"OPENAI_API_KEY": "hush-c"},
    "gemini": {"GEMINI_API_KEY": "hush-g"},
    "kimi": {"KIMI_MODEL_API_KEY": "hush-k", "KIMI_CODE_HOME": "/hush-home"},
}


def environment_of(pid: int) -> dict[str, str]:
    """Return the environment of a process that cao started; {} before it runs its program."""
    lines = Path(f"/proc/{pid}/environ").read_text().split("\0")
    env = dict(line.split("=", 1) for line in lines if line)
    return env if env.get("TMUX_PANE") and "CAO_SESSION" in env else {}


@pytest.mark.tmux
@pytest.mark.parametrize("path", ["claude codex gemini", "codex claude", "demo kimi claude"])
def test_a_worker_of_a_worker_has_its_own_clis_login_of_the_persons_and_no_others(place, path):
    for cli in {*path.split()} - {"demo"}:
        (place.folder / "bin" / cli).unlink()
        place.program(cli, "exec sleep 1000")
    every = {key: value for login in LOGINS.values() for key, value in login.items()}
    env = {**place.env, **every, "MY_TOKEN": "hush-not-for-any"}
    for cli in path.split():
        place.profile(cli, f"---\nprovider: {cli}\nenv: {{deny: [CLAUDE_CODE_OAUTH_TOKEN]}}\n---\n")
        done = run_cao(["assign", cli, "hello"], env, place.work)
        assert done.returncode == 0, done.stderr
        session = done.stdout.partition(".")[0]
        pid = until(lambda: place.state(session).get("group"))["id"]  # noqa: B023
        env = until(lambda: environment_of(pid))  # noqa: B023
        own = {key: value for key, value in env.items() if "hush" in value}
        login = LOGINS.get(cli, {})  # but what a profile above denies; Kimi's home is one of ours
        assert own == {key: value for key, value in login.items() if key.endswith("API_KEY")}
        kept = place.home / "sessions" / session / "person-env.json"
        assert kept.stat().st_mode & 0o777 == 0o600
    for pid in place.pids():
        try:
            command_line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended since
        assert b"hush" not in command_line


ASKS_FOR_MCP = """
PROVIDERS["demo"] = PROVIDERS["demo"]._replace(asks_own=True)
class AsksForMcp(Asking):
    def __init__(self, store, name, payload):
        payload["tool_name"] = payload.pop("tool_input")["command"]
        super().__init__(store, name, payload)
Asking = AsksForMcp
"""


@pytest.mark.tmux
@pytest.mark.parametrize("between", ["sleep 1;", ""], ids=["later", "at-once"])
def test_only_caos_own_tools_are_allowed_without_a_person(place, between):
    put_loader(place, ASKS_FOR_MCP)
    own, other = "permit mcp__cao__handoff|Yes|No", "permit mcp__tickets__close|Yes|No"
    task = place.ok("assign", "demo", f"demo: {own}; {between} {other}").strip()
    session = task.partition(".")[0]
    until(
        lambda: [q["text"] for q in place.state(session).get("questions") or ()],
        ["mcp__tickets__close"],
    )
    (asked,) = place.state(session)["questions"]
    assert asked["kind"] == "permission"
    place.ok("answer", session, "No")
    assert place.ok("wait", task) == "Yes\nNo\n"


ASKS_FOR_TRUST = """
PROVIDERS["demo"] = PROVIDERS["demo"]._replace(trusts=("Do you trust this folder?", "2"))
begin = DemoAgent.run
def first(self, prompt):
    self.show("╭─────╮\\n│ Do you trust this WHAT? │\\n  1. No\\n  2. Yes\\n")
    while self.key() != b"2":
        pass
    self.show("\\x1b[2J\\x1b[H")
    return begin(self, prompt)
DemoAgent.run = first
"""


@pytest.mark.tmux
@pytest.mark.parametrize(
    ("trust", "what", "by_itself"),
    [("yes", "folder", True), ("yes", "plugin", False), ("no", "folder", False)],
)
def test_trust_yes_answers_for_the_folder_and_for_nothing_else(place, trust, what, by_itself):
    put_loader(place, ASKS_FOR_TRUST.replace("WHAT", what))
    place.profile("trusting", f"---\nprovider: demo\ntrust: {trust}\n---\n")
    task = place.ok("assign", "trusting", "demo: say went on").strip()
    session = task.partition(".")[0]
    if not by_itself:
        (asked,) = place.until_state(session, "asking")["questions"]
        assert asked["kind"] == "screen"
        assert f"Do you trust this {what}? │\n  1. No\n  2. Yes" in asked["text"]
        place.ok("answer", session, "--key", "2")
    until(lambda: place.store.load_result(task))
    assert place.ok("wait", task) == "went on\n"
    assert (place.home / "approvals.jsonl").exists() is not by_itself


@pytest.mark.tmux
def test_show_says_what_holds_and_what_is_only_told(place):
    lines = dict(
        line.split("  ", 1) for line in place.ok("profiles", "reviewer", CAO_PROVIDER="claude")
        .splitlines() if "  " in line
    )  # fmt: skip
    assert "Edit Write NotebookEdit" in lines["held back by its CLI"]
    assert "its shell: not to change files" in lines["told only"]
    place.profile("reads", "---\nprovider: demo\nrole: reviewer\n---\n")
    session = place.ok("assign", "reads", "hello").strip().partition(".")[0]
    shown = place.ok("show", session)
    assert "not held, not told  execute_bash, fs_write, web_fetch" in shown
    system = (place.home / "sessions" / session / "launch" / "system.md").read_text()
    assert "may not run commands but to read, change files, use the web in this session" in system


@pytest.mark.parametrize("name", [n for n, row in cao.PROVIDERS.items() if row.program])
def test_a_providers_table_has_only_words_there_are(name):
    row = cao.PROVIDERS[name]
    assert set(row.tools) <= set(ALL)
    assert set(row.permission_words) in (set(), set(cao.PERMISSIONS))


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        ({"permissions": "edits"}, ["-s", "workspace-write", "-a", "on-request"]),
        ({"permissions": "edits", "tools": READ}, ["-s", "read-only", "-a", "on-request"]),
        ({"permissions": "all", "tools": READ}, ["-s", "read-only", "-a", "never"]),
        ({"permissions": "all"}, ["--dangerously-bypass-approvals-and-sandbox"]),
    ],
)
def test_codex_is_held_by_its_sandbox(settings, flags):
    profile = cao.Profile("dev", "p.md", "codex", "", **settings)
    launch = cao.Launch("n", "/f", "/w", profile, "", ("h",), ("m",), {}, "id")
    argv = cao.PROVIDERS["codex"].start(launch).argv
    assert argv[1 : 1 + len(flags)] == flags
    assert ("-cweb_search=disabled" in argv) is ("tools" in settings)


# ---- the real CLIs ----


def tools_of(request) -> set[str]:
    """Return the names of the tools that a CLI offered to the model."""
    body = request.get("body", request)
    found = [
        leaf.get("function") or leaf
        for tool in body.get("tools") or []
        for leaf in tool.get("tools") or tool.get("functionDeclarations") or [tool]
    ]
    return {str(leaf.get("name") or leaf.get("type")) for leaf in found}


@pytest.mark.tmux
@pytest.mark.parametrize("left", [None, '{"profile": {"na'], ids=["gone", "torn"])
def test_a_grant_that_cannot_be_read_does_not_fall_open(place, left):
    boss = place.ok("launch", "demo", "--detach").strip()
    below = place.ok("assign", "demo", "hello", CAO_SESSION=boss).partition(".")[0]
    place.until_state(below, "idle")
    path = place.home / "sessions" / boss / "launch" / "launch.json"
    for caller in (boss, below):  # the grant of one far above holds as well
        path.unlink(missing_ok=True)
        if left:
            path.write_text(left)
        refused = place.run("assign", "demo", "demo: say hi", CAO_SESSION=caller)
        assert (refused.returncode, "cannot be read" in refused.stderr) == (1, True), refused.stderr
    assert place.live() == sorted([boss, below])


def scoped(place, cli, mock_llm, *lines) -> None:
    install(place, cli, mock_llm.port)
    path = place.home / "profiles" / f"real-{cli}.md"
    path.write_text(path.read_text().replace("permissions: ask", "\n".join(lines)))


@pytest.mark.tmux
@pytest.mark.cli
def test_claude_code_offers_the_tools_of_the_scope_and_no_other(place, mock_llm):
    scoped(place, "claude", mock_llm, "permissions: all", "role: reviewer")
    made = place.work / "made"
    step = json.dumps({"command": f"touch {made}", "description": "make it"})
    (result,) = handoff(place, "real-claude", f"MOCK:tool Bash {step};say went on")["results"]
    assert (result["answer"], made.exists()) == ("went on", False)
    offered = tools_of(mock_llm.requests[-1])
    assert {"Read", "Glob", "Grep", "mcp__cao__handoff"} <= offered
    own = {name for name in offered if not name.startswith("mcp__")}
    assert not own & {"Bash", "Edit", "Write", "NotebookEdit", "WebFetch", "Agent", "Workflow"}
    known = {*cao._CLAUDE_HARMLESS, "Read", "Glob", "Grep", "DeferredToolPlaceholder"}
    assert own <= known  # what a next version adds is not there by itself
    assert "may not run commands" in json.dumps(mock_llm.requests[-1])


@pytest.mark.tmux
@pytest.mark.cli
def test_claude_code_with_a_shell_and_without_writing_says_the_shell_is_only_told(place, mock_llm):
    tools = "allowedTools: [fs_read, fs_list, execute_bash]"
    scoped(place, "claude", mock_llm, "permissions: all", tools)
    (result,) = handoff(place, "real-claude", "MOCK:say ready")["results"]
    offered = tools_of(mock_llm.requests[-1])
    assert "Bash" in offered
    assert not offered & {"Edit", "Write", "WebFetch"}
    assert "its shell: not to change files or use the web" in place.ok("show", result["session"])


@pytest.mark.tmux
@pytest.mark.cli
@pytest.mark.parametrize("cli", ["gemini", "qwen"])
def test_a_cli_offers_no_tool_that_the_scope_takes_away(place, mock_llm, cli):
    scoped(place, cli, mock_llm, "permissions: all", "role: reviewer")
    before, made = len(mock_llm.requests), place.work / "made"
    step = json.dumps({"command": f"touch {made}", "description": "make it"})
    handoff(place, f"real-{cli}", f"MOCK:tool run_shell_command {step};say went on")
    assert not made.exists()
    offered = set().union(*map(tools_of, mock_llm.requests[before:]))
    tools = cao.PROVIDERS[cli].tools
    words = ("execute_bash", "fs_write", "web_fetch")
    taken = {name for word in words for name in tools[word].split()}
    assert "read_file" in offered
    assert not offered & taken


@pytest.mark.tmux
@pytest.mark.cli
def test_codex_cannot_write_where_the_scope_has_no_writing(place, mock_llm):
    scoped(place, "codex", mock_llm, "permissions: all", "role: reviewer")
    made = place.work / "made"
    step = json.dumps({"cmd": f"touch {made}"})
    (result,) = handoff(place, "real-codex", f"MOCK:tool exec_command {step};result")["results"]
    assert not made.exists()
    assert "web_search" not in tools_of(mock_llm.requests[-1])
    shown = place.ok("show", result["session"])
    assert "held back by its CLI  fs_write (-s read-only)  web_fetch" in shown
    assert "told only             execute_bash" in shown
    assert "auto  (-s workspace-write -a never)" in shown  # `all` would end the sandbox


@pytest.mark.tmux
@pytest.mark.parametrize("agent", ["worker", "claude's shell"])
@pytest.mark.parametrize("command", ["assign", "handoff", "run"])
def test_an_agent_gives_no_permissions_that_a_profile_does_not(place, agent, command):
    session = place.ok("assign", "demo", "hello").partition(".")[0]
    env = {"CAO_SESSION": session} if agent == "worker" else {"CLAUDECODE": "1"}
    done = place.run(command, "demo", "hello", "--permissions", "all", **env)
    assert (done.returncode, "only a person may give" in done.stderr) == (2, True)
    assert place.live() == [session]


@pytest.mark.tmux
def test_an_agent_may_name_its_own_worker_that_has_ended(place):
    result = json.loads(place.ok("handoff", "demo", "demo: assign demo {demo: say one}", "--json"))
    boss = result["results"][0]["session"]
    (worker,) = until(lambda: [name for name in place.live() if name != boss])
    other = place.ok("assign", "demo", "hello").partition(".")[0]
    place.ok("stop", worker)
    place.ok("stop", other)
    for name, words in ((worker, "has ended"), (other, "is not one of your workers")):
        done = place.run("assign", name, "hello", CAO_SESSION=boss)  # a demo resumes nothing
        assert words in done.stderr


def sub_agent(**more) -> str:
    """Return the arguments of a tool call that has a sub-agent of Claude or Qwen Code write."""
    step = json.dumps({"command": "touch made", "description": "make it"})
    prompt = f"MOCK:tool Bash {step} & tool run_shell_command {step}"
    return json.dumps({"description": "x", "prompt": prompt, **more})


OWN_WORKTREES = {
    "claude": (
        'EnterWorktree {"name": "wt"}',
        "Agent " + sub_agent(subagent_type="general-purpose", isolation="worktree"),
        "Agent " + sub_agent(subagent_type="apart"),
    ),
    "qwen": (
        'enter_worktree {"name": "wt"}',
        "agent " + sub_agent(subagent_type="general-purpose", isolation="worktree"),
    ),
    "codex": ('create_worktree {"allowAsync": true, "ref": "HEAD"}', "list_worktrees {}"),
}
CODEX_TASKS = "await tools.mcp__codex_tui__list_threads({})"


@pytest.mark.tmux
@pytest.mark.cli
def test_codex_leaves_the_persons_other_tasks_alone_with_its_newer_models_too(place, mock_llm):
    scoped(place, "codex", mock_llm, "permissions: all")
    path = place.home / "profiles" / "real-codex.md"
    path.write_text(path.read_text().replace("model: mock-model", "model: gpt-6-sol"))
    listed = "text(Object.keys(tools).filter(name => name.startsWith('codex_tui')).join(' '));"
    script = f"{listed} try {{ text({CODEX_TASKS}) }} catch (error) {{ text(String(error)) }}"
    call = json.dumps({"input": script})
    (result,) = handoff(place, "real-codex", f"MOCK:tool exec {call};result")["results"]
    assert "not for a worker" in result["answer"]
    assert "read_thread" not in result["answer"]


@pytest.mark.tmux
@pytest.mark.cli
@pytest.mark.parametrize("cli", OWN_WORKTREES)
def test_no_cli_makes_a_worktree_of_its_own_in_any_mode(place, mock_llm, cli):
    scoped(place, cli, mock_llm, "permissions: all")
    agents = place.work / ".claude" / "agents"
    agents.mkdir(parents=True)
    (agents / "apart.md").write_text("---\nname: apart\ndescription: x\nisolation: worktree\n---\n")
    who = ("-c", "user.name=x", "-c", "user.email=x@x")
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *words], cwd=place.work, check=True)
    for call in OWN_WORKTREES[cli]:
        handoff(place, f"real-{cli}", f"MOCK:tool {call};say went on")
    argv = ["git", "worktree", "list"]
    listed = subprocess.run(argv, cwd=place.work, check=True, capture_output=True, text=True)
    assert len(listed.stdout.splitlines()) == 1, listed.stdout


@pytest.mark.tmux
@pytest.mark.cli
@pytest.mark.parametrize(("cli", "tool"), [("claude", "CronCreate"), ("qwen", "cron_create")])
def test_no_cli_schedules_a_prompt_for_later_sessions(place, mock_llm, cli, tool):
    scoped(place, cli, mock_llm, "permissions: all")
    job = {"cron": "* * * * *", "prompt": "MOCK:say later", "recurring": True, "durable": True}
    handoff(place, f"real-{cli}", f"MOCK:tool {tool} {json.dumps(job)};say went on")
    assert not [*place.folder.rglob("scheduled_tasks.json")]


@pytest.mark.tmux
@pytest.mark.cli
def test_claude_code_neither_writes_to_another_session_nor_takes_what_one_writes(place, mock_llm):
    scoped(place, "claude", mock_llm, "permissions: all")
    (first,) = handoff(place, "real-claude", "MOCK:say ready", "--keep")["results"]
    call = {"to": first["session"], "summary": "x", "message": "MOCK:say taken over"}
    prompt = f"MOCK:tool SendMessage {json.dumps(call)};result"
    (second,) = handoff(place, "real-claude", prompt)["results"]
    assert "No such tool" in second["answer"]
    keys = {"ANTHROPIC_BASE_URL": f"http://127.0.0.1:{mock_llm.port}", "ANTHROPIC_AUTH_TOKEN": "x"}
    argv = [place.folder / "bin" / "claude", "--dangerously-skip-permissions", "-p", prompt]
    env = {**place.env, **keys, "IS_SANDBOX": "1"}  # a person's own
    done = subprocess.run(argv, check=True, cwd=place.work, env=env, capture_output=True, text=True)
    assert '"success":true' in done.stdout
    handoff(place, first["session"], "MOCK:say next")
    assert "taken over" not in json.dumps(mock_llm.requests[-1])


@pytest.mark.tmux
@pytest.mark.cli
def test_qwen_code_sees_no_other_session(place, mock_llm):
    scoped(place, "qwen", mock_llm, "permissions: edits")
    handoff(place, "real-qwen", "MOCK:say ready", "--keep")
    (result,) = handoff(place, "real-qwen", "MOCK:tool list_agents {};result")["results"]
    assert "sessions" not in result["answer"]


@pytest.mark.tmux
@pytest.mark.cli
@pytest.mark.parametrize("name", ["codex", "CODEX", "claude-code"])
def test_qwen_code_starts_no_other_cli_as_its_sub_agent(place, mock_llm, name):
    scoped(place, "qwen", mock_llm, "permissions: edits")
    ran = place.folder / "ran"
    for program in ("codex", "claude-agent-acp", "claude"):
        place.program(program, f": > {ran}")
    call = json.dumps({"description": "x", "prompt": "do it", "subagent_type": name})
    (result,) = handoff(place, "real-qwen", f"MOCK:tool agent {call};result")["results"]
    assert (ran.exists(), "permission rules" in result["answer"]) == (False, True), result


@pytest.mark.tmux
@pytest.mark.cli
def test_opencode_edits_its_own_folder_of_a_repository_alone(place, mock_llm):
    scoped(place, "opencode", mock_llm, "permissions: edits")
    subprocess.run(["git", "init", "-q"], cwd=place.work, env=place.env, check=True)
    own = place.work / "packages" / "a"
    own.mkdir(parents=True)

    def write(path):
        return f"tool write {json.dumps({'filePath': str(path), 'content': 'x'})}"

    task = f"MOCK:{write(own / 'in')};{write(place.work / 'Makefile')};say went on"
    found = handoff(place, "real-opencode", task, "--cwd", str(own), code=6)
    assert "Makefile" in found["asking"][0]["question"]["text"]
    assert (own / "in").exists()
    session = found["asking"][0]["session"]
    place.ok("answer", session, "no")
    assert json.loads(place.run("wait", "--json").stdout)["results"][0]["answer"] == "went on"
    assert not (place.work / "Makefile").exists()


@pytest.mark.tmux
@pytest.mark.cli
def test_qwen_code_and_gemini_cli_fetch_nothing_unasked_and_publish_nothing(place, mock_llm):
    asked = []

    class Site(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Site) as site:
        Thread(target=site.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{site.server_port}/secret"
        (place.work / "page.html").write_text("<p>hello</p>\n")
        page = json.dumps({"file_path": str(place.work / "page.html"), "title": "x"})
        fetch = json.dumps({"url": url, "prompt": f"read {url}"})
        for cli in ("qwen", "gemini"):
            scoped(place, cli, mock_llm, "permissions: edits")
            calls = f"MOCK:tool web_fetch {fetch};tool artifact {page};say went on"
            assert handoff(place, f"real-{cli}", calls)["results"][0]["answer"] == "went on"
        site.shutdown()
    assert (asked, [*place.user.rglob("index.html")]) == ([], [])
