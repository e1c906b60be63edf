"""A real Slurm on hosts: munged and slurmd on each, slurmctld on the first."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import subprocess
import time
from pathlib import Path

from tests.cluster.hosts import Hosts

PROGRAMS = ("munged", "sbatch", "scontrol", "sinfo", "slurmctld", "slurmd", "srun")
PACKAGES = "slurmctld slurmd slurm-client munge"
_START_S = 60.0
_CALL_S = 30.0
# The script asks for eight on a node. Slurm counts devices, whatever they are.
_NUM_GPUS = 8
_NULL = (1, 3)  # /dev/null
_CONF = """\
ClusterName=hosts
SlurmctldHost={first}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=/tmp/munge.socket
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
ReturnToService=2
SlurmdParameters=config_overrides
StateSaveLocation=/tmp/slurmctld
SlurmdSpoolDir=/tmp/slurmd
SlurmctldPidFile=/tmp/slurmctld.pid
SlurmdPidFile=/tmp/slurmd.pid
SlurmctldLogFile={logs}/slurmctld.log
SlurmdLogFile={logs}/slurmd_%n.log
GresTypes=gpu
NodeName=h[1-{number}] CPUs=1 RealMemory=2000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_no_slurm() -> str | None:
    """The reason why there can be no Slurm here; None if there can."""
    lacking = [name for name in PROGRAMS if not shutil.which(name)]
    return f"no {', '.join(lacking)}: apt-get install {PACKAGES}" if lacking else None


class Slurm:
    """The daemons; they end with the hosts.

    Attributes:
        hosts: below it.
        environment: of its clients.
    """

    def __init__(self, hosts: Hosts, num_hosts: int) -> None:
        self.hosts = hosts
        self._folder = hosts.shared / "slurm"
        self._folder.mkdir()
        conf = self._folder / "slurm.conf"
        conf.write_text(
            _CONF.format(first="h1", logs=self._folder, number=num_hosts, gpus=_NUM_GPUS)
        )
        for number in range(_NUM_GPUS):
            os.mknod(self._folder / f"gpu{number}", stat.S_IFCHR | 0o600, os.makedev(*_NULL))
        devices = f"{self._folder}/gpu[0-{_NUM_GPUS - 1}]"
        (self._folder / "gres.conf").write_text(f"AutoDetect=off\nName=gpu File={devices}\n")
        self._key = self._folder / "munge.key"
        self._key.write_bytes(secrets.token_bytes(128))
        self._key.chmod(0o400)
        self.environment = {**os.environ, "SLURM_CONF": str(conf)}
        for number in range(num_hosts):
            self._start(number, "munged", "--foreground", "--force", *self._munge_files())
        self._start(0, "slurmctld", "-D")
        for number in range(num_hosts):
            self._start(number, "slurmd", "-D")
        self._wait_until_idle(num_hosts)

    def sbatch(self, options: list[str], folder: Path) -> subprocess.Popen[bytes]:
        """`sbatch --wait` on the first host, started: its exit status is that of the job."""
        command = ["sbatch", "--wait", *options]
        log = self._folder / "sbatch.log"
        return self.hosts[0].start(command, log, self.environment, folder)

    def logs(self) -> str:
        """The ends of the logs of all daemons."""
        files = sorted(self._folder.glob("*.log"))
        return "\n".join(f"--- {file.name}\n{file.read_text()[-2000:]}" for file in files)

    def _munge_files(self) -> list[str]:
        kinds = {"log": "log", "pid": "pid", "seed": "seed"}
        files = [f"--{kind}-file=/tmp/munged.{ending}" for kind, ending in kinds.items()]
        return [f"--key-file={self._key}", "--socket=/tmp/munge.socket", *files]

    def _start(self, number: int, name: str, *arguments: str) -> None:
        host = self.hosts[number]
        log = self._folder / f"{name}_{host.name}_output.log"
        program = shutil.which(name) or name
        host.start([program, *arguments], log, self.environment, Path("/"))

    def _wait_until_idle(self, num_hosts: int) -> None:
        deadline = time.monotonic() + _START_S
        states: list[str] = []
        while states != ["idle"] * num_hosts:
            assert time.monotonic() < deadline, f"{states}\n{self.logs()}"
            time.sleep(0.5)
            command = ["sinfo", "--noheader", "--Node", "--format=%T"]
            states = self.hosts[0].run(command, self.environment, timeout=_CALL_S).stdout.split()
