"""Runs the tests in several processes side by side: most of them wait, for a program of theirs.

Each process is a fork of the one that collected. What is next comes out of one pipe that holds
all there is to do, so whoever is free takes it; what came of it goes back through a pipe of its
own and is reported as ever. `--processes 1` runs all in one process, in order.
"""

from __future__ import annotations

import gc
import itertools
import os
import pickle
import selectors
import signal
import struct
import zlib

import pytest

NUMBER = struct.Struct("!I")


def pytest_addoption(parser) -> None:
    parser.addoption(
        "--processes", type=int, default=3 * (os.cpu_count() or 1), metavar="N",
        help="so many run the tests where they are 20 or more; 1: all run in this one",
    )  # fmt: skip


def pytest_runtestloop(session):
    """Run the tests that were collected, where there are enough of them to be worth it."""
    option = session.config.option
    alone = option.collectonly or option.usepdb or option.capture == "no" or session.testsfailed
    if alone or option.processes < 2 or len(session.items) < 20:
        return None
    work = Work(session.items)
    gc.freeze()  # what was collected is here to stay: not looked through by each of them
    running = [Process(session, work) for _ in range(option.processes)]
    try:
        left = report_all(session, work, running)
    finally:
        for process in running:
            os.kill(process.pid, signal.SIGTERM)  # at its end already, unless we are interrupted
        for process in running:
            process.told.close()  # of all first: each later one has those of the ones before it
        for process in running:
            os.waitpid(process.pid, 0)
    if session.shouldfail:
        raise session.Failed(session.shouldfail)
    if session.shouldstop:
        raise session.Interrupted(session.shouldstop)
    if left:
        raise RuntimeError(f"a process died; not run to their end: {sorted(left)}")
    return True


def report_all(session, work: Work, running: list[Process]) -> set[str]:
    """Report what the processes tell until they end; return the tests that did not end."""
    left = {item.nodeid for item in session.items}
    with selectors.DefaultSelector() as reading:
        for process in running:
            reading.register(process.told, selectors.EVENT_READ, process)
        while reading.get_map():
            for key, _ in reading.select():
                report = key.data.read(session.config)
                if report is None:
                    reading.unregister(key.fileobj)
                    continue
                session.config.hook.pytest_runtest_logreport(report=report)
                if report.when == "teardown":
                    left.discard(report.nodeid)
                if session.shouldfail or session.shouldstop:
                    work.drop()
    return left


# One process has all of one of these; the longest first.
SERIES = ("cli 0", "cli 1", "official", "crontab")


def kind_of(item) -> str:
    """Return what a test has in common with those that its process takes with it.

    Neighbours of one file share what is slow to set up; a test that starts sessions is a
    unit of its own. Not side by side with each other: more than two tests with real CLIs, and the
    official tools, which are too much for a small machine; and what touches the user's crontab.
    """
    if item.get_closest_marker("cli"):
        return f"cli {zlib.crc32(item.nodeid.encode()) % 2}"
    if item.path.stem == "test_mcp_official":
        return "official"
    if "crontab" in item.fixturenames:
        return "crontab"
    return item.nodeid if item.get_closest_marker("tmux") else str(item.path)


def units_of(items) -> list[list]:
    """Return the tests in units: what one process takes at once."""
    last = len(SERIES)
    rank = {kind: at for at, kind in enumerate(SERIES)}
    ordered = sorted(items, key=lambda item: rank.get(kind_of(item), last))
    return [list(unit) for _, unit in itertools.groupby(ordered, kind_of)]


class Work:
    """All there is to do: a pipe with the number of each unit, read by whoever is free."""

    def __init__(self, items) -> None:
        self.units = units_of(items)
        self.pipe, write = os.pipe()
        os.set_blocking(write, False)  # it holds 64 kB: 16,000 numbers
        numbers = b"".join(map(NUMBER.pack, range(len(self.units))))
        assert os.write(write, numbers) == len(numbers)
        os.close(write)

    def take(self) -> list:
        """Return the tests of the next unit, [] where there is none left."""
        number = os.read(self.pipe, NUMBER.size)
        return list(self.units[NUMBER.unpack(number)[0]]) if number else []

    def drop(self) -> None:
        """Let nobody begin with more."""
        while os.read(self.pipe, 1 << 16):
            pass


class Process:
    """One process that runs tests, as the one that reports sees it."""

    def __init__(self, session, work: Work) -> None:
        told, tell = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            status = 1
            try:
                os.close(told)
                run_units(session, work, os.fdopen(tell, "wb"))
                status = 0
            finally:
                try:
                    session._setupstate.teardown_exact(None)  # where it was interrupted
                finally:
                    os._exit(status)
        os.close(tell)
        self.told = os.fdopen(told, "rb", buffering=0)

    def read(self, config):
        """Return the next report, None where no more will come."""
        head = self.bytes(NUMBER.size)
        if not head:
            return None
        known = pickle.loads(self.bytes(*NUMBER.unpack(head)))
        return config.hook.pytest_report_from_serializable(config=config, data=known)

    def bytes(self, count: int) -> bytes:
        """Return so many bytes, b"" where there are less: it is dead."""
        found = b""
        while len(found) < count:
            more = self.told.read(count - len(found))
            if not more:
                return b""
            found += more
        return found


class Teller:
    """Stands where the terminal was, and tells the process that has it."""

    def __init__(self, config, tell) -> None:
        self.config, self.tell = config, tell

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report) -> None:
        known = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        words = pickle.dumps(known)
        self.tell.write(NUMBER.pack(len(words)) + words)
        self.tell.flush()


def run_units(session, work: Work, tell) -> None:
    """Be the process: run unit after unit until there is none left."""
    config = session.config
    reporter = config.pluginmanager.unregister(name="terminalreporter")
    config.get_terminal_writer = lambda: reporter._tw  # pytest 8 explains assertions by it
    config.pluginmanager.register(Teller(config, tell))
    capture = config.pluginmanager.getplugin("capturemanager")
    capture.stop_global_capturing()  # its file would be of all of us
    capture.start_global_capturing()
    capture.suspend_global_capture()
    ready = work.take()
    while ready and not (session.shouldfail or session.shouldstop):
        item = ready.pop(0)
        ready = ready or work.take()
        # What has no use for the next test is torn down with this one.
        config.hook.pytest_runtest_protocol(item=item, nextitem=ready[0] if ready else None)
