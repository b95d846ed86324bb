"""Of what a check prints only the tail is kept."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import cao
from conftest import until

pytestmark = pytest.mark.tmux


# ---- a check that prints without end ----


def test_of_what_a_program_prints_only_the_tail_is_kept():
    script = "seq 300000; echo last >&2; exit 3"
    ran = cao.run(["sh", "-c", script], 60, tail_bytes=100)
    assert (ran.status, len(ran.out), ran.err) == (3, 100, "")
    assert ran.out.endswith("300000\nlast\n")
    assert cao.run(["cat"], 60, tail_bytes=100) == (0, "", "")


def test_a_program_that_prints_without_end_is_ended_in_time_and_takes_no_memory():
    code = (
        "import cao, resource\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: cao.run(['yes'], 1, tail_bytes=1000)\n"
        "except cao.CaoError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    out = subprocess.run(
        ["python3", "-c", code], check=True, capture_output=True, text=True, timeout=60,
        cwd=Path(cao.__file__).parent,
    ).stdout  # fmt: skip
    assert out.startswith("yes took longer than 1 s, having printed: y\ny\ny\ny\ny\n")
    assert int(out.split()[-1]) < 20_000  # kB; `yes` prints gigabytes in that time


def test_a_program_whose_child_keeps_its_output_open_is_given_up_in_time():
    with pytest.raises(cao.CaoError, match=r"took longer than 1 s, having printed: hi"):
        cao.run(["sh", "-c", "echo hi; sleep 30 & exit 0"], 1, tail_bytes=100)


def test_a_check_that_prints_without_end_costs_its_runner_no_memory(place):
    task = place.ok("assign", "demo", "demo: say x", "--check", "yes", "--timeout", "4s").strip()
    session = task.partition(".")[0]
    until(lambda: "turn_ended" in [e["event"] for e in place.log(session)])
    (pid,) = [int(p) for p in place.tmux("list-panes", "-aF", "#{pane_pid}").split()]
    peaks = []

    def ended() -> bool:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            peaks.append(int(status.partition("VmHWM:")[2].split()[0]))
        except (OSError, IndexError):  # it has ended, or ends
            return True
        return bool(place.store.load_result(task))

    until(ended)
    assert place.result(task)["outcome"] == "timeout"
    assert max(peaks) < 60_000  # kB
