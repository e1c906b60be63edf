"""Hosts on this machine: each has its own network, processes, /tmp, /dev/shm and host name.

A host is a set of Linux namespaces. A cable (a veth pair) leads from it to a switch (a bridge),
which has a network namespace of its own. So nothing is added to the network of this machine, and
several test runs at once may use the same addresses. When the first process of a host ends, the
kernel ends all others and removes the host's mounts and its cable. That process ends when its
standard input is closed, hence also when this process is killed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

import psutil

_TIMEOUT_S = 30.0
_TOOLS = ("ip", "mount", "nsenter", "tc", "unshare")
_NETWORK = "10.77.0"
# Of root, for whoever asks the system and not the environment (sshd).
HOME = Path("/tmp/home")
_SWITCH_ADDRESS = f"{_NETWORK}.254"
# Waits for the end of its input as a child, so that the shell collects orphans as an init does.
_HOLD = "echo ready; cat >/dev/null; :"
# Arguments: name, a folder, the files /etc/hosts and /etc/passwd, and folders below /tmp that are
# to be seen. The new /tmp is put together in the folder before it hides the old one.
_HOST = f"""
set -e
hostname "$1"
mount -t tmpfs tmpfs "$2"
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir /run/sshd
mount --bind "$3" /etc/hosts
mount --bind "$4" /etc/passwd
new="$2"
shift 4
for seen in "$@"; do
    mkdir -p "$new$seen"
    mount --bind "$seen" "$new$seen"
done
mkdir -p "$new{HOME}"
mount --rbind "$new/tmp" /tmp
ip link set lo up
{_HOLD}
"""


@cache
def why_not() -> str | None:
    """The reason why there can be no hosts on this machine; None if there can."""
    if sys.platform != "linux":
        return "hosts are Linux namespaces, and this is no Linux"
    if lacking := [tool for tool in _TOOLS if not shutil.which(tool)]:
        return f"hosts need {', '.join(lacking)} (Debian: iproute2, mount, util-linux)"
    if os.geteuid() != 0:
        return "hosts are network namespaces, and only root may make them"
    try:
        Hosts(1).close()
    except (OSError, subprocess.SubprocessError) as error:
        return f"network namespaces cannot be made here: {_words(error)}"
    return None


class Host:
    """One host; `Hosts` makes it.

    Args:
        folder: an empty one, for its /tmp.
        files: its /etc/hosts and /etc/passwd.
        seen: folders below /tmp that it sees in its own /tmp.

    Attributes:
        name, address: as other hosts know it.
    """

    def __init__(
        self, name: str, address: str, folder: Path, files: Sequence[Path], seen: Sequence[Path]
    ) -> None:
        self.name, self.address = name, address
        self._first = _namespaces(
            ("--net", "--mount", "--uts", "--ipc", "--pid", "--mount-proc"),
            ("sh", "-c", _HOST, "sh", name, *map(str, (folder, *files, *seen))),
        )
        self.pid = psutil.Process(self._first.pid).children()[0].pid

    def command(self, command: Sequence[str], folder: Path = Path("/")) -> list[str]:
        """The command as it is called from outside to run on this host."""
        kinds = ("--net", "--mount", "--uts", "--ipc", "--pid")
        inside = ("env", f"--chdir={folder}", *command)
        return ["nsenter", f"--target={self.pid}", *kinds, "--", *inside]

    def start(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str], folder: Path
    ) -> subprocess.Popen[bytes]:
        """A process on this host; it ends with the host."""
        with log.open("ab") as file:
            return subprocess.Popen(
                self.command(command, folder),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=dict(environment),
            )

    def run(
        self, command: Sequence[str], environment: Mapping[str, str], **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on this host to its end."""
        return subprocess.run(
            self.command(command),
            env=dict(environment),
            capture_output=True,
            text=True,
            check=False,
            **options,
        )

    def titles(self) -> list[str]:
        """Command lines of the processes that run on this host now."""
        mine = _namespace_of(self.pid)
        found = []
        for process in psutil.process_iter():
            try:
                if _namespace_of(process.pid) == mine:
                    found.append(" ".join(process.cmdline()).strip())
            except (OSError, psutil.NoSuchProcess):
                continue  # It has just ended.
        return found

    def power_off(self) -> None:
        """End every process of this host at once, by SIGKILL."""
        _end(self._first, self.pid)


class Hosts:
    """Hosts h1, h2, ... with addresses 10.77.0.1, 10.77.0.2, ... on one switch.

    Args:
        seen: what all hosts see although it is below /tmp.

    Attributes:
        shared: folder that all hosts see.
    """

    def __init__(self, num_hosts: int, *, seen: Sequence[Path] = ()) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rr_", dir="/tmp"))
        self.shared = self.folder / "shared"
        self.shared.mkdir()
        self._new_tmp = self.folder / "tmp"
        self._new_tmp.mkdir()
        below = [path for path in seen if path.is_relative_to("/tmp")]
        self._seen = (self.shared, *below)
        names = [f"h{number + 1}" for number in range(num_hosts)]
        hosts_file, users = self.folder / "hosts", self.folder / "passwd"
        self._files = (hosts_file, users)
        users.write_text(f"root:x:0:0:root:{HOME}:/bin/bash\n{_others(Path('/etc/passwd'))}")
        lines = [f"{_NETWORK}.{number + 1} {name}" for number, name in enumerate(names)]
        hosts_file.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        self._switch: subprocess.Popen[bytes] | None = None
        self._hosts: list[Host] = []
        try:
            self._switch = _namespaces(("--net",), ("sh", "-c", _HOLD))
            self._at_switch("link", "add", "switch", "type", "bridge")
            self._at_switch("addr", "add", f"{_SWITCH_ADDRESS}/24", "dev", "switch")
            self._at_switch("link", "set", "switch", "up")
            for number in range(num_hosts):
                self._hosts.append(self._new_host(number))
        except BaseException:
            self.close()
            raise

    def __getitem__(self, number: int) -> Host:
        return self._hosts[number]

    def cut(self, number: int) -> None:
        """Pull the cable of a host out of the switch."""
        self._at_switch("link", "set", f"port{number}", "down")

    def slow_down(self, number: int, *, megabits: int) -> None:
        """Limit what reaches a host through its cable, in megabits a second."""
        limit = ("tbf", "rate", f"{megabits}mbit", "burst", "64kb", "latency", "200ms")
        self._in_switch("tc", "qdisc", "add", "dev", f"port{number}", "root", *limit)

    def full_speed(self, number: int) -> None:
        """End `slow_down`; a new host in the place of a slow one is not slow."""
        self._in_switch("tc", "qdisc", "del", "dev", f"port{number}", "root")

    def bytes_moved(self, number: int) -> int:
        """Bytes that have gone through the cable of a host, in both directions."""
        (port,) = json.loads(self._in_switch("ip", "-s", "-j", "link", "show", f"port{number}"))
        return port["stats64"]["rx"]["bytes"] + port["stats64"]["tx"]["bytes"]

    def replace(self, number: int) -> Host:
        """Put a new host with this name and address in the place of the old one."""
        self._hosts[number].power_off()
        # The kernel removes a cable some time after its host.
        self._at_switch("link", "del", f"port{number}", check=False)
        self._hosts[number] = self._new_host(number)
        return self._hosts[number]

    def close(self) -> None:
        """End all hosts and remove their folder."""
        for host in self._hosts:
            host.power_off()
        if self._switch is not None:
            _end(self._switch)
        shutil.rmtree(self.folder)

    def _new_host(self, number: int) -> Host:
        name, address = f"h{number + 1}", f"{_NETWORK}.{number + 1}"
        host = Host(name, address, self._new_tmp, self._files, self._seen)
        try:
            # The same hardware address for a host in the place of another: the others remember it.
            hardware = ("address", f"02:00:0a:4d:00:{number + 1:02x}")
            port, peer = f"port{number}", ("peer", "name", "eth0", *hardware)
            self._at_switch("link", "add", port, "type", "veth", *peer, "netns", str(host.pid))
            self._at_switch("link", "set", port, "master", "switch")
            self._at_switch("link", "set", port, "up")
            for words in (
                ("addr", "add", f"{address}/24", "dev", "eth0"),
                ("link", "set", "eth0", "up"),
                ("route", "add", "default", "via", _SWITCH_ADDRESS),
            ):
                _checked(host.command(("ip", *words)))
        except BaseException:
            host.power_off()
            raise
        return host

    def _at_switch(self, *words: str, check: bool = True) -> None:
        self._in_switch("ip", *words, check=check)

    def _in_switch(self, *command: str, check: bool = True) -> str:
        assert self._switch is not None
        inside = ["nsenter", f"--target={self._switch.pid}", "--net", "--"]
        return _checked([*inside, *command], check=check)


def _namespaces(kinds: Sequence[str], command: Sequence[str]) -> subprocess.Popen[bytes]:
    """A process in new namespaces that has said that it is ready."""
    fork = ("--fork", "--kill-child") if "--pid" in kinds else ()
    process = subprocess.Popen(
        ["unshare", *kinds, *fork, "--", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    if _pipe(process.stdout).readline() != b"ready\n":
        words = _pipe(process.stderr).read().decode().strip()
        _end(process)
        raise OSError(words or "unshare failed")
    return process


def _end(process: subprocess.Popen[bytes], first: int | None = None) -> None:
    """End a process of `_namespaces`.

    Args:
        first: the first process inside, if it has namespaces of processes: all end with it.
    """
    if process.poll() is None:
        os.kill(first or process.pid, 9)
    for pipe in (process.stdin, process.stdout, process.stderr):
        _pipe(pipe).close()
    process.wait(timeout=_TIMEOUT_S)


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _others(users: Path) -> str:
    lines = users.read_text().splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("root:"))


def _namespace_of(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/pid")


def _checked(command: Sequence[str], *, check: bool = True) -> str:
    """Run a command; returns what it printed."""
    done = subprocess.run(command, check=check, capture_output=True, text=True, timeout=_TIMEOUT_S)
    return done.stdout


def _words(error: OSError | subprocess.SubprocessError) -> str:
    words = error.stderr if isinstance(error, subprocess.CalledProcessError) else None
    return (words or str(error)).strip()
