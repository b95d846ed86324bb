"""Make the n-th change of a file below a folder fail, or be the process's last act.

Knows nothing of cao: `torture.py` and `test_nothing_lost.py` put it under the real code, in
a forked child or, by `LOADER`, in the runner that cao itself starts.
"""

from __future__ import annotations

import builtins
import errno
import json
import os
import select
import stat

CHANGES = ("open", "rename", "link", "fsync", "write", "unlink", "mkdir", "mkfifo", "symlink")

# Stands as lib/<sha>/cao.py: the real file's code, with the planned fault under it.
LOADER = """\
import sys
sys.path.append({tests!r})
import faults
faults.arm_as_planned({home!r}, sys.argv[1:2])
from importlib.machinery import SourceFileLoader
exec(SourceFileLoader("cao", {source!r}).get_code("cao"), globals())
"""


class Faults:
    """Counts the changes of files below a folder; the fault comes at the n-th, or at the
    first that names or writes a text.

    `kill` ends the process, `fail` is an OSError, `hold` waits until the marker is removed.
    """

    def __init__(self, below: str, at: int | str, mode: str, marker: str = "") -> None:
        self.below, self.at, self.mode, self.marker = below, at, mode, marker
        self.count, self.where = 0, ""
        self.real = {name: getattr(os, name) for name in CHANGES}
        self.real_open = builtins.open

    def arm(self) -> None:
        """Put the fault under os and open of this process."""
        for name in CHANGES:
            setattr(os, name, self.changed(name))
        builtins.open = self.open

    def disarm(self) -> None:
        """Take it away again."""
        for name, call in self.real.items():
            setattr(os, name, call)
        builtins.open = self.real_open

    def changed(self, name):
        """Return an os function that counts and, when its time has come, fails."""

        def call(*args, **more):
            if self.concerns(name, args) and self.is_due(name, args):
                if name == "write" and self.mode != "hold":
                    self.real["write"](args[0], args[1][: len(args[1]) // 2])
                self.strike(name)
            return self.real[name](*args, **more)

        return call

    def concerns(self, name: str, args) -> bool:
        """Tell whether a call changes a file of ours; a poke of a FIFO changes none."""
        if name == "open" and not (len(args) > 1 and args[1] & os.O_CREAT):
            return False
        if name == "unlink" and self.mode == "fail":
            return False  # a full disk can do that
        return self.is_ours(args[0])

    def is_ours(self, what) -> bool:
        """Tell whether a path or descriptor is of a file or folder below ours."""
        if not isinstance(what, int):
            return os.fspath(what).startswith(self.below)
        if stat.S_ISFIFO(os.fstat(what).st_mode):
            return False
        return os.readlink(f"/proc/self/fd/{what}").startswith(self.below)

    def open(self, file, mode="r", *args, **more):
        """Be `open`: the text of a file may be cut in the middle."""
        due = "w" in mode and self.is_ours(file) and self.is_due("write text", (file,))
        made = self.real_open(file, mode, *args, **more)
        if due:
            whole = made.write

            def write(text: str) -> int:
                whole(text[: len(text) // 2])
                made.flush()
                self.strike("write text")

            made.write = write
        return made

    def is_due(self, name: str, args) -> bool:
        """Count one change and tell whether it is the one."""
        self.count += 1
        if isinstance(self.at, str):
            due = any(self.at in str(arg) for arg in args)
        else:
            due = self.count == self.at
        if due:
            self.where = f"{name} {args[0] if not isinstance(args[0], int) else ''}".strip()
            if self.marker:
                fd = self.real["open"](f"{self.marker}.new", os.O_WRONLY | os.O_CREAT, 0o600)
                self.real["write"](fd, self.where.encode())
                os.close(fd)
                self.real["rename"](f"{self.marker}.new", self.marker)  # whoever sees it reads all
            return True
        return False

    def strike(self, name: str) -> None:
        """Be the fault."""
        if self.mode == "kill":
            os._exit(137)
        if self.mode == "hold":
            while os.path.exists(self.marker):
                select.select([], [], [], 0.01)
            return
        number = errno.EIO if name == "fsync" else errno.ENOSPC
        raise OSError(number, os.strerror(number))


def arm_as_planned(home: str, argv) -> None:
    """Arm the fault that fault.json plans, if we are the process it names."""
    try:
        with open(f"{home}/fault.json", encoding="utf-8") as file:
            plan = json.load(file)
    except FileNotFoundError:
        return
    if argv == [plan["who"]]:
        Faults(home, plan["at"], plan["mode"], f"{home}/fault.fired").arm()
