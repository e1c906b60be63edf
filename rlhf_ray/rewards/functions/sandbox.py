"""A sandbox for reward functions, by bubblewrap (`bwrap`).

Inside, the whole file system can be read and nothing of it written; /tmp and the like, /run and the
home folder are empty, but for what is made visible in them. No network unless asked for. Processes
see each other alone.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rlhf_ray.config.errors import RequestError

_CHECK_TIMEOUT_S = 20.0
# Sockets of services (Docker's, for one), other users' files, keys and tokens.
_HIDDEN = ("/tmp", "/var/tmp", "/run", "/var/run", "/root", "/home")
_WAYS = "or set reward.sandbox=none, which contains less (docs/rewards.md)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sandbox:
    """Settings of the sandbox.

    Attributes:
        network: whether the functions reach the network.
        read: files and folders that they may read though their place is hidden.
        scratch_gib: size of /tmp, which is in memory; None for no limit.
    """

    network: bool
    read: tuple[Path, ...]
    scratch_gib: float | None


def sandbox_command(sandbox: Sandbox, visible: Iterable[Path], *, home: str | None) -> list[str]:
    """The command line to which a program and its arguments are added.

    Args:
        visible: files and folders that the program needs.
        home: the home folder, which is hidden.

    Raises:
        RequestError: bubblewrap is not installed, or may not make a sandbox here.
    """
    program = shutil.which("bwrap")
    if program is None:
        raise RequestError(
            "reward.sandbox=bwrap: the program bwrap is not installed; install bubblewrap (a "
            f"package of that name in every distribution), on every node, {_WAYS}"
        )
    has_size = "--size" in _run([program, "--help"]).stdout
    options = sandbox_options(sandbox, visible, home=home, has_size=has_size)
    tried = _run([program, *options, "true"])
    if tried.returncode != 0:
        reason = tried.stderr.strip().splitlines()[-1:] or [f"exit status {tried.returncode}"]
        raise RequestError(
            f"reward.sandbox=bwrap: bwrap cannot make a sandbox here: {reason[0]}; containers "
            "often forbid it: allow user namespaces (in Docker: --security-opt "
            f"seccomp=unconfined), {_WAYS}"
        )
    return [program, *options]


def sandbox_options(
    sandbox: Sandbox, visible: Iterable[Path], *, home: str | None, has_size: bool
) -> list[str]:
    """Options of `bwrap`. Later ones lie over earlier ones.

    Args:
        has_size: whether this version can limit the size of a folder in memory (from 0.7).
    """
    hidden = [Path(name) for name in _HIDDEN if Path(name).is_dir() and not Path(name).is_symlink()]
    if home is not None and Path(home).is_dir() and not _lies_in(Path(home), hidden):
        hidden.append(Path(home).resolve())
    size = []
    if sandbox.scratch_gib is not None and has_size:
        size = ["--size", str(int(sandbox.scratch_gib * (1 << 30)))]
    options = ["--die-with-parent", "--unshare-all", "--cap-drop", "ALL"]
    if sandbox.network:
        options.append("--share-net")
    options += ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    for folder in hidden:
        options += [*size, "--tmpfs", str(folder)]
    # Names of servers are looked up in a file that may be a link to below /run.
    names = [Path("/etc/resolv.conf")] if sandbox.network else []
    shown = list(_needed((*visible, *sandbox.read, *names), hidden))
    for path in shown:
        options += ["--ro-bind", str(path), str(path)]
    here = Path.cwd()
    is_seen = _lies_in(here, shown) or not _lies_in(here, hidden)
    return [*options, "--chdir", str(here) if is_seen else "/tmp", "--"]


def _needed(paths: Iterable[Path], hidden: list[Path]) -> Iterator[Path]:
    """The paths that exist and lie in a hidden folder, each once, folders before their parts."""
    existing = {path for path in paths if path.exists()}
    # A link below a hidden folder may lead to another place below one; both are made visible.
    both = existing | {path.resolve() for path in existing}
    for path in sorted(both):
        if _lies_in(path, hidden):
            yield path


def _lies_in(path: Path, folders: list[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_CHECK_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RequestError(f"reward.sandbox=bwrap: bwrap cannot be run: {error}") from error
