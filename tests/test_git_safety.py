"""Git runs what a repository's config names, and agents write files: cao runs none of theirs.

Each agent here may only write files. What it wrote would make any git that believes it run MARK
(a command that leaves a file), and that file is never there.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from conftest import McpClient
from test_worktrees import (
    first,
    git,
    kept_unless_yes,
    make_nested,
    refused,
    repo,
    with_library,
    with_worktrees_behind_a_link,
    worker,
)

__all__ = ["first", "repo"]
needs_git = pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
pytestmark = [pytest.mark.tmux, needs_git]

# Git fetches the commits that are missing, by this program; filters what it checks out and in.
CONFIG = """[core]
    repositoryformatversion = 1
    bare = false
[extensions]
    partialClone = o
[remote "o"]
    promisor = true
    url = /tmp
    uploadpack = touch {mark}; false
[filter "x"]
    smudge = touch {mark}; cat
    clean = touch {mark}; cat
"""


def mark(place) -> Path:
    return place.folder / "an-agents-program-ran"


def forge(place, folder, config=CONFIG) -> Path:
    """Write a git directory as an agent can: text files only."""
    head = git(place.work, "rev-parse", "HEAD")
    for name, text in {
        "HEAD": f"{head}\n",
        "config": config.format(mark=mark(place)),
        "refs/heads/x": f"{head}\n",
        "info/attributes": "* filter=x\n",
        "objects/x": "",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def in_all_ways(place, session) -> dict[str, str]:
    """Do all that has cao run git in a session's worktree, and return what each said, by verb;
    of `handoff` only its JSON."""
    said = {}
    for argv in (
        ("handoff", session, "demo: say on", "--json"),
        ("show", session),
        ("ls",),
        ("diff", session, "--json"),
        ("diff", session),
        ("merge", session),
        ("discard", session),
        ("stop", session),
        ("clean", "--older", "0s"),
    ):
        done = place.run(*argv)
        said[argv[0]] = done.stdout if argv[0] == "handoff" else done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        assert not mark(place).exists(), argv
    return said


def elsewhere(repo, path):
    (path / ".git").write_text(f"gitdir: {forge(repo, path / 'fake')}\n")


def as_a_worktree_of_its_own_repository(repo, path):
    fake = forge(repo, path / "fake") / "worktrees" / path.name
    forge(repo, fake)
    (fake / "commondir").write_text("../..\n")
    (fake / "gitdir").write_text(f"{path}/.git\n")
    (path / ".git").write_text(f"gitdir: {fake}\n")


def as_a_folder(repo, path):
    (path / ".git").unlink()
    forge(repo, path / ".git")


def through_a_link(repo, path):
    forge(repo, path / "fake")
    (path / ".git").unlink()
    (path / ".git").symlink_to(path / "fake")


def another_worktrees(repo, path):
    other, _ = worker(repo)
    (path / ".git").write_text(f"gitdir: {repo.work}/.git/worktrees/{other}\n")


def the_persons(repo, path):
    (path / ".git").write_text(f"gitdir: {repo.work}/.git\n")


WAYS = [elsewhere, as_a_worktree_of_its_own_repository, as_a_folder, through_a_link,
        another_worktrees, the_persons]  # fmt: skip


@pytest.mark.parametrize("forged", WAYS, ids=lambda way: way.__name__)
def test_git_never_goes_by_a_git_file_that_was_changed(repo, forged):
    session, path = worker(repo)
    (path / "new.txt").write_text("work\n")
    forged(repo, path)
    before = git(repo.work, "log", "--all", "--format=%H")
    said = in_all_ways(repo, session)
    (result,) = json.loads(said["handoff"])["results"]
    assert (result["answer"], result["worktree"]) == ("on", None)
    assert "the worktree's .git file was changed" in result["notes"][0]
    for verb in ("diff", "merge", "discard"):
        assert "the worktree's .git file was changed" in said[verb]
    assert (path / "new.txt").exists()
    assert git(repo.work, "log", "--all", "--format=%H") == before
    repo.ok("discard", session, "--yes")
    assert not path.exists()


def test_a_git_file_that_was_changed_is_mended_as_the_error_says(repo):
    session, path = worker(repo)
    (path / "new.txt").write_text("work\n")
    elsewhere(repo, path)
    refused(repo, "merge", session, code=1, said=".git file was changed", fix="git worktree repair")
    shutil.rmtree(path / "fake")
    git(repo.work, "worktree", "repair")
    repo.ok("merge", session)
    assert (repo.work / "new.txt").exists()


def test_a_runtime_directory_that_was_moved_is_mended_as_the_error_says(repo):
    session, path = worker(repo)
    (path / "new.txt").write_text("work\n")
    repo.ok("stop", "--all")
    repo.home = repo.home.rename(repo.folder / "moved")
    repo.env["CAO_HOME"] = str(repo.home)
    path = repo.home / "worktrees" / session
    fix = f"git worktree repair {path})"
    refused(repo, "merge", session, code=1, said="does not know it any more", fix=fix)
    git(repo.work, "worktree", "repair", str(path))
    repo.ok("merge", session)
    assert (repo.work / "new.txt").exists()


def test_nor_where_the_folder_of_all_worktrees_is_a_link(repo):
    with_worktrees_behind_a_link(repo)
    session, path = worker(repo)
    elsewhere(repo, path)
    assert "the worktree's .git file was changed" in in_all_ways(repo, session)["merge"]


def test_a_worktree_that_was_replaced_by_a_link_is_refused(repo):
    session, path = worker(repo)
    git(repo.work, "worktree", "add", "-q", "../persons", "-b", "feature")
    persons = repo.folder / "persons"
    (persons / "new.txt").write_text("not committed\n")
    path.rename(repo.folder / "moved")
    path.symlink_to(persons)
    refused(repo, "diff", session, code=1, said=f"is a link to {persons}", fix="put it back")
    refused(repo, "merge", session, code=1, said=f"is a link to {persons}", fix="put it back")
    kept_unless_yes(repo, session, path, "is a link")
    assert git(persons, "status", "--porcelain") == "?? new.txt"


@pytest.mark.parametrize("forged", WAYS[:4], ids=lambda way: way.__name__)
def test_no_worktree_is_made_from_one_whose_git_file_was_changed(repo, forged):
    session, path = worker(repo)
    forged(repo, path)
    done = repo.run("handoff", "demo", "x", "--worktree", cwd=path, CAO_SESSION=session)
    said = "the worktree's .git file was changed"
    assert (done.returncode, said in done.stderr) == (1, True), done.stderr
    done = repo.run("handoff", "demo", "x", "--worktree", cwd=path)  # a person, who stands in it
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert not mark(repo).exists()


@pytest.mark.parametrize("below", ["", "sub"])
def test_a_worker_cannot_name_another_repository_as_its_own(repo, below):
    session, path = worker(repo)
    evil, here = repo.folder / "evil", path / below
    here.mkdir(exist_ok=True)
    forge(repo, evil / ".git")
    private = forge(repo, evil / ".git" / "worktrees" / "x")
    (private / "gitdir").write_text(f"{here}/.git\n")
    (here / ".git").write_text(f"gitdir: {private}\n")
    argv = ("handoff", "demo", "x", "--worktree", "--cwd", str(evil))
    done = repo.run(*argv, cwd=here, CAO_SESSION=session)
    assert mark(repo).exists() is False
    said = "an agent gets worktrees of" if below else "the worktree's .git file was changed"
    assert (done.returncode != 0, said in done.stderr) == (True, True), done.stderr


@pytest.mark.parametrize("forged", WAYS[:4], ids=lambda way: way.__name__)
def test_clean_does_not_go_by_it_either_where_the_record_of_the_session_is_gone(repo, forged):
    session, path = worker(repo)
    forged(repo, path)
    repo.ok("stop", session)
    shutil.rmtree(repo.home / "sessions" / session)
    repo.ok("clean", "--older", "0s")
    assert (path.exists(), mark(repo).exists()) == (True, False)


def with_link(repo, commit):
    """Record a submodule that is not checked out, as it is in each new worktree."""
    git(repo.work, "update-index", "--add", "--cacheinfo", f"160000,{commit},lib")
    git(repo.work, "commit", "-q", "-m", "lib")


@pytest.mark.parametrize("form", ["a folder", "a file"])
def test_git_is_not_run_in_what_an_agent_put_in_a_submodules_place(repo, form):
    with_link(repo, git(repo.work, "rev-parse", "HEAD"))
    session, path = worker(repo)
    if form == "a folder":
        forge(repo, path / "lib" / ".git")
    else:
        forge(repo, path / "fake")
        (path / "lib" / ".git").write_text("gitdir: ../fake\n")
    (path / "lib" / "a.txt").write_text("changed\n")
    (path / "new.txt").write_text("work\n")
    said = in_all_ways(repo, session)
    (result,) = json.loads(said["handoff"])["results"]
    assert "new.txt" in result["worktree"]["files"]
    assert "+work" in said["diff"]
    for verb in ("merge", "discard"):
        assert "the repository lib" in said[verb]
    kept_unless_yes(repo, session, path, "the repository lib")


def test_git_is_not_run_in_what_a_link_in_a_submodules_place_leads_to(repo):
    with_link(repo, git(repo.work, "rev-parse", "HEAD"))
    session, path = worker(repo)
    evil = repo.folder / "evil"
    forge(repo, evil / ".git")
    (evil / "a.txt").write_text("changed\n")
    (path / "lib").rmdir()
    (path / "lib").symlink_to(evil)
    (path / "new.txt").write_text("work\n")
    said = in_all_ways(repo, session)
    (result,) = json.loads(said["handoff"])["results"]
    assert result["worktree"]["files"] == ["lib", "new.txt"]


@pytest.mark.parametrize("diverged", [True, False])
@pytest.mark.parametrize("where", ["a repository", "a worker's worktree"])
def test_git_is_not_run_in_it_either_where_it_is_merged_into(repo, where, diverged):
    commit = git(repo.work, "rev-parse", "HEAD")
    with_link(repo, commit)
    top = repo.work if where == "a repository" else worker(repo)[1]
    session, path = worker(repo, cwd=top)
    (path / "new.txt").write_text("work\n")
    forge(repo, top / "lib" / ".git")
    (top / "lib" / ".git" / "HEAD").write_text(f"{commit}\n")  # git before 2.38 sees no change
    if diverged:
        git(top, "commit", "-q", "--allow-empty", "-m", "ours")
    repo.ok("merge", session)
    assert ((top / "new.txt").exists(), mark(repo).exists()) == (True, False)


def test_git_is_not_run_in_what_an_agent_put_inside_a_real_submodule(repo):
    other = repo.folder / "other"
    make_nested(other)
    git(other, "update-index", "--add", "--cacheinfo",
        f"160000,{git(other, 'rev-parse', 'HEAD')},deep")  # fmt: skip
    git(other, "commit", "-q", "-m", "deep")
    session, path = with_library(repo, other)
    forge(repo, path / "lib" / "deep" / ".git")
    (path / "new.txt").write_text("work\n")
    said = in_all_ways(repo, session)
    for verb in ("merge", "discard"):
        assert "the repository lib" in said[verb]


def test_what_is_changed_in_a_submodule_of_a_submodule_is_no_small_thing(repo):
    allow = ("-c", "protocol.file.allow=always")
    deep, lib = repo.folder / "deep", repo.folder / "lib"
    make_nested(deep)
    make_nested(lib)
    git(lib, *allow, "submodule", "-q", "add", str(deep), "deep")
    git(lib, "commit", "-q", "-m", "deep")
    git(repo.work, *allow, "submodule", "-q", "add", str(lib), "lib")
    git(repo.work, "commit", "-q", "-m", "lib")
    session, path = worker(repo)
    git(path, *allow, "submodule", "-q", "update", "--init", "--recursive")
    facts = json.loads(repo.ok("diff", session, "--json"))
    assert facts["dirty"] is False
    repo.ok("merge", session)
    (path / "lib" / "deep" / "inner.txt").write_text("changed\n")
    facts = json.loads(repo.ok("diff", session, "--json"))
    assert facts["dirty"] is True
    refused(repo, "merge", session, code=1, said="the repository lib", fix="push them")


SMUDGE = """[core]
    repositoryformatversion = 0
    bare = false
    worktree = {folder}
[filter "x"]
    smudge = touch {{mark}}; cat
    clean = touch {{mark}}; cat
"""


@pytest.mark.parametrize("way", ["bare", "within", "beside"])
def test_no_worktree_is_made_from_a_repository_that_an_agent_wrote(repo, way):
    evil = repo.folder / "evil" if way == "beside" else repo.work / "evil"
    place = evil if way == "bare" else evil / ".git"
    forge(repo, place, SMUDGE.format(folder=evil))
    (place / "objects" / "info").mkdir()
    (place / "objects" / "info" / "alternates").write_text(f"{repo.work}/.git/objects\n")
    client = McpClient(repo)
    more = {"cwd": str(evil), "worktree": True}
    done = client.call("handoff", target="demo", task="demo: say done", **more)
    text = done["content"][0]["text"]
    assert not mark(repo).exists(), text
    if way == "bare":  # it is a folder of the repository around it, and no repository
        assert done["structuredContent"]["results"][0]["answer"] == "done"
    else:
        assert done["isError"]
        assert "an agent gets worktrees of the repository that it is in" in text


def test_an_agent_gets_worktrees_where_git_is_a_link_but_not_by_a_link_of_its_own(repo):
    """Google's `repo` makes such a link in each of its projects."""
    (repo.work / ".git").rename(repo.folder / "r.git")
    (repo.work / ".git").symlink_to(repo.folder / "r.git")
    evil = repo.work / "evil"
    evil.mkdir()
    (evil / ".git").symlink_to(repo.folder / "r.git")
    client = McpClient(repo)
    more = {"target": "demo", "task": "demo: say done", "worktree": True}
    (result,) = client.call("handoff", **more)["structuredContent"]["results"]
    assert result["answer"] == "done"
    assert client.call("handoff", **more, cwd=str(evil))["isError"]
    path, env = result["worktree"]["path"], {"CAO_SESSION": result["session"]}
    assert "deeper" in repo.ok("handoff", "demo", "demo: say deeper", "--worktree", cwd=path, **env)


@pytest.mark.parametrize("way", ["bare", "within"])
def test_a_worker_gets_no_worktree_of_what_it_wrote_in_its_own(repo, way):
    session, path = worker(repo)
    evil = path / "evil"
    place = evil if way == "bare" else evil / ".git"
    forge(repo, place, SMUDGE.format(folder=evil))
    (place / "objects" / "info").mkdir()
    (place / "objects" / "info" / "alternates").write_text(f"{repo.work}/.git/objects\n")
    for cwd in (path, evil):
        argv = ("handoff", "demo", "demo: say done", "--worktree", "--cwd", str(evil))
        done = repo.run(*argv, cwd=cwd, CAO_SESSION=session)
        assert (done.returncode == 0, mark(repo).exists()) == (way == "bare", False), done.stderr


# ---- what a person has is as it was ----


def as_submodule(repo):
    other = repo.folder / "other"
    shutil.copytree(repo.work, other, ignore=shutil.ignore_patterns("maintenance.lock"))
    allow = ("-c", "protocol.file.allow=always")
    git(repo.work, *allow, "submodule", "-q", "add", str(other), "lib")
    return repo.work / "lib"


def with_its_git_elsewhere(repo):
    git(repo.folder, "clone", "-q", "--separate-git-dir", "elsewhere", str(repo.work), "clone")
    return repo.folder / "clone"


def behind_a_link(repo):
    with_its_git_elsewhere(repo)
    (repo.folder / "clone" / ".git").unlink()
    (repo.folder / "clone" / ".git").symlink_to(repo.folder / "elsewhere")
    return repo.folder / "clone"


def as_worktree(repo):
    git(repo.work, "worktree", "add", "-q", "../tree", "-b", "tree")
    return repo.folder / "tree"


def of_a_bare_one(repo):
    git(repo.folder, "clone", "-q", "--bare", str(repo.work), "bare")
    git(repo.folder / "bare", "worktree", "add", "-q", "tree")
    return repo.folder / "bare" / "tree"


def with_filter(repo):
    (repo.work / ".gitattributes").write_text("new.txt filter=up\n")
    git(repo.work, "add", ".")
    git(repo.work, "commit", "-qm", "filtered")
    git(repo.work, "config", "filter.up.clean", "tr a-z A-Z")
    return repo.work


def of_a_worker(repo):
    _, path = worker(repo)
    return path


def where_the_home_is_behind_a_link(repo):
    (repo.folder / "link").symlink_to(repo.home)
    repo.env["CAO_HOME"] = str(repo.folder / "link")
    return repo.work


@pytest.mark.parametrize(
    "made",
    [as_submodule, with_its_git_elsewhere, behind_a_link, as_worktree, of_a_bare_one, with_filter,
     of_a_worker, where_the_home_is_behind_a_link, with_worktrees_behind_a_link],
    ids=lambda made: made.__name__,
)  # fmt: skip
def test_a_worktree_can_be_made_from_any_checkout_and_merged_into_it(repo, made):
    top = made(repo)
    (top / "sub").mkdir()
    session, path = worker(repo, cwd=top / "sub")
    (path / "new.txt").write_text("work\n")
    (result,) = json.loads(repo.ok("handoff", session, "demo: say on", "--json"))["results"]
    assert result["worktree"]["files"] == ["new.txt"]
    assert ("+WORK" if made is with_filter else "+work") in repo.ok("diff", session)
    repo.ok("merge", session)
    assert (top / "new.txt").exists()
    repo.ok("discard", session)
    assert not path.exists()
