"""`ray up` and `ray down` with launch/hosts.yaml, over a real SSH."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml

from tests.cluster.hosts import HOME, Hosts
from tests.cluster.ray_hosts import REPOSITORY, SCRIPTS, wait_until
from tests.launch.load_script import load_script

pytestmark = [pytest.mark.cluster, pytest.mark.nightly, pytest.mark.timeout(900)]
# The last host is the computer of whoever calls `ray up`.
HEAD, WORKER, CLIENT = 0, 1, 2
_UP_S = 300.0
_CALL_S = 60.0
# `ray down` ends the head. The other machines end their Ray when they have missed it for a minute.
_GONE_S = 240.0
# Port 22 of every host. The account of root may have no password.
_SSHD = """\
AuthorizedKeysFile {folder}/key.pub
HostKey {folder}/host_key
PidFile none
StrictModes no
UsePAM no
"""
COUNT_NODES = load_script("wait_for_nodes").COUNT_NODES
_MAKE_HOME = "mkdir -p ~/.ray && cp {folder}/auth_token ~/.ray/auth_token"


class Machines:
    """Two hosts with sshd, and a third from which they are reached."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        self.folder = hosts.shared
        self.log = self.folder / "log"
        self.environment = {
            "HOME": str(HOME),
            "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
        }
        (self.folder / "auth_token").write_text(secrets.token_hex(32))
        for name in ("key", "host_key"):
            make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name]
            subprocess.run(make, check=True, timeout=_CALL_S)
        (self.folder / "sshd").write_text(_SSHD.format(folder=self.folder))
        sshd = [shutil.which("sshd") or "sshd", "-D", "-e", "-f", str(self.folder / "sshd")]
        for number in (HEAD, WORKER):
            hosts[number].start(sshd, self.log, self.environment, Path("/"))
        for number in (HEAD, WORKER):
            wait_until(lambda number=number: self._listens(number), _CALL_S, self.log)
        self.call("bash", "-c", _MAKE_HOME.format(folder=self.folder))

    def call(self, *command: str, timeout_s: float = _CALL_S) -> str:
        """Output of a command on the client, from a copy of the checkout's folder."""
        done = self.hosts[CLIENT].run(
            ["env", f"--chdir={REPOSITORY}", *command], self.environment, timeout=timeout_s
        )
        assert done.returncode == 0, done.stdout + done.stderr + self.log.read_text()
        return done.stdout

    def cluster_file(self) -> Path:
        """launch/hosts.yaml with the addresses of here; the environment is not built again."""
        cluster = yaml.safe_load((REPOSITORY / "launch" / "hosts.yaml").read_text())
        addresses = [self.hosts[number].address for number in (HEAD, WORKER)]
        cluster["provider"] |= {"head_ip": addresses[0], "worker_ips": addresses[1:]}
        cluster["auth"] = {"ssh_user": "root", "ssh_private_key": str(self.folder / "key")}
        mounts: Mapping[str, str] = cluster["file_mounts"]
        cluster["file_mounts"] = {
            path.replace("/home/ubuntu", str(HOME)): source for path, source in mounts.items()
        }
        assert cluster["setup_commands"] == ["cd ~/rlhf_ray && launch/setup.sh"]
        cluster["setup_commands"] = [f"ln -sfn {sys.prefix} ~/rlhf_ray/.venv"]
        file = self.folder / "hosts.yaml"
        file.write_text(yaml.safe_dump(cluster))
        return file

    def _listens(self, number: int) -> bool:
        """Whether sshd takes connections from the client."""
        probe = f"exec 3<>/dev/tcp/{self.hosts[number].address}/22"
        done = self.hosts[CLIENT].run(["bash", "-c", probe], self.environment, timeout=_CALL_S)
        return done.returncode == 0

    def has_raylet(self, number: int) -> bool:
        return any("/raylet/raylet " in title for title in self.hosts[number].titles())

    def num_alive(self) -> int:
        """Nodes of the cluster, as the head counts them."""
        script = (
            "import ray; ray.init(address='auto', log_to_driver=False, logging_level='ERROR')\n"
        )
        script += "print(sum(node['Alive'] for node in ray.nodes()))"
        done = self.hosts[HEAD].run(
            [sys.executable, "-c", script], self.environment, timeout=_CALL_S
        )
        lines = done.stdout.split()
        return int(lines[-1]) if done.returncode == 0 and lines else 0


@pytest.fixture
def machines(can_have_hosts) -> Iterator[Machines]:
    if not shutil.which("sshd"):
        pytest.skip("no sshd: apt-get install openssh-server openssh-client rsync")
    hosts = Hosts(3, seen=(REPOSITORY, Path(sys.prefix)))
    try:
        yield Machines(hosts)
    finally:
        hosts.close()


def test_up_and_down(machines):
    file = str(machines.cluster_file())
    machines.call("ray", "up", "--yes", "--no-config-cache", file, timeout_s=_UP_S)
    wait_until(lambda: machines.num_alive() == 2, _UP_S, machines.log)
    assert machines.has_raylet(HEAD)
    assert machines.has_raylet(WORKER)
    # The shells that `ray exec` and `ray attach` open know the token and the environment.
    assert "2.60.0" in machines.call("ray", "exec", file, "ray --version", timeout_s=_UP_S)
    machines.call("ray", "down", "--yes", file, timeout_s=_UP_S)
    for number in (HEAD, WORKER):
        wait_until(lambda number=number: not machines.has_raylet(number), _GONE_S, machines.log)
