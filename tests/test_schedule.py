"""`cao run` and `cao schedule`: cron by the book, DST, flows, ticks, the crontab, CI."""

from __future__ import annotations

import calendar
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zoneinfo
from datetime import datetime, timedelta, timezone
from itertools import takewhile
from pathlib import Path

import pytest

import cao
from conftest import ROOT, until

# ---- cron, against a definition that tries every minute ----

NAMES = [
    "",
    "",
    "",
    "- jan feb mar apr may jun jul aug sep oct nov dec",
    "sun mon tue wed thu fri sat",
]
RANGES = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 6)]


def says(field: int, text: str, value: int) -> bool:
    """Tell whether one field's text allows a value, tried part by part."""

    def number(word):
        words = NAMES[field].split()
        return words.index(word) if word in words else int(word)

    least, most = RANGES[field]
    for part in text.lower().split(","):
        base, _, step = part.partition("/")
        first, last = least, most
        if base != "*":
            ends = [number(word) for word in base.split("-")]
            first, last = ends[0], ends[-1] if len(ends) > 1 or not step else most
        allowed = range(first, last + (8 if last < first else 1), int(step or 1))
        if value in allowed or (field == 4 and value + 7 in allowed):
            return True
    return False


def is_due(expression: str, shown: datetime) -> bool:
    """Tell whether a schedule fits what a clock shows (POSIX crontab)."""
    minute, hour, day, month, weekday = expression.split()
    if not (says(0, minute, shown.minute) and says(1, hour, shown.hour)):
        return False
    if not says(3, month, shown.month):
        return False
    days = says(2, day, shown.day), says(4, weekday, shown.isoweekday() % 7)
    return all(days) if day[0] == "*" or weekday[0] == "*" else any(days)


YEAR = [
    "0 0 * * *", "30 4 1,15 * 5", "0 9 * * 1-5", "0 9 * * mon-fri", "*/15 * * * *", "5/20 8 * * *",
    "0 */2 * * *", "0 0 1 * *", "0 0 31 * *", "0 0 29 2 *", "0 0 13 * 5", "0 0 */10 * 1",
    "0 0 1 * */2", "15 14 1 * *", "0 22 * * 1-5", "23 0-23/2 * * *", "5 4 * * sun", "5 4 * * 7",
    "5 4 * * 0", "5 4 * * 0,7", "5 4 * * 5-7", "5 4 * * fri-sun", "5 4 * * 6-7", "59 23 31 12 *",
    "0 0 1 1 *", "0 12 1 jan,jul *", "0 12 1 JAN-mar *", "1-10/3 6 * * *", "0,30 9-17 * * 1-5",
    "* * 1 1 *", "*/7 3 * * *", "0 0-5,20-23 * * *", "08 09 * * *", "0 6 1-7 * 1",
    "0 6 8-14 * */7",
    "10 10 10 10 *", "0 0 * 2-4/2 *", "45 23 * * 6", "0 1 2/9 * *", "*/59 */23 * * *",
    "0 3 30 * 3/2",
]  # fmt: skip


@pytest.mark.parametrize("expression", YEAR)
def test_a_year_of_due_times_is_as_defined(expression):
    start, end = calendar.timegm((2028, 1, 1, 0, 0, 0)), calendar.timegm((2029, 1, 1, 0, 0, 0))
    first = datetime(2028, 1, 1)  # noqa: DTZ001 - a reading, not a moment; 2028 has 29 February
    minutes = [first + timedelta(minutes=n) for n in range(1440)]
    part = expression.split()
    daily = [m for m in minutes if says(0, part[0], m.minute) and says(1, part[1], m.hour)]
    wanted = []
    for day in range(366):
        shown = first + timedelta(days=day)
        if is_due(f"* * {part[2]} {part[3]} {part[4]}", shown):
            wanted += [start + 86400 * day + 3600 * m.hour + 60 * m.minute for m in daily]
    due = cao.due_times(cao.parse_cron(expression), timezone.utc, start - 1)
    assert list(takewhile(lambda at: at < end, due)) == wanted


def test_there_are_forty_expressions():
    assert len({*YEAR}) >= 40


CHANGES = [  # a zone and the days on which its clocks change
    ("Europe/Berlin", (2026, 3, 29)),
    ("Europe/Berlin", (2026, 10, 25)),
    ("America/New_York", (2026, 3, 8)),
    ("America/New_York", (2026, 11, 1)),
    ("Australia/Lord_Howe", (2026, 4, 5)),  # by half an hour
    ("Australia/Lord_Howe", (2026, 10, 4)),
    ("Africa/Cairo", (2026, 4, 24)),  # at midnight
]
SPREAD = ["30 2 * * *", "*/10 2 * * *", "15 1 * * *", "0 */2 * * *", "0 0 * * *", "5 0-6 * * *",
          "*/20 * * * *", "45 * * * *", "15 0-23/3 * * 0", "50 1,2,3 * * *"]  # fmt: skip


@pytest.mark.parametrize("expression", SPREAD)
@pytest.mark.parametrize(("place_name", "day"), CHANGES)
def test_when_clocks_change_nothing_is_doubled_or_skipped(place_name, day, expression):
    zone = zoneinfo.ZoneInfo(place_name)
    start = calendar.timegm((*day, 0, 0, 0)) - 2 * 86400
    hourly = all(says(1, expression.split()[1], hour) for hour in range(24))
    seen, before, wanted = set(), None, []
    for at in range(start - 86400, start + 4 * 86400, 60):  # every minute that really passes
        shown = datetime.fromtimestamp(at, zone).replace(tzinfo=None)
        never = []  # what no clock shows, for they go forward over it
        while before and before + timedelta(minutes=1 + len(never)) < shown:
            never.append(before + timedelta(minutes=1 + len(never)))
        new = [one for one in (*never, shown) if one not in seen]
        candidates = [shown] if hourly else new
        if any(is_due(expression, one) for one in candidates) and at >= start:
            wanted.append(at)
        seen.update(new)
        before = shown
    due = cao.due_times(cao.parse_cron(expression), zone, start - 1)
    assert list(takewhile(lambda at: at < start + 4 * 86400, due)) == wanted


def test_a_daily_run_is_once_a_day_also_when_clocks_change():
    zone = zoneinfo.ZoneInfo("Europe/Berlin")
    noon = calendar.timegm((2026, 3, 27, 12, 0, 0))
    due = cao.due_times(cao.parse_cron("30 2 * * *"), zone, noon)
    shown = [cao.render_moment(at, zone) for at, _ in zip(due, range(3))]
    assert shown == [
        "Sat 2026-03-28 02:30 CET", "Sun 2026-03-29 03:00 CEST", "Mon 2026-03-30 02:30 CEST",
    ]  # fmt: skip


def test_without_a_zone_the_machines_own_counts(monkeypatch):
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        new_year = calendar.timegm((2026, 1, 1, 0, 0, 0))
        due = cao.due_times(cao.parse_cron("30 2 8 3 *"), None, new_year)
        assert next(due) == calendar.timegm((2026, 3, 8, 7, 0, 0))  # 03:00 EDT
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(("nickname", "fields"), [
    ("@hourly", "0 * * * *"), ("@daily", "0 0 * * *"), ("@midnight", "0 0 * * *"),
    ("@weekly", "0 0 * * 0"), ("@monthly", "0 0 1 * *"), ("@yearly", "0 0 1 1 *"),
    ("@Annually", "0 0 1 1 *"),
])  # fmt: skip
def test_a_nickname_is_its_five_fields(nickname, fields):
    assert cao.parse_cron(nickname) == cao.parse_cron(fields)


@pytest.mark.parametrize(("text", "words"), [
    ("* * * *", "4 fields"), ("@reboot", "1 fields"), ("60 * * * *", "'60' is no minute"),
    ("* 24 * * *", "no hour"), ("* * 0 * *", "no day of month"), ("* * * 13 *", "no month"),
    ("* * * * 8", "no day of week"), ("5-1 * * * *", "'5-1'"), ("*/0 * * * *", "'*/0'"),
    ("1, * * * *", "'' is no"), ("-1 * * * *", "'-1'"), ("1-2-3 * * * *", "'1-2-3'"),
    ("*-5 * * * *", "'*-5'"), ("* * * * mo", "'mo'"), ("0 0 30 2 *", "never due"),
    ("0 0 31 4,6,9,11 *", "never due"), ("٣ * * * *", "no minute"),
])  # fmt: skip
def test_a_wrong_schedule_is_refused_naming_the_part(text, words):
    with pytest.raises(cao.UsageError, match=re.escape(words)):
        cao.parse_cron(text)


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


@pytest.mark.parametrize(("settings", "words"), [
    ({"name": "a/b"}, "'name' cannot be 'a/b'"),
    ({"schedule": ""}, "'schedule' cannot be left out"),
    ({"agent_profile": ""}, "'agent_profile' cannot be left out"),
    ({"overlap": "maybe"}, "'maybe'"), ({"provider": "nope"}, "'nope'"),
    ({"provider": "command"}, "'command'"),  # it says nothing of which
    ({"catch_up": "often"}, "'often'"),
    ({"on_failure": "rm"}, "[program, argument]"), ({"timezone": "Mars/Base"}, "Mars/Base"),
    ({"timezone": "../../etc/passwd"}, "not known"), ({"timeout": "soon"}, "'soon'"),
    ({"schedule": "'61 * * * *'"}, "'61' is no minute"), ({"body": "say [[x]]"}, "[[x]]"),
])  # fmt: skip
def test_a_wrong_flow_file_is_refused_naming_what_is_wrong(settings, words):
    with pytest.raises(cao.CaoError) as caught:
        cao.parse_flow(flow_text(**settings), "/x/daily.md")
    assert words in str(caught.value)


def test_variables_are_filled_and_those_nobody_gives_are_named():
    given = {"a": "text", "n": 3, "deep": {"k": [1]}, "nested": "[[a]]"}
    filled = cao.fill_variables("[[a]] [[n]] [[deep]] [[nested]] [[ -f x ]]", given, "f.md")
    assert filled == 'text 3 {"k": [1]} [[a]] [[ -f x ]]'
    with pytest.raises(cao.CaoError, match=r"\[\[b\]\], \[\[c\]\]"):
        cao.fill_variables("[[c]] [[b]] [[a]]", given, "f.md")


# ---- runs ----


@pytest.fixture
def plan(place, monkeypatch):
    """A Schedule in the place, in this process; `write` puts a flow file and adds it."""
    for key, value in place.env.items():
        monkeypatch.setenv(key, value)
    made = cao.Schedule(place.store)

    def write(script="", since=-90.0, **settings):
        if script:
            path = place.work / "gate"
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)
            settings["script"] = "./gate"
        file = place.work / f"{settings.get('name', 'daily')}.md"
        file.write_text(flow_text(**settings))
        name = made.add(str(file))
        made.note(name, since=time.time() + since)  # so long ago: something is due
        return name

    made.write, made.place = write, place
    return made


def tick(plan, now=None):
    """Do a tick in this process, wait for what it began, return all records."""
    told = []
    begun = plan.take(plan.names(), time.time() if now is None else now, told.append)
    for thread in cao.carry_all(plan, begun):
        thread.join(60)
    assert told == []
    return [record for name in plan.names() for record in plan.runs(name)]


@pytest.mark.tmux
def test_what_is_due_runs_once_and_its_history_is_kept(plan):
    name = plan.write(body="demo: say done", script="""echo '{"execute": true, "output": {}}'""")
    (record,) = tick(plan)
    assert (record["outcome"], record["answer"]) == ("done", "done")
    assert record["due_at"] % 60 == 0
    until(plan.place.live, [])  # its session has ended
    assert tick(plan, record["due_at"] + 30) == [record]
    assert plan.view(name)["last"] == f"done {record['id']}"
    assert "done" in plan.place.ok("schedule", "log", name)
    assert record["task"] in plan.place.ok("schedule", "log", name, record["id"])
    wrong = plan.place.run("schedule", "log", name, "20000101T000000Z")
    assert (wrong.returncode, "has no run '20000101T000000Z'" in wrong.stderr) == (3, True)


@pytest.mark.parametrize(("script", "words"), [
    ("echo to-out; echo to-err >&2; exit 3", ("exit status 3", "to-out", "to-err")),
    ("echo garbage", ("printed: garbage",)),
    ("""echo '{"execute": "yes", "output": {}}'""", ("execute",)),
    ("""echo '{"execute": true, "output": [1]}'""", ("output",)),
    ("echo '[]'", ("[]",)),
    ("printf '\\377\\000'", ("exit status 0",)),
    ("echo before; sleep 60", ("took longer than 1 s", "before")),
    ("echo before; setsid sleep 60 & exit 0", ("took longer than 1 s", "before")),
    ("""echo '{"execute": true, "output": {}}'""", ("[[x]]",)),
], ids="fails garbage no-bool no-object a-list bytes hangs leaves too-few".split())  # fmt: skip
def test_a_script_that_goes_wrong_fails_the_run_with_its_output_and_is_not_retried(
    plan, monkeypatch, script, words
):
    monkeypatch.setattr(cao, "SCRIPT_S", 1.0)
    plan.write(script=script, body="demo: say [[x]]")
    started = time.monotonic()
    (record,) = tick(plan)
    assert time.monotonic() - started < 50  # the `sleep 60` did not hold it up
    assert (record["outcome"], record["reason"], record["task"]) == ("failed", "error", "")
    assert [word for word in words if word not in record["detail"]] == []
    if "setsid" not in script:  # its own group is ended whole
        until(plan.place.pids, [])
    assert tick(plan, record["due_at"] + 59) == [record]


def test_a_run_is_due_from_its_very_second_on(plan):
    at = time.time() // 60 * 60
    plan.write(script="exit 1", since=at - 30 - time.time())
    assert tick(plan, at - 1) == []
    assert [record["due_at"] for record in tick(plan, at)] == [at]


def test_a_flow_is_not_removed_while_a_run_of_it_is_under_way(plan):
    name = plan.write(script="exit 1")
    (begun,) = plan.take([name], time.time(), print)
    with pytest.raises(cao.CaoError, match="is under way"):
        plan.remove(name)
    plan.carry_out(begun)
    plan.remove(name)
    assert plan.names() == []


def test_a_script_that_cannot_be_started_fails_the_run(plan):
    plan.write(script="true")
    (plan.place.work / "gate").chmod(0o644)
    (record,) = tick(plan)
    assert "Permission denied" in record["detail"]


def test_a_script_that_says_no_skips_the_run(plan):
    plan.write(script="""echo '{"execute": false, "output": {}}'""", on_failure="[false]")
    (record,) = tick(plan)
    assert (record["outcome"], record["reason"], record["notes"]) == ("skipped", "script", [])


@pytest.mark.tmux
def test_a_script_fills_the_variables(plan):
    plan.write(script="""echo '{"execute": true, "output": {"x": "42"}}'""", body="demo: say [[x]]")
    assert [record["answer"] for record in tick(plan)] == ["42"]


def test_a_failure_is_told_to_a_command(plan):
    note = plan.place.work / "told.json"
    teller = plan.place.work / "tell"
    teller.write_text(f"#!/bin/sh\ncat > {note}; echo no mail >&2; exit 3\n")
    teller.chmod(0o755)
    plan.write(script="exit 1", on_failure=f"[{teller}]")
    (record,) = tick(plan)
    assert json.loads(note.read_text())["outcome"] == "failed"
    assert record["notes"] == ["on_failure: exit status 3 no mail"]


def test_a_flow_whose_file_is_broken_or_gone_fails_at_its_due_time_only(plan):
    name = plan.write()
    (plan.place.work / "daily.md").write_text("---\nschedule: [\n---\n")
    (record,) = tick(plan)
    assert (record["outcome"], "daily.md" in record["detail"]) == ("failed", True)
    assert tick(plan, record["due_at"] + 59) == [record]
    (plan.place.work / "daily.md").unlink()
    assert plan.view(name)["state"] == "broken"
    assert "No such file" in plan.place.ok("schedule", "show", name)


BROKEN = {"file": "x", "schedule": "x", "timezone": "", "enabled": True, "since": 0}


@pytest.mark.parametrize("noted", [json.dumps(BROKEN), "{"], ids=["wrong", "torn"])
def test_one_flows_fault_keeps_no_other_from_running(plan, noted):
    plan.write(name="a", script="exit 1")
    plan.write(name="b", script="exit 1")
    (plan.place.home / "flows/a/flow.json").write_text(noted)
    told = []
    (begun,) = plan.take(plan.names(), time.time(), told.append)
    assert begun[0].name == "b"
    assert "flow a:" in told[0]
    os.close(begun[2])


def test_a_disk_that_is_full_fails_a_run_and_holds_up_no_later_one(plan, monkeypatch):
    plan.write()

    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cao.Orchestrator, "assign", full)
    (record,) = tick(plan)
    assert (record["outcome"], record["reason"]) == ("failed", "error")
    assert "No space left" in record["detail"]


def test_a_flow_that_cannot_be_taken_is_an_error_of_run(plan):
    name = plan.write()
    plan.note(name, timezone="Nowhere/Land")
    (plan.place.work / f"{name}.md").unlink()
    done = plan.place.run("schedule", "run", name)
    assert (done.returncode, "Nowhere/Land" in done.stderr) == (1, True)
    assert "Traceback" not in done.stderr


def test_a_disabled_flow_is_not_due_and_makes_up_for_nothing_when_enabled(plan):
    name = plan.write(catch_up="yes", colour="red")
    shown = plan.place.ok("schedule", "disable", name)
    assert ("due" in shown, re.findall(r"unknown +(.*)", shown)) == (False, ["colour"])
    assert plan.place.ok("schedule", "list").split()[:3] == [name, "off", "-"]
    assert tick(plan, time.time() + 3600) == []
    plan.place.ok("schedule", "enable", name)
    assert tick(plan) == []


def test_what_was_missed_is_recorded_and_not_run(plan):
    now = (time.time() // 60) * 60
    minute = time.gmtime(now - 3000).tm_min  # 50 minutes ago, and no more until now
    plan.write(since=-3300.0, schedule=f"'{minute} * * * *'", timezone="UTC")
    (record,) = tick(plan, now)
    assert (record["outcome"], record["answer"]) == ("missed", "")
    assert "50 min too late" in record["detail"]
    assert tick(plan, now) == [record]


@pytest.mark.tmux
def test_what_was_missed_is_caught_up_with_once(plan):
    plan.write(since=-3 * 3600.0, schedule="'0,15,30,45 * * * *'", catch_up="yes")
    (record,) = tick(plan)
    assert (record["outcome"], record["missed"]) == ("done", 11)
    assert tick(plan, record["started_at"]) == [record]


def test_a_clock_that_was_wrong_blocks_nothing(plan):
    plan.write(script="exit 1")
    future = time.time() + 40 * 86400
    assert [record["due_at"] > time.time() for record in tick(plan, future)] == [True]
    assert len(tick(plan)) == 2
    assert len(tick(plan)) == 2


@pytest.mark.tmux
@pytest.mark.parametrize(("overlap", "outcomes"), [
    ("skip", ["", "skipped"]), ("queue", [""]), ("parallel", ["", ""]),
])  # fmt: skip
def test_a_run_due_while_the_last_one_goes_on_follows_overlap(plan, overlap, outcomes):
    name = plan.write(body="demo: say slow", overlap=overlap)
    now = time.time()
    first = plan.take([name], now, pytest.fail)
    second = plan.take([name], now + 60, pytest.fail)
    assert [record["outcome"] for record in plan.runs(name)] == outcomes
    threads = cao.carry_all(plan, [*first, *second])
    for thread in threads:
        thread.join(60)
    if overlap == "queue":  # it stayed due
        last = tick(plan, now + 60)
        assert [record["outcome"] for record in last] == ["done", "done"]
    else:
        ended = [record["outcome"] for record in plan.runs(name)]
        assert ended == [outcome or "done" for outcome in outcomes]


@pytest.mark.tmux
def test_a_question_fails_the_run_at_once_for_nobody_is_there(plan):
    plan.write(body="demo: permit rm -rf build|Yes|No")
    (record,) = tick(plan)
    assert (record["outcome"], record["reason"]) == ("failed", "asking")
    assert "rm -rf build" in record["detail"]
    until(plan.place.live, [])


@pytest.mark.tmux
def test_many_ticks_at_once_run_each_due_time_once(plan):
    plan.write(name="a", body="demo: sleep 1; say a")
    plan.write(name="b", body="demo: sleep 1; say b", overlap="parallel")
    now = time.time()
    while now % 60 > 50:  # the minute must not change under the ticks
        now = until(time.time, lambda at: at % 60 < 50, 15)
    ticks = [plan.place.start("schedule", "tick") for _ in range(5)]
    assert [one.wait(60) for one in ticks] == [0] * 5

    def ended():
        return [[r["answer"] for r in plan.runs(name)] for name in ("a", "b")]

    until(ended, [["a"], ["b"]])


def test_a_tick_waits_for_one_that_is_deciding(plan):
    name = plan.write(script="exit 1")
    deciding = plan.store.lock(f"{plan.folder}/lock")
    waiting = plan.place.start("schedule", "tick", "--wait")

    def blocked():
        with open("/proc/locks", encoding="ascii") as file:
            return [line for line in file if "->" in line and f" {waiting.pid} " in line]

    until(blocked)
    assert plan.runs(name) == []
    os.close(deciding)
    assert waiting.wait(30) == 0
    assert len(plan.runs(name)) == 1


@pytest.mark.tmux
def test_a_due_time_that_waited_for_the_last_run_is_not_missed(plan):
    now = (time.time() // 60) * 60
    minute = time.gmtime(now - 3000).tm_min  # due 50 minutes ago
    name = plan.write(schedule=f"'{minute} * * * *'", timezone="UTC", overlap="queue", since=-7000)
    times = {"due_at": now - 6600, "started_at": now - 6600, "seconds": 6590.0}
    last = {"flow": name, "id": "20000101T000000Z", "outcome": "done", **times}
    (plan.place.home / f"flows/{name}/runs/{last['id']}.json").write_text(json.dumps(last))
    assert [record["outcome"] for record in tick(plan, now)] == ["done", "done"]


@pytest.mark.tmux
def test_a_tick_returns_at_once_and_what_it_began_goes_on(plan):
    name = plan.write(body="demo: sleep 4; say after")
    plan.place.ok("schedule", "tick")
    assert [r["outcome"] for r in plan.runs(name)] == [""]
    until(lambda: [r["answer"] for r in plan.runs(name)], ["after"])
    until(lambda: "done (" in (plan.place.home / "flows/tick.log").read_text())


@pytest.mark.tmux
def test_the_log_of_ticks_does_not_grow_for_ever(plan):
    old, log = "x" * cao.TICK_LOG_BYTES + "\n", plan.place.home / "flows/tick.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(old)
    plan.write(body="demo: say after")
    plan.place.ok("schedule", "tick")
    until(lambda: log.exists() and "done (" in log.read_text())
    assert log.with_suffix(".log.1").read_text() == old
    assert len(log.read_text()) < 1000


@pytest.mark.tmux
def test_a_run_whose_process_is_killed_is_taken_up_by_the_next_tick(plan):
    name = plan.write(body="demo: sleep 3; say survived")
    killed = plan.place.start("schedule", "tick", "--wait")
    (session,) = until(plan.place.live)
    plan.place.until_state(session, "working")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (before,) = plan.runs(name)
    assert before["outcome"] == ""
    (after,) = tick(plan, before["due_at"] + 59)
    assert (after["outcome"], after["answer"]) == ("done", "survived")
    assert after["task"] == before["task"]


def test_a_run_killed_in_its_script_is_reported_lost_and_not_run_again(plan):
    ran = plan.place.work / "ran"
    name = plan.write(script=f"echo x >> {ran}; sleep 30")
    killed = plan.place.start("schedule", "tick", "--wait")
    until(ran.exists)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (record,) = tick(plan, plan.runs(name)[0]["due_at"] + 59)
    assert (record["outcome"], record["reason"]) == ("lost", "killed")
    assert ran.read_text() == "x\n"


@pytest.mark.tmux
def test_a_flow_is_run_by_hand_and_prints_its_answer(plan):
    name = plan.write(since=0.0)
    done = plan.place.run("schedule", "run", name)
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert plan.runs(name)[0]["due_at"] == 0
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
    name = plan.write(body="demo: sleep 60", since=0.0)
    running = plan.place.start("schedule", "run", name)
    (session,) = until(plan.place.live)
    plan.place.until_state(session, "working")
    running.send_signal(signal.SIGINT)
    assert running.wait(60) == 130
    assert [(r["outcome"], r["reason"]) for r in plan.runs(name)] == [("interrupted", "by_order")]


def test_a_command_that_cannot_be_told_of_a_failure_is_noted_in_the_run(plan):
    name = plan.write(script="exit 1", on_failure="[./not-there]")
    (record,) = tick(plan)
    assert (record["outcome"], plan.runs(name)) == ("failed", [record])
    assert "on_failure: ./not-there could not be started" in record["notes"][0]


def test_a_tick_says_which_flow_it_could_not_take(plan):
    plan.write(name="torn")
    (plan.place.home / "flows" / "torn" / "flow.json").write_text("[]")
    plan.write(name="whole", script="exit 1")
    ticked = plan.place.run("schedule", "tick", "--wait")
    assert ticked.returncode == 0
    assert "cao: flow torn: there is no flow 'torn'" in ticked.stderr
    assert "cao: flow whole: failed" in ticked.stderr


def test_a_changed_schedule_is_noted_and_counts_while_the_file_is_broken(plan):
    name = plan.write(since=0.0)
    file = Path(plan.entry(name)["file"])
    file.write_text(file.read_text().replace(plan.entry(name)["schedule"], "0 9 * * 1"))
    assert plan.load(name).schedule == "0 9 * * 1"
    file.write_text("---\nno head")
    broken = plan.load(name)
    assert (broken.schedule, "never closed" in broken.fault) == ("0 9 * * 1", True)


@pytest.mark.tmux
def test_serve_runs_what_is_due_where_there_is_no_cron(plan):
    name = plan.write()
    serving = plan.place.start("schedule", "serve")
    until(lambda: [r["answer"] for r in plan.runs(name)], ["done"])
    serving.send_signal(signal.SIGTERM)
    assert serving.wait(60) == 130


def test_a_flow_is_listed_shown_and_removed(plan):
    name = plan.write(name="Weekly_x", schedule="'0 9 * * 1-5'", timezone="Europe/Berlin")
    listed = plan.place.ok("schedule", "list")
    assert re.search(r"Weekly_x +on +\w{3} \d{4}-\d\d-\d\d 09:00 CES?T", listed)
    view = json.loads(plan.place.ok("schedule", "show", name, "--json"))
    assert len(view["next"]) == 5
    assert not [at for at in view["next"] if at[:3] in ("Sat", "Sun")]  # 1-5 is Monday to Friday
    assert "nothing looks for what is due" in plan.place.run("schedule", "list").stderr
    plan.place.ok("schedule", "tick")
    assert plan.place.run("schedule", "list").stderr == ""
    plan.place.ok("schedule", "remove", name)
    assert plan.place.run("schedule", "show", name).returncode == 3
    assert plan.place.run("schedule", "show").returncode == 2


def test_the_history_keeps_its_last_runs(plan, monkeypatch):
    monkeypatch.setattr(cao, "KEEP_RUNS", 3)
    name = plan.write(script="exit 1")
    now = time.time()
    for n in range(5):
        tick(plan, now + 60 * n)
    assert len(plan.runs(name)) == 3
    assert plan.runs(name)[-1]["due_at"] > now + 180


# ---- the crontab ----

FOREIGN = (
    b'# mine \xff\xfe, not UTF-8\nMAILTO=""\n\n5 4 * * *\ttrue # 100\\% \\r \x0b\n'
    b"0 0 1 1 * cao schedule tick # not ours\n   \n# cao schedule\n"
)


@pytest.fixture
def crontab(plan):
    """Give what the real crontab program says; for a user who has no crontab."""
    program = shutil.which("crontab")
    if not program:
        words = "there is no crontab program (apt-get install cron)"
        pytest.fail(words) if os.environ.get("CAO_TEST_REQUIRE_CRON") else pytest.skip(words)

    def table() -> bytes:
        return subprocess.run([program, "-l"], check=False, capture_output=True).stdout

    if table():
        pytest.skip("this user has a crontab, which no test is to touch")
    table.replace = lambda text: subprocess.run([program, "-"], check=True, input=text)
    yield table
    subprocess.run([program, "-r"], check=False, capture_output=True)


def test_the_crontab_gets_one_line_and_foreign_lines_stay_byte_for_byte(plan, crontab):
    shown = plan.place.ok("schedule", "install", "--show").splitlines()[-1].encode()
    foreign = FOREIGN + b"#" + shown + b" is how it was\n"
    crontab.replace(foreign)
    for _ in range(2):
        plan.place.ok("schedule", "install")
        assert crontab() == foreign + shown + b"\n"
    for _ in range(2):
        plan.place.ok("schedule", "install", "--remove")
        assert crontab() == foreign


def test_a_user_without_a_crontab_has_none_again_after_removal(plan, crontab):
    plan.place.ok("schedule", "install")
    assert crontab().count(b"\n") == 1
    plan.place.ok("schedule", "install", "--remove")
    assert crontab() == b""
    assert subprocess.run(["crontab", "-l"], check=False, capture_output=True).returncode == 1


@pytest.mark.tmux
def test_the_crontab_line_runs_what_is_due_in_the_environment_of_cron(plan, crontab):
    name = plan.write()
    odd = plan.place.work / "50% 'odd'"
    odd.mkdir()
    plan.place.ok("schedule", "install", PATH=f"{odd}:{plan.place.env['PATH']}")
    (line,) = crontab().decode().splitlines()
    assert line.startswith("* * * * * ")
    # What cron does: an unescaped % is a newline, \% is %, and sh gets the rest.
    command = line[len("* * * * * ") :]
    assert not re.search(r"(?<!\\)%", command)
    bare = {"HOME": str(plan.place.user), "PATH": "/usr/bin:/bin", "SHELL": "/bin/sh"}
    command = command.replace("\\%", "%")
    subprocess.run(["/bin/sh", "-c", command], check=True, env=bare, timeout=60)
    until(lambda: [r["answer"] for r in plan.runs(name)], ["done"])


def test_a_line_that_cron_would_not_take_leaves_the_crontab_as_it_was(plan, crontab):
    crontab.replace(FOREIGN)
    done = plan.place.run("schedule", "install", PATH=f"{plan.place.env['PATH']}:/{'x' * 1000}")
    assert (done.returncode, "too long" in done.stderr) == (1, True)
    assert crontab() == FOREIGN


@pytest.mark.parametrize("words", ["must be privileged", "cannot open your crontab"])
def test_a_crontab_that_cannot_be_read_is_not_written(plan, words):
    stub = plan.place.folder / "bin/crontab"
    stub.write_text(f'#!/bin/sh\n[ "$1" = -l ] || touch {plan.place.work}/written\n'
                    f'echo "{words}" >&2\nexit 1\n')  # fmt: skip
    stub.chmod(0o755)
    done = plan.place.run("schedule", "install")
    assert (done.returncode, words in done.stderr) == (1, True)
    assert not (plan.place.work / "written").exists()


# ---- cao run ----

pytest_tmux = pytest.mark.tmux


def test_a_flow_for_an_agent_that_is_not_there_is_added_with_a_warning(place):
    (place.work / "f.md").write_text("---\nschedule: '@daily'\nagent_profile: nobody\n---\nx\n")
    added = place.run("schedule", "add", "f.md")
    assert (added.returncode, "'nobody' is no" in added.stderr) == (0, True), added.stderr
    nothing = place.run("schedule", "add")
    assert (nothing.returncode, "add FILE" in nothing.stderr) == (2, True)


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


@pytest_tmux
def test_what_a_worker_says_on_the_way_is_shown_and_the_run_goes_on(place):
    done = place.run("run", "demo", "demo: tell half way; sleep 1; say the end")
    assert (done.returncode, done.stdout) == (0, "the end\n")
    assert re.search(r"Message from demo-\w+:\nhalf way", done.stderr)


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


def test_the_readmes_flow_parses_and_its_keys_are_the_programs():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```md\n(.*?)^```$", text, re.M | re.S)
    assert cao.parse_flow(example, "nightly.md").unknown == ()
    section = text[text.index("### Flows") :]
    rows = re.findall(r"^\| (`.*?`) \|", section[: section.index("\n## ")], re.M)
    named = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    assert named == {*cao.Flow._fields} - {"file", "prompt", "unknown", "fault"}
