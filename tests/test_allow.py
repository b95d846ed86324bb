"""What a person has to allow first (`cao allow`): profiles of a folder, and checks that come
with an agent's task. From outside: as a person, as an agent in a shell, and through MCP."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import stat
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import cao
from conftest import McpClient, until

pytestmark = pytest.mark.tmux

CI = "---\nprovider: demo\n---\n"
AGENT = {"CLAUDECODE": "1"}  # a shell that an agent started


@pytest.fixture
def repo(place):
    """A place whose directory is a git repository with a commit."""
    git(place, "init", "-q")
    git(place, "commit", "-q", "--allow-empty", "-m", "first")
    return place


def git(place, *args, cwd=None) -> None:
    subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@t", *args],
        check=True, cwd=cwd or place.work, env=place.env,
    )  # fmt: skip


def put(folder: Path, name: str, text: str | bytes = CI) -> Path:
    """Write a profile into a folder's own profiles and return its path."""
    path = folder / ".cao" / "profiles" / f"{name}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def allowed(place) -> dict:
    return json.loads(place.ok("allow", "--list", "--json"))


def says(done) -> str:
    """Return what a tool call answered."""
    return done["content"][0]["text"]


def refused(place, target="ci", **more) -> str:
    """Give a task that must be refused before anything is launched; return the words."""
    done = place.run("handoff", target, "demo: say used", **more)
    assert (done.returncode, done.stdout, place.live()) == (2, "", [])
    return done.stderr


# ---- profiles of a folder ----


def test_a_folders_profile_is_used_once_a_person_allowed_it(place):
    path = put(place.work, "ci")
    words = refused(place)
    for part in (str(path), "a person has to run", f"cao allow '{place.work}'"):
        assert part in words
    place.ok("allow")
    assert place.ok("handoff", "ci", "demo: say used") == "used\n"


def test_the_command_that_the_refusal_names_is_enough_from_anywhere(place):
    put(place.work, "ci")
    command = refused(place).partition("a person has to run: cao ")[2].strip()
    (word,) = [command.removeprefix("allow ").strip("'")]
    place.ok("allow", word, cwd=place.user)
    assert place.ok("handoff", "ci", "demo: say used") == "used\n"


def test_a_profile_stands_in_the_place_of_the_provider_of_its_name(place):
    put(place.work, "demo", "---\nprovider: demo\n---\nx\n")
    listed = [(row["name"], row["state"]) for row in json.loads(place.ok("profiles", "--json"))]
    assert [row for row in listed if row[0] == "demo"] == [("demo", "not allowed")]
    assert ("claude", "ok") in listed


@pytest.mark.parametrize("way", ["launch", "profiles", "run", "assign"])
def test_no_command_uses_a_profile_that_is_not_allowed(place, way):
    put(place.work, "ci")
    task = [] if way in ("launch", "profiles") else ["demo: say x"]
    done = place.run(way, "ci", *task)
    assert (done.returncode, place.live()) == (2, [])
    assert "cao allow" in done.stderr


def test_an_agent_is_refused_with_what_a_person_must_run(place, client):
    path = put(place.work, "ci", "---\nprovider: command\ncommand: [touch, ran]\nready: x\n---\n")
    done = client.call("handoff", target="ci", task="x")
    assert done["isError"]
    for part in (str(path), "a person has to run", f"cao allow '{place.work}'"):
        assert part in says(done)
    assert not (place.work / "ran").exists()
    assert place.live() == []


def test_an_agent_cannot_bring_a_profile_by_another_directory(place, client):
    other = place.folder / "other"
    put(other, "ci")
    done = client.call("handoff", target="ci", task="demo: say x", cwd=str(other))
    assert done["isError"]
    assert f"cao allow '{other}'" in says(done)
    place.ok("allow", str(other))
    done = client.call("handoff", target="ci", task="demo: say x", cwd=str(other))
    assert done["structuredContent"]["outcome"] == "done"


def test_what_is_not_allowed_is_listed_as_that(place, client):
    put(place.work, "ci")
    rows = {row["name"]: row for row in json.loads(place.ok("profiles", "--json"))}
    assert rows["ci"]["provider"] == "not allowed"
    assert f"cao allow '{place.work}'" in rows["ci"]["description"]
    listed = client.call("list_sessions")
    way = f"ci (not allowed: a person has to run: cao allow '{place.work}')"
    assert way in listed["structuredContent"]["profiles"]
    assert way in says(listed)
    place.ok("allow")
    assert "ci" in client.call("list_sessions")["structuredContent"]["profiles"]
    rows = {row["name"]: row for row in json.loads(place.ok("profiles", "--json"))}
    assert rows["ci"]["provider"] == "demo"


def test_what_is_not_allowed_is_not_even_parsed(place, client):
    put(place.work, "deep", "---\nenv: " + "[" * 100_000 + "\n---\n")
    rows = {row["name"]: row for row in json.loads(place.ok("profiles", "--json"))}
    assert rows["deep"]["provider"] == "not allowed"
    assert "deep (not allowed" in says(client.call("list_sessions"))
    assert "cao allow" in refused(place, "deep")


@pytest.mark.parametrize("name", ["developer", "demo", "mine"])
def test_another_profile_of_the_same_name_does_not_take_its_place(place, name):
    place.profile("mine", CI)
    if name != "developer":
        assert place.ok("handoff", name, "demo: say home") == "home\n"
    for session in place.live():
        place.ok("stop", session)
    path = put(place.work, name)
    assert str(path) in refused(place, name)
    place.ok("allow")
    place.ok("handoff", name, "demo: say used")
    path.unlink()
    if name != "developer":
        assert place.ok("handoff", name, "demo: say home") == "home\n"


def test_a_change_of_one_byte_needs_it_again_and_of_one_file_only(place):
    first, second = put(place.work, "ci"), put(place.work, "cd")
    place.ok("allow")
    first.write_text(CI + "\n")
    assert str(first) in refused(place)
    assert place.ok("handoff", "cd", "demo: say used") == "used\n"
    place.ok("stop", *place.live())
    first.write_text(CI)
    assert place.ok("handoff", "ci", "demo: say used") == "used\n"
    place.ok("stop", *place.live())
    second.rename(first)  # the bytes of one allowed file under the name of another
    first.write_text(CI.replace("demo", "demo\nkeep: yes"))
    assert str(first) in refused(place)
    place.ok("allow")
    first.write_text(CI)  # what was allowed before the last `cao allow` is not any more
    assert str(first) in refused(place)


def test_a_file_that_is_new_needs_it(place):
    put(place.work, "ci")
    place.ok("allow")
    put(place.work, "new")
    assert "new.md" in refused(place, "new")


def test_an_allowed_file_copied_into_a_subfolder_needs_it(repo):
    put(repo.work, "ci")
    repo.ok("allow")
    put(repo.work / "sub", "ci")
    assert f"cao allow '{repo.work}/sub'" in refused(repo, cwd=repo.work / "sub")


def test_worktrees_of_a_repository_count_and_a_clone_does_not(repo):
    put(repo.work, "ci")
    git(repo, "add", "-A")
    git(repo, "commit", "-q", "-m", "a profile")
    tree, clone = repo.folder / "tree", repo.folder / "clone"
    git(repo, "worktree", "add", "-q", str(tree))
    git(repo, "clone", "-q", str(repo.work), str(clone))
    repo.ok("allow", cwd=tree)
    for where in (repo.work, tree):
        assert repo.ok("handoff", "ci", "demo: say used", cwd=where) == "used\n"
    repo.ok("stop", *repo.live())
    assert f"cao allow '{clone}'" in refused(repo, cwd=clone)
    put(tree, "ci", CI + "changed")
    assert f"cao allow '{tree}'" in refused(repo, cwd=tree)


def test_a_worker_in_its_worktree_may_use_what_is_allowed_in_the_repository(repo):
    put(repo.work, "ci")
    git(repo, "add", "-A")
    git(repo, "commit", "-q", "-m", "a profile")
    repo.ok("allow")
    task = "demo: handoff ci {demo: say deep}"
    assert "deep" in repo.ok("handoff", "demo", task, "--worktree")


def test_so_it_may_in_a_submodule(repo):
    put(repo.work, "ci")
    git(repo, "add", "-A")
    git(repo, "commit", "-q", "-m", "a profile")
    git(repo, "clone", "-q", ".", str(repo.folder / "other"))
    allow = ("-c", "protocol.file.allow=always")
    git(repo, *allow, "submodule", "-q", "add", str(repo.folder / "other"), "lib")
    top = repo.work / "lib"
    repo.ok("allow", cwd=top)
    task = "demo: handoff ci {demo: say deep}"
    done = json.loads(repo.ok("handoff", "demo", task, "--worktree", "--json", cwd=top))
    (result,) = done["results"]
    assert "deep" in result["answer"]
    argv = ("handoff", "demo", "demo: say deeper", "--worktree")  # it is in that repository
    path, env = result["worktree"]["path"], {"CAO_SESSION": result["session"]}
    assert "deeper" in repo.ok(*argv, cwd=path, **env)


@pytest.mark.parametrize("forged", ["worktree", "main", "link", "own", "commondir"])
def test_no_folder_can_pass_itself_off_as_another_repository(repo, client, forged):
    """An agent that may write files could name a repository in which more is allowed."""
    repo.ok("allow", "--check", "false")
    evil = repo.folder / "evil"
    evil.mkdir()
    git(repo, "worktree", "add", "-q", str(repo.folder / "tree"))
    common = repo.work / ".git"
    if forged == "worktree":
        (evil / ".git").write_text(f"gitdir: {common}/worktrees/tree\n")
    elif forged == "main":
        (evil / ".git").write_text(f"gitdir: {common}\n")
    elif forged == "link":
        (evil / ".git").symlink_to(common)
    elif forged == "own":
        private = evil / "git" / "worktrees" / "tree"
        private.mkdir(parents=True)
        (private / "gitdir").write_text(f"{evil}/.git\n")
        (private / "commondir").write_text(f"{common}\n")
        (evil / "git" / "config").write_text(f"[core]\n\tworktree = {repo.work}\n")
        (evil / ".git").write_text(f"gitdir: {private}\n")
    else:
        git(repo, "init", "-q", cwd=evil)
        (evil / ".git" / "commondir").write_text(f"{common}\n")
    done = client.call("handoff", target="demo", task="demo: say x", cwd=str(evil), check="false")
    assert done["isError"], says(done)
    assert "cao allow" in says(done)


@pytest.mark.parametrize("kind", ["fifo", "directory", "empty", "binary", "dangling", "circle"])
def test_a_git_file_that_is_none_stops_nothing(place, kind):
    mark = place.work / ".git"
    if kind == "fifo":
        os.mkfifo(mark)
    elif kind == "directory":
        mark.mkdir()
    elif kind in ("dangling", "circle"):
        mark.symlink_to("nowhere" if kind == "dangling" else ".git")
    else:
        mark.write_bytes(b"" if kind == "empty" else b"gitdir: a\0b\xff\n")
    put(place.work, "ci")
    refused(place)
    place.ok("allow")
    assert place.ok("handoff", "ci", "demo: say used") == "used\n"


def test_a_symlinked_file_is_the_bytes_behind_it(place):
    path, behind = put(place.work, "ci"), place.folder / "behind.md"
    path.unlink()
    behind.write_text(CI)
    path.symlink_to(behind)
    refused(place)
    place.ok("allow")
    assert place.ok("handoff", "ci", "demo: say used") == "used\n"
    place.ok("stop", *place.live())
    behind.write_text(CI + "changed")
    assert str(path) in refused(place)


def test_a_symlinked_folder_is_a_folder_like_any_other(place):
    put(place.folder / "elsewhere", "ci")
    (place.work / ".cao").symlink_to(place.folder / "elsewhere" / ".cao")
    refused(place)
    place.ok("allow")
    assert place.ok("handoff", "ci", "demo: say used") == "used\n"
    place.ok("stop", *place.live())
    put(place.folder / "elsewhere", "ci", CI + "changed")
    refused(place)


def test_a_symlinked_directory_is_the_directory_it_leads_to(place):
    put(place.work, "ci")
    link = place.folder / "link"
    link.symlink_to(place.work)
    place.ok("allow", str(link))
    assert place.ok("handoff", "ci", "demo: say used") == "used\n"
    assert place.ok("handoff", "ci", "demo: say used", "--cwd", str(link)) == "used\n"


def test_what_is_no_file_is_no_profile(place):
    put(place.work, "ci")
    folder = place.work / ".cao" / "profiles"
    os.mkfifo(folder / "pipe.md")
    (folder / "dir.md").mkdir()
    (folder / "gone.md").symlink_to("nowhere")
    place.ok("allow")
    ((names),) = allowed(place).values()
    assert [*names] == ["profile ./.cao/profiles/ci.md"]
    for name in ("pipe", "dir", "gone"):
        assert place.run("handoff", name, "x").returncode == 3


def test_a_file_that_cannot_be_read_is_named(place, monkeypatch):
    path = put(place.work, "ci")
    monkeypatch.setattr(cao, "read_file", lambda _: None)  # root reads all there is
    with pytest.raises(cao.CaoError, match=f"{path} cannot be read"):
        cao.load_profile("ci", place.store, str(place.work))


def test_a_broken_profile_is_named_and_only_what_is_whole_is_allowed(place):
    broken = put(place.work, "aa", "---\npermissions: king\n---\n")
    first = place.run("allow")
    assert (first.returncode, allowed(place)) == (1, {})
    put(place.work, "ci")
    for done in (first, place.run("allow")):
        assert done.returncode == 1
        assert f"{broken}: permissions 'king' does not exist" in done.stderr
    assert "not allowed: " in done.stderr
    assert "aa.md" not in str(allowed(place))
    assert place.ok("handoff", "ci", "demo: say used") == "used\n"


@pytest.mark.parametrize("name", ["two words", "ü", "it's", "a\nb", "x;y", "\udcff"])
def test_names_with_odd_letters(place, name):
    path = put(place.work, name)
    assert "cao allow" in refused(place, name)
    shown = place.run("allow")
    assert shown.returncode == 0
    assert "\x1b" not in shown.stdout + shown.stderr
    assert place.ok("handoff", name, "demo: say used") == "used\n"
    place.ok("stop", *place.live())
    path.write_text(CI + "changed")
    refused(place, name)


def test_a_directory_with_odd_letters_can_be_allowed_as_the_refusal_says(place):
    odd = place.folder / "it's $HOME; a dir"
    put(odd, "ci")
    words = refused(place, cwd=odd)
    command = words.partition("a person has to run: ")[2].strip()
    script = f'cao() {{ printf "%s\\n" "$@"; }}\n{command}\n'
    out = subprocess.run(["sh", "-c", script], check=True, capture_output=True, text=True).stdout
    assert out == f"allow\n{odd}\n"
    place.ok(*out.splitlines(), cwd=place.user)
    assert place.ok("handoff", "ci", "demo: say used", cwd=odd) == "used\n"


def test_what_is_allowed_is_shown_whole_and_in_visible_text(place):
    hidden = "\x1b]0;x\x07\u202egnp.exe"
    put(place.work, "ci", (
        "---\nprovider: command\nready: x\npermissions: all\ncheck: pytest -q\n"
        "command: [sh, -c, 'touch me']\n"
        "mcpServers: {tickets: {command: tickets-mcp, args: [--write]}}\n"
        f"description: {json.dumps(hidden)}\n---\n"
    ))  # fmt: skip
    done = place.run("allow")
    shown = ["command", "all", "pytest -q", "touch me", "tickets-mcp", "--write"]
    shown += ["./.cao/profiles/ci.md", str(place.work), "files that workers may write"]
    for part in shown:
        assert part in done.stdout + done.stderr, part
    assert not {*hidden} & {*"\x1b\x07\u202e"} & {*(done.stdout + done.stderr)}
    assert "\\u202e" in done.stderr


def test_what_a_profile_says_of_itself_is_not_shown_as_what_holds(place):
    put(place.work, "ci", (
        "---\nprovider: claude\nrole: reviewer\npermissions: ''\ntools: fs_read\n"
        "permissionMode: bypassPermissions\nallowedTools: ['*']\n'effective:': ''\n"
        "held back by its CLI: execute_bash (--tools)\n"
        'description: "x\\npermissions  ask"\n---\n'
    ))  # fmt: skip
    effective, in_file = place.run("allow").stderr.split("\nin its file:\n")
    lines = [line.split("  ") for line in effective.splitlines()]
    assert lines[0] == ["effective:"]
    facts = {line[1]: "".join(line[2:]).strip() for line in lines if len(line) > 2}
    assert facts["permissions"] == "all(--permission-mode bypassPermissions)"
    assert facts["tools"] == "all"
    assert "held back by its CLI" not in facts
    for key in ("tools", "effective:", "held back by its CLI"):
        assert f"\n  {key}" in f"\n{in_file}"
    assert re.findall("(?m)^permissions +(.*)", place.ok("profiles", "ci")) == [
        "all  (--permission-mode bypassPermissions)"
    ]


def test_a_folder_without_profiles_is_said(place):
    done = place.run("allow")
    assert (done.returncode, allowed(place)) == (3, {})
    assert f"no profile in {place.work}/.cao/profiles" in done.stderr


def test_the_profiles_of_the_runtime_directory_need_nothing(place):
    place.profile("mine", CI)
    assert place.ok("handoff", "mine", "demo: say used") == "used\n"
    inside = place.folder / "inside"
    env = {"CAO_HOME": str(inside / ".cao")}  # its profiles/ is that of the folder, too
    path = put(inside, "ci")
    (inside / ".cao").chmod(0o700)
    assert f"from         {path}" in place.ok("profiles", "ci", cwd=inside, **env)


def test_a_flow_needs_its_folders_profile_to_be_allowed(place):
    put(place.work, "ci")
    flow = place.work / "nightly.md"
    flow.write_text("---\nschedule: '0 9 * * *'\nagent_profile: ci\n---\ndemo: say nightly")
    place.run("schedule", "add", str(flow))
    done = place.run("schedule", "run", "nightly")
    assert (done.returncode, place.live()) == (1, [])
    assert f"cao allow '{place.work}'" in done.stdout + done.stderr
    place.ok("allow")
    assert "nightly" in place.ok("schedule", "run", "nightly")


def test_an_ended_session_goes_on_with_the_profile_it_had(resuming, place):
    path = put(place.work, "ci")
    place.ok("allow")
    options = cao.TaskOptions(cwd=str(place.work))
    task = resuming.assign("ci", "demo: say first", options)
    session = place.store.session_of(task)
    resuming.await_tasks([task], 60)
    resuming.end(session)
    path.write_text(CI + "changed")
    task = resuming.assign(session, "demo: say second", cao.TaskOptions())
    (result,) = resuming.await_tasks([task], 60).results
    assert result.answer == "second"


# ---- who may allow, and what is kept ----


@pytest.mark.parametrize("more", [[], ["--check", "true"], ["--remove"]])
def test_an_agents_shell_may_allow_nothing(place, more):
    put(place.work, "ci")
    place.ok("allow")
    place.ok("allow", "--check", "false")
    before = allowed(place)
    task = place.ok("assign", "demo", "demo: say x").strip()
    place.ok("wait", task)
    put(place.work, "new")
    for env in (AGENT, {"CAO_SESSION": task.partition(".")[0]}, {"CODEX_SANDBOX": "1"}):
        done = place.run("allow", *more, **env)
        assert (done.returncode, "only a person" in done.stderr) == (2, True)
    assert allowed(place) == before


def test_what_is_allowed_is_listed_and_taken_away(repo):
    put(repo.work, "ci")
    repo.ok("allow")
    repo.ok("allow", "--check", "pytest -q")
    repo.ok("allow", "--check", "make test", str(repo.work))
    ((where, what),) = allowed(repo).items()
    assert where == f"{repo.work}/.git"
    names = ["profile ./.cao/profiles/ci.md", "check pytest -q", "check make test"]
    assert [*what] == names
    for name in names:
        assert f"{name}" in repo.ok("allow", "--list")
    repo.ok("allow", "--remove", "--check", "pytest -q")
    assert [*allowed(repo)[where]] == [names[0], names[2]]
    repo.ok("allow", "--remove", str(repo.work))
    assert "nothing is allowed" in repo.ok("allow", "--list")
    refused(repo)


def test_a_host_can_be_taken_away_where_something_else_is_allowed(repo):
    repo.ok("allow", "--check", "true")
    repo.ok("allow", "--host", "box")
    repo.ok("allow", "--remove", "--host", "box")
    listed = repo.ok("allow", "--list")
    assert ("box" in listed, "check true" in listed) == (False, True)


@pytest.mark.parametrize("way", ["its folder", "as it is listed", "the check alone"])
def test_what_is_allowed_in_a_repository_that_is_gone_can_be_taken_away(repo, way):
    repo.ok("allow", "--check", "true")
    (where,) = allowed(repo)
    (repo.work / ".git").rename(repo.folder / "gone")
    repo.work.rename(repo.folder / "also-gone")
    more = ["--check", "true"] if way == "the check alone" else []
    folder = where if way == "as it is listed" else str(repo.work)
    repo.ok("allow", "--remove", *more, folder, cwd=repo.user)
    assert not any(allowed_in := [*json.loads(
        repo.ok("allow", "--list", "--json", cwd=repo.user)).values()]), allowed_in  # fmt: skip
    (repo.folder / "also-gone").rename(repo.work)


def test_an_empty_check_does_not_stand_for_none(place):
    put(place.work, "ci")
    for more in ([], ["--remove"]):  # an unset variable, perhaps
        done = place.run("allow", "--check", "", *more)
        assert (done.returncode, "--check is empty" in done.stderr) == (2, True)
    assert allowed(place) == {}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["allow", "--host", ""], "--host is empty"),
        (["allow", ""], "dir is empty"),
        (["allow", "--remove", "--host", ""], "--host is empty"),
        (["allow", "--check", "true", "--host", "box"], "--check and --host do not go together"),
        (["allow", "--list", "--remove"], "--list and --remove do not go together"),
        (["doctor", "--host", ""], "--host is empty"),
        (["doctor", "--live", ""], "--live is empty"),
        (["answer", "x", "yes", "--question", ""], "--question is empty"),
        (["stop", "--all", ""], "sessions is empty"),
        (["stop", "--all", "x"], "--all is every session"),
        (["logs", ""], "session is empty"),
        (["trace", ""], "root is empty"),
        (["wait", ""], "tasks is empty"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_nothing_that_is_empty_or_beside_something_else_stands_for_all(place, argv, said):
    put(place.work, "ci")
    place.ok("allow", "--check", "pytest -q")
    before = allowed(place)
    done = place.run(*argv)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert allowed(place) == before


def test_what_was_not_allowed_is_not_said_to_be_taken_away(place):
    place.ok("allow", "--check", "pytest -q")
    for argv in (["--check", "pytest"], ["--host", "box"]):
        done = place.run("allow", "--remove", *argv)
        assert (done.returncode, "is not allowed there" in done.stderr) == (3, True)
    done = place.run("allow", "--remove", str(place.user))
    assert (done.returncode, f"nothing is allowed in {place.user}" in done.stderr) == (3, True)


def test_in_a_directory_that_is_not_there_nothing_is_allowed(place):
    done = place.run("allow", "--check", "pytest -q", str(place.work / "typo"))
    assert (done.returncode, "typo is no directory" in done.stderr) == (2, True)
    assert allowed(place) == {}


def test_the_record_is_readable_by_its_owner_alone(place):
    place.ok("allow", "--check", "true")
    path = place.home / "allowed.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text()) == {str(place.work): {"check true": ""}}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"/": []}', '{"/": {}, "x": 1}', "\xff"])
def test_a_record_that_cannot_be_read_allows_nothing_and_is_kept(place, text):
    put(place.work, "ci")
    place.ok("allow")
    (place.home / "allowed.json").write_text(text, encoding="latin-1")
    assert "cao allow" in refused(place)
    (kept,) = (place.home / "quarantine").iterdir()
    assert kept.read_text(encoding="latin-1") == text
    place.ok("allow")
    assert place.ok("handoff", "ci", "demo: say used") == "used\n"


def test_entries_of_another_kind_are_kept(place):
    """What a later version writes beside (hosts) is not lost by this one."""
    (place.home / "allowed.json").write_text('{"hosts": {"build1": "x"}}')
    place.ok("allow", "--check", "true")
    assert allowed(place)["hosts"] == {"build1": "x"}


def test_two_who_allow_at_once_both_have_allowed(place):
    folders = [place.folder / f"f{n}" for n in range(6)]
    for folder in folders:
        put(folder, "ci")
    started = [place.start("allow", str(folder)) for folder in folders]
    for one in started:
        assert one.wait(60) == 0
    assert {*allowed(place)} == {str(folder) for folder in folders}


# ---- checks ----


def handoff(client, **more):
    return client.call("handoff", task="demo: say x", check_retries=0, **more)


def test_a_check_of_an_mcp_client_is_refused_before_anything_is_launched(place, client):
    done = handoff(client, target="demo", check="touch ran", worktree=False)
    assert done["isError"]
    for part in ("touch ran", "a person has to run", f"'touch ran' '{place.work}'",
                 "permissions: all"):  # fmt: skip
        assert part in says(done)
    assert "cao allow --check" in says(done)
    done = client.call("assign", target="demo", task="x", check="touch ran", request_id="1")
    assert done["isError"]
    assert (place.live(), (place.work / "ran").exists()) == ([], False)


def test_this_very_command_may_run_once_a_person_allowed_it(place, client):
    place.ok("allow", "--check", "touch ran")
    done = handoff(client, target="demo", check="touch ran")
    assert done["structuredContent"]["outcome"] == "done"
    assert (place.work / "ran").exists()
    assert handoff(client, target="demo", check="touch ran more")["isError"]
    other = place.folder / "other"
    other.mkdir()
    assert handoff(client, target="demo", check="touch ran", cwd=str(other))["isError"]
    place.ok("allow", "--remove", "--check", "touch ran")
    assert handoff(client, target="demo", check="touch ran")["isError"]


def test_a_check_is_allowed_for_a_repository_with_its_worktrees_and_folders(repo, client):
    repo.ok("allow", "--check", "true")
    (repo.work / "sub").mkdir()
    tree = repo.folder / "tree"
    git(repo, "worktree", "add", "-q", str(tree))
    for where in (repo.work, repo.work / "sub", tree):
        done = handoff(client, target="demo", check="true", cwd=str(where))
        assert done["structuredContent"]["outcome"] == "done"
    done = handoff(client, target="demo", check="true", worktree=True)
    assert done["structuredContent"]["outcome"] == "done"
    (session,) = {r["session"] for r in done["structuredContent"]["results"]}
    done = handoff(client, target=session, check="true")
    assert done["structuredContent"]["outcome"] == "done"
    inner = repo.work / "inner"
    inner.mkdir()
    git(repo, "init", "-q", cwd=inner)
    assert handoff(client, target="demo", check="true", cwd=str(inner))["isError"]


@pytest.mark.parametrize("env", [AGENT, "session"])
def test_a_check_of_an_agents_shell_is_refused_too(place, env):
    if env == "session":
        task = place.ok("assign", "demo", "demo: say x", "--keep").strip()
        place.ok("wait", task)
        env = {"CAO_SESSION": task.partition(".")[0]}
    before = place.live()
    done = place.run("handoff", "demo", "demo: say x", "--check", "touch ran", **env)
    assert (done.returncode, place.live()) == (2, before)
    assert "a person has to run: cao allow --check" in done.stderr
    place.ok("handoff", "demo", "demo: say x", "--check", "touch ran")
    assert (place.work / "ran").exists()


@pytest.mark.parametrize(
    ("head", "runs"),
    [
        ("permissions: all", True),
        ("permissions: auto", False),
        ("permissions: all\nrole: reviewer", False),
        ("permissions: all\nallowedTools: [fs_*]", False),
        ("permissions: all\nclaudeConfig: {sandbox: {enabled: true}}", False),
        ("permissions: all\nclaudeConfig: {verbose: true}", True),
        ("check: 'true'", True),
        ("check: 'false'", False),
    ],
)
def test_a_worker_that_could_run_it_unasked_has_its_check_run(place, client, head, runs):
    place.profile("worker", f"---\nprovider: demo\n{head}\n---\n")
    done = handoff(client, target="worker", check="true")
    assert done.get("isError", False) != runs
    assert runs or (says(done).count("cao allow"), place.live()) == (1, [])


def test_codex_keeps_its_sandbox_where_it_holds_something_back():
    def worker(head: str) -> cao.Profile:
        return cao.parse_profile(f"---\nprovider: codex\n{head}\n---\n", "w", "w.md")

    assert cao.may_run_anything(worker("permissions: all"))
    held = "permissions: all\nallowedTools: [execute_bash, fs_read, fs_list]"
    assert not cao.may_run_anything(worker(held))


def test_a_clipped_worker_is_judged_as_it_is(place):
    place.profile("worker", "---\nprovider: demo\npermissions: all\n---\n")
    place.profile("boss", "---\nprovider: demo\ngrant: {permissions: edits}\n---\n")
    task = place.ok("assign", "boss", "demo: say x", "--keep").strip()
    place.ok("wait", task)
    env = {"CAO_SESSION": task.partition(".")[0]}
    done = place.run("handoff", "worker", "demo: say x", "--check", "true", **env)
    assert (done.returncode, "cao allow --check" in done.stderr) == (2, True)
    assert place.ok("handoff", "worker", "demo: say x", "--check", "true") == "x\n"


def test_a_session_is_judged_by_the_profile_it_was_launched_with(place, client):
    place.profile("worker", "---\nprovider: demo\n---\n")
    done = handoff(client, target="worker")
    (session,) = place.live()
    place.profile("worker", "---\nprovider: demo\npermissions: all\n---\n")
    done = handoff(client, target=session, check="true")
    assert done["isError"]
    done = handoff(client, target="worker", check="true")
    assert done["structuredContent"]["outcome"] == "done"


def test_the_check_of_a_profile_and_of_a_person_always_run(place, client):
    place.profile("checked", "---\nprovider: demo\ncheck: touch by-profile\n---\n")
    assert handoff(client, target="checked")["structuredContent"]["outcome"] == "done"
    assert (place.work / "by-profile").exists()
    place.ok("handoff", "demo", "demo: say x", "--check", "touch by-person")
    assert (place.work / "by-person").exists()


def test_every_client_of_mcp_is_one_that_a_person_did_not_type_for(place):
    for name in ("claude-code", "cursor-vscode", "x"):
        talk = McpClient(place, name)
        assert handoff(talk, target="demo", check="true")["isError"]
        talk.close()


# ---- what only a shell would understand ----

FOR_A_SHELL = [
    ("npm test && npm run lint", "'&&'"),
    ("true | false", "'|'"),
    ("true|false", "'true|false'"),
    ("X=1 pytest", "'X=1'"),
    ("X='a b' pytest", "\"X='a b'\""),
    ("pytest > log", "'>'"),
    ("pytest 2>&1", "'2>&1'"),
    ("pytest < in", "'<'"),
    ("pytest tests/test_*.py", "'tests/test_*.py'"),
    ("ls test?.py", "'test?.py'"),
    ("ls [ab].py", "'[ab].py'"),
    ("test $(id -u) = 0", "'$(id'"),
    ("echo `id`", "'`id`'"),
    ("test -d $HOME/x", "'$HOME/x'"),
    ("test -d ${HOME}", "'${HOME}'"),
    ("cd web; npm test", "'web;'"),
    ("server & pytest", "'&'"),
    ("(cd web)", "'(cd'"),
    ("! grep TODO x", "'!'"),
    ("~/bin/check", "'~/bin/check'"),
    ("pytest -q # all", "'#'"),
    ("npm test\nnpm run lint", r"'\n'"),
    ("npm test \\\n -q", r"'\n'"),
]
FINE = [
    "pytest -q",
    "pytest -q\n",
    "sh -c 'npm test && npm run lint'",
    'sh -c "test -d $HOME | cat; X=1 true"',
    "grep 'a|b' x",
    "grep a\\|b x",
    "find . -exec true {} ;".replace(";", "\\;"),
    "git diff --quiet HEAD~1",
    "grep x$ y",
    "env X=1 pytest",
    "pytest -k a=b c#d e! 'tests/*.py'",
    "[ -f x ]",
]


@pytest.mark.parametrize(("check", "word"), FOR_A_SHELL, ids=[check for check, _ in FOR_A_SHELL])
def test_a_check_with_a_word_for_a_shell_is_refused(check, word):
    ((what, fix),) = cao.check_faults(check)
    assert f"{word} cannot be in" in what
    assert "sh -c '" in fix
    with pytest.raises(cao.CaoError, match=r"x\.md: no shell reads a check"):
        cao.parse_profile(f"---\ncheck: {json.dumps(check)}\n---\n", "x", "x.md")


@pytest.mark.parametrize("check", FINE)
def test_quoted_it_is_an_argument_like_any_other(check):
    assert [*cao.check_faults(check)] == []
    assert cao.parse_profile(f"---\ncheck: {json.dumps(check)}\n---\n", "x", "x.md")


def test_what_is_to_be_written_instead_works(place):
    done = place.run("handoff", "demo", "demo: say x", "--check", "true && touch 'a b'")
    command = done.stderr.partition("write sh -c ")[2].partition(", or quote")[0]
    assert (done.returncode, place.live()) == (2, [])
    place.ok("handoff", "demo", "demo: say x", "--check", f"sh -c {command}")
    assert (place.work / "a b").exists()


def test_it_is_refused_wherever_it_is_given(place, client):
    check = "true && false"
    assert "no shell reads" in says(handoff(client, target="demo", check=check))
    place.profile("x", f"---\nprovider: demo\ncheck: {check}\n---\n")
    assert "no shell reads" in place.run("handoff", "x", "demo: say x").stderr
    assert "no shell reads" in place.run("allow", "--check", check).stderr
    task = place.ok("assign", "demo", "demo: say x", "--keep").strip()
    place.ok("wait", task)
    session = task.partition(".")[0]
    done = place.run("handoff", session, "demo: say x", "--check", check)
    assert (done.returncode, "no shell reads" in done.stderr) == (2, True)


@pytest.mark.parametrize("check", ["  ", "\n"])
def test_a_blank_check_is_refused(place, check):
    done = place.run("handoff", "demo", "demo: say x", "--check", check)
    assert (done.returncode, place.live()) == (2, [])
    assert "the check is empty" in done.stderr


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


@pytest.mark.parametrize("how", [
    {"timeout_s": 20}, {"timeout_s": 20, "tail_bytes": 100}, {"timeout_s": None},
], ids=str)  # fmt: skip
def test_a_program_is_over_when_it_ends_whatever_it_leaves_behind(how):
    began = time.monotonic()
    ran = cao.run(["sh", "-c", "sleep 25 & echo $!; exit 3"], **how)
    took_s = time.monotonic() - began
    os.kill(int(ran.out), signal.SIGKILL)
    assert (ran.status, ran.err, took_s < 20) == (3, "", True)
    assert cao.run(["sh", "-c", "yes & exit 3"], **how).status == 3  # what it prints goes nowhere


def test_all_is_read_that_a_pipe_holds_when_the_program_ends():
    fd_in, fd_out = os.pipe()
    fcntl.fcntl(fd_out, 1031, 1 << 18)  # F_SETPIPE_SZ: as much as where a page is larger
    os.write(fd_out, b"x" * 200_000)  # and another keeps it open
    with open(fd_in, "rb") as out:
        child = SimpleNamespace(stdin=None, stdout=out, stderr=None, poll=lambda: 0)
        assert len(cao.converse(child, b"", float("inf"), 0)[0]) == 200_000
    os.close(fd_out)


def test_a_program_may_be_slow_to_read_and_close_what_it_prints_on():
    text = "x" * 1_000_000
    assert cao.run(["sh", "-c", "sleep 1; cat"], 60, text=text) == (0, text, "")
    script = "exec >&- 2>&-; sleep 1; test $(wc -c) = 1000000"
    assert cao.run(["sh", "-c", script], 60, text=text) == (0, "", "")
    assert cao.run(["sh", "-c", "exec <&-; echo x; exit 3"], 60, text=text) == (3, "x\n", "")


def test_a_program_that_does_not_end_is_killed_with_its_group():
    with pytest.raises(cao.CaoError, match=r"took longer than 1 s, having printed: hi"):
        cao.run(["sh", "-c", "echo hi; sleep 30 & sleep 30"], 1, tail_bytes=100)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_program_is_being_started_ends_it(number, monkeypatch):
    pids = []

    class Slow(subprocess.Popen):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            pids.append(self.pid)
            signal.raise_signal(number)  # its caller does not know of it yet

    before = [signal.getsignal(one) for one in cao.ENDINGS]
    cao.end_by_signals()
    monkeypatch.setattr(subprocess, "Popen", Slow)
    try:
        with pytest.raises(KeyboardInterrupt):
            cao.run(["sleep", "60"], None)
        assert not Path(f"/proc/{pids[0]}").exists()
    finally:
        for one, handler in zip(cao.ENDINGS, before):
            signal.signal(one, handler)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[0], signal.SIGKILL)


def test_a_check_may_leave_a_process_behind(place):
    check = "sh -c 'sleep 60 & exit 0'"
    assert place.ok("handoff", "demo", "demo: say x", "--check", check, timeout_s=50) == "x\n"


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


def test_a_check_that_is_allowed_here_is_not_allowed_on_another_machine(place):
    place.ok("allow", "--check", "sh t.sh")
    place.ok("allow", "--host", "box")
    given = ("demo: say x", "--check", "sh t.sh")
    assert place.ok("handoff", "demo", *given[:1], CLAUDECODE="1") == "x\n"
    done = place.run("assign", "demo@box", *given, "--cwd", "/evil", CLAUDECODE="1")
    assert done.returncode == 2
    assert "no person has allowed the check 'sh t.sh' there" in done.stderr
    assert "cao allow" not in done.stderr
