"""Workers on another machine: a real sshd, and another user as that machine.

Where there is no sshd, or nobody may make a user, these tests skip: CAO_TEST_REQUIRE_SSH=1
makes that a failure.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from conftest import CAO, until
from test_readme import blocks

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
LACKS = ""
if not SSHD or not shutil.which("ssh"):
    LACKS = "no sshd here (Debian: apt install openssh-server)"
elif os.getuid() != 0:
    LACKS = "only root can make the user that is the other machine"
if LACKS and os.environ.get("CAO_TEST_REQUIRE_SSH"):
    pytest.fail(LACKS, pytrace=False)
pytestmark = [pytest.mark.tmux, pytest.mark.skipif(bool(LACKS), reason=LACKS)]


class Machine:
    """Another machine: a user with a home of its own, behind an sshd on a loopback port."""

    def __init__(self, user: pwd.struct_passwd, folder: Path) -> None:
        self.user, self.folder = user, folder
        self.home = Path(user.pw_dir)
        self.cao_home = self.home / ".local/state/cao"
        self.port = free_port()
        for name in ("host_key", "key", "other_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name],
                           check=True)  # fmt: skip
        (folder / "authorized_keys").write_text((folder / "key.pub").read_text())
        folder.chmod(0o755)
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\n"
            f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nUsePAM no\n"
            f"PidFile none\nPasswordAuthentication no\nMaxStartups 10:100:10\nPrintMotd no\n"
        )
        self.work = self.home / "work"
        self.in_it("mkdir", "work")
        self.sshd = self.start()

    def start(self) -> subprocess.Popen:
        os.makedirs("/run/sshd", exist_ok=True)
        with open(self.folder / "sshd.log", "ab") as log:
            sshd = subprocess.Popen([SSHD, "-D", "-e", "-f", self.folder / "sshd_config"],
                                    stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # fmt: skip
        until(lambda: listens(self.port))
        return sshd

    def ssh(self, key: str = "key", *more: str) -> str:
        """Return CAO_SSH for this machine."""
        words = f"ssh -p {self.port} -l {self.user.pw_name} -i {self.folder}/{key} -F none"
        words += f" -o UserKnownHostsFile={self.folder}/known_hosts -o IdentitiesOnly=yes"
        return f"{words} -o StrictHostKeyChecking=no {' '.join(more)}".strip()

    def in_it(self, *argv: str, check: bool = True, **env: str) -> str:
        """Run a program as the user there, in its home; return what it prints."""
        env = {"HOME": str(self.home), "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8",
               "USER": self.user.pw_name, **env}  # fmt: skip
        ids = {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []}
        return subprocess.run(argv, check=check, cwd=self.home, env=env, text=True,
                              stdout=subprocess.PIPE, **ids).stdout  # fmt: skip

    def cao(self, *args: str) -> str:
        """Run a cao command there, as that user would."""
        (lib,) = self.cao_home.glob("lib/*/cao.py")
        return self.in_it("python3", "-I", "-S", str(lib), *args)

    def sessions(self) -> list[str]:
        """Return the agents that live there."""
        return sorted(os.listdir(self.cao_home / "live"))

    def pids(self, *words: str) -> list[int]:
        """Return the user's processes whose command line has some words."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{pid}").st_uid == self.user.pw_uid:
                    line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if all(word in line for word in words):
                        found.append(int(pid))
        return found

    def close(self) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.sshd.terminate()
        self.sshd.wait()
        while pids := self.pids():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def machine():
    name = f"cao-far-{os.getpid()}"
    make = ["useradd", "-m", "-p", "*", "-s", "/bin/bash", name]  # no password: sshd wants one
    subprocess.run(make, check=True, capture_output=True)
    made = Machine(pwd.getpwnam(name), Path(tempfile.mkdtemp(prefix="cao-", dir="/tmp")))
    yield made
    made.close()
    subprocess.run(["userdel", "-r", name], check=False, capture_output=True)


@pytest.fixture
def far(place, machine):
    """The place here, from which a worker on the machine `box` is reached."""
    place.env["CAO_SSH"] = machine.ssh("key", "-o", "HostName=127.0.0.1")
    place.machine = machine
    return place


def handoff(far, task, *args, **more):
    return far.run("handoff", "demo@box", task, "--cwd", str(far.machine.work), *args, **more)


def test_a_handoff_to_another_machine_gives_its_answer(far):
    done = handoff(far, "demo: say it is far")
    assert (done.returncode, done.stdout) == (0, "it is far\n"), done.stderr


def test_the_example_of_the_readme(far):
    (example,) = blocks("sh", "<!-- run with a machine called box -->\n")
    far.program("cao", f'exec {" ".join(CAO)} "$@"')
    done = subprocess.run(["sh", "-eu"], check=False, input=example, cwd=far.work, env=far.env,
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.findall("# prints (.*)", example) == ["done there", "demo-"]
    assert re.match(r"done there\n[^\n]*\n *demo-", done.stdout), done.stdout
