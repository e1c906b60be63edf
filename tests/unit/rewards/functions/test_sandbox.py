"""The sandbox: its command line everywhere, its borders where bubblewrap is installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import psutil
import pytest

from rlhf_ray.config.errors import RequestError
from rlhf_ray.records import FailureKind
from rlhf_ray.rewards.functions.sandbox import Sandbox, sandbox_command, sandbox_options

HOSTILE = str(Path(__file__).parent / "hostile_rewards.py")
PLAIN = Sandbox(network=False, read=(), scratch_gib=None)
BWRAP = shutil.which("bwrap")


def _reason() -> str:
    """Why there is no sandbox on this machine; empty if there is one."""
    if BWRAP is None:
        return "bubblewrap (bwrap) is not installed"
    tried = subprocess.run(
        [BWRAP, "--unshare-all", "--ro-bind", "/", "/", "true"], capture_output=True, text=True
    )
    return f"bwrap cannot make a sandbox: {tried.stderr}" if tried.returncode else ""


needs_bwrap = pytest.mark.skipif(bool(_reason()), reason=_reason() or "-")


def triples(options: list[str], name: str) -> list[tuple[str, str]]:
    return [
        (options[place + 1], options[place + 2])
        for place, option in enumerate(options)
        if option == name
    ]


def test_the_command_line_hides_first_and_shows_what_is_needed_then(tmp_path: Path) -> None:
    # Folders below /tmp, which is hidden: as a home folder and a reward's folder may be.
    home, mine, outside = tmp_path / "home", tmp_path / "home/mine", Path("/usr")
    mine.mkdir(parents=True)
    (tmp_path / "link").symlink_to(mine)
    sandbox = Sandbox(network=False, read=(tmp_path / "link", tmp_path / "gone"), scratch_gib=0.5)
    options = sandbox_options(sandbox, [outside, home], home=str(home), has_size=True)
    assert options[:5] == ["--die-with-parent", "--unshare-all", "--cap-drop", "ALL", "--ro-bind"]
    assert triples(options, "--ro-bind") == [
        ("/", "/"),
        *((str(path), str(path)) for path in (home, mine, tmp_path / "link")),
    ]
    place = options.index("--tmpfs")
    assert options[place - 2 : place + 2] == ["--size", str(1 << 29), "--tmpfs", "/tmp"]
    assert place < options.index(str(mine))
    assert "--share-net" not in options
    assert options[-1] == "--"


def test_the_home_folder_is_hidden_wherever_it_is(tmp_path: Path) -> None:
    def hidden(home: Path | None) -> set[str]:
        options = sandbox_options(
            PLAIN, [], home=None if home is None else str(home), has_size=False
        )
        assert "--size" not in options
        return {options[at + 1] for at, option in enumerate(options) if option == "--tmpfs"}

    somewhere = Path("/usr/share")
    assert hidden(somewhere) - hidden(None) == {"/usr/share"}
    assert hidden(tmp_path) == hidden(tmp_path / "gone") == hidden(None)
    assert "/tmp" in hidden(None)


def test_the_network_is_shared_on_request_alone() -> None:
    shared = Sandbox(network=True, read=(), scratch_gib=None)
    assert "--share-net" in sandbox_options(shared, [], home=None, has_size=True)


def test_a_folder_that_is_hidden_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert sandbox_options(PLAIN, [], home=None, has_size=True)[-3:] == ["--chdir", "/tmp", "--"]
    shown = sandbox_options(PLAIN, [tmp_path.parent], home=None, has_size=True)
    assert shown[-3:] == ["--chdir", str(tmp_path), "--"]
    monkeypatch.chdir("/usr")
    assert sandbox_options(PLAIN, [], home=None, has_size=True)[-3:] == ["--chdir", "/usr", "--"]


def test_without_the_program_the_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RequestError, match=r"the program bwrap is not installed; install bubblew"):
        sandbox_command(PLAIN, [], home=None)


def test_a_machine_that_forbids_it_is_refused(monkeypatch, tmp_path: Path, make_worker) -> None:
    program = tmp_path / "bwrap"
    program.write_text(
        "#!/bin/sh\n[ $1 = --help ] && exit 0\necho 'bwrap: No permissions' >&2\nexit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(RequestError, match=r"cannot make a sandbox here: bwrap: No permissions"):
        make_worker(f"{HOSTILE}:looks_around", sandbox="bwrap")


@needs_bwrap
def test_rewards_are_scored_in_the_sandbox(make_worker, make_group, user_rewards) -> None:
    worker = make_worker(
        "exact_match", f"{user_rewards}:letters", f"{user_rewards}:by_response", sandbox="bwrap"
    )
    group, summary = worker.score(make_group("42", "segfault", "exit"))
    assert group.rewards.tolist() == [1.0 + 2.0 + 1.0]
    assert [failure.kind for failure in summary.failures] == [FailureKind.REWARD_WORKER_LOST] * 2
    assert "killed by SIGSEGV" in summary.failures[0].message
    assert "exit status 3" in summary.failures[1].message


@needs_bwrap
def test_nothing_is_written_and_no_one_is_reached(make_worker, make_group, tmp_path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("token")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])

        def tried(response: str, target: str, **settings: object) -> float:
            entry = {"path": f"{HOSTILE}:looks_around", "arguments": {"target": target}}
            worker = make_worker(entry, sandbox="bwrap", **settings)
            group, summary = worker.score(make_group(response))
            assert summary.failures == ()
            return group.rewards.tolist()[0]

        here = str(Path(__file__).parent / "written")
        assert tried("write", here) == 0.0
        assert tried("scratch", "") == 1.0
        assert not Path("/tmp/scratch").exists()
        assert tried("read", str(secret)) == 0.0
        assert tried("read", str(secret), sandbox_read=[str(tmp_path)]) == 1.0
        assert tried("write", str(secret), sandbox_read=[str(tmp_path)]) == 0.0
        assert tried("network", port) == 0.0
        assert tried("network", port, sandbox_network=True) == 1.0
        assert tried("processes", "") <= 3
        assert tried("signal", str(os.getpid())) == 0.0


@needs_bwrap
def test_limits_and_daemons_in_the_sandbox(make_worker, make_group, tmp_path) -> None:
    worker = make_worker(
        {"path": f"{HOSTILE}:uses"},
        {"path": f"{HOSTILE}:daemonises", "arguments": {"file": "/tmp/pids"}},
        sandbox="bwrap",
        max_processes=20,
        max_memory_gib=1.0,
        timeout_s=30.0,
    )
    group, summary = worker.score(make_group("a", "processes", "memory"))
    assert group.rewards.tolist() == [2.0]
    assert [f.kind for f in summary.failures] == [FailureKind.REWARD_LIMIT] * 2
    # The daemon of the last call to be made was ended with the call: nothing but the sandbox runs.
    assert worker._process.num_ended_processes >= 1


@needs_bwrap
def test_a_reward_file_in_a_hidden_folder_is_seen_with_its_neighbours(
    make_worker, make_group, tmp_path
) -> None:
    (tmp_path / "neighbour_in_sandbox.py").write_text("VALUE = 4.0\n")
    file = tmp_path / "reward.py"
    file.write_text("import neighbour_in_sandbox\ndef f(s): return neighbour_in_sandbox.VALUE\n")
    group, _ = make_worker(f"{file}:f", sandbox="bwrap").score(make_group("a"))
    assert group.rewards.tolist() == [4.0]


@pytest.mark.unit_slow
@pytest.mark.parametrize(
    "sandbox",
    [
        pytest.param("bwrap", marks=needs_bwrap),
        pytest.param(
            "none",
            marks=pytest.mark.skipif(
                os.geteuid() != 0, reason="without root the keeper has no priority over a bomb"
            ),
        ),
    ],
)
def test_a_fork_bomb_is_ended(make_worker, make_group, sandbox: str) -> None:
    worker = make_worker(f"{HOSTILE}:bomb", sandbox=sandbox, max_processes=20, timeout_s=60.0)
    group, summary = worker.score(make_group("a"))
    assert group.rewards.tolist() == []
    (failure,) = summary.failures
    assert failure.kind is FailureKind.REWARD_LIMIT
    assert "more processes at once than reward.max_processes, 20" in failure.message
    # The next process of the functions is there, or none; nothing of the bomb.
    assert len(psutil.Process().children(recursive=True)) <= 5
