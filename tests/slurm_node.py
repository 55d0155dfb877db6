"""A Slurm of one node on loopback for tests: munge, controller and node daemon as children of this process."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
DAEMONS = "/usr/sbin"  # not on every user's PATH
CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=2
JobRequeue=1
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def absent() -> str | None:
    """Why there can be no Slurm here; None where there can."""
    path = f"{os.environ['PATH']}:{DAEMONS}"
    lacking = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if lacking:
        return f"no {', '.join(lacking)}: apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "the daemons of this test run as root"


class SlurmNode:
    """A context manager; `env` is what a command needs to find this Slurm and no other."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.processes: list[subprocess.Popen] = []
        self.env = {**os.environ, "SLURM_CONF": str(root / "slurm.conf"), "PATH": f"{os.environ['PATH']}:{DAEMONS}"}

    def __enter__(self) -> SlurmNode:
        for name in ("state", "spool"):
            (self.root / name).mkdir()
        host = socket.gethostname().split(".")[0]
        controller, node = free_ports(2)
        settings = {"host": host, "user": "root", "root": self.root, "controller": controller, "node": node}
        (self.root / "slurm.conf").write_text(CONF.format(**settings))
        key = self.root / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        place = str(self.root / "munge")
        self._start("munged", "--foreground", "--force", f"--socket={place}.socket", f"--key-file={key}",
                    f"--pid-file={place}.pid", f"--seed-file={place}.seed", f"--log-file={place}.log")  # fmt: skip
        self._wait(lambda: (self.root / "munge.socket").exists(), "munged")
        self._start("slurmctld", "-D")
        self._start("slurmd", "-D", "-N", host)
        self._wait(lambda: self("sinfo", "-h", "-o", "%T", check=False).strip() == "idle", "the node")
        return self

    def __exit__(self, *_: object) -> None:
        self("scancel", "--user", "root", "--signal=KILL", check=False)
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def __call__(self, *line: str, check: bool = True) -> str:
        done = subprocess.run(line, env=self.env, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, (line, done.stderr)
        return done.stdout

    def _start(self, *line: str) -> None:
        log = (self.root / f"{line[0]}.out").open("w")
        self.processes.append(subprocess.Popen(line, env=self.env, stdout=log, stderr=log, stdin=subprocess.DEVNULL))

    def _wait(self, there, what: str) -> None:
        end = time.monotonic() + 60
        while not there():
            if time.monotonic() > end:
                logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in self.root.glob("*.out"))
                self.__exit__()
                raise AssertionError(f"{what} does not come up:\n{logs}")
            time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
