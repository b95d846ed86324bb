"""Worktrees on real git: what a worker did is shown, merged whole or not at all, discarded."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

import cao
from conftest import CAO, kill, until
from test_nothing_lost import put_loader

needs_git = pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
pytestmark = [pytest.mark.tmux, needs_git]


def git(cwd, *args, code=0) -> str:
    """Run git as a person would, and return what it printed."""
    done = subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@t", *args],
        check=False, capture_output=True, text=True, cwd=cwd,
    )  # fmt: skip
    assert done.returncode == code, (args, done.stdout, done.stderr)
    return done.stdout.strip()


def put_hook(place, name, words):
    hook = place.work / ".git" / "hooks" / name
    hook.write_text(f"#!/bin/sh\n{words}\n")
    hook.chmod(0o755)


def put_git(place, text):
    """Put a program on the PATH that stands before git."""
    program = place.folder / "bin" / "git"
    program.write_text(text.format(git=shutil.which("git")))
    program.chmod(0o755)


OLD_GIT = """#!/bin/sh
for word; do
    if [ "$word" = merge-tree ]; then
        echo 'usage: git merge-tree <base-tree> <branch1> <branch2>' >&2
        exit 129
    fi
done
exec {git} "$@"
"""


def put_old_git(place):
    """Put a git on the PATH that cannot try a merge, as before 2.38."""
    put_git(place, OLD_GIT)


def make_nested(path):
    """Make a repository with a commit, as a scaffold tool does."""
    path.mkdir(parents=True, exist_ok=True)
    git(path, "init", "-q")
    (path / "inner.txt").write_text("the one copy\n")
    git(path, "add", ".")
    git(path, "commit", "-q", "-m", "inner")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A git repository with one commit on `main`."""
    made = tmp_path_factory.mktemp("first")
    git(made, "init", "-q", "-b", "main")
    (made / "a.txt").write_text("one\ntwo\nthree\n")
    (made / ".gitignore").write_text("*.log\n")
    git(made, "add", ".")
    no_more = ("-c", "maintenance.auto=false")  # git 2.47+ goes on beside us, else
    git(made, *no_more, "commit", "-q", "-m", "first")
    return made


@pytest.fixture
def repo(place, first):
    """The place's work directory as a git repository with one commit on `main`."""
    (place.user / ".gitconfig").write_text("[user]\nname = t\nemail = t@t\n")
    shutil.copytree(first, place.work, dirs_exist_ok=True)
    return place


def worker(place, *flags, **more) -> tuple[str, Path]:
    """Return an idle worker with a worktree, and where that is."""
    argv = ("handoff", "demo", "demo: say ready", "--worktree", "--json", *flags)
    (result,) = json.loads(place.ok(*argv, **more))["results"]
    return result["session"], place.home / "worktrees" / result["session"]


@pytest.mark.tmux
def test_show_names_the_worktree_and_its_branch(repo):
    session, path = worker(repo)
    assert re.search(rf"^worktree +cao/{session}  {path}$", repo.ok("show", session), re.M)


def all_of(place, *paths) -> list:
    """Return all there is to see of repositories: refs, index, files, what is unfinished."""
    seen = []
    for path in (place.work, *paths):
        files = {
            str(file.relative_to(path)): file.read_bytes()
            for file in sorted(path.rglob("*"))
            if file.is_file() and ".git" not in file.parts
        }
        refs = git(path, "for-each-ref"), git(path, "rev-parse", "HEAD"), git(path, "stash", "list")
        seen.append((files, refs, git(path, "status", "--porcelain"), git(path, "ls-files", "-s")))
    return [*seen, git(place.work, "worktree", "list")]


def all_but_the_branch_of(place, path) -> list:
    """Return all that a refused merge leaves as it was. What was not committed may be, on the
    worker's own branch: the files of its worktree are the same."""
    (files, (refs, *head), *index), (work, *_), worktrees = all_of(place, path)
    refs = [line for line in refs.split("\n") if "refs/heads/cao/" not in line]
    return [files, refs, head, index, work, worktrees.split("\n")[0]]


def unfinished_in(place) -> list:
    """Return what git keeps of a merge, revert or cherry-pick that is not committed yet, and where
    the last merge or reset began."""
    names = ("MERGE_HEAD", "MERGE_MSG", "AUTO_MERGE", "ORIG_HEAD")
    files = [place.work / ".git" / name for name in names]
    return [file.exists() and file.read_text() for file in files]


def refused(place, *argv, code, said, fix) -> None:
    done = place.run(*argv)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    what, _, tip = done.stderr.partition("try:")
    assert said in what
    assert fix in tip


def test_a_result_names_commits_changed_and_new_files_and_what_is_uncommitted(repo):
    session, path = worker(repo)
    (path / "a.txt").write_text("one\ntwo\nthree\nfour\n")
    git(path, "commit", "-qam", "add four")
    (path / "new dir").mkdir()
    (path / "new dir" / "bär.txt").write_text("neu\n")
    (path / "noise.log").write_text("ignored")
    index = git(path, "ls-files", "-s")
    (result,) = json.loads(repo.ok("handoff", session, "demo: say done", "--json"))["results"]
    facts = result["worktree"]
    assert facts["branch"] == f"cao/{session}"
    assert [line.partition(" ")[2] for line in facts["commits"]] == ["add four"]
    assert sorted(facts["files"]) == ["a.txt", "new dir/bär.txt"]
    assert facts["diffstat"] == "2 files changed, 2 insertions(+)"
    assert facts["dirty"] is True
    assert git(path, "ls-files", "-s") == index  # looking at it changed nothing of it


def stored(top) -> set[str]:
    """Return the names of all files of a repository's git."""
    return {str(file) for file in (top / ".git").rglob("*") if file.is_file()}


@pytest.mark.parametrize("name", ["clone", 'a "b": \\c', "two\nlines"])
def test_to_look_at_what_is_not_committed_stores_nothing_in_the_repository(repo, name):
    git(repo.folder, "clone", "-q", "--shared", str(repo.work), name)  # its objects are borrowed
    top = repo.folder / name
    git(top, "config", "core.splitIndex", "true")
    session, path = worker(repo, cwd=top)
    (path / "model.bin").write_text("large\n")
    git(path, "mv", "a.txt", "b.txt")
    before = stored(top)
    (result,) = json.loads(repo.ok("handoff", session, "demo: say on", "--json"))["results"]
    assert result["worktree"]["files"] == ["b.txt", "model.bin"]
    assert result["worktree"]["diffstat"].startswith("2 files changed, 1 insertion")
    assert "+large" in repo.ok("diff", session)
    assert stored(top) == before
    assert os.listdir(repo.home / "worktrees") == [session]
    repo.ok("merge", session)
    assert (top / "model.bin").exists()


def test_clean_removes_what_a_process_that_was_killed_had_for_git(repo):
    for name, days in (("old", 2), ("new", 0)):
        folder = repo.home / "worktrees" / f".scratch-{name}"
        folder.mkdir(parents=True)
        os.utime(folder, (time.time() - days * 86400,) * 2)
    repo.ok("clean", "--older", "0s")
    assert os.listdir(repo.home / "worktrees") == [".scratch-new"]


def test_a_diff_of_which_only_the_beginning_is_read_leaves_nothing(repo):
    session, path = worker(repo)
    (path / "new.txt").write_text("new\n" * 100_000)
    diff = repo.start("diff", session)
    assert diff.stdout.read(10) == b"diff --git"
    diff.stdout.close()
    assert diff.wait(60) == 128 + signal.SIGPIPE
    assert os.listdir(repo.home / "worktrees") == [session]


def test_diff_shows_what_is_committed_and_what_is_not_and_can_be_applied(repo):
    session, path = worker(repo)
    assert repo.ok("diff", session) == ""
    (path / "a.txt").write_text("one\ntwo\nthree\nfour\n")
    git(path, "commit", "-qam", "add four")
    (path / "latin.txt").write_bytes(b"na\xefve \n \n")  # no UTF-8, a blank line at the end
    before = all_of(repo, path)
    diff = subprocess.run(
        [*CAO, "diff", session], check=True, capture_output=True, cwd=repo.work, env=repo.env
    ).stdout
    assert b"+four" in diff
    subprocess.run(["git", "apply"], check=True, input=diff, cwd=repo.work)
    assert (repo.work / "latin.txt").read_bytes() == b"na\xefve \n \n"
    assert "latin.txt" in repo.ok("diff", session, "--stat")
    assert sorted(json.loads(repo.ok("diff", session, "--json"))["files"]) == ["a.txt", "latin.txt"]
    (repo.work / "latin.txt").unlink()
    git(repo.work, "checkout", "-q", "a.txt")
    assert all_of(repo, path) == before


def test_merge_takes_all_there_is_into_the_branch_the_repository_is_on(repo):
    session, path = worker(repo)
    assert "nothing to merge" in repo.ok("merge", session)
    (path / "a.txt").write_text("one\ntwo\nthree\nfour\n")
    git(path, "commit", "-qam", "add four")
    (path / "new.txt").write_text("new\n")
    (repo.work / "b.txt").write_text("mine\n")
    git(repo.work, "add", ".")
    git(repo.work, "commit", "-q", "-m", "mine")
    (repo.work / "a draft.txt").write_text("of mine, in nobody's way")
    done = json.loads(repo.ok("merge", session, "--json"))
    assert (done["into"], done["now"]) == ("main", git(repo.work, "rev-parse", "HEAD"))
    assert (repo.work / "a.txt").read_text().endswith("four\n")
    assert (repo.work / "new.txt").read_text() == "new\n"
    assert git(repo.work, "status", "--porcelain") == '?? "a draft.txt"'
    assert git(path, "status", "--porcelain") == ""
    assert "nothing to merge" in repo.ok("merge", session)
    # The worker goes on from there, and its next work merges again.
    (path / "new.txt").write_text("newer\n")
    repo.ok("merge", session)
    assert (repo.work / "new.txt").read_text() == "newer\n"
    assert git(repo.work, "worktree", "list").count("\n") == 1  # the trial's is gone
    repo.ok("discard", session)  # all is merged: there is nothing to ask


SLOW_TO_SAY_SO = """
end = Runner._end_task
def slow(self, *outcome, **fields):
    end(self, *outcome, **fields)
    time.sleep(1)  # its result is there, its state is not yet
Runner._end_task = slow
"""


def test_a_worker_can_be_merged_as_soon_as_its_answer_is_there(repo):
    put_loader(repo, SLOW_TO_SAY_SO)
    session, path = worker(repo)
    assert "nothing to merge" in repo.ok("merge", session)
    repo.ok("discard", session)
    assert not path.exists()


HANGS = """#!/bin/sh
case "$*" in *shortstat*) exec sleep 600; esac
exec {git} "$@"
"""


def test_a_git_that_hangs_keeps_no_task_from_its_result(repo):
    put_loader(repo, "GIT_S = 2.0\n")
    put_git(repo, HANGS)  # a partial clone whose server does not answer
    argv = ("handoff", "demo", "demo: say ready", "--worktree", "--json")
    (result,) = json.loads(repo.ok(*argv))["results"]
    assert (result["outcome"], result["answer"]) == ("done", "ready")
    assert "the worktree could not be read" in result["notes"][0]
    assert "took longer than 2 s" in result["notes"][0]


LETTERS = """first=$(head -n 1 "$1"); letters=$(printf %s "$first" | wc -m)
[ $letters -le 72 ] || { echo "$letters letters, at most 72" >&2; exit 1; }"""


def test_hooks_and_filters_run_in_the_persons_locale(repo):
    (repo.work / ".gitattributes").write_text("*.fix filter=fix\n")
    git(repo.work, "add", ".")
    git(repo.work, "commit", "-qm", "attributes")
    git(repo.work, "config", "filter.fix.clean", r"sed -E 's/^(.{3}).*/\1/'")
    put_hook(repo, "commit-msg", LETTERS)
    session, path = worker(repo)
    repo.ok("handoff", session, "demo: say исправь разбор дат в отчётах и добавь тесты к нему")
    (path / "new.fix").write_text("ßüöä1")
    repo.ok("merge", session)
    assert git(repo.work, "show", "HEAD:new.fix") == "ßüö"


def test_two_merges_at_once_are_done_one_after_the_other(repo):
    merges = []
    for session, path in (worker(repo), worker(repo)):
        (path / f"{session}.txt").write_text("new\n")
        merges.append(session)
    for name in ("post-merge", "pre-merge-commit"):  # in the middle of each
        put_hook(repo, name, "sleep 0.3")
    running = [repo.start("merge", session) for session in merges]
    said = [merge.communicate(timeout=60)[1].decode() for merge in running]
    assert [merge.returncode for merge in running] == [0, 0], said
    assert all((repo.work / f"{session}.txt").exists() for session in merges)


def conflicting(repo, path):
    (path / "a.txt").write_text("theirs\n")
    (path / "new.txt").write_text("new\n")
    (repo.work / "a.txt").write_text("ours\n")
    git(repo.work, "commit", "-qam", "ours")


def dirty_in_the_way(repo, path):
    (path / "a.txt").write_text("theirs\n")
    git(path, "commit", "-qam", "theirs")
    (repo.work / "a.txt").write_text("not committed\n")


def unseen_in_the_way(repo, path):
    git(repo.work, "commit", "-q", "--allow-empty", "-m", "ours")
    git(repo.work, "update-index", "--assume-unchanged", "a.txt")
    (repo.work / "a.txt").write_text("of another length, or git goes by the second\n")
    (path / "a.txt").write_text("theirs\n")


def staged_beside_what_is_unseen(repo, path):
    unseen_in_the_way(repo, path)
    (path / "a.txt").write_text("one\ntwo\nthree\n")
    (path / "new.txt").write_text("theirs\n")
    (repo.work / "b.txt").write_text("mine\n")
    git(repo.work, "add", "b.txt")


def new_file_in_the_way(repo, path):
    (path / "new.txt").write_text("theirs\n")
    (repo.work / "new.txt").write_text("ours\n")


def staged_in_the_way(repo, path):
    dirty_in_the_way(repo, path)
    git(repo.work, "add", "a.txt")


def beside_a_revert(repo, path):
    git(repo.work, "commit", "-q", "--allow-empty", "-m", "ours")
    (repo.work / "b.txt").write_text("mine\n")
    git(repo.work, "add", "b.txt")
    git(repo.work, "commit", "-q", "-m", "mine")
    git(repo.work, "revert", "--no-commit", "HEAD")
    (path / "new.txt").write_text("theirs\n")


def detached(repo, path):
    (path / "a.txt").write_text("theirs\n")
    git(repo.work, "checkout", "-q", "--detach")


def merging(where):
    def make(repo, path):
        at = repo.work if where == "repository" else path
        git(at, "checkout", "-q", "-b", f"side-{where}")
        (at / "a.txt").write_text("side\n")
        git(at, "commit", "-qam", "side")
        git(at, "checkout", "-q", "-")
        (at / "a.txt").write_text("here\n")
        git(at, "commit", "-qam", "here")
        git(at, "merge", f"side-{where}", code=1)

    return make


def failing_hook(repo, path):
    conflicting(repo, path)
    (path / "a.txt").write_text("one\ntwo\nthree\n")
    put_hook(repo, "pre-merge-commit", "echo the hook says no >&2; exit 1")


def failing_hook_after_a_reset(repo, path):
    failing_hook(repo, path)
    git(repo.work, "update-ref", "ORIG_HEAD", "HEAD~1")


def failing_commit_hook(repo, path):
    (path / "new.txt").write_text("new\n")
    (repo.work / "b.txt").write_text("mine\n")
    git(repo.work, "add", "b.txt")
    git(repo.work, "commit", "-q", "-m", "mine")
    put_hook(repo, "pre-commit", "echo the hook says no >&2; exit 1")


def gpg_refuses(repo, path):
    (path / "new.txt").write_text("new\n")
    git(repo.work, "config", "commit.gpgSign", "true")
    git(repo.work, "config", "gpg.program", "false")


def gpg_refuses_the_merge(repo, path):
    failing_hook(repo, path)
    git(path, "add", ".")
    git(path, "commit", "-qm", "of the worker's")
    (repo.work / ".git" / "hooks" / "pre-merge-commit").unlink()
    git(repo.work, "config", "commit.gpgSign", "true")
    git(repo.work, "config", "gpg.program", "false")


def nobody(repo, path):
    (path / "new.txt").write_text("new\n")
    (repo.user / ".gitconfig").write_text("[user]\nuseConfigOnly = true\n")


def locked(where):
    def make(repo, path):
        (path / "new.txt").write_text("new\n")
        at = repo.work if where == "repository" else path
        (at / git(at, "rev-parse", "--git-path", "index.lock")).write_bytes(b"")

    return make


def diverged_and_locked(repo, path):
    (repo.work / "b.txt").write_text("mine\n")
    git(repo.work, "add", "b.txt")
    git(repo.work, "commit", "-q", "-m", "mine")
    git(repo.work, "status")  # there is nothing for git to refresh, so it locks late
    locked("repository")(repo, path)


def cannot_move(file):
    def make(repo, path):
        (path / "a.txt").write_text("theirs\n")
        (path / "new.txt").write_text("new\n")
        (repo.work / ".git" / file).write_bytes(b"")

    return make


PROTECT = """[ "$1" = prepared ] || exit 0
while read -r _ _ ref; do [ "$ref" != refs/heads/main ] || { echo main is protected >&2; exit 1; }
done"""


def protected(repo, path):
    (path / "a.txt").write_text("theirs\n")
    (path / "new.txt").write_text("new\n")
    put_hook(repo, "reference-transaction", PROTECT)


def diverged_and_protected(repo, path):
    git(repo.work, "commit", "-q", "--allow-empty", "-m", "ours")
    protected(repo, path)


def nested_repository(repo, path):
    (path / "a.txt").write_text("theirs\n")
    make_nested(path / "app" / "scaffold")


def nested_and_committed(repo, path):
    make_nested(path / "scaffold")
    git(path, "add", "scaffold")
    git(path, "commit", "-q", "-m", "a pointer only")


def nested_among_our_files(repo, path):
    (path / "sub").mkdir()
    (path / "sub" / "b.txt").write_text("b\n")
    git(path, "add", ".")
    git(path, "commit", "-q", "-m", "sub")
    make_nested(path / "sub")


def worktree_inside(repo, path):
    git(path, "worktree", "add", "-q", "--detach", "inside")


def ignored_in_the_way(repo, path):
    (repo.work / "data.log").write_text("a database\n")
    (path / "data.log").write_text("theirs\n")
    git(path, "add", "--force", "data.log")


def ignored_and_a_merge_commit(repo, path):
    ignored_in_the_way(repo, path)
    git(repo.work, "commit", "-q", "--allow-empty", "-m", "ours")


def ignored_under_a_new_file(repo, path):
    (repo.work / "new").mkdir()
    (repo.work / "new" / "data.log").write_text("a database\n")
    (path / "new").write_text("theirs\n")


def ignored_above_a_new_file(repo, path):
    (repo.work / "new.log").write_text("a database\n")
    (path / "new.log").mkdir()
    (path / "new.log" / "x").write_text("theirs\n")
    git(path, "add", "--force", "new.log")


def staged_below_a_new_file(repo, path):
    (repo.work / "new").mkdir()
    (repo.work / "new" / "mine.txt").write_text("mine\n")
    git(repo.work, "add", "new")
    (path / "new").write_text("theirs\n")


def staged_below(of_theirs):
    def make(repo, path):
        git(repo.work, "rm", "-q", "a.txt")
        (repo.work / "a.txt").mkdir()
        (repo.work / "a.txt" / "mine.txt").write_text("mine\n")
        git(repo.work, "add", "a.txt")
        git(path, "mv", "a.txt", "renamed.txt")
        if of_theirs:
            (path / "a.txt").mkdir()
            (path / "a.txt" / of_theirs).write_text("theirs\n")

    return make


def an_empty_directory_before_git_2_38(repo, path):
    put_old_git(repo)
    (repo.work / "build").mkdir()
    (repo.work / "build" / "x").write_text("x\n")
    git(repo.work, "add", "build")
    git(repo.work, "commit", "-q", "-m", "build")
    git(path, "merge", "-q", "main")
    git(path, "rm", "-q", "build/x")
    (path / "build").write_text("theirs\n")
    git(repo.work, "rm", "-q", "build/x")
    git(repo.work, "commit", "-q", "-m", "ours")
    (repo.work / "build" / "sub").mkdir(parents=True)


def elsewhere(repo, path):
    (path / "a.txt").write_text("theirs\n")
    git(path, "commit", "-qam", "theirs")
    git(path, "checkout", "-q", "--detach", "main")
    (path / "new.txt").write_text("new\n")


def stopped_in_a_rebase(repo, path):
    for text in "12":
        (path / "a.txt").write_text(text)
        git(path, "commit", "-qam", text)
    git(path, "-c", "sequence.editor=sed -i 1s/pick/edit/", "rebase", "-q", "-i", "main")


def on_our_branch(repo, path):
    git(path, "checkout", "-q", "--ignore-other-worktrees", "main")
    (path / "new.txt").write_text("new\n")


def stashing(repo, path):
    dirty_in_the_way(repo, path)
    git(repo.work, "config", "branch.main.mergeOptions", "--autostash")


@pytest.mark.parametrize(
    ("spoil", "code", "said", "fix"),
    [
        (ignored_in_the_way, 1, "overwrite ignored files", "move that away"),
        (ignored_and_a_merge_commit, 1, "overwrite ignored files", "move that away"),
        (ignored_under_a_new_file, 1, "new/data.log", "move that away"),
        (ignored_above_a_new_file, 1, "new.log", "move that away"),
        (staged_below_a_new_file, 1, "new/mine.txt", "commit it"),
        (staged_below(""), 1, "a.txt/mine.txt", "commit it"),
        (staged_below("mine.txt"), 1, "a.txt/mine.txt", "commit it"),
        (staged_below("other.txt"), 1, "a.txt/mine.txt", "commit it"),
        (an_empty_directory_before_git_2_38, 1, "build", "remove it"),
        (elsewhere, 1, "has commits that are not in", "git status"),
        (stopped_in_a_rebase, 1, "has commits that are not in", "git status"),
        (on_our_branch, 1, "has main itself checked out", "switch cao/"),
        (stashing, 1, "a.txt", "git status"),
        (conflicting, 1, "conflict in a.txt", "Merge main into your branch"),
        (dirty_in_the_way, 1, "a.txt", "git status"),
        (staged_in_the_way, 1, "a.txt", "git status"),
        (unseen_in_the_way, 1, "a.txt", "git status"),
        (staged_beside_what_is_unseen, 1, "b.txt", "commit or unstage"),
        (beside_a_revert, 1, "b.txt", "commit or unstage"),
        (new_file_in_the_way, 1, "new.txt", "git status"),
        (detached, 2, "on no branch (detached HEAD)", "switch"),
        (merging("repository"), 1, "unmerged files", "git status"),
        (merging("worktree"), 1, "unmerged files", "git status"),
        (failing_hook, 1, "the hook says no", "git status"),
        (failing_hook_after_a_reset, 1, "the hook says no", "git status"),
        (failing_commit_hook, 1, "the hook says no", "git status"),
        (gpg_refuses, 1, "gpg failed to sign", "put that right"),
        (gpg_refuses_the_merge, 1, "gpg failed to sign", "put that right"),
        (nobody, 1, "Author identity unknown", "put that right"),
        (locked("repository"), 1, "index.lock': File exists", "put that right"),
        (diverged_and_locked, 1, "index.lock': File exists", "put that right"),
        (locked("worktree"), 1, "index.lock': File exists", "put that right"),
        (cannot_move("HEAD.lock"), 1, "HEAD.lock': File exists", "put that right"),
        (cannot_move("refs/heads/main.lock"), 1, "main.lock': File exists", "put that right"),
        (protected, 1, "main is protected", "put that right"),
        (diverged_and_protected, 1, "main is protected", "put that right"),
        (nested_repository, 1, "the repository app/scaffold", "move them out of"),
        (nested_and_committed, 1, "the repository scaffold", "move them out of"),
        (nested_among_our_files, 1, "the repository sub", "move them out of"),
        (worktree_inside, 1, "the repository inside", "move them out of"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_merge_that_cannot_be_is_refused_and_leaves_the_repository_exactly_as_it_was(
    repo, spoil, code, said, fix
):
    session, path = worker(repo)
    spoil(repo, path)
    before, tip = all_but_the_branch_of(repo, path), git(path, "rev-parse", "HEAD")
    unfinished = unfinished_in(repo)
    refused(repo, "merge", session, code=code, said=said, fix=fix)
    assert all_but_the_branch_of(repo, path) == before
    assert unfinished_in(repo) == unfinished
    git(path, "merge-base", "--is-ancestor", tip, "HEAD")


def test_what_a_refused_merge_says_to_try_is_safe_in_a_shell_whatever_the_branch(repo):
    branch = "x';touch${IFS}made;'"
    git(repo.work, "branch", "-m", branch)
    session, path = worker(repo)
    conflicting(repo, path)
    fix = repo.run("merge", session).stderr.partition("try: ")[2]
    script = f'cao() {{ printf "%s\n" "$@"; }}\n{fix}'
    argv = subprocess.run(
        ["sh", "-c", script], check=True, cwd=repo.work, capture_output=True, text=True
    ).stdout
    task = f"Merge {branch} into your branch and resolve the conflicts"
    assert argv == f"handoff\n{session}\n{task}\n"


@pytest.mark.parametrize("when", ["in the worker's commit", "in our merge"])
def test_a_merge_that_the_person_has_begun_meanwhile_is_not_undone(repo, when):
    session, path = worker(repo)
    git(repo.work, "checkout", "-q", "-b", "side")
    (repo.work / "a.txt").write_text("side\n")
    git(repo.work, "commit", "-qam", "side")
    git(repo.work, "checkout", "-q", "main")
    (repo.work / "a.txt").write_text("main\n")
    git(repo.work, "commit", "-qam", "main")
    git(path, "merge", "-q", "main")
    (path / "new.txt").write_text("new\n")
    real, said, fix = shutil.which("git"), "nothing was changed there", "git status"
    persons = (
        f"(cd '{repo.work}'; unset $({real} rev-parse --local-env-vars)\n"
        f"{real} merge -q side; echo resolved > a.txt; {real} add a.txt) >&2"
    )
    put_hook(repo, "pre-commit", persons)
    if when == "in our merge":
        put_hook(repo, "pre-commit", "")
        program = repo.folder / "bin" / "git"
        program.write_text(
            f'#!/bin/sh\ncase "$*" in *"merge -q"*) {persons};; esac\nexec {real} "$@"\n'
        )
        program.chmod(0o755)
        said, fix = f"{repo.work} is not as it was before", f"git -C {repo.work} status"
    refused(repo, "merge", session, code=1, said=said, fix=fix)
    assert (repo.work / "a.txt").read_text() == "resolved\n"
    assert git(repo.work, "rev-parse", "MERGE_HEAD") == git(repo.work, "rev-parse", "side")


@pytest.mark.parametrize("old_git", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        "echo mine > new.txt",
        "echo mine > mine; git add mine",
        "echo mine > new.txt; git add new.txt",
        "echo mine > a.txt; git add a.txt",
    ],
)
def test_what_changes_in_the_repository_while_a_hook_runs_is_kept(repo, change, old_git):
    if old_git:
        put_old_git(repo)
    session, path = worker(repo)
    failing_hook(repo, path)
    put_hook(repo, "pre-merge-commit", f"{change}; echo the hook says no >&2; exit 1")
    said, fix = f"{repo.work} is not as it was before", f"git -C {repo.work} status"
    refused(repo, "merge", session, code=1, said=said, fix=fix)
    assert (repo.work / change.split()[3].rstrip(";")).read_text() == "mine\n"


@pytest.mark.parametrize("diverged", [False, True])
def test_a_merge_that_stops_in_the_middle_of_its_checkout_says_so(repo, diverged):
    session, path = worker(repo)
    (path / "a.txt").write_text("theirs\n")
    (path / "b.txt").write_text("new\n")
    git(path, "add", ".")
    git(path, "commit", "-q", "-m", "theirs")
    for key, value in (("smudge", "false"), ("clean", "cat"), ("required", "true")):
        git(repo.work, "config", f"filter.bad.{key}", value)
    (repo.work / ".git" / "info" / "attributes").write_text("b.txt filter=bad\n")
    if diverged:
        git(repo.work, "commit", "-q", "--allow-empty", "-m", "ours")
    said, fix = f"{repo.work} is not as it was before", f"git -C {repo.work} status"
    refused(repo, "merge", session, code=1, said=said, fix=fix)
    assert (repo.work / "a.txt").read_text() == "theirs\n"


@pytest.mark.parametrize("why", ["commits elsewhere", "a conflict"])
def test_what_was_not_committed_is_still_there_after_a_refused_merge_and_a_switch(repo, why):
    session, path = worker(repo)
    if why == "a conflict":
        git(path, "checkout", "-q", "--detach")
        conflicting(repo, path)
    else:
        elsewhere(repo, path)
    refused(repo, "merge", session, code=1, said="nothing was changed there", fix="")
    git(path, "switch", "-q", f"cao/{session}")
    assert (path / "new.txt").read_text() == "new\n"


SLOW_TO_ABORT = """#!/bin/sh
case "$*" in *--abort*) : > {folder}/aborting; read -r _ < {folder}/abort;; esac
exec {git} "$@"
"""


def start_slow_merge(repo, hook, words=""):
    """Return a `cao merge` in the middle of a hook, the worktree, and all there was before."""
    git_program = repo.folder / "bin" / "git"
    git_program.write_text(SLOW_TO_ABORT.format(folder=repo.folder, git=shutil.which("git")))
    git_program.chmod(0o755)
    os.mkfifo(repo.folder / "abort")
    session, path = worker(repo)
    failing_hook(repo, path)  # both sides have commits
    put_hook(repo, "pre-merge-commit", "")
    before = all_but_the_branch_of(repo, path)
    put_hook(repo, hook, f"{words}\n: > {repo.folder}/begun\nsleep 60")
    merge = repo.start("merge", session)
    until((repo.folder / "begun").exists)
    return merge, path, before


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGINT, ""),
        (signal.SIGINT, "trap '' INT TERM HUP"),
        (signal.SIGTERM, ""),
        (signal.SIGHUP, ""),
    ],
)
def test_a_merge_that_is_interrupted_in_a_hook_changes_nothing(repo, number, words):
    merge, path, before = start_slow_merge(repo, "pre-merge-commit", words)
    merge.send_signal(number)
    until((repo.folder / "aborting").exists)
    merge.send_signal(number)  # once more, in the middle of what is done about the first
    (repo.folder / "abort").write_text("now\n")
    said = merge.communicate(timeout=60)[1].decode()
    assert (merge.returncode, "nothing was changed there" in said) == (130, True), said
    assert all_but_the_branch_of(repo, path) == before
    assert not (repo.work / ".git" / "MERGE_HEAD").exists()


def test_a_merge_that_is_interrupted_when_it_is_done_says_that_it_is(repo):
    merge, _, _ = start_slow_merge(repo, "post-merge")
    merge.send_signal(signal.SIGINT)
    done, said = merge.communicate(timeout=60)
    assert (merge.returncode, b"main now has" in done) == (0, True), said
    assert (repo.work / "new.txt").exists()


def test_a_merge_that_is_interrupted_in_its_checkout_is_done_in_order(repo):
    session, path = worker(repo)
    (path / "new.txt").write_text("new\n")
    os.mkfifo(repo.folder / "go")
    smudge = f": > {repo.folder}/begun; read -r _ < {repo.folder}/go; cat"
    git(repo.work, "config", "filter.slow.smudge", smudge)
    git(repo.work, "config", "filter.slow.clean", "cat")
    git(repo.work, "config", "filter.slow.required", "true")
    (repo.work / ".git" / "info" / "attributes").write_text("new.txt filter=slow\n")
    merge = repo.start("merge", session)
    until((repo.folder / "begun").exists)
    merge.send_signal(signal.SIGINT)
    (repo.folder / "go").write_text("now\n")
    done, said = merge.communicate(timeout=60)
    assert (merge.returncode, b"main now has" in done) == (0, True), said
    assert (repo.work / "new.txt").read_text() == "new\n"


def test_a_merge_that_is_interrupted_in_the_hook_of_its_commit_ends_that(repo):
    session, path = worker(repo)
    (path / "new.txt").write_text("new\n")
    begun, ended = repo.folder / "begun", repo.folder / "ended"
    put_hook(repo, "pre-commit", f"trap ': > {ended}; exit 1' TERM; : > {begun}; sleep 60 & wait")
    merge = repo.start("merge", session)
    until(begun.exists)
    merge.send_signal(signal.SIGINT)
    said = merge.communicate(timeout=60)[1].decode()
    assert (merge.returncode, "nothing was changed there" in said) == (130, True), said
    assert ended.exists()
    put_hook(repo, "pre-commit", "")
    repo.ok("merge", session)  # no lock is left
    assert (repo.work / "new.txt").exists()


def test_no_limit_ends_a_git_that_has_locked_the_index_of_a_person(repo, monkeypatch):
    session, path = worker(repo)
    (path / "new.txt").write_text("new\n")
    git(repo.work, "config", "filter.slow.clean", "sleep 4; cat")
    (repo.work / ".git" / "info" / "attributes").write_text("a.txt filter=slow\n")
    os.utime(repo.work / "a.txt", (1, 1))  # git has to read it anew
    run = cao.run

    def hurried(argv, timeout_s, **more):
        return run(argv, timeout_s and min(timeout_s, 3), **more)

    monkeypatch.setattr(cao, "run", hurried)
    repo.ok("merge", session)
    assert (repo.work / "new.txt").exists()
    assert not (repo.work / ".git" / "index.lock").exists()


def test_a_fix_can_be_pasted_where_a_path_has_a_blank(repo):
    top = repo.folder / "a b"
    git(repo.folder, "clone", "-q", str(repo.work), "a b")
    session, path = worker(repo, cwd=top)
    (path / "a.txt").write_text("theirs\n")
    (top / "a.txt").write_text("ours\n")
    refused(repo, "merge", session, code=1, said="a.txt", fix=f"(cd '{top}' && git status)")
    git(top, "checkout", "-q", "--detach")
    refused(repo, "merge", session, code=2, said="on no branch", fix=f"git -C '{top}' switch")


def test_histories_that_have_nothing_in_common_are_said_in_clear_words(repo):
    session, path = worker(repo)
    (path / "new.txt").write_text("new\n")
    git(repo.work, "checkout", "-q", "--orphan", "other")
    git(repo.work, "commit", "-qm", "other")
    for verb in ("diff", "merge"):
        refused(repo, verb, session, code=1, said="no commit in common", fix="switch one of them")
    assert (path / "new.txt").exists()


def test_a_worker_at_work_is_neither_merged_nor_discarded(repo):
    task = repo.ok("assign", "demo", "demo: sleep 30", "--worktree").strip()
    session = task.partition(".")[0]
    repo.until_state(session, "working")
    for verb in ("merge", "discard"):
        refused(repo, verb, session, code=2, said=f"at work on {task}", fix=f"cao stop {session}")
    assert repo.ok("diff", session) == ""


def test_an_agent_merges_and_discards_the_worktrees_of_its_own_workers_only(repo):
    session, path = worker(repo)
    other, _ = worker(repo)
    (path / "new.txt").write_text("work\n")
    before = all_of(repo, path)
    for argv in (("merge", session), ("discard", session, "--yes")):
        done = repo.run(*argv, CAO_SESSION=other)
        assert (done.returncode, "is not your worker" in done.stderr) == (2, True), done.stderr
    assert all_of(repo, path) == before
    mine, path = worker(repo, CAO_SESSION=other)
    (path / "new.txt").write_text("mine\n")
    repo.ok("merge", mine, CAO_SESSION=other)
    assert (repo.work / "new.txt").read_text() == "mine\n"


def test_discard_refuses_where_there_is_work_and_ends_the_session(repo):
    session, path = worker(repo)
    (path / "new.txt").write_text("work\n")
    tip = f"cao diff {session}"
    refused(repo, "discard", session, code=2, said="holds uncommitted changes", fix=tip)
    git(path, "add", ".")
    git(path, "commit", "-q", "-m", "work")
    refused(repo, "discard", session, code=2, said="holds 1 commit, which", fix="--yes")
    git(path, "checkout", "-q", "main", "--detach")  # the branch still has it
    refused(repo, "discard", session, code=2, said="holds 1 commit, which", fix="--yes")
    repo.ok("discard", session, "--yes")
    until(repo.live, [])
    assert not path.exists()
    assert git(repo.work, "branch", "--list", "cao/*") == ""
    for command in ("merge", "diff"):
        refused(repo, command, session, code=3, said="was removed", fix=f"git log cao/{session}")
    refused(repo, "handoff", session, "more", code=3, said="ended", fix="demo")
    repo.ok("clean", "--older", "0s")
    assert not (repo.home / "sessions" / session).exists()


@pytest.mark.tmux
def test_after_a_repository_was_moved_a_link_in_its_place_makes_its_worktrees_whole(repo):
    session, path = worker(repo)
    (path / "new.txt").write_text("work\n")
    place, moved = repo.work, repo.folder / "moved"
    place.rename(moved)
    repo.work = moved
    tip = f"ln -s NEW_PLACE {place}"
    for command in "diff", "merge":
        refused(repo, command, session, code=1, said=f"{place}, from", fix=tip)
    refused(repo, "discard", session, code=2, said="is gone", fix=f"cao diff {session}")
    place.symlink_to(moved)
    assert "+work" in repo.ok("diff", session)
    repo.ok("merge", session)
    assert (moved / "new.txt").read_text() == "work\n"
    repo.ok("discard", session)
    assert not path.exists()


@pytest.mark.parametrize("commit", ["", "git add new.txt && git commit -qm autosave"])
def test_what_a_worker_saves_as_it_ends_is_not_discarded_unasked(repo, commit):
    program = repo.folder / "bin" / "saver"
    program.write_text(
        "#!/bin/sh\nwhile printf 'ready> ' && read -r line; do\n"
        f'[ "$line" != /quit ] || {{ echo new > new.txt; {commit or "true"}; exit; }}\ndone\n'
    )
    program.chmod(0o755)
    command = "provider: command\ncommand: [saver]\nready: '^ready> $'\nexit: /quit"
    repo.profile("saver", f"---\n{command}\nkeep: true\n---\n")
    argv = ("handoff", "saver", "hello", "--worktree", "--json")
    (result,) = json.loads(repo.ok(*argv))["results"]
    session = result["session"]
    said = f"{session} was ended, and now holds {'1 commit' if commit else 'uncommitted changes'}"
    refused(repo, "discard", session, code=2, said=said, fix="--yes")
    assert (repo.home / "worktrees" / session / "new.txt").exists()
    repo.ok("discard", session, "--yes")


def test_a_worktree_in_which_another_is_at_work_is_neither_merged_nor_discarded(repo):
    session, path = worker(repo)
    (path / "sub").mkdir()
    task = repo.ok("assign", "demo", "demo: sleep 30", "--cwd", str(path / "sub")).strip()
    other = task.partition(".")[0]
    repo.until_state(other, "working")
    for argv in (("merge", session), ("discard", session), ("discard", session, "--yes")):
        refused(repo, *argv, code=2, said=f"at work on {task} in {path}", fix=f"stop {other}")
    repo.ok("stop", session)
    repo.ok("clean", "--older", "0s")
    assert (path / "sub").exists()


def with_worktrees_behind_a_link(repo):
    (repo.folder / "big").mkdir()
    repo.home.mkdir(0o700, exist_ok=True)
    (repo.home / "worktrees").symlink_to(repo.folder / "big")
    return repo.work


@pytest.mark.parametrize("behind_a_link", [False, True])
def test_a_worktree_in_which_another_waits_is_merged_and_not_discarded(repo, behind_a_link):
    if behind_a_link:
        with_worktrees_behind_a_link(repo)
    session, path = worker(repo)
    other, _ = worker(repo, CAO_SESSION=session, cwd=path)  # its own: it ends with it
    (path / "new.txt").write_text("new\n")
    repo.ok("merge", session)
    repo.ok("handoff", "demo", "demo: say on", "--cwd", str(path.resolve()))
    (third,) = {*repo.live()} - {session, other}
    refused(repo, "discard", session, code=2, said=f"{third} is in the", fix=f"cao stop {third}")
    repo.ok("stop", third)
    repo.ok("discard", session)
    assert (repo.live(), path.exists()) == ([], False)


def test_a_worker_at_work_on_a_message_is_neither_merged_nor_discarded(repo):
    session, path = worker(repo)
    repo.ok("send", session, "demo: sleep 60")
    repo.until_state(session, "working")
    for verb in ("merge", "discard"):
        refused(repo, verb, session, code=2, said="is at work on a message", fix="cao stop")
    assert path.exists()


def test_no_commit_yet_no_repository_and_no_worktree_are_said_in_clear_words(place):
    plain = place.ok("assign", "demo", "hello").strip().partition(".")[0]
    for verb in ("diff", "merge", "discard"):
        refused(place, verb, plain, code=2, said="has no worktree", fix="--worktree")
        refused(place, verb, "nobody-2222", code=3, said="no session", fix="cao ls")
    new = ("handoff", "demo", "x", "--worktree")
    refused(place, *new, code=2, said="not a git repository", fix="leave worktree out")
    git(place.work, "init", "-q")
    refused(place, *new, code=2, said="does not have any commits yet", fix="with a commit")
    assert place.live() == [plain]


@pytest.mark.parametrize("where", ["the worktree", "the repository"])
def test_a_branch_without_a_commit_is_said_in_clear_words(repo, where):
    session, path = worker(repo)
    git(path if where == "the worktree" else repo.work, "checkout", "-q", "--orphan", "new")
    for verb in ("diff", "merge"):
        refused(repo, verb, session, code=1, said="does not have any commits yet", fix="git status")


def test_a_worktree_begins_where_a_detached_head_is_and_in_the_same_subdirectory(repo):
    (repo.work / "sub").mkdir()
    (repo.work / "sub" / "b.txt").write_text("b\n")
    git(repo.work, "add", ".")
    git(repo.work, "commit", "-q", "-m", "sub")
    git(repo.work, "checkout", "-q", "--detach")
    session, path = worker(repo, cwd=repo.work / "sub")
    assert repo.store.load(session).cwd == str(path / "sub")
    (path / "sub" / "b.txt").write_text("better\n")
    git(repo.work, "switch", "-q", "main")
    repo.ok("merge", session)
    assert (repo.work / "sub" / "b.txt").read_text() == "better\n"


def test_submodules_are_empty_in_a_worktree_the_worker_is_told_and_it_can_be_removed(repo):
    other = repo.folder / "other"
    other.mkdir()
    git(other, "init", "-q")
    (other / "s.txt").write_text("s\n")
    git(other, "add", ".")
    git(other, "commit", "-q", "-m", "s")
    allow = ("-c", "protocol.file.allow=always")
    git(repo.work, *allow, "submodule", "-q", "add", str(other), "lib")
    git(repo.work, "commit", "-q", "-m", "lib")
    session, path = worker(repo)
    assert list((path / "lib").iterdir()) == []
    system = (repo.home / "sessions" / session / "launch" / "system.md").read_text()
    assert f"branch cao/{session}" in system
    assert "git submodule update --init" in system
    git(path, *allow, "submodule", "-q", "update", "--init")
    (path / "a.txt").write_text("changed\n")
    repo.ok("merge", session)
    assert (repo.work / "lib" / "s.txt").read_text() == "s\n"
    kept_unless_yes(repo, session, path, "the repository lib")  # git, too, wants --force here


def test_git_hooks_that_call_cao_do_not_lead_it_astray(repo):
    astray = {"GIT_DIR": "/nonexistent/.git", "GIT_INDEX_FILE": "/nonexistent/index"}
    session, path = worker(repo, **astray)
    (path / "new.txt").write_text("new\n")
    repo.ok("merge", session, **astray)
    assert (repo.work / "new.txt").exists()


def test_a_session_that_could_not_be_written_leaves_no_worktree(repo, monkeypatch):
    repo.enter(monkeypatch)
    monkeypatch.chdir(repo.work)
    before = all_of(repo)
    cao.make_client(repo.store, "person")

    def full(*_args):
        raise cao.CaoError("session.json could not be written: No space left on device")

    monkeypatch.setattr(cao.Store, "create", full)
    boss = cao.Orchestrator(repo.store, cao.Caller("person", person=True))
    with pytest.raises(cao.CaoError, match="No space left"):
        boss.assign("demo", "x", cao.TaskOptions(worktree=True))
    assert all_of(repo) == before
    assert (repo.live(), repo.store.all_sessions()) == ([], ["person"])


def test_a_worktree_that_cannot_be_read_is_said_and_ends_no_task(repo):
    session, _ = worker(repo)
    shutil.rmtree(repo.work / ".git")
    (result,) = json.loads(repo.ok("handoff", session, "demo: say on", "--json"))["results"]
    assert (result["answer"], result["worktree"]) == ("on", None)
    assert "could not be read" in result["notes"][0]
    refused(repo, "discard", session, code=2, said="cannot be read", fix="--yes")


# ---- what would be lost is named ----


def kept_unless_yes(repo, session, path, said):
    """Show that neither discard nor clean removes a worktree, and that --yes does."""
    tip = "--yes"
    refused(repo, "discard", session, code=2, said=said, fix=tip)
    repo.ok("stop", session)
    repo.ok("clean", "--older", "0s")
    assert path.exists()
    assert (repo.home / "sessions" / session).exists()
    repo.ok("discard", session, "--yes")
    assert not path.exists()
    assert git(repo.work, "branch", "--list", f"cao/{session}") == ""


def test_what_git_cannot_read_is_discarded_all_the_same(repo):
    session, path = worker(repo)
    (path / "a.txt").write_text("changed\n")
    os.mkfifo(path / ".gitattributes")  # git opens it, and waits
    repo.ok("discard", session, "--yes", timeout_s=30)
    assert not path.exists()


def unlisted(repo, path):
    git(path, "config", "status.showUntrackedFiles", "no")
    (path / "new.txt").write_text("new\n")


def of_the_same_letters(repo, path):
    git(path, "config", "core.ignoreCase", "true")  # the repository was made on macOS
    (path / "A.txt").write_text("new\n")


def believed_unchanged(flag):
    def make(repo, path):
        git(path, "update-index", flag, "a.txt")
        (path / "a.txt").write_text("changed\n")

    return make


def ignored(repo, path):
    for number in range(7):
        (path / f"{number}.log").write_text("a database\n")


def with_a_line_break_in_its_name(_repo, path):
    (path / "a\n     do: rm\n.log").write_text("a database\n")


def in_the_middle_of_a_rebase(repo, path):
    (path / "a.txt").write_text("theirs\n")
    git(path, "commit", "-qam", "theirs")
    editor = "sequence.editor=sed -i s/pick/edit/"
    git(path, "-c", editor, "rebase", "-q", "-i", "--autostash", "HEAD~1")


def in_the_middle_of(command):
    """Return what leaves a worktree in the middle of three commits, all that is done committed."""

    def make(repo, path):
        git(path, "switch", "-q", "-c", "theirs")
        for number in range(3):
            (path / "a.txt").write_text(f"theirs {number}\n")
            git(path, "commit", "-qam", f"theirs {number}")
        patches = git(path, "format-patch", "-3", "-o", repo.folder / "patches").split()
        git(path, "switch", "-q", "-")
        (path / "a.txt").write_text("ours\n")
        git(path, "commit", "-qam", "ours")
        commits = patches if command == "am" else ["theirs~2", "theirs~1", "theirs"]
        git(path, command, *commits, code=128 if command == "am" else 1)
        if command == "cherry-pick":
            (path / "a.txt").write_text("both\n")
            git(path, "commit", "-qam", "both")

    make.__name__ = command
    return make


def with_another_name(repo, path):
    git(path, "commit", "-q", "--allow-empty", "-m", "theirs")
    git(path, "symbolic-ref", "refs/heads/alias", f"refs/heads/cao/{path.name}")


def with_a_bare_dot_git(repo, path):
    make_nested(path / "scaffold")
    (path / "scaffold" / ".git" / "HEAD").unlink()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (unlisted, "holds uncommitted changes"),
        (of_the_same_letters, "holds uncommitted changes"),
        (nested_repository, "the repository app/scaffold"),
        (nested_and_committed, "the repository scaffold"),
        (nested_among_our_files, "the repository sub"),
        (worktree_inside, "the repository inside"),
        (with_a_bare_dot_git, "the repository scaffold"),
        (believed_unchanged("--skip-worktree"), "git does not look at (a.txt)"),
        (believed_unchanged("--assume-unchanged"), "git does not look at (a.txt)"),
        (ignored, "7 files that git does not look at (0.log, 1.log, 2.log, 3.log, 4.log, ...)"),
        (with_a_line_break_in_its_name, r'git does not look at ("a\n     do: rm\n.log")'),
        (in_the_middle_of_a_rebase, "an unfinished rebase"),
        (in_the_middle_of("am"), "an unfinished rebase, or git am"),
        (in_the_middle_of("cherry-pick"), "an unfinished series of git cherry-pick"),
        (with_another_name, "holds 1 commit, which"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_would_be_lost_is_named_and_stays_unless_yes_is_said(repo, make, said):
    session, path = worker(repo)
    make(repo, path)
    kept_unless_yes(repo, session, path, said)


@pytest.mark.parametrize("whose", ["the worker's", "the person's"])
@pytest.mark.parametrize("command", ["am", "cherry-pick"])
def test_no_half_of_a_series_of_commits_is_merged(repo, command, whose):
    session, path = worker(repo)
    git(path, "commit", "-q", "--allow-empty", "-m", "the worker's")
    in_the_middle_of(command)(repo, path if whose == "the worker's" else repo.work)
    before = all_of(repo, path)
    refused(repo, "merge", session, code=1, said="holds an unfinished", fix="status")
    assert all_of(repo, path) == before


def test_ignored_files_stay_where_they_are_when_a_worktree_is_merged(repo):
    session, path = worker(repo)
    (path / "data.log").write_text("a database\n")
    (path / "new.txt").write_text("new\n")
    repo.ok("merge", session)
    assert (path / "data.log").exists()
    kept_unless_yes(repo, session, path, "holds 1 file that git does not look at (data.log)")


def test_the_rest_is_shown_where_a_repository_has_no_commit_and_a_merge_names_it(repo):
    session, path = worker(repo)
    git(path, "init", "-q", "empty")
    (path / "empty" / "inner.txt").write_text("inner\n")
    (path / "new.txt").write_text("new\n")
    (result,) = json.loads(repo.ok("handoff", session, "demo: say on", "--json"))["results"]
    assert sorted(result["worktree"]["files"]) == ["empty/", "new.txt"]
    shown = repo.run("diff", session)
    assert ("+new" in shown.stdout, "empty/" in shown.stderr) == (True, True)
    before = all_of(repo, path)
    refused(repo, "merge", session, code=1, said="the repository empty", fix="move them out of")
    assert all_of(repo, path) == before
    kept_unless_yes(repo, session, path, "the repository empty")


def with_submodule(repo):
    """Return an idle worker with a worktree in which a submodule is checked out."""
    other = repo.folder / "other"
    other.mkdir()
    git(other, "init", "-q", "-b", "main")
    (other / "s.txt").write_text("s\n")
    (other / ".gitignore").write_text("*.log\n")
    git(other, "add", ".")
    git(other, "commit", "-q", "-m", "s")
    return with_library(repo, other)


def with_library(repo, other):
    """Return such a worker, for a repository that is to be the submodule `lib`."""
    allow = ("-c", "protocol.file.allow=always")
    git(repo.work, *allow, "submodule", "-q", "add", str(other), "lib")
    git(repo.work, "commit", "-q", "-m", "lib")
    session, path = worker(repo)
    git(path, *allow, "submodule", "-q", "update", "--init")
    return session, path


def test_commits_inside_a_submodule_are_not_merged_and_named(repo):
    session, path = with_submodule(repo)
    (path / "lib" / "s.txt").write_text("better\n")
    git(path / "lib", "commit", "-qam", "better")
    git(path, "commit", "-qam", "a pointer")
    words = "the repository lib"
    before = all_of(repo, path)
    refused(repo, "merge", session, code=1, said=words, fix="push")
    assert all_of(repo, path) == before
    kept_unless_yes(repo, session, path, words)


@pytest.mark.parametrize("published", [False, True])
def test_a_submodules_commit_is_merged_where_it_is_not_checked_out_if_others_have_it(
    repo, published
):
    session, path = with_submodule(repo)
    git(path / "lib", "commit", "-q", "--allow-empty", "-m", "better")
    git(path, "commit", "-qam", "a pointer")
    git(path, "submodule", "-q", "deinit", "--force", "lib")
    if published:
        git(repo.work, "branch", "theirs", f"cao/{session}")
        repo.ok("merge", session)
    else:
        before = all_of(repo, path)
        fix = "submodule update --init"
        refused(repo, "merge", session, code=1, said="lib, a submodule, is at a commit", fix=fix)
        assert all_of(repo, path) == before


def test_a_submodule_that_gitignore_names_hinders_no_merge(repo):
    session, path = with_submodule(repo)
    (path / ".gitignore").write_text("lib/\n")
    repo.ok("merge", session)
    assert (repo.work / ".gitignore").read_text() == "lib/\n"


def test_a_branch_with_a_wide_blank_in_its_name_hinders_no_merge(repo):
    session, path = with_submodule(repo)
    git(path, "submodule", "-q", "deinit", "--force", "lib")
    git(repo.work, "branch", "one\u3000two")
    (path / "new.txt").write_text("new\n")
    repo.ok("merge", session)
    assert (repo.work / "new.txt").exists()


def test_files_in_a_submodule_that_is_not_checked_out_are_named(repo):
    session, path = with_submodule(repo)
    git(path, "submodule", "-q", "deinit", "lib")
    shutil.rmtree(Path(git(path, "rev-parse", "--git-dir"), "modules"))
    (path / "lib" / "new.txt").write_text("git reports nothing of it\n")
    before = all_of(repo, path)
    refused(repo, "merge", session, code=1, said="the repository lib", fix="move them out of")
    assert all_of(repo, path) == before
    kept_unless_yes(repo, session, path, "the repository lib")


def test_a_submodule_that_is_checked_out_is_not_replaced_by_a_link(repo):
    session, path = with_submodule(repo)
    (repo.work / "lib" / "s.txt").write_text("not committed\n")
    shutil.rmtree(path / "lib")
    (path / "lib").symlink_to(repo.work / "lib")  # a worker that needs what is in it
    git(path, "add", "lib")
    git(path, "commit", "-qm", "a link")
    before = all_of(repo)
    refused(repo, "merge", session, code=1, said="submodules", fix="move that away")
    assert all_of(repo) == before


@pytest.mark.parametrize("file", ["s.txt", "new", "x.log"])
def test_what_is_only_in_a_submodules_directory_is_named(repo, file):
    session, path = with_submodule(repo)
    (path / "lib" / file).write_text("changed\n")
    (path / "new.txt").write_text("new\n")
    if file == "x.log":  # ignored there
        repo.ok("merge", session)
        assert (repo.work / "new.txt").exists()
    else:
        before = all_of(repo, path)
        refused(repo, "merge", session, code=1, said="the repository lib", fix="push them")
        assert all_of(repo, path) == before
    kept_unless_yes(repo, session, path, "the repository lib")


def pull_library(at) -> str:
    """Move the submodule of a checkout to what its remote has, and return that commit."""
    git(at / "lib", "-c", "protocol.file.allow=always", "pull", "-q", "origin", "main")
    return git(at / "lib", "rev-parse", "HEAD")


@pytest.mark.parametrize("ignore", ["", "all"])
def test_a_submodule_moved_to_what_its_remote_has_is_shown_and_merged(repo, ignore):
    session, path = with_submodule(repo)
    git(repo.folder / "other", "commit", "-q", "--allow-empty", "-m", "more")
    tip = pull_library(path)
    if ignore:
        git(repo.work, "config", "submodule.lib.ignore", ignore)
    assert f"+Subproject commit {tip}" in repo.ok("diff", session)
    assert json.loads(repo.ok("diff", session, "--json"))["files"] == ["lib"]
    repo.ok("merge", session)
    assert tip in git(repo.work, "ls-tree", "HEAD", "lib")
    kept_unless_yes(repo, session, path, "the repository lib")


def test_a_submodule_that_the_person_has_staged_gets_into_no_merge(repo):
    session, path = with_submodule(repo)
    git(repo.folder / "other", "commit", "-q", "--allow-empty", "-m", "more")
    git(repo.work, "config", "submodule.lib.ignore", "all")
    pull_library(repo.work)
    git(repo.work, "update-index", "lib")
    (path / "new.txt").write_text("new\n")
    ours = git(repo.work, "commit-tree", "HEAD^{tree}", "-p", "HEAD", "-m", "ours")
    git(repo.work, "update-ref", "HEAD", ours)
    said = "while changes are staged: lib"
    refused(repo, "merge", session, code=1, said=said, fix="commit or unstage")


def test_what_is_left_of_a_submodule_that_is_not_checked_out_any_more_is_named(repo):
    session, path = with_submodule(repo)
    git(path / "lib", "commit", "-q", "--allow-empty", "-m", "the one copy")
    git(path, "submodule", "-q", "deinit", "--force", "lib")
    kept_unless_yes(repo, session, path, "repositories of submodules")


@pytest.mark.parametrize("index", ["--no-sparse-index", "--sparse-index"])
def test_what_a_worker_put_beside_a_sparse_checkout_is_shown_and_merged(repo, index):
    for name in ("in", "out"):
        (repo.work / name).mkdir()
        (repo.work / name / "a.txt").write_text("one\n")
    git(repo.work, "add", ".")
    git(repo.work, "commit", "-qm", "two directories")
    git(repo.work, "sparse-checkout", "set", "--cone", index, "in")
    session, path = worker(repo)
    assert not (path / "out").exists()
    (path / "out").mkdir()
    (path / "out" / "new.txt").write_text("new\n")
    (path / "out" / "a.txt").write_text("changed\n")  # which git has not put there
    facts = json.loads(repo.ok("diff", session, "--json"))
    assert facts["files"] == ["out/a.txt", "out/new.txt"]
    assert facts["diffstat"] == "2 files changed, 2 insertions(+), 1 deletion(-)"
    assert "+changed" in repo.ok("diff", session)
    repo.ok("merge", session)
    assert git(repo.work, "show", "HEAD:out/a.txt") == "changed"
    tree = git(repo.work, "ls-tree", "-r", "--name-only", "HEAD")
    assert tree.split() == [".gitignore", "a.txt", "in/a.txt", "out/a.txt", "out/new.txt"]


@pytest.mark.parametrize("where", ["another branch", "a remote", "an older commit"])
def test_what_is_merged_anywhere_is_discarded_unasked(repo, where):
    session, path = worker(repo)
    (path / "new.txt").write_text("new\n")
    git(path, "add", ".")
    git(path, "commit", "-qm", "new")
    if where == "a remote":
        git(repo.folder, "init", "-q", "--bare", "remote")
        git(path, "remote", "add", "origin", str(repo.folder / "remote"))
        git(path, "push", "-q", "origin", "HEAD")
    elif where == "another branch":
        git(path, "branch", "aside")
    else:
        repo.ok("merge", session)
        git(repo.work, "checkout", "-q", "-b", "older", "HEAD~1")
    repo.ok("discard", session)
    assert not path.exists()
    assert git(repo.work, "branch", "--list", "cao/*") == ""


def test_commits_on_no_branch_are_named_where_the_worktrees_files_are_gone(repo):
    session, path = worker(repo)
    git(path, "checkout", "-q", "--detach")
    git(path, "commit", "-q", "--allow-empty", "-m", "theirs")
    tip = git(path, "rev-parse", "HEAD")
    shutil.rmtree(path)
    refused(repo, "discard", session, code=2, said="holds 1 commit, which", fix="--yes")
    assert git(repo.work, "rev-parse", f"worktrees/{session}/HEAD") == tip
    repo.ok("discard", session, "--yes")
    assert session not in git(repo.work, "worktree", "list")


@pytest.mark.parametrize(
    ("key", "value"), [("branch.main.mergeOptions", "-s ours"), ("pull.twohead", "ours")]
)
def test_a_strategy_that_the_user_has_set_does_not_merge_nothing(repo, key, value):
    session, path = worker(repo)
    (path / "new.txt").write_text("new\n")
    git(repo.work, "commit", "-q", "--allow-empty", "-m", "ours")
    git(repo.work, "config", key, value)
    repo.ok("merge", session)
    assert (repo.work / "new.txt").exists()


def test_a_branch_with_any_name_can_be_merged_into(repo):
    git(repo.work, "checkout", "-q", "-b", "my_fix=é")
    session, path = worker(repo)
    (path / "new.txt").write_text("new\n")
    assert "my_fix=é now has" in repo.ok("merge", session)


def test_what_a_hook_formats_and_does_not_add_is_said_to_be_left(repo):
    session, path = worker(repo)
    (path / "new.txt").write_text("new\n")
    put_hook(repo, "pre-commit", "echo formatted > new.txt")
    assert f"not committed in {path}" in repo.ok("merge", session)
    assert (repo.work / "new.txt").read_text() == "new\n"


def test_a_branch_that_was_left_while_a_hook_ran_is_not_merged_into_the_next(repo):
    session, path = worker(repo)
    (path / "new.txt").write_text("new\n")
    put_hook(repo, "pre-commit", f"unset $(git rev-parse --local-env-vars)\n"
             f"git -C '{repo.work}' switch -q -c next")  # fmt: skip
    refused(repo, "merge", session, code=1, said="is not on main any more", fix="cao merge")
    assert not (repo.work / "new.txt").exists()


def test_of_two_branches_that_keep_the_same_commits_one_stays(repo):
    one, path = worker(repo)
    git(path, "commit", "-q", "--allow-empty", "-m", "theirs")
    two, other = worker(repo)
    git(other, "reset", "-q", "--hard", git(path, "rev-parse", "HEAD"))
    discards = [repo.start("discard", session) for session in (one, two)]
    said = [discard.communicate(timeout=60)[1] for discard in discards]
    assert sorted(discard.returncode for discard in discards) == [0, 2], said
    assert path.exists() + other.exists() == 1


def test_a_branch_that_is_in_use_and_one_below_it_stay_when_a_worktree_is_discarded(repo):
    one, path = worker(repo)
    git(path, "checkout", "-q", "--detach")
    git(repo.work, "checkout", "-q", f"cao/{one}")
    two, path = worker(repo)
    git(path, "branch", "-q", "-m", f"cao/{two}/part")
    for session in (one, two):
        repo.ok("discard", session)
        assert not (repo.home / "worktrees" / session).exists()
    left = {"*", f"cao/{one}", f"cao/{two}/part"}
    assert {*git(repo.work, "branch", "--list", "cao/*").split()} == left


def test_a_worker_may_remove_the_directory_that_it_was_started_in(repo):
    (repo.work / "sub").mkdir()
    (repo.work / "sub" / "b.txt").write_text("b\n")
    git(repo.work, "add", ".")
    git(repo.work, "commit", "-q", "-m", "sub")
    check = "sh -c 'cd .. && rm -r sub'"
    argv = ("demo: say done", "--worktree", "--json", "--check", check)
    (result,) = json.loads(repo.ok("handoff", "demo", *argv, cwd=repo.work / "sub"))["results"]
    assert (result["outcome"], result["worktree"]["files"]) == ("done", ["sub/b.txt"])


def test_a_locked_worktree_stays_unless_yes_is_said(repo):
    session, path = worker(repo)
    git(repo.work, "worktree", "lock", "--reason", "mine", str(path))
    done = repo.run("discard", session)
    assert (done.returncode, "lock reason: mine" in done.stderr) == (1, True)
    repo.ok("clean", "--older", "0s")
    assert path.exists()
    repo.ok("discard", session, "--yes")
    assert not path.exists()


@pytest.mark.parametrize("broken", ["the worktree", "the repository"])
def test_what_git_cannot_read_any_more_is_discarded_by_yes(repo, broken):
    session, path = worker(repo)
    if broken == "the worktree":
        git(repo.home, "init", "-q")  # git must not take that for the worktree's
        (path / ".git").unlink()
    else:
        shutil.rmtree(repo.work / ".git")
    refused(repo, "discard", session, code=2, said="cannot be read", fix="--yes")
    repo.ok("discard", session, "--yes")
    assert not path.exists()


def test_a_file_that_was_touched_and_not_changed_is_in_no_merges_way(repo):
    session, path = worker(repo)
    (path / "a.txt").write_text("by the worker\n")
    os.utime(repo.work / "a.txt", (1, 1))
    repo.ok("merge", session)
    assert (repo.work / "a.txt").read_text() == "by the worker\n"


def test_signatures_and_colours_do_not_get_into_the_facts(repo):
    gpg = repo.folder / "gpg"
    gpg.write_text(
        "#!/bin/sh\ncat > /dev/null\n"
        'case "$*" in *--verify*) echo gpg: Good signature >&2; exit;; esac\n'
        "echo '[GNUPG:] SIG_CREATED ' >&2\n"
        "echo '-----BEGIN PGP SIGNATURE-----'; echo; echo '-----END PGP SIGNATURE-----'\n"
    )
    gpg.chmod(0o755)
    for setting in ("log.showSignature true", "color.ui always", "diff.external false",
                    "diff.noprefix true", f"gpg.program {gpg}", "commit.gpgSign true"):  # fmt: skip
        git(repo.work, "config", *setting.split())
    session, path = worker(repo)
    (path / "a.txt").write_text("signed\n")
    git(path, "commit", "-qam", "signed")
    facts = json.loads(repo.ok("diff", session, "--json"))
    assert [line.partition(" ")[2] for line in facts["commits"]] == ["signed"]
    assert facts["diffstat"] == "1 file changed, 1 insertion(+), 3 deletions(-)"
    assert "\n--- a/a.txt\n" in repo.ok("diff", session)
    repo.ok("merge", session)
    assert (repo.work / "a.txt").read_text() == "signed\n"


# ---- the making of it ----


def nothing_was_made(repo):
    assert git(repo.work, "branch", "--list", "cao/*") == ""
    assert "\n" not in git(repo.work, "worktree", "list")
    assert not (repo.home / "worktrees").exists() or os.listdir(repo.home / "worktrees") == []
    assert [n for n in repo.store.all_sessions() if n.startswith("demo")] == []
    assert repo.live() == []


NEW = ("handoff", "demo", "demo: say hi", "--worktree")


def test_a_worker_that_is_interrupted_as_its_branch_is_made_leaves_none(repo):
    begun = repo.folder / "begun"
    once = f"mkdir {begun} 2>/dev/null && sleep 60"
    put_hook(repo, "reference-transaction", f"[ $1 != committed ] || {{ {once}; }}; exit 0")
    given = repo.start("assign", "demo", "demo: say x", "--worktree")
    until(begun.exists)
    assert "cao/demo-" in git(repo.work, "branch")
    given.send_signal(signal.SIGINT)
    assert (given.wait(60), "cao/demo-" in git(repo.work, "branch")) == (130, False)
    assert not [name for name in repo.store.all_sessions() if name.startswith("demo-")]


def test_a_hook_that_fails_when_a_worktree_is_made_leaves_nothing(repo):
    put_hook(repo, "post-checkout", "touch left-by-the-hook; echo the hook says no >&2; exit 1")
    refused(repo, *NEW, code=1, said="the hook says no", fix="git status")
    nothing_was_made(repo)


def test_a_hook_that_is_slow_when_a_worktree_is_made_leaves_nothing(repo, monkeypatch):
    repo.enter(monkeypatch)
    monkeypatch.chdir(repo.work)
    put_hook(repo, "post-checkout", "touch left-by-the-hook; exec sleep 60")
    run = cao.run

    def hurried(argv, timeout_s, **more):
        return run(argv, 2 if "worktree" in argv and "add" in argv else timeout_s, **more)

    monkeypatch.setattr(cao, "run", hurried)
    cao.make_client(repo.store, "person")
    boss = cao.Orchestrator(repo.store, cao.Caller("person", person=True))
    with pytest.raises(cao.CaoError, match="took longer"):
        boss.assign("demo", "x", cao.TaskOptions(worktree=True))
    nothing_was_made(repo)


def test_a_filter_that_fails_when_a_worktree_is_made_leaves_nothing(repo):
    (repo.work / ".gitattributes").write_text("*.txt filter=bad\n")
    git(repo.work, "add", ".")
    git(repo.work, "commit", "-q", "-m", "filtered")
    git(repo.work, "config", "filter.bad.smudge", "false")
    git(repo.work, "config", "filter.bad.required", "true")
    refused(repo, *NEW, code=1, said="smudge filter bad failed", fix="git status")
    nothing_was_made(repo)


def test_a_branch_named_cao_is_said_with_what_helps(repo):
    git(repo.work, "branch", "cao")
    refused(repo, *NEW, code=1, said="'refs/heads/cao' exists", fix="put that right")
    nothing_was_made(repo)


def test_a_branch_that_is_there_already_is_not_touched(repo, monkeypatch):
    repo.enter(monkeypatch)
    monkeypatch.chdir(repo.work)
    git(repo.work, "checkout", "-q", "-b", "cao/demo-2222")
    git(repo.work, "commit", "-q", "--allow-empty", "-m", "precious")
    git(repo.work, "checkout", "-q", "main")
    monkeypatch.setattr(cao, "random_letters", lambda count=4: "2" * count)
    cao.make_client(repo.store, "person")
    boss = cao.Orchestrator(repo.store, cao.Caller("person", person=True))
    with pytest.raises(cao.CaoError, match="already exists"):
        boss.assign("demo", "x", cao.TaskOptions(worktree=True))
    assert git(repo.work, "log", "-1", "--format=%s", "cao/demo-2222") == "precious"


def test_a_repository_of_somebody_elses_is_said_in_gits_words(repo):
    astray = {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"}
    done = repo.run(*NEW, **astray)
    assert (done.returncode, "dubious ownership" in done.stderr) == (2, True), done.stderr
    nothing_was_made(repo)


def hold_up(repo):
    """Start a handoff with a worktree, and return it in the middle of making that."""
    put_hook(repo, "post-checkout", "touch in-the-hook; exec sleep 60")
    started = repo.start(*NEW)
    until(lambda: list((repo.home / "worktrees").glob("*/in-the-hook")))
    return started


def test_who_is_slow_to_make_a_worktree_holds_up_nobody(repo):
    started = hold_up(repo)
    os.kill(started.pid, signal.SIGSTOP)
    assert repo.ok("handoff", "demo", "demo: say on", timeout_s=20) == "on\n"
    repo.ok("clean", "--older", "0s")  # it is in the making, not dead
    assert list((repo.home / "worktrees").glob("*/in-the-hook"))


@pytest.mark.parametrize("how", ["cao", "cao and git", "cao, and its record is gone"])
def test_clean_finds_the_worktree_of_a_handoff_that_was_killed_as_it_made_it(repo, how):
    if how == "cao and git":
        (repo.work / ".gitattributes").write_text("*.txt filter=slow\n")
        git(repo.work, "add", ".")
        git(repo.work, "commit", "-q", "-m", "filtered")
        git(repo.work, "config", "filter.slow.smudge", "touch ../in-the-filter; sleep 60")
        started = repo.start(*NEW)
        until((repo.home / "worktrees" / "in-the-filter").exists)
        (repo.home / "worktrees" / "in-the-filter").unlink()
    else:
        started = hold_up(repo)
        for mark in (repo.home / "worktrees").glob("*/in-the-hook"):
            mark.unlink()
    started.kill()
    started.wait()
    if how == "cao and git":
        until(lambda: [kill(pid) for pid in repo.pids()], [])  # one may just be starting another
    (name,) = os.listdir(repo.home / "worktrees")
    if "record" in how:
        repo.store.set_live(name, False)
        shutil.rmtree(repo.home / "sessions" / name)
    assert name in repo.ok("clean", "--older", "0s")
    nothing_was_made(repo)


def test_an_orphan_with_work_in_it_stays(repo):
    session, path = worker(repo)
    repo.ok("stop", session)
    (path / "new.txt").write_text("work\n")
    shutil.rmtree(repo.home / "sessions" / session)
    repo.ok("clean", "--older", "0s")
    assert (path / "new.txt").exists()


def test_the_commit_of_what_was_uncommitted_says_whose_work_it_is_and_on_which_task(repo):
    session, path = worker(repo)
    (path / "more.txt").write_text("more\n")
    (task,) = repo.store.results(session)
    repo.ok("merge", session)
    message = git(path, "log", "-1", "--format=%B").strip()
    assert message == f"Add {session}'s work: demo: say ready\n\nTask: {task}"


# ---- git before 2.38 ----


@pytest.mark.parametrize(
    ("spoil", "said", "fix"),
    [
        (None, "", ""),
        (conflicting, "conflict in a.txt", "Merge main into your branch"),
        (dirty_in_the_way, "a.txt", "git status"),
        (unseen_in_the_way, "a.txt", "git status"),
        (ignored_and_a_merge_commit, "overwrite ignored files", "move that away"),
        (failing_hook, "the hook says no", "git status"),
    ],
)
def test_a_git_that_cannot_try_a_merge_says_the_same_and_changes_no_more(repo, spoil, said, fix):
    put_old_git(repo)
    session, path = worker(repo)
    (path / "more.txt").write_text("more\n")
    (repo.work / "a draft.txt").write_text("in nobody's way\n")
    if spoil:
        spoil(repo, path)
        before = all_but_the_branch_of(repo, path)
        refused(repo, "merge", session, code=1, said=said, fix=fix)
        assert all_but_the_branch_of(repo, path) == before
    else:
        (repo.work / "a.txt").write_text("in nobody's way\n")
        repo.ok("merge", session)
        assert (repo.work / "more.txt").exists()
        assert (repo.work / "a.txt").read_text() == "in nobody's way\n"


def test_a_git_that_cannot_try_a_merge_moves_no_file_over_an_ignored_one(repo):
    put_old_git(repo)
    (repo.work / "sub").mkdir()
    (repo.work / "sub" / "b.txt").write_text("b\n")
    git(repo.work, "add", ".")
    git(repo.work, "commit", "-q", "-m", "sub")
    session, path = worker(repo)
    git(path, "mv", "sub", "moved")
    (repo.work / "sub" / "x.log").write_text("added\n")
    git(repo.work, "add", "--force", "sub/x.log")
    git(repo.work, "commit", "-q", "-m", "in the directory that is moved")
    (repo.work / "moved").mkdir()
    (repo.work / "moved" / "x.log").write_text("a database\n")
    refused(repo, "merge", session, code=1, said="moved/x.log", fix="Merge main into")
    assert (repo.work / "moved" / "x.log").read_text() == "a database\n"


# ---- two at work in one directory ----


WRITES = "---\nprovider: demo\npermissions: edits\n---\n"
READS = "---\nprovider: demo\npermissions: edits\nallowedTools: [fs_read, execute_bash]\n---\n"
ASKS = "---\nprovider: demo\n---\n"


def notes_beside(place, text, *flags, cwd="") -> str:
    """Return the notes of a short task, given beside a long one of a worker that writes."""
    place.profile("writes", WRITES)
    place.profile("other", text)
    long = place.ok("assign", "writes", "demo: sleep 30").strip().partition(".")[0]
    place.until_state(long, "working")
    argv = ("handoff", "other", "demo: say short", "--json", *flags)
    (result,) = json.loads(place.ok(*argv, cwd=place.work / cwd))["results"]
    return " ".join(result["notes"]).replace(long, "LONG")


@pytest.mark.parametrize(
    ("text", "flags", "cwd", "warned"),
    [
        (WRITES, (), "", True),
        (WRITES, (), "sub", True),
        (READS, (), "", False),
        (ASKS, (), "", False),
        (WRITES, ("--worktree",), "", False),
        (WRITES, (), "../apart", False),
    ],
    ids=["same", "inside", "reads-only", "asks", "worktree", "elsewhere"],
)
def test_two_workers_that_write_in_one_directory_are_warned_of(repo, text, flags, cwd, warned):
    (repo.work / "sub").mkdir()
    (repo.folder / "apart").mkdir()
    notes = notes_beside(repo, text, *flags, cwd=cwd)
    assert ("side by side with LONG" in notes) is warned
    assert warned or not notes


def test_of_two_side_by_side_each_is_warned_of_the_other(repo):
    repo.profile("writes", WRITES)
    repo.ok("handoff", "writes", "demo: say before both")
    tasks = [repo.ok("assign", "writes", f"demo: sleep {s}; say x").strip() for s in (2, 0.5)]
    results = json.loads(repo.ok("wait", "--all", "--json", *tasks))["results"]
    notes = {result["session"]: " ".join(result["notes"]) for result in results}
    long, short = (task.partition(".")[0] for task in tasks)
    assert f"side by side with {long}, and" in notes[short]
    assert f"side by side with {short}, and" in notes[long]


@pytest.mark.parametrize(
    ("beside", "flags", "cwd", "warned"),
    [(WRITES, (), "", True), (READS, (), "", False), (WRITES, ("--worktree",), "..", False)],
    ids=["writes", "reads-only", "in-a-worktree-inside"],
)
def test_who_is_beside_counts_only_if_it_writes_there(repo, beside, flags, cwd, warned):
    repo.profile("beside", beside)
    repo.profile("writes", WRITES)
    long = repo.ok("assign", "beside", "demo: sleep 30", *flags).strip().partition(".")[0]
    repo.until_state(long, "working")
    argv = ("handoff", "writes", "demo: say short", "--json")
    (result,) = json.loads(repo.ok(*argv, cwd=repo.work / cwd))["results"]
    assert bool(result["notes"]) is warned


def test_a_worker_and_its_own_worker_are_not_two_that_write_side_by_side(place):
    place.profile("writes", WRITES)
    inner = "handoff writes {demo: say deep}"
    (result,) = json.loads(place.ok("handoff", "writes", f"demo: {inner}", "--json"))["results"]
    assert result["answer"] == "deep"
    notes = [place.result(t)["notes"] for n in place.live() for t in place.store.results(n)]
    assert notes == [[], []]


# ---- checks ----


def test_a_profiles_check_counts_for_every_task_and_its_retries_are_the_profiles(place):
    place.profile(
        "checked", "---\nprovider: demo\ncheck: sh -c 'echo seen; exit 3'\ncheck_retries: 0\n---\n"
    )
    done = place.run("handoff", "checked", "demo: say ready", "--json")
    (first,) = json.loads(done.stdout)["results"]
    assert (first["outcome"], first["reason"], first["answer"]) == (
        "failed", "check_failed", "ready",
    )  # fmt: skip
    assert first["check"] == {
        "command": "sh -c 'echo seen; exit 3'", "exit_status": 3, "tail": "seen", "tries": 1,
    }  # fmt: skip
    again = place.run("handoff", first["session"], "demo: say more")
    assert (again.returncode, "try 1.\nIts output ends with:\nseen" in again.stderr) == (1, True)
    more = place.run("handoff", first["session"], "demo: say x", "--check-retries", "1", "--json")
    assert json.loads(more.stdout)["results"][0]["check"]["tries"] == 2
    other = place.ok("handoff", first["session"], "demo: say fine", "--check", "true")
    assert other == "fine\n"


def test_the_check_of_a_tool_call_has_its_retries_too(place, client):
    target = {"target": "demo", "task": "demo: say ready"}
    place.ok("allow", "--check", "false")
    said = client.call("handoff", **target, check="false", check_retries=1)
    (result,) = said["structuredContent"]["results"]
    assert (result["reason"], result["check"]["tries"]) == ("check_failed", 2)
    assert client.call("handoff", **target, check="false", check_retries=-1)["isError"]


def test_a_check_that_is_no_command_is_refused_at_once(place):
    done = place.run("handoff", "demo", "hello", "--check", "grep 'x")
    assert (done.returncode, "is no command" in done.stderr, place.live()) == (2, True, [])


def test_a_check_whose_program_is_nowhere_costs_no_turn(place, client):
    done = place.run("handoff", "demo", "demo: say x", "--check", "pytst -q")
    assert (done.returncode, place.live()) == (2, [])
    assert "the check's program 'pytst' is not on PATH" in done.stderr
    assert "--check 'env pytst -q'" in done.stderr
    place.ok("allow", "--check", "pytst -q")
    assert client.call("handoff", target="demo", task="demo: say x", check="pytst -q")["isError"]


@pytest.mark.parametrize(
    ("check", "path"),
    [("env pytst", ""), ("./pytst", ""), ("sub/pytst", ""), ("pytst", "there"), ("pytst", "sub")],
    ids=["what-starts-it", "path", "folder", "profiles-path", "relative-path"],
)
def test_a_check_whose_program_may_yet_come_is_tried(place, check, path):
    (place.folder / "there").mkdir()
    place.folder.joinpath("there", "pytst").symlink_to("/bin/true")
    path = {"": "", "there": f"{place.folder}/there", "sub": "sub"}[path]
    head = f"env: {{set: {{PATH: '{path}:{place.env['PATH']}'}}}}\n" if path else ""
    place.profile("worker", f"---\nprovider: demo\n{head}---\n")
    argv = ("handoff", "worker", "demo: say x", "--check", check, "--check-retries", "0")
    done = place.run(*argv, "--json")
    (result,) = json.loads(done.stdout)["results"]
    assert result["check"]["tries"] == 1
    assert (done.returncode == 0) is ("there" in path)


@pytest.mark.parametrize("how", ["stop", "timeout", "a person's turn"])
def test_a_check_that_runs_is_ended_with_its_task(place, how):
    mark = place.work / "pid"
    check = f"sh -c 'echo $$ >> {mark}; exec sleep 60'"
    flags = ["--timeout", "2s"] if how == "timeout" else []
    task = place.ok("assign", "demo", "demo: say ready", "--check", check, *flags).strip()
    session = task.partition(".")[0]
    until(lambda: mark.exists() and mark.read_text().endswith("\n"))
    first = mark.read_text().split()[0]
    if how == "stop":
        threading.Thread(target=place.run, args=("stop", session)).start()
    elif how == "a person's turn":
        place.tmux("send-keys", "-t", f"={session}:", "demo: say more", "Enter")
        until(lambda: mark.read_text().count("\n") == 2)
    until(lambda: Path(f"/proc/{first}").exists(), False)
    if how != "a person's turn":
        outcome = {"stop": "stopped"}.get(how, how)
        assert json.loads(place.run("wait", task, "--json").stdout)["results"][0]["outcome"] == (
            outcome
        )
    else:
        assert place.state(session)["task"] == task  # it goes on, with a check of its own


@pytest.mark.tmux
def test_clean_keeps_a_worktree_in_which_git_hangs(repo, monkeypatch):
    session, path = worker(repo)
    repo.ok("stop", session)
    os.mkfifo(path / ".gitattributes")  # git waits for somebody to write
    monkeypatch.setattr(cao, "GIT_S", 1.0)  # of this process and its forks
    until(threading.active_count, 1)  # beside a thread that still ends, run_cao does not fork
    done = repo.run("clean", "--older", "0s", timeout_s=60)
    assert (done.returncode, session in done.stdout, path.exists()) == (0, False, True)
    repo.ok("discard", session, "--yes")
    assert not path.exists()


def test_what_cannot_be_read_or_removed_stops_a_merge_and_a_discard_before_they_begin(
    repo, verbs, monkeypatch
):
    session, path = worker(repo)
    (path / "a new").mkdir()
    (path / "a new" / "x").write_text("new\n")
    before, access, scandir = all_of(repo, path), os.access, os.scandir
    monkeypatch.setattr(os, "access", lambda p, *a: p != f"{path}/a new" and access(p, *a))
    with pytest.raises(cao.CaoError, match=f"in {path}/a new cannot be removed") as removed:
        cao.remove_worktree(repo.store, session, str(repo.work))
    monkeypatch.setattr(os, "access", access)

    def closed(folder="."):
        if folder == f"{path}/a new":
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(
        cao.CaoError, match=f"in {path}/a new cannot be seen: Permission denied"
    ) as seen:
        cao.worktree_losses(repo.store, session, str(repo.work))
    for caught in (removed, seen):
        assert caught.value.fix.startswith(f"chmod u+rwx '{path}/a new'")
    with pytest.raises(cao.CaoError, match="nothing was changed there"):
        cao.merge_worktree(verbs, session)
    monkeypatch.setattr(os, "scandir", scandir)
    assert all_of(repo, path) == before


def test_a_worktree_from_which_another_was_made_is_kept_for_that(repo, verbs):
    session, path = worker(repo)
    child, inner = worker(repo, cwd=path)
    needed = [f"what the worktree of {child} was made from"]
    assert cao.worktree_losses(repo.store, session, str(repo.work)) == needed  # it goes on
    repo.ok("stop", "--all")
    assert cao.worktree_losses(repo.store, session, str(repo.work)) == []
    git(path, "commit", "-q", "--allow-empty", "-m", "work")
    git(inner, "reset", "-q", "--hard", f"cao/{session}")
    assert cao.worktree_losses(repo.store, session, str(repo.work)) == ["1 commit"]
    git(path, "reset", "-q", "--hard", "HEAD~")
    git(inner, "reset", "-q", "--hard", "HEAD~")
    (inner / "new.txt").write_text("work\n")
    assert cao.worktree_losses(repo.store, session, str(repo.work)) == needed
    assert {child, session}.isdisjoint(cao.clean(verbs, 0.0)[0])
    repo.ok("discard", child, "--yes")
    repo.ok("discard", session)


def test_what_no_verb_could_merge_any_more_keeps_no_commits(repo, verbs):
    session, path = worker(repo)
    git(path, "commit", "-q", "--allow-empty", "-m", "work")
    child, inner = worker(repo, cwd=path)
    grandchild, _ = worker(repo, cwd=inner)
    repo.ok("stop", "--all")

    def losses(name, origin=path):
        return cao.worktree_losses(repo.store, name, str(origin))

    assert losses(session, repo.work) == ["1 commit"]
    assert losses(child) == losses(grandchild, inner) == []
    assert session not in cao.clean(verbs, 0.0)[0]
    assert path.exists()
    if inner.exists():
        repo.ok("discard", child)
    assert losses(session, repo.work) == ["1 commit"]  # the grandchild's branch has nobody above it
    git(repo.work, "merge", "-q", f"cao/{session}")
    assert losses(session, repo.work) == []
