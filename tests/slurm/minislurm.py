"""A throw-away, real, multi-node SLURM on one host, for tests.

Each node is a slurmd with its own network namespace, address and host name. All of
it lives in private namespaces of one process, as root or, without privileges, in a
user namespace: when that process ends, nothing is left. `cluster.py` starts it as a
program and is the handle a test holds.
"""

from __future__ import annotations

import argparse
import ctypes
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

SEARCH = "/usr/sbin:/usr/bin:/sbin:/bin"
SUBNET = "198.18.0"  # Reserved for benchmarks between hosts: nobody's real network.
READY = "minislurm is ready"


class Daemons:
    """The inside: network, configuration and daemons."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.root: Path = options.root
        self.conf = self.root / "slurm.conf"
        self.names = [f"node{i}" for i in range(options.nodes)]
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def up(self) -> None:
        """Start everything and wait until all nodes are idle."""
        for folder in ("state", "log", "run", *(f"spool/{n}" for n in self.names)):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        self._munge()
        self._network()
        self.conf.write_text(self._configuration())
        (self.root / "cgroup.conf").write_text("CgroupPlugin=autodetect\n")
        self._start("slurmctld", ["slurmctld", "-D", "-c", "-f", str(self.conf)])
        for name in self.names:
            self.start_node(name)
        self._await_idle()

    def start_node(self, name: str) -> None:
        """Boot a node: own address, host name, /etc/hosts, /dev/shm and /tmp/ray."""
        folder = self.root / "nodes" / name / "ray"
        folder.mkdir(parents=True, exist_ok=True)
        Path("/tmp/ray").mkdir(exist_ok=True)
        # Not `ip netns exec`: it remounts /sys and hides /sys/fs/cgroup, which
        # slurmd insists on.
        script = (
            f"hostname {name}; mount --bind {self.root}/hosts /etc/hosts; "
            f"mount --bind {folder} /tmp/ray; "
            "mount -t tmpfs -o mode=1777,size=1g shm /dev/shm; "
            f"exec {self._find('slurmd')} -D -N {name} -f {self.conf}"
        )
        private = ["unshare", "--uts", "--mount", "--propagation=private"]
        enter = ["nsenter", f"--net=/run/netns/{name}", *private]
        self._start(name, [*enter, "sh", "-ec", script])

    def kill_node(self, name: str) -> None:
        """Cut a node's power: every process of its network namespace ends at once."""
        subprocess.run(["ip", "-n", name, "link", "set", "eth0", "down"], check=True)
        own = os.stat(f"/run/netns/{name}").st_ino
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.stat(f"/proc/{entry}/ns/net").st_ino == own:
                    os.kill(int(entry), signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError):
                continue

    def crash_daemon(self, name: str) -> None:
        """Kill a node's slurmd; what it has started lives on."""
        self.processes[name].kill()
        self.processes[name].wait()

    def _start(self, name: str, command: list[str]) -> None:
        log = (self.root / "log" / f"{name}.out").open("ab")
        self.processes[name] = subprocess.Popen(
            [self._find(command[0]), *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=dict(os.environ) | {"SLURM_CONF": str(self.conf)},
            start_new_session=True,
        )

    @staticmethod
    def _find(name: str) -> str:
        return shutil.which(name, path=SEARCH) or name

    def _munge(self) -> None:
        key = self.root / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        paths = {
            "key-file": "munge.key",
            "socket": "munge.sock",
            "pid-file": "run/munged.pid",
            "log-file": "log/munged.log",
            "seed-file": "munge.seed",
        }
        flags = [f"--{flag}={self.root / path}" for flag, path in paths.items()]
        self._start("munged", ["munged", "--foreground", "--force", *flags])
        self._await(lambda: (self.root / "munge.sock").exists(), "munged")

    def _network(self) -> None:
        def ip(*words: str) -> None:
            subprocess.run(["ip", *words], check=True)

        # Namespaces are bound under /run: a private one, so that none is left over.
        subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)
        Path("/run/netns").mkdir()
        ip("link", "set", "lo", "up")
        ip("link", "add", "br0", "type", "bridge")
        ip("addr", "add", f"{SUBNET}.1/24", "dev", "br0")
        ip("link", "set", "br0", "up")
        hosts = f"127.0.0.1 localhost\n{SUBNET}.1 {socket.gethostname()}\n"
        for i, name in enumerate(self.names):
            hosts += f"{SUBNET}.{10 + i} {name}\n"
            ip("netns", "add", name)
            peer = ("peer", "name", "eth0", "netns", name)
            ip("link", "add", f"veth{i}", "type", "veth", *peer)
            ip("link", "set", f"veth{i}", "master", "br0", "up")
            ip("-n", name, "addr", "add", f"{SUBNET}.{10 + i}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        (self.root / "hosts").write_text(hosts)

    def _configuration(self) -> str:
        o, root, user = self.options, self.root, getpass.getuser()
        lines = f"""\
ClusterName=mini
SlurmctldHost={socket.gethostname()}({SUBNET}.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge.sock,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SlurmdTimeout={o.slurmd_timeout}
SlurmctldTimeout=10
KillWait=5
MessageTimeout=10
TCPTimeout=2
AccountingStorageType=accounting_storage/none
""".splitlines()
        for i, name in enumerate(self.names):
            address = f"NodeHostname={name} NodeAddr={SUBNET}.{10 + i}"
            lines.append(
                f"NodeName={name} {address} CPUs={o.cpus} RealMemory={o.memory}"
            )
        if o.cloud:
            # Nodes that never boot: enough for slurmctld to judge a submission.
            (root / "gres.conf").write_text("Name=gpu Count=8\n")
            lines += ["GresTypes=gpu", "TreeWidth=65533", "SuspendTime=600"]
            lines += ["SuspendProgram=/bin/true", "ResumeProgram=/bin/true"]
            lines.append(
                f"NodeName=gpu[0001-{o.cloud:04d}] CPUs=128 RealMemory=2000000 "
                "Gres=gpu:8 State=CLOUD"
            )
        batch = "PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE"
        if o.grace:
            # A job of "urgent" takes the nodes of one of "batch", which is requeued.
            lines += ["PreemptType=preempt/partition_prio", "PreemptMode=REQUEUE"]
            lines.append(
                "PartitionName=urgent Nodes=ALL PriorityTier=9 PreemptMode=OFF"
            )
            batch += f" PriorityTier=1 GraceTime={o.grace}"
        if o.user_signal:
            lines.append("SlurmctldParameters=preempt_send_user_signal")
        return "\n".join([*lines, batch]) + "\n"

    def _await_idle(self) -> None:
        def idle() -> bool:
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{name} ended with {process.returncode}")
            command = ["sinfo", "-h", "-N", "-o", "%N %t"]
            done = subprocess.run(
                command,
                env=dict(os.environ) | {"SLURM_CONF": str(self.conf)},
                text=True,
                capture_output=True,
                check=False,
            )
            states = dict(line.split() for line in done.stdout.splitlines())
            ready = all(states.get(name) == "idle" for name in self.names)
            return done.returncode == 0 and ready

        self._await(idle, "the nodes")

    @staticmethod
    def _await(ready: object, what: str) -> None:
        deadline = time.monotonic() + 30
        while not ready():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} did not come up in 30 s")
            time.sleep(0.1)


def main() -> None:
    """Bring the cluster up, then obey orders until the handle goes away."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--memory", type=int, default=4096)
    parser.add_argument("--cloud", type=int, default=0)
    parser.add_argument("--slurmd-timeout", type=int, default=300)
    parser.add_argument(
        "--grace", type=int, default=0, help="seconds; 0: no urgent jobs"
    )
    parser.add_argument(
        "--user-signal", type=int, default=0, help="1: urgent jobs warn"
    )
    options = parser.parse_args()
    # SIGKILL for us when the handle's process ends, however it ends.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    daemons = Daemons(options)
    try:
        daemons.up()
    except (RuntimeError, TimeoutError, subprocess.CalledProcessError) as error:
        print(error, flush=True)
        sys.exit(1)
    print(READY, flush=True)
    for line in sys.stdin:
        verb, name = line.split()
        orders = {"kill": daemons.kill_node, "crash": daemons.crash_daemon}
        orders.get(verb, daemons.start_node)(name)
        print("done", flush=True)


if __name__ == "__main__":
    main()
