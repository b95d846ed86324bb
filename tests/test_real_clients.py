"""The real Claude Code, Codex and Copilot as supervisors: a worker's permission is shown to the
person in the CLI's own form. Against a mock model API on loopback, as in test_real_clis.py."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from conftest import CAO, ROOT, until
from test_elicitation import approvals
from test_mcp_official import BRIDGE, lines
from test_real_clis import install

pytestmark = [pytest.mark.tmux, pytest.mark.cli]

CLAUDE = {
    "ANTHROPIC_BASE_URL": "http://127.0.0.1:{port}",
    "ANTHROPIC_AUTH_TOKEN": "dummy",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "CLAUDE_CODE_SANDBOXED": "1",
    "DISABLE_TELEMETRY": "1",
    "IS_SANDBOX": "1",
}
CODEX = """
model = "mock-model"
model_provider = "mock"
check_for_update_on_startup = false
[model_providers.mock]
name = "mock"
base_url = "http://127.0.0.1:{port}/v1"
env_key = "MOCK_KEY"
wire_api = "responses"
[projects."{work}"]
trust_level = "trusted"
[mcp_servers.cao]
command = {command}
args = {args}
default_tools_approval_mode = "approve"
[mcp_servers.cao.env]
{env}
"""
COPILOT = {
    "COPILOT_OFFLINE": "true",
    "COPILOT_PROVIDER_BASE_URL": "http://127.0.0.1:{port}/v1",
    "COPILOT_PROVIDER_API_KEY": "dummy",
    "COPILOT_MODEL": "mock-model",
}
# What the README says to hand to `demo`, to see a form.
EXAMPLE = re.search(r"`(demo: permit make it[|]Yes[|]No)`", (ROOT / "README.md").read_text())[1]
READY = {"claude": r"^❯", "codex": r"^› Ask", "copilot": r"^❯"}  # its input line
KEYS = {  # of a form with one field, the options of which are "I will look", yes, no
    "claude": {
        "yes": "Right Down Enter Enter", "no": "Right Down Down Enter Enter",
        "look": "Right Enter Enter", "decline": "Down Right Enter", "cancel": "Escape",
    },
    "codex": {"yes": "2", "no": "3", "look": "1", "cancel": "Escape"},
    "copilot": {
        "yes": "Down Enter", "no": "Down Down Enter", "look": "Enter", "decline": "C-d",
        "cancel": "Escape",
    },
}  # fmt: skip


class Supervisor:
    """A real CLI in a terminal, with cao as its MCP server, as a person would start it."""

    def __init__(self, place, cli: str, port: int, *more: str, size=(80, 40)) -> None:
        self.place, self.cli, self.socket, self.turns = place, cli, f"person-{cli}", 0
        argv, self.env = command(place, cli, port, *more)
        width, height = map(str, size)
        self.tmux("-f", "/dev/null", "new-session", "-d", "-s", "w", "-x", width, "-y", height,
                  "-c", str(place.work), "--", *argv)  # fmt: skip
        self.sees(READY[cli])
        # A prompt before it has the tools would find none.
        until(lambda: self.wire("server", lambda m: "tools" in m.get("result", {})))

    def wire(self, side: str, wanted) -> list:
        """Return the messages that the server or the client has sent, those that are wanted."""
        log = self.place.folder / "tap.jsonl"
        return [m for m in lines(log, side) if wanted(m)] if log.exists() else []

    def tmux(self, *args) -> str:
        argv = ["tmux", "-u", "-L", self.socket, *args]
        done = subprocess.run(argv, check=False, capture_output=True, text=True, env=self.env)
        return done.stdout

    def screen(self) -> str:
        return self.tmux("capture-pane", "-p", "-t", "w")

    def sees(self, pattern: str, timeout_s=60.0) -> str:
        """Wait until a regex is on the screen, and return the screen."""
        return until(self.screen, lambda s: bool(re.search(pattern, s, re.M)), timeout_s)

    def type(self, keys: str) -> None:
        """Press keys in the form, each again until it has moved the mark or ended the form."""
        for key in keys.split():
            before = until(self.mark)  # the whole form is drawn
            while self.mark() == before:
                self.tmux("send-keys", "-t", "w", key)
                try:
                    until(self.mark, lambda now, before=before: now != before, 10.0)
                except AssertionError:  # Codex takes none in the first moments of a form
                    continue

    def mark(self) -> str:
        """Return the lines of the form with a mark, "" where there is no form."""
        return "\n".join(re.findall(r"[❯›].*", self.shown()))

    def shown(self) -> str:
        """Return the form on the screen."""
        _, mark, form = self.screen().rpartition("asks: Bash")
        return form if mark else ""

    def ask(self, tool: str, **arguments) -> None:
        """Have the model call a tool of cao's, and say that its turn is over."""
        self.turns += 1
        prompt = f"MOCK:tool {tool} {json.dumps(arguments)};repeat 2 over-{self.turns}"
        self.tmux("send-keys", "-t", "w", "-l", prompt)
        self.sees(rf"over-{self.turns}")  # all of it is typed
        self.tmux("send-keys", "-t", "w", "Enter")

    def is_over(self) -> None:
        """Wait until the turn is over: the model has said so in two lines."""
        self.sees(rf"over-{self.turns}\W*\n\W*over-{self.turns}\W*$")

    def hand_off(self, command: str) -> None:
        self.ask("handoff", target="demo", task=EXAMPLE.replace("make it", command))

    def form(self, command: str) -> str:
        """Wait for the form, and return the session that asks in it."""
        screen = self.sees(rf"cao: (\S+) asks: Bash: {command}")
        return re.search(r"cao: (\S+) asks:", screen)[1]

    def has_no_form(self) -> None:
        until(self.shown, "")


def command(place, cli: str, port: int, *more: str) -> tuple:
    """Return argv and environment of a CLI that has cao as its MCP server."""
    install(place, cli, port)
    server = [*BRIDGE, "--log", str(place.folder / "tap.jsonl"), "--", *CAO, "mcp"]
    entry = {"command": server[0], "args": server[1:]}
    entry["env"] = {key: place.env[key] for key in ("CAO_HOME", "TMUX_TMPDIR", "PATH")}
    config = place.folder / "mcp.json"
    env = {**place.env, "SHELL": "/bin/sh", "TERM": "xterm-256color", "MOCK_KEY": "dummy"}
    if cli == "claude":
        argv = ["--mcp-config", str(config), "--strict-mcp-config", "--allowedTools=mcp__cao"]
        env.update({key: value.format(port=port) for key, value in CLAUDE.items()})
    elif cli == "codex":
        (place.user / ".codex").mkdir(exist_ok=True)
        given = "\n".join(f"{key} = {json.dumps(value)}" for key, value in entry["env"].items())
        texts = {key: json.dumps(entry[key]) for key in ("command", "args")}
        text = CODEX.format(port=port, work=place.work, **texts, env=given)
        (place.user / ".codex" / "config.toml").write_text(text)
        argv = [] if "exec" in more else ["--no-daemon"]
    else:
        entry.update(type="local", tools=["*"])
        argv = ["--no-auto-update", "--additional-mcp-config", f"@{config}", "--allow-tool=cao"]
        env.update({key: value.format(port=port) for key, value in COPILOT.items()})
        (place.user / ".copilot").mkdir(exist_ok=True)
        trusted = {"trusted_folders": [str(place.work)]}
        (place.user / ".copilot" / "config.json").write_text(json.dumps(trusted))
    config.write_text(json.dumps({"mcpServers": {"cao": entry}}))
    return [cli, *argv, *more], env


@pytest.fixture(params=list(KEYS))
def supervisor(request, place, mock_llm):
    made = Supervisor(place, request.param, mock_llm.port)
    yield made
    made.tmux("kill-server")


def test_a_person_answers_in_the_form_of_the_cli_that_supervises(place, supervisor):
    one, keys = supervisor, KEYS[supervisor.cli]

    for number, said in enumerate(("yes", "no"), 1):
        one.hand_off(f"make {said}")
        session = one.form(f"make {said}")
        one.type(keys[said])
        one.is_over()
        assert [(a["session"], a["by"], a["answer"]) for a in approvals(place)[-1:]] == [
            (session, "person", said)
        ]
        assert len(approvals(place)) == number
        one.has_no_form()

    for way in ("look", "decline", "cancel"):  # nothing is answered
        if way in keys:
            one.hand_off(f"make {way} {'x' * 80} {'y' * 80} z")  # as long as may be
            session = one.form(f"make {way}")
            (form, *_) = one.wire("server", lambda m: m.get("method") == "elicitation/create")[::-1]
            whole = form["params"]["message"].split("\n")
            assert len(whole) == 3
            until(lambda whole=whole: [line for line in whole if line not in one.screen()], [])
            one.type(keys[way])
            one.is_over()
            assert place.state(session)["state"] == "asking"
            place.ok("stop", session)
    assert len(approvals(place)) == 2

    one.hand_off("make elsewhere")
    session = one.form("make elsewhere")
    place.ok("answer", session, "yes")
    one.is_over()
    one.has_no_form()

    given = place.ok("assign", "demo", "demo: permit make late|Yes|No").strip()
    place.until_state(given.partition(".")[0], "asking")
    one.ask("wait", tasks=[given], timeout_s=4)  # as at the client's ceiling
    session = one.form("make late")
    one.is_over()
    one.has_no_form()
    assert place.state(session)["state"] == "asking"
    place.ok("stop", session)

    long = "echo " + "x" * 300 + " ; rm -rf precious"
    one.hand_off(long)
    session = one.form("echo xxx")
    form = one.screen()
    assert "…" in form
    assert not re.search(r"^\W*(\d\. )?yes\b", form, re.M)
    one.type(keys["look"])
    one.is_over()
    assert place.state(session)["state"] == "asking"
    assert [a["answer"] for a in approvals(place)] == ["yes", "no", "yes"]


HEADLESS = {"claude": ("-p",), "codex": ("exec", "--skip-git-repo-check"), "copilot": ("-p",)}


@pytest.mark.parametrize("cli", list(HEADLESS))
def test_a_cli_without_a_person_answers_nothing(place, mock_llm, cli):
    argv, env = command(place, cli, mock_llm.port, *HEADLESS[cli])
    given = json.dumps({"target": "demo", "task": "demo: permit make it|Yes|No"})
    done = subprocess.run(
        [*argv, f"MOCK:tool handoff {given};result"],
        check=False, capture_output=True, text=True, env=env, cwd=place.work, timeout=120,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert '"outcome":"asking"' in done.stdout.replace("\n", ""), (done.stdout, done.stderr)
    assert approvals(place) == []


def test_a_codex_that_declines_at_once_answers_nothing(place, mock_llm):
    one = Supervisor(place, "codex", mock_llm.port, "-a", "never")
    try:
        one.hand_off("make it")
        one.is_over()
    finally:
        one.tmux("kill-server")
    assert one.wire("server", lambda m: m.get("method") == "elicitation/create")
    assert one.wire("client", lambda m: m.get("result", {}).get("action") == "decline")
    assert approvals(place) == []
    assert [place.state(name)["state"] for name in place.live()] == ["asking"]
