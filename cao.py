#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""cao: one AI coding agent (the supervisor) hands work to others (the workers).

Each worker is a real coding CLI in a tmux session of its own. No server, no port, no
database: every session is looked after by a process of its own, and all that matters is
a file. `cao mcp` serves any MCP client on stdio; the same verbs are shell commands.

    any MCP client         cao mcp               one tmux session per agent (tmux -L cao)
    Claude Desktop,  stdio ┌───────┐   files    ┌────────┐ child, same tty ┌────────────┐
    Cursor, Claude  ◄─────►│  cao  │◄──────────►│ runner │◄───────────────►│ claude,    │
    Code, a worker …       └───────┘  + wake    └────────┘   hooks, keys   │ codex, …   │
                               ▲                    ▲                      └─────┬──────┘
    a person, CI, cron: cao handoff …               └───── cao hook <folder> ◄───┘

A handoff, from the call to the answer: McpServer reads the line -> a tool row calls
Orchestrator.assign -> Store.give puts the task into the worker's inbox -> the worker's Runner
types it -> the CLI's hooks become events -> the Runner writes the result -> the supervisor's
Orchestrator.await_tasks takes it -> once the line with it is written, it is off the books.

What is unusual here: a session is an actor (only its runner types, or writes its state);
the rename of a file is every commit; the kernel's release of a lock is how a death is
known; and unknown is never promoted to idle, done or dead.

Where to look for
    a lost or doubled result   room 7, the ledger (a table at its head), and Claim
    a lost message             room 9, the steps of a delivery (a table at its head); one that
                               a `wait` tells: room 8, Orchestrator._take_letters
    a turn that does not end   room 9, a table at its head, "what the CLI says" and "looking"
      or a task, after it      room 9, "a turn's and a task's end"; cao why SESSION
    a session that is queued   room 8, the queue (a table above Orchestrator), and `place`
      or a task not yet typed  room 9, Runner._deliver_next and _obstacle; cao why SESSION
    a wrong permission         room 5, "what they ask"; room 8, Orchestrator.answer, Asking and
                               read_answer; room 9, "what it asks" and "answers"; room 13, Form
    a check nobody allowed     room 8, Orchestrator._check_command
    a worker elsewhere         room 9, "workers on another machine" (a table at its head)
    a schedule                 room 10 (a table at its head); Schedule.view and stale_lines
    a new CLI                  room 5, a row and its functions

Contents (a room uses only the rooms above it; rooms 1-5 are pure):
     1. Constants       6. Processes       11. Views
     2. Errors          7. Store           12. Verbs
     3. Records         8. Orchestrator    13. McpServer
     4. Text            9. Runner          14. CLI
     5. Providers      10. Schedule
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import select
import signal
import stat
import sys
import time
from functools import lru_cache, partial
from operator import itemgetter

TYPE_CHECKING = False  # only a checker needs typing: it takes a sixth of our start
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable, Iterator, NamedTuple, NoReturn, Sequence, TypeVar

    R = TypeVar("R")  # one of our records
else:

    class _Records(type):
        """Makes a record of a class body, as typing.NamedTuple does. That takes ten times as
        long: a tenth of each start, for two dozen of them."""

        def __new__(cls, name: str, bases: tuple[Any, ...], body: dict[str, Any]) -> Any:
            fields = tuple(body.get("__annotations__", ()))
            body["_field_defaults"] = {field: body[field] for field in fields if field in body}
            body.update((field, property(itemgetter(n))) for n, field in enumerate(fields))
            body.update(_fields=fields, __slots__=())
            return super().__new__(cls, name, bases or (tuple,), body)

    class NamedTuple(metaclass=_Records):
        """The base of our records: tuples whose places have names."""

        def __new__(cls, *values: Any, **named: Any) -> Any:
            rest, known = cls._fields[len(values) :], {**cls._field_defaults, **named}
            wrong = [name for name in rest if name not in known]
            wrong += [name for name in named if name not in rest]
            if wrong or len(values) > len(cls._fields):
                raise TypeError(f"{cls.__name__} is given wrongly: {wrong or len(values)}")
            return tuple.__new__(cls, (*values, *[known[name] for name in rest]))

        def _asdict(self) -> dict[str, Any]:
            return dict(zip(self._fields, self))

        def _replace(self, **changed: Any) -> Any:
            return type(self)(**{**self._asdict(), **changed})


# ==== 1. Constants ====================================================================

VERSION = "0.1.0"
FORMAT = 2  # of the runtime directory; a session of another format is refused
TMUX_MINIMUM = (3, 2)
PANE_COLUMNS, PANE_LINES = 200, 50  # large: a small viewer does not reflow a worker
TMUX_CONF = """\
set -g history-limit 50000
set -g default-terminal tmux-256color
set -s escape-time 10
set -g mouse on
"""
COUNTED = ("working", "asking", "idle")
# tmux counts: each runner keeps its session's state in the option @cao.
TMUX_COUNTS = "  ".join(f"#{{n;S:#{{?#{{==:#{{@cao}},{state}}},x,}}}} {state}" for state in COUNTED)
# Where one asks: which, and then the counts only where there is room for both.
_ASKING = "S:#{?#{==:#{@cao},asking},#{session_name} ,}"
_WIDE_COUNTS = f"#{{?#{{e|>:#{{client_width}},119}},{TMUX_COUNTS}  ,}}"
TMUX_STATES = (
    f"#{{?#{{{_ASKING}}},{_WIDE_COUNTS}#{{=/50/…;{_ASKING}}}asks: cao answer,{TMUX_COUNTS}}}"
)
# What its session asks, in the option @cao-asks, as wide as the client has room for it.
TMUX_ASKS = (
    "#{=/#{e|-:#{client_width},#{e|+:#{n:session_name},#{?window_bigger,45,20}}}/…:@cao-asks}"
)
TMUX_BIGGER = "#{?window_bigger,#{prefix} S-Up/S-Down scrolls  ,}"
# Where a program hides its cursor, tmux shows a small terminal the window's top. This shows the
# line of the cursor, and what stands above it. A number of lines below 0 would be a flag.
_BELOW = "#{e|-:#{cursor_y},#{e|-:#{client_height},5}}"
_PAN = f"refresh-client -c; refresh-client -D #{{?#{{e|>:{_BELOW},0}},{_BELOW},0}}"
TMUX_PAN = f"{{ if -F '#{{cursor_flag}}' '' {{ run-shell -C '{_PAN}' }} }}"
# After the user's own file (CAO_TMUX_CONF): what it must not say. A global window-size
# crashes tmux 3.3a at new-session; nothing could bring back what C-z suspends. The hook sets
# any option at all, for then tmux draws its status lines anew: one session less to count.
TMUX_GUARDS = f"""\
set -g update-environment ""
set -g remain-on-exit off
set -g destroy-unattached off
set -s exit-unattached off
set -gu window-size
bind C-z display-message "#{{prefix}} d leaves"
set-hook -ga session-closed "set -g @cao-closed 1"
set -g status-left "#{{session_name}}  #{{prefix}} d leaves  {TMUX_BIGGER}{TMUX_ASKS}"
set -g status-left-length 1000
set -g window-status-current-format ""
set -g status-right "#{{?@cao-asks,,{TMUX_STATES}}}"
set -g status-right-length 100
set-hook -ga client-attached {TMUX_PAN}
set-hook -ga client-resized {TMUX_PAN}
"""

# The names of our MCP tools, which no agent needs to ask for.
OWN_TOOLS = (
    "handoff assign send_message wait list_sessions read_session answer stop_session"
).split()

MAX_SESSIONS = 16  # that have a slot; CAO_MAX_SESSIONS
MAX_QUEUED = 64  # sessions that wait for one
WAITS = "waits until a session ends: place {} in the queue"
MAX_DEPTH = 3  # a worker of a worker of a worker
MAX_WAITING = 100  # messages in one inbox; CAO_MAX_WAITING
MAX_MESSAGE_BYTES = 1 << 20
STARTING_S = 10.0  # so long may a session be without a runner before it is lost
SCREEN_S = 3.0  # a screen without an input line that does not change so long asks something
QUESTION_LINES = 20  # of what a program without hooks has printed, that may ask something
UNSEEN_LOOKS = 2  # a question's dialog, or its going, may be missed by so many looks
SHELL_S = 600.0  # so long a shell that runs on keeps a task open
STILL_S = 8.0  # a sign of work that has not moved for so long is none
UNSEEN_S = 2.0  # a turn's end without an answer is believed after this
REPORT_S = 5.0  # a CLI begins a turn so soon after what it had in the background has ended
CLEAR_LINE = "C-u"  # the key that empties the input line of each CLI
SUBMIT_S = 3.0  # a key had no effect so long after it: look, and press it once more
TOOLS_S = 10.0  # at most: a first turn waits for the CLI to ask our server for its tools
NEVER_STARTED_S = 120.0  # no turn so long after the first prompt: it never started
ANSWER_S = 20.0  # a hook, or the runner's keys, may take so long to hand an answer over
UNPOKED_S = 10.0  # ... and looks so often by itself: a runner without descriptors pokes nobody
STOP_S = 8.0  # a runner that has not ended its session by then loses its pane
DOCTOR_S = 60.0  # at most: a CLI says its version, on a busy machine
LIVE_S = 180.0  # for one turn of `cao doctor --live`
SETTLE_S = 0.3  # a turn's end without a second sign is believed after this
QUIET_S = 1.0  # a prompt with output behind it is believed when nothing more came for so long,
CHATTY_S = 5.0  # ... and after this though a job in the background goes on printing
UNTOLD_S = 5.0  # a turn that we interrupted, of which nothing told the end: the screen decides
PERSON_S = 5.0  # a person who typed so recently is left alone
TYPING_S = 2.0  # what a person types is for what was on the screen: a popup waits for a pause
INTERRUPTED_S = 120.0  # a person's Esc becomes `interrupted` after this; CAO_INTERRUPTED_S
IDLE_CLOSE_S = 600.0  # an idle worker closes itself; CAO_IDLE_CLOSE_S
HOOK_END_S = 5.0  # a program, or git's hook, that does not end by SIGTERM is killed after this
GIT_S = 120.0  # for git in a runner and for a new worktree; a person's merge has no limit
SPARE_FILES = 16  # that a process can still open, whatever it has locked in order to tell it
LOCKED_S = 2.0  # a wait for a lock says after this what it waits for
LEFT_OPEN_S = 0.2  # for so long after a program's end we read what others print on its pipes
PIPE_BYTES = 1 << 20  # no pipe holds more: 16 pages, of 64 KiB on some machines
LOOK_S = 1.0  # at most one look a second where no event exists
TASK_TIMEOUT_S = 3600.0
CALL_CEILING_S = 45.0  # most MCP clients cut a call after 60 s; CAO_CALL_CEILING_S
CALL_CEILINGS_S = {  # by clientInfo.name, measured or documented defaults less a margin
    "claude-code": 110.0,  # moved to the background after 120 s
    "codex-mcp-client": 280.0,  # 300 s
    "gemini-cli-mcp-client": 570.0,  # 600 s
    "qwen-cli-mcp-client-cao": 570.0,
}
TOOL_TIMEOUT_S = 86400  # what we set for the tool calls of agents we launch ourselves
ASK_TIMEOUT_S = 86400  # for a hook that waits for a person
ANSWER_CHARS = 32_000  # the most of an answer in a tool's text; the file has all of it
NAMES_SHOWN = 50  # of the files, and of the commits, in a tool's result
ANSWER_CHARS_BY_CLIENT = {
    "claude-code": 400_000,  # _meta anthropic/maxResultSizeChars
    "codex-mcp-client": 10_000,  # 0.169.0 itself drops the middle of more than 12,000
}
HANDED_CHARS = 8_000  # the most that a hook prints for a model; more goes as a file
PROGRESS_S = 5.0
SCRIPT_S = 60.0  # the most a flow's script, or the command told of its failure, may take
KEEP_RUNS = 200  # of each flow
NOTIFY_S = 30.0  # the user's notify command may take so long
EXPIRES_S = 14 * 86400.0  # who does not come for a result so long is not waited for
MAX_FILE_BYTES = 256 << 20  # a larger file is none of ours
CLOSING_S = 5.0  # at most: calls in flight when the client closes our input
FORM_LINES, FORM_COLUMNS = 3, 48  # Claude Code 2.1.332 shows 3, cut 6 columns before the edge
FORM_CLIENTS = {  # whose forms a person fills in; the AGENT_SIGNS that its servers have
    "claude-code": ("CLAUDECODE", "AI_AGENT"),
    "codex-mcp-client": (),
    "copilot-cli": (),
}
ROOTS_S = 2.0  # at most: a client says which directories it has open
CANCEL_S = 2.0  # at most: a result waits for a call being cancelled, to say what it left
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,40}\Z")
TASK = re.compile(r"[a-z0-9][a-z0-9-]{0,40}\.[a-z0-9]+\Z")  # developer-7k2m.k3f9
HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:-]*\Z")  # as ssh takes it: never an option
NEAR = re.compile(r"[a-z0-9]{8}\.[a-z0-9][a-z0-9-]{0,31}\Z")  # HOME's id.SESSION
# What ssh_config(5) has for the user's own ssh is not for ours: a connection that both share would
# end with us, and would not notice that it is dead; a forwarded port can be held by one alone.
SSH_OPTIONS = (
    "-o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=5 -o ServerAliveCountMax=3"
    " -o ControlPath=none -o ClearAllForwardings=yes"
).split()
SSH_STARTS = 5  # connections that may be starting at once: sshd drops the eleventh
SSH_STARTS_S = 10.0  # one that takes longer holds up no other
FAR_START_S = 60.0  # a machine that has not started cao by then loses the connection
RETRY_S = 30.0  # at most, between two attempts to reach a host again,
IDLE_RETRY_S = 600.0  # ... and where nothing waits for it: a host may lock out who tries often
DEAF_S = 15  # a machine that reads nothing of what is written to it for so long is cut off
FAR_STOP_S = 4.0  # a session on another machine may take so long to end
REATTACHED = 10  # a runner that dies so often during a task is not started again
# A key by its name in tmux(1), KEY BINDINGS.
KEY_NAME = re.compile(
    r"([CMS]-)*([!-~]|Enter|Escape|B?Tab|B?Space|Up|Down|Left|Right|Home|End|[NP]Page|DC|F\d+)\Z",
    re.I,
)
NAME_LETTERS = "23456789abcdefghjkmnpqrstuvwxyz"  # none that look alike

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_NOT_FOUND = 0, 1, 2, 3
EXIT_TMUX, EXIT_TIMEOUT, EXIT_ASKING, EXIT_INTERRUPTED = 4, 5, 6, 130

OUTCOMES = ("done", "failed", "interrupted", "stopped", "timeout", "lost")
PERMISSIONS = ("ask", "edits", "auto", "all")
# What an agent may use, in the reference program's words, and each as an agent is told it.
TOOL_WORDS = {
    "execute_bash": "run commands but to read",
    "fs_read": "read files",
    "fs_list": "list or search files",
    "fs_write": "change files",
    "web_fetch": "use the web",
}
ROLES = {  # role -> its tools, where the profile has no allowedTools
    "supervisor": ("fs_read", "fs_list"),
    "developer": ("*",),
    "reviewer": ("fs_read", "fs_list"),
}
OWN_SETTINGS = ("claudeConfig", "codexConfig", "codexProfile")  # a CLI's, in its own words
GRANT_KEYS = ("permissions", "profiles")
ENV_KEYS = ("pass", "deny", "set")
CHECK_RETRIES = 2
CHECK_TAIL_BYTES = 1 << 16  # a check may print without end
PROFILE_KEYS = frozenset(  # ours, then those of AWS Labs' CLI Agent Orchestrator
    "name description provider role allowedTools model effort permissions permissionMode trust"
    " approve grant env mcpServers claudeConfig codexConfig codexProfile command ready busy"
    " asking answer exit keep worktree check check_retries max_tokens hosts tags capabilities"
    " skills toolsSettings toolAliases resources hooks useLegacyMcpJson tools prompt".split()
)
# What a worker gets of its caller's environment without a word in its profile.
ENV_DEFAULT = (
    "PATH HOME USER LOGNAME SHELL LANG LC_* TZ TMPDIR COLORTERM XDG_* IS_SANDBOX"
    " HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy"
    " SSL_CERT_FILE SSL_CERT_DIR NODE_EXTRA_CA_CERTS"
).split()
# Our own settings: an agent's own cao goes by them too, and takes no other from its environment.
PASSED_ON = (
    "TMUX_TMPDIR CAO_NOTIFY CAO_PROVIDER CAO_MAX_SESSIONS CAO_MAX_WAITING"
    " CAO_IDLE_CLOSE_S CAO_INTERRUPTED_S CAO_SSH"
).split()
# A shell with one of these belongs to an agent. Each CLI sets its own for its model's commands.
# Those with a version were measured. The last four are named by Cline's page on disabling terminal
# pagers, VS Code's pull request 316267 (since June 2026 it sets AI_AGENT, too), Auggie's page on
# environment variables, and firebase-tools' pull request 10457. A person's shell that a CLI opens
# (`!`) has them, too.
AGENT_SIGNS = {
    "CLAUDECODE": "Claude Code 2.1.332",
    "AI_AGENT": "Claude Code 2.1.332",
    "CODEX_THREAD_ID": "Codex 0.171.0",
    "CODEX_SESSION_ID": "Codex 0.171.0",
    "CODEX_SANDBOX": "Codex on macOS, in its sandbox",
    "GEMINI_CLI": "Gemini CLI 0.61.0",
    "QWEN_CODE": "Qwen Code 0.24.4",
    "COPILOT_CLI": "Copilot CLI 1.0.102",
    "OPENCODE": "OpenCode 1.18.33",
    "AGENT": "OpenCode 1.18.33",
    "PI_CODING_AGENT": "pi 0.73.1",
    "CURSOR_AGENT": "Cursor",
    "CLINE_ACTIVE": "Cline",
    "COPILOT_AGENT": "Copilot in VS Code",
    "AUGMENT_AGENT": "Auggie",
    "ANTIGRAVITY_AGENT": "Antigravity",
}
AGENT_PROCESS = "kimi-code"  # Kimi Code 2.1.0 sets nothing, but names its process so
# GUI clients have a poor PATH; these are looked through after it.
USUAL_PLACES = (
    "/opt/homebrew/bin /usr/local/bin ~/.local/bin ~/.npm-global/bin ~/.npm/bin ~/.bun/bin"
    " ~/.cargo/bin /usr/bin /bin"
).split()

# ==== 2. Errors =======================================================================


class CaoError(Exception):
    """Something a person or an agent can act on.

    what: what happened. fix: what to try, "" where nobody knows. exit_code: a verb's exit status.
    """

    exit_code = EXIT_FAILED

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(what)
        self.what, self.fix = what, fix

    def __str__(self) -> str:
        return f"{self.what}\ntry: {self.fix}" if self.fix else self.what


class UsageError(CaoError):
    """The caller's words are wrong."""

    exit_code = EXIT_USAGE


class NotFoundError(CaoError):
    """A target, task or profile that is not there."""

    exit_code = EXIT_NOT_FOUND


class NotAllowedError(UsageError):
    """What a person has to allow first, by `cao allow`."""


class TmuxError(CaoError):
    """tmux is missing, too old, or refused. Where tmux refused, `fix` is a word for the reason,
    as Tmux.run gives it; callers compare it."""

    exit_code = EXIT_TMUX


# ==== 3. Records ======================================================================


class Profile(NamedTuple):
    """Who an agent is; `settings` are all keys of the file's head, as parsed."""

    name: str
    source: str  # the file, or "built in"
    provider: str
    prompt: str  # the body: the system prompt
    description: str = ""
    role: str = "developer"
    model: str = ""
    effort: str = ""
    permissions: str = "ask"
    trust: bool = False  # the CLI's folder-trust dialog may be answered for the user
    approve: str = ""  # "supervisor": it may answer permission questions
    keep: bool = False
    settings: dict[str, Any] = {}  # noqa: RUF012 - never written to
    unknown: tuple[str, ...] = ()  # keys we do not know: kept, named by `cao profiles`
    tools: tuple[str, ...] = tuple(TOOL_WORDS)  # those of TOOL_WORDS that it may use
    clipped: tuple[str, ...] = ()  # what the grants of those above it took away, in words


class Session(NamedTuple):
    """session.json: who a session is. Written once, when its folder is made."""

    name: str
    kind: str  # "agent", or "client": a supervisor that is not in tmux
    profile: str = ""
    provider: str = ""
    cwd: str = ""
    supervisor: str = ""
    depth: int = 0
    launched_at: float = 0.0  # epoch seconds
    keep: bool = False
    approve: str = ""
    idle_close_s: float = IDLE_CLOSE_S
    interrupted_s: float = INTERRUPTED_S
    conversation: str = ""  # the id we gave the CLI, if it takes one
    worktree: str = ""  # the branch, when the session has a git worktree of its own
    origin: str = ""  # ... and the directory it was made from
    host: str = ""  # the other machine where it works; cwd is a directory there
    version: str = VERSION
    format: int = FORMAT


class Message(NamedTuple):
    """One letter in an inbox."""

    id: str  # sorts by time
    kind: str  # task, message or notice; in a runner's memory also result
    sender: str
    to: str
    text: str
    sent_at: float = 0.0
    task: str = ""  # the task's name, for kind task (and result)
    timeout_s: float = TASK_TIMEOUT_S
    check: str = ""  # command line of an acceptance check
    check_retries: int = CHECK_RETRIES
    clock: float = 0.0  # of a task: sent_at by time.monotonic(), which nobody sets
    max_tokens: int = 0  # of input and output; 0: as many as it takes


class Option(NamedTuple):
    """One way to answer a question."""

    key: str  # what `answer` takes: "yes", or "1"
    text: str


class Question(NamedTuple):
    """What an agent asks, as data."""

    id: str
    kind: str  # permission, question, screen, interrupted
    text: str  # all of what is asked
    options: tuple[Option, ...] = ()
    asked_at: float = 0.0
    # How it is answered: "hook", "keys" (of its dialog), "typed"; "": by a person, in its terminal
    where: str = ""
    agent: str = ""  # the sub-agent that asks
    lines: int = 1  # its answer in words has a line for each of several questions


class Result(NamedTuple):
    """results/<task>.json: how a task ended. Every task gets exactly one."""

    task: str
    session: str
    outcome: str  # one of OUTCOMES
    answer: str = ""
    source: str = ""  # of the answer: hook, transcript, status_file, screen, …
    reason: str = ""  # for all but done: api_error, rate_limit, exited, never_started, …
    detail: str = ""  # the reason in the CLI's own words
    turns: tuple[str, ...] = ()  # the last text of every earlier turn of the task
    seconds: float = 0.0
    bytes: int = 0  # of the answer, in UTF-8
    exit_status: int | None = None  # of the CLI; -9: killed by signal 9
    retry_at: str = ""  # when a rate limit lifts, where the CLI says so
    exact: str = ""  # what reached the CLI: "exact", or the first difference
    screen: str = ""  # the last screen, when the task was not done
    background: tuple[str, ...] = ()  # shells that were still running
    check: dict[str, Any] | None = None  # command, exit_status, tail, tries
    worktree: dict[str, Any] | None = None  # branch, commits, files, diffstat, dirty
    notes: tuple[str, ...] = ()
    ended_at: float = 0.0
    told_at: float = 0.0  # when its owner was told; 0: not yet
    host: str = ""  # the machine it was done on, if not this one
    usage: dict[str, int] | None = None  # tokens: input (uncached), cached, output; None: unknown


class Event(NamedTuple):
    """What a CLI said, in our words: started, submitted (a prompt), asked, said, leaving; ended,
    failed or interrupted (a turn), or resumed (a turn whose end a hook of the user's blocked)."""

    kind: str
    text: str = ""  # the prompt, the answer, the failure's words, the question
    # for failed: api_error, rate_limit, auth, …; for ended: "", or "cut_off" by a limit of tokens
    reason: str = ""
    source: str = "hook"
    conversation: str = ""
    transcript: str = ""
    retry_at: str = ""
    # What still ran in the background when the turn ended: its id -> "KIND NAME"
    background: dict[str, str] = {}  # noqa: RUF012 - never written to
    earlier: tuple[str, ...] = ()  # what it had said at an end before, since the prompt
    # A hook of the user's has blocked this end, or may: the turn goes on. (The reason "blocked" is
    # another thing: a hook refused.)
    blocking: bool = False


class Launch(NamedTuple):
    """All that a provider's row needs to say how its CLI is started."""

    name: str
    folder: str  # the session's launch/ folder
    cwd: str
    profile: Profile
    system: str  # the system prompt, whole
    hook: tuple[str, ...]  # argv that takes a hook's JSON on stdin
    mcp: tuple[str, ...]  # argv of cao's own MCP server
    mcp_env: dict[str, str]
    conversation: str  # a fresh UUID
    resume: str = ""  # the id of the conversation to go on with
    prompt: str = ""  # the first prompt, if it goes by argv
    umask: int = 0o022  # of whoever started the session
    # These are given only where the files of launch/ are made; a runner has the defaults.
    own: dict[str, str] = {}  # noqa: RUF012 - Provider.own_files of the user, as text
    inside: str = "."  # cwd from the top of its repository's working tree (find_repository)
    env: dict[str, str] = {}  # noqa: RUF012 - never written to; what it gets of our environment

    @property
    def fresh(self) -> str:
        """The id of a new conversation; "" where an old one goes on."""
        return "" if self.resume else self.conversation


class Start(NamedTuple):
    """How a CLI is started: the arguments behind its program, its variables, its files."""

    argv: list[str]
    env: dict[str, str] = {}  # noqa: RUF012 - never written to; more than a worker gets anyway
    # path in launch/ -> text, or what is written there as JSON
    files: dict[str, Any] = {}  # noqa: RUF012 - never written to


class Look(NamedTuple):
    """What a look at a CLI found. state: idle, busy, asking or unknown; source: status_file,
    title, screen, or none; why: the words that were seen."""

    state: str
    source: str
    why: str = ""


# ==== 4. Text =========================================================================


def decode_given(content: bytes, source: str) -> str:
    """Return the text in bytes that a person gave, such as a task, its CRLF as LF; source names
    them in errors. Raises UsageError where they are no UTF-8: a repaired text is not the one that
    was meant."""
    try:
        return content.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{source} is not UTF-8: byte {error.start + 1} is 0x{content[error.start]:02x}",
            "convert it: iconv -f latin1 -t utf-8 (or -f utf-16, if PowerShell wrote it)",
        ) from None


def strip_controls(text: str) -> str:
    """Return text without control characters except newline and tab; CRLF becomes LF.

    Nothing that is typed may leave bracketed paste, so ESC and the C1 controls go too.
    """
    text = text.encode(errors="replace").decode()  # a lone surrogate is no text
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text)


def strip_ansi(text: str) -> str:
    """Return text without escape sequences (ECMA-48: CSI, OSC, DCS and such, short ones)."""
    csi, string = r"\[[0-?]*[ -/]*[@-~]", r"[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)"
    return re.sub(rf"\x1b(?:{csi}|{string}|[ -/]+[0-~]|.)", "", text)


# What no terminal shows: control characters but newline and tab, lone surrogates, and Unicode's
# Default_Ignorable_Code_Point, with line separators (DerivedCoreProperties.txt, 16.0).
_HIDDEN = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    r"\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0"
    r"\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
# ... but one joiner between two letters, neither ASCII, and one choice of a letter's look:
# emoji, Persian and the scripts of India are written with them.
_LETTER = rf"[^\x00-\x7f{_HIDDEN}]"
_JOINED = rf"(?<={_LETTER})(?:\ufe0f?[\u200c\u200d](?={_LETTER})|[\ufe0e\ufe0f])|\ufe0f(?=\u20e3)"


def visible(text: str) -> str:
    r"""Return text in which nothing moves a terminal's cursor, or hides.

    A letter of _HIDDEN, where _JOINED does not spare it, becomes its escape: \x1b, \u202e.
    Newlines and tabs stay.
    """

    def show(match: re.Match[str]) -> str:
        if match[1]:
            return match[1]
        return match[0].encode("unicode_escape").decode()

    return re.sub(f"({_JOINED})|[{_HIDDEN}]", show, text)


def first_difference(sent: str, got: str) -> str:
    """Return "exact", or a sentence on where got first differs from sent."""
    if sent == got:
        return "exact"
    at = 0
    while sent[at : at + 1] == got[at : at + 1]:
        at += 1
    expected, actual = sent[at : at + 20], got[at : at + 20]
    return f"differs at character {at} of {len(sent)}: sent {expected!r}, got {actual!r}"


def same_prompt(sent: str, got: str) -> bool:
    """Tell whether got, the prompt that a CLI reports, is the one we sent.

    The CLI may have changed it on its way in: only letters and digits count, in any normal form.
    Of a long prompt the first 200 of these have to stand in got, whatever is around them; a prompt
    that has 8 or fewer of them has to be all of got.
    """
    from unicodedata import normalize

    ours, other = ("".join(filter(str.isalnum, normalize("NFKC", t))) for t in (sent, got))
    if len(ours) > 8:
        return ours[:200] in other
    return ours == other


def first_fragile(text: str) -> int:
    """Return the index of the first letter that a CLI may change when it is typed, or -1.

    Such a letter is invisible, or has another normal form. Claude Code 2.1.332 composes accents
    and drops invisible letters, Gemini CLI 0.61.0 drops some of them.
    """
    from unicodedata import normalize

    for at, (letter, other) in enumerate(zip(text, normalize("NFC", visible(text)))):
        if letter != other:
            return at
    return -1


def parse_seconds(text: str) -> float:
    """Return the seconds in "90", "90s", "10m", "2h" or "14d". Raises UsageError for others."""
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d+)?)\s*([smhd]?)\s*", text)
    if not match:
        raise UsageError(f"{text!r} is not a duration", "write it like 90s, 10m, 2h or 14d")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def render_seconds(seconds: float) -> str:
    """Return a duration a person likes to read: "3.2 s", "42 s", "5 min", "2 h 10 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours} h {rest // 60} min"


def count_of(number: int, what: str) -> str:
    """Return a number of things in words: "1 commit", "2 commits"."""
    if number != 1:
        what += "s"
    return f"{number} {what}"


def render_tokens(usage: dict[str, int]) -> str:
    """Return how many tokens were used, in words; usage is a Result's."""
    return "{input:,} tokens in (+{cached:,} cached), {output:,} out".format_map(usage)


def render_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as columns two spaces apart, without trailing blanks; "" for no rows."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def nearest(word: str, known: Iterable[str], likeness: float = 0.6) -> str:
    """Return the known word that was probably meant, or ""."""
    import difflib

    return "".join(difflib.get_close_matches(word, list(known), 1, likeness))


def key_advice(key: str, known: Iterable[str]) -> str:
    """Return what to write in place of a key that a file may not have, as its name or in words: the
    known one of which it is nearly a copy; "" where it is like none, or is another program's."""
    if key in _OTHERS_KEYS:
        return _OTHERS_KEYS[key]
    return nearest(key, known, 0.8)


_OTHERS_KEYS = {  # keys of other programs' agents that only look like ours
    "disallowedTools": "role or allowedTools: they say what it may use",
    "mode": "",
}


def quote_heads(text: str) -> str:
    """Return the text of a message as it is put: no line of it looks like the head of another's
    (see WORKER_NOTE), and no control character is in it."""
    return re.sub(r"(?m)^(?=(Message|Notice) from |Result of )", "> ", strip_controls(text))


def sessions_meant(name: str, known: Iterable[str]) -> list[str]:
    """Return the sessions that a name, which is none of theirs, may mean: it has a typo before
    the random letters, or is their beginning. Random letters are never alike."""
    letters = name.rpartition("-")[2]
    return [one for one in known if (name and one.startswith(name)) or one[-5:] == f"-{letters}"]


def render_slug(text: str, most: int = 30) -> str:
    """Return text as a name: at most so many lower case letters, digits and single hyphens; ""
    where text has neither a letter nor a digit of ASCII."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:most].strip("-")


def tail_lines(text: str, most: int) -> str:
    """Return at most so many last lines of text, without the blank ones at its end."""
    lines = text.rstrip().split("\n")
    return "\n".join(lines[max(0, len(lines) - most) :])


def last_words(screen: str, most: int) -> str:
    """Return the last three lines of a screen that say something, as one line of at most so
    many characters. A line with a rule, or without a letter or digit, says nothing."""
    lines = re.sub(r"(?m)^.*[─-▟=_-]{8}.*$", "", screen).split("\n")
    lines = [line for line in lines if re.search(r"\w", line)]
    return shorten(" / ".join(lines[-3:]), most)


def parse_draft(ansi_screen: str, composer: str) -> str | None:
    """Return the text in a CLI's input line, "" where that is empty, or None where the screen
    has no such line.

    Dim text (SGR 2) is a placeholder or a suggestion, not a draft. composer is the row's regex:
    it has to match at the start of a line, and sees that line and all below it, without colours;
    its group is the text. Of several lines that match, the lowest counts.
    """
    below = ""
    for line in reversed(ansi_screen.split("\n")):
        plain = strip_ansi(line)
        if re.match(composer, f"{plain}\n{below}", re.M):
            match = re.match(composer, f"{_bright(line)}\n{below}", re.M)
            if match and match[1]:
                return match[1].strip()
            return ""
        below = f"{plain}\n{below}"
    return None


def _bright(line: str) -> str:
    """Return the text of a line without colours and without what is dim (ECMA-48, SGR).

    A single inverse letter right before dim text is left out, too: there a block cursor stands
    on the first letter of a suggestion.
    """
    bright = ""
    dim = inverse = cursor = False  # cursor: the last letter of `bright` may be one
    for part in re.split(r"(\x1b\[[0-9;]*m)", line):
        if part.startswith("\x1b["):
            # A colour, by its number or as red, green, blue, holds no codes of its own.
            codes = re.sub(r"\b[34]8;(5(;\d*)?|2(;\d*){0,3})", "1", part[2:-1])
            for code in codes.split(";"):
                if code in ("", "0", "2", "22"):
                    dim = code == "2"
                if code in ("", "0", "7", "27"):
                    inverse = code == "7"
            continue

        text = strip_ansi(part)
        if text and dim:
            if cursor:
                bright = bright[:-1]
            cursor = False
        elif text:
            bright += text
            cursor = inverse and len(text) == 1
    return bright


def is_listed(name: str, patterns: Iterable[Any]) -> bool:
    """Tell whether a list has a name; an entry that ends in * stands for every name
    that begins so."""
    listed = [str(pattern) for pattern in patterns]
    beginnings = tuple(pattern[:-1] for pattern in listed if pattern.endswith("*"))
    return name in listed or name.startswith(beginnings)


def sha256_of(content: str | bytes) -> str:
    """Return the hash of a text or of bytes, in hexadecimal."""
    import hashlib

    if isinstance(content, str):
        content = content.encode(errors="surrogatepass")
    return hashlib.sha256(content).hexdigest()


def one_line(value: Any) -> str:
    """Return a value as one printable line, uncut: printable text as it is, all else as JSON."""
    if isinstance(value, str) and value.isprintable():
        return value
    return json.dumps(value)


def _in_shell(text: str) -> str:
    """Return text as one word of a person's shell, for an error's fix."""
    import shlex

    return shlex.quote(text)


def shorten(text: str, most: int) -> str:
    """Return text on one line of at most so many characters; where it is cut, it ends in …."""
    line = " ".join(text.split())
    if len(line) > most:
        line = line[: most - 1] + "…"
    return line


def fit_columns(text: str, columns: int) -> str:
    """Return text, made visible and on one line, cut (with an …) or padded to exactly so many
    columns of a terminal."""
    text = text.replace("\n", " ")
    line, *rest = wrap_columns(text, columns)
    if rest:
        line = wrap_columns(text, columns - 1)[0] + "…"[:columns]
    return line + " " * (columns - sum(map(letter_columns, line)))


def wrap_columns(text: str, columns: int, words: bool = False) -> list[str]:
    """Return all of a text, made visible, in lines of at most so many columns of a terminal.

    Nothing is left out, and a line may end inside a word. words: it ends behind a blank where
    that is in its last third, and what goes on is indented: it is not to look like a line of ours.
    """
    lines = []
    for whole in text.split("\n"):
        line, used, indent = "", 0, ""
        if words:
            indent = " " * min(len(whole) - len(whole.lstrip(" ")) + 6, columns // 3)
        for letter in visible(whole).expandtabs():
            used += letter_columns(letter)
            if used > columns:
                end = len(line)
                if words and letter != " ":
                    end = line.rfind(" ", end * 2 // 3) + 1 or end
                lines.append(line[:end])
                line = indent + line[end:]
                used = sum(map(letter_columns, line + letter))
            line += letter
        lines.append(line)
    return lines


@lru_cache
def letter_columns(letter: str) -> int:
    """Return how many columns of a terminal a letter takes: 0, 1 or 2."""
    from unicodedata import category, east_asian_width

    if category(letter) in ("Mn", "Me", "Cf"):
        return 0
    if east_asian_width(letter) in "WF":
        return 2
    return 1


# ---- YAML: the subset that profiles and flows use ----


def parse_frontmatter(text: str, source: str) -> tuple[dict[str, Any], str]:
    """Return (settings, body) of a Markdown file that begins with a head of YAML.

    source names the file in errors. Raises CaoError for a file without a head (whoever wrote
    `role: reviewer` below a title must not get a developer), and for what parse_yaml refuses.
    """
    text = re.sub(r"\r\n?", "\n", text)
    bare = re.sub(r"\A(?:\ufeff|\s*\n)+", "", text)
    line = text.count("\n") - bare.count("\n") + 1
    match = re.match(r"---[ \t]*\n(.*?)^---[ \t]*$\n?", bare, re.S | re.M)
    if not match:
        first = shorten(bare.partition("\n")[0], 60)
        what = f"a file begins with its head, from --- to ---, not with {first!r}"
        if first == "---" and bare[0] == "-":
            what = "the head that begins here is never closed"
        raise CaoError(
            f"{source}:{line}: {what}",
            "begin it with  ---, then  key: value  lines, then  ---  and all else",
        )
    return parse_yaml(match[1], source, line + 1), bare[match.end() :].strip()


def parse_yaml(text: str, source: str, line: int = 2) -> dict[str, Any]:
    """Return the mapping in text, whose first line is number `line` of source.

    Values are read as PyYAML's safe_load reads them, with these exceptions:
    - keys, dates and times of day (`on:`, 2026-11-22, 12:30) stay text;
    - a colon in a value (`description: Use when: always`), for PyYAML an error, is text.

    What would be read differently, or is wrong, is refused with CaoError: anchors, aliases,
    merges, tags, complex keys, several documents, directives, tabs between words, a key
    twice, a pair in a list ([a: b]), and numbers that YAML 1.1 and 1.2 read differently
    (010, 1_000, 1e3).
    """
    text = re.sub(r"\r\n?|(?<![\r\n])\Z", "\n", text)
    text = re.sub(r"^\.\.\.\s*\Z", "", text, flags=re.M)  # yaml.dump may end a document so
    return _Yaml(text, source, line).document()


# Letters that no YAML has in it: controls, and those that only some readers take for a
# line's end.
_NO_TEXT = r"[^\t\n -~\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
# Text without quotes: what it may begin with, and up to where it goes on one line.
_FIRST = r"(?![-?:]\s|<< *:\s|[,\[\]{}#&*!|>'\"%@`])"
_WORDS = r"(?:[^\s:]|:(?!\s)| +(?![\s#]|:\s))+"
_VALUE = _FIRST + r"\S(?:\S| +(?![\s#]))*"  # behind a key, a colon is text
# The same in brackets.
_FIRST_IN = r"(?!-\s|<< *:[\s,\[\]{}]|[?:,\[\]{}#&*!|>'\"%@`])"
_WORDS_IN = r"(?:[^\s:,?\[\]{}]|:(?![\s,\[\]{}])| +(?![\s#,?\[\]{}]|:[\s,\[\]{}]))+"
_ESCAPES = dict(zip('0abt\tnvfre "\\/N_LP', '\0\a\b\t\t\n\v\f\r\x1b "\\/\x85\xa0\u2028\u2029'))
_ESCAPE = (
    r"[0abt\tnvfre \"\\/N_LP]|x[0-9a-fA-F]{2}|u(?![dD][89a-fA-F])[0-9a-fA-F]{4}"
    r"|U(?!0000[dD][89a-fA-F])00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{4}"
)
_LINE_ENDS = r"[ \t]*\n[ \t\n]*"
_QUOTED = rf"(?:\"(?:\\(?:{_ESCAPE}|\n)|[^\"\\])*\"|'(?:''|[^'])*')"
_KEY = rf"(?:{_QUOTED}|{_FIRST}{_WORDS}) *:(?=\s)"
_KEY_IN = rf"{_QUOTED} *:|{_FIRST_IN}{_WORDS_IN} *:(?=[\s,\[\]{{}}])"
_INT = r"[-+]?(0|[1-9][0-9]{0,99})"
_FLOAT = r"([-+]?[0-9]+\.[0-9]*|\.[0-9]+)([eE][-+][0-9]+)?"
_DOUBTFUL = (
    r"=|<<|[-+]?(0[box][0-9a-fA-F_]+|\.(?i:inf|nan)"
    r"|(?=\.?[0-9])[0-9_]*\.?[0-9_]*([eE][-+]?[0-9]+)?)"
)
_MEANINGS = {
    **dict.fromkeys("true True TRUE yes Yes YES on On ON".split(), True),
    **dict.fromkeys("false False FALSE no No NO off Off OFF".split(), False),
    **dict.fromkeys("null Null NULL ~".split()),
}
_NOT_READ = {
    "&": "an anchor",
    "*": "an alias",
    "!": "a tag",
    "%": "a directive",
    "?": "a complex key",
    "<<": "a merge",
    "---": "a second document",
    "...": "the end of a document",
    "\t": "a tab",
}


class _Yaml:
    """A tokenizer and recursive parser. Owns a text and the place up to which it is read.

    A method reads from that place and moves it past what was read; `sees` does not move it. A
    parameter `indent` is the column of the parent: what belongs to the parent is further right.
    """

    def __init__(self, text: str, source: str, line: int) -> None:
        self.text, self.source, self.line = text, source, line
        self.at = 0
        self.brackets = 0  # how many are open

    def fail(self, what: str) -> NoReturn:
        """Raise CaoError that names the line and quotes what is left of it.

        what: what is wrong there. Where it begins with a sign of _NOT_READ, that is said instead.
        """
        line = self.line + self.text.count("\n", 0, self.at)
        rest = self.text[self.at :].partition("\n")[0].strip(" ")
        for sign, name in _NOT_READ.items():
            if rest.startswith(sign):
                what = f"begins with {name}, which is not read here"
        raise CaoError(f"{self.source}:{line}: {rest!r} {what}", "write key: 'value', in quotes")

    def sees(self, pattern: str) -> str:
        """Return what comes next if it matches, else ""."""
        match = re.compile(pattern, re.A).match(self.text, self.at)
        if match:
            return match[0]
        return ""

    def take(self, pattern: str) -> str:
        """Return what comes next if it matches, and go behind it; else return ""."""
        taken = self.sees(pattern)
        self.at += len(taken)
        return taken

    def skip(self) -> int:
        """Go to the next token, over comments; return its column, -1 at the end."""
        self.take(r"(?: *(?:#.*)?\n)* *")
        if self.at == len(self.text):
            return -1
        return self.at - self.text.rfind("\n", 0, self.at) - 1

    def document(self) -> dict[str, Any]:
        """Return the mapping that the whole text is; {} where there is nothing but comments."""
        strange = re.search(rf"{_NO_TEXT}|^(?:---|\.\.\.)(?=\s)", self.text, re.M)
        if strange:
            self.at = strange.start()
            self.fail("begins with what is no text")
        column = self.skip()
        if column < 0:
            return {}
        settings = self.flow() if self.sees("{") else self.mapping(column)
        if self.skip() >= 0:
            self.fail("does not belong to what is above it")
        return settings

    def node(self, indent: int) -> Any:
        """Return the next value; None where what comes next is not further right than the parent.

        Where it is the first on its line, it may be a list or a mapping in lines of its own."""
        column = self.skip()
        if column <= indent:
            return None
        if column > 200:  # each level takes calls of ours, which Python limits
            self.fail("is nested too deep")
        if not self.text[self.at - column : self.at].strip(" -"):  # the first on its line
            if self.sees(r"-\s"):
                return self.sequence(column)
            if self.sees(_KEY):
                return self.mapping(column)
        if self.sees(r"[|>]"):
            return self.block_scalar(indent)
        return self.inline(indent)

    def sequence(self, column: int) -> list[Any]:
        """Return the list whose hyphens stand in this column."""
        items: list[Any] = []
        while self.skip() == column and self.take(r"-(?=\s)"):
            items.append(self.node(column))
        return items

    def mapping(self, column: int) -> dict[str, Any]:
        """Return the mapping whose keys stand in this column."""
        pairs: dict[str, Any] = {}
        while (here := self.skip()) == column:
            key = self.key(_KEY, pairs)
            if self.skip() == column and self.sees(r"-\s"):
                pairs[key] = self.sequence(column)  # it may stand under its key unindented
            else:
                pairs[key] = self.node(column)
        if here > column:
            self.fail(f"is indented by {here}, expected {column}")
        return pairs

    def key(self, pattern: str, pairs: dict[str, Any]) -> str:
        """Return the next key, and go behind its colon. Fails where there is none, or pairs has
        it already."""
        key = self.take(pattern)[:-1].rstrip(" ")
        if not key or "\n" in key:
            self.fail("is not 'key: value'")
        if key[0] in "\"'":
            key = _unquote(key)
        if key in pairs:
            self.fail(f"would be the second value of {key!r}")
        return key

    def inline(self, indent: int) -> Any:
        """Return a value in brackets, in quotes, or without either. Outside of brackets nothing
        but a comment may follow it on its line."""
        if self.sees(r"[\[{]"):
            value = self.flow()
        elif self.sees("[\"']"):
            raw = self.take(_QUOTED)
            if not raw:
                self.fail("has no closing quote, or an escape that is not known here")
            value = _unquote(raw)
        else:
            return self.plain(indent)
        if not self.brackets and not self.sees(r" *[#\n]"):
            self.fail("stands after the closing bracket or quote")
        return value

    def flow(self) -> Any:
        """Return the list or mapping in the brackets that open here."""
        start = self.at
        items: list[Any] = []
        pairs: dict[str, Any] = {}
        closing = {"[": "]", "{": "}"}[self.take(r"\[|{")]
        self.brackets += 1
        if self.brackets > 50:
            self.fail("is nested too deep")
        comma = ","
        while self.skip() >= 0 and self.text[self.at] != closing:
            if not comma:
                self.fail(f"stands where , or {closing} is expected")
            if closing == "]":
                items.append(self.inline(-1))
            else:
                key = self.key(_KEY_IN, pairs)
                self.skip()
                pairs[key] = None
                if not self.sees("[,}]"):
                    pairs[key] = self.inline(-1)
            self.skip()
            comma = self.take(",")
        if not self.take(rf"\{closing}"):
            self.at = start
            self.fail(f"is never closed by {closing}")
        self.brackets -= 1
        if closing == "]":
            return items
        return pairs

    def plain(self, indent: int) -> Any:
        """Return what text without quotes means. It goes on over the lines that are further
        right than the parent, up to a comment or, outside of brackets, another key."""
        first, words = _VALUE, _WORDS
        if self.brackets:
            first, words = _FIRST_IN + _WORDS_IN, _WORDS_IN
        text = self.take(first)
        if not text:
            self.fail("is no value")
        while True:
            end = self.at
            breaks = self.take(r" *\n[ \n]*")
            column = len(breaks.rpartition("\n")[2])
            if not breaks or column <= indent or not self.sees("(?!#)" + words):
                break
            if self.sees(_KEY) and not self.brackets:
                break
            text += _fold(breaks) + self.take(words)
        self.at = end
        return self.meaning(text)

    def meaning(self, word: str) -> Any:
        """Return what text without quotes, which was just read, means, as parse_yaml says: a
        bool (yes and on, too), None, a number or text. Fails where parse_yaml refuses a number that
        YAML 1.1 and 1.2 read differently, and for .inf, .nan, = and <<."""
        if word in _MEANINGS:
            return _MEANINGS[word]
        if re.fullmatch(_INT, word):
            return int(word)
        if re.fullmatch(_FLOAT, word):
            return float(word)
        if re.fullmatch(_DOUBTFUL, word):
            self.at -= len(word)
            self.fail("does not mean the same to all readers of YAML")
        return word

    def block_scalar(self, indent: int) -> str:
        """Return the text below a | (its lines stay) or > (they are joined)."""
        sign = self.take(r"[|>](?:[1-9][-+]|[-+]?[1-9]?)")
        if not self.take(r"(?: +#.*| *)\n"):
            self.fail("stands behind a block's sign")
        leading = self.sees(r"(?: *\n)* *").split("\n")
        width = max(indent + 1, *map(len, leading))
        if digit := sign.strip("|>-+"):
            width = indent + int(digit)
        lines = self.take(rf"(?: {{0,{width}}}\n| {{{width}}}.*\n)*")
        whole = re.sub(rf"(?m)^ {{0,{width}}}", "", lines)
        text = whole.rstrip("\n")
        blank = whole[len(text) :]
        if sign[0] == ">":
            # Between two lines that are not indented, a line end is a blank, and nothing
            # where blank lines follow.
            text = re.sub(r"(?m)^([^ \t\n].*)\n(?=[^ \t\n])", r"\1 ", text)
            text = re.sub(r"(?m)^([^ \t\n].*)\n(?=\n+[^ \t\n])", r"\1", text)
        if "+" in sign:
            return text + blank
        if "-" in sign or not text:
            return text
        return text + "\n"


def _unquote(raw: str) -> str:
    """Return what a text in quotes means; raw has the quotes, too."""

    def read(match: re.Match[str]) -> str:
        escape = match[1]
        if not escape:
            return _fold(match[0])
        if escape in _ESCAPES:
            return _ESCAPES[escape]
        return chr(int(escape[1:], 16))

    if raw[0] == "'":
        return re.sub(_LINE_ENDS, lambda m: _fold(m[0]), raw[1:-1].replace("''", "'"))
    return re.sub(rf"\\({_ESCAPE})|\\?{_LINE_ENDS}", read, raw[1:-1])


def _fold(breaks: str) -> str:
    """Return what the end of a line, and the blank lines after it, come to in a text: a newline
    for each blank line; without any, a blank, or nothing after a backslash."""
    blank_lines = "\n" * (breaks.count("\n") - 1)
    if not blank_lines and breaks[0] != "\\":
        return " "
    return blank_lines


# ---- JSON that others wrote: any value in it may be missing, or of another type ----


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def _parse_number(digits: str) -> float:
    number = float(digits)
    if abs(number) == float("inf"):
        raise ValueError(f"{digits:.20}… is too large")
    if digits.lstrip("-").isdigit():
        return int(digits)
    return number


def parse_json(text: str | bytes) -> Any:
    """Return the value in a JSON text. Raises ValueError also for NaN and for a number that is
    too large for a float: nothing could reckon with that, or write it down again; RecursionError
    where it is nested too deeply."""
    return json.loads(
        text, parse_constant=_refuse_constant, parse_float=_parse_number, parse_int=_parse_number
    )


def parse_object(text: str) -> dict[str, Any]:
    """Return the object in a JSON text, {} where it is none, or nested too deeply."""
    try:
        value = parse_json(text)
    except (ValueError, RecursionError):
        return {}
    if isinstance(value, dict):
        return value
    return {}


MOMENT = range(-(10**9), 10**11)  # epoch seconds that a calendar can show


def fits(value: Any, shape: Any) -> bool:
    """Tell whether a JSON value has a shape: a type (or several), a range of numbers, [the shape of
    each item], or {key: shape}; more keys than these do no harm."""
    if isinstance(shape, range):
        return isinstance(value, (int, float)) and shape.start <= value < shape.stop
    if isinstance(shape, dict) and isinstance(value, dict):
        return all(fits(value.get(key), shape[key]) for key in shape)
    if isinstance(shape, list) and isinstance(value, (list, tuple)):
        return all(fits(one, shape[0]) for one in value)
    return isinstance(shape, (type, tuple)) and isinstance(value, shape)


def fits_where_given(values: dict[str, Any], shapes: dict[str, Any]) -> bool:
    """Tell whether the values of a JSON object have their shapes, {key: shape}. One that is
    missing or null, or has no shape, passes."""
    return all(fits(values[key], shapes[key]) for key in shapes if values.get(key) is not None)


def value_at(entry: Any, keys: str) -> Any:
    """Return what stands in an entry at keys like "message.usage", None where nothing does."""
    for key in keys.split("."):
        if not isinstance(entry, dict):
            return None
        entry = entry.get(key)
    return entry


def text_at(entry: Any, keys: str) -> str:
    """Return what stands in an entry at keys, as text; "" where nothing, false or 0 does."""
    return str(value_at(entry, keys) or "")


def objects_at(entry: Any, keys: str) -> list[dict[str, Any]]:
    """Return the objects in the list that stands in an entry at keys; none where no list does."""
    values = value_at(entry, keys)
    if not isinstance(values, list):
        return []
    return [value for value in values if isinstance(value, dict)]


# ==== 5. Providers ====================================================================
#
# One row of PROVIDERS per CLI. To add one:
#
#     def _start_mycli(launch: Launch) -> Start:  # its command line, variables and files
#         argv = [*_given({"--model": launch.profile.model}), *_mode(launch), launch.prompt]
#         hooks = _hooks(launch, "UserPromptSubmit Stop")
#         return Start(argv, {}, {"settings.json": {"hooks": hooks}})
#
#     Provider("mycli", "mycli", _start_mycli, env_pass="MYCLI_*", composer=r"^> (.*)"),
#
# Then add what else it can do (see the fields of Provider), the form in which its hooks give
# answers if it is not Claude Code's (hook_reply, hook_output), what it sets for its model's
# commands (AGENT_SIGNS), a folder of recorded screens in tests/ and a line in the README. A
# comment that tells what a CLI really does names the version it was measured on.


class Tokens(NamedTuple):
    """The keys by which a line of a CLI's transcript tells of a request and its tokens.

    "a.b" is the key b inside a. Several counts in one string are added; one with a minus is
    subtracted. A line that lacks a part of the id tells of no request.
    """

    id: str  # identifies a request, however often it is written
    at: str  # when: ISO 8601 in UTC, or milliseconds since 1970
    usage: str  # the object that has the counts:
    input: str  # without the tokens that came from a cache
    cached: str
    output: str
    # Globs of files beside the transcript: {stem} is its path without .jsonl, {dir} its folder.
    more: str = ""
    agents: str = ""  # names, with blanks between: ids of sub-agents, the {agent} of such a file


class Provider(NamedTuple):
    """How one CLI is launched, prompted, watched and ended."""

    name: str
    program: str  # "": cao.py itself, or what the profile names
    start: Callable[[Launch], Start]
    proven: str = ""  # the version that the tests run; "": we never ran it

    # ---- its files and its login ----

    # Where the user's own files of it are: in the folder that a variable names, else below HOME.
    home: tuple[str, str] = ("", "")
    # A CLI that takes our settings only from its home gets a home of its own: this folder in
    # launch/. It has links to some of the user's files (the login), and settings that are made
    # of others of them (launch.own).
    shadow: str = ""
    links: str = ""  # names, with blanks between; so are the others
    own_files: str = ""
    env_pass: str = ""  # its own settings and login, from the caller's environment
    login: str = ""  # the command that logs in
    login_signs: str = ""  # variables and ~/files: where one of them is, it is logged in
    login_status: str = ""  # its own command: exit status 0 is logged in
    resumes: bool = True  # it can continue a conversation by its id

    # ---- what an agent may do ----

    mcp: bool = True  # it takes MCP servers
    # A word of TOOL_WORDS -> how this CLI enforces it: its own names of these tools, or flags
    # that take them away. Where a word is missing, the restriction is stated but not enforced.
    tools: dict[str, str] = {}  # noqa: RUF012 - never written to
    tools_bind_shell: bool = False  # its shell cannot do what was taken away either
    # permission -> its flags, or, without a dash, what happens instead, in words
    permission_words: dict[str, str] = {}  # noqa: RUF012 - never written to
    # The words of its folder-trust dialog, and the key that trusts for this session only. It is
    # pressed under `trust: yes`, for a CLI that has no flag for it.
    trusts: tuple[str, str] = ("", "")
    # What of a folder it runs, or reads what to run from, with no question: where one of these is,
    # it is started under `trust: yes` alone.
    runs_unasked: tuple[str, ...] = ()

    # ---- what it says: events, files, its pane's title ----

    read_event: Callable[[dict[str, Any]], Event | None] | None = None  # else read_hook
    by_output: bool = False  # no events: its output wakes the runner, the screen decides
    status: str = ""  # its own state file: {home}, {folder} or {pid}
    # the first letter of its pane's title -> its state, where the title says that
    titles: dict[str, str] = {}  # noqa: RUF012 - never written to
    # What an entry of its transcript says, given the text that the agent said last: an Event
    # (`said`, or the turn's end), None where the turn goes on, ... where it does not matter.
    entry_says: Callable[[dict[str, Any], str | None], Any] | None = None
    last_kind: str = ""  # after an Event of this kind no entry counts
    # What an entry tells of work in the background, by its id: "KIND NAME" while it runs, "" once
    # it has ended. None: no transcript tells, the hook of the turn's end may.
    entry_runs: Callable[[dict[str, Any]], dict[str, str]] | None = None
    transcript: str = ""  # where that is, if no event says it: a glob, {home}, {conversation}
    tokens: Tokens | None = None  # None: it does not tell how many it uses

    # ---- what it asks ----

    # How its questions are answered: its "hook" (or plugin) waits for the answer and hands it
    # over as data; or by "keys" of its dialog. "": by a person, in its terminal.
    asks: str = ""
    always: bool = False  # ... and it takes "always": not again in this session
    shows: bool = False  # ... and a person may answer in its dialog meanwhile, unheard by us
    asks_own: bool = False  # it asks about the tools of cao too, and no setting stops that
    # Regex of its dialog, where parallel calls are asked about one after the other. Its groups are
    # all of a shell command as it is drawn, and the name of another tool.
    dialog: str = ""

    # ---- what its screen shows: regexes ----

    composer: str = ""  # the input line and those below it; its group is the draft
    normal: str = ""  # its input line where letters are commands; by "i" they are text again
    busy: str = ""  # it is still working
    retries: str = ""  # a failed request is tried again; its group is the attempt
    # How a turn ended of which nothing else tells. Its group is the reason of what failed or was
    # refused; it is unset where a person took the prompt back.
    failure: str = ""
    logged_out: str = ""  # on the first screen: it runs, but nobody is logged in

    # ---- what is typed, and what goes another way ----

    # Its model reads messages beside the result of its next tool call. A message counts as read
    # once it stands in the CLI's "transcript", or only where it does so at the "end" of a turn that
    # was not interrupted. "": its model reads none before the turn's end.
    mid_turn: str = ""
    deaf: bool = False  # after a hook of the user's refused a prompt it takes no other
    piece: tuple[int, int] = (10**9, 10**9)  # newlines and characters one paste may have
    settle_s: float = 0.0  # between the paste and Enter, where Enter is swallowed else
    typed_bytes: int = 32_000  # longer text goes as a file
    # ... in this folder in launch/. Its CLI gets that folder alone, for some write where they may
    # read: what else is in launch/ says what cao runs and what the agent may do.
    letters: str = "letters/"
    untypable: str = r"\A\s|\A[!/]|\s\Z|\\\Z"  # regex: what typing would change or run
    argv_bytes: int = 100_000  # one argument holds less than 128 KiB (Linux)
    no_prompt: str = r"\s*[!/]"  # a text that begins so is no prompt on its command line
    interrupt: tuple[str, ...] = ("Escape",)

    def tells_state(self) -> bool:
        """Tell whether the CLI says its state in a file or title, besides its events."""
        return bool(self.status or self.titles)

    def home_in(self, env: dict[str, str]) -> str:
        """Return the folder of the CLI's own files. env: the user's environment, or a session's
        with what its CLI is started with: that may have a home of its own (`shadow`)."""
        variable, below = self.home
        return env.get(variable) or f"{env.get('HOME', '')}/{below}".rstrip("/")

    def read_transcript(self, lines: Sequence[str]) -> Event | None:
        """Return how the turn in a transcript's lines ended, None where they do not say so.

        lines: what was written since that turn began; a last one that is not complete counts for
        nothing. A later entry overrules an earlier one. But a hook that stops a turn which has its
        answer (Gemini CLI 0.61.0: AfterAgent, Claude Code 2.1.332: Stop) leaves it as ended.
        """
        last: Event | None = None
        said, last_id = None, None  # type: str | None, Any
        earlier: list[str] = []
        if not self.entry_says:
            return None
        for entry in filter(None, map(parse_object, lines)):
            event = self.entry_says(entry, said)
            if event is ...:
                continue
            if event and event.reason == "blocked" and last and last.kind == "ended":
                continue
            # Gemini CLI 0.61.0 writes a message anew where it calls a tool, too.
            again = "id" in entry and entry["id"] == last_id
            if last and last.kind == "ended" and last.text not in earlier and not again:
                earlier.append(last.text)
            last, last_id, said = event, entry.get("id"), None
            if event and event.kind in ("said", "ended"):
                said = event.text
            if event and event.kind == "said":
                last = None
            if event and event.kind == self.last_kind:
                break
        if last:
            answer = last.text
            last = last._replace(
                earlier=tuple(text for text in earlier if text.strip() not in ("", answer.strip()))
            )
        return last

    def read_work(self, lines: Sequence[str]) -> dict[str, str]:
        """Return the work in the background that the same lines of a transcript tell of: id ->
        "KIND NAME", as in Event; "" where it has ended, or the CLI's hook tells whether it runs."""
        work: dict[str, str] = {}
        if self.entry_runs:
            for entry in filter(None, map(parse_object, lines)):
                work.update(self.entry_runs(entry))
        return work


def _toml(value: Any) -> str:
    """Return value as TOML, for Codex's -c."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{_toml(k)}={_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def quote_argv(argv: Iterable[str]) -> str:
    """Return argv as one POSIX shell line: hook commands are run by a shell."""
    return " ".join("'" + word.replace("'", "'\"'\"'") + "'" for word in argv)


# ---- what several of them are given ----


def _servers(launch: Launch) -> dict[str, Any]:
    """Return the profile's MCP servers and our own ("cao"), Claude-shaped.

    The reference program's own server is left out: it talks to a daemon we do not have.
    """
    servers = dict(launch.profile.settings.get("mcpServers") or {})
    servers.pop("cao-mcp-server", None)
    command, *args = launch.mcp
    servers["cao"] = {
        "command": command,
        "args": args,
        "env": launch.mcp_env,
        "timeout": TOOL_TIMEOUT_S * 1000,
        "alwaysLoad": True,  # not behind a tool search
    }
    return servers


def _given(flags: dict[str, str]) -> list[str]:
    """Return flags, each with its value; those that have none are left out."""
    return [word for flag, value in flags.items() if value for word in (flag, value)]


def _mode(launch: Launch) -> list[str]:
    """Return the flags of a session's permissions; none where the row has words for them."""
    row, mode = PROVIDERS[launch.profile.provider], effective_permissions(launch.profile)
    flags = row.permission_words[mode]
    if flags[0] != "-":
        return []
    return flags.split()


def _hooks(launch: Launch, events: str, second: int = 1) -> dict[str, dict[str, Any]]:
    """Return our hook for each of these events, as Claude-shaped settings have it.

    events: names, with blanks between. A hook that may ask a person gets ASK_TIMEOUT_S, and one
    at the end of a tool call _message_command. second: 1000 for a CLI whose timeouts are in ms.
    """
    hooks = {}
    for event in events.split():
        command, timeout_s = quote_argv(launch.hook), 30
        if event in TOOL_ENDS:
            command = _message_command(launch)
        if event in _ASKS:
            timeout_s = ASK_TIMEOUT_S
        hooks[event] = {"type": "command", "command": command, "timeout": timeout_s * second}
    return hooks


def _message_command(launch: Launch) -> str:
    """Return the command of the hook at the end of a tool call.

    A shell looks whether a message waits, and starts cao only then: of the names in an inbox,
    only a message's ends in a hyphen and four letters. The shell's $0 is the session's folder,
    its other arguments are our hook.
    """
    script = 'for m in "$0"/inbox/new/*-????; do if [ -e "$m" ]; then exec "$@"; fi; done'
    return quote_argv(("sh", "-c", script, launch.hook[-1], *launch.hook))


# With this argument a hook ends only when the CLI has asked for cao's tools. It is for a CLI that
# connects its MCP servers while its first turn runs.
_AWAIT_TOOLS = " 'await-tools'"


def _own_names(profile: Profile, words: Iterable[str]) -> list[str]:
    """Return a CLI's own names of its tools (or its flags, see Provider.tools) for some of
    TOOL_WORDS; none for a word that the row lacks."""
    tools = PROVIDERS[profile.provider].tools
    return [name for word in words for name in tools.get(word, "").split()]


# ---- what they say: hooks ----

_CLAUDE_HOOKS = (
    "SessionStart UserPromptSubmit PermissionRequest PostToolUse PostToolUseFailure Stop"
    " StopFailure SessionEnd"
)
_HOOK_KINDS = {
    "SessionStart": "started",
    "UserPromptSubmit": "submitted",
    "BeforeAgent": "submitted",  # Gemini's names
    "AfterAgent": "ended",
    "PermissionRequest": "asked",
    "Stop": "ended",
    "StopFailure": "failed",
    "Interrupt": "interrupted",
    "SessionEnd": "leaving",
    "agentSpawn": "started",
    "userPromptSubmit": "submitted",
    "stop": "ended",
}
# The events before and after a tool call; the last name of each is Gemini CLI's.
_BEFORE_TOOLS = ("PreToolUse", "BeforeTool")
TOOL_ENDS = ("PostToolUse", "PostToolUseFailure", "AfterTool")
_ASKS = ("PermissionRequest", *_BEFORE_TOOLS)  # a hook that may have to wait for a person
# The tools by which the CLIs' models ask a question of their own; that is no permission.
QUESTION_TOOLS = ("AskUserQuestion", "ask_user_question", "ask_user", "question")


def read_hook(payload: dict[str, Any]) -> Event | None:
    """Return what a Claude-shaped hook payload says, or None where it says nothing to us.

    Of `asked` the text is all that is asked, the reason is the tool's name.
    Claude Code 2.1.330 and Codex 0.169.0 send these names and fields; so do Kimi Code 2.1.0
    (its prompt in blocks; no answer), our extension for pi, and the demo. Kiro CLI 2, by its
    documents, begins the names small.
    """
    name = text_at(payload, "hook_event_name")
    kind = _HOOK_KINDS.get(name, "")
    if name in _BEFORE_TOOLS and questions_in(payload):
        kind = "asked"  # before any other tool this hook says nothing to us
    if not kind:
        return None
    if kind != "asked" and agent_of(payload):
        return None  # a sub-agent: only its questions concern us

    text = text_at(payload, "last_assistant_message")
    if not text:
        text = text_at(payload, "assistant_response")  # Kiro's
    event = Event(kind, text)
    if kind == "submitted":
        event = Event(kind, block_text(payload.get("prompt")))
    elif kind == "asked":
        event = Event(kind, render_request(payload), text_at(payload, "tool_name"))
    elif kind == "failed":
        if not text:
            text = text_at(payload, "error_message")
        event = failed_event(text, text_at(payload, "error"))
    elif kind == "ended" and text_at(payload, "stop_reason") == "length":  # of what we wrote
        event = Event(kind, text, "cut_off")

    background = {}
    for task in objects_at(payload, "background_tasks"):
        if task.get("status", "running") in ("running", "pending"):
            type_name, task_id = text_at(task, "type") or "task", text_at(task, "id")
            label = f"{type_name} {text_at(task, 'description') or task_id}".strip()
            background[task_id or label] = label
    conversation, transcript = text_at(payload, "session_id"), text_at(payload, "transcript_path")
    if agent_of(payload):  # Codex 0.171.0 has the sub-agent's own
        conversation = transcript = ""
    return event._replace(
        source=f"hook:{name}",
        conversation=conversation,
        transcript=transcript,
        background=background,
        earlier=tuple(text_at(said, "text") for said in objects_at(payload, "earlier")),
    )


def has_agents(background: dict[str, str]) -> bool:
    """Tell whether sub-agents are among what runs in the background (as in Event)."""
    # A monitor of Claude Code 2.1.332 is a shell command whose lines wake the agent.
    kinds = (label.partition(" ")[0] for label in background.values())
    return any(not re.search("shell|bash|process|monitor", kind) for kind in kinds)


def hold_s(background: dict[str, str]) -> float:
    """Return for how many seconds a turn's end counts for nothing because of what runs in the
    background (as in Event): the CLI starts another turn when that ends. A shell may be a server,
    which never ends."""
    if has_agents(background):
        return float("inf")
    if background:
        return SHELL_S
    return 0.0


def read_gemini_hook(payload: dict[str, Any]) -> Event | None:
    """Return what a hook of Gemini CLI 0.61.0 says, or None where it says nothing to us.

    It is Claude-shaped, with other names. But the hook that asks for a permission is a Notification
    with `details`: it is read as if it were a PermissionRequest.
    """
    details = payload.get("details")
    if payload.get("notification_type") != "ToolPermission" or not isinstance(details, dict):
        # The text of AfterAgent's prompt_response is not used: it is all that was said in the
        # turn, with spaces between the pieces, or empty after a failure. The chat file has the
        # last answer.
        return read_hook(payload)
    if details.get("title") == "Ask User":  # answered at its BeforeTool hook
        return None
    given = {key: value for key, value in details.items() if key not in ("type", "title")}
    event = read_hook(
        {
            **payload,
            "hook_event_name": "PermissionRequest",
            "tool_input": given,
            "tool_name": text_at(details, "title"),
        }
    )
    return event and event._replace(source="hook:Notification")


_QWEN_SILENT = ("[no response text]", "(empty content)")  # in place of an answer, 0.24.4


def read_qwen_hook(payload: dict[str, Any]) -> Event | None:
    """Return what a hook of Qwen Code 0.24.4 says, or None. Before the first prompt of a resumed
    conversation it tells its model of the agents that were at work."""
    event = read_hook(payload)
    if event and event.text in _QWEN_SILENT:
        event = event._replace(text="")
    if event and event.kind == "submitted":
        reminder = r"\A<system-reminder>\n\d+ background agent.*?</system-reminder>\n\n"
        event = event._replace(text=re.sub(reminder, "", event.text, flags=re.S))
    return event


def agent_of(payload: dict[str, Any]) -> str:
    """Return the id of the sub-agent that fired a hook, "" for the agent itself.

    Claude Code 2.1.332, Codex 0.171.0 and Qwen Code 0.24.4 say agent_id, Copilot 1.0.102
    agentId; Kimi Code 2.1.0 calls the agent itself "main".
    """
    agent = text_at(payload, "agent_id") or text_at(payload, "agentId")
    if agent == "main":
        return ""
    return agent


def claude_shaped(payload: dict[str, Any]) -> dict[str, Any]:
    """Return any CLI's hook payload under Claude's names. Only Copilot's (1.0.102) hook that asks
    for a permission has others; every other payload is returned as it is."""
    if payload.get("hookName") != "permissionRequest":
        return payload
    names = {
        "tool_name": "toolName",
        "tool_input": "toolInput",
        "session_id": "sessionId",
        "agent_id": "agentId",
    }
    fields = {name: payload[key] for name, key in names.items() if key in payload}
    return {**payload, **fields, "hook_event_name": "PermissionRequest"}


def block_text(content: Any) -> str:
    """Return the text of a message's content: text, or a list of blocks, of which only those
    of text count."""
    if not isinstance(content, list):
        content = [content]
    texts = []
    for block in content:
        if not isinstance(block, dict):
            texts.append(str(block or ""))
        elif block.get("type") == "text":
            texts.append(text_at(block, "text"))
    return "\n".join(texts)


# ---- what they ask, and how they are answered ----


def render_request(payload: dict[str, Any]) -> str:
    """Return all that a Claude-shaped hook asks, in lines for a person.

    For a permission: the tool and its whole input. For one question of the model's: its words
    alone. For several: a line for each, with its options.
    """
    questions = questions_in(payload)
    if len(questions) == 1:
        return questions[0][0]  # its options are in Question.options (options_of)
    lines = []
    for question, options in questions:
        line = " ".join(question.split())
        if options:
            line += f" ({', '.join(options)})"
        lines.append(line)
    if lines:
        return "\n".join(lines)

    tool, given = text_at(payload, "tool_name"), payload.get("tool_input")
    if not isinstance(given, dict):
        return tool
    rest = dict(given)
    subject = ""
    for key in ("command", "file_path", "filePath", "path", "url"):
        if not subject:
            subject = str(rest.pop(key, "") or "")
    line = f"{tool}: {subject}".rstrip()
    if why := rest.pop("description", ""):
        line += f" ({why})"
    lines = [line]
    for key, value in rest.items():
        shown = value
        if not isinstance(value, str):
            shown = json.dumps(value, ensure_ascii=False)
        lines.append(f"{key}: {shown}")
    return "\n".join(lines)


def questions_in(payload: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Return the questions that a model asks by its question tool, each with its options; none
    for any other tool."""
    if payload.get("tool_name") not in QUESTION_TOOLS:
        return []
    message = value_at(payload, "tool_input.message")
    if isinstance(message, str):
        return _form_questions(message, value_at(payload, "tool_input.requestedSchema.properties"))
    return [
        (text_at(asked, "question") or text_at(asked, "header"), _labels(asked, "options"))
        for asked in objects_at(payload, "tool_input.questions")
    ]


def _form_questions(message: str, fields: Any) -> list[tuple[str, list[str]]]:
    """Return the questions of a form, by which Copilot's model asks: one for each field.

    The form's message stands before the title of the first field, and in place of it where the
    form has only one. Without fields it is the one question, which has no options.
    """
    questions = []
    if isinstance(fields, dict):
        for name, field in fields.items():
            if isinstance(field, dict):
                choices = _labels(field, "enum") or _labels(field, "items.enum")
                questions.append((text_at(field, "title") or name, choices))
    if not questions:
        return [(message, [])]
    title, choices = questions[0]
    if len(questions) > 1:
        message = f"{message}: {title}"
    return [(message, choices), *questions[1:]]


def _labels(entry: dict[str, Any], keys: str) -> list[str]:
    """Return the words of the options in the list at keys of an entry: words, or objects with a
    label; none where there is no list."""
    options = value_at(entry, keys)
    labels = []
    if isinstance(options, list):
        for option in options:
            if isinstance(option, dict):
                labels.append(text_at(option, "label"))
            else:
                labels.append(str(option or ""))
    return labels


# A request for a tool of our own server, by its whole name: another server may be called "cao__x".
# The second way to write it is Copilot 1.0.102's.
OWN_TOOL = re.compile(rf"(mcp__cao__|cao/)({'|'.join(OWN_TOOLS)})(:|\Z)")


def waits_at_hook(row: Provider, payload: dict[str, Any]) -> bool:
    """Tell whether a hook asks something that cao answers by the hook's output, so that the hook
    has to wait. False for a permission that is answered by keys, or in the terminal."""
    name = payload.get("hook_event_name")
    if name in _BEFORE_TOOLS:
        return bool(questions_in(payload))
    return name == "PermissionRequest" and row.asks == "hook"


def options_of(row: Provider, payload: dict[str, Any]) -> tuple[Option, ...]:
    """Return the options for answering what a hook asks; () for several questions at once, and
    for one that has no options: words answer these."""
    questions = questions_in(payload)
    if len(questions) > 1:
        return ()
    if questions:
        return tuple(Option(str(n), text) for n, text in enumerate(questions[0][1], 1))
    yes, no = Option("yes", "once"), Option("no", "refuse; no: WORDS tells it why")
    if (row.name, payload.get("tool_name")) in (("claude", "Skill"), ("qwen", "skill")):
        yes = Option("yes", "once, and with it all that the skill allows itself")
    # OpenCode 1.18.33 says what it would allow: offered where all of that is shown. Else it is one
    # command: a rule of Claude Code's without one allows all calls of the tool, and a * in it any.
    # With one it allows nothing of another tool, which may take a command too.
    what, command = text_at(payload, "always"), text_at(payload, "tool_input.command")
    exact = len(what) <= 200 and what != "*"
    if not what:
        exact = payload.get("tool_name") == "Bash" and command != "" and "*" not in command
        what = "the same again"
    if row.always and exact:
        return yes, no, Option("always", f"{what}, in this session")
    return yes, no


# The kinds of a permission of Gemini CLI 0.61.0 whose event tells all, and whose first answer is:
# once. Of an MCP tool only the dialog shows the arguments, and of a plan the plan; there the first
# answer lets it write unasked from then on. "": another CLI's.
_SHOWN_WHOLE = ("", "edit", "exec", "info", "sandbox_expansion")

# The first answer of a permission's dialog, where it approves the call alone (Gemini CLI 0.61.0,
# Kimi Code 2.1.0): below it stands no other list of answers.
_FIRST_IS_ONCE = re.compile(r"(?m)^\W*1\. +(?:Allow|Approve) once\W*$(?![\s\S]*^\W*1\. )")

# What a dialog may draw around a command's lines, and the blanks at which it breaks these.
_DRAWN = re.compile(r"[│·\s]+")


def dialog_subject(payload: dict[str, Any]) -> tuple[str, str] | None:
    """Return what the dialog of a call shows (Provider.dialog), for which a hook asks: its shell
    command without what is _DRAWN, and the name of a tool that is no shell. One of them is "".

    None for a command that may not be drawn as it is."""
    tool, command = text_at(payload, "tool_name"), text_at(payload, "details.command")
    if tool == "Bash":  # Kimi Code 2.1.0, which draws a description below the command
        words = [text_at(payload, f"tool_input.{key}") for key in ("command", "description")]
        tool, command = "", " ".join(words)
    if not command.replace("\n", "").isprintable():
        return None
    return _DRAWN.sub("", command), tool


def hook_reply(row: Provider, payload: dict[str, Any], answer: str, words: str) -> dict[str, Any]:
    """Return what a hook prints to hand over an answer, in the form its CLI takes (measured).

    For a permission: answer is yes, no or always; words is why not, or "". For questions of the
    model's: words has a line for each, or is the answer to the only one; `answer` does not matter.
    Most CLIs take no such answers from a hook: there the call is refused, and they are the reason.
    """
    questions = questions_in(payload)
    lines = words.split("\n", len(questions) - 1)  # one question takes all of them
    replies = dict(zip((question for question, _ in questions), lines))
    name, message = payload.get("hook_event_name"), words
    if len(questions) > 1:
        pairs = "; ".join(f"{question} = {line}" for question, line in replies.items())
        message = f"The user answered: {pairs}"
    elif questions:
        message = f"The user answered: {words}"
    elif answer == "no" and not words:
        message = "The user refused this."

    if row.name in ("opencode", "pi", "demo"):  # what we wrote reads it: a plugin, an agent
        reply: dict[str, Any] = {"answer": answer, "message": message}
        if questions:
            reply["answers"] = [[line] for line in lines]
        return reply
    if name == "BeforeTool":  # Gemini CLI 0.61.0
        return {"decision": "deny", "reason": message}
    if name == "PreToolUse":  # Copilot 1.0.102, Kimi Code 2.1.0
        return hook_output(
            row, payload, {"permissionDecision": "deny", "permissionDecisionReason": message}
        )
    decision: dict[str, Any] = {"behavior": "allow"}
    if questions and row.name == "claude":  # 2.1.332: a bare allow is ignored
        decision["updatedInput"] = {**payload["tool_input"], "answers": replies}
    elif questions or answer == "no":
        decision = {"behavior": "deny", "message": message}
    elif payload.get("tool_name") == "ExitPlanMode":  # the same
        decision["updatedInput"] = payload.get("tool_input")
    elif answer == "always":
        command = text_at(payload, "tool_input.command")
        decision["updatedPermissions"] = [
            {
                "type": "addRules",
                "rules": [{"toolName": payload.get("tool_name"), "ruleContent": command}],
                "behavior": "allow",
                "destination": "session",
            }
        ]
    if row.name == "copilot":
        return decision
    return hook_output(row, payload, {"decision": decision})


def hook_output(row: Provider, payload: dict[str, Any], output: dict[str, Any]) -> dict[str, Any]:
    """Return a hook's output in the form its CLI takes: bare, or inside an object."""
    if row.name in ("copilot", "opencode", "pi"):
        return output
    return {"hookSpecificOutput": {"hookEventName": payload["hook_event_name"], **output}}


def failed_event(text: str, code: Any = "") -> Event:
    """Return the failure of a turn that a CLI reports in text. code: the API's, or what else
    tells its kind. Its source is "transcript"; read_hook puts the hook there instead."""
    reason = classify_failure(f"{code} {text}")
    retry_at = ""
    if reason == "rate_limit":
        retry_at = retry_time(text)
    return Event("failed", text, reason, "transcript", retry_at=retry_at)


def classify_failure(text: str) -> str:
    """Return api_error, rate_limit or auth for a CLI's own words about a failed turn."""
    low = text.lower()
    if re.search(
        r"\b429\b|rate.?limit|usage.?limit|quota|hit your limit|limit reached|billing", low
    ):
        return "rate_limit"
    if re.search(r"\b40[13]\b|authenticat|unauthorized|invalid api key|/login|not logged", low):
        return "auth"
    return "api_error"


def retry_time(text: str) -> str:
    """Return when a limit lifts in the CLI's own words ("3pm", "in 2 hours"), or ""."""
    begins = r"(?i)(?:resets?|try again|retry(?= (?:after|in|at)\b)|available)\s+(?:again\s+)?"
    rest = r"(?:(?!\.(?!\d))[^;·|\n])*"
    match = re.search(rf"{begins}((?:at |in )?{rest}\d{rest})", text)
    if not match:
        return ""
    return match[1].strip()


# ---- what they write: state files, titles, transcripts ----


def read_status_json(text: str) -> Look:
    """Return what Claude Code's own state file says (2.1.330); the demo agent writes the same.
    Unknown: what is not JSON, or names no state that we know."""
    try:
        status = json.loads(text)
    except (ValueError, RecursionError):
        return Look("unknown", "status_file", "not JSON")
    states = {"idle": "idle", "busy": "busy", "waiting": "asking"}
    state = states.get(text_at(status, "status"), "unknown")
    return Look(state, "status_file", text_at(status, "waitingFor"))


def read_title(titles: dict[str, str], title: str) -> Look:
    """Return what a pane's title says by its first letter (Provider.titles), else unknown."""
    return Look(titles.get(title[:1], "unknown"), "title", title.strip())


def read_log(text: str) -> list[dict[str, Any]]:
    """Return the entries of a session's log, without the lines that are none."""
    shapes = {"at": MOMENT, "event": str}
    return [entry for entry in map(parse_object, text.split("\n")) if fits(entry, shapes)]


def _ended(text: str, reason: str = "") -> Event:
    return Event("ended", text, reason, "transcript")


def _blocked(reason: Any) -> Event:
    return Event("failed", f"a hook of yours refused it: {reason}", "blocked", "transcript")


_STOPPED = Event("interrupted", source="transcript")

# Each _NAME_says is a row's `entry_says` (see Provider), for Provider.read_transcript: None means
# that the turn goes on, so an end before it counts no more; ... that the entry does not matter.
# The docstring says what is peculiar to that CLI's transcript.


def _claude_says(entry: dict[str, Any], _said: str | None) -> Any:
    """Besides the usual ends: 2.1.332 fires no Stop where a hook of the user's refused the prompt,
    or said `continue: false` before or after a tool. Only the transcript tells of these two."""
    ending = value_at(entry, "promptSubmitEnding.ending")
    if text_at(ending, "kind").endswith("_by_hook"):
        return _blocked(value_at(ending, "reason"))
    if entry.get("isSidechain"):
        return ...
    if value_at(entry, "attachment.type") == "hook_stopped_continuation":
        return _blocked(value_at(entry, "attachment.message"))
    if not isinstance(entry.get("message"), dict):
        return ...
    text = block_text(value_at(entry, "message.content"))
    if entry.get("type") == "user":
        if text.startswith("[Request interrupted by user"):
            return _STOPPED
        return None
    if entry.get("isApiErrorMessage"):
        return failed_event(text)
    if entry.get("type") != "assistant":
        return ...
    stop_reason = value_at(entry, "message.stop_reason")
    if text and stop_reason == "max_tokens":  # it may go on with another request
        return _ended(text, "cut_off")
    if text and stop_reason == "end_turn":
        return _ended(text)
    return None


def _codex_says(entry: dict[str, Any], _said: str | None) -> Any:
    """0.169.0 writes task_complete, with `error` where the API failed (no hook fires then),
    and turn_aborted."""
    kind = value_at(entry, "payload.type")
    if entry.get("type") != "event_msg":
        return ...
    if kind == "task_started":
        return None
    if kind == "turn_aborted":
        return _STOPPED
    if value_at(entry, "payload.item.type") == "HookPrompt":  # 0.171.0: a Stop hook's reason
        return Event("resumed", source="transcript", blocking=True)
    if kind != "task_complete":
        return ...
    if error := value_at(entry, "payload.error"):
        message = error
        if isinstance(error, dict):
            message = error.get("message")
        return failed_event(str(message), value_at(error, "codex_error_info"))
    answer = value_at(entry, "payload.last_agent_message")
    if answer is None:  # 0.171.0: a hook refused the prompt
        return Event(
            "failed",
            "the turn ended without an answer: a hook of yours may have refused the prompt",
            "blocked",
            "transcript",
        )
    return _ended(str(answer))


def _gemini_says(entry: dict[str, Any], _said: str | None) -> Any:
    """The model's last message that calls no tool is taken for the turn's end."""
    kind, text = entry.get("type"), text_at(entry, "content")
    if kind == "gemini" and text and not entry.get("toolCalls"):
        return _ended(text)
    if kind in ("gemini", "user"):
        return None
    if kind == "error":
        return failed_event(text)
    refused = re.match(r"Agent execution (?:blocked|stopped): (.*)", text, re.S)
    if refused and kind in ("warning", "info"):
        return _blocked(refused[1])
    if kind == "info" and text == "Request cancelled.":
        return _STOPPED
    return ...


def _qwen_says(entry: dict[str, Any], _said: str | None) -> Any:
    """0.24.4 writes neither an API error nor an interruption into it as the end of a turn. So
    the model's last message that calls no tool is all that ends one here."""
    if not isinstance(entry.get("message"), dict):
        return ...
    parts = objects_at(entry, "message.parts")
    text = "".join(text_at(part, "text") for part in parts if not part.get("thought"))
    calls = any("functionCall" in part for part in parts)
    if text in _QWEN_SILENT:
        return _ended("")
    if text and not calls and value_at(entry, "message.role") == "model":
        return _ended(text)
    return None


def _kimi_says(entry: dict[str, Any], said: str | None) -> Any:
    """The answer is what was said last before the turn's end, which has no text."""
    kind = entry.get("type")
    if kind == "agent.message.appended":
        if value_at(entry, "message.message.role") != "assistant":
            return ...
        return Event("said", block_text(value_at(entry, "message.message.content")))
    if value_at(entry, "message.origin.blocked"):  # 2.1.0; no hook tells of it
        text = block_text(value_at(entry, "message.content"))
        return _blocked(re.sub(r"</?hook_result[^>]*>", "", text).strip())
    # A Stop hook that blocks, or work in the background that ends, has it begin once more within
    # what it calls a turn, which has one Stop.
    if kind in ("turn.prompt", "agent.turn.started"):
        return None
    if kind == "agent.turn.ended" and entry.get("outcome") == "done":
        return _ended(said or "")._replace(blocking=True)
    if kind != "turn.ended":
        return ...
    if entry.get("reason") == "failed":
        return failed_event(text_at(entry, "error.message"))
    if entry.get("reason") == "completed":
        return _ended(said or "")
    return _STOPPED


def _pi_says(entry: dict[str, Any], _said: str | None) -> Any:
    """After an error pi may try again, so after an error here the turn goes on: only the hook
    that our extension fires at last (StopFailure) says that it has failed."""
    if not isinstance(entry.get("message"), dict):
        return ...
    reason = value_at(entry, "message.stopReason")
    text = block_text(value_at(entry, "message.content"))
    if reason == "length":
        return _ended(text, "cut_off")
    if reason == "stop":
        return _ended(text)
    if reason == "aborted":
        return _STOPPED
    return None


def _copilot_says(entry: dict[str, Any], said: str | None) -> Any:
    """1.0.102 calls each request to the model a turn. Only the last one's message asks for no
    tool, and ends what we call a turn: after all agentStop hooks, where there are any. Where one
    blocks the end, the turn goes on, but not for want of a reason, nor after the eighth time.
    """
    kind, data = entry.get("type"), entry.get("data")
    if entry.get("agentId") or not isinstance(data, dict):
        return ...  # a sub-agent's
    text = text_at(data, "content")
    if kind == "assistant.message" and text.startswith("The model returned no content because "):
        return failed_event(text)
    if kind == "assistant.message" and not data.get("toolRequests"):
        return Event("said", text)
    if kind in ("assistant.message", "user.message", "assistant.turn_start"):
        return None
    if kind == "assistant.turn_end" and said is not None:
        return _ended(said)
    if data.get("hookType") == "agentStop" and said is not None:
        if kind == "hook.start":
            return Event("said", said)
        blocked = value_at(data, "output.decision") == "block"
        return _ended(said)._replace(blocking=blocked)
    if kind == "hook.end" and data.get("hookType") == "userPromptSubmitted":
        if value_at(data, "output.decision") == "block":
            return _blocked(value_at(data, "output.reason"))
    elif kind == "session.error":
        return failed_event(
            text_at(data, "message"), f"{data.get('errorType')} {data.get('statusCode')}"
        )
    elif kind == "abort":
        return _STOPPED
    return ...


_COPILOT_ENDED = re.compile(r"\A<system_notification>\nShell command .*\(shellId: (\S+)\) has ")


def ended_work(prompt: str) -> list[str]:
    """Return the ids of the work in the background of whose end a prompt tells that a CLI gives
    itself: Claude Code 2.1.332, Qwen Code 0.24.4 (one or several in a text) and, of a shell,
    Copilot 1.0.102. What a monitor saw comes in the same form; that it runs on, Qwen Code says
    there, and Claude Code in its Stop hook."""
    ids = [f"shell {name}" for name in _COPILOT_ENDED.findall(prompt)]
    for told in prompt.split("<task-notification>")[1:]:
        name = re.search(r"<task-id>(.*)</task-id>", told)
        if name and "<status>running</status>" not in told:
            ids.append(name[1])
    return ids


# Each _NAME_runs is a row's `entry_runs` (see Provider).


def _codex_runs(entry: dict[str, Any]) -> dict[str, str]:
    """0.171.0 starts no turn when an agent that it spawned has ended. The model decides in which of
    two forms it tells of them. In the second a message to one, too, is an activity."""
    running = {}
    if text_at(entry, "payload.item.type") == "SubAgentActivity":
        kind, name = text_at(entry, "payload.item.kind"), text_at(entry, "payload.item.agent_path")
        if kind != "interacted":
            running[name] = f"agent {name}" if kind == "started" else ""
    states = value_at(entry, "payload.item.agents_states")
    if isinstance(states, dict):
        for name, state in states.items():
            running[name] = f"agent {name}" if state in ("pending_init", "running") else ""
    for block in objects_at(entry, "payload.content"):
        if told := re.match(r"<subagent_notification>\s*(.*)", text_at(block, "text")):
            running[text_at(parse_object(told[1]), "agent_path")] = ""
    return running


_COPILOT_SHELL = re.compile(
    r"\A<command started in background with shellId: (\S+)>\Z"
    r"|^<(?:shellId|command with id): (\S+) (?:completed|stopped).*>\Z",
    re.M,
)


def _copilot_runs(entry: dict[str, Any]) -> dict[str, str]:
    """Of 1.0.102. An agent that has ended begins once more at a message."""
    kind, name, data = entry.get("type"), text_at(entry, "agentId"), entry.get("data")
    if kind == "subagent.started":
        return {name: f"agent {text_at(data, 'agentDisplayName')}"}
    if kind == "user.message" and name:
        return {name: f"agent {name}"}
    if kind in ("subagent.completed", "subagent.failed"):
        return {name: ""}
    running = {}
    if value_at(data, "kind.type") == "agent_idle":
        running[text_at(data, "kind.agentId")] = ""
    if kind == "tool.execution_complete":
        text = text_at(data, "result.content")
        for begun, ended in _COPILOT_SHELL.findall(text):
            running[f"shell {begun or ended}"] = begun and f"shell {begun}"
    if value_at(data, "kind.type") == "shell_completed":
        running[f"shell {value_at(data, 'kind.shellId')}"] = ""
    return running


def _claude_runs(entry: dict[str, Any]) -> dict[str, str]:
    """2.1.332 notes what has ended as soon as that is queued for the model. Its Stop hook tells
    what runs; a turn that is broken off has none."""
    if shell := text_at(entry, "toolUseResult.backgroundTaskId"):
        return {shell: f"shell {shell}"}
    return dict.fromkeys(ended_work(text_at(entry, "content")), "")


_QWEN_BEGINS = re.compile(r"(?:Background (agent|shell) .*|Monitor started)\.\n(?:task_)?id: (\S+)")


def _qwen_runs(entry: dict[str, Any]) -> dict[str, str]:
    """Of agents the Stop hook tells whether they run, of shells and monitors nothing (0.24.4)."""
    running = {}
    for part in objects_at(entry, "message.parts"):
        result = text_at(part, "functionResponse.response.output")
        if begun := _QWEN_BEGINS.match(result):
            kind, name = begun[1] or "monitor", begun[2]
            running[name] = "" if kind == "agent" else f"{kind} {name}"
        running.update(dict.fromkeys(ended_work(text_at(part, "text")), ""))
    return running


def _kimi_runs(entry: dict[str, Any]) -> dict[str, str]:
    name, label = text_at(entry, "info.taskId"), ""
    if entry.get("type") == "task.started":
        label = f"{text_at(entry, 'info.kind')} {text_at(entry, 'info.description')}"
    if label or entry.get("type") == "task.terminated":
        return {name: label}
    return {}


def read_tokens(where: Tokens, entry: dict[str, Any]) -> tuple[Any, Any, tuple[int, ...]] | None:
    """Return the request that an entry of a transcript tells of: its id, its time (as it stands
    there, see Tokens.at), and its input, cached and output tokens. None where it tells of none."""
    request = tuple(value_at(entry, keys) for keys in where.id.split())
    at, usage = value_at(entry, where.at), value_at(entry, where.usage)
    if not all(isinstance(value, (str, int)) for value in (*request, at)):
        return None
    if not isinstance(usage, dict):
        return None

    def count(counts: str) -> int:
        """Return the sum of the numbers in usage that one field of Tokens names."""
        total = 0
        for keys in counts.split():
            number = value_at(usage, keys.lstrip("-"))
            if isinstance(number, int) and keys[0] == "-":
                total -= number
            elif isinstance(number, int):
                total += number
        return total

    return request, at, (count(where.input), count(where.cached), count(where.output))


# ---- what only one of them needs ----
#
# _start_NAME is a row's `start`: it says how the CLI is started, and neither writes nor runs
# anything. It is also called where only a part of that is wanted, the argv or the variables.

# Claude Code is given the list of tools that it may use, not of those that are taken away: the
# next version has more of them. A tool that starts agents or programs goes with the shell, as
# these can do what the shell can.
_CLAUDE_HARMLESS = ("AskUserQuestion", "TodoWrite", "ToolSearch", "EnterPlanMode", "ExitPlanMode")


def _start_claude(launch: Launch) -> Start:
    profile, folder = launch.profile, launch.folder
    argv = [
        *_given({"--resume": launch.resume, "--session-id": launch.fresh, "--name": launch.name}),
        *_mode(launch),
        *_given({"--model": profile.model, "--effort": profile.effort}),
        *("--settings", f"{folder}/settings.json"),
        *("--mcp-config", f"{folder}/mcp.json", "--strict-mcp-config"),
        *("--append-system-prompt-file", f"{folder}/system.md"),
        # With "=": the flag is variadic and would swallow the prompt. "//": an absolute path.
        f"--allowedTools=mcp__cao,Read(/{folder}/letters/**)",
        # Unasked, it would write to other sessions, whatever these may do, wake itself later, and
        # work in another worktree of the repository.
        "--disallowedTools=ListAgents,SendMessage,ScheduleWakeup,EnterWorktree,ExitWorktree",
    ]
    if lacking(profile):
        names = _own_names(profile, profile.tools)
        argv.append("--tools=" + ",".join((*_CLAUDE_HARMLESS, *names)))
    argv += _given({"--": launch.prompt})
    env = {
        # One key of an attached person (←) would move the session into Claude's own daemon.
        "CLAUDE_CODE_DISABLE_AGENT_VIEW": "1",
        "CLAUDE_CODE_DISABLE_CRON": "1",  # unasked, it would give prompts to later sessions
        "CLAUDE_CODE_MCP_AUTO_BACKGROUND_MS": "0",  # else a handoff is backgrounded at 120 s
        "CLAUDE_CODE_STOP_HOOK_BLOCK_CAP": "0",  # a user's Stop hook may block 9 times
        "DISABLE_AUTOUPDATER": "1",
    }
    if profile.trust:
        env["CLAUDE_CODE_SANDBOXED"] = "1"  # answers its dialog for this launch only
    settings: dict[str, Any] = {
        "crossSessionInbound": "refuse",  # where it would hold a message, no hook tells of that
        # These overrule the user's own.
        "agent": "",  # its tools and prompt would stand in place of the profile's
        "askUserQuestionTimeout": "never",  # its questions wait for an answer
        "disableAllHooks": False,
        "emojiCompletionEnabled": False,  # Enter would take its suggestion for a last word ":id"
    }
    settings.update(profile.settings.get("claudeConfig") or {})
    # The user may have them on: a teammate never ends, and no other session is to hear of it.
    teams = {"CLAUDE_CODE_EXPERIMENTAL_AGENT_TEAMS": "0"}
    settings["env"] = {**(settings.get("env") or {}), **teams}
    settings["hooks"] = dict(settings.get("hooks") or {})
    hooks = _hooks(launch, _CLAUDE_HOOKS)
    hooks["SessionStart"]["command"] += _AWAIT_TOOLS
    for event, hook in hooks.items():  # beside the profile's own: it runs all
        groups = settings["hooks"].get(event) or ()
        settings["hooks"][event] = [*groups, {"hooks": [hook]}]
    # Unasked, its sub-agents would make worktrees, and work there: not where the result says.
    # Where this hook fails, none is made.
    refusal = {"type": "command", "command": "exit 1  # a worker makes no worktrees"}
    settings["hooks"]["WorktreeCreate"] = [{"hooks": [refusal]}]
    if profile.permissions == "all":
        settings["skipDangerousModePermissionPrompt"] = True
    files = {"settings.json": settings, "mcp.json": {"mcpServers": _servers(launch)}}
    return Start(argv, env, files)


_CODEX_HOOKS = (
    "SessionStart UserPromptSubmit PermissionRequest Stop Interrupt SessionEnd PostToolUse"
)


def _start_codex(launch: Launch) -> Start:
    profile, mode = launch.profile, _mode(launch)
    lacks = lacking(profile)
    if "fs_write" in lacks:
        mode[1] = "read-only"  # behind -s, which is there: `all` has become `auto`
    argv = ["--no-daemon", *mode]
    if launch.resume:
        argv.insert(0, "resume")
    if "web_fetch" in lacks:
        argv += PROVIDERS["codex"].tools["web_fetch"].split()
    argv += _given({"--profile": text_at(profile.settings, "codexProfile")})
    config: dict[str, Any] = {}
    if profile.trust:  # this answers the trust dialog in the user's place
        config["projects"] = {launch.cwd: {"trust_level": "trusted"}}
    if profile.effort:
        config["model_reasoning_effort"] = profile.effort
    config.update(profile.settings.get("codexConfig") or {})
    config["check_for_update_on_startup"] = False
    config["developer_instructions"] = launch.system
    for name, server in _servers(launch).items():
        entry = {k: v for k, v in server.items() if k in ("command", "args", "env", "url")}
        entry["tool_timeout_sec"] = TOOL_TIMEOUT_S
        if name == "cao":
            entry["default_tools_approval_mode"] = "approve"
        config[f"mcp_servers.{name}"] = entry
    config["features.hooks"] = True  # the user's own settings may have them off,
    config["tui.keymap.composer.submit"] = "enter"  # ... or Enter begin a new line
    config["features.goals"] = False  # behind an answer, it would go on by itself for a goal
    hooks = _hooks(launch, _CODEX_HOOKS)
    for event in ("Interrupt", "SessionEnd"):
        hooks[event]["timeout"] = 3
    groups: dict[str, dict[str, Any]] = {event: {"hooks": [hook]} for event, hook in hooks.items()}
    # Of the terminal's own tools: unasked, they make worktrees, and archive anybody's threads.
    refusal = {"type": "command", "command": "echo 'that is not for a worker' >&2; exit 2"}
    groups["PreToolUse"] = {"matcher": "(mcp__)?codex_tui.*", "hooks": [{**refusal, "timeout": 30}]}
    config["hooks.state"] = {}
    for event, group in groups.items():
        config[f"hooks.{event}"] = [group]
        config["hooks.state"].update(_codex_trust(event, group))
    for key, value in config.items():
        argv += ["-c", f"{key}={_toml(value)}"]
    argv += _given({"-m": profile.model})
    if launch.resume:
        argv.append(launch.resume)
    return Start([*argv, *_given({"--": launch.prompt})])


def _codex_trust(event: str, group: dict[str, Any]) -> dict[str, Any]:
    """Return the entry of hooks.state that trusts one hook of ours, in its group, and no other.

    The entry is what 0.169.0 itself writes after "Trust all": a hash of the hook's canonical JSON.
    So cao needs no --dangerously-bypass-hook-trust, under which a hostile repository's hooks run.
    """
    name = re.sub(r"(?<!^)([A-Z])", r"_\1", event).lower()
    hooks = [{"async": False, **hook} for hook in group["hooks"]]
    record = {"event_name": name, **group, "hooks": hooks}
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return {
        f"/<session-flags>/config.toml:{name}:0:0": {"trusted_hash": f"sha256:{sha256_of(text)}"}
    }


# Its next session runs what its settings of a folder say. In this mode 0.61.0 writes and fetches
# also where a rule says "ask_user".
_GEMINI_POLICY = """\
[[rule]]
toolName = ["write_file", "replace"]
argsPattern = '"file_path":("|"([^"\\\\]|\\\\.)*/)\\.gemini/'
decision = "deny"
modes = ["autoEdit"]
priority = 20

[[rule]]
toolName = "web_fetch"
decision = "deny"
modes = ["autoEdit"]
priority = 20
"""
_GEMINI_HOOKS = "SessionStart BeforeAgent Notification BeforeTool AfterTool AfterAgent SessionEnd"


def _start_gemini(launch: Launch) -> Start:
    argv = [
        *_given({"--resume": launch.resume, "--session-id": launch.fresh}),
        *_mode(launch),
        *_given({"-m": launch.profile.model, "--admin-policy": f"{launch.folder}/policy.toml"}),
    ]
    # NO_BROWSER: the CLI asks for a login in the terminal, where cao sees it.
    env = {"GEMINI_CLI_HOME": f"{launch.folder}/home", "NO_BROWSER": "true"}
    env["GEMINI_CLI_TRUST_WORKSPACE"] = ""  # the user's own would trust any folder
    if launch.profile.trust:  # --skip-trust comes too late for the folder's own settings
        env["GEMINI_CLI_TRUST_WORKSPACE"] = "true"
    groups: dict[str, Any] = {}
    for event, hook in _hooks(launch, _GEMINI_HOOKS, 1000).items():
        hook["name"] = "cao"  # what it shows while one runs
        groups[event] = [{"hooks": [hook]}]
    # At BeforeTool a question of its model's is answered; no other tool is of interest there.
    groups["BeforeTool"][0]["matcher"] = "ask_user"
    servers = _servers(launch)
    del servers["cao"]["alwaysLoad"]
    servers["cao"]["trust"] = True  # its tools run without a question
    settings = {
        "general": {"enableAutoUpdate": False, "enableAutoUpdateNotification": False},
        # At "low", the default, it silently retries without end after a 500.
        "ui": {"dynamicWindowTitle": True, "hideWindowTitle": False, "errorVerbosity": "full"},
        "hooksConfig": {"enabled": True},
        "hooks": groups,
        "mcpServers": servers,
        "security": {"auth": {"selectedType": _gemini_login(launch)}},
        # Its plan can be approved in its terminal alone.
        "tools": {
            "exclude": ["enter_plan_mode", *_own_names(launch.profile, lacking(launch.profile))]
        },
    }
    if effort := launch.profile.effort:  # a level (Gemini 3: low, high), or a budget in tokens
        thinking: dict[str, Any] = {"thinkingLevel": effort.upper()}
        if effort.isdigit():
            thinking = {"thinkingBudget": int(effort)}
        config = {"generateContentConfig": {"thinkingConfig": thinking}}
        override = {"match": {"overrideScope": "core"}, "modelConfig": config}
        settings["modelConfigs"] = {"overrides": [override]}
    files = {
        "home/.gemini/settings.json": settings,
        "home/.gemini/extensions/cao/gemini-extension.json": {
            "name": "cao",
            "version": VERSION,
            "contextFileName": "system.md",
        },
        "home/.gemini/extensions/cao/system.md": launch.system,
        # Above the user's own policies; or, beside an administrator's, as an extension's.
        "policy.toml": _GEMINI_POLICY,
        "home/.gemini/extensions/cao/policies/edits.toml": _GEMINI_POLICY,
        # This names the folder of the project's temporary files, which it may read.
        "home/.gemini/projects.json": {"projects": {launch.cwd: "cao"}},
    }
    return Start(argv, env, files)


def _gemini_login(launch: Launch) -> str:
    """Return how Gemini CLI logs in: by its environment, else as the user chose."""
    if launch.env.get("GOOGLE_GENAI_USE_VERTEXAI") == "true":
        return "vertex-ai"
    if launch.env.get("GEMINI_API_KEY"):
        return "gemini-api-key"
    settings = launch.own.get(".gemini/settings.json", "")
    chosen = re.search(r'"selectedType"\s*:\s*"([\w-]+)"', settings)
    if chosen:
        return chosen[1]
    return "oauth-personal"


def _start_qwen(launch: Launch) -> Start:
    profile, folder = launch.profile, launch.folder
    argv = [
        *_given({"--resume": launch.resume, "--session-id": launch.fresh}),
        *_mode(launch),
        *_given({"-m": profile.model, "--mcp-config": f"{folder}/mcp.json"}),
        *("--add-dir", f"{folder}/letters", "--append-system-prompt", launch.system),
    ]
    env = {
        "QWEN_CODE_DISABLE_ARTIFACT": "1",  # unasked, it would publish a page, and open a browser
        "QWEN_CODE_DISABLE_CRON": "1",  # see _start_claude
        "QWEN_CODE_ENABLE_AGENT_TEAM": "",
        "QWEN_CODE_LANG": "en",  # else the words on its screen are in another, by settings or LANG
        # These settings are merged over the user's, which stay as they are.
        "QWEN_CODE_SYSTEM_SETTINGS_PATH": f"{folder}/settings.json",
    }
    servers = _servers(launch)
    servers["cao"]["trust"] = True  # its tools run without a question
    settings: dict[str, Any] = {
        # Its transcript has the tokens, and the conversation to go on with.
        "general": {"enableAutoUpdate": False, "vimMode": False, "chatRecording": True},
        "ui": {"hideWindowTitle": False, "enableFollowupSuggestions": False},
        "disableAllHooks": False,
        "experimental": {"agentTeam": False},  # a teammate's report comes when it likes
        "agents": {"crossSessionMessaging": False},  # see _start_claude
        "tools": {"toolSearch": {"enabled": False}},  # ours are never behind it
        "memory": {"enableManagedAutoMemory": False},  # it is the user's, of the user's own talk
        "hooks": {
            event: [{"hooks": [hook]}]
            for event, hook in _hooks(launch, _CLAUDE_HOOKS, 1000).items()
        },
        # Unasked, it would make worktrees of its own, and run the repository's hooks.
        "permissions": {
            "deny": [
                *_own_names(profile, lacking(profile)),
                *("enter_worktree", "exit_worktree", "agent(isolation:worktree)"),
                *("propose_goal", "enter_plan_mode"),  # see _start_codex and _start_gemini
                # Other CLIs, by their own settings: no grant, limit or question of ours holds.
                *("agent(subagent_type:codex)", "agent(subagent_type:claude-code)"),
            ]
        },
        # Untrusted, it asks first, and reads no settings of the folder.
        "security": {"folderTrust": {"enabled": not profile.trust}},
    }
    mode = effective_permissions(profile)
    if mode == "edits":
        settings["permissions"]["deny"] += ["web_fetch", *_qwen_outside(launch.cwd)]
    if mode in ("ask", "edits"):  # its own skills permit their tools for the rest of a session
        settings["skills"] = {"disabledLevels": ["bundled"]}
    if profile.effort:
        settings["model"] = {"generationConfig": {"reasoning": {"effort": profile.effort}}}
    files = {"settings.json": settings, "mcp.json": {"mcpServers": servers}}
    return Start(argv, env, files)


def _qwen_outside(cwd: str) -> list[str]:
    """Return what Qwen Code 0.24.4 must not write: what is outside cwd, by its real path, and what
    names programs that git, or its own next session, runs. Its mode auto-edit asks for none of it,
    whatever `ask` says. To it `!(work)/**` is a name that does not begin with work: the third rule
    of each folder is for those that do."""
    rules, above = [], "/"
    for part in cwd.strip("/").split("/"):
        name = re.sub(r"(\W)", r"\\\1", part)
        for pattern in (f"!({name})", f"!({name})/**", f"{name}?*/**"):
            rules.append(f"Edit(/{above}{pattern})")
        above += f"{name}/"
    return rules + [f"Edit(/{above}**/{name}/**)" for name in (".git", ".qwen", ".agents")]


# Not StopFailure and Interrupt: 2.1.0 fires them for a sub-agent too, and does not say so. The
# transcript, which is the agent's own, has these ends as well.
_KIMI_HOOKS = "SessionStart UserPromptSubmit PreToolUse PermissionRequest Stop SessionEnd".split()
_OURS = "# What follows is cao's, for this session alone."


def _start_kimi(launch: Launch) -> Start:
    """Kimi Code 2.1.0 takes hooks, servers and rules from its home alone. So it gets a home of
    its own (Provider.shadow), in which ours stand behind the user's settings. That home's
    AGENTS.md gets into its system prompt.

    The user's files may come from such a home: what stands behind _OURS there is cut off.
    """
    users = {name: text.partition(_OURS)[0] for name, text in launch.own.items()}
    # A session that is to ask must not begin in a mode that the user chose for another.
    modes = r"(?m)^\s*(default_permission_mode|default_plan_mode|yolo)\s*=.*\n?"
    settings = re.sub(modes, "", users.get("config.toml", ""))
    config = ['default_permission_mode = "manual"', settings, _OURS]
    command = _toml(quote_argv(launch.hook))
    for event in _KIMI_HOOKS:
        config += ["[[hooks]]", f'event = "{event}"\ncommand = {command}']
        if event == "PreToolUse":  # 600 is the most; with more it has no hooks at all (2.1.0)
            config += ['timeout = 600\nmatcher = "AskUserQuestion"']
        else:
            config += ["timeout = 30\n"]
    # See _start_codex and, on timers, _start_claude.
    reason = "A worker has its task alone: no goals, no timers."
    decision = {"permissionDecision": "deny", "permissionDecisionReason": reason}
    denial = {"hookSpecificOutput": {"hookEventName": "PreToolUse", **decision}}
    refuse = _toml(quote_argv(("echo", json.dumps(denial))))
    config += ["[[hooks]]", 'event = "PreToolUse"\nmatcher = "CreateGoal|CronCreate"']
    config += [f"command = {refuse}", "timeout = 30\n"]
    servers = {}
    known = ("command", "args", "env", "url", "headers", "cwd")  # no keys of Claude's own
    for name, server in _servers(launch).items():
        servers[name] = {k: v for k, v in server.items() if k in known}
        servers[name]["toolTimeoutMs"] = TOOL_TIMEOUT_S * 1000
    files: dict[str, Any] = {
        "kimi/config.toml": "\n".join(config) + "\n",
        "kimi/AGENTS.md": f"{users.get('AGENTS.md', '')}\n{_OURS}\n\n{launch.system}\n",
        "kimi/mcp.json": {"mcpServers": servers},
        # No dialog may come between a prompt and its Enter.
        "kimi/tui.toml": "disable_feedback_survey = true\ncache_expiry_hint = false\n",
    }
    if launch.profile.trust:
        record = {"root": launch.cwd, "trustedAt": 0}
        files[f"kimi/workspace-trust/{_kimi_folder_key(launch.cwd)}"] = record
    flags = {"--session": launch.resume, "--model": launch.profile.model}
    env = {"KIMI_CODE_HOME": f"{launch.folder}/kimi", "KIMI_CODE_NO_AUTO_UPDATE": "1"}
    if launch.profile.effort:
        env["KIMI_MODEL_THINKING_EFFORT"] = launch.profile.effort
    return Start([*_given(flags), *_mode(launch)], env, files)


def _kimi_folder_key(folder: str) -> str:
    """Return the file name under which Kimi Code 2.1.0 remembers that a folder is trusted."""
    folder = folder.rstrip("/")
    slug = re.sub(r"[^a-z0-9._-]+", "-", folder.rpartition("/")[2].lower()).strip("-")
    slug = slug[:40].strip("-")
    if slug in ("", ".", ".."):
        slug = "workspace"
    return f"wd_{slug}_{sha256_of(folder)[:12]}"


# pi 0.73.1 asks for no permission, so our extension does. After an error of a kind that passes
# pi tries again by itself, 2, 4 and 8 s later or as its user's settings say, and where the
# conversation is too long it sums that up first: such an error is not the end of the turn. A prompt
# that it kept until it had summed up has no before_agent_start.
_PI_EXTENSION = """\
const { SettingsManager } = require("@mariozechner/pi-coding-agent");
const { spawn, spawnSync } = require("node:child_process");
const { lstatSync, readdirSync, realpathSync } = require("node:fs");
const { dirname, relative, resolve } = require("node:path");
const { hook, mode, cwd, free, unasked } = JSON.parse(%s);
for (const file of unasked)  // it came since we looked; this runs before what the folder has
  if (lstatSync(`${cwd}/${file}`, { throwIfNoEntry: false })) {
    console.error(`pi would run, unasked, what ${cwd}/${file} says`);
    process.exit(1);
  }
// Tell whether pi writes below cwd. It drops a leading @, expands ~, takes each kind of blank for a
// plain one and follows links, also before a "..". What is in .git or .pi may be run by git or pi.
const changed = /^[@~]|[\\u00a0\\u2000-\\u200a\\u202f\\u205f\\u3000]/;
const kept = /(^|\\/)\\.(\\.|git|pi)(\\/|$)/i;
const below = (path) => {
  if (!path || changed.test(path) || kept.test(path)) return false;
  try {
    let at = resolve(cwd, path);
    while (!lstatSync(at, { throwIfNoEntry: false })) at = dirname(at);
    return !kept.test(relative(realpathSync(cwd), realpathSync(at)));
  } catch { return false; }  // a link to nothing, or no path at all
};
const passing = /overload|rate.?limit|too many|429|50[0-4]|server|network|connection|time|fetch/i;
module.exports = (pi) => {
  const say = (name, ctx, more) => spawnSync(hook[0], hook.slice(1), { input: JSON.stringify({
    hook_event_name: name, session_id: ctx.sessionManager.getSessionId(),
    transcript_path: ctx.sessionManager.getSessionFile(), ...more }) });
  let tries = 0, running = false, failed, fail;
  const later = (ms) => {  // two timers: where the machine stood still, one is due with pi's own
    clearTimeout(failed);
    failed = setTimeout(() => { failed = setTimeout(fail, 1000); }, ms);
  };
  pi.on("session_start", (_, ctx) => { say("SessionStart", ctx); });
  pi.on("session_shutdown", (_, ctx) => {
    clearTimeout(failed);
    if (running || failed) say("Interrupt", ctx);  // a person begins another conversation
    say("SessionEnd", ctx);
  });
  pi.on("message_start", ({ message: { role, content } }, ctx) => {
    if (role === "user") say("UserPromptSubmit", ctx, { prompt: content });
  });
  pi.on("agent_start", () => {
    running = true;
    failed = clearTimeout(failed);
  });
  pi.on("session_before_compact", () => { if (failed) later(300_000); });  // it may fail unsaid
  pi.on("session_compact", () => { if (failed) later(0); });  // where it goes on, it does so now
  pi.on("agent_end", (e, ctx) => {
    running = false;
    const last = e.messages.filter((m) => m.role === "assistant").pop() || {};
    const error_message = last.errorMessage || "";
    const retry = SettingsManager.create(ctx.cwd).getRetrySettings();
    const again = retry.enabled && tries < retry.maxRetries && passing.test(error_message);
    fail = () => { failed = tries = 0; say("StopFailure", ctx, { error_message }); };
    if (last.stopReason === "error")
      return later(again ? retry.baseDelayMs * 2 ** tries++ + 2000 : 0);
    tries = 0;
    const said = (last.content || []).filter((c) => c.type === "text").map((c) => c.text);
    const name = last.stopReason === "aborted" ? "Interrupt" : "Stop";
    const stop_reason = last.stopReason;
    say(name, ctx, { last_assistant_message: said.join("\\n"), stop_reason });
  });
  pi.on("tool_result", (e, ctx) => {  // a message's name ends in a hyphen and four letters
    if (ctx.signal?.aborted) return;  // by Esc: the model hears no more in this turn
    if (!readdirSync(`${hook.at(-1)}/inbox/new`).some((name) => /-.{4}$/.test(name))) return;
    const printed = String(say("PostToolUse", ctx).stdout);
    if (!printed) return;
    const text = JSON.parse(printed).additionalContext;
    return { content: [...e.content, { type: "text", text }] };
  });
  pi.on("tool_call", async (e, ctx) => {
    const { toolName: tool, input } = e;
    if (mode === "all" || ["read", "grep", "find", "ls"].includes(tool)) return;
    if (mode !== "ask" && ["edit", "write"].includes(tool) && below(input.path)) return;
    if (tool === "bash" && new RegExp(free).test(input.command)) return;
    const what = input.command || input.path || JSON.stringify(input);
    const closing = new AbortController(), child = spawn(hook[0], hook.slice(1));
    const ours = new Promise((done) => {  // what the hook prints is the answer
      let printed = "";
      child.stdout.on("data", (data) => { printed += data; });
      child.on("close", () => { try { done(JSON.parse(printed)); } catch {} });  // the dialog's
      child.stdin.end(JSON.stringify({ hook_event_name: "PermissionRequest",
        session_id: ctx.sessionManager.getSessionId(), tool_name: tool, tool_input: input }));
    });
    const dialog = ctx.ui.select(`May ${tool} do this?\\n${what}`, ["Yes, once", "No"],
      { signal: closing.signal }).then((said) => ({ answer: said === "Yes, once" ? "yes" : "no" }));
    const { answer, message } = await Promise.race([ours, dialog]);
    closing.abort();
    child.kill("SIGKILL");  // it may be stopped
    if (answer !== "yes") return { block: true, reason: message || "The user refused this call." };
  });
};
"""


def _start_pi(launch: Launch) -> Start:
    profile, folder = launch.profile, launch.folder
    flags = {"--session": launch.resume, "--model": profile.model, "--thinking": profile.effort}
    argv = _given(flags)
    if lacking(profile):
        names = _own_names(profile, profile.tools)
        argv += _given({"--tools": ",".join(names)}) or ["--no-tools"]
    argv += ["--extension", f"{folder}/extension.js"]
    argv += ["--append-system-prompt", f"{folder}/system.md"]
    if launch.prompt:
        argv.append(launch.prompt)
    script = f"{folder}/cao.sh"
    # What its bash runs unasked: cao's verbs, which other CLIs have as MCP tools, with arguments in
    # which a shell expands nothing.
    verbs = "handoff|assign|send|wait|ls|answer|stop|--help"
    free = rf"^sh {re.escape(script)} +({verbs})( +([\w.=:@%,+/-]+|'[^']*'))*\s*$"
    unasked = () if profile.trust else PROVIDERS["pi"].runs_unasked
    text = json.dumps(
        {
            "hook": launch.hook,
            "unasked": unasked,
            "mode": profile.permissions,
            "cwd": launch.cwd,
            "free": free,
        }
    )
    system = f"{launch.system}\n"
    if "execute_bash" in profile.tools:  # pi has no MCP: its agent uses the verbs by its shell
        system += (
            "\nYou have no MCP tools. In their place is a shell command:\n"
            f"    sh {script} handoff TARGET 'TASK'\n"
            "and so assign, send, wait, ls, answer, stop; --help says more. Quote with ' only.\n"
        )
    files = {
        "extension.js": _PI_EXTENSION % json.dumps(text),
        "cao.sh": f'exec {quote_argv(launch.mcp[:-1])} "$@"\n',
        "system.md": system,
    }
    return Start(argv, {"PI_SKIP_VERSION_CHECK": "1"}, files)


def _start_kiro(launch: Launch) -> Start:
    profile, tools = launch.profile, ["*"]
    if lacking(profile):
        tools = [*profile.tools, "@cao"]
    command = [{"command": quote_argv(launch.hook)}]
    agent = {
        "name": "cao",
        "prompt": launch.system,
        "mcpServers": _servers(launch),
        "tools": tools,
        "allowedTools": ["@cao"],
        "hooks": dict.fromkeys(("agentSpawn", "userPromptSubmit", "stop"), command),
    }
    flags = {"--model": profile.model, "--effort": profile.effort, "--": launch.prompt}
    argv = ["chat", "--agent", "cao", *_mode(launch), *_given(flags)]
    return Start(argv, {"HOME": f"{launch.folder}/home"}, {"home/.kiro/agents/cao.json": agent})


_COPILOT_HOOKS = (
    "SessionStart UserPromptSubmit PermissionRequest PreToolUse PostToolUse PostToolUseFailure Stop"
)


def _start_copilot(launch: Launch) -> Start:
    profile, folder = launch.profile, launch.folder
    # The user's own defaultMode may be another, which plans, or goes on behind its answer.
    argv = ["--no-auto-update", "--mode", "interactive", *_mode(launch)]
    if launch.resume:
        argv.append(f"--resume={launch.resume}")
    else:
        argv += ["--session-id", launch.conversation, "--name", launch.name]
    argv += [
        *_given({"--model": profile.model, "--reasoning-effort": profile.effort}),
        *("--additional-mcp-config", f"@{folder}/mcp.json", "--allow-tool=cao"),
        *("--plugin-dir", f"{folder}/copilot", "--add-dir", f"{folder}/letters"),
        *_own_names(profile, lacking(profile)),
    ]
    if launch.prompt:
        argv.append(f"--interactive={launch.prompt}")
    hooks = _hooks(launch, _COPILOT_HOOKS)
    hooks["SessionStart"]["command"] += _AWAIT_TOOLS  # it is fired with the first prompt
    hooks["PreToolUse"]["matcher"] = "ask_user"
    for event in ("PermissionRequest", "PreToolUse"):
        hooks[event]["timeoutSec"] = ASK_TIMEOUT_S
    # 1.0.102 fires PermissionRequest for what its flags allow too: nobody is to be asked then.
    mode = effective_permissions(profile)
    own_mode = re.search(r'"defaultPermissionMode"\s*:\s*"(.+?)"', "\n".join(launch.own.values()))
    if own_mode and own_mode[1] != "manual" and mode != "all":  # no flag of its own overrules it
        raise UsageError(
            f"defaultPermissionMode {own_mode[1]}, of the Copilot settings here, would skip what"
            f" permissions {mode} checks",
            "a person sets it to manual, or gives the profile `permissions: all`",
        )
    if mode == "edits":  # git, or its next session, runs what is in these
        # A custom agent names MCP servers, and an extension is a program.
        kept = ".git .git/** .github/agents/** .github/copilot/** .github/extensions/**"
        kept += " .github/hooks/** .github/mcp.json .github/lsp.json"
        kept += " .claude/** .vscode/mcp.json .mcp.json"
        argv += [f"--deny-tool=write(**/{path})" for path in kept.split()]
        hooks["PermissionRequest"]["matcher"] = "(?!([Ee]dit|[Cc]reate|[Ww]rite)$).*"
    elif mode != "ask":
        del hooks["PermissionRequest"]
    files = {
        "mcp.json": {"mcpServers": _servers(launch)},
        "copilot/plugin.json": {"name": "cao", "version": VERSION, "hooks": "h.json"},
        "copilot/h.json": {"version": 1, "hooks": {event: [hook] for event, hook in hooks.items()}},
        "copilot/.github/instructions/cao.instructions.md": (
            f'---\napplyTo: "**"\n---\n{launch.system}\n'
        ),
    }
    env = {"COPILOT_CUSTOM_INSTRUCTIONS_DIRS": f"{folder}/copilot"}
    env["COPILOT_ALLOW_ALL"] = ""  # the user's own would trust any folder
    return Start(argv, env, files)


# OpenCode tells its plugins what happens. This plugin passes it on as Claude-shaped hooks, one
# after another. 1.18.33 sends session.idle twice after an error, and also after a refused tool.
# So a last message that did not finish is an interruption.
_OPENCODE_PLUGIN = """\
import { spawn } from "node:child_process"
import { appendFileSync, readdirSync } from "node:fs"
const hook = %s, rules = %s
let model = %s  // the profile's, until it is seen at work: without it OpenCode takes another
// Return what a configuration permits in a session of ours. Of the user's own rules a "deny" stays;
// for all else ours count. The last rule that matches decides, so ours stand behind the user's.
const patternsOf = (rule) => typeof rule === "string" ? { "*": rule } : rule ?? {}
const matches = (key, name) => RegExp("^" + key.replace(/[^\\w*?]/g, "\\\\$&")
  .replaceAll("*", ".*").replaceAll("?", ".") + "$").test(name)
const permitted = (permission) => {
  const { "**": _, ...users } = patternsOf(permission), result = {}  // "**": see _start_opencode
  const others = Object.keys(users).filter((name) => !(name in rules))
  for (const name of new Set(["*", ...others, ...Object.keys(rules)])) {
    const { "*": usual, ...more } = patternsOf(rules[name] ?? rules["*"])
    const last = Object.keys(users).findLast((key) => matches(key, name))
    const rule = usual ? { "*": usual } : {}
    if (!name.startsWith("cao_"))
      for (const [pattern, action] of Object.entries(patternsOf(users[last])))
        rule[pattern] = action === "deny" ? action : usual ?? action
    Object.assign(rule, more)
    const plain = Object.keys(rule).join() === "*"  // some permissions take nothing else
    if (Object.keys(rule).length) result[name] = plain ? rule["*"] : rule
  }
  return result
}
const count = ({ id, tokens: { total, input, cache } }) => {
  const usage = { input: input + cache.write, cached: cache.read }
  usage.output = total - usage.input - usage.cached
  appendFileSync(hook.at(-1) + "/launch/usage.jsonl",
    JSON.stringify({ id, at: Date.now(), usage }) + "\\n")
}
const run = (payload, done) => {
  const child = spawn(hook[0], hook.slice(1), { stdio: ["pipe", "pipe", "ignore"] })
  let printed = ""
  child.stdout.on("data", (data) => printed += data)
  child.on("close", () => done(printed)).on("error", () => done(""))
  child.stdin.end(JSON.stringify(payload))
  return child
}
let last = Promise.resolve()
const tell = (hook_event_name, session_id, more) => last = last.then(() => new Promise((done) =>
  run({ hook_event_name, session_id, ...more }, done)))
const textOf = (parts) => parts.filter((p) => p.type === "text" && !p.synthetic).map((p) => p.text)
export const cao = async ({ client }) => {
  const running = new Set(), below = new Set()  // below: sessions of sub-agents
  const asking = new Map()  // the hook that waits for the answer to a request
  const handed = new Set()  // messages that no part of the conversation has yet
  const calls = new Map()  // the arguments of each tool call: a permission does not repeat them
  const ask = (p, tool_name, tool_input, url, bodyOf) => {
    const agent_id = below.has(p.sessionID) ? p.sessionID : undefined
    const payload = { hook_event_name: "PermissionRequest", agent_id, tool_name, tool_input,
      always: p.always?.join(", ") }
    asking.set(p.id, run(payload, (printed) => {
      let reply
      try { reply = JSON.parse(printed) } catch {}  // no answer: it is left to a person
      if (asking.delete(p.id) && reply)  // else a person was first
        client._client.post({ url, body: bodyOf(reply),
          headers: { "Content-Type": "application/json" } })
    }))
  }
  const answered = (p) => {
    const child = asking.get(p.requestID ?? p.id)
    asking.delete(p.requestID ?? p.id)
    child?.kill("SIGKILL")  // it may be stopped
  }
  const fail = (id, { name, data: { statusCode, message } }) => name === "MessageAbortedError"
    ? tell("Interrupt", id)
    : tell("StopFailure", id, { error: statusCode ?? name, last_assistant_message: message })
  const ended = async (id) => {
    if (!running.delete(id)) return
    const { data } = await client.session.messages({ path: { id } })
    const prompt = data.findLastIndex((m) => m.info.role === "user" && textOf(m.parts).length)
    const turn = data.slice(prompt + 1).filter((m) => m.info.role === "assistant")
    const { info } = turn.at(-1) ?? { info: {} }
    if (info.error) return fail(id, info.error)
    if (!info.finish || info.finish === "tool-calls") return tell("Interrupt", id)
    // Where an answer has filled the context, 1.18.33 sums up all, and bids its model go on: what
    // that says is not the answer.
    const ends = turn.filter(({ info: { finish, summary } }) =>
      finish && finish !== "tool-calls" && !summary)
    const full = turn.findIndex((m) => m.info.summary)
    const end = ends.findLast((m) => turn.indexOf(m) < full) ?? ends.at(-1)
    const said = (m) => ({ text: textOf(m.parts).at(-1) ?? "" })
    return tell("Stop", id, { last_assistant_message: end && said(end).text,
      earlier: ends.filter((m) => m !== end).map(said), stop_reason: end?.info.finish })
  }
  return {
    config: (config) => {
      config.permission = permitted(config.permission)
      for (const agent of Object.values(config.agent ?? {}))
        if (Object.keys(patternsOf(agent.permission)).length)  // else it has none of its own
          agent.permission = permitted(agent.permission)
    },
    "chat.message": async ({ sessionID, model: used }, { parts }) => {
      if (below.has(sessionID)) return
      running.add(sessionID)
      await tell("UserPromptSubmit", sessionID, { prompt: textOf(parts).join("\\n") })
      const name = `${used?.providerID}/${used?.modelID}`
      if (["", name].includes(model)) return model = ""
      running.delete(sessionID)
      const last_assistant_message = `it would use ${name}, not ${model}: see opencode models`
      await tell("StopFailure", sessionID, { error: "no_such_model", last_assistant_message })
      throw Error(last_assistant_message)
    },
    "tool.execute.before": async ({ sessionID, callID }, { args }) => {
      // The permission for a patch goes by the files' old names alone.
      if (typeof rules.edit === "object" && String(args?.patchText).includes("*** Move to:"))
        throw Error("Not permitted: to move a file, add the new one and delete the old one.")
      calls.set(sessionID + callID, args)
    },
    "tool.execute.after": async ({ sessionID, callID }, output) => {
      calls.delete(sessionID + callID)
      // A message's name ends in a hyphen and four letters.
      if (!readdirSync(`${hook.at(-1)}/inbox/new`).some((name) => /-.{4}$/.test(name))) return
      if (below.has(sessionID) || typeof output.output !== "string") return  // an MCP tool's
      if (output.output.includes("User aborted the command")) return  // Esc: no request follows
      const printed = await new Promise((done) => run({ hook_event_name: "PostToolUse" }, done))
      if (!printed) return
      const text = JSON.parse(printed).additionalContext
      output.output += `\\n\\n${text}`
      handed.add(text)
    },
    event: async ({ event: { type, properties: p } }) => {
      for (const text of type === "message.part.updated" ? handed : [])
        if (p.part.state?.output?.endsWith(text) && handed.delete(text))
          appendFileSync(`${hook.at(-1)}/launch/handed.jsonl`, JSON.stringify(text) + "\\n")
      if (type === "session.created" && p.info.parentID) below.add(p.info.id)
      if (type === "message.updated" && p.info.tokens?.total) count(p.info)
      if (type === "session.idle") await ended(p.sessionID)
      if (type === "permission.asked") {
        const args = calls.get(p.sessionID + p.tool?.callID)
        const { diff, files, filepath, ...more } = p.metadata  // an edit's arguments have these
        const asked = args ? { ...args, ...more } : { ...p.metadata, patterns: p.patterns }
        ask(p, p.permission, asked, `/permission/${p.id}/reply`, ({ answer, message }) =>
          ({ reply: { yes: "once", no: "reject", always: "always" }[answer], message }))
      }
      if (type === "question.asked")
        ask(p, "question", { questions: p.questions }, `/question/${p.id}/reply`,
          ({ answers }) => ({ answers }))
      if (["permission.replied", "question.replied", "question.rejected"].includes(type))
        answered(p)
      // Where a prompt is too long, it sums up, and tries again: `ended` tells what came of that.
      if (type === "session.error" && p.error.name !== "ContextOverflowError")
        if (running.delete(p.sessionID)) await fail(p.sessionID, p.error)
    },
  }
}
"""


_OPENCODE_HARMLESS = (
    "read glob grep list lsp codesearch todoread todowrite skill task question"
).split()
_OPENCODE_READ = {
    "*": "allow",
    "*.env": "ask",
    "*.env.*": "ask",
    "*.env.example": "allow",
}  # its own


def _start_opencode(launch: Launch) -> Start:
    """OpenCode merges the configuration in our variable over the user's own, for this launch
    only. Merged, our rules would stand among the user's, in the user's order, and an agent's of
    the user's behind them. So our plugin puts them in; until then, all is denied."""
    profile, folder, servers = launch.profile, launch.folder, {}
    for name, server in _servers(launch).items():
        if "url" in server:
            entry = {"type": "remote", "url": server["url"]}
        else:
            argv = [server.get("command"), *server.get("args", [])]
            entry = {"type": "local", "command": argv, "environment": server.get("env", {})}
        servers[name] = {**entry, "timeout": TOOL_TIMEOUT_S * 1000}
    words = PROVIDERS["opencode"].permission_words[profile.permissions].split()
    rules: dict[str, Any] = {f"cao_{tool}": "allow" for tool in OWN_TOOLS}
    if profile.permissions in ("ask", "edits"):  # what it does not name, OpenCode 1.18.33 allows
        rules.update({"*": "ask", **dict.fromkeys(_OPENCODE_HARMLESS, "allow")})
        rules["read"] = _OPENCODE_READ
    rules.update(dict(word.split("=") for word in words))
    outside = "ask"
    if profile.permissions == "all":
        outside = "allow"
    elif rules["edit"] == "allow":  # but git, or its next session, may run what these say
        asked = ("*.git", "*.git/*", "*.opencode/*", "*opencode.json*", "*tui.json*")
        own = "*"
        if launch.inside != ".":  # to OpenCode, all of the repository is its directory
            own = re.sub(r"[*?]", "?", launch.inside) + "/*"  # these are its patterns' own
        rules["edit"] = {"*": "ask", own: "allow", **dict.fromkeys(asked, "ask")}
    rules.update(dict.fromkeys(_own_names(profile, lacking(profile)), "deny"))
    rules["external_directory"] = {"*": outside, f"{folder}/letters/**": "allow"}
    build = {"model": profile.model, "variant": profile.effort}  # a user's own would count more
    config: dict[str, Any] = {
        "autoupdate": False,
        "default_agent": "build",  # the user's own may be one that plans
        "agent": {"build": {key: value for key, value in build.items() if value}},
        "instructions": [f"{folder}/system.md"],
        "plugin": [f"file://{folder}/opencode.js"],
        "mcp": servers,
        # It adds a blank to what it sums up; and a "no" would end the turn of parallel calls.
        "experimental": {"disable_paste_summary": True, "continue_loop_on_deny": True},
        "permission": {"**": "deny"},  # no key of the user's: it stands behind these
    }
    if profile.model:
        config["model"] = profile.model
    env = {
        "OPENCODE_DISABLE_AUTOUPDATE": "1",
        # The user's OPENCODE_EXPERIMENTAL would switch these on: an agent that outlives its turn,
        # and a plan that is approved in the terminal alone.
        "OPENCODE_EXPERIMENTAL_BACKGROUND_SUBAGENTS": "false",
        "OPENCODE_EXPERIMENTAL_PLAN_MODE": "false",
        "OPENCODE_TUI_CONFIG": f"{folder}/tui.json",
    }
    if not profile.trust:  # it runs the plugins of a repository without a question
        env["OPENCODE_DISABLE_PROJECT_CONFIG"] = "1"
        # The user may have these on. A folder that has their programs may have made them.
        config.update(lsp=False, formatter=False)
    env["OPENCODE_CONFIG_CONTENT"] = json.dumps(config)
    argv = _given({"--session": launch.resume})
    # 1.18.33 ignores a prompt that comes with the id of a conversation.
    if launch.prompt and not launch.resume:
        argv.append(f"--prompt={launch.prompt}")
    model = "" if launch.resume else profile.model  # a person may have chosen another there
    plugin = _OPENCODE_PLUGIN % (json.dumps(launch.hook), json.dumps(rules), json.dumps(model))
    keys = {"input_submit": "return", "input_newline": "shift+return,ctrl+j"}
    return Start(argv, env, {"opencode.js": plugin, "tui.json": {"keybinds": keys}})


# ---- the rows ----

# Our plugin for OpenCode and the demo agent write this file.
_OWN_TOKENS = Tokens("id", "at", "usage", "input", "cached", "output", "{folder}/usage.jsonl")
# A tab, blanks at the ends, a first ! or /, a last backslash, and a last @word: while the CLI
# still looks for a file of that name, Enter takes the first one that was found.
_TYPED = r"\A\s|\A[!/]|\s\Z|\\\Z|@\S*\Z|\t"

# fmt: off
PROVIDERS: dict[str, Provider] = {row.name: row for row in (
    Provider(
        "claude", "claude", _start_claude, login="claude /login", login_status="auth status",
        login_signs="ANTHROPIC_API_KEY ANTHROPIC_AUTH_TOKEN CLAUDE_CODE_OAUTH_TOKEN",
        env_pass=(
            "ANTHROPIC_* CLAUDE_CONFIG_DIR CLAUDE_CODE_OAUTH_TOKEN CLAUDE_CODE_USE_*"
            " CLAUDE_CODE_MAX_* CLAUDE_CODE_DISABLE_* CLAUDE_CODE_SKIP_* DISABLE_*"
            " MAX_THINKING_TOKENS AWS_REGION AWS_PROFILE"
        ),
        home=("CLAUDE_CONFIG_DIR", ".claude"),
        tools={  # 2.1.330, of the mock's requests
            "execute_bash": "Bash BashOutput KillShell Monitor Agent Task Workflow",
            "fs_read": "Read",
            "fs_list": "Glob Grep",
            "fs_write": "Edit Write NotebookEdit",
            "web_fetch": "WebFetch WebSearch",
        },
        permission_words={
            "ask": "--permission-mode manual", "edits": "--permission-mode acceptEdits",
            "auto": "--permission-mode auto", "all": "--permission-mode bypassPermissions",
        },
        status="{home}/sessions/{pid}.json",
        entry_says=_claude_says, entry_runs=_claude_runs,
        tokens=Tokens(
            "message.id", "timestamp", "message.usage",
            "input_tokens cache_creation_input_tokens", "cache_read_input_tokens",
            "output_tokens", "{stem}/subagents/*.jsonl",
        ),
        transcript="{home}/projects/*/{conversation}.jsonl",
        # Of a long text it shows only the end, below a line with the number of lines above.
        # The input line of a sub-agent's view is not the session's own.
        composer=r"^(?:❯\xa0(?!Message @\S+…)|─── ↑ \d+ more ─.*\n)(.*)", busy=r"esc to interrupt",
        retries=r"retrying in \d+s · attempt (\d+/\d+)",
        piece=(2, 700),  # 3 lines or 800 characters collapse to [Pasted text #1]
        untypable=r"\A\s*[!/]|\s\Z|\\\Z|\t", proven="2.1.332",
        asks="hook", always=True, shows=True, mid_turn="transcript",
    ),
    Provider(
        "codex", "codex", _start_codex, login="codex login", login_status="login status",
        env_pass="OPENAI_* CODEX_HOME CODEX_API_KEY",
        # 0.169.0. It reads files by its shell, so the shell stays; the sandbox binds it, too.
        tools={
            "fs_write": "-s read-only",
            "web_fetch": "-cweb_search=disabled -csandbox_workspace_write.network_access=false",
        },
        tools_bind_shell=True,
        permission_words={
            "ask": "-s read-only -a on-request", "edits": "-s workspace-write -a on-request",
            "auto": "-s workspace-write -a never",
            "all": "--dangerously-bypass-approvals-and-sandbox",
        },
        entry_says=_codex_says, entry_runs=_codex_runs,
        tokens=Tokens(  # it repeats a count, but never a total
            "payload.info.total_token_usage.total_tokens", "timestamp",
            "payload.info.last_token_usage",
            "input_tokens -cached_input_tokens", "cached_input_tokens", "output_tokens",
            "{dir}/../../../*/*/*/*-{agent}.jsonl",
            "payload.item.receiver_thread_ids payload.item.agent_thread_id",
        ),
        # A dialog's cursor looks the same, and has a line below that says how to confirm.
        composer=r"^›(?!(?:.*\n)*? +(?:Press )?enter (?:to )?(?:confirm|continue))(.*)",
        busy=r"esc to interrupt", retries=r"^. Reconnecting\.\.\. (\d+/\d+)",
        failure=r"^(?:■ |• (?:Blocked by hook|Hook stopped)\n  └ )(.*)", proven="0.171.0",
        asks="hook", mid_turn="transcript",
    ),
    Provider(
        "gemini", "gemini", _start_gemini, login="gemini",
        login_signs="GEMINI_API_KEY ~/.gemini/oauth_creds.json",
        env_pass="GEMINI_* GOOGLE_*",
        home=("GEMINI_CLI_HOME", ""), shadow="home", own_files=".gemini/settings.json",
        links=(
            ".gemini/oauth_creds.json .gemini/google_accounts.json .gemini/gemini-credentials.json"
            " .gemini/GEMINI.md .gemini/trustedFolders.json .gemini/commands .gemini/skills"
            " .gemini/agents .gemini/policies"
        ),
        tools={  # 0.61.0, of the mock's requests; what starts agents goes with the shell
            "execute_bash": "run_shell_command invoke_agent",
            "fs_read": "read_file",
            "fs_list": "list_directory glob grep_search",
            "fs_write": "write_file replace",
            "web_fetch": "web_fetch google_web_search",
        },
        # It has no mode that decides by itself: `auto` asks for commands, as `edits` does.
        permission_words={
            "ask": "--approval-mode default", "edits": "--approval-mode auto_edit",
            "auto": "--approval-mode auto_edit", "all": "--approval-mode yolo",
        },
        titles={"◇": "idle", "✦": "busy", "⏲": "busy", "✋": "asking"},
        read_event=read_gemini_hook,
        entry_says=_gemini_says,
        last_kind="interrupted",  # after that it writes all it knows anew
        tokens=Tokens(
            "id", "timestamp", "tokens", "input -cached tool", "cached", "output thoughts",
            "{dir}/{conversation}/*.jsonl",
        ),
        # An earlier prompt looks the same, but has a rule, or a dialog's box, below it.
        composer=r"^ [>*] (.*?)(?:  Type your message or @path/to/file.*)?$"
                 r"(?!(?:.*\n)*?[─╭╰]─{19})",
        busy=r"esc to cancel", logged_out=r"Enter the authorization code", settle_s=0.3,
        argv_bytes=0,  # -i, too, takes an @ for a file to be added to the prompt
        untypable=r"\A\s|\A[!/?]|\s\Z|\\\Z|@\S", letters="home/.gemini/tmp/cao/",
        proven="0.61.0", asks="keys", mid_turn="transcript",
        # A line of the command stands inside both frames, and cannot begin as they do.
        dialog=r"^╭─+╮\n│ \? Shell .*\n(?:│.*\n)*?│ ╭─+╮ │\n((?:│ │ .* │ │\n)+)│ ╰─+╯ │\n"
               r"│ Allow execution of \[Shell\]\?()(?![\s\S]*^╭)",
    ),
    Provider(
        "qwen", "qwen", _start_qwen, login="qwen",
        login_signs="OPENAI_API_KEY ~/.qwen/oauth_creds.json",
        env_pass="QWEN_* OPENAI_* DASHSCOPE_* ANTHROPIC_* GEMINI_* GOOGLE_*",
        tools={  # 0.24.4, of the mock's requests; what starts agents goes with the shell
            "execute_bash": "run_shell_command agent",
            "fs_read": "read_file",
            "fs_list": "list_directory glob grep_search",
            "fs_write": "write_file edit",
            "web_fetch": "web_fetch",
        },
        permission_words={
            "ask": "--approval-mode default", "edits": "--approval-mode auto-edit",
            "auto": "--approval-mode auto", "all": "--approval-mode yolo",
        },
        titles={"Q": "idle", "◐": "busy", "✳": "asking"},
        read_event=read_qwen_hook, entry_says=_qwen_says, entry_runs=_qwen_runs,
        tokens=Tokens(
            "uuid", "timestamp", "usageMetadata", "promptTokenCount -cachedContentTokenCount",
            "cachedContentTokenCount", "candidatesTokenCount",
            "{dir}/../subagents/{conversation}/*.jsonl",
        ),
        # After Esc it puts the prompt back, with a blank of no width (U+200B) behind it.
        # The panel of its agents, below the input line, may have the keys.
        composer=r"^[>*] (.*?)(?:\s*\u200b.*|  Type your message or @path/to/file.*)?$"
        r"(?!(?:.*\n)*? {4}↑↓ navigate · Enter \w+ · Esc back)",
        busy=r"esc to cancel", logged_out=r"│ Connect a Provider ", settle_s=0.3,
        failure=r"^ +(?:\S+ Request cancelled\.|✕ UserPromptSubmit .* blocked by hook:\n +(.*))",
        argv_bytes=0,  # -i, too, takes an @ for a file to be added to the prompt
        untypable=r"\A\s|\A[!/?]|\s\Z|\\\Z|@", proven="0.24.4", asks="hook",
        mid_turn="end",  # Esc: its transcript has the results of tools that it has forgotten
    ),
    Provider(
        "copilot", "copilot", _start_copilot, login="copilot login",
        login_signs="COPILOT_GITHUB_TOKEN GH_TOKEN GITHUB_TOKEN",
        env_pass="COPILOT_* GH_HOST GH_TOKEN GITHUB_TOKEN",
        home=("COPILOT_HOME", ".copilot"), own_files="settings.json config.json",
        # A denial wins over what any other flag allows. Reading cannot be denied.
        tools={
            "execute_bash": "--deny-tool=shell",
            "fs_write": "--deny-tool=write",
            "web_fetch": "--deny-tool=url",
        },
        # Outside its directory and /tmp it asks even under `auto`, but it guesses a shell
        # command's paths from its text: `touch /var/x` asked, the same done by `python3 -c` did
        # not (1.0.102).
        permission_words={
            "ask": "no flag", "edits": "--allow-tool=write", "auto": "--allow-all-tools",
            "all": "--allow-all",
        },
        entry_says=_copilot_says, entry_runs=_copilot_runs,
        tokens=Tokens(
            "id", "timestamp", "data.usage", "inputTokens -cacheReadTokens", "cacheReadTokens",
            "outputTokens",
        ),
        transcript="{home}/session-state/{conversation}/events.jsonl",
        normal=r"(?m)^❯ *\n─+\n -- NORMAL -- ",  # of its /vim, which no flag overrules
        composer=r"^❯(.*)", busy=r"Working .*esc esc (?:interrupt|edit prompt)",
        logged_out=r"(?m)^Please use /login ", untypable=_TYPED,
        interrupt=("C-c",),  # Esc twice takes a prompt back that has no answer yet
        trusts=("Do you trust the files in this folder?", "1"), proven="1.0.102",
        asks="hook", mid_turn="transcript",
    ),
    Provider(
        "opencode", "opencode", _start_opencode, login="opencode auth login",
        tokens=_OWN_TOKENS,
        env_pass="OPENCODE_* ANTHROPIC_API_KEY OPENAI_API_KEY GEMINI_API_KEY",
        tools={
            "execute_bash": "bash",
            "fs_read": "read",
            "fs_list": "glob grep list",
            "fs_write": "edit",
            "web_fetch": "webfetch websearch",
        },
        permission_words={
            "ask": "edit=ask bash=ask webfetch=ask", "edits": "edit=allow bash=ask webfetch=ask",
            "auto": "edit=allow bash=allow webfetch=allow", "all": "*=allow",
        },
        # The box above the agent's name. In a wide pane a side bar is to the right of it.
        composer=r" *┃ {0,2}(?:Ask anything.*|(\S(?:(?! {3}).)*)?)(?: {3}.*| *)\n"
                 r"(?: *┃.*\n)+? *┃  \S.*\n *╹▀",
        busy=r"esc (?:again to )?interrupt|\[retrying",
        retries=r"\[retrying .*?attempt #(\d+)", untypable=_TYPED,
        interrupt=("Escape",) * 3, proven="1.18.33",  # the first may close a dialog
        # Our plugin writes down which messages it handed over, once the conversation has them.
        transcript="{folder}/handed.jsonl", asks="hook", always=True, mid_turn="transcript",
    ),
    Provider(
        "kimi", "kimi", _start_kimi, login="kimi login", login_signs="KIMI_MODEL_API_KEY",
        env_pass="KIMI_* MOONSHOT_*",
        home=("KIMI_CODE_HOME", ".kimi-code"), shadow="kimi",
        links="credentials device_id skills", own_files="config.toml AGENTS.md",
        # In every mode it writes without a question in a folder that git knows, and asks for
        # cao's own tools: 2.1.0 reads [[permission.rules]], but they have no effect.
        permission_words={
            **dict.fromkeys(("ask", "edits"), "default_permission_mode manual"),
            "auto": "--yolo", "all": "--auto",
        },
        entry_says=_kimi_says, entry_runs=_kimi_runs,
        tokens=Tokens(
            "agentId time usageScope", "time", "usage", "inputOther inputCacheCreation",
            "inputCacheRead", "output", "{dir}/../*/wire.jsonl",
        ),
        transcript="{home}/sessions/*/{conversation}/agents/main/wire.jsonl",
        # Below a dialog's options stand its keys; a text above it may look like an input line.
        # What stands in the frame of the input line is typed.
        composer=r"\s*│ >(?!(?:.*\n)*?[^│\n]*(?:↵ c|Enter select))(.*?)│?$",
        busy=r"(?m)^ *[🌑-🌘⠁-⣿] |^[ ●]+Compacting context… ", asks="keys", asks_own=True,
        # No line of a command begins as the frame does, and the options end at it.
        dialog=r"^ ─+\n {3}▶ (?:Run this command\?\n\n(?: {3}(?:cwd|Dangerous): .*\n)* {3}\$ "
               r"(.*\n(?:(?: {3}.*)?\n)*?)|Approve (\S+)\?\n(?:(?: {3}.*)?\n)+?)\n"
               r"(?: {3}[▶ ] \d\. .*\n){4}\n {3}↑/↓ .*\n ─+\n(?![\s\S]*^ ─)",
        retries=r"Retrying \((\d+/\d+)\)",
        deaf=True,  # it queues the next one for ever
        logged_out=r"(?m)Model: +not set, run /login|^\W*OAuth login expired",
        argv_bytes=0,  # it takes no first prompt and stays
        untypable=_TYPED, settle_s=0.2, proven="2.1.0",  # a tab is four blanks
    ),
    Provider(
        "pi", "pi", _start_pi, login="pi, then /login",
        no_prompt=r"\s*[!/]|[-@]",  # a flag, and a file: it has no "--"
        env_pass=(
            "PI_* ANTHROPIC_* OPENAI_* AZURE_OPENAI_* GEMINI_API_KEY OPENROUTER_API_KEY"
            " GROQ_API_KEY XAI_API_KEY MISTRAL_API_KEY DEEPSEEK_API_KEY MOONSHOT_API_KEY"
            " KIMI_API_KEY AWS_REGION AWS_PROFILE"
        ),
        tools={
            "execute_bash": "bash",
            "fs_read": "read",
            "fs_list": "grep find ls",
            "fs_write": "edit write",
        },
        permission_words={
            "ask": "all but reading is asked",
            "edits": "all but reading, and changes below its directory",
            "auto": "all but reading, and changes below its directory",
            "all": "nothing is asked",
        },
        mcp=False, runs_unasked=(".pi/extensions", ".pi/settings.json"),
        entry_says=_pi_says,
        tokens=Tokens(
            "id", "timestamp", "message.usage", "input cacheWrite", "cacheRead", "output"
        ),
        # A dialog stands in the same place, and says how to choose.
        composer=r"(?:─{20,}|─── ↑ .*)\n(?!(?:.*\n)*? ↑↓ navigate)\s*(.*)\n"
                 r"(?:.*\n)*?(?:─{20,}|─── ↓ )",
        busy=r"(?m)^ *[⠁-⣿] ", retries=r"Retrying \((\d+/\d+)\)",
        logged_out=r"(?m)^ (?:Warning: No models available|Error: No API key found)",
        untypable=r"\A\s|\A[!/]|\s\Z|\t", settle_s=0.1, proven="0.73.1",
        asks="hook", mid_turn="transcript",
    ),
    Provider(
        "kiro", "kiro-cli", _start_kiro, login="kiro-cli login",
        env_pass="KIRO_* AWS_*",
        # It takes hooks only from the user's home or the project, and cao writes to neither. So
        # its HOME is a folder of ours, with links to what it and git look for there.
        shadow="home",
        links=(
            ".aws .cache .config .gitconfig .local .npmrc .ssh Library"
            " .kiro/settings .kiro/steering .kiro/prompts .kiro/sessions"
        ),
        permission_words={  # it has nothing between this and all
            "ask": "no tool is trusted",
            **dict.fromkeys(("edits", "auto"), "--trust-tools=fs_read,fs_write"),
            "all": "--trust-all-tools",
        },
        interrupt=("C-c",), resumes=False,
    ),
    Provider(
        "demo", "",
        lambda launch: Start(["demo-agent", launch.folder, *filter(None, [launch.prompt])]),
        status="{folder}/status.json", tokens=_OWN_TOKENS,
        composer=r"^demo>(?!(?:.*\n)*?a number chooses)(.*)", untypable=r"(?!)", resumes=False,
        asks="hook", always=True, shows=True, mcp=False,
    ),
    Provider(
        "command", "", lambda launch: Start(launch.profile.settings["command"][1:]),
        typed_bytes=1000, argv_bytes=0, piece=(1, 1000), untypable=r"\n|[^ -~]",
        by_output=True, resumes=False,
    ),
)}
# fmt: on
ENV_OF_ALL = [name for row in PROVIDERS.values() for name in row.env_pass.split()]
ENV_OF_PERSON = [*ENV_OF_ALL, "SSH_AUTH_SOCK", "KRB5CCNAME"]  # for ssh, and agents' own workers
ALIASES = {"claude_code": "claude", "qwen_code": "qwen", "q_cli": "kiro"}
for _name in "codex gemini qwen copilot opencode kimi kiro".split():
    ALIASES[f"{_name}_cli"] = _name


def unproven(name: str) -> str:
    """Return a note for a provider that we never ran, "" for the others."""
    row = PROVIDERS[name]
    if row.proven or not row.program:
        return ""
    return " (unproven: written from its documents)"


def provider_name(name: str) -> str:
    """Return cao's name of a provider, which may be given as the reference program writes it; any
    other name as it is."""
    return ALIASES.get(name, name)


# The whole of a text by which a CLI ends itself.
_ENDS_ITSELF = re.compile(r"(?i)\s*(?:exit|quit|:w?q!?)\s*\Z")


def typing_fault(provider: Provider, text: str) -> str:
    """Return why text cannot be typed into this CLI exactly, or "" where it can: it is too long,
    or has what the CLI would run or change. Then it has to go as a file."""
    size = len(text.encode(errors="surrogatepass"))
    if size > provider.typed_bytes:
        return f"{size} bytes are more than {provider.typed_bytes}"
    match = re.search(provider.untypable, text)
    if not match and not provider.by_output:
        match = _ENDS_ITSELF.match(text)
    if match:
        at, letters = match.start(), match[0]
    else:
        at = first_fragile(text)
        letters = text[at : at + 1]
    if at < 0:
        return ""
    return f"typing would not keep {letters!r} at character {at}"


def split_pieces(text: str, newlines: int, characters: int) -> list[str]:
    """Return text in pieces that have at most so many newlines (1 or more) and characters each,
    and together are all of it."""
    pieces = []
    for lines in re.findall(rf"(?:.*\n){{0,{newlines}}}.*", text):
        pieces += [lines[at : at + characters] for at in range(0, len(lines), characters)]
    return pieces


# ---- profiles ----

# permissionMode of Claude Code and of the reference program; all others are `ask`.
_PERMISSION_MODES = {
    "acceptEdits": "edits",
    "auto": "auto",
    "dontAsk": "auto",
    "bypassPermissions": "all",
}


@lru_cache(64)
def parse_profile(text: str, name: str, source: str) -> Profile:
    """Return the profile in text; name is what one targets, whatever its `name:` says.

    Its provider is "" where the text names none: decode_profile fills it in. Raises CaoError for
    the first of _profile_faults, like a permission that does not exist: falling open would be
    worse. A role that does not exist has a reviewer's tools. Unknown keys are kept.
    """
    settings, body = parse_frontmatter(text, source)
    for what, fix in _profile_faults(settings):
        raise CaoError(f"{source}: {what}", fix)
    texts = ("provider", "prompt", "description", "model", "effort", "approve", "permissions")
    fields: dict[str, Any] = {key: text_at(settings, key) for key in texts}
    fields["provider"] = provider_name(fields["provider"])
    if body:
        fields["prompt"] = body
    if not fields["permissions"]:
        fields["permissions"] = _PERMISSION_MODES.get(str(settings.get("permissionMode")), "ask")
    for key in ("trust", "keep"):
        fields[key] = bool(settings.get(key))
    unknown = [key for key in settings if key not in PROFILE_KEYS]
    role = settings.get("role")
    if role is None:
        role = "developer"
    elif role not in tuple(ROLES):
        unknown.append(f"role: {role} (taken as reviewer)")
        role = "reviewer"
    listed = settings.get("allowedTools")
    if listed is None:
        listed = ROLES[role]
    for word in listed:
        if str(word)[:1] != "@" and not tool_words([word]):
            unknown.append(f"allowedTools: {word}")
    fields.update(role=role, settings=settings, unknown=tuple(unknown), tools=tool_words(listed))
    return Profile(name, source, **fields)


def tool_words(listed: Iterable[Any]) -> tuple[str, ...]:
    """Return the words of TOOL_WORDS that a list like allowedTools comes to."""
    return tuple(word for word in TOOL_WORDS if is_listed(word, listed))


def lacking(profile: Profile) -> list[str]:
    """Return the words of TOOL_WORDS that an agent may not use."""
    return [word for word in TOOL_WORDS if word not in profile.tools]


def effective_permissions(profile: Profile) -> str:
    """Return the permissions that a CLI is started with: `auto` in place of `all` where `all`
    would end the sandbox that enforces the profile's limits."""
    row = PROVIDERS[profile.provider]
    bound = row.tools_bind_shell and not row.tools.keys().isdisjoint(lacking(profile))
    if bound and profile.permissions == "all":
        return "auto"
    return profile.permissions


def program_of(profile: Profile) -> str:
    """Return the program that an agent is; "" where it is cao.py itself (the demo)."""
    if profile.provider == "command":
        return str(profile.settings["command"][0])
    return PROVIDERS[profile.provider].program


def may_write(profile: Profile) -> bool:
    """Tell whether an agent may change files without asking a person each time."""
    return profile.permissions != "ask" and "fs_write" in profile.tools


def may_run_anything(profile: Profile) -> bool:
    """Tell whether an agent runs any command unasked and outside a sandbox. Then a check that
    comes with its task can do nothing that the agent could not do itself.

    False where claudeConfig has the word sandbox at all: Claude Code has settings for one.
    """
    if "execute_bash" not in profile.tools or effective_permissions(profile) != "all":
        return False
    return "sandbox" not in str(profile.settings.get("claudeConfig"))


def clip_profile(profile: Profile, grant: dict[str, Any]) -> Profile:
    """Return a worker's profile with no more in it than a supervisor's `grant` allows.

    grant: what a supervisor's profile has as `grant:`, not empty. The result's `clipped` says what
    was taken away. Raises UsageError where no clipping is enough: for a profile that is not among
    the granted ones and, where the grant lists none, for a program of its own: nothing holds that.
    """
    granted = grant.get("profiles")
    if granted is not None and not is_listed(profile.name, granted):
        what = f"your profile's grant does not allow {profile.name!r} as a worker"
        listed = ", ".join(map(str, granted))
        raise UsageError(what, f"one of: {listed}" if granted else "do it yourself: it allows none")
    if profile.provider == "command" and granted is None:
        raise UsageError(
            f"{profile.name!r} runs a program of its own, which no grant can hold",
            "name it in the grant's `profiles:` if it may run all the same",
        )
    settings, removed = dict(profile.settings), []
    permissions = min(profile.permissions, grant.get("permissions") or "all", key=PERMISSIONS.index)
    if permissions != profile.permissions:
        removed.append(f"permissions {profile.permissions} -> {permissions}")
    if granted is None:
        for key in OWN_SETTINGS:  # they could undo all of the above
            if settings.pop(key, None):
                removed.append(key)
        if profile.approve:  # its supervisor would give what the grant takes
            profile = profile._replace(approve="")
            removed.append("approve")
        if profile.trust:  # a folder's own settings would, and an agent names the folder
            profile = profile._replace(trust=False)
            removed.append("trust")
    clipped = (*profile.clipped, *removed)
    return profile._replace(permissions=permissions, settings=settings, clipped=clipped)


def explain_scope(profile: Profile) -> dict[str, str]:
    """Return what an agent may, what its CLI holds it to, and what it is only told: label ->
    words for a person, "" where there is nothing to say."""
    row, lacks = PROVIDERS[profile.provider], lacking(profile)
    enforced = [word for word in lacks if word in row.tools]
    stated = [word for word in lacks if word not in row.tools]
    if enforced and "execute_bash" in profile.tools and not row.tools_bind_shell:
        stated.append(f"its shell: not to {' or '.join(TOOL_WORDS[word] for word in enforced)}")
    mode = effective_permissions(profile)
    flag = row.permission_words.get(mode, "this program knows no permissions")
    label, tools, grants = "told only", "all", ""
    if not row.program:
        label = "not held, not told"
    if lacks:
        tools = " ".join(profile.tools)
    if "grant" in profile.settings:
        grants = json.dumps(profile.settings["grant"])
    names = (f"{word} ({row.tools[word]})" for word in enforced)
    return {
        "role": profile.role,
        "permissions": f"{mode}  ({flag})",
        "tools": tools,
        "held back by its CLI": "  ".join(names),
        label: ", ".join(stated),
        "clipped by grant": ", ".join(profile.clipped),
        "grants": grants,
    }


# An unquoted word of a command that is meant for a shell.
_FOR_A_SHELL = re.compile(
    r"""\A!(?!\S) | \A[A-Za-z_]\w*\+?=\S*  # a negation, a variable for this command
      | (?<!\S)[~\#]\S* | \n              # a home, a comment, the next command
      | (?<!\S)\S*(?: [|&;<>()`*?]        # an operator, a redirection, a pattern of files
                   | \[[^\s\]]{1,99}\]    # such a pattern
                   | \$[\w({@*\#?$!-] )\S*  # a variable, the output of a command
    """,
    re.X,
)


def check_faults(command: str) -> Iterator[tuple[str, str]]:
    """Yield (what, fix) for a check that is no command, or has a word for a shell in it; nothing
    for a good one. No shell reads a check: the program would get that word as an argument."""
    import shlex

    try:
        if not shlex.split(command):
            yield "the check is empty", "write it like pytest -q"
    except ValueError as error:
        yield f"the check {command!r} is no command: {error}", "mend its quotes"
    quoted = r"\\[^\n]|'[^']*'|\"(?:\\.|[^\"\\])*\""
    # What is quoted becomes as many _, so that a match stands where it stands in command.
    unquoted = re.sub(quoted, lambda part: "_" * len(part[0]), command.rstrip(), flags=re.S)
    if match := _FOR_A_SHELL.search(unquoted):
        word = command[match.start() : match.end()]
        yield (
            f"no shell reads a check, so {word!r} cannot be in {command!r}",
            f"write sh -c {shlex.quote(command)}, or quote that word",
        )


# Keys that a grant had once -> the key of a profile that does the same.
_GONE = {"tools": "allowedTools", "env": "env"}
_SHAPE_WORDS: dict[Any, tuple[str, str]] = {
    dict: ("a mapping", "indent its entries below it"),
    list: ("a list", "indent its entries below it"),
    bool: ("yes or no", "write yes or no, without quotes"),
}


# What some keys of a profile must be. "grant: profiles" is the key profiles below grant.
_SHAPES: dict[str, Any] = {
    **dict.fromkeys(("mcpServers", "codexConfig", "env", "env: set", "grant"), dict),
    **dict.fromkeys(("claudeConfig", "claudeConfig: env", "claudeConfig: hooks"), dict),
    **dict.fromkeys(("allowedTools", "env: pass", "env: deny", "grant: profiles", "hosts"), list),
    **dict.fromkeys(("trust", "keep", "worktree"), bool),
}
_CHOICES = {
    "permissions": PERMISSIONS,
    "approve": ("supervisor", "person"),
    "grant: permissions": PERMISSIONS,
}


def _profile_faults(settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (what, fix) of each value in a profile's head that must not pass.

    Take only the first, and stop there: what comes after it relies on what is checked before, and
    may raise.
    """
    given, shapes = dict(settings), dict(_SHAPES)
    for outer, known in (("grant", GRANT_KEYS), ("env", ENV_KEYS), ("mcpServers", None)):
        inner = settings.get(outer)
        if not isinstance(inner, dict):
            continue
        for key, value in inner.items():
            given[f"{outer}: {key}"] = value
            if known is None:
                shapes[f"{outer}: {key}"] = dict
                if not re.fullmatch(r"[A-Za-z0-9_-]+", key):
                    yield f"'{outer}': {key!r} is no name", "use letters, digits, - and _"
            elif outer == "grant" and key in _GONE:
                what = f"'grant': {key!r} is gone: a grant says permissions and profiles"
                own = f"write '{_GONE[key]}:' in the worker's own profile"
                yield what, f"{own}, and name that under 'profiles:'"
            elif key not in known:
                yield f"'{outer}': {key!r} does not exist", "one of: " + ", ".join(known)
    given["claudeConfig: env"] = value_at(settings, "claudeConfig.env")
    hooks = given["claudeConfig: hooks"] = value_at(settings, "claudeConfig.hooks")
    if isinstance(hooks, dict):
        for event, groups in hooks.items():
            given[f"claudeConfig: hooks: {event}"] = groups
            shapes[f"claudeConfig: hooks: {event}"] = list
    codex = settings.get("codexConfig")
    if isinstance(codex, dict) and any(key.partition(".")[0] == "hooks" for key in codex):
        yield "'codexConfig': cao sets the hooks itself", "yours in ~/.codex/config.toml run, too"
    provider = provider_name(text_at(settings, "provider"))
    if provider and provider not in PROVIDERS:
        what = f"provider {settings['provider']!r} is not supported"
        yield what, "one of: " + ", ".join(PROVIDERS)
    for key, value in given.items():
        choices, shape = _CHOICES.get(key), shapes.get(key)
        if key.startswith("grant") and value in (None, {}):
            yield f"'{key}' says nothing", "write what it allows, or leave the key out"
        if choices and value and value not in choices:
            yield f"{key} {value!r} does not exist", "one of: " + ", ".join(choices)
        if shape and value is not None and not isinstance(value, shape):
            words, fix = _SHAPE_WORDS[shape]
            yield f"'{key}' must be {words}, got {value!r}", fix
    retries = settings.get("check_retries", 0)
    if not isinstance(settings.get("check", ""), str) or type(retries) is not int or retries < 0:
        yield "'check' must be a command, 'check_retries' a number", "check: pytest -q"
    most = settings.get("max_tokens", 1)
    if type(most) is not int or most < 1:
        yield "'max_tokens' must be a number above 0", "max_tokens: 200000"
    if settings.get("check"):
        yield from check_faults(settings["check"])
    if provider != "command":
        return
    for key in ("command", "ready"):
        if not settings.get(key):
            yield f"provider 'command' needs '{key}:'", "see 'provider: command' in README"
    if not isinstance(settings["command"], list):
        what = f"'command' must be a list, got {settings['command']!r}"
        yield what, "command: [python3, -i, -q]"
    for key in ("ready", "busy", "asking", "answer"):
        try:
            re.compile(text_at(settings, key))
        except (re.error, OverflowError, RecursionError) as error:
            yield f"'{key}' is not a regular expression: {error}", "quote it with '…'"


# ---- the shipped profiles, for a lone cao.py: equal to those in profiles/, by a test ----

SHIPPED_PROFILES = {
    "developer": """\
---
name: developer
description: Writes and changes code in its working directory, and proves that it works
role: developer
permissions: edits
---
You write code. Do exactly the task you were given, in your working directory.

- Read the code around your change first, and write as it is written.
- Keep the change small. Do not mend what you were not asked to; mention it.
- Prove it: run the tests that touch it, add one that fails without it, and say which you ran.
- If the task cannot be done as it stands, say so early with send_message (target "supervisor"), and
  go on with what can be done.
- Your final message is your answer: what you changed and where, how you checked it, what is open.
""",
    "reviewer": """\
---
name: reviewer
description: Reads a change with fresh eyes and reports what is wrong with it
role: reviewer
allowedTools: [fs_read, fs_list, execute_bash]
permissions: ask
---
You review. You read and run things; you change nothing.

- Find what would hurt: wrong results, lost data, races, missing error paths, missing tests.
- Check a suspicion before you report it: read the callers, run the test, try the input.
- Report findings worst first, each with file and line, what happens, and how to see it happen.
  Keep what is a matter of taste apart, and short.
- If you find nothing, say what you looked at and what you did not.
- Your final message is your answer: the findings, whole.
""",
    "supervisor": """\
---
name: supervisor
description: Plans work, hands it to other agents, and answers for the result
role: supervisor
permissions: ask
---
You lead a piece of work and answer for it. You do little of it yourself: you split it, hand the
parts to other agents with the tools of the MCP server `cao`, and put their answers together.

- Look first: list_sessions shows who is at work and which profiles there are.
- Parts that do not need each other go side by side: assign each, then wait. One part alone:
  handoff.
- A worker knows nothing of this conversation. Put into its task the goal, the files, the limits,
  how it is to check its work, and what its answer has to say.
- Two workers must not write the same files. Give them separate parts, or `worktree: true`.
- Read each answer with doubt. Where it matters, have another agent review it, or give the task a
  `check` command that must pass.
- To go on with a worker, name its session, not its profile: it remembers.
- When a worker asks for a permission, tell the person; that is not yours to give.
- At the end say what was done, by whom, what was checked, and what is open.
""",
}


# ==== 6. Processes ====================================================================


class Ran(NamedTuple):
    """What a program that ended has left. status: below 0, the signal that killed it."""

    status: int
    out: str
    err: str

    def fault(self) -> str:
        """Return the reason for its failure: what it printed, else its exit status."""
        return self.err.strip() or self.out.strip() or f"exit status {self.status}"


def readable(fds: Iterable[int], timeout_s: float | None = None) -> list[int]:
    """Wait until a descriptor can be read, or its other end is closed, and return all such; []
    after so many seconds. timeout_s None: wait without end.

    Not select: it takes no descriptor above 1023, which a thousand calls in flight reach.
    """
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    timeout_ms = None
    if timeout_s is not None:
        timeout_ms = timeout_s * 1000
    try:
        return [fd for fd, _ in poll.poll(timeout_ms)]
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        time.sleep(0.25)  # our callers look again
        return []


def start_thread(work: Callable[[], None], *, daemon: bool = True) -> Any:
    """Start a thread and return it. Raises OSError where the machine allows no more of them now,
    which Python calls a RuntimeError. daemon=False: this process does not end before it."""
    import threading

    thread = threading.Thread(target=work, daemon=daemon)
    try:
        thread.start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), "a new thread") from error
    return thread


def machine_fault(error: OSError) -> CaoError:
    """Return a CaoError that puts into words an OSError which nothing else has caught."""
    fix = "cao doctor"
    if error.errno == errno.EMFILE:
        fix = "wait until some calls have ended, or allow more open files: ulimit -n 4096"
    return CaoError(f"{error.filename or 'a file'}: {error.strerror}", fix)


def converse(child: Any, text: bytes, until: float, most_bytes: int) -> tuple[bytearray, bytearray]:
    """Give a program (a Popen) its standard input, and return what it prints on its pipes, out and
    err, until it has ended, or until that time.monotonic(). A process that it leaves behind may
    keep the pipes open: that is not waited for.

    most_bytes, unless it is 0: only so much of the end is kept. All else is dropped as it comes,
    so a program may print without end.
    """
    poll, into, left = select.poll(), {}, memoryview(text)
    printed = bytearray(), bytearray()
    for stream, buffer in zip((child.stdout, child.stderr), printed):
        if stream:
            into[stream.fileno()] = buffer
            poll.register(stream, select.POLLIN)
    in_use = len(into)
    if child.stdin:
        in_use += 1
        poll.register(child.stdin, select.POLLOUT)

    ended, late = False, 0  # late: bytes read after its end
    while in_use and late <= PIPE_BYTES and (left_s := until - time.monotonic()) > 0:
        if not ended and child.poll() is not None:  # what it left behind may print a last word
            ended, until = True, min(until, time.monotonic() + LEFT_OPEN_S)
        for fd, _ in poll.poll(min(left_s, LEFT_OPEN_S) * 1000):
            if fd in into:
                chunk = os.read(fd, PIPE_BYTES)
                into[fd] += chunk
                if ended:
                    late += len(chunk)
                if most_bytes:
                    del into[fd][:-most_bytes]
                over = not chunk
            else:
                try:
                    left = left[os.write(fd, left[: select.PIPE_BUF]) :]  # does not block
                except BrokenPipeError:
                    left = left[:0]
                over = not left
                if over:
                    child.stdin.close()
            if over:
                poll.unregister(fd)
                in_use -= 1
    return printed


ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # how a person, CI, a terminal end us


def hold_signals() -> Callable[[], None]:
    """Keep the handlers of ENDINGS from running, until the function that this returns is called:
    a signal that came meanwhile is then raised again."""
    came: list[int] = []
    handlers = {number: signal.getsignal(number) for number in ENDINGS}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}

    def set_handlers(to: Callable[[signal.Signals], Any]) -> None:
        try:
            for number in handlers:
                signal.signal(number, to(number))
        except ValueError:
            pass  # not the main thread: no handler runs here

    def release() -> None:
        set_handlers(handlers.__getitem__)
        for number in came:
            signal.raise_signal(number)

    set_handlers(lambda _: lambda number, _: came.append(number))
    return release


def run(
    argv: Sequence[str],
    timeout_s: float | None,  # None: no limit
    *,
    text: str = "",
    cwd: str | None = None,
    env: dict[str, str] | None = None,
    started: Callable[[int], None] = lambda _: None,
    errors: str = "replace",
    terminal: bool = False,
    tail_bytes: int = 0,
) -> Ran:
    """Run a program to its end and return what it printed: the one door to subprocess. A process
    that it leaves behind is not waited for.

    text is its standard input; started is told its process group, before anything is read.
    terminal: it has our terminal and our process group instead, and `out` is empty; give no
    timeout then. errors="surrogateescape": every byte is kept, in and out. tail_bytes: keep only
    so much of the end of what it prints, errors and all, as `out`; its standard input is empty
    then.

    Raises CaoError where it cannot be started, and where it takes longer than timeout_s. Then, and
    where a signal's exception ends the wait, its whole process group has been ended. An exit status
    other than 0 is the caller's to judge.
    """
    import subprocess

    stdin = stdout = stderr = None  # ours
    if not terminal:
        stdin = stdout = stderr = subprocess.PIPE
    if tail_bytes:
        stdin, stderr = subprocess.DEVNULL, subprocess.STDOUT
    until, left_s = float("inf"), None
    printed, child = (bytearray(), bytearray()), None
    try:
        release_signals = hold_signals()  # what we do not know of yet, we could not end
        try:
            child = subprocess.Popen(
                argv,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                cwd=cwd,
                env=env,
                start_new_session=not terminal,
            )
        except (OSError, ValueError) as error:  # ValueError: a NUL, a letter the locale lacks
            reason = getattr(error, "strerror", None) or error
            raise CaoError(f"{argv[0]} could not be started: {reason}") from error
        else:
            started(child.pid)
        finally:
            release_signals()
        if timeout_s is not None:
            until = time.monotonic() + timeout_s
        printed = converse(child, text.encode(errors=errors), until, tail_bytes)
        if timeout_s is not None:
            left_s = max(0.0, until - time.monotonic())
        child.wait(left_s)
    except BaseException as error:
        # By SIGTERM first: git, for one, removes its locks then. None: its pid is still its own.
        if child and not terminal and child.returncode is None:
            end_group(child.pid, start_mark(child.pid), HOOK_END_S)
            child.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        what = f"{argv[0]} took longer than {timeout_s:.0f} s"
        output = b"".join(printed)[-CHECK_TAIL_BYTES:].decode(errors="replace").strip()
        if output:
            what += f", having printed: {tail_lines(output, 5)}"
        raise CaoError(what) from error
    finally:
        for stream in filter(None, (child.stdin, child.stdout, child.stderr) if child else ()):
            stream.close()
    return Ran(child.returncode, *(part.decode(errors=errors) for part in printed))


def search_path(path: str) -> str:
    """Return a PATH with those of USUAL_PLACES behind it that are there, and not in it."""
    folders = path.split(":") if path else []
    usual = [folder for folder in map(os.path.expanduser, USUAL_PLACES) if os.path.isdir(folder)]
    return ":".join([*folders, *(folder for folder in usual if folder not in folders)])


def find_program(name: str, path: str | None = None) -> str:
    """Return the absolute path of a program, by its name or a path.

    path: the PATH to look through, ours by default; USUAL_PLACES come after it. Raises CaoError
    that names the places searched.
    """
    if path is None:
        path = os.environ.get("PATH", "")
    folders = map(os.path.expanduser, search_path(path).split(":"))
    places = [f"{folder}/" for folder in folders if folder]
    if "/" in name:
        places, name = [""], os.path.expanduser(name)
    for place in places:
        file = place + name
        if os.access(file, os.X_OK) and os.path.isfile(file):
            return os.path.abspath(file)
    if "/" in name:
        raise CaoError(f"{name} is not a program that can be run", "check the path")
    raise CaoError(
        f"{name} is not installed: looked in PATH and {', '.join(USUAL_PLACES)}",
        f"install {name}, or start cao with its folder on PATH",
    )


def program_fault(name: str) -> str:
    """Return why a program cannot be started, in a few words; "" if it can."""
    try:
        find_program(name)
    except CaoError as error:
        return f"cannot be used: {shorten(error.what, 60)}"
    return ""


# These say that there is no file at a path, or none that could be ours.
_NO_FILE = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENXIO,
    errno.ENAMETOOLONG,
    errno.EOPNOTSUPP,  # a socket, on macOS
)


def may_pass(path: str, error: OSError) -> bool:
    """Tell whether an error at a file is the machine's fault, not the file's. It may pass, so it
    must not be taken for "there is no such file"."""
    if error.errno == errno.EACCES:
        return os.access(path, os.R_OK | os.W_OK)  # locks are opened to write, too
    return error.errno not in _NO_FILE


def is_gone(path: str) -> bool:
    """Tell whether there is nothing at a path; False where the machine does not say."""
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno in (errno.ENOENT, errno.ENOTDIR)
    return False


# What is raised where the machine refuses something, perhaps only for a while. ImportError: we
# import a module at its first use.
FAILURES = (CaoError, OSError, ImportError)


def _stat_words(pid: int | str) -> list[str]:
    """Return the fields of /proc/PID/stat from its name on (name, state, parent, group, …); none
    where the process is gone, or there is no /proc."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            name, _, fields = file.read().partition("(")[2].rpartition(")")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []
    return [name, *fields.split()]


def programs_above() -> list[str]:
    """Return the names of our ancestor processes, the nearest first; none where there is no
    /proc."""
    names: list[str] = []
    pid = os.getppid()
    while words := _stat_words(pid):
        names.append(words[0])
        pid = int(words[2])
    return names


def start_mark(pid: int, *, zombie: bool = True) -> str:
    """Return a mark of when a process started, "" if it is gone. Pids are used again; the mark
    tells one use from the next. zombie=False: a zombie counts as gone (where there is /proc).

    Without /proc this runs `ps`, and may raise CaoError.
    """
    if words := _stat_words(pid):
        if words[1] == "Z" and not zombie:
            return ""
        return words[20]
    if os.path.isdir("/proc/self"):
        return ""
    return run(["ps", "-o", "lstart=", "-p", str(pid)], 5).out.strip()


def note_process(pid: int) -> dict[str, Any]:
    """Return a note that tells a process from any other that ever has its pid."""
    return {"id": pid, "start": start_mark(pid)}


def is_running(noted: dict[str, Any]) -> bool:
    """Tell whether the process of a note (note_process) still runs. False for a zombie, and for
    what is no such note, like {}."""
    try:
        mark = start_mark(int(noted["id"]), zombie=False)
        return bool(mark) and mark == noted["start"]
    except (LookupError, TypeError, ValueError):
        return False


def _processes() -> list[tuple[int, int, int]]:
    """Return the pid, parent and group of each process; zombies are not counted."""
    processes: Iterable[Sequence[str]]  # pid, state, parent, group
    if os.path.isdir("/proc/self"):
        pids = filter(str.isdigit, os.listdir("/proc"))
        processes = ([pid, *_stat_words(pid)[1:4]] for pid in pids)
    else:
        listed = run(["ps", "-A", "-o", "pid=,stat=,ppid=,pgid="], 5).out
        processes = map(str.split, listed.splitlines())
    living = [facts for facts in processes if len(facts) == 4 and not facts[1].startswith("Z")]
    return [(int(pid), int(parent), int(group)) for pid, _, parent, group in living]


def group_members(group: int) -> list[int]:
    """Return the pids in a process group; zombies are not counted."""
    return [pid for pid, _, of in _processes() if of == group]


def end_program(noted: dict[str, Any], grace_s: float = 0.3) -> int:
    """End what is left of a program that was started as a process group (noted: see note_process),
    and the groups of the processes below it: Kimi Code 2.1.0 starts each shell as one of its own,
    and leaves them running. Return how many processes its own group had."""
    below, groups = {noted["id"]}, set()
    if is_running(noted):
        processes = _processes()
        while found := {p for p, parent, _ in processes if parent in below} - below:
            below |= found
        groups = {of for pid, _, of in processes if pid in below} - {noted["id"], os.getpgrp()}
    marks = {group: start_mark(group) for group in groups}
    count = end_group(noted["id"], noted["start"], grace_s)
    for group, start in marks.items():
        end_group(group, start)
    return count


def command_lines() -> str:
    """Return the command lines of all processes, one a line, their words joined by blanks."""
    if not os.path.isdir("/proc/self"):
        return run(["ps", "-A", "-ww", "-o", "args="], 5).out
    lines = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
                lines.append(file.read().replace("\0", " "))
        except OSError:
            continue  # it has ended
    return "\n".join(lines)


def end_group(group: int, leader_start: str, grace_s: float = 0.3) -> int:
    """End what is left of a process group; return how many processes that were at first.

    leader_start is the start_mark of the process that founded it. Where a stranger has that pid
    now, nothing is touched; where the leader is gone, the group is still its own. SIGTERM first,
    SIGKILL after grace_s, each with SIGCONT, for a stopped process would not act on SIGTERM.
    """
    if group <= 1 or start_mark(group) not in ("", leader_start):
        return 0
    count = len(group_members(group))
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not group_members(group):
            break
        try:
            os.killpg(group, number)
            os.killpg(group, signal.SIGCONT)
        except (ProcessLookupError, PermissionError):
            break
        end = time.monotonic() + grace_s
        while group_members(group) and time.monotonic() < end:
            select.select([], [], [], 0.01)  # not our children: no event tells
    return count


# tmux says what went wrong in English only (exit status 1 for all); tmux 3.2a to 3.5.
_TMUX_WORDS = {
    "no server": r"no server running on|error connecting to .* \((No such|Connection ref)"
    r"|server exited unexpectedly|lost server",
    "gone": r"can't find (session|pane|window|client)|no current target",
    "duplicate": r"duplicate session",
}


class Tmux:
    """The one door to our tmux server. Knows tmux(1), nothing of agents.

    None of tmux's languages may ever interpret a text or a path that comes from others:
    - its command line: `run` escapes a ; at the end of an argument;
    - its formats: they are constants here. A directory reaches tmux as the tmux client's current
      one, a pipe's command as the value of an option;
    - its configuration: each file is an -f, and what we paste is written in octal.

    Where a method does not say that it copes with a session that is gone, it raises TmuxError.
    """

    def __init__(self, socket: str, *confs: str) -> None:
        self.socket, self.confs, self.program = socket, confs, find_tmux()
        keep = ("PATH", "HOME", "USER", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMUX_TMPDIR")
        # The first starter's environment reaches every later session: keep it minimal.
        self.env = {key: os.environ[key] for key in keep if key in os.environ}
        self.env["TERM"] = "xterm-256color"
        self.shown = ("", "")  # the state and the question that show_state has set last
        folder = os.path.realpath(self.env.get("TMUX_TMPDIR") or "/tmp")  # tmux(1), -L
        self.socket_path = f"{folder}/tmux-{os.getuid()}/{socket}"

    def run(
        self, *args: str, then: Sequence[str] = (), text: str = "", cwd: str | None = None
    ) -> str:
        """Run a tmux command, and `then` another in the same process; return what they print.

        text: standard input. Raises TmuxError. Its `fix` is no advice here, but the kind of the
        fault for the caller: "no server", "gone" or "duplicate", "" for words we do not know.
        """
        argv = [self.program, "-u", "-L", self.socket]
        for conf in self.confs:
            argv += ["-f", conf]
        for command in filter(None, (args, then)):
            # A ; at an argument's end would end the command.
            argv += [*(re.sub(r";\Z", r"\\;", word) for word in command), ";"]
        # No time limit: a stopped server would run the command anyway once it continues.
        ran = run(argv[:-1], None, text=text, env=self.env, cwd=cwd)
        if ran.status == 0:
            return ran.out
        fault = ran.fault()
        meaning = next((m for m, known in _TMUX_WORDS.items() if re.search(known, fault)), "")
        raise TmuxError(f"tmux: {fault}", meaning)

    def _run_there(self, *args: str) -> str | None:
        """Run a tmux command; return None where its target or the server is gone."""
        try:
            return self.run(*args)
        except TmuxError as error:
            if error.fix in ("no server", "gone"):
                return None
            raise

    def new_session(
        self, name: str, cwd: str, env: dict[str, str], argv: Sequence[str], *, fixed: bool
    ) -> int:
        """Start a detached session whose pane runs argv (no shell reads it); return the pid of
        the process in the pane. env: variables to add to those of the tmux server. fixed: it keeps
        its size, else it takes that of the terminal that shows it."""
        size = ("-x", str(PANE_COLUMNS), "-y", str(PANE_LINES))
        pairs = [word for key, value in env.items() for word in ("-e", f"{key}={value}")]
        # This sets window-size to manual. As a global option that crashes tmux 3.3a at new-session.
        sized: tuple[str, ...] = ("resize-window", "-t", f"={name}:", *size)
        if not fixed:
            sized = ("set-option", "-w", "-t", f"={name}:", "window-size", "latest")
        named = ("-s", name, "-n", name)
        what = ("-d", "-P", "-F", "#{pane_pid}", *named, *size, *pairs, "--", *argv)
        # No -c: tmux reads it as a format. The session starts in the tmux client's directory.
        return int(self.run("new-session", *what, then=sized, cwd=cwd))

    def kill_session(self, name: str) -> None:
        """Kill a session by its exact name, if it is there."""
        self._run_there("kill-session", "-t", f"={name}")

    def pane_of(self, name: str) -> str:
        """Return the id of the one pane of a session ("%12"), or "" if it is gone."""
        panes = self._run_there("list-panes", "-s", "-t", f"={name}", "-F", "#{pane_id}") or ""
        return panes.partition("\n")[0]

    def capture(self, pane: str, *, first: str = "", ansi: bool = False, join: bool = False) -> str:
        """Return a pane's screen. first: the line to start at ("-100": so far up the history).
        ansi: with its colours. join: a line that the pane has wrapped is one line again."""
        flags = ["-e"] * ansi + ["-J"] * join
        if first:
            flags += ["-S", first]
        screen = self.run("capture-pane", "-p", "-t", pane, *flags)
        if join:  # tmux 3.2a fills lines with blanks; a prompt may end in one
            screen = re.sub(r"(?m) {2,}$", " ", screen)
        return screen

    def ask(self, pane: str, form: str) -> str:
        """Return a format of tmux(1), expanded for a pane. form is a constant of ours."""
        return self.run("display-message", "-p", "-t", pane, form).rstrip("\n")

    def title_of(self, name: str) -> str:
        """Return the title of a session's pane, "" where it is gone."""
        title = self._run_there("display-message", "-p", "-t", f"={name}:", "#{pane_title}") or ""
        return title.rstrip("\n")

    def paste(self, pane: str, pieces: Sequence[str]) -> None:
        """Paste pieces one after the other, each as a bracketed paste if the program asked for
        such. No Enter is pressed.

        One process for all, the commands on its stdin: tmux takes about 16 KB of arguments.
        -r: a newline stays one (else tmux makes it a carriage return).
        """
        commands = []
        for piece in pieces:
            octal = "".join(f"\\{byte:03o}" for byte in piece.encode())
            commands.append(f'set-buffer -b cao -- "{octal}"')
            commands.append(f"paste-buffer -p -r -d -b cao -t {pane}")
        self.run("source-file", "-", text="\n".join(commands) + "\n")

    def keys(self, pane: str, *names: str) -> None:
        """Send keys by their tmux names ("Enter", "C-u"). Where a person has left the pane
        scrolled back, this ends: there tmux would take the keys for itself."""
        leave = ("if-shell", "-F", "-t", pane, "#{pane_in_mode}", f"send-keys -t {pane} -X cancel")
        self.run(*leave, then=("send-keys", "-t", pane, *names))

    def pipe(self, pane: str, command: str) -> None:
        """Pipe all that a pane's program prints from now on into a command, which a shell
        reads."""
        keep = ("set-option", "-p", "-t", pane, "@cao-pipe", command)
        self.run(*keep, then=("pipe-pane", "-O", "-t", pane, "#{@cao-pipe}"))

    def show_state(self, pane: str, state: str, questions: Sequence[dict[str, Any]]) -> None:
        """Show a session's state and its first question, made visible, in the status lines. tmux
        is called only if they differ from what this object has shown last."""
        asks = ""
        if questions:
            asks = f"asks: {questions[0]['text']}"
        asks = shorten(visible(asks), 400).replace("#", "##")  # a single one may begin a style
        if (state, asks) != self.shown:
            option = ("set-option", "-t", pane)
            self.run(*option, "@cao", state, then=(*option, "@cao-asks", asks))
            self.shown = state, asks

    def clients(self, name: str) -> list[str]:
        """Return the names of the tmux clients attached to a session in which one can type, and
        nobody has for TYPING_S."""
        form = "#{?client_readonly,,#{client_activity} #{client_name}}"
        out = self.run("list-clients", "-t", f"={name}", "-F", form)
        clients = [line.split(" ", 1) for line in out.split("\n") if line]
        return [client for at, client in clients if abs(time.time() - int(at)) > TYPING_S]

    def popup(self, client: str, argv: Sequence[str]) -> bool:
        """Run a program in a popup of a client; return when it is closed. False where that was
        not by its program: by `close_popup`, or because the client is gone."""
        size = ("-w", "90%", "-h", "80%")
        try:
            return self._run_there("display-popup", "-E", *size, "-c", client, "--", *argv) == ""
        except TmuxError as error:
            return not error.what.endswith("exit status 129")  # tmux 3.3a, for both

    def close_popup(self, client: str) -> None:
        """Close a client's popup, if it has one; nothing where the client is gone."""
        self._run_there("display-popup", "-C", "-c", client)

    def person_active_s(self, pane: str) -> float:
        """Return the seconds since somebody last typed in a client attached to a pane's session;
        a large number where nobody can."""
        form = "#{?client_readonly,,#{client_activity}}"
        out = self.run("list-clients", "-t", pane, "-F", form)
        return min((abs(time.time() - int(at)) for at in out.split()), default=1e9)


def find_tmux() -> str:
    """Return tmux's path. Raises TmuxError where it is missing; its age is check_tmux's affair."""
    try:
        return find_program("tmux")
    except CaoError as error:
        fix = "install tmux 3.2 or newer (apt install tmux, brew install tmux)"
        raise TmuxError(error.what, fix) from None


@lru_cache
def check_tmux(program: str) -> str:
    """Return tmux's version. Raises TmuxError where it is older than 3.2; a version without a
    number ("master") passes. program: its path; it is run once."""
    version = run([program, "-V"], 10).out.strip()
    match = re.search(r"(\d+)\.(\d+)", version)
    if match and (int(match[1]), int(match[2])) < TMUX_MINIMUM:
        raise TmuxError(f"{program} is {version}, too old", "install tmux 3.2 or newer")
    return version.replace("tmux ", "")


# ==== 7. Store ========================================================================
#
# The ledger: one file says who is owed what, sessions/OWNER/out/TASK.
#
#   a task was given        out/TASK exists. The giver creates it with its lock held, and frees
#                           the lock when the task's message is in the worker's inbox. An entry
#                           without lock and message was abandoned: whoever sees it removes it.
#   it has ended            the worker's results/TASK.json exists; there is exactly one
#   its result is unread    both exist
#   somebody is telling it  the lock on out/TASK is held; the kernel frees it if they die
#   it was told             out/TASK is unlinked: after the whole MCP line was written, after
#                           stdout was flushed, or when the CLI has taken it as a prompt
#   it is told again        on purpose: to a wait that names the task (Orchestrator._take); and,
#                           marked so, where a runner died as it typed it (Runner._letters)
#
# Messages are told under the same rule: lock inbox/new/ID, tell, rename it into inbox/cur/.
# Before a message is handed to a CLI at work, it is renamed inbox/new/ID~ (room 9, mid-turn).


def runtime_home() -> str:
    """Return the runtime directory's path: $CAO_HOME, else cao/ in $XDG_STATE_HOME, else in
    ~/.local/state. It need not exist yet. Its links are not resolved: Store judges the way to it
    first. Raises UsageError where CAO_HOME is / or the user's home directory."""
    if given := os.path.expanduser(os.environ.get("CAO_HOME", "")):  # a client's JSON may have ~
        if not given.startswith("/"):  # else the current directory may be gone: a worker moved it
            given = os.path.join(current_directory(), given)
        home = os.path.normpath(given)
        if os.path.realpath(home) in ("/", os.path.realpath(os.path.expanduser("~"))):
            raise UsageError(f"CAO_HOME is {home}", "set it to a folder of cao's own")
        return home
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    if not state.startswith("/"):  # no HOME at all (some containers and CI)
        # Not /tmp: sandboxes let an agent write there.
        return f"/var/tmp/cao-{os.getuid()}/cao"
    return os.path.normpath(f"{state}/cao")


@lru_cache(None)
def start_directory() -> str:
    """Return the directory that this process was started in, "" where it was gone by then: `main`
    calls this first."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def current_directory() -> str:
    """Return the current directory. Where it was removed under us, that is the path we were
    started in; if a directory is there again, we enter it. Raises CaoError where that was gone
    before we started, or leads elsewhere now."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        path = start_directory()
    if not path or os.path.realpath(path) != path:
        raise CaoError("the current directory is gone", "cd to one that is there")
    if os.path.isdir(path):
        os.chdir(path)
    return path


def working_directory(given: str) -> str:
    """Return the real path of the directory that was given to start in; "" is the current one.

    Raises UsageError where nothing can be started in it.
    """
    path = given or current_directory()
    if not os.path.isdir(path) or not os.access(path, os.X_OK):
        what = f"{path} is no directory that can be entered"
        raise UsageError(what, "give a whole path that is there")
    return os.path.realpath(path)


def random_letters(count: int = 4) -> str:
    """Return random letters for a name."""
    return "".join(NAME_LETTERS[b % len(NAME_LETTERS)] for b in os.urandom(count))


def drain_pipe(fd: int) -> None:
    """Empty a non-blocking pipe: read what is in it now, and drop it."""
    try:
        while os.read(fd, 4096):
            pass
    except BlockingIOError:
        pass


class Wake:
    """Lets a thread sleep until something happens. It owns one FIFO; `listen` puts a link to that
    into a session's wake/, Store.poke writes a byte into every FIFO linked there, and then `wait`
    returns.

    For one thread. Only `poke` may be called from any thread, also after `close`.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.links: list[str] = []
        name = f"{os.getpid()}-{random_letters(6)}"
        self.path = f"{store.home}/wake/{name}"
        os.mkfifo(self.path, 0o600)
        try:
            # Read and write: without a writer of our own, poll would report end of file for ever.
            self.fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            _unlink(self.path)
            raise
        store.wakes.append(self)

    def listen(self, session: str) -> None:
        """Be woken at each poke of a session (Store.poke), until `close`; "": whenever the state
        of any session changes. Does nothing where the session's folder is gone."""
        folder = self.store.listeners(session)
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            pass
        except FileNotFoundError:
            return  # the session was cleaned away
        link = f"{folder}/{os.path.basename(self.path)}"
        try:
            os.symlink(self.path, link)
        except FileExistsError:
            return
        self.links.append(link)

    def poke(self) -> None:
        """Have `wait` return: the one that blocks now, or else the next."""
        poke_fifo(self.path)

    def wait(self, timeout_s: float) -> None:
        """Block until poked, or for so many seconds."""
        readable([self.fd], max(0.0, timeout_s))
        self.drain()

    def drain(self) -> None:
        """Forget the pokes so far. The caller looks at everything after this call, not before it:
        so it misses nothing."""
        drain_pipe(self.fd)

    def vanish(self) -> None:
        """Remove the FIFO's file and the links to it, but leave it open: a thread that is in
        `wait` stays there. For the end of the process."""
        for path in (*self.links, self.path):
            _unlink(path)

    def close(self) -> None:
        """Remove the files and close the FIFO. No thread may be in `wait` any more."""
        self.store.wakes.remove(self)
        os.close(self.fd)
        self.vanish()


def lock_holder(path: str) -> str:
    """Return who has a file's lock, for a message: "process 123", or "another process" where
    /proc does not tell."""
    inode = str(file_mark(path)[1])
    for line in (read_file("/proc/locks") or b"").decode().splitlines():
        words = line.split()
        if words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode:
            return f"process {words[4]}"
    return "another process"


class FileLock:
    """A lock on a file (flock) for a block: `with FileLock(path): …`. It keeps out other
    processes, and other FileLocks of this one.

    create=False: raises FileNotFoundError where there is no file. wait=False: raises
    BlockingIOError where the lock is held; else this waits for it without limit, and for an
    exclusive lock says on stderr, after LOCKED_S, who has it.
    """

    def __init__(
        self, path: str, *, shared: bool = False, create: bool = True, wait: bool = True
    ) -> None:
        self.path = path
        self.kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        self.flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
        if create:
            self.flags |= os.O_CREAT
        self.wait = wait

    def __enter__(self) -> int:
        try:
            self.fd = os.open(self.path, self.flags, 0o600)
        except OSError as error:
            create = self.flags & os.O_CREAT
            if error.errno == errno.EACCES:  # somebody took our permission away; it may be held
                os.chmod(self.path, 0o600)
            elif not create or error.errno not in (errno.EISDIR, errno.ELOOP, errno.ENXIO):
                raise
            else:  # a folder, a socket or a link to itself is none of ours: out of the way with it
                os.rename(self.path, f"{self.path}.{random_letters(6)}")
            self.fd = os.open(self.path, self.flags, 0o600)
        try:
            try:
                fcntl.flock(self.fd, self.kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if not self.wait:
                    raise
                self._wait_for_it()
        except BaseException:
            os.close(self.fd)
            raise
        return self.fd

    def _wait_for_it(self) -> None:
        """Block until the lock is ours; tell the person of a long wait for an exclusive one."""
        import threading

        def say() -> None:
            complain(f"waiting for {lock_holder(self.path)} to let go of {self.path}")

        timer = threading.Timer(LOCKED_S, say)
        timer.daemon = True
        if self.kind == fcntl.LOCK_EX:  # a shared one is taken to wait for a process's death
            try:
                timer.start()
            except RuntimeError:
                pass  # the machine allows no more threads: nothing is said
        fcntl.flock(self.fd, self.kind)
        timer.cancel()

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


class Claim:
    """The lock on one thing that this process is about to tell a session (owner): on a message's
    file inbox/new/ID, or on a result's entry out/TASK. No other process tells it meanwhile.

    `told` takes it off the books. After `release` instead, or this process's death, another
    process may tell it.
    """

    def __init__(self, store: Store, owner: str, path: str, fd: int) -> None:
        self.store, self.owner, self.path, self.fd = store, owner, path, fd

    def told(self) -> None:
        """Note that it was told (Store.take_off), then free the lock. A second call does nothing.

        Where this raises, the lock is still held: try again, or `release`.
        """
        self.store.take_off(self.path)
        self.release()

    def mark(self) -> None:
        """Mark a message, just before a hook hands it over, as perhaps told: add a ~ to its name
        (room 9, "While a turn runs"). Do not call `told` then: it would not find the file."""
        os.rename(self.path, self.path + "~")

    def release(self) -> None:
        """Free the lock, if it is still held, and wake those who listen to the owner: one of them
        may want to tell it. Where they cannot be woken, they find it when they look."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            try:
                self.store.poke(self.owner)
            except OSError:
                pass

    def is_last(self) -> bool:
        """Tell whether no other thing is to be claimed beside this one: this process may open few
        more files, and needs some to tell it. The kernel gives the lowest free descriptor."""
        most = os.sysconf("SC_OPEN_MAX")  # -1: no limit, as on macOS
        return 0 <= most - SPARE_FILES <= self.fd


def poke_fifo(path: str) -> bool:
    """Write a byte into a FIFO. Return False where nobody has it open to read, or it is gone.
    Callers remove it then, so where this cannot be known (no descriptors left) it is True."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return error.errno not in (errno.ENXIO, errno.ENOENT)
    try:
        os.write(fd, b".")
    except BlockingIOError:
        pass  # it is full of pokes already
    except BrokenPipeError:
        return False  # the reader died just now
    finally:
        os.close(fd)
    return True


def int_setting(name: str, default: int) -> int:
    """Return a number of 1 or more from the environment, default where it is not set or empty.
    Raises UsageError for anything else."""
    text = os.environ.get(name) or str(default)
    if not re.fullmatch("0*[1-9][0-9]{0,8}", text):
        raise UsageError(f"{name} is {text!r}, not 1 or more", f"export {name}={default}")
    return int(text)


def others_can_replace(facts: os.stat_result) -> bool:
    """Tell whether others than a folder's owner can replace what is in it (facts: its stat). The
    user's own group, of the same name and without another member, does not count as others
    (Fedora, older Ubuntu: umask 002)."""
    if facts.st_mode & 0o1000 or not facts.st_mode & 0o022:  # sticky, or nobody else writes
        return False
    if facts.st_mode & 0o002:
        return True

    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(facts.st_gid)
    except KeyError:
        return True
    if group.gr_name != user:
        return True
    return not {user}.issuperset(group.gr_mem)


def make_home(home: str, make: bool = True) -> None:
    """Make the runtime directory (an absolute path). Raises CaoError where it, or a folder or link
    on the way to it, belongs to another user or can be written by others: they could put a
    directory of theirs in its place, and we would run their code. The way may be root's. make:
    without it, nothing is made, and only what is there is judged."""
    here, fix = f"the runtime directory {home}", "set CAO_HOME to a folder of yours"
    path = "/"
    for part in home.split("/"):
        path = os.path.join(path, part)
        try:
            if make:
                os.makedirs(path, 0o700, exist_ok=True)
            facts = os.lstat(path)  # of a link itself: its owner says where it leads
        except OSError as error:
            if not make:
                return
            raise CaoError(f"{here} cannot be made: {error.strerror}", fix) from error
        which, owners = here, [os.getuid()]
        if path != home:
            which = f"{here} is not safe: {path}"
            owners.append(0)
        if facts.st_uid not in owners:
            raise CaoError(f"{which} belongs to another user", fix)
        if stat.S_ISLNK(facts.st_mode):
            continue  # nobody can write into a link
        which = f"{which} can be written by others"
        if path == home and facts.st_mode & 0o022:
            raise CaoError(which, f"chmod 700 {_in_shell(path)}")
        if others_can_replace(facts):
            raise CaoError(which, f"chmod go-w {_in_shell(path)}; or {fix}")


def complain(words: str) -> None:
    """Print a warning on stderr."""
    try:
        sys.stderr.write(f"cao: {words}\n")
    except OSError:
        pass  # stderr may be a file on the same full disk


def _unlink(path: str) -> None:
    """Remove a file that may be gone already."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _listdir(path: str) -> list[str]:
    """Return the names in a folder, sorted; none where there is no such folder."""
    try:
        return sorted(os.listdir(path))
    except FileNotFoundError:
        return []


def read_regular(path: str, errors: str = "surrogatepass") -> str:
    """Return a file's text; errors: as open() takes it. Raises FileNotFoundError where there is
    none; ValueError for what cannot be read as a text file: a directory, a FIFO (which would
    block), a link to itself, no permission, bytes that are no UTF-8, more than any file of ours
    has; OSError for a fault of the machine (may_pass), which says nothing about the file."""

    def open_at_once(path: str, flags: int) -> int:
        return os.open(path, flags | os.O_NONBLOCK)

    try:
        with open(path, encoding="utf-8", errors=errors, opener=open_at_once) as file:
            facts = os.fstat(file.fileno())
            if stat.S_ISREG(facts.st_mode) and facts.st_size <= MAX_FILE_BYTES:
                return file.read()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(path) from error
    except OSError as error:
        if may_pass(path, error):
            raise
    raise ValueError(f"{path} cannot be read as a file")


def next_stamp(folder: str) -> str:
    """Return the beginning of a file name, 20 digits, that sorts after those in a folder now: the
    time in nanoseconds, or more where the clock was set back. Two callers at once may get the
    same: the rest of the name tells their files apart."""
    newest = max((int(e[:20]) for e in _listdir(folder) if re.match(r"\d{20}-", e)), default=0)
    return f"{max(time.time_ns(), newest + 1):020d}"


def written_at(path: str) -> float:
    """Return when a file was last written, in epoch seconds; 0 where there is none."""
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def file_mark(path: str) -> tuple[int, int]:
    """Return a file's size and inode, which tell whether it grew or was replaced; (0, 0) where
    there is none."""
    try:
        facts = os.stat(path)
    except OSError:
        return 0, 0
    return facts.st_size, facts.st_ino


def _not_written(path: str, error: OSError) -> CaoError:
    return CaoError(f"{path} could not be written: {error.strerror}", "make room there")


def read_file(path: str) -> bytes | None:
    """Return the bytes in a regular file, None where there is none that can be read."""
    try:
        if os.path.isfile(path):  # a FIFO would block us
            with open(path, "rb") as file:
                return file.read()
    except OSError:
        pass
    return None


def own_umask() -> int:
    """Return this process's umask. Without /proc it is 0o077 for a moment."""
    if found := re.search(rb"^Umask:\s*(\d+)", read_file("/proc/self/status") or b"", re.M):
        return int(found[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def dump(record: Any) -> str:
    """Return a record as JSON that a person can read with cat."""
    if hasattr(record, "_asdict"):
        record = record._asdict()
    return json.dumps(record, ensure_ascii=False) + "\n"


# A record's annotation -> the types that JSON may have for that field.
_JSON_TYPES: dict[str, Any] = {
    "str": str,
    "bool": bool,
    "int": int,
    "int | None": (int, type(None)),
    "float": (int, float),
    "tuple[str, ...]": tuple,
}


def make_record(facts: dict[str, Any], kind: Callable[..., R]) -> R:
    """Return the record of a kind (a NamedTuple) that a JSON object holds; keys that the kind
    does not have are left out. Raises TypeError where a field without a default is missing, or a
    value has another type."""
    types = kind.__annotations__
    values = {name: _tuples(value) for name, value in facts.items() if name in types}
    for name, value in values.items():
        shape = _JSON_TYPES.get(types[name], object)
        if types[name] == "float" and name.endswith("_at"):
            shape = MOMENT
        if not fits(value, shape):
            raise TypeError(name)
        if types[name].startswith("dict") and not fits_where_given({name: value}, _FACTS):
            raise TypeError(name)
    return kind(**values)


_NUMBER = (int, float)
_PROCESS = {"id": int, "start": str}
_FACTS: dict[str, Any] = {  # the shapes of a result's facts
    "check": {"command": str, "tries": int, "tail": (str, type(None))},
    "worktree": {"branch": str, "diffstat": str, "dirty": bool},
    "usage": dict.fromkeys(("input", "cached", "output"), int),
}
_STATE: dict[str, Any] = {  # the shapes of state.json
    **dict.fromkeys("state why task task_message task_line last_line conversation".split(), str),
    **dict.fromkeys(("transcript", "held_back"), str),
    **dict.fromkeys(("clock", "exit_status"), _NUMBER),
    "since": MOMENT,
    **dict.fromkeys(("group", "launcher"), _PROCESS),
    "questions": [
        {**dict.fromkeys(("id", "kind", "text", "where"), str), "options": [[str]], "lines": int}
    ],
    "delivering": [str],
    "delivery": {"messages": [str]},
    "reply": {"id": str, "ok": bool, "text": str},
    "evidence": {},
    "usage": _FACTS["usage"],
}
_EVIDENCE = {
    "event": {"kind": str, "source": str, "at": MOMENT},
    "look": {"state": str, "source": str, "why": str},
}


def unreadable(task: str, what: str) -> Result:
    """Return the result of a task of which a file (what: its text or its result) is torn."""
    return Result(
        task,
        task.partition(".")[0],
        "lost",
        reason="unreadable",
        detail=f"its {what} could not be read; what there was of it is in quarantine/",
        ended_at=time.time(),
    )


def _tuples(value: Any) -> Any:
    """Return a JSON list as a tuple, as our records have it (the lists in it stay lists), and
    any other value as it is."""
    if isinstance(value, list):
        return tuple(value)
    return value


class Store:
    """Owns every file of the runtime directory; the methods say who may write or rename what.
    To make a Store makes the directory, or raises as make_home does.

    Knows nothing of tmux or CLIs. A write is: a temporary file beside it, fsync where a
    loss would lose work, rename. Nobody sees half a file.
    """

    def __init__(self, home: str) -> None:
        make_home(os.path.abspath(home), make=False)  # the way to it, as it was named
        self.home = os.path.realpath(home)  # by whichever link: one home, one tmux server
        self.wakes: list[Wake] = []  # those of this process that are open
        make_home(self.home)
        for name in ("sessions", "live", "queue", "wake", "lib", "flows"):
            os.makedirs(f"{self.home}/{name}", 0o700, exist_ok=True)

    # ---- writing ----

    def write(
        self, path: str, text: str, *, durable: bool = False, tmp: str = "", once: bool = False
    ) -> None:
        """Put text at path, whole or not at all; a folder in its place goes to quarantine/.

        durable: it survives a power cut. tmp: another folder for the temporary file, where all
        that is in path's own folder is read. once: raise FileExistsError where there is a file
        already. Raises CaoError where it could not be written; then no new file is at path, but
        over an old one there may be the new text: the caller may write it again.
        """
        folder, name = os.path.split(path)
        temporary = f"{tmp or folder}/.{name}.{os.getpid()}.{random_letters()}"
        existed, placed = os.path.lexists(path), False
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "w", encoding="utf-8", errors="surrogatepass", newline="") as file:
                file.write(text)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            place = os.rename
            if once:
                place = os.link
            try:
                place(temporary, path)
            except IsADirectoryError:  # no file of ours
                self.quarantine(path)
                os.rename(temporary, path)
            placed = True
            if durable:
                self._sync_folder(folder)
        except FileExistsError:
            raise
        except OSError as error:
            if placed and not existed:  # the caller hears of a failure, and may do it again
                _unlink(path)
            raise _not_written(path, error) from error
        finally:
            _unlink(temporary)

    @staticmethod
    def _sync_folder(folder: str) -> None:
        """Sync a folder to the disk, so that a power cut undoes no rename in it."""
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def read_json(self, path: str) -> dict[str, Any] | None:
        """Return the object in a file, or None where there is none.

        Whatever cannot be read as one (not JSON, nested too deeply, a directory, a FIFO, no
        permission, too large) is moved to quarantine/ and logged, and counts as none: never
        deleted, never fatal. Only a fault of the machine (may_pass) raises.
        """
        try:
            facts = parse_json(read_regular(path))
            if isinstance(facts, dict):
                return facts
        except FileNotFoundError:
            if not os.path.islink(path):  # to nowhere
                return None
        except (ValueError, RecursionError):
            pass
        self.quarantine(path)
        return None

    def read_record(self, path: str, kind: Callable[..., R]) -> R | None:
        """Return the record of a kind (a NamedTuple) in a file, or None as read_json does.

        A file whose object is none of that kind (make_record raises) is quarantined too.
        """
        facts = self.read_json(path)
        if facts is None:
            return None
        try:
            return make_record(facts, kind)
        except TypeError:
            self.quarantine(path)
            return None

    def quarantine(self, path: str) -> None:
        """Move what is no file of ours to quarantine/, say so on stderr, and log it if it was in
        a session's folder. Does nothing where it is gone. A task that waited in that file gets the
        result `lost`: its name is in the file's. Where it cannot be moved, stderr has that."""
        folder, name = f"{self.home}/quarantine", os.path.basename(path)[:50]  # it gets longer
        new_path = f"{folder}/{name}.{time.time_ns()}{random_letters()}"
        try:
            os.makedirs(folder, 0o700, exist_ok=True)
            os.rename(path, new_path)
        except FileNotFoundError:
            return  # another process was quicker
        except OSError as error:
            complain(f"{path} cannot be read, nor moved away: {error.strerror}")
            return
        complain(f"{path} cannot be read; moved to {new_path}")
        name, _, file = os.path.relpath(path, f"{self.home}/sessions").partition("/")
        if NAME.match(name):
            self.log(name, "quarantined", file=file, kept=new_path)
        task = file.partition("-")[2]
        if file.startswith("inbox/new/") and TASK.match(task) and task.startswith(f"{name}."):
            self.save_result(unreadable(task, "text"), "")

    def home_id(self) -> str:
        """Return an id that no other runtime directory has, on any machine; the first call makes
        it. Another machine tells our sessions from others' by it (NEAR)."""
        path = f"{self.home}/id"
        if not self.read_text(path):
            try:
                self.write(path, random_letters(8), durable=True, once=True)
            except FileExistsError:
                pass  # another process was quicker
        return self.read_text(path)

    # ---- sessions ----

    def folder(self, name: str, *inside: str) -> str:
        """Return a session's folder, or the path of what is inside it. Raises UsageError for what
        is no name."""
        if not NAME.match(name):
            raise UsageError(f"{name!r} is not a session's name", "list_sessions shows the names")
        return "/".join((self.home, "sessions", name, *inside))

    def new_folder(self, stem: str) -> str:
        """Make the folder of a new session and return its name: stem-7k2m."""
        while True:
            name = f"{stem[:34]}-{random_letters()}"
            try:
                os.mkdir(self.folder(name), 0o700)
            except FileExistsError:
                continue
            return name

    def create(self, session: Session) -> None:
        """Fill the folder of a session or client. session.json is written last: from then on
        `load` finds it."""
        folder = self.folder(session.name)
        parts = (
            "inbox inbox/tmp inbox/new inbox/cur events events/tmp events/new"
            " results questions wake launch out requests"
        )
        for part in parts.split():
            os.makedirs(f"{folder}/{part}", 0o700, exist_ok=True)
        self.write(f"{folder}/session.json", dump(session), durable=True)

    def load(self, name: str) -> Session | None:
        """Return a session or client, None where there is none. Raises UsageError for what is no
        name, CaoError for a session of another format."""
        path = self.folder(name, "session.json")
        facts = self.read_json(path)
        if facts is None:
            return None
        if facts.get("format") != FORMAT:
            made = f"session {name} was made by cao {facts.get('version')}"
            fix = "use that version for it, or another CAO_HOME"
            raise CaoError(f"{made} in a format this cao {VERSION} does not know", fix)
        return self.read_record(path, Session)

    def peek(self, name: str) -> Session | None:
        """Return a session or client; None where there is none, for one of another format, and
        for what is no name (""). Never raises CaoError."""
        try:
            return self.load(name)
        except CaoError:
            return None

    def agent(self, name: str) -> Session | None:
        """Return the session that a task's target names; None for any other name. A client may
        be called like a profile. Raises CaoError for a session of another format."""
        session = self.load(name) if NAME.match(name) else None
        if session and session.kind == "client":
            return None
        return session

    def find(self, name: str) -> Session:
        """Return a session or client that somebody named. Raises NotFoundError, with the one
        that may be meant, where there is none; CaoError for one of another format."""
        if NAME.match(name) and (session := self.load(name)):
            return session
        fix = "list_sessions shows them"
        meant = sessions_meant(name, self.all_sessions())
        if len(meant) == 1:
            fix = f"{meant[0]}; {fix}"
        raise NotFoundError(f"there is no session {name!r}", fix)

    def session_meant(self, name: str) -> str:
        """Return a task's session, where that is here; any other name as it is."""
        if TASK.match(name) and self.peek(self.session_of(name)):
            return self.session_of(name)
        return name

    def live(self) -> list[str]:
        """Return the names of the sessions that were started and not ended: also those in the
        queue, and those that died and that nobody has buried yet."""
        return [name for name in _listdir(f"{self.home}/live") if NAME.match(name)]

    def all_sessions(self) -> list[str]:
        """Return the names of all sessions and clients, the ended too, until `cao clean`."""
        return [name for name in _listdir(f"{self.home}/sessions") if NAME.match(name)]

    def set_live(self, name: str, alive: bool) -> None:
        """Add a session to live/; or remove it from there and from the queue."""
        path = f"{self.home}/live/{name}"
        if alive:
            self.write(path, "", tmp=self.home)
        else:
            _unlink(path)
            self.leave_queue(name)

    def queue(self) -> dict[str, str]:
        """Return session -> file of its ticket, the oldest ticket first."""
        folder = f"{self.home}/queue"
        return {t[21:]: f"{folder}/{t}" for t in _listdir(folder) if re.match(r"\d{20}-", t)}

    def leave_queue(self, name: str) -> None:
        """Remove a session's ticket, if it has one, and wake the session that is the first now."""
        if ticket := self.queue().get(name):
            _unlink(ticket)
        self.poke_queue()

    def poke_queue(self) -> None:
        """Wake the first session in the queue: there may be a slot for it."""
        for name in [*self.queue()][:1]:
            self.poke(name)

    def load_state(self, name: str) -> dict[str, Any]:
        """Return a session's state as save_state last wrote it; {} where there is none, or none
        that can be read: then the file goes into quarantine/."""
        path = self.folder(name, "state.json")
        state = self.read_json(path) or {}
        if fits_where_given(state, _STATE) and fits_where_given(
            state.get("evidence") or {}, _EVIDENCE
        ):
            return state
        self.quarantine(path)
        return {}

    def save_state(self, name: str, state: dict[str, Any]) -> None:
        """Write a session's state. Only its runner does this or, while it has none, whoever
        starts or buries it, with the session's lock."""
        self.write(self.folder(name, "state.json"), dump(state))

    def log(self, name: str, event: str, **fields: Any) -> None:
        """Append a line to a session's log.jsonl. Never the text of a task or message."""
        self._append(self.folder(name, "log.jsonl"), {"event": event, **fields})

    @staticmethod
    def _append(path: str, facts: dict[str, Any]) -> None:
        """Append a line to a log. Never raises: what the line reports was done already."""
        line = json.dumps({"at": round(time.time(), 3), **facts}) + "\n"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO
        try:
            fd = os.open(path, flags, 0o600)
            try:
                os.write(fd, line.encode())
            finally:
                os.close(fd)
        except FileNotFoundError:
            return  # the session was cleaned away under us
        except OSError as error:
            complain(f"{path}: {error.strerror}")

    def note_approval(self, name: str, asked: dict[str, Any], answer: str, who: str) -> None:
        """Append to approvals.jsonl that who ("person", or a session) gave a session this answer
        to a question (asked, as in state.json)."""
        facts = {"session": name, "by": who, "answer": answer}
        facts.update({key: asked[key] for key in ("kind", "text", "where")})
        self._append(f"{self.home}/approvals.jsonl", facts)

    def mend_log(self, name: str) -> None:
        """End a last line that a power cut tore, so that the next one begins on its own line."""
        path = self.folder(name, "log.jsonl")
        if self.read_text(path)[-1:] not in ("", "\n"):
            with open(path, "a", encoding="utf-8") as file:
                file.write("\n")

    def launch_file(self, name: str, file: str) -> str:
        """Return the path of a file that is handed to a session's CLI."""
        return self.folder(name, "launch", file)

    def read_launch(self, name: str, file: str) -> dict[str, Any]:
        """Return the object in a file of a session's launch/, {} where there is none."""
        return self.read_json(self.launch_file(name, file)) or {}

    # ---- locks and wakes ----

    def lock(self, path: str, *, shared: bool = False, create: bool = True) -> int | None:
        """Take a file's lock and return its descriptor, or None where another has it.

        The kernel releases it when the descriptor closes or the process dies. create=False:
        raises FileNotFoundError where there is no file.
        """
        try:
            return FileLock(path, shared=shared, create=create, wait=False).__enter__()
        except BlockingIOError:
            return None

    def lock_session(self, name: str) -> int | None:
        """Take the lock that a session's runner has as long as it lives, and return its
        descriptor; None where another process has it.

        `is_locked` takes it too, shared, for a moment: that does not count.
        """
        path = self.folder(name, "lock")
        while (fd := self.lock(path)) is None:
            probe = self.lock(path, shared=True)
            if probe is None:
                return None
            os.close(probe)
        return fd

    def is_free(self, path: str) -> bool:
        """Tell whether no process has a file's lock now. Makes the file where there is none, so
        raises FileNotFoundError only where its folder is gone."""
        fd = self.lock(path, shared=True)
        if fd is not None:
            os.close(fd)
        return fd is not None

    def is_locked(self, name: str) -> bool:
        """Tell whether a session's runner (or a client's `cao mcp`) lives."""
        try:
            return not self.is_free(self.folder(name, "lock"))
        except FileNotFoundError:
            return False

    def listeners(self, name: str) -> str:
        """Return the folder with the links of the Wakes that listen to a session; "": to the
        states of all."""
        if not name:
            return f"{self.home}/wake/all"
        return f"{self.home}/sessions/{name}/wake"

    def poke(self, name: str) -> None:
        """Wake all who listen to a session; "": to the states of all. A FIFO without a reader is
        a dead process's: it is removed."""
        folder = self.listeners(name)
        for entry in _listdir(folder):
            if not poke_fifo(f"{folder}/{entry}"):
                _unlink(f"{self.home}/wake/{entry}")
                _unlink(f"{folder}/{entry}")

    def poke_own(self) -> None:
        """Wake whoever waits in this process."""
        for wake in list(self.wakes):
            wake.poke()

    def wait_until(self, over: Callable[[], Any], limit_s: float, name: str = "") -> None:
        """Wait until over() is true, for limit_s at the most. It is called first of all, and
        whenever this process (poke_own) or the session of that name is poked."""
        wake, until = Wake(self), time.monotonic() + limit_s
        try:
            if name:
                wake.listen(name)
            while not over() and time.monotonic() < until:
                wake.wait(until - time.monotonic())
        finally:
            wake.close()

    def poke_up(self, name: str) -> None:
        """Wake all who listen to a session, to one of those above it, or to the states of all."""
        for _ in range(MAX_DEPTH + 3):  # more than there can be; no ring of torn files holds us
            self.poke(name)
            if not name:
                return
            session = self.peek(name)
            name = ""
            if session:
                name = session.supervisor

    # ---- the ledger ----

    def _take(self, owner: str, path: str) -> Claim | None:
        """Return a Claim on the file at path, of something that owner is to be told; None where
        another process has its lock, or has told it."""
        try:
            fd = self.lock(path, create=False)
        except OSError as error:
            if may_pass(path, error):
                raise
            self.quarantine(path)  # none of ours; what was told just now is gone, and passes
            return None
        if fd is None:
            return None
        if os.fstat(fd).st_ino == file_mark(path)[1]:
            return Claim(self, owner, path, fd)
        os.close(fd)  # it was told just now
        return None

    def take_message(self, name: str, message_id: str) -> Claim | None:
        """Lock a message in a session's inbox, to tell it. None where another process is telling
        it, or has told it. message_id: as `waiting` returns it, perhaps with a ~."""
        return self._take(name, self.folder(name, "inbox/new", message_id))

    def take_result(self, owner: str, task: str) -> Claim | None:
        """Lock a task's entry in out/, to tell its result. None where this owner ("": nobody) is
        not owed it, or another process is telling it. Does not look whether there is a result."""
        if not owner:
            return None
        return self._take(owner, self.out_path(owner, task))

    def out_path(self, owner: str, task: str) -> str:
        """Return the path of the file that says, while it exists, that owner has not been told the
        result of a task."""
        return self.folder(owner, "out", task)

    def give(self, message: Message) -> None:
        """Give a task: put its message into the worker's inbox, and note in out/ that the sender is
        owed a result.

        The entry in out/ appears with its lock held, and the lock is freed when the message is
        in the inbox. Raises CaoError where the inbox is full or a file cannot be written; then
        nothing was given. Interrupted (Ctrl-C), it was given if the message is in the inbox.
        """
        path = self.out_path(message.sender, message.task)
        folder = os.path.dirname(path)
        temporary = f"{folder}/.{message.task}"
        try:
            with FileLock(temporary):
                os.rename(temporary, path)
                self._sync_folder(folder)
                self.put(message)
        except BaseException as error:
            _unlink(temporary)
            if not self.was_given(message.task):
                _unlink(path)
            if isinstance(error, OSError):
                raise _not_written(path, error) from error
            raise

    def owed(self, owner: str) -> list[str]:
        """Return the tasks whose results owner has not been told, whether they run or have ended;
        none for "".

        Removes an entry whose giver died before the task was in an inbox.
        """
        if not owner:
            return []
        tasks = filter(TASK.match, _listdir(self.folder(owner, "out")))
        return [task for task in tasks if not self._is_abandoned(owner, task)]

    def _is_abandoned(self, owner: str, task: str) -> bool:
        """Tell whether an entry in out/ counts for nothing: its task was not given, and nobody is
        giving it. Removes that entry."""
        if self.was_given(task):
            return False
        claim = self.take_result(owner, task)
        if not claim:
            # Gone, or else its giver has the lock, and is at it.
            return not os.path.lexists(self.out_path(owner, task))
        try:
            if self.was_given(task):  # just now
                return False
            claim.told()  # nobody was told anything: this only takes it off the books
            return True
        finally:
            claim.release()

    def running(self, owner: str) -> list[str]:
        """Return the tasks of an owner that have no result yet."""
        return [task for task in self.owed(owner) if not self.has_result(task)]

    def has_result(self, task: str) -> bool:
        """Tell whether a task has ended: its result's file is there, even if it cannot be read."""
        return os.path.lexists(self.result_path(task))

    # ---- inbox ----

    def new_id(self, name: str, rest: str) -> str:
        """Return the id of a message to a session: it sorts after those that wait there."""
        return f"{next_stamp(f'{self.folder(name)}/inbox/new')}-{rest}"

    def put(self, message: Message) -> None:
        """Put a message into its addressee's inbox, fsynced, and wake who listens to that session.

        Raises CaoError where it could not be written or the inbox is full (notices and cao's own
        messages always fit); then it is not there. For a task: `give`.
        """
        inbox = self.folder(message.to, "inbox")
        most = int_setting("CAO_MAX_WAITING", MAX_WAITING)
        always_fits = message.kind == "notice" or message.sender == "cao"
        if not always_fits and len(_listdir(f"{inbox}/new")) >= most:
            raise CaoError(
                f"{message.to} has {most} messages waiting already",
                "wait until it has read some, or give the work to another",
            )
        self.write(f"{inbox}/new/{message.id}", dump(message), durable=True, tmp=f"{inbox}/tmp")
        size = len(message.text.encode(errors="surrogatepass"))
        who = {"message": message.id, "kind": message.kind, "sender": message.sender}
        self.log(message.to, "queued", **who, bytes=size)
        try:
            self.poke(message.to)
        except OSError as error:  # it could lie there for long; perhaps it was read already
            if self.withdraw(message.to, message.id):
                raise _not_written(f"{inbox}/new", error) from error

    def put_once(self, message: Message) -> None:
        """Put a message, unless one with its id waits in the addressee's inbox, was handed over
        by a hook (ID~), or was told. For senders who may send the same twice, and then give it
        the same id."""
        inbox = self.folder(message.to, "inbox")
        with FileLock(f"{inbox}/.lock"):  # of two who tell the same, one puts
            names = (f"new/{message.id}", f"new/{message.id}~", f"cur/{message.id}")
            if not any(os.path.exists(f"{inbox}/{name}") for name in names):
                self.put(message)

    def waiting(self, name: str) -> list[Message]:
        """Return the messages and tasks in a session's inbox that nobody was told, oldest first,
        also those that a process is telling now. The id of one that may have been told already
        ends in ~ (Claim.mark). What is no message goes to quarantine/."""
        inbox = self.folder(name, "inbox/new")
        messages = []
        for entry in _listdir(inbox):
            message = self.read_record(f"{inbox}/{entry}", Message)
            if message and message.id == entry.rstrip("~"):
                messages.append(message._replace(id=entry))
            elif message:
                self.quarantine(f"{inbox}/{entry}")  # it could never be taken by its id
        return messages

    def taken(self, name: str, message_id: str) -> Message | None:
        """Return a message that was told, None where there is none of this id (without ~)."""
        return self.read_record(self.folder(name, "inbox/cur", message_id), Message)

    def discharge(self, name: str, letter: str) -> None:
        """Take a message (letter: its id) or a result (letter: its task's name) off a session's
        books, whoever has its lock. For a caller who knows that it was told, or never will be;
        whoever tells it now uses a Claim. Does nothing where it is off the books already."""
        path = self.folder(name, "inbox/new", letter)
        if not os.path.lexists(path):  # letter's form does not tell: an id may look like a task
            path = self.out_path(name, letter)
        self.take_off(path)

    def take_off(self, path: str) -> None:
        """Take what was told off the books, by the path of its file: move a message from inbox/new/
        to inbox/cur/, remove a result's entry in out/. Does nothing where it is off already."""
        folder, letter = os.path.split(path)
        try:
            if folder.endswith("/new"):
                os.rename(path, f"{folder}/../cur/{letter.rstrip('~')}")
            elif os.path.lexists(path):  # told_at first, so that a result off the books has it
                self.note_told(letter)
                os.unlink(path)
        except FileNotFoundError:
            pass  # another was quicker, or its owner was cleaned away

    def withdraw(self, name: str, message_id: str) -> bool:
        """Remove a message from an inbox as if it had never been put. Return False, and leave it,
        where it was told or is being told. A kill in between leaves nothing half done."""
        claim = self.take_message(name, message_id)
        if claim:
            try:
                _unlink(claim.path)
            finally:
                claim.release()
        return claim is not None

    # ---- events, results ----

    def put_event(self, folder: str, payload: str) -> None:
        """Drop JSON text for a session's runner into events/ of the session's folder (a path), and
        wake it: what a hook got from the CLI, or an order of ours ({"cao": …})."""
        name = f"{next_stamp(f'{folder}/events/new')}-{os.getpid()}-{random_letters(2)}"
        self.write(f"{folder}/events/new/{name}", payload, tmp=f"{folder}/events/tmp")
        self.poke(os.path.basename(folder))

    def events(self, name: str) -> list[tuple[str, float, dict[str, Any]]]:
        """Return (id, epoch seconds, payload) of the events that are in a session's events/, the
        oldest first; they stay there until drop_events. What is no event goes to quarantine/."""
        folder = self.folder(name, "events/new")
        events = []
        for entry in _listdir(folder):
            if not re.match(r"\d{20}-", entry):
                self.quarantine(f"{folder}/{entry}")
                continue
            payload = self.read_json(f"{folder}/{entry}")
            if payload is not None:
                events.append((entry, int(entry[:20]) / 1e9, payload))
        return events

    def drop_events(self, name: str, ids: Iterable[str]) -> None:
        """Remove events. Only the session's runner does this: they are lost then, if it dies
        before it has dealt with them and saved."""
        for entry in ids:
            _unlink(self.folder(name, "events/new", entry))

    @staticmethod
    def session_of(task: str) -> str:
        """Return the name of a task's session, which begins the task's: developer-7k2m of
        "developer-7k2m.k3f9". Raises UsageError for what is no task's name."""
        if not TASK.match(task):
            fix = "it looks like developer-7k2m.k3f9"
            if NAME.match(task):
                fix += f"; for all tasks that are yours, name none; read_session {task} has its own"
            raise UsageError(f"{task!r} is not a task's name", fix)
        return task.partition(".")[0]

    def result_path(self, task: str) -> str:
        """Return where a task's result is, or will be."""
        return f"{self.folder(self.session_of(task))}/results/{task}.json"

    def load_result(self, task: str) -> Result | None:
        """Return a task's result, or None while there is none. In place of one that cannot be
        read, this writes the result `lost`."""
        if not self.has_result(task):
            return None
        result = self.read_record(self.result_path(task), Result)
        if not result:  # it was torn, and is in quarantine/: the task gets no other
            result = unreadable(task, "result")
            self.write(self.result_path(task), dump(result), durable=True)
        return result

    def save_result(self, result: Result, owner: str) -> Result:
        """Write a task's result, unless it has one: the first written is the one. Wake its owner,
        who may be no session or client, and those above. Return the result that the task has
        now."""
        path = self.result_path(result.task)
        try:
            os.mkdir(os.path.dirname(path), 0o700)
        except (FileExistsError, FileNotFoundError):
            pass  # it is there; or the session's folder is gone too
        try:
            self.write(path, dump(result), durable=True, once=True)
        except FileExistsError:
            pass
        if NAME.match(owner):
            self.poke(owner)
        self.poke_up(result.session)
        return self.load_result(result.task) or result

    def note_told(self, task: str) -> None:
        """Put into a result that its owner is told now. For people: nothing depends on it, so
        where it cannot be written this does not raise."""
        try:
            result = self.load_result(task)
            if result:
                told = result._replace(told_at=time.time())
                self.write(self.result_path(task), dump(told), durable=True)
        except (CaoError, OSError):
            pass  # no room: it is only for show

    def unanswered(self, name: str) -> list[str]:
        """Return the tasks that a session took and that have no result yet, by their messages'
        ids (see `taken`)."""
        open_tasks = set(self._given(name)).difference(self.results(name))
        entries = _listdir(self.folder(name, "inbox/cur"))
        return [entry for entry in entries if entry.partition("-")[2] in open_tasks]

    def _given(self, name: str) -> list[str]:
        """Return the tasks that a session was given, taken or not, the oldest first."""
        inbox = self.folder(name, "inbox")
        entries = sorted([*_listdir(f"{inbox}/new"), *_listdir(f"{inbox}/cur")])
        tasks = [entry.partition("-")[2] for entry in entries]
        return [task for task in tasks if task.startswith(f"{name}.")]

    def task_meant(self, name: str) -> str:
        """Return a session's newest task, where it was given one; any other name as it is."""
        if not NAME.match(name):
            return name
        return [name, *self._given(name)][-1]

    def was_given(self, task: str) -> bool:
        """Tell whether there is such a task: its result or its message is there."""
        if self.has_result(task):
            return True
        return task in self._given(self.session_of(task))

    def results(self, name: str) -> list[str]:
        """Return the tasks of a session that have a result."""
        entries = _listdir(self.folder(name, "results"))
        return [entry[:-5] for entry in entries if TASK.match(entry[:-5])]

    def all_owed(self) -> set[str]:
        """Return every task whose result somebody has not been told, by the entries in all out/;
        unlike `owed` it removes none."""
        folders = (self.folder(name, "out") for name in self.all_sessions())
        return {entry for folder in folders for entry in _listdir(folder)}

    def read_text(self, path: str) -> str:
        """Return a file's text, with a sign in place of bytes that are no UTF-8; "" where there
        is no file that can be read."""
        try:
            return read_regular(path, "replace")
        except (FileNotFoundError, ValueError):
            return ""

    # ---- what a person has allowed ----

    def allowed(self) -> dict[str, dict[str, str]]:
        """Return what people have allowed: repository -> {"check COMMAND": "", "profile FILE":
        the SHA-256 of that file's bytes}, and EVERYWHERE -> {"host NAME": ""}. {} where
        allowed.json cannot be read; then it goes to quarantine/."""
        path = f"{self.home}/allowed.json"
        allowed = self.read_json(path) or {}
        if all(isinstance(entries, dict) for entries in allowed.values()):
            return allowed
        self.quarantine(path)
        return {}

    def save_allowed(self, allowed: dict[str, dict[str, str]]) -> None:
        """Write what people have allowed; the caller has the runtime directory's lock."""
        self.write(f"{self.home}/allowed.json", dump(allowed), durable=True)


# ==== 8. Orchestrator =================================================================


class Caller(NamedTuple):
    """Who uses the verbs."""

    name: str  # its folder in sessions/; "": it has none, and can be owed nothing
    depth: int = 0  # how many are above it
    person: bool = False  # a shell outside any agent: may answer and stop anything
    worker: bool = False  # an agent of ours (CAO_SESSION)
    stem: str = ""  # of an MCP client's name: its program and directory


class TaskOptions(NamedTuple):
    """The options of one task, and of the session that is made for it. None, "" or 0: as the
    profile or a default has it; cwd "": the current directory."""

    cwd: str = ""
    worktree: bool | None = None
    check: str = ""
    timeout_s: float = TASK_TIMEOUT_S
    keep: bool | None = None
    request_id: str = ""
    permissions: str = ""
    check_retries: int | None = None
    max_tokens: int = 0
    provider: str = ""  # instead of the profile's
    host: str = ""  # the machine where it is to work, if not this one
    roots: Callable[[], list[str]] | None = None  # what the client of `cao mcp` has open
    # Is told the task's name before the task is put. Not with request_id: `assign` sets its own.
    named: Callable[[str], None] = lambda _: None
    repeated: Callable[[str], None] = lambda _: None  # is told that the request_id was used before
    allows: Callable[[str, str], bool] = lambda *_: False  # asks a person: this check, in this cwd?
    # From the cao of another machine, which has looked it up, clipped it and checked the rest ...
    profile: Profile | None = None
    session: str = ""  # ... and the session here that works for its session, if there is one yet


class Waited(NamedTuple):
    """What a wait has found. `running` are the tasks that have no result yet, or whose result
    another process is just telling, or the next wait tells (Claim.is_last).

    Whoever tells it to the caller calls `told` afterwards, or `release` if it was not told. Until
    then its results and messages are owed, and locked by this process.
    """

    results: tuple[Result, ...] = ()
    messages: tuple[Message, ...] = ()
    asking: tuple[dict[str, Any], ...] = ()  # session, path, question
    running: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()  # on the results and messages that were owed to the caller

    def told(self) -> None:
        """Take what was told off the books. Where that fails, the next wait tells it again."""
        try:
            for claim in self.claims:
                claim.told()
        finally:
            self.release()

    def release(self) -> None:
        """Leave what was not told to the next wait."""
        for claim in self.claims:
            claim.release()


EVERYWHERE = "everywhere"  # what is allowed in no repository alone
PROFILE_ALIASES = {"code_supervisor": "supervisor"}  # the reference program's name for it


def find_profiles(home: str, cwd: str) -> dict[str, str]:
    """Return name -> file of all profiles, "built in" for those of cao itself. Of one name, the
    profile in cwd's .cao/profiles counts, else the user's in home, else ours."""
    shipped = dict.fromkeys(SHIPPED_PROFILES, "built in")
    users, folders = profile_files(f"{home}/profiles"), profile_files(f"{cwd}/.cao/profiles")
    return {**shipped, **users, **folders}


def profile_files(folder: str) -> dict[str, str]:
    """Return name -> file of the profiles in a folder."""
    if not os.path.isdir(folder):
        return {}
    folder = os.path.normpath(folder)
    files = [file for file in _listdir(folder) if os.path.isfile(f"{folder}/{file}")]
    return {file[:-3]: f"{folder}/{file}" for file in files if file.endswith(".md")}


def named_path(file: str) -> str:
    """Return the real path that a file of git's names, "" where it names none."""
    match = re.match(rb"(?:gitdir: )?([^\0]+?)\n*\Z", read_file(file) or b"")
    if not match:
        return ""
    return os.path.realpath(os.path.join(os.path.dirname(file), os.fsdecode(match[1])))


def name_of_repository(common: str) -> str:
    """Return what we call a repository, by git's common directory: that, and for a submodule the
    `.git` file of its main working tree, where both name each other."""
    named = re.search(rb"(?m)^\tworktree = ([^\0\n]+)", read_file(f"{common}/config") or b"")
    if not named:
        return common
    main = f"{os.path.realpath(os.path.join(common, os.fsdecode(named[1])))}/.git"
    return main if named_path(main) == common else common


def find_repository(folder: str) -> tuple[str, str]:
    """Return the repository that a folder is in, and the folder's path from the top of its
    working tree.

    The repository is git's common directory, which all its worktrees share (a submodule's: see
    name_of_repository); without git, it is the folder itself, and the path ".". We read git's
    files ourselves, because git believes any `.git` file: an agent could write one that names
    another repository, in which more is allowed. So a folder is a worktree only if the repository
    lists it as one.
    """
    folder = top = os.path.realpath(folder)
    while not os.path.lexists(f"{top}/.git"):
        if top == "/":
            return folder, "."
        top = os.path.dirname(top)

    repository = f"{top}/.git"
    private = named_path(repository)  # .git/worktrees/NAME
    if private and named_path(f"{private}/gitdir") == repository:
        repository = name_of_repository(os.path.dirname(os.path.dirname(private)))
    return repository, os.path.relpath(folder, top)


def read_profile(path: str) -> tuple[bytes, str]:
    """Return what is in a profile's file, and the SHA-256 of that. It is read only once, so that
    what is checked by the hash is what is used. Raises CaoError where it cannot be read."""
    content = read_file(path)
    if content is None:
        raise CaoError(f"{path} cannot be read, or is no file", "mend or remove it")
    return content, sha256_of(content)


def decode_profile(content: bytes, name: str, path: str, default: str = "") -> Profile:
    """Return the profile in the content of a file (path: for messages). One that names no provider
    gets default; "": what default_provider returns. Raises CaoError as parse_profile does."""
    profile = parse_profile(decode_given(content, path), name, path)
    if profile.provider:
        return profile
    return profile._replace(provider=default or default_provider())


def load_profile(
    name: str, store: Store, cwd: str, default: str = "", files: dict[str, str] | None = None
) -> Profile | None:
    """Return a profile by name or, where the name is a provider's, that CLI with a neutral
    profile; None where the name is neither. No grants are looked at: see Orchestrator.profile.

    default: as decode_profile takes it. files: what find_profiles returns, if it is known already.
    Raises NotAllowedError for a profile in cwd's .cao/profiles that no person has allowed as it
    is now: it is not even parsed, and no other profile of that name takes its place.
    """
    if files is None:
        files = find_profiles(store.home, cwd)
    if name not in files:
        name = PROFILE_ALIASES.get(name, name)
    path = files.get(name)
    if path == "built in":
        return decode_profile(SHIPPED_PROFILES[name].encode(), name, path, default)
    if path:
        content, sha256 = read_profile(path)
        folder, file = os.path.split(path)
        if folder != f"{store.home}/profiles":
            repository, inside = find_repository(cwd)
            allowed = store.allowed().get(repository, {})
            if allowed.get(f"profile {inside}/.cao/profiles/{file}") != sha256:
                raise NotAllowedError(
                    f"the profile {path} was not allowed by `cao allow`, or has changed since",
                    f"a person has to run: cao allow {quote_argv([cwd])}",
                )
        return decode_profile(content, name, path, default)
    provider = provider_name(name)
    if provider in PROVIDERS and provider != "command":
        return Profile(name=provider, source="built in", provider=provider, prompt="")
    return None


def default_provider(fault_of: Callable[[str], str] = program_fault) -> str:
    """Return the provider of profiles that name none: CAO_PROVIDER, else the first of PROVIDERS
    that is installed, else claude. Raises UsageError where CAO_PROVIDER is no provider.

    fault_of: program_fault, or what remembers its answers."""
    name = provider_name(os.environ.get("CAO_PROVIDER", ""))
    if name:
        known = [row.name for row in PROVIDERS.values() if row.name != "command"]
        if name not in known:  # a command is what a profile says
            raise UsageError(f"CAO_PROVIDER {name!r} is not supported", ", ".join(known))
        return name
    for row in PROVIDERS.values():
        if row.program and not fault_of(row.program):
            return row.name
    return "claude"


def worker_environment(
    env_pass: Iterable[str], settings: dict[str, Any], given: dict[str, str] | None = None
) -> dict[str, str]:
    """Return the part of an environment that a worker gets; given None: of this process's.

    That is what a safe default list (ENV_DEFAULT) names, what env_pass names (what its CLI needs
    for its own settings and login), and what `env` in the profile's settings says: `pass:` names
    or prefixes with *, `set:` values, `deny:` names that are left out all the same.
    """
    rules = settings.get("env") or {}
    wanted = [*ENV_DEFAULT, *env_pass, *(rules.get("pass") or ())]
    denied, fixed = rules.get("deny") or (), rules.get("set") or {}
    if given is None:
        given = dict(os.environ)
    names = [name for name in given if is_listed(name, wanted)]
    env = {name: given[name] for name in names if not is_listed(name, denied)}
    env.update({str(name): str(value) for name, value in fixed.items()})
    return env


def install_copy(store: Store) -> list[str]:
    """Copy this cao.py to lib/<sha>/, if it is not there, and return the argv that runs the copy.

    So a session keeps its version, and goes on when a package cache is pruned. With -I -S, Python
    takes no `json.py` from the folder it starts in, and loads no site. The copy is imported, not
    run as a script, so that Python keeps its compiled form.
    """
    with open(os.path.abspath(__file__), encoding="utf-8") as file:
        source = file.read()
    folder = f"{store.home}/lib/{sha256_of(source)[:16]}"
    os.makedirs(folder, 0o700, exist_ok=True)
    os.utime(folder)  # `clean` removes what was not used for long
    python = getattr(sys, "_base_executable", "") or sys.executable
    code = f"import sys; sys.path.append({folder!r}); import cao"
    if not os.path.isfile(f"{folder}/cao.py"):
        store.write(f"{folder}/cao.py", source)
        # Compiling takes 15 MB, and the first runner would keep them.
        ran = run([python, "-I", "-S", "-c", f"{code}; cao.main"], 60)
        if ran.status:
            _unlink(f"{folder}/cao.py")
            what = f"{__file__} cannot be run: {tail_lines(ran.err.strip(), 1)}"
            raise CaoError(what, "try again, if it is just being replaced")
    return [python, "-I", "-S", "-c", f"{code}; sys.exit(cao.main())"]


WORKER_NOTE = """\
You are {name}, an agent at work for {supervisor}, which gave you your task through cao and \
reads your answer. The last message of your turn is your answer: it is handed over word for \
word, so put into it all that was asked for. Lines that begin "Message from NAME" or "Result \
of TASK" come from other agents through cao, and NAME is who sent them. When a line names a \
file with your task or a message, read all of the file and do what it says. The tools of the \
MCP server `cao` are yours: send_message (target "supervisor") to tell or ask before you are \
done, handoff and assign to give work to others, list_sessions to see who there is. A command that \
you leave running in the background holds up your answer: stop it, or detach it (a server)."""

WORKTREE_NOTE = """\
You work in a git worktree of your own, on the branch {branch}. Commit there what is finished. \
Submodules are empty in it until you run: git submodule update --init."""

SCOPE_NOTE = """\
You yourself may not {} in this session, by whatever tool. What needs it, hand to an agent that \
may, or say so in your answer."""

SUPERVISOR_NOTE = """\
You are {name}, started by a person through cao. With the tools of the MCP server `cao` you \
give work to other agents: handoff waits for the answer; assign goes on at once, and the result \
arrives here by itself as a message that begins "Result of TASK"; list_sessions shows who \
there is."""


def seconds_since(message: Message) -> float:
    """Return the seconds since a task (a message of that kind; no other has a clock) was given,
    by a clock that nobody sets. Never below 0, as it else could be after a reboot."""
    return max(0.0, time.monotonic() - message.clock)


def fresh_state() -> dict[str, Any]:
    """Return the state, as of now, that a session has until its runner writes one; `launcher` is
    this process, which is to start the runner (see Orchestrator._is_coming)."""
    return {
        "state": "starting",
        "since": time.time(),
        "clock": time.monotonic(),  # the same moment, by a clock that nobody can set
        "launcher": note_process(os.getpid()),
    }


def look_until(look: Callable[[], Any], looks: int) -> Any:
    """Call look until it returns something true, and return that; else the last that it returned.

    look is called so many times, 20 ms apart, and then once more. No clock ends this: a machine
    that stood still has seen nothing meanwhile.
    """
    for _ in range(looks):
        if seen := look():
            return seen
        select.select([], [], [], 0.02)
    return look()


def refuse_unasked(profile: Profile, cwd: str) -> None:
    """Raise UsageError where a CLI would run what is in a folder without asking anybody, and its
    profile does not trust the folder (Provider.runs_unasked)."""
    for file in PROVIDERS[profile.provider].runs_unasked:
        if not profile.trust and os.path.lexists(f"{cwd}/{file}"):
            what = f"{profile.provider} would run, unasked, what {cwd}/{file} says"
            raise UsageError(what, "a person reads it, and gives the profile `trust: yes`")


# The queue. CAO_MAX_SESSIONS sessions have a slot; nothing counts them, so no count can be wrong.
#
#   a ticket    queue/TIME-SESSION is made with the session; 64 wait at the most
#   a slot      whoever lives, has no ticket and awaits no result of others has one. A supervisor
#               has none while its workers are at work: so nobody waits for itself. A session
#               that works on another machine takes one there, and none here
#   whose turn  a session's, when fewer tickets are older than there are free slots: its runner
#               removes its ticket and starts the CLI; until then it is `queued`
#   no slot     the first in the queue asks whoever has been idle for longest to close
#   a death     frees the session's lock, and with it its slot; the kernel wakes who waits for it


class Orchestrator:
    """The verbs, for one caller: what the tools and the commands are made of.

    Owns the truth about sessions: which live, what their state is, and the burial of those
    whose runner is dead. All that matters is in the Store: this keeps only the threads that
    watch locks, and what never changes (who is above whom, the tmux server).

    In this order: truth, the dead, ends and orders; starting sessions, what was given;
    giving work, what a person allows, waiting, talking, watching, ending.
    """

    def __init__(self, store: Store, caller: Caller) -> None:
        self.store, self.caller = store, caller
        self._watched: set[str] = set()
        self._above: dict[str, str] = {}
        self._tmux: Tmux | None = None

    # ---- truth ----

    @property
    def tmux(self) -> Tmux:
        """Our tmux server; the socket is `cao` for the default runtime directory.

        The first use writes the server's configuration; each use, where the socket's file is gone,
        has the living runners bring it back. The path of the user's own conf (CAO_TMUX_CONF) is
        noted in the home: whichever process starts the server reads it. An agent of ours does not
        set it: Gemini CLI and Qwen Code take variables from the folder's `.env`. Raises UsageError
        where there is no such file, TmuxError where there is no tmux.
        """
        if self._tmux is None:
            prefix = f"{self.store.home}/tmux"
            base, note, guards = f"{prefix}.conf", f"{prefix}-own-conf", f"{prefix}-guards.conf"
            texts = {base: TMUX_CONF, guards: TMUX_GUARDS}
            if "CAO_TMUX_CONF" in os.environ and not self.caller.worker:
                texts[note] = ""  # an empty one takes it back
                if own_conf := os.path.expanduser(os.environ["CAO_TMUX_CONF"]):
                    if not os.path.isfile(own_conf):
                        what = f"CAO_TMUX_CONF {own_conf!r} is no file"
                        raise UsageError(what, "export CAO_TMUX_CONF=")
                    texts[note] = os.path.abspath(own_conf)
            for path, text in texts.items():
                if self.store.read_text(path) != text:
                    self.store.write(path, text)
            confs = filter(os.path.isfile, (base, self.store.read_text(note), guards))
            self._tmux = Tmux(tmux_socket(self.store.home), *confs)
        if not os.path.exists(self._tmux.socket_path):
            self._revive_socket(self._tmux.socket_path)
        return self._tmux

    def _revive_socket(self, path: str) -> None:
        """Wake the living runners, each of which makes our tmux server create its socket again
        (keep_socket), and wait for that, about 2 s at the most. Else the next tmux command would
        start a second server, which does not have their sessions."""
        poked = False
        for name in self.store.live():
            if self.store.load_state(name).get("group") and self.store.is_locked(name):
                self.store.poke(name)
                poked = True
        if poked:
            look_until(lambda: os.path.exists(path), 100)

    def state_of(self, name: str) -> dict[str, Any]:
        """Return a session's state now, from its lock and what its runner last wrote.

        A session whose runner is dead is buried first, and is `ended` then; or, on another
        machine, it may get a new runner (_reattach). What came into the inbox of an ended session
        is answered first.
        """
        if is_gone(self.store.folder(name)):  # removed under us, or by hand
            self.store.set_live(name, False)
            return {"state": "ended", "since": 0.0, "why": "its folder is gone"}
        state = self.store.load_state(name)
        if state.get("state") == "ended":
            if not _listdir(self.store.folder(name, "inbox/new")):
                return state
        elif self.store.is_locked(name):
            return self._known_state(name)  # again: it may have changed while we looked
        elif self._is_coming(name, state):
            return state
        elif self._reattach(name, state):
            return self._known_state(name)
        self.bury(name)
        return self._known_state(name)

    def _known_state(self, name: str) -> dict[str, Any]:
        """Return what a session's runner last wrote, `unknown` where that cannot be read."""
        return self.store.load_state(name) or {"state": "unknown", "since": 0.0}

    def is_over(self, name: str) -> bool:
        """Tell whether a session has ended, or is about to (`closing`): it takes no new task then.
        Looks by state_of, which buries the dead."""
        state = self.state_of(name)
        if state["state"] == "ended":
            return True
        return bool(state.get("closing"))

    def _is_coming(self, name: str, state: dict[str, Any]) -> bool:
        """Tell whether a session whose lock is free may still get a runner, and is not lost: the
        process that is to start the runner, or the runner itself, lives and is not that far yet."""
        if state.get("state") != "starting" or "group" in state:
            return False  # it had a runner, which is dead
        age_s = time.monotonic() - (state.get("clock") or 0)
        if not 0 <= age_s < NEVER_STARTED_S:  # below 0: its clock is from before the last boot
            return False
        process = self.store.read_launch(name, "runner.json")
        if not process:
            if age_s < STARTING_S:
                return True  # who launched the runner may have been killed before noting it
            process = state.get("launcher") or {}
        return is_running(process)

    def _reattach(self, name: str, state: dict[str, Any]) -> bool:
        """Start a new runner for a session on another machine, where its work goes on. Return False
        where the session is to be buried instead: it is on this machine, it has neither a task
        nor a message, or it has lost REATTACHED runners (it may never reach its host)."""
        session = self.store.peek(name)
        times = int(state.get("reattached") or 0)
        if not session or not session.host or times >= REATTACHED:
            return False
        if not self.store.unanswered(name) and not self.store.waiting(name):
            return False
        again = {key: value for key, value in state.items() if key not in ("group", "closing")}
        if self._renew(name, state, {**again, "reattached": times + 1}):
            launch = self.store.read_launch(name, "launch.json")
            self._run_session(session, self.store.home, launch["mcp"][:-1])
        return True

    def _renew(self, name: str, state: dict[str, Any], again: dict[str, Any]) -> bool:
        """Make a session whose runner is gone `starting`, in the state `again`, for this process to
        start a new runner. Return False where its state is not this any more: another was
        quicker."""
        lock = self.store.lock_session(name)
        if lock is None:
            return False
        try:
            if self.store.load_state(name) != state:
                return False
            self.tmux.kill_session(name)
            for file in ("tools-listed", "runner.json"):  # they speak of the run before
                _unlink(self.store.launch_file(name, file))
            if state.get("state") == "ended":  # orders to the session that was
                self.store.drop_events(name, [entry for entry, _, _ in self.store.events(name)])
            self.store.save_state(name, {**again, **fresh_state()})
        finally:
            os.close(lock)
        return True

    def launched(self, name: str) -> Profile | None:
        """Return the profile that a session was started with, clipped as it was then; None where
        its launch.json is not there (a client has none) or cannot be read."""
        profile = self.store.read_launch(name, "launch.json").get("profile") or {}
        fields = {key: _tuples(profile[key]) for key in Profile._fields if key in profile}
        if not fields:
            return None
        return Profile(**fields)

    def writers_beside(self, session: Session, since: float) -> list[str]:
        """Return the other workers that are at work, or ended a turn after `since` and are idle,
        and may write into the same files as this one: their directory is its own, one around it,
        or one inside it. Those above and below it do not count: one waits for the other."""
        writers = []
        above = (session.name, *self.ancestors(session.name))
        for name in self.store.live():
            other, profile = self.store.peek(name), self.launched(name)
            if not other or not other.supervisor or other.host or other.worktree:
                continue
            # A worker's own worker: its result comes before its state says that it is done.
            if name in above or session.name in self.ancestors(name):
                continue
            if os.path.commonpath((other.cwd, session.cwd)) not in (other.cwd, session.cwd):
                continue
            state = self.store.load_state(name)
            ended_since = state.get("state") == "idle" and state.get("since", 0) > since
            if profile and may_write(profile) and (state.get("task") or ended_since):
                writers.append(name)
        return writers

    def ancestors(self, name: str) -> list[str]:
        """Return the names of the supervisors above a session, the nearest first; the last may be
        a client. None for "", or where the session is gone."""
        names = []
        while name:
            if name not in self._above:  # a supervisor never changes: read it once
                session = self.store.peek(name)
                if not session:
                    break
                self._above[name] = session.supervisor
            name = self._above[name]
            if name:
                names.append(name)
        return names

    def view(self, name: str) -> dict[str, Any]:
        """Return the facts of a session or client as data; for_s: the seconds in this state. Looks
        by state_of, which buries the dead. Raises as Store.find does."""
        session = self.store.find(name)
        if session.kind == "client":
            state: dict[str, Any] = {"state": "away"}
            if self.store.is_locked(name):
                state["state"] = "connected"
        else:
            state = self.state_of(name)
        since = state.get("since") or session.launched_at
        facts: dict[str, Any] = {
            "session": name,
            "kind": session.kind,
            "state": state.get("state") or "unknown",
            "for_s": round(max(0.0, time.time() - since), 1),
            "profile": session.profile,
            "provider": session.provider,
            "supervisor": session.supervisor,
            "cwd": session.cwd,
            "waiting_messages": len(_listdir(self.store.folder(name, "inbox/new"))),
        }
        if session.host:
            facts.update(cwd=f"{session.host}:{session.cwd}", host=session.host)
        keys = "questions task task_line last_line conversation held_back why exit_status usage"
        facts.update({key: state[key] for key in keys.split() if state.get(key)})
        place, _ = self.place(name)
        if place:
            facts.update(place=place, why=WAITS.format(place))
        return facts

    # ---- the dead ----

    def watch(self, name: str) -> None:
        """Bury a session whose runner is dead. Where it lives, return at once, and wake whoever
        waits in this process the moment it dies, as when_free does."""
        self.state_of(name)
        self.when_free(self.store.folder(name, "lock"))

    def when_free(self, path: str) -> None:
        """Return at once, and wake whoever waits in this process (Store.poke_own) once nobody has
        a file's lock. A thread waits for that, one for each path."""
        if path in self._watched:
            return
        self._watched.add(path)

        def wait() -> None:
            try:
                with FileLock(path, shared=True, create=False):
                    pass  # nobody has it, now
            except OSError:
                pass  # it is not made yet, or gone
            select.select([], [], [], 0.05)  # a session that starts is not locked yet
            self._watched.discard(path)
            self.store.poke_own()

        try:
            start_thread(wait)
        except OSError:
            self._watched.discard(path)
            raise

    def bury(self, name: str) -> None:
        """Do what the dead runner of a session no longer can: end what is left of its CLI, give
        its tasks the result `lost`, tell the senders of its messages, end its workers. Of a
        session that has ended, only answer what came later. Does nothing where the runner lives.
        """
        session = self.store.peek(name)
        if session and session.kind == "client":
            return  # it never had a runner: it is away
        lock = self.store.lock_session(name)
        if lock is None:
            return  # a runner, or another who buries, has it
        lives = False
        try:
            runner = self.store.read_launch(name, "runner.json")
            lives = not look_until(lambda: not is_running(runner), 50)
            if lives:
                return
            state = self.store.load_state(name)
            if self._is_coming(name, state):  # by now: our caller read an older state
                return
            if state.get("state") == "ended":  # who was to answer its inbox was killed
                outcome, reason = "stopped", "stopped"
                if state.get("why") == "lost":
                    outcome, reason = "lost", "runner_died"
                self.answer_all(name, {}, outcome, reason, "the session has ended")
                return
            self.store.mend_log(name)
            ended = 0
            if group := state.get("group"):
                ended = end_program(group)
            self.tmux.kill_session(name)
            self.store.log(name, "lost", processes_ended=ended)
            typed_at = (state.get("delivery") or {}).get("at") or 0
            for _, at, payload in self.store.events(name):
                # The CLI took what was typed; the runner died before it read that.
                if payload.get("hook_event_name") == "UserPromptSubmit" and at >= typed_at:
                    for letter in state.get("delivering") or ():
                        self.store.discharge(name, letter)
                    state["delivering"] = ()
            printed = tail_lines(self.store.read_text(self.store.folder(name, "runner.log")), 3)
            detail = f"the process that looked after the session is gone. {printed}".strip()
            self.answer_all(name, state, "lost", "runner_died", detail)
            self.end_workers(name)
            gone = {"state": "ended", "since": time.time(), "why": "lost", "questions": []}
            self.store.save_state(name, {**state, **gone, "task": ""})
            self.answer_all(name, state, "lost", "runner_died", detail)  # also what came meanwhile
            self.store.set_live(name, False)
        finally:
            os.close(lock)
            if lives:  # somebody replaced its lock's file: woken, it locks the new one, now free
                self.store.poke(name)
        self.store.poke_up(name)

    def answer_all(
        self,
        name: str,
        state: dict[str, Any],
        outcome: str,
        reason: str,
        detail: str,
        base: Result | None = None,
    ) -> None:
        """Give every unfinished task of a session this outcome, tell the senders of its messages
        that they were not delivered, and empty its inbox.

        state: as in state.json. base: what the runner knows of the open task (screen, turns …);
        a task that had not begun gets no answer, turns or usage from it.
        """
        at_work = [self.store.taken(name, entry) for entry in self.store.unanswered(name)]
        for message in filter(None, (*at_work, *self.store.waiting(name))):
            if message.kind == "task":
                result = base or Result("", name, outcome, usage=state.get("usage") or None)
                if message.id != state.get("task_message"):  # it had not begun
                    result = result._replace(answer="", turns=(), usage=None)
                result = result._replace(
                    task=message.task,
                    session=name,
                    outcome=outcome,
                    reason=reason,
                    detail=detail,
                    seconds=seconds_since(message),
                    ended_at=time.time(),
                )
                self.conclude(result, message.sender)
            elif message.kind == "message":
                self.notify_undelivered(message, detail or reason)
            self.store.discharge(name, message.id)

    def conclude(self, result: Result, owner: str) -> None:
        """Write a task's result, wake its owner and, unless the task had a result already
        (Store.save_result), notify the person."""
        if self.store.save_result(result, owner).ended_at == result.ended_at:  # ours is the one
            text = result.answer or f"{result.reason} {result.detail}"
            self.notify(result.session, "ended", text, result.task, result.outcome)

    def notify(self, name: str, event: str, text: str, task: str, outcome: str = "") -> None:
        """Run the user's own command, if there is one (CAO_NOTIFY, as it was when the session was
        launched), in a thread; this process does not end before it. The command's environment
        has the facts, its last argument is a sentence. A failure is only logged."""
        env = self.store.read_launch(name, "env.json")
        command = env.pop("CAO_NOTIFY", "")
        if not command:
            return
        import shlex

        text = shorten(text, 300)
        session = env.pop("CAO_SESSION", name)  # it is the person's, not the agent's
        facts = {
            "CAO_NOTIFY_EVENT": event,
            "CAO_NOTIFY_SESSION": session,
            "CAO_NOTIFY_TASK": task,
            "CAO_NOTIFY_OUTCOME": outcome,
            "CAO_NOTIFY_TEXT": text,
        }
        what_happened = outcome
        if event == "asking":
            what_happened = "asks"
        sentence = f"{name} {what_happened}: {text}"

        def work() -> None:
            fault = ""
            try:
                ran = run([*shlex.split(command), sentence], NOTIFY_S, env={**env, **facts})
                if ran.status:
                    fault = f"status {ran.status}: {shorten(ran.err, 200)}"
            except (CaoError, OSError, ValueError) as error:
                fault = str(error)
            if fault:
                self.store.log(name, "notify_failed", why=fault)

        start_thread(work, daemon=False)

    def notify_undelivered(self, message: Message, why: str) -> None:
        """Tell the sender, once, by a notice, that its message was not delivered or, where its id
        ends in ~, may not have been. Nobody is told where the sender's folder is gone."""
        beginning, verb = shorten(message.text, 60), "was not"
        if message.id.endswith("~"):
            verb = "may not have been"
        reason = strip_controls(shorten(why, 500))  # they may be far words
        text = f"Your message to {message.to} ({beginning!r}) {verb} delivered: {reason}."
        if self.store.peek(message.sender):
            self.store.put_once(
                Message(f"{message.id}-n", "notice", "cao", message.sender, text, time.time())
            )

    # ---- ends and orders ----

    def end_workers(self, name: str) -> None:
        """End the workers of a session that ends; their tasks are answered `stopped`."""
        for other in self.store.live():
            if self.ancestors(other)[:1] == [name]:
                self.end(other)

    def end(self, name: str) -> None:
        """End a session and its workers, and wait for it. Its runner does it; where that is dead,
        or has not done so within STOP_S, we kill its pane and bury it. A runner that outlives even
        this is still at it when we return. Does not look whether the caller may."""
        try:
            self.control(name, {"cao": "stop"}, lambda state: state.get("state") == "ended", STOP_S)
        except FAILURES as error:  # no room for an order
            complain(str(error))
        if self.store.load_state(name).get("state") != "ended":
            self.tmux.kill_session(name)
            self.control(name, {}, lambda _: not self.store.is_locked(name), 2.0)
            self.control(name, {}, lambda state: not self._is_coming(name, state), STARTING_S)
            self.bury(name)

    def control(
        self,
        name: str,
        order: dict[str, Any],
        done: Callable[[dict[str, Any]], bool],
        wait_s: float,
    ) -> dict[str, Any]:
        """Give a session's runner an order ({}: none, only wait), and return the session's state
        once done(state) is true, after wait_s seconds, or when the runner is dead. The caller
        looks which it was."""
        wake = Wake(self.store)
        try:
            wake.listen(name)
            if order:
                self.store.put_event(self.store.folder(name), json.dumps(order))
            until = time.monotonic() + wait_s
            while True:
                state = self.store.load_state(name)
                if done(state) or time.monotonic() > until:
                    return state
                if not self.store.is_locked(name) and state.get("state") != "starting":
                    return state
                wake.wait(min(0.25, until - time.monotonic()))
        finally:
            wake.close()

    # ---- starting sessions ----

    def profile(
        self, name: str, cwd: str, permissions: str = "", *, may_be_session: bool = False
    ) -> Profile:
        """Return a profile, by name, for a worker of the caller: clipped by the grants of the
        caller and of those above it.

        permissions: in place of the profile's own; only a person may give these (UsageError).
        Raises NotAllowedError as load_profile does, and NotFoundError with the nearest names;
        may_be_session: the name could be a session's too, so theirs are among them; it is none of
        an agent's (UsageError for a client's).
        """
        if permissions:
            what = "give a worker other permissions than its profile has"
            self.check_person(what, "leave --permissions out")
        profile = load_profile(name, self.store, cwd)
        if profile:
            if permissions:
                profile = profile._replace(permissions=permissions)
            for grant in self._grants():
                profile = clip_profile(profile, grant)
            return profile
        import difflib

        known = [*find_profiles(self.store.home, cwd), *PROVIDERS]
        known.remove("command")  # that needs a profile
        what = f"{name!r} is no profile or provider"
        near = difflib.get_close_matches(name, known, 3, 0.7)
        if may_be_session and self.store.peek(name):
            raise UsageError(f"{name} is a client, not an agent", "give the task to an agent")
        if may_be_session:
            what = f"{name!r} is no session, profile or provider"
            near += sessions_meant(name, self.store.live())
        near = near or sorted(set(known))
        raise NotFoundError(what, "one of: " + ", ".join(near))

    def _grants(self) -> list[dict[str, Any]]:
        """Return what the caller's workers are held to: its own `grant`, those of the agents
        above it, and those of the agents above these on the machine that gave them the work.
        Raises CaoError where one cannot be read."""
        grants = []
        for name in (self.caller.name, *self.ancestors(self.caller.name)):
            profile, session = self.launched(name), self.store.peek(name)
            if profile:
                settings = profile.settings
                grants += [settings.get("grant"), *settings.get("grants above", ())]
            elif session and session.kind == "agent":
                raise CaoError(  # it may hold a grant, which must not fall open
                    f"the scope of {name} cannot be read: its launch.json is gone or torn",
                    f"stop {name}, and start it anew",
                )
        return [grant for grant in grants if grant]

    def launch(self, profile: Profile, cwd: str, options: TaskOptions, *, top: bool = False) -> str:
        """Make a new session, with its place in the queue and its worktree, and return its name.
        It has no runner yet: `start` starts that, and until then the session is lost if this
        process dies. Raises CaoError where it cannot be; then nothing of it is left.

        cwd: the directory to work in, an absolute path. top: a supervisor for a person, with
        nobody above it.
        """
        check_tmux(self.tmux.program)
        if (program := program_of(profile)) and not options.host:
            find_program(program)
        depth, supervisor, keep = self.caller.depth + 1, self.caller.name, options.keep
        if keep is None:
            keep = profile.keep
        if top:
            depth, supervisor, keep = 0, "", True
        if depth > MAX_DEPTH:
            raise CaoError(
                f"workers go {MAX_DEPTH} deep at the most, this one would be the {depth}th",
                "do the work yourself, or ask your supervisor to hand it out",
            )
        worktree = options.worktree
        if worktree is None:
            worktree = profile.settings.get("worktree")
        origin = inside = ""
        if worktree and not options.host:
            own = self._own_repository() or profile.settings.get("repository above", "")
            origin, inside = worktree_start(cwd, own)
        stem, profile_name = render_slug(profile.name) or "agent", profile.name
        if options.host:
            stem, profile_name = stem[:26], f"{profile.name}@{options.host}"  # 26: see NEAR
        idle_close_s = seconds_setting("CAO_IDLE_CLOSE_S", IDLE_CLOSE_S)
        interrupted_s = seconds_setting("CAO_INTERRUPTED_S", INTERRUPTED_S)

        # We hold the session's own lock while the session is made. If we are killed, that lock is
        # free, and by its clock (-1e9) the state is old: whoever looks buries the session at once.
        name, making = "", None
        while making is None:  # `clean` may take a new folder for one that was left
            name = self.store.new_folder(stem)
            try:
                making = self.store.lock_session(name)
            except FileNotFoundError:
                pass
        session = Session(
            name,
            "agent",
            profile_name,
            profile.provider,
            cwd,
            supervisor,
            depth,
            time.time(),
            keep,
            profile.approve,
            idle_close_s,
            interrupted_s,
            new_uuid(),
            host=options.host,
        )
        if origin:
            place = os.path.normpath(f"{worktree_path(self.store, name)}/{inside}")
            session = session._replace(worktree=f"cao/{name}", origin=origin, cwd=place)
        try:
            with FileLock(f"{self.store.home}/lock"):
                self.store.create(session)
                self.store.save_state(name, {**fresh_state(), "clock": -1e9})
                self._enter(session)
            if origin:
                add_worktree(self.store, session)
            self.store.save_state(name, fresh_state())
        except BaseException:
            self.forget(name)
            raise
        finally:
            os.close(making)
        return name

    def _own_repository(self) -> str:
        """Return the one repository of which the caller gets worktrees, on another machine too,
        "" where it is free: git runs what a repository's config names, and an agent may have
        written any other."""
        if self.caller.person:
            return ""
        here = os.path.realpath(current_directory())
        if inside := _in_worktrees(here):
            top = worktree_path(self.store, inside.partition("/")[0])
            return name_of_repository(os.path.dirname(os.path.dirname(_sure_directory(top))))
        own = find_repository(here)[0]
        if own == here and not self.caller.worker:  # in none: a client such as Claude Desktop
            return ""
        return own

    def _enter(self, session: Session) -> None:
        """Put a session into the queue, by a ticket that holds this process's CAO_MAX_SESSIONS,
        and into live/. Raises CaoError where too many wait already; then the caller takes both
        back. The caller has the runtime directory's lock."""
        most = int_setting("CAO_MAX_SESSIONS", MAX_SESSIONS)
        if not session.host:  # else it counts there
            queue = f"{self.store.home}/queue"
            ticket = f"{queue}/{next_stamp(queue)}-{session.name}"
            self.store.write(ticket, str(most), tmp=self.store.home)
        self.store.set_live(session.name, True)
        if self.place(session.name)[0] > MAX_QUEUED:
            raise CaoError(
                f"{MAX_QUEUED} sessions wait already until one of {most} has ended",
                "wait for one, stop one, or set CAO_MAX_SESSIONS",
            )

    def place(self, name: str) -> tuple[int, list[str]]:
        """Return a session's place (1: the first) among those that wait for a slot, and whom it
        waits for: the one before it or, for the first, those that have a slot. (0, []): it need
        not wait, for it has no ticket, or there is a slot for it. Takes none: its runner does."""
        living = self.store.live()  # read before the queue: whoever leaves that now has a slot
        queue = self.store.queue()
        if name not in queue:
            return 0, []

        def has_slot(other: str) -> bool:
            """Tell whether a session without a ticket has a slot (see the queue, above)."""
            session = self.store.peek(other)
            if not session or session.host or self.store.running(other):
                return False
            if self.store.is_locked(other):
                return True
            return self._is_coming(other, self.store.load_state(other))

        slots = [other for other in living if other not in queue and has_slot(other)]
        most = self.store.read_text(queue[name])  # what _enter has put into the ticket
        if not most.isdigit():
            most = str(MAX_SESSIONS)
        free = max(0, int(most) - len(slots))
        before = [*queue][: [*queue].index(name)]
        if len(before) < free:
            return 0, []
        return len(before) + 1 - free, before[-1:] or slots

    def make_room(self, names: Sequence[str]) -> None:
        """Ask one of these sessions to close, so that its slot becomes free: of those that may
        close, the one that has been idle for longest. Ask none where one is about to end."""
        idle = []
        for name in names:
            state = self.store.load_state(name)
            if state.get("closing") or state.get("state") == "ended":
                return
            if state.get("may_close"):
                idle.append((state["since"], name))
        if idle:
            self.store.put_event(self.store.folder(min(idle)[1]), json.dumps({"cao": "close"}))

    def start(self, name: str, profile: Profile, resume: str = "") -> None:
        """Write what a session is started with into launch/, then start its runner in tmux. Its
        inbox may hold its first task already. resume: the id of the CLI's conversation to go on
        with. Where this raises, the caller cleans up."""
        session = self.store.find(name)
        provider, folder = PROVIDERS[profile.provider], self.store.folder(name)
        cao = install_copy(self.store)
        note = SUPERVISOR_NOTE
        if session.supervisor:
            note = WORKER_NOTE
        notes = [profile.prompt, note.format(name=name, supervisor=session.supervisor)]
        if session.worktree:
            notes.append(WORKTREE_NOTE.format(branch=session.worktree))
        if lacks := [TOOL_WORDS[word] for word in lacking(profile)]:
            notes.append(SCOPE_NOTE.format(", ".join(lacks)))
        system = "\n\n".join(filter(None, notes))
        # What is not set is given as empty: else Gemini CLI 0.61.0 and Qwen Code 0.24.4 take it
        # from the folder's `.env`, and our server has it from them.
        unset = dict.fromkeys(PASSED_ON, "")
        cao_env = {key: os.environ[key] for key in PASSED_ON if os.environ.get(key)}
        cao_env.update(CAO_HOME=self.store.home, CAO_SESSION=name)
        # An agent's own environment was cut to its CLI's variables, and may name a shadow home
        # (Provider.shadow) as that CLI's. So what the person had for any CLI is kept beside each
        # session, for the agents below it.
        above = self.store.read_json(self.store.folder(self.caller.name, "person-env.json"))
        persons = worker_environment(ENV_OF_PERSON, profile.settings, above)
        self.store.write(f"{folder}/person-env.json", dump(persons))
        env = persons  # for ssh, where it works on another machine
        if not session.host:
            env = worker_environment(provider.env_pass.split(), profile.settings, above)
        env = {**unset, **env, **cao_env}
        launch = Launch(
            name,
            f"{folder}/launch",
            session.cwd,
            profile,
            system,
            (*cao, "hook", folder),
            (*cao, "mcp"),
            {**unset, **cao_env, "CAO_CALL_CEILING_S": str(TOOL_TIMEOUT_S)},
            session.conversation,
            resume,
            umask=own_umask(),
        )
        files: dict[str, Any] = {
            "env.json": env,
            "launch.json": {**launch._asdict(), "profile": profile._asdict()},
        }
        links: Sequence[str] = ()
        home, runner_cwd = provider.home_in(env), self.store.home
        if not session.host:
            runner_cwd, links = session.cwd, provider.links.split()
            refuse_unasked(profile, session.cwd)
            own = {
                file: self.store.read_text(f"{home}/{file}") for file in provider.own_files.split()
            }
            _, inside = find_repository(session.cwd)
            started = provider.start(launch._replace(own=own, env=env, inside=inside))
            files.update({"system.md": system, **started.files})

        def place(file: str) -> str:
            """Return the path of a file in launch/, with its folder made."""
            path = self.store.launch_file(name, file)
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
            return path

        for file, content in files.items():
            text = content
            if not isinstance(text, str):
                text = dump(content)
            self.store.write(place(file), text)
        place(provider.letters)
        for link in links:
            path = place(f"{provider.shadow}/{link}")
            if os.path.exists(f"{home}/{link}") and not os.path.lexists(path):
                os.symlink(f"{home}/{link}", path)
        self.store.mend_log(name)
        self.store.log(name, "launched", provider=provider.name, resume=resume)
        self._run_session(session, runner_cwd, cao)

    def _run_session(self, session: Session, cwd: str, cao: Sequence[str]) -> None:
        """Start a session's runner in a tmux session of the same name, in cwd, and note its process
        in runner.json; cao: the argv of the copy to run. Try once more where the server has just
        exited with its last session (tmux(1), exit-empty). Raises TmuxError."""
        name, fixed = session.name, bool(session.supervisor)  # without one, a person works in it
        argv, env = [*cao, "run-session", name], {"CAO_HOME": self.store.home}
        begin = partial(self.tmux.new_session, name, cwd, env, argv, fixed=fixed)
        try:
            pid = begin()
        except TmuxError as error:
            # The runner has written its state: there was a server, and it was killed.
            begun = "group" in self.store.load_state(name)
            if error.fix != "no server" or begun:
                raise
            pid = begin()
        self.store.write(self.store.launch_file(name, "runner.json"), dump(note_process(pid)))

    def forget(self, name: str) -> None:
        """Remove all of a session that never started: its worktree with whatever is in it, the
        caller's entries for its tasks, its pane, its folder."""
        import shutil

        session = self.store.load(name)
        if session and os.path.isdir(worktree_path(self.store, name)):
            remove_worktree(self.store, name, session.origin, force=True)
        for task in self.store.owed(self.caller.name):
            if self.store.session_of(task) == name:
                self.store.discharge(self.caller.name, task)
        try:
            self.tmux.kill_session(name)
        finally:  # also where tmux cannot be reached: that is why it never started
            self.store.set_live(name, False)
            shutil.rmtree(self.store.folder(name), ignore_errors=True)

    def _resume(self, session: Session, text: str, options: TaskOptions) -> str:
        """Start a session that has ended, or is about to, again in its old conversation, and give
        it a task; return the task's name. Raises NotFoundError where it has ended for good. Where
        the start fails, it is `ended` again, and the task was not given."""
        name = session.name
        profile = self.launched(name)  # its scope is the one it had
        state = self.state_of(name)
        conversation = state.get("conversation")
        anew = f"use the profile's name, {session.profile}, for a new session"
        if not PROVIDERS[session.provider].resumes or not conversation or not profile:
            why = state.get("why") or "closed"
            raise NotFoundError(f"session {name} has ended ({why}) for good", anew)
        if not session.host and not os.path.isdir(session.cwd):
            raise NotFoundError(f"the directory of {name} is gone: {session.cwd}", anew)

        def left(state: dict[str, Any]) -> bool:
            """Tell whether its last runner is gone, or another process has resumed it."""
            if state.get("state") != "ended":
                return not state.get("closing")
            return not self.store.is_locked(name)

        renewed = False
        while not renewed:
            # Its last runner may be leaving still.
            state = self.control(name, {}, left, 2 * STOP_S)
            if state.get("state") != "ended":
                return self._put_task(name, text, options, profile)  # another was quicker
            if self.store.is_locked(name):
                who = lock_holder(self.store.folder(name, "lock"))
                raise CaoError(f"{who} is at work on {name}: it may be `cao clean`", "try again")
            # `delivering` names what the last runner typed and the CLI did not confirm: it may have
            # it (Runner._letters).
            again = {
                "conversation": conversation,
                "transcript": state.get("transcript") or "",
                "delivering": state.get("delivering") or (),
            }
            renewed = self._renew(name, state, again)
        task = ""
        try:
            with FileLock(f"{self.store.home}/lock"):
                self._enter(session)
            task = self._put_task(name, text, options, profile)
            self.start(name, profile, conversation)
        except BaseException:
            self.tmux.kill_session(name)
            if task:
                self.withdraw_task(name, task)
            self.store.save_state(name, state)
            self.store.set_live(name, False)
            raise
        return task

    def _check_typable(self, name: str, text: str) -> None:
        """Raise UsageError where a session runs a `command` program, and it is not the caller's
        (check_mine) or this text cannot be typed exactly. All other CLIs can get a text in a file,
        and do not run what they are told."""
        session = self.store.load(name)
        if not session or session.kind != "agent":
            return
        row = PROVIDERS[session.provider]
        if not row.by_output:
            return
        self.check_mine(name)
        if fault := typing_fault(row, text):
            raise UsageError(
                f"{name} is a program that is typed to, and cannot take this: {fault}",
                f"write it as one line of printable ASCII, at most {row.typed_bytes} bytes",
            )

    def _put_task(self, name: str, text: str, options: TaskOptions, profile: Profile | None) -> str:
        """Put a task into a session's inbox and return the task's name. What options leave open
        (check, check_retries, max_tokens) is as its profile says. Calls options.named before the
        task is there. Where this raises, nothing was given."""
        self._check_typable(name, text)
        max_tokens, check, retries = options.max_tokens, options.check, options.check_retries
        if profile:
            settings = profile.settings
            max_tokens = max_tokens or settings.get("max_tokens") or 0
            check = check or settings.get("check") or ""
            if retries is None:
                retries = settings.get("check_retries")
            if max_tokens and not PROVIDERS[profile.provider].tokens:
                what = f"{profile.provider} does not tell how many tokens it uses"
                raise UsageError(what, "leave max_tokens out; a timeout ends its task")
        if retries is None:
            retries = CHECK_RETRIES
        task = f"{name}.{random_letters()}"
        options.named(task)
        message = Message(
            self.store.new_id(name, task),
            "task",
            self.caller.name,
            name,
            text,
            time.time(),
            task,
            options.timeout_s,
            check,
            retries,
            time.monotonic(),
            int(max_tokens),
        )
        self.store.give(message)
        self.store.poke(self.caller.name)  # its runner, if it has one, is to watch the worker
        self.store.poke_queue()  # the caller has no slot while it is owed the result
        return task

    # ---- what was given ----

    def receipt(self, task: str) -> dict[str, Any]:
        """Return what to tell of a task that was given just now: its name, its session and, where
        that is queued, its place."""
        session = self.store.session_of(task)
        receipt: dict[str, Any] = {"task": task, "session": session}
        place, _ = self.place(session)
        if place:
            receipt.update(state="queued", place=place, why=WAITS.format(place))
        return receipt

    def withdraw_task(self, name: str, task: str) -> bool:
        """Withdraw a task of the caller's as if it had not been given, if its session has not
        taken it yet; tell whether that was so."""
        for message in self.store.waiting(name):
            if message.task == task and self.store.withdraw(name, message.id):
                self.store.discharge(self.caller.name, task)
                return True
        return False

    # ---- giving work ----

    def assign(self, target: str, task: str, options: TaskOptions) -> str:
        """Give a task to a session or, by a profile's or provider's name (PROFILE@HOST: on another
        machine), to a new one; return the task's name. Does not wait for the task.

        The same request_id with the same target is the same task: it is given once. Raises
        UsageError where its text is another, and CaoError where the task cannot be given; then
        nothing was.
        """
        task = strip_controls(task)
        self._check_text(task)
        if not options.request_id:
            return self._assign(target, task, options)
        request, text_sha = sha256_of(f"{target}\0{options.request_id}")[:32], sha256_of(task)
        path = self.store.folder(self.caller.name, "requests", request)

        def named(name: str) -> None:  # before the task is put: killed in between, it is put again
            self.store.write(path, f"{name} {text_sha}", durable=True)

        with FileLock(f"{path}.lock"):  # the same request, twice at once
            name, _, sha = self.store.read_text(path).partition(" ")
            if name and sha != text_sha:
                raise UsageError(
                    f"request_id {options.request_id!r} was used for another text: {name}",
                    "use a new request_id for a new task",
                )
            books = [self.caller.name]
            for client in self.store.all_sessions():  # ours, before a restart
                # Another conversation of Claude Code's has other ids.
                if client.partition("--")[0] == self.caller.stem and self.is_left(client):
                    books.append(client)
            for client in books:
                noted = self.store.folder(client, "requests", request)
                name, _, sha = self.store.read_text(noted).partition(" ")
                if sha == text_sha and self.store.was_given(name):
                    ago = render_seconds(max(0.0, time.time() - written_at(noted)))
                    options.repeated(
                        f"Task {name} was given {ago} ago with this request_id, and not again now:"
                        " for new work, use another request_id."
                    )
                    return name
            return self._assign(target, task, options._replace(named=named))

    def _check_text(self, text: str) -> None:
        """Raise UsageError for a text that is empty, or too large for a message."""
        if not text.strip():
            raise UsageError("the text is empty", "write the text, or pipe it in")
        size = len(text.encode(errors="surrogatepass"))
        if size > MAX_MESSAGE_BYTES:
            raise UsageError(
                f"the text has {size} bytes, more than {MAX_MESSAGE_BYTES}",
                "put it into a file and name the file",
            )

    def _assign(self, target: str, text: str, options: TaskOptions) -> str:
        """Give a task as `assign` does, without its request_id: put it into a living session's
        inbox, resume an ended session with it, or launch a new one for it. All that the caller
        may not do raises before anything is made or put."""
        target = options.session or target
        if session := self.store.agent(target):
            self._check_reach(session)
            elsewhere = options.cwd not in ("", session.cwd)
            if elsewhere and not session.host:
                elsewhere = working_directory(options.cwd) != session.cwd
            if elsewhere or options.worktree or options.permissions:
                what = f"{target} is a session: its directory and permissions are fixed"
                raise UsageError(what, "leave them out, or name a profile for a new session")
            worker, here = self.launched(target), session.cwd
            if session.host:
                here = ""
            self._check_command(options, worker, here)
            if self.is_over(target):
                return self._resume(session, text, options)
            self._check_ring(target)
            task = self._put_task(target, text, options, worker)
            if not self.is_over(target) or not self.withdraw_task(target, task):
                return task
            return self._resume(session, text, options)
        if options.session:
            anew = "use the profile's name for a new session"
            raise NotFoundError(f"session {target} is gone", anew)
        target, at, host = target.partition("@")
        if at:
            profile, options = self._for_host(target, host, options)
            cwd, here = options.cwd, ""
        else:
            cwd = here = working_directory(options.cwd)
            self._check_place(cwd, options)
            profile = options.profile or self.profile(
                target, cwd, options.permissions, may_be_session=True
            )
        if options.provider:
            profile = profile._replace(provider=options.provider)
        self._check_command(options, profile, here)
        if options.check and here and not options.profile:
            self._check_program(options.check, profile)
        name = self.launch(profile, cwd, options)
        task = ""
        try:
            task = self._put_task(name, text, options, profile)
            self.start(name, profile)
        except BaseException as error:
            if isinstance(error, TmuxError) and error.fix in ("gone", "no server"):
                self.bury(name)  # the server was killed under us: the task is `lost`
                return task
            self.forget(name)
            raise
        return task

    def _for_host(
        self, target: str, host: str, options: TaskOptions
    ) -> tuple[Profile, TaskOptions]:
        """Return the profile for a worker on another machine, with all that the cao there is to
        know, and the options for the session here that stands for it. Raises UsageError where
        host or cwd is wrong, NotAllowedError where the caller may not go there."""
        cwd = options.cwd or current_directory()
        if not HOST.match(host):
            raise UsageError(f"{host!r} is no host's name", "as in developer@build-box")
        if not os.path.isabs(cwd):
            raise UsageError(f"{cwd!r} is no path on {host}", "give it whole: /home/me/project")
        profile = self.profile(target, current_directory(), options.permissions)
        listed = profile.settings.get("hosts") or ()
        is_allowed = f"host {host}" in self.store.allowed().get(EVERYWHERE, {})
        if not self.caller.person and host not in listed and not is_allowed:
            raise NotAllowedError(
                f"no person has allowed work on the host {host!r}",
                f"a person has to run: cao allow --host {host} (or name it in the profile's"
                " `hosts:`)",
            )
        settings = {**profile.settings, "grants above": self._grants()}
        own = current_directory()
        if self.caller.worker:  # its shell may be anywhere
            own = self.store.find(self.caller.name).cwd
        chosen = cwd != own or cwd in ("/", os.path.expanduser("~"))
        settings["agent above"] = chosen and not self.caller.person
        if options.worktree is not None:
            settings["worktree"] = options.worktree
        if settings.get("worktree"):
            settings["repository above"] = self._own_repository()
        if options.keep is not None:
            profile = profile._replace(keep=options.keep)
        return profile._replace(settings=settings), options._replace(host=host, cwd=cwd)

    def _check_place(self, cwd: str, options: TaskOptions) -> None:
        """Raise NotAllowedError where an agent would start a worker in a directory (a real path)
        that holds settings: the worker could write what cao, git or a CLI then runs. The directory
        that the agent was started in, or that its client has open, is always allowed."""
        me, sent = self.store.peek(self.caller.name), options.profile
        if self.caller.person and not (sent and sent.settings.get("agent above")):
            return
        starts = [os.path.realpath(current_directory())]
        if sent:
            starts = []
        elif me and self.caller.worker:
            starts = [os.path.realpath(me.cwd)]
        asks = options.roots is not None and not sent and not self.caller.worker
        if not (cwd in starts and not asks) and self._holds_settings(cwd, starts):
            roots = options.roots() if asks and options.roots else []  # it takes a while
            if cwd not in roots and self._holds_settings(cwd, [*starts, *roots]):
                raise NotAllowedError(
                    f"{cwd} may hold settings of other programs: no agent starts a worker there",
                    "name the directory of a project",
                )

    def _holds_settings(self, cwd: str, starts: Sequence[str]) -> bool:
        """Tell whether a directory is one of these: ~, the runtime directory, that of all
        worktrees, a directory above any, one inside the runtime directory, a hidden one, or git's
        own. A dot counts only below the caller's own directories (starts), below the top of a
        worktree of their repository, or below the top of a worktree of cao's. All are real paths.
        """
        home, users = os.path.realpath(self.store.home), os.path.realpath(os.path.expanduser("~"))
        folders = (home, users, os.path.realpath(f"{home}/worktrees"))
        above = cwd in (os.path.commonpath((cwd, path)) for path in folders)
        worktree, (repository, path) = _in_worktrees(cwd), find_repository(cwd)
        in_home = os.path.commonpath((cwd, home)) == home and not worktree
        if worktree:
            path = worktree.partition("/")[2]
        elif repository not in [find_repository(start)[0] for start in starts]:
            path = f"{cwd}/"
            for start in starts:
                path = path.removeprefix(f"{start}/")
        return above or in_home or bool(re.search(r"(^|/)\.[^/]|\.git(/|\Z)", path))

    def _check_command(self, options: TaskOptions, worker: Profile | None, cwd: str) -> None:
        """Raise UsageError where the check of a task is no command, NotAllowedError where the
        caller may not give it: it runs without a question, and outside any sandbox of the worker.

        An agent may give the check of the worker's own profile, any check to a worker that may
        run anything, and what a person has allowed for the repository of cwd ("": on another
        machine, where nothing was allowed). Else options.allows asks a person, which may take long.
        """
        check = options.check
        if not check or options.profile:  # the cao that sent the profile has looked at it
            return
        if worker and check == worker.settings.get("check"):
            return
        for what, fix in check_faults(check):
            raise UsageError(what, fix)
        if self.caller.person:
            return
        if worker and may_run_anything(worker):
            return
        way = "put it into the profile: check"
        if cwd:
            way = f"run: cao allow --check {quote_argv([check, cwd])}"
            allowed = self.store.allowed().get(find_repository(cwd)[0], {})
            if f"check {check}" in allowed or options.allows(check, cwd):
                return
        raise NotAllowedError(
            f"no person has allowed the check {check!r} there, and the worker may not run it"
            " unasked",
            f"a person has to {way} (or leave `check` out, or take a worker with"
            " `permissions: all` and a shell)",
        )

    def _check_program(self, check: str, worker: Profile) -> None:
        """Raise UsageError where a new worker's check names a program that is nowhere on its PATH:
        each try would cost a turn. A path may be a file that the worker is to write."""
        import shlex

        program = shlex.split(check)[0]
        folders = os.get_exec_path(worker_environment((), worker.settings))
        # Of a relative folder on the PATH, too, only the worker knows what will be in it.
        if "/" in program or not all(folder.startswith("/") for folder in folders):
            return
        if not any(os.access(f"{folder}/{program}", os.X_OK) for folder in folders):
            raise UsageError(
                f"the check's program {program!r} is not on PATH",
                f"mend its name, or if the task brings it: --check {shlex.quote(f'env {check}')}",
            )

    def _check_reach(self, session: Session) -> None:
        """Raise UsageError where the caller may not give a task to this session: it is the caller
        itself or, for any agent of ours (Caller.worker), neither below it nor one of `known`, or
        it may do more (_check_grant)."""
        if session.name == self.caller.name:
            raise UsageError("that is yourself", "give the task to another, or do it yourself")
        below = self.caller.name in self.ancestors(session.name)  # it may have ended: it resumes
        if self.caller.worker and not below and session.name not in self.known():
            raise UsageError(
                f"{session.name} is not one of your workers or siblings",
                "list_sessions shows whom you may reach",
            )
        self._check_grant(session.name)

    def _check_grant(self, name: str) -> None:
        """Raise UsageError where a session may do more than the caller's grants allow, and is
        neither its worker nor above it: a sibling's model does what it is told."""
        worker = self.launched(name)
        if self.caller.name in self.ancestors(name) or name in self.ancestors(self.caller.name):
            return
        if worker and any(clip_profile(worker, grant) != worker for grant in self._grants()):
            what = f"{name} may do more than your profile's grant allows"
            raise UsageError(what, "tell your supervisor, or give the work to a worker of your own")

    def _check_ring(self, target: str) -> None:
        """Raise UsageError where a task for target would wait for itself: target is above the
        caller, or waits, itself or through its workers, for a task of the caller's."""
        if target in self.ancestors(self.caller.name):
            raise UsageError(
                f"{target} is above you and waits for your work: a task for it would wait for ever",
                "use send_message",
            )
        seen, rest = set(), [target]
        while rest:
            for task in self.store.running(rest.pop()):
                session = self.store.session_of(task)
                if session == self.caller.name:
                    raise UsageError(
                        f"{target} waits for a task of yours: both would wait for ever",
                        "finish your own task first, or use send_message",
                    )
                if session not in seen and self.store.load(session):
                    seen.add(session)
                    rest.append(session)

    def is_left(self, client: str) -> bool:
        """Tell whether a client's folder may be the caller's own, from before a restart: it is of
        the same program and directory, and its server is gone. open_client names both; but Claude
        Code 2.1.332, started again, has another session, which is what names it (client_stem). Of
        one that never had a server nobody knows whether it is gone."""
        stem, other = self.caller.stem, client.partition("--")[0]
        if not stem or client == self.caller.name:
            return False
        if stem != other:
            if not all(re.fullmatch("claude-[0-9a-f]{8}", one) for one in (stem, other)):
                return False
            session = self.store.peek(client)
            if not session or session.cwd != current_directory():
                return False
            if not os.path.exists(self.store.launch_file(client, "served")):
                return False
        return not self.store.is_locked(client)

    def is_beside(self, client: str) -> bool:
        """Tell whether the caller, in a shell of no agent of ours, is in the directory of another
        client: Claude Code's shell, a new session of it and a person's shell are three of them."""
        session = self.store.peek(client)
        if self.caller.worker or client == self.caller.name or not session:
            return False
        return session.kind == "client" and session.cwd == current_directory()

    def left_by(self, whose: Callable[[str], bool]) -> list[str]:
        """Return the tasks that clients (those of which whose, is_left or is_beside, is true) have
        given, and of whose results, or of whose sessions' messages, nobody was told."""
        tasks = []
        for client in filter(whose, self.store.all_sessions()):
            senders = [message.sender for message in self.store.waiting(client)]
            tasks += [*self.store.owed(client), *map(self.store.task_meant, senders)]
        return [*filter(TASK.match, dict.fromkeys(tasks))]

    def own_books(self, tasks: Iterable[str]) -> list[str]:
        """Return in whose folders to look for what the caller is owed: its own and, for these
        tasks, that of a client above their sessions which it may have been before a restart."""
        above = {name for task in tasks for name in self.ancestors(self.store.session_of(task))}
        return [name for name in (self.caller.name, *filter(self.is_left, above)) if name]

    def check_mine(self, name: str) -> None:
        """Raise UsageError unless the caller is a person, or is above this session, or may have
        been, before a restart, the client above all of these (is_left)."""
        above = self.ancestors(name)
        if self.caller.person or self.caller.name in above:
            return
        if not above or not self.is_left(above[-1]):
            raise UsageError(f"{name} is not your worker", "its supervisor, or a person, may do it")

    def known(self) -> set[str]:
        """Return whom the caller may reach: its supervisor and, of those that live, its siblings,
        its workers, and theirs."""
        supervisor = self.ancestors(self.caller.name)[:1]  # none: a sibling has none either
        known = {*supervisor}
        for name in self.store.live():
            above = self.ancestors(name)
            if above[:1] == supervisor or self.caller.name in above:
                known.add(name)
        return known - {self.caller.name}

    # ---- what a person allows ----

    def check_person(self, what: str, fix: str) -> None:
        """Raise UsageError unless the caller is a person: what only a person may do, and what
        to try in its place."""
        if not self.caller.person:
            raise UsageError(f"only a person may {what}", fix)

    def allow(
        self, folder: str, check: str | None, remove: bool, host: str | None = None
    ) -> tuple[list[Profile], list[CaoError]]:
        """Allow a check in a folder's repository, a host everywhere or, without these two, the
        folder's own profiles as they are now; return these profiles, and what is wrong with each
        that is broken, which is not allowed. remove: no longer allow the check or the host or,
        without these, anything in that repository. Raises UsageError unless the caller is a
        person and the folder is there (or remove); NotFoundError for what is not there to be
        removed or allowed; CaoError where all profiles are broken."""
        self.check_person("allow this", "ask the person to run cao allow")
        if not remove and not os.path.isdir(folder):
            raise UsageError(f"{folder} is no directory", "check the path")
        repository, inside = find_repository(folder)
        entry, profiles, faults = "", [], []
        if check is not None:
            for what, fix in check_faults(check):
                raise UsageError(what, fix)
            entry = f"check {check}"
        if host is not None:
            if not HOST.match(host):
                raise UsageError(f"{host!r} is no host's name", "as ssh takes it: build-box")
            repository, entry = EVERYWHERE, f"host {host}"
        with FileLock(f"{self.store.home}/lock"):
            allowed = self.store.allowed()
            if remove and host is None and f"{folder}/.git" in allowed:
                repository = f"{folder}/.git"  # it was moved or deleted
            entries = allowed.setdefault(repository, {})
            if remove and not entry:
                del allowed[repository]
                if not entries:
                    raise NotFoundError(f"nothing is allowed in {folder}", "cao allow --list")
            elif remove:
                if entries.pop(entry, None) is None:
                    raise NotFoundError(f"{entry} is not allowed there", "cao allow --list")
            elif entry:
                entries[entry] = ""
            else:
                for name, path in profile_files(f"{folder}/.cao/profiles").items():
                    try:
                        content, sha256 = read_profile(path)
                        profiles.append(decode_profile(content, name, path))
                    except CaoError as error:
                        faults.append(error)
                        continue
                    entries[f"profile {inside}/.cao/profiles/{name}.md"] = sha256
                if faults and not profiles:
                    raise faults[0]
                if not profiles:
                    what = f"there is no profile in {folder}/.cao/profiles"
                    raise NotFoundError(what, "cao allow --check 'COMMAND' allows a check")
            self.store.save_allowed(allowed)
        return profiles, faults

    # ---- waiting ----

    def await_tasks(
        self,
        tasks: Sequence[str] | None,
        timeout_s: float,
        *,
        want_all: bool = False,
        told: set[str] | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        on_look: Callable[[Waited], None] = lambda _: None,
    ) -> Waited:
        """Wait until a task has a result, a message has come, or a session that works on a task, or
        one below it, asks something new; or until timeout_s have passed, or cancelled() is true.

        tasks: their names, whoever gave them; a session's name is its newest task's. Their results
        can be read again and again; of the messages to the caller, those from their sessions and
        cao's notices come with them. None: all tasks whose results the caller is owed, each of
        which only one process gets to tell, and all messages to it; where none is left, the wait is
        over. want_all: no result ends the wait while a task runs. told: the ids of the questions
        that do not end the wait, for the caller knows them; those returned are added, if the call
        was not cancelled. "*" in it: no question ends the wait. on_look is called at every look
        that ends nothing, at least every
        PROGRESS_S.

        Whoever calls this tells what it returns, and then calls `told` of that (see Waited).
        Raises NotFoundError for a named task that is not there.
        """
        if told is None:
            told = set()
        wake = Wake(self.store)
        claims: list[Claim] = []  # ours until they are returned
        until = time.monotonic() + timeout_s
        try:
            if tasks is None:
                wake.listen(self.caller.name)
            else:
                tasks = list(dict.fromkeys(map(self.store.task_meant, tasks)))
            while True:
                finished, running = self._look(tasks, wake)
                asking = self.questions({self.store.session_of(task) for task in running})
                asked = {ask["question"]["id"] for ask in asking}
                left = until - time.monotonic()
                over = left <= 0 or cancelled()
                if tasks is None and not finished and not running:
                    over = True
                if asked - told and "*" not in told:
                    over = True
                # Take them only now: a process that is killed in a wait has taken nothing.
                letters = self._take_letters(tasks, claims)
                enough = finished
                if want_all and running:
                    enough = []
                if over or letters or enough:
                    waited = self._take(finished, running, letters, claims, tasks is not None)
                    if over or waited.results or waited.messages:
                        if not cancelled():  # a cancelled call reports nothing
                            told.update(asked)
                        return waited._replace(asking=tuple(asking))
                    for task in finished:  # another process is telling it, or has told it
                        self.when_free(self.store.out_path(self.caller.name, task))
                on_look(Waited((), (), tuple(asking), tuple(running)))
                wake.wait(min(left, PROGRESS_S / 2))  # so progress is late by half at the most
        except BaseException:
            Waited(claims=tuple(claims)).release()
            raise
        finally:
            wake.close()

    def _look(self, tasks: Sequence[str] | None, wake: Wake) -> tuple[list[str], list[str]]:
        """Return (the tasks that have a result, those that have none). Have wake listen to the
        sessions of the second, and bury those that are dead.

        Raises NotFoundError where a named task is not there: others may have read its result,
        and cleaned it away.
        """
        by_name = tasks is not None
        if tasks is None:
            tasks = self.store.owed(self.caller.name)
        finished, running = [], []
        for task in tasks:
            session = self.store.session_of(task)
            if not self.store.has_result(task):
                wake.listen(session)  # before the look that counts: a later result pokes us
            if self.store.has_result(task):
                finished.append(task)
                continue
            if by_name and not (self.store.was_given(task) and self.store.load(session)):
                what = f"there is no task {task}"
                raise NotFoundError(what, "list_sessions shows the sessions and tasks")
            running.append(task)
            self.watch(session)
        return finished, running

    def questions(self, sessions: Iterable[str]) -> list[dict[str, Any]]:
        """Return what these sessions and those below them ask now, a dict for each question:
        session (who asks), path (the names from one of these down to it) and question (as
        state.json has it). Looks by state_of, which buries the dead."""
        asking = []
        for name in self.store.live():
            path: list[str] = []
            for above in (name, *self.ancestors(name)):
                path.insert(0, above)
                if above in sessions:
                    break
            else:
                continue
            state = self.state_of(name)
            if state.get("state") == "asking":
                for question in state.get("questions") or ():
                    asking.append({"session": name, "path": path, "question": question})
        return asking

    def _take_letters(self, tasks: Sequence[str] | None, claims: list[Claim]) -> list[Message]:
        """Lock the messages to the caller (own_books), which end a wait, and return them; their
        Claims are added to claims. tasks: of the messages only those from the sessions of these
        tasks, or from below them; cao's notices come always. Skip what another process is telling
        just now."""
        taken = []
        for owner in self.own_books(tasks or ()):
            for message in self.store.waiting(owner):
                if message.kind not in ("message", "notice") or message.id.endswith("~"):
                    continue  # ~: its runner knows whether it was told
                if message.kind == "message" and tasks is not None:
                    above = {message.sender, *self.ancestors(message.sender)}
                    if above.isdisjoint(map(self.store.session_of, tasks)):
                        continue
                claim = self.store.take_message(owner, message.id)
                if claim:
                    claims.append(claim)
                    taken.append(message)
                    if claim.is_last():
                        return taken
        return taken

    def _take(
        self,
        finished: Sequence[str],
        running: Sequence[str],
        letters: Sequence[Message],
        claims: list[Claim],
        by_name: bool,
    ) -> Waited:
        """Return what the caller is going to be told: letters, which are locked already, and the
        results of the finished tasks. Those that the caller is owed are locked here. claims: those
        on the letters; the others are added.

        by_name: the caller named the tasks. Then it gets their results, even where another process
        is telling them now, or they were told before. Else a task whose result another process is
        telling just now counts as running, and one whose result was told is left out.
        """
        results, running = [], [*running]
        for task in finished:
            if claims and claims[-1].is_last():
                running.append(task)
                continue
            claim = None
            for owner in self.own_books([task]):
                claim = claim or self.store.take_result(owner, task)
            if claim:
                claims.append(claim)
            elif not by_name:
                if os.path.exists(self.store.out_path(self.caller.name, task)):
                    running.append(task)
                continue
            result = self.store.load_result(task)
            if result:
                results.append(result)
        return Waited(tuple(results), tuple(letters), (), tuple(running), tuple(claims))

    # ---- talking, watching, ending ----

    def send_message(
        self, target: str, text: str, wait_s: float = 3.0, message_id: str = ""
    ) -> dict[str, Any]:
        """Put a message into a session's inbox (target "supervisor": into that of the caller's
        supervisor), wait up to wait_s for the session to take it, and return a receipt: message
        (its id), to, step and, where the CLI confirmed the text, exact. The steps are those of a
        delivery (room 9).

        message_id: its id, where the same message may have been put before; it is put once.
        Raises UsageError where the caller may not reach the target, NotFoundError where that is
        not there or has ended; then nothing was put.
        """
        text = quote_heads(text)
        self._check_text(text)
        if target == "supervisor":
            above = self.ancestors(self.caller.name)
            if not above:
                raise NotFoundError("you have no supervisor", "name a session: list_sessions")
            target = above[0]
        session = self.store.find(target)
        if target == self.caller.name:
            raise UsageError("that is yourself", "name another session")
        if self.caller.worker:
            reachable = {*self.known(), *self.ancestors(self.caller.name)}
            if target not in reachable:
                raise UsageError(
                    f"{target} is not your supervisor, sibling or worker",
                    "list_sessions shows whom you may reach",
                )
            self._check_grant(target)
        if session.kind == "agent" and self.is_over(target):
            raise NotFoundError(
                f"session {target} has ended; the message was not sent",
                "give it a task by handoff or assign: where it can, it resumes its conversation",
            )
        self._check_typable(target, text)
        message = Message(
            message_id or self.store.new_id(target, random_letters()),
            "message",
            self.caller.name,
            target,
            text,
            time.time(),
        )
        if message_id:
            self.store.put_once(message)
        else:
            self.store.put(message)
        self.store.poke(self.caller.name)
        return self._receipt(session, message, wait_s)

    def _receipt(self, session: Session, message: Message, wait_s: float) -> dict[str, Any]:
        """Return the receipt of a message that was just put. Wait up to wait_s where it can be
        delivered at once. Where the session has ended meanwhile, withdraw it, and raise
        NotFoundError."""
        target = session.name
        receipt: dict[str, Any] = {"message": message.id, "to": target, "step": "queued"}
        if session.kind != "agent":
            return receipt
        if self.is_over(target) and self.store.withdraw(target, message.id):
            raise NotFoundError(f"session {target} has just ended; the message was not sent")
        state = self.state_of(target)
        asked = [question["kind"] for question in state.get("questions") or ()]
        if state.get("state") == "idle" or asked == ["interrupted"]:

            def delivery(state: dict[str, Any]) -> dict[str, Any]:
                """Return the runner's last delivery if this message is in it, else {}."""
                last = state.get("delivery") or {}
                if message.id not in last.get("messages", ()):
                    return {}
                return last

            state = self.control(target, {}, lambda s: delivery(s).get("step") == "taken", wait_s)
            receipt["step"] = delivery(state).get("step") or "queued"
            if receipt["step"] == "taken":
                receipt["exact"] = delivery(state).get("exact")
        elif state.get("state") == "working" and PROVIDERS[session.provider].mid_turn:
            self.control(target, {}, lambda _: bool(self.store.taken(target, message.id)), wait_s)
            if self.store.taken(target, message.id):
                receipt["step"] = "taken"
        return receipt

    def any_view(self, name: str) -> dict[str, Any] | None:
        """Return a session's view, for a list: None where there is no session, and for one of
        another format a view in state `unknown`."""
        try:
            return self.view(name)
        except NotFoundError:
            return None
        except CaoError as error:
            blank = dict.fromkeys(("profile", "provider", "supervisor", "cwd"), "")
            facts = {"kind": "agent", "state": "unknown", "for_s": 0.0, "why": error.what}
            return {"session": name, **facts, **blank, "waiting_messages": 0}

    def render_progress(self, name: str) -> str:
        """Return, in a few words, a session's name, its state, and the title that its CLI gave to
        its pane, if it gave one."""
        title = self.tmux.title_of(name)
        progress = f"{name} {self.state_of(name).get('state')}"
        if title and title != os.uname().nodename and title.isprintable():
            progress += f" ({shorten(title, 60)})"
        return progress

    def list_sessions(self, everything: bool = False) -> list[dict[str, Any]]:
        """Return the views of the live sessions and of those above them (everything: the ended
        too, each with its last task's outcome), in the order of a tree, each with its `depth`."""
        names = self.store.live()
        if everything:
            names = self.store.all_sessions()
        views = {name: view for name in names if (view := self.any_view(name))}
        if not everything:
            views = {n: v for n, v in views.items() if v["state"] != "ended"}
            for name in {v["supervisor"] for v in views.values()} - set(views) - {""}:
                if view := self.any_view(name):
                    views[name] = view
        for name in [name for name, view in views.items() if view["state"] == "ended"]:
            task = self.store.task_meant(name)
            if task != name and (result := self.store.load_result(task)):
                views[name]["outcome"] = result.outcome
        ordered: list[dict[str, Any]] = []

        def walk(above: set[str], depth: int) -> None:
            """Add the views of those directly below, each followed by those below it."""
            for name in sorted(n for n, view in views.items() if view["supervisor"] in above):
                views[name]["depth"] = depth
                ordered.append(views[name])
                walk({name}, depth + 1)

        walk({view["supervisor"] for view in views.values()} - set(views), 0)
        return ordered

    def read_session(self, name: str, lines: int) -> dict[str, Any]:
        """Return a session's view with the last lines of its screen, as it is now or, of an ended
        session, was last; the evidence for its state; and its last 20 tasks that have a result.
        """
        view = self.view(name)
        screen = self.store.read_text(self.store.folder(name, "screen.txt"))
        pane = ""
        if view["kind"] == "agent" and view["state"] != "ended":
            pane = self.tmux.pane_of(name)
        if pane:
            try:  # line 0 is the first of the screen
                screen = self.tmux.capture(pane, first=str(min(0, PANE_LINES - lines)))
            except TmuxError as error:
                if error.fix not in ("gone", "no server"):  # it ended just now
                    raise
        state = self.store.load_state(name)
        return {
            **view,
            "screen": tail_lines(screen, lines),
            "evidence": state.get("evidence") or {},
            "results": self.store.results(name)[-20:],
        }

    def answer(
        self, name: str, answer: str, question: str = "", *, key: str = "", dialog: bool = False
    ) -> dict[str, Any]:
        """Answer what a session asks, and return when the CLI has taken the answer: session,
        answered (the answer, in words) and state.

        question: the id of the one that is meant; needed where several are open. key: in place of
        an answer, keys to press in its dialog, by tmux's names, a blank between; only a person
        may. dialog: in place of an answer, leave it to the CLI's own dialog. Raises UsageError
        where nothing is asked, the caller may not answer it, or the answer is none (read_answer),
        or no key;
        CaoError where the CLI did not take it.
        """
        view = self.view(name)
        asked = self._asked(view, question)
        self._check_may_answer(view, asked, bool(key))
        if len([one for one in (answer, key, dialog) if one]) > 1:
            raise UsageError("an answer, keys and --dialog do not go together", "give one of them")
        by = self.caller.name
        if self.caller.person:
            by = "person"
        order = {"cao": "answer", "id": new_uuid(), "question": asked["id"], "by": by}
        for word in key.split():
            if not KEY_NAME.match(word):
                raise UsageError(f"{word!r} is no key", "Enter, Escape, Down, Tab, Space, 1, C-c …")
        if key or dialog:
            order["key"], order["dialog"] = key, dialog
        else:
            order["answer"], order["words"] = read_answer(asked, answer, self.caller.person)
        return self.hand_over(name, asked, order)

    def hand_over(self, name: str, asked: dict[str, Any], order: dict[str, Any]) -> dict[str, Any]:
        """Give a session's runner an order that answers a question (asked; the order is as `answer`
        makes it), wait for its reply, and note the answer in approvals.jsonl. Does not look
        whether the caller may. Raises UsageError where it cannot be typed; CaoError where it did
        not work, or took over ANSWER_S."""
        self._check_typable(name, order.get("words") or "")

        def reply_in(state: dict[str, Any]) -> dict[str, Any]:
            """Return the runner's reply to this order, {} while there is none."""
            reply = state.get("reply") or {}
            if reply.get("id") != order["id"]:
                return {}
            return reply

        state = self.control(name, order, lambda state: bool(reply_in(state)), ANSWER_S)
        reply = reply_in(state)
        if not reply:
            what = f"{name} did not take the answer within {ANSWER_S:.0f} s"
            raise CaoError(what, f"read_session {name} shows its screen")
        if not reply["ok"]:
            raise CaoError(f"the answer to {name} did not work: {reply['text']}", "read_session")
        self.store.note_approval(name, asked, reply["text"], order["by"])
        return {"session": name, "answered": reply["text"], "state": state.get("state")}

    def _asked(self, view: dict[str, Any], question: str) -> dict[str, Any]:
        """Return the open question of a session (view) that is meant: the one with this id or, for
        "", the only one. Raises UsageError where there is none, or several."""
        name, state = view["session"], view["state"]
        asked: list[dict[str, Any]] = view.get("questions", [])
        if state != "asking" or not asked:
            verb = "is"
            if state == "ended":
                verb = "has"
            what = f"{name} asks nothing now (it {verb} {state})"
            raise UsageError(what, f"read_session {name} shows it")
        if question:
            asked = [one for one in asked if one["id"] == question]
        if not asked:
            raise UsageError(f"{name} asks this no more", f"read_session {name} shows what it asks")
        if len(asked) > 1:
            listed = "; ".join(f"{one['id']}: {shorten(one['text'], 60)}" for one in asked)
            raise UsageError(f"{name} asks {len(asked)} things: {listed}", "name the question's id")
        return asked[0]

    def _check_may_answer(self, view: dict[str, Any], asked: dict[str, Any], key: bool) -> None:
        """Raise UsageError where the caller may not give this answer. A person may give any. An
        agent may answer those below it: a question of the model's always, anything else only with
        `approve: supervisor`, and never by keys. What a program without hooks asks may be a
        permission: nobody knows."""
        name = view["session"]
        self.check_mine(name)
        if self.caller.person:
            return
        if key:
            raise UsageError("only a person may press a key", f"a person runs: cao attach {name}")
        is_plain = asked["kind"] == "question" and asked["where"] != "typed"
        if not is_plain and self.store.find(name).approve != "supervisor":
            raise UsageError(
                f"{name} asks what may be a permission, and that is a person's to give",
                f"ask the person to run: cao answer {name} yes (or give the worker's profile"
                " `approve: supervisor`)",
            )

    def stop_session(self, name: str, interrupt: bool) -> dict[str, Any]:
        """End a session with its workers or, with interrupt, only interrupt its turn. Return what
        came of it (session, state, did). Raises UsageError where the caller may not, or it is a
        client; CaoError where nobody knows whether there is a turn to interrupt."""
        if self.store.find(name).kind != "agent":
            raise UsageError(f"{name} is a client, not an agent", "it ends with its own program")
        self.check_mine(name)
        state = self.state_of(name)
        if state["state"] == "ended":
            did = "nothing: it had ended"
        elif not interrupt:
            self.end(name)
            state = self.state_of(name)
            did = "told to end, and is still at it"
            if state["state"] == "ended":
                did = "ended"
        elif state["state"] == "unknown":
            what = f"{name} was not interrupted: what it does cannot be known now"
            raise CaoError(what, "try again, or stop the session")
        elif state["state"] not in ("working", "asking"):
            did = "nothing: no turn was running"
        else:
            order = {"cao": "interrupt"}
            over = ("idle", "starting")  # starting: anew, for its sub-agents had to be ended
            state = self.control(name, order, lambda s: s.get("state") in over, 8.0)
            did = "interrupt was sent, still working"
            if state.get("state") in over:
                did = "interrupted"
        return {"session": name, "state": state.get("state"), "did": did}


class Asking:
    """A question that this process (a CLI's hook, or the demo agent) puts to the session's runner,
    which has somebody answer it. To make an Asking asks it; payload: the hook's JSON.

    The question is open while the lock on questions/<id> is held. The kernel frees the lock when
    this process ends, however it ends.
    """

    def __init__(self, store: Store, name: str, payload: dict[str, Any]) -> None:
        self.store, self.name = store, name
        self.path = f"{store.folder(name)}/questions/{random_letters(6)}"
        self.lock = store.lock(self.path)
        self.wake = Wake(store)
        self.wake.listen(name)
        mark = {"cao_question": os.path.basename(self.path)}
        store.put_event(store.folder(name), json.dumps({**payload, **mark}))

    def reply(self) -> dict[str, Any] | None:
        """Return the answer, {"answer": …, "words": …}; None while there is none; {} where the
        CLI is to ask by itself, because that was the answer or the runner is gone. An answer is
        taken by this, so that the runner sees that it arrived."""
        try:
            os.rename(f"{self.path}.reply", f"{self.path}.taken")
        except FileNotFoundError:
            if self.store.is_locked(self.name):
                return None
            return {}
        return self.store.read_json(f"{self.path}.taken") or {}

    def wait(self) -> dict[str, Any]:
        """Block until there is an answer or the runner is gone; return what `reply` does then."""
        lock = self.store.folder(self.name, "lock")
        Orchestrator(self.store, Caller("")).when_free(lock)
        while True:
            reply = self.reply()
            if reply is not None:
                return reply
            self.wake.wait(UNPOKED_S)

    def withdraw(self) -> None:
        """Free the lock: the question is closed, whether it was answered or not. The runner cleans
        up its files."""
        if self.lock is not None:
            os.close(self.lock)
        self.lock = None

    def close(self) -> None:
        """Withdraw the question, and stop listening for its answer."""
        self.withdraw()
        self.wake.close()


def make_client(store: Store, name: str) -> None:
    """Make the folder of a client, a caller that is no session of ours (see Session.kind), where
    there is none. Raises UsageError where an agent's session has that name."""
    session = store.load(name)
    if session and session.kind != "client":
        what = f"{name} is an agent's session, and cannot be a client's name too"
        raise UsageError(what, "set CAO_CLIENT to another name")
    if not session:
        os.makedirs(store.folder(name), 0o700, exist_ok=True)
        store.create(Session(name, "client", cwd=current_directory(), launched_at=time.time()))


def agent_caller(store: Store) -> Caller | None:
    """Return the caller where we run inside a session of ours (CAO_SESSION), else None. Raises
    NotFoundError where that session is not there."""
    name = os.environ.get("CAO_SESSION")
    if not name:
        return None
    session = store.load(name)
    if not session:
        what = f"CAO_SESSION is {name}, and there is no such session"
        raise NotFoundError(what, "unset CAO_SESSION")
    return Caller(name, session.depth, worker=True)


def client_stem(program: str) -> str:
    """Return a client's name, to which open_client may add a number: CAO_CLIENT, else one made
    from the Claude Code session that it runs in, else one from its program and directory. So a
    client that starts again finds what it was owed (a new session of Claude Code: see is_left).
    program: what an MCP client calls itself; "shell" for a shell command."""
    if client := os.environ.get("CAO_CLIENT"):
        return render_slug(client, 36) or f"client-{sha256_of(client)[:8]}"
    if claude := os.environ.get("CLAUDE_CODE_SESSION_ID"):
        return f"claude-{render_slug(claude, 8)}"
    stem, directory = render_slug(program, 24) or "client", sha256_of(current_directory())
    return f"{stem}-{directory[:8]}"


def shell_caller(store: Store) -> Caller:
    """Return the caller of a shell command: the session of ours that it runs in, else a client
    (see client_stem), whose folder is made where there is none. That client counts as a person,
    unless an agent that is none of ours runs the shell.
    """
    caller = agent_caller(store)
    if caller:
        return caller
    name = client_stem("shell")
    make_client(store, name)
    return Caller(name, person=not is_agents())


def is_agents(own: Iterable[str] = ()) -> bool:
    """Tell whether an agent, of whatever program, started this process: one of AGENT_SIGNS is in
    the environment, or AGENT_PROCESS is above us. own: signs that do not count here."""
    signs = {*AGENT_SIGNS} - {*own}
    if any(map(os.environ.get, signs)):
        return True
    return AGENT_PROCESS in programs_above()


def read_answer(asked: dict[str, Any], answer: str, person: bool) -> tuple[str, str]:
    """Return how to answer a question (asked, as in state.json): for a permission ("yes", "no" or
    "always", the reason for a no), for all else ("words", an option's text or the answer as it
    is). person: a person answers; only a person may say `always`.

    An answer names an option by its key (of a question of the model's, its number) or its whole
    text or, but for a permission, by a beginning of its text that no other option has. To a
    permission, `no: WORDS` is a no with its reason. Raises UsageError for any other answer to a
    permission, an empty one, a number that is no option's, and for a dialog that only keys can
    answer. Several questions of one call take a line each, or one line with ; between: it raises
    for more or fewer.
    """
    if asked["kind"] == "screen":
        what = f"{asked['id']} is a dialog that only a terminal can answer"
        fix = "a person runs cao attach, or cao answer SESSION --key 1 (or --key Down --key Enter)"
        raise UsageError(what, fix)
    options = [Option(*option) for option in asked["options"]]
    listed = "; ".join(f"{option.key}: {option.text}" for option in options)
    answer = answer.strip()
    low = answer.lower()
    chosen = [option for option in options if low == option.key.lower()]
    if not chosen:
        chosen = [option for option in options if low == option.text.lower()]
    if asked["kind"] == "permission":
        head, _, reason = answer.partition(":")
        if head.strip().lower() == "no":
            return "no", reason.strip()
        if not chosen:
            raise UsageError(f"{answer!r} is not one of the options", listed)
        if chosen[0].key == "always" and not person:
            raise UsageError("`always` is a person's to say", "answer yes, for this once")
        return chosen[0].key, ""
    if not low:
        raise UsageError("the answer is empty", listed or "write some words")
    if not chosen:
        chosen = [option for option in options if option.text.lower().startswith(low)]
    if len(chosen) == 1:
        return "words", chosen[0].text
    if options and low.isdigit():
        raise UsageError(f"{low} is none of the options", f"{listed}; or words of your own")
    asks = asked["lines"]
    if asks > 1:
        if "\n" not in answer:
            answer = re.sub(r"\s*;\s*", "\n", answer)
        answers = answer.count("\n") + 1
        if answers != asks:
            what = f"it asks {asks} questions, and this answers {answers}"
            raise UsageError(what, "a line for each, or one line with ; between them: red; large")
    return "words", answer


def seconds_setting(name: str, default: float) -> float:
    """Return a duration from the environment in seconds, default where it is not set or empty.
    Raises UsageError where it is no duration."""
    if text := os.environ.get(name):
        return parse_seconds(text)
    return default


def new_uuid() -> str:
    """Return a random UUID (RFC 9562, version 4)."""
    import uuid

    return str(uuid.uuid4())


def tmux_socket(home: str) -> str:
    """Return the name of our tmux socket: `cao`, or one of its own for another home.

    By the user database, not by $HOME: whoever has the same home finds the same server, and
    two homes of one user never share one.
    """
    import zlib

    if home == os.path.realpath(f"{listed_home()}/.local/state/cao"):
        return "cao"
    return f"cao-{zlib.crc32(os.fsencode(home)):08x}"


def listed_home() -> str:
    """Return the user's home by the user database, "" where that does not know the user."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:  # a container's user number without a name
        return ""


# ---- worktrees ----


# A git hook that starts us has these set. They would lead git to another repository.
_GIT_OF_A_HOOK = (
    "GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_PREFIX GIT_COMMON_DIR GIT_NAMESPACE"
    " GIT_OBJECT_DIRECTORY GIT_ALTERNATE_OBJECT_DIRECTORIES GIT_IMPLICIT_WORK_TREE"
).split()

# In place of the user's settings that hide changes, or change what git prints or does here.
_GIT_PLAIN = (
    "status.showUntrackedFiles=normal core.fsmonitor=false core.untrackedCache=false"
    " core.ignoreStat=false core.checkStat=default core.trustctime=true"
    " log.showSignature=false color.ui=false submodule.recurse=false merge.autoStash=false"
).split()


class _GitLimit:
    """How long a git may take that is given no time of its own: without limit, but in a runner and
    in `cao clean`, which nobody watches."""

    seconds: float | None = None


def git_environment() -> dict[str, str]:
    """Return our environment without variables that would lead git to another repository."""
    return {name: value for name, value in os.environ.items() if name not in _GIT_OF_A_HOOK}


def _in_worktrees(folder: str) -> str:
    """Return a folder's path from the folder of all our worktrees, "" where it is not in there.

    A link in there counts as well, wherever it leads: an agent may have made it. The folder of all
    worktrees may be a link too: a person has them on a larger disk.
    """
    top = f"{os.path.realpath(runtime_home())}/worktrees"
    for place in (folder, os.path.realpath(folder)):
        for start in (top, os.path.realpath(top)):
            inside = os.path.relpath(place, start)
            if not inside.startswith("."):  # no session's name begins so
                return inside
    return ""


def _worktree_origin(store: Store, name: str) -> str:
    """Return the working tree that a session's worktree was made from: a person's, or a worker's
    worktree. Where the session's record is gone, git's files tell. Raises CaoError where they do
    not, or name a place in our worktrees: an agent may have written that; and where it is gone."""
    if session := store.peek(name):
        if not os.path.isdir(session.origin):
            what = f"{session.origin}, from which the worktree of {name} was made, is gone"
            fix = f"if it was moved: ln -s NEW_PLACE {_in_shell(session.origin)}; or to give up"
            fix += f" what is in the worktree: cao discard {name} --yes"
            if _in_worktrees(session.origin):  # a worker's, which was discarded
                fix = f"look for what is worth keeping: ls {_in_shell(worktree_path(store, name))}"
            raise CaoError(what, fix)
        return session.origin
    repository, inside = find_repository(worktree_path(store, name))
    if inside != "." or _in_worktrees(repository):
        raise CaoError(f"there is no record of {name}, and git's files do not tell its repository")
    return os.path.dirname(repository)


def _git_directory(folder: str) -> str:
    """Return git's directory of a working tree, by the tree's top or that of a submodule in it.

    Git runs what a repository's config names, and agents write in our worktrees. So in these, it
    is "" unless it lies in the repository that the worktree was made from and, for a worktree's
    top, that repository lists it.
    """
    directory = named_path(f"{folder}/.git") or os.path.realpath(f"{folder}/.git")
    name, _, inner = _in_worktrees(folder).partition("/")
    if not name:
        return directory
    common = _git_directory(_worktree_origin(Store(runtime_home()), name))
    if not common:
        return ""
    common = named_path(f"{common}/commondir") or common
    if inner:
        known = directory.startswith(f"{common}/")
    else:
        listed = named_path(f"{directory}/gitdir") == f"{os.path.realpath(folder)}/.git"
        listed = listed and not os.path.islink(folder)
        known = listed and os.path.dirname(directory) == f"{common}/worktrees"
    return directory if known else ""


def _sure_directory(folder: str) -> str:
    """Return what _git_directory does. Raises CaoError where an agent may have made that."""
    directory = _git_directory(folder)
    if not directory and os.path.islink(folder):
        what = f"the worktree {folder} is a link to {os.path.realpath(folder)}"
        raise CaoError(what, f"put it back, or: cao discard {os.path.basename(folder)} --yes")
    if not directory:
        raise CaoError(
            f"the worktree's .git file was changed, or its repository does not know it any more:"
            f" {folder}/.git is not what git wrote there, and git would run what it leads to",
            "in the repository, not there: git worktree repair (if the worktree was moved: git"
            f" worktree repair {_in_shell(folder)}); or save the files, then:"
            f" cao discard {os.path.basename(folder)} --yes",
        )
    return directory


def git_at(folder: str) -> list[str]:
    """Return git's options for work in a folder. In our worktrees git does not look for its
    directory, but is given it. Raises CaoError as _sure_directory does."""
    place = ["-C", folder]
    if os.path.isdir(folder) and _in_worktrees(folder):
        place.append(f"--git-dir={_sure_directory(folder)}")
    return place


def _git(
    cwd: str,
    *args: str,
    allowed: int = 0,  # an exit status that is no failure, besides 0
    timeout_s: float | None = None,  # None: _GitLimit
    variables: dict[str, str] | None = None,  # in its environment, besides ours
    setting: Sequence[str] = (),  # in place of the user's
    started: Callable[[int], None] = lambda _: None,  # is told git's process group
    text: str = "",  # its standard input
) -> str:
    """Run git in a directory and return what it printed, without newlines at the end; bytes that
    are no UTF-8 are kept (surrogateescape). Raises CaoError with git's words where it fails, or
    takes more than timeout_s. Git has the person's locale, for their hooks and filters: its words
    are for people and models, and nothing here goes by them."""
    settings = [word for one in (*_GIT_PLAIN, *setting) for word in ("-c", one)]
    # This file system tells .git from .GIT. The repository's own settings may say otherwise, where
    # it comes from macOS: then git would take two files whose names differ in case for one.
    if not os.path.lexists(f"{cwd}/.GIT"):
        settings += ["-c", "core.ignoreCase=false"]
    # Of a submodule, compare the commit, whatever .gitmodules says; run no git in it (see _status).
    if args[0] in ("status", "diff-index", "diff-tree"):
        args = (args[0], "--ignore-submodules=dirty", *args[1:])
    # Without optional locks: a worker's own git must not fail because somebody looks.
    argv = [find_program("git"), *git_at(cwd), *settings, "--no-optional-locks", *args]
    env = {**git_environment(), **(variables or {})}
    if timeout_s is None:
        timeout_s = _GitLimit.seconds
    ran = run(argv, timeout_s, text=text, env=env, errors="surrogateescape", started=started)
    if ran.status not in (0, allowed):
        fix = f"put that right, then try again (cd {_in_shell(cwd)} && git status)"
        raise CaoError(f"git {args[0]}: {ran.fault()}", fix)
    return ran.out.rstrip("\n")


def _head(cwd: str) -> str:
    """Return the commit that a working tree is at; where there is none, git says so clearly."""
    return _git(cwd, "log", "-1", "--format=%H")


def _git_path(place: str, name: str) -> str:
    """Return the path of a file or folder in git's directory of a working tree."""
    return os.path.join(place, _git(place, "rev-parse", "--git-path", name))


def _git_names(cwd: str, *args: str, variables: dict[str, str] | None = None) -> list[str]:
    """Return what a git command prints, entry by entry; args have its -z."""
    return _git(cwd, *args, variables=variables).split("\0")[:-1]


def _scratch() -> Any:
    """Make a folder for what git needs only for a moment: `with` gives its path, and removes it."""
    import tempfile

    return tempfile.TemporaryDirectory(prefix=".scratch-", dir=f"{runtime_home()}/worktrees")


def worktree_path(store: Store, name: str) -> str:
    """Return where a session's worktree is, or was."""
    return f"{store.home}/worktrees/{name}"


def worktree_start(cwd: str, own: str = "") -> tuple[str, str]:
    """Return (top, inside): the top of the working tree that a worktree can begin from, and the
    path of cwd in it, "" where its last commit has no such directory. Raises UsageError where
    there is no repository, or no commit in it, NotAllowedError where it is not own, by its path
    ("": any)."""
    repository, path = find_repository(cwd)
    # Its .git may be a link. Another link to the same place does not count: an agent could make
    # one, and let it lead elsewhere later.
    if own and repository not in (own, os.path.realpath(own)):
        raise NotAllowedError(
            f"an agent gets worktrees of the repository that it is in ({own}), not of {repository}",
            "do without a worktree, or a person has to start it: cao handoff --worktree",
        )
    inside = "" if path == "." else path
    top = os.path.normpath(os.path.realpath(cwd).removesuffix(inside))
    try:
        # Where there is no .git, git takes a folder with the right files in it for a repository.
        if not os.path.lexists(f"{top}/.git"):
            raise CaoError("not a git repository")
        _git(top, "rev-parse", "--show-toplevel")  # not in a bare one, of which .git may tell
        _head(top)
    except CaoError as error:
        fix = "leave worktree out, or set it to false where the profile has it, or begin in a git"
        fix += " repository with a commit"
        raise UsageError(f"there can be no worktree in {cwd}: {error.what}", fix) from None
    if not _git(top, "rev-parse", "--verify", "-q", f"HEAD:{inside}", allowed=1):
        inside = ""
    return top, inside


def add_worktree(store: Store, session: Session) -> None:
    """Make a session's worktree and its branch, from the last commit of the repository that it was
    started in. Where this raises, neither is left."""
    path = worktree_path(store, session.name)
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    try:
        _git(session.origin, "branch", "--no-track", session.worktree, "HEAD")
    except KeyboardInterrupt:  # it may be there; after another failure it may not be ours
        remove_worktree(store, session.name, session.origin, force=True)
        raise
    try:
        _git(session.origin, "worktree", "add", "-q", path, session.worktree, timeout_s=GIT_S)
    except BaseException:  # a hook failed or was slow, a filter failed
        remove_worktree(store, session.name, session.origin, force=True)
        raise


def remove_worktree(store: Store, name: str, origin: str, *, force: bool = False) -> None:
    """Remove a session's worktree and its branch, with the commits that only this has; a branch
    that is checked out elsewhere stays. force: with whatever is in it. Without force, the caller
    has looked whether `worktree_losses` finds any; git looks once more, and refuses (CaoError)
    where there are changes, a lock or a submodule."""
    import shutil

    path, branch = worktree_path(store, name), f"cao/{name}"
    if os.path.islink(path):
        os.unlink(path)
    if os.path.isdir(path) and not force:
        for folder, folders, files in os.walk(path):
            if (folders or files) and not os.access(folder, os.W_OK | os.X_OK):
                # git would remove all the rest
                what = f"what is in {folder} cannot be removed: its permissions forbid it"
                raise CaoError(what, f"chmod u+rwx {_in_shell(folder)}")
        _git(origin, "worktree", "remove", path)
    else:
        shutil.rmtree(path, ignore_errors=True)  # git cannot where the repository is gone
        _git(origin, "worktree", "remove", "--force", "--force", path, allowed=128)
    if os.path.lexists(path):
        raise CaoError(f"{path} could not be removed", f"ls -la {_in_shell(path)}")
    # The pattern also takes branches below this name.
    checked_out = ("for-each-ref", "--format=%(refname) %(worktreepath)", f"refs/heads/{branch}")
    if f"refs/heads/{branch} " in _git(origin, *checked_out, allowed=128).split("\n"):
        # By force: -d goes by the upstream, or by what happens to be checked out there.
        _git(origin, "branch", "-q", "-D", branch)


def _status(path: str) -> tuple[list[str], list[str]]:
    """Return (changed, unseen): the files of a worktree that differ from its commit or are new, and
    those that git does not look at: ignored ones (a directory ends in /), and those marked
    skip-worktree or assume-unchanged.

    Git would run itself in a submodule, wherever its .git leads. So it only compares commits here
    (`dirty`), and we look into those that are the repository's own; any other counts as changed.
    """
    flags = ("--porcelain", "-z", "-uall", "--no-renames")
    lines = _git_names(path, "status", *flags, "--ignored=matching")
    changed = [line[3:] for line in lines if not line.startswith("!!")]
    unseen = [line[3:] for line in lines if line.startswith("!!")]
    for submodule in _submodules(path):
        folder = f"{path}/{submodule}"
        if os.path.lexists(f"{folder}/.git") and (
            not _git_directory(folder) or any(_status(folder)[0])
        ):
            changed.append(submodule)
    for line in _git_names(path, "ls-files", "-v", "-z"):
        file = line[2:]
        # S: skip-worktree; lower case: assume-unchanged.
        if re.match("[Sa-z] ", line) and os.path.lexists(f"{path}/{file}"):
            unseen.append(file)
    return changed, unseen


def _submodules(path: str) -> list[str]:
    """Return the paths of a working tree's submodules, checked out or not."""
    staged = [line.partition("\t") for line in _git_names(path, "ls-files", "--stage", "-z")]
    return [file for mode, _, file in staged if mode.startswith("160000 ")]


def _add_all(
    path: str,
    *flags: str,
    allowed: int = 0,
    variables: dict[str, str] | None = None,
    setting: Sequence[str] = (),
) -> None:
    """Stage all that a worktree holds, of a submodule its commit. flags: more for `git add`, which
    would run git in submodules (see _status); `git update-index` does not."""
    submodules = _submodules(path)
    # Not `literal`: git would complain of one that .gitignore names, too. By its first letter's
    # backslash this is a pattern, and git does not.
    quoted = ["".join(f"\\{letter}" for letter in submodule) for submodule in submodules]
    rest = [f":(exclude,glob){pattern}" for pattern in quoted]
    add = ("add", "-A", *flags, "--", ".", *rest)
    # A sparse checkout is what git puts here; what a worker puts beside it counts as well. Git
    # looks at such a file that it knows only once the index was written anew.
    _git(path, "update-index", "--force-write-index", variables=variables, setting=setting)
    whole = ("core.sparseCheckout=false", *setting)
    _git(path, *add, allowed=allowed, variables=variables, setting=whole)
    if submodules:
        remove = ("update-index", "--remove", "--", *submodules)
        _git(path, *remove, variables=variables, setting=setting)


def _refuse_unreadable(error: OSError) -> None:
    """Raise CaoError for a folder that os.walk cannot read. git passes over it."""
    if error.errno in _NO_FILE:  # it was just removed
        return
    what = f"what is in {error.filename} cannot be seen: {error.strerror}"
    raise CaoError(what, f"chmod u+rwx {_in_shell(error.filename)} (or remove it)")


def _repositories_inside(path: str, unseen: Iterable[str]) -> list[str]:
    """Return the paths of repositories inside a worktree, submodules included, but not of those
    in ignored directories (unseen, from _status).

    We search for them, because git reports no repository in a directory that has files of the
    worktree's, nor files in the directory of a submodule that is not checked out.
    """
    inside, pruned = [], {f"{path}/{directory}" for directory in unseen}
    submodules = {f"{path}/{submodule}" for submodule in _submodules(path)}
    for folder, folders, files in os.walk(path, onerror=_refuse_unreadable):
        entries = [*folders, *files]
        is_repository = ".git" in entries
        if folder in submodules and entries:
            is_repository = True
        if is_repository and folder != path:
            inside.append(os.path.relpath(folder, path))
            folders.clear()
        folders[:] = [f for f in folders if f"{folder}/{f}/" not in pruned]
    return inside


def discarding(store: Store) -> FileLock:
    """Return the lock under which a worktree's losses are counted and it is removed: of two
    branches with the same commits, each would count the other as what keeps them."""
    return FileLock(f"{store.home}/discarding")


def _kept_elsewhere(cwd: str, *branches: str) -> str:
    """Return all that keeps commits when branches are gone, to be excluded: `rev-list --stdin`."""
    # Not a symbolic one: that may be another name of the branch itself.
    ref = "--format=%(if)%(symref)%(then)%(else)^%(refname)%(end)"
    refs = _git(cwd, "for-each-ref", ref, "refs/heads", "refs/tags", "refs/remotes").split("\n")
    gone = ["", *(f"^refs/heads/{branch}" for branch in branches)]
    return "\n".join(ref for ref in refs if ref not in gone)


def _stranded(store: Store, name: str) -> set[str]:
    """Return the sessions whose branches no verb can merge once the worktree of name is gone: its
    own, and each whose worktree was made from one of these, or from one that is gone already."""
    origins = {}
    for other in _listdir(f"{store.home}/worktrees"):
        if session := store.peek(other):
            origins[other] = session.origin
    above = {o: os.path.basename(path) for o, path in origins.items() if _in_worktrees(path)}
    stranded, size = {name}, 0
    while len(stranded) > size:
        size = len(stranded)
        for other, maker in above.items():
            if maker in stranded or maker not in origins:
                stranded.add(other)
    return stranded


def _unfinished(place: str) -> list[str]:
    """Return, in words, of which series of commits git is in the middle in a working tree."""
    series = {
        "an unfinished rebase, or git am": ("rebase-merge", "rebase-apply"),
        "an unfinished series of git cherry-pick or git revert": ("sequencer",),
    }
    return [
        words
        for words, folders in series.items()
        if any(_listdir(_git_path(place, folder)) for folder in folders)
    ]


def worktree_losses(store: Store, name: str, origin: str) -> list[str]:
    """Return, in words, all that would be lost with a worktree and its branch; [] where nothing
    would. The caller holds `discarding`. Raises CaoError where git cannot tell."""
    path, branch = worktree_path(store, name), f"cao/{name}"
    cwd, head = path, "HEAD"
    if not os.path.isdir(path):  # git knows its head where the files are gone
        cwd, head = origin, f"worktrees/{name}/HEAD"
    made_from = {
        other: session
        for other in _listdir(f"{store.home}/worktrees")
        if (session := store.peek(other)) and session.origin == os.path.realpath(path)
    }
    # "--": a file may be called HEAD.
    commits = ("--ignore-missing", "--stdin", head, f"refs/heads/{branch}", "--")
    kept = _kept_elsewhere(cwd, *(f"cao/{other}" for other in _stranded(store, name)))
    count = int(_git(cwd, "rev-list", "--count", *commits, text=kept))
    losses = []
    if count:
        losses.append(count_of(count, "commit"))
    if cwd != path:
        return losses
    losses += _unfinished(path)
    changed, unseen = _status(path)
    if changed:
        losses.append("uncommitted changes")
    if unseen:
        files = count_of(len(unseen), "file")
        losses.append(f"{files} that git does not look at ({some_names(unseen)})")
    inside = _repositories_inside(path, unseen)
    losses += [f"the repository {inner}" for inner in inside]
    if not inside and _listdir(_git_path(path, "modules")):
        losses.append("repositories of submodules that are not checked out any more")
    for other, session in made_from.items():
        goes_on = other in store.live() and session.supervisor != name  # else it ends with this
        if goes_on or worktree_losses(store, other, path):
            losses.append(f"what the worktree of {other} was made from")
    return losses


def some_names(names: Sequence[str]) -> str:
    """Return the first few names, which others chose, as one line."""
    listed = [*map(one_line, names[:5])]
    if len(names) > 5:
        listed.append("...")
    return ", ".join(listed)


def find_worktree(store: Store, session: Session) -> str:
    """Return the path of a session's worktree. Raises NotFoundError where it was removed, CaoError
    where what it was made from is gone."""
    path = worktree_path(store, session.name)
    if not os.path.isdir(path):
        what = f"the worktree of {session.name} was removed"
        raise NotFoundError(what, f"git log {session.worktree}, if that branch is still there")
    _worktree_origin(store, session.name)
    return path


def worktree_session(boss: Orchestrator, name: str, to_change: bool = False) -> Session:
    """Return a session, by its name, for work on its worktree. Raises UsageError where it has none
    on this machine; to_change (to merge or discard it): also where that is not the caller's to
    do, or the session is at work, or another is in that worktree. Waits up to STOP_S for one whose
    task has just ended."""
    session = boss.store.find(name)
    if session.host:
        raise UsageError(
            f"{name} works on {session.host}: git there knows its branch, not git here",
            f"git fetch {session.host}:PATH BRANCH, as its result names them (cao wait {name}"
            " --json: worktree); what is not committed there does not come",
        )
    if not session.worktree:
        raise UsageError(
            f"{name} has no worktree: it works in {session.cwd}",
            f"git -C {_in_shell(session.cwd)} diff; handoff --worktree gives a new session one",
        )
    if to_change:
        boss.check_mine(name)
        for other in (name, *sessions_inside(boss, name)):
            _refuse_at_work(boss, other, worktree_path(boss.store, name))
    return session


def sessions_inside(boss: Orchestrator, name: str) -> list[str]:
    """Return the live sessions that work in a session's worktree, or below it; itself included."""
    inside = []
    for other in boss.store.live():
        session = boss.store.peek(other)
        if not session or session.host:
            continue
        if _in_worktrees(session.cwd).partition("/")[0] == name:
            inside.append(other)
    return [other for other in inside if boss.state_of(other)["state"] != "ended"]


def _refuse_at_work(boss: Orchestrator, name: str, path: str) -> None:
    """Raise UsageError where a session is at work (in a worktree, by its path)."""
    state = boss.state_of(name)
    task = state.get("task")
    if task and boss.store.load_result(task):  # its runner says so in a moment
        state = boss.control(name, {}, lambda now: now.get("task") != task, STOP_S)
    work = state.get("task")
    if not work and (state["state"] != "idle" or boss.store.waiting(name)):
        work = "a message"
    if work and state["state"] != "ended":
        what = f"{name} is at work on {work} in {path}"
        raise UsageError(what, f"wait for it, or: cao stop {name}")


def whole_work(
    store: Store, session: Session, scratch: str
) -> tuple[str, str, list[str], dict[str, str]]:
    """Return (base, tree, left, variables): the commit where a worktree left the branch that its
    repository is on; a git tree of all that is in the worktree now, committed or not; the paths
    that git cannot take into that tree, such as a repository without a commit; and by which
    variables git finds that tree: what is new in it is in scratch, a folder for this.

    So this changes nothing but scratch: it may be a download, or a secret, that nobody commits.
    """
    import shutil

    path = worktree_path(store, session.name)
    into = _head(session.origin)
    base = _git(path, "merge-base", into, _head(path), allowed=1)
    if not base:
        raise CaoError(
            f"what {path} is at has no commit in common with what {session.origin} is at",
            "switch one of them to the branch that was meant; in a shallow clone:"
            " git fetch --unshallow",
        )
    own_index = _git_path(path, "index")
    own_objects = _git_path(path, "objects")
    quoted = own_objects.replace("\\", r"\\").replace('"', r"\"")  # a path may have a colon
    index, objects = f"{scratch}/index", f"{scratch}/objects"
    variables = {
        "GIT_INDEX_FILE": index,
        "GIT_OBJECT_DIRECTORY": objects,
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": f'"{quoted}"',
    }
    os.mkdir(objects)
    shutil.copy2(own_index, index)  # with its time, which git compares
    # Status 1: some file or repository could not be added; all others were.
    # This is fast, and leaves no half of a split index in git's folder.
    setting = ["core.looseCompression=0", "core.splitIndex=false"]
    more: dict[str, Any] = {"variables": variables, "setting": setting}
    _add_all(path, "--ignore-errors", allowed=1, **more)
    tree = _git(path, "write-tree", **more)
    others = ("ls-files", "--others", "--modified", "--exclude-standard", "-z")
    return base, tree, _git_names(path, *others, variables=variables), variables


def worktree_facts(store: Store, session: Session) -> dict[str, Any]:
    """Return what a worktree holds that its repository's branch does not: branch, path, commits,
    files (changed and new), diffstat, and dirty (whether some of it is not committed)."""
    path, branch = worktree_path(store, session.name), f"refs/heads/{session.worktree}"
    with _scratch() as scratch:
        base, tree, left, variables = whole_work(store, session, scratch)
        show = ("diff-tree", "-r", "-M", base, tree)
        files = _git_names(path, *show, "--name-only", "-z", variables=variables)
        diffstat = _git(path, *show, "--shortstat", variables=variables).strip()
    log = ("log", "-z", "--encoding=UTF-8", "--format=%h %s", "--ignore-missing")
    into = _head(session.origin)
    changed, _ = _status(path)
    return {
        "branch": session.worktree,
        "path": path,
        "commits": _git_names(path, *log, "HEAD", branch, "--not", into, "--"),
        "files": sorted({*files, *left}),
        "diffstat": diffstat,
        "dirty": bool(changed),
    }


def _pointers(path: str, origin: str) -> list[str]:
    """Return the repositories inside a worktree of which a merge would take only a pointer: all
    but submodules that are at a known commit and have no changes."""
    pointers, submodules = [], _submodules(path)
    _, unseen = _status(path)
    for inner in _repositories_inside(path, unseen):
        folder = f"{path}/{inner}"
        # Known are the commits that its remotes have, and the one that origin had recorded.
        recorded = _git(origin, "rev-parse", "--revs-only", f"HEAD:{inner}", allowed=128)
        known = ("--ignore-missing", "--not", "--remotes", *recorded.split())
        if (
            inner not in submodules
            or not _git_directory(folder)
            or _git(folder, "rev-list", "-n1", "HEAD", "--branches", *known, "--")
            or any(_status(folder)[0])
        ):
            pointers.append(inner)
    return pointers


def _refuse_unknown_submodules(path: str, branch: str) -> None:
    """Raise CaoError where only this branch says which commit a submodule is at that is not
    checked out in its worktree. Into one that is, `_pointers` looks."""
    known = _kept_elsewhere(path, branch)
    for submodule in _submodules(path):
        says_so = ("-n1", "--stdin", "HEAD", "--", f":(literal){submodule}")
        if not _listdir(f"{path}/{submodule}") and _git(path, "rev-list", *says_so, text=known):
            what = f"{submodule}, a submodule, is at a commit that may be nowhere else"
            fix = f"cd {_in_shell(path)} && git submodule update --init; then try again"
            raise CaoError(what, fix)


def merge_worktree(boss: Orchestrator, name: str) -> dict[str, Any]:
    """Commit, on the worker's branch, all that its worktree holds, and merge that branch into the
    one that its repository is on. Return worktree_facts with session, into, was and now (that
    one's commits; equal where there was nothing to merge).

    The caller holds the lock `merging`, in the main thread (_merge handles signals). Raises
    CaoError where that fails, which says whether what the repository has checked out is as it was
    before (the commit on the worktree's branch stays); UsageError as worktree_session does or
    where the repository is on no branch; KeyboardInterrupt where a signal ended it.
    """
    session = worktree_session(boss, name, True)
    path, top = find_worktree(boss.store, session), session.origin
    into = _git(top, "branch", "--show-current")
    if not into:
        raise UsageError(
            f"{top} is on no branch (detached HEAD): nothing there to merge into",
            f"git -C {_in_shell(top)} switch BRANCH",
        )
    on, head = _git(path, "branch", "--show-current"), _head(path)
    try:
        try:
            if on == into:  # a commit there would change it under those files
                what = f"{path} has {into} itself checked out, not {session.worktree}"
                raise CaoError(what, f"git -C {_in_shell(path)} switch {session.worktree}")
            merged = ("--not", "HEAD", f"refs/heads/{into}", "--")
            branch = f"refs/heads/{session.worktree}"
            if _git(path, "rev-list", "-n1", "--ignore-missing", branch, *merged):
                what = f"{session.worktree} has commits that are not in what is checked out in"
                fix = f"cd {_in_shell(path)} && git status; then merge or switch to that branch"
                raise CaoError(f"{what} {path}", fix)
            _refuse_unfinished(path)
            if pointers := _pointers(path, top):
                what = f"a merge takes only a pointer to the repository {some_names(pointers)}"
                raise CaoError(what, f"commit and push them, or move them out of {path}")
            _add_all(path)
            if _git(path, "diff-index", "--cached", "--name-only", "HEAD", "--"):
                message = f"Add {name}'s work{_last_task(boss.store, name)}"
                _git(path, "commit", "-q", "-m", message)
            _refuse_unfinished(top)  # now: a hook of that commit may be slow
            if _git(top, "branch", "--show-current") != into:
                raise CaoError(f"{top} is not on {into} any more", f"cao merge {name}")
            was, facts = _head(top), worktree_facts(boss.store, session)
            commit = _head(path)
            _refuse_unknown_submodules(path, session.worktree)
            words = _in_shell(f"Merge {into} into your branch and resolve the conflicts")
            resolve = f"cao handoff {name} {words}"
            strategy, tree = _try_merge(top, commit, resolve)
            _refuse_to_overwrite(top, commit, tree)
            _refuse_to_move(top, was, commit)
        except CaoError as error:
            what = f"{name} was not merged into {into}, nothing was changed there: {error.what}"
            raise CaoError(what, error.fix) from None
        _merge(top, into, commit, strategy, tree, f"Merge branch '{session.worktree}'")
        now = _head(top)
    except BaseException:
        if not on:  # a switch to a branch would lose our commit, and what is in it
            _git(path, "update-ref", "HEAD", head, allowed=128)
        raise
    return {"session": name, "into": into, **facts, "was": was, "now": now}


def _refuse_unfinished(place: str) -> None:
    """Raise CaoError in the middle of another merge or of a series of commits, and where the index
    is locked."""
    for words in _unfinished(place):
        here = f"git -C {_in_shell(place)}"
        fix = f"{here} status says how to go on; {here} cherry-pick --quit forgets such a series"
        raise CaoError(f"{place} holds {words}", fix)
    # Git says the first before it looks for what to merge, and goes no further, as there is no
    # such branch: a merge of HEAD would take the message of an unfinished revert with it.
    _git(place, "merge", "--ff-only", "no such branch", allowed=1)
    _git(place, "update-index", "--force-write-index")


def _last_task(store: Store, name: str) -> str:
    """Return the end of a commit's message: the beginning of the session's last task, made visible,
    and that task's name; "" where it has taken none."""
    for entry in reversed(_listdir(store.folder(name, "inbox/cur"))):
        message = store.taken(name, entry)
        if message and message.kind == "task":
            return f": {shorten(visible(message.text), 50)}\n\nTask: {message.task}"
    return ""


def _try_merge(top: str, commit: str, resolve: str) -> tuple[str, str]:
    """Try the merge of a commit into what is checked out in top, changing nothing. Return git's
    strategy for it and the tree that it would make. Raises CaoError where it would have conflicts
    (resolve: what to do then)."""
    strategy = "ort"
    if "--write-tree" in _git(top, "merge-tree", "-h", allowed=129):
        flags = ("--write-tree", "--name-only")
        tried = _git(top, "merge-tree", *flags, "HEAD", commit, allowed=1)
        tree, _, conflicts = tried.partition("\n\n")
    else:  # git before 2.38 can try it with an index and files of its own
        strategy = "recursive"
        bases = _git(top, "merge-base", "--all", "HEAD", commit).split()
        with _scratch() as scratch:
            index, files = f"{scratch}/index", f"{scratch}/files"
            os.mkdir(files)
            variables = {"GIT_INDEX_FILE": index, "GIT_WORK_TREE": files}
            _git(top, "read-tree", "HEAD", variables=variables)
            merge = ("merge-recursive", *bases, "--", "HEAD", commit)
            conflicts = _git(top, *merge, allowed=1, variables=variables)
            tree = _git(top, "write-tree", allowed=128, variables=variables)
        if tree:
            conflicts = ""
            # The merge itself also looks at the files of top, and may call this a conflict.
            added = ("diff-tree", "-r", "--name-only", "--diff-filter=A", "-z", "HEAD", tree)
            for name in _git_names(top, *added):
                place = f"{top}/{name}"
                if os.path.isdir(place) and not any(files for *_, files in os.walk(place)):
                    raise CaoError(
                        f"{place} is an empty directory here, and a file there", "remove it"
                    )
    if conflicts:
        raise CaoError(conflicts, resolve)
    return strategy, tree


def _refuse_to_overwrite(top: str, commit: str, tree: str) -> None:
    """Raise CaoError where a merge of a commit that ends in tree would overwrite, in top, changes
    that are not committed, ignored files, or a submodule that is checked out, and where git would
    refuse it for staged changes.

    `git merge` refuses the first as well, but for a file marked assume-unchanged only when the
    change is lost; the other two it overwrites without a word, and what is staged in a directory
    where the merge changes a file of the directory's name, or the other way round.
    """
    # `git merge` would refuse this, too, but undo changes in files marked assume-unchanged.
    staged = _git_names(top, "diff-index", "--cached", "--name-only", "-z", "HEAD", "--")
    counts = _git(top, "rev-list", "--count", "--left-right", f"HEAD...{commit}", "--")
    if staged and "0" not in counts.split():
        what = f"git merges only what is ahead while changes are staged: {some_names(staged)}"
        raise CaoError(what, f"commit or unstage them in {top}")
    _git(top, "update-index", "-q", "--refresh", allowed=1)  # read-tree goes by the index alone
    try:
        _git(top, "read-tree", "-n", "-m", "-u", "HEAD", tree)
    except CaoError as error:
        fix = f"commit or stash what is in its way (cd {_in_shell(top)} && git status)"
        raise CaoError(error.what, fix) from None
    changes = ("diff-tree", "-r", "--name-only", "-z", "HEAD", tree)
    changed = {*_git_names(top, *changes)}
    folders = {folder for file in changed for folder in _folders(file)}
    others = ("ls-files", "--others", "--ignored", "--exclude-standard", "-z")
    unsaved = [name.rstrip("/") for name in _git_names(top, *others)]  # a repository ends in /
    unsaved += [submodule for submodule in _submodules(top) if _listdir(f"{top}/{submodule}")]
    overwritten = {*unsaved}.intersection(_git_names(top, *changes, "--diff-filter=AT"))
    for name in (*unsaved, *staged):
        if name in folders or not changed.isdisjoint(_folders(name)):
            overwritten.add(name)
    if overwritten:
        names = some_names(sorted(overwritten))
        what = f"it would overwrite ignored files, submodules or staged files in {top}: {names}"
        raise CaoError(what, "move that away, or commit it, then try again")


def _folders(path: str) -> Iterable[str]:
    """Return the directories above a relative path; of a/b/c: a, a/b."""
    import itertools

    return itertools.accumulate(path.split("/")[:-1], "{}/{}".format)


def _refuse_to_move(top: str, was: str, commit: str) -> None:
    """Raise CaoError where the branch checked out in top (at was) is locked, or a hook refuses to
    move it to a commit that is ahead. `git merge` would ask when the files are checked out."""
    new = commit
    if _git(top, "rev-list", "-n1", was, "--not", commit, "--"):
        new = was  # a merge commit, which is not made yet; this also shows that it can be undone
    steps = f"start\nupdate HEAD {new} {was}\nprepare\nabort\n"
    _git(top, "update-ref", "--stdin", text=steps)


def _standing(top: str) -> tuple[str, str, str]:
    """Return, for comparison, what git says of a working tree: its branch and commit, index and
    files; the commit that is being merged there; and ORIG_HEAD."""
    flags = ("--porcelain=v2", "--branch", "-uall")
    commit = ("rev-parse", "-q", "--verify")
    merging = _git(top, *commit, "MERGE_HEAD", allowed=1)
    return _git(top, "status", *flags), merging, _git(top, *commit, "ORIG_HEAD", allowed=1)


def _merge(top: str, into: str, commit: str, strategy: str, tree: str, message: str) -> None:
    """Merge a commit into the branch checked out in top (into), or change nothing and raise
    CaoError; strategy and tree are what _try_merge gave. Git may stop half-way in the checkout (a
    filter fails, the disk is full), and a hook, or somebody beside it, may change files: then that
    stays, and the error says so.

    A signal that would end us ends, instead, what git waits for: a hook or gpg. Then the merge
    fails, and this undoes it and raises KeyboardInterrupt. Git itself is never ended, nor is a
    filter during a checkout (the index is locked then): half a checkout could not be undone. The
    signals' handlers stay when this returns, so that we live to report what was done.
    """
    index_lock = _git_path(top, "index.lock")
    git_group: list[int] = []
    signals: list[int] = []

    def end_what_git_waits_for(number: int, _frame: Any) -> None:
        """Send SIGTERM, at each alarm after it SIGKILL, to all in git's process group but git."""
        # The alarm comes again and again: a hook may start later, or ignore SIGTERM.
        if not signals:
            signal.setitimer(signal.ITIMER_REAL, HOOK_END_S, HOOK_END_S)
        signals.append(number)
        if not git_group or os.path.exists(index_lock):
            return
        ending = signal.SIGTERM
        if number == signal.SIGALRM:
            ending = signal.SIGKILL
        for pid in {*group_members(git_group[0])} - {*git_group}:
            try:
                os.kill(pid, ending)
            except ProcessLookupError:
                pass  # it ended just now

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end_what_git_waits_for)
    # The user's options could merge nothing, or stash what is in the way: -s ours, --autostash.
    plain = [f"pull.twohead={strategy}"]
    if "=" not in into:  # git takes no such branch's name on its command line
        plain.append(f"branch.{into}.mergeOptions=")
    merge = ("merge", "-q", "--ff", "--commit", "--no-squash", "-m", message, commit)
    before, head = _standing(top), _head(top)
    try:
        _git(top, *merge, setting=plain, started=git_group.append)
    except CaoError as error:
        what, fix = f"not merged into {into}, nothing was changed there: {error.what}", error.fix
        begun = _standing(top)[1] == commit != before[1]  # no other merge is ours to undo
        # An abort would delete what somebody else has staged meanwhile.
        if begun and _git(top, "write-tree", allowed=128) == tree:
            _git(top, "merge", "--abort", allowed=128)
        # Both wrote our head there; `git am --abort`, for one, goes by what it was.
        orig_head = before[2] or "0" * len(head)  # zeros: none
        _git(top, "update-ref", "ORIG_HEAD", orig_head, head, allowed=128)
        if _standing(top) != before:
            what = f"the merge into {into} failed, {top} is not as it was before: {error.what}"
            here = f"git -C {_in_shell(top)}"
            fix = f"{here} status, which shows what is there now"
            if _standing(top)[1] == commit:  # a hook, or somebody, has staged more
                fix += f"; {here} merge --abort undoes the merge and all that is staged"
        elif signals:
            raise KeyboardInterrupt from None
        raise CaoError(what, fix) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


# ==== 9. Runner =======================================================================
#
# The steps of a delivery. A message or result whose runner is killed at any of them is delivered
# again, or reported.
#
#   queued     a message is in inbox/new, or a result is unread; nobody holds its lock (a session
#              that is `queued` waits for a slot: see the queue, above Orchestrator)
#   claimed    the runner holds its lock, and state.json names it
#   typed      it stands in the CLI's input line
#   submitted  Enter was pressed, or the text was on the command line
#   taken      the CLI's own event confirmed it; the lock is freed and it is off the books
#
# While a turn runs, the CLI's hook hands over messages (no tasks, no results) after a tool call
# (room 14, hand_messages):
#   1. The hook's shell line starts cao only where inbox/new has a message.
#   2. cao leaves out the calls of sub-agents. It locks a message, renames it to ID~ and prints it.
#      A message that is ID~ already is not printed.
#   3. taken: the transcript of that turn has the id, so the model's next request has the text.
#      The message becomes inbox/cur/ID.
#   4. A turn that ends without that leaves ID~. It is typed, marked as perhaps a second time.
#   5. Only the file's name records this. So whoever is killed, nothing is lost, and nothing
#      comes three times.
#
# A turn's end (the CLI's hook) is believed at a second sign, and not while a question is open:
#
#   the state file or title says busy or asking   never: the turn goes on
#   the transcript says that it was resumed       never: the turn goes on (Codex)
#   the transcript has the end as well            at once
#   the state file or title says idle             at once, for a CLI without a transcript
#   none of these, the hook had the answer        after SETTLE_S, where the screen shows no work;
#                                                 after UNSEEN_S where the transcript is to tell
#                                                 the tokens as well
#   none of these, the hook had no answer         after UNSEEN_S, where the screen shows no work;
#                                                 after STILL_S where the transcript is to tell it
#
# It is the task's end, too, unless more is to come (_more_to_come): a message or a result to be
# typed, or a turn that the CLI itself begins when its work in the background has ended.


# The shapes of what an order in events/ must have, and of what it may have.
_ORDERS: dict[str, Any] = {
    "answer": {"id": str, "question": str},
    "popup_closed": {"questions": [str]},
}
_ANSWER = dict.fromkeys(("answer", "words", "key"), str)
PERHAPS_AGAIN = "[perhaps for the second time]\n"


class Delivery(NamedTuple):
    """Messages on their way into the conversation, and the step they have reached."""

    messages: tuple[str, ...]  # their ids
    text: str  # what is sent, whole
    step: str  # claimed, typed, submitted or taken: see the table above
    at: float  # when this step was reached, in epoch seconds
    enters: int = 1  # how often Enter was due for it: after the third time it is given up
    # What the CLI took: "exact", the first difference, "unknown: …" where no event told, or
    # "claimed" for a program without hooks. "" until it is taken.
    exact: str = ""


def render_message(message: Message) -> str:
    """Return a message as its reader gets it, typed or from a `wait`: a task and a result are
    their own text, a message and a notice name their sender. A message that a hook may have
    handed over before (its id ends in ~) says so."""
    if message.kind == "notice":
        return f"Notice from cao: {message.text}"
    if message.kind != "message":
        return message.text

    text = message.text
    if message.id.endswith("~"):
        text = PERHAPS_AGAIN + text
    return f"Message from {message.sender}:\n{text}"


def head_of_message(message: Message) -> str:
    """Return the first line of a message that a hook hands over. It names the id, by which
    Runner._note_handed finds the message in the transcript."""
    return f"Message from {message.sender} ({message.id.rstrip('~')}):\n"


def by_file(store: Store, name: str, message: Message, text: str) -> str:
    """Put text into a file that the worker may read; return the line to send in its place.
    message: gives that line its sender, and the file its name."""
    letters = PROVIDERS[store.find(name).provider].letters
    path = store.launch_file(name, f"{letters}{message.id}.md")
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)  # an older cao made none
    store.write(path, text)

    what = f"A message from {message.sender}"
    if message.kind == "task":
        what = "Your task"
    size = len(text.encode(errors="surrogatepass"))
    return f"{what} is in the file {path} ({size} bytes). Read all of it and do what it says."


def head_of(task: str) -> str:
    """Return the words with which render_result begins a task's result. The transcript has them
    where the CLI took that result."""
    return f"Result of {task} ("


def next_step(result: Result) -> str:
    """Return what its owner can do about a task that was cut short, "" for any other."""
    if result.outcome == "timeout":
        return f"To go on, give {result.session} a follow-up task, with a longer timeout."
    if result.reason in ("runner_died", "terminal_gone"):
        how = "it resumes its conversation, where it can; else take the profile's name"
        return f"To go on, give {result.session} a follow-up task: {how}."
    return ""


EARLIER = "In the same task it also said:\n{}"  # a result's `turns`


def render_result(result: Result) -> str:
    """Return a result as its owner reads it: a line of facts, the notes, the whole answer or the
    failure's words, what earlier turns said, what to do next, the last screen, the check, the
    branch."""
    facts = [result.outcome]
    if result.reason not in ("", result.outcome):
        facts.append(result.reason)
    if result.exit_status is not None:
        facts.append(f"exit status {result.exit_status}")
    if result.retry_at:
        facts.append(f"lifts {result.retry_at}")
    facts.append(render_seconds(result.seconds))
    if result.usage:
        facts.append(render_tokens(result.usage))

    parts = [f"{head_of(result.task)}{', '.join(facts)}):"]
    parts += [f"[{note}]" for note in result.notes]
    if result.answer or result.outcome == "done":
        parts.append(result.answer)
    elif result.detail:
        parts.append(result.detail)
    parts += map(EARLIER.format, result.turns)
    step = next_step(result)
    if step:
        parts.append(step)
    if result.outcome != "done" and result.screen:
        parts += ["Its last screen:", tail_lines(re.sub(r"\n\s*\n", "\n", result.screen), 15)]

    check = result.check
    if check:
        status = check.get("exit_status")
        ending = f"ended with {status}"
        if status is None:
            ending = "was broken off"
        parts.append(f"Check `{check['command']}` {ending}, try {check['tries']}.")
        if status:
            parts.append(render_output(check["tail"]))

    worktree = result.worktree
    if worktree:
        changes = worktree["diffstat"] or "no change"
        if worktree["dirty"]:
            changes += ", with uncommitted changes"
        parts.append(f"Branch {worktree['branch']}: {changes}")
    return "\n".join(parts)


def render_output(tail: str) -> str:
    """Return the end of a check's output, in words."""
    if not tail:
        return "It printed nothing."
    return f"Its output ends with:\n{tail}"


def next_delivery(waiting: Sequence[Message], task: Message | None) -> list[Message]:
    """Return what of waiting (oldest first) may be typed next; task: the open one, or None.

    Where none is open: the first task, alone, or all that stands before it. While one is open
    no other is begun: everything but tasks.
    """
    if task is None and waiting and waiting[0].kind == "task":
        return [waiting[0]]
    chosen: list[Message] = []
    for message in waiting:
        if message.kind != "task":
            chosen.append(message)
        elif task is None:
            break
    return chosen


def rare_look_s(since: float) -> float:
    """Return the seconds until the next look at what has been awaited since that
    time.monotonic(): a twentieth of the wait so far, 0.05 at the least and LOOK_S at the most.
    So what comes soon is seen at once, and what takes long costs few looks."""
    return min(LOOK_S, max(0.05, (time.monotonic() - since) / 20))


# The signals that a runner ignores. The CLI is the foreground of the pane's terminal, which would
# stop a runner that writes there. SIGPIPE: a write to a broken pipe raises an OSError instead.
_IGNORED = (signal.SIGTTOU, signal.SIGTTIN, signal.SIGTSTP, signal.SIGPIPE)


# Tokens are counted from what the CLI wrote about each request; nothing is estimated.
#
#   a request    counts once, by its id, however often the CLI writes it
#   a task       has the requests between its taking and its end: also those of its sub-agents,
#                which have files of their own, but none from before a conversation was resumed
#   input        is what came from no cache; what came from a cache is counted apart
#   the budget   is checked once a second; above it the turn is interrupted
#   not counted  requests of which the CLI writes nothing (OpenCode's title, Gemini's routing)


def utc_stamp(at: float) -> str:
    """Return a time (epoch seconds) as transcripts have it, to be compared with theirs as text:
    ISO 8601, in UTC, to the millisecond. Raises OverflowError, ValueError or OSError for a time
    that no calendar has."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1000):03}"


class Meter:
    """Counts the tokens of a session, from what its CLI writes about each request to the model.

    It owns what was read of the CLI's files, and how far each was read.
    """

    def __init__(self, where: Tokens) -> None:
        self.where = where
        self.marks: dict[str, tuple[int, int]] = {}  # file -> read up to here; its inode
        # (file, id of the request) -> when, as utc_stamp; input, cached and output tokens
        self.requests: dict[tuple[str, Any], tuple[str, tuple[int, ...]]] = {}
        self.agents = {""}  # the ids of sub-agents; "": for files that are named after none

    def read(self, transcript: str, folder: str, conversation: str) -> None:
        """Read what is new in a transcript ("": not known yet), and in the files of its
        sub-agents: folder (launch/) and conversation are parts of their names (Tokens.more)."""
        import glob

        facts = {
            "dir": os.path.dirname(transcript),
            "stem": transcript.rpartition(".")[0],
            "folder": folder,
            "conversation": conversation,
        }
        facts = {key: glob.escape(path) for key, path in facts.items()}
        done: set[str] = set()
        files = {transcript}
        while files:  # a file may name a sub-agent, which has a file of its own
            for path in files:
                self._read(path)
            done |= files
            forms = [self.where.more.format(**facts, agent=name) for name in self.agents]
            files = {os.path.normpath(path) for form in forms for path in glob.glob(form)} - done

    def _read(self, path: str) -> None:
        """Read the whole lines that were added to a file, all of them where it was replaced. A
        file that cannot be read is left to the next time."""
        size, inode = file_mark(path)
        offset, known_inode = self.marks.get(path, (0, inode))
        if inode != known_inode or size < offset:
            offset = 0  # the file was replaced
        if size == offset:
            return
        try:
            with open(path, "rb") as file:
                file.seek(offset)
                lines = file.read()
        except OSError:
            return

        lines = lines[: lines.rfind(b"\n") + 1]
        self.marks[path] = (offset + len(lines), inode)
        for entry in map(parse_object, lines.decode(errors="replace").split("\n")):
            for name in self.where.agents.split():
                agents = value_at(entry, name)
                if isinstance(agents, str):
                    agents = [agents]
                if isinstance(agents, list):
                    self.agents.update(map(str, agents))
            request = read_tokens(self.where, entry)
            if request:
                key, at, counts = request
                try:
                    if not isinstance(at, str):
                        at = utc_stamp(at / 1000)
                except (OverflowError, ValueError, OSError):
                    continue
                self.requests[path, key] = (at, counts)

    def used_since(self, stamp: str) -> dict[str, int] | None:
        """Return {"input", "cached", "output"}: the tokens of the requests since then (as
        utc_stamp); None while nothing could be read."""
        if not self.marks:
            return None
        used = [counts for at, counts in self.requests.values() if at >= stamp]
        totals = [sum(counts[n] for counts in used) for n in range(3)]
        return dict(zip(("input", "cached", "output"), totals))


class Background:
    """What a session's CLI runs in the background, by the ids that it gives (Event.background).

    It owns what the transcript has told of that since its mark, and knows what is `old`: what
    earlier tasks left running, which is not the open task's.
    """

    def __init__(self, row: Provider) -> None:
        self.row = row
        self.known: dict[str, str] = {}  # id -> label, "" once it has ended
        self.old: set[str] = set()

    def read(self, lines: Sequence[str], *, new: bool) -> None:
        """Take in what a transcript's lines behind the mark tell. new: what they say has begun is
        the open task's."""
        told = self.row.read_work(lines)
        self.known.update(told)
        if new:
            self.old.difference_update(one for one, label in told.items() if label)

    def mark(self) -> None:
        """Forget what has ended: the transcript has a new mark."""
        ended = {one for one, label in self.known.items() if not label}
        if not self.row.status:  # Copilot's model may name another one so
            self.old -= ended
        self.known = {one: label for one, label in self.known.items() if label}

    def at(self, end: Event) -> dict[str, str]:
        """Return what ran at a turn's end, by the transcript and by that end's hook. Claude
        Code's hook tells all of it."""
        if self.row.status and end.kind == "ended":
            return end.background
        running = {one: label for one, label in self.known.items() if label}
        return {**running, **end.background}

    def own_at(self, end: Event) -> dict[str, str]:
        """Return what ran at a turn's end and is not old."""
        return {one: label for one, label in self.at(end).items() if one not in self.old}

    def own_ended(self) -> bool:
        """Tell whether something that is not old has ended since the mark."""
        return any(not label and one not in self.old for one, label in self.known.items())


# What changes by itself, even beside a dialog that waits: the digits of a clock, a spinner, the
# dot before a tool call, which blinks (Claude Code 2.1.332).
_MOVING = re.compile(r"[\d\s●⠁-⣿]")


class Mark(NamedTuple):
    """A place in a pane, behind which all is new: the lines up to there, and what had been typed
    at the end of the last one ("": nothing, or it is not shown)."""

    lines: list[str]
    text: str = ""


def lines_behind(mark: Mark, lines: list[str]) -> list[str] | None:
    """Return what a pane's lines have behind a mark, the rest of its own line first. None where
    that line is gone: the screen was cleared or drawn anew, or it was more than tmux keeps.

    Where all that stands above the line is as it was, and it has the typed text, it is in its
    place, however it is drawn now. Else tmux may have dropped lines, and a line with typed text is
    known by its words.
    """
    at, last = len(mark.lines) - 1, mark.lines[-1]
    places, known = range(min(at, len(lines) - 1), -1, -1), [last, last.rstrip()]
    if mark.text:
        # A shell may show more behind the text (the time, a suggestion), before Enter or after it.
        known.append(last[: last.rindex(mark.text) + len(mark.text)])
    if len(lines) > at and lines[:at] == mark.lines[:at] and mark.text in lines[at]:
        places = range(at, at + 1)
        known.append("")  # the line was drawn anew
    elif not mark.text:
        return None
    for n in places:
        for words in known:
            if lines[n].startswith(words):
                rest = lines[n][len(words) :]
                if mark.text and words not in (last, last.rstrip()):
                    rest = ""  # what the shell shows behind the text: a clock goes on
                return [rest, *lines[n + 1 :]]
    return None


def split_screen(text: str) -> list[str]:
    """Return the lines of a screen without the blank ones at its end; at least one."""
    lines = text.split("\n")
    while len(lines) > 1 and not lines[-1].strip():
        lines.pop()
    return lines


def prompt_begins(line: str, known: str) -> tuple[int, bool]:
    """Return where the prompt begins in a line that ends with one, and whether that is sure:
    before it stands the end of an output that had no newline.

    known: an earlier prompt. In the new one a number may be another (a counter, the time), or a
    directory. Then the beginning of the two tells; a line that has not even the first letter of it
    counts as output.
    """
    line, known = line.rstrip(), known.rstrip()
    if known.endswith(line):
        return 0, True
    if known and line.endswith(known):
        return len(line) - len(known), True
    shape = re.sub(r"\d+", lambda m: rf"\d{{{len(m[0])},{len(m[0]) + 1}}}", re.escape(known))
    if known[:1].isdigit():  # else a number at the output's end would belong to it
        shape = rf"(?<!\d){shape}"
    if known and (match := re.search(rf"{shape}\Z", line)):
        return match.start(), True
    head = re.split("[/~ ]", known)[0]
    if len(head) < 3:
        head = known[: max(3, len(known) // 2)]
    if known and head in line:
        return line.rindex(head), True
    if not known or line[:1] == known[:1]:
        return 0, not known
    return len(line), False


def terminal_facts() -> tuple[Any, ...]:
    """Return what tells whether the program on our terminal reads a line, compared with another
    moment: whether it edits the line itself, and which process group has the terminal."""
    import termios

    try:
        return bool(termios.tcgetattr(0)[3] & termios.ICANON), os.tcgetpgrp(0)
    except (OSError, termios.error):
        return ()


class ScreenProgram:
    """A program without hooks (provider: command): its screen alone says what it does.

    It owns the places on the screen where a turn began and where the last question was answered,
    and since when the screen has said the same. It knows nothing of tasks, and decides nothing.
    """

    def __init__(self, tmux: Tmux, pane: str, profile: Profile) -> None:
        self.tmux, self.pane, self.settings = tmux, pane, profile.settings
        self.seen = Look("unknown", "none")
        self.seen_at = 0.0  # since when the screen has said this, on the monotonic clock
        self.shown, self.shown_at = "", 0.0  # the screen, and since when it has been the same
        self.due = 0.0  # when what the screen says is believed: output may go on at once
        self.settled = False  # it is due
        self.turn = self.asked = Mark([""])  # what stands behind asked may be a question
        self.prompt = ""  # what stood on the turn's line before its text
        self.known = ""  # the last prompt: on its line, an output may stand before it
        self.terminal: tuple[Any, ...] = ()  # terminal_facts at that prompt
        self.tells = False  # were they ever others at work?
        self.ready_at = 0.0  # when its last line was last seen to be a prompt
        self.typed_at = 0  # that line's number
        self.unseen = ""  # the turn's text, where the screen had not shown it before Enter
        self.at_work = False  # the screen has not shown the end of the turn yet
        self.prompted = False  # the turn has printed what may be a prompt
        self.question = ""  # what is asked, with what stands above it
        self.opened = self.asked  # as it was when the open question was opened
        self.waits: list[str] = []  # the lines when the open question was settled
        self.note = ""  # what is not sure about the answer
        self.most = 0  # the lines that tmux keeps above the screen

    def _pattern(self, key: str) -> str:
        value = self.settings.get(key)
        return str(value) if value else ""

    def _is_prompt(self, line: str) -> bool:
        """Tell whether `ready` matches a line, with or without the blanks at its end: tmux 3.2a
        shows one where the program has written none."""
        ready = self._pattern("ready")
        return any(re.search(ready, text) for text in (line, line.rstrip()))

    def begin_turn(self) -> None:
        """Note what stands in the pane before a turn's text is typed, and make room for it."""
        form = "#{history_size} #{history_limit}"
        size, self.most = map(int, self.tmux.ask(self.pane, form).split())
        if size > self.most // 4:  # a full history loses lines
            self.tmux.run("clear-history", "-t", self.pane)
        lines = self._lines()
        self.prompt, self.typed_at = lines[-1], len(lines) - 1
        self._learn(self.prompt)

    def _learn(self, line: str) -> None:
        """Note the prompt in the last line of a screen that says ready."""
        if self._is_prompt(line):
            self.terminal = terminal_facts()
            if not self.known or not line.rstrip().endswith(self.known.rstrip()):
                self.known = line

    def mark(self, text: str = "", first: int = -1) -> None:
        """Note that all that is in the pane asks nothing any more. text: what was just typed; this
        waits until the program shows it, but not for long. first: the line from which on it may be
        shown. Below it there may be more: Node.js 20 previews the value, until Enter."""
        text = text.strip()

        def shown() -> list[str]:
            lines = self._lines()
            for n in range(len(lines))[first:]:
                if text in lines[n].removeprefix(self.prompt):
                    return lines[: n + 1]
            return []

        lines, self.unseen = look_until(shown, 25), ""
        if not lines:
            lines, text, self.unseen = self._lines(), "", text
        self.asked = Mark(lines, text)

    def mark_turn(self, text: str) -> None:
        """Note where a turn begins, when its text was typed and before Enter."""
        self.mark(text, self.typed_at)
        self._doubt()
        self.turn, self.at_work, self.note = self.asked, True, ""
        self.prompted = False

    def _doubt(self) -> None:
        """Have what the screen says believed only when other looks have seen it, too."""
        self.seen, self.settled = Look("unknown", "none"), False

    def look(self, now: float) -> Look:
        """Return what the program does now, by its screen; note since when that is so."""
        screen, lines = "", [""]
        try:
            screen = self.tmux.capture(self.pane, join=True)
            if self._pattern("asking"):
                lines = self._lines()
        except CaoError:
            pass  # `unknown`, as for an empty screen
        self._pass_answered(now, lines)
        look = self.read_screen(screen, "\n".join(self._unanswered(lines)))
        facts = terminal_facts()
        if self.at_work and self.terminal and facts not in ((), self.terminal):
            self.tells = True
        covered = False
        if look.state == "idle" and self.terminal[1:] not in ((), facts[1:]):
            look = Look("unknown", "screen", "another program has the terminal")
        elif look.state == "idle" and self.at_work and self.tells and facts != self.terminal:
            look = Look("unknown", "screen", "its terminal says that it is at work")
        elif look.state == "unknown" and facts == self.terminal:
            covered = self._is_covered(now, split_screen(screen)[-1])
        elif look.state == "idle":
            self.ready_at, self.prompted = now, True
        if covered:
            look = Look("idle", "screen", "ready, with more output behind its prompt")
        if look != self.seen:
            self.seen, self.seen_at = look, now
        if screen != self.shown:
            self.shown, self.shown_at = screen, now
        self.due = self.seen_at + SETTLE_S / 2
        if covered:
            self.due = min(self.shown_at + QUIET_S, self.seen_at + CHATTY_S)
        self.settled = now >= self.due
        if self.is_ready() and not self.known:
            self._learn(split_screen(screen)[-1])
        if look.state != "asking":
            self.waits = []
        elif self.settled and not self.waits:
            self.waits = lines
        return look

    def shows(self, text: str) -> bool:
        """Tell whether a text stands where begin_turn saw that it would, and Enter was not
        pressed."""
        line = split_screen(self.shown)[-1].strip()
        lines = [f"{prompt}{text}".strip() for prompt in (self.prompt, self.known, "")]
        return bool(text.strip()) and line in lines and not self._is_below()

    def watch_terminal(self) -> None:
        """See, in a thread of its own, what becomes of the terminal as Enter is pressed: a short
        command may be over before the next look."""

        def watch() -> None:
            for _ in range(1000):
                if self.tells or terminal_facts() not in ((), self.terminal):
                    self.tells = True
                    return
                select.select([], [], [], 0.0003)

        if self.terminal and not self.tells:
            start_thread(watch)

    def _is_covered(self, now: float, last: str) -> bool:
        """Tell whether the program, whose terminal is as at its prompt, is ready, and has printed
        more behind that by itself, from a thread or a job. Else it is at work, where its terminal
        is the same then, and a turn or a person's line was begun; or somebody may have begun a
        line: the cursor is not below all lines, and before its turn's end its last line does not
        begin with a prompt. last: its last line.

        No key could ask for the prompt: an empty line has a debugger do its last command again.
        """
        if not self.terminal:
            return False
        person_s = self.tmux.person_active_s(self.pane) - 1.0  # in whole seconds
        person = person_s <= now - self.ready_at
        if not self.tells and (self.at_work or person):
            return False
        if self.at_work and not self.prompted:  # a question may stand on a line of its own
            lines = self._lines()
            printed = lines_behind(self.turn, lines)
            if printed is None:
                printed = lines
            self.prompted = any(self._prompt_in_front(line, False) for line in printed[-200:])
            if not self.prompted:
                return False
        return self._is_below() or bool(self.at_work and not person and self._prompt_in_front(last))

    def _is_below(self) -> bool:
        """Tell whether the cursor is below all lines, in any column: on a raw terminal it stays."""
        rows = len(split_screen(self.tmux.capture(self.pane)))
        row = self.tmux.ask(self.pane, "#{cursor_y}")
        return bool(row) and int(row) >= rows

    def _prompt_begins(self, line: str) -> tuple[int, bool]:
        """Return what prompt_begins does; a line that `ready` matches as a whole is a prompt."""
        at, sure = prompt_begins(line, self.known)
        match = re.search(self._pattern("ready"), line)
        if not sure and match and not match.start():
            return 0, True
        return at, sure

    def _prompt_in_front(self, line: str, sure: bool = True) -> int:
        """Return the length of the prompt that a line begins with, 0 where it does not. sure:
        leave out what `ready` matches and is not like the last prompt."""
        firsts = f"{self.known[:1]}{self.prompt[:1]}"
        if self.known[:1] in "~/0123456789":  # a directory or a number changes
            firsts += line[:1]
        if line[:1] not in firsts:
            return 0
        for size in range(1, min(len(line), PANE_COLUMNS)):
            begins = (0, True)
            if sure:
                begins = prompt_begins(line[:size], self.known)
            if begins == (0, True) and self._is_prompt(line[:size]):
                return size + (line[size : size + 1] == " ")
        return 0

    def _pass_answered(self, now: float, lines: list[str]) -> None:
        """Move the mark behind a question that a person has answered in the pane: more lines
        follow, and the one that had been the last has changed, or somebody has typed. Otherwise
        the question is still being drawn."""
        at = len(self.waits) - 1
        if at < 0 or len(lines) <= at + 1:
            return
        typed_s = self.tmux.person_active_s(self.pane) - 1.0  # tmux tells in whole seconds when
        if lines[at] != self.waits[at].rstrip() or typed_s < now - self.seen_at:
            self.asked = Mark(self.waits)
        self.waits = []

    def _unanswered(self, lines: list[str]) -> list[str]:
        """Return what may be a question: all that the turn has printed, or all since the last
        question was answered."""
        for mark in (self.asked, self.turn):
            new = lines_behind(mark, lines)
            if new is not None:
                return new
        return lines

    def settles_in(self, now: float) -> float | None:
        """Return in how many seconds what the screen says will be believed; None where nothing
        depends on that."""
        if self.settled or self.seen.state not in ("idle", "asking"):
            return None
        return max(0.01, self.due - now)

    def open_question(self) -> str:
        """Return what is asked, with what stands above it; `asks` knows it by this text."""
        self.opened = self.asked
        return self.question

    def asks(self, text: str) -> bool:
        """Tell whether the last look has seen the question that was opened, with this text, and
        nobody has answered it. Above its last line a clock may go on."""
        same = self.opened is self.asked and text.rpartition("\n")[2] == self.seen.why
        return same and self.seen.state == "asking"

    def is_ready(self) -> bool:
        """Tell whether the screen says ready."""
        return self.settled and self.seen.state == "idle"

    def is_free(self) -> bool:
        """Tell whether a turn may be typed: the screen says ready, and has shown the last one's
        end."""
        return self.is_ready() and not self.at_work

    def answer(self) -> str | None:
        """Return what the turn has printed; None where it has printed nothing yet."""
        lines = self._lines()
        new = lines_behind(self.turn, lines)
        if new is not None and len(new) == 1:
            self._doubt()
            return None
        self.at_work, self.asked = False, Mark(lines)
        if new is None:
            self.note = (
                f"it cleared its screen, or tmux kept no more ({self.most} lines): the beginning"
                " of its answer may be gone"
            )
            new = lines
        if new[0].strip() == self.unseen:  # it was shown late
            new[0] = ""
        if new[0].strip():  # parse_printed passes over a first line
            new = ["", *new]
        answer = self.parse_printed("\n".join(new))
        if self._is_prompt(lines[-1]):
            at, sure = self._prompt_begins(lines[-1])
            if not sure:
                where = "where its output ends and its prompt begins is not sure"
                self.note = f"its last line was {lines[-1]!r}: {where}"
            if (prompt := lines[-1][at:]).strip():
                self.known = prompt
        return answer

    def _lines(self) -> list[str]:
        """Return the pane's lines, from the first that tmux still has. Only the last one keeps
        the blanks at its end."""
        lines = split_screen(self.tmux.capture(self.pane, first="-", join=True))
        return [*map(str.rstrip, lines[:-1]), lines[-1]]

    def type_exit(self) -> bool:
        """Type the profile's `exit` words, by which the program ends itself; tell whether it has
        any and was free to read them. This does not wait for the end."""
        words = strip_controls(self._pattern("exit"))
        if not words or not self.is_free():
            return False
        self.tmux.paste(self.pane, [words])
        self.tmux.keys(self.pane, "Enter")
        return True

    def read_screen(self, screen: str, printed: str | None = None) -> Look:
        """Return the state that the profile's own patterns see on a screen and in what was printed
        since the last answer (None: the same); of what is asking, `why` is the last line of
        self.question: a clock may go on above it."""
        asking, busy = self._pattern("asking"), self._pattern("busy")
        lines = [line for line in screen.split("\n") if line.strip()]
        if printed is None:
            printed = screen
        # What stands further up is no question any more.
        printed = "\n".join(printed.split("\n")[-QUESTION_LINES:])
        questions = list(re.finditer(asking, printed, re.M)) if asking else []
        if questions:
            self.question = printed[: questions[-1].end()].strip()
            return Look("asking", "screen", self.question.rpartition("\n")[2])
        if busy and (match := re.search(busy, screen, re.M)):
            return Look("busy", "screen", f"busy: {match[0]!r}")
        if not lines:
            return Look("unknown", "screen", "empty screen")
        if self._is_prompt(lines[-1]):
            return Look("idle", "screen", f"ready: {lines[-1]!r}")
        return Look("unknown", "screen", f"last line: {lines[-1]!r}")

    def parse_printed(self, printed: str) -> str:
        """Return the answer in what was printed; the first line is that of the prompt we typed.

        It is the last match of the profile's `answer` pattern, "" where nothing matches. Without
        a pattern it is all that stands between that first line and the new prompt, and behind that;
        the prompt may follow on the answer's last line.
        """
        if pattern := self._pattern("answer"):
            answers = re.findall(pattern, printed, re.M)
            if not answers:
                return ""
            answer = answers[-1]
            if isinstance(answer, tuple):  # of a pattern with several groups the first counts
                answer = answer[0]
            return str(answer)

        lines = split_screen(printed)
        if self._is_prompt(lines[-1]):
            lines[-1] = lines[-1][: self._prompt_begins(lines[-1])[0]]
        elif self.known:
            for n in range(len(lines) - 1, 0, -1):
                if size := self._prompt_in_front(lines[n]):
                    lines[n] = lines[n][size:]
                    break
        return "\n".join(line.rstrip() for line in lines[1:]).strip("\n")


def task_facts(task: Message | None) -> dict[str, str]:
    """Return what a session's state.json says about its open task; each "" where none is open."""
    if not task:
        return {"task": "", "task_message": "", "task_line": ""}
    return {"task": task.task, "task_message": task.id, "task_line": shorten(task.text, 120)}


class Runner:
    """The process of one session: its CLI, its loop, every key that is typed.

    It owns what has happened in the session and what that means: the phase, the open task, the
    turn, the questions, the delivery on its way. Each round reads what happened (events, the
    child, the inbox), looks where no event exists, decides, and waits. Nothing here knows MCP
    or the command line.
    """

    def __init__(self, store: Store, session: Session) -> None:
        self.store, self.session, self.name = store, session, session.name
        self.folder = store.folder(self.name)
        self.boss = Orchestrator(store, Caller(""))
        profile = self.boss.launched(self.name)
        path = store.launch_file(self.name, "launch.json")
        launch = store.read_record(path, Launch)
        if not launch or not profile:
            raise CaoError(f"{path} cannot be read", "start a new session")
        self.launch = launch._replace(profile=profile)
        self.row = PROVIDERS[session.provider]
        self.env = store.read_launch(self.name, "env.json")
        self.wake = Wake(store)
        self.pane = os.environ.get("TMUX_PANE", "")
        self.program: ScreenProgram | None = None  # provider: command
        if self.row.by_output:
            self.program = ScreenProgram(self.boss.tmux, self.pane, profile)
        self.child, self.exit_status = 0, None  # type: int, int | None
        self.group: dict[str, Any] | None = None  # the CLI's, as note_process has it
        # Queued, starting, idle, working, asking or ended; state.json may say another (_facts).
        self.phase, self.since = "starting", time.time()
        # What ends in _at below is by time.monotonic(): no clock that is set, and no machine
        # that sleeps, makes anything due.
        self.phase_at = time.monotonic()  # the same moment as since
        self.conversation = launch.resume or session.conversation
        # offset: what the transcript has before it is of earlier turns. inode: its file; 0: any
        self.transcript, self.offset, self.inode = "", 0, 0
        self.task: Message | None = None  # the open one
        self.turns: list[str] = []  # the last text of each earlier turn of the task
        # look_at: when the next look is due
        self.turn_at = self.look_at = 0.0
        # The open task's time: spent_s is what it had until counted_at, a round's beginning; what
        # comes after that counts too, unless it is paused.
        self.spent_s, self.counted_at, self.paused = 0.0, self.phase_at, True
        self.task_exact, self.tries = "", 0  # Delivery.exact of the task; how many checks ended
        self.begun = False  # has a turn ever begun?
        # The CLI did not take a result or a notice: these wait until a turn has begun. A program
        # takes none at all: it is no agent, and would run them.
        self.stuck = self.row.by_output
        self.heard = False  # has any hook ever come?
        self.delivery: Delivery | None = None
        self.step_at = 0.0  # when the delivery reached its step, or Enter was last due for it
        # The locks on what is delivered, until the CLI has taken it.
        self.claims: dict[str, Claim] = {}
        self.typed_before: list[str] = []  # results that an earlier runner typed before it died
        self.last_sent = ""  # the text of the last delivery
        self.pasted = ""  # ... while it stands in a program's line, for what we know
        self.ending: Event | None = None  # the turn's end, until a second sign confirms it
        self.ending_at = 0.0
        self.worked_at = -REPORT_S  # when work in the background was last seen to hold up the task
        self.background = Background(self.row)
        # The CLI began this turn by itself, to tell what came of what earlier tasks had left
        # (ended_work), or for a text that was given up: it is not the open task's.
        self.foreign = False
        self.given_up: list[str] = []  # texts that the CLI did not take in time: it may have later
        # The end of the task's own turn before that, and that one's prompt, where the transcript
        # did not have the answer yet (Copilot 1.0.102 writes it late).
        self.behind: tuple[Event, str] | None = None
        # The end of a turn that is not the task's (_more_to_come): something is to come.
        self.interim_end: Event | None = None
        self.questions: dict[str, Question] = {}  # the open ones
        self.asked_from = "starting"  # the phase before the first of them was asked
        # The id of a question -> the answer that was ordered.
        self.orders: dict[str, dict[str, Any]] = {}
        # The id of a question -> how many looks saw no dialog (_look_at_questions).
        self.looks: dict[str, int] = {}
        # The id of a question that a hook asked -> what its dialog shows (dialog_subject).
        self.subjects: dict[str, tuple[str, str] | None] = {}
        self.tried: list[str] = []  # what cao answered by itself, an entry for each time
        self.popups: set[str] = set()  # the tmux clients in which a popup asks
        self.refused = False  # cao pressed Esc for a person's "no": the words begin a new turn
        # The screen without what is _MOVING, and since when it has been the same.
        self.still: tuple[str, float] = ("", 0.0)
        self.interrupted_at = 0.0  # when a person pressed Esc while a task was open
        # Why cao interrupts: interrupted, timeout or budget, "" while it does not; and when it last
        # pressed the key for that.
        self.ordered, self.pressed_at = "", 0.0
        # How many looks found a turn idle that no hook has ended; the signal that ends us.
        self.idle_looks = self.signal = 0
        self.closing = False  # it was idle for long, and is about to end
        # The check that runs or, where it has an exit_status, has run.
        self.check: dict[str, Any] | None = None
        # What prevents typing now; the reason for the phase; what was last said, in a line.
        self.held_back = self.why = self.last_line = ""
        self.held_at = 0.0  # since when something prevents typing
        self.unread = False  # the CLI has shown nothing of what was typed last
        # What the screen showed at the last look for work (_is_at_work), and since when.
        self.last_screen, self.last_screen_at = "", 0.0
        self.ordered_at = 0.0  # when the interrupt was ordered (`ordered`), by the monotonic clock
        self.evidence: dict[str, Any] = {}
        self.meter = Meter(self.row.tokens) if self.row.tokens else None
        self.began = 0.0  # when the task was taken, in epoch seconds
        self.usage: dict[str, int] | None = None  # of the open task, else of the last one
        self.reply: dict[str, Any] | None = None  # what came of the last answer
        self.handled: set[str] = set()  # events that were handled, but not removed yet
        self.to_retry: list[Callable[[], object]] = []  # what could not be done yet, oldest first
        self.failed = False  # something could not be done in this round
        self.trouble = ""  # ... and why: it is logged once
        self.leaving = self.over = False  # its end is decided; its end is done
        self.again = False  # another Runner is to start the CLI anew, in the same session
        self.saved: dict[str, Any] = {}  # state.json as it was last written
        self.lock = -1  # the session's: from run_session

    # ---- what state.json says ----

    def _facts(self) -> dict[str, Any]:
        """Return what state.json is to say now. Its state is the phase, but for an idle CLI with
        an open task: that is `working` or, after a person's Esc, `asking`."""
        shown = self.phase
        questions = [question._asdict() for question in self.questions.values()]
        if self.task and self.phase == "idle":
            shown = "working"
            if self.interrupted_at and not self.delivery_open():
                shown = "asking"
                words = (
                    "a person interrupted the turn; the task goes on when the person or a message"
                    " starts another, and ends after a while"
                )
                name = f"interrupted-{self.since:.0f}"
                asked = Question(name, "interrupted", words, (), self.since)
                questions = [asked._asdict()]

        delivering: tuple[str, ...] = ()
        delivery = None
        if self.delivery:
            keys = ("messages", "step", "exact", "at")
            delivery = {key: getattr(self.delivery, key) for key in keys}
            if self.delivery_open():
                delivering = self.delivery.messages
        return {
            "state": shown,
            "since": self.since,
            **task_facts(self.task),
            "last_line": self.last_line,
            "delivering": delivering,
            "delivery": delivery,
            "questions": questions,
            "may_close": self._may_close(),
            "group": self.group,
            "conversation": self.conversation if self.begun else self.launch.resume,
            "transcript": self.transcript,
            "held_back": self.held_back,
            "closing": self.closing,
            "why": self.why,
            "exit_status": self.exit_status,
            "evidence": self.evidence,
            "usage": self.usage,
            "reply": self.reply,
        }

    def _save(self) -> None:
        """Write state.json where it changed, and wake whom it concerns."""
        facts = self._facts()
        # Not while something is to be retried: the result is written before its state.
        if facts == self.saved or self.to_retry:
            return
        self.store.save_state(self.name, facts)
        before, self.saved = self.saved, facts
        if facts["state"] != before.get("state"):
            self._log("state", state=facts["state"], why=self.why)
        poke = self.store.poke
        if any(facts[key] != before.get(key) for key in ("state", "questions")):
            poke = self.store.poke_up
        self._insist_on(lambda: poke(self.name))
        if facts["may_close"]:
            self._insist_on(self.store.poke_queue)

    def _insist_on(self, action: Callable[[], object]) -> None:
        """Do what must not be lost: now, or in the first round in which the machine can (a disk
        is full, there are no descriptors left). An action that fails half-way is done again from
        its beginning, so it must do no harm twice."""
        self.to_retry.append(action)
        self._catch_up()

    def _catch_up(self) -> bool:
        """Do what is to be retried, in its order; tell whether all of it is done."""
        while self.to_retry:
            action = self.to_retry.pop(0)
            try:
                action()
            except FAILURES as error:
                self.to_retry.insert(0, action)
                self._note_failure(error)
                return False
        return True

    def _note_failure(self, error: Exception) -> None:
        self.trouble = note_failure(self.store, self.name, error, self.trouble)
        self.failed = True

    def _log(self, event: str, **fields: Any) -> None:
        self.store.log(self.name, event, **fields)

    def _set_phase(self, phase: str, why: str = "") -> None:
        """Enter a phase; starting and working are `asking` while a question is open. The next look
        is due after LOOK_S."""
        if self.questions and phase in ("starting", "working"):
            phase = "asking"
        if phase != self.phase:
            self.phase, self.since, self.phase_at = phase, time.time(), time.monotonic()
        self.why = why
        self.idle_looks = 0
        self.look_at = time.monotonic() + LOOK_S

    def delivery_open(self) -> bool:
        """Tell whether a delivery is on its way: claimed, and not confirmed by the CLI yet."""
        return self.delivery is not None and self.delivery.step != "taken"

    # ---- what the CLI says ----

    def _on_event(self, event: Event, at: float) -> None:
        """Take in what the CLI, or a look at it, said at that time (epoch seconds).

        An end is only noted as `ending`, until a second sign; while idle it is ignored. Of kinds
        that are not named here only the conversation and the transcript count; a question goes to
        _on_asked as well.
        """
        self.evidence["event"] = {"kind": event.kind, "source": event.source, "at": at}
        self._log("event", kind=event.kind, source=event.source, reason=event.reason)
        if event.conversation not in ("", self.conversation) and event.kind != "leaving":
            self.conversation = event.conversation
            if self.begun:  # a person began another one: Kimi Code 2.1.0 does not name its file
                self.transcript, self.offset, self.inode = "", 0, 0
        if event.transcript and event.transcript != self.transcript:
            self.transcript, self.offset, self.inode = event.transcript, 0, 0

        if event.kind == "submitted":
            self._on_submitted(event)
        elif event.kind == "ended":
            if self.phase == "idle" and self._awaits_background() and event.text:
                self._begin_turn()  # by itself: Qwen Code 0.24.4 has no prompt event for that
            if self.phase != "idle":
                self._note_turn(event.text)
                self.ending, self.ending_at = event, time.monotonic()
        elif event.kind in ("failed", "interrupted"):
            self._end_turn(event)

    def _note_turn(self, next_text: str = "") -> None:
        """Keep what the turn said whose end was not confirmed yet (ending), for another has come:
        it is no answer, but the task's owner is to have it. next_text: what the other one says."""
        if self.ending and not self.foreign:
            self._keep_texts([self.ending.text], next_text)

    def _keep_texts(self, texts: Iterable[str], next_text: str) -> None:
        """Add to the turns of the task what it said at earlier ends, each text once, and not what
        it said next."""
        for text in texts:
            if text.strip() not in ("", next_text.strip(), *map(str.strip, self.turns)):
                self.turns.append(text)

    def _on_submitted(self, event: Event) -> None:
        """A prompt was accepted: ours, a person's, or the CLI's own."""
        delivery, ours = self.delivery, False
        # Taken as "unknown": a look had seen this turn before its hook came.
        if delivery and (delivery.step != "taken" or delivery.exact.startswith("unknown")):
            ours = same_prompt(delivery.text, event.text)
        told = ended_work(event.text)
        foreign = told != [] and self.background.old.issuperset(told)
        late = [text for text in self.given_up if same_prompt(text, event.text)]
        if late and not ours:
            self.given_up.remove(late[0])
            foreign = True
        if foreign and self.ending:
            ending = self._whole(self.ending, event.text)
            if self.questions:  # that is no end yet: this turn may say the answer
                foreign = False
            elif ending.text:
                self._end_turn(ending)
            else:
                self.behind = ending, event.text
        elif foreign and self.phase != "idle" and not self.foreign:
            # Claude Code 2.1.332 tells it within a turn that goes on, or right behind one that was
            # interrupted, of which nothing else tells the end.
            if self.ordered:
                self._end_turn(Event("interrupted", source=event.source))
            else:
                foreign = False
        if delivery and ours:
            self._taken(first_difference(delivery.text, event.text))
        else:
            self.last_line = shorten(f"> {event.text}", 120)
        # For our prompt the transcript was marked before it was typed. A short turn may have been
        # written by now, which a mark would pass over.
        self._begin_turn(marked=ours, foreign=foreign)

    def _taken(self, exact: str) -> None:
        """Note that the CLI has taken the delivery, and take that off the books. exact: see
        Delivery; after "unknown" a second call may say better."""
        if not self.delivery:
            return
        self.delivery = self.delivery._replace(step="taken", at=time.time(), exact=exact)
        messages = self.delivery.messages
        for letter in messages:
            if letter in self.claims:
                self._insist_on(self.claims.pop(letter).told)
        self._log("taken", messages=messages, exact=exact)
        if self.task and self.task.id in messages:
            self.task_exact = exact

    def _release(self) -> None:
        """Free the locks on what is not taken yet: it stays on the books, and a later delivery
        or another process tells it."""
        for letter in list(self.claims):
            self.claims.pop(letter).release()

    def _begin_turn(self, *, marked: bool = False, foreign: bool = False) -> None:
        """Note that a turn has begun, and with it the end of every question but those of hooks.
        marked: the transcript was marked before the prompt; else it is marked here, unless a turn
        runs already. foreign: see Runner.foreign."""
        if self.phase != "working" and not marked:
            self._mark_transcript()
        self.begun, self.stuck = True, self.row.by_output
        self._note_turn()
        self.foreign = foreign
        if not foreign:
            self.interim_end, self.interrupted_at = None, 0.0
        self.ending = None
        for question in list(self.questions.values()):
            if question.where != "hook":  # a hook's lock tells when its question is over
                self._close_question(question)
        self.turn_at = time.monotonic()
        self.asked_from = "working"
        self._set_phase("working")

    # ---- what it asks ----

    def _on_asked(self, event: Event, payload: dict[str, Any]) -> None:
        """Open the question of a hook, unless cao answers it by itself.

        Either the hook waits for the answer, for as long as it holds the question's lock; or, of
        a CLI whose row asks by "keys", it has ended, and keys answer the dialog.
        """
        where, name = self.row.asks, str(payload.get("cao_question", ""))
        if where == "keys" and not name:
            name = random_letters(6)
        elif not name or self.store.is_free(self._question_path(name)):
            return  # it was withdrawn, or the CLI asks in its terminal, and the screen will show it
        else:
            where, self.look_at = "hook", 0.0
            for question in list(self.questions.values()):
                # The dialog of this question was seen before its hook came.
                if question.kind == "screen" and not question.where:
                    self._close_question(question)
            self.boss.when_free(self._question_path(name))

        kind, lines, text = "permission", 1, event.text
        options, agent = options_of(self.row, payload), agent_of(payload)
        folder = text_at(payload, "cwd")  # after a `cd`, of Claude Code 2.1.332, Codex 0.171.0
        if questions := questions_in(payload):
            kind, lines = "question", len(questions)
        elif text_at(payload, "details.type") not in _SHOWN_WHOLE:
            kind, options = "screen", ()
        elif folder not in ("", self.session.cwd):  # in front, where no asker can write
            text = f"in {one_line(folder)}: {text}"
        self.subjects[name] = dialog_subject(payload)
        question = Question(name, kind, text, options, time.time(), where, agent, lines)
        self.questions[name] = question
        self._auto_answer(question)  # before it is shown to anybody
        if name in self.questions:
            self._ask(question)

    def _question_path(self, name: str) -> str:
        return f"{self.folder}/questions/{name}"

    def _ask(self, question: Question) -> None:
        """Open a question, and notify the person."""
        self.questions[question.id] = question
        if self.phase != "asking":
            self.asked_from = self.phase
        self._log("asking", question=question.id, kind=question.kind)
        self._set_phase("asking", f"asks: {shorten(question.text, 80)}")
        about = (self.name, "asking", question.text, task_facts(self.task)["task"])
        self._insist_on(lambda: self.boss.notify(*about))

    def _close_question(self, question: Question, answer: str = "") -> None:
        """Close an open question. answer: what it was answered, in words; "": it was answered
        elsewhere, or withdrawn.

        Without an answer a hook that waits (where: "hook") is let go; callers whose hook is gone
        pass the question with where="". Whoever ordered an answer finds the outcome in `reply`.
        After the last question the phase is what it was before the first.
        """
        event, words = "answered", answer
        if not answer:
            event, words = "withdrawn", "it asks this no more: answered elsewhere, or withdrawn"
            if question.where == "hook":  # it ends without an answer
                self._insist_on(lambda: self._reply(question, {}))
        in_popup = question.id in self._unseen()
        self.questions.pop(question.id)
        order = self.orders.pop(question.id, None)
        if order:
            self.reply = {"id": order["id"], "ok": bool(answer), "text": words}
        self._log(event, question=question.id)

        if in_popup:  # the next look opens one for those that are left
            for client in list(self.popups):
                self.boss.tmux.close_popup(client)
        if not self.questions and self.phase == "asking":
            self._set_phase(self.asked_from)

    def _reply(self, question: Question, reply: dict[str, Any]) -> None:
        """Give the hook that waits with a question its answer; {} has it end without one."""
        self.store.write(f"{self._question_path(question.id)}.reply", json.dumps(reply))
        self.store.poke(self.name)

    def _unseen(self) -> list[str]:
        """Return the ids of the questions that no dialog of the CLI's shows: Claude Code 2.1.332
        shows none for a sub-agent."""
        asked_by_hook = [q for q in self.questions.values() if q.where == "hook"]
        return [q.id for q in asked_by_hook if q.agent or not self.row.shows]

    def _show_popups(self) -> None:
        """Open a popup with `cao answer` in each attached terminal that can type, where a question
        is open that no dialog of the CLI's shows. One that its person closes, or whose program has
        ended, leaves an event: it closes those questions that nobody is answering (_on_payload).
        """
        unseen = self._unseen()
        if not unseen:
            return
        argv = ["env", f"CAO_HOME={self.store.home}", *self.launch.mcp[:-1], "answer", self.name]
        closed = json.dumps({"cao": "popup_closed", "questions": unseen})

        def ask(client: str) -> None:
            by_person = self.boss.tmux.popup(client, argv)
            self.popups.discard(client)
            if by_person:
                self.store.put_event(self.folder, closed)

        for client in set(self.boss.tmux.clients(self.name)) - self.popups:
            self.popups.add(client)
            self._insist_on(partial(start_thread, partial(ask, client)))

    def _settle_questions(self) -> None:
        """Close the questions whose hook has ended, for their lock is free. A hook that took its
        answer has renamed it to .taken; any other was withdrawn."""
        for question in list(self.questions.values()):
            path = self._question_path(question.id)
            if question.where == "hook" and self.store.is_free(path):
                answer = ""
                if os.path.exists(f"{path}.taken"):
                    answer = self.orders.get(question.id, {}).get("as_text", "")
                for ending in ("", ".reply", ".taken"):
                    _unlink(path + ending)
                self._close_question(question._replace(where=""), answer)

    # ---- a turn's and a task's end ----

    def _end_turn(self, event: Event) -> None:
        """End the turn, with its questions, as event says: ended, failed or interrupted. Then
        decide what that means for the open task."""
        how = "done" if event.kind == "ended" else event.kind
        self._note_handed(done=how == "done")
        goes_on = False
        foreign, self.foreign = self.foreign, False
        if how == "done":
            event = self._whole(event)
        held = self.interim_end
        own_at = self.background.own_at
        if foreign and held:
            foreign = own_at(event).items() >= own_at(held).items()  # else what it left has ended
        if foreign and held:
            self.background.old.update(own_at(event).keys() - own_at(held).keys())
        if how == "done" and not foreign:
            self._keep_texts(event.earlier, event.text)
            goes_on = self._more_to_come(event)
        elif how != "done":
            self._transcript_event()  # for what still runs
            if self.ending:
                both = {**event.background, **self.ending.background}
                event = event._replace(background=both)

        if not foreign:
            self._note_turn(event.text)
        self.ending = None
        for question in list(self.questions.values()):
            self._close_question(question)
        if self.delivery_open() and not foreign:
            self._taken("unknown: the CLI sent no prompt event")
        self.begun = True
        self.last_line = f"({how})"
        if event.text.strip():
            self.last_line = shorten(tail_lines(event.text, 1), 120)
        self._set_phase("idle", f"turn {how}")
        self._log(
            "turn_ended",
            how=how,
            source=event.source,
            reason=event.reason,
            seconds=round(time.monotonic() - self.turn_at, 2),
        )
        ordered, self.ordered = self.ordered, ""
        refused, self.refused = self.refused, False
        behind, self.behind = self.behind, None
        if not self.task:
            left = self.background.at(event)
            self.background.old.update(left)
            if ordered:
                self._end_unwanted(left)
            return
        if foreign and not ordered and event.reason != "auth":
            if not behind:
                return
            ending = self._whole(*behind)
            if ending.text:
                self._end_turn(ending)
                return

        if how == "done" and ordered and (foreign or goes_on):  # it is no answer
            self._keep_texts([event.text] * goes_on, "")
            how = "interrupted"
        if how == "failed":
            self._fail(event)
        elif how == "interrupted" and ordered:
            self._end_task(ordered, event, source=event.source, reason="by_order")
        elif how == "interrupted" and not refused:
            self.interrupted_at = time.monotonic()
            self.evidence["interrupted"] = event.source
        elif how == "interrupted":
            pass  # by Esc, for a person's "no": the words begin the next turn
        elif goes_on:
            self._end_check()  # of an earlier turn's answer
            self.check = None
            if event.text not in self.turns[-1:]:
                self.turns.append(event.text)
            self.interim_end = event
            if work := own_at(event):
                self.why = f"it still runs {some_names([*work.values()])}"
        else:
            self._accept(event)

    def _fail(self, event: Event) -> None:
        """Fail the task, whose turn failed as event says; end the session with it where its CLI
        can do nothing more."""
        detail = event.text
        ends_session = event.reason == "auth"  # it can do nothing until a person has logged in
        if ends_session:
            detail += f"; try: {self.row.login}"
        if event.reason == "blocked":  # a hook of the user's refused the prompt
            ends_session = self.row.deaf
            if event.source == "transcript" and self.row.failure:  # Codex 0.171.0 writes no words
                detail += f": {self._shown_failure() or ''}"
                self._count_tokens()
                if self.usage and self.usage["output"]:  # nor why a model that was asked is silent
                    detail = "the turn ended without an answer"
                    event = event._replace(reason="unknown_end")
        if ends_session:  # said before the result: who gives the next task then resumes it
            self.closing = True
            self._insist_on(self._save)
        self._end_task(
            "failed",
            event,
            source=event.source,
            reason=event.reason,
            detail=detail,
            retry_at=event.retry_at,
        )
        if ends_session:
            self._finish("failed", event.reason, detail)

    def _accept(self, event: Event, checked: bool = False) -> None:
        """Take a turn's answer as the task's. An empty one fails the task, unless it is a
        program's that may print nothing. Where there is a check that was not passed yet (checked),
        this only starts it: _after_check goes on from there."""
        if not event.text.strip() and (not self.program or self.program.settings.get("answer")):
            words = "the turn ended without an answer"
            if self.program:
                words = "nothing that it printed matches `answer` in its profile"
            self._end_task("failed", event, source=event.source, reason="unknown_end", detail=words)
        elif self.task and self.task.check and not checked:
            self._start_check(event)
        else:
            self._end_task("done", event, answer=event.text, source=event.source)

    def _whole(self, event: Event, next_prompt: str = "") -> Event:
        """Return a turn's end with its answer as the transcript has it; note what still runs.
        next_prompt: see _transcript_event.

        Claude Code 2.1.330 trims the answer in its hook, Kimi Code 2.1.0 and Gemini CLI 0.61.0 give
        none. Where the two differ by more than blanks, or the transcript has none, the answer stays
        as it is.
        """
        whole = self._transcript_event(next_prompt)
        if not whole or whole.kind != "ended":
            return event
        event = event._replace(earlier=whole.earlier, reason=whole.reason)
        if whole.text and not event.text:
            return event._replace(text=whole.text, source=f"{event.source}+transcript")
        if whole.text.strip() == event.text.strip():
            return event._replace(text=whole.text)
        return event

    def _more_to_come(self, event: Event) -> bool:
        """Tell whether event, a turn's end, is not the task's: the agent was not told all results
        of its own workers, or a message waits from the task's sender, or from cao (a failed check,
        a person's "no"), or it left work running in the background (hold_s), not an earlier
        task's."""
        now, limit_s = time.monotonic(), hold_s(self.background.own_at(event))
        # All that it left has ended, but the agent may not have been told.
        has_ended = not limit_s and self.background.own_ended()
        if limit_s <= SHELL_S and self._left_s() < 2 * REPORT_S:
            limit_s, has_ended = 0.0, False  # no shell makes a timeout of an answer
        if now - self.ending_at < limit_s:
            self.worked_at = now
        elif has_ended:
            self.worked_at = max(self.worked_at, self.ending_at)
        if now - self.worked_at < REPORT_S:  # the turn that this starts may not be seen yet
            return True
        if self.program:  # its turns have nothing to do with each other
            return False
        if not self.stuck and self.store.owed(self.name):
            return True
        for message in self.store.waiting(self.name):
            if message.kind == "message" and self._is_of_task(message):
                return True
        return False

    def _awaits_background(self) -> bool:
        """Tell whether the open task's turn has ended and had left work running, which may start
        another turn."""
        if not self.interim_end:
            return False
        if self.background.at(self.interim_end):
            return True
        return time.monotonic() - self.worked_at < REPORT_S

    def _is_of_task(self, message: Message) -> bool:
        """Tell whether a message belongs to the open task: from its sender, or from cao."""
        return self.task is not None and message.sender in (self.task.sender, "cao")

    def _end_task(self, outcome: str, end: Event | None = None, **fields: Any) -> None:
        """Close the open task, if there is one: end its check, write its one result, wake its
        owner, notify the person. end: of its last turn, where it is not the one that still waits.
        fields: more of the Result. The session goes on."""
        task = self.task
        if not task:
            return
        self._count_tokens()
        if outcome != "done":
            self._note_turn(fields.get("answer", ""))
        notes = []
        if self.task_exact.startswith("differs"):
            notes.append(f"reached the CLI changed: {self.task_exact}")
        if outcome == "done" and task.max_tokens and self.usage:
            used = self.usage["input"] + self.usage["output"]
            if used > task.max_tokens:
                passed = f"used {used:,} tokens, more than max_tokens {task.max_tokens:,}"
                notes.append(f"{passed}: it was done before that was counted")
        if outcome == "done" and end and end.reason == "cut_off":
            notes.append("cut off: the model had reached its limit of output tokens")
        notes += [f"taken away by a supervisor's grant: {w}" for w in self.launch.profile.clipped]
        try:
            if self.session.worktree:
                fields["worktree"] = worktree_facts(self.store, self.session)
            elif may_write(self.launch.profile) and (
                others := self.boss.writers_beside(self.session, self.began)
            ):
                notes.append(
                    f"written to side by side with {', '.join(others)}, and no worktree between"
                    f" them: each may have undone what another did in {self.session.cwd}"
                )
        except FAILURES as error:
            words = getattr(error, "what", error)
            notes.append(f"the worktree could not be read: {words}")
        if self.program and self.program.note:
            notes.append(self.program.note)
        end = end or self.ending or self.interim_end
        left = self.background.at(end or Event("interrupted"))
        over = end or self.phase == "idle"  # a turn that runs is interrupted first
        unwanted = over and outcome != "done" and has_agents(left) and not self.closing
        if left:
            names = some_names([*left.values()])
            words = f"left running in the background: {names}; what the agent says of that later"
            words += " is not in here"
            if unwanted:
                words = f"still ran in the background, and was ended: {names}"
            notes.append(words)
        self.background.old.update(left)
        self._insist_on(self._forget_own_messages)

        self._end_check()
        if self.check:
            keys = ("command", "exit_status", "tail", "tries")
            fields["check"] = {k: self.check[k] for k in keys if k in self.check}
        if outcome != "done":
            fields["screen"] = tail_lines(self._screen(), PANE_LINES)
        if outcome == "interrupted":
            fields.setdefault("source", self.evidence.get("interrupted", ""))
        answer = fields.get("answer", "")
        result = Result(
            task.task,
            self.name,
            outcome,
            turns=tuple(self.turns),
            exact=self.task_exact,
            seconds=round(seconds_since(task), 3),
            bytes=len(answer.encode(errors="surrogatepass")),
            notes=tuple(notes),
            ended_at=time.time(),
            exit_status=self.exit_status,
            usage=self.usage,
            background=tuple(left.values()),
            **fields,
        )
        self.task = self.check = self.interim_end = None
        self.task_exact = ""
        self.interrupted_at = 0.0
        self._insist_on(lambda: self.boss.conclude(result, task.sender))
        if task.id in self.claims:  # the task ended before the CLI took it
            self._insist_on(self.claims.pop(task.id).told)
        self._log(
            "result",
            task=task.task,
            outcome=outcome,
            reason=result.reason,
            source=result.source,
            bytes=result.bytes,
        )
        if unwanted:
            self._end_unwanted(left)

    def _end_unwanted(self, left: dict[str, str]) -> None:
        """Start the CLI anew, in its conversation, where sub-agents are left (as Event.background)
        of what has ended without an answer: no key interrupts them, and each of them would begin
        a turn that nobody wants."""
        if has_agents(left) and not self.leaving:
            self.leaving = True
            self._insist_on(lambda: self._start_anew([*left.values()]))

    def _start_anew(self, ended: Sequence[str]) -> None:
        """End the CLI, and with it what it runs in the background (ended), and have run_session
        make another Runner, which goes on where this one was."""
        self._set_phase("starting", "its CLI starts anew")
        self._end_cli(0.5)
        self._log("restarted", ended=ended)
        self._release()
        self.asked_from = "starting"
        for question in list(self.questions.values()):
            self._close_question(question._replace(where=""))  # its hook is gone
        launch = self.launch._replace(resume=self.conversation)
        facts = {**launch._asdict(), "profile": launch.profile._asdict()}
        self.store.write(self.store.launch_file(self.name, "launch.json"), dump(facts))
        _unlink(self.store.launch_file(self.name, "tools-listed"))  # it speaks of the run before
        try:  # the dead program may have left our terminal in its other screen, in modes of its own
            os.write(1, b"\x1b[?1049l\x1bc")
        except OSError:
            pass  # the pane is gone, as the next Runner finds
        self.over = self.again = True

    def _start_check(self, event: Event) -> None:
        """Run the task's acceptance check in the worker's directory, beside this loop.

        The check finds the answer, byte for byte, in the file CAO_ANSWER: that of this try, for
        one check runs at a time. A check that cannot be started, whose file cannot be
        written or that takes longer than TASK_TIMEOUT_S has failed with 127. It is over once it
        has an exit_status (_after_check).
        """
        import shlex

        assert self.task is not None
        self._end_check()
        command, tries = self.task.check, self.tries + 1
        check: dict[str, Any] = {"command": command, "tries": tries, "answer": event}
        self.check = check
        self.turns.append(event.text)  # taken back once the check has accepted it
        env = {**self.env, "CAO_ANSWER": self.store.launch_file(self.name, "answer")}

        def note_group(pid: int) -> None:
            check["group"] = (pid, start_mark(pid))
            if self.check is not check:  # its task ended before the check began
                end_group(*check["group"])

        def work() -> None:
            try:
                ran = run(
                    shlex.split(command),
                    TASK_TIMEOUT_S,
                    cwd=self.session.cwd,
                    env=env,
                    started=note_group,
                    tail_bytes=CHECK_TAIL_BYTES,
                )
                check.update(tail=tail_lines(ran.out, 60), exit_status=ran.status)
            except (CaoError, OSError, ValueError) as error:  # ValueError: an older cao let it pass
                check.update(tail=str(error), exit_status=127)
            self.wake.poke()

        try:
            self.store.write(env["CAO_ANSWER"], event.text)
        except CaoError as error:
            check.update(tail=str(error), exit_status=127)
            return
        self._insist_on(lambda: start_thread(work))

    def _end_check(self) -> None:
        """End the processes of the check that runs, if one does: nobody needs what it says."""
        if self.check and "exit_status" not in self.check and "group" in self.check:
            end_group(*self.check["group"])

    def _after_check(self) -> None:
        """Where a check has ended, accept the answer or, after a failure, give the check's output
        back to the worker, or fail the task where it has no try left."""
        check, task = self.check, self.task
        if not check or not task or "exit_status" not in check:
            return
        if self.phase != "idle" or self.ending:  # another turn has begun, and its end counts
            return
        event = check["answer"]
        if check["exit_status"] == 0 and self._more_to_come(event):
            self.interim_end, self.check = event, None
            return
        self.tries += 1
        if check["exit_status"] == 0:
            self.turns.pop()
            self._accept(event, checked=True)
        elif self.tries > task.check_retries or self.program:  # a program cannot read the output
            self.turns.pop()
            self._end_task(
                "failed",
                event,
                answer=event.text,
                source=event.source,
                reason="check_failed",
                detail=f"`{check['command']}` ended with {check['exit_status']}",
            )
        else:
            self.check = None
            note = self._own_message(
                "check",
                f"The check `{check['command']}` ended with exit status {check['exit_status']}."
                f" Mend what it found, then answer again. {render_output(check['tail'])}",
            )
            # A message from cao itself fits into a full inbox too.
            self._insist_on(lambda: self.store.put_once(note))

    def _forget_own_messages(self) -> None:
        """Take off the books what cao had to say to the agent of the task that has ended."""
        for message in self.store.waiting(self.name):
            if message.kind == "message" and message.sender == "cao":
                self.store.discharge(self.name, message.id)

    def _own_message(self, what: str, text: str) -> Message:
        """Return a message from cao to the agent."""
        name = self.store.new_id(self.name, what)
        return Message(name, "message", "cao", self.name, quote_heads(text), time.time())

    def _finish(self, outcome: str, reason: str, detail: str) -> None:
        """End the session; only the first call counts. What the machine refuses of the end is
        done in a later round."""
        if not self.leaving:
            self.leaving = True
            self._insist_on(lambda: self._leave(outcome, reason, detail))

    def _leave(self, outcome: str, reason: str, detail: str) -> None:
        """End the session: keep the last screen, give every open task its result, report the
        messages, end the check, the CLI and the workers, write the last state. A failure on the
        way has all of it done again."""
        # Whoever stops us kills the pane where we do not obey in time (Orchestrator.end).
        orders = [payload.get("cao") for _, _, payload in self.store.events(self.name)]
        if outcome == "lost" and "stop" in orders:
            outcome, reason, detail = "stopped", "stopped", "the session was stopped"
        self._note_handed()
        self._note_turn()
        screen = self._screen(first="-200")
        self._count_tokens()
        base = Result(
            "",
            self.name,
            outcome,
            turns=tuple(self.turns),
            exit_status=self.exit_status,
            exact=self.task_exact,
            screen=tail_lines(screen, PANE_LINES),
            usage=self.usage,
        )
        try:
            self.store.write(f"{self.folder}/screen.txt", screen)
        except CaoError as error:
            self._note_failure(error)  # nothing depends on it
        self._release()
        facts = self._facts()
        self.boss.answer_all(self.name, facts, outcome, reason, detail, base)
        self._end_check()

        grace_s = 0.5
        if outcome == "stopped":
            grace_s = 2.0
            if self.program and not self._has_ended() and self.program.type_exit():
                look_until(self._has_ended, 50)  # it may save its work
        self._end_cli(grace_s)
        self.boss.end_workers(self.name)  # the CLI is gone: it starts no other

        self._log("ended", outcome=outcome, reason=reason, exit_status=self.exit_status)
        self.task = None
        for question in list(self.questions.values()):
            self._close_question(question._replace(where=""))  # its hook is gone
        self._set_phase("ended", detail)
        self.closing = False
        self._save()
        self.boss.answer_all(self.name, facts, outcome, reason, detail, base)  # came meanwhile
        self.store.set_live(self.name, False)
        self.store.poke_up(self.name)
        self.over = True

    def _end_cli(self, grace_s: float) -> None:
        """End the CLI's processes, if it was started: by SIGTERM, after grace_s by SIGKILL."""
        if not self.child:
            return
        if not self.group:  # it was started in this round
            self.group = note_process(self.child)
        if self.program and not self._has_ended():
            os.kill(self.child, signal.SIGHUP)  # a shell ends its jobs by this
            look_until(self._has_ended, 25)
        end_program(self.group, grace_s)
        self._has_ended(0)

    def _has_ended(self, flags: int = os.WNOHANG | os.WUNTRACED) -> bool:
        """Tell whether the CLI has ended, and note its exit status; False before it was started.
        A CLI that Ctrl-Z stopped is continued at once: no shell is there to bring it back.
        flags: of waitpid; 0 waits for the end."""
        while self.child and self.exit_status is None:
            pid, status = os.waitpid(self.child, flags)
            if not pid:
                break
            if os.WIFSTOPPED(status):
                os.killpg(self.child, signal.SIGCONT)
            else:
                self.exit_status = os.waitstatus_to_exitcode(status)
        return self.exit_status is not None

    # ---- looking ----

    def _find_transcript(self) -> str:
        """Return the path of the CLI's transcript, "" while it is not known. Where no event named
        it, it is looked for by the row's glob."""
        if not self.transcript and self.row.transcript:
            import glob

            self.transcript = next(glob.iglob(self._own_file(self.row.transcript)), "")
        return self.transcript

    def _count_tokens(self) -> None:
        """Note in `usage` the tokens that the open task has used so far, where the CLI tells."""
        if self.task and self.meter:
            self.meter.read(self._find_transcript(), self.launch.folder, self.conversation)
            self.usage = self.meter.used_since(utc_stamp(self.began))

    def _transcript_event(self, next_prompt: str = "") -> Event | None:
        """Return how the turn that runs has ended, by what the transcript has since its mark; None
        where it does not say. next_prompt: what it has from this prompt on is of another turn.
        Raises OSError where the machine refuses to read it now."""
        if not self._find_transcript():
            return None
        try:
            with open(self.transcript, "rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                # Another file: at Esc, Copilot 1.0.102 writes it anew, without the prompt.
                if self.inode not in (0, inode):
                    self.background.known = {}  # its sub-agents have ended, too
                    return Event("interrupted", source="transcript")
                self.inode = inode
                file.seek(self.offset)
                text = file.read().decode(errors="replace")
        except OSError as error:
            if may_pass(self.transcript, error):
                raise
            return None  # the CLI makes the file with its first words
        lines = text.split("\n")
        self.background.read(lines, new=self.task is not None and not self.delivery_open())
        if next_prompt:
            lines = text.partition(json.dumps(next_prompt, ensure_ascii=False))[0].split("\n")
        return self.row.read_transcript(lines)

    def _written(self) -> str:
        """Return what the transcript has since its mark; "" where it cannot be read now."""
        try:
            with open(self.transcript, "rb") as file:
                file.seek(self.offset)
                return file.read().decode(errors="replace")
        except OSError:
            return ""

    def _own_file(self, form: str) -> str:
        """Return the path, or glob, of a file that the CLI writes. form: of its row, with {home},
        {folder}, {conversation} and {pid}."""
        home = self.row.home_in({**self.env, **self.row.start(self.launch).env})
        known = {"folder": self.launch.folder, "pid": self.child}
        return form.format(home=home, conversation=self.conversation, **known)

    def _mark_transcript(self) -> None:
        """Note that all the transcript has so far is of earlier turns. Before the first turn the
        mark that _begin made stays, and so does one after which work began that still runs."""
        if self.begun and self._find_transcript() and not self._awaits_background():
            mark = file_mark(self.transcript)
            self._transcript_event()  # for what runs by now
            self.offset, self.inode = mark
            self.background.mark()

    def _screen(self, *, ansi: bool = False, first: str = "") -> str:
        """Return the pane's screen, "" where it is gone; first: as Tmux.capture has it."""
        try:
            return self.boss.tmux.capture(self.pane, ansi=ansi, first=first)
        except CaoError:
            return ""

    def _see(self) -> tuple[str, str | None]:
        """Return the text on the screen, and what stands in the input line: None where that line
        is not on the screen, "" for a CLI of which nobody knows what its input line looks like."""
        screen = self._screen(ansi=True)
        text = strip_ansi(screen)
        if not self.row.composer:
            return text, ""
        return text, parse_draft(screen, self.row.composer)

    def _keys(self, *names: str) -> None:
        """Press keys in the pane, by tmux's names."""
        self.boss.tmux.keys(self.pane, *names)

    def _status(self) -> Look:
        """Return the state that the CLI's own state file, or its pane's title, says; `unknown`
        for a CLI that has neither. `cao why` shows the last one."""
        if self.row.status:
            look = read_status_json(self.store.read_text(self._own_file(self.row.status)))
        elif self.row.titles:
            look = read_title(self.row.titles, self.boss.tmux.ask(self.pane, "#{pane_title}"))
        else:
            return Look("unknown", "none", "this CLI keeps no state file")
        self.evidence["look"] = look._asdict()
        return look

    def _unheard(self) -> str:
        """Return words to add to an error: that none of the CLI's hooks has ever come. "" where
        one has, or the program has none."""
        if self.heard or self.program:
            return ""
        return "; none of its hooks came: are they switched off?"

    def _draft(self) -> str | None:
        """Return what stands in the input line, as `_see` does; of a program only our own text."""
        if self.program:
            if not self.program.shows(self.pasted):
                return ""
            return self.pasted
        return self._see()[1]

    def _shows_input(self) -> bool:
        """Tell whether the input line is on the screen, even where our own text in it hides that:
        the text may look as a dialog does, or its beginning may have left the screen.

        So the screen is read a second time without the lines that are ours. Last, our text's end
        without its beginning is an input line that is too long for the screen.
        """
        if not self.row.composer:
            return True
        screen, ours = self._screen(ansi=True), "".join(self.last_sent.split())
        shown, others = "", []
        for line in screen.split("\n"):
            letters = "".join(strip_ansi(line).split())
            shown += letters
            if not letters or letters not in ours:
                others.append(line)
        for text in (screen, "\n".join(others)):
            if parse_draft(text, self.row.composer) is not None:
                return True
        if not ours or ours[:40] in shown:
            return False
        return ours[-40:] in shown

    def _swallowed(self) -> bool:
        """Wait until the input line shows what was typed; tell whether that got lost: the line is
        empty now, and was not all the time.

        Gemini CLI 0.61.0 takes the line away as it loads a conversation, and brings it back
        empty. A line that only stays empty belongs to a CLI that has not read its input yet.
        """
        drafts: list[str | None] = []

        def look() -> str | None:
            drafts.append(self._draft())
            return drafts[-1]

        def is_back() -> bool:
            if look() is None:
                return self._shows_input()
            return True

        if self.row.composer and look_until(look, 150) and not self.row.settle_s:
            self.unread = False
            return False
        time.sleep(self.row.settle_s)
        if self.row.composer and look() is None:
            look_until(is_back, 500)
        self.unread = set(drafts) == {""}
        return drafts[-1:] == [""] and not self.unread

    def _advance_ending(self, now: float) -> None:
        """End the turn where `ending`, its hook's word, has a second sign: a Stop hook of the
        user's may have kept the turn going."""
        event = self.ending
        if not event or self.questions:
            return
        look = self._status()
        if look.state in ("busy", "asking"):
            return
        written = self._transcript_event()
        if written and written.kind == "resumed":
            self.ending = None  # the turn's next end counts
            return
        if written and written.kind != "ended" and not event.text:
            self._end_turn(written)  # Gemini CLI's hook says no more than: ended
        elif self._has_second_sign(event, look, written, now - self.ending_at):
            if not written and self._was_said_before(event.text):
                event = event._replace(text="")
            self._end_turn(event)

    def _was_said_before(self, answer: str) -> bool:
        """Tell whether an answer is that of an earlier turn: in a turn without one the hook of
        Claude Code 2.1.332 has the one before, which its transcript has not behind the mark. For
        an end that is believed by time alone: the transcript may be written late."""
        written = self._written()
        if not (self.row.status and self.row.entry_says and written):
            return False
        line = json.dumps(answer.strip().partition("\n")[0], ensure_ascii=False)[1:-1]
        return not re.search(rf'"text":"(?:\\[nt]|\s)*{re.escape(line)}', written)

    def _has_second_sign(
        self, event: Event, look: Look, written: Event | None, waited_s: float
    ) -> bool:
        """Tell whether a turn's end is confirmed: by the transcript (written), by look, or by the
        time since its event. The table at the head of this room says when each is enough."""
        if written and written.kind == "ended" and not written.blocking:
            return True
        if look.state == "idle" and not self.transcript:
            return True
        # The transcript has the tokens, too. On a busy machine Qwen Code 0.24.4 wrote it more than
        # SETTLE_S after its hook.
        settle_s = UNSEEN_S
        if event.text and not (self.meter and self.transcript):
            settle_s = SETTLE_S
        if not event.text and self.row.entry_says and self.transcript:
            settle_s = STILL_S  # it writes the answer: Kimi Code 2.1.0, behind a hook that blocked
        if waited_s < settle_s:
            return False
        # A Stop hook of the user's may still be at work, and block the turn's end (Codex 0.171.0).
        # Kimi Code 2.1.0 does not mark the Stop of a sub-agent as such, and fires no second Stop
        # where a user's hook has blocked the turn's end.
        if self.row.entry_says:  # the transcript will tell
            return not self._is_at_work(NEVER_STARTED_S)
        return not self._is_at_work(STILL_S)

    def _is_at_work(self, limit_s: float) -> bool:
        """Tell whether the screen shows that the CLI works. What has stood still for limit_s is no
        sign of that: the model may have written those words."""
        screen = self._screen()
        if screen != self.last_screen:
            self.last_screen, self.last_screen_at = screen, time.monotonic()
        still_s = time.monotonic() - self.last_screen_at
        return still_s < limit_s and self._shows_work(screen)

    def _look(self, now: float) -> None:
        """Look at what gives no event, and count tokens. While a turn runs this is done every
        LOOK_S; of a program, and of a CLI that starts, in each round."""
        self.look_at = now + LOOK_S
        self._count_tokens()
        if self.program:
            self._look_at_output(self.program, now)
        elif self.phase == "starting":
            self._look_at_start(now)
        elif self.phase == "working" and not self.ending:
            self._look_at_turn(now)
        elif self.phase == "asking":
            self._look_at_questions()

    def _look_at_start(self, now: float) -> None:
        """See whether a CLI that starts is ready: then it is idle. Or else a turn began unheard,
        a dialog of the first run asks, or nobody is logged in, which ends the session."""
        look, waited_s = self._status(), now - self.phase_at
        has_prompt = self.delivery_open()  # the first task was on its command line
        if has_prompt and waited_s > SUBMIT_S and self._began_unheard(look):
            return
        if has_prompt and waited_s < 1.0:
            return  # its events will tell
        if look.state == "idle" and not self.row.titles and not has_prompt:
            self._set_phase("idle", "ready")
            return

        text, draft = self._see()
        if self.row.logged_out:
            out = re.search(self.row.logged_out, text)
            if out and out[0].strip() not in self.last_sent:
                self._finish("failed", "auth", f"not logged in; try: {self.row.login}")
                return
        if self._look_for_dialog(now):
            return

        if has_prompt or not self.row.composer or draft is None:
            return
        if look.state in ("busy", "asking"):
            return
        # A title says idle over a dialog too, and a second before the CLI takes a paste. A hook
        # tells more, and is awaited for a while (none comes where a policy switches them off).
        if look.state == "idle" and not self.heard and waited_s <= 3 * STARTING_S:
            return
        # Qwen Code connects MCP servers beside its first turn, which then has no tool of ours.
        listed = self.store.launch_file(self.name, "tools-listed")
        if self.row.mcp and waited_s <= TOOLS_S and not os.path.exists(listed):
            return
        self._set_phase("idle", "its input line is drawn")

    def _began_unheard(self, look: Look) -> bool:
        """Tell whether the delivery began a turn of which no prompt event came (look is busy, or
        the transcript has an end); if so, note both as taken and begun. A managed policy may
        switch our hooks off. Where hooks do come, a turn after the first is theirs to tell,
        unless look is busy."""
        if look.state != "busy":
            if self.heard and self.begun:
                return False
            if not self._transcript_event():
                return False
        if self._hook_under_way():
            return False
        self._log("hook_missed", hook="UserPromptSubmit")
        self._taken("unknown: the CLI sent no prompt event")
        self._begin_turn(marked=True)
        return True

    def _look_at_turn(self, now: float) -> None:
        """Find what no hook tells of a turn that runs: a dialog, or its end (Esc, an API failure,
        a lost hook). A hook that is still to come goes first."""
        self._note_handed()
        look = self._status()
        if self._look_for_dialog(now, look.state):
            return
        if look.state in ("busy", "asking"):  # asking: its event, or its dialog, is on the way
            self.idle_looks = 0
            return
        tells_state = self.row.tells_state()
        if tells_state and look.state != "idle":
            return
        if look.state == "idle":
            self.idle_looks += 1
        if self.idle_looks >= 2 and self._hook_under_way():
            return  # what the hook says is better than what the look saw

        event = self._transcript_event()
        if event and event.blocking:  # a hook of the user's would have the turn go on
            return
        # Its hook may be on the way: believed at the second look that is idle or, for a CLI that
        # does not tell its state, at the third that sees this.
        if event and self.idle_looks < 2 and event.reason != "blocked":
            if not tells_state:
                self.idle_looks += 1
        elif event:
            if event.kind == "ended":
                self._log("hook_missed", hook="Stop")
            self._on_event(event, time.time())
        elif self.idle_looks >= 2:
            self._on_event(self._unreported_end(look), time.time())
        elif not self.transcript:  # the last resort: the screen's own words
            words = self._shown_failure()
            if words and not self._shows_work(self._screen()) and now - self.turn_at > LOOK_S:
                failed = Event("failed", words, classify_failure(words), "screen")
                self._on_event(failed, time.time())

    def _unreported_end(self, look: Look) -> Event:
        """Return how a turn ended of which neither a hook nor the transcript tells the end.

        It failed where the screen shows what a hook of the user's said (Qwen Code 0.24.4). It was
        interrupted where the screen shows that a person took the prompt back (Claude Code 2.1.332
        puts it into the input line again), or where cao pressed the key. Else it failed as
        unknown_end: it never counts as done.
        """
        words = self._shown_failure()
        if words:
            return Event("failed", f"a hook of yours refused it: {words}", "blocked", "screen")
        if words == "" or self.ordered or self._draft():
            return Event("interrupted", source="screen")
        words = "it is idle, and nothing says how the turn ended"
        return Event("failed", words, "unknown_end", look.source)

    def _shows_work(self, screen: str) -> bool:
        if not self.row.busy:
            return False
        return re.search(self.row.busy, screen) is not None

    def _shown_failure(self) -> str | None:
        """Return the last words on the screen about a turn that failed or was refused; "" where
        it says that a person took the prompt back, None where it says nothing of the kind."""
        shown: list[str | None] = [None]
        if self.row.failure:
            shown += re.findall(self.row.failure, self._screen(), re.M)
        return shown[-1]

    def _look_for_dialog(self, now: float, state: str = "") -> bool:
        """Open a question for a dialog of which no hook tells; tell whether that was done, or the
        session was ended because it asks for a login.

        A dialog is a screen without an input line on which nothing has moved for some seconds,
        but a clock or a spinner: so it takes several calls to find one. state: what the CLI says
        of itself. Beside that this notes in `why` which attempt a failed request is at.
        """
        # A state file knows of a dialog: while it says busy, the screen only tells of retries.
        due = self.still[0] or now - self.still[1] >= 3 * SCREEN_S
        if state == "busy" and self.row.status and not due:
            return False
        text, draft = self._see()
        picture = _MOVING.sub("", text)
        if self.row.retries and self.phase == "working":
            self.why = ""
            for attempt in re.findall(self.row.retries, text, re.M):
                self.why = f"retrying, attempt {attempt}"
        # A title may go on saying busy over a dialog: Gemini CLI 0.61.0 asks after a 500 whether to
        # try again. A spinner may stay too: pi 0.73.1 and Kimi Code 2.1.0 show one above a dialog.
        # While they work, all CLIs show an input line.
        if self.row.titles:
            state = ""
        # A busy machine takes long to draw the first screen, step by step.
        wait_s, trust_words = 3 * SCREEN_S, self.row.trusts[0]
        if self.begun or (trust_words and trust_words in text):
            wait_s = SCREEN_S

        # A dialog has words. OpenCode 1.18.33 may show next to nothing for seconds.
        if draft is not None or state == "busy" or not re.search(r"[^\W\d_]", text):
            self.still = ("", now)
        elif picture != self.still[0]:
            self.still = (picture, now)
        elif now - self.still[1] >= wait_s and not self._hook_under_way():
            if self.phase == "starting" and re.search(r"(?i)\b(sign in|log ?in)\b", text):
                self._finish("failed", "auth", f"not logged in; try: {self.row.login}")
                return True
            lines = [line.rstrip() for line in text.splitlines() if re.search(r"[^\s─-▟]", line)]
            shown = tail_lines("\n".join(lines), 30)
            self._ask(Question(random_letters(6), "screen", shown, (), time.time()))
            return True
        return False

    def _hook_under_way(self) -> bool:
        """Tell whether a hook has to say what was not read yet: it still runs, or has just left
        its event. On a busy machine a dialog is drawn, and even a turn over, seconds before."""
        if self._hook_runs():
            return True
        return self.store.events(self.name) != []  # read last: a hook that has ended left its event

    def _hook_runs(self) -> bool:
        """Tell whether a hook of this session's runs."""
        # Only at a line's end: Codex has its hooks on its own command line.
        running = rf"(?m)\bhook\W+{re.escape(self.folder)}\W*$"
        return bool(re.search(running, command_lines()))

    def _look_at_questions(self) -> None:
        """Close the questions that were answered at the CLI's own dialog, for it is gone; show
        popups for those that have none. A dialog that was never seen may still be drawn: its
        question gets UNSEEN_LOOKS looks without one. After it was seen, one look without it is
        enough. What a dialog without a hook asks is over once the screen has changed, too."""
        self._show_popups()
        look = self._status()
        text, draft = self._see()
        dialog = draft is None
        if look.state != "unknown":  # Kimi Code 2.1.0 shows a sub-agent's spinner above its dialog
            dialog = look.state == "asking"
        moved, unseen = _MOVING.sub("", text) != self.still[0], self._unseen()
        for question in list(self.questions.values()):
            # The hook that takes an answer ends the dialog: that the answer got there is for
            # _settle_questions to tell, not for this.
            if question.id in unseen or question.id in self.orders:
                continue
            # Looks are counted, not seconds: a machine that stood still has drawn nothing.
            looks = UNSEEN_LOOKS
            if not dialog:
                looks = self.looks.get(question.id, 0) + 1
            self.looks[question.id] = looks
            found = question.kind == "screen" and not question.where
            if looks > UNSEEN_LOOKS or (found and moved):
                self._close_question(question)

    def _may_close(self) -> bool:
        """Tell whether the session has nothing to do and nothing to come, so that it may end:
        for it was idle for long, or for another to have its slot."""
        if self.phase != "idle" or self.session.keep or self.task or self.delivery_open():
            return False
        # Results that it does not take (`stuck`) are no letters, and do not keep it open.
        return not self.store.running(self.name) and not self._letters()

    def _close_if_idle(self, now: float, asked: bool = False) -> None:
        """End the session if it may close and has been idle for idle_close_s. asked: another waits
        for its slot, and it need not have been idle so long.

        The caller who gives a task puts it into the inbox first, then reads `closing`. The runner
        sets `closing` first, then reads the inbox. So one of the two always sees the other."""
        if not asked and now - self.phase_at < self.session.idle_close_s:
            return
        if self._may_close():
            self.closing = True
            try:
                self._save()
                if self._may_close():
                    self._finish("stopped", "idle", "it had been idle")
            finally:
                self.closing = False

    def _is_paused(self) -> bool:
        """Tell whether the open task's time stands still: while its CLI starts or asks, after a
        person's Esc, and while a worker below asks."""
        if self.phase in ("starting", "asking") or self.interrupted_at:
            return True
        if not self.task:
            return False
        workers = {self.store.session_of(task) for task in self.store.running(self.name)}
        return bool(workers and self.boss.questions(workers))

    def _left_s(self) -> float:
        """Return the seconds that the open task has left, a large number where none is open or it
        is paused. The clock stands still while the machine sleeps."""
        if not self.task or self.paused:
            return 1e9
        return self.task.timeout_s - self.spent_s

    def _patience(self) -> float:
        """Return for how many seconds the runner may sleep, unless something wakes it: until the
        next look where it has to look, else until something is due by the clock."""
        now = time.monotonic()
        if self.failed:
            return LOOK_S / 4
        if self.ending and now - self.ending_at < UNSEEN_S:
            return max(0.02, (now - self.ending_at) / 20)
        if self.program and (settles_s := self.program.settles_in(now)) is not None:
            return settles_s
        if self.held_back:
            return rare_look_s(self.held_at)
        if self.phase == "starting":
            return rare_look_s(self.phase_at)
        if self.phase in ("working", "asking") or self.check or self.delivery_open():
            return LOOK_S
        if self._awaits_background() or (self.interim_end and now - self.worked_at < 2 * REPORT_S):
            return LOOK_S  # longer than that method says, for none tells when it is over
        dues = [now + 86400.0, now + self._left_s()]
        if self._may_close():
            dues.append(self.phase_at + self.session.idle_close_s)
        if self.interrupted_at:
            dues.append(self.interrupted_at + self.session.interrupted_s)
        return max(0.01, min(dues) - now)

    def _look_at_output(self, program: ScreenProgram, now: float) -> None:
        """Read the screen of a program that gives no events: open or close its question, note
        that it is ready for a first task, or end its turn with what was printed. What it prints
        after its turn was interrupted belongs to nobody."""
        look = program.look(now)
        self.evidence["look"] = look._asdict()
        for question in list(self.questions.values()):
            if not program.asks(question.text):
                self._close_question(question)
        if look.state == "asking" and program.settled and not self.questions:
            name = random_letters(6)  # the same words again are another question
            asked = program.open_question()
            self._ask(Question(name, "question", asked, (), time.time(), "typed"))
        if not program.is_ready():
            return
        if self.phase == "starting":
            self._set_phase("idle", look.why)
        elif program.at_work:
            if self.pasted:  # tmux pressed Enter, and could not say so
                self._on_entered()
            answer = program.answer()
            if answer is not None and self.phase == "working":
                self._end_turn(Event("ended", answer, source="screen"))

    # ---- life ----

    def run(self, before: Runner | None = None) -> int:
        """Look after the session until it has ended; return the CLI's exit status (-9: killed by
        signal 9; 0 where it never ran). before: the Runner that this one takes the place of."""
        launched = self.store.load_state(self.name)
        typed = launched.get("delivering") or ()
        if self.launch.resume:  # what that has by now is of earlier tasks (_begin)
            self.transcript = str(launched.get("transcript") or "")
        self.typed_before = [task for task in self.store.owed(self.name) if task in typed]
        self._save()  # from here on a free lock means that we are dead
        for entry, _, payload in self.store.events(self.name):
            if "cao" not in payload:  # of a CLI that has ended
                self.store.drop_events(self.name, [entry])
        woken = hear_signals(self._on_signal)
        if before:
            self.signal = self.signal or before.signal
        self.wake.listen(self.name)
        while self._round():
            self._wait(woken)
        return self.exit_status or 0

    def _keep_lock(self) -> None:
        """Take the session's lock again where somebody has put another file in its place."""
        path = f"{self.folder}/lock"
        if file_mark(path)[1] != os.fstat(self.lock).st_ino:
            lock = self.store.lock_session(self.name)
            if lock is not None:
                os.close(self.lock)
                self.lock = lock

    def _wait(self, woken: int) -> None:
        """Wait until something happens or is due; return at once where the session is over or a
        signal came."""
        # Each tmux command of this round ended with a signal: none is a reason for another round.
        drain_pipe(woken)
        try:
            self._reap()
            patience_s = self._patience()
        except FAILURES as error:
            self._note_failure(error)
            patience_s = LOOK_S / 4
        if self.over:
            return
        if self.signal and not self.leaving:
            return
        ready = readable([self.wake.fd, woken], patience_s)
        if self.program and ready == [self.wake.fd]:  # let output gather since the last look
            rest_s = min(0.3, rare_look_s(self.phase_at))
            readable([woken], max(0.0, self.look_at - LOOK_S + rest_s - time.monotonic()))

    def _on_signal(self, number: int, _frame: Any) -> None:
        if number != signal.SIGCHLD:
            self.signal = number

    def _begin(self) -> None:
        """Start the CLI, with the first task on its command line where it takes one: that task is
        the open one from here on. Where the program or the directory is gone, end the session."""
        launch = self.launch
        program = list(launch.mcp[:-1])  # cao.py itself, for the demo
        named = program_of(launch.profile)
        try:  # all was well when the session was made
            if named:
                program = [find_program(named, self.env.get("PATH", ""))]
            os.chdir(self.session.cwd)
            if not self.session.worktree and os.getcwd() != self.session.cwd:  # a real path, then
                raise CaoError(f"{self.session.cwd} leads to {os.getcwd()} now")
            refuse_unasked(launch.profile, self.session.cwd)  # others wrote here meanwhile
        except (CaoError, OSError) as error:
            self._finish("failed", "never_started", str(error))
            return

        first = next_delivery(self.store.waiting(self.name), None)
        takes = self.row.start(launch._replace(prompt="x")).argv != self.row.start(launch).argv
        if first and takes and first[0].kind == "task":
            first, text = self._compose(first, by_argv=True)
            # Where this round is a second one, its lock is ours already, and nothing is taken.
            self._take(first, text, "submitted")
            launch = launch._replace(prompt=text)
        if launch.resume:  # its transcript has earlier turns
            self.offset, self.inode = file_mark(self._find_transcript())[0], 0
        if self.program:
            self.boss.tmux.pipe(self.pane, "exec cat >" + quote_argv([self.wake.path]))
        start = self.row.start(launch)
        argv = [*program, *map(str, start.argv)]
        os.umask(launch.umask)  # ours is that of whoever started the tmux server
        self.child = spawn_foreground(argv, {**self.env, **start.env, **tmux_variables()})
        self._log("started", pid=self.child, program=program[0])

    def _round(self) -> bool:
        """Do all that can be done now; tell whether the session goes on.

        What the machine refuses to do is tried again in the next round: a disk that is full,
        or one call that fails, ends no session.
        """
        self.wake.drain()
        self.failed = False
        try:
            if self.child and not self.group:
                self.group = note_process(self.child)  # once: without /proc it starts a process
            self._reap()
            if self.signal == signal.SIGHUP:
                words = "the tmux server or the session's pane is gone"
                self._finish("lost", "terminal_gone", words)
            elif self.signal:
                self._finish("stopped", "terminated", f"the runner got signal {self.signal}")
            if self._catch_up() and not self.over:
                self._go_on()
        except TmuxError as error:
            # The hangup, if that is what it is, arrives as a signal; do not race it.
            self._note_failure(error)
            if error.fix == "no server" and keep_socket():
                return True
            if error.fix in ("gone", "no server"):
                self._finish("lost", "terminal_gone", error.what)
        except FAILURES as error:
            self._note_failure(error)
            late = time.monotonic() - self.phase_at > NEVER_STARTED_S
            if late and self.phase == "starting" and not self.child:
                self._finish("failed", "never_started", self.trouble)
        if not self.failed:
            self.trouble = ""
        elif is_gone(self.folder):
            raise CaoError(f"the folder of {self.name} is gone")  # and with it who could ask
        return not self.over

    def _go_on(self) -> None:
        """Start the CLI once there is a slot. Then read what happened, look, decide, save, and
        show the state in tmux."""
        now = time.monotonic()
        if not self.paused:
            self.spent_s += now - self.counted_at
        self.counted_at = now
        keep_socket()
        self._keep_lock()
        if not self.child:
            place, ahead = self.boss.place(self.name)
            if place:
                if self.phase != "queued":
                    os.write(1, b"cao: this session begins when another has ended\r\n")
                self._set_phase("queued", "it waits for a slot")
                self.boss.make_room(ahead)
                for name in ahead:  # we are woken when one of them has ended
                    self.boss.watch(name)
            else:
                self.store.leave_queue(self.name)
                self._set_phase("starting")
                self._begin()
        self._read_events()
        # Where the runner of a worker of ours dies, we are woken, and bury its session: an idle
        # agent learns at once that the task is lost.
        for task in self.store.running(self.name):
            try:
                self.boss.watch(self.store.session_of(task))
            except FAILURES as error:
                self._note_failure(error)
        self._advance(time.monotonic())
        self.paused = self._is_paused()
        self._save()
        if self.saved["state"] != "ended":
            self.boss.tmux.show_state(self.pane, self.saved["state"], self.saved["questions"])

    def _reap(self) -> None:
        """Finish the session where its CLI has ended by itself. A turn's end that still waited for
        a second sign counts then, if the transcript has it or there was no time for another sign;
        but not where a check or a worker's result was to follow."""
        if self.leaving or not self._has_ended():
            return
        self._read_events()
        event, task = self.ending, self.task
        if event and not self.foreign and not self.questions and task and not task.check:
            written = self._transcript_event()
            counts = time.monotonic() - self.ending_at < UNSEEN_S
            if written:
                counts = written.kind == "ended" and not written.blocking
            event = self._whole(event)
            agents = has_agents(self.background.own_at(event))
            if counts and not agents and not self.store.owed(self.name):
                self._accept(event)
        assert self.exit_status is not None
        reason, how = "exited", "exit status"
        if not self.begun:
            reason = "never_started"
        if self.exit_status < 0:
            how = "signal"
        words = f"{self.row.name} ended by itself with {how} {abs(self.exit_status)}"
        self._finish("failed", reason, words)

    def _read_events(self) -> None:
        """Deal with the events that hooks and callers left in events/, each once. Their files are
        removed only when what came of them is saved."""
        events = self.store.events(self.name)
        for entry, at, payload in events:
            if entry not in self.handled and not self.again:
                self._on_payload(payload, at)
                self.handled.add(entry)
        if events:
            self._save()
        if events and not self.to_retry:
            self.store.drop_events(self.name, self.handled)
            self.handled.clear()

    def _on_payload(self, payload: dict[str, Any], at: float) -> None:
        """Obey an order of ours (its key is `cao`), or take in what a hook said at that time."""
        if self.leaving:
            return
        order = payload.get("cao")
        if order == "stop":
            self._finish("stopped", "stopped", "the session was stopped")
        elif order == "interrupt":
            self._interrupt("interrupted")
        elif order == "close":
            self._close_if_idle(time.monotonic(), asked=True)
        elif not fits(payload, _ORDERS.get(str(order), {})):
            self._log("no_order", order=str(order))
        elif order == "answer" and fits_where_given(payload, _ANSWER):
            self._answer(payload)
        elif order == "popup_closed":  # the person wants the CLI's own dialog, or has answered
            for question in list(self.questions.values()):
                if question.id in payload["questions"] and question.id not in self.orders:
                    self._close_question(question)
        elif event := (self.row.read_event or read_hook)(payload):
            self.heard = True
            self._on_event(event, at)
            if event.kind == "asked":
                self._on_asked(event, payload)

    # ---- deciding ----

    def _advance(self, now: float) -> None:
        """Look where something is due, then decide what the facts allow."""
        if self.leaving or self.phase == "queued":
            return
        self._advance_ending(now)
        self._settle_questions()
        if now >= self.look_at or self.program or self.phase == "starting":
            self._look(now)
        for question in list(self.questions.values()):
            self._auto_answer(question)
        if self.delivery_open():
            self._advance_delivery(now)
        self._after_check()
        self._advance_timers(now)
        self._advance_interim()
        if self.delivery_open() or self.ending or self.check or self.to_retry:
            return
        if self.phase == "idle":
            self._deliver_next()

    def _take_up(self, written: Event | None) -> None:
        """Take up a turn that the CLI began by itself, and its end, if the transcript has that.
        Kimi Code 2.1.0 has no event for its beginning; a hook that runs tells more."""
        if self._hook_under_way():
            return
        self._begin_turn()
        if written:
            self._on_event(written, time.time())

    def _advance_interim(self) -> None:
        """Accept the answer of the last turn (interim_end), where nothing is left that would
        start another turn: the agent took its workers' results by a `wait` of its own, or its work
        in the background ended without a word."""
        event = self.interim_end
        if not event or self.phase != "idle" or self.interrupted_at or self.delivery_open():
            return
        written: Event | None = event
        if not self._awaits_background() or self.row.status or not self.row.entry_runs:
            pass  # hooks tell of all turns, as of Claude Code's
        elif not self.row.titles:
            written = self._transcript_event()
        elif self._status().state == "busy":  # Qwen Code 0.24.4
            written = None
        if not written or written.text.strip() != event.text.strip():
            self._take_up(written)
            return
        event = self._whole(event)
        if not self._more_to_come(event) and not next_delivery(self._letters(), self.task):
            self.interim_end = None
            self.turns.pop()  # it had been noted as an earlier turn
            self._accept(event)

    def _advance_delivery(self, now: float) -> None:
        """See to a delivery of which no prompt event has come for SUBMIT_S: the turn may run
        unheard; else press Enter again, twice at most and only where the text still stands in the
        input line; then give up."""
        delivery = self.delivery
        if not delivery or self.phase != "idle" or now - self.step_at < SUBMIT_S:
            return
        if self._began_unheard(self._status()):
            return
        draft = self._draft()
        if self.pasted and not draft and self._in_foreground():  # as in _look_at_output
            self._on_entered()
            return
        # In a turn that it began by itself, or its hooks do not come.
        at_work = not self.row.tells_state() and self._is_at_work(STILL_S)
        if at_work or (self.unread and not draft):
            if self._left_s() < 0:
                self._interrupt("timeout")
            if at_work or now - self.step_at < NEVER_STARTED_S:
                return
        elif delivery.enters < 3:
            self.delivery, self.step_at = delivery._replace(enters=delivery.enters + 1), now
            if draft:
                self._enter()
            return
        unsent = ""
        if draft:
            self._keys(CLEAR_LINE)
            unsent = ": Enter does not send it, a person may have bound that key to something else"
        self._undeliverable(delivery, unsent)

    def _advance_timers(self, now: float) -> None:
        """Do what is due: after a person's Esc, for the budget, for the timeout, for an interrupt
        key that had no effect, for a CLI that never started, for a session that was idle."""
        if self.interrupted_at and now - self.interrupted_at >= self.session.interrupted_s:
            self._end_task("interrupted", reason="interrupted_by_person")
        if self.task and self.task.max_tokens and self.usage:
            used = self.usage["input"] + self.usage["output"]
            if used > self.task.max_tokens:
                self._interrupt("budget")
        if self._left_s() < 0:
            if self.phase == "working":
                self._interrupt("timeout")
            elif self.phase == "idle" and not self.delivery_open():
                why = "it had not gone on"
                if self.held_back:
                    why = self.held_back
                if self.interim_end:
                    why = "its workers had not answered"
                if self._awaits_background():
                    why = self.why
                self._time_out(f": {why}")
        if self.ordered and self.phase == "working" and now - self.pressed_at > SUBMIT_S:
            self._look_at_interrupt(now)
        elif self.ordered and self.questions and now - self.pressed_at > UNTOLD_S:
            self._press_interrupt()  # its dialog may not have been drawn (OpenCode 1.18.33)
        late = now - self.ordered_at > NEVER_STARTED_S
        at_work = self.phase != "idle" or self.delivery_open()
        if self.ordered and late and not self.task and at_work:
            words = f"{self.row.name} did not end its turn in {NEVER_STARTED_S:.0f} s after that"
            self._finish("stopped", "stopped", f"{words} was ordered")

        if self.phase == "starting" and not self.begun and now - self.phase_at > NEVER_STARTED_S:
            words = ""
            if self.task:
                words = f"no turn began in {NEVER_STARTED_S:.0f} s{self._unheard()}"
            elif self.store.waiting(self.name):
                saw = text_at(self.evidence, "look.why") or "nothing said that it is"
                words = f"it was not ready for a task in {NEVER_STARTED_S:.0f} s ({saw})"
            if words:
                self._finish("failed", "never_started", words)
        self._close_if_idle(now)

    def _time_out(self, why: str = "") -> None:
        """End the open task: its time is over. why: the end of that sentence, from its colon on."""
        if self.task:
            limit = render_seconds(self.task.timeout_s)
            words = f"no answer in {limit}{why}"
            if self.check:
                words = f"its check still ran after {limit}"
            self._end_task("timeout", reason="timeout", detail=words)

    # ---- delivery ----

    def _compose(
        self, messages: list[Message], *, by_argv: bool = False
    ) -> tuple[list[Message], str]:
        """Return what is sent now of messages: all of them, or the first alone; and the text for
        that. by_argv: on the CLI's command line; else it is typed.

        Where the text of all would not arrive exactly that way, the first is sent alone; if need
        be by one line that names a file, which the worker may read.
        """
        text = "\n\n".join(map(render_message, messages))
        if self.program:  # it is no agent, and is to read no word of ours
            text = messages[0].text
        if by_argv:
            size = len(text.encode(errors="surrogatepass"))
            runs = re.match(self.row.no_prompt, text) or _ENDS_ITSELF.match(text)
            exact = size <= self.row.argv_bytes and not runs
        else:
            exact = not typing_fault(self.row, text)
        if exact:
            return messages, text
        if len(messages) > 1:
            return self._compose(messages[:1], by_argv=by_argv)
        return messages, by_file(self.store, self.name, messages[0], text)

    def _take(self, messages: Sequence[Message], text: str, step: str) -> Delivery | None:
        """Lock messages, note them as the delivery that is on its way with this text, at this
        step, and save that; nothing is typed here. A task among them is the open one from here
        on.

        Left out are those that another process is telling, or has told (a `wait` of the agent
        itself), and those that a later delivery brings (Claim.is_last); the text is then made
        anew, without them. None where none is left.
        """
        ours = []
        for message in messages:
            if message.kind == "result":
                claim = self.store.take_result(self.name, message.id)
            else:
                claim = self.store.take_message(self.name, message.id)
            if claim:
                self.claims[message.id] = claim
                ours.append(message)
                if claim.is_last():
                    break
        if not ours:
            return None
        if len(ours) < len(messages):
            locked = ours
            ours, text = self._compose(locked)
            for message in locked[len(ours) :]:
                self.claims.pop(message.id).release()

        ids = tuple(message.id for message in ours)
        delivery = self.delivery = Delivery(ids, text, step, time.time())
        self.step_at = time.monotonic()
        if ours[0].kind == "task":
            self.task, self.spent_s = ours[0], 0.0
            self.turns, self.tries, self.ordered = [], 0, ""
            self.began, self.usage = time.time(), None
        self._save()
        self._log(step, messages=ids, bytes=len(text))
        self.last_sent = text
        return delivery

    def _letters(self) -> list[Message]:
        """Return what waits for the conversation, oldest first: the inbox, and as messages of kind
        `result` (id: the task) the results that the agent was not told.

        A result that an earlier runner typed says so; where the CLI took that one, it is taken
        off the books here.
        """
        letters = self.store.waiting(self.name)
        if self.stuck:  # the senders of tasks and messages learn that they failed; the rest stays
            return [m for m in letters if m.kind in ("task", "message")]
        for task in self.store.owed(self.name):
            result = self.store.load_result(task)
            if result and not self._was_typed(task):
                text = render_result(result)
                if task in self.typed_before:
                    text = PERHAPS_AGAIN + text
                who = (task, "result", result.session, self.name)
                later = (n for n, m in enumerate(letters) if m.sent_at > result.ended_at)
                place = next(later, len(letters))
                letters.insert(place, Message(*who, text, result.ended_at, task))
        return letters

    def _was_typed(self, task: str) -> bool:
        """Tell whether an earlier runner typed a result and the CLI took it, for the transcript
        has it. If so, take it off the books."""
        if task not in self.typed_before:
            return False
        if head_of(task) not in self.store.read_text(self.transcript):
            return False
        self.store.discharge(self.name, task)
        self.typed_before.remove(task)
        return True

    def _note_handed(self, *, done: bool = False) -> None:
        """Take the messages off the books that a hook has handed over (their ids end in ~) and
        that the transcript has in the turn that runs. done: that turn has just ended well; some
        CLIs' transcripts prove nothing before (Provider.mid_turn)."""
        if not done and self.row.mid_turn != "transcript":
            return
        handed = [m for m in self.store.waiting(self.name) if m.id.endswith("~")]
        if not handed or not self._find_transcript():
            return
        written = self._written()
        # Claude Code 2.1.332 also writes down what a hook printed, even one that failed: there the
        # line's end is escaped twice.
        taken = [m.id for m in handed if json.dumps(head_of_message(m))[1:-1] in written]
        for letter in taken:
            self.store.discharge(self.name, letter)
        if taken:
            self._log("taken", messages=taken)
            self.store.poke(self.name)

    def _deliver_next(self) -> None:
        """Type what waits and press Enter, if the CLI can take it and no person is at it. Where
        it cannot, note why in held_back: a later round tries again, in a task's time."""
        self._note_handed()
        letters = self._letters()
        messages = next_delivery(letters, self.task)
        if self.interrupted_at:  # after a person's Esc only its sender, or cao
            messages = [message for message in messages if self._is_of_task(message)]
        if self.program:
            messages = messages[:1]
        if not messages:
            self.held_back = ""
            return
        if not self.held_back:
            self.held_at = time.monotonic()
        self.held_back = self._obstacle()
        if self.held_back:
            tasks = [letter for letter in letters if letter.kind == "task"]
            if self.task or not tasks:
                return
            held_s = min(time.monotonic() - self.held_at, seconds_since(tasks[0]))  # may be newer
            if held_s > tasks[0].timeout_s and self._take(tasks[:1], "", "claimed"):
                self._time_out(f": {self.held_back}")
                self.delivery = None
            return

        messages, text = self._compose(messages)
        before = self.delivery, self.task
        try:
            delivery = self._take(messages, text, "claimed")
            if delivery:
                self._type_text(delivery.messages, delivery.text)
        except FAILURES:
            # All of it is typed again, unless all of it stands there already ("typed"); _obstacle
            # clears a part. "taken" is the step of the delivery before, where _take failed.
            if not self.delivery or self.delivery.step in ("claimed", "taken"):
                self._release()
                self.delivery, self.task = before
            raise

    def _obstacle(self) -> str:
        """Return why nothing may be typed now, or "". Where the input line has our own text, this
        presses the key that clears it; where there is no input line, it looks for a dialog."""
        if not self._in_foreground():
            return "another program has the terminal"
        if self.boss.tmux.person_active_s(self.pane) < PERSON_S:
            return "a person is at the session"
        if self.program and not self.program.is_free():
            if self._draft():
                return ""  # a call to tmux failed before Enter
            return f"the program is not ready ({self.program.seen.why})"
        state = self._status().state
        if state == "asking":  # Claude Code 2.1.332 holds messages of its other sessions so
            self._look_for_dialog(time.monotonic(), state)
        if state in ("asking", "busy"):
            return "the CLI is not idle"
        draft = self._draft()
        if draft is None:
            # Gemini CLI 0.61.0 ends a turn that loops with a dialog.
            self._look_for_dialog(time.monotonic())
            return "its input line is not on the screen"
        # Kimi Code 2.1.0 tells nothing of a turn that it begins when what an earlier task left
        # running has ended, nor pi 0.73.1 that it sums up its conversation: what is typed meanwhile
        # is kept for later. An answer's own words may look so, beside a clock of an extension's.
        unheard = not self.row.tells_state() and self._is_at_work(STILL_S)
        if unheard and time.monotonic() - self.held_at < NEVER_STARTED_S:
            return "the CLI is not idle"
        if not draft:
            if self.row.normal and re.search(self.row.normal, self._screen()):
                self._keys("i")
                return "its input line takes letters for commands"
            return ""
        # The draft is our own where it is the beginning of what was sent: all of its first line,
        # or 40 characters, for a line may show no more.
        sent = self.last_sent.split("\n")[0].strip()
        if sent.startswith(draft) and len(draft) >= min(len(sent), 40):
            self._keys(CLEAR_LINE)  # our own prompt, put back by Esc
            return "clearing the input line"
        return "a person has typed something"

    def _in_foreground(self) -> bool:
        """Tell whether keys go to the CLI, and not to a program that took its terminal."""
        try:
            return os.tcgetpgrp(0) == self.child
        except OSError:
            return False

    def _type_text(self, ids: tuple[str, ...], text: str) -> None:
        """Type the text of the messages with these ids, three times at most where the CLI loses
        it, and press Enter if that is safe (_enter). The caller has seen that nothing prevents
        typing."""
        tries, stands = 3, None
        if self.program:
            stands = self._draft()
        if stands == text:  # the call to tmux failed that came after
            tries = 0
        elif stands:
            self._keys(CLEAR_LINE)
        if self.program and tries:
            self.program.begin_turn()
            self.pasted = text
        self._mark_transcript()
        for _ in range(tries):
            self.boss.tmux.paste(self.pane, split_pieces(text, *self.row.piece))
            self._log("typed", messages=ids, bytes=len(text))
            if not self._swallowed():
                break
            self._log("swallowed", messages=ids)
            self._keys(CLEAR_LINE)
        if self.program:
            self.program.mark_turn(text)
        self.delivery = Delivery(ids, text, "typed", time.time())
        self._enter()

    def _enter(self) -> None:
        """Press Enter, never into a dialog or another program."""
        if not self._in_foreground() or not self._shows_input():
            self._log("enter_withheld")
            return
        pressed_at = time.time()  # its hook may come before tmux returns
        if self.program:
            self.program.watch_terminal()
        self._keys("Enter")
        if self.delivery:
            self.delivery = self.delivery._replace(step="submitted", at=pressed_at)
            self.step_at = time.monotonic()
            self._log("submitted", messages=self.delivery.messages)
        if self.program:
            self._on_entered()

    def _on_entered(self) -> None:
        """Note that a program has our text: it counts as having taken that at once."""
        self.pasted = ""
        self._taken("claimed")
        self._begin_turn()

    def _undeliverable(self, delivery: Delivery, unsent: str = "") -> None:
        """Give up what the CLI did not take as a prompt: a task fails, a message's sender is told;
        results and notices stay, until a turn has begun (`stuck`). unsent: why, if that is known.
        """
        on_the_way = [m for m in self._letters() if m.id in delivery.messages]
        self.delivery, self.ordered = None, ""
        self._log("undeliverable", messages=delivery.messages)
        self.given_up.append(delivery.text)
        why = f"the CLI did not take it as a prompt{unsent or self._unheard()}"
        if self.task and self.task.id in delivery.messages:
            self._end_task("failed", reason="never_started", detail=why)
        for message in on_the_way:
            if message.kind == "message":
                self._insist_on(partial(self.boss.notify_undelivered, message, why))
            if message.kind in ("notice", "result"):
                self.stuck = True
            else:
                self._insist_on(partial(self.store.discharge, self.name, message.id))
        self._release()

    # ---- orders ----

    def _interrupt(self, outcome: str) -> None:
        """Interrupt the turn that runs, by the CLI's own key. outcome: why.

        "timeout" and "budget" end the task here. "interrupted", by order, ends it when the CLI
        tells the turn's end or, where no turn runs, here.
        """
        if self.phase == "idle" and not self.delivery_open():
            if outcome == "interrupted":  # no turn runs: its check or its workers do
                self._end_task("interrupted", reason="by_order")
            held = self.interim_end
            if outcome == "budget" and held and has_agents(self.background.own_at(held)):
                self._end_over_budget()
            return
        own_is_over = self.asked_from == "idle" or self.ending
        if self.phase == "asking" and own_is_over and outcome == "interrupted":  # a sub-agent asks
            self._transcript_event()  # for what still runs
            self._end_task("interrupted", reason="by_order")
            if self.leaving:
                return
            if self.ending:  # it may be of a sub-agent: Kimi Code 2.1.0 does not mark its Stop
                self.ordered, self.ordered_at = outcome, time.monotonic()
            self._press_interrupt()
            return
        # Idle here means that a prompt is on its way: the key is pressed again once its turn runs.
        if self.phase not in ("idle", "working", "asking"):
            return
        if self.ordered in (outcome, "timeout"):
            return
        self._transcript_event()  # for what still runs
        self.ordered, self.ordered_at = outcome, time.monotonic()
        if outcome == "timeout":
            self._time_out()
        elif outcome == "budget":
            self._end_over_budget()
        if self.leaving:
            return
        if self.program:
            self.program.mark()
            self._keys("C-c")
            self._end_turn(Event("interrupted", source="keys"))
        else:
            self._press_interrupt()

    def _look_at_interrupt(self, now: float) -> None:
        """See what came of the interrupt key, a while after it was pressed.

        Where the CLI still works, press it again (Kimi Code 2.1.0 is deaf between its prompt event
        and its first request). That is not done soon: a second Esc opens a dialog in a CLI that
        was only slow to obey the first (Qwen Code 0.24.4, on a busy machine). Where the CLI takes
        input again and has not told the turn's end for UNTOLD_S, count the turn as interrupted
        (Copilot 1.0.102 may rewrite its transcript before it was read).
        """
        if not self.row.busy:
            return
        text, draft = self._see()
        if re.search(self.row.busy, text):
            self._press_interrupt()
        elif draft is not None and now - self.pressed_at > UNTOLD_S:
            event = Event("interrupted", source="screen")
            known = self.ending and self.ending.background
            # Claude Code 2.1.332 is busy, and shows its input line, while its sub-agents run.
            if not known and self.row.status and self._status().state == "busy":
                event = event._replace(background={"": "agent in the background"})
            self._on_event(event, time.time())

    def _end_over_budget(self) -> None:
        """End the open task, which used more tokens than it may."""
        if self.task and self.usage:
            words = f"used {render_tokens(self.usage)}; max_tokens is {self.task.max_tokens:,}"
            self._end_task("failed", reason="budget", detail=words)

    def _press_interrupt(self) -> None:
        """Press the keys that interrupt a turn, and have the next look come soon."""
        for key in self.row.interrupt:
            self._keys(key)
            time.sleep(0.2)  # OpenCode 1.18.33 reads two at once as another key
        self.pressed_at = time.monotonic()
        self.look_at = self.pressed_at + 0.3

    # ---- answers ----

    def _answer(self, order: dict[str, Any]) -> None:
        """Obey an order to answer a question (_hand_over). Whoever gave it finds in `reply` what
        came of it: here where it failed, else once the question is closed. A hook takes its
        answer later: see _settle_questions."""
        question = self.questions.get(order["question"])
        if not question:
            fault = "it asks this no more"
        elif question.id in self.orders:
            fault = "another answer is on its way"
        else:
            self.orders[question.id] = order
            try:
                fault = self._hand_over(order, question)
            except FAILURES as error:  # whoever answers is told, and may try again
                fault = str(error)
            if fault:
                self.orders.pop(question.id, None)
        if fault:
            self.reply = {"id": order["id"], "ok": False, "text": fault}

    def _hand_over(self, order: dict[str, Any], question: Question) -> str:
        """Give an answer to the CLI, by the way the question came (Question.where); return why
        that did not work, or "".

        order: {"answer", "words"} (yes, no or always, and words), or {"key"}: keys to press, or
        {"dialog": True}: leave it to the CLI's own dialog. This adds `as_text`: the answer, in
        words.
        """
        keys, answer, words = (order.get(part, "") for part in ("key", "answer", "words"))
        if order.get("dialog"):
            self.orders.pop(question.id)
            if question.where == "hook":  # else its dialog is drawn already
                self._close_question(question)
            self.reply = {"id": order["id"], "ok": True, "text": "left to its own dialog"}
            return ""

        as_text = words or answer
        if keys:
            as_text = keys
        elif answer == "no" and words not in ("", "no"):
            as_text = f"no: {words}"
        order["as_text"] = as_text

        if question.where == "hook" and not keys:
            self._reply(question, {"answer": answer, "words": words})
            return ""
        if self.program:
            self.program.look(time.monotonic())
            if not self.program.asks(question.text):
                return "it asks this no more"
            if not keys:
                self.boss.tmux.paste(self.pane, [words])
            self.program.mark(words)
            keys = keys or "Enter"
        elif answer == "yes":
            keys = "1"
        fault = self._press(question, keys or "Escape", once=answer == "yes")
        if not keys and self.reply == {"id": order["id"], "ok": True, "text": as_text}:
            # Esc ends the turn, and the words begin the next one.
            text = f"The user refused: {shorten(question.text, 200)}. {words}".strip()
            message = self._own_message("no", text)
            self.refused = True
            self._insist_on(lambda: self.store.put_once(message))
        return fault

    def _press(self, question: Question, keys: str, *, once: bool = False) -> str:
        """Press keys (tmux's names, blanks between) in the dialog of a question, each once the one
        before has changed the screen, and close the question; return why that did not work, or
        "". Where no dialog comes, no key is pressed: the question is closed as withdrawn. once:
        keys are its first answer, which has to approve this call alone."""
        # Its event comes before the dialog is drawn, so this waits: 500 looks, about 10 s.
        if self.row.composer and not look_until(lambda: self._draft() is None, 500):
            self._close_question(question)
            return ""
        if not look_until(lambda: self._dialog_shows(question), 150):
            return "its dialog may ask another open question: answer that one first, or attach"
        if once and not look_until(lambda: _FIRST_IS_ONCE.search(self._screen()), 150):
            return f"its dialog has other answers: cao show {self.name}, then --key, or attach"
        for key in keys.split():
            before = self._screen()
            self._keys(key)
            # A program that reads a line need not show that it has read it.
            if not (self.program and key == "Enter") and not self._changed(before):
                return f"its dialog did not change at the key {key}"
        self._close_question(question, self.orders.get(question.id, {}).get("as_text", keys))
        return ""

    def _changed(self, before: str) -> bool:
        """Tell whether the screen comes to differ from before, within some seconds."""
        return bool(look_until(lambda: self._screen() != before, 150))

    def _dialog_shows(self, question: Question) -> bool:
        """Tell whether the dialog that is drawn is certainly that of this question.

        Gemini CLI 0.61.0 and Kimi Code 2.1.0 tell of parallel calls in any order, of each before
        its dialog can be drawn, and ask about one after the other. So with one open, and no hook
        that runs, it is taken for granted. Else its dialog has to show the whole command of this
        question, and of no other. A tool of cao's it always has to show: nobody is asked then."""
        if not self.row.dialog:
            return True
        shown = None
        if found := re.search(self.row.dialog, self._screen(), re.M):
            shown = (_DRAWN.sub("", found[1] or ""), found[2] or "")
        if OWN_TOOL.match(question.text):
            return shown == self.subjects.get(question.id)

        read_event = self.row.read_event or read_hook
        for entry, _, payload in self.store.events(self.name):
            event = read_event(payload)
            if entry not in self.handled and event and event.kind == "asked":
                return False
        # A "screen" may be the dialog of a call whose hook died.
        rivals = [q for q in self.questions.values() if q.where == "keys" or q.kind == "screen"]
        if len(rivals) < 2 and not self._hook_runs():
            return True
        subjects = {rival.text: self.subjects.get(rival.id) for rival in rivals}
        same = [text for text, subject in subjects.items() if subject == shown]
        return None not in subjects.values() and same == [question.text]

    def _auto_answer(self, question: Question) -> None:
        """Answer what is not a person's to answer: the trust dialog under `trust: yes`, and where
        a CLI asks about cao's own tools. Each is tried three times at most: what stays, or comes
        back, is for a person. Any other question is left alone."""
        trust_words, key = self.row.trusts
        if self.row.asks_own and OWN_TOOL.match(question.text):
            what, key = question.id, "1"
            # The first try waits for its dialog. Then another's may stand before it for long.
            if what in self.tried and not self._dialog_shows(question):
                return
        elif not trust_words or question.kind != "screen" or not self.launch.profile.trust:
            return
        else:
            # It is the first that is asked, and a line of the box that was drawn last: any text
            # may have its words.
            box = self._screen().rpartition("\n╭")[2]
            if self.begun or not re.search(rf"(?m)^│ *{re.escape(trust_words)} *│$", box):
                return
            what = trust_words  # a dialog that is drawn anew has a new id
        if self.tried.count(what) < 3:
            self.tried.append(what)
            self._press(question, key)


def tmux_variables() -> dict[str, str]:
    """Return the environment variables by which tmux tells a program about its pane."""
    return {k: os.environ[k] for k in ("TERM", "TMUX", "TMUX_PANE", "COLORTERM") if k in os.environ}


def keep_socket() -> bool:
    """Tell whether the tmux server whose pane this is still lives: it is our parent. Where its
    socket is gone, have it make that again (a cleaner of /tmp removes the sockets of living
    servers; SIGUSR1: tmux(1))."""
    socket, server, _ = os.environ.get("TMUX", ",0,").rsplit(",", 2)
    if int(server) != os.getppid():
        return False
    try:
        if not os.path.exists(socket):
            os.makedirs(os.path.dirname(socket), 0o700, exist_ok=True)
            os.kill(int(server), signal.SIGUSR1)
    except OSError:
        pass  # the session lives all the same; the next round tries again
    return True


def spawn_foreground(argv: Sequence[str], env: dict[str, str]) -> int:
    """Start a program on our terminal, as its foreground process group; return its pid.

    argv[0] is its path, env all of its environment. Raises OSError where no process can be made.
    A program that cannot be executed says so on the terminal, and its exit status is 127.
    Not subprocess: only the child itself can take the terminal before its first read.
    """
    pid = os.fork()
    if pid:
        try:
            os.setpgid(pid, pid)  # both sides do it: whoever is first
        except OSError:
            pass  # it has exec'ed already
        return pid
    try:
        os.setpgid(0, 0)
        os.dup2(1, 2)  # our own stderr is runner.log
        signal.set_wakeup_fd(-1)
        if os.isatty(0):
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            os.tcsetpgrp(0, os.getpid())
        for number in (*_IGNORED, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.execve(argv[0], list(argv), env)
    except OSError as error:
        os.write(2, f"cao: {argv[0]} could not be started: {error.strerror}\n".encode())
    finally:
        os._exit(127)


# ---- workers on another machine ----
#
# The runner of such a session, here, is the MCP client of `cao mcp --near`, there. Whatever one
# side sends, it keeps until the other side has it:
#
#   a task     is given there with its name here as request_id. It is given again at every
#              connection until its result is here, and stays the same task
#   a result   is read there by the task's name; it is off the books there once it is a file here
#   a message  has the same id on both sides: it is put once, and stays in inbox/new until then
#   a state    is what the other side last reported; without a connection it is `unknown`, never
#              an end
#   an end     ends the session there too; where that could not be confirmed, the result says so

# Sent to that machine's Python, which runs it: cao itself follows where it is not there yet. What
# it prints begins a line: a login shell may have left one open.
_FAR_START = """\
import hashlib, os, sys
if sys.version_info < (3, 9):
    sys.exit("python3 there is %d.%d, and cao needs 3.9" % sys.version_info[:2])
umask = os.umask(0o077)
state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
folder = (os.environ.get("CAO_HOME") or state + "/cao") + "/lib/" + SHA[:16]
path, part = folder + "/cao.py", folder + "/part.%d" % os.getpid()
source = b""
if os.path.exists(path):
    with open(path, "rb") as file:
        source = file.read()
if hashlib.sha256(source).hexdigest() != SHA:
    print("\\ncao-needed", flush=True)
    source = sys.stdin.buffer.read(SIZE)
    if len(source) < SIZE:
        sys.exit("the connection broke")
    os.makedirs(folder, exist_ok=True)
    with open(part, "wb") as file:
        file.write(source)
    os.replace(part, path)
os.umask(umask)
way, safe = folder, True
while way.strip("/"):  # like make_home, but stricter with groups
    facts = os.lstat(way)
    shared = facts.st_mode & 0o022 and not facts.st_mode & 0o1000 and not os.path.islink(way)
    if shared or facts.st_uid not in (0, os.getuid()):
        safe = False
    way = os.path.dirname(way)
if safe:  # Python has it compiled already
    sys.path.append(folder)
    import cao
else:  # what lies beside the file may be another's: run what was checked
    cao = type(sys)("cao")
    cao.__file__, sys.modules["cao"] = path, cao
    exec(compile(source, path, "exec"), cao.__dict__)
print("\\ncao-here", flush=True)
sys.exit(cao.main(ARGV))
"""
# A login shell, for the user's PATH there, becomes a Python that runs the first line it is sent.
_FAR_PYTHON = """exec "$SHELL" -lc 'exec python3 -I -S -c "exec(input())"'"""


# What is raised as we read words of the other side that no cao writes: 1e999 is infinite, [[[[…
# too deep. It ends the session, for no other round will understand them.
_FALSE_WORDS = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
_HELLO = b'{"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": ""}}'


UNSTARTED = (
    f"{{}} did not start cao within {FAR_START_S:.0f} s: its login shell may hang, or read what is"
    " sent to it"
)


def ssh_argv(env: dict[str, str], *words: str) -> list[str]:
    """Return ssh's command line: the program and options of CAO_SSH (in env), our options, words
    (more options, --, the host and what runs there). Of one option ssh takes the first: the user's.
    Raises CaoError where there is no such program, or CAO_SSH cannot be parsed."""
    import shlex

    try:
        program, *options = shlex.split(env.get("CAO_SSH", "").strip() or "ssh")
    except ValueError as error:
        what = f"CAO_SSH cannot be split into words: {error}"
        raise UsageError(what, "write it like CAO_SSH='ssh -p 2222'") from None
    return [find_program(program, env.get("PATH")), *options, *SSH_OPTIONS, *words]


class Link:
    """One ssh connection to the cao of another machine, by lines on its stdin and stdout. A
    machine that does not have this cao.py yet is sent it first.

    argv: the arguments of cao there. `here`: that cao has said that it runs. `closed`: there is
    nothing more to read, and `end` is to be called.
    """

    def __init__(self, host: str, argv: Sequence[str], env: dict[str, str]) -> None:
        with open(os.path.abspath(__file__), "rb") as file:
            self.source = file.read()
        words = {"SHA": sha256_of(self.source), "SIZE": len(self.source), "ARGV": list(argv)}
        start = "".join(f"{name} = {value!a}\n" for name, value in words.items()) + _FAR_START
        ssh = ssh_argv(env, "-T", "--", host, _FAR_PYTHON)
        self.buffer, self.here, self.closed, self.calls = b"", False, False, 0
        self.begun = time.monotonic()
        pipes: list[int] = []
        try:
            pipes += os.pipe()
            pipes += os.pipe()
            ends = [(os.POSIX_SPAWN_DUP2, pipes[0], 0), (os.POSIX_SPAWN_DUP2, pipes[3], 1)]
            how: dict[str, Any] = {"file_actions": ends, "setpgroup": 0, "setsigdef": _IGNORED}
            self.pid = os.posix_spawn(ssh[0], ssh, env, **how)
        except OSError:
            for end in pipes:
                os.close(end)
            raise
        far_in, self.fd_out, self.fd_in, far_out = pipes
        os.close(far_in)
        os.close(far_out)
        self.write(f"exec({start!a})".encode())

    def call(self, tool: str, arguments: dict[str, Any]) -> None:
        """Ask for a tool of the MCP server there. The response is a line that `read` returns."""
        self.calls += 1
        request = {"jsonrpc": "2.0", "id": self.calls, "method": "tools/call"}
        request["params"] = {"name": tool, "arguments": arguments}
        self.write(json.dumps(request).encode())

    def write(self, line: bytes, end: bytes = b"\n") -> None:
        """Write a line. A machine that takes none of it for DEAF_S loses its connection; that a
        connection is broken is not raised here, but seen by the next `read`."""
        view, poll = memoryview(line + end), select.poll()
        poll.register(self.fd_out, select.POLLOUT)
        try:
            while view:
                if not poll.poll(DEAF_S * 1000):
                    os.kill(self.pid, signal.SIGTERM)
                    return
                view = view[os.write(self.fd_out, view[: select.PIPE_BUF]) :]  # does not block
        except BrokenPipeError:
            pass

    def read(self) -> list[bytes]:
        """Return the whole lines that cao there has written; blocks until something comes.

        At the end of all it sets `closed`. What comes before cao runs there is not returned: this
        sends cao.py where it is asked for, and greets cao. Raises ValueError for an endless line.
        """
        chunk = os.read(self.fd_in, 1 << 16)
        self.closed = not chunk
        *lines, self.buffer = (self.buffer + chunk).split(b"\n")
        if len(self.buffer) > MAX_FILE_BYTES:
            raise ValueError("a line without an end")
        while lines and not self.here:  # a login shell may say this and that before
            line = lines.pop(0)
            self.here = line == b"cao-here"
            if line == b"cao-needed":
                self.write(self.source, b"")
            elif self.here:
                self.write(_HELLO)
        return lines

    def end(self) -> int:
        """Close the connection and return ssh's exit status; after 3 s ssh is killed. Its words,
        and those of the machine there, are on our stderr."""
        os.close(self.fd_out)
        os.close(self.fd_in)
        for _ in range(150):  # a machine may have ssh wait for ever
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        os.kill(self.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _name_from_there(name: Any) -> str:
    """Return a name that another machine says. Raises ValueError where it is none: it is to be
    shown among our own words, and could pass for a line of theirs."""
    if not NAME.match(str(name)):
        raise ValueError(shorten(str(name), 60))
    return str(name)


# Texts of an agent's, a CLI's or a program's, which are shown as such, below a head of ours.
_OWN_WORDS = ("answer", "detail", "turns", "screen", "tail", "text")


def _one_line_each(value: Any) -> Any:
    """Return what another machine says with every text in it, but _OWN_WORDS, on one line: they
    are shown among our own words, and no line of ours may seem to begin in one."""
    if isinstance(value, str):
        return " ".join(strip_controls(value).splitlines())
    if isinstance(value, dict):
        return {k: v if k in _OWN_WORDS else _one_line_each(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_one_line_each(entry) for entry in value]
    return value


class Remote:
    """The process of one session whose agent works on another machine: the client of cao there.

    It does for its session what a Runner does for one with a CLI here, by the same files, and
    shows in its pane what the terminal there shows.
    """

    def __init__(self, store: Store, session: Session) -> None:
        self.store, self.session, self.name = store, session, session.name
        self.folder, self.wake = store.folder(self.name), Wake(store)
        self.boss = Orchestrator(store, Caller(""))
        self.env = store.read_launch(self.name, "env.json")
        # As state.json has it; `conversation` is the name of the session there.
        self.state = {"conversation": "", **store.load_state(self.name)}
        # `group` there says that a runner has begun; None: the CLI's processes are not here.
        self.state.update(group=None, questions=[])
        self.saved: dict[str, Any] = {}  # state.json as it was last written
        self.link: Link | None = None
        self.slot: int | None = None  # a lock, no slot of the queue: few connections start at once
        self.broken_at = self.retry_at = 0.0  # on the monotonic clock
        self.asked = 0  # `sync` calls that wait there for something to happen
        self.task: Message | None = None
        self.far_task = ""  # its name there, as this connection reported it
        self.sent: set[str] = set()  # ids of the messages and orders sent by this connection
        self.orders: list[dict[str, Any]] = []  # to be sent
        self.mark = ""  # the other side's, of the facts that it sent last
        self.kept: list[str] = []  # ids from there that are files here: to be told to that side
        # The session is being ended there, by order: reason, detail, until when that is awaited.
        self.ending: tuple[str, str, float] | None = None
        self.child, self.lock = 0, -1  # the ssh in our pane; the session's lock, by run_session
        self.trouble = ""  # what this machine refused: it is tried again
        # The session's end here, as _finish got it: from then on each round is only for that.
        self.end: tuple[str, str, str] | None = None
        self.over = False  # no other round: the session has ended, or the pane is gone
        self.signals: list[int] = []  # the numbers of those that came

    def run(self) -> int:
        """Look after the session until it has ended, or the pane is gone; return 0."""
        self._save()  # from here on a free lock means that we are dead
        woken = hear_signals(lambda number, _: self.signals.append(number))
        self.wake.listen(self.name)
        for entry in self.store.unanswered(self.name):  # taken by a runner before us
            self.task = self.store.taken(self.name, entry)
        while self._round():
            patience_s = None
            connected = self.link and self.link.here and time.monotonic() >= self.retry_at
            if self.ending or self.trouble or not connected:
                patience_s = LOOK_S
            inputs = [self.wake.fd, woken]
            if self.link and not self.trouble:
                inputs.append(self.link.fd_in)
            readable(inputs, patience_s)
            drain_pipe(woken)
        return 0

    def _save(self) -> None:
        """Write state.json where it changed, and wake whoever listens to this session, to one
        above it or to all."""
        self.state.update(task_facts(self.task))
        if self.state != self.saved:
            if self.state["state"] != self.saved.get("state"):
                self.state["since"] = time.time()
                self.store.log(self.name, "state", state=self.state["state"])
            self.store.save_state(self.name, self.state)
            self.saved = dict(self.state)
            self.store.poke_up(self.name)

    def _round(self) -> bool:
        """Do all that can be done now; tell whether another round is to follow: none where the
        session has ended, or its pane is gone (it goes on there, and the next use starts us again).
        What either machine refuses is tried again in the next round. Raises CaoError where the
        session's folder is gone."""
        self.wake.drain()
        try:
            if self.end:
                self._finish(*self.end)
            else:
                self._go_on()
            self.trouble = ""
        except FAILURES as error:
            self.trouble = note_failure(self.store, self.name, error, self.trouble)
            if is_gone(self.folder):
                raise CaoError(f"the folder of {self.name} is gone") from error
        return not self.over

    def _go_on(self) -> None:
        """Do a round's work: signals, what came from there, orders, then the end, the connection
        or what is to be said there; save."""
        now = time.monotonic()
        if signal.SIGHUP in self.signals:
            self.over = True  # the pane is gone; the next use starts us again, and the work goes on
            return
        if signal.SIGTERM in self.signals:
            self._end("terminated", "the runner got SIGTERM")
        if self.link and readable([self.link.fd_in], 0):  # a machine may never stop to speak
            self._read(self.link)
        if self.link and not self.link.here:
            self._await_start(self.link, now - self.link.begun)
        for entry, _, order in self.store.events(self.name):
            self.store.drop_events(self.name, [entry])  # first: an answer is given once
            self._on_order(order)

        waiting = [] if self.ending else self.store.waiting(self.name)
        if waiting and self.retry_at > time.monotonic() + RETRY_S:
            self.retry_at = now  # it was put off while nothing waited
        there = self.state["conversation"]
        if self.ending and (now >= self.ending[2] or not self.link or not there):
            reason, detail, _ = self.ending
            if there:
                detail += f"; {self.session.host} did not say that {there} has ended, too"
            self._finish("stopped", reason, detail)
        elif now >= self.retry_at and not self.end:
            if not self.link:
                self._connect()
            elif self.link.here:
                self._sync(self.link)
        if not self.end:
            self._save()
            try:
                pane = os.environ.get("TMUX_PANE", "")
                self.boss.tmux.show_state(pane, self.state["state"], self.state["questions"])
            except TmuxError:
                pass  # the hangup, if that is what it is, arrives as a signal

    # ---- the connection ----

    def _connect(self) -> None:
        """Start ssh, or leave it to a later round while another runner has the lock for that.
        The lock is freed once the other side has spoken, ssh has ended, or both took long."""
        path = f"{self.store.home}/ssh-{os.getpid() % SSH_STARTS}"
        if self.slot is None:
            self.slot = self.store.lock(path)
        if self.slot is None:
            return
        near = f"{self.store.home_id()}.{self.name}"
        os.truncate(2, 0)  # runner.log, of which _on_break reports what this ssh will say
        try:
            self.link = Link(self.session.host, ["mcp", "--near", near], self.env)
        except CaoError as error:
            self._finish("failed", "never_started", str(error))

    def _read(self, link: Link) -> None:
        """Take in what came from there. What is no cao's word ends the session; what this machine
        or that one refuses ends the connection, and the next one repeats it."""
        here = link.here
        try:
            for line in link.read():
                result = parse_json(line)["result"]
                if result.get("isError"):  # what that machine refuses now, it may do soon
                    words = result["content"][0]["text"].replace("\ntry: ", "; try: ")
                    words = _one_line_each(words)
                    raise CaoError(f"{self.session.host}: {words}")
                if "structuredContent" in result:
                    self.asked -= 1
                    self._on_facts(_one_line_each(result["structuredContent"]))
                    self.broken_at = 0.0
        except _FALSE_WORDS as error:
            words = f"{self.session.host} says what is not understood: {error}"
            self._finish("lost", "runner_died", words)
        except FAILURES:  # the next connection repeats all of it
            os.kill(link.pid, signal.SIGTERM)
            raise
        if link.here and not here:
            self.store.log(self.name, "connected", host=self.session.host)
        if link.here or link.closed:
            self._free_slot()
        if link.closed and not self.end:
            self._on_break(link)

    def _free_slot(self) -> None:
        """Let another connection start."""
        if self.slot is not None:
            os.close(self.slot)
            self.slot = None

    def _await_start(self, link: Link, waited_s: float) -> None:
        """Hold up no other connection for long, and break this one where cao does not start there.
        waited_s: since ssh was started."""
        if waited_s > SSH_STARTS_S:
            self._free_slot()
        if waited_s > FAR_START_S:
            self.trouble = UNSTARTED.format(self.session.host)
            os.kill(link.pid, signal.SIGTERM)
            self._on_break(link)

    def _on_break(self, link: Link) -> None:
        """The connection broke, or never was: try again in a while. End the session here where
        no connection ever came about, or none for longer than the open task's timeout."""
        host, now = self.session.host, time.monotonic()
        words = _one_line_each(tail_lines(self.store.read_text(f"{self.folder}/runner.log"), 3))
        what = f"{host} cannot be reached: ssh ended with {link.end()}: {words}"
        what = self.trouble or what  # our own trouble: we ended the connection for it
        self.link, self.asked, self.far_task, self.mark, self.orders = None, 0, "", "", []
        self.sent.clear()
        self.broken_at = self.broken_at or now
        waiting = self.store.waiting(self.name)
        # It is not the open one yet: who gave it may still withdraw it.
        task = self.task or next((m for m in waiting if m.kind == "task"), None)
        most_s = RETRY_S
        if not self.task and not waiting:
            most_s = IDLE_RETRY_S
        self.retry_at = now + min(most_s, max(1.0, now - self.broken_at))  # 1, 1, 2, 4, 8 … s
        self.store.log(self.name, "disconnected", why=what)
        if not self.state["conversation"] and not link.here:
            self._finish("failed", "never_started", f"{what}; try: cao doctor --host {host}")
        elif task and now - max(self.broken_at, task.clock) > task.timeout_s:
            if self.task:
                what += "; the work may go on there"
            self._finish("lost", "unreachable", what)
        else:
            self.state.update(state="unknown", why=what)

    # ---- what goes there ----

    def _sync(self, link: Link) -> None:
        """Call `sync` there with what this connection has not sent yet, or where no such call
        waits there: that machine answers once it has news of the session. The oldest waiting task
        becomes the open one here; each connection sends it again, until its result is here."""
        waiting = [] if self.ending else self.store.waiting(self.name)
        if not self.task:
            self.task = next((m for m in waiting if m.kind == "task"), None)
        messages = [m for m in waiting if m.kind != "task"]
        if self.task:
            messages.append(self.task)
        unsent = [m for m in messages if m.id not in self.sent]
        if self.asked and not unsent and not self.orders and not self.kept:
            return

        there, cwd = self.state["conversation"], self.session.cwd
        if there:
            cwd = ""
        profile = self.boss.launched(self.name)
        wanted = {
            "session": there,
            "cwd": cwd,
            "depth": self.session.depth,
            "profile": profile._asdict() if profile else {},
            "tasks": [m._asdict() for m in unsent if m.kind == "task"],
            "task": self.far_task,
            "letters": [self._letter(m) for m in unsent if m.kind != "task"],
            "orders": self.orders,
            "kept": self.kept,
            "mark": self.mark,
        }
        self.asked += 1
        self.sent.update(message.id for message in unsent)
        self.orders, self.kept = [], []
        link.call("sync", wanted)

    def _letter(self, message: Message) -> dict[str, str]:
        """Return a message as it is sent there. Its sender there is this side as a whole, so any
        sender but the supervisor is named in the text."""
        text = message.text
        if message.sender != self.session.supervisor:
            text = f"(from {message.sender}) {text}"
        return {"id": message.id, "text": text}

    def _on_order(self, order: dict[str, Any]) -> None:
        """Begin the end at a `stop`; pass any other order on, or refuse it where that machine, or
        the session there, cannot be reached now."""
        if order.get("cao") == "stop":
            self._end("stopped", "the session was stopped")
        elif self.link and self.link.here and self.state["conversation"]:
            self.orders.append({"id": "interrupt", **order})
        else:
            self._on_reply(order.get("id", ""), {"failed": "no connection now"})

    def _end(self, reason: str, detail: str) -> None:
        """Order the session's end there; _go_on ends it here once that is told, after FAR_STOP_S,
        or at once where there is no connection. `closing` has whoever gives a task now wait."""
        if not self.ending:
            self.ending = (reason, detail, time.monotonic() + FAR_STOP_S)
            self.state["closing"] = True
            self.orders.append({"id": "stop", "cao": "stop"})

    # ---- what comes from there ----

    def _on_facts(self, facts: dict[str, Any]) -> None:
        """Take in what `sync` answered. Each part is made a text, a number or a record of
        ours; what cannot be made so raises one of _FALSE_WORDS, and _read ends the session."""
        self.mark = facts["mark"]
        if facts["session"]:
            self.state["conversation"] = _name_from_there(facts["session"])
        for letter, reply in facts["replies"].items():
            self._on_reply(letter, reply)
        for message in facts["messages"]:
            self._keep(make_record(message, Message))
        if facts["result"] and self.task and self.far_task:
            self._keep_result(make_record(facts["result"], Result))

        state, why, last_line = (str(facts[key]) for key in ("state", "why", "last_line"))
        if state == "ended" and not self.task:
            reason, detail = "stopped", why
            if self.ending:
                reason, detail, _ = self.ending
            self._finish("stopped", reason, detail)
            return
        if state in ("idle", "ended") and self.task:
            state = "working"  # it is about to begin, or its result to come
        questions = [make_record(asked, Question) for asked in facts["questions"]]
        for question in questions:
            _name_from_there(question.id)
            _name_from_there(question.kind)
            for option in question.options:
                "".join(Option(*option))  # raises where it is not two texts
        usage = None
        if facts["usage"]:
            usage = {key: int(facts["usage"][key]) for key in ("input", "cached", "output")}
        self.state["questions"] = [question._asdict() for question in questions]
        self.state.update(state=state, why=why, last_line=last_line, usage=usage)

    def _on_reply(self, letter: str, reply: dict[str, Any]) -> None:
        """Take in what came of a task, a message or an order of ours. letter: its id; reply: has
        `failed`, in words, where it was refused there."""
        failed = str(reply.get("failed", ""))
        words = f"{self.session.host}: {failed}"
        message = next((m for m in self.store.waiting(self.name) if m.id == letter), None)
        if self.task and letter == self.task.id:
            if failed:
                self._end_task(Result("", "", "failed", reason="never_started", detail=words))
                if not self.state["conversation"]:
                    self._finish("failed", "never_started", words)
                return
            self.far_task = str(reply["task"])
            if reply["attach"]:
                self._show(list(map(str, reply["attach"])))
            self.store.discharge(self.name, letter)
        elif message:
            way = {"step": str(reply.get("step")), "exact": str(reply.get("exact"))}
            self.state["delivery"] = {"messages": [letter], "at": time.time(), **way}
            if failed:
                self.boss.notify_undelivered(message, words)
            self.store.discharge(self.name, letter)
        else:
            text = str(reply.get("answered", words))
            self.state["reply"] = {"id": letter, "ok": not failed, "text": text}

    def _keep(self, message: Message) -> None:
        """Put a message from there into the supervisor's inbox here, once however often it comes.
        Where that cannot be now, it is not told as kept, and that machine says it again. Raises
        ValueError for a false id or sender, and for a text that is too large."""
        # It is to be a file's name here, and others are to sort after it: next_stamp.
        if not re.fullmatch(r"0\d{19}-[a-z0-9.-]+", message.id):
            raise ValueError(message.id)
        if len(message.text.encode(errors="surrogatepass")) > MAX_MESSAGE_BYTES:
            raise ValueError(f"{message.id} is too large")
        text = quote_heads(message.text)
        here = message._replace(to=self.session.supervisor, sender="cao")
        if message.kind == "notice":
            here = here._replace(text=f"({self.session.host}) {text}")
        else:
            if _name_from_there(message.sender) != self.state["conversation"]:
                text = f"(from {message.sender}) {text}"
            here = here._replace(kind="message", sender=self.name, text=text)
        try:
            self.store.put_once(here)
            self.kept.append(message.id)
        except (CaoError, OSError):  # that inbox is full, or gone: it stays there, and comes again
            self.mark, self.retry_at = "", time.monotonic() + LOOK_S

    def _keep_result(self, result: Result) -> None:
        """End the open task with its result from there, and have that machine told."""
        render_result(result)  # raises where it is of another form than ours
        _name_from_there(result.session)
        if not re.fullmatch("[a-z_]*", result.reason):
            raise ValueError(result.reason)
        OUTCOMES.index(result.outcome)  # raises where it is none
        where = f"done on {self.session.host} by {result.session}, in {self.session.cwd} there"
        self._end_task(result._replace(notes=(*result.notes, where), told_at=0.0))
        self.kept.append(result.task)

    def _end_task(self, result: Result) -> None:
        """Write the open task's one result: result with what is known here about that task."""
        task = self.task
        assert task is not None
        result = result._replace(
            task=task.task,
            session=self.name,
            host=self.session.host,
            seconds=round(seconds_since(task), 3),
            ended_at=time.time(),
        )
        self.boss.conclude(result, task.sender)
        self.store.discharge(self.name, task.id)
        self.task, self.far_task, self.state["reattached"] = None, "", 0
        self.store.log(self.name, "result", task=task.task, outcome=result.outcome)

    def _show(self, attach: Sequence[str]) -> None:
        """Show the terminal of the session there, for reading; what is typed here goes nowhere."""
        if self.child:
            os.kill(self.child, signal.SIGKILL)
            os.waitpid(self.child, 0)
            self.child = 0
        words = quote_argv(["env", "TERM=xterm-256color", *attach])
        ssh = ssh_argv(self.env, "-t", "--", self.session.host, words)
        self.child = spawn_foreground(ssh, {**self.env, **tmux_variables()})

    def _finish(self, outcome: str, reason: str, detail: str) -> None:
        """End the session here: give every open task its result, report the messages, write the
        last state. What fails on the way is done again by the next round, from the beginning."""
        if self.over:
            return
        self.end = (outcome, reason, detail)
        base = Result("", self.name, outcome, host=self.session.host)
        at_work = {**self.state}
        self.boss.answer_all(self.name, at_work, outcome, reason, detail, base)
        self.task = None
        self.state.update(state="ended", why=detail, closing=False, questions=[])
        self.store.log(self.name, "ended", outcome=outcome, reason=reason)
        self._save()
        self.boss.answer_all(self.name, at_work, outcome, reason, detail, base)  # came meanwhile
        self.store.set_live(self.name, False)
        self.store.poke_up(self.name)
        self.over = True


def note_failure(store: Store, name: str, error: Exception, known: str) -> str:
    """Log, and say in runner.log, what a session's runner could not do: the next round tries
    again. Return the words. known: the words of the last failure, which are not said twice."""
    words = str(error)
    if words != known:
        store.log(name, "failed", words=words)
        complain(words)
    return words


def hear_signals(note: Callable[[int, Any], None]) -> int:
    """Have note called at each signal that concerns a runner; ignore a terminal's stops, and
    SIGPIPE. Return a descriptor that can be read once a signal came."""
    woken, waker = os.pipe()
    for end in (woken, waker):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    return woken


def run_session(store: Store, name: str) -> int:
    """Be a session's runner, the pane's own process, until it ends; return its exit status.
    Raises CaoError where there is no such session, or it has a runner already."""
    session, folder = store.find(name), store.folder(name)
    # The pane dies with this process; its last words must outlive both.
    path = f"{folder}/runner.log"
    if os.path.lexists(path) and not os.path.isfile(path):
        store.quarantine(path)
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), 2)
    lock = store.lock_session(name)
    if lock is None:
        raise CaoError(f"session {name} has a runner already", f"cao why {name}")
    runner = (Remote if session.host else Runner)(store, session)
    runner.lock = lock
    _GitLimit.seconds = GIT_S
    try:
        status = runner.run()
        while isinstance(runner, Runner) and runner.again:
            before, runner = runner, Runner(store, session)
            runner.lock = before.lock
            before.wake.close()
            status = runner.run(before)
        return status
    finally:
        runner.wake.close()
        os.close(runner.lock)


# ==== 10. Schedule ====================================================================
#
# cron keeps the time. Each flow is one line in the user's crontab, and that line runs
# `cao schedule run NAME`. systemd, launchd and Kubernetes can run the same command.
#
#   flows/NAME/flow.json     the flow as it was added
#   flows/NAME/env           PATH and the providers' variables: cron starts with almost none
#   flows/NAME/lock          held while a run is entered, or the flow removed
#   flows/NAME/runs/ID.json  the record of one run; it gets an outcome when the run ends
#   flows/NAME/runs/ID.lock  held by the process that carries the run out
#
# A record without an outcome whose lock is free: the process was killed, the run is lost.


class Flow(NamedTuple):
    """A flow file: a task for an agent, and when it is due."""

    name: str
    file: str
    schedule: str
    agent_profile: str = ""
    provider: str = ""
    script: str = ""
    timeout: str = "1h"
    max_tokens: str = ""
    working_directory: str = ""
    overlap: str = "skip"  # when the run before it is still going on
    # This and the next are here to be refused: cron has neither. Only this machine's own zone,
    # and catch_up: false, pass.
    timezone: str = ""
    catch_up: str = ""
    on_failure: tuple[str, ...] = ()  # a program that gets a failed run's record on stdin
    prompt: str = ""
    unknown: tuple[str, ...] = ()
    fault: str = ""  # why the file cannot be read now; the rest is as it was when added

    def beside(self, path: str) -> str:
        """Return a path that the flow's file names, absolute: ~ is the home, and a relative one,
        or "", counts from the folder of that file."""
        return os.path.normpath(os.path.join(os.path.dirname(self.file), os.path.expanduser(path)))


_SCHEDULE_FORM = (
    "write it like '0 9 * * 1-5' (minute hour day month weekday) or @daily, as in crontab(5)"
)
_TIMER = (  # when its service ends, systemd ends all that it started: our tmux server, too
    "a systemd timer (with KillMode=process in its service, else a run's end ends all sessions)"
)
_FLOW_FORMS = (  # a key, what its value must look like, and what to write else
    ("name", r"\w[\w-]{0,63}", "use letters, digits, - and _"),
    (  # crontab judges the fields: here, nothing but five of them may get into its line
        "schedule",
        r"[\w*,/~-]+([ \t]+[\w*,/~-]+){4}"
        "|@(reboot|yearly|annually|monthly|weekly|daily|midnight|hourly)",
        _SCHEDULE_FORM,
    ),
    ("agent_profile", r".+", "name a profile, like developer"),
    ("max_tokens", r"([1-9]\d*)?", "write a number above 0: 200000"),
    (
        "overlap",
        "skip|parallel",
        "write skip or parallel: cron keeps no run waiting. To start the next one when the last has"
        f" ended, use {_TIMER} with OnUnitInactiveSec=",
    ),
    (
        "catch_up",
        "(False)?",
        "leave it out: cron never runs what it missed. Let launchd call cao schedule run NAME, or"
        f" {_TIMER} with Persistent=true",
    ),
    ("provider", "|".join({"", *PROVIDERS} - {"command"}), ", ".join(PROVIDERS)),
)


def parse_flow(text: str, file: str) -> Flow:
    """Return the flow in a file's text; those of the reference program load unchanged.

    file: its absolute path; the file's name gives a flow without one its name. Raises CaoError for
    what cron or cao cannot do, and for a variable in the task of a flow without a script. It is
    not looked at whether the profile and the script are there.
    """
    settings, prompt = parse_frontmatter(text, file)
    given = dict(Flow._field_defaults, name=os.path.basename(file).partition(".")[0], schedule="")
    given.update({key: value for key, value in settings.items() if value is not None})
    given["provider"] = provider_name(str(given["provider"]))
    for key, form, fix in _FLOW_FORMS:
        if not re.fullmatch(form, str(given[key]), re.A):
            seen = "left out"
            if given[key]:
                seen = repr(given[key])
            raise CaoError(f"{file}: {key!r} cannot be {seen}", fix)
    if not prompt.strip():
        raise CaoError(f"{file}: there is no task", "write it below the head, after the second ---")
    zone = os.path.realpath("/etc/localtime").partition("/zoneinfo/")[2]
    if str(given["timezone"]) not in ("", zone, time.tzname[0]):
        raise CaoError(
            f"{file}: 'timezone' cannot be {given['timezone']!r}",
            "leave it out, and write the schedule in this machine's time: cron goes by that. For"
            f" another zone, use {_TIMER} with OnCalendar=",
        )
    if not isinstance(given["on_failure"], (list, tuple)):
        what = f"{file}: 'on_failure' cannot be {given['on_failure']!r}"
        raise CaoError(what, "write it like  on_failure: [program, argument]")
    fields: dict[str, Any] = {key: str(given[key]) for key in Flow._fields if key in given}
    fields.update(
        file=file,
        prompt=prompt,
        fault="",
        on_failure=tuple(map(str, given["on_failure"])),
        unknown=tuple(sorted({*settings} - {*Flow._fields})),
    )
    flow = Flow(**fields)
    if not flow.script:  # then nothing gives a variable its value: this raises
        fill_variables(prompt, {}, file)
    parse_seconds(flow.timeout)  # raises
    return flow


def fill_variables(prompt: str, given: dict[str, Any], source: str) -> str:
    """Return a prompt with its [[variables]] filled: text as it is, any other value as JSON.

    given: name -> value; more than the prompt has is fine. source names the flow's file in the
    CaoError that names the variables not given.
    """
    missing = sorted({name for name in re.findall(r"\[\[(\w+)\]\]", prompt) if name not in given})
    if missing:
        raise CaoError(
            f"{source}: nothing gives a value to {', '.join(f'[[{name}]]' for name in missing)}",
            'let the script print {"execute": true, "output": {"' + missing[0] + '": …}}',
        )

    def fill(variable: re.Match[str]) -> str:
        value = given[variable[1]]
        if isinstance(value, str):
            return value
        return json.dumps(value)

    return re.sub(r"\[\[(\w+)\]\]", fill, prompt)


def run_script(flow: Flow) -> dict[str, Any] | None:
    """Run a flow's script in its folder and return the variables it gives, None where it says
    not to run. Raises CaoError where it fails, or prints anything but the JSON of a verdict."""
    script = flow.beside(flow.script)
    ran = run([script], SCRIPT_S, cwd=os.path.dirname(script), errors="surrogateescape")
    verdict = parse_object(ran.out)
    execute, output = verdict.get("execute"), verdict.get("output", {})
    if ran.status or not isinstance(execute, bool) or not isinstance(output, dict):
        output = f"{ran.out.strip()}\n{ran.err.strip()}".strip()[-CHECK_TAIL_BYTES:]
        printed = tail_lines(output, 20) or "nothing"
        raise CaoError(
            f"the script {script} ended with exit status {ran.status} and printed: {printed}",
            'it must exit 0 and print {"execute": true, "output": {…}}, or false',
        )
    if not execute:
        return None
    decode_given(ran.out.encode(errors="surrogateescape"), f"the output of {script}")  # raises
    return output


def run_to_end(
    boss: Orchestrator,
    task: str,
    *,
    on_found: Callable[[Waited], None],
    patient: bool = False,
    on_look: Callable[[Waited], None] = lambda _: None,
) -> Waited:
    """Wait for a task's result, or, unless patient, for a question; return what came.

    As with await_tasks, the caller tells what is returned and then calls its `told`. What comes
    before that (messages and, if patient, questions, each once) goes to on_found, and counts as
    told afterwards. on_look is called at every look.
    """
    asked: set[str] = set()
    while True:
        asked_before = set(asked)
        waited = boss.await_tasks([task], 1e8, told=asked, on_look=on_look)
        new = [ask for ask in waited.asking if ask["question"]["id"] not in asked_before]
        waited = waited._replace(asking=tuple(new))
        if waited.results:
            return waited
        if new and not patient:
            return waited
        on_found(waited)
        waited.told()


def say_messages(waited: Waited) -> list[str]:
    """Say the messages that a wait found on stderr; return them as they were said."""
    texts = [render_message(message) for message in waited.messages]
    for text in texts:
        complain(text)
    return texts


def read_flow(file: str) -> str:
    """Return the text of a flow's file, or of another that a person named. Raises UsageError
    where it cannot be read, or is no UTF-8."""
    try:
        with open(file, "rb") as opened:
            return decode_given(opened.read(), f"the file {file}")
    except OSError as error:
        what = f"the file {file} cannot be read: {error.strerror}"
        raise UsageError(what, "check the path") from None


# ---- the crontab ----

# The last words of `crontab -l` where the user has no crontab yet. After any other failure
# nothing is known of the crontab, so nothing may be written.
NO_CRONTAB = re.compile(
    r"no crontab for .+"  # Vixie's cron 3.0pl1 (Debian 12), cronie 1.7.2
    r"|crontab: no crontab for .+"  # ISC cron (BSD, macOS)
    r"|crontab: can't open '.+': No such file or directory"  # BusyBox 1.35.0
    r"|(?:.+ )?user .+ has no fcrontab\."  # fcron 3.4.0, which ends with status 0
)

# To Vixie's cron and cronie % is a newline, unless \ stands before it; to BusyBox and fcron it
# is not, and the \ would stay. To BusyBox # may begin a comment. sh puts them in instead.
CRON_SIGNS = (("\"$(printf '\\045')\"", "%"), ("\"$(printf '\\043')\"", "#"))


def run_crontab(word: str, text: str = "") -> Ran:
    """Run `crontab WORD` with text as its input; every byte is kept, in and out.

    LC_ALL=C: its words are those of NO_CRONTAB. EDITOR=cat: -e prints the crontab.
    """
    env = {**os.environ, "LC_ALL": "C", "EDITOR": "cat", "VISUAL": "cat"}
    return run([find_program("crontab"), word], 20, text=text, env=env, errors="surrogateescape")


def has_crontab() -> bool:
    """Tell whether there is a crontab program, and nothing keeps this user from it: cron.allow,
    cron.deny ("not allowed to use", Vixie's cron 3.0pl1 and cronie) or PAM (cronie)."""
    if program_fault("crontab"):
        return False
    return not re.search("(are|is) not allowed to (use|access)", run_crontab("-l").err)


def read_crontab() -> str:
    """Return the user's crontab, "" where there is none. Raises CaoError where it is not known:
    then nothing may be written in its place."""
    ran = run_crontab("-l")
    error = ran.err.strip()
    if not error:
        error = "it said nothing"
    if ran.status and (ran.out or not NO_CRONTAB.fullmatch(error.split("\n")[-1])):
        what = f"crontab -l ended with exit status {ran.status}: {error}"
        raise CaoError(what, "crontab -l must work first; the crontab was not changed")
    if not re.search(r"\\[rb]", ran.out):
        return ran.out
    # Debian's crontab -l (since 3.0pl1-149) shows CR as \r and BS as \b, its -e does not.
    exact = run_crontab("-e").out
    if ran.out not in (exact, exact.replace("\r", "\\r").replace("\b", "\\b")):
        raise CaoError("crontab -l does not tell \\r from CR", "remove it from your crontab")
    return exact


# ---- flows and their runs ----


def iso_time(at: float, timespec: str = "seconds") -> str:
    """Return a moment as ISO 8601 in local time, with its offset from UTC."""
    from datetime import datetime

    return datetime.fromtimestamp(at).astimezone().isoformat(timespec=timespec)


RUN: dict[str, Any] = {  # the record of a run
    "flow": "",
    "id": "",
    "started_at": None,
    "ended_at": None,
    "seconds": 0.0,
    "task": "",
    "outcome": "",  # one of OUTCOMES, or skipped; "": the run is going on
    "reason": "",
    "detail": "",
    "answer": "",
    "notes": (),
}
_RUN = {  # of which type a value in it has to be
    **dict.fromkeys("started_at ended_at task outcome reason detail answer".split(), str),
    "seconds": _NUMBER,
    "usage": _FACTS["usage"],
    "notes": [str],
}


class Schedule:
    """Owns flows/: which flows there are, their crontab lines, and what came of each run."""

    def __init__(self, store: Store) -> None:
        self.store, self.folder = store, f"{store.home}/flows"
        self.mark = f"# {tmux_socket(store.home)} flow"  # ends our lines, with the flow's name
        # One of our lines; its groups: a # where it is off, the schedule, the flow's name.
        fields = r"(@\w+|(?:\S+[ \t]+){4}\S+)"
        self.line = rf"^(#?)[ \t]*{fields}[ \t]+'env' .* {self.mark} ([\w-]+)[^\S\n]*$\n?"

    # ---- the flows ----

    def _file(self, name: str, file: str) -> str:
        """Return the path of one of a flow's files."""
        return f"{self.folder}/{name}/{file}"

    def names(self) -> list[str]:
        """Return the names of the flows."""
        return [name for name in _listdir(self.folder) if self._added(name)]

    def _added(self, name: str) -> Flow | None:
        """Return a flow as it was when it was added, None where there is none."""
        if name not in _listdir(self.folder):  # it may be a path to somewhere else
            return None
        flow: Flow | None = self.store.read_record(self._file(name, "flow.json"), Flow)
        return flow

    def load(self, name: str) -> Flow:
        """Return a flow as its file is now; where that cannot be read now, as it was when it was
        added, with the reason in `fault`. Raises NotFoundError where there is no such flow."""
        added = self._added(name)
        if added is None:
            raise NotFoundError(f"there is no flow {name!r}", "cao schedule list, or add FILE")
        try:
            return parse_flow(read_flow(added.file), added.file)._replace(name=name)
        except CaoError as error:
            return added._replace(fault=str(error))

    def add(self, flow: Flow, passed: Sequence[str]) -> None:
        """Enter a flow, and its line in the crontab if has_crontab; it takes the place of a
        flow of that name, whose runs stay. Raises CaoError where that one is another file's.

        passed: names of variables (or beginnings with a *) to keep for its runs, besides the
        default ones.
        """
        before = self._added(flow.name)
        if before and before.file != flow.file and os.path.exists(before.file):
            raise CaoError(
                f"{flow.name} is the flow of {before.file}",
                f"give this one another `name` in its head, or: cao schedule remove {flow.name}",
            )
        if has_crontab():
            self.put_line(flow)
        os.makedirs(self._file(flow.name, "runs"), 0o700, exist_ok=True)
        wanted = [*ENV_DEFAULT, *PASSED_ON, *ENV_OF_ALL, *passed]
        env = {key: value for key, value in os.environ.items() if is_listed(key, wanted)}
        for file, content in (("env", env), ("flow.json", flow)):
            self.store.write(self._file(flow.name, file), dump(content), durable=True)

    def remove(self, name: str) -> None:
        """Forget a flow and its history. Raises CaoError while a run of it is under way."""
        import shutil

        self.load(name)
        with FileLock(self._file(name, "lock")):
            if not all(record["outcome"] for record in self.runs(name)):
                raise CaoError(f"a run of {name} is under way", f"cao schedule log {name}")
            if has_crontab():
                self.set_line(name, "")
            shutil.rmtree(f"{self.folder}/{name}")

    def view(self, name: str, lines: dict[str, re.Match[str]]) -> dict[str, Any]:
        """Return what there is to say of a flow, as data; lines are those of lines()."""
        flow, line = self.load(name), lines.get(name)
        fields = last_run = None
        if line:
            fields = line[2]
        if runs := self.runs(name):
            last_run = runs[-1]
        if flow.fault:
            state = "broken"
        elif not line:
            state = "not scheduled"
        elif line[1]:
            state = "off"
        elif fault := self.line_fault(line):
            state = f"on, but {fault}"
        elif fields != flow.schedule:
            state = "on, but its file was changed"
        else:
            state = "on"
        return {
            "name": name,
            "state": state,
            "crontab": fields,
            "added_at": iso_time(written_at(self._file(name, "flow.json"))),
            "last_run": last_run,
            **flow._asdict(),
        }

    # ---- their crontab lines ----

    def lines(self) -> dict[str, re.Match[str]]:
        """Return the crontab lines of the flows: flow's name -> a match of `line`. Raises CaoError
        where the crontab is not known."""
        matches = re.finditer(self.line, read_crontab(), re.M | re.A)
        return {match[3]: match for match in matches}

    def put_line(self, flow: Flow) -> None:
        """Write a flow's crontab line, by which cron runs it with this Python and this cao.py.

        Every path in the line is data, to cron and to its shell. Raises CaoError for what cron
        cannot run, or may not find later.
        """
        cao = os.path.abspath(__file__)
        if re.search(r"/(?:\.cache|Caches|archive-v\d+)/", cao):
            what = f"cron cannot rely on {cao}: uv or pipx may empty their cache any time"
            raise CaoError(what, "install cao for good, or copy cao.py, and add the flow with that")
        home = f"CAO_HOME={self.store.home}"
        command = quote_argv(["env", home, sys.executable, cao, "schedule", "run", flow.name])
        if "\n" in command:
            raise CaoError(f"cron cannot run a path with a line break: {command!r}", "rename it")
        for octal, sign in CRON_SIGNS:
            command = command.replace(sign, f"'{octal}'")  # it stood inside quote_argv's quotes
        line = f"{flow.schedule} {command} >/dev/null {self.mark} {flow.name}\n"
        self.set_line(flow.name, line)

    def disable(self, name: str) -> None:
        """Let cron run a flow no more: its line, if it has one, is commented out."""
        self.load(name)
        line = self.lines().get(name)
        if line:
            self.set_line(name, f"# {line[0].lstrip('# ')}")

    def set_line(self, name: str, line: str) -> None:
        """Put a line in the place of a flow's crontab line, or at the end; "" removes it.

        Raises CaoError in crontab's words where it refuses; then the crontab is as it was.
        """
        # A user may have several CAO_HOMEs, or say another HOME, but has one crontab: the lock is
        # on the home that the user database knows.
        home = listed_home()
        if not os.path.isdir(home):
            home = os.path.expanduser("~")
        lock = os.open(home, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            pattern = self.line.replace(r"[\w-]+", name)
            text, count = re.subn(pattern, lambda _: line, read_crontab(), flags=re.M | re.A)
            if not count and not line:
                return
            if text and not text.endswith("\n"):
                text += "\n"  # without, crontab refuses all of it
            if not count:
                text += line
            word = "-r"  # remove it
            if text:
                word = "-"
            ran = run_crontab(word, text)
            if ran.status:
                what = f"crontab refused, and is as it was: {ran.err.strip()}"
                raise CaoError(what, f"if it is the schedule, {_SCHEDULE_FORM}")
        finally:
            os.close(lock)

    def stale_lines(self) -> dict[str, str]:
        """Return the crontab lines of ours that cannot run their flows: flow's name -> why. {}
        where the crontab is not known."""
        try:
            lines = self.lines()
        except CaoError:
            return {}
        stale = {name: self.line_fault(line) for name, line in lines.items()}
        # One that a person switched off cannot fail, while its flow is there.
        off = [name for name, line in lines.items() if line[1] and self._added(name)]
        return {name: fault for name, fault in stale.items() if fault and name not in off}

    def line_fault(self, line: re.Match[str]) -> str:
        """Return why a crontab line of ours cannot run its flow, "" where it can."""
        if not self._added(line[3]):
            return "there is no such flow"
        for path in re.findall(r" '(/[^']*)'(?= )", line[0]):  # of Python, and of cao.py
            if not os.path.exists(path):
                return f"{path} is gone"
        return ""

    # ---- the runs ----

    def runs(self, name: str) -> list[dict[str, Any]]:
        """Return the records of a flow's runs, the oldest first.

        A run whose process was killed comes as `lost`, without ended_at: that is found here by its
        lock, and not written down. A record that cannot be read goes into quarantine.
        """
        records = []
        for entry in _listdir(self._file(name, "runs")):
            run_id, _, ending = entry.rpartition(".")
            if ending != "json":
                continue
            key = {"flow": name, "id": run_id}
            # The lock first: a run that ends writes its outcome, then lets go of it.
            lock = self.store.lock(self._run_file(key, "lock"), shared=True)
            written = self.store.read_json(self._run_file(key, "json")) or {}
            if not fits_where_given(written, _RUN):
                self.store.quarantine(self._run_file(key, "json"))
                written = {}
            record = {**RUN, **written, **key}
            if lock is not None:
                os.close(lock)
                if not record["outcome"]:
                    detail = "the process of this run was killed"
                    record.update(outcome="lost", reason="killed", detail=detail)
            records.append(record)
        return records

    def run(self, name: str, on_look: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Run a flow now and return the run's record, whatever its end. Raises NotFoundError.

        Sets os.environ: PATH as it was when the flow was added, and what else was kept then and
        is missing now, for cron starts with almost none. on_look is called while it waits, and
        may raise KeyboardInterrupt: the run is then recorded as interrupted.
        """
        flow = self.load(name)
        env = self.store.read_json(self._file(name, "env")) or {}
        for key, value in env.items():
            if key == "PATH" or key not in os.environ:
                os.environ[key] = str(value)
        started, started_at = time.monotonic(), time.time()
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(started_at))
        run_id = f"{stamp}.{int(started_at % 1 * 1e6):06}Z"  # sorts by time
        record = {**RUN, "flow": name, "id": run_id, "started_at": iso_time(started_at)}
        with FileLock(self._run_file(record, "lock")):
            with FileLock(self._file(name, "lock")):
                self._enter(flow, record)
            try:
                if not record["outcome"]:
                    self._work(flow, record, on_look)
            except (CaoError, OSError) as error:
                detail = str(error).replace("\n", "; ")
                record.update(outcome="failed", reason="error", detail=detail)
            except KeyboardInterrupt:
                record.update(outcome="interrupted", reason="by_order")
            record["seconds"] = round(time.monotonic() - started, 1)
            self._conclude(flow, record)
        return record

    def _run_file(self, record: dict[str, Any], ending: str) -> str:
        return self._file(record["flow"], f"runs/{record['id']}.{ending}")

    def _save(self, record: dict[str, Any]) -> None:
        self.store.write(self._run_file(record, "json"), dump(record), durable=True)

    def _enter(self, flow: Flow, record: dict[str, Any]) -> None:
        """Write a run's first record, as skipped where one before it goes on (overlap: skip).

        For the runs before it whose process was killed, do what that process no longer can: end
        what they left, report them and write down that they are lost.
        """
        for before in self.runs(flow.name):
            if before["reason"] == "killed" and not before["ended_at"]:
                self._end_task(before)
                self._conclude(flow, before)
            elif not before["outcome"] and flow.overlap == "skip":
                detail = "the run before it is still going on"
                record.update(outcome="skipped", reason="overlap", detail=detail)
        self._save(record)

    def _end_task(self, record: dict[str, Any]) -> None:
        """End the session that a killed run has left, if it is still at the run's task, and nobody
        gave it another; put the task's answer, if there is one, into the run's record, which the
        caller saves. A session whose task is done may be a person's by now: if not, it closes as
        any idle one does."""
        boss, task = self._boss(), record["task"]
        try:
            session = self.store.session_of(task)
            if self.store.task_meant(session) == task and not self.store.has_result(task):
                boss.end(session)
            waited = boss.await_tasks([task], STOP_S)
            for result in waited.results:
                record["answer"] = result.answer
            self._note_messages(record, waited)
            waited.told()
        except CaoError:
            pass  # there was no task yet, or its session is gone

    def _conclude(self, flow: Flow, record: dict[str, Any]) -> None:
        """Report a run that failed to the flow's own command (on_failure), or say on stderr, which
        cron mails, what hindered that; note when the run ended, save its record, and drop the
        oldest records of the flow."""
        if flow.on_failure and record["outcome"] not in ("done", "skipped"):
            try:
                where = flow.beside(flow.working_directory)
                ran = run(flow.on_failure, SCRIPT_S, text=dump(record), cwd=where)
                words = tail_lines(ran.err[-CHECK_TAIL_BYTES:], 3)
                note, failed = f"exit status {ran.status} {words}".strip(), ran.status != 0
            except CaoError as error:
                note, failed = str(error), True
            record["notes"] = [*record["notes"], f"on_failure: {note}"]
            if failed:  # who relies on that program looks nowhere else
                complain(f"flow {flow.name}: on_failure: {note}")
        record["ended_at"] = iso_time(time.time())
        self._save(record)
        for old in self.runs(flow.name)[:-KEEP_RUNS]:
            _unlink(self._run_file(old, "json"))
            _unlink(self._run_file(old, "lock"))

    def _note_messages(self, record: dict[str, Any], waited: Waited) -> None:
        """Say what the agents of a run have told their supervisor on stderr, which cron mails, and
        put it into the run's record."""
        record["notes"] = [*record["notes"], *say_messages(waited)]
        if waited.messages:
            self._save(record)

    def _boss(self) -> Orchestrator:
        """Return who gives the tasks of all flows: the client "schedule", which acts for the person
        who added them, so with a person's rights."""
        make_client(self.store, "schedule")
        return Orchestrator(self.store, Caller("schedule", person=True))

    def _work(self, flow: Flow, record: dict[str, Any], on_look: Callable[[], None]) -> None:
        """Run the script, give the task, wait for its end, and put what came of it into record.

        A question of the agent's ends the run as failed, for nobody is there to answer. In any
        case the session is ended. What raises here is recorded by `run`.
        """
        if flow.fault:
            raise CaoError(flow.fault)
        given: dict[str, Any] | None = {}
        if flow.script:
            given = run_script(flow)
        if given is None:
            record.update(outcome="skipped", reason="script")
            return

        def named(task: str) -> None:
            record["task"] = task
            self._save(record)

        boss, where = self._boss(), flow.beside(flow.working_directory)
        if self.store.agent(flow.agent_profile):  # it would be ended with the run
            what = f"{flow.agent_profile} is a session, and a flow works in one of its own"
            raise CaoError(what, "name its profile as agent_profile")
        options = TaskOptions(
            where,
            timeout_s=parse_seconds(flow.timeout),
            provider=flow.provider,
            named=named,
            max_tokens=int(flow.max_tokens or 0),
        )
        boss.assign(flow.agent_profile, fill_variables(flow.prompt, given, flow.file), options)
        try:
            noted = partial(self._note_messages, record)
            waited = run_to_end(boss, record["task"], on_found=noted, on_look=lambda _: on_look())
        finally:
            # Nobody waits for what comes now: owed, it would keep the session from every `clean`.
            self.store.discharge(boss.caller.name, record["task"])
            boss.end(self.store.session_of(record["task"]))
        self._note_messages(record, waited)
        for ask in waited.asking:
            detail = f"{ask['session']} asks: {ask['question']['text']}; nobody is there to answer"
            record.update(outcome="failed", reason="asking", detail=detail)
        for result in waited.results:
            record.update(outcome=result.outcome, reason=result.reason, detail=result.detail)
            record.update(answer=result.answer, usage=result.usage)
        waited.told()  # whoever asks for the task by its name gets its result all the same


# ==== 11. Views =====================================================================


def render_question(session: str, question: dict[str, Any], path: Sequence[str] = ()) -> str:
    """Return a question as text without a last newline: who asks, what, and the options.

    path: names from a session above it down to this one; where they are several, all are said.
    """
    by_way = ""
    if len(path) > 1:
        by_way = f" (by way of {' > '.join(path)})"
    text = f"{session}{by_way} asks ({question['kind']}, {question['id']}): {question['text']}"
    lines = [text, *(f"  {option[0]}: {option[1]}" for option in question["options"])]
    # The further lines of each are indented by more than an option or the next question is: so the
    # asker's words cannot look like one of these.
    return "\n".join(line.replace("\n", "\n    ") for line in lines)


def render_questions(view: dict[str, Any]) -> str:
    """Return every open question in a session's view, whole; "" where there is none."""
    asked = view.get("questions", ())
    return "".join(render_question(view["session"], question) + "\n" for question in asked)


def how_to_answer(
    session: str, question: dict[str, Any], by_tool: bool = False, approves: bool = False
) -> str:
    """Return who may answer a question, and how, as a sentence for the one who reads it.

    by_tool: the reader is an agent with cao's tools, else a person at a shell. approves: the
    session's profile lets its supervisor give permissions, so that agent may."""
    kind, way = question["kind"], f"cao answer {session} yes, or no, or 'no: WORDS'"
    if kind == "screen":
        way = f"cao attach {session}, or by keys: cao answer {session} --key Down --key Enter"
        return f"A person has to answer in its terminal: {way}. The work goes on then; then wait."
    if kind == "interrupted":
        return "The person, or a message to it, starts its next turn. Then wait."
    if kind == "question":
        way = f"cao answer {session} ANSWER"
        approves = approves or not by_tool or question["where"] != "typed"
    if approves:
        tool = ""
        if by_tool:
            tool = "the tool answer, or "
        return f"Answer it with {tool}cao answer {session} ANSWER; then wait."
    if not by_tool:
        return f"Answer it: {way}; then: cao wait."
    return (
        f"A person has to answer: {way}. Tell the person; the work goes on after that; then wait."
    )


def render_session(view: dict[str, Any]) -> str:
    """Return a session's view as one line, indented by its `depth`; questions are shortened."""
    line = f"{'  ' * view.get('depth', 0)}{view['session']}  {view['state']}"
    line += f" for {render_seconds(view['for_s'])}"
    if view["kind"] == "agent":
        line += f"  {view['profile']} ({view['provider']})"
    if view.get("task"):
        line += f"  task {view['task']}"
    if view.get("usage"):
        line += f"  {render_tokens(view['usage'])}"
    if view["state"] in ("unknown", "working", "queued") and view.get("why"):
        line += f"  {view['why']}"
    for question in view.get("questions", ()):
        line += f"  asks: {shorten(question['text'], 60)}"
    return line


class DemoAgent:
    """A small agent that needs no account and behaves as a real CLI does: an input line,
    bracketed paste, a busy line, Esc, a menu, hooks, a state file; and it calls cao.

    A prompt may hold a line `demo: STEP; STEP …`; without one it says what it has read.
    It sets its terminal to raw mode when it is made; `run` sets it back.
    """

    def __init__(self, store: Store, launch_folder: str) -> None:
        import termios
        import tty

        self.store, self.launch_folder = store, launch_folder
        self.folder = os.path.dirname(launch_folder)
        self.boss = Orchestrator(store, shell_caller(store))
        self.heard: list[Waited] = []  # what the answer tells: off the books once that is out
        self.keys = b""  # read from the terminal, and not used yet
        self.saved = termios.tcgetattr(0)
        tty.setraw(0, termios.TCSANOW)

    def run(self, prompt: str) -> int:
        """Take prompts until /exit, the step `exit` or the end of input; return the exit status.
        prompt: the first one, "" to read that too."""
        import termios

        try:
            self.show("\x1b[?2004hdemo agent: it needs no account\n")
            while True:
                self.status("idle")
                prompt = prompt or self.read_prompt()
                if prompt.strip() == "/exit":
                    return 0
                if prompt.strip():
                    self.turn(prompt)
                prompt = ""
        except EOFError:
            return 0
        finally:
            self.show("\x1b[?2004l")
            termios.tcsetattr(0, termios.TCSANOW, self.saved)

    def show(self, text: str) -> None:
        os.write(1, text.replace("\n", "\r\n").encode(errors="replace"))

    def keep_trying(self, write: Callable[[], None]) -> None:
        """Call write until it succeeds: the disk may be full for a while. Raises EOFError, which
        ends the agent, where the session's folder is gone."""
        while True:
            try:
                return write()
            except FAILURES as error:
                if is_gone(self.launch_folder):
                    raise EOFError from error
                time.sleep(0.2)

    def status(self, word: str) -> None:
        path, text = f"{self.launch_folder}/status.json", json.dumps({"status": word})
        self.keep_trying(lambda: self.store.write(path, text))

    def hook(self, name: str, **fields: Any) -> None:
        text = json.dumps({"hook_event_name": name, **fields})
        self.keep_trying(lambda: self.store.put_event(self.folder, text))

    def key(self, timeout_s: float | None = None) -> bytes:
        """Return the next key: one byte (of a letter, the first), a whole escape sequence, or b""
        when none came within timeout_s (None: any time). Raises EOFError at the end of input."""
        while True:
            match = re.match(rb"\x1b\[[0-9;]*[A-Za-z~]|[^\x1b]|\x1b(?!\[|$)", self.keys, re.S)
            if match:
                self.keys = self.keys[match.end() :]
                return match[0]
            wait = 0.05 if self.keys else timeout_s
            if not readable([0], wait):
                key, self.keys = self.keys[:1], self.keys[1:]
                return key
            chunk = os.read(0, 65536)
            if not chunk:
                raise EOFError
            self.keys += chunk

    def read_prompt(self) -> str:
        """Return what is typed or pasted until an Enter outside a paste; C-u begins anew. It
        echoes no more than the first 150 bytes. Raises EOFError at C-d on an empty line."""
        text, pasting = b"", False
        self.show("\ndemo> ")
        while True:
            key = self.key()
            if key in (b"\x1b[200~", b"\x1b[201~"):
                pasting = key == b"\x1b[200~"
            elif key == b"\r" and not pasting:
                self.show("\n")
                return text.decode(errors="replace")
            elif key == b"\x15":
                text = b""
                self.show("\r\x1b[Kdemo> ")
            elif key == b"\x04" and not text:
                raise EOFError
            elif key[:1] != b"\x1b":
                if len(text) < 150:
                    self.show(key.decode(errors="replace") if key != b"\n" else " ")
                text += b"\n" if pasting and key == b"\r" else key

    def turn(self, prompt: str) -> None:
        """Work on one prompt and tell cao of it as a CLI's hooks do. Raises SystemExit where the
        step `exit` ends the agent."""
        self.status("busy")

        def note_prompt() -> None:
            with open(f"{self.launch_folder}/conversation.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"prompt": prompt}) + "\n")

        self.keep_trying(note_prompt)
        self.hook("UserPromptSubmit", prompt=prompt)
        if named := re.search(r" is in the file (\S+) \(\d+ bytes\)", prompt):
            prompt = self.store.read_text(named[1])
        match = re.search(r"^demo: ?(.*)$", prompt, re.M)
        # A step may hold another agent's script in braces.
        steps, below = [f"say {self.summary(prompt)}"], ""
        if match:
            steps = re.findall(r"(?:\{[^{}]*\}|[^;{}])+", match[1])
            below = prompt[match.end() + 1 :]
        answers = []
        for step in steps:
            verb, _, rest = step.strip().partition(" ")
            if verb == "exit":
                sys.exit(int(rest or 0))
            if verb == "fail":
                self.hook("StopFailure", error="server_error", last_assistant_message=rest)
                return
            answer = below if verb == "echo" else self.step(verb, rest)
            if answer is None:
                self.show("interrupted\n")
                self.status("idle")
                self.hook("Interrupt")
                return
            if answer:
                answers.append(answer)
        answer = "\n".join(answers)
        self.show(f"* {shorten(answer, 160)}\n")
        self.hook("Stop", last_assistant_message=answer)
        while self.heard:
            self.heard.pop().told()

    @staticmethod
    def summary(prompt: str) -> str:
        lines = prompt.splitlines()
        first = next((line.strip() for line in lines if line.strip()), "")
        size = f"{count_of(len(lines), 'line')}, {count_of(len(prompt.encode()), 'byte')}"
        return f"I have read {size}: {shorten(first, 60)}"

    def step(self, verb: str, rest: str) -> str | None:
        """Do one step; return what it adds to the answer, "" for nothing, or None when Esc ended
        it. An unknown step is said in the answer."""
        if verb == "say":
            return rest
        if verb == "sleep":
            self.show(f"working {rest} s (esc to interrupt)\n")
            if self.pressed_escape(float(rest)):
                return None
            return ""
        if verb in ("ask", "permit"):
            question, *options = (part.strip() for part in rest.split("|"))
            return self.ask(verb, question, options or ["Yes", "No"])
        if verb == "tell":
            self.boss.send_message("supervisor", rest, 0)
            return ""
        if verb == "tokens":  # as if a model had been asked: input, cached, output
            usage = dict(zip(("input", "cached", "output"), map(int, rest.split())))
            at = time.time() * 1000
            line = json.dumps({"id": random_letters(), "at": int(at), "usage": usage}) + "\n"
            with open(f"{self.launch_folder}/usage.jsonl", "a", encoding="utf-8") as file:
                file.write(line)
            return ""
        target, _, task = rest.partition(" ")
        if verb in ("handoff", "assign"):
            name = self.boss.assign(target, task.strip().strip("{}"), TaskOptions())
            if verb == "assign":
                return ""
            self.heard.append(self.boss.await_tasks([name], 600, want_all=True))
            return "\n".join(result.answer for result in self.heard[-1].results)
        if verb == "gather":
            return self.gather()
        return f"unknown step {verb!r}"

    def gather(self) -> str:
        """Wait for all tasks given to others; return what they and their messages say. A
        question of theirs is for a person: it does not end the wait."""
        lines: list[str] = []
        tasks = self.store.owed(self.boss.caller.name)
        told: set[str] = set()
        while True:
            waited = self.boss.await_tasks(tasks, 600, want_all=True, told=told)
            self.heard.append(waited)
            lines += [f"(on the way, {m.sender}: {m.text})" for m in waited.messages]
            if not waited.running:
                return "\n".join([*lines, *(f"{r.session}: {r.answer}" for r in waited.results)])

    def pressed_escape(self, seconds: float) -> bool:
        """Wait so long, or until Esc; tell whether it was pressed. Other keys are dropped."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self.key(left) == b"\x1b":
                return True
        return False

    def ask(self, verb: str, question: str, options: Sequence[str]) -> str | None:
        """Ask by a hook, which cao answers, and by a menu on the screen: the first answer counts.
        Return the chosen option or the words given (of a permission: both), None for Esc.

        verb: "ask" asks a question of the model's, "permit" for a permission.
        """
        payload: dict[str, Any] = {"hook_event_name": "PermissionRequest", "tool_name": "Bash"}
        payload["tool_input"] = {"command": question}
        if verb == "ask":
            labels = [{"label": option} for option in options]
            payload["tool_name"] = "AskUserQuestion"
            payload["tool_input"] = {"questions": [{"question": question, "options": labels}]}
        numbered = "".join(f"  {n}. {option}\n" for n, option in enumerate(options, 1))
        asking = Asking(self.store, self.boss.caller.name, payload)
        self.status("waiting")
        self.show(f"{'-' * 40}\n{question}\n{numbered}a number chooses, Esc cancels\n")
        answer: str | None = None
        while True:
            if self.keys or 0 in readable([0, asking.wake.fd], UNPOKED_S):
                key = self.key().decode(errors="replace")
                if key == "\x1b":
                    break
                if key.isdigit() and 1 <= int(key) <= len(options):
                    answer = options[int(key) - 1]
                    break
            asking.wake.drain()
            reply = asking.reply()
            if reply:
                answer = reply.get("words") or ""
                if verb == "permit":
                    chosen = options[-1] if reply["answer"] == "no" else options[0]
                    answer = f"{chosen} {answer}".strip()
                break
            if reply == {}:  # the menu alone is left: by order, or the runner is gone
                asking.withdraw()
        self.status("busy")
        asking.close()
        return answer


_DEMO = (
    "demo: assign demo {demo: sleep 2; say the parser is sound};"
    " assign demo {demo: sleep 1; tell I am half way; sleep 1; say the tests pass};"
    " assign demo {demo: ask Which name shall the release have?|Aurora|Borealis};"
    " gather"
)


def show_demo(store: Store, say: Callable[[str], None]) -> None:
    """Show the whole main job with agents that need no account. say: prints one text.

    No session is left running; their files, and the folder of a client that is made for the
    demo, stay until `cao clean`. Raises CaoError where the supervisor's task was not done.
    """
    started = time.monotonic()
    name = f"client-demo-{random_letters()}"
    make_client(store, name)
    boss = Orchestrator(store, Caller(name, person=True))
    seen: dict[str, str] = {}

    def tell(text: str) -> None:
        say(f"{time.monotonic() - started:5.1f} s  {text}")

    def tell_changes(_: Waited) -> None:
        """Tell each agent's state that has changed since the last call."""
        for view in boss.list_sessions():
            session, state = view["session"], view["state"]
            if view["kind"] == "agent" and seen.get(session) != state:
                seen[session] = state
                tell(f"{'    ' * view['depth']}{session} is {state}")

    def answer(waited: Waited) -> None:
        """Answer each new question as a person would, by its first option."""
        tell_changes(waited)
        for ask in waited.asking:
            session, question = ask["session"], ask["question"]
            number, text = question["options"][0][:2]
            words = ", ".join(option[1] for option in question["options"])
            tell(f"{session} asks: {question['text']} ({words})")
            boss.answer(session, text)
            tell(f"you answer: {text}   (cao answer {session} {number})")

    tell("you hand a task to a supervisor, an agent in a tmux session of its own")
    task = boss.assign("demo", _DEMO, TaskOptions(timeout_s=120))
    try:
        waited = run_to_end(boss, task, patient=True, on_found=answer, on_look=tell_changes)
        tell_changes(waited)
    finally:
        boss.end(store.session_of(task))
    waited.told()
    result = waited.results[0]
    if result.outcome != "done":
        raise CaoError(f"the demo ended as {result.outcome}: {result.detail}", "cao doctor")
    tell(f"the supervisor's answer, exact, {result.bytes} bytes, from its {result.source}:")
    say("\n" + "\n".join("    " + line for line in result.answer.splitlines()) + "\n")
    tell("all of it is in files you can read: " + store.result_path(task))
    say("Now with real agents:  cao handoff claude 'Which tests fail, and why?'")


def explain(boss: Orchestrator, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the evidence for a session's state, twice: as label -> words, in the order to read
    them, without what says nothing; and as facts for a program. Raises NotFoundError."""
    view, state = boss.read_session(name, PANE_LINES), boss.store.load_state(name)
    look, event = value_at(view, "evidence.look"), value_at(view, "evidence.event")
    has_runner, group = boss.store.is_locked(name), state.get("group")
    facts = {**view, "runner_alive": has_runner, "child": None}
    lock, child, exit_status = "free: no runner", "", ""
    last_event = last_look = title = ""
    if has_runner:
        lock = "held: its runner lives"
    if group:
        alive = is_running(group)
        facts["child"] = {"pid": group["id"], "alive": alive}
        child = f"{group['id']} {'alive' if alive else 'gone'}"

    if event:
        ago = render_seconds(max(0.0, time.time() - event["at"]))
        last_event = f"{event['kind']} by {event['source']}, {ago} ago"
    if look:
        last_look = f"{look['state']} by {look['source']} {look['why']}".strip()

    if view["kind"] == "agent":
        title = boss.tmux.title_of(name)
    if state.get("exit_status") is not None:
        exit_status = str(state["exit_status"])

    words = {
        "state": f"{view['state']} for {render_seconds(view['for_s'])}",
        "because": view.get("why"),
        "lock": lock,
        "child": child,
        "last event": last_event,
        "last look": last_look,
        "title": title,
        "screen": last_words(view["screen"], 200),
        "held back": state.get("held_back"),
        "asks": "; ".join(question["text"] for question in state.get("questions") or ()),
        "task": state.get("task"),
        "waiting messages": view["waiting_messages"],
        "waits for": " ".join(boss.store.running(name)),
        "exit status": exit_status,
        "transcript": state.get("transcript"),
    }

    return {key: value for key, value in words.items() if value}, facts


def _drop_worktree(store: Store, name: str) -> bool:
    """Remove a session's worktree and branch where nothing is lost by that. Tell whether it has
    no worktree now, or never had one. False where something would be lost, or git refuses."""
    path, session = worktree_path(store, name), store.peek(name)
    if session and not session.worktree:
        return True
    half_made = False
    try:
        origin = _worktree_origin(store, name)
        if os.path.isdir(path):
            # git was killed while it made the worktree: no worker was ever in it.
            lock = _git_path(path, "locked")
            half_made = store.read_text(lock).strip() == "initializing"
        with discarding(store):
            if half_made or not worktree_losses(store, name, origin):
                remove_worktree(store, name, origin, force=half_made)
    except CaoError:
        pass  # git cannot read it, or refuses: it stays
    return not os.path.lexists(path)


def _last_used(store: Store, name: str) -> float:
    """Return when something last happened to a session or client, or came for it: a message,
    or the result of a task it gave. In epoch seconds."""
    folder = store.folder(name)
    paths = [folder, *(f"{folder}/{part}" for part in ("state.json", "out", "inbox/new"))]
    paths += map(store.result_path, store.owed(name))
    return max(map(written_at, paths))


def _is_done_with(store: Store, name: str, owed: set[str], age_s: float) -> bool:
    """Tell whether nobody needs the folder of an ended session or client any more.

    A folder is needed while one of its results is owed to somebody (owed: all such tasks), and for
    EXPIRES_S while messages or results wait for the session itself. One whose session.json cannot
    be read is kept. age_s: since something last happened to it.
    """
    if is_gone(f"{store.folder(name)}/session.json"):
        return True  # who made it was killed before that was written
    session = store.peek(name)
    if not session or any(task in owed for task in store.results(name)):
        return False
    return age_s >= EXPIRES_S or not (store.waiting(name) or store.owed(name))


def clean(boss: Orchestrator, older_s: float) -> tuple[list[str], list[str]]:
    """Bury the dead sessions and remove what was not used for older_s. Return the names of the
    sessions removed, and a line on each that is kept because only another version can read it.

    It never removes the files of a live session or of one above it, nor a worktree in which one
    works or something could be lost, nor, before EXPIRES_S, a message or result that nobody was
    told.
    """
    import shutil

    store, removed, foreign = boss.store, [], []
    for name in store.live():
        if boss.state_of(name).get("state") == "ended":
            store.set_live(name, False)  # its runner was killed before this, its last step
    for name in filter(NAME.match, _listdir(f"{store.home}/worktrees")):
        # A worktree whose session's folder is gone gets a new one: so the loop below sees it,
        # and removes both once that is old.
        os.makedirs(store.folder(name), 0o700, exist_ok=True)
    needed = {above for name in store.live() for above in boss.ancestors(name)}
    owed = store.all_owed()
    for name in store.all_sessions():
        try:
            store.load(name)
        except CaoError as error:
            foreign.append(error.what)
            continue
        age = time.time() - _last_used(store, name)
        if name in needed or age < older_s:
            continue
        lock = store.lock_session(name)  # so that nobody resumes it meanwhile
        if lock is None:
            continue
        in_use = name in store.live() or not _is_done_with(store, name, owed, age)
        in_use = in_use or bool(sessions_inside(boss, name))
        gone = not in_use and _drop_worktree(store, name)  # which may take long: look again
        if gone and _is_done_with(store, name, store.all_owed(), age):
            shutil.rmtree(store.folder(name))
            removed.append(name)
        os.close(lock)
    _sweep_up(store, older_s)
    return removed, foreign


def _sweep_up(store: Store, older_s: float) -> None:
    """Remove the copies of cao that no session runs from and that were not used for older_s, the
    FIFOs of dead processes, and what processes that were killed had for git."""
    import shutil

    launches = [store.read_text(store.launch_file(n, "launch.json")) for n in store.all_sessions()]
    for entry in _listdir(f"{store.home}/lib"):
        copy = f"{store.home}/lib/{entry}"
        if time.time() - written_at(copy) >= older_s and not any(copy in text for text in launches):
            shutil.rmtree(copy)
    for entry in _listdir(f"{store.home}/worktrees"):
        scratch = f"{store.home}/worktrees/{entry}"
        # Somebody may read a diff for hours.
        if entry.startswith(".scratch-") and time.time() - written_at(scratch) >= 86400:
            shutil.rmtree(scratch)
    for entry in _listdir(f"{store.home}/wake"):
        pid, path = entry.partition("-")[0], f"{store.home}/wake/{entry}"
        # A pid of another namespace is not seen here; its FIFO is open all the same.
        if pid.isdigit() and not start_mark(int(pid), zombie=False) and not poke_fifo(path):
            _unlink(path)


# A terminal's colour of each state: ANSI's number, which is curses' own.
STATE_COLOURS = {"working": 4, "starting": 4, "queued": 5, "asking": 3, "idle": 2, "unknown": 1}


def session_rows(
    views: Sequence[dict[str, Any]], columns: int, live: bool = False
) -> list[tuple[str, str, str]]:
    """Return each session as one line of so many columns, made visible, in three parts: its place
    in the tree, its state, and the rest: age, task, and what it asks or said last.

    live: the line stays on a screen, which is drawn each second only while a session works. So
    for the other states it says since when they last, not for how long.
    """
    names = []
    for view in views:
        names.append("  " * view["depth"] + view["session"])
        if "host" in view:
            names[-1] += f"@{view['host']}"

    wide = min(max(map(len, names), default=0), columns * 3 // 8)
    rest = max(0, columns - wide - 2 - 9 - 2 - 12)
    rows = []

    for name, view in zip(names, views):
        state, age = view["state"], render_seconds(view["for_s"])
        if live and state not in ("working", "starting"):
            form = "since %H:%M" if view["for_s"] < 20 * 3600 else "since %b %d"
            age = time.strftime(form, time.localtime(time.time() - view["for_s"]))

        task, last = view.get("task_line", ""), view.get("last_line", "")
        asked = view.get("questions")
        if asked:
            last = f"asks: {asked[0]['text']}"
            if len(asked) > 1:
                last = f"asks {len(asked)} things: {asked[0]['text']}"

        if view.get("outcome"):
            last = f"{view['outcome']}: {last}".removesuffix(": ")

        urgent = state == "asking"
        if state in ("unknown", "working", "queued") and view.get("why"):
            last, urgent = view["why"], True

        tokens = ""
        if view.get("usage"):
            tokens = f"[{view['usage']['input'] + view['usage']['output']:,} tokens] "
        parts = [(tokens + task, rest * 2 // 5), (last, rest - rest * 2 // 5 - 2)]
        if rest < 70:  # room for one of them: what is urgent, else the task
            if not urgent:
                last = tokens + (task or last)
            parts = [(last, rest)]

        words = "  ".join(fit_columns(shorten(text, 400), width) for text, width in parts)
        rows.append((fit_columns(name, wide) + "  ", f"{state + ' ':9}", f"{age:12}  {words}"))
    return rows


def attach_argv(boss: Orchestrator, name: str) -> list[str]:
    """Return the tmux command that attaches our terminal to a session. Raises NotFoundError where
    it has ended or has no terminal, UsageError for a client. Takes TMUX out of this process's
    environment."""
    session = boss.store.peek(name)
    if not session:
        raise NotFoundError(f"no session {name!r} is running", "cao ls shows those that are")
    if session.kind == "client":
        raise UsageError(f"{name} is a client, not an agent", "cao ls shows the agents")
    if boss.is_over(name):
        raise NotFoundError(f"session {name} has ended", f"cao show {name} has its last screen")
    if not boss.tmux.pane_of(name):
        where = f"its terminal is not on the tmux socket {boss.tmux.socket_path}"
        raise NotFoundError(f"session {name} is running, but {where}", "set TMUX_TMPDIR as it was")
    os.environ.pop("TMUX", None)  # with it, tmux refuses to attach inside another tmux
    return [boss.tmux.program, "-u", "-L", boss.tmux.socket, "attach", "-t", f"={name}"]


# The facts of a session's view in which the filter of `cao watch` looks for its words.
WATCH_FILTERS = "session state profile provider supervisor cwd task_line last_line".split()
READ_LINES = 1000  # of a session's screen and history
ALL_LINES = 1 << 20  # a step to the first or last


# The verbs' errors name tools: what a person has in their place.
_COMMAND_OF = {
    "list_sessions": "cao ls --all",
    "read_session": "cao show",
    "send_message": "cao send",
    "stop_session": "cao stop",
}


def in_commands(text: str) -> str:
    """Return an error's text for a person, with commands in place of tools."""
    for tool, command in _COMMAND_OF.items():
        text = text.replace(tool, command)
    return text


class Key(NamedTuple):
    """A key of `cao watch`. One that carries out a verb stands in the verb's row of VERBS."""

    name: str
    word: str  # what it does, for the last line; "" where that has no room for it
    about: str  # the same for the help
    press: Callable[[Watch, Key], None]
    prompt: str = ""  # asks for the words of a verb that needs some
    # Carries the verb out, for a session, with these words and a question's id. Returns what the
    # last line says of it.
    call: Callable[[Orchestrator, str, str, str], str] | None = None


class Watch:
    """Owns the terminal during `cao watch`. It draws again when a session's state changes (the
    runner pokes us), a key is pressed or the size changes; while a session works, also once a
    second. Otherwise it sleeps."""

    def __init__(self, boss: Orchestrator, keys: Iterable[Key]) -> None:
        self.boss, self.wake = boss, Wake(boss.store)
        self.keys = {key.name: key for key in keys}
        self.states: dict[str, str] = {}  # of all agents, at the last look
        self.views: list[dict[str, Any]] = []  # the sessions in the list
        self.at, self.selected = 0, ""  # the selected session: its row, and its name
        # notice: a result or error on the last line, until the next key. verb: the key for which
        # words are being typed; label: its prompt; typed: the words so far.
        self.verb: Key | None = None
        self.notice = self.filter = self.label = self.typed = ""
        self.target = ("", "")  # the session, and its question, as they were when the verb began
        self.page = ""  # what is shown in place of the list: "screen", "question" or "help"
        self.asked = ("", "")  # a question's page: title and text
        self.over = False  # q was pressed in the list
        self.scroll = 0  # lines of the page below those that are shown
        self.unread = 0  # lines of the question that were not shown yet
        self.room = 1  # rows of the list, or lines of the page

    def run(self, screen: Any) -> None:
        """Show and obey until q is pressed in the list, or the terminal is gone. screen: the
        window that curses.wrapper gives."""
        import curses

        self.screen = screen
        self.wake.listen("")
        # All is drawn anew, even where the size is the old one: it may have been another for a
        # moment, which moved what the terminal shows.
        signal.signal(signal.SIGWINCH, lambda _number, _frame: screen.clearok(True))
        signal.set_wakeup_fd(self.wake.fd, warn_on_full_buffer=False)
        if curses.has_colors():
            curses.use_default_colors()
            for number in set(STATE_COLOURS.values()):
                curses.init_pair(number, -1 if os.environ.get("NO_COLOR") else number, -1)
        # The wheel's turns; curses of Python 3.9 has no name for those downwards.
        curses.mousemask(curses.BUTTON4_PRESSED | getattr(curses, "BUTTON5_PRESSED", 1 << 21))
        curses.mouseinterval(0)
        screen.nodelay(True)
        self.look()  # what was so before rings no bell
        while True:
            size = os.get_terminal_size()
            # A terminal that was told no size says 0; curses then takes the usual one.
            if 0 not in size and (size.lines, size.columns) != screen.getmaxyx():
                curses.resizeterm(size.lines, size.columns)
                if self.unread:  # the question is wrapped anew: show it from its first line
                    self.scroll = self.unread = ALL_LINES
            if self.look():
                curses.beep()
            self.draw()
            busy = {"working", "starting"} & {*self.states.values()}
            ready = readable([0, self.wake.fd], LOOK_S if busy else None)
            if ready == [self.wake.fd]:
                readable([0], 0.05)  # let pokes gather
            self.wake.drain()
            self.take_keys()
            if self.over or not os.isatty(0):
                return

    def look(self) -> bool:
        """Read the sessions into the list, bury the dead, and keep the selected one selected.
        Tell whether one has begun to ask or ended its work since the last look: that rings."""
        views = self.boss.list_sessions()
        self.arrange(views)
        before = self.states
        self.states = {v["session"]: v["state"] for v in views if v["kind"] == "agent"}
        for name in self.states:
            self.boss.watch(name)  # a kill -9 pokes nobody
        names = [view["session"] for view in self.views]
        if self.selected in names:
            self.at = names.index(self.selected)
        else:
            self.select(next((at for at, name in enumerate(names) if name in self.states), 0))
        for name in {*self.states, *before}:
            was, now = before.get(name, "starting"), self.states.get(name, "ended")
            at_work = was in ("working", "asking")
            if now != was and (now == "asking" or (at_work and now in ("idle", "ended"))):
                return True
        return False

    def arrange(self, views: Sequence[dict[str, Any]]) -> None:
        """Put into the list what the filter allows: those that ask, then the tree of the others."""
        self.views = []
        # Session -> the depth of its workers in the list: one that is left out, or moved to the
        # top because it asks, does not count above them.
        depths: dict[str, int] = {}
        for view in views:
            depth, asks = depths.get(view["supervisor"], 0), view["state"] == "asking"
            text = " ".join(str(view[key]) for key in WATCH_FILTERS if key in view)
            if self.filter.lower() in text.lower():
                self.views.append({**view, "depth": 0 if asks else depth})
                depth += not asks
            depths[view["session"]] = depth
        self.views.sort(key=lambda view: view["state"] != "asking")

    def select(self, at: int) -> None:
        """Select the session of a row, or of the nearest one there is; none in an empty list."""
        self.at, self.selected = max(0, min(at, len(self.views) - 1)), ""
        if self.views:
            self.selected = self.views[self.at]["session"]

    def draw(self) -> None:
        """Draw all: the counts, the list, the selected session, the keys; or a page of text.

        Notes what was shown: the lines below it (`scroll`), how many rows or lines there was room
        for (`room`), and how many lines of a question nobody has seen yet (`unread`).
        """
        import curses

        screen = self.screen
        height, columns = screen.getmaxyx()
        columns -= 1  # writing the last cell of the last line is an error to curses
        screen.erase()

        def put(y: int, x: int, text: str, look: int = 0) -> None:
            if 0 <= y < height and x < columns:
                # In the C locale curses leaves out what it cannot show.
                text = text.encode(screen.encoding, "backslashreplace").decode(screen.encoding)
                screen.addstr(y, x, fit_columns(text, columns - x), look)

        rows = session_rows(self.views, columns, True)
        at = self.at
        if self.page:
            rows, at = rows[at : at + 1], 0
        room = max(3, (height - 3) // 2)
        above = max(0, min(at - room // 2, len(rows) - room))
        shown = rows[above : above + room]
        below, marked = len(rows) - above - len(shown), at - above
        free = max(0, height - len(shown) - 3)
        title, lines = self.text(columns, free)
        if self.page:
            room = max(1, free)
            above = max(0, len(lines) - room - self.scroll)
            below = max(0, len(lines) - room - above)
            lines = lines[above : above + room]
            self.scroll, self.unread = below, min(self.unread, below)
        self.room = room

        states = [*self.states.values()]
        counted = [*COUNTED, *sorted({*states} - {*COUNTED})]
        head = ["cao", *(f"{states.count(state)} {state}" for state in counted)]
        if self.filter:
            head.append(f"/{self.filter}")
        if above or below:
            head.append(f"({above} more above, {below} more below)")
        put(0, 0, "  ".join(head), curses.A_BOLD)
        for y, (name, state, rest) in enumerate(shown, 1):
            mark = curses.A_REVERSE if y - 1 == marked else 0
            put(y, 0, name, mark)
            put(y, len(name), state, mark | curses.color_pair(STATE_COLOURS.get(state.strip(), 0)))
            put(y, len(name) + len(state), rest, mark)
        put(len(shown) + 1, 0, title, curses.A_UNDERLINE)
        for y, line in enumerate(lines, len(shown) + 2):
            put(y, 0, line)
        last = self.notice
        if not last:
            keys = [f"{key.name} {key.word}" for key in self.keys.values() if key.word]
            last = PAGE_KEYS if self.page else "  ".join(keys)
        if self.verb:
            label = f"{self.label} (Esc goes back): "
            if self.unread:
                more = count_of(self.unread, "more line")
                label = f"{self.target[0]}: page down, {more} (Esc goes back): "
            last = label + self.typed[-max(1, columns - len(label) - 1) :]
        put(height - 1, 0, last, curses.A_BOLD if self.verb else 0)
        screen.move(height - 1, max(0, min(len(last), columns - 1)))
        screen.refresh()

    def text(self, columns: int, lines: int) -> tuple[str, list[str]]:
        """Return the title and the text below it. On a page that is all of its lines. In the list
        it is about the selected session: what it asks, then the end of its screen, in so many
        lines. What cannot be read, or an empty list, is said in the title."""
        if self.page == "help":
            rows = [f"{key.name:13} {key.about}" for key in self.keys.values()]
            return "Keys", wrap_columns("\n".join((*rows, MOVES)), columns)
        if self.page == "question":
            return self.asked[0], wrap_columns(self.asked[1], columns, True)
        if self.filter and not self.views:
            return "No session has these words", []
        if not self.views:
            return "No session is running. Start one: cao launch, or cao handoff TARGET TASK", []
        try:
            view = self.boss.read_session(self.selected, READ_LINES if self.page else PANE_LINES)
        except CaoError as error:
            return f"{self.selected}: {error.what}", []
        title = "  ".join(str(view.get(k) or "") for k in ("session", "profile", "provider", "cwd"))
        if view.get("usage"):
            title += f"  {render_tokens(view['usage'])}"
        if self.page:
            return title, wrap_columns(view["screen"], columns)
        asked = wrap_columns(render_questions(view), columns, True)[:-1]
        if len(asked) > lines:
            asked[max(0, lines - 1) :] = [f"({len(asked) - lines + 1} more lines: a shows them)"]
        screen = view["screen"].split("\n")
        return title, [*asked, *screen[max(0, len(screen) + len(asked) - lines) :]]

    def take_keys(self) -> None:
        """Obey the keys that were pressed since the last time: words that are being typed get
        them first, then self.keys; others move."""
        import curses

        while not self.over:
            try:
                key = self.screen.get_wch()
                if key == curses.KEY_MOUSE:
                    upwards = curses.getmouse()[4] & curses.BUTTON4_PRESSED
                    key = curses.KEY_UP if upwards else curses.KEY_DOWN
            except curses.error:
                return  # that was the last one; or a click, which is none of ours

            if isinstance(key, int):
                key = curses.keyname(key).decode()
            key = KEY_NAMES.get(key, key)

            self.notice = ""
            if self.verb:
                self.type_key(self.verb, key)
            elif key in self.keys:
                self.keys[key].press(self, self.keys[key])
            else:
                self.move(key)

            if self.unread:
                self.draw()  # each line of a question is shown before it is answered

    def go_back(self, key: Key) -> None:
        """Leave a page; from the list, Esc ends the filter and q ends all."""
        if self.page:
            self.page = ""
        elif key.name == "q":
            self.over = True
        else:
            self.filter = ""

    def show_page(self, key: Key) -> None:
        """Show a session's screen, from its end, or the help, from its start."""
        self.page, self.scroll = "screen", 0
        if key.name == "?":
            self.page, self.scroll = "help", ALL_LINES

    def type_filter(self, key: Key) -> None:
        """Begin to type the words of the filter."""
        self.page, self.verb, self.label, self.typed = "", key, key.prompt, self.filter

    def begin(self, key: Key) -> None:
        """Begin a verb for the session that is selected now, whatever is selected once its words
        are typed. A verb that needs no words is carried out at once."""
        if not self.selected:
            return
        self.verb, self.target, self.typed = key, (self.selected, ""), ""
        self.label = f"{self.selected}: {key.prompt}"
        if not key.prompt:
            self.obey(key)

    def begin_answer(self, key: Key) -> None:
        """Begin to answer what the selected session asks first, and show it whole."""
        if not self.selected:
            return
        view = self.views[self.at]
        if not view.get("questions"):
            self.notice = f"{self.selected} asks nothing"
            if "asking" in self.states.values():
                self.notice += "; tab selects one that asks"
            return
        self.begin(key)
        question = view["questions"][0]
        self.target = self.selected, question["id"]
        self.asked = f"in {view['cwd']}", render_question(self.selected, question)
        self.page, self.scroll, self.unread = "question", ALL_LINES, ALL_LINES

    def select_asking(self, _key: Key) -> None:
        """Select the next session that asks, after the last one the first. They come first in
        the list."""
        asking = [view["state"] for view in self.views].count("asking")
        if self.page or not asking:
            return
        self.select(self.at + 1 if self.at + 1 < asking else 0)

    def move(self, key: str) -> None:
        """Select another session, or scroll the page, by a key's name."""
        step = STEPS.get(key, 0)
        if key.endswith("PAGE"):
            step *= self.room
        if self.page:
            self.scroll = max(0, self.scroll - step)
        else:
            self.select(self.at + step)

    def type_key(self, verb: Key, key: str) -> None:
        """Take a key, by its name, for the words of a verb. C-u and C-w delete as in a shell. Enter
        carries the verb out, but an answer only once the whole question was shown; Esc drops the
        words and leaves the verb."""
        if key in ("Esc", "\x15"):  # C-u
            self.typed = ""
        elif key in ("KEY_BACKSPACE", "\x7f", "\b"):
            self.typed = self.typed[:-1]
        elif key == "\x17":  # C-w
            self.typed = re.sub(r"\S*\s*$", "", self.typed)
        elif len(key) == 1 and key.isprintable():
            self.typed += key
        elif self.page:
            self.move(key)
        if not verb.call:
            self.filter = self.typed
        if key == "Esc" or (key == "enter" and not self.unread):
            self.obey(verb)

    def obey(self, verb: Key) -> None:
        """Carry out a verb with the words typed for it, and end it: the last line shows the
        result. Without the words that it needs, it does nothing."""
        name, question = self.target
        try:
            if verb.call and (self.typed or not verb.prompt):
                self.notice = f"{name}: {verb.call(self.boss, name, self.typed, question)}"
        except CaoError as error:
            self.notice = in_commands(str(error).replace("\n", "; "))
            questions = self.boss.store.load_state(name).get("questions") or ()
            if question in [asked["id"] for asked in questions]:
                # The question is still open, so the words were wrong. The verb goes on: they can
                # be mended, and what is typed next is not taken for keys of the list.
                self.asked = self.asked[0], f"{self.asked[1]}\n{self.notice}"
                self.scroll = 0
                return
        if self.page == "question":
            self.page = ""
        self.verb, self.unread = None, 0

    def attach(self, _key: Key) -> None:
        """Give the terminal to the selected session until the person detaches; the last line
        says where that fails."""
        import curses

        if not self.selected:
            return
        try:
            argv = attach_argv(self.boss, self.selected)
            curses.endwin()
            status = run(argv, None, terminal=True).status
            if status:
                self.notice = f"tmux ended with exit status {status}"
        except CaoError as error:
            self.notice = error.what
        self.screen.clear()


STEPS = {  # how far a key moves: in lines, or for the last two in screens
    "KEY_UP": -1, "k": -1, "KEY_DOWN": 1, "j": 1, "g": -ALL_LINES, "G": ALL_LINES,
    "KEY_PPAGE": -1, "KEY_NPAGE": 1,
}  # fmt: skip
KEY_NAMES = {"\n": "enter", "\r": "enter", "KEY_ENTER": "enter", "\t": "tab", "\x1b": "Esc"}
WATCH_KEYS = (  # those that carry out no verb
    Key("tab", "", "select the next session that asks", Watch.select_asking),
    Key("/", "", "show only the sessions with these words; Esc shows all again",
        Watch.type_filter, "show only"),
    Key("Esc", "", "go back", Watch.go_back),
    Key("?", "keys", "show the keys", Watch.show_page),
    Key("q", "quit", "go back; quit from the list", Watch.go_back),
)  # fmt: skip
WATCH_ORDER = "enter r a s i x tab / Esc ? q"  # of all keys, on the last line and in the help
MOVES = """\
up, down, page up, page down, j, k, g (first), G (last), mouse wheel
              select a session; scroll where a text is shown"""
PAGE_KEYS = "q back  page up, page down scroll  enter attach  a answer  ? keys"


# ---- trace: what sessions did, for Perfetto, speedscope and chrome://tracing ----


def render_trace(boss: Orchestrator, root: str) -> str:
    """Return what a tree of sessions did, by their logs and results, as JSON in Google's
    "Trace Event Format": one process, in it a thread for each session, times in microseconds
    since 1970 (the viewers begin at the first).

    root: the session at the top of the tree, "" for all sessions there are. Raises NotFoundError
    where there is no such session, or none of them has a log.
    """
    store = boss.store
    views = boss.list_sessions(True)
    if root:
        store.find(root)
        views = [v for v in views if root in (v["session"], *boss.ancestors(v["session"]))]

    # The states each session had, as (when, state, why); and what was sent to it or came back
    # from it, as (when, kind, sender, receiver, facts).
    states: dict[str, list[tuple[int, str, str]]] = {}
    arrows: list[tuple[int, str, str, str, dict[str, Any]]] = []
    for view in views:
        name = view["session"]
        states[name] = []
        waiting = {message.id: message for message in store.waiting(name)}
        giver = {}  # task -> who gave it
        for entry in read_log(store.read_text(f"{store.folder(name)}/log.jsonl")):
            at = round(entry["at"] * 1e6)
            if entry["event"] in ("state", "lost"):
                states[name].append((at, entry.get("state", "ended"), entry.get("why", "")))
            elif entry["event"] == "queued":
                message_id, about = entry["message"], {}
                if entry["kind"] == "task":  # the message's id is a time, and the task's name
                    about["task"] = message_id.partition("-")[2]
                    giver[about["task"]] = entry["sender"]
                if message := waiting.get(message_id) or store.taken(name, message_id):
                    about["text"] = shorten(message.text, 300)
                arrows.append((at, entry["kind"], entry["sender"], name, about))
        for task in store.results(name):
            if result := store.load_result(task):
                about = {"task": task, "outcome": result.outcome, "reason": result.reason}
                about["text"] = shorten(result.answer or result.detail, 300)
                if result.usage:
                    about["usage"] = result.usage
                at = round(result.ended_at * 1e6)
                arrows.append((at, "result", name, giver.get(task, ""), about))
    if not arrows and not any(states.values()):
        raise NotFoundError("no session has left a log", "cao handoff demo 'demo: say hello'")

    events: list[dict[str, Any]] = []

    def put(phase: str, thread: int, name: str, at: int, **more: Any) -> None:
        events.append({"ph": phase, "name": name, "pid": 1, "tid": thread, "ts": at, **more})

    put("M", 0, "process_name", 0, args={"name": "cao"})
    spans: dict[str, list[tuple[int, int]]] = {}  # session -> when each of its states began, ended
    threads = {view["session"]: number for number, view in enumerate(views, 1)}
    for view in views:
        name = view["session"]
        changes, thread = states[name], threads[name]
        if view["kind"] != "agent":  # a client: from the first thing it sent or got to the last
            own = [at for at, _, sender, receiver, _ in arrows if name in (sender, receiver)]
            if own:
                changes = [(min(own), "client", ""), (max(own) + 1, "ended", "")]
        elif view["state"] != "ended":
            changes.append((round(time.time() * 1e6), "ended", ""))
        spans[name] = []
        for (start, state, why), (end, _, _) in zip(changes, changes[1:]):
            if state != "ended" and end > start:
                spans[name].append((start, end))
                about = {"args": {"why": why}} if why else {}
                put("X", thread, state, start, cat="state", dur=end - start, **about)
        if spans[name]:
            shown = f"{name} ({view['provider'] or view['kind']})"
            put("M", thread, "thread_name", 0, args={"name": shown})
            put("M", thread, "thread_sort_index", 0, args={"sort_index": thread})

    # A viewer binds each end of an arrow to the span of its thread that it lies in.
    for number, (at, kind, sender, receiver, about) in enumerate(arrows, 1):
        sending = spans.get(sender, [])
        before = [span for span in sending if span[0] < at] or sending[:1]
        if not before:
            continue
        start, end = before[-1]
        left = min(max(at, start), end - 1)
        outcome = about.get("outcome", "done")
        if outcome != "done":
            put("i", threads[sender], outcome, left, s="t", cat="result", args=about)
        came = max(at, left)
        after = [start for start, end in spans.get(receiver, []) if end > came]
        if after:  # else the receiver had ended by then
            ends: dict[str, Any] = {"id": number, "cat": kind, "args": about}
            put("s", threads[sender], kind, left, **ends)
            put("f", threads[receiver], kind, max(came, after[0]), bp="e", **ends)
    events.sort(key=itemgetter("ts"))  # a span stays before what is bound to it
    other = {"ts": "microseconds since 1970"}
    trace = {"traceEvents": events, "displayTimeUnit": "ms", "otherData": other}
    return json.dumps(trace, indent=0) + "\n"


class Client(NamedTuple):
    """Where one MCP client keeps its servers, and what our entry has beside the command."""

    file: str  # its path, or words that say where to find it
    # The key of the servers there. toml, continue, goose and mcp (OpenCode's key) stand for a form
    # of their own: see render_entry.
    key: str = "mcpServers"
    extra: dict[str, Any] = {}  # noqa: RUF012 - never written to
    add: str = ""  # the client's own command that adds a server, up to the argv


# Files and keys as each client documents them (2026-11); a timeout where there is one.
CLIENTS: dict[str, Client] = {
    "claude-desktop": Client("claude_desktop_config.json (Settings > Developer > Edit Config)"),
    "claude-code": Client(
        ".mcp.json",
        extra={"type": "stdio", "timeout": 600000},
        add="claude mcp add --scope user --transport stdio cao --",
    ),
    "cursor": Client("~/.cursor/mcp.json", extra={"type": "stdio"}),
    "vscode": Client(".vscode/mcp.json", "servers", {"type": "stdio"}),
    "windsurf": Client("~/.codeium/windsurf/mcp_config.json"),
    "cline": Client("~/.cline/data/settings/cline_mcp_settings.json", extra={"timeout": 300}),
    "continue": Client(".continue/mcpServers/cao.yaml", "continue"),
    "codex": Client("~/.codex/config.toml", "toml", add="codex mcp add cao --"),
    "zed": Client("settings.json (zed: open settings)", "context_servers", {"env": {}}),
    "gemini": Client(
        "~/.gemini/settings.json", extra={"timeout": 600000}, add="gemini mcp add -s user cao"
    ),
    "opencode": Client("~/.config/opencode/opencode.json", "mcp"),
    "kiro": Client("~/.kiro/settings/mcp.json"),
    "copilot": Client(
        "~/.copilot/mcp-config.json", extra={"type": "local", "tools": ["*"], "timeout": 600000}
    ),
    "qwen": Client("~/.qwen/settings.json", extra={"timeout": 600000}),
    "kimi": Client("~/.kimi-code/mcp.json", extra={"toolTimeoutMs": 600000}),
    "goose": Client("~/.config/goose/config.yaml", "goose"),
    "jetbrains": Client("Settings > Tools > AI Assistant > Model Context Protocol > Add"),
    "lm-studio": Client("mcp.json (Program > Install > Edit mcp.json)"),
    "warp": Client("~/.warp/.mcp.json"),
}


def source_folder() -> str:
    """Return the folder of a checkout, which uvx and pipx can install cao from: the one this
    cao.py is in, or was installed from. Raises UsageError where there is none."""
    folder = os.path.dirname(os.path.abspath(__file__))
    if not os.path.isfile(f"{folder}/pyproject.toml"):  # installed: PEP 610 says where from
        from importlib import metadata
        from urllib.parse import unquote, urlsplit

        for part in metadata.distributions(name="cao-mcp", path=[folder]):
            noted = json.loads(part.read_text("direct_url.json") or "{}")
            folder = unquote(urlsplit(noted.get("url", "")).path)
    if not os.path.isfile(f"{folder}/pyproject.toml"):
        what = "uvx and pipx need the folder of a checkout, and this cao.py is in none"
        raise UsageError(what, "get one, and in it: python3 cao.py config CLIENT --form uvx")
    return folder


def own_command(form: str) -> list[str]:
    """Return an argv that runs `cao mcp` on this machine. form: uvx, pipx, copy (of this very
    file), or now (as this process is run).

    It is never the bare name cao-mcp, which any stranger may register on an index. Nor is it a
    path in the cache of uvx or pipx, which is emptied now and then: run from there, the form now
    gives their command. Raises CaoError where that program or a checkout is missing.
    """
    bin_folder = os.path.dirname(sys.executable)
    cached = re.search(
        r"/(archive-v\d+|environments-v\d+|pipx/\.cache|\.cache/pipx|Caches/pipx)/", bin_folder
    )
    if form == "now" and cached:
        form = "pipx" if "pipx" in cached[0] else "uvx"
    if form == "uvx":
        return [find_program("uvx"), "--from", source_folder(), "cao-mcp"]
    if form == "pipx":
        return [find_program("pipx"), "run", "--spec", source_folder(), "cao-mcp"]
    script = f"{bin_folder}/cao-mcp"  # of another cao, where this file was run by its path
    if os.path.realpath(sys.argv[0]) == os.path.realpath(__file__):
        form = "copy"
    if form != "copy" and os.access(script, os.X_OK):
        return [script]
    folder, file = os.path.split(os.path.abspath(__file__))
    if file != "cao.py":
        return [sys.executable, "-I", "-S", f"{folder}/{file}", "mcp"]
    # Imported, so that it is compiled once: a script is compiled at each start, 0.2 s.
    code = f"import sys; sys.path.append({json.dumps(folder)}); import cao; sys.exit(cao.main())"
    return [sys.executable, "-I", "-S", "-c", code, "mcp"]


def own_settings() -> dict[str, str]:
    """Return our settings in this environment, for a client's entry: the client starts its server
    without them, which would perhaps use another runtime directory."""
    names = ("CAO_HOME", "XDG_STATE_HOME", "CAO_CALL_CEILING_S", "CAO_ELICITATION", *PASSED_ON)
    own = {name: os.environ[name] for name in names if name in os.environ}
    if own.get("CAO_HOME"):
        own["CAO_HOME"] = runtime_home()  # absolute: the client starts its server anywhere
    return own


def render_entry(client: Client, argv: Sequence[str]) -> str:
    """Return the entry for a client's own file, in that file's language. argv: the command that
    runs `cao mcp`."""
    command, args, env = argv[0], list(argv[1:]), own_settings()
    if client.key == "toml":
        # Codex gives a server HOME, LANG, PATH, TERM and what is named here (0.171.0): workers
        # would be logged out.
        passed = sorted(set(worker_environment(ENV_OF_ALL, {})) - {"HOME", "LANG", "PATH"})
        lines = [
            "[mcp_servers.cao]", f"command = {_toml(command)}", f"args = {_toml(args)}",
            f"env_vars = {_toml(passed)}", "startup_timeout_sec = 60", "tool_timeout_sec = 600",
        ]  # fmt: skip
        if env:
            lines.append(f"env = {_toml(env)}")
        return "\n".join(lines)

    entry: dict[str, Any]
    if client.key in ("continue", "goose"):  # YAML, whose values may be JSON
        head = ["extensions:", "  cao:"]
        entry = {"name": "cao", "type": "stdio", "cmd": command, "args": args, "envs": env}
        entry.update(enabled=True, timeout=300)
        if client.key == "continue":
            head = ["name: cao", "version: 0.0.1", "schema: v1", "mcpServers:", "  - name: cao"]
            entry = {"type": "stdio", "command": command, "args": args, "env": env}
        lines = [f"    {key}: {json.dumps(value)}" for key, value in entry.items()]
        return "\n".join([*head, *lines])

    if client.key == "mcp":  # OpenCode
        entry = {"type": "local", "command": list(argv), "enabled": True, "timeout": 600000}
        named = "environment"
    else:
        entry, named = {"command": command, "args": args, **client.extra}, "env"

    if env:
        entry[named] = env
    return json.dumps({client.key: {"cao": entry}}, indent=2)


def explain_profile(profile: Profile) -> dict[str, Any]:
    """Return what is effective and what is ignored of a profile, as label -> words, without what
    says nothing. The names of environment variables are listed, never their values."""
    row, settings, effort = PROVIDERS[profile.provider], profile.settings, profile.effort
    if effort and not row.program:
        effort += "  (not passed on)"
    unknown = list(profile.unknown)
    for at, key in enumerate(unknown):
        if meant := key_advice(key, PROFILE_KEYS):
            unknown[at] = f"{key} (try: {meant})"
    trust = keep = ""
    if profile.trust:
        trust = "the folder-trust dialog may be answered"
    if profile.keep:
        keep = "never closes by itself"
    unused = [key for key in settings if _KEYS_OF.get(key, row.name) != row.name]
    facts: dict[str, Any] = {
        "name": profile.name,
        "from": profile.source,
        "about": profile.description,
        "provider": profile.provider + unproven(profile.provider),
        **{key: str(settings[key]) for key in _COMMAND_KEYS if settings.get(key)},
        "model": profile.model,
        "effort": effort,
        **explain_scope(profile),
        "trust": trust,
        "approve": profile.approve,
        "keep": keep,
        "mcp servers": " ".join(map(str, settings.get("mcpServers") or {})),
        "environment": " ".join(sorted(worker_environment(row.env_pass.split(), settings))),
        "unknown keys": " ".join(unknown),
        "read, not used": " ".join(unused),
    }
    return {key: value for key, value in facts.items() if value}


_COMMAND_KEYS = ("command", "ready", "busy", "asking", "answer", "exit")
_UNUSED_KEYS = (
    "tags capabilities skills toolsSettings toolAliases resources hooks useLegacyMcpJson tools"
).split()
_KEYS_OF = {  # keys that mean something to one provider only, or to none
    "claudeConfig": "claude",
    **dict.fromkeys(("codexConfig", "codexProfile"), "codex"),
    **dict.fromkeys(_COMMAND_KEYS, "command"),
    **dict.fromkeys(_UNUSED_KEYS, ""),
}


def _finding(what: str, state: str, detail: str, **facts: Any) -> dict[str, Any]:
    """Return a row of `cao doctor`. state: ok, missing, broken or stale; of a CLI also unproven,
    older or newer; of a live turn ok or look. facts: what detail says, for a program."""
    return {"what": what, "state": state, "detail": detail, **facts}


def doctor(store: Store) -> list[dict[str, Any]]:
    """Return rows (see _finding) on this machine. The second row is tmux's: cao can work where
    that is ok. A CLI that is missing or broken does not count."""
    from concurrent.futures import ThreadPoolExecutor

    python = sys.version.split()[0]
    rows, state = [_finding("python", "ok", python, version=python)], "missing"

    try:
        program = find_tmux()
        state = "broken"
        version = check_tmux(program)
        # TmuxError where its socket cannot be reached
        Orchestrator(store, Caller("")).tmux.pane_of("doctor")
        about = f"{version}  {program}"
        rows.append(_finding("tmux", "ok", about, version=version, path=program))
    except CaoError as error:
        rows.append(_finding("tmux", state, str(error).replace("\n", "; ")))

    rows.append(_finding("runtime directory", "ok", store.home, path=store.home))
    plan = Schedule(store)
    names = plan.names()
    for name, fault in plan.stale_lines().items():
        way = "cao clean"
        if name in names:
            way = f"cao schedule enable {name}"
        about = f"flow {name}: {fault}; try: {way}"
        rows.append(_finding("crontab", "stale", about, flow=name))

    clis = [row for row in PROVIDERS.values() if row.program]
    with ThreadPoolExecutor(len(clis)) as pool:  # some take ten seconds to say their version
        rows += pool.map(_doctor_cli, clis)
    return rows


def _doctor_cli(row: Provider) -> dict[str, Any]:
    """Return the row on one CLI: whether it is there, of the proven version, and logged in."""
    try:
        program = find_program(row.program)
    except CaoError:
        about = f"no {row.program} on PATH, nor where CLIs usually are"
        return _finding(row.name, "missing", about)

    try:
        ran = run([program, "--version"], DOCTOR_S)
        words = (ran.out.strip() or ran.err.strip()).split("\n")[0]  # pi says it on stderr
        logged_in, login = _login_state(row, program)
        login += _first_run(row)
    except CaoError as error:
        return _finding(row.name, "broken", error.what, path=program)

    match = re.search(r"\d+(?:\.\d+)+", words)
    version = match[0] if match else words
    state = proven = "unproven"

    if row.proven:
        proven = f"proven with {row.proven}"
        state = "newer"
        if version == row.proven:
            state = "ok"
        elif _version(version) < _version(row.proven):
            state = "older"

    about = f"{version}, {proven}, {login}  {program}"
    facts = {"version": version, "proven": row.proven, "logged_in": logged_in, "path": program}
    return _finding(row.name, state, about, **facts)


def _login_state(row: Provider, program: str) -> tuple[bool | None, str]:
    """Return whether a CLI is logged in, None where nothing tells, and the same in words. What
    tells it is a variable, a file, or a command of the CLI's own, which is run."""
    for sign in row.login_signs.split():
        if os.path.exists(os.path.expanduser(sign)) if sign[0] == "~" else os.environ.get(sign):
            return True, f"logged in ({sign})"
    if not row.login_status:
        return None, "login unknown"
    if run([program, *row.login_status.split()], DOCTOR_S).status == 0:
        return True, "logged in"
    return False, f"not logged in (try: {row.login})"


def _first_run(row: Provider) -> str:
    """Return words for the row where a CLI will ask for a theme and the like before its first
    task, else "". Claude Code 2.1.332 does until its own file says that it has."""
    if row.name != "claude":
        return ""
    folder = os.environ.get("CLAUDE_CONFIG_DIR") or os.path.expanduser("~")
    content = read_file(f"{folder}/.claude.json") or b""
    if parse_object(content.decode(errors="replace")).get("hasCompletedOnboarding"):
        return ""
    return ", its first run is to come (try: claude)"


def doctor_there(host: str) -> list[dict[str, Any]]:
    """Return what `doctor` returns on another machine, and copy this cao.py there where it lacks
    it. Raises UsageError for a name that is none, CaoError where ssh cannot reach it."""
    if not HOST.match(host):
        raise UsageError(f"{host!r} is no host's name", "as ssh takes it: build-box")
    env = worker_environment([*ENV_OF_PERSON, *PASSED_ON], {})  # as a worker's ssh has it
    link, output = Link(host, ["doctor", "--json"], env), b""
    late = ""
    while not link.closed:
        if not link.here and not readable([link.fd_in], FAR_START_S):
            late = UNSTARTED.format(host)
            os.kill(link.pid, signal.SIGTERM)
        output += b"".join(link.read())
    status = link.end()
    try:
        rows: list[dict[str, Any]] = parse_json(output)
        if not fits(rows, [dict.fromkeys(("what", "state", "detail"), str)]) or len(rows) < 2:
            raise TypeError("no rows")
        return rows
    except _FALSE_WORDS:  # it is broken off, or there is none
        what = late or f"{host} cannot be reached: ssh ended with {status}"
        if not status:
            what = f"{host} says what is not understood"
        raise CaoError(what, f"ssh {host} true") from None


def prove_live(boss: Orchestrator, target: str) -> dict[str, Any]:
    """Do one real turn of a CLI in the current directory, in a new session that is ended again.
    Return its row (see _finding): ok where the task was done and every signal that cao goes by
    came; else look, and the detail names those that did not. target: a provider or profile."""
    task = boss.assign(target, "Answer with this one word: ready", TaskOptions(timeout_s=LIVE_S))
    waited = boss.await_tasks([task], LIVE_S + 10)
    say_messages(waited)
    waited.told()
    name = boss.store.session_of(task)
    state = boss.control(name, {}, lambda state: state.get("state") == "idle", 3.0)
    row = PROVIDERS[boss.store.find(name).provider]
    boss.end(name)

    result = next(iter(waited.results), Result(task, name, "unfinished"))
    signals = {
        "prompt": result.exact[:7] not in ("", "unknown"),
        "end": result.source.startswith("hook"),
        "state": True,
        "tools": True,
    }

    if row.tells_state():
        signals["state"] = text_at(state, "evidence.look.state") not in ("", "unknown")
    if row.mcp:
        signals["tools"] = os.path.exists(boss.store.launch_file(name, "tools-listed"))

    parts = [f"asks: {ask['question']['text']}" for ask in waited.asking]
    parts.append(f"{result.outcome} {result.reason or 'in'} {render_seconds(result.seconds)}")
    for word, came in (("came", True), ("missing", False)):
        names = [signal for signal in signals if signals[signal] == came]
        if names:
            parts.append(f"{word}: {' '.join(names)}")

    verdict = "look"
    if result.outcome == "done" and all(signals.values()):
        verdict = "ok"
    return _finding(target, verdict, "; ".join(parts), outcome=result.outcome, signals=signals)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


# ==== 12. Verbs =====================================================================
#
# VERBS has one row for each thing that cao does: its command, its MCP tool and its keys in
# `cao watch` are made from it. To add one: a function, a row, a README line. All of tools/list
# stays within 10 kB: it is in every agent's context.


class Call(NamedTuple):
    """One use of a tool: who calls, and what its wait may use."""

    boss: Orchestrator
    server: Any  # McpServer: what it can ask the client
    told: set[str]  # ids of questions this client has heard
    ceiling_s: float
    answer_chars: int
    cancelled: Callable[[], bool] = lambda: False
    on_look: Callable[[Waited], None] = lambda _: None

    def wait(self, tasks: Sequence[str] | None, timeout_s: float, **how: Any) -> Answer:
        """Wait for tasks (None: all that is owed to the caller) and return what was found.

        The questions this client has heard do not end the wait; the call's cancelling does. how:
        more of Orchestrator.await_tasks. What is found is off the books once the answer is sent;
        where no answer can be made of it, the next wait finds it again.
        """
        how.update(told=self.told, cancelled=self.cancelled, on_look=self.on_look)
        known = frozenset(self.told)
        waited = self.server.await_tasks(self.boss, tasks, timeout_s, **how)
        try:
            return view_waited(self, waited, known)
        except BaseException:
            waited.release()
            raise


class Answer(NamedTuple):
    """What a tool gives: text for the model, the same as data for programs."""

    text: str
    data: dict[str, Any] | None
    # The tasks it is about. Where the call was cancelled, the next call's answer names them.
    left: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()  # on what it tells: off the books once the answer is sent
    failed: bool = False  # it is an error, which the model reads and can act on: isError
    earlier: str = ""  # said first: the task was given before this call


class Argument(NamedTuple):
    """An argument of a verb: of its command, of its tool, or of both.

    Where the name ends in _s it is a time. The tool takes seconds; the option of the command,
    whose name has no _s, takes 90s or 10m too.
    """

    name: str
    about: str  # for the person who types it, and for the model
    kind: str = "string"  # JSON Schema's word: string, number, boolean, array
    place: str = ""  # in the command: "" an option; 1, ?, * or + words; "-" nowhere
    tool: bool = True
    minimum: float = 0
    # more of argparse's: metavar, choices, default
    settings: dict[str, Any] = {}  # noqa: RUF012 - never written to

    def schema(self) -> dict[str, Any]:
        """Return it as JSON Schema, for the tool."""
        schema: dict[str, Any] = {"type": self.kind, "description": self.about}
        if self.kind == "number":
            schema["minimum"] = self.minimum
        if self.kind == "array":
            schema["items"] = {"type": "string"}
        return schema

    def option(self) -> str:
        """Return its name as an option of the command."""
        return "--" + re.sub("_s$", "", self.name).replace("_", "-")

    def add_to(self, parser: Any) -> None:
        """Add it to a command's parser. Where it is left out the parser gives None, but for a
        default in `settings`."""
        settings: dict[str, Any] = {"help": self.about}
        names = [self.name]
        if self.place not in ("", "1"):
            settings["nargs"] = self.place
        if not self.place:
            settings["dest"] = self.name
            names = [self.option()]
        if self.kind == "boolean":
            settings.update(action="store_true", default=None)
        elif self.name.endswith("_s"):
            settings.update(
                type=parse_seconds, metavar="TIME", help=f"{self.about} Also: 90s, 10m."
            )
        elif self.kind == "number":
            settings.update(type=int, metavar="N")
        settings.update(self.settings)
        parser.add_argument(*settings.pop("names", names), **settings)


TEXTS = {"task", "message", "answer"}  # the arguments of verbs that are text


def refuse_empty(arguments: Sequence[Argument], given: dict[str, Any]) -> None:
    """Raise UsageError for an argument of a command that is empty, such as a variable that is not
    set: a verb would take that for one that was left out. An empty text has its verb's own words.
    """
    for one in arguments:
        value = given.get(one.name)
        if one.name not in TEXTS and (value == "" or (isinstance(value, list) and "" in value)):
            name = one.name if one.place else one.option()
            raise UsageError(f"{name} is empty", f"give it a value, or leave {name} out")


def read_session_names(given: dict[str, Any], store: Store) -> None:
    """Put a session's name in the place of its task's: in the arguments of a verb that name one."""
    for key in ("session", "sessions", "target", "root"):
        names = given.get(key)
        if isinstance(names, list):
            given[key] = [store.session_meant(name) for name in names]
        elif names:
            given[key] = store.session_meant(names)


class Tool(NamedTuple):
    """One row of tools/list; its arguments are those of its verb."""

    name: str
    title: str
    about: str
    required: tuple[str, ...]
    gives: str  # the names of the data in its answer, with blanks between
    call: Callable[[Call, dict[str, Any]], Answer]
    reads: bool = False  # readOnlyHint
    ends: bool = False  # destructiveHint
    delegates: bool = False  # makes the client's folder
    arguments: Any = None  # name -> schema: those of its verb


def check_arguments(tool: Tool, given: dict[str, Any]) -> dict[str, Any]:
    """Return a tool's arguments as its schema has them: other obvious forms are put right (see
    read_argument), null for what may be left out is left out. Raises UsageError naming the one
    that is wrong, and what to write (JSON Schema 2020-12: the few words our own schemas use)."""
    for name in tool.required:
        if name not in given:
            example = ", ".join(f'"{name}": …' for name in tool.required)
            raise UsageError(f"{tool.name}: argument {name!r} is missing", f"write {{{example}}}")

    arguments = {}
    for name, written in given.items():
        schema = tool.arguments.get(name)
        if schema is None:
            known = ", ".join(tool.arguments) or "none"
            raise UsageError(
                f"{tool.name}: there is no argument {name!r}", f"the arguments are: {known}"
            )
        if written is None and name not in tool.required:
            continue

        kind = str(schema["type"])
        shape, example = KINDS[kind]
        value = read_argument(kind, written)
        # For Python, though not for JSON, true is a number.
        if not fits(value, shape) or isinstance(value, bool) != (kind == "boolean"):
            raise UsageError(
                f"{tool.name}: {name!r} must be {kind}, got {value!r:.60}",
                f'write "{name}": {example}',
            )

        least = schema.get("minimum", 0)
        if kind == "number" and not least <= value < 1e9:
            raise UsageError(
                f"{tool.name}: {name!r} is out of range: {value}",
                f'write "{name}": a number, {least} or more',
            )
        arguments[name] = value
    return arguments


KINDS: dict[str, tuple[Any, str]] = {  # JSON Schema's word -> the shape (see fits), an example
    "string": (str, '"…"'),
    "boolean": (bool, "true"),
    "number": ((int, float), "a number, without a unit"),
    "array": ([str], '["…", "…"]'),
}


def read_argument(kind: str, value: Any) -> Any:
    """Return an argument as its schema has it, where a model wrote it in another obvious form:
    "true", "60", 1 for "1", one name or "a, b" for a list. Anything else is returned as it is:
    whether it fits is for the caller to check."""
    if kind == "string" and type(value) in (int, float):
        return str(value)
    if not isinstance(value, str):
        return value
    if kind == "array":
        return re.findall(r"[^\s,\[\]\"']+", value)
    if kind == "boolean":
        return {"true": True, "false": False}.get(value.lower(), value)
    if kind == "number" and re.fullmatch(r"[0-9]{1,9}", value):
        return int(value)
    return value


def task_options(given: dict[str, Any]) -> TaskOptions:
    """Return the options in the arguments of handoff, assign or run."""
    fields = [field for field in TaskOptions._fields if given.get(field) is not None]
    return TaskOptions(**{field: given[field] for field in fields})


def longest_that_fits(sizes: Iterable[int], most: int) -> int:
    """Return at how many characters texts of these sizes have to be cut, so that all of them
    together have no more than `most`."""
    ascending, left = sorted(sizes), most
    for number, size in enumerate(ascending):
        share = left // (len(ascending) - number)
        if size > share:
            return share
        left -= size
    return most


def view_waited(call: Call, waited: Waited, known: frozenset[str] = frozenset()) -> Answer:
    """Return what a wait found, as text and as data. known: ids of the questions that the client
    had been told before that wait.

    Claude Code and Codex show the model the data alone: what to do next stands there too.
    """
    boss, store = call.boss, call.boss.store
    parts: list[str] = []
    data: dict[str, Any] = {}
    texts = [m.text for m in waited.messages]
    for result in waited.results:
        texts += [result.answer, *result.turns]
    most = longest_that_fits(map(len, texts), call.answer_chars)
    if waited.results:
        data["results"] = []
        for result in waited.results:
            shown = view_result(store, result, most)
            data["results"].append(shown)
            fitting = result._replace(answer=shown["answer"], turns=shown.get("turns", ()))
            parts.append(render_result(fitting))
            if "cut" in shown:
                parts[-1] += f"\n{shown['cut']}"

    if waited.messages:
        data["messages"] = []
        for message in waited.messages:
            file = f"{store.folder(message.to)}/inbox/cur/{message.id}"
            text = fit_text(message.text, most, file, "text")
            parts.append(render_message(message._replace(text=text)))
            shown = {"kind": message.kind, "sender": message.sender, "id": message.id, "text": text}
            data["messages"].append(shown)

    if waited.asking:
        data["asking"] = []
        for ask in waited.asking:
            session = store.peek(ask["session"])
            approves = session is not None and session.approve == "supervisor"
            how = how_to_answer(ask["session"], ask["question"], True, approves)
            data["asking"].append({**ask, "how": how})
            parts.append(f"{render_question(ask['session'], ask['question'], ask['path'])}\n{how}")

    if waited.running:
        data["running"] = list(waited.running)
        names = json.dumps(data["running"])
        step = f"The work goes on by itself. Call wait with tasks {names} to go on waiting."
        if waited.asking:
            hows = " ".join(f"Question {a['question']['id']}: {a['how']}" for a in data["asking"])
            step = f"{hows} Call wait with tasks {names}."
            if known.issuperset(ask["question"]["id"] for ask in waited.asking):
                step += " Nobody has answered so far: you may end your turn and wait later."
        data["next"] = step
        states = [
            f"{task} ({boss.state_of(store.session_of(task)).get('state')})"
            for task in waited.running
        ]
        parts.append(f"Still running: {', '.join(states)}. {step} stop_session ends it.")

    if not parts:
        parts.append("Nothing is running for you, and there are no messages.")
        if unread := boss.left_by(boss.is_left):
            data["next"] = (
                "Perhaps you gave these tasks, before a restart: to get their results, call wait"
                f" with tasks {json.dumps(unread)}."
            )
            parts.append(data["next"])

    outcome = "nothing"
    if len(waited.results) == 1:
        outcome = waited.results[0].outcome
    elif waited.asking:
        outcome = "asking"
    elif waited.running:
        outcome = "running"
    elif waited.results:
        failed = (r.outcome for r in waited.results if r.outcome != "done")
        outcome = next(failed, "done")
    data["outcome"] = outcome

    left = (*waited.running, *(result.task for result in waited.results))
    return Answer("\n\n".join(parts), data, left, waited.claims)


def view_result(store: Store, result: Result, most: int) -> dict[str, Any]:
    """Return a result as data for a tool's caller, without its empty fields. An answer of more
    than `most` characters is cut: then `cut` says so, and where the whole answer is. Of more than
    NAMES_SHOWN files or commits `files_cut` or `commits_cut` says how many there are."""
    data = {
        key: value
        for key, value in result._asdict().items()
        if value not in ("", (), None)
        if key not in ("screen", "ended_at")
    }
    if not result.told_at:
        data.pop("told_at", None)
    if result.exact == "exact":
        del data["exact"]
    data.update(answer=result.answer, file=store.result_path(result.task))
    if step := next_step(result):
        data["next"] = step
    if session := store.peek(result.session):
        data["cwd"] = session.cwd
    if len(result.answer) > most:
        data["answer"] = result.answer[:most]
        data["cut"] = cut_note(most, result.answer, data["file"], "answer")
    if result.turns:
        data["turns"] = [fit_text(turn, most, data["file"], "turns") for turn in result.turns]
    for key in ("commits", "files"):
        names = (result.worktree or {}).get(key, ())
        if len(names) > NAMES_SHOWN:
            data["worktree"] = {**data["worktree"], key: names[:NAMES_SHOWN]}
            data["worktree"][f"{key}_cut"] = len(names)
    return data


def cut_note(most: int, text: str, file: str, key: str) -> str:
    """Return what to say of a text that was cut: where all of it is."""
    return (
        f"[cut: these are the first {most} of {len(text)} characters;"
        f" all of it is in the file {file}, key `{key}`]"
    )


def fit_text(text: str, most: int, file: str, key: str) -> str:
    """Return a text as it is or, where it has more than `most` characters, its beginning and where
    all of it is."""
    if len(text) <= most:
        return text
    return f"{text[:most]}\n{cut_note(most, text, file, key)}"


def give_task(call: Call, given: dict[str, Any]) -> tuple[str, str]:
    """Give a task as the arguments of handoff or assign say; return its name and, where it had been
    given before, a sentence that says so.

    Where no `cwd` is given, a new session on this machine works in the client's directory, for
    which the client may be asked; from there a relative one counts. A check that nobody has
    allowed is put to the person, if one is there, in a form.
    """
    server, target = call.server, given["target"]
    allows = partial(server.allow_by_form, call)
    said: list[str] = []
    options = task_options(given)._replace(
        roots=server.list_roots, allows=allows, repeated=said.append
    )
    needed = options.cwd or not call.boss.store.agent(target)
    if needed and not os.path.isabs(options.cwd) and "@" not in target:
        start = server.directory()
        options = options._replace(cwd=os.path.join(start, options.cwd), roots=lambda: [start])
    return call.boss.assign(target, given["task"], options), "".join(said)


# ---- what the tools do: each gets the call and its checked arguments ----


def _call_handoff(call: Call, given: dict[str, Any]) -> Answer:
    until = time.monotonic() + call.ceiling_s
    task, earlier = give_task(call, given)
    return call.wait([task], until - time.monotonic())._replace(earlier=earlier)


def _call_assign(call: Call, given: dict[str, Any]) -> Answer:
    task, earlier = give_task(call, given)
    receipt = call.boss.receipt(task)
    session = call.boss.store.find(receipt["session"])
    me = call.boss.store.load(call.boss.caller.name)
    how = f'Call wait with tasks ["{task}"] for the result.'
    if me and me.kind == "agent":  # its runner types the result
        how = "The result will arrive in your conversation by itself."
    text = f"Task {task} is with session {session.name}, in {session.cwd}."
    if "why" in receipt:
        text += f" It {receipt['why']}."
    data = {**receipt, "cwd": session.cwd, "next": how}
    return Answer(f"{text} {how}", data, (task,), earlier=earlier)


def _call_send_message(call: Call, given: dict[str, Any]) -> Answer:
    receipt = call.boss.send_message(given["target"], given["message"])
    text = f"Message to {receipt['to']}: {receipt['step']}"
    if receipt.get("exact"):
        text += f", {receipt['exact']}"
    return Answer(f"{text}.", receipt)


def _call_wait(call: Call, given: dict[str, Any]) -> Answer:
    tasks = given.get("tasks") or None
    if not tasks and not call.boss.caller.name:
        return view_waited(call, Waited())  # no folder yet: nothing can be on its way
    limit = min(float(given.get("timeout_s", TASK_TIMEOUT_S)), call.ceiling_s)
    return call.wait(tasks, limit, want_all=bool(given.get("all")))


def usable_profiles(store: Store, cwd: str) -> list[str]:
    """Return the names that handoff and assign take for a new session in cwd: every profile, with
    the reason behind it where it cannot be used now, and the providers that are installed."""
    fault_of = lru_cache(None)(program_fault)  # each program is looked for once
    names, default, files = [], default_provider(fault_of), find_profiles(store.home, cwd)
    for name in sorted({*files, *PROVIDERS} - {"command"}):
        try:
            profile, fault = load_profile(name, store, cwd, default, files), ""
            if profile and (program := program_of(profile)):
                fault = fault_of(program)
        except NotAllowedError as error:
            fault = f"not allowed: {error.fix}"
        except CaoError as error:
            fault = f"cannot be used: {shorten(error.what, 60)}"
        if not fault:
            names.append(name)
        elif name not in PROVIDERS:
            names.append(f"{name} ({fault})")
    return names


def _call_list_sessions(call: Call, given: dict[str, Any]) -> Answer:
    views = call.boss.list_sessions(bool(given.get("all")))
    me = call.boss.caller
    if me.worker:  # it sees only those that it may reach, itself, and those above it
        reach = call.boss.known() | {me.name, *call.boss.ancestors(me.name)}
        views = [v for v in views if v["session"] in reach]
    try:
        where = call.server.directory()
    except UsageError:  # a task has to name its own
        where = current_directory()
    profiles = usable_profiles(call.boss.store, where)
    lines = [render_session(view) for view in views] or ["No session is running."]
    lines.append("Profiles for new sessions: " + ", ".join(map(one_line, profiles)))
    return Answer("\n".join(lines), {"sessions": views, "profiles": profiles})


def _call_read_session(call: Call, given: dict[str, Any]) -> Answer:
    view = call.boss.read_session(given["session"], int(given.get("lines", PANE_LINES)))
    head = render_session(view)
    if view.get("why"):
        head += f"  ({view['why']})"
    return Answer(f"{head}\n{render_questions(view)}{view['screen']}", view)


def _call_answer(call: Call, given: dict[str, Any]) -> Answer:
    done = call.boss.answer(given["session"], given["answer"], given.get("question", ""))
    done["next"] = "Call wait."
    if tasks := call.boss.store.owed(call.boss.caller.name):  # also one that has ended by now
        done["next"] = f"Call wait with tasks {json.dumps(tasks)}."
    return Answer(
        f"{done['session']} got the answer: {done['answered']}. Call wait to go on.", done
    )


def _call_stop_session(call: Call, given: dict[str, Any]) -> Answer:
    done = call.boss.stop_session(given["session"], bool(given.get("interrupt")))
    return Answer(f"{done['session']}: {done['did']}; it is {done['state']}.", done)


# ---- what the near side of a session that works here calls: see room 9 ----


def _near_assign(boss: Orchestrator, task: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Give a task of the near side to its session here, or to a new one. Return the task's and
    session's names here, and the command that shows the session's terminal ([]: it has none).

    The profile comes with the task: the near side has looked it up, clipped and checked it. The
    task's name there is the request_id here, so that a task that is sent twice is given once.
    """
    profile = Profile(**{key: _tuples(value) for key, value in given["profile"].items()})
    # A new session is one deeper than its caller: so it is as deep here as it is there.
    boss.caller = boss.caller._replace(depth=given["depth"] - 1)
    wanted = {**task, **given, "profile": profile, "request_id": task["task"]}
    name = boss.assign(profile.name, task["text"], task_options(wanted))
    session = boss.store.session_of(name)
    pane, attach = boss.tmux.pane_of(session), []
    if pane:  # it may have ended since
        attach = [boss.tmux.program, "-u", "-S", boss.tmux.ask(pane, "#{socket_path}"), "attach"]
        attach += ["-f", "read-only,ignore-size", "-t", f"={session}"]
    return {"task": name, "session": session, "attach": attach}


def _near_order(boss: Orchestrator, order: dict[str, Any], session: str) -> dict[str, Any]:
    """Obey an order that the near side's runner got: an answer to a question, "interrupt" or
    "stop". Who may give it was decided there. Raises UsageError where the question is over."""
    if order["cao"] != "answer":
        return boss.stop_session(session, order["cao"] == "interrupt")
    for asking in boss.questions([session]):
        question = asking["question"]
        if question["id"] == order["question"]:
            return boss.hand_over(asking["session"], question, order)
    raise UsageError("it asks this no more", "")


def _call_sync(call: Call, given: dict[str, Any]) -> Answer:
    """Do what the near side (see Remote._sync) wants: give its tasks and letters, obey its
    orders. Tasks and letters that it sends again are not given again.

    Return the replies to these and what there is to tell of its session here; where there was
    nothing to do, wait until there is something new to tell. One that fails gets a reply with
    `failed`, and the others are done all the same. mark: the hash of what the near side was told
    last. kept: the messages and results that are on its own books by now, and so come off ours.
    """
    boss, store, me = call.boss, call.boss.store, call.boss.caller.name
    session, task, replies = given["session"], given["task"], {}

    def attempt(key: str, work: Callable[..., dict[str, Any]], *how: Any) -> dict[str, Any]:
        """Do one thing that is wanted, and note the reply to it: its result, or why it failed."""
        try:
            replies[key] = work(*how)
        except CaoError as error:
            replies[key] = {"failed": str(error)}
        return replies[key]

    for letter in given["kept"]:
        store.discharge(me, letter)
    for message in given["tasks"]:
        there = attempt(message["id"], _near_assign, boss, message, given)
        session, task = there.get("session") or session, there.get("task") or task
    for letter in given["letters"]:
        attempt(letter["id"], boss.send_message, session, letter["text"], 3.0, letter["id"])
    for order in given["orders"]:
        attempt(order["id"], _near_order, boss, order, session)
    wake = Wake(store)
    try:
        for name in filter(None, (session, me)):
            wake.listen(name)
        while True:
            facts = _near_facts(boss, session, task)
            mark = sha256_of(dump(facts))
            if mark != given["mark"] or replies or call.cancelled():
                return Answer("", {**facts, "session": session, "replies": replies, "mark": mark})
            boss.watch(session)
            wake.wait(PROGRESS_S)
    finally:
        wake.close()


def _near_facts(boss: Orchestrator, session: str, task: str) -> dict[str, Any]:
    """Return what the near side is to know of its session here: the messages for it, the
    session's state, the questions of the session and of those below it, and the task's result.
    session and task are "" before there is one."""
    store = boss.store
    facts: dict[str, Any] = {
        "messages": [message._asdict() for message in store.waiting(boss.caller.name)],
        "questions": [],
        "result": None,
        "state": "",
        "why": "",
        "last_line": "",
        "usage": None,
    }
    if task and (result := store.load_result(task)):
        facts["result"] = result._asdict()
    if session:
        state = boss.state_of(session)
        facts.update((key, state.get(key) or "") for key in ("state", "why", "last_line", "usage"))
        for asking in boss.questions([session]):
            facts["state"] = "asking"
            question, name = asking["question"], asking["session"]
            facts["questions"].append(question if name == session else {**question, "agent": name})
    return facts


SYNC = Tool("sync", "", "", (), "", _call_sync, delegates=True)


# What is no string in the data that tools give.
_LISTS = dict.fromkeys("results messages asking running sessions profiles".split(), "array")


def render_tool(tool: Tool) -> dict[str, Any]:
    """Return a tool as tools/list has it."""
    # next: what to do next; earlier: what was given before, or left by a cancelled call
    names = f"{tool.gives} next earlier".split()
    given = {name: {"type": _LISTS.get(name, "string")} for name in names}
    schema: dict[str, Any] = {"type": "object", "properties": tool.arguments}
    if tool.required:
        schema["required"] = list(tool.required)
    return {
        "name": tool.name,
        "title": tool.title,
        "description": tool.about,
        "inputSchema": {**schema, "additionalProperties": False},
        "outputSchema": {"type": "object", "properties": given},
        "annotations": {
            "title": tool.title,
            "readOnlyHint": tool.reads,
            "destructiveHint": tool.ends,
            "idempotentHint": tool.reads,
            "openWorldHint": tool.delegates,
        },
        "_meta": {"anthropic/maxResultSizeChars": 500000, "anthropic/alwaysLoad": True},
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _note(text: str) -> None:
    _say(f"cao: {text}")


def _say_error(error: CaoError) -> None:
    _note(error.what)
    if error.fix:
        _say(f"     try: {in_commands(error.fix)}")


class Ask(NamedTuple):
    """One use of a command: the parsed arguments and what it works with."""

    args: Any
    store: Store
    boss: Orchestrator


def as_facts(value: Any, key: str = "") -> Any:
    """Return a value as --json prints it. Epoch seconds under `at` or `…_at` become ISO 8601, 0
    and what no calendar can show null; "" becomes null except under `answer` and `text`. key: the
    name the value stands under."""
    if isinstance(value, dict):
        return {name: as_facts(one, name) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_facts(one) for one in value]
    if isinstance(value, (int, float)) and (key == "at" or key.endswith("_at")):
        return iso_time(value, "milliseconds") if value and fits(value, MOMENT) else None
    return None if value == "" and key not in ("answer", "text") else value


def _print(ask: Ask, data: Any, text: str) -> None:
    print(json.dumps(as_facts(data), ensure_ascii=False, indent=1) if ask.args.json else text)


def _print_explained(ask: Ask, words: dict[str, Any], facts: dict[str, Any]) -> None:
    _print(ask, {**words, "facts": facts}, _facts_table(words))


def _cell(text: str, most: int) -> str:
    """Return text for one line of a table: cut on a terminal, whole in a pipe or file."""
    if sys.stdout.isatty():
        return shorten(text, most)
    return " ".join(text.split())


def _facts_table(facts: dict[str, Any]) -> str:
    """Return facts as a table of two columns; a list's items stand on one line. The further lines
    of a text are indented, so that none looks like another fact."""
    rows = []
    for key, value in facts.items():
        text = str(value)
        if isinstance(value, (list, tuple)):
            text = " ".join(map(str, value))
        rows.append([key, text.replace("\n", "\n    ")])
    return render_table(rows)


def _given_text(target: str, text: str | None) -> str:
    """Return a task or a message: the argument, or all of stdin where that is "-" or left out.
    What is piped in beside an argument is not read, and that is said: it may be the rest of a
    list that a shell's loop goes through, or a pipe into which nobody ever writes.

    Raises UsageError where it is no UTF-8; where it is left out and stdin is a terminal, or the
    target is a sentence: then the target was left out.
    """
    if text is None and " " in target:
        raise UsageError(
            f"{target!r} is no session, profile or provider",
            "name one before the text: cao handoff developer 'what to do'",
        )
    if text is None and sys.stdin.isatty():
        raise UsageError("there is no task", "cao handoff developer 'what to do', or pipe it in")
    if text is None or text == "-":
        return decode_given(sys.stdin.buffer.read(), "what is piped in").rstrip("\n")
    pipe = select.poll()
    pipe.register(0, select.POLLIN)
    if stat.S_ISFIFO(os.fstat(0).st_mode) and any(sign & select.POLLIN for _, sign in pipe.poll(0)):
        _say_error(
            CaoError(
                "what is piped in was not read, for the text was given as an argument",
                "leave the argument out: (echo 'review this:'; git diff) | cao …",
            )
        )
    return _argument(text)


def _argument(text: str) -> str:
    """Return a text that Python decoded for us. Raises UsageError where it was no UTF-8."""
    return decode_given(text.encode(errors="surrogateescape"), "the text")


def _assign(ask: Ask, named: Callable[[str], None] = lambda _: None) -> str:
    """Give the task in a command's arguments; return its name. Raises UsageError for options that
    are out of range. named: is told that name first."""
    args = ask.args
    options = task_options(vars(args))._replace(named=named, repeated=_note)
    if options.timeout_s < 1:
        raise UsageError("--timeout is at least 1s", "--timeout 10m")
    if (options.check_retries or 0) < 0:
        raise UsageError("--check-retries is at least 0", "--check-retries 2")
    if args.max_tokens is not None and args.max_tokens < 1:
        raise UsageError("--max-tokens is at least 1", "--max-tokens 200000")
    task = ask.boss.assign(args.target, _given_text(args.target, args.task), options)
    if profile := ask.boss.launched(ask.store.session_of(task)):
        _say_mistyped(f"profile {profile.name}", profile.settings, PROFILE_KEYS)
    return task


def _say_mistyped(whose: str, keys: Iterable[str], known: Iterable[str]) -> None:
    """Say on stderr which keys of a file look mistyped: they count for nothing, and may have been
    meant to hold a worker back."""
    for key in keys:
        if key not in known and (meant := key_advice(key, known)):
            _say_error(CaoError(f"{whose}: the key {key!r} is not known", meant))


_OUTCOME_EXIT = {"done": EXIT_DONE, "timeout": EXIT_TIMEOUT, "interrupted": EXIT_INTERRUPTED}


def _report(ask: Ask, waited: Waited, every: bool = False) -> int:
    """Print what a wait found and take it off the books; return the exit code. every: it was for
    all of the tasks, so those that still run are said, and count, beside results too.

    On stdout are the answers of tasks that were done, or with --json everything; the rest is on
    stderr.
    """
    if ask.args.json:
        records = [{**r._asdict(), "file": ask.store.result_path(r.task)} for r in waited.results]
        data = {
            "results": records,
            "asking": waited.asking,
            "running": waited.running,
            "messages": [message._asdict() for message in waited.messages],
        }
        _print(ask, data, "")
    else:
        for result in waited.results:
            if result.outcome != "done":
                _say(render_result(result))
            elif len(waited.results) > 1:
                print(render_result(result))
            else:
                print(result.answer)
                for note in result.notes:
                    _note(f"[{note}]")
                for turn in result.turns:
                    _say(EARLIER.format(turn))
        _note_waited(waited)
    sys.stdout.flush()  # raises where it could not be printed: then it is still owed
    waited.told()
    codes = [_OUTCOME_EXIT.get(r.outcome, EXIT_FAILED) for r in waited.results]
    if waited.asking:
        return EXIT_ASKING
    if waited.running and (every or not waited.results):
        names = " ".join(waited.running)
        _say_error(CaoError(f"still running: {names}", f"cao wait {names}"))
        codes.append(EXIT_TIMEOUT)
    return max(codes, default=EXIT_DONE)


def _note_waited(waited: Waited) -> None:
    """Print the messages and questions that a wait found on stderr, with how to answer these."""
    for message in waited.messages:
        _say(render_message(message))
    for item in waited.asking:
        _say(render_question(item["session"], item["question"], item["path"]))
        _say(how_to_answer(item["session"], item["question"]))


def cmd_handoff(ask: Ask) -> int:
    task = _assign(ask)
    session = ask.store.session_of(task)
    _note(f"task {task}")
    try:
        tell = _progress(ask, session)
        return _report(ask, ask.boss.await_tasks([task], 1e8, on_look=tell))
    except KeyboardInterrupt:
        _note(f"the task goes on; cao wait {task} gets its answer, cao stop {session} ends it")
        raise


def _progress(
    ask: Ask, session: str, still_wanted: Callable[[], None] = lambda: None
) -> Callable[[Waited], None]:
    """Return a function to call at each look of a wait: it prints a session's state and title on
    stderr when they have changed. still_wanted is called first; it may end the wait by raising."""
    started, seen = time.monotonic(), ""

    def tell(_: Waited) -> None:
        nonlocal seen
        still_wanted()
        words = ask.boss.render_progress(session)
        news = re.sub(r"[^\w ]", "", words)  # a spinner is none
        if news != seen:
            seen = news
            _note(f"{time.monotonic() - started:5.1f} s  {words}")

    return tell


def end_by_signals() -> Callable[[], None]:
    """Let each signal of ENDINGS raise KeyboardInterrupt, as Ctrl-C does. A signal that is ignored
    now stays so: nohup, or a shell for its background jobs, set that.

    Returns a function to call now and then: once a signal came, it raises KeyboardInterrupt again,
    for Python drops one that falls into a destructor.
    """
    came: list[int] = []

    def interrupt(number: int, _frame: Any) -> None:
        came.append(number)
        raise KeyboardInterrupt

    def still_wanted() -> None:
        if came:
            raise KeyboardInterrupt

    for number in ENDINGS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, interrupt)
    return still_wanted


def cmd_run(ask: Ask) -> int:
    """Do one task. However that ends, end the session that was made for it, unless the task was
    not done and --keep-on-failure was given. A session that was there before is never ended."""
    args = ask.args
    if args.file:
        if args.task is not None:
            raise UsageError("the task is given twice", "leave out --file, or the task")
        args.task = read_flow(args.file).rstrip("\n")
    tasks: list[str] = []  # the task's name, noted before it is given: a signal may come between

    kept = args.keep_on_failure
    still_wanted = end_by_signals()
    try:
        task = _assign(ask, tasks.append)
        session = ask.store.session_of(task)
        made = args.target != session
        _note(f"task {task}")
        waited = run_to_end(
            ask.boss,
            task,
            patient=os.isatty(0) and os.isatty(2),
            on_found=_note_waited,
            on_look=_progress(ask, session, still_wanted),
        )
    except BaseException:
        for number in ENDINGS:
            # A second signal changes nothing: we still have to clean up and say what is kept.
            signal.signal(number, signal.SIG_IGN)
        for task in filter(ask.store.was_given, tasks):
            session = ask.store.session_of(task)
            if args.target != session and not kept:
                ask.boss.end(session)
                ask.store.discharge(ask.boss.caller.name, task)  # `wait` need not tell that
            # One that has not begun, behind another task, is withdrawn; else its turn is ended.
            elif not ask.boss.withdraw_task(session, task):
                ask.boss.stop_session(session, True)
            _say_kept(ask, session)
        raise

    outcomes = [result.outcome for result in waited.results]
    if made and (outcomes == ["done"] or not kept):
        ask.boss.end(session)

    for one in waited.asking:
        words = f"{one['session']} asks: {one['question']['text']}; nobody is here to answer"
        way = "--permissions edits, auto or all"
        if one["question"]["kind"] == "screen":
            way = "start its CLI there once, or use a profile with `trust: yes`"
        elif one["question"]["kind"] == "question":
            way = f"say in the task what it is to take ({way}: for permissions only)"
        _say_error(CaoError(words, way))
    if waited.asking and made and not kept:  # its session was ended: `wait` need not tell that
        ended = ask.boss.await_tasks([task], 0)
        messages, claims = waited.messages + ended.messages, waited.claims + ended.claims
        waited = ended._replace(asking=waited.asking, messages=messages, claims=claims)

    if waited.asking and not args.json:
        _note_waited(waited._replace(asking=()))  # what it asks was said
        waited.told()
        code = EXIT_ASKING
    else:
        code = _report(ask, waited)
    if code or waited.results[0].worktree:
        _say_kept(ask, session)
    return code


def _say_kept(ask: Ask, session: str) -> None:
    """Say on stderr what is left of a run: its live session, else its folder; its branch."""
    facts, kept = ask.store.load(session), [ask.store.folder(session)]
    if ask.boss.state_of(session).get("state") != "ended":
        kept = [f"session {session}: cao attach {session}, cao stop {session}"]
    if facts and facts.worktree:
        kept.append(f"branch {facts.worktree} in {ask.store.home}/worktrees/{session}")
    _note(f"kept: {'; '.join(kept)}")


def cmd_assign(ask: Ask) -> None:
    task = _assign(ask)
    receipt = ask.boss.receipt(task)
    if "why" in receipt:
        _note(f"{receipt['session']} {receipt['why']}")
    _print(ask, receipt, task)


def cmd_send(ask: Ask) -> None:
    receipt = ask.boss.send_message(ask.args.target, _given_text(ask.args.target, ask.args.message))
    _print(ask, receipt, f"{receipt['to']}: {receipt['step']}")


def cmd_wait(ask: Ask) -> int:
    tasks, limit = ask.args.tasks or None, ask.args.timeout_s
    if limit is None:
        limit = TASK_TIMEOUT_S
    every = ask.args.all or not tasks
    waited = ask.boss.await_tasks(tasks, limit, want_all=every)
    if waited == Waited():
        if left := " ".join(ask.boss.left_by(ask.boss.is_beside)):
            what = "nothing is open that you gave out from this directory"
            _say_error(CaoError(what, f"cao wait {left} (another client gave that out here)"))
        else:
            _note("nothing is open that you gave out from this directory")
    return _report(ask, waited, every)


def cmd_ls(ask: Ask) -> None:
    views = ask.boss.list_sessions(bool(ask.args.all))
    if ask.args.asking:
        views = [v for v in views if v["state"] == "asking"]
    if ask.args.json or not views:
        what = "asks anything" if ask.args.asking else "is running"
        _print(ask, views, f"no session {what}")
        return
    terminal = sys.stdout.isatty()
    columns = 200
    if terminal:
        columns = os.get_terminal_size(1).columns or columns
    for name, state, rest in session_rows(views, columns):
        line = name + state + rest
        if not terminal:  # an agent reads it, and pays for each blank: no padding
            line = name + state + re.sub(" {3,}", "  ", rest)
        elif not os.environ.get("NO_COLOR"):
            colour = 30 + STATE_COLOURS.get(state.strip(), 9)
            line = f"{name}\x1b[{colour}m{state}\x1b[m{rest}"
        # Not by our own sys.stdout, which would show the codes of the colours as text. All that
        # others wrote was made visible by session_rows.
        print(line.rstrip(), file=sys.__stdout__)


def cmd_show(ask: Ask) -> None:
    name, lines = ask.args.session, ask.args.lines
    if lines is None:
        lines = PANE_LINES
    if lines < 1:
        raise UsageError(f"--lines is at least 1, not {lines}", "--lines 20")
    view = ask.boss.read_session(name, lines)
    scope = {}
    if profile := ask.boss.launched(name):
        scope = {key: value for key, value in explain_scope(profile).items() if value}

    session = ask.store.load(name)
    if session and session.worktree:
        scope["worktree"] = f"{session.worktree}  {worktree_path(ask.store, name)}"
    if env := ask.store.read_launch(name, "env.json"):
        scope["environment"] = " ".join(sorted(env))

    head = f"{render_session(view)}\n{render_questions(view)}{_facts_table(scope)}"
    screen = re.sub(r"\n([^\S\n]*\n){2,}", "\n\n", f"\n{view['screen']}")  # one blank line at most
    _print(ask, {**view, "scope": scope}, f"{head}{screen}".rstrip("\n"))


# In place of the person's: `cao visible` takes these for colours, and none of them hides text.
_GIT_COLOURS = ["context=normal", "func=normal", "meta=bold", "frag=cyan", "old=red", "new=green"]
_GIT_COLOURS += ["whitespace=red reverse"]  # on its own background, red text would be hidden


def cmd_diff(ask: Ask) -> int:
    """Run `git diff-tree` on all that is in a worktree, in a pager where we are on a terminal;
    return its status. With --json print facts instead."""
    session = worktree_session(ask.boss, ask.args.session)
    path = find_worktree(ask.store, session)
    if ask.args.json:
        _print(ask, worktree_facts(ask.store, session), "")
        return EXIT_DONE
    with _scratch() as scratch:
        base, tree, left, variables = whole_work(ask.store, session, scratch)
        if left:
            _note(f"left out, git cannot take it in: {path}: {some_names(left)}")
        form = "--stat" if ask.args.stat else "--binary"  # as `git apply` takes it
        colour = "never" if os.environ.get("NO_COLOR") else "auto"  # git does not know NO_COLOR
        show = ["diff-tree", "--ignore-submodules=dirty", "-r", "-M", f"--color={colour}", form]
        settings = [word for one in _GIT_COLOURS for word in ("-c", f"color.diff.{one}")]
        argv = [find_program("git"), "--paginate", *git_at(path), *settings, *show, base, tree]
        # git starts a pager only on a terminal: there, `cao visible` reads all before the pager.
        visible_argv = [sys.executable, "-I", "-S", os.path.abspath(__file__), "visible"]
        pager = _git(path, "var", "GIT_PAGER").rstrip("\n")
        # 127: it is not installed; git alone would print without it.
        pager = f"{quote_argv(visible_argv)} | {{ {pager}\n[ $? != 127 ] || cat; }}"
        env = {**git_environment(), **variables, "GIT_PAGER": pager}
        signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for git and the pager
        status = run(argv, None, env=env, terminal=True).status
    return status if status >= 0 else 128 - status  # as a shell has it: 141 where `head` had enough


def show_visible() -> None:
    """Copy stdin to stdout, made visible but for _GIT_COLOURS: `cao visible`, which cmd_diff puts
    between git and the person's pager."""
    for line in sys.stdin.buffer:
        parts = re.split(r"(\x1b\[[17;]*(?:3[1-6])?m)", line.decode(errors="backslashreplace"))
        parts[::2] = map(visible, parts[::2])
        sys.stdout.buffer.write("".join(parts).encode())


def cmd_merge(ask: Ask) -> None:
    try:
        with FileLock(f"{ask.store.home}/merging"):  # one at a time
            done = merge_worktree(ask.boss, ask.args.session)
    except KeyboardInterrupt:
        _say_error(
            CaoError(
                f"interrupted: {ask.args.session} was not merged, nothing was changed there",
                f"cao merge {ask.args.session}",
            )
        )
        raise
    what = f"{done['into']} now has {done['branch']}: {done['diffstat']}"
    if done["dirty"]:
        what += f"; a hook left changes that are not committed in {done['path']}"
    nothing = f"nothing to merge: {done['into']} has all of {done['branch']}"
    _print(ask, done, nothing if done["was"] == done["now"] else what)


def cmd_discard(ask: Ask) -> None:
    """Remove a worktree and its branch, and end the session. Without --yes only where nothing
    would be lost, also of what is saved as it ends."""
    name = ask.args.session
    session = worktree_session(ask.boss, name, True)
    for other in sessions_inside(ask.boss, name):
        if name not in (other, *ask.boss.ancestors(other)):
            raise UsageError(f"{other} is in the worktree of {name}", f"cao stop {other}")
    with discarding(ask.store):
        for holds in ("holds", "was ended, and now holds"):
            losses = []
            try:
                if not ask.args.yes:  # else git is asked nothing: it may wait for ever there
                    losses = worktree_losses(ask.store, name, session.origin)
            except CaoError as error:
                losses = [f"what cannot be read ({error.what})"]
            if losses:
                raise UsageError(
                    f"{name} {holds} {' and '.join(losses)}, which may be nowhere else",
                    f"cao diff {name} shows it; --yes discards it",
                )
            if ask.boss.state_of(name)["state"] == "ended":
                break
            ask.boss.end(name)
        remove_worktree(ask.store, name, session.origin, force=ask.args.yes)
    _print(ask, {"session": name, "discarded": session.worktree}, f"{name}: discarded")


def cmd_answer(ask: Ask) -> None:
    """Give the one answer in the arguments, or go through the open questions with the person."""

    def give(session: str, text: str, question: str, **how: Any) -> None:
        done = ask.boss.answer(session, _argument(text), question, **how)
        _print(ask, done, f"{done['session']}: {done['answered']}")

    if ask.args.answer is not None or ask.args.key or ask.args.dialog:
        a = ask.args
        keys = " ".join(a.key or ())
        give(a.session or "", a.answer or "", a.question or "", key=keys, dialog=a.dialog)
        return
    if name := ask.args.session:
        if "-" not in name:
            raise NotFoundError(
                f"there is no session {name!r}",
                "name it first: cao answer SESSION yes (cao ls --asking has the names)",
            )
        ask.store.find(name)

    asking = [
        (view["session"], question)
        for view in ask.boss.list_sessions()
        if ask.args.session in (None, view["session"])
        for question in view.get("questions", ())
    ]

    if not asking:
        _say("no session asks anything")

    for name, question in asking:
        path = [*reversed(ask.boss.ancestors(name)), name]
        if not _say_whole(render_question(name, question, path)):
            continue
        if question["kind"] in ("interrupted", "screen"):
            _say(how_to_answer(name, question))
            continue
        while True:
            text = _read_line("answer (nothing: skip it): ")
            if not text:
                break
            try:
                give(name, text, question["id"])
                break
            except CaoError as error:
                _say_error(error)


def _say_whole(text: str) -> bool:
    """Say a text before a prompt; tell whether the person wants to go on. On their terminal it
    comes one screen at a time, each after an Enter: a popup has no history, and nobody may be
    asked about lines that were never on the screen."""
    lines, room = _terminal_lines(text)
    if not sys.stdin.isatty():
        room = len(lines)
    _say("\n".join(lines[:room]))
    while lines := lines[room:]:
        if _read_line(f"({count_of(len(lines), 'more line')}: Enter; skip it: s) ") == "s":
            return False
        _say("\n".join(lines[:room]))
    return True


def _terminal_lines(text: str) -> tuple[list[str], int]:
    """Return a text in lines for stderr, wrapped where that is a terminal, and how many of them
    fit on it above a prompt."""
    if not sys.stderr.isatty():
        return [text], 1
    size = os.get_terminal_size(2)  # of 0 by 0 where a terminal does not know its own
    lines = wrap_columns(text, (size.columns or PANE_COLUMNS) - 1, True)
    return lines, max(1, (size.lines or PANE_LINES) - 2)


def _read_line(prompt: str) -> str:
    """Return the line that a person types at a prompt. What was typed before that stood on the
    terminal was not meant for it."""
    if sys.stdin.isatty():
        import termios

        try:
            termios.tcflush(0, termios.TCIFLUSH)
        except termios.error:
            pass  # it has hung up: the read says so
    print(prompt, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip()


def cmd_stop(ask: Ask) -> int:
    args, code = ask.args, EXIT_DONE
    names = args.sessions
    if not names and not args.all:
        raise UsageError("cao stop which session?", "cao ls has their names; cao stop --all")
    if names and args.all:
        raise UsageError("--all is every session, not only those named", "leave one of them out")
    if args.all:
        listed = ask.boss.list_sessions()
        views = {view["session"]: view for view in listed if view["kind"] == "agent"}
        # Those below first: a turn above that waits for them ends with its own interrupt. One that
        # is idle begins a turn when it is told of theirs.
        names = sorted(views, key=lambda name: -len(ask.boss.ancestors(name)))
        if not args.interrupt:  # those on top: their workers end with them
            names = [name for name in names if views[name]["supervisor"] not in views]
    stopped = []
    for name in names:
        try:
            done = ask.boss.stop_session(name, bool(args.interrupt))
        except CaoError as error:  # of one: the others are stopped all the same
            _say_error(error)
            code = error.exit_code
            continue
        stopped.append(done)
        if len(args.sessions) == 1 or not args.json:
            _print(ask, done, f"{name}: {done['did']}")
    if args.json and len(args.sessions) != 1:
        _print(ask, stopped, "")
    return code


def cmd_attach(ask: Ask) -> NoReturn:
    argv = attach_argv(ask.boss, ask.args.session)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("cao attach needs a terminal", "cao show, or cao logs -f")
    os.execv(argv[0], argv)


def cmd_watch(ask: Ask) -> None:
    import curses

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("cao watch needs a terminal", "cao ls, or cao ls --json")
    keys = {key.name: key for verb in VERBS for key in verb.keys}
    keys.update((key.name, key) for key in WATCH_KEYS)
    watch = Watch(ask.boss, [keys[name] for name in WATCH_ORDER.split()])
    os.environ.setdefault("ESCDELAY", "100")  # ms until an Esc is taken for that key
    try:
        curses.wrapper(watch.run)
    except curses.error as error:
        raise CaoError(f"this terminal ({os.environ.get('TERM')}): {error}", "set TERM") from error
    finally:
        signal.set_wakeup_fd(-1)
        watch.wake.close()


def cmd_launch(ask: Ask) -> None:
    cwd = working_directory(ask.args.cwd or "")
    profile = ask.boss.profile(ask.args.profile, cwd, ask.args.permissions or "")
    _say_mistyped(f"profile {profile.name}", profile.settings, PROFILE_KEYS)
    # No grant and no depth would count for its workers.
    ask.boss.check_person("launch a supervisor", "cao assign gives an agent work")
    name = ask.boss.launch(profile, cwd, TaskOptions(cwd), top=True)
    try:
        ask.boss.start(name, profile)
    except BaseException:
        ask.boss.forget(name)
        raise
    if not sys.stdout.isatty() or ask.args.detach:
        if not ask.args.detach:
            _note(f"no terminal to attach to; later: cao attach {name}")
        _print(ask, {"session": name}, name)
        return
    ask.args.session = name
    cmd_attach(ask)


def cmd_trace(ask: Ask) -> None:
    trace, path = render_trace(ask.boss, ask.args.root or ""), os.path.abspath(ask.args.output)
    if ask.args.output == "-":
        print(trace, end="")
    elif os.path.isdir(path):
        raise UsageError(f"{path} is a directory", "--output FILE")
    else:  # it may be a device or a FIFO: written to, not replaced
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with open(path, "w", opener=lambda file, _: os.open(file, flags, 0o600)) as file:
            file.write(trace)
        print(path)


def cmd_why(ask: Ask) -> None:
    _print_explained(ask, *explain(ask.boss, ask.args.session))


def cmd_logs(ask: Ask) -> None:
    """Print log lines; with -f go on, woken by the sessions themselves."""
    one, follow = ask.args.session, ask.args.follow
    if one:
        ask.store.find(one)
    wake = Wake(ask.store)
    read: dict[str, int] = {}  # how much of each log was printed

    still_wanted = end_by_signals()  # so that `finally` removes the wake's links
    try:
        if follow and not one:
            wake.listen("")  # sessions that start later
        while True:
            still_wanted()

            lines = []
            for name in [one] if one else ask.store.all_sessions():
                if follow:
                    wake.listen(name)
                path = f"{ask.store.folder(name)}/log.jsonl"
                before = read.get(name, 0)
                if file_mark(path)[0] == before:
                    continue
                text = ask.store.read_text(path)
                read[name] = text.rfind("\n") + 1  # the last line may be half written: next time
                lines += [(entry, name) for entry in read_log(text[before : read[name]])]

            for entry, name in sorted(lines, key=lambda pair: pair[0]["at"]):
                as_json = json.dumps(as_facts({"session": name, **entry}), ensure_ascii=False)
                print(as_json if ask.args.json else _render_log(name, entry))

            sys.stdout.flush()
            if not follow:
                return
            wake.wait(60)
    finally:
        wake.close()


def _render_log(name: str, entry: dict[str, Any]) -> str:
    """Return an entry of a session's log as one line, in local time."""
    at = time.strftime("%H:%M:%S", time.localtime(entry["at"]))
    more = "  ".join(
        f"{k}={one_line(v)}"
        for k, v in entry.items()
        if k not in ("at", "event") and v not in ("", None)
    )
    return f"{at}  {name}  {entry['event']}  {more}".rstrip()


def cmd_config(ask: Ask) -> None:
    client = CLIENTS[ask.args.client]
    argv = own_command(ask.args.form)
    settings = own_settings()
    if client.add and not settings:
        import shlex

        print(f"# run this:\n{client.add} {shlex.join(argv)}\n# or put this into {client.file}:")
    else:
        if client.add:
            print(f"# by hand, because {', '.join(settings)} is set:")
        print(f"# put this into {client.file}:")
    print(render_entry(client, argv))


def cmd_profiles(ask: Ask) -> None:
    if ask.args.profile:
        shown = ask.boss.profile(ask.args.profile, current_directory())
        facts = {k: v for k, v in shown._asdict().items() if k not in ("prompt", "settings")}
        _print_explained(ask, explain_profile(shown), facts)
        return
    rows: list[tuple[str, str, str, str, str]] = []
    files = find_profiles(ask.store.home, current_directory())
    for name, path in sorted(files.items()):
        try:
            profile = load_profile(name, ask.store, current_directory())
        except NotAllowedError as error:
            rows.append((name, "not allowed", error.fix, path, "not allowed"))
            continue
        except CaoError as error:
            rows.append((name, "broken", error.what, path, "broken"))
            continue
        if profile:
            about = profile.description + unproven(profile.provider)
            rows.append((name, profile.provider, about, path, "ok"))
    for name in PROVIDERS:
        if name not in ("command", *files):
            about = "that CLI with a neutral profile" + unproven(name)
            rows.append((name, name, about, "built in", "ok"))
    keys = ("name", "provider", "description", "source", "state")
    cells = [
        [one_line(name), provider, _cell(about, 40), one_line(path)]
        for name, provider, about, path, _ in rows
    ]
    _print(ask, [dict(zip(keys, row)) for row in rows], render_table(cells))


def cmd_allow(ask: Ask) -> int:
    args, code = ask.args, EXIT_DONE
    given = [f"--{word}" for word in ("check", "host", "list") if vars(args)[word]]
    if args.remove and args.list:
        given.append("--remove")
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} do not go together", "cao allow --help")
    if not args.list:
        folder = os.path.realpath(args.dir or current_directory())
        profiles, faults = ask.boss.allow(folder, args.check, args.remove, args.host)
        for profile in profiles:
            # Two tables: a key of the file may be called like what we say of it. Their rows are
            # indented: none looks like a head.
            tables = {"effective:": explain_profile(profile), "in its file:": profile.settings}
            for head, facts in tables.items():
                rows = [["", one_line(key), one_line(value)] for key, value in facts.items()]
                _say("\n".join(_terminal_lines(f"{head}\n{render_table(rows)}\n")[0]))
        for fault in faults:
            _say_error(CaoError(f"not allowed: {fault.what}", fault.fix))
            code = fault.exit_code
        repository = find_repository(folder)[0]
        if args.check and not args.remove and repository != folder:
            _note(f"allowed in the whole repository {one_line(repository)}")
        checks = [args.check, *(profile.settings.get("check") for profile in profiles)]
        if any(checks) and not args.remove:
            _note("a check like pytest runs files that workers may write")
    allowed = ask.store.allowed()
    rows = [[one_line(what), one_line(where)] for where, known in allowed.items() for what in known]
    _print(ask, allowed, render_table(rows) or "nothing is allowed")
    return code


def cmd_clean(ask: Ask) -> None:
    older = ask.args.older
    if older.isdigit():  # it would be seconds: perhaps days were meant
        raise UsageError(f"--older {older} has no unit", f"--older {older}d")
    ask.boss.check_person("remove sessions", "ask the person to run cao clean")
    _GitLimit.seconds = GIT_S  # a worktree in which git hangs is kept
    removed, foreign = clean(ask.boss, parse_seconds(older))
    lines = [f"sessions removed: {len(removed)}", *(f"  {name}" for name in removed)]
    plan = Schedule(ask.store)
    names = plan.names()
    stale = {name: why for name, why in plan.stale_lines().items() if name not in names}
    for name, fault in stale.items():
        plan.set_line(name, "")
        lines.append(f"crontab line removed: flow {name}: {fault}")
    _print(ask, {"removed": removed, "kept": foreign, "crontab": stale}, "\n".join(lines))
    for words in foreign:
        _note(f"kept: {words}")


def cmd_demo(ask: Ask) -> None:
    show_demo(ask.store, lambda text: print(text, flush=True))


def cmd_schedule(ask: Ask) -> int:
    plan, action, name = Schedule(ask.store), ask.args.action, ask.args.name
    if not name and action not in ("list", "log"):
        way = "cao schedule add FILE" if action == "add" else "cao schedule list"
        raise UsageError(f"cao schedule {action} of which flow?", way)
    if action == "log":
        _schedule_log(ask, plan)
        return EXIT_DONE
    if action not in ("list", "show"):  # a flow has a person's rights: no grant counts for it
        ask.boss.check_person(f"{action} a flow", f"ask the person to run cao schedule {action}")
    if action == "run":
        return _schedule_run(ask, plan)
    if action == "remove":
        plan.remove(name)
        _print(ask, {"removed": name}, f"removed {name} and its history")
        return EXIT_DONE
    if action == "add":
        name = _schedule_add(ask, plan)
    elif action == "enable":
        plan.put_line(plan.load(name))
    elif action == "disable":
        plan.disable(name)
    _schedule_show(ask, plan, [name] if name else plan.names())
    return EXIT_DONE


def _schedule_add(ask: Ask, plan: Schedule) -> str:
    """Enter the flow in a file; return its name. A profile that cannot be used now, and a key that
    looks mistyped, are only said on stderr."""
    file = os.path.abspath(ask.args.name)
    flow = parse_flow(read_flow(file), file)
    passed: Sequence[str] = ()
    name = flow.agent_profile.partition("@")[0]  # without the machine, if it names one
    try:
        profile = ask.boss.profile(name, flow.beside(flow.working_directory))
        passed = (profile.settings.get("env") or {}).get("pass") or ()
        _say_mistyped(f"profile {name}", profile.settings, PROFILE_KEYS)
    except CaoError as error:  # it may come later
        _say_error(CaoError(f"flow {flow.name} could not run now: {error.what}", error.fix))
    _say_mistyped(f"flow {flow.name}", flow.unknown, Flow._fields)
    for key in flow.unknown:
        if key in PROFILE_KEYS:
            what = f"flow {flow.name}: the key {key!r} is a profile's, and counts for nothing here"
            _say_error(CaoError(what, f"write it into the profile {name}"))
    plan.add(flow, passed)
    return flow.name


def _schedule_show(ask: Ask, plan: Schedule, names: list[str]) -> None:
    """Print flows: for the action list one a line, for any other all facts of one flow."""
    try:
        lines = plan.lines() if names else {}
    except CaoError as error:
        _say_error(error)
        lines = {}
    views = [plan.view(name, lines) for name in names]
    if ask.args.action != "list":
        facts = {**views[0], **(views[0]["last_run"] or {})}
        del facts["last_run"]
        _print(ask, views[0], _facts_table({key: value for key, value in facts.items() if value}))
        return
    rows = []
    for view in views:
        last = f"never run since added {view['added_at']}"
        if run := view["last_run"]:
            last = f"{run['outcome'] or 'running'} {run['started_at']}"
        rows.append([view["name"], view["state"], view["crontab"] or view["schedule"], last])
    _print(ask, views, render_table(rows) or "no flow yet: cao schedule add FILE")


def _schedule_log(ask: Ask, plan: Schedule) -> None:
    """Print the runs of the flow that is named, or of all, the oldest first."""
    name, records = ask.args.name, []
    for flow in [name] if name else plan.names():
        plan.load(flow)  # raises where there is no such flow
        records += plan.runs(flow)
    records.sort(key=itemgetter("id"))  # which begins with its time
    rows = []
    for record in records:
        about = _cell(record["answer"] or record["detail"] or record["reason"], 70)
        tokens = ""
        if record.get("usage"):
            tokens = render_tokens(record["usage"])
        row = [record["flow"], record["id"], record["outcome"] or "running"]
        rows.append([*row, render_seconds(record["seconds"]), tokens, about])
    _print(ask, records, render_table(rows) or "no run")


def _schedule_run(ask: Ask, plan: Schedule) -> int:
    """Run a flow now and print its answer; return the exit code, 0 also for a skipped run."""
    still_wanted = end_by_signals()
    record = plan.run(ask.args.name, still_wanted)
    outcome, good = record["outcome"], record["outcome"] in ("done", "skipped")
    if ask.args.json or outcome == "done":
        _print(ask, record, record["answer"])
    elif not good or os.isatty(2):  # of a skipped run nothing: cron mails what is said
        words = shorten(strip_controls(record["detail"] or record["reason"]), 400)
        took = f"{render_seconds(record['seconds'])}, run {record['id']}"
        _note(f"flow {record['flow']}: {outcome} {words} ({took})")
    if record["reason"] == "asking":
        return EXIT_ASKING
    return EXIT_DONE if good else _OUTCOME_EXIT.get(outcome, EXIT_FAILED)


def cmd_doctor(ask: Ask) -> int:
    live = ask.args.live  # None: no live turn; "*": one of each CLI that is there
    rows: list[dict[str, Any]] = []
    if live and (ask.args.host or "@" in live):
        fix = "run cao doctor --live on the other one"
        raise UsageError("--live looks at the CLIs of this machine alone", fix)
    if ask.args.host:
        if f"host {ask.args.host}" not in ask.store.allowed().get(EVERYWHERE, {}):
            fix = f"ask the person to run cao doctor --host {_in_shell(ask.args.host)}"
            ask.boss.check_person("look at another machine", fix)
        rows = doctor_there(ask.args.host)
    elif live in (None, "*"):
        rows = doctor(ask.store)
    if live is None:
        good, bad = rows[1]["state"] == "ok", EXIT_TMUX  # tmux's row
    else:
        there = [row["what"] for row in rows if row["state"] not in ("missing", "broken")]
        names = [name for name in there if name in PROVIDERS] if live == "*" else [live]
        rows = [prove_live(ask.boss, name) for name in names]
        good, bad = all(row["state"] == "ok" for row in rows), EXIT_FAILED
    table = render_table([[str(row[key]) for key in ("what", "state", "detail")] for row in rows])
    _print(ask, rows, table)
    return EXIT_DONE if good else bad


COMPLETIONS = {
    "bash": """\
_cao() {
    local IFS=$'\\n'
    COMPREPLY=($(cao complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _cao cao
""",
    "zsh": """\
_cao() {
    compadd -- ${(f)"$(cao complete "${(@)words[2,CURRENT]}" 2>/dev/null)"}
}
(( $+functions[compdef] )) || { autoload -Uz compinit; compinit -i }
compdef _cao cao
""",
    "fish": """\
complete -c cao -f -a '(cao complete (commandline -opc)[2..] (commandline -ct) 2>/dev/null)'
""",
}


def cmd_completion(ask: Ask) -> None:
    print(COMPLETIONS[ask.args.shell], end="")


class Verb(NamedTuple):
    """One row of VERBS."""

    name: str
    # Returns the exit code, None for done. The row mcp has none: see main.
    call: Callable[[Ask], int | None] | None
    about: str
    example: str
    arguments: tuple[Argument, ...] = ()
    json: bool = True  # takes --json
    tool: Tool | None = None
    keys: tuple[Key, ...] = ()  # of `cao watch`


def _only(
    name: str, about: str, place: str = "", kind: str = "string", **settings: Any
) -> Argument:
    """Return an argument that the command has and the tool has not."""
    return Argument(name, about, kind, place, False, 0, settings)


def _flag(name: str, about: str) -> Argument:
    return _only(name, about, kind="boolean")


# fmt: off
_JSON = _flag("json", "Print JSON for a program.")
_NAME = Argument("session", "The session's name, like developer-7k2m, or its task's.", place="1")
_CWD = Argument("cwd", "Working directory, absolute; default: yours.")
_TIMEOUT = Argument("timeout_s", "Seconds it may take; default 3600.", "number", minimum=1)
_PERMISSIONS = _only("permissions", "What it may do unasked.", choices=PERMISSIONS)
_GIVEN = (
    Argument("target", "A profile or provider for a new session (developer, reviewer, claude, codex"
             " …; developer@HOST: on that machine), or a session's name to go on with its"
             " conversation.", place="1"),
    Argument("task", "All the worker needs to know: it sees nothing of your conversation.",
             place="?", settings={"help": "The task; - or nothing: from stdin."}),
    _CWD,
    Argument("worktree", "Give a new session its own git worktree and branch.", "boolean"),
    Argument("check", "Command that must exit 0 in the worker's directory before the task is done,"
             " e.g. pytest -q. No shell reads it; a person may have to allow it first."),
    Argument("check_retries", "How often the check's output goes back to the worker; default 2.",
             "number"),
    _TIMEOUT,
    Argument("max_tokens", "End the task once it has used more tokens: input and output.", "number",
             minimum=1),
)
_KEPT = (
    Argument("keep", "Do not close the new session when it is idle.", "boolean"),
    Argument("request_id", "The same id again is the same task, not a second one."),
    _PERMISSIONS,
)
_SESSION = _only("session", _NAME.about, "1")
_ACTIONS = "add list show run enable disable remove log".split()
_WAITED = "outcome results messages asking running"

VERBS = (
    Verb("handoff", cmd_handoff, "give a task to an agent, wait, print its answer",
         "cao handoff developer 'mend the failing test' --check 'pytest -q'", (*_GIVEN, *_KEPT),
         tool=Tool("handoff", "Hand off a task",
             "Give a task to another coding agent and wait for its whole answer. It works in a"
             " session of its own, with its own context. Returns early when the worker asks"
             " something, or before your client's limit for one call; the work goes on, and wait"
             " goes on waiting. For tasks side by side use assign.",
             ("target", "task"), _WAITED, _call_handoff, delegates=True)),
    Verb("assign", cmd_assign, "give a task to an agent and go on; prints the task's name",
         "one=$(cao assign developer 'part one'); cao wait \"$one\"", (*_GIVEN, *_KEPT),
         tool=Tool("assign", "Assign a task",
             "Give a task to another coding agent and go on at once. Returns the names of task and"
             " session. The result comes with wait, or by itself if you run inside cao.",
             ("target", "task"), "task session", _call_assign,
             delegates=True)),
    Verb("run", cmd_run, "do one task for a script or CI, print its answer, end its session",
         "cao run developer --file task.md --check 'pytest -q'",
         (*_GIVEN, _PERMISSIONS, _only("file", "The task is in this file.", metavar="FILE"),
          _flag("keep_on_failure", "Leave the session if not done."))),
    Verb("send", cmd_send, "send a message to a session, or to `supervisor`",
         "cao send developer-7k2m 'the tests are in tests/unit'\n\n"
         "what it says to that stands on its screen: cao show developer-7k2m; to get an answer,\n"
         "give it a task: cao handoff developer-7k2m 'which tests are slow?'",
         (Argument("target", 'A session\'s name, or "supervisor".', place="1"),
          Argument("message", "The text.", place="?",
                   settings={"help": "The text; - or nothing: from stdin."})),
         tool=Tool("send_message", "Send a message",
             "Send a message to a session, or to your supervisor. A worker at work reads it after"
             " its next tool call if its CLI can, else after its turn. The receipt says how far it"
             " came: queued, typed, submitted or taken.",
             ("target", "message"), "message to step",
             _call_send_message, delegates=True),
         keys=(Key("s", "send", "send it a message", Watch.begin, "message",
                   lambda boss, name, words, _: boss.send_message(name, words)["step"]),)),
    Verb("wait", cmd_wait, "wait for results and messages",
         "cao wait --timeout 10m  # all that was given out from this directory",
         (Argument("tasks", "Only these tasks; none: all that are yours.", "array", "*"),
          Argument("all", "Wait for all of the named tasks, not only the first.", "boolean"),
          _TIMEOUT._replace(about="Seconds at the most.", minimum=0)),
         tool=Tool("wait", "Wait for results",
             "Wait for the next results, messages and questions from your workers.",
             (), _WAITED, _call_wait)),
    Verb("ls", cmd_ls, "list the sessions as a tree", "cao ls --asking  # who needs you\n\n"
         "above a session stands who gave it work; a client (of MCP, or a shell's directory)\n"
         "is connected while its cao mcp runs, else away",
         (Argument("all", "The ended ones too.", "boolean"),
          _flag("asking", "Only those that ask something.")),
         tool=Tool("list_sessions", "List sessions",
             "Show the sessions as a tree: state, task, what each asks, and the profiles there"
             " are.",
             (), "sessions profiles", _call_list_sessions, reads=True)),
    Verb("show", cmd_show, "show a session: its state, its scope and its screen",
         "cao show developer-7k2m --lines 20",
         (_NAME, Argument("lines", "Default 50.", "number", minimum=1)),
         tool=Tool("read_session", "Read a session",
             "Show a session's screen as it is now, its state and the evidence for it. To get an"
             " answer use wait: the screen is not the answer.",
             ("session",), "session state screen",
             _call_read_session, reads=True),
         keys=(Key("r", "read", "read its screen", Watch.show_page),)),
    Verb("diff", cmd_diff, "show all that a worker changed in its worktree",
         "cao diff developer-7k2m --stat",
         (_SESSION, _flag("stat", "Only the files, and how much."))),
    Verb("merge", cmd_merge, "merge a worker's worktree, whole, or not at all",
         "cao merge developer-7k2m  # into the branch that is checked out here", (_SESSION,)),
    Verb("discard", cmd_discard, "remove a worker's worktree and branch, and end it",
         "cao discard developer-7k2m",
         (_SESSION, _flag("yes", "Even where it holds what may be nowhere else."))),
    Verb("answer", cmd_answer, "answer what a session asks",
         "cao answer developer-7k2m yes; or: cao answer  # each question in turn",
         (_NAME._replace(place="?"),
          Argument("answer", "For a permission: yes, no or `no: WORDS`. For a question: an option's"
                   " number or text, or your own words.", place="?"),
          Argument("question", "The question's id, where several are open."),
          _only("key", "Press this key (1, Enter, Down …) in a dialog of its terminal; several are"
                " pressed one after the other.", action="append"),
          _flag("dialog", "Leave it to the program's own dialog.")),
         tool=Tool("answer", "Answer a question",
             "Answer what a worker asks, if it still asks that. Permissions are a person's to give"
             " unless the worker's profile says `approve: supervisor`: yes, no, or `no: WORDS` for"
             " it.", ("session", "answer"), "session answered",
             _call_answer),
         keys=(Key("a", "answer", "read and answer what it asks", Watch.begin_answer, "answer",
                   lambda boss, name, words, asked: boss.answer(name, words, asked)["answered"]),)),
    Verb("stop", cmd_stop, "end sessions with their workers",
         "cao stop --interrupt developer-7k2m  # only its turn, as Esc does",
         (_NAME._replace(place="-"), _only("sessions", "Their names.", "*", metavar="session"),
          _flag("all", "Every session that runs."),
          Argument("interrupt", "Only interrupt its turn; the session lives.", "boolean")),
         tool=Tool("stop_session", "Stop a session",
             "End a worker's session, with its own workers; their unfinished tasks end as stopped.",
             ("session",), "session did", _call_stop_session, ends=True),
         keys=(Key("i", "interrupt", "interrupt its turn", Watch.begin, "",
                   lambda boss, name, *_: boss.stop_session(name, True)["did"]),
               Key("x", "end", "end it and its workers", Watch.begin,
                   "end it and its workers: type yes",
                   lambda boss, name, words, _: boss.stop_session(name, False)["did"]
                   if words == "yes" else "not ended"))),
    Verb("attach", cmd_attach, "attach the terminal to a session (detach: C-b d)",
         "cao attach developer-7k2m  # C-b d leaves it as it is", (_SESSION,), False,
         keys=(Key("enter", "attach",
                   "attach to the session; its status line says how to come back",
                   Watch.attach),)),
    Verb("watch", cmd_watch, "show all sessions as they change; answer, attach, stop",
         "cao watch  # ? shows its keys", (), False),
    Verb("launch", cmd_launch, "start a supervisor in tmux and attach to it",
         "CAO_TMUX_CONF=~/.tmux.conf cao launch claude  # in your tmux settings",
         (_only("profile", "Default: supervisor.", "?", default="supervisor"),
          _CWD, _PERMISSIONS, _flag("detach", "Do not attach."))),
    Verb("why", cmd_why, "show the evidence for a session's state", "cao why developer-7k2m",
         (_SESSION,)),
    Verb("logs", cmd_logs, "print what happened, of one session or of all",
         "cao logs -f developer-7k2m",
         (_only("session", "None: all.", "?"),
          _only("follow", "Go on as it happens.", kind="boolean", names=("-f", "--follow")))),
    Verb("trace", cmd_trace, "write what sessions did as a trace for Perfetto or speedscope",
         "cao trace supervisor-7k2m  # open cao-trace.json at ui.perfetto.dev",
         (_only("root", "A session and all below it; none: all there are.", "?"),
          _only("output", "- for stdout.", default="cao-trace.json", metavar="FILE")), False),
    Verb("config", cmd_config, "print the MCP entry for a client",
         "cao config cursor\n\n"
         "-I -S -c in an entry: Python imports the compiled cao.py and nothing of yours, so it\n"
         "starts in a sixth of the time that running the file takes",
         (_only("client", ", ".join(CLIENTS), "1", choices=CLIENTS, metavar="CLIENT"),
          _only("form", "How cao is run: as it runs now (default), or by uvx, pipx, copied file.",
                choices=("now", "uvx", "pipx", "copy"), default="now")), False),
    Verb("profiles", cmd_profiles, "list the profiles, or show what is effective in one",
         "cao profiles developer  # what is effective in it, what is ignored",
         (_only("profile", "None: all.", "?"),)),
    Verb("allow", cmd_allow, "let the profiles of a directory be used, or a check be run there",
         "cao allow; cao allow --check 'pytest -q'",
         (_only("dir", "Default: the current directory.", "?", metavar="DIR"),
          _only("check", "Let agents use this check anywhere in DIR's repository.",
                metavar="COMMAND"),
          _only("host", "Let agents give work to this other machine.", metavar="HOST"),
          _flag("list", "Show all that is allowed."),
          _flag("remove", "Take the check or host away, or all allowed in DIR's repository."))),
    Verb("schedule", cmd_schedule, "run tasks at set times (flows), by cron",
         "cao schedule add nightly.md && cao schedule list",
         (_only("action", ", ".join(_ACTIONS), "1", choices=_ACTIONS, metavar="ACTION"),
          _only("name", "The flow; for add: its file.", "?"))),
    Verb("clean", cmd_clean, "remove dead sessions, and old ones; each run of a flow leaves one",
         "cao clean --older 2d",
         (_only("older", "Ended longer ago than this; default 14d.", metavar="TIME",
                default="14d"),)),
    Verb("demo", cmd_demo, "show what this is, in seconds",
         "cao demo; cao handoff demo 'demo: sleep 1; say done'\n\n"
         "steps of the demo agent: say TEXT, sleep SECONDS, ask QUESTION|A|B,\n"
         "permit COMMAND, tell TEXT, assign TARGET {demo: STEPS}, gather (the answers\n"
         "to those), handoff TARGET {demo: STEPS}, echo (the lines below), fail TEXT,\n"
         "exit STATUS", (), False),
    Verb("doctor", cmd_doctor, "check tmux and the agent CLIs", "cao doctor",
         (_only("live", "Do a real turn of this CLI (or profile), or of each there is; it costs a"
                " few tokens.", metavar="CLI", nargs="?", const="*"),
          _only("host", "Check that machine.", metavar="HOST"))),
    Verb("completion", cmd_completion, "print a shell's completion script for cao",
         "eval \"$(cao completion bash)\"  # in ~/.bashrc",
         (_only("shell", ", ".join(COMPLETIONS), "1", choices=COMPLETIONS, metavar="SHELL"),),
         False),
    Verb("mcp", None, "serve MCP on stdio, for any MCP client",
         "claude mcp add cao -- cao mcp", (), False),
)
# fmt: on


def complete(store: Store, words: Sequence[str]) -> list[str]:
    """Return what the last of the words behind `cao`, "" or half typed, may become; [] where the
    shell completes it to a file."""
    verb = next((verb for verb in VERBS if verb.name == words[0]), None)
    last, names = words[-1], [verb.name for verb in VERBS]

    if len(words) > 1:
        if not verb:
            return []
        sessions = store.all_sessions()
        profiles = [*find_profiles(store.home, current_directory()), *PROVIDERS]
        tasks = [task for name in sessions for task in _listdir(f"{store.folder(name)}/out")]
        names = ["--json"] if verb.json else []
        known = {"session": sessions, "sessions": sessions, "root": sessions, "tasks": tasks,
                 "target": [*sessions, *profiles], "profile": profiles,
                 "name": Schedule(store).names()}  # fmt: skip
        for one in verb.arguments:
            if not one.place:
                names.append(one.option())
            elif one.place != "-":
                names += one.settings.get("choices") or known.get(one.name) or ()
        for one in verb.arguments:
            if words[-2] == one.option() and not one.place and one.kind != "boolean":
                names = [*one.settings.get("choices", ())]  # it is that option's value

    # A shell reads the chosen word: no file's name may be more than one.
    plain = filter(re.compile(r"[\w.@-]+").fullmatch, names)
    return sorted({name for name in plain if name.startswith(last) and (last or name[0] != "-")})


TOOLS = {
    verb.tool.name: verb.tool._replace(
        arguments={one.name: one.schema() for one in verb.arguments if one.tool}
    )
    for verb in VERBS
    if verb.tool
}


# ==== 13. McpServer =================================================================

LEGACY_VERSIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
MODERN_VERSION = "2026-07-28"
_META = "io.modelcontextprotocol/"
INSTRUCTIONS = """\
cao hands work to other coding agents, each in a tmux session of its own. handoff gives a task and \
waits for the whole answer; assign gives one and goes on, so use it for work side by side, then \
wait. A worker knows nothing of your conversation: put all it needs into the task. When a call \
returns `running`, the work goes on: call wait with the task's name, do not give the task again. \
When a worker asks, tell the person or use answer, then wait. A session keeps its conversation: \
give a follow-up to the session's name, not to the profile. Idle sessions close by themselves."""


_CAPABILITIES: dict[str, Any] = {"tools": {}, "prompts": {}, "resources": {}}
_ABOUT_US = {"capabilities": _CAPABILITIES, "instructions": INSTRUCTIONS}


class RpcError(Exception):
    """A protocol fault, with its JSON-RPC code."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code, self.data = code, data


# A question in the client's own form:
#   owned by the runner   the form answers through Orchestrator.answer, and only while the question
#                         is open: an answer that comes late, or second, changes nothing
#   shown whole, or not   `yes` is offered only where the person can see all of the question
#   one at a time         one lock guards all forms
#   safe by default       the first option does nothing
#   part of a call        the form is withdrawn before the call that shows it gets its result
#   filled in by a person see has_person; a form that is declined or cancelled answers nothing


def as_person(boss: Orchestrator) -> Orchestrator:
    """Return the verbs for the person in front of a client."""
    return Orchestrator(boss.store, boss.caller._replace(person=True))


class Form:
    """A question in the client's form, for a call that waits: make it, wait until `is_over`, then
    always `close` it.

    ask: an element of Waited.asking, the permission that a session asks for; once that is over,
    so is the form. Without it only a response ends the form. options: the first does nothing;
    "yes" is left out where the text is too long to be shown whole.
    """

    def __init__(
        self,
        server: McpServer,
        boss: Orchestrator,
        text: str,
        options: list[str],
        ask: dict[str, Any] | None = None,
    ) -> None:
        self.server, self.boss, self.ask, self.key = server, boss, ask, ""
        lines = wrap_columns(text, FORM_COLUMNS)
        if len(lines) > FORM_LINES:
            lines = [*lines[: FORM_LINES - 1], lines[FORM_LINES - 1][:-1] + "…"]
            options = [option for option in options if option != "yes"]
        self.options = options
        self.params = {
            "message": "\n".join(lines),
            "requestedSchema": {
                "type": "object",
                "properties": {"answer": {"type": "string", "title": "Answer", "enum": options}},
                "required": ["answer"],
            },
        }

    def is_over(self) -> bool:
        """Show the form as soon as no other is shown. Tell whether it has a response, or the
        session no longer asks. To be called again and again."""
        if self.ask:
            state, asked = self.boss.state_of(self.ask["session"]), self.ask["question"]["id"]
            if asked not in [question["id"] for question in objects_at(state, "questions")]:
                return True
        if not self.key and self.server.form_lock.acquire(blocking=False):
            self.key = self.server.request("elicitation/create", self.params)
        return bool(self.key and self.server.requests[self.key])

    def close(self) -> str:
        """Withdraw the form where it has no response, and let the next one be shown. Return the
        option that was chosen, "" where none was: declined, cancelled, withdrawn or not shown."""
        if not self.key:
            return ""
        response = self.server.requests.pop(self.key)
        if response is None:
            self.server.notify("notifications/cancelled", {"requestId": self.key})
        self.key = ""
        self.server.form_lock.release()
        self.server.store.poke_own()
        chosen = text_at(response, "result.content.answer")
        if chosen in self.options and text_at(response, "result.action") == "accept":
            return chosen
        return ""


class McpServer:
    """Speaks MCP on two descriptors: the versions with initialize and the stateless one,
    chosen by each message. Owns the lines and the calls in flight; the tools are rows.

    One thread reads; each tool call has a thread of its own. near: see open_near.
    """

    def __init__(self, store: Store, fd_in: int, fd_out: int, near: str = "") -> None:
        import threading

        self.store, self.fd_in, self.fd_out, self.near = store, fd_in, fd_out, near
        self.tools = {"sync": SYNC} if near else TOOLS
        self.writing = threading.Lock()
        self.version = ""  # of the handshake, once there was one
        self.client_name = ""
        self.boss: Orchestrator | None = None  # see open
        self.opening = threading.Lock()
        self.signals: list[int] = []  # descriptors that a signal makes readable: see cmd_mcp
        self.lock: int | None = None  # on the client's folder
        # The calls in flight, by type and text of their ids (1 is not "1"): a threading.Event
        # that is set once the call is cancelled.
        self.running: dict[tuple[str, str], Any] = {}
        self.closed = False  # the client has closed our input
        self.capabilities: Any = None  # the client's, from its handshake
        self.requests: dict[str, Any] = {}  # ours: the client's response, None until it came
        self.roots_lock = threading.Lock()  # one roots/list at a time
        self.roots_key = ""  # the id of the last one; "": the client is to be asked anew
        self.roots: Any = None  # the last response to one
        self.form_lock = threading.Lock()  # one form at a time
        self.forms: dict[str, bool] = {}  # a permission's id: its form may be shown, also again
        self.threads: list[Any] = []  # of the calls in flight
        self.told: set[str] = set()  # ids of the questions that calls have reported
        self.unreported: list[str] = []  # the tasks of cancelled calls, which nobody was told
        self.ending = threading.Condition()  # over running and unreported

    # ---- lines ----

    def serve(self) -> int:
        """Answer until the client closes our input; return the exit status. Calls in flight then
        get CLOSING_S to end."""
        buffer = bytearray()
        while True:
            try:
                readable([self.fd_in, *self.signals])
                chunk = os.read(self.fd_in, 1 << 16)
            except OSError:
                chunk = b""
            if not chunk:
                break
            start = len(buffer)
            buffer += chunk
            while (end := buffer.find(b"\n", start)) >= 0:
                line, start = bytes(buffer[:end]), 0
                del buffer[: end + 1]
                if line.strip():
                    self.receive(line)
        self.closed = True  # waits end and tell nothing; quick calls are still answered
        self.store.poke_own()
        until = time.monotonic() + CLOSING_S
        for thread in self.threads:
            thread.join(max(0.0, until - time.monotonic()))
        # Wait for a line that is being written: it goes out whole, and what it tells goes off the
        # books. The lock is kept: nothing is written after this.
        self.writing.acquire(timeout=CANCEL_S)
        self.close()
        return 0

    def close(self) -> None:
        """Leave no FIFO behind; the threads are daemons and end with us."""
        for wake in list(self.store.wakes):
            wake.vanish()

    def send(self, message: dict[str, Any], claims: Sequence[Claim] = ()) -> None:
        """Write one message of JSON-RPC 2.0 as one line. claims: on what it tells, which goes off
        the books once the whole line is written. Where the client is gone, this ends the process.
        """
        body = {"jsonrpc": "2.0", **message}
        body.pop("id", None)
        line = json.dumps(body, ensure_ascii=False, allow_nan=False)
        if not self.near:  # many clients drop a whole line for a lone surrogate
            line = re.sub("[\ud800-\udfff]", "\ufffd", line)
        if "id" in message:  # the client's own, as it is
            line = f'{{"id": {json.dumps(message["id"])}, {line[1:]}'
        with self.writing:
            view = memoryview(f"{line}\n".encode(errors="backslashreplace"))
            try:
                while view:
                    try:
                        view = view[os.write(self.fd_out, view) :]
                    except BlockingIOError:  # our client made its pipe so
                        select.select([], [self.fd_out], [])
            except OSError:
                self.close()
                os._exit(0)  # the client is gone; nobody is left to tell
            Waited(claims=tuple(claims)).told()

    def notify(self, method: str, params: dict[str, Any]) -> None:
        """Send a notification."""
        self.send({"method": method, "params": params})

    def send_error(self, key: Any, code: int, message: str, data: Any = None) -> None:
        """Send an error response, without an id where the request has none that can be read
        (2025-11-25 schema)."""
        response: dict[str, Any] = {"error": {"code": code, "message": message}}
        if data is not None:
            response["error"]["data"] = data
        if type(key) in (str, int):
            response["id"] = key
        self.send(response)

    def receive(self, line: bytes) -> None:
        """Take one line, which is one message; what is none is answered with an error."""
        try:
            # Not parse_json: 1e999 is JSON, and a request with it has an id to be answered by.
            message = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
        except RecursionError:
            self.send_error(None, -32700, "not JSON: nested too deeply")
            return
        except ValueError as error:
            self.send_error(None, -32700, f"not JSON: {error!s:.120}")
            return
        self.handle(message)

    def handle(self, message: Any) -> None:
        """Deal with one message: answer a request, keep a response to a request of ours, cancel a
        call. Other notifications, and responses to nothing of ours, are ignored; anything else gets
        an error. Raises neither RpcError nor CaoError: they are sent as errors."""
        key = value_at(message, "id")
        try:
            if isinstance(message, list):  # 2025-03-26 alone had batches
                raise RpcError(-32600, "batches were removed from MCP; send one message a line")
            if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
                raise RpcError(-32600, "not a JSON-RPC 2.0 message")
            method, params = message.get("method"), message.get("params", {})
            if "id" not in message or "method" not in message:
                if method == "notifications/cancelled":
                    self.cancel(value_at(params, "requestId"))
                elif method == "notifications/roots/list_changed":
                    self.roots_key = ""
                elif method is None and isinstance(key, str) and key in self.requests:
                    self.requests[key] = message
                    self.store.poke_own()
                elif "method" not in message and "result" not in message and "error" not in message:
                    key = None
                    raise RpcError(-32600, "neither a request nor a response")
                return
            if type(key) not in (str, int):
                raise RpcError(-32600, "the id must be a string or an integer")
            if not isinstance(method, str):
                raise RpcError(-32600, "the method must be a string")
            if not isinstance(params, dict):
                raise RpcError(-32602, "params must be an object")
            self.foreseen(lambda: self.dispatch(key, method, params))
        except RpcError as error:
            self.send_error(key, error.code, str(error), error.data)
        except CaoError as error:
            self.send_error(key, -32603, str(error))

    # ---- methods ----

    def dispatch(self, key: Any, method: str, params: dict[str, Any]) -> None:
        """Answer a request, or start the thread that will (tools/call). Raises RpcError where the
        request is wrong."""
        meta = params.get("_meta", {})
        if not isinstance(meta, dict):
            raise RpcError(-32602, "_meta must be an object")
        modern = _META + "protocolVersion" in meta
        if modern:
            self.check_modern(meta)
        elif method == "server/discover":
            raise RpcError(-32602, f"_meta needs {_META}protocolVersion")
        methods = _MODERN_METHODS if modern else _LEGACY_METHODS
        if method not in methods and method != "tools/call":
            raise RpcError(-32601, f"there is no method {method!r}")
        if not modern and not self.version and method not in ("initialize", "ping"):
            raise RpcError(-32600, "initialize first")
        if method == "tools/call":
            self.call_tool(key, params, meta, modern)
            return
        result = methods[method](self, params)
        if modern:
            result = _modern(result)
            if method.endswith(("list", "discover", "read")):
                result.update(ttlMs=0, cacheScope="private")  # caching: 0 is "ask again"
        self.send({"id": key, "result": result})

    def check_modern(self, meta: dict[str, Any]) -> None:
        """Check what 2026-07-28 wants with every request (basic: Requests), and note the client's
        name. Raises RpcError."""
        version = meta[_META + "protocolVersion"]
        if not isinstance(version, str):
            raise RpcError(-32602, f"_meta {_META}protocolVersion must be a string")
        if version != MODERN_VERSION:
            raise RpcError(
                -32022,
                f"version {version!r} is not supported",
                {"supported": _versions_for(meta), "requested": version},
            )
        if not isinstance(meta.get(_META + "clientCapabilities"), dict):
            raise RpcError(-32602, f"_meta needs {_META}clientCapabilities, an object")
        info = meta.get(_META + "clientInfo")
        if isinstance(info, dict):
            self.client_name = text_at(info, "name")

    def initialize(self, params: dict[str, Any]) -> dict[str, Any]:
        """Do the handshake: echo a version we know, else offer our newest with a handshake. Note
        the client's name and what it can. Raises RpcError for a second one."""
        wanted = params.get("protocolVersion")
        if not isinstance(wanted, str):
            raise RpcError(-32602, "protocolVersion must be a string")
        if self.version:
            raise RpcError(-32600, f"initialized already, with {self.version}")
        self.version = wanted if wanted in LEGACY_VERSIONS else LEGACY_VERSIONS[-1]
        self.client_name = text_at(params, "clientInfo.name")
        self.capabilities = params.get("capabilities")
        return {"protocolVersion": self.version, "serverInfo": SERVER_INFO, **_ABOUT_US}

    def discover(self, params: dict[str, Any]) -> dict[str, Any]:
        """Say who we are, to a client that does no handshake (2026-07-28)."""
        return {"supportedVersions": _versions_for(params["_meta"]), **_ABOUT_US}

    def list_tools(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return tools/list. In a session of ours, also note that its CLI has asked: its runner, or
        `cao hook … await-tools`, may wait for that."""
        if name := os.environ.get("CAO_SESSION"):
            self.store.write(self.store.launch_file(name, "tools-listed"), "")
            self.store.poke(name)
        return _page(params, {"tools": [render_tool(tool) for tool in TOOLS.values()]})

    def get_prompt(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return the prompt that makes any client a supervisor: that of the profile supervisor,
        INSTRUCTIONS where it has none, and the goal."""
        given = params.get("arguments", {})
        if params.get("name") != "supervisor":
            raise RpcError(-32602, f"there is no prompt {params.get('name')!r}")
        if not isinstance(given, dict) or not isinstance(given.get("goal", ""), str):
            raise RpcError(-32602, "the argument 'goal' must be a string")
        profile, text = load_profile("supervisor", self.store, current_directory()), INSTRUCTIONS
        if profile and profile.prompt:
            text = profile.prompt
        if given.get("goal"):
            text += f"\n\nThe goal: {given['goal']}"
        return {"messages": [{"role": "user", "content": {"type": "text", "text": text}}]}

    def read_resource(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return the live sessions as JSON, or an answer's whole text. Raises RpcError."""
        uri = params.get("uri")
        if uri == "cao://sessions":
            text = json.dumps(self.open(False).list_sessions(), ensure_ascii=False)
            return {"contents": [{"uri": uri, "mimeType": "application/json", "text": text}]}
        result = None
        try:
            if isinstance(uri, str) and (match := re.fullmatch(r"cao://answers/(.+)", uri)):
                result = self.store.load_result(match[1])
        except CaoError:
            pass  # that is no task's name
        if not result:
            code = -32002  # of the handshake versions; 2026-07-28 forbids it
            if _META + "protocolVersion" in params.get("_meta", {}):
                code = -32602
            raise RpcError(code, f"no resource {uri!r}", {"uri": str(uri)})
        return {"contents": [{"uri": uri, "mimeType": "text/plain", "text": result.answer}]}

    # ---- tool calls ----

    def call_tool(
        self, key: Any, params: dict[str, Any], meta: dict[str, Any], modern: bool
    ) -> None:
        """Start a tool call in a thread of its own, which sends the result. Of a call that is
        cancelled nothing is sent, and what it found is left to the next wait. Raises RpcError for
        an unknown tool or arguments that are no object; other faults are results."""
        import threading

        name = params.get("name")
        if not isinstance(name, str) or name not in self.tools:
            raise RpcError(-32602, f"unknown tool: {name!r}")
        arguments = params.get("arguments")
        if arguments is None:
            arguments = {}
        if not isinstance(arguments, dict):
            raise RpcError(-32602, "arguments must be an object")

        token = meta.get("progressToken")
        if type(token) not in (str, int):
            token = None

        cancelled, call_key = threading.Event(), (type(key).__name__, str(key))
        with self.ending:  # end_call of another may be looking through them
            self.running[call_key] = cancelled

        def work() -> None:
            done = self.run_tool(self.tools[name], arguments, cancelled, token)
            result = self.end_call(call_key, cancelled, done)
            # Nothing that is owed is told to a client that has left: it would be lost.
            owed = Waited(claims=done.claims)
            if result is None or (self.closed and done.claims):
                owed.release()
                return
            if modern:
                result = _modern(result)
            try:
                self.send({"id": key, "result": result}, done.claims)
            except ValueError as error:  # it has what JSON has not: a call gets an answer always
                owed.release()
                self.send_error(key, -32603, f"cao failed: {error}")

        self.threads = [other for other in self.threads if other.is_alive()]
        try:
            self.threads.append(start_thread(work))
        except OSError:
            with self.ending:
                del self.running[call_key]
            raise

    def run_tool(self, tool: Tool, given: Any, cancelled: Any, token: Any) -> Answer:
        """Return a tool's answer; an error is an answer too, with `failed`. cancelled: an Event
        that ends its wait. token: for progress, None where the client wants none."""

        def work() -> Answer:
            # SYNC comes from a cao.py like this one, and has no schema.
            arguments = given
            if tool is not SYNC:
                arguments = check_arguments(tool, given)
                read_session_names(arguments, self.store)
            boss = self.open(tool.delegates)

            def given_up() -> bool:
                return cancelled.is_set() or self.closed

            return tool.call(self.make_call(boss, given_up, token), arguments)

        try:
            answered: Answer = self.foreseen(work)
        except CaoError as error:
            return Answer(str(error), None, failed=True)
        return answered

    @staticmethod
    def foreseen(work: Callable[[], Any]) -> Any:
        """Return what some work returns. It raises nothing but RpcError and CaoError: an OSError
        becomes a CaoError, and so does what nothing foresaw, whose trace goes to stderr."""
        try:
            return work()
        except (RpcError, CaoError):
            raise
        except OSError as error:
            raise machine_fault(error) from error
        except Exception as error:  # noqa: BLE001 - the one door: a bug must not end the server
            import traceback

            traceback.print_exc()
            raise CaoError(
                f"cao failed: {error!r}", "tell the person; cao doctor looks for what is wrong"
            ) from None

    def end_call(
        self, call_key: tuple[str, str], cancelled: Any, done: Answer
    ) -> dict[str, Any] | None:
        """Take a call off those in flight and return its result, None where it was cancelled.

        Nothing is sent for a cancelled call, so its tasks are named at the beginning of the next
        result. For that, this waits up to CANCEL_S for cancelled calls that have not ended yet.
        """

        def cancelled_go_on() -> bool:
            return any(other.is_set() for other in self.running.values())

        with self.ending:
            # A call that was cancelled just now may still have to add its tasks to `unreported`.
            self.ending.wait_for(lambda: cancelled.is_set() or not cancelled_go_on(), CANCEL_S)
            self.running.pop(call_key, None)
            self.ending.notify_all()
            if cancelled.is_set():
                self.unreported += done.left
                return None
            left, self.unreported = self.unreported, []

        text, data, earlier = done.text, done.data, done.earlier
        if left:
            earlier = (
                f"The call you cancelled left: {', '.join(left)}. The work goes on by itself; wait"
                f" gets the result, stop_session ends the session. {earlier}"
            ).rstrip()
        if earlier:
            text = f"{earlier}\n\n{text}"
            if data is not None:
                data = {"earlier": earlier, **data}

        result: dict[str, Any] = {"content": [{"type": "text", "text": text}]}
        if data is not None:
            result["structuredContent"] = data
        if done.failed:
            result["isError"] = True
        return result

    def make_call(
        self,
        boss: Orchestrator,
        cancelled: Callable[[], bool] = lambda: False,
        token: str | int | None = None,
    ) -> Call:
        """Return what a tool may use while it waits, by the client's own limits. At its looks
        progress is sent, every PROGRESS_S, where the client gave a token for that."""
        started, last = time.monotonic(), [0.0]

        def look(waited: Waited) -> None:
            """Send the client progress, unless it got some less than PROGRESS_S ago."""
            passed = time.monotonic() - started
            # 0.9: await_tasks looks at every half of PROGRESS_S, but not to the millisecond.
            if token is None or passed - last[0] < PROGRESS_S * 0.9 or cancelled():
                return
            last[0] = passed
            parts = [boss.render_progress(boss.store.session_of(task)) for task in waited.running]
            text = f"{', '.join(parts)}, {render_seconds(passed)}"
            progress = {"progressToken": token, "progress": round(passed, 3), "message": text}
            self.notify("notifications/progress", progress)

        ceiling_s = CALL_CEILINGS_S.get(self.client_name, CALL_CEILING_S)
        ceiling_s = seconds_setting("CAO_CALL_CEILING_S", ceiling_s)
        most = ANSWER_CHARS_BY_CLIENT.get(self.client_name, ANSWER_CHARS)
        return Call(boss, self, self.told, ceiling_s, most, cancelled, look)

    # ---- requests to the client, in the versions with a handshake ----

    def request(self, method: str, params: dict[str, Any]) -> str:
        """Send a request of ours and return its id. `requests` has the response under that id,
        None until it came; the caller takes it out, whether it came or not."""
        key = f"cao-{random_letters(8)}"
        self.requests[key] = None
        self.send({"id": key, "method": method, "params": params})
        return key

    def directory(self) -> str:
        """Return where a task works for which no whole path is named: our own if the client has
        it open (roots/list), else its first root. Without roots it is our own, too, but not / or
        the home, where GUI clients start their servers: then it raises UsageError."""
        here = os.path.realpath(current_directory())
        if os.environ.get("CAO_SESSION"):
            return here
        roots = self.list_roots()
        if any(os.path.commonpath((here, root)) == root for root in roots):
            return here
        if roots:
            return roots[0]
        if here in ("/", os.path.realpath(os.path.expanduser("~"))):
            raise UsageError(
                f"cao was started in {here}, which is no place to work in",
                "give the project's whole path as cwd",
            )
        return here

    def list_roots(self) -> list[str]:
        """Ask the client which directories it has open, for ROOTS_S at the most, and return what it
        said last; none where it never did. / is left out. While it has not answered, no further
        call asks or waits; once it has, also late, the next call asks anew."""
        from urllib.parse import unquote

        if not isinstance(value_at(self.capabilities, "roots"), dict):
            return []
        with self.roots_lock:
            before = self.requests.get(self.roots_key)
            if before or not self.roots_key:
                self.requests.pop(self.roots_key, None)
                key = self.roots_key = self.request("roots/list", {})
                self.store.wait_until(lambda: self.requests[key], ROOTS_S)
                self.roots = self.requests[key] or before or self.roots
        uris = [text_at(root, "uri") for root in objects_at(self.roots, "result.roots")]
        paths = [unquote(uri[7:]) for uri in uris if uri.startswith("file:///")]
        return [os.path.realpath(path) for path in paths if path != "/" and os.path.isdir(path)]

    # ---- the client's form (elicitation) ----

    def has_person(self) -> bool:
        """Tell whether a person fills in the client's forms: not in an agent of ours, nor where
        an agent or a script started the client, nor for a client that we do not know.

        CAO_ELICITATION=off: never. =person: wherever the client can, but in no agent of ours.
        """
        setting = os.environ.get("CAO_ELICITATION")
        able = isinstance(value_at(self.capabilities, "elicitation"), dict)
        if not able or setting == "off" or os.environ.get("CAO_SESSION"):
            return False
        own = FORM_CLIENTS.get(self.client_name)
        if setting == "person" or own is None:
            return setting == "person"
        # Claude Code says sdk-cli for `claude -p`, where a program may answer.
        return os.environ.get("CLAUDE_CODE_ENTRYPOINT", "cli") == "cli" and not is_agents(own)

    def await_tasks(
        self,
        boss: Orchestrator,
        tasks: Sequence[str] | None,
        timeout_s: float,
        *,
        told: set[str],
        cancelled: Callable[[], bool],
        **how: Any,
    ) -> Waited:
        """Wait as Orchestrator.await_tasks does. Where a person is there, show each permission
        that is asked for in a form, and go on waiting after its yes or no.

        Such a permission ends the wait only when its form is over without one: it was declined, or
        the question answered elsewhere. That form is not shown again. Any other new question ends
        the wait at once.
        """
        if not self.has_person():
            return boss.await_tasks(tasks, timeout_s, told=told, cancelled=cancelled, **how)
        until = time.monotonic() + timeout_s
        # Not those whose form was withdrawn because the call ended: they get it again.
        heard = {key for key in told if not self.forms.get(key)}
        form: Form | None = None

        def over() -> bool:
            return cancelled() or (form is not None and form.is_over())

        try:
            while True:
                known, left = set(heard), until - time.monotonic()
                waited = boss.await_tasks(tasks, left, told=heard, cancelled=over, **how)
                asked = {ask["question"]["id"]: ask for ask in waited.asking}
                shown = [
                    key
                    for key, ask in asked.items()
                    if ask["question"]["kind"] == "permission" and self.forms.setdefault(key, True)
                ]
                ended = waited.results or waited.messages or left <= 0 or cancelled()
                if form and form.is_over():
                    ended = not self.answer_by_form(form) or ended
                    form = None
                elif shown and not form:
                    ask = asked[shown[0]]
                    text = f"cao: {ask['session']} asks: {ask['question']['text']}"
                    look = f"I will look (cao answer {ask['session']})"
                    form = Form(self, boss, text, [look, "yes", "no"], ask)
                if ended or not shown or not known.issuperset({*asked} - {*shown}):
                    break
        finally:
            if form:
                form.close()

        if not cancelled():
            told.update(asked)
        return waited

    def answer_by_form(self, form: Form) -> bool:
        """Close a form and give its session the person's yes or no. Tell whether the session took
        one; the form of that question is not shown again in any case."""
        chosen, ask = form.close(), form.ask or {}
        self.forms[ask["question"]["id"]] = False
        if chosen in ("yes", "no"):
            try:
                as_person(form.boss).answer(ask["session"], chosen, ask["question"]["id"])
                return True
            except CaoError:
                pass  # it was answered elsewhere just now
        return False

    def allow_by_form(self, call: Call, check: str, cwd: str) -> bool:
        """Ask the person, in a form, to allow a check in a directory's repository. Tell whether
        they did: then it is allowed for good. False at once where no person is there, or the form
        cannot show the check whole."""
        repository = find_repository(cwd)[0]
        where = one_line(repository)
        if repository != cwd:
            where = f"the whole repository {where}"
        text = f"cao: may agents run this check in {where}, unasked? {check}"
        form = Form(self, call.boss, text, ["no", "yes"])
        if "yes" in form.options and self.has_person():
            self.store.wait_until(lambda: call.cancelled() or form.is_over(), call.ceiling_s)
        # What was shown is what is allowed: it may be another's by now.
        if form.close() != "yes" or find_repository(cwd)[0] != repository:
            return False
        as_person(call.boss).allow(cwd, check, False)
        return True

    def cancel(self, key: Any) -> None:
        """End the wait of a call that the client cancels; the worker goes on. key: the call's id;
        one that is unknown or has ended is ignored."""
        with self.ending:
            if cancelled := self.running.get((type(key).__name__, str(key))):
                cancelled.set()
                self.ending.notify_all()
        if cancelled:
            self.store.poke_own()

    def open(self, delegates: bool) -> Orchestrator:
        """Return the verbs, for our client. A folder that it left is adopted. Where there is none,
        one is made only for a tool that delegates, as clients start processes just to probe us;
        until then the caller has no name. In an agent of ours the caller is that agent."""
        with self.opening:
            if self.boss and (self.boss.caller.name or not delegates):
                return self.boss
            caller = agent_caller(self.store)
            if self.near:
                caller, self.lock = open_near(self.store, self.near)
            elif not caller:
                stem = client_stem(self.client_name)
                caller, self.lock = open_client(self.store, stem, delegates)
            self.boss = Orchestrator(self.store, caller)
            return self.boss


_PROMPTS = [  # a slash command in many clients
    {
        "name": "supervisor",
        "title": "Supervise with cao",
        "description": "Lead a piece of work: split it, hand it out, put the answers together.",
        "arguments": [{"name": "goal", "description": "What is to be done.", "required": False}],
    }
]
_RESOURCES = [
    {
        "uri": "cao://sessions",
        "name": "sessions",
        "title": "The sessions at work",
        "mimeType": "application/json",
    }
]
_TEMPLATES = [
    {
        "uriTemplate": "cao://answers/{task}",
        "name": "answer",
        "title": "The whole answer of a task, however long",
        "mimeType": "text/plain",
    }
]
_METHODS: dict[str, Callable[[Any, dict[str, Any]], dict[str, Any]]] = {
    "tools/list": McpServer.list_tools,
    "prompts/list": lambda _, params: _page(params, {"prompts": _PROMPTS}),
    "prompts/get": McpServer.get_prompt,
    "resources/list": lambda _, params: _page(params, {"resources": _RESOURCES}),
    "resources/templates/list": lambda _, params: _page(params, {"resourceTemplates": _TEMPLATES}),
    "resources/read": McpServer.read_resource,
}
_LEGACY_METHODS: dict[str, Callable[[Any, dict[str, Any]], dict[str, Any]]] = {
    **_METHODS,
    "initialize": McpServer.initialize,
    "ping": lambda *_: {},
}
_MODERN_METHODS: dict[str, Callable[[Any, dict[str, Any]], dict[str, Any]]] = {
    **_METHODS,
    "server/discover": McpServer.discover,
}
SERVER_INFO = {"name": "cao", "title": "cao: hand work to other coding agents", "version": VERSION}


def _versions_for(meta: dict[str, Any]) -> list[str]:
    """Return the versions to name to the client of a modern request. A client that could show a
    form (elicitation), or knows the tasks extension, is to do the handshake instead: a form of
    2026-07-28 cannot be withdrawn. Claude Code 2.1.332 and Copilot CLI 1.0.102 then do it in
    the same process."""
    capabilities = meta.get(_META + "clientCapabilities")
    extensions = value_at(capabilities, "extensions")
    knows_tasks = isinstance(extensions, dict) and _META + "tasks" in extensions
    if knows_tasks or value_at(capabilities, "elicitation") is not None:
        return list(LEGACY_VERSIONS)
    return [MODERN_VERSION, *LEGACY_VERSIONS]


def _page(params: dict[str, Any], rows: dict[str, Any]) -> dict[str, Any]:
    """Return a list result. There is one page only, so any cursor raises RpcError."""
    if params.get("cursor") is not None:
        raise RpcError(-32602, "there is no such cursor")
    return rows


def _modern(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result with what 2026-07-28 wants in every one."""
    info = {"name": "cao", "version": VERSION}
    return {"resultType": "complete", **result, "_meta": {_META + "serverInfo": info}}


def open_client(store: Store, stem: str, make: bool) -> tuple[Caller, int | None]:
    """Return (caller, lock) of a client's folder: the first of stem, stem--2 … that no living
    `cao mcp` has, made if need be (no stem has two hyphens: see render_slug). Without make, where
    there is none to adopt: a caller without a name, and no lock.

    Where there are several, nobody knows which was whose before a restart: so none adopts one in
    which results or messages are left. See Orchestrator.is_left.
    """
    several = store.load(f"{stem}--2")
    for number in range(1, 1000):
        name = stem if number == 1 else f"{stem}--{number}"
        if not make and not store.load(name):
            return Caller("", stem=stem), None
        make_client(store, name)
        if several and (store.owed(name) or store.waiting(name)):
            continue
        lock = store.lock_session(name)
        if lock is not None:
            store.write(store.launch_file(name, "served"), "")
            return Caller(name, stem=stem), lock
    raise CaoError(f"a thousand clients are called {stem}", "set CAO_CLIENT")


def open_near(store: Store, near: str) -> tuple[Caller, int]:
    """Return (caller, lock) of the folder here of a near session: one on another machine, whose
    work is done by a session here. near: HOME's id.SESSION there. Raises UsageError where that is
    no such name, or an agent calls us.

    A server that still serves this near session is killed: its connection is dead, or there would
    be no new one, and it may not have noticed.
    """
    if not NEAR.match(near) or not shell_caller(store).person:
        raise UsageError("--near is for the cao of another machine", "cao mcp")
    name = near.replace(".", "-")
    make_client(store, name)
    path = store.launch_file(name, "server.json")
    before = store.read_json(path)
    if before and is_running(before):
        os.kill(before["id"], signal.SIGKILL)
    lock = FileLock(f"{store.folder(name)}/lock").__enter__()
    store.write(path, dump(note_process(os.getpid())))
    return Caller(name, person=True), lock


# ==== 14. CLI =======================================================================


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; what ends it is said here, on stderr. argv:
    without the program's name; None: this process's own."""
    start_directory()
    argv = list(sys.argv[1:] if argv is None else argv)

    closed = open_closed_streams()
    try:
        word, given = "".join(argv[:1]), argv[1:]
        if word == "hook":
            return cmd_hook(given)

        # What is found in a usual place may need what is beside it, as `#!/usr/bin/env node`.
        os.environ["PATH"] = search_path(os.environ.get("PATH", ""))
        # Where both are closed, only the work is wanted.
        if "stdout" in closed and "stderr" not in closed:
            raise CaoError("standard output is closed", "redirect it: >/dev/null")
        if argv == ["mcp"] or (argv[:2] == ["mcp", "--near"] and len(argv) == 3):
            return cmd_mcp("".join(argv[2:]))
        if word == "complete" and given:
            print(*complete(Store(runtime_home()), given), sep="\n", flush=True)
            return EXIT_DONE
        if argv == ["visible"]:
            show_visible()
            return EXIT_DONE
        if word == "run-session" and given:
            return run_session(Store(runtime_home()), given[0])
        if word == "demo-agent" and given and os.isatty(0):
            return DemoAgent(Store(runtime_home()), given[0]).run("".join(given[1:2]))
        code = run_command(argv)
        sys.stdout.flush()  # here, where it can be said that this fails
        return code
    except CaoError as error:
        _say_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            _say_error(machine_fault(error))
        try:
            sys.stdout.flush()
        except OSError:  # Python would try once more as it ends, and exit with 120
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_FAILED


def open_closed_streams() -> list[str]:
    """Open /dev/null for each standard stream that our caller closed, and return their names.

    Else the next file that is opened has its number, and is read or written as that stream.
    """
    closed = [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]
    for name in closed:
        fd = os.open(os.devnull, os.O_RDWR)
        setattr(sys, name, os.fdopen(fd, "r" if name == "stdin" else "w", encoding="utf-8"))
    return closed


def main_mcp() -> int:
    """Be `cao mcp`: the entry point of the command cao-mcp."""
    return main(["mcp", *sys.argv[1:]])


class Shown:
    """A stream to a terminal that runs visible() on all text: nothing that an agent or a CLI
    wrote can hide in it, or move the cursor."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        self.stream.write(visible(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def shown_on(stream: Any, exact: bool = False) -> Any:
    """Return what to print on: a Shown for a terminal, unless the text is to be exact (JSON); else
    the stream itself. The stream is set to escape what it cannot encode."""
    # Such as half of a pair (JSON's \ud83d), or a letter that the locale lacks.
    stream.reconfigure(errors="backslashreplace")
    return Shown(stream) if stream.isatty() and not exact else stream


def cmd_hook(argv: Sequence[str]) -> int:
    """Deal with a hook, whose JSON is on stdin. Its CLI waits for us: never fail it, return 0.

    argv: the session's folder, perhaps "await-tools". A hook that asks something waits for the
    answer and prints it. Where it prints nothing, the CLI's own dialog asks the person in its
    terminal: no tool runs because we failed. A hook at the end of a tool call prints the messages
    that wait. Any other becomes an event for the runner.
    """
    text = sys.stdin.buffer.read().decode(errors="replace")
    folder = argv[0] if argv else ""

    if not os.path.isdir(f"{folder}/events/new"):
        return 0

    name = os.path.basename(folder)
    try:
        store = Store(os.path.dirname(os.path.dirname(folder)))
        payload = claude_shaped(parse_object(text))
        row = None
        if session := store.load(name):
            row = PROVIDERS.get(session.provider)
        if row and waits_at_hook(row, payload):
            if OWN_TOOL.match(str(payload.get("tool_name"))):  # cao's tools need no question
                print(json.dumps(hook_reply(row, payload, "yes", "")))
            else:
                ask_by_hook(store, row, name, payload)
            return 0
        if row and payload.get("hook_event_name") in TOOL_ENDS:
            hand_messages(store, row, name, payload)
            return 0

        store.put_event(folder, json.dumps(payload))
        if argv[1:] == ["await-tools"]:
            await_tools(store, name)
    # Copilot takes the failure of a hook for a "no": whatever a strange payload leads to.
    except (CaoError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        _say(f"cao hook: {error}")
    return 0


def ask_by_hook(store: Store, row: Provider, name: str, payload: dict[str, Any]) -> None:
    """Hand a question to the session's runner, wait for the answer, and print it as the CLI takes
    it. Print nothing where it is left to the CLI's own dialog, or the runner is gone."""
    asking = Asking(store, name, payload)
    # The CLI ends a hook that it no longer needs: our death frees the lock, and so the question
    # is withdrawn.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    try:
        reply = asking.wait()
        if reply.get("answer"):
            output = hook_reply(row, payload, reply["answer"], reply.get("words") or "")
            print(json.dumps(output), flush=True)
    finally:
        asking.close()


def is_gemini_subagents(payload: dict[str, Any]) -> bool:
    """Tell whether a tool call is a sub-agent's of Gemini CLI: 0.61.0 does not say so, but its
    sub-agents write files of their own while the agent's own waits for them."""
    chat = str(payload.get("transcript_path") or "")
    folder = f"{os.path.dirname(chat)}/{payload.get('session_id')}"
    entries = _listdir(folder) if payload.get("hook_event_name") == "AfterTool" else []
    return any(written_at(f"{folder}/{entry}") > written_at(chat) for entry in entries)


def hand_messages(store: Store, row: Provider, name: str, payload: dict[str, Any]) -> None:
    """Print the messages that wait for a CLI at work, for its model to read beside the result
    of its tool call: HANDED_CHARS at the most, the others after the next call. A message that
    alone is longer is put into a file.

    Each is only marked as perhaps told: its runner takes it off the books once it finds it in the
    transcript. Nothing is printed for a sub-agent, or a tool call that a person interrupted.
    """
    if agent_of(payload) or is_gemini_subagents(payload) or payload.get("is_interrupt"):
        return
    texts: list[str] = []
    for message in store.waiting(name):
        if message.kind != "message" or message.sender == "cao" or message.id.endswith("~"):
            continue
        text = message.text
        if sum(map(len, texts), len(text)) > HANDED_CHARS:
            if texts:
                break  # at the next tool call
            text = by_file(store, name, message, text)
        text = head_of_message(message) + text
        if claim := store.take_message(name, message.id):
            claim.mark()
            texts.append(text)
    if texts:
        context = {"additionalContext": "\n\n".join(texts)}
        print(json.dumps(hook_output(row, payload, context)), flush=True)


def await_tools(store: Store, name: str) -> None:
    """Wait, for 15 s at most, until the session's CLI has asked our MCP server for its tools: else
    its first turn could have none of them (see _AWAIT_TOOLS)."""
    listed = store.launch_file(name, "tools-listed")
    store.wait_until(lambda: os.path.exists(listed), 15.0, name)


def cmd_mcp(near: str = "") -> int:
    """Serve MCP on stdin and stdout, and then end the process. Whatever else prints meanwhile
    prints to stderr.

    near: the session on another machine whose work is done here, "" for any other client.
    """
    store = Store(runtime_home())
    fd_out = os.dup(1)
    os.dup2(2, 1)
    fd_in = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    server = McpServer(store, fd_in, fd_out, near)

    def leave(_number: int, _frame: Any) -> None:
        server.close()
        os._exit(0)

    # A signal makes `woken` readable. Else one that comes just before serve() waits for input
    # would be acted on only after the next input.
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes)
    server.signals.append(woken)
    for number in ENDINGS:
        signal.signal(number, leave)
    server.serve()
    os._exit(0)  # not sys.exit: a thread may be in the middle of a call


_FIRST_STEPS = """\
first steps:
  cao demo              see it work, without an account
  cao handoff claude 'Which tests fail?'
                        one task and its answer; a profile will do too
  cao launch            a supervisor of your own, who hands work out
  cao watch             all at work; answer, attach, stop by a key
  cao config CLIENT     the entry for an MCP client (it runs: cao mcp)

cao COMMAND --help has an example. Exit codes: 0 done, 1 failed, 2 usage,
3 not found, 4 tmux, 5 timed out, 6 asking, 130 interrupted."""


# Our command -> what other programs call it.
_OTHER_WORDS = {
    "ls": "list ps status sessions",
    "assign": "start new spawn create delegate",
    "send": "message msg tell",
    "wait": "result results output",
    "stop": "kill cancel end",
    "watch": "top tui dashboard",
    "mcp": "serve server",
    "config CLIENT": "init install setup",
    "discard": "rm",
    "logs -f": "tail",
    "schedule": "cron",
    "--version": "version",
}


def command_line(called: str = "") -> tuple[Any, dict[str, Any]]:
    """Return the argument parser, and its commands' parsers by their names.

    called: the command that is to be run; then only its parser is made, for all take 15 ms. Any
    other word: all of them.
    """
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            """Raise UsageError, with the option or choice that was probably meant."""
            known = [*self._option_string_actions]
            if "choice: " in message:
                known = [str(word) for action in self._actions for word in action.choices or ()]
            # Of several arguments that are not known, the option is the one that was mistyped.
            wrong = re.search(r"(?:arguments: (?:[^-].*? (?=-))?|choice: )'?([^\s'=]+)", message)
            takes_text = TEXTS & {action.dest for action in self._actions}
            meant = nearest(wrong[1], known) if wrong else ""
            fix = f"{self.prog} --help"
            if wrong and wrong[1] in PROVIDERS and self.prog == "cao doctor":
                fix = f"cao doctor --live {wrong[1]}"
            elif meant:
                fix = f"{meant} ({self.prog} --help has all)"
            elif re.search(r"arguments: [^-]", message) and takes_text:
                fix = f"put words that belong together in quotes: 'like this' ({fix})"
            raise UsageError(message, fix)

    form = argparse.RawDescriptionHelpFormatter
    about = "Hand work from one AI coding agent to others, each in tmux."
    top = Parser("cao", None, about, _FIRST_STEPS, formatter_class=form, allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"cao {VERSION}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for row in [row for row in VERBS if row.name == called] or VERBS:
        parser = commands.add_parser(
            row.name,
            description=row.about,
            epilog=f"example:\n  {row.example}",
            help=row.about,
            formatter_class=form,
            allow_abbrev=False,
        )
        parser.set_defaults(verb=row, json=False)
        for argument in (*row.arguments, *([_JSON] if row.json else [])):
            if argument.place != "-":
                argument.add_to(parser)
    return top, commands.choices


def run_command(argv: Sequence[str]) -> int:
    """Run one command of the command line and return its exit code. Puts Shown streams (see
    shown_on) in the place of sys.stdout and sys.stderr. Raises CaoError."""
    sys.stderr = shown_on(sys.stderr)
    try:
        if not argv or argv[0] == "help":
            argv = [*argv[1:], "--help"]

        word = argv[0]
        parser, commands = command_line(word)
        if word not in commands and word[:1] != "-":
            ours = [name for name, other in _OTHER_WORDS.items() if word in other.split()]
            meant = "".join(ours) or nearest(word, commands) or "--help"
            raise UsageError(f"{word!r} is no command", f"cao {meant}")
        first = word[:1] == "-" and word not in ("-h", "--help", "--version")
        if first and argv[1:] and argv[1] in commands:
            raise UsageError(
                f"{word} stands before the command", f"write it behind: cao {argv[1]} … {word}"
            )

        if word in commands:
            # Intermixed: `cao handoff developer --timeout 5m 'the task'` works too.
            args = commands[word].parse_intermixed_args(argv[1:])
        else:
            args = parser.parse_args(argv)
    except SystemExit as leaving:
        return EXIT_USAGE if leaving.code else EXIT_DONE

    sys.stdout = shown_on(sys.stdout, args.json)
    refuse_empty(args.verb.arguments, vars(args))
    store = Store(runtime_home())
    read_session_names(vars(args), store)
    return int(
        args.verb.call(Ask(args, store, Orchestrator(store, shell_caller(store)))) or EXIT_DONE
    )


if __name__ == "__main__":
    sys.exit(main())
