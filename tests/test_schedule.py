"""`cao run` and `cao schedule`: flows, their crontab lines, their runs, a real cron, CI."""

from __future__ import annotations

import errno
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

import pytest

import cao
from conftest import CAO, ROOT, Place, find_admin, kill, until

# ---- flow files ----

REFERENCE = """\
---
name: Monitor_service
schedule: "*/5 * * * *"  # every 5 minutes
agent_profile: code_supervisor
provider: claude_code
engine: v2
script: ./health-check.sh
---

The service at [[url]] is down (status: [[status_code]]).
"""


def test_a_flow_of_the_reference_program_loads_unchanged():
    flow = cao.parse_flow(REFERENCE, "/x/monitor.md")
    assert (flow.name, flow.schedule, flow.agent_profile, flow.provider) == (
        "Monitor_service", "*/5 * * * *", "code_supervisor", "claude",
    )  # fmt: skip
    assert flow.beside(flow.script) == "/x/health-check.sh"
    assert flow.unknown == ("engine",)


FLOW = {"name": "daily", "schedule": "'* * * * *'", "agent_profile": "demo"}


def flow_text(body="demo: say done", **settings) -> str:
    head = "\n".join(f"{key}: {value}" for key, value in {**FLOW, **settings}.items() if value)
    return f"---\n{head}\n---\n{body}\n"


def test_a_flows_mistyped_key_is_named_with_the_nearest(place):
    (place.work / "f.md").write_text(flow_text(timout="5m", engine="v2"))
    done = place.run("schedule", "add", "f.md")
    words = "cao: flow daily: the key 'timout' is not known\n     try: timeout\n"
    assert (done.returncode, done.stderr) == (0, words)


def test_a_flow_for_another_machine_is_added_with_its_profiles_variables(place):
    place.profile("worker", "---\nprovider: demo\nenv: {pass: [MY_VAR]}\n---\n")
    (place.work / "f.md").write_text(flow_text(agent_profile="worker@box"))
    done = place.run("schedule", "add", "f.md", MY_VAR="mine")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((place.home / "flows/daily/env").read_text())["MY_VAR"] == "mine"


@pytest.mark.parametrize(("settings", "words"), [
    ({"name": "a/b"}, "'name' cannot be 'a/b'"), ({"name": "-x"}, "'name' cannot be '-x'"),
    ({"name": '"a\\nb"'}, "'name' cannot be"), ({"name": "ü"}, "'name' cannot be 'ü'"),
    ({"schedule": ""}, "'schedule' cannot be left out"),
    ({"agent_profile": ""}, "'agent_profile' cannot be left out"),
    ({"overlap": "maybe"}, "'maybe'"), ({"provider": "nope"}, "'nope'"),
    ({"provider": "command"}, "'command'"),  # it says nothing of which
    ({"on_failure": "rm"}, "[program, argument]"), ({"timeout": "soon"}, "'soon'"),
    ({"body": "say [[x]]"}, "[[x]]"),
    ({"body": " "}, "there is no task"),
])  # fmt: skip
def test_a_wrong_flow_file_is_refused_naming_what_is_wrong(settings, words):
    with pytest.raises(cao.CaoError) as caught:
        cao.parse_flow(flow_text(**settings), "/x/daily.md")
    assert words in str(caught.value)


@pytest.mark.parametrize(("settings", "reason", "way"), [
    ({"timezone": "Asia/Kathmandu"}, "this machine's time", "OnCalendar="),
    ({"timezone": "../../etc/passwd"}, "this machine's time", "OnCalendar="),
    ({"catch_up": "yes"}, "never runs what it missed", "Persistent=true"),
    ({"catch_up": "often"}, "never runs what it missed", "launchd"),
    ({"overlap": "queue"}, "keeps no run waiting", "systemd"),
])  # fmt: skip
def test_what_cron_cannot_do_is_refused_with_the_reason_and_the_way(settings, reason, way):
    with pytest.raises(cao.CaoError) as caught:
        cao.parse_flow(flow_text(**settings), "/x/daily.md")
    assert "/x/daily.md" in caught.value.what
    assert reason in caught.value.fix
    assert way in caught.value.fix
    assert "KillMode=process" in caught.value.fix  # where it names a systemd timer


def test_what_asks_cron_for_nothing_is_no_reason_to_refuse():
    own = os.path.realpath("/etc/localtime").partition("/zoneinfo/")[2] or "UTC"
    flow = cao.parse_flow(flow_text(timezone=own, catch_up="no", overlap="skip"), "/x/daily.md")
    assert (flow.fault, flow.unknown) == ("", ())
    assert cao.parse_flow(flow_text(), "/x/daily.md").catch_up == ""


@pytest.mark.parametrize("schedule", [
    "0 9 * * 1-5", "*/15 0-23/2 1,15 jan MON-fri", "0\t9 *  * 7", "0~59 * * * *", "@reboot",
    "@daily", "@annually", "99 99 99 99 99",
])  # fmt: skip
def test_crontab_judges_what_has_the_shape_of_a_schedule(schedule):
    assert cao.parse_flow(flow_text(schedule=f'"{schedule}"'), "/x/d.md").schedule == schedule


@pytest.mark.parametrize("schedule", [
    "* * * *", "* * * * * *", "* * * * * rm -rf /", "@fortnightly", "@daily x", "* * * * %",
    "* * * * $HOME", "* * * * `id`", "* * * * ;id", "MAILTO=x * * * *", "* * * * *\\n* * * * *",
    "* * *\\n* *", "* * * * *\\r", "٣ * * * *", "* * * *\\u00a0*", "# * * * *", "",
])  # fmt: skip
def test_nothing_but_five_fields_gets_into_a_crontab(schedule):
    with pytest.raises(cao.CaoError, match="'schedule' cannot be") as caught:
        cao.parse_flow(flow_text(schedule=f'"{schedule}"'), "/x/daily.md")
    assert "crontab(5)" in caught.value.fix


def test_variables_are_filled_and_those_nobody_gives_are_named():
    given = {"a": "text", "n": 3, "deep": {"k": [1]}, "nested": "[[a]]"}
    filled = cao.fill_variables("[[a]] [[n]] [[deep]] [[nested]] [[ -f x ]]", given, "f.md")
    assert filled == 'text 3 {"k": [1]} [[a]] [[ -f x ]]'
    with pytest.raises(cao.CaoError, match=r"\[\[b\]\], \[\[c\]\]"):
        cao.fill_variables("[[c]] [[b]] [[a]]", given, "f.md")


# ---- runs ----

GO = """echo '{"execute": true, "output": {}}'"""
NO = """echo '{"execute": false, "output": {}}'"""


@pytest.fixture
def plan(place, monkeypatch):
    """A Schedule in the place, in this process; `write` puts a flow file and adds it."""
    place.enter(monkeypatch)
    environment = dict(os.environ)
    made = cao.Schedule(place.store)

    def write(script="", **settings):
        if script:
            path = place.work / "gate"
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)
            settings["script"] = "./gate"
        file = place.work / f"{settings.get('name', 'daily')}.md"
        file.write_text(flow_text(**settings))
        flow = cao.parse_flow(file.read_text(), str(file))
        made.add(flow, ())
        return flow.name

    made.write, made.place = write, place
    yield made
    os.environ.clear()  # a run has added to it
    os.environ.update(environment)


def begin(plan, name, *more):
    """Start a run of a flow by the program; return the process, once its record is there."""
    count = len(plan.runs(name))
    process = plan.place.start("schedule", "run", name, *more)
    until(lambda: len(plan.runs(name)), count + 1)
    return process


def test_a_profiles_key_in_a_flow_is_said(place):
    (place.work / "f.md").write_text(flow_text(check="pytest -q"))
    done = place.run("schedule", "add", "f.md")
    words = "the key 'check' is a profile's, and counts for nothing here\n     try: write it into"
    assert (done.returncode, words in done.stderr) == (0, True), done.stderr


@pytest.mark.tmux
def test_a_client_called_like_the_flows_profile_does_not_hide_it(plan):
    cao.make_client(plan.place.store, "demo")
    assert plan.place.ok("schedule", "run", plan.write()) == "done\n"


@pytest.mark.tmux
def test_a_run_is_kept_in_the_history_and_leaves_no_session(plan):
    name = plan.write(script=GO)
    assert plan.place.ok("schedule", "run", name) == "done\n"
    (record,) = plan.runs(name)
    assert (record["outcome"], record["answer"], record["reason"]) == ("done", "done", "")
    assert record["task"].startswith("demo-")
    until(plan.place.live, [])
    listed = plan.place.ok("schedule", "list")
    assert f"done {record['started_at']}" in listed
    assert "done" in plan.place.ok("schedule", "log", name)
    assert record["task"] in plan.place.ok("schedule", "show", name)
    wrong = plan.place.run("schedule", "log", "nobody")
    assert (wrong.returncode, "there is no flow 'nobody'" in wrong.stderr) == (3, True)


@pytest.mark.tmux
def test_a_flow_whose_profile_is_a_session_fails_and_ends_nothing(plan):
    session = plan.place.ok("assign", "demo", "demo: say hello").partition(".")[0]
    record = plan.run(plan.write(agent_profile=session))
    assert record["outcome"] == "failed"
    assert f"{session} is a session, and a flow works in one of its own" in record["detail"]
    assert plan.place.live() == [session]


@pytest.mark.tmux
@pytest.mark.parametrize("end", ["say done", "ask Which?|A|B"])
def test_what_an_agent_says_on_the_way_is_said_and_kept_with_the_run(plan, end):
    name = plan.write(body=f"demo: tell half way; sleep 0.5; tell almost there; {end}")
    said = plan.place.run("schedule", "run", name).stderr
    (record,) = plan.runs(name)
    session = record["task"].partition(".")[0]
    texts = [f"Message from {session}:\n{text}" for text in ("half way", "almost there")]
    assert record["notes"] == texts
    assert all(f"cao: {text}\n" in said for text in texts)
    assert "half way" not in plan.place.run("wait", CAO_CLIENT="schedule").stderr


@pytest.mark.tmux
def test_a_long_answer_is_whole_in_the_log_in_a_pipe(plan):
    answer = "word " * 40 + "end"
    name = plan.write(body=f"demo: say {answer}")
    plan.place.ok("schedule", "run", name)
    assert answer in plan.place.ok("schedule", "log", name)


@pytest.mark.tmux
def test_json_has_facts_with_times_that_others_can_read(plan):
    name = plan.write()
    (before,) = json.loads(plan.place.ok("schedule", "list", "--json"))
    assert (before["last_run"], before["crontab"], before["state"]) == (None, "* * * * *", "on")
    ran = json.loads(plan.place.ok("schedule", "run", name, "--json"))
    (logged,) = json.loads(plan.place.ok("schedule", "log", "--json"))
    shown = json.loads(plan.place.ok("schedule", "show", name, "--json"))
    assert ran == logged == shown["last_run"]
    times = [ran["started_at"], ran["ended_at"], shown["added_at"]]
    assert all(datetime.fromisoformat(at).utcoffset() is not None for at in times)
    assert ran["seconds"] >= 0
    now = datetime.now().astimezone()
    assert all(abs((now - datetime.fromisoformat(at)).total_seconds()) < 600 for at in times)
    started = datetime.fromisoformat(ran["started_at"]).astimezone(timezone.utc)
    assert ran["id"].startswith(f"{started:%Y%m%dT%H%M%S}.")
    assert not {"due_at", "missed"} & {*ran}


def test_of_what_a_script_prints_the_record_has_the_end(plan):
    record = plan.run(plan.write(script="head -c 3000000 /dev/zero; echo the end; exit 3"))
    assert "the end; try: it must exit 0" in record["detail"]
    assert len(record["detail"]) < 100_000


@pytest.mark.parametrize(("script", "words"), [
    ("echo to-out; echo to-err >&2; exit 3", ("exit status 3", "to-out", "to-err")),
    ("echo garbage", ("printed: garbage",)),
    ("""echo '{"execute": "yes", "output": {}}'""", ("execute",)),
    ("""echo '{"execute": true, "output": [1]}'""", ("output",)),
    ("echo '[]'", ("[]",)),
    ("printf '\\377\\000'", ("exit status 0",)),
    ("""printf '{"execute": true, "output": {"x": "\\351"}}'""", ("not UTF-8: byte 36 is 0xe9",)),
    ("echo before; sleep 60", ("took longer than 1 s", "before")),
    ("echo before; setsid sleep 60 & exit 0", ("exit status 0", "before")),
    (GO, ("[[x]]",)),
], ids="fails garbage no-bool no-object list bytes latin hangs leaves too-few".split())  # fmt: skip
def test_a_script_that_goes_wrong_fails_the_run_with_its_output(plan, monkeypatch, script, words):
    monkeypatch.setattr(cao, "SCRIPT_S", 1.0)
    name = plan.write(script=script, body="demo: say [[x]]")
    record = plan.run(name)
    assert record["seconds"] < 50  # the `sleep 60` did not hold it up
    assert (record["outcome"], record["reason"], record["task"]) == ("failed", "error", "")
    assert [word for word in words if word not in record["detail"]] == []
    if "setsid" not in script:  # its own group is ended whole
        until(plan.place.pids, [])
    assert plan.runs(name) == [json.loads(json.dumps(record))]


def test_a_failed_run_says_one_line_and_a_good_one_nothing_but_its_answer(plan):
    name = plan.write(script="echo one; echo two; exit 1")
    failed = plan.place.run("schedule", "run", name)
    assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (1, "", 1)
    assert failed.stderr.startswith(f"cao: flow {name}: failed the script ")
    plan.write(script=NO)
    skipped = plan.place.run("schedule", "run", name)
    assert (skipped.returncode, skipped.stdout, skipped.stderr) == (0, "", "")


def test_a_flow_is_not_removed_while_a_run_of_it_is_under_way(plan):
    name = plan.write(script="sleep 60")
    running = begin(plan, name)
    assert "running" in plan.place.ok("schedule", "log", name)
    refused = plan.place.run("schedule", "remove", name)
    assert (refused.returncode, "is under way" in refused.stderr) == (1, True)
    assert f"flow {name}" in plan.place.crontab.read_text()
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 130
    plan.place.ok("schedule", "remove", name)
    assert (plan.names(), plan.place.crontab.exists()) == ([], False)


def test_a_script_that_cannot_be_started_fails_the_run(plan):
    name = plan.write(script="true")
    (plan.place.work / "gate").chmod(0o644)
    assert "Permission denied" in plan.run(name)["detail"]


def test_a_script_that_says_no_skips_the_run(plan):
    record = plan.run(plan.write(script=NO, on_failure="[false]"))
    assert (record["outcome"], record["reason"], record["notes"]) == ("skipped", "script", ())


@pytest.mark.tmux
def test_a_script_fills_the_variables(plan):
    name = plan.write(
        script="""echo '{"execute": true, "output": {"x": "42"}}'""", body="demo: say [[x]]"
    )
    assert plan.run(name)["answer"] == "42"


def test_a_failure_is_told_to_a_command(plan, capsys):
    note = plan.place.work / "told.json"
    teller = plan.place.work / "tell"
    teller.write_text(f"#!/bin/sh\ncat > {note}; echo no mail >&2; exit 3\n")
    teller.chmod(0o755)
    record = plan.run(plan.write(script="exit 1", on_failure=f"[{teller}]"))
    assert json.loads(note.read_text())["outcome"] == "failed"
    assert record["notes"] == ["on_failure: exit status 3 no mail"]
    assert capsys.readouterr().err == "cao: flow daily: on_failure: exit status 3 no mail\n"
    plan.run(plan.write(script="exit 1", on_failure="[./none]"))
    assert "daily: on_failure: ./none could not be started" in capsys.readouterr().err
    plan.run(plan.write(script="exit 1", on_failure="['true']"))
    assert capsys.readouterr().err == ""


def test_a_command_that_cannot_be_told_of_a_failure_is_noted_in_the_run(plan):
    record = plan.run(plan.write(script="exit 1", on_failure="[./not-there]"))
    assert record["outcome"] == "failed"
    assert "on_failure: ./not-there could not be started" in record["notes"][0]


def test_a_flow_whose_file_is_broken_or_gone_fails_its_run_and_is_listed(plan):
    name = plan.write()
    (plan.place.work / "daily.md").write_text("---\nschedule: [\n---\n")
    record = plan.run(name)
    assert (record["outcome"], "daily.md" in record["detail"]) == ("failed", True)
    (plan.place.work / "daily.md").unlink()
    assert plan.place.ok("schedule", "list").split()[:7] == [name, "broken", *["*"] * 5]
    assert "No such file" in plan.place.ok("schedule", "show", name)


@pytest.mark.parametrize(
    "noted", [b"{}", b"{", b"[]", b"\xff"], ids="empty torn list bytes".split()
)
def test_a_file_that_cannot_be_read_keeps_no_other_flow_from_running(plan, noted):
    plan.write(name="a", script="exit 1")
    name = plan.write(name="b", script="exit 1")
    (plan.place.home / "flows/a/flow.json").write_bytes(noted)
    (plan.place.home / "flows/b/runs/20000101T000000Z-abcd.json").write_bytes(noted)
    (plan.place.home / "flows/b/env").write_bytes(noted)
    assert [line.split()[0] for line in plan.place.ok("schedule", "list").splitlines()] == ["b"]
    assert plan.place.run("schedule", "run", name).returncode == 1
    assert plan.place.run("schedule", "log").stdout.count("failed") == 1


def test_a_disk_that_is_full_fails_a_run(plan, monkeypatch):
    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cao.Orchestrator, "assign", full)
    record = plan.run(plan.write())
    assert (record["outcome"], record["reason"]) == ("failed", "error")
    assert "No space left" in record["detail"]


def test_a_run_that_begins_while_the_last_one_goes_on_is_skipped(plan):
    name = plan.write(script="sleep 60")
    running = begin(plan, name)
    second = plan.place.run("schedule", "run", name)
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert [(r["outcome"], r["reason"]) for r in plan.runs(name)] == [
        ("", ""), ("skipped", "overlap"),
    ]  # fmt: skip
    running.kill()


@pytest.mark.tmux
def test_runs_that_may_overlap_run_side_by_side(plan):
    go = plan.place.work / "go"
    wait = f"while [ ! -e {go} ]; do sleep 0.05; done"
    name = plan.write(script=f"{wait}\n{GO}", overlap="parallel")
    first = begin(plan, name)
    second = begin(plan, name)
    go.touch()
    assert [first.wait(60), second.wait(60)] == [0, 0]
    assert [r["outcome"] for r in plan.runs(name)] == ["done", "done"]


@pytest.mark.tmux
def test_a_question_fails_the_run_at_once_for_nobody_is_there(plan):
    name = plan.write(body="demo: permit rm -rf build|Yes|No")
    done = plan.place.run("schedule", "run", name)
    assert (done.returncode, "rm -rf build" in done.stderr) == (6, True)
    (record,) = plan.runs(name)
    assert (record["outcome"], record["reason"]) == ("failed", "asking")
    assert record["task"].partition(".")[0] in plan.place.ok("clean", "--older", "0s")
    until(plan.place.live, [])


@pytest.mark.tmux
def test_a_run_killed_in_its_task_is_lost_and_the_next_one_ends_what_it_left(plan):
    note = plan.place.work / "told"
    (plan.place.work / "tell").write_text(f"#!/bin/sh\ncat >> {note}\n")
    (plan.place.work / "tell").chmod(0o755)
    name = plan.write(body="demo: sleep 60", on_failure="[./tell]")
    killed = begin(plan, name)
    (session,) = until(plan.place.live)
    plan.place.until_state(session, "working")
    kill(killed.pid)
    killed.wait()
    assert "lost" in plan.place.ok("schedule", "list")
    assert "was killed" in plan.place.ok("schedule", "log", name)
    assert not note.exists()
    plan.write(on_failure="[./tell]")
    assert plan.place.ok("schedule", "run", name) == "done\n"
    until(plan.place.live, [])
    lost, done = plan.runs(name)
    assert (lost["outcome"], lost["reason"], done["outcome"]) == ("lost", "killed", "done")
    (told,) = map(json.loads, note.read_text().splitlines())
    assert told["id"] == lost["id"]


@pytest.mark.tmux
def test_the_answer_of_a_task_that_survived_its_run_is_kept(plan):
    name = plan.write(body="demo: sleep 0.5; tell I am back; say survived")
    killed = begin(plan, name)
    (session,) = until(plan.place.live)
    plan.place.until_state(session, "working")
    kill(killed.pid)
    killed.wait()
    plan.place.until_state(session, "idle")
    plan.write(script=NO, on_failure="['true']")
    plan.run(name)
    lost, skipped = plan.runs(name)
    assert (lost["outcome"], lost["answer"]) == ("lost", "survived")
    assert lost["notes"] == [f"Message from {session}:\nI am back", "on_failure: exit status 0"]
    assert (skipped["outcome"], skipped["answer"]) == ("skipped", "")


@pytest.mark.tmux
@pytest.mark.parametrize(("body", "answer"), [
    ("demo: sleep 0.5; say report", "report"), ("demo: sleep 60", ""),
], ids=["done", "under-way"])  # fmt: skip
def test_what_a_person_gave_the_session_of_a_killed_run_goes_on(plan, monkeypatch, body, answer):
    monkeypatch.setattr(cao, "STOP_S", 0.1)
    place = plan.place
    killed = begin(plan, plan.write(script=GO, body=body))
    (session,) = until(place.live)
    place.until_state(session, "working")
    kill(killed.pid)
    killed.wait()
    first = plan.runs("daily")[0]["task"]
    until(lambda: place.store.has_result(first), bool(answer))
    task = place.ok("assign", session, "demo: sleep 60").strip()
    place.until_state(session, "working")
    plan.write(script=NO)
    plan.run("daily")
    assert [(r["outcome"], r["answer"]) for r in plan.runs("daily")] == [
        ("lost", answer), ("skipped", ""),
    ]  # fmt: skip
    assert (place.state(session)["state"], place.store.has_result(task)) == ("working", False)


def test_a_run_killed_in_its_script_is_lost_and_not_run_again(plan):
    ran = plan.place.work / "ran"
    name = plan.write(script=f"echo x >> {ran}; sleep 30")
    killed = begin(plan, name)
    until(ran.exists)
    kill(killed.pid)
    killed.wait()
    (record,) = json.loads(plan.place.ok("schedule", "log", name, "--json"))
    assert (record["outcome"], record["reason"]) == ("lost", "killed")
    plan.write(script=NO)
    plan.run(name)
    assert [r["outcome"] for r in plan.runs(name)] == ["lost", "skipped"]
    assert ran.read_text() == "x\n"


@pytest.mark.tmux
def test_a_flow_is_run_by_hand_and_prints_its_answer(plan):
    name = plan.write()
    done = plan.place.run("schedule", "run", name)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    plan.write(body="demo: fail the API said 500")
    done = plan.place.run("schedule", "run", name)
    assert (done.returncode, "the API said 500" in done.stderr) == (1, True)


@pytest.mark.tmux
def test_a_flow_may_name_another_provider_than_its_profile(plan):
    plan.place.profile("worker", "---\nprovider: claude\n---\n")
    name = plan.write(agent_profile="worker", provider="demo")
    assert plan.place.ok("schedule", "run", name) == "done\n"


@pytest.mark.tmux
def test_a_run_by_hand_that_is_interrupted_says_so_in_the_history(plan):
    name = plan.write(body="demo: sleep 60")
    running = plan.place.start("schedule", "run", name)
    (session,) = until(plan.place.live)
    plan.place.until_state(session, "working")
    running.send_signal(signal.SIGINT)
    assert running.wait(60) == 130
    assert [(r["outcome"], r["reason"]) for r in plan.runs(name)] == [("interrupted", "by_order")]
    until(plan.place.live, [])


def test_the_history_keeps_its_last_runs(plan, monkeypatch):
    monkeypatch.setattr(cao, "KEEP_RUNS", 3)
    name = plan.write(script="exit 1")
    ran = [plan.run(name)["id"] for _ in range(5)]
    assert {record["id"] for record in plan.runs(name)} <= {*ran}
    assert len(plan.runs(name)) == 3
    assert len(os.listdir(plan.place.home / "flows" / name / "runs")) == 6


# ---- the list ----


def test_a_flow_never_takes_the_place_of_another_files(plan):
    name = plan.write()
    other = plan.place.work / "other"
    other.mkdir()
    (other / "daily.md").write_text(flow_text("demo: say other"))
    refused = plan.place.run("schedule", "add", "other/daily.md")
    said = f"daily is the flow of {plan.place.work}/daily.md"
    assert (refused.returncode, said in refused.stderr) == (1, True), refused
    assert plan.load(name).file == f"{plan.place.work}/daily.md"
    (plan.place.work / "daily.md").unlink()  # it was moved
    plan.place.ok("schedule", "add", "other/daily.md")
    assert plan.load(name).file == f"{other}/daily.md"


def test_a_flow_is_listed_shown_disabled_and_removed(plan):
    name = plan.write(name="Weekly_x", schedule="'0 9 * * 1-5'", colour="red")
    run = plan.place.ok
    assert re.search(r"Weekly_x +on +0 9 \* \* 1-5 +never run since added \d{4}-\d\d-\d\dT", run(
        "schedule", "list"
    ))  # fmt: skip
    assert re.search(r"unknown +colour", run("schedule", "show", name))
    for _ in range(2):
        assert re.search("state +off", run("schedule", "disable", name))
        assert plan.place.crontab.read_text().startswith("# 0 9 * * 1-5 'env' ")
    for _ in range(2):
        assert re.search(r"state +on\n", run("schedule", "enable", name))
        assert plan.place.crontab.read_text().startswith("0 9 * * 1-5 'env' ")
    run("schedule", "remove", name)
    assert run("schedule", "list") == "no flow yet: cao schedule add FILE\n"
    assert plan.place.run("schedule", "show", name).returncode == 3
    assert plan.place.run("schedule", "show").returncode == 2


def test_a_schedule_that_was_changed_in_the_file_is_said_until_it_is_added_again(plan):
    name = plan.write()
    file = plan.place.work / "daily.md"
    file.write_text(file.read_text().replace("* * * * *", "0 9 * * 1"))
    view = json.loads(plan.place.ok("schedule", "show", name, "--json"))
    assert (view["crontab"], view["schedule"]) == ("* * * * *", "0 9 * * 1")
    assert view["state"] == "on, but its file was changed"
    again = json.loads(plan.place.ok("schedule", "add", str(file), "--json"))
    assert (again["crontab"], again["state"]) == ("0 9 * * 1", "on")
    assert plan.place.crontab.read_text().count("\n") == 1


def test_a_flow_for_an_agent_that_is_not_there_is_added_with_a_warning(place):
    (place.work / "f.md").write_text("---\nschedule: '@daily'\nagent_profile: nobody\n---\nx\n")
    added = place.run("schedule", "add", "f.md")
    assert (added.returncode, "'nobody' is no" in added.stderr) == (0, True), added.stderr
    nothing = place.run("schedule", "add")
    assert (nothing.returncode, "add FILE" in nothing.stderr) == (2, True)


def test_where_there_is_no_crontab_program_flows_are_entered_and_said_not_to_run(plan, monkeypatch):
    (plan.place.folder / "bin/crontab").unlink()
    monkeypatch.setattr(cao, "USUAL_PLACES", ())
    bare = {"PATH": f"{plan.place.folder}/bin"}
    file = plan.place.work / "f.md"
    file.write_text(flow_text(name="f", script="./gate"))
    added = plan.place.run("schedule", "add", "f.md", **bare)
    assert (added.returncode, "crontab is not installed" in added.stderr) == (0, True)
    listed = plan.place.run("schedule", "list", **bare)
    assert re.search(r"f +not scheduled +\* \* \* \* \*", listed.stdout)
    assert "crontab is not installed" in listed.stderr
    refused = plan.place.run("schedule", "enable", "f", **bare)
    assert (refused.returncode, "crontab is not installed" in refused.stderr) == (1, True)
    (plan.place.work / "gate").write_text(f"#!/bin/sh\n{NO}\n")
    (plan.place.work / "gate").chmod(0o755)
    assert plan.place.run("schedule", "run", "f", **bare).returncode == 0  # as systemd does
    plan.place.ok("clean", **bare)
    plan.place.ok("schedule", "remove", "f", **bare)


def test_doctor_and_clean_notice_lines_whose_flow_or_program_is_gone(plan, monkeypatch):
    foreign = "5 4 * * * true # cao flow daily\n"
    plan.place.crontab.write_text(foreign)
    plan.write(name="flow-gone")
    with monkeypatch.context() as patch:
        patch.setattr(cao, "__file__", str(plan.place.work / "gone/cao.py"))
        plan.write(name="program-gone")
    plan.write(name="good", schedule="'@daily'")
    shutil.rmtree(plan.place.home / "flows/flow-gone")
    rows = json.loads(plan.place.run("doctor", "--json").stdout)
    found = {row["detail"] for row in rows if row["what"] == "crontab"}
    assert found == {
        "flow flow-gone: there is no such flow; try: cao clean",
        f"flow program-gone: {plan.place.work}/gone/cao.py is gone;"
        " try: cao schedule enable program-gone",
    }
    listed = plan.place.ok("schedule", "list")
    assert re.search(f"program-gone +on, but {plan.place.work}/gone/cao.py is gone", listed)
    cleaned = plan.place.ok("clean")
    assert "crontab line removed: flow flow-gone: there is no such flow" in cleaned
    assert cleaned.count("crontab line removed") == 1  # the other flow's line can be mended
    plan.place.ok("schedule", "enable", "program-gone")
    assert plan.place.crontab.read_text().startswith(foreign)
    assert plan.place.crontab.read_text().count("\n") == 3
    assert "crontab" not in plan.place.ok("clean") + plan.place.run("doctor").stdout
    assert re.search("program-gone +on ", plan.place.ok("schedule", "list"))


# ---- the crontab ----

FOREIGN = (
    b'MAILTO="" \r\nSHELL = /bin/sh\n# mine \xff\xfe, not UTF-8\n\n'
    b"5 4 1 1 *\ttrue # 100\\% \\r \x0b\r\n"
    b"6 4 1 1 * true \b\r\n0 0 1 1 * cao schedule run daily # not ours\n"
    b"   \n# cao flow daily\n0 0 1 1 * cat%one%two\n"
)


def table_of(program, *whose) -> bytes:
    """Return a real crontab; Debian's `crontab -l` would show two letters for a CR."""
    shown = subprocess.run([program, *whose, "-e"], check=False, capture_output=True,
                           env={**os.environ, "EDITOR": "cat", "VISUAL": "cat"})  # fmt: skip
    listed = subprocess.run([program, *whose, "-l"], check=False, capture_output=True)
    return b"" if listed.returncode else shown.stdout


@pytest.fixture
def crontab(plan):
    """Give what the real crontab program has; for a user who has no crontab."""
    (plan.place.folder / "bin/crontab").unlink()
    program = shutil.which("crontab")
    if not program:
        words = "there is no crontab program (apt-get install cron)"
        pytest.fail(words) if os.environ.get("CAO_TEST_REQUIRE_CRON") else pytest.skip(words)

    def table() -> bytes:
        return table_of(program)

    if table():
        pytest.skip("this user has a crontab, which no test is to touch")
    table.replace = lambda text: subprocess.run([program, "-"], check=True, input=text)
    yield table
    subprocess.run([program, "-r"], check=False, capture_output=True)


def test_the_crontab_gets_one_line_and_foreign_lines_stay_byte_for_byte(plan, crontab):
    plan.write(schedule="'0 9 * * 1'")
    line = crontab()
    foreign = FOREIGN + b"# " + line[:-1] + b" is how it was\n"
    crontab.replace(foreign)
    file = str(plan.place.work / "daily.md")
    for _ in range(2):
        plan.place.ok("schedule", "add", file)
        assert crontab() == foreign + line
    plan.place.ok("schedule", "disable", "daily")
    assert crontab() == foreign + b"# " + line
    plan.place.ok("schedule", "enable", "daily")
    assert crontab() == foreign + line
    plan.place.ok("schedule", "remove", "daily")
    assert crontab() == foreign


def test_a_last_line_without_an_end_gets_one_and_ours_comes_after_it(plan):
    plan.place.crontab.write_bytes(b"5 4 * * * true\r\n6 4 * * * true")
    name = plan.write()
    before, ours = plan.place.crontab.read_bytes().rsplit(b"\n* * * * * ", 1)
    assert (before, ours[-1:]) == (b"5 4 * * * true\r\n6 4 * * * true", b"\n")
    plan.place.crontab.write_bytes(b"* * * * * " + ours + before)
    plan.disable(name)
    assert plan.place.crontab.read_bytes() == b"# * * * * * " + ours + before + b"\n"
    plan.remove(name)
    assert plan.place.crontab.read_bytes() == before + b"\n"


def test_a_user_without_a_crontab_has_none_again_after_removal(plan, crontab):
    name = plan.write()
    assert crontab().count(b"\n") == 1
    plan.place.ok("schedule", "remove", name)
    assert crontab() == b""
    assert subprocess.run(["crontab", "-l"], check=False, capture_output=True).returncode == 1


@pytest.mark.parametrize(("settings", "words"), [
    ({"schedule": "'99 * * * *'"}, "bad minute"), ({"name": "deep"}, "too long"),
])  # fmt: skip
def test_what_crontab_refuses_leaves_all_as_it_was_and_is_said_in_its_words(
    plan, crontab, settings, words
):
    crontab.replace(FOREIGN)
    (plan.place.work / "f.md").write_text(flow_text(**settings))
    deep = {"CAO_HOME": str(plan.place.folder) + f"/{'h' * 200}" * 5} if "name" in settings else {}
    done = plan.place.run("schedule", "add", "f.md", **deep)
    assert (done.returncode, words in done.stderr) == (1, True), done.stderr
    assert "write it like '0 9 * * 1-5' (minute hour day month weekday)" in done.stderr
    assert crontab() == FOREIGN
    assert plan.place.ok("schedule", "list", **deep).startswith("no flow yet")


NONE_YET = [  # what `crontab -l` says, and its exit status
    ("no crontab for root", 1),  # Vixie's cron 3.0pl1, cronie 1.7.2
    ("crontab: no crontab for joe", 1),  # ISC cron
    ("crontab: can't open 'joe': No such file or directory", 1),  # BusyBox 1.35.0
    ("2026-11-28 09:00:00  INFO listing joe's fcrontab\n"
     "2026-11-28 09:00:00  INFO user joe has no fcrontab.", 0),  # fcron 3.4.0
]  # fmt: skip


@pytest.mark.parametrize(("words", "status"), NONE_YET, ids="vixie isc busybox fcron".split())
def test_each_crons_words_for_no_crontab_yet_are_known(plan, words, status):
    table = plan.place.crontab
    plan.place.program(
        "crontab",
        f"""
        [ "$1" != -l ] || [ -e {table} ] || {{ echo "{words}" >&2; exit {status}; }}
        case $1 in -l) cat {table};; -r) rm {table};; *) cat > {table};; esac""",
    )
    name = plan.write()
    assert table.read_text().count("\n") == 1
    assert plan.place.run("schedule", "list").stderr == ""
    plan.place.ok("schedule", "remove", name)
    assert not table.exists()


@pytest.mark.parametrize(("words", "printed"), [
    ("must be privileged", ""), ("cannot open your crontab", ""),
    ("", ""),
    ("crontab: can't open 'joe': Permission denied", ""),
    ("no crontab for joe - using an empty one\nread error", ""),
    ("no crontab for joe", "5 4 * * * half of it"),
])  # fmt: skip
def test_a_crontab_that_cannot_be_read_is_not_written(plan, words, printed):
    name = plan.write()
    written = plan.place.work / "written"
    plan.place.program(
        "crontab",
        f"""[ "$1" = -l ] || touch {written}
        printf '%s' "{printed}"; echo "{words}" >&2; exit 1""",
    )
    (plan.place.work / "f.md").write_text(flow_text(name="f"))
    for args in (["add", "f.md"], ["disable", name], ["enable", name], ["remove", name]):
        done = plan.place.run("schedule", *args)
        assert (done.returncode, words.split("\n")[0] in done.stderr) == (1, True)
    plan.place.ok("clean")
    plan.place.run("doctor")
    assert re.search(f"{name} +not scheduled", plan.place.ok("schedule", "list"))
    assert plan.names() == [name]
    assert not written.exists()


@pytest.mark.tmux
@pytest.mark.parametrize(
    "words",
    [
        "You (joe) are not allowed to use this program (crontab)\nSee crontab(1) for more ...",
        "You (joe) are not allowed to access to (crontab) because of pam configuration.",
    ],
    ids=["cron.deny", "pam"],
)
def test_who_may_not_use_cron_has_flows_for_another_timer(plan, words):
    plan.place.program("crontab", f"""echo "{words}" >&2; exit 1""")
    (plan.place.work / "f.md").write_text(flow_text(name="f"))
    added = plan.place.run("schedule", "add", "f.md")
    assert (added.returncode, words in added.stderr) == (0, True)
    assert re.search("state +not scheduled", added.stdout)
    assert plan.place.ok("schedule", "run", "f") == "done\n"
    for action in "enable", "disable":
        assert plan.place.run("schedule", action, "f").returncode == 1
    plan.place.ok("schedule", "remove", "f")
    assert plan.names() == []


@pytest.mark.parametrize(("homes", "users"), [(1, 1), (2, 1), (2, 2)])
def test_two_that_add_at_once_both_get_their_line(plan, homes, users):
    """A slow crontab: without a lock, the second would write what it read before."""
    table = plan.place.crontab
    table.write_text("5 4 * * * true\n")
    plan.place.program(
        "crontab",
        f"""
        case $1 in -l) cat {table}; sleep 0.3;; *) cat > {table};; esac""",
    )
    adding = []
    for n in range(4):
        (plan.place.work / f"f{n}.md").write_text(flow_text(name=f"f{n}"))
        home = str(plan.place.folder / f"home{n % homes}")
        user = plan.place.folder / f"user{n % users}"  # HOME may be another: the crontab is not
        user.mkdir(exist_ok=True)
        env = {"CAO_HOME": home, "HOME": str(user)}
        adding.append(plan.place.start("schedule", "add", f"f{n}.md", **env))
    assert [one.wait(60) for one in adding] == [0] * 4
    lines = table.read_text().splitlines()
    assert lines[0] == "5 4 * * * true"
    assert sorted(line.split()[-1] for line in lines[1:]) == ["f0", "f1", "f2", "f3"]


def as_cron(plan, line, **env):
    """Run a crontab line's command as any cron does; return the finished process.

    An unescaped % is a newline to Vixie's cron and cronie, but not to BusyBox and fcron.
    """
    command = line.split(" ", 5)[5]
    assert "%" not in command
    bare = {"HOME": str(plan.place.user), "PATH": "/usr/bin:/bin", "SHELL": "/bin/sh"}
    return subprocess.run(["/bin/sh", "-c", command], check=False, env={**bare, **env},
                          timeout=60, capture_output=True, text=True)  # fmt: skip


@pytest.mark.tmux
def test_the_crontab_line_runs_the_flow_in_the_environment_of_cron(plan):
    plan.place.profile("worker", "---\nprovider: demo\nenv:\n  pass: [MY_VAR]\n---\n")
    gate = f"env > {plan.place.work}/seen\n{GO}"
    name = plan.write(script=gate, agent_profile="worker")
    odd = plan.place.work / "50% 'odd'"
    odd.mkdir()
    path = f"{odd}:{plan.place.env['PATH']}"
    given = {"PATH": path, "ANTHROPIC_API_KEY": "a%b\n$c", "MY_VAR": "é", "UNRELATED": "x"}
    added = plan.place.run("schedule", "add", "daily.md", **given)
    assert "a%b" not in added.stdout + added.stderr + plan.place.crontab.read_text()
    assert (plan.place.home / "flows/daily/env").stat().st_mode & 0o777 == 0o600
    (line,) = plan.place.crontab.read_text().splitlines()
    done = as_cron(plan, line, LANG="C", OPENAI_API_KEY="cron's")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [record["answer"] for record in plan.runs(name)] == ["done"]
    seen = (plan.place.work / "seen").read_text()
    wanted = [f"PATH={path}", "ANTHROPIC_API_KEY=a%b\n$c", "MY_VAR=é", "LANG=C"]
    assert [words for words in wanted if f"{words}\n" not in seen] == []
    assert "UNRELATED" not in seen
    assert f"TMUX_TMPDIR={plan.place.env['TMUX_TMPDIR']}\n" in seen


@pytest.mark.parametrize("odd", [
    "50% off", "a'b\"c", "$(touch pwned) `touch pwned` $HOME", "; touch pwned; #", "# flow", "ü é",
    "back\\slash \\% \\", "-dash", "a\rb\tc", "~ * ?", "' '/x", os.fsdecode(b"\xff\xfe"),
])  # fmt: skip
def test_every_path_in_the_line_is_data(plan, odd):
    home = plan.place.folder / (odd if odd.isprintable() or "\r" in odd else "bytes") / "cao"
    (plan.place.work / odd).mkdir(parents=True)
    file = plan.place.work / odd / "f.md"
    file.write_text(flow_text(name="f", script="./gate"))
    gate = file.with_name("gate")
    gate.write_text(f"#!/bin/sh\n{NO}\n")
    gate.chmod(0o755)
    env = {"CAO_HOME": str(home)}
    added = plan.place.run("schedule", "add", str(file), **env)
    assert added.returncode == 0, added.stderr
    (line, rest) = os.fsdecode(plan.place.crontab.read_bytes()).split("\n")
    assert rest == ""
    done = as_cron(plan, line)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (record,) = cao.Schedule(cao.Store(str(home))).runs("f")
    assert (record["outcome"], record["reason"]) == ("skipped", "script")
    assert not [*plan.place.folder.rglob("pwned"), *Path().glob("pwned")]
    assert "crontab" not in plan.place.ok("clean", **env)
    plan.place.ok("schedule", "remove", "f", **env)
    assert not plan.place.crontab.exists()


def test_a_path_with_a_line_break_is_refused(plan):
    (plan.place.work / "f.md").write_text(flow_text())
    done = plan.place.run("schedule", "add", "f.md", CAO_HOME=f"{plan.place.folder}/a\n* * b")
    assert (done.returncode, "line break" in done.stderr) == (1, True)
    assert not plan.place.crontab.exists()


@pytest.mark.parametrize("cache", [
    ".cache/uv/archive-v0/x1/lib/python3.11/site-packages", ".local/share/pipx/.cache/2f/lib",
    "Library/Caches/pipx/2f/lib",
])  # fmt: skip
def test_a_cao_in_a_package_cache_is_not_put_into_a_crontab(plan, monkeypatch, cache):
    path = f"/home/joe/{cache}/cao.py"
    monkeypatch.setattr(cao, "__file__", path)
    (plan.place.work / "f.md").write_text(flow_text())
    with pytest.raises(cao.CaoError, match="cache") as caught:
        plan.write()
    assert path in caught.value.what
    assert (plan.names(), plan.place.crontab.exists()) == ([], False)


# ---- a real cron ----


SYSTEM_PYTHON = shutil.which("python3", path="/usr/local/bin:/usr/bin")


@pytest.fixture
def cron_daemon(crontab):
    """start(): a cron that runs, the one that is there or one of ours, until the test has ended.

    It is started when the tables are written: cron compares times in whole seconds, so a table
    that changes in the second in which it was read is not read again.
    """
    program = find_admin("cron")
    if not program or os.getuid() != 0 or not SYSTEM_PYTHON:
        words = "this needs root, Debian's cron, and a Python outside root's home"
        pytest.fail(words) if os.environ.get("CAO_TEST_REQUIRE_CRON") else pytest.skip(words)
    quiet = {f"std{name}": subprocess.DEVNULL for name in ("in", "out", "err")}
    started = []
    yield lambda: started.append(subprocess.Popen([program, "-f"], **quiet))
    for daemon in started:
        daemon.terminate()
        daemon.wait()


@pytest.fixture
def user():
    """An ordinary user of this system, for one test."""
    name = f"cao-{os.getpid()}"
    subprocess.run(
        [find_admin("useradd"), "-m", "-s", "/bin/sh", name], check=True, capture_output=True
    )
    yield pwd.getpwnam(name)
    subprocess.run(["crontab", "-u", name, "-r"], check=False, capture_output=True)
    subprocess.run([find_admin("userdel"), "-r", name], check=False, capture_output=True)


@pytest.mark.tmux
def test_a_real_cron_runs_a_flow_of_root_and_one_of_an_ordinary_user(
    plan, crontab, cron_daemon, user
):
    """Both wait for the same minute."""
    theirs = Place(Path(tempfile.mkdtemp(prefix="cao-", dir="/tmp")))
    owner = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    argv = [SYSTEM_PYTHON, str(theirs.work / "cao.py")]
    both = ((plan.place, CAO, {}, []), (theirs, argv, owner, ["-u", user.pw_name]))

    def schedule(where, argv, who, *args):
        done = subprocess.run([*argv, "schedule", *args, "--json"], check=True, cwd=where.work,
                              env=where.env, capture_output=True, **who)  # fmt: skip
        return json.loads(done.stdout)

    try:
        (theirs.folder / "bin/crontab").unlink()
        shutil.copy(ROOT / "cao.py", theirs.work)
        for where, _, _, whose in both:
            (where.work / "each.md").write_text(flow_text(name="each", body="demo: say by cron"))
            subprocess.run(["crontab", *whose, "-"], check=True, input=FOREIGN)
        subprocess.run(["chown", "-R", f"{user.pw_name}:", theirs.folder], check=True)
        for where, argv, who, _ in both:
            schedule(where, argv, who, "add", "each.md")
        cron_daemon()
        for where, argv, who, whose in both:
            record = until(
                lambda ours=(where, argv, who): (schedule(*ours, "log", "each") or [{}])[0],
                lambda found: found.get("ended_at"),
                150,
            )
            assert (record["outcome"], record["answer"]) == ("done", "by cron"), record
            table = table_of("crontab", *whose)
            assert table.startswith(FOREIGN)
            assert table[len(FOREIGN) :].count(b"\n") == 1
            schedule(where, argv, who, "remove", "each")
            assert table_of("crontab", *whose) == FOREIGN
    finally:
        subprocess.run(["crontab", "-u", user.pw_name, "-r"], check=False, capture_output=True)
        subprocess.run(["crontab", "-r"], check=False, capture_output=True)
        theirs.close()


# ---- cao run ----

pytest_tmux = pytest.mark.tmux


@pytest_tmux
def test_run_prints_the_answer_alone_and_leaves_no_session(place):
    done = place.run("run", "demo", "demo: sleep 0.5; say the answer")
    assert (done.returncode, done.stdout) == (0, "the answer\n")
    assert "working" in done.stderr
    until(place.live, [])


@pytest_tmux
def test_run_takes_its_task_from_a_file_or_from_stdin(place):
    (place.work / "task.md").write_text("demo: say from a file\n")
    assert place.ok("run", "demo", "--file", "task.md") == "from a file\n"
    assert place.ok("run", "demo", stdin="demo: say from stdin") == "from stdin\n"
    both = place.run("run", "demo", "x", "--file", "task.md")
    assert (both.returncode, "twice" in both.stderr) == (2, True)
    gone = place.run("run", "demo", "--file", "nope.md")
    assert (gone.returncode, "nope.md" in gone.stderr) == (2, True)


@pytest_tmux
@pytest.mark.parametrize(("args", "code"), [
    (["demo: fail the API said 500"], 1), (["demo: sleep 30", "--timeout", "1s"], 5),
    (["demo: say x", "--check", "false"], 1), (["demo: say x", "--check", "true"], 0),
    (["demo: exit 3"], 1), (["demo: permit rm|Yes|No"], 6), (["  "], 2),
], ids="failed timeout check-fails check-passes exited asking usage".split())  # fmt: skip
def test_the_exit_code_of_run_is_the_outcomes(place, args, code):
    done = place.run("run", "demo", *args)
    assert done.returncode == code, (done.stdout, done.stderr)
    until(place.live, [])
    assert done.stdout == ("x\n" if code == 0 else "")


@pytest_tmux
def test_a_question_ends_the_run_at_once_naming_the_flag(place):
    done = place.run("run", "demo", "demo: permit rm -rf build|Yes|No")
    assert (done.returncode, done.stdout) == (6, "")
    assert "rm -rf build" in done.stderr
    assert "--permissions" in done.stderr
    assert place.ok("wait", "--all") == ""  # its end was said
    found = json.loads(place.run("run", "demo", "demo: permit rm|Yes|No", "--json").stdout)
    assert found["asking"][0]["question"]["kind"] == "permission"
    assert ([r["outcome"] for r in found["results"]], found["running"]) == (["stopped"], [])


@pytest_tmux
def test_what_a_worker_says_on_the_way_is_shown_and_the_run_goes_on(place):
    done = place.run("run", "demo", "demo: tell half way; sleep 1; say the end")
    assert (done.returncode, done.stdout) == (0, "the end\n")
    assert re.search(r"Message from demo-\w+:\nhalf way", done.stderr)


@pytest_tmux
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_what_a_worker_says_as_a_question_ends_the_run_is_shown(place, flags):
    script = f"""if True:
        import sys, time
        sys.path.insert(0, {str(ROOT)!r})
        import cao
        end = cao.Orchestrator.end
        def tells(self, name):
            me = self.caller.name
            key = self.store.new_id(me, "m")
            self.store.put(cao.Message(key, "message", name, me, "at the end", time.time()))
            end(self, name)
        cao.Orchestrator.end = tells
        sys.exit(cao.main(["run", "demo", "demo: ask Which?|A|B", *{flags}]))"""
    done = subprocess.run([sys.executable, "-c", script], check=False, env=place.env,
                          cwd=place.work, capture_output=True, text=True, timeout=60)  # fmt: skip
    assert done.returncode == 6
    assert "at the end" in (done.stdout if flags else done.stderr)
    assert "at the end" not in place.run("wait").stderr


@pytest_tmux
def test_run_as_json_has_the_whole_result(place):
    (result,) = json.loads(place.ok("run", "demo", "demo: say x", "--json"))["results"]
    assert (result["outcome"], result["answer"]) == ("done", "x")


@pytest_tmux
def test_a_session_that_is_kept_on_failure_can_be_asked(place):
    done = place.run("run", "demo", "demo: fail the API said 500", "--keep-on-failure")
    (session,) = place.live()
    assert (done.returncode, f"cao attach {session}" in done.stderr) == (1, True)
    assert place.ok("run", session, "demo: say still here") == "still here\n"
    assert place.live() == [session]  # not made for that run


@pytest_tmux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("keep", [False, True])
def test_run_is_stopped_cleanly_and_says_what_is_kept(place, number, keep):
    running = place.start("run", "demo", "demo: sleep 60", *(["--keep-on-failure"] if keep else []))
    (session,) = until(place.live)
    place.until_state(session, "working")
    running.send_signal(number)
    _, err = running.communicate(timeout=30)
    assert running.returncode == 130
    assert b"kept: " in err
    until(place.live, [session] if keep else [])
    (task,) = until(lambda: place.store.results(session))
    assert place.result(task)["outcome"] == ("interrupted" if keep else "stopped")
    # A session that was ended with its run has nothing to tell.
    assert (f"Result of {task}" in place.run("wait").stderr) == keep


@pytest_tmux
def test_run_is_stopped_also_where_python_drops_the_first_interrupt(place):
    """Python ignores what is raised in a destructor, a signal's KeyboardInterrupt too."""
    script = f"""if True:
        import os, signal, sys
        sys.path.insert(0, {str(ROOT)!r})
        import cao
        class Struck:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGTERM)
        render = cao.Orchestrator.render_progress
        def strikes(self, name):
            if self.state_of(name)["state"] == "working" and struck:
                struck.clear()
            return render(self, name)
        struck = [Struck()]
        cao.Orchestrator.render_progress = strikes
        sys.exit(cao.main(["run", "demo", "demo: sleep 60"]))"""
    done = subprocess.run([sys.executable, "-c", script], check=False, env=place.env,
                          cwd=place.work, capture_output=True, text=True, timeout=60)  # fmt: skip
    assert "Exception ignored" in done.stderr
    assert done.returncode == 130


@pytest_tmux
def test_run_works_with_no_home_no_terminal_and_what_is_closed(place):
    env = {key: place.env[key] for key in ("PATH", "CAO_HOME", "TMUX_TMPDIR")}
    words = cao.quote_argv(["python3", str(ROOT / "cao.py"), "run", "demo", "demo: say bare"])
    done = subprocess.run(["sh", "-c", f"exec {words} <&-"], check=False, env=env, cwd=place.work,
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "bare\n"), done.stderr
    words = words.replace("say bare", "say unheard")
    done = subprocess.run(["sh", "-c", f"exec {words} <&- >&- 2>&-"], check=False, env=env,
                          cwd=place.work, timeout=60)  # fmt: skip
    assert done.returncode == 0


@pytest_tmux
def test_run_in_a_worktree_says_where_the_work_is(place):
    for args in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *args], check=True,
                       cwd=place.work, env=place.env)  # fmt: skip
    done = place.run("run", "demo", "demo: say x", "--worktree")
    assert (done.returncode, done.stdout) == (0, "x\n")
    assert "branch cao/demo-" in done.stderr


# ---- the README's example for CI ----


@pytest_tmux
def test_the_lines_of_the_ci_example_run(place):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (workflow,) = re.findall(r"^```yml\n(.*?)^```$", text, re.M | re.S)
    lines = re.findall(r"^ +- run: (.*)$", workflow, re.M)
    assert any("cao.py run" in line for line in lines)
    shutil.copy(ROOT / "cao.py", place.work)
    for file, words in ((".github/task.md", "demo: say the tests pass\n"),
                        (".cao/profiles/ci.md", "---\nprovider: demo\n---\n")):  # fmt: skip
        (place.work / file).parent.mkdir(parents=True)
        (place.work / file).write_text(words)
    for name in ("sudo", "apt-get", "npm"):  # what they install is here already, or not needed
        stub = place.folder / "bin" / name
        stub.write_text("#!/bin/sh\nexit 0\n")
        stub.chmod(0o755)
    summary = place.folder / "summary"
    for line in lines:
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", line], check=False, cwd=place.work, timeout=60,
            env={**place.env, "GITHUB_STEP_SUMMARY": str(summary)}, text=True,
            stdin=subprocess.DEVNULL, capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, (line, done.stdout, done.stderr)
    assert summary.read_text() == "the tests pass\n"


def test_the_readmes_keys_of_a_flow_are_the_programs():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text[text.index("## Schedule") :]
    rows = re.findall(r"^\| (`.*?`) \|", section[: section.index("\n## ")], re.M)
    named = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    assert named == {*cao.Flow._fields} - {
        "file", "prompt", "unknown", "fault", "timezone", "catch_up"
    }  # fmt: skip
