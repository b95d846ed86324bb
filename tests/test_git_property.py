"""Random worktrees: nothing goes that nobody named, and what can be merged is merged.

Each seed makes a repository, a worktree of a session's in it, and a few of the things that
agents and people do there; then it is merged, cleaned, discarded. CAO_GIT_SEEDS="1000:5000"
tries those seeds, "17" that one.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

import cao

TEMPLATES: dict[bool, Path] = {}
SEEDS = os.environ.get("CAO_GIT_SEEDS", "0:40")
FIRST, _, END = SEEDS.partition(":")
SETTINGS = """status.showUntrackedFiles=no log.showSignature=true color.ui=always
 color.status=always diff.noprefix=true diff.external=false core.quotePath=false
 core.quotePath=true merge.ff=only
 merge.ff=false pull.rebase=true core.fsmonitor=true core.untrackedCache=true core.autocrlf=input
 submodule.recurse=true diff.ignoreSubmodules=all core.ignoreStat=true core.checkStat=minimal
 merge.autoStash=true status.relativePaths=true diff.renames=false diff.mnemonicPrefix=true
 core.splitIndex=true status.branch=true branch.autoSetupMerge=always merge.conflictStyle=diff3
 commit.verbose=true core.safecrlf=warn rerere.enabled=true core.preloadIndex=false
 branch.main.mergeOptions=--no-commit index.sparse=true safe.bareRepository=explicit
 diff.relative=true core.logAllRefUpdates=false push.autoSetupRemote=true""".split()
NAMES = [b"new", b"a b", b"line\nfeed", b"na\xefve", b"-q", b":(exclude)x", b'"quoted"', b"tail ",
         b"\xc3\xa4", b"sub/new", b"deep/er/file", b"*", b"{a,b}", b"#x", b"!y", b"back\\slash",
         b"x\ty", b"trailing.", b"..x", b".hidden", b"HEAD", b"cao"]  # fmt: skip


def git(cwd, *args, ok=True, env=None, text=""):
    done = subprocess.run(
        ["git", *args], check=False, capture_output=True, cwd=cwd, input=text.encode(),
        env={**os.environ, **(env or {})},
    )  # fmt: skip
    assert done.returncode == 0 or not ok, (args, done.stdout, done.stderr)
    return os.fsdecode(done.stdout).removesuffix("\n")


def plain(cwd, *args, **more):
    """Run git without anybody's settings."""
    return git(cwd, *args, env={"GIT_CONFIG_GLOBAL": "/dev/null", **IDENTITY}, **more)


IDENTITY = {
    f"GIT_{who}_{what}": "t@t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
}


def write(path, data):
    path = os.fsencode(path) if isinstance(path, (str, Path)) else path
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


class World:
    """A repository `top`, a worktree `path` of session `name` in it, and what was done."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.random = random.Random(seed)
        self.folder, self.count = folder, 0
        self.top, self.user = folder / "repo", folder / "home"
        self.user.mkdir()
        self.done: list[str] = []
        self.blocked: set[str] = set()  # why it cannot be merged
        self.kept: set[str] = set()  # why it is not discarded unasked
        os.environ.update(HOME=str(self.user), CAO_HOME=str(folder / "cao"))
        self.make_repository()
        self.name = "demo-2345"
        self.store = cao.Store(str(folder / "cao"))
        cao.make_client(self.store, "person")
        self.boss = cao.Orchestrator(self.store, cao.Caller("person", person=True))
        os.mkdir(self.store.folder(self.name))
        top, _ = cao.worktree_start(str(self.top))
        self.path = folder / "cao" / "worktrees" / self.name
        self.session = cao.Session(
            self.name, "agent", "demo", "demo", str(self.path), "person", 1, 0.0, False, "",
            1.0, 1.0, "", worktree=f"cao/{self.name}", origin=top,
        )  # fmt: skip
        self.store.create(self.session)
        self.store.save_state(self.name, {"state": "ended", "since": 0.0, "why": "stopped"})
        cao.add_worktree(self.store, self.session)

    def text(self) -> bytes:
        self.count += 1
        return f"content {self.count}\n".encode()

    def make_repository(self) -> None:
        with_submodule = self.random.random() < 0.3
        template = TEMPLATES.get(with_submodule)
        if template:
            shutil.copytree(template, self.folder, dirs_exist_ok=True, symlinks=True)
        else:
            self.make_template(with_submodule)
            TEMPLATES[with_submodule] = Path(tempfile.mkdtemp(prefix="cao-", dir="/tmp"))
            passing = shutil.ignore_patterns("maintenance.lock")  # git 2.47+ goes on beside us
            shutil.copytree(
                self.folder, TEMPLATES[with_submodule], dirs_exist_ok=True, ignore=passing
            )
        self.count = 100  # no content comes twice
        for setting in self.random.sample(SETTINGS, self.random.choice([0, 1, 3, 8])):
            git(self.top, "config", "--global", *setting.split("=", 1))
            self.done.append(setting)

    def make_template(self, with_submodule: bool) -> None:
        other = self.folder / "other"
        for where in (other, self.top):
            where.mkdir()
            plain(where, "init", "-q", "-b", "main")
        write(other / "s", b"s\n")
        write(other / ".gitignore", b"*.log\n")
        plain(other, "add", ".")
        plain(other, "commit", "-qm", "s")
        for name in ("a", "b", "c", "sub/d", "sub/e", "far/f", "x.up", "crlf.txt"):
            write(self.top / name, self.text())
        write(self.top / ".gitignore", b"*.log\n/build/\nnode_modules\n")
        write(self.top / ".gitattributes", b"*.up filter=up\n*.bad filter=bad\n")
        plain(self.top, "config", "filter.up.clean", "tr a-z A-Z")
        plain(self.top, "config", "filter.up.smudge", "tr A-Z a-z")
        if with_submodule:
            allow = ("-c", "protocol.file.allow=always")
            plain(self.top, *allow, "submodule", "-q", "add", "../other", "lib")
        plain(self.top, "add", ".")
        plain(self.top, "commit", "-qm", "first")
        plain(self.top, "config", "user.name", "t")
        plain(self.top, "config", "user.email", "t@t")

    # ---- what is done in it ----

    def new(self):
        write(os.fsencode(self.path) + b"/" + self.random.choice(NAMES), self.text())

    def change(self):
        for name in self.random.sample(["a", "b", "sub/d", "x.up"], 2):
            if (self.path / name).is_file() and not (self.path / name).is_symlink():
                write(self.path / name, self.text())

    def delete(self):
        with contextlib.suppress(OSError):
            (self.path / self.random.choice(["a", "b", "sub/d"])).unlink()

    def rename(self):
        with contextlib.suppress(OSError):
            (self.path / "c").rename(self.path / "renamed")

    def link(self):
        with contextlib.suppress(OSError):
            (self.path / "link").symlink_to(self.random.choice(["a", "nowhere", "sub", "/etc"]))

    def executable(self):
        with contextlib.suppress(OSError):
            (self.path / "b").chmod(0o755)

    def file_for_directory(self):
        shutil.rmtree(self.path / "far", ignore_errors=True)
        with contextlib.suppress(OSError):
            write(self.path / "far", self.text())

    def stage(self):
        plain(self.path, "add", "-A", "--ignore-errors", ok=False)

    def stage_and_change(self):
        write(self.path / "staged", self.text())
        plain(self.path, "add", "staged", ok=False)
        write(self.path / "staged", self.text())

    def uncached(self):
        plain(self.path, "rm", "-q", "--cached", "a", ok=False)

    def commit(self):
        self.change()
        write(self.path / f"committed{self.count}", self.text())
        plain(self.path, "add", "-A", "--ignore-errors", ok=False)
        plain(self.path, "commit", "-qnm", "work", ok=False)

    def ignored(self):
        where = self.random.choice(["x.log", ".env.log", "build/out", "sub/y.log", "new/dir/z.log"])
        write(self.path / where, self.text())
        self.kept.add("does not look at")

    def nested(self):
        where = self.path / self.random.choice(["nested", "new/nested", "sub", "\udcefx"])
        if where.is_dir() or not where.exists():
            plain(self.path, "init", "-q", str(where))
            write(where / "inner", self.text())
            if self.random.random() < 0.6:
                plain(where, "add", ".")
                plain(where, "commit", "-qm", "inner")
                if self.random.random() < 0.4:
                    plain(self.path, "add", str(where), ok=False)
                    plain(self.path, "commit", "-qnm", "a pointer", ok=False)
            self.blocked.add("nested")
            self.kept.add("the repository")

    def nested_ignored(self):
        plain(self.path, "init", "-q", "node_modules/dep")
        write(self.path / "node_modules/dep/x", self.text())
        plain(self.path / "node_modules/dep", "commit", "-q", "--allow-empty", "-m", "x")
        self.kept.add("does not look at")

    def worktree_inside(self):
        if not (self.path / "inside").exists():
            plain(self.path, "worktree", "add", "-q", "--detach", "inside")
            write(self.path / "inside" / "precious", self.text())
            self.blocked.add("nested")
            self.kept.add("inside")

    def submodule(self):
        lib = self.path / "lib"
        if not lib.is_dir():
            return
        plain(self.top, "config", "submodule.lib.url", str(self.folder / "other"))
        allow = ("-c", "protocol.file.allow=always")
        plain(self.path, *allow, "submodule", "-q", "update", "--init", ok=False)
        if not (lib / ".git").exists():
            return
        self.kept.add("the repository")  # git does not remove it either
        what = self.random.choice(
            ["nothing", "commit", "change", "new", "ignored", "branch", "bump"]
        )
        self.done.append(what)
        if what == "commit" or what == "branch":
            write(lib / "own", self.text())
            plain(lib, "checkout", "-q", "-b", f"side{self.count}")
            plain(lib, "add", ".")
            plain(lib, "commit", "-qm", "own")
            if what == "branch":
                plain(lib, "checkout", "-q", "HEAD~1")
            self.blocked.add("submodule")
        elif what == "change":
            write(lib / "s", self.text())
            self.blocked.add("submodule")
        elif what == "new":
            write(lib / "new", self.text())
            self.blocked.add("submodule")
        elif what == "ignored":
            write(lib / "x.log", self.text())
        elif what == "bump":
            write(self.folder / "other" / f"n{self.count}", self.text())
            plain(self.folder / "other", "add", ".")
            plain(self.folder / "other", "commit", "-qm", "more")
            plain(lib, *allow, "fetch", "-q")
            plain(lib, "checkout", "-q", "origin/main", ok=False)

    def hidden(self):
        flag = self.random.choice(["--skip-worktree", "--assume-unchanged"])
        if "e" in plain(self.path, "ls-files", "sub/e"):
            plain(self.path, "update-index", flag, "sub/e", ok=False)
            flagged = not plain(self.path, "ls-files", "-v", "sub/e").startswith("H")
            if flagged and (self.path / "sub" / "e").exists():
                write(self.path / "sub/e", self.text())
                self.kept.add("look at")

    def sparse(self):
        plain(self.path, "sparse-checkout", "set", "sub", ok=False)
        if self.random.random() < 0.5:
            with contextlib.suppress(OSError):
                write(self.path / "far" / "outside", self.text())
                self.blocked.add("sparse")  # git does not add it

    def bad_filter(self):
        plain(self.top, "config", "filter.bad.clean", "false")
        plain(self.top, "config", "filter.bad.required", "true")
        write(self.path / "x.bad", self.text())
        self.blocked.add("filter")

    def unreadable(self):
        pass  # tests may run as root, who reads all

    def detach(self):
        plain(self.path, "checkout", "-q", "--detach", ok=False)
        self.commit()

    def switch(self):
        plain(self.path, "checkout", "-q", "-b", f"side{self.count}", ok=False)

    def back(self):
        plain(self.path, "checkout", "-q", "--detach", "main", ok=False)
        self.blocked.add("elsewhere")

    def stash(self):
        plain(self.path, "stash", "-q", ok=False)

    def rebase(self):
        self.commit()
        plain(self.path, "-c", "sequence.editor=sed -i s/pick/edit/", "rebase", "-qi",
              "--autostash", "HEAD~1", ok=False)  # fmt: skip
        self.blocked.add("rebase")
        git_dir = self.path / plain(self.path, "rev-parse", "--git-dir")
        if (git_dir / "rebase-merge").exists():
            self.kept.add("rebase")

    def index_lock(self):
        where = self.random.choice([self.path, self.top])
        lock = plain(where, "rev-parse", "--git-path", "index.lock")
        write(where / lock, b"")
        self.blocked.add("index.lock")

    def lock(self):
        plain(self.top, "worktree", "lock", "--reason", "mine", str(self.path), ok=False)
        self.kept.add("lock")

    def hook(self):
        name = self.random.choice(["pre-commit", "commit-msg", "pre-merge-commit", "post-merge"])
        hook = self.top / ".git" / "hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text("#!/bin/sh\necho the hook says no\nexit 1\n")
        hook.chmod(0o755)
        self.blocked.add("hook")

    def gpg(self):
        plain(self.top, "config", "commit.gpgSign", "true")
        plain(self.top, "config", "gpg.program", "false")
        self.blocked.add("gpg")

    def nobody(self):
        plain(self.top, "config", "user.useConfigOnly", "true")
        plain(self.top, "config", "--unset", "user.email", ok=False)
        self.blocked.add("identity")

    def main_moves(self):
        name = self.random.choice(["a", "far/f", "main only", "sub/e"])
        write(self.top / name, self.text())
        plain(self.top, "add", name, ok=False)
        plain(self.top, "commit", "-qnm", "main", ok=False)
        self.blocked.add("conflict")

    def main_dirty(self):
        write(self.top / self.random.choice(["b", "new", "far/f", "draft"]), self.text())
        self.blocked.add("in the way")
        if self.random.random() < 0.3:
            plain(self.top, "add", "-A", ok=False)

    def main_switches(self):
        plain(self.top, "checkout", "-q", "-b", f"other{self.count}", ok=False)

    # ---- what there is ----

    def files(self) -> dict[bytes, bytes]:
        """Return all files in the worktree, those of repositories inside too."""
        found = {}
        top = os.fsencode(self.path)
        for folder, folders, names in os.walk(top):
            folders[:] = [f for f in folders if f != b".git"]
            for name in (*names, *folders):
                path = os.path.join(folder, name)
                if os.path.islink(path):
                    found[os.path.relpath(path, top)] = os.readlink(path)
                elif os.path.isfile(path) and name != b".git":
                    found[os.path.relpath(path, top)] = Path(os.fsdecode(path)).read_bytes()
        return found

    def see(self):
        """Return all that a refused merge must leave as it was: the repository, but for the
        branch that the worktree is on, and the files of the worktree."""
        refs = plain(self.top, "for-each-ref", "refs/heads", "refs/tags").split("\n")
        own = plain(self.path, "rev-parse", "--symbolic-full-name", "HEAD")
        seen = [self.files(), [ref for ref in refs if not ref.endswith(f"\t{own}")]]
        seen.append(plain(self.top, "rev-parse", "HEAD"))
        seen.append(plain(self.top, "ls-files", "-s", "-v", "-z"))
        seen.append(plain(self.top, "status", "--porcelain", "-z", "-uall"))
        for where in (self.path, self.top):
            git_dir = where / plain(where, "rev-parse", "--git-dir")
            # Not AUTO_MERGE: git leaves that where it refuses to overwrite a changed file.
            seen.append([name for name in ("MERGE_HEAD", "MERGE_MSG", "MERGE_MODE")
                         if (git_dir / name).exists()])  # fmt: skip
        seen.append({p: p.read_bytes() for p in self.top.rglob("*")
                     if p.is_file() and ".git" not in p.parts})  # fmt: skip
        return seen

    def commits(self) -> set[str]:
        """Return the commits that are reachable from the worktree."""
        tips = ["HEAD", *plain(self.path, "for-each-ref", "--format=%(refname)",
                               f"refs/heads/cao/{self.name}").split()]  # fmt: skip
        return set(plain(self.path, "rev-list", *tips, "--").split())

    def saved(self) -> tuple[set[str], set[str]]:
        """Return the commits and the blobs that the repository and the submodule's keep."""
        commits, blobs = set(), set()
        for where in (self.top, self.folder / "other"):
            refs = plain(where, "for-each-ref", "--format=%(refname)").split()
            commits |= set(plain(where, "rev-list", "HEAD", *refs, "--").split())
            lines = plain(where, "rev-list", "--objects", "HEAD", *refs, "--")
            blobs |= {line.split(" ")[0] for line in lines.split("\n")}
        return commits, blobs

    def unsaved(self, files, commits) -> list:
        """Return which of these files and commits are in the repository nowhere."""
        kept, blobs = self.saved()
        lost = [c for c in commits if c not in kept]
        for name, data in files.items():
            ways = [data, data.upper(), data.replace(b"\r\n", b"\n")]
            if not any(self.blob(way) in blobs for way in ways):
                lost.append(name)
        return lost

    @staticmethod
    def blob(data: bytes) -> str:
        import hashlib

        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    # ---- the verbs ----

    def merge(self):
        """Merge; return the error, or None."""
        before, commits = self.see(), self.commits()
        try:
            done = cao.merge_worktree(self.boss, self.name)
        except cao.CaoError as error:
            refused = error
        else:
            refused = None
        if refused:
            assert "nothing was changed" in refused.what or "detached" in refused.what, refused
            assert self.see() == before, refused.what
            assert commits <= self.commits()
            return refused
        assert plain(self.top, "rev-parse", "HEAD") == done["now"]
        ignored = plain(
            self.path, "ls-files", "-o", "-i", "-z", "--exclude-standard", "--directory"
        )
        left = {os.fsencode(name).rstrip(b"/") for name in ignored.split("\0") if name}
        flags = plain(self.path, "ls-files", "-v", "-z").split("\0")
        left |= {
            os.fsencode(line[2:])
            for line in flags
            if line and (line[0] == "S" or line[0].islower())
        }
        left.add(b"lib")
        files = {n: d for n, d in self.files().items()
                 if not any(n == name or n.startswith(name + b"/") for name in left)}  # fmt: skip
        assert not self.unsaved(files, self.commits()), done
        _, tree = set(), plain(self.top, "ls-tree", "-r", "-z", "--name-only", "HEAD").split("\0")
        missing = {os.fsdecode(n) for n in files} - set(tree)
        assert not missing, missing
        return None

    def discard(self, yes=False):
        """Discard; return the error, or None."""
        parsed = type("Args", (), {"session": self.name, "yes": yes, "json": False})
        ask = type("Asked", (), {"store": self.store, "boss": self.boss, "args": parsed})
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                cao.cmd_discard(ask)
        except cao.CaoError as error:
            return error
        return None


ACTIONS = [name for name, value in vars(World).items() if callable(value) and name in """
 new new change delete rename link executable file_for_directory stage stage_and_change uncached
 commit ignored nested nested_ignored worktree_inside submodule hidden sparse bad_filter detach
 switch back stash rebase index_lock lock hook gpg nobody main_moves main_dirty main_switches
 """.split()]  # fmt: skip
HARMLESS = "new change delete rename link executable stage stage_and_change commit".split()


def check(seed: int, folder: Path) -> list[str]:
    """Try one seed and return what was done in it."""
    world = World(seed, folder)
    rng = world.random
    for _ in range(rng.choice([1, 2, 3, 5, 8])):
        action = rng.choice(ACTIONS if rng.random() < 0.6 else HARMLESS)
        world.done.append(action)
        getattr(world, action)()
    error = None
    if rng.random() < 0.8:
        error = world.merge()
        world.done.append(f"merge: {error.what if error else 'done'}")
        assert error is None or world.blocked, error
    flag = plain(world.path, "ls-files", "-v", "sub/e")
    if flag.startswith("H") or not flag or not (world.path / "sub" / "e").exists():
        world.kept.discard("look at")  # what was done later took the mark away
    files, commits = world.files(), world.commits()
    if rng.random() < 0.5:
        cao.clean(world.boss, 0.0)
        error = None if not world.path.exists() else "not cleaned"
    else:
        error = world.discard()
    world.done.append(f"removed: {error or 'yes'}")
    if error is None:
        assert not world.path.exists()
        assert not world.kept, world.kept
        assert not world.unsaved(files, commits)
        assert not plain(world.top, "for-each-ref", f"refs/heads/cao/{world.name}")
    else:
        assert world.files() == files
        assert world.commits() == commits
        if error != "not cleaned":
            for words in world.kept:
                # A lock is not lost, and git names it where nothing else is in the way.
                assert words in error.what or words in ("uncommitted", "lock"), (words, error)
        yes = world.discard(yes=True)
        assert yes is None, yes
        assert not world.path.exists()
        assert not plain(world.top, "for-each-ref", f"refs/heads/cao/{world.name}")
    return world.done


@pytest.fixture(scope="module", autouse=True)
def templates():
    """Remove the repositories that all worlds are copies of."""
    yield
    while TEMPLATES:
        shutil.rmtree(TEMPLATES.popitem()[1])


@pytest.mark.parametrize("seed", range(int(FIRST), int(END or int(FIRST) + 1)))
def test_nothing_goes_unnamed_and_what_can_be_merged_is(seed, monkeypatch, capsys):
    for key in ("GIT_CONFIG_GLOBAL", "CAO_SESSION", "CAO_CLIENT"):
        monkeypatch.delenv(key, raising=False)
    for key in ("HOME", "CAO_HOME"):
        monkeypatch.setenv(key, "")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    folder = Path(tempfile.mkdtemp(prefix="cao-", dir="/tmp"))
    try:
        check(seed, folder)
    finally:
        shutil.rmtree(folder)
