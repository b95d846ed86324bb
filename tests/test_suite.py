"""The suite itself: what it skips, and that it leaves nothing behind when it is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, until

WAITING = """
import os, pytest

@pytest.mark.tmux
@pytest.mark.parametrize("number", range(20))
def test_waits(place, number):
    os.symlink(place.folder, f"{os.environ['JOURNAL']}/{number}")
    place.run("handoff", "demo", "demo: sleep 100")
"""
NO_GIT = """
import pytest, subprocess

@pytest.fixture(scope="module")
def repository():
    subprocess.run(["git", "init"], check=True)

def test_one(repository):
    pass

def test_other(repository):
    pass

def test_starts_git():
    subprocess.run(["git", "init"], check=True)

def test_reads_what_is_not_there():
    open("gone")
"""


@pytest.fixture
def suite(place):
    """Start a pytest with our conftest and a test file of its own."""

    def start(text: str, *options: str, **env: str) -> subprocess.Popen:
        (place.work / "test_it.py").write_text(text)
        argv = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-p", "no:cacheprovider"]
        path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
        started = subprocess.Popen(
            [*argv, *options, "test_it.py"], cwd=place.work, text=True,
            env={**place.env, "PYTHONPATH": path, **env},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        place.started.append(started)
        return started

    return start


def test_what_starts_a_git_that_is_not_installed_is_skipped(suite, place):
    out = suite(NO_GIT, PATH=str(place.folder / "bin")).communicate(timeout=60)[0]
    assert "1 failed, 3 skipped" in out


@pytest.mark.tmux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_suite_that_is_interrupted_leaves_nothing_behind(suite, place, number, processes):
    journal = place.folder / "journal"
    journal.mkdir()
    ours = suite(WAITING, "--processes", processes, JOURNAL=str(journal))
    folders = until(
        lambda: [Path(os.readlink(link)) for link in journal.iterdir()],
        lambda found: len(found) == int(processes) and all(
            list(folder.glob("cao/sessions/*/state.json")) for folder in found
        ),
    )  # fmt: skip
    ours.send_signal(number)
    out = ours.communicate(timeout=30)[0]
    assert ours.returncode == pytest.ExitCode.INTERRUPTED, out
    assert [folder for folder in folders if folder.exists()] == []
    assert [pid for folder in folders for pid in place.pids(f"{folder}/")] == []
    assert place.pids(f"JOURNAL={journal}\0") == []


TELLING = """
import os, pytest, time

@pytest.mark.tmux
@pytest.mark.parametrize("number", range(20))
def test_tells(number):
    open(f"{os.environ['JOURNAL']}/{os.getpid()}", "w").close()
    try:
        while True:
            time.sleep(0.01)
    except BaseException:
        print("more than a pipe holds " * 10_000)
        raise AssertionError from None
"""


def test_a_suite_that_is_interrupted_waits_for_no_process_that_still_tells(suite, place):
    journal = place.folder / "journal"
    journal.mkdir()
    ours = suite(TELLING, "--processes", "2", JOURNAL=str(journal))
    until(lambda: os.listdir(journal), lambda found: len(found) == 2)
    ours.send_signal(signal.SIGINT)
    out = ours.communicate(timeout=60)[0]
    assert ours.returncode == pytest.ExitCode.INTERRUPTED, out
    assert place.pids(f"JOURNAL={journal}\0") == []
