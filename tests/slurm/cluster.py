"""The handle of a throw-away SLURM cluster: what a test may do with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

INSIDE = Path(__file__).with_name("minislurm.py")
READY = "minislurm is ready"
SEARCH = "/usr/sbin:/usr/bin:/sbin:/bin"
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "ip", "unshare", "nsenter")
PACKAGES = "slurmctld slurmd slurm-client munge iproute2"


def missing_programs() -> list[str]:
    """Return the programs of `PROGRAMS` that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=SEARCH) is None]


class Cluster:
    """Starts the cluster's process and runs commands beside it."""

    def __init__(self, root: Path, **options: object) -> None:
        """Remember the options; see the parser of `main` for their names."""
        self.root = root
        self._options = options
        self._process: subprocess.Popen[str] | None = None
        self._inside = 0

    def __enter__(self) -> Cluster:
        # munged refuses folders that others could have changed.
        for folder in (self.root, *self.root.parents[:2]):
            if os.access(folder, os.W_OK) and folder.stat().st_uid == os.getuid():
                folder.chmod(folder.stat().st_mode | 0o755)
        command = ["unshare", "--pid", "--fork", "--kill-child", "--mount"]
        command += ["--mount-proc", "--net", "--uts"]
        if os.getuid():
            command += ["--user", "--map-current-user", "--keep-caps"]
        command += [sys.executable, str(INSIDE), "--root", str(self.root)]
        for name, value in self._options.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        self._process = subprocess.Popen(
            command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        line = self._process.stdout.readline()
        if READY not in line:
            self._process.wait()
            raise RuntimeError(f"minislurm did not start: {line}{self.logs()}")
        # The child of unshare is process 1 inside; here it has another number.
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        self._inside = int(children.split()[0])
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        """The cluster's first process, as this side counts."""
        return self._inside

    def logs(self) -> str:
        """Return the end of every daemon's log."""
        texts = []
        for path in sorted((self.root / "log").glob("*")):
            lines = path.read_text(errors="replace").splitlines()[-15:]
            texts.append(f"\n--- {path.name}\n" + "\n".join(lines))
        return "".join(texts)

    def run(
        self,
        *command: str,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as a user of the cluster's login node would."""
        enter = ["nsenter", f"--target={self._inside}", "--mount", "--net", "--pid"]
        if os.getuid():
            enter += ["--user", "--preserve-credentials"]
        if cwd:
            enter += [f"--wd={cwd}"]
        variables = dict(os.environ) | {"SLURM_CONF": str(self.root / "slurm.conf")}
        done = subprocess.run(
            [*enter, *command],
            env=variables | (env or {}),
            text=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(
                f"{command} ended with {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def submit(self, *arguments: str, **options: object) -> int:
        """Submit by sbatch; return the job's number."""
        return int(self.run("sbatch", "--parsable", *arguments, **options).stdout)

    def job(self, number: int) -> dict[str, str]:
        """Return what `scontrol show job` says, by name."""
        text = self.run("scontrol", "--oneliner", "show", "job", str(number)).stdout
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def wait(self, number: int, states: set[str], timeout: float) -> dict[str, str]:
        """Wait until a job is in one of the states; return its description."""
        deadline = time.monotonic() + timeout
        while (job := self.job(number))["JobState"] not in states:
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {number} is {job['JobState']}: {job}")
            time.sleep(0.5)
        return job

    def tell(self, order: str) -> None:
        """Send "kill NODE" (power loss), "crash NODE" (its slurmd) or "start NODE"."""
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()
        if "done" not in self._process.stdout.readline():
            raise RuntimeError(f"minislurm failed at {order!r}")
