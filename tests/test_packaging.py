"""What is shipped: the wheel in a fresh venv, the file alone, uvx and pipx."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

import cao
from conftest import ROOT, McpClient

BACKEND = re.search(r'^requires = \["(.+)"\]', (ROOT / "pyproject.toml").read_text(), re.M)[1]


def tried(*argv, **more) -> subprocess.CompletedProcess:
    """Run a program without input and return it finished, its output as text."""
    argv = [str(word) for word in argv]
    more.update(capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    return subprocess.run(argv, check=False, **more)


def ran(*argv, **more) -> str:
    """Run a program that must succeed and return its stdout."""
    done = tried(*argv, **more)
    assert done.returncode == 0, f"{argv}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> Path:
    """A copy of the repository, for a build writes beside its sources."""
    folder = tmp_path_factory.mktemp("source") / "cao"
    unwanted = (".git", ".venv", ".*_cache", "__pycache__", "build", "dist", "*.egg-info")
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*unwanted))
    return folder


def pip_for(folder: Path) -> tuple:
    """Make a bare venv and return the argv of our own pip, at work on it."""
    ran(sys.executable, "-m", "venv", "--without-pip", folder)
    return (sys.executable, "-m", "pip", "--python", folder / "bin/python")


@pytest.fixture(scope="session")
def builder(tmp_path_factory) -> tuple:
    """The argv of a pip whose venv has the build backend; skips where it cannot be had."""
    pip = pip_for(tmp_path_factory.mktemp("builder"))
    done = tried(*pip, "install", "-q", "--retries", "1", BACKEND)
    if done.returncode:
        pytest.skip(f"the build backend {BACKEND} cannot be had: {done.stderr.strip()[-200:]}")
    return pip


@pytest.fixture(scope="session")
def installed(tmp_path_factory, source, builder) -> Path:
    """The bin folder of a bare venv with nothing but our wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    flags = ("-q", "--no-deps", "--no-build-isolation", "--no-index")
    ran(*builder, "wheel", *flags, "-w", folder, source)
    (wheel,) = folder.glob("*.whl")
    ran(*pip_for(folder / "venv"), "install", "-q", "--no-deps", "--no-index", wheel)
    return folder / "venv" / "bin"


def test_the_sdist_has_all_that_its_tests_need(source, builder, tmp_path):
    build = "import sys; from flit_core import buildapi; print(buildapi.build_sdist(sys.argv[1]))"
    archive = tmp_path / ran(builder[-1], "-c", build, tmp_path, cwd=source).strip()
    with tarfile.open(archive) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    files = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    assert files - packed <= {".gitignore"}


def test_the_wheel_brings_its_commands(installed, bare):
    assert (installed / "cao-mcp").exists()
    version = ran(installed / "cao", "--version", env=bare.env, cwd=bare.work)
    assert version == f"cao {cao.VERSION}\n"


def test_cao_mcp_from_the_wheel_answers_and_names_the_shipped_profiles(installed, bare):
    def start(*_argv, **env) -> subprocess.Popen:
        bare.started.append(subprocess.Popen(
            [str(installed / "cao-mcp")], cwd=bare.work, env={**bare.env, **env},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ))  # fmt: skip
        return bare.started[-1]

    client = McpClient(SimpleNamespace(start=start), init=False)
    answer = client.request("initialize", {
        "protocolVersion": "2025-11-25", "capabilities": {},
        "clientInfo": {"name": "packaging", "version": "1"},
    })  # fmt: skip
    assert answer["result"]["serverInfo"]["version"] == cao.VERSION
    client.notify("notifications/initialized")
    assert "developer" in client.call("list_sessions")["content"][0]["text"]
    assert client.close() == 0


def test_the_shipped_profiles_inside_are_those_of_the_repository():
    files = {path.stem: path.read_text() for path in (ROOT / "profiles").glob("*.md")}
    assert files == cao.SHIPPED_PROFILES


def test_a_worker_of_the_wheel_does_its_task(installed, bare):
    argv = (installed / "cao", "handoff", "demo", "demo: say packed")
    assert ran(*argv, env=bare.env, cwd=bare.work) == "packed\n"


@pytest.mark.parametrize("beside", ["nothing", "a file", "a folder of somebody else's"])
def test_the_file_alone_in_a_folder_hands_off(bare, beside):
    shutil.rmtree(bare.home)  # so that CAO_HOME is still to be made
    alone = bare.folder / "alone"
    alone.mkdir()
    shutil.copy(ROOT / "cao.py", alone)
    if beside == "a file":
        (alone / "profiles").touch()
    elif beside != "nothing":
        (alone / "profiles/work.md").mkdir(parents=True)
        (alone / "profiles/large.bin").touch()
    argv = (sys.executable, alone / "cao.py", "handoff", "demo", "demo: say alone")
    assert ran(*argv, env=bare.env, cwd=bare.work) == "alone\n"
    assert bare.home.stat().st_mode & 0o777 == 0o700
    assert len([*bare.home.glob("lib/*/*.py")]) == 1
    listed = ran(sys.executable, alone / "cao.py", "profiles", env=bare.env, cwd=bare.work)
    assert {line.split()[0] for line in listed.splitlines()} >= {*cao.SHIPPED_PROFILES}
    argv = (sys.executable, alone / "cao.py", "launch", "--detach")
    session = ran(*argv, env={**bare.env, "CAO_PROVIDER": "demo"}, cwd=bare.work)
    assert session.startswith("supervisor-")


def program(name: str) -> str:
    """Return where uvx or pipx is: CAO_TEST_UVX, CAO_TEST_PIPX, else on PATH; or skip."""
    found = os.environ.get(f"CAO_TEST_{name.upper()}") or shutil.which(name)
    return found or pytest.skip(f"{name} is not installed (CAO_TEST_{name.upper()} names it)")


@pytest.mark.parametrize(("name", "flags"), [("uvx", ["--from"]), ("pipx", ["run", "--spec"])])
def test_it_runs_without_being_installed(name, flags, source, builder, tmp_path):
    own = {
        "UV_CACHE_DIR": "cache", "UV_TOOL_DIR": "tool", "PIPX_HOME": "home", "PIPX_BIN_DIR": "bin",
    }  # fmt: skip
    env = {**os.environ, **{key: str(tmp_path / folder) for key, folder in own.items()}}
    env.update(UV_PYTHON=sys.executable, UV_PYTHON_DOWNLOADS="never",
               PIPX_DEFAULT_PYTHON=sys.executable)  # fmt: skip
    argv = (program(name), *flags, source, "cao", "--version")
    assert ran(*argv, env=env, cwd=tmp_path) == f"cao {cao.VERSION}\n"
