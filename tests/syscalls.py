#!/usr/bin/env python3
"""Let one system call of a runner fail, at each of its places in a session's life.

    python3 tests/syscalls.py [--calls write,rename] [--errors ENOSPC,EIO] [--first N]
                              [--every N] [--children] [--seconds S]

For each call, error and n: strace makes the runner's n-th such call fail while a demo agent
does a task, asks for a permission in a second, and is stopped. Whatever fails, each task gets
its one result, and nothing but that stop ends a worker that has started. With --children the
n-th call of each of its child processes fails as well (the agent, tmux's clients): then they
may end, but each task still has one result, and the runner goes on. Needs strace; prints what
is wrong; exit status 1 where anything was, 2 when S seconds were not enough.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import cao  # noqa: E402 - found beside this folder, wherever we are started
from torture import Ground, command, until  # noqa: E402

CALLS = {
    "open": "open,openat",
    "write": "write,pwrite64",
    "fsync": "fsync,fdatasync",
    "rename": "rename,renameat,renameat2",
    "link": "link,linkat",
    "unlink": "unlink,unlinkat",
    "poll": "poll,ppoll",
}
ERRORS = ("ENOSPC", "EIO", "EMFILE", "EINTR")

# Stands as lib/<sha>/cao.py: a runner puts the planned strace under itself, and keeps its pid.
LOADER = """\
import os, sys
if sys.argv[1:2] == ["run-session"] and "TRACED" not in os.environ:
    os.environ["TRACED"] = "1"
    with open({home!r} + "/strace.plan") as file:
        strace = file.read().split()
    code = "import sys; sys.path.append(%r); import cao; sys.exit(cao.main())"
    code %= os.path.dirname(os.path.abspath(__file__))
    os.execvp(strace[0], [*strace, sys.executable, "-I", "-S", "-c", code, *sys.argv[1:]])
from importlib.machinery import SourceFileLoader
exec(SourceFileLoader("cao", {source!r}).get_code("cao"), globals())
"""


def put_loader(ground: Ground) -> None:
    """Put the fault under the code that runners run from."""
    code = cao.install_copy(ground.store)[-1]
    folder = Path(re.search(r"'(/[^']+)'", code)[1])
    (folder / "cao.py").write_text(LOADER.format(home=str(ground.home), source=cao.__file__))


def live_through(ground: Ground, boss: cao.Orchestrator) -> list[cao.Result]:
    """Let a session live: a task, then one that asks. Return their results."""
    options = cao.TaskOptions(timeout_s=60)
    task = boss.assign("demo", "demo: say one", options)
    session = ground.store.session_of(task)
    results = [*boss.await_tasks([task], 60).results]
    if not results or results[0].outcome != "done":
        return results
    again = boss.assign(session, "demo: permit it?|Yes|No; say two", options)
    found = boss.await_tasks([again], 60)
    for _ in range(2 if found.asking else 0):
        try:
            boss.answer(session, "yes")
            break
        except cao.CaoError as error:  # who answers hears of the fault, and tries again
            ground.tally[f"an answer failed: {error.what.split(':')[-1]}"] += 1
    found = boss.await_tasks([again], 60) if found.asking else found
    return [*results, *found.results]


def judge(ground: Ground, session: str, results: list[cao.Result], children: bool) -> list[str]:
    """Return what is wrong with a session that was stopped in the end."""
    state = ground.store.load_state(session)
    log = ground.store.read_text(f"{ground.store.folder(session)}/log.jsonl")
    wrong = []
    if '"started"' in log and '"ended"' not in log:
        wrong.append(f"its runner died: {state.get('why')}")
    if not results:
        wrong.append("no result")
    elif '"started"' in log and not children:
        if [result.answer for result in results] != ["one", "Yes\ntwo"]:
            wrong.append(f"{[(r.outcome, r.reason, r.answer, r.detail) for r in results]}")
        if state.get("why") != "the session was stopped":
            wrong.append(f"it ended: {state.get('why')}")
    return wrong


def strike(ground: Ground, call: str, error: str, n: int, children: bool) -> bool:
    """Let the n-th call fail; note what is wrong, and tell whether there was such a call."""
    trace = ground.home / "strace.log"
    trace.unlink(missing_ok=True)
    fault = f"-e trace={CALLS[call]} -e inject={CALLS[call]}:error={error}:when={n}"
    plan = f"strace -D {'-f ' * children}-qq -o {trace} {fault}"
    (ground.home / "strace.plan").write_text(plan)
    boss = cao.Orchestrator(ground.store, cao.shell_caller(ground.store))
    before = {*ground.store.all_sessions(), boss.caller.name}
    results, wrong = [], []
    try:
        results = live_through(ground, boss)
    except cao.CaoError as failed:
        wrong.append(failed.what)
    (session,) = set(ground.store.all_sessions()) - before
    boss.end(session)
    if not until(lambda: not [p for p in ground.pids() if session in command(p)], 30.0):
        wrong.append("a process is left")
    found = re.search(r"(.*)\(INJECTED\)", trace.read_text(errors="replace"))
    wrong += judge(ground, session, results, children)
    for result in results:
        ground.tally[f"{call}: {result.outcome} {result.reason}"] += 1
    where = found[1].replace(str(ground.home), "").strip() if found else ""
    for words in wrong:
        ground.fail(f"{call} {error} at {n} ({where}): {session}: {words}")
    if wrong:
        print(ground.store.read_text(f"{ground.store.folder(session)}/runner.log")[-1500:])
    return bool(found)


def main() -> int:
    """Sweep, print the tally, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--calls", default="open,write,fsync,rename,link,unlink")
    parser.add_argument("--errors", default=",".join(ERRORS))
    parser.add_argument("--first", type=int, default=1, metavar="N")
    parser.add_argument("--every", type=int, default=1, metavar="N")
    parser.add_argument("--children", action="store_true", help="let theirs fail, too")
    parser.add_argument("--seconds", type=float, default=7200)
    options = parser.parse_args()
    end, status = time.monotonic() + options.seconds, 0
    ground = Ground(1)
    try:
        put_loader(ground)
        for call in options.calls.split(","):
            for error in options.errors.split(","):
                n = options.first
                while time.monotonic() < end and strike(ground, call, error, n, options.children):
                    n += options.every
                print(f"{call} {error}: up to {n}", flush=True)
        if time.monotonic() > end:
            print(f"  TIME: {options.seconds:.0f} s were not enough")
            status = 2
        ground.clear()
    finally:
        ground.close(False)
    for name, number in sorted(ground.tally.items()):
        print(f"  {number:7}  {name}")
    print(f"{len(ground.wrong)} wrong")
    return 1 if ground.wrong else status


if __name__ == "__main__":
    sys.exit(main())
