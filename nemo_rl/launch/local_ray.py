"""Ray on one node of a job: imported ahead, started when it is known how.

Knows nothing about other nodes: its caller has their addresses.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from nemo_rl.launch import ray_standby
from nemo_rl.launch.allocation import Allocation
from nemo_rl.launch.processes import Child
from nemo_rl.launch.ray_settings import settings
from nemo_rl.launch.ray_start import PortPlan, ray_arguments, ray_environment
from nemo_rl.utils import env
from nemo_rl.utils.files import write_json

ORDER = "ray.json"
"""File of the node-local folder: how Ray is to be started."""


class LocalRay:
    """The process that is to become `ray start`."""

    def __init__(self, temp_dir: Path, *, token: Path, log: Path) -> None:
        """Let a process import Ray; it waits for `start`.

        scancel and preemption send SIGTERM to every process of the step. Without Ray
        and its workers nothing could be saved, so these do not see it.

        Args:
            temp_dir: node-local folder of the job.
            token: file of Ray's access token, which need not be there yet.
            log: file for its output.
        """
        self._temp_dir = temp_dir
        variables = ray_environment(
            env.inherited(), token_file=token, temp_dir=temp_dir
        )
        words = ray_standby.command(sys.executable, temp_dir / ORDER)
        self._child = Child("ray", words, variables, log, blocked={signal.SIGTERM})

    def start(
        self,
        job: Allocation,
        *,
        ip: str,
        ports: PortPlan,
        head_address: str | None = None,
    ) -> Child:
        """Start Ray and return its process.

        Args:
            job: this node's share.
            ip: this node's address.
            ports: this node's ports.
            head_address: "ip:port" of the head; None on the head itself.
        """
        words = ray_arguments(
            job, ip=ip, ports=ports, temp_dir=self._temp_dir, head_address=head_address
        )
        variables = settings(
            env.inherited(),
            num_nodes=job.num_nodes,
            num_cpus=job.num_cpus,
            head=job.is_head,
        )
        order = {"arguments": words, "variables": variables}
        write_json(self._temp_dir / ORDER, order)
        return self._child
